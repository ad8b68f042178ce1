//! Which homes of blocks the log refers to.
//!
//! A large write has its payload in homes that were not current when it was placed; the log has a reference
//! to them. They stay as they are as long as the log holds the entry, in the image or not: others may be sent
//! it. At most one home of a block is referred to: an entry whose blocks are referred to already goes into
//! the log as it is. So the other home is always there for what a checkpoint writes.
//!
//! What is let go and is not current is *loose*: a later step gives it back.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use sbk_engine::types::{Lsn, REGION_BLOCKS};

use super::homes::{Held, Homes};
use super::image::bytes;

#[derive(Clone, Debug)]
struct Reference {
    lsn: Lsn,
    blocks: u64,
    /// `None` while the payload is being placed.
    homes: Option<Arc<Homes>>,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct References {
    /// By first block. They don't overlap.
    by_block: BTreeMap<u64, Reference>,
    /// Where each is.
    by_lsn: BTreeMap<Lsn, u64>,
    /// Blocks whose homes are to be swept. Nothing in here is referred to.
    loose: Vec<Range<u64>>,
    /// Those that are being swept.
    sweeping: Vec<Range<u64>>,
    /// From here on an earlier run may have left something that nobody knows of.
    unswept: Option<u64>,
}

/// Blocks in which a step looks for what an earlier run has left.
const SWEEP_BLOCKS: u64 = 256 * REGION_BLOCKS;

pub(super) fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

impl References {
    fn overlapping(&self, range: &Range<u64>) -> impl Iterator<Item = (Range<u64>, &Reference)> {
        let before =
            self.by_block.range(..=range.start).next_back().map_or(range.start, |(b, _)| *b);
        let all = self.by_block.range(before.min(range.end)..range.end);
        let range = range.clone();
        all.map(|(first, reference)| (*first..first + reference.blocks, reference))
            .filter(move |(blocks, _)| overlap(blocks, &range))
    }

    /// Whether a payload for these blocks may be placed.
    pub(super) fn may_place(&self, range: &Range<u64>) -> bool {
        self.overlapping(range).next().is_none()
            && !self.sweeping.iter().any(|swept| overlap(swept, range))
    }

    /// The payload of an entry is being placed.
    pub(super) fn begin(&mut self, lsn: Lsn, range: &Range<u64>) {
        let reference = Reference { lsn, blocks: range.end - range.start, homes: None };
        self.by_block.insert(range.start, reference);
        self.by_lsn.insert(lsn, range.start);
        // It goes where what is loose lies.
        let loose = std::mem::take(&mut self.loose);
        self.loose = loose
            .into_iter()
            .flat_map(|loose| {
                [loose.start..loose.end.min(range.start), loose.start.max(range.end)..loose.end]
            })
            .filter(|loose| !loose.is_empty())
            .collect();
    }

    /// It is placed.
    pub(super) fn placed(&mut self, lsn: Lsn, homes: Arc<Homes>) {
        let at = self.by_lsn.get(&lsn).and_then(|first| self.by_block.get_mut(first));
        at.expect("it was begun").homes = Some(homes);
    }

    /// An opening found that these blocks were referred to, and nobody needs it any more.
    pub(super) fn loosen(&mut self, range: Range<u64>) {
        self.loose.push(range);
    }

    /// An opening found one.
    pub(super) fn found(&mut self, lsn: Lsn, range: &Range<u64>, homes: Arc<Homes>) {
        self.begin(lsn, range);
        self.placed(lsn, homes);
    }

    /// Whether a payload is being placed in one of these blocks: nothing else may be written there.
    pub(super) fn is_placing(&self, range: &Range<u64>) -> bool {
        self.overlapping(range).any(|(_, reference)| reference.homes.is_none())
    }

