//! The NBD server: fixed newstyle negotiation and the transmission phase, with simple, structured and
//! extended framing.
//!
//! Follows the NBD protocol document (github.com/NetworkBlockDevice/nbd, doc/proto.md). Every
//! volume is an export on every datanode, by its name and as NAME@UUID.

mod attach;
mod exports;
#[cfg(test)]
mod fuzz;
mod handshake;
mod options;
mod replies;
mod transmission;
mod wire;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::Frontends;
use super::limits::{self, Pool};

/// Most connections at once; further ones are closed at once.
const MAX_CONNECTIONS: usize = 1024;
/// How long nothing is accepted after it failed: the cause, most likely a lack of descriptors,
/// goes by itself or not at all, and trying without a pause would only burn a core.
const ACCEPT_AGAIN: Duration = Duration::from_millis(200);
/// How long a client may take until it has agreed on an export. One that says nothing, or says
/// one byte a minute, would hold a connection for as long as it likes.
const NEGOTIATION: Duration = Duration::from_secs(30);

/// Serves NBD on `listener` until `stop` is cancelled; then finishes what was answered and closes.
pub async fn serve(frontends: Frontends, listener: TcpListener, stop: CancellationToken) {
    let limit = limits::connections(MAX_CONNECTIONS);
    let room = Arc::new(Semaphore::new(limit));
    let pool = Pool::default();
    let tasks = tokio_util::task::TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "NBD: accept failed");
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = tokio::time::sleep(ACCEPT_AGAIN) => continue,
                }
            }
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            tracing::warn!(%peer, "NBD: {limit} connections are open, another is closed");
            continue;
        };
        let (frontends, pool, stop) = (frontends.clone(), pool.clone(), stop.clone());
        tasks.spawn(async move {
            match connection(&frontends, pool, stream, &stop).await {
                Ok(()) => tracing::debug!(%peer, "NBD: disconnected"),
                Err(error) => tracing::info!(%peer, %error, "NBD: connection ended"),
            }
            drop(permit);
        });
    }
    tasks.close();
    tasks.wait().await;
}

async fn connection(
    frontends: &Frontends,
    pool: Pool,
    stream: TcpStream,
    stop: &CancellationToken,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    limits::keep_alive(&stream)?;
    let (reader, writer) = stream.into_split();
    converse(frontends, pool, reader, writer, stop).await
}

/// A connection from its greeting to its end.
async fn converse<R, W>(
    frontends: &Frontends,
    pool: Pool,
    mut reader: R,
    mut writer: W,
    stop: &CancellationToken,
) -> io::Result<()>
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin,
{
    let negotiation = handshake::negotiate(frontends, &mut reader, &mut writer);
    let agreed = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        agreed = tokio::time::timeout(NEGOTIATION, negotiation) => agreed,
    };
    let agreed = agreed.map_err(|_| {
        let text = format!("the client agreed on no export within {} s", NEGOTIATION.as_secs());
        io::Error::new(io::ErrorKind::TimedOut, text)
    })??;
    let Some((agreed, client)) = agreed else { return Ok(()) };
    transmission::serve(client, pool, &agreed, reader, writer, stop).await
}
