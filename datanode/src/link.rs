//! The link between a frontend and the volume task of a primary.
//!
//! A frontend on the primary's own node holds the two channels directly; one on another node has
//! the `BlockService` stream in between. Both ends see the same types, so neither knows.

use bytes::Bytes;
use sbk_engine::replication::io::StreamEnd;
use sbk_engine::types::{
    AttachGeneration, Config, Epoch, LossGeneration, ReplicaRef, SessionId, VolumeId,
};
use tokio::sync::mpsc;

/// Requests that one link holds in its queue. The frontend's own window
/// ([`SEQUENCE_WINDOW`](sbk_engine::types::SEQUENCE_WINDOW)) bounds what is in flight.
pub const LINK_QUEUE: usize = 256;

/// A frontend's wish to send requests to a primary.
#[derive(Clone, Debug)]
pub struct OpenLink {
    /// The volume.
    pub volume: VolumeId,
    /// The frontend's session.
    pub session: SessionId,
    /// Whether the session may be opened now; otherwise the log must know it.
    pub create: bool,
    /// The loss generation under which the session was opened; `None` for a new one.
    pub loss_generation: Option<LossGeneration>,
    /// The primary that the frontend means.
    pub primary: ReplicaRef,
}

/// One request on a link.
#[derive(Clone, Debug)]
pub struct IoRequest {
    /// Its number in the session, from 1.
    pub sequence: u64,
    /// The frontend knows the fate of every sequence up to this one.
    pub low: u64,
    /// The newest epoch that the frontend knows, at least the one of the stream's opening.
    pub epoch: Epoch,
    /// From the stream's opening.
    pub attach: AttachGeneration,
    /// What it asks for.
    pub op: IoOp,
}

/// What a request asks for. Offsets and lengths are bytes, multiples of 512. The blocks that a read,
/// a write, or a zero that is not of whole blocks touches are at most
/// [`MAX_REQUEST_BYTES`](sbk_engine::types::MAX_REQUEST_BYTES); frontends send longer ones in parts.
#[derive(Clone, Debug)]
pub enum IoOp {
    /// The newest committed data.
    Read { offset: u64, length: u64 },
    /// Acknowledged once committed.
    Write { offset: u64, data: Bytes },
    /// Reads as zeros, space may go. Rounded inwards to whole blocks.
    Trim { offset: u64, length: u64 },
    /// Reads as zeros, to the byte.
    Zero { offset: u64, length: u64 },
    /// All acknowledged before is durable.
    Flush,
    /// The session ends.
    Detach,
}

/// What comes back on a link. After `Ended`, or the channel's end, nothing more does.
#[derive(Clone, Debug)]
pub enum LinkEvent {
    /// Requests may be sent.
    Opened { epoch: Epoch, attach: AttachGeneration, loss_generation: LossGeneration },
    /// The stream is over; what was not answered was not answered.
    Ended { reason: StreamEnd, config: Option<Config> },
    /// A request's answer; `data` is a read's.
    Reply { sequence: u64, outcome: LinkOutcome, data: Bytes },
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkOutcome {
    /// Done.
    Done,
    /// Out of the volume's range or over a limit (EINVAL).
    Invalid(String),
    /// EIO.
    Failed(String),
}

/// A frontend's end of a link. Dropping it closes the stream.
#[derive(Debug)]
pub struct Link {
    /// Requests, in order.
    pub requests: mpsc::Sender<IoRequest>,
    /// Answers and the stream's fate.
    pub events: mpsc::Receiver<LinkEvent>,
}
