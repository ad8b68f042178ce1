//! The recovery engine: how the primary of a volume brings its other replicas back.

mod command;
mod event;

mod engine;

pub use command::Command;
pub use engine::{Params, ReplicaView, Verdict, VolumeState, step};
pub use event::{Event, FailureKind, TransportEpoch};
