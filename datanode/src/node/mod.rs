//! A datanode's life beside its volumes: its data directories, and the masters.
//!
//! The masters say which replicas belong here; the node creates and removes directories on their
//! orders only, which name volume and replica. What is here but unknown to them, or known to them
//! as confirmed but not here, is reported and left alone. A volume that runs needs none of this:
//! while no master answers, nothing stops.

mod agent;
mod homes;
mod masters;
mod report;
mod resign;
mod storage;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sbk_engine::replication::Params;
use sbk_engine::types::{NodeId, ReplicaId, VolumeId};
use sbk_master_client::{MasterClient, in_one_line};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use agent::Agent;
use masters::Identity;
pub use report::{conditions, mode};
pub use storage::{NewReplica, Storage};

use crate::catalogue::{Catalogue, CatalogueWatch};
use crate::disks::{DataDisk, Fault};
use crate::patrol::{Ledger, Patrol, Schedule};
use crate::transport::Channels;
use crate::volume::disk::DiskError;
use crate::volume::{Context, Pace, Registry};

/// Proposals that wait for the masters.
const PROPOSAL_QUEUE: usize = 64;
/// Pushes that wait for the agent.
const UPDATE_QUEUE: usize = 4;
/// How often it is looked at how much room there is, and whether a disk hangs.
const LOOK: Duration = Duration::from_millis(250);

/// Where a node is reached, and what it says of itself.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The masters, `host:port` each.
    pub masters: Vec<String>,
    /// `host:port` of the gRPC listener as others reach it.
    pub addr: String,
    /// `host:port` of the HTTP listener.
    pub http_addr: String,
    /// `host:port` of the NBD listener.
    pub nbd_addr: String,
    /// The node's zone, empty for none.
    pub zone: String,
    /// Times and limits of replication.
    pub params: Params,
    /// Bytes a second that rebuilds read while clients are answered; 0: they do not give way.
    pub recovery_rate: u64,
    /// When replicas are scrubbed in the background.
    pub scrub: Schedule,
    /// Where it is kept when they were.
    pub scrubs: PathBuf,
}

/// What is not as the masters have it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Findings {
    /// Confirmed replicas that are in no data directory, while all are there. They are lost, and never made
    /// again under the same id.
    pub missing: BTreeSet<(VolumeId, ReplicaId)>,
    /// Confirmed replicas that are in none of the directories that can be used; but some can't.
    pub away: BTreeSet<(VolumeId, ReplicaId)>,
    /// Replicas in a data directory that the masters don't know. They are left alone.
    pub unknown: BTreeSet<(VolumeId, ReplicaId)>,
}

impl Findings {
    fn log_new(&self, known: &Findings) {
        for (volume, replica) in self.missing.difference(&known.missing) {
            tracing::error!(%volume, %replica, "a replica that was confirmed is missing on disk");
        }
        for (volume, replica) in self.away.difference(&known.away) {
            tracing::warn!(%volume, %replica, "a replica is on a disk that can't be used, or lost");
        }
        for (volume, replica) in self.unknown.difference(&known.unknown) {
            tracing::warn!(
                %volume, %replica,
                "the masters don't know this replica; it is kept and not served"
            );
        }
    }
}

/// A running node, as its servers and frontends see it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Node {
    /// Who it is.
    pub id: NodeId,
    /// Starts of its process.
    pub process: u64,
    /// The replicas here.
    pub volumes: Registry,
    /// All volumes.
    pub catalogue: CatalogueWatch,
    /// Connections to other nodes.
    pub channels: Arc<Channels>,
    /// What is not as the masters have it.
    pub findings: watch::Receiver<Arc<Findings>>,
    /// Whether the masters know this process.
    pub registered: watch::Receiver<bool>,
    /// Its disks.
    pub disks: Vec<Arc<DataDisk>>,
    /// Tells why the process has to end, if the masters will not have it: its successor is counted past
    /// what they know.
    pub outdated: watch::Receiver<Option<String>>,
    /// When its replicas were scrubbed in the background, and what was found.
    pub scrubs: watch::Receiver<Arc<Ledger>>,
    masters: MasterClient,
}

/// The node's own tasks, to be waited for.
#[derive(Debug)]
pub struct NodeTasks {
    agent: JoinHandle<()>,
    others: Vec<JoinHandle<()>>,
}

impl NodeTasks {
    /// Waits until every volume has stopped, after `stop` was cancelled.
    pub async fn stopped(self) {
        self.agent.await.expect("the agent does not panic");
        self.others.iter().for_each(JoinHandle::abort);
    }
}

