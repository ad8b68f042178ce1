#!/usr/bin/env bash
# Every NBD client that people use, through every command that it has, on volumes of a cluster; then two
# file systems under fsx and a raw volume under fio while primaries are killed.
#
#   cargo build --release --bin sbkctl
#   tests/clients.sh [PART...]       info commands copies images fio files; all of them by default
#   FAILOVERS=10 tests/clients.sh    the long form
#
# info       nbdinfo: what an export is, its map, the list
# commands   tests/nbd_commands.py with libnbd, on a primary's own node, forwarded from a node without a
#            replica, through `sbkctl attach`, within TLS; on volumes of several modes
# copies     nbdcopy on several connections, from a file, to a file and between volumes; holes stay holes
# images     qemu-img and qemu-io: raw and qcow2 there and back, and a qcow2 image that lives in a volume
# fio        verified random writes of four jobs on a connection each, while the primary is killed
# files      ext4 and xfs on nbdfuse and a loop device, fsx on each, while primaries are killed and come
#            back: no error, no mismatch, the file system's check clean, the files the same when mounted
#            again, the replicas equal
#
# Needs nbdinfo, nbdcopy, nbdfuse, python3-libnbd, qemu-img, qemu-io, fio, openssl; `files` also root,
# /dev/fuse, loop devices, mkfs.ext4, mkfs.xfs and fsx (cargo install fsx --version 0.3.2 --root target/tools).
#   SBKCTL     the binary (target/release/sbkctl)
#   FSX        fsx (target/tools/bin/fsx)
#   FAILOVERS  how often a primary is killed under fsx (2)
set -euo pipefail
cd "$(dirname "$0")/.."

