//! Reading entries back, for replicas that missed them.

use bytes::Bytes;
use sbk_engine::replication::log::EntryHeader;
use sbk_engine::types::Lsn;
use sbk_wal::{LogError, LogReader};

use super::codec;
use super::core::Store;
use super::entries::Entry;
use super::error::{LogReadError, StoreError};

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// What it is.
    pub header: EntryHeader,
    /// [`entry_crc`](crate::entry::entry_crc) of header and payload.
    pub crc: u32,
    /// Its payload.
    pub payload: Bytes,
}

/// Reads a stretch of the log, piece by piece. It keeps the segments that it needs.
#[derive(Debug)]
pub struct LogReadPlan {
    /// What is on the disk.
    stored: Option<LogReader>,
    /// What is in memory; follows what is on the disk.
    recent: std::vec::IntoIter<LogEntry>,
    /// One entry that was taken out of `recent` and did not fit.
    pushed_back: Option<LogEntry>,
}

impl Store {
    /// Those of the entries `first..=last` that can be had without the disk: the newest of them, without
    /// a gap, and at least all that are not durable yet. How many more there are depends on what memory
    /// the store has for them.
    pub fn recent(&self, first: Lsn, last: Lsn) -> Vec<LogEntry> {
        let mut recent = Vec::new();
        let mut lsn = last;
        while lsn >= first
            && let Some(Entry { header, crc, payload: Some(payload), .. }) = self.entries.get(lsn)
        {
            recent.push(LogEntry { header: *header, crc: *crc, payload: payload.clone() });
            lsn = lsn.prev();
        }
        recent.reverse();
        recent
    }

    /// Reads the entries `first..=last`: recent ones from memory, older ones from the WAL.
    ///
    /// # Panics
    /// If `last` is behind the log's end, or not durable and not in memory any more, which can't
    /// be.
    pub fn read_log(&self, first: Lsn, last: Lsn) -> Result<LogReadPlan, LogReadError> {
        assert!(last <= self.end(), "entry {last} is not in the log");
        let recent = self.recent(first, last);
        let from = recent.first().map_or(last.next(), |entry| entry.header.lsn);
        let retained = self.retained();
        if first < retained && from > first {
            return Err(LogReadError::Recycled { lsn: first, retained });
        }
        let stored = if from > first {
            let reader = self.log.reader(first.0, from.prev().0).map_err(|error| match error {
                LogError::Recycled { index, retained } => {
                    LogReadError::Recycled { lsn: Lsn(index), retained: Lsn(retained) }
                }
                other => LogReadError::Unreadable { lsn: first, what: other.to_string() },
            })?;
            Some(reader)
        } else {
            None
        };
        Ok(LogReadPlan { stored, recent: recent.into_iter(), pushed_back: None })
    }

    /// An entry of the log can't be read back. One that a checkpoint has moved is in the extents:
    /// its part of the log counts as recycled, and whoever misses it gets the image. One behind the
    /// checkpoint is nowhere else on this disk, and others count on it: the store has failed, and
    /// its next opening tells whether the log is whole. Returns the checkpoint and the oldest LSN
    /// that the WAL retains.
    pub fn unreadable(&mut self, lsn: Lsn, what: &str) -> Result<(Lsn, Lsn), StoreError> {
        self.check()?;
        if lsn > self.checkpoint {
            let cause = format!("entry {lsn} can't be read back: {what}");
            return Err(self.fail(StoreError::Failed { cause }));
        }
        // Entries behind it in its segment may be fine, but are read by way of it.
        let segment = self.log.segments().find(|(_, last, _)| *last >= lsn.0);
        let last = segment.map_or(lsn.0, |(_, last, _)| last);
        self.given_up = self.given_up.max(Lsn(last).min(self.checkpoint));
        let retained = self.retained();
        tracing::warn!(
            replica = %self.superblock.identity.replica, %lsn, what, %retained,
            "an entry of the WAL can't be read back, but it is in the extents"
        );
        self.drop_pins();
        Ok((self.checkpoint, retained))
    }
}

impl LogReadPlan {
    /// The next entries, up to about `bytes` of payload and `entries` of them, at least one; empty
    /// at the end. Blocks.
    pub fn next(&mut self, bytes: usize, entries: usize) -> Result<Vec<LogEntry>, LogReadError> {
        if let Some(stored) = &mut self.stored {
            let records = stored.next(bytes, entries).map_err(|error| {
                let lsn = Lsn(stored.next_index());
                LogReadError::Unreadable { lsn, what: error.to_string() }
            })?;
            if !records.is_empty() {
                return records
                    .into_iter()
                    .map(|record| {
                        let lsn = Lsn(record.index);
                        let damaged = || LogReadError::Unreadable {
                            lsn,
                            what: "its bytes are no entry of this LSN".to_owned(),
                        };
                        let (header, payload) = codec::entry(&record.body)
                            .filter(|(header, _)| header.lsn == lsn)
                            .ok_or_else(damaged)?;
                        Ok(LogEntry { header, crc: record.crc, payload })
                    })
                    .collect();
            }
            self.stored = None;
        }
        let mut out = Vec::new();
        let mut sum = 0;
        while out.len() < entries.max(1) {
            let Some(entry) = self.pushed_back.take().or_else(|| self.recent.next()) else { break };
            sum += entry.payload.len();
            if !out.is_empty() && sum > bytes {
                self.pushed_back = Some(entry);
                break;
            }
            out.push(entry);
        }
        Ok(out)
    }
}
