//! Digests while what they are of goes away.

use std::sync::Arc;

use sbk_engine::replication::log::{EntryHeader, EntryKind, EpochTable, LogState};
use sbk_engine::replication::message::{Incomplete, RecoveryId};
use sbk_engine::types::{Epoch, Lba, Lsn, REGION_BLOCKS};
use sbk_store::entry::entry_crc;
use sbk_store::{DigestPlan, Store};
use sbk_wal::{Memory, Storage};

use super::content::{BLOCKS, bytes_of};
use super::driver;

/// A store with a committed block in each of the first two regions' extents.
fn store_on(storage: &Arc<dyn Storage>) -> Store {
    driver::create(storage, 0).expect("a replica");
    let mut store = driver::open(storage, 0).expect("a store").0;
    for region in 0..2 {
        let payload = bytes_of(&[7]);
        let kind = EntryKind::Write { lba: Lba(region * REGION_BLOCKS), blocks: 1 };
        let lsn = store.end().next();
        let header = EntryHeader { epoch: Epoch(1), lsn, kind, origin: None };
        store.append(header, entry_crc(&header, &payload), payload).expect("appended");
        while let Some(batch) = store.take_batch() {
            store.batch_done(batch.run()).expect("durable");
        }
        store.set_committed(lsn);
        let plan = store.plan_checkpoint(u64::MAX).expect("a checkpoint");
        store.checkpoint_done(plan.run()).expect("checkpointed");
    }
    store
}

fn begun(store: &Store) -> DigestPlan {
    let mut plan = store.plan_digest(0, 0);
    let first = plan.next_region().expect("there are two").expect("is read");
    assert!(first.expect("nothing moved").damaged.is_empty());
    plan
}

fn ends(mut plan: DigestPlan) {
    let second = plan.next_region().expect("there are two").expect("is read");
    assert_eq!(second, None, "a digest of what is not there any more");
}

#[test]
fn a_digest_that_a_wipe_overtakes_is_none() {
    let storage: Arc<dyn Storage> = Arc::new(Memory::new(1));
    let mut store = store_on(&storage);
    let plan = begun(&store);
    let session = RecoveryId { epoch: Epoch(4), number: 1 };
    let mark = Incomplete { session, from: Lsn(0), base: Lsn(9), target: Lsn(9) };
    let mut kept = store.kept().clone();
    kept.fenced = Epoch(4);
    kept.incomplete = Some(mark);
    kept.table = EpochTable::default();
    store.wipe(&mark, &LogState::new(BLOCKS), &kept).expect("wiped");
    ends(plan);
}

#[test]
fn a_digest_of_a_store_that_has_ended_is_none() {
    let storage: Arc<dyn Storage> = Arc::new(Memory::new(1));
    let store = store_on(&storage);
    let plan = begun(&store);
    drop(store);
    ends(plan);
    let store = driver::open(&storage, 0).expect("a store").0;
    let plan = begun(&store);
    store.close_clean().expect("closes");
    ends(plan);
}
