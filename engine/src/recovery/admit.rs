//! The one place that refuses events. What it lets through, `record` notes without a further look.

use std::collections::{BTreeMap, BTreeSet};

use super::IgnoredReason::{
    Duplicate, Malformed, NotExpected, OldSession, StaleEndpoint, StaleEpoch, StaleTransport,
    UnknownEpoch, UnknownSession,
};
use super::replica::{Facts, Job, Reach, ReplicaState, Session, Stage, Work};
use super::{Event, IgnoredReason, TransportEpoch, VolumeState};
use crate::replication::message::RecoveryId;
use crate::types::{Epoch, ReplicaId};

/// Whether the event is to be taken into account. Looks, changes nothing.
pub(super) fn admit(state: &VolumeState, event: &Event) -> Result<(), IgnoredReason> {
    match event {
        Event::Tick => Ok(()),
        Event::Assignment { epoch, since, replicas, in_sync } => {
            assignment(state, *epoch, *since, replicas, in_sync)
        }
        Event::Endpoint { epoch, replica, endpoint } => {
            let known = in_tenure(state, *epoch, *replica)?;
            unless(known.identity.endpoint == *endpoint, Duplicate)
        }
        Event::Removal { epoch, replica } => in_tenure(state, *epoch, *replica).map(|_| ()),
        Event::ProbeSucceeded { epoch, replica, endpoint, transport } => {
            let known = in_tenure(state, *epoch, *replica)?;
            unless(known.identity.endpoint != *endpoint, StaleEndpoint)?;
            not_older(known, *transport)?;
            let met = known.identity.transport == Some(*transport);
            unless(met && matches!(known.reach, Reach::Reachable { .. }), Duplicate)
        }
        Event::ProbeFailed { epoch, replica, endpoint } => {
            let known = in_tenure(state, *epoch, *replica)?;
            unless(known.identity.endpoint != *endpoint, StaleEndpoint)
        }
        Event::RecoveryFacts { epoch, replica, transport, r, from, s, h } => {
            let known = in_tenure(state, *epoch, *replica)?;
            not_older(known, *transport)?;
            unless(r.is_some() && from.is_some(), Malformed)?;
            facts(known, *transport, Facts { r: *r, from: *from, s: *s, h: *h })
        }
        Event::DurableAck { epoch, replica, lsn } => {
            let known = in_tenure(state, *epoch, *replica)?;
            match known.work {
                Work::Session(Session { job: Job::CatchUp { .. }, .. })
                | Work::Fencing { .. }
                | Work::Healthy => {}
                // It names no run, so while nothing is under way it could be an older run's, and
                // the next decision rests on R. Beside a base lane the image is torn until the
                // close, and an end of the log says nothing of what the replica holds.
                Work::Undecided
                | Work::Session(Session { job: Job::Delta { .. } | Job::Rebuild, .. }) => {
                    return Err(NotExpected);
                }
            }
            let r = known.recovery.facts.and_then(|facts| facts.r).ok_or(NotExpected)?;
            unless(*lsn <= r, Duplicate)
        }
        Event::SessionDeferred { epoch, replica, session } => {
            match in_session(state, *epoch, *replica, *session)? {
                Stage::Due | Stage::Commanded { .. } => Ok(()),
                Stage::Deferred | Stage::Prepared | Stage::Running { .. } => Err(Duplicate),
            }
        }
        Event::SessionPrepared { epoch, replica, session } => {
            match in_session(state, *epoch, *replica, *session)? {
                Stage::Due | Stage::Commanded { .. } | Stage::Deferred => Ok(()),
                Stage::Prepared | Stage::Running { .. } => Err(Duplicate),
            }
        }
        Event::SessionStarted { epoch, replica, session } => {
            match in_session(state, *epoch, *replica, *session)? {
                Stage::Due | Stage::Commanded { .. } | Stage::Deferred | Stage::Prepared => Ok(()),
                Stage::Running { .. } => Err(Duplicate),
            }
        }
        Event::SessionProgress { epoch, replica, session, achieved } => {
            match in_session(state, *epoch, *replica, *session)? {
                Stage::Running { achieved: Some(before) } if *achieved <= before => Err(Duplicate),
                // Progress shows that the receiver takes part: the start was overtaken or lost.
                Stage::Due
                | Stage::Commanded { .. }
                | Stage::Deferred
                | Stage::Prepared
                | Stage::Running { .. } => Ok(()),
            }
        }
        Event::SessionClosedCompleted { epoch, replica, session, .. } => {
            in_session(state, *epoch, *replica, *session).map(|_| ())
        }
        Event::SessionClosedFailed { epoch, replica, session, .. }
        | Event::SessionInvalidated { epoch, replica, session } => {
            epoch_in_tenure(state, *epoch)?;
            // The end of a called-off session is waited for, be the replica removed or not.
            if state.called_off.get(replica).is_some_and(|stopping| stopping.session == *session) {
                return Ok(());
            }
            in_session(state, *epoch, *replica, *session).map(|_| ())
        }
        Event::FenceCompleted { epoch, replica, transport, fenced }
        | Event::FenceFailed { epoch, replica, transport, fenced } => {
            let known = in_tenure(state, *epoch, *replica)?;
            not_older(known, *transport)?;
            unless(known.identity.transport != Some(*transport), NotExpected)?;
            epoch_in_tenure(state, *fenced)?;
            match known.work {
                Work::Fencing { asked: Some(_) } => Ok(()),
                Work::Healthy => Err(Duplicate),
                Work::Fencing { asked: None } | Work::Undecided | Work::Session(_) => {
                    Err(NotExpected)
                }
            }
        }
    }
}

