//! How a log loses its newest or its oldest records, and how files come and go.

use std::sync::Arc;

use crate::error::LogError;
use crate::log::{Log, Piece, make_zeroed, segment_path, spare_path};
use crate::reader::next_frame;
use crate::segment::{HEADER_BYTES, Segment, io_error, write_zeros};
use crate::storage::Storage;

/// Fewer spare files than this, and more are made: the next segment should find one.
const MIN_SPARES: usize = 2;
/// More spare files than this are not kept. A spare that was a segment costs nothing, one that is
/// made is written with zeros first, as much as the records that it will take. So a log that lets
/// go as much as it takes must never make one: the room above the minimum takes up what it lets
/// go before it needs it.
pub(crate) const MAX_SPARES: usize = 4;

/// File work that nobody waits for: released segments become spares or go, missing spares are
/// made.
#[derive(Debug)]
pub struct Housekeeping {
    storage: Arc<dyn Storage>,
    dir: String,
    released: Vec<Piece>,
    /// Names for the released files to live on under; the others go.
    recycled: Vec<String>,
    /// Names of the files to make.
    made: Vec<String>,
    segment_bytes: u64,
}

/// What came of a [`Housekeeping`].
#[derive(Debug)]
pub struct Housekept(Result<Vec<String>, LogError>);

impl Log {
    /// Takes the oldest segment out of the log. Its records can't be read any more by readers made
    /// from now on. Returns `false` if it is the only one.
    pub fn release_oldest(&mut self) -> bool {
        if self.pieces.len() < 2 {
            return false;
        }
        let piece = self.pieces.pop_front().expect("there are two");
        self.released.push(piece);
        self.housekeeping_failed = false;
        true
    }

    /// Whether there is file work to do.
    pub fn wants_housekeeping(&self) -> bool {
        !self.housekeeping_in_flight
            && !self.housekeeping_failed
            && !self.failed
            && (!self.released.is_empty() || self.spares.len() < MIN_SPARES)
    }

    /// The file work to do, if [`Log::wants_housekeeping`].
    pub fn housekeeping(&mut self) -> Option<Housekeeping> {
        if !self.wants_housekeeping() {
            return None;
        }
        self.housekeeping_in_flight = true;
        let room = MAX_SPARES.saturating_sub(self.spares.len());
        let recycled: Vec<String> =
            (0..room.min(self.released.len())).map(|_| self.new_spare_path()).collect();
        let missing = MIN_SPARES.saturating_sub(self.spares.len() + recycled.len());
        let made = (0..missing).map(|_| self.new_spare_path()).collect();
        Some(Housekeeping {
            storage: Arc::clone(&self.storage),
            dir: self.dir.clone(),
            released: std::mem::take(&mut self.released),
            recycled,
            made,
            segment_bytes: self.options.segment_bytes,
        })
    }

    /// Takes its outcome back. The log goes on after a failure: a file that was left over is
    /// dealt with at the next opening, and a spare that is missing is made when it is needed. More
    /// is tried only once another segment was released.
    pub fn housekeeping_done(&mut self, done: Housekept) -> Result<(), LogError> {
        self.housekeeping_in_flight = false;
        let made = done.0.inspect_err(|_| self.housekeeping_failed = true)?;
        self.spares.extend(made);
        Ok(())
    }

    fn new_spare_path(&mut self) -> String {
        let path = spare_path(&self.dir, self.next_spare);
        self.next_spare += 1;
        path
    }

    /// Ends the log at `end`: later segments go, later records in the last one are overwritten
    /// with zeros, all of it synced. Blocks.
    ///
    /// After a crash in the middle the log must be opened with `end` as its limit: what is left
    /// of the records behind it would look like damage.
    ///
    /// # Panics
    /// If an append is in flight or the log begins above `end + 1`.
    pub fn truncate(&mut self, end: u64) -> Result<(), LogError> {
        self.check()?;
        assert!(!self.in_flight && !self.syncing, "an append or a sync is in flight");
        if end + 1 >= self.next_index {
            return Ok(());
        }
        assert!(end + 1 >= self.first_index(), "a cut to {end} below the log's start");
        self.failed = true;
        let mut gone = false;
        while self.pieces.back().is_some_and(|p| p.segment.first() > end) {
            let piece = self.pieces.pop_back().expect("there is one");
            let path = &piece.segment.path;
            self.storage.remove(path).map_err(|e| io_error(&*self.storage, path, "remove", e))?;
            gone = true;
        }
        if gone {
            let dir = &self.dir;
            self.storage.sync_dir(dir).map_err(|e| io_error(&*self.storage, dir, "sync", e))?;
        }
        if let Some(piece) = self.pieces.back_mut() {
            self.chain = piece.cut(end)?;
        }
        // The last segment may have been followed by a copy of its own end, made by an opening:
        // what was copied is still there, behind the records that count.
        if gone {
            self.clear_tail()?;
        }
        self.next_index = end + 1;
        self.ends_durably(end);
        self.failed = false;
        Ok(())
    }

