//! Who is suspected, and which failover the leader proposes.
//!
//! This is the leader's own memory, not Raft state: a new leader starts every node's clock anew.
//! Suspicion only proposes. A wrong one costs a pause and nothing else, for the new primary fences
//! the old one and waits out its leases.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::command::Command;
use super::doubt::Trusted;
use super::lacks::Lacks;
use super::recovery::Recovering;
use super::stand::Written;
use super::state::{Durability, State, Volume};
use crate::bugs::{Bug, on};
use crate::types::{Epoch, Incarnation, Millis, NodeId, ReplicaId, ReplicaRef, TailId, VolumeId};

/// Times of the detector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DetectorParams {
    /// T: a node that missed heartbeats for so long is suspected.
    pub suspect_ms: u64,
    /// A node that was not heard since this leader's election is suspected after this.
    pub unheard_ms: u64,
    /// A proposal without effect is made again after this.
    pub retry_ms: u64,
    /// A replica is replaced when its node was silent, or did not have it open, for so long.
    pub replace_ms: u64,
    /// When no in-sync replica that is heard is known to have all that was acknowledged, so long is waited
    /// for those that are not: with written acknowledgements after a loss of power, otherwise where logs may
    /// have lost their end.
    pub grace_ms: u64,
}

impl Default for DetectorParams {
    fn default() -> Self {
        Self {
            suspect_ms: 2000,
            unheard_ms: 10_000,
            retry_ms: 1000,
            replace_ms: 600_000,
            grace_ms: 60_000,
        }
    }
}

/// What a heartbeat says of one replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaReport {
    /// The replica, in its run.
    pub replica: ReplicaRef,
    /// The newest epoch in its table.
    pub table_epoch: Epoch,
    /// Its durable end.
    pub durable: crate::types::Lsn,
    /// As the primary: the epoch that it acts in.
    pub primary_in: Option<Epoch>,
    /// As the primary: in-sync members that it lacks.
    pub lacking: BTreeSet<ReplicaId>,
    /// As the primary: for how long without a break it has lacked one, in milliseconds.
    pub lacking_ms: u64,
    /// The primaries that hold a promise of it that has not run out.
    pub promised: BTreeSet<ReplicaId>,
    /// Its tail.
    pub tail: TailId,
    /// The epoch that it stood for the end of, once its log is synced.
    pub stood: Option<Epoch>,
}

/// A fact for the detector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DetectorEvent {
    /// This master leads from now on.
    Elected,
    /// It leads no more.
    Deposed,
    /// A node spoke.
    Heartbeat {
        /// Which.
        node: NodeId,
        /// Its process.
        process: u64,
        /// What its replicas hold.
        reports: Vec<ReplicaReport>,
        /// Its replicas that are not open and that it opens again by itself: they may hold anything.
        returning: BTreeSet<ReplicaId>,
        /// Its disks that are low on room, by their places in its registration: they get no new replica.
        low: BTreeSet<u32>,
    },
    /// A node's stream closed and its machine refused another at once: the process is gone.
    Killed {
        /// Which.
        node: NodeId,
        /// The process whose stream it was.
        process: u64,
    },
    /// A registration was committed, or time passed.
    Tick,
}

/// A failover to propose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch that must still be in force.
    pub expect_epoch: Epoch,
    /// The new primary.
    pub primary: ReplicaRef,
    /// The new in-sync set.
    pub isr: BTreeSet<ReplicaId>,
    /// With written acknowledgements: the tail with which the new primary stood.
    pub stood: Option<TailId>,
    /// Set if it goes on with a loss, for nobody is known to have everything: the in-sync replicas that are
    /// not waited for any more.
    pub missing: Option<BTreeSet<ReplicaId>>,
    /// Why, for people.
    pub reason: String,
}

