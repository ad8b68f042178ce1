//! The recovery engine: facts in, commands out.
//!
//! Handlers record facts; [`step`] ends with one plan that emits what is missing. Every command is
//! repeated after a deadline until a fact shows it done, so a lost one repairs itself.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::state::{Fence, Kind, Published, Reach, ReplicaState, Session};
use super::{Command, Event, FailureKind, ReplicaView, TransportEpoch};
use crate::replication::message::RecoveryId;
use crate::types::{Epoch, Lsn, Millis, ReplicaId};

/// Times and budgets of recovery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Params {
    /// A probe, or the facts that follow it, without an answer is repeated after this.
    pub probe_timeout_ms: u64,
    /// The first pause after a failed probe; doubles up to `probe_backoff_max_ms`.
    pub probe_backoff_ms: u64,
    /// The longest pause between probes.
    pub probe_backoff_max_ms: u64,
    /// A session whose receiver took no part for so long failed to start.
    pub start_timeout_ms: u64,
    /// A fence without an acknowledgement is repeated after this.
    pub fence_retry_ms: u64,
    /// Catch-ups in a row that may fail before the replica is rebuilt.
    pub catch_up_budget: u32,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            probe_timeout_ms: 3000,
            probe_backoff_ms: 100,
            probe_backoff_max_ms: 1000,
            start_timeout_ms: 5000,
            fence_retry_ms: 1000,
            catch_up_budget: 5,
        }
    }
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It was taken into account.
    Applied,
    /// It changed nothing, and why.
    Ignored(IgnoredReason),
}

/// Why an event changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IgnoredReason {
    /// Observed before this primary's tenure, or an assignment not newer than the one in force.
    StaleEpoch,
    /// Observed in an epoch that no assignment has named.
    UnknownEpoch,
    /// Not a replica of the volume.
    UnknownReplica,
    /// The replica moved since.
    StaleEndpoint,
    /// The replica was met in another run since.
    StaleTransport,
    /// No such session, or it is over.
    UnknownSession,
    /// Says nothing new.
    Duplicate,
    /// Contradicts what it is about: a close short of its target, progress that goes back.
    Malformed,
}

/// What the primary of one volume knows of its other replicas' recovery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeState {
    params: Params,
    epoch: Epoch,
    since: Epoch,
    sessions: u64,
    replicas: BTreeMap<ReplicaId, ReplicaState>,
}

impl VolumeState {
    /// No replica is known yet.
    pub fn new(params: Params) -> Self {
        Self { params, epoch: Epoch(0), since: Epoch(0), sessions: 0, replicas: BTreeMap::new() }
    }

    /// When an [`Event::Tick`] is due, if nothing else comes first.
    pub fn next_deadline(&self) -> Option<Millis> {
        self.replicas.values().filter_map(|replica| replica.deadline(&self.params)).min()
    }

    /// The operator's view of a replica: derived, never fed back.
    pub fn view(&self, replica: ReplicaId) -> Option<ReplicaView> {
        self.replicas.get(&replica).map(ReplicaState::view)
    }

    fn replica(&mut self, id: ReplicaId) -> Result<&mut ReplicaState, IgnoredReason> {
        self.replicas.get_mut(&id).ok_or(IgnoredReason::UnknownReplica)
    }

    fn met(
        &mut self,
        id: ReplicaId,
        transport: TransportEpoch,
    ) -> Result<&mut ReplicaState, IgnoredReason> {
        let replica = self.replica(id)?;
        match replica.transport {
            // Facts may overtake the probe's answer.
            Some(known) if known > transport => Err(IgnoredReason::StaleTransport),
            Some(_) | None => Ok(replica),
        }
    }

    fn session(
        &mut self,
        id: ReplicaId,
        session: RecoveryId,
    ) -> Result<&mut ReplicaState, IgnoredReason> {
        let replica = self.replica(id)?;
        match &replica.session {
            Some(running) if running.id == session => Ok(replica),
            Some(_) | None => Err(IgnoredReason::UnknownSession),
        }
    }
}

