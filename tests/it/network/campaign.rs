//! A run: clients and faults for a time, then quiet, then everything is checked. And the tests.
//!
//! `cargo test` makes one short run; `make faults RUNS=10 SECONDS=60` makes many long ones and writes
//! their results below `docs/results`. The seed is printed; `LALLY_NET_SEED` repeats its schedule and
//! what each client does, though not the times at which packets pass: those are the machine's.
//!
//! Where namespaces are not to be had, the test is skipped and says so. With `CI` set, only a kernel
//! that refuses is a reason to skip: `.ci/run` installs what can be installed.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::super::process::node::Node;
use super::super::process::turn::Turn;
use super::super::process::wait::{is, look_until};
use super::checkers::{check, slowest};
use super::faults::{schedule, suffer};
use super::history::{Held, History};
use super::lab::{Lab, NODES};
use super::workload::{CLIENTS_PER_NODE, Worker};
use crate::results::{self, from_env, say};

const REQUEST_TIMEOUT: Duration = Duration::from_millis(500);
const ARGS: [&str; 4] = ["--request-timeout", "500ms", "--anti-entropy-interval", "2s"];
/// From the last fault until all nodes hold the same.
const HEALING: Duration = Duration::from_secs(60);
/// Requests sent before the first answer is read, when collecting what a node holds.
const AHEAD: usize = 64;
/// How the kernel says that it will not, or cannot.
const REFUSALS: [&str; 4] =
    ["not permitted", "ermission denied", "not supported", "Unknown device type"];
/// Of the schedule of a single run, so that it is the same every time. Campaigns draw theirs.
const KNOWN_SEED: u64 = 17;
/// Objections shown per promise.
const SHOWN: usize = 5;

/// What came of a run.
struct Outcome {
    seed: u64,
    history: History,
    /// From the last fault until all nodes were equal.
    healing: Duration,
    /// Promises that were broken, with the objections.
    broken: Vec<(&'static str, Vec<String>)>,
}

#[test]
fn clients_of_a_cluster_on_a_failing_network_see_what_was_promised() {
    let _alone = Turn::alone();
    let runs: u64 = from_env("LALLY_NET_RUNS").unwrap_or(1);
    let time = Duration::from_secs(from_env("LALLY_NET_SECONDS").unwrap_or(30));
    let drawn = || if runs == 1 { KNOWN_SEED } else { RandomState::new().hash_one(0) };
    let seed: u64 = from_env("LALLY_NET_SEED").unwrap_or_else(drawn);
    let mut outcomes = Vec::new();
    for run in 0..runs {
        let lab = match Lab::build() {
            Ok(lab) => lab,
            Err(why) => return skip(&why),
        };
        let outcome = run_once(seed.wrapping_add(run), time, &lab);
        say(&outcome.line());
        outcomes.push(outcome);
    }
    results::keep("LALLY_NET_RESULT", || report(&outcomes, time));
    let broken: Vec<_> = outcomes.iter().flat_map(Outcome::objections).collect();
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

fn run_once(seed: u64, time: Duration, lab: &Lab) -> Outcome {
    say(&format!("LALLY_NET_SEED={seed}"));
    let mut nodes = lab.start(&ARGS);
    let addresses: Vec<_> = nodes.iter().map(Node::http).collect();
    let (start, stop) = (Instant::now(), AtomicBool::new(false));
    let mut history = History::default();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..NODES * CLIENTS_PER_NODE)
            .map(|process| {
                let node = process % NODES;
                let worker = Worker::new(process, node, addresses[node], seed);
                let stop = &stop;
                scope.spawn(move || worker.run(start, stop))
            })
            .collect();
        // A fault that cannot be done panics: the clients must not run on for ever.
        let stop = StopOnDrop(&stop);
        for step in schedule(seed, time) {
            history.troubles.push(suffer(step, lab, &mut nodes, start));
        }
        drop(stop);
        for client in clients {
            history.operations.extend(client.join().unwrap());
        }
    });
    history.operations.sort_by_key(|operation| operation.began);
    let last = Instant::now();
    let healed = look_until(HEALING, || all_equal(&nodes));
    let healing = last.elapsed();
    let keys: BTreeSet<_> = history.operations.iter().map(|o| o.key.clone()).collect();
    history.held = nodes.iter().map(|node| held(node, &keys)).collect();
    let path = history_path(seed);
    history.save(&path).unwrap();
    let mut broken: Vec<_> = check(&history, REQUEST_TIMEOUT)
        .into_iter()
        .filter(|(_, objections)| !objections.is_empty())
        .collect();
    if let Err(seen) = healed {
        broken.push(("after faults end all members become equal by themselves", vec![seen]));
    }
    if !broken.is_empty() {
        for (i, node) in nodes.iter().enumerate() {
            fs::write(path.with_extension(format!("node{i}.log")), node.log()).unwrap();
        }
    }
    Outcome { seed, history, healing, broken }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whether all nodes are ready, alive and in sync for each other, and hold the same; else what not.
