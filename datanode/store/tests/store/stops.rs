//! Work on a store whose machine stops at one of its I/Os, and what must be there after. Shared with
//! `tests/src/bites`, which looks for known bugs so.

use std::ops::Range;

use super::backend::{Backend, Disk};
use super::content::Random;
use super::driver::{self, Driver};
use super::events::Event;
use super::model::Model;

/// What becomes of the writes that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crash {
    /// Any part of them is lost, torn or reordered.
    PowerLoss,
    /// The page cache keeps them.
    Kill,
}

/// Makes a replica and works on it. Returns whether nothing failed.
fn work(disk: &Disk, seed: u64, steps: u64, model: &mut Model) -> bool {
    let Ok(storage) = disk.storage() else { return false };
    if driver::create(&storage, 0).is_err() {
        return false;
    }
    drop(storage);
    model.hear(Event::Created { n: 0 });
    go_on(disk, seed, 0, steps, model)
}

/// Opens the replica and works on it.
fn go_on(disk: &Disk, seed: u64, run: u64, steps: u64, model: &mut Model) -> bool {
    let Ok(storage) = disk.storage() else { return false };
    let Ok(open) = driver::open(&storage, 0) else { return false };
    let mut hear = |event: Event| model.hear(event);
    let mut driver = Driver::new(seed, run, open, false, &mut hear);
    driver.run(steps).and_then(|()| driver.close()).is_ok()
}

fn stop(disk: &Disk, crash: Crash) {
    match crash {
        Crash::PowerLoss => disk.power_loss(),
        Crash::Kill => disk.process_killed(),
    }
}

/// Checks what is left, also after crashes while it is being opened, and that work goes on.
fn check(disk: &Disk, seed: u64, at: u64, crash: Crash, mut model: Model) -> Result<(), String> {
    if !model.created {
        driver::create(&disk.storage()?, 0).map_err(|e| format!("not made: {e}"))?;
    }
    let mut random = Random(seed ^ at << 20);
    let again = disk.fork();
    let mut model_again = model.clone();
    again.crash_after(random.below(12));
    // Whether the opening got to its end or not, the next one finds the same.
    drop(again.storage().map(|storage| driver::open(&storage, 0)));
    stop(&again, crash);
    model_again
        .check(&again.storage()?)
        .map_err(|e| format!("after a crash of the opening: {e}"))?;
    model.check(&disk.storage()?)?;
    disk.power_loss();
    model.check(&disk.storage()?).map_err(|e| format!("after the opening: {e}"))?;
    if !go_on(disk, seed, at + 1, 12, &mut model) {
        return Err("work does not go on".to_owned());
    }
    disk.power_loss();
    model.check(&disk.storage()?).map(drop).map_err(|e| format!("after more work: {e}"))
}

/// Stops at every operation of a workload, from `first` on, for each seed. Returns how many there
/// were, or what was found to be wrong.
pub(crate) fn every_io(
    backend: Backend,
    crash: Crash,
    seeds: Range<u64>,
    first: u64,
    steps: u64,
) -> Result<u64, Found> {
    let mut all = 0;
    for seed in seeds {
        for at in first.. {
            let disk = Disk::new(backend, seed << 32 | at);
            disk.crash_after(at);
            let mut model = Model::new(seed, 0);
            let found = |what: String| Found { seed, at, what };
            let done = work(&disk, seed, steps, &mut model);
            if !done && !disk.crashed() {
                return Err(found("it failed without a crash".to_owned()));
            }
            stop(&disk, crash);
            check(&disk, seed, at, crash, model).map_err(found)?;
            all += 1;
            if done {
                // Making the replica alone takes more than that.
                assert!(at > 20, "seed {seed}: the workload has operations to crash at");
                break;
            }
        }
    }
    Ok(all)
}

/// What was found to be wrong, and where.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) seed: u64,
    /// The operation at which the machine stopped.
    pub(crate) at: u64,
    pub(crate) what: String,
}
