//! Replicas that are moved, replaced and dropped: the leader rearranges as the masters do, and an
//! operator moves replicas, drains nodes and removes those that are off.

use std::collections::BTreeSet;

use sbk_engine::authority::{Accepted, Command, Durability, Duty, Fate, Refusal, Response, Volume};
use sbk_engine::replication::io::IsrChange;
use sbk_engine::types::{NodeId, ReplicaId};
use uuid::Uuid;

use super::event::Event;
use super::marks::{Injected, Mark};
use super::masters::{OVERCOMMIT_PERCENT, Pending};
use super::node::Node;
use super::world::World;

/// How often it is looked at what is to be moved, as the masters have it: after a step, and after
/// none.
const PAUSES_MS: (u64, u64) = (100, 500);

/// What the operator and the rearranging leader are about.
#[derive(Debug, Default)]
pub(crate) struct Moves {
    /// Replicas that were ever placed, the first ones left out.
    placed: u128,
    /// Steps of the leader that are not committed.
    asked: BTreeSet<u64>,
    /// When the leader looks again.
    at: u64,
    /// Replicas that were in sync (voters) at some time.
    counted: BTreeSet<ReplicaId>,
    /// Replicas that left the list.
    retired: BTreeSet<ReplicaId>,
    /// Those that did while their nodes were down.
    absent: BTreeSet<ReplicaId>,
    /// Replicas whose nodes were down when the volume was deleted.
    pub(super) left_behind: BTreeSet<ReplicaId>,
}

impl World {
    fn fresh_replica(&mut self) -> ReplicaId {
        self.moves.placed += 1;
        ReplicaId(Uuid::from_u128(1_000 + self.moves.placed))
    }

    pub(crate) fn number_of(&self, node: NodeId) -> usize {
        self.nodes.iter().position(|known| known.node == node).expect("a known node")
    }

    /// Where a replica is to be that a command lists.
    pub(super) fn note_places(&mut self, command: &Command) {
        let placed = match command {
            Command::AddReplica { replica, node, .. } => Some((*replica, *node)),
            Command::RetireReplica { instead, .. } => *instead,
            _ => None,
        };
        if let Some((replica, node)) = placed {
            let index = self.number_of(node);
            self.places.insert(replica, index);
        }
    }

    /// While somebody leads: takes the steps that can be taken, one after the other.
    pub(super) fn rearrange(&mut self) {
        let settled = self.faults.spares == 0
            && !self.faults.moves
            && !self.faults.flip
            && !self.faults.disk_loss;
        if settled || self.now < self.moves.at {
            return;
        }
        let pending = &self.masters.pending;
        self.moves.asked.retain(|id| pending.contains_key(id));
        if !self.moves.asked.is_empty() {
            return;
        }
        let steps = self.masters.steps(self.now);
        self.note_unplaced();
        let (busy, idle) = PAUSES_MS;
        self.moves.at = self.now + if steps.is_empty() { idle } else { busy };
        for step in steps {
            self.check_place(&step);
            let fresh = self.fresh_replica();
            self.note_all(|| format!("masters: {step:?}"));
            let command = step.command(fresh, OVERCOMMIT_PERCENT);
            let asked = self.submit(Pending { command, proposer: None });
            self.moves.asked.extend(asked);
        }
    }

    /// An operator's word.
    fn order(&mut self, command: Command) {
        self.note_all(|| format!("an operator: {command:?}"));
        self.submit(Pending { command, proposer: None });
    }

    /// An operator does something.
    pub(super) fn operate(&mut self) {
        let any = self.any_node();
        match self.rng.below(10) {
            0..=3 => self.move_one(),
            4..=6 => self.drain(any),
            7 => self.undrain(any),
            8 => self.remove_node(any),
            _ => self.remove_hastily(),
        }
    }

    fn listed(&mut self) -> Option<ReplicaId> {
        let volume = self.masters.live()?;
        let ids: Vec<_> = volume.replicas.keys().copied().collect();
        Some(ids[self.rng.below(ids.len() as u64) as usize])
    }

