//! What the leader puts into the Raft log, and what applying it answers.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::limits::{Limits, LimitsChange};
use super::refusal::Refusal;
use super::state::{ClusterId, CreateId, Durability, Duty, Fate, Registration, Wish, WriteAck};
use crate::replication::io::IsrChange;
use crate::types::{Config, Epoch, NodeId, ReplicaId, ReplicaRef, TailId, VolumeId};

/// What a client asks for when it creates a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRequest {
    /// A DNS label: 1 to 63 of `a-z`, `0-9` and `-`, beginning and ending with a letter or digit;
    /// and no UUID.
    pub name: String,
    /// A multiple of 4096, from 4096 to [`super::state::MAX_VOLUME_BYTES`].
    pub size_bytes: u64,
    /// Copies, 1 to [`super::state::MAX_REPLICAS`].
    pub replicas: u32,
    /// When a write counts as committed.
    pub durability: Durability,
    /// When a replica counts as having a write.
    pub write_ack: WriteAck,
    /// Fewest in-sync replicas with which the volume commits, 1 to `replicas`; `None` for the
    /// default (see [`super::state::default_min_in_sync`]).
    pub min_in_sync: Option<u32>,
    /// Every replica in another zone, or refused.
    pub zone_spread: bool,
    /// Every replica encrypted where it lies.
    #[serde(default)]
    pub encrypted: bool,
    /// What its clients may do.
    #[serde(default)]
    pub limits: Limits,
}

