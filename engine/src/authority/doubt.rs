//! Replicas whose log may have lost its end ([`Kept::doubtful`](crate::replication::io::Kept::doubtful)).
//!
//! An opening that finds a write which it can't read at the log's end can't tell whether power was lost
//! while it was written, or whether it was acknowledged and rotted. The other in-sync replicas can, so
//! such a replica comes after them, and before it takes over without them it is compared:
//!
//! * `sync_all`: any member whose end is not in doubt has all that was acknowledged. If there is none, two
//!   that are in doubt are compared, for that both rotted is as the loss of two copies; who is not heard yet
//!   is waited for as long as its node is not suspected. One alone of several waits for the others. If they
//!   don't come for the grace of a site's power loss, it goes on as a lossy promotion: the volume survives
//!   the loss of all but one, and most likely nothing is missing, but clients must hear that it may be.
//! * `sync_quorum`: the candidate asks the voters, and counts the doubtful itself.
//! * `best_effort`: the old primary's own replica is no better than others any more. The best log is, by
//!   what was last told of each: up to a heartbeat's pause old, as all in this mode that others hold.
//! * With written acknowledgements the replica has another tail than it joined with, as after a power cut.

use std::collections::{BTreeMap, BTreeSet};

use super::detector::Detector;
use super::state::{State, Volume};
use crate::bugs::{Bug, on};
use crate::replication::quorum::{majority, tells_all};
use crate::types::{Durability, Millis, NodeId, ReplicaId, ReplicaRef, VolumeId};

impl State {
    /// Whether the log of the replica may have lost its end, as its node registered it. With written
    /// acknowledgements that is as the loss of its tail, and known by it.
    pub fn is_doubtful(&self, volume: VolumeId, replica: ReplicaId) -> bool {
        let doubtful = self.registered(volume, replica).is_some_and(|r| r.doubtful);
        doubtful && !self.acks_written(volume) && !on(Bug::PromoteDoubtful)
    }

    /// Whether these of the in-sync set, each [`promotable`](Self::promotable) by itself, are enough to go
    /// on without a loss.
    pub(super) fn can_go_on<'a>(
        &self,
        volume: VolumeId,
        left: impl Iterator<Item = &'a ReplicaId>,
    ) -> bool {
        let Some(live) = self.volumes.get(&volume) else { return false };
        let listed = live.assignment.as_ref().map_or(0, |assignment| assignment.isr.len());
        let (doubtful, sound): (Vec<&ReplicaId>, Vec<&ReplicaId>) =
            left.partition(|id| self.is_doubtful(volume, **id));
        let (doubtful, sound) = (doubtful.len(), sound.len());
        match live.spec.durability {
            Durability::SyncAll => tells_all(listed, listed, sound, doubtful),
            Durability::BestEffort => sound + doubtful > 0,
            Durability::SyncQuorum => {
                let needed = majority(listed);
                sound + doubtful >= needed && tells_all(listed, needed, sound, doubtful)
            }
        }
    }
}

/// Whom a failover may choose from.
pub(super) enum Trusted {
    /// Any of these, none if it waits.
    Any(Vec<(ReplicaRef, NodeId)>),
    /// Nobody is known to have everything, and this one goes on without those.
    Alone(ReplicaRef, BTreeSet<ReplicaId>),
}

impl Detector {
    /// Which candidates a failover may choose from. `lives`: the primary does, and lacks members.
    pub(super) fn trusted(
        &self,
        now: Millis,
        state: &State,
        volume: &Volume,
        candidates: Vec<(ReplicaRef, NodeId)>,
        lives: bool,
    ) -> Trusted {
        let is_doubtful = |replica: &ReplicaRef| state.is_doubtful(volume.id, replica.id);
        let (doubtful, sound): (Vec<_>, Vec<_>) =
            candidates.into_iter().partition(|(replica, _)| is_doubtful(replica));
        if doubtful.is_empty() {
            return Trusted::Any(sound);
        }
        Trusted::Any(match volume.spec.durability {
            Durability::BestEffort => self.best_logs(doubtful.into_iter().chain(sound).collect()),
            Durability::SyncAll | Durability::SyncQuorum if !sound.is_empty() => sound,
            Durability::SyncQuorum => doubtful,
            Durability::SyncAll if lives => Vec::new(),
            Durability::SyncAll => {
                let Some(assignment) = &volume.assignment else { return Trusted::Any(Vec::new()) };
                let known = |id: &ReplicaId| doubtful.iter().any(|(replica, _)| replica.id == *id);
                let others: BTreeSet<_> =
                    assignment.isr.iter().copied().filter(|id| !known(id)).collect();
                let enough =
                    state.can_go_on(volume.id, assignment.isr.iter().filter(|id| known(id)));
                let comes = others.iter().any(|id| self.may_come(now, state, volume, *id));
                let since = self.doubting.get(&volume.id).filter(|(of, _)| *of == assignment.epoch);
                let waited = since.is_some_and(|(_, at)| now.since(*at) >= self.params().grace_ms);
                let best = self.best_logs(doubtful);
                match best.first() {
                    Some((replica, _)) if waited && !enough => {
                        return Trusted::Alone(*replica, others);
                    }
                    _ if enough && !comes || waited => best,
                    _ => Vec::new(),
                }
            }
        })
    }

