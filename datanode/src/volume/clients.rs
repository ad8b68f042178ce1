//! The frontends' streams at a volume task: their channels, and the bytes of requests that the
//! engine knows only by name.

use std::collections::BTreeMap;
use std::future::Future;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use sbk_engine::replication::io::{Op, Outcome, Request, StreamId};
use sbk_engine::replication::log::{BlockRange, RequestTag};
use sbk_engine::types::{BLOCK_SIZE, Lba, MAX_REQUEST_BYTES, SEQUENCE_WINDOW, SessionId};
use sbk_wal::is_zero;
use tokio::sync::mpsc;

mod holding;

use holding::{Holding, Waiting};

use crate::link::{IoOp, IoRequest, LINK_QUEUE, Link, LinkEvent, LinkOutcome};

/// Bytes addressed by a frontend come in these.
const SECTOR: u64 = 512;
/// Requests taken from one link in one turn.
const TAKE: usize = 64;
/// Payload bytes held for requests that were not logged, at which no more requests are taken.
const MAX_HELD_BYTES: u64 = 256 << 20;
/// Answers that wait for one frontend: one for each request that can be in flight, and the
/// stream's own events.
const LINK_EVENTS: usize = SEQUENCE_WINDOW as usize + 16;

/// What the engine needs no bytes of.
#[derive(Debug)]
enum Held {
    /// The payload of a write of whole blocks, or of any write once it was merged.
    Write(Bytes),
    /// The payload of a write that has to be merged at `at` bytes into its blocks.
    Partial { at: usize, data: Bytes },
    /// A read of `length` bytes, `at` bytes into its blocks; with the data once it was read.
    Read { at: usize, length: usize, data: Option<Bytes> },
    /// A look at which blocks are holes; with the answer once it was taken.
    Map { one: bool, data: Option<Bytes> },
    /// A request without bytes, or a write that was logged.
    Nothing,
}

impl Held {
    fn bytes(&self) -> u64 {
        let length = match self {
            Held::Write(data) | Held::Partial { data, .. } => data.len(),
            // Counted from the start, for the answer will need them.
            Held::Read { length, .. } => *length,
            // Small, and a range is looked at only to a limit.
            Held::Map { .. } | Held::Nothing => 0,
        };
        length as u64
    }
}

#[derive(Debug)]
struct Stream {
    session: SessionId,
    requests: mpsc::Receiver<IoRequest>,
    events: mpsc::Sender<LinkEvent>,
    /// Whether the frontend was told that it may send requests.
    open: bool,
    /// Requests without an answer, by sequence.
    held: BTreeMap<u64, Held>,
    /// What of it waits for the volume's limits.
    waiting: Waiting,
}

/// All streams of one task.
#[derive(Debug, Default)]
pub(super) struct Clients {
    streams: BTreeMap<StreamId, Stream>,
    held_bytes: u64,
    /// The stream that is asked first next time, so that none starves.
    turn: Option<StreamId>,
    /// The volume's limits.
    holding: Holding,
}

/// What came from the frontends in one turn.
#[derive(Debug)]
pub(super) enum FromClient {
    /// A request.
    Request(StreamId, IoRequest),
    /// The frontend dropped its link.
    Gone(StreamId),
}

/// What becomes of a request before the engine sees it.
pub(super) enum Admitted {
    /// It goes to the engine.
    Request(Request),
    /// It was answered.
    Answered,
    /// The frontend breaks the protocol, in this way; its stream must end. The numbers of requests
    /// are what their bytes are found by: a frontend that uses one twice at a time would have
    /// its answers mixed up, or blocks written with another request's bytes.
    Violation(&'static str),
}

impl Clients {
    /// Adds a stream and returns the frontend's end.
    pub(super) fn add(&mut self, stream: StreamId, session: SessionId) -> Link {
        let (to_task, requests) = mpsc::channel(LINK_QUEUE);
        let (events, to_frontend) = mpsc::channel(LINK_EVENTS);
        let (open, held, waiting) = (false, BTreeMap::new(), Waiting::default());
        let new = Stream { session, requests, events, open, held, waiting };
        self.streams.insert(stream, new);
        Link { requests: to_task, events: to_frontend }
    }

