//! Clients of one volume that survive the loss of the datanode that they are connected to: they come
//! again by another one. Every operation is recorded.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use bytes::BytesMut;
use serde::Serialize;
use tokio::sync::{OwnedRwLockWriteGuard, RwLock};
use tokio::task::JoinSet;

use super::history::{History, MAX_OPERATIONS};
use super::load::read_blocks;
use super::nbd::{NbdClient, NbdError};
use super::stamp::{BLOCK, Noise};
use crate::wait::{self, Look};

/// What the datanodes promise: a request that could not be done in 120 s is answered with an error.
/// One that fails before that, by the client's clock, is a violation.
const PATIENCE: Duration = Duration::from_secs(119);
/// Between two attempts to connect.
const AGAIN: Duration = Duration::from_millis(50);
/// Requests after which a client moves on to another datanode by itself, at most.
const STAY: u64 = 2000;
/// Blocks in which requests meet often, and of 100 requests, how many go there.
const HOT: u64 = 48;
const HOT_PERCENT: u64 = 40;
/// Of 100 requests.
const READ_PERCENT: u64 = 40;
const FLUSH_PERCENT: u64 = 2;
/// Blocks of one request, at most.
const MOST_BLOCKS: u64 = 8;
/// Of 100 requests to a volume on which everything is tried: large writes, writes of zeros, trims.
const LARGE_PERCENT: u64 = 1;
const ZERO_PERCENT: u64 = 2;
const TRIM_PERCENT: u64 = 2;
/// Blocks of a large write, at least and at most: 1 to 2 MiB, which alone is enough of large writes in a batch for it to go
/// to the disk once, by reference.
const LARGE_BLOCKS: (u64, u64) = (256, 512);
/// One of so many writes of zeros and trims is of so many blocks at most, not of a few.
const LARGE_ZEROS: u64 = 8;
/// The error of a session that a loss ended.
const EIO: u32 = 5;
/// Errors that are kept in words.
const LISTED: usize = 20;
/// Blocks per request of the read that checks everything.
const READ_BACK: u64 = 128;

/// What the clients are like.
#[derive(Clone, Debug)]
pub struct RoamingOptions {
    /// The datanodes, `host:port` of NBD.
    pub nodes: Vec<String>,
    /// The export.
    pub export: String,
    /// The first so many blocks are used for reads and small writes.
    pub blocks: u64,
    /// As many again behind these are written in large requests too, and as many behind those are zeroed and
    /// trimmed as well; `false`: nothing is behind them, and all writes are small.
    pub everything: bool,
    /// Clients, each with a connection of its own.
    pub clients: u32,
    /// Requests in flight of each.
    pub depth: u32,
    /// Bytes a second of all of them together.
    pub pace: u64,
    /// Seed of their choices.
    pub seed: u64,
    /// Whether a failover may take writes. Clients are told with EIO then, and attach again.
    pub may_lose: bool,
}

/// What happened so far.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RoamingStats {
    /// Write requests acknowledged.
    pub writes: u64,
    /// Read requests answered.
    pub reads: u64,
    /// Of the writes, those of 1 MiB and more.
    pub large_writes: u64,
    /// Writes of zeros answered.
    pub zeroes: u64,
    /// Trims answered.
    pub trims: u64,
    /// Flushes answered.
    pub flushes: u64,
    /// Connections that ended under a client.
    pub lost_connections: u64,
    /// Requests without an answer, because their connection ended.
    pub unanswered: u64,
    /// Requests answered with an error after 120 s, as documented.
    pub timed_out: u64,
    /// The longest time that one request took until it was answered, in milliseconds.
    pub longest_request_ms: u64,
    /// Requests answered with EIO where writes may be lost.
    pub told_of_losses: u64,
    /// Requests answered with an error that is not documented: how many, and the first of them.
    pub errors: u64,
    /// The first of them.
    pub first_errors: Vec<String>,
}

impl RoamingStats {
    /// Counts what happened at another time, or to another volume, too.
    pub fn add(&mut self, other: &Self) {
        self.writes += other.writes;
        self.reads += other.reads;
        self.large_writes += other.large_writes;
        self.zeroes += other.zeroes;
        self.trims += other.trims;
        self.flushes += other.flushes;
        self.lost_connections += other.lost_connections;
        self.unanswered += other.unanswered;
        self.timed_out += other.timed_out;
        self.longest_request_ms = self.longest_request_ms.max(other.longest_request_ms);
        self.told_of_losses += other.told_of_losses;
        self.errors += other.errors;
        let room = LISTED.saturating_sub(self.first_errors.len());
        self.first_errors.extend(other.first_errors.iter().take(room).cloned());
    }
}