/// Takes one event. The same state, time and event give the same verdict and commands, always.
pub fn step(state: &mut VolumeState, now: Millis, event: Event) -> (Verdict, Vec<Command>) {
    let mut commands = Vec::new();
    let verdict = match admit(state, &event).and_then(|()| handle(state, now, event, &mut commands))
    {
        Ok(()) => Verdict::Applied,
        Err(reason) => Verdict::Ignored(reason),
    };
    plan(state, now, &mut commands);
    assert_invariants(state);
    (verdict, commands)
}

/// Refuses what is stale. Handlers never look at epochs again.
fn admit(state: &VolumeState, event: &Event) -> Result<(), IgnoredReason> {
    let (epoch, replica) = match event {
        Event::Tick => return Ok(()),
        Event::Assignment { epoch, .. } => {
            let newer = *epoch > state.epoch;
            return if newer { Ok(()) } else { Err(IgnoredReason::StaleEpoch) };
        }
        Event::Endpoint { epoch, replica, .. }
        | Event::Removal { epoch, replica }
        | Event::ProbeSucceeded { epoch, replica, .. }
        | Event::ProbeFailed { epoch, replica, .. }
        | Event::RecoveryFacts { epoch, replica, .. }
        | Event::DurableAck { epoch, replica, .. }
        | Event::SessionPrepared { epoch, replica, .. }
        | Event::SessionStarted { epoch, replica, .. }
        | Event::SessionProgress { epoch, replica, .. }
        | Event::SessionClosedCompleted { epoch, replica, .. }
        | Event::SessionClosedFailed { epoch, replica, .. }
        | Event::SessionInvalidated { epoch, replica, .. }
        | Event::FenceCompleted { epoch, replica, .. }
        | Event::FenceFailed { epoch, replica, .. } => (epoch, replica),
    };
    if *epoch < state.since {
        return Err(IgnoredReason::StaleEpoch);
    }
    if *epoch > state.epoch {
        return Err(IgnoredReason::UnknownEpoch);
    }
    if !state.replicas.contains_key(replica) {
        return Err(IgnoredReason::UnknownReplica);
    }
    Ok(())
}

/// Records a fact.
fn handle(
    state: &mut VolumeState,
    now: Millis,
    event: Event,
    commands: &mut Vec<Command>,
) -> Result<(), IgnoredReason> {
    let (epoch, since) = (state.epoch, state.since);
    match event {
        Event::Assignment { epoch, since, replicas, in_sync } => {
            assign(state, epoch, since, replicas, &in_sync, commands);
        }
        Event::Endpoint { replica, endpoint, .. } => {
            let known = state.replica(replica)?;
            if known.endpoint == endpoint {
                return Err(IgnoredReason::Duplicate);
            }
            call_off(epoch, replica, known, commands);
            known.endpoint = endpoint;
            known.forget_run();
        }
        Event::Removal { replica, .. } => {
            call_off(epoch, replica, state.replica(replica)?, commands);
            state.replicas.remove(&replica);
        }
        Event::ProbeSucceeded { replica, endpoint, transport, .. } => {
            let known = state.met(replica, transport)?;
            if known.endpoint != endpoint {
                return Err(IgnoredReason::StaleEndpoint);
            }
            if known.transport.is_some_and(|before| before < transport) {
                call_off(epoch, replica, known, commands);
                known.forget_run();
            }
            known.transport = Some(transport);
            known.reach = Reach::Reachable { since: now };
        }
        Event::ProbeFailed { replica, endpoint, .. } => {
            let backoff = (state.params.probe_backoff_ms, state.params.probe_backoff_max_ms);
            let known = state.replica(replica)?;
            if known.endpoint != endpoint {
                return Err(IgnoredReason::StaleEndpoint);
            }
            call_off(epoch, replica, known, commands);
            known.lose("it does not answer", now, backoff);
        }
        Event::RecoveryFacts { replica, transport, r, s, h, .. } => {
            let known = state.met(replica, transport)?;
            if known.transport.is_some_and(|before| before < transport) {
                call_off(epoch, replica, known, commands);
                known.forget_run();
                known.transport = Some(transport);
            }
            // What a running session or a given acknowledgement decided is not decided again.
            known.note_facts(r, s, h);
        }
        Event::DurableAck { replica, lsn, .. } => state.replica(replica)?.note_durable(lsn)?,
        Event::SessionPrepared { replica, session, .. } => {
            let running = state.session(replica, session)?;
            running.update_session(|s| !std::mem::replace(&mut s.prepared, true))?;
        }
        Event::SessionStarted { replica, session, .. } => {
            let running = state.session(replica, session)?;
            running.update_session(|s| !std::mem::replace(&mut s.started, true))?;
        }
        Event::SessionProgress { replica, session, achieved, .. } => {
            let running = state.session(replica, session)?;
            running.update_session(|s| {
                let newer = s.achieved.is_none_or(|before| achieved > before);
                s.achieved = s.achieved.max(Some(achieved));
                newer
            })?;
        }
        Event::SessionClosedCompleted { replica, session, achieved, .. } => {
            let running = state.session(replica, session)?;
            running.complete(achieved)?;
        }
        Event::SessionClosedFailed { replica, session, kind, .. } => {
            let params = state.params.clone();
            state.session(replica, session)?.fail(kind, now, &params);
        }
        Event::SessionInvalidated { replica, session, .. } => {
            let params = state.params.clone();
            state.session(replica, session)?.fail(FailureKind::Invalidated, now, &params);
        }
        Event::FenceCompleted { replica, transport, fenced, .. } => {
            let known = state.met(replica, transport)?;
            if fenced < since || fenced > epoch {
                return Err(IgnoredReason::StaleEpoch);
            }
            if !matches!(known.fence, Fence::Asked { .. }) {
                return Err(IgnoredReason::Duplicate);
            }
            known.fence = Fence::Acknowledged;
        }
        Event::FenceFailed { replica, transport, .. } => {
            let backoff = (state.params.probe_backoff_ms, state.params.probe_backoff_max_ms);
            let known = state.met(replica, transport)?;
            if !matches!(known.fence, Fence::Asked { .. }) {
                return Err(IgnoredReason::Duplicate);
            }
            known.lose("it did not acknowledge the epoch", now, backoff);
        }
        Event::Tick => {}
    }
    Ok(())
}

