//! The end of the log in memory: every entry that is not in the extents yet, and recent ones that
//! are, for the feed.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use sbk_engine::replication::log::EntryHeader;
use sbk_engine::types::Lsn;
use sbk_wal::Place;

use super::codec::Logged;
use super::homes::Homes;
use super::stamper::Stamper;
use super::tail_memory::Share;

/// What an entry costs beside its payload, about.
const ENTRY_COST: u64 = 256;

/// One entry.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) header: EntryHeader,
    /// Over canonical header and payload.
    pub(super) crc: u32,
    /// Kept until it is durable, and as long as the cache has room.
    pub(super) payload: Option<Bytes>,
    /// Where it is in the WAL, once it has been handed over to be written.
    pub(super) place: Option<Place>,
    /// The stamp of each block.
    pub(super) stamps: Box<[u64]>,
    /// How its payload gets into the log.
    pub(super) fate: Fate,
}

/// How the payload of an entry gets into the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// That was not decided.
    Open,
    /// In its record.
    Logged,
    /// By reference: it is on its way to homes of its blocks.
    Placing,
    /// By reference: it is in these.
    Placed(Arc<Homes>),
}

impl Entry {
    /// Takes an entry, its payload at hand.
    pub(super) fn new(header: EntryHeader, crc: u32, payload: Bytes, stamper: &Stamper) -> Self {
        assert_eq!(
            payload.len() as u64,
            header.kind.payload_len(),
            "entry {} comes with its payload",
            header.lsn
        );
        let stamps = stamper.of_payload(&header, &payload);
        Self::logged(Logged { header, crc, payload, stamps })
    }

    /// Takes one that was found in the log.
    pub(super) fn logged(logged: Logged) -> Self {
        let Logged { header, crc, payload, stamps } = logged;
        Self { header, crc, payload: Some(payload), place: None, stamps, fate: Fate::Open }
    }

    /// Takes one whose payload is in the homes of its blocks.
    pub(super) fn referring(
        header: EntryHeader,
        crc: u32,
        stamps: Box<[u64]>,
        homes: Arc<Homes>,
    ) -> Self {
        Self { header, crc, payload: None, place: None, stamps, fate: Fate::Placed(homes) }
    }

    /// What of its payload goes through the log's files.
    pub(super) fn logged_len(&self) -> u64 {
        match self.fate {
            Fate::Placed(_) => 0,
            Fate::Open | Fate::Logged | Fate::Placing => self.header.kind.payload_len(),
        }
    }

    fn cost(&self) -> u64 {
        ENTRY_COST + self.payload.as_ref().map_or(0, |p| p.len() as u64)
    }
}

/// Consecutive entries up to the log's end.
#[derive(Debug)]
pub(super) struct Entries {
    queue: VecDeque<Entry>,
    /// LSN of the first one in the queue.
    first: u64,
    /// Payloads below this LSN are gone.
    cached_from: u64,
    cost: u64,
    limit: u64,
    /// Of what all logs of the process have together, if that is limited too.
    share: Option<Share>,
}

impl Entries {
    /// None; the next one is `next`. The cache takes about `limit` bytes, and no more than `share`.
    pub(super) fn new(next: Lsn, limit: u64, share: Option<Share>) -> Self {
        Self { queue: VecDeque::new(), first: next.0, cached_from: next.0, cost: 0, limit, share }
    }

    fn limit(&self) -> u64 {
        self.share.as_ref().map_or(self.limit, |share| self.limit.min(share.bytes()))
    }

    /// Whether its share has become less than what it keeps of what is `durable`.
    pub(super) fn outgrew_share(&self, durable: Lsn) -> bool {
        self.share.is_some() && self.cost > self.limit() && self.cached_from <= durable.0
    }

    /// The last entry's LSN.
    pub(super) fn end(&self) -> Lsn {
        Lsn(self.first + self.queue.len() as u64 - 1)
    }

    pub(super) fn get(&self, lsn: Lsn) -> Option<&Entry> {
        self.queue.get(lsn.0.checked_sub(self.first)? as usize)
    }

    pub(super) fn get_mut(&mut self, lsn: Lsn) -> Option<&mut Entry> {
        self.queue.get_mut(lsn.0.checked_sub(self.first)? as usize)
    }

    /// The entries from `lsn` on, as far as they are in memory.
    pub(super) fn from(&self, lsn: Lsn) -> impl Iterator<Item = &Entry> {
        self.queue.iter().skip(lsn.0.saturating_sub(self.first) as usize)
    }

