//! What operators and tools ask.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sbk_engine::authority::placement::{check_request, place, takes_new};
use sbk_engine::authority::{
    Accepted, Command, Duty, Fate, LimitsChange, Refusal, State, VolumeRequest,
};
use sbk_engine::types::{NodeId, ReplicaId, VolumeId};
use sbk_proto::v1;
use sbk_proto::v1::control_server::Control;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::info::Source;
use crate::clock::now;
use crate::convert;
use crate::gate::{refused, refused_with};
use crate::member::{Member, OVERCOMMIT_PERCENT};

/// A member that was heard within this time is called reachable. Between elections a follower
/// hears only the leader.
const RECENT: Duration = Duration::from_secs(2);

/// `Control`.
#[derive(Clone, Debug)]
pub(crate) struct ControlService {
    /// This member.
    pub(crate) member: Member,
}

impl ControlService {
    pub(super) fn look<T>(&self, look: impl FnOnce(&Source<'_>) -> T) -> T {
        let applied = self.member.machine.read();
        let leading = self.member.leading();
        let (state, history) = (&applied.authority, &applied.history);
        look(&Source { state, history, leading: &leading, now: now() })
    }

    pub(super) fn describe(&self, volume: VolumeId) -> Option<v1::VolumeInfo> {
        self.look(|source| {
            source.state.volumes().get(&volume).map(|v| source.volume_with_history(v))
        })
    }

    pub(super) fn find(&self, name_or_id: &str) -> Result<VolumeId, Status> {
        let found = self.member.read(|state| state.find_volume(name_or_id).map(|v| v.id));
        found.ok_or_else(|| no_such_volume(name_or_id))
    }

    /// A volume that waits for its removal is found too: the answer to its delete may be lost.
    fn find_to_delete(&self, name_or_id: &str) -> Result<VolumeId, Status> {
        let waiting = |state: &State| {
            let mut waiting = state.tombstones().values();
            let id = name_or_id.parse().ok();
            waiting.find(|t| Some(t.id) == id || t.spec.name == name_or_id).map(|t| t.id)
        };
        self.find(name_or_id).or_else(|none| self.member.read(waiting).ok_or(none))
    }

    /// Whether this leader hears the node.
    fn heard(&self, node: NodeId) -> bool {
        self.look(|source| source.leading.detector.is_heard(source.now, node))
    }

    /// Whether the node may get a new replica, for all that it said of the room on its disks.
    fn takes_new(&self, node: NodeId) -> bool {
        self.look(|source| {
            let registered = source.state.nodes().get(&node);
            let low = source.leading.detector.low_disks(node);
            registered.zip(low).is_none_or(|(registered, low)| takes_new(registered, low))
        })
    }

    /// The volume's replica on the node that is not on its way out already.
    fn replica_on(&self, volume: VolumeId, node: NodeId) -> Result<ReplicaId, Status> {
        let found = self.member.read(|state| {
            let replicas = &state.volumes().get(&volume)?.replicas;
            replicas.iter().find(|(_, replica)| replica.node == node).map(|(id, _)| *id)
        });
        found.ok_or_else(|| {
            let text = format!("volume {volume} has no replica on node {node}");
            refused_with("unknown-replica", text)
        })
    }

    /// Nodes that are not suspected, and those of them that this leader has heard itself, each with its disks
    /// that are low on room. A new leader suspects nobody for a while, the dead included, and knows nothing
    /// of the room of those that it has not heard.
    fn alive_and_heard(&self) -> (Placeable, Placeable) {
        self.look(|source| {
            let detector = &source.leading.detector;
            let nodes = source.state.nodes().keys().copied();
            let alive = nodes.filter(|id| detector.is_alive(source.now, *id));
            let low = |id| detector.low_disks(id).cloned();
            let alive: Vec<_> = alive.map(|id| (id, low(id))).collect();
            let heard = alive.iter().filter_map(|(id, low)| Some((*id, low.clone()?))).collect();
            (alive.into_iter().map(|(id, low)| (id, low.unwrap_or_default())).collect(), heard)
        })
    }
}

/// Nodes, each with its disks that are low on room.
type Placeable = BTreeMap<NodeId, BTreeSet<u32>>;

pub(super) fn no_such_volume(name_or_id: &str) -> Status {
    // Outside input of any length, and a status travels in HTTP headers, whose size is limited.
    let volume = name_or_id.chars().take(80).collect();
    let refusal = Refusal::NoSuchVolume { volume };
    refused(&refusal)
}

#[tonic::async_trait]
impl Control for ControlService {
    async fn create_volume(
        &self,
        request: Request<v1::CreateVolumeRequest>,
    ) -> Result<Response<v1::VolumeInfo>, Status> {
        self.member.linearizable().await?;
        let raw = request.into_inner();
        let create = convert::create_id(&raw.id)?;
        let wanted = VolumeRequest {
            name: raw.name,
            size_bytes: raw.size_bytes,
            replicas: raw.replicas,
            durability: convert::durability_from(raw.durability)?,
            write_ack: convert::write_ack_from(raw.write_ack)?,
            min_in_sync: (raw.min_in_sync > 0).then_some(raw.min_in_sync),
            zone_spread: raw.zone_spread,
            encrypted: raw.encrypted,
            limits: convert::limits_from(raw.limits.as_ref()),
        };
        let refuse = |refusal: Refusal| refused(&refusal);
        let spec = check_request(&wanted).map_err(refuse)?;
        // The same create again, its answer lost: placing it anew might find less room.
        let stands =
            |state: &State| state.created_by(create).filter(|v| v.spec == spec).map(|v| v.id);
        if let Some(volume) = self.member.read(stands) {
            let info = self.describe(volume).ok_or_else(|| no_such_volume(&volume.to_string()))?;
            return Ok(Response::new(info));
        }
        let fresh: Vec<_> = (0..spec.replicas).map(|_| ReplicaId(Uuid::new_v4())).collect();
        // One that was not heard yet may be dead: it is taken only if it takes that many.
        let (alive, heard) = self.alive_and_heard();
        let on = |state: &State, nodes: &Placeable| {
            place(state, &spec, &fresh, nodes, OVERCOMMIT_PERCENT)
        };
        let placement = self.member.read(|state| on(state, &heard).or_else(|_| on(state, &alive)));
        let placement = placement.map_err(refuse)?;
        let command = Command::CreateVolume {
            volume: VolumeId(Uuid::new_v4()),
            create,
            request: wanted,
            placement,
            overcommit_percent: OVERCOMMIT_PERCENT,
        };
        let volume = match self.member.accepted(command).await? {
            Accepted::Created(volume) => volume,
            other => return Err(Status::internal(format!("a create was answered with {other:?}"))),
        };
        let info = self.describe(volume).ok_or_else(|| no_such_volume(&volume.to_string()))?;
        Ok(Response::new(info))
    }

