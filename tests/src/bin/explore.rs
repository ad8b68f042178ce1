//! Explores small worlds to the end.
//!
//! `cargo run --release -p sbk-tests --bin explore -- --world healthy`

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use sbk_tests::explore::{Search, Spec, WORLDS, world};

/// Explores every state that small worlds of three replicas can come to.
#[derive(Parser)]
#[command(after_help = "Example: explore --world healthy --threads 2")]
struct Args {
    /// Which world; all but the long ones if none is given.
    #[arg(long)]
    world: Vec<String>,
    /// The long ones too.
    #[arg(long)]
    long: bool,
    /// How many threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Give up beyond so many states.
    #[arg(long, default_value_t = 50_000_000)]
    limit: u64,
    /// Put a known bug back first, by its name in `sbk_engine::bugs`.
    #[cfg(feature = "bugs")]
    #[arg(long)]
    bug: Option<String>,
    /// Compare what is found with the table in this file.
    #[arg(long, value_name = "FILE")]
    check: Option<std::path::PathBuf>,
    /// Tell of each depth.
    #[arg(long)]
    verbose: bool,
}

fn explore(spec: &'static Spec, args: &Args) -> bool {
    let search = Search::new(spec, args.threads, args.limit).verbose(args.verbose);
    #[cfg(feature = "bugs")]
    let search = match &args.bug {
        None => search,
        Some(name) => match sbk_engine::bugs::Bug::ALL.iter().find(|bug| bug.name() == name) {
            Some(bug) => search.with_bug(*bug),
            None => {
                eprintln!("there is no bug {name:?}");
                return false;
            }
        },
    };
    let search = Arc::new(search);
    let shown = search.clone();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        shown.trying().iter().for_each(|line| eprintln!("  {line}"));
        eprintln!("{info}");
    }));
    let started = Instant::now();
    let found = search.run();
    std::panic::set_hook(hook);
    let seconds = started.elapsed().as_secs_f64();
    match found {
        Ok(counts) => {
            println!("{} {seconds:.1} s |", counts.row(spec.name));
            documented(args, &counts.row(spec.name))
        }
        Err(violation) => {
            violation.run.iter().for_each(|line| eprintln!("  {line}"));
            eprintln!("{}: {}, after {seconds:.1} s", spec.name, violation.what);
            false
        }
    }
}

/// Whether the table, if there is one, says the same.
fn documented(args: &Args, row: &str) -> bool {
    let Some(path) = &args.check else { return true };
    match std::fs::read_to_string(path) {
        Ok(text) if text.lines().any(|line| line.starts_with(row)) => true,
        Ok(_) => {
            eprintln!("{} says otherwise, or nothing: put the row above there", path.display());
            false
        }
        Err(e) => {
            eprintln!("{}: {e}", path.display());
            false
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut specs: Vec<&'static Spec> = Vec::new();
    for name in &args.world {
        let Some(spec) = world(name) else {
            let known: Vec<_> = WORLDS.iter().map(|spec| spec.name).collect();
            eprintln!("there is no world {name:?}; there are: {}", known.join(", "));
            return ExitCode::from(2);
        };
        specs.push(spec);
    }
    if specs.is_empty() {
        specs.extend(WORLDS.iter().filter(|spec| args.long || !spec.long));
    }
    println!("| world | states | steps | depth | ends | time |");
    println!("| --- | --- | --- | --- | --- | --- |");
    let fine = specs.into_iter().filter(|spec| !explore(spec, &args)).count() == 0;
    if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
