//! Who has the volume: what a primary lets attach, and when it tells whom.

use sbk_engine::replication::io::{
    Attach, Input, Op, OpenStream, Outcome, Output, Request, StreamEnd, StreamId,
};
use sbk_engine::replication::log::{BlockRange, EntryKind, RequestTag};
use sbk_engine::types::{
    AttachGeneration, Config, Epoch, Lba, LossGeneration, Lsn, Millis, NodeId, SessionId,
};
use uuid::Uuid;

use crate::bench::{Bench, config, opened};

fn durable(bench: &mut Bench, lsn: u64) -> Vec<Output> {
    let generation = bench.replica.generation();
    bench.feed(Input::Durable { generation, lsn: Lsn(lsn) }).1
}

/// Replica 1, alone in sync with entries up to 4, ready in epoch 2.
fn alone() -> Bench {
    let mut bench = Bench::open(opened(1, 4, 4));
    bench.feed(Input::Assignment(config(2, 1, &[1])));
    bench.pass(2_000);
    bench
}

fn session(n: u64) -> SessionId {
    SessionId(Uuid::from_u128(n.into()))
}

/// Session `n` asks on a stream of its own, before any loss.
fn open(bench: &mut Bench, stream: u64, n: u64, attach: Attach) -> Vec<Output> {
    open_in(bench, stream, n, attach, attach.names_generation().then_some(0))
}

/// As [`open`]: what it names is of this loss generation.
fn open_in(
    bench: &mut Bench,
    stream: u64,
    n: u64,
    attach: Attach,
    loss: Option<u64>,
) -> Vec<Output> {
    let open = OpenStream::shared(StreamId(stream), session(n), NodeId(Uuid::from_u128(9)));
    let loss_generation = loss.map(LossGeneration);
    bench.feed(Input::OpenStream(OpenStream { attach, loss_generation, ..open })).1
}

/// That this generation is in force.
fn over_in(attach: u64, loss: u64) -> StreamEnd {
    let (attach, loss_generation) = (AttachGeneration(attach), LossGeneration(loss));
    StreamEnd::AttachOver { attach, loss_generation }
}

fn ended(outputs: &[Output], of: u64) -> Option<&StreamEnd> {
    outputs.iter().find_map(|output| match output {
        Output::StreamEnded { stream, reason } if stream.0 == of => Some(reason),
        _ => None,
    })
}

/// In which generation the stream was opened.
fn stands(outputs: &[Output], of: u64) -> Option<u64> {
    outputs.iter().find_map(|output| match output {
        Output::StreamOpened { stream, attach, .. } if stream.0 == of => Some(attach.0),
        _ => None,
    })
}

fn logged(outputs: &[Output]) -> Vec<EntryKind> {
    let all = outputs.iter().filter_map(|output| match output {
        Output::Append { headers, .. } => Some(headers.iter().map(|header| header.kind)),
        _ => None,
    });
    all.flatten().collect()
}

fn request(n: u64, sequence: u64, attach: u64, op: Op) -> Request {
    let tag = RequestTag { session: session(n), sequence };
    Request { tag, low: 0, epoch: Epoch(2), attach: AttachGeneration(attach), op }
}

const BLOCK: BlockRange = BlockRange { lba: Lba(0), blocks: 1 };
const AGAIN: fn(u64) -> Attach = |n| Attach::Again(AttachGeneration(n));
const OVER: fn(u64) -> Attach = |n| Attach::Exclusive { over: Some(AttachGeneration(n)) };