    async fn list_volumes(
        &self,
        _: Request<v1::ListVolumesRequest>,
    ) -> Result<Response<v1::ListVolumesResponse>, Status> {
        self.member.linearizable().await?;
        let volumes = self.look(|source| {
            let live = source.state.volumes().values().map(|v| source.volume(v));
            let dead = source.state.tombstones().values().map(|t| source.deleting(t));
            live.chain(dead).collect()
        });
        Ok(Response::new(v1::ListVolumesResponse { volumes }))
    }

    async fn get_volume(
        &self,
        request: Request<v1::GetVolumeRequest>,
    ) -> Result<Response<v1::VolumeInfo>, Status> {
        self.member.linearizable().await?;
        let name = request.into_inner().name_or_id;
        let info = self.describe(self.find(&name)?).ok_or_else(|| no_such_volume(&name))?;
        Ok(Response::new(info))
    }

    async fn delete_volume(
        &self,
        request: Request<v1::DeleteVolumeRequest>,
    ) -> Result<Response<v1::DeleteVolumeResponse>, Status> {
        self.member.linearizable().await?;
        let name = request.into_inner().name_or_id;
        let volume = self.find_to_delete(&name)?;
        match self.member.accepted(Command::DeleteVolume { volume }).await? {
            Accepted::Deleted(id) => {
                Ok(Response::new(v1::DeleteVolumeResponse { id: convert::bytes(id.0) }))
            }
            other => Err(Status::internal(format!("a delete was answered with {other:?}"))),
        }
    }

