//! What a replica promised, after the loss of one of its superblock's two slots.

use std::sync::Arc;

use sbk_engine::types::Epoch;
use sbk_wal::{Memory, Storage};

use super::driver;

/// Bytes of a slot.
const SLOT: u64 = 4096;

/// One slot rots, and the power goes right behind the promise: what is in the other one must be as new.
#[test]
fn a_promise_outlives_either_slot_and_a_loss_of_power() {
    for promised in 1..=4 {
        let disk = Memory::new(promised);
        let storage: Arc<dyn Storage> = Arc::new(disk.clone());
        driver::create(&storage, 0).expect("a replica");
        let (mut store, _) = driver::open(&storage, 0).expect("opens");
        for epoch in (1..=promised).map(Epoch) {
            let mut kept = store.kept().clone();
            kept.fenced = epoch;
            store.persist(&kept).expect("a sound disk");
        }
        for slot in 0..2 {
            let copy = disk.fork();
            copy.lose_unsynced();
            assert!(copy.flip("superblock", (slot * SLOT + 40) * 8), "there is such a bit");
            let storage: Arc<dyn Storage> = Arc::new(copy);
            let (_, opened) = driver::open(&storage, 0).expect("the other slot is whole");
            assert_eq!(opened.kept.fenced, Epoch(promised), "without slot {slot}");
        }
    }
}
