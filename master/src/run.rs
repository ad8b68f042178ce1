//! A master's life: lock the directory, open log and state, start Raft, serve, drain.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use openraft::error::{InitializeError, RaftError};
use openraft::{BasicNode, Config, SnapshotPolicy};
use sbk_engine::authority::{ClusterId, Command};
use sbk_listen::{Limits, Listener};
use sbk_proto::v1::control_server::ControlServer;
use sbk_proto::v1::node_service_server::NodeServiceServer;
use sbk_proto::v1::raft_server::RaftServer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use uuid::Uuid;

use crate::args::{Args, Settings};
use crate::data_dir::DataDir;
use crate::http;
use crate::log_store::LogStore;
use crate::member::Member;
use crate::network::{Heard, Identity, MAX_MESSAGE, Network, Pool};
use crate::raft::Raft;
use crate::services::{ControlService, NodeApi, RaftService};
use crate::state_machine::{Proposal, StateMachine};

/// Streams of one connection at a time; a caller's other requests wait at its end.
const STREAMS: u32 = 1024;
/// What the headers of one request may take, as HTTP/2 counts it.
const HEADER_BYTES: u32 = 16 << 10;

/// Runs a member until `shutdown` resolves, then drains.
///
/// # Errors
/// A directory that is locked, foreign or damaged, an address in use, a member that is not in its
/// own `--cluster`.
pub async fn run(args: Args, shutdown: impl Future<Output = ()> + Send) -> anyhow::Result<()> {
    let args = args.settings()?;
    sbk_listen::take_descriptors();
    tracing::info!(member = args.id, cluster = args.cluster.name(), "starting");
    if !args.listen.ip().is_loopback() {
        tracing::warn!(listen = %args.listen, "listens beyond this machine without TLS: trust the network");
    }
    let listener = bind(args.listen, "--listen").await?;
    let http_listener = bind(args.http, "--http").await?;
    let mut dir = DataDir::open(&args.data_dir, args.id, &args.cluster.name())?;
    let log = LogStore::open(&dir.log(), dir.is_fresh()).context("open the Raft log")?;
    dir.settle()?;
    let machine = StateMachine::open(dir.path(), &log).context("open the applied state")?;
    let identity = Identity {
        cluster: args.cluster.name(),
        member: args.id,
        instance: dir.instance(),
        peers: Arc::new(args.cluster.0.clone()),
        state: machine.clone(),
        heard: Heard::default(),
        expelled: watch::Sender::new(None),
    };
    let network = Network { identity: identity.clone(), pool: Pool::default() };
    let pristine = log.is_pristine();
    let raft = Raft::new(args.id, raft_config(&args)?, network, log, machine.clone())
        .await
        .context("start Raft")?;
    let (member, reads) = Member::new(&identity, raft.clone(), args.replace_after);
    tokio::spawn(reads);
    if pristine {
        initialize(&raft, &args).await?;
    }

    let (stop, stopped) = watch::channel(false);
    let leader = tokio::spawn(member.clone().lead());
    let mover = tokio::spawn(member.clone().rearrange());
    let expelled = identity.expelled.subscribe();
    let bootstrap = tokio::spawn(bootstrap(member.clone(), identity.instance, expelled));
    let calls = RaftService { raft: raft.clone(), identity };
    let mut grpc = tokio::spawn(serve(member.clone(), calls, listener, stopped.clone()));
    let mut pages = tokio::spawn(serve_http(member.clone(), http_listener, stopped));
    tracing::info!(listen = %args.listen, http = %args.http, "serving");
    let ended: anyhow::Result<()> = tokio::select! {
        () = shutdown => Ok(()),
        ended = &mut grpc => ended.map_err(anyhow::Error::from).and_then(|r| r).context("gRPC ended"),
        ended = &mut pages => ended.map_err(anyhow::Error::from).and_then(|r| r).context("HTTP ended"),
        refused = bootstrap => match refused {
            Ok(Err(error)) => Err(error),
            Ok(Ok(())) | Err(_) => Err(anyhow::anyhow!("the bootstrap task ended")),
        },
    };
    tracing::info!("stopping");
    let _ = stop.send(true);
    raft.shutdown().await.ok();
    leader.abort();
    mover.abort();
    let drain = async {
        if !grpc.is_finished() {
            grpc.await.ok();
        }
    };
    tokio::time::timeout(Duration::from_secs(2), drain).await.ok();
    machine.keep().context("keep the applied state")?;
    ended
}

async fn bind(addr: std::net::SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(addr).await.with_context(|| {
        format!("can't listen on {addr}; is it in use? Choose another with {flag}")
    })
}

