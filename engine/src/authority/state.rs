//! The replicated state: what it holds and how it is read. It changes only in `apply`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::limits::Limits;
use super::sizes::SizeRefused;
use crate::types::{
    BLOCK_SIZE, BootId, Config, Epoch, Incarnation, LossGeneration, NodeId, Placement, ReplicaId,
    ReplicaRef, TailId, VolumeId,
};
pub use crate::types::{Durability, Wish, WriteAck};

/// Largest volume.
pub const MAX_VOLUME_BYTES: u64 = 64 << 40;
/// Most replicas of one volume.
pub const MAX_REPLICAS: u32 = 7;
/// Most nodes that may ever register.
pub const MAX_NODES: usize = 1024;
/// Most volumes, deleted ones that still wait for a node included.
pub const MAX_VOLUMES: usize = 16_384;
/// Most replicas that one registration may list.
pub const MAX_REGISTERED_REPLICAS: usize = 32_768;

/// The cluster's identity, drawn at bootstrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterId(pub Uuid);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a client calls its wish for a volume, however often it asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CreateId(pub Uuid);

impl fmt::Display for CreateId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The default of `min_in_sync`: one replica may be lost without a stop, and from three replicas on
/// a write is never acknowledged by a single copy.
pub fn default_min_in_sync(replicas: u32) -> u32 {
    if replicas >= 3 { 2 } else { 1 }
}

/// Where a node listens, `host:port` as others reach it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addrs {
    /// gRPC: replication, block service.
    pub grpc: String,
    /// HTTP, read-only.
    pub http: Option<String>,
    /// NBD over TCP.
    pub nbd: Option<String>,
}

/// One replica as its node registered it. A replica that is not open is not listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisteredReplica {
    /// The volume that it says it belongs to.
    pub volume: VolumeId,
    /// Its current run; the process part is the registration's.
    pub incarnation: Incarnation,
    /// Not in the middle of a rebuild: its log and extents can be trusted as a whole.
    pub complete: bool,
    /// The count of its tail; the boot is the registration's.
    #[serde(default)]
    pub tail: u64,
    /// Its log may have lost its end, and with it what was acknowledged
    /// ([`Kept::doubtful`](crate::replication::io::Kept::doubtful)).
    #[serde(default)]
    pub doubtful: bool,
    /// Its disk's place among the registration's; `None` until the node has said so.
    #[serde(default)]
    pub disk: Option<u32>,
}

/// What a datanode says of itself, and the only thing that makes its replicas promotable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The node.
    pub node: NodeId,
    /// Starts of its process, from 1.
    pub process: u64,
    /// Registrations within the process: counted up when a replica was opened again, became
    /// complete, was closed or is not in doubt any more, or when an address changed.
    pub revision: u64,
    /// The boot of its machine.
    pub boot: BootId,
    /// Its listeners.
    pub addrs: Addrs,
    /// Its failure domain; all nodes without one count as one zone.
    pub zone: Option<String>,
    /// Bytes that replicas may use there, on all disks together that can be used.
    pub capacity_bytes: u64,
    /// The same of each disk, 0 of one that can't be used; empty: there is one.
    #[serde(default)]
    pub disks: Vec<u64>,
    /// It has a key, and can hold replicas of encrypted volumes.
    #[serde(default)]
    pub encrypts: bool,
    /// The replicas that are open. A replica that was listed once and is missing here is lost
    /// until a later registration lists it again: it is not promotable.
    pub replicas: BTreeMap<ReplicaId, RegisteredReplica>,
}

impl Registration {
    /// Orders the registrations of one node.
    pub fn order(&self) -> (u64, u64) {
        (self.process, self.revision)
    }
}

/// What a volume was created as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    /// Unique among volumes that are not deleted.
    pub name: String,
    /// Size in 4096-byte blocks.
    pub blocks: u64,
    /// When a write counts as committed.
    pub durability: Durability,
    /// When a replica counts as having a write.
    pub write_ack: WriteAck,
    /// Fewest in-sync replicas with which the volume commits.
    pub min_in_sync: u32,
    /// Copies wanted.
    pub replicas: u32,
    /// Every replica in another zone.
    pub zone_spread: bool,
    /// Every replica is encrypted where it lies: it is placed on nodes that have a key.
    #[serde(default)]
    pub encrypted: bool,
}

impl VolumeSpec {
    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.blocks * BLOCK_SIZE
    }
}

/// Whether an operator wants a replica away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It stays, unless its node goes.
    #[default]
    Stays,
    /// It goes once as many others as the volume wants are in sync.
    Goes,
    /// As [`Fate::Goes`]; and if no other node has room, it goes first, and its own node holds the
    /// one that takes its place.
    GoesFirst,
}

/// What becomes of a node's replicas. A node without a duty holds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Duty {
    /// They move away, and no new ones are placed there.
    Drained,
    /// As [`Duty::Drained`], at once and for good: the node is forgotten when the last one went.
    Removed,
}

