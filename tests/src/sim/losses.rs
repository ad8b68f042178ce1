//! Losses that a mode allows for: when one is traced, what it took, and that no client goes on in
//! silence.
//!
//! A loss takes effect when the replica that was chosen is ready: until then an earlier primary may
//! still answer under its lease. What was acknowledged then and is not in the chosen log is lost;
//! nothing else is, and nothing is at any other time.

use std::collections::{BTreeMap, BTreeSet};

use sbk_engine::replication::log::RequestTag;
use sbk_engine::replication::message::Incomplete;
use sbk_engine::replication::view::RoleView;
use sbk_engine::types::{Durability, LossGeneration, Lsn};

use super::disk::Entry;
use super::event::Event;
use super::masters::Pending;
use super::node::Node;
use super::world::World;

impl World {
    /// Whether the masters have traced a loss that has not taken effect yet.
    pub(crate) fn loss_pending(&self) -> bool {
        self.masters.config.loss_generation > self.truth.loss_generation
    }

    /// Whether a node's log is of another age than the truth: of before a loss, and what it takes for
    /// committed may be lost; or of after one that has not taken effect, which will tell it.
    pub(crate) fn outdated(&self, index: usize) -> bool {
        self.nodes[index].disk.shadow.kept.loss_generation != self.truth.loss_generation
    }

    /// A primary may have become ready by the step that was just taken, whose outputs come next.
    pub(crate) fn notice_loss(&mut self, index: usize) {
        if !self.loss_pending() {
            return;
        }
        let node = &self.nodes[index];
        let Some(replica) = &node.replica else { return };
        let view = replica.view(node.clock(self.now));
        let of = view.config.map(|config| config.loss_generation);
        let Some(of) = of.filter(|of| *of > self.truth.loss_generation) else { return };
        if view.role == RoleView::Primary && view.ready {
            self.lose(index, of);
        }
    }

    /// What is acknowledged and not in the node's log is lost from here on.
    fn lose(&mut self, index: usize, generation: LossGeneration) {
        let shadow = &self.nodes[index].disk.shadow;
        let end = shadow.end();
        let parted = self
            .truth
            .entries()
            .find(|(lsn, entry)| *lsn > end || shadow.get(*lsn).is_some_and(|held| held != *entry));
        let common = parted.map_or(self.truth.newest(), |(lsn, _)| lsn.prev());
        let missing = self.masters.missing();
        // An operator gave up what was on the disks of others, flushed or not.
        let given_up = self.given_up.is_some_and(|of| of > self.truth.loss_generation);
        assert!(
            given_up || common >= self.truth.flushed,
            "I2: what was flushed up to {} is lost, all but {common}",
            self.truth.flushed
        );
        assert!(
            given_up || !missing.is_empty() || common >= self.truth.firm,
            "I2: what all had up to {} when a member left is lost, all but {common}",
            self.truth.firm
        );
        let held = shadow.entries(Lsn(1), end);
        let held: BTreeSet<_> = held.iter().filter_map(|(h, _)| Some(h.origin?.tag)).collect();
        let committed = shadow.entries(common.next(), shadow.committed);
        self.truth.lose(common, end, generation);
        self.truth.note(&committed);
        // What the chosen log holds may have been lost before, and is back then. All else that was
        // asked for can't happen any more: its sessions are over.
        let (mut found, mut lost) = (Vec::new(), Vec::new());
        for (tag, value) in &self.values {
            if held.contains(tag) { found.push(*value) } else { lost.push(*value) }
        }
        self.summary.losses += 1;
        self.note(index, || format!("goes on after loss {generation}, from {common}"));
        self.history.lose(generation, &lost, &found);
    }

    /// The log whose image a rebuild brings: its primary's, up to the base.
    pub(crate) fn image_log(&self, mark: &Incomplete) -> BTreeMap<Lsn, Entry> {
        let entries = match self.sender(mark) {
            Some(primary) => self.nodes[primary].disk.shadow.entries(Lsn(1), mark.base),
            None => {
                self.truth.entries().take_while(|(l, _)| *l <= mark.base).map(|e| *e.1).collect()
            }
        };
        entries.into_iter().map(|entry| (entry.0.lsn, entry)).collect()
    }

