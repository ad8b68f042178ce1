//! The masters: their real state machine, the real detector of failures, and a model of Raft's log.
//! A command is proposed to the leader and committed later, or lost with the leader, or committed
//! by the next one although its proposer gave it up. Masters that follow lag behind.

use std::collections::{BTreeMap, BTreeSet};

use sbk_engine::authority::detector::{Decision, Detector, DetectorEvent, ReplicaReport};
use sbk_engine::authority::{
    Addrs, ClusterId, Command, Durability, RegisteredReplica, Registration, Response, State,
    VolumeRequest, WriteAck,
};
use sbk_engine::bugs::{Bug, on};
use sbk_engine::replication::io::Proposal;
use sbk_engine::types::{
    BLOCK_SIZE, BootId, Config, Incarnation, Millis, NodeId, ReplicaId, ReplicaRef, VolumeId, Wish,
};
use uuid::Uuid;

use super::faults::Faults;
use super::rng::Rng;

/// How many masters there are.
const MASTERS: usize = 3;

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
    /// The configuration in force.
    pub(crate) config: Config,
    /// Every configuration that was ever in force, with what was wished of its primary: each time one
    /// of the two changed.
    configs: Vec<(Config, Wish)>,
    volume: VolumeId,
    /// How far each master has applied what is committed, as a number of configurations.
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

fn node_of(replica: ReplicaId) -> NodeId {
    NodeId(Uuid::from_u128(replica.0.as_u128() + 100))
}

/// What a node says of itself: its process, and the run of its replica, if it is open, and whether
/// that is complete.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    pub(crate) id: ReplicaId,
    pub(crate) process: u64,
    pub(crate) boot: BootId,
    /// Counts what it says within its process.
    pub(crate) revision: u64,
    pub(crate) open: Option<(Incarnation, bool)>,
}

fn registration(volume: VolumeId, told: &Told) -> Registration {
    let open = told.open.map(|(incarnation, complete)| {
        (told.id, RegisteredReplica { volume, incarnation, complete })
    });
    Registration {
        node: node_of(told.id),
        process: told.process,
        revision: told.revision,
        boot: told.boot,
        addrs: Addrs { grpc: format!("node-{}:7301", told.id), http: None, nbd: None },
        zone: None,
        capacity_bytes: 1 << 30,
        replicas: open.into_iter().collect(),
    }
}

impl Masters {
    /// A volume whose replicas were all created, by the first process of each node.
    pub(crate) fn new(
        volume: VolumeId,
        replicas: &[ReplicaId],
        blocks: u64,
        faults: &Faults,
    ) -> Self {
        let mut state = State::new();
        let mut must = |command| state.apply(&command).map(|_| ()).expect("the masters take it");
        must(Command::BootstrapCluster { cluster: ClusterId(Uuid::from_u128(9)) });
        for id in replicas {
            let boot = BootId(Uuid::from_u128(1));
            let told = Told { id: *id, process: 1, boot, revision: 1, open: None };
            must(Command::RegisterNode(registration(volume, &told)));
        }
        let chosen = faults.durability != Durability::SyncQuorum;
        let least = chosen.then_some(faults.min_in_sync);
        let request = VolumeRequest {
            name: "vol".to_owned(),
            size_bytes: blocks * BLOCK_SIZE,
            replicas: replicas.len() as u32,
            durability: faults.durability,
            write_ack: WriteAck::Durable,
            min_in_sync: least,
            zone_spread: false,
        };
        let placement = replicas.iter().map(|id| (*id, node_of(*id))).collect();
        must(Command::CreateVolume { volume, request, placement, overcommit_percent: 100 });
        for id in replicas {
            let replica = ReplicaRef { id: *id, incarnation: Incarnation { process: 1, open: 1 } };
            let node = node_of(*id);
            must(Command::ConfirmReplica { node, process: 1, volume, replica });
        }
        let config = state.config(volume).expect("the volume has an epoch");
        let mut detector = Detector::new(faults.detector());
        detector.step(Millis(1), &state, DetectorEvent::Elected);
        Self {
            state,
            configs: vec![(config.clone(), Wish::default())],
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
        let response = self.state.apply(command);
        let config = self.state.config(self.volume).expect("the volume has an epoch");
        let wish = self.state.volumes()[&self.volume].wish.clone();
        let now = (config, wish);
        if self.configs.last() != Some(&now) {
            self.config = now.0.clone();
            self.configs.push(now);
        }
        response
    }

    /// The replica as its node registered it last.
    pub(crate) fn registered(&self, replica: ReplicaId) -> Option<(Incarnation, bool)> {
        self.state.registered(self.volume, replica).map(|r| (r.incarnation, r.complete))
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
        let failover = |Decision { volume, expect_epoch, primary, isr, reason: _ }| {
            Command::Failover { volume, expect_epoch, primary, isr }
        };
        decided.into_iter().map(failover).collect()
    }

    /// A node's heartbeat.
    pub(crate) fn heartbeat(
        replica: ReplicaId,
        process: u64,
        reports: Vec<ReplicaReport>,
    ) -> DetectorEvent {
        DetectorEvent::Heartbeat { node: node_of(replica), process, reports }
    }

    /// A node's process is gone, its machine says.
    pub(crate) fn killed(replica: ReplicaId, process: u64) -> DetectorEvent {
        DetectorEvent::Killed { node: node_of(replica), process }
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
                *applied = self.configs.len();
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
    pub(crate) fn pushed(&self, n: usize) -> &(Config, Wish) {
        let master = (n + self.term as usize) % MASTERS;
        &self.configs[self.applied[master] - 1]
    }

    /// A failover that nobody has reason for: the best of those that answer takes over at once.
    pub(crate) fn coup(&self, ranks: &BTreeMap<ReplicaId, (u64, u64)>) -> Option<Command> {
        let config = self.config.clone();
        let candidates = config.isr.iter().filter_map(|id| {
            let rank = ranks.get(id)?;
            let replica = self.state.promotable(self.volume, *id).ok()?;
            (replica != config.primary).then_some((rank, replica))
        });
        let (_, primary) = candidates.max()?;
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
        Some(Command::Failover { volume, expect_epoch, primary, isr })
    }

    /// What an operator's word leads to, if nothing speaks against it.
    pub(crate) fn recovery(&self, now: u64, off: &BTreeSet<ReplicaId>) -> Option<Command> {
        self.leader?;
        let given_up: BTreeSet<_> = off.iter().map(|id| node_of(*id)).collect();
        let volume = &self.state.volumes()[&self.volume];
        let plan = self.detector.plan_recovery(Millis(now), &self.state, volume, &given_up);
        plan.ok().map(|plan| plan.command(self.volume, given_up))
    }
}

/// The replica of a command that names one as primary.
pub(crate) fn promoted(command: &Command) -> Option<ReplicaRef> {
    match command {
        Command::Failover { primary, .. } => Some(*primary),
        _ => None,
    }
}
