//! How much of a volume its clients may use each second.
//!
//! Limits are no part of a configuration: they decide nothing about who holds what, so they change
//! without an epoch, and a primary that has not heard of a change goes by those of before.

use serde::{Deserialize, Serialize};

use super::command::{Accepted, Response};
use super::refusal::Refusal;
use super::state::State;
use crate::types::{MAX_REQUEST_BYTES, VolumeId};

/// Fewest requests a second that a limit may let through.
pub const MIN_IOPS: u64 = 10;
/// Fewest bytes a second that a limit may let through: the largest request takes 16 s of it, which is
/// far below the time after which a client's request fails, and below what an attachment that ends
/// waits for the last answers.
pub const MIN_BANDWIDTH: u64 = MAX_REQUEST_BYTES / 16;
/// Most that either limit may let through in a second; more is no limit.
pub const MAX_RATE: u64 = 1 << 40;
/// Longest time whose share may be saved up, in seconds.
pub const MAX_BURST_SECONDS: u32 = 3600;

/// What the clients of a volume may do, all of them together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Requests a second, [`MIN_IOPS`] to [`MAX_RATE`]; `None`: any number.
    pub iops: Option<u64>,
    /// Bytes read and written a second, [`MIN_BANDWIDTH`] to [`MAX_RATE`]; `None`: any number.
    pub bandwidth: Option<u64>,
    /// How many seconds' worth of either may be saved up while less is used, 1 to
    /// [`MAX_BURST_SECONDS`].
    pub burst_seconds: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { iops: None, bandwidth: None, burst_seconds: 1 }
    }
}

impl Limits {
    /// Whether there is any limit.
    pub fn any(&self) -> bool {
        self.iops.is_some() || self.bandwidth.is_some()
    }

    /// Whether each is within its range.
    ///
    /// # Errors
    /// [`Refusal::BadLimit`].
    pub fn check(&self) -> Result<(), Refusal> {
        let burst = Some(u64::from(self.burst_seconds));
        for (what, given, least, most) in [
            ("iops", self.iops, MIN_IOPS, MAX_RATE),
            ("bandwidth", self.bandwidth, MIN_BANDWIDTH, MAX_RATE),
            ("burst", burst, 1, u64::from(MAX_BURST_SECONDS)),
        ] {
            if let Some(given) = given.filter(|given| !(least..=most).contains(given)) {
                return Err(Refusal::BadLimit { what: what.to_owned(), given, least, most });
            }
        }
        Ok(())
    }
}

/// What is to become of a volume's limits. What it does not name stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsChange {
    /// Requests a second; 0: any number.
    pub iops: Option<u64>,
    /// Bytes a second; 0: any number.
    pub bandwidth: Option<u64>,
    /// Seconds' worth that may be saved up.
    pub burst_seconds: Option<u32>,
}

impl LimitsChange {
    /// The limits after it.
    pub fn of(self, limits: Limits) -> Limits {
        let new = |given: Option<u64>, old| given.map_or(old, |n| (n > 0).then_some(n));
        Limits {
            iops: new(self.iops, limits.iops),
            bandwidth: new(self.bandwidth, limits.bandwidth),
            burst_seconds: self.burst_seconds.unwrap_or(limits.burst_seconds),
        }
    }
}

impl State {
    pub(super) fn set_limits(&mut self, volume: VolumeId, change: LimitsChange) -> Response {
        let limits = change.of(self.live(volume)?.limits);
        limits.check()?;
        if self.live(volume)?.limits != limits {
            let revision = self.bump();
            let live = self.volumes.get_mut(&volume).expect("checked: the volume is live");
            (live.limits, live.changed) = (limits, revision);
        }
        Ok(Accepted::Done)
    }
}
