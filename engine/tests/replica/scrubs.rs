//! Blocks that a scrub found damaged on some replica, repaired from the primary's own copy.

use sbk_engine::replication::io::{Fate, Input, Output};
use sbk_engine::replication::message::ToPrimary;
use sbk_engine::replication::scrub::{SCRUB_BLOCKS, SCRUB_ROOM};
use sbk_engine::replication::{IgnoredReason, Verdict};
use sbk_engine::types::{Config, Durability, Epoch, Lsn, Millis};

use crate::bench::{Bench, config, opened, replica};
use crate::mends::{
    BLOCKS, NOTHING, PATIENCE, Scene, answers, asked, failed, in_mode, lbas, mended, only, reads,
};

fn scrub(scene: &mut Scene, blocks: &[u64]) -> Vec<Output> {
    let (verdict, outputs) = scene.bench.feed(Input::Scrub { blocks: lbas(blocks) });
    assert_eq!(verdict, Verdict::Applied);
    outputs
}

/// What the primary asks itself: the question, the end of its log, and the blocks.
fn of_itself(outputs: &[Output]) -> Vec<(u64, u64, Vec<u64>)> {
    let question = |output: &Output| match output {
        Output::SendBlocks { lineage, request, at, blocks } => {
            assert_eq!((lineage.from, lineage.to), (replica(1), replica(1)));
            Some((*request, at.0, blocks.iter().map(|lba| lba.0).collect()))
        }
        _ => None,
    };
    outputs.iter().filter_map(question).collect()
}

fn settled(outputs: &[Output]) -> Vec<(Vec<u64>, Fate)> {
    let told = |output: &Output| match output {
        Output::Scrubbed { blocks, fate } => {
            Some((blocks.iter().map(|lba| lba.0).collect(), fate.clone()))
        }
        _ => None,
    };
    outputs.iter().filter_map(told).collect()
}

fn scrubbed(scene: &Scene) -> u64 {
    scene.bench.replica.view(Millis(scene.bench.now)).mends.scrubbed
}

#[test]
fn a_block_of_a_scrub_is_logged_again_as_the_primary_holds_it() {
    let mut scene = Scene::three();
    let outputs = scrub(&mut scene, &[8, 9]);
    let end = scene.end();
    let [(request, at, blocks)] = &of_itself(&outputs)[..] else { panic!("asks: {outputs:?}") };
    assert_eq!((*at, &blocks[..]), (end, &[8, 9][..]));
    assert!(asked(&outputs, 2).is_empty() && asked(&outputs, 3).is_empty(), "{outputs:?}");
    assert_eq!(settled(&outputs), []);
    // A write to another block makes no difference to these.
    scene.write(3);
    let (verdict, outputs) = scene.tell(1, *request, end, &[8, 9], &[]);
    assert_eq!((verdict, mended(&outputs)), (Verdict::Applied, vec![8, 9]));
    assert_eq!(settled(&outputs), [(vec![8], Fate::Logged), (vec![9], Fate::Logged)]);
    assert_eq!((scrubbed(&scene), scene.counts()), (2, (0, 0, 0)), "nothing rotted here");
    let (verdict, outputs) = scene.tell(1, *request, end, &[8, 9], &[]);
    assert_eq!(verdict, Verdict::Ignored(IgnoredReason::LateCopy));
    assert_eq!(mended(&outputs), NOTHING);
}

/// A client writes the block while the primary reads it: what it had read before must not be logged over that.
#[test]
fn an_entry_that_changes_a_block_ends_its_scrub() {
    let mut scene = Scene::three();
    let outputs = scrub(&mut scene, &[8, 9]);
    let (request, at, _) = of_itself(&outputs).remove(0);
    let outputs = scene.write(8);
    assert_eq!(settled(&outputs), [(vec![8], Fate::Overtaken)]);
    let (_, outputs) = scene.tell(1, request, at, &[8, 9], &[]);
    assert_eq!(mended(&outputs), [9], "what the client wrote stays");

    // Of one that was logged since the scrub read it nothing is asked.
    scene.write(20);
    let outputs = scrub(&mut scene, &[20]);
    assert_eq!(settled(&outputs), [(vec![20], Fate::Overtaken)]);
    assert_eq!(of_itself(&outputs), []);
}

