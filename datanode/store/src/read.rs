//! Reading blocks, without a lock held across I/O.
//!
//! A plan is made by the store's owner and says for each run of blocks where its newest logged
//! version was at that moment. It runs anywhere. Its WAL segments stay alive with it. Extents may
//! change under it in one way only: a checkpoint writes newer, committed versions there. A read
//! that meets a block half-written by a checkpoint takes that checkpoint's version from its source.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use sbk_engine::replication::log::BlockRange;
use sbk_engine::types::{BLOCK_SIZE, Lba, Lsn};
use sbk_wal::{Located, crc32c};

use super::core::Store;
use super::error::{ReadError, RottenBlock};
use super::image::{BadBlock, Image, bytes};
use crate::entry::CANONICAL_HEADER;

/// How often a block that does not match its checksum is looked up again.
const ATTEMPTS: usize = 8;

/// Where a run of blocks is.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// In memory: exactly the run's bytes.
    Memory(Bytes),
    /// In the WAL, from block `skip` of the entry at `at` on.
    Wal { at: Located, skip: u64, crcs: Box<[u32]> },
    /// Nowhere: zeros.
    Zeros,
    /// In the extents.
    Extents,
}

/// A run of blocks and where it is.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) range: Range<u64>,
    pub(super) source: Source,
}

impl Piece {
    /// Reads the blocks `range` of this piece, which is not in the extents.
    fn fetch(&self, range: &Range<u64>, out: &mut [u8]) -> Result<(), ReadError> {
        let from = range.start - self.range.start;
        match &self.source {
            Source::Memory(data) => {
                let start = bytes(from) as usize;
                out.copy_from_slice(&data[start..start + out.len()]);
            }
            Source::Wal { at, skip, crcs } => {
                let offset = at.body + CANONICAL_HEADER as u64 + bytes(skip + from);
                at.segment.read(out, offset)?;
                for (i, data) in out.chunks_exact(BLOCK_SIZE as usize).enumerate() {
                    let (found, expected) = (crc32c(data), crcs[from as usize + i]);
                    if found != expected {
                        return Err(ReadError::Damaged {
                            lba: Lba(range.start + i as u64),
                            path: at.segment.describe(),
                            offset: offset + bytes(i as u64),
                            found,
                            expected,
                        });
                    }
                }
            }
            Source::Zeros => out.fill(0),
            Source::Extents => unreachable!("extents are read through the image"),
        }
        Ok(())
    }

    /// The blocks `range` of the piece.
    pub(super) fn part(&self, range: Range<u64>) -> Self {
        let from = range.start - self.range.start;
        let to = range.end - self.range.start;
        let source = match &self.source {
            Source::Memory(data) => {
                Source::Memory(data.slice(bytes(from) as usize..bytes(to) as usize))
            }
            Source::Wal { at, skip, crcs } => Source::Wal {
                at: at.clone(),
                skip: skip + from,
                crcs: crcs[from as usize..to as usize].into(),
            },
            Source::Zeros => Source::Zeros,
            Source::Extents => Source::Extents,
        };
        Self { range, source }
    }

    /// The piece's bytes.
    pub(super) fn load(&self) -> Result<Bytes, ReadError> {
        if let Source::Memory(data) = &self.source {
            return Ok(data.clone());
        }
        let mut out = BytesMut::zeroed(bytes(self.range.end - self.range.start) as usize);
        self.fetch(&self.range, &mut out)?;
        Ok(out.freeze())
    }
}

/// The checkpoint that may be writing to the extents right now.
#[derive(Debug, Default)]
pub(super) struct Rewriting {
    pieces: Mutex<Option<Arc<Vec<Piece>>>>,
    /// The highest LSN that a checkpoint was ever planned up to.
    upto: AtomicU64,
    /// The store has ended, or let go of the image: what is in it from here on is another's.
    left: AtomicBool,
    /// Cuts of the log so far.
    cuts: AtomicU64,
}

impl Rewriting {
    /// A checkpoint up to `upto` may write these from now on.
    pub(super) fn begin(&self, pieces: Arc<Vec<Piece>>, upto: Lsn) {
        self.upto.fetch_max(upto.0, Ordering::SeqCst);
        *self.pieces.lock().unwrap_or_else(PoisonError::into_inner) = Some(pieces);
    }

