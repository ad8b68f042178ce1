//! How long it takes to open a replica, by the log behind its checkpoint and by the volume's size.
//!
//! ```text
//! cargo run --release -p sbk-store --example opening -- DIR
//! ```
//!
//! makes replicas in DIR, which must be on the disk that is meant, writes so much log to each that no
//! checkpoint has moved, and opens them as after `kill -9` and as after an end in order. Beside each stands how
//! long it takes just to read these bytes of the log's files again. The page cache is dropped before each if the kernel lets
//! this process do so, and the table says which it was.

use std::error::Error;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sbk_engine::replication::log::{EntryHeader, EntryKind};
use sbk_engine::types::{
    BLOCK_SIZE, BootId, Epoch, Incarnation, Lba, LossGeneration, REGION_BLOCKS, ReplicaId, TailId,
    VolumeId,
};
use sbk_store::entry::entry_crc;
use sbk_store::{CreateSpec, Identity, Store, StoreOptions};
use sbk_wal::{Files, Storage};
use uuid::Uuid;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
/// The median of so many openings is told.
const ROUNDS: usize = 3;
/// Each so many entries are committed and checkpointed before, in as many regions.
const BEFORE: u64 = 1000;

type Failed = Box<dyn Error>;

fn main() -> Result<(), Failed> {
    let dir = std::env::args().nth(1).ok_or("usage: opening DIR")?;
    let dir = Path::new(&dir);
    println!(
        "| volume | log | blocks of a write | after kill -9 | ended in order | just reading the log | cache |"
    );
    println!("|---:|---:|---:|---:|---:|---:|---|");
    for (volume, log, blocks) in [
        (GIB, 64 * MIB, 1),
        (100 * GIB, 64 * MIB, 1),
        (1024 * GIB, 64 * MIB, 1),
        (100 * GIB, 256 * MIB, 1),
        (100 * GIB, GIB, 1),
        (100 * GIB, GIB, 256),
    ] {
        measure(dir, volume, log, blocks)?;
    }
    Ok(())
}

fn identity() -> Identity {
    let (volume, replica) = (VolumeId(Uuid::new_v4()), ReplicaId(Uuid::new_v4()));
    Identity { volume, replica }
}

fn options() -> StoreOptions {
    // More than a replica may have in service, so that the largest log here is not cut short.
    StoreOptions { wal_max_bytes: 4 * GIB, wal_max_entries: 1 << 20, ..StoreOptions::default() }
}

fn open(storage: &Arc<dyn Storage>, identity: Identity) -> Result<Store, Failed> {
    let tail = TailId { boot: BootId(Uuid::nil()), count: 0 };
    let incarnation = Incarnation { process: 1, open: 1 };
    Ok(Store::open(storage, identity, incarnation, tail, options())?.0)
}

/// Appends writes of `blocks` blocks, spread over the volume, and makes them durable.
fn write(store: &mut Store, count: u64, blocks: u32, volume: u64) -> Result<(), Failed> {
    let all = volume / BLOCK_SIZE;
    let payload = Bytes::from(vec![0x5a; blocks as usize * BLOCK_SIZE as usize]);
    for _ in 0..count {
        let lsn = store.end().next();
        // Neighbours in time are far apart in space.
        let lba = lsn.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (all / u64::from(blocks));
        let kind = EntryKind::Write { lba: Lba(lba * u64::from(blocks)), blocks };
        let header = EntryHeader { epoch: Epoch(1), lsn, kind, origin: None };
        store.append(header, entry_crc(&header, &payload), payload.clone())?;
        if lsn.0.is_multiple_of(256) {
            sync(store)?;
        }
    }
    sync(store)
}

fn sync(store: &mut Store) -> Result<(), Failed> {
    while let Some(batch) = store.take_batch() {
        store.batch_done(batch.run())?;
    }
    Ok(())
}

fn measure(dir: &Path, volume: u64, log: u64, blocks: u32) -> Result<(), Failed> {
    let (mut killed, mut ended, mut read) = (Vec::new(), Vec::new(), Vec::new());
    let mut cache = "dropped";
    for _ in 0..ROUNDS {
        let here = tempfile::tempdir_in(dir)?;
        let storage: Arc<dyn Storage> = Arc::new(Files::new(here.path()));
        let identity = identity();
        let size = volume / BLOCK_SIZE;
        let spec = CreateSpec { identity, blocks: size, loss_generation: LossGeneration(0) };
        Store::create(&storage, &spec, &options())?;
        let mut store = open(&storage, identity)?;
        write(&mut store, BEFORE.min(size / REGION_BLOCKS), blocks, volume)?;
        store.set_committed(store.durable());
        while let Some(plan) = store.plan_checkpoint(u64::MAX) {
            store.checkpoint_done(plan.run())?;
        }
        let wal = here.path().join("wal");
        let before = segments(&wal)?;
        write(&mut store, log / (u64::from(blocks) * BLOCK_SIZE), blocks, volume)?;
        store.record_durable()?;
        drop(store);
        if !drop_cache() {
            cache = "warm";
        }
        read.push(time(|| read_all(&wal, &before))?);
        drop_cache();
        let mut store = None;
        killed.push(time(|| {
            store = Some(open(&storage, identity)?);
            Ok(())
        })?);
        store.ok_or("it was opened")?.close_clean()?;
        drop_cache();
        let mut store = None;
        ended.push(time(|| {
            store = Some(open(&storage, identity)?);
            Ok(())
        })?);
    }
    println!(
        "| {} GiB | {} MiB | {blocks} | {} | {} | {} | {cache} |",
        volume / GIB,
        log / MIB,
        shown(killed),
        shown(ended),
        shown(read)
    );
    Ok(())
}

fn time(work: impl FnOnce() -> Result<(), Failed>) -> Result<Duration, Failed> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed())
}

fn shown(mut times: Vec<Duration>) -> String {
    times.sort();
    format!("{} ms", times[times.len() / 2].as_millis())
}

fn drop_cache() -> bool {
    rustix::fs::sync();
    std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

fn segments(wal: &Path) -> Result<Vec<PathBuf>, Failed> {
    let files = std::fs::read_dir(wal)?.map(|entry| Ok(entry?.path()));
    let files: Result<Vec<PathBuf>, Failed> = files.collect();
    Ok(files?.into_iter().filter(|path| path.extension().is_some_and(|e| e == "seg")).collect())
}

/// Reads the segments that were begun since there were only those `before`.
fn read_all(wal: &Path, before: &[PathBuf]) -> Result<(), Failed> {
    let mut buffer = vec![0; MIB as usize];
    for path in segments(wal)?.iter().filter(|path| !before.contains(path)) {
        let mut file = File::open(path)?;
        while file.read(&mut buffer)? > 0 {}
    }
    Ok(())
}
