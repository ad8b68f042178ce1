//! Memory that the stores of a process have together for payloads of recent entries.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// So many bytes for all stores that use it, in equal shares. [Each had its own 16 MiB, so that a node with
/// hundreds of replicas grew by gigabytes.]
#[derive(Debug)]
pub struct TailMemory {
    bytes: u64,
    stores: AtomicU64,
}

/// One store's share; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share(Arc<TailMemory>);

impl TailMemory {
    /// Memory of `bytes`.
    pub fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self { bytes, stores: AtomicU64::new(0) })
    }

    pub(super) fn share(self: &Arc<Self>) -> Share {
        self.stores.fetch_add(1, Ordering::Relaxed);
        Share(Arc::clone(self))
    }
}

impl Share {
    /// What it is now: less, the more stores there are.
    pub(super) fn bytes(&self) -> u64 {
        self.0.bytes / self.0.stores.load(Ordering::Relaxed).max(1)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.0.stores.fetch_sub(1, Ordering::Relaxed);
    }
}
