//! A cluster in one process: real volume tasks, real gRPC between them, each node on a runtime of
//! its own so that it can be killed whole; disks in memory that outlive it; and the masters' part
//! played by the test.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub(crate) mod masters;
pub(crate) mod mem_dir;
pub(crate) mod mem_disk;
pub(crate) mod nbd;
pub(crate) mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use sbk_datanode::catalogue::{self, Catalogue};
use sbk_datanode::disks::{DataDisk, DiskState};
use sbk_datanode::frontend::Frontends;
use sbk_datanode::link::{IoOp, IoRequest, Link, LinkEvent, LinkOutcome, OpenLink};
use sbk_datanode::transport::{Channels, ReplicationService};
use sbk_datanode::volume::events::Control;
use sbk_datanode::volume::{
    Context, Pace, ProposalOrder, Registry, VolumeHandle, VolumeStatus, open_link, start,
};
use sbk_engine::forward;
use sbk_engine::replication::Params;
use sbk_engine::replication::io::{Attach, IsrChange};
use sbk_engine::types::{
    AttachGeneration, Config, Epoch, Incarnation, LossGeneration, NodeId, Placement, ReplicaId,
    ReplicaRef, SessionId, VolumeId,
};
use sbk_proto::v1::block_service_server::BlockServiceServer;
use sbk_proto::v1::replication_server::ReplicationServer;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use mem_disk::MemStore;

/// Far more than anything here takes; a test that gets there has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const BLOCKS: u64 = 4096;

pub(crate) fn replica(n: u128) -> ReplicaId {
    ReplicaId(Uuid::from_u128(n))
}

/// A running node.
pub(crate) struct Node {
    runtime: Option<tokio::runtime::Runtime>,
    server: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
    pub(crate) handle: Arc<VolumeHandle>,
    pub(crate) incarnation: Incarnation,
}

impl Node {
    fn start(store: &MemStore, addr: SocketAddr, proposals: mpsc::Sender<ProposalOrder>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let incarnation = store.process_starts();
        let registry = Registry::default();
        let channels = Arc::new(Channels::default());
        let context = Arc::new(Context {
            channels: Arc::clone(&channels),
            proposals,
            params: patient(),
            node: NodeId(store.replica.0),
            pace: Arc::new(Pace::new(0)),
        });
        let (volume, id) = (store.volume, store.replica);
        let stop = CancellationToken::new();
        let handle = {
            let _entered = runtime.enter();
            let recordings = store.recordings.clone();
            let disk = DataDisk::new("memory".as_ref(), recordings, DiskState::default());
            start(context, disk, store.clone(), volume, id, stop).0
        };
        registry.insert(Arc::clone(&handle));
        let (_, nobody) = tokio::sync::watch::channel(Arc::default());
        let frontends =
            Frontends::new(nobody, registry.clone(), NodeId(id.0), forward::Params::default());
        let block = BlockServiceServer::new(frontends.block_service())
            .max_decoding_message_size(40 << 20)
            .max_encoding_message_size(40 << 20);
        let service = ReplicationServer::new(ReplicationService::new(registry))
            .max_decoding_message_size(40 << 20)
            .max_encoding_message_size(40 << 20);
        let listener = runtime.block_on(tokio::net::TcpListener::bind(addr));
        let incoming =
            tonic::transport::server::TcpIncoming::from(listener.expect("the port is free"))
                .with_nodelay(Some(true));
        let server = tonic::transport::Server::builder()
            .tcp_nodelay(true)
            .add_service(block)
            .add_service(service);
        let server = runtime.spawn(server.serve_with_incoming(incoming));
        Self { runtime: Some(runtime), server, handle, incarnation }
    }

    fn kill(mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Its port is free when this returns.
            self.server.abort();
            let _ended = runtime.block_on(self.server);
            runtime.shutdown_background();
        }
    }
}

/// The masters' part: one configuration, changed by compare-and-set.
pub(crate) struct Cluster {
    pub(crate) config: Arc<Mutex<Config>>,
    pub(crate) nodes: Arc<Mutex<BTreeMap<ReplicaId, Node>>>,
    pub(crate) stores: BTreeMap<ReplicaId, MemStore>,
    addrs: BTreeMap<ReplicaId, SocketAddr>,
    proposals: mpsc::Sender<ProposalOrder>,
    runtime: tokio::runtime::Runtime,
}

