//! `sbkctl drill primary-kill`, `primary-freeze` and `primary-cut`: a volume loses its primary under
//! load, again and again. What the clients' pause consisted of is told from the traces.

use std::time::Instant;

use anyhow::bail;
use serde::Serialize;

use super::bench::{ANSWER, Bench, Verified};
use super::network;
use super::parts::{Parts, Spread, spread};
use super::runs::{self, Run as _, ms, short};
use super::target::Target;
use crate::args::{DrillArgs, Global};
use crate::commands::explain;
use crate::error::Usage;
use crate::output::{Output, table};
use crate::view::{VolumeView, unix_ms};
use crate::workload::load::LoadStats;

/// What befalls the primary's datanode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Its process gets SIGKILL, and is started again.
    Kill,
    /// Its process gets SIGSTOP, and SIGCONT: it acts on what it knew.
    Freeze,
    /// Nobody hears it, and it hears nobody, until the network is whole again.
    Cut,
}

/// One loss of the primary.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    /// Its number, from 1.
    pub run: u32,
    /// The node that was lost.
    pub lost: String,
    /// The node of the primary afterwards.
    pub primary: String,
    /// The epoch before.
    pub epoch_before: u64,
    /// The epoch once all were in sync again.
    pub epoch_after: u64,
    /// The longest that the client waited for one answer of the same load before, in milliseconds.
    pub quiet_ms: u64,
    /// The longest that it waited for one answer when the primary was lost, in milliseconds.
    pub stall_ms: u64,
    /// What that consisted of, if the traces tell.
    pub parts: Option<Parts>,
    /// The longest that it waited for one answer when the node came back, in milliseconds.
    pub return_stall_ms: u64,
    /// From the node's return until all replicas were in sync, in milliseconds, under load. For a
    /// process that is started it begins when it has been started.
    pub back_in_sync_ms: u64,
    /// What the load did from the loss on.
    pub load: LoadStats,
    /// Whether the data is right.
    pub verified: Verified,
    /// What is wrong, if anything is.
    pub fault: Option<String>,
}

