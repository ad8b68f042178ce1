//! `sbkctl replay`: takes recorded runs again and compares.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::panic::PanicHookInfo;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, bail};
use sbk_conformance::Case;
use sbk_engine::recording::file::{self, About};
use sbk_engine::recording::{Difference, Found, Outcome, Recording, Replay, Step, tenures};
use serde::Serialize;
use serde_json::Value;

use crate::output::Output;

/// What came of one recording.
#[derive(Clone, Debug, Serialize)]
struct Taken {
    about: About,
    /// Inputs in it, and the numbers of the first and the last.
    steps: usize,
    first: u64,
    last: u64,
    /// How many gave what was recorded, before the first difference.
    agreed: usize,
    difference: Option<Differs>,
    /// The recorded run ended in its last input, by this broken invariant, and so does this one.
    breaks: Option<String>,
}

/// The first step that gave something else.
#[derive(Clone, Debug, Serialize)]
struct Differs {
    step: u64,
    at: u64,
    input: Value,
    /// Verdict and outputs; `null` if the engine ended in the input.
    expected: Option<Outcome>,
    found: Option<Outcome>,
    /// All of it for people.
    #[serde(skip)]
    words: String,
}

/// Where a replay is, for the panic hook.
#[derive(Debug, Default)]
struct Progress {
    taken: Vec<Taken>,
    /// The recording and the step that are being taken.
    now: Option<(Taken, Step)>,
}

/// Takes the recordings in `path` again; writes the cases in them to `export`.
///
/// # Errors
/// The file is no recording, a step differs, or there is no case to export.
pub fn run(output: Output, path: &Path, export: Option<&Path>) -> anyhow::Result<()> {
    let recordings = read(path)?;
    let progress = Arc::<Mutex<Progress>>::default();
    let hooked = Arc::clone(&progress);
    // Release builds abort at a panic: what is to be said must be said in the hook.
    std::panic::set_hook(Box::new(move |panic| ended(output, &hooked, panic)));
    // One that ends in a broken invariant ends this process too: it comes last.
    let (breaking, whole): (Vec<_>, Vec<_>) =
        recordings.iter().partition(|(_, r)| r.steps.last().is_some_and(|s| s.outcome.is_none()));
    let differ = |some: &[&(About, Recording)]| {
        some.iter().filter(|(about, r)| !take(&progress, about, r)).count()
    };
    let mut different = differ(&whole);
    if let Some(export) = export.filter(|_| different == 0) {
        export_cases(output, &recordings, export)?;
    }
    different += differ(&breaking);
    let _default = std::panic::take_hook();
    let taken = std::mem::take(&mut progress.lock().unwrap_or_else(PoisonError::into_inner).taken);
    output.show(&taken, |taken| words(taken))?;
    if different > 0 {
        bail!("{different} of {} recordings differ from what this engine does", taken.len());
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Vec<(About, Recording)>> {
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let text = String::from_utf8(bytes);
    let text =
        text.with_context(|| format!("{} is no recording: it is no text", path.display()))?;
    file::read(&text).with_context(|| format!("{} can't be replayed", path.display()))
}

/// Takes one recording again. Returns whether all of it agrees.
fn take(progress: &Mutex<Progress>, about: &About, recording: &Recording) -> bool {
    let lock = || progress.lock().unwrap_or_else(PoisonError::into_inner);
    let number = |step: Option<&Step>| step.map_or(0, |step| step.number);
    let mut taken = Taken {
        about: about.clone(),
        steps: recording.steps.len(),
        first: number(recording.steps.first()),
        last: number(recording.steps.last()),
        agreed: 0,
        difference: None,
        breaks: None,
    };
    let mut replay = Replay::of(recording);
    while let Some(step) = replay.upcoming() {
        lock().now = Some((taken.clone(), step.clone()));
        match replay.take() {
            Some(Ok(())) => taken.agreed += 1,
            Some(Err(difference)) => {
                taken.difference = Some(differs(&difference));
                break;
            }
            None => break,
        }
    }
    let mut progress = lock();
    progress.now = None;
    let agrees = taken.difference.is_none();
    progress.taken.push(taken);
    agrees
}

fn differs(difference: &Difference) -> Differs {
    let Difference { step, found } = difference;
    let (Found::Outcome(outcome) | Found::Survived(outcome)) = found;
    Differs {
        step: step.number,
        at: step.at.0,
        input: json(&step.input),
        expected: step.outcome.clone(),
        found: Some(outcome.clone()),
        words: difference.to_string(),
    }
}

fn json<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).expect("the engine's types are plain data")
}

