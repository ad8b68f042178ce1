//! Another size for a volume, from the side of its primary.

use sbk_engine::replication::Verdict;
use sbk_engine::replication::io::{
    Input, IsrChange, Op, OpenStream, Outcome, Output, Reader, Request, StreamId,
};
use sbk_engine::replication::log::{BlockRange, EntryKind, RequestTag};
use sbk_engine::replication::message::{ToPrimary, ToReplica};
use sbk_engine::replication::room::SpaceTold;
use sbk_engine::types::{AttachGeneration, Config, Epoch, Lba, Lsn, Millis, NodeId, SessionId};
use uuid::Uuid;

use crate::bench::{Bench, config, facts, opened, replica, sent, table};

const STREAM: StreamId = StreamId(1);

fn session() -> SessionId {
    SessionId(Uuid::from_u128(5))
}

fn durable(bench: &mut Bench, lsn: u64) -> Vec<Output> {
    let generation = bench.replica.generation();
    bench.feed(Input::Durable { generation, lsn: Lsn(lsn) }).1
}

/// Replica 2 acknowledges up to `lsn` in `epoch`, and promises by the clock of now.
fn acked(bench: &mut Bench, epoch: u64, lsn: u64) -> Vec<Output> {
    let ack = ToPrimary::Ack {
        durable: Lsn(lsn),
        recorded: Some(Epoch(epoch)),
        promised: Some(Millis(bench.now)),
        written: Lsn(lsn),
        space: SpaceTold::default(),
    };
    bench.answer(2, epoch, ack).1
}

/// The masters' word, in an epoch of the same tenure.
fn wish(bench: &mut Bench, epoch: u64, wished_blocks: Option<u64>) -> Vec<Output> {
    published(bench, epoch, 16, wished_blocks)
}

fn published(
    bench: &mut Bench,
    epoch: u64,
    blocks: u64,
    wished_blocks: Option<u64>,
) -> Vec<Output> {
    let config = Config { since: Epoch(2), blocks, wished_blocks, ..config(epoch, 1, &[1, 2]) };
    bench.feed(Input::Assignment(config)).1
}

/// Replica 1 is primary in epoch 2 with 2 in sync, of a volume of 16 blocks; a client is attached by
/// entry 5, and all is committed.
fn serving() -> Bench {
    let mut bench = Bench::open(opened(1, 4, 4));
    bench.now += 2_000;
    let (_, probed) = bench.feed(Input::Assignment(config(2, 1, &[1, 2])));
    let outputs = bench.meet(2, 2, &probed, facts(table(&[(1, 1)]), 4, 4));
    let request = sent(&outputs, 2).iter().find_map(|message| match message {
        ToReplica::Cut { request, .. } => Some(*request),
        _ => None,
    });
    let request = request.expect("a cut");
    bench.answer(2, 2, ToPrimary::CutDone { request, durable: Lsn(4) });
    acked(&mut bench, 2, 4);
    bench.feed(Input::OpenStream(OpenStream::shared(STREAM, session(), NodeId(Uuid::nil()))));
    durable(&mut bench, 5);
    let opened = acked(&mut bench, 2, 5);
    assert!(opened.iter().any(|o| matches!(o, Output::StreamOpened { .. })), "{opened:?}");
    bench
}

fn tag(sequence: u64) -> RequestTag {
    RequestTag { session: session(), sequence }
}

fn block(lba: u64) -> BlockRange {
    BlockRange { lba: Lba(lba), blocks: 1 }
}

fn ask(bench: &mut Bench, sequence: u64, op: Op) -> Vec<Output> {
    let attach = AttachGeneration(0);
    let request = Request { tag: tag(sequence), low: 0, epoch: Epoch(2), attach, op };
    bench.request(STREAM.0, request)
}

fn logged(outputs: &[Output]) -> Vec<EntryKind> {
    let appended = outputs.iter().filter_map(|output| match output {
        Output::Append { headers, .. } => Some(headers),
        _ => None,
    });
    appended.flatten().map(|header| header.kind).collect()
}

fn proposed(outputs: &[Output]) -> Vec<IsrChange> {
    let proposals = outputs.iter().filter_map(|output| match output {
        Output::Propose(proposal) => Some(proposal.change.clone()),
        _ => None,
    });
    proposals.collect()
}

