//! A log in segment files, and how it grows.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;

use crate::error::LogError;
use crate::frame::{FRAME_HEADER, Frame, MAX_BODY, Marks, SECTOR, frame_len};
use crate::segment::{HEADER_BYTES, Header, Owner, Segment, io_error, write_zeros};
use crate::storage::{RawFile, Storage, write_all};

/// A place in a segment is remembered every so many bytes, for reads that start in its middle.
const MARK_BYTES: u64 = 256 << 10;

/// How a log is kept.
#[derive(Clone, Copy, Debug)]
pub struct LogOptions {
    /// Size of a segment file, once the log has grown. A record that is larger gets a segment of its
    /// own size.
    pub segment_bytes: u64,
    /// Size of the first segment, at most `segment_bytes`. Each that is begun is twice as large as the
    /// one before, until they have their size: a log that takes little takes little room, and one that
    /// takes much soon has few segments.
    pub first_segment_bytes: u64,
    /// Most bytes of one append; at least one record goes with each.
    pub batch_bytes: u64,
}

/// A record to append.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    /// The first part of the body, copied.
    pub meta: &'a [u8],
    /// The rest of the body, not copied.
    pub payload: Bytes,
    /// CRC-32C of both.
    pub crc: u32,
}

impl Record<'_> {
    fn frame_len(&self) -> u64 {
        frame_len(self.meta.len() + self.payload.len())
    }
}

/// Frames on their way into an append.
struct Packed {
    /// Where the next part of `heads` starts.
    head: usize,
    heads: Vec<u8>,
    parts: Vec<(Range<usize>, Bytes)>,
    /// Where the next frame goes in the segment.
    end: u64,
}

/// Where a record's frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The segment's sequence number.
    pub segment: u64,
    /// The offset of its body.
    pub body: u64,
}

/// A place with its segment.
#[derive(Clone, Debug)]
pub struct Located {
    /// The segment.
    pub segment: Arc<Segment>,
    /// The offset of the record's body in it.
    pub body: u64,
}

#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) segment: Arc<Segment>,
    /// The end of its frames.
    pub(crate) end: u64,
    /// How far its frames may go.
    pub(crate) room: u64,
    /// `(index, offset)` of some frames, ascending.
    pub(crate) marks: Vec<(u64, u64)>,
}

impl Piece {
    /// Remembers where a frame is, now and then.
    pub(crate) fn mark(&mut self, index: u64, offset: u64) {
        if self.marks.last().is_none_or(|(_, at)| offset - at >= MARK_BYTES) {
            self.marks.push((index, offset));
        }
    }
}

/// See the crate's documentation. Owned by one task; its I/O is packed into [`Append`]s and
/// [`Housekeeping`](Log::housekeeping) that may run elsewhere.
#[derive(Debug)]
pub struct Log {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) dir: String,
    pub(crate) owner: Owner,
    pub(crate) options: LogOptions,
    /// Size of the segment that is begun next, and of spares that are made.
    pub(crate) next_bytes: u64,
    /// Oldest first; the last one grows.
    pub(crate) pieces: VecDeque<Piece>,
    /// Files that wait to become segments.
    pub(crate) spares: Vec<String>,
    pub(crate) next_spare: u64,
    pub(crate) next_sequence: u64,
    /// Checksum of the last frame.
    pub(crate) chain: u32,
    pub(crate) next_index: u64,
    pub(crate) in_flight: bool,
    /// The last index that was written, and the last that is durable.
    pub(crate) written: u64,
    pub(crate) durable: u64,
    pub(crate) syncing: bool,
    pub(crate) syncs: Arc<Syncs>,
    /// Of the directory. Appends sync it, and so does file work beside them. [That work was told of a name
    /// that was lost, and went on; the append whose segment had that name was told of nothing.]
    pub(crate) names: Arc<Syncs>,
    /// Segments that the log let go and whose files are still there.
    pub(crate) released: Vec<Piece>,
    /// Files that are no part of the log.
    pub(crate) garbage: Vec<String>,
    pub(crate) housekeeping_in_flight: bool,
    pub(crate) housekeeping_failed: bool,
    pub(crate) failed: bool,
}

