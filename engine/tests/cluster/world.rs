//! Everything together: nodes, masters, clients, a network and a clock.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use sbk_engine::recovery::FailureKind;
use sbk_engine::replication::io::{
    Input, OpenStream, Outcome, Output, Payload, Proposal, Request, StreamEnd, StreamId,
};
use sbk_engine::replication::log::RequestTag;
use sbk_engine::replication::message::{Incomplete, Lineage, RecoveryId, ToPrimary, ToReplica};
use sbk_engine::replication::{Params, Replica};
use sbk_engine::types::{
    AttachGeneration, Config, Epoch, LossGeneration, Lsn, Millis, ReplicaId, VolumeId,
};
use uuid::Uuid;

use crate::client::Client;
use crate::disk::{Disk, Entry};
use crate::history::History;
use crate::masters::{Masters, Report};
use crate::rng::Rng;

/// Few, so that requests meet on the same block.
const BLOCKS: u64 = 5;

/// Which faults occur, in percent of messages or at all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faults {
    pub(crate) loss: u64,
    pub(crate) repeat: u64,
    pub(crate) slow: u64,
    pub(crate) crash: bool,
    pub(crate) partition: bool,
    pub(crate) short_wal: bool,
}

impl Faults {
    pub(crate) fn none() -> Self {
        Self { loss: 0, repeat: 0, slow: 0, crash: false, partition: false, short_wal: false }
    }
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default)]
#[allow(dead_code, reason = "read through Debug")]
pub(crate) struct Summary {
    pub(crate) acknowledged: usize,
    pub(crate) reads: usize,
    epochs: u64,
    cuts: u64,
    rebuilds: u64,
    crashes: u64,
    lost_sessions: u64,
}

impl Summary {
    pub(crate) fn add(&mut self, other: &Summary) {
        self.acknowledged += other.acknowledged;
        self.reads += other.reads;
        self.epochs += other.epochs;
        self.cuts += other.cuts;
        self.rebuilds += other.rebuilds;
        self.crashes += other.crashes;
        self.lost_sessions += other.lost_sessions;
    }
}

#[derive(Clone, Debug)]
enum Event {
    ToReplica {
        lineage: Lineage,
        message: ToReplica,
        values: Vec<u64>,
    },
    ToPrimary {
        lineage: Lineage,
        message: ToPrimary,
    },
    Durable {
        node: usize,
        run: u64,
        generation: u64,
        lsn: Lsn,
    },
    Timer {
        node: usize,
        run: u64,
    },
    ReadDone {
        node: usize,
        run: u64,
        stream: StreamId,
        tag: RequestTag,
    },
    /// The base lane's image arrives.
    Base {
        lineage: Lineage,
        mark: Incomplete,
        image: BTreeMap<u64, u64>,
        read_at: Lsn,
    },
    BaseTaken {
        lineage: Lineage,
        session: RecoveryId,
        through: Lsn,
    },
    BaseRead {
        node: usize,
        run: u64,
        lineage: Lineage,
        mark: Incomplete,
    },
    /// A base lane whose end did not come is a broken stream.
    BaseOverdue {
        node: usize,
        run: u64,
        session: RecoveryId,
    },
    Propose {
        node: usize,
        run: u64,
        proposal: Proposal,
    },
    Answered {
        node: usize,
        run: u64,
        proposal: Proposal,
        config: Option<Config>,
    },
    Push {
        node: usize,
        config: Config,
    },
    Open {
        node: usize,
        open: OpenStream,
    },
    Ask {
        node: usize,
        stream: StreamId,
        request: Request,
        value: u64,
    },
    Opened {
        stream: StreamId,
        epoch: Epoch,
        attach: AttachGeneration,
        loss: LossGeneration,
    },
    Ended {
        stream: StreamId,
        reason: StreamEnd,
    },
    Answer {
        stream: StreamId,
        sequence: u64,
        outcome: Outcome,
        value: u64,
    },
    Restart {
        node: usize,
    },
    Resume {
        node: usize,
    },
    Mend,
    /// Clients, masters and faults have a turn.
    Beat,
}

struct Node {
    id: ReplicaId,
    disk: Disk,
    replica: Option<Replica>,
    run: u64,
    /// Deaf and still until resumed; what comes meanwhile waits.
    paused: bool,
    waiting: Vec<Event>,
    /// Cut off from the other nodes and the masters.
    apart: bool,
    /// Cut off from the clients too.
    unseen: bool,
    syncing: bool,
    timer: u64,
    /// Values of client writes and results of reads that the driver holds.
    values: BTreeMap<(StreamId, RequestTag), u64>,
}

