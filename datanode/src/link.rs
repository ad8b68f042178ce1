//! The link between a frontend and the volume task of a primary.
//!
//! A frontend on the primary's own node holds the two channels directly; one on another node has
//! the `BlockService` stream in between. Both ends see the same types, so neither knows.

use bytes::Bytes;
use sbk_engine::replication::io::{Attach, StreamEnd};
use sbk_engine::types::{
    AttachGeneration, Config, Epoch, LossGeneration, NodeId, ReplicaRef, SessionId, VolumeId,
};
use sbk_store::Run;
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
    /// What the session is, or wants to be, to the volume.
    pub attach: Attach,
    /// The frontend's node.
    pub node: NodeId,
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
    /// Which blocks are holes, as a read would find them: whole blocks, at most
    /// [`MAX_REQUEST_BYTES`](sbk_engine::types::MAX_REQUEST_BYTES). Answered with [`runs_out`]; with the
    /// first run only if `one`.
    Map { offset: u64, length: u64, one: bool },
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
    /// The primary lives, and holds requests of this link back for the volume's limits.
    HeldBack,
    /// A request's answer; `data` is a read's or a map's.
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

/// The top bit of a run on the wire: it is a hole. The others count its blocks.
const HOLE: u32 = 1 << 31;

/// Runs of blocks as the data of a map's answer.
pub fn runs_out(runs: &[Run]) -> Bytes {
    let words = runs.iter().map(|run| run.blocks | if run.hole { HOLE } else { 0 });
    words.flat_map(u32::to_be_bytes).collect()
}

/// The runs of a map's answer, which must cover exactly `blocks`, or be one of no more.
pub fn runs_in(data: &[u8], blocks: u64, one: bool) -> Option<Vec<Run>> {
    let (words, rest) = data.as_chunks::<4>();
    let run = |word: &[u8; 4]| {
        let word = u32::from_be_bytes(*word);
        Run { blocks: word & !HOLE, hole: word & HOLE != 0 }
    };
    let runs: Vec<_> = words.iter().map(run).collect();
    let covered: u64 = runs.iter().map(|run| u64::from(run.blocks)).sum();
    let right = if one { runs.len() == 1 && covered <= blocks } else { covered == blocks };
    let sound = rest.is_empty() && right && runs.iter().all(|run| run.blocks > 0);
    sound.then_some(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_come_back_and_others_are_refused() {
        let runs = [Run { blocks: 3, hole: true }, Run { blocks: 70_000, hole: false }];
        let data = runs_out(&runs);
        assert_eq!(runs_in(&data, 70_003, false).as_deref(), Some(&runs[..]));
        assert_eq!(runs_in(&data, 70_002, false), None, "they cover more");
        assert_eq!(runs_in(&data[1..], 70_003, false), None, "cut short");
        assert_eq!(runs_in(&[0; 4], 0, false), None, "an empty run");
        assert_eq!(runs_in(&data, 70_003, true), None, "two, and one was asked for");
        assert_eq!(runs_in(&data[..4], 70_003, true).as_deref(), Some(&runs[..1]));
        assert_eq!(runs_in(&data[..4], 2, true), None, "longer than what was asked for");
    }
}
