//! Reading entries back, for replicas that missed them.

use bytes::Bytes;
use sbk_engine::replication::log::EntryHeader;
use sbk_engine::types::Lsn;
use sbk_wal::{LogError, LogReader};

use super::codec;
use super::core::Store;
use super::error::LogReadError;

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
    /// Reads the entries `first..=last`: recent ones from memory, older ones from the WAL.
    ///
    /// # Panics
    /// If `last` is behind the log's end, or not durable and not in memory any more, which can't
    /// be.
    pub fn read_log(&self, first: Lsn, last: Lsn) -> Result<LogReadPlan, LogReadError> {
        assert!(last <= self.end(), "entry {last} is not in the log");
        let mut recent = Vec::new();
        let mut from = last.next();
        while from > first {
            let Some(entry) = self.entries.get(from.prev()) else { break };
            let Some(payload) = &entry.payload else { break };
            recent.push(LogEntry {
                header: entry.header,
                crc: entry.crc,
                payload: payload.clone(),
            });
            from = from.prev();
        }
        recent.reverse();
        let stored = if from > first {
            let reader = self.log.reader(first.0, from.prev().0).map_err(|error| match error {
                LogError::Recycled { index, retained } => {
                    LogReadError::Recycled { lsn: Lsn(index), retained: Lsn(retained) }
                }
                other => LogReadError::Log(other),
            })?;
            Some(reader)
        } else {
            None
        };
        Ok(LogReadPlan { stored, recent: recent.into_iter(), pushed_back: None })
    }
}

impl LogReadPlan {
    /// The next entries, up to about `bytes` of payload and `entries` of them, at least one; empty
    /// at the end. Blocks.
    pub fn next(&mut self, bytes: usize, entries: usize) -> Result<Vec<LogEntry>, LogReadError> {
        if let Some(stored) = &mut self.stored {
            let records = stored.next(bytes, entries).map_err(LogReadError::Log)?;
            if !records.is_empty() {
                return records
                    .into_iter()
                    .map(|record| {
                        let lsn = Lsn(record.index);
                        let what = "its bytes are no entry of this LSN";
                        let (header, payload) = codec::entry(&record.body)
                            .filter(|(header, _)| header.lsn == lsn)
                            .ok_or(LogReadError::Damaged { lsn, what })?;
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
