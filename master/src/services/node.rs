//! What datanodes say, and what is pushed to them.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::time::Duration;

use futures::Stream;
use sbk_engine::authority::detector::{DetectorEvent, ReplicaReport};
use sbk_engine::authority::{Accepted, Command, Refusal};
use sbk_engine::types::{Config, Epoch, Lsn, NodeId, VolumeId};
use sbk_proto::v1;
use sbk_proto::v1::node_service_server::NodeService;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::convert;
use crate::gate::refused;
use crate::member::Member;

/// Updates that wait for a slow watcher. It gets all that changed meanwhile in one.
const WATCH_QUEUE: usize = 4;

/// How long a machine may take to answer whether anybody listens; it is a matter of one round
/// trip.
const CONNECT: Duration = Duration::from_secs(2);
/// How often it is asked. Somebody who takes every connection and drops it does listen.
const CONNECTS: u32 = 16;

/// `NodeService`.
#[derive(Clone, Debug)]
pub(crate) struct NodeApi {
    /// This member.
    pub(crate) member: Member,
}

fn report(raw: &v1::ReplicaReport) -> Result<ReplicaReport, Status> {
    let lacking: Result<BTreeSet<_>, _> =
        raw.lacking.iter().map(|id| convert::replica_id(id)).collect();
    let promised: Result<BTreeSet<_>, _> =
        raw.promised.iter().map(|id| convert::replica_id(id)).collect();
    Ok(ReplicaReport {
        replica: convert::replica_ref(raw.replica.as_ref())?,
        table_epoch: Epoch(raw.table_epoch),
        durable: Lsn(raw.durable_lsn),
        primary_in: raw.is_primary.then_some(Epoch(raw.epoch)),
        lacking: lacking?,
        lacking_ms: raw.lacking_ms,
        promised: promised?,
        tail: convert::tail_from(raw.tail.as_ref())?,
        stood: raw.stood.map(Epoch),
    })
}

type UpdateStream = Pin<Box<dyn Stream<Item = Result<v1::AssignmentUpdate, Status>> + Send>>;

#[tonic::async_trait]
impl NodeService for NodeApi {
    async fn register(
        &self,
        request: Request<v1::RegisterRequest>,
    ) -> Result<Response<v1::RegisterResponse>, Status> {
        sbk_listen::keep_caller(request.extensions());
        let registration = convert::registration(request.get_ref())?;
        let node = registration.node;
        if self.member.read(sbk_engine::authority::State::cluster).is_none() {
            // A node may come before the leader has named the cluster; the first name stands.
            let cluster = sbk_engine::authority::ClusterId(uuid::Uuid::new_v4());
            self.member.accepted(Command::BootstrapCluster { cluster }).await?;
        }
        self.member.accepted(Command::RegisterNode(registration)).await?;
        let cluster = self.member.read(sbk_engine::authority::State::cluster);
        tracing::info!(%node, process = request.get_ref().incarnation, "node registered");
        let cluster = cluster.map(|id| convert::bytes(id.0)).unwrap_or_default();
        Ok(Response::new(v1::RegisterResponse { cluster }))
    }

