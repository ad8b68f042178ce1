//! `sbkctl demo`: the healthy, catch-up and delta routes, each told from its trace.

use anyhow::bail;

use super::replica_return::{Report, take_all, taken_table};
use super::routes::Route;
use crate::args::{DrillArgs, Global};
use crate::commands::explain::Teller;
use crate::output::Output;

/// Runs the command.
pub async fn run(global: &Global, args: DrillArgs) -> anyhow::Result<()> {
    let output = Output::new(global.output);
    let all = [Route::Healthy, Route::CatchUp, Route::Delta];
    let (runs, result) = take_all(global, &args, &all, |run, taken| {
        output.note(&format!("\nRun {run} of {}, {}", args.runs, taken.expected.words()))?;
        let start = taken.trace.first().map_or(0, |d| d.time_ms);
        let mut teller = Teller::new(start, taken.names.clone());
        for line in taken.trace.iter().filter_map(|d| teller.tell(d)) {
            output.note(&line)?;
        }
        if taken.trace.is_empty() {
            output.note("  nothing had to be decided")?;
        }
        match &taken.fault {
            Some(fault) => output.note(&format!("  WRONG: {fault}")),
            None => output.note("  as expected"),
        }
    })
    .await;
    let ok = result.is_ok() && runs.iter().all(|t| t.fault.is_none());
    let report = Report { ok, runs };
    output.show(&report, |report| format!("\n{}", taken_table(&report.runs)))?;
    result?;
    if !report.ok {
        bail!("a route was not taken as expected; the report says which");
    }
    Ok(())
}
