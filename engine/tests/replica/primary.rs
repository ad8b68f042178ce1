//! A primary, and what it may do when.

use sbk_engine::replication::io::{
    Attach, Input, Op, OpenStream, Outcome, Output, Request, StreamEnd, StreamId,
};
use sbk_engine::replication::log::{BlockRange, RequestTag};
use sbk_engine::replication::message::{Facts, Incomplete, RecoveryId, ToPrimary, ToReplica};
use sbk_engine::replication::room::SpaceTold;
use sbk_engine::replication::view::RoleView;
use sbk_engine::replication::{IgnoredReason, Verdict};
use sbk_engine::types::{
    AttachGeneration, Config, Epoch, Lba, LossGeneration, Lsn, Millis, NodeId, SessionId,
};
use uuid::Uuid;

use crate::bench::{Bench, append, config, entry, facts, opened, replica, sent, table};

fn assign(bench: &mut Bench, config: &Config) -> (Verdict, Vec<Output>) {
    bench.feed(Input::Assignment(config.clone()))
}

fn durable(bench: &mut Bench, lsn: u64) -> Vec<Output> {
    let generation = bench.replica.generation();
    bench.feed(Input::Durable { generation, lsn: Lsn(lsn) }).1
}

/// Replica 1, alone in sync, promoted in epoch 2 and ready.
fn alone() -> Bench {
    let mut bench = Bench::open(opened(1, 4, 4));
    assign(&mut bench, &config(2, 1, &[1]));
    bench.pass(2_000);
    assert!(bench.replica.view(Millis(bench.now)).serving);
    bench
}

/// What a restarted process promised in an earlier life says no more than a number, and that is
/// enough: somebody else was promised a newer epoch, so nothing may be answered any more.
#[test]
fn a_primary_that_is_refused_for_a_newer_epoch_stops_at_once() {
    let mut bench = alone();
    let stream = StreamId(1);
    let session = SessionId(Uuid::from_u128(5));
    let open = OpenStream::shared(stream, session, NodeId(Uuid::nil()));
    bench.feed(Input::OpenStream(open));
    // About its own epoch, and about what it said before: neither is news.
    for fenced in [1, 2] {
        bench.answer(
            2,
            2,
            ToPrimary::Refused { fenced: Epoch(fenced), config: None, stood: Epoch(0) },
        );
        assert_eq!(bench.replica.view(Millis(bench.now)).role, RoleView::Primary);
    }
    let (_, outputs) =
        bench.answer(2, 2, ToPrimary::Refused { fenced: Epoch(3), config: None, stood: Epoch(0) });
    let ended = Output::StreamEnded { stream, reason: StreamEnd::NotPrimary };
    assert!(outputs.contains(&ended), "{outputs:?}");
    assert_eq!(bench.replica.view(Millis(bench.now)).role, RoleView::Idle);
    // The masters' word makes it a primary again.
    assign(&mut bench, &config(4, 1, &[1]));
    assert_eq!(bench.replica.view(Millis(bench.now)).role, RoleView::Primary);
}

/// One that was taken off the list refuses every epoch there is until its directory is gone, and may say so
/// before the primary has heard that it left. Of one that is in sync the same word means that the volume is
/// deleted.
#[test]
fn a_replica_that_left_the_list_does_not_end_the_primarys_role() {
    let gone = || ToPrimary::Refused { fenced: Epoch(u64::MAX), config: None, stood: Epoch(0) };
    let mut bench = alone();
    assert!(!config(2, 1, &[1]).replicas.contains_key(&config(2, 9, &[9]).primary.id));
    for replica in [9, 2] {
        bench.answer(replica, 2, gone());
        let view = bench.replica.view(Millis(bench.now));
        assert!(view.role == RoleView::Primary && view.serving, "{replica}");
    }
    let mut bench = Bench::open(opened(1, 4, 4));
    assign(&mut bench, &config(2, 1, &[1, 2]));
    bench.answer(2, 2, gone());
    assert_eq!(bench.replica.view(Millis(bench.now)).role, RoleView::Idle);
}

