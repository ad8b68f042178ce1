//! One task owns one replica: its engine state and the write side of its store.
//!
//! Everything reaches it over bounded channels and is turned into the engine's inputs; the
//! engine's outputs are executed in order.

pub mod clock;
pub mod disk;
pub mod events;
mod registry;

pub use registry::{Registry, VolumeHandle};

/// Events from peers that wait for the task.
pub const PEER_QUEUE: usize = 256;
/// Orders of the node that wait for the task.
pub const CONTROL_QUEUE: usize = 64;
