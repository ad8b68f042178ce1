//! How fast a store is on a raw block device beside files on a file system: for `docs/performance.md`, where it stands how
//! this is run. No test: it asserts no time.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sbk_device::{Device, FormatOptions, open_exclusive};
use sbk_engine::replication::log::{EntryHeader, EntryKind};
use sbk_engine::types::{Epoch, Lba, LossGeneration};
use sbk_store::entry::entry_crc;
use sbk_store::{CreateSpec, Pressure, Store, StoreOptions};
use sbk_wal::{Files, Storage};
use uuid::Uuid;

use super::content::Random;
use super::driver;

const ROUNDS: usize = 30;
const ROUND: Duration = Duration::from_millis(700);
const BLOCKS: u64 = (512 << 20) / 4096;

struct Bench {
    name: &'static str,
    store: Store,
    random: Random,
    checkpoint: Option<std::thread::JoinHandle<sbk_store::CheckpointDone>>,
}

impl Bench {
    fn new(name: &'static str, storage: &Arc<dyn Storage>) -> Self {
        let identity = driver::identity(0);
        let spec = CreateSpec { identity, blocks: BLOCKS, loss_generation: LossGeneration(1) };
        let options = StoreOptions::default();
        Store::create(storage, &spec, &options).expect("a replica");
        let incarnation = sbk_engine::types::Incarnation { process: 1, open: 1 };
        let boot = sbk_engine::types::BootId(Uuid::from_u128(1));
        let tail = sbk_engine::types::TailId { boot, count: 0 };
        let opened = Store::open(storage, identity, incarnation, tail, options);
        let mut store = opened.expect("a store").0;
        let mut kept = store.kept().clone();
        kept.fenced = Epoch(1);
        store.persist(&kept).expect("promised");
        Self { name, store, random: Random(1), checkpoint: None }
    }

    /// One write, durable; committed at once, with checkpoints beside as they are due.
    fn write(&mut self, blocks: u64) {
        let at = self.random.below(BLOCKS / blocks) * blocks;
        let kind = EntryKind::Write { lba: Lba(at), blocks: blocks as u32 };
        let payload = Bytes::from(vec![at as u8 | 1; blocks as usize * 4096]);
        let lsn = self.store.end().next();
        let header = EntryHeader { epoch: Epoch(1), lsn, kind, origin: None };
        let crc = entry_crc(&header, &payload);
        self.store.append(header, crc, payload).expect("appended");
        let batch = self.store.take_batch().expect("a batch");
        self.store.batch_done(batch.run()).expect("durable");
        self.store.set_committed(lsn);
        let full = self.store.wal_pressure() == Pressure::Full;
        if full || self.checkpoint.as_ref().is_some_and(|thread| thread.is_finished()) {
            self.settle();
        }
        if self.checkpoint.is_none()
            && let Some(budget) = self.store.checkpoint_budget(full)
            && let Some(plan) = self.store.plan_checkpoint(budget)
        {
            self.checkpoint = Some(std::thread::spawn(move || plan.run()));
        }
    }

    fn settle(&mut self) {
        if let Some(thread) = self.checkpoint.take() {
            self.store.checkpoint_done(thread.join().expect("no panic")).expect("checkpointed");
        }
    }

    /// Writes in a second.
    fn writes(&mut self, blocks: u64, time: Duration) -> f64 {
        let (started, mut count) = (Instant::now(), 0);
        while started.elapsed() < time {
            self.write(blocks);
            count += 1;
        }
        let rate = f64::from(count) / started.elapsed().as_secs_f64();
        self.settle();
        rate
    }
}

/// `BESIDE_DIR` is on a file system, `BESIDE_DEVICE` a block device with nothing on it.
#[test]
#[ignore = "a measurement"]
fn a_device_beside_files() {
    let wanted = |name| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let (dir, device) = (wanted("BESIDE_DIR"), PathBuf::from(wanted("BESIDE_DEVICE")));
    let bottom = open_exclusive(&device).expect("a block device");
    let node = Uuid::from_u128(7);
    let (id, options) = (Uuid::new_v4(), FormatOptions::default());
    let device = Device::make(bottom, &device, id, node, options).expect("a device");
    let device: Arc<dyn Storage> = Arc::new(device.directory("").expect("its root"));
    let files: Arc<dyn Storage> = Arc::new(Files::new(dir));
    let mut benches = [Bench::new("files", &files), Bench::new("device", &device)];
    for blocks in [1, 256] {
        let mut writes = [Vec::new(), Vec::new()];
        // Short ones, and many: what else the machine does is then much the same for both of a pair.
        for _ in 0..ROUNDS {
            for (n, bench) in benches.iter_mut().enumerate() {
                writes[n].push(bench.writes(blocks, ROUND));
            }
        }
        let mut ratios: Vec<_> =
            writes[0].iter().zip(&writes[1]).map(|(files, device)| device / files).collect();
        ratios.sort_by(f64::total_cmp);
        let quarters = [1, 2, 3].map(|quarter| ratios[quarter * ROUNDS / 4]);
        writes.iter_mut().for_each(|rates| rates.sort_by(f64::total_cmp));
        let [files, device] = [writes[0][ROUNDS / 2], writes[1][ROUNDS / 2]];
        let names = benches.each_ref().map(|bench| bench.name);
        println!(
            "{} KiB writes: {} {files:.0}/s, {} {device:.0}/s; ratios of pairs, quartiles: {quarters:.2?}",
            blocks * 4,
            names[0],
            names[1],
        );
    }
}
