//! What the WAL keeps for replicas that are away, and what an opening has to read.

use std::sync::Arc;

use bytes::Bytes;
use sbk_engine::replication::io::Kept;
use sbk_engine::replication::log::{BlockRange, EntryHeader, EntryKind};
use sbk_engine::replication::message::RecoveryId;
use sbk_engine::types::{BootId, Epoch, Incarnation, Lba, LossGeneration, Lsn, Millis, TailId};
use sbk_store::entry::entry_crc;
use sbk_store::{CreateSpec, LogReadError, Store, StoreOptions};
use sbk_wal::{Memory, Storage};
use uuid::Uuid;

use super::content::bytes_of;
use super::driver::{self, identity, options};

pub(crate) fn append(store: &mut Store, count: u64) {
    for _ in 0..count {
        let lsn = store.end().next();
        let payload = bytes_of(&[lsn.0]);
        let kind = EntryKind::Write { lba: Lba(lsn.0 % 100), blocks: 1 };
        let header = EntryHeader { epoch: Epoch(1), lsn, kind, origin: None };
        store.append(header, entry_crc(&header, &payload), payload).expect("appended");
        while let Some(batch) = store.take_batch() {
            store.batch_done(batch.run()).expect("durable");
        }
        store.set_committed(lsn);
        if lsn.0.is_multiple_of(10) {
            let plan = store.plan_checkpoint(u64::MAX).expect("a checkpoint");
            store.checkpoint_done(plan.run()).expect("checkpointed");
        }
    }
}

fn new_store() -> Store {
    let storage: Arc<dyn Storage> = Arc::new(Memory::new(1));
    driver::create(&storage, 0).expect("a replica");
    driver::open(&storage, 0).expect("a store").0
}

fn session(number: u64) -> RecoveryId {
    RecoveryId { epoch: Epoch(1), number }
}

/// Every entry from `first` on, checked.
fn read(store: &Store, first: Lsn) -> Result<(), LogReadError> {
    let mut plan = store.read_log(first, store.durable())?;
    let mut next = first;
    loop {
        let entries = plan.next(20_000, 5)?;
        if entries.is_empty() {
            assert_eq!(next, store.durable().next());
            return Ok(());
        }
        for entry in entries {
            assert_eq!((entry.header.lsn, entry.payload), (next, bytes_of(&[next.0])));
            next = next.next();
        }
    }
}

#[test]
fn a_pin_keeps_the_log_up_to_its_bound_and_is_lost_beyond() {
    let mut store = new_store();
    append(&mut store, 20);
    let first = store.retained();
    store.pin(session(1), first);
    let mut bytes = 0;
    while !store.pin_lost(session(1)) {
        read(&store, first).expect("it is pinned");
        append(&mut store, 1);
        bytes += 4096;
        assert!(bytes < 1 << 20, "a pin has a bound");
    }
    let bound = options().wal_retain_bytes + options().wal_pin_bytes;
    assert!(bytes + (20 << 12) > bound, "{bytes} bytes were kept, {bound} are allowed");
    let error = read(&store, first).expect_err("it is gone");
    assert!(matches!(error, LogReadError::Recycled { .. }), "{error}");
    // What is retained anyway goes on being there, and others are not affected.
    let retained = store.retained();
    read(&store, retained).expect("it is retained");
    store.pin(session(2), retained);
    assert!(!store.pin_lost(session(2)));
    store.unpin(session(1));
    assert!(!store.pin_lost(session(1)));
    // A pin below what is retained is lost from the start.
    store.pin(session(3), first);
    assert!(store.pin_lost(session(3)));
}