. tests/cluster.sh
fsx=${FSX:-$PWD/target/tools/bin/fsx}
failovers=${FAILOVERS:-2}
parts=("$@")
[ $# -gt 0 ] || parts=(info commands copies images fio files)
wanted() { [[ " ${parts[*]} " == *" $1 "* ]]; }

needs 'apt-get install libnbd-bin' nbdinfo nbdcopy
needs 'apt-get install qemu-utils' qemu-img qemu-io
needs 'apt-get install fio' fio
needs 'apt-get install openssl' openssl
if wanted files; then
    needs 'apt-get install nbdfuse' nbdfuse
    needs 'apt-get install e2fsprogs xfsprogs' mkfs.ext4 e2fsck mkfs.xfs xfs_repair
    needs 'cargo install fsx --version 0.3.2 --locked --root target/tools' "$fsx"
fi

begin clients
start_cluster --datanodes 4

# create NAME OPTION...
create() {
    sbk volume create "$@" > "$work/create.log"
    await "the replicas of $1" 60 in_sync "$1" 3
}
verify() {
    await "all replicas of $1 in sync" 120 in_sync "$1" 3
    sbk volume verify "$1" > "$work/verify.log" || fail "the replicas of $1: $(cat "$work/verify.log")"
}
# attach NAME: prints nothing; $work/NAME.sock depends on no datanode in particular.
attach() {
    "$sbkctl" --dir "$cluster" attach "$1" --shared --socket "$work/$1.sock" --run-dir "$work/attach" > "$work/$1.attach.log" 2>&1 &
    attachments[$1]=$!
    await "the attachment of $1" 30 nbdinfo "$(attached "$1")"
}
attached() { echo "nbd+unix:///$1?socket=$work/$1.sock"; }
# detach NAME: what it ends with says whether all that was acknowledged is durable.
detach() {
    kill "${attachments[$1]}"
    wait "${attachments[$1]}" || fail "the attachment of $1 ended with $?"
    unset "attachments[$1]"
}
# same WHAT EXPECTED FOUND
same() { [ "$2" = "$3" ] || fail "$1: $3, where it should be $2"; }
primary_moved() { [ "$(primary "$1")" != "$2" ]; }
# kill_primary VOLUME: returns when another one serves.
kill_primary() {
    local old
    old=$(primary "$1")
    kill -9 "$(of_node "$old" pid)"
    await "another primary of $1" 60 primary_moved "$1" "$old"
}

# -- nbdinfo ---------------------------------------------------------------------------------------
info() {
    local at uri
    create info --size 64MiB
    create other --size 34MiB
    at=$(node_without info) uri=nbd://$(node_without info)/info
    same "nbdinfo --size" $((64 << 20)) "$(nbdinfo --size "$uri")"
    nbdinfo --json "$uri" | field 'd["exports"][0]' > "$work/info.json"
    for ability in flush fua trim zero fast-zero cache df multi-conn; do
        nbdinfo --can $ability "$uri" || fail "nbdinfo --can $ability"
    done
    if nbdinfo --is read-only "$uri"; then fail "the export is read-only"; fi
    nbdinfo --list "nbd://$at" > "$work/list"
    grep -q 'export="info@' "$work/list" || fail "nbdinfo --list lacks a volume: $(cat "$work/list")"
    grep -q 'export="other@' "$work/list" || fail "nbdinfo --list lacks a volume: $(cat "$work/list")"
    if nbdinfo "nbd://$at/nobody" > "$work/unknown.log" 2>&1; then fail "an unknown export has info"; fi
    # qemu passes on what the server says of it.
    if qemu-img info "nbd://$at/nobody" > "$work/unknown.log" 2>&1; then fail "an unknown export is opened"; fi
    grep -q "there is no volume 'nobody'" "$work/unknown.log" || fail "no reason: $(cat "$work/unknown.log")"
    qemu-io -f raw -c 'write -P 1 1M 1M' -c 'write -z 1280k 256k' -c flush "$uri" > "$work/qemu-io.log"
    same "nbdinfo --map" "0 1048576 3|1048576 262144 0|1310720 262144 3|1572864 524288 0|2097152 65011712 3|" \
        "$(nbdinfo --map "$uri" | awk '{ printf "%s %s %s|", $1, $2, $3 }')"
    same "nbdinfo --map --totals" "786432 66322432 " \
        "$(nbdinfo --map --totals "$uri" | sort -n | awk '{ printf "%s ", $1 }')"
    verify info
    say "nbdinfo: as it is"
}

# -- every command ---------------------------------------------------------------------------------
# A datanode that serves NBD within TLS only, beside those of the cluster, with a certificate for it and
# one for its clients.
tls_node() {
    local dir=$work/tls masters
    mkdir "$dir"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=ca \
        -keyout "$dir/ca-key.pem" -out "$dir/ca-cert.pem" 2> "$work/openssl.log"
    certificate() {
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" \
            -keyout "$dir/$1-key.pem" -out "$dir/$1.csr" 2>> "$work/openssl.log"
        openssl x509 -req -CA "$dir/ca-cert.pem" -CAkey "$dir/ca-key.pem" -CAcreateserial \
            -extfile <(echo "$2") -in "$dir/$1.csr" -out "$dir/$1-cert.pem" 2>> "$work/openssl.log"
    }
    certificate client extendedKeyUsage=clientAuth
    certificate server $'subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth'
    masters=$(field '",".join(m["listen"] for m in d["masters"])' < "$cluster/cluster.json")
    # Ports that are free, as the system finds them. The masters know who it is, and give it no replica of
    # later parts: no volume fits it.
    "$sbkctl" datanode --data-dir "$work/tls-node" --runtime-dir "$work/tls-run" --masters "$masters" --capacity 1MiB \
        --listen 127.0.0.1:0 --http 127.0.0.1:0 --nbd 127.0.0.1:0 --nbd-tls-cert "$dir/server-cert.pem" \
        --nbd-tls-key "$dir/server-key.pem" --nbd-tls-client-ca "$dir/ca-cert.pem" > "$work/tls-node.log" 2>&1 &
    attachments[tls]=$!
    await "the registration of a fifth datanode" 30 fifth
}
fifth() { [ -n "$(new_node)" ]; }
new_node() {
    python3 - "$cluster/cluster.json" <(sbk -o json node list) <<'PY'
import json, sys
known = {n["id"] for n in json.load(open(sys.argv[1]))["datanodes"]}
print("".join(n["nbd_addr"] for n in json.load(open(sys.argv[2])) if n["id"] not in known))
PY
}
commands() {
    # The last two answer a write before it is durable everywhere.
    create durable --size 40MiB
    create quorum --size 40MiB --durability sync_quorum
    create written --size 40MiB --write-ack written
    create scratch --size 40MiB --durability best_effort
    each() {
        tests/nbd_commands.py "${@:2}" > "$work/commands.log" 2>&1 || fail "$1: $(tail -n 5 "$work/commands.log")"
        say "$1: $(cat "$work/commands.log")"
    }
    each "on the primary's node" "nbd://$(of_node "$(primary durable)" nbd)/durable" --plain
    each "from a node without a replica" "nbd://$(node_without durable)/durable" --plain
    each "sync_quorum" "nbd://$(node_without quorum)/quorum" --plain
    each "written" "nbd://$(node_without written)/written" --plain
    each "best_effort" "nbd://$(node_without scratch)/scratch" --plain
    attach written
    each "sbkctl attach" "$(attached written)" --plain
    detach written
    tls_node
    each "TLS" "nbds://$(new_node)/durable?tls-certificates=$work/tls"
    if nbdinfo "nbd://$(new_node)/durable" > "$work/plain.log" 2>&1; then fail "a server for TLS takes who has none"; fi
    for volume in durable quorum written scratch; do verify $volume; done
}

# -- nbdcopy ---------------------------------------------------------------------------------------
copies() {
    local size=$((192 << 20)) uri far
    create from --size 192MiB
    create to --size 192MiB
    # Data of all kinds: 16 MiB that don't repeat, zeros that are written, and mostly holes.
    truncate -s $size "$work/source"
    dd if=/dev/urandom of="$work/source" bs=1M count=16 seek=3 conv=notrunc status=none
    dd if=/dev/urandom of="$work/source" bs=512 count=3 seek=$((size / 512 - 3)) conv=notrunc status=none
    dd if=/dev/zero of="$work/source" bs=1M count=8 seek=100 conv=notrunc status=none
    uri=nbd://$(of_node "$(primary from)" nbd)/from far=nbd://$(node_without to)/to
    nbdcopy --connections=8 --threads=4 --requests=32 --flush "$work/source" "$uri"
    nbdcopy --connections=4 "$uri" "$far"
    nbdcopy --connections=8 --threads=4 "$far" "$work/back"
    cmp "$work/source" "$work/back" || fail "nbdcopy: the copy of the copy differs"
    nbdcopy --synchronous "$far" - | cmp - "$work/source" || fail "nbdcopy to a pipe differs"
    # At most what was data: what is a hole in the file is none of the volume's, nor of the copy's.
    for volume in "$uri" "$far"; do
        allocated=$(nbdinfo --map --totals "$volume" | awk '$3 == 0 || $4 == "data" { print $1 }')
        [ "$allocated" -le $((17 << 20)) ] || fail "nbdcopy: $allocated bytes of $volume are no holes"
    done
    [ $(($(stat -c %b "$work/back") * 512)) -le $((17 << 20)) ] || fail "nbdcopy: the file is not sparse"
    # Over what was there, of which nothing may show through.
    qemu-io -f raw -c "write -P 9 0 32M" -c "write -P 9 128M 32M" "$far" > "$work/qemu-io.log"
    nbdcopy --connections=4 "$work/source" "$far"
    nbdcopy "$far" "$work/again"
    cmp "$work/source" "$work/again" || fail "nbdcopy over other data differs"
    verify from
    verify to
    rm "$work/source" "$work/back" "$work/again"
    say "nbdcopy: there, across and back, on eight connections; sparse as before"
}

# -- qemu ------------------------------------------------------------------------------------------
images() {
    local raw qcow
    create raw --size 96MiB
    create qcow --size 128MiB
    raw=nbd://$(node_without raw)/raw qcow=nbd://$(of_node "$(primary qcow)" nbd)/qcow
    quiet() { "$@" > "$work/qemu.log" 2>&1 || fail "$*: $(cat "$work/qemu.log")"; }
    truncate -s 96M "$work/image.raw"
    quiet mkfs.ext4 -q -d docs "$work/image.raw"
    quiet qemu-img convert -n -f raw -O raw -m 16 -W "$work/image.raw" "$raw"
    quiet qemu-img compare -f raw -F raw "$work/image.raw" "$raw"
    quiet qemu-img convert -f raw -O qcow2 -m 16 -W "$raw" "$work/image.qcow2"
    quiet qemu-img check "$work/image.qcow2"
    quiet qemu-img compare -f qcow2 -F raw "$work/image.qcow2" "$raw"
    quiet qemu-img convert -n -f qcow2 -O raw "$work/image.qcow2" "$raw"
    quiet qemu-img convert -f raw -O raw "$raw" "$work/back.raw"
    cmp "$work/image.raw" "$work/back.raw" || fail "qemu-img convert there and back differs"
    # An image of qemu's own within a volume, with a snapshot, changed and rolled back.
    quiet qemu-img create -f qcow2 "$qcow" 96M
    quiet qemu-img convert -n -f raw -O qcow2 "$work/image.raw" "$qcow"
    quiet qemu-img snapshot -c before "$qcow"
    quiet qemu-io -f qcow2 -c 'write -P 0x5a 1M 3M' -c 'discard 8M 4M' -c 'write -z 20M 2M' -c flush "$qcow"
    quiet qemu-io -f qcow2 -c 'read -P 0x5a 1M 3M' -c 'read -P 0 20M 2M' "$qcow"
    quiet qemu-img check -f qcow2 "$qcow"
    if qemu-img compare -f raw -F qcow2 "$work/image.raw" "$qcow" > "$work/qemu.log"; then
        fail "qemu-img compare sees no change"
    fi
    quiet qemu-img snapshot -a before "$qcow"
    quiet qemu-img check -f qcow2 "$qcow"
    quiet qemu-img compare -f raw -F qcow2 "$work/image.raw" "$qcow"
    # Patterns, written over each other, aligned and not, in all the ways to clear.
    local steps=() step
    for step in 'write -P 0x11 0 8M' 'write -f -P 0x22 4608 512' 'write -P 0x33 12288 5120' \
        'write -z 65536 4096' 'write -z -u 73728 8192' 'write -z -n 90112 4096' 'discard 131072 65536' \
        'write -P 0x44 1049088 1M' flush \
        'read -P 0x11 0 4608' 'read -P 0x22 4608 512' 'read -P 0x11 5120 7168' 'read -P 0x33 12288 5120' \
        'read -P 0x11 17408 48128' 'read -P 0 65536 4096' 'read -P 0 73728 8192' 'read -P 0 90112 4096' \
        'read -P 0 131072 65536' 'read -P 0x44 1049088 1M' 'read -P 0x11 2097664 6290944' \
        'aio_write -P 0x55 0 1M' 'aio_write -P 0x66 1M 1M' 'aio_write -z 2M 1M' aio_flush \
        'read -P 0x55 0 1M' 'read -P 0x66 1M 1M' 'read -P 0 2M 1M'; do
        steps+=(-c "$step")
    done
    for options in '-n' ''; do
        # shellcheck disable=SC2086
        quiet qemu-io -f raw $options -t writeback "${steps[@]}" "$raw"
        if grep -qi 'verification failed' "$work/qemu.log"; then fail "qemu-io: $(cat "$work/qemu.log")"; fi
    done
    if qemu-io -f raw -c 'read -P 0x56 0 512' "$raw" > "$work/qemu.log" 2>&1 \
        && ! grep -qi 'verification failed' "$work/qemu.log"; then
        fail "qemu-io sees no wrong pattern"
    fi
    verify raw
    verify qcow
    say "qemu-img and qemu-io: raw and qcow2 there and back, in a volume, every pattern right"
}

# -- fio -------------------------------------------------------------------------------------------
# Four jobs, each on a connection and a part of the volume of its own. The first pass writes all of it
# and verifies; the second overwrites it at random while a primary is killed.
fio_part() {
    create fio --size 128MiB
    attach fio
    local pass=(fio --ioengine=nbd "--uri=$(attached fio)" --size=32m --offset_increment=32m --numjobs=4
        --bsrange=512-64k --blockalign=512 --iodepth=16 --verify=crc32c --verify_fatal=1 --verify_state_save=0
        --group_reporting --rw=randwrite)
    "${pass[@]}" --name=write --output="$work/write.fio.log" --fsync=64 --do_verify=1 \
        || fail "fio: $(tail -n 5 "$work/write.fio.log")"
    # Until it is told to end.
    "${pass[@]}" --name=again --output="$work/again.fio.log" --fsync=128 --verify_backlog=256 --time_based \
        --runtime=600 &
    loads[fio]=$!
    before=$(committed fio)
    await "fio's writes" 60 further fio $((before + 500))
    kill_primary fio
    before=$(committed fio)
    await "fio's writes after the primary's death" 60 further fio $((before + 500))
    start_again
    await "the return" 120 in_sync fio 3
    # Told to end, fio verifies no more, and exits with 128; what it found before is in its log.
    kill -INT "${loads[fio]}" || fail "fio ended by itself: $(tail -n 5 "$work/again.fio.log")"
    code=0
    wait "${loads[fio]}" || code=$?
    unset "loads[fio]"
    [ $code = 128 ] || fail "fio ended with $code: $(tail -n 5 "$work/again.fio.log")"
    if grep -qiE 'err= *[1-9]|verify failed|bad magic' "$work"/*.fio.log; then fail "fio: see its logs"; fi
    detach fio
    verify fio
    say "fio: four jobs and connections, CRC of every block right, through the death of a primary"
}
# The newest entry that the primary knows to be committed.
committed() { sbk -o json volume show "$1" | field 'max(m["r"] or 0 for m in d["members"])'; }
further() { [ "$(committed "$1")" -ge "$2" ]; }

# -- file systems ----------------------------------------------------------------------------------
# fsx on NAME.mnt, round after round, each with a seed that is noted, until NAME.stop is there.
exercise() {
    local name=$1 round=0 seed running
    trap 'kill "$running"; wait; exit 143' TERM
    while [ ! -e "$work/$name.stop" ]; do
        seed=$((RANDOM << 15 | RANDOM))
        echo "round $round: fsx -S $seed -N 500 -f $work/fsx.toml" >> "$work/$name.fsx.log"
        "$fsx" -q -S $seed -N 500 -f "$work/fsx.toml" -P "$work" "$work/$name.mnt/fsx.$((round % 4))" \
            >> "$work/$name.fsx.log" 2>&1 &
        running=$!
        wait $running || return 1
        round=$((round + 1))
        echo $round > "$work/$name.rounds.new"
        mv "$work/$name.rounds.new" "$work/$name.rounds"
    done
}
rounds() { cat "$work/$1.rounds" 2>/dev/null || echo 0; }
more_rounds() { [ "$(rounds "$1")" -ge "$2" ]; }
# io_errors: lines of the kernel's log that tell of one on our loop devices.
io_errors() { dmesg | grep -cE "(I/O error|lost async page write|Buffer I/O).*($(IFS='|'; echo "${devices[*]}"))" || true; }
files() {
    local systems=(ext4) name number deadline
    if grep -qw xfs /proc/filesystems || modprobe xfs 2>/dev/null; then
        systems+=(xfs)
    else
        for _ in 1 2 3; do say "XFS SKIPPED: THIS KERNEL CAN'T MOUNT IT, only ext4 is tried"; done
    fi
    # Holes are punched, so that trims reach the volume; caches are dropped, so that reads do.
    cat > "$work/fsx.toml" <<'TOML'
flen = 8388608
[opsize]
max = 131072
[weights]
close_open = 2
read = 10
write = 10
mapread = 5
mapwrite = 5
invalidate = 2
truncate = 3
fsync = 2
fdatasync = 2
posix_fallocate = 1
punch_hole = 4
posix_fadvise = 4
copy_file_range = 2
TOML
    devices=()
    for name in "${systems[@]}"; do
        create "$name" --size 352MiB
        attach "$name"
        expose "$name" "$(attached "$name")"
        if [ "$name" = ext4 ]; then mkfs.ext4 -q "$work/ext4.fuse/nbd"; else mkfs.xfs -q "$work/xfs.fuse/nbd"; fi
        mount_it "$name"
        devices+=("$(basename "${loops[$name]}")")
    done
    errors=$(io_errors)
    for name in "${systems[@]}"; do
        exercise "$name" &
        loads[$name]=$!
    done
    all_go_on() {
        local name
        for name in "${systems[@]}"; do
            deadline=$((SECONDS + 120)) want=$(($(rounds "$name") + 3))
            until more_rounds "$name" $want; do
                kill -0 "${loads[$name]}" 2>/dev/null || fail "fsx on $name: $(tail -n 5 "$work/$name.fsx.log")"
                [ $SECONDS -lt $deadline ] || fail "fsx on $name does not go on after $1"
                sleep 0.2
            done
        done
    }
    all_go_on "its start"
    for number in $(seq "$failovers"); do
        name=${systems[number % ${#systems[@]}]}
        kill_primary "$name"
        all_go_on "failover $number"
        start_again
        for name in "${systems[@]}"; do await "the return of $name's replica" 120 in_sync "$name" 3; done
        say "failover $number of $failovers; rounds of fsx: $(for name in "${systems[@]}"; do echo -n "$name $(rounds "$name") "; done)"
    done
    for name in "${systems[@]}"; do
        : > "$work/$name.stop"
        wait "${loads[$name]}" || fail "fsx on $name: $(tail -n 5 "$work/$name.fsx.log")"
        unset "loads[$name]"
        sha256sum "$work/$name.mnt"/fsx.* > "$work/$name.sums"
        unmount_it "$name"
        if [ "$name" = ext4 ]; then
            e2fsck -fn "$work/ext4.fuse/nbd" > "$work/fsck.log" 2>&1 || fail "e2fsck: $(cat "$work/fsck.log")"
        else
            xfs_repair -n -f "$work/xfs.fuse/nbd" > "$work/fsck.log" 2>&1 || fail "xfs_repair: $(cat "$work/fsck.log")"
        fi
        # Nothing is in a cache now.
        mount_it "$name"
        sha256sum --quiet -c "$work/$name.sums" || fail "files of $name are not the same when mounted again"
        unmount_it "$name"
        # The loop device may let go of its file a moment after it was told to.
        await "the unmounting of nbdfuse for $name" 60 fusermount3 -u "$work/$name.fuse"
        wait "${fuses[$work/$name.fuse]}" || fail "nbdfuse of $name ended with $?"
        unset "fuses[$work/$name.fuse]"
        detach "$name"
        verify "$name"
    done
    # The kernel forgets old lines.
    found=$(io_errors)
    [ "$found" -le "$errors" ] || fail "I/O errors in the kernel's log: $found, where there were $errors"
    say "files: fsx on ${systems[*]} through $failovers failovers, no mismatch, checks clean, replicas equal"
}

for part in "${parts[@]}"; do
    start=$SECONDS
    case $part in
        info | commands | copies | images | files) $part ;;
        fio) fio_part ;;
        *) fail "there is no part '$part'" ;;
    esac
    say "$part took $((SECONDS - start)) s"
done
say "passed: ${parts[*]}"