    async fn recover_volume(
        &self,
        request: Request<v1::RecoverVolumeRequest>,
    ) -> Result<Response<v1::RecoverVolumeResponse>, Status> {
        self.member.linearizable().await?;
        self.recover(request.into_inner()).await.map(Response::new)
    }

    async fn move_replica(
        &self,
        request: Request<v1::MoveReplicaRequest>,
    ) -> Result<Response<v1::VolumeInfo>, Status> {
        self.member.linearizable().await?;
        let raw = request.into_inner();
        let volume = self.find(&raw.name_or_id)?;
        let from = convert::node_id(&raw.from)?;
        let to = if raw.to.is_empty() { None } else { Some(convert::node_id(&raw.to)?) };
        let replica = self.replica_on(volume, from)?;
        if let Some(node) = to.filter(|node| !self.heard(*node)) {
            let text = format!("node {node} is silent: choose one that is alive");
            return Err(refused_with("node-silent", text));
        }
        if let Some(node) = to.filter(|node| !self.takes_new(*node)) {
            let text = format!(
                "the disks of node {node} are below the placement watermark (sbkctl node show {node}): choose another \
                 one, or make room there"
            );
            return Err(refused_with("node-low-on-room", text));
        }
        let command = Command::RetireReplica {
            volume,
            replica,
            fate: if raw.in_place { Fate::GoesFirst } else { Fate::Goes },
            instead: to.map(|node| (ReplicaId(Uuid::new_v4()), node)),
            overcommit_percent: OVERCOMMIT_PERCENT,
        };
        self.member.accepted(command).await?;
        let info = self.describe(volume).ok_or_else(|| no_such_volume(&volume.to_string()))?;
        Ok(Response::new(info))
    }

    async fn move_primary(
        &self,
        request: Request<v1::MovePrimaryRequest>,
    ) -> Result<Response<v1::VolumeInfo>, Status> {
        self.member.linearizable().await?;
        let raw = request.into_inner();
        let volume = self.find(&raw.name_or_id)?;
        let replica = convert::replica_id(&raw.replica)?;
        self.member.accepted(Command::WishPrimary { volume, replica }).await?;
        let info = self.describe(volume).ok_or_else(|| no_such_volume(&volume.to_string()))?;
        Ok(Response::new(info))
    }

    async fn set_limits(
        &self,
        request: Request<v1::SetLimitsRequest>,
    ) -> Result<Response<v1::VolumeInfo>, Status> {
        self.member.linearizable().await?;
        let v1::SetLimitsRequest { name_or_id, iops, bandwidth, burst_seconds } =
            request.into_inner();
        let volume = self.find(&name_or_id)?;
        let change = LimitsChange { iops, bandwidth, burst_seconds };
        self.member.accepted(Command::SetLimits { volume, change }).await?;
        let info = self.describe(volume).ok_or_else(|| no_such_volume(&volume.to_string()))?;
        Ok(Response::new(info))
    }

    async fn resize_volume(
        &self,
        request: Request<v1::ResizeVolumeRequest>,
    ) -> Result<Response<v1::VolumeInfo>, Status> {
        self.member.linearizable().await?;
        let v1::ResizeVolumeRequest { name_or_id, size_bytes, shrink } = request.into_inner();
        let volume = self.find(&name_or_id)?;
        let overcommit_percent = OVERCOMMIT_PERCENT;
        let command = Command::WishSize { volume, size_bytes, shrink, overcommit_percent };
        let reason = format!("an operator wants a size of {size_bytes} bytes");
        self.member.accepted_because(command, &reason).await?;
        let info = self.describe(volume).ok_or_else(|| no_such_volume(&volume.to_string()))?;
        Ok(Response::new(info))
    }

