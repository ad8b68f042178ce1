//! Shows that the tests bite: every known bug that is put back is found, by a fixed set of seeds of
//! the simulator, by the store's crash tests, or in a small world that is explored to its end.
//!
//! [`sbk_engine::bugs`] has the bugs. `bites`, the program, searches them and keeps what it
//! found in a table of `docs/testing.md`, so that a short run can try each bug at its place alone.

#[cfg(feature = "bugs")]
mod device;
#[cfg(feature = "bugs")]
mod finder;
#[cfg(feature = "bugs")]
mod store;
pub mod table;

#[cfg(feature = "bugs")]
pub use self::finder::{Step, look, plan};

use serde::{Deserialize, Serialize};

use crate::sim::Violation;

/// Where a bug was found, and what found it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Which seed, or which world.
    pub at: String,
    /// After what of it: simulated time, operations of a disk, steps.
    pub after: String,
    /// What was found to be wrong.
    pub violation: Violation,
}

/// Where to look: a family of the simulator, or another finder, and a seed or a world of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The family's or the finder's name.
    pub family: String,
    /// The seed, or the world.
    pub at: String,
}

impl Place {
    /// The seed; 0 for a world.
    pub fn seed(&self) -> u64 {
        self.at.parse().unwrap_or(0)
    }
}

/// The families that are searched, in this order, and the ends of the rounds: each family's seeds
/// up to an end come before any family's seeds above it.
pub const FAMILIES: &[&str] = &[
    "everything",
    "coups",
    "plots",
    "echoes",
    "partitions",
    "crashes",
    "disks",
    "best-effort",
    "disasters",
    "quorum",
    "elections",
    "eights",
    "ambushes",
    "handovers",
    "sizes",
    "flips",
    "rotten",
    "deltas",
    "attachments",
    "written",
    "blackouts",
    "recoveries",
    "moves",
    "replacements",
    "unsynced",
    "in-place",
    "hangs",
    "space",
    "ages",
    "failed-disks",
    "proving",
];
/// See [`FAMILIES`].
pub const ROUNDS: &[u64] = &[10, 50, 200, 600, 1500, 3000, 6000];
