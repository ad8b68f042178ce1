//! Disks that run out of room, from the side of a primary and of a member.

use sbk_engine::recovery::FailureKind;
use sbk_engine::replication::io::{
    Attach, Input, Op, OpenStream, Outcome, Output, Request, StreamId,
};
use sbk_engine::replication::log::{BlockRange, EntryKind, LogState, RequestTag};
use sbk_engine::replication::message::{Incomplete, Lineage, RecoveryId, ToPrimary, ToReplica};
use sbk_engine::replication::room::{Room, Space, SpaceTold};
use sbk_engine::replication::{IgnoredReason, Verdict};
use sbk_engine::types::{Config, Durability, Epoch, Lba, Lsn, Millis, NodeId, SessionId};
use uuid::Uuid;

use crate::bench::{Bench, append, config, entry, opened, replica, sent, table, told, volume};
use crate::mends::{Scene, answers, in_mode, reads};

const STREAM: StreamId = StreamId(1);

fn space(room: Room) -> Space {
    Space { room, free: 3 << 20, size: 100 << 20, watermark: 5 << 20 }
}

fn blocks(lba: u64, blocks: u32) -> BlockRange {
    BlockRange { lba: Lba(lba), blocks }
}

/// The first blocks of the writes that are logged.
fn logged(outputs: &[Output]) -> Vec<u64> {
    let appended = outputs.iter().filter_map(|output| match output {
        Output::Append { headers, .. } => Some(headers[0].kind),
        _ => None,
    });
    let written = appended.filter_map(|kind| match kind {
        EntryKind::Write { lba, .. } | EntryKind::Trim { lba, .. } => Some(lba.0),
        _ => None,
    });
    written.collect()
}

/// The requests whose blocks are looked at.
fn looked(outputs: &[Output]) -> Vec<u64> {
    let looks = outputs.iter().filter_map(|output| match output {
        Output::LookForHoles { tag, .. } => Some(tag.sequence),
        _ => None,
    });
    looks.collect()
}

impl Scene {
    /// The primary's driver looks at its disk.
    fn own(&mut self, room: Room) -> Vec<Output> {
        self.bench.feed(Input::Space(space(room))).1
    }

    /// Member `n` says how much room it has, for the `change`th time.
    fn member(&mut self, n: u128, room: Room, change: u64) -> Vec<Output> {
        let (lsn, recorded) = (Lsn(5), Some(Epoch(self.epoch())));
        let promised = Some(Millis(self.bench.now));
        let space = SpaceTold { space: space(room), change };
        let ack = ToPrimary::Ack { durable: lsn, written: lsn, recorded, promised, space };
        let epoch = self.epoch();
        self.bench.answer(n, epoch, ack).1
    }

    fn holes(&mut self, tag: RequestTag, holes: bool) -> Vec<Output> {
        self.bench.feed(Input::HolesFound { stream: STREAM, tag, holes }).1
    }

    fn reason(&self) -> String {
        self.bench.replica.view(Millis(self.bench.now)).reason
    }
}

/// A primary with room whose two members have said that they have some too.
fn three() -> Scene {
    let mut scene = Scene::three();
    scene.own(Room::Ample);
    scene.member(2, Room::Ample, 0);
    scene.member(3, Room::Ample, 0);
    scene
}

#[test]
fn only_writes_to_blocks_that_hold_nothing_wait_for_room() {
    for short in [1, 2] {
        let mut scene = three();
        let outputs =
            if short == 1 { scene.own(Room::Short) } else { scene.member(2, Room::Short, 1) };
        assert_eq!(looked(&outputs), [0; 0]);
        let (new, outputs) = scene.request(Op::Write(blocks(7, 2)));
        assert_eq!((looked(&outputs), logged(&outputs)), (vec![1], vec![]));
        let (old, outputs) = scene.request(Op::Write(blocks(9, 1)));
        assert_eq!((looked(&outputs), logged(&outputs)), (vec![2], vec![]));
        assert_eq!(logged(&scene.holes(old, false)), [9], "it overtakes what touches other blocks");
        assert_eq!(logged(&scene.holes(new, true)), [0; 0]);
        assert_eq!(logged(&scene.request(Op::Trim(blocks(20, 1))).1), [20], "gives room");
        let reason = scene.reason();
        assert!(
            reason.contains("writes that need new space wait for room: node ")
                && reason
                    .contains("has 3 MiB free of 100 MiB, below its growth watermark of 5 MiB"),
            "{reason}"
        );
        let outputs =
            if short == 1 { scene.own(Room::Ample) } else { scene.member(2, Room::Ample, 2) };
        assert_eq!(logged(&outputs), [7], "it goes on by itself");
        assert_eq!(scene.reason(), "");
    }
}

