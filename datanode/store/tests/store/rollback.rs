//! What is put back on an encrypted replica's disk as it was before is found out.

use bytes::Bytes;
use sbk_engine::replication::log::{BlockRange, EntryHeader, EntryKind, LogState};
use sbk_engine::replication::message::{Incomplete, RecoveryId};
use sbk_engine::types::{Epoch, Lba, Lsn, REGION_BLOCKS};
use sbk_store::entry::entry_crc;
use sbk_store::{ReadError, Store};
use sbk_wal::Storage;

use super::backend::{Backend, Disk};
use super::content::bytes_of;
use super::{driver, past};

#[test]
fn what_is_put_back_as_it_was_is_found_out_or_changes_nothing() {
    let seeds = super::crash::seeds(0..2);
    let (refused, nothing) =
        past::put_back(seeds).unwrap_or_else(|(seed, what)| panic!("seed {seed}: {what}"));
    println!("{refused} were refused, {nothing} changed nothing");
    assert!(refused > 200 && nothing > 10, "{refused} were refused, {nothing} changed nothing");
}

fn open(disk: &Disk) -> Store {
    driver::open(&disk.storage().expect("a disk"), 0).expect("a store").0
}

fn write(store: &mut Store, block: u64, tag: u64) {
    write_all(store, block, &[tag]);
}

fn write_all(store: &mut Store, block: u64, tags: &[u64]) {
    let kind = EntryKind::Write { lba: Lba(block), blocks: tags.len() as u32 };
    let header = EntryHeader { epoch: Epoch(1), lsn: store.end().next(), kind, origin: None };
    let payload = bytes_of(tags);
    store.append(header, entry_crc(&header, &payload), payload).expect("appended");
    while let Some(batch) = store.take_batch() {
        store.batch_done(batch.run()).expect("durable");
    }
}

fn checkpoint(store: &mut Store) {
    store.set_committed(store.end());
    let plan = store.plan_checkpoint(u64::MAX).expect("a step");
    store.checkpoint_done(plan.run()).expect("checkpointed");
}

fn read(store: &Store, block: u64) -> Result<Bytes, ReadError> {
    store.plan_read(BlockRange { lba: Lba(block), blocks: 1 }).run()
}

/// Puts back the sectors of `from` that are in these files at these bytes.
fn put_back(disk: &Disk, from: &Disk, parts: &[(&str, u64, usize)]) {
    for (path, at, len) in parts {
        let content = from.content(path).expect("it is there");
        let file = disk.memory.open(path).expect("it is there");
        let part = &content[*at as usize..*at as usize + len];
        let now = disk.content(path).expect("it is there");
        assert_ne!(Some(part), now.get(*at as usize..*at as usize + len));
        sbk_wal::write_all(&*file, &[part], *at).expect("written");
    }
}

/// A delta brings what changed. What it does not bring was proven before, or is not proven by it either.
#[test]
fn a_delta_does_not_make_right_what_was_put_back() {
    let far = REGION_BLOCKS + 9;
    for step_in_between in [false, true] {
        let disk = Disk::new(Backend::Sealed, 1);
        driver::create(&disk.storage().expect("a disk"), 0).expect("a replica");
        let mut store = open(&disk);
        write(&mut store, 3, 1);
        write(&mut store, far, 2);
        checkpoint(&mut store);
        let before = disk.fork();
        write(&mut store, far, 4);
        checkpoint(&mut store);
        store.close_clean().expect("closed");
        disk.process_killed();
        // The block, and the sector with its stamps.
        let stamps = 4096 + far * 16 / 512 * 512;
        put_back(
            &disk,
            &before,
            &[("extents", 4096 * (1 + far), 4096), ("checksums", stamps, 512)],
        );

        let mut store = open(&disk);
        let (from, state) = (store.checkpoint(), LogState::new(300));
        let session = RecoveryId { epoch: Epoch(2), number: 1 };
        let mark = Incomplete { session, from, base: from, target: from };
        let mut kept = store.kept().clone();
        kept.incomplete = Some(mark);
        store.wipe(&mark, &state, &kept).expect("begun");
        let mut region = vec![0; REGION_BLOCKS as usize];
        region[3] = 7;
        store.write_base(Lba(0), &bytes_of(&region)).expect("brought");
        store.set_regions(0, &[from, from]);
        if step_in_between {
            // Another block of the region that is not proven.
            write(&mut store, far + 1, 8);
            checkpoint(&mut store);
        }
        kept.incomplete = None;
        store.finish_rebuild(&kept).expect("finished");
        for again in [false, true] {
            if again {
                drop(store);
                store = open(&disk);
            }
            assert_eq!(read(&store, 3).expect("it was brought"), bytes_of(&[7]));
            let refused = read(&store, far).expect_err("it is as it was once");
            assert!(matches!(refused, ReadError::Rotten { .. }), "{refused}");
        }
        // Once it is written again it is right, and all others of its region are as bad as they were.
        write(&mut store, far, 9);
        checkpoint(&mut store);
        assert_eq!(read(&store, far).expect("it was written"), bytes_of(&[9]));
        assert!(read(&store, far + 2).is_err());
    }
}

