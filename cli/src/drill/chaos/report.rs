//! What a run of the drill came to.

use std::collections::BTreeMap;

use serde::Serialize;

use super::schedule::Class;
use super::volumes::Told;
use crate::output::table;
use crate::workload::roaming::RoamingStats;

/// One volume.
#[derive(Clone, Debug, Serialize)]
pub(super) struct VolumeReport {
    /// What it is like.
    #[serde(flatten)]
    pub kind: Told,
    /// Its epoch at the end.
    pub epoch: u64,
    /// How often acknowledged writes may have been lost.
    pub losses: u64,
    /// Blocks whose write was acknowledged.
    pub acknowledged_blocks: u64,
    /// Writes whose fate was never learned: their connection ended.
    pub open_writes: u64,
    /// What its clients saw.
    #[serde(flatten)]
    pub load: RoamingStats,
}

/// The run.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    /// Whether nothing was wrong.
    pub ok: bool,
    /// The schedule's seed.
    pub seed: u64,
    /// How long it took, in seconds.
    pub elapsed_s: f64,
    /// Whether it was ended from outside before its time.
    pub interrupted: bool,
    /// Classes of faults that can't be caused here, and why.
    pub unavailable: BTreeMap<String, String>,
    /// Faults caused, by class.
    pub(super) faults: BTreeMap<Class, u64>,
    /// What the replicas decided, by the word of the trace, as far as it is in their logs: which of
    /// the interesting states were reached.
    pub(super) decisions: BTreeMap<String, u64>,
    /// How often each thing was reached that the drill is there for. A run of some minutes may miss one.
    pub(super) reached: BTreeMap<&'static str, u64>,
    /// Times that everything was healed, became whole and was checked.
    pub checks: u64,
    /// The longest time from the end of the last fault until all replicas of all volumes were in
    /// sync, in milliseconds.
    pub longest_convergence_ms: u64,
    /// The volumes.
    pub(super) volumes: Vec<VolumeReport>,
    /// What is wrong.
    pub violations: Vec<String>,
    /// Where everything about it is kept, if something is wrong or it was asked for.
    pub folder: Option<String>,
    /// The command that runs the same schedule again.
    pub again: String,
}

impl Report {
    /// For people.
    pub(super) fn words(&self) -> String {
        let rows = self.volumes.iter().map(|v| {
            vec![
                v.kind.name.to_owned(),
                v.epoch.to_string(),
                v.losses.to_string(),
                v.load.writes.to_string(),
                v.load.reads.to_string(),
                v.load.flushes.to_string(),
                v.load.lost_connections.to_string(),
                v.open_writes.to_string(),
                v.load.timed_out.to_string(),
                format!("{} ms", v.load.longest_request_ms),
            ]
        });
        let header = [
            "volume",
            "epoch",
            "losses",
            "writes",
            "reads",
            "flushes",
            "connections lost",
            "fate unknown",
            "timed out",
            "longest stall",
        ];
        let total: u64 = self.faults.values().sum();
        let mut text = table(&header, rows);
        let faults: Vec<String> =
            self.faults.iter().map(|(class, count)| format!("{} {count}", class.word())).collect();
        text += &format!("\n{total} faults: {}.\n", faults.join(", "));
        let decisions: Vec<String> =
            self.decisions.iter().map(|(word, count)| format!("{word} {count}")).collect();
        text += &format!("Decided by the replicas: {}.\n", decisions.join(", "));
        let reached: Vec<String> =
            self.reached.iter().map(|(what, count)| format!("{what} {count}")).collect();
        text += &format!("Reached: {}.\n", reached.join(", "));
        for (what, _) in self.reached.iter().filter(|(_, count)| **count == 0) {
            text += &format!("NEVER REACHED, and so not tried: {what}.\n");
        }
        for (class, why) in &self.unavailable {
            text += &format!("Not tried: {class}, {why}.\n");
        }
        text += &format!(
            "Healed and checked {} times in {:.0} s; whole again after {} ms at most.\n",
            self.checks, self.elapsed_s, self.longest_convergence_ms
        );
        for violation in &self.violations {
            text += &format!("WRONG: {violation}\n");
        }
        text += match (self.ok, self.interrupted) {
            (true, false) => {
                "No acknowledged write was lost but by a loss that was counted, every other history is \
                 linearizable, all replicas are equal.\n"
            }
            (true, true) => "Interrupted; nothing was wrong at the last check.\n",
            (false, _) => "THE DRILL FAILED.\n",
        };
        if let Some(folder) = &self.folder {
            text += &format!("Logs, traces, metrics, histories and data are kept in {folder}\n");
        }
        text += &format!("The same schedule again: {}\n", self.again);
        text
    }
}
