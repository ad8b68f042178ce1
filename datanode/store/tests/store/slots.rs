//! Without one of the two slots of the superblock or the log state, and without what was not synced.

use std::sync::Arc;

use bytes::Bytes;
use sbk_engine::replication::io::Opened;
use sbk_engine::replication::log::{EntryHeader, EntryKind, EpochTable, LogState};
use sbk_engine::replication::message::{Incomplete, RecoveryId};
use sbk_engine::types::{AttachGeneration, BootId, Epoch, Incarnation, Lsn, TailId};
use sbk_store::entry::entry_crc;
use sbk_store::{Store, StoreError, StoreOptions};
use sbk_wal::{Memory, Storage};
use uuid::Uuid;

use super::content::BLOCKS;
use super::driver::{self, identity, options};
use super::retain::append;

const SUPERBLOCK_SLOT: u64 = 4096;
const STATE_SLOT: u64 = 1088 << 10;

fn made() -> (Memory, Arc<dyn Storage>, Store) {
    let disk = Memory::new(1);
    let storage: Arc<dyn Storage> = Arc::new(disk.clone());
    driver::create(&storage, 0).expect("a replica");
    let (store, _) = open(&storage).expect("a store");
    (disk, storage, store)
}

/// Opens it so that it retains nothing.
fn open(storage: &Arc<dyn Storage>) -> Result<(Store, Opened), StoreError> {
    let incarnation = Incarnation { process: 1, open: 1 };
    let tail = TailId { boot: BootId(Uuid::from_u128(1)), count: 0 };
    let options = StoreOptions { wal_retain_bytes: 0, ..options() };
    Store::open(storage, identity(0), incarnation, tail, options)
}

/// Power is lost, and one slot is rotten or can't be read: what must be there is.
fn without_a_slot(disk: &Memory, end: Lsn, what: &str) {
    for (path, slot_bytes) in [("superblock", SUPERBLOCK_SLOT), ("logstate", STATE_SLOT)] {
        for at in [0, slot_bytes] {
            for rots in [true, false] {
                let context = format!("{what}: {path}, slot at {at}, rots: {rots}");
                let disk = disk.fork();
                disk.lose_unsynced();
                assert!(if rots { disk.flip(path, (at + 40) * 8) } else { disk.spoil(path, at) });
                let storage: Arc<dyn Storage> = Arc::new(disk.clone());
                let opened = open(&storage);
                let (_, opened) = opened.unwrap_or_else(|e| panic!("{context}: {e}"));
                assert_eq!(opened.durable, end, "{context}");
                assert_eq!(opened.state.attach, AttachGeneration(0), "{context}");
            }
        }
    }
}

#[test]
fn a_checkpoint_outlives_either_slot() {
    let (disk, _storage, mut store) = made();
    // Segments are let go now and then, and their files are used again.
    for _ in 0..120 {
        append(&mut store, 1);
        while let Some(plan) = store.plan_checkpoint(0) {
            store.checkpoint_done(plan.run()).expect("file work");
        }
        without_a_slot(&disk, store.durable(), "a step");
    }
    assert!(store.retained() > Lsn(60), "{}", store.retained());
}

/// A cut leaves its intent first. Where the new promise is the one before, it must go from both slots as
/// well: later entries would be cut.
#[test]
fn the_intent_of_a_cut_does_not_outlive_it() {
    let (disk, _storage, mut store) = made();
    append(&mut store, 9);
    // Nothing else was promised between them.
    let kept = store.kept().clone();
    let end = store.durable();
    let put = |store: &mut Store, lsn: Lsn| {
        let kind = EntryKind::Resize { blocks: BLOCKS };
        let header = EntryHeader { epoch: Epoch(1), lsn, kind, origin: None };
        store.append(header, entry_crc(&header, &[]), Bytes::new()).expect("appended");
        while let Some(batch) = store.take_batch() {
            store.batch_done(batch.run()).expect("durable");
        }
    };
    put(&mut store, end.next());
    store.cut(end, &kept).expect("cut");
    without_a_slot(&disk, end, "cut");
    put(&mut store, end.next());
    put(&mut store, end.next().next());
    without_a_slot(&disk, end.next().next(), "written since");
}

/// The log state of what was wiped may be as of a later LSN than all that is there now.
#[test]
fn the_state_of_what_was_wiped_does_not_come_back() {
    let (disk, storage, mut store) = made();
    append(&mut store, 40);
    let session = RecoveryId { epoch: Epoch(4), number: 1 };
    let base = Lsn(9);
    let mark = Incomplete { session, from: Lsn(0), base, target: base };
    let mut kept = store.kept().clone();
    kept.fenced = Epoch(4);
    kept.incomplete = Some(mark);
    kept.table = EpochTable::default();
    store.wipe(&mark, &LogState::new(BLOCKS), &kept).expect("wiped");
    kept.incomplete = None;
    store.finish_rebuild(&kept).expect("rebuilt");
    without_a_slot(&disk, base, "rebuilt");
    drop((store, storage));
}
