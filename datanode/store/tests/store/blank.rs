//! A rebuild that was broken off leaves nothing that counts.

use std::sync::Arc;

use bytes::Bytes;
use sbk_engine::replication::log::{EntryHeader, EntryKind, EpochTable, LogState};
use sbk_engine::replication::message::{Incomplete, RecoveryId};
use sbk_engine::types::{AttachGeneration, Epoch, Lsn};
use sbk_store::entry::entry_crc;
use sbk_wal::{Memory, Storage};

use super::content::BLOCKS;
use super::driver;

/// The WAL lane of the rebuild brought entries, and their epoch was recorded with the INCOMPLETE
/// mark: none of that log is there after the opening, so nothing may describe it.
#[test]
fn a_broken_rebuild_opens_with_no_epoch_and_no_log() {
    let storage: Arc<dyn Storage> = Arc::new(Memory::new(1));
    driver::create(&storage, 0).expect("a replica");
    let (mut store, opened) = driver::open(&storage, 0).expect("a store");
    let session = RecoveryId { epoch: Epoch(4), number: 1 };
    let mark = Incomplete { session, from: Lsn(0), base: Lsn(9), target: Lsn(9) };
    let mut kept = opened.kept;
    kept.fenced = Epoch(4);
    kept.incomplete = Some(mark);
    kept.table = EpochTable::default();
    store.wipe(&mark, &LogState::new(BLOCKS), &kept).expect("wiped");
    let kind = EntryKind::Attach { generation: AttachGeneration(1), exclusive: false };
    let header = EntryHeader { epoch: Epoch(4), lsn: Lsn(10), kind, origin: None };
    store.append(header, entry_crc(&header, &[]), Bytes::new()).expect("appended");
    while let Some(batch) = store.take_batch() {
        store.batch_done(batch.run()).expect("durable");
    }
    store.record_durable().expect("recorded");
    drop(store);
    let (_, opened) = driver::open(&storage, 0).expect("a store");
    assert_eq!(opened.kept.incomplete, Some(mark));
    assert_eq!(opened.kept.fenced, Epoch(4), "what was promised stays");
    assert_eq!(opened.durable, Lsn(0));
    assert_eq!(opened.kept.table, EpochTable::default());
}
