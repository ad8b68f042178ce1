//! A client of the masters that finds their leader, follows it, and tells failures apart.
//!
//! [`MasterClient`] is cheap to clone; clones share their connections and what they know of the
//! leader. Every call has one overall deadline, within which it follows the metadata
//! `sbk-leader`, goes round the masters, and backs off. All calls may be repeated: creates are
//! told apart by their id, changes of an in-sync set by the epoch they expect, registrations by
//! incarnation and revision. So a call whose outcome is unknown is simply made again.

mod client;
mod error;
mod pool;
mod watch;

pub use client::{DEFAULT_DEADLINE, MasterClient};
pub use error::{MasterError, in_one_line};
pub use watch::AssignmentWatch;

/// Metadata of a status: `host:port` of the leader, as the answering member knows it.
pub const LEADER_METADATA: &str = "sbk-leader";
/// Metadata of a status: the stable word of a refusal. The call was understood and will not be
/// done; asking again changes nothing.
pub const REFUSAL_METADATA: &str = "sbk-refusal";
/// Metadata of a status that is no refusal: why a master can't answer now, one of the words of
/// [`cause`].
pub const CAUSE_METADATA: &str = "sbk-cause";
/// Most bytes of one message, in either direction.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// Words of [`CAUSE_METADATA`].
pub mod cause {
    /// This member is not the leader; `sbk-leader` names it if it is known.
    pub const NOT_LEADER: &str = "not-leader";
    /// This member leads but can't reach a majority.
    pub const NO_QUORUM: &str = "no-quorum";
    /// The command may or may not be committed: ask again.
    pub const OUTCOME_UNKNOWN: &str = "outcome-unknown";
    /// This member is stopping or its storage failed.
    pub const STOPPING: &str = "stopping";
    /// A limit is reached; ask again later.
    pub const BUSY: &str = "busy";
}
