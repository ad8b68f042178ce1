//! The machine stops at every I/O of a workload: whatever was promised before is there after.

use super::backend::Backend;
use super::stops::{self, Crash, Found};

/// The seeds to run: `SEEDS=a..b` if the environment says so.
pub(crate) fn seeds(default: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let Ok(wanted) = std::env::var("SEEDS") else { return default };
    let ends = wanted.split_once("..").expect("SEEDS is a range, as in 3..7");
    ends.0.parse().expect("a number")..ends.1.parse().expect("a number")
}

/// The operation to start with: `AT=n`, to run one case again.
fn first() -> u64 {
    std::env::var("AT").map_or(0, |at| at.parse().expect("AT is a number"))
}

fn every_io(backend: Backend, crash: Crash, default: std::ops::Range<u64>, steps: u64) {
    match stops::every_io(backend, crash, seeds(default), first(), steps) {
        Ok(all) => println!("{backend:?}, {crash:?}: {all} crashes"),
        Err(Found { seed, at, what }) => panic!(
            "{backend:?}, {crash:?}, crash at operation {at}: {what}\nagain: SEEDS={seed}..{} AT={at} cargo \
             test -p sbk-store --test store crash",
            seed + 1
        ),
    }
}

#[test]
fn what_was_durable_survives_a_loss_of_power_at_every_io() {
    every_io(Backend::Files, Crash::PowerLoss, 0..2, 50);
}

#[test]
fn what_was_written_survives_a_kill_at_every_io() {
    every_io(Backend::Files, Crash::Kill, 8..9, 50);
}

#[test]
fn what_was_durable_on_a_device_survives_a_loss_of_power_at_every_io() {
    every_io(Backend::Device, Crash::PowerLoss, 0..2, 50);
}

#[test]
fn what_was_written_to_a_device_survives_a_kill_at_every_io() {
    every_io(Backend::Device, Crash::Kill, 8..9, 50);
}

#[test]
fn what_was_durable_encrypted_survives_a_loss_of_power_at_every_io() {
    every_io(Backend::Sealed, Crash::PowerLoss, 0..2, 50);
}

#[test]
fn what_was_written_encrypted_survives_a_kill_at_every_io() {
    every_io(Backend::Sealed, Crash::Kill, 8..9, 50);
}

#[test]
fn what_was_durable_encrypted_on_a_device_survives_a_loss_of_power_at_every_io() {
    every_io(Backend::SealedDevice, Crash::PowerLoss, 0..2, 50);
}

#[test]
fn what_was_written_encrypted_to_a_device_survives_a_kill_at_every_io() {
    every_io(Backend::SealedDevice, Crash::Kill, 8..9, 50);
}
