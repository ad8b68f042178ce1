//! What the pause of a failover consisted of, and what values spread over.

use serde::Serialize;

use crate::commands::explain::{Decision, MASTERS};

/// The parts of one pause, in milliseconds, in their order. They are told by clocks of different
/// processes on one machine, so each may be a millisecond or two off.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Parts {
    /// From the loss until the masters chose another primary.
    pub detect: u64,
    /// From there until it had the role: the choice is committed by the masters and pushed.
    pub commit: u64,
    /// From there until it was ready: the promises that its replica had made to the one before have
    /// run out, and its own log is reconciled.
    pub lease: u64,
    /// From taking the role until the last of the in-sync replicas had the same log: beside the wait for
    /// the lease, not after it.
    pub reconcile: u64,
    /// From being ready until clients were served: what `reconcile` took longer than `lease`, and
    /// the leases of the others.
    pub serve: u64,
    /// From there until the request that had waited longest was answered.
    pub first_io: u64,
}

impl Parts {
    /// Those of the first failover after `epoch`, from decisions in order of time. `lost` is when the
    /// primary was lost and `answered` when the request that waited longest was answered, both in
    /// milliseconds since 1970. `None` if the decisions don't tell.
    pub fn of(decisions: &[Decision], epoch: u64, lost: u64, answered: u64) -> Option<Self> {
        let decided = decisions.iter().find(|d| d.node == MASTERS && d.epoch > epoch)?;
        let later = || decisions.iter().filter(|d| d.node != MASTERS && d.epoch >= decided.epoch);
        let promoted = later().find(|d| d.what == "promoted")?;
        let its = |what: &str| {
            let mut its = later().filter(|d| d.node == promoted.node);
            its.find(|d| d.what == what)
        };
        let (ready, serving) = (its("ready")?, its("serving")?);
        let healthy = later()
            .filter(|d| d.node == promoted.node && d.what == "healthy")
            .filter(|d| (promoted.time_ms..=serving.time_ms).contains(&d.time_ms));
        let reconciled = healthy.map(|d| d.time_ms).max().unwrap_or(promoted.time_ms);
        Some(Self {
            detect: decided.time_ms.saturating_sub(lost),
            commit: promoted.time_ms.saturating_sub(decided.time_ms),
            lease: ready.time_ms.saturating_sub(promoted.time_ms),
            reconcile: reconciled - promoted.time_ms,
            serve: serving.time_ms.saturating_sub(ready.time_ms),
            first_io: answered.saturating_sub(serving.time_ms),
        })
    }

    /// What each part spreads over, with its name.
    pub fn spreads(all: &[&Self]) -> Vec<(&'static str, Spread)> {
        let of = |part: fn(&Self) -> u64| spread(all.iter().map(|parts| part(parts)));
        vec![
            ("detect", of(|p| p.detect)),
            ("commit", of(|p| p.commit)),
            ("lease", of(|p| p.lease)),
            ("reconcile (meanwhile)", of(|p| p.reconcile)),
            ("serve", of(|p| p.serve)),
            ("first I/O", of(|p| p.first_io)),
        ]
    }
}

/// What values spread over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Spread {
    /// Half of them are at most this.
    pub p50: u64,
    /// Nine of ten are at most this.
    pub p90: u64,
    /// The largest.
    pub max: u64,
}

/// The spread of `values`; zeros if there are none.
pub fn spread(values: impl Iterator<Item = u64>) -> Spread {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    // The smallest that so many percent of the values do not exceed.
    let at = |percent: usize| {
        let rank = (values.len() * percent).div_ceil(100);
        values.get(rank.saturating_sub(1)).copied().unwrap_or(0)
    };
    Spread { p50: at(50), p90: at(90), max: at(100) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision(node: &str, time_ms: u64, epoch: u64, what: &str) -> Decision {
        let (node, what) = (node.to_owned(), what.to_owned());
        Decision { node, at: time_ms, time_ms, number: 1, epoch, what, why: String::new() }
    }

    #[test]
    fn a_pause_is_taken_apart() {
        let mut decisions = vec![
            decision(MASTERS, 10, 1, "minted"),
            decision("a", 20, 1, "promoted"),
            decision("a", 30, 1, "healthy"),
            decision("a", 900, 1, "serving"),
            decision(MASTERS, 1_050, 2, "minted"),
            decision("b", 1_060, 2, "promoted"),
            decision("b", 1_100, 2, "healthy"),
            decision("b", 1_900, 2, "ready"),
            decision("b", 1_903, 2, "serving"),
            // Another one that comes back later.
            decision("b", 5_000, 3, "healthy"),
        ];
        let parts = Parts::of(&decisions, 1, 1_000, 1_910);
        let expected =
            Parts { detect: 50, commit: 10, lease: 840, reconcile: 40, serve: 3, first_io: 7 };
        assert_eq!(parts, Some(expected));
        assert_eq!(Parts::of(&decisions, 2, 1_000, 1_910), None, "nobody was promoted after");
        decisions.retain(|d| d.what != "serving");
        assert_eq!(Parts::of(&decisions, 1, 1_000, 1_910), None);
    }

    #[test]
    fn spreads_are_of_the_sorted_values() {
        assert_eq!(spread([].into_iter()), Spread::default());
        assert_eq!(spread([4].into_iter()), Spread { p50: 4, p90: 4, max: 4 });
        assert_eq!(spread((1..=10).rev()), Spread { p50: 5, p90: 9, max: 10 });
        assert_eq!(
            spread([900, 700, 1200, 800].into_iter()),
            Spread { p50: 800, p90: 1200, max: 1200 }
        );
    }
}
