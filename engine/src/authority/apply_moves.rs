//! Changes of a volume's list of replicas, and of what becomes of nodes.
//!
//! The list is another thing than the in-sync set: a replica that joins it holds nothing yet, and
//! one that leaves it must have left the in-sync set before.

use super::command::{Accepted, Response};
use super::placement::{can_hold, free_bytes, is_used};
use super::refusal::Refusal;
use super::state::{Duty, Fate, Registration, Replica, State, Volume, Wish};
use crate::bugs::{Bug, on};
use crate::types::{Epoch, NodeId, ReplicaId, VolumeId};

impl State {
    pub(super) fn add_replica(
        &mut self,
        volume: VolumeId,
        replica: ReplicaId,
        node: NodeId,
        overcommit_percent: u32,
    ) -> Response {
        let live = self.live(volume)?;
        if live.replicas.get(&replica).is_some_and(|listed| listed.node == node) {
            return Ok(Accepted::Added(replica));
        }
        self.check_room(live, replica, node, overcommit_percent)?;
        self.list(volume, replica, node);
        Ok(Accepted::Added(replica))
    }

    /// Whether the node may hold another replica of the volume. Zones are not looked at: which of
    /// the others are to go is the leader's knowledge.
    fn check_room(
        &self,
        live: &Volume,
        replica: ReplicaId,
        node: NodeId,
        overcommit_percent: u32,
    ) -> Result<(), Refusal> {
        let volume = live.id;
        if live.assignment.is_none() {
            return Err(Refusal::NoEpoch { volume });
        }
        let registered = self.nodes.get(&node).ok_or(Refusal::UnknownNode { node })?;
        if self.duty(node).is_some() {
            return Err(Refusal::NotPlaceable { node });
        }
        if !can_hold(&live.spec, registered) {
            return Err(Refusal::NoKey { volume, node });
        }
        if self.is_taken(live, node) {
            return Err(Refusal::NodeTaken { volume, node });
        }
        let listed = live.replicas.len() as u32;
        if listed >= 2 * live.spec.replicas {
            return Err(Refusal::TooManyReplicas { volume, listed });
        }
        if free_bytes(self, registered, overcommit_percent) < live.claimed_bytes() {
            return Err(Refusal::NoRoom { node, size_bytes: live.claimed_bytes() });
        }
        match is_used(self, replica) {
            true => Err(Refusal::BadPlacement { why: "a replica id is in use".to_owned() }),
            false => Ok(()),
        }
    }

    fn list(&mut self, volume: VolumeId, replica: ReplicaId, node: NodeId) {
        let revision = self.bump();
        let live = self.volumes.get_mut(&volume).expect("checked: the volume is live");
        live.replicas.insert(replica, Replica::on(node));
        live.changed = revision;
    }

    pub(super) fn retire_replica(
        &mut self,
        volume: VolumeId,
        replica: ReplicaId,
        fate: Fate,
        instead: Option<(ReplicaId, NodeId)>,
        overcommit_percent: u32,
    ) -> Response {
        let live = self.live(volume)?;
        let Some(listed) = live.replicas.get(&replica) else {
            return Err(Refusal::UnknownReplica { volume, replica });
        };
        let unchanged = listed.fate == fate;
        let stands = instead
            .is_some_and(|(id, node)| live.replicas.get(&id).is_some_and(|r| r.node == node));
        if let Some((id, node)) = instead.filter(|_| !stands) {
            self.check_room(live, id, node, overcommit_percent)?;
            self.list(volume, id, node);
        }
        if !unchanged {
            let revision = self.bump();
            let live = self.volumes.get_mut(&volume).expect("checked: the volume is live");
            live.replicas.get_mut(&replica).expect("checked: it is listed").fate = fate;
            live.changed = revision;
        }
        Ok(Accepted::Done)
    }

    pub(super) fn remove_replica(
        &mut self,
        volume: VolumeId,
        expected: Epoch,
        replica: ReplicaId,
    ) -> Response {
        if self.live(volume)?.retired.contains_key(&replica) {
            return Ok(Accepted::Done);
        }
        let assignment = self.in_force(volume, expected)?;
        if assignment.isr.contains(&replica) && !on(Bug::UnlistInSync) {
            return Err(Refusal::ListedInSync { volume, replica });
        }
        let member = assignment.members.contains(&replica);
        let live = self.live(volume)?;
        let Some(listed) = live.replicas.get(&replica) else {
            return Err(Refusal::UnknownReplica { volume, replica });
        };
        // Fewer than the volume wants are listed only while its node makes one anew.
        let wanted = live.spec.replicas as usize;
        let first = listed.fate == Fate::GoesFirst || self.may_be_away(listed.node, replica);
        let least = if first { wanted - 1 } else { wanted };
        if live.replicas.len() <= least {
            let (left, min_in_sync) = (live.replicas.len() as u32 - 1, live.spec.min_in_sync);
            return Err(Refusal::BelowMinInSync { volume, left, min_in_sync });
        }
        let node = listed.node;
        let revision = self.bump();
        let live = self.volumes.get_mut(&volume).expect("checked: the volume is live");
        live.replicas.remove(&replica);
        // Also one that was not confirmed: its create may have been carried out, or still be.
        live.retired.insert(replica, node);
        live.wish.leave.remove(&replica);
        live.changed = revision;
        match member {
            // The list of members is part of the configuration, and one epoch never has two.
            true => self.mint(volume, |assignment| {
                assignment.members.remove(&replica);
            }),
            false => Ok(Accepted::Done),
        }
    }

