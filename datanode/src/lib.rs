//! The sbk datanode: store, volume tasks, replication transport, frontends.

pub mod catalogue;
pub mod entry;
pub mod link;
pub mod transport;
pub mod volume;
