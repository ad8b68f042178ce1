//! Whom the failure detector chooses, over all of a bounded grid, against the contract written out.

use std::collections::BTreeSet;

use sbk_engine::authority::detector::{Decision, Detector, DetectorEvent, DetectorParams};
use sbk_engine::authority::{Command, Durability, State, WriteAck};
use sbk_engine::replication::io::IsrChange;
use sbk_engine::types::{Epoch, Lsn, Millis, ReplicaId};

use super::cases::{
    cluster_of, config, node, number, propose, registration, replica, report, run, volume,
};

/// Why the primary has to go.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Primary {
    /// Its process was killed.
    Dead,
    /// It was killed, and is back in another run, whole.
    Back,
    /// Its node says that it holds no image.
    Torn,
}

/// What another replica's node registered last.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Holds {
    Whole,
    Torn,
    Nothing,
}

/// Another replica.
#[derive(Clone, Copy, Debug)]
struct Other {
    n: u128,
    in_sync: bool,
    heard: bool,
    holds: Holds,
    /// Epoch and LSN of its last report.
    log: (u64, u64),
}

fn others(n: u128, log: (u64, u64)) -> Vec<Other> {
    let mut all = Vec::new();
    for in_sync in [false, true] {
        for heard in [false, true] {
            for holds in [Holds::Whole, Holds::Torn, Holds::Nothing] {
                all.push(Other { n, in_sync, heard, holds, log });
            }
        }
    }
    all
}

/// The in-sync set is made what is wanted; `None` if the mode does not allow it.
fn with_set(mut state: State, others: &[Other]) -> Option<State> {
    // Who joins does so first: below the least nobody leaves.
    let (join, leave): (Vec<&Other>, Vec<&Other>) = others.iter().partition(|other| other.in_sync);
    for other in join.into_iter().chain(leave) {
        let listed = config(&state).isr.contains(&replica(other.n));
        let change = match (listed, other.in_sync) {
            (false, true) => IsrChange::Join { replica: run(other.n, 1) },
            (true, false) => IsrChange::Leave { replica: replica(other.n) },
            (true, true) | (false, false) => continue,
        };
        let epoch = config(&state).epoch;
        propose(&mut state, epoch, change).ok()?;
    }
    Some(state)
}

fn decided(mut state: State, primary: Primary, others: &[Other]) -> Vec<Decision> {
    let p = number(config(&state).primary.id);
    for other in others {
        let mut new = registration(other.n, 1, 2, other.holds != Holds::Nothing);
        new.replicas.values_mut().for_each(|entry| entry.complete = other.holds == Holds::Whole);
        state.apply(&Command::RegisterNode(new)).expect("registers");
    }
    let mut detector = Detector::new(DetectorParams::default());
    let mut step =
        |at: u64, state: &State, event: DetectorEvent| detector.step(Millis(at), state, event);
    assert!(step(0, &state, DetectorEvent::Elected).is_empty());
    let heartbeat = |n: u128, log: (u64, u64)| {
        let mut report = report(n, log.1);
        report.table_epoch = Epoch(log.0);
        report.durable = Lsn(log.1);
        DetectorEvent::Heartbeat {
            node: node(n),
            process: 1,
            reports: vec![report],
            returning: BTreeSet::new(),
            low: BTreeSet::new(),
        }
    };
    for at in [100, 2_150] {
        assert!(step(at, &state, heartbeat(p, (5, 50))).is_empty());
        for other in others.iter().filter(|other| at == 100 || other.heard) {
            assert!(step(at, &state, heartbeat(other.n, other.log)).is_empty());
        }
    }
    let killed = DetectorEvent::Killed { node: node(p), process: 1 };
    match primary {
        Primary::Dead => step(2_200, &state, killed),
        Primary::Back => {
            let register = Command::RegisterNode(registration(p, 2, 1, true));
            state.apply(&register).expect("registers");
            let back = DetectorEvent::Heartbeat {
                node: node(p),
                process: 2,
                reports: vec![],
                returning: BTreeSet::new(),
                low: BTreeSet::new(),
            };
            step(2_200, &state, back)
        }
        Primary::Torn => {
            let mut torn = registration(p, 1, 2, true);
            torn.replicas.values_mut().for_each(|entry| entry.complete = false);
            state.apply(&Command::RegisterNode(torn)).expect("registers");
            step(2_200, &state, DetectorEvent::Tick)
        }
    }
}

