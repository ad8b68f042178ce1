//! Work on a device whose machine stops at one of its I/Os, or one of whose I/Os fails, and what must be there after.
//! Shared with `tests/src/bites`, which looks for known bugs so.

use std::ops::Range;

use sbk_wal::{Fault, Memory, OpKind};

use super::work::{Model, Outcome, Random, check, disk, open, work};

/// What becomes of the writes that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crash {
    PowerLoss,
    Kill,
}

pub(crate) fn stop(memory: &Memory, crash: Crash) {
    match crash {
        Crash::PowerLoss => memory.power_loss(),
        Crash::Kill => memory.process_killed(),
    }
}

/// Checks what is left, also after a crash of the opening, and that work goes on.
pub(crate) fn check_left(memory: &Memory, model: &Model, salt: u64) -> Result<(), String> {
    let mut random = Random(salt);
    let again = memory.fork();
    again.crash_after(random.below(12));
    drop(open(&again));
    again.power_loss();
    let opened = check(&again, &mut model.clone());
    drop(opened.map_err(|e| format!("after a crash of the opening: {e}"))?);
    let mut model = model.clone();
    drop(check(memory, &mut model)?);
    match work(memory, &mut model, salt, 25) {
        Outcome::Done => {}
        Outcome::Failed(error) => return Err(format!("work does not go on: {error}")),
        Outcome::Wrong(what) => return Err(format!("work goes on: {what}")),
    }
    memory.power_loss();
    check(memory, &mut model).map(drop).map_err(|e| format!("after more work: {e}"))
}

/// Stops at every operation of a workload, for each seed. Returns how many there were, or the seed, the operation and what
/// was found to be wrong.
pub(crate) fn every_io(
    crash: Crash,
    seeds: Range<u64>,
    steps: u64,
) -> Result<u64, (u64, u64, String)> {
    let mut all = 0;
    for seed in seeds {
        for at in 0.. {
            let memory = disk(seed << 32 | at);
            memory.crash_after(at);
            let mut model = Model::new();
            let done = match work(&memory, &mut model, seed + 1, steps) {
                Outcome::Done => true,
                Outcome::Failed(_) if memory.crashed() => false,
                Outcome::Failed(error) => return Err((seed, at, error)),
                Outcome::Wrong(what) => return Err((seed, at, what)),
            };
            stop(&memory, crash);
            check_left(&memory, &model, seed << 20 | at | 1 << 50).map_err(|e| (seed, at, e))?;
            all += 1;
            if done {
                break;
            }
        }
    }
    Ok(all)
}

/// Lets every I/O of random work fail once: what was synced before is there, and work goes on. Returns how many there were,
/// or the seed, the operation and what was found to be wrong.
pub(crate) fn every_fault(
    kind: OpKind,
    fault: Fault,
    seeds: Range<u64>,
    steps: u64,
) -> Result<u64, (u64, u64, String)> {
    let mut all = 0;
    for seed in seeds {
        for at in 0.. {
            let memory = disk(seed << 32 | at);
            drop(open(&memory).expect("set up"));
            memory.fail(kind, at, "", fault);
            let mut model = Model::new();
            let outcome = work(&memory, &mut model, seed + 3, steps);
            if memory.faults() > 0 {
                break;
            }
            if let Outcome::Wrong(what) = outcome {
                return Err((seed, at, what));
            }
            memory.mend();
            // What is in the page cache only is seen by a process that is started now, and nobody knows that it is. Whoever
            // needs it writes it again, as a store does.
            let killed = memory.fork();
            killed.process_killed();
            let opened = check(&killed, &mut model.clone());
            drop(opened.map_err(|e| (seed, at, format!("killed: {e}")))?);
            for memory in [killed, memory] {
                memory.power_loss();
                check_left(&memory, &model, at).map_err(|e| (seed, at, e))?;
            }
            all += 1;
        }
    }
    Ok(all)
}
