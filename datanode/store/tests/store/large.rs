//! Large writes: written once, kept for others as long as the log has them, and given back.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use sbk_engine::replication::io::Kept;
use sbk_engine::replication::log::{BlockRange, EntryHeader, EntryKind};
use sbk_engine::replication::message::RecoveryId;
use sbk_engine::types::{BootId, Epoch, Incarnation, Lba, LossGeneration, Lsn, Millis, TailId};
use sbk_store::entry::entry_crc;
use sbk_store::{CreateSpec, LogReadError, Store, StoreOptions};
use sbk_wal::{Fault, Files, Memory, OpKind, Storage};
use uuid::Uuid;

use super::content::{BLOCK, bytes_of};
use super::counting::Counting;
use super::driver::{self, identity, options};

/// Bytes of a file before its content.
const HEADER: usize = 4096;

fn new_store() -> (Memory, Store) {
    let memory = Memory::new(1);
    let storage: Arc<dyn Storage> = Arc::new(memory.clone());
    driver::create(&storage, 0).expect("a replica");
    (memory, driver::open(&storage, 0).expect("a store").0)
}

/// A store with the usual threshold.
pub(crate) fn open_with(storage: &Arc<dyn Storage>, blocks: u64, options: &StoreOptions) -> Store {
    let spec = CreateSpec { identity: identity(0), blocks, loss_generation: LossGeneration(0) };
    Store::create(storage, &spec, options).expect("a replica");
    let incarnation = Incarnation { process: 1, open: 1 };
    let tail = TailId { boot: BootId(Uuid::from_u128(1)), count: 0 };
    Store::open(storage, identity(0), incarnation, tail, options.clone()).expect("a store").0
}

pub(crate) fn append(store: &mut Store, block: u64, payload: &Bytes) -> Lsn {
    let blocks = (payload.len() / BLOCK) as u32;
    let kind = EntryKind::Write { lba: Lba(block), blocks };
    let lsn = store.end().next();
    let header = EntryHeader { epoch: Epoch(1), lsn, kind, origin: None };
    store.append(header, entry_crc(&header, payload), payload.clone()).expect("appended");
    lsn
}

pub(crate) fn log_all(store: &mut Store) {
    while let Some(batch) = store.take_batch() {
        store.batch_done(batch.run()).expect("durable");
    }
}

fn write(store: &mut Store, block: u64, tags: &[u64]) -> Lsn {
    let lsn = append(store, block, &bytes_of(tags));
    log_all(store);
    lsn
}

pub(crate) fn checkpoint(store: &mut Store) {
    store.set_committed(store.durable());
    while let Some(plan) = store.plan_checkpoint(u64::MAX) {
        store.checkpoint_done(plan.run()).expect("checkpointed");
    }
}

fn read(store: &Store, block: u64, blocks: u32) -> Bytes {
    store.plan_read(BlockRange { lba: Lba(block), blocks }).run().expect("read")
}

/// The payload of an entry, as another replica would be sent it.
fn fed(store: &Store, lsn: Lsn) -> Result<Bytes, LogReadError> {
    let mut plan = store.read_log(lsn, lsn)?;
    Ok(plan.next(1, 1)?.remove(0).payload)
}

/// What lies in a home of a block.
fn home(memory: &Memory, file: &str, block: usize) -> Bytes {
    let content = memory.content(file).expect("it is there");
    Bytes::copy_from_slice(&content[HEADER + block * BLOCK..][..BLOCK])
}

/// A store whose memory holds no payload that is durable.
fn forgetful(memory: &Memory) -> Store {
    let storage: Arc<dyn Storage> = Arc::new(memory.clone());
    open_with(&storage, 300, &StoreOptions { tail_cache_bytes: 0, ..options() })
}