impl Node {
    /// Hands over what is primary here to other nodes, before this one stops: as far as it can be done
    /// in a few seconds.
    pub async fn hand_over(&self) {
        resign::hand_over(&self.volumes, &self.masters).await;
    }

    /// `(free, used)` bytes on the disks that can be used.
    pub fn space(&self) -> (u64, u64) {
        masters::space(&self.disks)
    }

    /// Opens the replicas in `storage` and begins to talk to the masters. Cancelling `stop` ends
    /// all of it.
    ///
    /// # Errors
    /// If a data directory can't be read.
    pub async fn start<S: Storage>(
        storage: S,
        config: NodeConfig,
        stop: CancellationToken,
    ) -> Result<(Self, NodeTasks), DiskError> {
        let storage = Arc::new(storage);
        let disks = storage.disks().to_vec();
        let working = |disk: &usize| disks[*disk].fault().is_none();
        let mut found = Vec::new();
        for disk in (0..disks.len()).filter(working) {
            let storage = Arc::clone(&storage);
            let listed = disks[disk].threads().spawn_blocking(move || storage.replicas(disk)).await;
            match listed.expect("looking at the file system does not panic") {
                Ok(listed) => {
                    let here = |(volume, replica)| (volume, replica, disk);
                    found.extend(listed.into_iter().map(here));
                }
                Err(error) if disks.len() == 1 => return Err(error),
                Err(error) => disks[disk].set(|state| {
                    state.fault = Some(Fault::now(in_one_line(&error)));
                }),
            }
        }
        let identity = Identity {
            node: storage.node(),
            process: storage.process(),
            boot: storage.boot(),
            addr: config.addr,
            http_addr: config.http_addr,
            nbd_addr: config.nbd_addr,
            zone: config.zone,
            encrypts: storage.encrypts(),
        };
        let client = MasterClient::new(config.masters);
        let (proposals, orders) = mpsc::channel(PROPOSAL_QUEUE);
        let channels = Arc::<Channels>::default();
        let context = Arc::new(Context {
            channels: Arc::clone(&channels),
            proposals,
            params: config.params,
            node: identity.node,
            pace: Arc::new(Pace::new(config.recovery_rate)),
        });
        let registry = Registry::default();
        let (catalogue, catalogue_watch) = watch::channel(Arc::<Catalogue>::default());
        let (open, opened) = watch::channel(None);
        let (findings, found_wrong) = watch::channel(Arc::<Findings>::default());
        let (registered, is_registered) = watch::channel(false);
        let (outdated, is_outdated) = watch::channel(None);
        let (urgent, forgotten) = (Arc::<Notify>::default(), Arc::<Notify>::default());
        let (updates, pushed) = mpsc::channel(UPDATE_QUEUE);
        let (mut agent, noticed) = Agent::new(
            Arc::clone(&storage),
            identity.clone(),
            client.clone(),
            context,
            registry.clone(),
            catalogue,
            open,
            Arc::clone(&urgent),
            findings,
            stop,
        );
        agent.found(found);
        let (patrol, scrubs) = Patrol::new(
            config.scrub,
            config.scrubs,
            registry.clone(),
            catalogue_watch.clone(),
            Arc::clone(&channels),
        );
        let node = Self {
            id: identity.node,
            process: identity.process,
            volumes: registry.clone(),
            catalogue: catalogue_watch,
            channels,
            findings: found_wrong,
            registered: is_registered,
            disks: disks.clone(),
            outdated: is_outdated,
            scrubs,
            masters: client.clone(),
        };
        let register = masters::register(
            client.clone(),
            identity.clone(),
            opened,
            Arc::clone(&forgotten),
            masters::Standing { registered, outdated, storage: Arc::clone(&storage) },
        );
        let heartbeat = masters::heartbeat(
            client.clone(),
            identity.clone(),
            registry,
            disks,
            urgent,
            forgotten,
        );
        let others = vec![
            tokio::spawn(masters::watch_assignments(client.clone(), identity, updates)),
            tokio::spawn(register),
            tokio::spawn(heartbeat),
            tokio::spawn(masters::propose(client, orders)),
            tokio::spawn(look_at_disks(storage)),
            tokio::spawn(patrol.run()),
        ];
        let agent = tokio::spawn(agent.run(noticed, pushed));
        Ok((node, NodeTasks { agent, others }))
    }
}

async fn look_at_disks<S: Storage>(storage: Arc<S>) {
    let mut every = tokio::time::interval(LOOK);
    loop {
        every.tick().await;
        storage.look();
    }
}
