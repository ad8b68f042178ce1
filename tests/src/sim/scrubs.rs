//! Operators who look for rotten blocks on all in-sync replicas, and have the primary repair them.
//!
//! What was logged again for a block that a scrub had found damaged on a follower must make that follower's
//! extents right, by the checkpoint that reaches it.

use std::collections::{BTreeMap, BTreeSet};

use sbk_engine::replication::io::{Fate, Input};
use sbk_engine::replication::log::EntryHeader;
use sbk_engine::types::{Epoch, Lba, Lsn};
use sbk_wal::crc32c;

use super::content::{BLOCKS, address};
use super::event::Event;
use super::marks::Mark;
use super::world::World;

/// Bytes of a file before its content, of a block and of its stamp.
const HEADER: usize = 4096;
const BLOCK: usize = 4096;
const STAMPS: usize = 8;

/// What scrubs found, and what was done about it.
#[derive(Debug, Default)]
pub(crate) struct Scrubs {
    /// The nodes on which each block was damaged.
    found: BTreeMap<Lba, BTreeSet<usize>>,
    /// The entry by which a node's block is to become right.
    logged: BTreeMap<(usize, Lba), (Lsn, Epoch)>,
}

impl Scrubs {
    /// What is known of the block does not hold any more.
    pub(super) fn rots_again(&mut self, node: usize, lba: Lba) {
        self.logged.remove(&(node, lba));
    }

    /// The primary on node `index` logs the block again.
    pub(super) fn logged(&mut self, index: usize, lba: Lba, header: &EntryHeader) {
        for node in self.found.remove(&lba).unwrap_or_default() {
            if node != index {
                self.logged.insert((node, lba), (header.lsn, header.epoch));
            }
        }
    }
}

impl World {
    /// Strikes a follower, and scrubs, now and then.
    pub(super) fn scrub_turn(&mut self) {
        if self.faults.rotten && self.rng.below(60) == 0 {
            let node = self.any_node();
            let block = address(self.rng.below(BLOCKS));
            let primary = self.index(self.masters.config.primary.id);
            if node != primary && self.is_spared(node, Lba(block)) {
                self.rot(node, block);
            }
        }
        if self.rng.below(20) != 0 {
            return;
        }
        let mut blocks = BTreeSet::new();
        for id in self.masters.config.isr.clone() {
            let index = self.index(id);
            for lba in self.damaged_on(index) {
                self.scrubs.found.entry(lba).or_default().insert(index);
                blocks.insert(lba);
            }
        }
        if self.rng.chance(20) {
            // What was told of long ago may be sound by now.
            blocks.insert(Lba(address(self.rng.below(BLOCKS))));
        }
        if !blocks.is_empty() {
            let delay = self.rng.below(50);
            self.after(delay, Event::Scrub { blocks: blocks.into_iter().collect() });
        }
    }

    /// What a scrub of the node's replica tells.
    fn damaged_on(&mut self, index: usize) -> Vec<Lba> {
        let node = &mut self.nodes[index];
        let whole = node.disk.shadow.kept.incomplete.is_none();
        if node.replica.is_none() || !whole || node.disk.memory.crashed() {
            return Vec::new();
        }
        let mut plan = node.disk.store().plan_digest(0, 0);
        let mut damaged = Vec::new();
        while let Some(Ok(Some(region))) = plan.next_region() {
            damaged.extend(region.damaged);
        }
        damaged
    }

    /// The primary is told.
    pub(super) fn scrub(&mut self, blocks: Vec<Lba>) {
        let primary = self.index(self.masters.config.primary.id);
        self.step(primary, Input::Scrub { blocks }, Vec::new());
    }

    /// It has told what became of blocks.
    pub(super) fn scrubbed(&mut self, blocks: &[Lba], fate: &Fate) {
        if matches!(fate, Fate::Overtaken) {
            // Whatever overtook it may be cut: nothing is known of these any more.
            for lba in blocks {
                self.scrubs.found.remove(lba);
            }
        }
    }

    /// A checkpoint is done: what was logged again up to it is right in the extents.
    pub(super) fn check_scrubbed(&mut self, index: usize, checkpoint: Lsn) {
        let reached = |(at, (lsn, _)): (&(usize, Lba), &(Lsn, Epoch))| {
            (at.0 == index && *lsn <= checkpoint).then_some(at.1)
        };
        let reached: Vec<_> = self.scrubs.logged.iter().filter_map(reached).collect();
        for lba in reached {
            let Some((lsn, epoch)) = self.scrubs.logged.remove(&(index, lba)) else { continue };
            let disk = &self.nodes[index].disk;
            let holds = disk.shadow.get(lsn).is_some_and(|entry| entry.0.epoch == epoch);
            if disk.memory.crashed() || disk.shadow.kept.incomplete.is_some() || !holds {
                continue;
            }
            let content = |path: &str| disk.memory.content(path).expect("the replica's file");
            let stamps = content("checksums");
            // That of its home in the extents, and that of the one in the shadow.
            let stamps = [0, 4].map(|home| {
                let stamp = &stamps[HEADER + lba.0 as usize * STAMPS + home..][..4];
                u32::from_le_bytes(stamp.try_into().expect("four bytes"))
            });
            let holds = |file: &str, stamp: u32| {
                let home = content(file);
                let crc = crc32c(&home[HEADER + lba.0 as usize * BLOCK..][..BLOCK]);
                // A sum with less than two bits makes another stamp.
                stamp == crc || crc.count_ones() < 2 && stamp == crc ^ 0xa5a5_a5a5
            };
            let right = match stamps {
                // Zeros, or trimmed since.
                [0, 0] => true,
                [stamp, 0] => holds("extents", stamp),
                [0, stamp] => holds("shadow", stamp),
                _ => false,
            };
            assert!(
                right,
                "I8: block {lba} of node {index} was logged again at {lsn} for a scrub, and is damaged \
                 in its extents after the checkpoint at {checkpoint}"
            );
            self.mark(Mark::Scrubbed);
        }
    }
}
