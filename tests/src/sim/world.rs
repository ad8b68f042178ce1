//! Everything together: nodes, masters, clients, a network and a clock.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use sbk_engine::forward::{ClientId, Input as Fact};
use sbk_engine::replication::io::{Input, StreamId};
use sbk_engine::replication::log::RequestTag;
use sbk_engine::replication::room::Room;
use sbk_engine::types::{Epoch, LossGeneration, Lsn, ReplicaId, VolumeId};
use uuid::Uuid;

use super::attachments::{Holder, Rank};
use super::client::Client;
use super::content::VOLUME_BLOCKS;
use super::eight::Eight;
use super::event::Event;
use super::faults::Faults;
use super::flips::Flips;
use super::history::History;
use super::marks::{Injected, Mark};
use super::masters::Masters;
use super::moves::Moves;
use super::node::Node;
use super::rng::Rng;
use super::rotten::Rots;
use super::scrubs::Scrubs;
use super::summary::Summary;
use super::truth::Truth;
use super::unsynced::Unsynced;
use super::violation::is_now;

pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) faults: Faults,
    pub(crate) now: u64,
    order: u64,
    queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    events: BTreeMap<usize, Event>,
    pub(crate) nodes: Vec<Node>,
    /// At which node each replica is, or was.
    pub(crate) places: BTreeMap<ReplicaId, usize>,
    /// What the operator and the rearranging leader are about.
    pub(crate) moves: Moves,
    pub(crate) masters: Masters,
    pub(crate) clients: Vec<Client>,
    /// Of which client and at which node a stream is.
    pub(crate) streams: BTreeMap<StreamId, (usize, usize)>,
    /// In which loss generation each stream was opened.
    pub(crate) generations: BTreeMap<StreamId, LossGeneration>,
    /// What each request writes.
    pub(crate) values: BTreeMap<RequestTag, u64>,
    /// What had been acknowledged when each flush was sent.
    pub(crate) flushes: BTreeMap<RequestTag, Lsn>,
    /// Which nodes' messages don't reach which.
    pub(crate) broken: BTreeSet<(usize, usize)>,
    /// Links that are slow, and by how much.
    pub(crate) slow_links: BTreeMap<(usize, usize), u64>,
    /// Requests of one stream arrive in order.
    arrivals: BTreeMap<(StreamId, bool), u64>,
    pub(crate) next_stream: u64,
    pub(crate) next_value: u64,
    /// What was to make damaged blocks whole.
    pub(crate) overwrites: Vec<u64>,
    pub(crate) next_holder: u64,
    /// The generations of attachments that have not ended, and the newest.
    pub(crate) ranks: BTreeMap<Holder, Rank>,
    pub(crate) newest_rank: Rank,
    /// In which epoch attachments last ended.
    pub(crate) fenced_in: Option<Epoch>,
    /// What operators' streams are to end.
    pub(crate) revoking: BTreeMap<StreamId, Rank>,
    pub(crate) history: History,
    pub(crate) truth: Truth,
    pub(crate) healed: bool,
    pub(crate) eight: Option<Eight>,
    /// The newest loss that an operator accepted.
    pub(crate) given_up: Option<LossGeneration>,
    pub(crate) unsynced: Option<Unsynced>,
    pub(crate) flips: Flips,
    pub(crate) rots: Rots,
    pub(crate) scrubs: Scrubs,
    /// When that is given up.
    pub(crate) unsynced_until: u64,
    pub(crate) healed_at: u64,
    pub(crate) summary: Summary,
}

