//! The state of a world: replicas, what is between them, masters, clients, what was true.

use std::collections::HashMap;
use std::sync::Arc;

use sbk_engine::replication::io::{Proposal, ProposalId};
use sbk_engine::replication::message::{Incomplete, Lineage, RecoveryId, ToPrimary, ToReplica};
use sbk_engine::types::{Config, Lsn, Millis, ReplicaId, VolumeId};
use serde::Serialize;
use uuid::Uuid;

use super::canon;
use super::client::Client;
use super::history::History;
use super::masters::Masters;
use super::memory::Memory;
use super::node::Node;
use super::truth::Truth;
use super::worlds::Faults;

pub(crate) const VOLUME: VolumeId = VolumeId(Uuid::from_u128(7));
/// Few, so that requests meet on the same block.
pub(crate) const BLOCKS: u64 = 2;
pub(crate) const NODES: usize = 3;

/// What one node sends another.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) enum Message {
    ToReplica(ToReplica, Vec<u64>),
    ToPrimary(ToPrimary),
    /// The base lane's image, as committed at `read_at`.
    Base {
        mark: Incomplete,
        image: std::collections::BTreeMap<u64, u64>,
        read_at: Lsn,
    },
    BaseTaken {
        session: RecoveryId,
        through: Lsn,
    },
}

impl Message {
    /// Calls and their answers go beside the feed, so each may overtake the other.
    pub(crate) fn lane(&self) -> usize {
        match self {
            Message::ToReplica(ToReplica::Append(_) | ToReplica::Close { .. }, _)
            | Message::ToPrimary(
                ToPrimary::Ack { .. }
                | ToPrimary::Gap { .. }
                | ToPrimary::Closed { .. }
                | ToPrimary::SessionFailed { .. },
            ) => 1,
            Message::ToReplica(
                ToReplica::Probe { .. }
                | ToReplica::Fence { .. }
                | ToReplica::Cut { .. }
                | ToReplica::Fetch { .. }
                | ToReplica::BeginRebuild { .. },
                _,
            )
            | Message::ToPrimary(
                ToPrimary::Alive { .. }
                | ToPrimary::Facts { .. }
                | ToPrimary::CutDone { .. }
                | ToPrimary::Entries { .. }
                | ToPrimary::RebuildStarted { .. }
                | ToPrimary::Refused { .. },
            )
            | Message::Base { .. }
            | Message::BaseTaken { .. } => 0,
        }
    }
}

/// A message on its way.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Wire {
    pub(crate) lineage: Lineage,
    pub(crate) message: Message,
}

/// A proposal on its way to the masters.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Proposed {
    pub(crate) node: usize,
    pub(crate) opens: u64,
    pub(crate) proposal: Proposal,
    /// Nobody waits for its answer any more.
    pub(crate) doubted: bool,
}

/// The masters' answer on its way.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Answered {
    pub(crate) node: usize,
    pub(crate) opens: u64,
    pub(crate) id: ProposalId,
    pub(crate) config: Option<Config>,
}

/// A lane between two nodes, in order.
pub(crate) type Lane = Vec<Arc<Wire>>;

#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) nodes: [Arc<Node>; NODES],
    pub(crate) masters: Arc<Masters>,
    /// From, to, lane.
    pub(crate) lanes: [[[Lane; 2]; NODES]; NODES],
    /// Copies that arrive some time.
    pub(crate) late: Vec<Arc<Wire>>,
    pub(crate) proposed: Vec<Proposed>,
    pub(crate) answered: Vec<Answered>,
    /// Who is still to notice that whose process is gone.
    pub(crate) notices: [[bool; NODES]; NODES],
    /// Hears no other node and no master.
    pub(crate) isolated: Option<usize>,
    pub(crate) clients: Arc<Vec<Client>>,
    pub(crate) history: Arc<History>,
    pub(crate) truth: Arc<Truth>,
    /// Faults that may still come.
    pub(crate) left: Faults,
    /// Digests of the nodes at `now`; 0 if not known.
    digests: [u64; NODES],
    /// That of the masters.
    masters_digest: u64,
    pub(crate) memory: Arc<Memory>,
}

/// One copy of what many worlds have in common.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// By the clock and the digest.
    nodes: HashMap<(u64, u64), Arc<Node>>,
    masters: HashMap<u64, Arc<Masters>>,
}

impl World {
    pub(crate) fn new(left: Faults, min_in_sync: u32, short_log: bool) -> Self {
        let ids: Vec<_> = (1..=NODES as u128).map(|n| ReplicaId(Uuid::from_u128(n))).collect();
        let node = |i: usize| Arc::new(Node::new(ids[i], BLOCKS, short_log));
        Self {
            now: canon::ORIGIN,
            nodes: std::array::from_fn(node),
            masters: Arc::new(Masters::new(&ids, min_in_sync)),
            lanes: Default::default(),
            late: Vec::new(),
            proposed: Vec::new(),
            answered: Vec::new(),
            notices: Default::default(),
            isolated: None,
            clients: Arc::default(),
            history: Arc::default(),
            truth: Arc::default(),
            left,
            digests: [0; NODES],
            masters_digest: 0,
            memory: Arc::default(),
        }
    }

