//! Puts known bugs back, one at a time, and looks for the first seed of the simulator, crash of the
//! store or small world that finds each.
//!
//! `cargo run --release -p sbk-tests --features bugs --bin bites`

use std::collections::BTreeMap;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use clap::Parser;
use sbk_engine::bugs::Bug;
use sbk_tests::bites::{Finding, Place, Step, look, plan, table};
use sbk_tests::sim::Violation;

/// Puts known bugs back, one at a time, and looks for what finds each first. Fails if one is not
/// found.
#[derive(Parser)]
#[command(after_help = "Example: bites SkipCut SkipLeaseWait --threads 4")]
struct Args {
    /// Only these bugs; if none is named, all but those of which docs/testing.md says that
    /// nothing finds them.
    #[arg(value_parser = parse_bug)]
    bugs: Vec<Bug>,
    /// Write what was found into docs/testing.md; rows of other bugs stay.
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
    /// Looks through seeds or a world in this process and tells of the first violation: what the program
    /// starts itself with, for a violation ends the process. `none` puts no bug back.
    #[arg(long, hide = true, num_args = 3, value_names = ["BUG", "FINDER", "AT"])]
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

/// Looks through a step. A violation is printed, and ends the process.
fn work(worker: &[String]) -> Result<(), String> {
    let [bug, family, at] = worker else { return Err("--worker takes three".to_owned()) };
    let bug = match bug.as_str() {
        "none" => None,
        name => Some(parse_bug(name)?),
    };
    look(&Step { family: family.clone(), at: at.clone() }, bug, |finding| {
        println!("{}", serde_json::to_string(finding).expect("plain data"));
        std::process::exit(0);
    })
}

/// The first violation in a step, if there is one, by a process of its own.
fn find(bug: Option<Bug>, step: &Step) -> Result<Option<Finding>, String> {
    let name = bug.map_or("none", Bug::name);
    let program = std::env::current_exe().map_err(|e| format!("this program's path: {e}"))?;
    let output = Command::new(program)
        .args(["--worker", name, &step.family, &step.at])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|e| format!("this program again: {e}"))?;
    if !output.status.success() {
        return Err(format!("{name} {step:?}: the run ended with {}", output.status));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().next() {
        None => Ok(None),
        Some(line) => serde_json::from_str(line).map(Some).map_err(|e| format!("{line}: {e}")),
    }
}

/// Where the bug is found first. The same place must show nothing without it.
fn search(
    bug: Bug,
    known: Option<&Place>,
    until: u64,
) -> Result<Option<(String, Finding)>, String> {
    let recorded = known.map(Step::only);
    for step in recorded.into_iter().chain(plan(until)) {
        let Some(finding) = find(Some(bug), &step)? else { continue };
        let place = Place { family: step.family.clone(), at: finding.at.clone() };
        if let Some(without) = find(None, &Step::only(&place))? {
            let text = without.violation.text;
            return Err(format!("{place:?} fails without any bug put back: {text}"));
        }
        return Ok(Some((step.family, finding)));
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
            let Violation { text, .. } = &finding.violation;
            let (line, at, after) = (text.replace('\n', " "), &finding.at, &finding.after);
            let line: String = line.chars().take(110).collect();
            println!("{:28} {family} {at} after {after}: {line}", bug.name());
            let known = Place { family: family.clone(), at: at.clone() };
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
    if args.write {
        let old = table::split(&page)?.1;
        let page = table::replace(&page, &table::render(old, &bugs, &found))?;
        std::fs::write(&path, page).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(all.into_iter().all(|all| all))
}
