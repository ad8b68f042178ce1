//! Which nodes get a new volume's replicas, and whether a volume may be created at all.

use std::collections::{BTreeMap, BTreeSet};

use super::command::VolumeRequest;
use super::refusal::Refusal;
use super::state::{
    Durability, MAX_REPLICAS, MAX_VOLUME_BYTES, Registration, State, VolumeSpec, WriteAck,
    default_min_in_sync,
};
use crate::bugs::{Bug, on};
use crate::replication::quorum::majority;
use crate::types::{BLOCK_SIZE, NodeId, ReplicaId, VolumeId};

/// A volume's specification from what a client asked for, defaults filled in.
///
/// # Errors
/// Everything that is wrong whatever the cluster looks like: name, size, replicas, modes.
pub fn check_request(request: &VolumeRequest) -> Result<VolumeSpec, Refusal> {
    let VolumeRequest { name, size_bytes, replicas, durability, write_ack, .. } = request.clone();
    if !is_volume_name(&name) {
        // The name is outside input of any length, and the refusal goes into answers and logs.
        return Err(Refusal::BadName { name: name.chars().take(80).collect() });
    }
    if size_bytes == 0 || size_bytes % BLOCK_SIZE != 0 || size_bytes > MAX_VOLUME_BYTES {
        return Err(Refusal::BadSize { size_bytes });
    }
    if !(1..=MAX_REPLICAS).contains(&replicas) {
        return Err(Refusal::BadReplicas { replicas });
    }
    match (durability, write_ack) {
        (
            Durability::SyncAll | Durability::SyncQuorum | Durability::BestEffort,
            WriteAck::Durable,
        )
        | (Durability::SyncAll, WriteAck::Written) => {}
        (Durability::SyncQuorum | Durability::BestEffort, WriteAck::Written) => {
            return Err(Refusal::Unsupported { durability, write_ack });
        }
    }
    request.limits.check()?;
    let min_in_sync = min_in_sync(request)?;
    let blocks = size_bytes / BLOCK_SIZE;
    let VolumeRequest { zone_spread, encrypted, .. } = *request;
    Ok(VolumeSpec {
        name,
        blocks,
        durability,
        write_ack,
        min_in_sync,
        replicas,
        zone_spread,
        encrypted,
    })
}

/// Fewest in-sync replicas: asked for, or the default. In `sync_quorum` nobody chooses: the majority
/// of the replicas that the volume should have is what its first list of voters begins with.
fn min_in_sync(request: &VolumeRequest) -> Result<u32, Refusal> {
    let VolumeRequest { replicas, durability, min_in_sync, .. } = *request;
    match (durability, min_in_sync) {
        (Durability::SyncQuorum, Some(_)) => Err(Refusal::MinInSyncOfQuorum),
        (Durability::SyncQuorum, None) => Ok(majority(replicas as usize) as u32),
        (Durability::BestEffort, None | Some(1)) => Ok(1),
        (Durability::BestEffort, Some(min_in_sync)) => Err(Refusal::MinInSyncOfOne { min_in_sync }),
        (Durability::SyncAll, asked) => {
            let least = asked.unwrap_or(default_min_in_sync(replicas));
            match (1..=replicas).contains(&least) {
                true => Ok(least),
                false => Err(Refusal::BadMinInSync { min_in_sync: least, replicas }),
            }
        }
    }
}

/// Whether a name is a DNS label: it is part of export names, paths and metric labels, so `@`, `/`
/// and the like must never be in it. And no UUID: volumes are asked for by name or UUID, so a
/// volume that is named as another one's UUID could be deleted in its place.
fn is_volume_name(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
        && name.parse::<VolumeId>().is_err()
}

/// Bytes of a node that a new replica may claim. It is on one disk: what is left on the one that has most.
pub(super) fn free_bytes(state: &State, node: &Registration, overcommit_percent: u32) -> u64 {
    room(state, node, overcommit_percent).into_iter().max().unwrap_or(0)
}

/// The same for a replica that is yet to be placed: disks that are low on room get none, whatever is left to
/// claim of them. Claims are thin, and what others put on a disk is no claim at all. [A volume's replica was
/// made on a disk that had been filled from outside. All volumes on it came to wait for room.]
pub(super) fn placeable_bytes(
    state: &State,
    node: &Registration,
    low: &BTreeSet<u32>,
    overcommit_percent: u32,
) -> u64 {
    let room = (0..).zip(room(state, node, overcommit_percent));
    let open = room.filter(|(disk, _)| !low.contains(disk) || on(Bug::PlaceOnLowDisk));
    open.map(|(_, bytes)| bytes).max().unwrap_or(0)
}

