#!/usr/bin/env bash
# A virtual machine with its disk on a volume, and one whose kernel has a volume as a block device, while
# primaries and what stands between are killed.
#
#   apt-get install qemu-system-x86 mmdebstrap e2fsprogs libnbd-bin qemu-utils iproute2 python3
#   cargo build --release --bin sbkctl
#   tests/guest.sh disk            # two to nine minutes each on four busy cores, for the guest is emulated
#   tests/guest.sh device
#
# The guest is Debian, with Debian's own kernel, made with mmdebstrap from the packages that apt finds.
#
# disk    The guest's root file system is on the volume: qemu is a client of `sbkctl attach`. In the guest files
#         are written, synced, and read back past the page cache, while the primary is killed three times.
# device  The guest is a host with a kernel nbd driver: `sbkctl attach --device` runs in it and makes /dev/nbd0 of
#         the volume, over the guest's network. The same load runs on ext4 on it while the primary is killed, then
#         `sbkctl attach` itself with kill -9 and SIGTERM, each time started again. Then what must be refused: a
#         detach of a mounted device, and going on after another machine had the volume.
#
# In the end nothing was read wrong, the guest's kernel log has no I/O error, the file system check of the
# volume is clean, and its replicas are equal.
#
# Needs root. All of it runs in a network namespace, and nothing is visible outside.
#   SBKCTL  the binary (target/release/sbkctl)
#   CACHE   where the guest's file tree is kept between runs (TMPDIR/sbk-guest)
#   KILLS   how often the primary is killed (3)
set -euo pipefail
cd "$(dirname "$0")/.."

mode=${1:-}
case $mode in
disk | device) ;;
*) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
# Of a network of its own: the guest reaches this address of the host's through qemu.
addr=192.0.2.1
if [ -z "${SBK_GUEST_INSIDE:-}" ]; then
    cache=${CACHE:-${TMPDIR:-/tmp}/sbk-guest}
    mkdir -p "$cache"
    if [ ! -e "$cache/root.tar" ]; then
        echo "making the guest's file tree, once, in $cache"
        mmdebstrap --quiet --variant=minbase \
            --include=linux-image-cloud-amd64,initramfs-tools,e2fsprogs,kmod,udev,iproute2 \
            bookworm "$cache/new.tar"
        mv "$cache/new.tar" "$cache/root.tar"
    fi
    SBK_GUEST_INSIDE=yes CACHE=$cache exec unshare --net "$0" "$mode"
fi
ip link set lo up
ip addr add $addr/32 dev lo

sbkctl=${SBKCTL:-$PWD/target/release/sbkctl}
kills=${KILLS:-3}
work=$(mktemp -d "${TMPDIR:-/tmp}/sbk-guest-$mode.XXXXXX")
cluster=$work/cluster
console=$work/console.log
dev='' attached='' qemu=''

