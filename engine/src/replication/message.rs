//! What replicas of one volume say to each other.
//!
//! Every message travels with a [`Lineage`] and every receiver checks it first: a message of an
//! older epoch, of another incarnation, or for another incarnation changes nothing.

use serde::{Deserialize, Serialize};

use super::log::{EntryHeader, EpochTable, LogState};
use super::room::SpaceTold;
use crate::types::{Config, Epoch, Lba, LossGeneration, Lsn, Millis, ReplicaRef, TailId, VolumeId};

/// What every data-plane message carries: the volume, the sender's epoch, and both ends in the
/// incarnations that they are meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lineage {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch in which the sender says it; in an answer, the epoch of the question.
    pub epoch: Epoch,
    /// Who says it.
    pub from: ReplicaRef,
    /// Whom it is for. A primary that doesn't know its peer's incarnation yet asks with a
    /// [`ToReplica::Probe`], the one message that is not checked against it.
    pub to: ReplicaRef,
}

/// A recovery session's name: unique within the volume, for the epoch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RecoveryId {
    /// The epoch in which the session was decided.
    pub epoch: Epoch,
    /// Counted up by the primary within the epoch, from 1.
    pub number: u64,
}

impl std::fmt::Display for RecoveryId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.epoch, self.number)
    }
}

/// The mark of a replica whose extents are being written by a base lane: until the terminal close
/// it holds no consistent image, and counts for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incomplete {
    /// The session.
    pub session: RecoveryId,
    /// Of which LSN the replica held the whole image at the start of the first of a chain of broken
    /// sessions: in a region that was not written since it still does. 0 for a rebuild.
    pub from: Lsn,
    /// The primary's committed LSN at the session's start: base blocks are at least this new, the
    /// WAL lane starts one above.
    pub base: Lsn,
    /// The LSN that the session must reach.
    pub target: Lsn,
}

/// From the primary of a volume to one of its other replicas.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToReplica {
    /// Who are you, and in which incarnation? Carried by the `Probe` call. Fences nobody.
    Probe {
        /// Repeated in the answer.
        request: u64,
    },
    /// Promise the lineage's epoch, then say what you hold. Carried by `Reconcile`.
    Fence {
        /// Repeated in the answer.
        request: u64,
        /// The configuration of the lineage's epoch.
        config: Config,
    },
    /// Cut your log so that it ends at `end`, durably, and describe what is left with `table`.
    /// Carried by `Reconcile`.
    Cut {
        /// Repeated in the answer.
        request: u64,
        /// The end of what both logs have in common.
        end: Lsn,
        /// The primary's whole table.
        table: EpochTable,
    },
    /// A candidate completes its log: send what you hold after `prev`. Carried by `Reconcile`. Only
    /// in `sync_quorum`, from a primary that has reconciled nobody yet.
    Fetch {
        /// Counted with those of `Fence` and `Cut`.
        request: u64,
        /// The end of what the candidate holds of the receiver's log.
        prev: Lsn,
        /// The last entry that it needs.
        last: Lsn,
    },
    /// Blocks of the primary's extents don't match their checksums: what do you hold of them, as of the end
    /// of your log? Carried by `Reconcile`. Changes nothing at the receiver.
    ReadBlocks {
        /// Counted with those of `Fence` and `Cut`, but the receiver does not go by it: it only names the
        /// answer.
        request: u64,
        /// What was committed when the primary found that. A receiver that holds less does not answer.
        committed: Lsn,
        /// The blocks, ascending, at most [`MESSAGE_BLOCKS`](super::mend::MESSAGE_BLOCKS).
        blocks: Vec<Lba>,
    },
    /// The one ordered feed: entries (possibly none) and frontiers. Carried by `Feed`; the entries'
    /// payloads travel beside it.
    Append(Append),
    /// Become INCOMPLETE, drop what you hold (but for a delta the image of `mark.from`, which your
    /// extents are to hold first), then take base blocks. Carried by `Recover`. A
    /// question like the others: a copy that comes late must not wipe what was built since.
    BeginRebuild {
        /// Counted with those of `Fence` and `Cut`; a repetition has a number of its own.
        request: u64,
        /// The mark to write first.
        mark: Incomplete,
        /// The primary's table: what it says up to `mark.base` describes the base.
        table: EpochTable,
        /// The log's state as of `mark.base`.
        state: LogState,
    },
    /// All is sent: hold everything up to `target` and end the session. Carried by `Feed` for a
    /// catch-up, by `Recover` beside a base lane.
    Close {
        /// The session.
        session: RecoveryId,
        /// The session's target, or more where base blocks were read newer than it.
        through: Lsn,
        /// What the primary knows to be committed: no base block was read newer. The lane that brings it to the
        /// receiver otherwise is another one, and may be behind. [A rebuilt replica held blocks of entries that
        /// it did not know to be committed. A loss took these, and it was cut and not rebuilt.]
        committed: Lsn,
    },
}