    /// Drops every record; the next one gets index `first`. Blocks.
    ///
    /// Spare files go as well: without a segment left, the next opening counts sequences from 1
    /// again, and the old records in a spare could have the number of the segment that it becomes.
    ///
    /// # Panics
    /// If an append is in flight.
    pub fn reset(&mut self, first: u64) -> Result<(), LogError> {
        self.check()?;
        assert!(!self.in_flight && !self.syncing, "an append or a sync is in flight");
        self.failed = true;
        let storage = &*self.storage;
        let (segments, spares) = list(storage, &self.dir)?;
        let segments = segments.into_iter().map(|sequence| segment_path(&self.dir, sequence));
        let spares = spares.into_iter().map(|number| spare_path(&self.dir, number));
        for path in segments.chain(spares) {
            storage.remove(&path).map_err(|e| io_error(storage, &path, "remove", e))?;
        }
        self.pieces.clear();
        self.released.clear();
        self.spares.clear();
        self.garbage.clear();
        storage.sync_dir(&self.dir).map_err(|e| io_error(storage, &self.dir, "sync", e))?;
        self.next_index = first;
        self.ends_durably(first.saturating_sub(1));
        self.failed = false;
        Ok(())
    }
}

impl Piece {
    /// Overwrites what lies behind record `end`. Returns that record's chain checksum.
    fn cut(&mut self, end: u64) -> Result<u32, LogError> {
        let segment = Arc::clone(&self.segment);
        let (mut chain, mut offset) = segment.start();
        let mut index = segment.first();
        while index <= end {
            let frame = next_frame(&segment, offset, index, None)?;
            chain = frame.crc;
            offset += u64::from(frame.total);
            index += 1;
        }
        let file = &**segment.file();
        write_zeros(file, offset, self.end).map_err(|e| segment.error("write", e))?;
        file.sync().map_err(|e| segment.error("sync", e))?;
        self.marks.retain(|(at, _)| *at <= end);
        self.end = offset;
        Ok(chain)
    }
}

impl Segment {
    /// The checksum with which its chain of frames starts, and the offset of the first.
    pub(crate) fn start(&self) -> (u32, u64) {
        (self.header.encode(&self.owner).1, HEADER_BYTES)
    }
}

impl Housekeeping {
    /// Does it. Blocks.
    pub fn run(self) -> Housekept {
        Housekept(self.work())
    }

    fn work(self) -> Result<Vec<String>, LogError> {
        let storage = &*self.storage;
        let mut names = self.recycled.into_iter();
        let mut spares = Vec::new();
        for mut piece in self.released {
            let path = piece.segment.path.clone();
            // Nobody reads from it any more, and nobody can start to.
            let unused = Arc::get_mut(&mut piece.segment).is_some();
            match if unused { names.next() } else { None } {
                Some(spare) => {
                    storage
                        .rename(&path, &spare)
                        .map_err(|e| io_error(storage, &path, "rename", e))?;
                    spares.push(spare);
                }
                None => {
                    storage.remove(&path).map_err(|e| io_error(storage, &path, "remove", e))?;
                }
            }
        }
        for spare in self.made {
            make_zeroed(storage, &spare, self.segment_bytes)?;
            spares.push(spare);
        }
        storage.sync_dir(&self.dir).map_err(|e| io_error(storage, &self.dir, "sync", e))?;
        Ok(spares)
    }
}

/// The paths of a log's files in `dir`: segments by sequence, spares by number.
pub(crate) fn list(storage: &dyn Storage, dir: &str) -> Result<(Vec<u64>, Vec<u64>), LogError> {
    let names = storage.list(dir).map_err(|e| io_error(storage, dir, "list", e))?;
    let numbers = |suffix: &str| -> Vec<u64> {
        let mut found: Vec<u64> = names
            .iter()
            .filter_map(|name| u64::from_str_radix(name.strip_suffix(suffix)?, 16).ok())
            .collect();
        found.sort_unstable();
        found
    };
    let segments = numbers(".seg");
    Ok((segments, numbers(".spare")))
}