fn answers(outputs: &[Output], sequence: u64) -> Vec<Outcome> {
    let answers = outputs.iter().filter_map(|output| match output {
        Output::Answer { tag, outcome, .. } if tag.sequence == sequence => Some(outcome.clone()),
        _ => None,
    });
    answers.collect()
}

/// The search that is asked for: its number and what it looks at.
fn searched(outputs: &[Output]) -> Option<(u64, Lba, u64)> {
    outputs.iter().find_map(|output| match output {
        Output::FindData { search, first, end } => Some((*search, *first, *end)),
        _ => None,
    })
}

fn found(bench: &mut Bench, search: u64, found: Option<Lba>) -> (Verdict, Vec<Output>) {
    bench.feed(Input::DataFound { search, found, error: None })
}

const fn to(blocks: u64) -> EntryKind {
    EntryKind::Resize { blocks }
}

/// Replica 1 has logged a shrink to 8 blocks at entry 6, which is not committed.
fn shrinking() -> Bench {
    let mut bench = serving();
    let (search, first, end) = searched(&wish(&mut bench, 3, Some(8))).expect("it looks");
    assert_eq!((first, end), (Lba(8), 16));
    assert_eq!(logged(&found(&mut bench, search, None).1), [to(8)]);
    bench
}

#[test]
fn growing_is_logged_once_and_told_when_it_is_committed() {
    let mut bench = serving();
    assert_eq!(logged(&wish(&mut bench, 3, Some(64))), [to(64)]);
    assert_eq!((bench.pass(1), proposed(&durable(&mut bench, 6))), (vec![], vec![]));
    assert_eq!(proposed(&acked(&mut bench, 3, 6)), [IsrChange::Resized { blocks: 64 }]);
    // The masters may not have heard: asked again, and not logged again.
    let mut later = Vec::new();
    for _ in 0..30 {
        later.extend(bench.pass(200));
        later.extend(acked(&mut bench, 3, 6));
    }
    let again = IsrChange::Resized { blocks: 64 };
    assert_eq!(logged(&later), []);
    assert!(proposed(&later).iter().all(|change| *change == again), "{later:?}");
    assert!(!proposed(&later).is_empty());
    let done = published(&mut bench, 4, 64, None);
    assert_eq!((logged(&done), proposed(&done)), (vec![], vec![]));
    durable(&mut bench, 6);
    assert_eq!(proposed(&acked(&mut bench, 4, 6)), []);
}

#[test]
fn blocks_beyond_the_old_end_are_there_from_the_entry_on() {
    let mut bench = serving();
    let past = ask(&mut bench, 1, Op::Write(block(16)));
    assert!(matches!(answers(&past, 1)[..], [Outcome::Invalid(_)]), "{past:?}");
    wish(&mut bench, 3, Some(17));
    let write = EntryKind::Write { lba: Lba(16), blocks: 1 };
    assert_eq!(logged(&ask(&mut bench, 2, Op::Write(block(16)))), [write]);
    // A read there waits for it: without the entry there would be no such block.
    let mut bench = serving();
    wish(&mut bench, 3, Some(17));
    ask(&mut bench, 1, Op::Read(block(16)));
    let read = bench.feed(Input::ReadDone { stream: STREAM, tag: tag(1), error: None }).1;
    durable(&mut bench, 6);
    assert_eq!(answers(&read, 1), []);
    assert_eq!(answers(&acked(&mut bench, 3, 6), 1), [Outcome::Done]);
}

#[test]
fn a_shrink_is_logged_when_nothing_lies_beyond_it_and_ends_requests_there() {
    let mut bench = shrinking();
    for (sequence, op) in
        [(1, Op::Write(block(8))), (2, Op::Trim(block(15))), (3, Op::Read(block(8)))]
    {
        let outputs = ask(&mut bench, sequence, op);
        assert!(matches!(answers(&outputs, sequence)[..], [Outcome::Invalid(_)]), "{outputs:?}");
    }
    assert_eq!(logged(&ask(&mut bench, 4, Op::Write(block(7)))).len(), 1);
    durable(&mut bench, 7);
    assert_eq!(proposed(&acked(&mut bench, 3, 7)), [IsrChange::Resized { blocks: 8 }]);
}

