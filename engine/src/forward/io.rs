//! What goes into a [`Forwarder`](super::Forwarder) and what comes out.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::replication::io::{Attach, Outcome, StreamEnd};
use crate::replication::log::BlockRange;
use crate::types::{
    AttachGeneration, BLOCK_SIZE, Config, Epoch, Lba, LossGeneration, NodeId, ReplicaRef, SessionId,
};

/// One client of the frontend, such as an NBD connection. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClientId(pub u64);

/// The driver's number for one request of a client. Each is greater than all before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u64);

/// One attempt at a link to a primary, numbered by the forwarder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LinkId(pub u64);

/// Bytes of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ByteRange {
    /// First byte.
    pub offset: u64,
    /// How many, 1 or more; at most 4 GiB.
    pub length: u64,
}

impl ByteRange {
    /// The blocks that the range touches, if only in part.
    pub fn blocks(&self) -> BlockRange {
        let first = self.offset / BLOCK_SIZE;
        let last = (self.offset + self.length.max(1) - 1) / BLOCK_SIZE;
        BlockRange { lba: Lba(first), blocks: u32::try_from(last - first + 1).unwrap_or(u32::MAX) }
    }
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// The newest committed data.
    Read(ByteRange),
    /// The bytes get a payload, which the driver holds until the answer.
    Write(ByteRange),
    /// The whole blocks within read as zeros and their space may go.
    Trim(ByteRange),
    /// The bytes read as zeros.
    Zero(ByteRange),
    /// All that was acknowledged before is durable.
    Flush,
}

impl Op {
    /// Bytes of payload that the request or its answer holds in memory.
    pub fn payload_len(&self) -> u64 {
        match self {
            Op::Read(range) | Op::Write(range) => range.length,
            Op::Trim(_) | Op::Zero(_) | Op::Flush => 0,
        }
    }

    /// The blocks that it reads or changes.
    pub fn blocks(&self) -> Option<BlockRange> {
        match self {
            Op::Read(r) | Op::Write(r) | Op::Trim(r) | Op::Zero(r) => Some(r.blocks()),
            Op::Flush => None,
        }
    }

    /// The blocks that it changes.
    pub fn changes(&self) -> Option<BlockRange> {
        match self {
            Op::Write(r) | Op::Trim(r) | Op::Zero(r) => Some(r.blocks()),
            Op::Read(_) | Op::Flush => None,
        }
    }
}

/// The longest time-out there is.
const CENTURY_MS: u64 = 100 * 365 * 24 * 3600 * 1000;

/// Limits of one forwarder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Params {
    /// Milliseconds after which an unanswered request is given up with an error; `None`: never.
    pub io_timeout_ms: Option<u64>,
    /// Payload bytes of unanswered requests at which no more are accepted; one request may pass it. With so
    /// many of requests that were given up in flight, the link is made anew.
    pub max_bytes: u64,
    /// Requests not yet sent at which no more are accepted.
    pub max_queued: usize,
    /// Milliseconds before a failed link is tried again: the first wait, doubled each time.
    pub retry_min_ms: u64,
    /// The longest such wait.
    pub retry_max_ms: u64,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            io_timeout_ms: Some(120_000),
            max_bytes: 128 << 20,
            max_queued: 1024,
            retry_min_ms: 10,
            retry_max_ms: 250,
        }
    }
}

impl Params {
    /// The default limits, but that an unanswered request is given up after `timeout` (to the
    /// millisecond, a century at most); zero: never.
    pub fn giving_up_after(timeout: Duration) -> Self {
        let millis = u64::try_from(timeout.as_millis()).unwrap_or(CENTURY_MS).clamp(1, CENTURY_MS);
        Self { io_timeout_ms: (!timeout.is_zero()).then_some(millis), ..Self::default() }
    }
}

