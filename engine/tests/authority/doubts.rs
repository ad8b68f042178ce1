//! Replicas whose log may have lost its end: who takes over, and when.

use std::collections::BTreeSet;

use sbk_engine::authority::detector::{Decision, Detector, DetectorEvent, DetectorParams};
use sbk_engine::authority::{Command, Durability, State};
use sbk_engine::types::{LossGeneration, Lsn, Millis};

use super::cases::{
    all_in_sync, config, listening, node, number, registration, replica, report, run, volume,
};

const GRACE: u64 = 60_000;

/// The node's second process registers its replica, in doubt or not.
fn again(state: &mut State, n: u128, doubtful: bool) {
    let mut again = registration(n, 2, 1, true);
    again.replicas.get_mut(&replica(n)).expect("it holds one").doubtful = doubtful;
    state.apply(&Command::RegisterNode(again)).expect("registers");
}

/// The second process tells of a log that ends at `durable`.
fn beat(detector: &mut Detector, at: u64, state: &State, n: u128, durable: u64) -> Vec<Decision> {
    let mut report = report(n, durable);
    report.replica = run(n, 2);
    let heartbeat = DetectorEvent::Heartbeat {
        node: node(n),
        process: 2,
        reports: vec![report],
        returning: BTreeSet::new(),
        low: BTreeSet::new(),
    };
    detector.step(Millis(at), state, heartbeat)
}

fn others(primary: u128) -> Vec<u128> {
    (1..=3).filter(|n| *n != primary).collect()
}

#[test]
fn another_member_goes_before_an_old_primary_that_is_in_doubt() {
    for doubtful in [false, true] {
        let mut state = all_in_sync(Durability::SyncAll);
        let primary = number(config(&state).primary.id);
        let mut detector = listening(&state, 100);
        again(&mut state, primary, doubtful);
        // It told of the longer log: what its end lost may have been longer still.
        let decision = beat(&mut detector, 200, &state, primary, 100).remove(0);
        assert_eq!(number(decision.primary.id) == primary, !doubtful);
        assert_eq!(decision.missing, None);
        state.apply(&decision.command()).expect("the masters take it");
    }
}

/// In `best_effort` what the old primary acknowledged nobody else need have: if its log may have lost its end,
/// going on with it is a loss, unless nobody was in sync beside it.
#[test]
fn in_best_effort_an_old_primary_in_doubt_goes_on_with_a_loss() {
    for doubtful in [false, true] {
        let mut state = all_in_sync(Durability::BestEffort);
        let primary = number(config(&state).primary.id);
        let mut detector = listening(&state, 100);
        again(&mut state, primary, doubtful);
        let decision = beat(&mut detector, 200, &state, primary, 100).remove(0);
        assert_eq!(number(decision.primary.id), primary, "its log is the longest");
        assert_eq!(decision.isr.len(), if doubtful { 1 } else { 3 });
        state.apply(&decision.command()).expect("the masters take it");
        assert_eq!(config(&state).loss_generation, LossGeneration(doubtful.into()));
    }
}

/// All lost power, and each end is torn or rotten. The best of them goes on once nobody else may come.
#[test]
fn of_members_that_are_all_in_doubt_the_best_log_goes_on() {
    let mut state = all_in_sync(Durability::SyncAll);
    let primary = number(config(&state).primary.id);
    let [second, third] = others(primary)[..] else { panic!("three nodes") };
    let mut detector = Detector::new(DetectorParams::default());
    detector.step(Millis(0), &state, DetectorEvent::Elected);
    again(&mut state, primary, true);
    assert!(beat(&mut detector, 1_000, &state, primary, 20).is_empty(), "others may come");
    again(&mut state, second, true);
    assert!(beat(&mut detector, 1_500, &state, second, 21).is_empty(), "one more may");
    let mut now = 1_500;
    // The third's node was not heard since the election: it is suspected after ten seconds.
    let decision = loop {
        now += 500;
        let mut decisions = beat(&mut detector, now, &state, primary, 20);
        decisions.extend(beat(&mut detector, now, &state, second, 21));
        if let Some(decision) = decisions.pop() {
            break decision;
        }
        assert!(now < 11_000, "for nobody is waited for longer than it is not suspected");
    };
    assert_eq!((number(decision.primary.id), &decision.missing), (second, &None));
    assert!(now >= 10_000, "{now}");
    // Had the third come in time, and been sure of its end, it would have been the one.
    again(&mut state, third, false);
    let decision = beat(&mut detector, now + 5_000, &state, third, 5).remove(0);
    assert_eq!(number(decision.primary.id), third);
    state.apply(&decision.command()).expect("the masters take it");
    assert_eq!(config(&state).loss_generation, LossGeneration(0));
}

