//! Clients that open many connections, say nothing, or say it slowly, on real sockets and a clock that jumps
//! ahead whenever all wait.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use sbk_listen::{Limits, Listener};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, sleep};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Endpoint, Server};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

const PLACES: usize = 8;
/// HTTP/2's preface and an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

async fn bound() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await.expect("binds");
    let port = listener.local_addr().expect("bound").port();
    (listener, (Ipv4Addr::LOCALHOST, port).into())
}

async fn pages() -> SocketAddr {
    let (listener, addr) = bound().await;
    let listener = Listener::new(listener, Limits { connections: PLACES, ..Limits::pages() });
    let router = Router::new().route("/", get(async || "well"));
    tokio::spawn(async { axum::serve(listener, router).await.expect("serves") });
    addr
}

async fn grpc() -> SocketAddr {
    let (listener, addr) = bound().await;
    let limits = Limits { connections: PLACES, arriving: 0, ..Limits::grpc() };
    let listener = Listener::new(listener, limits);
    let (_, health) = tonic_health::server::health_reporter();
    let server = Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(2)))
        .http2_keepalive_timeout(Some(Duration::from_secs(3)))
        .add_service(health)
        .serve_with_incoming(listener.incoming());
    tokio::spawn(async { server.await.expect("serves") });
    addr
}

/// A service that only nodes ask. It sends no pings, so that limits alone end connections.
async fn of_nodes() -> SocketAddr {
    let (listener, addr) = bound().await;
    let limits = Limits { connections: PLACES, arriving: PLACES, ..Limits::grpc() };
    let listener = Listener::new(listener, limits);
    let (_, health) = tonic_health::server::health_reporter();
    let health = InterceptedService::new(health, sbk_listen::keep);
    let server = Server::builder().add_service(health).serve_with_incoming(listener.incoming());
    tokio::spawn(async { server.await.expect("serves") });
    addr
}

/// A connection from 127.0.0.`n`.
async fn connect(addr: SocketAddr, n: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind((Ipv4Addr::new(127, 0, 0, n), 0).into()).expect("binds");
    socket.connect(addr).await.expect("connects")
}

async fn many(addr: SocketAddr, n: u8) -> Vec<TcpStream> {
    let mut all = Vec::new();
    for _ in 0..PLACES {
        all.push(connect(addr, n).await);
    }
    all
}

/// What a page answers; empty if the connection is closed for it.
async fn ask(mut stream: TcpStream) -> String {
    let mut text = String::new();
    let request = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    if stream.write_all(request).await.is_ok() {
        // A reset is an end too.
        let _end = stream.read_to_string(&mut text).await;
    }
    text
}

/// When the server hangs up.
async fn ends(mut stream: TcpStream) -> Instant {
    let _end = stream.read_to_end(&mut Vec::new()).await;
    Instant::now()
}

/// How many of the connections are open still.
async fn open(streams: &mut [TcpStream]) -> usize {
    let mut open = 0;
    for stream in streams {
        let ends = async { while stream.read(&mut [0; 64]).await.is_ok_and(|bytes| bytes > 0) {} };
        open += usize::from(tokio::time::timeout(Duration::from_millis(1), ends).await.is_err());
    }
    open
}

async fn is_served(addr: SocketAddr, n: u8) -> bool {
    let endpoint = Endpoint::from_shared(format!("http://{addr}")).expect("an address");
    let from = Some(Ipv4Addr::new(127, 0, 0, n).into());
    let Ok(channel) = endpoint.local_address(from).connect().await else { return false };
    HealthClient::new(channel).check(HealthCheckRequest::default()).await.is_ok()
}

/// A connection that speaks HTTP/2 and asks nothing.
async fn idle(addr: SocketAddr, n: u8) -> TcpStream {
    let mut stream = connect(addr, n).await;
    stream.write_all(PREFACE).await.expect("sends");
    stream
}

