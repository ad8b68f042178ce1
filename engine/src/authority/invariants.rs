//! What must hold after every command, checked in release builds too: a master that broke one of
//! these could make two primaries, so it stops instead.

use std::collections::BTreeSet;

use super::command::{Command, Response};
use super::state::{Assignment, Durability, State, Volume, WriteAck};
use crate::bugs::{Bug, on};
use crate::types::{Epoch, LossGeneration, NodeId, ReplicaId, ReplicaRef, VolumeId};

/// What a command could change, as it was before.
#[derive(Debug)]
pub(super) struct Before {
    revision: u64,
    volume: Option<(VolumeId, Option<Volume>, Option<Epoch>)>,
    /// Which run proposes a change of the in-sync set.
    proposer: Option<(VolumeId, ReplicaRef)>,
}

/// Which volume a command is about; `None` if it may touch several or none.
fn subject(command: &Command) -> Option<VolumeId> {
    match command {
        Command::BootstrapCluster { .. }
        | Command::RegisterNode(_)
        | Command::SetDuty { .. }
        | Command::ForgetNode { .. } => None,
        Command::CreateVolume { volume, .. }
        | Command::ConfirmReplica { volume, .. }
        | Command::ProposeIsr { volume, .. }
        | Command::Failover { volume, .. }
        | Command::Recover { volume, .. }
        | Command::Salvage { volume, .. }
        | Command::AddReplica { volume, .. }
        | Command::RetireReplica { volume, .. }
        | Command::RemoveReplica { volume, .. }
        | Command::SetWish { volume, .. }
        | Command::WishPrimary { volume, .. }
        | Command::SetLimits { volume, .. }
        | Command::WishSize { volume, .. }
        | Command::DeleteVolume { volume }
        | Command::ConfirmDelete { volume, .. } => Some(*volume),
    }
}

impl State {
    pub(super) fn snapshot_of(&self, command: &Command) -> Before {
        let volume = subject(command).map(|id| {
            let last = self.tombstones.get(&id).map(|t| t.epoch);
            (id, self.volumes.get(&id).cloned(), last)
        });
        let mut proposer = None;
        if let Command::ProposeIsr { volume, primary, .. } = command {
            proposer = Some((*volume, *primary));
        }
        Before { revision: self.revision, volume, proposer }
    }

    /// Checks one step. A registration may touch many volumes, so it pays for a check of all.
    pub(super) fn assert_step(&self, before: Before, response: &Response) {
        assert!(self.revision >= before.revision, "A2: the catalogue revision went back");
        if let Some((volume, run)) = before.proposer.filter(|_| response.is_ok()) {
            let registered = self.registered(volume, run.id).map(|r| r.incarnation);
            assert!(
                registered == Some(run.incarnation),
                "A9: volume {volume}: a proposal of {run:?} took effect, but {registered:?} runs"
            );
        }
        let Some((id, old, tombstone)) = before.volume else {
            return self.assert_invariants();
        };
        match (&old, self.volumes.get(&id)) {
            (Some(old), Some(new)) => {
                assert_follows(old, new);
                self.assert_placed(old, new);
            }
            (Some(old), None) => {
                let last = self.tombstones.get(&id).expect("a volume ends as a tombstone").epoch;
                let was = old.assignment.as_ref().map_or(Epoch(0), |a| a.epoch);
                assert!(last > was, "A2: volume {id}: its last epoch {last} is not above {was}");
            }
            (None, Some(new)) => {
                assert!(tombstone.is_none(), "A5: volume {id} rose from its tombstone");
                let same = |v: &&Volume| v.spec.name == new.spec.name;
                assert!(
                    self.volumes.values().filter(same).count() == 1,
                    "A5: a name was given twice"
                );
                let same = |v: &&Volume| v.create == new.create;
                assert!(
                    self.volumes.values().filter(same).count() == 1
                        && self.tombstones.values().all(|t| t.create != new.create),
                    "A5: create {} made two volumes",
                    new.create
                );
            }
            (None, None) => {}
        }
        if response.is_err() {
            assert!(self.volumes.get(&id) == old.as_ref(), "A4: refused, but volume {id} changed");
            assert!(self.revision == before.revision, "A4: refused, but the revision changed");
        }
        if let Some(volume) = self.volumes.get(&id) {
            self.assert_volume(volume);
        }
    }