    /// A replica that left the list is gone from its node.
    pub(super) fn confirm_retired(
        &mut self,
        node: NodeId,
        volume: VolumeId,
        replica: ReplicaId,
    ) -> Response {
        let live = self.live(volume)?;
        if live.replicas.contains_key(&replica) {
            return Err(Refusal::NotDeleted { volume });
        }
        match live.retired.get(&replica) {
            Some(holder) if *holder == node => {}
            Some(_) => return Err(Refusal::UnknownReplica { volume, replica }),
            // Sent again.
            None => return Ok(Accepted::Confirmed),
        }
        let revision = self.bump();
        let live = self.volumes.get_mut(&volume).expect("found above");
        live.retired.remove(&replica);
        live.changed = revision;
        let registration = self.nodes.get_mut(&node).expect("checked: the node is registered");
        registration.replicas.remove(&replica);
        Ok(Accepted::Confirmed)
    }

    pub(super) fn set_wish(&mut self, volume: VolumeId, wish: &Wish) -> Response {
        let live = self.live(volume)?;
        let assignment = live.assignment.as_ref().ok_or(Refusal::NoEpoch { volume })?;
        if let Some(replica) = wish.primary
            && !assignment.isr.contains(&replica)
        {
            return Err(Refusal::NotInSync { volume, replica });
        }
        if let Some(replica) = wish.leave.iter().find(|r| !live.replicas.contains_key(r)) {
            return Err(Refusal::UnknownReplica { volume, replica: *replica });
        }
        if live.wish != *wish {
            let revision = self.bump();
            let live = self.volumes.get_mut(&volume).expect("checked: the volume is live");
            live.wish = wish.clone();
            live.changed = revision;
        }
        Ok(Accepted::Done)
    }

    /// The rest of the wish stays as it is: replicas may be on their way out.
    pub(super) fn wish_primary(&mut self, volume: VolumeId, replica: ReplicaId) -> Response {
        let live = self.live(volume)?;
        let assignment = live.assignment.as_ref().ok_or(Refusal::NoEpoch { volume })?;
        let Some(listed) = live.replicas.get(&replica) else {
            return Err(Refusal::UnknownReplica { volume, replica });
        };
        let other = assignment.primary.id != replica;
        // The masters would soon wish the primary away from it again.
        if other && (self.duty(listed.node).is_some() || listed.fate != Fate::Stays) {
            return Err(Refusal::NotPlaceable { node: listed.node });
        }
        let wish = Wish { primary: other.then_some(replica), leave: live.wish.leave.clone() };
        self.set_wish(volume, &wish)
    }

    pub(super) fn set_duty(&mut self, node: NodeId, duty: Option<Duty>) -> Response {
        if !self.nodes.contains_key(&node) {
            return Err(Refusal::UnknownNode { node });
        }
        match duty {
            Some(duty) => self.duties.insert(node, duty),
            None => self.duties.remove(&node),
        };
        Ok(Accepted::Done)
    }

    /// Nothing waits for the node from here on. If it comes back it is another node, and what it
    /// holds is of nobody's list: it is kept, and reported.
    pub(super) fn forget_node(&mut self, node: NodeId) -> Response {
        if !self.nodes.contains_key(&node) {
            return Ok(Accepted::Done);
        }
        if self.duty(node) != Some(Duty::Removed) {
            return Err(Refusal::NodeInUse { node, replicas: self.replicas_on(node) });
        }
        match self.replicas_on(node) {
            0 => {}
            replicas => return Err(Refusal::NodeInUse { node, replicas }),
        }
        let revision = self.bump();
        for volume in self.volumes.values_mut() {
            let before = volume.retired.len();
            volume.retired.retain(|_, on| *on != node);
            if volume.retired.len() < before {
                volume.changed = revision;
            }
        }
        for tombstone in self.tombstones.values_mut() {
            let before = tombstone.remaining.len();
            tombstone.remaining.retain(|_, on| *on != node);
            if tombstone.remaining.len() < before {
                tombstone.changed = revision;
            }
        }
        self.tombstones.retain(|_, tombstone| !tombstone.remaining.is_empty());
        self.nodes.remove(&node);
        self.duties.remove(&node);
        Ok(Accepted::Done)
    }

    /// Whether the node can't take a fresh replica of the volume: it holds one, or has one still to
    /// remove, or found one that the volume does not list. That one is nobody's to remove, and no
    /// node has two. [The node kept it and never made the new one, which was waited for for ever.]
    /// But one that is to be removed and may be on a disk that can't be used keeps no other disk of its node
    /// from holding the next: it is removed when its disk is back, before anything else is done with it.
    pub(super) fn is_taken(&self, volume: &Volume, node: NodeId) -> bool {
        let found = |r: &Registration| r.replicas.values().any(|r| r.volume == volume.id);
        let found = self.nodes.get(&node).is_some_and(found) && !on(Bug::PlaceBesideUnlisted);
        let listed = volume.replicas.values().any(|r| r.node == node);
        listed || self.is_to_remove(volume, node) || found
    }

    /// Whether the node has a replica of the volume to remove, on a disk that can be used.
    pub(super) fn is_to_remove(&self, volume: &Volume, node: NodeId) -> bool {
        let retired = volume.retired.iter().filter(|(_, on)| **on == node);
        retired
            .into_iter()
            .any(|(id, _)| !self.may_be_away(node, *id) || on(Bug::FailedDiskTakesNode))
    }

    /// How many replicas that volumes list are on the node.
    pub fn replicas_on(&self, node: NodeId) -> u32 {
        let listed = self.volumes.values().flat_map(|v| v.replicas.values());
        listed.filter(|replica| replica.node == node).count() as u32
    }
}