#[test]
fn a_payload_that_is_referred_to_stays_whatever_is_written_to_its_blocks() {
    let memory = Memory::new(1);
    let mut store = forgetful(&memory);
    let old = write(&mut store, 20, &[1, 2, 3, 4]);
    assert!(store.refers(old));
    checkpoint(&mut store);
    assert_eq!(home(&memory, "extents", 21), bytes_of(&[2]));
    // Small ones and zeros go to the other home, or nowhere.
    let small = write(&mut store, 21, &[22]);
    checkpoint(&mut store);
    assert_eq!(home(&memory, "shadow", 21), bytes_of(&[22]));
    // A large one over it goes into the log whole.
    let large = write(&mut store, 19, &[5, 0, 6, 7]);
    assert!(!store.refers(large) && !store.refers(small));
    checkpoint(&mut store);
    assert_eq!(read(&store, 19, 5), bytes_of(&[5, 0, 6, 7, 4]));
    let trim = EntryKind::Trim { lba: Lba(20), blocks: 4 };
    let header = EntryHeader { epoch: Epoch(1), lsn: store.end().next(), kind: trim, origin: None };
    store.append(header, entry_crc(&header, &[]), Bytes::new()).expect("appended");
    log_all(&mut store);
    checkpoint(&mut store);
    assert_eq!(read(&store, 19, 5), bytes_of(&[5, 0, 0, 0, 0]));
    assert_eq!(fed(&store, old).expect("it is retained"), bytes_of(&[1, 2, 3, 4]));
    assert_eq!(fed(&store, large).expect("it is retained"), bytes_of(&[5, 0, 6, 7]));
    // Once the log has let go of it, what it referred to is given back.
    let mut plan = store.read_log(old, old).expect("it is retained");
    while store.retained() <= old {
        write(&mut store, 100, &[9]);
        checkpoint(&mut store);
    }
    assert!(!store.refers(old));
    let error = plan.next(1, 1).expect_err("it was given back");
    assert!(matches!(error, LogReadError::Recycled { .. }), "{error}");
    for block in 20..24 {
        assert_eq!(home(&memory, "extents", block), bytes_of(&[0]), "block {block}");
        assert_eq!(home(&memory, "shadow", block), bytes_of(&[0]), "block {block}");
    }
    assert_eq!(read(&store, 19, 5), bytes_of(&[5, 0, 0, 0, 0]));
    let next = write(&mut store, 20, &[8, 8, 8]);
    assert!(store.refers(next), "its blocks are free again");
}

#[test]
fn what_is_cut_was_never_anybodys() {
    let memory = Memory::new(1);
    let mut store = forgetful(&memory);
    write(&mut store, 20, &[1, 2, 3]);
    checkpoint(&mut store);
    while store.refers(Lsn(1)) {
        write(&mut store, 100, &[9]);
        checkpoint(&mut store);
    }
    let end = store.end();
    let cut = write(&mut store, 20, &[4, 5, 6]);
    assert!(store.refers(cut));
    assert_eq!(home(&memory, "shadow", 20), bytes_of(&[4]));
    assert_eq!(read(&store, 20, 3), bytes_of(&[4, 5, 6]));
    store.cut(end, &Kept::default()).expect("cut");
    assert_eq!(read(&store, 20, 3), bytes_of(&[1, 2, 3]));
    checkpoint(&mut store);
    assert_eq!(home(&memory, "shadow", 20), bytes_of(&[0]));
    assert_eq!(read(&store, 20, 3), bytes_of(&[1, 2, 3]));
}

/// The homes of what is in the image are not looked for by an opening, and are used again.
#[test]
fn an_opening_gives_up_the_references_that_it_does_not_read() {
    let (memory, mut store) = new_store();
    write(&mut store, 50, &[7]);
    let old = write(&mut store, 20, &[1, 2, 3, 4]);
    write(&mut store, 21, &[22]);
    checkpoint(&mut store);
    write(&mut store, 21, &[23]);
    checkpoint(&mut store);
    let kept = write(&mut store, 30, &[5, 6, 7, 8]);
    assert_eq!(home(&memory, "extents", 21), bytes_of(&[2]), "for others");
    drop(store);
    let storage: Arc<dyn Storage> = Arc::new(memory.clone());
    let (mut store, opened) = driver::open(&storage, 0).expect("a store");
    assert_eq!(opened.retained, old.next());
    assert!(store.refers(kept) && !store.refers(old));
    assert_eq!(fed(&store, kept).expect("it is retained"), bytes_of(&[5, 6, 7, 8]));
    assert_eq!(read(&store, 20, 4), bytes_of(&[1, 23, 3, 4]));
    // Nobody knows what else is in those homes: that is looked for.
    checkpoint(&mut store);
    assert_eq!(home(&memory, "extents", 21), bytes_of(&[0]));
    assert_eq!(home(&memory, "shadow", 21), bytes_of(&[23]));
    assert_eq!(read(&store, 20, 4), bytes_of(&[1, 23, 3, 4]));
}

