//! What goes into a replica's engine and what comes out.
//!
//! Outputs are executed in order. A store operation marked *blocking* has completed before the
//! next output is looked at; if it fails, the rest of the outputs is dropped and
//! [`Input::StoreFailed`] is fed in. So `[Persist, Reply]` is a durable promise and its answer,
//! with no completion event in between.

use serde::{Deserialize, Serialize};

use super::log::{BlockRange, EntryHeader, EpochTable, LogState, RequestTag};
use super::message::{Incomplete, Lineage, RecoveryId, ToPrimary, ToReplica};
use super::room::Space;
use crate::recovery::FailureKind;
use crate::types::{
    AttachGeneration, Config, Epoch, Lba, LossGeneration, Lsn, NodeId, ReplicaId, ReplicaRef,
    SessionId, TailId, VolumeId, Wish,
};

/// Numbers one stream of one frontend session at this replica; the driver never uses one twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StreamId(pub u64);

/// Numbers a proposal of this replica in this incarnation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ProposalId(pub u64);

/// What a store says of itself when it was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// The volume.
    pub volume: VolumeId,
    /// The replica, in the incarnation of this opening.
    pub me: ReplicaRef,
    /// Its tail: another one than at its last opening if what was written then and not synced may be
    /// gone.
    pub tail: TailId,
    /// What the superblock keeps for the engine.
    pub kept: Kept,
    /// R: the log's durable end. All of it was synced by this open.
    pub durable: Lsn,
    /// The highest committed LSN found on disk, at most `durable`.
    pub committed: Lsn,
    /// Everything up to here is in the extents.
    pub checkpoint: Lsn,
    /// S: the oldest LSN that the WAL still holds; `durable + 1` if it holds none.
    pub retained: Lsn,
    /// The log's state as of `committed`.
    pub state: LogState,
    /// The headers of `committed + 1 ..= durable`, in order.
    pub uncommitted: Vec<EntryHeader>,
}

/// What the superblock keeps for the engine. Written whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The highest epoch promised to. Never compares logs.
    pub fenced: Epoch,
    /// Which epochs the log went through.
    pub table: EpochTable,
    /// Set while a base lane is unfinished.
    pub incomplete: Option<Incomplete>,
    /// The loss generation last reconciled under.
    pub loss_generation: LossGeneration,
    /// Which epoch it stood for the end of last, if it did.
    pub stood: Option<Stood>,
    /// The log may have lost its end: an opening found a write there that it could not read. Ends once
    /// the log is known to hold what was acknowledged before.
    #[serde(default)]
    pub doubtful: bool,
}

/// A replica's word that it takes no part in an epoch, or those before, any more. It binds later runs
/// too, as long as they have the same tail: one with another counts for nothing before it joined
/// again, and it could not join if it stayed silent. [A set that could not do without it waited for
/// ever.]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stood {
    /// The epoch.
    pub epoch: Epoch,
    /// The tail that it had.
    pub tail: TailId,
}

