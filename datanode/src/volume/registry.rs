//! The replicas that run on this node.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use sbk_engine::types::{ReplicaId, VolumeId};
use tokio::sync::{mpsc, watch};

use super::events::{Control, PeerEvent};
use super::recorder::Recorder;
use super::status::{Counters, RunState, TraceRing, VolumeStatus};
use crate::disks::{DataDisk, Fault};

/// The way to one volume task. It stays the same when the replica is opened again.
#[derive(Debug)]
pub struct VolumeHandle {
    /// The volume.
    pub volume: VolumeId,
    /// The replica of it that is here.
    pub replica: ReplicaId,
    /// The disk that it is on.
    pub disk: Arc<DataDisk>,
    /// Orders of the node.
    pub control: mpsc::Sender<Control>,
    /// Events from other replicas.
    pub peers: mpsc::Sender<PeerEvent>,
    /// What the task last published; see [`current`](VolumeHandle::current).
    pub status: watch::Receiver<Arc<VolumeStatus>>,
    /// Its newest decisions.
    pub trace: Arc<TraceRing>,
    /// What its engine was told and did.
    pub recorder: Arc<Recorder>,
    /// Its counts.
    pub counters: Arc<Counters>,
}

impl VolumeHandle {
    /// How the replica is. What its task published last is none of a disk that failed: the task may hang in
    /// it, and be the last to know.
    pub fn current(&self) -> Arc<VolumeStatus> {
        match self.disk.fault() {
            None => self.status.borrow().clone(),
            Some(fault) => {
                let run = RunState::Away { reason: away(&self.disk, &fault) };
                let opening = VolumeStatus::opening(self.volume, self.replica);
                Arc::new(VolumeStatus { run, ..opening })
            }
        }
    }
}

/// Why a replica is away, in words.
pub(super) fn away(disk: &DataDisk, fault: &Fault) -> String {
    format!("the disk of {} can't be used: {}", disk.path().display(), fault.reason)
}

/// All volume tasks by volume; a node holds at most one replica of a volume.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    volumes: Arc<RwLock<BTreeMap<VolumeId, Arc<VolumeHandle>>>>,
}

impl Registry {
    /// The task of a volume.
    pub fn get(&self, volume: VolumeId) -> Option<Arc<VolumeHandle>> {
        let volumes = self.volumes.read().unwrap_or_else(PoisonError::into_inner);
        volumes.get(&volume).cloned()
    }

    /// Every task, by volume.
    pub fn all(&self) -> Vec<Arc<VolumeHandle>> {
        let volumes = self.volumes.read().unwrap_or_else(PoisonError::into_inner);
        volumes.values().cloned().collect()
    }

    /// Adds a task.
    ///
    /// # Panics
    /// If the volume has one already: two tasks would write one store.
    pub fn insert(&self, handle: Arc<VolumeHandle>) {
        let mut volumes = self.volumes.write().unwrap_or_else(PoisonError::into_inner);
        let volume = handle.volume;
        assert!(volumes.insert(volume, handle).is_none(), "volume {volume} runs twice");
    }

    /// Removes a task that has ended.
    pub fn remove(&self, volume: VolumeId) {
        self.volumes.write().unwrap_or_else(PoisonError::into_inner).remove(&volume);
    }
}
