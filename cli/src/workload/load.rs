//! Writers and readers that keep many requests in flight and record each.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::BytesMut;
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::history::{History, MAX_OPERATIONS};
use super::nbd::{NbdClient, NbdError};
use super::stamp::{BLOCK, Noise};
use crate::view::unix_ms;
use crate::wait::TimedOut;

/// Blocks per request of the read that checks everything.
const READ_BACK: u64 = 128;
/// Requests in flight of that read.
const READ_BACK_DEPTH: usize = 8;

/// What the load is like.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// The first so many blocks of the volume are used.
    pub blocks: u64,
    /// Requests in flight.
    pub depth: u32,
    /// Of 100 requests, so many are reads.
    pub read_percent: u64,
    /// A write has 1 to so many blocks.
    pub most_blocks: u64,
    /// Seed of the choice of blocks.
    pub seed: u64,
    /// Bytes a second that are read and written at most; may be changed while the load runs.
    pub pace: Option<u64>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self { blocks: 4096, depth: 16, read_percent: 20, most_blocks: 8, seed: 1, pace: None }
    }
}

/// What happened so far.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LoadStats {
    /// Write requests acknowledged.
    pub writes: u64,
    /// Bytes of them.
    pub written_bytes: u64,
    /// Read requests answered.
    pub reads: u64,
    /// Requests that failed.
    pub errors: u64,
    /// The first failure.
    pub first_error: Option<String>,
    /// The longest time that one request took, in milliseconds.
    pub longest_request_ms: u64,
    /// When that one was answered, in milliseconds since 1970.
    pub longest_until_ms: u64,
}

impl LoadStats {
    /// What happened in this time and in the next.
    pub fn and(&self, next: &Self) -> Self {
        let longer = [self, next].into_iter().max_by_key(|s| s.longest_request_ms).unwrap_or(self);
        Self {
            writes: self.writes + next.writes,
            written_bytes: self.written_bytes + next.written_bytes,
            reads: self.reads + next.reads,
            errors: self.errors + next.errors,
            first_error: self.first_error.clone().or_else(|| next.first_error.clone()),
            longest_request_ms: longer.longest_request_ms,
            longest_until_ms: longer.longest_until_ms,
        }
    }
}

#[derive(Debug)]
struct Shared {
    client: NbdClient,
    history: Arc<History>,
    options: LoadOptions,
    meter: Mutex<Meter>,
}

#[derive(Debug)]
struct Meter {
    stats: LoadStats,
    pace: Option<u64>,
    /// When the next request may be sent, under the pace.
    next: Instant,
}

/// A load that runs.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    workers: JoinSet<()>,
    stop: watch::Sender<bool>,
}

impl Load {
    /// Starts the load over `client`, recording into `history`.
    ///
    /// # Errors
    /// If the volume is smaller than the options want.
    pub fn start(
        client: NbdClient,
        history: Arc<History>,
        options: LoadOptions,
    ) -> anyhow::Result<Self> {
        if client.size() < options.blocks * BLOCK as u64 || options.blocks < options.most_blocks {
            bail!(
                "the load wants {} blocks of {BLOCK} bytes, the volume has {} bytes",
                options.blocks,
                client.size()
            );
        }
        let (now, pace) = (Instant::now(), options.pace);
        let meter = Meter { stats: LoadStats::default(), pace, next: now };
        let shared = Arc::new(Shared { client, history, options, meter: Mutex::new(meter) });
        let (stop, stopped) = watch::channel(false);
        let mut workers = JoinSet::new();
        for writer in 0..shared.options.depth {
            workers.spawn(Arc::clone(&shared).work(writer, stopped.clone()));
        }
        Ok(Self { shared, workers, stop })
    }

    /// What happened so far.
    pub fn stats(&self) -> LoadStats {
        self.shared.meter().stats.clone()
    }

    /// What happened since this was last asked, and counts anew. A request counts where it is answered.
    pub fn take_stats(&self) -> LoadStats {
        std::mem::take(&mut self.shared.meter().stats)
    }

    /// Goes on at another pace.
    pub fn set_pace(&self, pace: Option<u64>) {
        self.shared.meter().pace = pace;
    }