/// Replica 2 told what it held, and took and acknowledged an entry since. The primary steps down, and is named
/// again in its tenure. Its questions have the numbers of before, and a copy of that answer arrives: the
/// entry was answered to a client.
#[test]
fn an_answer_to_an_earlier_role_of_the_tenure_is_no_answer() {
    let mut bench = Bench::open(opened(1, 4, 4));
    let (_, probed) = assign(&mut bench, &config(2, 1, &[1, 2]));
    let before = facts(table(&[(1, 1)]), 4, 4);
    bench.meet(2, 2, &probed, before.clone());
    let newer = Epoch(9);
    bench.answer(2, 2, ToPrimary::Refused { fenced: newer, config: None, stood: Epoch(0) });
    assert_eq!(bench.replica.view(Millis(bench.now)).role, RoleView::Idle);
    let again = Config { since: Epoch(2), ..config(10, 1, &[1, 2]) };
    let (_, probed) = assign(&mut bench, &again);
    let request = bench.ask(2, 10, &probed);
    let (verdict, outputs) =
        bench.answer(2, 2, ToPrimary::Facts { request, facts: before.clone() });
    assert_eq!(verdict, Verdict::Ignored(IgnoredReason::StaleEpoch), "{outputs:?}");
    let (verdict, _) = bench.answer(2, 10, ToPrimary::Facts { request, facts: before });
    assert_eq!(verdict, Verdict::Applied);
}

/// Replica 1 follows 2 in epoch 2, takes an entry that its disk has not synced yet, and is
/// promoted.
#[test]
fn nobody_is_cut_before_the_own_log_is_durable() {
    let mut bench = Bench::open(opened(1, 0, 0));
    bench.hear(2, 2, ToReplica::Fence { request: 1, config: config(2, 2, &[1, 2]) });
    bench.hear(2, 2, ToReplica::Cut { request: 2, end: Lsn(0), table: table(&[(2, 1)]) });
    bench.hear(2, 2, ToReplica::Append(append(1, 0, 0, vec![entry(2, 1)])));
    let (_, probed) = assign(&mut bench, &config(3, 1, &[1, 2]));
    let held = facts(table(&[(2, 1)]), 0, 3);
    let outputs = bench.meet(2, 3, &probed, held);
    let cuts = |outputs: &[Output]| {
        sent(outputs, 2).iter().any(|message| matches!(message, ToReplica::Cut { .. }))
    };
    assert!(!cuts(&outputs), "its own log is not reconciled: {outputs:?}");
    let outputs = durable(&mut bench, 1);
    assert!(cuts(&outputs), "now it is: {outputs:?}");
}

/// Tables without a common epoch say nothing of the entries. What a replica knows as committed
/// agrees, unless acknowledged writes may have been lost since.
#[test]
fn without_a_common_epoch_a_replica_of_an_older_loss_generation_is_rebuilt() {
    for (loss, expect_cut) in [(0, true), (1, false)] {
        let mut mine = opened(1, 4, 4);
        mine.kept.table = table(&[(5, 1)]);
        mine.kept.fenced = Epoch(5);
        mine.kept.loss_generation = LossGeneration(loss);
        let mut bench = Bench::open(mine);
        let config = Config { loss_generation: LossGeneration(loss), ..config(6, 1, &[1]) };
        let (_, probed) = assign(&mut bench, &config);
        let outputs = bench.meet(2, 6, &probed, facts(table(&[(2, 1)]), 3, 4));
        let cut = sent(&outputs, 2)
            .iter()
            .any(|message| matches!(message, ToReplica::Cut { end, .. } if *end == Lsn(3)));
        let begun = sent(&outputs, 2)
            .iter()
            .any(|message| matches!(message, ToReplica::BeginRebuild { .. }));
        assert_eq!((cut, begun), (expect_cut, !expect_cut), "loss {loss}: {outputs:?}");
    }
}

