//! What the masters push to every datanode.

use std::collections::BTreeMap;

use super::limits::Limits;
use super::state::{Replica, State, Tombstone, Volume, VolumeSpec, Wish};
use crate::types::{Config, Epoch, NodeId, ReplicaId, VolumeId};

/// One volume as datanodes are to see it: create orders (replicas not confirmed), the
/// configuration in force, or a delete order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssignedVolume {
    /// The volume.
    pub id: VolumeId,
    /// What it was created as.
    pub spec: VolumeSpec,
    /// Its size in blocks, as it is published. A replica is created in the size of `spec`: that is what an
    /// empty log implies, and what came later is in the log.
    pub blocks: u64,
    /// Its replicas. Of a live volume: all. Of a deleted one: those still to be removed.
    pub replicas: Vec<AssignedReplica>,
    /// Replicas of a live volume that left its list, and where they are: to be removed.
    pub retired: BTreeMap<ReplicaId, NodeId>,
    /// What its primary is to propose.
    pub wish: Wish,
    /// What its clients may do.
    pub limits: Limits,
    /// The configuration in force; `None` before the first epoch and after the delete.
    pub config: Option<Config>,
    /// The last epoch, if the volume is deleted: replicas listed are to be removed and confirmed.
    pub deleted: Option<Epoch>,
    /// The catalogue revision of its last change.
    pub changed: u64,
}

/// One replica as datanodes are to see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssignedReplica {
    /// Which.
    pub id: ReplicaId,
    /// Where it is, and whether its create was confirmed.
    pub replica: Replica,
    /// The node's gRPC listener.
    pub addr: String,
    /// The node's NBD listener.
    pub nbd: Option<String>,
}

impl State {
    /// The volumes and delete orders that changed after catalogue revision `after` (0 for all). A
    /// volume that the reader knows and that is in neither [`State::volumes`] nor
    /// [`State::tombstones`] is gone without a trace.
    pub fn catalogue_since(&self, after: u64) -> Vec<AssignedVolume> {
        let live = self.volumes.values().filter(|v| v.changed > after);
        let dead = self.tombstones.values().filter(|t| t.changed > after);
        live.map(|v| self.assigned(v)).chain(dead.map(|t| self.delete_order(t))).collect()
    }

    /// Whether the volume is neither live nor waiting for its removal.
    pub fn is_gone(&self, volume: VolumeId) -> bool {
        !self.volumes.contains_key(&volume) && !self.tombstones.contains_key(&volume)
    }

    fn assigned(&self, volume: &Volume) -> AssignedVolume {
        AssignedVolume {
            id: volume.id,
            spec: volume.spec.clone(),
            blocks: volume.blocks(),
            replicas: volume.replicas.iter().filter_map(|(id, r)| self.replica(*id, r)).collect(),
            retired: volume.retired.clone(),
            wish: volume.wish.clone(),
            limits: volume.limits,
            config: self.config(volume.id),
            deleted: None,
            changed: volume.changed,
        }
    }

    fn delete_order(&self, tombstone: &Tombstone) -> AssignedVolume {
        let replicas = tombstone
            .remaining
            .iter()
            .filter_map(|(id, node)| self.replica(*id, &Replica::on(*node)));
        AssignedVolume {
            id: tombstone.id,
            spec: tombstone.spec.clone(),
            blocks: tombstone.spec.blocks,
            replicas: replicas.collect(),
            retired: BTreeMap::new(),
            wish: Wish::default(),
            limits: Limits::default(),
            config: None,
            deleted: Some(tombstone.epoch),
            changed: tombstone.changed,
        }
    }

    fn replica(&self, id: ReplicaId, replica: &Replica) -> Option<AssignedReplica> {
        let addrs = &self.nodes.get(&replica.node)?.addrs;
        Some(AssignedReplica {
            id,
            replica: replica.clone(),
            addr: addrs.grpc.clone(),
            nbd: addrs.nbd.clone(),
        })
    }
}
