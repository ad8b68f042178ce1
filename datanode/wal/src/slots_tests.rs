use std::sync::Arc;

use super::*;
use crate::memory::{Fault, Memory, OpKind};

const MAGIC: [u8; 8] = *b"SLOTTEST";
const BYTES: usize = 4096;

fn open(disk: &Memory) -> Result<(Slots, Vec<u8>), SlotError> {
    Slots::open(Arc::new(disk.clone()), "slots", MAGIC, 1, BYTES)
}

fn make(disk: &Memory, record: &[u8]) -> Slots {
    let slots = Slots::create(Arc::new(disk.clone()), "slots", MAGIC, 1, BYTES, record);
    disk.sync_dir("").expect("sync");
    slots.expect("create")
}

#[test]
fn the_last_record_that_was_written_is_found() {
    let disk = Memory::new(1);
    let mut slots = make(&disk, b"one");
    for n in 0..10u64 {
        slots.write(&n.to_le_bytes()).expect("write");
        disk.power_loss();
        let (again, record) = open(&disk).expect("open");
        assert_eq!(record, n.to_le_bytes());
        slots = again;
    }
}

#[test]
fn a_crash_at_any_operation_leaves_the_old_or_the_new_record() {
    for seed in 0..50 {
        for at in 0.. {
            let disk = Memory::new(seed);
            let mut slots = make(&disk, b"old");
            slots.write(b"older").and_then(|()| slots.write(b"old")).expect("write");
            disk.crash_after(at);
            let result = slots.write(b"new");
            let done = !disk.crashed();
            disk.power_loss();
            let (_, record) = open(&disk).expect("open");
            if result.is_ok() {
                assert_eq!(record, b"new", "seed {seed}, crash at {at}");
            } else {
                assert!(record == b"new" || record == b"old", "seed {seed}, crash at {at}");
            }
            if done {
                break;
            }
        }
    }
}

#[test]
fn one_rotten_bit_does_not_bring_back_an_older_record() {
    for bit in (0..2 * 4096 * 8).step_by(13) {
        let disk = Memory::new(3);
        let mut slots = make(&disk, b"old");
        slots.write(b"promise").expect("write");
        slots.sync().expect("sync");
        assert!(disk.flip("slots", bit));
        let (_, record) = open(&disk).expect("open");
        assert_eq!(record, b"promise", "bit {bit}");
    }
}

#[test]
fn two_rotten_slots_are_refused_by_name() {
    let disk = Memory::new(4);
    make(&disk, b"record");
    assert!(disk.flip("slots", 8 * 33) && disk.flip("slots", 8 * (4096 + 33)));
    let error = open(&disk).expect_err("damaged").to_string();
    assert!(error.contains("slots") && error.contains("damaged"), "{error}");
}

#[test]
fn another_kind_and_a_newer_format_are_refused() {
    let disk = Memory::new(5);
    make(&disk, b"record");
    let other = Slots::open(Arc::new(disk.clone()), "slots", *b"ANOTHER!", 1, BYTES);
    assert!(matches!(other, Err(SlotError::OtherKind { .. })), "{other:?}");
    let newer = Slots::open(Arc::new(disk.clone()), "slots", MAGIC, 0, BYTES);
    assert!(matches!(newer, Err(SlotError::Newer { found: 1, expected: 0, .. })), "{newer:?}");
}

#[test]
fn after_a_failed_sync_nothing_is_written_until_it_is_opened_again() {
    let disk = Memory::new(6);
    let mut slots = make(&disk, b"old");
    disk.fail(OpKind::Sync, 0, "slots", Fault::Io);
    slots.write(b"new").expect_err("the sync failed");
    slots.write(b"newer").expect_err("closed");
    disk.process_killed();
    // Whichever is found is durable from here on.
    let (_, found) = open(&disk).expect("open");
    disk.power_loss();
    let (_, record) = open(&disk).expect("open");
    assert_eq!(record, found);
}

