//! Why a store can't be opened, read or written.

use std::io;
use std::path::PathBuf;

use sbk_engine::types::{Lba, Lsn};
use sbk_wal::{LogError, SlotError};

/// Why a store can't be opened or written. After any error but a refusal the store is dropped and
/// opened again: what reached the disk is unknown.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system said no.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was tried, as in `write`.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// The WAL can't be opened or written.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The superblock or the log state can't be opened or written.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// There is no store. An empty or wiped directory is never taken for one.
    #[error(
        "{path} holds no replica: there is no superblock. It was wiped or never finished; this \
         replica is lost and another one has to take its place"
    )]
    Absent {
        /// The directory.
        path: PathBuf,
    },
    /// A file belongs to something else.
    #[error("{path} belongs to {found}, expected {expected}; it was left as it is")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        expected: String,
    },
    /// A file was written by a newer version.
    #[error(
        "{path} has format version {found}, this program reads up to {expected}; run the newer \
         version again"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest that is understood.
        expected: u32,
    },
    /// A file is damaged.
    #[error("{path} is damaged: {what}. Have it replaced: sbkctl volume replace NAME --node NODE")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where and how, with what was found and what was expected.
        what: String,
    },
    /// An earlier operation failed.
    #[error("the store stopped earlier and must be opened again: {cause}")]
    Failed {
        /// What had failed.
        cause: String,
    },
}

/// Why blocks can't be read. Data that may be wrong is never returned.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A block does not match its checksum.
    #[error(
        "block {lba} at byte {offset} of {path} is damaged: CRC {found:08x}, expected {expected:08x}"
    )]
    Damaged {
        /// The first such block.
        lba: Lba,
        /// Where it lies.
        path: PathBuf,
        /// At which byte of the file.
        offset: u64,
        /// The CRC-32C of what was read.
        found: u32,
        /// What it should be; 0 for a block that should be zeros.
        expected: u32,
    },
    /// The operating system said no.
    #[error("cannot read {path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// The WAL could not be read.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Why log entries can't be read.
#[derive(Debug, thiserror::Error)]
pub enum LogReadError {
    /// The WAL no longer holds the entry.
    #[error("entry {lsn} was recycled; the WAL starts at {retained}")]
    Recycled {
        /// Which was asked for.
        lsn: Lsn,
        /// The oldest there is.
        retained: Lsn,
    },
    /// The disk does not give the entry back as it was written. See
    /// [`Store::unreadable`](super::Store::unreadable).
    #[error("entry {lsn} can't be read back: {what}")]
    Unreadable {
        /// Which.
        lsn: Lsn,
        /// How.
        what: String,
    },
}
