//! Receiving the base lane of a delta or a rebuild: its beginning, the blocks, the end.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use sbk_engine::bugs::{Bug, on};
use sbk_engine::replication::io::Kept;
use sbk_engine::replication::log::LogState;
use sbk_engine::replication::message::Incomplete;
use sbk_engine::types::{BLOCK_SIZE, Lba, Lsn, REGION_BLOCKS};

use super::ages::Ages;
use super::core::Store;
use super::error::StoreError;
use super::homes::Held;
use super::image::{REGIONS_PER_SECTOR, encode_sector};
use super::open::state_record;
use super::read::Rewriting;
use super::stamper::Label;

const WORDS: usize = REGION_BLOCKS.div_ceil(64) as usize;

/// One bit for each block that a checkpoint moved from the WAL to the extents since the session
/// began: what the base lane still brings for it is older. 32 bytes for each region touched.
///
/// An entry that is only logged does not count: it hides the base's block from reads by itself, and
/// as long as it is not committed it may still be cut.
/// 1. The WAL lane brings entry 11, not committed, for block b; the base brings b as of 10.
/// 2. If the base's block were dropped, b would be nowhere below entry 11.
/// 3. The session ends at 10; a failover cuts entry 11; b reads as zeros, on a replica that is in
///    sync.
#[derive(Debug, Default)]
pub(super) struct Written(BTreeMap<u64, [u64; WORDS]>);

impl Written {
    pub(super) fn add(&mut self, range: &Range<u64>) {
        for block in range.clone() {
            let words = self.0.entry(block / REGION_BLOCKS).or_insert([0; WORDS]);
            let at = block % REGION_BLOCKS;
            words[(at / 64) as usize] |= 1 << (at % 64);
        }
    }

    fn has(&self, block: u64) -> bool {
        let at = block % REGION_BLOCKS;
        self.0
            .get(&(block / REGION_BLOCKS))
            .is_some_and(|words| words[(at / 64) as usize] & (1 << (at % 64)) != 0)
    }
}

impl Store {
    /// Writes the superblock with `kept`, which holds `mark`, then drops the WAL and, for a rebuild, the
    /// extents. The log starts anew at `mark.base + 1` with `state` as of the base. Blocks.
    ///
    /// A delta keeps extents and checksums, which hold the image of `mark.from`, or did when the first
    /// of a chain of broken sessions began: what those wrote since is in regions that the next one
    /// sends. A crash anywhere after the first superblock leaves a replica that counts for nothing, and
    /// that the same mark's `from` is true of.
    ///
    /// The table of regions goes in any case. The sender's, which comes before the end, says of each
    /// region at least what this one would; and without it nothing depends on what was torn of it.
    ///
    /// # Panics
    /// If a batch or a checkpoint is out, `kept` has not the mark, or a delta begins above what the
    /// extents hold.
    pub fn wipe(
        &mut self,
        mark: &Incomplete,
        state: &LogState,
        kept: &Kept,
    ) -> Result<(), StoreError> {
        self.check()?;
        assert!(!self.batching && !self.checkpointing, "a wipe waits for what is out");
        assert_eq!(kept.incomplete.as_ref(), Some(mark), "the mark is written first");
        let held = self.blank || self.written.is_some() || self.checkpoint >= mark.from;
        assert!(
            held || on(Bug::DeltaUncheckpointed),
            "a delta from {}, but the extents hold {}",
            mark.from,
            self.checkpoint
        );
        // [A verification read the image that a rebuild was writing, and told of differences.]
        std::mem::replace(&mut self.rewriting, Arc::new(Rewriting::new(mark.base))).leave();
        self.superblock.cut = None;
        match mark.from {
            Lsn(0) => self.image.forget_proofs(),
            _ => self.image.begin_session(),
        }
        if on(Bug::LogBeforeMark) {
            self.log.reset(mark.base.0 + 1).map_err(|e| self.fail(e.into()))?;
        }
        self.persist(kept)?;
        if !on(Bug::LogBeforeMark) {
            self.log.reset(mark.base.0 + 1).map_err(|e| self.fail(e.into()))?;
        }
        let dropped = match mark.from {
            Lsn(0) if !on(Bug::WipeKeepsExtents) => self.image.wipe(),
            // It proves what the delta does not bring.
            _ if self.image.stamper.has_key() => Ok(()),
            _ => self.image.drop_regions(),
        };
        dropped.map_err(|e| self.fail(e))?;
        self.state = state.clone();
        self.blocks = state.blocks;
        self.regions = Vec::new();
        self.entries = self.options.entries(mark.base.next());
        self.map.clear();
        self.references.clear();
        self.references.sweep_all();
        self.last_reference = Lsn(0);
        self.resident = 0;
        self.resident_entries = 0;
        self.written = Some(Written::default());
        self.ages = Ages::default();
        self.wanted = Lsn(0);
        self.pins.clear();
        self.lost_pins.clear();
        self.durable = mark.base;
        self.told_committed = mark.base;
        self.checkpoint = mark.base;
        self.given_up = Lsn(0);
        self.superblock.checkpoint = mark.base;
        self.log_begins.store(self.log.first_index(), Ordering::SeqCst);
        self.write_state()?;
        self.write_superblock()?;
        self.blank = false;
        Ok(())
    }

