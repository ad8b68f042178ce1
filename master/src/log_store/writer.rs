//! The one thread that writes the journal.
//!
//! openraft's core task hands operations over and goes on; this thread writes what has gathered,
//! syncs it once, and only then tells each caller. So many appends share one fsync, and nothing
//! is told durable that is not.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use openraft::storage::LogFlushed;
use tokio::sync::{mpsc, oneshot};

use super::journal::{Journal, JournalError, Note};
use crate::raft::{LogId, TypeConfig, Vote};

/// Operations that may wait for the thread. openraft waits when it is full.
const QUEUE: usize = 256;

/// Whom to tell that an operation is durable.
pub(crate) enum Done {
    /// openraft's own callback.
    Flushed(LogFlushed<TypeConfig>),
    /// The operation's caller waits.
    Reply(oneshot::Sender<Result<(), Arc<JournalError>>>),
    /// Nobody.
    Nobody,
}

/// What to do.
pub(crate) enum Work {
    /// Append records.
    Records(Vec<(Note, Bytes)>),
    /// Write this with the next records, whenever they come: it may be lost in a crash.
    Hint(Bytes),
    /// Replace the vote.
    Vote(Vote),
    /// Let entries go.
    Purge(LogId),
}

/// One operation.
pub(crate) struct Operation {
    pub(crate) work: Work,
    pub(crate) done: Done,
}

/// The handle of the thread. Dropped last, it ends the thread and waits for it, so that the data
/// directory can be opened again at once.
#[derive(Debug)]
pub(crate) struct Writer {
    queue: Option<mpsc::Sender<Operation>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread.
    pub(crate) fn start(journal: Journal) -> io::Result<Self> {
        let (queue, operations) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("raft-journal".into())
            .spawn(move || State { journal, hint: None }.run(operations))?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Hands an operation over; waits while the queue is full.
    pub(crate) async fn submit(&self, operation: Operation) -> Result<(), Arc<JournalError>> {
        let sent = match &self.queue {
            Some(queue) => queue.send(operation).await.is_ok(),
            None => false,
        };
        if sent { Ok(()) } else { Err(Arc::new(JournalError::Closed)) }
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

struct State {
    journal: Journal,
    hint: Option<Bytes>,
}

impl State {
    fn run(mut self, mut operations: mpsc::Receiver<Operation>) {
        let mut batch = Vec::with_capacity(QUEUE);
        loop {
            // The first segments are made before the first entry comes, the next ones in time.
            if let Err(error) = self.journal.housekeep() {
                tracing::error!(%error, "the Raft log can't be written");
            }
            if operations.blocking_recv_many(&mut batch, QUEUE) == 0 {
                return self.seal();
            }
            let (works, told): (Vec<_>, Vec<_>) =
                batch.drain(..).map(|operation| (operation.work, operation.done)).unzip();
            let result = self.write(works).map_err(Arc::new);
            if let Err(error) = &result {
                tracing::error!(%error, "the Raft log can't be written");
            }
            for done in told {
                tell(done, &result);
            }
            // After the answers, so that nobody waits for it who has nothing more to ask.
            if operations.is_empty() {
                self.seal();
            }
        }
    }

    /// Nothing more is to be done now.
    fn seal(&mut self) {
        match self.journal.seal() {
            // It told then.
            Ok(()) | Err(JournalError::Closed) => {}
            Err(error) => tracing::error!(%error, "the Raft log can't be written"),
        }
    }

    /// Does a batch in order and makes it durable; neighbouring records share one sync.
    fn write(&mut self, batch: Vec<Work>) -> Result<(), JournalError> {
        let mut records = Vec::new();
        for work in batch {
            match work {
                Work::Records(more) => records.extend(more),
                Work::Hint(hint) => self.hint = Some(hint),
                Work::Vote(vote) => {
                    self.append(&mut records)?;
                    self.journal.vote(vote)?;
                }
                Work::Purge(upto) => {
                    self.append(&mut records)?;
                    self.journal.purge(upto)?;
                }
            }
        }
        self.append(&mut records)
    }

    fn append(&mut self, records: &mut Vec<(Note, Bytes)>) -> Result<(), JournalError> {
        if records.is_empty() {
            return Ok(());
        }
        records.extend(self.hint.take().map(|hint| (Note::Hint, hint)));
        self.journal.append(records)?;
        records.clear();
        Ok(())
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
