//! Listeners of gRPC and HTTP whose connections have limits.
//!
//! Whoever reaches a port can open connections, and each takes a descriptor, a task and memory for as long as
//! it is open. So there are only so many, one that does not begin to speak its protocol is closed, and so is
//! one that is older than it may be.
//!
//! Where all places are taken a connection is closed for the next one: the newest of the address that has most,
//! if the one that comes is of an address that has fewer by two at least. So whoever opens thousands has only
//! its own closed for others. The addresses of an IPv6 /64 network count as one, for one machine may have all
//! of them.
//!
//! A node may have the address of many clients, so what serves the cluster itself must not depend on theirs.
//! Its connections have places of their own from the first request on that only nodes make
//! ([`keep`]); and where all places are taken the next connection is let in nevertheless, for as
//! long as it may take to begin, so that a node gets to make that request. Few of these
//! are open at a time: the oldest goes for the newest.

mod connection;
mod places;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use tokio::net::{TcpListener, TcpStream};
use tonic::{Extensions, Request, Status};

pub use connection::{Caller, Connection};
use places::Places;

/// Pause after an error of `accept` that says that descriptors or memory are lacking.
const PAUSE: Duration = Duration::from_millis(100);

/// What connections of a listener may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time, at least 1.
    pub connections: usize,
    /// Beyond those, connections that serve the cluster.
    pub kept: usize,
    /// Beyond both, connections that come when all places are taken, for as long as `begin`.
    pub arriving: usize,
    /// So many bytes must have come within `begin`...
    pub beginning: usize,
    /// ...or the connection is closed.
    pub begin: Duration,
    /// How old a connection may get; `None`: as old as it likes.
    pub age: Option<Duration>,
}

impl Limits {
    /// For gRPC. Connections of nodes stay; the protocol's keepalive ends those that are dead, but only
    /// once its preface was sent.
    pub fn grpc() -> Self {
        // The client connection preface of RFC 9113, 3.4, with the header of the SETTINGS frame in it.
        let beginning = 24 + 9;
        let begin = Duration::from_secs(10);
        Self { connections: 4096, kept: 1024, arriving: 64, beginning, begin, age: None }
    }

    /// For pages. Whoever asks slowly, or reads slowly, keeps its place for no longer than `age`.
    pub fn pages() -> Self {
        let (begin, age) = (Duration::from_secs(10), Some(Duration::from_secs(300)));
        // The shortest request.
        let beginning = "GET / HTTP/1.1\r\n\r\n".len();
        Self { connections: 256, kept: 0, arriving: 0, beginning, begin, age }
    }

    /// As many connections, or fewer if the process may have few descriptors: a quarter of those together, for
    /// files need some too, and a store that can't open a file stops.
    pub fn within_descriptors(self) -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
        Self {
            connections: self.connections.min((limit / 8).max(1)),
            kept: self.kept.min(limit / 16),
            arriving: self.arriving.min(limit / 16),
            ..self
        }
    }
}

/// Descriptors that a process asks for.
const DESCRIPTORS: u64 = 64 << 10;

/// Takes as many descriptors as the system lets a process have. Many systems give 1024 to one that
/// does not ask, for the sake of programs that use `select`; connections must not leave the
/// process without a file.
pub fn take_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.map_or(DESCRIPTORS, |most| most.min(DESCRIPTORS));
    if current.is_some_and(|current| current < wanted)
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum })
    {
        tracing::warn!(%error, "the limit of open files stays at {current:?}");
    }
}

/// Says that only nodes of the cluster make this request: its connection has a place of those
/// kept for them. For services that only nodes call it is an interceptor.
///
/// # Errors
/// None.
pub fn keep(request: Request<()>) -> Result<Request<()>, Status> {
    keep_caller(request.extensions());
    Ok(request)
}

/// As [`keep`], for a single method: with its request's extensions.
pub fn keep_caller(extensions: &Extensions) {
    if let Some(caller) = extensions.get::<Caller>() {
        caller.keep();
    }
}

/// A listener with limits.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    limits: Limits,
    places: Arc<Places>,
}

impl Listener {
    /// Takes connections of `listener` within `limits`.
    pub fn new(listener: TcpListener, limits: Limits) -> Self {
        Self { listener, limits, places: Arc::new(Places::new(&limits)) }
    }

    async fn next(&mut self) -> (Connection, SocketAddr) {
        loop {
            let (stream, from) = accept(&self.listener).await;
            let Some(place) = self.places.take(from.ip()) else {
                tracing::debug!(%from, "a connection is closed: all places are taken");
                continue;
            };
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%from, %error, "a connection ended at once");
                continue;
            }
            return (Connection::new(stream, place, self.limits), from);
        }
    }

    /// The connections, for tonic.
    pub fn incoming(self) -> impl Stream<Item = io::Result<Connection>> + Send {
        futures::stream::unfold(self, async |mut listener| {
            let (connection, _) = listener.next().await;
            Some((Ok(connection), listener))
        })
    }
}

impl axum::serve::Listener for Listener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        self.next().await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// The next connection. Errors are of connections that ended before they were taken, or pass.
async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if is_of_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "no connection can be taken");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionRefused | ConnectionAborted | ConnectionReset)
}