    /// Writes the log's state as of the checkpoint. Blocks.
    fn write_state(&mut self) -> Result<(), StoreError> {
        let record = state_record(
            &self.superblock.identity,
            &self.state,
            self.checkpoint,
            self.last_reference,
            self.image.proven(),
        );
        let record = self.image.stamper.sign(Label::State, record);
        let file = self.state_file.as_mut().expect("no checkpoint is out");
        // A slot with the state of what was wiped would be taken for a later one.
        let result = file.write(&record).and_then(|()| file.sync());
        result.map_err(|e| self.fail(e.into()))
    }

    /// Base blocks from `lba` on, whole ones. Those that have a newer, committed version in the
    /// extents are left alone. Not durable before [`Store::finish_rebuild`].
    ///
    /// # Panics
    /// If no delta or rebuild is under way.
    pub fn write_base(&mut self, lba: Lba, data: &Bytes) -> Result<(), StoreError> {
        self.check()?;
        let written = self.written.as_ref().expect("base blocks come in a session");
        assert!((data.len() as u64).is_multiple_of(BLOCK_SIZE), "whole blocks");
        let blocks: Vec<&[u8]> = data.chunks_exact(BLOCK_SIZE as usize).collect();
        let mut result = self.image.bring(&(lba.0..lba.0 + blocks.len() as u64));
        let mut at = 0;
        while at < blocks.len() && result.is_ok() {
            let wanted = |i: usize| !written.has(lba.0 + i as u64) || on(Bug::BaseOverWal);
            if !wanted(at) {
                at += 1;
                continue;
            }
            let end = (at..blocks.len()).find(|i| !wanted(*i)).unwrap_or(blocks.len());
            let run = &blocks[at..end];
            let first = lba.0 + at as u64;
            let stamper = &self.image.stamper;
            let stamps: Vec<u64> =
                (first..).zip(run).map(|(block, data)| stamper.of_block(block, data)).collect();
            result = self.image.write(first, run, &stamps, &Held::default());
            at = end;
        }
        result.map_err(|e| self.fail(e))
    }

    /// Base blocks that are zeros, where a delta may have left something else. As
    /// [`Store::write_base`].
    ///
    /// # Panics
    /// If no delta or rebuild is under way.
    pub fn write_base_zeros(&mut self, range: Range<u64>) -> Result<(), StoreError> {
        self.check()?;
        let written = self.written.as_ref().expect("base blocks come in a session");
        let wanted = |block: &u64| !written.has(*block) || on(Bug::BaseOverWal);
        let mut result = self.image.bring(&range);
        let mut at = range.start;
        while at < range.end && result.is_ok() {
            if !wanted(&at) {
                at += 1;
                continue;
            }
            let end = (at..range.end).find(|block| !wanted(block)).unwrap_or(range.end);
            result = self.image.zero(&(at..end), &Held::default());
            at = end;
        }
        result.map_err(|e| self.fail(e))
    }

    /// The sender's region LSNs from region `first` on. Durable with [`Store::finish_rebuild`].
    pub fn set_regions(&mut self, first: u64, lsns: &[Lsn]) {
        let end = first as usize + lsns.len();
        if self.regions.len() < end {
            self.regions.resize(end, Lsn(0));
        }
        for (mine, theirs) in self.regions[first as usize..].iter_mut().zip(lsns) {
            *mine = (*mine).max(*theirs);
        }
    }

    /// Syncs everything that the base lane brought and the region table, then writes the superblock
    /// with `kept`, which has no mark any more. Blocks.
    ///
    /// # Panics
    /// If no delta or rebuild is under way, a checkpoint is out, or `kept` still has a mark.
    pub fn finish_rebuild(&mut self, kept: &Kept) -> Result<(), StoreError> {
        self.check()?;
        assert!(self.written.is_some(), "a delta or rebuild is under way");
        assert!(!self.checkpointing, "its end waits for what is out");
        assert!(kept.incomplete.is_none(), "the mark goes last");
        if on(Bug::MarkGoneEarly) {
            self.persist(kept)?;
        }
        self.write_whole_table().map_err(|e| self.fail(e))?;
        self.persist(kept)?;
        self.written = None;
        Ok(())
    }

    fn write_whole_table(&self) -> Result<(), StoreError> {
        let image = &self.image;
        if image.stamper.has_key() {
            let change = image.plan_table(self.checkpoint, &self.regions)?;
            image.write_table(change.writes())?;
            image.sync()?;
            image.changed(change);
            image.end_session();
            return Ok(());
        }
        let sectors = (self.regions.len() as u64).div_ceil(REGIONS_PER_SECTOR);
        let sectors: Vec<_> =
            (0..sectors).map(|number| (number, encode_sector(number, &self.regions))).collect();
        image.write_regions(&sectors).and_then(|()| image.sync())
    }
}
