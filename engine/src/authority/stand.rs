//! Who is asked to stand. In failovers of volumes with written acknowledgements a member stands first,
//! and where all lost power the best of what is on the disks goes on. What an operator's recovery may
//! choose from stands as well.
//!
//! This is the leader's memory, as the rest of the detector; what it comes to is checked again when it
//! is applied.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::detector::{Decision, Detector, ReplicaReport};
use super::state::{State, Volume};
use crate::bugs::{Bug, on};
use crate::types::{Epoch, Millis, NodeId, ReplicaId, ReplicaRef, VolumeId};

/// What a node is to tell one of its replicas: stop acknowledging and promising in this epoch and
/// before, sync the log, and say so in the heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Stand {
    /// The volume.
    pub volume: VolumeId,
    /// The replica, in its run.
    pub replica: ReplicaRef,
    /// The epoch that is to end.
    pub epoch: Epoch,
}

/// What the leader remembers of volumes with written acknowledgements.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Written {
    /// In which epoch a volume wants another primary, and since when.
    wanted: BTreeMap<VolumeId, (Epoch, Millis)>,
    /// In which epoch no member was left that kept its tail, and since when.
    dark: BTreeMap<VolumeId, (Epoch, Millis)>,
}

/// A volume whose members all lost power, as far as they are heard.
struct Dark {
    /// Members that are heard, complete, and whose log is known.
    known: Vec<(ReplicaRef, (Epoch, crate::types::Lsn))>,
    /// Members of which nothing is known.
    absent: BTreeSet<ReplicaId>,
}

