//! The disks of a node: each data directory or device with threads of its own, and whether it works.
//!
//! Nothing that one disk does, or no longer does, may hold up what is on the others. So whatever blocks on
//! a disk runs on its own threads: calls that hang use up those and no others. A disk that fails takes its
//! replicas with it: their stores are closed, and opened again when it is back; the node serves on with
//! the rest.

mod watch;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use sbk_store::DirId;
use serde::Serialize;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::watch as channel;

pub use crate::space::DiskRoom;
pub use watch::{Watched, share_room};

/// Calls of one disk that may block at a time; more wait for one of these to end.
const THREADS: usize = 512;

/// A data directory's disk, or a block device.
#[derive(Debug)]
pub struct DataDisk {
    path: PathBuf,
    recordings: Option<PathBuf>,
    threads: Threads,
    state: channel::Sender<DiskState>,
}

/// What is known of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DiskState {
    /// The id of the directory or device; absent as long as it was never read.
    pub id: Option<String>,
    /// Bytes that replicas may claim there.
    pub capacity_bytes: u64,
    /// Bytes that are free: of a file system that has several of the node's directories, an equal part.
    pub free_bytes: u64,
    /// Bytes that replicas take.
    pub used_bytes: u64,
    /// Bytes that replicas could take there in all.
    pub size_bytes: u64,
    /// How much room there is.
    pub room: DiskRoom,
    /// Free space in bytes below which writes that need new space wait.
    pub growth_watermark_bytes: u64,
    /// Free space in bytes below which no new replica is to come; at least the growth watermark.
    pub placement_watermark_bytes: u64,
    /// Why it can't be used; absent if it can.
    pub fault: Option<Fault>,
}

/// Why a disk can't be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// In words.
    pub reason: String,
    /// Since when, in milliseconds of the Unix epoch.
    pub since_ms: u64,
}

impl Fault {
    /// One that is noticed now.
    pub fn now(reason: String) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { reason, since_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX) }
    }
}

impl DataDisk {
    /// The disk below the directory or device `path`, in the given state; what replicas there did before they failed
    /// is kept in `recordings`.
    ///
    /// # Panics
    /// If the system has no thread left.
    pub fn new(path: &Path, recordings: Option<PathBuf>, state: DiskState) -> Arc<Self> {
        let (path, threads) = (path.to_owned(), Threads::new());
        let state = channel::Sender::new(state);
        Arc::new(Self { path, recordings, threads, state })
    }

    /// The data directory, or the device.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where what replicas did before they failed is kept; `None` keeps nothing.
    pub fn recordings(&self) -> Option<&Path> {
        self.recordings.as_deref()
    }

    /// Its own threads: whatever may block on it is to run there, by
    /// [`spawn_blocking`](Handle::spawn_blocking).
    pub fn threads(&self) -> &Handle {
        self.threads.0.as_ref().expect("is there until it is dropped").handle()
    }

    /// What is known of it now.
    pub fn state(&self) -> DiskState {
        self.state.borrow().clone()
    }

    /// Why it can't be used, if so.
    pub fn fault(&self) -> Option<Fault> {
        self.state.borrow().fault.clone()
    }

    /// Tells of each change of its state.
    pub fn watch(&self) -> channel::Receiver<DiskState> {
        self.state.subscribe()
    }

    /// Changes what is known of it.
    pub fn set(&self, change: impl FnOnce(&mut DiskState)) {
        self.state.send_if_modified(|state| {
            let before = state.clone();
            change(state);
            *state != before
        });
    }

    /// Returns once it can't be used, with why.
    pub async fn failed(&self) -> Fault {
        let mut watch = self.watch();
        let state = watch.wait_for(|state| state.fault.is_some()).await;
        let fault = state.expect("the sender is in this disk").fault.clone();
        fault.expect("was waited for")
    }

    /// Returns once it can be used.
    pub async fn works(&self) {
        let mut watch = self.watch();
        let state = watch.wait_for(|state| state.fault.is_none()).await;
        drop(state.expect("the sender is in this disk"));
    }
}

/// What stands for directories of the node that were not given.
///
/// # Panics
/// If the system has no thread left.
pub fn not_given(missing: &BTreeSet<DirId>) -> Arc<DataDisk> {
    let ids: Vec<_> = missing.iter().map(DirId::to_string).collect();
    let ids = ids.join(",");
    let reason = format!(
        "the node had it, and neither --data-dir nor --device names it. Name it, or if it is lost for good say so with \
         --lost-dir {ids}"
    );
    tracing::error!(missing = ids, reason, "a data directory is missing");
    let state = DiskState { fault: Some(Fault::now(reason)), ..DiskState::default() };
    DataDisk::new(Path::new("not given"), None, state)
}

/// A runtime that runs nothing but blocking work.
#[derive(Debug)]
struct Threads(Option<Runtime>);

impl Threads {
    fn new() -> Self {
        let mut builder = Builder::new_current_thread();
        let runtime = builder.max_blocking_threads(THREADS).thread_name("sbk-disk").build();
        Self(Some(runtime.expect("a runtime without drivers needs nothing")))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // Work that hangs is waited for by nobody.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
