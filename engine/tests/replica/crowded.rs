//! Epoch after epoch in which something is logged and nothing committed: a superblock has room for so
//! many, and of those above the committed LSN none can be dropped.

use sbk_engine::replication::Params;
use sbk_engine::replication::io::{
    Input, IsrChange, Op, OpenStream, Output, Proposal, Request, StreamId,
};
use sbk_engine::replication::log::{BlockRange, EpochTable, RequestTag};
use sbk_engine::replication::message::{Append, ToPrimary, ToReplica};
use sbk_engine::replication::room::SpaceTold;
use sbk_engine::types::{
    AttachGeneration, Config, Durability, Epoch, Lba, Lsn, Millis, NodeId, SessionId, WriteAck,
};
use uuid::Uuid;

use crate::bench::{Bench, append, config, entry, facts, opened, replica, sent, table, told};

/// Replica 1 is named primary once more than a superblock has room for, each time with a client.
const LAST: u64 = 300;

const MODES: [(Durability, WriteAck); 4] = [
    (Durability::SyncAll, WriteAck::Durable),
    (Durability::SyncAll, WriteAck::Written),
    (Durability::SyncQuorum, WriteAck::Durable),
    (Durability::BestEffort, WriteAck::Durable),
];

fn in_mode(epoch: u64, (durability, write_ack): (Durability, WriteAck)) -> Config {
    let mut config = Config { durability, write_ack, min_in_sync: 2, ..config(epoch, 1, &[1, 2]) };
    if durability == Durability::BestEffort {
        config.min_in_sync = 1;
    }
    if write_ack == WriteAck::Written {
        let tail = opened(1, 0, 0).tail;
        config.tails = config.isr.iter().map(|id| (*id, tail)).collect();
    }
    config
}

fn sync(bench: &mut Bench) -> Vec<Output> {
    let lsn = bench.replica.view(Millis(bench.now)).end;
    let generation = bench.replica.generation();
    bench.feed(Input::Durable { generation, lsn }).1
}

/// A new client comes, or one that was here before.
fn open(bench: &mut Bench, n: u64) -> Vec<Output> {
    let session = SessionId(Uuid::from_u128(u128::from(n)));
    let open = OpenStream::shared(StreamId(n), session, NodeId(Uuid::nil()));
    bench.feed(Input::OpenStream(open)).1
}

fn logged(outputs: &[Output]) -> usize {
    outputs.iter().filter(|output| matches!(output, Output::Append { .. })).count()
}

fn tables(outputs: &[Output]) -> impl Iterator<Item = &EpochTable> {
    outputs.iter().filter_map(|output| match output {
        Output::Persist(kept) => Some(&kept.table),
        _ => None,
    })
}

/// The cut that replica 2 is asked for.
fn cut(outputs: &[Output]) -> Option<(u64, Lsn)> {
    sent(outputs, 2).into_iter().find_map(|message| match message {
        ToReplica::Cut { request, end, .. } => Some((request, end)),
        _ => None,
    })
}

/// What replica 2 answers to a cut, and then to the feed of `epoch`.
fn follow(bench: &mut Bench, epoch: u64, outputs: &[Output]) -> Vec<Output> {
    let (request, durable) = cut(outputs).expect("a cut");
    bench.answer(2, epoch, ToPrimary::CutDone { request, durable });
    let durable = bench.replica.view(Millis(bench.now)).end;
    let (recorded, promised) = (Some(Epoch(epoch)), Some(Millis(bench.now)));
    let ack = ToPrimary::Ack {
        durable,
        written: durable,
        recorded,
        promised,
        space: SpaceTold::default(),
    };
    bench.answer(2, epoch, ack).1
}