pub(crate) struct World {
    rng: Rng,
    faults: Faults,
    now: u64,
    order: u64,
    queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    events: BTreeMap<usize, Event>,
    nodes: Vec<Node>,
    masters: Masters,
    clients: Vec<Client>,
    streams: BTreeMap<StreamId, (usize, usize)>,
    /// Requests of one stream arrive in order.
    arrivals: BTreeMap<(StreamId, bool), u64>,
    next_stream: u64,
    next_value: u64,
    history: History,
    healed: bool,
    volume: VolumeId,
    taken: BTreeSet<RecoveryId>,
    silent_since: Option<u64>,
    summary: Summary,
}

impl World {
    pub(crate) fn new(seed: u64, faults: Faults) -> Self {
        let volume = VolumeId(Uuid::from_u128(7));
        let ids: Vec<_> = (1..=3).map(|n| ReplicaId(Uuid::from_u128(n))).collect();
        let keep = if faults.short_wal { 8 } else { 100_000 };
        let nodes = ids.iter().map(|id| Node {
            id: *id,
            disk: Disk::new(BLOCKS, keep),
            replica: None,
            run: 0,
            paused: false,
            waiting: Vec::new(),
            apart: false,
            unseen: false,
            syncing: false,
            timer: 0,
            values: BTreeMap::new(),
        });
        let mut world = Self {
            rng: Rng::new(seed),
            faults,
            now: 1_000,
            order: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            nodes: nodes.collect(),
            masters: Masters::new(volume, &ids, BLOCKS),
            clients: (0..3).map(Client::new).collect(),
            streams: BTreeMap::new(),
            arrivals: BTreeMap::new(),
            next_stream: 0,
            next_value: 0,
            history: History::default(),
            healed: false,
            volume,
            taken: BTreeSet::new(),
            silent_since: None,
            summary: Summary::default(),
        };
        for node in 0..world.nodes.len() {
            world.start(node);
        }
        world.after(0, Event::Beat);
        world
    }

    fn after(&mut self, delay: u64, event: Event) {
        let at = self.now + delay;
        self.at(at, event);
    }

    fn at(&mut self, at: u64, event: Event) {
        self.order += 1;
        let key = self.order as usize;
        self.events.insert(key, event);
        self.queue.push(Reverse((at, self.order, key)));
    }

    fn delay(&mut self) -> u64 {
        let slow = !self.healed && self.rng.chance(self.faults.slow);
        if slow { self.rng.below(800) } else { self.rng.below(4) }
    }

    /// Between nodes: lost, repeated, delayed.
    fn send(&mut self, from: usize, to: usize, event: Event) {
        if self.nodes[from].apart || self.nodes[to].apart {
            return;
        }
        if !self.healed && self.rng.chance(self.faults.loss) {
            return;
        }
        if !self.healed && self.rng.chance(self.faults.repeat) {
            let delay = self.delay() + self.rng.below(300);
            self.after(delay, event.clone());
        }
        let delay = self.delay();
        self.after(delay, event);
    }

    /// Between a client and a node: in order, or not at all.
    fn stream_send(&mut self, stream: StreamId, up: bool, node: usize, event: Event) {
        if self.nodes[node].unseen {
            return;
        }
        let earliest = self.now + self.delay();
        let slot = self.arrivals.entry((stream, up)).or_default();
        *slot = earliest.max(*slot);
        let at = *slot;
        self.at(at, event);
    }

    fn index(&self, id: ReplicaId) -> usize {
        self.nodes.iter().position(|node| node.id == id).expect("a known replica")
    }

    fn start(&mut self, index: usize) {
        let (volume, now) = (self.volume, Millis(self.now));
        let node = &mut self.nodes[index];
        node.run += 1;
        node.syncing = false;
        node.values.clear();
        node.waiting.clear();
        node.paused = false;
        let opened = node.disk.open(volume, node.id);
        let incarnation = opened.me.incarnation;
        node.replica = Some(Replica::open(now, opened, Params::default()));
        self.masters.registered.insert(node.id, incarnation);
        let config = self.masters.config.clone();
        self.after(1, Event::Push { node: index, config });
    }

