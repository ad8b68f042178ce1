//! How a delta begins: at the receiver, which first takes its log to its extents, and at the primary,
//! which first knows as committed what these may hold.

use sbk_engine::replication::io::{Input, Output};
use sbk_engine::replication::log::LogState;
use sbk_engine::replication::message::{Facts, Incomplete, RecoveryId, ToPrimary, ToReplica};
use sbk_engine::replication::{IgnoredReason, Verdict};
use sbk_engine::types::{Config, Epoch, Lsn};

use crate::bench::{Bench, config, facts, opened, sent, table, told};

fn mark(epoch: u64, number: u64, from: u64, base: u64) -> Incomplete {
    let session = RecoveryId { epoch: Epoch(epoch), number };
    Incomplete { session, from: Lsn(from), base: Lsn(base), target: Lsn(base) }
}

fn order(request: u64, mark: Incomplete) -> ToReplica {
    let (table, state) = (table(&[(1, 1)]), LogState::new(16));
    ToReplica::BeginRebuild { request, mark, table, state }
}

/// Replica 3 follows 1 in epoch 2; its log ends at 5, and it knows 3 to be committed.
fn follower() -> Bench {
    let mut bench = Bench::open(opened(3, 3, 5));
    let fence = ToReplica::Fence { request: 1, config: config(2, 1, &[1]) };
    assert_eq!(bench.hear(1, 2, fence).0, Verdict::Applied);
    let cut = ToReplica::Cut { request: 2, end: Lsn(5), table: table(&[(1, 1)]) };
    assert_eq!(bench.hear(1, 2, cut).0, Verdict::Applied);
    bench
}

fn wiped(outputs: &[Output]) -> Option<Incomplete> {
    outputs.iter().find_map(|output| match output {
        Output::Wipe { mark, kept, .. } => {
            assert_eq!(kept.incomplete, Some(*mark), "the mark is on the disk first");
            Some(*mark)
        }
        _ => None,
    })
}

fn checkpointed(bench: &mut Bench, checkpoint: u64) -> Vec<Output> {
    let generation = bench.replica.generation();
    let (checkpoint, retained) = (Lsn(checkpoint), Lsn(1));
    bench.feed(Input::Checkpointed { generation, checkpoint, retained }).1
}

/// What the extents lack goes with the log: so nothing goes before they have it.
#[test]
fn a_delta_begins_once_the_extents_hold_what_it_starts_from() {
    let mut bench = follower();
    let delta = mark(2, 1, 5, 9);
    let (verdict, outputs) = bench.hear(1, 2, order(3, delta));
    assert_eq!(verdict, Verdict::Applied);
    assert!(outputs.contains(&Output::Committed(Lsn(5))), "{outputs:?}");
    assert!(outputs.contains(&Output::Checkpoint { upto: Lsn(5) }), "{outputs:?}");
    assert_eq!((told(&outputs), wiped(&outputs)), (Vec::new(), None));
    let outputs = checkpointed(&mut bench, 4);
    assert_eq!((told(&outputs), wiped(&outputs)), (Vec::new(), None), "4 is not 5");
    let outputs = checkpointed(&mut bench, 5);
    assert_eq!(wiped(&outputs), Some(delta));
    let started = ToPrimary::RebuildStarted { session: delta.session };
    assert_eq!(told(&outputs), std::slice::from_ref(&started));
    // The order that was repeated meanwhile is answered, and changes nothing.
    let (verdict, outputs) = bench.hear(1, 2, order(4, delta));
    assert_eq!((verdict, wiped(&outputs)), (Verdict::Applied, None));
    assert_eq!(told(&outputs), [started]);
}

/// It stands for the end of the epoch in which it was ordered: its copy may be the last one.
#[test]
fn an_order_that_waits_ends_where_the_replica_stands() {
    let mut bench = follower();
    bench.hear(1, 2, order(3, mark(2, 1, 5, 9)));
    assert_eq!(bench.feed(Input::Stand { epoch: Epoch(2) }).0, Verdict::Applied);
    let outputs = checkpointed(&mut bench, 5);
    assert_eq!((told(&outputs), wiped(&outputs)), (Vec::new(), None));
    let (_, outputs) = bench.hear(1, 2, order(4, mark(2, 1, 5, 9)));
    assert_eq!(wiped(&outputs), None);
}

/// The primary asked anew what is held: whatever it had ordered before is over.
#[test]
fn an_order_that_waits_ends_with_the_next_question() {
    let mut bench = follower();
    bench.hear(1, 2, order(3, mark(2, 1, 5, 9)));
    let fence = ToReplica::Fence { request: 4, config: config(2, 1, &[1]) };
    assert_eq!(bench.hear(1, 2, fence).0, Verdict::Applied);
    let outputs = checkpointed(&mut bench, 5);
    assert_eq!((told(&outputs), wiped(&outputs)), (Vec::new(), None));
}

#[test]
fn an_order_that_does_not_fit_the_image_is_refused() {
    // Beyond the log; and of a base that is older than what is committed here.
    for delta in [mark(2, 1, 6, 9), mark(2, 1, 2, 2)] {
        let (verdict, outputs) = follower().hear(1, 2, order(3, delta));
        assert_eq!(verdict, Verdict::Ignored(IgnoredReason::Malformed), "{delta:?}");
        assert_eq!(wiped(&outputs), None);
    }
    // Before it was cut.
    let mut bench = Bench::open(opened(3, 3, 5));
    bench.hear(1, 2, ToReplica::Fence { request: 1, config: config(2, 1, &[1]) });
    let (verdict, _) = bench.hear(1, 2, order(3, mark(2, 1, 3, 9)));
    assert_eq!(verdict, Verdict::Ignored(IgnoredReason::NotReconciled));
}