    /// A node that is not suspected has it open soon, or says that it has not.
    fn may_come(&self, now: Millis, state: &State, volume: &Volume, id: ReplicaId) -> bool {
        let Some(node) = volume.replicas.get(&id).map(|replica| replica.node) else { return false };
        let closed = state.registered(volume.id, id).is_none();
        !self.suspected(now, node) && (!closed || self.may_return(node, id))
    }

    /// In-sync replicas that are heard, if all of them are in doubt.
    fn all_doubtful(
        &self,
        now: Millis,
        state: &State,
        volume: &Volume,
    ) -> Vec<(ReplicaRef, NodeId)> {
        let isr = volume.assignment.iter().flat_map(|assignment| &assignment.isr);
        let heard = isr.filter_map(|id| {
            let node = volume.replicas.get(id)?.node;
            let replica = state.promotable(volume.id, *id).ok()?;
            self.is_heard(now, node).then_some((replica, node))
        });
        let heard: Vec<_> = heard.collect();
        match heard.iter().all(|(replica, _)| state.is_doubtful(volume.id, replica.id)) {
            true => heard,
            false => Vec::new(),
        }
    }

    /// Notes since when volumes have had nobody to go on with but replicas in doubt.
    pub(super) fn note_doubts(&mut self, now: Millis, state: &State) {
        let mut doubting = BTreeMap::new();
        let of_mode = |volume: &&Volume| volume.spec.durability == Durability::SyncAll;
        for volume in state.volumes().values().filter(of_mode) {
            let Some(assignment) = &volume.assignment else { continue };
            let (id, epoch) = (volume.id, assignment.epoch);
            let doubts = !self.all_doubtful(now, state, volume).is_empty();
            if doubts && self.complaint(now, state, volume).is_some() {
                let known = self.doubting.get(&id).filter(|(of, _)| *of == epoch);
                doubting.insert(id, (epoch, known.map_or(now, |(_, at)| *at)));
            }
        }
        self.doubting = doubting;
    }

    /// When the grace for silent members is over.
    pub(super) fn doubts_due(&self) -> impl Iterator<Item = Millis> + '_ {
        let grace = self.params().grace_ms;
        self.doubting.values().map(move |(_, at)| at.after(grace))
    }

    /// Those whose log is as good as any; none before all have told of theirs.
    fn best_logs(&self, candidates: Vec<(ReplicaRef, NodeId)>) -> Vec<(ReplicaRef, NodeId)> {
        let rank = |replica: &ReplicaRef| {
            self.report_of(replica).map(|report| (report.table_epoch, report.durable))
        };
        let ranks: Option<Vec<_>> = candidates.iter().map(|(replica, _)| rank(replica)).collect();
        let best = ranks.and_then(|ranks| ranks.into_iter().max());
        candidates
            .into_iter()
            .filter(|(replica, _)| best.is_some() && rank(replica) == best)
            .collect()
    }

    /// What a failover waits for because of logs that may have lost their end, in words.
    pub(super) fn why_doubting(
        &self,
        now: Millis,
        state: &State,
        volume: &Volume,
    ) -> Option<String> {
        let (epoch, since) = self.doubting.get(&volume.id)?;
        let assignment = volume.assignment.as_ref().filter(|a| a.epoch == *epoch)?;
        let doubtful = self.all_doubtful(now, state, volume);
        let (replica, node) = doubtful.first()?;
        let absent = assignment.isr.iter().filter(|id| !doubtful.iter().any(|(r, _)| r.id == **id));
        let names = absent.filter_map(|id| {
            volume.replicas.get(id).map(|listed| format!("{id} on node {}", listed.node))
        });
        let left = self.params().grace_ms.saturating_sub(now.since(*since));
        Some(format!(
            "the log of {} on node {node} ends in a write that can't be read; waits {left} ms for {}, which may \
             know whether it was acknowledged",
            replica.id,
            names.collect::<Vec<_>>().join(" or ")
        ))
    }
}
