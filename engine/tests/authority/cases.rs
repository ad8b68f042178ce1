//! Creates, compare-and-set, failover, deletes, and what the detector proposes.

use std::collections::{BTreeMap, BTreeSet};

use sbk_engine::authority::detector::{Detector, DetectorEvent, DetectorParams, ReplicaReport};
use sbk_engine::authority::placement::check_request;
use sbk_engine::authority::{
    Accepted, Addrs, ClusterId, Command, CreateId, Durability, RegisteredReplica, Registration,
    State, VolumeRequest, WriteAck,
};
use sbk_engine::replication::io::IsrChange;
use sbk_engine::types::{
    BootId, Config, Epoch, Incarnation, Lsn, Millis, NodeId, ReplicaId, ReplicaRef, TailId,
    VolumeId,
};
use uuid::Uuid;

pub(super) fn node(n: u128) -> NodeId {
    NodeId(Uuid::from_u128(n))
}

pub(super) fn replica(n: u128) -> ReplicaId {
    ReplicaId(Uuid::from_u128(100 + n))
}

pub(super) fn volume() -> VolumeId {
    VolumeId(Uuid::from_u128(7))
}

pub(super) fn run(n: u128, process: u64) -> ReplicaRef {
    ReplicaRef { id: replica(n), incarnation: Incarnation { process, open: 1 } }
}

pub(super) fn registration(n: u128, process: u64, revision: u64, holds: bool) -> Registration {
    let entry = RegisteredReplica {
        volume: volume(),
        incarnation: Incarnation { process, open: 1 },
        complete: true,
        tail: 0,
        doubtful: false,
        disk: None,
    };
    Registration {
        node: node(n),
        process,
        revision,
        boot: BootId(Uuid::from_u128(1)),
        addrs: Addrs { grpc: format!("127.0.0.{n}:7301"), http: None, nbd: None },
        zone: None,
        capacity_bytes: 100 << 30,
        disks: Vec::new(),
        encrypts: false,
        replicas: if holds { BTreeMap::from([(replica(n), entry)]) } else { BTreeMap::new() },
    }
}

pub(super) fn request(name: &str) -> VolumeRequest {
    VolumeRequest {
        name: name.to_owned(),
        size_bytes: 1 << 30,
        replicas: 3,
        durability: Durability::SyncAll,
        write_ack: WriteAck::Durable,
        min_in_sync: None,
        zone_spread: false,
        encrypted: false,
        limits: sbk_engine::authority::Limits::default(),
    }
}

fn create(name: &str) -> Command {
    Command::CreateVolume {
        volume: volume(),
        create: CreateId(Uuid::from_u128(70)),
        request: request(name),
        placement: (1..=3).map(|n| (replica(n), node(n))).collect(),
        overcommit_percent: 100,
    }
}

/// Three nodes, one volume, all replicas confirmed.
pub(super) fn cluster() -> State {
    cluster_of(Durability::SyncAll, WriteAck::Durable)
}

pub(super) fn cluster_of(durability: Durability, write_ack: WriteAck) -> State {
    let mut state = State::new();
    let cluster = ClusterId(Uuid::from_u128(9));
    state.apply(&Command::BootstrapCluster { cluster }).expect("bootstraps");
    for n in 1..=3 {
        state.apply(&Command::RegisterNode(registration(n, 1, 1, false))).expect("registers");
    }
    let mut create = create("vol");
    if let Command::CreateVolume { request, .. } = &mut create {
        (request.durability, request.write_ack) = (durability, write_ack);
    }
    state.apply(&create).expect("creates");
    for n in 1..=3 {
        let confirm = Command::ConfirmReplica {
            node: node(n),
            process: 1,
            volume: volume(),
            replica: run(n, 1),
            tail: 0,
        };
        state.apply(&confirm).expect("confirms");
    }
    state
}

/// Three nodes, and all three replicas in sync.
pub(super) fn all_in_sync(durability: Durability) -> State {
    let mut state = cluster_of(durability, WriteAck::Durable);
    for n in 1..=3 {
        let now = config(&state);
        if !now.isr.contains(&replica(n)) {
            propose(&mut state, now.epoch, IsrChange::Join { replica: run(n, 1) }).expect("joins");
        }
    }
    state
}

pub(super) fn config(state: &State) -> Config {
    state.config(volume()).expect("an epoch is in force")
}

