//! The recovery engine: how the primary of a volume brings its other replicas back.

mod command;
mod engine;
mod event;
mod state;

pub use command::Command;
pub use engine::{IgnoredReason, Params, Verdict, VolumeState, decide, step};
pub use event::{Event, FailureKind, TransportEpoch};
pub use state::{Kind, Mode, ReplicaView, SessionView};
