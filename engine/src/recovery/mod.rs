//! The recovery engine: how the primary of a volume brings its other replicas back.

mod command;
mod event;

pub use command::Command;
pub use event::{Event, FailureKind, TransportEpoch};