/// The page cache shows a record as written whose sync failed; the disk may hold the one before it, in the
/// other slot only. Power lost while the file is opened, or at the first write after that, must leave one.
#[test]
fn power_lost_while_opening_after_a_failed_sync_leaves_a_record() {
    // Longer than a sector, or none would be torn.
    const OLDER: [u8; 1500] = [1; 1500];
    const OLD: [u8; 1500] = [2; 1500];
    const NEW: [u8; 1500] = [3; 1500];
    const NEWER: [u8; 1500] = [4; 1500];
    // The sync that fails: that of a record that is written, or the one that makes its second copy durable.
    for (seed, second) in (0..60).flat_map(|seed| [(seed, false), (seed, true)]) {
        for at in 0.. {
            let disk = Memory::new(seed);
            let mut slots = make(&disk, &OLDER);
            slots.write(&OLD).expect("write");
            if second {
                slots.write(&NEW).expect("write");
            }
            disk.fail(OpKind::Sync, 0, "slots", Fault::Io);
            let failed = if second { slots.sync() } else { slots.write(&NEW) };
            failed.expect_err("the sync failed");
            disk.process_killed();
            disk.crash_after(at);
            let next = open(&disk).and_then(|(mut slots, found)| {
                assert_eq!(found, NEW, "the page cache shows it");
                slots.write(&NEWER)
            });
            let done = !disk.crashed();
            disk.power_loss();
            let (_, record) = open(&disk).expect("one of the two slots was durable all the time");
            if next.is_ok() {
                assert_eq!(record, NEWER, "seed {seed}, second {second}, crash at {at}");
            } else {
                let may = [&NEWER[..], &NEW, &OLD];
                let may = if second { &may[..2] } else { &may[..] };
                assert!(may.contains(&&record[..]), "seed {seed}, second {second}, crash at {at}");
            }
            if done {
                break;
            }
        }
    }
}

#[test]
fn a_record_too_large_is_refused_and_changes_nothing() {
    let disk = Memory::new(7);
    let mut slots = make(&disk, b"old");
    let error = slots.write(&[0; BYTES]).expect_err("too large");
    assert!(matches!(error, SlotError::TooLarge { .. }));
    slots.write(b"new").expect("still usable");
}

/// A slot that can't be read is no worse than one that rotted, and mended by being written.
#[test]
fn a_slot_that_cant_be_read_is_written_anew_from_the_other() {
    for slot in [0, BYTES as u64] {
        let disk = Memory::new(8);
        let mut slots = make(&disk, b"old");
        slots.write(b"promise").expect("write");
        slots.sync().expect("sync");
        assert!(disk.spoil("slots", slot + 700));
        for _ in 0..2 {
            let (mut again, record) = open(&disk).expect("the other slot is whole");
            assert_eq!(record, b"promise");
            again.sync().expect("sync");
            disk.power_loss();
        }
        assert!(disk.flip("slots", 8 * (BYTES as u64 - slot + 20)));
        assert_eq!(open(&disk).expect("it was mended").1, b"promise", "slot at {slot}");
    }
}

#[test]
fn what_lies_behind_a_record_need_not_be_readable() {
    let disk = Memory::new(9);
    let large = 4 * BYTES;
    let shared = || Arc::new(disk.clone());
    let mut slots = Slots::create(shared(), "slots", MAGIC, 1, large, &[7; 9000]).expect("create");
    slots.write(b"small").expect("write");
    slots.sync().expect("sync");
    drop(slots);
    for slot in 0..2 {
        assert!(disk.spoil("slots", (slot * large + 2 * BYTES) as u64));
    }
    let (mut slots, record) = Slots::open(shared(), "slots", MAGIC, 1, large).expect("open");
    assert_eq!(record, b"small");
    slots.write(&[8; 9000]).expect("whole pages are written");
    let (_, record) = Slots::open(shared(), "slots", MAGIC, 1, large).expect("open");
    assert_eq!(record, [8; 9000]);
}

#[test]
fn a_read_that_fails_is_told_if_the_other_slot_is_no_help() {
    for damage in [true, false] {
        let disk = Memory::new(10);
        make(&disk, b"record");
        assert!(disk.spoil("slots", 0));
        let other = BYTES as u64 + 33;
        assert!(if damage { disk.flip("slots", 8 * other) } else { disk.spoil("slots", other) });
        let error = open(&disk).expect_err("no slot is whole");
        assert!(matches!(error, SlotError::Io { .. }), "it may pass: {error}");
    }
    let disk = Memory::new(11);
    make(&disk, b"record");
    disk.fail(OpKind::Read, 0, "slots", Fault::NoSpace);
    open(&disk).expect_err("what is no fault of the disk is not survived");
}