    /// Checks the whole state. For use after a snapshot was installed; `apply` checks what it
    /// touched by itself.
    ///
    /// # Panics
    /// If an invariant does not hold.
    pub fn assert_invariants(&self) {
        let mut names = BTreeSet::new();
        let mut creates = BTreeSet::new();
        let mut replicas = BTreeSet::new();
        for (id, volume) in &self.volumes {
            assert!(*id == volume.id, "A5: volume {id} is filed under another id");
            assert!(!self.tombstones.contains_key(id), "A5: volume {id} is both live and deleted");
            assert!(
                names.insert(&volume.spec.name),
                "A5: two volumes are named {}",
                volume.spec.name
            );
            assert!(creates.insert(volume.create), "A5: create {} made two volumes", volume.create);
            for replica in volume.replicas.keys().chain(volume.retired.keys()) {
                assert!(replicas.insert(*replica), "A5: replica {replica} is in two volumes");
            }
            self.assert_volume(volume);
        }
        for (id, tombstone) in &self.tombstones {
            assert!(*id == tombstone.id, "A5: tombstone {id} is filed under another id");
            assert!(!tombstone.remaining.is_empty(), "A5: tombstone {id} waits for nobody");
            assert!(
                creates.insert(tombstone.create),
                "A5: create {} made two volumes",
                tombstone.create
            );
            assert!(tombstone.epoch >= Epoch(1), "A2: tombstone {id} has no epoch");
            assert!(
                tombstone.changed <= self.revision,
                "A2: tombstone {id} is ahead of the catalogue"
            );
            for (replica, node) in &tombstone.remaining {
                assert!(replicas.insert(*replica), "A5: replica {replica} is in two volumes");
                assert!(
                    self.nodes.contains_key(node),
                    "A5: tombstone {id} waits for unknown {node}"
                );
            }
        }
        for (id, registration) in &self.nodes {
            assert!(*id == registration.node, "A5: node {id} is filed under another id");
        }
    }

    /// A node that found a replica of the volume takes no other.
    fn assert_placed(&self, old: &Volume, new: &Volume) {
        for (replica, placed) in &new.replicas {
            let found = self.nodes.get(&placed.node);
            let another =
                found.is_some_and(|node| node.replicas.values().any(|r| r.volume == new.id));
            assert!(
                !another || old.replicas.contains_key(replica),
                "A5: volume {}: replica {replica} is placed where its node has another",
                new.id
            );
            assert!(
                !self.is_to_remove(new, placed.node) || old.replicas.contains_key(replica),
                "A5: volume {}: a node is to hold a replica while another of it is to be removed",
                new.id
            );
        }
    }

    fn assert_volume(&self, volume: &Volume) {
        let (id, spec) = (volume.id, &volume.spec);
        assert!(volume.changed <= self.revision, "A2: volume {id} is ahead of the catalogue");
        // One less while a replica is made anew on its own node, more while some are replaced.
        let (listed, wanted) = (volume.replicas.len(), spec.replicas as usize);
        assert!(
            ((wanted - 1).max(1)..=2 * wanted).contains(&listed),
            "A5: volume {id}: it lists {listed} replicas of {wanted}"
        );
        assert!(
            volume.retired.keys().all(|gone| !volume.replicas.contains_key(gone)),
            "A5: volume {id}: a replica is listed and to be removed"
        );
        assert!((1..=spec.replicas).contains(&spec.min_in_sync), "A3: volume {id}: min_in_sync");
        let nodes: BTreeSet<_> = volume.replicas.values().map(|r| r.node).collect();
        assert!(nodes.len() == volume.replicas.len(), "A5: volume {id}: two replicas on one node");
        let known = |n: &NodeId| self.nodes.contains_key(n);
        assert!(
            nodes.iter().all(known) && volume.retired.values().all(known),
            "A5: volume {id}: unknown node"
        );
        if let Some(assignment) = &volume.assignment {
            assert_assignment(volume, assignment);
        }
    }
}