/// A read was slow: its block rotted, was trimmed, and lies beyond the end by the time that it is told.
#[test]
fn a_block_that_is_beyond_the_end_by_now_is_not_repaired() {
    for committed in [false, true] {
        let mut bench = serving();
        let read = ask(&mut bench, 1, Op::Read(block(12)));
        assert!(read.iter().any(|o| matches!(o, Output::Read { .. })), "{read:?}");
        let (search, ..) = searched(&wish(&mut bench, 3, Some(8))).expect("it looks");
        let (_, outputs) = found(&mut bench, search, None);
        assert_eq!(logged(&outputs), [EntryKind::Resize { blocks: 8 }]);
        if committed {
            durable(&mut bench, 6);
            acked(&mut bench, 3, 6);
        }
        let reader = Reader::Request { stream: STREAM, tag: tag(1) };
        let rotten = Input::Rotten { reader, blocks: vec![Lba(12)], why: "its CRC".into() };
        let (_, outputs) = bench.feed(rotten);
        let asked = |message: &ToReplica| matches!(message, ToReplica::ReadBlocks { .. });
        assert!(!sent(&outputs, 2).iter().any(asked), "{outputs:?}");
        assert!(outputs.iter().any(|o| matches!(o, Output::Read { .. })), "{outputs:?}");
    }
}

#[test]
fn a_shrink_is_given_back_for_data_beyond_it() {
    let mut bench = serving();
    let (search, ..) = searched(&wish(&mut bench, 3, Some(8))).expect("it looks");
    durable(&mut bench, 5);
    acked(&mut bench, 3, 5);
    let (_, outputs) = found(&mut bench, search, Some(Lba(12)));
    let keep = IsrChange::KeepSize { wished: 8, lba: Lba(12) };
    assert_eq!((logged(&outputs), proposed(&outputs)), (vec![], vec![keep]));
    assert_ne!(found(&mut bench, search, None).0, Verdict::Applied, "a second answer");
    // It may be wished anew: what was found then says nothing now.
    let (again, ..) = searched(&wish(&mut bench, 5, Some(8))).expect("it looks again");
    assert_ne!(again, search);
    assert_eq!(logged(&found(&mut bench, again, None).1), [to(8)]);
}

/// What is written while the store looks is seen by nobody else.
fn a_write_beyond_the_new_end_is_noticed() {
    for before in [true, false] {
        let mut bench = serving();
        let write =
            |bench: &mut Bench| assert_eq!(logged(&ask(bench, 1, Op::Write(block(9)))).len(), 1);
        let (search, ..) = searched(&wish(&mut bench, 3, Some(8))).expect("it looks");
        if before {
            write(&mut bench);
        }
        // A block below the new end is no reason.
        ask(&mut bench, 2, Op::Write(block(7)));
        let end = if before { 7 } else { 6 };
        durable(&mut bench, end);
        acked(&mut bench, 3, end);
        if !before {
            // Its blocks are being read, and it is logged when they were.
            let part = ask(&mut bench, 1, Op::PartialWrite(block(9)));
            assert!(part.iter().any(|o| matches!(o, Output::Read { merge: true, .. })), "{part:?}");
        }
        let (_, outputs) = found(&mut bench, search, None);
        assert_eq!(logged(&outputs), [], "{before}");
        assert_eq!(proposed(&outputs), [IsrChange::KeepSize { wished: 8, lba: Lba(9) }]);
    }
}

#[test]
fn what_is_written_beyond_the_new_end_meanwhile_is_noticed() {
    a_write_beyond_the_new_end_is_noticed();
}

/// The trim of what lies beyond was logged, its answer was lost, and meanwhile the volume shrank.
#[test]
fn a_request_beyond_the_end_that_was_logged_before_is_answered() {
    let mut bench = serving();
    assert_eq!(logged(&ask(&mut bench, 1, Op::Trim(block(9)))).len(), 1);
    let (search, ..) = searched(&wish(&mut bench, 3, Some(8))).expect("it looks");
    assert_eq!(logged(&found(&mut bench, search, None).1), [to(8)]);
    let again = ask(&mut bench, 1, Op::Trim(block(9)));
    assert_eq!((answers(&again, 1), logged(&again)), (vec![], vec![]));
    durable(&mut bench, 7);
    assert_eq!(answers(&acked(&mut bench, 3, 7), 1), [Outcome::Done]);
}

