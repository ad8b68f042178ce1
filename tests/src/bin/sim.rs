//! Runs seeds of the simulator.
//!
//! `cargo run --release -p sbk-tests --bin sim -- --seeds 0..1000 --threads 4`

use std::cell::Cell;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;
use sbk_tests::sim::{
    Counts, FAMILIES, Family, REGRESSIONS, Summary, Violation, family, remember, run, story,
};

/// Runs seeds of the simulated cluster; each runs the same every time.
///
/// Exits with 0 if nothing was found, with 1 at the first violation (or a mark that was not
/// reached, with --marks), with 2 if it was asked for something that there is not.
#[derive(Parser)]
#[command(after_help = "Examples:
  sim --seeds 0..2000 --threads 4 --marks
  sim --family disks --seeds 17..18 --trace")]
struct Args {
    /// The seeds, the last one excluded.
    #[arg(long, default_value = "0..1000", value_parser = parse_seeds)]
    seeds: Range<u64>,
    /// Which faults come together; `list` shows them all.
    #[arg(long, default_value = "swarm")]
    family: String,
    /// How many seeds run at a time.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// At a violation, tell what led to it.
    #[arg(long)]
    trace: bool,
    /// Fail if a mark was not reached.
    #[arg(long)]
    marks: bool,
    /// First run every seed that once found something.
    #[arg(long)]
    regressions: bool,
}

fn parse_seeds(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("a range, as in 0..1000")?;
    let number = |text: &str| text.parse().map_err(|e| format!("{text:?}: {e}"));
    Ok(number(from)?..number(to)?)
}

thread_local! {
    static RUNNING: Cell<(&'static str, u64)> = const { Cell::new(("", 0)) };
}

/// Tells of a violation, and how to see it again.
fn tell_violations() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let (name, seed) = RUNNING.get();
        story().iter().for_each(|line| eprintln!("{line}"));
        hook(info);
        let found = Violation::of(info);
        eprintln!(
            "\nviolation: family {name}, seed {seed}, {} after {} ms",
            found.checker, found.time
        );
        eprintln!(
            "again: cargo run --release -p sbk-tests --bin sim -- --family {name} --seeds {seed}..{} \
             --trace",
            seed + 1
        );
        std::process::exit(1);
    }));
}

fn run_one(family: Family, seed: u64) -> Summary {
    RUNNING.set((family.name, seed));
    run(seed, (family.faults)(seed))
}

fn show(title: &str, counts: &Counts) {
    println!("{title}:");
    for (word, count) in counts.iter() {
        println!("  {count:>10}  {word}");
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let Some(family) = family(&args.family) else {
        let names: Vec<_> = FAMILIES.iter().map(|family| family.name).collect();
        eprintln!("there is no family {:?}; there are {}", args.family, names.join(", "));
        return ExitCode::from(2);
    };
    tell_violations();
    let started = Instant::now();
    let (seeds, trace) = (args.seeds.clone(), args.trace);
    let old = if args.regressions { REGRESSIONS } else { &[] };
    let jobs = old.len() as u64 + seeds.end.saturating_sub(seeds.start);
    let next = AtomicU64::new(0);
    let work = || {
        if trace {
            remember();
        }
        let mut total = Summary::default();
        loop {
            let job = next.fetch_add(1, Ordering::Relaxed);
            if job >= jobs {
                return total;
            }
            total.add(&match old.get(job as usize) {
                Some((name, seed)) => {
                    run_one(sbk_tests::sim::family(name).expect("a family"), *seed)
                }
                None => run_one(family, seeds.start + job - old.len() as u64),
            });
        }
    };
    let total = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..args.threads.max(1)).map(|_| scope.spawn(work)).collect();
        let mut total = Summary::default();
        for thread in threads {
            total.add(&thread.join().expect("a violation ends the process"));
        }
        total
    });
    report(&args, &total, jobs, started.elapsed().as_secs_f64())
}

fn report(args: &Args, total: &Summary, jobs: u64, seconds: f64) -> ExitCode {
    show("faults", &total.injected);
    show("marks", &total.marks);
    println!(
        "{} writes acknowledged, {} reads answered, {} requests given up, {} epochs, {} checkpoints",
        total.acknowledged, total.reads, total.given_up, total.epochs, total.checkpoints
    );
    println!("highest: {:?}", total.heights);
    let hours = total.simulated_ms as f64 / 3_600_000.0;
    println!(
        "{}: {jobs} seeds in {seconds:.1} s, {:.1} a second, {:.0} simulated hours per hour; no \
         violation",
        args.family,
        jobs as f64 / seconds,
        hours * 3600.0 / seconds
    );
    let missing: Vec<_> = total.marks.iter().filter(|(_, n)| *n == 0).map(|(w, _)| w).collect();
    if args.marks && !missing.is_empty() {
        eprintln!("never reached: {}", missing.join(", "));
        return ExitCode::from(1);
    }
    ExitCode::SUCCESS
}
