//! Progress of long work, on a terminal only.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

const REFRESH: Duration = Duration::from_millis(100);

/// One line on standard error that is written over and over. Writes nothing if standard error is
/// no terminal, so logs and pipes stay clean.
#[derive(Debug)]
pub struct Progress {
    terminal: bool,
    started: Instant,
    shown: Option<Instant>,
    dirty: bool,
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Progress {
    /// A line that is empty yet.
    pub fn new() -> Self {
        Self {
            terminal: std::io::stderr().is_terminal(),
            started: Instant::now(),
            shown: None,
            dirty: false,
        }
    }

    /// Shows what is being done. Often called, seldom written.
    pub fn show(&mut self, text: impl FnOnce() -> String) {
        if !self.terminal || self.shown.is_some_and(|at| at.elapsed() < REFRESH) {
            return;
        }
        self.shown = Some(Instant::now());
        self.dirty = true;
        eprint!("\r\x1b[K{}", text());
        // A terminal that went away takes the progress with it, not the work.
        if std::io::stderr().flush().is_err() {
            self.terminal = false;
        }
    }

    /// Shows `done` of `total` units with rate and time left.
    pub fn of(&mut self, what: &str, done: u64, total: u64, unit: impl Fn(u64) -> String) {
        let elapsed = self.started.elapsed();
        self.show(|| measure(what, done, total, elapsed, unit));
    }

    /// Removes the line.
    pub fn clear(&mut self) {
        if self.dirty {
            self.dirty = false;
            eprint!("\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn measure(
    what: &str,
    done: u64,
    total: u64,
    elapsed: Duration,
    unit: impl Fn(u64) -> String,
) -> String {
    let percent = (u128::from(done) * 100).checked_div(u128::from(total)).unwrap_or(100);
    let rate = done as f64 / elapsed.as_secs_f64().max(0.001);
    let left = if rate > 0.0 && total >= done {
        format!("{:.0} s left", (total - done) as f64 / rate)
    } else {
        "no estimate yet".to_owned()
    };
    format!("{what}: {percent}% of {}, {}/s, {left}", unit(total), unit(rate as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_and_time_left_are_told() {
        let text = measure("reading", 25, 100, Duration::from_secs(5), |n| format!("{n} B"));
        assert_eq!(text, "reading: 25% of 100 B, 5 B/s, 15 s left");
        let text = measure("reading", 0, 0, Duration::ZERO, |n| n.to_string());
        assert_eq!(text, "reading: 100% of 0, 0/s, no estimate yet");
    }
}
