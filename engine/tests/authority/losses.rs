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
        let beat = DetectorEvent::Heartbeat {
            node: node(*n),
            process: 1,
            reports: vec![report],
            returning: BTreeSet::new(),
            low: BTreeSet::new(),
        };
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
    let stood = heard(&state, &[left], |report| report.stood = Some(before.epoch));
    let plan = plan(&stood, &state, &off).expect("nothing speaks against");
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

/// An order of the primary that was given up may still be under way to the only replica that is left: it
/// must not be the whole set before it says that nothing of that epoch reaches it any more.
#[test]
fn what_is_left_stands_before_it_is_the_whole_set() {
    let state = cluster();
    let epoch = config(&state).epoch;
    let (left, off) = (outsider(&state), members(&state));
    let given_up: BTreeSet<NodeId> = off.iter().map(|n| node(*n)).collect();
    let mut detector = heard(&state, &[left], |report| report.stood = Some(Epoch(epoch.0 - 1)));
    let asked = plan(&detector, &state, &off).expect("it is the one that would go on");
    assert_eq!((&asked.unstood, asked.stood), (&vec![(run(left, 1), node(left))], None));
    let word = |state: &State, command| {
        state.clone().apply(&command).map(|_| ()).map_err(|refusal| refusal.word())
    };
    assert_eq!(word(&state, asked.command(volume(), given_up.clone())), Err("not-stood"));
    let now = Millis(5_100);
    assert!(detector.stands(now, &state, node(left)).is_empty(), "nobody wants it yet");
    detector.ask_to_stand(now, volume(), &asked);
    let orders = detector.stands(now, &state, node(left));
    assert_eq!(
        orders.iter().map(|s| (s.replica, s.epoch)).collect::<Vec<_>>(),
        [(run(left, 1), epoch)]
    );
    assert!(detector.stands(now, &state, node(off[0])).is_empty(), "it is given up");
    assert!(
        detector.stands(Millis(60_000), &state, node(left)).is_empty(),
        "the operator has gone"
    );
    // It did, and is asked no more; the order carries with which tail.
    let reports = vec![ReplicaReport { stood: Some(epoch), ..report(left, 20) }];
    let beat = DetectorEvent::Heartbeat {
        node: node(left),
        process: 1,
        reports,
        returning: BTreeSet::new(),
        low: BTreeSet::new(),
    };
    detector.step(Millis(5_150), &state, beat);
    assert!(detector.stands(Millis(5_150), &state, node(left)).is_empty());
    let ready = plan(&detector, &state, &off).expect("it stood");
    assert_eq!((ready.unstood.len(), ready.stood), (0, state.tail(volume(), replica(left))));
    // Its store failed since, or it restarted: what it said does not hold for the run of now.
    let mut other = state.clone();
    let mut again = registration(left, 1, 2, true);
    again.replicas.values_mut().for_each(|held| held.tail = 1);
    other.apply(&Command::RegisterNode(again)).expect("registers");
    assert_eq!(word(&other, ready.command(volume(), given_up.clone())), Err("not-stood"));
    let mut other = state.clone();
    other.apply(&Command::RegisterNode(registration(left, 2, 1, true))).expect("registers");
    assert_eq!(word(&other, ready.command(volume(), given_up.clone())), Err("stale-incarnation"));
    // The epoch is over: so is the order.
    let mut later = state.clone();
    detector.ask_to_stand(now, volume(), &asked);
    propose(&mut later, epoch, IsrChange::Burn).expect("burns");
    assert!(detector.stands(now, &later, node(left)).is_empty());
    assert_eq!(word(&state, ready.command(volume(), given_up)), Ok(()));
}

/// All that may be chosen stand: one that has not could still get the better log, or be wiped.
#[test]
fn every_replica_that_may_be_chosen_stands() {
    let mut state = quorum();
    let (epoch, isr) = (config(&state).epoch, members(&state));
    assert_eq!(isr.len(), 3);
    let lost = number(config(&state).primary.id);
    let left: Vec<_> = isr.iter().copied().filter(|n| *n != lost).collect();
    // Two of three voters elect one without any loss.
    let both = heard(&state, &left, |report| report.stood = Some(epoch));
    assert_eq!(plan(&both, &state, &[lost]), Err("not-needed"));
    // One of three elects nobody. That it is a voter and answers is no way on.
    let last = left[1];
    let alone = heard(&state, &[last], |report| report.stood = Some(epoch));
    assert_eq!(plan(&alone, &state, &[lost]), Err("still-in-sync"), "the other may come back");
    let gone = [lost, left[0]];
    let ready = plan(&alone, &state, &gone).expect("a minority is left");
    assert_eq!((number(ready.primary.id), ready.lost.len()), (last, 2));
    let given_up: BTreeSet<NodeId> = gone.iter().map(|n| node(*n)).collect();
    let less = BTreeSet::from([node(lost)]);
    let refused = state.clone().apply(&ready.command(volume(), less)).expect_err("a majority");
    assert_eq!(refused.word(), "still-in-sync");
    state.apply(&ready.command(volume(), given_up)).expect("recovers");
    assert_eq!(members(&state), [last]);
    assert_eq!(config(&state).loss_generation, LossGeneration(1));
}

