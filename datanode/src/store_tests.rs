//! When a replica has another tail than before: after everything that may have lost what was written
//! and not synced, and after nothing else.

use std::path::Path;

use sbk_engine::replication::log::{EntryHeader, EntryKind};
use sbk_engine::types::{Epoch, TailId};
use sbk_store::entry::entry_crc;
use sbk_wal::{Fault, Memory, OpKind};
use uuid::Uuid;

use super::*;

const IDENTITY: Identity =
    Identity { volume: VolumeId(Uuid::from_u128(1)), replica: ReplicaId(Uuid::from_u128(2)) };

struct Scene {
    memory: Memory,
    runtime: tempfile::TempDir,
}

impl Scene {
    fn set() -> Self {
        let memory = Memory::new(1);
        let storage: Arc<dyn Storage> = Arc::new(memory.clone());
        let spec =
            CreateSpec { identity: IDENTITY, blocks: 64, loss_generation: LossGeneration(0) };
        Store::create(&storage, &spec, &options()).expect("creates");
        Self { memory, runtime: tempfile::tempdir().expect("a directory") }
    }

    /// The replica's files in a process of its own.
    fn process(&self, number: u64) -> ReplicaFiles {
        let boot = BootId(Uuid::from_u128(3));
        let tails = Arc::new(Tails::new(self.runtime.path().to_owned(), boot));
        let storage = Arc::new(self.memory.clone());
        ReplicaFiles::new(storage, IDENTITY, number, tails, options())
    }

    /// The tail that the next process finds, and how many entries.
    fn next_process(&self) -> (TailId, Lsn) {
        self.memory.process_killed();
        let (_, opened) = self.process(2).open().expect("opens");
        (opened.tail, opened.durable)
    }
}

fn options() -> StoreOptions {
    StoreOptions { wal_segment_bytes: 1 << 16, ..StoreOptions::default() }
}

/// The next entry, written and not synced.
fn write(store: &mut KeptStore) {
    let lsn = store.written().next();
    let header = EntryHeader {
        epoch: Epoch(1),
        lsn,
        kind: EntryKind::Write { lba: Lba(0), blocks: 1 },
        origin: None,
    };
    let payload = Bytes::from(vec![7; 4096]);
    let crc = entry_crc(&header, &payload);
    store.append(vec![WireEntry { header, crc, payload }]).expect("appended");
    let batch = store.take_batch(false).expect("there is one");
    store.batch_done(batch.run()).expect("written");
    assert_eq!(store.written(), lsn);
}

#[test]
fn a_process_that_is_killed_keeps_its_tail_and_all_it_had_written() {
    let scene = Scene::set();
    let (mut store, opened) = scene.process(1).open().expect("opens");
    write(&mut store);
    drop(store);
    assert_eq!(scene.next_process(), (opened.tail, Lsn(1)));
}

#[test]
fn a_process_that_stops_in_order_keeps_its_tail() {
    let scene = Scene::set();
    let (mut store, opened) = scene.process(1).open().expect("opens");
    write(&mut store);
    store.close().expect("closes");
    assert_eq!(scene.next_process(), (opened.tail, Lsn(1)));
}

#[test]
fn a_sync_that_fails_while_the_store_is_closed_takes_the_tail() {
    let scene = Scene::set();
    let (mut store, opened) = scene.process(1).open().expect("opens");
    write(&mut store);
    scene.memory.fail(OpKind::Sync, 0, "wal", Fault::Io);
    store.close().expect_err("the sync failed");
    assert_ne!(scene.next_process().0, opened.tail);
}

#[test]
fn a_sync_that_fails_within_a_cut_takes_the_tail() {
    let scene = Scene::set();
    let (mut store, opened) = scene.process(1).open().expect("opens");
    write(&mut store);
    write(&mut store);
    scene.memory.fail(OpKind::Sync, 0, "wal", Fault::Io);
    store.cut(Lsn(1), &opened.kept).expect_err("the sync failed");
    drop(store);
    assert_ne!(scene.next_process().0, opened.tail);
}

#[test]
fn a_sync_that_fails_takes_the_tail_before_anybody_hears_of_it() {
    let scene = Scene::set();
    let (mut store, opened) = scene.process(1).open().expect("opens");
    write(&mut store);
    scene.memory.fail(OpKind::Sync, 0, "wal", Fault::Io);
    let _nobody_takes_it = store.take_sync().expect("there is something to sync").run();
    drop(store);
    assert_ne!(scene.next_process().0, opened.tail);
}

#[test]
fn an_opening_that_fails_takes_the_tail() {
    let scene = Scene::set();
    let (mut store, opened) = scene.process(1).open().expect("opens");
    write(&mut store);
    drop(store);
    scene.memory.process_killed();
    // What lies behind the recorded end is copied and synced first.
    scene.memory.fail(OpKind::Sync, 0, "wal", Fault::Io);
    scene.process(2).open().map(drop).expect_err("the sync failed");
    assert_eq!(scene.memory.faults(), 0, "the fault struck");
    scene.memory.process_killed();
    let (_, again) = scene.process(3).open().expect("opens");
    assert_ne!(again.tail, opened.tail);
}

#[test]
fn a_store_that_is_opened_again_has_another_tail() {
    let scene = Scene::set();
    let files = scene.process(1);
    let (_, first) = files.open().expect("opens");
    let (_, second) = files.open().expect("opens");
    assert_ne!(first.tail, second.tail);
    assert!(Path::exists(&scene.runtime.path().join(IDENTITY.replica.to_string())));
}