impl Cluster {
    /// Starts `size` replicas, all in sync, replica 1 primary.
    pub(crate) fn start(size: u128, min_in_sync: u32) -> Self {
        Self::of(size, min_in_sync, BLOCKS)
    }

    /// As [`start`](Self::start), with a volume of so many blocks.
    pub(crate) fn of(size: u128, min_in_sync: u32, blocks: u64) -> Self {
        Self::build(size, min_in_sync, blocks, None)
    }

    /// As [`start`](Self::start), with a directory for the replicas' recordings.
    pub(crate) fn keeping(size: u128, min_in_sync: u32, recordings: &Path) -> Self {
        Self::build(size, min_in_sync, BLOCKS, Some(recordings.to_owned()))
    }

    fn build(size: u128, min_in_sync: u32, blocks: u64, recordings: Option<PathBuf>) -> Self {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let volume = VolumeId(Uuid::from_u128(100));
        let ids: Vec<_> = (1..=size).map(replica).collect();
        let store = |id: &ReplicaId| {
            let mut store = MemStore::create(volume, *id, blocks);
            store.recordings.clone_from(&recordings);
            store
        };
        let stores: BTreeMap<_, _> = ids.iter().map(|id| (*id, store(id))).collect();
        let addrs: BTreeMap<_, _> = ids.iter().map(|id| (*id, free_port())).collect();
        let placement =
            |id: &ReplicaId| Placement { node: NodeId(id.0), addr: addrs[id].to_string() };
        let primary = ReplicaRef { id: ids[0], incarnation: Incarnation { process: 1, open: 1 } };
        let config = Arc::new(Mutex::new(Config {
            volume,
            epoch: Epoch(1),
            primary,
            since: Epoch(1),
            isr: ids.iter().copied().collect::<BTreeSet<_>>(),
            replicas: ids.iter().map(|id| (*id, placement(id))).collect(),
            durability: sbk_engine::types::Durability::SyncAll,
            write_ack: sbk_engine::types::WriteAck::Durable,
            min_in_sync,
            blocks,
            wished_blocks: None,
            loss_generation: LossGeneration(0),
            handed_over_by: None,
            tails: std::collections::BTreeMap::new(),
        }));
        let nodes: Arc<Mutex<BTreeMap<ReplicaId, Node>>> = Arc::default();
        let (proposals, orders) = mpsc::channel(16);
        runtime.spawn(decide(Arc::clone(&config), Arc::clone(&nodes), orders));
        let cluster = Self { config, nodes, stores, addrs, proposals, runtime };
        ids.iter().for_each(|id| cluster.boot(*id));
        cluster.publish();
        cluster
    }

    /// Starts the node of a replica; it is told the newest configuration.
    pub(crate) fn boot(&self, id: ReplicaId) {
        let node = Node::start(&self.stores[&id], self.addrs[&id], self.proposals.clone());
        self.nodes.lock().unwrap().insert(id, node);
        self.publish();
    }

    /// Ends a node as `kill -9` would.
    pub(crate) fn kill(&self, id: ReplicaId) {
        let node = self.nodes.lock().unwrap().remove(&id).expect("it runs");
        node.kill();
    }

    /// Makes `id` the primary of a new epoch without `dead`; another member, if it was too slow to stay one.
    /// Returns which.
    pub(crate) fn fail_over(&self, id: ReplicaId, dead: ReplicaId) -> ReplicaId {
        let next = {
            let nodes = self.nodes.lock().unwrap();
            let mut config = self.config.lock().unwrap();
            config.isr.remove(&dead);
            let member = config.isr.first().copied().expect("a member");
            let next = if config.isr.contains(&id) { id } else { member };
            config.epoch = config.epoch.next();
            config.since = config.epoch;
            config.primary = ReplicaRef { id: next, incarnation: nodes[&next].incarnation };
            next
        };
        self.publish();
        next
    }

    /// Another epoch of the same tenure.
    pub(crate) fn burn(&self) {
        {
            let mut config = self.config.lock().unwrap();
            config.epoch = config.epoch.next();
        }
        self.publish();
    }

    fn publish(&self) {
        let config = self.config.lock().unwrap().clone();
        publish(&config, &self.nodes);
    }

    pub(crate) fn primary(&self) -> ReplicaId {
        self.config.lock().unwrap().primary.id
    }