/// A write to the log: one vectored write, and one sync unless that is left to a [`Sync`].
#[derive(Debug)]
pub struct Append {
    syncs: Arc<Syncs>,
    /// The segment before, if this begins another and that one is not durable yet.
    before: Option<Arc<Segment>>,
    segment: Arc<Segment>,
    fresh: Option<Fresh>,
    offset: u64,
    heads: Vec<u8>,
    parts: Vec<(Range<usize>, Bytes)>,
    last: u64,
    /// What is durable once its segment has a file.
    durable: u64,
}

/// A segment file that has to be made first.
#[derive(Debug)]
struct Fresh {
    names: Arc<Syncs>,
    dir: String,
    spare: Option<String>,
    /// Size of the segment, and of its file if there is no spare: more for a record that is larger.
    room: u64,
    bytes: u64,
}

/// What came of an [`Append`].
#[derive(Debug)]
pub struct Appended {
    result: Result<(), LogError>,
    last: u64,
    /// Everything up to here is durable.
    durable: u64,
}

/// Whether a sync of the log failed. One at a time: the system tells of lost data once, to whoever
/// syncs first, and whoever came next would take the data for durable. [A segment was begun behind
/// one whose end was lost.]
#[derive(Debug, Default)]
pub(crate) struct Syncs(Mutex<bool>);

impl Syncs {
    fn sync(&self, segment: &Segment) -> Result<(), LogError> {
        if bug!(IgnoreFailedSync) {
            let _one_at_a_time = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let _ignored = segment.file().sync();
            return Ok(());
        }
        self.run(|| segment.file().sync().map_err(|e| segment.error("sync", e)))
    }

    /// Makes the names in the log's directory durable.
    pub(crate) fn sync_dir(&self, storage: &dyn Storage, dir: &str) -> Result<(), LogError> {
        self.run(|| storage.sync_dir(dir).map_err(|e| io_error(storage, dir, "sync", e)))
    }

    fn run(&self, sync: impl FnOnce() -> Result<(), LogError>) -> Result<(), LogError> {
        let mut failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *failed {
            return Err(LogError::Failed);
        }
        sync().inspect_err(|_| *failed = true)
    }
}

/// A sync of what was written.
#[derive(Debug)]
pub struct Sync {
    syncs: Arc<Syncs>,
    segment: Arc<Segment>,
    last: u64,
}

/// What came of a [`Sync`].
#[derive(Debug)]
pub struct Synced {
    result: Result<(), LogError>,
    last: u64,
}

impl Log {
    /// A log without records in the empty directory `dir`, whose first record will be `first`.
    pub fn create(
        storage: Arc<dyn Storage>,
        dir: &str,
        owner: Owner,
        options: LogOptions,
        first: u64,
    ) -> Self {
        Self {
            storage,
            dir: dir.to_owned(),
            owner,
            options,
            next_bytes: options.first_segment_bytes.min(options.segment_bytes),
            pieces: VecDeque::new(),
            spares: Vec::new(),
            next_spare: 1,
            next_sequence: 1,
            chain: 0,
            next_index: first,
            in_flight: false,
            written: first.saturating_sub(1),
            durable: first.saturating_sub(1),
            syncing: false,
            syncs: Arc::default(),
            names: Arc::default(),
            released: Vec::new(),
            garbage: Vec::new(),
            housekeeping_in_flight: false,
            housekeeping_failed: false,
            failed: false,
        }
    }

    /// The index of the next record.
    pub fn next_index(&self) -> u64 {
        self.next_index
    }

    /// The oldest index that the segments hold, or [`Log::next_index`].
    pub fn first_index(&self) -> u64 {
        self.pieces.front().map_or(self.next_index, |p| p.segment.first())
    }

    /// The segments, oldest first: the first and last index, and the bytes written to each, or, of one that the
    /// opening did not read, those that it takes.
    pub fn segments(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        let next_first =
            self.pieces.iter().skip(1).map(|p| p.segment.first()).chain([self.next_index]);
        self.pieces.iter().zip(next_first).map(|(p, next)| (p.segment.first(), next - 1, p.end))
    }

