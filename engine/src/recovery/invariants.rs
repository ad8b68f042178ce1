//! What must hold after every step, in release builds too.

use super::VolumeState;
use super::replica::{Escalation, Job, Published, Reach, ReplicaState, Work};
use crate::types::{Lsn, ReplicaId};

/// Panics if the state contradicts itself.
pub(super) fn assert_invariants(state: &VolumeState) {
    assert!(state.since <= state.epoch, "R6: a tenure begins after its newest epoch");
    for (id, stopping) in &state.called_off {
        assert!(stopping.session.number <= state.sessions, "R1: a session was never given out");
        assert!(stopping.commanded.is_some(), "R1: nobody was told to stop a session of {id}");
    }
    for (id, replica) in &state.replicas {
        assert_replica(state, *id, replica);
    }
}

fn assert_replica(state: &VolumeState, id: ReplicaId, replica: &ReplicaState) {
    if replica.work != Work::Undecided {
        assert!(
            matches!(replica.reach, Reach::Reachable { .. }),
            "R2: something is under way with {id}, which does not answer"
        );
        assert!(replica.identity.transport.is_some(), "R2: {id} answers, but was never met");
        assert!(replica.recovery.facts.is_some(), "R2: decided for {id} without facts");
        assert!(
            !state.called_off.contains_key(&id),
            "R1: something began with {id} before its last session had stopped"
        );
    }
    if let Work::Session(session) = &replica.work {
        assert!(session.id.epoch >= state.since, "R6: a session of another tenure runs with {id}");
        assert!(session.id.epoch <= state.epoch, "R6: a session with {id} is of no epoch");
        assert!(session.id.number <= state.sessions, "R1: a session with {id} was never given out");
        if let Job::CatchUp { from } = session.job {
            assert!(from <= session.target, "R3: a catch-up of {id} has nothing to send");
            assert!(
                replica.recovery.escalated.is_none(),
                "R4: a base lane to {id} is decided, but a catch-up runs"
            );
        }
        if let Job::Delta { from } = session.job {
            assert!(Lsn(0) < from && from <= session.target, "R3: a delta of {id} from {from}");
            assert!(
                replica.recovery.escalated != Some(Escalation::Unsettled),
                "R4: a rebuild of {id} is decided, but a delta runs"
            );
        }
    }
    let told_healthy = replica.published == Some(Published::Healthy);
    assert_eq!(told_healthy, replica.work == Work::Healthy, "R5: {id}: told otherwise than it is");
}