impl Detector {
    /// What replicas on the node are asked to stand for now.
    pub fn stands(&self, now: Millis, state: &State, node: NodeId) -> Vec<Stand> {
        let wanted = self.written.wanted.iter().filter_map(|(id, (epoch, since))| {
            let volume = state.volumes().get(id)?;
            let asked = self.asked_to_stand(now, state, volume, *epoch, *since);
            let here =
                asked.into_iter().find(|replica| volume.replicas[&replica.id].node == node)?;
            Some(Stand { volume: *id, replica: here, epoch: *epoch })
        });
        let for_recoveries = self.recovery_stands(now, state, node);
        wanted.chain(for_recoveries).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The best candidate; all of them once that one has been asked for too long without an answer.
    fn asked_to_stand(
        &self,
        now: Millis,
        state: &State,
        volume: &Volume,
        epoch: Epoch,
        since: Millis,
    ) -> Vec<ReplicaRef> {
        let mut candidates = self.standing_candidates(now, state, volume);
        if candidates.iter().any(|replica| self.has_stood(replica, epoch)) {
            return Vec::new();
        }
        candidates.sort_by_key(|replica| std::cmp::Reverse(self.rank_to_stand(volume, replica)));
        if now.since(since) < self.params().suspect_ms {
            candidates.truncate(1);
        }
        candidates
    }

    fn standing_candidates(&self, now: Millis, state: &State, volume: &Volume) -> Vec<ReplicaRef> {
        let Some(assignment) = &volume.assignment else { return Vec::new() };
        let usable = |id: &ReplicaId| {
            let node = volume.replicas.get(id)?.node;
            let replica = state.promotable(volume.id, *id).ok()?;
            (self.is_heard(now, node) && replica != assignment.primary).then_some(replica)
        };
        assignment.isr.iter().filter_map(usable).collect()
    }

    /// Its report, if it is of this run.
    pub(super) fn report_of(&self, replica: &ReplicaRef) -> Option<&ReplicaReport> {
        self.report(replica.id).filter(|report| report.replica == *replica)
    }

    fn has_stood(&self, replica: &ReplicaRef, epoch: Epoch) -> bool {
        let unstood = on(Bug::FailoverUnstood);
        self.report_of(replica).is_some_and(|report| report.stood == Some(epoch) || unstood)
    }

    /// The old primary's own replica before others, then the one that holds most.
    fn rank_to_stand(&self, volume: &Volume, replica: &ReplicaRef) -> impl Ord + use<> {
        let own = volume.assignment.as_ref().is_some_and(|a| a.primary.id == replica.id);
        let log = self.report_of(replica).map(|report| (report.table_epoch, report.durable));
        let untried = !self.lacks.has_tried(volume.id, replica.id);
        (own, untried, log, std::cmp::Reverse(replica.id))
    }

    /// Which failover is to be proposed for a volume that wants another primary: to a member that has
    /// stood, or to what is left after all lost power.
    pub(super) fn decide_written(
        &self,
        now: Millis,
        state: &State,
        volume: &Volume,
        candidates: &[(ReplicaRef, NodeId)],
        reason: String,
    ) -> Option<Decision> {
        let assignment = volume.assignment.as_ref()?;
        let expect_epoch = assignment.epoch;
        let stood = candidates.iter().map(|(replica, _)| *replica);
        let best = stood
            .filter(|replica| self.has_stood(replica, expect_epoch))
            .max_by_key(|replica| self.rank_to_stand(volume, replica));
        if let Some(primary) = best {
            let isr = self.remaining(now, volume, primary.id, &assignment.isr);
            let stood = self.report_of(&primary).map(|report| report.tail);
            let volume = volume.id;
            return Some(Decision {
                volume,
                expect_epoch,
                primary,
                isr,
                stood,
                missing: None,
                reason,
            });
        }
        let dark = self.dark(now, state, volume)?;
        let since = self.written.dark.get(&volume.id).filter(|(epoch, _)| *epoch == expect_epoch);
        let waited = since.is_some_and(|(_, at)| now.since(*at) >= self.params().grace_ms);
        if !dark.absent.is_empty() && !waited {
            return None;
        }
        let (primary, _) = dark.known.iter().max_by_key(|(replica, rank)| (*rank, replica.id))?;
        Some(Decision {
            volume: volume.id,
            expect_epoch,
            primary: *primary,
            isr: BTreeSet::from([primary.id]),
            stood: None,
            missing: Some(dark.absent),
            reason: format!("{reason}; every in-sync replica that is heard lost power"),
        })
    }

    /// Looks whether no in-sync replica is left that is heard and kept its tail, and who is left.
    fn dark(&self, now: Millis, state: &State, volume: &Volume) -> Option<Dark> {
        let assignment = volume.assignment.as_ref()?;
        let mut dark = Dark { known: Vec::new(), absent: BTreeSet::new() };
        for id in &assignment.isr {
            let node = volume.replicas.get(id)?.node;
            let heard = self.is_heard(now, node);
            let kept = state.has_kept(volume.id, *id);
            let Ok(run) = state.complete(volume.id, *id) else {
                // Its node says that it has nothing whole of it; or that it does not have it open, or
                // nothing. What is not open may have all of its tail. [A process was started again and
                // read a long log, longer than its node waits before it registers, and what only that
                // replica had was given up.]
                if !(heard && state.registered(volume.id, *id).is_some()) {
                    dark.absent.insert(*id);
                }
                continue;
            };
            if heard && kept {
                return None;
            }
            match self.report_of(&run).filter(|_| heard) {
                Some(report) => dark.known.push((run, (report.table_epoch, report.durable))),
                None => {
                    dark.absent.insert(*id);
                }
            }
        }
        (!dark.known.is_empty()).then_some(dark)
    }

    /// Keeps the leader's memory of volumes with written acknowledgements up to date.
    pub(super) fn note_written(&mut self, now: Millis, state: &State) {
        if self.elected().is_none() {
            return;
        }
        let (mut wanted, mut dark) = (BTreeMap::new(), BTreeMap::new());
        let written = state.volumes().values().filter(|volume| state.acks_written(volume.id));
        for volume in written {
            let Some(assignment) = &volume.assignment else { continue };
            if self.complaint(now, state, volume).is_none() {
                continue;
            }
            let (id, epoch) = (volume.id, assignment.epoch);
            let since = |known: &BTreeMap<VolumeId, (Epoch, Millis)>| {
                known.get(&id).filter(|(of, _)| *of == epoch).map_or(now, |(_, at)| *at)
            };
            wanted.insert(id, (epoch, since(&self.written.wanted)));
            if self.dark(now, state, volume).is_some() {
                dark.insert(id, (epoch, since(&self.written.dark)));
            }
        }
        self.written = Written { wanted, dark };
    }

    /// When the grace for silent members is over.
    pub(super) fn written_due(&self) -> impl Iterator<Item = Millis> + '_ {
        let grace = self.params().grace_ms;
        let wanted = self.written.wanted.values().map(|(_, at)| at.after(self.params().suspect_ms));
        self.written.dark.values().map(move |(_, at)| at.after(grace)).chain(wanted)
    }

    /// What a failover of the volume waits for, in words.
    pub(super) fn why_waiting(
        &self,
        now: Millis,
        state: &State,
        volume: &Volume,
    ) -> Option<String> {
        let (epoch, since) = self.written.wanted.get(&volume.id)?;
        let asked = self.asked_to_stand(now, state, volume, *epoch, *since);
        if let Some(replica) = asked.first() {
            return Some(format!("{} is asked to sync its log and take over", replica.id));
        }
        let dark = self.dark(now, state, volume)?;
        let names: Vec<_> = dark
            .absent
            .iter()
            .filter_map(|id| volume.replicas.get(id).map(|r| format!("{id} on node {}", r.node)))
            .collect();
        let (_, since) = self.written.dark.get(&volume.id)?;
        let left = self.params().grace_ms.saturating_sub(now.since(*since));
        Some(format!(
            "every in-sync replica that is heard lost power; waits {left} ms for {}, which may hold \
             writes that were acknowledged and not flushed",
            names.join(" and ")
        ))
    }
}
