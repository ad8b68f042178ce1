//! One member of the quorum: Raft, the state it applies, and the leader's memory of nodes.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sbk_engine::authority::detector::{Decision, Detector, DetectorEvent, DetectorParams};
use sbk_engine::authority::moves;
use sbk_engine::authority::stand::Stand;
use sbk_engine::authority::{Accepted, Command, Refusal, State};
use sbk_engine::types::{NodeId, ReplicaId};
use sbk_proto::v1::HeartbeatRequest;
use tokio::sync::Notify;
use tonic::Status;
use uuid::Uuid;

use crate::clock::{LOOK, now};
use crate::convert;
use crate::gate::{Gate, GateError, refused};
use crate::network::{Heard, Identity};
use crate::raft::{MemberId, Raft};
use crate::state_machine::{Answer, Proposal, StateMachine};

/// How much of a node's capacity volumes may claim, in percent. Volumes are sparse.
pub(crate) const OVERCOMMIT_PERCENT: u32 = 200;

/// How often it is looked at what is to be moved, at most.
const MOVES: Duration = Duration::from_millis(100);

/// The leader's memory: who was heard, and what was said last.
#[derive(Debug)]
pub(crate) struct Leading {
    /// Suspicion.
    pub(crate) detector: Detector,
    /// Each node's last heartbeat.
    pub(crate) heartbeats: BTreeMap<NodeId, HeartbeatRequest>,
    leads: bool,
}

/// A member. Clones share it.
#[derive(Clone)]
pub(crate) struct Member {
    /// Its number.
    pub(crate) id: MemberId,
    /// Every member's address.
    pub(crate) peers: Arc<BTreeMap<MemberId, String>>,
    /// openraft.
    pub(crate) raft: Raft,
    /// The applied state.
    pub(crate) machine: StateMachine,
    gate: Gate,
    heard: Heard,
    leading: Arc<Mutex<Leading>>,
    /// A node spoke, or its silence was noticed.
    observed: Arc<Notify>,
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member")
            .field("id", &self.id)
            .field("peers", &self.peers)
            .finish_non_exhaustive()
    }
}

impl Member {
    /// A member around a started Raft, and the task that batches its reads, which ends with the
    /// last clone.
    pub(crate) fn new(
        identity: &Identity,
        raft: Raft,
        replace_after: Duration,
    ) -> (Self, impl Future<Output = ()> + Send + use<>) {
        let replace_ms = u64::try_from(replace_after.as_millis()).unwrap_or(u64::MAX / 2);
        let params = DetectorParams { replace_ms, ..DetectorParams::default() };
        let leading =
            Leading { detector: Detector::new(params), heartbeats: BTreeMap::new(), leads: false };
        let (gate, reads) = Gate::new(identity.member, raft.clone());
        let member = Self {
            id: identity.member,
            peers: Arc::clone(&identity.peers),
            raft,
            machine: identity.state.clone(),
            gate,
            heard: Arc::clone(&identity.heard),
            leading: Arc::new(Mutex::new(leading)),
            observed: Arc::new(Notify::new()),
        };
        (member, reads)
    }