    pub(super) fn push(&mut self, entry: Entry) {
        assert_eq!(entry.header.lsn, self.end().next(), "the log has no gap");
        self.cost += entry.cost();
        self.queue.push_back(entry);
    }

    /// Drops the entries behind `end`.
    pub(super) fn truncate(&mut self, end: Lsn) {
        while self.end() > end {
            let Some(entry) = self.queue.pop_back() else { break };
            self.cost -= entry.cost();
        }
        self.cached_from = self.cached_from.min(self.end().0 + 1);
    }

    /// Gives memory back: payloads of durable entries, oldest first, while the cache is too large,
    /// and entries that are in the extents and whose payload is gone.
    pub(super) fn trim(&mut self, durable: Lsn, checkpoint: Lsn) {
        let limit = self.limit();
        while self.cost > limit && self.cached_from <= durable.0 {
            if let Some(entry) = self.get_mut(Lsn(self.cached_from)) {
                let gone = entry.payload.take().map_or(0, |p| p.len() as u64);
                self.cost -= gone;
            }
            self.cached_from += 1;
            self.pop(checkpoint);
        }
        self.pop(checkpoint);
    }

    fn pop(&mut self, checkpoint: Lsn) {
        while self.first <= checkpoint.0 && self.first < self.cached_from {
            let Some(entry) = self.queue.pop_front() else { break };
            self.cost -= entry.cost();
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use sbk_engine::replication::log::EntryKind;
    use sbk_engine::types::{Epoch, Lba};

    use super::*;
    use crate::map::Span;
    use crate::tail_memory::TailMemory;

    /// `docs/on-disk-format.md` says what the log behind the checkpoint costs.
    #[test]
    fn an_entry_costs_no_more_than_is_documented() {
        assert!(size_of::<Entry>() as u64 <= ENTRY_COST);
        // A tree keeps its nodes half full or more.
        assert!(2 * size_of::<(u64, Span)>() <= 96);
    }

    fn write(lsn: u64) -> Entry {
        let kind = EntryKind::Write { lba: Lba(0), blocks: 1 };
        let header = EntryHeader { epoch: Epoch(1), lsn: Lsn(lsn), kind, origin: None };
        Entry::new(header, 0, Bytes::from(vec![0; 4096]), &Stamper::plain())
    }

    #[test]
    fn payloads_go_only_when_durable_and_entries_only_when_checkpointed() {
        let mut entries = Entries::new(Lsn(1), 10 * 4096, None);
        for lsn in 1..=100 {
            entries.push(write(lsn));
        }
        entries.trim(Lsn(0), Lsn(0));
        assert!((1..=100).all(|l| entries.get(Lsn(l)).is_some_and(|e| e.payload.is_some())));
        entries.trim(Lsn(100), Lsn(0));
        assert!(entries.get(Lsn(1)).is_some_and(|e| e.payload.is_none()));
        assert!(entries.get(Lsn(99)).is_some());
        entries.trim(Lsn(100), Lsn(50));
        assert!(entries.get(Lsn(50)).is_none() && entries.get(Lsn(51)).is_some());
        entries.trim(Lsn(100), Lsn(100));
        assert!(entries.get(Lsn(100)).is_some_and(|e| e.payload.is_some()), "the cache stays");
        assert!(entries.cost <= entries.limit);
        entries.truncate(Lsn(97));
        assert_eq!(entries.end(), Lsn(97));
        entries.push(write(98));
    }

    #[test]
    fn a_share_becomes_less_with_more_logs_and_more_again_with_fewer() {
        let memory = TailMemory::new(32 * 4096);
        let full = |memory: &Arc<TailMemory>| {
            let mut entries = Entries::new(Lsn(1), 20 * 4096, Some(memory.share()));
            (1..=100).for_each(|lsn| entries.push(write(lsn)));
            entries.trim(Lsn(100), Lsn(100));
            entries
        };
        let mut one = full(&memory);
        let alone = one.cost;
        assert!((18 * 4096..=20 * 4096).contains(&alone), "its own limit: {alone}");
        let others: Vec<Entries> = (0..3).map(|_| full(&memory)).collect();
        assert!(one.outgrew_share(Lsn(100)) && others[2].cost <= 8 * 4096);
        one.trim(Lsn(100), Lsn(100));
        assert!(one.cost <= 8 * 4096 && !one.outgrew_share(Lsn(100)));
        assert!(one.get(Lsn(100)).is_some_and(|e| e.payload.is_some()), "the newest stay");
        drop(others);
        assert!(full(&memory).cost <= 16 * 4096, "two share it");
        drop(one);
        assert_eq!(full(&memory).cost, alone);
    }
}
