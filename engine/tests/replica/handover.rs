//! The planned move of the primary's role, from the side of the one that lets go and of the one
//! that takes over.

use std::collections::BTreeSet;

use sbk_engine::replication::io::{
    Input, IsrChange, Op, OpenStream, Outcome, Output, Proposal, Request, StreamEnd, StreamId,
};
use sbk_engine::replication::log::{BlockRange, RequestTag};
use sbk_engine::replication::message::{ToPrimary, ToReplica};
use sbk_engine::replication::room::SpaceTold;
use sbk_engine::replication::view::{HandoverView, RoleView, View};
use sbk_engine::types::{
    AttachGeneration, Config, Durability, Epoch, Lba, Lsn, Millis, NodeId, SessionId, Wish,
};
use uuid::Uuid;

use crate::bench::{Bench, append, config, facts, opened, replica, sent, table};

const MODES: [Durability; 3] =
    [Durability::SyncAll, Durability::SyncQuorum, Durability::BestEffort];

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

/// Replica 1 is primary in epoch 2 with 2 in sync and waits for nothing; a client is attached by
/// entry 5.
fn serving(durability: Durability) -> Bench {
    let mut bench = Bench::open(opened(1, 4, 4));
    bench.now += 2_000;
    let config = Config { durability, ..config(2, 1, &[1, 2]) };
    let (_, probed) = bench.feed(Input::Assignment(config));
    let outputs = bench.meet(2, 2, &probed, facts(table(&[(1, 1)]), 4, 4));
    let request = sent(&outputs, 2).iter().find_map(|message| match message {
        ToReplica::Cut { request, .. } => Some(*request),
        _ => None,
    });
    let request = request.expect("a cut");
    bench.answer(2, 2, ToPrimary::CutDone { request, durable: Lsn(4) });
    acked(&mut bench, 2, 4);
    let stream = StreamId(1);
    let open = OpenStream::shared(stream, session(), NodeId(Uuid::nil()));
    bench.feed(Input::OpenStream(open));
    durable(&mut bench, 5);
    let opened = acked(&mut bench, 2, 5);
    assert!(view(&bench).serving, "{:?}: {opened:?}", view(&bench));
    bench
}

fn view(bench: &Bench) -> View {
    bench.replica.view(Millis(bench.now))
}

fn wish(bench: &mut Bench, primary: Option<u128>) -> Vec<Output> {
    let primary = primary.map(|n| replica(n).id);
    bench.feed(Input::Wish(Wish { primary, leave: BTreeSet::new() })).1
}

fn ask(bench: &mut Bench, sequence: u64, op: Op) -> Vec<Output> {
    let tag = RequestTag { session: session(), sequence };
    let (epoch, attach) = (Epoch(2), AttachGeneration(0));
    bench.request(1, Request { tag, low: 0, epoch, attach, op })
}

fn range() -> BlockRange {
    BlockRange { lba: Lba(0), blocks: 1 }
}

fn answered(outputs: &[Output]) -> Vec<u64> {
    let answers = outputs.iter().filter_map(|output| match output {
        Output::Answer { tag, outcome: Outcome::Done, .. } => Some(tag.sequence),
        _ => None,
    });
    answers.collect()
}

fn logged(outputs: &[Output]) -> bool {
    outputs.iter().any(|output| matches!(output, Output::Append { .. }))
}

fn proposals(outputs: &[Output]) -> Vec<Proposal> {
    let proposed = outputs.iter().filter_map(|output| match output {
        Output::Propose(proposal) => Some(proposal.clone()),
        _ => None,
    });
    proposed.collect()
}

fn handed_over() -> IsrChange {
    IsrChange::HandOver { to: replica(2) }
}

/// Replica 1 has proposed that 2 is primary.
fn proposed(durability: Durability) -> (Bench, Proposal) {
    let mut bench = serving(durability);
    let outputs = wish(&mut bench, Some(2));
    let proposal = proposals(&outputs).pop().expect("a proposal");
    assert_eq!(proposal.change, handed_over());
    (bench, proposal)
}

