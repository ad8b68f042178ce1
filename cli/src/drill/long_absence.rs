//! `sbkctl drill long-absence`: a datanode is away while its volume changes, for longer than the primary's log
//! reaches back, and for longer than the masters wait for it.
//!
//! The first time it comes back to a delta: what changed is sent, not all that the volume holds. The second time
//! it comes back to nothing: another node has its replica, and its own is removed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use serde::Serialize;

use super::bench::{ANSWER, Bench, USED_BLOCKS, VOLUME, Verified, WHOLE};
use super::routes::{GENTLE, Route, SMALL_WAL, log_moves_on, observed};
use super::runs::{self, Run as _, ms, short, since};
use crate::args::{DrillArgs, Global};
use crate::dev::cluster::Options;
use crate::dev::plan::Wanted;
use crate::http::get_text;
use crate::output::table;
use crate::size::show_size;
use crate::view::{VolumeView, id_text};
use crate::wait::{self, Look};
use crate::workload::load::LoadStats;
use crate::workload::nbd::NbdClient;
use crate::workload::stamp::BLOCK;

/// After so long the masters replace a replica that is to be replaced.
const REPLACE: Duration = Duration::from_secs(10);
/// Bytes of one write that fills the volume.
const FILL: u64 = 1 << 20;

/// How it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// It gets what changed.
    Delta,
    /// Another node has its replica by then.
    Replaced,
}

/// One absence.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Its number, from 1.
    pub run: u32,
    /// The node that was away.
    pub node: String,
    /// How it ended.
    pub end: End,
    /// For how long it was away, in milliseconds.
    pub away_ms: u64,
    /// Bytes that clients wrote meanwhile.
    pub written_bytes: u64,
    /// Bytes of the blocks that changed by that.
    pub changed_bytes: u64,
    /// Bytes of the whole volume, all of which was written before.
    pub volume_bytes: u64,
    /// Bytes of base blocks that the primary sent to the replica: the one that came back, or the new one.
    pub base_bytes: u64,
    /// Bytes of entries that it sent to it until it was in sync, those that clients wrote just then included.
    pub entries_bytes: u64,
    /// Until all replicas were in sync, in milliseconds: after the node came back, or after it went away.
    pub whole_ms: u64,
    /// What the load did.
    pub load: LoadStats,
    /// Whether the data is right.
    pub verified: Verified,
    /// What is wrong, if anything is.
    pub fault: Option<String>,
}

impl runs::Run for Run {
    fn told(&self) -> String {
        let (moved, changed) = (show_size(self.base_bytes), show_size(self.changed_bytes));
        let end = match self.end {
            End::Delta => "delta",
            End::Replaced => "replaced",
        };
        format!("{end}: {moved} of base blocks for {changed} that changed, {} ms", self.whole_ms)
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
            match r.end {
                End::Delta => "delta".to_owned(),
                End::Replaced => "replaced".to_owned(),
            },
            ms(r.away_ms),
            show_size(r.written_bytes),
            show_size(r.changed_bytes),
            show_size(r.volume_bytes),
            show_size(r.base_bytes),
            show_size(r.entries_bytes),
            ms(r.whole_ms),
            ms(r.load.longest_request_ms),
            r.data(),
        ]
    });
    let columns = [
        "run",
        "node",
        "end",
        "away",
        "written",
        "changed",
        "volume",
        "base",
        "entries",
        "in sync after",
        "stall",
        "data",
    ];
    table(&columns, rows)
}

/// Runs the command.
pub async fn run(global: &Global, args: DrillArgs) -> anyhow::Result<()> {
    runs::only_its_own(global, "has replicas replaced")?;
    let once = async |number: u32| match number % 2 {
        1 => once(number, End::Delta, &args).await,
        _ => once(number, End::Replaced, &args).await,
    };
    let right = "Each absence ended as it had to; no request failed, all replicas are equal.";
    runs::report(global, 2 * args.runs, once, words, right).await
}

async fn once(number: u32, end: End, args: &DrillArgs) -> anyhow::Result<Run> {
    let dir = runs::own_dir()?;
    let mut options = Options::new(dir.path().to_owned())?;
    options.wal_retain = Some(SMALL_WAL);
    if end == End::Replaced {
        options.wanted = Wanted { masters: None, datanodes: Some(4), base_port: None };
        options.replace_after = Some(REPLACE);
    }
    runs::on_its_own(dir, options, args, async |bench| be_away(bench, number, end, args).await)
        .await
}

