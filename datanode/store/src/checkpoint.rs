//! Moving committed entries from the WAL to the extents.
//!
//! The order is: the WAL is durable up to X before a checkpoint to X is planned; the plan writes
//! and syncs the region LSNs, then blocks and their stamps, then the log state; the owner then
//! writes the superblock with X; segments below X are released only after that, by the file work
//! of a later plan. A crash anywhere in between leaves blocks half-written, all of which the WAL
//! still holds and overrides. Of an encrypted replica the table of regions proves the stamps as well
//! ([`proofs`](super::proofs)).
//!
//! A payload that was placed is not written again: the stamps say that the homes in which it lies are
//! current from now on. What else is written goes to the current home of its block, or to the other one if
//! an entry that the log still holds refers to that. No step touches a block in which a payload is being
//! placed, and none is placed where a step is.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use sbk_engine::bugs::{Bug, on};
use sbk_engine::replication::log::{EntryKind, LogState};
use sbk_engine::types::{BLOCK_SIZE, Lsn, REGION_BLOCKS};
use sbk_wal::{Housekeeping, Housekept, Slots};

use super::core::{Store, resident_cost};
use super::entries::Fate;
use super::error::{ReadError, StoreError};
use super::homes::Held;
use super::image::{Image, REGIONS_PER_SECTOR, encode_sector};
use super::map::BlockMap;
use super::open::state_record;
use super::proofs::{Change, Values};
use super::read::{Piece, Source};
use super::stamper::Label;
use super::superblock::Identity;
use super::{effect, regions_of};

/// Most blocks that are written in one go.
const RUN_BLOCKS: u64 = 256;

/// A step of the checkpoint, or file work that is due.
#[derive(Debug)]
pub struct CheckpointPlan {
    advance: Option<Advance>,
    sweep: Option<Sweep>,
    housekeeping: Option<Housekeeping>,
}

/// Homes of blocks that the log let go of.
#[derive(Debug)]
struct Sweep {
    ranges: Vec<Range<u64>>,
    held: Held,
    image: Arc<Image>,
}

/// What a step does to the table of regions.
#[derive(Debug)]
enum Table {
    /// These sectors are written.
    Plain(Vec<(u64, Vec<u8>)>),
    /// That of an encrypted replica: it follows from the stamps.
    Proven(Change),
}

#[derive(Debug)]
struct Advance {
    identity: Identity,
    upto: Lsn,
    state: LogState,
    state_file: Slots,
    regions: Vec<Lsn>,
    table: Table,
    pieces: Arc<Vec<Piece>>,
    /// The stamp of each block of the pieces that are to be copied, as it was when the entry came.
    stamps: Vec<u64>,
    /// What of these blocks must stay where it is.
    held: Held,
    /// The last entry up to there that refers to a payload.
    last_reference: Lsn,
    image: Arc<Image>,
}

/// What came of a [`CheckpointPlan`].
#[derive(Debug)]
pub struct CheckpointDone {
    advance: Option<(Advance, Result<(), StoreError>)>,
    swept: Option<Result<(), StoreError>>,
    housekept: Option<Housekept>,
}

impl CheckpointPlan {
    /// Does it. Blocks.
    pub fn run(self) -> CheckpointDone {
        let advance = self.advance.map(|mut advance| {
            let result = advance.write();
            (advance, result)
        });
        let swept = self.sweep.map(|sweep| sweep.run());
        CheckpointDone { advance, swept, housekept: self.housekeeping.map(Housekeeping::run) }
    }
}

impl Sweep {
    fn run(self) -> Result<(), StoreError> {
        self.ranges.iter().try_for_each(|range| self.image.sweep(range, &self.held))
    }
}

/// Whether a piece is to be copied.
fn is_copied(piece: &Piece) -> bool {
    matches!(piece.source, Source::Memory(_) | Source::Wal { .. })
}

