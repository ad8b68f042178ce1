//! Changes of a configuration in force, each a compare-and-set on the epoch.

use std::collections::BTreeSet;

use super::command::{Accepted, Response};
use super::refusal::Refusal;
use super::state::{Assignment, Durability, State};
use crate::bugs::{Bug, on};
use crate::replication::io::IsrChange;
use crate::types::{Epoch, ReplicaId, ReplicaRef, TailId, VolumeId};

impl State {
    /// The replica in the incarnation that may be made primary without a loss, if it is in sync.
    pub fn promotable(&self, volume: VolumeId, replica: ReplicaId) -> Result<ReplicaRef, Refusal> {
        let run = self.complete(volume, replica)?;
        match self.has_kept(volume, replica) {
            true => Ok(run),
            false => Err(Refusal::TailLost { replica }),
        }
    }

    /// Whether an in-sync replica has, as far as its node registered it, all that it acknowledged:
    /// with written acknowledgements a power cut may have taken some.
    pub fn has_kept(&self, volume: VolumeId, replica: ReplicaId) -> bool {
        let Some(live) = self.volumes.get(&volume) else { return false };
        let listed = live.assignment.as_ref().and_then(|a| a.tails.get(&replica));
        on(Bug::TrustNewTail)
            || listed.is_none_or(|listed| self.tail(volume, replica) == Some(*listed))
    }

    /// The replica in the incarnation that it is registered with: listed, confirmed, and registered
    /// as open and complete.
    pub fn complete(&self, volume: VolumeId, replica: ReplicaId) -> Result<ReplicaRef, Refusal> {
        let listed = self.live(volume)?.replicas.get(&replica);
        match listed {
            None => return Err(Refusal::UnknownReplica { volume, replica }),
            Some(r) if r.confirmed.is_none() => return Err(Refusal::NotConfirmed { replica }),
            Some(_) => {}
        }
        match self.registered(volume, replica) {
            Some(r) if r.complete => Ok(ReplicaRef { id: replica, incarnation: r.incarnation }),
            Some(_) | None => Err(Refusal::NotComplete { replica }),
        }
    }

    /// The assignment in force if it is the expected one.
    pub(super) fn in_force(
        &self,
        volume: VolumeId,
        expected: Epoch,
    ) -> Result<&Assignment, Refusal> {
        let assignment =
            self.live(volume)?.assignment.as_ref().ok_or(Refusal::NoEpoch { volume })?;
        if assignment.epoch != expected {
            let config = self.config(volume).expect("a volume with an assignment has a config");
            return Err(Refusal::StaleEpoch { expected, config: Box::new(config) });
        }
        Ok(assignment)
    }

    pub(super) fn check_run(&self, volume: VolumeId, replica: ReplicaRef) -> Result<(), Refusal> {
        let registered = self.registered(volume, replica.id).map(|r| r.incarnation);
        if registered != Some(replica.incarnation) {
            let given = replica.incarnation;
            return Err(Refusal::StaleIncarnation { replica: replica.id, given, registered });
        }
        Ok(())
    }

    pub(super) fn propose_isr(
        &mut self,
        volume: VolumeId,
        expected: Epoch,
        primary: ReplicaRef,
        change: &IsrChange,
    ) -> Response {
        let assignment = self.in_force(volume, expected)?;
        if assignment.primary != primary {
            let (replica, incarnation) = (primary.id, primary.incarnation);
            return Err(Refusal::NotPrimary { volume, replica, incarnation });
        }
        // A run that ended may have left a proposal on its way: its tenure is over.
        if !on(Bug::ProposalOfEndedRun) {
            self.check_run(volume, primary)?;
        }
        let joined = match change {
            IsrChange::Join { replica } => self.tail(volume, replica.id).map(|t| (replica.id, t)),
            IsrChange::Leave { .. }
            | IsrChange::Burn
            | IsrChange::Yield { .. }
            | IsrChange::HandOver { .. }
            | IsrChange::Resized { .. }
            | IsrChange::KeepSize { .. } => None,
        };
        let joined = joined.filter(|_| self.acks_written(volume));
        let isr = match change {
            IsrChange::Leave { replica } => self.without(volume, assignment, *replica)?,
            IsrChange::Join { replica } => self.with(volume, assignment, *replica)?,
            IsrChange::Burn => assignment.isr.clone(),
            IsrChange::Yield { to } => return self.yield_to(volume, expected, *to),
            IsrChange::HandOver { to } => return self.hand_over(volume, expected, *to),
            IsrChange::Resized { blocks } => return self.publish_size(volume, *blocks),
            IsrChange::KeepSize { wished, lba } => return self.keep_size(volume, *wished, *lba),
        };
        if let IsrChange::Join { replica } = change {
            self.mark_complete(volume, replica.id);
        }
        self.mint(volume, |assignment| {
            assignment.isr = isr;
            assignment.tails.extend(joined);
            if let IsrChange::Join { replica } = change {
                assignment.missing.remove(&replica.id);
            }
        })
    }

