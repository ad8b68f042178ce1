//! Another replica of the volume, as its primary knows it.

use serde::{Deserialize, Serialize};

use super::message::{Incomplete, RecoveryId};
use crate::recovery::TransportEpoch;
use crate::types::{Epoch, Incarnation, Lsn, Millis, ReplicaId, ReplicaRef};

/// How far the primary has come with a replica's current run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Link {
    /// Nothing is under way.
    Down,
    /// Asked who is there.
    Probing { request: u64, sent: Millis },
    /// Asked for its promise and what it holds.
    Fencing { request: u64, sent: Millis },
    /// Asked to cut its log.
    Cutting { request: u64, sent: Millis, end: Lsn },
    /// Its log is a prefix of this one.
    Reconciled,
    /// It holds no consistent image: only a rebuild helps.
    Unusable,
}

/// A recovery session in execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Session {
    pub(super) id: RecoveryId,
    /// Set by the engine at the start, never changed.
    pub(super) target: Lsn,
    pub(super) stage: Stage,
}

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Stage {
    /// Catch-up: entries are on their way.
    Feeding { started: bool },
    /// Rebuild: waits until the replica is out of every configuration that may be in force.
    Leaving,
    /// Rebuild: asked the receiver to start.
    Beginning { mark: Incomplete, sent: Millis },
    /// Rebuild: base blocks and WAL entries are on their way.
    Copying { mark: Incomplete },
    /// Rebuild: every base block was taken.
    Copied { through: Lsn },
    /// Told the receiver that all was sent.
    Closing { through: Lsn, sent: Millis },
}

/// The one ordered feed to a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Feed {
    /// Next LSN to send.
    pub(super) next: Lsn,
    /// When frontiers were last sent with a stamp.
    pub(super) stamped: Option<Millis>,
}

/// Another replica of the volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Peer {
    pub(super) id: ReplicaId,
    pub(super) addr: String,
    /// The run that was last met. What it acknowledged holds for this run only.
    pub(super) incarnation: Option<Incarnation>,
    pub(super) transport: TransportEpoch,
    pub(super) link: Link,
    /// What this run durably holds of this primary's log.
    pub(super) acked: Option<Lsn>,
    /// What it durably holds of a rebuild's WAL lane: moves the window, counts for nothing.
    pub(super) progress: Lsn,
    /// The newest epoch in its table. Its acknowledgements commit nothing in a newer one.
    pub(super) recorded: Option<Epoch>,
    /// Its promise holds until then.
    pub(super) leased_until: Millis,
    /// When it was last heard.
    pub(super) heard: Millis,
    /// Its machine said that nobody listens.
    pub(super) refused: bool,
    /// Must acknowledge although it is not listed: it is about to join.
    pub(super) joining: bool,
    /// A proposal to let it join may still be committed in the current epoch.
    pub(super) join_proposed: bool,
    /// The recovery engine published it as healthy.
    pub(super) healthy: bool,
    /// The recovery engine waits for its acknowledgement of the epoch.
    pub(super) fence_wanted: bool,
    pub(super) feed: Option<Feed>,
    pub(super) session: Option<Session>,
}

impl Peer {
    pub(super) fn new(id: ReplicaId, addr: String, now: Millis) -> Self {
        Self {
            id,
            addr,
            incarnation: None,
            transport: TransportEpoch(0),
            link: Link::Down,
            acked: None,
            progress: Lsn(0),
            recorded: None,
            leased_until: Millis(0),
            heard: now,
            refused: false,
            joining: false,
            join_proposed: false,
            healthy: false,
            fence_wanted: false,
            feed: None,
            session: None,
        }
    }

    /// The replica in the run that was last met.
    pub(super) fn reference(&self) -> ReplicaRef {
        ReplicaRef { id: self.id, incarnation: self.incarnation.unwrap_or_default() }
    }

    /// What it acknowledged in `epoch`: nothing before its table says that it holds everything
    /// below the epoch's start.
    pub(super) fn acked_in(&self, epoch: Epoch) -> Option<Lsn> {
        self.acked.filter(|_| self.recorded == Some(epoch))
    }

    /// Meets the replica in a run. Another run than before takes all back that the old one said.
    pub(super) fn meet(&mut self, incarnation: Incarnation) {
        if self.incarnation != Some(incarnation) {
            self.incarnation = Some(incarnation);
            self.acked = None;
            self.recorded = None;
            self.leased_until = Millis(0);
            self.transport = TransportEpoch(self.transport.0 + 1);
            // A proposal that was sent names the old run: it may be committed still.
            self.joining = self.join_proposed;
        }
    }

    /// Whether it takes part in the feed and so answers.
    pub(super) fn is_fed(&self) -> bool {
        self.feed.is_some() && matches!(self.link, Link::Reconciled | Link::Unusable)
    }

    /// When the question that is under way was sent.
    pub(super) fn asked(&self) -> Option<Millis> {
        match self.link {
            Link::Probing { sent, .. }
            | Link::Fencing { sent, .. }
            | Link::Cutting { sent, .. } => Some(sent),
            Link::Down | Link::Reconciled | Link::Unusable => None,
        }
    }
}