    fn crash(&mut self, index: usize) {
        self.summary.crashes += 1;
        self.nodes[index].replica = None;
        let gone: Vec<_> =
            self.streams.iter().filter(|(_, (_, node))| *node == index).map(|(s, _)| *s).collect();
        for stream in gone {
            let reason = StreamEnd::NotPrimary;
            self.after(1, Event::Ended { stream, reason });
        }
        let delay = 50 + self.rng.below(4_000);
        self.after(delay, Event::Restart { node: index });
    }

    pub(crate) fn heal(&mut self) {
        self.healed = true;
        for index in 0..self.nodes.len() {
            self.nodes[index].apart = false;
            self.nodes[index].unseen = false;
            if self.nodes[index].paused {
                self.after(0, Event::Resume { node: index });
            }
            if self.nodes[index].replica.is_none() {
                self.after(0, Event::Restart { node: index });
            }
        }
    }

    pub(crate) fn run_until(&mut self, end: u64) {
        while self.now < end {
            self.turn();
        }
    }

    fn turn(&mut self) {
        let Some(Reverse((at, _, key))) = self.queue.pop() else { panic!("nothing left to do") };
        self.now = self.now.max(at);
        if let Some(event) = self.events.remove(&key) {
            self.handle(event);
        }
    }

    pub(crate) fn run_until_converged(&mut self, patience: u64) {
        let end = self.now + patience;
        while !self.converged() {
            assert!(self.now < end, "not converged:\n{}", self.describe());
            self.turn();
        }
    }

    fn describe(&self) -> String {
        let shown = self.nodes.iter().map(|node| {
            let view = node.replica.as_ref().map(|replica| replica.view(Millis(self.now)));
            view.and_then(|view| serde_json::to_string(&view).ok()).unwrap_or_default()
        });
        let clients = self.clients.iter().map(|client| format!("{client:?}"));
        shown.chain(clients).collect::<Vec<_>>().join("\n")
    }

    fn converged(&self) -> bool {
        let idle = self.clients.iter().all(|client| client.pending.is_empty());
        let whole = self.masters.config.isr.len() == self.nodes.len();
        let ends: Vec<_> =
            self.nodes.iter().map(|node| (node.disk.end, node.disk.checkpoint)).collect();
        idle && whole && ends.iter().all(|(end, checkpoint)| *end == ends[0].0 && checkpoint == end)
    }

    pub(crate) fn check(&mut self) -> Summary {
        let image = self.nodes[0].disk.committed_image();
        for node in &self.nodes[1..] {
            assert_eq!(image, node.disk.committed_image(), "the committed images differ");
        }
        // The final image is what every later read would see.
        for block in 0..BLOCKS {
            let invoked = self.history.now();
            let value = image.get(&block).copied().unwrap_or(0);
            self.history.read(block, value, invoked);
        }
        self.history.check();
        self.summary.acknowledged = self.history.acknowledged();
        self.summary.reads = self.history.answered_reads();
        self.summary.epochs = self.masters.config.epoch.0;
        self.summary.lost_sessions = self.clients.iter().map(|client| client.lost_sessions).sum();
        self.summary
    }

