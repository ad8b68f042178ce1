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
# missed more than the others retain, by rebuild; the leading master is killed, then two masters. In
# the end every file has its checksum, the filesystem check is clean, the database is whole and holds
# every acknowledged transaction, and the three replicas are equal.
#
# Needs root, /dev/fuse, loop devices, and nbdcopy, nbdfuse, mkfs.ext4, python3 with its sqlite3.
#   SBKCTL  the binary (target/release/sbkctl)
#   SOURCE  the directory to copy (/usr/share)
set -euo pipefail
cd "$(dirname "$0")/.."

sbkctl=${SBKCTL:-$PWD/target/release/sbkctl}
source=${SOURCE:-/usr/share}
work=$(mktemp -d "${TMPDIR:-/tmp}/sbk-real-data.XXXXXX")
cluster=$work/cluster
mounted='' fuse='' load='' dev='' loop=''

say() { printf '%s %s\n' "$(date +%T)" "$*"; }
fail() {
    say "FAILED: $*"
    tail -n 20 "$work"/*.log 2>/dev/null || true
    exit 1
}
sbk() { "$sbkctl" --dir "$cluster" "$@"; }
# field EXPRESSION: of the JSON document `d` on stdin.
field() { python3 -c "import json,sys; d=json.load(sys.stdin); print($1)"; }

cleanup() {
    status=$?
    set +e
    [ -n "$load" ] && kill "$load" 2>/dev/null && wait "$load" 2>/dev/null
    [ -n "$mounted" ] && umount "$work/mnt"
    [ -n "$loop" ] && losetup -d "$loop"
    [ -n "$fuse" ] && fusermount3 -u "$work/fuse" 2>/dev/null && wait "$fuse" 2>/dev/null
    [ -n "$dev" ] && kill "$dev" 2>/dev/null && wait "$dev" 2>/dev/null
    if [ $status -eq 0 ]; then rm -rf "$work"; else echo "its files are kept in $work"; fi
    exit $status
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# await WHAT SECONDS COMMAND...: until it succeeds.
await() {
    local what=$1 limit=$((SECONDS + $2))
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $limit ] || fail "$what did not happen"
        sleep 0.2
    done
}

three_masters() { [ "$(sbk -o json cluster members | field 'sum(m["reachable"] for m in d)')" = 3 ]; }
healthy() { [ "$(sbk -o json volume show data | field 'len(d["isr"])')" = 3 ]; }
transactions() { wc -l < "$work/acknowledged"; }
more_than() { [ "$(transactions)" -gt "$1" ]; }
# How often a replica of the volume was brought back in a way: `catch-up` or `rebuild`.
sessions() { sbk volume explain data | grep -c "so: .*$1 of" || true; }
primary() { sbk -o json volume show data | field 'd["primary"]'; }
pid_of_node() {
    python3 - "$cluster/cluster.json" "$1" <<'PY'
import json, sys
print(next(n["pid"] for n in json.load(open(sys.argv[1]))["datanodes"] if n["id"] == sys.argv[2]))
PY
}
pid_of_master() {
    python3 - "$cluster/cluster.json" "$1" <<'PY'
import json, sys
print(next(m["pid"] for m in json.load(open(sys.argv[1]))["masters"] if str(m["id"]) == sys.argv[2]))
PY
}
leader() { sbk -o json cluster status | field 'd["leader"]'; }
start_again() { kill -HUP "$dev"; }
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
# Started as it is, not through a function: its pid takes the signals.
"$sbkctl" --dir "$cluster" dev --datanodes 4 --no-volume --wal-retain 64MiB \
    > "$work/dev.out" 2> "$work/dev.log" &
dev=$!
await "the cluster's start" 60 sbk cluster status
sbk volume create data --size "${size}MiB"
await "the volume's three replicas" 60 healthy
frontend=$(python3 - "$cluster/cluster.json" <(sbk -o json volume show data) <<'PY'
import json, sys
members = {m["node"] for m in json.load(open(sys.argv[2]))["members"]}
print(next(n["nbd"] for n in json.load(open(sys.argv[1]))["datanodes"] if n["id"] not in members))
PY
)
uri=nbd://$frontend/data
start=$SECONDS
nbdcopy "$work/image" "$uri"
rm "$work/image"
say "copied in with nbdcopy in $((SECONDS - start)) s through $uri, which holds no replica"

mkdir "$work/fuse" "$work/mnt"
nbdfuse "$work/fuse" "$uri" > "$work/nbdfuse.log" 2>&1 &
fuse=$!
await "nbdfuse's start" 30 test -e "$work/fuse/nbd"
loop=$(losetup --find --show "$work/fuse/nbd")
mount "$loop" "$work/mnt"
mounted=yes
say "mounted through nbdfuse and $loop"

# -- A database on it ----------------------------------------------------------------------------
: > "$work/acknowledged"
python3 - "$work/mnt/bank.db" "$work/acknowledged" > "$work/load.log" 2>&1 <<'PY' &
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
load=$!
await "the first transactions" 60 more_than 200

# -- The primary dies; its node comes back by catch-up -------------------------------------------
old=$(primary)
rebuilds=$(sessions rebuild) catchups=$(sessions catch-up)
say "killing the primary, node $old"
kill -9 "$(pid_of_node "$old")"
goes_on "the primary's death"
[ "$(primary)" != "$old" ] || fail "the primary did not move"
start_again
await "the return" 120 healthy
[ "$(sessions catch-up)" -gt "$catchups" ] || fail "it came back without a catch-up"
[ "$(sessions rebuild)" = "$rebuilds" ] || fail "it was rebuilt"
say "back by catch-up; $(transactions) transactions so far"

# -- The leading master dies ----------------------------------------------------------------------
old=$(leader)
say "killing the leading master, $old"
kill -9 "$(pid_of_master "$old")"
goes_on "the leader's death"
await "another leader" 30 sbk volume list
start_again

# -- The primary dies again; while it is away more is written than the others retain -------------
old=$(primary)
say "killing the primary, node $old, and writing 256 MiB meanwhile"
kill -9 "$(pid_of_node "$old")"
goes_on "the second primary's death"
dd if=/dev/urandom of="$work/mnt/bulk" bs=1M count=256 conv=fsync status=none
sha256sum < "$work/mnt/bulk" > "$work/bulk.sum"
start_again
await "the second return" 300 healthy
[ "$(sessions rebuild)" -gt "$rebuilds" ] || fail "it came back without a rebuild"
say "back by rebuild; $(transactions) transactions so far"

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
kill "$load"
wait "$load" || fail "the database's load"
load=''
say "$(tail -n 1 "$work/load.log")"
(cd "$work/mnt" && sha256sum --quiet -c "$work/sums") || fail "a file has another checksum"
[ "$(sha256sum < "$work/mnt/bulk")" = "$(cat "$work/bulk.sum")" ] || fail "the bulk file differs"
umount "$work/mnt"
mounted=''
losetup -d "$loop"
e2fsck -fn "$work/fuse/nbd" > "$work/e2fsck.log" 2>&1 || fail "e2fsck: $(cat "$work/e2fsck.log")"
loop=$(losetup --find --show "$work/fuse/nbd")
mount "$loop" "$work/mnt"
mounted=yes
python3 - "$work/mnt/bank.db" "$work/acknowledged" <<'PY' || fail "the database"
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)], "integrity"
assert db.execute("SELECT sum(balance) FROM account").fetchone() == (1000 * 1000,), "balances"
there = {n for (n,) in db.execute("SELECT n FROM moved")}
acknowledged = {int(line) for line in open(sys.argv[2])}
assert acknowledged <= there, f"{len(acknowledged - there)} acknowledged transactions are missing"
print(f"the database is whole; all {len(acknowledged)} acknowledged transactions are there")
PY
umount "$work/mnt"
mounted=''
losetup -d "$loop"
loop=''
sbk volume verify data > "$work/verify.log" || fail "verify: $(cat "$work/verify.log")"
tail -n 1 "$work/verify.log"
say "passed: checksums right, e2fsck clean, replicas equal"