/// A primary that comes back again and again while its only other member is away. That one has all that
/// was acknowledged, up to 5, and knows only 3 to be committed.
fn through_epochs(mode: (Durability, WriteAck)) {
    let most = Params::default().max_uncommitted_epochs;
    let mut bench = Bench::open(opened(1, 5, 5));
    let mut epochs_with_entries = 0;
    for epoch in 2..=LAST {
        let (_, outputs) = bench.feed(Input::Assignment(in_mode(epoch, mode)));
        assert!(tables(&outputs).all(|table| table.pairs().len() <= EpochTable::CAPACITY));
        if mode.0 == Durability::SyncQuorum {
            // A majority told what it holds, and the other one of it is gone before it was cut.
            bench.meet(2, epoch, &outputs, facts(table(&[(1, 1)]), 3, 5));
        }
        let outputs = bench.pass(2_000);
        assert!(tables(&outputs).all(|table| table.pairs().len() <= EpochTable::CAPACITY));
        assert!(bench.replica.view(Millis(bench.now)).ready, "{mode:?}: epoch {epoch}");
        epochs_with_entries += u64::from(logged(&open(&mut bench, epoch)) > 0);
        sync(&mut bench);
    }
    assert_eq!(epochs_with_entries, most, "{mode:?}: the others log nothing");
    let view = bench.replica.view(Millis(bench.now));
    assert!(view.reason.contains("64 epochs"), "{mode:?}: {}", view.reason);
    assert_eq!(view.table_epoch, Some(Epoch(LAST)), "an epoch that logs nothing takes no room");

    // The member is back: nothing more need be logged for what is logged to be committed.
    let epoch = LAST + 1;
    let (_, outputs) = bench.feed(Input::Assignment(in_mode(epoch, mode)));
    let reconciled = bench.meet(2, epoch, &outputs, facts(table(&[(1, 1)]), 3, 5));
    let end = cut(&reconciled).map(|(_, end)| end);
    assert_eq!(end, Some(Lsn(5)), "{mode:?}: what it acknowledged stays with it");
    assert_eq!(logged(&open(&mut bench, epoch)), 0);
    let before = bench.replica.view(Millis(bench.now)).end;
    let outputs = follow(&mut bench, epoch, &reconciled);
    let view = bench.replica.view(Millis(bench.now));
    assert!(view.committed >= before, "{mode:?}: {} of {before}", view.committed);
    assert_eq!(view.reason, "", "{mode:?}");
    assert!(logged(&outputs) > 0, "{mode:?}: and the client that waited is served: {outputs:?}");
}

#[test]
fn a_primary_logs_nothing_while_too_many_epochs_begin_above_what_is_committed() {
    MODES.into_iter().for_each(through_epochs);
}

/// A request whose blocks were being read when its epoch was over. The member promises and comes to nothing.
#[test]
fn a_partial_write_that_was_being_merged_waits_too() {
    let mode = (Durability::BestEffort, WriteAck::Durable);
    let most = Params::default().max_uncommitted_epochs;
    let mut bench = Bench::open(opened(1, 5, 5));
    bench.now += 2_000;
    let (_, probed) = bench.feed(Input::Assignment(in_mode(2, mode)));
    let reconciled = bench.meet(2, 2, &probed, facts(table(&[(1, 1)]), 5, 5));
    let (request, _) = cut(&reconciled).expect("a cut");
    bench.answer(2, 2, ToPrimary::CutDone { request, durable: Lsn(5) });
    let stuck = |bench: &mut Bench, epoch, durable, recorded| {
        let promised = Some(Millis(bench.now));
        let ack = ToPrimary::Ack {
            durable,
            written: durable,
            recorded: Some(recorded),
            promised,
            space: SpaceTold::default(),
        };
        bench.answer(2, epoch, ack).1
    };
    stuck(&mut bench, 2, Lsn(5), Epoch(1));
    open(&mut bench, 1);
    assert!(sync(&mut bench).iter().any(|o| matches!(o, Output::StreamOpened { .. })));
    let tag = RequestTag { session: SessionId(Uuid::from_u128(1)), sequence: 1 };
    let op = Op::PartialWrite(BlockRange { lba: Lba(0), blocks: 1 });
    let request = Request { tag, low: 0, epoch: Epoch(2), attach: AttachGeneration(0), op };
    let outputs = bench.request(1, request);
    assert!(outputs.iter().any(|o| matches!(o, Output::Read { merge: true, .. })), "{outputs:?}");

    let goes_on = |epoch| Config { since: Epoch(2), ..in_mode(epoch, mode) };
    let last = most + 2;
    for epoch in 3..last {
        bench.feed(Input::Assignment(goes_on(epoch)));
        assert_eq!(logged(&open(&mut bench, epoch)), 1, "epoch {epoch}");
        sync(&mut bench);
    }
    bench.feed(Input::Assignment(goes_on(last)));
    let read = Input::ReadDone { stream: StreamId(1), tag, error: None };
    assert_eq!(logged(&bench.feed(read).1), 0, "it would begin the epoch");
    let end = bench.replica.view(Millis(bench.now)).end;
    let outputs = stuck(&mut bench, last, end, Epoch(last));
    assert!(logged(&outputs) > 0, "once all that is committed, it does: {outputs:?}");
}

