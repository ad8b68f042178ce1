#!/usr/bin/env bash
# Failures caused on the containers of compose.yml, under a load that remembers every write and reads
# every block back. The cluster is made for this and removed afterwards, with its volumes, also when a
# drill fails; what is kept is the directory of reports and logs.
#
#   deploy/image.sh
#   deploy/compose/drill.sh [DRILL...]
#
#   primary-kill              the primary's container is killed, and started again
#   primary-pause             it is frozen, and goes on
#   partition-primary         it is cut off from the network, and connected again
#   partition-master-leader   the same with the master that leads
#   datanode-loss-and-return  another datanode is killed and comes back; then one comes back empty
#   two-masters-lost          two of three masters are killed
#   rolling-restart           every container is told to end and is started again, one after the other
#   down-up                   the cluster is taken down, and comes up with what its volumes hold
#   all                       each of them, which is the default
#
# Each prints one line and leaves a JSON report. Exit code 0 if no acknowledged write was lost, no
# request failed, what had to happen did happen, and the replicas were equal in the end.
#
#   RUNS      how often each drill is done                  1
#   AFTER     seconds that the load goes on after a fault   5
#   PACE      what the load reads and writes a second       8MiB
#   REPORTS   where reports and logs go                     target/compose-drills
#   IMAGE     the image                                     sbk
#   COMPOSE   the command         `docker compose`, else `docker-compose`
#
# Needs docker, a docker compose of version 1 or 2, and python3.
set -euo pipefail
# A load that has ended is to be told of, not to end this too.
trap '' PIPE
reports=$(realpath -m "${REPORTS:-$(dirname "$0")/../../target/compose-drills}")/$(date +%Y%m%dT%H%M%S)
cd "$(dirname "$0")"

all=(primary-kill primary-pause partition-primary partition-master-leader datanode-loss-and-return
    two-masters-lost rolling-restart down-up)
runs=${RUNS:-1}
after=${AFTER:-5}
pace=${PACE:-8MiB}
# Not the process's id: in containers of a CI machine these are the same again and again.
project=sbk-drill-$(od -An -N4 -tx4 /dev/urandom | tr -d ' ')
# Long enough for a machine with other work. How long something took is in the reports; this only ends
# a drill that would never end.
limit=180
# So little log that a replica which comes back empty is rebuilt, and one that was away for seconds
# catches up.
export IMAGE=${IMAGE:-sbk} VOLUME_SIZE=256MiB WAL_RETAIN=64MiB

if [ -z "${COMPOSE:-}" ]; then
    if docker compose version >/dev/null 2>&1; then COMPOSE='docker compose'; else COMPOSE=docker-compose; fi
fi
# COMPOSE may be two words.
# shellcheck disable=SC2086
compose() { $COMPOSE -p "$project" -f compose.yml "$@" >>"$reports/compose.log" 2>&1; }

note() { printf '%s %s\n' "$(date +%T.%3N)" "$*" >>"$reports/drill.log"; }
fail() {
    note "FAILED: $*"
    fault=${fault:-$*}
    return 1
}

# --- containers ---------------------------------------------------------------------------------

# Version 1 and 2 of compose name containers in different ways; both label them.
containers() { docker ps -aq --filter "label=com.docker.compose.project=$project" "$@"; }
container() {
    local id
    id=$(containers --filter "label=com.docker.compose.service=$1")
    [ -n "$id" ] || fail "there is no container of $1"
    echo "$id"
}
network() { docker network ls -q --filter "label=com.docker.compose.project=$project"; }
did() {
    note "$*"
    done_so_far+=("$*")
}
kill_container() { docker kill "$(container "$1")" >/dev/null && did "killed $1"; }
start() { docker start "$(container "$1")" >/dev/null && did "started $1"; }
pause() { docker pause "$(container "$1")" >/dev/null && did "paused $1"; }
unpause() { docker unpause "$(container "$1")" >/dev/null && did "unpaused $1"; }
cut_off() { docker network disconnect "$(network)" "$(container "$1")" && did "cut $1 off"; }
connect() { docker network connect --alias "$1" "$(network)" "$(container "$1")" && did "connected $1"; }
# In order, as an operator does it: whoever can't end within its grace, or ends with an error, fails.
restart() {
    local id code
    id=$(container "$1")
    docker stop -t 120 "$id" >/dev/null
    code=$(docker inspect -f '{{.State.ExitCode}}' "$id")
    [ "$code" = 0 ] || fail "$1 ended with exit code $code" || return
    docker start "$id" >/dev/null
    did "restarted $1"
}