/// An exclusive attachment is told the generation in force, names it, and stands when its entry is
/// committed; then all others have ended.
#[test]
fn an_exclusive_attachment_ends_those_before_it_when_it_is_committed() {
    let mut bench = alone();
    open(&mut bench, 1, 1, Attach::Shared);
    assert_eq!(stands(&durable(&mut bench, 5), 1), Some(0));
    let told = open(&mut bench, 2, 2, Attach::Exclusive { over: None });
    assert_eq!(ended(&told, 2), Some(&over_in(0, 0)));
    assert_eq!(logged(&told), []);
    let asked = open(&mut bench, 3, 2, OVER(0));
    let kind = EntryKind::Attach { generation: AttachGeneration(1), exclusive: true };
    assert_eq!(logged(&asked), [kind]);
    assert_eq!((stands(&asked, 3), ended(&asked, 1)), (None, None), "nobody is told yet");
    // What the first asks for now waits: whether it has the volume still is open.
    let waits = bench.request(1, request(1, 1, 0, Op::Write(BLOCK)));
    assert_eq!(logged(&waits), []);
    let committed = durable(&mut bench, 6);
    assert_eq!(ended(&committed, 1), Some(&StreamEnd::AttachLost));
    assert_eq!(stands(&committed, 3), Some(1));
    assert_eq!(logged(&committed), [], "what waited is not done");
    // Under its own generation it may not come again, and not beside the other.
    let again = open(&mut bench, 4, 1, AGAIN(0));
    assert_eq!(ended(&again, 4), Some(&StreamEnd::AttachLost));
    let beside = open(&mut bench, 5, 3, Attach::Shared);
    let Some(StreamEnd::Held(by)) = ended(&beside, 5) else { panic!("{beside:?}") };
    assert_eq!((by.session, by.attach), (session(2), AttachGeneration(1)));
    assert!(by.node.is_some() && by.to_string().contains("sbkctl volume detach"), "{by}");
    // The holder comes again under its own.
    let again = open(&mut bench, 6, 2, AGAIN(1));
    assert_eq!(stands(&again, 6), Some(1));
    let view = bench.replica.view(Millis(bench.now));
    assert_eq!(view.attachments.len(), 1);
    assert!(view.attachments[0].exclusive && view.attachments[0].connected);
}

/// A node froze while it attached and repeats what it asked, after the volume went to another.
#[test]
fn an_attachment_that_was_asked_for_earlier_does_not_end_a_later_one() {
    let mut bench = alone();
    let told = open(&mut bench, 1, 1, Attach::Exclusive { over: None });
    assert_eq!(ended(&told, 1), Some(&over_in(0, 0)));
    open(&mut bench, 2, 2, OVER(0));
    assert_eq!(stands(&durable(&mut bench, 5), 2), Some(1));
    let late = open(&mut bench, 3, 1, OVER(0));
    assert_eq!(ended(&late, 3), Some(&StreamEnd::AttachLost));
    assert_eq!((ended(&late, 2), logged(&late)), (None, vec![]));
}

/// A device's process left as it failed, a client came under the same generation and wrote; the device's
/// user believes that the volume holds what it saw before.
#[test]
fn an_attachment_that_is_over_is_not_followed() {
    const FOLLOW: fn(u64, u64) -> Attach =
        |n, of| Attach::Follow { over: AttachGeneration(n), session: session(of) };
    let mut bench = alone();
    open(&mut bench, 1, 1, OVER(0));
    assert_eq!(stands(&durable(&mut bench, 5), 1), Some(1));
    // Of the same generation, but not who has the volume.
    let other = open(&mut bench, 2, 2, FOLLOW(1, 7));
    assert_eq!((ended(&other, 2), logged(&other)), (Some(&StreamEnd::AttachLost), vec![]));
    // While it holds the volume it is followed.
    let asked = open(&mut bench, 3, 3, FOLLOW(1, 1));
    let kind = EntryKind::Attach { generation: AttachGeneration(2), exclusive: true };
    assert_eq!(logged(&asked), [kind]);
    assert_eq!(stands(&durable(&mut bench, 6), 3), Some(2));
    // It leaves: nobody has the volume, and nothing is to be followed, be it committed or not.
    let left = bench.request(3, request(3, 1, 2, Op::Detach));
    assert_eq!(logged(&left), [EntryKind::Close { session: session(3) }]);
    let early = open(&mut bench, 4, 4, FOLLOW(2, 3));
    assert_eq!((ended(&early, 4), logged(&early)), (Some(&StreamEnd::AttachLost), vec![]));
    durable(&mut bench, 7);
    let alone = open(&mut bench, 5, 4, FOLLOW(2, 3));
    assert_eq!((ended(&alone, 5), logged(&alone)), (Some(&StreamEnd::AttachLost), vec![]));
    // Another comes under the same generation, and keeps the volume.
    open(&mut bench, 6, 5, Attach::Shared);
    assert_eq!(stands(&durable(&mut bench, 8), 6), Some(2));
    let late = open(&mut bench, 7, 4, FOLLOW(2, 3));
    assert_eq!((ended(&late, 7), logged(&late)), (Some(&StreamEnd::AttachLost), vec![]));
    assert_eq!(ended(&late, 6), None);
    // Who attaches anew may take it.
    open(&mut bench, 8, 6, OVER(2));
    assert_eq!(stands(&durable(&mut bench, 9), 8), Some(3));
    // The one that it took it from is none to follow.
    let late = open(&mut bench, 9, 4, FOLLOW(3, 3));
    assert_eq!((ended(&late, 9), logged(&late)), (Some(&StreamEnd::AttachLost), vec![]));
}

