//! What happened, for a person who looks for the cause.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use super::world::World;

/// Lines that are kept.
const LINES: usize = 400;

thread_local! {
    static TOLD: Cell<bool> = const { Cell::new(false) };
    static LAST: RefCell<VecDeque<String>> = const { RefCell::new(VecDeque::new()) };
}

/// From now on what happens on this thread is remembered.
pub fn remember() {
    TOLD.set(true);
}

/// The last things that happened on this thread, oldest first.
pub fn story() -> Vec<String> {
    LAST.with_borrow(|lines| lines.iter().cloned().collect())
}

impl World {
    /// Something happened at a node.
    pub(crate) fn note(&self, index: usize, what: impl FnOnce() -> String) {
        if TOLD.get() {
            add(format!("{:>7} ms  node {index}   {}", self.now, what()));
        }
    }

    /// Something happened elsewhere.
    pub(crate) fn note_all(&self, what: impl FnOnce() -> String) {
        if TOLD.get() {
            add(format!("{:>7} ms           {}", self.now, what()));
        }
    }
}

fn add(line: String) {
    LAST.with_borrow_mut(|lines| {
        if lines.len() == LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    });
}