/// Power is lost between the sync of a payload and its record, again and again.
/// The volume had shrunk, and the log of one that is away still referred to what had been there.
#[test]
fn what_an_opening_gives_up_behind_the_end_is_given_back_too() {
    let (memory, mut store) = new_store();
    write(&mut store, 50, &[7]);
    let old = write(&mut store, 20, &[1, 2, 3, 4]);
    checkpoint(&mut store);
    let resize = |blocks| EntryKind::Resize { blocks };
    let log = |store: &mut Store, kind| {
        let lsn = store.end().next();
        let header = EntryHeader { epoch: Epoch(1), lsn, kind, origin: None };
        store.append(header, entry_crc(&header, &[]), Bytes::new()).expect("appended");
        log_all(store);
        checkpoint(store);
    };
    log(&mut store, resize(10));
    write(&mut store, 0, &[5]);
    checkpoint(&mut store);
    assert!(store.refers(old));
    assert_eq!(home(&memory, "extents", 21), bytes_of(&[2]), "for others");
    drop(store);
    let storage: Arc<dyn Storage> = Arc::new(memory.clone());
    let (mut store, _) = driver::open(&storage, 0).expect("a store");
    assert!(!store.refers(old));
    // There may be a look at everything where something is checkpointed anyway.
    write(&mut store, 1, &[6]);
    checkpoint(&mut store);
    for block in 20..24 {
        assert_eq!(home(&memory, "extents", block), bytes_of(&[0]), "block {block}");
    }
    assert_eq!(read(&store, 0, 2), bytes_of(&[5, 6]));
    log(&mut store, resize(100));
    assert_eq!(read(&store, 20, 4), bytes_of(&[0, 0, 0, 0]));
}

#[test]
fn a_payload_without_a_record_is_nothing_and_is_given_back() {
    let (memory, mut store) = new_store();
    write(&mut store, 20, &[1, 2, 3]);
    checkpoint(&mut store);
    append(&mut store, 40, &bytes_of(&[4, 5, 6]));
    let batch = store.take_batch().expect("a payload");
    store.batch_done(batch.run()).expect("placed");
    assert_eq!(store.durable(), Lsn(1));
    drop(store);
    memory.lose_unsynced();
    let storage: Arc<dyn Storage> = Arc::new(memory.clone());
    let (mut store, opened) = driver::open(&storage, 0).expect("a store");
    assert_eq!(opened.durable, Lsn(1));
    assert_eq!(home(&memory, "extents", 40), bytes_of(&[4]), "it was synced");
    assert_eq!(read(&store, 40, 3), bytes_of(&[0, 0, 0]));
    write(&mut store, 60, &[7]);
    checkpoint(&mut store);
    assert_eq!(home(&memory, "extents", 40), bytes_of(&[0]));
    assert_eq!(read(&store, 20, 3), bytes_of(&[1, 2, 3]));
}

/// With written acknowledgements the log is only written, but a payload is durable before a record refers to it.
#[test]
fn a_payload_is_durable_before_its_record_is_written() {
    let (memory, mut store) = new_store();
    append(&mut store, 20, &bytes_of(&[1, 2, 3]));
    while let Some(batch) = store.take_batch() {
        store.batch_done(batch.write_only()).expect("written");
        let now = memory.fork();
        now.lose_unsynced();
        assert_eq!(home(&now, "extents", 22), bytes_of(&[3]));
    }
    assert_eq!((store.written(), store.durable()), (Lsn(1), Lsn(0)));
    drop(store);
    memory.process_killed();
    let storage: Arc<dyn Storage> = Arc::new(memory.clone());
    assert_eq!(driver::open(&storage, 0).expect("a store").1.durable, Lsn(1));
    memory.lose_unsynced();
    let (store, opened) = driver::open(&storage, 0).expect("a store");
    assert_eq!(opened.durable, Lsn(1));
    assert_eq!(read(&store, 20, 3), bytes_of(&[1, 2, 3]));
}

#[test]
fn no_record_refers_to_a_payload_whose_sync_failed() {
    let (memory, mut store) = new_store();
    append(&mut store, 20, &bytes_of(&[1, 2, 3]));
    memory.fail(OpKind::Sync, 0, "extents", Fault::Io);
    let batch = store.take_batch().expect("a payload").run();
    assert!(batch.failed());
    store.batch_done(batch).expect_err("its sync failed");
    assert!(store.take_batch().is_none(), "the store has stopped");
    drop(store);
    let storage: Arc<dyn Storage> = Arc::new(memory.clone());
    let (store, opened) = driver::open(&storage, 0).expect("a store");
    assert_eq!(opened.durable, Lsn(0));
    assert_eq!(read(&store, 20, 3), bytes_of(&[0, 0, 0]));
}

