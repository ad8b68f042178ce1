//! A frontend's session when its clients come and go, at a primary that answers when it is told to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sbk_datanode::catalogue::{Catalogue, Volume};
use sbk_datanode::frontend::{ClientHandle, Frontends};
use sbk_datanode::link::IoOp;
use sbk_datanode::volume::Registry;
use sbk_engine::forward::{Answer, Params};
use sbk_engine::types::{
    Config, Durability, Epoch, Incarnation, LossGeneration, NodeId, Placement, ReplicaId,
    ReplicaRef, VolumeId, Wish, WriteAck,
};
use sbk_proto::v1;
use sbk_proto::v1::block_reply::Body as Reply;
use sbk_proto::v1::block_request::Body as Request;
use sbk_proto::v1::block_service_server::{BlockService, BlockServiceServer};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Response, Status, Streaming};
use uuid::Uuid;

/// What a test that would otherwise wait for ever is given.
const PATIENCE: Duration = Duration::from_secs(60);
const BLOCK: u64 = 4096;

type Replies = mpsc::Sender<Result<v1::BlockReply, Status>>;

struct Stream {
    requests: Streaming<v1::BlockRequest>,
    replies: Replies,
}

/// Hands every stream to the test.
struct Primary(mpsc::UnboundedSender<Stream>);

#[tonic::async_trait]
impl BlockService for Primary {
    type StreamStream = ReceiverStream<Result<v1::BlockReply, Status>>;

    async fn stream(
        &self,
        request: tonic::Request<Streaming<v1::BlockRequest>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let (replies, outgoing) = mpsc::channel(64);
        let stream = Stream { requests: request.into_inner(), replies };
        self.0.send(stream).map_err(|_| Status::unavailable("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(outgoing)))
    }

    async fn detach(
        &self,
        _: tonic::Request<v1::DetachRequest>,
    ) -> Result<Response<v1::DetachResponse>, Status> {
        Err(Status::unimplemented("no test asks for it"))
    }
}

impl Stream {
    async fn next(&mut self) -> Request {
        let message = tokio::time::timeout(PATIENCE, self.requests.message()).await;
        let message = message.expect("a message comes").expect("no error").expect("no end");
        message.body.expect("a body")
    }

    async fn opened(&mut self) {
        assert!(matches!(self.next().await, Request::Open(_)));
        let opened = v1::StreamOpened { epoch: 1, ..Default::default() };
        self.tell(Reply::Opened(opened)).await;
    }

    async fn io(&mut self) -> v1::IoRequest {
        match self.next().await {
            Request::Io(io) => io,
            other => panic!("{other:?} is no request"),
        }
    }

    async fn tell(&self, body: Reply) {
        let reply = v1::BlockReply { body: Some(body) };
        self.replies.send(Ok(reply)).await.expect("the frontend listens");
    }

    async fn done(&self, sequence: u64) {
        self.tell(Reply::Io(v1::IoReply { sequence, ..Default::default() })).await;
    }
}

fn volume() -> VolumeId {
    VolumeId(Uuid::from_u128(1))
}

/// A frontend of a volume whose primary is the test, within `params`.
async fn frontend(params: Params) -> (Frontends, mpsc::UnboundedReceiver<Stream>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("bound").to_string();
    let (accepted, streams) = mpsc::unbounded_channel();
    let service = BlockServiceServer::new(Primary(accepted));
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));

