//! Shows that the tests bite: every known bug that is put back is found by a fixed set of seeds.
//!
//! [`sbk_engine::bugs`] has the bugs. `bites`, the program, searches the seeds and keeps what it
//! found in a table of `docs/testing.md`, so that a short run can try each bug at its seed alone.

pub mod table;

use serde::{Deserialize, Serialize};

use crate::sim::Violation;

/// Where a bug was found, and what found it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Which seed.
    pub seed: u64,
    /// What was found to be wrong.
    pub violation: Violation,
}

/// A family of the simulator and a seed of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The family's name.
    pub family: String,
    /// The seed.
    pub seed: u64,
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
    "handovers",
];
/// See [`FAMILIES`].
pub const ROUNDS: &[u64] = &[10, 50, 200, 600, 1500, 3000];
