//! Cases for the recovery engine as YAML files, and the runner that replays them.
//!
//! A case lists events with the verdict and the exact commands that each must give. The runner
//! feeds them to the real engine. `docs/conformance.md` describes the schema for whoever wants to
//! write a case; a recorded run becomes one with [`Case::record`].
//!
//! Events, commands and reasons are read and written by the engine's own serde derivations. What
//! is done here is generic over them: short names stand for ids ([`names`]), and a key that the
//! engine did not understand is an error.

mod case;
mod coverage;
mod flow;
pub mod names;
mod run;

pub use case::{Case, CaseError, Expected, Step, load, parse};
pub use coverage::Coverage;
pub use run::{Failure, Mismatch, run};