/// A replica in a volume's list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    /// The node that holds it.
    pub node: NodeId,
    /// The run in which its create was confirmed. Once this is set, a create is never ordered
    /// again: a directory that is missing later is a loss, not something to make anew.
    pub confirmed: Option<Incarnation>,
    /// Whether an operator wants it away.
    pub fate: Fate,
    /// Whether it was in sync once. One that never was is no copy of anything.
    #[serde(default)]
    pub joined: bool,
}

impl Replica {
    /// One that is to be created.
    pub fn on(node: NodeId) -> Self {
        Self { node, confirmed: None, fate: Fate::Stays, joined: false }
    }
}

/// The configuration in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Its number.
    pub epoch: Epoch,
    /// Orders writes and serves reads.
    pub primary: ReplicaRef,
    /// Since when this primary in this incarnation is primary without interruption.
    pub since: Epoch,
    /// Holds every committed write; contains the primary.
    pub isr: BTreeSet<ReplicaId>,
    /// The replicas that were confirmed when this epoch was minted.
    pub members: BTreeSet<ReplicaId>,
    /// Raised by every promotion that may have lost acknowledged writes.
    pub loss_generation: LossGeneration,
    /// The primary that handed this tenure over, if that is how it began.
    #[serde(default)]
    pub handed_over_by: Option<ReplicaRef>,
    /// With written acknowledgements: the tail that each in-sync replica had when it joined. Only a
    /// join or a lossy promotion sets one, every other change copies it. [A leader that was elected
    /// later would not know who lost power.]
    #[serde(default)]
    pub tails: BTreeMap<ReplicaId, TailId>,
    /// In-sync replicas that were silent when the volume went on after a loss of power of all: they
    /// may hold acknowledged writes that were not flushed. For people.
    #[serde(default)]
    pub missing: BTreeSet<ReplicaId>,
    /// The size in blocks that was published last; `None`: the one that it was created with.
    #[serde(default)]
    pub blocks: Option<u64>,
    /// The size in blocks that an operator wants it to have, if that is another one.
    #[serde(default)]
    pub wished_blocks: Option<u64>,
}

impl Assignment {
    /// Another primary, in the epoch that was just minted.
    pub(super) fn begin_tenure(&mut self, primary: ReplicaRef, by: Option<ReplicaRef>) {
        self.primary = primary;
        self.since = self.epoch;
        self.handed_over_by = by;
    }
}

/// How far a volume's life is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeState {
    /// Replicas are being created; no epoch was minted.
    Creating,
    /// It has a configuration.
    Active,
    /// Deleted, and some node still has to remove its replica.
    Deleting,
}

/// A volume that is not deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its id, no other volume's before or after it.
    pub id: VolumeId,
    /// The create that made it: asked for again, it is this volume.
    pub create: CreateId,
    /// What it was created as.
    pub spec: VolumeSpec,
    /// All its replicas, whether created yet or not: as many as it was created with, one less while
    /// one is made anew on its own node, and more while some are replaced.
    pub replicas: BTreeMap<ReplicaId, Replica>,
    /// Replicas that left the list, and where they are: orders to remove them, kept until each was
    /// confirmed gone or its node was removed.
    pub retired: BTreeMap<ReplicaId, NodeId>,
    /// What the primary is to propose.
    pub wish: Wish,
    /// What its clients may do; at first what it was created with.
    #[serde(default)]
    pub limits: Limits,
    /// The last wish for another size, if it was taken back for what the volume holds. For people.
    #[serde(default)]
    pub size_refused: Option<SizeRefused>,
    /// The configuration in force; `None` until enough replicas were confirmed.
    pub assignment: Option<Assignment>,
    /// The catalogue revision of its last change.
    pub changed: u64,
}

impl Volume {
    /// Creating or active.
    pub fn state(&self) -> VolumeState {
        match self.assignment {
            None => VolumeState::Creating,
            Some(_) => VolumeState::Active,
        }
    }
}

/// A deleted volume: an order to remove its replicas, kept until every one was confirmed gone.
/// `epoch` is the last one, with an empty in-sync set: it fences like any other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// The volume.
    pub id: VolumeId,
    /// The create that made it.
    pub create: CreateId,
    /// What it was, in the size that was published last; the name may be in use again by another volume.
    pub spec: VolumeSpec,
    /// The last epoch.
    pub epoch: Epoch,
    /// Replicas that may still exist, and where.
    pub remaining: BTreeMap<ReplicaId, NodeId>,
    /// The catalogue revision of its last change.
    pub changed: u64,
}

/// All that the masters agree on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub(super) cluster: Option<ClusterId>,
    pub(super) revision: u64,
    pub(super) nodes: BTreeMap<NodeId, Registration>,
    pub(super) volumes: BTreeMap<VolumeId, Volume>,
    pub(super) tombstones: BTreeMap<VolumeId, Tombstone>,
    pub(super) duties: BTreeMap<NodeId, Duty>,
}

impl State {
    /// The state before the first command.
    pub fn new() -> Self {
        Self::default()
    }