/// Whether a node has a disk that may get a new replica: one that can be used and is not low on room.
pub fn takes_new(node: &Registration, low: &BTreeSet<u32>) -> bool {
    match node.disks.is_empty() {
        true => low.is_empty(),
        false => (0..).zip(&node.disks).any(|(disk, size)| *size > 0 && !low.contains(&disk)),
    }
}

/// Bytes by which the claim of a replica on the node may grow.
pub(super) fn growth_bytes(
    state: &State,
    node: &Registration,
    replica: ReplicaId,
    overcommit_percent: u32,
) -> u64 {
    let room = room(state, node, overcommit_percent);
    let disk = node.replicas.get(&replica).and_then(|replica| replica.disk);
    let on_it = disk.and_then(|disk| room.get(disk as usize)).copied();
    on_it.unwrap_or_else(|| room.into_iter().max().unwrap_or(0))
}

/// Bytes that volumes claim of each of a node's disks, for people: of replicas of which the node has said where
/// they are.
pub fn allocated(state: &State, node: &Registration) -> Vec<u64> {
    let mut claims = vec![0u64; node.disks.len().max(1)];
    for (replica, bytes) in state.claims(node.node) {
        let disk = node.replicas.get(&replica).and_then(|replica| replica.disk);
        if let Some(claimed) = claims
            .get_mut(disk.unwrap_or(0) as usize)
            .filter(|_| disk.is_some() || node.disks.len() <= 1)
        {
            *claimed = claimed.saturating_add(bytes);
        }
    }
    claims
}

/// Bytes that may be claimed of each of a node's disks. What is on a disk that nobody knows yet counts on
/// each of them; what may be on one that can't be used, on none.
fn room(state: &State, node: &Registration, overcommit_percent: u32) -> Vec<u64> {
    let disks = if node.disks.is_empty() { vec![node.capacity_bytes] } else { node.disks.clone() };
    let mut claims = vec![0u64; disks.len()];
    let confirmed = |id: &ReplicaId| {
        let listed = state.volumes().values().find_map(|v| v.replicas.get(id));
        listed.is_none_or(|replica| replica.confirmed.is_some())
    };
    for (replica, bytes) in state.claims(node.node) {
        let disk = node.replicas.get(&replica).and_then(|replica| replica.disk);
        match disk.and_then(|disk| claims.get_mut(disk as usize)) {
            Some(claimed) => *claimed = claimed.saturating_add(bytes),
            None if state.may_be_away(node.node, replica) && confirmed(&replica) => {}
            None => claims.iter_mut().for_each(|c| *c = c.saturating_add(bytes)),
        }
    }
    let left = |(capacity, claimed): (u64, u64)| {
        let claimable = u128::from(capacity) * u128::from(overcommit_percent) / 100;
        u64::try_from(claimable).unwrap_or(u64::MAX).saturating_sub(claimed)
    };
    disks.into_iter().zip(claims).map(left).collect()
}

/// Whether a replica of the volume may be on the node, whatever room there is: an encrypted one needs a key.
pub(super) fn can_hold(spec: &VolumeSpec, node: &Registration) -> bool {
    node.encrypts || !spec.encrypted
}

