//! Operators who give the volume another size at any time, and clients that use what lies beyond the first.
//!
//! Blocks beyond the first size come and go. Each has one client that uses it, one request at a time, and
//! trims it again; so what a read of it may show is known at any time: what was written or trimmed last,
//! and what was tried after it and got no answer. That holds across a shrink and a growth too: a shrink
//! takes nothing that is there, and what it refuses has no effect.

use std::collections::{BTreeMap, BTreeSet};

use sbk_engine::authority::{Command, Refusal, Response};
use sbk_engine::forward::{Answer, Op};
use sbk_engine::replication::io::{Input, IsrChange};
use sbk_engine::types::{BLOCK_SIZE, Config, Lba};
use sbk_store::FindDataPlan;

use super::content::{BLOCKS, Seen, VOLUME_BLOCKS};
use super::event::Event;
use super::marks::{Injected, Mark};
use super::masters::Pending;
use super::rng::Rng;
use super::world::World;

/// Blocks beyond the first size: at edges of sizes that are wished, and of regions.
pub(super) const BEYOND: [u64; 6] = [260, 262, 280, 300, 511, 519];
/// What operators wish.
const SIZES: [u64; 9] = [VOLUME_BLOCKS, 261, 270, 290, 400, 512, 515, 520, 600];

/// What the blocks beyond the first size may hold, as their one client knows.
#[derive(Clone, Debug, Default)]
pub(super) struct Beyond {
    /// By block: the values that a read may show; 0 for a hole.
    may_hold: BTreeMap<u64, BTreeSet<u64>>,
    /// By block: what is under way.
    asked: BTreeMap<u64, Tried>,
}

/// A request under way, and what it writes.
#[derive(Clone, Copy, Debug)]
enum Tried {
    Reads,
    Writes(u64),
}

impl Beyond {
    /// The block of a client that is to be asked for next, and what with; `None` if one is asked for.
    pub(super) fn draw(&self, rng: &mut Rng, client: u64) -> Option<(u64, Kind)> {
        let own = (BLOCKS..BLOCKS + BEYOND.len() as u64).filter(|block| block % 3 == client % 3);
        let own: Vec<_> = own.collect();
        let block = own[rng.below(own.len() as u64) as usize];
        let kind = match rng.below(10) {
            0..=2 => Kind::Read,
            3..=5 => Kind::Write,
            _ => Kind::Trim,
        };
        (!self.asked.contains_key(&block)).then_some((block, kind))
    }

    /// A request goes out.
    pub(super) fn ask(&mut self, block: u64, op: Op, value: u64) {
        let tried = match op {
            Op::Read(_) => Tried::Reads,
            Op::Write(_) => Tried::Writes(value),
            Op::Trim(_) | Op::Zero(_) | Op::Flush => Tried::Writes(0),
        };
        let before = self.asked.insert(block, tried);
        assert!(before.is_none(), "one at a time");
    }

    fn may_hold(&mut self, block: u64) -> &mut BTreeSet<u64> {
        self.may_hold.entry(block).or_insert_with(|| BTreeSet::from([0]))
    }

    /// An answer came; what it was given up for may take effect still, before the next one does.
    pub(super) fn answered(&mut self, block: u64, answer: &Answer, seen: Option<Seen>) {
        let Some(tried) = self.asked.remove(&block) else { return };
        match (answer, tried) {
            (Answer::Done, Tried::Reads) => {
                let seen = seen.expect("an answered read brings its data");
                self.check(block, seen);
            }
            (Answer::Done, Tried::Writes(value)) => {
                *self.may_hold(block) = BTreeSet::from([value]);
            }
            // It is beyond the end: nothing was done.
            (Answer::Invalid(_), _) | (_, Tried::Reads) => {}
            (Answer::Failed(_) | Answer::Deleted, Tried::Writes(value)) => {
                self.may_hold(block).insert(value);
            }
        }
    }

    /// All that is under way is given up.
    pub(super) fn give_up(&mut self) {
        for (block, tried) in std::mem::take(&mut self.asked) {
            if let Tried::Writes(value) = tried {
                self.may_hold(block).insert(value);
            }
        }
    }

    /// What a read shows is one of what may be there.
    pub(super) fn check(&mut self, block: u64, seen: Seen) {
        let may = self.may_hold(block);
        assert!(
            seen.whole == seen.part && may.contains(&seen.whole),
            "I2: block {block} shows {seen:?}, and may hold {may:?}"
        );
    }
}

/// What is asked of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Trim,
}

/// What is true of the volume's size.
#[derive(Clone, Debug)]
pub(super) struct Sizes {
    /// Those that were committed, in order.
    committed: Vec<u64>,
    /// Which of them is published.
    published: usize,
    /// Those that were ever wished.
    wished: BTreeSet<u64>,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { committed: vec![VOLUME_BLOCKS], published: 0, wished: BTreeSet::new() }
    }
}

