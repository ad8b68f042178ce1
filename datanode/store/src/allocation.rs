//! Which blocks may be anything but zeros, without their bytes.
//!
//! A copying client skips what it is told to be zeros, so a block is a hole only where a read would
//! bring zeros. In doubt it is data: the client then reads it, and learns of damage from that.

use std::ops::{ControlFlow, Range};

use sbk_engine::bugs::{Bug, on};
use sbk_engine::replication::log::BlockRange;
use sbk_engine::types::{BLOCK_SIZE, Lba, Lsn, REGION_BLOCKS};
use sbk_wal::is_zero;

use super::core::Store;
use super::error::ReadError;
use super::read::{Piece, ReadPlan, Source};

/// A run of blocks of which all, or none, are holes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// How many, at least 1.
    pub blocks: u32,
    /// They read as zeros and take no space.
    pub hole: bool,
}

/// Consecutive runs, neighbours of a kind joined, and how many there may be.
#[derive(Debug)]
struct Runs(Vec<Run>, usize);

impl Runs {
    /// Adds blocks; breaks where one run more begins than there may be.
    fn push(&mut self, blocks: u64, hole: bool) -> ControlFlow<()> {
        // A request covers fewer blocks than 32 bits count.
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
        let full = self.0.len() == self.1;
        match self.0.last_mut() {
            _ if blocks == 0 => {}
            Some(last) if last.hole == hole => last.blocks += blocks,
            _ if full => return ControlFlow::Break(()),
            _ => self.0.push(Run { blocks, hole }),
        }
        ControlFlow::Continue(())
    }
}

/// A look at which blocks are holes. See the module's documentation.
#[derive(Debug)]
pub struct AllocationPlan {
    read: ReadPlan,
    /// For each region that the range touches, whether anything was ever written there to the
    /// extents.
    written: Vec<bool>,
}

impl AllocationPlan {
    /// The runs, from the range's first block on: all, which cover the range, or the first `most`.
    /// What lies behind those is not looked at: who asks for one run at a time would have the
    /// same blocks looked at again and again. Blocks the thread.
    pub fn run(self, most: usize) -> Result<Vec<Run>, ReadError> {
        let mut runs = Runs(Vec::new(), most);
        let _all_or_enough = self.collect(&mut runs)?;
        Ok(runs.0)
    }