/// A fact for the engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// A configuration from the masters, or from their answer to something else.
    Assignment(Config),
    /// What the masters want of the volume's primary; all of it, each time.
    Wish(Wish),
    /// The process is about to end in order: whenever this replica is primary, from now on, it hands
    /// the role over to another replica, if one can take it.
    Resign,
    /// The masters deleted the volume. Fences like an epoch above all others.
    Deleted,
    /// From the volume's primary, or one that thinks it is.
    FromPrimary {
        /// Sender, receiver, epoch.
        lineage: Lineage,
        /// What it says. Payloads of an append stay with the driver.
        message: ToReplica,
    },
    /// From a replica, to this one as the primary.
    FromReplica {
        /// Sender, receiver, epoch of the question.
        lineage: Lineage,
        /// What it says. Payloads of fetched entries stay with the driver.
        message: ToPrimary,
    },
    /// A call or stream to a replica failed. Observation only.
    Unreachable {
        /// Which.
        replica: ReplicaId,
        /// Whether its machine said no (refused, reset): nobody listens there now. Otherwise it
        /// was silence.
        refused: bool,
    },
    /// The WAL does not hold entries any more that were meant for a replica. What the disk does not
    /// give back is no such thing: it is this replica's own failure, and either
    /// [`Input::StoreFailed`] or, if the extents have it, told as recycled by
    /// [`Input::Checkpointed`].
    FeedFailed {
        /// Which.
        replica: ReplicaId,
        /// Why: recycled, pin lost, or the way was blocked.
        cause: FailureKind,
    },
    /// Primary: bytes of the base lane that the receiver took, for progress.
    BaseProgress {
        /// The session.
        session: RecoveryId,
        /// Bytes so far.
        bytes: u64,
    },
    /// Primary: every base block was taken by the receiver; none was read newer than `through`.
    BaseSent {
        /// The session.
        session: RecoveryId,
        /// The highest committed LSN at the read of a base block.
        through: Lsn,
    },
    /// Either side: the base lane broke.
    BaseFailed {
        /// The session.
        session: RecoveryId,
        /// Why.
        cause: FailureKind,
    },
    /// Everything in the log up to `lsn` is durable. Notices of an earlier log (before a cut or a
    /// wipe, which raise the generation by one) are ignored.
    Durable {
        /// The generation that the engine was in when the entries were appended: the number of
        /// cuts and wipes so far in this opening.
        generation: u64,
        /// The durable end.
        lsn: Lsn,
    },
    /// Everything in the log up to `lsn` is in the file, synced or not. Only told while
    /// [`Replica::acks_written`](super::Replica::acks_written) says so, and implied by
    /// [`Input::Durable`].
    Written {
        /// As in [`Input::Durable`].
        generation: u64,
        /// The written end.
        lsn: Lsn,
    },
    /// The masters want this replica to take over, with written acknowledgements: it stops to
    /// acknowledge and to promise in the epoch and before, and syncs its log.
    Stand {
        /// The epoch that is to end.
        epoch: Epoch,
    },
    /// The checkpoint moved or WAL segments went. Notices of an earlier log are ignored, as those
    /// of [`Input::Durable`] are: after a wipe the extents hold less. [A rebuild that began anew
    /// below the checkpoint that the one before it had under way took it for its own.]
    Checkpointed {
        /// The generation that the engine was in when the step of the checkpoint was begun.
        generation: u64,
        /// Everything up to here is in the extents.
        checkpoint: Lsn,
        /// S.
        retained: Lsn,
    },
    /// The store failed; it will be reopened as another incarnation or retired. Nothing is
    /// acknowledged after it.
    StoreFailed {
        /// For people.
        cause: String,
    },
    /// The masters' answer to a proposal.
    Answered {
        /// Which.
        proposal: ProposalId,
        /// The newest configuration that the masters committed, whether it is the proposed one or
        /// not; `None` if no answer came and the outcome is unknown.
        config: Option<Config>,
    },
    /// A frontend asks for a stream.
    OpenStream(OpenStream),
    /// A frontend's stream is gone.
    CloseStream {
        /// Which.
        stream: StreamId,
    },
    /// A request on an open stream. Its payload stays with the driver, under its tag.
    Request {
        /// On which stream.
        stream: StreamId,
        /// What.
        request: Request,
    },
    /// The blocks that a [`Output::Read`] named were read (or not); the driver holds the data.
    ReadDone {
        /// The stream.
        stream: StreamId,
        /// The request.
        tag: RequestTag,
        /// Whether the read failed, with the cause for people.
        error: Option<String>,
    },
    /// Blocks of the extents don't match their checksums. In place of [`Input::ReadDone`] for a request:
    /// it is answered, or read again, once the blocks were repaired or nobody has them.
    Rotten {
        /// Who read them.
        reader: Reader,
        /// Which, ascending, without those that could be read; at least one.
        blocks: Vec<Lba>,
        /// What was found, for people.
        why: String,
    },
    /// Blocks that a [`Output::FindData`] named were looked at.
    DataFound {
        /// Which search.
        search: u64,
        /// The first block of them that may have data; `None`: all are holes.
        found: Option<Lba>,
        /// Why it could not be told, for people; then `found` says nothing.
        error: Option<String>,
    },
    /// How much room there is on the replica's disk. To be told after it was opened, and whenever it
    /// changes; a primary that is never told takes it, and that of its members, for ample.
    Space(Space),
    /// Blocks that an [`Output::LookForHoles`] named were looked at.
    HolesFound {
        /// The stream.
        stream: StreamId,
        /// The request.
        tag: RequestTag,
        /// Whether any of them may hold nothing, so that a write to it takes new space. What can't be told
        /// counts as such.
        holes: bool,
    },
    /// Primary: an operator's scrub found these blocks damaged on some in-sync replica. Each is told of in an
    /// [`Output::Scrubbed`], unless the input is ignored.
    Scrub {
        /// Which, ascending, at most [`SCRUB_BLOCKS`](super::scrub::SCRUB_BLOCKS).
        blocks: Vec<Lba>,
    },
    /// Time passed.
    Tick,
}

