//! The machine stops at every I/O of a workload: whatever was promised before is there after.

use std::sync::Arc;

use sbk_wal::{Memory, Storage};

use super::content::Random;
use super::driver::{self, Driver};
use super::events::Event;
use super::model::Model;

/// What becomes of the writes that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Crash {
    /// Any part of them is lost, torn or reordered.
    PowerLoss,
    /// The page cache keeps them.
    Kill,
}

fn storage(disk: &Memory) -> Arc<dyn Storage> {
    Arc::new(disk.clone())
}

/// Makes a replica and works on it. Returns whether nothing failed.
fn work(disk: &Memory, seed: u64, steps: u64, model: &mut Model) -> bool {
    if driver::create(&storage(disk), 0).is_err() {
        return false;
    }
    model.hear(Event::Created { n: 0 });
    go_on(disk, seed, 0, steps, model)
}

/// Opens the replica and works on it.
fn go_on(disk: &Memory, seed: u64, run: u64, steps: u64, model: &mut Model) -> bool {
    let Ok(open) = driver::open(&storage(disk), 0) else { return false };
    let mut hear = |event: Event| model.hear(event);
    let mut driver = Driver::new(seed, run, open, false, &mut hear);
    driver.run(steps).and_then(|()| driver.close()).is_ok()
}

fn stop(disk: &Memory, crash: Crash) {
    match crash {
        Crash::PowerLoss => disk.power_loss(),
        Crash::Kill => disk.process_killed(),
    }
}

/// Checks what is left, also after crashes while it is being opened, and that work goes on.
fn check(disk: &Memory, seed: u64, at: u64, crash: Crash, mut model: Model) -> Result<(), String> {
    if !model.created {
        driver::create(&storage(disk), 0).map_err(|e| format!("not made: {e}"))?;
    }
    let mut random = Random(seed ^ at << 20);
    let again = disk.fork();
    let mut model_again = model.clone();
    again.crash_after(random.below(12));
    // Whether the opening got to its end or not, the next one finds the same.
    drop(driver::open(&storage(&again), 0));
    stop(&again, crash);
    model_again
        .check(&storage(&again))
        .map_err(|e| format!("after a crash of the opening: {e}"))?;
    model.check(&storage(disk))?;
    disk.power_loss();
    model.check(&storage(disk)).map_err(|e| format!("after the opening: {e}"))?;
    if !go_on(disk, seed, at + 1, 12, &mut model) {
        return Err("work does not go on".to_owned());
    }
    disk.power_loss();
    model.check(&storage(disk)).map(drop).map_err(|e| format!("after more work: {e}"))
}

/// The seeds to run: `SEEDS=a..b` if the environment says so.
fn seeds(default: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let Ok(wanted) = std::env::var("SEEDS") else { return default };
    let ends = wanted.split_once("..").expect("SEEDS is a range, as in 3..7");
    ends.0.parse().expect("a number")..ends.1.parse().expect("a number")
}

/// The operation to start with: `AT=n`, to run one case again.
fn first() -> u64 {
    std::env::var("AT").map_or(0, |at| at.parse().expect("AT is a number"))
}

fn every_io(crash: Crash, default: std::ops::Range<u64>, steps: u64) {
    for seed in seeds(default) {
        let mut at = first();
        loop {
            let disk = Memory::new(seed << 32 | at);
            disk.crash_after(at);
            let mut model = Model::new(seed, 0);
            let done = work(&disk, seed, steps, &mut model);
            assert!(done || disk.crashed(), "seed {seed}: it failed without a crash");
            stop(&disk, crash);
            if let Err(what) = check(&disk, seed, at, crash, model) {
                panic!(
                    "{crash:?}, crash at operation {at}: {what}\nagain: SEEDS={seed}..{} \
                     AT={at} cargo test -p sbk-store --test store crash",
                    seed + 1
                );
            }
            if done {
                break;
            }
            at += 1;
        }
        println!("{crash:?}, seed {seed}: {at} crashes");
        // Making the replica alone takes more than that.
        assert!(at > 20, "seed {seed}: the workload has operations to crash at");
    }
}

#[test]
fn what_was_durable_survives_a_loss_of_power_at_every_io() {
    every_io(Crash::PowerLoss, 0..2, 50);
}

#[test]
fn what_was_written_survives_a_kill_at_every_io() {
    every_io(Crash::Kill, 8..9, 50);
}