    fn collect(&self, runs: &mut Runs) -> Result<ControlFlow<()>, ReadError> {
        let first_region = self.read.range.start / REGION_BLOCKS;
        for Piece { range, source } in &self.read.pieces {
            let flow = match source {
                Source::Zeros => runs.push(range.end - range.start, true),
                Source::Memory(_) | Source::Wal { .. } | Source::Placed(_) => {
                    blocks_of(source).try_for_each(|hole| runs.push(1, hole))
                }
                Source::Extents => {
                    for part in by_region(range.clone()) {
                        let region = (part.start / REGION_BLOCKS - first_region) as usize;
                        let flow = if self.written.get(region).copied().unwrap_or(false) {
                            self.read.holes(part, |blocks, hole| runs.push(blocks, hole))?
                        } else {
                            runs.push(part.end - part.start, true)
                        };
                        if flow.is_break() {
                            return Ok(flow);
                        }
                    }
                    continue;
                }
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// Whether each block of what an entry wrote is zeros: a hole, as it will be in the image. [A block of zeros
/// counted as data until its checkpoint, and as a hole from then on: a write to it was taken for one that
/// needs no new space, and needed some.]
fn blocks_of(source: &Source) -> impl Iterator<Item = bool> + '_ {
    let (data, stamps): (&[u8], &[u64]) = match source {
        Source::Memory(data) => (data, &[]),
        Source::Wal { stamps, .. } => (&[], stamps),
        Source::Placed(placed) => (&[], &placed.stamps),
        Source::Zeros | Source::Extents => (&[], &[]),
    };
    let of_data = data.chunks_exact(BLOCK_SIZE as usize).map(is_zero);
    let holes = of_data.chain(stamps.iter().map(|stamp| *stamp == 0));
    let begins =
        || data.get(..BLOCK_SIZE as usize).is_some_and(is_zero) || stamps.first() == Some(&0);
    let all = on(Bug::LoggedDataIsHole) && begins();
    holes.map(move |hole| (hole || all) && !on(Bug::LoggedZerosAreData))
}

/// A look for the first block that is no hole.
#[derive(Debug)]
pub struct FindDataPlan {
    read: ReadPlan,
    /// The regions that anything was ever written to in the extents, ascending: few of a large volume.
    written: Vec<u64>,
}

impl FindDataPlan {
    /// The first block that may be anything but zeros; `None` if all are holes. Blocks the thread.
    pub fn run(self) -> Result<Option<Lba>, ReadError> {
        for Piece { range, source } in &self.read.pieces {
            match source {
                Source::Zeros => {}
                Source::Memory(_) | Source::Wal { .. } | Source::Placed(_) => {
                    if let Some(at) = blocks_of(source).position(|hole| !hole) {
                        return Ok(Some(Lba(range.start + at as u64)));
                    }
                }
                Source::Extents => {
                    if let Some(found) = self.find_in_extents(range)? {
                        return Ok(Some(found));
                    }
                }
            }
        }
        Ok(None)
    }

    fn find_in_extents(&self, range: &Range<u64>) -> Result<Option<Lba>, ReadError> {
        let first =
            self.written.partition_point(|region| (region + 1) * REGION_BLOCKS <= range.start);
        for region in &self.written[first..] {
            let start = range.start.max(region * REGION_BLOCKS);
            let end = range.end.min((region + 1) * REGION_BLOCKS);
            if start >= end {
                break;
            }
            let mut at = start;
            let flow = self.read.holes(start..end, |blocks, hole| {
                if !hole {
                    return ControlFlow::Break(());
                }
                at += blocks;
                ControlFlow::Continue(())
            })?;
            if flow.is_break() {
                return Ok(Some(Lba(at)));
            }
        }
        Ok(None)
    }
}

/// `range`, cut where regions begin.
fn by_region(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let start = at;
        at = range.end.min((start / REGION_BLOCKS + 1) * REGION_BLOCKS);
        (start < range.end).then_some(start..at)
    })
}

impl Store {
    /// Looks which of these blocks are holes as they are logged now.
    pub fn plan_allocation(&self, range: BlockRange) -> AllocationPlan {
        let read = self.plan_read(range);
        let regions = read.range.start / REGION_BLOCKS..read.range.end.div_ceil(REGION_BLOCKS);
        // What an entry wrote that is in the WAL alone is a piece of its own.
        let table = self.checkpointed_regions();
        let written =
            regions.map(|region| table.get(region as usize).is_some_and(|at| *at > Lsn(0)));
        AllocationPlan { read, written: written.collect() }
    }

    /// Looks for the first block from `first` on and before `end` that is no hole as it is logged now.
    pub fn plan_find_data(&self, first: Lba, end: u64) -> FindDataPlan {
        let table = (0..).zip(self.checkpointed_regions());
        let written = table.filter(|(_, at)| **at > Lsn(0)).map(|(region, _)| region);
        FindDataPlan { read: self.plan_read_of(first.0..end), written: written.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_joined_and_ranges_cut_at_regions() {
        let mut runs = Runs(Vec::new(), 3);
        for (blocks, hole) in [(1, true), (2, true), (0, false), (3, false), (1, true)] {
            assert!(runs.push(blocks, hole).is_continue());
        }
        assert!(runs.push(1, true).is_continue(), "it makes the last run longer");
        assert!(runs.push(1, false).is_break(), "a fourth");
        let expected =
            [(3, true), (3, false), (2, true)].map(|(blocks, hole)| Run { blocks, hole });
        assert_eq!(runs.0, expected);
        let (one, two) = (REGION_BLOCKS, 2 * REGION_BLOCKS);
        let parts: Vec<_> = by_region(one - 1..two + 1).collect();
        assert_eq!(parts, [one - 1..one, one..two, two..two + 1]);
        assert_eq!(by_region(5..5).count(), 0);
    }
}