    /// A candidate declined: the voter whose log is the best is primary instead. Nothing else
    /// changes, and it is a candidate itself: it takes nobody's word for what it holds.
    fn yield_to(&mut self, volume: VolumeId, expected: Epoch, to: ReplicaRef) -> Response {
        if self.live(volume)?.spec.durability != Durability::SyncQuorum {
            let why = "only a candidate of a sync_quorum volume declines".to_owned();
            return Err(Refusal::BadIsr { volume, why });
        }
        let isr = self.in_force(volume, expected)?.isr.clone();
        self.failover(volume, expected, to, &isr, None)
    }

    fn without(
        &self,
        volume: VolumeId,
        assignment: &Assignment,
        replica: ReplicaId,
    ) -> Result<BTreeSet<ReplicaId>, Refusal> {
        if replica == assignment.primary.id {
            return Err(Refusal::PrimaryCantLeave { replica });
        }
        let mut isr = assignment.isr.clone();
        if !isr.remove(&replica) {
            return Err(Refusal::NotInSync { volume, replica });
        }
        let min_in_sync = self.live(volume)?.spec.min_in_sync;
        if isr.len() < min_in_sync as usize && !on(Bug::ShrinkBelowMin) {
            let left = isr.len() as u32;
            return Err(Refusal::BelowMinInSync { volume, left, min_in_sync });
        }
        Ok(isr)
    }

    fn with(
        &self,
        volume: VolumeId,
        assignment: &Assignment,
        replica: ReplicaRef,
    ) -> Result<BTreeSet<ReplicaId>, Refusal> {
        let id = replica.id;
        match self.live(volume)?.replicas.get(&id) {
            None => return Err(Refusal::UnknownReplica { volume, replica: id }),
            Some(r) if r.confirmed.is_none() => {
                return Err(Refusal::NotConfirmed { replica: id });
            }
            Some(_) => {}
        }
        // The proposal speaks of what that run of the replica acknowledged; a later run may have
        // come back with less.
        if !on(Bug::JoinOfOtherRun) {
            self.check_run(volume, replica)?;
        }
        let mut isr = assignment.isr.clone();
        match isr.insert(id) || !self.has_kept(volume, id) {
            true => Ok(isr),
            false => Err(Refusal::AlreadyInSync { volume, replica: id }),
        }
    }

    /// The primary saw the replica's terminal close: it is whole, whatever it was when it
    /// registered.
    fn mark_complete(&mut self, volume: VolumeId, replica: ReplicaId) {
        let node = self.volumes[&volume].replicas[&replica].node;
        let registration = self.nodes.get_mut(&node).expect("checked: its node is registered");
        let entry = registration.replicas.get_mut(&replica).expect("checked: it is registered");
        entry.complete = true;
    }

    pub(super) fn failover(
        &mut self,
        volume: VolumeId,
        expected: Epoch,
        primary: ReplicaRef,
        isr: &BTreeSet<ReplicaId>,
        stood: Option<TailId>,
    ) -> Response {
        let assignment = self.in_force(volume, expected)?;
        let replica = primary.id;
        if assignment.primary == primary {
            return Err(Refusal::AlreadyPrimary { replica });
        }
        if !assignment.isr.contains(&replica) && !on(Bug::PromoteOutsideIsr) {
            return Err(Refusal::NotInSync { volume, replica });
        }
        self.check_run(volume, primary)?;
        self.promotable(volume, replica)?;
        self.check_stood(volume, replica, stood)?;
        self.check_reduced(volume, assignment, replica, isr)?;
        if self.failover_loses(volume, replica)? {
            if isr.len() != 1 {
                let why = "a failover to a member that may lack writes leaves it alone in sync";
                return Err(Refusal::BadIsr { volume, why: why.to_owned() });
            }
            if !on(Bug::UntracedLoss) {
                return self.mint_lossy(volume, primary);
            }
        }
        self.mint(volume, |assignment| {
            let kept = assignment.handed_over_by.filter(|_| on(Bug::WaiverOutlives));
            assignment.begin_tenure(primary, kept);
            assignment.isr = isr.clone();
        })
    }

