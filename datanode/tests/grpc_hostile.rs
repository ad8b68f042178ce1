//! Garbage on a datanode's gRPC port: what is no message, too long, malformed, about nothing that
//! is here, or against the order of things gets a status that says so, or loses its stream. The
//! process never panics and goes on serving its volume with its data.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use sbk_proto::v1;
use sbk_proto::v1::block_reply::Body as Reply;
use sbk_proto::v1::block_request::Body as Ask;
use sbk_proto::v1::block_service_client::BlockServiceClient;
use sbk_proto::v1::recover_message::Body as Recover;
use sbk_proto::v1::replication_client::ReplicationClient;
use sbk_proto::v1::replication_message::Body;
use support::process::{PATIENCE, Process, Scene, id, read_all};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use uuid::Uuid;

const MOST: usize = 60 << 20;
const SECTOR: u64 = 512;

async fn channel(addr: SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{addr}")).expect("a URI").connect().await.expect("listens")
}

async fn replication(process: &Process) -> ReplicationClient<Channel> {
    let client = ReplicationClient::new(channel(process.grpc).await);
    client.max_encoding_message_size(MOST).max_decoding_message_size(MOST)
}

async fn blocks(process: &Process) -> BlockServiceClient<Channel> {
    let client = BlockServiceClient::new(channel(process.grpc).await);
    client.max_encoding_message_size(MOST).max_decoding_message_size(MOST)
}

/// It runs, was never in a panic, and serves what was written.
async fn is_well(process: &mut Process) {
    assert!(process.has_ended().is_none(), "it ended:\n{}", process.logged());
    let nbd = process.nbd;
    let read = tokio::task::spawn_blocking(move || read_all(nbd)).await.expect("reads");
    assert_eq!(read, Ok(0));
    assert!(!process.logged().contains("panicked"), "{}", process.logged());
}

fn reference(replica: u128, process: u64) -> v1::ReplicaRef {
    v1::ReplicaRef { id: id(replica), incarnation: Some(v1::Incarnation { process, open: 1 }) }
}

fn lineage(epoch: u64) -> v1::Lineage {
    v1::Lineage { volume: id(1), epoch, from: Some(reference(9, 1)), to: Some(reference(2, 1)) }
}

