//! What clients may take of the process: descriptors, memory, and time while others wait.
//!
//! A request holds memory from its header on until its reply was written: a write's payload, a
//! read's data, and a little for itself. A client decides how long that is, for it may stop in the
//! middle of a payload or not read its replies; and what is asked of a volume without a primary waits for
//! as long as that takes. So there are three budgets, one for each connection, one for those of each
//! volume, and one for all together, which each volume may exceed by one request: at any limit a connection is not read any further, which TCP tells
//! its client. Of a volume that has limits so much is taken as these let through in a second (or one request):
//! what waits for them longer waits with its client. And all such volumes together take half of what there is:
//! they keep it for long. A client that does nothing is left alone (a paused virtual machine is one), unless
//! it holds memory that others wait for, or it has said goodbye: then its connection is closed.

use std::collections::BTreeMap;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rustix::net::sockopt;
use sbk_engine::authority::Limits;
use sbk_engine::types::{BLOCK_SIZE, MAX_REQUEST_BYTES, VolumeId};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::catalogue::CatalogueWatch;

/// Budget of all connections, in KiB.
const POOL_KIB: usize = 256 << 10;
/// Budget of the connections of one volume, in KiB: whatever becomes of it, others have room for more than one
/// request. [A volume had no primary, and its clients' requests held all there was: those of all other volumes
/// waited with them.]
const VOLUME_KIB: usize = POOL_KIB / 2;
/// Budget of the connections of all volumes with limits, in KiB.
const LIMITED_KIB: usize = POOL_KIB / 2;
/// What requests of one volume may take of its limits at a time, in microseconds of them.
const LIMITED_MICROS: usize = 1_000_000;
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
pub(super) struct Pool {
    all: Arc<Semaphore>,
    limited: Arc<Semaphore>,
    volumes: Arc<Mutex<BTreeMap<VolumeId, Weak<Part>>>>,
    catalogue: CatalogueWatch,
}

/// The part of it that connections of one volume may have.
#[derive(Debug)]
struct Part {
    memory: Arc<Semaphore>,
    /// Of the volume's limits, if it has any.
    second: Arc<Semaphore>,
    /// The one request that it may have under way while others have all that volumes share. [Two volumes had no
    /// primary, and all others waited with them.]
    one: Arc<Semaphore>,
}

impl Pool {
    /// All there is. What limits volumes have is looked up when it matters.
    pub(super) fn new(catalogue: CatalogueWatch) -> Self {
        let [all, limited] = [POOL_KIB, LIMITED_KIB].map(|kib| Arc::new(Semaphore::new(kib)));
        Self { all, limited, volumes: Arc::default(), catalogue }
    }

    fn limits(&self, volume: VolumeId) -> Limits {
        self.catalogue.borrow().volumes.get(&volume).map(|v| v.limits).unwrap_or_default()
    }

    /// The volume's size as it is published; `None` if there is no such volume.
    pub(super) fn published_bytes(&self, volume: VolumeId) -> Option<u64> {
        let catalogue = self.catalogue.borrow();
        catalogue.volumes.get(&volume).map(|v| v.published_blocks() * BLOCK_SIZE)
    }

    /// The part of one volume. It is whole again when all its connections are gone.
    fn of_volume(&self, volume: VolumeId) -> Arc<Part> {
        // Every update leaves the map whole, so a panic elsewhere does not spoil it.
        let mut volumes = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(part) = volumes.get(&volume).and_then(Weak::upgrade) {
            return part;
        }
        volumes.retain(|_, part| part.strong_count() > 0);
        let [memory, second, one] =
            [VOLUME_KIB, LIMITED_MICROS, 1].map(|permits| Arc::new(Semaphore::new(permits)));
        let part = Arc::new(Part { memory, second, one });
        volumes.insert(volume, Arc::downgrade(&part));
        part
    }

    /// Whether all that was taken was given back.
    #[cfg(test)]
    pub(super) fn is_whole(&self) -> bool {
        self.all.available_permits() == POOL_KIB
    }
}

