//! What a node needs of its data directories and devices.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use sbk_engine::types::{BootId, NodeId, ReplicaId, VolumeId};

use crate::disks::DataDisk;
use crate::volume::disk::{DiskError, OpenDisk};

/// A node's data directories and devices, held by this process alone for as long as this lives. Each is called by its
/// disk's place in [`disks`](Storage::disks).
pub trait Storage: Send + Sync + 'static {
    /// Opens one replica's store.
    type Opener: OpenDisk;

    /// Who this node is.
    fn node(&self) -> NodeId;
    /// Starts of the process on these directories, this one included.
    fn process(&self) -> u64;
    /// The machine's boot.
    fn boot(&self) -> BootId;
    /// A directory for small files that may be lost.
    fn scratch(&self) -> PathBuf;
    /// Whether it has a key, and can hold encrypted replicas.
    fn encrypts(&self) -> bool;
    /// The masters say that these volumes are encrypted, and no others: their replicas are opened only if they are.
    /// Returns those of which one was opened that is not.
    fn expect_encrypted(&self, volumes: BTreeSet<VolumeId>) -> Vec<VolumeId>;
    /// The disks, always the same.
    fn disks(&self) -> &[Arc<DataDisk>];
    /// Looks how much room there is, and which disks hang. Blocks briefly, on no disk.
    fn look(&self);
    /// The replicas on a disk. Blocks.
    fn replicas(&self, disk: usize) -> Result<Vec<(VolumeId, ReplicaId)>, DiskError>;
    /// What opens a replica that is there.
    fn opener(&self, disk: usize, volume: VolumeId, replica: ReplicaId) -> Self::Opener;
    /// Makes an empty replica. Durable when it returns; again for one that is
    /// there it changes nothing. Blocks.
    fn create(&self, disk: usize, new: &NewReplica) -> Result<(), DiskError>;
    /// Removes a replica that nothing uses. Again for one that is gone it does nothing. Blocks.
    fn remove(&self, disk: usize, volume: VolumeId, replica: ReplicaId) -> Result<(), DiskError>;
    /// Has the next process be one above `process` at the least. Blocks.
    fn count_past(&self, process: u64) -> Result<(), DiskError>;
}

/// A replica that is to be made.
#[derive(Clone, Copy, Debug)]
pub struct NewReplica {
    /// Of which volume.
    pub volume: VolumeId,
    /// Its id.
    pub replica: ReplicaId,
    /// Its size.
    pub blocks: u64,
    /// It is encrypted where it lies.
    pub encrypted: bool,
}
