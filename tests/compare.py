#!/usr/bin/env python3
"""Measures a replicated volume beside qemu-nbd on a raw file: the same disk, the same run.

    cargo build --release --bin sbkctl
    tests/compare.py [--rounds N] [--seconds S] [--dir DIR] [--sbkctl PATH] [--only SUBSTRING] [--forwarded]

Each round runs every load against one server and then against the other, with fio's NBD engine over
TCP; both serve 1 GiB that was written before. Prints a table of the medians with their ratio. Only
the ratios mean anything elsewhere: machines differ, and this one may be shared.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

SIZE = 1 << 30

# Name, fio's options, unit of the figure.
LOADS = [
    ("4k random write, fsync=1, QD 1", "--rw=randwrite --bs=4k --iodepth=1 --fsync=1", "iops"),
    ("4k random write, fsync=32, QD 32", "--rw=randwrite --bs=4k --iodepth=32 --fsync=32", "iops"),
    ("4k random read, QD 1", "--rw=randread --bs=4k --iodepth=1", "iops"),
    ("4k random read, QD 32", "--rw=randread --bs=4k --iodepth=32", "iops"),
    ("128k sequential write, QD 16", "--rw=write --bs=128k --iodepth=16", "MB/s"),
    ("128k sequential read, QD 16", "--rw=read --bs=128k --iodepth=16", "MB/s"),
]


def fio(uri, options, seconds):
    """Runs one load. Returns (figure of IOPS, MB/s, p50 in µs, p99 in µs)."""
    command = ["fio", "--name=load", "--ioengine=nbd", f"--uri={uri}", "--output-format=json",
               f"--size={SIZE}", "--time_based", f"--runtime={seconds}", "--randrepeat=0",
               "--norandommap", "--refill_buffers"]
    out = subprocess.run(command + options.split(), check=True, capture_output=True, text=True)
    job = json.loads(out.stdout[out.stdout.index("{"):])["jobs"][0]
    side = job["write"] if job["write"]["total_ios"] else job["read"]
    percentile = side["clat_ns"]["percentile"]
    if job["error"]:
        sys.exit(f"fio reported error {job['error']} on {uri}")
    return (side["iops"], side["bw_bytes"] / 1e6, percentile["50.000000"] / 1e3,
            percentile["99.000000"] / 1e3)


def fill(uri):
    subprocess.run(["fio", "--name=fill", "--ioengine=nbd", f"--uri={uri}", f"--size={SIZE}",
                    "--rw=write", "--bs=1m", "--iodepth=4", "--end_fsync=1", "--refill_buffers",
                    "--output-format=terse"], check=True, stdout=subprocess.DEVNULL)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Cluster:
    """A development cluster of three masters and three datanodes."""

    def __init__(self, sbkctl, directory):
        self.log = open(os.path.join(directory, "dev.log"), "w")
        self.command = [sbkctl, "--dir", os.path.join(directory, "cluster"), "-o", "json"]
        self.process = subprocess.Popen(self.command + ["dev", "--no-volume"],
                                        stdout=subprocess.PIPE, stderr=self.log, text=True)
        # The cluster's description is printed once it is up.
        text = ""
        for line in self.process.stdout:
            text += line
            try:
                self.datanodes = json.loads(text)["datanodes"]
                return
            except json.JSONDecodeError:
                continue
        sys.exit(f"sbkctl dev did not start: see {self.log.name}")

    def volume(self, name, replicas, size):
        """Makes a volume. Returns its URI at the primary's node, and at another node."""
        subprocess.run(self.command + ["volume", "create", name, "--size", str(size),
                                       "--replicas", str(replicas)],
                       check=True, stdout=subprocess.DEVNULL)
        show = subprocess.run(self.command + ["volume", "show", name], check=True,
                              capture_output=True, text=True)
        primary = json.loads(show.stdout)["primary"]
        nodes = sorted(self.datanodes, key=lambda node: node["id"] != primary)
        return [f"nbd://{node['nbd']}/{name}" for node in nodes[:2]]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
        self.log.close()