impl Advance {
    fn write(&mut self) -> Result<(), StoreError> {
        self.prove()?;
        if !on(Bug::RegionsLast) {
            self.write_table()?;
        }
        if let Table::Proven(change) = &self.table {
            self.image.restamp(&change.stamps)?;
        }
        let mut rest = &self.pieces[..];
        let mut stamps = &self.stamps[..];
        while let Some(piece) = rest.first() {
            if !is_copied(piece) {
                match &piece.source {
                    Source::Placed(placed) => self.image.adopt(&piece.range, placed, &self.held)?,
                    _ => self.image.zero(&piece.range, &self.held)?,
                }
                rest = &rest[1..];
                continue;
            }
            // Neighbours go in one write.
            let mut run = 1;
            while let Some(next) = rest.get(run)
                && is_copied(next)
                && next.range.start == rest[run - 1].range.end
                && next.range.end - piece.range.start <= RUN_BLOCKS
            {
                run += 1;
            }
            stamps = self.write_run(&rest[..run], stamps)?;
            rest = &rest[run..];
        }
        if on(Bug::RegionsLast) {
            self.write_table()?;
        }
        if !on(Bug::ExtentsNotSynced) {
            self.image.sync()?;
        }
        let proven = match &self.table {
            Table::Plain(_) => None,
            Table::Proven(change) => Some(self.image.proven_with(change)),
        };
        let Self { identity, state, upto, last_reference, .. } = &*self;
        let record = state_record(identity, state, *upto, *last_reference, proven);
        let record = self.image.stamper.sign(Label::State, record);
        self.state_file.write(&record)?;
        // Also without one of its slots it must not be behind the superblock's checkpoint.
        self.state_file.sync()?;
        Ok(())
    }

    fn write_table(&self) -> Result<(), StoreError> {
        match &self.table {
            Table::Plain(sectors) => self.image.write_regions(sectors),
            Table::Proven(change) => self.image.write_table(change.writes()),
        }
    }

    /// Finds out what the stamps of an encrypted replica will come to.
    fn prove(&mut self) -> Result<(), StoreError> {
        let Table::Proven(_) = self.table else { return Ok(()) };
        let mut rest = &self.stamps[..];
        let new: Vec<(Range<u64>, Values<'_>)> = (self.pieces.iter())
            .map(|piece| {
                let values = match &piece.source {
                    Source::Placed(placed) => Values::Stamps(&placed.stamps),
                    _ if is_copied(piece) => {
                        let blocks = (piece.range.end - piece.range.start) as usize;
                        let (mine, behind) = rest.split_at(blocks);
                        rest = behind;
                        Values::Stamps(mine)
                    }
                    _ => Values::Zeros,
                };
                (piece.range.clone(), values)
            })
            .collect();
        let change = self.image.plan_change(self.upto, &self.regions, &new)?;
        self.table = Table::Proven(change);
        Ok(())
    }

    /// Writes blocks that lie side by side. Takes their stamps from `stamps`, and returns the rest.
    fn write_run<'a>(&self, run: &[Piece], stamps: &'a [u64]) -> Result<&'a [u64], StoreError> {
        let mut data = Vec::with_capacity(run.len());
        let mut blocks = 0;
        for piece in run {
            let loaded = piece.load().map_err(|error| match error {
                ReadError::Log(error) => StoreError::Log(error),
                ReadError::Io { path, source } => StoreError::Io { doing: "read", path, source },
                ReadError::Damaged { ref path, .. } | ReadError::Rotten { ref path, .. } => {
                    StoreError::Damaged { path: path.clone(), what: error.to_string() }
                }
            })?;
            for (at, block) in loaded.chunks_exact(BLOCK_SIZE as usize).enumerate() {
                let number = piece.range.start + at as u64;
                let found = self.image.stamper.of_block(number, block);
                let expected = stamps[blocks + at];
                if found != expected {
                    // [It got a stamp of its own, and was served as what the client had written.]
                    let cause = format!(
                        "block {number} changed in memory: stamp {found:08x}, expected {expected:08x}"
                    );
                    return Err(StoreError::Failed { cause });
                }
            }
            blocks += loaded.len() / BLOCK_SIZE as usize;
            data.push(loaded);
        }
        let (mine, rest) = stamps.split_at(blocks);
        let slices: Vec<&[u8]> = data.iter().map(|d| &d[..]).collect();
        self.image.write(run[0].range.start, &slices, mine, &self.held)?;
        Ok(rest)
    }
}

