//! The decisions of a replica, for people and for replay.

use serde::{Deserialize, Serialize};

use crate::recovery;
use crate::types::{Epoch, Millis};

/// One decision: what was seen, what was decided, why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceEvent {
    /// When, on the replica's clock.
    pub at: Millis,
    /// In which epoch.
    pub epoch: Epoch,
    /// What happened, a short stable word (`promoted`, `fenced`, `cut`, `leave-proposed`, ...).
    pub what: String,
    /// The facts and the reason, in words.
    pub why: String,
}

/// What an onlooker sees of the recovery engine inside a primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed {
    /// A tenure began, and with it a recovery engine that knows nothing.
    Began {
        /// In which epoch.
        epoch: Epoch,
        /// With these times and budgets.
        params: recovery::Params,
    },
    /// It was told something.
    Recovery {
        /// When.
        at: Millis,
        /// What.
        event: recovery::Event,
        /// What became of it.
        verdict: recovery::Verdict,
        /// What there was to do.
        commands: Vec<recovery::Command>,
    },
}