pub(super) fn propose(
    state: &mut State,
    epoch: Epoch,
    change: IsrChange,
) -> Result<Accepted, String> {
    let primary = config(state).primary;
    let command = Command::ProposeIsr { volume: volume(), expect_epoch: epoch, primary, change };
    state.apply(&command).map_err(|refusal| refusal.word().to_owned())
}

#[test]
fn the_first_epoch_has_min_in_sync_members_and_the_rest_are_listed_later() {
    let state = cluster();
    let config = config(&state);
    assert_eq!(config.isr.len(), 2);
    assert_eq!(config.replicas.len(), 3);
    assert_eq!(config.since, Epoch(1));
    assert_eq!(
        config.epoch,
        Epoch(2),
        "the third replica's listing is an epoch of the same tenure"
    );
}

#[test]
fn a_change_applies_only_at_the_epoch_it_names() {
    let mut state = cluster();
    let before = config(&state);
    let outsider =
        (1..=3).map(|n| run(n, 1)).find(|r| !before.isr.contains(&r.id)).expect("a third");
    let join = IsrChange::Join { replica: outsider };
    assert_eq!(propose(&mut state, Epoch(1), join.clone()), Err("stale-epoch".to_owned()));
    propose(&mut state, before.epoch, join.clone()).expect("joins");
    assert_eq!(config(&state).isr.len(), 3);
    assert_eq!(propose(&mut state, before.epoch, join), Err("stale-epoch".to_owned()));
}

#[test]
fn a_leave_below_min_in_sync_is_refused_and_a_burn_only_counts_up() {
    let mut state = cluster();
    let before = config(&state);
    let other = *before.isr.iter().find(|id| **id != before.primary.id).expect("a second member");
    let leave = IsrChange::Leave { replica: other };
    assert!(propose(&mut state, before.epoch, leave).is_err());
    propose(&mut state, before.epoch, IsrChange::Burn).expect("burns");
    let after = config(&state);
    assert_eq!(
        (after.epoch, after.isr, after.since),
        (before.epoch.next(), before.isr, before.since)
    );
}

#[test]
fn a_join_of_another_run_than_the_registered_is_refused() {
    let mut state = cluster();
    let before = config(&state);
    let outsider =
        (1..=3).map(|n| run(n, 9)).find(|r| !before.isr.contains(&r.id)).expect("a third");
    assert!(propose(&mut state, before.epoch, IsrChange::Join { replica: outsider }).is_err());
}

#[test]
fn a_name_in_use_and_bad_sizes_are_refused_in_words() {
    let mut state = cluster();
    let again = Command::CreateVolume {
        volume: VolumeId(Uuid::from_u128(8)),
        create: CreateId(Uuid::from_u128(80)),
        request: request("vol"),
        placement: (1..=3).map(|n| (replica(n + 10), node(n))).collect(),
        overcommit_percent: 100,
    };
    assert_eq!(state.apply(&again).expect_err("taken").word(), "name-taken");
    for (bytes, word) in [(0, "bad-size"), (4097, "bad-size"), (1 << 60, "bad-size")] {
        let mut bad = request("other");
        bad.size_bytes = bytes;
        let refusal = sbk_engine::authority::placement::check_request(&bad).expect_err("refused");
        assert_eq!(refusal.word(), word, "{bytes} bytes: {refusal}");
    }
    assert_eq!(
        state.apply(&create("vol")),
        Ok(Accepted::Created(volume())),
        "the same create again"
    );
}

#[test]
fn a_deleted_volume_is_a_tombstone_until_every_replica_is_gone() {
    let mut state = cluster();
    state.apply(&Command::DeleteVolume { volume: volume() }).expect("deletes");
    assert!(state.config(volume()).is_none());
    for n in 1..=3 {
        assert!(!state.is_gone(volume()), "replica {n} is still there");
        let confirm = Command::ConfirmDelete {
            node: node(n),
            process: 1,
            volume: volume(),
            replica: replica(n),
        };
        state.apply(&confirm).expect("confirms");
    }
    assert!(state.is_gone(volume()));
}

