//! `sbkctl drill replica-return`: a replica goes away and comes back, by catch-up and by delta.

use anyhow::bail;
use serde::Serialize;

use super::bench::Bench;
use super::routes::{self, Route, SMALL_WAL, Taken};
use super::target::Target;
use crate::args::{DrillArgs, Global};
use crate::output::{Output, table};

/// All returns.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether each took the expected route, and nothing was lost and nothing failed.
    pub ok: bool,
    /// Each return.
    pub runs: Vec<Taken>,
}

/// For people: one line for each route taken.
pub(super) fn taken_table(runs: &[Taken]) -> String {
    let rows = runs.iter().map(|taken| {
        let observed: Vec<&str> = taken.observed.iter().map(|r| r.word()).collect();
        vec![
            taken.expected.word().to_owned(),
            observed.join(", "),
            taken.node.get(..8).unwrap_or(&taken.node).to_owned(),
            taken.load.writes.to_string(),
            format!("{} ms", taken.load.longest_request_ms),
            taken.verified.blocks.to_string(),
            taken.fault.clone().unwrap_or_else(|| "right".into()),
        ]
    });
    table(&["expected", "observed", "node", "writes", "stall", "blocks", "result"], rows)
}

/// Takes `routes` so often on a cluster; stops at the first that goes wrong. `told` hears of each.
///
/// # Errors
/// What kept a route from being taken. What was taken before is in the first part.
pub(super) async fn take_all(
    global: &Global,
    args: &DrillArgs,
    routes: &[Route],
    mut told: impl FnMut(u32, &Taken) -> anyhow::Result<()>,
) -> (Vec<Taken>, anyhow::Result<()>) {
    let mut runs = Vec::new();
    let take = async {
        let target = Target::open(global.dir.clone(), Some(SMALL_WAL)).await?;
        let mut bench = Bench::open(target, args.depth).await?;
        let mut result = Ok(());
        'runs: for run in 1..=args.runs {
            for route in routes {
                let taken = match routes::take(&mut bench, *route, args.seconds).await {
                    Ok(taken) => taken,
                    Err(e) => {
                        result = Err(e.context(format!("run {run}, {}", route.words())));
                        break 'runs;
                    }
                };
                told(run, &taken)?;
                let faulty = taken.fault.is_some();
                runs.push(taken);
                if faulty {
                    break 'runs;
                }
            }
        }
        let failed = result.is_err() || runs.iter().any(|t| t.fault.is_some());
        bench.close(args.keep || failed).await?;
        result
    };
    let result = take.await;
    (runs, result)
}

/// Runs the command.
pub async fn run(global: &Global, args: DrillArgs) -> anyhow::Result<()> {
    let output = Output::new(global.output);
    let all = [Route::CatchUp, Route::Delta];
    let (runs, result) = take_all(global, &args, &all, |run, taken| {
        eprintln!("run {run} of {}: {} done", args.runs, taken.expected.word());
        Ok(())
    })
    .await;
    let ok = result.is_ok() && runs.iter().all(|t| t.fault.is_none());
    let report = Report { ok, runs };
    output.show(&report, |report| taken_table(&report.runs))?;
    result?;
    if !report.ok {
        bail!("the drill failed; its report says where");
    }
    output.note("Every replica came back as it had to; no acknowledged write was lost.")
}