/// Alone it waits and says for whom. After the grace it goes on, and clients hear of it.
#[test]
fn one_in_doubt_that_stays_alone_goes_on_as_a_lossy_promotion() {
    let mut state = all_in_sync(Durability::SyncAll);
    let before = config(&state);
    let primary = number(before.primary.id);
    let mut detector = Detector::new(DetectorParams::default());
    detector.step(Millis(0), &state, DetectorEvent::Elected);
    again(&mut state, primary, true);
    let mut now = 1_000;
    let decision = loop {
        if let Some(decision) = beat(&mut detector, now, &state, primary, 20).pop() {
            break decision;
        }
        let listed = state.volumes().get(&volume()).expect("the volume");
        let why = detector.reason(Millis(now), &state, listed).expect("it does not serve");
        assert!(why.contains("can't be read") && why.contains("ms for"), "{why}");
        assert!(others(primary).iter().all(|n| why.contains(&node(*n).to_string())), "{why}");
        now += 500;
    };
    assert!(now >= 1_000 + GRACE, "{now}");
    assert_eq!(decision.missing, Some(others(primary).into_iter().map(replica).collect()));
    let mut lossy = state.clone();
    lossy.apply(&decision.command()).expect("the masters take it");
    let after = config(&lossy);
    assert_eq!(after.isr, BTreeSet::from([replica(primary)]));
    assert_eq!(after.loss_generation, LossGeneration(1));
    // Had one that is sure of its end come meanwhile, it would have been refused.
    again(&mut state, others(primary)[0], false);
    let mut late = decision.clone();
    late.missing.as_mut().expect("lossy").remove(&replica(others(primary)[0]));
    let refused = state.apply(&late.command()).expect_err("one is sure of its end");
    assert_eq!(refused.word(), "still-in-sync");
}

/// Nobody but an operator takes members for lost that may come, and he may at once.
#[test]
fn an_operator_may_go_on_with_a_member_in_doubt_and_not_beside_a_sure_one() {
    for sure in [false, true] {
        let mut state = all_in_sync(Durability::SyncAll);
        let primary = number(config(&state).primary.id);
        let [second, third] = others(primary)[..] else { panic!("three nodes") };
        let mut detector = Detector::new(DetectorParams::default());
        detector.step(Millis(0), &state, DetectorEvent::Elected);
        again(&mut state, primary, true);
        let now = 20_000;
        beat(&mut detector, now, &state, primary, 20);
        let mut given_up = BTreeSet::from([node(third)]);
        if sure {
            again(&mut state, second, false);
            beat(&mut detector, now, &state, second, 20);
        } else {
            given_up.insert(node(second));
        }
        let listed = state.volumes().get(&volume()).expect("the volume");
        let plan = detector.plan_recovery(Millis(now), &state, listed, &given_up);
        match plan {
            Ok(plan) => {
                assert!(!sure);
                assert_eq!((plan.primary, plan.rank.1), (run(primary, 2), Lsn(20)));
            }
            Err(refusal) => assert_eq!((sure, refusal.word()), (true, "not-needed")),
        }
    }
}
