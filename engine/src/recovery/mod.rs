//! The recovery engine: how the primary of a volume brings its other replicas back.
//!
//! One [`VolumeState`] per volume holds what the primary knows of each of its other replicas, and
//! [`step`] takes one [`Event`]. A step has three parts, each in a file of its own:
//!
//! 1. `admit` refuses what is stale, unknown or contradictory, with a typed [`IgnoredReason`]. A
//!    refused event changes nothing.
//! 2. `record` notes the fact. It decides nothing and commands nothing.
//! 3. `plan` looks at the whole state and emits what is missing. Each command is remembered, so it
//!    is not repeated at every step, and is issued again after a deadline for as long as no fact
//!    shows it done. So a lost command or a forgotten retry repairs itself.
//!
//! A session that runs ends only by its terminal event, however long that takes: the executor owes
//! one for every session it was told to start, and it is the one who notices a receiver that is
//! silent, or that answers and does not come on. One that it puts off until the replica has left the
//! in-sync set waits without end, for its copy may be one that can't be spared.
//!
//! Time never decides anything by itself: a deadline only makes the engine ask again, and the one
//! budget ([`Params::catch_up_budget`]) counts sessions that were reported as failed or that never
//! started, not replicas that do not answer.

mod admit;
mod command;
mod decision;
mod event;
mod invariants;
mod params;
mod plan;
mod record;
mod replica;
mod state;
mod verdict;
mod view;
mod words;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tables;
#[cfg(test)]
mod tests;

pub use command::Command;
pub use decision::{Kind, decide};
pub use event::{Event, FailureKind, TransportEpoch};
pub use params::Params;
pub use state::VolumeState;
pub use verdict::{IgnoredReason, Verdict};
pub use view::{Mode, ReplicaView, SessionView};

use crate::types::Millis;

/// Takes one event at `now` (the caller's monotonic clock, never going back between steps) and
/// returns what became of it and what there is to do, in order.
///
/// The same state, time and event give the same verdict and commands, always. Panics if the state
/// contradicts itself afterwards, which is a bug of this module.
pub fn step(state: &mut VolumeState, now: Millis, event: Event) -> (Verdict, Vec<Command>) {
    let verdict = match admit::admit(state, &event) {
        Ok(()) => {
            record::record(state, now, event);
            Verdict::Applied
        }
        Err(reason) => Verdict::Ignored(reason),
    };
    let commands = plan::plan(state, now);
    invariants::assert_invariants(state);
    (verdict, commands)
}
