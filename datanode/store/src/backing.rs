//! What a node keeps replicas on: directories of file systems, and raw block devices.
//!
//! Both hold the same files by the same names, the node's record among them, so that whose they are and which of
//! the node's is found out in one way. All that differs is behind [`Backing`].

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sbk_engine::types::NodeId;
use sbk_wal::{Slots, Storage};

use super::core::Store;
use super::data_device::DataDevice;
use super::data_dir::DataDir;
use super::error::StoreError;
use super::identity::{DirId, NodeError, NodeRecord, failed};
use super::open::{CreateSpec, StoreOptions};
use super::superblock::Identity;

/// What is written now and then, to see whether the disk still takes it.
pub(super) const PROBE: &str = "probe";

/// Where replicas are to be kept, as whoever operates the node says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a directory.
    Dir(PathBuf),
    /// On a block device, without a file system.
    Device(PathBuf),
}

impl Place {
    /// The directory, or the device.
    pub fn path(&self) -> &Path {
        match self {
            Self::Dir(path) | Self::Device(path) => path,
        }
    }

    /// Looks what is there. Once it is known whose it should be, what is somebody else's is told before anything is
    /// written to it.
    pub(super) fn find(&self, node: Option<NodeId>) -> Result<Found, NodeError> {
        match self {
            Self::Dir(path) => DataDir::find(path),
            Self::Device(path) => DataDevice::find(path, node),
        }
    }

    /// Takes into use what has nothing on it, with the record.
    pub(super) fn make(&self, record: &NodeRecord) -> Result<Arc<dyn Backing>, NodeError> {
        match self {
            Self::Dir(path) => DataDir::make(path, record),
            Self::Device(path) => DataDevice::make(path, record),
        }
    }
}

/// What was found, before it is in use.
#[derive(Debug)]
pub(super) enum Found {
    /// It is of a node, and held by this process.
    Ours(Box<Ours>),
    /// There is none of that name, or nothing is in it: nothing was changed.
    Nothing {
        /// There is one of that name.
        there: bool,
    },
}

/// What a node has, held by this process.
#[derive(Debug)]
pub(super) struct Ours {
    pub(super) held: Arc<dyn Backing>,
    pub(super) slots: Slots,
    pub(super) record: NodeRecord,
}

impl Ours {
    /// Takes it into use, with what its record is to say, durably.
    pub(super) fn enter(mut self, record: NodeRecord) -> Result<Arc<dyn Backing>, NodeError> {
        record.write(&mut self.slots)?;
        self.held.settle()?;
        Ok(self.held)
    }
}

/// A directory or a device of a node, held by this process alone for as long as this lives.
pub trait Backing: Debug + Send + Sync {
    /// The directory, or the device.
    fn path(&self) -> &Path;

    /// Its own id.
    fn id(&self) -> DirId;

    /// Its files that are no replica's.
    ///
    /// # Errors
    /// It failed, and can't be read again.
    fn root(&self) -> io::Result<Arc<dyn Storage>>;

    /// Makes what it is to have, and finishes removals that were cut short. Once, before anything else. Blocks.
    ///
    /// # Errors
    /// What the disk said.
    fn settle(&self) -> Result<(), NodeError>;

    /// Whether it still takes what is written, and is still what was opened. A full disk is a disk that works. Blocks, for
    /// ever if the disk does not answer.
    ///
    /// # Errors
    /// What the disk said, or that something else is there now.
    fn check(&self) -> Result<(), NodeError>;

    /// What its space is of: those with one number have their space together. Blocks briefly.
    ///
    /// # Errors
    /// What the disk said.
    fn shares(&self) -> Result<u64, NodeError>;

    /// Bytes that the replicas take. May look at all their files, and blocks for that.
    fn used_bytes(&self) -> u64;

    /// What there is of it. Blocks briefly.
    ///
    /// # Errors
    /// What the disk said.
    fn space(&self) -> Result<BackingSpace, NodeError>;

    /// The replicas that are there. One whose making was cut short is none yet: it holds nothing, and the
    /// masters, who never heard of it, order it again. Blocks.
    ///
    /// # Errors
    /// What the disk said.
    fn replicas(&self) -> Result<Vec<Identity>, NodeError>;

    /// The files of a replica. After a failure they are to be asked for again.
    ///
    /// # Errors
    /// It failed, and can't be read again.
    fn storage(&self, replica: &Identity) -> io::Result<Arc<dyn Storage>>;

    /// Makes the place for a replica's files, durably, unless it is there. Blocks.
    ///
    /// # Errors
    /// What the disk said.
    fn make_place(&self, replica: &Identity) -> Result<(), StoreError>;

    /// Removes a replica that the masters gave up. Gone at once for everybody who looks; a crash
    /// in between is finished at the next start. Again for one that is gone it does nothing. No store may be open on it. Blocks.
    ///
    /// # Errors
    /// What the disk said.
    fn remove(&self, replica: &Identity) -> Result<(), NodeError>;
}

impl<'a> dyn Backing + 'a {
    /// Makes a replica, durably; see [`Store::create`]. Blocks.
    ///
    /// # Errors
    /// As that one's.
    pub fn create(&self, spec: &CreateSpec, options: &StoreOptions) -> Result<(), StoreError> {
        Store::create(&self.make_files(&spec.identity)?, spec, options)
    }

    /// The files of a replica that is to be made, in a place that is durable. Blocks.
    ///
    /// # Errors
    /// What the disk said.
    pub fn make_files(&self, replica: &Identity) -> Result<Arc<dyn Storage>, StoreError> {
        self.make_place(replica)?;
        self.storage(replica).map_err(|source| {
            let path = self.path().to_owned();
            StoreError::Io { doing: "open", path, source }
        })
    }

    /// Raises the count of starts in its record, durably; one that is as high or higher stays. Blocks.
    ///
    /// # Errors
    /// If the record can't be read or written.
    pub fn raise(&self, process: u64) -> Result<(), NodeError> {
        let path = self.path();
        let root = self.root().map_err(failed("read", path))?;
        let found = NodeRecord::read(root, path)?;
        let (mut slots, record) =
            found.ok_or_else(|| NodeError::NoIdentity { path: path.to_owned() })?;
        let process = process.max(record.process);
        NodeRecord { process, ..record }.write(&mut slots)
    }
}

/// What there is of a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackingSpace {
    /// Free for this process.
    pub free: u64,
    /// In all.
    pub size: u64,
}

/// How the place of a replica's files is called.
pub(super) fn name_of(replica: &Identity) -> String {
    format!("{}.{}", replica.volume, replica.replica)
}

/// Whose place is called so; `None` if nobody's.
pub(super) fn named(name: &str) -> Option<Identity> {
    let (volume, replica) = name.split_once('.')?;
    Some(Identity { volume: volume.parse().ok()?, replica: replica.parse().ok()? })
}

/// Those of `found` that were made to the end, in order.
pub(super) fn made(
    path: &Path,
    found: impl Iterator<Item = Identity>,
    is_made: impl Fn(&Identity) -> bool,
) -> Vec<Identity> {
    let mut made: Vec<_> = found
        .filter(|replica| {
            let made = is_made(replica);
            if !made {
                let path = path.join(name_of(replica));
                let path = path.display();
                tracing::warn!(%path, "no superblock: its making was cut short, it holds no replica");
            }
            made
        })
        .collect();
    made.sort_by_key(|i| (i.volume, i.replica));
    made
}