    /// Sends no more, and waits until everything in flight is answered.
    ///
    /// # Errors
    /// [`TimedOut`] if requests are still unanswered after `limit`.
    pub async fn stop(mut self, limit: Duration) -> anyhow::Result<LoadStats> {
        self.stop.send_replace(true);
        let all = async {
            while let Some(worker) = self.workers.join_next().await {
                worker.context("a worker of the load failed")?;
            }
            Ok(())
        };
        match tokio::time::timeout(limit, all).await {
            Ok(result) => result.map(|()| self.stats()),
            Err(_) => Err(TimedOut {
                what: "the answers of the requests in flight".into(),
                seen: format!("{} requests without an answer", self.workers.len()),
                waited: limit,
            }
            .into()),
        }
    }
}

impl Shared {
    fn meter(&self) -> MutexGuard<'_, Meter> {
        self.meter.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn work(self: Arc<Self>, writer: u32, stopped: watch::Receiver<bool>) {
        let mut noise = Noise::new(self.options.seed ^ u64::from(writer) << 32);
        while !*stopped.borrow() && self.history.operations() < MAX_OPERATIONS {
            let count = 1 + noise.below(self.options.most_blocks);
            let first = noise.below(self.options.blocks - count + 1);
            let turn = self.meter().turn(count * BLOCK as u64);
            tokio::time::sleep_until(turn.into()).await;
            let sent = Instant::now();
            let result = if noise.below(100) < self.options.read_percent {
                self.read(first, count).await.map(|()| 0)
            } else {
                self.write(first, count, writer).await
            };
            let failed = result.is_err();
            self.meter().note(sent, result);
            if failed {
                // An error is a violation already; hammering a dead connection adds nothing.
                return;
            }
        }
    }

    async fn write(&self, first: u64, count: u64, writer: u32) -> anyhow::Result<u64> {
        let mut data = BytesMut::zeroed(count as usize * BLOCK);
        let mut stamps = Vec::with_capacity(count as usize);
        for (block, out) in (first..first + count).zip(data.chunks_exact_mut(BLOCK)) {
            let stamp = self.history.begin_write(block, writer);
            stamp.fill(out);
            stamps.push(stamp);
        }
        self.client.write(first * BLOCK as u64, data.freeze()).await?;
        for stamp in &stamps {
            self.history.acknowledge(stamp);
        }
        Ok(count * BLOCK as u64)
    }

    async fn read(&self, first: u64, count: u64) -> anyhow::Result<()> {
        Ok(read_blocks(&self.client, &self.history, first, count).await?)
    }
}

impl Meter {
    /// When a request of so many bytes may be sent.
    fn turn(&mut self, bytes: u64) -> Instant {
        let at = self.next.max(Instant::now());
        let lasts = self.pace.map_or(0.0, |pace| bytes as f64 / pace.max(1) as f64);
        self.next = at + Duration::from_secs_f64(lasts);
        at
    }

    fn note(&mut self, sent: Instant, result: anyhow::Result<u64>) {
        let stats = &mut self.stats;
        let now = Instant::now();
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let took = millis(now - sent);
        if took >= stats.longest_request_ms {
            (stats.longest_request_ms, stats.longest_until_ms) = (took, unix_ms());
        }
        match result {
            Ok(0) => stats.reads += 1,
            Ok(bytes) => {
                stats.writes += 1;
                stats.written_bytes += bytes;
            }
            Err(e) => {
                stats.errors += 1;
                stats.first_error.get_or_insert_with(|| format!("{e:#}"));
            }
        }
    }
}

/// Reads blocks and records what they hold.
pub(super) async fn read_blocks(
    client: &NbdClient,
    history: &History,
    first: u64,
    count: u64,
) -> Result<(), NbdError> {
    let start = history.begin_read();
    let data = client.read(first * BLOCK as u64, (count * BLOCK as u64) as u32).await?;
    for (block, data) in (first..first + count).zip(data.chunks_exact(BLOCK)) {
        history.end_read(block, start, data);
    }
    Ok(())
}

/// Reads the first `blocks` blocks over `client` and records what they hold, so that
/// [`History::check`] speaks of all of them.
///
/// # Errors
/// If a read fails.
pub async fn read_back(
    client: &NbdClient,
    history: &Arc<History>,
    blocks: u64,
    mut progress: impl FnMut(u64),
) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    let mut next = 0;
    let mut done = 0;
    while done < blocks {
        while next < blocks && tasks.len() < READ_BACK_DEPTH {
            let (first, count) = (next, READ_BACK.min(blocks - next));
            next += count;
            let (client, history) = (client.clone(), Arc::clone(history));
            tasks.spawn(async move {
                read_blocks(&client, &history, first, count).await.map(|()| count)
            });
        }
        if let Some(read) = tasks.join_next().await {
            done += read.context("a reader failed")?.context("reading the volume back")?;
            progress(done);
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
