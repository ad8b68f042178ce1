//! Bits that flip at rest in blocks of the extents, and what becomes of them.
//!
//! A client gets what it should read, or an I/O error; the history of a run tells of anything else. An error
//! must have been unavoidable: what is checked here.
//!
//! Family `rotten` strikes where it matters: blocks that a primary reads, while another in-sync member has
//! them sound; and in `sync_quorum` such as a voter that is behind holds as they were before.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use sbk_engine::replication::io::{Input, Reader, StreamId};
use sbk_engine::replication::log::{BlockRange, EntryHeader, EntryKind, RequestTag};
use sbk_engine::replication::message::{Lineage, RecoveryId, ToPrimary};
use sbk_engine::types::{Durability, Lba, Lsn, REGION_BLOCKS, ReplicaId};
use sbk_store::entry::entry_crc;
use sbk_store::{LogEntry, ReadError, RottenBlock, SettledReadPlan};

use super::content::{BLOCKS, address};
use super::event::Event;
use super::marks::{Injected, Mark};
use super::world::World;

/// Bytes of a file before its content, and of a block.
const HEADER: u64 = 4096;
const BLOCK: u64 = 4096;
/// For so long nothing may have disturbed the cluster before a block that another member has counts as one
/// that could have been repaired: as long as a primary waits, and what its clock may be off.
const CALM: u64 = 5_000;

/// Who found a block rotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Finder {
    Read,
    Merge,
    Base,
}

/// What is known of rotten blocks.
#[derive(Debug, Default)]
pub(crate) struct Rots {
    /// Who waits for the repair of which block, at which node.
    found: BTreeMap<(usize, Lba), BTreeSet<Finder>>,
    /// When the cluster was last disturbed.
    disturbed: u64,
}

/// Blocks that a node reads for a primary.
#[derive(Debug)]
pub(crate) struct Telling {
    lineage: Lineage,
    at: Lsn,
    plans: Vec<SettledReadPlan>,
}

fn lbas(blocks: &[RottenBlock]) -> Vec<Lba> {
    blocks.iter().map(|block| block.lba).collect()
}

impl World {
    /// Any block of any node.
    pub(super) fn rot_anywhere(&mut self) {
        let node = self.any_node();
        if let Some(block) = self.any_block(node) {
            self.rot(node, block);
        }
    }

    /// A block that a bit can flip in.
    fn any_block(&mut self, node: usize) -> Option<u64> {
        let first = self.rng.below(BLOCKS);
        let all = (0..BLOCKS).map(|n| address((first + n) % BLOCKS));
        all.into_iter().find(|block| self.home(node, *block).is_some())
    }