    fn handle(&mut self, event: Event) {
        if let Some(index) = self.node_of(&event)
            && self.nodes[index].paused
        {
            self.nodes[index].waiting.push(event);
            return;
        }
        match event {
            Event::ToReplica { lineage, message, values } => {
                let node = self.index(lineage.to.id);
                self.step(node, Input::FromPrimary { lineage, message }, &values);
            }
            Event::ToPrimary { lineage, message } => {
                let node = self.index(lineage.to.id);
                self.step(node, Input::FromReplica { lineage, message }, &[]);
            }
            Event::Durable { node, run, generation, lsn } => {
                self.synced(node, run, generation, lsn)
            }
            Event::Timer { node, run } => {
                if self.nodes[node].run == run && self.nodes[node].timer <= self.now {
                    self.step(node, Input::Tick, &[]);
                }
            }
            Event::ReadDone { node, run, stream, tag } => {
                if self.nodes[node].run == run {
                    self.step(node, Input::ReadDone { stream, tag, error: None }, &[]);
                }
            }
            Event::Base { lineage, mark, image, read_at } => {
                self.take_base(lineage, mark, &image, read_at)
            }
            Event::BaseTaken { lineage, session, through } => {
                self.taken.insert(session);
                let node = self.index(lineage.from.id);
                self.step(node, Input::BaseSent { session, through }, &[]);
            }
            Event::BaseOverdue { node, run, session } => {
                if self.nodes[node].run == run && !self.taken.contains(&session) {
                    let cause = FailureKind::Transport;
                    self.step(node, Input::BaseFailed { session, cause }, &[]);
                }
            }
            Event::BaseRead { node, run, lineage, mark } => {
                self.read_base(node, run, lineage, mark)
            }
            Event::Propose { node, run, proposal } => {
                let config = self.masters.propose(&proposal);
                self.answer_proposal(node, run, proposal, Some(config));
            }
            Event::Answered { node, run, proposal, config } => {
                if self.nodes[node].run == run {
                    let proposal = proposal.id;
                    self.step(node, Input::Answered { proposal, config }, &[]);
                }
            }
            Event::Push { node, config } => self.step(node, Input::Assignment(config), &[]),
            Event::Open { node, open } => self.step(node, Input::OpenStream(open), &[]),
            Event::Ask { node, stream, request, value } => {
                self.nodes[node].values.insert((stream, request.tag), value);
                self.step(node, Input::Request { stream, request }, &[]);
            }
            Event::Opened { stream, epoch, attach, loss } => {
                self.opened(stream, epoch, attach, loss)
            }
            Event::Ended { stream, reason } => {
                if let Some((client, _)) = self.streams.remove(&stream)
                    && self.clients[client].stream.is_some_and(|(live, _)| live == stream)
                {
                    self.clients[client].ended(&reason);
                }
            }
            Event::Answer { stream, sequence, outcome, value } => {
                if let Some((client, _)) = self.streams.get(&stream)
                    && self.clients[*client].stream.is_some_and(|(live, _)| live == stream)
                {
                    self.clients[*client].heard = self.now;
                    self.clients[*client].answered(&mut self.history, sequence, &outcome, value);
                }
            }
            Event::Restart { node } => {
                if self.nodes[node].replica.is_none() {
                    self.start(node);
                }
            }
            Event::Resume { node } => {
                self.nodes[node].paused = false;
                for event in std::mem::take(&mut self.nodes[node].waiting) {
                    self.handle(event);
                }
            }
            Event::Mend => self.nodes.iter_mut().for_each(|node| {
                (node.apart, node.unseen) = (false, false);
            }),
            Event::Beat => self.beat(),
        }
    }

    fn node_of(&self, event: &Event) -> Option<usize> {
        match event {
            Event::ToReplica { lineage, .. }
            | Event::ToPrimary { lineage, .. }
            | Event::Base { lineage, .. } => Some(self.index(lineage.to.id)),
            Event::BaseTaken { lineage, .. } => Some(self.index(lineage.from.id)),
            Event::Durable { node, .. }
            | Event::Timer { node, .. }
            | Event::ReadDone { node, .. }
            | Event::BaseRead { node, .. }
            | Event::BaseOverdue { node, .. }
            | Event::Answered { node, .. }
            | Event::Push { node, .. }
            | Event::Open { node, .. }
            | Event::Ask { node, .. } => Some(*node),
            _ => None,
        }
    }

    fn answer_proposal(
        &mut self,
        node: usize,
        run: u64,
        proposal: Proposal,
        config: Option<Config>,
    ) {
        let lost = !self.healed && self.rng.chance(self.faults.loss * 4) || self.nodes[node].apart;
        let config = config.filter(|_| !lost);
        let delay = if lost { 1_000 } else { self.delay() };
        self.after(delay, Event::Answered { node, run, proposal, config });
    }

    fn opened(
        &mut self,
        stream: StreamId,
        epoch: Epoch,
        attach: AttachGeneration,
        loss: LossGeneration,
    ) {
        let Some((client, node)) = self.streams.get(&stream).copied() else { return };
        if self.clients[client].stream.is_none_or(|(live, _)| live != stream) {
            return;
        }
        self.clients[client].heard = self.now;
        for request in self.clients[client].opened(epoch, attach, loss) {
            let value = self.clients[client].pending[&request.tag.sequence].value;
            self.stream_send(stream, true, node, Event::Ask { node, stream, request, value });
        }
    }

