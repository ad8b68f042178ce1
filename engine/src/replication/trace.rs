//! The decisions of a replica, for people and for replay.

use serde::{Deserialize, Serialize};

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