fn assign(
    state: &mut VolumeState,
    epoch: Epoch,
    since: Epoch,
    wanted: BTreeMap<ReplicaId, String>,
    in_sync: &BTreeSet<ReplicaId>,
    commands: &mut Vec<Command>,
) {
    let fresh = since > state.epoch;
    state.epoch = epoch;
    state.since = since;
    for (id, replica) in &mut state.replicas {
        let kept = wanted.get(id) == Some(&replica.endpoint);
        if fresh || !kept {
            call_off(epoch, *id, replica, commands);
        }
    }
    if fresh {
        state.replicas.clear();
    }
    state.replicas.retain(|id, _| wanted.contains_key(id));
    for (id, endpoint) in wanted {
        let replica =
            state.replicas.entry(id).or_insert_with(|| ReplicaState::new(endpoint.clone()));
        if replica.endpoint != endpoint {
            replica.endpoint = endpoint;
            replica.forget_run();
        }
        replica.in_sync = in_sync.contains(&id);
    }
}

/// Ends a running session by the engine's own decision.
fn call_off(epoch: Epoch, id: ReplicaId, replica: &mut ReplicaState, commands: &mut Vec<Command>) {
    if let Some(session) = replica.session.take() {
        commands.push(Command::InvalidateSession { epoch, replica: id, session: session.id });
    }
}

/// Emits what is missing.
fn plan(state: &mut VolumeState, now: Millis, commands: &mut Vec<Command>) {
    let (epoch, params) = (state.epoch, state.params.clone());
    for (id, replica) in &mut state.replicas {
        let overdue = replica.session.as_ref().is_some_and(|session| {
            !session.started && now.since(session.decided) >= params.start_timeout_ms
        });
        if overdue {
            if let Some(session) = &replica.session {
                let session = session.id;
                commands.push(Command::InvalidateSession { epoch, replica: *id, session });
            }
            replica.fail(FailureKind::StartTimeout, now, &params);
        }
        plan_probe(epoch, *id, replica, now, &params, commands);
        plan_work(epoch, *id, replica, now, &params, &mut state.sessions, commands);
        plan_publication(epoch, *id, replica, commands);
    }
}