    let replica = ReplicaId(Uuid::from_u128(2));
    let node = NodeId(Uuid::from_u128(3));
    let config = Config {
        volume: volume(),
        epoch: Epoch(1),
        primary: ReplicaRef { id: replica, incarnation: Incarnation { process: 1, open: 1 } },
        since: Epoch(1),
        isr: BTreeSet::from([replica]),
        replicas: BTreeMap::from([(replica, Placement { node, addr })]),
        durability: Durability::SyncAll,
        write_ack: WriteAck::Durable,
        min_in_sync: 1,
        blocks: 64,
        wished_blocks: None,
        loss_generation: LossGeneration(0),
        handed_over_by: None,
        tails: BTreeMap::new(),
    };
    let known = Volume {
        id: volume(),
        name: "vol".to_owned(),
        blocks: 64,
        created_blocks: 64,
        encrypted: false,
        replicas: BTreeMap::new(),
        retired: BTreeMap::new(),
        wish: Wish::default(),
        config: Some(config),
        deleted: false,
        limits: sbk_engine::authority::Limits::default(),
    };
    let volumes = BTreeMap::from([(volume(), Arc::new(known))]);
    let (told, watched) = watch::channel(Arc::new(Catalogue { volumes, heard: true }));
    // For as long as the test's runtime lives.
    std::mem::forget(told);
    let own = NodeId(Uuid::from_u128(9));
    (Frontends::new(watched, Registry::default(), own, params), streams)
}

async fn write(client: &ClientHandle, cookie: u64, block: u64) {
    let data = Bytes::from(vec![1; BLOCK as usize]);
    let op = IoOp::Write { offset: block * BLOCK, data };
    assert!(client.submitter().submit(cookie, op, None).await, "the session lives");
}

/// A client that lost its connection comes again at once and writes the same blocks anew. [It was given a
/// session of its own, and what was under way of the first one could arrive behind what it wrote.]
#[tokio::test]
async fn who_comes_next_waits_for_the_writes_of_the_last_client_that_left() {
    let (frontends, mut streams) = frontend(Params::default()).await;
    let first = frontends.attach(volume());
    let mut stream = streams.recv().await.expect("a stream");
    stream.opened().await;
    write(&first, 1, 0).await;
    assert_eq!(stream.io().await.offset, 0);
    drop(first);

    let mut second = frontends.attach(volume());
    tokio::select! {
        attached = &mut second.attached => drop(attached.expect("it is told").expect("it stands")),
        _ = streams.recv() => panic!("another session, beside writes that are under way"),
    }
    write(&second, 1, 0).await;
    write(&second, 2, 1).await;
    let other = stream.io().await;
    assert_eq!(other.offset, BLOCK, "the first one's block is not written yet");
    stream.done(1).await;
    assert_eq!(stream.io().await.offset, 0, "its fate is known");

    // Once nothing is under way the session ends, and says so.
    drop(second);
    stream.done(2).await;
    stream.done(3).await;
    assert_eq!(stream.io().await.op, 6, "a detach");
}

/// What a client asked and did not get sent goes with it, also where so much waits that no more is
/// taken. [Its leaving waited behind that, and the writes of a client long gone were sent.]
#[tokio::test]
async fn what_a_client_asked_goes_with_it_however_full_the_session_is() {
    let params = Params { max_queued: 1, ..Params::default() };
    let (frontends, mut streams) = frontend(params).await;
    let (leaves, stays) = (frontends.attach(volume()), frontends.attach(volume()));
    // One is taken, and the session is full, for its stream is not open yet.
    write(&leaves, 1, 0).await;
    write(&leaves, 2, 1).await;
    drop(leaves);
    write(&stays, 1, 2).await;
    let mut stream = streams.recv().await.expect("a stream");
    // In the order in which they came: the session hears of this after that the client has left.
    stream.opened().await;
    assert_eq!(stream.io().await.offset, 2 * BLOCK, "only of the client that is there");
}

#[tokio::test]
async fn a_primary_that_holds_requests_back_says_so_on_the_same_stream() {
    let (frontends, mut streams) = frontend(Params::default()).await;
    let mut client = frontends.attach(volume());
    let mut stream = streams.recv().await.expect("a stream");
    stream.opened().await;
    write(&client, 7, 0).await;
    let sequence = stream.io().await.sequence;
    stream.tell(Reply::HeldBack(v1::HeldBack {})).await;
    stream.done(sequence).await;
    let reply = client.replies.recv().await.expect("is answered");
    assert_eq!((reply.cookie, reply.answer), (7, Answer::Done));
    assert!(streams.try_recv().is_err(), "the stream goes on");
}