    /// The primary hands its role over, as it was wished or because it is about to stop. It is no
    /// failover: the heir holds everything, so nothing is lost in any mode, and nobody leaves.
    fn hand_over(&mut self, volume: VolumeId, expected: Epoch, to: ReplicaRef) -> Response {
        let assignment = self.in_force(volume, expected)?;
        let (from, replica) = (assignment.primary, to.id);
        if from.id == replica {
            return Err(Refusal::AlreadyPrimary { replica });
        }
        if !assignment.isr.contains(&replica) {
            return Err(Refusal::NotInSync { volume, replica });
        }
        self.check_run(volume, to)?;
        self.promotable(volume, replica)?;
        let live = self.volumes.get_mut(&volume).expect("checked: the volume is live");
        live.wish.primary = live.wish.primary.filter(|wished| *wished != replica);
        self.mint(volume, |assignment| assignment.begin_tenure(to, Some(from)))
    }

    /// A failover drops members only as far as `min_in_sync` remain, else it drops nobody: a set
    /// below `min_in_sync` could commit nothing, and what it dropped would be given up for nothing.
    fn check_reduced(
        &self,
        volume: VolumeId,
        assignment: &Assignment,
        primary: ReplicaId,
        isr: &BTreeSet<ReplicaId>,
    ) -> Result<(), Refusal> {
        let bad = |why: &str| Err(Refusal::BadIsr { volume, why: why.to_owned() });
        if !isr.contains(&primary) {
            return bad("the new primary is not in it");
        }
        if !isr.is_subset(&assignment.isr) && !on(Bug::PromoteOutsideIsr) {
            return bad("it has a member that was not in sync");
        }
        let spec = &self.live(volume)?.spec;
        let min_in_sync = spec.min_in_sync;
        let voters = spec.durability == Durability::SyncQuorum && !on(Bug::FailoverDropsVoters);
        if voters && *isr != assignment.isr {
            return bad("a failover never changes the list of voters");
        }
        if *isr != assignment.isr && isr.len() < min_in_sync as usize {
            let left = isr.len() as u32;
            return Err(Refusal::BelowMinInSync { volume, left, min_in_sync });
        }
        Ok(())
    }

    /// What the replicas of the volume are registered with, for the bug that takes it over.
    fn known_tails(&self, volume: VolumeId) -> Vec<(ReplicaId, TailId)> {
        if !on(Bug::AnyChangeSetsTails) {
            return Vec::new();
        }
        let ids = self.volumes[&volume].replicas.keys();
        ids.filter_map(|id| Some((*id, self.tail(volume, *id)?))).collect()
    }

    /// Mints the next epoch. `change` sees the new epoch in place.
    pub(super) fn mint(
        &mut self,
        volume: VolumeId,
        change: impl FnOnce(&mut Assignment),
    ) -> Response {
        let known: Vec<_> = self.known_tails(volume);
        let revision = self.bump();
        let live = self.volumes.get_mut(&volume).expect("checked: the volume is live");
        let assignment = live.assignment.as_mut().expect("checked: it has an assignment");
        if !on(Bug::MintSameEpoch) {
            assignment.epoch = assignment.epoch.next();
        }
        change(assignment);
        let isr = &assignment.isr;
        assignment.tails.retain(|id, _| isr.contains(id));
        if on(Bug::AnyChangeSetsTails) {
            let now = known.iter().filter(|(id, _)| assignment.tails.contains_key(id));
            let now: Vec<_> = now.map(|(id, tail)| (*id, *tail)).collect();
            assignment.tails.extend(now);
        }
        for (_, replica) in live.replicas.iter_mut().filter(|(id, _)| isr.contains(id)) {
            replica.joined = true;
        }
        live.changed = revision;
        let config = self.config(volume).expect("a volume with an assignment has a config");
        Ok(Accepted::Configured(config))
    }
}
