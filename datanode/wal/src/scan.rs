//! Opening a log: which segments it is made of, where it ends, and what of it is durable.
//!
//! The newest segment with a valid header is the log's last; each names the one before it. Records
//! are read from the wanted one on. The first that does not fit ends the log if it is in the last
//! segment: it is the torn rest of a write that was never acknowledged. But it is damage, and the
//! log is not opened, if something proves that it had been durable: a mark of the caller's, a mark
//! in a record before it or in a valid frame behind it, or that a later segment was begun.
//!
//! Of the last write nothing proves that it was durable, so one that rotted after it was acknowledged
//! looks as one that a loss of power tore. What both leave is a trace of a write behind the end, and
//! with that the end is *doubtful*: [`Scanned::doubt`]. Nothing is changed before the caller has seen
//! it, for what is done next takes the trace away.
//!
//! What the scan found may still be in the page cache only, and after a failed sync the page cache
//! is not to be trusted to ever write it. So what lies past the last recorded durable index is
//! copied into a fresh segment, which takes the place of what it copies, and synced.

mod find;
mod secure;

use std::sync::Arc;

use self::find::Found;
use crate::bytes_io::is_zero;
use crate::error::LogError;
use crate::frame::{FRAME_ALIGN, FRAME_HEADER, Frame, Marks};
use crate::log::{Log, LogOptions, Place};
use crate::reader::{ReadRecord, check_frame, read_body};
use crate::segment::{Owner, Segment, write_zeros};
use crate::storage::{Storage, read_exact};

/// What the caller knows of a log that it opens.
#[derive(Clone, Copy, Debug)]
pub struct Expect {
    /// The first record that is wanted. All from here on must be there.
    pub from: u64,
    /// Everything up to here was durable.
    pub durable: u64,
    /// Records behind this one were cut; the cut may not have been finished.
    pub cut: Option<u64>,
}

/// What opening found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// The last record, durable now; the index before the first one if there is none.
    pub end: u64,
    /// The highest committed index that a record told, or 0.
    pub committed: u64,
    /// The last index that was known to be durable before this opening.
    pub recorded: u64,
    /// Records that have another place now than they had when they were shown.
    pub moved: Vec<(u64, Place)>,
    /// What is worth telling an operator: retained segments that were damaged and left out.
    pub notes: Vec<String>,
}

/// Takes a record that a scan found.
pub type Visit<'a> = dyn FnMut(&ReadRecord, Place) -> Result<(), Unfit> + 'a;

/// Why a record whose checksum is right does not count.
#[derive(Debug)]
pub enum Unfit {
    /// It can't be right: that is damage.
    Damaged(String),
    /// What it stands for is not there: it ends the log, or is damage, as if its checksum were wrong.
    Torn(String),
    /// What it stands for can't be looked at now.
    Failed(LogError),
}

impl From<String> for Unfit {
    fn from(what: String) -> Self {
        Self::Damaged(what)
    }
}

/// A log that was read and not changed.
#[derive(Debug)]
pub struct Scanned {
    log: Log,
    scan: Scan,
    cut: bool,
    notes: Vec<String>,
}

/// Where a scan is.
#[derive(Debug)]
struct Scan {
    index: u64,
    marks: Marks,
    /// The records that no mark has shown durable so far.
    unproven: Vec<ReadRecord>,
    /// What was written behind the end and does not count.
    doubt: Option<String>,
}

/// What lies at an offset of a segment.
enum Step {
    Frame(Frame),
    /// Nothing that fits, and why.
    Bad(String),
}

impl Log {
    /// Opens the log in `dir` and shows the records from `expect.from` on to `visit`, in order, whether
    /// its end is doubtful or not.
    pub fn open(
        storage: Arc<dyn Storage>,
        dir: &str,
        owner: Owner,
        options: LogOptions,
        expect: Expect,
        visit: &mut Visit<'_>,
    ) -> Result<(Self, Opened), LogError> {
        Self::read(storage, dir, owner, options, expect, visit)?.settle()
    }

