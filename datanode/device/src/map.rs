//! Where the bytes of one file are.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::change::Change;
use crate::layout::{CHUNK, CHUNK_PAGES, PAGE};

/// A chunk of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// Which chunk of the device.
    pub(crate) at: u32,
    /// One bit for each page: whether anything was written to it. The others are zeros.
    pub(crate) written: u64,
}

/// What is at a position of a file, in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// So many bytes, from this byte of the device's chunks on.
    Data { at: u64, len: u64 },
    /// So many zeros.
    Hole { len: u64 },
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Map {
    len: u64,
    chunks: BTreeMap<u32, Chunk>,
    /// Places whose chunk, or its bits, changed since [`Map::take_changes`].
    dirty: BTreeSet<u32>,
    dirty_len: bool,
    /// Chunks of the device that were let go since.
    freed: Vec<u32>,
    /// Counts changes.
    pub(crate) version: u64,
}

/// The bits of the pages `range` of a chunk.
fn bits(range: Range<u64>) -> u64 {
    let below = |page: u64| if page >= CHUNK_PAGES { u64::MAX } else { (1 << page) - 1 };
    below(range.end) & !below(range.start)
}

/// The place in its file of the chunk that `offset` is in. No file is so long that it does not fit
/// ([`MAX_LEN`]).
pub(crate) fn index(offset: u64) -> u32 {
    (offset / CHUNK) as u32
}

/// Longest file.
pub(crate) const MAX_LEN: u64 = (u32::MAX as u64) * CHUNK;

