//! What reaches a volume task from outside.

use std::sync::Arc;

use bytes::Bytes;
use sbk_engine::authority::Limits;
use sbk_engine::recovery::FailureKind;
use sbk_engine::replication::io::{Fate, ProposalId, StreamId};
use sbk_engine::replication::log::{BlockRange, RequestTag};
use sbk_engine::replication::message::{Lineage, RecoveryId, ToPrimary, ToReplica};
use sbk_engine::types::{Config, Epoch, Incarnation, Lba, Lsn, ReplicaId, Wish};
use sbk_proto::v1;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use crate::link::{Link, OpenLink};
use crate::transport::{Answers, Beside, EntriesLost, WireEntry};

/// An answer, with what travels beside it.
pub type Answer = (Lineage, ToPrimary, Beside);

/// Where a replica's answer to the primary goes.
#[derive(Debug)]
pub enum AnswerPath {
    /// A unary call's response.
    Call(oneshot::Sender<Answer>),
    /// The feed that the message came on; acknowledgements go there until another feed comes.
    Feed(Arc<Answers>),
    /// The base lane that the message came on.
    Base(Arc<Answers>),
}

/// Numbers the outgoing streams of one volume task, so that what an abandoned one still reports
/// is told from its successor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LaneId(pub u64);

/// From other replicas, and about the streams to them.
#[derive(Debug)]
pub enum PeerEvent {
    /// A primary, or one that thinks it is, said something. The entries' CRCs were checked.
    FromPrimary {
        lineage: Lineage,
        message: ToReplica,
        entries: Vec<WireEntry>,
        answers: AnswerPath,
    },
    /// A replica answered. The CRCs of fetched entries and of blocks were checked.
    FromReplica { lineage: Lineage, message: ToPrimary, beside: Beside },
    /// A unary call failed. Of which run it was asked does not matter: it is observation only.
    Unreachable { replica: ReplicaId, refused: bool },
    /// A feed ended that was not reset.
    FeedBroken { replica: ReplicaId, lane: LaneId, refused: bool },
    /// Entries for a feed could not be read any more; the feed has ended.
    FeedFailed { replica: ReplicaId, lane: LaneId, lost: EntriesLost },
    /// An entry of this node's own log could not be read for a candidate, in an opening of it. It says
    /// nothing of a log that was cut since.
    LogUnreadable { incarnation: Incarnation, generation: u64, lsn: Lsn, what: String },
    /// Blocks that the primary asked for don't match their checksums here either.
    AskedRotten { incarnation: Incarnation, blocks: Vec<Lba>, why: String },
    /// The own blocks were looked at, in an opening of the store, for a search of its primary.
    DataFound { incarnation: Incarnation, search: u64, found: Option<Lba>, error: Option<String> },
    /// Blocks of a request were looked at, in an opening of the store: whether any may hold nothing.
    HolesFound { incarnation: Incarnation, stream: StreamId, tag: RequestTag, holes: bool },
    /// Receiver: base blocks of a session, their CRC checked.
    BaseBlocks {
        session: RecoveryId,
        lineage: Lineage,
        lba: Lba,
        data: Bytes,
        answers: Arc<Answers>,
    },
    /// Receiver: base blocks of a session that are zeros.
    BaseZeros { session: RecoveryId, lineage: Lineage, range: BlockRange, answers: Arc<Answers> },
    /// Receiver: region LSNs of a session.
    BaseRegions { session: RecoveryId, lineage: Lineage, first: u64, lsns: Vec<Lsn> },
    /// Receiver: the sender has sent all.
    BaseEnd { session: RecoveryId, lineage: Lineage, answers: Arc<Answers> },
    /// Receiver: a base lane that carried a session ended.
    BaseLost { session: RecoveryId, answers: Arc<Answers> },
    /// Sender: blocks for the base lane of a session don't match their checksums. It is about to break.
    BaseRotten { session: RecoveryId, blocks: Vec<Lba>, why: String },
    /// Sender: the base lane of a session broke.
    BaseFailed { session: RecoveryId, lane: LaneId, cause: FailureKind },
    /// Sender: bytes that the receiver took.
    BaseProgress { session: RecoveryId, bytes: u64 },
    /// Sender: the receiver took everything.
    BaseSent { session: RecoveryId, through: Lsn },
}

/// Who takes the digests of a verification.
#[derive(Debug)]
pub struct VerifyReader {
    /// Where they go.
    pub out: mpsc::Sender<Result<v1::VerifyRegion, tonic::Status>>,
    /// Its place among the verifications that may run at a time.
    pub place: OwnedSemaphorePermit,
}

/// What became of each block of a scrub's order.
pub type Scrubbed = std::collections::BTreeMap<Lba, Fate>;

/// Who waits for the outcome of a scrub's order.
#[derive(Debug)]
pub struct ScrubWaiter {
    /// Where it goes.
    pub done: oneshot::Sender<Result<Scrubbed, tonic::Status>>,
    /// Its place among the orders that may be under way at a time.
    pub place: OwnedSemaphorePermit,
}

/// From the node that the task runs on.
#[derive(Debug)]
pub enum Control {
    /// A configuration from the masters.
    Assignment(Config),
    /// What the masters want of the volume's primary.
    Wish(Wish),
    /// What the volume's clients may do, from now on.
    Limits(Limits),
    /// The node is about to stop: what is primary here is to be handed over.
    Resign,
    /// The masters want the run `incarnation` to take over.
    Stand { incarnation: Incarnation, epoch: Epoch },
    /// The masters deleted the volume, or took this replica off its list.
    Deleted,
    /// The masters' answer to a proposal of the run `incarnation`.
    Answered { incarnation: Incarnation, proposal: ProposalId, config: Option<Config> },
    /// A frontend wants to send requests.
    Open { open: OpenLink, link: oneshot::Sender<Link> },
    /// Digests of the committed image, `regions` from `first` on (0: to the end).
    Verify { first: u64, regions: u64, reader: VerifyReader },
    /// Blocks that are damaged on an in-sync replica, ascending, at least one.
    Scrub { blocks: Vec<Lba>, waiter: ScrubWaiter },
}