    /// `volume move`, and `volume replace` in its place.
    fn move_one(&mut self) {
        let Some(replica) = self.listed() else { return };
        let to = self.any_node();
        let to = self.nodes[to].node;
        let named = self.rng.chance(40) && self.masters.hears(self.now, to);
        let fate = if self.rng.chance(30) { Fate::GoesFirst } else { Fate::Goes };
        let instead = named.then(|| (self.fresh_replica(), to));
        self.inject(Injected::Move);
        let (volume, overcommit_percent) = (self.masters.volume, OVERCOMMIT_PERCENT);
        self.order(Command::RetireReplica { volume, replica, fate, instead, overcommit_percent });
    }

    fn drain(&mut self, index: usize) {
        let node = self.nodes[index].node;
        if self.masters.duty(node).is_some() {
            return;
        }
        self.inject(Injected::Drain);
        self.order(Command::SetDuty { node, duty: Some(Duty::Drained) });
        if self.rng.chance(70) {
            let delay = 500 + self.rng.below(8_000);
            self.after(delay, Event::Undrain { node: index });
        }
    }

    pub(crate) fn undrain(&mut self, index: usize) {
        let node = self.nodes[index].node;
        if self.masters.duty(node).is_some() {
            self.order(Command::SetDuty { node, duty: None });
        }
    }

    /// `node remove`, which is refused for a node that is heard.
    fn remove_node(&mut self, index: usize) {
        let node = self.nodes[index].node;
        if self.masters.hears(self.now, node) || !self.masters.knows(node) {
            return;
        }
        self.inject(Injected::RemoveNode);
        self.order(Command::SetDuty { node, duty: Some(Duty::Removed) });
    }

    /// A leader with a wrong picture drops a replica that may be needed.
    fn remove_hastily(&mut self) {
        let Some(replica) = self.listed() else { return };
        let (volume, expect_epoch) = (self.masters.volume, self.masters.config.epoch);
        self.order(Command::RemoveReplica { volume, expect_epoch, replica });
    }

    /// A node is gone for ever, as far as anybody knows.
    pub(super) fn lose_node(&mut self) {
        let index = self.any_node();
        let listed = self.masters.config.replicas.len();
        let left = self.nodes.iter().filter(|node| !node.lost).count();
        // Somebody must be left for the operator to go on with.
        if self.nodes[index].lost || left <= 1 || left < listed.min(3) {
            return;
        }
        self.inject(Injected::Lost);
        self.note(index, || "is lost".to_owned());
        self.nodes[index].lost = true;
        self.die(index, true, 0);
        if self.rng.chance(40) {
            let away = 2_000 + self.rng.below(8_000);
            self.after(away, Event::Found { node: index });
        }
    }

    /// It was switched off, and is back.
    pub(crate) fn found(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        if std::mem::replace(&mut node.lost, false) && !node.up {
            self.note(index, || "is found".to_owned());
            self.start(index);
        }
    }

    /// What a change of the list must never do, and which states it reached.
    pub(super) fn check_moved(&mut self, command: &Command, response: &Response) {
        self.moves.counted.extend(&self.masters.config.isr);
        match (command, response) {
            (Command::RemoveReplica { replica, .. }, Ok(_)) => self.check_unlisted(*replica),
            (Command::RemoveReplica { .. }, Err(Refusal::ListedInSync { .. })) => {
                self.mark(Mark::RemovalRefused);
            }
            (Command::Failover { .. }, Ok(_)) if self.has_wish() => self.mark(Mark::DrainRaced),
            (Command::ProposeIsr { change, .. }, Ok(Accepted::Configured(_))) => {
                self.mark_voters(change);
            }
            _ => {}
        }
    }

    fn has_wish(&self) -> bool {
        let wish = self.masters.live().map(|volume| &volume.wish);
        wish.is_some_and(|wish| !wish.leave.is_empty() || wish.primary.is_some())
    }

    fn mark_voters(&mut self, change: &IsrChange) {
        if self.faults.durability != Durability::SyncQuorum {
            return;
        }
        match change {
            IsrChange::Join { .. } => self.mark(Mark::VoterAdded),
            IsrChange::Leave { .. } => self.mark(Mark::VoterRemoved),
            IsrChange::Burn
            | IsrChange::Yield { .. }
            | IsrChange::HandOver { .. }
            | IsrChange::Resized { .. }
            | IsrChange::KeepSize { .. } => {}
        }
    }

