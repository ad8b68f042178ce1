use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::crc::crc32c;
use crate::frame::Marks;
use crate::log::Record;
use crate::memory::Memory;

const OPTIONS: LogOptions =
    LogOptions { segment_bytes: 8 << 10, first_segment_bytes: 8 << 10, batch_bytes: 8 << 10 };
const RECORDS: u64 = 20;

fn owner() -> Owner {
    Owner::new([1; 16], [2; 16])
}

/// A log of [`RECORDS`] durable records, one to a write, so that each tells that the one before
/// it was durable.
fn filled() -> Memory {
    let disk = Memory::new(1);
    disk.create_dir("wal").expect("dir");
    let mut log = Log::create(Arc::new(disk.clone()), "wal", owner(), OPTIONS, 1);
    for index in 1..=RECORDS {
        let payload = Bytes::from(vec![index as u8; 600]);
        let crc = crc32c(&payload);
        let record = Record { meta: &[], payload, crc };
        let marks = Marks { durable: index - 1, committed: 0 };
        let (append, _) = log.plan_append([record], marks).expect("plan");
        log.append_done(append.run()).expect("append");
    }
    disk
}

fn open(disk: &Memory, durable: u64) -> Result<u64, LogError> {
    let expect = Expect { from: 1, durable, cut: None };
    let storage = Arc::new(disk.clone());
    let (_, opened) = Log::open(storage, "wal", owner(), OPTIONS, expect, &mut |record, _| {
        assert!(record.body.iter().all(|b| *b == record.index as u8), "never bad data");
        Ok(())
    })?;
    Ok(opened.end)
}

#[test]
fn a_flipped_bit_is_damage_or_a_torn_tail_but_never_other_data() {
    let names: Vec<String> = filled().paths();
    let last = names.last().expect("segments").clone();
    for name in names {
        let bits = filled().content(&name).expect("a segment").len() as u64 * 8;
        for bit in (0..bits).step_by(331) {
            let disk = filled();
            disk.flip(&name, bit);
            match open(&disk, 0) {
                // The flip hit what nobody needs, or the one record that nothing proves durable.
                Ok(end) if end == RECORDS => {}
                Ok(end) => assert!(end == RECORDS - 1 && name == last, "{name} bit {bit}: {end}"),
                Err(error) => {
                    assert!(matches!(error, LogError::Damaged { .. }), "{name} bit {bit}: {error}");
                }
            }
        }
    }
}

/// Where it ends, and whether that is in doubt.
fn read(disk: &Memory) -> Result<(u64, bool), LogError> {
    let expect = Expect { from: 1, durable: 0, cut: None };
    let storage = Arc::new(disk.clone());
    let scanned = Log::read(storage, "wal", owner(), OPTIONS, expect, &mut |_, _| Ok(()))?;
    Ok((scanned.scan.index - 1, scanned.doubt().is_some()))
}

#[test]
fn no_bit_takes_a_record_away_without_a_doubt_or_damage() {
    let names: Vec<String> = filled().paths();
    let mut doubts = 0;
    for name in names {
        let bits = filled().content(&name).expect("a segment").len() as u64 * 8;
        for bit in (0..bits).step_by(13) {
            let disk = filled();
            disk.flip(&name, bit);
            match read(&disk) {
                Ok((RECORDS, _)) | Err(LogError::Damaged { .. }) => {}
                Ok((end, true)) => {
                    assert_eq!(end, RECORDS - 1, "{name} bit {bit}");
                    doubts += 1;
                }
                other => panic!("{name} bit {bit}: {other:?}"),
            }
        }
    }
    assert!(doubts > 100, "{doubts}");
}

#[test]
fn an_end_that_was_settled_is_not_in_doubt_any_more() {
    let disk = filled();
    assert_eq!(read(&disk).expect("read"), (RECORDS, false));
    let last = disk.paths().last().expect("a segment").clone();
    let end = disk.content(&last).expect("it");
    let end = (0..end.len()).rev().find(|at| end[*at] == RECORDS as u8).expect("the payload");
    disk.flip(&last, end as u64 * 8);
    assert_eq!(read(&disk).expect("read"), (RECORDS - 1, true));
    assert_eq!(read(&disk).expect("read again"), (RECORDS - 1, true), "reading changes nothing");
    assert_eq!(open(&disk, 0).expect("settled"), RECORDS - 1);
    assert_eq!(read(&disk).expect("read"), (RECORDS - 1, false));
}