impl runs::Run for Run {
    fn told(&self) -> String {
        format!("stall {} ms", self.stall_ms)
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
    /// What befell the primary.
    pub what: Fault,
    /// The stalls of all runs, in milliseconds, as all that follow.
    pub stall_ms: Spread,
    /// The longest answers without a fault.
    pub quiet_ms: Spread,
    /// The stalls when the node came back.
    pub return_stall_ms: Spread,
    /// Until all replicas were in sync.
    pub back_in_sync_ms: Spread,
    /// What the stalls consisted of, in order, each with its name.
    pub parts: Vec<(&'static str, Spread)>,
    /// Each loss.
    pub runs: Vec<Run>,
}

impl Report {
    fn of(what: Fault, runs: Vec<Run>) -> Self {
        let known: Vec<&Parts> = runs.iter().filter_map(|r| r.parts.as_ref()).collect();
        Self {
            ok: runs::are_right(&runs),
            what,
            stall_ms: spread(runs.iter().map(|r| r.stall_ms)),
            quiet_ms: spread(runs.iter().map(|r| r.quiet_ms)),
            return_stall_ms: spread(runs.iter().map(|r| r.return_stall_ms)),
            back_in_sync_ms: spread(runs.iter().map(|r| r.back_in_sync_ms)),
            parts: Parts::spreads(&known),
            runs,
        }
    }

    fn words(&self) -> String {
        let rows = self.runs.iter().map(|r| {
            vec![
                r.run.to_string(),
                short(&r.lost),
                short(&r.primary),
                format!("{} to {}", r.epoch_before, r.epoch_after),
                ms(r.quiet_ms),
                ms(r.stall_ms),
                ms(r.return_stall_ms),
                ms(r.back_in_sync_ms),
                r.load.writes.to_string(),
                r.data(),
            ]
        });
        let header = [
            "run",
            "lost",
            "then",
            "epoch",
            "before",
            "stall",
            "at return",
            "in sync after",
            "writes",
            "data",
        ];
        let mut spreads = vec![
            ("longest answer before", &self.quiet_ms),
            ("STALL", &self.stall_ms),
            ("stall at the return", &self.return_stall_ms),
            ("return to in sync", &self.back_in_sync_ms),
        ];
        let indented: Vec<(String, &Spread)> =
            self.parts.iter().map(|(name, spread)| (format!("  {name}"), spread)).collect();
        let parts = indented.iter().map(|(name, spread)| (name.as_str(), *spread));
        spreads.splice(2..2, parts);
        let rows_of_spreads = spreads.iter().map(|(name, spread)| {
            vec![(*name).to_owned(), ms(spread.p50), ms(spread.p90), ms(spread.max)]
        });
        let header_of_spreads = [&format!("over {} runs", self.runs.len()), "p50", "p90", "max"];
        format!(
            "{}\n{}\n{}\n",
            table(&header, rows),
            table(&header_of_spreads, rows_of_spreads),
            if self.ok {
                "No acknowledged write was lost, no request failed, all replicas are equal."
            } else {
                "THE DRILL FAILED."
            }
        )
    }
}

/// Runs the command.
pub async fn run(global: &Global, args: DrillArgs, fault: Fault) -> anyhow::Result<()> {
    let output = Output::new(global.output);
    let target = match fault {
        Fault::Kill | Fault::Freeze => Target::open(global.dir.clone(), None).await?,
        Fault::Cut if global.dir.is_some() => {
            let text = "this drill cuts off a host, so it makes a cluster and a network of its own: \
                        leave --dir away";
            return Err(Usage(text.into()).into());
        }
        Fault::Cut if !network::is_inside() => match network::obstacle() {
            None => return Err(network::enter().context("moving into a network namespace")),
            Some(why) => bail!("no network of the drill's own can be made here: {why}"),
        },
        Fault::Cut => Target::on_a_network().await?,
    };
    let mut bench = Bench::open(target, args.depth).await?;
    let (runs, result) =
        runs::all(args.runs, async |number| once(&mut bench, number, &args, fault).await).await;
    let report = Report::of(fault, runs);
    output.show(&report, Report::words)?;
    let ok = result.is_ok() && report.ok;
    bench.close(args.keep || !ok).await?;
    runs::end(result, ok)
}

/// Loses the primary once; see the module.
///
/// # Errors
/// What kept it from being lost, or from coming back. What is wrong with the data is in the run.
pub async fn once(
    bench: &mut Bench,
    number: u32,
    args: &DrillArgs,
    fault: Fault,
) -> anyhow::Result<Run> {
    let before = bench.whole().await?;
    let Some(lost) = before.primary.clone() else { bail!("the volume has no primary") };
    let client = bench.connect(&lost).await?;
    let load = bench.start_load(&client, None).await?;
    bench.load_goes_on(&load, args.seconds).await?;
    let quiet = load.take_stats();
    let began = unix_ms();
    let harmed = bench.target.harm(&lost, fault).await?;
    bench.load_goes_on(&load, args.seconds).await?;
    let failover = load.take_stats();
    let decisions = explain::story(&bench.info().await?).await?.decisions;
    bench.target.mend(&lost, harmed).await?;
    let returned = Instant::now();
    let after = bench.whole().await?;
    let back_in_sync_ms = runs::since(returned);
    bench.load_goes_on(&load, args.seconds).await?;
    let at_return = load.stop(ANSWER).await?;
    let verified = bench.verify(&client).await?;
    client.disconnect().await;
    let epoch_before = before.epoch.unwrap_or(0);
    let load = quiet.and(&failover).and(&at_return);
    Ok(Run {
        run: number,
        lost,
        epoch_before,
        epoch_after: after.epoch.unwrap_or(0),
        quiet_ms: quiet.longest_request_ms,
        stall_ms: failover.longest_request_ms,
        parts: Parts::of(&decisions, epoch_before, began, failover.longest_until_ms),
        return_stall_ms: at_return.longest_request_ms,
        back_in_sync_ms,
        fault: fault_of(&before, &after, &load, &verified),
        primary: after.primary.unwrap_or_default(),
        load,
        verified,
    })
}

fn fault_of(
    before: &VolumeView,
    after: &VolumeView,
    load: &LoadStats,
    verified: &Verified,
) -> Option<String> {
    if let Some(failed) = runs::fault_of(&[load], &[]) {
        return Some(failed);
    }
    if before.epoch >= after.epoch || before.primary == after.primary {
        return Some("nothing failed over".into());
    }
    verified.fault()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(number: u32, stall_ms: u64, fault: Option<&str>) -> Run {
        Run {
            run: number,
            lost: "0123456789".into(),
            primary: "9876543210".into(),
            epoch_before: 1,
            epoch_after: 3,
            quiet_ms: stall_ms / 100,
            stall_ms,
            parts: Some(Parts { detect: 7, ..Parts::default() }),
            return_stall_ms: stall_ms / 10,
            back_in_sync_ms: 9,
            load: LoadStats::default(),
            verified: Verified::default(),
            fault: fault.map(str::to_owned),
        }
    }

    #[test]
    fn median_and_maximum_are_told() {
        let runs = [900, 700, 1200, 800].map(|ms| run(1, ms, None)).into();
        let report = Report::of(Fault::Kill, runs);
        assert_eq!((report.ok, report.stall_ms.p50, report.stall_ms.max), (true, 800, 1200));
        assert_eq!((report.quiet_ms.p50, report.return_stall_ms.max), (8, 120));
        assert_eq!(report.parts[0], ("detect", Spread { p50: 7, p90: 7, max: 7 }));
        let words = report.words();
        assert!(words.contains("OVER 4 RUNS") && words.contains("1200 ms"), "{words}");
        assert!(Report::of(Fault::Cut, Vec::new()).parts.iter().all(|(_, s)| s.max == 0));
    }

    #[test]
    fn one_fault_fails_the_drill() {
        let runs = vec![run(1, 1, None), run(2, 1, Some("2 requests failed"))];
        let report = Report::of(Fault::Freeze, runs);
        assert!(!report.ok);
        assert!(report.words().contains("THE DRILL FAILED"), "{}", report.words());
        assert!(report.words().contains("2 requests failed"));
    }
}
