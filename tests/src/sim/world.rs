//! Everything together: nodes, masters, clients, a network and a clock.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use bytes::Bytes;
use sbk_engine::authority::detector::DetectorEvent;
use sbk_engine::forward::{ClientId, Input as Fact};
use sbk_engine::replication::io::{
    Input, OpenStream, Outcome, Proposal, Request, StreamEnd, StreamId,
};
use sbk_engine::replication::log::{BlockRange, RequestTag};
use sbk_engine::replication::message::{Lineage, RecoveryId, ToPrimary, ToReplica};
use sbk_engine::types::{
    AttachGeneration, BLOCK_SIZE, Config, Epoch, Lba, LossGeneration, Lsn, ReplicaId, ReplicaRef,
    VolumeId,
};
use sbk_store::LogEntry;
use uuid::Uuid;

use super::client::Client;
use super::content::{self, BLOCKS, VOLUME_BLOCKS};
use super::faults::Faults;
use super::heights::Heights;
use super::history::History;
use super::lanes::Piece;
use super::marks::{Counts, Injected, Mark};
use super::masters::{Masters, Told};
use super::node::Node;
use super::rng::Rng;
use super::truth::Truth;
use super::violation::is_now;

/// What a run did.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Acknowledged writes.
    pub acknowledged: usize,
    /// Answered reads.
    pub reads: usize,
    /// Requests that clients gave up.
    pub given_up: u64,
    /// Epochs that the masters minted.
    pub epochs: u64,
    /// Logs that were cut.
    pub cuts: u64,
    /// Replicas that were wiped for a rebuild.
    pub rebuilds: u64,
    /// Processes that died.
    pub crashes: u64,
    /// Of these, how many because their machine lost power.
    pub power_losses: u64,
    /// Stores that failed under a process that went on.
    pub store_failures: u64,
    /// Steps of checkpoints.
    pub checkpoints: u64,
    /// Reads that a disk refused.
    pub reads_failed: u64,
    /// Frontend sessions that were lost.
    pub lost_sessions: u64,
    /// Losses that took effect.
    pub losses: u64,
    /// Simulated milliseconds.
    pub simulated_ms: u64,
    /// Interesting states that were reached.
    pub marks: Counts,
    /// Faults by class.
    pub injected: Counts,
    /// High-water marks, each with its limit.
    pub heights: Heights,
}

impl Default for Summary {
    fn default() -> Self {
        Self {
            acknowledged: 0,
            reads: 0,
            given_up: 0,
            epochs: 0,
            cuts: 0,
            rebuilds: 0,
            crashes: 0,
            power_losses: 0,
            store_failures: 0,
            checkpoints: 0,
            reads_failed: 0,
            lost_sessions: 0,
            losses: 0,
            simulated_ms: 0,
            marks: Counts::marks(),
            injected: Counts::injected(),
            heights: Heights::default(),
        }
    }
}