    /// The other members that were heard: the data directory that each speaks for, and how long
    /// ago.
    pub(crate) fn heard(&self) -> BTreeMap<MemberId, (Uuid, Duration)> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.iter().map(|(id, (instance, at))| (*id, (*instance, at.elapsed()))).collect()
    }

    /// The leader's memory, for a short look.
    pub(crate) fn leading(&self) -> MutexGuard<'_, Leading> {
        self.leading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this member leads and a majority answered lately. Good for what a compare-and-set
    /// checks again.
    pub(crate) fn leads(&self) -> bool {
        self.gate.leading().is_ok()
    }

    /// Refuses unless this member leads and a majority answered lately.
    pub(crate) fn require_leader(&self) -> Result<(), GateError> {
        self.gate.leading()
    }

    /// Returns once the state read next is as new as any that was answered before.
    pub(crate) async fn linearizable(&self) -> Result<(), GateError> {
        self.gate.linearize().await
    }

    /// Commits a proposal and returns what applying it answered.
    pub(crate) async fn commit(&self, proposal: Proposal) -> Result<Answer, GateError> {
        self.gate.propose(proposal).await
    }

    /// Commits a command of the authority.
    pub(crate) async fn command(
        &self,
        command: Command,
    ) -> Result<Result<Accepted, Refusal>, GateError> {
        self.gate.command(command, "").await
    }

    /// Commits a command; a refusal becomes a status.
    pub(crate) async fn accepted(&self, command: Command) -> Result<Accepted, Status> {
        self.accepted_because(command, "").await
    }

    /// As [`accepted`](Self::accepted), with a reason that is kept for people.
    pub(crate) async fn accepted_because(
        &self,
        command: Command,
        reason: &str,
    ) -> Result<Accepted, Status> {
        self.gate.command(command, reason).await?.map_err(|refusal| refused(&refusal))
    }

    /// Feeds the detector and proposes what it decides.
    pub(crate) fn observe(&self, event: DetectorEvent) {
        let decisions = {
            let applied = self.machine.read();
            self.leading().detector.step(now(), &applied.authority, event)
        };
        self.observed.notify_waiters();
        for decision in decisions {
            let member = self.clone();
            tokio::spawn(async move { member.fail_over(decision).await });
        }
    }

    /// How many disks their nodes can't use, as they said last.
    pub(crate) fn failed_disks(&self) -> u64 {
        let leading = self.leading();
        let disks = leading.heartbeats.values().flat_map(|heartbeat| &heartbeat.disks);
        disks.filter(|disk| !disk.fault.is_empty()).count() as u64
    }

    /// How many disks are below their placement watermarks, as their nodes said last.
    pub(crate) fn low_disks(&self) -> u64 {
        let leading = self.leading();
        let disks = leading.heartbeats.values().flat_map(|heartbeat| &heartbeat.disks);
        disks.filter(|disk| convert::is_low(disk)).count() as u64
    }

    /// What replicas on a node are asked to stand for.
    pub(crate) fn stands(&self, node: NodeId) -> Vec<Stand> {
        let applied = self.machine.read();
        self.leading().detector.stands(now(), &applied.authority, node)
    }

    /// Ends when the detector is told the next fact. What it is told after this call, before the first
    /// poll too, ends it.
    pub(crate) fn next_fact(&self) -> impl Future<Output = ()> + '_ {
        self.observed.notified()
    }

    async fn fail_over(&self, decision: Decision) {
        let command = decision.command();
        let Decision { volume, expect_epoch, primary, reason, .. } = decision;
        tracing::info!(%volume, epoch = %expect_epoch, primary = %primary.id, %reason, "failover proposed");
        match self.gate.command(command, &reason).await {
            Ok(Ok(_)) => tracing::info!(%volume, primary = %primary.id, "failover committed"),
            Ok(Err(refusal)) => tracing::info!(%volume, %refusal, "failover refused"),
            Err(error) => tracing::warn!(%volume, %error, "failover not committed"),
        }
    }

    /// Runs until Raft stops: follows elections, ticks the detector, looks at every change.
    pub(crate) async fn lead(self) {
        let mut metrics = self.raft.metrics();
        let mut changes = self.machine.changes();
        loop {
            let leads = self.leads();
            let was = std::mem::replace(&mut self.leading().leads, leads);
            if leads != was {
                tracing::info!(member = self.id, leads, "leadership changed");
                self.leading().heartbeats.clear();
                self.observe(if leads { DetectorEvent::Elected } else { DetectorEvent::Deposed });
            }
            let due = self.leading().detector.next_deadline(now());
            let wait = due.map_or(LOOK, |at| Duration::from_millis(at.since(now())).min(LOOK));
            tokio::select! {
                changed = metrics.changed() => if changed.is_err() { return },
                changed = changes.changed() => {
                    if changed.is_err() { return }
                    self.observe(DetectorEvent::Tick);
                }
                () = tokio::time::sleep(wait) => self.observe(DetectorEvent::Tick),
            }
        }
    }

    /// While this member leads: has replicas replaced, moved and dropped, a step at a time. Runs
    /// until Raft stops.
    pub(crate) async fn rearrange(self) {
        let metrics = self.raft.metrics();
        loop {
            let taken = if self.leads() { self.take_steps().await } else { 0 };
            // What is refused now may be taken later; what was taken shows in the state.
            let pause = if taken > 0 { MOVES } else { MOVES * 5 };
            tokio::time::sleep(pause).await;
            if metrics.borrow().running_state.is_err() {
                return;
            }
        }
    }

    /// Proposes every step that can be taken now. Returns how many were.
    async fn take_steps(&self) -> usize {
        let steps = {
            let applied = self.machine.read();
            let leading = self.leading();
            moves::steps(&applied.authority, &leading.detector, now(), OVERCOMMIT_PERCENT)
        };
        let mut taken = 0;
        for step in steps {
            tracing::info!(?step, "a move is proposed");
            match self.command(step.command(ReplicaId(Uuid::new_v4()), OVERCOMMIT_PERCENT)).await {
                Ok(Ok(_)) => taken += 1,
                Ok(Err(refusal)) => tracing::info!(%refusal, "a move was refused"),
                Err(error) => {
                    tracing::warn!(%error, "a move was not committed");
                    break;
                }
            }
        }
        taken
    }

    /// Reads the authority's state.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.machine.read().authority)
    }
}