#[test]
fn what_an_older_use_of_a_file_left_is_no_doubt() {
    let disk = Memory::new(1);
    disk.create_dir("wal").expect("dir");
    let mut log = Log::create(Arc::new(disk.clone()), "wal", owner(), OPTIONS, 1);
    let mut recycled = 0;
    for index in 1..=200u64 {
        let payload = Bytes::from(vec![index as u8; 600]);
        let crc = crc32c(&payload);
        let record = Record { meta: &[], payload, crc };
        let marks = Marks { durable: index - 1, committed: 0 };
        let (append, _) = log.plan_append([record], marks).expect("plan");
        log.append_done(append.run()).expect("append");
        while log.segments().count() > 2 {
            recycled += u64::from(log.release_oldest());
            let work = log.housekeeping().expect("work");
            log.housekeeping_done(work.run()).expect("housekept");
        }
        let expect = Expect { from: index, durable: 0, cut: None };
        let storage = Arc::new(disk.clone());
        let scanned = Log::read(storage, "wal", owner(), OPTIONS, expect, &mut |_, _| Ok(()));
        let scanned = scanned.expect("read");
        assert_eq!((scanned.scan.index - 1, scanned.doubt()), (index, None));
    }
    assert!(recycled > 10, "{recycled}");
}

#[test]
fn the_last_record_is_torn_or_damaged_by_what_is_known_of_it() {
    let last = filled().paths().last().expect("a segment").clone();
    let flipped = || {
        let disk = filled();
        let len = disk.content(&last).expect("it").len();
        let end = (0..len).rev().find(|at| disk.content(&last).expect("it")[*at] == RECORDS as u8);
        assert!(disk.flip(&last, end.expect("the payload") as u64 * 8));
        disk
    };
    assert_eq!(open(&flipped(), 0).expect("torn"), RECORDS - 1);
    let error = open(&flipped(), RECORDS).expect_err("it was durable").to_string();
    assert!(error.contains(&last) && error.contains("durable"), "{error}");
}

#[test]
fn a_segment_of_another_owner_is_refused() {
    let disk = filled();
    let other = Owner::new([1; 16], [3; 16]);
    let expect = Expect { from: 1, durable: 0, cut: None };
    let storage = Arc::new(disk.clone());
    let error =
        Log::open(storage, "wal", other, OPTIONS, expect, &mut |_, _| Ok(())).expect_err("foreign");
    assert!(matches!(error, LogError::Foreign { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("02020202") && text.contains("03030303"), "{text}");
}

#[test]
fn a_missing_segment_is_damage_if_it_is_needed() {
    let disk = filled();
    let names = disk.paths();
    disk.remove(&names[0]).expect("remove");
    let error = open(&disk, 0).expect_err("needed");
    assert!(error.to_string().contains(&names[0]), "{error}");
    let expect = Expect { from: 18, durable: 0, cut: None };
    let storage = Arc::new(disk.clone());
    let (log, opened) =
        Log::open(storage, "wal", owner(), OPTIONS, expect, &mut |_, _| Ok(())).expect("open");
    assert_eq!(opened.end, RECORDS);
    assert!(log.first_index() > 1);
}

#[test]
fn the_whole_log_missing_is_damage_if_something_was_durable() {
    let disk = Memory::new(1);
    disk.create_dir("wal").expect("dir");
    assert_eq!(open(&disk, 0).expect("a new log"), 0);
    open(&disk, 1).expect_err("record 1 was durable");
}

/// The header of a segment can't be read. What is needed is there or not; what is not is let go.
#[test]
fn a_header_that_cant_be_read_costs_what_is_in_its_segment_if_nobody_needs_that() {
    let names: Vec<String> = filled().paths();
    for (at, name) in names.iter().enumerate() {
        let disk = filled();
        assert!(disk.spoil(name, 0));
        let error = open(&disk, 0).expect_err("record 1 is needed, or the end");
        assert!(matches!(error, LogError::Io { .. }), "{name}: {error}");
        assert!(error.to_string().contains(name), "{error}");
        let expect = Expect { from: RECORDS, durable: 0, cut: None };
        let shared = Arc::new(disk.clone());
        let opened = Log::open(shared, "wal", owner(), OPTIONS, expect, &mut |_, _| Ok(()));
        if at + 1 == names.len() {
            let error = opened.expect_err("what was the end can't be told");
            assert!(matches!(error, LogError::Io { .. }), "{error}");
            continue;
        }
        let (log, opened) = opened.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(opened.end, RECORDS, "{name}");
        assert!(log.first_index() > 1);
        assert!(opened.notes.iter().any(|note| note.contains(name)), "{:?}", opened.notes);
        assert!(!disk.paths().contains(name), "it is of no use");
    }
}
