//! Why a device can't be used.

use std::io;
use std::path::PathBuf;

use uuid::Uuid;

/// Why a device can't be used. Nothing on it was changed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The operating system said no.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// It is no block device.
    #[error("{path} is not a block device; give a directory on a file system with --data-dir")]
    NoDevice {
        /// The path.
        path: PathBuf,
    },
    /// It is mounted, part of something else, or another process has it.
    #[error(
        "{path} is in use: it is mounted, part of an array or volume group, or another process has it \
         open for itself"
    )]
    InUse {
        /// The device.
        path: PathBuf,
    },
    /// It holds something else.
    #[error(
        "{path} holds {found}; it is used only if its first and last MiB are zeros. If nothing on it is \
         needed any more, overwrite these two, as with `blkdiscard --zeroout {path}`"
    )]
    Foreign {
        /// The device.
        path: PathBuf,
        /// What was recognised.
        found: String,
    },
    /// It is another node's.
    #[error("{path} belongs to node {found}, expected {expected}: is it in the right machine?")]
    OtherNode {
        /// The device.
        path: PathBuf,
        /// Whose it is.
        found: Uuid,
        /// Who asks.
        expected: Uuid,
    },
    /// A newer version wrote it.
    #[error("{path} has format version {found}, expected at most {expected}: update this program")]
    Newer {
        /// The device.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// This program's.
        expected: u32,
    },
    /// It is smaller than it was.
    #[error("{path} has {found} bytes, expected {expected}: the device shrank, or is another one")]
    Shrunk {
        /// The device.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// That when it was set up.
        expected: u64,
    },
    /// It is too small for anything.
    #[error("{path} has {found} bytes, expected at least {expected}")]
    TooSmall {
        /// The device.
        path: PathBuf,
        /// Its size.
        found: u64,
        /// The least.
        expected: u64,
    },
    /// What says where the files are can't be read in either copy.
    #[error("{path} is damaged: {what}. The replicas on it are lost, and are rebuilt from others")]
    Damaged {
        /// The device.
        path: PathBuf,
        /// What is wrong, and where.
        what: String,
    },
}
