//! Puts known bugs back, one at a time, and looks for the first seed of the simulator that finds
//! each.
//!
//! `cargo run --release -p sbk-tests --features bugs --bin bites`

use std::collections::BTreeMap;
use std::ops::Range;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::Parser;
use sbk_engine::bugs::{self, Bug};
use sbk_tests::bites::{FAMILIES, Finding, Place, ROUNDS, table};
use sbk_tests::sim::{Violation, family, run};

/// Puts known bugs back, one at a time, and looks for the first seed that finds each. Fails if one
/// is not found.
#[derive(Parser)]
#[command(after_help = "Example: bites SkipCut SkipLeaseWait --threads 4")]
struct Args {
    /// Only these bugs; if none is named, all but those of which docs/testing.md says that no seed
    /// finds them.
    #[arg(value_parser = parse_bug)]
    bugs: Vec<Bug>,
    /// Write what was found into docs/testing.md.
    #[arg(long)]
    write: bool,
    /// Search all bugs from the first seed on, whatever docs/testing.md says.
    #[arg(long)]
    afresh: bool,
    /// Search no seed from this one on.
    #[arg(long, default_value_t = u64::MAX)]
    until: u64,
    /// How many bugs are searched for at a time.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Runs seeds of one family in this process and tells of the first violation: what the program
    /// starts itself with, for a violation ends the process. `none` puts no bug back.
    #[arg(long, hide = true, num_args = 3, value_names = ["BUG", "FAMILY", "SEEDS"])]
    worker: Option<Vec<String>>,
}

fn parse_bug(name: &str) -> Result<Bug, String> {
    let known = Bug::ALL.iter().copied().find(|bug| bug.name() == name);
    known.ok_or_else(|| {
        let names: Vec<_> = Bug::ALL.iter().map(|bug| bug.name()).collect();
        format!("there is no such bug; there are {}", names.join(", "))
    })
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match &args.worker {
        Some(worker) => work(worker).map(|()| true),
        None => search_all(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bites: {error}");
            ExitCode::from(2)
        }
    }
}

/// Runs the seeds. A violation is printed, and ends the process.
fn work(worker: &[String]) -> Result<(), String> {
    let [bug, family_name, seeds] = worker else { return Err("--worker takes three".to_owned()) };
    let _guard = match bug.as_str() {
        "none" => None,
        name => Some(bugs::put_back(parse_bug(name)?)),
    };
    let family = family(family_name).ok_or_else(|| format!("no family {family_name}"))?;
    let (from, to) = seeds.split_once("..").ok_or("seeds are a range")?;
    let number = |text: &str| text.parse::<u64>().map_err(|e| format!("{text}: {e}"));
    for seed in number(from)?..number(to)? {
        std::panic::set_hook(Box::new(move |info| {
            let finding = Finding { seed, violation: Violation::of(info) };
            println!("{}", serde_json::to_string(&finding).expect("plain data"));
            std::process::exit(0);
        }));
        run(seed, (family.faults)(seed));
    }
    Ok(())
}

/// The first violation in the seeds of a family, if there is one, by a process of its own.
fn find(bug: Option<Bug>, family: &str, seeds: Range<u64>) -> Result<Option<Finding>, String> {
    let name = bug.map_or("none", Bug::name);
    let program = std::env::current_exe().map_err(|e| format!("this program's path: {e}"))?;
    let output = Command::new(program)
        .args(["--worker", name, family, &format!("{}..{}", seeds.start, seeds.end)])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| format!("this program again: {e}"))?;
    if !output.status.success() {
        return Err(format!("{name} {family} {seeds:?}: the run ended with {}", output.status));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().next() {
        None => Ok(None),
        Some(line) => serde_json::from_str(line).map(Some).map_err(|e| format!("{line}: {e}")),
    }
}

/// Where the bug is found first. The same seed must find nothing without it.
fn search(
    bug: Bug,
    known: Option<&Place>,
    until: u64,
) -> Result<Option<(String, Finding)>, String> {
    let recorded = known.map(|place| (place.family.as_str(), place.seed..place.seed + 1));
    let starts = std::iter::once(0).chain(ROUNDS.iter().copied());
    let rounds = starts.zip(ROUNDS.iter().copied()).map(|(from, to)| (from, to.min(until)));
    let rounds = rounds.filter(|(from, to)| from < to);
    let all = rounds.flat_map(|(from, to)| FAMILIES.iter().map(move |name| (*name, from..to)));
    for (family, seeds) in recorded.into_iter().chain(all) {
        let Some(finding) = find(Some(bug), family, seeds)? else { continue };
        let seed = finding.seed;
        if let Some(without) = find(None, family, seed..seed + 1)? {
            let text = without.violation.text;
            return Err(format!("{family} {seed} fails without any bug put back: {text}"));
        }
        return Ok(Some((family.to_owned(), finding)));
    }
    Ok(None)
}

fn search_all(args: &Args) -> Result<bool, String> {
    let path = table::page();
    let page = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let recorded = table::read(table::split(&page)?.1)?;
    let gaps = table::gaps(table::split(&page)?.1);
    let known_gap = |bug: &Bug| !args.afresh && gaps.iter().any(|name| name == bug.name());
    let bugs: Vec<Bug> = match args.bugs.is_empty() {
        true => Bug::ALL.iter().copied().filter(|bug| !known_gap(bug)).collect(),
        false => args.bugs.clone(),
    };
    let next = AtomicUsize::new(0);
    let found = Mutex::new(BTreeMap::new());
    let work = || -> Result<bool, String> {
        let mut all = true;
        while let Some(bug) = bugs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let known = recorded.get(bug.name()).filter(|_| !args.afresh);
            let Some((family, finding)) = search(*bug, known, args.until)? else {
                println!("{:28} NOT FOUND", bug.name());
                all = false;
                continue;
            };
            let Violation { time, text, .. } = &finding.violation;
            let (line, seed) = (text.replace('\n', " "), finding.seed);
            let line: String = line.chars().take(110).collect();
            println!("{:28} {family} {seed} after {time} ms: {line}", bug.name());
            let known = Place { family: family.clone(), seed };
            if recorded.get(bug.name()).is_some_and(|place| *place != known) {
                println!("{:28} not where docs/testing.md says: --write corrects it", bug.name());
            }
            found.lock().expect("no thread panics").insert(*bug, (family, finding));
        }
        Ok(all)
    };
    let all = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..args.threads.max(1)).map(|_| scope.spawn(work)).collect();
        let done = threads.into_iter().map(|thread| thread.join().expect("no thread panics"));
        done.collect::<Result<Vec<_>, _>>()
    })?;
    let found = found.into_inner().expect("no thread panics");
    println!("{} of {} bugs found", found.len(), bugs.len());
    if args.write && args.bugs.is_empty() {
        let page = table::replace(&page, &table::render_all(&found))?;
        std::fs::write(&path, page).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(all.into_iter().all(|all| all))
}
