//! A datanode's life: listeners, disks, volumes, frontends, drain.

use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, bail};
use sbk_engine::forward;
use sbk_engine::replication::Params;
use sbk_listen::{Limits, Listener};
use sbk_proto::v1::block_service_server::BlockServiceServer;
use sbk_proto::v1::replication_server::ReplicationServer;
use sbk_store::{DataDirs, Place, StoreOptions, TailMemory};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;

use crate::args::{Args, Settings};
use crate::frontend::nbd::{self, AtStop, Tls};
use crate::frontend::{BlockApi, Frontends};
use crate::keys::Keys;
use crate::node::{Node, NodeConfig, Storage};
use crate::ops;
use crate::store::Replicas;
use crate::transport::{
    CONNECTION_WINDOW, FRAME_BYTES, MAX_MESSAGE_BYTES, ReplicationService, STREAM_WINDOW,
};
use crate::volume::keep_at_panic;

/// How long the servers may take to end once nothing uses them.
const DRAIN: Duration = Duration::from_secs(2);
/// How long sessions may take to end at their primaries once their clients have gone.
const LEAVE: Duration = Duration::from_secs(1);

/// The sockets of a datanode. Bound before anything is touched on disk, so that a port in use
/// changes nothing.
#[derive(Debug)]
pub struct Listeners {
    /// gRPC.
    pub grpc: TcpListener,
    /// HTTP.
    pub http: TcpListener,
    /// NBD.
    pub nbd: TcpListener,
}

impl Listeners {
    /// Binds what the settings name.
    ///
    /// # Errors
    /// If an address is in use or not this machine's.
    pub async fn bind(settings: &Settings) -> anyhow::Result<Self> {
        Ok(Self {
            grpc: bind(settings.listen, "--listen").await?,
            http: bind(settings.http, "--http").await?,
            nbd: bind(settings.nbd, "--nbd").await?,
        })
    }
}

async fn bind(addr: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(addr).await;
    listener.with_context(|| {
        format!("can't listen on {addr}; is it in use? Choose another with {flag}")
    })
}

/// How others reach a listener: its own address, or `advertise` where it listens on all.
fn reached_at(listener: &TcpListener, advertise: Option<&str>) -> anyhow::Result<String> {
    let addr = listener.local_addr()?;
    match advertise {
        Some(host) if host.contains(':') => Ok(format!("[{host}]:{}", addr.port())),
        Some(host) => Ok(format!("{host}:{}", addr.port())),
        None if addr.ip().is_unspecified() => bail!(
            "{addr} is every address of this machine; say with --advertise HOST by which one \
             others reach it"
        ),
        None => Ok(addr.to_string()),
    }
}

/// Streams of one connection at a time: a feed and a base lane for each volume that one node is primary of and
/// that has a replica here, and its questions.
const STREAMS: u32 = 4096;
/// What the headers of one request may take, as HTTP/2 counts it.
const HEADER_BYTES: u32 = 16 << 10;

/// Where it is kept when replicas were scrubbed.
const SCRUBS: &str = "scrubs.json";

/// Memory for payloads of recent entries of all replicas together. Up to 32 replicas have as much as each
/// may have, more of them share it.
const TAIL_MEMORY: u64 = 512 << 20;

/// Runs a datanode until `shutdown` resolves, then drains.
///
/// # Errors
/// Options that are missing or wrong, an address in use, a data directory that another process
/// has, that is damaged or foreign.
pub async fn run(args: Args, shutdown: impl Future<Output = ()> + Send) -> anyhow::Result<()> {
    let settings = args.settings()?;
    sbk_listen::take_descriptors();
    keep_at_panic();
    let listeners = Listeners::bind(&settings).await?;
    let key_file = settings.key_file.as_deref();
    let keys = tokio::task::block_in_place(|| Keys::read(key_file))?;
    let options = StoreOptions {
        tail_memory: Some(TailMemory::new(TAIL_MEMORY)),
        wal_retain_ms: settings.wal_retain_time.as_millis() as u64,
        ..StoreOptions::retaining(settings.wal_retain)
    };
    let places = &settings.disks;
    let lost = settings.lost_dirs.iter().copied().collect();
    let opened = tokio::task::block_in_place(|| DataDirs::open(places, &lost));
    let dirs = opened.with_context(|| {
        let what = |place: &Place| match place {
            Place::Dir(path) => format!("the data directory {}", path.display()),
            Place::Device(path) => format!("the device {}", path.display()),
        };
        format!("open {}", places.iter().map(what).collect::<Vec<_>>().join(" and "))
    })?;
    let replicas = tokio::task::block_in_place(|| {
        Replicas::new(dirs, settings.space, keys, &settings.runtime_dir, options)
    });
    serve(replicas, settings, listeners, shutdown).await
}

