//! A client of the volume behind the real forwarder of its frontend.

use std::collections::BTreeMap;

use sbk_engine::forward::{
    Answer, ByteRange, ClientId, Forwarder, Input, LinkId, Op, Output, Params, RequestId,
};
use sbk_engine::replication::io::StreamId;
use sbk_engine::types::{BLOCK_SIZE, LossGeneration, Millis, SessionId, VolumeId};
use uuid::Uuid;

use super::attachments::{Holder, Rank};
use super::content::{BLOCKS, PART_AT, PART_BYTES, Seen, address};
use super::event::Event;
use super::history::{History, Place};
use super::rng::Rng;
use super::sizes::{Beyond, Kind};

/// Unanswered writes and unanswered reads that a client has at most, each: writes that hang at a
/// primary which was cut off must not keep it from reading there.
const IN_FLIGHT: usize = 4;

/// Something that the client waits for.
#[derive(Clone, Copy, Debug)]
struct Asked {
    op: Op,
    block: u64,
    /// A write's.
    value: u64,
    invoked: u64,
}

/// A stream to a primary, in use or being opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    pub(crate) link: LinkId,
    pub(crate) stream: StreamId,
    pub(crate) node: usize,
}

#[derive(Debug)]
pub(crate) struct Client {
    number: u64,
    volume: VolumeId,
    params: Params,
    forwarder: Forwarder,
    sessions: u64,
    next_request: u64,
    asked: BTreeMap<RequestId, Asked>,
    /// What is to be sent: a request that is sent and given up in one step was unanswered when its
    /// turn came.
    outbox: BTreeMap<RequestId, (Op, u64)>,
    /// What answered reads saw, until the forwarder passes the answer on.
    seen: BTreeMap<RequestId, Seen>,
    /// Whose the sequences are that went out on the line.
    pub(crate) sent: BTreeMap<u64, RequestId>,
    pub(crate) line: Option<Line>,
    pub(crate) heard: u64,
    /// It takes a line that is silent for so long for broken.
    pub(crate) patience: u64,
    /// It hears nothing of the masters.
    pub(crate) apart: bool,
    /// It only reads: a write that hangs holds up the reads of its block.
    pub(crate) reads_only: bool,
    pub(crate) given_up: u64,
    /// Its attachment, among all.
    pub(crate) holder: Holder,
    /// Whether it wants the volume for itself.
    pub(crate) exclusive: bool,
    /// Exclusive: in which loss generation it was told what it takes the volume from.
    pub(crate) told_over: Option<LossGeneration>,
    /// It stands still from a time to another, and what reaches it meanwhile waits.
    pub(crate) pause: Option<(u64, u64)>,
    pub(crate) waiting: Vec<Event>,
    /// It leaves in order, and then has left.
    pub(crate) leaves: bool,
    pub(crate) has_left: bool,
    /// Its number at the frontend, another one each time it attaches.
    attachment: u64,
    /// The loss generation that its view of the volume rests on; `None` before its first link.
    pub(crate) attached: Option<LossGeneration>,
    /// The generations of the line, once it is open.
    pub(crate) open_in: Option<Rank>,
    /// The newest loss generation that its frontend was told.
    told: LossGeneration,
    /// The volume is deleted.
    pub(crate) deleted: bool,
    /// Whether it uses blocks beyond the first size, and what is in them.
    pub(crate) goes_beyond: bool,
    pub(super) beyond: Beyond,
}

impl Client {
    pub(crate) fn new(number: u64, volume: VolumeId, io_timeout_ms: Option<u64>) -> Self {
        let params = Params { io_timeout_ms, ..Params::default() };
        Self {
            number,
            volume,
            params,
            forwarder: Forwarder::new(volume, params),
            sessions: 0,
            next_request: 1,
            asked: BTreeMap::new(),
            outbox: BTreeMap::new(),
            seen: BTreeMap::new(),
            sent: BTreeMap::new(),
            line: None,
            heard: 0,
            patience: 1_500,
            apart: false,
            reads_only: false,
            given_up: 0,
            holder: Holder(number),
            exclusive: false,
            told_over: None,
            pause: None,
            waiting: Vec::new(),
            leaves: false,
            has_left: false,
            attachment: 1,
            attached: None,
            open_in: None,
            told: LossGeneration(0),
            deleted: false,
            goes_beyond: false,
            beyond: Beyond::default(),
        }
    }

