//! `best_effort`: the primary alone acknowledges, under a lease.

use sbk_engine::replication::io::{
    Input, IsrChange, Op, OpenStream, Outcome, Output, Request, StreamId,
};
use sbk_engine::replication::log::{BlockRange, RequestTag};
use sbk_engine::replication::message::{ToPrimary, ToReplica};
use sbk_engine::replication::room::SpaceTold;
use sbk_engine::types::{
    AttachGeneration, Config, Durability, Epoch, Lba, Lsn, Millis, NodeId, SessionId,
};
use uuid::Uuid;

use crate::bench::{Bench, config, facts, opened, sent, table};

fn best_effort(epoch: u64, isr: &[u128]) -> Config {
    Config { durability: Durability::BestEffort, ..config(epoch, 1, isr) }
}

fn session() -> SessionId {
    SessionId(Uuid::from_u128(5))
}

fn durable(bench: &mut Bench, lsn: u64) -> Vec<Output> {
    let generation = bench.replica.generation();
    bench.feed(Input::Durable { generation, lsn: Lsn(lsn) }).1
}

/// Replica 2 acknowledges up to `lsn`, and promises by the clock of now.
fn acked(bench: &mut Bench, lsn: u64) -> Vec<Output> {
    let ack = ToPrimary::Ack {
        durable: Lsn(lsn),
        recorded: Some(Epoch(2)),
        promised: Some(Millis(bench.now)),
        written: Lsn(lsn),
        space: SpaceTold::default(),
    };
    bench.answer(2, 2, ack).1
}

/// A long log, and a member that was not met yet: it may hold all of it.
#[test]
fn a_new_primary_has_nobody_leave_before_it_knows_what_they_hold() {
    let mut bench = Bench::open(opened(1, 10_000, 10_000));
    bench.now += 2_000;
    let (_, mut outputs) = bench.feed(Input::Assignment(best_effort(2, &[1, 2])));
    outputs.extend(bench.pass(500));
    let leaves = |output: &Output| match output {
        Output::Propose(proposal) => matches!(proposal.change, IsrChange::Leave { .. }),
        _ => false,
    };
    assert!(!outputs.iter().any(leaves), "{outputs:?}");
    assert!(bench.pass(2_000).iter().any(leaves), "it is silent");
}

/// Replica 1 is primary with 2 in sync, both hold entries 1 to 4; a client is attached by entry 5.
fn serving() -> Bench {
    let mut bench = Bench::open(opened(1, 4, 4));
    bench.now += 2_000;
    let (_, probed) = bench.feed(Input::Assignment(best_effort(2, &[1, 2])));
    let outputs = bench.meet(2, 2, &probed, facts(table(&[(1, 1)]), 4, 4));
    let request = sent(&outputs, 2).iter().find_map(|message| match message {
        ToReplica::Cut { request, .. } => Some(*request),
        _ => None,
    });
    let request = request.expect("a cut");
    bench.answer(2, 2, ToPrimary::CutDone { request, durable: Lsn(4) });
    acked(&mut bench, 4);
    let stream = StreamId(1);
    let open = OpenStream::shared(stream, session(), NodeId(Uuid::nil()));
    bench.feed(Input::OpenStream(open));
    let outputs = durable(&mut bench, 5);
    assert!(
        outputs.iter().any(|output| matches!(output, Output::StreamOpened { .. })),
        "{outputs:?}"
    );
    bench
}

fn ask(bench: &mut Bench, sequence: u64, op: Op) -> Vec<Output> {
    let tag = RequestTag { session: session(), sequence };
    let (epoch, attach) = (Epoch(2), AttachGeneration(0));
    bench.request(1, Request { tag, low: 0, epoch, attach, op })
}

fn write(bench: &mut Bench, sequence: u64) -> Vec<Output> {
    ask(bench, sequence, Op::Write(BlockRange { lba: Lba(0), blocks: 1 }))
}

fn done(outputs: &[Output], sequence: u64) -> bool {
    outputs.iter().any(|output| {
        matches!(output, Output::Answer { tag, outcome: Outcome::Done, .. }
            if tag.sequence == sequence)
    })
}

#[test]
fn the_primary_acknowledges_alone_and_extents_wait_for_the_members() {
    let mut bench = serving();
    assert!(!done(&write(&mut bench, 1), 1), "its own disk has not synced it");
    let outputs = durable(&mut bench, 6);
    assert!(done(&outputs, 1), "no member needs to have it: {outputs:?}");
    let committed = |outputs: &[Output]| {
        outputs.iter().any(|o| matches!(o, Output::Committed(lsn) if *lsn == Lsn(6)))
    };
    assert!(!committed(&outputs), "a member may still be chosen without it: no extent has it");
    assert!(done(&ask(&mut bench, 2, Op::Flush), 2), "all that it acknowledged is on its disk");
    assert!(committed(&acked(&mut bench, 6)), "now every member has it");
}

#[test]
fn nothing_is_acknowledged_without_a_lease() {
    let mut bench = serving();
    write(&mut bench, 1);
    bench.pass(1_100);
    assert!(!done(&durable(&mut bench, 6), 1), "a member may have been promoted without it");
    assert!(!done(&ask(&mut bench, 2, Op::Flush), 2), "nor is it told that it is safe");
    let outputs = acked(&mut bench, 5);
    assert!(done(&outputs, 1) && done(&outputs, 2), "{outputs:?}");
}

/// A set that waits for its slowest member would be no better than `sync_all`.
#[test]
fn a_member_that_falls_far_behind_leaves() {
    let mut bench = serving();
    let mut left = Vec::new();
    for n in 1..=900 {
        write(&mut bench, n);
        left.extend(durable(&mut bench, 5 + n));
    }
    assert!(!proposes_to_leave(&left), "900 entries are a burst");
    for n in 901..=2_100 {
        let tag = RequestTag { session: session(), sequence: n };
        let op = Op::Write(BlockRange { lba: Lba(0), blocks: 1 });
        let (epoch, attach) = (Epoch(2), AttachGeneration(0));
        left.extend(bench.request(1, Request { tag, low: n - 1, epoch, attach, op }));
        left.extend(durable(&mut bench, 5 + n));
    }
    assert!(proposes_to_leave(&left), "it holds up the extents");
}

fn proposes_to_leave(outputs: &[Output]) -> bool {
    outputs.iter().any(|output| {
        matches!(output, Output::Propose(proposal)
            if matches!(proposal.change, IsrChange::Leave { .. }))
    })
}

/// What was acknowledged before the joiner counted must be on it before it can be chosen.
#[test]
fn a_joiner_reaches_the_head_of_when_it_began_to_count() {
    let mut bench = serving();
    // It holds up to 4, and 5 is acknowledged, when it leaves and begins to count as a joiner.
    bench.feed(Input::Assignment(Config { since: Epoch(2), ..best_effort(3, &[1]) }));
    let joins = |bench: &mut Bench, lsn: u64| {
        let ack = ToPrimary::Ack {
            durable: Lsn(lsn),
            recorded: Some(Epoch(3)),
            promised: Some(Millis(bench.now)),
            written: Lsn(lsn),
            space: SpaceTold::default(),
        };
        let (_, outputs) = bench.answer(2, 3, ack);
        outputs.iter().any(|output| {
            matches!(output, Output::Propose(proposal)
                if matches!(proposal.change, IsrChange::Join { .. }))
        })
    };
    assert!(!joins(&mut bench, 4), "entry 5 was acknowledged without it");
    assert!(joins(&mut bench, 5));
}
