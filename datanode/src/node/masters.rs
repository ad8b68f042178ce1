//! The node's conversations with the masters: registration, heartbeats, pushes, proposals.
//!
//! None of them is needed by a volume that runs. Each goes on trying for as long as the node
//! lives.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use sbk_engine::replication::io::{IsrChange, Proposal};
use sbk_engine::types::{Incarnation, ReplicaRef, TailId, VolumeId};
use sbk_master_client::{MasterClient, MasterError};
use sbk_proto::v1;
use sbk_proto::v1::propose_isr_request::Change;
use tokio::sync::{Notify, Semaphore, mpsc, watch};

use super::report;
use super::storage::Storage;
use crate::disks::DataDisk;
use crate::transport::convert::{
    Malformed, config_in, epoch, id_bytes, replica_ref_in, replica_ref_out, volume_id,
};
use crate::volume::events::Control;
use crate::volume::{OpenReplica, ProposalOrder, Registry};

/// Between heartbeats, unless something important changed.
const HEARTBEAT: Duration = Duration::from_millis(500);
/// How long one heartbeat may take; the next one is more worth than a late one.
const HEARTBEAT_DEADLINE: Duration = Duration::from_secs(2);
/// How long a proposal is tried; then its outcome is unknown, and the primary asks again.
const PROPOSAL_DEADLINE: Duration = Duration::from_secs(5);
/// Proposals under way at a time.
const PROPOSALS: usize = 16;
/// The refusal of a registration that is older than the one that stands.
const STALE: &str = "stale-registration";
/// Pause after a refusal that only time may mend.
const PAUSE: Duration = Duration::from_secs(1);

/// Who the node is and where it is reached: what no registration of this process changes.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    pub(super) node: sbk_engine::types::NodeId,
    pub(super) process: u64,
    pub(super) boot: sbk_engine::types::BootId,
    pub(super) addr: String,
    pub(super) http_addr: String,
    pub(super) nbd_addr: String,
    pub(super) zone: String,
    pub(super) encrypts: bool,
}

/// What a node has for its volumes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Open {
    /// The replicas that are open, each with its disk's place in `disks`.
    pub(super) replicas: Vec<(OpenReplica, u32)>,
    /// What replicas may claim on each disk, in bytes; 0 on one that can't be used.
    pub(super) disks: Vec<u64>,
}

/// What becomes of the node's registration.
pub(super) struct Standing<S> {
    /// The masters know this process.
    pub(super) registered: watch::Sender<bool>,
    /// Why it has to end.
    pub(super) outdated: watch::Sender<Option<String>>,
    pub(super) storage: Arc<S>,
}

/// `(free, used)` bytes on the disks that can be used.
pub(super) fn space(disks: &[Arc<DataDisk>]) -> (u64, u64) {
    let usable = disks.iter().map(|disk| disk.state()).filter(|state| state.fault.is_none());
    usable.fold((0, 0), |(free, used), state| (free + state.free_bytes, used + state.used_bytes))
}