    fn synced(&mut self, index: usize, run: u64, generation: u64, lsn: Lsn) {
        let node = &mut self.nodes[index];
        let current =
            node.replica.as_ref().is_some_and(|replica| replica.generation() == generation);
        if node.run != run {
            return;
        }
        node.syncing = false;
        if current {
            node.disk.durable = node.disk.durable.max(lsn);
        }
        self.step(index, Input::Durable { generation, lsn }, &[]);
        self.sync(index);
    }

    /// Group commit: one sync at a time, for all that is logged.
    fn sync(&mut self, index: usize) {
        let delay = 1 + self.rng.below(6);
        let node = &mut self.nodes[index];
        let Some(replica) = &node.replica else { return };
        if node.syncing || node.disk.end <= node.disk.durable {
            return;
        }
        node.syncing = true;
        let (run, generation, lsn) = (node.run, replica.generation(), node.disk.end);
        self.after(delay, Event::Durable { node: index, run, generation, lsn });
    }

    fn step(&mut self, index: usize, input: Input, values: &[u64]) {
        let now = Millis(self.now);
        let append_from = match &input {
            Input::FromPrimary { message: ToReplica::Append(append), .. } => append.prev.next(),
            _ => Lsn(0),
        };
        let Some(replica) = &mut self.nodes[index].replica else {
            if let Input::OpenStream(open) = input {
                self.after(1, Event::Ended { stream: open.stream, reason: StreamEnd::NotPrimary });
            }
            return;
        };
        let (_, outputs) = replica.step(now, input);
        for output in outputs {
            self.execute(index, output, values, append_from);
        }
        self.sync(index);
        let node = &mut self.nodes[index];
        let (checkpoint, retained) = (node.disk.checkpoint, node.disk.retained);
        if let Some(replica) = &mut node.replica {
            let (_, outputs) = replica.step(now, Input::Checkpointed { checkpoint, retained });
            for output in outputs {
                self.execute(index, output, &[], Lsn(0));
            }
        }
        self.sync(index);
        self.arm(index);
    }

    fn arm(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let Some(due) = node.replica.as_ref().and_then(Replica::next_deadline) else { return };
        let run = node.run;
        if node.timer <= self.now || due.0 < node.timer {
            node.timer = due.0;
            self.at(due.0, Event::Timer { node: index, run });
        }
    }

    fn execute(&mut self, index: usize, output: Output, values: &[u64], append_from: Lsn) {
        let run = self.nodes[index].run;
        match output {
            Output::Persist(kept) => self.nodes[index].disk.kept = kept,
            Output::Cut { end, kept } => {
                self.summary.cuts += 1;
                self.nodes[index].disk.cut(end, kept);
            }
            Output::Wipe { mark, state, kept } => {
                self.summary.rebuilds += 1;
                self.nodes[index].disk.wipe(mark.base, state, kept);
            }
            Output::FinishRebuild { kept, .. } => self.nodes[index].disk.kept = kept,
            Output::Append { headers, payload } => {
                for header in headers {
                    let value = match payload {
                        Payload::Feed => values[(header.lsn.0 - append_from.0) as usize],
                        Payload::Client(tag) => {
                            let held = &self.nodes[index].values;
                            held.iter().find(|((_, t), _)| *t == tag).map_or(0, |(_, value)| *value)
                        }
                        Payload::Empty => 0,
                    };
                    self.nodes[index].disk.append(header, value);
                }
            }
            Output::Committed(lsn) => self.nodes[index].disk.commit(lsn),
            Output::Pin { session, from } => {
                self.nodes[index].disk.pins.insert(format!("{session:?}"), from);
            }
            Output::Unpin { session } => {
                self.nodes[index].disk.pins.remove(&format!("{session:?}"));
            }
            Output::Read { stream, tag, range, merge } => {
                if !merge {
                    let value = self.nodes[index].disk.newest(range.lba.0);
                    self.nodes[index].values.insert((stream, tag), value);
                }
                let delay = self.rng.below(5);
                self.after(delay, Event::ReadDone { node: index, run, stream, tag });
            }
            Output::ToReplica { lineage, message, .. } => {
                let to = self.index(lineage.to.id);
                self.send(index, to, Event::ToReplica { lineage, message, values: Vec::new() });
            }
            Output::SendEntries { lineage, append, last, .. } => {
                self.send_entries(index, lineage, append, last)
            }
            Output::ResetFeed { .. } | Output::StopBase { .. } | Output::Trace(_) => {}
            Output::ToPrimary { lineage, message } => {
                let to = self.index(lineage.to.id);
                self.send(index, to, Event::ToPrimary { lineage, message });
            }
            Output::StartBase { mark, lineage, .. } => {
                self.after(1, Event::BaseRead { node: index, run, lineage, mark });
                self.after(2_000, Event::BaseOverdue { node: index, run, session: mark.session });
            }
            Output::Propose(proposal) => {
                let lost = self.nodes[index].apart
                    || !self.healed && self.rng.chance(self.faults.loss * 4);
                if lost {
                    self.after(1_000, Event::Answered { node: index, run, proposal, config: None });
                } else {
                    let delay = self.delay();
                    self.after(delay, Event::Propose { node: index, run, proposal });
                }
            }
            Output::StreamOpened { stream, epoch, attach, loss_generation } => {
                let event = Event::Opened { stream, epoch, attach, loss: loss_generation };
                self.stream_send(stream, false, index, event);
            }
            Output::StreamEnded { stream, reason } => {
                self.stream_send(stream, false, index, Event::Ended { stream, reason });
            }
            Output::Answer { stream, tag, outcome } => {
                let value = self.nodes[index].values.remove(&(stream, tag)).unwrap_or(0);
                let event = Event::Answer { stream, sequence: tag.sequence, outcome, value };
                self.stream_send(stream, false, index, event);
            }
        }
    }

