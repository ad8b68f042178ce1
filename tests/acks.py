#!/usr/bin/env python3
"""Measures what written acknowledgements save: a volume with them beside one with durable ones.

    cargo build --release --bin sbkctl
    tests/acks.py [--rounds N] [--seconds S] [--dir DIR] [--sbkctl PATH] [--replicas N] [--forwarded]

Both volumes are of one cluster, on one disk; every round runs each load against one and then against the
other, in turns the one first and the other, with fio's NBD engine over TCP. Prints a table of the medians
with their ratio, and how busy the machine was meanwhile.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

import compare

compare.SIZE = 256 << 20

LOADS = [
    ("4k random write, QD 1", "--rw=randwrite --bs=4k --iodepth=1"),
    ("4k random write, QD 32", "--rw=randwrite --bs=4k --iodepth=32"),
    ("4k random write, fsync=32, QD 1", "--rw=randwrite --bs=4k --iodepth=1 --fsync=32"),
    ("4k random write, fsync=1, QD 1", "--rw=randwrite --bs=4k --iodepth=1 --fsync=1"),
]
ACKS = ["durable", "written"]


def volume(cluster, ack, replicas, forwarded):
    """Makes a volume whose writes are acknowledged so. Returns its URI."""
    subprocess.run(cluster.command + ["volume", "create", ack, "--size", str(compare.SIZE),
                                      "--replicas", str(replicas), "--write-ack", ack],
                   check=True, stdout=subprocess.DEVNULL)
    show = subprocess.run(cluster.command + ["volume", "show", ack], check=True,
                          capture_output=True, text=True)
    view = json.loads(show.stdout)
    if view["write_ack"] != ack:
        sys.exit(f"the volume is {view['write_ack']}")
    nodes = sorted(cluster.datanodes, key=lambda node: node["id"] != view["primary"])
    return f"nbd://{nodes[1 if forwarded else 0]['nbd']}/{ack}"


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--dir", help="where the cluster keeps its files")
    parser.add_argument("--sbkctl", default=os.path.join(here, "..", "target", "release", "sbkctl"))
    parser.add_argument("--forwarded", action="store_true", help="ask at a node that is not the primary's")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="sbk-acks.", dir=args.dir) as directory:
        one, three = compare.sync_cost(directory), compare.sync_cost(directory, writers=3)
        print(f"a 4 KiB overwrite with fdatasync takes {one:.0f} µs, three at once {three:.0f} µs")
        cluster = compare.Cluster(args.sbkctl, directory)
        try:
            uris = {ack: volume(cluster, ack, args.replicas, args.forwarded) for ack in ACKS}
            for uri in uris.values():
                compare.fill(uri)
            took = {(name, ack): [] for name, _ in LOADS for ack in ACKS}
            busy = [os.getloadavg()[0]]
            for turn in range(args.rounds):
                for name, options in LOADS:
                    for ack in ACKS if turn % 2 == 0 else ACKS[::-1]:
                        took[name, ack].append(compare.fio(uris[ack], options, args.seconds))
                busy.append(os.getloadavg()[0])
                print(f"round {turn + 1} of {args.rounds}", file=sys.stderr)
        finally:
            cluster.stop()
    print(f"load of the machine, averaged over a minute, after each round: "
          f"{', '.join(f'{load:.1f}' for load in busy)}; {os.cpu_count()} processors\n")
    print("| Load | durable | written | ratio | durable p50 / p99 | written p50 / p99 |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, _ in LOADS:
        median = {ack: [statistics.median(column) for column in zip(*took[name, ack])]
                  for ack in ACKS}
        durable, written = median["durable"], median["written"]
        print(f"| {name} | {durable[0]:,.0f} | {written[0]:,.0f} | {written[0] / durable[0]:.2f} | "
              f"{durable[2]:,.0f} / {durable[3]:,.0f} µs | {written[2]:,.0f} / {written[3]:,.0f} µs |")


if __name__ == "__main__":
    main()
