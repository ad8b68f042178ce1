//! What clients may take of the process: descriptors, memory, and time while others wait.
//!
//! A request holds memory from its header on until its reply was written: a write's payload, a
//! read's data, and a little for itself. A client decides how long that is, for it may stop in the
//! middle of a payload or not read its replies. So there are two budgets, one for each connection
//! and one for all together: at either limit a connection is not read any further, which TCP tells
//! its client. A client that does nothing is left alone (a paused virtual machine is one), unless
//! it holds memory that others wait for, or it has said goodbye: then its connection is closed.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::net::sockopt;
use sbk_engine::types::MAX_REQUEST_BYTES;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Budget of all connections, in KiB.
const POOL_KIB: usize = 256 << 10;
/// Budget of one connection, in KiB.
const CONNECTION_KIB: usize = 64 << 10;
/// What a request costs besides its payload, in KiB. So a connection has at most 4096 in flight.
const REQUEST_KIB: u32 = 16;
/// How long a client may make no progress while others wait for the memory that it holds.
const STALL: Duration = Duration::from_secs(10);

/// A connection is looked after when nothing was heard on it for so long...
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// ...by a probe each so often...
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// ...and is over after so many without an answer: its client's machine is gone.
const KEEPALIVE_PROBES: u32 = 6;

/// Has the kernel notice clients whose machine vanished without a word.
pub(super) fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    Ok(())
}

/// How many connections there may be: `most`, or fewer if the process may have few descriptors.
/// The replicas' files and the other nodes' connections need some too, and a store that can't open
/// a file stops.
pub(super) fn connections(most: usize) -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let quarter = limit.map_or(most, |limit| usize::try_from(limit / 4).unwrap_or(most));
    most.min(quarter.max(1))
}

/// The memory that all connections share. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Pool(Arc<Semaphore>);

impl Default for Pool {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(POOL_KIB)))
    }
}

#[cfg(test)]
impl Pool {
    /// Whether all that was taken was given back.
    pub(super) fn is_whole(&self) -> bool {
        self.0.available_permits() == POOL_KIB
    }
}

/// What one connection may take.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    pool: Pool,
    own: Arc<Semaphore>,
    /// The client has said goodbye, and only reads what is left.
    leaving: Arc<AtomicBool>,
}

/// What one request holds; given back when it is dropped.
#[derive(Debug)]
pub struct Permit {
    _own: OwnedSemaphorePermit,
    _pool: OwnedSemaphorePermit,
}

fn kib(bytes: u64) -> u32 {
    bytes.min(MAX_REQUEST_BYTES).div_ceil(1024) as u32 + REQUEST_KIB
}

impl Budget {
    /// The budget of a new connection.
    pub(super) fn of(pool: Pool) -> Self {
        let own = Arc::new(Semaphore::new(CONNECTION_KIB));
        Self { pool, own, leaving: Arc::default() }
    }

    /// Waits for room for a request that carries `bytes`, at most [`MAX_REQUEST_BYTES`].
    pub(super) async fn take(&self, bytes: u64) -> io::Result<Permit> {
        let closed = |_| io::Error::other("the connection's budget is closed");
        // Its own first: who waits for that must not keep the others' from them.
        let own = Arc::clone(&self.own).acquire_many_owned(kib(bytes)).await.map_err(closed)?;
        let pool = Arc::clone(&self.pool.0).acquire_many_owned(kib(bytes)).await.map_err(closed)?;
        Ok(Permit { _own: own, _pool: pool })
    }

    /// Waits until every request of a client that said goodbye was answered.
    pub(super) async fn all_returned(&self) {
        self.leaving.store(true, Ordering::Relaxed);
        // Never closed, so there is no error to have.
        let _all = self.own.acquire_many(CONNECTION_KIB as u32).await;
    }

    /// Whether a client that does nothing may go on so.
    fn may_stall(&self) -> bool {
        let short = self.pool.0.available_permits() < kib(MAX_REQUEST_BYTES) as usize;
        !short && !self.leaving.load(Ordering::Relaxed)
    }

    /// Awaits one step of the client's, which holds memory until then: for as long as the client
    /// may do nothing.
    pub(super) async fn step<T>(
        &self,
        what: &str,
        step: impl Future<Output = io::Result<T>>,
    ) -> io::Result<T> {
        let mut step = pin!(step);
        loop {
            match timeout(STALL, &mut step).await {
                Ok(result) => return result,
                Err(_) if self.may_stall() => {}
                Err(_) => {
                    let text = format!(
                        "the client stopped {what} for {} s, with memory that others wait for or \
                         after its goodbye",
                        STALL.as_secs()
                    );
                    return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                }
            }
        }
    }

    /// Writes all of `bytes`.
    pub(super) async fn write_all<W: AsyncWrite + Unpin>(
        &self,
        writer: &mut W,
        mut bytes: &[u8],
    ) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = self.step("reading replies", writer.write(bytes)).await?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bytes = &bytes[count..];
        }
        // TLS keeps back what the socket has no room for.
        self.step("reading replies", writer.flush()).await
    }
}