    /// Where a block lies, as its stamps say. What lies elsewhere is nobody's, or the log's.
    fn home(&self, node: usize, block: u64) -> Option<&'static str> {
        let disk = &self.nodes[node].disk;
        let stamps = disk.memory.content("checksums").unwrap_or_default();
        let has = |home: u64| {
            let at = (HEADER + 8 * block + home) as usize;
            stamps.get(at..at + 4).is_some_and(|stamp| stamp.iter().any(|byte| *byte != 0))
        };
        let home = match (has(0), has(4)) {
            (_, true) => "shadow",
            (true, false) => "extents",
            (false, false) => return None,
        };
        // What the log behind the checkpoint refers to is a part of the log: without it a replica is refused, as
        // without a record. A step of the checkpoint may have made it current already.
        (!disk.is_in_log(Lba(block))).then_some(home)
    }

    pub(super) fn rot(&mut self, node: usize, block: u64) {
        let bit = (HEADER + BLOCK * block + self.rng.below(BLOCK)) * 8 + self.rng.below(8);
        let Some(home) = self.home(node, block) else { return };
        if self.nodes[node].disk.memory.flip(home, bit) {
            self.scrubs.rots_again(node, Lba(block));
            self.inject(Injected::Flip);
            self.note(node, || format!("a bit of block {block} flips"));
        }
    }

    /// Strikes a block that another in-sync member has, as a rule of the primary.
    pub(super) fn rot_turn(&mut self) {
        if self.rng.below(55) == 0 {
            let primary = self.index(self.masters.config.primary.id);
            let node = if self.rng.chance(70) { primary } else { self.any_node() };
            if let Some(block) = self.any_block(node)
                && self.is_spared(node, Lba(block))
            {
                self.rot(node, block);
            }
        }
        let quorum = self.masters.config.durability == Durability::SyncQuorum;
        if quorum && self.rng.below(150) == 0 {
            self.leave_behind();
        }
    }

    /// Whether another in-sync member has the block sound and all that is committed.
    pub(super) fn is_spared(&mut self, node: usize, lba: Lba) -> bool {
        let mine = self.nodes[node].id;
        let others: Vec<_> =
            self.masters.config.isr.iter().copied().filter(|id| *id != mine).collect();
        let newest = self.truth.newest();
        others.into_iter().any(|id| {
            let whole = self.holder(id).is_some_and(|n| n.disk.shadow.durable >= newest);
            whole && self.has_sound(id, lba)
        })
    }

    /// Whether the replica is open, holds a whole image, and has the block sound in it.
    fn has_sound(&mut self, id: ReplicaId, lba: Lba) -> bool {
        let index = self.index(id);
        let node = &mut self.nodes[index];
        let whole = node.disk.shadow.kept.incomplete.is_none();
        if node.id != id || node.replica.is_none() || !whole || node.disk.memory.crashed() {
            return false;
        }
        let plan = node.disk.store().plan_read_settled(BlockRange { lba, blocks: 1 });
        plan.run().is_ok_and(|told| told.is_some_and(|told| told.rotten.is_empty()))
    }

    /// Whether a node has a block rotten that clients use, outside of these regions.
    pub(super) fn has_rot_beside(&mut self, index: usize, regions: &BTreeSet<u64>) -> bool {
        let store = self.nodes[index].disk.store();
        let mut beside =
            (0..BLOCKS).map(address).filter(|lba| !regions.contains(&(lba / REGION_BLOCKS)));
        self.faults.rot
            && beside.any(|lba| {
                let plan = store.plan_read_settled(BlockRange { lba: Lba(lba), blocks: 1 });
                plan.run().is_ok_and(|told| told.is_some_and(|told| !told.rotten.is_empty()))
            })
    }

    /// A voter gets nothing from the primary for a while, which goes on with the others.
    fn leave_behind(&mut self) {
        let primary = self.index(self.masters.config.primary.id);
        let voter = self.any_node();
        if voter == primary || !self.broken.is_empty() {
            return;
        }
        self.inject(Injected::OneWay);
        self.broken.insert((primary, voter));
        let delay = 300 + self.rng.below(1_200);
        self.after(delay, Event::Behind { primary, voter });
    }

    /// It hears the primary again, where a block rots that the voter has as it was before.
    pub(super) fn left_behind(&mut self, primary: usize, voter: usize) {
        self.broken.remove(&(primary, voter));
        let Some(view) = self.shown(primary) else { return };
        let end = self.nodes[voter].disk.shadow.end();
        let lacks: BTreeSet<u64> = self.nodes[primary]
            .disk
            .shadow
            .entries(end.next(), view.checkpoint)
            .iter()
            .filter_map(|(header, _)| header.kind.range())
            .flat_map(|range| range.lba.0..range.end())
            .collect();
        for block in lacks {
            if !self.healed && self.is_spared(primary, Lba(block)) {
                self.rot(primary, block);
            }
        }
    }

    fn shown(&self, index: usize) -> Option<sbk_engine::replication::view::View> {
        let node = &self.nodes[index];
        Some(node.replica.as_ref()?.view(node.clock(self.now)))
    }

    /// A read of a request met rotten blocks.
    pub(super) fn read_rotten(
        &mut self,
        index: usize,
        (stream, tag): (StreamId, RequestTag),
        error: &ReadError,
        blocks: &[RottenBlock],
    ) {
        self.mark(Mark::Rotten);
        let merge = self.nodes[index].merging.contains(&(stream, tag));
        let finder = if merge { Finder::Merge } else { Finder::Read };
        self.tell_rotten(index, finder, Reader::Request { stream, tag }, error, blocks);
    }

    /// A base lane's read did.
    pub(super) fn base_rotten(
        &mut self,
        index: usize,
        session: RecoveryId,
        error: &ReadError,
        blocks: &[RottenBlock],
    ) {
        self.tell_rotten(index, Finder::Base, Reader::Base { session }, error, blocks);
    }

    fn tell_rotten(
        &mut self,
        index: usize,
        finder: Finder,
        reader: Reader,
        error: &ReadError,
        blocks: &[RottenBlock],
    ) {
        let blocks = lbas(blocks);
        let why = error.to_string();
        self.check_cause(index, &why);
        for lba in &blocks {
            self.rots.found.entry((index, *lba)).or_default().insert(finder);
        }
        self.step(index, Input::Rotten { reader, blocks, why }, Vec::new());
    }

    /// Where no bit flips in blocks, one that does not match its checksum is one that a store lost: a repair must
    /// not hide that.
    fn check_cause(&self, index: usize, why: &str) {
        assert!(self.faults.rot, "I2: nothing rots, and node {index} has a damaged block: {why}");
    }

    /// Reads blocks for a primary, at a time of its own.
    pub(super) fn send_blocks(
        &mut self,
        index: usize,
        lineage: Lineage,
        request: u64,
        at: Lsn,
        blocks: Vec<Lba>,
    ) {
        let node = &mut self.nodes[index];
        let store = node.disk.store();
        assert_eq!(store.end(), at, "the engine knows where its log ends");
        let plan = |lba| store.plan_read_settled(BlockRange { lba, blocks: 1 });
        let plans = blocks.into_iter().map(plan).collect();
        let (of, run) = (lineage.to.id, node.run);
        node.telling.insert((of, request), Telling { lineage, at, plans });
        let delay = self.rng.below(if lineage.from == lineage.to { 20 } else { 5 });
        self.after(delay, Event::BlocksRead { node: index, run, of, request });
    }

    /// They were read: the primary is told, of each block what it is.
    pub(super) fn blocks_read(&mut self, index: usize, run: u64, of: ReplicaId, request: u64) {
        let node = &mut self.nodes[index];
        if node.run != run {
            return;
        }
        let Some(Telling { lineage, at, plans }) = node.telling.remove(&(of, request)) else {
            return;
        };
        let (mut held, mut rotten, mut why) = (Vec::new(), Vec::new(), String::new());
        for plan in plans {
            if let Ok(Some(told)) = plan.run() {
                held.extend(told.held);
                why = told.rotten.first().map_or(why, ToString::to_string);
                rotten.extend(lbas(&told.rotten));
            }
        }
        if node.disk.memory.crashed() {
            return self.stops(index);
        }
        let entry = |(lba, payload): &(Lba, Bytes)| {
            let kind = EntryKind::Write { lba: *lba, blocks: 1 };
            let header = EntryHeader { epoch: lineage.epoch, lsn: at, kind, origin: None };
            LogEntry { header, crc: entry_crc(&header, payload), payload: payload.clone() }
        };
        let entries: Vec<_> = held.iter().map(entry).collect();
        let held = held.into_iter().map(|(lba, _)| lba).collect();
        let own = lineage.from == lineage.to;
        if !rotten.is_empty() {
            self.check_cause(index, &why);
        }
        if !rotten.is_empty() && !own {
            let (reader, blocks) = (Reader::Asked, rotten.clone());
            self.step(index, Input::Rotten { reader, blocks, why }, Vec::new());
        }
        let message = ToPrimary::Blocks { request, at, held, rotten };
        if own {
            return self.step(index, Input::FromReplica { lineage, message }, entries);
        }
        self.tell_primary(index, lineage, message, entries);
    }

    /// The content of a block that is logged again.
    pub(super) fn told_block(&mut self, index: usize, header: &EntryHeader) -> Bytes {
        let range = header.kind.range();
        let mut fed = self.nodes[index].fed.iter();
        let block = fed.find(|entry| entry.header.kind.range() == range);
        let payload = block.expect("a block is logged with its content").payload.clone();
        let lba = range.map_or(Lba(0), |range| range.lba);
        self.scrubs.logged(index, lba, header);
        for finder in self.rots.found.remove(&(index, lba)).unwrap_or_default() {
            self.mark(match finder {
                Finder::Read => Mark::MendedForRead,
                Finder::Merge => Mark::MendedForMerge,
                Finder::Base => Mark::MendedForBase,
            });
        }
        payload
    }

    /// Notes whether anything stands in the way of a question and its answer.
    pub(super) fn note_calm(&mut self) {
        let lossy = self.faults.loss > 0 || self.faults.slow > 0;
        let still = |node: &super::node::Node| {
            !node.up
                || node.replica.is_none()
                || node.paused
                || node.stalled_until > self.now
                || node.syncs_from > self.now
        };
        let links = !self.broken.is_empty() || !self.slow_links.is_empty();
        if lossy || links || self.nodes.iter().any(still) {
            self.rots.disturbed = self.now;
        }
    }

    /// A request failed because nobody gave the blocks that rotted.
    pub(super) fn check_not_mended(&mut self, index: usize, why: &str) {
        let silent = why.contains("gave it within");
        let all = why.contains("on every other in-sync replica");
        let alone = why.contains("no other replica is in sync");
        self.summary.reads_failed += u64::from(silent || all || alone);
        if !silent && !all {
            return;
        }
        let rotten = self.nodes[index].rotten_now();
        let Some(config) = self.nodes[index].replica.as_ref().and_then(|r| r.config()).cloned()
        else {
            return;
        };
        let mine = self.nodes[index].id;
        let others: Vec<_> = config.isr.iter().copied().filter(|id| *id != mine).collect();
        let calm = self.now - self.rots.disturbed > CALM;
        if all || calm {
            for lba in rotten {
                // The request failed for one of its blocks; any of these may be it.
                let sound = others.iter().any(|id| self.has_sound(*id, lba));
                if !sound {
                    return;
                }
            }
            panic!("I8: node {index} failed a request although others have its blocks: {why}");
        }
    }
}

impl super::node::Node {
    /// The clients' blocks that don't match their checksums on this node.
    fn rotten_now(&mut self) -> Vec<Lba> {
        let store = self.disk.store();
        let rots = |lba: &Lba| {
            let plan = store.plan_read_settled(BlockRange { lba: *lba, blocks: 1 });
            plan.run().is_ok_and(|told| told.is_some_and(|told| !told.rotten.is_empty()))
        };
        (0..BLOCKS).map(|n| Lba(address(n))).filter(rots).collect()
    }
}
