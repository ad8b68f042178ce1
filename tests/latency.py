#!/usr/bin/python3
"""Takes the latency of one request at a time apart: what each part of its way adds.

    cargo build --release --bin sbkctl
    tests/latency.py [--requests N] [--dir DIR] [--sbkctl PATH]

Volumes of one, two and three replicas are asked, by libnbd over TCP, at the primary's node and through
another node: for a flush (which touches no disk, for every acknowledged write is durable), for 4 KiB
that are in memory, and to write 4 KiB. On a file system in memory (--dir /dev/shm/...) what is left is
the way without the disk. Needs python3-libnbd.
"""

import argparse
import os
import statistics
import tempfile
import time

import nbd

from compare import Cluster, sync_cost

SIZE = 64 << 20


def percentiles(uri, ask, requests):
    client = nbd.NBD()
    client.connect_uri(uri)
    took = []
    for i in range(requests):
        start = time.perf_counter()
        ask(client, i * 4096 % SIZE)
        took.append((time.perf_counter() - start) * 1e6)
    client.shutdown()
    quantiles = statistics.quantiles(took, n=100)
    return f"{quantiles[49]:,.0f} / {quantiles[98]:,.0f}"


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--dir", help="where the cluster keeps its files")
    parser.add_argument("--sbkctl", default=os.path.join(here, "..", "target", "release", "sbkctl"))
    args = parser.parse_args()

    data = os.urandom(4096)
    asks = [lambda client, at: client.flush(),
            lambda client, at: client.pread(4096, at),
            lambda client, at: client.pwrite(data, at)]
    with tempfile.TemporaryDirectory(prefix="sbk-latency.", dir=args.dir) as directory:
        one, three = sync_cost(directory), sync_cost(directory, writers=3)
        print(f"a 4 KiB overwrite with fdatasync takes {one:.0f} µs, three at once {three:.0f} µs\n")
        print("| Replicas | Asked at | flush | 4k read | 4k write |")
        print("|---:|---|---:|---:|---:|")
        cluster = Cluster(args.sbkctl, directory)
        try:
            for replicas in (1, 2, 3):
                uris = cluster.volume(f"r{replicas}", replicas, SIZE)
                for where, uri in zip(("the primary", "another node"), uris):
                    # Written once, so that reads find something.
                    percentiles(uri, asks[2], 200)
                    columns = [percentiles(uri, ask, args.requests) for ask in asks]
                    print(f"| {replicas} | {where} | " + " | ".join(columns) + " |", flush=True)
        finally:
            cluster.stop()
        print("\np50 / p99 in µs")


if __name__ == "__main__":
    main()