/// What one connection may take.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    pool: Pool,
    volume: VolumeId,
    part: Arc<Part>,
    own: Arc<Semaphore>,
    /// The client has said goodbye, and only reads what is left.
    leaving: Arc<AtomicBool>,
}

/// What one request holds; given back when it is dropped.
#[derive(Debug)]
pub struct Permit {
    _own: OwnedSemaphorePermit,
    _volume: OwnedSemaphorePermit,
    /// Of the volume's limits, if it has any.
    _second: Option<OwnedSemaphorePermit>,
    /// Of what volumes share, or the volume's one request.
    _shared: Vec<OwnedSemaphorePermit>,
}

fn kib(bytes: u64) -> u32 {
    bytes.min(MAX_REQUEST_BYTES).div_ceil(1024) as u32 + REQUEST_KIB
}

/// How long the limits take to let a request of `bytes` pass, in microseconds: at least 1, at most what may
/// be under way. `None` without limits.
fn micros(limits: Limits, bytes: u64) -> Option<u32> {
    let of = |cost: u64, rate: Option<u64>| {
        rate.map(|rate| cost.saturating_mul(LIMITED_MICROS as u64) / rate.max(1))
    };
    let longest = of(1, limits.iops).max(of(bytes, limits.bandwidth))?;
    Some(longest.clamp(1, LIMITED_MICROS as u64) as u32)
}

impl Budget {
    /// The budget of a new connection to a volume.
    pub(super) fn of(pool: &Pool, volume: VolumeId) -> Self {
        let own = Arc::new(Semaphore::new(CONNECTION_KIB));
        let (pool, part) = (pool.clone(), pool.of_volume(volume));
        Self { pool, volume, part, own, leaving: Arc::default() }
    }

    /// Waits for room for a request that carries `bytes`, at most [`MAX_REQUEST_BYTES`].
    pub(super) async fn take(&self, bytes: u64) -> io::Result<Permit> {
        let closed = |_| io::Error::other("the connection's budget is closed");
        let take = |of: &Arc<Semaphore>| Arc::clone(of).acquire_many_owned(kib(bytes));
        // What fewer share first: who waits for that must not keep the others' from them.
        let own = take(&self.own).await.map_err(closed)?;
        let micros = micros(self.pool.limits(self.volume), bytes);
        let second = match micros {
            Some(micros) => Some(
                Arc::clone(&self.part.second).acquire_many_owned(micros).await.map_err(closed)?,
            ),
            None => None,
        };
        let volume = take(&self.part.memory).await.map_err(closed)?;
        let shared = async {
            let limited = match micros {
                Some(_) => Some(take(&self.pool.limited).await?),
                None => None,
            };
            let all = take(&self.pool.all).await?;
            Ok(limited.into_iter().chain([all]).collect())
        };
        let shared = tokio::select! {
            biased;
            shared = shared => shared,
            one = Arc::clone(&self.part.one).acquire_owned() => one.map(|one| vec![one]),
        };
        let shared = shared.map_err(closed)?;
        Ok(Permit { _own: own, _volume: volume, _second: second, _shared: shared })
    }

    /// Waits until every request of a client that said goodbye was answered.
    pub(super) async fn all_returned(&self) {
        self.leaving.store(true, Ordering::Relaxed);
        // Never closed, so there is no error to have.
        let _all = self.own.acquire_many(CONNECTION_KIB as u32).await;
    }

    /// Whether a client that does nothing may go on so.
    fn may_stall(&self) -> bool {
        let room = |of: &Semaphore| of.available_permits() >= kib(MAX_REQUEST_BYTES) as usize;
        // Who waits for permits has been given those that there are.
        let limited =
            self.part.second.available_permits() == 0 || self.pool.limited.available_permits() == 0;
        room(&self.part.memory)
            && room(&self.pool.all)
            && !(limited && self.pool.limits(self.volume).any())
            && !self.leaving.load(Ordering::Relaxed)
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
