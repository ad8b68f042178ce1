#!/usr/bin/env bash
# Real data through failovers: a filesystem with real files and a database on a volume of three
# replicas, while its primary and its masters are killed.
#
#   cargo build --release --bin sbkctl
#   tests/real-data.sh
#
# An ext4 image of /usr/share is copied in with nbdcopy and mounted through nbdfuse and a loop device,
# from a datanode that holds no replica. SQLite runs transactions on it, each noted outside once it is
# acknowledged. Meanwhile the primary is killed twice: its node comes back by catch-up, then, having
# missed more than the others retain, by delta; the leading master is killed, then two masters. In
# the end every file has its checksum, the filesystem check is clean, the database is whole and holds
# every acknowledged transaction, and the three replicas are equal.
#
# Needs root, /dev/fuse, loop devices, and nbdcopy, nbdfuse, mkfs.ext4, python3 with its sqlite3.
# What it shares with others is in tests/cluster.sh.
#   SBKCTL  the binary (target/release/sbkctl)
#   SOURCE  the directory to copy (/usr/share)
set -euo pipefail
cd "$(dirname "$0")/.."

. tests/cluster.sh
source=${SOURCE:-/usr/share}
begin real-data

three_masters() { [ "$(sbk -o json cluster members | field 'sum(m["reachable"] for m in d)')" = 3 ]; }
healthy() { in_sync data 3; }
transactions() { wc -l < "$work/acknowledged"; }
more_than() { [ "$(transactions)" -gt "$1" ]; }
# How often a replica of the volume was brought back in a way: `catch-up`, `delta` or `rebuild`.
sessions() { sbk volume explain data | grep -c "so: .*$1 of" || true; }
goes_on() {
    local before
    before=$(transactions)
    await "another 200 transactions after $1" 60 more_than $((before + 200))
}

# -- A filesystem with real files ---------------------------------------------------------------
say "an ext4 image of $source"
bytes=$(du -sb "$source" | cut -f1)
files=$(find "$source" | wc -l)
size=$(((bytes + files * 5000 + (600 << 20)) / (1 << 20)))
truncate -s "${size}M" "$work/image"
mkfs.ext4 -q -d "$source" "$work/image"
(cd "$source" && find . -type f -print0 | sort -z | xargs -0 sha256sum) > "$work/sums"
say "$(wc -l < "$work/sums") files, $((bytes >> 20)) MiB, a volume of $size MiB"

# -- A cluster, one datanode more than replicas -------------------------------------------------
start_cluster --datanodes 4 --wal-retain 64MiB
sbk volume create data --size "${size}MiB"
await "the volume's three replicas" 60 healthy
frontend=$(node_without data)
uri=nbd://$frontend/data
start=$SECONDS
nbdcopy "$work/image" "$uri"
rm "$work/image"
say "copied in with nbdcopy in $((SECONDS - start)) s through $uri, which holds no replica"

expose data "$uri"
mount_it data
say "mounted through nbdfuse and ${loops[data]}"

# -- A database on it ----------------------------------------------------------------------------
: > "$work/acknowledged"
python3 - "$work/data.mnt/bank.db" "$work/acknowledged" > "$work/load.log" 2>&1 <<'PY' &
import random, signal, sqlite3, sys, time
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode=WAL")
db.execute("PRAGMA synchronous=FULL")
db.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER)")
db.execute("CREATE TABLE moved (n INTEGER PRIMARY KEY, a INTEGER, b INTEGER, sum INTEGER)")
db.executemany("INSERT INTO account VALUES (?, 1000)", [(i,) for i in range(1000)])
longest, n = 0.0, 0
with open(sys.argv[2], "w", buffering=1) as acknowledged:
    while not stop:
        a, b, amount = random.randrange(1000), random.randrange(1000), random.randrange(100)
        start = time.monotonic()
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE account SET balance = balance - ? WHERE id = ?", (amount, a))
        db.execute("UPDATE account SET balance = balance + ? WHERE id = ?", (amount, b))
        n += 1
        db.execute("INSERT INTO moved VALUES (?, ?, ?, ?)", (n, a, b, amount))
        db.execute("COMMIT")
        longest = max(longest, time.monotonic() - start)
        acknowledged.write(f"{n}\n")
