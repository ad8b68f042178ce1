//! Reading blocks, without a lock held across I/O.
//!
//! A plan is made by the store's owner and says for each run of blocks where its newest logged
//! version was at that moment. It runs anywhere. Its WAL segments stay alive with it. The image may
//! change under it in one way only: a checkpoint writes newer, committed versions there. A read
//! that meets a block half-written by a checkpoint takes that checkpoint's version from its source.
//!
//! Bytes tell that by their checksum. Zeros have none: that a block has no stamp counts only if no
//! checkpoint was writing stamps there while they were read. [Its old stamp was gone and the new one not
//! there yet, or just so in the order in which a read came by both.]
//!
//! The payload of an entry that went by reference stays where it is until the log lets go of the entry.
//! By then a checkpoint has moved it into the image, so a read that finds something else there looks
//! for it in the image, as for any block that was checkpointed since.

use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use sbk_engine::replication::log::BlockRange;
use sbk_engine::types::{BLOCK_SIZE, Lba, Lsn};
use sbk_wal::Located;

use super::blocks::BadBlock;
use super::core::Store;
use super::error::{ReadError, RottenBlock};
use super::homes::{Current, Home, Homes, Stamps, runs};
use super::image::{Image, bytes};
use super::stamper::Stamper;

/// How often a block that does not match its checksum is looked up again.
const ATTEMPTS: usize = 8;

/// Where a run of blocks is.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// In memory: exactly the run's bytes.
    Memory(Bytes),
    /// In the WAL, from block `skip` of the entry at `at` on.
    Wal { at: Located, skip: u64, stamps: Box<[u64]>, stamper: Stamper },
    /// Where the payload of its entry was placed.
    Placed(Placed),
    /// Nowhere: zeros.
    Zeros,
    /// In the image.
    Extents,
}

/// A part of a payload that was placed in homes of its blocks.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub(super) lsn: Lsn,
    pub(super) homes: Arc<Homes>,
    /// The entry's block that it begins with.
    pub(super) skip: u64,
    pub(super) stamps: Box<[u64]>,
    pub(super) image: Arc<Image>,
    /// Everything up to here is in the image.
    pub(super) done: Arc<AtomicU64>,
}

impl Placed {
    /// The home of its block `at`.
    pub(super) fn home(&self, at: usize) -> Home {
        self.homes.get(self.skip as usize + at)
    }

    /// Its blocks `from..to`.
    fn part(&self, from: usize, to: usize) -> Self {
        let skip = self.skip + from as u64;
        Self { skip, stamps: self.stamps[from..to].into(), ..self.clone() }
    }

    /// Reads all of it, which lies at `range`. Returns the blocks that are not there any more, which the
    /// image has, or newer ones.
    fn read(&self, range: &Range<u64>, out: &mut [u8]) -> Result<Vec<BadBlock>, ReadError> {
        let bad = self.image.read_placed(range, self, out)?;
        match bad.first() {
            Some(first) if self.done.load(Ordering::SeqCst) < self.lsn.0 => {
                let RottenBlock { lba, file, offset, found, expected } = first.rotten();
                let path = self.image.describe(file);
                Err(ReadError::Damaged { lba, path, offset, found, expected })
            }
            _ => Ok(bad),
        }
    }
}

/// A run of blocks and where it is.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) range: Range<u64>,
    pub(super) source: Source,
}

impl Piece {
    /// Reads the blocks `range` of this piece, which is not in the image. Returns those that were there and
    /// are in the image by now.
    fn fetch(&self, range: &Range<u64>, out: &mut [u8]) -> Result<Vec<BadBlock>, ReadError> {
        let from = range.start - self.range.start;
        match &self.source {
            Source::Memory(data) => {
                let start = bytes(from) as usize;
                out.copy_from_slice(&data[start..start + out.len()]);
            }
            Source::Wal { at, skip, stamps, stamper } => {
                let offset = at.body + stamper.payload_at() as u64 + bytes(skip + from);
                at.segment.read(out, offset)?;
                for (i, data) in out.chunks_exact(BLOCK_SIZE as usize).enumerate() {
                    let expected = stamps[from as usize + i];
                    let block = range.start + i as u64;
                    if stamper.of_block(block, data) != expected {
                        return Err(ReadError::Damaged {
                            lba: Lba(block),
                            path: at.segment.describe(),
                            offset: offset + bytes(i as u64),
                            found: stamper.of_data(block, data),
                            expected,
                        });
                    }
                }
            }
            Source::Placed(placed) => {
                let to = range.end - self.range.start;
                return placed.part(from as usize, to as usize).read(range, out);
            }
            Source::Zeros => out.fill(0),
            Source::Extents => unreachable!("the image is read by its stamps"),
        }
        Ok(Vec::new())
    }