    pub(crate) fn time(&self) -> Millis {
        Millis(self.now)
    }

    pub(crate) fn index(&self, id: ReplicaId) -> usize {
        id.0.as_u128() as usize - 1
    }

    pub(crate) fn node(&mut self, index: usize) -> &mut Node {
        self.digests[index] = 0;
        Arc::make_mut(&mut self.nodes[index])
    }

    pub(crate) fn change_masters(&mut self) -> &mut Masters {
        self.masters_digest = 0;
        Arc::make_mut(&mut self.masters)
    }

    /// Forgets its own copies of what others have. Its digest was taken.
    pub(crate) fn share(&mut self, shared: &mut Shared) {
        for (node, digest) in self.nodes.iter_mut().zip(self.digests) {
            *node = shared.nodes.entry((self.now, digest)).or_insert_with(|| node.clone()).clone();
        }
        let masters = shared.masters.entry(self.masters_digest);
        self.masters = masters.or_insert_with(|| self.masters.clone()).clone();
    }

    /// The clock moves: every distance from now is another.
    pub(crate) fn pass(&mut self, ms: u64) {
        self.now += ms;
        self.digests = [0; NODES];
    }

    pub(crate) fn hears_masters(&self, index: usize) -> bool {
        self.nodes[index].is_up() && self.isolated != Some(index)
    }

    pub(crate) fn is_cut(&self, a: usize, b: usize) -> bool {
        self.isolated == Some(a) || self.isolated == Some(b)
    }

    /// Whether something is broken that will be mended.
    pub(crate) fn is_faulty(&self) -> bool {
        self.isolated.is_some() || self.nodes.iter().any(|node| !node.is_up())
    }

    pub(crate) fn send(&mut self, wire: Wire) {
        let from = self.index(wire.lineage.from.id);
        let to = self.index(wire.lineage.to.id);
        if !self.is_cut(from, to) {
            self.lanes[from][to][wire.message.lane()].push(Arc::new(wire));
        }
    }

    /// The lanes with something on them.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let all = (0..NODES).flat_map(|from| (0..NODES).map(move |to| (from, to)));
        all.flat_map(|(from, to)| (0..2).map(move |lane| (from, to, lane)))
            .filter(|(from, to, lane)| !self.lanes[*from][*to][*lane].is_empty())
    }

    /// Every request answered, every replica in sync and equal, nothing on its way.
    pub(crate) fn is_converged(&self) -> bool {
        let whole = self.masters.config.isr.len() == NODES && !self.is_faulty();
        let newest = self.truth.newest();
        whole
            && self.history.is_complete()
            && self.nodes.iter().all(|n| n.disk.end == newest && n.disk.checkpoint == newest)
    }

    pub(crate) fn digest_node(now: u64, node: &Node) -> u64 {
        let mut bytes = Vec::with_capacity(4096);
        canon::write(&mut bytes, now, node);
        canon::digest(&bytes)
    }

    pub(crate) fn digest_of(&mut self, index: usize) -> u64 {
        if self.digests[index] == 0 {
            self.digests[index] = Self::digest_node(self.now, &self.nodes[index]);
        }
        self.digests[index]
    }

    /// A node is in a state that was met before.
    pub(crate) fn become_known(&mut self, index: usize, node: Arc<Node>, digest: u64) {
        self.nodes[index] = node;
        self.digests[index] = digest;
    }

    /// What tells this state from others.
    pub(crate) fn digest(&mut self) -> u64 {
        let nodes: [u64; NODES] = std::array::from_fn(|index| self.digest_of(index));
        let mut bytes = Vec::with_capacity(4096);
        let now = self.now;
        if self.masters_digest == 0 {
            canon::write(&mut bytes, now, &*self.masters);
            self.masters_digest = canon::digest(&bytes);
            bytes.clear();
        }
        for digest in nodes.iter().chain([&self.masters_digest]) {
            bytes.extend(digest.to_le_bytes());
        }
        for from in &self.lanes {
            for lane in from.iter().flatten() {
                bytes.push(lane.len() as u8);
                lane.iter().for_each(|wire| canon::write(&mut bytes, now, &**wire));
            }
        }
        // Copies have no order among each other.
        let mut late: Vec<Vec<u8>> = Vec::new();
        for wire in &self.late {
            let mut one = Vec::new();
            canon::write(&mut one, now, &**wire);
            late.push(one);
        }
        late.sort();
        canon::write(&mut bytes, now, &late);
        canon::write(&mut bytes, now, &self.proposed);
        canon::write(&mut bytes, now, &self.answered);
        canon::write(&mut bytes, now, &self.notices);
        canon::write(&mut bytes, now, &self.isolated);
        canon::write(&mut bytes, now, &*self.clients);
        canon::write(&mut bytes, now, &*self.history);
        canon::write(&mut bytes, now, &*self.truth);
        canon::write(&mut bytes, now, &self.left);
        canon::digest(&bytes)
    }
}
