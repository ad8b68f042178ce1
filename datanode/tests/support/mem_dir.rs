//! A data directory in memory that outlives its process.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock};

use sbk_datanode::disks::{DataDisk, DiskState};
use sbk_datanode::node::{NewReplica, Storage};
use sbk_datanode::volume::disk::DiskError;
use sbk_engine::types::{BootId, NodeId, ReplicaId, VolumeId};
use tokio::sync::watch;
use uuid::Uuid;

use super::mem_disk::MemStore;

type Stores = BTreeMap<(VolumeId, ReplicaId), MemStore>;

/// The one disk.
#[derive(Clone)]
struct Disks(Vec<Arc<DataDisk>>);

impl Default for Disks {
    fn default() -> Self {
        let (capacity_bytes, free_bytes) = (1 << 40, 1 << 40);
        let state = DiskState { capacity_bytes, free_bytes, ..DiskState::default() };
        Self(vec![DataDisk::new("memory".as_ref(), None, state)])
    }
}

#[derive(Clone, Default)]
pub(crate) struct MemDir {
    process: u64,
    disks: Disks,
    pub(crate) stores: Arc<Mutex<Stores>>,
    /// Removals that were begun.
    pub(crate) removals: watch::Sender<usize>,
    /// Removals wait while somebody has it for writing.
    pub(crate) may_remove: Arc<RwLock<()>>,
}

impl MemDir {
    /// The same directory in the next process.
    pub(crate) fn next_process(&self) -> Self {
        self.stores.lock().unwrap().values().for_each(|store| {
            store.process_starts();
        });
        Self { process: self.process + 1, ..self.clone() }
    }
}

impl Storage for MemDir {
    type Opener = MemStore;

    fn node(&self) -> NodeId {
        NodeId(Uuid::from_u128(50))
    }

    fn process(&self) -> u64 {
        self.process
    }

    fn boot(&self) -> BootId {
        BootId(Uuid::from_u128(1))
    }

    fn scratch(&self) -> PathBuf {
        // None that is there: nothing is kept.
        "memory".into()
    }

    fn expect_encrypted(&self, _volumes: BTreeSet<VolumeId>) -> Vec<VolumeId> {
        Vec::new()
    }

    fn disks(&self) -> &[Arc<DataDisk>] {
        &self.disks.0
    }

    fn look(&self) {}

    fn replicas(&self, _disk: usize) -> Result<Vec<(VolumeId, ReplicaId)>, DiskError> {
        Ok(self.stores.lock().unwrap().keys().copied().collect())
    }

    fn opener(&self, _disk: usize, volume: VolumeId, replica: ReplicaId) -> MemStore {
        self.stores.lock().unwrap()[&(volume, replica)].clone()
    }

    fn encrypts(&self) -> bool {
        false
    }

    fn create(&self, _disk: usize, new: &NewReplica) -> Result<(), DiskError> {
        let NewReplica { volume, replica, blocks, .. } = *new;
        let mut stores = self.stores.lock().unwrap();
        stores.entry((volume, replica)).or_insert_with(|| {
            let store = MemStore::create(volume, replica, blocks);
            (0..self.process).for_each(|_| {
                store.process_starts();
            });
            store
        });
        Ok(())
    }

    fn remove(&self, _disk: usize, volume: VolumeId, replica: ReplicaId) -> Result<(), DiskError> {
        self.removals.send_modify(|begun| *begun += 1);
        let _may = self.may_remove.read().unwrap();
        self.stores.lock().unwrap().remove(&(volume, replica));
        Ok(())
    }

    fn count_past(&self, _process: u64) -> Result<(), DiskError> {
        Ok(())
    }
}