/// What became of a block that a scrub found damaged on some replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It was logged again. The next checkpoint of each replica writes it.
    Logged,
    /// A newer entry of the log changes it, which the next checkpoint of each replica writes.
    Overtaken,
    /// Nothing was done about it, and why, for people.
    NotMended(String),
    /// There is no room for it now, or the primary may not log anything yet: to be told again later.
    Busy,
}

/// Who found that blocks don't match their checksums.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reader {
    /// A request, by an [`Output::Read`].
    Request {
        /// The stream.
        stream: StreamId,
        /// The request.
        tag: RequestTag,
    },
    /// The base lane of a session, which has failed for it ([`Input::BaseFailed`]) or is about to.
    Base {
        /// The session.
        session: RecoveryId,
    },
    /// This replica for its primary, by an [`Output::SendBlocks`]. They stay as they are.
    Asked,
}

/// A frontend's wish to send requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenStream {
    /// The driver's number for it.
    pub stream: StreamId,
    /// The frontend's session.
    pub session: SessionId,
    /// What it wants to be to the volume.
    pub attach: Attach,
    /// The node of the frontend, for people.
    pub node: NodeId,
    /// The loss generation of what `attach` names: under which the session was opened, or the attach
    /// generation was told. A stream that names one is refused without it, or under another.
    pub loss_generation: Option<LossGeneration>,
}

/// What a session is, or wants to be, to the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attach {
    /// What it was when it was opened, in this generation. If the log doesn't know the session any
    /// more, it is lost; if a newer generation is in force, so is the attachment.
    Again(AttachGeneration),
    /// One of several that have the volume together; not beside an exclusive one.
    Shared,
    /// The only one: all before it end with its entry's commit.
    Exclusive {
        /// The generation that was in force when the client asked, which a first attempt without
        /// it learns ([`StreamEnd::AttachOver`]). So an attempt that was under way for long does not
        /// end an attachment that was made since. [A node froze while it attached, the pod moved,
        /// the node went on and took the volume from it.] It counts in the loss generation in which it
        /// was told.
        over: Option<AttachGeneration>,
    },
    /// As `Exclusive`, in place of the exclusive attachment of `session` and of nothing else: refused
    /// ([`StreamEnd::AttachLost`]) unless that session has the volume to itself at this moment. It names
    /// its generation too, which counts in the loss generation in which that attachment stood.
    Follow {
        /// The generation of that attachment.
        over: AttachGeneration,
        /// Whose it is.
        session: SessionId,
    },
    /// No attachment: an operator ends all of this and earlier generations, of one loss generation.
    Revoke {
        /// The generation.
        upto: AttachGeneration,
    },
}

impl Attach {
    /// Whether it names an attach generation.
    pub fn names_generation(&self) -> bool {
        match self {
            Self::Again(_) | Self::Follow { .. } | Self::Revoke { .. } => true,
            Self::Exclusive { over } => over.is_some(),
            Self::Shared => false,
        }
    }
}

impl OpenStream {
    /// A wish for a new session that shares the volume.
    pub fn shared(stream: StreamId, session: SessionId, node: NodeId) -> Self {
        Self { stream, session, attach: Attach::Shared, node, loss_generation: None }
    }
}

