//! The applied state: openraft's state machine around the engine's authority.
//!
//! The state lives in memory. What a restart starts from is the newest of the [cache] in
//! sled, which a member that stops in order leaves, and the [snapshot] that can be trusted;
//! openraft then applies the rest of the log again.

mod cache;
#[cfg(test)]
mod install_tests;
mod machine;
mod snapshot;
#[cfg(test)]
mod tests;

use std::fs;
use std::io::{self, Cursor};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use openraft::storage::RaftStateMachine;
use openraft::{AnyError, OptionalSend, RaftSnapshotBuilder, StorageError, StorageIOError};
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::log_store::{Covered, LogStore};
use crate::raft::{Entry, LogId, MemberId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};
use cache::Cache;
pub use cache::CacheError;
pub use machine::{Answer, Applied, Proposal};
pub use snapshot::SnapshotError;

type Fault = StorageError<MemberId>;

/// Why the applied state can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory can't be made.
    #[error("make {path}: {source}")]
    Directory {
        /// Which.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// The database.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The snapshots.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A snapshot's contents make no sense.
    #[error("a snapshot's contents can't be read: {0}. Was it written by a newer version?")]
    Contents(#[source] serde_json::Error),
    /// The log starts behind everything that could be read.
    #[error(
        "the applied state is lost: the log was purged up to entry {purged}, and what can be read \
         ends at {found:?}. Remove this member from the cluster and add a new one"
    )]
    Incomplete {
        /// The last purged entry.
        purged: u64,
        /// The last entry in the state that could be read.
        found: Option<u64>,
    },
}

/// openraft's state machine. Clones share it; openraft's worker alone changes it.
#[derive(Clone, Debug)]
pub struct StateMachine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    applied: RwLock<Applied>,
    /// The index of the last applied entry, for whoever waits for changes.
    changes: watch::Sender<u64>,
    cache: Cache,
    snapshots: PathBuf,
    /// What the log may let go.
    covered: Covered,
}

