//! Going on with less than everything, on an operator's word.

use std::collections::BTreeSet;

use sbk_engine::authority::detector::{Detector, DetectorEvent, DetectorParams, ReplicaReport};
use sbk_engine::authority::placement::check_request;
use sbk_engine::authority::recovery::Recovery;
use sbk_engine::authority::{Command, Durability, State, WriteAck};
use sbk_engine::replication::io::IsrChange;
use sbk_engine::types::{Epoch, LossGeneration, Millis, NodeId, ReplicaId};

use crate::cases::{
    cluster, cluster_of, config, listening, node, number, propose, registration, replica, report,
    request, run, volume,
};

/// The replica of a three-replica volume that is not in sync.
fn outsider(state: &State) -> u128 {
    let isr = config(state).isr;
    (1..=3).find(|n| !isr.contains(&replica(*n))).expect("two of three are in sync")
}

/// A leader that heard all nodes at 100, and only those of `heard` at 5000.
fn heard(state: &State, heard: &[u128], change: impl Fn(&mut ReplicaReport)) -> Detector {
    let mut detector = listening(state, 100);
    for n in heard {
        let mut report = report(*n, 10 + *n as u64);
        change(&mut report);
        let beat = DetectorEvent::Heartbeat { node: node(*n), process: 1, reports: vec![report] };
        detector.step(Millis(5_000), state, beat);
    }
    detector
}

fn plan(detector: &Detector, state: &State, off: &[u128]) -> Result<Recovery, &'static str> {
    let off: BTreeSet<NodeId> = off.iter().map(|n| node(*n)).collect();
    let volume = &state.volumes()[&volume()];
    detector.plan_recovery(Millis(5_100), state, volume, &off).map_err(|refusal| refusal.word())
}

fn members(state: &State) -> Vec<u128> {
    config(state).isr.iter().map(|id| number(*id)).collect()
}

#[test]
fn a_loss_makes_one_replica_the_whole_set_and_is_counted() {
    let mut state = cluster();
    let before = config(&state);
    let (left, off) = (outsider(&state), members(&state));
    let plan = plan(&heard(&state, &[left], |_| ()), &state, &off).expect("nothing speaks against");
    assert_eq!(number(plan.primary.id), left);
    let lost: BTreeSet<ReplicaId> = plan.lost.iter().map(|(id, _)| *id).collect();
    assert_eq!(lost, before.isr, "the operator is told what is given up");
    let off: BTreeSet<NodeId> = off.iter().map(|n| node(*n)).collect();
    state.apply(&plan.command(volume(), off.clone())).expect("recovers");
    let after = config(&state);
    assert_eq!(
        after.isr,
        BTreeSet::from([replica(left)]),
        "smaller than min-in-sync: no commit yet"
    );
    assert_eq!((after.epoch, after.since), (before.epoch.next(), before.epoch.next()));
    assert_eq!(after.loss_generation, LossGeneration(1));
    let again = state.apply(&plan.command(volume(), off)).expect_err("another epoch is in force");
    assert_eq!(again.word(), "stale-epoch");
}

#[test]
fn a_loss_is_refused_while_a_node_that_is_given_up_lives() {
    let state = cluster();
    let (left, off) = (outsider(&state), members(&state));
    let lives = heard(&state, &[left, off[0]], |_| ());
    assert_eq!(plan(&lives, &state, &off), Err("node-heard"));
    // Its masters don't hear it, but a replica does.
    let primary = config(&state).primary.id;
    let promised = heard(&state, &[left], |report| report.promised = BTreeSet::from([primary]));
    assert_eq!(plan(&promised, &state, &off), Err("still-promised"));
    // A leader that was elected just now knows nothing.
    let mut young = Detector::new(DetectorParams::default());
    young.step(Millis(5_000), &state, DetectorEvent::Elected);
    assert_eq!(plan(&young, &state, &off), Err("too-early"));
}

#[test]
fn a_loss_is_refused_while_something_that_may_hold_more_is_left() {
    let state = cluster();
    let (left, off) = (outsider(&state), members(&state));
    let alone = heard(&state, &[left], |_| ());
    assert_eq!(plan(&alone, &state, &off[..1]), Err("still-in-sync"), "one member is not named");
    let there = heard(&state, &[left, off[1]], |_| ());
    assert_eq!(plan(&there, &state, &off[..1]), Err("not-needed"), "the other member answers");
    let none = heard(&state, &[], |_| ());
    assert_eq!(plan(&none, &state, &off), Err("unaccounted"), "the third replica may hold more");
    assert_eq!(plan(&none, &state, &[1, 2, 3]), Err("nothing-left"));
    // Applied late, it must find the same.
    let primary = sbk_engine::types::ReplicaRef {
        id: replica(left),
        incarnation: config(&state).primary.incarnation,
    };
    let recover = |given_up: &[u128]| Command::Recover {
        volume: volume(),
        expect_epoch: config(&state).epoch,
        primary,
        given_up: given_up.iter().map(|n| node(*n)).collect(),
    };
    let word = |command| state.clone().apply(&command).map_err(|refusal| refusal.word());
    assert_eq!(word(recover(&off[..1])), Err("still-in-sync"));
    assert_eq!(word(recover(&[1, 2, 3])), Err("given-up"));
    assert_eq!(word(recover(&[9])), Err("unknown-node"));
}

