//! The engine's interface as replication uses it.

use serde::{Deserialize, Serialize};

use super::{Command, Event};
use crate::types::{Millis, ReplicaId};

/// Times and budgets of recovery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Params {}

/// What the primary of one volume knows of its other replicas' recovery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeState {}

/// One replica's recovery as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaView {}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Taken into account.
    Applied,
}

impl VolumeState {
    /// No replica is known yet.
    pub fn new(_: Params) -> Self {
        Self {}
    }

    /// When a tick is due.
    pub fn next_deadline(&self) -> Option<Millis> {
        None
    }

    /// The operator's view of a replica.
    pub fn view(&self, _: ReplicaId) -> ReplicaView {
        ReplicaView {}
    }
}

/// Takes one event.
pub fn step(_: &mut VolumeState, _: Millis, _: Event) -> (Verdict, Vec<Command>) {
    (Verdict::Applied, Vec::new())
}
