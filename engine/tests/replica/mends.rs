//! Rotten blocks of a primary, repaired from what another in-sync replica holds.

use std::collections::BTreeMap;

use sbk_engine::replication::io::{
    Input, Op, OpenStream, Outcome, Output, Payload, Reader, Request, StreamId,
};
use sbk_engine::replication::log::{BlockRange, EntryKind, RequestTag};
use sbk_engine::replication::mend::{MESSAGE_BLOCKS, MendCounts};
use sbk_engine::replication::message::{Facts, RecoveryId, ToPrimary, ToReplica};
use sbk_engine::replication::room::SpaceTold;
use sbk_engine::replication::{IgnoredReason, Verdict};
use sbk_engine::types::{
    AttachGeneration, Config, Durability, Epoch, Lba, Lsn, Millis, NodeId, SessionId,
};
use uuid::Uuid;

use crate::bench::{Bench, append, config, entry, facts, opened, replica, sent, table, told};

/// The blocks of the volume.
pub(crate) const BLOCKS: u64 = 1 << 10;
pub(crate) const NOTHING: [u64; 0] = [];
/// T of the default parameters, twice.
pub(crate) const PATIENCE: u64 = 4_000;

/// A primary, replica 1, in epoch 2, that serves one client.
pub(crate) struct Scene {
    pub(crate) bench: Bench,
    /// The others that answer, and what each acknowledged.
    members: BTreeMap<u128, u64>,
    sequence: u64,
}

/// A question for blocks: its number, C, and which.
pub(crate) type Asked = (u64, u64, Vec<u64>);

pub(crate) fn asked(outputs: &[Output], of: u128) -> Vec<Asked> {
    let question = |message: ToReplica| match message {
        ToReplica::ReadBlocks { request, committed, blocks } => {
            Some((request, committed.0, blocks.into_iter().map(|lba| lba.0).collect()))
        }
        _ => None,
    };
    sent(outputs, of).into_iter().filter_map(question).collect()
}

/// The only question to replica `of`.
pub(crate) fn only(outputs: &[Output], of: u128) -> Asked {
    let mut all = asked(outputs, of);
    assert_eq!(all.len(), 1, "one question to {of}: {outputs:?}");
    all.remove(0)
}

pub(crate) fn lbas(blocks: &[u64]) -> Vec<Lba> {
    blocks.iter().map(|lba| Lba(*lba)).collect()
}

/// What is read for requests: their sequence, first block, and whether for a merge.
pub(crate) fn reads(outputs: &[Output]) -> Vec<(u64, u64, bool)> {
    let read = |output: &Output| match output {
        Output::Read { tag, range, merge, .. } => Some((tag.sequence, range.lba.0, *merge)),
        _ => None,
    };
    outputs.iter().filter_map(read).collect()
}

/// The blocks that are logged as another replica holds them.
pub(crate) fn mended(outputs: &[Output]) -> Vec<u64> {
    let block = |output: &Output| match output {
        Output::Append { headers, payload: Payload::Blocks } => {
            assert!(headers.iter().all(|header| header.origin.is_none()), "no client asked for it");
            let EntryKind::Write { lba, blocks: 1 } = headers[0].kind else {
                panic!("a block is written: {headers:?}");
            };
            Some(lba.0)
        }
        _ => None,
    };
    outputs.iter().filter_map(block).collect()
}

pub(crate) fn answers(outputs: &[Output]) -> Vec<(u64, Outcome)> {
    let answer = |output: &Output| match output {
        Output::Answer { tag, outcome, .. } => Some((tag.sequence, outcome.clone())),
        _ => None,
    };
    outputs.iter().filter_map(answer).collect()
}

pub(crate) fn failed(outputs: &[Output]) -> Vec<(u64, String)> {
    let failed = answers(outputs).into_iter().filter_map(|(sequence, outcome)| match outcome {
        Outcome::Failed(why) => Some((sequence, why)),
        Outcome::Done | Outcome::Invalid(_) => None,
    });
    failed.collect()
}

