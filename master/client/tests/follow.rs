//! How the client finds the leader, and what it makes of answers. The masters are scripts.

use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sbk_master_client::{
    CAUSE_METADATA, LEADER_METADATA, MasterClient, MasterError, REFUSAL_METADATA, cause,
};
use sbk_proto::v1::node_service_server::{NodeService, NodeServiceServer};
use sbk_proto::v1::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status};

type Script = dyn Fn() -> Result<HeartbeatResponse, Status> + Send + Sync;

/// A master that answers heartbeats as its script says.
struct Master {
    addr: String,
    calls: Arc<AtomicU32>,
    script: Arc<Mutex<Arc<Script>>>,
    /// Its own, so that its connections end with it.
    runtime: Option<Runtime>,
}

impl Drop for Master {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Service {
    calls: Arc<AtomicU32>,
    script: Arc<Mutex<Arc<Script>>>,
}

#[tonic::async_trait]
impl NodeService for Service {
    async fn heartbeat(
        &self,
        _: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let script = Arc::clone(&self.script.lock().expect("no test panics with it"));
        script().map(Response::new)
    }

    async fn register(
        &self,
        _: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    type WatchAssignmentsStream =
        Pin<Box<dyn Stream<Item = Result<AssignmentUpdate, Status>> + Send>>;

    async fn watch_assignments(
        &self,
        _: Request<WatchAssignmentsRequest>,
    ) -> Result<Response<Self::WatchAssignmentsStream>, Status> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let script = Arc::clone(&self.script.lock().expect("no test panics with it"));
        let revision = script()?.term;
        let update = AssignmentUpdate { revision, snapshot: true, ..Default::default() };
        // One update, then the stream ends, as it does when a leader stops leading.
        Ok(Response::new(Box::pin(tokio_stream::iter([Ok(update)]))))
    }

    async fn propose_isr(
        &self,
        _: Request<ProposeIsrRequest>,
    ) -> Result<Response<ProposeIsrResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn confirm_replica(
        &self,
        _: Request<ConfirmReplicaRequest>,
    ) -> Result<Response<ConfirmReplicaResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }

    async fn confirm_delete(
        &self,
        _: Request<ConfirmDeleteRequest>,
    ) -> Result<Response<ConfirmDeleteResponse>, Status> {
        Err(Status::unimplemented("not in the script"))
    }
}

impl Master {
    async fn start(
        script: impl Fn() -> Result<HeartbeatResponse, Status> + Send + Sync + 'static,
    ) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let bound = runtime.spawn(TcpListener::bind("127.0.0.1:0")).await;
        let listener = bound.expect("ends").expect("binds");
        let addr = listener.local_addr().expect("has an address").to_string();
        let calls = Arc::new(AtomicU32::new(0));
        let script: Arc<Mutex<Arc<Script>>> = Arc::new(Mutex::new(Arc::new(script)));
        let service = Service { calls: Arc::clone(&calls), script: Arc::clone(&script) };
        let server = tonic::transport::Server::builder()
            .add_service(NodeServiceServer::new(service))
            .serve_with_incoming(TcpListenerStream::new(listener));
        runtime.spawn(async move { server.await.expect("serves") });
        Self { addr, calls, script, runtime: Some(runtime) }
    }

    /// Nobody listens at its address any more when this returns.
    async fn end(mut self) {
        let runtime = self.runtime.take().expect("it ends once");
        tokio::task::spawn_blocking(move || drop(runtime)).await.expect("shuts down");
    }

    fn say(&self, script: impl Fn() -> Result<HeartbeatResponse, Status> + Send + Sync + 'static) {
        *self.script.lock().expect("no test panics with it") = Arc::new(script);
    }

    fn calls(&self) -> u32 {
        self.calls.load(Ordering::Relaxed)
    }
}

fn leads(term: u64) -> impl Fn() -> Result<HeartbeatResponse, Status> + Send + Sync {
    move || Ok(HeartbeatResponse { register: false, term, stands: Vec::new() })
}

fn unavailable(
    word: &'static str,
    leader: Option<String>,
) -> impl Fn() -> Result<HeartbeatResponse, Status> + Send + Sync {
    move || {
        let mut status = Status::unavailable("scripted");
        status.metadata_mut().insert(CAUSE_METADATA, word.parse().expect("ASCII"));
        if let Some(leader) = &leader {
            status.metadata_mut().insert(LEADER_METADATA, leader.parse().expect("ASCII"));
        }
        Err(status)
    }
}

fn client(masters: &[&Master], deadline: Duration) -> MasterClient {
    let addrs = masters.iter().map(|master| master.addr.clone()).collect();
    MasterClient::new(addrs).with_deadline(deadline)
}

const LONG: Duration = Duration::from_secs(60);
/// Long enough that not every attempt is cut short, on a machine that stands still for seconds.
const SOON: Duration = Duration::from_secs(3);