async fn be_away(
    bench: &mut Bench,
    number: u32,
    end: End,
    args: &DrillArgs,
) -> anyhow::Result<Run> {
    let before = bench.whole().await?;
    let primary = before.primary.clone().context("the volume has no primary")?;
    let other = before.members.iter().map(|m| m.node.clone()).find(|node| *node != primary);
    let node = other.context("an absence needs a replica beside the primary")?;
    let (volume, old) = (id_text(&bench.info().await?.id), bench.replica_on(&node).await?);
    let first = replicas(bench).await?;
    let home = bench.target.datanode(&node)?.data_dir.join("replicas");
    let directory = home.join(format!("{volume}.{old}"));
    let client = bench.connect(&node).await?;
    fill(&client).await?;
    let load = bench.start_load(&client, Some(GENTLE)).await?;
    bench.load_goes_on(&load, Duration::ZERO).await?;

    let traced = bench.decisions().await?.iter().map(|d| d.at).max().unwrap_or(0);
    let sent_before = sent(bench, &primary, &old).await?;
    let (written, mark) = (load.stats().written_bytes, bench.history().last_write());
    let pid = bench.target.kill(&node).await?;
    let gone = Instant::now();
    let without = |view: &VolumeView| view.serving && !view.isr.contains(&node);
    bench.wait_for("the replica to leave the in-sync set", without).await?;
    let mut replaced_ms = 0;
    match end {
        End::Delta => {
            load.set_pace(None);
            bench.load_goes_on(&load, args.seconds).await?;
            log_moves_on(bench, &load).await?;
            load.set_pace(Some(GENTLE));
        }
        End::Replaced => {
            let replaced =
                |view: &VolumeView| view.is_whole() && view.members.iter().all(|m| m.node != node);
            bench.wait_for("another node to have its replica", replaced).await?;
            replaced_ms = since(gone);
            bench.load_goes_on(&load, args.seconds).await?;
        }
    }
    let away_ms = since(gone);
    let written_bytes = load.stats().written_bytes - written;
    let changed_bytes = bench.history().blocks_since(mark) * BLOCK as u64;

    bench.target.bring_back(&node, pid).await?;
    let back = Instant::now();
    let whole = bench.whole().await?;
    let whole_ms = match end {
        End::Delta => since(back),
        End::Replaced => replaced_ms,
    };
    // The one that was brought up to date, and what it had got before.
    let (replica, got) = match end {
        End::Delta => (old.clone(), sent_before),
        End::Replaced => {
            let fresh = replicas(bench).await?.difference(&first).next().cloned();
            (fresh.context("no new replica is listed")?, (0, 0))
        }
    };
    let primary = whole.primary.clone().context("the volume has no primary")?;
    let (base, entries) = sent(bench, &primary, &replica).await?;
    let (base_bytes, entries_bytes) = (base.saturating_sub(got.0), entries.saturating_sub(got.1));
    bench.load_goes_on(&load, args.seconds).await?;
    if end == End::Replaced {
        wait::until(format!("{} to be removed", directory.display()), WHOLE, async || {
            let there = directory.exists();
            Ok(if there { Look::NotYet("it is there".into()) } else { Look::Done(()) })
        })
        .await?;
    }
    let load = load.stop(ANSWER).await?;
    let verified = bench.verify(&client).await?;
    let wrong = is_filled(&client).await?;
    client.disconnect().await;
    let mut trace = bench.decisions().await?;
    trace.retain(|d| d.at > traced);
    let seen = observed(&trace, &replica);
    let (wanted, most) = match end {
        // All that the load uses, and not what was only filled once. A session that breaks is begun anew.
        End::Delta => (Route::Delta, 2 * USED_BLOCKS * BLOCK as u64),
        End::Replaced => (Route::Rebuild, 2 * VOLUME),
    };
    let route = || {
        let right =
            seen.contains(&wanted) && (end == End::Replaced || !seen.contains(&Route::Rebuild));
        (!right).then(|| {
            let seen: Vec<_> = seen.iter().map(|route| route.word()).collect();
            format!("expected {}, the trace tells {}", wanted.word(), seen.join(" and "))
        })
    };
    let moved = || {
        let right = (1..=most).contains(&base_bytes);
        (!right).then(|| format!("{base_bytes} bytes were moved, of at most {most}"))
    };
    let fault = runs::fault_of(&[&load], &[&verified])
        .or_else(|| wrong.map(|at| format!("what was written at {at} once is not there")))
        .or_else(route)
        .or_else(moved);
    Ok(Run {
        run: number,
        node,
        end,
        away_ms,
        written_bytes,
        changed_bytes,
        volume_bytes: VOLUME,
        base_bytes,
        entries_bytes,
        whole_ms,
        load,
        verified,
        fault,
    })
}

/// The replicas that the volume lists.
async fn replicas(bench: &Bench) -> anyhow::Result<BTreeSet<String>> {
    Ok(bench.info().await?.members.iter().map(|member| id_text(&member.replica)).collect())
}

/// Bytes of base blocks and of entries that a node's process has sent to a replica so far.
async fn sent(bench: &Bench, node: &str, replica: &str) -> anyhow::Result<(u64, u64)> {
    let page = get_text(&bench.target.datanode(node)?.http, "/metrics").await?;
    let of = |what: &str| {
        let name = format!("sbk_datanode_peer_{what}_sent_bytes_total");
        let mut lines = page.lines().filter(|line| line.starts_with(&name));
        let line = lines.find(|line| line.contains(replica));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
    };
    Ok((of("base"), of("entries")))
}

/// What a write of those that fill the volume has in each byte.
fn byte(at: u64) -> u8 {
    (at / FILL % 251) as u8 + 1
}

/// Writes all that the load does not use, so that there is more in the volume than what changes.
async fn fill(client: &NbdClient) -> anyhow::Result<()> {
    for at in (USED_BLOCKS * BLOCK as u64..VOLUME).step_by(FILL as usize) {
        let data = Bytes::from(vec![byte(at); FILL as usize]);
        client.write(at, data).await.context("filling the volume")?;
    }
    Ok(client.flush().await?)
}

/// Where the first of these writes is that is not there.
async fn is_filled(client: &NbdClient) -> anyhow::Result<Option<u64>> {
    for at in (USED_BLOCKS * BLOCK as u64..VOLUME).step_by(FILL as usize) {
        let read = client.read(at, FILL as u32).await?;
        if read.iter().any(|found| *found != byte(at)) {
            return Ok(Some(at));
        }
    }
    Ok(None)
}
