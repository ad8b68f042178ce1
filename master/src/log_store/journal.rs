//! An append-only journal of checksummed records in segment files.
//!
//! The journal knows nothing of Raft: it keeps byte records in order, tells them all at opening,
//! and drops its oldest segments when asked to. A record counts once [`Journal::sync`] returned.
//!
//! ```text
//! segment = header | frame ...              file name: journal-<first sequence, 16 hex>.log
//! header  = "SBKJRNL1" | first u64 | crc32c u32 | 0 u32          (crc over the 16 bytes before)
//! frame   = length u32 | crc32c u32 | sequence u64 | synced u64 | payload | 0.. to 8 bytes
//! ```
//! Integers are little-endian; a frame's checksum covers everything in it but itself.
//!
//! A crash may leave any part of what was not synced: opening cuts the newest segment at its
//! first bad frame. That is right only if nothing synced lies behind the cut, so every frame
//! also tells the last sequence that was synced when it was written: a good frame behind the
//! cut that says "what you cut was synced" proves damage, and the journal refuses to open.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"SBKJRNL1";
const HEADER: usize = 24;
const FRAME: usize = 24;
/// Most bytes of one record.
pub(crate) const MAX_RECORD: usize = 64 << 20;

/// Why the journal can't be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The operating system said no.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// Synced data is damaged.
    #[error(
        "the journal is damaged at byte {offset} of {path}: {what}. The member's vote and log \
         can't be trusted any more; remove this member from the cluster and add a new one"
    )]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        what: String,
    },
    /// A record over the limit.
    #[error("a record of {size} bytes is over the journal's limit of {MAX_RECORD}")]
    TooLarge {
        /// Its size.
        size: usize,
    },
    /// An earlier write or sync failed. What reached the disk is unknown, so nothing more may be
    /// acknowledged by this process.
    #[error("the journal failed earlier and is closed")]
    Failed,
}

fn io_error<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> JournalError + 'a {
    move |source| JournalError::Io { action, path: path.to_owned(), source }
}

/// One segment file.
#[derive(Debug)]
struct Segment {
    first: u64,
    path: PathBuf,
}

/// See the module's documentation. One owner writes.
#[derive(Debug)]
pub(crate) struct Journal {
    dir: PathBuf,
    /// Oldest first; the last one is written.
    segments: Vec<Segment>,
    file: File,
    end: u64,
    next: u64,
    synced: u64,
    failed: bool,
}

/// A record as told at opening.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) segment: u64,
    pub(crate) payload: Vec<u8>,
}

impl Journal {
    /// Opens the journal in `dir`, which exists, and returns every record in order. `fresh` says
    /// that there may be none yet: then an empty one is made. Otherwise a journal that is gone,
    /// or whose only segment can't be read, is damage and not a beginning.
    pub(crate) fn open(dir: &Path, fresh: bool) -> Result<(Self, Vec<Stored>), JournalError> {
        let mut segments = list(dir)?;
        let mut records = Vec::new();
        let mut next = segments.first().map_or(1, |s| s.first);
        let mut end = 0;
        let mut index = 0;
        while index < segments.len() {
            let newest = index + 1 == segments.len();
            let segment = &segments[index];
            if segment.first != next {
                return Err(JournalError::Damaged {
                    path: segment.path.clone(),
                    offset: 0,
                    what: format!("record {next} is expected next; a segment is missing"),
                });
            }
            let bytes = fs::read(&segment.path).map_err(io_error("read", &segment.path))?;
            let Some(good) = read_segment(segment, &bytes, newest, &mut next, &mut records)? else {
                // A crash while the segment was being made: nothing in it was ever promised.
                fs::remove_file(&segment.path).map_err(io_error("remove", &segment.path))?;
                sync_dir(dir)?;
                segments.pop();
                if let Some(last) = segments.last() {
                    end = fs::metadata(&last.path).map_err(io_error("stat", &last.path))?.len();
                }
                break;
            };
            end = good;
            index += 1;
        }
        let Some(newest) = segments.last() else {
            if !fresh {
                return Err(JournalError::Damaged {
                    path: dir.to_owned(),
                    offset: 0,
                    what: "there is no readable segment".into(),
                });
            }
            let (segment, file) = create_segment(dir, 1, &[])?;
            let journal = Self {
                dir: dir.to_owned(),
                segments: vec![segment],
                file,
                end: HEADER as u64,
                next: 1,
                synced: 0,
                failed: false,
            };
            return Ok((journal, records));
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&newest.path)
            .map_err(io_error("open", &newest.path))?;
        // What follows the last good frame is the rest of a crash. Cut it, so that it can't be
        // taken for records once more have been written. What was read but perhaps never synced
        // is synced now, before anybody acts on it.
        file.set_len(end).map_err(io_error("truncate", &newest.path))?;
        file.sync_all().map_err(io_error("sync", &newest.path))?;
        let journal = Self {
            dir: dir.to_owned(),
            segments,
            file,
            end,
            next,
            synced: next - 1,
            failed: false,
        };
        Ok((journal, records))
    }

