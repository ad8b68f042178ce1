//! A client that keeps its place: what was not answered is sent again on a new stream, in order.

use std::collections::BTreeMap;

use sbk_engine::replication::io::{Op, Outcome, Request, StreamEnd, StreamId};
use sbk_engine::replication::log::{BlockRange, RequestTag};
use sbk_engine::types::{AttachGeneration, Epoch, Lba, LossGeneration, ReplicaId, SessionId};
use uuid::Uuid;

use crate::history::History;
use crate::rng::Rng;

/// Something in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    pub(crate) op: Op,
    pub(crate) block: u64,
    /// A write's.
    pub(crate) value: u64,
    invoked: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Client {
    number: u64,
    sessions: u64,
    next_sequence: u64,
    low: u64,
    pub(crate) pending: BTreeMap<u64, Pending>,
    opened_once: bool,
    pub(crate) stream: Option<(StreamId, ReplicaId)>,
    attach: AttachGeneration,
    epoch: Epoch,
    pub(crate) loss: Option<LossGeneration>,
    pub(crate) open: bool,
    pub(crate) heard: u64,
    pub(crate) lost_sessions: u64,
}

impl Client {
    pub(crate) fn new(number: u64) -> Self {
        Self {
            number,
            sessions: 0,
            next_sequence: 1,
            low: 0,
            pending: BTreeMap::new(),
            opened_once: false,
            stream: None,
            attach: AttachGeneration(0),
            epoch: Epoch(0),
            loss: None,
            open: false,
            heard: 0,
            lost_sessions: 0,
        }
    }

    pub(crate) fn session(&self) -> SessionId {
        SessionId(Uuid::from_u128(u128::from(self.number + 1) << 64 | u128::from(self.sessions)))
    }

    pub(crate) fn create(&self) -> bool {
        !self.opened_once
    }

    /// Begins a request, unless enough are in flight.
    pub(crate) fn begin(
        &mut self,
        rng: &mut Rng,
        history: &mut History,
        blocks: u64,
        value: u64,
    ) -> Option<Request> {
        if !self.open || self.pending.len() >= 6 {
            return None;
        }
        let block = rng.below(blocks);
        let range = BlockRange { lba: Lba(block), blocks: 1 };
        let op = match rng.below(10) {
            0..=3 => Op::Read(range),
            4..=7 => Op::Write(range),
            8 => Op::PartialWrite(range),
            _ => Op::Flush,
        };
        let invoked = history.now();
        if matches!(op, Op::Write(_) | Op::PartialWrite(_)) {
            history.write(value, block);
        }
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.pending.insert(sequence, Pending { op, block, value, invoked });
        Some(self.request(sequence, op))
    }

    fn request(&self, sequence: u64, op: Op) -> Request {
        let tag = RequestTag { session: self.session(), sequence };
        Request { tag, low: self.low, epoch: self.epoch, attach: self.attach, op }
    }

    pub(crate) fn opened(
        &mut self,
        epoch: Epoch,
        attach: AttachGeneration,
        loss: LossGeneration,
    ) -> Vec<Request> {
        self.open = true;
        self.opened_once = true;
        self.epoch = epoch;
        self.attach = attach;
        self.loss = Some(loss);
        self.pending.iter().map(|(sequence, pending)| self.request(*sequence, pending.op)).collect()
    }

    pub(crate) fn ended(&mut self, reason: &StreamEnd) {
        self.open = false;
        self.stream = None;
        if *reason == StreamEnd::SessionLost {
            // What was in flight ends with an I/O error: its fate stays unknown.
            self.sessions += 1;
            self.lost_sessions += 1;
            self.opened_once = false;
            self.pending.clear();
            self.next_sequence = 1;
            self.low = 0;
            self.loss = None;
        }
    }

    pub(crate) fn answered(
        &mut self,
        history: &mut History,
        sequence: u64,
        outcome: &Outcome,
        value: u64,
    ) {
        let Some(pending) = self.pending.remove(&sequence) else { return };
        assert_eq!(*outcome, Outcome::Done, "a request failed: {pending:?}");
        match pending.op {
            Op::Read(_) => history.read(pending.block, value, pending.invoked),
            Op::Write(_) | Op::PartialWrite(_) => history.written(pending.value),
            Op::Trim(_) | Op::Zero(_) | Op::Flush | Op::Detach => {}
        }
        self.low = self.pending.keys().next().map_or(self.next_sequence - 1, |first| first - 1);
    }
}
