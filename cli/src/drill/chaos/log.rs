//! What happened, with times: on standard error and in a file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;

use super::schedule::Class;
use crate::progress::Progress;

/// The drill's log.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    started: Instant,
    progress: Progress,
    /// Faults caused so far.
    pub(super) faults: BTreeMap<Class, u64>,
}

/// What the clients got done so far, for the progress line.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sums {
    /// Writes acknowledged.
    pub(super) writes: u64,
    /// Reads answered.
    pub(super) reads: u64,
    /// The longest time that a request took.
    pub(super) longest_ms: u64,
}

impl Log {
    /// A log in a new file.
    pub(super) fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        let progress = Progress::new();
        Ok(Self { file, started: Instant::now(), progress, faults: BTreeMap::new() })
    }

    /// Since the beginning.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Tells something.
    pub(super) fn tell(&mut self, text: &str) {
        self.progress.clear();
        eprintln!("{:>7.1} s  {text}", self.elapsed().as_secs_f64());
        self.record(text);
    }

    /// Tells it the file alone.
    pub(super) fn record(&mut self, text: &str) {
        let line = format!("{} {:>9.3} {text}\n", utc(), self.elapsed().as_secs_f64());
        if let Err(e) = self.file.write_all(line.as_bytes()) {
            tracing::warn!(error = %e, "the drill's log can't be written");
        }
    }

    /// Shows where things stand, on a terminal.
    pub(super) fn show(&mut self, sums: Sums) {
        let elapsed = self.started.elapsed().as_secs();
        let faults = &self.faults;
        self.progress.show(|| {
            let by_class: Vec<String> =
                faults.iter().map(|(class, count)| format!("{} {count}", class.word())).collect();
            format!(
                "{}:{:02}  {} writes, {} reads, longest stall {} ms; faults: {}",
                elapsed / 60,
                elapsed % 60,
                sums.writes,
                sums.reads,
                sums.longest_ms,
                by_class.join(", ")
            )
        });
    }
}

/// The time of day in UTC, as the nodes' logs have it.
fn utc() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, millis) = (since.as_secs() % 86_400, since.subsec_millis());
    format!("{:02}:{:02}:{:02}.{millis:03}Z", seconds / 3600, seconds / 60 % 60, seconds % 60)
}
