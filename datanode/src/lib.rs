//! The sbk datanode: store, volume tasks, replication transport, frontends.

mod args;
pub mod catalogue;
pub mod disks;
pub mod frontend;
pub mod keys;
pub mod link;
pub mod node;
pub mod ops;
pub mod patrol;
mod run;
mod space;
pub mod store;
pub mod transport;
pub mod volume;

pub use args::{Args, LogFormat, Settings, SettingsError};
pub use run::{Listeners, run, serve};
pub use space::Watermark;