impl Sizes {
    /// A resize is committed.
    pub(super) fn commit(&mut self, blocks: u64) {
        assert!(self.wished.contains(&blocks), "L7: nobody wished for {blocks} blocks");
        self.committed.push(blocks);
    }

    /// The newest that is committed.
    pub(super) fn newest(&self) -> u64 {
        self.committed.last().copied().unwrap_or(VOLUME_BLOCKS)
    }

    /// What is published was committed, and no earlier than what was published before.
    fn publish(&mut self, blocks: u64) {
        let later = self.committed[self.published..].iter().position(|size| *size == blocks);
        let Some(later) = later else {
            panic!(
                "A10: {blocks} blocks are published; committed are {:?}, of which the {}th was published",
                self.committed, self.published
            );
        };
        self.published += later;
    }
}

impl World {
    /// An operator wants another size, or to keep the one that there is.
    pub(super) fn resize_turn(&mut self) {
        let blocks = match self.rng.chance(15) {
            true => self.masters.config.blocks,
            false => SIZES[self.rng.below(SIZES.len() as u64) as usize],
        };
        self.inject(Injected::Resize);
        let (volume, size_bytes) = (self.masters.volume, blocks * BLOCK_SIZE);
        let (shrink, overcommit_percent) = (true, 100);
        let command = Command::WishSize { volume, size_bytes, shrink, overcommit_percent };
        self.submit(Pending { command, proposer: None });
    }

    /// The masters applied a command.
    pub(super) fn note_sizes(&mut self, before: &Config, command: &Command, response: &Response) {
        if let (Command::WishSize { size_bytes, .. }, Ok(_)) = (command, response) {
            self.truth.sizes.wished.insert(size_bytes / BLOCK_SIZE);
        }
        let blocks = self.masters.config.blocks;
        if blocks != before.blocks {
            self.truth.sizes.publish(blocks);
            self.mark(if blocks > before.blocks { Mark::Grown } else { Mark::Shrunk });
        }
        match (command, response) {
            (Command::ProposeIsr { change: IsrChange::KeepSize { .. }, .. }, Ok(_)) => {
                self.mark(Mark::SizeKept);
            }
            (Command::WishSize { .. }, Err(Refusal::ResizeUnderWay { .. })) => {
                self.mark(Mark::ResizeRefused);
            }
            (Command::WishSize { .. }, Ok(_))
                if before.wished_blocks.is_some()
                    && self.masters.config.wished_blocks.is_none() =>
            {
                self.mark(Mark::ResizeTakenBack);
            }
            _ => {}
        }
        let replaced = before.primary != self.masters.config.primary;
        if replaced && before.wished_blocks.is_some() {
            self.mark(Mark::ResizeRaced);
        }
    }

    /// Whether what is wished was done or refused, and what is committed is published.
    pub(super) fn has_its_size(&self) -> bool {
        let config = &self.masters.config;
        config.wished_blocks.is_none() && config.blocks == self.truth.sizes.newest()
    }

    /// A node's store looks for data.
    pub(super) fn find_data(&mut self, index: usize, search: u64, first: Lba, end: u64) {
        let node = &mut self.nodes[index];
        let plan = node.disk.store().plan_find_data(first, end);
        node.search = Some((search, plan));
        let run = node.run;
        let delay = self.rng.below(40);
        self.after(delay, Event::Searched { node: index, run, search });
    }

    pub(super) fn searched(&mut self, index: usize, run: u64, search: u64) {
        let node = &mut self.nodes[index];
        let asked = node.search.as_ref().is_some_and(|(number, _)| *number == search);
        let Some((_, plan)) = node.search.take_if(|_| asked && node.run == run) else { return };
        let looked = FindDataPlan::run(plan);
        if node.disk.memory.crashed() {
            return self.stops(index);
        }
        let (found, error) = match looked {
            Ok(found) => (found, None),
            Err(error) => (None, Some(error.to_string())),
        };
        self.step(index, Input::DataFound { search, found, error }, Vec::new());
    }

    /// At rest, every replica's log has the published size, and what is beyond the first one is as its
    /// clients know it.
    pub(super) fn check_sizes(&mut self, members: &[usize]) {
        let blocks = self.masters.config.blocks;
        for index in members {
            let node = &self.nodes[*index];
            let view = node.replica.as_ref().map(|replica| replica.view(node.clock(self.now)));
            let view = view.expect("it is at rest");
            assert_eq!(
                (view.blocks, view.committed_blocks, blocks),
                (blocks, blocks, self.truth.sizes.newest()),
                "I4: node {index} has another size"
            );
        }
        for number in 0..BEYOND.len() as u64 {
            let block = BLOCKS + number;
            let at = Lba(BEYOND[number as usize]);
            let client = (0..self.clients.len()).find(|n| *n as u64 % 3 == block % 3);
            let client = client.expect("each has one");
            for index in members.iter().filter(|_| at.0 < blocks) {
                let seen = self.seen_at(*index, at);
                self.clients[client].beyond.check(block, seen);
            }
        }
    }
}