/// A push that was under way for long names this replica; meanwhile it learned of a newer epoch that
/// names another. It would be a primary in an epoch that is over.
#[test]
fn an_assignment_older_than_what_is_known_makes_no_primary() {
    let mut bench = Bench::open(opened(1, 4, 4));
    assert_eq!(assign(&mut bench, &config(3, 2, &[1, 2])).0, Verdict::Applied);
    let late = config(2, 1, &[1, 2]);
    assert_eq!(assign(&mut bench, &late).0, Verdict::Ignored(IgnoredReason::StaleEpoch));
    assert_eq!(bench.replica.view(Millis(bench.now)).role, RoleView::Idle);
}

/// A member that is listed and has no address would be counted by nobody.
#[test]
fn a_configuration_that_contradicts_itself_is_refused() {
    let good = config(2, 1, &[1, 2]);
    let mut nowhere = good.clone();
    nowhere.replicas.remove(&replica(2).id);
    let mut outside = good.clone();
    outside.isr.remove(&replica(1).id);
    let mut early = good.clone();
    early.since = Epoch(3);
    let mut least = good.clone();
    least.min_in_sync = 0;
    for bad in [nowhere, outside, early, least] {
        let mut bench = Bench::open(opened(1, 4, 4));
        let (verdict, _) = assign(&mut bench, &bad);
        assert_eq!(verdict, Verdict::Ignored(IgnoredReason::Malformed), "{bad:?}");
        assert_eq!(assign(&mut bench, &good).0, Verdict::Applied);
    }
}

/// A read is checked like a write: its session must be known, in the answer's log too.
#[test]
fn a_read_of_a_session_that_was_closed_is_not_answered() {
    let mut bench = alone();
    let (stream, session) = (StreamId(1), SessionId(Uuid::from_u128(5)));
    let open = OpenStream::shared(stream, session, NodeId(Uuid::nil()));
    bench.feed(Input::OpenStream(open));
    let opened = durable(&mut bench, 5);
    assert!(opened.iter().any(|output| matches!(output, Output::StreamOpened { .. })));
    let request = |sequence: u64, op| Request {
        tag: RequestTag { session, sequence },
        low: 0,
        epoch: Epoch(2),
        attach: AttachGeneration(0),
        op,
    };
    let range = BlockRange { lba: Lba(0), blocks: 1 };
    let read = request(1, Op::Read(range));
    bench.request(1, read);
    let tag = read.tag;
    let (_, outputs) = bench.feed(Input::ReadDone { stream, tag, error: None });
    let done = |outputs: &[Output], tag| {
        outputs.contains(&Output::Answer { stream, tag, outcome: Outcome::Done })
    };
    assert!(done(&outputs, tag), "{outputs:?}");
    bench.request(1, request(2, Op::Detach));
    let late = request(3, Op::Read(range));
    let outputs = bench.request(1, late);
    let lost = Output::StreamEnded { stream, reason: StreamEnd::SessionLost };
    assert!(outputs.contains(&lost), "{outputs:?}");
    let (_, outputs) = bench.feed(Input::ReadDone { stream, tag: late.tag, error: None });
    assert!(!done(&outputs, late.tag), "{outputs:?}");
}

/// The session that is under way with replica 2, and what is told of it.
fn recovery(bench: &Bench) -> (Option<RecoveryId>, String) {
    let view = bench.replica.view(Millis(bench.now));
    let shown = view.peers[&replica(2).id].recovery.clone().expect("it is known");
    (shown.session.map(|session| session.id), shown.reason)
}