    fn send_entries(
        &mut self,
        index: usize,
        lineage: Lineage,
        append: sbk_engine::replication::message::Append,
        last: Lsn,
    ) {
        let first = append.prev.next();
        let entries: Vec<Entry> = self.nodes[index].disk.entries(first, last);
        if entries.len() as u64 != last.0 - append.prev.0 {
            let replica = lineage.to.id;
            let cause = FailureKind::WalRecycled;
            self.step(index, Input::FeedFailed { replica, cause }, &[]);
            return;
        }
        let to = self.index(lineage.to.id);
        let mut append = append;
        for chunk in entries.chunks(16) {
            append.entries = chunk.iter().map(|(header, _)| *header).collect();
            let values = chunk.iter().map(|(_, value)| *value).collect();
            let message = ToReplica::Append(append.clone());
            self.send(index, to, Event::ToReplica { lineage, message, values });
            append.prev = Lsn(append.prev.0 + chunk.len() as u64);
        }
    }

    fn read_base(&mut self, index: usize, run: u64, lineage: Lineage, mark: Incomplete) {
        let node = &self.nodes[index];
        if node.run != run || node.replica.is_none() {
            return;
        }
        let read_at = node.disk.committed;
        let image = (0..BLOCKS).map(|block| (block, node.disk.as_of(block, read_at))).collect();
        let to = self.index(lineage.to.id);
        self.send(index, to, Event::Base { lineage, mark, image, read_at });
    }

    fn take_base(
        &mut self,
        lineage: Lineage,
        mark: Incomplete,
        image: &BTreeMap<u64, u64>,
        read_at: Lsn,
    ) {
        let index = self.index(lineage.to.id);
        let node = &mut self.nodes[index];
        let current = node.replica.as_ref().is_some_and(|replica| {
            replica.view(Millis(self.now)).me.incarnation == lineage.to.incarnation
        });
        if !current || node.disk.kept.incomplete != Some(mark) {
            return;
        }
        for (block, value) in image {
            if !node.disk.touched.contains(block) {
                node.disk.image.insert(*block, *value);
            }
        }
        let from = self.index(lineage.from.id);
        let event = Event::BaseTaken { lineage, session: mark.session, through: read_at };
        self.send(index, from, event);
    }

    /// Clients, masters and faults.
    fn beat(&mut self) {
        self.client_turns();
        if self.now.is_multiple_of(50) {
            self.master_turn();
            self.tell_refusals();
        }
        if !self.healed {
            self.fault_turn();
        }
        self.after(5, Event::Beat);
    }

    fn client_turns(&mut self) {
        for number in 0..self.clients.len() {
            let quiet = self.now.saturating_sub(self.clients[number].heard) > 1_500;
            let stale = self.clients[number].stream.is_some() && quiet && {
                !self.clients[number].open || !self.clients[number].pending.is_empty()
            };
            if stale && let Some((stream, node)) = self.clients[number].stream.take() {
                self.clients[number].open = false;
                self.streams.remove(&stream);
                let node = self.index(node);
                self.step(node, Input::CloseStream { stream }, &[]);
            }
            if self.clients[number].stream.is_none() && self.rng.chance(20) {
                self.connect(number);
            }
            if !self.healed && self.rng.chance(30) {
                self.ask(number);
            }
        }
    }

