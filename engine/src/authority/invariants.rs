//! What must hold after every command, checked in release builds too: a master that broke one of
//! these could make two primaries, so it stops instead.

use std::collections::BTreeSet;

use super::command::{Command, Response};
use super::state::{Assignment, State, Volume};
use crate::types::{Epoch, VolumeId};

/// What a command could change, as it was before.
#[derive(Debug)]
pub(super) struct Before {
    revision: u64,
    volume: Option<(VolumeId, Option<Volume>, Option<Epoch>)>,
}

/// Which volume a command is about; `None` if it may touch several or none.
fn subject(command: &Command) -> Option<VolumeId> {
    match command {
        Command::BootstrapCluster { .. } | Command::RegisterNode(_) => None,
        Command::CreateVolume { volume, .. }
        | Command::ConfirmReplica { volume, .. }
        | Command::ProposeIsr { volume, .. }
        | Command::Failover { volume, .. }
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
        Before { revision: self.revision, volume }
    }

    /// Checks one step. A registration may touch many volumes, so it pays for a check of all.
    pub(super) fn assert_step(&self, before: Before, response: &Response) {
        assert!(self.revision >= before.revision, "the catalogue revision went back");
        let Some((id, old, tombstone)) = before.volume else {
            return self.assert_invariants();
        };
        match (&old, self.volumes.get(&id)) {
            (Some(old), Some(new)) => assert_follows(old, new),
            (Some(old), None) => {
                let last = self.tombstones.get(&id).expect("a volume ends as a tombstone").epoch;
                let was = old.assignment.as_ref().map_or(Epoch(0), |a| a.epoch);
                assert!(last > was, "volume {id}: its last epoch {last} is not above {was}");
            }
            (None, Some(new)) => {
                assert!(tombstone.is_none(), "volume {id} rose from its tombstone");
                let same = |v: &&Volume| v.spec.name == new.spec.name;
                assert!(self.volumes.values().filter(same).count() == 1, "a name was given twice");
            }
            (None, None) => {}
        }
        if response.is_err() {
            assert!(self.volumes.get(&id) == old.as_ref(), "refused, but volume {id} changed");
            assert!(self.revision == before.revision, "refused, but the revision changed");
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
        let mut replicas = BTreeSet::new();
        for (id, volume) in &self.volumes {
            assert!(*id == volume.id, "volume {id} is filed under another id");
            assert!(!self.tombstones.contains_key(id), "volume {id} is both live and deleted");
            assert!(names.insert(&volume.spec.name), "two volumes are named {}", volume.spec.name);
            for replica in volume.replicas.keys() {
                assert!(replicas.insert(*replica), "replica {replica} is in two volumes");
            }
            self.assert_volume(volume);
        }
        for (id, tombstone) in &self.tombstones {
            assert!(*id == tombstone.id, "tombstone {id} is filed under another id");
            assert!(!tombstone.remaining.is_empty(), "tombstone {id} waits for nobody");
            assert!(tombstone.epoch >= Epoch(1), "tombstone {id} has no epoch");
            assert!(tombstone.changed <= self.revision, "tombstone {id} is ahead of the catalogue");
            for (replica, node) in &tombstone.remaining {
                assert!(replicas.insert(*replica), "replica {replica} is in two volumes");
                assert!(self.nodes.contains_key(node), "tombstone {id} waits for unknown {node}");
            }
        }
        for (id, registration) in &self.nodes {
            assert!(*id == registration.node, "node {id} is filed under another id");
        }
    }

    fn assert_volume(&self, volume: &Volume) {
        let (id, spec) = (volume.id, &volume.spec);
        assert!(volume.changed <= self.revision, "volume {id} is ahead of the catalogue");
        assert!(volume.replicas.len() == spec.replicas as usize, "volume {id}: replicas missing");
        assert!((1..=spec.replicas).contains(&spec.min_in_sync), "volume {id}: min_in_sync");
        let nodes: BTreeSet<_> = volume.replicas.values().map(|r| r.node).collect();
        assert!(nodes.len() == volume.replicas.len(), "volume {id}: two replicas on one node");
        assert!(nodes.iter().all(|n| self.nodes.contains_key(n)), "volume {id}: unknown node");
        if let Some(assignment) = &volume.assignment {
            assert_assignment(volume, assignment);
        }
    }
}

fn assert_assignment(volume: &Volume, a: &Assignment) {
    let id = volume.id;
    assert!(a.epoch >= Epoch(1) && a.since >= Epoch(1), "volume {id}: epochs begin at 1");
    assert!(a.since <= a.epoch, "volume {id}: since {} is after epoch {}", a.since, a.epoch);
    assert!(a.isr.contains(&a.primary.id), "volume {id}: the primary is not in sync");
    assert!(a.isr.is_subset(&a.members), "volume {id}: in sync, but not confirmed");
    assert!(
        a.isr.len() >= volume.spec.min_in_sync as usize,
        "volume {id}: the in-sync set shrank below min_in_sync"
    );
    let confirmed: BTreeSet<_> =
        volume.replicas.iter().filter(|(_, r)| r.confirmed.is_some()).map(|(id, _)| *id).collect();
    assert!(a.members == confirmed, "volume {id}: members are not the confirmed replicas");
}

/// What one command may do to a live volume.
fn assert_follows(old: &Volume, new: &Volume) {
    let id = new.id;
    assert!(old.spec == new.spec, "volume {id}: its specification changed");
    for (replica, was) in &old.replicas {
        let is = new.replicas.get(replica).expect("a replica left the list");
        assert!(was.node == is.node, "volume {id}: replica {replica} changed its node");
        assert!(
            was.confirmed.is_none() || was.confirmed == is.confirmed,
            "volume {id}: the confirmation of {replica} was taken back"
        );
    }
    let (was, is) = match (&old.assignment, &new.assignment) {
        (None, None) => return,
        (None, Some(is)) => {
            return assert!(is.epoch == Epoch(1), "volume {id}: the first epoch is 1");
        }
        (Some(_), None) => panic!("volume {id}: its configuration vanished"),
        (Some(was), Some(is)) => (was, is),
    };
    if was == is {
        return;
    }
    assert!(is.epoch == was.epoch.next(), "volume {id}: one change is one epoch");
    assert!(is.loss_generation >= was.loss_generation, "volume {id}: loss generation went back");
    match was.primary == is.primary {
        true => assert!(is.since == was.since, "volume {id}: the same tenure has one beginning"),
        false => {
            assert!(is.since == is.epoch, "volume {id}: a new primary's tenure begins now");
            assert!(is.isr.is_subset(&was.isr), "volume {id}: a failover made a replica in-sync");
        }
    }
}
