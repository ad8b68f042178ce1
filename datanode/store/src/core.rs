//! The store's state and what its owner does to it directly.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use sbk_engine::bugs::{Bug, on};
use sbk_engine::replication::io::Kept;
use sbk_engine::replication::log::{BlockRange, EntryHeader, EntryKind, EpochTable, LogState};
use sbk_engine::replication::message::{Incomplete, RecoveryId};
use sbk_engine::types::{BLOCK_SIZE, Lba, Lsn, REGION_BLOCKS};
use sbk_wal::{Log, Slots};

use super::ages::Ages;
use super::base::Written;
use super::entries::{Entries, Entry, Fate};
use super::error::StoreError;
use super::image::Image;
use super::map::{BlockMap, Span};
use super::open::StoreOptions;
use super::proofs::Proven;
use super::read::{Piece, Placed, ReadPlan, Rewriting, Source};
use super::references::References;
use super::stamper::Label;
use super::superblock::{MAX_EPOCHS, Superblock};
use super::{effect, regions_of};
use crate::entry::CANONICAL_HEADER;

/// Whether the WAL takes more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pressure {
    /// It does.
    Ok,
    /// It has reached its limit: nothing should be appended before a checkpoint made room.
    Full,
}

/// One replica's files. See the [module's documentation](super).
#[derive(Debug)]
pub struct Store {
    pub(super) options: StoreOptions,
    pub(super) superblock: Superblock,
    pub(super) superblock_file: Slots,
    /// What both slots of the superblock durably hold for the engine, of a cut, and of the table of regions, if they
    /// hold the same.
    pub(super) promised: Option<(Kept, Option<Lsn>, Option<Proven>)>,
    /// Away while a checkpoint step has it.
    pub(super) state_file: Option<Slots>,
    pub(super) image: Arc<Image>,
    pub(super) log: Log,
    pub(super) entries: Entries,
    pub(super) map: BlockMap,
    pub(super) references: References,
    /// The last entry up to the checkpoint that refers to a payload.
    pub(super) last_reference: Lsn,
    /// What is retained begins here, for those who read the log and payloads that it refers to.
    pub(super) log_begins: Arc<AtomicU64>,
    /// The disk is short of room.
    pub(super) short: bool,
    /// The log's state as of the checkpoint.
    pub(super) state: LogState,
    /// The volume's size as of the log's end.
    pub(super) blocks: u64,
    /// The last LSN of each region, as of the checkpoint.
    pub(super) regions: Vec<Lsn>,
    pub(super) durable: Lsn,
    /// As the owner said; may be beyond what is durable here.
    pub(super) told_committed: Lsn,
    pub(super) checkpoint: Lsn,
    /// Entries up to here can't be read back, though their segments are there.
    pub(super) given_up: Lsn,
    pub(super) ages: Ages,
    pub(super) pins: BTreeMap<RecoveryId, Lsn>,
    pub(super) lost_pins: BTreeSet<RecoveryId>,
    pub(super) rewriting: Arc<Rewriting>,
    /// Held by digests that must not be overtaken by a checkpoint.
    pub(super) verifying: Arc<()>,
    /// While base blocks come: what checkpoints moved to the extents since the session began.
    pub(super) written: Option<Written>,
    /// The extents are to hold everything up to here as soon as they can.
    pub(super) wanted: Lsn,
    /// WAL bytes and entries that are not in the extents.
    pub(super) resident: u64,
    pub(super) resident_entries: u64,
    pub(super) batching: bool,
    pub(super) checkpointing: bool,
    /// The superblock says INCOMPLETE from an earlier run: files count for nothing until a wipe.
    pub(super) blank: bool,
    pub(super) failed: Option<String>,
}

/// What an entry costs in the WAL, about.
pub(super) fn resident_cost(header: &EntryHeader) -> u64 {
    (CANONICAL_HEADER + sbk_wal::FRAME_HEADER) as u64 + header.kind.payload_len()
}

impl Store {
    /// The last LSN that was appended.
    pub fn end(&self) -> Lsn {
        self.entries.end()
    }

    /// Everything up to here is durable.
    pub fn durable(&self) -> Lsn {
        self.durable
    }

    /// Everything up to here is committed and durable.
    pub fn committed(&self) -> Lsn {
        self.told_committed.min(self.durable)
    }

    /// Everything up to here is in the extents.
    pub fn checkpoint(&self) -> Lsn {
        self.checkpoint
    }

    /// S: the oldest LSN that the WAL holds, or one above its end.
    pub fn retained(&self) -> Lsn {
        Lsn(self.log.first_index()).max(self.given_up.next())
    }

    /// The volume's size in blocks as of the log's end.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// What the superblock keeps for the engine.
    pub fn kept(&self) -> &Kept {
        &self.superblock.kept
    }