fn assert_assignment(volume: &Volume, a: &Assignment) {
    let id = volume.id;
    assert!(a.epoch >= Epoch(1) && a.since >= Epoch(1), "A2: volume {id}: epochs begin at 1");
    assert!(a.since <= a.epoch, "A2: volume {id}: since {} is after epoch {}", a.since, a.epoch);
    assert!(a.isr.contains(&a.primary.id), "A1: volume {id}: the primary is not in sync");
    let written = volume.spec.write_ack == WriteAck::Written;
    assert!(
        a.tails.keys().eq(a.isr.iter().filter(|_| written)),
        "A8: volume {id}: the tails are not those of the in-sync set"
    );
    assert!(a.isr.is_subset(&a.members), "A1: volume {id}: in sync, but not confirmed");
    // After a loss the set begins anew with one, and nothing commits before it has grown.
    assert!(
        a.isr.len() >= volume.spec.min_in_sync as usize || a.loss_generation > LossGeneration(0),
        "A3: volume {id}: the in-sync set is smaller than min_in_sync"
    );
    assert!(
        a.wished_blocks != Some(volume.blocks()),
        "A10: volume {id}: the size that it has is wished"
    );
    let confirmed: BTreeSet<_> =
        volume.replicas.iter().filter(|(_, r)| r.confirmed.is_some()).map(|(id, _)| *id).collect();
    assert!(a.members == confirmed, "A1: volume {id}: members are not the confirmed replicas");
}

/// What one command may do to a live volume.
fn assert_follows(old: &Volume, new: &Volume) {
    let id = new.id;
    assert!(old.spec == new.spec, "A5: volume {id}: its specification changed");
    for (replica, was) in &old.replicas {
        let Some(is) = new.replicas.get(replica) else {
            assert!(
                new.retired.get(replica) == Some(&was.node),
                "A5: volume {id}: replica {replica} left the list without an order to remove it"
            );
            assert!(
                old.assignment.as_ref().is_none_or(|a| !a.isr.contains(replica)),
                "A5: volume {id}: replica {replica} left the list while it was in sync"
            );
            continue;
        };
        assert!(was.node == is.node, "A5: volume {id}: replica {replica} changed its node");
        assert!(
            was.confirmed.is_none() || was.confirmed == is.confirmed,
            "A1: volume {id}: the confirmation of {replica} was taken back"
        );
    }
    let (was, is) = match (&old.assignment, &new.assignment) {
        (None, None) => return,
        (None, Some(is)) => {
            return assert!(is.epoch == Epoch(1), "A2: volume {id}: the first epoch is 1");
        }
        (Some(_), None) => panic!("A2: volume {id}: its configuration vanished"),
        (Some(was), Some(is)) => (was, is),
    };
    if was == is {
        return;
    }
    assert!(is.epoch == was.epoch.next(), "A2: volume {id}: one change is one epoch");
    assert!(
        is.loss_generation >= was.loss_generation,
        "A2: volume {id}: loss generation went back"
    );
    assert!(
        old.blocks() == new.blocks() || was.primary == is.primary && was.isr == is.isr,
        "A10: volume {id}: its size changed with its members"
    );
    let lossy = is.loss_generation > was.loss_generation;
    let renewed = |id: &&ReplicaId| was.tails.get(id).is_some_and(|t| is.tails.get(id) != Some(t));
    let renewed = is.tails.keys().filter(renewed).count();
    assert!(
        lossy
            || renewed == 0
            || was.primary == is.primary && renewed == 1
            || on(Bug::AnyChangeSetsTails),
        "A8: volume {id}: a change that is no join set a tail"
    );
    if lossy {
        assert!(is.isr.len() == 1, "A7: volume {id}: a loss leaves one replica's log in sync");
        return assert!(is.since == is.epoch, "A6: volume {id}: a tenure begins after a loss");
    }
    assert!(
        is.isr.len() >= (new.spec.min_in_sync as usize).min(was.isr.len()),
        "A3: volume {id}: the in-sync set shrank below min_in_sync"
    );
    match was.primary == is.primary {
        true => {
            assert!(is.since == was.since, "A6: volume {id}: the same tenure has one beginning");
            assert!(
                is.handed_over_by == was.handed_over_by,
                "A6: volume {id}: the same tenure was handed over once"
            );
        }
        false => {
            assert!(is.since == is.epoch, "A6: volume {id}: a new primary's tenure begins now");
            let by = is.handed_over_by.filter(|_| !on(Bug::WaiverOutlives));
            assert!(
                by.is_none_or(|by| by == was.primary && is.isr == was.isr),
                "A6: volume {id}: only the primary hands over, and nobody leaves by it"
            );
            assert!(
                is.isr.is_subset(&was.isr),
                "A6: volume {id}: a failover made a replica in-sync"
            );
            let voters = new.spec.durability == Durability::SyncQuorum;
            assert!(
                !voters || is.isr == was.isr || on(Bug::FailoverDropsVoters),
                "A6: volume {id}: a failover changed the list of voters"
            );
        }
    }
}
