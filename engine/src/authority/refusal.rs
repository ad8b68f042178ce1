//! Why a command was refused: what, why, and what to do next.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::state::{CreateId, Durability, MAX_REPLICAS, MAX_VOLUME_BYTES, WriteAck};
use crate::types::{Config, Epoch, Incarnation, NodeId, ReplicaId, VolumeId};

/// Nodes that were left out, for people; nothing if none was.
pub(super) fn beside_low(low: u32) -> String {
    let nodes =
        |what: &str| format!(" beside {what} whose disks are below the placement watermark");
    match low {
        0 => String::new(),
        1 => nodes("one node"),
        _ => nodes(&format!("{low} nodes")),
    }
}

/// A command that changed nothing. [`Refusal::word`] is stable and for programs, the text is for
/// people.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Nothing can be registered or created yet.
    #[error(
        "the cluster has no id yet: wait until the masters have elected a leader and try again"
    )]
    NotBootstrapped,
    /// The name is no DNS label.
    #[error(
        "{name:?} is not a volume name: use 1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit, and no UUID"
    )]
    BadName { name: String },
    /// Another volume has the name.
    #[error(
        "there is a volume named {name:?} already ({by}): choose another name or delete that one"
    )]
    NameTaken { name: String, by: VolumeId },
    /// The create's id belongs to one with other parameters.
    #[error(
        "id {create} was used to create volume {volume}, with other parameters: draw a fresh id for each create"
    )]
    CreateIdReused { create: CreateId, volume: VolumeId },
    /// The id that was drawn for a volume is another's.
    #[error("volume id {volume} is in use: ids are never used twice")]
    VolumeIdReused { volume: VolumeId },
    /// The size is 0, not whole blocks, or too large.
    #[error(
        "a volume can't have {size_bytes} bytes: give a multiple of 4096 from 4096 to {MAX_VOLUME_BYTES} (64 TiB)"
    )]
    BadSize { size_bytes: u64 },
    /// A smaller size, without the word that it is meant.
    #[error(
        "{size_bytes} bytes are fewer than the {published} that the volume has: say that it may shrink (--yes), if no client uses what lies beyond"
    )]
    Shrinks { size_bytes: u64, published: u64 },
    /// Another size is wished already.
    #[error(
        "the volume is to have {wished} bytes, which is under way: wait for it, or take it back by asking for the {published} that it has"
    )]
    ResizeUnderWay { wished: u64, published: u64 },
    /// The number of replicas is out of range.
    #[error("a volume can't have {replicas} replicas: give 1 to {MAX_REPLICAS}")]
    BadReplicas { replicas: u32 },
    /// `min_in_sync` is out of range.
    #[error(
        "min-in-sync {min_in_sync} does not fit {replicas} replicas: give 1 to {replicas}, or leave it out"
    )]
    BadMinInSync { min_in_sync: u32, replicas: u32 },
    /// A volume that commits with its primary alone can't wait for others.
    #[error(
        "min-in-sync {min_in_sync} does not go with best_effort, which acknowledges what the primary alone has: leave it out, or use sync_all"
    )]
    MinInSyncOfOne { min_in_sync: u32 },
    /// `min_in_sync` for a volume whose voters' majority decides.
    #[error(
        "min-in-sync has no meaning with durability sync_quorum, where a majority of the voters has every acknowledged write: leave it out"
    )]
    MinInSyncOfQuorum,
    /// A limit of what clients may do is out of range.
    #[error("a limit of {given} for {what} can't be: give {least} to {most}, or none")]
    BadLimit { what: String, given: u64, least: u64, most: u64 },
    /// Acknowledgements before the sync, in a mode whose promises they would break.
    #[error(
        "write-ack {write_ack} goes with durability sync_all only, where every in-sync replica has the write; with {durability} too few would have it to lose a power supply: use write-ack durable, or durability sync_all"
    )]
    Unsupported { durability: Durability, write_ack: WriteAck },
    /// Fewer nodes than replicas.
    #[error(
        "{replicas} replicas need {replicas} nodes, but of {registered} registered nodes only {alive} are alive: start more datanodes or ask for fewer replicas"
    )]
    TooFewNodes { replicas: u32, registered: u32, alive: u32 },
    /// Fewer nodes with a key than replicas of an encrypted volume.
    #[error(
        "{replicas} encrypted replicas need {replicas} nodes with a key, but of {alive} live nodes {with_key} have one: give the datanodes a --key-file, or ask for fewer replicas"
    )]
    TooFewKeys { replicas: u32, alive: u32, with_key: u32 },
    /// Fewer zones than replicas of a zone-spread volume.
    #[error(
        "{replicas} replicas in different zones need {replicas} zones, but nodes with room are in {zones}{}: add nodes in other zones, ask for fewer replicas, or leave zone spreading out", beside_low(*low)
    )]
    TooFewZones {
        replicas: u32,
        zones: u32,
        #[serde(default)]
        low: u32,
    },
    /// Too few nodes have room.
    #[error(
        "{replicas} replicas of {size_bytes} bytes don't fit: only {fitting} live nodes have room and the roomiest has {largest_free} bytes left{}; make the volume smaller, delete others, or add nodes", beside_low(*low)
    )]
    NoCapacity {
        replicas: u32,
        size_bytes: u64,
        fitting: u32,
        largest_free: u64,
        /// Live nodes that have it to claim, on disks that are low on room.
        #[serde(default)]
        low: u32,
    },
    /// The placement that came with a create is not one that may be used.
    #[error("the chosen placement does not hold any more ({why}): try again")]
    BadPlacement { why: String },
    /// A limit of the cluster.
    #[error("the cluster has {limit} {what} already, its limit: remove some first")]
    LimitReached { what: String, limit: u64 },
    /// No such volume.
    #[error("there is no volume {volume:?}: see `sbkctl volume list`")]
    NoSuchVolume { volume: String },
    /// The volume is deleted.
    #[error("volume {volume} is deleted: a new volume needs a create of its own")]
    VolumeDeleted { volume: VolumeId },
    /// A confirmation of a delete that nobody ordered.
    #[error("volume {volume} is not deleted: its replicas must be kept")]
    NotDeleted { volume: VolumeId },
    /// The volume's first epoch was not minted.
    #[error("volume {volume} has no configuration yet: wait until its replicas were created")]
    NoEpoch { volume: VolumeId },
    /// Another epoch is in force.
    #[error(
        "volume {} is at epoch {}, not {expected}: take the configuration in this answer and decide anew",
        .config.volume, .config.epoch
    )]
    StaleEpoch { expected: Epoch, config: Box<Config> },
    /// The proposer is not the primary in force.
    #[error(
        "replica {replica} in incarnation {incarnation} is not the primary of volume {volume}: stop serving it and wait for an assignment"
    )]
    NotPrimary { volume: VolumeId, replica: ReplicaId, incarnation: Incarnation },
    /// The node never registered.
    #[error("node {node} is not registered: register first")]
    UnknownNode { node: NodeId },
    /// An older registration than the one that stands.
    #[error(
        "registration {}.{} of node {node} is older than {}.{}, which stands: an older process or a delayed message, nothing to do",
        .given.0, .given.1, .registered.0, .registered.1
    )]
    StaleRegistration { node: NodeId, given: (u64, u64), registered: (u64, u64) },
    /// Two different registrations under one number.
    #[error(
        "node {node} has registered as {}.{} with other contents: two processes seem to run with copies of one data directory; stop one and give it a directory of its own",
        .order.0, .order.1
    )]
    RegistrationConflict { node: NodeId, order: (u64, u64) },
    /// A registration that can't be.
    #[error("the registration of node {node} is not valid: {why}")]
    BadRegistration { node: NodeId, why: String },
    /// A message of a process that is not the registered one.
    #[error(
        "process {given} of node {node} is not the registered one ({registered}): register first, or stop if a newer process runs"
    )]
    StaleProcess { node: NodeId, given: u64, registered: u64 },
    /// The replica is registered in another run, or not at all.
    #[error(
        "replica {replica} is not registered in incarnation {given}{}: register the node's replicas and try again",
        other_run(.registered)
    )]
    StaleIncarnation { replica: ReplicaId, given: Incarnation, registered: Option<Incarnation> },
    /// The volume does not list the replica there.
    #[error(
        "volume {volume} has no replica {replica} on that node: keep the directory aside, don't use it"
    )]
    UnknownReplica { volume: VolumeId, replica: ReplicaId },
    /// The replica's create was not confirmed.
    #[error("replica {replica} was not confirmed by its node yet: confirm it first")]
    NotConfirmed { replica: ReplicaId },
    /// The replica was confirmed in an earlier run, and this run did not find it at its start.
    #[error(
        "replica {replica} was created and confirmed before, and its node did not register it: what was made now is another replica; keep it aside, don't use it"
    )]
    AlreadyConfirmed { replica: ReplicaId },
    /// Not a member of the in-sync set.
    #[error("replica {replica} is not in the in-sync set of volume {volume}")]
    NotInSync { volume: VolumeId, replica: ReplicaId },
    /// A member of the in-sync set already.
    #[error("replica {replica} is in the in-sync set of volume {volume} already")]
    AlreadyInSync { volume: VolumeId, replica: ReplicaId },
    /// The replica is in the middle of a rebuild.
    #[error("replica {replica} is not complete: it can't be promoted before it was rebuilt")]
    NotComplete { replica: ReplicaId },
    /// It lost what it had written and not synced, and may lack acknowledged writes.
    #[error(
        "replica {replica} lost power, or a sync of its log failed: it can't be promoted before it joined again"
    )]
    TailLost { replica: ReplicaId },
    /// A promotion that asks for it, of a replica that has not stood.
    #[error(
        "replica {replica} has not synced its log and left the epoch that is to end: it must stand first"
    )]
    NotStood { replica: ReplicaId },
    /// A primary never leaves its own in-sync set.
    #[error("replica {replica} is the primary and can't leave the in-sync set: fail over first")]
    PrimaryCantLeave { replica: ReplicaId },
    /// The in-sync set would become too small.
    #[error(
        "the in-sync set of volume {volume} can't shrink to {left}: min-in-sync is {min_in_sync}; bring another replica in sync first"
    )]
    BelowMinInSync { volume: VolumeId, left: u32, min_in_sync: u32 },
    /// A failover to the primary in force.
    #[error("replica {replica} is the primary in this incarnation already: nothing to do")]
    AlreadyPrimary { replica: ReplicaId },
    /// A node that was given up holds nothing of the volume.
    #[error(
        "node {node} holds no replica of volume {volume}: see `sbkctl volume show` for those that do"
    )]
    NoReplicaThere { volume: VolumeId, node: NodeId },
    /// The chosen replica is on a node that was given up.
    #[error(
        "replica {replica} is on node {node}, which was given up: it can't be the one that goes on"
    )]
    GivenUp { replica: ReplicaId, node: NodeId },
    /// Nothing needs to be lost: an in-sync replica can take over, or may come back.
    #[error(
        "replica {replica} on node {node} is in sync and may still hold everything: start that node, or name it with --node-off if it is lost for good"
    )]
    StillInSync { volume: VolumeId, replica: ReplicaId, node: NodeId },
    /// Nothing needs to be lost: an in-sync replica is there.
    #[error(
        "replica {replica} on node {node} is in sync and answers, so nothing needs to be given up: see `sbkctl volume show` for what the volume waits for"
    )]
    NotNeeded { replica: ReplicaId, node: NodeId },
    /// A node that was given up lives.
    #[error(
        "node {node} was heard {ago_ms} ms ago, so it is not off: stop it first, or leave it out of --node-off"
    )]
    NodeHeard { node: NodeId, ago_ms: u64 },
    /// The leader can't know yet whether a node lives.
    #[error(
        "the masters' leader has not listened long enough to know whether node {node} is off: try again in {again_ms} ms"
    )]
    TooEarly { node: NodeId, again_ms: u64 },
    /// A replica that answers is still promised to a primary that was given up.
    #[error(
        "replica {replica} on node {node} heard from the primary {primary} within the last second, so that one still runs: switch its node off first"
    )]
    StillPromised { replica: ReplicaId, node: NodeId, primary: ReplicaId },
    /// A replica that might hold more than the one that would be chosen does not answer.
    #[error(
        "replica {replica} on node {node} does not answer and may hold more than those that do: start that node, or name it with --node-off if it is lost for good"
    )]
    Unaccounted { replica: ReplicaId, node: NodeId },
    /// A replica that might hold more than the one that would be chosen is not open yet.
    #[error(
        "replica {replica} on node {node} is not open, will be opened again, and may hold more than those that are: wait for it (`sbkctl volume show` tells why it is closed); if it is lost for good, switch that node off and name it with --node-off"
    )]
    NotOpenYet { replica: ReplicaId, node: NodeId },
    /// A replica that might hold more than the others was asked to stand, and did not in time.
    #[error(
        "replica {replica} on node {node} does not answer: it must stand before the volume can go on with what is left, so that nothing a node that was given up has sent can change it any more. Try again; if its store or its process hangs, restart that node, or switch it off and name it with --node-off"
    )]
    DidNotStand { replica: ReplicaId, node: NodeId },
    /// What the operator agreed to is not what would be done now.
    #[error(
        "volume {volume} has changed since the loss was agreed to: look at what would be lost now, and decide anew"
    )]
    OtherRecovery { volume: VolumeId },
    /// No replica is left to go on with.
    #[error(
        "volume {volume} has no complete replica on a node that answers: start a node that holds one"
    )]
    NothingLeft { volume: VolumeId },
    /// The volume is encrypted, and the node has no key.
    #[error(
        "volume {volume} is encrypted and node {node} has no key: give its datanode a --key-file, or choose another"
    )]
    NoKey { volume: VolumeId, node: NodeId },
    /// The node takes no new replicas.
    #[error(
        "node {node} is drained or removed, or its replica is to go: `sbkctl node undrain` lets it hold replicas again, or choose another"
    )]
    NotPlaceable { node: NodeId },
    /// The node holds a replica of the volume, or has one still to remove.
    #[error(
        "node {node} holds a replica of volume {volume} already, or has still to remove one: choose another node, or wait"
    )]
    NodeTaken { volume: VolumeId, node: NodeId },
    /// The node has not enough room.
    #[error("node {node} has no room for {size_bytes} more bytes: choose another, or add nodes")]
    NoRoom { node: NodeId, size_bytes: u64 },
    /// A replica that is in sync can't leave the list.
    #[error(
        "replica {replica} is in the in-sync set of volume {volume}: it must leave that first, once others stand in for it"
    )]
    ListedInSync { volume: VolumeId, replica: ReplicaId },
    /// Too many replicas of the volume are being replaced.
    #[error(
        "volume {volume} lists {listed} replicas already: wait until those that are being replaced are gone"
    )]
    TooManyReplicas { volume: VolumeId, listed: u32 },
    /// The node still holds replicas.
    #[error("node {node} still holds {replicas} replicas: they must be moved away first")]
    NodeInUse { node: NodeId, replicas: u32 },
    /// The proposed in-sync set is not a part of the old one with the new primary in it.
    #[error("the proposed in-sync set of volume {volume} is not valid: {why}")]
    BadIsr { volume: VolumeId, why: String },
}

