//! The records and the hard state on the disk.
//!
//! ```text
//! wal/      records, in the segments of sbk-wal
//! hard.sbk  the vote, and where the needed records begin, in two slots
//! ```
//! A truncation is a record like any other, written behind what it undoes: a crash can only lose
//! the newest records, never tear an old one.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use sbk_wal::{Expect, Log, LogError, LogOptions, Marks, Owner, SlotError, Slots, Storage, crc32c};

use super::image::{Hard, Image, Record, ReplayError};

const DIR: &str = "wal";
const SLOTS: &str = "hard.sbk";
const MAGIC: [u8; 8] = *b"SBKRAFT1";
const VERSION: u32 = 1;
const SLOT_BYTES: usize = 4096;
/// An entry's frame passes this only if it is a registration with very many replicas; it gets a
/// segment of its own size then.
pub(crate) const OPTIONS: LogOptions =
    LogOptions { segment_bytes: 4 << 20, first_segment_bytes: 4 << 20, batch_bytes: 1 << 20 };

/// Why the journal can't be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The records.
    #[error("the Raft log: {0}")]
    Log(#[from] LogError),
    /// The vote.
    #[error("the vote: {0}")]
    Hard(#[from] SlotError),
    /// What was read makes no sense.
    #[error("the Raft log: {0}")]
    Replay(#[from] ReplayError),
    /// The directory can't be used.
    #[error("make the Raft log's directory: {0}")]
    Directory(#[source] std::io::Error),
    /// The files of a member that took part are gone.
    #[error(
        "{path} is missing: this member's vote and log are lost. Never start it again under its \
         id; remove it from the cluster and add a member with a new id"
    )]
    Missing {
        /// What is missing.
        path: std::path::PathBuf,
    },
    /// An earlier operation failed. What reached the disk is unknown, so nothing more may be
    /// acknowledged by this process.
    #[error("the Raft log failed earlier and is closed")]
    Closed,
}

/// What a record means to the journal.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Note {
    /// It holds the entry of this index.
    Entry(u64),
    /// It undoes the entries from this index on.
    Truncate(u64),
    /// Nothing that must be kept.
    Hint,
}

impl Record {
    pub(crate) fn note(&self) -> Note {
        match self {
            Record::Append(entry) => Note::Entry(entry.log_id.index),
            Record::Truncate(since) => Note::Truncate(*since),
            Record::Committed(_) => Note::Hint,
        }
    }

    pub(crate) fn encode(&self) -> Bytes {
        // Plain data with string keys: serializing it can't fail.
        serde_json::to_vec(self).expect("a record is serializable").into()
    }
}

/// See the module's documentation. One owner; everything here blocks.
#[derive(Debug)]
pub(crate) struct Journal {
    log: Log,
    slots: Slots,
    hard: Hard,
    /// The record of each entry that is not purged. It ascends with the entry's index: an entry
    /// that was truncated and appended again has the later record.
    positions: BTreeMap<u64, u64>,
    durable: u64,
    failed: bool,
}

fn owner() -> Owner {
    Owner::new(*b"sbk master's log", *b"raft entries v01")
}

impl Journal {
    /// Opens the journal in `storage`, and tells what its records add up to. `fresh` says that
    /// there may be none yet: otherwise one that is gone is a loss and not a beginning.
    pub(crate) fn open(
        storage: &Arc<dyn Storage>,
        options: LogOptions,
        fresh: bool,
    ) -> Result<(Self, Image), JournalError> {
        let exists = storage.list("").map_err(JournalError::Directory)?;
        let begun = exists.iter().any(|name| name == SLOTS);
        if !begun && !fresh {
            return Err(JournalError::Missing { path: storage.describe(SLOTS) });
        }
        storage.create_dir(DIR).map_err(JournalError::Directory)?;
        let (slots, hard) = match begun.then(|| open_slots(storage)) {
            Some(Ok(opened)) => {
                // A first start that was killed may have left the file with a name that a loss of
                // power takes away again, with the votes that this run puts into it.
                storage.sync_dir("").map_err(JournalError::Directory)?;
                opened
            }
            // A first start that ended before the file was whole: nothing was promised yet.
            Some(Err(JournalError::Hard(SlotError::Damaged { .. }))) if fresh => {
                make_slots(storage)?
            }
            Some(Err(error)) => return Err(error),
            None => make_slots(storage)?,
        };
        let mut image = Image { vote: hard.vote, ..Image::default() };
        let mut positions = BTreeMap::new();
        let mut replay = Ok(());
        let expect = Expect { from: hard.from, durable: hard.durable, cut: None };
        let mut visit = |record: &sbk_wal::ReadRecord, _| {
            let outcome = take(&mut image, &mut positions, record.index, &record.body);
            outcome.map_err(|error| {
                let text = error.to_string();
                replay = Err(error);
                sbk_wal::Unfit::Damaged(text)
            })
        };
        let storage = Arc::clone(storage);
        let opened = Log::open(storage, DIR, owner(), options, expect, &mut visit);
        replay?;
        let (log, opened) = opened?;
        for note in opened.notes {
            tracing::warn!(note, "the Raft log");
        }
        if let Some(purged) = hard.purged {
            image.purge(purged);
            positions = positions.split_off(&(purged.index + 1));
        }
        image.check()?;
        let durable = opened.end;
        Ok((Self { log, slots, hard, positions, durable, failed: false }, image))
    }