    /// The place with its segment, or `None` if the segment was released.
    pub fn locate(&self, place: Place) -> Option<Located> {
        let at = self.pieces.partition_point(|p| p.segment.sequence() < place.segment);
        let piece = self.pieces.get(at).filter(|p| p.segment.sequence() == place.segment)?;
        Some(Located { segment: Arc::clone(&piece.segment), body: place.body })
    }

    /// Packs records into an append: as many from the front of `records` as one write takes, at
    /// least one. Returns it with the place of each record that went in. They get the next
    /// indexes.
    ///
    /// # Panics
    /// If an append is in flight, if `records` is empty, or if a body is larger than 64 MiB.
    pub fn plan_append<'a>(
        &mut self,
        records: impl IntoIterator<Item = Record<'a>>,
        marks: Marks,
    ) -> Result<(Append, Vec<Place>), LogError> {
        self.check()?;
        assert!(!self.in_flight, "one append at a time");
        let mut records = records.into_iter().peekable();
        let first = records.peek().expect("an append has records").frame_len();
        let unsynced = self.pieces.back().filter(|_| self.written > self.durable);
        let before = unsynced.map(|piece| Arc::clone(&piece.segment));
        let fresh = self.room(first);
        // A segment is begun only after all before it is durable.
        let before = before.filter(|_| fresh.is_some());
        let piece = self.pieces.back().expect("room was made");
        let (start, segment) = (piece.end, Arc::clone(&piece.segment));
        let limit = piece.room.min(start + self.options.batch_bytes);
        let mut heads = Vec::new();
        if fresh.is_some() {
            let (header, crc) = segment.header.encode(&self.owner);
            heads = header;
            self.chain = crc;
        }
        let offset = if fresh.is_some() { 0 } else { start };
        let mut packed = Packed { head: 0, heads, parts: Vec::new(), end: start };
        let mut places = Vec::new();
        let mut next = records.next();
        while let Some(record) = next {
            let end = packed.end + record.frame_len();
            next = records.next_if(|after| end + after.frame_len() <= limit);
            // The last frame takes the padding to the sector's end.
            let end = if next.is_none() { end.next_multiple_of(SECTOR) } else { end };
            let body = packed.end + FRAME_HEADER as u64;
            places.push(Place { segment: segment.sequence(), body });
            self.pack(&mut packed, &segment, record, end, marks);
        }
        self.pieces.back_mut().expect("room was made").end = packed.end;
        self.in_flight = true;
        let Packed { heads, parts, .. } = packed;
        let (last, durable) = (self.next_index - 1, self.durable);
        let durable = if fresh.is_some() { self.written } else { durable };
        let syncs = Arc::clone(&self.syncs);
        let append = Append { syncs, before, segment, fresh, offset, heads, parts, last, durable };
        Ok((append, places))
    }

    /// Adds a frame that ends at `end`.
    fn pack(
        &mut self,
        packed: &mut Packed,
        segment: &Segment,
        record: Record<'_>,
        end: u64,
        marks: Marks,
    ) {
        let body = record.meta.len() + record.payload.len();
        assert!(body <= MAX_BODY, "a record of {body} bytes");
        let piece = self.pieces.back_mut().expect("room was made");
        piece.mark(self.next_index, packed.end);
        let frame = Frame {
            crc: 0,
            prev: self.chain,
            body_crc: record.crc,
            // Both are below twice the limit on bodies.
            body_len: body as u32,
            total: (end - packed.end) as u32,
            segment: segment.sequence(),
            index: self.next_index,
            marks,
        };
        self.chain = frame.encode(&self.owner, &mut packed.heads);
        packed.heads.extend_from_slice(record.meta);
        packed.parts.push((packed.head..packed.heads.len(), record.payload));
        packed.head = packed.heads.len();
        // The padding goes in front of the next frame's header, or last.
        let padding = (end - packed.end) as usize - FRAME_HEADER - body;
        packed.heads.resize(packed.head + padding, 0);
        if padding > 0 {
            packed.parts.push((packed.head..packed.heads.len(), Bytes::new()));
            packed.head = packed.heads.len();
        }
        self.next_index += 1;
        packed.end = end;
    }

    /// Sees to it that the last piece has room for a frame. Returns how to make its file if it is
    /// new.
    fn room(&mut self, frame: u64) -> Option<Fresh> {
        if let Some(piece) = self.pieces.back()
            && piece.end + frame <= piece.room
        {
            return None;
        }
        let previous = self.pieces.back().map_or(0, |p| p.segment.sequence());
        let room = self.next_bytes;
        let bytes = room.max(HEADER_BYTES + frame + SECTOR);
        self.push_segment(previous);
        let (names, dir) = (Arc::clone(&self.names), self.dir.clone());
        Some(Fresh { names, dir, spare: self.spares.pop(), room, bytes })
    }

    pub(crate) fn push_segment(&mut self, previous: u64) {
        let header = Header { sequence: self.next_sequence, previous, first: self.next_index };
        self.next_sequence += 1;
        let segment = Segment {
            storage: Arc::clone(&self.storage),
            path: segment_path(&self.dir, header.sequence),
            owner: self.owner,
            header,
            file: OnceLock::new(),
        };
        let segment = Arc::new(segment);
        let room = self.next_bytes;
        self.pieces.push_back(Piece { segment, end: HEADER_BYTES, room, marks: Vec::new() });
        self.next_bytes = (2 * room).min(self.options.segment_bytes);
    }

    /// Takes an append's outcome back. Returns the last durable index.
    pub fn append_done(&mut self, done: Appended) -> Result<u64, LogError> {
        self.in_flight = false;
        match done.result {
            Ok(()) => {
                self.written = done.last;
                self.durable = self.durable.max(done.durable);
                Ok(self.durable)
            }
            Err(error) => {
                self.failed = true;
                Err(error)
            }
        }
    }

    /// The last index that was written, durable or not.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// A sync of what is written and not durable, if there is any and no sync is out. It may run while
    /// an append does.
    pub fn plan_sync(&mut self) -> Option<Sync> {
        if self.syncing || self.failed || self.written <= self.durable {
            return None;
        }
        // All before the segment with the last record is durable.
        let holds = |piece: &&Piece| piece.segment.first() <= self.written;
        let segment = Arc::clone(&self.pieces.iter().rev().find(holds)?.segment);
        self.syncing = true;
        Some(Sync { syncs: Arc::clone(&self.syncs), segment, last: self.written })
    }

    /// Takes a sync's outcome back. Returns the last durable index.
    pub fn sync_done(&mut self, done: Synced) -> Result<u64, LogError> {
        self.syncing = false;
        match done.result {
            Ok(()) => {
                self.durable = self.durable.max(done.last);
                Ok(self.durable)
            }
            Err(error) => {
                self.failed = true;
                Err(error)
            }
        }
    }

    /// All that is in the log is durable up to `end`, its last record.
    pub(crate) fn ends_durably(&mut self, end: u64) {
        (self.written, self.durable) = (end, end);
    }

    /// Whether an operation failed, and the log must be opened again.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    pub(crate) fn check(&self) -> Result<(), LogError> {
        if self.failed { Err(LogError::Failed) } else { Ok(()) }
    }
}

