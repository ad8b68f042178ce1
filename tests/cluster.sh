# What the tests in this folder share that use real programs on a development cluster: a directory for
# their files, the cluster, volumes mounted through nbdfuse and a loop device, and that all of it is
# gone in the end. To be sourced after `set -euo pipefail`, in the root of the repository.
#
#   SBKCTL  the binary (target/release/sbkctl)
# shellcheck shell=bash

sbkctl=${SBKCTL:-$PWD/target/release/sbkctl}
# What is undone at the end, in this order; whoever undoes a thing before takes it out.
dev=''
declare -A loads=() mounts=() loops=() fuses=() attachments=()

say() { printf '%s %s\n' "$(date +%T)" "$*"; }
fail() {
    say "FAILED: $*"
    tail -n 20 "$work"/*.log 2>/dev/null || true
    exit 1
}

# needs PACKAGE PROGRAM...: a test without the programs that it is about is no test.
needs() {
    local package=$1 program
    shift
    for program in "$@"; do
        command -v "$program" >/dev/null || { echo "$program is missing: $package" >&2; exit 1; }
    done
}

# begin NAME: makes the directory $work, which is kept if the test fails.
begin() {
    work=$(mktemp -d "${TMPDIR:-/tmp}/sbk-$1.XXXXXX")
    cluster=$work/cluster
    trap cleanup EXIT
    trap 'exit 130' INT TERM
}
cleanup() {
    local status=$? at
    set +e
    for at in "${loads[@]}"; do kill "$at" 2>/dev/null && wait "$at" 2>/dev/null; done
    for at in "${!mounts[@]}"; do umount "$at"; done
    for at in "${loops[@]}"; do losetup -d "$at"; done
    for at in "${!fuses[@]}"; do fusermount3 -u "$at" 2>/dev/null && wait "${fuses[$at]}" 2>/dev/null; done
    for at in "${attachments[@]}"; do kill "$at" 2>/dev/null && wait "$at" 2>/dev/null; done
    [ -n "$dev" ] && kill "$dev" 2>/dev/null && wait "$dev" 2>/dev/null
    if [ $status -eq 0 ]; then rm -rf "$work"; else echo "its files are kept in $work"; fi
    exit $status
}

sbk() { "$sbkctl" --dir "$cluster" "$@"; }
# field EXPRESSION: of the JSON document `d` on stdin.
field() { python3 -c "import json,sys; d=json.load(sys.stdin); print($1)"; }

# await WHAT SECONDS COMMAND...: until it succeeds.
await() {
    local what=$1 limit=$((SECONDS + $2))
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $limit ] || fail "$what did not happen"
        sleep 0.2
    done
}

# --- the cluster ----------------------------------------------------------------------------------

# start_cluster OPTION...: of `sbkctl dev`. Its pid, $dev, takes the signals.
start_cluster() {
    "$sbkctl" --dir "$cluster" dev --no-volume --timeout 180 "$@" > "$work/dev.out" 2> "$work/dev.log" &
    dev=$!
    await "the cluster's start" 180 sbk cluster status
}
# Starts what has ended.
start_again() { kill -HUP "$dev"; }

# in_sync VOLUME REPLICAS
in_sync() { [ "$(sbk -o json volume show "$1" | field 'len(d["isr"]) if d["serving"] else 0')" = "$2" ]; }
primary() { sbk -o json volume show "$1" | field 'd["primary"]'; }
leader() { sbk -o json cluster status | field 'd["leader"]'; }
# of_node NODE FIELD: from cluster.json.
of_node() { field "next(n['$2'] for n in d['datanodes'] if n['id'] == '$1')" < "$cluster/cluster.json"; }
pid_of_master() { field "next(m['pid'] for m in d['masters'] if m['id'] == $1)" < "$cluster/cluster.json"; }
# A datanode that holds no replica of the volume: host:port of its NBD.
node_without() {
    python3 - "$cluster/cluster.json" <(sbk -o json volume show "$1") <<'PY'
import json, sys
members = {m["node"] for m in json.load(open(sys.argv[2]))["members"]}
print(next(n["nbd"] for n in json.load(open(sys.argv[1]))["datanodes"] if n["id"] not in members))
PY
}

# --- volumes as files and file systems ------------------------------------------------------------

# expose NAME URI: the volume as the file $work/NAME.fuse/nbd.
expose() {
    local at=$work/$1.fuse
    mkdir -p "$at"
    nbdfuse "$at" "$2" > "$work/$1.nbdfuse.log" 2>&1 &
    fuses[$at]=$!
    await "nbdfuse's start for $1" 30 test -e "$at/nbd"
}
# mount_it NAME: at $work/NAME.mnt.
mount_it() {
    mkdir -p "$work/$1.mnt"
    loops[$1]=$(losetup --find --show "$work/$1.fuse/nbd")
    mount "${loops[$1]}" "$work/$1.mnt"
    mounts[$work/$1.mnt]=yes
}
unmount_it() {
    umount "$work/$1.mnt"
    unset "mounts[$work/$1.mnt]"
    losetup -d "${loops[$1]}"
    unset "loops[$1]"
}
