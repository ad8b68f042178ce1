//! A token bucket: how much may pass in a time, and when the rest may.
//!
//! Whole numbers only, of tokens and nanoseconds, so nothing drifts: a bucket's level is counted in
//! tokens times nanoseconds, which a rate and a time multiply to without a rest. The clock is the
//! caller's.
//!
//! What costs more than a full bucket passes when the bucket is full and leaves a debt, so that it passes
//! at all. In any time `t` at most `max(capacity, largest cost) + rate * t` passes.

/// Nanoseconds of a clock that does not go back.
pub(crate) type Nanos = u64;

/// Nanoseconds of a second.
pub(crate) const SECOND: u64 = 1_000_000_000;

/// A bucket. A new one is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bucket {
    /// Tokens that come in a second, at least 1.
    rate: u64,
    /// Tokens that it holds when it is full, at least 1.
    capacity: u64,
    /// Tokens times nanoseconds in a second; below zero is a debt.
    level: i128,
    /// When the level was that.
    at: Nanos,
}

fn scaled(tokens: u64) -> i128 {
    i128::from(tokens) * i128::from(SECOND)
}

impl Bucket {
    /// A full bucket.
    pub(crate) fn new(now: Nanos, rate: u64, capacity: u64) -> Self {
        let (rate, capacity) = (rate.max(1), capacity.max(1));
        Self { rate, capacity, level: scaled(capacity), at: now }
    }

    fn refill(&mut self, now: Nanos) {
        let passed = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        let came = i128::from(self.rate).saturating_mul(i128::from(passed));
        self.level = self.level.saturating_add(came).min(scaled(self.capacity));
    }

    /// How long until `cost` tokens may be taken, if nobody takes any before: 0 for at once.
    pub(crate) fn wait(&mut self, now: Nanos, cost: u64) -> Nanos {
        self.refill(now);
        let lacks = scaled(cost.min(self.capacity)) - self.level;
        if cost == 0 || lacks <= 0 {
            return 0;
        }
        let rate = i128::from(self.rate);
        Nanos::try_from((lacks + rate - 1) / rate).unwrap_or(Nanos::MAX)
    }

    /// Takes `cost` tokens. Only when [`wait`](Self::wait) says that they may be taken.
    pub(crate) fn take(&mut self, now: Nanos, cost: u64) {
        debug_assert_eq!(self.wait(now, cost), 0, "tokens are taken before they are there");
        self.level = self.level.saturating_sub(scaled(cost));
    }

    /// Takes `cost` tokens that are not there, as a debt; no debt grows beyond `most` tokens by that.
    pub(crate) fn owe(&mut self, now: Nanos, cost: u64, most: u64) {
        self.refill(now);
        let least = self.level.min(-scaled(most));
        self.level = self.level.saturating_sub(scaled(cost)).max(least);
    }

