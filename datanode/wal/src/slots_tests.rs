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

#[test]
fn a_record_too_large_is_refused_and_changes_nothing() {
    let disk = Memory::new(7);
    let mut slots = make(&disk, b"old");
    let error = slots.write(&[0; BYTES]).expect_err("too large");
    assert!(matches!(error, SlotError::TooLarge { .. }));
    slots.write(b"new").expect("still usable");
}