impl Store {
    /// The next step of the checkpoint: entries of about `budget` bytes, up to what is committed
    /// and durable, and file work that is due; with a budget of 0 only the latter. `None` if there
    /// is nothing to do or a step is out.
    pub fn plan_checkpoint(&mut self, budget: u64) -> Option<CheckpointPlan> {
        if self.checkpointing || self.failed.is_some() || self.blank {
            return None;
        }
        if self.entries.outgrew_share(self.durable) {
            self.entries.trim(self.durable, self.checkpoint);
        }
        let advance = if budget > 0 { self.plan_advance(budget, Lsn(u64::MAX)) } else { None };
        let housekeeping = self.log.housekeeping();
        // A rebuild writes to the image beside the steps.
        let quiet = advance.is_some() && self.written.is_none();
        // Behind the end of a volume that shrank too: payloads lie there for as long as the log refers to them.
        let most = self.blocks.max(self.regions.len() as u64 * REGION_BLOCKS);
        let sweep = self.references.sweep(quiet.then_some(most)).map(|(ranges, held)| {
            let image = Arc::clone(&self.image);
            Sweep { ranges, held, image }
        });
        let idle = advance.is_none() && housekeeping.is_none() && sweep.is_none();
        if idle && !self.outlived() {
            return None;
        }
        self.checkpointing = true;
        Some(CheckpointPlan { advance, sweep, housekeeping })
    }

    /// Whether files wait to be made, renamed or removed, space in them, or memory to be given back to
    /// other stores.
    pub fn wants_housekeeping(&self) -> bool {
        self.failed.is_none()
            && !self.blank
            && (self.log.wants_housekeeping()
                || self.outlived()
                || self.references.has_loose()
                || self.entries.outgrew_share(self.durable))
    }

    /// Does once more, exactly as it was, the step up to `upto` that was under way when the process ended.
    pub(super) fn redo(&mut self, upto: Lsn) -> Result<(), StoreError> {
        let advance = self.plan_advance(u64::MAX, upto);
        if advance.as_ref().is_none_or(|advance| advance.upto != upto) {
            let cause = format!(
                "the log does not reach {upto}, to which a step of the checkpoint was begun"
            );
            return Err(self.fail(StoreError::Failed { cause }));
        }
        self.checkpointing = true;
        let done = CheckpointPlan { advance, sweep: None, housekeeping: None }.run();
        self.checkpoint_done(done).map(|_| ())
    }

