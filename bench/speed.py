#!/usr/bin/env python3
"""Measures a node and clusters beside the bare HTTP stack, and writes a dated result.

    bench/speed.py [--runs 3] [--only SECTION ...] [--out docs/results/speed-DATE.md]

Every contender of a section is started once; then, round by round, each gets a short slice of load
in turn. So a ratio of two of them holds even when the machine gets slower or faster meanwhile, which
figures of different times do not. What is compared is the CPU time of all the server's processes per
request, as the kernel counts it: of all figures the steadiest on a machine that others use, too.

Needs wrk; redis-server, webdis and etcd are measured if they are installed. All listen on loopback.
"""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
LOAD = ROOT / "bench" / "load.lua"
TICKS = os.sysconf("SC_CLK_TCK")
SMALL = 100  # Bytes of a value, unless it is the size that is measured.
CONNECTIONS = 64
SLICE = 2  # Seconds.


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(what, holds, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            sys.exit(f"not within {seconds} s: {what}")
        time.sleep(0.05)


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.read().decode()
    except urllib.error.HTTPError as error:
        # Whoever refuses is there, but not ready.
        return None if error.code == 503 else str(error.code)
    except OSError:
        return None


class Server:
    """One or more processes, and the address that gets the load."""

    def __init__(self, stack, scratch, name, commands, port, ready):
        self.name, self.url, self.processes = name, f"http://127.0.0.1:{port}", []
        for argv in commands:
            log = open(scratch / f"{name}.log", "ab")
            process = subprocess.Popen(argv, stdout=log, stderr=log, cwd=scratch)
            stack.callback(self.end, process)
            self.processes.append(process)
        wait_until(f"{name} is ready", ready)

    @staticmethod
    def end(process):
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def cpu_seconds(self):
        total = 0
        for process in self.processes:
            stat = pathlib.Path(f"/proc/{process.pid}/stat").read_text()
            fields = stat.rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICKS

    def resident_bytes(self):
        total = 0
        for process in self.processes:
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
            total += int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) * 1024
        return total


