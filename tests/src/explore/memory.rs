//! What a node became and did when it took something: many worlds have a node in common, and it does
//! the same in all of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::node::{Effect, Node};

/// A node after it took something.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) node: Arc<Node>,
    pub(crate) digest: u64,
    pub(crate) effects: Arc<[Effect]>,
}

/// By the clock, the node and what it took. Each part is forgotten when it is full.
#[derive(Debug, Default)]
pub(crate) struct Memory([Mutex<HashMap<u64, Known>>; 16]);

const FULL: usize = 8192;

impl Memory {
    pub(crate) fn recall(&self, key: u64) -> Option<Known> {
        self.0[key as usize % 16].lock().ok()?.get(&key).cloned()
    }

    pub(crate) fn learn(&self, key: u64, known: Known) -> Known {
        if let Ok(mut part) = self.0[key as usize % 16].lock() {
            if part.len() >= FULL {
                part.clear();
            }
            part.insert(key, known.clone());
        }
        known
    }
}
