//! The machine stops at every I/O of random work: what was synced is there, and nothing is where it was not written.

use super::stops::{Crash, every_io};

fn seeds(default: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let Ok(wanted) = std::env::var("SEEDS") else { return default };
    let ends = wanted.split_once("..").expect("SEEDS is a range, as in 3..7");
    ends.0.parse().expect("a number")..ends.1.parse().expect("a number")
}

fn run(crash: Crash, default: std::ops::Range<u64>) {
    match every_io(crash, seeds(default), 60) {
        Ok(all) => println!("{crash:?}: {all} crashes"),
        Err((seed, at, what)) => panic!("{crash:?}, seed {seed}, at operation {at}: {what}"),
    }
}

#[test]
fn what_was_synced_survives_a_loss_of_power_at_every_io() {
    run(Crash::PowerLoss, 0..5);
}

#[test]
fn what_was_synced_survives_a_kill_at_every_io() {
    run(Crash::Kill, 100..102);
}
