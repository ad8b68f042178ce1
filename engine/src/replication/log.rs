//! What a log is made of: entry headers, the epoch table, and the state that a log implies.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::types::{AttachGeneration, Epoch, Lba, Lsn, MAX_SESSIONS, SEQUENCE_WINDOW, SessionId};

/// A frontend's name for one of its requests.
///
/// `(session, sequence)` is unique for ever; a request is logged at most once under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestTag {
    /// The frontend session.
    pub session: SessionId,
    /// The request's number within the session, from 1.
    pub sequence: u64,
}

/// Who asked for an entry, as the entry's header keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The request.
    pub tag: RequestTag,
    /// The session's low-water mark when the request was sent: the frontend knows the fate of
    /// every sequence `<= low`, so none of them will ever be sent again.
    pub low: u64,
}

/// What an entry does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    /// Blocks get the payload, `blocks * 4096` bytes.
    Write {
        /// First block.
        lba: Lba,
        /// How many, 1 or more.
        blocks: u32,
    },
    /// Blocks read as zeros and their space may go. No payload.
    Trim {
        /// First block.
        lba: Lba,
        /// How many, 1 or more.
        blocks: u32,
    },
    /// Blocks read as zeros. No payload.
    Zero {
        /// First block.
        lba: Lba,
        /// How many, 1 or more.
        blocks: u32,
    },
    /// The origin's session is open from here on. A generation above all before it ends every
    /// earlier attachment, and without an origin it does only that. No payload.
    Attach {
        /// The attachment's generation, never lower than any before it in the log.
        generation: AttachGeneration,
        /// Whether the session has the volume to itself.
        exclusive: bool,
    },
    /// A session is closed from here on; requests of it are refused. No payload.
    Close {
        /// The session.
        session: SessionId,
    },
    /// The volume has this size from here on. No payload.
    Resize {
        /// The new size in blocks.
        blocks: u64,
    },
}

impl EntryKind {
    /// The blocks that the entry changes, if it changes any.
    pub fn range(&self) -> Option<BlockRange> {
        match *self {
            EntryKind::Write { lba, blocks }
            | EntryKind::Trim { lba, blocks }
            | EntryKind::Zero { lba, blocks } => Some(BlockRange { lba, blocks }),
            EntryKind::Attach { .. } | EntryKind::Close { .. } | EntryKind::Resize { .. } => None,
        }
    }

    /// Bytes of payload that travel with the header.
    pub fn payload_len(&self) -> u64 {
        match *self {
            EntryKind::Write { blocks, .. } => u64::from(blocks) * crate::types::BLOCK_SIZE,
            EntryKind::Trim { .. }
            | EntryKind::Zero { .. }
            | EntryKind::Attach { .. }
            | EntryKind::Close { .. }
            | EntryKind::Resize { .. } => 0,
        }
    }
}

/// A run of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRange {
    /// First block.
    pub lba: Lba,
    /// How many, 1 or more.
    pub blocks: u32,
}

impl BlockRange {
    /// One past the last block.
    pub fn end(&self) -> u64 {
        self.lba.0 + u64::from(self.blocks)
    }

    /// Whether the two share a block.
    pub fn overlaps(&self, other: &BlockRange) -> bool {
        self.lba.0 < other.end() && other.lba.0 < self.end()
    }
}

/// One log entry without its payload. The same on every replica: it keeps the epoch in which it
/// was first logged when it is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryHeader {
    /// The epoch in which the entry was first logged.
    pub epoch: Epoch,
    /// Its position.
    pub lsn: Lsn,
    /// What it does.
    pub kind: EntryKind,
    /// Who asked for it; entries that the primary logs by itself have none.
    pub origin: Option<Origin>,
}

/// Which epochs a log went through: `(epoch, the primary's first LSN in it)`, ascending in both.
///
/// A pair is recorded, synced, only once the replica durably holds the whole log below that LSN.
/// Two logs are compared by their whole tables: entries below the first disagreement are the same
/// (KIP-101, KIP-279; Raft's log matching). Epochs with an equal first LSN collapse to the newest,
/// for the older one logged nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochTable(Vec<(Epoch, Lsn)>);

