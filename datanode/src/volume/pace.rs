//! How fast this node's rebuilds go: at a rate while clients use its volumes, else as fast as they can.
//!
//! Only base lanes are paced. A catch-up comes on the feed, in front of the entries that clients wait for,
//! and is bounded by what the WAL retains: slower, it would hold them up, or never end. And a
//! rebuild that a volume needs to be served at all is not held up for the clients of others.

use std::future::Future;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sbk_engine::types::Millis;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use super::bucket::{Bucket, Nanos};

/// For so long after an answer to a client, clients count as there. One that only waits does not: what it waits
/// for may be the rebuild.
const QUIET_MS: u64 = 1000;
/// Longest time that a lane waits without sending anything: a session that does not come on ends, and would begin with the
/// first region again. Far below [`Params::stall_ms`](sbk_engine::replication::Params::stall_ms).
pub const LONGEST: Duration = Duration::from_secs(5);
/// How often it is looked whether clients are still there.
const LOOK: Duration = Duration::from_millis(50);

/// What all base lanes of a node share.
#[derive(Debug)]
pub struct Pace {
    /// Bytes a second while clients are there; 0: as fast as they can.
    rate: u64,
    /// When a client was answered last, in milliseconds of the boot clock; 0: never.
    answered: AtomicU64,
    origin: Instant,
    bucket: std::sync::Mutex<Bucket>,
    /// Whoever waits for tokens holds it, so that lanes take turns.
    turn: Mutex<()>,
}

impl Pace {
    /// Lanes read at most `rate` bytes a second while clients are answered; 0: they do not give way.
    pub fn new(rate: u64) -> Self {
        // A tenth of a second at once: lanes read in pieces.
        let bucket = std::sync::Mutex::new(Bucket::new(0, rate, rate / 10));
        let (answered, turn) = (AtomicU64::new(0), Mutex::new(()));
        Self { rate, answered, origin: Instant::now(), bucket, turn }
    }

    /// A client's request was done.
    pub(super) fn answered(&self, now: Millis) {
        self.answered.store(now.0, Ordering::Relaxed);
    }

    fn gives_way(&self, now: Millis) -> bool {
        let answered = self.answered.load(Ordering::Relaxed);
        self.rate > 0 && answered > 0 && now.since(Millis(answered)) < QUIET_MS
    }

    /// Waits until a lane may read `bytes` more, for `longest` at most: then they pass and leave a debt. Not
    /// at all, or no longer, once `needed` resolves or no clients are there.
    pub async fn wait(&self, bytes: u64, longest: Duration, needed: impl Future<Output = ()>) {
        if !self.gives_way(super::clock::now()) {
            return;
        }
        let turn = async {
            let _turn = self.turn.lock().await;
            while self.gives_way(super::clock::now()) {
                match self.take(bytes) {
                    0 => return,
                    wait => sleep(Duration::from_nanos(wait).min(LOOK)).await,
                }
            }
        };
        tokio::select! {
            biased;
            () = needed => {}
            () = turn => {}
            () = sleep(longest) => {
                let (now, mut bucket) = self.bucket();
                bucket.owe(now, bytes, self.rate.saturating_mul(LONGEST.as_secs()));
            }
        }
    }

    /// Takes them, or tells how long that has to wait.
    fn take(&self, bytes: u64) -> Nanos {
        let (now, mut bucket) = self.bucket();
        let wait = bucket.wait(now, bytes);
        if wait == 0 {
            bucket.take(now, bytes);
        }
        wait
    }

    fn bucket(&self) -> (Nanos, std::sync::MutexGuard<'_, Bucket>) {
        // Every update leaves it whole, so a panic elsewhere does not spoil it.
        let bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        (Nanos::try_from(self.origin.elapsed().as_nanos()).unwrap_or(Nanos::MAX), bucket)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::clock;
    use super::*;

    const MIB: u64 = 1 << 20;

    async fn needed(is: bool) {
        if !is {
            std::future::pending().await
        }
    }

    /// MiB that two lanes got in ten seconds of the clock that jumps, clients being answered all the time or not.
    async fn in_ten_seconds(rate: u64, clients: bool, needed: bool) -> [u64; 2] {
        let pace = Arc::new(Pace::new(rate));
        let lanes = [0; 2].map(|_| {
            let pace = Arc::clone(&pace);
            tokio::spawn(async move {
                let end = Instant::now() + Duration::from_secs(10);
                let mut got = 0;
                while Instant::now() < end && got < 100_000 {
                    // An answer that stays a recent one: the boot clock does not jump with the other.
                    clients.then(|| pace.answered(clock::now().after(3_600_000)));
                    pace.wait(MIB, LONGEST, super::tests::needed(needed)).await;
                    got += 1;
                }
                got
            })
        });
        let [one, other] = lanes;
        [one.await.expect("ends"), other.await.expect("ends")]
    }

    #[tokio::test(start_paused = true)]
    async fn lanes_share_the_rate_while_clients_are_there() {
        let lanes = in_ten_seconds(8 * MIB, true, false).await;
        assert!((80..=83).contains(&lanes.iter().sum::<u64>()), "{lanes:?}");
        assert!(lanes[0].abs_diff(lanes[1]) <= 2, "{lanes:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_waits_without_clients_or_where_it_is_needed() {
        for (rate, clients, needed) in
            [(8 * MIB, false, false), (8 * MIB, true, true), (0, true, false)]
        {
            assert_eq!(in_ten_seconds(rate, clients, needed).await, [100_000; 2]);
        }
    }

    /// The bucket is owed the most that it can be, and clients are there.
    fn owed() -> Pace {
        let pace = Pace::new(8 * MIB);
        pace.answered(clock::now().after(3_600_000));
        let (now, mut bucket) = pace.bucket();
        bucket.take(now, 1000 * MIB);
        drop(bucket);
        pace
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_that_waits_goes_on_when_it_may_though_it_has_no_turn() {
        let pace = owed();
        let began = Instant::now();
        let first = pace.wait(MIB, LONGEST * 2, needed(false));
        let second = async {
            pace.wait(MIB, LONGEST, sleep(Duration::from_secs(1))).await;
            began.elapsed()
        };
        let ((), went_on) = tokio::join!(first, second);
        assert_eq!(went_on.as_secs(), 1, "{went_on:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn no_lane_of_many_stands_for_long() {
        let pace = owed();
        let lanes = (0..500).map(|_| async {
            let began = Instant::now();
            for _ in 0..4 {
                pace.wait(MIB, LONGEST, needed(false)).await;
            }
            began.elapsed()
        });
        let longest = futures::future::join_all(lanes).await.into_iter().max();
        assert!(longest <= Some(LONGEST * 4 + LOOK), "{longest:?}");
        // What they had too much is paid back, and is bounded: one that is left waits no longer.
        let (now, mut bucket) = pace.bucket();
        assert!(bucket.wait(now, MIB) > 0);
    }
}