    /// A replica left the list: what stays is enough.
    fn check_unlisted(&mut self, replica: ReplicaId) {
        let Some(volume) = self.masters.live() else { return };
        let in_sync = self.masters.config.isr.len();
        let loss = self.masters.config.loss_generation.0 > 0;
        assert!(
            in_sync >= volume.spec.min_in_sync as usize || loss,
            "I2: {replica} leaves the list while only {in_sync} are in sync"
        );
        let short = volume.replicas.len() < volume.spec.replicas as usize;
        self.mark(if short { Mark::MovedInPlace } else { Mark::Moved });
        self.moves.retired.insert(replica);
        let index = self.index(replica);
        if !self.nodes[index].up {
            self.moves.absent.insert(replica);
        }
    }

    /// A directory is about to go: it is one that nobody counts on.
    pub(crate) fn check_removal(&mut self, index: usize, replica: ReplicaId) {
        let returned = self.moves.absent.remove(&replica);
        if self.nodes[index].damaged {
            self.mark(Mark::DamagedReplaced);
        }
        let Some(volume) = self.masters.live() else {
            let behind = self.moves.left_behind.contains(&replica);
            return self.mark(if behind { Mark::DeletedReturner } else { Mark::Deleted });
        };
        assert!(
            !volume.replicas.contains_key(&replica),
            "I2: node {index} removes {replica}, which is listed"
        );
        assert!(
            self.moves.retired.contains(&replica),
            "I2: node {index} removes {replica}, which nobody ordered"
        );
        // A fresh or torn one is no copy: without it there are as many as before. Nor does anybody count
        // on one that was never in sync, as where three voters of five were made in time to begin with.
        let disk = &self.nodes[index].disk.shadow;
        let counts = self.moves.counted.contains(&replica);
        if counts && disk.kept.incomplete.is_none() && disk.durable >= self.truth.everywhere {
            self.check_copies(volume_copies(volume));
        }
        if returned {
            self.mark(Mark::OldReplicaRemoved);
        }
    }

    /// So many members of the set in force hold all that was acknowledged, on disks that are there.
    fn check_copies(&self, needed: usize) {
        if self.loss_pending() || self.masters.config.loss_generation.0 > 0 {
            return;
        }
        let config = &self.masters.config;
        let whole = config.isr.iter().filter(|id| self.holds_acknowledged(**id)).count();
        assert!(
            whole >= needed,
            "I2: a directory goes while {whole} copies hold everything, and {needed} are needed"
        );
    }

    /// A node dies: with a replacement that was being rebuilt?
    pub(crate) fn mark_replacement(&mut self, index: usize) {
        let node = &self.nodes[index];
        let Some(volume) = self.masters.live() else { return };
        let fresh = node.id.0.as_u128() > 1_000 && volume.replicas.contains_key(&node.id);
        if fresh && node.receiving.is_some() && !self.masters.config.isr.contains(&node.id) {
            self.mark(Mark::ReplacementDied);
        }
    }

    /// Whether a node may hold a replica, now and later.
    fn able(&self, index: usize) -> bool {
        let node = &self.nodes[index];
        !node.lost && self.masters.duty(node.node).is_none() && !self.has_stranger(index)
    }

    /// Whether a node holds a replica that nobody knows.
    pub(super) fn has_stranger(&self, index: usize) -> bool {
        let here = self.nodes[index].disk.holds();
        here.is_some_and(|here| !self.masters.is_to_know(here))
    }

    /// An operator puts away by hand what a node holds and nobody knows, and starts it again.
    fn clean(&mut self, index: usize) {
        self.note(index, || "an operator takes the unknown replica away".to_owned());
        self.nodes[index].paused = false;
        self.die(index, false, 100);
        self.nodes[index].let_go(&mut self.rng);
    }

    /// Nothing goes wrong any more; but nodes that were lost stay lost, and drained ones drained, as
    /// far as enough are left.
    pub(super) fn settle_nodes(&mut self) {
        if self.masters.live().is_none() {
            return;
        }
        let wanted = self.faults.replicas as usize;
        let count = |world: &World| (0..world.nodes.len()).filter(|n| world.able(*n)).count();
        if count(self) <= wanted {
            self.take_back_orders();
        }
        for index in 0..self.nodes.len() {
            if count(self) >= wanted {
                return;
            }
            if self.masters.duty(self.nodes[index].node).is_some() && !self.nodes[index].lost {
                let node = self.nodes[index].node;
                self.apply(&Command::SetDuty { node, duty: None });
            }
        }
        for index in 0..self.nodes.len() {
            if count(self) >= wanted {
                return;
            }
            let node = self.nodes[index].node;
            self.apply(&Command::SetDuty { node, duty: None });
            self.found(index);
        }
    }

