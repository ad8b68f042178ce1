//! The gRPC services of a master.

mod control;
mod info;
mod node;
mod raft;
mod recover;

pub(crate) use control::ControlService;
pub(crate) use control::status;
pub(crate) use node::NodeApi;
pub(crate) use raft::RaftService;