impl Summary {
    /// Adds what another run did.
    pub fn add(&mut self, other: &Summary) {
        self.acknowledged += other.acknowledged;
        self.reads += other.reads;
        self.given_up += other.given_up;
        self.epochs += other.epochs;
        self.cuts += other.cuts;
        self.rebuilds += other.rebuilds;
        self.crashes += other.crashes;
        self.power_losses += other.power_losses;
        self.store_failures += other.store_failures;
        self.checkpoints += other.checkpoints;
        self.reads_failed += other.reads_failed;
        self.lost_sessions += other.lost_sessions;
        self.simulated_ms += other.simulated_ms;
        self.marks.add(&other.marks);
        self.injected.add(&other.injected);
        self.heights.add(&other.heights);
        self.losses += other.losses;
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Event {
    ToReplica {
        lineage: Lineage,
        message: ToReplica,
        entries: Vec<LogEntry>,
    },
    ToPrimary {
        lineage: Lineage,
        message: ToPrimary,
        entries: Vec<LogEntry>,
    },
    /// The batch that was planned is written and synced.
    BatchRuns {
        node: usize,
        run: u64,
    },
    BatchDone {
        node: usize,
        run: u64,
    },
    CheckpointRuns {
        node: usize,
        run: u64,
    },
    CheckpointDone {
        node: usize,
        run: u64,
    },
    /// The store that failed is opened again.
    Reopen {
        node: usize,
        run: u64,
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
    /// A piece of a base lane arrives.
    Base {
        lineage: Lineage,
        session: RecoveryId,
        piece: Piece,
    },
    BaseTaken {
        lineage: Lineage,
        session: RecoveryId,
        through: Lsn,
    },
    /// The sender of a base lane goes on.
    BaseTurn {
        node: usize,
        run: u64,
        session: RecoveryId,
    },
    BaseBroke {
        node: usize,
        run: u64,
        session: RecoveryId,
    },
    /// A process tells the masters what it has open.
    Register(Told),
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
    /// The catalogue reaches a client.
    Catalogue {
        client: usize,
        config: Config,
    },
    Open {
        node: usize,
        primary: ReplicaRef,
        open: OpenStream,
    },
    Close {
        node: usize,
        stream: StreamId,
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
        config: Option<Config>,
    },
    Answer {
        stream: StreamId,
        sequence: u64,
        outcome: Outcome,
        data: Option<Bytes>,
        /// The loss generation in which the stream was opened.
        loss: LossGeneration,
    },
    /// All nodes but one go.
    Disaster {
        left: usize,
    },
    Restart {
        node: usize,
    },
    Resume {
        node: usize,
    },
    /// A command is committed, if the leader that had it still leads.
    Commit {
        id: u64,
    },
    Elect,
    /// A fact for the leader.
    Detect(DetectorEvent),
    /// A link goes or comes, so many times more.
    Flap {
        from: usize,
        to: usize,
        left: u64,
    },
    /// The masters replace the primary, with reason or without.
    FailOver,
    /// See [`World::relay`].
    Relay {
        third: usize,
    },
    /// See [`World::crowd`].
    Crowd,
    /// A full disk has room again.
    MakeRoom {
        node: usize,
    },
    Mend,
    /// Clients, masters and faults have a turn.
    Beat,
}

pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) faults: Faults,
    pub(crate) now: u64,
    order: u64,
    queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    events: BTreeMap<usize, Event>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) masters: Masters,
    pub(crate) clients: Vec<Client>,
    /// Of which client and at which node a stream is.
    pub(crate) streams: BTreeMap<StreamId, (usize, usize)>,
    /// In which loss generation each stream was opened.
    pub(crate) generations: BTreeMap<StreamId, LossGeneration>,
    /// What each request writes.
    pub(crate) values: BTreeMap<RequestTag, u64>,
    /// Which nodes' messages don't reach which.
    pub(crate) broken: BTreeSet<(usize, usize)>,
    /// Links that are slow, and by how much.
    pub(crate) slow_links: BTreeMap<(usize, usize), u64>,
    /// Requests of one stream arrive in order.
    arrivals: BTreeMap<(StreamId, bool), u64>,
    pub(crate) next_stream: u64,
    pub(crate) next_value: u64,
    pub(crate) history: History,
    pub(crate) truth: Truth,
    pub(crate) healed: bool,
    pub(crate) summary: Summary,
}

impl World {
    pub(crate) fn new(seed: u64, faults: Faults) -> Self {
        let volume = VolumeId(Uuid::from_u128(7));
        let ids: Vec<_> = (1..=faults.replicas).map(|n| ReplicaId(Uuid::from_u128(n))).collect();
        let mut rng = Rng::new(seed);
        let nodes = ids.iter().map(|id| Node::new(volume, *id, &faults, &mut rng)).collect();
        let timeout = faults.impatient.then_some(1_200);
        let mut world = Self {
            rng,
            faults,
            now: 1_000,
            order: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            nodes,
            masters: Masters::new(volume, &ids, VOLUME_BLOCKS, &faults),
            clients: (0..3).map(|n| Client::new(n, volume, timeout)).collect(),
            streams: BTreeMap::new(),
            generations: BTreeMap::new(),
            values: BTreeMap::new(),
            broken: BTreeSet::new(),
            slow_links: BTreeMap::new(),
            arrivals: BTreeMap::new(),
            next_stream: 0,
            next_value: 0,
            history: History::default(),
            truth: Truth::default(),
            healed: false,
            summary: Summary::default(),
        };
        for node in 0..world.nodes.len() {
            world.start(node);
        }
        for client in 0..world.clients.len() {
            world.feed(client, Fact::Attached(ClientId(1)));
        }
        world.after(0, Event::Beat);
        world
    }