# --- the cluster --------------------------------------------------------------------------------

sbkctl() { docker exec "$(container client)" sbkctl "$@" 2>>"$reports/sbkctl.log"; }
# field EXPRESSION: of the JSON document `d` on standard input.
field() { python3 -c "import json,sys; d=json.load(sys.stdin); print($1)"; }
# await WHAT COMMAND...: until it succeeds.
await() {
    local what=$1 end=$((SECONDS + limit))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || fail "$what did not come about in $limit s" || return
        sleep 0.2
    done
}
leader() { sbkctl -o json cluster status | field 'd["leader"] or 0'; }
# The master that leads, as a service; nothing while none does.
leads() {
    local number
    number=$(leader) && [ "$number" != 0 ] && echo "master$number"
}
# await_leader: which one it is, is in `leading` then.
some_leads() { leading=$(leads); }
await_leader() { await 'a leader' some_leads; }
another_leads() { [ "$(leads)" != "$1" ] && leads; }
three_masters() { [ "$(sbkctl -o json cluster members | field 'sum(m["reachable"] for m in d)')" = 3 ]; }
# Whether the masters can still do something: they make a volume, and forget it.
masters_act() {
    # One that timed out may have made it all the same.
    sbkctl volume delete "aside-$1" --yes >/dev/null || true
    sbkctl volume create "aside-$1" --size 64MiB --no-wait >/dev/null &&
        sbkctl volume delete "aside-$1" --yes >/dev/null
}
all_healthy() {
    local ids states
    ids=$(containers) && [ "$(wc -w <<<"$ids")" = 7 ] || return
    # Who can't be asked is not healthy.
    # shellcheck disable=SC2086
    states=$(docker inspect -f '{{.State.Health.Status}}' $ids) && ! grep -qv '^healthy$' <<<"$states"
}
up() {
    compose up -d || fail "compose can't start the cluster; see compose.log" || return
    await 'seven healthy containers' all_healthy
}

# --- the load -----------------------------------------------------------------------------------

# It runs in the client's container, over the volume that is attached there, and is told by lines what
# goes on: see `sbkctl drill load --help`.
begin_load() {
    coproc LOAD {
        exec docker exec -i "$(container client)" sbkctl drill load vol1 --pace "$pace" \
            2>>"$reports/load.log"
    }
    load_pid=$LOAD_PID
    # Copies: bash forgets its own when the process ends, and its last words are still wanted then.
    local from=${LOAD[0]} to=${LOAD[1]}
    exec {from_load}<&"$from" {to_load}>&"$to"
    exec {from}<&- {to}>&-
}
# tell LINE EVENT: has it carry out a line, and waits for the answer, which is in `answer` then.
tell() {
    note "load: $1"
    # One that has ended left its report.
    { printf '%s\n' "$1" >&"$to_load"; } 2>/dev/null || true
    IFS= read -r -t $((2 * limit)) answer <&"$from_load" || fail "no answer to '$1'; see load.log" || return
    note "load: $answer"
    local event
    event=$(field 'd["event"]' <<<"$answer")
    [ "$event" != report ] || report=$answer
    [ "$event" = "$2" ] || fail "the load found a fault" || return
}
phase() { tell "phase $1" phase; }
goes_on() { tell "goes-on $1" goes_on; }
whole() { tell whole whole; }
# The service that the address of a datanode names.
primary() { field 'd["volume"]["primary"].split(":")[0]' <<<"$answer"; }
other_than() { field "next(n.split(':')[0] for n in d['volume']['nodes'] if n.split(':')[0] != '$1')" <<<"$answer"; }
end_load() {
    if [ -n "${load_pid:-}" ]; then
        exec {from_load}<&- {to_load}>&-
        wait "$load_pid" 2>/dev/null || true
        load_pid=''
    fi
}

# --- the drills ---------------------------------------------------------------------------------

# Before each: the load runs, all replicas are in sync, and `answer` says who is primary.
# What happens to the primary, and what makes up for it.
failover() {
    local old
    old=$(primary)
    phase fault && "$1" "$old" && goes_on "$after" &&
        phase return && "$2" "$old" && whole || return
    [ "$(primary)" != "$old" ] || fail "$old is still primary"
}
primary-kill() { failover kill_container start; }
primary-pause() { failover pause unpause; }
partition-primary() { failover cut_off connect; }