    /// A step of entries of about `budget` bytes, none of them behind `most`.
    fn plan_advance(&mut self, budget: u64, most: Lsn) -> Option<Advance> {
        let limit = if on(Bug::CheckpointUncommitted) { self.durable } else { self.committed() };
        let limit = limit.min(most);
        let mut state = self.state.clone();
        let mut map = BlockMap::default();
        let mut regions = self.regions.clone();
        let mut touched = BTreeSet::new();
        let mut upto = self.checkpoint;
        let mut last_reference = self.last_reference;
        let mut cost = 0;
        for entry in self.entries.from(self.checkpoint.next()) {
            let header = &entry.header;
            if header.lsn > limit || (cost > 0 && cost + header.kind.payload_len() > budget) {
                break;
            }
            cost += header.kind.payload_len() + 1;
            if let Some((range, data)) = effect(header, state.blocks) {
                if self.references.is_placing(&range) {
                    break;
                }
                for region in regions_of(&range) {
                    let at = region as usize;
                    if regions.len() <= at {
                        regions.resize(at + 1, Lsn(0));
                    }
                    regions[at] = regions[at].max(header.lsn);
                    touched.insert(region / REGIONS_PER_SECTOR);
                }
                map.insert(range, header.lsn, data);
            }
            if let Fate::Placed(_) = entry.fate {
                last_reference = header.lsn;
            }
            state.apply(header);
            upto = header.lsn;
        }
        if upto == self.checkpoint {
            return None;
        }
        if let Some(written) = &mut self.written {
            map.iter().for_each(|(range, _)| written.add(&range));
        }
        let stamps = map.iter().filter_map(|(_, span)| {
            let skip = span.skip? as usize;
            let entry = self.entries.get(span.lsn)?;
            let copied = !matches!(entry.fate, Fate::Placed(_));
            copied.then(|| &entry.stamps[skip..skip + span.len as usize])
        });
        let stamps = stamps.flatten().copied().collect();
        let held = self.references.held(map.iter().map(|(range, _)| range));
        let pieces = map.iter().map(|(range, span)| match self.placed(span) {
            // It may be in memory as well.
            Some(placed) => Piece { range, source: Source::Placed(placed) },
            None => self.piece(range, Some(span)),
        });
        let pieces = Arc::new(pieces.collect::<Vec<_>>());
        self.rewriting.begin(Arc::clone(&pieces), upto);
        let table = if self.image.stamper.has_key() {
            Table::Proven(Change::default())
        } else {
            let sectors = touched.into_iter().map(|n| (n, encode_sector(n, &regions)));
            Table::Plain(sectors.collect())
        };
        let state_file = self.state_file.take().expect("one checkpoint at a time");
        let image = Arc::clone(&self.image);
        let identity = self.superblock.identity;
        Some(Advance {
            identity,
            upto,
            state,
            state_file,
            regions,
            table,
            pieces,
            stamps,
            held,
            last_reference,
            image,
        })
    }

    /// Takes a step's outcome back and writes the superblock. Returns the checkpoint and the
    /// oldest LSN that the WAL retains.
    pub fn checkpoint_done(&mut self, done: CheckpointDone) -> Result<(Lsn, Lsn), StoreError> {
        assert!(self.checkpointing, "a checkpoint was planned");
        self.checkpointing = false;
        let complete = done.advance.as_ref().filter(|(_, result)| result.is_ok());
        self.rewriting.end(complete.map(|(advance, _)| advance.upto));
        self.check()?;
        self.references.swept();
        done.swept.unwrap_or(Ok(())).map_err(|e| self.fail(e))?;
        if let Some(housekept) = done.housekept {
            // Nothing depends on it: a spare that is missing is made when it is needed, and the
            // write that needs it says if that fails too. But a name may be lost.
            if let Err(error) = self.log.housekeeping_done(housekept) {
                if self.log.has_failed() {
                    return Err(self.fail(error.into()));
                }
                let replica = self.superblock.identity.replica;
                tracing::warn!(%replica, %error, "WAL segments could not be recycled");
            }
        }
        if let Some((advance, result)) = done.advance {
            self.state_file = Some(advance.state_file);
            result.map_err(|e| self.fail(e))?;
            self.last_reference = advance.last_reference;
            if let Table::Proven(change) = advance.table {
                self.image.changed(change);
            }
            self.advance_to(advance.upto, advance.state, advance.regions)?;
        }
        if self.release() {
            // Also without one of its slots the superblock must not go back to where they are needed.
            self.superblock_file.sync().map_err(|e| self.fail(e.into()))?;
        }
        Ok((self.checkpoint, self.retained()))
    }

