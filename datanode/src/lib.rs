//! The sbk datanode: store, volume tasks, replication transport, frontends.

pub mod catalogue;
pub mod link;