    /// Why nothing can be written any more, if so.
    pub fn failure(&self) -> Option<&str> {
        self.failed.as_deref()
    }

    /// Whether the log has a reference to the payload of an entry in place of the payload.
    pub fn refers(&self, lsn: Lsn) -> bool {
        self.references.has(lsn)
    }

    /// The entry that the log has a reference of to a payload in one of the block's homes, if there is one.
    pub fn referred(&self, block: Lba) -> Option<Lsn> {
        self.references.of_block(block.0)
    }

    /// WAL bytes that are not in the extents yet.
    pub fn resident_bytes(&self) -> u64 {
        self.resident
    }

    /// Adds an entry to the log in memory. It is readable at once; [`Store::take_batch`] makes it
    /// durable. `crc` is [`entry_crc`](crate::entry::entry_crc) of both.
    ///
    /// # Panics
    /// If it is not the next one, or `payload` has not the length that the header says.
    pub fn append(
        &mut self,
        header: EntryHeader,
        crc: u32,
        payload: Bytes,
    ) -> Result<(), StoreError> {
        self.check()?;
        assert!(!self.blank, "an incomplete replica takes entries only after its wipe");
        self.entries.push(Entry::new(header, crc, payload, &self.image.stamper));
        self.index(&header);
        Ok(())
    }

    /// Takes an entry that is in `entries` into the map and the sums.
    pub(super) fn index(&mut self, header: &EntryHeader) {
        if let Some((range, data)) = effect(header, self.blocks) {
            self.map.insert(range, header.lsn, data);
        }
        if let EntryKind::Resize { blocks } = header.kind {
            self.blocks = blocks;
        }
        self.resident += resident_cost(header);
        self.resident_entries += 1;
    }

    /// Extents may take everything up to `lsn`, as far as it is durable here.
    pub fn set_committed(&mut self, lsn: Lsn) {
        self.told_committed = self.told_committed.max(lsn);
    }

    /// Whether the WAL takes more.
    pub fn wal_pressure(&self) -> Pressure {
        let full = self.resident >= self.options.wal_max_bytes
            || self.resident_entries >= self.options.wal_max_entries;
        if full { Pressure::Full } else { Pressure::Ok }
    }

    /// Reads blocks as they are logged now. Blocks behind the volume's end are zeros.
    pub fn plan_read(&self, range: BlockRange) -> ReadPlan {
        self.plan_read_of(range.lba.0..range.end())
    }

    pub(super) fn plan_read_of(&self, range: Range<u64>) -> ReadPlan {
        let pieces = self.map.lookup(range.clone()).into_iter();
        let pieces = pieces.map(|(range, span)| self.piece(range, span)).collect();
        let (image, rewriting) = (Arc::clone(&self.image), Arc::clone(&self.rewriting));
        ReadPlan { range, pieces, image, rewriting }
    }

    pub(super) fn piece(&self, range: Range<u64>, span: Option<Span>) -> Piece {
        let Some(span) = span else { return Piece { range, source: Source::Extents } };
        let Some(skip) = span.skip else { return Piece { range, source: Source::Zeros } };
        let entry = self.entries.get(span.lsn).expect("the map names entries that are there");
        let blocks = skip as usize..(skip + span.len) as usize;
        let source = match &entry.payload {
            Some(payload) => {
                let block = BLOCK_SIZE as usize;
                Source::Memory(payload.slice(blocks.start * block..blocks.end * block))
            }
            None if let Some(placed) = self.placed(span) => Source::Placed(placed),
            None => {
                let at = entry.place.and_then(|place| self.log.locate(place));
                let at = at.expect("an entry without its payload is in the WAL");
                let stamper = self.image.stamper.clone();
                Source::Wal { at, skip, stamps: entry.stamps[blocks].into(), stamper }
            }
        };
        Piece { range, source }
    }

    /// Where the blocks of a span were placed, if they were.
    pub(super) fn placed(&self, span: Span) -> Option<Placed> {
        let (skip, entry) = (span.skip?, self.entries.get(span.lsn)?);
        let Fate::Placed(homes) = &entry.fate else { return None };
        let stamps = entry.stamps[skip as usize..(skip + span.len) as usize].into();
        Some(Placed {
            lsn: span.lsn,
            homes: Arc::clone(homes),
            skip,
            stamps,
            image: Arc::clone(&self.image),
            done: self.rewriting.done(),
        })
    }

    pub(super) fn pieces(&self, spans: impl Iterator<Item = (Range<u64>, Span)>) -> Vec<Piece> {
        spans.map(|(range, span)| self.piece(range, Some(span))).collect()
    }

