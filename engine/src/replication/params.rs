//! Times and limits of replication.

use serde::{Deserialize, Serialize};

/// Times and limits of one replica's engine. Every replica of a volume must use the same `lease_ms`
/// and `drift_percent`, or one might serve while another still counts on its promise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Params {
    /// L: how long a promise lasts for the primary, from the stamp that asked for it.
    pub lease_ms: u64,
    /// How often the primary asks for promises, and at the latest sends its frontiers.
    pub renew_ms: u64,
    /// How much faster one machine's clock may run than another's, in percent. The one who
    /// promises waits that much longer than the lease.
    pub drift_percent: u64,
    /// T: a member of the in-sync set that was silent for so long is proposed to leave.
    pub suspect_ms: u64,
    /// A question to a replica or to the masters without an answer is asked again after this.
    pub retry_ms: u64,
    /// A recovery session that did not come on for so long is ended as failed and tried again. Long
    /// against the longest pause of a disk that still works.
    pub stall_ms: u64,
    /// A handover whose heir has not got the whole log after so long is given up before it is
    /// proposed: clients wait meanwhile.
    #[serde(default = "drain_ms")]
    pub drain_ms: u64,
    /// Where the answers of a majority of voters don't show whether a write at a log's end that can't be
    /// read was acknowledged: how long a candidate waits for the other voters. `None`: for ever, unless an
    /// operator decides that they are lost, for going on without them would be a loss that nobody counts.
    #[serde(default)]
    pub doubt_ms: Option<u64>,
    /// Most entries on their way to one replica.
    pub feed_window: u64,
    /// Most entries that the primary logs beyond the committed LSN; more requests wait.
    pub max_uncommitted: u64,
    /// Most epochs with entries that may begin above the committed LSN; a primary that has logged
    /// nothing in its epoch logs nothing while there are so many. Half of what a table keeps of the
    /// newest epochs ([`EpochTable::CAPACITY`]), so the other half is of what is committed.
    ///
    /// [`EpochTable::CAPACITY`]: super::log::EpochTable::CAPACITY
    #[serde(default = "uncommitted_epochs")]
    pub max_uncommitted_epochs: u64,
    /// The recovery engine's.
    pub recovery: crate::recovery::Params,
}

fn drain_ms() -> u64 {
    500
}

fn uncommitted_epochs() -> u64 {
    super::log::EpochTable::CAPACITY as u64 / 2
}

impl Default for Params {
    fn default() -> Self {
        Self {
            lease_ms: 1000,
            renew_ms: 200,
            drift_percent: 2,
            suspect_ms: 2000,
            retry_ms: 1000,
            stall_ms: 30_000,
            drain_ms: drain_ms(),
            doubt_ms: None,
            feed_window: 1024,
            max_uncommitted: 4096,
            max_uncommitted_epochs: uncommitted_epochs(),
            recovery: crate::recovery::Params::default(),
        }
    }
}

impl Params {
    /// How long a promise binds the one who made it, from its receipt: the lease plus the drift,
    /// and one millisecond for the rounding of either clock.
    pub fn promise_ms(&self) -> u64 {
        self.lease_ms + self.lease_ms * self.drift_percent / 100 + 1
    }
}
