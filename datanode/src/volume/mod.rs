//! One task owns one replica: its engine state and the write side of its store.
//!
//! Everything reaches it over bounded channels and is turned into the engine's inputs; the
//! engine's outputs are executed in order. What others may know of the replica is published as a
//! [`VolumeStatus`].

pub(crate) mod bucket;
mod clients;
pub mod clock;
mod closing;
pub mod disk;
pub mod events;
mod execute;
mod lanes;
mod names;
mod pace;
mod peers;
mod recorder;
mod registry;
mod runner;
mod scrub;
mod status;
mod task;
mod throttle;
mod verify;

pub use pace::{LONGEST, Pace};
pub use recorder::{MAX_FILES, Recorder, Recordings, keep_at_panic};
pub use registry::{Registry, VolumeHandle};
pub use runner::{Context, ProposalOrder, open_link, start};
pub use status::{
    Counters, OpenReplica, READ_FAILED, RunState, SessionSent, TRACE_CAPACITY, TraceEntry,
    TraceRing, VolumeStatus,
};

/// Events from peers that wait for the task.
pub const PEER_QUEUE: usize = 256;
/// Orders of the node that wait for the task.
pub const CONTROL_QUEUE: usize = 64;