    /// The last committed LSN of each region, from region 0; 0 where none wrote. Regions beyond the
    /// volume's end are in it: a replica that was away when the volume shrank has blocks there, and
    /// needs to be told that they are zeros when it grows again.
    pub fn regions(&self) -> Vec<Lsn> {
        let (mut table, blocks) = self.all_regions_at(self.committed());
        let regions = blocks.div_ceil(REGION_BLOCKS) as usize;
        if table.len() < regions || on(Bug::RegionsEndWithVolume) {
            table.resize(regions, Lsn(0));
        }
        table
    }

    /// The last LSN up to `upto` of each region that the volume has as of it.
    pub(super) fn regions_at(&self, upto: Lsn) -> Vec<Lsn> {
        let (mut table, blocks) = self.all_regions_at(upto);
        table.resize(blocks.div_ceil(REGION_BLOCKS) as usize, Lsn(0));
        table
    }

    /// The same of all regions that were ever written, and the volume's size in blocks.
    fn all_regions_at(&self, upto: Lsn) -> (Vec<Lsn>, u64) {
        let mut table = self.regions.clone();
        let mut blocks = self.state.blocks;
        for entry in self.entries.from(self.checkpoint.next()) {
            let header = &entry.header;
            if header.lsn > upto {
                break;
            }
            if let Some((range, _)) = effect(header, blocks) {
                let regions = regions_of(&range);
                if table.len() < regions.end as usize {
                    table.resize(regions.end as usize, Lsn(0));
                }
                for region in regions {
                    table[region as usize] = table[region as usize].max(header.lsn);
                }
            }
            if let EntryKind::Resize { blocks: new } = header.kind {
                blocks = new;
            }
        }
        (table, blocks)
    }

    /// The last LSN of each region that the extents hold, from region 0; 0 where none wrote.
    pub(super) fn checkpointed_regions(&self) -> &[Lsn] {
        &self.regions
    }

    /// The regions that a base lane with this mark sends, ascending: for a rebuild those of the volume
    /// whose committed blocks may be anything but zeros; for a delta those that were written since
    /// `mark.from`, to zeros or beyond the volume's end as well.
    pub fn base_regions(&self, mark: &Incomplete) -> Vec<u64> {
        let table = match mark.from {
            Lsn(0) => self.regions_at(self.committed()),
            _ => self.regions(),
        };
        let held = if on(Bug::DeltaOfBase) { mark.base } else { mark.from };
        (0..).zip(table).filter(|(_, lsn)| *lsn > held).map(|(region, _)| region).collect()
    }

    /// Writes and syncs the superblock with `kept`. Blocks.
    pub fn persist(&mut self, kept: &Kept) -> Result<(), StoreError> {
        self.check()?;
        self.superblock.kept = kept.clone();
        self.write_superblock()
    }

    /// Records in the superblock how far the log is durable. Blocks.
    ///
    /// The records themselves tell that of all but the last batch, so without this the next
    /// opening after a crash takes these for a torn write if they are damaged, and a log whose only
    /// segment is gone for one that was never written.
    pub fn record_durable(&mut self) -> Result<(), StoreError> {
        self.check()?;
        if self.blank || self.superblock.durable >= self.durable {
            return Ok(());
        }
        self.write_superblock()
    }

    /// Ends the log at `end`: what lies behind it is overwritten and synced, then the superblock
    /// written with `kept`. Blocks.
    ///
    /// The superblock is written before as well, with the cut as its intent: a crash in between
    /// leaves records that look like damage, and the next opening finishes the cut instead.
    ///
    /// # Panics
    /// If a batch or a checkpoint is out, or `end` is below the committed LSN.
    pub fn cut(&mut self, end: Lsn, kept: &Kept) -> Result<(), StoreError> {
        self.check()?;
        assert!(!self.batching && !self.checkpointing, "a cut waits for what is out");
        assert!(end >= self.committed(), "a cut to {end} below committed {}", self.committed());
        assert!(end >= self.checkpoint, "a cut to {end} below checkpoint {}", self.checkpoint);
        let written = self.regions.iter().max().copied().unwrap_or(Lsn(0));
        assert!(
            end >= written || self.written.is_some(),
            "a cut to {end}, but the extents hold {written}"
        );
        self.rewriting.cut();
        if end < self.written() {
            self.superblock.cut = (!on(Bug::CutNotMarked)).then_some(end);
            let table = &self.superblock.kept.table;
            let mut left = table.up_to(end);
            if left.pairs().len() > MAX_EPOCHS {
                // The newest one has no entry any more, and is not needed; the others have.
                left = table.up_to(end.prev());
            }
            self.superblock.kept.table = left;
            self.durable = self.durable.min(end);
            self.write_superblock()?;
            self.log.truncate(end.0).map_err(|e| self.fail(e.into()))?;
            self.durable = end;
        }
        self.told_committed = self.told_committed.min(end);
        self.entries.truncate(end);
        self.references.cut(end);
        self.reindex();
        self.superblock.cut = None;
        self.persist(kept)
    }

