//! Times and budgets of recovery.

use serde::{Deserialize, Serialize};

/// Times and budgets of recovery, each 1 or more. Part of the state, so that a recorded run replays
/// alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Params {
    /// A probe, or the facts that follow it, without an answer is repeated after this.
    pub probe_timeout_ms: u64,
    /// The first pause after a failed probe or session; doubles up to `probe_backoff_max_ms`, and
    /// starts anew once the replica is healthy or a session completed.
    pub probe_backoff_ms: u64,
    /// The longest pause between probes.
    pub probe_backoff_max_ms: u64,
    /// A session whose receiver took no part for so long failed to start.
    pub start_timeout_ms: u64,
    /// The same for a delta, whose receiver first takes its own log to its extents.
    pub delta_start_timeout_ms: u64,
    /// A fence without an acknowledgement is repeated after this.
    pub fence_retry_ms: u64,
    /// The start or the end of a session that the executor did not confirm is commanded again
    /// after this.
    pub command_retry_ms: u64,
    /// Catch-ups in a row that may fail before the replica gets a base lane.
    pub catch_up_budget: u32,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            probe_timeout_ms: 3000,
            probe_backoff_ms: 100,
            probe_backoff_max_ms: 1000,
            start_timeout_ms: 5000,
            delta_start_timeout_ms: 30_000,
            fence_retry_ms: 1000,
            command_retry_ms: 1000,
            catch_up_budget: 5,
        }
    }
}

impl Params {
    pub(super) fn assert_sane(&self) {
        let times = [
            self.probe_timeout_ms,
            self.probe_backoff_ms,
            self.probe_backoff_max_ms,
            self.start_timeout_ms,
            self.delta_start_timeout_ms,
            self.fence_retry_ms,
            self.command_retry_ms,
        ];
        assert!(times.iter().all(|ms| *ms > 0), "a pause of 0 ms would make the engine spin");
        assert!(self.catch_up_budget > 0, "with no budget at all catch-up would never be tried");
    }

    /// The pause before the next probe after `failures` failures in a row before this one.
    pub(super) fn backoff(&self, failures: u32) -> u64 {
        let doubled = self.probe_backoff_ms.saturating_mul(1 << failures.min(20));
        doubled.min(self.probe_backoff_max_ms)
    }
}