#[test]
fn a_store_that_can_not_tell_is_asked_again() {
    let mut bench = serving();
    let (search, ..) = searched(&wish(&mut bench, 3, Some(8))).expect("it looks");
    let error = Some("EIO".to_owned());
    let (_, outputs) = bench.feed(Input::DataFound { search, found: None, error });
    assert_eq!((searched(&outputs), logged(&outputs)), (None, vec![]));
    assert!(bench.replica.view(Millis(bench.now)).reason.contains("can't tell"));
    let due = bench.replica.next_deadline().expect("it asks again").0;
    assert!(due <= bench.now + 10_000, "{due}");
    let mut again = None;
    for _ in 0..20 {
        acked(&mut bench, 3, 5);
        again = again.or(searched(&bench.pass(200)));
    }
    assert_eq!(again.map(|(_, first, _)| first), Some(Lba(8)));
}

/// A wish that was taken back is not acted on, nor is what a search for it brings.
#[test]
fn a_wish_that_was_taken_back_is_over() {
    let mut bench = serving();
    let (search, ..) = searched(&wish(&mut bench, 3, Some(8))).expect("it looks");
    wish(&mut bench, 4, None);
    let (verdict, outputs) = found(&mut bench, search, None);
    assert_ne!(verdict, Verdict::Applied);
    assert_eq!(logged(&outputs), []);
}

/// The heir of a primary that had logged the size finds it in its log, and does not log it again.
#[test]
fn the_next_primary_finds_in_its_log_what_was_done() {
    for (logs, expected) in [(true, vec![]), (false, vec![to(64)])] {
        let mut opened = opened(1, 4, if logs { 5 } else { 4 });
        if let Some(last) = opened.uncommitted.last_mut() {
            last.kind = to(64);
        }
        let mut bench = Bench::open(opened);
        let config = Config { wished_blocks: Some(64), ..config(2, 1, &[1]) };
        let (_, first) = bench.feed(Input::Assignment(config));
        let mut outputs = bench.pass(2_000);
        assert_eq!(logged(&first), []);
        assert_eq!(logged(&outputs), expected);
        outputs.extend(durable(&mut bench, 5));
        assert_eq!(proposed(&outputs), [IsrChange::Resized { blocks: 64 }]);
    }
}

/// A new primary knows less to be committed than its predecessor did, which published it.
fn nothing_is_published_before_this_epoch_has_settled() {
    let mut opened = opened(1, 4, 5);
    opened.uncommitted[0].kind = to(64);
    let mut bench = Bench::open(opened);
    bench.now += 2_000;
    let config = Config { blocks: 64, ..config(2, 1, &[1, 2]) };
    let (_, probed) = bench.feed(Input::Assignment(config));
    let mut all = bench.meet(2, 2, &probed, facts(table(&[(1, 1)]), 5, 5));
    all.extend(probed);
    let request = sent(&all, 2).iter().find_map(|message| match message {
        ToReplica::Cut { request, .. } => Some(*request),
        _ => None,
    });
    let request = request.expect("a cut");
    all.extend(bench.answer(2, 2, ToPrimary::CutDone { request, durable: Lsn(5) }).1);
    assert_eq!(proposed(&all), []);
    assert_eq!(proposed(&acked(&mut bench, 2, 5)), []);
    assert_eq!(bench.replica.view(Millis(bench.now)).committed_blocks, 64);
}

#[test]
fn a_new_primary_publishes_nothing_that_is_older() {
    nothing_is_published_before_this_epoch_has_settled();
}

/// A loss took the entry of the size that is published: what the volume has is its log.
#[test]
fn a_size_that_a_loss_took_is_published_no_more() {
    let mut bench = Bench::open(opened(1, 4, 4));
    bench.feed(Input::Assignment(Config { blocks: 64, ..config(2, 1, &[1]) }));
    assert_eq!(proposed(&bench.pass(2_000)), [IsrChange::Resized { blocks: 16 }]);
    assert_eq!(bench.replica.view(Millis(bench.now)).me, replica(1));
}

#[cfg(feature = "bugs")]
#[test]
fn the_bugs_are_noticed() {
    use crate::bench::bites;
    use sbk_engine::bugs::Bug;

    bites(Bug::PublishUnsettled, nothing_is_published_before_this_epoch_has_settled);
    bites(Bug::ShrinkUnderWrites, a_write_beyond_the_new_end_is_noticed);
}
