//! What operators and tools ask.

use std::collections::BTreeSet;
use std::time::Duration;

use sbk_engine::authority::placement::{check_request, place};
use sbk_engine::authority::{Accepted, Command, Refusal, State, VolumeRequest};
use sbk_engine::types::{NodeId, ReplicaId, VolumeId};
use sbk_proto::v1;
use sbk_proto::v1::control_server::Control;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::info::Source;
use crate::convert;
use crate::gate::refused;
use crate::member::{Member, now};

/// How much of a node's capacity volumes may claim, in percent. Volumes are sparse.
const OVERCOMMIT_PERCENT: u32 = 200;

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
    fn look<T>(&self, look: impl FnOnce(&Source<'_>) -> T) -> T {
        let applied = self.member.machine.read();
        let leading = self.member.leading();
        look(&Source { state: &applied.authority, leading: &leading, now: now() })
    }

    fn describe(&self, volume: VolumeId) -> Option<v1::VolumeInfo> {
        self.look(|source| source.state.volumes().get(&volume).map(|v| source.volume(v)))
    }

    fn find(&self, name_or_id: &str) -> Result<VolumeId, Status> {
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

    fn alive(&self) -> BTreeSet<NodeId> {
        self.look(|source| {
            let nodes = source.state.nodes().keys().copied();
            nodes.filter(|id| source.leading.detector.is_alive(source.now, *id)).collect()
        })
    }
}

fn no_such_volume(name_or_id: &str) -> Status {
    let refusal = Refusal::NoSuchVolume { volume: name_or_id.to_owned() };
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
        let volume = convert::volume_id(&raw.id)?;
        let wanted = VolumeRequest {
            name: raw.name,
            size_bytes: raw.size_bytes,
            replicas: raw.replicas,
            durability: convert::durability_from(raw.durability)?,
            write_ack: convert::write_ack_from(raw.write_ack)?,
            min_in_sync: (raw.min_in_sync > 0).then_some(raw.min_in_sync),
            zone_spread: raw.zone_spread,
        };
        let refuse = |refusal: Refusal| refused(&refusal);
        let spec = check_request(&wanted).map_err(refuse)?;
        // The same create again, its answer lost: placing it anew might find less room.
        let stands = |state: &State| state.volumes().get(&volume).is_some_and(|v| v.spec == spec);
        if self.member.read(stands) {
            let info = self.describe(volume).ok_or_else(|| no_such_volume(&volume.to_string()))?;
            return Ok(Response::new(info));
        }
        let fresh: Vec<_> = (0..spec.replicas).map(|_| ReplicaId(Uuid::new_v4())).collect();
        let alive = self.alive();
        let placement = self
            .member
            .read(|state| place(state, &spec, &fresh, &alive, OVERCOMMIT_PERCENT))
            .map_err(refuse)?;
        let command = Command::CreateVolume {
            volume,
            request: wanted,
            placement,
            overcommit_percent: OVERCOMMIT_PERCENT,
        };
        self.member.accepted(command).await?;
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
    let source = Source { state: &applied.authority, leading: &leading, now: now() };
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
