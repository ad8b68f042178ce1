//! The masters: their real state machine, the real detector of failures, and a model of Raft's log.
//! A command is proposed to the leader and committed later, or lost with the leader, or committed
//! by the next one although its proposer gave it up. Masters that follow lag behind.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use sbk_engine::authority::detector::{Decision, Detector, DetectorEvent, ReplicaReport};
use sbk_engine::authority::moves::{self, Step};
use sbk_engine::authority::stand::Stand;
use sbk_engine::authority::{
    Addrs, AssignedVolume, ClusterId, Command, CreateId, Durability, Duty, RegisteredReplica,
    Registration, Response, State, Volume, VolumeRequest,
};
use sbk_engine::bugs::{Bug, on};
use sbk_engine::replication::io::Proposal;
use sbk_engine::types::{
    BLOCK_SIZE, BootId, Config, Incarnation, Millis, NodeId, ReplicaId, ReplicaRef, TailId,
    VolumeId,
};
use uuid::Uuid;

use super::faults::Faults;
use super::rng::Rng;

/// How many masters there are.
const MASTERS: usize = 3;
/// How much of a node's capacity volumes may claim, as the masters have it.
pub(crate) const OVERCOMMIT_PERCENT: u32 = 200;

/// What the masters push: the volume as it was at a catalogue revision.
#[derive(Clone, Debug)]
pub(crate) struct Catalogue {
    pub(crate) revision: u64,
    /// `None` once it is deleted and no node holds any of it.
    pub(crate) volume: Option<AssignedVolume>,
}

/// A command in the leader's log that is not committed.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub(crate) command: Command,
    /// Who waits for the answer: a node, in which of its openings, and what it proposed.
    pub(crate) proposer: Option<(usize, u64, Proposal)>,
}

pub(crate) struct Masters {
    /// All that is committed.
    state: State,
    /// The configuration in force, or the last one if the volume is deleted.
    pub(crate) config: Config,
    /// Every catalogue that there ever was.
    catalogues: Vec<Rc<Catalogue>>,
    pub(crate) volume: VolumeId,
    /// How far each master has applied what is committed, as a number of catalogues.
    applied: [usize; MASTERS],
    /// Masters that fell behind and stay so for now.
    pub(crate) lagging: BTreeSet<usize>,
    pub(crate) leader: Option<usize>,
    pub(crate) term: u64,
    pub(crate) pending: BTreeMap<u64, Pending>,
    proposals: u64,
    /// What the last leader had in its log; the next one commits it.
    pub(crate) orphans: Vec<Command>,
    detector: Detector,
}

/// What a node says of itself: its process, and its replica, if it is open.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) node: NodeId,
    pub(crate) process: u64,
    pub(crate) tail: TailId,
    /// Counts what it says within its process.
    pub(crate) revision: u64,
    pub(crate) open: Option<Open>,
    /// Bytes of its disks; none if it does not tell of them.
    pub(crate) disks: Vec<u64>,
}

/// A replica that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Open {
    pub(crate) replica: ReplicaRef,
    pub(crate) complete: bool,
    pub(crate) doubtful: bool,
    pub(crate) disk: Option<u32>,
}

fn registration(volume: VolumeId, told: &Told) -> Registration {
    let open = told.open.map(|open| {
        let Open { replica, complete, doubtful, disk } = open;
        let (incarnation, tail) = (replica.incarnation, told.tail.count);
        (replica.id, RegisteredReplica { volume, incarnation, complete, tail, doubtful, disk })
    });
    Registration {
        node: told.node,
        process: told.process,
        revision: told.revision,
        boot: told.tail.boot,
        addrs: Addrs { grpc: format!("node-{}:7301", told.node), http: None, nbd: None },
        zone: None,
        capacity_bytes: if told.disks.is_empty() { 1 << 30 } else { told.disks.iter().sum() },
        disks: told.disks.clone(),
        encrypts: false,
        replicas: open.into_iter().collect(),
    }
}

/// What a candidate of a failover without reason says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// The tail with which it stood for the end of the epoch in force.
    pub(crate) stood: Option<TailId>,
    pub(crate) log: (u64, u64),
}