#[test]
fn where_its_own_copy_is_damaged_a_member_is_asked() {
    let mut scene = Scene::three();
    let outputs = scrub(&mut scene, &[8, 9]);
    let (request, at, _) = of_itself(&outputs).remove(0);
    let (_, outputs) = scene.tell(1, request, at, &[9], &[8]);
    assert_eq!((mended(&outputs), settled(&outputs)), (vec![9], vec![(vec![9], Fate::Logged)]));
    let (request, committed, blocks) = only(&outputs, 2);
    assert_eq!(blocks, [8]);
    let (_, outputs) = scene.tell(2, request, committed, &[8], &[]);
    assert_eq!((mended(&outputs), settled(&outputs)), (vec![8], vec![(vec![8], Fate::Logged)]));
    assert_eq!((scrubbed(&scene), scene.counts()), (1, (1, 1, 0)));
}

/// A client's read meets the rot while the primary asks itself, and waits for the same repair.
#[test]
fn a_read_that_finds_it_damaged_here_has_a_member_asked() {
    let mut scene = Scene::three();
    let tag = scene.read(8, 1);
    let (request, at, _) = of_itself(&scrub(&mut scene, &[8])).remove(0);
    let outputs = scene.rotten(tag, &[8]);
    let (question, committed, _) = only(&outputs, 2);
    let (verdict, _) = scene.tell(1, request, at, &[8], &[]);
    assert_eq!(verdict, Verdict::Ignored(IgnoredReason::LateCopy));
    let (_, outputs) = scene.tell(2, question, committed, &[8], &[]);
    assert_eq!((mended(&outputs), settled(&outputs)), (vec![8], vec![(vec![8], Fate::Logged)]));
    assert_eq!(reads(&outputs), [(tag.sequence, 8, false)]);
    assert_eq!((scrubbed(&scene), scene.counts()), (0, (1, 1, 0)));
}

#[test]
fn alone_a_primary_repairs_what_it_has_and_says_what_it_has_not() {
    let mut scene = Scene::new(Durability::SyncAll, &[1], None);
    let (request, at, _) = of_itself(&scrub(&mut scene, &[8, 9])).remove(0);
    let (_, outputs) = scene.tell(1, request, at, &[9], &[8]);
    assert_eq!(mended(&outputs), [9]);
    let why = Fate::NotMended("no other replica is in sync".to_owned());
    assert_eq!(settled(&outputs), [(vec![9], Fate::Logged), (vec![8], why)]);
    assert_eq!(scene.counts(), (1, 0, 1));
}

/// A checkpoint went beyond the log's end of the question each time, or the disk gives nothing.
#[test]
fn what_can_not_be_told_is_asked_for_again_for_a_while() {
    let mut scene = Scene::three();
    let mut outputs = scrub(&mut scene, &[8]);
    let (mut questions, mut waited) = (Vec::new(), 0);
    while settled(&outputs).is_empty() {
        for (request, at, _) in of_itself(&outputs) {
            assert_eq!(settled(&scene.tell(1, request, at, &[], &[]).1), []);
            questions.push(request);
        }
        outputs = scene.wait(200);
        waited += 200;
        assert!(waited <= PATIENCE, "it is not settled");
    }
    assert_eq!((waited, &questions[..]), (PATIENCE, &[1, 2, 3, 4][..]));
    let why = format!("it could not be read and logged within {PATIENCE} ms");
    assert_eq!(settled(&outputs), [(vec![8], Fate::NotMended(why))]);
    assert_eq!(scene.counts(), (0, 0, 0), "nothing is known to be damaged here");
}

