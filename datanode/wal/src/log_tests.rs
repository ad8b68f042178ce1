use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use super::*;
use crate::crc::Crc;
use crate::manage::{Housekeeping, Housekept};
use crate::memory::{Fault, Memory, OpKind};
use crate::scan::Expect;
use crate::segment::write_zeros;
use crate::storage::Authenticator;

const OPTIONS: LogOptions =
    LogOptions { segment_bytes: 16 << 10, first_segment_bytes: 16 << 10, batch_bytes: 8 << 10 };

/// Begins small, and has grown after 14 KiB.
const GROWING: LogOptions = LogOptions { first_segment_bytes: 2 << 10, ..OPTIONS };

fn owner() -> Owner {
    Owner::new([1; 16], [2; 16])
}

fn body(index: u64, len: usize) -> (Vec<u8>, Bytes) {
    let meta = index.to_le_bytes().to_vec();
    (meta, Bytes::from(vec![index as u8; len]))
}

fn make(disk: &Memory) -> Log {
    make_with(disk, OPTIONS)
}

fn make_with(disk: &Memory, options: LogOptions) -> Log {
    disk.create_dir("wal").expect("dir");
    Log::create(Arc::new(disk.clone()), "wal", owner(), options, 1)
}

/// Appends records up to `last`, one append after the other; returns the durable end.
fn append(log: &mut Log, last: u64, len: usize) -> Result<u64, LogError> {
    let mut durable = log.next_index() - 1;
    while log.next_index() <= last {
        durable = append_once(log, last, len)?;
        if let Some(work) = log.housekeeping() {
            log.housekeeping_done(work.run())?;
        }
    }
    Ok(durable)
}

/// Appends what one append takes of the records up to `last`.
fn append_once(log: &mut Log, last: u64, len: usize) -> Result<u64, LogError> {
    let durable = log.next_index() - 1;
    let bodies: Vec<_> = (log.next_index()..=last).map(|i| body(i, len)).collect();
    let records = bodies.iter().map(|(meta, payload)| Record {
        meta,
        payload: payload.clone(),
        crc: Crc::default().with(meta).with(payload).value(),
    });
    let (append, places) = log.plan_append(records, Marks { durable, committed: durable / 2 })?;
    assert!(!places.is_empty());
    log.append_done(append.run())
}

fn open(disk: &Memory, from: u64, durable: u64) -> Result<(Log, crate::Opened, u64), LogError> {
    open_with(disk, OPTIONS, from, durable)
}