impl EpochTable {
    /// Most pairs that a table keeps; see [`EpochTable::prune`].
    pub const CAPACITY: usize = 128;

    /// Most pairs that a superblock has room for.
    pub const MOST: usize = 240;

    /// A table from pairs, or `None` if they don't ascend in both columns.
    pub fn from_pairs(pairs: Vec<(Epoch, Lsn)>) -> Option<Self> {
        let ordered = pairs.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 < w[1].1);
        ordered.then_some(Self(pairs))
    }

    /// The pairs, oldest first.
    pub fn pairs(&self) -> &[(Epoch, Lsn)] {
        &self.0
    }

    /// The newest epoch recorded.
    pub fn last(&self) -> Option<(Epoch, Lsn)> {
        self.0.last().copied()
    }

    /// Records that `epoch` starts at `first`. Panics if it is not newer than all recorded ones
    /// or starts below the newest: the caller must have cut first.
    pub fn record(&mut self, epoch: Epoch, first: Lsn) {
        if let Some((last_epoch, last_first)) = self.last() {
            assert!(epoch > last_epoch, "L3: epoch table goes back: {last_epoch} then {epoch}");
            assert!(first >= last_first, "L3: epoch {epoch} starts at {first}, below {last_first}");
            if first == last_first {
                self.0.pop();
            }
        }
        self.0.push((epoch, first));
    }

    /// Takes an entry that was appended into account. The first entry of a newer epoch is that
    /// epoch's first LSN: everything at or above its first LSN was logged in it or later, and the
    /// entry before was not. Epochs in between logged nothing and collapse.
    ///
    /// So a log whose crash came between an append and the record of its epoch is still described
    /// truly: the scan at open observes every entry. [Without it a replica that took entries of
    /// epoch 3 at LSN 10 still said "2 starts at 10", and agreed with a log that held epoch 2's.]
    pub fn observe(&mut self, header: &EntryHeader) {
        if self.last().is_none_or(|(epoch, _)| header.epoch > epoch) {
            self.record(header.epoch, header.lsn);
        }
    }

    /// The part of a primary's table that describes a log which agrees with the primary's up to
    /// `end`: the epochs that start at or below `end + 1`, for all below their start is held.
    pub fn up_to(&self, end: Lsn) -> Self {
        Self(self.0.iter().copied().filter(|(_, first)| first.0 <= end.0 + 1).collect())
    }

    /// Drops the oldest pairs, only while the table is over its capacity and only those whose
    /// successor starts at or below `checkpoint + 1`: nothing above the checkpoint loses its epoch.
    /// [A table pruned eagerly turned each absence into a rebuild.]
    pub fn prune(&mut self, checkpoint: Lsn) {
        while self.0.len() > Self::CAPACITY && self.0[1].1.0 <= checkpoint.0 + 1 {
            self.0.remove(0);
        }
    }

    /// The `count` oldest pairs.
    pub fn oldest(&self, count: usize) -> Self {
        Self(self.0.iter().copied().take(count).collect())
    }

    /// How many epochs begin above `lsn`.
    pub fn above(&self, lsn: Lsn) -> u64 {
        self.0.iter().rev().take_while(|(_, first)| *first > lsn).count() as u64
    }

    /// The epoch of the entry at `lsn`, as far as the table reaches back.
    pub fn epoch_at(&self, lsn: Lsn) -> Option<Epoch> {
        self.0.iter().rev().find(|(_, first)| *first <= lsn).map(|(epoch, _)| *epoch)
    }

    /// The highest LSN up to which two logs are known to agree: `mine` ends at `my_end`, `other`
    /// at `other_end`. `None` if they have no epoch in common, which says nothing about their
    /// entries: the tables may have been pruned.
    pub fn common_end(&self, my_end: Lsn, other: &EpochTable, other_end: Lsn) -> Option<Lsn> {
        // The newest epoch that both recorded with the same first LSN. Where an epoch's first LSN
        // differs, the same epoch number can't have started at two places (one primary an epoch,
        // which records one start), except through collapsing, which keeps the newest of equals.
        let (index, (epoch, _)) = self
            .0
            .iter()
            .enumerate()
            .rev()
            .find(|(_, pair)| other.0.contains(pair))
            .map(|(i, p)| (i, *p))?;
        // Both hold the epoch's entries from its start; each up to its next epoch or its end.
        let mine = self.0.get(index + 1).map_or(my_end, |(_, first)| first.prev());
        let theirs =
            other.0.iter().find(|(e, _)| *e > epoch).map_or(other_end, |(_, first)| first.prev());
        Some(mine.min(theirs).min(my_end).min(other_end))
    }
}