    async fn heartbeat(
        &self,
        request: Request<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatResponse>, Status> {
        sbk_listen::keep_caller(request.extensions());
        self.member.require_leader()?;
        let request = request.into_inner();
        let node = convert::node_id(&request.node)?;
        let process = request.incarnation;
        let known = self.member.read(|state| state.nodes().get(&node).map(|r| r.process));
        let term = self.member.raft.metrics().borrow().current_term;
        if known != Some(process) {
            return Ok(Response::new(v1::HeartbeatResponse {
                register: true,
                term,
                stands: Vec::new(),
            }));
        }
        let reports = request.replicas.iter().map(report).collect::<Result<Vec<_>, _>>()?;
        let returning = request.closed.iter().filter(|closed| closed.returns);
        let returning = returning.map(|closed| convert::replica_id(&closed.replica));
        let mut returning = returning.collect::<Result<BTreeSet<_>, _>>()?;
        if request.disks.iter().any(|disk| !disk.fault.is_empty()) {
            // What it does not name may be on that disk, and come back with it.
            let open: BTreeSet<_> = reports.iter().map(|report| report.replica.id).collect();
            let closed = request.closed.iter().map(|closed| convert::replica_id(&closed.replica));
            let closed = closed.collect::<Result<BTreeSet<_>, _>>()?;
            returning.extend(self.member.read(|state| {
                let listed = state.volumes().values().flat_map(|volume| &volume.replicas);
                let here = listed.filter(|(_, replica)| replica.node == node).map(|(id, _)| *id);
                let unnamed = here.filter(|id| !open.contains(id) && !closed.contains(id));
                unnamed.collect::<Vec<_>>()
            }));
        }
        let low = (0..).zip(&request.disks).filter(|(_, disk)| convert::is_low(disk));
        let low = low.map(|(disk, _)| disk).collect();
        self.member.leading().heartbeats.insert(node, request);
        self.member.observe(DetectorEvent::Heartbeat { node, process, reports, returning, low });
        let stands = self.member.stands(node).iter().map(convert::stand).collect();
        Ok(Response::new(v1::HeartbeatResponse { register: false, term, stands }))
    }

    type WatchAssignmentsStream = UpdateStream;

    async fn watch_assignments(
        &self,
        request: Request<v1::WatchAssignmentsRequest>,
    ) -> Result<Response<UpdateStream>, Status> {
        // Clients watch too, but not as a node.
        if !request.get_ref().node.is_empty() {
            sbk_listen::keep_caller(request.extensions());
        }
        self.member.linearizable().await?;
        let request = request.into_inner();
        let v1::WatchAssignmentsRequest { node, incarnation, volume } = request;
        let node = (!node.is_empty()).then(|| convert::node_id(&node)).transpose()?;
        let only = (!volume.is_empty()).then(|| convert::volume_id(&volume)).transpose()?;
        let (updates, stream) = mpsc::channel(WATCH_QUEUE);
        let member = self.member.clone();
        tokio::spawn(async move {
            push(&member, &updates, only).await;
            if let Some(node) = node
                && updates.is_closed()
                && member.leads()
            {
                watch_gone(&member, node, incarnation).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn propose_isr(
        &self,
        request: Request<v1::ProposeIsrRequest>,
    ) -> Result<Response<v1::ProposeIsrResponse>, Status> {
        let raw = request.into_inner();
        let volume = convert::volume_id(&raw.volume)?;
        let command = Command::ProposeIsr {
            volume,
            expect_epoch: Epoch(raw.expect_epoch),
            primary: convert::replica_ref(raw.primary.as_ref())?,
            change: convert::change(raw.change.as_ref())?,
        };
        let (config, why) = match self.member.command(command).await? {
            Ok(Accepted::Configured(config)) => (Some(config), String::new()),
            Ok(_) => (self.config(volume), String::new()),
            Err(Refusal::StaleEpoch { config, .. }) => (Some(*config), String::new()),
            Err(refusal) => (self.config(volume), refusal.to_string()),
        };
        let config = config.as_ref().map(convert::config);
        Ok(Response::new(v1::ProposeIsrResponse { config, refused: why }))
    }

    async fn confirm_replica(
        &self,
        request: Request<v1::ConfirmReplicaRequest>,
    ) -> Result<Response<v1::ConfirmReplicaResponse>, Status> {
        let raw = request.into_inner();
        let command = Command::ConfirmReplica {
            node: convert::node_id(&raw.node)?,
            process: raw.incarnation,
            volume: convert::volume_id(&raw.volume)?,
            replica: convert::run_of(raw.replica.as_ref())?,
            tail: raw.tail,
        };
        self.member.accepted(command).await?;
        Ok(Response::new(v1::ConfirmReplicaResponse {}))
    }

    async fn confirm_delete(
        &self,
        request: Request<v1::ConfirmDeleteRequest>,
    ) -> Result<Response<v1::ConfirmDeleteResponse>, Status> {
        let raw = request.into_inner();
        let command = Command::ConfirmDelete {
            node: convert::node_id(&raw.node)?,
            process: raw.incarnation,
            volume: convert::volume_id(&raw.volume)?,
            replica: convert::replica_id(&raw.replica)?,
        };
        match self.member.command(command).await? {
            Ok(_) => Ok(Response::new(v1::ConfirmDeleteResponse {})),
            Err(refusal) => Err(refused(&refusal)),
        }
    }
}

impl NodeApi {
    fn config(&self, volume: VolumeId) -> Option<Config> {
        self.member.read(|state| state.config(volume))
    }
}

/// Sends the catalogue, or one volume of it, then what changes in it, until the watcher goes or the
/// leadership does.
async fn push(
    member: &Member,
    updates: &mpsc::Sender<Result<v1::AssignmentUpdate, Status>>,
    only: Option<VolumeId>,
) {
    let mut changes = member.machine.changes();
    let mut metrics = member.raft.metrics();
    let mut sent: Option<u64> = None;
    let mut known: BTreeSet<VolumeId> = BTreeSet::new();
    loop {
        changes.borrow_and_update();
        let update = member.read(|state| next_update(state, sent, &mut known, only));
        if let Some(update) = update {
            sent = Some(update.revision);
            let news = update.snapshot || !update.volumes.is_empty() || !update.gone.is_empty();
            if news && updates.send(Ok(update)).await.is_err() {
                return;
            }
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            changed = metrics.changed() => if changed.is_err() || !member.leads() { return },
            () = updates.closed() => return,
        }
    }
}

fn next_update(
    state: &sbk_engine::authority::State,
    sent: Option<u64>,
    known: &mut BTreeSet<VolumeId>,
    only: Option<VolumeId>,
) -> Option<v1::AssignmentUpdate> {
    let revision = state.revision();
    if sent == Some(revision) {
        return None;
    }
    let mut volumes = state.catalogue_since(sent.unwrap_or(0));
    volumes.retain(|volume| only.is_none_or(|only| volume.id == only));
    known.extend(volumes.iter().map(|volume| volume.id));
    let gone: Vec<_> = known.iter().copied().filter(|id| state.is_gone(*id)).collect();
    known.retain(|id| !gone.contains(id));
    Some(v1::AssignmentUpdate {
        revision,
        snapshot: sent.is_none(),
        volumes: volumes.iter().map(convert::assignment).collect(),
        gone: gone.into_iter().map(|id| convert::bytes(id.0)).collect(),
    })
}

/// A watcher's stream broke. If its machine says that nobody listens any more, the process is gone;
/// silence is left to the heartbeats.
async fn watch_gone(member: &Member, node: NodeId, process: u64) {
    let addr =
        member.read(|state| state.nodes().get(&node).map(|r| (r.process, r.addrs.grpc.clone())));
    let Some((_, addr)) = addr.filter(|(current, _)| *current == process) else { return };
    match tokio::time::timeout(CONNECT, listens(&addr)).await {
        Err(_) => tracing::info!(%node, "its stream closed, and its machine is silent"),
        Ok(Ok(())) => tracing::info!(%node, "its stream closed, but it still listens"),
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
            tracing::info!(%node, process, "its process is gone");
            member.observe(DetectorEvent::Killed { node, process });
        }
        Ok(Err(error)) => tracing::info!(%node, %error, "its stream closed"),
    }
}

/// Whether somebody answers at `addr`. The kernel closes the sockets of a process that was killed
/// one after the other, and the listener may be the last: until then it takes connections. Nobody
/// ever speaks on these, and they are reset with the listener; a server that lives greets at once.
async fn listens(addr: &str) -> io::Result<()> {
    for _ in 0..CONNECTS {
        let mut connection = TcpStream::connect(addr).await?;
        if matches!(connection.read(&mut [0]).await, Ok(1..)) {
            break;
        }
    }
    Ok(())
}
