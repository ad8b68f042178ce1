//! What the records add up to.

use std::collections::BTreeMap;

use openraft::{LogId, Vote};
use serde::{Deserialize, Serialize};

use crate::raft::{Entry, MemberId};

/// One record: one operation on the log. In JSON, so that an operator can read a segment with
/// `strings`.
#[derive(Debug, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "all but a few records are entries")]
pub(crate) enum Record {
    /// One entry, right behind the last one.
    Append(Entry),
    /// Entries from this index on never happened.
    Truncate(u64),
    /// Applied up to here. A hint: what it saves is replay, not safety.
    Committed(Option<LogId<MemberId>>),
}

/// What must be replaced as a whole: it lies beside the records, in two slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hard {
    /// The member voted, or leads, in this term.
    pub(crate) vote: Option<Vote<MemberId>>,
    /// Entries up to this one are in a snapshot.
    pub(crate) purged: Option<LogId<MemberId>>,
    /// The first record that is needed: nothing before it says anything of an entry that is not
    /// purged.
    pub(crate) from: u64,
    /// Every record up to this one was durable when this was written.
    pub(crate) durable: u64,
}

/// Why records don't add up to a log.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// Bytes that are no record.
    #[error("a record can't be read: {0}. Was it written by a newer version?")]
    Unreadable(#[from] serde_json::Error),
    /// An entry that leaves a hole.
    #[error("entry {found} follows entry {last}: a record is missing")]
    Hole {
        /// The last index before.
        last: u64,
        /// The index that came.
        found: u64,
    },
    /// The first entry does not follow what was purged.
    #[error("the log starts at {first} but was purged up to {purged:?}: a record is missing")]
    Start {
        /// First index held.
        first: u64,
        /// Last index purged.
        purged: Option<u64>,
    },
}

/// The log and its hard state, in memory. Its size is bounded by the snapshot policy: entries
/// that a snapshot covers are purged.
#[derive(Debug, Default)]
pub(crate) struct Image {
    pub(crate) vote: Option<Vote<MemberId>>,
    pub(crate) committed: Option<LogId<MemberId>>,
    pub(crate) purged: Option<LogId<MemberId>>,
    pub(crate) entries: BTreeMap<u64, Entry>,
}

impl Image {
    /// Takes one record in.
    pub(crate) fn apply(&mut self, record: Record) -> Result<(), ReplayError> {
        match record {
            Record::Committed(committed) => self.committed = committed,
            Record::Append(entry) => {
                let found = entry.log_id.index;
                if let Some((&last, _)) = self.entries.last_key_value()
                    && found != last + 1
                {
                    return Err(ReplayError::Hole { last, found });
                }
                self.entries.insert(found, entry);
            }
            Record::Truncate(since) => drop(self.entries.split_off(&since)),
        }
        Ok(())
    }

    /// Forgets entries up to `upto`.
    pub(crate) fn purge(&mut self, upto: LogId<MemberId>) {
        self.entries = self.entries.split_off(&(upto.index + 1));
        self.purged = self.purged.max(Some(upto));
    }

    /// After the last record: whether the log is whole.
    pub(crate) fn check(&self) -> Result<(), ReplayError> {
        let purged = self.purged.map(|p| p.index);
        if let Some((&first, _)) = self.entries.first_key_value()
            && first != purged.map_or(0, |p| p + 1)
        {
            return Err(ReplayError::Start { first, purged });
        }
        Ok(())
    }

    /// The last entry's id, or the last purged one's.
    pub(crate) fn last(&self) -> Option<LogId<MemberId>> {
        self.entries.last_key_value().map(|(_, entry)| entry.log_id).or(self.purged)
    }

    /// Whether this log holds, or held until it was purged, exactly `id`.
    pub(crate) fn holds(&self, id: LogId<MemberId>) -> bool {
        self.purged == Some(id) || self.entries.get(&id.index).is_some_and(|e| e.log_id == id)
    }
}