#[tokio::test]
async fn the_named_leader_is_asked_at_once_and_kept() {
    let leader = Master::start(leads(7)).await;
    let follower = Master::start(unavailable(cause::NOT_LEADER, Some(leader.addr.clone()))).await;
    let client = client(&[&follower, &leader], LONG);
    for _ in 0..3 {
        assert_eq!(client.heartbeat(HeartbeatRequest::default()).await.expect("answers").term, 7);
    }
    assert_eq!((follower.calls(), leader.calls()), (1, 3));
    assert_eq!(client.leader(), Some(leader.addr.clone()));
    // The leader moves: the client follows what the old one says.
    follower.say(leads(8));
    leader.say(unavailable(cause::NOT_LEADER, Some(follower.addr.clone())));
    assert_eq!(client.heartbeat(HeartbeatRequest::default()).await.expect("answers").term, 8);
}

#[tokio::test]
async fn a_dead_leader_is_left_for_the_next_master() {
    let first = Master::start(leads(1)).await;
    let second = Master::start(leads(2)).await;
    let client = client(&[&first, &second], LONG);
    assert_eq!(client.heartbeat(HeartbeatRequest::default()).await.expect("answers").term, 1);
    first.end().await;
    assert_eq!(client.heartbeat(HeartbeatRequest::default()).await.expect("answers").term, 2);
}

#[tokio::test]
async fn a_refusal_is_final() {
    let master = Master::start(|| {
        let mut status = Status::failed_precondition("there is one");
        status.metadata_mut().insert(REFUSAL_METADATA, "name-taken".parse().expect("ASCII"));
        Err(status)
    })
    .await;
    let client = client(&[&master], LONG);
    let error = client.heartbeat(HeartbeatRequest::default()).await.expect_err("refused");
    assert_eq!((error.refusal(), error.exit_code()), (Some("name-taken"), 1));
    assert_eq!(master.calls(), 1);
}

#[tokio::test]
async fn no_leader_no_quorum_and_silence_are_told_apart() {
    let request = HeartbeatRequest::default;
    let a = Master::start(leads(1)).await;
    let b = Master::start(leads(1)).await;
    let client = client(&[&a, &b], SOON);
    // Each names the other: the client must neither spin nor wait for ever.
    a.say(unavailable(cause::NOT_LEADER, Some(b.addr.clone())));
    b.say(unavailable(cause::NOT_LEADER, Some(a.addr.clone())));
    // An attempt that a deadline cuts short may have been carried out; one of these cuts none.
    let mut known = None;
    for deadline in [300, 1100, 4100, 15_100].map(Duration::from_millis) {
        let before = a.calls() + b.calls();
        let asked = client.with_deadline(deadline).heartbeat(request()).await;
        let error = asked.expect_err("nobody leads");
        let calls = a.calls() + b.calls() - before;
        assert!(calls < 80, "it spins: {calls} calls");
        match error {
            MasterError::NoQuorum { outcome_unknown: true, .. } | MasterError::TimedOut { .. } => {}
            error => {
                known = Some(error);
                break;
            }
        }
    }
    let right = matches!(known, Some(MasterError::NoQuorum { outcome_unknown: false, .. }));
    assert!(right, "{known:?}");

    a.say(unavailable(cause::NO_QUORUM, None));
    b.say(unavailable(cause::NOT_LEADER, None));
    let error = client.heartbeat(request()).await.expect_err("no quorum");
    assert_eq!(error.exit_code(), 3, "{error:?}");

    a.say(unavailable(cause::OUTCOME_UNKNOWN, None));
    b.say(unavailable(cause::OUTCOME_UNKNOWN, None));
    let error = client.heartbeat(request()).await.expect_err("unknown");
    assert_eq!(error.exit_code(), 4, "{error:?}");

    a.end().await;
    b.end().await;
    let error = client.heartbeat(request()).await.expect_err("nobody is there");
    assert!(matches!(error, MasterError::Unreachable { .. }), "{error:?}");
    assert_eq!(error.exit_code(), 3);
}

/// A leader without followers says so after a while, again and again; the call's deadline comes in the
/// middle of an attempt.
#[tokio::test]
async fn silence_at_the_deadline_does_not_hide_that_there_is_no_quorum() {
    let (_held, hold) = std::sync::mpsc::channel::<()>();
    let hold = Mutex::new(hold);
    let told = AtomicU32::new(0);
    let master = Master::start(move || {
        if told.fetch_add(1, Ordering::Relaxed) > 0 {
            // Silent until the test is over.
            hold.lock().expect("no test panics with it").recv().ok();
        }
        unavailable(cause::NO_QUORUM, None)()
    })
    .await;
    let client = client(&[&master], SOON);
    let error = client.heartbeat(HeartbeatRequest::default()).await.expect_err("no quorum");
    assert!(matches!(error, MasterError::NoQuorum { outcome_unknown: true, .. }), "{error:?}");
    assert!(master.calls() > 1, "the silent attempt was made");
}

