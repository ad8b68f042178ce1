//! The deterministic simulator and what is built on it. Processes, documentation and deployment are
//! tested in `tests/process`.

pub mod bites;
pub mod explore;
pub mod sim;