    /// The blocks `range` of the piece.
    pub(super) fn part(&self, range: Range<u64>) -> Self {
        let from = range.start - self.range.start;
        let to = range.end - self.range.start;
        let source = match &self.source {
            Source::Memory(data) => {
                Source::Memory(data.slice(bytes(from) as usize..bytes(to) as usize))
            }
            Source::Wal { at, skip, stamps, stamper } => Source::Wal {
                at: at.clone(),
                stamper: stamper.clone(),
                skip: skip + from,
                stamps: stamps[from as usize..to as usize].into(),
            },
            Source::Placed(placed) => Source::Placed(placed.part(from as usize, to as usize)),
            Source::Zeros => Source::Zeros,
            Source::Extents => Source::Extents,
        };
        Self { range, source }
    }

    /// The bytes of a piece that is in memory or in the WAL.
    pub(super) fn load(&self) -> Result<Bytes, ReadError> {
        if let Source::Memory(data) = &self.source {
            return Ok(data.clone());
        }
        let mut out = BytesMut::zeroed(bytes(self.range.end - self.range.start) as usize);
        let elsewhere = self.fetch(&self.range, &mut out)?;
        assert!(elsewhere.is_empty(), "what a checkpoint is to move is in no image yet");
        Ok(out.freeze())
    }
}

/// The checkpoint that may be writing to the extents right now.
#[derive(Debug, Default)]
pub(super) struct Rewriting {
    step: Mutex<Step>,
    /// Everything up to here is in the image.
    done: Arc<AtomicU64>,
    /// The highest LSN that a checkpoint was ever planned up to.
    upto: AtomicU64,
    /// The store has ended, or let go of the image: what is in it from here on is another's.
    left: AtomicBool,
    /// Cuts of the log so far.
    cuts: AtomicU64,
}

/// A step of the checkpoint.
#[derive(Clone, Debug, Default)]
struct Step {
    pieces: Option<Arc<Vec<Piece>>>,
    /// How many have begun and ended so far.
    count: u64,
}

impl Step {
    /// What it writes for a block, if it does.
    fn piece(&self, block: u64) -> Option<&Piece> {
        let pieces = self.pieces.as_ref()?;
        let after = pieces.partition_point(|p| p.range.end <= block);
        pieces.get(after).filter(|p| p.range.contains(&block))
    }
}

impl Rewriting {
    /// Everything up to `checkpoint` is in the image.
    pub(super) fn new(checkpoint: Lsn) -> Self {
        Self { done: Arc::new(AtomicU64::new(checkpoint.0)), ..Self::default() }
    }

    fn step(&self) -> MutexGuard<'_, Step> {
        self.step.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A checkpoint up to `upto` may write these from now on.
    pub(super) fn begin(&self, pieces: Arc<Vec<Piece>>, upto: Lsn) {
        self.upto.fetch_max(upto.0, Ordering::SeqCst);
        let mut step = self.step();
        *step = Step { pieces: Some(pieces), count: step.count + 1 };
    }

    /// It wrote them all, if `done` up to there.
    pub(super) fn end(&self, done: Option<Lsn>) {
        self.done.fetch_max(done.unwrap_or_default().0, Ordering::SeqCst);
        let mut step = self.step();
        *step = Step { pieces: None, count: step.count + 1 };
    }

    /// The LSN up to which everything is in the image.
    pub(super) fn done(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.done)
    }

    /// Whether a checkpoint writes to one of these blocks now.
    pub(super) fn touches(&self, range: &Range<u64>) -> bool {
        let step = self.step();
        step.pieces.as_ref().is_some_and(|pieces| {
            let after = pieces.partition_point(|p| p.range.end <= range.start);
            pieces.get(after).is_some_and(|p| p.range.start < range.end)
        })
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

    fn current(&self) -> Step {
        self.step().clone()
    }
}