/// A frontend's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Its name.
    pub tag: RequestTag,
    /// The session's low-water mark: the frontend knows the fate of every sequence up to it.
    pub low: u64,
    /// The epoch in which the stream was opened, or a newer one that the frontend knows.
    pub epoch: Epoch,
    /// The attach generation that the stream was opened with.
    pub attach: AttachGeneration,
    /// What it asks for.
    pub op: Op,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// The newest committed data of the blocks.
    Read(BlockRange),
    /// Blocks get the payload that the driver holds.
    Write(BlockRange),
    /// A part of the blocks gets the payload: the driver must merge it with what they hold
    /// before it can be logged. See [`Output::Read`] with `merge`.
    PartialWrite(BlockRange),
    /// Blocks read as zeros, their space may go.
    Trim(BlockRange),
    /// Blocks read as zeros.
    Zero(BlockRange),
    /// Everything acknowledged before is durable.
    Flush,
    /// The session ends; nothing of it is in flight.
    Detach,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Done; a read's data is with the driver.
    Done,
    /// The range passes the end of the volume, or the request breaks a limit.
    Invalid(String),
    /// An I/O error that sending again does not mend.
    Failed(String),
}

/// Why a stream ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StreamEnd {
    /// This replica is not (any more) the primary that the stream was opened with; what was in
    /// flight goes to the new one.
    NotPrimary,
    /// Another stream of the same session took its place.
    Replaced,
    /// The log does not know the session, or what the stream named is of another loss generation: an
    /// I/O error for what was in flight.
    SessionLost,
    /// A newer attachment took the volume, or took it first.
    AttachLost,
    /// This generation is in force: an exclusive attachment must name it.
    AttachOver {
        /// The generation.
        attach: AttachGeneration,
        /// Where it counts: after a loss the same number may be another attachment's.
        loss_generation: LossGeneration,
    },
    /// Another session has the volume to itself.
    Held(Box<HeldBy>),
    /// What was to be ended has ended; this generation is in force.
    Revoked(AttachGeneration),
    /// The volume has [`MAX_SESSIONS`](crate::types::MAX_SESSIONS) live sessions.
    TooManySessions,
    /// The volume was deleted.
    Deleted,
}

/// Who has a volume to itself, as far as its primary knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldBy {
    /// Its session.
    pub session: SessionId,
    /// Its generation.
    pub attach: AttachGeneration,
    /// The node of its frontend; `None` if it was not seen since this primary took over.
    pub node: Option<NodeId>,
    /// For how many milliseconds this primary has known it.
    pub held_ms: Option<u64>,
}

impl std::fmt::Display for HeldBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { session, attach, node, held_ms } = self;
        write!(f, "the volume is attached exclusively by session {session} (generation {attach}")?;
        match (node, held_ms) {
            (Some(node), Some(ms)) => {
                write!(f, ", through node {node} for {} s or more", ms / 1000)?
            }
            (Some(_) | None, _) => f.write_str(", not connected since the primary changed")?,
        }
        f.write_str(
            "); attach exclusively to take its place, or end it with `sbkctl volume detach`",
        )
    }
}

/// A change of the configuration that the primary asks the masters for; applied only if the
/// volume's epoch is still `epoch`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// The engine's number for it.
    pub id: ProposalId,
    /// The volume.
    pub volume: VolumeId,
    /// The proposer.
    pub primary: ReplicaRef,
    /// The epoch that it must find.
    pub epoch: Epoch,
    /// What it wants.
    pub change: IsrChange,
}

/// A change of the in-sync set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IsrChange {
    /// A member that doesn't answer leaves.
    Leave {
        /// Who.
        replica: ReplicaId,
    },
    /// A replica that holds everything joins.
    Join {
        /// Who, in the incarnation that acknowledged; another is refused.
        replica: ReplicaRef,
    },
    /// Nothing changes but the epoch: burns every other proposal at the old one.
    Burn,
    /// A candidate of a `sync_quorum` volume declines: the log of another voter has entries that it
    /// could get only with the whole image. That one is to be the primary.
    Yield {
        /// Who, in the incarnation that told what it holds.
        to: ReplicaRef,
    },
    /// The primary, which has stopped and brought another member to its head, hands the role over.
    /// It is its word that it answers nothing in this epoch any more.
    HandOver {
        /// To whom, in the incarnation that holds the whole log.
        to: ReplicaRef,
    },
    /// The volume's size as of what is committed is another than the published one: it is to be published.
    Resized {
        /// The size in blocks.
        blocks: u64,
    },
    /// The volume can't shrink as it is wished, for it has data beyond that: the wish is to be taken back.
    KeepSize {
        /// The size in blocks that is wished.
        wished: u64,
        /// A block beyond it with data.
        lba: Lba,
    },
}

