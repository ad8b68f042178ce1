//! Which failovers and proposals the masters take, over all of a bounded grid, against the contract
//! written out.

use std::collections::BTreeSet;

use sbk_engine::authority::{Accepted, Command, State};
use sbk_engine::replication::io::IsrChange;
use sbk_engine::types::{Config, Epoch, Lba, ReplicaId, ReplicaRef};

use super::cases::{cluster, config, propose, registration, replica, run, volume};

/// What the candidate's node registered last.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Last {
    /// The run in which the replica was created.
    First,
    /// A later run, whole.
    Second,
    /// A later run, in the middle of a rebuild.
    Torn,
    /// A later run, without the replica.
    Absent,
}

fn register(state: &mut State, n: u128, last: Last) {
    let mut new = registration(n, 2, 1, last != Last::Absent);
    if let Some(entry) = new.replicas.get_mut(&replica(n)) {
        entry.complete = last != Last::Torn;
    }
    if last != Last::First {
        state.apply(&Command::RegisterNode(new)).expect("registers");
    }
}

/// The subsets of the three replicas.
fn sets() -> impl Iterator<Item = BTreeSet<ReplicaId>> {
    (0..8u32).map(|bits| (1..=3).filter(|n| bits >> (n - 1) & 1 == 1).map(replica).collect())
}

/// Two of three in sync, or all.
fn begin(joined: bool) -> State {
    let mut start = cluster();
    if joined {
        let epoch = config(&start).epoch;
        let outside = (1..=3).find(|n| !config(&start).isr.contains(&replica(*n)));
        let joiner = run(outside.expect("two of three are in sync"), 1);
        propose(&mut start, epoch, IsrChange::Join { replica: joiner }).expect("joins");
    }
    start
}

#[test]
fn a_failover_is_taken_exactly_when_the_contract_allows_it() {
    let (mut cases, mut taken) = (0, 0);
    for joined in [false, true] {
        let start = begin(joined);
        for n in 1..=3 {
            for last in [Last::First, Last::Second, Last::Torn, Last::Absent] {
                let mut before = start.clone();
                register(&mut before, n, last);
                let old = config(&before);
                for process in [1, 2] {
                    for expect in [old.epoch.prev(), old.epoch, old.epoch.next()] {
                        for isr in sets() {
                            let to = run(n, process);
                            // In sync; open and whole in the very run that is named; and a change.
                            let fit = old.isr.contains(&to.id)
                                && matches!((process, last), (1, Last::First) | (2, Last::Second))
                                && to != old.primary;
                            // Nobody comes in by a failover, and it drops members only as far as
                            // two are left.
                            let set = isr.contains(&to.id)
                                && isr.iter().all(|member| old.isr.contains(member))
                                && (isr.len() == old.isr.len() || isr.len() >= 2);
                            let expected = fit && set && expect == old.epoch;
                            let mut after = before.clone();
                            let response = after.apply(&Command::Failover {
                                volume: volume(),
                                expect_epoch: expect,
                                primary: to,
                                isr: isr.clone(),
                                stood: None,
                            });
                            let case = format!("{to:?} {last:?} {expect} {isr:?} of {old:?}");
                            assert_eq!(response.is_ok(), expected, "{case}: {response:?}");
                            cases += 1;
                            if !expected {
                                assert_eq!(after, before, "{case}: refused, but changed");
                                continue;
                            }
                            taken += 1;
                            let new = config(&after);
                            assert_eq!(response, Ok(Accepted::Configured(new.clone())), "{case}");
                            assert_eq!(new.epoch, Epoch(old.epoch.0 + 1), "{case}");
                            assert_eq!((new.primary, new.since), (to, new.epoch), "{case}");
                            assert_eq!(new.isr, isr, "{case}");
                            assert_eq!(new.loss_generation, old.loss_generation, "{case}");
                        }
                    }
                }
            }
        }
    }
    assert_eq!(cases, 2 * 3 * 4 * 2 * 3 * 8);
    assert_eq!(taken, 3 + 15, "of two in sync, and of three");
}