class Lab:
    """Starts servers, each in a directory of its own, and ends them."""

    def __init__(self, stack, arguments):
        self.stack, self.arguments = stack, arguments
        self.root = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="speed-")))

    def scratch(self, name):
        path = self.root / f"{name}-{free_port()}"
        path.mkdir()
        return path

    def floor(self, value_bytes=None):
        port = free_port()
        argv = [str(self.arguments.floor), f"127.0.0.1:{port}"]
        argv += [] if value_bytes is None else [str(value_bytes)]
        url = f"http://127.0.0.1:{port}/"
        ready = lambda: answers(url) is not None
        return Server(self.stack, self.scratch("floor"), "floor", [argv], port, ready)

    def nodes(self, count, quorum=1, *options):
        """A cluster; the first node gets the load."""
        scratch, ports = self.scratch(f"nodes-{count}"), [(free_port(), free_port()) for _ in range(count)]
        commands = []
        for number, (http, grpc) in enumerate(ports):
            argv = [str(self.arguments.lally), "--data-dir", str(scratch / str(number))]
            argv += ["--http-port", str(http), "--grpc-port", str(grpc)]
            argv += ["--read-quorum", str(quorum), "--write-quorum", str(quorum)]
            argv += ["--log-level", "warn", *self.arguments.node_option, *options]
            if number:
                argv += ["--seed-node", f"127.0.0.1:{ports[0][1]}"]
            commands.append(argv)

        def ready():
            urls = [f"http://127.0.0.1:{http}" for http, _ in ports]
            if not all(answers(f"{url}/readyz") for url in urls):
                return False
            alive = [json.loads(answers(f"{url}/nodes") or "{}").get("nodes", []) for url in urls]
            return all(len(others) == count - 1 for others in alive)

        return Server(self.stack, scratch, f"nodes-{count}", commands, ports[0][0], ready)

    def redis(self):
        if not shutil.which("redis-server"):
            return None
        port, scratch = free_port(), self.scratch("redis")
        argv = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
        argv += ["--appendonly", "yes", "--appendfsync", "everysec"]
        ready = lambda: can_connect(port)
        server = Server(self.stack, scratch, "redis", [argv], port, ready)
        server.port = port
        return server

    def webdis(self):
        redis = self.redis() if shutil.which("webdis") else None
        if redis is None:
            return None
        port, scratch = free_port(), self.scratch("webdis")
        settings = {"redis_host": "127.0.0.1", "redis_port": redis.port, "redis_auth": None,
                    "http_host": "127.0.0.1", "http_port": port, "threads": 2, "pool_size": 20,
                    "daemonize": False, "websockets": False, "database": 0, "acl": [],
                    "verbosity": 1, "logfile": str(scratch / "webdis.own.log")}
        (scratch / "webdis.json").write_text(json.dumps(settings))
        ready = lambda: answers(f"http://127.0.0.1:{port}/PING") is not None
        server = Server(self.stack, scratch, "webdis", [["webdis", "webdis.json"]], port, ready)
        server.processes += redis.processes
        return server

    def etcd(self, count):
        if not shutil.which("etcd"):
            return None
        scratch, ports = self.scratch(f"etcd-{count}"), [(free_port(), free_port()) for _ in range(count)]
        members = ",".join(f"m{n}=http://127.0.0.1:{peer}" for n, (_, peer) in enumerate(ports))
        commands = []
        for number, (client, peer) in enumerate(ports):
            client, peer = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
            commands.append(["etcd", "--name", f"m{number}", "--data-dir", f"data-{number}",
                             "--listen-client-urls", client, "--advertise-client-urls", client,
                             "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                             "--initial-cluster", members, "--log-level", "error"])
        urls = [f"http://127.0.0.1:{client}/health" for client, _ in ports]
        ready = lambda: all("true" in (answers(url) or "") for url in urls)
        return Server(self.stack, scratch, f"etcd-{count}", commands, ports[0][0], ready)


def can_connect(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


class Work:
    """A call on a server, repeated by wrk."""

    def __init__(self, name, server, call, keys=10_000, value_bytes=SMALL):
        self.name, self.server = name, server
        self.load = [call, str(keys), str(value_bytes)]
        self.slices = []

    def run(self, seconds):
        argv = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "10s", "--latency",
                "-s", str(LOAD), self.server.url, "--", *self.load]
        before = self.server.cpu_seconds()
        text = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        cpu = self.server.cpu_seconds() - before
        requests = int(re.search(r"(\d+) requests in", text).group(1))
        amount, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", text).groups()
        bad = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
        broken = re.search(r"Socket errors: (.*)", text)
        if bad or broken or not requests:
            sys.exit(f"{self.name}: {bad or broken or 'no requests'}\n{text}")
        return {
            "us": cpu / requests * 1e6,
            "per_second": float(re.search(r"Requests/sec:\s+([\d.]+)", text).group(1)),
            "p99_ms": float(amount) * {"us": 1e-3, "ms": 1, "s": 1e3}[unit],
        }

    def figure(self, of):
        return statistics.median(one[of] for one in self.slices)

    def ratio(self, to, of="us"):
        """To another work, slice by slice."""
        return statistics.median(a[of] / b[of] for a, b in zip(self.slices, to.slices))


def in_turn(works, rounds):
    for work in works:
        work.run(1)
    for _ in range(rounds):
        for work in works:
            work.slices.append(work.run(SLICE))


class Run:
    """One run of everything: rows of the table, and what else is told."""

    def __init__(self, arguments):
        self.arguments, self.rows, self.told = arguments, {}, []

    def row(self, name, figure):
        self.rows[name] = figure
        print(f"  {name}: {figure:.2f}", flush=True)

    def tell(self, works, floor):
        for work in works:
            ratio = work.ratio(floor)
            self.told.append((work.name, work.figure("per_second"), work.figure("p99_ms"), work.figure("us"), ratio))

    @contextlib.contextmanager
    def lab(self):
        with contextlib.ExitStack() as stack:
            yield Lab(stack, self.arguments)

    def small(self):
        with self.lab() as lab:
            bare, one, three = lab.floor(), lab.nodes(1), lab.nodes(3, 2)
            floor = Work("floor", bare, "add")
            add, get = Work("one node, add", one, "add"), Work("one node, get", one, "get")
            add_2, get_2 = Work("three nodes, add W=2", three, "add"), Work("three nodes, get R=2", three, "get")
            works = [floor, add, get, add_2, get_2]
            in_turn(works, self.arguments.rounds)
            self.row("one node, add, everysec", add.ratio(floor))
            self.row("one node, get", get.ratio(floor))
            self.row("three nodes, add W=2", add_2.ratio(floor))
            self.row("three nodes, get R=2", get_2.ratio(floor))
            for name, work in [("add", add), ("get", get), ("add W=2", add_2), ("get R=2", get_2)]:
                self.row(f"p99 as fast as it goes, {name}", work.ratio(floor, "p99_ms"))
            self.tell(works, floor)

    def nearest(self):
        with self.lab() as lab:
            bare, three = lab.floor(), lab.nodes(3, 1)
            floor, fill = Work("floor", bare, "add"), Work("three nodes, add W=1", three, "add")
            get = Work("three nodes, get R=1", three, "get")
            in_turn([floor, fill, get], self.arguments.rounds)
            self.row("three nodes, get R=1", get.ratio(floor))
            self.tell([fill, get], floor)

    def rate(self):
        """The same requests per second to each: a quarter of what the floor can do."""
        with self.lab() as lab:
            servers = {"floor": lab.floor(SMALL), "one node": lab.nodes(1), "three nodes": lab.nodes(3, 2)}
            probe = Work("floor", servers["floor"], "add")
            rate = int(probe.run(SLICE)["per_second"] / 4)
            p99 = {(name, call): [] for name in servers for call in ("add", "get")}
            for _ in range(self.arguments.rounds):
                for (name, call), found in p99.items():
                    found.append(self.lally_bench(servers[name], call, rate))
            for call in ("add", "get"):
                for name in ("one node", "three nodes"):
                    ratios = [a / b for a, b in zip(p99[name, call], p99["floor", call])]
                    self.row(f"p99 at the same rate, {name}, {call}", statistics.median(ratios))

    def lally_bench(self, server, call, rate):
        argv = [str(self.arguments.lally), "bench", "--addr", server.url.removeprefix("http://"),
                "--rate", str(rate), "--mix", f"{call}=1", "--duration", f"{SLICE}s",
                "--warmup", "300ms", "--json", "-"]
        found = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)
        return found["calls"]["all"]["p99_us"]

    def always(self):
        with self.lab() as lab:
            node = lab.nodes(1, 1, "--fsync", "always")
            work = Work("one node, add, always", node, "add")
            work.run(1)
            before = self.log_counts(node)
            work.slices.append(work.run(3 * SLICE))
            after = self.log_counts(node)
            records, syncs = after[0] - before[0], after[1] - before[1]
            self.row("writes per fsync, always", records / syncs)

    @staticmethod
    def log_counts(node):
        text = answers(f"{node.url}/metrics")
        find = lambda name: float(re.search(rf"^{name} ([\d.]+)", text, re.M).group(1))
        return find("lally_log_appended_records_total"), find("lally_log_sync_duration_seconds_count")

    def memory(self, keys=1_000_000):
        with self.lab() as lab:
            node, redis = lab.nodes(1), lab.redis()
            value = "x" * SMALL

            def added(number):
                body = f'{{"key":"key-{number:012}","value":"{value}"}}'
                return f"POST /add HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}"

            def set_(number):
                return f"*3\r\n$3\r\nSET\r\n$16\r\nkey-{number:012}\r\n${SMALL}\r\n{value}\r\n"

            pipeline(int(node.url.rsplit(":", 1)[1]), added, keys, b"HTTP/1.1 200 ")
            if redis is None:
                return
            pipeline(redis.port, set_, keys, b"+OK\r\n")
            time.sleep(2)
            ours, theirs = node.resident_bytes(), redis.resident_bytes()
            print(f"  {ours / 1e6:.0f} MB, redis-server {theirs / 1e6:.0f} MB")
            self.row(f"memory, {keys} keys, to redis-server", ours / theirs)

    def values(self):
        for size, keys in [(1 << 10, 1000), (64 << 10, 200), (1 << 20, 16)]:
            with self.lab() as lab:
                bare, node = lab.floor(size), lab.nodes(1)
                works = {}
                for call in ("add", "get"):
                    for name, server in (("floor", bare), ("node", node)):
                        works[name, call] = Work(f"{name}, {call}, {size} bytes", server, call, keys, size)
                in_turn(list(works.values()), max(2, self.arguments.rounds // 2))
                for call in ("add", "get"):
                    # The bodies are the same, so bytes per CPU second are as requests per CPU second.
                    self.row(f"bytes per CPU second, {call} of {size} bytes", works["floor", call].ratio(works["node", call]))

    def replicas(self):
        with self.lab() as lab:
            sizes = [1, 3, 5, 7]
            works = [Work("floor", lab.floor(), "add")]
            works += [Work(f"{n} nodes, add by majority", lab.nodes(n, n // 2 + 1), "add") for n in sizes]
            in_turn(works, self.arguments.rounds)
            self.tell(works[1:], works[0])
            three = works[2]
            for count, work in zip(sizes[2:], works[3:]):
                self.row(f"{count} nodes, cost per replica, to that of three", work.ratio(three) * 3 / count)

    def beside(self):
        with self.lab() as lab:
            floor = Work("floor", lab.floor(), "add")
            works = [floor, Work("one node, add", (one := lab.nodes(1)), "add"), Work("one node, get", one, "get")]
            if webdis := lab.webdis():
                works += [Work("redis and webdis, set", webdis, "webdis_set"), Work("redis and webdis, get", webdis, "webdis_get")]
            if etcd := lab.etcd(1):
                works += [Work("etcd, put", etcd, "etcd_put"), Work("etcd, range", etcd, "etcd_get")]
            if etcd := lab.etcd(3):
                works += [Work("etcd, three nodes, put", etcd, "etcd_put"), Work("etcd, three nodes, range", etcd, "etcd_get")]
            in_turn(works, max(2, self.arguments.rounds // 2))
            self.tell(works[3:], floor)


SECTIONS = ["small", "nearest", "rate", "always", "memory", "values", "replicas", "beside"]

# What each row must reach, by how its name begins. The first that fits counts.
BOUNDS = [
    ("one node, add", "<=", 1.25),
    ("one node, get", "<=", 1.08),
    ("three nodes, add W=2", "<=", 2.5),
    ("three nodes, get R=2", "<=", 2.0),
    ("three nodes, get R=1", "<=", 1.10),
    ("writes per fsync", ">=", 20),
    # A quorum waits for another node: that is told, and not measured against who waits for nobody.
    ("p99 at the same rate, three nodes", None, None),
    ("p99", "<=", 2.0),
    ("memory", "<=", 1.2),
    ("bytes per CPU second", ">=", 0.7),
    ("5 nodes", "<=", 1.0),
    ("7 nodes", "<=", 1.0),
]


def bound(row):
    return next((sign, limit) for beginning, sign, limit in BOUNDS if row.startswith(beginning))


def verdict(row, figures):
    sign, limit = bound(row)
    if sign is None:
        return "", ""
    holds = max(figures) <= limit if sign == "<=" else min(figures) >= limit
    return f"{sign} {limit:g}", "holds" if holds else "**does not hold**"


def pipeline(port, command, count, answer, at_a_time=500):
    """Sends commands so many at a time, and counts the answers."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for first in range(0, count, at_a_time):
            numbers = range(first, min(first + at_a_time, count))
            connection.sendall("".join(map(command, numbers)).encode())
            text = b""
            while text.count(answer) < len(numbers) or not text.endswith((b"}", b"\n")):
                piece = connection.recv(1 << 20)
                if not piece:
                    sys.exit("the server closed the connection")
                text += piece


def revision():
    git = lambda *argv: subprocess.run(["git", *argv], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    changed = " with changes" if git("status", "--porcelain", "src", "Cargo.lock") else ""
    return git("log", "-1", "--format=%h", "--abbrev=12", "--", "src", "Cargo.lock") + changed


def report(runs, arguments):
    when = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    options = f" `{' '.join(arguments.node_option)}`" if arguments.node_option else " the defaults"
    lines = [f"# Speed, {when}", "",
             f"Revision {revision()}, `make speed`, release build, {os.cpu_count()} cores with the load generator on them; nodes with{options}.",
             "Ratios are to the bare HTTP stack in the same run.", "",
             "| | " + " | ".join(f"run {n + 1}" for n in range(len(runs))) + " | must | |",
             "|---|" + "---|" * len(runs) + "---|---|"]
    for row in runs[0].rows:
        figures = [run.rows[row] for run in runs if row in run.rows]
        must, said = verdict(row, figures)
        lines.append(f"| {row} | " + " | ".join(f"{figure:.2f}" for figure in figures) + f" | {must} | {said} |")
    lines += ["", f"The last run, {CONNECTIONS} connections, values of {SMALL} bytes:", "",
              "| | requests/s | p99 | CPU per request | ratio |", "|---|---|---|---|---|"]
    for name, per_second, p99, us, ratio in runs[-1].told:
        lines.append(f"| {name} | {per_second:.0f} | {p99:.2f} ms | {us:.1f} us | {ratio:.2f} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--lally", type=pathlib.Path, default=ROOT / "target/release/lally")
    parser.add_argument("--floor", type=pathlib.Path, default=ROOT / "target/release/examples/floor")
    parser.add_argument("--node-option", action="append", default=[], help="an argument for every node")
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    arguments.lally, arguments.floor = arguments.lally.resolve(), arguments.floor.resolve()
    if not shutil.which("wrk"):
        sys.exit("wrk is not installed")
    runs = []
    for number in range(arguments.runs):
        print(f"run {number + 1}", flush=True)
        run = Run(arguments)
        for section in arguments.only:
            getattr(run, section)()
        runs.append(run)
    text = report(runs, arguments)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