    /// Appends records durably.
    pub(crate) fn append(&mut self, records: &[(Note, Bytes)]) -> Result<(), JournalError> {
        self.guarded(|journal| {
            let mut rest = records;
            while !rest.is_empty() {
                let first = journal.log.next_index();
                let marks = Marks { durable: journal.durable, committed: 0 };
                let bodies = rest.iter().map(|(_, body)| sbk_wal::Record {
                    meta: &[],
                    payload: body.clone(),
                    crc: crc32c(body),
                });
                let (append, places) = journal.log.plan_append(bodies, marks)?;
                journal.durable = journal.log.append_done(append.run())?;
                let (written, left) = rest.split_at(places.len());
                for (index, (note, _)) in (first..).zip(written) {
                    place(&mut journal.positions, index, *note);
                }
                rest = left;
            }
            Ok(())
        })
    }

    /// Replaces the vote durably.
    pub(crate) fn vote(&mut self, vote: crate::raft::Vote) -> Result<(), JournalError> {
        self.guarded(|journal| {
            journal.hard.vote = Some(vote);
            journal.write_hard()
        })
    }

    /// Notes durably that entries up to `upto` are not needed any more, and only then lets the
    /// segments go that held nothing else.
    pub(crate) fn purge(&mut self, upto: crate::raft::LogId) -> Result<(), JournalError> {
        self.guarded(|journal| {
            journal.positions = journal.positions.split_off(&(upto.index + 1));
            let first = journal.positions.first_key_value().map(|(_, record)| *record);
            journal.hard.from = first.unwrap_or_else(|| journal.log.next_index());
            journal.hard.purged = journal.hard.purged.max(Some(upto));
            journal.write_hard()?;
            let needed = journal.hard.from;
            while journal.log.segments().next().is_some_and(|(_, last, _)| last < needed)
                && journal.log.release_oldest()
            {}
            Ok(())
        })
    }

    /// Records durably how far the records go. Without it a record at the end that is found damaged
    /// later is taken for the torn rest of a write that nobody was promised, and a log whose only
    /// segment is gone for one that was never written.
    pub(crate) fn seal(&mut self) -> Result<(), JournalError> {
        self.guarded(|journal| match journal.hard.durable == journal.durable {
            true => Ok(()),
            false => journal.write_hard(),
        })
    }

    /// File work that nobody waits for: makes segments ahead, removes those that were let go.
    pub(crate) fn housekeep(&mut self) -> Result<(), JournalError> {
        if self.failed {
            return Ok(());
        }
        self.guarded(|journal| {
            if let Some(work) = journal.log.housekeeping() {
                journal.log.housekeeping_done(work.run())?;
            }
            Ok(())
        })
    }

    fn write_hard(&mut self) -> Result<(), JournalError> {
        self.hard.durable = self.durable;
        Ok(self.slots.write(&encode_hard(&self.hard))?)
    }

    /// After a failed write or sync the kernel may have dropped what was dirty and report success
    /// the next time, so the first failure closes the journal for good.
    fn guarded(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<(), JournalError>,
    ) -> Result<(), JournalError> {
        if self.failed {
            return Err(JournalError::Closed);
        }
        work(self).inspect_err(|_| self.failed = true)
    }
}

fn take(
    image: &mut Image,
    positions: &mut BTreeMap<u64, u64>,
    index: u64,
    body: &[u8],
) -> Result<(), ReplayError> {
    let record: Record = serde_json::from_slice(body)?;
    place(positions, index, record.note());
    image.apply(record)
}

fn place(positions: &mut BTreeMap<u64, u64>, record: u64, note: Note) {
    match note {
        Note::Entry(index) => {
            positions.insert(index, record);
        }
        Note::Truncate(since) => drop(positions.split_off(&since)),
        Note::Hint => {}
    }
}

fn encode_hard(hard: &Hard) -> Vec<u8> {
    // A handful of numbers: serializing it can't fail.
    serde_json::to_vec(hard).expect("the hard state is serializable")
}

fn make_slots(storage: &Arc<dyn Storage>) -> Result<(Slots, Hard), JournalError> {
    let hard = Hard { from: 1, ..Hard::default() };
    let record = encode_hard(&hard);
    let storage = Arc::clone(storage);
    let root = Arc::clone(&storage);
    if storage.list("").map_err(JournalError::Directory)?.iter().any(|name| name == SLOTS) {
        storage.remove(SLOTS).map_err(JournalError::Directory)?;
    }
    let slots = Slots::create(storage, SLOTS, MAGIC, VERSION, SLOT_BYTES, &record)?;
    root.sync_dir("").map_err(JournalError::Directory)?;
    Ok((slots, hard))
}

fn open_slots(storage: &Arc<dyn Storage>) -> Result<(Slots, Hard), JournalError> {
    let (slots, record) = Slots::open(Arc::clone(storage), SLOTS, MAGIC, VERSION, SLOT_BYTES)?;
    let hard = serde_json::from_slice(&record).map_err(ReplayError::from)?;
    Ok((slots, hard))
}