impl StateMachine {
    /// Opens the state in `dir`, which exists; `log` tells what in it can be trusted.
    pub fn open(dir: &Path, log: &LogStore) -> Result<Self, OpenError> {
        let snapshots = dir.join("snapshots");
        fs::create_dir_all(&snapshots)
            .map_err(|source| OpenError::Directory { path: snapshots.clone(), source })?;
        snapshot::settle(&snapshots)?;
        let cache = Cache::new(dir);
        let mut applied = match snapshot::load_newest(&snapshots)? {
            Some(loaded) => decode(&loaded.data).map_err(OpenError::Contents)?,
            None => Applied::default(),
        };
        log.covered().advance(applied.last);
        match cache.take()? {
            Some(kept) if kept.last > applied.last && kept.last.is_some_and(|id| log.holds(id)) => {
                applied = kept;
            }
            Some(kept) if kept.last > applied.last => {
                tracing::warn!(
                    kept = ?kept.last.map(|id| id.index),
                    "the kept applied state is not what the log says; it is made again"
                );
            }
            Some(_) | None => {}
        }
        if let Some(purged) = log.purged()
            && applied.last.is_none_or(|last| last.index < purged.index)
        {
            let found = applied.last.map(|id| id.index);
            return Err(OpenError::Incomplete { purged: purged.index, found });
        }
        let changes = watch::Sender::new(applied.last.map_or(0, |id| id.index));
        let covered = log.covered().clone();
        let inner = Inner { applied: RwLock::new(applied), changes, cache, snapshots, covered };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The state, for reading. Hold it briefly: applying waits.
    pub fn read(&self) -> RwLockReadGuard<'_, Applied> {
        // Nothing in sbk catches a panic while it applies: release builds abort, and in debug
        // builds the worker is gone and nothing more is served.
        self.inner.applied.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Applied> {
        self.inner.applied.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the index of the last applied entry whenever it grows.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// Keeps the state in sled, for a quick restart. To be called when the member stops: what is
    /// applied afterwards is not in it.
    pub fn keep(&self) -> Result<(), CacheError> {
        self.inner.cache.keep(&self.read())
    }

    /// Saves a snapshot, durably.
    async fn save(&self, meta: &SnapshotMeta, data: Vec<u8>) -> Result<(), Fault> {
        let (dir, saved) = (self.inner.snapshots.clone(), meta.clone());
        blocking(move || snapshot::save(&dir, &saved, &data)).await?;
        self.inner.covered.advance(meta.last_log_id);
        Ok(())
    }

    async fn install(&self, meta: &SnapshotMeta, data: Vec<u8>) -> Result<(), Fault> {
        let installed = decode(&data).map_err(|e| snapshot_fault(meta, &e))?;
        assert_eq!(
            installed.last, meta.last_log_id,
            "a snapshot's contents end at the entry that it is named for"
        );
        self.save(meta, data).await?;
        let after = installed.last.map_or(0, |id| id.index);
        *self.write() = installed;
        self.inner.changes.send_replace(after);
        tracing::info!(index = after, "a snapshot was installed");
        Ok(())
    }

    async fn build(&self) -> Result<Snapshot, Fault> {
        // One read lock for all of it: the contents end at the entry that the meta names.
        let (meta, data) = {
            let applied = self.read();
            let meta = SnapshotMeta {
                last_log_id: applied.last,
                last_membership: applied.membership.clone(),
                snapshot_id: applied.last.map_or_else(|| "empty".to_owned(), |id| id.to_string()),
            };
            (meta, serde_json::to_vec(&*applied).map_err(|e| write_fault(&e))?)
        };
        self.save(&meta, data.clone()).await?;
        tracing::info!(index = meta.last_log_id.map(|id| id.index), "a snapshot was built");
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(data)) })
    }

    async fn current(&self) -> Result<Option<Snapshot>, Fault> {
        let dir = self.inner.snapshots.clone();
        let loaded = blocking(move || snapshot::load_newest(&dir)).await?;
        Ok(loaded.map(|l| Snapshot { meta: l.meta, snapshot: Box::new(Cursor::new(l.data)) }))
    }

    /// openraft's worker ends with the first failure of any kind, and obeys nothing that is queued
    /// behind it: whoever waits for a snapshot must know. [The worker failed to read a snapshot for another
    /// member, the one to install was next, and the core, whose purge waited for it, was never told.]
    async fn told<T>(&self, work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
        work.await.inspect_err(|fault| self.inner.covered.fail(fault))
    }
}

fn decode(data: &[u8]) -> Result<Applied, serde_json::Error> {
    serde_json::from_slice(data)
}

fn write_fault(error: &(impl std::error::Error + 'static)) -> Fault {
    StorageIOError::write_state_machine(AnyError::new(error)).into()
}

fn snapshot_fault(meta: &SnapshotMeta, error: &(impl std::error::Error + 'static)) -> Fault {
    StorageIOError::write_snapshot(Some(meta.signature()), AnyError::new(error)).into()
}

/// Runs file work away from the async threads.
async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, Fault>
where
    T: Send + 'static,
    E: std::error::Error + Send + 'static,
{
    match spawn_blocking(work).await {
        Ok(result) => result.map_err(|e| write_fault(&e)),
        Err(e) => Err(write_fault(&e)),
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), Fault> {
        let applied = self.read();
        Ok((applied.last, applied.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Answer>, Fault>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let (answers, after) = {
            let mut applied = self.write();
            let answers: Vec<_> = entries.into_iter().map(|e| applied.apply(e)).collect();
            (answers, applied.last.map_or(0, |id| id.index))
        };
        self.inner.changes.send_replace(after);
        Ok(answers)
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, Fault> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), Fault> {
        self.told(self.install(meta, snapshot.into_inner())).await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, Fault> {
        self.told(self.current()).await
    }
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    async fn build_snapshot(&mut self) -> Result<Snapshot, Fault> {
        self.told(self.build()).await
    }
}
