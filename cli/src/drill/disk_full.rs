//! `sbkctl drill disk-full`: somebody fills the disk of one of a volume's nodes, under load, and makes room again.
//!
//! Beside the load, which soon overwrites, a client writes where nothing was: that is what waits for room.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::watch;
use tokio::task::{JoinHandle, block_in_place};

use super::bench::{ANSWER, Bench, USED_BLOCKS, Verified, WHOLE};
use super::disk_fail::node_view;
use super::loop_disk::LoopDisks;
use super::runs::{self, Run as _, ms, short, since};
use crate::args::{DrillArgs, Global};
use crate::dev::cluster::Options;
use crate::output::table;
use crate::view::VolumeView;
use crate::wait::{self, Look};
use crate::workload::load::LoadStats;
use crate::workload::nbd::NbdClient;
use crate::workload::stamp::BLOCK;

const DATANODES: u64 = 3;
/// The disk that is filled. All that the replica takes fits well.
const DISK: u64 = 2 << 30;
const WATERMARK: u64 = 256 << 20;
/// What is left free: less, and more than the quarter of it below which overwrites wait too.
const LEFT: u64 = 192 << 20;
/// Bytes a second of the load: the log of what is overwritten meanwhile takes room too.
const PACE: u64 = 4 << 20;
/// Where nothing was written, behind the load's part, and bytes of one write there.
const FRESH: u64 = USED_BLOCKS * BLOCK as u64;
const WRITE: u64 = 16 << 10;
/// Between two of them: so the volume has enough for minutes.
const PAUSE: Duration = Duration::from_millis(20);

/// One time.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Its number, from 1.
    pub run: u32,
    /// The node whose disk was filled.
    pub node: String,
    /// Whether it was the primary's.
    pub primary: bool,
    /// What the volume said of it.
    pub told: String,
    /// When it said so, in milliseconds after the disk was filled.
    pub told_ms: u64,
    /// How the masters saw the disk then: `short`, or `full`.
    pub room: String,
    /// Writes to blocks that held nothing that were acknowledged from then on until there was room: none.
    pub grew: u64,
    /// When such a write was acknowledged, in milliseconds after there was room again.
    pub resumed_ms: u64,
    /// The longest time that one of them took, in milliseconds.
    pub growth_stall_ms: u64,
    /// All of them in this run that were acknowledged.
    pub grown: u64,
    /// What the load did before.
    pub before: LoadStats,
    /// What it did from the filling until after there was room.
    pub load: LoadStats,
    /// Whether the data is right.
    pub verified: Verified,
    /// What is wrong, if anything is.
    pub fault: Option<String>,
}

impl runs::Run for Run {
    fn told(&self) -> String {
        format!("new blocks waited {} ms", self.growth_stall_ms)
    }

    fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }
}

fn words(runs: &[Run]) -> String {
    let rows = runs.iter().map(|r| {
        vec![
            r.run.to_string(),
            short(&r.node),
            if r.primary { "primary" } else { "replica" }.to_owned(),
            ms(r.before.longest_request_ms),
            ms(r.load.longest_request_ms),
            ms(r.growth_stall_ms),
            ms(r.told_ms),
            ms(r.resumed_ms),
            (r.before.writes + r.load.writes + r.grown).to_string(),
            r.data(),
        ]
    });
    let columns = [
        "run",
        "node",
        "its replica",
        "longest",
        "stall",
        "new blocks",
        "told",
        "went on",
        "writes",
        "data",
    ];
    let told = runs.last().map(|run| format!("The volume said: {}\n", run.told));
    format!("{}{}", table(&columns, rows), told.unwrap_or_default())
}

/// Runs the command.
pub async fn run(global: &Global, args: DrillArgs) -> anyhow::Result<()> {
    runs::only_its_own(global, "fills disks")?;
    let right = "Growth waited for room and went on; no request failed, all replicas are equal.";
    runs::report(global, args.runs, async |number| once(number, &args).await, words, right).await
}

async fn once(number: u32, args: &DrillArgs) -> anyhow::Result<Run> {
    let dir = runs::own_dir()?;
    let disks = block_in_place(|| LoopDisks::mount(dir.path(), DATANODES, 1, DISK))?;
    let mut options = Options::new(dir.path().to_owned())?;
    options.growth_watermark = Some(WATERMARK.to_string());
    options.wal_retain = Some(64 << 20);
    runs::on_its_own(dir, options, args, async |bench| fill_one(bench, &disks, number, args).await)
        .await
}

