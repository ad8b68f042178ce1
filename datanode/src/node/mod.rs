//! A datanode's life beside its volumes: its data directory, and the masters.
//!
//! The masters say which replicas belong here; the node creates and removes directories on their
//! orders only, which name volume and replica. What is here but unknown to them, or known to them
//! as confirmed but not here, is reported and left alone. A volume that runs needs none of this:
//! while no master answers, nothing stops.

mod agent;
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
use sbk_master_client::MasterClient;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use agent::Agent;
use masters::Identity;
pub use report::mode;
pub use storage::Storage;

use crate::catalogue::{Catalogue, CatalogueWatch};
use crate::patrol::{Ledger, Patrol, Schedule};
use crate::transport::Channels;
use crate::volume::disk::DiskError;
use crate::volume::{Context, Pace, Recordings, Registry};

/// Proposals that wait for the masters.
const PROPOSAL_QUEUE: usize = 64;
/// Pushes that wait for the agent.
const UPDATE_QUEUE: usize = 4;
/// How often free space is looked at.
const SPACE: Duration = Duration::from_secs(5);

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
    /// Bytes that replicas may take; `None`: what the file system has.
    pub capacity: Option<u64>,
    /// Times and limits of replication.
    pub params: Params,
    /// Where the recordings of replicas go whose store failed or that broke an invariant.
    pub recordings: Option<PathBuf>,
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
    /// Confirmed replicas that are not in the data directory. They are lost, and never made again
    /// under the same id.
    pub missing: BTreeSet<(VolumeId, ReplicaId)>,
    /// Replicas in the data directory that the masters don't know. They are left alone.
    pub unknown: BTreeSet<(VolumeId, ReplicaId)>,
}

impl Findings {
    fn log_new(&self, known: &Findings) {
        for (volume, replica) in self.missing.difference(&known.missing) {
            tracing::error!(%volume, %replica, "a replica that was confirmed is missing on disk");
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
    /// Starts of its process on this data directory.
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
    /// `(free, used)` bytes.
    pub space: watch::Receiver<(u64, u64)>,
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

    /// Opens the replicas in `storage` and begins to talk to the masters. Cancelling `stop` ends
    /// all of it.
    ///
    /// # Errors
    /// If the data directory can't be read.
    pub async fn start<S: Storage>(
        storage: S,
        config: NodeConfig,
        stop: CancellationToken,
    ) -> Result<(Self, NodeTasks), DiskError> {
        let storage = Arc::new(storage);
        let (found, space) = tokio::task::block_in_place(|| {
            Ok::<_, DiskError>((storage.replicas()?, storage.space()?))
        })?;
        let identity = Identity {
            node: storage.node(),
            process: storage.process(),
            boot: storage.boot(),
            addr: config.addr,
            http_addr: config.http_addr,
            nbd_addr: config.nbd_addr,
            zone: config.zone,
            capacity: config.capacity.unwrap_or(space.0 + space.1),
        };
        let client = MasterClient::new(config.masters);
        let (proposals, orders) = mpsc::channel(PROPOSAL_QUEUE);
        let channels = Arc::<Channels>::default();
        let context = Arc::new(Context {
            channels: Arc::clone(&channels),
            proposals,
            params: config.params,
            recordings: Recordings { node: identity.node, dir: config.recordings },
            pace: Arc::new(Pace::new(config.recovery_rate)),
        });
        let registry = Registry::default();
        let (catalogue, catalogue_watch) = watch::channel(Arc::<Catalogue>::default());
        let (open, opened) = watch::channel(None);
        let (findings, found_wrong) = watch::channel(Arc::<Findings>::default());
        let (registered, is_registered) = watch::channel(false);
        let (space, space_watch) = watch::channel(space);
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
        for (volume, replica) in found {
            agent.start(volume, replica);
        }
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
            space: space_watch.clone(),
            scrubs,
            masters: client.clone(),
        };
        let register = masters::register(
            client.clone(),
            identity.clone(),
            opened,
            Arc::clone(&forgotten),
            registered,
        );
        let heartbeat = masters::heartbeat(
            client.clone(),
            identity.clone(),
            registry,
            space_watch,
            urgent,
            forgotten,
        );
        let others = vec![
            tokio::spawn(masters::watch_assignments(client.clone(), identity, updates)),
            tokio::spawn(register),
            tokio::spawn(heartbeat),
            tokio::spawn(masters::propose(client, orders)),
            tokio::spawn(watch_space(storage, space)),
            tokio::spawn(patrol.run()),
        ];
        let agent = tokio::spawn(agent.run(noticed, pushed));
        Ok((node, NodeTasks { agent, others }))
    }
}

async fn watch_space<S: Storage>(storage: Arc<S>, space: watch::Sender<(u64, u64)>) {
    let mut every = tokio::time::interval(SPACE);
    loop {
        every.tick().await;
        let storage = Arc::clone(&storage);
        let looked = tokio::task::spawn_blocking(move || storage.space()).await;
        match looked.expect("looking at the file system does not panic") {
            Ok(found) => {
                space.send_replace(found);
            }
            Err(error) => tracing::warn!(%error, "the free space is unknown"),
        }
    }
}
