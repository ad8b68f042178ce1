//! Masters that do what a test says.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use sbk_proto::v1;
use sbk_proto::v1::node_service_server::{NodeService, NodeServiceServer};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// What the node has said so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heard {
    pub(crate) registered: Option<v1::RegisterRequest>,
    pub(crate) heartbeat: Option<v1::HeartbeatRequest>,
    /// Confirmations that were refused.
    pub(crate) refused: Vec<v1::ConfirmReplicaRequest>,
    pub(crate) created: Vec<v1::ConfirmReplicaRequest>,
    pub(crate) deleted: Vec<v1::ConfirmDeleteRequest>,
}

type Watcher = mpsc::Sender<Result<v1::AssignmentUpdate, Status>>;

#[derive(Clone)]
pub(crate) struct Masters {
    pub(crate) heard: watch::Sender<Heard>,
    /// Whether a confirmation of a new replica is refused.
    pub(crate) refusing: Arc<AtomicBool>,
    watchers: Arc<Mutex<Vec<Watcher>>>,
    volumes: Arc<Mutex<Vec<v1::VolumeAssignment>>>,
}

impl Masters {
    /// Starts on a port of its own.
    pub(crate) async fn start() -> (Self, SocketAddr) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("bound");
        let masters = Self {
            heard: watch::channel(Heard::default()).0,
            refusing: Arc::default(),
            watchers: Arc::default(),
            volumes: Arc::default(),
        };
        let service = NodeServiceServer::new(masters.clone());
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tokio::spawn(
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming),
        );
        (masters, addr)
    }

    /// Pushes the whole catalogue.
    pub(crate) async fn push(&self, volumes: Vec<v1::VolumeAssignment>) {
        let watchers = {
            // A watcher that comes meanwhile has either these or is among those that are told.
            let watchers = self.watchers.lock().unwrap();
            *self.volumes.lock().unwrap() = volumes.clone();
            watchers.clone()
        };
        for watcher in watchers {
            // A watcher that went opens another stream and gets a snapshot.
            let _went = watcher.send(Ok(snapshot(volumes.clone()))).await;
        }
    }
}

fn snapshot(volumes: Vec<v1::VolumeAssignment>) -> v1::AssignmentUpdate {
    v1::AssignmentUpdate { revision: 1, snapshot: true, volumes, gone: Vec::new() }
}

#[tonic::async_trait]
impl NodeService for Masters {
    async fn register(
        &self,
        request: Request<v1::RegisterRequest>,
    ) -> Result<Response<v1::RegisterResponse>, Status> {
        self.heard.send_modify(|heard| heard.registered = Some(request.into_inner()));
        Ok(Response::new(v1::RegisterResponse::default()))
    }

    async fn heartbeat(
        &self,
        request: Request<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatResponse>, Status> {
        let register = self.heard.borrow().registered.is_none();
        self.heard.send_modify(|heard| heard.heartbeat = Some(request.into_inner()));
        Ok(Response::new(v1::HeartbeatResponse { register, term: 1, stands: Vec::new() }))
    }

    type WatchAssignmentsStream = ReceiverStream<Result<v1::AssignmentUpdate, Status>>;

    async fn watch_assignments(
        &self,
        _request: Request<v1::WatchAssignmentsRequest>,
    ) -> Result<Response<Self::WatchAssignmentsStream>, Status> {
        let (updates, stream) = mpsc::channel(4);
        let mut watchers = self.watchers.lock().unwrap();
        let volumes = self.volumes.lock().unwrap().clone();
        updates.try_send(Ok(snapshot(volumes))).expect("room");
        watchers.push(updates);
        drop(watchers);
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn propose_isr(
        &self,
        _request: Request<v1::ProposeIsrRequest>,
    ) -> Result<Response<v1::ProposeIsrResponse>, Status> {
        Err(Status::unavailable("no proposal is expected"))
    }

    async fn confirm_replica(
        &self,
        request: Request<v1::ConfirmReplicaRequest>,
    ) -> Result<Response<v1::ConfirmReplicaResponse>, Status> {
        if self.refusing.load(Ordering::Relaxed) {
            self.heard.send_modify(|heard| heard.refused.push(request.into_inner()));
            return Err(Status::failed_precondition("no confirmation is taken"));
        }
        self.heard.send_modify(|heard| heard.created.push(request.into_inner()));
        Ok(Response::new(v1::ConfirmReplicaResponse {}))
    }

    async fn confirm_delete(
        &self,
        request: Request<v1::ConfirmDeleteRequest>,
    ) -> Result<Response<v1::ConfirmDeleteResponse>, Status> {
        self.heard.send_modify(|heard| heard.deleted.push(request.into_inner()));
        Ok(Response::new(v1::ConfirmDeleteResponse {}))
    }
}
