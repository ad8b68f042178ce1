use std::sync::Arc;

use bytes::Bytes;

use super::*;
use crate::crc::Crc;
use crate::memory::{Fault, Memory, OpKind};
use crate::scan::Expect;

const OPTIONS: LogOptions = LogOptions { segment_bytes: 16 << 10, batch_bytes: 8 << 10 };

fn owner() -> Owner {
    Owner::new([1; 16], [2; 16])
}

fn body(index: u64, len: usize) -> (Vec<u8>, Bytes) {
    let meta = index.to_le_bytes().to_vec();
    (meta, Bytes::from(vec![index as u8; len]))
}

fn make(disk: &Memory) -> Log {
    disk.create_dir("wal").expect("dir");
    Log::create(Arc::new(disk.clone()), "wal", owner(), OPTIONS, 1)
}

/// Appends records up to `last`, one append after the other; returns the durable end.
fn append(log: &mut Log, last: u64, len: usize) -> Result<u64, LogError> {
    let mut durable = log.next_index() - 1;
    while log.next_index() <= last {
        let bodies: Vec<_> = (log.next_index()..=last).map(|i| body(i, len)).collect();
        let records = bodies.iter().map(|(meta, payload)| Record {
            meta,
            payload: payload.clone(),
            crc: Crc::default().with(meta).with(payload).value(),
        });
        let (append, places) =
            log.plan_append(records, Marks { durable, committed: durable / 2 })?;
        assert!(!places.is_empty());
        durable = log.append_done(append.run())?;
        if let Some(work) = log.housekeeping() {
            log.housekeeping_done(work.run())?;
        }
    }
    Ok(durable)
}

fn open(disk: &Memory, from: u64, durable: u64) -> Result<(Log, crate::Opened, u64), LogError> {
    let mut seen = from - 1;
    let expect = Expect { from, durable, cut: None };
    let (log, opened) =
        Log::open(Arc::new(disk.clone()), "wal", owner(), OPTIONS, expect, &mut |record, _| {
            seen += 1;
            assert_eq!(record.index, seen, "in order, without a gap");
            assert_eq!(record.body[..8], seen.to_le_bytes());
            Ok(())
        })?;
    Ok((log, opened, seen))
}

#[test]
fn records_come_back_in_order_from_any_index() {
    let disk = Memory::new(1);
    let mut log = make(&disk);
    append(&mut log, 100, 700).expect("append");
    assert!(log.segments().count() > 3, "several segments");
    disk.power_loss();
    let (log, opened, seen) = open(&disk, 40, 0).expect("open");
    assert_eq!((seen, opened.end, log.first_index()), (100, 100, 1));
    for first in [1, 17, 99, 100] {
        let mut reader = log.reader(first, 100).expect("reader");
        let mut next = first;
        loop {
            let records = reader.next(3000, 5).expect("read");
            if records.is_empty() {
                break;
            }
            for record in records {
                assert_eq!(record.index, next);
                assert_eq!(record.body.len(), 708);
                next += 1;
            }
        }
        assert_eq!(next, 101);
    }
}

#[test]
fn every_record_below_the_durable_end_survives_a_crash_at_any_operation() {
    for seed in 0..3 {
        let mut at = 0;
        loop {
            let disk = Memory::new(seed);
            let mut log = make(&disk);
            disk.sync_dir("").expect("sync");
            disk.crash_after(at);
            let mut durable = 0;
            let mut target = 0;
            while target < 60 {
                target += 1 + (seed + target) % 7;
                match append(&mut log, target, 900) {
                    Ok(end) => durable = end,
                    Err(_) => break,
                }
            }
            let done = !disk.crashed();
            disk.power_loss();
            let context = format!("seed {seed}, crash at operation {at}");
            let (log, opened, seen) =
                open(&disk, 1, 0).unwrap_or_else(|e| panic!("{context}: {e}"));
            assert!(seen >= durable, "{context}: {seen} of {durable}");
            assert_eq!(opened.end, seen, "{context}");
            // What was found is durable now, and the log goes on.
            disk.power_loss();
            let (_, again, _) = open(&disk, 1, opened.end).expect(&context);
            assert_eq!(again.end, opened.end, "{context}");
            drop(log);
            let (mut log, ..) = open(&disk, 1, opened.end).expect(&context);
            append(&mut log, opened.end + 20, 900).expect(&context);
            disk.power_loss();
            let (_, last, _) = open(&disk, 1, opened.end + 20).expect(&context);
            assert_eq!(last.end, opened.end + 20, "{context}");
            if done {
                break;
            }
            at += 1;
        }
        assert!(at > 50, "the workload has operations to crash at");
    }
}