/// Chooses nodes for a new volume: different nodes, then zones that have fewest of its replicas,
/// then the node with the most free space.
///
/// Takes the fresh replica ids (as many as the volume wants replicas), the nodes that are alive, each with its
/// disks that are low on room, and how much of a node's capacity may be claimed, in percent.
///
/// # Errors
/// [`Refusal::TooFewNodes`], [`Refusal::TooFewKeys`], [`Refusal::NoCapacity`] or [`Refusal::TooFewZones`].
pub fn place(
    state: &State,
    spec: &VolumeSpec,
    ids: &[ReplicaId],
    alive: &BTreeMap<NodeId, BTreeSet<u32>>,
    overcommit_percent: u32,
) -> Result<BTreeMap<ReplicaId, NodeId>, Refusal> {
    let live: Vec<&Registration> =
        state.nodes().values().filter(|n| alive.contains_key(&n.node)).collect();
    let live: Vec<_> = live.into_iter().filter(|n| state.duty(n.node).is_none()).collect();
    if live.len() < spec.replicas as usize {
        return Err(Refusal::TooFewNodes {
            replicas: spec.replicas,
            registered: state.nodes().len() as u32,
            alive: live.len() as u32,
        });
    }
    let alive_nodes = live.len() as u32;
    let live: Vec<_> = live.into_iter().filter(|n| can_hold(spec, n)).collect();
    if live.len() < spec.replicas as usize {
        return Err(Refusal::TooFewKeys {
            replicas: spec.replicas,
            alive: alive_nodes,
            with_key: live.len() as u32,
        });
    }
    let placeable =
        |n: &Registration| placeable_bytes(state, n, &alive[&n.node], overcommit_percent);
    let free: BTreeMap<NodeId, u64> = live.iter().map(|n| (n.node, placeable(n))).collect();
    let fits_but_low = |n: &&&Registration| {
        free[&n.node] < spec.bytes() && free_bytes(state, n, overcommit_percent) >= spec.bytes()
    };
    let low = live.iter().filter(fits_but_low).count() as u32;
    let mut fitting: Vec<&Registration> =
        live.into_iter().filter(|n| free[&n.node] >= spec.bytes()).collect();
    if fitting.len() < spec.replicas as usize {
        return Err(Refusal::NoCapacity {
            replicas: spec.replicas,
            size_bytes: spec.bytes(),
            fitting: fitting.len() as u32,
            largest_free: free.values().copied().max().unwrap_or(0),
            low,
        });
    }
    let zones = fitting.iter().map(|n| &n.zone).collect::<BTreeSet<_>>().len() as u32;
    if spec.zone_spread && zones < spec.replicas {
        return Err(Refusal::TooFewZones { replicas: spec.replicas, zones, low });
    }
    if ids.len() != spec.replicas as usize {
        let why = format!("{} replica ids for {} replicas", ids.len(), spec.replicas);
        return Err(Refusal::BadPlacement { why });
    }
    let mut used: BTreeMap<Option<String>, u32> = BTreeMap::new();
    let mut chosen = BTreeMap::new();
    for id in ids {
        let rank = |n: &&Registration| {
            let in_zone = used.get(&n.zone).copied().unwrap_or(0);
            (in_zone, std::cmp::Reverse(free[&n.node]), n.node)
        };
        let Some(best) = (0..fitting.len()).min_by_key(|i| rank(&fitting[*i])) else { break };
        let node = fitting.swap_remove(best);
        *used.entry(node.zone.clone()).or_default() += 1;
        chosen.insert(*id, node.node);
    }
    Ok(chosen)
}

/// Whether the replica exists, or may still.
pub(super) fn is_used(state: &State, id: ReplicaId) -> bool {
    let mut live = state.volumes().values();
    live.any(|v| v.replicas.contains_key(&id) || v.retired.contains_key(&id))
        || state.tombstones().values().any(|t| t.remaining.contains_key(&id))
}

/// Checks a placement that comes with a committed create: the cluster may have changed since it
/// was chosen. Liveness is not checked: it is the leader's, not the state's.
pub(super) fn check_placement(
    state: &State,
    spec: &VolumeSpec,
    placement: &BTreeMap<ReplicaId, NodeId>,
    overcommit_percent: u32,
) -> Result<(), Refusal> {
    let bad = |why: &str| Err(Refusal::BadPlacement { why: why.to_owned() });
    if placement.len() != spec.replicas as usize {
        return bad("it does not have the number of replicas that was asked for");
    }
    let nodes: BTreeSet<NodeId> = placement.values().copied().collect();
    if nodes.len() != placement.len() {
        return bad("it has two replicas on one node");
    }
    let mut zones = BTreeSet::new();
    for node in &nodes {
        let registered = state.nodes().get(node).ok_or(Refusal::UnknownNode { node: *node })?;
        zones.insert(registered.zone.as_deref());
        if state.duty(*node).is_some() {
            return Err(Refusal::NotPlaceable { node: *node });
        }
        if !can_hold(spec, registered) {
            return bad("a node has no key for it");
        }
        if free_bytes(state, registered, overcommit_percent) < spec.bytes() {
            return bad("a node has no room left for it");
        }
    }
    if spec.zone_spread && zones.len() != nodes.len() {
        return bad("it has two replicas in one zone");
    }
    match placement.keys().any(|id| is_used(state, *id)) {
        true => bad("a replica id is in use"),
        false => Ok(()),
    }
}