fn plan_probe(
    epoch: Epoch,
    id: ReplicaId,
    replica: &mut ReplicaState,
    now: Millis,
    params: &Params,
    commands: &mut Vec<Command>,
) {
    let due = match replica.reach {
        Reach::Unknown => true,
        Reach::Probing { since } => now.since(since) >= params.probe_timeout_ms,
        Reach::Unreachable { retry_at, .. } => now >= retry_at,
        // It answered, but what it holds was never told.
        Reach::Reachable { since } => {
            replica.facts.is_none() && now.since(since) >= params.probe_timeout_ms
        }
    };
    if due {
        replica.reach = Reach::Probing { since: now };
        let endpoint = replica.endpoint.clone();
        commands.push(Command::Probe { epoch, replica: id, endpoint });
    }
}

fn plan_work(
    epoch: Epoch,
    id: ReplicaId,
    replica: &mut ReplicaState,
    now: Millis,
    params: &Params,
    sessions: &mut u64,
    commands: &mut Vec<Command>,
) {
    let (Reach::Reachable { .. }, Some(transport)) = (&replica.reach, replica.transport) else {
        return;
    };
    if replica.session.is_some() {
        return;
    }
    if let Fence::Asked { at } = replica.fence {
        if now.since(at) >= params.fence_retry_ms {
            replica.fence = Fence::Asked { at: now };
            commands.push(Command::FenceAtEpoch { epoch, replica: id, transport });
        }
        return;
    }
    if replica.fence == Fence::Acknowledged {
        return;
    }
    let Some(kind) = replica.decision() else { return };
    let mut start = |kind, target| {
        *sessions += 1;
        let number = RecoveryId { epoch, number: *sessions };
        replica.session = Some(Session {
            id: number,
            kind,
            target,
            achieved: None,
            prepared: false,
            started: false,
            decided: now,
        });
        number
    };
    match kind {
        Kind::None => {
            replica.fence = Fence::Asked { at: now };
            commands.push(Command::FenceAtEpoch { epoch, replica: id, transport });
        }
        Kind::CatchUp { from, target } => {
            let session = start(kind, target);
            let command =
                Command::StartCatchUp { epoch, replica: id, transport, session, from, target };
            commands.push(command);
        }
        Kind::Rebuild { target } => {
            let session = start(kind, target);
            commands.push(Command::StartRebuild { epoch, replica: id, transport, session, target });
        }
    }
}

fn plan_publication(
    epoch: Epoch,
    id: ReplicaId,
    replica: &mut ReplicaState,
    commands: &mut Vec<Command>,
) {
    let due = if replica.fence == Fence::Acknowledged {
        Published::Healthy
    } else if let Reach::Unreachable { reason, .. } = &replica.reach {
        Published::Degraded { reason: reason.clone() }
    } else if replica.published == Some(Published::Healthy) {
        Published::Degraded { reason: "it is being looked at anew".to_owned() }
    } else {
        return;
    };
    if replica.published.as_ref() == Some(&due) {
        return;
    }
    commands.push(match &due {
        Published::Healthy => Command::PublishHealthy { epoch, replica: id },
        Published::Degraded { reason } => {
            Command::PublishDegraded { epoch, replica: id, reason: reason.clone() }
        }
    });
    replica.published = Some(due);
}

/// Panics if the state contradicts itself.
fn assert_invariants(state: &VolumeState) {
    assert!(state.since <= state.epoch, "a tenure begins before its newest epoch");
    for replica in state.replicas.values() {
        if let Some(session) = &replica.session {
            assert!(
                replica.fence == Fence::Unasked,
                "a replica under recovery acknowledged the epoch as whole"
            );
            assert!(session.id.epoch >= state.since, "a session of another tenure is running");
            assert_eq!(session.target, session.kind.target(), "a session's target never changes");
        }
        if replica.published == Some(Published::Healthy) {
            assert!(replica.fence == Fence::Acknowledged, "healthy without an acknowledged fence");
        }
    }
}

/// What R, S and H decide. `r` is `None` for a replica without a consistent image.
pub fn decide(r: Option<Lsn>, s: Lsn, h: Lsn) -> Kind {
    match r {
        None => Kind::Rebuild { target: h },
        Some(r) if r >= h => Kind::None,
        Some(r) if s <= r.next() => Kind::CatchUp { from: r.next(), target: h },
        Some(_) => Kind::Rebuild { target: h },
    }
}
