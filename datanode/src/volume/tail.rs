//! The newest entries of the log, kept in memory so that the feeds need not read them back.

use std::collections::VecDeque;

use sbk_engine::types::Lsn;

use crate::transport::WireEntry;

/// Payload bytes kept. Entries that are not durable yet are kept whatever they weigh: nothing else
/// could be sent to the replicas while the local sync is under way.
const MAX_BYTES: usize = 32 << 20;
/// Entries kept.
const MAX_ENTRIES: usize = 16 << 10;

/// Consecutive entries up to the log's end.
#[derive(Debug, Default)]
pub(super) struct Tail {
    entries: VecDeque<WireEntry>,
    bytes: usize,
}

impl Tail {
    /// Adds the next entry.
    ///
    /// # Panics
    /// If it does not follow the last.
    pub(super) fn push(&mut self, entry: WireEntry, durable: Lsn) {
        if let Some(last) = self.entries.back() {
            assert_eq!(entry.header.lsn, last.header.lsn.next(), "a log has no gap");
        }
        self.bytes += entry.payload.len();
        self.entries.push_back(entry);
        while self.bytes > MAX_BYTES || self.entries.len() > MAX_ENTRIES {
            match self.entries.front() {
                Some(oldest) if oldest.header.lsn <= durable => {
                    self.bytes -= oldest.payload.len();
                    self.entries.pop_front();
                }
                Some(_) | None => break,
            }
        }
    }

    /// The entries `first..=last`, if all are here.
    pub(super) fn range(&self, first: Lsn, last: Lsn) -> Option<impl Iterator<Item = &WireEntry>> {
        let start = self.entries.front()?.header.lsn;
        let end = self.entries.back()?.header.lsn;
        if first < start || last > end || first > last {
            return None;
        }
        let index = |lsn: Lsn| (lsn.0 - start.0) as usize;
        Some(self.entries.range(index(first)..=index(last)))
    }

    /// The first entry's LSN. Everything below it is durable.
    pub(super) fn start(&self) -> Option<Lsn> {
        self.entries.front().map(|entry| entry.header.lsn)
    }

    /// Drops what lies past `end`.
    pub(super) fn cut(&mut self, end: Lsn) {
        while self.entries.back().is_some_and(|entry| entry.header.lsn > end) {
            if let Some(entry) = self.entries.pop_back() {
                self.bytes -= entry.payload.len();
            }
        }
    }

    /// Drops everything.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use sbk_engine::replication::log::{EntryHeader, EntryKind};
    use sbk_engine::types::{Epoch, Lba};

    use super::*;

    fn entry(lsn: u64, bytes: usize) -> WireEntry {
        let kind = EntryKind::Write { lba: Lba(0), blocks: 1 };
        let header = EntryHeader { epoch: Epoch(1), lsn: Lsn(lsn), kind, origin: None };
        WireEntry { header, crc: 0, payload: Bytes::from(vec![0; bytes]) }
    }

    fn lsns(tail: &Tail, first: u64, last: u64) -> Option<Vec<u64>> {
        let range = tail.range(Lsn(first), Lsn(last))?;
        Some(range.map(|entry| entry.header.lsn.0).collect())
    }

    #[test]
    fn a_range_is_whole_or_absent() {
        let mut tail = Tail::default();
        assert_eq!(lsns(&tail, 1, 1), None);
        (5..=8).for_each(|lsn| tail.push(entry(lsn, 1), Lsn(0)));
        assert_eq!(lsns(&tail, 5, 8), Some(vec![5, 6, 7, 8]));
        assert_eq!(lsns(&tail, 6, 6), Some(vec![6]));
        assert_eq!(lsns(&tail, 4, 6), None);
        assert_eq!(lsns(&tail, 8, 9), None);
        tail.cut(Lsn(6));
        assert_eq!(lsns(&tail, 5, 6), Some(vec![5, 6]));
        assert_eq!(lsns(&tail, 5, 7), None);
        tail.push(entry(7, 1), Lsn(0));
        assert_eq!(lsns(&tail, 5, 7), Some(vec![5, 6, 7]));
    }

    #[test]
    fn only_durable_entries_make_room() {
        let mut tail = Tail::default();
        tail.push(entry(1, MAX_BYTES), Lsn(0));
        tail.push(entry(2, MAX_BYTES), Lsn(0));
        assert_eq!(lsns(&tail, 1, 2), Some(vec![1, 2]));
        tail.push(entry(3, 1), Lsn(1));
        assert_eq!(lsns(&tail, 2, 3), Some(vec![2, 3]));
        assert_eq!(lsns(&tail, 1, 3), None);
    }
}