/// One message on the feed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Append {
    /// The configuration's `since`: a receiver that reconciled with this primary in an epoch at
    /// or above it needs no new reconciliation for a newer epoch.
    pub since: Epoch,
    /// The primary's first LSN in the lineage's epoch.
    pub first: Lsn,
    /// The primary's committed LSN in the lineage's epoch, if it has committed in it or inherited
    /// a value that its members confirmed.
    pub committed: Lsn,
    /// The primary's clock, when a promise is asked for. The answer echoes it.
    pub stamp: Option<Millis>,
    /// The LSN before the first entry: all that was sent on this feed so far. A receiver whose log
    /// ends below it has missed something and answers with a [`ToPrimary::Gap`].
    pub prev: Lsn,
    /// Headers, consecutive by LSN from `prev + 1`.
    pub entries: Vec<EntryHeader>,
}

/// From a replica to the volume's primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToPrimary {
    /// Answer to [`ToReplica::Probe`]: `lineage.from` names the incarnation.
    Alive {
        /// The question's.
        request: u64,
    },
    /// Answer to [`ToReplica::Fence`], after the promise is durable.
    Facts {
        /// The question's.
        request: u64,
        /// What the replica holds.
        facts: Facts,
    },
    /// Answer to [`ToReplica::Cut`], after the cut is durable.
    CutDone {
        /// The question's.
        request: u64,
        /// R: the log's durable end.
        durable: Lsn,
    },
    /// Answer to [`ToReplica::Fetch`]: headers, consecutive from `prev + 1`, as many as fit; their
    /// payloads travel beside it. None: the log does not have them any more.
    Entries {
        /// The question's.
        request: u64,
        /// The question's.
        prev: Lsn,
        /// The entries.
        entries: Vec<EntryHeader>,
    },
    /// Answer to [`ToReplica::ReadBlocks`]; the content of those held travels beside it. Blocks that are in
    /// neither list could not be told.
    Blocks {
        /// The question's.
        request: u64,
        /// The end of the replica's log: the content is as of it.
        at: Lsn,
        /// Blocks that match their checksums.
        held: Vec<Lba>,
        /// Blocks that don't match their checksums there either.
        rotten: Vec<Lba>,
    },
    /// Answer to [`ToReplica::Append`]; also sent unasked when the durable end moves, or the room on its disk
    /// changes.
    Ack {
        /// R: the log's durable end.
        durable: Lsn,
        /// The end of what is in its file, at least `durable`.
        written: Lsn,
        /// The newest epoch recorded in the table. An ack whose recorded epoch is not the
        /// lineage's commits nothing.
        recorded: Option<Epoch>,
        /// The stamp whose promise this confirms. The promise runs from that stamp.
        promised: Option<Millis>,
        /// The room on its disk.
        #[serde(default)]
        space: SpaceTold,
    },
    /// An append began above the log's end: send from `durable + 1` again.
    Gap {
        /// The log's end.
        end: Lsn,
    },
    /// The base lane may start.
    RebuildStarted {
        /// The session.
        session: RecoveryId,
    },
    /// The session has ended: everything up to `achieved` is durable, table and state included.
    Closed {
        /// The session.
        session: RecoveryId,
        /// The durable end.
        achieved: Lsn,
    },
    /// The session can't go on.
    SessionFailed {
        /// The session.
        session: RecoveryId,
        /// Why.
        cause: crate::recovery::FailureKind,
    },
    /// The sender promised a newer epoch, stood for the end of this one, or the message was for another
    /// incarnation.
    Refused {
        /// The newest epoch that the sender promised. One above the question's ends the asker's
        /// role at once, whether or not the configuration is known.
        fenced: Epoch,
        /// The newest configuration that the replica knows, if it is newer than the question's.
        config: Option<Config>,
        /// The newest epoch that it stood for the end of: in that, and in those before it, it takes no
        /// part. 0 if it did not.
        stood: Epoch,
    },
}

/// What a replica holds, told under a promise to the epoch of the question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// Which epochs its log went through.
    pub table: EpochTable,
    /// R: the log's durable end.
    pub durable: Lsn,
    /// The committed LSN that it knows, at most `durable`.
    pub committed: Lsn,
    /// Everything up to here is in its extents.
    pub checkpoint: Lsn,
    /// S: the oldest LSN that its WAL holds; `durable + 1` if it holds none.
    pub retained: Lsn,
    /// Set while a base lane is unfinished.
    pub incomplete: Option<Incomplete>,
    /// The loss generation that it last reconciled under.
    pub loss_generation: LossGeneration,
    /// For how long its promises to primaries other than the asker still bind it, in milliseconds of
    /// any clock within the drift that promises allow for.
    pub promised_ms: u64,
    /// Its tail.
    pub tail: TailId,
    /// Its log may have lost its end, and with it what was acknowledged.
    #[serde(default)]
    pub doubtful: bool,
}
