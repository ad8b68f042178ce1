//! What writes cost, by reference and without, on a real disk. Asserts nothing: figures of one machine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sbk_store::{Store, StoreOptions};
use sbk_wal::{Files, Storage};

use super::content::{BLOCK, Random};
use super::counting::Counting;
use super::large::{append, checkpoint, log_all, open_with};

/// Most bytes and writes of a run.
const RUN: u64 = 64 << 20;
const WRITES: u64 = 600;
/// Log that is kept for others. What is written again within it goes through the log in any case.
const RETAIN: u64 = 64 << 20;
/// Blocks of the volume, which is written from one end to the other, again and again.
const BLOCKS: u64 = 256 << 8;

/// What a run took.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// Bytes written by the store, and by the process as the kernel counts them, for each of payload.
    written: f64,
    counted: f64,
    syncs: f64,
    mib_a_second: f64,
    median: Duration,
}

/// Bytes that this process had written to disks.
fn write_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    line.and_then(|bytes| bytes.parse().ok()).unwrap_or(0)
}

fn payload(random: &mut Random, size: usize) -> Bytes {
    let word = random.next() | 1;
    Bytes::from(word.to_le_bytes().repeat(size / 8))
}

/// Writes `RUN` bytes, `depth` writes at a time, checkpoints as they come due.
fn run(store: &mut Store, counting: &Counting, size: usize, depth: usize, at: &mut u64) -> Cost {
    let mut random = Random(*at);
    let each = (size / BLOCK) as u64;
    let count = (RUN / size as u64).min(WRITES);
    let mut times = Vec::new();
    counting.take();
    let (before, since) = (write_bytes(), Instant::now());
    for _ in 0..count.div_ceil(depth as u64) {
        for _ in 0..depth {
            let payload = payload(&mut random, size);
            append(store, *at, &payload);
            *at = (*at + each) % BLOCKS;
        }
        let asked = Instant::now();
        log_all(store);
        times.push(asked.elapsed());
        store.set_committed(store.durable());
        while let Some(budget) = store.checkpoint_budget(false)
            && let Some(plan) = store.plan_checkpoint(budget)
        {
            store.checkpoint_done(plan.run()).expect("checkpointed");
        }
    }
    checkpoint(store);
    let took = since.elapsed();
    let payload = (count.div_ceil(depth as u64) * depth as u64 * size as u64) as f64;
    let all = counting.take();
    times.sort();
    Cost {
        written: all.values().map(|written| written.bytes).sum::<u64>() as f64 / payload,
        counted: (write_bytes() - before) as f64 / payload,
        syncs: all.values().map(|written| written.syncs).sum::<u64>() as f64
            / (payload / size as f64),
        mib_a_second: payload / (1 << 20) as f64 / took.as_secs_f64(),
        median: times[times.len() / 2],
    }
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

/// A table for `docs/performance.md`. `DIR` names a directory on the disk that is to be measured.
#[test]
#[ignore = "it takes minutes, and its figures are for people"]
fn what_a_write_costs() {
    let base = std::env::var("DIR").map_or_else(|_| std::env::temp_dir(), Into::into);
    let rounds = std::env::var("ROUNDS").map_or(3, |n| n.parse().expect("ROUNDS is a number"));
    println!(
        "| Write | at a time | way | bytes written | as the kernel counts | syncs a write | MiB/s | median |"
    );
    println!("|---|---:|---|---:|---:|---:|---:|---:|");
    let sizes: Vec<usize> = std::env::var("KIB").map_or(vec![4, 64, 256, 1024], |sizes| {
        sizes.split(',').map(|kib| kib.parse().expect("KIB are numbers")).collect()
    });
    for (size, depth) in sizes.into_iter().flat_map(|kib| [(kib, 1), (kib, 8)]) {
        let mut costs = [Vec::new(), Vec::new()];
        let dirs = [0, 1].map(|_| tempfile::tempdir_in(&base).expect("a directory"));
        let mut stores = [0, 1].map(|way| {
            let files: Arc<dyn Storage> = Arc::new(Files::new(dirs[way].path()));
            let counting = Counting::new(files);
            let storage: Arc<dyn Storage> = Arc::new(counting.clone());
            let large_write_bytes = [u64::MAX, 1][way];
            let large_batch_bytes = 0;
            let options = StoreOptions {
                large_write_bytes,
                large_batch_bytes,
                ..StoreOptions::retaining(RETAIN)
            };
            let mut store = open_with(&storage, BLOCKS, &options);
            // Everything was written before, and as much log as is retained is there.
            for chunk in 0..BLOCKS / 256 {
                append(&mut store, chunk * 256, &payload(&mut Random(chunk), 1 << 20));
                if chunk % 8 == 7 {
                    log_all(&mut store);
                    checkpoint(&mut store);
                }
            }
            (store, counting, 0)
        });
        for _ in 0..rounds {
            for (way, (store, counting, at)) in stores.iter_mut().enumerate() {
                costs[way].push(run(store, counting, size << 10, depth, at));
            }
        }
        for (way, costs) in costs.iter().enumerate() {
            let of = |what: &dyn Fn(&Cost) -> f64| median(costs.iter().map(what).collect());
            println!(
                "| {size} KiB | {depth} | {} | {:.2} | {:.2} | {:.2} | {:.0} | {:.0} µs |",
                ["through the log", "by reference"][way],
                of(&|cost| cost.written),
                of(&|cost| cost.counted),
                of(&|cost| cost.syncs),
                of(&|cost| cost.mib_a_second),
                of(&|cost| cost.median.as_secs_f64() * 1e6),
            );
        }
    }
}
