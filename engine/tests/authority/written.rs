//! Written acknowledgements: who may be promoted, who stands first, and what follows a loss of power.

use std::collections::BTreeSet;

use sbk_engine::authority::detector::{DetectorEvent, ReplicaReport};
use sbk_engine::authority::placement::check_request;
use sbk_engine::authority::stand::Stand;
use sbk_engine::authority::{Command, Durability, State, WriteAck};
use sbk_engine::replication::io::IsrChange;
use sbk_engine::types::{BootId, Epoch, LossGeneration, Millis, TailId};
use uuid::Uuid;

use super::cases::{
    cluster_of, config, listening, node, number, propose, registration, replica, report, request,
    run, volume,
};

fn tail(boot: u128) -> TailId {
    TailId { boot: BootId(Uuid::from_u128(boot)), count: 0 }
}

/// Three nodes, two of them in sync.
fn cluster() -> State {
    cluster_of(Durability::SyncAll, WriteAck::Written)
}

/// The node's machine was started again.
fn reboots(state: &mut State, n: u128, process: u64) {
    let mut again = registration(n, process, 1, true);
    again.boot = BootId(Uuid::from_u128(u128::from(process)));
    state.apply(&Command::RegisterNode(again)).expect("registers");
}

fn heard(n: u128, process: u64, stood: Option<Epoch>) -> DetectorEvent {
    let reports = vec![ReplicaReport {
        replica: run(n, process),
        tail: tail(u128::from(process)),
        stood,
        ..report(n, 10 + n as u64)
    }];
    DetectorEvent::Heartbeat {
        node: node(n),
        process,
        reports,
        returning: BTreeSet::new(),
        low: BTreeSet::new(),
    }
}

fn members(state: &State) -> (u128, u128) {
    let config = config(state);
    let other = config.isr.iter().find(|id| **id != config.primary.id).expect("two members");
    (number(config.primary.id), number(*other))
}

#[test]
fn only_a_join_sets_a_tail_and_one_that_lost_its_own_is_not_promoted() {
    let mut state = cluster();
    let before = config(&state);
    assert!(before.tails.keys().eq(&before.isr));
    let (_, other) = members(&state);
    reboots(&mut state, other, 2);
    let refused = state.promotable(volume(), replica(other)).expect_err("it may lack writes");
    assert_eq!(refused.word(), "tail-lost");
    // A change that is no join copies what it had, so a leader that comes later knows it too.
    propose(&mut state, before.epoch, IsrChange::Burn).expect("burns");
    assert_eq!(config(&state).tails, before.tails);
    assert!(state.promotable(volume(), replica(other)).is_err());
    let epoch = config(&state).epoch;
    let join = |run| IsrChange::Join { replica: run };
    propose(&mut state, epoch, join(run(other, 1))).expect_err("of the run before");
    propose(&mut state, epoch, join(run(other, 2))).expect("joins again, listed as it is");
    assert_eq!(config(&state).tails[&replica(other)], tail(2));
    assert_eq!(state.promotable(volume(), replica(other)), Ok(run(other, 2)));
}

#[test]
fn a_failover_goes_to_a_member_that_stood() {
    let mut state = cluster();
    let (primary, other) = members(&state);
    let epoch = config(&state).epoch;
    let mut detector = listening(&state, 100);
    let killed = DetectorEvent::Killed { node: node(primary), process: 1 };
    assert!(detector.step(Millis(150), &state, killed).is_empty(), "nobody has stood");
    assert!(detector.stands(Millis(150), &state, node(primary)).is_empty());
    let asked = detector.stands(Millis(150), &state, node(other));
    assert_eq!(
        asked.iter().map(|s| (s.replica, s.epoch)).collect::<Vec<_>>(),
        [(run(other, 1), epoch)]
    );
    let failover = |stood| Command::Failover {
        volume: volume(),
        expect_epoch: epoch,
        primary: run(other, 1),
        isr: config(&state).isr,
        stood,
    };
    for stood in [None, Some(tail(5))] {
        let refusal = state.clone().apply(&failover(stood)).expect_err("it did not stand");
        assert_eq!(refusal.word(), "not-stood");
    }
    let older = Epoch(epoch.0 - 1);
    assert!(detector.step(Millis(160), &state, heard(other, 1, Some(older))).is_empty());
    let decisions = detector.step(Millis(170), &state, heard(other, 1, Some(epoch)));
    let [decision] = decisions.as_slice() else { panic!("{decisions:?}") };
    assert_eq!((decision.primary, decision.stood), (run(other, 1), Some(tail(1))));
    assert!(detector.stands(Millis(170), &state, node(other)).is_empty(), "it has stood");
    state.apply(&decision.command()).expect("fails over");
    assert_eq!(config(&state).primary, run(other, 1));
    assert_eq!(config(&state).loss_generation, LossGeneration(0));
}

