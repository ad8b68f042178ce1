//! A frontend's session as a model: one stream at a time, unresolved requests first on a new one.
//! The real one is in the simulator.

use sbk_engine::replication::io::{Attach, OpenStream, StreamId};
use sbk_engine::replication::log::RequestTag;
use sbk_engine::types::{AttachGeneration, Epoch, LossGeneration, NodeId, SessionId};
use serde::Serialize;
use uuid::Uuid;

/// A stream that the client asked for or has.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Stream {
    pub(crate) id: StreamId,
    pub(crate) node: usize,
    /// In which epoch the node was primary when it was asked.
    pub(crate) epoch: Epoch,
    /// What it was opened with.
    pub(crate) opened: Option<(Epoch, AttachGeneration)>,
    /// Requests sent on it, of those that were not answered before.
    pub(crate) sent: usize,
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Client {
    session: SessionId,
    /// Requests of before, all answered.
    settled: usize,
    /// Its requests in the history, in order.
    pub(crate) ops: Vec<usize>,
    /// Those that were answered.
    pub(crate) done: Vec<bool>,
    pub(crate) stream: Option<Stream>,
    created: bool,
    streams: u64,
    /// How many it sends without an answer.
    window: usize,
}

impl Client {
    pub(crate) fn new(number: usize, window: usize) -> Self {
        Self {
            session: SessionId(Uuid::from_u128(50 + number as u128)),
            settled: 0,
            ops: Vec::new(),
            done: Vec::new(),
            stream: None,
            created: false,
            streams: 100 * (1 + number as u64),
            window,
        }
    }

    /// Asks for a stream at a node.
    pub(crate) fn open(&mut self, node: usize, epoch: Epoch) -> OpenStream {
        self.streams += 1;
        let id = StreamId(self.streams);
        self.stream = Some(Stream { id, node, epoch, opened: None, sent: 0 });
        OpenStream {
            stream: id,
            session: self.session,
            attach: match self.created {
                true => Attach::Again(AttachGeneration(0)),
                false => Attach::Shared,
            },
            node: NodeId(Uuid::nil()),
            loss_generation: self.created.then_some(LossGeneration(0)),
        }
    }

    pub(crate) fn opened(&mut self, id: StreamId, epoch: Epoch, attach: AttachGeneration) {
        if let Some(stream) = self.stream.as_mut().filter(|stream| stream.id == id) {
            stream.opened = Some((epoch, attach));
            self.created = true;
        }
    }

    /// The next request to send: which, by its number in the session, and the low-water mark.
    pub(crate) fn next(&self) -> Option<(usize, u64)> {
        let stream = self.stream.filter(|stream| stream.opened.is_some())?;
        let open: Vec<usize> = (0..self.ops.len()).filter(|i| !self.done[*i]).collect();
        let next = *open.iter().find(|i| **i >= stream.sent)?;
        let flying = open.iter().filter(|i| **i < stream.sent).count();
        let low = self.done.iter().take_while(|done| **done).count();
        (flying < self.window).then_some((next, (self.settled + low) as u64))
    }

    pub(crate) fn tag(&self, number: usize) -> RequestTag {
        RequestTag { session: self.session, sequence: (1 + self.settled + number) as u64 }
    }

    /// Which of its requests a name means.
    pub(crate) fn number(&self, tag: RequestTag) -> usize {
        tag.sequence as usize - 1 - self.settled
    }

    /// All that was asked for so far is answered; what follows is counted anew.
    pub(crate) fn settled(&mut self) {
        self.settled += self.ops.len();
        self.ops.clear();
        self.done.clear();
        if let Some(stream) = &mut self.stream {
            stream.sent = 0;
        }
    }
}