/// What the contract makes of a change that the primary itself proposes in the epoch in force: the
/// set after it and who is primary; `None` if it is refused.
fn proposed(
    old: &Config,
    n: u128,
    last: Last,
    change: &IsrChange,
) -> Option<(BTreeSet<ReplicaId>, ReplicaRef)> {
    let member = old.isr.contains(&replica(n));
    let is_primary = old.primary.id == replica(n);
    // The run that is open now, and whether it was whole when it was registered.
    let open = match last {
        Last::First => Some((run(n, 1), true)),
        Last::Second => Some((run(n, 2), true)),
        Last::Torn => Some((run(n, 2), false)),
        Last::Absent => None,
    };
    // A primary that was opened again since is none any more.
    if is_primary && last != Last::First {
        return None;
    }
    let mut isr = old.isr.clone();
    match change {
        // The very run that the primary counted, and no other; that one is whole, the primary says.
        IsrChange::Join { replica } => {
            isr.insert(replica.id);
            (!member && open.map(|(open, _)| open) == Some(*replica)).then_some((isr, old.primary))
        }
        IsrChange::Leave { replica } => {
            isr.remove(replica);
            (member && !is_primary && isr.len() >= 2).then_some((isr, old.primary))
        }
        IsrChange::Burn => Some((isr, old.primary)),
        // Its heir must be one that a failover could choose.
        IsrChange::HandOver { to } => {
            (member && !is_primary && open == Some((*to, true))).then_some((isr, *to))
        }
        // Only a candidate of a sync_quorum volume declines.
        IsrChange::Yield { .. } => None,
        // Nobody wished for a size, but what is committed is so, wished or not.
        IsrChange::Resized { .. } => Some((isr, old.primary)),
        IsrChange::KeepSize { .. } => None,
    }
}

#[test]
fn a_proposal_is_taken_exactly_when_the_contract_allows_it() {
    let (mut cases, mut taken) = (0, 0);
    let lasts = [Last::First, Last::Second, Last::Torn, Last::Absent];
    for (joined, n, last) in [false, true]
        .into_iter()
        .flat_map(|joined| (1..=3).map(move |n| (joined, n)))
        .flat_map(|(joined, n)| lasts.map(|last| (joined, n, last)))
    {
        let mut before = begin(joined);
        register(&mut before, n, last);
        let old = config(&before);
        let changes = [1, 2].into_iter().flat_map(|process| {
            let it = run(n, process);
            [
                IsrChange::Join { replica: it },
                IsrChange::HandOver { to: it },
                IsrChange::Yield { to: it },
            ]
        });
        let changes = changes.chain([
            IsrChange::Leave { replica: replica(n) },
            IsrChange::Burn,
            IsrChange::Resized { blocks: 1 },
            IsrChange::KeepSize { wished: 1, lba: Lba(2) },
        ]);
        for change in changes {
            for expect in [old.epoch.prev(), old.epoch, old.epoch.next()] {
                for primary in (1..=3).flat_map(|p| [run(p, 1), run(p, 2)]) {
                    let heard = primary == old.primary && expect == old.epoch;
                    let expected = proposed(&old, n, last, &change).filter(|_| heard);
                    let mut after = before.clone();
                    let response = after.apply(&Command::ProposeIsr {
                        volume: volume(),
                        expect_epoch: expect,
                        primary,
                        change: change.clone(),
                    });
                    let case = format!("{primary:?} {change:?} {last:?} {expect} of {old:?}");
                    assert_eq!(response.is_ok(), expected.is_some(), "{case}: {response:?}");
                    cases += 1;
                    let Some((isr, to)) = expected else {
                        assert_eq!(after, before, "{case}: refused, but changed");
                        continue;
                    };
                    taken += 1;
                    let new = config(&after);
                    assert_eq!(new.epoch, Epoch(old.epoch.0 + 1), "{case}");
                    assert_eq!((&new.isr, new.primary), (&isr, to), "{case}");
                    let moved = to != old.primary;
                    assert_eq!(new.since, if moved { new.epoch } else { old.since }, "{case}");
                    assert_eq!(new.handed_over_by, moved.then_some(old.primary), "{case}");
                }
            }
        }
    }
    assert_eq!(cases, 2 * 3 * 4 * 10 * 3 * 6);
    assert_eq!(taken, 23 + 30, "of two in sync, and of three");
}