fn unless(refused: bool, reason: IgnoredReason) -> Result<(), IgnoredReason> {
    if refused { Err(reason) } else { Ok(()) }
}

fn assignment(
    state: &VolumeState,
    epoch: Epoch,
    since: Epoch,
    replicas: &BTreeMap<ReplicaId, String>,
    in_sync: &BTreeSet<ReplicaId>,
) -> Result<(), IgnoredReason> {
    unless(epoch == Epoch(0) || since == Epoch(0) || since > epoch, Malformed)?;
    unless(epoch < state.epoch, StaleEpoch)?;
    if epoch > state.epoch {
        return Ok(());
    }
    // An epoch determines everything but the endpoints, which follow nodes that moved.
    let same = since == state.since
        && replicas.len() == state.replicas.len()
        && state.replicas.iter().all(|(id, known)| {
            replicas.contains_key(id) && known.identity.in_sync == in_sync.contains(id)
        });
    unless(!same, Malformed)?;
    let moved = state.replicas.iter().any(|(id, known)| replicas[id] != known.identity.endpoint);
    unless(!moved, Duplicate)
}

fn epoch_in_tenure(state: &VolumeState, epoch: Epoch) -> Result<(), IgnoredReason> {
    unless(epoch < state.since, StaleEpoch)?;
    unless(epoch > state.epoch, UnknownEpoch)
}

fn in_tenure(
    state: &VolumeState,
    epoch: Epoch,
    replica: ReplicaId,
) -> Result<&ReplicaState, IgnoredReason> {
    epoch_in_tenure(state, epoch)?;
    state.known(replica)
}

fn not_older(known: &ReplicaState, transport: TransportEpoch) -> Result<(), IgnoredReason> {
    unless(known.identity.transport.is_some_and(|newest| transport < newest), StaleTransport)
}

/// Facts count when they can be the answer to the newest question, or come from a newer run.
fn facts(
    known: &ReplicaState,
    transport: TransportEpoch,
    told: Facts,
) -> Result<(), IgnoredReason> {
    if known.identity.transport != Some(transport) {
        return Ok(());
    }
    match known.reach {
        // Since they were told, the replica broke off: what it holds is asked for anew.
        Reach::Unreachable { .. } => Err(NotExpected),
        Reach::Unknown | Reach::Probing { .. } | Reach::Reachable { .. } => {
            unless(known.recovery.facts == Some(told), Duplicate)
        }
    }
}

fn in_session(
    state: &VolumeState,
    epoch: Epoch,
    replica: ReplicaId,
    session: RecoveryId,
) -> Result<Stage, IgnoredReason> {
    let known = in_tenure(state, epoch, replica)?;
    if let Some(running) = known.session().filter(|running| running.id == session) {
        return Ok(running.stage);
    }
    // Numbers are counted up through all epochs, so one that was given out is over.
    let given_out = (1..=state.sessions).contains(&session.number);
    Err(if given_out { OldSession } else { UnknownSession })
}
