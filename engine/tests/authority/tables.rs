//! Which failovers the masters take, over all of a bounded grid, against the contract written out.

use std::collections::BTreeSet;

use sbk_engine::authority::{Accepted, Command, State};
use sbk_engine::replication::io::IsrChange;
use sbk_engine::types::{Epoch, ReplicaId};

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

#[test]
fn a_failover_is_taken_exactly_when_the_contract_allows_it() {
    let (mut cases, mut taken) = (0, 0);
    for joined in [false, true] {
        let mut start = cluster();
        if joined {
            let epoch = config(&start).epoch;
            let outside = (1..=3).find(|n| !config(&start).isr.contains(&replica(*n)));
            let joiner = run(outside.expect("two of three are in sync"), 1);
            propose(&mut start, epoch, IsrChange::Join { replica: joiner }).expect("joins");
        }
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