fn tag(sequence: u64) -> RequestTag {
    RequestTag { session: SessionId(Uuid::from_u128(5)), sequence }
}

pub(crate) fn in_mode(epoch: u64, durability: Durability, isr: &[u128]) -> Config {
    Config { durability, blocks: BLOCKS, ..config(epoch, 1, isr) }
}

impl Scene {
    /// `lags` has what was committed before, and acknowledges nothing more.
    pub(crate) fn new(durability: Durability, isr: &[u128], lags: Option<u128>) -> Self {
        let mut log = opened(1, 5, 5);
        log.state.blocks = BLOCKS;
        let mut bench = Bench::open(log);
        bench.now += 2_000;
        let (_, probed) = bench.feed(Input::Assignment(in_mode(2, durability, isr)));
        let others: Vec<_> = isr.iter().copied().filter(|n| *n != 1).collect();
        let mut scene = Self { bench, members: BTreeMap::new(), sequence: 0 };
        for n in others {
            let held = if lags == Some(n) { 4 } else { 5 };
            let facts = Facts { ..facts(table(&[(1, 1)]), held, held) };
            let met = scene.bench.meet(n, 2, &probed, facts);
            let cut = sent(&met, n).into_iter().find_map(|message| match message {
                ToReplica::Cut { request, end, .. } => Some((request, end)),
                _ => None,
            });
            let (request, durable) = cut.expect("a cut");
            scene.bench.answer(n, 2, ToPrimary::CutDone { request, durable });
            scene.members.insert(n, held);
            scene.ack(n, held);
        }
        if let Some(lags) = lags {
            scene.members.remove(&lags);
        }
        let session = SessionId(Uuid::from_u128(5));
        let open = OpenStream::shared(StreamId(1), session, NodeId(Uuid::nil()));
        scene.bench.feed(Input::OpenStream(open));
        let outputs = scene.sync();
        assert!(outputs.iter().any(|o| matches!(o, Output::StreamOpened { .. })), "{outputs:?}");
        scene
    }

    pub(crate) fn three() -> Self {
        Self::new(Durability::SyncAll, &[1, 2, 3], None)
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.bench.replica.config().map_or(0, |config| config.epoch.0)
    }

    pub(crate) fn ack(&mut self, n: u128, lsn: u64) -> Vec<Output> {
        let epoch = self.epoch();
        let (durable, recorded) = (Lsn(lsn), Some(Epoch(epoch)));
        let promised = Some(Millis(self.bench.now));
        let ack = ToPrimary::Ack {
            durable,
            written: durable,
            recorded,
            promised,
            space: SpaceTold::default(),
        };
        self.bench.answer(n, epoch, ack).1
    }

    /// All members sync what is logged.
    pub(crate) fn sync(&mut self) -> Vec<Output> {
        let end = self.end();
        let generation = self.bench.replica.generation();
        let mut outputs = self.bench.feed(Input::Durable { generation, lsn: Lsn(end) }).1;
        for n in self.members.keys().copied().collect::<Vec<_>>() {
            self.members.insert(n, end);
            outputs.extend(self.ack(n, end));
        }
        outputs
    }

    /// Time passes, and the members go on promising.
    pub(crate) fn wait(&mut self, ms: u64) -> Vec<Output> {
        let mut outputs = Vec::new();
        for _ in 0..ms / 200 {
            outputs.extend(self.bench.pass(200));
            for (n, lsn) in self.members.clone() {
                outputs.extend(self.ack(n, lsn));
            }
        }
        outputs
    }