/// A replica that a broken session left behind: what it held, and how new it may be by now, is in its mark.
#[test]
fn a_broken_delta_is_taken_up_from_where_it_began() {
    let cases = [
        (mark(1, 1, 3, 7), mark(2, 1, 3, 9), true),
        (mark(1, 1, 3, 7), mark(2, 1, 2, 9), true),
        (mark(1, 1, 3, 7), mark(2, 1, 0, 9), true),
        (mark(1, 1, 3, 7), mark(2, 1, 4, 9), false),
        (mark(1, 1, 3, 7), mark(2, 1, 3, 6), false),
        (mark(1, 1, 0, 7), mark(2, 1, 3, 9), false),
    ];
    for (torn, next, fits) in cases {
        let mut left = opened(3, 0, 0);
        left.kept.incomplete = Some(torn);
        let mut bench = Bench::open(left);
        bench.hear(1, 2, ToReplica::Fence { request: 1, config: config(2, 1, &[1]) });
        let (verdict, outputs) = bench.hear(1, 2, order(3, next));
        let refused = Verdict::Ignored(IgnoredReason::Malformed);
        let expected = if fits { Verdict::Applied } else { refused };
        assert_eq!(verdict, expected, "{torn:?}, {next:?}");
        assert_eq!(wiped(&outputs), fits.then_some(next));
    }
}

fn torn(mark: Incomplete) -> Facts {
    Facts { incomplete: Some(mark), ..facts(table(&[]), 0, 0) }
}

fn begun(outputs: &[Output]) -> Option<(Lsn, Lsn)> {
    sent(outputs, 3).into_iter().find_map(|message| match message {
        ToReplica::BeginRebuild { mark, .. } => Some((mark.from, mark.base)),
        _ => None,
    })
}

/// Replica 1 is promoted with a log up to 6, of which it knows 4 to be committed. An earlier primary
/// may have known 6, and have sent 3 blocks of that before it died.
#[test]
fn a_delta_waits_until_what_the_receiver_may_hold_is_known_to_be_committed() {
    let mut bench = Bench::open(opened(1, 4, 6));
    let (_, probed) = bench.feed(Input::Assignment(config(2, 1, &[1])));
    let outputs = bench.meet(3, 2, &probed, torn(mark(1, 1, 3, 4)));
    assert_eq!(begun(&outputs), None, "its base would be 4");
    // The promises of earlier runs have run out: it commits what it inherited.
    assert_eq!(begun(&bench.pass(2_000)), None, "it was not known when the step began");
    let outputs = bench.pass(1);
    assert_eq!(begun(&outputs), Some((Lsn(3), Lsn(6))));
}

/// As above, but it lacks a member that it can't do without: nothing is committed before replica 3 has
/// joined, which is sent everything.
#[test]
fn a_delta_that_would_wait_for_a_commit_that_waits_for_it_becomes_a_rebuild() {
    let mut bench = Bench::open(opened(1, 4, 6));
    let config = Config { min_in_sync: 2, ..config(2, 1, &[1, 2]) };
    let (_, probed) = bench.feed(Input::Assignment(config));
    let outputs = bench.meet(3, 2, &probed, torn(mark(1, 1, 3, 4)));
    assert_eq!(begun(&outputs), None);
    let mut told = 0;
    for _ in 0..30 {
        let outputs = bench.pass(500);
        assert_eq!(begun(&outputs), None, "it is asked what it holds first");
        let probed = |message: &ToReplica| matches!(message, ToReplica::Probe { .. });
        if sent(&outputs, 3).iter().any(probed) {
            let outputs = bench.meet(3, 2, &outputs, torn(mark(1, 1, 3, 4)));
            told += 1;
            assert_eq!(begun(&outputs), Some((Lsn(0), Lsn(4))));
            break;
        }
    }
    assert_eq!(told, 1);
}

/// What this primary's own session left behind is not newer than what it knows to be committed.
#[test]
fn a_primary_takes_up_its_own_delta_at_once() {
    let mut bench = Bench::open(opened(1, 4, 6));
    let (_, probed) = bench.feed(Input::Assignment(config(2, 1, &[1, 2])));
    let outputs = bench.meet(3, 2, &probed, torn(mark(2, 1, 3, 4)));
    assert_eq!(begun(&outputs), Some((Lsn(3), Lsn(4))));
}

/// A rule that is taken out is noticed.
#[cfg(feature = "bugs")]
#[test]
fn the_rules_of_deltas_bite() {
    use sbk_engine::bugs::Bug;

    use crate::bench::bites;

    let waits = a_delta_waits_until_what_the_receiver_may_hold_is_known_to_be_committed;
    bites(Bug::DeltaUnsettled, waits);
    bites(Bug::DeltaUncheckpointed, a_delta_begins_once_the_extents_hold_what_it_starts_from);
    bites(Bug::FromOfLast, a_broken_delta_is_taken_up_from_where_it_began);
}