    pub(crate) fn after(&mut self, delay: u64, event: Event) {
        let at = self.now + delay;
        self.at(at, event);
    }

    pub(crate) fn at(&mut self, at: u64, event: Event) {
        self.order += 1;
        let key = self.order as usize;
        self.events.insert(key, event);
        self.queue.push(Reverse((at, self.order, key)));
    }

    pub(crate) fn delay(&mut self) -> u64 {
        let slow = !self.healed && self.rng.chance(self.faults.slow);
        if slow {
            self.inject(Injected::MessageSlow);
            return self.rng.below(800);
        }
        self.rng.below(4)
    }

    /// Whether what one node sends reaches the other.
    pub(crate) fn hears(&self, from: usize, to: usize) -> bool {
        !self.broken.contains(&(from, to))
    }

    /// Between nodes: lost, repeated, delayed.
    pub(crate) fn send(&mut self, from: usize, to: usize, event: Event) {
        if !self.hears(from, to) {
            return;
        }
        if !self.healed && self.rng.chance(self.faults.loss) {
            return self.inject(Injected::MessageLost);
        }
        let link = self.slow_links.get(&(from, to)).copied().unwrap_or(0);
        if !self.healed && self.rng.chance(self.faults.repeat) {
            self.inject(Injected::MessageRepeated);
            let delay = self.delay() + self.rng.below(self.faults.echo_ms);
            self.after(delay, event.clone());
        }
        let delay = link + self.delay();
        self.after(delay, event);
    }

    /// Between a client and a node: in order, or not at all.
    pub(crate) fn stream_send(&mut self, stream: StreamId, up: bool, node: usize, event: Event) {
        if self.nodes[node].unseen {
            return;
        }
        let earliest = self.now + self.delay();
        let slot = self.arrivals.entry((stream, up)).or_default();
        *slot = earliest.max(*slot);
        let at = *slot;
        self.at(at, event);
    }

    pub(crate) fn mark(&mut self, mark: Mark) {
        self.summary.marks.count(mark as usize);
    }

    pub(crate) fn inject(&mut self, fault: Injected) {
        self.summary.injected.count(fault as usize);
    }

    pub(crate) fn index(&self, id: ReplicaId) -> usize {
        self.nodes.iter().position(|node| node.id == id).expect("a known replica")
    }

    pub(crate) fn run_until(&mut self, end: u64) {
        while self.now < end {
            self.turn();
        }
    }

    fn turn(&mut self) {
        let Some(Reverse((at, _, key))) = self.queue.pop() else { panic!("nothing left to do") };
        self.now = self.now.max(at);
        is_now(self.now);
        if let Some(event) = self.events.remove(&key) {
            self.handle(event);
        }
    }

    pub(crate) fn run_until_converged(&mut self, patience: u64) {
        let end = self.now + patience;
        loop {
            if self.converged() {
                // An impatient client may have given up what was to make a damaged block whole.
                if !self.faults.rot || !self.is_damaged() {
                    return;
                }
                self.overwrite_all();
            }
            assert!(self.now < end, "I8: not converged:\n{}", self.describe());
            // Looking costs more than many turns.
            self.run_until(self.now + 20);
        }
    }

    /// Whether a block of some replica does not match its checksum.
    fn is_damaged(&mut self) -> bool {
        let mut damaged = false;
        for node in &mut self.nodes {
            let mut plan = node.disk.store().plan_digest(0, 0);
            while let Some(read) = plan.next_region() {
                damaged |= matches!(read, Ok(Some(digest)) if digest.damaged > 0);
            }
        }
        damaged
    }

    fn describe(&self) -> String {
        let shown = self.nodes.iter().map(|node| {
            let view = node.replica.as_ref().map(|replica| replica.view(node.clock(self.now)));
            view.and_then(|view| serde_json::to_string(&view).ok()).unwrap_or_default()
        });
        let clients = self.clients.iter().map(|client| format!("{client:?}"));
        shown.chain(clients).collect::<Vec<_>>().join("\n")
    }