/// A connection that made a request. (A channel of tonic's would hide that it ended, and make another.)
async fn asking(addr: SocketAddr, n: u8) -> TcpStream {
    let mut stream = idle(addr, n).await;
    // POST, http, and literals by the names of the static table: path, authority, content type.
    let mut headers = vec![0x83, 0x86];
    let fields: [(&[u8], &[u8]); 3] =
        [(&[4], b"/grpc.health.v1.Health/Check"), (&[1], b"x"), (&[15, 16], b"application/grpc")];
    for (name, value) in fields {
        headers.extend(name);
        headers.push(value.len() as u8);
        headers.extend(value);
    }
    let mut frames = vec![0, 0, headers.len() as u8, 1, 4, 0, 0, 0, 1];
    frames.extend(headers);
    // An empty message, and the end of the request.
    frames.extend([0, 0, 5, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0]);
    stream.write_all(&frames).await.expect("sends");
    // Until there are headers on its stream.
    let mut answer = Vec::new();
    while !answer.windows(9).any(|head| head[3] == 1 && head[5..] == [0, 0, 0, 1]) {
        let came = stream.read_buf(&mut answer).await.expect("is answered");
        assert!(came > 0, "it is closed: {answer:?}");
    }
    stream
}

#[tokio::test(start_paused = true)]
async fn who_has_all_places_of_the_pages_makes_room_for_another() {
    let addr = pages().await;
    let mut hostile = many(addr, 66).await;
    assert_eq!(ask(connect(addr, 66).await).await, "", "it has them already");
    for n in 1..=3 {
        assert!(ask(connect(addr, n).await).await.ends_with("well"), "127.0.0.{n} is let in");
    }
    // One was enough: each of the others gave it back.
    assert_eq!(open(&mut hostile).await, PLACES - 1);
    drop(hostile);
    assert!(ask(connect(addr, 66).await).await.ends_with("well"), "all places are free again");
}

#[tokio::test(start_paused = true)]
async fn who_is_silent_or_slow_loses_its_place() {
    let addr = pages().await;
    let began = Instant::now();
    let silent = ends(connect(addr, 1).await).await - began;
    assert!((10..=11).contains(&silent.as_secs()), "{silent:?}");

    // A header that never ends.
    let began = Instant::now();
    let mut stream = connect(addr, 1).await;
    stream.write_all(b"GET / HTTP/1.1\r\nA: ").await.expect("sends");
    while stream.write_all(b"a").await.is_ok() {
        sleep(Duration::from_secs(5)).await;
    }
    let slow = began.elapsed();
    assert!((300..=310).contains(&slow.as_secs()), "{slow:?}");
}

#[tokio::test(start_paused = true)]
async fn who_has_all_places_of_grpc_makes_room_for_another() {
    let addr = grpc().await;
    let mut hostile = many(addr, 66).await;
    assert!(is_served(addr, 1).await);
    assert_eq!(open(&mut hostile).await, PLACES - 1);
    hostile.push(connect(addr, 66).await);
    for stream in &mut hostile {
        let _lost = stream.write_all(PREFACE).await;
    }
    assert!(is_served(addr, 2).await);
}

#[tokio::test(start_paused = true)]
async fn a_node_finds_a_place_and_keeps_it_whatever_others_of_its_address_do() {
    let addr = of_nodes().await;
    let mut idlers = Vec::new();
    for _ in 0..3 * PLACES {
        idlers.push(idle(addr, 1).await);
    }
    let mut node = [asking(addr, 1).await];
    for _ in 0..3 {
        idlers.extend(many(addr, 1).await);
        idlers.extend(many(addr, 2).await);
    }
    sleep(Duration::from_secs(30)).await;
    assert_eq!(open(&mut node).await, 1);
    assert!(open(&mut idlers).await <= PLACES);
}

#[tokio::test(start_paused = true)]
async fn who_comes_when_all_places_are_taken_ends_if_it_is_no_node() {
    let addr = of_nodes().await;
    let mut first = Vec::new();
    for _ in 0..PLACES {
        first.push(idle(addr, 1).await);
    }
    let began = Instant::now();
    let took = ends(idle(addr, 1).await).await - began;
    assert!((10..=11).contains(&took.as_secs()), "{took:?}");
    assert_eq!(open(&mut first).await, PLACES);
    // It stays if there is a place for it then.
    let mut next = [idle(addr, 1).await];
    drop(first);
    sleep(Duration::from_secs(30)).await;
    assert_eq!(open(&mut next).await, 1);
}

#[tokio::test(start_paused = true)]
async fn grpc_that_does_not_begin_or_does_not_answer_ends() {
    let addr = grpc().await;
    for said in [&[][..], &PREFACE[..20], &PREFACE[..32], PREFACE] {
        let began = Instant::now();
        let mut stream = connect(addr, 1).await;
        stream.write_all(said).await.expect("sends");
        // Not even the keepalive's pings are answered.
        let took = ends(stream).await - began;
        assert!(took <= Duration::from_secs(11), "{} bytes: {took:?}", said.len());
    }
}
