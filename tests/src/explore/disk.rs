//! A replica's store as the explorer needs it: few entries, and what a crash takes told from what
//! it leaves.

use std::collections::{BTreeMap, BTreeSet};

use sbk_engine::replication::io::{Kept, Opened};
use sbk_engine::replication::log::{EntryHeader, EntryKind, LogState};
use sbk_engine::replication::message::{Incomplete, RecoveryId};
use sbk_engine::types::{BootId, Incarnation, Lsn, ReplicaId, ReplicaRef, TailId};
use serde::Serialize;
use uuid::Uuid;

use super::world::VOLUME;

/// An entry and the value that a write gives its blocks (0 reads as never written).
pub(crate) type Entry = (EntryHeader, u64);

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Disk {
    pub(crate) kept: Kept,
    /// Entries from `retained` on, synced up to `durable`.
    pub(crate) log: BTreeMap<Lsn, Entry>,
    pub(crate) end: Lsn,
    pub(crate) durable: Lsn,
    pub(crate) committed: Lsn,
    pub(crate) checkpoint: Lsn,
    pub(crate) retained: Lsn,
    /// The committed image as of the checkpoint, and the log's state with it.
    pub(crate) image: BTreeMap<u64, u64>,
    state: LogState,
    /// The last entry that touched each block of the image: a block is a region here.
    wrote: BTreeMap<u64, Lsn>,
    /// Blocks that a checkpoint moved from the log to the image since a base lane began.
    touched: BTreeSet<u64>,
    pub(crate) opens: u64,
    /// Checkpointed entries go from the log at once, unless a session holds them.
    short: bool,
    pins: BTreeMap<RecoveryId, Lsn>,
}

impl Disk {
    pub(crate) fn new(blocks: u64, short: bool) -> Self {
        Self {
            kept: Kept::default(),
            log: BTreeMap::new(),
            end: Lsn(0),
            durable: Lsn(0),
            committed: Lsn(0),
            checkpoint: Lsn(0),
            retained: Lsn(1),
            image: BTreeMap::new(),
            state: LogState::new(blocks),
            wrote: BTreeMap::new(),
            touched: BTreeSet::new(),
            opens: 0,
            short,
            pins: BTreeMap::new(),
        }
    }

    /// The process is gone. What was not synced is lost, or it is found and synced by the next
    /// opening.
    pub(crate) fn crash(&mut self, keep_tail: bool) {
        self.pins.clear();
        if keep_tail {
            self.durable = self.end;
        }
        self.log.retain(|lsn, _| *lsn <= self.durable);
        self.end = self.durable;
    }

    pub(crate) fn open(&mut self, replica: ReplicaId) -> Opened {
        self.opens += 1;
        for (header, _) in self.log.values() {
            if self.kept.incomplete.is_none() {
                self.kept.table.observe(header);
            }
        }
        let mut state = self.state.clone();
        for (header, _) in self.entries(self.checkpoint.next(), self.committed) {
            state.apply(&header);
        }
        let uncommitted = self.entries(self.committed.next(), self.durable);
        Opened {
            volume: VOLUME,
            me: ReplicaRef {
                id: replica,
                incarnation: Incarnation { process: self.opens, open: 1 },
            },
            tail: TailId { boot: BootId(Uuid::from_u128(1)), count: 0 },
            kept: self.kept.clone(),
            durable: self.durable,
            committed: self.committed,
            checkpoint: self.checkpoint,
            retained: self.retained,
            state,
            uncommitted: uncommitted.into_iter().map(|(header, _)| header).collect(),
        }
    }

    pub(crate) fn entries(&self, first: Lsn, last: Lsn) -> Vec<Entry> {
        if first > last {
            return Vec::new();
        }
        self.log.range(first..=last).map(|(_, entry)| *entry).collect()
    }

    pub(crate) fn append(&mut self, header: EntryHeader, value: u64) {
        assert_eq!(header.lsn, self.end.next(), "L1: appended out of order");
        self.end = header.lsn;
        self.log.insert(header.lsn, (header, value));
    }

    pub(crate) fn cut(&mut self, end: Lsn) {
        assert!(end >= self.checkpoint, "I5: a cut below the checkpoint");
        self.log.retain(|lsn, _| *lsn <= end);
        self.end = end;
        self.durable = self.durable.min(end);
        self.committed = self.committed.min(end);
    }

    pub(crate) fn wipe(&mut self, mark: &Incomplete, state: LogState) {
        let base = mark.base;
        self.log.clear();
        if mark.from == Lsn(0) {
            self.image.clear();
        }
        self.wrote.clear();
        self.touched.clear();
        self.state = state;
        self.end = base;
        self.durable = base;
        self.committed = base;
        self.checkpoint = base;
        self.retained = base.next();
    }

    pub(crate) fn pin(&mut self, session: RecoveryId, from: Lsn) {
        self.pins.insert(session, from);
    }

    pub(crate) fn unpin(&mut self, session: RecoveryId) {
        self.pins.remove(&session);
    }

    /// The newest logged value of a block.
    pub(crate) fn newest(&self, block: u64) -> u64 {
        self.as_of(block, self.end)
    }

    pub(crate) fn as_of(&self, block: u64, lsn: Lsn) -> u64 {
        let touches = |header: &EntryHeader| {
            header.kind.range().is_some_and(|r| (r.lba.0..r.end()).contains(&block))
        };
        let logged = self.entries(self.checkpoint.next(), lsn).into_iter().rev();
        match logged.into_iter().find(|(header, _)| touches(header)) {
            Some((header, value)) if matches!(header.kind, EntryKind::Write { .. }) => value,
            Some(_) => 0,
            None => self.image.get(&block).copied().unwrap_or(0),
        }
    }

    /// The last committed entry that touched each block.
    pub(crate) fn wrote(&self) -> BTreeMap<u64, Lsn> {
        let mut wrote = self.wrote.clone();
        for (header, _) in self.entries(self.checkpoint.next(), self.committed) {
            for block in header.kind.range().iter().flat_map(|range| range.lba.0..range.end()) {
                wrote.insert(block, header.lsn);
            }
        }
        wrote
    }

    /// Base blocks go below what the log has brought since.
    pub(crate) fn take_base(&mut self, image: &BTreeMap<u64, u64>, wrote: &BTreeMap<u64, Lsn>) {
        for (block, value) in image {
            if !self.touched.contains(block) {
                self.image.insert(*block, *value);
            }
        }
        for (block, lsn) in wrote {
            let mine = self.wrote.entry(*block).or_insert(*lsn);
            *mine = (*mine).max(*lsn);
        }
    }

    /// Takes everything up to `lsn` into the image, and lets old entries go.
    pub(crate) fn commit(&mut self, lsn: Lsn) {
        assert!(lsn <= self.durable, "I5: committed beyond the durable end");
        self.committed = self.committed.max(lsn);
        for (header, value) in self.entries(self.checkpoint.next(), lsn) {
            if let Some(range) = header.kind.range() {
                let write = matches!(header.kind, EntryKind::Write { .. });
                for block in range.lba.0..range.end() {
                    self.image.insert(block, if write { value } else { 0 });
                    self.touched.insert(block);
                    self.wrote.insert(block, header.lsn);
                }
            }
            self.state.apply(&header);
        }
        self.checkpoint = self.checkpoint.max(lsn);
        if self.short {
            let pinned = self.pins.values().min().copied();
            let free = self.checkpoint.next();
            self.retained = self.retained.max(pinned.map_or(free, |pin| pin.min(free)));
            self.log.retain(|at, _| *at >= self.retained);
        }
    }
}