#[test]
fn a_scrub_takes_half_of_the_room_and_leaves_the_rest_to_readers() {
    let mut scene = Scene::three();
    let blocks: Vec<_> = (100..200).collect();
    let outputs = scrub(&mut scene, &blocks);
    let under_way: usize = of_itself(&outputs).iter().map(|(_, _, blocks)| blocks.len()).sum();
    assert_eq!(under_way, SCRUB_ROOM);
    assert_eq!(settled(&outputs), [(blocks[SCRUB_ROOM..].to_vec(), Fate::Busy)]);
    let tag = scene.read(300, 1);
    only(&scene.rotten(tag, &[300]), 2);
    // Told once more, those that are under way are not told to be busy.
    assert_eq!(settled(&scrub(&mut scene, &blocks[..2])), []);
    for (request, at, blocks) in of_itself(&outputs) {
        let (_, outputs) = scene.tell(1, request, at, &blocks, &[]);
        assert_eq!((mended(&outputs), failed(&outputs)), (blocks, Vec::new()));
    }
    assert_eq!(settled(&scrub(&mut scene, &blocks[SCRUB_ROOM..])), [], "there is room again");
}

#[test]
fn who_is_primary_no_more_says_so() {
    let mut scene = Scene::three();
    let (request, at, _) = of_itself(&scrub(&mut scene, &[8])).remove(0);
    let (_, outputs) = scene.bench.feed(Input::Assignment(config(3, 2, &[1, 2, 3])));
    let why = "this replica is not primary any more".to_owned();
    assert_eq!(settled(&outputs), [(vec![8], Fate::NotMended(why))]);
    let (verdict, outputs) = scene.tell(1, request, at, &[8], &[]);
    assert!(matches!(verdict, Verdict::Ignored(_)), "{verdict:?}");
    assert_eq!(mended(&outputs), NOTHING);
}

/// Of another epoch it was asked when the log was another one.
#[test]
fn in_a_new_epoch_the_primary_asks_itself_anew() {
    let mut scene = Scene::three();
    let (request, at, _) = of_itself(&scrub(&mut scene, &[8])).remove(0);
    let next = Config { since: Epoch(2), ..in_mode(3, Durability::SyncAll, &[1, 2, 3]) };
    let (_, outputs) = scene.bench.feed(Input::Assignment(next));
    let (again, now, _) = of_itself(&outputs).remove(0);
    let (held, rotten) = (lbas(&[8]), Vec::new());
    let late = ToPrimary::Blocks { request, at: Lsn(at), held, rotten };
    let (verdict, outputs) = scene.bench.answer(1, 2, late);
    assert_eq!(verdict, Verdict::Ignored(IgnoredReason::StaleEpoch));
    assert_eq!(mended(&outputs), NOTHING);
    assert_eq!(mended(&scene.tell(1, again, now, &[8], &[]).1), [8]);
    assert_eq!(answers(&outputs), []);
}

#[test]
fn orders_that_make_no_sense_change_nothing() {
    let mut scene = Scene::three();
    let many: Vec<_> = (0..=SCRUB_BLOCKS as u64).collect();
    for blocks in [&[][..], &[9, 8], &[8, 8], &many] {
        let (verdict, outputs) = scene.bench.feed(Input::Scrub { blocks: lbas(blocks) });
        assert_eq!(verdict, Verdict::Ignored(IgnoredReason::Malformed));
        assert_eq!((settled(&outputs), of_itself(&outputs)), (Vec::new(), Vec::new()));
    }
    let why = "the volume has no such block".to_owned();
    let outputs = scrub(&mut scene, &[BLOCKS]);
    assert_eq!(settled(&outputs), [(vec![BLOCKS], Fate::NotMended(why))]);
    let mut follower = Bench::open(opened(2, 4, 4));
    let order = Input::Scrub { blocks: lbas(&[8]) };
    assert_eq!(follower.feed(order).0, Verdict::Ignored(IgnoredReason::WrongRole));
    // What only another replica may say, it does not take from itself.
    let (verdict, _) = scene.bench.answer(1, 2, ToPrimary::Gap { end: Lsn(1) });
    assert_eq!(verdict, Verdict::Ignored(IgnoredReason::UnknownReplica));
}

#[cfg(feature = "bugs")]
#[test]
fn a_repair_over_newer_content_is_noticed() {
    use sbk_engine::bugs::Bug;
    crate::bench::bites(Bug::ScrubOverNewer, an_entry_that_changes_a_block_ends_its_scrub);
}
