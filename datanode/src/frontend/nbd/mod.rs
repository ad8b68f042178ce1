//! The NBD server: fixed newstyle negotiation and the transmission phase, with simple, structured and
//! extended framing.
//!
//! Follows the NBD protocol document (github.com/NetworkBlockDevice/nbd, doc/proto.md). Every
//! volume is an export on every datanode, by its name and as NAME@UUID.

mod attach;
mod direct;
mod exports;
#[cfg(test)]
mod fuzz;
mod handshake;
mod options;
mod replies;
mod tls;
mod transmission;
mod wire;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use sbk_engine::types::Config;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::limits::{self, Pool};
use super::{ClientHandle, Frontends};
use handshake::{Agreed, Outcome, Security};
use replies::Table;

pub use direct::{Direct, Sizes};
pub use tls::{Tls, TlsError, TlsFiles};
pub use transmission::Left;

/// Most connections at once; further ones are closed at once.
const MAX_CONNECTIONS: usize = 1024;
/// How long nothing is accepted after it failed: the cause, most likely a lack of descriptors,
/// goes by itself or not at all, and trying without a pause would only burn a core.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);
/// How long a client may take until it has agreed on an export. One that says nothing, or says
/// one byte a minute, would hold a connection for as long as it likes.
const NEGOTIATION: Duration = Duration::from_secs(30);

/// Where clients connect.
#[derive(Debug)]
pub enum Listener {
    /// Over a network; loopback too.
    Tcp(TcpListener),
    /// On this machine.
    Unix(UnixListener),
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self::Tcp(listener)
    }
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self::Unix(listener)
    }
}

/// One client's socket.
enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    /// The next client, and who it is.
    async fn accept(&self) -> io::Result<(Stream, String)> {
        Ok(match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                (Stream::Tcp(stream), peer.to_string())
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let peer = stream.peer_cred().ok().and_then(|cred| cred.pid());
                (Stream::Unix(stream), peer.map_or("a process".into(), |pid| format!("pid {pid}")))
            }
        })
    }
}

/// What is done for clients before the server has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtStop {
    /// What they asked for is answered; what is not yet read is not.
    Answer,
    /// And all that was acknowledged to them is made durable, of those that left before as well.
    Flush,
}

/// What connections share.
#[derive(Clone, Debug)]
struct Shared {
    frontends: Frontends,
    /// With it nobody is served without.
    tls: Option<Tls>,
    pool: Pool,
    stop: CancellationToken,
    at_stop: AtStop,
}

/// Serves NBD on `listener`, with `tls` to nobody without it, until `stop` is cancelled; then no more is taken, what is under way is
/// answered, and connections are closed. That takes as long as it takes: the caller sets the limit.
///
/// # Errors
/// What clients were promised and could not be kept, when they left or when the server stopped: the
/// first such failure, in words. Only with [`AtStop::Flush`].
pub async fn serve(
    frontends: Frontends,
    listener: impl Into<Listener>,
    tls: Option<Tls>,
    stop: CancellationToken,
    at_stop: AtStop,
) -> Result<(), String> {
    let listener = listener.into();
    let limit = limits::connections(MAX_CONNECTIONS);
    let room = Arc::new(Semaphore::new(limit));
    let pool = Pool::new(frontends.catalogue());
    let shared = Shared { frontends, tls, pool, stop, at_stop };
    let mut connections = JoinSet::new();
    let mut ended = Ok(());
    loop {
        let accepted = tokio::select! {
            () = shared.stop.cancelled() => break,
            Some(one) = connections.join_next() => {
                ended = ended.and(flushed(one));
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "NBD: accept failed");
                tokio::select! {
                    () = shared.stop.cancelled() => break,
                    () = tokio::time::sleep(ACCEPT_AGAIN) => continue,
                }
            }
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            tracing::warn!(peer, "NBD: {limit} connections are open, another is closed");
            continue;
        };
        let shared = shared.clone();
        connections.spawn(async move {
            let result = connection(&shared, stream).await;
            match &result {
                Ok(()) => tracing::debug!(peer, "NBD: disconnected"),
                Err(error @ Ended::NotFlushed(_)) => {
                    tracing::warn!(peer, %error, "NBD: connection ended");
                }
                Err(error) => tracing::info!(peer, %error, "NBD: connection ended"),
            }
            drop(permit);
            match result {
                Err(Ended::NotFlushed(why)) => Err(why),
                Ok(()) | Err(Ended::Broken(_)) => Ok(()),
            }
        });
    }
    drop(listener);
    while let Some(one) = connections.join_next().await {
        ended = ended.and(flushed(one));
    }
    ended
}

