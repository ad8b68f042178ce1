//! `sbkctl drill primary-kill`: the primary dies under load, again and again.

use std::time::Instant;

use anyhow::bail;
use serde::Serialize;

use super::bench::{ANSWER, Bench, Verified};
use super::target::Target;
use crate::args::{DrillArgs, Global};
use crate::output::{Output, table};
use crate::workload::load::LoadStats;

/// One kill.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Its number, from 1.
    pub run: u32,
    /// The node whose process was killed.
    pub killed: String,
    /// The pid that it had.
    pub pid: u32,
    /// The node of the primary afterwards.
    pub primary: String,
    /// The epoch before.
    pub epoch_before: u64,
    /// The epoch once all were in sync again.
    pub epoch_after: u64,
    /// The longest that the client waited for one answer, in milliseconds.
    pub stall_ms: u64,
    /// From the start of the killed node's new process until all replicas were in sync, in
    /// milliseconds, under load.
    pub back_in_sync_ms: u64,
    /// What the load did.
    pub load: LoadStats,
    /// Whether the data is right.
    pub verified: Verified,
    /// What is wrong, if anything is.
    pub fault: Option<String>,
}

/// All of them.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether nothing was lost and nothing failed.
    pub ok: bool,
    /// Half of the runs had at most this stall.
    pub stall_p50_ms: u64,
    /// The longest of all.
    pub stall_max_ms: u64,
    /// Each kill.
    pub runs: Vec<Run>,
}

impl Report {
    fn of(runs: Vec<Run>) -> Self {
        let mut stalls: Vec<u64> = runs.iter().map(|r| r.stall_ms).collect();
        stalls.sort_unstable();
        Self {
            ok: runs.iter().all(|r| r.fault.is_none()),
            stall_p50_ms: stalls.get(stalls.len().saturating_sub(1) / 2).copied().unwrap_or(0),
            stall_max_ms: stalls.last().copied().unwrap_or(0),
            runs,
        }
    }

    fn words(&self) -> String {
        let rows = self.runs.iter().map(|r| {
            vec![
                r.run.to_string(),
                r.killed.get(..8).unwrap_or(&r.killed).to_owned(),
                r.primary.get(..8).unwrap_or(&r.primary).to_owned(),
                format!("{} to {}", r.epoch_before, r.epoch_after),
                format!("{} ms", r.stall_ms),
                format!("{} ms", r.back_in_sync_ms),
                r.load.writes.to_string(),
                r.verified.blocks.to_string(),
                r.fault.clone().unwrap_or_else(|| "right".into()),
            ]
        });
        let header =
            ["run", "killed", "then", "epoch", "stall", "back in sync", "writes", "blocks", "data"];
        format!(
            "{}\nStall at the client: p50 {} ms, max {} ms over {} runs.\n{}\n",
            table(&header, rows),
            self.stall_p50_ms,
            self.stall_max_ms,
            self.runs.len(),
            if self.ok {
                "No acknowledged write was lost, no request failed, all replicas are equal."
            } else {
                "THE DRILL FAILED."
            }
        )
    }
}

/// Runs the command.
pub async fn run(global: &Global, args: DrillArgs) -> anyhow::Result<()> {
    let output = Output::new(global.output);
    let mut bench = Bench::open(Target::open(global.dir.clone(), None).await?, args.depth).await?;
    let mut runs = Vec::new();
    let mut result = Ok(());
    for number in 1..=args.runs {
        match once(&mut bench, number, &args).await {
            Ok(run) => {
                eprintln!("run {number} of {}: stall {} ms", args.runs, run.stall_ms);
                let faulty = run.fault.is_some();
                runs.push(run);
                if faulty {
                    break;
                }
            }
            Err(e) => {
                result = Err(e.context(format!("run {number}")));
                break;
            }
        }
    }
    let report = Report::of(runs);
    output.show(&report, Report::words)?;
    let failed = result.is_err() || !report.ok;
    bench.close(args.keep || failed).await?;
    result?;
    if !report.ok {
        bail!("the drill failed; its reports say where");
    }
    Ok(())
}

/// Kills the primary once; see the module.
pub async fn once(bench: &mut Bench, number: u32, args: &DrillArgs) -> anyhow::Result<Run> {
    let before = bench.whole().await?;
    let Some(killed) = before.primary.clone() else { bail!("the volume has no primary") };
    let client = bench.connect(&killed).await?;
    let load = bench.start_load(&client, None).await?;
    let pid = bench.target.kill(&killed).await?;
    bench.load_goes_on(&load, args.seconds).await?;
    let started = Instant::now();
    bench.target.bring_back(&killed, pid).await?;
    let after = bench.whole().await?;
    let back_in_sync_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let load = load.stop(ANSWER).await?;
    let verified = bench.verify(&client).await?;
    client.disconnect().await;
    let fault = fault(&before, &after, &load, &verified);
    Ok(Run {
        run: number,
        killed,
        pid,
        primary: after.primary.unwrap_or_default(),
        epoch_before: before.epoch.unwrap_or(0),
        epoch_after: after.epoch.unwrap_or(0),
        stall_ms: load.longest_request_ms,
        back_in_sync_ms,
        load,
        verified,
        fault,
    })
}

fn fault(
    before: &crate::view::VolumeView,
    after: &crate::view::VolumeView,
    load: &LoadStats,
    verified: &Verified,
) -> Option<String> {
    if let Some(error) = &load.first_error {
        return Some(format!("{} requests failed, the first: {error}", load.errors));
    }
    if before.epoch >= after.epoch {
        return Some("the epoch did not move: nothing failed over".into());
    }
    verified.fault()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(number: u32, stall_ms: u64, fault: Option<&str>) -> Run {
        Run {
            run: number,
            killed: "0123456789".into(),
            pid: 1,
            primary: "9876543210".into(),
            epoch_before: 1,
            epoch_after: 3,
            stall_ms,
            back_in_sync_ms: 9,
            load: LoadStats::default(),
            verified: Verified::default(),
            fault: fault.map(str::to_owned),
        }
    }

    #[test]
    fn median_and_maximum_are_told() {
        let report = Report::of([900, 700, 1200, 800].map(|ms| run(1, ms, None)).into());
        assert_eq!((report.ok, report.stall_p50_ms, report.stall_max_ms), (true, 800, 1200));
        assert!(report.words().contains("p50 800 ms, max 1200 ms over 4 runs"));
        assert_eq!(Report::of(Vec::new()).stall_p50_ms, 0);
    }

    #[test]
    fn one_fault_fails_the_drill() {
        let report = Report::of(vec![run(1, 1, None), run(2, 1, Some("2 requests failed"))]);
        assert!(!report.ok);
        assert!(report.words().contains("THE DRILL FAILED"), "{}", report.words());
        assert!(report.words().contains("2 requests failed"));
    }
}
