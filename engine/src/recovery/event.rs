//! Facts that reach the recovery engine.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::replication::message::RecoveryId;
use crate::types::{Epoch, Lsn, ReplicaId};

/// Why a session ended without its work done. The kind decides what comes next, and no transport
/// error ever means "rebuild".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The WAL no longer holds an entry that the session needs.
    WalRecycled,
    /// A stream broke or a peer did not answer.
    Transport,
    /// A disk refused on either side.
    StoreIo,
    /// The receiver did not start in time.
    StartTimeout,
    /// The session was called off by the engine.
    Invalidated,
    /// The session held its WAL pin for too long and lost it to the bound on retained WAL.
    PinLost,
    /// The receiver answered, but the session did not come on.
    Stalled,
    /// What the receiver was sent before may be newer than what this primary knows to be committed,
    /// and nothing more is committed without it: a delta would leave it with blocks that it does not
    /// know to be committed.
    Unsettled,
    /// The receiver's disk is short of room.
    NoSpace,
}

/// Numbers the runs of a replica that the primary got to know: raised whenever a probe answers
/// from another incarnation than the last one did.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct TransportEpoch(pub u64);

/// A fact. Each carries the epoch in which it was observed, and those of a session its id: stale
/// ones are told apart in one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The replicas (other than the primary's own) that the volume has, and where they are.
    Assignment {
        /// The new configuration's epoch.
        epoch: Epoch,
        /// The oldest epoch of this primary's uninterrupted tenure: what was decided or observed
        /// in `since..=epoch` stays valid. Equal to `epoch` for a fresh promotion.
        since: Epoch,
        /// Replica to its endpoint (`host:port`).
        replicas: BTreeMap<ReplicaId, String>,
        /// Those of them that are listed as in sync. Such a replica is never rebuilt because its
        /// catch-ups failed: commits wait for it, so the WAL holds what it misses, and its copy
        /// may be one that `min_in_sync` does not let go.
        #[serde(default)]
        in_sync: BTreeSet<ReplicaId>,
    },
    /// A replica moved to another endpoint.
    Endpoint { epoch: Epoch, replica: ReplicaId, endpoint: String },
    /// A replica is no longer part of the volume.
    Removal { epoch: Epoch, replica: ReplicaId },
    /// The replica answered at this endpoint, in this run.
    ProbeSucceeded { epoch: Epoch, replica: ReplicaId, endpoint: String, transport: TransportEpoch },
    /// The replica did not answer.
    ProbeFailed { epoch: Epoch, replica: ReplicaId, endpoint: String },
    /// What a reconciled replica holds (R), what the primary's WAL still has (S) and its head (H).
    RecoveryFacts {
        epoch: Epoch,
        replica: ReplicaId,
        transport: TransportEpoch,
        /// The replica's durable end; `None` if it holds no consistent image (INCOMPLETE, or its
        /// log can't be matched): only a base lane helps.
        r: Option<Lsn>,
        /// Without R: of which LSN it held the image when the first of a chain of broken deltas
        /// began. `None`: it was none, or another loss has made that LSN mean nothing.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<Lsn>,
        /// The oldest LSN that the primary's WAL retains; `h + 1` if it retains none.
        s: Lsn,
        /// The primary's head.
        h: Lsn,
    },
    /// The replica durably holds everything up to `lsn`.
    DurableAck { epoch: Epoch, replica: ReplicaId, lsn: Lsn },
    /// The executor can't begin yet: the replica is listed as in sync, or may be, and has to leave
    /// first. The time to start runs from the preparation that follows.
    SessionDeferred { epoch: Epoch, replica: ReplicaId, session: RecoveryId },
    /// The executor has what the session needs (its WAL pin).
    SessionPrepared { epoch: Epoch, replica: ReplicaId, session: RecoveryId },
    /// The receiver takes part.
    SessionStarted { epoch: Epoch, replica: ReplicaId, session: RecoveryId },
    /// The receiver holds everything up to `achieved`. Never means that the session is over.
    SessionProgress { epoch: Epoch, replica: ReplicaId, session: RecoveryId, achieved: Lsn },
    /// The receiver confirmed the end of the session.
    SessionClosedCompleted { epoch: Epoch, replica: ReplicaId, session: RecoveryId, achieved: Lsn },
    /// The session ended without its work done.
    SessionClosedFailed { epoch: Epoch, replica: ReplicaId, session: RecoveryId, kind: FailureKind },
    /// The executor stopped a session that the engine had called off.
    SessionInvalidated { epoch: Epoch, replica: ReplicaId, session: RecoveryId },
    /// The replica acknowledged the fence.
    FenceCompleted { epoch: Epoch, replica: ReplicaId, transport: TransportEpoch, fenced: Epoch },
    /// The fence did not reach the replica.
    FenceFailed { epoch: Epoch, replica: ReplicaId, transport: TransportEpoch, fenced: Epoch },
    /// Time passed.
    Tick,
}
