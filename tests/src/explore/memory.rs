//! What a node became and did when it took something: many worlds have a node in common, and it does
//! the same in all of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::canon::Spread;
use super::node::{Effect, Held};

/// A node after it took something.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) node: Arc<Held>,
    pub(crate) effects: Arc<[Effect]>,
}

/// By the clock, the node and what it took. Each part is forgotten when it is full.
#[derive(Debug, Default)]
pub(crate) struct Memory([Mutex<HashMap<Key, Known, Spread>>; 32]);

/// The clock, and the digests of the node and of what it takes.
pub(crate) type Key = (u64, u64, u64);

const FULL: usize = 4096;

impl Memory {
    pub(crate) fn recall(&self, key: Key) -> Option<Known> {
        self.part(key).lock().ok()?.get(&key).cloned()
    }

    pub(crate) fn learn(&self, key: Key, known: Known) -> Known {
        if let Ok(mut part) = self.part(key).lock() {
            if part.len() >= FULL {
                part.clear();
            }
            part.insert(key, known.clone());
        }
        known
    }

    fn part(&self, (_, node, stimulus): Key) -> &Mutex<HashMap<Key, Known, Spread>> {
        &self.0[(node ^ stimulus) as usize % self.0.len()]
    }
}