/// A payload that rots before its checkpoint is damage if something proves that it was durable, and else the end of
/// the log, in doubt.
#[test]
fn a_payload_that_rots_in_the_log_is_told() {
    let (memory, mut store) = new_store();
    write(&mut store, 20, &[1, 2, 3]);
    drop(store);
    let flip = |memory: &Memory| {
        assert!(memory.flip("extents", ((HEADER + 21 * BLOCK) * 8 + 5) as u64));
    };
    let last = memory.fork();
    flip(&last);
    let storage: Arc<dyn Storage> = Arc::new(last);
    let (_, opened) = driver::open(&storage, 0).expect("a store");
    assert!(opened.durable == Lsn(0) && opened.kept.doubtful);

    let storage: Arc<dyn Storage> = Arc::new(memory.clone());
    let (mut store, opened) = driver::open(&storage, 0).expect("a store");
    assert_eq!(opened.durable, Lsn(1));
    write(&mut store, 30, &[4]);
    flip(&memory);
    let error = store.plan_read(BlockRange { lba: Lba(20), blocks: 3 }).run();
    assert!(error.expect_err("it rotted").to_string().contains("extents"));
    drop(store);
    let error = driver::open(&storage, 0).expect_err("others count on it").to_string();
    assert!(error.contains("record 1 refers to its payload"), "{error}");
    assert!(error.contains("block 21") && error.contains("extents"), "{error}");
}

/// How much room the files of a replica's image take.
fn used(dir: &Path) -> u64 {
    let of = |name: &str| std::fs::metadata(dir.join(name)).expect("it is there").blocks() * 512;
    of("extents") + of("shadow")
}

fn filled(blocks: usize, with: u64) -> Bytes {
    bytes_of(&(0..blocks as u64).map(|block| with * 1000 + block + 1).collect::<Vec<_>>())
}

/// On a real file system: what is overwritten is given back, whole or in part, and zeros take no room.
#[test]
fn the_image_takes_no_more_room_than_its_data() {
    let dir = tempfile::tempdir().expect("a directory");
    let storage: Arc<dyn Storage> = Arc::new(Files::new(dir.path()));
    let options = StoreOptions {
        wal_segment_bytes: 1 << 20,
        wal_retain_bytes: 2 << 20,
        large_batch_bytes: 0,
        ..StoreOptions::default()
    };
    let mut store = open_with(&storage, 4096, &options);
    let empty = used(dir.path());
    for lap in 1..8u64 {
        for chunk in 0..8 {
            append(&mut store, chunk * 256, &filled(256, lap));
            log_all(&mut store);
            checkpoint(&mut store);
        }
    }
    let full = used(dir.path()) - empty;
    let (data, retained) = (8 << 20, (2 << 20) + (2 << 20));
    assert!(full >= data && full <= data + retained + (1 << 20), "{full} bytes for {data}");
    // Zeros: small, large, and within large ones.
    for chunk in 0..8 {
        for lap in 0..2 {
            let zeros = Bytes::from(vec![0; BLOCK * 256]);
            let mut mixed = filled(256, 99).to_vec();
            mixed[..255 * BLOCK].fill(0);
            append(&mut store, chunk * 256, &if lap == 0 { zeros } else { Bytes::from(mixed) });
            log_all(&mut store);
            checkpoint(&mut store);
        }
        append(&mut store, chunk * 256 + 255, &Bytes::from(vec![0; BLOCK]));
        log_all(&mut store);
        checkpoint(&mut store);
    }
    // Nothing of what came before is retained.
    while store.refers(Lsn(1)) || store.retained().0 < 80 {
        append(&mut store, 4000, &filled(16, 5));
        log_all(&mut store);
        checkpoint(&mut store);
    }
    let zeroed = used(dir.path()) - empty;
    assert!(zeroed <= 1 << 20, "{zeroed} bytes for 64 KiB of data");
    let all = BlockRange { lba: Lba(0), blocks: 2048 };
    assert!(store.plan_read(all).run().expect("read").iter().all(|byte| *byte == 0));
    let runs = store.plan_allocation(all).run(9).expect("runs");
    assert!(runs.len() == 1 && runs[0].hole, "{runs:?}");
}