    pub(crate) fn end(&self) -> u64 {
        self.bench.replica.view(Millis(self.bench.now)).end.0
    }

    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let MendCounts { rotten, mended, not_mended, scrubbed: _ } =
            self.bench.replica.view(Millis(self.bench.now)).mends;
        (rotten, mended, not_mended)
    }

    pub(crate) fn request(&mut self, op: Op) -> (RequestTag, Vec<Output>) {
        self.sequence += 1;
        let tag = tag(self.sequence);
        let epoch = Epoch(self.epoch());
        let request = Request { tag, low: 0, epoch, attach: AttachGeneration(0), op };
        (tag, self.bench.request(1, request))
    }

    pub(crate) fn read(&mut self, lba: u64, blocks: u32) -> RequestTag {
        let (tag, outputs) = self.request(Op::Read(BlockRange { lba: Lba(lba), blocks }));
        assert_eq!(reads(&outputs), [(tag.sequence, lba, false)]);
        tag
    }

    pub(crate) fn write(&mut self, lba: u64) -> Vec<Output> {
        self.request(Op::Write(BlockRange { lba: Lba(lba), blocks: 1 })).1
    }

    pub(crate) fn rotten(&mut self, tag: RequestTag, blocks: &[u64]) -> Vec<Output> {
        let reader = Reader::Request { stream: StreamId(1), tag };
        let (blocks, why) = (lbas(blocks), "they are damaged".to_owned());
        self.bench.feed(Input::Rotten { reader, blocks, why }).1
    }

    pub(crate) fn tell(
        &mut self,
        n: u128,
        request: u64,
        at: u64,
        held: &[u64],
        rotten: &[u64],
    ) -> (Verdict, Vec<Output>) {
        let (held, rotten, at) = (lbas(held), lbas(rotten), Lsn(at));
        let epoch = self.epoch();
        self.bench.answer(n, epoch, ToPrimary::Blocks { request, at, held, rotten })
    }

    pub(crate) fn read_done(&mut self, tag: RequestTag) -> Vec<Output> {
        let stream = StreamId(1);
        self.bench.feed(Input::ReadDone { stream, tag, error: None }).1
    }
}

#[test]
fn a_rotten_block_is_logged_again_as_a_member_holds_it_and_then_read() {
    let mut scene = Scene::three();
    let tag = scene.read(7, 3);
    let outputs = scene.rotten(tag, &[8]);
    let committed = scene.end();
    let (request, at_least, blocks) = only(&outputs, 2);
    assert_eq!((at_least, blocks), (committed, vec![8]));
    assert!(asked(&outputs, 3).is_empty(), "one is asked at a time");
    assert_eq!(answers(&outputs), []);

    // Another client's write makes no difference to this block.
    scene.write(3);
    let (verdict, outputs) = scene.tell(2, request, committed, &[8], &[]);
    assert_eq!(verdict, Verdict::Applied);
    assert_eq!(mended(&outputs), [8]);
    assert_eq!(reads(&outputs), [(tag.sequence, 7, false)], "behind what was logged");
    let logged = |o: &Output| matches!(o, Output::Append { .. });
    let read = |o: &Output| matches!(o, Output::Read { .. });
    assert!(outputs.iter().position(logged) < outputs.iter().position(read), "{outputs:?}");
    assert_eq!(answers(&scene.read_done(tag)), [], "it is not committed yet");
    let outputs = scene.sync();
    assert!(answers(&outputs).contains(&(tag.sequence, Outcome::Done)), "{outputs:?}");
    assert_eq!(scene.counts(), (1, 1, 0));
    let (verdict, outputs) = scene.tell(2, request, committed, &[8], &[]);
    assert_eq!(verdict, Verdict::Ignored(IgnoredReason::LateCopy));
    assert_eq!(mended(&outputs), NOTHING);
}