    pub(super) fn len(&self) -> usize {
        self.streams.len()
    }

    pub(super) fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// Whether there is room to take more requests.
    pub(super) fn has_room(&self) -> bool {
        self.held_bytes < MAX_HELD_BYTES
    }

    /// Takes what waits on the streams and may pass, some of each, in `taken`. Pending if nothing does.
    pub(super) fn poll_take(
        &mut self,
        cx: &mut Context<'_>,
        taken: &mut Vec<FromClient>,
    ) -> Poll<()> {
        if self.is_limited() {
            return self.poll_limited(cx, taken);
        }
        let after = self.turn;
        let order: Vec<StreamId> = self
            .streams
            .range((
                after.map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded),
                std::ops::Bound::Unbounded,
            ))
            .map(|(id, _)| *id)
            .chain(self.streams.keys().copied().take_while(|id| Some(*id) <= after))
            .collect();
        let mut requests = Vec::new();
        for id in order {
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            // Nobody waits for the answers, and what was not taken was never logged. [A frontend that had died
            // was heard to its end: a write of its client came behind what that one had had acknowledged
            // elsewhere since.]
            if stream.requests.is_closed() {
                stream.waiting.next = None;
                taken.push(FromClient::Gone(id));
                continue;
            }
            // It waited for limits that are no more.
            taken.extend(stream.waiting.next.take().map(|r| FromClient::Request(id, r)));
            match stream.requests.poll_recv_many(cx, &mut requests, TAKE) {
                Poll::Ready(0) => taken.push(FromClient::Gone(id)),
                Poll::Ready(_) => {
                    taken.extend(requests.drain(..).map(|r| FromClient::Request(id, r)));
                }
                Poll::Pending => continue,
            }
            self.turn = Some(id);
        }
        if taken.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    }

    /// Forgets a stream whose frontend is gone or that has ended.
    pub(super) fn remove(&mut self, stream: StreamId) {
        if let Some(stream) = self.streams.remove(&stream) {
            self.held_bytes -= stream.held.values().map(Held::bytes).sum::<u64>();
        }
    }

    /// Tells a frontend something. One that doesn't read what it asked for loses its link.
    pub(super) fn tell(&mut self, stream: StreamId, event: LinkEvent) {
        let Some(told) = self.streams.get_mut(&stream) else { return };
        told.open |= matches!(event, LinkEvent::Opened { .. });
        if let Err(mpsc::error::TrySendError::Full(_)) = told.events.try_send(event) {
            tracing::warn!(stream = stream.0, "a frontend does not read its answers; cut off");
            // The closed queue is noticed in the next turn, which tells the engine.
            told.requests.close();
        }
    }

    /// Ends a stream for its frontend.
    pub(super) fn end(&mut self, stream: StreamId, event: LinkEvent) {
        self.tell(stream, event);
        self.remove(stream);
    }

    /// Every stream.
    pub(super) fn all(&self) -> Vec<StreamId> {
        self.streams.keys().copied().collect()
    }

    /// Turns bytes into blocks, and keeps what the engine does not carry.
    pub(super) fn admit(&mut self, stream: StreamId, io: IoRequest) -> Option<Admitted> {
        let from = self.streams.get(&stream)?;
        let session = from.session;
        let IoRequest { sequence, low, epoch, attach, op } = io;
        if !from.open {
            return Some(Admitted::Violation("a request before the stream was open"));
        }
        if from.held.contains_key(&sequence) {
            return Some(Admitted::Violation("two requests under one number at a time"));
        }
        let (op, held) = match blocks_of(op) {
            Ok(Shape::Engine(op, held)) => (op, held),
            Ok(Shape::Nothing) => {
                self.reply(stream, sequence, LinkOutcome::Done, Bytes::new());
                return Some(Admitted::Answered);
            }
            Err(why) => {
                self.reply(stream, sequence, LinkOutcome::Invalid(why), Bytes::new());
                return Some(Admitted::Answered);
            }
        };
        self.hold(stream, sequence, held);
        let tag = RequestTag { session, sequence };
        Some(Admitted::Request(Request { tag, low, epoch, attach, op }))
    }