/// The client repeats what it asked for, for its outcome is unknown; meanwhile another deletes what came of
/// it. Whatever the repetition does, the id of what ended comes back with no other volume.
#[test]
fn a_create_that_comes_again_is_one_volume_while_that_is_known_and_never_the_one_that_ended() {
    let mut state = cluster();
    let again = |n: u128, name: &str| Command::CreateVolume {
        volume: VolumeId(Uuid::from_u128(n)),
        create: CreateId(Uuid::from_u128(70)),
        request: request(name),
        placement: (1..=3).map(|on| (replica(n + on), node(on))).collect(),
        overcommit_percent: 100,
    };
    assert_eq!(state.apply(&again(210, "vol")), Ok(Accepted::Created(volume())));
    assert_eq!(state.volumes().len(), 1);
    assert_eq!(state.apply(&again(220, "else")).expect_err("reused").word(), "create-id-reused");
    state.apply(&Command::DeleteVolume { volume: volume() }).expect("deletes");
    for n in 1..=3 {
        let refusal = state.apply(&again(230, "vol")).expect_err("it is being removed");
        assert_eq!(refusal.word(), "volume-deleted");
        assert!(refusal.to_string().contains(&volume().to_string()), "{refusal}");
        let (node, volume, replica) = (node(n), volume(), replica(n));
        let confirm = Command::ConfirmDelete { node, process: 1, volume, replica };
        state.apply(&confirm).expect("confirms");
    }
    let other = VolumeId(Uuid::from_u128(240));
    assert_eq!(state.apply(&again(240, "vol")), Ok(Accepted::Created(other)));
    assert!(state.is_gone(volume()));
    let taken = Command::CreateVolume {
        volume: other,
        create: CreateId(Uuid::from_u128(71)),
        request: request("else"),
        placement: (1..=3).map(|n| (replica(n + 250), node(n))).collect(),
        overcommit_percent: 100,
    };
    assert_eq!(state.apply(&taken).expect_err("an id in use").word(), "volume-id-reused");
    state.assert_invariants();
}

pub(super) fn report(n: u128, durable: u64) -> ReplicaReport {
    ReplicaReport {
        replica: run(n, 1),
        table_epoch: Epoch(1),
        durable: Lsn(durable),
        primary_in: None,
        lacking: BTreeSet::new(),
        lacking_ms: 0,
        promised: BTreeSet::new(),
        tail: TailId { boot: BootId(Uuid::from_u128(1)), count: 0 },
        stood: None,
    }
}

/// A detector whose leader was elected at 0 and heard every node at `at`.
pub(super) fn listening(state: &State, at: u64) -> Detector {
    let mut detector = Detector::new(DetectorParams::default());
    assert!(detector.step(Millis(0), state, DetectorEvent::Elected).is_empty());
    for n in 1..=3 {
        let reports = vec![report(n, 10 + n as u64)];
        let heartbeat = DetectorEvent::Heartbeat {
            node: node(n),
            process: 1,
            reports,
            returning: BTreeSet::new(),
            low: BTreeSet::new(),
        };
        assert!(detector.step(Millis(at), state, heartbeat).is_empty());
    }
    detector
}

pub(super) fn number(id: ReplicaId) -> u128 {
    id.0.as_u128() - 100
}

#[test]
fn a_killed_primary_is_replaced_by_the_other_member_and_the_set_is_not_shrunk_below_the_least() {
    let mut state = cluster();
    let before = config(&state);
    let mut detector = listening(&state, 100);
    let killed = DetectorEvent::Killed { node: node(number(before.primary.id)), process: 1 };
    let decisions = detector.step(Millis(150), &state, killed);
    assert_eq!(decisions.len(), 1);
    let decision = &decisions[0];
    assert_ne!(decision.primary.id, before.primary.id);
    assert!(before.isr.contains(&decision.primary.id));
    assert_eq!(decision.isr, before.isr, "two members with two needed: nobody is dropped");
    assert!(detector.step(Millis(160), &state, DetectorEvent::Tick).is_empty(), "proposed once");
    let failover = Command::Failover {
        volume: volume(),
        expect_epoch: decision.expect_epoch,
        primary: decision.primary,
        isr: decision.isr.clone(),
        stood: None,
    };
    state.apply(&failover).expect("fails over");
    let after = config(&state);
    assert_eq!((after.since, after.primary), (after.epoch, decision.primary));
    assert!(
        detector.step(Millis(5_000), &state, DetectorEvent::Tick).is_empty()
            || after.epoch > before.epoch
    );
}