/// A client writes the block while a member reads it: what it had read before must not be logged over that.
#[test]
fn an_entry_that_changes_a_block_ends_its_repair() {
    let mut scene = Scene::three();
    let tag = scene.read(8, 2);
    let outputs = scene.rotten(tag, &[8, 9]);
    let committed = scene.end();
    let (request, _, blocks) = only(&outputs, 2);
    assert_eq!(blocks, [8, 9]);
    let outputs = scene.write(8);
    assert_eq!(reads(&outputs), [], "one of its blocks is still damaged");
    scene.sync();
    let (_, outputs) = scene.tell(2, request, committed, &[8, 9], &[]);
    assert_eq!(mended(&outputs), [9], "what the client wrote stays");
    assert_eq!(reads(&outputs), [(tag.sequence, 8, false)]);
    assert_eq!(scene.counts(), (2, 1, 0));

    // Of one that was logged between the read and the word of it nothing is asked.
    let tag = scene.read(20, 1);
    scene.write(20);
    let outputs = scene.rotten(tag, &[20]);
    assert_eq!(reads(&outputs), [(tag.sequence, 20, false)]);
    assert!(asked(&outputs, 2).is_empty() && asked(&outputs, 3).is_empty());
    for (number, op) in [
        (30, Op::Trim(BlockRange { lba: Lba(29), blocks: 2 })),
        (40, Op::Zero(BlockRange { lba: Lba(40), blocks: 2 })),
    ] {
        let tag = scene.read(number, 1);
        let (request, ..) = only(&scene.rotten(tag, &[number]), 2);
        let outputs = scene.request(op).1;
        assert_eq!(reads(&outputs), [(tag.sequence, number, false)], "{outputs:?}");
        let (verdict, outputs) = scene.tell(2, request, committed, &[number], &[]);
        assert_eq!(verdict, Verdict::Ignored(IgnoredReason::LateCopy));
        assert_eq!(mended(&outputs), NOTHING);
    }
}

/// A voter that never got the last write to the block holds what was there before it, sound.
#[test]
fn a_voter_that_is_behind_is_not_asked_and_its_answer_not_taken() {
    let mut scene = Scene::new(Durability::SyncQuorum, &[1, 2, 3], Some(3));
    scene.write(8);
    let outputs = scene.sync();
    assert!(answers(&outputs).contains(&(1, Outcome::Done)), "two of three have it: {outputs:?}");
    let tag = scene.read(8, 1);
    let outputs = scene.rotten(tag, &[8]);
    let committed = scene.end();
    let (request, at_least, _) = only(&outputs, 2);
    assert_eq!(at_least, committed);
    let (verdict, outputs) = scene.tell(2, request, committed - 1, &[8], &[]);
    assert_eq!(verdict, Verdict::Applied);
    assert_eq!(mended(&outputs), NOTHING, "that was before the write");
    let (_, outputs) = scene.tell(2, request, committed, &[], &[8]);
    assert!(asked(&outputs, 3).is_empty(), "{outputs:?}");
    // Once it has caught up it may be.
    let outputs = scene.ack(3, committed);
    let (request, ..) = only(&outputs, 3);
    let (_, outputs) = scene.tell(3, request, committed, &[8], &[]);
    assert_eq!(mended(&outputs), [8]);
}

#[test]
fn where_nobody_can_have_it_the_read_fails_at_once() {
    let mut scene = Scene::new(Durability::SyncAll, &[1], None);
    let tag = scene.read(8, 1);
    let failed = failed(&scene.rotten(tag, &[8]));
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert!(failed[0].1.contains("they are damaged; no other replica is in sync"), "{failed:?}");
    assert_eq!(scene.counts(), (1, 0, 1));
}

/// A client that does not take the error for an answer must not push all else out of the trace.
#[test]
fn a_block_that_nobody_has_is_told_of_once() {
    let mut scene = Scene::new(Durability::SyncAll, &[1], None);
    let traced = |outputs: &[Output]| {
        outputs.iter().filter(|output| matches!(output, Output::Trace(_))).count()
    };
    for again in 0..5 {
        let tag = scene.read(8, 1);
        let outputs = scene.rotten(tag, &[8]);
        assert_eq!((failed(&outputs).len(), traced(&outputs)), (1, if again == 0 { 2 } else { 0 }));
    }
    assert_eq!(scene.counts(), (5, 0, 5));
    let tag = scene.read(9, 1);
    assert_eq!(traced(&scene.rotten(tag, &[9])), 2, "another one is");
}

