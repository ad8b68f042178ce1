#!/usr/bin/env python3
"""Measures what a replica that was away is sent, against what changed meanwhile.

    cargo build --release --bins
    tests/delta.py [--dir DIR] [--programs DIR]

One master and four datanodes that retain 16 MiB of log; a volume of 512 MiB with three replicas, all of it
written with random data. Again and again a replica that is not the primary goes away with SIGKILL, regions of 1 MiB,
or a block in each, are written meanwhile, and it comes back: by catch-up, or by delta. Then one moves to the fourth
node, which is rebuilt. What is counted are the bytes that TCP brought to the port on which that node listens, from its
start to its return to the in-sync set; so frames, heartbeats and checksums are in it. No client writes
while it comes back. At the end all replicas are compared.
"""

import argparse
import os
import re
import signal
import subprocess
import tempfile
import time

import compare
import rebuild

compare.SIZE = 512 << 20
MIB = 1 << 20


class Away(rebuild.Loaded):
    """A cluster with a volume, of which a replica goes away."""

    def __init__(self, programs, directory):
        os.mkdir(directory)
        self.programs, self.directory, self.processes = programs, directory, []
        self.of = {}
        master = f"127.0.0.1:{compare.free_port()}"
        self.command = [os.path.join(programs, "sbkctl"), "-o", "json", "--masters", master]
        self.start("sbk-master", "master", "--id", "1", "--cluster", f"1={master}", "--listen", master)
        for n in range(4):
            listen, nbd = (f"127.0.0.1:{compare.free_port()}" for _ in range(2))
            self.of[listen] = ("sbk-datanode", f"node{n}", "--masters", master, "--listen", listen, "--nbd", nbd,
                               "--wal-retain", "16MiB", "--recovery-rate", "0",
                               "--runtime-dir", os.path.join(directory, f"run{n}"))
            self.start(*self.of[listen])
        while sum(node["alive"] for node in self.nodes()) < 4:
            time.sleep(0.1)
        self.ctl("volume", "create", "v", "--size", str(compare.SIZE), "--replicas", "3")
        self.in_sync(3)
        primary = self.ctl("volume", "show", "v")["primary"]
        self.uri = f"nbd://{next(n['nbd_addr'] for n in self.nodes() if n['id'] == primary)}/v"
        compare.fill(self.uri)

    def in_sync(self, count, without=None):
        while True:
            view = self.ctl("volume", "show", "v")
            if len(view["isr"]) == count and without not in view["isr"]:
                return view
            time.sleep(0.05)

    def write(self, regions, size, times):
        """Writes the beginnings of regions, and so often."""
        for n in range(times):
            commands = [c for r in regions for c in ("-c", f"write -P {(n * 7 + r) % 255 + 1} {r}M {size}")]
            subprocess.run(["qemu-io", "-f", "raw", self.uri] + commands + ["-c", "flush"], check=True,
                           stdout=subprocess.DEVNULL)

    def received(self, listen):
        port = listen.split(":")[1]
        out = subprocess.run(["ss", "-tinOH", f"sport = :{port}"], check=True, capture_output=True, text=True).stdout
        return sum(int(n) for n in re.findall(r"bytes_received:(\d+)", out))

    def say(self, *args):
        """As people are told."""
        command = self.command[:1] + self.command[3:] + list(args)
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def told(self):
        decisions = r"what changed since|is sent the image|is sent the entries|every base block"
        lines = self.say("volume", "explain", "v").splitlines()
        return [line.strip() for line in lines if re.search(decisions, line)]

    def away(self, what, regions, size, times):
        view = self.ctl("volume", "show", "v")
        node = next(m["node"] for m in view["members"] if m["node"] != view["primary"])
        listen = next(n["addr"] for n in self.nodes() if n["id"] == node)
        name = self.of[listen][1]
        process = next(p for p in self.processes if name in " ".join(p.args) and "sbk-datanode" in p.args[0])
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.processes.remove(process)
        self.in_sync(2, node)
        self.write(regions, size, times)
        begun = time.monotonic()
        self.start(*self.of[listen])
        self.in_sync(3)
        took, moved = time.monotonic() - begun, self.received(listen)
        changed = len(regions) * size
        print(f"| {what} | {changed} | {moved} | {moved / changed:.3f} | {took:.1f} s |", flush=True)

    def move(self):
        view = self.ctl("volume", "show", "v")
        held = [m["node"] for m in view["members"]]
        leaves = next(node for node in held if node != view["primary"])
        comes = next(n for n in self.nodes() if n["id"] not in held)
        begun = time.monotonic()
        before = self.received(comes["addr"])
        self.ctl("volume", "move", "v", "--from", leaves, "--to", comes["id"])
        took, moved = time.monotonic() - begun, self.received(comes["addr"]) - before
        ratio = moved / compare.SIZE
        print(f"| rebuild | {compare.SIZE} | {moved} | {ratio:.3f} | {took:.1f} s |", flush=True)


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dir", help="where the cluster keeps its files")
    parser.add_argument("--programs", default=os.path.join(here, "..", "target", "release"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sbk-delta.", dir=args.dir) as directory:
        cluster = Away(args.programs, os.path.join(directory, "cluster"))
        try:
            print("| how | bytes changed | bytes moved | moved / changed | back after |")
            print("| --- | --- | --- | --- | --- |")
            cluster.away("catch-up", [5, 105, 205, 305, 405], MIB, 1)
            cluster.away("a block in each of 8 regions", range(9, 512, 64), 4096, 700)
            # The same few again and again: more than the log holds.
            cluster.away("delta, 6 regions", [17, 117, 217, 317, 417, 500], MIB, 6)
            cluster.away("delta, 47 regions", range(3, 512, 11), MIB, 1)
            cluster.move()
            print("\n".join(cluster.told()))
            print(cluster.say("volume", "verify", "v").strip())
        finally:
            cluster.stop()


if __name__ == "__main__":
    main()