impl Masters {
    /// A volume whose replicas were all created, by the first process of each node; `spares` hold
    /// nothing.
    pub(crate) fn new(
        volume: VolumeId,
        replicas: &BTreeMap<ReplicaId, NodeId>,
        spares: &[NodeId],
        blocks: u64,
        faults: &Faults,
    ) -> Self {
        let mut state = State::new();
        let mut must = |command| state.apply(&command).map(|_| ()).expect("the masters take it");
        must(Command::BootstrapCluster { cluster: ClusterId(Uuid::from_u128(9)) });
        for node in replicas.values().chain(spares).copied() {
            let tail = TailId { boot: BootId(Uuid::from_u128(1)), count: 0 };
            let told = Told { node, process: 1, tail, revision: 1, open: None, disks: Vec::new() };
            must(Command::RegisterNode(registration(volume, &told)));
        }
        let chosen = faults.durability != Durability::SyncQuorum;
        let least = chosen.then_some(faults.min_in_sync);
        let request = VolumeRequest {
            name: "vol".to_owned(),
            size_bytes: blocks * BLOCK_SIZE,
            replicas: replicas.len() as u32,
            durability: faults.durability,
            write_ack: faults.write_ack,
            min_in_sync: least,
            zone_spread: false,
            encrypted: false,
            limits: sbk_engine::authority::Limits::default(),
        };
        let placement = replicas.clone();
        let (create, overcommit_percent) = (CreateId(volume.0), 100);
        must(Command::CreateVolume { volume, create, request, placement, overcommit_percent });
        for (id, node) in replicas {
            let replica = ReplicaRef { id: *id, incarnation: Incarnation { process: 1, open: 1 } };
            let node = *node;
            must(Command::ConfirmReplica { node, process: 1, volume, replica, tail: 0 });
        }
        let config = state.config(volume).expect("the volume has an epoch");
        let mut detector = Detector::new(faults.detector());
        detector.step(Millis(1), &state, DetectorEvent::Elected);
        let catalogue = Rc::new(catalogue_of(&state));
        Self {
            state,
            catalogues: vec![catalogue],
            config,
            volume,
            applied: [1; MASTERS],
            lagging: BTreeSet::new(),
            leader: Some(0),
            term: 1,
            pending: BTreeMap::new(),
            proposals: 0,
            orphans: Vec::new(),
            detector,
        }
    }

    /// Applies a committed command.
    pub(crate) fn apply(&mut self, command: &Command) -> Response {
        let before = self.state.revision();
        let response = self.state.apply(command);
        if self.state.revision() != before {
            self.catalogues.push(Rc::new(catalogue_of(&self.state)));
            if let Some(config) = self.state.config(self.volume) {
                self.config = config;
            }
        }
        response
    }

    /// The volume; `None` once it is deleted.
    pub(crate) fn live(&self) -> Option<&Volume> {
        self.state.volumes().get(&self.volume)
    }

    /// Whether the volume lists the replica, or it is to be removed.
    pub(crate) fn is_to_know(&self, replica: ReplicaId) -> bool {
        let dead = self.state.tombstones().get(&self.volume);
        dead.is_some_and(|tombstone| tombstone.remaining.contains_key(&replica))
            || self.live().is_some_and(|volume| {
                volume.replicas.contains_key(&replica) || volume.retired.contains_key(&replica)
            })
    }

    /// The nodes that have still to remove a replica of the volume, which is deleted.
    pub(crate) fn waits_for(&self) -> Vec<NodeId> {
        let dead = self.state.tombstones().get(&self.volume);
        dead.map(|tombstone| tombstone.remaining.values().copied().collect()).unwrap_or_default()
    }

    /// What becomes of a node's replicas.
    pub(crate) fn duty(&self, node: NodeId) -> Option<Duty> {
        self.state.duty(node)
    }

    /// Whether the masters know the node.
    pub(crate) fn knows(&self, node: NodeId) -> bool {
        self.state.nodes().contains_key(&node)
    }

    /// Whether the leader has heard the node lately.
    pub(crate) fn hears(&self, now: u64, node: NodeId) -> bool {
        self.detector.is_heard(self.clock(now), node)
    }

    /// The run of the replica, as its node registered it last.
    pub(crate) fn registered(&self, replica: ReplicaId) -> Option<Incarnation> {
        self.state.registered(self.volume, replica).map(|r| r.incarnation)
    }

