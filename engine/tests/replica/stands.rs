//! What a replica does when it is told to stand, and what it answers from then on, in every state that it
//! can be in.

use sbk_engine::replication::io::{Input, Opened, Output, Stood};
use sbk_engine::replication::log::LogState;
use sbk_engine::replication::message::{Incomplete, RecoveryId, ToPrimary, ToReplica};
use sbk_engine::replication::view::RoleView;
use sbk_engine::replication::{IgnoredReason, Verdict};
use sbk_engine::types::{BootId, Epoch, Lsn, Millis, TailId};
use uuid::Uuid;

use crate::bench::{Bench, append, config, entry, opened, table, told};

/// The highest epoch that it promised.
const FENCED: u64 = 2;

/// What the replica is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Is {
    /// It has heard of nobody since it was opened.
    Idle,
    /// It follows the primary of the epoch that it promised; all of its log is synced, or not.
    Follower {
        synced: bool,
    },
    /// It is the primary of that epoch.
    Primary,
    Failed,
    Deleted,
}

const ALL: [Is; 6] = [
    Is::Idle,
    Is::Follower { synced: true },
    Is::Follower { synced: false },
    Is::Primary,
    Is::Failed,
    Is::Deleted,
];

/// The tail of a boot; 1 is that of the bench.
fn tail(boot: u128) -> TailId {
    TailId { boot: BootId(Uuid::from_u128(boot)), count: 0 }
}

fn mark() -> Incomplete {
    let session = RecoveryId { epoch: Epoch(1), number: 3 };
    Incomplete { session, from: Lsn(0), base: Lsn(2), target: Lsn(4) }
}

/// Replica 3 in that state, if it can be in it: `stood` is its word of before, with the tail that it had.
fn at(is: Is, incomplete: bool, stood: Option<(u64, u128)>) -> Option<Bench> {
    let mut opened = opened(3, 4, 4);
    opened.kept.fenced = Epoch(if is == Is::Primary { FENCED - 1 } else { FENCED });
    opened.kept.incomplete = incomplete.then(mark);
    opened.kept.stood = stood.map(|(epoch, boot)| Stood { epoch: Epoch(epoch), tail: tail(boot) });
    let mut bench = Bench::open(opened);
    let applied = match is {
        Is::Idle => true,
        Is::Follower { synced } => {
            let fence = ToReplica::Fence { request: 1, config: config(FENCED, 2, &[2, 3]) };
            let follows = bench.hear(2, FENCED, fence).0 == Verdict::Applied;
            let cut = ToReplica::Cut { request: 2, end: Lsn(4), table: table(&[(1, 1)]) };
            let more = ToReplica::Append(append(5, 4, 4, vec![entry(FENCED, 5)]));
            let mut hears = |message| bench.hear(2, FENCED, message).0 == Verdict::Applied;
            follows && (synced || hears(cut) && hears(more))
        }
        Is::Primary => bench.feed(Input::Assignment(config(FENCED, 3, &[3]))).0 == Verdict::Applied,
        Is::Failed => {
            bench.feed(Input::StoreFailed { cause: "a test".to_owned() }).0 == Verdict::Applied
        }
        Is::Deleted => bench.feed(Input::Deleted).0 == Verdict::Applied,
    };
    applied.then_some(bench)
}

/// The word that goes to the disk.
fn persisted(outputs: &[Output]) -> Option<Stood> {
    outputs.iter().find_map(|output| match output {
        Output::Persist(kept) => kept.stood,
        _ => None,
    })
}

#[test]
fn a_replica_stands_for_the_end_of_an_epoch_as_the_table_says() {
    let words = [(1, 1), (2, 1), (3, 1), (2, 2), (3, 2)];
    let words = std::iter::once(None).chain(words.map(Some));
    let (mut cases, mut stand) = (0, 0);
    for stood in words {
        for is in ALL {
            for incomplete in [false, true] {
                for asked in 0..=4 {
                    let Some(mut bench) = at(is, incomplete, stood) else { continue };
                    // Its word binds it as long as it has the tail that it had.
                    let bound = stood.filter(|(_, boot)| *boot == 1).map_or(0, |(epoch, _)| epoch);
                    let expected = match is {
                        Is::Failed | Is::Deleted => Verdict::Ignored(IgnoredReason::Stopped),
                        // It promised a later one: that epoch has ended, here.
                        _ if asked < FENCED => Verdict::Ignored(IgnoredReason::StaleEpoch),
                        // Nobody else speaks in its epoch, nor in one before.
                        Is::Primary if asked == FENCED => {
                            Verdict::Ignored(IgnoredReason::StaleEpoch)
                        }
                        _ if asked <= bound => Verdict::Ignored(IgnoredReason::LateCopy),
                        // It is nothing to go on with.
                        _ if incomplete => Verdict::Ignored(IgnoredReason::Incomplete),
                        Is::Idle | Is::Follower { .. } | Is::Primary => Verdict::Applied,
                    };
                    let before = bench.replica.clone();
                    let (found, outputs) = bench.feed(Input::Stand { epoch: Epoch(asked) });
                    let case = format!("{is:?}, torn {incomplete}, {stood:?}, asked {asked}");
                    assert_eq!(found, expected, "{case}");
                    cases += 1;
                    if found != Verdict::Applied {
                        assert!(outputs.is_empty() && bench.replica == before, "{case}");
                        continue;
                    }
                    stand += 1;
                    let word = Stood { epoch: Epoch(asked), tail: tail(1) };
                    assert_eq!(persisted(&outputs), Some(word), "{case}");
                    assert_eq!(told(&outputs), [], "{case}");
                    let view = bench.replica.view(Millis(bench.now));
                    assert_eq!(view.role, RoleView::Idle, "{case}");
                    // It is told once its log is synced.
                    let synced = is != Is::Follower { synced: false };
                    assert_eq!(view.stood, synced.then_some(Epoch(asked)), "{case}");
                    assert_eq!(view.end, Lsn(if synced { 4 } else { 5 }), "it keeps its log");
                }
            }
        }
    }
    assert_eq!((cases, stand), (260, 47));
}

