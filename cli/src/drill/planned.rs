//! `sbkctl drill primary-move` and `sbkctl drill rolling-restart`: what operators do on purpose, under
//! load. Each run has the longest answer of the same load just before it beside its own.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use sbk_proto::v1::MovePrimaryRequest;
use serde::Serialize;
use uuid::Uuid;

use super::bench::{ANSWER, Bench, Verified};
use super::parts::{Spread, spread};
use super::runs::{self, Run as _, ms, short};
use super::target::Target;
use crate::args::{DrillArgs, Global};
use crate::dev::cluster::Which;
use crate::output::{Output, table};
use crate::view::id_text;
use crate::workload::load::LoadStats;

/// What is done.
#[derive(Clone, Debug)]
enum Act {
    /// Another in-sync replica becomes primary.
    Move { to: String },
    /// A process ends in order and is started again.
    Restart { which: Which, node: Option<String> },
}

/// One of them.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Its number, from 1.
    pub run: u32,
    /// What was done.
    pub what: String,
    /// The epoch before.
    pub epoch_before: u64,
    /// The epoch once all were in sync again.
    pub epoch_after: u64,
    /// The longest that the client waited for one answer of the same load before, in milliseconds.
    pub quiet_ms: u64,
    /// The longest that it waited for one while this was done, in milliseconds.
    pub stall_ms: u64,
    /// How long it took until it was done and all replicas were in sync, in milliseconds, under load.
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
        format!("{}, stall {} ms", self.what, self.stall_ms)
    }

    fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }
}

/// All of them.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether nothing was lost and nothing failed.
    pub ok: bool,
    /// The stalls of all runs, in milliseconds.
    pub stall_ms: Spread,
    /// The longest answers before them.
    pub quiet_ms: Spread,
    /// Until it was done and all replicas were in sync.
    pub whole_ms: Spread,
    /// Each of them.
    pub runs: Vec<Run>,
}

impl Report {
    fn of(runs: Vec<Run>) -> Self {
        Self {
            ok: runs::are_right(&runs),
            stall_ms: spread(runs.iter().map(|r| r.stall_ms)),
            quiet_ms: spread(runs.iter().map(|r| r.quiet_ms)),
            whole_ms: spread(runs.iter().map(|r| r.whole_ms)),
            runs,
        }
    }

    fn words(&self) -> String {
        let rows = self.runs.iter().map(|r| {
            vec![
                r.run.to_string(),
                r.what.clone(),
                format!("{} to {}", r.epoch_before, r.epoch_after),
                ms(r.quiet_ms),
                ms(r.stall_ms),
                ms(r.whole_ms),
                r.load.writes.to_string(),
                r.data(),
            ]
        });
        let header = ["run", "done", "epoch", "before", "stall", "whole", "writes", "data"];
        format!(
            "{}\nLongest answer at the client: p50 {} ms, max {} ms over {} runs; before each, p50 {} ms, max {} ms.\n{}\n",
            table(&header, rows),
            self.stall_ms.p50,
            self.stall_ms.max,
            self.runs.len(),
            self.quiet_ms.p50,
            self.quiet_ms.max,
            if self.ok {
                "No acknowledged write was lost, no request failed, all replicas are equal."
            } else {
                "THE DRILL FAILED."
            }
        )
    }
}

/// Moves the primary again and again.
pub async fn move_primary(global: &Global, args: DrillArgs) -> anyhow::Result<()> {
    let bench = Bench::open(Target::open(global.dir.clone(), None).await?, args.depth).await?;
    let view = bench.whole().await?;
    let acts = (0..args.runs as usize).map(|n| {
        let others: Vec<_> =
            view.isr.iter().filter(|n| Some(*n) != view.primary.as_ref()).collect();
        // There and back, each time another one.
        let back = view.primary.iter().collect::<Vec<_>>();
        let to = if n % 2 == 0 { others.get(n / 2 % others.len().max(1)) } else { back.first() };
        Ok(Act::Move { to: to.context("a drill needs at least two replicas in sync")?.to_string() })
    });
    let acts = acts.collect::<anyhow::Result<Vec<_>>>()?;
    all(global, args, bench, acts).await
}

/// Restarts every process, one after the other.
pub async fn rolling_restart(global: &Global, args: DrillArgs) -> anyhow::Result<()> {
    runs::only_its_own(global, "ends processes")?;
    let bench = Bench::open(Target::open(None, None).await?, args.depth).await?;
    let file = bench.target.file()?;
    let mut acts = Vec::new();
    for _ in 0..args.runs {
        let nodes = file.datanodes.iter().enumerate();
        acts.extend(nodes.map(|(at, entry)| {
            let node = Some(entry.id.clone());
            Act::Restart { which: Which::Datanode(at), node }
        }));
        let masters = (0..file.masters.len()).map(Which::Master);
        acts.extend(masters.map(|which| Act::Restart { which, node: None }));
    }
    all(global, args, bench, acts).await
}

