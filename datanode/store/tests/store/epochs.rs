//! A table of epochs that grows faster than what is logged in them.

use std::sync::Arc;

use sbk_engine::replication::log::{EntryHeader, EntryKind, EpochTable};
use sbk_engine::types::{BootId, Epoch, Incarnation, Lba, Lsn, TailId};
use sbk_store::entry::entry_crc;
use sbk_store::{Store, StoreOptions};
use sbk_wal::{Memory, Storage};
use uuid::Uuid;

use super::driver::{self, identity, options};

fn open(storage: &Arc<dyn Storage>) -> Store {
    let incarnation = Incarnation { process: 1, open: 1 };
    let tail = TailId { boot: BootId(Uuid::from_u128(1)), count: 0 };
    // No checkpoint is due for the bytes that this test logs.
    let options = StoreOptions { checkpoint_bytes: 1 << 30, ..options() };
    let opened = Store::open(storage, identity(0), incarnation, tail, options);
    opened.expect("a store").0
}

#[test]
fn a_volume_that_logs_little_goes_through_any_number_of_epochs() {
    let storage: Arc<dyn Storage> = Arc::new(Memory::new(1));
    driver::create(&storage, 0).expect("a replica");
    let mut store = open(&storage);
    let mut kept = store.kept().clone();
    for epoch in (1..=1000).map(Epoch) {
        let lsn = store.end().next();
        kept.fenced = epoch;
        kept.table.record(epoch, lsn);
        kept.table.prune(store.checkpoint());
        store.persist(&kept).expect("there is room for the table");
        let kind = EntryKind::Trim { lba: Lba(0), blocks: 1 };
        let header = EntryHeader { epoch, lsn, kind, origin: None };
        store.append(header, entry_crc(&header, &[]), bytes::Bytes::new()).expect("appended");
        while let Some(batch) = store.take_batch() {
            store.batch_done(batch.run()).expect("durable");
        }
        store.set_committed(lsn);
        if let Some(budget) = store.checkpoint_budget(false)
            && let Some(plan) = store.plan_checkpoint(budget)
        {
            store.checkpoint_done(plan.run()).expect("checkpointed");
        }
    }
    drop(store);
    let store = open(&storage);
    let table = &store.kept().table;
    assert_eq!(table.last().map(|(epoch, _)| epoch), Some(Epoch(1000)));
    // As many as a replica that was away may have in common with this one are kept.
    assert!(table.pairs().len() >= EpochTable::CAPACITY, "{}", table.pairs().len());
}

/// A replica that was away for so long that many epochs went by, and is sent their entries: its log tells
/// of more epochs than a superblock has room for, before a checkpoint can come.
#[test]
fn a_log_of_more_epochs_than_a_superblock_names_is_written_and_opened() {
    let storage: Arc<dyn Storage> = Arc::new(Memory::new(1));
    driver::create(&storage, 0).expect("a replica");
    let mut store = open(&storage);
    let mut kept = store.kept().clone();
    let entry = |epoch: u64| {
        let kind = EntryKind::Trim { lba: Lba(0), blocks: 1 };
        EntryHeader { epoch: Epoch(epoch), lsn: Lsn(epoch), kind, origin: None }
    };
    for header in (1..=1000).map(entry) {
        store.append(header, entry_crc(&header, &[]), bytes::Bytes::new()).expect("appended");
    }
    while let Some(batch) = store.take_batch() {
        store.batch_done(batch.run()).expect("durable");
    }
    // It promises the epoch in force, and what it holds is described by its entries.
    kept.fenced = Epoch(1001);
    (1..=1000).for_each(|n| kept.table.record(Epoch(n), Lsn(n)));
    store.persist(&kept).expect("what has no room is in the log");
    drop(store);

    let mut store = open(&storage);
    assert_eq!(store.kept(), &kept, "nothing is forgotten");
    // One that the log does not tell of is not recorded before there is room for it.
    let mut next = kept.clone();
    next.table.record(Epoch(1001), Lsn(1001));
    store.set_committed(Lsn(1000));
    while let Some(budget) = store.checkpoint_budget(false)
        && let Some(plan) = store.plan_checkpoint(budget)
    {
        store.checkpoint_done(plan.run()).expect("checkpointed");
    }
    assert_eq!(store.checkpoint(), Lsn(1000), "there is a reason for one");
    store.persist(&next).expect("now there is room");
    drop(store);
    let last = open(&storage).kept().table.last();
    assert_eq!(last, Some((Epoch(1001), Lsn(1001))));
}

/// What the log does not tell of must be in the superblock, or nothing is acknowledged.
#[test]
fn an_epoch_that_is_not_in_the_log_is_recorded_or_refused() {
    let storage: Arc<dyn Storage> = Arc::new(Memory::new(1));
    driver::create(&storage, 0).expect("a replica");
    let mut store = open(&storage);
    let mut kept = store.kept().clone();
    for epoch in 1..=EpochTable::MOST as u64 {
        let kind = EntryKind::Trim { lba: Lba(0), blocks: 1 };
        let header = EntryHeader { epoch: Epoch(epoch), lsn: Lsn(epoch), kind, origin: None };
        store.append(header, entry_crc(&header, &[]), bytes::Bytes::new()).expect("appended");
        kept.table.record(Epoch(epoch), Lsn(epoch));
        kept.fenced = Epoch(epoch);
    }
    while let Some(batch) = store.take_batch() {
        store.batch_done(batch.run()).expect("durable");
    }
    store.persist(&kept).expect("just room enough");
    let next = EpochTable::MOST as u64 + 1;
    kept.fenced = Epoch(next);
    kept.table.record(Epoch(next), Lsn(next));
    let error = store.persist(&kept).expect_err("none for one more");
    assert!(error.to_string().contains("241 epochs"), "{error}");
}
