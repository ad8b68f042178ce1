//! The last write of a replica's log rots while its process is away: it knows that it may have lost it.

use std::sync::Arc;

use sbk_wal::{Memory, Storage};

use super::driver::{self, Driver};
use super::events::Event;
use super::model::Model;

fn storage(disk: &Memory) -> Arc<dyn Storage> {
    Arc::new(disk.clone())
}

/// A replica that was worked on and killed, and the end of its log then; a bit of its last write flips.
fn rotten(seed: u64) -> (Memory, u64) {
    // Where a checkpoint came last, the superblock knows how far the log went.
    (60..160).find_map(|steps| rotten_after(seed, steps)).expect("a write that nothing proves")
}

fn rotten_after(seed: u64, steps: u64) -> Option<(Memory, u64)> {
    let disk = Memory::new(seed);
    driver::create(&storage(&disk), 0).expect("a replica");
    let mut model = Model::new(seed, 0);
    let open = driver::open(&storage(&disk), 0).expect("a store");
    let mut hear = |event: Event| model.hear(event);
    let mut driver = Driver::new(seed, 1, open, false, &mut hear);
    driver.run(steps).expect("the disk is sound");
    drop(driver);
    disk.process_killed();
    let (_, sound) = driver::open(&storage(&disk.fork()), 0).expect("it is");
    let end = sound.durable.0;
    let segments = disk.paths().into_iter().rev().filter(|path| path.ends_with(".seg"));
    let bits = segments.flat_map(|path| {
        let content = disk.content(&path).expect("it is there");
        let bits = (0..content.len() as u64 * 8).rev();
        let set = bits.filter(|bit| content[*bit as usize / 8] >> (bit % 8) & 1 == 1);
        set.step_by(97).map(|bit| (path.clone(), bit)).collect::<Vec<_>>()
    });
    let (path, bit) = bits.into_iter().find(|(path, bit)| {
        let copy = disk.fork();
        copy.flip(path, *bit);
        driver::open(&storage(&copy), 0).is_ok_and(|(_, opened)| opened.durable.0 < end)
    })?;
    assert!(disk.flip(&path, bit));
    Some((disk, end))
}

/// Killed or without power at any I/O of the opening that finds it, and of the next: the doubt stays until
/// the engine takes it back.
#[test]
fn a_doubt_outlives_the_trace_that_it_came_from() {
    let mut stopped = 0;
    for seed in 31..34 {
        let (rotten, end) = rotten(seed);
        for power in [false, true] {
            for at in 0.. {
                let disk = rotten.fork();
                disk.crash_after(at);
                let whole = driver::open(&storage(&disk), 0).is_ok() && !disk.crashed();
                if power {
                    disk.power_loss()
                } else {
                    disk.process_killed()
                };
                let (_, opened) = driver::open(&storage(&disk), 0).expect("opens");
                let context = format!("seed {seed}, stopped at I/O {at}, power {power}");
                assert!(opened.durable.0 < end, "{context}");
                assert!(opened.kept.doubtful, "{context}");
                stopped += 1;
                if whole {
                    break;
                }
            }
        }
        let (mut store, opened) = driver::open(&storage(&rotten), 0).expect("opens");
        let mut kept = opened.kept.clone();
        kept.doubtful = false;
        store.persist(&kept).expect("a sound disk");
        drop(store);
        rotten.process_killed();
        let (_, opened) = driver::open(&storage(&rotten), 0).expect("opens");
        assert!(!opened.kept.doubtful, "seed {seed}: what is written behind it is all there was");
    }
    assert!(stopped > 30, "{stopped}");
}