    /// Its frontend has a link in a loss generation.
    pub(crate) fn opened(&mut self, rank: Rank) {
        let (loss, _) = rank;
        self.told = loss;
        self.open_in = Some(rank);
        self.attached.get_or_insert(loss);
    }

    /// Whether a loss came since it attached.
    pub(crate) fn is_stale(&self) -> bool {
        self.attached.is_some_and(|attached| attached < self.told)
    }

    /// Whether an answer to the sequence is for a request that it has not given up.
    pub(crate) fn waits_for(&self, sequence: u64) -> bool {
        self.sent.get(&sequence).is_some_and(|request| self.asked.contains_key(request))
    }

    /// Leaves and comes back: what it waited for it gives up. Its old and new number.
    pub(crate) fn renew(&mut self, history: &mut History, holder: Holder) -> (u64, u64) {
        self.holder = holder;
        for asked in std::mem::take(&mut self.asked).into_values() {
            self.given_up += 1;
            history.gave_up(asked.value);
        }
        self.outbox.clear();
        self.beyond.give_up();
        // A frontend whose link is open takes a client in at once.
        self.open_in = self.line.and(self.open_in);
        self.attached = self.open_in.map(|(loss, _)| loss);
        self.attachment += 1;
        (self.attachment - 1, self.attachment)
    }

    /// Goes to another frontend, which knows nothing.
    pub(crate) fn replace(&mut self, exclusive: bool) {
        let make = if exclusive { Forwarder::exclusive } else { Forwarder::new };
        self.forwarder = make(self.volume, self.params);
        self.exclusive = exclusive;
        self.told_over = None;
        (self.attached, self.open_in) = (None, None);
        (self.leaves, self.has_left) = (false, false);
        self.seen.clear();
        self.sent.clear();
    }

    /// Whether all it gets is errors, until it attaches again.
    pub(crate) fn has_ended(&self) -> bool {
        self.forwarder.has_ended() && !self.is_stale()
    }

    /// Whether it asks for nothing any more.
    pub(crate) fn is_leaving(&self) -> bool {
        self.leaves
    }

    /// Whether it stands still.
    pub(crate) fn is_paused(&self, now: u64) -> bool {
        self.pause.is_some_and(|(from, until)| (from..until).contains(&now))
    }

    /// The newest session.
    pub(crate) fn session(&self) -> SessionId {
        let id = u128::from(self.number + 1) << 64 | u128::from(self.sessions);
        SessionId(Uuid::from_u128(id))
    }

    /// Sessions that the log did not know any more.
    pub(crate) fn lost_sessions(&self) -> u64 {
        self.sessions.saturating_sub(1)
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.asked.is_empty() && self.forwarder.is_idle()
    }

    pub(crate) fn waits(&self) -> bool {
        !self.asked.is_empty() || !self.forwarder.is_idle()
    }

    pub(crate) fn deadline(&self) -> Option<Millis> {
        self.forwarder.next_deadline()
    }

    /// Takes a fact. What the client learns of its requests goes into the history; the rest is for
    /// the network.
    pub(crate) fn step(&mut self, now: u64, history: &mut History, input: Input) -> Vec<Output> {
        let mut left = Vec::new();
        let (_, outputs) = self.forwarder.step(Millis(now), input);
        for output in outputs {
            match output {
                Output::NeedSession => {
                    self.sessions += 1;
                    let session = self.session();
                    left.extend(self.step(now, history, Input::Session(session)));
                }
                Output::Answer { request, answer } => self.answered(history, request, &answer),
                Output::Send { request, .. } => {
                    let asked = self.asked.get(&request).expect("unanswered requests are sent");
                    self.outbox.insert(request, (asked.op, asked.value));
                    left.push(output);
                }
                Output::Attached(_) | Output::Refused { .. } => {}
                other @ (Output::Open { .. }
                | Output::CloseLink(_)
                | Output::SendDetach { .. }
                | Output::Closed) => left.push(other),
            }
        }
        left
    }

