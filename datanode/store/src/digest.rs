//! Digests of the committed image, for comparison across replicas.

use std::ops::Range;
use std::sync::Arc;

use sbk_engine::types::{BLOCK_SIZE, Lba, Lsn, REGION_BLOCKS};
use sbk_wal::crc32c;

use super::core::Store;
use super::error::ReadError;
use super::image::{Image, bytes};
use super::read::{Piece, ReadPlan, Rewriting, Source};

/// The digest of one region as of one committed LSN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// Which region.
    pub region: u64,
    /// The last LSN that wrote it, 0 if none did.
    pub lsn: Lsn,
    /// CRC-32C over its blocks, zeros included.
    pub digest: u32,
    /// As of which committed LSN.
    pub committed: Lsn,
    /// How many blocks it covers: fewer than a region has at the volume's end, as the replica has it.
    pub blocks: u64,
    /// Blocks that don't match their checksum, ascending; they count as zeros in the digest.
    pub damaged: Vec<Lba>,
}

/// Digests region by region. While it lives, only a checkpoint that is urgent moves the image on.
#[derive(Debug)]
pub struct DigestPlan {
    regions: Range<u64>,
    blocks: u64,
    committed: Lsn,
    table: Vec<Lsn>,
    /// The WAL-resident part of the committed image, by block.
    pieces: Arc<Vec<Piece>>,
    image: Arc<Image>,
    rewriting: Arc<Rewriting>,
    _holds_checkpoints: Arc<()>,
}

impl Store {
    /// Digests of `count` regions from `first` on (0: to the end of the volume) of the image as of
    /// the committed LSN.
    pub fn plan_digest(&self, first: u64, count: u64) -> DigestPlan {
        let committed = self.committed();
        let (map, blocks) = self.map_at(committed, &(0..u64::MAX));
        let all = blocks.div_ceil(REGION_BLOCKS);
        let end = if count == 0 { all } else { first.saturating_add(count).min(all) };
        DigestPlan {
            regions: first.min(end)..end,
            blocks,
            committed,
            table: self.regions_at(committed),
            pieces: Arc::new(self.pieces(map.iter())),
            image: Arc::clone(&self.image),
            rewriting: Arc::clone(&self.rewriting),
            _holds_checkpoints: Arc::clone(&self.verifying),
        }
    }

    /// Whether a digest is under way that a checkpoint should not overtake.
    pub fn is_verifying(&self) -> bool {
        Arc::strong_count(&self.verifying) > 1
    }
}

impl Drop for Store {
    /// The next opening writes to the same extents.
    fn drop(&mut self) {
        self.rewriting.leave();
    }
}

impl DigestPlan {
    /// The next region's digest; `None` at the end. `Some(Ok(None))` says that a checkpoint moved
    /// the image on in the meantime, or that the store wiped it or has ended: ask for a new plan from
    /// that region on, of the store that is open then. Blocks.
    pub fn next_region(&mut self) -> Option<Result<Option<Digest>, ReadError>> {
        let region = self.regions.next()?;
        let start = region * REGION_BLOCKS;
        let range = start..(start + REGION_BLOCKS).min(self.blocks);
        let lsn = self.table.get(region as usize).copied().unwrap_or(Lsn(0));
        Some(self.digest(region, range, lsn))
    }

    fn digest(
        &self,
        region: u64,
        range: Range<u64>,
        lsn: Lsn,
    ) -> Result<Option<Digest>, ReadError> {
        let mut data = vec![0; bytes(range.end - range.start) as usize];
        let mut damaged = Vec::new();
        // A region that nothing wrote is zeros.
        if lsn > Lsn(0) {
            let plan = ReadPlan {
                range: range.clone(),
                pieces: self.pieces_of(&range),
                image: Arc::clone(&self.image),
                rewriting: Arc::clone(&self.rewriting),
            };
            for bad in plan.fill(&mut data)? {
                damaged.push(Lba(bad.block));
                let at = bytes(bad.block - range.start) as usize;
                data[at..at + BLOCK_SIZE as usize].fill(0);
            }
        }
        if self.rewriting.passed(self.committed) {
            return Ok(None);
        }
        let (committed, digest) = (self.committed, crc32c(&data));
        let blocks = range.end - range.start;
        Ok(Some(Digest { region, lsn, digest, committed, blocks, damaged }))
    }

    /// `range` in pieces: those in the WAL, the rest in the extents.
    fn pieces_of(&self, range: &Range<u64>) -> Vec<Piece> {
        let first = self.pieces.partition_point(|p| p.range.end <= range.start);
        let mut out = Vec::new();
        let mut at = range.start;
        for piece in &self.pieces[first..] {
            if piece.range.start >= range.end {
                break;
            }
            if piece.range.start > at {
                out.push(Piece { range: at..piece.range.start, source: Source::Extents });
            }
            let part = piece.range.start.max(range.start)..piece.range.end.min(range.end);
            at = part.end;
            out.push(piece.part(part));
        }
        if at < range.end {
            out.push(Piece { range: at..range.end, source: Source::Extents });
        }
        out
    }
}
