//! The sbk master: the authority's state machine under openraft.

mod args;
mod convert;
mod http;
pub mod log_store;
pub mod member;
pub mod network;
pub mod raft;
mod run;
pub mod services;
pub mod state_machine;

pub use args::{Args, Cluster, LogFormat};
pub use run::run;