/// The chosen one and the set, by the contract: of the in-sync members that answer and are whole, the
/// old primary's own replica, else the best log; the set loses who does not answer, as far as the
/// least is left; the voters of a quorum stay; where a loss may be, the chosen one is alone.
fn expected(
    durability: Durability,
    least: usize,
    p: u128,
    primary: Primary,
    others: &[Other],
) -> Option<(u128, BTreeSet<ReplicaId>)> {
    let own = primary == Primary::Back;
    let usable = |o: &&Other| o.in_sync && o.heard && o.holds == Holds::Whole;
    let mut best: Vec<_> = others.iter().filter(usable).map(|o| (o.log, o.n)).collect();
    // The best log; of equal ones the lower name.
    best.sort_by_key(|(log, n)| (std::cmp::Reverse(*log), *n));
    let chosen = if own { p } else { best.first()?.1 };
    if durability == Durability::BestEffort && !own {
        return Some((chosen, BTreeSet::from([replica(chosen)])));
    }
    let listed = others.iter().filter(|o| o.in_sync);
    let mut all: BTreeSet<_> = listed.clone().map(|o| replica(o.n)).collect();
    all.insert(replica(p));
    let mut left: BTreeSet<_> = listed.filter(|o| o.heard).map(|o| replica(o.n)).collect();
    if primary != Primary::Dead {
        left.insert(replica(p));
    }
    let keeps = durability == Durability::SyncQuorum || left.len() < least;
    Some((chosen, if keeps { all } else { left }))
}

#[test]
fn the_detector_chooses_whom_the_contract_names_and_nobody_else() {
    let (mut cases, mut chosen) = (0, 0);
    for durability in [Durability::SyncAll, Durability::SyncQuorum, Durability::BestEffort] {
        let start = cluster_of(durability, WriteAck::Durable);
        let p = number(config(&start).primary.id);
        let least = config(&start).min_in_sync as usize;
        let names: Vec<u128> = (1..=3).filter(|n| *n != p).collect();
        // The second one's log: the same, longer, and shorter but of a newer epoch.
        for second in [(1, 10), (1, 11), (2, 9)] {
            for a in others(names[0], (1, 10)) {
                for b in others(names[1], second) {
                    let Some(state) = with_set(start.clone(), &[a, b]) else { continue };
                    let epoch = config(&state).epoch;
                    for primary in [Primary::Dead, Primary::Back, Primary::Torn] {
                        let found = decided(state.clone(), primary, &[a, b]);
                        let case = format!("{durability:?}: {primary:?}, {a:?}, {b:?}");
                        assert!(found.len() <= 1, "{case}: {found:?}");
                        let told = found.first().map(|decision| {
                            assert_eq!(decision.expect_epoch, epoch, "{case}");
                            assert_eq!(decision.volume, volume(), "{case}");
                            (number(decision.primary.id), decision.isr.clone())
                        });
                        let expected = expected(durability, least, p, primary, &[a, b]);
                        assert_eq!(told, expected, "{case}");
                        cases += 1;
                        chosen += u64::from(told.is_some());
                        // And what it asks for is what the masters take.
                        if let Some(Decision { expect_epoch, primary: to, isr, .. }) = found.first()
                            && primary == Primary::Torn
                        {
                            let mut after = state.clone();
                            let (expect_epoch, isr) = (*expect_epoch, isr.clone());
                            let command = Command::Failover {
                                volume: volume(),
                                expect_epoch,
                                primary: *to,
                                isr,
                                stood: None,
                            };
                            after.apply(&command).expect("the contract allows it");
                        }
                    }
                }
            }
        }
    }
    // A least of two is not to be had with one: a quarter of the sets of two modes.
    assert_eq!(cases, 3 * 3 * (3 * 144) - 2 * 3 * (3 * 36));
    assert_eq!(chosen, 1494, "somebody could take over");
}