/// Nor that a connection was refused: the last attempt had only what was left of the deadline.
#[tokio::test]
async fn silence_at_the_deadline_does_not_hide_that_nobody_is_there() {
    let dead = Master::start(leads(1)).await;
    let (_held, hold) = std::sync::mpsc::channel::<()>();
    let hold = Mutex::new(hold);
    let silent = Master::start(move || {
        // Until the test is over.
        hold.lock().expect("no test panics with it").recv().ok();
        unavailable(cause::NO_QUORUM, None)()
    })
    .await;
    let client = client(&[&dead, &silent], LONG);
    client.heartbeat(HeartbeatRequest::default()).await.expect("one answers");
    dead.end().await;
    // Each is so short that what it cuts short has hardly begun; of one of them there is time left when the
    // refused connection is heard of, and the master that is silent is asked.
    let mut told = Vec::new();
    for deadline in [300, 600, 900].map(Duration::from_millis) {
        let asked = client.with_deadline(deadline).heartbeat(HeartbeatRequest::default()).await;
        let error = asked.expect_err("none answers");
        if matches!(error, MasterError::Unreachable { outcome_unknown: true, .. }) {
            assert!(silent.calls() > 0, "the silent attempt was made");
            return;
        }
        told.push(error);
    }
    panic!("{told:?}");
}

/// A request got there on a connection whose way back is dead, and the keepalive ended it. [It was taken for
/// a connection that was never made: a command was said not to be done that was done.]
#[tokio::test]
async fn a_request_on_a_connection_that_dies_may_have_been_done() {
    let master = Master::start(leads(1)).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("has an address").to_string();
    let (cut, mut is_cut) = watch::channel(false);
    let (heard, mut hears) = mpsc::unbounded_channel();
    let there = master.addr.clone();
    let way = tokio::spawn(async move {
        // One connection; any other is refused.
        let (near, _) = listener.accept().await.expect("the client connects");
        drop(listener);
        let (mut from_client, mut to_client) = near.into_split();
        let far = TcpStream::connect(there).await.expect("the master is there");
        let (mut from_master, mut to_master) = far.into_split();
        let back = async {
            tokio::select! {
                _ = tokio::io::copy(&mut from_master, &mut to_client) => {}
                _ = is_cut.wait_for(|cut| *cut) => {}
            }
            std::future::pending::<()>().await;
        };
        let forth = async {
            let mut bytes = [0; 4096];
            while let Ok(read @ 1..) = from_client.read(&mut bytes).await {
                to_master.write_all(&bytes[..read]).await.expect("the master takes it");
                // HTTP/2's PING, of a connection that has nothing else to say.
                if let (17, [_, _, _, 6, 0, ..]) = (read, &bytes) {
                    // The test has ended if nobody hears.
                    heard.send(()).ok();
                }
            }
        };
        tokio::select! { () = back => {} () = forth => {} }
    });
    let client = MasterClient::new(vec![addr]).with_deadline(LONG);
    client.heartbeat(HeartbeatRequest::default()).await.expect("it answers");
    cut.send(true).expect("the way is there");
    while hears.try_recv().is_ok() {}
    // A ping that nothing comes back for: the connection has less time left than an attempt.
    hears.recv().await.expect("a keepalive");
    let client = client.with_deadline(2 * SOON);
    let error = client.heartbeat(HeartbeatRequest::default()).await.expect_err("no answer");
    assert_eq!(master.calls(), 2, "it was asked, and once");
    let told = matches!(error, MasterError::Unreachable { outcome_unknown: true, .. });
    assert!(told, "{error:?}");
    way.await.expect("the connection was ended");
}

#[tokio::test]
async fn what_the_user_got_wrong_is_told_at_once() {
    let none = MasterClient::new(Vec::new());
    let error = none.heartbeat(HeartbeatRequest::default()).await.expect_err("no address");
    assert_eq!(error.exit_code(), 2, "{error:?}");
    let bad = MasterClient::new(vec!["not an address".into()]);
    let error = bad.heartbeat(HeartbeatRequest::default()).await.expect_err("bad address");
    assert!(matches!(error, MasterError::BadAddress { .. }), "{error:?}");
}

#[tokio::test]
async fn a_watch_is_opened_again_at_the_new_leader() {
    let first = Master::start(leads(1)).await;
    let second = Master::start(leads(2)).await;
    let client = client(&[&first, &second], LONG);
    let mut watch = client.assignments(WatchAssignmentsRequest::default());
    assert_eq!(watch.next().await.expect("an update").revision, 1);
    first.say(unavailable(cause::NOT_LEADER, Some(second.addr.clone())));
    let update = watch.next().await.expect("an update");
    assert!(update.snapshot);
    assert_eq!(update.revision, 2);
}