/// A member that came back without its replica needs no naming: its node lives, its copy does not.
#[test]
fn a_wiped_member_is_lost_without_being_named() {
    let mut state = cluster();
    let (left, isr) = (outsider(&state), members(&state));
    for n in &isr {
        state.apply(&Command::RegisterNode(registration(*n, 2, 1, false))).expect("registers");
    }
    let mut detector = heard(&state, &[left], |_| ());
    for n in &isr {
        let beat = DetectorEvent::Heartbeat { node: node(*n), process: 2, reports: vec![] };
        let decisions = detector.step(Millis(5_000), &state, beat);
        assert!(decisions.is_empty(), "nobody takes over without a loss by itself: {decisions:?}");
    }
    let told = detector.reason(Millis(5_000), &state, &state.volumes()[&volume()]);
    let told = told.expect("it waits");
    assert!(isr.iter().all(|n| told.contains(&node(*n).to_string())), "{told}");
    let plan = plan(&detector, &state, &[]).expect("the wiped ones are no help");
    assert_eq!((number(plan.primary.id), plan.rank.0), (left, Epoch(1)));
}

/// A `best_effort` volume of three replicas, all in sync.
fn best_effort() -> State {
    let mut state = cluster_of(Durability::BestEffort, WriteAck::Durable);
    let outside = |state: &State| (1..=3).find(|n| !config(state).isr.contains(&replica(*n)));
    while let Some(n) = outside(&state) {
        let join = IsrChange::Join { replica: run(n, 1) };
        let epoch = config(&state).epoch;
        propose(&mut state, epoch, join).expect("joins");
    }
    state
}

#[test]
fn a_best_effort_failover_takes_the_highest_log_alone_and_counts_a_loss() {
    let mut state = best_effort();
    let before = config(&state);
    let primary = number(before.primary.id);
    let mut detector = listening(&state, 100);
    let killed = DetectorEvent::Killed { node: node(primary), process: 1 };
    let decision = detector.step(Millis(150), &state, killed).remove(0);
    let highest = (1..=3).filter(|n| *n != primary).max().expect("two others");
    assert_eq!(number(decision.primary.id), highest, "it reported the higher LSN");
    let whole = Command::Failover {
        volume: volume(),
        expect_epoch: decision.expect_epoch,
        primary: decision.primary,
        isr: before.isr.clone(),
        stood: None,
    };
    assert_eq!(
        state.clone().apply(&whole).expect_err("the others may hold more").word(),
        "bad-isr"
    );
    let (expect_epoch, isr) = (decision.expect_epoch, decision.isr);
    let failover = Command::Failover {
        volume: volume(),
        expect_epoch,
        primary: decision.primary,
        isr,
        stood: None,
    };
    state.apply(&failover).expect("fails over");
    let after = config(&state);
    assert_eq!(after.isr, BTreeSet::from([decision.primary.id]));
    assert_eq!(after.loss_generation, LossGeneration(1));
}

#[test]
fn a_best_effort_primary_that_restarted_lost_nothing() {
    let mut state = best_effort();
    let before = config(&state);
    let n = number(before.primary.id);
    let mut detector = listening(&state, 100);
    state.apply(&Command::RegisterNode(registration(n, 2, 1, true))).expect("registers again");
    let beat = DetectorEvent::Heartbeat { node: node(n), process: 2, reports: vec![] };
    let decision = detector.step(Millis(200), &state, beat).remove(0);
    assert_eq!(decision.primary, run(n, 2), "its own replica holds all that it acknowledged");
    let failover = Command::Failover {
        volume: volume(),
        expect_epoch: decision.expect_epoch,
        primary: decision.primary,
        isr: decision.isr.clone(),
        stood: None,
    };
    state.apply(&failover).expect("fails over");
    let after = config(&state);
    assert_eq!((after.loss_generation, after.isr), (LossGeneration(0), before.isr));
}

#[test]
fn a_best_effort_volume_waits_for_nobody() {
    let mut request = request("v");
    request.durability = Durability::BestEffort;
    assert_eq!(check_request(&request).expect("is taken").min_in_sync, 1);
    request.min_in_sync = Some(2);
    assert_eq!(
        check_request(&request).expect_err("contradicts itself").word(),
        "min-in-sync-of-one"
    );
    request.min_in_sync = None;
    request.write_ack = WriteAck::Written;
    assert_eq!(check_request(&request).expect_err("is not offered").word(), "unsupported");
}