/// The entry may be cut in a failover, and then the attachment before it goes on.
#[test]
fn nobody_loses_the_volume_to_an_entry_that_is_not_committed() {
    let mut bench = alone();
    open(&mut bench, 1, 1, OVER(0));
    durable(&mut bench, 5);
    open(&mut bench, 2, 2, OVER(1));
    // It lost its link and comes again: neither refused nor let in before the entry's fate is known.
    let outputs = open(&mut bench, 3, 1, AGAIN(1));
    assert_eq!((stands(&outputs, 3), ended(&outputs, 3)), (None, None));
    let other = open(&mut bench, 4, 3, Attach::Exclusive { over: None });
    assert_eq!(ended(&other, 4), None, "what is in force is not known");
    let (_, outputs) = bench.feed(Input::Assignment(config(3, 2, &[1, 2])));
    for stream in [2, 3, 4] {
        assert_eq!(ended(&outputs, stream), Some(&StreamEnd::NotPrimary));
    }
}

/// The blocks of a partial write are read before it gets its LSN, and meanwhile the volume goes to
/// another.
#[test]
fn a_partial_write_is_checked_when_its_lsn_is_assigned() {
    let mut bench = alone();
    open(&mut bench, 1, 1, OVER(0));
    durable(&mut bench, 5);
    let partial = request(1, 1, 1, Op::PartialWrite(BLOCK));
    bench.request(1, partial);
    open(&mut bench, 2, 2, OVER(1));
    let read = Input::ReadDone { stream: StreamId(1), tag: partial.tag, error: None };
    let (_, outputs) = bench.feed(read);
    assert_eq!(logged(&outputs), []);
    let outputs = durable(&mut bench, 6);
    assert_eq!(logged(&outputs), []);
    assert_eq!(ended(&outputs, 1), Some(&StreamEnd::AttachLost));
}

/// A request must name the generation of its own session: neither an older nor a newer one.
#[test]
fn a_request_names_the_generation_of_its_own_session() {
    for claimed in [0, 2] {
        let mut bench = alone();
        open(&mut bench, 1, 1, OVER(0));
        durable(&mut bench, 5);
        let outputs = bench.request(1, request(1, 1, claimed, Op::Write(BLOCK)));
        assert_eq!(ended(&outputs, 1), Some(&StreamEnd::AttachLost), "{claimed}");
        assert_eq!(logged(&outputs), []);
    }
}

/// An operator's order says which generation is to end: given twice, it ends no later one.
#[test]
fn an_operator_ends_what_there_is_once() {
    let mut bench = alone();
    open(&mut bench, 1, 1, OVER(0));
    durable(&mut bench, 5);
    let revoke = Attach::Revoke { upto: AttachGeneration(1) };
    let asked = open(&mut bench, 2, 8, revoke);
    assert_eq!((ended(&asked, 1), ended(&asked, 2)), (None, None), "it is not committed yet");
    let outputs = durable(&mut bench, 6);
    assert_eq!(ended(&outputs, 1), Some(&StreamEnd::AttachLost));
    assert_eq!(ended(&outputs, 2), Some(&StreamEnd::Revoked(AttachGeneration(2))));
    open(&mut bench, 3, 2, Attach::Shared);
    assert_eq!(stands(&durable(&mut bench, 7), 3), Some(2), "anybody may attach now");
    let again = open(&mut bench, 4, 8, revoke);
    assert_eq!(ended(&again, 4), Some(&StreamEnd::Revoked(AttachGeneration(2))));
    assert_eq!(ended(&again, 3), None);
    let tag = request(2, 1, 2, Op::Write(BLOCK));
    bench.request(3, tag);
    let outputs = durable(&mut bench, 8);
    let done = Output::Answer { stream: StreamId(3), tag: tag.tag, outcome: Outcome::Done };
    assert!(outputs.contains(&done), "{outputs:?}");
}