    /// What a datanode without a replica would know of the volume, under the name `vol`.
    pub(crate) fn catalogue(&self) -> Catalogue {
        let config = self.config.lock().unwrap().clone();
        let replicas = config.replicas.iter().map(|(id, placement)| {
            let Placement { node, addr } = placement.clone();
            (*id, catalogue::Replica { node, addr, confirmed: true })
        });
        let volume = catalogue::Volume {
            retired: BTreeMap::new(),
            wish: sbk_engine::types::Wish::default(),
            limits: sbk_engine::authority::Limits::default(),
            id: config.volume,
            name: "vol".to_owned(),
            blocks: config.blocks,
            created_blocks: config.blocks,
            encrypted: false,
            replicas: replicas.collect(),
            config: Some(config.clone()),
            deleted: false,
        };
        Catalogue { volumes: BTreeMap::from([(config.volume, Arc::new(volume))]), heard: true }
    }

    /// The runtime that plays the masters and the clients.
    pub(crate) fn runtime(&self) -> &tokio::runtime::Runtime {
        &self.runtime
    }

    /// Waits until a replica's status is as wanted.
    pub(crate) fn wait(&self, id: ReplicaId, what: &str, wanted: impl Fn(&VolumeStatus) -> bool) {
        let mut status = {
            let nodes = self.nodes.lock().unwrap();
            nodes[&id].handle.status.clone()
        };
        self.runtime.block_on(async {
            let met = tokio::time::timeout(PATIENCE, status.wait_for(|s| wanted(s))).await;
            let ended = met.map(|met| met.is_ok());
            if ended != Ok(true) {
                let trace: Vec<_> = {
                    let nodes = self.nodes.lock().unwrap();
                    nodes
                        .iter()
                        .flat_map(|(id, node)| {
                            let all = node.handle.trace.after(0);
                            all.into_iter().map(move |entry| format!("{id}: {entry:?}"))
                        })
                        .collect()
                };
                let status = status.borrow().clone();
                panic!("{id}: {what} did not happen: {status:#?}\n{}", trace.join("\n"));
            }
        });
    }

    /// Waits until the configuration's in-sync set has so many members, and the primary serves.
    pub(crate) fn wait_in_sync(&self, members: usize) {
        let primary = self.primary();
        self.wait(primary, &format!("{members} in sync"), |status| {
            status.view.as_ref().is_some_and(|view| {
                view.serving && view.config.as_ref().is_some_and(|c| c.isr.len() == members)
            })
        });
    }

    /// A frontend's session at the primary.
    pub(crate) fn client(&self) -> Client<'_> {
        let session = SessionId(Uuid::new_v4());
        let mut client = Client {
            cluster: self,
            session,
            link: None,
            next: 1,
            epoch: Epoch(0),
            attach: AttachGeneration(0),
            loss: None,
        };
        client.connect();
        client
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let nodes = std::mem::take(&mut *self.nodes.lock().unwrap());
        nodes.into_values().for_each(Node::kill);
    }
}

/// What a loaded machine may take is no silence, and ends no session.
fn patient() -> Params {
    let recovery = sbk_engine::recovery::Params { start_timeout_ms: 60_000, ..Default::default() };
    Params { suspect_ms: 8_000, recovery, ..Params::default() }
}

fn free_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], sbk_ports::kept(1)[0]))
}

fn publish(config: &Config, nodes: &Mutex<BTreeMap<ReplicaId, Node>>) {
    for node in nodes.lock().unwrap().values() {
        let order = Control::Assignment(config.clone());
        // A task that ended needs no configuration.
        let _ended = node.handle.control.try_send(order);
    }
}