impl Map {
    /// That of a file that was just made.
    pub(crate) fn new() -> Self {
        Self { dirty_len: true, version: 1, ..Self::default() }
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn chunk(&self, index: u32) -> Option<Chunk> {
        self.chunks.get(&index).copied()
    }

    /// The chunks that it has, and those that it let go and nobody took.
    pub(crate) fn take_all(&mut self) -> Vec<u32> {
        let mut all = std::mem::take(&mut self.freed);
        all.extend(self.places());
        all
    }

    /// Where all its chunks are.
    pub(crate) fn places(&self) -> impl Iterator<Item = u32> {
        self.chunks.values().map(|chunk| chunk.at)
    }

    /// Whether something was written to the page that `offset` is in.
    pub(crate) fn is_written(&self, offset: u64) -> bool {
        matches!(self.piece(offset, 1), Piece::Data { .. })
    }

    /// What is at `offset`, at most `most` bytes of it, whatever the file's length.
    pub(crate) fn piece(&self, offset: u64, most: u64) -> Piece {
        let first = self.chunk(index(offset));
        let page = offset % CHUNK / PAGE;
        let Some(first) = first.filter(|chunk| chunk.written >> page & 1 == 1) else {
            let end = self.first_written(offset, offset.saturating_add(most));
            return Piece::Hole { len: end.map_or(most, |end| end - offset) };
        };
        let (mut place, mut chunk, mut end) = (index(offset), first, offset);
        // Goes on through written pages that lie behind each other.
        while end - offset < most {
            let page = end % CHUNK / PAGE;
            let written = u64::from((chunk.written >> page).trailing_ones());
            end = u64::from(place) * CHUNK + (page + written) * PAGE;
            if page + written < CHUNK_PAGES {
                break;
            }
            place += 1;
            match self.chunk(place) {
                Some(next) if next.at == chunk.at + 1 && next.written & 1 == 1 => chunk = next,
                Some(_) | None => break,
            }
        }
        let len = (end - offset).min(most);
        Piece::Data { at: u64::from(first.at) * CHUNK + offset % CHUNK, len }
    }

    /// The first page at or behind `offset` and before `end` to which something was written: where it begins,
    /// or `offset` if it is in it.
    fn first_written(&self, offset: u64, end: u64) -> Option<u64> {
        for (&place, chunk) in self.chunks.range(index(offset)..) {
            let start = u64::from(place) * CHUNK;
            if start >= end {
                return None;
            }
            let skipped = offset.saturating_sub(start) / PAGE;
            let written = chunk.written >> skipped << skipped;
            if written != 0 {
                let at = start + u64::from(written.trailing_zeros()) * PAGE;
                let at = at.max(offset);
                return (at < end).then_some(at);
            }
        }
        None
    }

    /// The first range at or after `offset` to which something was written.
    pub(crate) fn next_data(&self, offset: u64) -> Option<Range<u64>> {
        let start = self.first_written(offset, self.len)?;
        match self.piece(start, self.len - start) {
            Piece::Data { len, .. } => Some(start..start + len),
            Piece::Hole { .. } => None,
        }
    }

    fn touch(&mut self, index: u32) {
        self.dirty.insert(index);
        self.version += 1;
    }

    /// Gives it a chunk that has none of its own, to a place where it has none.
    pub(crate) fn add(&mut self, index: u32, at: u32) {
        let before = self.chunks.insert(index, Chunk { at, written: 0 });
        debug_assert!(before.is_none());
        self.touch(index);
    }

    /// Something was written to the pages of `range`, all of which have chunks.
    pub(crate) fn wrote(&mut self, range: Range<u64>) {
        for index in index(range.start)..=index(range.end - 1) {
            let bits = bits(pages(index, &range));
            let chunk = self.chunks.get_mut(&index).expect("what is written to has a chunk");
            if chunk.written | bits != chunk.written {
                chunk.written |= bits;
                self.touch(index);
            }
        }
    }

    pub(crate) fn set_len(&mut self, len: u64) {
        if self.len != len {
            self.len = len;
            self.dirty_len = true;
            self.version += 1;
        }
    }

    /// The pages that lie in `range` as a whole become zeros, and chunks that nothing is left of are let go.
    pub(crate) fn clear(&mut self, range: Range<u64>) {
        let range = range.start.next_multiple_of(PAGE)..range.end / PAGE * PAGE;
        if range.start >= range.end {
            return;
        }
        let indexes = index(range.start)..=index(range.end - 1);
        let found: Vec<u32> = self.chunks.range(indexes).map(|(index, _)| *index).collect();
        for index in found {
            let bits = bits(pages(index, &range));
            let chunk = self.chunks.get_mut(&index).expect("it was found");
            let left = chunk.written & !bits;
            if bits == u64::MAX || (left == 0 && chunk.written != 0) {
                self.freed.push(chunk.at);
                self.chunks.remove(&index);
            } else if left != chunk.written {
                chunk.written = left;
            } else {
                continue;
            }
            self.touch(index);
        }
    }

    /// The chunks that were let go since the last call.
    #[cfg(feature = "bugs")]
    pub(crate) fn take_freed(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.freed)
    }

    /// The changes since the last call, and the chunks that they let go.
    pub(crate) fn take_changes(&mut self, id: u32, out: &mut Vec<Change>) -> Vec<u32> {
        if std::mem::take(&mut self.dirty_len) {
            out.push(Change::Length(id, self.len));
        }
        let (mut chunks, mut holes) = (Vec::new(), Vec::new());
        for index in std::mem::take(&mut self.dirty) {
            match self.chunks.get(&index) {
                Some(chunk) => chunks.push((index, *chunk)),
                None => holes.push(index),
            }
        }
        if !chunks.is_empty() {
            out.push(Change::Chunks(id, chunks));
        }
        if !holes.is_empty() {
            out.push(Change::Holes(id, holes));
        }
        std::mem::take(&mut self.freed)
    }

    /// All of it.
    pub(crate) fn all(&self, id: u32, out: &mut Vec<Change>) {
        out.push(Change::Length(id, self.len));
        if !self.chunks.is_empty() {
            let chunks = self.chunks.iter().map(|(index, chunk)| (*index, *chunk)).collect();
            out.push(Change::Chunks(id, chunks));
        }
    }

