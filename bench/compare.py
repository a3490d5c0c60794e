#!/usr/bin/env python3
"""Has a path become slower? Counts the instructions of each path of benches/paths.rs, here and at
another revision, and fails if one takes a tenth more.

    bench/compare.py [--base main] [--most 1.10] [--only NAME ...]

Instructions are counted by callgrind: they hardly differ from run to run, as times do. A path is
taken so often and twice as often: the difference is without its preparation.
Needs valgrind and git. The other revision is built in a work tree below target/compare.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = ROOT / "target" / "compare"

# How often a path is taken. Those that take longest need to be taken least.
TIMES = {"store/scan": 5, "log/replay-10000": 2, "log/append-256": 50, "log/append-16-always": 50}
OTHERWISE = 300

# So many instructions are counted at least. What comes up now and then, such as a table that grows, is
# a tenth of a short path that is taken 300 times.
STEADY = 20_000_000


def run(*argv, **options):
    return subprocess.run(argv, check=True, text=True, capture_output=True, **options).stdout


def build(source, target):
    """The program, without the optimization at link time: it takes long and changes no ratio."""
    options = {"CARGO_PROFILE_BENCH_LTO": "off", "CARGO_PROFILE_BENCH_CODEGEN_UNITS": "16"}
    argv = ["cargo", "bench", "--bench", "paths", "--no-run", "--target-dir", str(target)]
    built = subprocess.run(argv, cwd=source, env={**os.environ, **options}, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if built.returncode:
        sys.exit(f"{source}: the benches do not build\n{built.stderr[-2000:]}")
    return pathlib.Path(source) / re.search(r"\(([^()]*deps/paths-[^()]*)\)", built.stderr).group(1)


def instructions(program, path, times):
    environment = {**os.environ, "LALLY_COUNT": path, "LALLY_TIMES": str(times)}
    with tempfile.TemporaryDirectory() as scratch:
        argv = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={scratch}/out", str(program)]
        counted = subprocess.run(argv, env=environment, text=True, capture_output=True, cwd=scratch)
    found = re.search(r"Collected : (\d+)", counted.stderr)
    if counted.returncode or not found:
        sys.exit(f"{program} {path}: exit code {counted.returncode}\n{counted.stderr[-2000:]}")
    return int(found.group(1))


def each(program, path):
    def taken(times):
        both = instructions(program, path, 2 * times)
        return (both - instructions(program, path, times)) / times

    times = TIMES.get(path, OTHERWISE)
    count = taken(times)
    return count if count * times >= STEADY else taken(int(STEADY / max(count, 1)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--base", default="main", help="the revision to compare with")
    parser.add_argument("--most", type=float, default=1.10, help="a ratio above this fails")
    parser.add_argument("--only", nargs="+", help="these paths")
    arguments = parser.parse_args()
    tree = TARGET / "base"
    if not tree.exists():
        run("git", "worktree", "prune", cwd=ROOT)
        run("git", "worktree", "add", "--detach", str(tree), arguments.base, cwd=ROOT)
    run("git", "checkout", "--detach", arguments.base, cwd=tree)
    before, after = build(tree, TARGET / "target-base"), build(ROOT, TARGET / "target-here")
    shared = run(str(before), "--paths").split()
    paths = [path for path in run(str(after), "--paths").split() if path in shared]
    slower = []
    print(f"| path | instructions at {arguments.base} | here | ratio |\n|---|---|---|---|")
    for path in arguments.only or paths:
        old, new = each(before, path), each(after, path)
        ratio = new / old
        print(f"| {path} | {old:.0f} | {new:.0f} | {ratio:.3f} |", flush=True)
        if ratio > arguments.most:
            slower.append(f"{path} ({ratio:.2f})")
    if slower:
        sys.exit(f"slower than {arguments.most}: {', '.join(slower)}")


if __name__ == "__main__":
    main()
