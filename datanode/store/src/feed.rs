//! Reading entries back, for replicas that missed them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use sbk_engine::replication::log::EntryHeader;
use sbk_engine::types::Lsn;
use sbk_wal::{LogError, LogReader, ReadRecord};

use super::codec::{self, Logged, Reference, Stored};
use super::core::Store;
use super::entries::Entry;
use super::error::{LogReadError, StoreError};
use super::image::{Image, bytes};
use super::read::Placed;

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
    /// What was read of it and not returned yet.
    ahead: VecDeque<ReadRecord>,
    /// Where the payloads are that entries refer to.
    image: Arc<Image>,
    /// The log begins here: payloads that older entries refer to may be gone.
    log_begins: Arc<AtomicU64>,
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
        Ok(LogReadPlan {
            stored,
            ahead: VecDeque::new(),
            image: Arc::clone(&self.image),
            log_begins: Arc::clone(&self.log_begins),
            recent: recent.into_iter(),
            pushed_back: None,
        })
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
        if self.stored.is_some() {
            let read = self.next_stored(bytes, entries)?;
            if !read.is_empty() {
                return Ok(read);
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

    /// The same of what is on the disk.
    fn next_stored(&mut self, bytes: usize, entries: usize) -> Result<Vec<LogEntry>, LogReadError> {
        if self.ahead.is_empty()
            && let Some(stored) = &mut self.stored
        {
            let read = stored.next(bytes, entries).map_err(|error| {
                let lsn = Lsn(stored.next_index());
                LogReadError::Unreadable { lsn, what: error.to_string() }
            })?;
            self.ahead.extend(read);
        }
        let mut out = Vec::new();
        let mut sum = 0;
        while out.len() < entries.max(1)
            && let Some(record) = self.ahead.pop_front()
        {
            let lsn = Lsn(record.index);
            let damaged = || LogReadError::Unreadable {
                lsn,
                what: "its bytes are no entry of this LSN".to_owned(),
            };
            let stored = codec::stored(&record.body, record.crc, &self.image.stamper)
                .filter(|s| s.header().lsn == lsn)
                .ok_or_else(damaged)?;
            // A reference is small, and what it refers to is not.
            sum += stored.header().kind.payload_len() as usize;
            if !out.is_empty() && sum > bytes {
                self.ahead.push_front(record);
                break;
            }
            out.push(match stored {
                Stored::Entry(Logged { header, crc, payload, .. }) => {
                    LogEntry { header, crc, payload }
                }
                Stored::Reference(reference) => self.fetch(reference)?,
            });
        }
        Ok(out)
    }

    /// The payload that an entry refers to.
    fn fetch(&self, reference: Reference) -> Result<LogEntry, LogReadError> {
        let Reference { header, crc, stamps, homes } = reference;
        let lsn = header.lsn;
        let unreadable = |what: String| {
            // Whatever lies there now may be another's.
            let retained = Lsn(self.log_begins.load(Ordering::SeqCst));
            if lsn < retained {
                return LogReadError::Recycled { lsn, retained };
            }
            LogReadError::Unreadable { lsn, what }
        };
        let range = header.kind.range().ok_or_else(|| unreadable("it has no blocks".to_owned()))?;
        let range = range.lba.0..range.end();
        let mut data = BytesMut::zeroed(bytes(range.end - range.start) as usize);
        let placed = Placed {
            lsn,
            homes: Arc::new(homes),
            skip: 0,
            stamps,
            image: Arc::clone(&self.image),
            done: Arc::default(),
        };
        match self.image.read_placed(&range, &placed, &mut data) {
            Ok(bad) if bad.is_empty() => Ok(LogEntry { header, crc, payload: data.freeze() }),
            Ok(bad) => Err(unreadable(format!("its payload is damaged: {}", bad[0].rotten()))),
            Err(error) => Err(unreadable(error.to_string())),
        }
    }
}
