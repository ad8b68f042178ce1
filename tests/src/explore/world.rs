//! The state of a world: replicas, what is between them, masters, clients, what was true.

use std::collections::BTreeMap;
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
use super::node::{Held, Node};
use super::part::{Copies, Part};
use super::truth::Truth;
use super::worlds::Faults;

pub(crate) const VOLUME: VolumeId = VolumeId(Uuid::from_u128(7));
/// Few, so that requests meet on the same block.
pub(crate) const BLOCKS: u64 = 2;
pub(crate) const NODES: usize = 3;

/// The replicas' names, by index.
pub(crate) fn ids() -> [ReplicaId; NODES] {
    std::array::from_fn(|index| ReplicaId(Uuid::from_u128(index as u128 + 1)))
}

/// What one node sends another.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) enum Message {
    ToReplica(ToReplica, Vec<u64>),
    ToPrimary(ToPrimary, Vec<u64>),
    /// The base lane's image, or what changed in it, as committed at `read_at`.
    Base {
        mark: Incomplete,
        image: BTreeMap<u64, u64>,
        /// The last entry of each block.
        wrote: BTreeMap<u64, Lsn>,
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
                _,
            ) => 1,
            Message::ToReplica(
                ToReplica::Probe { .. }
                | ToReplica::Fence { .. }
                | ToReplica::Cut { .. }
                | ToReplica::Fetch { .. }
                | ToReplica::ReadBlocks { .. }
                | ToReplica::BeginRebuild { .. },
                _,
            )
            | Message::ToPrimary(
                ToPrimary::Alive { .. }
                | ToPrimary::Facts { .. }
                | ToPrimary::CutDone { .. }
                | ToPrimary::Entries { .. }
                | ToPrimary::Blocks { .. }
                | ToPrimary::RebuildStarted { .. }
                | ToPrimary::Refused { .. },
                _,
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

impl Proposed {
    /// The same, when nobody waits for its answer any more.
    pub(crate) fn doubted(&self) -> Arc<Part<Self>> {
        Part::timeless(Self { doubted: true, ..self.clone() })
    }
}

/// The masters' answer on its way.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Answered {
    pub(crate) node: usize,
    pub(crate) opens: u64,
    pub(crate) id: ProposalId,
    pub(crate) config: Option<Config>,
}

/// What is on a lane.
type Wires = Vec<Arc<Part<Wire>>>;

/// A lane between two nodes, in order. Most are empty.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lane(Option<Arc<Part<Wires>>>);

impl Lane {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub(crate) fn first(&self) -> Option<&Arc<Part<Wire>>> {
        self.0.as_ref().and_then(|lane| lane.first())
    }

    fn push(&mut self, now: u64, wire: Arc<Part<Wire>>) {
        let mut wires = self.0.take().map(|lane| Vec::clone(&lane)).unwrap_or_default();
        wires.push(wire);
        self.0 = Some(Part::timed(now, wires));
    }

    pub(crate) fn pop(&mut self, now: u64) -> Option<Arc<Part<Wire>>> {
        let lane = self.0.take()?;
        if lane.len() > 1 {
            self.0 = Some(Part::timed(now, lane[1..].to_vec()));
        }
        lane.first().cloned()
    }
}

#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) nodes: [Arc<Held>; NODES],
    pub(crate) masters: Arc<Part<Masters>>,
    /// From, to, lane.
    pub(crate) lanes: [[[Lane; 2]; NODES]; NODES],
    /// Copies that arrive some time.
    pub(crate) late: Vec<Arc<Part<Wire>>>,
    pub(crate) proposed: Vec<Arc<Part<Proposed>>>,
    pub(crate) answered: Vec<Arc<Part<Answered>>>,
    /// Who is still to notice that whose process is gone.
    pub(crate) notices: [[bool; NODES]; NODES],
    /// Hears no other node and no master.
    pub(crate) isolated: Option<usize>,
    pub(crate) clients: Arc<Part<Vec<Client>>>,
    pub(crate) history: Arc<Part<History>>,
    pub(crate) truth: Arc<Part<Truth>>,
    /// Faults that may still come.
    pub(crate) left: Faults,
    pub(crate) memory: Arc<Memory>,
}