/// While the disk is short of room overwrites take none: nothing is placed, and what was is not kept for others.
#[test]
fn overwrites_take_no_room_while_the_disk_is_short_of_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let storage: Arc<dyn Storage> = Arc::new(Files::new(dir.path()));
    let options = StoreOptions {
        wal_segment_bytes: 1 << 20,
        wal_retain_bytes: 16 << 20,
        large_batch_bytes: 0,
        ..StoreOptions::default()
    };
    let mut store = open_with(&storage, 4096, &options);
    let empty = used(dir.path());
    let lap = |store: &mut Store, lap: u64, blocks: usize| {
        for n in 0..2048 / blocks as u64 {
            append(store, n * blocks as u64, &filled(blocks, lap));
            if (n * blocks as u64).is_multiple_of(256) {
                log_all(store);
                checkpoint(store);
            }
        }
        log_all(store);
        checkpoint(store);
    };
    lap(&mut store, 1, 256);
    let kept = store.end();
    lap(&mut store, 2, 15);
    let before = used(dir.path()) - empty;
    assert!(store.refers(kept) && before >= 15 << 20, "two homes: {before} bytes");
    store.set_short(true);
    checkpoint(&mut store);
    let data = (8 << 20) + (1 << 20);
    let short = used(dir.path()) - empty;
    assert!(!store.refers(kept) && short <= data, "nothing is kept: {short} bytes");
    assert!(store.retained() > kept);
    for n in 3..6 {
        for blocks in [256, 16, 1] {
            lap(&mut store, n, blocks);
            assert!(!store.refers(store.end()));
            let now = used(dir.path()) - empty;
            assert!(now <= data, "{now} bytes after writes of {blocks} blocks");
        }
    }
    store.set_short(false);
    lap(&mut store, 6, 256);
    assert!(store.refers(store.end()));
    assert_eq!(read(&store, 256, 256), filled(256, 6));
}

/// A session that is being sent the log keeps payloads too, up to the bound on what a pin holds.
#[test]
fn a_pin_keeps_payloads_on_a_short_disk() {
    let (_memory, mut store) = new_store();
    let first = write(&mut store, 20, &[1, 2, 3]);
    let second = write(&mut store, 30, &[4, 5, 6]);
    let session = RecoveryId { epoch: Epoch(1), number: 1 };
    store.pin(session, second);
    store.set_short(true);
    checkpoint(&mut store);
    assert!(!store.refers(first) && store.refers(second) && !store.pin_lost(session));
    assert_eq!(store.retained(), second);
    assert_eq!(fed(&store, second).expect("it is pinned"), bytes_of(&[4, 5, 6]));
    store.unpin(session);
    assert!(store.wants_housekeeping());
    checkpoint(&mut store);
    assert!(!store.refers(second));
}

/// Payloads are not kept longer than the log's files are.
#[test]
fn payloads_are_given_back_with_time() {
    let memory = Memory::new(1);
    let storage: Arc<dyn Storage> = Arc::new(memory.clone());
    let mut store = open_with(&storage, 300, &StoreOptions { wal_retain_ms: 1600, ..options() });
    let old = write(&mut store, 20, &[1, 2, 3]);
    checkpoint(&mut store);
    store.pass_time(Millis(1000));
    let new = write(&mut store, 30, &[4, 5, 6]);
    write(&mut store, 21, &[9]);
    checkpoint(&mut store);
    store.pass_time(Millis(2599));
    assert!(!store.wants_housekeeping() && store.refers(old));
    store.pass_time(Millis(2600));
    assert!(store.wants_housekeeping());
    checkpoint(&mut store);
    assert!(!store.refers(old) && store.refers(new));
    assert_eq!(home(&memory, "extents", 21), bytes_of(&[0]), "it is given back");
    assert_eq!(read(&store, 20, 3), bytes_of(&[1, 9, 3]));
}

/// Zeros are holes from the moment that they are logged, wherever their entry is.
#[test]
fn zeros_that_are_only_logged_are_holes() {
    for cache in [0, 1 << 20] {
        for large_write_bytes in [BLOCK as u64, u64::MAX] {
            let storage: Arc<dyn Storage> = Arc::new(Memory::new(1));
            let options = StoreOptions { tail_cache_bytes: cache, large_write_bytes, ..options() };
            let mut store = open_with(&storage, 300, &options);
            write(&mut store, 20, &[0, 0, 1, 0]);
            let runs = |store: &Store| {
                let range = BlockRange { lba: Lba(18), blocks: 8 };
                let runs = store.plan_allocation(range).run(9).expect("looked");
                let first = store.plan_find_data(Lba(18), 26).run().expect("looked");
                assert_eq!(first, Some(Lba(22)));
                runs.iter().map(|run| (run.blocks, run.hole)).collect::<Vec<_>>()
            };
            let expected = [(4, true), (1, false), (3, true)];
            assert_eq!(runs(&store), expected);
            checkpoint(&mut store);
            assert_eq!(runs(&store), expected);
        }
    }
}

