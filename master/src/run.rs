//! A master's life: lock the directory, open log and state, start Raft, serve, drain.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::future::Future;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use openraft::{BasicNode, Config, SnapshotPolicy};
use rustix::fs::{FlockOperation, flock};
use sbk_engine::authority::{ClusterId, Command};
use sbk_proto::v1::control_server::ControlServer;
use sbk_proto::v1::node_service_server::NodeServiceServer;
use sbk_proto::v1::raft_server::RaftServer;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use uuid::Uuid;

use crate::args::Args;
use crate::http;
use crate::log_store::LogStore;
use crate::member::Member;
use crate::network::{MAX_MESSAGE, Network};
use crate::raft::Raft;
use crate::services::{ControlService, NodeApi, RaftService};
use crate::state_machine::{Answer, Proposal, StateMachine};

/// Whose data directory this is. Written before anything else in it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    format: u32,
    member: u64,
    cluster: String,
    instance: Uuid,
}

const FORMAT: u32 = 1;

/// Runs a member until `shutdown` resolves, then drains.
///
/// # Errors
/// A directory that is locked, foreign or damaged, an address in use, a member that is not in its
/// own `--cluster`.
pub async fn run(args: Args, shutdown: impl Future<Output = ()> + Send) -> anyhow::Result<()> {
    let Some(own) = args.cluster.0.get(&args.id) else {
        bail!("--id {} is not in --cluster {}; add it there", args.id, args.cluster.name());
    };
    tracing::info!(member = args.id, addr = own, "starting");
    if !args.listen.ip().is_loopback() {
        tracing::warn!(listen = %args.listen, "listens beyond this machine without TLS: trust the network");
    }
    let listener = bind(args.listen, "--listen").await?;
    let http_listener = bind(args.http, "--http").await?;
    let _lock = lock(&args.data_dir)?;
    let (identity, fresh) = identity(&args)?;
    let log = LogStore::open(&args.data_dir, fresh).context("open the Raft log")?;
    if fresh {
        // From here on missing files are a loss and not a beginning.
        write_durably(&args.data_dir, "begun", b"")?;
    }
    let machine = StateMachine::open(&args.data_dir, &log).context("open the applied state")?;
    let network = Network::new(args.cluster.name(), &args.cluster.0)?;
    let pristine = log.is_pristine();
    let raft = Raft::new(args.id, raft_config()?, network, log, machine.clone())
        .await
        .context("start Raft")?;
    let member = Member::new(args.id, args.cluster.0.clone(), raft.clone(), machine.clone());
    if pristine {
        initialize(&raft, &args).await?;
    }

    let (stop, stopped) = watch::channel(false);
    let leader = tokio::spawn(member.clone().lead());
    let bootstrap = tokio::spawn(bootstrap(member.clone(), identity.instance));
    let mut grpc =
        tokio::spawn(serve(member.clone(), args.cluster.name(), listener, stopped.clone()));
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

/// One process on one directory, for as long as the returned file lives.
fn lock(dir: &Path) -> anyhow::Result<File> {
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    let path = dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path)?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).with_context(|| {
        format!("another process uses {}; stop it or give another --data-dir", dir.display())
    })?;
    Ok(file)
}

/// Reads or makes the directory's identity. The second value says that it was made now.
fn identity(args: &Args) -> anyhow::Result<(Identity, bool)> {
    let path = args.data_dir.join("member.json");
    let cluster = args.cluster.name();
    if path.exists() {
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let found: Identity = serde_json::from_slice(&text).with_context(|| {
            format!("{} is damaged; this member's data can't be trusted", path.display())
        })?;
        if found.format != FORMAT {
            bail!("{} has format {}, this program knows {FORMAT}", path.display(), found.format);
        }
        if found.member != args.id {
            bail!(
                "{} belongs to member {}, not {}; give each member its own --data-dir",
                args.data_dir.display(),
                found.member,
                args.id
            );
        }
        if found.cluster != cluster {
            bail!(
                "{} belongs to the cluster {}, not {cluster}; give the --cluster that it was made with",
                args.data_dir.display(),
                found.cluster
            );
        }
        // Raft's files may be missing only if the first start ended before they were made.
        let begun = args.data_dir.join("begun").exists();
        return Ok((found, !begun));
    }
    let others = fs::read_dir(&args.data_dir)?.flatten().any(|entry| entry.file_name() != "lock");
    if others {
        bail!(
            "{} is not empty and has no member.json: it is not a master's directory. Give an empty one",
            args.data_dir.display()
        );
    }
    let made = Identity { format: FORMAT, member: args.id, cluster, instance: Uuid::new_v4() };
    write_durably(&args.data_dir, "member.json", &serde_json::to_vec_pretty(&made)?)?;
    Ok((made, true))
}