    /// Reads the log in `dir` and shows the records from `expect.from` on to `visit`, in order. Changes
    /// nothing.
    pub fn read(
        storage: Arc<dyn Storage>,
        dir: &str,
        owner: Owner,
        options: LogOptions,
        expect: Expect,
        visit: &mut Visit<'_>,
    ) -> Result<Scanned, LogError> {
        let mut log = Self::create(storage, dir, owner, options, expect.from);
        let Found { headless, unread } = log.find_segments(expect.cut)?;
        // What is needed may be in the one that can't be read now.
        let notes = log.choose(&expect).map_err(|error| unread.unwrap_or(error))?;
        let marks = Marks { durable: expect.durable, committed: 0 };
        let mut scan = Scan { index: expect.from, marks, unproven: Vec::new(), doubt: None };
        log.scan(&expect, &mut scan, visit).map_err(|error| match (error, headless.last()) {
            // What is missed is in a segment that was left out.
            (error @ LogError::Damaged { .. }, Some((segment, _))) => {
                segment.damaged(0, format!("bad header, but records in it; without them: {error}"))
            }
            (error, _) => error,
        })?;
        let end = scan.index - 1;
        // A segment whose header can't be read, with a record that says more was durable.
        for (segment, traces) in headless {
            let durable = traces.durable;
            if durable > end {
                return Err(segment.damaged(0, format!("bad header; {durable} was durable")));
            }
            if traces.index > end {
                let (path, index) = (segment.describe(), traces.index);
                let what = format!("{}: bad header, and record {index} in it", path.display());
                scan.doubt = Some(what);
            }
        }
        log.next_index = scan.index;
        Ok(Scanned { log, scan, cut: expect.cut.is_some(), notes })
    }

    /// A log whose records count for nothing: only [`Log::reset`] makes it usable.
    pub fn blank(
        storage: Arc<dyn Storage>,
        dir: &str,
        owner: Owner,
        options: LogOptions,
    ) -> Result<Self, LogError> {
        let mut log = Self::create(storage, dir, owner, options, 1);
        log.condemn_all()?;
        Ok(log)
    }

    fn scan(
        &mut self,
        expect: &Expect,
        scan: &mut Scan,
        visit: &mut Visit<'_>,
    ) -> Result<(), LogError> {
        let start = self.pieces.partition_point(|p| p.segment.first() <= expect.from);
        let start = start.saturating_sub(1);
        if let Some(piece) = self.pieces.get(start) {
            scan.index = piece.segment.first();
        }
        // Of those that are not read it is not known how far they are filled; they take all their room.
        // [They counted as empty, so that a process that was started again and again before it had written
        // as much as is to be retained never let go of anything, until the disk was full.]
        for (at, piece) in self.pieces.iter_mut().enumerate() {
            let segment = &piece.segment;
            let len = segment.file().len().map_err(|e| segment.error("stat", e))?;
            piece.room = len.min(self.options.segment_bytes);
            self.next_bytes = self.next_bytes.max(piece.room);
            if at < start {
                piece.end = len;
            }
        }
        for at in start..self.pieces.len() {
            let next = self.pieces.get(at + 1).map(|p| p.segment.first());
            self.scan_piece(at, next, expect, scan, visit)?;
            if let Some(next) = next {
                // A segment is begun only after all before it is durable.
                scan.proven(next - 1);
            }
        }
        let end = scan.index - 1;
        if end < scan.marks.durable {
            return Err(LogError::Damaged {
                path: self.storage.describe(&self.dir),
                offset: 0,
                what: format!("the log ends at {end}, but {} was durable", scan.marks.durable),
            });
        }
        Ok(())
    }

