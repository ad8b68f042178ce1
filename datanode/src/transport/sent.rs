//! What was sent to another replica, for people: bytes of entries and of base blocks, and how far a base lane
//! has come. Counted where it is sent, read where the status is published; nothing is decided by it.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// Payload bytes sent to one replica in this process, over all sessions.
#[derive(Debug, Default)]
pub struct Sent {
    entries: AtomicU64,
    base: AtomicU64,
}

impl Sent {
    pub(super) fn add_entries(&self, bytes: usize) {
        self.entries.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn add_base(&self, bytes: usize) {
        self.base.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Of entries of the log: what it missed, and what clients write.
    pub fn entries_bytes(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// Of base blocks, in deltas and rebuilds. Zeros are not sent.
    pub fn base_bytes(&self) -> u64 {
        self.base.load(Ordering::Relaxed)
    }
}

/// How far a base lane has come.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) regions: AtomicU64,
    pub(super) regions_sent: AtomicU64,
    pub(super) bytes_most: AtomicU64,
    pub(super) bytes_sent: AtomicU64,
    pub(super) bytes_taken: AtomicU64,
}

/// The same, at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BaseSent {
    /// Regions of 1 MiB that are to be sent; 0 before it is known.
    pub regions: u64,
    /// Those that were.
    pub regions_sent: u64,
    /// Bytes of all of them: zeros take next to nothing on the way, so fewer are sent.
    pub bytes_most: u64,
    /// Bytes that were sent.
    pub bytes_sent: u64,
    /// Bytes that the receiver has written.
    pub bytes_taken: u64,
}

impl Progress {
    pub(super) fn now(&self) -> BaseSent {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        BaseSent {
            regions: of(&self.regions),
            regions_sent: of(&self.regions_sent),
            bytes_most: of(&self.bytes_most),
            bytes_sent: of(&self.bytes_sent),
            bytes_taken: of(&self.bytes_taken),
        }
    }
}
