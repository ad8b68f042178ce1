//! What looks for a bug, in which order.

use std::ops::Range;

use super::{FAMILIES, Finding, Place, ROUNDS, device, store};
use crate::explore::{Search, WORLDS, world};
use crate::sim::{Violation, family, run};

/// The finders of `store` and `device`, and how many seeds of each are tried.
const STORE: &[&str] =
    &["store-kill", "store-power", "encrypted-kill", "put-back", "device-power", "device-faults"];
const STORE_SEEDS: u64 = 12;
/// The finder that explores small worlds, and how many states of one it goes through.
const EXPLORE: &str = "explore";
const STATES: u64 = 3_000_000;

/// How many seeds a step takes, of the simulator and of the store, and how many of the family in which
/// a bug was found before come first.
const CHUNK: u64 = 25;
const STORE_CHUNK: u64 = 3;
const SEEDS_BEFORE: u64 = 300;
/// After which round the worlds come.
const WORLDS_AFTER: usize = 2;

/// A part of a search: all seeds of a range, or one world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The family's or the finder's name.
    pub family: String,
    /// Seeds `from..to`, or a world.
    pub at: String,
}

impl Step {
    fn seeds(family: &str, seeds: &Range<u64>) -> Self {
        Self { family: family.to_owned(), at: format!("{}..{}", seeds.start, seeds.end) }
    }

    /// The place of a finding alone.
    pub fn only(place: &Place) -> Self {
        let at = match place.at.parse::<u64>() {
            Ok(seed) => format!("{seed}..{}", seed + 1),
            Err(_) => place.at.clone(),
        };
        Self { family: place.family.clone(), at }
    }
}

/// The whole search, in steps small enough that threads share them: the family where the bug was found
/// before, the first seeds of each family, the store, the later seeds up to `until`, and between
/// them the worlds, which take longest.
pub fn plan(until: u64, before: Option<&Place>) -> Vec<Step> {
    if until == 0 {
        return Vec::new();
    }
    let starts = std::iter::once(0).chain(ROUNDS.iter().copied());
    let rounds = starts.zip(ROUNDS.iter().copied()).map(|(from, to)| from..to.min(until));
    let mut steps = Vec::new();
    if let Some(place) = before.filter(|place| FAMILIES.contains(&place.family.as_str())) {
        // One that was rare there is looked for as far as that again, whatever the bound for the others.
        let upto = until.min(SEEDS_BEFORE).max(place.seed() * 2);
        steps.extend(chunks(&place.family, 0..upto, CHUNK));
    }
    for (number, round) in rounds.filter(|round| !round.is_empty()).enumerate() {
        steps.extend(FAMILIES.iter().flat_map(|name| chunks(name, round.clone(), CHUNK)));
        if number == 0 {
            steps.extend(STORE.iter().flat_map(|name| chunks(name, 0..STORE_SEEDS, STORE_CHUNK)));
        }
        if number == WORLDS_AFTER {
            let worlds = WORLDS.iter().filter(|spec| !spec.long);
            let explore = |name: &str| Step { family: EXPLORE.to_owned(), at: name.to_owned() };
            steps.extend(worlds.map(|spec| explore(spec.name)));
        }
    }
    steps
}

fn chunks(family: &str, seeds: Range<u64>, size: u64) -> Vec<Step> {
    let starts = (seeds.start..seeds.end).step_by(size as usize);
    starts.map(|from| Step::seeds(family, &(from..seeds.end.min(from + size)))).collect()
}

/// Looks through a step; `found` is told of the first violation, and ends the process. `put_back` says
/// how the bug comes into a thread.
///
/// # Errors
/// If there is no such finder, seed or world.
pub fn look(
    step: &Step,
    bug: Option<sbk_engine::bugs::Bug>,
    found: fn(&Finding) -> !,
) -> Result<(), String> {
    if step.family == EXPLORE {
        return explore(&step.at, bug, found);
    }
    let bad = |text: &str| format!("{text}: seeds are a range");
    let (from, to) = step.at.split_once("..").ok_or_else(|| bad(&step.at))?;
    let number = |text: &str| text.parse::<u64>().map_err(|_| bad(text));
    let _guard = bug.map(sbk_engine::bugs::put_back);
    for seed in number(from)?..number(to)? {
        std::panic::set_hook(Box::new(move |info| {
            let violation = Violation::of(info);
            let after = format!("{:.1} s", violation.time as f64 / 1000.0);
            found(&Finding { at: seed.to_string(), after, violation });
        }));
        if let Some(result) =
            store::run(&step.family, seed).or_else(|| device::run(&step.family, seed))
        {
            if let Err((operation, text)) = result {
                let (file, after) = match &step.family[..] {
                    "put-back" => ("past.rs", "a moment put back".to_owned()),
                    _ => ("model.rs", format!("{operation} I/Os")),
                };
                let (checker, file) = ("store".to_owned(), file.to_owned());
                let violation = Violation { checker, file, time: 0, text };
                found(&Finding { at: seed.to_string(), after, violation });
            }
            continue;
        }
        let family = family(&step.family).ok_or_else(|| format!("no family {}", step.family))?;
        run(seed, (family.faults)(seed));
    }
    Ok(())
}

fn explore(
    name: &str,
    bug: Option<sbk_engine::bugs::Bug>,
    found: fn(&Finding) -> !,
) -> Result<(), String> {
    let spec = world(name).ok_or_else(|| format!("no world {name}"))?;
    let search = Search::new(spec, 2, STATES);
    let search = bug.map(|bug| search.clone().with_bug(bug)).unwrap_or(search);
    // Where panics abort, the hook is all that sees them.
    let shown = search.clone();
    std::panic::set_hook(Box::new(move |info| {
        let violation = Violation { time: 0, ..Violation::of(info) };
        let after = format!("{} steps", shown.trying().len());
        found(&Finding { at: name_of(spec), after, violation });
    }));
    match search.run() {
        Ok(_) => Ok(()),
        // Too many states: no rule was found broken.
        Err(violation) if violation.run.is_empty() => Ok(()),
        Err(violation) => {
            let (checker, file) = ("I8".to_owned(), "search.rs".to_owned());
            let after = format!("{} steps", violation.run.len());
            let violation = Violation { checker, file, time: 0, text: violation.what };
            found(&Finding { at: name_of(spec), after, violation });
        }
    }
}

fn name_of(spec: &crate::explore::Spec) -> String {
    spec.name.to_owned()
}
