//! What the WAL keeps for replicas that are away, and what an opening has to read.

use std::sync::Arc;

use bytes::Bytes;
use sbk_engine::replication::log::{BlockRange, EntryHeader, EntryKind};
use sbk_engine::replication::message::RecoveryId;
use sbk_engine::types::{BootId, Epoch, Incarnation, Lba, LossGeneration, Lsn};
use sbk_store::entry::entry_crc;
use sbk_store::{CreateSpec, LogReadError, Store};
use sbk_wal::{Memory, Storage};
use uuid::Uuid;

use super::content::bytes_of;
use super::driver::{self, identity, options};

fn append(store: &mut Store, count: u64) {
    for _ in 0..count {
        let lsn = store.end().next();
        let payload = bytes_of(&[lsn.0]);
        let kind = EntryKind::Write { lba: Lba(lsn.0 % 100), blocks: 1 };
        let header = EntryHeader { epoch: Epoch(1), lsn, kind, origin: None };
        store.append(header, entry_crc(&header, &payload), payload).expect("appended");
        let batch = store.take_batch().expect("a batch");
        store.batch_done(batch.run()).expect("durable");
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
            let boot = BootId(Uuid::from_u128(1));
            Store::open(&storage, identity(0), incarnation, boot, options()).expect("a store").0
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
