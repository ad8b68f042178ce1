//! The making of a replica, stopped at each of its I/Os.

use std::sync::Arc;

use sbk_wal::{Memory, Storage};

use super::driver;

/// A replica that could be opened counts from then on: what is acknowledged is on it. So it is there after
/// a loss of power, also if who made it was killed before all of its names were durable.
#[test]
fn a_replica_that_was_opened_outlives_a_loss_of_power_however_its_making_ended() {
    let (mut opened, mut cut_short) = (0, 0);
    for seed in 0..6 {
        for at in 0.. {
            let disk = Memory::new(seed);
            let storage: Arc<dyn Storage> = Arc::new(disk.clone());
            disk.crash_after(at);
            let made = driver::create(&storage, 0).is_ok() && !disk.crashed();
            disk.process_killed();
            if driver::open(&storage, 0).is_ok() {
                disk.power_loss();
                let again = driver::open(&storage, 0).map(drop);
                again.unwrap_or_else(|e| panic!("seed {seed}, killed at I/O {at}: {e}"));
                opened += 1;
            } else {
                cut_short += 1;
            }
            if made {
                break;
            }
        }
    }
    // The whole one of each seed, and at least the one whose last sync is missing.
    assert!(opened >= 12 && cut_short > 12, "{opened} opened, {cut_short} cut short");
}