db.close()
print(f"{n} transactions, the longest took {longest * 1000:.0f} ms")
PY
loads[bank]=$!
await "the first transactions" 60 more_than 200

# -- The primary dies; its node comes back by catch-up -------------------------------------------
old=$(primary data)
rebuilds=$(sessions rebuild) deltas=$(sessions delta) catchups=$(sessions catch-up)
say "killing the primary, node $old"
kill -9 "$(of_node "$old" pid)"
goes_on "the primary's death"
[ "$(primary data)" != "$old" ] || fail "the primary did not move"
start_again
await "the return" 120 healthy
[ "$(sessions catch-up)" -gt "$catchups" ] || fail "it came back without a catch-up"
[ "$(sessions rebuild) $(sessions delta)" = "$rebuilds $deltas" ] || fail "it was sent more than the log"
say "back by catch-up; $(transactions) transactions so far"

# -- The leading master dies ----------------------------------------------------------------------
old=$(leader)
say "killing the leading master, $old"
kill -9 "$(pid_of_master "$old")"
goes_on "the leader's death"
await "another leader" 30 sbk volume list
start_again

# -- The primary dies again; while it is away more is written than the others retain -------------
old=$(primary data)
say "killing the primary, node $old, and writing 256 MiB meanwhile"
kill -9 "$(of_node "$old" pid)"
goes_on "the second primary's death"
dd if=/dev/urandom of="$work/data.mnt/bulk" bs=1M count=256 conv=fsync status=none
sha256sum < "$work/data.mnt/bulk" > "$work/bulk.sum"
start_again
await "the second return" 300 healthy
[ "$(sessions delta)" -gt "$deltas" ] || fail "it came back without a delta"
[ "$(sessions rebuild)" = "$rebuilds" ] || fail "it was rebuilt"
say "back by delta; $(transactions) transactions so far"

# -- Two masters die: nothing changes for what runs ------------------------------------------------
await "three masters" 60 three_masters
say "killing two masters"
kill -9 "$(pid_of_master 1)" "$(pid_of_master 2)"
code=0
sbk volume create other --size 64MiB > "$work/create.log" 2>&1 || code=$?
[ $code = 3 ] || fail "create without a quorum ended with exit code $code, not 3"
say "create: exit code 3, $(tail -n 1 "$work/create.log")"
goes_on "the quorum's loss"
start_again
await "a quorum" 60 sbk volume list

# -- What is there now -----------------------------------------------------------------------------
kill "${loads[bank]}"
wait "${loads[bank]}" || fail "the database's load"
unset "loads[bank]"
say "$(tail -n 1 "$work/load.log")"
(cd "$work/data.mnt" && sha256sum --quiet -c "$work/sums") || fail "a file has another checksum"
[ "$(sha256sum < "$work/data.mnt/bulk")" = "$(cat "$work/bulk.sum")" ] || fail "the bulk file differs"
unmount_it data
e2fsck -fn "$work/data.fuse/nbd" > "$work/e2fsck.log" 2>&1 || fail "e2fsck: $(cat "$work/e2fsck.log")"
mount_it data
python3 - "$work/data.mnt/bank.db" "$work/acknowledged" <<'PY' || fail "the database"
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)], "integrity"
assert db.execute("SELECT sum(balance) FROM account").fetchone() == (1000 * 1000,), "balances"
there = {n for (n,) in db.execute("SELECT n FROM moved")}
acknowledged = {int(line) for line in open(sys.argv[2])}
assert acknowledged <= there, f"{len(acknowledged - there)} acknowledged transactions are missing"
print(f"the database is whole; all {len(acknowledged)} acknowledged transactions are there")
PY
unmount_it data
sbk volume verify data > "$work/verify.log" || fail "verify: $(cat "$work/verify.log")"
tail -n 1 "$work/verify.log"
say "passed: checksums right, e2fsck clean, replicas equal"
