//! A replica's store as a model: what survives a crash is told from what does not.

use std::collections::{BTreeMap, BTreeSet};

use sbk_engine::replication::io::{Kept, Opened};
use sbk_engine::replication::log::{EntryHeader, EntryKind, LogState};
use sbk_engine::types::{BootId, Incarnation, Lsn, ReplicaId, ReplicaRef, VolumeId};
use uuid::Uuid;

/// An entry and the value that a write gives its blocks (0 reads as never written).
pub(crate) type Entry = (EntryHeader, u64);

#[derive(Clone, Debug)]
pub(crate) struct Disk {
    pub(crate) kept: Kept,
    /// Entries from `retained` on, synced up to `durable`.
    pub(crate) log: BTreeMap<Lsn, Entry>,
    pub(crate) durable: Lsn,
    pub(crate) committed: Lsn,
    pub(crate) checkpoint: Lsn,
    pub(crate) retained: Lsn,
    pub(crate) end: Lsn,
    /// The committed image as of the checkpoint, and the log's state with it.
    pub(crate) image: BTreeMap<u64, u64>,
    pub(crate) state: LogState,
    /// Blocks that the WAL lane touched since the wipe.
    pub(crate) touched: BTreeSet<u64>,
    pub(crate) opens: u64,
    /// How many checkpointed entries stay for catch-up.
    pub(crate) keep: u64,
    pub(crate) pins: BTreeMap<String, Lsn>,
}

impl Disk {
    pub(crate) fn new(blocks: u64, keep: u64) -> Self {
        Self {
            kept: Kept::default(),
            log: BTreeMap::new(),
            durable: Lsn(0),
            committed: Lsn(0),
            checkpoint: Lsn(0),
            retained: Lsn(1),
            end: Lsn(0),
            image: BTreeMap::new(),
            state: LogState::new(blocks),
            touched: BTreeSet::new(),
            opens: 0,
            keep,
            pins: BTreeMap::new(),
        }
    }

    /// Opens after a crash: what was not synced is gone.
    pub(crate) fn open(&mut self, volume: VolumeId, replica: ReplicaId) -> Opened {
        self.opens += 1;
        self.pins.clear();
        self.log.retain(|lsn, _| *lsn <= self.durable);
        self.end = self.durable;
        for (header, _) in self.log.values() {
            if self.kept.incomplete.is_none() {
                self.kept.table.observe(header);
            }
        }
        let mut state = self.state.clone();
        for (header, _) in self.entries(self.checkpoint.next(), self.committed) {
            state.apply(&header);
        }
        Opened {
            volume,
            me: ReplicaRef {
                id: replica,
                incarnation: Incarnation { process: self.opens, open: 1 },
            },
            boot: BootId(Uuid::from_u128(1)),
            kept: self.kept.clone(),
            durable: self.durable,
            committed: self.committed,
            checkpoint: self.checkpoint,
            retained: self.retained,
            state,
            uncommitted: self
                .entries(self.committed.next(), self.durable)
                .into_iter()
                .map(|(header, _)| header)
                .collect(),
        }
    }

    pub(crate) fn entries(&self, first: Lsn, last: Lsn) -> Vec<Entry> {
        if first > last {
            return Vec::new();
        }
        self.log.range(first..=last).map(|(_, entry)| *entry).collect()
    }

    pub(crate) fn append(&mut self, header: EntryHeader, value: u64) {
        assert_eq!(header.lsn, self.end.next(), "the driver appends in order");
        self.end = header.lsn;
        self.log.insert(header.lsn, (header, value));
    }

    pub(crate) fn cut(&mut self, end: Lsn, kept: Kept) {
        assert!(end >= self.checkpoint, "a cut below the checkpoint");
        self.log.retain(|lsn, _| *lsn <= end);
        self.end = end;
        self.durable = self.durable.min(end);
        self.committed = self.committed.min(end);
        self.kept = kept;
    }

    pub(crate) fn wipe(&mut self, base: Lsn, state: LogState, kept: Kept) {
        self.kept = kept;
        self.log.clear();
        self.image.clear();
        self.touched.clear();
        self.state = state;
        self.end = base;
        self.durable = base;
        self.committed = base;
        self.checkpoint = base;
        self.retained = base.next();
    }

    /// The newest logged value of a block.
    pub(crate) fn newest(&self, block: u64) -> u64 {
        self.as_of(block, self.end)
    }

    pub(crate) fn as_of(&self, block: u64, lsn: Lsn) -> u64 {
        let logged = self.entries(self.checkpoint.next(), lsn).into_iter().rev();
        for (header, value) in logged {
            if let Some(range) = header.kind.range()
                && (range.lba.0..range.end()).contains(&block)
            {
                return if matches!(header.kind, EntryKind::Write { .. }) { value } else { 0 };
            }
        }
        self.image.get(&block).copied().unwrap_or(0)
    }

    /// Takes everything up to `lsn` into the image, and lets old entries go.
    pub(crate) fn commit(&mut self, lsn: Lsn) {
        assert!(lsn <= self.durable, "committed beyond the durable end");
        self.committed = self.committed.max(lsn);
        for (header, value) in self.entries(self.checkpoint.next(), lsn) {
            if let Some(range) = header.kind.range() {
                let write = matches!(header.kind, EntryKind::Write { .. });
                for block in range.lba.0..range.end() {
                    self.image.insert(block, if write { value } else { 0 });
                    self.touched.insert(block);
                }
            }
            self.state.apply(&header);
        }
        self.checkpoint = self.checkpoint.max(lsn);
        let pinned = self.pins.values().min().copied().unwrap_or(self.checkpoint.next());
        let keep = Lsn(self.checkpoint.0.saturating_sub(self.keep) + 1).min(pinned);
        self.retained = self.retained.max(keep);
        self.log.retain(|at, _| *at >= self.retained);
    }

    pub(crate) fn committed_image(&self) -> BTreeMap<u64, u64> {
        let mut image = self.image.clone();
        image.retain(|_, value| *value != 0);
        image
    }
}
