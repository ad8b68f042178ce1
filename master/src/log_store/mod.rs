//! The Raft log and the vote, durable.
//!
//! Every operation is one record in an append-only [journal]: a truncation does not
//! overwrite, it is written behind what it undoes. So a crash can only lose the newest records,
//! never tear an old one, and replaying the journal gives the log as it was.
//!
//! The vote is durable before [`save_vote`](RaftLogStorage::save_vote) returns, entries before
//! their callback is called, a purge before the files it makes needless are removed. A purge begins
//! once a snapshot that holds what it lets go is [durable](covered).

mod covered;
#[cfg(test)]
mod crash_tests;
mod image;
mod journal;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::{LogFlushed, RaftLogStorage};
use openraft::{
    AnyError, LogId, LogState, OptionalSend, RaftLogReader, StorageError, StorageIOError, Vote,
};
use tokio::sync::oneshot;

use crate::raft::{Entry, MemberId, TypeConfig};
pub(crate) use covered::Covered;
pub use image::ReplayError;
use image::{Image, Record};
use journal::Journal;
pub use journal::JournalError;
use sbk_wal::{Files, LogError, LogOptions, SlotError, Storage};
use writer::{Done, Operation, Work, Writer};

type Fault = StorageError<MemberId>;

/// Why the log can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The files can't be read or written.
    #[error(transparent)]
    Journal(JournalError),
    /// The files are damaged, are something else's, or make no sense.
    #[error(
        "{0}. What this member has promised can't be known any more, so it must not take part under \
         its id, with an older copy of its directory neither: remove this member from the cluster \
         and add one with a new id and an empty data directory. Without other members there is no \
         other copy of what was decided"
    )]
    Lost(#[source] JournalError),
    /// The writing thread can't be started.
    #[error("can't start the journal's thread: {0}")]
    Thread(#[source] std::io::Error),
}

impl From<JournalError> for OpenError {
    fn from(error: JournalError) -> Self {
        match &error {
            JournalError::Log(LogError::Foreign { .. } | LogError::Damaged { .. })
            | JournalError::Hard(SlotError::OtherKind { .. } | SlotError::Damaged { .. })
            | JournalError::Replay(_) => Self::Lost(error),
            JournalError::Log(_)
            | JournalError::Hard(_)
            | JournalError::Directory(_)
            | JournalError::Missing { .. }
            | JournalError::Closed => Self::Journal(error),
        }
    }
}

/// openraft's log store. Clones share it; the core task alone writes, readers read.
#[derive(Clone, Debug)]
pub struct LogStore {
    image: Arc<Mutex<Image>>,
    writer: Arc<Writer>,
    covered: Covered,
}

impl LogStore {
    /// Opens the log in `dir`, which exists, with `fresh` allowing that there is none yet.
    pub fn open(dir: &Path, fresh: bool) -> Result<Self, OpenError> {
        Self::open_in(Arc::new(Files::new(dir)), journal::OPTIONS, fresh)
    }

    fn open_in(
        storage: Arc<dyn Storage>,
        options: LogOptions,
        fresh: bool,
    ) -> Result<Self, OpenError> {
        let (journal, image) = Journal::open(&storage, options, fresh)?;
        let writer = Writer::start(journal).map_err(OpenError::Thread)?;
        let covered = Covered::default();
        Ok(Self { image: Arc::new(Mutex::new(image)), writer: Arc::new(writer), covered })
    }

    fn image(&self) -> MutexGuard<'_, Image> {
        // Each update is a single insert or split, so a panic elsewhere does not spoil it.
        self.image.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this log holds, or held until it was purged, exactly `id`.
    pub fn holds(&self, id: LogId<MemberId>) -> bool {
        self.image().holds(id)
    }

    /// The last entry that was purged.
    pub fn purged(&self) -> Option<LogId<MemberId>> {
        self.image().purged
    }

    /// For the state machine, to tell how far its snapshots reach.
    pub(crate) fn covered(&self) -> &Covered {
        &self.covered
    }

    /// Whether nothing was ever written: no vote, no entry.
    pub fn is_pristine(&self) -> bool {
        let image = self.image();
        image.vote.is_none() && image.last().is_none()
    }

    /// Hands work over and waits until it is durable.
    async fn write_through(&self, work: Work) -> Result<(), Arc<JournalError>> {
        let (reply, durable) = oneshot::channel();
        self.writer.submit(Operation { work, done: Done::Reply(reply) }).await?;
        durable.await.unwrap_or_else(|_| Err(Arc::new(JournalError::Closed)))
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, Fault> {
        let bounds = (range.start_bound().cloned(), range.end_bound().cloned());
        if is_empty(bounds) {
            return Ok(Vec::new());
        }
        Ok(self.image().entries.range(bounds).map(|(_, entry)| entry.clone()).collect())
    }
}

/// `BTreeMap::range` panics on bounds that cross.
fn is_empty((start, end): (Bound<u64>, Bound<u64>)) -> bool {
    let first = match start {
        Bound::Included(i) => i,
        Bound::Excluded(i) => i.saturating_add(1),
        Bound::Unbounded => 0,
    };
    match end {
        Bound::Included(i) => i < first,
        Bound::Excluded(i) => i <= first,
        Bound::Unbounded => false,
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, Fault> {
        let image = self.image();
        Ok(LogState { last_purged_log_id: image.purged, last_log_id: image.last() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<MemberId>) -> Result<(), Fault> {
        self.write_through(Work::Vote(*vote))
            .await
            .map_err(|e| StorageIOError::write_vote(AnyError::new(&*e)))?;
        self.image().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<MemberId>>, Fault> {
        Ok(self.image().vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId<MemberId>>) -> Result<(), Fault> {
        // Not synced: losing it costs replay only.
        let work = Work::Hint(Record::Committed(committed).encode());
        self.writer
            .submit(Operation { work, done: Done::Nobody })
            .await
            .map_err(|e| StorageIOError::write(AnyError::new(&*e)))?;
        self.image().committed = committed;
        Ok(())
    }

    /// The last saved position, if the log holds that very entry. It may not: the position of an
    /// installed snapshot can be saved before a crash that loses the snapshot, and then the
    /// entries below it were never known to be committed here.
    async fn read_committed(&mut self) -> Result<Option<LogId<MemberId>>, Fault> {
        let image = self.image();
        Ok(image.committed.filter(|&id| image.holds(id)))
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), Fault>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        {
            let mut image = self.image();
            for entry in entries {
                let record = Record::Append(entry);
                records.push((record.note(), record.encode()));
                image.apply(record).map_err(|e| StorageIOError::write_logs(AnyError::new(&e)))?;
            }
        }
        let operation = Operation { work: Work::Records(records), done: Done::Flushed(callback) };
        self.writer
            .submit(operation)
            .await
            .map_err(|e| StorageIOError::write_logs(AnyError::new(&*e)))?;
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId<MemberId>) -> Result<(), Fault> {
        let record = Record::Truncate(log_id.index);
        self.write_through(Work::Records(vec![(record.note(), record.encode())]))
            .await
            .map_err(|e| StorageIOError::write_logs(AnyError::new(&*e)))?;
        drop(self.image().entries.split_off(&log_id.index));
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId<MemberId>) -> Result<(), Fault> {
        self.covered.reach(log_id).await?;
        self.write_through(Work::Purge(log_id))
            .await
            .map_err(|e| StorageIOError::write_logs(AnyError::new(&*e)))?;
        self.image().purge(log_id);
        Ok(())
    }
}