    /// The homes that are referred to in these ranges, which ascend.
    pub(super) fn held(&self, ranges: impl IntoIterator<Item = Range<u64>>) -> Held {
        let mut held: Vec<(Range<u64>, Arc<Homes>)> = Vec::new();
        for range in ranges {
            for (blocks, reference) in self.overlapping(&range) {
                let homes = reference.homes.as_ref().expect("nothing is being placed there");
                if held.last().is_none_or(|(last, _)| last.end <= blocks.start) {
                    held.push((blocks, Arc::clone(homes)));
                }
            }
        }
        Held::new(held)
    }

    fn drop_all(&mut self, gone: Vec<Lsn>) {
        for lsn in gone {
            let Some(first) = self.by_lsn.remove(&lsn) else { continue };
            if self.by_block.get(&first).is_some_and(|reference| reference.lsn == lsn)
                && let Some(reference) = self.by_block.remove(&first)
            {
                self.loose.push(first..first + reference.blocks);
            }
        }
    }

    /// The log ends at `end`.
    pub(super) fn cut(&mut self, end: Lsn) {
        let gone = self.by_lsn.range(end.next()..).map(|(lsn, _)| *lsn).collect();
        self.drop_all(gone);
    }

    /// What is retained begins at `first`; what is before it is in the image, durably.
    pub(super) fn release(&mut self, first: Lsn) {
        let gone = self.by_lsn.range(..first).map(|(lsn, _)| *lsn).collect();
        self.drop_all(gone);
    }

    /// Whether an entry refers to its payload.
    pub(super) fn has(&self, lsn: Lsn) -> bool {
        self.by_lsn.contains_key(&lsn)
    }

    fn len_at(&self, first: u64) -> u64 {
        bytes(self.by_block.get(&first).map_or(0, |reference| reference.blocks))
    }

    /// Bytes of payload that the entries behind `after` up to `last` refer to.
    pub(super) fn payload(&self, after: Lsn, last: Lsn) -> u64 {
        let entries = self.by_lsn.range(after.next()..).take_while(|(lsn, _)| **lsn <= last);
        entries.map(|(_, first)| self.len_at(*first)).sum()
    }

    /// The oldest entry that refers to its payload, and how many bytes that has.
    pub(super) fn oldest(&self) -> Option<(Lsn, u64)> {
        self.by_lsn.first_key_value().map(|(lsn, first)| (*lsn, self.len_at(*first)))
    }

    /// The entry that refers to a home of a block, if one does.
    pub(super) fn of_block(&self, block: u64) -> Option<Lsn> {
        self.overlapping(&(block..block + 1)).next().map(|(_, reference)| reference.lsn)
    }

    /// Whether something waits to be given back.
    pub(super) fn has_loose(&self) -> bool {
        !self.loose.is_empty() && self.sweeping.is_empty()
    }

    /// An earlier run may have left payloads anywhere.
    pub(super) fn sweep_all(&mut self) {
        self.unswept = Some(0);
    }

    /// What is to be given back now, and what is to stay of it; with `blocks`, behind which there is nothing,
    /// also a part of what an earlier run may have left.
    pub(super) fn sweep(&mut self, blocks: Option<u64>) -> Option<(Vec<Range<u64>>, Held)> {
        if !self.sweeping.is_empty() {
            return None;
        }
        let mut ranges = std::mem::take(&mut self.loose);
        if let (Some(start), Some(blocks)) = (self.unswept, blocks) {
            let part = start..(start + SWEEP_BLOCKS).min(blocks.max(start));
            if !self.is_placing(&part) {
                self.unswept = (part.end < blocks).then_some(part.end);
                ranges.push(part);
            }
        }
        ranges.retain(|range| !range.is_empty());
        if ranges.is_empty() {
            return None;
        }
        ranges.sort_by_key(|range| range.start);
        self.sweeping = ranges.clone();
        let held = self.held(ranges.iter().cloned());
        Some((ranges, held))
    }

    /// It was given back.
    pub(super) fn swept(&mut self) {
        self.sweeping.clear();
    }

    /// The image is emptied.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