/// A loss takes a generation back that clients were told of, and its number goes to another: what names it
/// from before the loss ends nothing.
fn a_number_of_before_a_loss_takes_the_volume_from_nobody(loss: Option<u64>) {
    // What the replica that is lost told: to who attaches, and to the operator.
    let mut bench = alone();
    open(&mut bench, 1, 1, OVER(0));
    assert_eq!(stands(&durable(&mut bench, 5), 1), Some(1));
    let told = open(&mut bench, 2, 2, Attach::Exclusive { over: None });
    assert_eq!(ended(&told, 2), Some(&over_in(1, 0)));
    assert_eq!(bench.replica.view(Millis(bench.now)).attach, AttachGeneration(1));

    // What is left never got the entry, and attaches another in its place.
    let mut bench = Bench::open(opened(2, 4, 4));
    let loss_generation = LossGeneration(1);
    bench.feed(Input::Assignment(Config { loss_generation, ..config(3, 2, &[2]) }));
    bench.pass(2_000);
    let told = open(&mut bench, 1, 3, Attach::Exclusive { over: None });
    assert_eq!(ended(&told, 1), Some(&over_in(0, 1)));
    open_in(&mut bench, 2, 3, OVER(0), Some(1));
    assert_eq!(stands(&durable(&mut bench, 5), 2), Some(1));

    for (stream, attach) in [(3, OVER(1)), (4, Attach::Revoke { upto: AttachGeneration(1) })] {
        let late = open_in(&mut bench, stream, 2, attach, loss);
        assert_eq!(ended(&late, stream), Some(&StreamEnd::SessionLost), "{attach:?}");
        assert_eq!((logged(&late), ended(&late, 2)), (vec![], None));
    }
    let write = Request { epoch: Epoch(3), ..request(3, 1, 1, Op::Write(BLOCK)) };
    bench.request(2, write);
    let done = Output::Answer { stream: StreamId(2), tag: write.tag, outcome: Outcome::Done };
    assert!(durable(&mut bench, 6).contains(&done));
    // Who asks since the loss takes it.
    open_in(&mut bench, 5, 4, OVER(1), Some(1));
    assert_eq!(stands(&durable(&mut bench, 7), 5), Some(2));
}

#[test]
fn an_attachment_or_an_order_of_before_a_loss_ends_none_of_after_it() {
    a_number_of_before_a_loss_takes_the_volume_from_nobody(Some(0));
}

#[test]
fn a_generation_without_its_age_ends_nothing() {
    a_number_of_before_a_loss_takes_the_volume_from_nobody(None);
}

#[cfg(feature = "bugs")]
#[test]
fn what_takes_a_number_of_before_a_loss_is_noticed() {
    let bug = sbk_engine::bugs::Bug::AttachAcrossLoss;
    crate::bench::bites(bug, an_attachment_or_an_order_of_before_a_loss_ends_none_of_after_it);
    crate::bench::bites(bug, a_generation_without_its_age_ends_nothing);
}

/// An operator is shown, and so names, no generation that may be cut and come again for another.
#[test]
fn a_generation_that_may_be_cut_is_not_shown() {
    let mut bench = alone();
    open(&mut bench, 1, 1, OVER(0));
    durable(&mut bench, 5);
    open(&mut bench, 2, 2, OVER(1));
    let shown = |bench: &Bench| {
        let view = bench.replica.view(Millis(bench.now));
        let held = view.attachments.iter().map(|held| (held.session, held.exclusive));
        (view.attach.0, held.collect::<Vec<_>>())
    };
    assert_eq!(shown(&bench), (1, vec![(session(1), true)]));
    durable(&mut bench, 6);
    assert_eq!(shown(&bench), (2, vec![(session(2), true)]));
}