/// What was known of a process does not hold for the next one, which has registered and not yet sent a
/// heartbeat.
#[test]
fn a_node_that_registers_again_is_alive_before_its_first_heartbeat() {
    let mut state = cluster();
    let before = config(&state);
    let other = *before.isr.iter().find(|id| **id != before.primary.id).expect("two members");
    let n = number(other);
    let mut detector = listening(&state, 100);
    let killed = DetectorEvent::Killed { node: node(n), process: 1 };
    detector.step(Millis(150), &state, killed.clone());
    assert!(!detector.is_alive(Millis(150), node(n)));
    state.apply(&Command::RegisterNode(registration(n, 2, 1, true))).expect("registers again");
    let to = run(n, 2);
    propose(&mut state, before.epoch, IsrChange::HandOver { to }).expect("hands over");
    for event in [DetectorEvent::Tick, killed] {
        assert_eq!(detector.step(Millis(200), &state, event), [], "it has just come");
    }
    assert!(detector.is_alive(Millis(2_199), node(n)));
    for n in (1..=3).filter(|other| *other != n) {
        let heartbeat = DetectorEvent::Heartbeat {
            node: node(n),
            process: 1,
            reports: vec![],
            returning: BTreeSet::new(),
            low: BTreeSet::new(),
        };
        assert_eq!(detector.step(Millis(2_000), &state, heartbeat), []);
    }
    let silent = detector.step(Millis(2_200), &state, DetectorEvent::Tick);
    assert_eq!(silent.len(), 1, "as any other that falls silent");
}

#[test]
fn a_silent_primary_is_suspected_after_t_and_not_before() {
    let state = cluster();
    let primary = number(config(&state).primary.id);
    let mut detector = listening(&state, 100);
    for n in (1..=3).filter(|n| *n != primary) {
        let heartbeat = DetectorEvent::Heartbeat {
            node: node(n),
            process: 1,
            reports: vec![],
            returning: BTreeSet::new(),
            low: BTreeSet::new(),
        };
        assert!(detector.step(Millis(2_000), &state, heartbeat).is_empty());
    }
    assert!(detector.step(Millis(2_099), &state, DetectorEvent::Tick).is_empty());
    assert_eq!(detector.step(Millis(2_100), &state, DetectorEvent::Tick).len(), 1);
}

#[test]
fn a_new_leader_waits_for_nodes_that_it_has_not_heard_yet() {
    let state = cluster();
    let mut detector = Detector::new(DetectorParams::default());
    assert!(detector.step(Millis(0), &state, DetectorEvent::Elected).is_empty());
    let primary = number(config(&state).primary.id);
    let others = (1..=3).filter(|n| *n != primary).collect::<Vec<_>>();
    for at in [100, 5_000, 9_900] {
        for n in &others {
            let heartbeat = DetectorEvent::Heartbeat {
                node: node(*n),
                process: 1,
                reports: vec![],
                returning: BTreeSet::new(),
                low: BTreeSet::new(),
            };
            assert!(detector.step(Millis(at), &state, heartbeat).is_empty());
        }
    }
    assert_eq!(detector.step(Millis(10_000), &state, DetectorEvent::Tick).len(), 1);
}

#[test]
fn a_restarted_primary_gets_its_role_back_by_a_new_epoch() {
    let mut state = cluster();
    let primary = config(&state).primary;
    let n = number(primary.id);
    state.apply(&Command::RegisterNode(registration(n, 2, 1, true))).expect("registers again");
    let mut detector = Detector::new(DetectorParams::default());
    assert!(detector.step(Millis(0), &state, DetectorEvent::Elected).is_empty());
    let heartbeat = DetectorEvent::Heartbeat {
        node: node(n),
        process: 2,
        reports: vec![],
        returning: BTreeSet::new(),
        low: BTreeSet::new(),
    };
    let decisions = detector.step(Millis(100), &state, heartbeat);
    assert_eq!(decisions.len(), 1, "the assigned run is over");
    assert_eq!(decisions[0].primary, run(n, 2), "its own replica holds all that it had logged");
}

