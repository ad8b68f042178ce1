//! Log that is let go for its age: it is kept for others for so long, and then no more, but for sessions that
//! bring it to somebody.
//!
//! Each node's store is told the time as a runtime tells it. What it lets go of is judged from outside, by when its
//! checkpoint was seen where: a part of the log that has not been in the extents for as long as it is to be kept
//! goes only for the room that the log takes, and what a session needs only if the bound on pins is reached too.

use std::collections::VecDeque;

use sbk_engine::replication::message::Incomplete;
use sbk_engine::types::{BLOCK_SIZE, Lsn};

use super::marks::Mark;
use super::world::World;

/// Where a store's checkpoint was seen, by its node's clock.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ages {
    seen: VecDeque<(u64, Lsn)>,
    /// Everything up to here has been in the extents for as long as it is to be kept.
    old: Lsn,
    /// Everything up to here was let go for that.
    gone: Lsn,
}

impl Ages {
    fn note(&mut self, now: u64, checkpoint: Lsn, keep_ms: u64) {
        // The log begins anew.
        if self.seen.back().is_some_and(|(_, before)| *before > checkpoint) {
            *self = Self::default();
        }
        if self.seen.back().is_none_or(|(_, before)| *before < checkpoint) {
            self.seen.push_back((now, checkpoint));
        }
        while let Some((_, lsn)) = self.seen.pop_front_if(|(at, _)| now - *at >= keep_ms) {
            self.old = lsn;
        }
    }
}

/// What a store kept for others before it let go of some of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retained {
    first: Lsn,
    /// Bytes that it takes, at most.
    bytes: u64,
    lost_a_pin: bool,
}

impl World {
    /// Tells a node's store the time.
    pub(super) fn pass_time(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let now = node.clock(self.now);
        let disk = &mut node.disk;
        disk.store().pass_time(now);
        if self.faults.ages > 0 {
            let checkpoint = disk.store().checkpoint();
            disk.ages.note(now.0, checkpoint, self.faults.ages);
        }
    }

    /// What a node's store keeps for others.
    pub(super) fn retained(&mut self, index: usize) -> Retained {
        let disk = &mut self.nodes[index].disk;
        let wal = disk.wal_bytes();
        let store = disk.store();
        let (first, last) = (store.retained(), store.checkpoint());
        // Clients write single blocks.
        let payloads = (first.0..=last.0).filter(|lsn| store.refers(Lsn(*lsn))).count() as u64;
        Retained { first, bytes: wal + payloads * BLOCK_SIZE, lost_a_pin: store.lost_a_pin() }
    }

    /// It may have let go of some of it.
    pub(super) fn check_released(&mut self, index: usize, before: Retained) {
        let after = self.retained(index);
        let disk = &mut self.nodes[index].disk;
        let (keeps, pins) = (disk.keeps_bytes(), disk.retained_bytes());
        assert!(
            before.lost_a_pin || !after.lost_a_pin || before.bytes > pins,
            "R7: node {index} lets go of what a session needs up to {}, while {} bytes of at most {pins} are kept",
            after.first,
            before.bytes
        );
        if after.first <= before.first || before.bytes > keeps || disk.short_since.is_some() {
            return;
        }
        let last = after.first.prev();
        assert!(
            last <= disk.ages.old,
            "R10: node {index} lets go of its log up to {last}, and what is old enough ends at {}",
            disk.ages.old
        );
        disk.ages.gone = last;
        self.mark(Mark::AgedOut);
    }

    /// A session was sent a part of the log.
    pub(super) fn mark_kept(&mut self, index: usize, first: Lsn) {
        if first <= self.nodes[index].disk.ages.old {
            self.mark(Mark::AgedKept);
        }
    }

    /// A base lane begins, from a node's store.
    pub(super) fn mark_aged(&mut self, sender: Option<usize>, mark: &Incomplete) {
        let Some(sender) = sender else { return };
        if mark.from > Lsn(0) && mark.from < self.nodes[sender].disk.ages.gone {
            self.mark(Mark::AgedDelta);
        }
    }
}