    fn advance_to(
        &mut self,
        upto: Lsn,
        state: LogState,
        regions: Vec<Lsn>,
    ) -> Result<(), StoreError> {
        let before = self.checkpoint;
        self.superblock.checkpoint = upto;
        self.checkpoint = upto;
        if !on(Bug::RecycleFirst) {
            self.write_superblock()?;
        }
        let mut blocks = self.state.blocks;
        for entry in self.entries.from(before.next()) {
            let header = &entry.header;
            if header.lsn > upto {
                break;
            }
            self.resident -= resident_cost(header);
            self.resident_entries -= 1;
            if let Some((range, _)) = effect(header, blocks) {
                self.map.remove(&range, |span| span.lsn <= upto);
            }
            if let EntryKind::Resize { blocks: new } = header.kind {
                blocks = new;
            }
        }
        self.state = state;
        // The base lane may have brought region LSNs while the step ran.
        for (at, lsn) in regions.into_iter().enumerate() {
            if self.regions.len() <= at {
                self.regions.resize(at + 1, Lsn(0));
            }
            self.regions[at] = self.regions[at].max(lsn);
        }
        self.entries.trim(self.durable, self.checkpoint);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use sbk_engine::replication::log::{BlockRange, EntryHeader};
    use sbk_engine::types::{
        BootId, Epoch, Incarnation, Lba, LossGeneration, ReplicaId, TailId, VolumeId,
    };
    use sbk_wal::{Memory, Storage};
    use uuid::Uuid;

    use super::*;
    use crate::entry::entry_crc;
    use crate::{CreateSpec, StoreOptions};

    const BLOCKS: u64 = 300;

    fn open(storage: &Arc<dyn Storage>) -> Store {
        let identity = Identity {
            volume: VolumeId(Uuid::from_u128(1)),
            replica: ReplicaId(Uuid::from_u128(2)),
        };
        let options = StoreOptions { wal_segment_bytes: 64 << 10, ..StoreOptions::default() };
        let spec = CreateSpec { identity, blocks: BLOCKS, loss_generation: LossGeneration(0) };
        Store::create(storage, &spec, &options).expect("a replica");
        let tail = TailId { boot: BootId(Uuid::from_u128(1)), count: 0 };
        let incarnation = Incarnation { process: 1, open: 1 };
        Store::open(storage, identity, incarnation, tail, options).expect("a store").0
    }

    /// A block in memory is not what its entry's checksum was made of, by a bit that flipped since.
    #[test]
    fn a_block_that_changed_in_memory_is_not_checkpointed() {
        let storage: Arc<dyn Storage> = Arc::new(Memory::new(1));
        let mut store = open(&storage);
        let all = BlockRange { lba: Lba(0), blocks: BLOCKS as u32 };
        for (lsn, lba) in (1..).zip([5, 6, 9, 5]) {
            let kind = EntryKind::Write { lba: Lba(lba), blocks: 3 };
            let header = EntryHeader { epoch: Epoch(1), lsn: Lsn(lsn), kind, origin: None };
            let payload = Bytes::from(vec![lsn as u8; 3 * BLOCK_SIZE as usize]);
            store.append(header, entry_crc(&header, &payload), payload).expect("appended");
        }
        let batch = store.take_batch().expect("a batch");
        store.batch_done(batch.run()).expect("durable");
        store.set_committed(Lsn(4));
        let content = store.plan_read(all).run().expect("read");
        let mut plan = store.plan_checkpoint(u64::MAX).expect("a step");
        let advance = plan.advance.as_mut().expect("entries");
        assert_eq!(advance.stamps.len(), 7, "blocks 5 to 11");
        advance.stamps[3] ^= 1;
        let error = store.checkpoint_done(plan.run()).expect_err("it is told").to_string();
        assert!(error.contains("block 8 changed in memory"), "{error}");
        assert!(store.failure().is_some());
        // The log has it as it was.
        drop(store);
        let mut store = open(&storage);
        store.set_committed(Lsn(4));
        let plan = store.plan_checkpoint(u64::MAX).expect("a step");
        assert_eq!(store.checkpoint_done(plan.run()).expect("done").0, Lsn(4));
        assert_eq!(store.plan_read(all).run().expect("read"), content);
    }
}