#[test]
fn nothing_is_logged_from_the_wish_on_and_nothing_is_answered_from_the_proposal_on() {
    for durability in MODES {
        let mut bench = serving(durability);
        ask(&mut bench, 1, Op::Write(range()));
        let outputs = wish(&mut bench, Some(2));
        assert_eq!(proposals(&outputs), [], "{durability}: 2 lacks an entry");
        assert_eq!(view(&bench).handover, HandoverView::Draining(replica(2).id));
        assert!(!logged(&ask(&mut bench, 2, Op::Write(range()))), "{durability}");
        let mut told = durable(&mut bench, 6);
        ask(&mut bench, 3, Op::Read(range()));
        // What is answered by then goes out before the proposal.
        told.extend(acked(&mut bench, 2, 6));
        assert_eq!(answered(&told), [1], "{durability}");
        assert_eq!(proposals(&told).pop().map(|p| p.change), Some(handed_over()));
        assert!(!view(&bench).serving);
        let tag = RequestTag { session: session(), sequence: 3 };
        let (_, outputs) = bench.feed(Input::ReadDone { stream: StreamId(1), tag, error: None });
        assert!(answered(&outputs).is_empty(), "{durability}: it has stopped");
        // Its members still promise; it is bound by its word nevertheless.
        let outputs = acked(&mut bench, 2, 6);
        assert_eq!((answered(&outputs), logged(&outputs)), (vec![], false), "{durability}");

        let by = Some(replica(1));
        let next = Config { handed_over_by: by, durability, ..config(3, 2, &[1, 2]) };
        let (_, outputs) = bench.feed(Input::Assignment(next));
        let reason = StreamEnd::NotPrimary;
        let ended = Output::StreamEnded { stream: StreamId(1), reason };
        assert!(outputs.contains(&ended) && answered(&outputs).is_empty(), "{outputs:?}");
        assert_eq!(view(&bench).role, RoleView::Idle);
    }
}

/// A partial write that was taken before the wish is logged still, and the heir must have it.
#[test]
fn a_merge_that_is_under_way_is_finished_first() {
    let mut bench = serving(Durability::SyncAll);
    ask(&mut bench, 1, Op::PartialWrite(range()));
    assert_eq!(proposals(&wish(&mut bench, Some(2))), []);
    let tag = RequestTag { session: session(), sequence: 1 };
    let (_, outputs) = bench.feed(Input::ReadDone { stream: StreamId(1), tag, error: None });
    assert!(logged(&outputs) && proposals(&outputs).is_empty(), "{outputs:?}");
    durable(&mut bench, 6);
    let outputs = acked(&mut bench, 2, 6);
    assert_eq!((answered(&outputs), proposals(&outputs).len()), (vec![1], 1));
}

