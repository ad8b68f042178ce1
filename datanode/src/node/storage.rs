//! What a node needs of its data directory.

use sbk_engine::types::{BootId, NodeId, ReplicaId, VolumeId};

use crate::volume::disk::{DiskError, OpenDisk};

/// A node's data directory, held by this process alone for as long as this lives.
pub trait Storage: Send + Sync + 'static {
    /// Opens one replica's store.
    type Opener: OpenDisk;

    /// Who this node is.
    fn node(&self) -> NodeId;
    /// Starts of the process on this directory, this one included.
    fn process(&self) -> u64;
    /// The machine's boot.
    fn boot(&self) -> BootId;
    /// The replicas in the directory.
    fn replicas(&self) -> Result<Vec<(VolumeId, ReplicaId)>, DiskError>;
    /// What opens a replica that is there.
    fn opener(&self, volume: VolumeId, replica: ReplicaId) -> Self::Opener;
    /// Makes an empty replica of `blocks` blocks. Durable when it returns; again for one that is
    /// there it changes nothing. Blocks.
    fn create(&self, volume: VolumeId, replica: ReplicaId, blocks: u64) -> Result<(), DiskError>;
    /// Removes a replica that nothing uses. Again for one that is gone it does nothing. Blocks.
    fn remove(&self, volume: VolumeId, replica: ReplicaId) -> Result<(), DiskError>;
    /// `(free, used)` bytes. Blocks briefly.
    fn space(&self) -> Result<(u64, u64), DiskError>;
}
