//! Replays a case.

use std::collections::BTreeMap;
use std::fmt;

use sbk_engine::recovery::{VolumeState, step};
use sbk_engine::types::ReplicaId;
use serde::Serialize;
use serde_json::Value;

use crate::case::{Case, Expected, written};
use crate::flow::flow;
use crate::{Coverage, names};

/// The first step of a case that gave something else than it must.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Failure {
    /// Which step, from 1.
    pub step: usize,
    /// Its event, on one line.
    pub event: String,
    /// Its note.
    pub note: Option<String>,
    /// What differs.
    pub mismatch: Mismatch,
}

/// What differs from what a case says. All texts are YAML on one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// The case doesn't say what it expects.
    Draft,
    /// Verdict or commands.
    Outcome {
        /// What the case says, a line for the verdict and one for each command.
        expected: Vec<String>,
        /// What the engine did.
        got: Vec<String>,
    },
    /// What an operator sees.
    View {
        /// Of which replica.
        replica: String,
        /// What the case says.
        expected: String,
        /// The whole view.
        got: String,
    },
}

/// Replays a case on the real engine. Adds what occurred to `coverage`, if all of it was right.
///
/// Panics if the engine finds its own state contradictory, which no input may bring about.
pub fn run(case: &Case, coverage: &mut Coverage) -> Result<(), Box<Failure>> {
    let mut state = case.start();
    let mut seen = Coverage::default();
    for (index, expected) in case.steps.iter().enumerate() {
        let failed = |mismatch| {
            let event = flow(&written(&expected.event));
            Box::new(Failure { step: index + 1, event, note: expected.note.clone(), mismatch })
        };
        let Some(wanted) = &expected.expected else { return Err(failed(Mismatch::Draft)) };
        let (verdict, commands) = step(&mut state, expected.at, expected.event.clone());
        let got = Expected { verdict, commands };
        if got != *wanted {
            let (expected, got) = (lines(wanted), lines(&got));
            return Err(failed(Mismatch::Outcome { expected, got }));
        }
        check_views(&state, &expected.view).map_err(failed)?;
        seen.note(&expected.event, &got);
    }
    coverage.add(&seen);
    Ok(())
}

fn lines(outcome: &Expected) -> Vec<String> {
    let verdict = format!("verdict: {}", flow(&written(&outcome.verdict)));
    let commands = outcome.commands.iter().map(|command| format!("- {}", flow(&written(command))));
    std::iter::once(verdict).chain(commands).collect()
}

fn check_views(state: &VolumeState, views: &BTreeMap<ReplicaId, Value>) -> Result<(), Mismatch> {
    for (replica, wanted) in views {
        let seen = json(&state.view(*replica));
        let same = match (wanted, &seen) {
            (Value::Object(wanted), Value::Object(seen)) => {
                wanted.iter().all(|(key, value)| seen.get(key) == Some(value))
            }
            (wanted, seen) => wanted == seen,
        };
        if !same {
            return Err(Mismatch::View {
                replica: names::short(*replica),
                expected: flow(&names::shorten(wanted.clone())),
                got: flow(&names::shorten(seen)),
            });
        }
    }
    Ok(())
}

fn json<T: Serialize>(value: &T) -> Value {
    serde_json::to_value(value).expect("the engine's types are plain data")
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "step {}: {}", self.step, self.event)?;
        if let Some(note) = &self.note {
            writeln!(f, "  ({note})")?;
        }
        match &self.mismatch {
            Mismatch::Draft => {
                write!(f, "  says neither verdict nor commands: write them, or use --record")
            }
            Mismatch::Outcome { expected, got } => {
                write!(f, "  - expected, + got")?;
                for (sign, line) in diff(expected, got) {
                    write!(f, "\n  {sign} {line}")?;
                }
                Ok(())
            }
            Mismatch::View { replica, expected, got } => {
                write!(f, "  view of {replica}\n  - {expected}\n  + {got}")
            }
        }
    }
}

/// A line diff by the longest common subsequence; a step has a handful of lines.
fn diff<'a>(old: &'a [String], new: &'a [String]) -> Vec<(char, &'a str)> {
    let mut common = vec![vec![0usize; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] = if old[i] == new[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j, mut lines) = (0, 0, Vec::new());
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            lines.push((' ', old[i].as_str()));
            (i, j) = (i + 1, j + 1);
        } else if j == new.len() || (i < old.len() && common[i + 1][j] >= common[i][j + 1]) {
            lines.push(('-', old[i].as_str()));
            i += 1;
        } else {
            lines.push(('+', new[j].as_str()));
            j += 1;
        }
    }
    lines
}