impl Append {
    /// Bytes that it writes.
    pub fn bytes(&self) -> u64 {
        self.heads.len() as u64 + self.parts.iter().map(|(_, p)| p.len() as u64).sum::<u64>()
    }

    /// Writes and syncs. Blocks.
    pub fn run(self) -> Appended {
        let result = self.write().and_then(|()| self.syncs.sync(&self.segment));
        Appended { result, last: self.last, durable: self.last }
    }

    /// Writes; a [`Sync`] makes it durable. Blocks.
    pub fn write_only(self) -> Appended {
        Appended { result: self.write(), last: self.last, durable: self.durable }
    }

    fn write(&self) -> Result<(), LogError> {
        if let Some(before) = &self.before {
            self.syncs.sync(before)?;
        }
        let segment = &*self.segment;
        if let Some(fresh) = &self.fresh {
            let file = fresh.make(segment)?;
            assert!(segment.file.set(file).is_ok(), "a segment's file is made once");
        }
        let mut bufs: Vec<&[u8]> = Vec::with_capacity(2 * self.parts.len());
        for (head, payload) in &self.parts {
            bufs.push(&self.heads[head.clone()]);
            bufs.push(payload);
        }
        let file = &**segment.file();
        write_all(file, &bufs, self.offset).map_err(|e| segment.error("write", e))
    }
}

