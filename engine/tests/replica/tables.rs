//! What is committed, and what becomes of a replica that returns, over all of a bounded grid, against
//! the contract written out.

use sbk_engine::replication::io::{Input, Output};
use sbk_engine::replication::message::{Incomplete, RecoveryId, ToPrimary, ToReplica};
use sbk_engine::replication::room::SpaceTold;
use sbk_engine::types::{Config, Durability, Epoch, LossGeneration, Lsn, Millis};

use crate::bench::{Bench, config, facts, opened, replica, sent, table};

/// The epoch of the primary, whose log ends at 6 and is known to be committed up to 4.
const EPOCH: u64 = 3;
const COMMITTED: u64 = 4;
const END: u64 = 6;

/// What another replica has acknowledged: so much, with this as the newest epoch in its table.
type Said = Option<(u64, Option<u64>)>;

fn all_said() -> Vec<Said> {
    let acks = (COMMITTED..=END)
        .flat_map(|durable| [None, Some(1), Some(EPOCH)].map(|recorded| Some((durable, recorded))));
    std::iter::once(None).chain(acks).collect()
}

fn cut(outputs: &[Output], to: u128) -> Option<u64> {
    sent(outputs, to).iter().find_map(|message| match message {
        ToReplica::Cut { request, .. } => Some(*request),
        _ => None,
    })
}

/// What replica 1 takes for committed, as the primary of `config`, when 2 and 3 have said that.
fn committed(config: Config, said: [(u128, Said); 2]) -> u64 {
    let mut bench = Bench::open(opened(1, COMMITTED, END));
    // Whatever an earlier run promised is over.
    bench.now += 2_000;
    let (_, probed) = bench.feed(Input::Assignment(config));
    let mut outputs = Vec::new();
    let there = said.iter().filter_map(|(n, said)| Some((*n, (*said)?)));
    for (n, (durable, _)) in there.clone() {
        outputs.extend(bench.meet(n, EPOCH, &probed, facts(table(&[(1, 1)]), 4, durable)));
    }
    for (n, (durable, _)) in there.clone() {
        // A candidate without a majority asks nobody to do anything.
        let Some(request) = cut(&outputs, n) else { continue };
        bench.answer(n, EPOCH, ToPrimary::CutDone { request, durable: Lsn(durable) });
    }
    for (n, (durable, recorded)) in there {
        let recorded = recorded.map(Epoch);
        let ack = ToPrimary::Ack {
            durable: Lsn(durable),
            written: Lsn(durable),
            recorded,
            promised: None,
            space: SpaceTold::default(),
        };
        bench.answer(n, EPOCH, ack);
    }
    bench.replica.view(Millis(bench.now)).committed.0
}

#[test]
fn what_is_committed_is_what_the_mode_says_for_every_set_and_every_acknowledgement() {
    let modes = [
        (Durability::SyncAll, 1),
        (Durability::SyncAll, 2),
        (Durability::SyncAll, 3),
        (Durability::SyncQuorum, 2),
        (Durability::BestEffort, 1),
    ];
    let (mut cases, mut moved) = (0, 0);
    for (durability, min_in_sync) in modes {
        for set in [&[1][..], &[1, 2], &[1, 3], &[1, 2, 3]] {
            for two in all_said() {
                for three in all_said() {
                    let said = [(2, two), (3, three)];
                    // It holds an LSN in this epoch only by a log that knows of this epoch.
                    let holders = |lsn: u64| {
                        let others = said.iter().filter(|(n, said)| {
                            let holds = said.is_some_and(|(durable, recorded)| {
                                durable >= lsn && recorded == Some(EPOCH)
                            });
                            set.contains(n) && holds
                        });
                        1 + others.count()
                    };
                    let enough = |lsn: u64| match durability {
                        Durability::SyncQuorum => 2 * holders(lsn) > set.len(),
                        Durability::SyncAll => {
                            holders(lsn) == set.len() && set.len() >= min_in_sync
                        }
                        Durability::BestEffort => holders(lsn) == set.len(),
                    };
                    let expected =
                        (COMMITTED..=END).rev().find(|lsn| enough(*lsn)).unwrap_or(COMMITTED);
                    let config = Config {
                        durability,
                        min_in_sync: min_in_sync as u32,
                        ..config(EPOCH, 1, set)
                    };
                    assert!(config.isr.contains(&replica(1).id));
                    let found = committed(config, said);
                    let case = format!("{durability:?}, least {min_in_sync}, {set:?}: {said:?}");
                    assert_eq!(found, expected, "{case}");
                    cases += 1;
                    moved += u64::from(found > COMMITTED);
                }
            }
        }
    }
    assert_eq!(cases, 5 * 4 * 10 * 10);
    assert!(moved > 300 && moved < cases, "{moved} of {cases} commit something");
}

