//! What this node knows of all volumes: the masters' pushes, and newer configurations that
//! replicas told.

mod push;

use std::collections::BTreeMap;
use std::sync::Arc;

use sbk_engine::authority::Limits;
use sbk_engine::types::{Config, NodeId, ReplicaId, VolumeId, Wish};
use tokio::sync::watch;

pub(crate) use push::apply;

/// Every volume that the masters told of. Shared by value: a change makes a new one.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    /// By id.
    pub volumes: BTreeMap<VolumeId, Arc<Volume>>,
    /// Whether the masters were heard since this process started: before that, a volume that is
    /// not listed may well exist.
    pub heard: bool,
}

/// One volume as this node knows it.
#[derive(Clone, Debug)]
pub struct Volume {
    /// Its id.
    pub id: VolumeId,
    /// Its name, unique among volumes that are not deleted.
    pub name: String,
    /// Its size in blocks, as it is published.
    pub blocks: u64,
    /// The size in blocks that it was created with, in which an empty replica is made.
    pub created_blocks: u64,
    /// Its replicas are encrypted where they lie.
    pub encrypted: bool,
    /// Every replica, confirmed or not, and where it is.
    pub replicas: BTreeMap<ReplicaId, Replica>,
    /// Replicas that left the list, and where they are: to be removed.
    pub retired: BTreeMap<ReplicaId, NodeId>,
    /// What the masters want of its primary.
    pub wish: Wish,
    /// What its clients may do.
    pub limits: Limits,
    /// The newest configuration known, from the masters or from a replica; `None` before the first
    /// epoch.
    pub config: Option<Config>,
    /// The volume is deleted; replicas here are to be removed.
    pub deleted: bool,
}

/// One replica of a volume.
#[derive(Clone, Debug)]
pub struct Replica {
    /// The node that holds it.
    pub node: NodeId,
    /// That node's gRPC address.
    pub addr: String,
    /// Its create was confirmed.
    pub confirmed: bool,
}

impl Volume {
    /// Its size in blocks, as it was published last as far as is known here: a replica may have told a newer
    /// configuration than the masters have pushed.
    pub fn published_blocks(&self) -> u64 {
        self.config.as_ref().map_or(self.blocks, |config| config.blocks)
    }

    /// What a replica of it claims, in blocks: also what it is to have.
    pub fn claimed_blocks(&self) -> u64 {
        let wished = self.config.as_ref().and_then(|config| config.wished_blocks).unwrap_or(0);
        wished.max(self.published_blocks())
    }
}

impl Catalogue {
    /// The live volume of that name.
    pub fn by_name(&self, name: &str) -> Option<&Arc<Volume>> {
        self.volumes.values().find(|v| v.name == name && !v.deleted)
    }
}

/// A view of the catalogue that can be awaited.
pub type CatalogueWatch = watch::Receiver<Arc<Catalogue>>;
