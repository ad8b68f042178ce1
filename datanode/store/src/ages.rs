//! How long the log behind the checkpoint has been kept for others.

use std::collections::VecDeque;

use sbk_engine::bugs::{Bug, on};
use sbk_engine::types::{Lsn, Millis};

use super::core::Store;

/// How many times are remembered at most: what is to go goes at most this part of its time later.
const SAMPLES: u64 = 16;

/// Where the checkpoint was at times in the past.
#[derive(Debug, Default)]
pub(super) struct Ages {
    samples: VecDeque<(Millis, Lsn)>,
    /// Everything up to here has been in the extents for as long as it is to be kept.
    old: Lsn,
}

impl Ages {
    /// Notes where the checkpoint is.
    fn note(&mut self, now: Millis, checkpoint: Lsn, keep_ms: u64) {
        let last = self.samples.back().map(|(at, _)| *at);
        if last.is_none_or(|at| now.since(at) >= keep_ms.div_ceil(SAMPLES)) {
            self.samples.push_back((now, checkpoint));
        }
        while let Some((_, lsn)) = self.samples.pop_front_if(|(at, _)| now.since(*at) >= keep_ms) {
            self.old = self.old.max(if on(Bug::AgeOfNewest) { checkpoint } else { lsn });
        }
    }

    /// Everything up to here is old.
    pub(super) fn old(&self) -> Lsn {
        self.old
    }
}

impl Store {
    /// Tells the time. Segments of the log that have been in the extents for
    /// [`StoreOptions::wal_retain_ms`](super::StoreOptions::wal_retain_ms) are let go with the next
    /// [`Store::plan_checkpoint`], but for those that a session has pinned.
    pub fn pass_time(&mut self, now: Millis) {
        let keep_ms = self.options.wal_retain_ms;
        if keep_ms > 0 {
            self.ages.note(now, self.checkpoint, keep_ms);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_in_the_extents_for_long_enough_is_old() {
        let mut ages = Ages::default();
        let mut old = |now, checkpoint| {
            ages.note(Millis(now), Lsn(checkpoint), 1600);
            ages.old().0
        };
        assert_eq!(old(1000, 5), 0);
        // Looked at too soon to be noted.
        assert_eq!(old(1099, 6), 0);
        assert_eq!(old(1100, 7), 0);
        assert_eq!(old(2599, 9), 0);
        assert_eq!(old(2600, 9), 5);
        assert_eq!(old(2700, 9), 7);
        assert_eq!(old(9000, 9), 9);
        assert_eq!(old(99_000, 9), 9);
    }

    #[test]
    fn it_does_not_grow() {
        let mut ages = Ages::default();
        for now in 0..10_000 {
            ages.note(Millis(now), Lsn(now), 1000);
        }
        assert!(ages.samples.len() as u64 <= SAMPLES + 1, "{}", ages.samples.len());
    }
}