/// Replica 2 is in sync, and its image is torn. It can't leave, for two must be in sync: nothing is
/// done with it until a third has joined, and that is no failure of the session.
#[test]
fn a_rebuild_that_waits_for_a_leave_waits_without_end() {
    let mut bench = Bench::open(opened(1, 4, 4));
    let config = Config { min_in_sync: 2, ..config(2, 1, &[1, 2]) };
    let (_, probed) = assign(&mut bench, &config);
    let session = RecoveryId { epoch: Epoch(1), number: 1 };
    let mark = Incomplete { session, from: Lsn(0), base: Lsn(2), target: Lsn(2) };
    let torn = Facts { incomplete: Some(mark), ..facts(table(&[(1, 1)]), 2, 2) };
    bench.meet(2, 2, &probed, torn);
    let (begun, reason) = recovery(&bench);
    assert!(begun.is_some());
    assert!(reason.contains("waits until it has left the in-sync set"), "{reason}");
    for _ in 0..60 {
        bench.pass(1_000);
    }
    assert_eq!(recovery(&bench).0, begun, "the same session still waits");
    // A third joined meanwhile, so it may leave, and did.
    let mut left = config.clone();
    left.epoch = Epoch(3);
    left.isr = [replica(1).id, replica(3).id].into();
    let (_, outputs) = assign(&mut bench, &left);
    let asked = sent(&outputs, 2);
    assert!(
        matches!(asked[..], [ToReplica::BeginRebuild { mark, .. }] if Some(mark.session) == begun)
    );
}

/// Replica 2 caught up long ago. What it said when it missed an entry comes again, late: taken for
/// news it would have the feed begin where the WAL may be gone, and the replica be rebuilt, which a
/// listed one can't be if it must not leave.
#[test]
fn a_late_word_of_a_gap_does_not_turn_the_feed_back() {
    let mut bench = Bench::open(opened(1, 4, 4));
    let (_, probed) = assign(&mut bench, &config(2, 1, &[1, 2]));
    let told = bench.meet(2, 2, &probed, facts(table(&[(1, 1)]), 1, 1));
    let cut = sent(&told, 2).iter().find_map(|message| match message {
        ToReplica::Cut { request, .. } => Some(*request),
        _ => None,
    });
    let request = cut.expect("it is asked to cut");
    let (_, outputs) = bench.answer(2, 2, ToPrimary::CutDone { request, durable: Lsn(1) });
    let resent = |outputs: &[Output]| {
        outputs.iter().find_map(|output| match output {
            Output::SendEntries { append, .. } => Some(append.prev),
            _ => None,
        })
    };
    assert_eq!(resent(&outputs), Some(Lsn(1)));
    let (_, outputs) = bench.answer(2, 2, ToPrimary::Gap { end: Lsn(2) });
    assert_eq!(resent(&outputs), Some(Lsn(2)), "a real gap is filled");
    let ack = ToPrimary::Ack {
        durable: Lsn(4),
        recorded: Some(Epoch(2)),
        promised: None,
        written: Lsn(4),
        space: SpaceTold::default(),
    };
    bench.answer(2, 2, ack);
    let (verdict, outputs) = bench.answer(2, 2, ToPrimary::Gap { end: Lsn(2) });
    assert_eq!(verdict, Verdict::Ignored(IgnoredReason::LateCopy));
    assert_eq!(resent(&outputs), None);
}

