#!/usr/bin/env python3
"""Measures what a rebuild does to the clients of its volume, with and without giving way to them.

    cargo build --release --bins
    tests/rebuild.py [--rounds N] [--rate BYTES] [--dir DIR] [--programs DIR]

Two clusters on one disk, of one master and three datanodes each, which differ in --recovery-rate: what is given, and 0. In each a volume of two
replicas is loaded by fio's NBD engine at its primary's node with 4k random writes, while its other replica moves to
the third node, which is rebuilt for that. The clusters take turns. Prints the medians beside those without a
rebuild, and how long the moves took.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import compare

compare.SIZE = 1 << 30
QUIET_SECONDS = 5
LOAD = ["--rw=randwrite", "--bs=4k", "--iodepth=4"]


class Loaded:
    """A cluster with a volume."""

    def __init__(self, programs, directory, rate):
        os.mkdir(directory)
        self.programs, self.directory, self.processes = programs, directory, []
        master = f"127.0.0.1:{compare.free_port()}"
        self.command = [os.path.join(programs, "sbkctl"), "-o", "json", "--masters", master]
        self.start("sbk-master", "master", "--id", "1", "--cluster", f"1={master}", "--listen", master)
        for n in range(3):
            listen, nbd = (f"127.0.0.1:{compare.free_port()}" for _ in range(2))
            self.start("sbk-datanode", f"node{n}", "--masters", master, "--listen", listen, "--nbd", nbd,
                       "--recovery-rate", str(rate), "--runtime-dir", os.path.join(directory, f"run{n}"))
        while sum(node["alive"] for node in self.nodes()) < 3:
            time.sleep(0.1)
        self.ctl("volume", "create", "v", "--size", str(compare.SIZE), "--replicas", "2")
        primary = self.ctl("volume", "show", "v")["primary"]
        nbd = next(node["nbd_addr"] for node in self.nodes() if node["id"] == primary)
        self.uri = f"nbd://{nbd}/v"
        compare.fill(self.uri)

    def start(self, program, name, *args):
        log = open(os.path.join(self.directory, f"{name}.log"), "w")
        http = f"127.0.0.1:{compare.free_port()}"
        self.processes.append(subprocess.Popen(
            [os.path.join(self.programs, program), "--data-dir", os.path.join(self.directory, name),
             "--http", http, *args], stdout=log, stderr=log))

    def stop(self):
        for process in reversed(self.processes):
            process.terminate()
            process.wait()

    def nodes(self):
        listed = subprocess.run(self.command + ["node", "list"], capture_output=True, text=True)
        return json.loads(listed.stdout) if listed.returncode == 0 else []

    def ctl(self, *args):
        out = subprocess.run(self.command + list(args), check=True, capture_output=True, text=True)
        return json.loads(out.stdout)

    def quiet(self):
        return compare.fio(self.uri, " ".join(LOAD), QUIET_SECONDS)

    def moving(self):
        """Returns (IOPS, p50 in µs, p99 in µs, seconds of the move)."""
        view = self.ctl("volume", "show", "v")
        held = [member["node"] for member in view["members"]]
        leaves = next(node for node in held if node != view["primary"])
        comes = next(node["id"] for node in self.nodes() if node["id"] not in held)
        fio = subprocess.Popen(["fio", "--name=load", "--ioengine=nbd", f"--uri={self.uri}",
                                "--output-format=json", f"--size={compare.SIZE}", "--time_based",
                                "--runtime=3600", "--randrepeat=0", "--norandommap",
                                "--refill_buffers"] + LOAD,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        begun = time.monotonic()
        self.ctl("volume", "move", "v", "--from", leaves, "--to", comes)
        took = time.monotonic() - begun
        fio.send_signal(signal.SIGINT)
        text, _ = fio.communicate()
        write = json.loads(text[text.index("{"):])["jobs"][0]["write"]
        percentile = write["clat_ns"]["percentile"]
        return write["iops"], percentile["50.000000"] / 1e3, percentile["99.000000"] / 1e3, took


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=int, default=64 << 20)
    parser.add_argument("--dir", help="where the clusters keep their files")
    parser.add_argument("--programs", default=os.path.join(here, "..", "target", "release"))
    args = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="sbk-rebuild.", dir=args.dir) as directory:
        clusters = {}
        try:
            for name, rate in [("gives way", args.rate), ("does not", 0)]:
                clusters[name] = Loaded(args.programs, os.path.join(directory, str(rate)), rate)
            quiet, moving, busy = [], {name: [] for name in clusters}, [os.getloadavg()[0]]
            for turn in range(args.rounds):
                for name in list(clusters)[::1 if turn % 2 == 0 else -1]:
                    quiet.append(clusters[name].quiet())
                    moving[name].append(clusters[name].moving())
                busy.append(os.getloadavg()[0])
                print(f"round {turn + 1} of {args.rounds}", file=sys.stderr)
        finally:
            for loaded in clusters.values():
                loaded.stop()
    print(f"load of the machine, averaged over a minute, after each round: "
          f"{', '.join(f'{load:.1f}' for load in busy)}; {os.cpu_count()} processors\n")
    print("| | IOPS | p50 | p99 | the move took |")
    print("|---|---:|---:|---:|---:|")
    iops, _, p50, p99 = (statistics.median(column) for column in zip(*quiet))
    print(f"| no rebuild | {iops:,.0f} | {p50:,.0f} µs | {p99:,.0f} µs | |")
    for name in clusters:
        iops, p50, p99, took = (statistics.median(column) for column in zip(*moving[name]))
        print(f"| a rebuild that {name} | {iops:,.0f} | {p50:,.0f} µs | {p99:,.0f} µs | {took:.1f} s |")


if __name__ == "__main__":
    main()
