//! When replicas are looked at, and how fast.

use std::str::FromStr;
use std::time::Duration;

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

/// When the replicas of a node are looked at, and how fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// From the end of one look at a replica to the next one; zero: never.
    pub every: Duration,
    /// Most bytes read in a second; 0: no limit.
    pub rate: u64,
    /// The hours in which anything is read; `None`: all.
    pub window: Option<Window>,
}

impl Schedule {
    /// Nothing is ever looked at.
    pub const OFF: Self = Self { every: Duration::ZERO, rate: 0, window: None };
}

/// Hours of the day, UTC: from the beginning of one to that of another, over midnight if that is earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    from: u64,
    to: u64,
}

impl Window {
    /// How long it is until the window is open, at a time in seconds since 1970: zero while it is.
    pub fn opens_in(self, now: u64) -> Duration {
        let of_day = now % DAY;
        let (from, to) = (self.from * HOUR, self.to * HOUR);
        let open =
            if from < to { (from..to).contains(&of_day) } else { of_day >= from || of_day < to };
        if open { Duration::ZERO } else { Duration::from_secs((from + DAY - of_day) % DAY) }
    }
}

impl FromStr for Window {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hour = |text: &str| text.parse().ok().filter(|hour| *hour < 24);
        let (from, to) = text.split_once('-').unwrap_or_default();
        match (hour(from), hour(to)) {
            (Some(from), Some(to)) if from != to => Ok(Self { from, to }),
            _ => Err(format!("'{text}' are no hours of the day; write 22-6 for 22:00 to 6:00 UTC")),
        }
    }
}

/// A time from `7d`, `12h`, `30m` or `90s`; `0` is none.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is no time; write 7d, 12h, 30m, 90s or 0");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let unit = match text.chars().last() {
        Some('d') => DAY,
        Some('h') => HOUR,
        Some('m') => 60,
        Some('s') => 1,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    number.checked_mul(unit).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opens(window: &str, hour: u64, minute: u64) -> Duration {
        let days = 20_000 * DAY;
        window.parse::<Window>().expect("hours").opens_in(days + hour * HOUR + minute * 60)
    }

    #[test]
    fn a_window_is_open_from_its_first_hour_to_its_last() {
        assert_eq!(opens("1-5", 1, 0), Duration::ZERO);
        assert_eq!(opens("1-5", 4, 59), Duration::ZERO);
        assert_eq!(opens("1-5", 5, 0), Duration::from_secs(20 * HOUR));
        assert_eq!(opens("1-5", 0, 30), Duration::from_secs(30 * 60));
    }

    #[test]
    fn a_window_may_go_over_midnight() {
        assert_eq!(opens("22-6", 23, 0), Duration::ZERO);
        assert_eq!(opens("22-6", 5, 59), Duration::ZERO);
        assert_eq!(opens("22-6", 6, 0), Duration::from_secs(16 * HOUR));
        assert_eq!(opens("22-0", 23, 0), Duration::ZERO);
        assert_eq!(opens("22-0", 0, 0), Duration::from_secs(22 * HOUR));
    }

    #[test]
    fn what_is_no_window_is_refused() {
        for bad in ["", "5", "5-", "-5", "5-5", "1-24", "a-b", "1-2-3"] {
            assert!(bad.parse::<Window>().is_err(), "{bad}");
        }
    }

    #[test]
    fn times_have_units() {
        assert_eq!(parse_time("7d"), Ok(Duration::from_secs(7 * DAY)));
        assert_eq!(parse_time("12h"), Ok(Duration::from_secs(12 * HOUR)));
        assert_eq!(parse_time("30m"), Ok(Duration::from_secs(1800)));
        assert_eq!(parse_time("0"), Ok(Duration::ZERO));
        for bad in [
            "",
            "7",
            "d",
            "-1d",
            "1.5h",
            "99999999999999999999d",
            "9999999999999999999d",
            "7\u{e4}",
        ] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }
}
