//! The replicas of one volume, their masters and their clients on one thread from one seed: the
//! real engine and the real store over a simulated disk, a network that loses, delays, repeats and reorders, the
//! real state of the masters, and the real forwarder of each frontend.
//!
//! A safety phase with crashes and partitions, then everything heals and must converge. What is
//! true of the whole cluster is checked at every step (`truth`); every read is checked against the
//! history; the committed images must be equal in the end. What is found to be wrong is a panic.

mod agent;
mod ages;
mod attachments;
mod client;
mod content;
mod deletion;
mod disk;
mod drive;
mod eight;
mod event;
mod failed;
mod families;
mod faults;
mod flips;
mod frontends;
mod heights;
mod history;
mod lanes;
mod losses;
mod marks;
mod masters;
mod moves;
mod node;
mod plots;
mod politics;
mod proving;
mod reached;
mod rest;
mod rng;
mod rooms;
mod rotten;
mod scrubs;
mod sizes;
mod story;
mod summary;
mod truth;
mod unsynced;
mod violation;
mod work;
mod world;

pub use families::{FAMILIES, Family, REGRESSIONS, family};
pub use faults::Faults;
pub use heights::Heights;
pub use marks::Counts;
pub use story::{remember, story};
pub use summary::Summary;
pub use violation::Violation;
use world::World;

/// Runs one seed.
///
/// # Panics
/// If something that must always hold did not.
pub fn run(seed: u64, faults: Faults) -> Summary {
    let mut world = World::new(seed, faults);
    world.run_until(20_000);
    world.heal();
    world.run_until_converged(120_000);
    let summary = world.check();
    if !faults.delete {
        return summary;
    }
    world.delete();
    world.run_until_gone(120_000);
    world.finish()
}