/// A fact for the forwarder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// A client came.
    Attached(ClientId),
    /// A client is gone; its requests are given up and not answered.
    Detached(ClientId),
    /// A client's request. Only while [`Forwarder::can_accept`](super::Forwarder::can_accept).
    Submit {
        /// Whose.
        client: ClientId,
        /// Its number.
        request: RequestId,
        /// What.
        op: Op,
    },
    /// The fresh id that [`Output::NeedSession`] asked for.
    Session(SessionId),
    /// A configuration from the masters' catalogue. One that is not newer counts for nothing but
    /// its addresses.
    Config(Config),
    /// The volume was deleted.
    Deleted,
    /// The link may carry requests.
    LinkOpened {
        /// Which.
        link: LinkId,
        /// The epoch in which it was opened.
        epoch: Epoch,
        /// The session's attach generation.
        attach: AttachGeneration,
        /// The volume's loss generation.
        loss_generation: LossGeneration,
    },
    /// The primary, or a replica that is none, ended the link.
    LinkEnded {
        /// Which.
        link: LinkId,
        /// Why.
        reason: StreamEnd,
        /// The newest configuration that the replica knows.
        config: Option<Config>,
    },
    /// The link could not be made or broke.
    LinkLost(LinkId),
    /// A request's answer.
    Reply {
        /// On which link.
        link: LinkId,
        /// The request's sequence.
        sequence: u64,
        /// How it ended.
        outcome: Outcome,
    },
    /// The primary lives, and holds requests of this link back for the volume's limits.
    HeldBack(LinkId),
    /// No client will come: close the session once nothing is in flight.
    Close,
    /// Time passed.
    Tick,
}

/// What became of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It changed something.
    Applied,
    /// It did not.
    Ignored(Ignored),
}

/// Why an input changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ignored {
    /// It is of a link that is not the current one.
    StaleLink,
    /// The configuration is not newer than the known one.
    KnownConfig,
    /// The configuration is another volume's.
    WrongVolume,
    /// The client is not attached.
    UnknownClient,
    /// No session id was asked for.
    SessionNotNeeded,
    /// The volume is deleted; requests are answered so.
    Deleted,
}

/// How a request ended, for the client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// Done; a read's data came with the reply.
    Done,
    /// The primary refused its range or size.
    Invalid(String),
    /// An I/O error. A change of blocks may or may not have happened.
    Failed(String),
    /// The volume was deleted.
    Deleted,
}

/// Something to do, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Output {
    /// Draw a fresh session id and feed [`Input::Session`].
    NeedSession,
    /// Make a link; [`Input::LinkOpened`], [`Input::LinkEnded`] or [`Input::LinkLost`] follows.
    Open {
        /// Its number.
        link: LinkId,
        /// The primary's node.
        node: NodeId,
        /// `host:port` of its gRPC listener.
        addr: String,
        /// The replica that is meant.
        primary: ReplicaRef,
        /// The session.
        session: SessionId,
        /// What the session is, or wants to be, to the volume.
        attach: Attach,
        /// The loss generation of what `attach` names.
        loss_generation: Option<LossGeneration>,
    },
    /// Drop the link, or the attempt at one, and all that is queued on it.
    CloseLink(LinkId),
    /// Send a client's request.
    Send {
        /// On which link.
        link: LinkId,
        /// Which request.
        request: RequestId,
        /// Its sequence.
        sequence: u64,
        /// The low-water mark.
        low: u64,
        /// The newest epoch known.
        epoch: Epoch,
        /// From the link's opening.
        attach: AttachGeneration,
    },
    /// Send the session's end.
    SendDetach {
        /// On which link.
        link: LinkId,
        /// Its sequence.
        sequence: u64,
        /// The low-water mark.
        low: u64,
        /// The newest epoch known.
        epoch: Epoch,
        /// From the link's opening.
        attach: AttachGeneration,
    },
    /// The client's attachment stands. Told once.
    Attached(ClientId),
    /// The client's attachment came to nothing, and nothing that it asks for will be done.
    Refused {
        /// Whose.
        client: ClientId,
        /// Why.
        why: String,
    },
    /// Answer the client. The request's payload is not needed any more.
    Answer {
        /// Which request.
        request: RequestId,
        /// How it ended.
        answer: Answer,
    },
    /// The session is over: nothing is in flight and nothing will be sent.
    Closed,
}