    /// The cluster's name; `None` before the bootstrap.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.cluster
    }

    /// Grows with every change that datanodes must see.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Every node, by its newest registration.
    pub fn nodes(&self) -> &BTreeMap<NodeId, Registration> {
        &self.nodes
    }

    /// Every volume that is not deleted.
    pub fn volumes(&self) -> &BTreeMap<VolumeId, Volume> {
        &self.volumes
    }

    /// Deleted volumes with replicas still to be removed.
    pub fn tombstones(&self) -> &BTreeMap<VolumeId, Tombstone> {
        &self.tombstones
    }

    /// What becomes of a node's replicas; `None` for one that holds them.
    pub fn duty(&self, node: NodeId) -> Option<Duty> {
        self.duties.get(&node).copied()
    }

    /// The volume that a create made; `None` if it made none, or one that is deleted.
    pub fn created_by(&self, create: CreateId) -> Option<&Volume> {
        self.volumes.values().find(|v| v.create == create)
    }

    /// The volume of that name that is not deleted.
    pub fn volume_by_name(&self, name: &str) -> Option<&Volume> {
        self.volumes.values().find(|v| v.spec.name == name)
    }

    /// The volume of that name or, written as a UUID, of that id; not deleted. No volume's name is
    /// a UUID.
    pub fn find_volume(&self, name_or_id: &str) -> Option<&Volume> {
        match name_or_id.parse() {
            Ok(id) => self.volumes.get(&id),
            Err(_) => self.volume_by_name(name_or_id),
        }
    }

    /// What the node of a volume's replica last registered of it; `None` if the replica is not
    /// listed, or its node did not list it (not created yet, not open, or lost).
    pub fn registered(&self, volume: VolumeId, replica: ReplicaId) -> Option<&RegisteredReplica> {
        let listed = self.volumes.get(&volume)?.replicas.get(&replica)?;
        let entry = self.nodes.get(&listed.node)?.replicas.get(&replica)?;
        (entry.volume == volume).then_some(entry)
    }

    /// The tail with which the node registered the replica last; `None` if it did not.
    pub fn tail(&self, volume: VolumeId, replica: ReplicaId) -> Option<TailId> {
        let count = self.registered(volume, replica)?.tail;
        let node = self.volumes.get(&volume)?.replicas.get(&replica)?.node;
        Some(TailId { boot: self.nodes.get(&node)?.boot, count })
    }

    /// The configuration in force, with the addresses that the nodes registered last; `None` if
    /// there is no such volume, it is deleted, or its first epoch was not minted.
    pub fn config(&self, volume: VolumeId) -> Option<Config> {
        let volume = self.volumes.get(&volume)?;
        let assignment = volume.assignment.as_ref()?;
        let replicas = assignment
            .members
            .iter()
            .filter_map(|id| {
                let node = volume.replicas.get(id)?.node;
                let addr = self.nodes.get(&node)?.addrs.grpc.clone();
                Some((*id, Placement { node, addr }))
            })
            .collect();
        Some(Config {
            volume: volume.id,
            epoch: assignment.epoch,
            primary: assignment.primary,
            since: assignment.since,
            isr: assignment.isr.clone(),
            replicas,
            durability: volume.spec.durability,
            write_ack: volume.spec.write_ack,
            min_in_sync: volume.spec.min_in_sync,
            blocks: volume.blocks(),
            wished_blocks: assignment.wished_blocks,
            loss_generation: assignment.loss_generation,
            handed_over_by: assignment.handed_over_by,
            tails: assignment.tails.clone(),
        })
    }

    /// Bytes of a node's capacity that volumes claim, deleted ones not yet removed included.
    pub fn committed_bytes(&self, node: NodeId) -> u64 {
        self.claims(node).fold(0, |sum: u64, (_, bytes)| sum.saturating_add(bytes))
    }

    /// What each replica claims of the node's capacity, in bytes.
    pub(super) fn claims(&self, node: NodeId) -> impl Iterator<Item = (ReplicaId, u64)> + '_ {
        let live = self.volumes.values().flat_map(move |v| {
            let listed = v.replicas.iter().filter(move |(_, r)| r.node == node).map(|(id, _)| id);
            let retired = v.retired.iter().filter(move |(_, on)| **on == node).map(|(id, _)| id);
            listed.chain(retired).map(|id| (*id, v.claimed_bytes()))
        });
        let dead = self.tombstones.values().flat_map(move |t| {
            let left = t.remaining.iter().filter(move |(_, on)| **on == node);
            left.map(|(id, _)| (*id, t.spec.bytes()))
        });
        live.chain(dead)
    }

    /// Whether a replica of the node may be on a disk that it can't use: it has such a disk, and does not
    /// have the replica open.
    pub(super) fn may_be_away(&self, node: NodeId, replica: ReplicaId) -> bool {
        let registered = self.nodes.get(&node);
        registered.is_some_and(|n| n.disks.contains(&0) && !n.replicas.contains_key(&replica))
    }

    /// How many volumes have their primary on a node.
    pub fn primaries_on(&self, node: NodeId) -> usize {
        self.volumes
            .values()
            .filter(|v| {
                v.assignment
                    .as_ref()
                    .and_then(|a| v.replicas.get(&a.primary.id))
                    .is_some_and(|r| r.node == node)
            })
            .count()
    }
}