fn flushed(one: Result<Result<(), String>, JoinError>) -> Result<(), String> {
    one.unwrap_or_else(|error| Err(format!("a connection's task ended: {error}")))
}

/// Why a connection ended otherwise than in order.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    /// The connection broke, or its client broke the protocol.
    #[error(transparent)]
    Broken(#[from] io::Error),
    /// A flush that was owed failed.
    #[error("what was acknowledged could not be flushed: {0}")]
    NotFlushed(String),
}

async fn connection(shared: &Shared, stream: Stream) -> Result<(), Ended> {
    match stream {
        Stream::Tcp(stream) => {
            stream.set_nodelay(true)?;
            limits::keep_alive(&stream)?;
            let (reader, writer) = stream.into_split();
            converse(shared, reader, writer).await
        }
        Stream::Unix(stream) => {
            let (reader, writer) = stream.into_split();
            converse(shared, reader, writer).await
        }
    }
}

/// A connection from its greeting to its end.
async fn converse<R, W>(shared: &Shared, mut reader: R, mut writer: W) -> Result<(), Ended>
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let end = Instant::now() + NEGOTIATION;
    let frontends = &shared.frontends;
    let plain = async {
        let no_zeroes = handshake::greet(&mut reader, &mut writer).await?;
        let security = if shared.tls.is_some() { Security::Demanded } else { Security::None };
        let outcome =
            handshake::negotiate(frontends, security, no_zeroes, &mut reader, &mut writer);
        Ok((no_zeroes, outcome.await?))
    };
    match (agreed_by(end, shared, plain).await?, &shared.tls) {
        (Some((_, Outcome::Agreed(agreed, mut client))), _) => {
            transmit(shared, &agreed, &mut client, reader, writer).await.map(drop)
        }
        (Some((no_zeroes, Outcome::StartTls)), Some(tls)) => {
            let secured = async {
                let stream = tls.accept(tokio::io::join(reader, writer)).await?;
                let (mut reader, mut writer) = tokio::io::split(stream);
                let security = Security::InForce;
                let outcome =
                    handshake::negotiate(frontends, security, no_zeroes, &mut reader, &mut writer);
                Ok((outcome.await?, reader, writer))
            };
            match agreed_by(end, shared, secured).await? {
                Some((Outcome::Agreed(agreed, mut client), reader, writer)) => {
                    transmit(shared, &agreed, &mut client, reader, writer).await.map(drop)
                }
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

/// A part of a negotiation, which must be over by `end`; `None` if the server stops.
async fn agreed_by<T>(
    end: Instant,
    shared: &Shared,
    negotiation: impl Future<Output = io::Result<T>>,
) -> Result<Option<T>, Ended> {
    let agreed = tokio::select! {
        () = shared.stop.cancelled() => return Ok(None),
        agreed = tokio::time::timeout_at(end, negotiation) => agreed,
    };
    let agreed = agreed.map_err(|_| {
        let text = format!("the client agreed on no export within {} s", NEGOTIATION.as_secs());
        io::Error::new(io::ErrorKind::TimedOut, text)
    })?;
    Ok(Some(agreed?))
}

/// The transmission phase, to its end.
async fn transmit<R, W>(
    shared: &Shared,
    agreed: &Agreed,
    client: &mut ClientHandle,
    reader: R,
    writer: W,
) -> Result<Left, Ended>
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin,
{
    let (pool, stop, table) = (&shared.pool, &shared.stop, Table::default());
    let served =
        transmission::serve(client, pool, agreed, table.clone(), reader, writer, stop).await;
    // Whoever leaves without a flush leaves none behind who could ask for it later. [A client had its
    // writes acknowledged and went; when the server stopped there was no connection left, and all was
    // said to be durable.] Whoever had all confirmed is owed nothing, at a stop either. [The primary
    // had died since, and a stop failed for a flush that had nothing to make durable.]
    let owed = table.is_unflushed() && (stop.is_cancelled() || acks_written(shared, agreed));
    if owed && shared.at_stop == AtStop::Flush {
        client.flush().await.map_err(Ended::NotFlushed)?;
    }
    Ok(served?)
}

/// Whether writes may be acknowledged before they are durable.
fn acks_written(shared: &Shared, agreed: &Agreed) -> bool {
    let catalogue = shared.frontends.catalogue();
    let catalogue = catalogue.borrow();
    // Of one that is deleted nothing is durable.
    let volume = catalogue.volumes.get(&agreed.export.volume);
    volume.is_some_and(|volume| volume.config.as_ref().is_none_or(Config::acks_written))
}