/// A change of the replicated state. All that is not in the state comes with the command: ids are
/// drawn by whoever proposes, liveness is the proposing leader's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Command {
    /// Names the cluster. The first one wins; later ones are answered with the standing name.
    BootstrapCluster {
        /// Drawn by the leader.
        cluster: ClusterId,
    },
    /// A datanode joined, restarted, opened a replica again or moved to another address. Ordered
    /// by (process, revision); an older one is refused, the same one again changes nothing.
    RegisterNode(Registration),
    /// A new volume. The client names the create, so that one that is sent again makes no second volume while
    /// the first one is known. The volume's own id is another: it names no other volume, ever, and what was
    /// made and ended is not remembered for ever. [A create was repeated, for its outcome was unknown.
    /// Meanwhile somebody deleted the volume, and all its replicas were removed. The repetition made an
    /// empty volume under the same id, and a frontend that had missed the end read zeros from it.]
    CreateVolume {
        /// Drawn by the leader for this one command.
        volume: VolumeId,
        /// Drawn by the client.
        create: CreateId,
        /// What it asked for.
        request: VolumeRequest,
        /// Fresh replica ids and their nodes, chosen by the leader (see
        /// [`super::placement::place`]) and checked again here.
        placement: BTreeMap<ReplicaId, NodeId>,
        /// How much of a node's capacity volumes may claim, in percent: 100 for no overcommit.
        overcommit_percent: u32,
    },
    /// A node created a replica as ordered, durably.
    ConfirmReplica {
        /// The node that speaks.
        node: NodeId,
        /// Its process.
        process: u64,
        /// The volume.
        volume: VolumeId,
        /// The replica, in the run that created or found it.
        replica: ReplicaRef,
        /// The count of its tail in that run.
        #[serde(default)]
        tail: u64,
    },
    /// A primary asks for a change of its in-sync set.
    ProposeIsr {
        /// The volume.
        volume: VolumeId,
        /// The epoch that must be in force.
        expect_epoch: Epoch,
        /// Who asks: must be the primary in force, in the incarnation that was assigned.
        primary: ReplicaRef,
        /// What it asks.
        change: IsrChange,
    },
    /// The leader moves the primary away from a replica that it suspects, or to a new incarnation
    /// of the same replica.
    Failover {
        /// The volume.
        volume: VolumeId,
        /// The epoch that must be in force.
        expect_epoch: Epoch,
        /// An in-sync replica, in the incarnation that it is registered with.
        primary: ReplicaRef,
        /// The new in-sync set: the old one, or as much of it as keeps `min_in_sync`.
        isr: BTreeSet<ReplicaId>,
        /// With written acknowledgements: the tail with which the new primary stood, its log synced.
        #[serde(default)]
        stood: Option<TailId>,
    },
    /// No in-sync replica is known to have all that was acknowledged: with written acknowledgements none
    /// kept its tail, for all their machines lost power; otherwise the logs of those that are there may have
    /// lost their end. One goes on with what it has on its disk, which with written acknowledgements is at
    /// least all that was flushed.
    Salvage {
        /// The volume.
        volume: VolumeId,
        /// The epoch that must be in force.
        expect_epoch: Epoch,
        /// The in-sync replica whose log goes on, in the incarnation that it is registered with.
        primary: ReplicaRef,
        /// In-sync replicas that have been silent for too long to wait for.
        missing: BTreeSet<ReplicaId>,
    },
    /// An operator gives up on members that are gone: what is left of the volume goes on, and what
    /// only they held is lost. The one way on when no in-sync replica can take over.
    Recover {
        /// The volume.
        volume: VolumeId,
        /// The epoch that must be in force.
        expect_epoch: Epoch,
        /// The replica whose log goes on, in the incarnation that it is registered with; chosen by
        /// the leader (see [`super::recovery`]).
        primary: ReplicaRef,
        /// The nodes that don't run, by the operator's word.
        given_up: BTreeSet<NodeId>,
        /// The tail with which the replica stood for the end of the epoch in force: nobody who speaks in
        /// that epoch or before it can change what it holds any more.
        stood: Option<TailId>,
    },
    /// A replica beside those that the volume has, to be created.
    AddReplica {
        /// The volume.
        volume: VolumeId,
        /// Its fresh id.
        replica: ReplicaId,
        /// Where.
        node: NodeId,
        /// How much of a node's capacity volumes may claim, in percent.
        overcommit_percent: u32,
    },
    /// An operator wants a replica away, or no longer.
    RetireReplica {
        /// The volume.
        volume: VolumeId,
        /// Which.
        replica: ReplicaId,
        /// How.
        fate: Fate,
        /// A fresh replica to add with it, and where.
        instead: Option<(ReplicaId, NodeId)>,
        /// How much of a node's capacity volumes may claim, in percent.
        overcommit_percent: u32,
    },
    /// A replica that is not in sync leaves the list; its directory is to be removed.
    RemoveReplica {
        /// The volume.
        volume: VolumeId,
        /// The epoch that must be in force.
        expect_epoch: Epoch,
        /// Which.
        replica: ReplicaId,
    },
    /// What the volume's primary is to propose.
    SetWish {
        /// The volume.
        volume: VolumeId,
        /// All of it: what was wished before is not any more.
        wish: Wish,
    },
    /// An operator wants another primary.
    WishPrimary {
        /// The volume.
        volume: VolumeId,
        /// The in-sync replica that is to be it. The one that is it already: no other is wished.
        replica: ReplicaId,
    },
    /// An operator changes what the volume's clients may do.
    SetLimits {
        /// The volume.
        volume: VolumeId,
        /// What changes.
        change: LimitsChange,
    },
    /// An operator wants another size. The primary logs it, and when that is committed it is published. The
    /// size that is published already takes back what is wished.
    WishSize {
        /// The volume.
        volume: VolumeId,
        /// The size, as in [`VolumeRequest::size_bytes`].
        size_bytes: u64,
        /// Whether it may be a smaller one.
        shrink: bool,
        /// How much of a node's capacity volumes may claim, in percent.
        overcommit_percent: u32,
    },
    /// What becomes of a node's replicas; `None`: it holds them again.
    SetDuty {
        /// The node.
        node: NodeId,
        /// What.
        duty: Option<Duty>,
    },
    /// Ends a removed node that no volume lists any more: nothing waits for it from here on.
    ForgetNode {
        /// Which.
        node: NodeId,
    },
    /// Ends a volume.
    DeleteVolume {
        /// The volume.
        volume: VolumeId,
    },
    /// A replica of a deleted volume, or one that left its volume's list, is gone from its node.
    ConfirmDelete {
        /// The node that speaks.
        node: NodeId,
        /// Its process.
        process: u64,
        /// The volume.
        volume: VolumeId,
        /// Which replica.
        replica: ReplicaId,
    },
}

/// What an applied command did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Accepted {
    /// A log entry that carries no command (a Raft membership change or an empty entry).
    Nothing,
    /// The cluster's name, whoever gave it.
    Cluster(ClusterId),
    /// The registration stands, or stood already.
    Registered,
    /// The volume exists: created now, or earlier by the same create.
    Created(VolumeId),
    /// The confirmation stands, or stood already.
    Confirmed,
    /// The configuration that the change minted.
    Configured(Config),
    /// The replica is listed, and will be created.
    Added(ReplicaId),
    /// It is as it was asked for: now, or earlier.
    Done,
    /// The volume is deleted: now, or earlier.
    Deleted(VolumeId),
}

/// The outcome of one command.
pub type Response = Result<Accepted, Refusal>;