/// A volume of three replicas whose voters' majority decides, two of them confirmed.
fn quorum() -> State {
    let mut state = State::new();
    let cluster = ClusterId(Uuid::from_u128(9));
    state.apply(&Command::BootstrapCluster { cluster }).expect("bootstraps");
    for n in 1..=3 {
        state.apply(&Command::RegisterNode(registration(n, 1, 1, false))).expect("registers");
    }
    let create = Command::CreateVolume {
        volume: volume(),
        create: CreateId(Uuid::from_u128(70)),
        request: VolumeRequest { durability: Durability::SyncQuorum, ..request("vol") },
        placement: (1..=3).map(|n| (replica(n), node(n))).collect(),
        overcommit_percent: 100,
    };
    state.apply(&create).expect("creates");
    for n in 1..=2 {
        assert!(state.config(volume()).is_none(), "one is no majority of three");
        let (node, replica) = (node(n), run(n, 1));
        let confirm =
            Command::ConfirmReplica { node, process: 1, volume: volume(), replica, tail: 0 };
        state.apply(&confirm).expect("confirms");
    }
    state
}

#[test]
fn the_first_voters_are_a_majority_and_the_others_join_one_by_one() {
    let mut state = quorum();
    let first = config(&state);
    assert_eq!((first.epoch, first.isr.len()), (Epoch(1), 2));
    assert_eq!(first.durability, Durability::SyncQuorum);
    let (node, replica) = (node(3), run(3, 1));
    let confirm = Command::ConfirmReplica { node, process: 1, volume: volume(), replica, tail: 0 };
    state.apply(&confirm).expect("confirms");
    assert_eq!(config(&state).isr.len(), 2, "a replica that was created is no voter yet");
    propose(&mut state, Epoch(2), IsrChange::Join { replica }).expect("joins");
    assert_eq!(config(&state).isr.len(), 3);
}

#[test]
fn what_makes_no_sense_with_voters_is_refused() {
    let voters = VolumeRequest { durability: Durability::SyncQuorum, ..request("vol") };
    let least = VolumeRequest { min_in_sync: Some(2), ..voters.clone() };
    let written = VolumeRequest { write_ack: WriteAck::Written, ..voters.clone() };
    assert!(check_request(&voters).is_ok());
    for (request, word, hint) in [
        (least, "min-in-sync-of-quorum", "leave it out"),
        (written, "unsupported", "write-ack durable"),
    ] {
        let refusal = check_request(&request).expect_err(word);
        assert_eq!(refusal.word(), word);
        assert!(refusal.to_string().contains(hint), "{refusal}");
    }
}

#[test]
fn a_failover_never_changes_the_voters() {
    let mut state = quorum();
    let before = config(&state);
    let other = *before.isr.iter().find(|id| **id != before.primary.id).expect("two voters");
    let to = run(number(other), 1);
    let failover = |isr| Command::Failover {
        volume: volume(),
        expect_epoch: before.epoch,
        primary: to,
        isr,
        stood: None,
    };
    let refusal = state.apply(&failover(BTreeSet::from([other]))).expect_err("drops a voter");
    assert_eq!(refusal.word(), "bad-isr");
    state.apply(&failover(before.isr.clone())).expect("fails over");

    let mut detector = listening(&state, 100);
    let killed = DetectorEvent::Killed { node: node(number(other)), process: 1 };
    let decisions = detector.step(Millis(150), &state, killed);
    assert_eq!(decisions.len(), 1);
    assert_eq!(decisions[0].isr, before.isr, "suspected or not, they stay listed");
}