async fn decide(
    config: Arc<Mutex<Config>>,
    nodes: Arc<Mutex<BTreeMap<ReplicaId, Node>>>,
    mut orders: mpsc::Receiver<ProposalOrder>,
) {
    while let Some(ProposalOrder { proposal, answers }) = orders.recv().await {
        let newest = {
            let mut config = config.lock().unwrap();
            let in_force = proposal.epoch == config.epoch && proposal.primary == config.primary;
            if in_force {
                match proposal.change {
                    IsrChange::Leave { replica } => {
                        config.isr.remove(&replica);
                    }
                    IsrChange::Join { replica } => {
                        config.isr.insert(replica.id);
                    }
                    IsrChange::Burn => {}
                    IsrChange::Resized { blocks } => {
                        config.blocks = blocks;
                        config.wished_blocks = config.wished_blocks.filter(|to| *to != blocks);
                    }
                    IsrChange::KeepSize { .. } => config.wished_blocks = None,
                    IsrChange::Yield { to } => {
                        config.primary = to;
                        config.since = config.epoch.next();
                    }
                    IsrChange::HandOver { to } => {
                        config.handed_over_by = Some(config.primary);
                        config.primary = to;
                        config.since = config.epoch.next();
                    }
                }
                config.epoch = config.epoch.next();
            }
            config.clone()
        };
        publish(&newest, &nodes);
        let incarnation = proposal.primary.incarnation;
        let config = Some(newest);
        let answer = Control::Answered { incarnation, proposal: proposal.id, config };
        // The proposer may be gone.
        let _gone = answers.send(answer).await;
    }
}

/// A frontend that sends one request after the other, again after a failover.
pub(crate) struct Client<'a> {
    cluster: &'a Cluster,
    session: SessionId,
    link: Option<Link>,
    next: u64,
    epoch: Epoch,
    attach: AttachGeneration,
    loss: Option<LossGeneration>,
}

impl Client<'_> {
    fn connect(&mut self) {
        let deadline = std::time::Instant::now() + PATIENCE;
        while self.link.is_none() {
            assert!(std::time::Instant::now() < deadline, "no primary took the stream");
            let config = self.cluster.config.lock().unwrap().clone();
            let handle = {
                let nodes = self.cluster.nodes.lock().unwrap();
                nodes.get(&config.primary.id).map(|node| Arc::clone(&node.handle))
            };
            let Some(handle) = handle else {
                std::thread::yield_now();
                continue;
            };
            let open = OpenLink {
                volume: config.volume,
                session: self.session,
                attach: match self.loss {
                    Some(_) => Attach::Again(self.attach),
                    None => Attach::Shared,
                },
                node: NodeId(Uuid::nil()),
                loss_generation: self.loss,
                primary: config.primary,
            };
            self.cluster.runtime.block_on(async {
                let Some(mut link) = open_link(&handle, open).await else { return };
                if let Some(LinkEvent::Opened { epoch, attach, loss_generation }) =
                    link.events.recv().await
                {
                    (self.epoch, self.attach, self.loss) = (epoch, attach, Some(loss_generation));
                    self.link = Some(link);
                } else {
                    // Whatever it waits for shows in its status; a missed change is looked for
                    // again soon.
                    let mut status = handle.status.clone();
                    let change = status.changed();
                    let _changed = tokio::time::timeout(Duration::from_millis(100), change).await;
                }
            });
        }
    }

    /// Sends until it is answered.
    pub(crate) fn request(&mut self, op: IoOp) -> (LinkOutcome, Bytes) {
        let sequence = self.next;
        self.next += 1;
        loop {
            self.connect();
            let io = IoRequest {
                sequence,
                low: sequence - 1,
                epoch: self.epoch,
                attach: self.attach,
                op: op.clone(),
            };
            let mut link = self.link.take().expect("connected");
            let answer = self.cluster.runtime.block_on(async {
                let talk = async {
                    link.requests.send(io).await.ok()?;
                    loop {
                        return match link.events.recv().await? {
                            LinkEvent::Reply { sequence: of, outcome, data } => {
                                assert_eq!(of, sequence);
                                Some((outcome, data))
                            }
                            LinkEvent::HeldBack => continue,
                            LinkEvent::Ended { .. } => None,
                            LinkEvent::Opened { .. } => panic!("opened twice"),
                        };
                    }
                };
                tokio::time::timeout(PATIENCE, talk).await.expect("an answer or an end")
            });
            if let Some(answer) = answer {
                self.link = Some(link);
                return answer;
            }
        }
    }

    pub(crate) fn write(&mut self, block: u64, fill: u8) {
        let data = Bytes::from(vec![fill; 4096]);
        let (outcome, _) = self.request(IoOp::Write { offset: block * 4096, data });
        assert_eq!(outcome, LinkOutcome::Done);
    }

    pub(crate) fn read(&mut self, block: u64) -> u8 {
        let (outcome, data) = self.request(IoOp::Read { offset: block * 4096, length: 4096 });
        assert_eq!(outcome, LinkOutcome::Done);
        assert!(data.iter().all(|byte| *byte == data[0]), "a torn block");
        data[0]
    }
}
