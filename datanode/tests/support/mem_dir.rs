//! A data directory in memory that outlives its process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, RwLock};

use sbk_datanode::node::Storage;
use sbk_datanode::volume::disk::DiskError;
use sbk_engine::types::{BootId, NodeId, ReplicaId, VolumeId};
use tokio::sync::watch;
use uuid::Uuid;

use super::mem_disk::MemStore;

type Stores = BTreeMap<(VolumeId, ReplicaId), MemStore>;

#[derive(Clone, Default)]
pub(crate) struct MemDir {
    process: u64,
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

    fn replicas(&self) -> Result<Vec<(VolumeId, ReplicaId)>, DiskError> {
        Ok(self.stores.lock().unwrap().keys().copied().collect())
    }

    fn opener(&self, volume: VolumeId, replica: ReplicaId) -> MemStore {
        self.stores.lock().unwrap()[&(volume, replica)].clone()
    }

    fn create(&self, volume: VolumeId, replica: ReplicaId, blocks: u64) -> Result<(), DiskError> {
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

    fn remove(&self, volume: VolumeId, replica: ReplicaId) -> Result<(), DiskError> {
        self.removals.send_modify(|begun| *begun += 1);
        let _may = self.may_remove.read().unwrap();
        self.stores.lock().unwrap().remove(&(volume, replica));
        Ok(())
    }

    fn space(&self) -> Result<(u64, u64), DiskError> {
        Ok((1 << 40, 0))
    }
}