/// Bytes that reach the files for each byte of payload, without those of segments that are made.
fn amplification(size: usize, large_write_bytes: u64) -> f64 {
    let memory = Memory::new(1);
    let counting = Counting::new(Arc::new(memory));
    let storage: Arc<dyn Storage> = Arc::new(counting.clone());
    let options = StoreOptions {
        wal_segment_bytes: 4 << 20,
        wal_retain_bytes: 4 << 20,
        checkpoint_bytes: 1 << 20,
        large_write_bytes,
        large_batch_bytes: 0,
        ..StoreOptions::default()
    };
    let mut store = open_with(&storage, 8192, &options);
    let lap = |store: &mut Store, count: u64| {
        for n in 0..count {
            let at = n * (size / BLOCK) as u64 % 4096;
            append(store, at, &filled(size / BLOCK, n + 1));
            if n % 4 == 3 {
                log_all(store);
            }
            if store.resident_bytes() >= 1 << 20 {
                log_all(store);
                checkpoint(store);
            }
        }
        log_all(store);
        checkpoint(store);
    };
    let count = (32 << 20) / size as u64;
    // The segments that are needed are there then, and used again.
    lap(&mut store, count);
    counting.take();
    lap(&mut store, count);
    let written: u64 = counting.take().values().map(|written| written.bytes).sum();
    written as f64 / (count * size as u64) as f64
}

#[test]
fn a_large_payload_is_written_once() {
    for (size, most) in [(64 << 10, 1.1), (1 << 20, 1.05)] {
        let (once, twice) = (amplification(size, 64 << 10), amplification(size, u64::MAX));
        assert!(once < most, "{size} bytes: {once}");
        assert!(twice > 1.9, "{size} bytes: {twice}");
    }
    assert!(amplification(4 << 10, 64 << 10) > 1.9, "small ones go through the log");
}

/// What is retained is bounded by what it refers to, not by its records, which are small.
#[test]
fn payloads_count_for_what_is_retained() {
    let memory = Memory::new(1);
    let storage: Arc<dyn Storage> = Arc::new(memory);
    let options = StoreOptions {
        wal_segment_bytes: 1 << 20,
        wal_retain_bytes: 4 << 20,
        large_batch_bytes: 0,
        ..StoreOptions::default()
    };
    let mut store = open_with(&storage, 65_536, &options);
    for n in 0..300 {
        append(&mut store, n * 16, &filled(16, n));
        log_all(&mut store);
        checkpoint(&mut store);
        let referred = (1..=store.end().0).filter(|lsn| store.refers(Lsn(*lsn))).count() << 16;
        assert!(referred <= (4 << 20) + (3 << 20), "{referred} bytes after {n}");
        assert!(n < 100 || referred >= 4 << 20, "{referred} bytes after {n}");
    }
}

/// A batch that brings little goes through the log: its second sync would cost more than it saves.
#[test]
fn a_batch_with_little_of_large_writes_goes_through_the_log() {
    let memory = Memory::new(1);
    let storage: Arc<dyn Storage> = Arc::new(memory);
    let options = StoreOptions { large_batch_bytes: 256 << 10, ..StoreOptions::default() };
    let mut store = open_with(&storage, 4096, &options);
    // Three of 64 KiB are too little, four are enough; what is smaller does not count.
    for (large, refers) in [(3, false), (4, true)] {
        let small = append(&mut store, 3000, &filled(15, 1));
        let first = store.end().next();
        for n in 0..large {
            append(&mut store, large * 100 + n * 16, &filled(16, n + 1));
        }
        log_all(&mut store);
        assert!(!store.refers(small));
        for lsn in first.0..=store.end().0 {
            assert_eq!(store.refers(Lsn(lsn)), refers, "entry {lsn} of {large}");
        }
    }
    checkpoint(&mut store);
    for large in [3, 4] {
        for n in 0..large {
            assert_eq!(read(&store, large * 100 + n * 16, 16), filled(16, n + 1));
        }
    }
}