#[test]
fn what_touches_the_blocks_of_a_write_that_waits_stays_behind_it() {
    let mut scene = three();
    scene.own(Room::Short);
    let (first, _) = scene.request(Op::Write(blocks(7, 2)));
    scene.holes(first, true);
    for op in [Op::Write(blocks(8, 1)), Op::Trim(blocks(7, 1)), Op::PartialWrite(blocks(8, 1))] {
        let (_, outputs) = scene.request(op);
        assert_eq!((logged(&outputs), looked(&outputs), reads(&outputs)), (vec![], vec![], vec![]));
    }
    let outputs = scene.own(Room::Ample);
    assert_eq!(logged(&outputs), [7, 8, 7]);
    assert_eq!(reads(&outputs), [(4, 8, true)]);
}

#[test]
fn nothing_is_written_on_a_disk_that_is_nearly_full() {
    let mut scene = three();
    scene.member(3, Room::Full, 1);
    let (_, outputs) = scene.request(Op::Write(blocks(7, 1)));
    assert_eq!((looked(&outputs), logged(&outputs)), (vec![], vec![]));
    assert_eq!(logged(&scene.request(Op::Trim(blocks(20, 1))).1), [20]);
    assert!(scene.reason().starts_with("writes wait for room: node "), "{}", scene.reason());
    // With somewhat more it depends.
    let outputs = scene.member(3, Room::Short, 2);
    assert_eq!((looked(&outputs), logged(&outputs)), (vec![1], vec![]));
}

#[test]
fn a_partial_write_that_was_merged_meanwhile_is_looked_at() {
    let mut scene = three();
    let (tag, outputs) = scene.request(Op::PartialWrite(blocks(7, 1)));
    assert_eq!(reads(&outputs), [(1, 7, true)]);
    scene.own(Room::Short);
    let outputs = scene.read_done(tag);
    assert_eq!((looked(&outputs), logged(&outputs)), (vec![1], vec![]));
    assert_eq!(logged(&scene.holes(tag, true)), [0; 0]);
    assert_eq!(logged(&scene.own(Room::Ample)), [7]);
}

#[test]
fn a_late_word_of_room_changes_nothing() {
    let mut scene = three();
    scene.member(2, Room::Short, 1);
    scene.member(2, Room::Ample, 0);
    assert_eq!(looked(&scene.request(Op::Write(blocks(7, 1))).1), [1], "short still");
    scene.member(2, Room::Ample, 2);
    scene.member(2, Room::Short, 1);
    assert_eq!(logged(&scene.request(Op::Write(blocks(8, 1))).1), [8], "it has room again");
}

#[test]
fn a_new_primary_writes_nothing_before_each_member_told_of_its_room() {
    let mut scene = Scene::three();
    scene.own(Room::Ample);
    // Another run of member 2: what the last one said counts for nothing.
    scene.member(3, Room::Ample, 0);
    let restarted = replica(2);
    scene.bench.feed(Input::Unreachable { replica: restarted.id, refused: false });
    let mut probe = None;
    for _ in 0..20 {
        let outputs = scene.bench.pass(50);
        probe = probe.or(sent(&outputs, 2).into_iter().find_map(|m| match m {
            ToReplica::Probe { request } => Some(request),
            _ => None,
        }));
    }
    let request = probe.expect("it is asked");
    let mut from = restarted;
    from.incarnation.open += 1;
    let epoch = Epoch(scene.epoch());
    let (volume, to) = (volume(), replica(1));
    let lineage = Lineage { volume, epoch, from, to };
    scene.bench.feed(Input::FromReplica { lineage, message: ToPrimary::Alive { request } });
    let (_, outputs) = scene.request(Op::Write(blocks(7, 1)));
    assert_eq!((looked(&outputs), logged(&outputs)), (vec![], vec![]));
    assert!(!scene.reason().contains("room"), "nobody said that there is too little");
}

#[test]
fn a_minority_short_of_room_holds_up_nothing_and_an_own_disk_does() {
    let mut scene = Scene::new(Durability::SyncQuorum, &[1, 2, 3], None);
    scene.own(Room::Ample);
    scene.member(2, Room::Ample, 0);
    scene.member(3, Room::Full, 1);
    assert_eq!(logged(&scene.request(Op::Write(blocks(7, 1))).1), [7]);
    scene.member(2, Room::Short, 1);
    assert_eq!(looked(&scene.request(Op::Write(blocks(8, 1))).1), [2], "a majority is short");
    let mut scene = Scene::new(Durability::BestEffort, &[1, 2, 3], None);
    scene.own(Room::Ample);
    scene.member(2, Room::Full, 1);
    assert_eq!(logged(&scene.request(Op::Write(blocks(7, 1))).1), [7]);
    scene.own(Room::Short);
    assert_eq!(looked(&scene.request(Op::Write(blocks(8, 1))).1), [2]);
}

