//! Which blocks live in the WAL, and which entry holds the newest version of each.

use std::collections::BTreeMap;
use std::ops::Range;

use sbk_engine::types::Lsn;

/// A run of blocks that one entry changed last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// How many blocks.
    pub(super) len: u64,
    /// The entry.
    pub(super) lsn: Lsn,
    /// The entry's block that the run starts with; `None` if the run is zeros.
    pub(super) skip: Option<u64>,
}

impl Span {
    /// The part of the span from its block `start` on, `len` blocks.
    fn part(&self, start: u64, len: u64) -> Self {
        Self { len, lsn: self.lsn, skip: self.skip.map(|skip| skip + start) }
    }
}

/// Runs of blocks by their first block; they don't overlap.
#[derive(Clone, Debug, Default)]
pub(super) struct BlockMap(BTreeMap<u64, Span>);

impl BlockMap {
    /// The entry `lsn` changes `range`: its blocks are the entry's, or zeros if not `data`.
    pub(super) fn insert(&mut self, range: Range<u64>, lsn: Lsn, data: bool) {
        if range.is_empty() {
            return;
        }
        self.remove(&range, |_| true);
        let span = Span { len: range.end - range.start, lsn, skip: data.then_some(0) };
        self.0.insert(range.start, span);
    }

    /// Takes the spans that `gone` names out of `range`, splitting those that pass its ends.
    pub(super) fn remove(&mut self, range: &Range<u64>, gone: impl Fn(&Span) -> bool) {
        let first = self.0.range(..range.start).next_back();
        let from =
            first.filter(|(s, span)| *s + span.len > range.start).map_or(range.start, |f| *f.0);
        let hit: Vec<(u64, Span)> = self
            .0
            .range(from..range.end)
            .filter(|(_, span)| gone(span))
            .map(|(start, span)| (*start, *span))
            .collect();
        for (start, span) in hit {
            self.0.remove(&start);
            let end = start + span.len;
            if start < range.start {
                self.0.insert(start, span.part(0, range.start - start));
            }
            if end > range.end {
                self.0.insert(range.end, span.part(range.end - start, end - range.end));
            }
        }
    }

    /// `range` in pieces, in order: runs of blocks with the span they are part of, or without.
    pub(super) fn lookup(&self, range: Range<u64>) -> Vec<(Range<u64>, Option<Span>)> {
        let mut out = Vec::new();
        let mut at = range.start;
        let before = self.0.range(..=range.start).next_back().map_or(range.start, |(s, _)| *s);
        for (start, span) in self.0.range(before..range.end) {
            let end = (start + span.len).min(range.end);
            if end <= at {
                continue;
            }
            if *start > at {
                out.push((at..*start, None));
                at = *start;
            }
            out.push((at..end, Some(span.part(at - start, end - at))));
            at = end;
        }
        if at < range.end {
            out.push((at..range.end, None));
        }
        out
    }

    /// All runs, by block.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Range<u64>, Span)> + '_ {
        self.0.iter().map(|(start, span)| (*start..start + span.len, *span))
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_agrees_with_a_map_of_single_blocks(
            ops in proptest::collection::vec((0u64..50, 0u64..20, any::<u8>()), 1..60),
        ) {
            let mut map = BlockMap::default();
            let mut model: BTreeMap<u64, (u64, Option<u64>)> = BTreeMap::new();
            for (n, (start, len, what)) in ops.into_iter().enumerate() {
                let (lsn, range) = (n as u64 + 1, start..start + len);
                if what % 4 == 0 {
                    let limit = lsn / 2;
                    map.remove(&range, |span| span.lsn.0 <= limit);
                    model.retain(|b, (l, _)| !(range.contains(b) && *l <= limit));
                } else {
                    map.insert(range.clone(), Lsn(lsn), what % 2 == 0);
                    for block in range {
                        model.insert(block, (lsn, (what % 2 == 0).then_some(block - start)));
                    }
                }
                let mut found = BTreeMap::new();
                for (range, span) in map.lookup(0..80) {
                    for (i, block) in range.enumerate() {
                        if let Some(span) = span {
                            found.insert(block, (span.lsn.0, span.skip.map(|s| s + i as u64)));
                        }
                    }
                }
                prop_assert_eq!(&found, &model);
                for (range, _) in map.lookup(7..31) {
                    prop_assert!(range.start >= 7 && range.end <= 31 && !range.is_empty());
                }
            }
        }
    }
}
