//! What the journal's records add up to.

use std::collections::BTreeMap;

use openraft::{LogId, Vote};
use serde::{Deserialize, Serialize};

use crate::raft::{Entry, MemberId};

/// One record of the journal: one operation on the log. In JSON, so that an operator can read a
/// segment with `strings`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Record {
    /// The member voted, or leads, in this term.
    Vote(Vote<MemberId>),
    /// Applied up to here. A hint: what it saves is replay, not safety.
    Committed(Option<LogId<MemberId>>),
    /// One entry, right behind the last one.
    Append(Entry),
    /// Entries from this index on never happened.
    Truncate(u64),
    /// Entries up to this one are in a snapshot.
    Purge(LogId<MemberId>),
    /// Heads every segment but the first: all that must outlive the older segments.
    Head {
        vote: Option<Vote<MemberId>>,
        committed: Option<LogId<MemberId>>,
        purged: Option<LogId<MemberId>>,
    },
}

/// Why records don't add up to a log.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// Bytes that are no record.
    #[error("a journal record can't be read: {0}. Was it written by a newer version?")]
    Unreadable(#[from] serde_json::Error),
    /// An entry that leaves a hole.
    #[error("journal entry {found} follows entry {last}: a record is missing")]
    Hole {
        /// The last index before.
        last: u64,
        /// The index that came.
        found: u64,
    },
    /// The first entry does not follow what was purged.
    #[error("the log starts at {first} but was purged up to {purged:?}: a segment is missing")]
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
            Record::Vote(vote) => self.vote = Some(vote),
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
            Record::Purge(upto) => self.purge(upto),
            Record::Head { vote, committed, purged } => {
                self.vote = vote;
                self.committed = committed;
                if let Some(purged) = purged {
                    self.purge(purged);
                }
            }
        }
        Ok(())
    }

    fn purge(&mut self, upto: LogId<MemberId>) {
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