    /// Does a change that was read back.
    pub(crate) fn load_len(&mut self, len: u64) {
        self.len = len;
    }

    /// The same.
    pub(crate) fn load_chunks(&mut self, chunks: Vec<(u32, Chunk)>) {
        self.chunks.extend(chunks);
    }

    /// The same.
    pub(crate) fn load_holes(&mut self, holes: &[u32]) {
        holes.iter().for_each(|index| _ = self.chunks.remove(index));
    }
}

/// The pages of the chunk at `index` that `range` touches.
fn pages(index: u32, range: &Range<u64>) -> Range<u64> {
    let start = u64::from(index) * CHUNK;
    let within = |offset: u64| offset.saturating_sub(start).min(CHUNK);
    within(range.start) / PAGE..within(range.end).div_ceil(PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> Map {
        let mut map = Map::default();
        // Places 0 and 1 are neighbours on the device, 3 lies elsewhere.
        for (index, at) in [(0, 10), (1, 11), (3, 5)] {
            map.add(index, at);
        }
        map.set_len(4 * CHUNK);
        map
    }

    #[test]
    fn pieces_go_as_far_as_they_lie_behind_each_other() {
        let mut map = map();
        assert_eq!(map.piece(5, MAX_LEN - 5), Piece::Hole { len: MAX_LEN - 5 });
        map.wrote(CHUNK - 2 * PAGE..CHUNK + PAGE);
        map.wrote(3 * CHUNK..4 * CHUNK);
        assert_eq!(map.piece(0, 9999), Piece::Hole { len: 9999 });
        assert_eq!(map.piece(100, CHUNK), Piece::Hole { len: CHUNK - 2 * PAGE - 100 });
        let at = 11 * CHUNK - PAGE - 1;
        assert_eq!(map.piece(CHUNK - PAGE - 1, CHUNK), Piece::Data { at, len: 2 * PAGE + 1 });
        assert_eq!(map.piece(2 * CHUNK - PAGE, 7), Piece::Hole { len: 7 });
        assert_eq!(map.piece(CHUNK + PAGE, 9 * CHUNK), Piece::Hole { len: 2 * CHUNK - PAGE });
        let data = Piece::Data { at: 5 * CHUNK, len: CHUNK };
        assert_eq!(map.piece(3 * CHUNK, 9 * CHUNK), data);
        assert_eq!(map.next_data(0), Some(CHUNK - 2 * PAGE..CHUNK + PAGE));
        assert_eq!(map.next_data(CHUNK + PAGE), Some(3 * CHUNK..4 * CHUNK));
        assert_eq!(map.next_data(4 * CHUNK - 1), Some(4 * CHUNK - 1..4 * CHUNK));
        assert_eq!(map.next_data(4 * CHUNK), None);
    }

    #[test]
    fn whole_pages_are_cleared_and_empty_chunks_let_go() {
        let mut map = map();
        map.wrote(0..4 * CHUNK - 2 * CHUNK);
        let mut changes = Vec::new();
        assert_eq!(map.take_changes(1, &mut changes), []);
        assert_eq!(changes.len(), 2, "{changes:?}");
        map.clear(1..CHUNK + 1);
        assert!(map.is_written(0) && !map.is_written(PAGE) && map.is_written(CHUNK));
        map.clear(CHUNK..2 * CHUNK);
        map.clear(0..PAGE);
        // It was reserved, and stays so while part of it is cleared.
        map.clear(3 * CHUNK..3 * CHUNK + PAGE);
        changes.clear();
        assert_eq!(map.take_changes(1, &mut changes), [11, 10]);
        assert_eq!(changes, [Change::Holes(1, vec![0, 1])]);
        map.clear(0..4 * CHUNK);
        assert_eq!(map.take_changes(1, &mut changes), [5]);
        assert_eq!(map.places().count(), 0);
    }
}
