//! The NBD server: fixed newstyle negotiation and the transmission phase with simple replies.
//!
//! Follows the NBD protocol document (github.com/NetworkBlockDevice/nbd, doc/proto.md). Every
//! volume is an export on every datanode, by its name and as NAME@UUID.

mod exports;
mod handshake;
mod transmission;
mod wire;

use std::io;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::Frontends;

/// Connections at once; further ones are closed at once.
const MAX_CONNECTIONS: usize = 1024;

/// Serves NBD on `listener` until `stop` is cancelled; then finishes what was answered and closes.
pub async fn serve(frontends: Frontends, listener: TcpListener, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let tasks = tokio_util::task::TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or a client that was gone already: the next may do better.
                tracing::warn!(%error, "NBD: accept failed");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            tracing::warn!(%peer, "NBD: {MAX_CONNECTIONS} connections are open, another is closed");
            continue;
        };
        let (frontends, stop) = (frontends.clone(), stop.clone());
        tasks.spawn(async move {
            match connection(&frontends, stream, &stop).await {
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
    stream: TcpStream,
    stop: &CancellationToken,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut reader, mut writer) = stream.into_split();
    let agreed = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        agreed = handshake::negotiate(frontends, &mut reader, &mut writer) => agreed?,
    };
    let Some(export) = agreed else { return Ok(()) };
    transmission::serve(frontends, &export, reader, writer, stop).await
}