/// As above, but the replica was wiped since: its log begins above the base of its rebuild, and what is
/// below may be gone from the WAL.
#[test]
fn a_late_word_of_a_gap_does_not_turn_a_rebuilds_feed_back_below_its_base() {
    let mut bench = Bench::open(opened(1, 4, 4));
    let (_, probed) = assign(&mut bench, &config(2, 1, &[1]));
    let session = RecoveryId { epoch: Epoch(1), number: 1 };
    let mark = Incomplete { session, from: Lsn(0), base: Lsn(2), target: Lsn(2) };
    let torn = Facts { incomplete: Some(mark), ..facts(table(&[(1, 1)]), 2, 2) };
    let outputs = bench.meet(2, 2, &probed, torn);
    let begun = sent(&outputs, 2).iter().find_map(|message| match message {
        ToReplica::BeginRebuild { mark, .. } => Some(*mark),
        _ => None,
    });
    let Incomplete { session, base, .. } = begun.expect("nothing is in the way");
    assert_eq!(base, Lsn(4));
    bench.answer(2, 2, ToPrimary::RebuildStarted { session });
    let (verdict, outputs) = bench.answer(2, 2, ToPrimary::Gap { end: Lsn(2) });
    assert_eq!(verdict, Verdict::Ignored(IgnoredReason::LateCopy));
    assert!(!outputs.iter().any(|output| matches!(output, Output::SendEntries { .. })));
    assert_eq!(bench.answer(2, 2, ToPrimary::Gap { end: base }).0, Verdict::Applied);
}

/// A receiver that answers and answers, and holds no more than before: its disk hangs, or its WAL is
/// full for good.
#[test]
fn a_session_that_does_not_come_on_is_ended_and_tried_again() {
    let mut bench = Bench::open(opened(1, 4, 4));
    let (_, probed) = assign(&mut bench, &config(2, 1, &[1]));
    let told = bench.meet(2, 2, &probed, facts(table(&[(1, 1)]), 1, 1));
    let cut = sent(&told, 2).iter().find_map(|message| match message {
        ToReplica::Cut { request, .. } => Some(*request),
        _ => None,
    });
    let request = cut.expect("it is asked to cut");
    bench.answer(2, 2, ToPrimary::CutDone { request, durable: Lsn(1) });
    let (first, _) = recovery(&bench);
    assert!(first.is_some());
    let ack = |lsn| ToPrimary::Ack {
        durable: Lsn(lsn),
        recorded: Some(Epoch(1)),
        promised: None,
        written: Lsn(lsn),
        space: SpaceTold::default(),
    };
    for turn in 0..100 {
        // It comes on for a while, so slowly that only that counts, then no more.
        let held = if turn < 40 { 1 + turn / 20 } else { 3 };
        let mut outputs = bench.pass(1_000);
        outputs.extend(bench.answer(2, 2, ack(held)).1);
        let ended = outputs
            .iter()
            .any(|output| matches!(output, Output::Unpin { session } if Some(*session) == first));
        let (session, reason) = recovery(&bench);
        if ended {
            assert!((68..=71).contains(&turn), "ended in turn {turn}");
            assert_eq!(session, None);
            assert!(reason.contains("did not come on"), "{reason}");
            let again = bench.pass(1_000);
            assert!(matches!(sent(&again, 2)[..], [ToReplica::Probe { .. }]), "{again:?}");
            return;
        }
        assert_eq!(session, first, "turn {turn}: {reason}");
    }
    panic!("a session that does not come on goes on for ever");
}

