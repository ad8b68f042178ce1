//! The masters' replicated state and the policy that moves it.
//!
//! * [`State`] is what Raft replicates: nodes, volumes, configurations, tombstones. It changes only
//!   by [`State::apply`] of a committed [`Command`], which is deterministic and total: bad input
//!   gets a typed [`Refusal`], never a panic, and leaves the state as it was.
//! * [`history`] keeps for people how each volume came to its configuration.
//! * [`placement`] chooses nodes for a new volume's replicas.
//! * [`detector`] is the leader's memory of who was heard when. It is not replicated: suspicion
//!   only proposes, and a wrong proposal is made harmless by the compare-and-set on the epoch here
//!   and by fences and leases at the datanodes.

mod apply;
mod apply_isr;
mod apply_moves;
mod catalogue;
pub mod command;
pub mod detector;
mod doubt;
pub mod history;
mod invariants;
mod lacks;
pub mod limits;
mod lossy;
pub mod moves;
pub mod placement;
pub mod recovery;
pub mod refusal;
pub mod sizes;
pub mod stand;
pub mod state;
mod written;

pub use catalogue::{AssignedReplica, AssignedVolume};
pub use command::{Accepted, Command, Response, VolumeRequest};
pub use limits::{Limits, LimitsChange};
pub use refusal::Refusal;
pub use sizes::SizeRefused;
pub use state::{
    Addrs, Assignment, ClusterId, CreateId, Durability, Duty, Fate, RegisteredReplica,
    Registration, Replica, State, Tombstone, Volume, VolumeSpec, VolumeState, Wish, WriteAck,
};
