//! What became of an event.

use serde::{Deserialize, Serialize};

/// What became of an event. Nothing is dropped without a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It was taken into account.
    Applied,
    /// It changed nothing, and why.
    Ignored(IgnoredReason),
}

/// Why an event changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IgnoredReason {
    /// Observed before this primary's tenure, or an assignment older than the one in force.
    StaleEpoch,
    /// Observed in an epoch that no assignment has named.
    UnknownEpoch,
    /// Not a replica of the volume.
    UnknownReplica,
    /// About an endpoint that is not the replica's.
    StaleEndpoint,
    /// The replica was met in a newer run since.
    StaleTransport,
    /// About a session that is not the one running with this replica: it is over, was called off,
    /// or is another replica's.
    OldSession,
    /// About a session that was never given out.
    UnknownSession,
    /// An answer to a question that is not open.
    NotExpected,
    /// Says nothing new.
    Duplicate,
    /// Contradicts itself, or the same epoch's earlier assignment.
    Malformed,
}
