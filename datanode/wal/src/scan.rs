//! Opening a log: which segments it is made of, where it ends, and what of it is durable.
//!
//! The newest segment with a valid header is the log's last; each names the one before it. Records
//! are read from the wanted one on. The first that does not fit ends the log if it is in the last
//! segment: it is the torn rest of a write that was never acknowledged. But it is damage, and the
//! log is not opened, if something proves that it had been durable: a mark of the caller's, a mark
//! in a record before it or in a valid frame behind it, or that a later segment was begun.
//!
//! What the scan found may still be in the page cache only, and after a failed sync the page cache
//! is not to be trusted to ever write it. So what lies past the last recorded durable index is
//! copied into a fresh segment, which takes the place of what it copies, and synced.

mod find;
mod secure;

use std::sync::Arc;

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

/// Takes a record that a scan found; an error says why it can't be right, which is damage.
pub type Visit<'a> = dyn FnMut(&ReadRecord, Place) -> Result<(), String> + 'a;

/// Where a scan is.
struct Scan {
    index: u64,
    marks: Marks,
    /// The records that no mark has shown durable so far.
    unproven: Vec<ReadRecord>,
}

/// What lies at an offset of a segment.
enum Step {
    Frame(Frame),
    /// Nothing that fits, and why.
    Bad(String),
}

impl Log {
    /// Opens the log in `dir` and shows the records from `expect.from` on to `visit`, in order.
    pub fn open(
        storage: Arc<dyn Storage>,
        dir: &str,
        owner: Owner,
        options: LogOptions,
        expect: Expect,
        visit: &mut Visit<'_>,
    ) -> Result<(Self, Opened), LogError> {
        let mut log = Self::create(storage, dir, owner, options, expect.from);
        let proofs = log.find_segments(expect.cut)?;
        let notes = log.choose(&expect)?;
        let marks = Marks { durable: expect.durable, committed: 0 };
        let mut scan = Scan { index: expect.from, marks, unproven: Vec::new() };
        log.scan(&expect, &mut scan, visit).map_err(|error| match (error, proofs.last()) {
            // What is missed is in a segment that was left out.
            (error @ LogError::Damaged { .. }, Some((segment, _))) => {
                segment.damaged(0, format!("bad header, but records in it; without them: {error}"))
            }
            (error, _) => error,
        })?;
        let end = scan.index - 1;
        // A segment whose header can't be read, with a record that says more was durable.
        for (segment, durable) in proofs {
            if durable > end {
                return Err(segment.damaged(0, format!("bad header; {durable} was durable")));
            }
        }
        log.next_index = scan.index;
        log.settle_tail(expect.cut.is_some())?;
        let recorded = scan.marks.durable;
        let committed = scan.marks.committed;
        let moved = if bug!(TrustPageCache) { Vec::new() } else { log.secure(&scan)? };
        log.remove_garbage()?;
        log.ends_durably(end);
        Ok((log, Opened { end, committed, recorded, moved, notes }))
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
        for piece in self.pieces.iter_mut().take(start) {
            let segment = &piece.segment;
            piece.end = segment.file().len().map_err(|e| segment.error("stat", e))?;
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
                        return scan.stop(&segment, offset, len, next, expect, &what);
                    }
                    Err(error) => return Err(error),
                },
                Step::Frame(frame) => (frame, None),
                Step::Bad(what) => {
                    return scan.stop(&segment, offset, len, next, expect, &what);
                }
            };
            let piece = &mut self.pieces[at];
            piece.mark(scan.index, offset);
            if let Some(record) = record {
                let place = Place { segment: segment.sequence(), body: record.offset };
                visit(&record, place).map_err(|what| segment.damaged(offset, what))?;
                scan.unproven.push(record);
            }
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
        if best_mark(segment, piece.end, len, 0)?.is_none() {
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
    ///    more brings them to the disk.
    fn settle_tail(&self, cut: bool) -> Result<(), LogError> {
        self.clear_tail()?;
        if bug!(TrustPageCache | CutInPageCache) {
            return Ok(());
        }
        let Some(piece) = self.pieces.back() else { return Ok(()) };
        let segment = &piece.segment;
        let file = segment.file();
        if cut {
            let len = file.len().map_err(|e| segment.error("stat", e))?;
            write_zeros(&**file, piece.end, len).map_err(|e| segment.error("write", e))?;
        }
        file.sync().map_err(|e| segment.error("sync", e))
    }
}

impl Scan {
    /// Everything up to `index` was durable before this opening.
    fn proven(&mut self, index: u64) {
        self.marks.durable = self.marks.durable.max(index);
        let durable = self.marks.durable;
        self.unproven.retain(|record| record.index > durable);
    }

    /// The record at `offset` does not fit. Returns if the log ends here, or says that it must not.
    fn stop(
        &self,
        segment: &Segment,
        offset: u64,
        len: u64,
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
            let later = best_mark(segment, offset, len, bad)?;
            later
                .filter(|mark| *mark >= bad)
                .map(|mark| format!("a later record says that {mark} was durable"))
        } else {
            None
        };
        match proof {
            Some(proof) => Err(segment.damaged(offset, format!("{what}; but {proof}"))),
            None => Ok(()),
        }
    }
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

/// The highest durable index that a valid frame of the segment tells, among those at or behind
/// `from` with at least the index `least`.
fn best_mark(segment: &Segment, from: u64, len: u64, least: u64) -> Result<Option<u64>, LogError> {
    const CHUNK: u64 = 1 << 20;
    let mut best = None;
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
                let found = Frame::decode(&segment.owner, &buffer[start..])
                    .filter(|f| f.segment == segment.sequence() && f.index >= least);
                best = best.max(found.map(|f| f.marks.durable));
            }
        }
        at += CHUNK;
    }
    Ok(best)
}

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;