    async fn set_node_duty(
        &self,
        request: Request<v1::SetNodeDutyRequest>,
    ) -> Result<Response<v1::NodeInfo>, Status> {
        self.member.linearizable().await?;
        let raw = request.into_inner();
        let node = convert::node_id(&raw.node)?;
        let duty = convert::duty_from(raw.duty)?;
        if duty == Some(Duty::Removed) && self.heard(node) {
            let text = format!(
                "node {node} is alive, and would join again: drain it, stop it, and remove it then"
            );
            return Err(refused_with("node-alive", text));
        }
        let gone = |source: &Source<'_>| source.state.nodes().get(&node).map(|n| source.node(n));
        let before = self.look(gone);
        self.member.accepted(Command::SetDuty { node, duty }).await?;
        // One that held nothing may be forgotten already.
        let info = self.look(gone).or(before).unwrap_or_default();
        Ok(Response::new(info))
    }

    async fn list_nodes(
        &self,
        _: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        self.member.linearizable().await?;
        let nodes =
            self.look(|source| source.state.nodes().values().map(|n| source.node(n)).collect());
        Ok(Response::new(v1::ListNodesResponse { nodes }))
    }

    /// Answered by every member, leader or not: what it knows of the quorum.
    async fn cluster_status(
        &self,
        _: Request<v1::ClusterStatusRequest>,
    ) -> Result<Response<v1::ClusterStatusResponse>, Status> {
        let has_quorum = self.member.linearizable().await.is_ok();
        Ok(Response::new(status(&self.member, has_quorum)))
    }
}

/// The quorum as one member sees it.
pub(crate) fn status(member: &Member, has_quorum: bool) -> v1::ClusterStatusResponse {
    let metrics = member.raft.metrics().borrow().clone();
    let matched = metrics.replication.as_ref();
    let heard = member.heard();
    let instances = member.machine.read().instances.clone();
    let members = member.peers.iter().map(|(id, addr)| {
        let index = matched.and_then(|m| m.get(id)).copied().flatten().map(|log| log.index);
        v1::MasterInfo {
            id: *id,
            addr: addr.clone(),
            leader: metrics.current_leader == Some(*id),
            voter: metrics.membership_config.membership().voter_ids().any(|voter| voter == *id),
            matched_index: index.unwrap_or(0),
            known: instances.contains_key(id),
            reachable: *id == member.id || heard.get(id).is_some_and(|(_, ago)| *ago < RECENT),
        }
    });
    let members = members.collect();
    let applied = member.machine.read();
    let leading = member.leading();
    let source = Source {
        state: &applied.authority,
        history: &applied.history,
        leading: &leading,
        now: now(),
    };
    let volumes: Vec<_> = source.state.volumes().values().map(|v| source.volume(v)).collect();
    let alive =
        source.state.nodes().keys().filter(|id| leading.detector.is_alive(source.now, **id));
    v1::ClusterStatusResponse {
        cluster: source.state.cluster().map(|id| convert::bytes(id.0)).unwrap_or_default(),
        id: member.id,
        term: metrics.current_term,
        leader: metrics.current_leader.unwrap_or(0),
        has_quorum,
        last_log_index: metrics.last_log_index.unwrap_or(0),
        applied_index: metrics.last_applied.map_or(0, |log| log.index),
        snapshot_index: metrics.snapshot.map_or(0, |log| log.index),
        members,
        volumes: volumes.len() as u32,
        volumes_serving: volumes.iter().filter(|v| v.serving).count() as u32,
        nodes: source.state.nodes().len() as u32,
        nodes_alive: alive.count() as u32,
    }
}