/// A connection that ended under a client.
#[derive(Clone, Debug)]
pub struct Lost {
    /// Position of the datanode in the options.
    pub node: usize,
    /// When.
    pub at: Instant,
    /// Why, as far as the client knows.
    pub why: String,
}

/// A client that was told of a loss.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    /// Position of its datanode in the options.
    pub node: usize,
    /// When it had attached.
    pub attached: Instant,
}

/// Clients at work; they end when this is dropped.
#[derive(Debug)]
pub struct Roaming {
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

/// While this exists nothing is in flight.
#[derive(Debug)]
pub struct Rest(#[expect(dead_code, reason = "held")] OwnedRwLockWriteGuard<()>);

#[derive(Debug)]
struct Shared {
    options: RoamingOptions,
    history: Arc<History>,
    /// Held shared by every request in flight.
    gate: Arc<RwLock<()>>,
    stats: Mutex<RoamingStats>,
    /// When the next request may be sent, under the pace.
    next: Mutex<Instant>,
    lost: Mutex<Vec<Lost>>,
    told: Mutex<Vec<Told>>,
}

/// A client's connection, to one datanode.
#[derive(Clone, Debug)]
struct Attached {
    client: NbdClient,
    node: usize,
    /// Before it was begun.
    since: Instant,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a client stays with its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Connection {
    Good,
    Ended,
}

impl Roaming {
    /// Starts the clients, recording into `history`.
    pub fn start(history: Arc<History>, options: RoamingOptions) -> Self {
        let least = if options.everything { LARGE_BLOCKS.1 } else { HOT };
        assert!(!options.nodes.is_empty() && options.blocks >= least, "there is something to use");
        let clients = options.clients;
        let shared = Arc::new(Shared {
            options,
            history,
            gate: Arc::default(),
            stats: Mutex::default(),
            next: Mutex::new(Instant::now()),
            lost: Mutex::default(),
            told: Mutex::default(),
        });
        let mut tasks = JoinSet::new();
        for client in 0..clients {
            tasks.spawn(Arc::clone(&shared).roam(client));
        }
        Self { shared, _tasks: tasks }
    }

    /// What happened so far.
    pub fn stats(&self) -> RoamingStats {
        locked(&self.shared.stats).clone()
    }

    /// What happened since this was last asked, and counts anew. A request counts where it is answered.
    pub fn take_stats(&self) -> RoamingStats {
        std::mem::take(&mut *locked(&self.shared.stats))
    }

    /// The connections that ended since this was last asked.
    pub fn lost(&self) -> Vec<Lost> {
        std::mem::take(&mut *locked(&self.shared.lost))
    }

    /// Who was told of a loss since this was last asked.
    pub fn told(&self) -> Vec<Told> {
        std::mem::take(&mut *locked(&self.shared.told))
    }

    /// The record.
    pub fn history(&self) -> &History {
        &self.shared.history
    }

    /// Waits until every request in flight is answered; no other is sent while the answer exists.
    ///
    /// # Errors
    /// If requests are still unanswered after `limit`.
    pub async fn rest(&self, limit: Duration) -> anyhow::Result<Rest> {
        let gate = Arc::clone(&self.shared.gate);
        let guard = tokio::time::timeout(limit, gate.write_owned()).await.map_err(|_| {
            let export = &self.shared.options.export;
            anyhow!("requests of volume {export} are unanswered for {} s", limit.as_secs())
        })?;
        Ok(Rest(guard))
    }

    /// Reads every block in use over the datanode at position `node`, and records what they hold.
    ///
    /// # Errors
    /// If it can't be reached or a read fails within `limit`.
    pub async fn read_back(&self, node: usize, limit: Duration) -> anyhow::Result<()> {
        let Shared { options, history, .. } = &*self.shared;
        let addr = &options.nodes[node];
        let what = format!("export '{}' at {addr}", options.export);
        let client = wait::until(&what, limit, async || {
            Ok(match NbdClient::connect(addr, &options.export).await {
                Ok(client) => Look::Done(client),
                Err(e) => Look::NotYet(e.to_string()),
            })
        })
        .await?;
        let all = async {
            let blocks = options.used();
            for first in (0..blocks).step_by(READ_BACK as usize) {
                let count = READ_BACK.min(blocks - first);
                read_blocks(&client, history, first, count).await?;
            }
            anyhow::Ok(())
        };
        let read = tokio::time::timeout(limit, all).await;
        read.with_context(|| format!("no answer within {} s", limit.as_secs()))
            .and_then(|result| result)
            .with_context(|| format!("reading {what} back"))?;
        client.disconnect().await;
        Ok(())
    }
}

impl Shared {
    /// One client: connects, works, and comes again by another datanode, for ever.
    async fn roam(self: Arc<Self>, client: u32) {
        let mut noise = Noise::new(self.options.seed ^ u64::from(client) << 40);
        loop {
            let node = noise.below(self.options.nodes.len() as u64) as usize;
            let addr = &self.options.nodes[node];
            let since = Instant::now();
            let connected = NbdClient::connect(addr, &self.options.export).await;
            let Ok(connection) = connected else {
                // It may be down; another one is tried next.
                tokio::time::sleep(AGAIN).await;
                continue;
            };
            let stay = 1 + noise.below(STAY);
            let mut lanes = JoinSet::new();
            for lane in 0..self.options.depth {
                let writer = client * self.options.depth + lane;
                let noise = Noise::new(noise.next());
                let shared = Arc::clone(&self);
                let attached = Attached { client: connection.clone(), node, since };
                lanes.spawn(shared.lane(attached, writer, noise, stay));
            }
            while lanes.join_next().await.is_some() {}
            connection.disconnect().await;
        }
    }

    /// Requests one after the other, until the connection has ended or `stay` of them are done.
    async fn lane(self: Arc<Self>, attached: Attached, writer: u32, mut noise: Noise, stay: u64) {
        let connection = &attached.client;
        for _ in 0..stay {
            while self.history.operations() >= MAX_OPERATIONS {
                // The record is full; it is settled at the next rest.
                tokio::time::sleep(AGAIN).await;
            }
            let request = self.options.draw(&mut noise);
            let turn = self.turn(request.moved() * BLOCK as u64);
            tokio::time::sleep_until(turn.into()).await;
            let _in_flight = self.gate.read().await;
            let sent = Instant::now();
            let Request { what, first, count } = request;
            let result = match what {
                Done::Read => read_blocks(connection, &self.history, first, count).await,
                Done::Flush => connection.flush().await,
                Done::Write | Done::LargeWrite => {
                    self.write(connection, first, count, writer).await
                }
                Done::Zeros | Done::Trim => self.zero(connection, request).await,
            };
            let result = result.map(|()| what);
            if self.note(&attached, sent, result) == Connection::Ended {
                return;
            }
        }
    }

    async fn write(
        &self,
        connection: &NbdClient,
        first: u64,
        count: u64,
        writer: u32,
    ) -> Result<(), NbdError> {
        let mut data = BytesMut::zeroed(count as usize * BLOCK);
        let mut stamps = Vec::with_capacity(count as usize);
        for (block, out) in (first..first + count).zip(data.chunks_exact_mut(BLOCK)) {
            let stamp = self.history.begin_write(block, writer);
            stamp.fill(out);
            stamps.push(stamp);
        }
        connection.write(first * BLOCK as u64, data.freeze()).await?;
        for stamp in &stamps {
            self.history.acknowledge(stamp);
        }
        Ok(())
    }

    async fn zero(&self, connection: &NbdClient, request: Request) -> Result<(), NbdError> {
        let Request { what, first, count } = request;
        let (at, length) = (first * BLOCK as u64, (count * BLOCK as u64) as u32);
        let blocks = first..first + count;
        let writes: Vec<_> = blocks.map(|block| (block, self.history.begin_zeros(block))).collect();
        match what {
            Done::Trim => connection.trim(at, length).await?,
            _ => connection.write_zeroes(at, length).await?,
        }
        for (block, write) in writes {
            self.history.acknowledge_zeros(block, write);
        }
        Ok(())
    }

    /// When a request of so many bytes may be sent.
    fn turn(&self, bytes: u64) -> Instant {
        let mut next = locked(&self.next);
        // What was not used while nothing could be sent is not made up for.
        let at = (*next).max(Instant::now());
        *next = at + Duration::from_secs_f64(bytes as f64 / self.options.pace.max(1) as f64);
        at
    }

    fn note(
        &self,
        attached: &Attached,
        sent: Instant,
        result: Result<Done, NbdError>,
    ) -> Connection {
        let node = attached.node;
        let took = sent.elapsed();
        let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let mut stats = locked(&self.stats);
        let error = match result {
            Ok(done) => {
                stats.longest_request_ms = stats.longest_request_ms.max(millis);
                match done {
                    Done::Read => stats.reads += 1,
                    Done::Write => stats.writes += 1,
                    Done::LargeWrite => {
                        stats.writes += 1;
                        stats.large_writes += 1;
                    }
                    Done::Zeros => stats.zeroes += 1,
                    Done::Trim => stats.trims += 1,
                    Done::Flush => stats.flushes += 1,
                }
                return Connection::Good;
            }
            Err(error) => error,
        };
        match error {
            NbdError::Request { .. } if took >= PATIENCE => {
                stats.timed_out += 1;
                Connection::Good
            }
            NbdError::Request { errno: EIO, .. } if self.options.may_lose => {
                stats.told_of_losses += 1;
                locked(&self.told).push(Told { node, attached: attached.since });
                Connection::Ended
            }
            NbdError::Request { .. } => {
                stats.errors += 1;
                if stats.first_errors.len() < LISTED {
                    let node = &self.options.nodes[node];
                    let text = format!("{error}, by {node}, {millis} ms after it was sent");
                    stats.first_errors.push(text);
                }
                Connection::Good
            }
            NbdError::Io { .. }
            | NbdError::Silent { .. }
            | NbdError::Refused { .. }
            | NbdError::Protocol { .. }
            | NbdError::Ended { .. } => {
                stats.unanswered += 1;
                let mut lost = locked(&self.lost);
                // One connection is lost once, however many requests learn of it.
                let at = Instant::now();
                let known = |l: &Lost| l.node == node && at - l.at < Duration::from_millis(10);
                if !lost.last().is_some_and(known) {
                    stats.lost_connections += 1;
                    lost.push(Lost { node, at, why: error.to_string() });
                }
                Connection::Ended
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    Read,
    Write,
    LargeWrite,
    Zeros,
    Trim,
    Flush,
}

/// What a client asks for.
#[derive(Clone, Copy, Debug)]
struct Request {
    what: Done,
    first: u64,
    count: u64,
}

impl Request {
    /// The blocks whose content is sent, one way or the other.
    fn moved(self) -> u64 {
        match self.what {
            Done::Read | Done::Write | Done::LargeWrite => self.count,
            Done::Zeros | Done::Trim | Done::Flush => 1,
        }
    }
}

impl RoamingOptions {
    /// The first so many blocks are used for anything.
    pub fn used(&self) -> u64 {
        if self.everything { 3 * self.blocks } else { self.blocks }
    }

    /// The next request of a client.
    fn draw(&self, noise: &mut Noise) -> Request {
        let few = 1 + noise.below(MOST_BLOCKS);
        let hot = noise.below(100) < HOT_PERCENT;
        let kind = noise.below(100);
        let small = Self::small(kind);
        let what = match kind.checked_sub(READ_PERCENT + FLUSH_PERCENT) {
            _ if !self.everything => small,
            Some(kind) if kind < LARGE_PERCENT => Done::LargeWrite,
            Some(kind) if kind < LARGE_PERCENT + ZERO_PERCENT => Done::Zeros,
            Some(kind) if kind < LARGE_PERCENT + ZERO_PERCENT + TRIM_PERCENT => Done::Trim,
            _ => small,
        };
        let (from, to, count) = match what {
            Done::LargeWrite => {
                let (least, most) = LARGE_BLOCKS;
                (self.blocks, self.used(), least + noise.below(most - least + 1))
            }
            Done::Zeros | Done::Trim if noise.below(LARGE_ZEROS) == 0 => {
                (2 * self.blocks, self.used(), 1 + noise.below(LARGE_BLOCKS.1))
            }
            Done::Zeros | Done::Trim => (2 * self.blocks, self.used(), few),
            Done::Read | Done::Write | Done::Flush if hot => (0, HOT, few),
            Done::Read | Done::Write | Done::Flush => (0, self.used(), few),
        };
        Request { what, first: from + noise.below(to - from - count + 1), count }
    }

    fn small(kind: u64) -> Done {
        if kind < READ_PERCENT {
            Done::Read
        } else if kind < READ_PERCENT + FLUSH_PERCENT {
            Done::Flush
        } else {
            Done::Write
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(everything: bool) -> RoamingOptions {
        let export = String::new();
        let (nodes, blocks, clients, depth) = (vec![String::new()], 2048, 1, 1);
        let (pace, seed, may_lose) = (1, 1, false);
        RoamingOptions { nodes, export, blocks, everything, clients, depth, pace, seed, may_lose }
    }

    #[test]
    fn a_volume_is_tried_with_all_requests_or_with_small_ones() {
        for everything in [true, false] {
            let (options, mut noise) = (options(everything), Noise::new(7));
            let mut seen = [0; 6];
            for _ in 0..20_000 {
                let Request { what, first, count } = options.draw(&mut noise);
                seen[what as usize] += 1;
                assert!(count >= 1 && first + count <= options.used());
                let (large, zeros) = (first >= 2048, first >= 4096);
                match what {
                    Done::LargeWrite => assert!((256..=512).contains(&count) && large),
                    Done::Zeros | Done::Trim => assert!(count <= 512 && zeros),
                    Done::Read | Done::Write | Done::Flush => assert!(count <= 8),
                }
            }
            let rare = [Done::LargeWrite, Done::Zeros, Done::Trim];
            assert!(rare.iter().all(|what| (seen[*what as usize] > 100) == everything), "{seen:?}");
            assert!(seen[Done::Read as usize] > 7000 && seen[Done::Write as usize] > 9000);
        }
    }
}