#[test]
fn where_it_is_rotten_on_all_the_read_fails_when_the_last_says_so() {
    let mut scene = Scene::three();
    let tag = scene.read(8, 1);
    let (request, committed, _) = only(&scene.rotten(tag, &[8]), 2);
    let (_, outputs) = scene.tell(2, request, committed, &[], &[8]);
    assert_eq!(answers(&outputs), []);
    let (request, ..) = only(&outputs, 3);
    let (_, outputs) = scene.tell(3, request, committed, &[], &[8]);
    let failed = failed(&outputs);
    assert!(failed[0].1.contains("damaged on every other in-sync replica"), "{failed:?}");
    assert_eq!(scene.counts(), (1, 0, 1));
}

#[test]
fn members_that_give_no_answer_are_asked_in_turn_for_a_while() {
    let mut scene = Scene::three();
    let tag = scene.read(8, 1);
    let mut outputs = scene.rotten(tag, &[8]);
    let mut turns = Vec::new();
    let mut waited = 0;
    while failed(&outputs).is_empty() {
        for n in [2, 3] {
            turns.extend(asked(&outputs, n).into_iter().map(|_| n));
        }
        assert_eq!(answers(&outputs), []);
        outputs = scene.wait(200);
        waited += 200;
        assert!(waited <= PATIENCE, "it is not answered");
    }
    assert_eq!((waited, turns), (PATIENCE, vec![2, 3, 2, 3]));
    assert_eq!(failed(&outputs).len(), 1);
    assert_eq!(scene.counts(), (1, 0, 1));
    // An answer that comes now changes nothing.
    let (verdict, outputs) = scene.tell(2, 9, scene.end(), &[8], &[]);
    assert_eq!(verdict, Verdict::Ignored(IgnoredReason::LateCopy));
    assert_eq!(mended(&outputs), NOTHING);
}

#[test]
fn in_a_new_epoch_all_are_asked_anew() {
    let mut scene = Scene::three();
    let tag = scene.read(8, 1);
    let (old, committed, _) = only(&scene.rotten(tag, &[8]), 2);
    let next = Config { since: Epoch(2), ..in_mode(3, Durability::SyncAll, &[1, 2, 3]) };
    let (_, outputs) = scene.bench.feed(Input::Assignment(next));
    assert!(asked(&outputs, 2).is_empty(), "it has not said that it is in that epoch");
    let late =
        ToPrimary::Blocks { request: old, at: Lsn(committed), held: lbas(&[8]), rotten: vec![] };
    let (verdict, outputs) = scene.bench.answer(2, 2, late);
    assert_eq!(verdict, Verdict::Ignored(IgnoredReason::StaleEpoch));
    assert_eq!(mended(&outputs), NOTHING);
    let outputs = scene.ack(3, committed);
    let (request, ..) = only(&outputs, 3);
    assert_eq!(mended(&scene.tell(3, request, committed, &[8], &[]).1), [8]);
}

/// A run that ended took the question with it.
#[test]
fn a_member_that_is_gone_is_not_waited_for() {
    let mut scene = Scene::three();
    let tag = scene.read(8, 1);
    only(&scene.rotten(tag, &[8]), 2);
    let gone = Input::Unreachable { replica: replica(2).id, refused: true };
    let (request, committed, _) = only(&scene.bench.feed(gone).1, 3);
    let (_, outputs) = scene.tell(3, request, committed, &[8], &[]);
    assert_eq!(mended(&outputs), [8]);
}

/// A part of a block is written: what the rest of it holds is needed first.
#[test]
fn a_merge_waits_for_the_repair() {
    let mut scene = Scene::three();
    let range = BlockRange { lba: Lba(8), blocks: 1 };
    let (tag, outputs) = scene.request(Op::PartialWrite(range));
    assert_eq!(reads(&outputs), [(tag.sequence, 8, true)]);
    let (request, committed, _) = only(&scene.rotten(tag, &[8]), 2);
    let outputs = scene.write(8);
    assert_eq!(scene.end(), committed, "what comes later waits for the merge: {outputs:?}");
    let (_, outputs) = scene.tell(2, request, committed, &[8], &[]);
    assert_eq!((mended(&outputs), reads(&outputs)), (vec![8], vec![(tag.sequence, 8, true)]));
    let outputs = scene.read_done(tag);
    let logged = |payload: &Payload| {
        outputs.iter().any(|o| matches!(o, Output::Append { payload: p, .. } if p == payload))
    };
    assert!(logged(&Payload::Client(tag)), "{outputs:?}");
    assert_eq!(scene.end(), committed + 3);
}