async fn all(
    global: &Global,
    args: DrillArgs,
    mut bench: Bench,
    acts: Vec<Act>,
) -> anyhow::Result<()> {
    let output = Output::new(global.output);
    let of = acts.len() as u32;
    let (runs, result) = runs::all(of, async |number| {
        once(&mut bench, number, &acts[number as usize - 1], args.seconds).await
    })
    .await;
    let report = Report::of(runs);
    output.show(&report, Report::words)?;
    let ok = result.is_ok() && report.ok;
    bench.close(args.keep || !ok).await?;
    runs::end(result, ok)
}

async fn once(bench: &mut Bench, number: u32, act: &Act, time: Duration) -> anyhow::Result<Run> {
    let before = bench.whole().await?;
    let primary = before.primary.clone().context("the volume has no primary")?;
    // A connection ends with the process that it leads to, and that is no stall.
    let avoid = match act {
        Act::Restart { node: Some(node), .. } => node.clone(),
        Act::Restart { node: None, .. } | Act::Move { .. } => primary.clone(),
    };
    let client = bench.connect(&avoid).await?;
    let quiet = bench.start_load(&client, None).await?;
    bench.load_goes_on(&quiet, time).await?;
    let quiet = quiet.stop(ANSWER).await?;
    let load = bench.start_load(&client, None).await?;
    let started = Instant::now();
    let what = carry_out(bench, act, &primary).await?;
    let after = bench.whole().await?;
    let whole_ms = runs::since(started);
    bench.load_goes_on(&load, time).await?;
    let load = load.stop(ANSWER).await?;
    let verified = bench.verify(&client).await?;
    client.disconnect().await;
    let moved = match act {
        Act::Move { to } => after.primary.as_ref() == Some(to),
        Act::Restart { .. } => true,
    };
    let fault = runs::fault_of(&[&load, &quiet], &[])
        .or_else(|| (!moved).then(|| "another one is primary".to_owned()))
        .or_else(|| verified.fault());
    Ok(Run {
        run: number,
        what,
        epoch_before: before.epoch.unwrap_or(0),
        epoch_after: after.epoch.unwrap_or(0),
        quiet_ms: quiet.longest_request_ms,
        stall_ms: load.longest_request_ms,
        whole_ms,
        load,
        verified,
        fault,
    })
}

/// Does it; what was done, in words.
async fn carry_out(bench: &mut Bench, act: &Act, primary: &str) -> anyhow::Result<String> {
    match act {
        Act::Move { to } => {
            let replica: Uuid = bench.replica_on(to).await?.parse().context("a replica's UUID")?;
            let replica = replica.as_bytes().to_vec().into();
            let name_or_id = id_text(&bench.info().await?.id);
            bench.masters.move_primary(MovePrimaryRequest { name_or_id, replica }).await?;
            let what = format!("node {to} to be the primary's");
            bench.wait_for(&what, |v| v.primary.as_ref() == Some(to) && v.serving).await?;
            Ok(format!("primary to {}", short(to)))
        }
        Act::Restart { which, node } => {
            bench.target.restart(*which).await?;
            Ok(match node {
                Some(node) if node == primary => format!("{which} restarted, the primary's"),
                Some(_) | None => format!("{which} restarted"),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stall_ms: u64, fault: Option<&str>) -> Run {
        Run {
            run: 1,
            what: "primary to 01234567".into(),
            epoch_before: 1,
            epoch_after: 2,
            quiet_ms: stall_ms / 10,
            stall_ms,
            whole_ms: 9,
            load: LoadStats::default(),
            verified: Verified::default(),
            fault: fault.map(str::to_owned),
        }
    }

    #[test]
    fn what_was_slow_before_is_told_beside_the_stall() {
        let report = Report::of([90, 70, 120, 80].map(|ms| run(ms, None)).into());
        assert_eq!((report.ok, report.stall_ms.p50, report.stall_ms.max), (true, 80, 120));
        assert_eq!(report.quiet_ms.p50, 8);
        assert!(
            report
                .words()
                .contains("p50 80 ms, max 120 ms over 4 runs; before each, p50 8 ms, max 12 ms")
        );
    }

    #[test]
    fn one_fault_fails_the_drill() {
        let report = Report::of(vec![run(1, None), run(1, Some("2 requests failed"))]);
        assert!(!report.ok && report.words().contains("THE DRILL FAILED"), "{}", report.words());
    }
}