fn raft_config(args: &Settings) -> anyhow::Result<Arc<Config>> {
    let config = Config {
        cluster_name: "sbk".to_owned(),
        heartbeat_interval: 250,
        election_timeout_min: 1000,
        election_timeout_max: 2000,
        install_snapshot_timeout: 60_000,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(args.snapshot_after),
        replication_lag_threshold: args.snapshot_after.saturating_mul(2),
        max_in_snapshot_log_to_keep: args.snapshot_after / 5,
        ..Config::default()
    };
    Ok(Arc::new(config.validate().context("Raft's times")?))
}

/// Every member begins with the same list; whichever is first makes the others follow.
async fn initialize(raft: &Raft, args: &Settings) -> anyhow::Result<()> {
    let members: BTreeMap<_, _> =
        args.cluster.0.iter().map(|(id, addr)| (*id, BasicNode::new(addr.clone()))).collect();
    match raft.initialize(members).await {
        Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
        Err(error) => Err(error).context("initialize the quorum"),
    }
}

/// On the leader: has the cluster named, and every member's data directory recorded as it is first
/// heard. On any member: returns, with an error, only if the quorum knows this member by another
/// directory, or if Raft ended.
async fn bootstrap(
    member: Member,
    instance: Uuid,
    mut expelled: watch::Receiver<Option<String>>,
) -> anyhow::Result<()> {
    let mut metrics = member.raft.metrics();
    let mut changes = member.machine.changes();
    loop {
        let standing = member.machine.read().instances.clone();
        if let Some(known) = standing.get(&member.id).filter(|known| **known != instance) {
            bail!(
                "the quorum knows member {} by another data directory ({known}, not {instance}): \
                 its vote and log are lost. Never give a member's id to a new directory",
                member.id
            );
        }
        if member.leads() {
            if member.read(|state| state.cluster()).is_none() {
                let cluster = ClusterId(Uuid::new_v4());
                record(&member, Proposal::Authority(Command::BootstrapCluster { cluster })).await;
            }
            let others = member.heard().into_iter().map(|(id, (instance, _))| (id, instance));
            for (id, instance) in others.chain([(member.id, instance)]) {
                if !standing.contains_key(&id) {
                    record(&member, Proposal::Member { member: id, instance }).await;
                }
            }
        }
        tokio::select! {
            changed = metrics.changed() => changed.map_err(|_| raft_ended(&member))?,
            changed = changes.changed() => changed?,
            changed = expelled.changed() => {
                changed?;
                if let Some(why) = &*expelled.borrow_and_update() {
                    bail!("the other members do not take this one: {why}");
                }
            }
        }
    }
}

/// Without an answer it is tried again with the next change.
async fn record(member: &Member, proposal: Proposal) {
    if let Err(error) = member.commit(proposal).await {
        tracing::debug!(%error, "not recorded yet");
    }
}

fn raft_ended(member: &Member) -> anyhow::Error {
    match &member.raft.metrics().borrow().running_state {
        Ok(()) => anyhow::anyhow!("Raft ended"),
        Err(error) => anyhow::anyhow!("Raft ended: {error}"),
    }
}

async fn until(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop too.
    let _ = stopped.wait_for(|stop| *stop).await;
}

async fn serve(
    member: Member,
    calls: RaftService,
    listener: TcpListener,
    stopped: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<ControlServer<ControlService>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(sbk_proto::DESCRIPTORS)
        .build_v1()?;
    let raft = RaftServer::new(calls)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let listener = Listener::new(listener, Limits::grpc().within_descriptors());
    Server::builder()
        .max_concurrent_streams(STREAMS)
        .http2_max_header_list_size(HEADER_BYTES)
        .http2_keepalive_interval(Some(Duration::from_secs(2)))
        .http2_keepalive_timeout(Some(Duration::from_secs(4)))
        .add_service(health_service)
        .add_service(reflection)
        .add_service(InterceptedService::new(raft, sbk_listen::keep))
        .add_service(ControlServer::new(ControlService { member: member.clone() }))
        .add_service(NodeServiceServer::new(NodeApi { member }))
        .serve_with_incoming_shutdown(listener.incoming(), until(stopped))
        .await?;
    Ok(())
}

async fn serve_http(
    member: Member,
    listener: TcpListener,
    stopped: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let listener = Listener::new(listener, Limits::pages().within_descriptors());
    axum::serve(listener, http::router(member)).with_graceful_shutdown(until(stopped)).await?;
    Ok(())
}