fn all_equal(nodes: &[Node]) -> Result<(), String> {
    let mut digests = BTreeSet::new();
    for node in nodes {
        node.readiness()?;
        let cluster = node.cluster();
        let members = cluster["members"].as_array().unwrap();
        let present = members.iter().filter(|member| member["state"] != "left");
        let good = present.filter(|m| m["state"] == "alive" && m["in_sync"] == true).count();
        let left = members.iter().filter(|member| member["state"] == "left").count();
        is(good == NODES - 1 && good + left == members.len(), &cluster)?;
        digests.insert(cluster["digest"].to_string());
    }
    is(digests.len() == 1, format!("{digests:?}"))
}

/// The digest of a node, and its own copy of every key.
fn held(node: &Node, keys: &BTreeSet<String>) -> Held {
    let mut held = Held { digest: node.holdings().0, ..Held::default() };
    let mut client = node.client();
    let keys: Vec<_> = keys.iter().collect();
    for batch in keys.chunks(AHEAD) {
        let bodies: Vec<_> = batch.iter().map(|key| json!({ "key": key, "quorum": 1 })).collect();
        for (key, reply) in batch.iter().zip(client.pipeline("/get", &bodies)) {
            let kept = reply.value().map(|value| (value, reply.timestamp()));
            held.keys.insert((*key).clone(), kept);
        }
    }
    held
}

impl Outcome {
    fn line(&self) -> String {
        let operations = &self.history.operations;
        let ok = operations.iter().filter(|o| o.succeeded()).count();
        let failed = operations.iter().filter(|o| o.failed()).count();
        let verdict = if self.broken.is_empty() { "all promises kept" } else { "BROKEN" };
        format!(
            "| {} | {} | {ok} | {failed} | {} | {} | {} | {} | {verdict} |",
            self.seed,
            operations.len(),
            operations.len() - ok - failed,
            self.history.troubles.len(),
            slowest(&self.history).as_millis(),
            self.healing.as_millis(),
        )
    }

    fn objections(&self) -> Vec<String> {
        let history = history_path(self.seed);
        self.broken
            .iter()
            .map(|(promise, objections)| {
                let shown: Vec<_> = objections.iter().take(SHOWN).map(String::as_str).collect();
                format!(
                    "LALLY_NET_SEED={}: NOT: {promise} ({} objections, {}):\n  {}",
                    self.seed,
                    objections.len(),
                    history.display(),
                    shown.join("\n  ")
                )
            })
            .collect()
    }
}

/// The dated result of a campaign, in Markdown.
fn report(outcomes: &[Outcome], time: Duration) -> String {
    let date = results::date();
    let total: usize = outcomes.iter().map(|o| o.history.operations.len()).sum();
    let broken = outcomes.iter().filter(|o| !o.broken.is_empty()).count();
    let mut out = format!(
        "# Faults, {date}\n\nRevision {}, debug build, {} cores. {} runs of {} s of faults with {NODES} \
         nodes and {} clients: {total} operations, {broken} runs with a broken promise. What is done \
         and what is checked: [docs/faults.md](../faults.md).\n\n\
         | seed | operations | ok | refused | unknown | faults | slowest answer (ms) | equal after (ms) \
         | verdict |\n|---|---|---|---|---|---|---|---|---|\n",
        results::revision(),
        results::cores(),
        outcomes.len(),
        time.as_secs(),
        NODES * CLIENTS_PER_NODE,
    );
    for outcome in outcomes {
        writeln!(out, "{}", outcome.line()).unwrap();
    }
    let objections: Vec<_> = outcomes.iter().flat_map(Outcome::objections).collect();
    if !objections.is_empty() {
        write!(out, "\n## Objections\n\n```text\n{}\n```\n", objections.join("\n")).unwrap();
    }
    out
}

fn history_path(seed: u64) -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/histories");
    dir.join(format!("{seed}.jsonl"))
}

fn skip(why: &str) {
    let refused = REFUSALS.iter().any(|refusal| why.contains(refusal));
    let required = std::env::var_os("CI").is_some() && !refused;
    let wanted = std::env::var_os("LALLY_NET_RESULT").is_some();
    assert!(!required && !wanted, "no network namespaces: {why}");
    say(&format!("SKIPPED: five nodes on a failing network: no network namespaces here: {why}"));
}

#[test]
fn a_lab_cuts_in_one_direction_and_heals() {
    let _turn = Turn::of_this_thread();
    let lab = match Lab::build() {
        Ok(lab) => lab,
        Err(why) => return skip(&why),
    };
    let mut nodes = vec![lab.setup(0, &ARGS).start_ready()];
    nodes.push(lab.setup(1, &ARGS).start_ready());
    let write = |node: &Node| node.client().add_to("k", "v", 2).verdict();
    assert_eq!((write(&nodes[0]), write(&nodes[1])), ("success".into(), "success".into()));
    lab.connect(|from, to| (from, to) != (0, 1));
    // Requests pass in one direction only, and answers need the other one.
    assert_eq!((write(&nodes[0]), write(&nodes[1])), ("partial".into(), "partial".into()));
    lab.connect(|_, _| true);
    let healed = look_until(HEALING, || is(write(&nodes[0]) == "success", "partial"));
    assert_eq!(healed, Ok(()));
}
