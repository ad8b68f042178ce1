//! Making entries durable, many with one write and one sync.

use bytes::Bytes;
use sbk_engine::types::Lsn;
use sbk_wal::{Append, Appended, Crc, Marks, Record, Sync, Synced};

use super::codec;
use super::core::Store;
use super::entries::{Entry, Fate};
use super::error::StoreError;
use super::placement::{Placed, Placement};

/// Most entries of one batch: two buffers each fit one vectored write.
const BATCH_ENTRIES: usize = 500;

/// Entries on their way to the WAL: one write, and one sync unless a [`WalSync`] is to follow. Or the
/// payloads of large ones, whose entries go with the next batch.
#[derive(Debug)]
pub struct WalBatch(Part);

#[derive(Debug)]
enum Part {
    Payloads(Placement),
    Entries(Append),
}

/// A sync of batches that were only written.
#[derive(Debug)]
pub struct WalSync(Sync);

/// What came of a [`WalSync`].
#[derive(Debug)]
pub struct SyncResult(Synced);

/// What came of a [`WalBatch`].
#[derive(Debug)]
pub struct BatchResult(Outcome);

#[derive(Debug)]
enum Outcome {
    Payloads(Result<Placed, StoreError>),
    Entries(Appended),
}

impl WalBatch {
    /// Writes and syncs. Blocks.
    pub fn run(self) -> BatchResult {
        BatchResult(match self.0 {
            Part::Payloads(placement) => Outcome::Payloads(placement.run()),
            Part::Entries(append) => Outcome::Entries(append.run()),
        })
    }

    /// Writes, and leaves the sync of the log to a [`WalSync`]. Blocks.
    pub fn write_only(self) -> BatchResult {
        BatchResult(match self.0 {
            Part::Payloads(placement) => Outcome::Payloads(placement.run()),
            Part::Entries(append) => Outcome::Entries(append.write_only()),
        })
    }
}

impl BatchResult {
    /// Whether it failed: what was written before may be gone.
    pub fn failed(&self) -> bool {
        match &self.0 {
            Outcome::Payloads(result) => result.is_err(),
            Outcome::Entries(appended) => appended.failed(),
        }
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
    /// there is none or a batch is out. If there are large ones among them that go by reference, their
    /// payloads come first, and the entries with the next batch.
    pub fn take_batch(&mut self) -> Option<WalBatch> {
        let next = Lsn(self.log.next_index());
        if self.batching || self.failed.is_some() || next > self.end() {
            return None;
        }
        // What was placed goes into the log before more is: otherwise it could wait for ever.
        if self.batch_of(next, false).all(|entry| !matches!(entry.fate, Fate::Placed(_))) {
            let last = self.batch_of(next, false).last().map_or(next, |entry| entry.header.lsn);
            if let Some(placement) = self.plan_placement(next, last) {
                self.batching = true;
                return Some(WalBatch(Part::Payloads(placement)));
            }
        }
        let stamper = &self.image.stamper;
        let metas: Vec<Vec<u8>> = self
            .batch_of(next, true)
            .map(|entry| match &entry.fate {
                Fate::Placed(homes) => {
                    let Entry { header, crc, stamps, .. } = entry;
                    codec::put_reference(header, *crc, stamps, homes, stamper)
                }
                Fate::Open | Fate::Logged | Fate::Placing => {
                    codec::put_entry(&entry.header, &entry.stamps, stamper)
                }
            })
            .collect();
        let records = self.entries.from(next).zip(&metas).map(|(entry, meta)| match entry.fate {
            Fate::Placed(_) => Record { meta, payload: Bytes::new(), crc: sbk_wal::crc32c(meta) },
            Fate::Open | Fate::Logged | Fate::Placing => {
                let payload = entry.payload.clone().expect("it is kept until it is durable");
                let crc = match stamper.has_key() {
                    true => Crc::default().with(meta).with(&payload).value(),
                    false => entry.crc,
                };
                Record { meta, payload, crc }
            }
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
        Some(WalBatch(Part::Entries(append)))
    }

    /// The entries from `next` on that one batch takes; `decided`: before the first one of which is yet to be
    /// decided whether it goes by reference.
    fn batch_of(&self, next: Lsn, decided: bool) -> impl Iterator<Item = &Entry> {
        let mut bytes = 0;
        let (most, large) = (self.options.batch_bytes, self.options.large_write_bytes);
        self.entries.from(next).take(BATCH_ENTRIES).take_while(move |entry| {
            let open = entry.fate == Fate::Open && entry.header.kind.payload_len() >= large;
            let before = bytes;
            bytes += entry.logged_len();
            (before == 0 || bytes <= most) && !(decided && open)
        })
    }

    /// Takes a batch's outcome back. Returns the log's durable end. After an error the store has
    /// failed.
    pub fn batch_done(&mut self, result: BatchResult) -> Result<Lsn, StoreError> {
        assert!(self.batching, "a batch is out");
        self.batching = false;
        self.check()?;
        let appended = match result.0 {
            Outcome::Payloads(placed) => {
                let placed = placed.map_err(|e| self.fail(e))?;
                self.placement_done(placed);
                return Ok(self.durable);
            }
            Outcome::Entries(appended) => appended,
        };
        let end = self.log.append_done(appended).map_err(|e| self.fail(e.into()))?;
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
