//! Which of the requests that wait at a primary is next, and when, under the volume's limits.
//!
//! It lies before the engine: to the protocol a request that is held back is one that is late on the
//! network. Each stream's requests stay in order. Between streams the one that had least of what is
//! limited goes first (start-time fair queueing, Goyal, Vin and Cheng, SIGCOMM 1996), so that a frontend with
//! a thousand requests under way takes no more than one with two, and one with large requests
//! no more than one with small ones.

use sbk_engine::authority::Limits;
use sbk_engine::types::BLOCK_SIZE;

use super::bucket::{Bucket, Nanos, SECOND};
use crate::link::IoOp;

/// What a request takes of the limits. A flush and a session's end take nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cost {
    operations: u64,
    bytes: u64,
}

impl Cost {
    pub(super) fn of(op: &IoOp) -> Self {
        let whole = |offset: u64, length: u64| (offset | length).is_multiple_of(BLOCK_SIZE);
        let bytes = match op {
            IoOp::Read { length, .. } => *length,
            IoOp::Write { data, .. } => data.len() as u64,
            // Zeros that are no whole blocks are written like other data.
            IoOp::Zero { offset, length } if !whole(*offset, *length) => *length,
            IoOp::Zero { .. } | IoOp::Trim { .. } | IoOp::Map { .. } => 0,
            IoOp::Flush | IoOp::Detach => return Self::default(),
        };
        Self { operations: 1, bytes }
    }

    pub(super) fn is_free(self) -> bool {
        self == Self::default()
    }
}

/// How far a stream is in the common order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Turn {
    /// Where its next request begins, in nanoseconds of the limits' time.
    pub(super) start: u64,
    /// Where its last one ended.
    finish: u64,
}

/// Limits in force.
#[derive(Debug)]
pub(super) struct Throttle {
    limits: Limits,
    operations: Option<Bucket>,
    bytes: Option<Bucket>,
    /// Where the request began that passed last.
    order: u64,
}

/// A bucket for `rate`, after another limit or none.
fn bucket(now: Nanos, old: Option<Bucket>, rate: Option<u64>, seconds: u32) -> Option<Bucket> {
    let rate = rate?;
    let capacity = rate.saturating_mul(seconds.into());
    Some(match old {
        Some(mut bucket) => {
            bucket.change(now, rate, capacity);
            bucket
        }
        None => Bucket::new(now, rate, capacity),
    })
}

impl Throttle {
    /// With all that may be saved up. `None` without a limit.
    pub(super) fn new(now: Nanos, limits: Limits) -> Option<Self> {
        Self { limits, operations: None, bytes: None, order: 0 }.changed(now, limits)
    }

    /// Under other limits from now on.
    pub(super) fn changed(self, now: Nanos, limits: Limits) -> Option<Self> {
        let seconds = limits.burst_seconds;
        limits.any().then(|| Self {
            limits,
            operations: bucket(now, self.operations, limits.iops, seconds),
            bytes: bucket(now, self.bytes, limits.bandwidth, seconds),
            order: self.order,
        })
    }

    /// A stream has a request that is next in it.
    pub(super) fn arrive(&self, turn: &mut Turn) {
        turn.start = turn.finish.max(self.order);
    }

    /// How long a request must wait, if it is the next of all.
    pub(super) fn wait(&mut self, now: Nanos, cost: Cost) -> Nanos {
        let operations = self.operations.as_mut().map_or(0, |b| b.wait(now, cost.operations));
        operations.max(self.bytes.as_mut().map_or(0, |b| b.wait(now, cost.bytes)))
    }

    /// Lets a request of a stream pass.
    pub(super) fn pass(&mut self, now: Nanos, turn: &mut Turn, cost: Cost) {
        if let Some(bucket) = &mut self.operations {
            bucket.take(now, cost.operations);
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.take(now, cost.bytes);
        }
        self.order = self.order.max(turn.start);
        turn.finish = turn.start.saturating_add(self.time(cost));
    }

    /// Which part of the limits' time a request takes: of the limit that it takes most of.
    fn time(&self, cost: Cost) -> u64 {
        let part = |cost: u64, rate: Option<u64>| {
            rate.map_or(0, |rate| u128::from(cost) * u128::from(SECOND) / u128::from(rate.max(1)))
        };
        let operations = part(cost.operations, self.limits.iops);
        let longest = operations.max(part(cost.bytes, self.limits.bandwidth));
        u64::try_from(longest).unwrap_or(u64::MAX)
    }
}