/// What an early acknowledgement would do: the table above is one that a broken rule fails.
#[cfg(feature = "bugs")]
#[test]
fn an_acknowledgement_in_an_older_epoch_is_noticed_if_it_counts() {
    use sbk_engine::bugs::{Bug, put_back};

    for durability in [Durability::SyncAll, Durability::SyncQuorum, Durability::BestEffort] {
        let config = Config { durability, ..config(EPOCH, 1, &[1, 2, 3]) };
        let said = Some((END, Some(1)));
        assert_eq!(committed(config.clone(), [(2, said), (3, said)]), COMMITTED);
        let _back = put_back(Bug::AcksBeforeRecorded);
        assert_eq!(committed(config, [(2, said), (3, said)]), END, "{durability:?}");
    }
}

/// What becomes of a replica that returns.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    /// A base lane: what it held when a delta broke, or 0.
    Based(u64),
    CutTo(u64),
    /// Two logs that both count as committed differ, and no loss explains it.
    Untouched,
}

#[test]
fn what_becomes_of_a_returning_replica_follows_from_its_mark_its_loss_and_its_log() {
    // The primary's log: 1 to 4 of epoch 1, 5 to 8 of epoch 2, all committed; one loss was traced.
    const LAST: u64 = 8;
    let mine = |lsn: u64| if lsn < 5 { 1 } else { 2 };
    let mark = |from| Incomplete {
        session: RecoveryId { epoch: Epoch(2), number: 1 },
        from: Lsn(from),
        base: Lsn(5),
        target: Lsn(6),
    };
    let tables: [&[(u64, u64)]; 3] = [&[], &[(1, 1)], &[(1, 1), (2, 5)]];
    let (mut cases, mut fates) = (0, [0; 3]);
    for incomplete in [None, Some(mark(0)), Some(mark(3))] {
        for loss in [0, 1] {
            for pairs in tables {
                // A start that is recorded has the whole log below it.
                let least = pairs.last().map_or(0, |(_, first)| first - 1);
                for durable in least..=10 {
                    for known in 0..=durable {
                        let theirs = |lsn: u64| {
                            let of = pairs.iter().rev().find(|(_, first)| *first <= lsn);
                            of.map(|(epoch, _)| *epoch)
                        };
                        // How far they agree, entry by entry; nothing tells, without an epoch.
                        let same = |lsn: &u64| theirs(*lsn) == Some(mine(*lsn));
                        let both = LAST.min(durable);
                        let agreed = (!pairs.is_empty())
                            .then(|| (1..=both).take_while(same).last().unwrap_or(0));
                        let lost = loss == 0 && agreed.is_none_or(|agreed| agreed < known);
                        let kept = agreed.unwrap_or(known.min(LAST));
                        // An LSN of before the loss may be another entry's since.
                        let from = incomplete.map_or(0, |mark| mark.from.0 * loss);
                        let expected = if incomplete.is_some() || lost {
                            Fate::Based(from)
                        } else if kept < known {
                            Fate::Untouched
                        } else {
                            Fate::CutTo(kept)
                        };
                        let mut mine = opened(1, LAST, LAST);
                        mine.kept.table = table(&[(1, 1), (2, 5)]);
                        mine.kept.fenced = Epoch(2);
                        let mut bench = Bench::open(mine);
                        let loss_generation = LossGeneration(1);
                        let config = Config { loss_generation, ..config(EPOCH, 1, &[1]) };
                        let (_, probed) = bench.feed(Input::Assignment(config));
                        let mut told = facts(table(pairs), known, durable);
                        told.incomplete = incomplete;
                        told.loss_generation = LossGeneration(loss);
                        let outputs = bench.meet(2, EPOCH, &probed, told);
                        let found =
                            sent(&outputs, 2).into_iter().find_map(|message| match message {
                                ToReplica::BeginRebuild { mark, .. } => {
                                    Some(Fate::Based(mark.from.0))
                                }
                                ToReplica::Cut { end, .. } => Some(Fate::CutTo(end.0)),
                                _ => None,
                            });
                        let found = found.unwrap_or(Fate::Untouched);
                        let case = format!(
                            "{incomplete:?}, loss {loss}, {pairs:?} up to {durable}, {known} known"
                        );
                        assert_eq!(found, expected, "{case}");
                        cases += 1;
                        fates[match found {
                            Fate::Based(_) => 0,
                            Fate::CutTo(_) => 1,
                            Fate::Untouched => 2,
                        }] += 1;
                    }
                }
            }
        }
    }
    assert_eq!(cases, 3 * 2 * (66 + 66 + 56));
    assert!(fates.iter().all(|count| *count > 20), "{fates:?}");
}

/// A rule that is taken out is noticed.
#[cfg(feature = "bugs")]
#[test]
fn the_table_of_returns_bites() {
    let returns = what_becomes_of_a_returning_replica_follows_from_its_mark_its_loss_and_its_log;
    crate::bench::bites(sbk_engine::bugs::Bug::DeltaAcrossLoss, returns);
}
