//! Three replicas of one volume, their masters and their clients on one thread from one seed: the
//! real engine over a modelled disk and a network that loses, delays, repeats and reorders.
//!
//! A safety phase with crashes and partitions, then everything heals and must converge. Every read
//! is checked against the history; the committed images must be equal in the end.
//!
//! `SEEDS=from..to cargo test -p sbk-engine --release --test cluster -- --nocapture` runs others.

mod client;
mod disk;
mod history;
mod masters;
mod rng;
mod world;

use world::{Faults, World};

fn run(seed: u64, faults: Faults) -> world::Summary {
    let mut world = World::new(seed, faults);
    world.run_until(20_000);
    world.heal();
    world.run_until_converged(120_000);
    world.check()
}

#[allow(clippy::disallowed_methods, reason = "the test's own knob, not the engine's")]
fn seeds(default: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let parsed = std::env::var("SEEDS").ok().and_then(|text| {
        let (from, to) = text.split_once("..")?;
        Some(from.parse().ok()?..to.parse().ok()?)
    });
    parsed.unwrap_or(default)
}

fn sweep(name: &str, default: std::ops::Range<u64>, faults: fn(u64) -> Faults) {
    let mut total = world::Summary::default();
    for seed in seeds(default) {
        let result = std::panic::catch_unwind(|| run(seed, faults(seed)));
        match result {
            Ok(summary) => total.add(&summary),
            Err(cause) => {
                eprintln!("{name}: seed {seed} fails; SEEDS={seed}..{} reproduces it", seed + 1);
                std::panic::resume_unwind(cause);
            }
        }
    }
    eprintln!("{name}: {total:?}");
    assert!(total.acknowledged > 0, "no write was ever acknowledged");
    assert!(total.reads > 0, "no read was ever answered");
}

#[test]
fn a_quiet_cluster_serves() {
    sweep("quiet", 0..20, |_| Faults::none());
}

#[test]
fn a_lossy_network_loses_no_write() {
    sweep("lossy", 0..60, |_| Faults { loss: 3, repeat: 5, slow: 10, ..Faults::none() });
}

#[test]
fn crashes_lose_no_acknowledged_write() {
    sweep("crashes", 0..100, |_| Faults { crash: true, ..Faults::none() });
}

#[test]
fn partitions_and_pauses_lose_no_acknowledged_write() {
    sweep("partitions", 0..100, |_| Faults { partition: true, ..Faults::none() });
}

#[test]
fn everything_at_once_loses_no_acknowledged_write() {
    sweep("everything", 0..200, |seed| Faults {
        loss: seed % 4,
        repeat: seed % 3,
        slow: seed % 20,
        crash: true,
        partition: true,
        short_wal: seed % 2 == 0,
    });
}