/// A rebuild empties the table of regions. What was in it once is not newer than what is there since.
#[test]
fn a_table_from_before_a_rebuild_is_not_a_newer_one() {
    for opened_in_between in [false, true] {
        let disk = Disk::new(Backend::Sealed, 1);
        driver::create(&disk.storage().expect("a disk"), 0).expect("a replica");
        let mut store = open(&disk);
        for tag in [1, 2] {
            write(&mut store, 3, tag);
            checkpoint(&mut store);
        }
        let before = disk.fork();
        let session = RecoveryId { epoch: Epoch(2), number: 1 };
        let end = store.end();
        let mark = Incomplete { session, from: Lsn(0), base: end, target: end };
        let mut kept = store.kept().clone();
        kept.incomplete = Some(mark);
        store.wipe(&mark, &LogState::new(300), &kept).expect("begun");
        if opened_in_between {
            drop(store);
            disk.process_killed();
            store = open(&disk);
            store.wipe(&mark, &LogState::new(300), &kept).expect("begun again");
        }
        store.write_base(Lba(3), &bytes_of(&[7])).expect("brought");
        store.set_regions(0, &[end]);
        kept.incomplete = None;
        store.finish_rebuild(&kept).expect("finished");
        store.close_clean().expect("closed");
        disk.process_killed();
        assert_eq!(read(&open(&disk), 3).expect("it was brought"), bytes_of(&[7]));
        disk.process_killed();
        let slot = |n: u64| ("regions", 4096 + 512 * n, 512);
        for n in [0, 1] {
            let disk = disk.fork();
            let parts = [("extents", 4096 * 4, 4096), ("checksums", 4096, 512), slot(n)];
            put_back(&disk, &before, &parts);
            let Ok((store, _)) = driver::open(&disk.storage().expect("a disk"), 0) else {
                continue;
            };
            let refused = read(&store, 3).expect_err("it is as it was before the rebuild");
            assert!(matches!(refused, ReadError::Rotten { .. }), "{refused}");
        }
    }
}

/// Rot in the stamps costs nothing: what they were follows from the blocks.
#[test]
fn stamps_that_rot_are_made_anew_from_their_blocks() {
    let disk = Disk::new(Backend::Sealed, 1);
    driver::create(&disk.storage().expect("a disk"), 0).expect("a replica");
    let mut store = open(&disk);
    for block in [3, 4, 40] {
        write(&mut store, block, block);
    }
    checkpoint(&mut store);
    store.close_clean().expect("closed");
    disk.process_killed();
    let right = disk.content("checksums").expect("it is there");
    assert!(disk.flip("checksums", (4096 + 3 * 16) * 8 + 5));
    let mut store = open(&disk);
    for block in [3, 4, 40] {
        assert_eq!(read(&store, block).expect("it is known"), bytes_of(&[block]));
    }
    // A step in the region writes it down.
    write(&mut store, 40, 41);
    checkpoint(&mut store);
    let found = disk.content("checksums").expect("it is there");
    assert_eq!(found[4096 + 3 * 16..][..16], right[4096 + 3 * 16..][..16]);
    drop(store);
    assert_eq!(read(&open(&disk), 3).expect("it is right"), bytes_of(&[3]));
}

/// What was known of rotten stamps is not true of those that a session writes: the block's old bytes lie in its other
/// home, and would fit them.
#[test]
fn what_was_known_of_stamps_does_not_outlive_a_session() {
    let disk = Disk::new(Backend::Sealed, 1);
    driver::create(&disk.storage().expect("a disk"), 0).expect("a replica");
    let mut store = open(&disk);
    // The second one is placed in the shadow.
    for tag in [10, 20] {
        write_all(&mut store, 8, &[tag, tag + 1, tag + 2, tag + 3]);
        checkpoint(&mut store);
    }
    store.close_clean().expect("closed");
    disk.process_killed();
    assert!(disk.flip("checksums", (4096 + 8 * 16) * 8 + 3));
    let mut store = open(&disk);
    assert_eq!(read(&store, 8).expect("it is known"), bytes_of(&[20]));
    let (from, state) = (store.checkpoint(), LogState::new(300));
    let session = RecoveryId { epoch: Epoch(2), number: 1 };
    let mark = Incomplete { session, from, base: from, target: from };
    let mut kept = store.kept().clone();
    kept.incomplete = Some(mark);
    store.wipe(&mark, &state, &kept).expect("begun");
    write(&mut store, 8, 30);
    checkpoint(&mut store);
    store.set_regions(0, &[from, Lsn(0)]);
    kept.incomplete = None;
    store.finish_rebuild(&kept).expect("finished");
    for _ in 0..2 {
        match read(&store, 8) {
            Ok(found) => assert_eq!(found, bytes_of(&[30])),
            Err(refused) => assert!(matches!(refused, ReadError::Rotten { .. }), "{refused}"),
        }
        drop(store);
        store = open(&disk);
    }
}

/// The files of a replica that is not encrypted are none of one that is, and the other way round.
#[test]
fn plain_and_encrypted_files_are_told_apart() {
    let plain = Disk::new(Backend::Files, 1);
    driver::create(&plain.storage().expect("a disk"), 0).expect("a replica");
    let sealed = Disk::new(Backend::Sealed, 1);
    driver::create(&sealed.storage().expect("a disk"), 0).expect("a replica");
    for name in ["superblock", "logstate", "extents", "regions"] {
        let sealed = sealed.fork();
        let content = plain.content(name).expect("it is there");
        sbk_wal::write_all(&*sealed.memory.open(name).expect("it"), &[&content], 0).expect("put");
        let refused = driver::open(&sealed.storage().expect("a disk"), 0).expect_err("it is noise");
        assert!(refused.to_string().contains(name), "{refused}");
    }
}