    /// Whether the process that speaks is the registered one: others are not heard.
    pub(crate) fn is_registered(&self, node: NodeId, process: u64) -> bool {
        self.state.nodes().get(&node).is_some_and(|known| known.process == process)
    }

    /// Whether the masters know what the node says of itself.
    pub(crate) fn is_known(&self, told: &Told) -> bool {
        let Some(known) = self.state.nodes().get(&told.node) else { return false };
        let replicas = known.replicas.iter().map(|(id, r)| {
            let replica = ReplicaRef { id: *id, incarnation: r.incarnation };
            Open { replica, complete: r.complete, doubtful: r.doubtful, disk: r.disk }
        });
        known.process == told.process && known.disks == told.disks && replicas.eq(told.open)
    }

    /// What is to be moved, replaced or dropped now, as the leader sees it.
    pub(crate) fn steps(&self, now: u64) -> Vec<Step> {
        if self.leader.is_none() {
            return Vec::new();
        }
        moves::steps(&self.state, &self.detector, self.clock(now), OVERCOMMIT_PERCENT)
    }

    /// Why the volume's replicas are not as they should be, in the leader's words.
    pub(crate) fn outlook(&self, now: u64) -> String {
        let look = |volume| {
            moves::look(&self.state, &self.detector, self.clock(now), volume, OVERCOMMIT_PERCENT)
        };
        self.live().map(|volume| format!("{:?}", look(volume))).unwrap_or_default()
    }

    /// Puts a command into the leader's log. `None` if there is no leader.
    pub(crate) fn propose(&mut self, pending: Pending) -> Option<u64> {
        self.leader?;
        self.proposals += 1;
        self.pending.insert(self.proposals, pending);
        Some(self.proposals)
    }

    /// What a node says of itself, as a command.
    pub(crate) fn registration(&self, told: &Told) -> Command {
        Command::RegisterNode(registration(self.volume, told))
    }

    /// A primary's proposal, as a command.
    pub(crate) fn proposal(&self, proposal: &Proposal) -> Command {
        Command::ProposeIsr {
            volume: self.volume,
            expect_epoch: proposal.epoch,
            primary: proposal.primary,
            change: proposal.change.clone(),
        }
    }

    /// The leader's clock. Each master has its own.
    fn clock(&self, now: u64) -> Millis {
        Millis(now + 1_000_000 * self.leader.unwrap_or(0) as u64)
    }

    /// A fact for the leader's detector; what it decides is to be proposed.
    pub(crate) fn detect(&mut self, now: u64, event: DetectorEvent) -> Vec<Command> {
        if self.leader.is_none() {
            return Vec::new();
        }
        let now = self.clock(now);
        let decided = self.detector.step(now, &self.state, event);
        decided.iter().map(Decision::command).collect()
    }

    /// In-sync replicas that were not waited for when all lost their tails.
    pub(crate) fn missing(&self) -> BTreeSet<ReplicaId> {
        let assignment = self.state.volumes()[&self.volume].assignment.as_ref();
        assignment.map(|a| a.missing.clone()).unwrap_or_default()
    }

    /// What the node's replica is asked to stand for.
    pub(crate) fn stands(&self, now: u64, node: NodeId) -> Vec<Stand> {
        match self.leader {
            Some(_) => self.detector.stands(self.clock(now), &self.state, node),
            None => Vec::new(),
        }
    }

    /// A node's heartbeat. It has one disk.
    pub(crate) fn heartbeat(
        node: NodeId,
        process: u64,
        reports: Vec<ReplicaReport>,
        returning: BTreeSet<ReplicaId>,
        low: bool,
    ) -> DetectorEvent {
        let low = low.then_some(0).into_iter().collect();
        DetectorEvent::Heartbeat { node, process, reports, returning, low }
    }

    /// A node's process is gone, its machine says.
    pub(crate) fn killed(node: NodeId, process: u64) -> DetectorEvent {
        DetectorEvent::Killed { node, process }
    }