fn other_run(registered: &Option<Incarnation>) -> String {
    match registered {
        Some(incarnation) => format!(" but in {incarnation}"),
        None => " nor in any other".to_owned(),
    }
}

impl Refusal {
    /// A stable word for programs.
    pub fn word(&self) -> &'static str {
        match self {
            Self::NotBootstrapped => "not-bootstrapped",
            Self::BadName { .. } => "bad-name",
            Self::NameTaken { .. } => "name-taken",
            Self::CreateIdReused { .. } => "create-id-reused",
            Self::VolumeIdReused { .. } => "volume-id-reused",
            Self::BadSize { .. } => "bad-size",
            Self::Shrinks { .. } => "shrinks",
            Self::ResizeUnderWay { .. } => "resize-under-way",
            Self::BadReplicas { .. } => "bad-replicas",
            Self::BadMinInSync { .. } => "bad-min-in-sync",
            Self::MinInSyncOfOne { .. } => "min-in-sync-of-one",
            Self::MinInSyncOfQuorum => "min-in-sync-of-quorum",
            Self::BadLimit { .. } => "bad-limit",
            Self::Unsupported { .. } => "unsupported",
            Self::TooFewNodes { .. } => "too-few-nodes",
            Self::TooFewKeys { .. } => "too-few-keys",
            Self::TooFewZones { .. } => "too-few-zones",
            Self::NoCapacity { .. } => "no-capacity",
            Self::BadPlacement { .. } => "bad-placement",
            Self::LimitReached { .. } => "limit-reached",
            Self::NoSuchVolume { .. } => "no-such-volume",
            Self::VolumeDeleted { .. } => "volume-deleted",
            Self::NotDeleted { .. } => "not-deleted",
            Self::NoEpoch { .. } => "no-epoch",
            Self::StaleEpoch { .. } => "stale-epoch",
            Self::NotPrimary { .. } => "not-primary",
            Self::UnknownNode { .. } => "unknown-node",
            Self::StaleRegistration { .. } => "stale-registration",
            Self::RegistrationConflict { .. } => "registration-conflict",
            Self::BadRegistration { .. } => "bad-registration",
            Self::StaleProcess { .. } => "stale-process",
            Self::StaleIncarnation { .. } => "stale-incarnation",
            Self::UnknownReplica { .. } => "unknown-replica",
            Self::NotConfirmed { .. } => "not-confirmed",
            Self::AlreadyConfirmed { .. } => "already-confirmed",
            Self::NotInSync { .. } => "not-in-sync",
            Self::AlreadyInSync { .. } => "already-in-sync",
            Self::NotComplete { .. } => "not-complete",
            Self::TailLost { .. } => "tail-lost",
            Self::NotStood { .. } => "not-stood",
            Self::PrimaryCantLeave { .. } => "primary-cant-leave",
            Self::BelowMinInSync { .. } => "below-min-in-sync",
            Self::AlreadyPrimary { .. } => "already-primary",
            Self::NoReplicaThere { .. } => "no-replica-there",
            Self::GivenUp { .. } => "given-up",
            Self::StillInSync { .. } => "still-in-sync",
            Self::NotNeeded { .. } => "not-needed",
            Self::NodeHeard { .. } => "node-heard",
            Self::TooEarly { .. } => "too-early",
            Self::StillPromised { .. } => "still-promised",
            Self::Unaccounted { .. } => "unaccounted",
            Self::NotOpenYet { .. } => "not-open-yet",
            Self::DidNotStand { .. } => "did-not-stand",
            Self::OtherRecovery { .. } => "other-recovery",
            Self::NothingLeft { .. } => "nothing-left",
            Self::NotPlaceable { .. } => "not-placeable",
            Self::NoKey { .. } => "no-key",
            Self::NodeTaken { .. } => "node-taken",
            Self::NoRoom { .. } => "no-room",
            Self::ListedInSync { .. } => "listed-in-sync",
            Self::TooManyReplicas { .. } => "too-many-replicas",
            Self::NodeInUse { .. } => "node-in-use",
            Self::BadIsr { .. } => "bad-isr",
        }
    }
}
