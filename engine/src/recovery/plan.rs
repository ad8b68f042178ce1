//! Emits what is missing, from the state alone.

use super::decision::Kind;
use super::replica::{Job, Published, Reach, ReplicaState, Session, Stage, Work};
use super::{Command, FailureKind, Params, VolumeState};
use crate::bugs::{Bug, on};
use crate::replication::message::RecoveryId;
use crate::types::{Epoch, Lsn, Millis, ReplicaId};

/// What there is to do: first what is to stop, then for each replica in the order of their ids
/// what to ask it, what to begin with it, what to tell of it.
pub(super) fn plan(state: &mut VolumeState, now: Millis) -> Vec<Command> {
    let mut commands = Vec::new();
    time_out_starts(state, now);
    stop_sessions(state, now, &mut commands);
    let VolumeState { params, epoch, sessions, replicas, called_off, .. } = state;
    for (id, replica) in replicas {
        let at = At { epoch: *epoch, replica: *id, now, params };
        commands.extend(at.probe(replica));
        // Nothing is begun while an older session may still be writing to it.
        if !called_off.contains_key(id) {
            at.decide(replica, sessions);
            commands.extend(at.work(replica));
        }
        commands.extend(at.publish(replica));
    }
    commands
}

/// Calls off sessions whose receiver took no part in time.
fn time_out_starts(state: &mut VolumeState, now: Millis) {
    let params = state.params.clone();
    let late: Vec<_> = state
        .replicas
        .iter()
        .filter(|(_, replica)| {
            let deadline = replica.session().and_then(|session| session.start_deadline(&params));
            deadline.is_some_and(|deadline| now >= deadline)
        })
        .map(|(id, _)| *id)
        .collect();
    for id in late {
        let session = state.admitted(id).session().copied();
        state.call_off(id);
        let replica = state.admitted(id);
        if let Some(session) = session {
            // The failure is the session's, so it is still there while it is noted.
            replica.work = Work::Session(session);
            replica.fail(FailureKind::StartTimeout, now, &params);
        }
    }
}

fn stop_sessions(state: &mut VolumeState, now: Millis, commands: &mut Vec<Command>) {
    let epoch = state.epoch;
    for (replica, stopping) in &mut state.called_off {
        if is_due(stopping.commanded, state.params.command_retry_ms, now) {
            stopping.commanded = Some(now);
            let (replica, session) = (*replica, stopping.session);
            commands.push(Command::InvalidateSession { epoch, replica, session });
        }
    }
}

/// Whether something never commanded, or commanded too long ago without a fact, is to be commanded.
fn is_due(commanded: Option<Millis>, retry_ms: u64, now: Millis) -> bool {
    commanded.is_none_or(|at| now >= at.after(retry_ms))
}

/// Where and when a replica's plan is made.
struct At<'a> {
    epoch: Epoch,
    replica: ReplicaId,
    now: Millis,
    params: &'a Params,
}

impl At<'_> {
    fn probe(&self, replica: &mut ReplicaState) -> Option<Command> {
        let due = match replica.reach {
            Reach::Unknown => true,
            Reach::Probing { since } => self.now >= since.after(self.params.probe_timeout_ms),
            Reach::Unreachable { retry_at, .. } => self.now >= retry_at,
            Reach::Reachable { since } => {
                let silent = replica.recovery.facts.is_none();
                silent && self.now >= since.after(self.params.probe_timeout_ms)
            }
        };
        due.then(|| {
            replica.reach = Reach::Probing { since: self.now };
            Command::Probe {
                epoch: self.epoch,
                replica: self.replica,
                endpoint: replica.identity.endpoint.clone(),
            }
        })
    }

    /// Turns the facts of a replica that answers into work.
    fn decide(&self, replica: &mut ReplicaState, sessions: &mut u64) {
        if replica.work != Work::Undecided || !matches!(replica.reach, Reach::Reachable { .. }) {
            return;
        }
        let mut session = |job, target: Lsn| {
            *sessions = if on(Bug::ReuseSessionId) { 1 } else { *sessions + 1 };
            let id = RecoveryId { epoch: self.epoch, number: *sessions };
            Work::Session(Session { id, job, target, timed: self.now, stage: Stage::Due })
        };
        replica.work = match replica.decision(self.params) {
            None => Work::Undecided,
            Some(Kind::None) => Work::Fencing { asked: None },
            Some(Kind::CatchUp { from, target }) => session(Job::CatchUp { from }, target),
            Some(Kind::Delta { from, target }) => session(Job::Delta { from }, target),
            Some(Kind::Rebuild { target }) => session(Job::Rebuild, target),
        };
    }

    fn work(&self, replica: &mut ReplicaState) -> Option<Command> {
        let (epoch, id) = (self.epoch, self.replica);
        let transport = replica.identity.transport?;
        match &mut replica.work {
            Work::Undecided | Work::Healthy => None,
            Work::Fencing { asked } => {
                is_due(*asked, self.params.fence_retry_ms, self.now).then(|| {
                    *asked = Some(self.now);
                    Command::FenceAtEpoch { epoch, replica: id, transport }
                })
            }
            Work::Session(session) => {
                let commanded = match session.stage {
                    Stage::Due => None,
                    Stage::Commanded { at } => Some(at),
                    Stage::Deferred | Stage::Prepared | Stage::Running { .. } => return None,
                };
                is_due(commanded, self.params.command_retry_ms, self.now).then(|| {
                    session.stage = Stage::Commanded { at: self.now };
                    let (target, session_id) = (session.target, session.id);
                    match session.job {
                        Job::CatchUp { from } => Command::StartCatchUp {
                            epoch,
                            replica: id,
                            transport,
                            session: session_id,
                            from,
                            target,
                        },
                        Job::Delta { from } => Command::StartDelta {
                            epoch,
                            replica: id,
                            transport,
                            session: session_id,
                            from,
                            target,
                        },
                        Job::Rebuild => Command::StartRebuild {
                            epoch,
                            replica: id,
                            transport,
                            session: session_id,
                            target,
                        },
                    }
                })
            }
        }
    }

    fn publish(&self, replica: &mut ReplicaState) -> Option<Command> {
        let due = if replica.work == Work::Healthy {
            Published::Healthy
        } else if let Reach::Unreachable { reason, .. } = &replica.reach {
            Published::Degraded { reason: reason.clone() }
        } else if replica.published == Some(Published::Healthy) {
            Published::Degraded { reason: "it is being looked at anew".to_owned() }
        } else {
            return None;
        };
        if replica.published.as_ref() == Some(&due) {
            return None;
        }
        let (epoch, id) = (self.epoch, self.replica);
        let command = match &due {
            Published::Healthy => Command::PublishHealthy { epoch, replica: id },
            Published::Degraded { reason } => {
                Command::PublishDegraded { epoch, replica: id, reason: reason.clone() }
            }
        };
        replica.published = Some(due);
        Some(command)
    }
}
