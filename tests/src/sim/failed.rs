//! Disks that fail for good, or for all that anybody knows, while their nodes go on: each has two.
//!
//! A replica whose disk has failed is closed, and its node says that it has a disk less. Another one takes its
//! place, be it on the other disk of the same node, and the old one waits there to be removed: it is neither lost
//! nor removed before the disk is back. That may never come about. Now and then the disk is back as it was, or an operator puts
//! another one in its place, on which there is nothing.

use sbk_engine::authority::Command;
use sbk_engine::authority::Fate;
use sbk_engine::types::{Durability, ReplicaId};

use super::event::Event;
use super::marks::{Injected, Mark};
use super::masters::{OVERCOMMIT_PERCENT, Pending};
use super::world::World;

/// Bytes of a disk.
const DISK_BYTES: u64 = 1 << 29;
/// Why a store on a failed disk can't be used.
const CAUSE: &str = "its disk can't be used";

/// A node's two disks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Slots {
    /// The one that its replica is on, or the next one will be.
    on: usize,
    /// The one that can't be used.
    failed: Option<usize>,
    /// A replica on that one whose place another one has got.
    aside: Option<ReplicaId>,
    /// An operator put an empty disk in the place of the one that a listed replica was on.
    missing: Option<ReplicaId>,
}

impl Slots {
    /// Whether the node's replica is on a disk that can't be used.
    pub(crate) fn is_away(&self) -> bool {
        self.failed == Some(self.on)
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Whether the replica went with its disk.
    pub(crate) fn misses(&self, replica: ReplicaId) -> bool {
        self.missing == Some(replica)
    }

    /// The disk of the node's replica.
    pub(crate) fn on(&self) -> u32 {
        self.on as u32
    }

    /// Bytes of each, as the node tells them.
    pub(crate) fn capacities(&self) -> Vec<u64> {
        (0..2).map(|slot| if self.failed == Some(slot) { 0 } else { DISK_BYTES }).collect()
    }
}

impl World {
    /// A disk of a node fails, as a rule the one that its replica is on.
    pub(super) fn fail_disk(&mut self) {
        let index = self.any_node();
        let (other, power) = (self.rng.chance(15), self.rng.chance(50));
        let node = &mut self.nodes[index];
        let busy = node.paused || node.lost || node.busy || node.disk.memory.crashed();
        // What is on a machine that is off or that an operator is about to give up is looked at by others.
        if busy || node.slots.has_failed() || self.masters.live().is_none() {
            return;
        }
        let slot = node.slots.on ^ usize::from(other);
        node.slots.failed = Some(slot);
        self.inject(Injected::DiskLost);
        self.note(index, || format!("disk {slot} fails for good"));
        if !other {
            self.mark_failed(index);
            self.close_failed(index, CAUSE);
            let node = &mut self.nodes[index];
            if !node.slots.is_away() || node.disk.memory.crashed() {
                return;
            }
            node.clear();
            node.disk.is_pulled(power);
        }
        if self.rng.chance(40) {
            let (empty, delay) = (self.rng.chance(50), 1_000 + self.rng.below(9_000));
            self.after(delay, Event::DiskBack { node: index, empty });
        }
    }

    fn mark_failed(&mut self, index: usize) {
        let id = self.nodes[index].id;
        if self.masters.config.primary.id == id {
            self.mark(Mark::PrimaryDiskFailed);
        }
    }

    /// A disk that had failed can be used again, or an empty one is in its place.
    pub(crate) fn disk_back(&mut self, index: usize, empty: bool) {
        let node = &self.nodes[index];
        let Some(slot) = node.slots.failed else { return };
        let away = node.slots.is_away();
        // Nobody throws away what may be the last copy.
        let counts = self.masters.config.isr.contains(&node.id) || self.loss_pending();
        let empty = empty && !(away && counts);
        self.note(index, || format!("disk {slot} is back{}", if empty { ", empty" } else { "" }));
        let node = &mut self.nodes[index];
        node.slots.failed = None;
        if empty {
            node.slots.aside = None;
            if away {
                node.slots.missing = node.disk.holds().or(node.slots.missing);
                node.let_go(&mut self.rng);
            }
        }
        if !node.up || node.removing {
            return;
        }
        if away && node.disk.holds().is_some() {
            self.mark(Mark::DiskBack);
            self.open(index);
        }
        self.look_at(index);
    }

