//! What a replica's engine was told and what it did, kept so that the run can be taken again.
//!
//! A [`Replica`] is a value, and the same state and input give the same verdict and outputs,
//! always. So a state and the inputs after it are the whole run: [`replay`] takes it again and
//! compares. A [`Ring`] keeps the newest part of a run, [`mod@file`] is how it is written down, and
//! [`tenures`] finds in it what the recovery engine of a primary was told.
//!
//! Payloads are never in it: the engine does not see them.

pub mod file;
mod recovery;
mod replay;
mod ring;

use serde::{Deserialize, Serialize};

pub use recovery::{Tenure, tenures};
pub use replay::{Difference, Found, Replay, replay};
pub use ring::{MAX_BYTES, MAX_STEPS, Ring};

use crate::replication::io::{Input, Output};
use crate::replication::{Replica, Verdict};
use crate::types::Millis;

/// One input and what it gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Counts the inputs since the replica was opened, from 1.
    pub number: u64,
    /// The time that came with it, on the machine's boot clock.
    pub at: Millis,
    /// What the engine was told.
    pub input: Input,
    /// What it made of it; `None` if it ended in this input: an invariant was broken.
    pub outcome: Option<Outcome>,
}

/// What an input gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// What became of it.
    pub verdict: Verdict,
    /// What there was to do, in order.
    pub outputs: Vec<Output>,
}

/// A part of a run: a state, and every input after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// The engine before the first step.
    pub state: Replica,
    /// In order, numbered without a gap.
    pub steps: Vec<Step>,
}
