//! A table of epochs that grows faster than what is logged in them.

use std::sync::Arc;

use sbk_engine::replication::log::{EntryHeader, EntryKind, EpochTable};
use sbk_engine::types::{BootId, Epoch, Incarnation, Lba, TailId};
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
        let batch = store.take_batch().expect("a batch");
        store.batch_done(batch.run()).expect("durable");
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