    /// Reads a segment's records. `next` is the first index of the segment behind it.
    fn scan_piece(
        &mut self,
        at: usize,
        next: Option<u64>,
        expect: &Expect,
        scan: &mut Scan,
        visit: &mut Visit<'_>,
    ) -> Result<(), LogError> {
        let segment = Arc::clone(&self.pieces[at].segment);
        let limit = next.or(expect.cut.map(|end| end + 1));
        let len = segment.file().len().map_err(|e| segment.error("stat", e))?;
        let (mut chain, mut offset) = segment.start();
        self.chain = chain;
        while limit.is_none_or(|limit| scan.index < limit) {
            let wanted = scan.index >= expect.from;
            let (frame, record) = match step(&segment, offset, len, scan.index, chain)? {
                Step::Frame(frame) if wanted => match read_body(&segment, offset, &frame) {
                    Ok(record) => (frame, Some(record)),
                    Err(LogError::Damaged { what, .. }) => {
                        return scan.stop(&segment, (offset, chain), next, expect, &what);
                    }
                    Err(error) => return Err(error),
                },
                Step::Frame(frame) => (frame, None),
                Step::Bad(what) => {
                    return scan.stop(&segment, (offset, chain), next, expect, &what);
                }
            };
            if let Some(record) = record {
                let place = Place { segment: segment.sequence(), body: record.offset };
                match visit(&record, place) {
                    Ok(()) => scan.unproven.push(record),
                    Err(Unfit::Damaged(what)) => return Err(segment.damaged(offset, what)),
                    Err(Unfit::Torn(what)) => {
                        return scan.stop(&segment, (offset, chain), next, expect, &what);
                    }
                    Err(Unfit::Failed(error)) => return Err(error),
                }
            }
            let piece = &mut self.pieces[at];
            piece.mark(scan.index, offset);
            scan.index += 1;
            scan.marks.committed = scan.marks.committed.max(frame.marks.committed);
            scan.proven(frame.marks.durable);
            offset += u64::from(frame.total);
            chain = frame.crc;
            piece.end = offset;
            self.chain = chain;
        }
        Ok(())
    }

    /// Overwrites what lies behind the log's end, if there is a whole frame in it: of a cut that
    /// was not finished, or of a torn write, or one whose copy was cut. Left there, it could be
    /// taken for a record of the log once more, or for the proof that a torn record had been
    /// durable: its mark may be above the end that a later cut leaves.
    pub(crate) fn clear_tail(&self) -> Result<(), LogError> {
        let Some(piece) = self.pieces.back() else { return Ok(()) };
        let segment = &piece.segment;
        let file = segment.file();
        let len = file.len().map_err(|e| segment.error("stat", e))?;
        if traces(segment, piece.end, len, 0)?.is_none() {
            return Ok(());
        }
        write_zeros(&**file, piece.end, len).map_err(|e| segment.error("write", e))?;
        file.sync().map_err(|e| segment.error("sync", e))
    }

    /// Makes the log's end what the scan saw: the disk may still hold what the page cache shows to
    /// be gone, and would bring it back after a loss of power. Scenarios:
    /// 1. killed while a cut was overwriting records: the zeros are in the page cache only, so a
    ///    sync is needed although nothing is left to be cleared;
    /// 2. the sync of a cut failed: the page cache counts as clean, so only writing the zeros once
    ///    more brings them to the disk;
    /// 3. a trace of a write that does not count would make the next opening doubt an end that is
    ///    known by then.
    fn settle_tail(&self, cut: bool, doubt: bool) -> Result<(), LogError> {
        self.clear_tail()?;
        if bug!(TrustPageCache) {
            return Ok(());
        }
        let Some(piece) = self.pieces.back() else { return Ok(()) };
        let segment = &piece.segment;
        let file = segment.file();
        if cut || doubt {
            let len = file.len().map_err(|e| segment.error("stat", e))?;
            write_zeros(&**file, piece.end, len).map_err(|e| segment.error("write", e))?;
        }
        file.sync().map_err(|e| segment.error("sync", e))
    }
}

impl Scanned {
    /// Why the log may have lost its end, if it may: something was written behind it that does not count.
    /// Either power was lost while it was written, and it was never acknowledged; or it was, and rotted.
    /// [A replica took the rot for the first and was promoted, and what two others had was cut.]
    ///
    /// Whether it is so is known by the copies elsewhere only, and a crash after [`Scanned::settle`] is
    /// followed by an opening without a doubt: who cares must have written it down before.
    pub fn doubt(&self) -> Option<&str> {
        self.scan.doubt.as_deref()
    }

    /// Makes the log end where it was read to end, and all of that durable. Blocks.
    pub fn settle(self) -> Result<(Log, Opened), LogError> {
        let Self { mut log, scan, cut, notes } = self;
        let end = scan.index - 1;
        log.settle_tail(cut, scan.doubt.is_some())?;
        let recorded = scan.marks.durable;
        let committed = scan.marks.committed;
        let moved = if bug!(TrustPageCache) { Vec::new() } else { log.secure(&scan)? };
        log.remove_garbage(!moved.is_empty())?;
        log.ends_durably(end);
        Ok((log, Opened { end, committed, recorded, moved, notes }))
    }
}