#[test]
fn a_primary_hands_over_to_a_member_in_its_run_and_nobody_leaves_by_it() {
    let mut state = cluster();
    let before = config(&state);
    let (from, isr) = (before.primary, before.isr.clone());
    let other = *isr.iter().find(|id| **id != from.id).expect("two members");
    let wish = sbk_engine::authority::Wish { primary: Some(other), ..Default::default() };
    state.apply(&Command::SetWish { volume: volume(), wish }).expect("wishes");

    let refused = |state: &mut State, to| {
        propose(state, before.epoch, IsrChange::HandOver { to }).expect_err("is refused")
    };
    let outside = replica_outside(&before);
    assert_eq!(refused(&mut state, outside), "not-in-sync");
    assert_eq!(refused(&mut state, from), "already-primary");
    assert_eq!(refused(&mut state, run(number(other), 2)), "stale-incarnation");
    assert_eq!(config(&state), before);

    let to = run(number(other), 1);
    propose(&mut state, before.epoch, IsrChange::HandOver { to }).expect("hands over");
    let after = config(&state);
    assert_eq!((after.primary, after.since, &after.isr), (to, after.epoch, &isr));
    assert_eq!((after.epoch, after.handed_over_by), (before.epoch.next(), Some(from)));
    assert_eq!(state.volumes()[&volume()].wish.primary, None, "it is as was wished");

    // The same proposal again, late: it is a primary's that is none any more.
    let again = Command::ProposeIsr {
        volume: volume(),
        expect_epoch: before.epoch,
        primary: from,
        change: IsrChange::HandOver { to },
    };
    assert_eq!(state.apply(&again).expect_err("is over").word(), "stale-epoch");

    // An epoch of the same tenure keeps what began it, a failover does not.
    propose(&mut state, after.epoch, IsrChange::Burn).expect("burns");
    let burned = config(&state);
    assert_eq!((burned.since, burned.handed_over_by), (after.since, Some(from)));
    let failover = Command::Failover {
        volume: volume(),
        expect_epoch: burned.epoch,
        primary: from,
        isr: isr.clone(),
        stood: None,
    };
    state.apply(&failover).expect("fails over");
    assert_eq!(config(&state).handed_over_by, None);
}

fn replica_outside(config: &Config) -> ReplicaRef {
    let outside = config.replicas.keys().find(|id| !config.isr.contains(id));
    run(number(*outside.expect("one of three is not in sync")), 1)
}

/// In `best_effort` a failover would count a loss; the heir of a handover holds everything.
#[test]
fn a_handover_in_best_effort_loses_nothing() {
    let mut state = cluster_of(Durability::BestEffort, WriteAck::Durable);
    let before = config(&state);
    let mut handed = before.epoch;
    let members: Vec<_> = before.replicas.keys().copied().collect();
    for id in members.iter().filter(|id| !before.isr.contains(id)) {
        let replica = run(number(*id), 1);
        propose(&mut state, handed, IsrChange::Join { replica }).expect("joins");
        handed = handed.next();
    }
    let before = config(&state);
    let other = *before.isr.iter().find(|id| **id != before.primary.id).expect("a member");
    let to = run(number(other), 1);
    propose(&mut state, before.epoch, IsrChange::HandOver { to }).expect("hands over");
    let after = config(&state);
    assert_eq!(after.loss_generation, before.loss_generation);
    assert_eq!(after.isr, before.isr);
}

#[test]
fn a_candidate_may_name_another_voter_and_no_other_primary_may() {
    let mut state = quorum();
    let before = config(&state);
    let other = *before.isr.iter().find(|id| **id != before.primary.id).expect("two voters");
    let to = run(number(other), 1);
    propose(&mut state, Epoch(1), IsrChange::Yield { to }).expect("yields");
    let after = config(&state);
    assert_eq!((after.primary, after.since, &after.isr), (to, Epoch(2), &before.isr));
    let outside = IsrChange::Yield { to: run(3, 1) };
    assert_eq!(propose(&mut state, Epoch(2), outside), Err("not-in-sync".to_owned()));

    let mut state = cluster();
    let epoch = config(&state).epoch;
    assert_eq!(propose(&mut state, epoch, IsrChange::Yield { to }), Err("bad-isr".to_owned()));
}

/// A voter is wiped where it stands in the list. Named primary by masters that had not heard of it
/// yet, it refuses the role; nobody else would ever have been named.
#[test]
fn a_primary_that_turns_out_to_hold_nothing_is_replaced() {
    let mut state = quorum();
    let before = config(&state);
    let n = number(before.primary.id);
    let mut torn = registration(n, 1, 2, true);
    torn.replicas.values_mut().for_each(|replica| replica.complete = false);
    let mut detector = listening(&state, 100);
    assert!(detector.step(Millis(150), &state, DetectorEvent::Tick).is_empty());
    state.apply(&Command::RegisterNode(torn)).expect("registers");
    let decisions = detector.step(Millis(160), &state, DetectorEvent::Tick);
    assert_eq!(decisions.len(), 1, "it can't be the primary");
    assert_ne!(decisions[0].primary.id, before.primary.id);
    assert!(decisions[0].reason.contains("no complete image"), "{}", decisions[0].reason);
}