fn write_durably(dir: &Path, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let temporary = dir.join(format!("{name}.tmp"));
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(name))?;
    File::open(dir)?.sync_all()?;
    Ok(())
}

fn raft_config() -> anyhow::Result<Arc<Config>> {
    let config = Config {
        cluster_name: "sbk".to_owned(),
        heartbeat_interval: 250,
        election_timeout_min: 1000,
        election_timeout_max: 2000,
        install_snapshot_timeout: 5000,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(5000),
        max_in_snapshot_log_to_keep: 1000,
        snapshot_max_chunk_size: 1 << 20,
        ..Config::default()
    };
    Ok(Arc::new(config.validate().context("Raft's times")?))
}

/// Every member begins with the same list; whichever is first makes the others follow.
async fn initialize(raft: &Raft, args: &Args) -> anyhow::Result<()> {
    let members: BTreeMap<_, _> =
        args.cluster.0.iter().map(|(id, addr)| (*id, BasicNode::new(addr.clone()))).collect();
    use openraft::error::{InitializeError, RaftError};
    match raft.initialize(members).await {
        Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
        Err(error) => Err(error).context("initialize the quorum"),
    }
}

/// Has this member's directory recorded, once there is a leader, and the cluster named. Returns
/// only if the quorum knows this member by another directory.
async fn bootstrap(member: Member, instance: Uuid) -> anyhow::Result<()> {
    let mut metrics = member.raft.metrics();
    let mut changes = member.machine.changes();
    loop {
        let standing = member.machine.read().instances.get(&member.id).copied();
        if standing.is_some_and(|known| known != instance) {
            bail!(
                "the quorum knows member {} by another data directory: its vote and log are lost. \
                 Never give a member's id to a new directory",
                member.id
            );
        }
        if member.leads() {
            if member.read(|state| state.cluster()).is_none() {
                let cluster = ClusterId(Uuid::new_v4());
                // Without an answer it is tried again with the next change.
                let _ = member.command(Command::BootstrapCluster { cluster }).await;
            }
            if standing.is_none() {
                let proposal = Proposal::Member { member: member.id, instance };
                if let Ok(Answer::Member(known)) = member.commit(proposal).await {
                    tracing::info!(member = member.id, %known, "recorded");
                }
            }
        }
        tokio::select! {
            changed = metrics.changed() => changed?,
            changed = changes.changed() => changed?,
        }
    }
}

async fn until(mut stopped: watch::Receiver<bool>) {
    // An error means that the sender is gone, which is a stop too.
    let _ = stopped.wait_for(|stop| *stop).await;
}

async fn serve(
    member: Member,
    cluster: String,
    listener: TcpListener,
    stopped: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<ControlServer<ControlService>>().await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(sbk_proto::DESCRIPTORS)
        .build_v1()?;
    let raft = RaftServer::new(RaftService { member: member.clone(), cluster })
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    Server::builder()
        .tcp_nodelay(true)
        .http2_keepalive_interval(Some(Duration::from_secs(2)))
        .http2_keepalive_timeout(Some(Duration::from_secs(4)))
        .add_service(health_service)
        .add_service(reflection)
        .add_service(raft)
        .add_service(ControlServer::new(ControlService { member: member.clone() }))
        .add_service(NodeServiceServer::new(NodeApi { member }))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), until(stopped))
        .await?;
    Ok(())
}

async fn serve_http(
    member: Member,
    listener: TcpListener,
    stopped: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    axum::serve(listener, http::router(member)).with_graceful_shutdown(until(stopped)).await?;
    Ok(())
}