/// Stamps of blocks, and the step that may be at them.
struct Look {
    stamps: Vec<Stamps>,
    step: Step,
    /// Steps began or ended while the stamps were read, again and again.
    unsettled: bool,
}

impl Look {
    /// Whether nothing is known of a block by its having no stamp.
    fn is_unsettled(&self, block: u64) -> bool {
        self.unsettled || self.step.piece(block).is_some()
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
        let blocks: Vec<_> = bad.iter().map(BadBlock::rotten).collect();
        let path = self.image.describe(blocks[0].file);
        Err(ReadError::Rotten { path, blocks })
    }

    /// Reads everything into `out`; returns the blocks of the image that stay damaged.
    pub(super) fn fill(&self, out: &mut [u8]) -> Result<Vec<BadBlock>, ReadError> {
        let mut damaged = Vec::new();
        for piece in &self.pieces {
            let start = bytes(piece.range.start - self.range.start) as usize;
            let end = bytes(piece.range.end - self.range.start) as usize;
            let out = &mut out[start..end];
            let again = match &piece.source {
                Source::Extents => self.read_image(&piece.range, out)?,
                _ => piece.fetch(&piece.range, out)?,
            };
            for bad in again {
                let at = bytes(bad.block - piece.range.start) as usize;
                let block = &mut out[at..at + BLOCK_SIZE as usize];
                damaged.extend(self.again(bad, block)?);
            }
        }
        Ok(damaged)
    }

    /// The stamps of blocks, none of them halfway between two states.
    fn look(&self, range: &Range<u64>) -> Result<Look, ReadError> {
        let mut unsettled = true;
        let mut step = self.rewriting.current();
        let mut stamps = self.image.look(range)?;
        for _ in 0..ATTEMPTS {
            let now = self.rewriting.current();
            if now.count == step.count {
                unsettled = false;
                break;
            }
            step = now;
            stamps = self.image.look(range)?;
        }
        Ok(Look { stamps, step, unsettled })
    }

    /// Reads blocks of the image into `out`. Returns those that must be looked up again.
    fn read_image(&self, range: &Range<u64>, out: &mut [u8]) -> Result<Vec<BadBlock>, ReadError> {
        let look = self.look(range)?;
        let mut bad = self.image.read(range, &look.stamps, out)?;
        let zeros = range.clone().zip(&look.stamps).filter(|(block, stamps)| {
            stamps.current() == Current::Zeros && look.is_unsettled(*block)
        });
        bad.extend(zeros.map(|(block, _)| {
            let home = Home::Extents;
            BadBlock { block, home, found: 0, expected: 0 }
        }));
        bad.sort_by_key(|bad| bad.block);
        Ok(bad)
    }

    /// Tells `range`, which is in the image, as runs of blocks, and whether they are holes. A block is one if
    /// it has no stamp; a stamp that is damaged by a bit is still one. What is being rewritten meanwhile is
    /// data. Goes on until `run` breaks.
    pub(super) fn holes(
        &self,
        range: Range<u64>,
        mut run: impl FnMut(u64, bool) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, ReadError> {
        let look = self.look(&range)?;
        let hole = |(block, stamps): (u64, &Stamps)| {
            stamps.current() == Current::Zeros && !look.is_unsettled(block)
        };
        for (blocks, hole) in runs(range.start, range.clone().zip(&look.stamps).map(hole)) {
            if run(blocks.end - blocks.start, hole).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Looks a block up again that did not match its checksum.
    fn again(&self, mut bad: BadBlock, out: &mut [u8]) -> Result<Option<BadBlock>, ReadError> {
        let range = bad.block..bad.block + 1;
        for _ in 0..ATTEMPTS {
            if let Some(piece) = self.rewriting.current().piece(bad.block)
                && piece.fetch(&range, out)?.is_empty()
            {
                return Ok(None);
            }
            match self.read_image(&range, out)?.first() {
                None => return Ok(None),
                Some(still) => bad = *still,
            }
        }
        Ok(Some(bad))
    }
}
