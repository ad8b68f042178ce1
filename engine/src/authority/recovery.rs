//! What the leader does when an operator gives up on members: whether it may be, and which replica
//! goes on.
//!
//! The replicas that it may choose from stand first: each persists that it takes no part in the epoch in
//! force any more, nor in one before it. So what is still under way from a primary that was given up
//! changes nothing that was compared, and does not wipe what is left. One who stood for a recovery that
//! came to nothing says so to that primary, should it live, which burns the epoch.
//!
//! What is asked of nodes here is the leader's memory; the rest is checked again when the command is
//! applied. A mistake here loses data that was there, so everything that is not known is a refusal.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::detector::{Detector, ReplicaReport};
use super::refusal::Refusal;
use super::stand::Stand;
use super::state::{Assignment, State, Volume};
use crate::bugs::{Bug, on};
use crate::types::{Epoch, Lsn, Millis, NodeId, ReplicaId, ReplicaRef, TailId, VolumeId};

/// How long replicas are asked to stand after the operator's word: several heartbeats, and the sync of
/// a log.
pub const STAND_MS: u64 = 4_000;

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
    /// The in-sync replicas whose log is not the one that goes on, and where they are.
    pub lost: Vec<(ReplicaId, NodeId)>,
    /// The tail with which it stood, once all have that may be chosen.
    pub stood: Option<TailId>,
    /// Replicas that must stand, or take up the role that they were given, before it is known what each
    /// of them holds in the end.
    pub unstood: Vec<(ReplicaRef, NodeId)>,
}

/// Who is asked to stand for recoveries that an operator wants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Recovering {
    asked: BTreeMap<VolumeId, Asked>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Asked {
    /// The epoch that is to end.
    epoch: Epoch,
    replicas: BTreeSet<(ReplicaRef, NodeId)>,
    until: Millis,
}

/// A replica that answers and is complete.
struct Candidate<'a> {
    run: ReplicaRef,
    node: NodeId,
    report: &'a ReplicaReport,
}

impl Candidate<'_> {
    /// The newest epoch in its table, and its durable end.
    fn rank(&self) -> (Epoch, Lsn) {
        (self.report.table_epoch, self.report.durable)
    }

    /// It acts as the primary of the epoch in force, whose log every other has at most a part of: a
    /// voter that was elected before it lost its majority. It may answer reads for the rest of a
    /// lease, so nobody else is chosen beside it.
    fn leads(&self, assignment: &Assignment) -> bool {
        self.acts_in(assignment) && self.report.table_epoch == assignment.epoch
    }

    fn acts_in(&self, assignment: &Assignment) -> bool {
        self.run == assignment.primary && self.report.primary_in == Some(assignment.epoch)
    }

    /// Nobody who speaks in the epoch in force, or one before it, changes what it holds any more: it
    /// stood, or is the one who speaks in it.
    fn is_apart(&self, assignment: &Assignment) -> bool {
        self.report.stood == Some(assignment.epoch)
            || self.acts_in(assignment)
            || on(Bug::RecoverUnfenced)
    }
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
        let left = isr.clone().filter(|(replica, node)| {
            !given_up.contains(node) && state.promotable(id, *replica).is_ok()
        });
        // Voters that are no majority can elect nobody, and a log that may have lost its end is none to go
        // on with before it was compared with another.
        let too_few = !state.can_go_on(
            id,
            assignment.isr.iter().filter(|replica| left.clone().any(|(left, _)| left == **replica)),
        );
        if let Some((replica, node)) = left.clone().next().filter(|_| !too_few) {
            if self.is_alive(now, node) && self.silent_ms(now, node).is_some() {
                return Err(Refusal::NotNeeded { replica, node });
            }
            return Err(Refusal::StillInSync { volume: id, replica, node });
        }
        let mut candidates = Vec::new();
        for (replica, listed) in &volume.replicas {
            let node = listed.node;
            if given_up.contains(&node) || listed.confirmed.is_none() {
                continue;
            }
            if self.silent_ms(now, node).is_none() || self.suspected(now, node) {
                return Err(Refusal::Unaccounted { replica: *replica, node });
            }
            self.check_promises(volume, *replica, node, given_up)?;
            // [A node registered without a replica whose long log it still read, and the member that held
            // all was given up with those that were lost.]
            if state.registered(id, *replica).is_none() && self.may_return(node, *replica) {
                return Err(Refusal::NotOpenYet { replica: *replica, node });
            }
            let Ok(run) = state.complete(id, *replica) else { continue };
            // Open and complete, but what this run holds was not told yet.
            let report = self.report_of(&run);
            let report = report.ok_or(Refusal::Unaccounted { replica: *replica, node })?;
            candidates.push(Candidate { run, node, report });
        }
        let best = candidates.iter().max_by_key(|c| (c.leads(assignment), c.rank(), c.run.id));
        let best = best.ok_or(Refusal::NothingLeft { volume: id })?;
        let unstood: Vec<_> = match best.leads(assignment) {
            true => Vec::new(),
            false => candidates
                .iter()
                .filter(|candidate| !candidate.is_apart(assignment))
                .map(|candidate| (candidate.run, candidate.node))
                .collect(),
        };
        Ok(Recovery {
            expect_epoch: assignment.epoch,
            primary: best.run,
            node: best.node,
            rank: best.rank(),
            lost: isr.filter(|(id, _)| *id != best.run.id).collect(),
            stood: unstood.is_empty().then_some(best.report.tail),
            unstood,
        })
    }

    /// Asks replicas to stand for a recovery, for a while.
    pub fn ask_to_stand(&mut self, now: Millis, volume: VolumeId, plan: &Recovery) {
        let asked = Asked {
            epoch: plan.expect_epoch,
            replicas: plan.unstood.iter().copied().collect(),
            until: now.after(STAND_MS),
        };
        self.recovering.asked.retain(|_, asked| asked.until > now);
        self.recovering.asked.insert(volume, asked);
    }

    /// What replicas on the node are asked to stand for, so that a recovery may choose.
    pub(super) fn recovery_stands(&self, now: Millis, state: &State, node: NodeId) -> Vec<Stand> {
        let mut stands = Vec::new();
        for (volume, Asked { epoch, replicas, until }) in &self.recovering.asked {
            let live = state.volumes().get(volume).and_then(|v| v.assignment.as_ref());
            let live = live.filter(|assignment| *until > now && assignment.epoch == *epoch);
            let Some(assignment) = live else { continue };
            // One that is the primary of that very epoch and has not heard of it is waited for. [It
            // stood, refused its own role, and nobody else had it.]
            let others = |replica: &ReplicaRef| *replica != assignment.primary;
            for (replica, _) in replicas.iter().filter(|(run, on)| *on == node && others(run)) {
                if self.report_of(replica).is_none_or(|report| report.stood != Some(*epoch)) {
                    stands.push(Stand { volume: *volume, replica: *replica, epoch: *epoch });
                }
            }
        }
        stands
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
        let stood = self.stood;
        super::Command::Recover { volume, expect_epoch, primary, given_up, stood }
    }
}