async fn fill_one(
    bench: &mut Bench,
    disks: &LoopDisks,
    number: u32,
    args: &DrillArgs,
) -> anyhow::Result<Run> {
    let before_it = bench.whole().await?;
    let of_primary = before_it.primary.clone().context("the volume has no primary")?;
    let primary = number % 2 == 1;
    let nodes = bench.target.file()?.datanodes;
    let at = nodes.iter().position(|entry| (entry.id == of_primary) == primary);
    let at = at.context("no such node is of this cluster")?;
    let node = nodes[at].id.clone();
    let disk = disks.of(at as u64 + 1).next().context("each node has a disk")?;

    let client = bench.connect(&node).await?;
    let growth = Growth::start(client.clone());
    let load = bench.start_load(&client, Some(PACE)).await?;
    bench.load_goes_on(&load, args.seconds).await?;
    growth.goes_on().await?;
    let before = load.take_stats();

    block_in_place(|| disk.fill(LEFT))?;
    let filled = Instant::now();
    let says = |view: &VolumeView| {
        let mut reasons = view.members.iter().map(|member| &member.reason);
        reasons.find(|why| why.contains("wait for room") && why.contains(&node)).cloned()
    };
    let view =
        bench.wait_for("the volume to say that it waits", |view| says(view).is_some()).await?;
    let (told, told_ms) = (says(&view).unwrap_or_default(), since(filled));
    let room = wait::until("the masters to know", WHOLE, async || {
        let disks = node_view(bench, &node).await?.disks;
        Ok(match disks.first().map(|disk| disk.room) {
            Some(room @ ("short" | "full")) => Look::Done(room.to_owned()),
            other => Look::NotYet(format!("the room on its disk: {other:?}")),
        })
    })
    .await?;
    let so_far = growth.acknowledged();
    // For so long there is no room.
    tokio::time::sleep(args.seconds).await;
    let grew = growth.acknowledged() - so_far;

    block_in_place(|| disk.clear())?;
    let cleared = Instant::now();
    growth.goes_on().await?;
    let resumed_ms = since(cleared);
    bench.load_goes_on(&load, args.seconds).await?;
    let load = load.stop(ANSWER).await?;
    let (grown, growth_stall_ms) = growth.stop().await?;
    let after =
        bench.wait_for("no reason any more", |view| view.is_whole() && says(view).is_none());
    let after = after.await?;
    let verified = bench.verify(&client).await?;
    let wrong = read_back(&client, grown).await?;
    client.disconnect().await;
    let fault = runs::fault_of(&[&before, &load], &[&verified])
        .or_else(|| wrong.map(|at| format!("the write at {at} is not what was acknowledged")))
        .or_else(|| (grew > 0).then(|| format!("{grew} new blocks came while there was no room")))
        .or_else(|| (before_it.epoch != after.epoch).then(|| "a replica left for it".to_owned()));
    Ok(Run {
        run: number,
        node,
        primary,
        told,
        told_ms,
        room,
        grew,
        resumed_ms,
        growth_stall_ms,
        grown,
        before,
        load,
        verified,
        fault,
    })
}

/// A client that writes where nothing was, one write after the other.
struct Growth {
    acknowledged: Arc<AtomicU64>,
    stop: watch::Sender<bool>,
    task: JoinHandle<anyhow::Result<Duration>>,
}

/// What one of its writes has in each byte.
fn byte(write: u64) -> u8 {
    (write % 251) as u8 + 1
}

impl Growth {
    fn start(client: NbdClient) -> Self {
        let acknowledged = Arc::new(AtomicU64::new(0));
        let (stop, mut stopped) = watch::channel(false);
        let counted = Arc::clone(&acknowledged);
        let task = tokio::spawn(async move {
            let mut longest = Duration::ZERO;
            for write in 0.. {
                let at = FRESH + write * WRITE;
                if at + WRITE > client.size() {
                    bail!("the volume has no block left that nothing was written to");
                }
                let begun = Instant::now();
                client.write(at, Bytes::from(vec![byte(write); WRITE as usize])).await?;
                longest = longest.max(begun.elapsed());
                counted.store(write + 1, Ordering::SeqCst);
                // Or somebody has it stop.
                let pause = tokio::time::timeout(PAUSE, stopped.wait_for(|stop| *stop)).await;
                if pause.is_ok() {
                    break;
                }
            }
            Ok(longest)
        });
        Self { acknowledged, stop, task }
    }

    fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// Waits for some more writes.
    async fn goes_on(&self) -> anyhow::Result<()> {
        let before = self.acknowledged();
        wait::until("new blocks to be written", WHOLE, async || {
            let now = self.acknowledged();
            Ok(if now >= before + 3 || self.task.is_finished() {
                Look::Done(())
            } else {
                Look::NotYet(format!("{now} writes were acknowledged"))
            })
        })
        .await
    }

    /// Ends it: how many writes were acknowledged, and the longest time that one took, in milliseconds.
    async fn stop(self) -> anyhow::Result<(u64, u64)> {
        self.stop.send_replace(true);
        let longest = self.task.await.context("the client that writes new blocks")??;
        let longest = u64::try_from(longest.as_millis()).unwrap_or(u64::MAX);
        Ok((self.acknowledged.load(Ordering::SeqCst), longest))
    }
}

/// Where the first of so many of its writes is that does not read as it was written.
async fn read_back(client: &NbdClient, writes: u64) -> anyhow::Result<Option<u64>> {
    for write in 0..writes {
        let at = FRESH + write * WRITE;
        let read = client.read(at, WRITE as u32).await?;
        if read.iter().any(|found| *found != byte(write)) {
            return Ok(Some(at));
        }
    }
    Ok(None)
}