#[test]
fn a_merge_of_what_nobody_has_fails_and_lets_others_go_on() {
    let mut scene = Scene::new(Durability::SyncAll, &[1], None);
    let range = BlockRange { lba: Lba(8), blocks: 1 };
    let (tag, _) = scene.request(Op::PartialWrite(range));
    let end = scene.end();
    scene.write(8);
    assert_eq!(scene.end(), end);
    let outputs = scene.rotten(tag, &[8]);
    assert_eq!(failed(&outputs)[0].0, tag.sequence);
    assert_eq!(scene.end(), end + 1, "the write of the whole block needs nothing of it");
}

#[test]
fn what_a_base_lane_finds_is_repaired_too() {
    let mut scene = Scene::three();
    let session = RecoveryId { epoch: Epoch(2), number: 1 };
    let (blocks, why) = (lbas(&[8]), "damaged".to_owned());
    let (_, outputs) =
        scene.bench.feed(Input::Rotten { reader: Reader::Base { session }, blocks, why });
    let (request, committed, _) = only(&outputs, 2);
    assert_eq!(mended(&scene.tell(2, request, committed, &[8], &[]).1), [8]);
    assert_eq!(scene.counts(), (1, 1, 0));
}

#[test]
fn many_rotten_blocks_are_asked_for_in_parts_and_all_are_repaired() {
    let mut scene = Scene::three();
    let mut left: Vec<u64> = (100..400).collect();
    let tag = scene.read(100, 300);
    let mut outputs = scene.rotten(tag, &left);
    let mut most = 0;
    for _ in 0..100 {
        let questions = asked(&outputs, 2);
        let under_way: usize = questions.iter().map(|(_, _, blocks)| blocks.len()).sum();
        most = most.max(under_way);
        let mut read = false;
        for (request, _, blocks) in questions {
            assert!(blocks.len() <= MESSAGE_BLOCKS);
            let at = scene.end();
            scene.sync();
            let (_, told) = scene.tell(2, request, at, &blocks, &[]);
            assert_eq!(mended(&told), blocks);
            left.retain(|block| !blocks.contains(block));
            read = !reads(&told).is_empty();
        }
        assert!(read, "it is read again once those are repaired that it waits for");
        if left.is_empty() {
            break;
        }
        outputs = scene.rotten(tag, &left);
    }
    assert!(left.is_empty() && most < 300, "{left:?} left, {most} at a time");
    assert_eq!(scene.counts(), (300, 300, 0));

    // What finds no room is read again when there is some.
    let (first, second) = (scene.read(500, 200), scene.read(800, 1));
    let outputs = scene.rotten(first, &(500..700).collect::<Vec<_>>());
    assert!(asked(&scene.rotten(second, &[800]), 2).is_empty());
    let (request, _, blocks) = asked(&outputs, 2).remove(0);
    let at = scene.end();
    let (_, outputs) = scene.tell(2, request, at, &blocks, &[]);
    assert_eq!(reads(&outputs), [(second.sequence, 800, false)]);
}

/// A word on nothing that is read, or on other blocks, is a mistake.
#[test]
fn a_word_of_what_nobody_reads_changes_nothing() {
    let mut scene = Scene::three();
    let tag = scene.read(8, 2);
    for (tag, blocks, reason) in [
        (tag, vec![], IgnoredReason::Malformed),
        (tag, vec![8, 10], IgnoredReason::Malformed),
        (self::tag(77), vec![8], IgnoredReason::UnknownStream),
    ] {
        let reader = Reader::Request { stream: StreamId(1), tag };
        let input = Input::Rotten { reader, blocks: lbas(&blocks), why: String::new() };
        assert_eq!(scene.bench.feed(input).0, Verdict::Ignored(reason));
    }
    let (request, committed, _) = only(&scene.rotten(tag, &[8]), 2);
    let (verdict, outputs) = scene.tell(2, request, committed + 9, &[8], &[]);
    assert_eq!(verdict, Verdict::Ignored(IgnoredReason::Malformed), "nobody has logged so much");
    assert_eq!(mended(&outputs), NOTHING);
    let (_, outputs) = scene.tell(2, request, committed, &[9], &[]);
    assert_eq!(mended(&outputs), NOTHING, "nobody asked for that");
}