/// Where clients wait for no member, they don't wait for one that answers and comes to nothing either.
#[test]
fn in_best_effort_a_member_that_crowds_the_table_leaves() {
    let mode = (Durability::BestEffort, WriteAck::Durable);
    let most = Params::default().max_uncommitted_epochs;
    let mut bench = Bench::open(opened(1, 5, 5));
    let mut epoch = 1;
    for _ in 0..most {
        epoch += 1;
        bench.feed(Input::Assignment(in_mode(epoch, mode)));
        bench.pass(2_000);
        assert!(logged(&open(&mut bench, epoch)) > 0);
        sync(&mut bench);
    }
    epoch += 1;
    let (_, probed) = bench.feed(Input::Assignment(in_mode(epoch, mode)));
    let reconciled = bench.meet(2, epoch, &probed, facts(table(&[(1, 1)]), 3, 5));
    let (request, durable) = cut(&reconciled).expect("a cut");
    bench.answer(2, epoch, ToPrimary::CutDone { request, durable });
    let mut waited = 0;
    loop {
        let (recorded, promised) = (Some(Epoch(1)), Some(Millis(bench.now)));
        let ack = ToPrimary::Ack {
            durable,
            written: durable,
            recorded,
            promised,
            space: SpaceTold::default(),
        };
        bench.answer(2, epoch, ack);
        assert_eq!(logged(&open(&mut bench, 1000)), 0);
        let leaves = |output: &Output| {
            matches!(output, Output::Propose(Proposal { change: IsrChange::Leave { replica: gone }, .. })
                if *gone == replica(2).id)
        };
        if bench.pass(200).iter().any(leaves) {
            break;
        }
        waited += 200;
        assert!(waited < 4_000, "it answers, and the clients wait for ever");
    }
    assert!(waited > 1_000, "it had {waited} ms to get what it lacked");
    let left = Config {
        epoch: Epoch(epoch + 1),
        since: Epoch(epoch),
        isr: [replica(1).id].into(),
        ..in_mode(epoch, mode)
    };
    let (_, outputs) = bench.feed(Input::Assignment(left));
    assert!(logged(&outputs) > 0, "the client that waited is served: {outputs:?}");
}

/// A replica that was away for hundreds of epochs is sent their entries all at once.
#[test]
fn a_follower_records_no_epoch_that_its_superblock_has_no_room_for() {
    let mut bench = Bench::open(opened(1, 5, 5));
    bench.hear(2, 500, ToReplica::Fence { request: 1, config: config(500, 2, &[1, 2]) });
    bench.hear(2, 500, ToReplica::Cut { request: 2, end: Lsn(5), table: table(&[(1, 1)]) });
    let entries = (6..=305).map(|lsn| entry(lsn - 4, lsn)).collect();
    let message = append(306, 305, 5, entries);
    bench.hear(2, 500, ToReplica::Append(message));
    let recorded = |outputs: &[Output]| {
        told(outputs).into_iter().find_map(|message| match message {
            ToPrimary::Ack { durable: Lsn(305), recorded, .. } => Some(recorded),
            _ => None,
        })
    };
    let outputs = sync(&mut bench);
    assert_eq!(recorded(&outputs), Some(Some(Epoch(1))), "{outputs:?}");
    let frontiers = || {
        let message = Append { stamp: Some(Millis(7)), ..append(306, 305, 305, Vec::new()) };
        ToReplica::Append(message)
    };
    let (_, outputs) = bench.hear(2, 500, frontiers());
    assert_eq!(tables(&outputs).count(), 0, "nothing is written that has no room: {outputs:?}");
    assert_eq!(recorded(&outputs), Some(Some(Epoch(1))));
    // A promise is made all the same; what it holds is in its log.
    let (_, outputs) =
        bench.hear(3, 501, ToReplica::Fence { request: 1, config: config(501, 3, &[1, 3]) });
    let most = tables(&outputs).map(|table| table.last()).collect::<Vec<_>>();
    assert_eq!(most, [Some((Epoch(301), Lsn(305)))], "its newest epoch has entries");

    bench.hear(3, 501, ToReplica::Cut { request: 2, end: Lsn(305), table: table(&[(301, 305)]) });
    let generation = bench.replica.generation();
    let (checkpoint, retained) = (Lsn(305), Lsn(1));
    bench.feed(Input::Checkpointed { generation, checkpoint, retained });
    let (_, outputs) = bench.hear(3, 501, frontiers());
    assert_eq!(recorded(&outputs), Some(Some(Epoch(501))));
}

/// Without the limit the last of these epochs could not be recorded.
#[cfg(feature = "bugs")]
#[test]
fn what_logs_in_any_epoch_is_noticed() {
    let bug = sbk_engine::bugs::Bug::LogInAnyEpoch;
    crate::bench::bites(
        bug,
        a_primary_logs_nothing_while_too_many_epochs_begin_above_what_is_committed,
    );
    crate::bench::bites(bug, a_partial_write_that_was_being_merged_waits_too);
}
