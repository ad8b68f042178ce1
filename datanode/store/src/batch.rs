//! Making entries durable, many with one write and one sync.

use sbk_engine::types::Lsn;
use sbk_wal::{Append, Appended, Marks, Record, Sync, Synced};

use super::core::Store;
use super::error::StoreError;
use crate::entry::{CANONICAL_HEADER, canonical};

/// Most entries of one batch: two buffers each fit one vectored write.
const BATCH_ENTRIES: usize = 500;

/// Entries on their way to the WAL: one write, and one sync unless a [`WalSync`] is to follow.
#[derive(Debug)]
pub struct WalBatch(Append);

/// A sync of batches that were only written.
#[derive(Debug)]
pub struct WalSync(Sync);

/// What came of a [`WalSync`].
#[derive(Debug)]
pub struct SyncResult(Synced);

/// What came of a [`WalBatch`].
#[derive(Debug)]
pub struct BatchResult(Appended);

impl WalBatch {
    /// Writes and syncs. Blocks.
    pub fn run(self) -> BatchResult {
        BatchResult(self.0.run())
    }

    /// Writes, and leaves the sync to a [`WalSync`]. Blocks.
    pub fn write_only(self) -> BatchResult {
        BatchResult(self.0.write_only())
    }
}

impl BatchResult {
    /// Whether it failed: what was written before may be gone.
    pub fn failed(&self) -> bool {
        self.0.failed()
    }
}

impl WalSync {
    /// Syncs. Blocks.
    pub fn run(self) -> SyncResult {
        SyncResult(self.0.run())
    }
}

impl SyncResult {
    /// Whether it failed: what was written before may be gone.
    pub fn failed(&self) -> bool {
        self.0.failed()
    }
}

impl Store {
    /// The entries that were appended since the last batch, as many as one batch takes; `None` if
    /// there is none or a batch is out.
    pub fn take_batch(&mut self) -> Option<WalBatch> {
        let next = Lsn(self.log.next_index());
        if self.batching || self.failed.is_some() || next > self.end() {
            return None;
        }
        let mut bytes = 0;
        let metas: Vec<[u8; CANONICAL_HEADER]> = self
            .entries
            .from(next)
            .take(BATCH_ENTRIES)
            .take_while(|entry| {
                let before = bytes;
                bytes += entry.header.kind.payload_len();
                before == 0 || bytes <= self.options.batch_bytes
            })
            .map(|entry| canonical(&entry.header))
            .collect();
        let records = self.entries.from(next).zip(&metas).map(|(entry, meta)| Record {
            meta,
            payload: entry.payload.clone().expect("an entry keeps its payload until it is durable"),
            crc: entry.crc,
        });
        let marks = Marks { durable: self.durable.0, committed: self.committed().0 };
        let (append, places) = match self.log.plan_append(records, marks) {
            Ok(planned) => planned,
            Err(error) => {
                self.fail(error.into());
                return None;
            }
        };
        let mut lsn = next;
        for place in places {
            let entry = self.entries.get_mut(lsn).expect("it was just written from there");
            entry.place = Some(place);
            lsn = lsn.next();
        }
        self.batching = true;
        Some(WalBatch(append))
    }

    /// Takes a batch's outcome back. Returns the log's durable end. After an error the store has
    /// failed.
    pub fn batch_done(&mut self, result: BatchResult) -> Result<Lsn, StoreError> {
        assert!(self.batching, "a batch is out");
        self.batching = false;
        self.check()?;
        let end = self.log.append_done(result.0).map_err(|e| self.fail(e.into()))?;
        Ok(self.durable_to(end))
    }

    /// Everything up to here is in the WAL's file, synced or not.
    pub fn written(&self) -> Lsn {
        Lsn(self.log.written())
    }

    /// A sync of what was only written, if there is any and no sync is out. May run while a batch does.
    pub fn take_sync(&mut self) -> Option<WalSync> {
        if self.failed.is_some() {
            return None;
        }
        self.log.plan_sync().map(WalSync)
    }

    /// Takes a sync's outcome back. Returns the log's durable end. After an error the store has failed.
    pub fn sync_done(&mut self, result: SyncResult) -> Result<Lsn, StoreError> {
        self.check()?;
        let end = self.log.sync_done(result.0).map_err(|e| self.fail(e.into()))?;
        Ok(self.durable_to(end))
    }

    fn durable_to(&mut self, end: u64) -> Lsn {
        // The table tells of durable entries only.
        for entry in self.entries.from(self.durable.next()) {
            if entry.header.lsn.0 > end {
                break;
            }
            self.superblock.kept.table.observe(&entry.header);
        }
        self.durable = Lsn(end);
        self.entries.trim(self.durable, self.checkpoint);
        self.durable
    }
}