    /// The node that sends a base, if it is still the primary.
    pub(super) fn sender(&self, mark: &Incomplete) -> Option<usize> {
        let sends = |node: &Node| {
            let view = node.replica.as_ref().map(|replica| replica.view(node.clock(self.now)));
            view.is_some_and(|v| v.role == RoleView::Primary && v.epoch >= mark.session.epoch)
        };
        self.nodes.iter().position(sends)
    }

    /// A `best_effort` primary acknowledges: its own disk must have it, and it must be the one.
    pub(crate) fn note_acknowledged(&mut self, index: usize, tag: RequestTag) {
        let written = self.masters.config.acks_written();
        if self.faults.durability != Durability::BestEffort && !written {
            return;
        }
        if !written {
            self.check_read(index);
        }
        let shadow = &self.nodes[index].disk.shadow;
        let known = self.truth.newest();
        // Written acknowledgements: its own disk may have failed, which it does not know yet.
        let last = if written { shadow.end() } else { shadow.durable };
        let logged = shadow.entries(Lsn(1), last);
        let found = logged.iter().rev().find(|(h, _)| h.origin.is_some_and(|o| o.tag == tag));
        let Some((header, _)) = found else {
            panic!("I2: {tag:?} is acknowledged and not on the disk of node {index}");
        };
        let lsn = header.lsn;
        let entries = shadow.entries(known.next(), lsn);
        self.truth.note(&entries);
        if written && !self.outdated(index) {
            self.truth.acknowledged = self.truth.acknowledged.max(lsn);
            self.check_written();
        }
    }

    /// A flush was answered: what had been acknowledged when it was sent is on every disk.
    pub(crate) fn note_flushed(&mut self, index: usize, tag: RequestTag) {
        let Some(floor) = self.flushes.get(&tag).copied() else { return };
        if self.masters.config.acks_written() && !self.outdated(index) && !self.loss_pending() {
            self.truth.flushed = self.truth.flushed.max(floor.min(self.truth.acknowledged));
            for node in
                0..if self.faults.blackout && self.rng.chance(2) { self.nodes.len() } else { 0 }
            {
                self.after(1, Event::Strike { node, power: true });
            }
        }
    }

    /// A client is answered by a primary of a loss generation: it must have attached in that one.
    pub(crate) fn check_attached(&self, client: usize, generation: LossGeneration) {
        let attached = self.clients[client].attached;
        assert_eq!(
            attached,
            Some(generation),
            "I2: a client of before a loss goes on as if nothing had happened"
        );
    }

    /// All but one node go, after that one was away: it lacks what was written meanwhile, and is all
    /// that is left of the volume when the operator gives up the others.
    pub(crate) fn disaster(&mut self) {
        let left = self.rng.below(self.nodes.len() as u64) as usize;
        self.die(left, false, 3_200);
        let delay = 3_000;
        self.after(delay, Event::Disaster { left });
    }

    pub(crate) fn all_but(&mut self, left: usize) {
        for node in (0..self.nodes.len()).filter(|node| *node != left) {
            let away = 4_000 + self.rng.below(4_000);
            self.die(node, false, away);
        }
    }

    /// What a primary orders is its last word: it and all others go, an operator gives them up, and the
    /// order reaches the one that is left before it has heard of that, or long after. Whether it became so.
    pub(crate) fn parts_with(&mut self, left: usize, order: &Event) -> bool {
        if !self.faults.parting || self.healed || !self.rng.chance(25) {
            return false;
        }
        let gone = self.rng.below(20);
        self.after(gone, Event::Disaster { left });
        let late = 200 + self.rng.below(2_500);
        self.after(late, order.clone());
        true
    }

    /// An operator looks after a volume that waits: the nodes that are off are given up. One may come
    /// between what another has asked for and its outcome, and each may see the nodes come back.
    pub(crate) fn operator_turn(&mut self) {
        let off: BTreeSet<_> = self.nodes.iter().filter(|n| !n.up).map(|n| n.node).collect();
        if let Some(command) = self.masters.recovery(self.now, &off) {
            self.note_all(|| "an operator gives up the nodes that are off".to_owned());
            // Two operators at one time want the same now and then, and one of them is too late.
            if self.now / 50 % 3 == 1 {
                self.submit(Pending { command: command.clone(), proposer: None });
            }
            self.submit(Pending { command, proposer: None });
        }
    }
}
