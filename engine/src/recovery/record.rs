//! Notes what `admit` let through. Decides nothing, commands nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::replica::{Facts, Job, Reach, ReplicaState, Session, Stage, Work};
use super::{Event, FailureKind, TransportEpoch, VolumeState};
use crate::replication::message::RecoveryId;
use crate::types::{Epoch, Lsn, Millis, ReplicaId};

/// Notes a fact.
pub(super) fn record(state: &mut VolumeState, now: Millis, event: Event) {
    match event {
        Event::Assignment { epoch, since, replicas, in_sync } => {
            assign(state, epoch, since, replicas, &in_sync);
        }
        Event::Endpoint { replica, endpoint, .. } => relocate(state, replica, endpoint),
        Event::Removal { replica, .. } => {
            state.call_off(replica);
            state.replicas.remove(&replica);
        }
        Event::ProbeSucceeded { replica, transport, .. } => {
            meet(state, replica, transport);
            state.admitted(replica).reach = Reach::Reachable { since: now };
        }
        Event::ProbeFailed { replica, .. } => lose(state, replica, "it does not answer", now),
        Event::RecoveryFacts { replica, transport, r, from, s, h, .. } => {
            meet(state, replica, transport);
            note_facts(state, replica, Facts { r, from, s, h });
        }
        Event::DurableAck { replica, lsn, .. } => {
            if let Some(facts) = &mut state.admitted(replica).recovery.facts {
                facts.r = facts.r.max(Some(lsn));
                facts.h = facts.h.max(lsn);
            }
        }
        Event::SessionDeferred { replica, .. } => set_stage(state, replica, Stage::Deferred),
        Event::SessionPrepared { replica, .. } => prepare(state, replica, now),
        Event::SessionStarted { replica, .. } => {
            set_stage(state, replica, Stage::Running { achieved: None });
        }
        Event::SessionProgress { replica, achieved, .. } => {
            set_stage(state, replica, Stage::Running { achieved: Some(achieved) });
        }
        Event::SessionClosedCompleted { replica, achieved, .. } => {
            close(state, replica, achieved, now);
        }
        Event::SessionClosedFailed { replica, session, kind, .. } => {
            end(state, replica, session, kind, now);
        }
        Event::SessionInvalidated { replica, session, .. } => {
            end(state, replica, session, FailureKind::Invalidated, now);
        }
        Event::FenceCompleted { replica, .. } => {
            let known = state.admitted(replica);
            known.work = Work::Healthy;
            known.recovery.failed_catch_ups = 0;
            known.recovery.failures = 0;
        }
        Event::FenceFailed { replica, .. } => {
            lose(state, replica, "it did not acknowledge the epoch", now);
        }
        Event::Tick => {}
    }
}

/// A new configuration. One of another tenure forgets everything but what was published and which
/// sessions are still to be stopped; one that continues keeps what it can.
fn assign(
    state: &mut VolumeState,
    epoch: Epoch,
    since: Epoch,
    wanted: BTreeMap<ReplicaId, String>,
    in_sync: &BTreeSet<ReplicaId>,
) {
    let fresh = since != state.since;
    state.epoch = epoch;
    state.since = since;
    let known: Vec<_> = state.replicas.keys().copied().collect();
    for id in known {
        if fresh || !wanted.contains_key(&id) {
            state.call_off(id);
        }
    }
    state.replicas.retain(|id, _| wanted.contains_key(id));
    for (id, endpoint) in wanted {
        let listed = in_sync.contains(&id);
        match state.replicas.get_mut(&id) {
            None => {
                state.replicas.insert(id, ReplicaState::new(endpoint, listed));
            }
            Some(known) if fresh => {
                let published = known.published.take();
                *known = ReplicaState { published, ..ReplicaState::new(endpoint, listed) };
            }
            Some(known) => {
                known.identity.in_sync = listed;
                if known.identity.endpoint != endpoint {
                    relocate(state, id, endpoint);
                }
            }
        }
    }
}

/// The replica is somewhere else: another process has to answer for it.
fn relocate(state: &mut VolumeState, id: ReplicaId, endpoint: String) {
    state.call_off(id);
    let known = state.admitted(id);
    known.forget_run();
    known.identity.endpoint = endpoint;
}

/// The replica was met in a run. A newer one than before takes all back that the old one said.
fn meet(state: &mut VolumeState, id: ReplicaId, transport: TransportEpoch) {
    if state.admitted(id).identity.transport.is_some_and(|before| before != transport) {
        state.call_off(id);
        state.admitted(id).forget_run();
    }
    state.admitted(id).identity.transport = Some(transport);
}

/// A running session and a given acknowledgement are not decided again by newer facts: a head that
/// grew is the feed's matter. But a replica that says it holds no consistent image can't go on
/// with what rests on one.
fn note_facts(state: &mut VolumeState, id: ReplicaId, facts: Facts) {
    let known = state.admitted(id);
    known.recovery.facts = Some(facts);
    if facts.r.is_some() {
        return;
    }
    match known.work {
        Work::Session(Session { job: Job::CatchUp { .. }, .. }) => state.call_off(id),
        Work::Fencing { .. } | Work::Healthy => known.work = Work::Undecided,
        Work::Session(Session { job: Job::Delta { .. } | Job::Rebuild, .. }) | Work::Undecided => {}
    }
}

fn set_stage(state: &mut VolumeState, id: ReplicaId, stage: Stage) {
    let session = state.admitted(id).session_mut().expect("an event of no session was admitted");
    session.stage = stage;
}

/// A session that was put off has all its time from here on.
fn prepare(state: &mut VolumeState, id: ReplicaId, now: Millis) {
    let session = state.admitted(id).session_mut().expect("an event of no session was admitted");
    if session.stage == Stage::Deferred {
        session.timed = now;
    }
    session.stage = Stage::Prepared;
}

fn lose(state: &mut VolumeState, id: ReplicaId, reason: &str, now: Millis) {
    state.call_off(id);
    let params = state.params.clone();
    state.admitted(id).lose(reason, now, &params);
}

/// The receiver ended the session. Short of the target it is a protocol failure: nothing is
/// believed of it, the session has failed, and the executor is told so.
fn close(state: &mut VolumeState, id: ReplicaId, achieved: Lsn, now: Millis) {
    let known = state.admitted(id);
    let session = *known.session().expect("a close of no session was admitted");
    if achieved >= session.target {
        known.complete(achieved);
        return;
    }
    if matches!(session.job, Job::CatchUp { .. }) {
        known.count_failed_catch_up(1);
    }
    lose(state, id, "its recovery session was closed short of its target", now);
}

fn end(
    state: &mut VolumeState,
    id: ReplicaId,
    session: RecoveryId,
    kind: FailureKind,
    now: Millis,
) {
    if state.called_off.get(&id).is_some_and(|stopping| stopping.session == session) {
        state.called_off.remove(&id);
        return;
    }
    let params = state.params.clone();
    state.admitted(id).fail(kind, now, &params);
}