/// What a log up to some LSN implies beyond the bytes of the volume: the highest attach
/// generation, the volume's size, and which requests of which frontend sessions were logged.
///
/// It is a function of the log: stored with each checkpoint as of it, rolled forward with
/// [`LogState::apply`], recomputed after a cut, handed over by a rebuild.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogState {
    /// The highest attach generation logged. Sessions of a lower one may do nothing any more.
    pub attach: AttachGeneration,
    /// The open session that has the volume to itself; of the highest generation.
    pub exclusive: Option<SessionId>,
    /// The volume's size in blocks.
    pub blocks: u64,
    /// The open sessions, at most [`MAX_SESSIONS`].
    pub sessions: BTreeMap<SessionId, SessionLog>,
}

/// What the log holds of one frontend session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionLog {
    /// Every sequence `<= low` is settled at the frontend and never sent again.
    pub low: u64,
    /// The sequences above `low` that are logged, with their LSN.
    pub logged: BTreeMap<u64, Lsn>,
    /// The LSN of the newest entry of the session, by which idle sessions are told.
    pub newest: Lsn,
    /// The generation of its attachment.
    pub attach: AttachGeneration,
}

impl LogState {
    /// The state of an empty log of a volume created with `blocks` blocks.
    pub fn new(blocks: u64) -> Self {
        Self { attach: AttachGeneration(0), exclusive: None, blocks, sessions: BTreeMap::new() }
    }

    /// Rolls the state forward over the next entry.
    pub fn apply(&mut self, header: &EntryHeader) {
        match header.kind {
            EntryKind::Attach { generation, exclusive } => {
                if generation > self.attach {
                    (self.attach, self.exclusive) = (generation, None);
                }
                if let Some(Origin { tag: RequestTag { session, .. }, .. }) = header.origin {
                    self.sessions.entry(session).or_default().attach = generation;
                    self.exclusive = exclusive.then_some(session).or(self.exclusive);
                }
            }
            EntryKind::Close { session } => {
                self.sessions.remove(&session);
                self.exclusive = self.exclusive.filter(|holder| *holder != session);
            }
            EntryKind::Resize { blocks } => self.blocks = blocks,
            EntryKind::Write { .. } | EntryKind::Trim { .. } | EntryKind::Zero { .. } => {}
        }
        if let Some(origin) = header.origin
            && let Some(session) = self.sessions.get_mut(&origin.tag.session)
        {
            session.low = session.low.max(origin.low);
            session.logged.insert(origin.tag.sequence, header.lsn);
            session.logged = session.logged.split_off(&(session.low + 1));
            session.newest = header.lsn;
        }
    }

    /// Whether the bounds that every log keeps hold.
    pub fn within_limits(&self) -> bool {
        self.sessions.len() <= MAX_SESSIONS
            && self.exclusive.is_none_or(|holder| {
                self.sessions.get(&holder).is_some_and(|log| log.attach == self.attach)
            })
            && self.sessions.values().all(|log| log.attach <= self.attach)
            && self.sessions.values().all(|s| {
                let sequences: BTreeSet<_> = s.logged.keys().collect();
                sequences.iter().all(|q| **q > s.low && **q <= s.low + SEQUENCE_WINDOW)
            })
    }
}
