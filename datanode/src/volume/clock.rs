//! The machine's clock as the engine wants it.

use rustix::time::{ClockId, clock_gettime};
use sbk_engine::types::Millis;

/// Milliseconds of `CLOCK_BOOTTIME`, which also counts the time that the machine was suspended: a
/// lease must not outlive a nap.
pub fn now() -> Millis {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).expect("time since boot is not negative");
    let nanos = u64::try_from(time.tv_nsec).expect("nanoseconds are not negative");
    Millis(seconds * 1000 + nanos / 1_000_000)
}

/// How long to wait from now until `deadline`.
pub fn until(deadline: Millis) -> std::time::Duration {
    std::time::Duration::from_millis(deadline.since(now()))
}