    fn ask(&mut self, number: usize) {
        self.next_value += 1;
        let value = self.next_value;
        let begun = self.clients[number].begin(&mut self.rng, &mut self.history, BLOCKS, value);
        if let (Some(request), Some((stream, id))) = (begun, self.clients[number].stream) {
            let node = self.index(id);
            self.stream_send(stream, true, node, Event::Ask { node, stream, request, value });
        }
    }

    fn connect(&mut self, number: usize) {
        let id = self.masters.config.primary.id;
        // Sometimes to one that only believes to be it.
        let id = if self.rng.chance(30) { self.nodes[self.rng.below(3) as usize].id } else { id };
        let node = self.index(id);
        self.next_stream += 1;
        let stream = StreamId(self.next_stream);
        let client = &mut self.clients[number];
        client.stream = Some((stream, id));
        client.open = false;
        client.heard = self.now;
        let open = OpenStream {
            stream,
            session: client.session(),
            create: client.create(),
            loss_generation: client.loss,
        };
        self.streams.insert(stream, (number, node));
        self.stream_send(stream, true, node, Event::Open { node, open });
    }

    /// Whose machines said that nobody listens.
    fn tell_refusals(&mut self) {
        let down: Vec<_> =
            self.nodes.iter().filter(|n| n.replica.is_none() && !n.apart).map(|n| n.id).collect();
        for index in 0..self.nodes.len() {
            if self.nodes[index].apart || self.nodes[index].paused {
                continue;
            }
            for replica in &down {
                self.step(index, Input::Unreachable { replica: *replica, refused: true }, &[]);
            }
        }
    }

    fn master_turn(&mut self) {
        let now = Millis(self.now);
        let config = &self.masters.config;
        let reports: BTreeMap<_, _> = self
            .nodes
            .iter()
            .filter(|node| !node.apart && !node.paused)
            .filter_map(|node| {
                let view = node.replica.as_ref()?.view(now);
                let rank = (view.table_epoch.map_or(0, |epoch| epoch.0), view.durable.0);
                let promotable = view.incomplete.is_none();
                Some((node.id, Report { promotable, rank }))
            })
            .collect();
        let primary = config.primary;
        let restarted = self.masters.registered.get(&primary.id) != Some(&primary.incarnation);
        let silent = !reports.contains_key(&primary.id);
        let since = if silent { *self.silent_since.get_or_insert(self.now) } else { self.now };
        if !silent {
            self.silent_since = None;
        }
        let down = self.nodes[self.index(primary.id)].replica.is_none();
        let suspected = down || restarted || self.now - since >= 1_000;
        let whim = !self.healed && self.faults.partition && self.rng.chance(1);
        if suspected || whim {
            self.masters.fail_over(&reports);
        }
        for node in 0..self.nodes.len() {
            if !self.nodes[node].apart && self.rng.chance(60) {
                let config = self.masters.config.clone();
                let delay = self.delay();
                self.after(delay, Event::Push { node, config });
            }
        }
    }

    fn fault_turn(&mut self) {
        if self.faults.crash && self.rng.below(600) == 0 {
            let node = self.rng.below(3) as usize;
            if self.nodes[node].replica.is_some() {
                self.crash(node);
            }
            // Now and then the power goes for all.
            if self.rng.chance(8) {
                for other in 0..3 {
                    if self.nodes[other].replica.is_some() {
                        self.crash(other);
                    }
                }
            }
        }
        if self.faults.partition && self.rng.below(500) == 0 {
            let node = self.rng.below(3) as usize;
            if self.rng.chance(50) {
                self.nodes[node].apart = true;
                // A primary that only its clients reach is the one that could serve stale reads.
                self.nodes[node].unseen = self.rng.chance(40);
                let delay = self.rng.below(5_000);
                self.after(delay, Event::Mend);
            } else if self.nodes[node].replica.is_some() {
                self.nodes[node].paused = true;
                let delay = self.rng.below(5_000);
                self.after(delay, Event::Resume { node });
            }
        }
    }
}