    /// The first sequence of the segment that is written: its identity.
    pub(crate) fn segment(&self) -> u64 {
        self.newest().first
    }

    /// Bytes in the segment that is written.
    pub(crate) fn segment_bytes(&self) -> u64 {
        self.end
    }

    /// The identities of the segments, oldest first.
    pub(crate) fn segments(&self) -> impl Iterator<Item = u64> + '_ {
        self.segments.iter().map(|s| s.first)
    }

    fn newest(&self) -> &Segment {
        // Holds from `open` on: a segment is made before an older one goes.
        self.segments.last().expect("a journal has a segment")
    }

    /// Writes records. They count only after the next [`sync`](Self::sync).
    pub(crate) fn append(&mut self, payloads: &[Vec<u8>]) -> Result<(), JournalError> {
        if self.failed {
            return Err(JournalError::Failed);
        }
        let mut bytes = Vec::new();
        let mut next = self.next;
        for payload in payloads {
            put_frame(&mut bytes, next, self.synced, payload)?;
            next += 1;
        }
        let written = self.file.write_all_at(&bytes, self.end);
        self.checked("write", written)?;
        self.end += bytes.len() as u64;
        self.next = next;
        Ok(())
    }

    /// Makes everything appended durable.
    pub(crate) fn sync(&mut self) -> Result<(), JournalError> {
        if self.failed {
            return Err(JournalError::Failed);
        }
        let synced = self.file.sync_data();
        self.checked("sync", synced)?;
        self.synced = self.next - 1;
        Ok(())
    }

    /// After a failed write or fsync the kernel may have dropped dirty pages and report success
    /// the next time, so the first failure closes the journal for good.
    fn checked(
        &mut self,
        action: &'static str,
        result: io::Result<()>,
    ) -> Result<(), JournalError> {
        result.map_err(|source| {
            self.failed = true;
            JournalError::Io { action, path: self.newest().path.clone(), source }
        })
    }

    /// Starts a new segment whose first record is `head`, durably. Everything appended before is
    /// synced first, so that only the newest segment can have a torn end.
    pub(crate) fn rotate(&mut self, head: &[u8]) -> Result<(), JournalError> {
        self.sync()?;
        let mut frames = Vec::new();
        put_frame(&mut frames, self.next, self.synced, head)?;
        let made = create_segment(&self.dir, self.next, &frames);
        let (segment, file) = made.inspect_err(|_| self.failed = true)?;
        self.segments.push(segment);
        self.file = file;
        self.end = (HEADER + frames.len()) as u64;
        self.synced = self.next;
        self.next += 1;
        Ok(())
    }

    /// Removes the oldest segment. The newest stays.
    pub(crate) fn drop_oldest(&mut self) -> Result<(), JournalError> {
        assert!(self.segments.len() > 1, "the segment that is written can't be dropped");
        let oldest = self.segments.remove(0);
        fs::remove_file(&oldest.path).map_err(io_error("remove", &oldest.path))?;
        sync_dir(&self.dir)
    }
}

fn list(dir: &Path) -> Result<Vec<Segment>, JournalError> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(dir).map_err(io_error("list", dir))? {
        let path = entry.map_err(io_error("list", dir))?.path();
        let first = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_prefix("journal-")?.strip_suffix(".log"))
            .and_then(|hex| u64::from_str_radix(hex, 16).ok());
        if let Some(first) = first {
            segments.push(Segment { first, path });
        }
    }
    segments.sort_by_key(|s| s.first);
    Ok(segments)
}

/// Makes a segment with `frames` in it, durable with its name before this returns.
fn create_segment(dir: &Path, first: u64, frames: &[u8]) -> Result<(Segment, File), JournalError> {
    let path = dir.join(format!("journal-{first:016x}.log"));
    let mut bytes = Vec::with_capacity(HEADER + frames.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&first.to_le_bytes());
    bytes.extend_from_slice(&crc(&[&bytes]).to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(frames);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .map_err(io_error("create", &path))?;
    file.write_all_at(&bytes, 0).map_err(io_error("write", &path))?;
    file.sync_all().map_err(io_error("sync", &path))?;
    sync_dir(dir)?;
    Ok((Segment { first, path }, file))
}

fn sync_dir(dir: &Path) -> Result<(), JournalError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(io_error("sync", dir))
}