    fn hold(&mut self, stream: StreamId, sequence: u64, held: Held) {
        let Some(stream) = self.streams.get_mut(&stream) else { return };
        self.held_bytes += held.bytes();
        if let Some(old) = stream.held.insert(sequence, held) {
            self.held_bytes -= old.bytes();
        }
    }

    fn take(&mut self, stream: StreamId, sequence: u64) -> Option<Held> {
        let held = self.streams.get_mut(&stream)?.held.remove(&sequence)?;
        self.held_bytes -= held.bytes();
        Some(held)
    }

    /// The payload of a write that is being logged. Of all streams of a session only the newest is
    /// alive, so the request's name finds it.
    pub(super) fn payload(&mut self, tag: RequestTag) -> Option<Bytes> {
        let streams = self.streams.iter().rev();
        let found = streams
            .filter(|(_, s)| s.session == tag.session)
            .find(|(_, s)| matches!(s.held.get(&tag.sequence), Some(Held::Write(_))))
            .map(|(id, _)| *id)?;
        let Held::Write(data) = self.take(found, tag.sequence)? else {
            panic!("request {} of session {} was found as a write", tag.sequence, tag.session)
        };
        self.hold(found, tag.sequence, Held::Nothing);
        Some(data)
    }

    /// The blocks of a request were read: a read's data waits for its answer, a partial write
    /// becomes one of whole blocks.
    pub(super) fn was_read(&mut self, stream: StreamId, tag: RequestTag, blocks: Bytes) {
        let merged = match self.take(stream, tag.sequence) {
            Some(Held::Partial { at, data }) => {
                let mut whole = BytesMut::from(blocks);
                whole[at..at + data.len()].copy_from_slice(&data);
                Held::Write(whole.freeze())
            }
            Some(Held::Read { at, length, data: _ }) => {
                Held::Read { at, length, data: Some(blocks.slice(at..at + length)) }
            }
            Some(Held::Map { one, data: _ }) => Held::Map { one, data: Some(blocks) },
            // The stream ended, or the request was answered otherwise.
            Some(held @ (Held::Write(_) | Held::Nothing)) => held,
            None => return,
        };
        self.hold(stream, tag.sequence, merged);
    }

    /// How many runs are wanted, if a read of the engine's is a look at which blocks are holes.
    pub(super) fn wants_runs(&self, stream: StreamId, tag: RequestTag) -> Option<usize> {
        match self.streams.get(&stream)?.held.get(&tag.sequence)? {
            Held::Map { one, .. } => Some(if *one { 1 } else { usize::MAX }),
            _ => None,
        }
    }

    /// Answers a request.
    pub(super) fn answer(&mut self, stream: StreamId, tag: RequestTag, outcome: Outcome) {
        let held = self.take(stream, tag.sequence);
        let (outcome, data) = match (outcome, held) {
            (
                Outcome::Done,
                Some(Held::Read { data: Some(data), .. } | Held::Map { data: Some(data), .. }),
            ) => (LinkOutcome::Done, data),
            (Outcome::Done, Some(Held::Read { data: None, .. } | Held::Map { data: None, .. })) => {
                panic!("read {} of session {} is done without data", tag.sequence, tag.session)
            }
            (Outcome::Done, Some(Held::Write(_) | Held::Partial { .. } | Held::Nothing) | None) => {
                (LinkOutcome::Done, Bytes::new())
            }
            (Outcome::Invalid(why), _) => (LinkOutcome::Invalid(why), Bytes::new()),
            (Outcome::Failed(why), _) => (LinkOutcome::Failed(why), Bytes::new()),
        };
        self.reply(stream, tag.sequence, outcome, data);
    }

    fn reply(&mut self, stream: StreamId, sequence: u64, outcome: LinkOutcome, data: Bytes) {
        self.tell(stream, LinkEvent::Reply { sequence, outcome, data });
    }
}

/// A request in blocks.
enum Shape {
    Engine(Op, Held),
    /// It covers nothing.
    Nothing,
}

