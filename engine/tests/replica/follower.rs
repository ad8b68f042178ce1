//! A follower, and messages that come late.

use sbk_engine::replication::io::{Input, Opened, Output};
use sbk_engine::replication::log::LogState;
use sbk_engine::replication::message::{Incomplete, RecoveryId, ToPrimary, ToReplica};
use sbk_engine::replication::{IgnoredReason, Verdict};
use sbk_engine::types::{Epoch, Lsn};

use crate::bench::{Bench, append, config, entry, opened, table, told};

fn wiped(outputs: &[Output]) -> bool {
    outputs.iter().any(|output| matches!(output, Output::Wipe { .. }))
}

/// Replica 3, not in sync, promised epoch 2 to primary 1 by question 1.
fn follower() -> Bench {
    let mut bench = Bench::open(opened(3, 0, 0));
    let fence = ToReplica::Fence { request: 1, config: config(2, 1, &[1, 2]) };
    let (verdict, _) = bench.hear(1, 2, fence);
    assert_eq!(verdict, Verdict::Applied);
    bench
}

/// The base lane brings blocks as they are committed, and the word of that may still be on another lane when it
/// closes. A loss that takes these entries has the replica cut, or rebuilt if it knows that they were committed.
#[test]
fn a_rebuilt_replica_knows_its_blocks_to_be_committed() {
    let mut bench = follower();
    assert!(wiped(&bench.hear(1, 2, begin(3)).1));
    let logged = (6..=9).map(|lsn| entry(2, lsn)).collect();
    bench.hear(1, 2, ToReplica::Append(append(6, 5, 5, logged)));
    let generation = bench.replica.generation();
    bench.feed(Input::Durable { generation, lsn: Lsn(9) });
    let session = RecoveryId { epoch: Epoch(2), number: 1 };
    let close = ToReplica::Close { session, through: Lsn(8), committed: Lsn(8) };
    let (_, outputs) = bench.hear(1, 2, close);
    let at = |wanted: fn(&Output) -> bool| outputs.iter().position(wanted);
    let committed = at(|output| matches!(output, Output::Committed(Lsn(8)))).expect("told");
    let finished = at(|output| matches!(output, Output::FinishRebuild { .. })).expect("closed");
    assert!(committed < finished, "what is written at the close says so: {outputs:?}");
}

fn begin(request: u64) -> ToReplica {
    begin_session(request, 1)
}

fn begin_session(request: u64, number: u64) -> ToReplica {
    let session = RecoveryId { epoch: Epoch(2), number };
    let mark = Incomplete { session, from: Lsn(0), base: Lsn(5), target: Lsn(6) };
    ToReplica::BeginRebuild { request, mark, table: table(&[(1, 1)]), state: LogState::new(16) }
}

/// A rebuild begins by question 3, which is repeated as question 4; it ends well, and the replica
/// joins. Then the repetition arrives, or a copy of the question, or of an earlier one: the replica is
/// in sync, and if it were wiped, its copy of acknowledged writes would be nowhere.
#[test]
fn a_late_order_to_begin_a_rebuild_wipes_nothing() {
    let mut bench = follower();
    assert!(wiped(&bench.hear(1, 2, begin(3)).1));
    let feed = append(6, 5, 5, vec![entry(2, 6)]);
    bench.hear(1, 2, ToReplica::Append(feed));
    let session = RecoveryId { epoch: Epoch(2), number: 1 };
    bench.hear(1, 2, ToReplica::Close { session, through: Lsn(6), committed: Lsn(5) });
    let generation = bench.replica.generation();
    let (_, outputs) = bench.feed(Input::Durable { generation, lsn: Lsn(6) });
    assert!(
        told(&outputs).contains(&ToPrimary::Closed { session, achieved: Lsn(6) }),
        "the session ends: {outputs:?}"
    );
    for late in [2, 3, 4] {
        let (verdict, outputs) = bench.hear(1, 2, begin(late));
        assert_eq!(verdict, Verdict::Ignored(IgnoredReason::LateCopy), "question {late}");
        assert!(!wiped(&outputs));
    }
    // A session that begins now is another matter.
    assert!(wiped(&bench.hear(1, 2, begin_session(5, 2)).1));
}