fn open_with(
    disk: &Memory,
    options: LogOptions,
    from: u64,
    durable: u64,
) -> Result<(Log, crate::Opened, u64), LogError> {
    let mut seen = from - 1;
    let expect = Expect { from, durable, cut: None };
    let (log, opened) =
        Log::open(Arc::new(disk.clone()), "wal", owner(), options, expect, &mut |record, _| {
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
    for (seed, options) in [(0, OPTIONS), (1, OPTIONS), (2, OPTIONS), (3, GROWING), (4, GROWING)] {
        let mut at = 0;
        loop {
            let disk = Memory::new(seed);
            let mut log = make_with(&disk, options);
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
                open_with(&disk, options, 1, 0).unwrap_or_else(|e| panic!("{context}: {e}"));
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
    /// The same, of the names in the directory.
    FailedNames,
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
        Interruption::FailedNames => disk.fail(OpKind::Meta, at, "wal", Fault::Io),
    }
    let done = log.truncate(end).is_ok();
    match how {
        Interruption::PowerLoss => disk.power_loss(),
        Interruption::Kill | Interruption::FailedSync | Interruption::FailedNames => {
            disk.process_killed();
        }
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
    use Interruption::{FailedNames, FailedSync, Kill, PowerLoss};
    for how in [PowerLoss, Kill, FailedSync, FailedNames] {
        for seed in 0..8 {
            for end in [0, 10 + seed * 5] {
                let interrupted = (0..).take_while(|at| !interrupt_a_cut(how, seed, end, *at));
                let count = interrupted.count();
                // A cut to 0 removes all segments and syncs none.
                let nothing = matches!(how, FailedSync) && end == 0;
                assert!(
                    matches!(how, FailedNames) || (count == 0) == nothing,
                    "{how:?}, seed {seed}, to {end}: {count}"
                );
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

/// Bytes of the log's files.
fn taken(disk: &Memory) -> u64 {
    let files = disk.paths().into_iter().filter(|path| path.contains("wal/"));
    files.map(|path| disk.open(&path).expect("opens").len().expect("has a length")).sum()
}

#[test]
fn a_log_takes_room_as_it_grows() {
    let disk = Memory::new(6);
    let mut log = make_with(&disk, GROWING);
    let work = log.housekeeping().expect("spares");
    log.housekeeping_done(work.run()).expect("made");
    assert_eq!(taken(&disk), 2 * (2 << 10), "two spares, for the first records");
    append(&mut log, 1, 100).expect("append");
    assert_eq!(taken(&disk), (2 + 2 + 4) << 10);
    append(&mut log, 60, 900).expect("append");
    let bounds: Vec<u64> = log.segments().map(|(_, _, end)| end).collect();
    let most = [2, 4, 8].into_iter().chain(std::iter::repeat(16)).map(|kib: u64| kib << 10);
    assert!(
        bounds.len() > 5 && bounds.iter().zip(most).all(|(end, most)| *end <= most),
        "{bounds:?}"
    );
    assert!(
        bounds.iter().take(5).zip([1, 2, 4, 8, 8]).all(|(end, kib)| *end > kib << 10),
        "{bounds:?}"
    );
    // What is let go of while it was small does not come back as a spare.
    while log.segments().count() > 1 {
        assert!(log.release_oldest());
    }
    let work = log.housekeeping().expect("released files");
    log.housekeeping_done(work.run()).expect("done");
    append(&mut log, 61, 900).expect("append");
    let spares = disk.paths().into_iter().filter(|path| path.ends_with(".spare"));
    let sizes: Vec<u64> =
        spares.map(|path| disk.open(&path).expect("opens").len().expect("has a length")).collect();
    assert!(sizes.iter().filter(|bytes| **bytes == 16 << 10).count() >= 2, "{sizes:?}");
    // An opening goes on where it was.
    disk.power_loss();
    let (mut log, opened, _) = open_with(&disk, GROWING, log.first_index(), 0).expect("open");
    assert_eq!((opened.end, log.next_bytes), (61, 16 << 10));
    log.reset(62).expect("reset");
    assert_eq!((log.next_bytes, taken(&disk)), (2 << 10, 0), "an empty log is small again");
}

/// Each copies what it can't know to be durable, into another file.
#[test]
fn openings_do_not_make_a_log_grow() {
    let disk = Memory::new(7);
    let mut log = make_with(&disk, GROWING);
    append(&mut log, 1, 100).expect("append");
    for opening in 1..10 {
        disk.process_killed();
        let (mut log, opened, _) = open_with(&disk, GROWING, 1, 0).expect("open");
        assert_eq!((opened.end, log.segments().count()), (1, 1));
        if let Some(work) = log.housekeeping() {
            log.housekeeping_done(work.run()).expect("done");
        }
        assert!(log.next_bytes <= 4 << 10, "{} after {opening} openings", log.next_bytes);
        assert!(taken(&disk) <= 14 << 10, "{} after {opening} openings", taken(&disk));
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

fn spares(disk: &Memory) -> Vec<String> {
    disk.paths().into_iter().filter(|path| path.ends_with(".spare")).collect()
}

/// Writes until the disk is full, and reads what is left. Returns the records that were acknowledged.
fn fill(disk: &Memory, log: &mut Log, context: &str) -> u64 {
    disk.fill_up_after(0);
    let mut durable = log.next_index() - 1;
    let full = loop {
        match append_once(log, durable + 1, 700) {
            Ok(end) => durable = end,
            Err(error) => break error,
        }
    };
    assert!(full.to_string().contains("os error 28"), "{context}: {full}");
    disk.process_killed();
    let expect = Expect { from: 1, durable: 0, cut: None };
    let scanned =
        Log::read(Arc::new(disk.clone()), "wal", owner(), OPTIONS, expect, &mut |_, _| Ok(()));
    let scanned = scanned.unwrap_or_else(|e| panic!("{context}: {e}"));
    assert_eq!(scanned.doubt(), None, "{context}");
    drop(scanned);
    disk.make_room();
    assert_eq!(open(disk, 1, 0).expect(context).1.end, durable, "{context}");
    durable
}

/// A process is killed while it makes spares, or the disk is full meanwhile. What is left is none: it
/// would not have the room that a record counts on.
#[test]
fn a_spare_whose_making_was_cut_short_is_none() {
    let mut stopped = 0;
    for full in [false, true] {
        for at in 0.. {
            let disk = Memory::new(at);
            let mut log = make(&disk);
            disk.sync_dir("").expect("sync");
            let context = format!("full {full}, at {at}");
            if full {
                disk.fill_up_after(at)
            } else {
                disk.crash_after(at)
            }
            let work = log.housekeeping().expect("it has no spares");
            let done = log.housekeeping_done(work.run()).is_ok() && !disk.crashed();
            if full {
                disk.make_room()
            } else {
                disk.process_killed()
            }
            for path in spares(&disk) {
                let content = disk.content(&path).expect("it is listed");
                assert_eq!(content.len() as u64, OPTIONS.segment_bytes, "{context}: {path}");
            }
            let (mut log, ..) = open(&disk, 1, 0).expect(&context);
            assert!(!disk.paths().iter().any(|path| path.contains(".tmp")), "{context}");
            let taken = spares(&disk).len() as u64;
            let records = fill(&disk, &mut log, &context);
            // Each takes 700 bytes, and what is around it.
            assert!(records >= taken * 15, "{context}: {records} in {taken} spares");
            stopped += u64::from(!done);
            if done {
                break;
            }
        }
    }
    assert!(stopped > 8, "{stopped}");
}

/// Spares that are shorter than a segment, made for smaller ones or cut short by an older version, get its
/// length before they are one.
#[test]
fn a_spare_that_is_too_short_never_ends_in_a_record() {
    let disk = Memory::new(1);
    make(&disk);
    for (number, len) in [(7, 5000), (8, 0), (9, OPTIONS.segment_bytes)] {
        let file = disk.create(&spare_path("wal", number)).expect("create");
        file.reserve(len).expect("reserve");
        write_zeros(&*file, 0, len).expect("write");
    }
    let (mut log, ..) = open(&disk, 1, 0).expect("open");
    let records = fill(&disk, &mut log, "a whole one, and two that are not");
    assert!((10..20).contains(&records), "{records}");
    // Again, on what that has left.
    let (mut log, ..) = open(&disk, 1, 0).expect("open");
    fill(&disk, &mut log, "less than before");
}

/// What a record needs beyond the file that its segment gets is taken before anything is written.
#[test]
fn a_full_disk_never_stops_a_record_in_its_middle() {
    let disk = Memory::new(1);
    let mut log = make(&disk);
    append(&mut log, 3, 700).expect("append");
    disk.fill_up_after(0);
    append_once(&mut log, 4, 100_000).expect_err("larger than a spare");
    disk.process_killed();
    let expect = Expect { from: 1, durable: 0, cut: None };
    let storage = Arc::new(disk.clone());
    let scanned = Log::read(storage, "wal", owner(), OPTIONS, expect, &mut |_, _| Ok(()));
    assert_eq!(scanned.expect("read").doubt(), None);
    assert_eq!(open(&disk, 1, 3).expect("open").1.end, 3);
}

#[test]
fn spares_that_were_there_before_file_work_failed_are_used() {
    let disk = Memory::new(1);
    let mut log = make(&disk);
    append(&mut log, 60, 700).expect("append");
    log.spares.clear();
    assert!(log.release_oldest());
    disk.fill_up_after(0);
    // One is let go, and another one is to be made.
    let work = log.housekeeping().expect("work");
    let error = log.housekeeping_done(work.run()).expect_err("full");
    assert!(error.to_string().contains("os error 28"), "{error}");
    assert!(!log.has_failed());
    assert_eq!(log.spares.len(), 1);
    append(&mut log, 75, 700).expect("it needs no room");
    assert!(log.spares.is_empty());
    assert!(!disk.paths().iter().any(|path| path.contains(".tmp")), "{:?}", disk.paths());
}

/// A disk on which file work is done as soon as a segment got its name.
#[derive(Debug)]
struct Beside {
    disk: Memory,
    work: Mutex<Option<Housekeeping>>,
    done: Mutex<Option<Housekept>>,
}

impl Storage for Beside {
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)?;
        if to.ends_with(".seg")
            && let Some(work) = self.work.lock().expect("no panic").take()
        {
            *self.done.lock().expect("no panic") = Some(work.run());
        }
        Ok(())
    }
    fn create_dir(&self, path: &str) -> io::Result<()> {
        self.disk.create_dir(path)
    }
    fn create(&self, path: &str) -> io::Result<Arc<dyn RawFile>> {
        self.disk.create(path)
    }
    fn open(&self, path: &str) -> io::Result<Arc<dyn RawFile>> {
        self.disk.open(path)
    }
    fn remove(&self, path: &str) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }
    fn describe(&self, path: &str) -> PathBuf {
        self.disk.describe(path)
    }

    fn unit(&self) -> u64 {
        self.disk.unit()
    }

    fn authenticator(&self) -> Option<Arc<dyn Authenticator>> {
        None
    }
}

/// 1. An append gives its segment a name, and is about to sync the directory.
/// 2. File work beside it does that first, and is told that names are lost.
/// 3. The append must not be told that all is well: a loss of power takes the name, and what was written.
#[test]
fn names_that_are_lost_under_file_work_fail_the_append_beside_it() {
    let disk = Memory::new(1);
    disk.create_dir("wal").expect("dir");
    let (work, done) = (Mutex::default(), Mutex::default());
    let storage = Arc::new(Beside { disk: disk.clone(), work, done });
    let mut log = Log::create(Arc::clone(&storage) as _, "wal", owner(), OPTIONS, 1);
    append(&mut log, 30, 700).expect("append");
    assert!(log.release_oldest());
    *storage.work.lock().expect("no panic") = log.housekeeping();
    // The name of the segment, that of the one that was let go, and the sync of both.
    disk.fail(OpKind::Meta, 2, "wal", Fault::Io);
    let (meta, payload) = body(31, 12_000);
    let crc = Crc::default().with(&meta).with(&payload).value();
    let record = Record { meta: &meta, payload, crc };
    let (beside, _) = log.plan_append([record], Marks::default()).expect("planned");
    let (path, appended) = (beside.segment.path.clone(), beside.run());
    assert!(appended.failed(), "it is told of");
    let done = storage.done.lock().expect("no panic").take().expect("it was done beside it");
    let error = log.housekeeping_done(done).expect_err("the fault");
    assert!(matches!(error, LogError::Io { doing: "sync", .. }), "{error}");
    assert!(log.has_failed());
    disk.lose_unsynced();
    assert!(!disk.paths().contains(&path), "the name was lost");
}