fn message(lineage: Option<v1::Lineage>, body: Option<Body>) -> v1::ReplicationMessage {
    v1::ReplicationMessage { lineage, body }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_grpc_ends_its_connection_and_nothing_else() {
    let scene = Scene::set().await;
    let mut process = scene.write().await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let frame = |length: u32, kind: u8, stream: u32| {
        let mut bytes = preface.clone();
        bytes.extend(&length.to_be_bytes()[1..]);
        bytes.extend([kind, 0xff]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend([0xee; 64]);
        bytes
    };
    let garbage = [
        vec![0xff; 4096],
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        [&preface[..], &[0xaa; 100]].concat(),
        frame(0x00ff_ffff, 0, 1),
        frame(64, 1, 1),
        frame(64, 4, 0),
        frame(64, 0xee, 7),
    ];
    let grpc = process.grpc;
    tokio::task::spawn_blocking(move || {
        for bytes in garbage {
            let mut stream = TcpStream::connect(grpc).expect("connects");
            stream.set_read_timeout(Some(PATIENCE)).expect("sets");
            // It may hang up before it has all.
            let _closed = stream.write_all(&bytes);
            let _closed = stream.shutdown(std::net::Shutdown::Write);
            let mut answer = Vec::new();
            if let Err(error) = stream.read_to_end(&mut answer) {
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
            }
        }
    })
    .await
    .expect("is done");
    // No message of the method, and no such method.
    for (path, code) in [
        ("/sbk.v1.Replication/Probe", Code::Internal),
        ("/sbk.v1.Replication/Nothing", Code::Unimplemented),
        ("/sbk.v2.Replication/Probe", Code::Unimplemented),
    ] {
        let mut grpc = tonic::client::Grpc::new(channel(process.grpc).await);
        grpc.ready().await.expect("is ready");
        let request = tonic::Request::new(vec![0xffu8; 300]);
        let path = path.parse().expect("a path");
        let status = grpc.unary(request, path, Bytes).await.map(|_| ()).expect_err("is garbage");
        assert_eq!(status.code(), code, "{status:?}");
    }
    is_well(&mut process).await;
}

/// Sends bytes as they are.
#[derive(Clone, Copy, Default)]
struct Bytes;

impl tonic::codec::Codec for Bytes {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl tonic::codec::Encoder for Bytes {
    type Item = Vec<u8>;
    type Error = Status;
    fn encode(
        &mut self,
        item: Vec<u8>,
        buffer: &mut tonic::codec::EncodeBuf<'_>,
    ) -> Result<(), Status> {
        bytes::BufMut::put_slice(buffer, &item);
        Ok(())
    }
}

impl tonic::codec::Decoder for Bytes {
    type Item = ();
    type Error = Status;
    fn decode(&mut self, _: &mut tonic::codec::DecodeBuf<'_>) -> Result<Option<()>, Status> {
        Ok(Some(()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_questions_of_replicas_are_refused() {
    let scene = Scene::set().await;
    let mut process = scene.write().await;
    let mut client = replication(&process).await;
    let config = |change: fn(&mut v1::Config)| {
        let mut config = v1::Config {
            volume: id(1),
            epoch: 2,
            primary: Some(reference(9, 1)),
            since: 2,
            isr: vec![id(9), id(2)],
            durability: v1::Durability::SyncAll.into(),
            write_ack: v1::WriteAck::Durable.into(),
            min_in_sync: 1,
            blocks: 4096,
            ..Default::default()
        };
        change(&mut config);
        message(Some(lineage(2)), Some(Body::Fence(v1::Fence { request: 1, config: Some(config) })))
    };
    let bad_lineage = |change: fn(&mut v1::Lineage)| {
        let mut of = lineage(1);
        change(&mut of);
        message(Some(of), Some(Body::Probe(1)))
    };
    let short = || bytes::Bytes::from_static(&[1; 15]);
    let cut = |end, table: Vec<(u64, u64)>| {
        let start = |(epoch, first_lsn)| v1::EpochStart { epoch, first_lsn };
        let table = table.into_iter().map(start).collect();
        message(Some(lineage(1)), Some(Body::Cut(v1::Cut { request: 1, end, table })))
    };
    let malformed = [
        message(None, None),
        message(None, Some(Body::Probe(1))),
        message(Some(lineage(1)), None),
        message(Some(lineage(1)), Some(Body::Alive(1))),
        message(Some(lineage(1)), Some(Body::Fence(v1::Fence { request: 1, config: None }))),
        message(Some(lineage(1)), Some(Body::Append(v1::Append::default()))),
        bad_lineage(|l| l.volume = bytes::Bytes::new()),
        bad_lineage(|l| l.volume = bytes::Bytes::from_static(&[1; 15])),
        bad_lineage(|l| l.volume = bytes::Bytes::from(vec![1; 1 << 20])),
        bad_lineage(|l| l.from = None),
        bad_lineage(|l| l.to = Some(v1::ReplicaRef::default())),
        bad_lineage(|l| l.epoch = u64::MAX),
        bad_lineage(|l| l.from = Some(reference(9, u64::MAX))),
        config(|c| c.epoch = 0),
        config(|c| c.epoch = u64::MAX),
        config(|c| c.since = 3),
        config(|c| c.blocks = u64::MAX),
        config(|c| c.loss_generation = u64::MAX),
        config(|c| c.primary = None),
        config(|c| c.isr = vec![bytes::Bytes::from_static(&[1; 15])]),
        config(|c| c.isr = vec![c.volume.clone()]),
        cut(u64::MAX, vec![]),
        cut(0, vec![(2, 1), (1, 1)]),
        cut(0, vec![(u64::MAX, u64::MAX)]),
        cut(0, (1..100_000).map(|n| (n, n)).collect()),
    ];
    for question in malformed {
        let shown = || format!("{question:?}").chars().take(300).collect::<String>();
        for call in 0..2 {
            let answer = match call {
                0 => client.probe(question.clone()).await,
                _ => client.reconcile(question.clone()).await,
            };
            let Err(status) = answer else { panic!("it was answered: {}", shown()) };
            assert_eq!(status.code(), Code::InvalidArgument, "{}: {status:?}", shown());
            assert!(status.message().len() < 1000, "{}: {}", shown(), status.message().len());
        }
    }
    // Well formed, and about nothing that is here.
    for (volume, replica) in [(1, 3), (4, 2), (4, 4)] {
        let mut of = lineage(1);
        of.volume = id(volume);
        of.to = Some(reference(replica, 1));
        let status = client.probe(message(Some(of), Some(Body::Probe(1)))).await;
        assert_eq!(status.expect_err("is not here").code(), Code::NotFound);
        let request =
            v1::VerifyRequest { volume: id(volume), replica: id(replica), ..Default::default() };
        let status = client.verify(request).await.map(|_| ()).expect_err("is not here");
        assert_eq!(status.code(), Code::NotFound);
        let request =
            v1::ScrubRequest { volume: id(volume), replica: id(replica), blocks: vec![1] };
        let status = client.scrub(request).await.expect_err("is not here");
        assert_eq!(status.code(), Code::NotFound);
    }
    let request = v1::VerifyRequest { volume: short(), ..Default::default() };
    let status = client.verify(request).await.map(|_| ()).expect_err("no volume");
    assert_eq!(status.code(), Code::InvalidArgument);
    for blocks in [vec![], vec![2, 1], vec![1, 1], (0..1025).collect()] {
        let request = v1::ScrubRequest { volume: id(1), replica: id(2), blocks };
        let status = client.scrub(request).await.expect_err("makes no sense");
        assert_eq!(status.code(), Code::InvalidArgument);
    }
    // Over the limit of a message.
    let payload = bytes::Bytes::from(vec![0; 50 << 20]);
    let entries = vec![v1::Entry { payload, ..Default::default() }];
    let append = v1::Append { entries, ..Default::default() };
    let status = client.probe(message(Some(lineage(1)), Some(Body::Append(append)))).await;
    let status = status.expect_err("is too long");
    assert!(matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted), "{status:?}");
    is_well(&mut process).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn feeds_and_base_lanes_of_nobody_end() {
    let scene = Scene::set().await;
    let mut process = scene.write().await;
    let mut client = replication(&process).await;
    let entry = |change: fn(&mut v1::Entry)| {
        let payload = bytes::Bytes::from(vec![7; 4096]);
        let mut entry =
            v1::Entry { epoch: 1, lsn: 99, kind: 1, blocks: 1, payload, ..Default::default() };
        change(&mut entry);
        let append = v1::Append { entries: vec![entry], first: 1, since: 1, ..Default::default() };
        message(Some(lineage(1)), Some(Body::Append(append)))
    };
    let feeds = [
        message(None, None),
        message(Some(lineage(1)), Some(Body::Alive(1))),
        entry(|e| e.crc ^= 1),
        entry(|e| e.kind = 99),
        entry(|e| e.blocks = 2),
        entry(|e| e.blocks = 0),
        entry(|e| e.lba = u64::MAX),
        entry(|e| e.lsn = u64::MAX),
        entry(|e| e.epoch = 0),
        entry(|e| e.origin_session = bytes::Bytes::from_static(b"short")),
    ];
    for first in feeds {
        let shown = format!("{:?}", first.body).chars().take(200).collect::<String>();
        let stream = client.feed(tokio_stream::once(first)).await.expect("opens").into_inner();
        let status = end(stream).await.expect_err(&shown);
        let known = [Code::InvalidArgument, Code::DataLoss];
        assert!(known.contains(&status.code()), "{shown}: {status:?}");
    }
    let recover = |body| v1::RecoverMessage { lineage: Some(lineage(1)), body: Some(body) };
    let begin = |mark: Option<v1::Incomplete>, blocks| {
        let state = Some(v1::LogState { blocks, ..Default::default() });
        recover(Recover::Begin(v1::BeginRebuild { request: 1, mark, table: vec![], state }))
    };
    let mark = |target| v1::Incomplete {
        session: Some(v1::RecoveryId { epoch: 1, number: 1 }),
        from: 0,
        base: 0,
        target,
    };
    let lanes = [
        recover(Recover::End(true)),
        recover(Recover::Blocks(v1::BaseBlocks::default())),
        recover(Recover::Regions(v1::RegionTable { first_region: u64::MAX, lsns: vec![1] })),
        recover(Recover::Regions(v1::RegionTable { first_region: 1 << 40, lsns: vec![1] })),
        begin(None, 4096),
        begin(Some(mark(u64::MAX)), 4096),
        begin(Some(mark(1)), u64::MAX),
        v1::RecoverMessage { lineage: None, body: None },
    ];
    for first in lanes {
        let shown = format!("{:?}", first.body);
        let stream = client.recover(tokio_stream::once(first)).await.expect("opens").into_inner();
        let status = end(stream).await.expect_err(&shown);
        assert_eq!(status.code(), Code::InvalidArgument, "{shown}: {status:?}");
    }
    // Well formed, to a replica that is in sync: it is never wiped.
    let well = begin(Some(mark(5)), 4096);
    let stream = client.recover(tokio_stream::once(well)).await.expect("opens").into_inner();
    let _ended = end(stream).await;
    is_well(&mut process).await;
}

/// How a stream ends.
async fn end<T>(mut stream: Streaming<T>) -> Result<(), Status> {
    tokio::time::timeout(PATIENCE, async {
        while stream.message().await?.is_some() {}
        Ok(())
    })
    .await
    .expect("the stream ends")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verifications_beyond_the_limit_are_refused_and_none_is_stuck() {
    let scene = Scene::set().await;
    let mut process = scene.write().await;
    let client = replication(&process).await;
    let request = move |first_region, regions| v1::VerifyRequest {
        volume: id(1),
        replica: id(2),
        first_region,
        regions,
    };
    // Beyond the end there is nothing to tell.
    for first in [16, 1 << 40, u64::MAX] {
        let stream = client.clone().verify(request(first, u64::MAX)).await.expect("opens");
        end(stream.into_inner()).await.expect("is empty");
    }
    // So many at once that most are refused, or done by the time the next one comes.
    let many = (0..64).map(|_| {
        let mut client = client.clone();
        tokio::spawn(async move { end(client.verify(request(0, 0)).await?.into_inner()).await })
    });
    for verification in many.collect::<Vec<_>>() {
        let ended = verification.await.expect("no panic");
        let Err(status) = ended else { continue };
        assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
        assert!(status.message().contains("try again"), "{status:?}");
    }
    is_well(&mut process).await;
}

/// A stream of a frontend, with its opening sent.
struct Frontend {
    requests: mpsc::Sender<v1::BlockRequest>,
    replies: Streaming<v1::BlockReply>,
}

fn open() -> v1::OpenStream {
    v1::OpenStream {
        follows: None,
        volume: id(1),
        session: id(Uuid::new_v4().as_u128()),
        attachment: 2,
        attach: None,
        node: id(3),
        loss_generation: None,
        primary: Some(reference(2, 1)),
    }
}

impl Frontend {
    async fn open(process: &Process, open: v1::OpenStream) -> Result<Self, Status> {
        let (requests, outgoing) = mpsc::channel(16);
        requests.send(v1::BlockRequest { body: Some(Ask::Open(open)) }).await.expect("room");
        let replies = blocks(process).await.stream(ReceiverStream::new(outgoing)).await?;
        Ok(Self { requests, replies: replies.into_inner() })
    }

    /// Ready for requests.
    async fn opened(process: &Process) -> Self {
        let mut frontend = Self::open(process, open()).await.expect("opens");
        match frontend.next().await {
            Ok(Some(Reply::Opened(_))) => frontend,
            other => panic!("{other:?}"),
        }
    }

    async fn next(&mut self) -> Result<Option<Reply>, Status> {
        let next = tokio::time::timeout(PATIENCE, self.replies.message());
        Ok(next.await.expect("an answer or an end")?.and_then(|reply| reply.body))
    }

    async fn send(&self, io: v1::IoRequest) {
        // The stream may have ended.
        let _ended = self.requests.send(v1::BlockRequest { body: Some(Ask::Io(io)) }).await;
    }
}

fn io(sequence: u64, op: u32, offset: u64, length: u64) -> v1::IoRequest {
    let payload =
        if op == 2 { bytes::Bytes::from(vec![3; length as usize]) } else { Default::default() };
    let length = if op == 2 { 0 } else { length };
    let one = false;
    v1::IoRequest { sequence, low: 0, epoch: 1, attach: 0, op, offset, length, payload, one }
}

/// Where nothing of the test's data is.
const FREE: u64 = 10 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frontends_that_break_the_rules_lose_their_stream() {
    const INVALID: u32 = 1;
    let scene = Scene::set().await;
    let mut process = scene.write().await;
    // Openings that make no sense.
    type Change = fn(&mut v1::OpenStream);
    let openings: [(Change, Code); 7] = [
        (|o| o.volume = bytes::Bytes::from_static(b"short"), Code::InvalidArgument),
        (|o| o.session = bytes::Bytes::new(), Code::InvalidArgument),
        (|o| o.primary = None, Code::InvalidArgument),
        (|o| o.primary = Some(v1::ReplicaRef::default()), Code::InvalidArgument),
        (|o| o.loss_generation = Some(u64::MAX), Code::InvalidArgument),
        (|o| o.volume = id(4), Code::NotFound),
        (|o| o.primary = Some(reference(3, 1)), Code::NotFound),
    ];
    for (change, code) in openings {
        let mut opening = open();
        change(&mut opening);
        let status = Frontend::open(&process, opening).await.map(|_| ()).expect_err("is refused");
        assert_eq!(status.code(), code, "{status:?}");
    }
    // A stream that begins with a request, and one that begins with nothing.
    for first in [Some(Ask::Io(io(1, 1, 0, 4096))), None] {
        let request = tokio_stream::once(v1::BlockRequest { body: first });
        let status = blocks(&process).await.stream(request).await.map(|_| ()).expect_err("refused");
        assert_eq!(status.code(), Code::InvalidArgument);
    }
    // Another incarnation than the primary's is told so.
    let mut other = open();
    other.primary = Some(reference(2, 7));
    let mut frontend = Frontend::open(&process, other).await.expect("opens");
    assert!(matches!(frontend.next().await, Ok(Some(Reply::Ended(_)))));

    // Requests that are answered with their error.
    let mut frontend = Frontend::opened(&process).await;
    let volume = 16 << 20;
    let refused = [
        io(2, 1, volume, 4096),
        io(3, 1, volume - SECTOR, 1024),
        io(4, 1, 1, SECTOR),
        io(5, 1, 0, 511),
        io(6, 1, SECTOR, 32 << 20),
        io(7, 3, u64::MAX - 4095, 8192),
        io(8, 4, 0, u64::MAX - 511),
        io(9, 2, volume, 4096),
        io(10, 1, 1 << 62, SECTOR),
        io(0, 5, 0, 0),
        v1::IoRequest { low: 12, ..io(11, 5, 0, 0) },
        v1::IoRequest { low: (1 << 62) - 1, ..io(11, 5, 0, 0) },
        io(2000, 5, 0, 0),
        io((1 << 62) - 1, 5, 0, 0),
    ];
    for request in refused {
        let (shown, sequence) = (format!("{request:?}"), request.sequence);
        frontend.send(request).await;
        match frontend.next().await {
            Ok(Some(Reply::Io(reply))) => {
                assert_eq!(
                    (reply.sequence, reply.outcome),
                    (sequence, INVALID),
                    "{shown}: {reply:?}"
                );
            }
            other => panic!("{shown}: {other:?}"),
        }
    }
    // One that is right is served still.
    frontend.send(io(1, 2, FREE, 4096)).await;
    assert!(matches!(frontend.next().await, Ok(Some(Reply::Io(reply))) if reply.outcome == 0));

    // Requests that end their stream, with a status or without one.
    let opening = v1::BlockRequest { body: Some(Ask::Open(open())) };
    let ask = |io| v1::BlockRequest { body: Some(Ask::Io(io)) };
    let too_long = vec![1; (32 << 20) + 512];
    let endings = [
        (vec![ask(io(1, 99, 0, 0))], true),
        (vec![ask(io(1, 1, 0, (32 << 20) + SECTOR))], true),
        (vec![ask(v1::IoRequest { payload: too_long.into(), ..io(1, 2, 0, 0) })], true),
        (vec![ask(v1::IoRequest { low: u64::MAX, ..io(1, 5, 0, 0) })], true),
        (vec![ask(v1::IoRequest { epoch: u64::MAX, ..io(1, 5, 0, 0) })], true),
        (vec![ask(v1::IoRequest { attach: u64::MAX, ..io(1, 5, 0, 0) })], true),
        (vec![ask(io(u64::MAX, 5, 0, 0))], true),
        (vec![opening], false),
        (vec![v1::BlockRequest { body: None }], false),
        // The same number again and again, with other lengths.
        ((0..200).map(|n| ask(io(1, 1, FREE, 4096 * (1 + n % 8)))).collect(), false),
        ((0..200).map(|n| ask(io(1, 1 + n % 2, FREE, 4096))).collect(), false),
    ];
    for (n, (requests, told)) in endings.into_iter().enumerate() {
        let Frontend { requests: sender, replies } = Frontend::opened(&process).await;
        let sending = tokio::spawn(async move {
            for request in requests {
                if sender.send(request).await.is_err() {
                    return;
                }
            }
        });
        match end(replies).await {
            Ok(()) => assert!(!told, "case {n} ends without a word"),
            Err(status) => assert_eq!(status.code(), Code::InvalidArgument, "case {n}: {status:?}"),
        }
        sending.await.expect("sends");
    }
    // Gone in the middle of everything.
    for n in 0..20 {
        let frontend = Frontend::opened(&process).await;
        for sequence in 1..=n {
            frontend.send(io(sequence, 2, FREE, 65536)).await;
        }
    }
    is_well(&mut process).await;
}

/// More connections than there are places, which say nothing, from one address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_opens_many_connections_keeps_nobody_else_from_the_pages() {
    let scene = Scene::set().await;
    let mut process = scene.write().await;
    let connect = async |from: u8| {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.bind(([127, 0, 0, from], 0).into()).expect("binds");
        socket.connect(process.http).await.expect("connects")
    };
    let mut hostile = Vec::new();
    for _ in 0..300 {
        hostile.push(connect(66).await);
    }
    for from in [2, 3] {
        let mut stream = connect(from).await;
        stream
            .write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .await
            .expect("asks");
        let mut text = String::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_string(&mut text));
        read.await.expect("is answered").expect("whole");
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    }
    drop(hostile);
    is_well(&mut process).await;
}
