//! What proves that the log's last entry had been durable, when nothing of it can be read any more.

use std::sync::Arc;

use sbk_engine::types::Lsn;
use sbk_wal::{FRAME_HEADER, Fault, Memory, OpKind, Storage, write_all};

use super::content::{BLOCK, bytes_of};
use super::driver;
use super::retain::{append, spoil};

/// Twelve entries, each alone in its batch, so no frame tells that the last one was durable, nor does the
/// superblock. A step of the checkpoint up to it is broken off behind the table of regions.
fn stepped() -> (Memory, Arc<dyn Storage>) {
    let disk = Memory::new(1);
    let storage: Arc<dyn Storage> = Arc::new(disk.clone());
    driver::create(&storage, 0).expect("a replica");
    let (mut store, _) = driver::open(&storage, 0).expect("a store");
    append(&mut store, 12);
    disk.fail(OpKind::Write, 0, "logstate", Fault::Io);
    let plan = store.plan_checkpoint(u64::MAX).expect("a step");
    store.checkpoint_done(plan.run()).expect_err("broken off");
    drop(store);
    disk.process_killed();
    (disk, storage)
}

#[test]
fn the_table_of_regions_proves_that_an_entry_was_durable() {
    let (disk, storage) = stepped();
    let (_, sound) = driver::open(&storage, 0).expect("a store");
    assert_eq!((sound.durable, sound.committed), (Lsn(12), Lsn(12)));
    assert!(!sound.kept.doubtful);
    drop(disk);

    let (disk, storage) = stepped();
    spoil(&disk, &bytes_of(&[12]));
    let error = driver::open(&storage, 0).expect_err("it was durable").to_string();
    assert!(error.contains(".seg is damaged at byte") && error.contains("durable"), "{error}");

    // Nothing of it is left, and nothing looks as if something had been there.
    let (disk, storage) = stepped();
    let payload = bytes_of(&[12]);
    let paths = disk.paths().into_iter().filter(|path| path.ends_with(".seg"));
    let holds = |path: String| {
        let content = disk.content(&path).expect("it is listed");
        let at = content.windows(BLOCK).position(|bytes| bytes == &payload[..])?;
        Some((path, at - FRAME_HEADER - sbk_store::entry::CANONICAL_HEADER))
    };
    let (path, at) = paths.filter_map(holds).next().expect("the WAL holds it");
    let file = storage.open(&path).expect("it is there");
    write_all(&*file, &[&[0; 5000]], at as u64).expect("written");
    let error = driver::open(&storage, 0).expect_err("it was durable").to_string();
    assert!(error.contains(".seg is damaged at byte") && error.contains("durable"), "{error}");
}