#[test]
fn when_all_lost_power_the_best_log_goes_on_as_soon_as_all_are_there() {
    let mut state = cluster();
    let (primary, other) = members(&state);
    let mut detector = listening(&state, 100);
    reboots(&mut state, primary, 2);
    assert!(detector.step(Millis(200), &state, heard(primary, 2, None)).is_empty());
    assert!(detector.step(Millis(5_000), &state, heard(primary, 2, None)).is_empty(), "grace");
    let waits = detector.reason(Millis(5_000), &state, &state.volumes()[&volume()]);
    assert!(waits.is_some_and(|why| why.contains("acknowledged and not flushed")));
    reboots(&mut state, other, 2);
    let decisions = detector.step(Millis(5_100), &state, heard(other, 2, None));
    let [decision] = decisions.as_slice() else { panic!("{decisions:?}") };
    assert_eq!(decision.missing, Some(BTreeSet::new()));
    // The reports' durable ends ascend with the numbers.
    assert_eq!(decision.primary, run(primary.max(other), 2));
    state.apply(&decision.command()).expect("goes on");
    let after = config(&state);
    assert_eq!((after.loss_generation, after.isr.len()), (LossGeneration(1), 1));
    assert_eq!(after.tails, [(decision.primary.id, tail(2))].into());
}

#[test]
fn a_member_that_stays_away_is_not_waited_for_longer_than_the_grace_and_is_named() {
    let mut state = cluster();
    let (primary, other) = members(&state);
    let mut detector = listening(&state, 100);
    reboots(&mut state, primary, 2);
    assert!(detector.step(Millis(200), &state, heard(primary, 2, None)).is_empty());
    assert!(detector.step(Millis(5_000), &state, heard(primary, 2, None)).is_empty());
    assert!(detector.step(Millis(59_000), &state, heard(primary, 2, None)).is_empty());
    let decisions = detector.step(Millis(70_000), &state, heard(primary, 2, None));
    let [decision] = decisions.as_slice() else { panic!("{decisions:?}") };
    assert_eq!(decision.missing, Some(BTreeSet::from([replica(other)])));
    // One that kept all is never given up while it is not named.
    let mut hasty = decision.clone();
    hasty.missing = Some(BTreeSet::new());
    let refusal = state.clone().apply(&hasty.command()).expect_err("the other one kept all");
    assert_eq!(refusal.word(), "still-in-sync");
    state.apply(&decision.command()).expect("goes on");
    let assignment = state.volumes()[&volume()].assignment.clone().expect("in force");
    assert_eq!(assignment.missing, BTreeSet::from([replica(other)]));
    let epoch = assignment.epoch;
    propose(&mut state, epoch, IsrChange::Join { replica: run(other, 1) }).expect("joins");
    let assignment = state.volumes()[&volume()].assignment.clone().expect("in force");
    assert!(assignment.missing.is_empty(), "what it held has been cut");
}

/// The primary's machine lost power, and the other member's process was only started again: it has all of
/// its tail, and reads a long log before its replica is open.
#[test]
fn a_member_whose_replica_is_not_open_yet_is_waited_for() {
    let mut state = cluster();
    let (primary, other) = members(&state);
    let epoch = config(&state).epoch;
    let mut detector = listening(&state, 100);
    reboots(&mut state, primary, 2);
    state.apply(&Command::RegisterNode(registration(other, 2, 1, false))).expect("registers");
    let closed = DetectorEvent::Heartbeat {
        node: node(other),
        process: 2,
        reports: Vec::new(),
        returning: BTreeSet::new(),
        low: BTreeSet::new(),
    };
    for at in [200, 1_900, 3_800] {
        assert!(detector.step(Millis(at), &state, closed.clone()).is_empty());
        assert!(detector.step(Millis(at), &state, heard(primary, 2, None)).is_empty());
    }
    let missing = BTreeSet::new();
    let hasty = Command::Salvage {
        volume: volume(),
        expect_epoch: epoch,
        primary: run(primary, 2),
        missing,
    };
    let refusal = state.apply(&hasty).expect_err("the other one may have kept all");
    assert_eq!(refusal.word(), "still-in-sync");
    state.apply(&Command::RegisterNode(registration(other, 2, 2, true))).expect("registers");
    assert!(detector.step(Millis(4_000), &state, DetectorEvent::Tick).is_empty());
    let asked = detector.stands(Millis(4_000), &state, node(other));
    assert_eq!(asked, [Stand { volume: volume(), replica: run(other, 2), epoch }]);
}

#[test]
fn written_acknowledgements_go_with_sync_all_only() {
    let written = |durability| {
        let (write_ack, min_in_sync) = (WriteAck::Written, None);
        let request = request("vol");
        sbk_engine::authority::VolumeRequest { durability, write_ack, min_in_sync, ..request }
    };
    assert!(check_request(&written(Durability::SyncAll)).is_ok());
    for durability in [Durability::SyncQuorum, Durability::BestEffort] {
        let refusal = check_request(&written(durability)).expect_err("is not defined");
        assert_eq!(refusal.word(), "unsupported");
    }
}
