//! What a run did, in numbers.

use super::heights::Heights;
use super::marks::Counts;

/// What a run did.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Acknowledged writes.
    pub acknowledged: usize,
    /// Answered reads.
    pub reads: usize,
    /// Requests that clients gave up.
    pub given_up: u64,
    /// Epochs that the masters minted.
    pub epochs: u64,
    /// Logs that were cut.
    pub cuts: u64,
    /// Replicas that were wiped for a rebuild.
    pub rebuilds: u64,
    /// Replicas whose log was dropped for a delta.
    pub deltas: u64,
    /// Processes that died.
    pub crashes: u64,
    /// Of these, how many because their machine lost power.
    pub power_losses: u64,
    /// Stores that failed under a process that went on.
    pub store_failures: u64,
    /// Steps of checkpoints.
    pub checkpoints: u64,
    /// Reads that a disk refused.
    pub reads_failed: u64,
    /// Frontend sessions that were lost.
    pub lost_sessions: u64,
    /// Losses that took effect.
    pub losses: u64,
    /// Simulated milliseconds.
    pub simulated_ms: u64,
    /// Interesting states that were reached.
    pub marks: Counts,
    /// Faults by class.
    pub injected: Counts,
    /// High-water marks, each with its limit.
    pub heights: Heights,
}

impl Default for Summary {
    fn default() -> Self {
        Self {
            acknowledged: 0,
            reads: 0,
            given_up: 0,
            epochs: 0,
            cuts: 0,
            rebuilds: 0,
            deltas: 0,
            crashes: 0,
            power_losses: 0,
            store_failures: 0,
            checkpoints: 0,
            reads_failed: 0,
            lost_sessions: 0,
            losses: 0,
            simulated_ms: 0,
            marks: Counts::marks(),
            injected: Counts::injected(),
            heights: Heights::default(),
        }
    }
}

impl Summary {
    /// Adds what another run did.
    pub fn add(&mut self, other: &Summary) {
        self.acknowledged += other.acknowledged;
        self.reads += other.reads;
        self.given_up += other.given_up;
        self.epochs += other.epochs;
        self.cuts += other.cuts;
        self.rebuilds += other.rebuilds;
        self.deltas += other.deltas;
        self.crashes += other.crashes;
        self.power_losses += other.power_losses;
        self.store_failures += other.store_failures;
        self.checkpoints += other.checkpoints;
        self.reads_failed += other.reads_failed;
        self.lost_sessions += other.lost_sessions;
        self.simulated_ms += other.simulated_ms;
        self.marks.add(&other.marks);
        self.injected.add(&other.injected);
        self.heights.add(&other.heights);
        self.losses += other.losses;
    }
}