    /// It wrote them all.
    pub(super) fn end(&self) {
        *self.pieces.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The highest LSN that a checkpoint of this opening was begun up to.
    pub(super) fn upto(&self) -> Lsn {
        Lsn(self.upto.load(Ordering::SeqCst))
    }

    /// What is read from now on may be of another image, or of another opening of this one. Comes before
    /// anything of either is written.
    pub(super) fn leave(&self) {
        self.left.store(true, Ordering::SeqCst);
    }

    /// Whether the extents may hold anything but what was committed up to `lsn`: a checkpoint beyond it
    /// was begun, or the store has left them.
    pub(super) fn passed(&self, lsn: Lsn) -> bool {
        self.left.load(Ordering::SeqCst) || self.upto() > lsn
    }

    /// What is logged from here on may be another log than what was planned to be read.
    pub(super) fn cut(&self) {
        self.cuts.fetch_add(1, Ordering::SeqCst);
    }

    fn current(&self) -> Option<Arc<Vec<Piece>>> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A read of blocks. See the module's documentation.
#[derive(Debug)]
pub struct ReadPlan {
    pub(super) range: Range<u64>,
    pub(super) pieces: Vec<Piece>,
    pub(super) image: Arc<Image>,
    pub(super) rewriting: Arc<Rewriting>,
}

/// A read of blocks for another replica, which must know as of which LSN they are.
#[derive(Debug)]
pub struct SettledReadPlan {
    plan: ReadPlan,
    end: Lsn,
    cuts: u64,
}

/// Blocks, each by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SettledBlocks {
    /// Those that match their checksums.
    pub held: Vec<(Lba, Bytes)>,
    /// Those that don't.
    pub rotten: Vec<RottenBlock>,
}

impl Store {
    /// Reads blocks as of the log's end, each by itself. Blocks behind the volume's end are zeros.
    pub fn plan_read_settled(&self, range: BlockRange) -> SettledReadPlan {
        let cuts = self.rewriting.cuts.load(Ordering::SeqCst);
        SettledReadPlan { plan: self.plan_read(range), end: self.end(), cuts }
    }
}

impl SettledReadPlan {
    /// What the blocks hold as of the log's end when the plan was made; `None` if a checkpoint beyond it was
    /// begun meanwhile, or the log was cut, or the image wiped: what was read may then be of another LSN.
    /// Blocks the thread.
    pub fn run(self) -> Result<Option<SettledBlocks>, ReadError> {
        let Self { plan, end, cuts } = self;
        let mut data = BytesMut::zeroed(bytes(plan.range.end - plan.range.start) as usize);
        let bad = plan.fill(&mut data)?;
        if plan.rewriting.passed(end) || plan.rewriting.cuts.load(Ordering::SeqCst) != cuts {
            return Ok(None);
        }
        let mut data = data.freeze();
        let mut blocks = SettledBlocks::default();
        for block in plan.range.clone() {
            let content = data.split_to(BLOCK_SIZE as usize);
            match bad.iter().find(|bad| bad.block == block) {
                Some(bad) => blocks.rotten.push(bad.rotten()),
                None => blocks.held.push((Lba(block), content)),
            }
        }
        Ok(Some(blocks))
    }
}

impl ReadPlan {
    /// The blocks' bytes. Blocks the thread.
    pub fn run(self) -> Result<Bytes, ReadError> {
        if let [Piece { source: Source::Memory(data), .. }] = &self.pieces[..] {
            return Ok(data.clone());
        }
        let mut out = BytesMut::zeroed(bytes(self.range.end - self.range.start) as usize);
        let bad = self.fill(&mut out)?;
        if bad.is_empty() {
            return Ok(out.freeze());
        }
        let blocks = bad.iter().map(BadBlock::rotten).collect();
        Err(ReadError::Rotten { path: self.image.path(), blocks })
    }

    /// Reads everything into `out`; returns the blocks of the extents that stay damaged.
    pub(super) fn fill(&self, out: &mut [u8]) -> Result<Vec<BadBlock>, ReadError> {
        let mut damaged = Vec::new();
        for piece in &self.pieces {
            let start = bytes(piece.range.start - self.range.start) as usize;
            let end = bytes(piece.range.end - self.range.start) as usize;
            let out = &mut out[start..end];
            if !matches!(piece.source, Source::Extents) {
                piece.fetch(&piece.range, out)?;
                continue;
            }
            for bad in self.image.read(piece.range.clone(), out)? {
                let at = bytes(bad.block - piece.range.start) as usize;
                let block = &mut out[at..at + BLOCK_SIZE as usize];
                damaged.extend(self.again(bad, block)?);
            }
        }
        Ok(damaged)
    }

    /// Looks a block up again that did not match its checksum.
    fn again(&self, mut bad: BadBlock, out: &mut [u8]) -> Result<Option<BadBlock>, ReadError> {
        let range = bad.block..bad.block + 1;
        for _ in 0..ATTEMPTS {
            if let Some(pieces) = self.rewriting.current() {
                let after = pieces.partition_point(|p| p.range.end <= bad.block);
                if let Some(piece) = pieces.get(after).filter(|p| p.range.contains(&bad.block)) {
                    piece.fetch(&range, out)?;
                    return Ok(None);
                }
            }
            match self.image.read(range.clone(), out)?.first() {
                None => return Ok(None),
                Some(still) => bad = *still,
            }
        }
        Ok(Some(bad))
    }
}
