//! Small worlds, explored to the end: three real replicas, the real state of the masters, a few
//! client requests and a few faults, in every order in which messages can arrive, disks can finish
//! and timers can fire.

mod action;
mod canon;
mod client;
mod disk;
mod execute;
mod graph;
mod history;
mod masters;
mod memory;
mod node;
mod part;
mod search;
mod truth;
mod world;
mod worlds;

pub use search::{Counts, Search, Violation};
pub use worlds::{Spec, WORLDS, world};
