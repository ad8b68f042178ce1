//! The clock of the leader's suspicions: the time in which this process listened.
//!
//! A node is suspected for its silence, and silence means something only to one who would have heard.
//! While the process is stopped, or its machine suspended, nobody can be heard, and afterwards everybody
//! seems to have been silent for as long. [A machine with the whole cluster on it was suspended; the first
//! node that the master heard again got all the volumes, in `best_effort` with a loss.] So a pause in which
//! this process did not even look at the clock does not count.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sbk_engine::types::Millis;

/// The clock is looked at this often, at least, while the process runs.
pub(crate) const LOOK: Duration = Duration::from_millis(250);
/// Nobody looked for so long: it did not run. Half of what a node may be silent.
const PAUSE_MS: u64 = 1_000;

#[derive(Debug, Default)]
struct Clock {
    seen: Option<u64>,
    /// All pauses together.
    paused: u64,
}

impl Clock {
    /// The time, at `now` of a clock that never stops.
    fn read(&mut self, now: u64) -> Millis {
        let seen = self.seen.unwrap_or(now);
        let passed = now.saturating_sub(seen);
        if passed >= PAUSE_MS {
            tracing::warn!(passed, "this process did not run; nobody is suspected for that time");
            self.paused += passed;
        }
        let now = now.max(seen);
        self.seen = Some(now);
        Millis(now - self.paused)
    }
}

static CLOCK: Mutex<Clock> = Mutex::new(Clock { seen: None, paused: 0 });

/// Milliseconds on the machine's clock without those in which this process did not run. Never goes back.
pub(crate) fn now() -> Millis {
    let mut clock = CLOCK.lock().unwrap_or_else(PoisonError::into_inner);
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    clock.read(time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use sbk_engine::authority::State;
    use sbk_engine::authority::detector::{Detector, DetectorEvent, DetectorParams};
    use sbk_engine::types::NodeId;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn time_in_which_nobody_looked_does_not_count() {
        let mut clock = Clock::default();
        assert_eq!(clock.read(5_000), Millis(5_000));
        assert_eq!(clock.read(5_999), Millis(5_999));
        assert_eq!(clock.read(3_605_999), Millis(5_999), "an hour's sleep");
        assert_eq!(clock.read(3_605_900), Millis(5_999), "it never goes back");
        assert_eq!(clock.read(3_606_249), Millis(6_249));
    }

    #[test]
    fn nobody_is_suspected_for_the_masters_own_pause() {
        let (mut clock, state) = (Clock::default(), State::new());
        let mut detector = Detector::new(DetectorParams::default());
        let node = NodeId(Uuid::from_u128(1));
        detector.step(clock.read(1_000), &state, DetectorEvent::Elected);
        let heartbeat = DetectorEvent::Heartbeat {
            node,
            process: 1,
            reports: Vec::new(),
            returning: BTreeSet::new(),
            low: BTreeSet::new(),
        };
        detector.step(clock.read(1_100), &state, heartbeat);
        let woken = clock.read(61_100);
        detector.step(woken, &state, DetectorEvent::Tick);
        assert!(detector.is_heard(woken, node));
        // It runs, and hears nothing.
        let mut later = woken;
        for looked in (61_350..63_400).step_by(250) {
            later = clock.read(looked);
        }
        assert!(!detector.is_heard(later, node), "{later}");
    }
}
