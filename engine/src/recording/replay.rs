//! Takes a recorded run again.

use std::fmt;

use super::{Outcome, Recording, Step};
use crate::replication::Replica;

/// The first step of a run that gave something else than was recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The step as it was recorded.
    pub step: Step,
    /// What is different.
    pub found: Found,
}

/// What a step gave that was recorded otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Another verdict or other outputs.
    Outcome(Outcome),
    /// An outcome, where the recorded run ended in this input.
    Survived(Outcome),
}

/// A run that is taken again, step by step.
#[derive(Debug)]
pub struct Replay<'a> {
    replica: Replica,
    steps: std::slice::Iter<'a, Step>,
}

impl<'a> Replay<'a> {
    /// A run from its beginning.
    pub fn of(recording: &'a Recording) -> Self {
        Self { replica: recording.state.clone(), steps: recording.steps.iter() }
    }

    /// The step that is next.
    pub fn upcoming(&self) -> Option<&'a Step> {
        self.steps.as_slice().first()
    }

    /// Takes the next step; `None` at the end.
    ///
    /// # Errors
    /// What is different from what was recorded.
    ///
    /// # Panics
    /// If the engine breaks one of its invariants, as it may have done in the recorded run.
    pub fn take(&mut self) -> Option<Result<(), Box<Difference>>> {
        let step = self.steps.next()?;
        let (verdict, outputs) = self.replica.step(step.at, step.input.clone());
        let outcome = Outcome { verdict, outputs };
        let found = match &step.outcome {
            Some(recorded) if *recorded == outcome => return Some(Ok(())),
            Some(_) => Found::Outcome(outcome),
            None => Found::Survived(outcome),
        };
        Some(Err(Box::new(Difference { step: step.clone(), found })))
    }
}

/// Takes a recorded run again, to its end or the first difference. Returns how many steps gave what
/// was recorded.
///
/// # Errors
/// The first difference.
///
/// # Panics
/// As [`Replay::take`].
pub fn replay(recording: &Recording) -> Result<usize, Box<Difference>> {
    let mut replay = Replay::of(recording);
    let mut agreed = 0;
    while let Some(taken) = replay.take() {
        taken?;
        agreed += 1;
    }
    Ok(agreed)
}

impl fmt::Display for Difference {
    /// The input, and line by line what was recorded (`-`) and what was found (`+`).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Step { number, at, input, outcome } = &self.step;
        write!(f, "step {number}, at {at} ms: {input:?}")?;
        let (Found::Outcome(found) | Found::Survived(found)) = &self.found;
        let Some(recorded) = outcome else {
            write!(f, "\n- the recorded run ended in this input: an invariant was broken")?;
            return lines(found).iter().try_for_each(|line| write!(f, "\n+ {line}"));
        };
        let (recorded, found) = (lines(recorded), lines(found));
        for index in 0..recorded.len().max(found.len()) {
            match (recorded.get(index), found.get(index)) {
                (Some(old), Some(new)) if old == new => write!(f, "\n  {old}")?,
                (old, new) => {
                    old.map_or(Ok(()), |old| write!(f, "\n- {old}"))?;
                    new.map_or(Ok(()), |new| write!(f, "\n+ {new}"))?;
                }
            }
        }
        Ok(())
    }
}

fn lines(outcome: &Outcome) -> Vec<String> {
    let outputs = outcome.outputs.iter().map(|output| format!("{output:?}"));
    std::iter::once(format!("{:?}", outcome.verdict)).chain(outputs).collect()
}
