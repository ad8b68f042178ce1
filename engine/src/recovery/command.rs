//! What the recovery engine asks its executor to do.

use serde::{Deserialize, Serialize};

use super::event::TransportEpoch;
use crate::replication::message::RecoveryId;
use crate::types::{Epoch, Lsn, ReplicaId};

/// Something to do. Idempotent: the same command may come again until a fact shows it done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Find out whether the replica answers, in which run, and what it holds.
    Probe { epoch: Epoch, replica: ReplicaId, endpoint: String },
    /// Send WAL entries from `from` (R + 1) up to the fixed `target`.
    StartCatchUp {
        epoch: Epoch,
        replica: ReplicaId,
        transport: TransportEpoch,
        session: RecoveryId,
        from: Lsn,
        target: Lsn,
    },
    /// Send the regions that were written since `from`, of which the replica holds the image, or did
    /// before a session like this one broke; then WAL up to the fixed `target` at least.
    StartDelta {
        epoch: Epoch,
        replica: ReplicaId,
        transport: TransportEpoch,
        session: RecoveryId,
        from: Lsn,
        target: Lsn,
    },
    /// Wipe the replica and send the whole image, then WAL up to the fixed `target` at least.
    StartRebuild {
        epoch: Epoch,
        replica: ReplicaId,
        transport: TransportEpoch,
        session: RecoveryId,
        target: Lsn,
    },
    /// Stop the session; it is not to have any effect any more.
    InvalidateSession { epoch: Epoch, replica: ReplicaId, session: RecoveryId },
    /// Have the replica acknowledge the epoch.
    FenceAtEpoch { epoch: Epoch, replica: ReplicaId, transport: TransportEpoch },
    /// The replica holds everything and takes part.
    PublishHealthy { epoch: Epoch, replica: ReplicaId },
    /// The replica does not take part, and why.
    PublishDegraded { epoch: Epoch, replica: ReplicaId, reason: String },
}