impl Scan {
    /// Everything up to `index` was durable before this opening.
    fn proven(&mut self, index: u64) {
        self.marks.durable = self.marks.durable.max(index);
        let durable = self.marks.durable;
        self.unproven.retain(|record| record.index > durable);
    }

    /// The record at `offset` does not fit. The log ends here, with a doubt or without, or an error says
    /// that it must not.
    fn stop(
        &mut self,
        segment: &Segment,
        (offset, chain): (u64, u32),
        next: Option<u64>,
        expect: &Expect,
        what: &str,
    ) -> Result<(), LogError> {
        let bad = self.index;
        let proof = if let Some(next) = next {
            Some(format!("the next segment starts at {next}"))
        } else if self.marks.durable >= bad {
            Some(format!("{} was recorded as durable", self.marks.durable))
        } else if expect.cut.is_none() {
            let len = segment.file().len().map_err(|e| segment.error("stat", e))?;
            let traces = traces(segment, offset, len, bad)?;
            if traces.is_some() || resembles(segment, offset, bad, chain)? {
                let path = segment.describe();
                self.doubt = Some(format!("{}, offset {offset}: {what}", path.display()));
            }
            let later = traces.map(|traces| traces.durable).filter(|mark| *mark >= bad);
            later.map(|mark| format!("a later record says that {mark} was durable"))
        } else {
            None
        };
        match proof {
            Some(proof) => Err(segment.damaged(offset, format!("{what}; but {proof}"))),
            None => Ok(()),
        }
    }
}

/// Whether the frame of record `index` was written at `offset` once, readable or not: a bit that flipped
/// spoils one field of it. What an older use of the file left there has another segment, record and chain.
fn resembles(segment: &Segment, offset: u64, index: u64, chain: u32) -> Result<bool, LogError> {
    let mut bytes = [0; FRAME_HEADER];
    read_exact(&**segment.file(), &mut bytes, offset, true)
        .map_err(|e| segment.error("read", e))?;
    let fits = Frame::unchecked(&bytes).map(|(magic, frame)| {
        let same =
            [magic, frame.prev == chain, frame.segment == segment.sequence(), frame.index == index];
        same.into_iter().filter(|same| *same).count() >= 2
    });
    Ok(fits.unwrap_or(false))
}

fn step(
    segment: &Segment,
    offset: u64,
    len: u64,
    index: u64,
    chain: u32,
) -> Result<Step, LogError> {
    let mut bytes = [0; FRAME_HEADER];
    read_exact(&**segment.file(), &mut bytes, offset, true)
        .map_err(|e| segment.error("read", e))?;
    Ok(match check_frame(segment, &bytes, index, Some(chain)) {
        Ok(frame) if offset + FRAME_HEADER as u64 + u64::from(frame.body_len) <= len => {
            Step::Frame(frame)
        }
        Ok(_) => Step::Bad(format!("record {index} passes the end of the file")),
        Err(what) => Step::Bad(what),
    })
}

/// What valid frames tell that are not read as a part of the log.
#[derive(Clone, Copy, Debug, Default)]
struct Traces {
    /// The highest index of one.
    index: u64,
    /// The highest index that one tells to be durable.
    durable: u64,
}

/// What the valid frames of the segment tell, of those at or behind `from` with at least the index `least`;
/// `None` if there is none.
fn traces(segment: &Segment, from: u64, len: u64, least: u64) -> Result<Option<Traces>, LogError> {
    const CHUNK: u64 = 1 << 20;
    let mut found: Option<Traces> = None;
    let mut at = from.next_multiple_of(FRAME_ALIGN);
    let mut buffer = Vec::new();
    while at < len {
        let chunk = CHUNK.min(len - at) as usize;
        buffer.resize(chunk + FRAME_HEADER, 0);
        read_exact(&**segment.file(), &mut buffer, at, true)
            .map_err(|e| segment.error("read", e))?;
        // Most of it is zeros that were never written.
        if !is_zero(&buffer) {
            for start in (0..chunk).step_by(FRAME_ALIGN as usize) {
                let frame = Frame::decode(&segment.owner, &buffer[start..])
                    .filter(|f| f.segment == segment.sequence() && f.index >= least);
                if let Some(frame) = frame {
                    let traces = found.get_or_insert_default();
                    traces.index = traces.index.max(frame.index);
                    traces.durable = traces.durable.max(frame.marks.durable);
                }
            }
        }
        at += CHUNK;
    }
    Ok(found)
}

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;
