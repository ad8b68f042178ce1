//! What a replica's store promises, tried by killing it, by faulting its disk and by rotting its
//! files.
//!
//! A [`driver::Driver`] does random work on a store and tells what it did; a [`model::Model`] takes
//! that and knows what must be there after a crash. Everything follows from a seed.

use std::sync::{Mutex, MutexGuard, PoisonError};

mod backend;
mod committed;
mod content;
mod costs;
mod counting;
mod digest;
mod doubts;
mod driver;
mod epochs;
mod events;
mod model;
mod past;
mod promises;
mod proofs;
mod retain;
mod rotten;
mod slots;
mod stops;

mod beside;
mod blank;
mod crash;
mod devices;
mod faults;
mod flips;
mod format;
mod kill;
mod large;
mod making;
mod rollback;

/// Held while a process is started, and while a data directory is open. Otherwise the new process
/// has a copy of the directory's lock until it executes its program, and whoever opens the
/// directory next is told that it is in use.
fn no_fork_meanwhile() -> MutexGuard<'static, ()> {
    static FORK: Mutex<()> = Mutex::new(());
    FORK.lock().unwrap_or_else(PoisonError::into_inner)
}
