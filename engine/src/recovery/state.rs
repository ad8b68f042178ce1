//! What the primary of one volume knows of its other replicas' recovery.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::replica::{ReplicaState, Work};
use super::{IgnoredReason, Params, ReplicaView, view};
use crate::replication::message::RecoveryId;
use crate::types::{Epoch, Lsn, Millis, ReplicaId};

/// A session that the engine called off and whose executor has not confirmed yet that it stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CalledOff {
    pub(super) session: RecoveryId,
    /// When that was commanded; `None` if it is to be.
    pub(super) commanded: Option<Millis>,
}

/// What the primary of one volume knows of its other replicas' recovery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeState {
    pub(super) params: Params,
    /// The newest assignment's epoch; 0 before the first.
    pub(super) epoch: Epoch,
    /// The start of the tenure: what was observed in `since..=epoch` counts.
    pub(super) since: Epoch,
    /// Sessions decided so far. Never goes back, so an id is never used twice.
    pub(super) sessions: u64,
    pub(super) replicas: BTreeMap<ReplicaId, ReplicaState>,
    /// At most one per replica, for nothing new is begun with a replica before the old session is
    /// known to have stopped. Outlives the replica's removal.
    pub(super) called_off: BTreeMap<ReplicaId, CalledOff>,
}

impl VolumeState {
    /// No replica is known yet. Panics if a parameter is 0.
    pub fn new(params: Params) -> Self {
        params.assert_sane();
        Self {
            params,
            epoch: Epoch(0),
            since: Epoch(0),
            sessions: 0,
            replicas: BTreeMap::new(),
            called_off: BTreeMap::new(),
        }
    }

    /// When an [`Event::Tick`](super::Event::Tick) is due, if nothing else comes first. Later than
    /// the last step, always. An earlier or later tick does no harm.
    pub fn next_deadline(&self) -> Option<Millis> {
        let replicas = self.replicas.values().filter_map(|replica| replica.deadline(&self.params));
        let called_off = self
            .called_off
            .values()
            .filter_map(|session| Some(session.commanded?.after(self.params.command_retry_ms)));
        replicas.chain(called_off).min()
    }

    /// The operator's view of a replica: derived, never fed back. `None` for an unknown one.
    pub fn view(&self, replica: ReplicaId) -> Option<ReplicaView> {
        let stopping = self.called_off.get(&replica).map(|stopping| stopping.session);
        self.replicas.get(&replica).map(|known| view::view(known, stopping, &self.params))
    }

    /// The target of the replica's session, as it was decided; `None` if that session is over.
    pub fn target(&self, replica: ReplicaId, session: RecoveryId) -> Option<Lsn> {
        let running = self.replicas.get(&replica)?.session()?;
        (running.id == session).then_some(running.target)
    }

    /// The replicas, in the order of their ids.
    pub fn replicas(&self) -> impl Iterator<Item = ReplicaId> {
        self.replicas.keys().copied()
    }

    /// Its times and budgets.
    pub fn params(&self) -> &Params {
        &self.params
    }

    pub(super) fn known(&self, id: ReplicaId) -> Result<&ReplicaState, IgnoredReason> {
        self.replicas.get(&id).ok_or(IgnoredReason::UnknownReplica)
    }

    /// The replica of an admitted event.
    pub(super) fn admitted(&mut self, id: ReplicaId) -> &mut ReplicaState {
        self.replicas.get_mut(&id).expect("an event of an unknown replica was admitted")
    }

    /// Ends the replica's session, if there is one, by the engine's own decision. It has no effect
    /// any more; the executor is told until it confirms.
    pub(super) fn call_off(&mut self, id: ReplicaId) {
        let Some(replica) = self.replicas.get_mut(&id) else { return };
        let Some(session) = replica.session().map(|session| session.id) else { return };
        replica.work = Work::Undecided;
        let before = self.called_off.insert(id, CalledOff { session, commanded: None });
        assert!(before.is_none(), "R1: a session of {id} ran before the one before it had stopped");
    }
}