/// What is sent to the replicas while the local sync is under way can only come from memory.
#[test]
fn what_is_not_durable_is_had_without_the_disk_and_of_the_rest_the_newest() {
    let storage: Arc<dyn Storage> = Arc::new(Memory::new(1));
    driver::create(&storage, 0).expect("a replica");
    let incarnation = Incarnation { process: 1, open: 1 };
    let tail = TailId { boot: BootId(Uuid::from_u128(1)), count: 0 };
    let options = StoreOptions { tail_cache_bytes: 5 * 4096, ..options() };
    let opened = Store::open(&storage, identity(0), incarnation, tail, options);
    let mut store = opened.expect("a store").0;
    let recent = |store: &Store, first, last| {
        let entries = store.recent(Lsn(first), Lsn(last));
        for entry in &entries {
            assert_eq!(entry.payload, bytes_of(&[entry.header.lsn.0]));
        }
        entries.iter().map(|entry| entry.header.lsn.0).collect::<Vec<_>>()
    };
    assert!(recent(&store, 1, 0).is_empty());
    append(&mut store, 9);
    let durable = store.durable().0;
    for lsn in durable + 1..=durable + 20 {
        let payload = bytes_of(&[lsn]);
        let kind = EntryKind::Write { lba: Lba(lsn % 100), blocks: 1 };
        let header = EntryHeader { epoch: Epoch(1), lsn: Lsn(lsn), kind, origin: None };
        store.append(header, entry_crc(&header, &payload), payload).expect("appended");
    }
    let end = durable + 20;
    let all = recent(&store, 1, end);
    let first = all[0];
    assert!(first <= durable + 1 && all == (first..=end).collect::<Vec<_>>(), "{all:?}");
    assert_eq!(recent(&store, end - 3, end - 1), [end - 3, end - 2, end - 1]);
    while let Some(batch) = store.take_batch() {
        store.batch_done(batch.run()).expect("durable");
    }
    let kept = recent(&store, 1, end);
    let first = kept[0];
    assert!(first > durable + 1 && kept == (first..=end).collect::<Vec<_>>(), "{kept:?}");
    assert!(recent(&store, 1, first - 1).is_empty(), "those are on the disk only");
    read(&store, Lsn(1)).expect("both together are the whole log");
}

#[test]
fn without_a_pin_only_what_is_to_be_retained_stays() {
    let mut store = new_store();
    append(&mut store, 200);
    let kept = (store.durable().0 - store.retained().0 + 1) * 4096;
    let (least, segment) = (options().wal_retain_bytes, options().wal_segment_bytes);
    assert!(kept > least - segment && kept < least + 3 * segment, "{kept} bytes");
}

/// A volume of 1 TiB with the same log is opened by reading as much as for one of 1 GiB. (The
/// region table, 8 bytes for each region, reaches as far as something was written.)
#[test]
fn opening_reads_the_log_behind_the_checkpoint_not_the_volume() {
    let reads = |blocks: u64, before: u64, behind: u64| {
        let disk = Memory::new(1);
        let storage: Arc<dyn Storage> = Arc::new(disk.clone());
        let spec = CreateSpec { identity: identity(0), blocks, loss_generation: LossGeneration(0) };
        Store::create(&storage, &spec, &options()).expect("a replica");
        let open = || {
            let incarnation = Incarnation { process: 1, open: 1 };
            let tail = TailId { boot: BootId(Uuid::from_u128(1)), count: 0 };
            Store::open(&storage, identity(0), incarnation, tail, options()).expect("a store").0
        };
        let mut store = open();
        append(&mut store, before);
        append(&mut store, behind);
        store.close_clean().expect("closed");
        let bytes = disk.bytes_read();
        let store = open();
        let range = BlockRange { lba: Lba(blocks - 1), blocks: 1 };
        let read = disk.bytes_read() - bytes;
        assert_eq!(store.plan_read(range).run().expect("read"), Bytes::from(vec![0; 4096]));
        read
    };
    let small = reads(1 << 18, 50, 5);
    assert_eq!(reads(1 << 28, 50, 5), small, "the volume's size");
    // The segment in which the checkpoint lies is looked through from its start.
    let difference = reads(1 << 18, 400, 5).abs_diff(small);
    assert!(difference < options().wal_segment_bytes, "what is checkpointed: {difference}");
    assert!(reads(1 << 18, 50, 9) > small + 4 * 4096, "what is behind the checkpoint");
}

/// Flips a bit of the record that holds `payload`, wherever in the WAL it lies.
pub(crate) fn spoil(disk: &Memory, payload: &Bytes) {
    for path in disk.paths().into_iter().filter(|path| path.ends_with(".seg")) {
        let content = disk.content(&path).expect("it is listed");
        let Some(at) = content.windows(payload.len()).position(|bytes| bytes == &payload[..])
        else {
            continue;
        };
        assert!(disk.flip(&path, at as u64 * 8 + 3));
        return;
    }
    panic!("the WAL does not hold it");
}

fn unreadable(store: &Store, first: Lsn) -> (Lsn, String) {
    match read(store, first).expect_err("it is damaged") {
        LogReadError::Unreadable { lsn, what } => (lsn, what),
        other @ LogReadError::Recycled { .. } => panic!("{other}"),
    }
}