partition-master-leader() {
    local old
    await_leader || return
    old=$leading
    phase fault && cut_off "$old" && goes_on "$after" &&
        await 'another leader' another_leads "$old" &&
        await 'a volume to be made without it' masters_act during &&
        phase return && connect "$old" && await 'three masters' three_masters && whole
}

# Whether the primary's log has lost its beginning: who has nothing can't catch up any more.
log_moved_on() { sbkctl -o json volume show vol1 | field '1 / any((m["s"] or 0) > 1 for m in d["members"])'; }
datanode-loss-and-return() {
    local primary node id
    primary=$(primary)
    node=$(other_than "$primary")
    phase fault && kill_container "$node" && goes_on "$after" &&
        phase return && start "$node" && whole &&
        await 'the beginning of the log to go' log_moved_on || return
    # The same with its disk: what comes in its place is empty, and another node for the masters.
    id=$(sbkctl -o json node list | field "next(n['id'] for n in d if n['addr'].startswith('$node:'))")
    phase loss && kill_container "$node" && docker rm -v "$(container "$node")" >/dev/null &&
        docker volume rm "${project}_$node" >/dev/null && did "removed $node with its volume" &&
        goes_on "$after" && phase replaced && compose up -d "$node" && did "made $node anew" &&
        sbkctl node remove "$id" --yes >/dev/null && did "told the masters that $node lost its disk" &&
        whole && tell end report || return
    # The first is the return with its disk. After the rebuild something else may have been away for a moment.
    [ "$(field 'any(m["route"] == "rebuild" for m in d["report"]["moved"][1:])' <<<"$report")" = True ] ||
        fail "$node was not rebuilt"
}

