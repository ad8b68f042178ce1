//! Moving committed entries from the WAL to the extents.
//!
//! The order is: the WAL is durable up to X before a checkpoint to X is planned; the plan writes
//! and syncs the region LSNs, then extents and checksums, then the log state; the owner then
//! writes the superblock with X; segments below X are released only after that, by the file work
//! of a later plan. A crash anywhere in between leaves blocks half-written, all of which the WAL
//! still holds and overrides.

use std::collections::BTreeSet;
use std::sync::Arc;

use sbk_engine::bugs::{Bug, on};
use sbk_engine::replication::log::{EntryKind, LogState};
use sbk_engine::types::{BLOCK_SIZE, Lsn};
use sbk_wal::{Housekeeping, Housekept, Slots};

use super::core::{Store, resident_cost};
use super::error::{ReadError, StoreError};
use super::image::{Image, REGIONS_PER_SECTOR, encode_sector};
use super::map::BlockMap;
use super::open::state_record;
use super::read::{Piece, Source};
use super::superblock::Identity;
use super::{effect, regions_of};

/// Most blocks that are written in one go.
const RUN_BLOCKS: u64 = 256;

/// A step of the checkpoint, or file work that is due.
#[derive(Debug)]
pub struct CheckpointPlan {
    advance: Option<Advance>,
    housekeeping: Option<Housekeeping>,
}

#[derive(Debug)]
struct Advance {
    identity: Identity,
    upto: Lsn,
    state: LogState,
    state_file: Slots,
    regions: Vec<Lsn>,
    sectors: Vec<(u64, Vec<u8>)>,
    pieces: Arc<Vec<Piece>>,
    image: Arc<Image>,
}

/// What came of a [`CheckpointPlan`].
#[derive(Debug)]
pub struct CheckpointDone {
    advance: Option<(Advance, Result<(), StoreError>)>,
    housekept: Option<Housekept>,
}

impl CheckpointPlan {
    /// Does it. Blocks.
    pub fn run(self) -> CheckpointDone {
        let advance = self.advance.map(|mut advance| {
            let result = advance.write();
            (advance, result)
        });
        CheckpointDone { advance, housekept: self.housekeeping.map(Housekeeping::run) }
    }
}

impl Advance {
    fn write(&mut self) -> Result<(), StoreError> {
        if !on(Bug::RegionsLast) {
            self.image.write_regions(&self.sectors)?;
        }
        let mut rest = &self.pieces[..];
        while let Some(piece) = rest.first() {
            if let Source::Zeros = piece.source {
                self.image.zero(piece.range.clone())?;
                rest = &rest[1..];
                continue;
            }
            // Neighbours go in one write.
            let mut run = 1;
            while let Some(next) = rest.get(run)
                && !matches!(next.source, Source::Zeros)
                && next.range.start == rest[run - 1].range.end
                && next.range.end - piece.range.start <= RUN_BLOCKS
            {
                run += 1;
            }
            self.write_run(&rest[..run])?;
            rest = &rest[run..];
        }
        if on(Bug::RegionsLast) {
            self.image.write_regions(&self.sectors)?;
        }
        if !on(Bug::ExtentsNotSynced) {
            self.image.sync()?;
        }
        let record = state_record(&self.identity, &self.state, self.upto);
        self.state_file.write(&record)?;
        Ok(())
    }

    fn write_run(&self, run: &[Piece]) -> Result<(), StoreError> {
        let mut data = Vec::with_capacity(run.len());
        let mut crcs = Vec::new();
        for piece in run {
            let loaded = piece.load().map_err(|error| match error {
                ReadError::Log(error) => StoreError::Log(error),
                ReadError::Io { path, source } => StoreError::Io { doing: "read", path, source },
                ReadError::Damaged { ref path, .. } => {
                    StoreError::Damaged { path: path.clone(), what: error.to_string() }
                }
            })?;
            for block in loaded.chunks_exact(BLOCK_SIZE as usize) {
                crcs.push(sbk_wal::crc32c(block));
            }
            data.push(loaded);
        }
        let slices: Vec<&[u8]> = data.iter().map(|d| &d[..]).collect();
        self.image.write(run[0].range.start, &slices, crcs)
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
        let advance = if budget > 0 { self.plan_advance(budget) } else { None };
        let housekeeping = self.log.housekeeping();
        if advance.is_none() && housekeeping.is_none() {
            return None;
        }
        self.checkpointing = true;
        Some(CheckpointPlan { advance, housekeeping })
    }

    /// Whether files wait to be made, renamed or removed.
    pub fn wants_housekeeping(&self) -> bool {
        self.failed.is_none() && !self.blank && self.log.wants_housekeeping()
    }

    fn plan_advance(&mut self, budget: u64) -> Option<Advance> {
        let limit = if on(Bug::CheckpointUncommitted) { self.durable } else { self.committed() };
        let mut state = self.state.clone();
        let mut map = BlockMap::default();
        let mut regions = self.regions.clone();
        let mut touched = BTreeSet::new();
        let mut upto = self.checkpoint;
        let mut cost = 0;
        for entry in self.entries.from(self.checkpoint.next()) {
            let header = &entry.header;
            if header.lsn > limit || (cost > 0 && cost + header.kind.payload_len() > budget) {
                break;
            }
            cost += header.kind.payload_len() + 1;
            if let Some((range, data)) = effect(header, state.blocks) {
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
            state.apply(header);
            upto = header.lsn;
        }
        if upto == self.checkpoint {
            return None;
        }
        if let Some(written) = &mut self.written {
            map.iter().for_each(|(range, _)| written.add(&range));
        }
        let pieces = Arc::new(self.pieces(map.iter()));
        self.rewriting.begin(Arc::clone(&pieces), upto);
        let sectors = touched.into_iter().map(|n| (n, encode_sector(n, &regions))).collect();
        let state_file = self.state_file.take().expect("one checkpoint at a time");
        let image = Arc::clone(&self.image);
        let identity = self.superblock.identity;
        Some(Advance { identity, upto, state, state_file, regions, sectors, pieces, image })
    }

    /// Takes a step's outcome back and writes the superblock. Returns the checkpoint and the
    /// oldest LSN that the WAL retains.
    pub fn checkpoint_done(&mut self, done: CheckpointDone) -> Result<(Lsn, Lsn), StoreError> {
        assert!(self.checkpointing, "a checkpoint was planned");
        self.checkpointing = false;
        self.rewriting.end();
        self.check()?;
        if let Some(housekept) = done.housekept {
            // Nothing depends on it: a spare that is missing is made when it is needed, and the
            // write that needs it says if that fails too.
            if let Err(error) = self.log.housekeeping_done(housekept) {
                let replica = self.superblock.identity.replica;
                tracing::warn!(%replica, %error, "WAL segments could not be recycled");
            }
        }
        if let Some((advance, result)) = done.advance {
            self.state_file = Some(advance.state_file);
            result.map_err(|e| self.fail(e))?;
            self.advance_to(advance.upto, advance.state, advance.regions)?;
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
        self.release_segments();
        Ok(())
    }
}