    /// Builds the map anew from the entries behind the checkpoint.
    pub(super) fn reindex(&mut self) {
        self.map.clear();
        self.resident = 0;
        self.resident_entries = 0;
        self.blocks = self.state.blocks;
        let headers: Vec<EntryHeader> =
            self.entries.from(self.checkpoint.next()).map(|e| e.header).collect();
        for header in &headers {
            self.index(header);
        }
    }

    /// Has the checkpoint go on until it has reached `upto`, as far as that is committed, whether its
    /// steps are worth their syncs or not. If it has, returns the checkpoint and the oldest LSN that the
    /// WAL retains.
    pub fn want_checkpoint(&mut self, upto: Lsn) -> Option<(Lsn, Lsn)> {
        self.wanted = self.wanted.max(upto);
        (self.checkpoint >= upto).then(|| (self.checkpoint, self.retained()))
    }

    /// How many bytes the next step of the checkpoint may take, if one is worth its syncs now or is
    /// `urgent`; 0 for file work alone. None is while somebody verifies, unless it is urgent.
    ///
    /// It is urgent too if the table of epochs grows: of those that begin above the checkpoint none can be
    /// dropped, and a superblock that has no room for them can't be written. [A volume that logged little
    /// went through 240 epochs, and none of its replicas could be opened any more.]
    pub fn checkpoint_budget(&self, urgent: bool) -> Option<u64> {
        let urgent = urgent
            || self.checkpoint < self.wanted.min(self.committed())
            || self.epochs_to_keep() > EpochTable::CAPACITY;
        if !urgent && self.is_verifying() {
            return None;
        }
        let due = self.resident_bytes() >= self.options.checkpoint_bytes;
        if !urgent && !due && !self.wants_housekeeping() {
            return None;
        }
        Some(if urgent || due { self.options.checkpoint_bytes } else { 0 })
    }

    /// How many epochs the superblock must name, as far as they are more than a table keeps anyway.
    fn epochs_to_keep(&self) -> usize {
        let table = &self.superblock.kept.table;
        if table.pairs().len() <= EpochTable::CAPACITY {
            return 0;
        }
        let mut table = table.clone();
        table.prune(self.checkpoint);
        table.pairs().len()
    }

    /// Ends a run in order: the superblock says so, and how far the log is durable, so the next
    /// opening copies nothing. What was appended and not batched is gone.
    pub fn close_clean(mut self) -> Result<(), StoreError> {
        self.check()?;
        assert!(!self.batching && !self.checkpointing, "closing waits for what is out");
        if let Some(sync) = self.take_sync() {
            self.sync_done(sync.run())?;
        }
        self.superblock.clean = true;
        self.write_superblock()?;
        self.superblock_file.sync().map_err(StoreError::from)
    }

    pub(super) fn write_superblock(&mut self) -> Result<(), StoreError> {
        self.superblock.durable = self.durable;
        self.superblock.committed = self.committed();
        self.superblock.proven = self.image.proven();
        let mut block = self.superblock.clone();
        block.kept.table.prune(self.checkpoint);
        let table = &block.kept.table;
        let epochs = table.pairs().len();
        if epochs > MAX_EPOCHS && table.last().is_some_and(|(_, first)| first <= self.durable) {
            // The newest ones have entries, which an opening finds. [A replica that was away for hundreds
            // of epochs was sent their entries, and its store failed.]
            block.kept.table = table.oldest(MAX_EPOCHS);
        } else if epochs > MAX_EPOCHS {
            let cause = format!("{epochs} epochs above the checkpoint; {MAX_EPOCHS} fit");
            return Err(self.fail(StoreError::Failed { cause }));
        }
        let record = self.image.stamper.sign(Label::Superblock, block.encode());
        self.superblock_file.write(&record).map_err(|e| self.fail(e.into()))?;
        // What was promised must outlive the loss of either slot. How far the log is durable, committed
        // and checkpointed may go back by a record: what follows from it is found in the log, or missed. So
        // must a cut, and its end: an old intent would cut what was written since. And the table of regions, of which the
        // next step overwrites what the superblock before this one proved.
        let promise = Some((block.kept, block.cut, block.proven));
        if self.promised != promise {
            self.superblock_file.sync().map_err(|e| self.fail(e.into()))?;
            self.promised = promise;
        }
        Ok(())
    }

    pub(super) fn check(&self) -> Result<(), StoreError> {
        match &self.failed {
            Some(cause) => Err(StoreError::Failed { cause: cause.clone() }),
            None => Ok(()),
        }
    }

    /// Remembers that the store can't go on.
    pub(super) fn fail(&mut self, error: StoreError) -> StoreError {
        if self.failed.is_none() {
            self.failed = Some(error.to_string());
        }
        error
    }
}