/// Leases are per epoch, so a read waits for those of a new one; but nothing is amiss meanwhile, and
/// an operator's view that says so at every join and leave is not believed when it counts.
#[test]
fn a_new_epoch_of_the_same_primary_does_not_flicker() {
    let mut bench = Bench::open(opened(1, 4, 4));
    let first = config(2, 1, &[1, 2]);
    let (_, probed) = assign(&mut bench, &first);
    let told = bench.meet(2, 2, &probed, facts(table(&[(1, 1)]), 4, 4));
    let Some(ToReplica::Cut { request, .. }) = sent(&told, 2).pop() else { panic!("no cut") };
    let stamp = |outputs: &[Output]| {
        sent(outputs, 2).iter().rev().find_map(|message| match message {
            ToReplica::Append(append) => append.stamp,
            _ => None,
        })
    };
    let (_, mut outputs) = bench.answer(2, 2, ToPrimary::CutDone { request, durable: Lsn(4) });
    let promise = |bench: &mut Bench, epoch: u64, stamp| {
        let recorded = Some(Epoch(epoch));
        bench
            .answer(
                2,
                epoch,
                ToPrimary::Ack {
                    durable: Lsn(4),
                    recorded,
                    promised: stamp,
                    written: Lsn(4),
                    space: SpaceTold::default(),
                },
            )
            .1
    };
    for _ in 0..10 {
        let stamped = stamp(&outputs);
        promise(&mut bench, 2, stamped);
        outputs = bench.pass(200);
    }
    let serving = |bench: &Bench| {
        let view = bench.replica.view(Millis(bench.now));
        (view.serving, view.lacking.is_empty(), view.reason)
    };
    assert_eq!(serving(&bench), (true, true, String::new()));
    let next = Config { epoch: Epoch(3), since: Epoch(2), ..first };
    let (_, outputs) = assign(&mut bench, &next);
    assert_eq!(serving(&bench), (true, true, String::new()));
    // The promise of the old epoch does not count for a read.
    let (stream, session) = (StreamId(1), SessionId(Uuid::from_u128(5)));
    let open = OpenStream::shared(stream, session, NodeId(Uuid::nil()));
    bench.feed(Input::OpenStream(open));
    durable(&mut bench, 5);
    let ack = |promised| ToPrimary::Ack {
        durable: Lsn(5),
        recorded: Some(Epoch(3)),
        promised,
        written: Lsn(5),
        space: SpaceTold::default(),
    };
    bench.answer(2, 3, ack(None));
    let tag = RequestTag { session, sequence: 1 };
    let op = Op::Read(BlockRange { lba: Lba(0), blocks: 1 });
    let attach = AttachGeneration(0);
    bench.request(1, Request { tag, low: 0, epoch: Epoch(3), attach, op });
    let done = Output::Answer { stream, tag, outcome: Outcome::Done };
    let (_, read) = bench.feed(Input::ReadDone { stream, tag, error: None });
    assert!(!read.contains(&done), "{read:?}");
    let (_, promised) = bench.answer(2, 3, ack(stamp(&outputs)));
    assert!(promised.contains(&done), "{promised:?}");
    // One that never comes is missed in the end.
    bench.now += 1_100;
    assert!(!serving(&bench).0);
}

/// A write that arrives late overwrites newer data: on a stream that was replaced, or under a
/// sequence that its frontend called settled, it is not logged any more.
#[test]
fn what_comes_late_is_not_logged() {
    let mut bench = alone();
    let (old, new) = (StreamId(1), StreamId(2));
    let session = SessionId(Uuid::from_u128(5));
    let open = |stream| OpenStream::shared(stream, session, NodeId(Uuid::nil()));
    bench.feed(Input::OpenStream(open(old)));
    durable(&mut bench, 5);
    let (_, outputs) = bench.feed(Input::OpenStream(OpenStream {
        attach: Attach::Again(AttachGeneration(0)),
        loss_generation: Some(LossGeneration(0)),
        ..open(new)
    }));
    let ended = Output::StreamEnded { stream: old, reason: StreamEnd::Replaced };
    assert!(outputs.contains(&ended), "{outputs:?}");
    let write = |sequence, low| {
        let op = Op::Write(BlockRange { lba: Lba(0), blocks: 1 });
        let (tag, attach) = (RequestTag { session, sequence }, AttachGeneration(0));
        Request { tag, low, epoch: Epoch(2), attach, op }
    };
    let logged =
        |outputs: &[Output]| outputs.iter().any(|output| matches!(output, Output::Append { .. }));
    assert!(!logged(&bench.request(1, write(1, 0))), "on the stream that was replaced");
    assert!(logged(&bench.request(2, write(4, 3))));
    let late = bench.request(2, write(2, 0));
    assert!(!logged(&late), "below what was called settled");
    let failed = |output: &Output| matches!(output, Output::Answer { outcome: Outcome::Failed(_), tag, .. } if tag.sequence == 2);
    assert!(late.iter().any(failed), "{late:?}");
}