/// All that a primary says.
fn messages(epoch: u64) -> [ToReplica; 7] {
    let session = RecoveryId { epoch: Epoch(epoch), number: 8 };
    let mark = Incomplete { session, from: Lsn(0), base: Lsn(9), target: Lsn(9) };
    let mut more = append(5, 4, 4, vec![entry(epoch, 5)]);
    more.stamp = Some(Millis(900));
    let (table, state) = (table(&[(1, 1)]), LogState::new(16));
    [
        ToReplica::Probe { request: 9 },
        ToReplica::Fence { request: 9, config: config(epoch, 2, &[2, 3]) },
        ToReplica::Cut { request: 9, end: Lsn(4), table: table.clone() },
        ToReplica::Fetch { request: 9, prev: Lsn(3), last: Lsn(4) },
        ToReplica::Append(more),
        ToReplica::BeginRebuild { request: 9, mark, table, state },
        ToReplica::Close { session, through: Lsn(4), committed: Lsn(4) },
    ]
}

/// In which run it is spoken to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Run {
    /// The one that stood.
    Same,
    /// The next one, whose tail is the same.
    Next,
    /// The next one, which lost its tail.
    Lost,
}

#[test]
fn a_replica_that_stood_answers_each_message_as_the_table_says() {
    let mut cases = 0;
    for stood in [2, 3] {
        for run in [Run::Same, Run::Next, Run::Lost] {
            for epoch in 1..=4 {
                for message in messages(epoch) {
                    let mut bench =
                        at(Is::Follower { synced: true }, false, None).expect("it follows");
                    let (_, outputs) = bench.feed(Input::Stand { epoch: Epoch(stood) });
                    if run != Run::Same {
                        let kept = outputs.iter().find_map(|output| match output {
                            Output::Persist(kept) => Some(kept.clone()),
                            _ => None,
                        });
                        let kept = kept.expect("it is durable before it is told");
                        let tail = tail(if run == Run::Lost { 2 } else { 1 });
                        bench = Bench::open(Opened { kept, tail, ..opened(3, 4, 4) });
                    }
                    let bound = if run == Run::Lost { 0 } else { stood };
                    let (probed, fenced) = (
                        matches!(message, ToReplica::Probe { .. }),
                        matches!(message, ToReplica::Fence { .. }),
                    );
                    let expected = match epoch {
                        _ if FENCED <= epoch && epoch <= bound => {
                            Verdict::Ignored(IgnoredReason::Stood)
                        }
                        _ if probed => Verdict::Applied,
                        _ if epoch < FENCED => Verdict::Ignored(IgnoredReason::StaleEpoch),
                        _ if fenced => Verdict::Applied,
                        // It follows nobody until somebody has it promise.
                        _ => Verdict::Ignored(IgnoredReason::NotReconciled),
                    };
                    let before = bench.replica.clone();
                    let (found, outputs) = bench.hear(2, epoch, message.clone());
                    let case = format!("stood {stood}, {run:?}, epoch {epoch}: {message:?}");
                    assert_eq!(found, expected, "{case}");
                    cases += 1;
                    let answers = told(&outputs);
                    if found == Verdict::Applied {
                        let answered = match answers.as_slice() {
                            [ToPrimary::Alive { request: 9 }] => probed,
                            [ToPrimary::Facts { request: 9, facts }] => {
                                fenced && facts.durable == Lsn(4)
                            }
                            _ => false,
                        };
                        assert!(answered, "{case}: {answers:?}");
                        continue;
                    }
                    // It says why, and does nothing.
                    let known =
                        (run == Run::Same && epoch < FENCED).then(|| config(FENCED, 2, &[2, 3]));
                    let refused = ToPrimary::Refused {
                        fenced: Epoch(FENCED),
                        config: known,
                        stood: Epoch(bound),
                    };
                    assert_eq!(answers, [refused], "{case}");
                    assert!(outputs.len() == 1 && bench.replica == before, "{case}: {outputs:?}");
                }
            }
        }
    }
    assert_eq!(cases, 2 * 3 * 4 * 7);
}

/// A rule that is taken out is noticed.
#[cfg(feature = "bugs")]
#[test]
fn the_tables_of_standing_bite() {
    use sbk_engine::bugs::Bug;

    use crate::bench::bites;

    bites(Bug::ForgetStood, a_replica_stands_for_the_end_of_an_epoch_as_the_table_says);
    bites(Bug::ForgetStood, a_replica_that_stood_answers_each_message_as_the_table_says);
    bites(Bug::TakeOlderEpoch, a_replica_that_stood_answers_each_message_as_the_table_says);
}