impl std::fmt::Display for IsrChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            IsrChange::Leave { replica } => write!(f, "{replica} leaves the in-sync set"),
            IsrChange::Join { replica: ReplicaRef { id, incarnation } } => {
                write!(f, "{id} joins the in-sync set, in its run {incarnation}")
            }
            IsrChange::Burn => f.write_str("nothing changes but the epoch"),
            IsrChange::Yield { to: ReplicaRef { id, incarnation } } => {
                write!(f, "{id} is primary instead, in its run {incarnation}: its log is the best")
            }
            IsrChange::HandOver { to: ReplicaRef { id, incarnation } } => {
                write!(f, "{id} is primary instead, in its run {incarnation}: it is handed over")
            }
            IsrChange::Resized { blocks } => write!(f, "the volume has {blocks} blocks"),
            IsrChange::KeepSize { wished, lba } => {
                write!(f, "the volume can't have {wished} blocks, for block {lba} has data")
            }
        }
    }
}

/// Where the entries of an [`Output::Append`] come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Payload {
    /// The input that is being handled: the entries of the feed's message, or the fetched ones.
    Feed,
    /// The client request with this tag (merged, for a partial write).
    Client(RequestTag),
    /// The input that is being handled: the blocks that another replica told, one for each entry.
    Blocks,
    /// None: attach, close, resize.
    Empty,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// Blocking: write and sync the superblock with this content.
    Persist(Kept),
    /// Blocking: end the log at `end`, overwriting and syncing the rest, then the superblock with
    /// `kept`. `end` is never below the committed LSN.
    Cut {
        /// The new end.
        end: Lsn,
        /// The superblock's content after it.
        kept: Kept,
    },
    /// Blocking: write and sync the superblock with `kept` (which holds the INCOMPLETE mark), then
    /// drop the WAL, and the extents unless the mark's `from` says that they hold the image of
    /// that LSN; the log starts anew at `base + 1` with `state` as of `base`.
    Wipe {
        /// The mark.
        mark: Incomplete,
        /// The log's state as of the base.
        state: LogState,
        /// The superblock's content.
        kept: Kept,
    },
    /// Blocking: sync everything that the base lane wrote and the region table, then the
    /// superblock with `kept`, which has no INCOMPLETE mark any more.
    FinishRebuild {
        /// The session.
        session: RecoveryId,
        /// The superblock's content.
        kept: Kept,
    },
    /// Append to the log; [`Input::Durable`] follows when it is synced.
    Append {
        /// Consecutive from the log's end + 1.
        headers: Vec<EntryHeader>,
        /// Where the payloads are.
        payload: Payload,
    },
    /// Extents may take everything up to here.
    Committed(Lsn),
    /// Extents are to take everything up to `upto`, which is committed, as soon as they can;
    /// [`Input::Checkpointed`] follows, also if they have it. [A step of the checkpoint had ended while
    /// the log was being cut, and was told of the log before that.]
    Checkpoint {
        /// How far.
        upto: Lsn,
    },
    /// Keep the WAL from this LSN on for the session.
    Pin {
        /// The session.
        session: RecoveryId,
        /// From here on.
        from: Lsn,
    },
    /// The session needs its pin no more.
    Unpin {
        /// The session.
        session: RecoveryId,
    },
    /// Read blocks as they are logged now; [`Input::ReadDone`] follows.
    Read {
        /// The stream.
        stream: StreamId,
        /// The request.
        tag: RequestTag,
        /// Which blocks.
        range: BlockRange,
        /// For a partial write: merge the payload over what was read.
        merge: bool,
    },
    /// Look for a block in a range that may be anything but a hole, as it is logged now;
    /// [`Input::DataFound`] follows.
    FindData {
        /// The engine's number for it, never used twice by a primary.
        search: u64,
        /// The first block to look at.
        first: Lba,
        /// One past the last one.
        end: u64,
    },
    /// Look whether any of a request's blocks hold nothing, as it is logged now;
    /// [`Input::HolesFound`] follows.
    LookForHoles {
        /// The stream.
        stream: StreamId,
        /// The request.
        tag: RequestTag,
        /// Its blocks.
        range: BlockRange,
    },
    /// To a replica. For an append the driver adds the payloads of `entries` from its log.
    ToReplica {
        /// Where it is.
        addr: String,
        /// Sender, receiver, epoch.
        lineage: Lineage,
        /// What.
        message: ToReplica,
    },
    /// Entries `first..=last` to a replica, as appends with this one's frontiers; the driver
    /// reads headers and payloads from its log, in one or more messages.
    SendEntries {
        /// Where it is.
        addr: String,
        /// Sender, receiver, epoch.
        lineage: Lineage,
        /// What every message carries; `entries` is empty and `prev` is `first - 1`.
        append: super::message::Append,
        /// Last LSN.
        last: Lsn,
    },
    /// Drop the feed to a replica and what is queued on it.
    ResetFeed {
        /// Which.
        replica: ReplicaId,
    },
    /// To the primary.
    ToPrimary {
        /// Sender, receiver, epoch of the question.
        lineage: Lineage,
        /// What.
        message: ToPrimary,
    },
    /// Send the committed image to the receiver that answered [`ToPrimary::RebuildStarted`]: all that
    /// is not zeros, or with the mark's `from` every block, zeros as well, of the regions that were
    /// written since; each block read as committed, with the committed LSN at its read. Uncommitted entries reach the
    /// receiver on the WAL lane only, so that a cut leaves it with what was committed.
    StartBase {
        /// The session.
        mark: Incomplete,
        /// Where.
        addr: String,
        /// Sender, receiver, epoch.
        lineage: Lineage,
    },
    /// Stop sending or receiving base blocks of the session.
    StopBase {
        /// The session.
        session: RecoveryId,
    },
    /// Answer [`ToReplica::Fetch`]: entries from `prev + 1` up to at most `last`, as many as fit one
    /// message, at least one; none if the log does not have them any more. The driver reads them.
    SendFetched {
        /// Sender, receiver, epoch of the question.
        lineage: Lineage,
        /// The question's.
        request: u64,
        /// The LSN before the first entry.
        prev: Lsn,
        /// The last one wanted.
        last: Lsn,
    },
    /// Blocks of an [`Input::Scrub`] are settled.
    Scrubbed {
        /// Which.
        blocks: Vec<Lba>,
        /// What became of each.
        fate: Fate,
    },
    /// Answer [`ToReplica::ReadBlocks`]: read each block as it is logged now, and tell which of them match
    /// their checksums, with their content. No answer, if what was read may be of another LSN than the
    /// log's end: a checkpoint beyond it was begun meanwhile, or the log was cut.
    ///
    /// A primary that asks itself ([`super::scrub`]) is both sender and receiver: what it would have been
    /// told is fed in as an [`Input::FromReplica`].
    SendBlocks {
        /// Sender, receiver, epoch of the question.
        lineage: Lineage,
        /// The question's.
        request: u64,
        /// The log's end.
        at: Lsn,
        /// Which.
        blocks: Vec<Lba>,
    },
    /// Ask the masters; [`Input::Answered`] follows.
    Propose(Proposal),
    /// The stream may send requests.
    StreamOpened {
        /// Which.
        stream: StreamId,
        /// In which epoch.
        epoch: Epoch,
        /// The session's attach generation.
        attach: AttachGeneration,
        /// The volume's loss generation.
        loss_generation: LossGeneration,
    },
    /// The stream is over; requests on it that were not answered won't be.
    StreamEnded {
        /// Which.
        stream: StreamId,
        /// Why.
        reason: StreamEnd,
    },
    /// A request's answer.
    Answer {
        /// The stream.
        stream: StreamId,
        /// The request.
        tag: RequestTag,
        /// How it ended.
        outcome: Outcome,
    },
    /// Something worth keeping in the volume's trace.
    Trace(super::trace::TraceEvent),
}
