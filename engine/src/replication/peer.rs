//! Another replica of the volume, as its primary knows it.

use serde::{Deserialize, Serialize};

use super::log::{EpochTable, LogState};
use super::message::{Facts, Incomplete, RecoveryId};
use super::room::SpaceTold;
use super::{IgnoredReason, Verdict};
use crate::recovery::TransportEpoch;
use crate::types::{Epoch, Incarnation, Lsn, Millis, ReplicaId, ReplicaRef, TailId};

/// How far the primary has come with a replica's current run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Link {
    /// Nothing is under way.
    Down,
    /// Asked who is there.
    Probing { request: u64, sent: Millis },
    /// Asked for its promise and what it holds.
    Fencing { request: u64, sent: Millis },
    /// It promised and told what it holds; this primary is not reconciled itself yet.
    Told,
    /// Asked to cut its log.
    Cutting { request: u64, sent: Millis, end: Lsn },
    /// Its log is a prefix of this one.
    Reconciled,
    /// It holds no consistent image: only a base lane helps.
    Unusable,
}

/// A recovery session in execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Session {
    pub(super) id: RecoveryId,
    /// Set by the engine at the start, never changed.
    pub(super) target: Lsn,
    pub(super) stage: Stage,
    /// Delta: what the receiver held. 0: a rebuild, or a catch-up.
    #[serde(default)]
    pub(super) from: Lsn,
    /// With a base lane: the receiver's log begins above it.
    pub(super) base: Lsn,
    /// When it last came on: the receiver held more, took more of the base, or a stage was over.
    pub(super) moved: Millis,
    /// What the receiver held then, and the bytes of the base that it had taken.
    pub(super) held: Lsn,
    pub(super) bytes: u64,
}

impl Session {
    pub(super) fn new(id: RecoveryId, target: Lsn, stage: Stage, now: Millis) -> Self {
        let (from, base, held) = (Lsn(0), Lsn(0), Lsn(0));
        Self { id, target, stage, from, base, moved: now, held, bytes: 0 }
    }

    pub(super) fn enter(&mut self, stage: Stage, now: Millis) {
        self.stage = stage;
        self.moved = now;
    }
}

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Stage {
    /// Catch-up: entries are on their way.
    Feeding { started: bool },
    /// With a base lane: waits until the replica is out of every configuration that may be in force,
    /// and this primary knows as committed what the replica's extents may hold.
    Leaving,
    /// With a base lane: asked the receiver to start.
    Beginning { mark: Incomplete, sent: Millis },
    /// With a base lane: base blocks and WAL entries are on their way.
    Copying { mark: Incomplete },
    /// With a base lane: every base block was taken.
    Copied { through: Lsn },
    /// Told the receiver that all was sent.
    Closing { through: Lsn, sent: Millis },
}

/// What goes with a base, as of it. Kept while the receiver is asked to begin, for a repetition
/// must say the same: the primary's own table and state have moved on by then. [A receiver was
/// given the sessions of entries that the WAL lane then brought it a second time.]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Base {
    pub(super) table: EpochTable,
    pub(super) state: LogState,
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
    /// Questions it was asked in this tenure: what it answers names the question.
    #[serde(default)]
    pub(super) questions: u64,
    /// The run that was last met. What it acknowledged holds for this run only.
    pub(super) incarnation: Option<Incarnation>,
    pub(super) transport: TransportEpoch,
    pub(super) link: Link,
    /// What it holds, until this primary may act on it.
    pub(super) told: Option<Box<Facts>>,
    /// What this run durably holds of this primary's log.
    pub(super) acked: Option<Lsn>,
    /// What this run has in its file of this primary's log; counts as far as it acknowledged.
    pub(super) wrote: Lsn,
    /// Its tail, once it told what it holds.
    pub(super) tail: Option<TailId>,
    /// What it durably holds of the WAL lane beside a base lane: moves the window, counts for nothing.
    pub(super) progress: Lsn,
    /// Its extents hold nothing newer. It is committed, but perhaps not known to be so here.
    #[serde(default)]
    pub(super) image: Lsn,
    /// The newest epoch in its table. Its acknowledgements commit nothing in a newer one.
    pub(super) recorded: Option<Epoch>,
    /// Its promise in the epoch in force holds until then.
    pub(super) leased_until: Millis,
    /// Its promise in an earlier epoch of the tenure: worth nothing for a read, but until then it is
    /// not lacking either, for that of the new epoch is on its way.
    pub(super) leased_before: Millis,
    /// The room on its disk, once this run told it.
    #[serde(default)]
    pub(super) space: Option<SpaceTold>,
    /// When it was last heard.
    pub(super) heard: Millis,
    /// Its machine said that nobody listens.
    pub(super) refused: bool,
    /// The newest epoch that it said it stood for the end of.
    #[serde(default)]
    pub(super) stood: Epoch,
    /// Must acknowledge although it is not listed: it is about to join.
    pub(super) joining: bool,
    /// The primary's head when it began to count as a joiner.
    pub(super) counted_from: Option<Lsn>,
    /// A proposal to let it join may still be committed in the current epoch.
    pub(super) join_proposed: bool,
    /// A proposal to have it leave the voters may still be committed in the current epoch.
    pub(super) leave_proposed: bool,
    /// The promises that it had made to others when it told what it holds run out then, on this
    /// machine's clock.
    pub(super) promised_until: Millis,
    /// The recovery engine published it as healthy.
    pub(super) healthy: bool,
    /// The recovery engine waits for its acknowledgement of the epoch.
    pub(super) fence_wanted: bool,
    pub(super) feed: Option<Feed>,
    pub(super) session: Option<Session>,
    /// Of the session that begins.
    pub(super) base: Option<Box<Base>>,
}