    /// Another rate and capacity from now on. What was saved up stays as far as it fits, and so does a debt.
    pub(crate) fn change(&mut self, now: Nanos, rate: u64, capacity: u64) {
        self.refill(now);
        (self.rate, self.capacity) = (rate.max(1), capacity.max(1));
        self.level = self.level.min(scaled(self.capacity));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Asks for each cost in turn, as early as may be, and returns when each passed.
    fn pass(bucket: &mut Bucket, mut now: Nanos, costs: &[(u64, Nanos)]) -> Vec<Nanos> {
        let mut passed = Vec::new();
        for (cost, idle) in costs {
            now += idle;
            let wait = bucket.wait(now, *cost);
            if wait > 0 {
                // To the nanosecond, and not earlier.
                assert!(bucket.wait(now + wait - 1, *cost) > 0);
            }
            now += wait;
            bucket.take(now, *cost);
            passed.push(now);
        }
        passed
    }

    fn costs() -> impl Strategy<Value = Vec<(u64, Nanos)>> {
        let cost = prop_oneof![3 => 1..5000u64, 1 => 0..40_000_000u64];
        let idle = prop_oneof![3 => Just(0), 1 => 0..3 * SECOND, 1 => 0..1000u64];
        proptest::collection::vec((cost, idle), 1..120)
    }

    proptest! {
        #[test]
        fn no_window_has_more_than_its_rate_and_one_burst(
            rate in 1..10_000_000u64, capacity in 1..20_000_000u64, start in 0..u64::MAX / 4, costs in costs(),
        ) {
            let mut bucket = Bucket::new(start, rate, capacity);
            let passed = pass(&mut bucket, start, &costs);
            for (first, begin) in passed.iter().enumerate() {
                let (mut sum, mut most) = (0, u128::from(capacity));
                for (last, end) in passed.iter().enumerate().skip(first) {
                    sum += u128::from(costs[last].0);
                    most = most.max(u128::from(costs[last].0));
                    let came = u128::from(rate) * u128::from(end - begin);
                    prop_assert!(
                        (sum - most.min(sum)) * u128::from(SECOND) <= came,
                        "{sum} from {begin} to {end}"
                    );
                }
            }
        }

        /// Whoever waits for one request after the other gets the whole rate: no token is lost to rounding.
        #[test]
        fn nothing_starves_and_nothing_is_lost(
            rate in 1..10_000_000u64, capacity in 1..20_000_000u64,
            costs in proptest::collection::vec(1..30_000_000u64, 1..100),
        ) {
            let mut bucket = Bucket::new(0, rate, capacity);
            let all: Vec<_> = costs.iter().map(|cost| (*cost, 0)).collect();
            let end = *pass(&mut bucket, 0, &all).last().expect("one at least");
            // All that came and was there at first, but what is left; a nanosecond is waited for whole.
            let sum: u128 = costs.iter().copied().map(u128::from).sum();
            let most = costs.iter().copied().map(u128::from).max().expect("one at least");
            let had = u128::from(rate) * u128::from(end) + u128::from(capacity) * u128::from(SECOND);
            prop_assert!(had <= (sum + most + u128::from(capacity)) * u128::from(SECOND)
                + u128::from(rate) * costs.len() as u128);
        }

        #[test]
        fn a_change_holds_from_where_it_was_made(
            rate in 1..1_000_000u64, then in 1..1_000_000u64, capacity in 1..1_000_000u64,
            larger in 1..1_000_000u64, spent in 1..3_000_000u64, idle in 0..5 * SECOND,
        ) {
            let mut bucket = Bucket::new(0, rate, capacity);
            bucket.take(0, spent);
            let left = i128::from(capacity) - i128::from(spent);
            bucket.change(idle, then, larger);
            let came = i128::from(rate) * i128::from(idle);
            let level = (scaled(1) * left + came).min(scaled(capacity)).min(scaled(larger));
            prop_assert_eq!(bucket.level, level, "neither a burst nor a debt comes from a change");
            let wait = bucket.wait(idle, 1);
            let lacks = scaled(1) - level;
            prop_assert_eq!(i128::from(wait), if lacks <= 0 { 0 } else { (lacks - 1) / i128::from(then) + 1 });
        }
    }

    #[test]
    fn a_debt_is_bounded() {
        let mut bucket = Bucket::new(0, 10, 10);
        bucket.owe(0, 30, 50);
        assert_eq!(bucket.wait(0, 10), 3 * SECOND);
        bucket.owe(0, 1000, 50);
        assert_eq!(bucket.wait(0, 10), 6 * SECOND);
    }

    #[test]
    fn a_clock_that_stands_or_goes_back_gives_nothing() {
        let mut bucket = Bucket::new(SECOND, 10, 10);
        bucket.take(SECOND, 10);
        assert_eq!(bucket.wait(0, 1), SECOND / 10);
        assert_eq!(bucket.wait(SECOND, 1), SECOND / 10);
        assert_eq!(bucket.wait(SECOND + SECOND / 10, 1), 0);
        assert_eq!(bucket.wait(u64::MAX, 10), 0, "and far in the future it is full, not more");
        bucket.take(u64::MAX, 10);
        assert!(bucket.wait(u64::MAX, 1) > 0);
    }
}