    /// Begins a request, unless enough are in flight.
    pub(crate) fn begin(
        &mut self,
        rng: &mut Rng,
        history: &mut History,
        blocks: u64,
        value: u64,
    ) -> Option<Input> {
        if self.goes_beyond && rng.chance(40) {
            return self.begin_beyond(rng, history, value);
        }
        let block = rng.below(blocks);
        let at = address(block) * BLOCK_SIZE;
        let whole = ByteRange { offset: at, length: BLOCK_SIZE };
        let part = ByteRange { offset: at + PART_AT as u64, length: PART_BYTES as u64 };
        let op = match rng.below(10) {
            _ if self.reads_only => Op::Read(whole),
            0..=3 => Op::Read(whole),
            4..=7 => Op::Write(whole),
            8 => Op::Write(part),
            _ => Op::Flush,
        };
        let reads = |op: Op| matches!(op, Op::Read(_));
        let alike = self.asked.values().filter(|asked| reads(asked.op) == reads(op)).count();
        if alike >= IN_FLIGHT {
            return None;
        }
        let place = if op == Op::Write(part) { Place::Part } else { Place::Whole };
        Some(self.submit(history, block, place, op, value))
    }

    /// Begins a request to a block beyond the first size, unless one is under way.
    fn begin_beyond(&mut self, rng: &mut Rng, history: &mut History, value: u64) -> Option<Input> {
        let (block, kind) = self.beyond.draw(rng, self.number)?;
        let range = ByteRange { offset: address(block) * BLOCK_SIZE, length: BLOCK_SIZE };
        let op = match kind {
            Kind::Read => Op::Read(range),
            Kind::Write => Op::Write(range),
            Kind::Trim => Op::Trim(range),
        };
        self.beyond.ask(block, op, value);
        Some(self.submit(history, block, Place::Whole, op, value))
    }

    /// Writes all of a block.
    pub(crate) fn overwrite(&mut self, history: &mut History, block: u64, value: u64) -> Input {
        let op = Op::Write(ByteRange { offset: address(block) * BLOCK_SIZE, length: BLOCK_SIZE });
        self.submit(history, block, Place::Whole, op, value)
    }

    fn submit(
        &mut self,
        history: &mut History,
        block: u64,
        place: Place,
        op: Op,
        value: u64,
    ) -> Input {
        let invoked = history.now();
        if matches!(op, Op::Write(_)) && block < BLOCKS {
            history.write(value, block, place, (self.number, self.holder));
        }
        let request = RequestId(self.next_request);
        self.next_request += 1;
        self.asked.insert(request, Asked { op, block, value, invoked });
        Input::Submit { client: ClientId(self.attachment), request, op }
    }

    /// The bytes of a request, as the one number that stands for them here.
    pub(crate) fn payload(&mut self, request: RequestId) -> (Op, u64) {
        self.outbox.remove(&request).expect("what is sent was put into the outbox")
    }

    /// Whether the sequence is an unanswered read's (`Some(true)`) or write's (`Some(false)`).
    pub(crate) fn reads(&self, sequence: u64) -> Option<bool> {
        match self.asked.get(self.sent.get(&sequence)?)?.op {
            Op::Read(_) => Some(true),
            Op::Write(_) | Op::Trim(_) | Op::Zero(_) => Some(false),
            Op::Flush => None,
        }
    }

    /// What the answer to a sequence brought.
    pub(crate) fn saw(&mut self, sequence: u64, seen: Seen) {
        if let Some(request) = self.sent.get(&sequence) {
            self.seen.insert(*request, seen);
        }
    }

    fn answered(&mut self, history: &mut History, request: RequestId, answer: &Answer) {
        let seen = self.seen.remove(&request);
        let Some(asked) = self.asked.remove(&request) else { return };
        if asked.block >= BLOCKS {
            return self.beyond.answered(asked.block, answer, seen);
        }
        match answer {
            Answer::Done => {}
            // Given up, or in flight when its session was lost: its fate stays unknown.
            Answer::Failed(_) => {
                self.given_up += 1;
                history.gave_up(asked.value);
                return;
            }
            Answer::Deleted if self.deleted => {
                history.gave_up(asked.value);
                return;
            }
            Answer::Invalid(_) | Answer::Deleted => panic!("I8: {asked:?} ended as {answer:?}"),
        }
        match asked.op {
            Op::Read(_) => {
                let seen = seen.expect("an answered read brings its data");
                history.read(asked.block, seen, asked.invoked, self.told);
                history.check_holder(self.holder, asked.invoked);
            }
            Op::Write(_) => {
                history.written(asked.value, self.told);
                history.check_holder(self.holder, asked.invoked);
            }
            Op::Trim(_) | Op::Zero(_) | Op::Flush => {}
        }
    }
}