/// One copy of what the worlds of a level have in common.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    nodes: Copies<Held>,
    masters: Copies<Part<Masters>>,
    lanes: Copies<Part<Wires>>,
    clients: Copies<Part<Vec<Client>>>,
    history: Copies<Part<History>>,
    truth: Copies<Part<Truth>>,
}

impl World {
    pub(crate) fn new(left: Faults, masters: Masters, short_log: bool) -> Self {
        let now = canon::ORIGIN;
        let node = |i: usize| Held::new(now, Node::new(ids()[i], BLOCKS, short_log));
        Self {
            now,
            nodes: std::array::from_fn(node),
            masters: Part::timeless(masters),
            lanes: Default::default(),
            late: Vec::new(),
            proposed: Vec::new(),
            answered: Vec::new(),
            notices: Default::default(),
            isolated: None,
            clients: Part::timeless(Vec::new()),
            history: Part::timeless(History::default()),
            truth: Part::timeless(Truth::default()),
            left,
            memory: Arc::default(),
        }
    }

    pub(crate) fn time(&self) -> Millis {
        Millis(self.now)
    }

    pub(crate) fn index(&self, id: ReplicaId) -> usize {
        id.0.as_u128() as usize - 1
    }

    /// Changes a node otherwise than by what it takes.
    pub(crate) fn change_node(&mut self, index: usize, how: impl FnOnce(&mut Node)) {
        let mut node = self.nodes[index].node();
        how(&mut node);
        self.nodes[index] = Held::new(self.now, node);
    }

    /// Forgets its own copies of what others have.
    pub(crate) fn share(&mut self, shared: &mut Shared) {
        for node in &mut self.nodes {
            shared.nodes.share(node);
        }
        shared.masters.share(&mut self.masters);
        for lane in self.lanes.iter_mut().flatten().flatten() {
            if let Some(lane) = &mut lane.0 {
                shared.lanes.share(lane);
            }
        }
        shared.clients.share(&mut self.clients);
        shared.history.share(&mut self.history);
        shared.truth.share(&mut self.truth);
    }

    /// The clock moves: every distance from now is another.
    pub(crate) fn pass(&mut self, ms: u64) {
        self.now += ms;
        for index in 0..NODES {
            self.nodes[index] = self.nodes[index].at(self.now);
        }
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

    pub(crate) fn send(&mut self, wire: Arc<Part<Wire>>) {
        let from = self.index(wire.lineage.from.id);
        let to = self.index(wire.lineage.to.id);
        if !self.is_cut(from, to) {
            self.lanes[from][to][wire.message.lane()].push(self.now, wire);
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

    /// What tells this state from others.
    pub(crate) fn digest(&self) -> u64 {
        let now = self.now;
        let mut bytes = Vec::with_capacity(256);
        let mut add = |digest: u64| bytes.extend(digest.to_le_bytes());
        self.nodes.iter().for_each(|node| add(node.digest()));
        add(self.masters.digest(now));
        for lane in self.lanes.iter().flatten().flatten() {
            add(lane.0.as_ref().map_or(0, |lane| lane.digest(now)));
        }
        // Copies have no order among each other.
        let mut late: Vec<u64> = self.late.iter().map(|wire| wire.digest(now)).collect();
        late.sort_unstable();
        for several in [
            late,
            self.proposed.iter().map(|proposed| proposed.digest(now)).collect(),
            self.answered.iter().map(|answered| answered.digest(now)).collect(),
        ] {
            add(several.len() as u64);
            several.into_iter().for_each(&mut add);
        }
        add(self.clients.digest(now));
        add(self.history.digest(now));
        add(self.truth.digest(now));
        canon::write(&mut bytes, now, &self.notices);
        canon::write(&mut bytes, now, &self.isolated);
        canon::write(&mut bytes, now, &self.left);
        canon::digest(&bytes)
    }
}