/// Replica 2 follows 1 in epoch 2 with a log of 5, of which it has synced 4.
fn follower() -> Bench {
    let mut bench = Bench::open(opened(2, 4, 4));
    bench.hear(1, 2, ToReplica::Fence { request: 1, config: config(2, 1, &[1, 2]) });
    bench.hear(1, 2, ToReplica::Cut { request: 2, end: Lsn(4), table: table(&[(1, 1)]) });
    bench.hear(1, 2, ToReplica::Append(append(5, 4, 4, vec![entry(2, 5)])));
    bench
}

#[test]
fn a_member_reads_blocks_as_of_the_end_of_its_log() {
    let mut bench = follower();
    let question = |committed, blocks: &[u64]| ToReplica::ReadBlocks {
        request: 7,
        committed: Lsn(committed),
        blocks: lbas(blocks),
    };
    let (_, outputs) = bench.hear(1, 2, question(5, &[3, 9]));
    assert!(
        matches!(&outputs[..], [Output::SendBlocks { request: 7, at: Lsn(5), blocks, .. }] if *blocks == lbas(&[3, 9])),
        "{outputs:?}"
    );
    let (verdict, outputs) = bench.hear(1, 2, question(6, &[3]));
    assert_eq!(verdict, Verdict::Ignored(IgnoredReason::NotReconciled), "it lacks the last write");
    assert_eq!(outputs, []);
    let all: Vec<_> = (0..=MESSAGE_BLOCKS as u64).collect();
    for blocks in [&[][..], &all] {
        assert_eq!(
            bench.hear(1, 2, question(5, blocks)).0,
            Verdict::Ignored(IgnoredReason::Malformed)
        );
    }
    let (verdict, _) = bench.hear(1, 3, question(5, &[3]));
    assert!(matches!(verdict, Verdict::Ignored(_)), "of an epoch that it was not told of");
    let (_, outputs) = bench.hear(1, 1, question(5, &[3]));
    assert!(matches!(told(&outputs)[..], [ToPrimary::Refused { .. }]), "{outputs:?}");
    let rotten = Input::Rotten { reader: Reader::Asked, blocks: lbas(&[3]), why: String::new() };
    assert_eq!(bench.feed(rotten).0, Verdict::Applied);
    assert_eq!(bench.replica.view(Millis(bench.now)).mends.rotten, 1);
}

#[test]
fn a_replica_that_is_not_reconciled_reads_nothing_for_its_primary() {
    let mut bench = Bench::open(opened(2, 4, 4));
    bench.hear(1, 2, ToReplica::Fence { request: 1, config: config(2, 1, &[1, 2]) });
    let question = ToReplica::ReadBlocks { request: 7, committed: Lsn(4), blocks: lbas(&[3]) };
    let (verdict, _) = bench.hear(1, 2, question);
    assert_eq!(
        verdict,
        Verdict::Ignored(IgnoredReason::NotReconciled),
        "its log may have to be cut"
    );
}

#[cfg(feature = "bugs")]
mod bites {
    use sbk_engine::bugs::Bug;

    use crate::bench::bites;

    #[test]
    fn a_repair_from_a_voter_that_is_behind_is_noticed() {
        bites(Bug::MendBehind, super::a_voter_that_is_behind_is_not_asked_and_its_answer_not_taken);
        bites(Bug::MendBehind, super::a_member_reads_blocks_as_of_the_end_of_its_log);
    }

    #[test]
    fn a_repair_over_newer_content_is_noticed() {
        bites(Bug::MendOverNewer, super::an_entry_that_changes_a_block_ends_its_repair);
    }
}
