//! The sbk master: the authority's state machine under openraft.

mod args;
mod clock;
mod convert;
mod data_dir;
mod gate;
mod http;
pub mod log_store;
mod member;
mod network;
pub mod raft;
mod run;
mod services;
pub mod state_machine;

pub use args::{Args, Cluster, ClusterError, LogFormat, Settings, SettingsError};
pub use run::run;