/// Runs a datanode on an open data directory until `shutdown` resolves, then drains.
///
/// # Errors
/// If the directory can't be read or a server ends by itself.
pub async fn serve<S: Storage>(
    storage: S,
    settings: Settings,
    listeners: Listeners,
    shutdown: impl Future<Output = ()> + Send,
) -> anyhow::Result<()> {
    let advertise = settings.advertise.as_deref();
    let config = NodeConfig {
        addr: reached_at(&listeners.grpc, advertise)?,
        http_addr: reached_at(&listeners.http, advertise)?,
        nbd_addr: reached_at(&listeners.nbd, advertise)?,
        masters: settings.masters,
        zone: settings.zone,
        params: Params::default(),
        recovery_rate: settings.recovery_rate,
        scrub: settings.scrub,
        scrubs: storage.scratch().join(SCRUBS),
    };
    let nbd_tls = settings.nbd_tls.as_ref();
    let authenticates = nbd_tls.is_some_and(|files| files.client_ca.is_some());
    let tls = nbd_tls.map(|files| tokio::task::block_in_place(|| Tls::load(files))).transpose()?;
    let trusting = [Some(&listeners.grpc), Some(&listeners.http)];
    let nbd = (!authenticates).then_some(&listeners.nbd);
    for listener in trusting.into_iter().chain([nbd]).flatten() {
        let addr = listener.local_addr()?;
        if !addr.ip().is_loopback() {
            tracing::warn!(%addr, "takes whoever reaches it from beyond this machine: trust the network");
        }
    }
    let (addr, http_addr) = (config.addr.clone(), config.http_addr.clone());
    let volumes_stop = CancellationToken::new();
    let servers_stop = CancellationToken::new();
    let started = Node::start(storage, config, volumes_stop.clone()).await;
    let (node, tasks) = started.context("read the data directory")?;
    tracing::info!(node = %node.id, process = node.process, addr, http = http_addr, "serving");
    let frontends = Frontends::new(
        node.catalogue.clone(),
        node.volumes.clone(),
        node.id,
        forward::Params::giving_up_after(settings.io_timeout),
    );
    let nbd_stop = CancellationToken::new();
    let (clients, stop, sessions) = (frontends.clone(), nbd_stop.clone(), frontends.clone());
    let nbd = tokio::spawn(nbd::serve(clients, listeners.nbd, tls, stop, AtStop::Answer));
    let stop = servers_stop.clone();
    let mut grpc = tokio::spawn(serve_grpc(node.clone(), frontends, listeners.grpc, stop));
    let mut pages = tokio::spawn(serve_http(node.clone(), listeners.http, servers_stop.clone()));
    let mut outdated = node.outdated.clone();
    let ended = tokio::select! {
        () = shutdown => Ok(()),
        why = outdated.wait_for(Option::is_some) => {
            let why = why.ok().and_then(|why| why.clone());
            Err(anyhow::anyhow!(why.unwrap_or_default()))
        }
        ended = &mut grpc => ended.map_err(anyhow::Error::from).and_then(|r| r).context("gRPC ended"),
        ended = &mut pages => ended.map_err(anyhow::Error::from).and_then(|r| r).context("HTTP ended"),
    };
    tracing::info!("stopping");
    // While everything still runs: clients on other nodes follow their primaries to where they go.
    node.hand_over().await;
    // Clients first, then the volumes: what is durable is marked so, and peers see streams end.
    nbd_stop.cancel();
    if tokio::time::timeout(DRAIN, nbd).await.is_err() {
        tracing::warn!("NBD clients with requests under way are cut off");
    } else if tokio::time::timeout(LEAVE, sessions.ended()).await.is_err() {
        tracing::info!("sessions without a primary are left to end there by themselves");
    }
    volumes_stop.cancel();
    tasks.stopped().await;
    servers_stop.cancel();
    let drain = async {
        if !grpc.is_finished() {
            grpc.await.ok();
        }
        if !pages.is_finished() {
            pages.await.ok();
        }
    };
    // A peer that keeps its connection is cut off.
    let _cut_off = tokio::time::timeout(DRAIN, drain).await;
    tracing::info!("stopped");
    ended
}

async fn serve_grpc(
    node: Node,
    frontends: Frontends,
    listener: TcpListener,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let replication = ReplicationServer::new(ReplicationService::new(node.volumes))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let blocks = BlockServiceServer::new(frontends.block_service())
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    reporter.set_serving::<ReplicationServer<ReplicationService>>().await;
    reporter.set_serving::<BlockServiceServer<BlockApi>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(sbk_proto::DESCRIPTORS)
        .build_v1()
        .context("describe the services")?;
    let listener = Listener::new(listener, Limits::grpc().within_descriptors());
    Server::builder()
        .max_concurrent_streams(STREAMS)
        .http2_max_header_list_size(HEADER_BYTES)
        .http2_keepalive_interval(Some(Duration::from_secs(2)))
        .http2_keepalive_timeout(Some(Duration::from_secs(3)))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_BYTES)
        .add_service(health)
        .add_service(reflection)
        .add_service(InterceptedService::new(replication, sbk_listen::keep))
        .add_service(blocks)
        .serve_with_incoming_shutdown(listener.incoming(), stop.cancelled())
        .await
        .context("serve gRPC")
}

async fn serve_http(
    node: Node,
    listener: TcpListener,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let listener = Listener::new(listener, Limits::pages().within_descriptors());
    axum::serve(listener, ops::router(node))
        .with_graceful_shutdown(async move { stop.cancelled().await })
        .await
        .context("serve HTTP")
}