impl Decision {
    /// The command that carries it out.
    pub fn command(&self) -> Command {
        let Self { volume, expect_epoch, primary, isr, stood, missing, reason: _ } = self.clone();
        match missing {
            Some(missing) => Command::Salvage { volume, expect_epoch, primary, missing },
            None => Command::Failover { volume, expect_epoch, primary, isr, stood },
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Heard {
    at: Millis,
    process: u64,
    killed: bool,
    /// What this process opens again by itself; `None` until it said so.
    returning: Option<BTreeSet<ReplicaId>>,
    /// Which of its disks are low on room; `None` until it said so.
    #[serde(default)]
    low: Option<BTreeSet<u32>>,
}

/// A listed replica that its node did not have open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Missing {
    since: Millis,
    /// Since when it is open again. Only after a while that counts: on a full or failing disk a replica
    /// can be opened again and again, and never stays.
    back: Option<Millis>,
}

/// The leader's memory of its nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detector {
    params: DetectorParams,
    elected: Option<Millis>,
    heard: BTreeMap<NodeId, Heard>,
    reports: BTreeMap<ReplicaId, ReplicaReport>,
    proposed: BTreeMap<VolumeId, (Epoch, Millis)>,
    /// Replicas that are listed and that their nodes don't register, made already or not.
    missing: BTreeMap<ReplicaId, Missing>,
    /// Who is asked to stand, and where volumes wait for silent members after a loss of power.
    pub(super) written: Written,
    /// In which epoch a volume has only replicas whose log may have lost its end, and since when.
    #[serde(default)]
    pub(super) doubting: BTreeMap<VolumeId, (Epoch, Millis)>,
    /// Moves away from primaries that lacked members.
    pub(super) lacks: Lacks,
    /// Who is asked to stand for an operator's recovery.
    #[serde(default)]
    pub(super) recovering: Recovering,
}

impl Detector {
    /// A master that does not lead.
    pub fn new(params: DetectorParams) -> Self {
        Self {
            params,
            elected: None,
            heard: BTreeMap::new(),
            reports: BTreeMap::new(),
            proposed: BTreeMap::new(),
            missing: BTreeMap::new(),
            written: Written::default(),
            doubting: BTreeMap::new(),
            lacks: Lacks::default(),
            recovering: Recovering::default(),
        }
    }

    /// Takes a fact; returns the failovers to propose now. A decision is repeated after
    /// `retry_ms` while the same epoch is in force.
    pub fn step(&mut self, now: Millis, state: &State, event: DetectorEvent) -> Vec<Decision> {
        match event {
            DetectorEvent::Elected => {
                *self = Self::new(self.params.clone());
                self.elected = Some(now);
            }
            DetectorEvent::Deposed => self.elected = None,
            DetectorEvent::Heartbeat { node, process, reports, returning, low } => {
                let known = self.heard.get(&node).map_or(0, |heard| heard.process);
                if process >= known {
                    let (returning, low) = (Some(returning), Some(low));
                    let heard = Heard { at: now, process, killed: false, returning, low };
                    self.heard.insert(node, heard);
                    for report in reports {
                        self.reports.insert(report.replica.id, report);
                    }
                }
            }
            DetectorEvent::Killed { node, process } => {
                let heard = Heard { at: now, process, killed: true, returning: None, low: None };
                let known = self.heard.entry(node).or_insert(heard);
                known.killed |= known.process == process;
            }
            DetectorEvent::Tick => {}
        }
        self.note_starts(now, state);
        self.note_missing(now, state);
        self.note_written(now, state);
        self.note_doubts(now, state);
        self.decide(now, state)
    }

    /// When a tick is due, if nothing else comes first.
    pub fn next_deadline(&self, now: Millis) -> Option<Millis> {
        let elected = self.elected?;
        let silent = self.heard.values().map(|heard| heard.at.after(self.params.suspect_ms));
        let unheard = elected.after(self.params.unheard_ms);
        let again = self.proposed.values().map(|(_, at)| at.after(self.params.retry_ms));
        let lost = self
            .missing
            .values()
            .map(|missing| missing.since)
            .chain(self.heard.values().map(|heard| heard.at));
        let gone = lost.chain([elected]).map(|at| at.after(self.params.replace_ms));
        silent
            .chain([unheard])
            .chain(again)
            .chain(gone)
            .chain(self.written_due())
            .chain(self.doubts_due())
            .filter(|at| *at > now)
            .min()
    }

