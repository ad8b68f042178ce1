//! Why a log or a record can't be opened or written.

use std::io;
use std::path::PathBuf;

/// Why a log can't be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
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
    /// Bytes that had been durable are damaged. They are not cut: what they held is needed.
    #[error("{path} is damaged at byte {offset}: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong, with what was found and what was expected.
        what: String,
    },
    /// The log no longer holds the record.
    #[error("record {index} was recycled; the oldest retained one is {retained}")]
    Recycled {
        /// Which was asked for.
        index: u64,
        /// The oldest there is.
        retained: u64,
    },
    /// An earlier operation failed. What it left on the disk is unknown until the log is opened
    /// again.
    #[error("the log failed earlier and must be opened again")]
    Failed,
}

/// Why a slot file can't be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// The operating system said no.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// It is another kind of file.
    #[error("{path} is not a {expected} file: it starts with {found:02x?}")]
    OtherKind {
        /// The file.
        path: PathBuf,
        /// Its first bytes.
        found: [u8; 8],
        /// The magic that was expected.
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
    /// No slot holds a whole record.
    #[error("{path} is damaged: neither of its two slots has a valid checksum")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The record is over the slot's size.
    #[error("a record of {size} bytes does not fit the {limit} bytes of a slot of {path}")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The record's size.
        size: usize,
        /// The slot's.
        limit: usize,
    },
}
