//! The gRPC services of a master.

mod control;
mod info;
mod node;
mod raft;

pub use control::ControlService;
pub(crate) use control::status;
pub use node::NodeApi;
pub use raft::RaftService;