#[test]
fn a_cut_is_gone_for_good_and_new_records_take_its_place() {
    let disk = Memory::new(2);
    let mut log = make(&disk);
    append(&mut log, 80, 700).expect("append");
    for end in [79, 60, 41, 40, 3, 0] {
        log.truncate(end).expect("cut");
        assert_eq!(log.next_index(), end + 1);
        disk.power_loss();
        let (reopened, opened, _) = open(&disk, 1, end).expect("open");
        assert_eq!(opened.end, end);
        log = reopened;
        append(&mut log, end + 2, 700).expect("append");
        disk.power_loss();
        let (reopened, opened, _) = open(&disk, 1, end + 2).expect("open");
        assert_eq!(opened.end, end + 2);
        log = reopened;
    }
}

/// 1. Record 6 is written; nothing says that it is durable, so the next opening copies it to a
///    segment of its own. The original stays where it is, behind what counts of its segment.
/// 2. A cut to 5 removes the copy.
/// 3. The original follows record 5, its chain is right, and it must not come back.
#[test]
fn a_cut_record_does_not_come_back_from_before_it_was_copied() {
    let disk = Memory::new(8);
    let mut log = make(&disk);
    append(&mut log, 5, 700).expect("append");
    append(&mut log, 6, 700).expect("append");
    for _ in 0..2 {
        assert_eq!(open(&disk, 1, 5).expect("open").1.end, 6);
    }
    let (mut log, ..) = open(&disk, 1, 5).expect("open");
    assert_eq!(log.segments().count(), 2, "the copy is in a segment of its own");
    log.truncate(5).expect("cut");
    disk.power_loss();
    assert_eq!(open(&disk, 1, 5).expect("open").1.end, 5);
}

/// How a cut is interrupted.
#[derive(Clone, Copy, Debug)]
enum Interruption {
    PowerLoss,
    /// What it did is in the page cache. It is shown to the next opening, and lost after it.
    Kill,
    /// The same, and what was not synced counts as clean.
    FailedSync,
}

/// Interrupts a cut to `end` at its `at`-th operation or sync. Returns whether it got to its end.
fn interrupt_a_cut(how: Interruption, seed: u64, end: u64, at: u64) -> bool {
    let disk = Memory::new(seed);
    let mut log = make(&disk);
    disk.sync_dir("").expect("sync");
    append(&mut log, 60, 700).expect("append");
    match how {
        Interruption::PowerLoss | Interruption::Kill => disk.crash_after(at),
        Interruption::FailedSync => disk.fail(OpKind::Sync, at, "wal", Fault::Io),
    }
    let done = log.truncate(end).is_ok();
    match how {
        Interruption::PowerLoss => disk.power_loss(),
        Interruption::Kill | Interruption::FailedSync => disk.process_killed(),
    }
    let expect = Expect { from: 1, durable: end, cut: Some(end) };
    let storage = Arc::new(disk.clone());
    let opened = Log::open(storage, "wal", owner(), OPTIONS, expect, &mut |_, _| Ok(()));
    let (_, opened) = opened.unwrap_or_else(|e| panic!("{how:?}, seed {seed}, at {at}: {e}"));
    assert_eq!(opened.end, end);
    disk.power_loss();
    let (_, opened, _) = open(&disk, 1, end).expect("open without the cut");
    assert_eq!(opened.end, end, "{how:?}, seed {seed}, at {at}");
    done
}

#[test]
fn a_cut_that_was_interrupted_is_finished_at_the_next_opening() {
    for how in [Interruption::PowerLoss, Interruption::Kill, Interruption::FailedSync] {
        for seed in 0..8 {
            for end in [0, 10 + seed * 5] {
                let interrupted = (0..).take_while(|at| !interrupt_a_cut(how, seed, end, *at));
                let count = interrupted.count();
                // A cut to 0 removes all segments and syncs none.
                let syncs_only = matches!(how, Interruption::FailedSync) && end == 0;
                assert_eq!(count == 0, syncs_only, "{how:?}, seed {seed}, to {end}: {count}");
            }
        }
    }
}

#[test]
fn released_segments_are_used_again_and_their_old_records_never_come_back() {
    let disk = Memory::new(3);
    let mut log = make(&disk);
    let mut durable = 0;
    for round in 1..=30 {
        if round == 10 {
            // It has what it needs: from here on, making a file would be writing it twice.
            disk.fail(OpKind::Write, 0, ".spare", Fault::NoSpace);
        }
        append(&mut log, round * 10, 900).expect("append");
        durable = round * 10;
        while log.segments().next().is_some_and(|(_, last, _)| last + 15 < durable) {
            assert!(log.release_oldest());
        }
        let work = log.housekeeping();
        if let Some(work) = work {
            log.housekeeping_done(work.run()).expect("housekeeping");
        }
    }
    let from = log.first_index();
    assert!(from > 200);
    assert!(
        matches!(log.reader(1, 10), Err(LogError::Recycled { retained, .. }) if retained == from)
    );
    disk.power_loss();
    let (_, opened, _) = open(&disk, from, durable).expect("open");
    assert_eq!(opened.end, durable);
    let files = disk.paths().iter().filter(|p| p.contains("wal/")).count();
    assert!(files < 12, "files are used again, {files} there are");
}