/// A voter that is left was elected in the epoch in force: nobody else speaks in it, and its log is the
/// one that the others have parts of. It need not stand, for it could not go on then.
#[test]
fn the_primary_of_the_epoch_is_apart_already() {
    let mut state = quorum();
    let (isr, primary) = (members(&state), number(config(&state).primary.id));
    let epoch = config(&state).epoch;
    let gone: Vec<_> = isr.iter().copied().filter(|n| *n != primary).collect();
    let acting = heard(&state, &[primary], |report| report.primary_in = Some(epoch));
    let ready = plan(&acting, &state, &gone).expect("it has no majority");
    assert_eq!((number(ready.primary.id), ready.unstood.len()), (primary, 0));
    let given_up: BTreeSet<NodeId> = gone.iter().map(|n| node(*n)).collect();
    state.apply(&ready.command(volume(), given_up)).expect("recovers");
    assert_eq!((config(&state).since, members(&state)), (epoch.next(), vec![primary]));
}

/// Three voters.
fn quorum() -> State {
    let mut state = cluster_of(Durability::SyncQuorum, WriteAck::Durable);
    while let Some(n) = (1..=3).find(|n| !config(&state).isr.contains(&replica(*n))) {
        let join = IsrChange::Join { replica: run(n, 1) };
        let epoch = config(&state).epoch;
        propose(&mut state, epoch, join).expect("joins");
    }
    state
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
        stood: state.tail(volume(), replica(left)),
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
        let beat = DetectorEvent::Heartbeat {
            node: node(*n),
            process: 2,
            reports: vec![],
            returning: BTreeSet::new(),
            low: BTreeSet::new(),
        };
        let decisions = detector.step(Millis(5_000), &state, beat);
        assert!(decisions.is_empty(), "nobody takes over without a loss by itself: {decisions:?}");
    }
    let told = detector.reason(Millis(5_000), &state, &state.volumes()[&volume()]);
    let told = told.expect("it waits");
    assert!(isr.iter().all(|n| told.contains(&node(*n).to_string())), "{told}");
    let plan = plan(&detector, &state, &[]).expect("the wiped ones are no help");
    assert_eq!((number(plan.primary.id), plan.rank.0), (left, Epoch(1)));
}

/// A node registers after a while, whether all its stores are open or not: what it leaves out then may be
/// all that is left of a write.
#[test]
fn a_member_that_is_not_open_yet_is_not_lost() {
    let mut state = cluster();
    let (left, isr) = (outsider(&state), members(&state));
    let mut detector = heard(&state, &[left], |_| ());
    for n in &isr {
        let mut registration = registration(*n, 2, 1, true);
        registration.replicas.clear();
        state.apply(&Command::RegisterNode(registration)).expect("registers");
    }
    let mut told = |n: u128, returning: &[u128]| {
        let beat = DetectorEvent::Heartbeat {
            node: node(n),
            process: 2,
            reports: vec![],
            returning: returning.iter().map(|n| replica(*n)).collect(),
            low: BTreeSet::new(),
        };
        detector.step(Millis(5_000), &state, beat);
        plan(&detector, &state, &[]).map(|plan| number(plan.primary.id))
    };
    assert_eq!(told(isr[0], &[]), Err("not-open-yet"), "the other one has not said anything");
    assert_eq!(told(isr[1], &isr[1..]), Err("not-open-yet"));
    assert_eq!(told(isr[0], &isr[..1]), Err("not-open-yet"));
    assert_eq!(told(isr[1], &[]), Err("not-open-yet"));
    assert_eq!(told(isr[0], &[]), Ok(left), "both have said that they will not open theirs");
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
    let beat = DetectorEvent::Heartbeat {
        node: node(n),
        process: 2,
        reports: vec![],
        returning: BTreeSet::new(),
        low: BTreeSet::new(),
    };
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