fn crc(parts: &[&[u8]]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    for part in parts {
        digest.update(part);
    }
    // The algorithm's result has 32 bits.
    digest.finalize() as u32
}

fn put_frame(
    out: &mut Vec<u8>,
    sequence: u64,
    synced: u64,
    payload: &[u8],
) -> Result<(), JournalError> {
    if payload.len() > MAX_RECORD {
        return Err(JournalError::TooLarge { size: payload.len() });
    }
    let length = (payload.len() as u32).to_le_bytes();
    let (sequence, synced) = (sequence.to_le_bytes(), synced.to_le_bytes());
    out.extend_from_slice(&length);
    out.extend_from_slice(&crc(&[&length, &sequence, &synced, payload]).to_le_bytes());
    out.extend_from_slice(&sequence);
    out.extend_from_slice(&synced);
    out.extend_from_slice(payload);
    out.resize(out.len().next_multiple_of(8), 0);
    Ok(())
}

struct Frame<'a> {
    sequence: u64,
    synced: u64,
    payload: &'a [u8],
    size: usize,
}

/// The frame at the start of `bytes`, if there is a good one.
fn get_frame(bytes: &[u8]) -> Option<Frame<'_>> {
    let head: &[u8; FRAME] = bytes.get(..FRAME)?.try_into().ok()?;
    let length = u32::from_le_bytes(head[0..4].try_into().ok()?) as usize;
    let stored = u32::from_le_bytes(head[4..8].try_into().ok()?);
    if length > MAX_RECORD {
        return None;
    }
    let payload = bytes.get(FRAME..FRAME + length)?;
    if crc(&[&head[0..4], &head[8..FRAME], payload]) != stored {
        return None;
    }
    Some(Frame {
        sequence: u64::from_le_bytes(head[8..16].try_into().ok()?),
        synced: u64::from_le_bytes(head[16..24].try_into().ok()?),
        payload,
        size: (FRAME + length).next_multiple_of(8),
    })
}

/// Whether a good frame in `bytes` proves that record `sequence` was synced. Frames are aligned
/// to 8 bytes, so looking there finds them all.
fn proves_synced(bytes: &[u8], sequence: u64) -> bool {
    (0..bytes.len().saturating_sub(FRAME - 1)).step_by(8).any(|at| {
        let rest = &bytes[at..];
        // The cheap test first: the checksum of every offset would be slow.
        let told = u64::from_le_bytes(rest[16..24].try_into().unwrap_or_default());
        told >= sequence && get_frame(rest).is_some_and(|f| f.sequence > f.synced)
    })
}

/// Reads a segment's frames into `records`. Returns the end of the last good one, or `None` if
/// it is the newest segment and was never finished.
fn read_segment(
    segment: &Segment,
    bytes: &[u8],
    newest: bool,
    next: &mut u64,
    records: &mut Vec<Stored>,
) -> Result<Option<u64>, JournalError> {
    let damaged = |offset: usize, what: &str| JournalError::Damaged {
        path: segment.path.clone(),
        offset: offset as u64,
        what: what.to_owned(),
    };
    let header_is_good = bytes.len() >= HEADER
        && &bytes[..8] == MAGIC
        && bytes[8..16] == segment.first.to_le_bytes()
        && bytes[16..20] == crc(&[&bytes[..16]]).to_le_bytes();
    if !header_is_good {
        let body = bytes.get(HEADER..).unwrap_or_default();
        if newest && !proves_synced(body, segment.first) {
            return Ok(None);
        }
        return Err(damaged(0, "bad segment header"));
    }
    let mut at = HEADER;
    while at < bytes.len() {
        let Some(frame) = get_frame(&bytes[at..]).filter(|f| f.sequence == *next) else {
            if !newest {
                return Err(damaged(at, "bad record in a finished segment"));
            }
            if proves_synced(&bytes[at..], *next) {
                return Err(damaged(at, "bad record before good ones"));
            }
            break;
        };
        records.push(Stored { segment: segment.first, payload: frame.payload.to_vec() });
        *next += 1;
        at += frame.size;
    }
    // The padding of the last frame may lie beyond a cut file's end.
    Ok(Some(at as u64))
}
