//! What the leader does when an operator gives up on members: whether it may be, and which replica
//! goes on.
//!
//! What is asked of nodes here is the leader's memory; the rest is checked again when the command is
//! applied. A mistake here loses data that was there, so everything that is not known is a refusal.

use std::collections::BTreeSet;

use super::detector::Detector;
use super::refusal::Refusal;
use super::state::{State, Volume};
use crate::types::{Epoch, Lsn, Millis, NodeId, ReplicaId, ReplicaRef, VolumeId};

/// A recovery that may be proposed: [`super::Command::Recover`] takes it over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The epoch that must still be in force.
    pub expect_epoch: Epoch,
    /// The replica whose log goes on.
    pub primary: ReplicaRef,
    /// Where it is.
    pub node: NodeId,
    /// The newest epoch in its table, and its durable end: all above is lost.
    pub rank: (Epoch, Lsn),
    /// The in-sync replicas that are given up, and where they are.
    pub lost: Vec<(ReplicaId, NodeId)>,
}

impl Detector {
    /// Looks whether the volume can go on only with a loss, and with which replica: of those that
    /// answer and are complete the one with the highest (table epoch, LSN).
    ///
    /// # Errors
    /// A [`Refusal`] that says which node or replica speaks against it, and what to do.
    pub fn plan_recovery(
        &self,
        now: Millis,
        state: &State,
        volume: &Volume,
        given_up: &BTreeSet<NodeId>,
    ) -> Result<Recovery, Refusal> {
        let id = volume.id;
        let assignment = volume.assignment.as_ref().ok_or(Refusal::NoEpoch { volume: id })?;
        state.check_given_up(id, given_up)?;
        for node in given_up {
            self.check_off(now, *node)?;
        }
        let isr = assignment.isr.iter().map(|replica| (*replica, volume.replicas[replica].node));
        for (replica, node) in isr.clone() {
            if !given_up.contains(&node) && state.promotable(id, replica).is_ok() {
                if self.is_alive(now, node) && self.silent_ms(now, node).is_some() {
                    return Err(Refusal::NotNeeded { replica, node });
                }
                return Err(Refusal::StillInSync { volume: id, replica, node });
            }
        }
        let mut best = None;
        for (replica, listed) in &volume.replicas {
            let node = listed.node;
            if given_up.contains(&node) || listed.confirmed.is_none() {
                continue;
            }
            if self.silent_ms(now, node).is_none() || self.suspected(now, node) {
                return Err(Refusal::Unaccounted { replica: *replica, node });
            }
            self.check_promises(volume, *replica, node, given_up)?;
            let Ok(run) = state.complete(id, *replica) else { continue };
            // Open and complete, but what this run holds was not told yet.
            let report = self.report(*replica).filter(|report| report.replica == run);
            let report = report.ok_or(Refusal::Unaccounted { replica: *replica, node })?;
            let rank = (report.table_epoch, report.durable);
            best = best.max(Some((rank, run, node)));
        }
        let (rank, primary, node) = best.ok_or(Refusal::NothingLeft { volume: id })?;
        let expect_epoch = assignment.epoch;
        Ok(Recovery { expect_epoch, primary, node, rank, lost: isr.collect() })
    }

    /// A node that is given up must not have been heard lately, by a leader that has listened.
    fn check_off(&self, now: Millis, node: NodeId) -> Result<(), Refusal> {
        if self.elected().is_some() && self.suspected(now, node) {
            return Ok(());
        }
        match (self.silent_ms(now, node), self.elected()) {
            (Some(ago_ms), _) => Err(Refusal::NodeHeard { node, ago_ms }),
            (None, elected) => {
                let least = self.params().unheard_ms;
                let listened = elected.map_or(0, |elected| now.since(elected));
                Err(Refusal::TooEarly { node, again_ms: least.saturating_sub(listened) })
            }
        }
    }

    /// Nobody who answers has heard lately from a primary that is given up: it might serve still.
    fn check_promises(
        &self,
        volume: &Volume,
        replica: ReplicaId,
        node: NodeId,
        given_up: &BTreeSet<NodeId>,
    ) -> Result<(), Refusal> {
        let Some(report) = self.report(replica) else { return Ok(()) };
        let of = |id: &ReplicaId| volume.replicas.get(id).map(|listed| listed.node);
        let to = report.promised.iter().find(|id| of(id).is_some_and(|n| given_up.contains(&n)));
        match to {
            Some(primary) => Err(Refusal::StillPromised { replica, node, primary: *primary }),
            None => Ok(()),
        }
    }
}

/// The command that carries a recovery out.
impl Recovery {
    /// For the volume that it was planned for, with the nodes that were given up.
    pub fn command(&self, volume: VolumeId, given_up: BTreeSet<NodeId>) -> super::Command {
        let (expect_epoch, primary) = (self.expect_epoch, self.primary);
        super::Command::Recover { volume, expect_epoch, primary, given_up }
    }
}