    fn converged(&self) -> bool {
        let idle = self.clients.iter().all(Client::is_idle);
        // A voter is listed through its rebuild, so the list does not tell that it is over.
        let up = |node: &Node| {
            let rebuilds = node.disk.shadow.kept.incomplete.is_some() || node.receiving.is_some();
            node.replica.is_some() && node.sending.is_empty() && !rebuilds
        };
        let whole = self.masters.config.isr.len() == self.nodes.len() && self.nodes.iter().all(up);
        let ends: Vec<_> = self
            .nodes
            .iter()
            .map(|node| (node.disk.shadow.end(), node.disk.shadow.committed))
            .collect();
        idle && whole && ends.iter().all(|(end, committed)| *end == ends[0].0 && committed == end)
    }

    pub(crate) fn check(&mut self) -> Summary {
        let image = self.image(0);
        for node in 1..self.nodes.len() {
            assert_eq!(image, self.image(node), "I4: node {node} holds another image than node 0");
        }
        // The final image is what every later read would see.
        for (block, data) in image.iter().enumerate() {
            let invoked = self.history.now();
            let seen = content::seen(data).unwrap_or_else(|how| panic!("I4: block {block}: {how}"));
            let loss = self.truth.loss_generation;
            self.history.read(block as u64, seen, invoked, loss);
        }
        self.history.check();
        self.summary.acknowledged = self.history.acknowledged();
        self.summary.reads = self.history.answered_reads();
        self.summary.epochs = self.masters.config.epoch.0;
        self.summary.lost_sessions = self.clients.iter().map(Client::lost_sessions).sum();
        self.summary.simulated_ms = self.now;
        self.check_heights();
        self.summary.given_up = self.clients.iter().map(|client| client.given_up).sum();
        self.summary.clone()
    }

    /// What a node's store reads of the blocks that clients use, after it agreed with the digests
    /// of node 0's.
    fn image(&mut self, index: usize) -> Vec<Bytes> {
        let digests: Vec<_> = [0, index].map(|node| self.digests(node)).into();
        assert_eq!(digests[0], digests[1], "I4: node {index} has other digests than node 0");
        let store = self.nodes[index].disk.store();
        let mut image = Vec::new();
        for n in 0..BLOCKS {
            let range = BlockRange { lba: Lba(content::address(n)), blocks: 1 };
            let read = store.plan_read(range).run();
            let data = read.unwrap_or_else(|error| panic!("I2: node {index}: {error}"));
            assert_eq!(data.len() as u64, BLOCK_SIZE);
            image.push(data);
        }
        image
    }

    fn digests(&mut self, index: usize) -> Vec<(u64, u32)> {
        let mut plan = self.nodes[index].disk.store().plan_digest(0, 0);
        let mut digests = Vec::new();
        while let Some(read) = plan.next_region() {
            let digest = read.unwrap_or_else(|error| panic!("I2: node {index}: {error}"));
            let digest = digest.expect("no checkpoint runs meanwhile");
            assert_eq!(digest.damaged, 0, "I2: node {index} has damaged blocks");
            digests.push((digest.region, digest.digest));
        }
        digests
    }

