//! Puts known bugs back, one at a time, and looks for the first seed of the simulator, crash of the
//! store or small world that finds each.
//!
//! `cargo run --release -p sbk-tests --features bugs --bin bites`

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use clap::Parser;
use sbk_engine::bugs::Bug;
use sbk_tests::bites::{Finding, Place, Step, look, plan, table};

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
    #[arg(long, default_value_t = 600)]
    until: u64,
    /// How many runs are under way at a time.
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

/// What searches share.
struct Search {
    until: u64,
    threads: usize,
    /// Places that showed nothing without a bug.
    clean: Mutex<BTreeSet<(String, String)>>,
}

/// The family and what was found in it.
type Found = (String, Finding);

impl Search {
    /// Hands all `items` to `work`, on so many threads, and gathers what it made of them.
    fn share<T: Sync, R: Send>(&self, items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..self.threads {
                scope.spawn(|| {
                    while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let result = work(item);
                        done.lock().expect("no thread panics").push(result);
                    }
                });
            }
        });
        done.into_inner().expect("no thread panics")
    }

    /// What the bug does at the place where it was found before.
    fn at_place(&self, bug: Bug, place: &Place) -> Result<Option<Found>, String> {
        match find(Some(bug), &Step::only(place))? {
            Some(finding) => self.alone(place.family.clone(), finding).map(Some),
            None => Ok(None),
        }
    }

    /// Where the bug is found first, whatever the number of threads.
    fn anywhere(&self, bug: Bug, known: Option<&Place>) -> Result<Option<Found>, String> {
        let steps = plan(self.until, known);
        let steps: Vec<_> = steps.iter().enumerate().collect();
        let first = Mutex::new(None::<(usize, Finding)>);
        let results = self.share(&steps, |(number, step)| {
            let found = || first.lock().expect("no thread panics");
            if found().as_ref().is_some_and(|(before, _)| before < number) {
                return Ok(());
            }
            if let Some(finding) = find(Some(bug), step)? {
                let mut found = found();
                if found.as_ref().is_none_or(|(before, _)| before > number) {
                    *found = Some((*number, finding));
                }
            }
            Ok(())
        });
        results.into_iter().collect::<Result<(), String>>()?;
        match first.into_inner().expect("no thread panics") {
            Some((number, finding)) => {
                self.alone(steps[number].1.family.clone(), finding).map(Some)
            }
            None => Ok(None),
        }
    }

    /// The place of a finding must show nothing without the bug.
    fn alone(&self, family: String, finding: Finding) -> Result<Found, String> {
        let place = Place { family, at: finding.at.clone() };
        let key = (place.family.clone(), place.at.clone());
        let clean = || self.clean.lock().expect("no thread panics");
        if !clean().contains(&key) {
            if let Some(without) = find(None, &Step::only(&place))? {
                let text = without.violation.text;
                return Err(format!("{place:?} fails without any bug put back: {text}"));
            }
            clean().insert(key);
        }
        Ok((place.family, finding))
    }
}

/// The rows of what was found.
struct Rows<'a> {
    recorded: &'a BTreeMap<String, Place>,
    /// Where they are written as soon as they are known, if they are.
    path: Option<PathBuf>,
    found: Mutex<BTreeMap<Bug, Found>>,
}

impl Rows<'_> {
    /// Tells of a bug that was found, or of one for which nothing is left to try. Whether it was found.
    fn tell(
        &self,
        bug: Bug,
        result: Result<Option<Found>, String>,
        began: Instant,
    ) -> Result<bool, String> {
        let took = began.elapsed().as_secs_f64();
        let (family, finding) = match result {
            Ok(Some(found)) => found,
            Ok(None) => {
                println!("{:28} NOT FOUND ({took:.1} s)", bug.name());
                self.write(bug)?;
                return Ok(false);
            }
            Err(error) => {
                println!("{:28} {error} ({took:.1} s)", bug.name());
                return Ok(false);
            }
        };
        let (at, after) = (&finding.at, &finding.after);
        let line: String = finding.violation.text.replace('\n', " ").chars().take(110).collect();
        println!("{:28} {family} {at} after {after} ({took:.1} s): {line}", bug.name());
        let known = Place { family: family.clone(), at: at.clone() };
        if self.recorded.get(bug.name()).is_some_and(|place| *place != known) {
            println!("{:28} not where docs/testing.md says: --write corrects it", bug.name());
        }
        self.found.lock().expect("no thread panics").insert(bug, (family, finding));
        self.write(bug)?;
        Ok(true)
    }

    /// Rows of other bugs stay, so a search that is ended keeps what it has found.
    fn write(&self, bug: Bug) -> Result<(), String> {
        let Some(path) = &self.path else { return Ok(()) };
        let found = self.found.lock().expect("no thread panics");
        let page = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let old = table::split(&page)?.1;
        let page = table::replace(&page, &table::render(old, &[bug], &found))?;
        std::fs::write(path, page).map_err(|e| format!("{}: {e}", path.display()))
    }
}

fn search_all(args: &Args) -> Result<bool, String> {
    let began = Instant::now();
    let path = table::page();
    let page = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let recorded = table::read(table::split(&page)?.1)?;
    let gaps = table::gaps(table::split(&page)?.1);
    let known_gap = |bug: &Bug| !args.afresh && gaps.iter().any(|name| name == bug.name());
    let bugs: Vec<Bug> = match args.bugs.is_empty() {
        true => Bug::ALL.iter().copied().filter(|bug| !known_gap(bug)).collect(),
        false => args.bugs.clone(),
    };
    let (threads, clean) = (args.threads.max(1), Mutex::new(BTreeSet::new()));
    let search = Search { until: args.until, threads, clean };
    let path = args.write.then_some(path);
    let rows = Rows { recorded: &recorded, path, found: Mutex::new(BTreeMap::new()) };
    let known = |bug: &Bug| recorded.get(bug.name()).filter(|_| !args.afresh);

    // Each bug at its place, side by side; then those that are not there any more, one by one, each
    // searched by all threads.
    let (there, lost): (Vec<_>, Vec<_>) =
        bugs.iter().copied().partition(|bug| known(bug).is_some());
    let tried = search.share(&there, |bug| {
        let began = Instant::now();
        let Some(place) = known(bug) else { return Ok((*bug, None)) };
        match search.at_place(*bug, place) {
            Ok(None) => Ok((*bug, None)),
            result => rows.tell(*bug, result, began).map(|found| (*bug, Some(found))),
        }
    });
    let tried = tried.into_iter().collect::<Result<Vec<_>, String>>()?;
    let mut all = tried.iter().all(|(_, found)| *found != Some(false));
    let mut missed: Vec<_> =
        tried.iter().filter(|(_, f)| f.is_none()).map(|(bug, _)| *bug).collect();
    missed.extend(lost);
    // What was easy to find comes first, what never was found last.
    missed.sort_by_key(|bug| (known(bug).map_or(u64::MAX, Place::seed), *bug));
    if !missed.is_empty() {
        println!(
            "{} of {} not where docs/testing.md says, or nowhere yet",
            missed.len(),
            bugs.len()
        );
    }
    for bug in missed {
        let began = Instant::now();
        all &= rows.tell(bug, search.anywhere(bug, known(&bug)), began)?;
    }
    let found = rows.found.lock().expect("no thread panics").len();
    println!("{found} of {} bugs found in {:.0} s", bugs.len(), began.elapsed().as_secs_f64());
    Ok(all)
}