    /// Nobody leads any more. What was in the leader's log is lost, or it is in the next one's.
    /// Returns what is lost.
    pub(crate) fn depose(&mut self, rng: &mut Rng) -> Vec<Pending> {
        self.leader = None;
        let (kept, lost): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.pending).into_values().partition(|_| rng.chance(50));
        self.orphans.extend(kept.iter().map(|pending| pending.command.clone()));
        lost.into_iter().chain(kept).collect()
    }

    /// Another master leads. Returns what it found in its log.
    pub(crate) fn elect(&mut self, now: u64, rng: &mut Rng) -> Vec<Command> {
        let leader = rng.below(MASTERS as u64) as usize;
        self.leader = Some(leader);
        self.term += 1;
        self.lagging.remove(&leader);
        self.detect(now, DetectorEvent::Elected);
        std::mem::take(&mut self.orphans)
    }

    /// The masters that don't lag apply what is committed.
    pub(crate) fn catch_up(&mut self) {
        for (number, applied) in self.applied.iter_mut().enumerate() {
            if Some(number) == self.leader || !self.lagging.contains(&number) {
                *applied = self.catalogues.len();
            }
        }
    }

    /// One of the masters, which may begin to lag or catch up.
    pub(crate) fn toggle(&mut self, rng: &mut Rng) {
        let number = rng.below(MASTERS as u64) as usize;
        if !self.lagging.remove(&number) {
            self.lagging.insert(number);
        }
    }

    /// What the master says that the `n`-th watcher follows.
    pub(crate) fn pushed(&self, n: usize) -> Rc<Catalogue> {
        let master = (n + self.term as usize) % MASTERS;
        Rc::clone(&self.catalogues[self.applied[master] - 1])
    }

    /// What a watcher that begins is told is no older than this.
    pub(crate) fn revision(&self) -> u64 {
        self.state.revision()
    }

    /// A failover that nobody has reason for: the best of those that answer takes over at once.
    pub(crate) fn coup(&self, ranks: &BTreeMap<ReplicaId, Rank>) -> Option<Command> {
        let config = self.config.clone();
        let candidates = config.isr.iter().filter_map(|id| {
            let rank = ranks.get(id)?;
            let replica = self.state.promotable(self.volume, *id).ok()?;
            // Whether one in doubt may be is for who has reason to.
            let doubtful = self.state.is_doubtful(self.volume, *id);
            (replica != config.primary && !doubtful).then_some((rank, replica))
        });
        let (rank, primary) = candidates.max()?;
        let stood = rank.stood;
        let answering: BTreeSet<_> =
            config.isr.iter().filter(|id| ranks.contains_key(*id)).copied().collect();
        let drops = config.durability != Durability::SyncQuorum || on(Bug::FailoverDropsVoters);
        let enough = drops && answering.len() >= config.min_in_sync as usize;
        let own = primary.id == config.primary.id;
        let isr = match config.durability {
            Durability::BestEffort if !own => BTreeSet::from([primary.id]),
            Durability::BestEffort | Durability::SyncAll | Durability::SyncQuorum if enough => {
                answering
            }
            Durability::BestEffort | Durability::SyncAll | Durability::SyncQuorum => config.isr,
        };
        let (volume, expect_epoch) = (self.volume, config.epoch);
        Some(Command::Failover { volume, expect_epoch, primary, isr, stood })
    }

    /// What an operator's word leads to, if nothing speaks against it: the recovery, or first that
    /// replicas are asked to stand.
    pub(crate) fn recovery(&mut self, now: u64, off: &BTreeSet<NodeId>) -> Option<Command> {
        self.leader?;
        let volume = self.live()?;
        let holders = volume.replicas.values().map(|replica| replica.node);
        let given_up: BTreeSet<_> = holders.filter(|node| off.contains(node)).collect();
        let now = self.clock(now);
        let plan = self.detector.plan_recovery(now, &self.state, volume, &given_up).ok()?;
        if plan.unstood.is_empty() {
            return Some(plan.command(self.volume, given_up));
        }
        self.detector.ask_to_stand(now, self.volume, &plan);
        None
    }
}

fn catalogue_of(state: &State) -> Catalogue {
    let volume = state.catalogue_since(0).into_iter().next();
    Catalogue { revision: state.revision(), volume }
}

/// The replica of a command that names one as primary.
pub(crate) fn promoted(command: &Command) -> Option<ReplicaRef> {
    match command {
        Command::Failover { primary, .. } | Command::Salvage { primary, .. } => Some(*primary),
        _ => None,
    }
}