impl Peer {
    pub(super) fn new(id: ReplicaId, addr: String, now: Millis) -> Self {
        Self {
            id,
            addr,
            questions: 0,
            incarnation: None,
            transport: TransportEpoch(0),
            link: Link::Down,
            told: None,
            acked: None,
            wrote: Lsn(0),
            tail: None,
            progress: Lsn(0),
            image: Lsn(0),
            recorded: None,
            leased_until: Millis(0),
            leased_before: Millis(0),
            space: None,
            heard: now,
            refused: false,
            stood: Epoch(0),
            joining: false,
            counted_from: None,
            join_proposed: false,
            leave_proposed: false,
            promised_until: Millis(0),
            healthy: false,
            fence_wanted: false,
            feed: None,
            session: None,
            base: None,
        }
    }

    /// The number of the next question.
    pub(super) fn question(&mut self) -> u64 {
        self.questions += 1;
        self.questions
    }

    /// The replica in the run that was last met.
    pub(super) fn reference(&self) -> ReplicaRef {
        ReplicaRef { id: self.id, incarnation: self.incarnation.unwrap_or_default() }
    }

    /// Whether it took part lately: it promised, in this epoch or the one before.
    pub(super) fn takes_part(&self, now: Millis) -> bool {
        self.leased_until.max(self.leased_before) > now
    }

    /// What it acknowledged in `epoch`: nothing before its table says that it holds everything
    /// below the epoch's start.
    pub(super) fn acked_in(&self, epoch: Epoch) -> Option<Lsn> {
        self.acked.filter(|_| self.recorded == Some(epoch))
    }

    /// What it has in its file of the log in `epoch`, as [`Self::acked_in`].
    pub(super) fn wrote_in(&self, epoch: Epoch) -> Option<Lsn> {
        self.acked_in(epoch).map(|acked| acked.max(self.wrote))
    }

    /// Meets the replica in a run. Another run than before takes all back that the old one said.
    pub(super) fn meet(&mut self, incarnation: Incarnation) {
        if self.incarnation != Some(incarnation) {
            self.incarnation = Some(incarnation);
            self.acked = None;
            self.wrote = Lsn(0);
            self.tail = None;
            self.recorded = None;
            self.space = None;
            self.leased_until = Millis(0);
            self.leased_before = Millis(0);
            self.transport = TransportEpoch(self.transport.0 + 1);
            // A proposal that was sent names the old run: it may be committed still.
            self.joining = self.join_proposed;
        }
    }

    /// It says that its log ends at `end`: the feed goes on behind that. A late copy, of before it
    /// acknowledged more or was wiped, changes nothing: what it had then may be gone from the WAL. [The
    /// feed of a rebuild went on below its base, where all was recycled, and the session failed.]
    pub(super) fn gap(&mut self, end: Lsn) -> Verdict {
        let held = self.acked.or(self.session.map(|session| session.base));
        if held.is_some_and(|held| end < held) {
            return Verdict::Ignored(IgnoredReason::LateCopy);
        }
        if let Some(feed) = &mut self.feed {
            feed.next = feed.next.min(end.next());
        }
        Verdict::Applied
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
            Link::Down | Link::Told | Link::Reconciled | Link::Unusable => None,
        }
    }
}
