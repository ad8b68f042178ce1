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
    /// A file was written by a version that nothing was released of.
    #[error(
        "{path} has format version {found}, this program reads only {expected}. Have it replaced: \
         sbkctl volume replace NAME --node NODE"
    )]
    Older {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The one that is understood.
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

/// A block of the image that does not match its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RottenBlock {
    /// Which block.
    pub lba: Lba,
    /// In which file it lies: `extents` or `shadow`.
    pub file: &'static str,
    /// At which byte of it.
    pub offset: u64,
    /// The CRC-32C of what was read, or of an encrypted replica half of its tag.
    pub found: u64,
    /// What its stamp says that it should be.
    pub expected: u64,
}

impl std::fmt::Display for RottenBlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { lba, file, offset, found, expected } = self;
        write!(
            f,
            "block {lba} at byte {offset} of {file} has CRC {found:08x}, expected {expected:08x}"
        )
    }
}

fn in_words(path: &std::path::Path, blocks: &[RottenBlock]) -> String {
    let Some(RottenBlock { lba, offset, found, expected, file: _ }) = blocks.first() else {
        return format!("no block of {} is damaged", path.display());
    };
    let more = match blocks.len() - 1 {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    format!(
        "block {lba} at byte {offset} of {} is damaged: CRC {found:08x}, expected {expected:08x}{more}",
        path.display()
    )
}

/// Why blocks can't be read. Data that may be wrong is never returned.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Blocks of the image don't match their checksums. All else that was asked for could be read, and
    /// another replica may have these.
    #[error("{}", in_words(path, blocks))]
    Rotten {
        /// Where the first of them lies.
        path: PathBuf,
        /// All of what was asked for, ascending; at least one.
        blocks: Vec<RottenBlock>,
    },
    /// A block of an entry that is not in the image does not match its checksum.
    #[error(
        "block {lba} at byte {offset} of {path} is damaged: CRC {found:08x}, expected {expected:08x}"
    )]
    Damaged {
        /// Which block.
        lba: Lba,
        /// Where it lies.
        path: PathBuf,
        /// At which byte of the file.
        offset: u64,
        /// The CRC-32C of what was read, or of an encrypted replica half of its tag.
        found: u64,
        /// What it should be.
        expected: u64,
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