    /// Whether the node is taken for alive.
    pub fn is_alive(&self, now: Millis, node: NodeId) -> bool {
        !self.suspected(now, node)
    }

    /// Whether this leader has heard the node itself, and lately.
    pub fn is_heard(&self, now: Millis, node: NodeId) -> bool {
        self.heard.contains_key(&node) && !self.suspected(now, node)
    }

    /// Whether a listed replica has been away for so long that another one takes its place: its
    /// node is silent, or does not have it open, be it that it never made it. That it was open for less
    /// than a tenth of that time in between changes nothing.
    pub fn is_gone(&self, now: Millis, state: &State, volume: &Volume, id: ReplicaId) -> bool {
        let (Some(replica), Some(elected)) = (volume.replicas.get(&id), self.elected) else {
            return false;
        };
        let heard = self.heard.get(&replica.node).map_or(elected, |heard| heard.at);
        let silent = now.since(heard) >= self.params.replace_ms;
        let missing = self.missing.get(&id).filter(|_| state.registered(volume.id, id).is_none());
        silent || missing.is_some_and(|missing| now.since(missing.since) >= self.params.replace_ms)
    }

    /// A registration is a sign of life too, of a process that has not sent a heartbeat yet. What was
    /// known of the one before does not hold for it. [A primary handed over to a node that had just
    /// come back, and was failed over at once, because that node's process was gone.]
    fn note_starts(&mut self, now: Millis, state: &State) {
        for (node, heard) in &mut self.heard {
            let process = state.nodes().get(node).map_or(0, |registered| registered.process);
            if process > heard.process {
                // A disk that was low on room is so until this one says otherwise.
                let low = heard.low.take();
                *heard = Heard { at: now, process, killed: false, returning: None, low };
            }
        }
    }

    /// Whether a replica that its node did not register may yet be opened there.
    pub(super) fn may_return(&self, node: NodeId, replica: ReplicaId) -> bool {
        let heard = self.heard.get(&node).and_then(|heard| heard.returning.as_ref());
        heard.is_none_or(|returning| returning.contains(&replica))
    }

    /// Which of a node's disks are low on room, as it said last; `None` if this leader has not heard.
    pub fn low_disks(&self, node: NodeId) -> Option<&BTreeSet<u32>> {
        self.heard.get(&node)?.low.as_ref()
    }

    fn note_missing(&mut self, now: Millis, state: &State) {
        let missing: BTreeSet<_> = state
            .volumes()
            .values()
            .flat_map(|v| v.replicas.keys().map(move |id| (v.id, *id)))
            .filter(|(volume, id)| state.registered(*volume, *id).is_none())
            .map(|(_, id)| id)
            .collect();
        let stays = self.params.replace_ms / 10;
        self.missing.retain(|id, known| {
            known.back = (!missing.contains(id)).then(|| known.back.unwrap_or(now));
            known.back.is_none_or(|back| now.since(back) < stays)
        });
        for id in missing {
            self.missing.entry(id).or_insert(Missing { since: now, back: None });
        }
    }

    /// Milliseconds since the node was heard; `None` if not since the election.
    pub fn silent_ms(&self, now: Millis, node: NodeId) -> Option<u64> {
        self.heard.get(&node).map(|heard| now.since(heard.at))
    }

    /// What the replica's node said of it last.
    pub fn report(&self, replica: ReplicaId) -> Option<&ReplicaReport> {
        self.reports.get(&replica)
    }

    /// The times it works with.
    pub(super) fn params(&self) -> &DetectorParams {
        &self.params
    }

    /// When this master was elected, if it leads.
    pub(super) fn elected(&self) -> Option<Millis> {
        self.elected
    }