class Qemu:
    """qemu-nbd on a raw file, past the page cache."""

    def __init__(self, directory):
        image = os.path.join(directory, "raw.img")
        with open(image, "wb") as f:
            f.truncate(SIZE)
        port = free_port()
        self.uri = f"nbd://127.0.0.1:{port}/vol1"
        self.process = subprocess.Popen(
            ["qemu-nbd", "--format=raw", "--cache=none", "--aio=native", "--persistent",
             "--shared=8", "--bind=127.0.0.1", f"--port={port}", "--export-name=vol1", image])
        while True:
            if self.process.poll() is not None:
                sys.exit("qemu-nbd did not start")
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                return
            except ConnectionRefusedError:
                time.sleep(0.01)

    def stop(self):
        self.process.terminate()
        self.process.wait()


def sync_cost(directory, writers=1):
    """Median µs until as many writers, each with its own file, have overwritten 4 KiB and synced it:
    what every synced write pays at least."""
    rounds = 500
    files = [os.open(os.path.join(directory, f"sync.{i}"), os.O_RDWR | os.O_CREAT)
             for i in range(writers)]
    for file in files:
        os.pwrite(file, b"\1" * (rounds * 4096), 0)
        os.fsync(file)
    together = threading.Barrier(writers)
    took = [[] for _ in files]

    def write(file, took):
        for i in range(rounds):
            data = os.urandom(4096)
            together.wait()
            start = time.perf_counter()
            os.pwrite(file, data, i * 4096)
            os.fdatasync(file)
            took.append((start, time.perf_counter()))

    threads = [threading.Thread(target=write, args=pair) for pair in zip(files, took)]
    for thread in threads:
        thread.start()
    for thread, file in zip(threads, files):
        thread.join()
        os.close(file)
    spans = [max(end for _, end in round) - min(start for start, _ in round)
             for round in zip(*took)]
    return statistics.median(spans) * 1e6


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=6, help="of each load in each round")
    parser.add_argument("--dir", help="where both keep their files")
    parser.add_argument("--sbkctl", default=os.path.join(here, "..", "target", "release", "sbkctl"))
    parser.add_argument("--only", default="", help="loads whose name has this")
    parser.add_argument("--forwarded", action="store_true",
                        help="reach the volume through a datanode that is not its primary")
    args = parser.parse_args()
    for tool in ["fio", "qemu-nbd"]:
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is not installed")

    with tempfile.TemporaryDirectory(prefix="sbk-compare.", dir=args.dir) as directory:
        before = sync_cost(directory)
        started = []
        try:
            started.append(Cluster(args.sbkctl, directory))
            started.append(Qemu(directory))
            cluster, qemu = started
            at_primary, forwarded = cluster.volume("vol1", 3, SIZE)
            servers = [("sbk", forwarded if args.forwarded else at_primary),
                       ("qemu-nbd", qemu.uri)]
            for _, uri in servers:
                fill(uri)
            loads = [load for load in LOADS if args.only in load[0]]
            results = {}
            for _ in range(args.rounds):
                for name, options, _ in loads:
                    for which, uri in servers:
                        os.sync()
                        result = fio(uri, options, args.seconds)
                        results.setdefault((name, which), []).append(result)
        finally:
            for server in started:
                server.stop()
        after = sync_cost(directory)

    print(f"{args.rounds} rounds of {args.seconds} s; {os.cpu_count()} CPUs; a 4 KiB overwrite with "
          f"fdatasync takes {before:.0f} µs before and {after:.0f} µs after\n")
    print("| Load | sbk | qemu-nbd | ratio | sbk p50 / p99 | qemu-nbd p50 / p99 |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, _, unit in loads:
        column = 0 if unit == "iops" else 1
        figure, latency = {}, {}
        for which, _ in servers:
            rounds = results[name, which]
            figure[which] = statistics.median(r[column] for r in rounds)
            p50, p99 = (statistics.median(r[i] for r in rounds) for i in (2, 3))
            latency[which] = f"{p50:,.0f} / {p99:,.0f} µs"
        unit = " MB/s" if unit == "MB/s" else ""
        print(f"| {name} | {figure['sbk']:,.0f}{unit} | {figure['qemu-nbd']:,.0f}{unit} "
              f"| {figure['sbk'] / figure['qemu-nbd']:.2f} | {latency['sbk']} "
              f"| {latency['qemu-nbd']} |")


if __name__ == "__main__":
    main()
