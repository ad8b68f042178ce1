#!/usr/bin/env python3
"""Runs `sbkctl drill chaos` with one seed after the other, several side by side, and sums up what they reached.

    tests/chaos.py --seeds 943..963 --lanes 2 --minutes 3

Fails if a run found something wrong or did not end in time, or if something that the drill is there for was
reached by none of them: then the runs were right because nothing came to pass. Each run's report and what it said are in
the directory given with --out, and everything else of one that failed is kept where its report says.
"""

import argparse
import collections
import json
import os
import pathlib
import subprocess
import sys
import threading

# A run ends its faults in time and heals, checks and stops then; beyond that it is stuck.
SPARE_SECONDS = 420


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sbkctl", type=pathlib.Path, default="target/release/sbkctl")
    parser.add_argument("--seeds", required=True, metavar="FROM..TO", help="the last one is not among them")
    parser.add_argument("--lanes", type=int, default=2, help="runs side by side")
    parser.add_argument("--minutes", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path, default="target/chaos")
    parser.add_argument("more", nargs="*", help="behind --: options of the drill")
    return parser.parse_args()


def one(args, seed):
    """One run: its report, or None with why there is none."""
    home = args.out / f"run-{seed}"
    home.mkdir(parents=True, exist_ok=True)
    command = [str(args.sbkctl), "drill", "chaos", "-o", "json", "--seed", str(seed)]
    command += ["--minutes", str(args.minutes), *args.more]
    with open(args.out / f"{seed}.log", "wb") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, env={**os.environ, "TMPDIR": str(home)}
        )
        try:
            said, _ = process.communicate(timeout=60 * args.minutes + SPARE_SECONDS)
        except subprocess.TimeoutExpired:
            # Its processes die with it.
            process.kill()
            process.communicate()
            return None, "it is stuck"
    try:
        report = json.loads(said)
    except ValueError:
        return None, f"it ended with {process.returncode} and without a report"
    (args.out / f"{seed}.json").write_bytes(said)
    if process.returncode != 0:
        return report, "; ".join(report["violations"]) or f"it ended with {process.returncode}"
    home.rmdir()
    return report, None


def main():
    args = options()
    args.sbkctl = args.sbkctl.resolve()
    args.out = args.out.resolve()
    first, end = (int(number) for number in args.seeds.split(".."))
    seeds = collections.deque(range(first, end))
    lock = threading.Lock()
    sums = collections.defaultdict(collections.Counter)
    unavailable, wrong, longest = {}, {}, collections.Counter()

    def lane():
        while True:
            with lock:
                if not seeds:
                    return
                seed = seeds.popleft()
            report, fault = one(args, seed)
            with lock:
                print(f"seed {seed}: {fault or 'right'}", flush=True)
                if fault:
                    wrong[seed] = fault
                if report is None:
                    continue
                sums["runs"]["runs"] += 1
                sums["runs"]["checks"] += report["checks"]
                for name in ("faults", "decisions", "reached"):
                    for what, count in report[name].items():
                        sums[name][what] += count
                for volume in report["volumes"]:
                    for what in ("writes", "reads", "flushes", "timed_out", "lost_connections", "losses"):
                        sums["load"][what] += volume[what]
                for what in ("longest_convergence_ms",):
                    longest[what] = max(longest[what], report[what])
                unavailable.update(report["unavailable"])

    threads = [threading.Thread(target=lane) for _ in range(args.lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for name, counts in sums.items():
        print(f"{name}: " + ", ".join(f"{what} {count}" for what, count in sorted(counts.items())))
    print(f"faults in all: {sum(sums['faults'].values())}; {dict(longest)}")
    for what, why in unavailable.items():
        print(f"NOT TRIED: {what}: {why}")
    never = sorted(what for what, count in sums["reached"].items() if count == 0)
    for what in never:
        print(f"NEVER REACHED BY ANY RUN, and so not tried: {what}")
    for seed, fault in sorted(wrong.items()):
        print(f"WRONG: seed {seed}: {fault}")
    sys.exit(1 if wrong or never or not sums["reached"] else 0)


main()