    /// There is no place for what was to be moved.
    fn take_back_orders(&mut self) {
        let (volume, overcommit_percent) = (self.masters.volume, OVERCOMMIT_PERCENT);
        let Some(live) = self.masters.live() else { return };
        let ordered = live.replicas.iter().filter(|(_, replica)| replica.fate != Fate::Stays);
        // One that can't be opened makes room on its own node.
        let listed: Vec<_> = ordered
            .map(|(id, _)| *id)
            .filter(|id| {
                let here = self.holder(*id);
                let gone = self.nodes[self.index(*id)].slots.misses(*id);
                here.is_none_or(|node| !node.damaged && !node.slots.has_failed()) && !gone
            })
            .collect();
        for replica in listed {
            let (fate, instead) = (Fate::Stays, None);
            let back =
                Command::RetireReplica { volume, replica, fate, instead, overcommit_percent };
            self.apply(&back);
        }
    }

    /// What is left can't go on by itself: a node that holds a part of it is found again.
    pub(super) fn find_needed(&mut self) {
        if self.masters.live().is_none() {
            return;
        }
        self.settle_nodes();
        let able = (0..self.nodes.len()).filter(|n| self.able(*n)).count();
        if able < self.faults.replicas as usize
            && let Some(index) = (0..self.nodes.len()).find(|n| self.has_stranger(*n))
        {
            self.clean(index);
        }
        let config = &self.masters.config;
        let there = |id: &ReplicaId| {
            let node = &self.nodes[self.index(*id)];
            !node.lost && !node.slots.is_away() && node.disk.shadow.kept.incomplete.is_none()
        };
        let left = config.isr.iter().filter(|id| there(id)).count();
        let enough = match config.durability {
            Durability::SyncQuorum => left > config.isr.len() / 2,
            Durability::SyncAll | Durability::BestEffort => left > 0,
        };
        let lost = config.isr.iter().find(|id| self.nodes[self.index(**id)].lost).copied();
        // The only whole copy of a block that rotted elsewhere may be on a node that is lost.
        let rotten = self.faults.rot && self.now > self.healed_at + 20_000;
        if let Some(lost) = lost.filter(|_| !enough || rotten) {
            let index = self.index(lost);
            self.found(index);
        } else if !enough {
            self.find_disk();
        }
    }

    /// The replicas that the volume is to have in the end, if it has them: as many as it wants, in
    /// sync, on nodes that live and are not drained, and no other directory but such as nobody
    /// knows.
    pub(super) fn settled(&self) -> Option<Vec<usize>> {
        let volume = self.masters.live()?;
        let isr = &self.masters.config.isr;
        let wanted = volume.spec.replicas as usize;
        let members: Vec<_> = volume.replicas.keys().map(|id| self.index(*id)).collect();
        let good = members.iter().all(|index| self.able(*index));
        let whole = good && members.len() == wanted && isr.iter().eq(volume.replicas.keys());
        let clean = self.nodes.iter().enumerate().all(|(index, node)| {
            let here = node.disk.holds();
            let known = here.is_none_or(|id| volume.replicas.contains_key(&id));
            node.lost || known || node.slots.is_away() || !self.is_ordered_away(index)
        });
        let waits = |node: &Node| node.lost || node.slots.has_failed();
        let gone = volume.retired.values().all(|node| waits(&self.nodes[self.number_of(*node)]));
        (whole && clean && gone).then_some(members)
    }

    fn is_ordered_away(&self, index: usize) -> bool {
        let node = &self.nodes[index];
        self.masters.live().is_some_and(|volume| volume.retired.contains_key(&node.id))
    }
}

/// Copies without which nothing may be removed.
fn volume_copies(volume: &Volume) -> usize {
    match volume.spec.durability {
        Durability::SyncQuorum => volume.spec.replicas as usize / 2 + 1,
        Durability::SyncAll => volume.spec.min_in_sync as usize,
        Durability::BestEffort => 1,
    }
}