/// 1. Segment 1 is released and becomes a spare, its old records in it.
/// 2. The log is emptied and opened again: sequences begin with 1 once more.
/// 3. The spare becomes segment 1; the old records behind the new ones carry its number, and must
///    not be taken for the proof that more had been durable.
#[test]
fn an_emptied_log_leaves_no_records_behind() {
    for records in 1..60 {
        let disk = Memory::new(records);
        let mut log = make(&disk);
        while log.next_index() <= records {
            let next = log.next_index();
            append(&mut log, next, 700).expect("append");
            while log.release_oldest() {}
        }
        log.reset(1).expect("reset");
        let (mut log, ..) = open(&disk, 1, 0).expect("open");
        append(&mut log, 2, 700).expect("append");
        disk.power_loss();
        let (_, opened, _) = open(&disk, 1, 2).unwrap_or_else(|e| panic!("{records}: {e}"));
        assert_eq!(opened.end, 2);
    }
}

#[test]
fn a_reader_keeps_its_segments() {
    let disk = Memory::new(4);
    let mut log = make(&disk);
    append(&mut log, 60, 900).expect("append");
    let mut reader = log.reader(1, 60).expect("reader");
    while log.release_oldest() {}
    let work = log.housekeeping().expect("work");
    log.housekeeping_done(work.run()).expect("housekeeping");
    append(&mut log, 200, 900).expect("append");
    let mut next = 1;
    while next <= 60 {
        for record in reader.next(10_000, 100).expect("read") {
            assert_eq!((record.index, record.body[8]), (next, next as u8));
            next += 1;
        }
    }
}

#[test]
fn a_record_larger_than_a_segment_fits() {
    let disk = Memory::new(5);
    let mut log = make(&disk);
    append(&mut log, 1, 10).expect("append");
    append(&mut log, 2, 100_000).expect("append");
    append(&mut log, 3, 10).expect("append");
    disk.power_loss();
    let (_, opened, _) = open(&disk, 1, 3).expect("open");
    assert_eq!(opened.end, 3);
}

#[test]
fn after_a_failure_nothing_is_appended_until_the_log_is_opened_again() {
    for fault in [Fault::Io, Fault::NoSpace] {
        for kind in [OpKind::Write, OpKind::Sync] {
            let disk = Memory::new(6);
            let mut log = make(&disk);
            disk.sync_dir("").expect("sync");
            append(&mut log, 5, 100).expect("append");
            disk.fail(kind, 0, ".seg", fault);
            let error = append(&mut log, 6, 100).expect_err("the fault");
            assert!(matches!(error, LogError::Io { .. }), "{error}");
            assert!(matches!(append(&mut log, 7, 100), Err(LogError::Failed)));
            disk.process_killed();
            let (_, opened, _) = open(&disk, 1, 5).expect("open");
            assert!(opened.end == 5 || opened.end == 6);
            // What the opening reported is durable, whatever the failed sync lost.
            disk.power_loss();
            let (_, again, _) = open(&disk, 1, 5).expect("open");
            assert_eq!(again.end, opened.end, "{kind:?} {fault:?}");
        }
    }
}

#[test]
fn a_short_write_is_completed() {
    let disk = Memory::new(7);
    let mut log = make(&disk);
    append(&mut log, 1, 100).expect("append");
    disk.fail(OpKind::Write, 0, ".seg", Fault::Short(77));
    append(&mut log, 2, 3000).expect("append");
    disk.power_loss();
    assert_eq!(open(&disk, 1, 2).expect("open").1.end, 2);
}

#[test]
fn the_same_on_real_files() {
    let dir = tempfile::tempdir().expect("a directory");
    let storage: Arc<dyn Storage> = Arc::new(crate::Files::new(dir.path()));
    storage.create_dir("wal").expect("dir");
    let mut log = Log::create(Arc::clone(&storage), "wal", owner(), OPTIONS, 1);
    append(&mut log, 50, 900).expect("append");
    log.truncate(45).expect("cut");
    append(&mut log, 70, 900).expect("append");
    while log.first_index() < 20 {
        assert!(log.release_oldest());
    }
    let work = log.housekeeping().expect("work");
    log.housekeeping_done(work.run()).expect("housekeeping");
    let from = log.first_index();
    drop(log);
    let mut seen = Vec::new();
    let expect = Expect { from, durable: 45, cut: None };
    let (log, opened) = Log::open(storage, "wal", owner(), OPTIONS, expect, &mut |record, _| {
        seen.push(record.index);
        Ok(())
    })
    .expect("open");
    assert_eq!(seen, (from..=70).collect::<Vec<_>>());
    assert_eq!((opened.end, log.first_index()), (70, from));
}