/// Entries 1 to 35, of which 1 to 30 are in the extents, and a pin from the oldest on. The memory
/// for recent payloads holds none of them.
fn a_store_to_spoil() -> (Memory, Arc<dyn Storage>, Store, Lsn) {
    let disk = Memory::new(1);
    let storage: Arc<dyn Storage> = Arc::new(disk.clone());
    driver::create(&storage, 0).expect("a replica");
    let options = StoreOptions { tail_cache_bytes: 0, ..options() };
    let incarnation = Incarnation { process: 1, open: 1 };
    let tail = TailId { boot: BootId(Uuid::from_u128(1)), count: 0 };
    let opened = Store::open(&storage, identity(0), incarnation, tail, options);
    let mut store = opened.expect("a store").0;
    append(&mut store, 35);
    let first = store.retained();
    store.pin(session(1), first);
    assert!(store.checkpoint() == Lsn(30) && first < Lsn(25), "{first}");
    (disk, storage, store, first)
}

#[test]
fn an_entry_that_rotted_after_its_checkpoint_counts_as_recycled() {
    let (disk, _, mut store, first) = a_store_to_spoil();
    let rotten = first.next();
    spoil(&disk, &bytes_of(&[rotten.0]));
    let (lsn, what) = unreadable(&store, first);
    assert_eq!(lsn, rotten);
    assert!(what.contains("damaged"), "{what}");
    let (checkpoint, retained) = store.unreadable(lsn, &what).expect("the extents have it");
    assert_eq!(checkpoint, Lsn(30));
    assert!(retained > rotten && retained <= Lsn(31), "{retained}");
    assert_eq!(store.retained(), retained);
    assert!(store.pin_lost(session(1)), "what it was to keep can't be read");
    let error = read(&store, rotten).expect_err("it is given up");
    assert!(matches!(error, LogReadError::Recycled { .. }), "{error}");
    read(&store, retained).expect("the rest is there");
    // The store goes on.
    append(&mut store, 20);
    read(&store, Lsn(40)).expect("what came since is there");
}

#[test]
fn an_entry_that_rotted_before_its_checkpoint_fails_the_store_and_is_not_opened_again() {
    let (disk, storage, mut store, _) = a_store_to_spoil();
    spoil(&disk, &bytes_of(&[32]));
    let (lsn, what) = unreadable(&store, Lsn(31));
    assert_eq!(lsn, Lsn(32));
    store.unreadable(lsn, &what).expect_err("it is nowhere else");
    let header = EntryHeader {
        epoch: Epoch(1),
        lsn: Lsn(36),
        kind: EntryKind::Write { lba: Lba(1), blocks: 1 },
        origin: None,
    };
    let payload = bytes_of(&[36]);
    let more = store.append(header, entry_crc(&header, &payload), payload);
    more.expect_err("it takes nothing more");
    drop(store);
    disk.process_killed();
    let error = driver::open(&storage, 0).expect_err("others count on entry 32").to_string();
    assert!(error.contains("damaged") && error.contains("record 32"), "{error}");
}

/// Killed before it has written as much as is to be retained, again and again.
#[test]
fn what_earlier_runs_have_left_counts_as_retained() {
    let disk = Memory::new(1);
    let storage: Arc<dyn Storage> = Arc::new(disk.clone());
    driver::create(&storage, 0).expect("a replica");
    let mut most = 0;
    for _ in 0..30 {
        let (mut store, opened) = driver::open(&storage, 0).expect("a store");
        read(&store, opened.retained).expect("what is retained can be read");
        append(&mut store, 10);
        assert!(10 << 12 < options().wal_retain_bytes, "less than that");
        while let Some(plan) = store.plan_checkpoint(0) {
            store.checkpoint_done(plan.run()).expect("file work");
        }
        most = most.max(disk.paths().iter().filter(|path| path.ends_with(".seg")).count());
    }
    // Each run begins two segments, the first of them with what it copied.
    let retained = options().wal_retain_bytes.div_ceil(options().wal_segment_bytes) as usize;
    assert!(most <= retained + 4, "{most} segments");
}

/// The end of the log is copied at an opening. That takes no room if there is a spare file.
#[test]
fn a_store_with_a_spare_file_is_opened_on_a_full_disk() {
    let disk = Memory::new(1);
    let storage: Arc<dyn Storage> = Arc::new(disk.clone());
    driver::create(&storage, 0).expect("a replica");
    let (mut store, opened) = driver::open(&storage, 0).expect("a store");
    // Without a promise it would have no entries.
    store.persist(&Kept { fenced: Epoch(1), ..opened.kept }).expect("promised");
    append(&mut store, 25);
    while let Some(plan) = store.plan_checkpoint(0) {
        store.checkpoint_done(plan.run()).expect("file work");
    }
    let end = store.durable();
    drop(store);
    let spares = || disk.paths().iter().filter(|path| path.ends_with(".spare")).count();
    let before = spares();
    assert!(before > 0, "{:?}", disk.paths());
    disk.fill_up_after(0);
    let (store, opened) = driver::open(&storage, 0).expect("it needs no room");
    assert_eq!((opened.durable, spares()), (end, before - 1));
    read(&store, opened.retained).expect("reads");
}