#[test]
fn an_order_to_begin_that_is_repeated_wipes_once() {
    let mut bench = follower();
    assert!(wiped(&bench.hear(1, 2, begin(2)).1));
    let (verdict, outputs) = bench.hear(1, 2, begin(3));
    assert_eq!(verdict, Verdict::Applied);
    assert!(!wiped(&outputs), "what the base lane brought since the first order stays");
    assert!(matches!(told(&outputs)[..], [ToPrimary::RebuildStarted { .. }]));
}

/// A checkpoint of one rebuild is under way when the next begins, from a primary that knows less to be
/// committed. Its outcome comes after the wipe.
#[test]
fn a_checkpoint_of_what_was_wiped_is_not_taken_for_one_of_the_new_log() {
    let mut bench = follower();
    bench.hear(1, 2, begin(2));
    let before = bench.replica.generation();
    let feed = append(6, 5, 5, vec![entry(2, 6), entry(2, 7)]);
    bench.hear(1, 2, ToReplica::Append(feed));
    bench.feed(Input::Durable { generation: before, lsn: Lsn(7) });
    bench.hear(1, 2, ToReplica::Append(append(6, 7, 7, Vec::new())));
    let session = RecoveryId { epoch: Epoch(2), number: 2 };
    let mark = Incomplete { session, from: Lsn(0), base: Lsn(5), target: Lsn(6) };
    let state = LogState::new(16);
    let again = ToReplica::BeginRebuild { request: 3, mark, table: table(&[(1, 1)]), state };
    assert!(wiped(&bench.hear(1, 2, again).1));
    let old = Input::Checkpointed { generation: before, checkpoint: Lsn(7), retained: Lsn(6) };
    assert_eq!(bench.feed(old).0, Verdict::Ignored(IgnoredReason::OldGeneration));
    let generation = bench.replica.generation();
    let new = Input::Checkpointed { generation, checkpoint: Lsn(5), retained: Lsn(6) };
    assert_eq!(bench.feed(new).0, Verdict::Applied);
}

/// The order to delete was heard, and the process ended before the directory was gone. A primary that
/// the masters don't reach must not go on with what is left.
#[test]
fn a_deleted_replica_promises_nothing_after_a_restart_either() {
    let mut bench = follower();
    let (_, outputs) = bench.feed(Input::Deleted);
    let kept = outputs.iter().find_map(|output| match output {
        Output::Persist(kept) => Some(kept.clone()),
        _ => None,
    });
    let mut again = Bench::open(Opened { kept: kept.expect("it is durable"), ..opened(3, 0, 0) });
    let fence = ToReplica::Fence { request: 9, config: config(1_000, 1, &[1, 2]) };
    let (verdict, _) = again.hear(1, 1_000, fence);
    assert_eq!(verdict, Verdict::Ignored(IgnoredReason::StaleEpoch));
    let (verdict, _) = again.feed(Input::Assignment(config(1_000, 3, &[1, 3])));
    assert_eq!(verdict, Verdict::Ignored(IgnoredReason::StaleEpoch));
    assert_eq!(again.feed(Input::Deleted).0, Verdict::Applied, "the order may come again");
}

/// A replica that restarted knows which epoch it promised, but of which configuration it was is
/// forgotten.
#[test]
fn a_refusal_says_which_epoch_was_promised() {
    let mut kept = opened(3, 0, 0);
    kept.kept.fenced = Epoch(7);
    let mut bench = Bench::open(kept);
    let fence = ToReplica::Fence { request: 1, config: config(5, 1, &[1, 2]) };
    let (verdict, outputs) = bench.hear(1, 5, fence);
    assert_eq!(verdict, Verdict::Ignored(IgnoredReason::StaleEpoch));
    assert_eq!(
        told(&outputs),
        [ToPrimary::Refused { fenced: Epoch(7), config: None, stood: Epoch(0) }]
    );
}