/// Registers the node, and again whenever its open replicas change or the leader forgot it.
/// `registered` tells that the masters know this process.
pub(super) async fn register<S: Storage>(
    client: MasterClient,
    identity: Identity,
    mut open: watch::Receiver<Option<Open>>,
    forgotten: Arc<Notify>,
    standing: Standing<S>,
) {
    let mut revision = 0;
    loop {
        let Some(has) = open.borrow_and_update().clone() else {
            if open.changed().await.is_err() {
                return;
            }
            continue;
        };
        revision += 1;
        let request = registration(&identity, revision, &has);
        loop {
            match client.register(request.clone()).await {
                Ok(_) => break,
                Err(error) if error.is_transient() => {
                    tracing::debug!(%error, "the registration is tried again");
                }
                Err(error) => {
                    tracing::error!(%error, "the masters refuse this node");
                    if error.refusal() == Some(STALE) {
                        standing.is_behind(&client, &identity).await;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
            if open.has_changed().unwrap_or(false) {
                break;
            }
        }
        if !open.has_changed().unwrap_or(false) {
            let replicas = has.replicas.len();
            tracing::info!(revision, replicas, "registered with the masters");
            standing.registered.send_replace(true);
            // Heartbeats that were answered before this one was known say nothing.
            let _stale = forgotten.notified().now_or_never();
            tokio::select! {
                changed = open.changed() => if changed.is_err() { return },
                () = forgotten.notified() => {}
            }
        }
    }
}

impl<S: Storage> Standing<S> {
    /// The masters know a later start of the node. If no process answers for that one, this one's
    /// directories had been away when it was counted: the next process is to count on from there, for this
    /// one's number is in the runs of the replicas that it opened. A process that does answer has a copy of
    /// a directory, and stays.
    async fn is_behind(&self, client: &MasterClient, identity: &Identity) {
        let Ok(answer) = client.list_nodes().await else { return };
        let id = id_bytes(identity.node.0);
        let Some(known) = answer.nodes.into_iter().find(|node| node.id == id) else { return };
        let later = known.incarnation;
        if known.alive || later < identity.process {
            return;
        }
        let storage = Arc::clone(&self.storage);
        let counted = tokio::task::spawn_blocking(move || storage.count_past(later)).await;
        match counted.expect("counting does not panic") {
            Ok(()) => {
                self.outdated.send_replace(Some(format!(
                    "the masters know process {later} of this node, whose data directory is not among \
                     those that are there, and this is process {}: the next one counts on from there. \
                     Start the datanode again",
                    identity.process
                )));
            }
            Err(error) => tracing::error!(%error, "the count of starts can't be raised"),
        }
    }
}

fn registration(identity: &Identity, revision: u64, open: &Open) -> v1::RegisterRequest {
    v1::RegisterRequest {
        node: id_bytes(identity.node.0),
        incarnation: identity.process,
        revision,
        boot_id: id_bytes(identity.boot.0),
        addr: identity.addr.clone(),
        http_addr: identity.http_addr.clone(),
        nbd_addr: identity.nbd_addr.clone(),
        zone: identity.zone.clone(),
        capacity_bytes: open.disks.iter().sum(),
        disk_capacities: open.disks.clone(),
        encrypts: identity.encrypts,
        replicas: open
            .replicas
            .iter()
            .map(|(open, disk)| v1::RegisteredReplica {
                disk: *disk,
                replica: Some(replica_ref_out(open.replica)),
                volume: id_bytes(open.volume.0),
                complete: open.complete,
                tail: open.tail.count,
                doubtful: open.doubtful,
            })
            .collect(),
    }
}

/// Sends heartbeats, every half second and at once when `urgent` says so.
pub(super) async fn heartbeat(
    client: MasterClient,
    identity: Identity,
    volumes: Registry,
    disks: Vec<Arc<DataDisk>>,
    urgent: Arc<Notify>,
    forgotten: Arc<Notify>,
) {
    let client = client.with_deadline(HEARTBEAT_DEADLINE);
    loop {
        let (free_bytes, used_bytes) = space(&disks);
        let statuses: Vec<_> = volumes.all().iter().map(|handle| handle.current()).collect();
        let request = v1::HeartbeatRequest {
            node: id_bytes(identity.node.0),
            incarnation: identity.process,
            free_bytes,
            used_bytes,
            replicas: statuses.iter().filter_map(|status| report::report(status)).collect(),
            closed: statuses.iter().filter_map(|status| report::closed(status)).collect(),
            disks: disks.iter().map(|disk| report::disk(disk)).collect(),
        };
        match client.heartbeat(request).await {
            Ok(answer) if answer.register => forgotten.notify_one(),
            Ok(answer) => hand_over(&volumes, answer.stands),
            Err(error) => tracing::debug!(%error, "a heartbeat was not answered"),
        }
        // Changes come in bursts; the next one waits a little for the others.
        let _urgent = tokio::time::timeout(HEARTBEAT, urgent.notified()).await;
    }
}

/// Tells the volumes' tasks which replicas are to stand. What can't be told is asked for again.
fn hand_over(volumes: &Registry, stands: Vec<v1::Stand>) {
    for stand in stands {
        let told = || -> Result<_, Malformed> {
            let replica = stand.replica.clone().ok_or_else(|| Malformed("replica".into()))?;
            Ok((volume_id(&stand.volume)?, replica_ref_in(replica)?, epoch(stand.epoch)?))
        };
        let (volume, replica, epoch) = match told() {
            Ok(told) => told,
            Err(error) => {
                tracing::warn!(%error, "an order of the masters was dropped");
                continue;
            }
        };
        let Some(handle) = volumes.get(volume).filter(|handle| handle.replica == replica.id) else {
            continue;
        };
        let order = Control::Stand { incarnation: replica.incarnation, epoch };
        if let Err(error) = handle.control.try_send(order) {
            tracing::warn!(%volume, %error, "a replica can't be asked to stand");
        }
    }
}

/// Hands the masters' pushes to `updates`, as they come.
pub(super) async fn watch_assignments(
    client: MasterClient,
    identity: Identity,
    updates: mpsc::Sender<v1::AssignmentUpdate>,
) {
    let node = id_bytes(identity.node.0);
    let request =
        v1::WatchAssignmentsRequest { node, incarnation: identity.process, ..Default::default() };
    let mut watch = client.assignments(request);
    loop {
        match watch.next().await {
            Ok(update) => {
                if updates.send(update).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the masters push nothing to this node");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Takes the volumes' proposals to the masters and their answers back.
pub(super) async fn propose(client: MasterClient, mut orders: mpsc::Receiver<ProposalOrder>) {
    let client = client.with_deadline(PROPOSAL_DEADLINE);
    let room = Arc::new(Semaphore::new(PROPOSALS));
    while let Some(order) = orders.recv().await {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let client = client.clone();
        tokio::spawn(async move {
            let ProposalOrder { proposal, answers } = order;
            let answer = ask(&client, &proposal).await;
            // The volume may have stopped.
            let _stopped = answers.send(answer).await;
            drop(permit);
        });
    }
}

async fn ask(client: &MasterClient, proposal: &Proposal) -> Control {
    let change = match &proposal.change {
        IsrChange::Leave { replica } => Change::Leave(id_bytes(replica.0)),
        IsrChange::Join { replica } => Change::Join(replica_ref_out(*replica)),
        IsrChange::Burn => Change::Burn(true),
        IsrChange::Yield { to } => Change::YieldTo(replica_ref_out(*to)),
        IsrChange::HandOver { to } => Change::HandOverTo(replica_ref_out(*to)),
        IsrChange::Resized { blocks } => Change::Resized(*blocks),
        IsrChange::KeepSize { wished, lba } => {
            Change::KeepSize(v1::KeepSize { wished: *wished, lba: lba.0 })
        }
    };
    let request = v1::ProposeIsrRequest {
        volume: id_bytes(proposal.volume.0),
        expect_epoch: proposal.epoch.0,
        primary: Some(replica_ref_out(proposal.primary)),
        change: Some(change),
    };
    let config = match client.propose_isr(request).await {
        Ok(answer) => {
            if !answer.refused.is_empty() {
                let (volume, why) = (proposal.volume, &answer.refused);
                tracing::info!(%volume, epoch = %proposal.epoch, %why, "a proposal was refused");
            }
            answer.config.map(config_in).transpose().unwrap_or_else(|error| {
                tracing::warn!(%error, "an answer of the masters was dropped");
                None
            })
        }
        Err(error) => {
            let volume = proposal.volume;
            tracing::warn!(%volume, epoch = %proposal.epoch, %error, "a proposal has no outcome");
            None
        }
    };
    let incarnation: Incarnation = proposal.primary.incarnation;
    Control::Answered { incarnation, proposal: proposal.id, config }
}

/// Tells that a replica was created, until the masters know it.
pub(super) async fn confirm_created(
    client: MasterClient,
    identity: Identity,
    volume: VolumeId,
    replica: ReplicaRef,
    tail: TailId,
) -> Result<(), MasterError> {
    let request = v1::ConfirmReplicaRequest {
        node: id_bytes(identity.node.0),
        incarnation: identity.process,
        volume: id_bytes(volume.0),
        replica: Some(replica_ref_out(replica)),
        tail: tail.count,
    };
    client.confirm_replica(request).await.map(drop)
}

/// Tells that a replica is gone.
pub(super) async fn confirm_deleted(
    client: MasterClient,
    identity: Identity,
    volume: VolumeId,
    replica: sbk_engine::types::ReplicaId,
) -> Result<(), MasterError> {
    let request = v1::ConfirmDeleteRequest {
        node: id_bytes(identity.node.0),
        incarnation: identity.process,
        volume: id_bytes(volume.0),
        replica: id_bytes(replica.0),
    };
    client.confirm_delete(request).await.map(drop)
}
