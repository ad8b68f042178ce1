//! What the recovery engine was told in a recorded run.

use super::Recording;
use crate::recovery::{Command, Event, Params, Verdict, VolumeState};
use crate::replication::trace::Observed;
use crate::types::{Epoch, Millis};

/// What one primary's recovery engine was told in one uninterrupted tenure, as far as it was
/// recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenure {
    /// The epoch in force when it began, or when the recording did.
    pub epoch: Epoch,
    /// The times and budgets.
    pub params: Params,
    /// What was known already; `None` if the tenure began within the recording.
    pub state: Option<VolumeState>,
    /// The events in order, each with what it gave.
    pub steps: Vec<(Millis, Event, Verdict, Vec<Command>)>,
}

/// The tenures of a recorded run, in order; those without an event are left out. Takes the run
/// again, without comparing it.
///
/// # Panics
/// If the engine breaks an invariant before the last step; a last step in which the recorded run
/// ended is not taken.
pub fn tenures(recording: &Recording) -> Vec<Tenure> {
    let mut replica = recording.state.clone();
    let mut tenures: Vec<Tenure> = Vec::new();
    if let Some((epoch, state)) = replica.recovery() {
        let (params, state) = (state.params().clone(), Some(state.clone()));
        tenures.push(Tenure { epoch, params, state, steps: Vec::new() });
    }
    for step in recording.steps.iter().filter(|step| step.outcome.is_some()) {
        for observed in replica.step_observed(step.at, step.input.clone()) {
            match observed {
                Observed::Began { epoch, params } => {
                    tenures.push(Tenure { epoch, params, state: None, steps: Vec::new() });
                }
                Observed::Recovery { at, event, verdict, commands } => {
                    let tenure = tenures.last_mut().expect("a primary's tenure began somewhere");
                    tenure.steps.push((at, event, verdict, commands));
                }
            }
        }
    }
    tenures.retain(|tenure| !tenure.steps.is_empty());
    tenures
}