    pub(super) fn suspected(&self, now: Millis, node: NodeId) -> bool {
        match (self.heard.get(&node), self.elected) {
            (Some(heard), _) => heard.killed || now.since(heard.at) >= self.params.suspect_ms,
            (None, Some(elected)) => now.since(elected) >= self.params.unheard_ms,
            (None, None) => false,
        }
    }

    fn decide(&mut self, now: Millis, state: &State) -> Vec<Decision> {
        if self.elected.is_none() {
            return Vec::new();
        }
        self.proposed.retain(|id, (epoch, _)| {
            let current = state.volumes().get(id).and_then(|v| v.assignment.as_ref());
            current.is_some_and(|assignment| assignment.epoch == *epoch)
        });
        self.lacks.forget(now, self.lacks_pause());
        let mut decisions = Vec::new();
        for volume in state.volumes().values() {
            let Some(decision) = self.decide_volume(now, state, volume) else { continue };
            let recent = self
                .proposed
                .get(&volume.id)
                .is_some_and(|(_, at)| now.since(*at) < self.params.retry_ms);
            if !recent {
                if let Some(assignment) = &volume.assignment
                    && self.is_gone_as_primary(now, state, volume).is_none()
                {
                    self.lacks.note(now, volume.id, assignment);
                }
                self.proposed.insert(volume.id, (decision.expect_epoch, now));
                decisions.push(decision);
            }
        }
        decisions
    }

    /// Why the volume's primary has to go, if it has.
    pub(super) fn complaint(&self, now: Millis, state: &State, volume: &Volume) -> Option<String> {
        let gone = self.is_gone_as_primary(now, state, volume);
        gone.or_else(|| {
            let primary = volume.assignment.as_ref()?.primary.id;
            let lacks = self.is_lacking(now, state, volume);
            lacks.then(|| format!("{primary} lacks members that the masters reach"))
        })
    }

    /// Why the volume's primary does not act any more in the run that it was assigned in, if so.
    fn is_gone_as_primary(&self, now: Millis, state: &State, volume: &Volume) -> Option<String> {
        let assignment = volume.assignment.as_ref()?;
        let primary = assignment.primary;
        let node = volume.replicas.get(&primary.id)?.node;
        if self.heard.get(&node).is_some_and(|heard| heard.killed) {
            return Some(format!("the process on node {node} is gone"));
        }
        if self.suspected(now, node) {
            return Some(match self.silent_ms(now, node) {
                Some(ms) => format!("node {node} was not heard for {ms} ms"),
                None => format!("node {node} was not heard since this master leads"),
            });
        }
        let registered = state.registered(volume.id, primary.id);
        let run = registered.map(|r| r.incarnation);
        let closed = run.is_none() && on(Bug::KeepClosedPrimary);
        if run != Some(primary.incarnation) && !closed {
            return Some(other_run(primary.incarnation, run));
        }
        // A voter may be wiped for a rebuild while it is listed, and be named before its node has
        // said so: it refuses the role, for it holds nothing that could be the volume's.
        if registered.is_some_and(|r| !r.complete) && !on(Bug::KeepTornPrimary) {
            return Some(format!("{} holds no complete image", primary.id));
        }
        None
    }

