//! One replica alone, with its peers' and its driver's parts played by hand: what the simulated
//! cluster reaches only by luck.

mod apart;
mod attach;
mod bench;
mod best_effort;
mod candidates;
mod crowded;
mod deltas;
mod doubts;
mod epochs;
mod follower;
mod handover;
mod losses;
mod mends;
mod orders;
mod primary;
mod quorum;
mod recording;
mod resize;
mod rooms;
mod scrubs;
mod stand;
mod stands;
mod tables;