#[test]
fn a_request_that_was_logged_before_waits_for_no_room() {
    let mut scene = three();
    scene.request(Op::Write(blocks(7, 1)));
    scene.own(Room::Full);
    // Its stream broke, and it comes again on the next.
    let open = OpenStream {
        stream: StreamId(2),
        session: SessionId(Uuid::from_u128(5)),
        attach: Attach::Again(Default::default()),
        node: NodeId(Uuid::nil()),
        loss_generation: Some(Default::default()),
    };
    scene.bench.feed(Input::OpenStream(open));
    let tag = RequestTag { session: SessionId(Uuid::from_u128(5)), sequence: 1 };
    let request = Request {
        tag,
        low: 0,
        epoch: Epoch(scene.epoch()),
        attach: Default::default(),
        op: Op::Write(blocks(7, 1)),
    };
    scene.sync();
    assert_eq!(answers(&scene.bench.request(2, request)), [(1, Outcome::Done)]);
}

#[test]
fn another_size_has_blocks_looked_at_again() {
    let mut scene = three();
    scene.own(Room::Short);
    let (tag, _) = scene.request(Op::Write(blocks(7, 1)));
    scene.holes(tag, true);
    let epoch = scene.epoch() + 1;
    let config = in_mode(epoch, Durability::SyncAll, &[1, 2, 3]);
    let config = Config { since: Epoch(2), wished_blocks: Some(config.blocks * 2), ..config };
    let mut outputs = scene.bench.feed(Input::Assignment(config)).1;
    outputs.extend(scene.bench.pass(1));
    assert_eq!(looked(&outputs), [1], "{outputs:?}");
}

/// Replica 2 follows replica 1 in epoch 2.
fn follower() -> Bench {
    let mut bench = Bench::open(opened(2, 4, 4));
    let config = config(2, 1, &[1, 2]);
    bench.hear(1, 2, ToReplica::Fence { request: 1, config });
    bench.hear(1, 2, ToReplica::Cut { request: 2, end: Lsn(4), table: table(&[(1, 1)]) });
    bench
}

fn said(outputs: &[Output]) -> Vec<(Room, u64)> {
    let acks = told(outputs).into_iter().filter_map(|message| match message {
        ToPrimary::Ack { space, .. } => Some((space.space.room, space.change)),
        _ => None,
    });
    acks.collect()
}

#[test]
fn a_member_says_how_much_room_it_has_with_each_acknowledgement_and_when_it_changes() {
    let mut bench = follower();
    assert_eq!(said(&bench.feed(Input::Space(space(Room::Ample))).1), []);
    assert_eq!(said(&bench.feed(Input::Space(space(Room::Short))).1), [(Room::Short, 1)]);
    assert_eq!(said(&bench.feed(Input::Space(space(Room::Short))).1), [], "no change");
    let message = ToReplica::Append(append(5, 4, 4, vec![entry(2, 5)]));
    bench.hear(1, 2, message);
    let durable = Input::Durable { generation: 0, lsn: Lsn(5) };
    assert_eq!(said(&bench.feed(durable).1), [(Room::Short, 1)]);
    assert_eq!(said(&bench.feed(Input::Space(space(Room::Ample))).1), [(Room::Ample, 2)]);
}

#[test]
fn no_rebuild_begins_on_a_disk_that_is_short_of_room() {
    let mut bench = Bench::open(opened(3, 4, 4));
    bench.hear(1, 2, ToReplica::Fence { request: 1, config: config(2, 1, &[1, 2]) });
    bench.feed(Input::Space(space(Room::Short)));
    let session = RecoveryId { epoch: Epoch(2), number: 1 };
    let begin = |request| ToReplica::BeginRebuild {
        request,
        mark: Incomplete { session, from: Lsn(0), base: Lsn(9), target: Lsn(9) },
        table: table(&[(1, 1)]),
        state: LogState::new(16),
    };
    let (verdict, outputs) = bench.hear(1, 2, begin(2));
    assert_eq!(verdict, Verdict::Applied, "its lane is the way back");
    let cause = FailureKind::NoSpace;
    assert_eq!(told(&outputs), [ToPrimary::SessionFailed { session, cause }]);
    assert!(!outputs.iter().any(|o| matches!(o, Output::Wipe { .. })), "{outputs:?}");
    let (verdict, _) = bench.hear(1, 2, begin(2));
    assert_eq!(verdict, Verdict::Ignored(IgnoredReason::LateCopy));
    bench.feed(Input::Space(space(Room::Ample)));
    let (_, outputs) = bench.hear(1, 2, begin(3));
    assert!(outputs.iter().any(|o| matches!(o, Output::Wipe { .. })), "{outputs:?}");
}

#[cfg(feature = "bugs")]
#[test]
fn known_bugs_are_found() {
    use sbk_engine::bugs::Bug;

    use crate::bench::bites;
    bites(Bug::GrowthOnShortDisk, only_writes_to_blocks_that_hold_nothing_wait_for_room);
    bites(Bug::MergeTakesRoom, a_partial_write_that_was_merged_meanwhile_is_looked_at);
    bites(Bug::LateWordOfRoom, a_late_word_of_room_changes_nothing);
    bites(Bug::RoomUnasked, a_new_primary_writes_nothing_before_each_member_told_of_its_room);
}