    fn decide_volume(&self, now: Millis, state: &State, volume: &Volume) -> Option<Decision> {
        let assignment = volume.assignment.as_ref()?;
        let reason = self.complaint(now, state, volume)?;
        let usable = |id: &ReplicaId| {
            let node = volume.replicas.get(id)?.node;
            let heard = self.heard.contains_key(&node) && !self.suspected(now, node);
            let replica = state.promotable(volume.id, *id).ok()?;
            (heard && replica != assignment.primary).then_some((replica, node))
        };
        let candidates: Vec<_> = assignment.isr.iter().filter_map(usable).collect();
        if state.acks_written(volume.id) {
            return self.decide_written(now, state, volume, &candidates, reason);
        }
        let lives = self.is_gone_as_primary(now, state, volume).is_none();
        let candidates = match self.trusted(now, state, volume, candidates, lives) {
            Trusted::Any(candidates) => candidates,
            Trusted::Alone(primary, missing) => {
                return Some(Decision {
                    volume: volume.id,
                    expect_epoch: assignment.epoch,
                    primary,
                    isr: BTreeSet::from([primary.id]),
                    stood: None,
                    missing: Some(missing),
                    reason: format!("{reason}; nobody tells whether its log has lost its end"),
                });
            }
        };
        let own = candidates.iter().find(|(replica, _)| replica.id == assignment.primary.id);
        // Of one that lives and lacks members, whoever was not tried yet takes the place; else the best log.
        let best = || {
            candidates.iter().max_by_key(|(replica, node)| {
                let report = self.reports.get(&replica.id).filter(|r| r.replica == *replica);
                let rank = report.map(|report| (report.table_epoch, report.durable));
                let load = std::cmp::Reverse(state.primaries_on(*node));
                let untried = lives && !self.lacks.has_tried(volume.id, replica.id);
                (untried, rank, load, std::cmp::Reverse(replica.id))
            })
        };
        let (primary, _) = own.or_else(best)?;
        let isr = match state.failover_loses(volume.id, primary.id) {
            Ok(true) => BTreeSet::from([primary.id]),
            Ok(false) | Err(_) => self.remaining(now, volume, primary.id, &assignment.isr),
        };
        Some(Decision {
            volume: volume.id,
            expect_epoch: assignment.epoch,
            primary: *primary,
            isr,
            stood: None,
            missing: None,
            reason,
        })
    }

    /// The in-sync set without the suspected, as far as `min_in_sync` remain; else it drops nobody. A
    /// list of voters stays as it is: its majority decides, heard or not.
    pub(super) fn remaining(
        &self,
        now: Millis,
        volume: &Volume,
        primary: ReplicaId,
        isr: &BTreeSet<ReplicaId>,
    ) -> BTreeSet<ReplicaId> {
        let stays = |id: &ReplicaId| {
            let node = volume.replicas.get(id).map(|replica| replica.node);
            *id == primary || node.is_some_and(|node| !self.suspected(now, node))
        };
        if volume.spec.durability == Durability::SyncQuorum {
            return isr.clone();
        }
        let left: BTreeSet<_> = isr.iter().copied().filter(stays).collect();
        if left.len() >= volume.spec.min_in_sync as usize { left } else { isr.clone() }
    }

    /// Why a volume has no primary that could serve, in words; `None` if it has one as far as the
    /// leader knows.
    pub fn reason(&self, now: Millis, state: &State, volume: &Volume) -> Option<String> {
        let Some(assignment) = &volume.assignment else {
            let missing = volume.replicas.values().filter(|r| r.confirmed.is_none()).count();
            return Some(format!("{missing} of its replicas are not created yet"));
        };
        let complaint = self.complaint(now, state, volume)?;
        if self.decide_volume(now, state, volume).is_some() {
            return Some(complaint);
        }
        if let Some(waits) = self.why_waiting(now, state, volume) {
            return Some(format!("{complaint}; {waits}"));
        }
        if let Some(waits) = self.why_doubting(now, state, volume) {
            return Some(format!("{complaint}; {waits}"));
        }
        let waits: Vec<_> = assignment
            .isr
            .iter()
            .filter_map(|id| volume.replicas.get(id).map(|r| format!("{id} on node {}", r.node)))
            .collect();
        Some(format!(
            "{complaint}; no in-sync replica can take over, waits for {}; if what they hold is \
             lost for good, see `sbkctl volume recover`",
            waits.join(" or ")
        ))
    }
}

fn other_run(assigned: Incarnation, registered: Option<Incarnation>) -> String {
    match registered {
        Some(now) => format!("the primary was assigned in run {assigned} and is in run {now}"),
        None => format!("the primary's node does not list it any more (run {assigned})"),
    }
}
