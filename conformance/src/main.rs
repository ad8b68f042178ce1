//! Replays conformance cases and says which fail.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use sbk_conformance::{Case, Coverage, load, run};

/// Replays cases for the recovery engine.
#[derive(Debug, Parser)]
#[command(after_help = "Examples:
  cargo run -p sbk-conformance
  cargo run -p sbk-conformance -- mine.yaml more-cases/
  cargo run -p sbk-conformance -- --record draft.yaml > cases/mine.yaml

docs/conformance.md describes how a case is written.")]
struct Args {
    /// Files, and directories that are searched for *.yaml; the repository's own cases if none.
    paths: Vec<PathBuf>,
    /// Print how often each event, command, ignored reason and failure kind occurred, and fail if
    /// one never did. Always checked for the repository's own cases.
    #[arg(long)]
    coverage: bool,
    /// Print the cases with what the engine does in place of what they expect. Read it before you
    /// keep it: it says what is, not what should be.
    #[arg(long, conflicts_with = "coverage")]
    record: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let paths = if args.paths.is_empty() { vec![own] } else { args.paths.clone() };
    let mut cases = Vec::new();
    for path in &paths {
        cases.extend(load(path)?);
    }
    if args.record {
        cases.iter().for_each(|(_, case)| print!("{}", case.recorded().to_yaml()));
        return Ok(ExitCode::SUCCESS);
    }
    let complete = args.coverage || args.paths.is_empty();
    Ok(if replay(&cases, args.coverage, complete) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether all cases passed and, if `complete` asks for it, nothing is missing from them.
fn replay(cases: &[(PathBuf, Case)], table: bool, complete: bool) -> bool {
    let mut coverage = Coverage::default();
    let (mut steps, mut failed) = (0, 0);
    for (path, case) in cases {
        steps += case.steps.len();
        if let Err(failure) = run(case, &mut coverage) {
            failed += 1;
            println!("FAIL {}: {}", path.display(), case.name);
            failure.to_string().lines().for_each(|line| println!("  {line}"));
        }
    }
    if table {
        print!("{coverage}");
    }
    let missing = if complete { coverage.missing() } else { Vec::new() };
    if !missing.is_empty() {
        println!("no case that passed shows: {}", missing.join(", "));
    }
    println!(
        "{} cases, {steps} steps: {} passed, {failed} failed",
        cases.len(),
        cases.len() - failed
    );
    failed == 0 && missing.is_empty()
}