    fn handle(&mut self, event: Event) {
        if let Some(index) = self.node_of(&event)
            && self.nodes[index].paused
        {
            self.nodes[index].waiting.push(event);
            return;
        }
        match event {
            Event::ToReplica { lineage, message, entries } => {
                let node = self.index(lineage.to.id);
                self.step(node, Input::FromPrimary { lineage, message }, entries);
            }
            Event::ToPrimary { lineage, message, entries } => {
                let node = self.index(lineage.to.id);
                self.step(node, Input::FromReplica { lineage, message }, entries);
            }
            Event::BatchRuns { node, run } => self.batch_runs(node, run),
            Event::BatchDone { node, run } => self.work_done(node, run, true),
            Event::CheckpointRuns { node, run } => self.checkpoint_runs(node, run),
            Event::CheckpointDone { node, run } => self.work_done(node, run, false),
            Event::Reopen { node, run } => {
                if self.nodes[node].up && self.nodes[node].run == run {
                    self.open(node);
                }
            }
            Event::Timer { node, run } => self.timer(node, run),
            Event::ReadDone { node, run, stream, tag } => self.read_done(node, run, stream, tag),
            Event::Base { lineage, session, piece } => self.take_base(lineage, session, &piece),
            Event::BaseTaken { lineage, session, through } => {
                let node = self.index(lineage.from.id);
                self.step(node, Input::BaseSent { session, through }, Vec::new());
            }
            Event::BaseTurn { node, run, session } => self.base_turn(node, run, session),
            Event::BaseBroke { node, run, session } => self.base_broke(node, run, session),
            Event::Register(told) => self.register(&told),
            Event::Commit { id } => self.commit(id),
            Event::Elect => self.elect(),
            Event::Detect(event) => self.detect(event),
            Event::Propose { node, run, proposal } => self.propose(node, run, proposal),
            Event::Answered { node, run, proposal, config } => {
                if self.nodes[node].run == run {
                    let proposal = proposal.id;
                    self.step(node, Input::Answered { proposal, config }, Vec::new());
                }
            }
            Event::Push { node, config } => {
                let known = self.nodes[node].config.as_ref().map(|known| known.epoch);
                if known > Some(config.epoch) {
                    self.mark(Mark::StalePush);
                }
                self.nodes[node].keep_config(&config);
                self.step(node, Input::Assignment(config), Vec::new());
            }
            Event::Restart { node } => {
                if !self.nodes[node].up {
                    self.start(node);
                }
            }
            Event::Resume { node } => {
                self.mark_zombie(node);
                self.nodes[node].paused = false;
                for event in std::mem::take(&mut self.nodes[node].waiting) {
                    self.handle(event);
                }
            }
            Event::FailOver => self.coup_now(),
            Event::Relay { third } => self.relay_on(third),
            Event::Crowd => self.crowd_comes(),
            Event::Flap { from, to, left } => self.flap(from, to, left),
            Event::MakeRoom { node } => self.nodes[node].disk.memory.make_room(),
            Event::Disaster { left } => {
                if !self.healed {
                    self.all_but(left);
                }
            }
            Event::Mend => self.mend(),
            Event::Beat => self.beat(),
            frontend @ (Event::Catalogue { .. }
            | Event::Open { .. }
            | Event::Close { .. }
            | Event::Ask { .. }
            | Event::Opened { .. }
            | Event::Ended { .. }
            | Event::Answer { .. }) => self.handle_frontend(frontend),
        }
    }

    fn node_of(&self, event: &Event) -> Option<usize> {
        match event {
            Event::ToReplica { lineage, .. }
            | Event::ToPrimary { lineage, .. }
            | Event::Base { lineage, .. } => Some(self.index(lineage.to.id)),
            Event::BaseTaken { lineage, .. } => Some(self.index(lineage.from.id)),
            Event::BatchRuns { node, .. }
            | Event::BatchDone { node, .. }
            | Event::CheckpointRuns { node, .. }
            | Event::CheckpointDone { node, .. }
            | Event::Reopen { node, .. }
            | Event::Timer { node, .. }
            | Event::ReadDone { node, .. }
            | Event::BaseTurn { node, .. }
            | Event::BaseBroke { node, .. }
            | Event::Answered { node, .. }
            | Event::Push { node, .. }
            | Event::Open { node, .. }
            | Event::Close { node, .. }
            | Event::Ask { node, .. } => Some(*node),
            _ => None,
        }
    }

    /// Clients, masters and faults.
    fn beat(&mut self) {
        self.client_turns();
        self.attach_again();
        if self.now.is_multiple_of(50) {
            self.measure();
            self.master_turn();
            self.tell_refusals();
        }
        if !self.healed {
            self.fault_turn();
        }
        self.after(5, Event::Beat);
    }

    /// Whose machines said that nobody listens.
    fn tell_refusals(&mut self) {
        let down: Vec<_> =
            self.nodes.iter().filter(|n| !n.up && !n.unheard).map(|n| n.id).collect();
        for index in 0..self.nodes.len() {
            if self.nodes[index].unheard || self.nodes[index].paused {
                continue;
            }
            for replica in &down {
                self.step(
                    index,
                    Input::Unreachable { replica: *replica, refused: true },
                    Vec::new(),
                );
            }
        }
    }
}
