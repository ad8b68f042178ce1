//! Raft's figure 8, step by step: an entry of an old epoch that reaches a majority only in a later one,
//! while a log of an epoch between lies on one node. Three changes of primary and a partition, within
//! milliseconds of what the candidates do.

use sbk_engine::authority::Command;
use sbk_engine::types::{Config, Durability, ReplicaRef};

use super::event::Event;
use super::world::World;

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Eight {
    /// `first`, the primary, is cut off with its clients: its log grows alone.
    Apart { first: usize },
    /// Another is to be elected.
    Between { first: usize },
    /// It was, and is cut off before it told anybody; `first` is back, to be elected again.
    Back { first: usize },
    /// It was, and what it logged alone is on its way.
    Again { first: usize },
}

impl World {
    pub(super) fn eight(&mut self) {
        let first = self.index(self.masters.config.primary.id);
        let quorum = self.faults.durability == Durability::SyncQuorum;
        if self.eight.is_some() || !quorum || self.nodes.iter().any(|node| !node.up) {
            return;
        }
        self.cut_off(first, false);
        self.clients
            .iter_mut()
            .for_each(|client| (client.apart, client.reads_only) = (true, false));
        self.eight = Some(Eight::Apart { first });
        let delay = 200 + self.rng.below(600);
        self.after(delay, Event::Eight);
    }

    pub(super) fn eight_on(&mut self) {
        let Some(eight) = self.eight.filter(|_| !self.healed) else { return };
        match eight {
            Eight::Apart { first } => {
                self.eight = Some(Eight::Between { first });
                self.coup_now();
                // Whatever comes of it, it is over some time.
                self.after(4_000, Event::Eight);
            }
            Eight::Back { first } => {
                let chosen = self.nodes[first].id;
                let Config { volume, epoch: expect_epoch, isr, .. } = self.masters.config.clone();
                if let Some(incarnation) = self.masters.registered(chosen) {
                    let primary = ReplicaRef { id: chosen, incarnation };
                    self.apply(&Command::Failover {
                        volume,
                        expect_epoch,
                        primary,
                        isr,
                        stood: None,
                    });
                }
            }
            Eight::Again { first } => {
                self.part(first);
                self.eight = None;
                let delay = 1_100 + self.rng.below(400);
                self.after(delay, Event::Mend);
            }
            Eight::Between { .. } => {
                self.mend();
                self.eight = None;
            }
        }
    }

    /// A candidate's log is the volume's.
    pub(super) fn eight_elected(&mut self, index: usize) {
        match self.eight.filter(|_| !self.healed) {
            Some(Eight::Between { first }) if index != first => {
                self.mend();
                self.part(index);
                self.nodes[index].unheard = true;
                self.eight = Some(Eight::Back { first });
                let delay = self.rng.below(60);
                self.after(delay, Event::Eight);
            }
            Some(Eight::Back { first }) if index == first => {
                self.eight = Some(Eight::Again { first });
                let delay = 4 + self.rng.below(30);
                self.after(delay, Event::Eight);
            }
            Some(_) | None => {}
        }
    }

    /// No node hears this one, nor it them.
    pub(super) fn part(&mut self, node: usize) {
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            self.broken.insert((node, other));
            self.broken.insert((other, node));
        }
    }
}