impl Appended {
    /// Whether it failed.
    pub fn failed(&self) -> bool {
        self.result.is_err()
    }
}

impl Sync {
    /// Syncs. Blocks.
    pub fn run(self) -> Synced {
        Synced { result: self.syncs.sync(&self.segment), last: self.last }
    }
}

impl Synced {
    /// Whether it failed.
    pub fn failed(&self) -> bool {
        self.result.is_err()
    }
}

impl Fresh {
    /// A file with the segment's name, durable, whose header is not of this segment yet.
    fn make(&self, segment: &Segment) -> Result<Arc<dyn RawFile>, LogError> {
        let storage = &*segment.storage;
        let path = &segment.path;
        match &self.spare {
            Some(spare) => {
                self.extend(storage, spare)?;
                storage.rename(spare, path).map_err(|e| io_error(storage, spare, "rename", e))?
            }
            None => make_zeroed(storage, path, self.bytes)?,
        }
        self.names.sync_dir(storage, &self.dir)?;
        open_with_room(storage, path, self.bytes)
    }
}

impl Fresh {
    /// A spare from when segments were smaller gets their size of now.
    fn extend(&self, storage: &dyn Storage, spare: &str) -> Result<(), LogError> {
        let error = |doing| move |e| io_error(storage, spare, doing, e);
        let file = storage.open(spare).map_err(error("open"))?;
        let len = file.len().map_err(error("stat"))?;
        if len >= self.room {
            return Ok(());
        }
        // As long as what was written: on a full disk it stays what it can be used for.
        write_zeros(&*file, len, self.room).map_err(error("write"))?;
        file.sync().map_err(error("sync"))
    }
}

/// Makes a file of `bytes` written zeros, synced; the caller syncs the directory.
pub(crate) fn make_zeroed(storage: &dyn Storage, path: &str, bytes: u64) -> Result<(), LogError> {
    let file = storage.create(path).map_err(|e| io_error(storage, path, "create", e))?;
    file.reserve(bytes).map_err(|e| io_error(storage, path, "reserve space for", e))?;
    write_zeros(&*file, 0, bytes).map_err(|e| io_error(storage, path, "write", e))?;
    file.sync().map_err(|e| io_error(storage, path, "sync", e))
}

/// Opens a file that is to take so many bytes. One that is shorter gets their room before anything is
/// written: a disk that is full in the middle of a record leaves what looks like one that was lost.
pub(crate) fn open_with_room(
    storage: &dyn Storage,
    path: &str,
    bytes: u64,
) -> Result<Arc<dyn RawFile>, LogError> {
    let file = storage.open(path).map_err(|e| io_error(storage, path, "open", e))?;
    if file.len().map_err(|e| io_error(storage, path, "stat", e))? < bytes {
        file.reserve(bytes).map_err(|e| io_error(storage, path, "reserve space for", e))?;
    }
    Ok(file)
}

pub(crate) fn remove_if_there(storage: &dyn Storage, path: &str) -> Result<(), LogError> {
    match storage.remove(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|e| io_error(storage, path, "remove", e)),
    }
}

pub(crate) fn segment_path(dir: &str, sequence: u64) -> String {
    format!("{dir}/{sequence:016x}.seg")
}

pub(crate) fn spare_path(dir: &str, number: u64) -> String {
    format!("{dir}/{number:016x}.spare")
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