impl World {
    pub(crate) fn new(seed: u64, faults: Faults) -> Self {
        let large = !faults.small && !seed.is_multiple_of(3);
        let faults = Faults { large, ..faults };
        let volume = VolumeId(Uuid::from_u128(7));
        let mut rng = Rng::new(seed);
        let nodes = 1..=faults.replicas + faults.spares;
        let mut nodes: Vec<_> =
            nodes.map(|n| Node::new(volume, n + 100, &faults, &mut rng)).collect();
        let spares: Vec<_> =
            nodes[faults.replicas as usize..].iter().map(|node| node.node).collect();
        let mut placement = BTreeMap::new();
        let mut places = BTreeMap::new();
        for (index, node) in nodes.iter_mut().enumerate().take(faults.replicas as usize) {
            let id = ReplicaId(Uuid::from_u128(index as u128 + 1));
            node.hold(id, &mut rng);
            node.disk.create().expect("nothing fails yet");
            placement.insert(id, node.node);
            places.insert(id, index);
        }
        let timeout = faults.impatient.then_some(1_200);
        let mut world = Self {
            rng,
            faults,
            now: 1_000,
            order: 0,
            queue: BinaryHeap::new(),
            events: BTreeMap::new(),
            nodes,
            places,
            moves: Moves::default(),
            masters: Masters::new(volume, &placement, &spares, VOLUME_BLOCKS, &faults),
            clients: (0..3).map(|n| Client::new(n, volume, timeout)).collect(),
            streams: BTreeMap::new(),
            generations: BTreeMap::new(),
            values: BTreeMap::new(),
            flushes: BTreeMap::new(),
            broken: BTreeSet::new(),
            slow_links: BTreeMap::new(),
            arrivals: BTreeMap::new(),
            next_stream: 0,
            next_value: 0,
            overwrites: Vec::new(),
            next_holder: 100,
            ranks: BTreeMap::new(),
            newest_rank: Rank::default(),
            fenced_in: None,
            revoking: BTreeMap::new(),
            history: History::default(),
            truth: Truth::default(),
            healed: false,
            eight: None,
            given_up: None,
            unsynced: None,
            flips: Flips::default(),
            rots: Rots::default(),
            scrubs: Scrubs::default(),
            unsynced_until: 0,
            healed_at: 0,
            summary: Summary::default(),
        };
        for node in 0..world.nodes.len() {
            world.start(node);
        }
        for client in 0..world.clients.len() {
            world.clients[client].goes_beyond = world.faults.resize;
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

    /// What is sent up a stream from here on arrives late.
    pub(crate) fn hold_back(&mut self, stream: StreamId, late: u64) {
        let slot = self.arrivals.entry((stream, true)).or_default();
        *slot = (self.now + late).max(*slot);
    }

    pub(crate) fn mark(&mut self, mark: Mark) {
        self.summary.marks.count(mark as usize);
    }

    pub(crate) fn inject(&mut self, fault: Injected) {
        self.summary.injected.count(fault as usize);
    }

    pub(crate) fn index(&self, id: ReplicaId) -> usize {
        *self.places.get(&id).expect("a known replica")
    }

    /// The node that holds the replica; `None` if it was not made yet, or is gone.
    pub(crate) fn holder(&self, id: ReplicaId) -> Option<&Node> {
        let node = &self.nodes[self.index(id)];
        (node.id == id && node.disk.holds() == Some(id)).then_some(node)
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
            Event::SyncRuns { node, run } => self.sync_runs(node, run),
            Event::SyncDone { node, run } => self.sync_finished(node, run),
            Event::Stand { node, order } => self.stand(node, order),
            Event::Strike { node, power } => self.strike(node, power),
            Event::CheckpointRuns { node, run } => self.checkpoint_runs(node, run),
            Event::CheckpointDone { node, run } => self.work_done(node, run, false),
            Event::Reopen { node, run } => {
                let it = &self.nodes[node];
                if it.up && it.run == run && !it.removing && it.disk.holds().is_some() {
                    self.open(node);
                }
            }
            Event::Timer { node, run } => self.timer(node, run),
            Event::ReadDone { node, run, stream, tag } => self.read_done(node, run, stream, tag),
            Event::BlocksRead { node, run, of, request } => {
                self.blocks_read(node, run, of, request);
            }
            Event::Behind { primary, voter } => self.left_behind(primary, voter),
            Event::Searched { node, run, search } => self.searched(node, run, search),
            Event::Looked { node, run, stream, tag } => self.looked(node, run, stream, tag),
            Event::Fill { node } => {
                if !self.healed {
                    self.set_room(node, Room::Short);
                }
            }
            Event::Scrub { blocks } => self.scrub(blocks),
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
            Event::Push { node, told } => self.pushed(node, &told),
            Event::Remove { node, process, replica } => self.removes(node, process, replica),
            Event::Look { node, process } => self.looks_again(node, process),
            Event::Undrain { node } => self.undrain(node),
            Event::Found { node } => self.found(node),
            Event::End { node, run } => self.end(node, run),
            Event::Restart { node } => {
                if !self.nodes[node].up && !self.nodes[node].lost {
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
            Event::Strand { node } => self.strand_now(node),
            Event::Relay { third } => self.relay_on(third),
            Event::Eight => self.eight_on(),
            Event::Unsynced => self.unsynced_on(),
            Event::Crowd => self.crowd_comes(),
            Event::Flap { from, to, left } => self.flap(from, to, left),
            Event::MakeRoom { node } => self.make_room(node),
            Event::DiskBack { node, empty } => self.disk_back(node, empty),
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
            | Event::SyncRuns { node, .. }
            | Event::SyncDone { node, .. }
            | Event::Stand { node, .. }
            | Event::CheckpointRuns { node, .. }
            | Event::CheckpointDone { node, .. }
            | Event::Reopen { node, .. }
            | Event::Timer { node, .. }
            | Event::ReadDone { node, .. }
            | Event::BlocksRead { node, .. }
            | Event::Searched { node, .. }
            | Event::Looked { node, .. }
            | Event::BaseTurn { node, .. }
            | Event::BaseBroke { node, .. }
            | Event::Answered { node, .. }
            | Event::Push { node, .. }
            | Event::Remove { node, .. }
            | Event::DiskBack { node, .. }
            | Event::Look { node, .. }
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
        self.move_clients();
        self.note_calm();
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
            self.nodes.iter().filter(|n| !n.up && !n.unheard && !n.lost).map(|n| n.id).collect();
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