say() { printf '%s %s\n' "$(date +%T)" "$*"; }
fail() {
    say "FAILED: $*"
    tail -n 40 "$console" 2>/dev/null || true
    tail -n 20 "$work"/*.err 2>/dev/null || true
    exit 1
}
sbk() { "$sbkctl" --dir "$cluster" "$@"; }
# field EXPRESSION: of the JSON document `d` on stdin.
field() { python3 -c "import json,sys; d=json.load(sys.stdin); print($1)"; }

cleanup() {
    status=$?
    set +e
    exec 3>&-
    for pid in $qemu $attached $dev; do kill "$pid" 2>/dev/null; wait "$pid" 2>/dev/null; done
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
        [ -z "$qemu" ] || kill -0 "$qemu" 2>/dev/null || fail "the guest ended before $what"
        sleep 0.2
    done
}

healthy() { [ "$(sbk -o json volume show guest | field 'len(d["isr"])')" = 3 ]; }
primary() { sbk -o json volume show guest | field 'd["primary"]'; }
pid_of_node() {
    python3 - "$cluster/cluster.json" "$1" <<'PY'
import json, sys
print(next(n["pid"] for n in json.load(open(sys.argv[1]))["datanodes"] if n["id"] == sys.argv[2]))
PY
}

# -- The guest ------------------------------------------------------------------------------------
# said TEXT: what the guest's own programs say begins with GUEST; `rounds` counts the load's.
said() { grep -aq "^GUEST $1" "$console"; }
rounds() { grep -ac '^GUEST round' "$console" || true; }
more_than() { [ "$(rounds)" -gt "$1" ]; }
tell() { echo "$1" >&3; }
goes_on() {
    local before
    before=$(rounds)
    await "two more rounds of the load after $1" 600 more_than $((before + 1))
    grep -a '^GUEST round' "$console" | tail -n 2 | tr -d '\r'
}
# boot DRIVE-OPTIONS...
boot() {
    mkfifo "$work/to-guest"
    exec 3<> "$work/to-guest"
    : > "$console"
    start=$SECONDS
    qemu-system-x86_64 -accel tcg,thread=multi -machine pc -cpu max -smp 2 -m 1024 -no-reboot \
        -display none -monitor none -serial stdio \
        -kernel "$work/vmlinuz" -initrd "$work/initrd" \
        -append "console=ttyS0 root=/dev/vda rw init=/guest/init guest=$mode panic=1 loglevel=6 net.ifnames=0" \
        "$@" < "$work/to-guest" > "$console" 2> "$work/qemu.err" &
    qemu=$!
    await "the guest's boot" 600 said booted
    say "the guest booted in $((SECONDS - start)) s: $(grep -a '^GUEST booted' "$console" | tr -d '\r')"
    await "the load's first rounds" 900 more_than 1
}
over() {
    await "the guest's end" 600 said over
    local pid=$qemu
    qemu=''
    wait "$pid" || fail "qemu ended with exit code $?"
    if said WRONG; then fail "$(grep -a '^GUEST WRONG' "$console")"; fi
    # `Possible stuck request` is no error: the driver says that it waits.
    local errors='I/O error|EXT4-fs (error|warning)|JBD2|blk_update_request|[Rr]emounting filesystem|Aborting journal'
    errors+='|Other side returned error|Unexpected reply|Wrong magic|BUG:|Oops|Call Trace'
    # A device that is ended by force fails what is asked of it, and so does a machine that is switched off.
    sed -e '/^GUEST force:/,/^GUEST forced/d' -e '/^GUEST over/,$d' "$console" > "$work/kernel.log"
    if grep -aE "$errors" "$work/kernel.log" > "$work/errors.err"; then fail "the guest's kernel log"; fi
    say "the guest's kernel log has no error, in $(grep -ac '^\[' "$console") lines"
}
kill_primaries() {
    for ((n = 1; n <= kills; n++)); do
        local old
        old=$(primary)
        say "killing the primary, node $old ($n of $kills)"
        kill -9 "$(pid_of_node "$old")"
        goes_on "the primary's death"
        [ "$(primary)" != "$old" ] || fail "the primary did not move"
        kill -HUP "$dev"
        await "the return" 300 healthy
    done
}

say "the guest's disk"
mkdir "$work/root"
tar -C "$work/root" -xf "$CACHE/root.tar" --exclude=./dev
mkdir -p "$work/root/dev" "$work/root/guest"
cp "$work"/root/boot/vmlinuz-* "$work/vmlinuz"
cp "$work"/root/boot/initrd.img-* "$work/initrd"
cp tests/guest/init tests/guest/disk tests/guest/device "$work/root/guest/"
strip -o "$work/root/guest/sbkctl" "$sbkctl"
truncate -s 1G "$work/image"
mkfs.ext4 -q -d "$work/root" "$work/image"
rm -rf "$work/root"

# -- A cluster, one datanode more than replicas ----------------------------------------------------
mkdir "$cluster"
python3 - "$cluster/plan.json" $addr <<'PY'
import json, sys
at = lambda port: f"{sys.argv[2]}:{port}"
masters = [{"id": n, "listen": at(7100 + n), "http": at(7200 + n)} for n in (1, 2, 3)]
datanodes = [{"number": n, "listen": at(7300 + n), "http": at(7400 + n), "nbd": at(7500 + n)}
             for n in (1, 2, 3, 4)]
json.dump({"masters": masters, "datanodes": datanodes}, open(sys.argv[1], "w"))
PY
# Started as it is, not through a function: its pid takes the signals.
"$sbkctl" --dir "$cluster" dev --no-volume > "$work/dev.out" 2> "$work/dev.err" &
dev=$!
await "the cluster's start" 120 sbk cluster status
sbk volume create guest --size 1GiB
await "the volume's three replicas" 60 healthy

if [ "$mode" = disk ]; then
    socket=$work/guest.sock
    "$sbkctl" --dir "$cluster" attach guest --socket "$socket" --run-dir "$work/run" \
        > "$work/attach.out" 2> "$work/attach.err" &
    attached=$!
    uri="nbd+unix:///guest?socket=$socket"
    await "the attachment" 60 grep -q "is at" "$work/attach.out"
    start=$SECONDS
    nbdcopy "$work/image" "$uri"
    say "the guest's disk is in the volume, after $((SECONDS - start)) s"
    boot -drive "file=$uri,format=raw,if=virtio,cache=none,werror=report,rerror=report" -nic none
    kill_primaries
    tell stop
    over
    await "room for another client" 30 nbdinfo --size "$uri"
    nbdcopy "$uri" "$work/after"
    sbk detach guest --run-dir "$work/run" || fail "detach"
    wait "$attached" || fail "sbkctl attach ended with exit code $?"
    attached=''
else
    boot -drive "file=$work/image,format=raw,if=virtio" -nic user,model=virtio-net-pci
    kill_primaries
    attach_again() {
        tell "attach $1 $2"
        await "sbkctl attach's return" 120 said "attached again, $2"
        grep -a "^GUEST attach ended" "$console" | tail -n 1 | tr -d '\r'
        goes_on "sbkctl attach's return"
    }
    for how in KILL TERM; do
        say "sbkctl attach gets SIG$how while the file system is mounted, and is started again"
        attach_again $how "$how"
    done
    say "the primary and sbkctl attach are killed at the same time"
    kill -9 "$(pid_of_node "$(primary)")"
    attach_again KILL both
    kill -HUP "$dev"
    await "the return" 300 healthy
    say "a detach while the file system is mounted is refused, and changes nothing"
    tell busy
    await "the refusal" 120 said "busy refused"
    goes_on "the refusal"
    tell stop
    await "the detach" 600 said "detached"
    nbdcopy "nbd://$addr:7501/guest" "$work/after"

    # Who had the volume since is not overwritten.
    tell again
    await "another device" 120 said "again killed"
    qemu-io -f raw -c "write -P 7 512M 4k" -c flush "nbd://$addr:7502/guest,exclusive" > "$work/qemu-io.out"
    tell refused
    await "the refusal" 120 said "refused, and ended"
    tell off
    over
fi

e2fsck -fn "$work/after" > "$work/e2fsck.err" 2>&1 || fail "e2fsck: $(cat "$work/e2fsck.err")"
sbk volume verify guest > "$work/verify.out" || fail "verify: $(cat "$work/verify.out")"
tail -n 1 "$work/verify.out"
say "passed: $(rounds) rounds of the load right, e2fsck clean, replicas equal"