not_ready() { ! docker exec "$(container "$1")" sbkctl health http://127.0.0.1:7201/readyz; }
two-masters-lost() {
    local first second third code=0
    await_leader || return
    first=$leading
    for second in master1 master2 master3; do [ "$second" != "$first" ] && break; done
    for third in master3 master2; do [ "$third" != "$first" ] && [ "$third" != "$second" ] && break; done
    phase fault && kill_container "$first" && kill_container "$second" && goes_on "$after" || return
    # Who is left says so, and does not pretend.
    sbkctl cluster status >/dev/null || code=$?
    [ $code = 3 ] || fail "cluster status ends with $code without a quorum, not with 3" || return
    docker exec "$(container "$third")" sbkctl health http://127.0.0.1:7201/healthz >/dev/null ||
        fail "$third does not live" || return
    # Once it has missed its leader for as long as an election waits.
    await "that $third is not ready without a quorum" not_ready "$third" || return
    phase return && start "$first" && start "$second" && await 'three masters' three_masters &&
        await 'a volume to be made' masters_act after && whole
}

rolling-restart() {
    local service
    for service in datanode1 datanode2 datanode3 master1 master2 master3; do
        phase "$service" && restart "$service" && await 'three masters' three_masters && whole &&
            goes_on 1 || return
    done
}

# Without the load, whose record is in a container that goes too.
content() { sbkctl -o json volume verify vol1 | field 'd["content"]'; }
id_of_volume() { sbkctl -o json volume show vol1 | field 'd["id"]'; }
served_whole() { sbkctl -o json volume show vol1 | field '1 / (d["serving"] and len(d["isr"]) == 3)'; }
down-up() {
    tell end report && end_load || return
    local before id now began
    before=$(content) && id=$(id_of_volume) || fail 'the volume can not be compared' || return
    compose down || fail 'compose can not take the cluster down' || return
    [ -z "$(containers)" ] || fail 'containers are left' || return
    did 'took the cluster down'
    began=$(date +%s%3N)
    up && await 'all replicas in sync' served_whole || return
    did "brought it up, all replicas in sync after $(($(date +%s%3N) - began)) ms"
    [ "$(id_of_volume)" = "$id" ] || fail 'vol1 is another volume' || return
    now=$(content)
    [ "$now" = "$before" ] || fail "vol1 held $before and holds $now"
}

# --- reports ------------------------------------------------------------------------------------

# The report of a drill, and its line; fails if the drill did.
summary() {
    python3 - "$reports/$drill-$run.json" "$drill" "$fault" "$report" "${done_so_far[@]}" <<'PY'
import json, sys, datetime
path, drill, fault, report, *done = sys.argv[1:]
load = json.loads(report)["report"] if report else None
faults = [f for f in (fault, (load or {}).get("fault") if load else "the load has no report") if f]
faults = list(dict.fromkeys(faults))
# The longest request before the fault is what this machine takes without one. What comes back reads,
# writes and syncs on the same disks, and costs requests something of its own.
quiet = stall = back = writes = errors = 0
if load:
    for phase in load["phases"]:
        longest = phase["load"]["longest_request_ms"]
        if phase["name"] == "before": quiet = longest
        elif phase["name"] in ("return", "replaced"): back = max(back, longest)
        elif phase["name"] != "begin": stall = max(stall, longest)
        writes += phase["load"]["writes"]
        errors += phase["load"]["errors"]
document = {
    "drill": drill, "ok": not faults, "fault": "; ".join(faults) or None,
    "ended": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    "done": done, "quiet_ms": quiet, "stall_ms": stall, "return_ms": back, "writes": writes, "errors": errors, "load": load,
}
with open(path, "w") as file:
    json.dump(document, file, indent=2)
    file.write("\n")
if faults:
    print(f"{drill}: FAILED: {document['fault']}")
    sys.exit(1)
ways = {"catch_up": "catch-up:", "delta": "delta: what changed in the image, then", "rebuild": "rebuild: the image, then"}
moved = [f"{m['node'].split(':')[0]} by {ways[m['route']]} {m['entries']} entries" for m in load["moved"]]
parts = [
    f"stall {stall} ms (before {quiet} ms, while it came back {back} ms)" if drill != "down-up" else done[-1],
    f"{writes} writes acknowledged, none lost, {errors} errors",
    "brought back: " + (", ".join(moved) or "nobody"), "replicas equal",
]
print(f"{drill}: ok: {'; '.join(parts)}")
PY
}

# The stalls of all runs, drill by drill.
table() {
    python3 - "$reports" <<'PY'
import glob, json, os, statistics, sys
drills = {}
for path in sorted(glob.glob(os.path.join(sys.argv[1], "*-*.json")), key=os.path.getmtime):
    report = json.load(open(path))
    drills.setdefault(report["drill"], []).append(report)
for drill, reports in drills.items():
    right = sum(r["ok"] for r in reports)
    def told(what):
        values = sorted(r[what] for r in reports)
        return f"p50 {statistics.median_low(values)} ms, max {values[-1]} ms"
    print(f"{drill}: {right} of {len(reports)} right; stall {told('stall_ms')}; before {told('quiet_ms')}; return {told('return_ms')}")
PY
}

run_drill() {
    drill=$1 fault='' report='' answer='' done_so_far=()
    note "== $drill, run $run"
    {
        begin_load && phase before && goes_on 2 && whole && "$drill" &&
            { [ -n "$report" ] || tell end report; }
    } || fail 'something failed; see drill.log' || {
        # What it has seen is wanted all the more.
        [ -n "$report" ] || tell end report || true
    }
    end_load
    summary
}

end() {
    local status=$? id
    trap '' INT TERM
    set +e
    end_load
    for id in $(containers --filter status=paused); do docker unpause "$id" >/dev/null; done
    mkdir -p "$reports/logs"
    for id in $(containers); do
        docker logs "$id" >"$reports/logs/$(docker inspect -f '{{index .Config.Labels "com.docker.compose.service"}}' "$id").log" 2>&1
    done
    compose down -v --remove-orphans -t 5 || docker rm -fv $(containers) >/dev/null 2>&1
    if [ $status -eq 0 ]; then rm -rf "$reports/logs"; fi
    echo "reports are in $(realpath --relative-to="$OLDPWD" "$reports")"
    exit $status
}

[ $# -gt 0 ] || set -- all
[ "$*" != all ] || set -- "${all[@]}"
for drill; do
    [[ " ${all[*]} " == *" $drill "* ]] || {
        sed -n '2,/^set/s/^# \{0,1\}//p' "$(basename "$0")" >&2
        exit 2
    }
done
docker info >/dev/null 2>&1 || { echo 'no Docker engine answers' >&2; exit 1; }
docker image inspect "$IMAGE" >/dev/null 2>&1 || { echo "there is no image $IMAGE; see deploy/image.sh" >&2; exit 1; }

mkdir -p "$reports"
trap end EXIT
trap 'exit 130' INT TERM
up || { echo 'the cluster does not come up'; exit 1; }
status=0
for ((run = 1; run <= runs; run++)); do
    for drill; do
        # What failed may have left the cluster as no drill expects it.
        run_drill "$drill" || { status=1; break 2; }
    done
done
[ "$runs" = 1 ] || table
exit $status