/// The engine broke an invariant. Says so and ends the process: 0 if the recorded run ended there
/// too.
fn ended(output: Output, progress: &Mutex<Progress>, panic: &PanicHookInfo<'_>) {
    let said = panic.payload_as_str().unwrap_or("a panic without words").to_owned();
    let Ok(mut progress) = progress.try_lock() else { return eprintln!("sbkctl: {said}") };
    let Some((mut taken, step)) = progress.now.take() else { return eprintln!("sbkctl: {said}") };
    let as_recorded = step.outcome.is_none();
    if as_recorded {
        taken.agreed += 1;
        taken.breaks = Some(said);
    } else {
        let words = format!(
            "step {}, at {} ms: {:?}\n- {:?}\n+ the engine breaks an invariant: {said}",
            step.number, step.at, step.input, step.outcome
        );
        let (number, at, input) = (step.number, step.at.0, json(&step.input));
        let (expected, found) = (step.outcome, None);
        taken.difference = Some(Differs { step: number, at, input, expected, found, words });
    }
    let mut all = std::mem::take(&mut progress.taken);
    all.push(taken);
    let agree = all.iter().all(|taken| taken.difference.is_none());
    if let Err(error) = output.show(&all, |taken| words(taken)) {
        eprintln!("sbkctl: {error:#}");
    }
    std::process::exit(if agree { 0 } else { 1 });
}

fn words(taken: &[Taken]) -> String {
    let mut text = String::new();
    for Taken { about, steps, first, last, agreed, difference, breaks } in taken {
        let About { volume, replica, node, why } = about;
        text.push_str(&format!(
            "volume {volume}, replica {} in its run {}, on node {node}\n  kept because: {why}\n",
            replica.id, replica.incarnation
        ));
        text.push_str(&match (difference, breaks) {
            (Some(differs), _) => format!(
                "  {agreed} of {steps} inputs ({first} to {last}) agree, then:\n  {}\n",
                differs.words.replace('\n', "\n  ")
            ),
            (None, Some(said)) => format!(
                "  all {steps} inputs ({first} to {last}) agree: the last one breaks the invariant \
                 again: {said}\n"
            ),
            (None, None) => format!(
                "  all {steps} inputs ({first} to {last}) agree: same verdicts, same outputs\n"
            ),
        });
    }
    text
}

/// Writes each primary's recovery engine as a conformance case.
fn export_cases(
    output: Output,
    recordings: &[(About, Recording)],
    path: &Path,
) -> anyhow::Result<()> {
    let mut cases = Vec::new();
    for (about, recording) in recordings {
        for tenure in tenures(recording) {
            let name = format!("replica {} as primary in epoch {}", about.replica.id, tenure.epoch);
            let why = format!(
                "Recorded: volume {}, on node {}. Kept because: {}.",
                about.volume, about.node, about.why
            );
            let file = format!("{}-epoch-{}.yaml", about.replica.id, tenure.epoch);
            cases.push((file, Case::of_tenure(name, Some(why), &tenure)));
        }
    }
    if cases.is_empty() {
        bail!(
            "there is no case in it: no replica was primary of others while it was recorded. The \
             recording of a primary has one"
        );
    }
    let files: Vec<(PathBuf, String)> = if path.is_dir() {
        cases.iter().map(|(file, case)| (path.join(file), case.to_yaml())).collect()
    } else {
        vec![(path.to_owned(), cases.iter().map(|(_, case)| case.to_yaml()).collect())]
    };
    for (path, text) in &files {
        create_new(path, text)?;
        output.note(&format!("A case for `sbk-conformance` is in {}.", path.display()))?;
    }
    Ok(())
}

/// Writes a file that is not there yet.
///
/// # Errors
/// It is, or the system refuses.
pub(super) fn create_new(path: &Path, text: &str) -> anyhow::Result<()> {
    let opened = OpenOptions::new().write(true).create_new(true).open(path);
    let written = opened.and_then(|mut file| file.write_all(text.as_bytes()));
    written.with_context(|| format!("write {}; give another name if it is there", path.display()))
}
