//! One replica's part in its volume's log, as primary or as follower.
//!
//! Primary-backup replication with a reconfigurable in-sync replica set (PacificA, Lin et al.,
//! MSR-TR-2008-25), divergence by epoch (Kafka's KIP-101 and KIP-279). [`Replica`] is the whole
//! state of one replica; [`io`] is what goes in and out of it.

mod attach;
mod candidate;
mod clients;
mod commit;
mod core;
mod crowded;
mod follower;
mod handover;
mod held;
pub mod io;
pub mod log;
pub mod mend;
pub mod message;
mod params;
mod peer;
mod primary;
pub(crate) mod quorum;
mod replica;
mod resize;
pub mod room;
pub mod scrub;
mod sessions;
pub mod trace;
pub mod view;

pub use params::Params;
pub use replica::{IgnoredReason, Replica, Verdict};