/// One that has promised nothing holds nothing yet, and its name may not be durable: that takes room.
#[test]
fn a_new_store_waits_for_room_on_a_full_disk() {
    let disk = Memory::new(1);
    let storage: Arc<dyn Storage> = Arc::new(disk.clone());
    driver::create(&storage, 0).expect("a replica");
    disk.fill_up_after(0);
    let error = driver::open(&storage, 0).expect_err("there is no room");
    assert!(sbk_store::is_out_of_space(&error), "{error}");
    disk.make_room();
    driver::open(&storage, 0).expect("there is room again");
}

#[test]
fn what_was_in_the_extents_for_long_is_not_kept_for_others() {
    let storage: Arc<dyn Storage> = Arc::new(Memory::new(1));
    driver::create(&storage, 0).expect("a replica");
    let kept = StoreOptions { wal_retain_bytes: 1 << 30, wal_retain_ms: 1000, ..options() };
    let open = |options: &StoreOptions| {
        let tail = TailId { boot: BootId(Uuid::from_u128(1)), count: 0 };
        let incarnation = Incarnation { process: 1, open: 1 };
        Store::open(&storage, identity(0), incarnation, tail, options.clone()).expect("a store").0
    };
    let mut store = open(&kept);
    append(&mut store, 60);
    assert_eq!((store.retained(), store.checkpoint()), (Lsn(1), Lsn(60)));
    // File work that was due anyway.
    while let Some(plan) = store.plan_checkpoint(0) {
        store.checkpoint_done(plan.run()).expect("done");
    }
    store.pass_time(Millis(5000));
    store.pin(session(1), Lsn(30));
    store.pass_time(Millis(5999));
    assert!(store.plan_checkpoint(0).is_none(), "it is not old yet");
    store.pass_time(Millis(6000));
    let mut retained = Lsn(1);
    while let Some(plan) = store.plan_checkpoint(0) {
        retained = store.checkpoint_done(plan.run()).expect("let go").1;
    }
    assert!(Lsn(1) < retained && retained <= Lsn(30), "{retained}: the rest is pinned");
    read(&store, Lsn(30)).expect("it is pinned");
    store.unpin(session(1));
    while let Some(plan) = store.plan_checkpoint(0) {
        retained = store.checkpoint_done(plan.run()).expect("let go").1;
    }
    assert!(retained > Lsn(30), "{retained}");
    assert_eq!(store.retained(), retained);
    read(&store, retained).expect("the newest segment is in use");
    // What is written now is kept anew, and an opening needs nothing that went.
    append(&mut store, 10);
    store.pass_time(Millis(6500));
    assert_eq!(store.retained(), retained);
    drop(store);
    let store = open(&kept);
    assert_eq!((store.end(), store.retained()), (Lsn(70), retained));
}

/// A cut to the checkpoint must leave a segment that ends there, whatever is not to be kept any more.
#[test]
fn the_segment_with_the_checkpoint_stays_however_old_it_is() {
    let storage: Arc<dyn Storage> = Arc::new(Memory::new(1));
    let options = StoreOptions { wal_retain_ms: 100, wal_retain_bytes: 0, ..options() };
    let mut store = super::large::open_with(&storage, 300, &options);
    let mut begun = 0;
    for n in 1..200 {
        let before = store.retained();
        append(&mut store, 10);
        // Entries that are not committed follow, and may begin another segment.
        let payload = bytes_of(&[7; 9]);
        super::large::append(&mut store, 0, &payload);
        super::large::log_all(&mut store);
        store.pass_time(Millis(1000 * n));
        while store.wants_housekeeping()
            && let Some(plan) = store.plan_checkpoint(0)
        {
            store.checkpoint_done(plan.run()).expect("done");
        }
        assert!(
            store.retained() <= store.checkpoint(),
            "{} {}",
            store.retained(),
            store.checkpoint()
        );
        begun += u64::from(store.retained() > before);
    }
    assert!(begun > 10, "{begun} segments were let go");
}