/// The blocks that bytes lie in: `(range, offset of the first byte in it)`.
fn covering(offset: u64, length: u64) -> Result<(BlockRange, usize), String> {
    let end = offset.checked_add(length).ok_or("the request wraps around the address space")?;
    let first = offset / BLOCK_SIZE;
    let blocks = end.div_ceil(BLOCK_SIZE) - first;
    let blocks = u32::try_from(blocks).map_err(|_| "the request is too long; split it")?;
    let at = (offset - first * BLOCK_SIZE) as usize;
    Ok((BlockRange { lba: Lba(first), blocks }, at))
}

/// As [`covering`], for what becomes one entry with a payload, or one read.
fn limited(offset: u64, length: u64) -> Result<(BlockRange, usize), String> {
    let (range, at) = covering(offset, length)?;
    let bytes = u64::from(range.blocks) * BLOCK_SIZE;
    if bytes > MAX_REQUEST_BYTES {
        return Err(format!(
            "a request of {length} bytes at {offset} touches {bytes} bytes of blocks, more than \
             {MAX_REQUEST_BYTES}; split it"
        ));
    }
    Ok((range, at))
}

/// What a request is to the engine. Whole blocks of zeros are zeroed, however a client writes them: that needs no new space,
/// so it does not wait for any. [They were logged as data. On a disk that was short of room they waited where nothing was, for
/// even the stamp that says that a block is zeros would have taken space there.]
fn blocks_of(op: IoOp) -> Result<Shape, String> {
    let (offset, length) = match &op {
        IoOp::Read { offset, length }
        | IoOp::Map { offset, length, .. }
        | IoOp::Trim { offset, length }
        | IoOp::Zero { offset, length } => (*offset, *length),
        IoOp::Write { offset, data } => (*offset, data.len() as u64),
        IoOp::Flush => return Ok(Shape::Engine(Op::Flush, Held::Nothing)),
        IoOp::Detach => return Ok(Shape::Engine(Op::Detach, Held::Nothing)),
    };
    if !offset.is_multiple_of(SECTOR) || !length.is_multiple_of(SECTOR) {
        return Err(format!("{length} bytes at {offset} are not whole 512-byte sectors"));
    }
    if length == 0 {
        return Ok(Shape::Nothing);
    }
    let aligned = offset.is_multiple_of(BLOCK_SIZE) && length.is_multiple_of(BLOCK_SIZE);
    match op {
        IoOp::Read { .. } => {
            let (range, at) = limited(offset, length)?;
            let held = Held::Read { at, length: length as usize, data: None };
            Ok(Shape::Engine(Op::Read(range), held))
        }
        IoOp::Map { one, .. } if aligned => {
            let (range, _) = limited(offset, length)?;
            Ok(Shape::Engine(Op::Read(range), Held::Map { one, data: None }))
        }
        IoOp::Map { .. } => Err(format!("{length} bytes at {offset} are not whole blocks")),
        IoOp::Write { data, .. } => {
            let (range, at) = limited(offset, length)?;
            Ok(if aligned && is_zero(&data) {
                Shape::Engine(Op::Zero(range), Held::Nothing)
            } else if aligned {
                Shape::Engine(Op::Write(range), Held::Write(data))
            } else {
                Shape::Engine(Op::PartialWrite(range), Held::Partial { at, data })
            })
        }
        IoOp::Trim { .. } => {
            let end = offset.checked_add(length).ok_or("the request wraps around")?;
            let (first, end) = (offset.div_ceil(BLOCK_SIZE), end / BLOCK_SIZE);
            if end <= first {
                return Ok(Shape::Nothing);
            }
            let (range, _) = covering(first * BLOCK_SIZE, (end - first) * BLOCK_SIZE)?;
            Ok(Shape::Engine(Op::Trim(range), Held::Nothing))
        }
        IoOp::Zero { .. } if aligned => {
            let (range, _) = covering(offset, length)?;
            Ok(Shape::Engine(Op::Zero(range), Held::Nothing))
        }
        IoOp::Zero { .. } => {
            let (range, at) = limited(offset, length)?;
            let data = Bytes::from(vec![0; length as usize]);
            Ok(Shape::Engine(Op::PartialWrite(range), Held::Partial { at, data }))
        }
        IoOp::Flush | IoOp::Detach => unreachable!("answered above"),
    }
}

#[cfg(test)]
#[path = "clients_tests.rs"]
mod tests;
