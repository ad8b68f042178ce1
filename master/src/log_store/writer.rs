//! The one thread that writes the journal.
//!
//! openraft's core task hands operations over and goes on; this thread writes what has gathered,
//! syncs it once, and only then tells each caller. So many appends share one fsync, and nothing
//! is told durable that is not.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use openraft::storage::LogFlushed;
use openraft::{LogId, Vote};
use tokio::sync::{mpsc, oneshot};

use super::image::Record;
use super::journal::{Journal, JournalError};
use crate::raft::{MemberId, TypeConfig};

/// Operations that may wait for the thread. openraft waits when it is full.
const QUEUE: usize = 256;
/// Bytes after which a segment is finished.
const SEGMENT_BYTES: u64 = 8 << 20;

/// Whom to tell that an operation is durable.
pub(crate) enum Done {
    /// openraft's own callback.
    Flushed(LogFlushed<TypeConfig>),
    /// The operation's caller waits.
    Reply(oneshot::Sender<Result<(), Arc<JournalError>>>),
    /// Nobody: the record may be lost in a crash.
    Nobody,
}

/// One operation: records to write, and what they mean to the segments.
pub(crate) struct Operation {
    pub(crate) records: Vec<Vec<u8>>,
    pub(crate) effect: Effect,
    pub(crate) done: Done,
}

/// What the thread must know of the records that it writes as bytes.
pub(crate) enum Effect {
    Vote(Vote<MemberId>),
    Committed(Option<LogId<MemberId>>),
    /// Entries up to this index.
    Append(u64),
    Truncate,
    Purge(LogId<MemberId>),
}

/// The handle of the thread. Dropped last, it ends the thread and waits for it, so that the data
/// directory can be opened again at once.
#[derive(Debug)]
pub(crate) struct Writer {
    queue: Option<mpsc::Sender<Operation>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread. `hard` is the hard state, `newest_index` the last index of an entry in
    /// each segment, as replay found them.
    pub(crate) fn start(
        journal: Journal,
        hard: HardState,
        newest_index: BTreeMap<u64, u64>,
    ) -> io::Result<Self> {
        let (queue, operations) = mpsc::channel(QUEUE);
        let state = State { journal, hard, newest_index };
        let thread = std::thread::Builder::new()
            .name("raft-journal".into())
            .spawn(move || state.run(operations))?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Hands an operation over; waits while the queue is full.
    pub(crate) async fn submit(&self, operation: Operation) -> Result<(), Arc<JournalError>> {
        let sent = match &self.queue {
            Some(queue) => queue.send(operation).await.is_ok(),
            None => false,
        };
        if sent { Ok(()) } else { Err(Arc::new(JournalError::Failed)) }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the journal's thread panicked");
        }
    }
}

/// What every new segment starts with.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HardState {
    pub(crate) vote: Option<Vote<MemberId>>,
    pub(crate) committed: Option<LogId<MemberId>>,
    pub(crate) purged: Option<LogId<MemberId>>,
}

struct State {
    journal: Journal,
    hard: HardState,
    newest_index: BTreeMap<u64, u64>,
}

impl State {
    fn run(mut self, mut operations: mpsc::Receiver<Operation>) {
        let mut batch = Vec::with_capacity(QUEUE);
        while operations.blocking_recv_many(&mut batch, QUEUE) > 0 {
            let result = self.write(&batch).map_err(Arc::new);
            if let Err(error) = &result {
                tracing::error!(%error, "the raft journal can't be written");
            }
            for operation in batch.drain(..) {
                tell(operation.done, &result);
            }
        }
    }

    /// Writes a batch and makes it durable, then drops segments that it made needless.
    fn write(&mut self, batch: &[Operation]) -> Result<(), JournalError> {
        let mut purged = false;
        let mut must_sync = false;
        for operation in batch {
            self.journal.append(&operation.records)?;
            must_sync |= !matches!(operation.done, Done::Nobody);
            match operation.effect {
                Effect::Vote(vote) => self.hard.vote = Some(vote),
                Effect::Committed(committed) => self.hard.committed = committed,
                Effect::Append(last) => {
                    let newest = self.newest_index.entry(self.journal.segment()).or_default();
                    *newest = last.max(*newest);
                }
                Effect::Truncate => {}
                Effect::Purge(upto) => {
                    self.hard.purged = self.hard.purged.max(Some(upto));
                    purged = true;
                }
            }
        }
        if must_sync {
            self.journal.sync()?;
        }
        if self.journal.segment_bytes() >= SEGMENT_BYTES {
            let HardState { vote, committed, purged } = self.hard;
            self.journal.rotate(&super::encode(&Record::Head { vote, committed, purged }))?;
        }
        if purged { self.drop_needless() } else { Ok(()) }
    }

    /// Drops the oldest segments as long as each holds only purged entries. Runs after the
    /// purge's record is durable: the other way round a crash could leave a log that starts late
    /// and does not say why.
    fn drop_needless(&mut self) -> Result<(), JournalError> {
        let Some(purged) = self.hard.purged else { return Ok(()) };
        loop {
            let mut segments = self.journal.segments();
            let (Some(oldest), Some(_)) = (segments.next(), segments.next()) else {
                return Ok(());
            };
            drop(segments);
            if self.newest_index.get(&oldest).is_some_and(|&last| last > purged.index) {
                return Ok(());
            }
            self.journal.drop_oldest()?;
            self.newest_index.remove(&oldest);
        }
    }
}

fn tell(done: Done, result: &Result<(), Arc<JournalError>>) {
    match done {
        Done::Flushed(callback) => {
            callback.log_io_completed(result.clone().map_err(io::Error::other));
        }
        Done::Reply(reply) => {
            // A caller that went away has nothing to learn.
            reply.send(result.clone()).ok();
        }
        Done::Nobody => {}
    }
}