#[test]
fn before_the_proposal_whatever_speaks_against_it_ends_the_attempt_and_requests_go_on() {
    type Case = (&'static str, fn(&mut Bench) -> Vec<Output>);
    let cases: [Case; 4] = [
        ("it does not answer", |bench| {
            bench.feed(Input::Unreachable { replica: replica(2).id, refused: true }).1
        }),
        ("after 500 ms it holds 5 of 6", |bench| bench.pass(500)),
        ("it is wished no more", |bench| wish(bench, None)),
        ("it is to leave the in-sync set", |bench| {
            let leave = BTreeSet::from([replica(2).id]);
            bench.feed(Input::Wish(Wish { primary: Some(replica(2).id), leave })).1
        }),
    ];
    for (why, happens) in cases {
        let mut bench = serving(Durability::SyncAll);
        ask(&mut bench, 1, Op::Write(range()));
        wish(&mut bench, Some(2));
        ask(&mut bench, 2, Op::Write(range()));
        let mut outputs = happens(&mut bench);
        let given_up = outputs.iter().any(|output| {
            matches!(output, Output::Trace(event)
                if event.what == "handover-given-up" && event.why.contains(why))
        });
        assert!(given_up, "{why}: {outputs:?}");
        outputs.extend(bench.pass(1));
        assert!(logged(&outputs), "{why}: the request that waited is logged: {outputs:?}");
        let handed = |p: &Proposal| matches!(p.change, IsrChange::HandOver { .. });
        assert!(!proposals(&outputs).iter().any(handed), "{why}");
        // Not again at once: clients waited for it.
        let outputs = bench.pass(1);
        assert!(!outputs.iter().any(|o| matches!(o, Output::Trace(e) if e.what == "handover")));
    }
}

/// Its promises to an earlier primary still run, or it has committed nothing in its epoch: another
/// one might serve.
#[test]
fn a_primary_that_is_not_ready_waits_and_says_why() {
    let mut bench = Bench::open(opened(1, 4, 4));
    bench.feed(Input::Assignment(config(2, 1, &[1, 2])));
    let outputs = wish(&mut bench, Some(2));
    assert_eq!(proposals(&outputs), []);
    let waits = |bench: &Bench, text: &str| match view(bench).handover {
        HandoverView::Waits(why) => assert!(why.contains(text), "{why}"),
        other => panic!("{other:?}"),
    };
    waits(&bench, "waits for promises made to earlier primaries");
    bench.pass(1_021);
    waits(&bench, "nothing was committed in this epoch yet");

    let mut bench = serving(Durability::SyncAll);
    assert_eq!(proposals(&wish(&mut bench, Some(3))), []);
    waits(&bench, "it is not in sync");
    assert!(view(&bench).serving && view(&bench).reason.contains("it is not in sync"));
}

/// Only a newer epoch is an answer: whatever else comes, the proposal may still be committed.
#[test]
fn a_handover_of_unknown_outcome_is_ended_by_another_epoch_alone() {
    for durability in MODES {
        let (mut bench, proposal) = proposed(durability);
        ask(&mut bench, 1, Op::Write(range()));
        assert_eq!(proposals(&bench.pass(999)), []);
        let burns = proposals(&bench.pass(1));
        assert_eq!(burns.iter().map(|p| p.change.clone()).collect::<Vec<_>>(), [IsrChange::Burn]);
        // Neither of the two was heard of.
        bench.feed(Input::Answered { proposal: proposal.id, config: None });
        bench.feed(Input::Answered { proposal: burns[0].id, config: None });
        let outputs = acked(&mut bench, 2, 5);
        assert!(!logged(&outputs) && answered(&outputs).is_empty(), "{durability}");
        assert_eq!(proposals(&bench.pass(1_000)).len(), 1, "{durability}: it asks again");

        let mut next = Config { durability, ..config(3, 1, &[1, 2]) };
        next.since = Epoch(2);
        let (_, outputs) = bench.feed(Input::Assignment(next));
        assert!(logged(&outputs), "{durability}: it goes on: {outputs:?}");
    }
}

/// The masters refused it: that epoch is still in force as far as is known, and is burned at once.
#[test]
fn a_refused_handover_costs_no_more_than_another_epoch() {
    let (mut bench, proposal) = proposed(Durability::SyncAll);
    let unchanged = Some(config(2, 1, &[1, 2]));
    let (_, outputs) =
        bench.feed(Input::Answered { proposal: proposal.id, config: unchanged.clone() });
    let burns = proposals(&outputs);
    assert_eq!(burns.iter().map(|p| p.change.clone()).collect::<Vec<_>>(), [IsrChange::Burn]);
    let burned = Input::Answered { proposal: burns[0].id, config: unchanged };
    assert_eq!(proposals(&bench.feed(burned).1), [], "not at once again");
    assert!(!view(&bench).serving);
}

/// A process that is about to end hands over to whoever holds most, without a wish.
#[test]
fn a_primary_that_resigns_chooses_its_heir() {
    let mut bench = serving(Durability::SyncAll);
    let (_, outputs) = bench.feed(Input::Resign);
    assert_eq!(proposals(&outputs).pop().map(|p| p.change), Some(handed_over()));

    let mut bench = serving(Durability::SyncAll);
    bench.feed(Input::Unreachable { replica: replica(2).id, refused: false });
    let (_, outputs) = bench.feed(Input::Resign);
    assert_eq!(proposals(&outputs), []);
    let HandoverView::Waits(why) = view(&bench).handover else { panic!("nobody is there") };
    assert!(why.contains("no in-sync replica can take over now"), "{why}");
}

/// The heir promised the one that handed over, and waits for no such promise; what it promised to
/// others, or may have promised before it restarted, binds it as ever.
#[test]
fn what_was_promised_to_the_one_that_handed_over_binds_nobody() {
    let promised = |late: u64, by: Option<u128>| {
        let mut bench = Bench::open(opened(2, 0, 0));
        bench.now += late;
        bench.hear(1, 2, ToReplica::Fence { request: 1, config: config(2, 1, &[1, 2]) });
        bench.hear(1, 2, ToReplica::Cut { request: 2, end: Lsn(0), table: table(&[(2, 1)]) });
        let mut stamped = append(1, 0, 0, Vec::new());
        stamped.stamp = Some(Millis(9));
        bench.hear(1, 2, ToReplica::Append(stamped));
        let by = by.map(replica);
        let next = Config { handed_over_by: by, ..config(3, 2, &[1, 2]) };
        bench.feed(Input::Assignment(next));
        view(&bench).ready
    };
    assert!(promised(2_000, Some(1)));
    assert!(!promised(2_000, None), "a failover waits for it");
    assert!(!promised(2_000, Some(3)), "another handed over");
    assert!(!promised(500, Some(1)), "an earlier run may have promised somebody else");
}