    /// Whether a node's replica may be on a disk that can't be used: then it is neither lost nor removed.
    pub(super) fn may_be_away(&self, index: usize, replica: ReplicaId) -> bool {
        let node = &self.nodes[index];
        match node.disk.holds() {
            Some(here) if here == replica => node.slots.is_away(),
            Some(_) | None => node.slots.has_failed(),
        }
    }

    /// A replica on a disk that can't be used makes place for another one.
    pub(super) fn set_aside(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        node.clear();
        let here = node.disk.holds();
        node.slots.aside = here.or(node.slots.aside);
        node.let_go(&mut self.rng);
        self.note(index, || format!("sets {here:?} aside"));
    }

    /// The disk for a new replica.
    pub(super) fn choose_disk(&mut self, index: usize) {
        let slots = &mut self.nodes[index].slots;
        if slots.is_away() {
            slots.on ^= 1;
        }
    }

    /// A replica that is to be removed was on a disk that is back.
    pub(super) fn drop_aside(&mut self, index: usize, replica: ReplicaId) {
        let slots = &mut self.nodes[index].slots;
        if slots.aside == Some(replica) {
            slots.aside = None;
            let listed = self.masters.live().is_some_and(|v| v.replicas.contains_key(&replica));
            assert!(!listed, "I2: node {index} removes {replica}, which is listed");
            self.mark(Mark::AsideRemoved);
        }
    }

    /// A replica joined.
    pub(super) fn mark_beside(&mut self, replica: ReplicaId) {
        let node = &self.nodes[self.index(replica)];
        if node.id == replica && node.slots.aside.is_some() {
            self.mark(Mark::JoinedBeside);
        }
    }

    /// All is as it should be in the end.
    pub(super) fn mark_without(&mut self) {
        if self.nodes.iter().any(|node| node.slots.has_failed()) {
            self.mark(Mark::WholeWithout);
        }
    }

    /// An operator has replicas replaced that went with their disks.
    pub(super) fn replace_missing(&mut self) {
        let missing: Vec<_> = self.nodes.iter().filter_map(|node| node.slots.missing).collect();
        for replica in missing {
            let Some(volume) = self.masters.live() else { return };
            let listed = volume.replicas.get(&replica);
            if listed.is_some_and(|listed| listed.fate != Fate::GoesFirst) && self.rng.chance(5) {
                let volume = volume.id;
                let (fate, instead) = (Fate::GoesFirst, None);
                let overcommit_percent = OVERCOMMIT_PERCENT;
                let command =
                    Command::RetireReplica { volume, replica, fate, instead, overcommit_percent };
                self.note_all(|| format!("an operator has {replica} replaced"));
                self.submit(Pending { command, proposer: None });
            }
        }
    }

    /// Nothing goes wrong any more; but some disks that failed stay so, where the volume can do without.
    pub(super) fn settle_disks(&mut self) {
        for index in 0..self.nodes.len() {
            if !self.nodes[index].slots.has_failed() {
                continue;
            }
            let (stays, empty) = (self.rng.chance(50), self.rng.chance(50));
            if !stays || self.masters.live().is_none() || !self.can_do_without(index) {
                self.disk_back(index, empty);
            }
        }
    }

    /// Whether enough of those in sync are on disks that can be used.
    fn can_do_without(&self, index: usize) -> bool {
        let node = &self.nodes[index];
        let config = &self.masters.config;
        let here = |id: &&ReplicaId| {
            let holder = self.holder(**id);
            holder.is_some_and(|node| {
                !node.lost
                    && !node.slots.is_away()
                    && !node.damaged
                    && node.disk.shadow.kept.incomplete.is_none()
            })
        };
        let left = config.isr.iter().filter(here).count();
        let voters = config.isr.len();
        let least = match config.durability {
            // Of an even number none is replaced in its place: a majority of the others is fewer copies.
            Durability::SyncQuorum if self.faults.replicas.is_multiple_of(2) => usize::MAX,
            Durability::SyncQuorum => voters / 2 + 1,
            Durability::SyncAll | Durability::BestEffort => config.min_in_sync as usize,
        };
        !node.slots.is_away() || left >= least.max(1)
    }

    /// What is left can't go on by itself: a disk is back that holds a part of it.
    pub(super) fn find_disk(&mut self) {
        let away = |id: &&ReplicaId| self.holder(**id).is_some_and(|node| node.slots.is_away());
        if let Some(id) = self.masters.config.isr.iter().find(away).copied() {
            self.disk_back(self.index(id), false);
        }
    }
}
