//! How a log loses its newest or its oldest records, and how files come and go.

use std::sync::Arc;

use crate::error::LogError;
use crate::log::{Log, Piece, Syncs, make_zeroed, remove_if_there, segment_path, spare_path};
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

/// The name of a file that is being made to be a spare: it is one only once all of it was written.
pub(crate) const UNFINISHED: &str = "spare.tmp";

/// File work that nobody waits for: released segments become spares or go, missing spares are
/// made.
#[derive(Debug)]
pub struct Housekeeping {
    names: Arc<Syncs>,
    storage: Arc<dyn Storage>,
    dir: String,
    released: Vec<Piece>,
    /// Names for the released files to live on under; the others go.
    recycled: Vec<String>,
    /// Names of the files to make.
    made: Vec<String>,
    /// Their size; released files that are smaller go.
    bytes: u64,
}

/// What came of a [`Housekeeping`].
#[derive(Debug)]
pub struct Housekept {
    /// The spares that there are now, also if it failed later.
    spares: Vec<String>,
    result: Result<(), LogError>,
    /// Names may be lost, also such as others had just given.
    names_lost: bool,
}

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
        let large = self.released.iter().filter(|piece| piece.room >= self.next_bytes).count();
        let recycled: Vec<String> = (0..room.min(large)).map(|_| self.new_spare_path()).collect();
        let missing = MIN_SPARES.saturating_sub(self.spares.len() + recycled.len());
        let made = (0..missing).map(|_| self.new_spare_path()).collect();
        Some(Housekeeping {
            names: Arc::clone(&self.names),
            storage: Arc::clone(&self.storage),
            dir: self.dir.clone(),
            released: std::mem::take(&mut self.released),
            recycled,
            made,
            bytes: self.next_bytes,
        })
    }

    /// Takes its outcome back. The log goes on after a failure: a file that was left over is
    /// dealt with at the next opening, and a spare that is missing is made when it is needed. More
    /// is tried only once another segment was released. But where names could not be made durable,
    /// [the log has failed](Log::has_failed): that of a segment in use may be among them.
    pub fn housekeeping_done(&mut self, done: Housekept) -> Result<(), LogError> {
        self.housekeeping_in_flight = false;
        self.spares.extend(done.spares);
        self.failed |= done.names_lost;
        done.result.inspect_err(|_| self.housekeeping_failed = true)
    }

    pub(crate) fn new_spare_path(&mut self) -> String {
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
        for path in list(storage, &self.dir)?.paths(&self.dir) {
            storage.remove(&path).map_err(|e| io_error(storage, &path, "remove", e))?;
        }
        self.pieces.clear();
        self.released.clear();
        self.spares.clear();
        self.garbage.clear();
        storage.sync_dir(&self.dir).map_err(|e| io_error(storage, &self.dir, "sync", e))?;
        self.next_index = first;
        self.next_bytes = self.options.first_segment_bytes.min(self.options.segment_bytes);
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
        let mut spares = Vec::new();
        let (names, storage, dir) =
            (Arc::clone(&self.names), Arc::clone(&self.storage), self.dir.clone());
        let result = self.work(&mut spares);
        let synced = names.sync_dir(&*storage, &dir);
        Housekept { spares, names_lost: synced.is_err(), result: synced.and(result) }
    }

    fn work(self, spares: &mut Vec<String>) -> Result<(), LogError> {
        let storage = &*self.storage;
        let mut names = self.recycled.into_iter();
        for mut piece in self.released {
            let path = piece.segment.path.clone();
            // Nobody reads from it any more, and nobody can start to.
            let unused = Arc::get_mut(&mut piece.segment).is_some();
            let large = piece.room >= self.bytes;
            match if unused && large { names.next() } else { None } {
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
        let unfinished = format!("{}/{UNFINISHED}", self.dir);
        for spare in self.made {
            remove_if_there(storage, &unfinished)?;
            if let Err(error) = make_zeroed(storage, &unfinished, self.bytes) {
                // Somebody else may need the room that it took. If it stays, the next opening removes it.
                let _as_well = storage.remove(&unfinished);
                return Err(error);
            }
            storage
                .rename(&unfinished, &spare)
                .map_err(|e| io_error(storage, &unfinished, "rename", e))?;
            spares.push(spare);
        }
        Ok(())
    }
}

/// What a log's directory holds.
pub(crate) struct Names {
    /// Segments by sequence.
    pub(crate) segments: Vec<u64>,
    /// Spares by number.
    pub(crate) spares: Vec<u64>,
    /// Paths of what was to become a spare.
    pub(crate) unfinished: Vec<String>,
}

impl Names {
    /// All paths.
    pub(crate) fn paths(self, dir: &str) -> impl Iterator<Item = String> {
        let segments = self.segments.into_iter().map(move |sequence| segment_path(dir, sequence));
        let spares = self.spares.into_iter().map(move |number| spare_path(dir, number));
        segments.chain(spares).chain(self.unfinished)
    }
}

/// The log's files in `dir`.
pub(crate) fn list(storage: &dyn Storage, dir: &str) -> Result<Names, LogError> {
    let names = storage.list(dir).map_err(|e| io_error(storage, dir, "list", e))?;
    let numbers = |suffix: &str| -> Vec<u64> {
        let mut found: Vec<u64> = names
            .iter()
            .filter_map(|name| u64::from_str_radix(name.strip_suffix(suffix)?, 16).ok())
            .collect();
        found.sort_unstable();
        found
    };
    let unfinished = names.iter().filter(|name| *name == UNFINISHED);
    let unfinished = unfinished.map(|name| format!("{dir}/{name}")).collect();
    Ok(Names { segments: numbers(".seg"), spares: numbers(".spare"), unfinished })
}
