//! Which files a log is made of.

use std::sync::{Arc, OnceLock};

use super::{Expect, Traces, traces};
use crate::error::LogError;
use crate::log::{Log, Piece, segment_path, spare_path};
use crate::manage::{MAX_SPARES, Names, UNFINISHED, list};
use crate::segment::{HEADER_BYTES, Head, Header, Segment, io_error};
use crate::storage::{RawFile, is_unreadable};

/// What was found beside the log's segments.
pub(super) struct Found {
    /// Segments with a bad header that hold valid records, with what these tell.
    pub(super) headless: Vec<(Arc<Segment>, Traces)>,
    /// Why the newest one was left out whose header the disk does not give back.
    pub(super) unread: Option<LogError>,
}

impl Log {
    fn segment(&self, header: Header, file: Arc<dyn RawFile>) -> Arc<Segment> {
        Arc::new(Segment {
            storage: Arc::clone(&self.storage),
            path: segment_path(&self.dir, header.sequence),
            owner: self.owner,
            header,
            file: OnceLock::from(file),
        })
    }

    /// Fills `pieces` with every segment that has a valid header, by sequence; those that lie
    /// behind a cut, those that were never used and those that can't be read become garbage.
    pub(super) fn find_segments(&mut self, cut: Option<u64>) -> Result<Found, LogError> {
        let storage = Arc::clone(&self.storage);
        let Names { segments: sequences, spares, unfinished } = list(&*storage, &self.dir)?;
        self.next_sequence = sequences.last().map_or(1, |s| s + 1);
        self.next_spare = spares.last().map_or(1, |s| s + 1);
        self.garbage = unfinished;
        self.spares = spares.iter().map(|n| spare_path(&self.dir, *n)).collect();
        let superfluous = self.spares.len().min(MAX_SPARES);
        self.garbage.extend(self.spares.split_off(superfluous));
        let mut headless = Vec::new();
        let mut unread = None;
        for sequence in sequences {
            let path = segment_path(&self.dir, sequence);
            let file = storage.open(&path).map_err(|e| io_error(&*storage, &path, "open", e))?;
            let head = match Header::read(&*storage, &path, &*file, &self.owner) {
                Err(LogError::Io { source, .. }) if is_unreadable(&source) => {
                    unread = Some((sequence, io_error(&*storage, &path, "read", source)));
                    self.garbage.push(path);
                    continue;
                }
                other => other?,
            };
            match head {
                Head::Valid(header, _) if header.sequence == sequence => {
                    let segment = self.segment(header, file);
                    if cut.is_some_and(|end| header.first > end) {
                        self.garbage.push(path);
                    } else {
                        // The scan looks how large it is.
                        let (end, marks) = (HEADER_BYTES, Vec::new());
                        let piece = Piece { segment, end, room: 0, marks };
                        self.pieces.push_back(piece);
                    }
                }
                Head::Valid(..) | Head::Unused | Head::Damaged => {
                    let header = Header { sequence, previous: 0, first: 0 };
                    let segment = self.segment(header, file);
                    let len = segment.file().len().map_err(|e| segment.error("stat", e))?;
                    if let Some(traces) = traces(&segment, HEADER_BYTES, len, 0)?
                        && cut.is_none()
                    {
                        headless.push((segment, traces));
                    }
                    self.garbage.push(path);
                }
            }
        }
        // A valid segment behind one that can't be read leads past it, or says that it is needed. Without one
        // it may be the log's end: what can't be read does not say that it holds nothing.
        let newest = self.pieces.back().map_or(0, |p| p.segment.sequence());
        match unread {
            Some((sequence, error)) if sequence > newest => Err(error),
            other => Ok(Found { headless, unread: other.map(|(_, error)| error) }),
        }
    }

    /// Changes a name that nothing depends on.
    fn change_a_name(&mut self) -> Result<(), LogError> {
        let storage = Arc::clone(&self.storage);
        // On a full disk that is all that can be done.
        if let Some(old) = self.spares.pop() {
            let new = self.new_spare_path();
            storage.rename(&old, &new).map_err(|e| io_error(&*storage, &old, "rename", e))?;
            self.spares.push(new);
            return Ok(());
        }
        let path = format!("{}/{UNFINISHED}", self.dir);
        storage.create(&path).map_err(|e| io_error(&*storage, &path, "create", e))?;
        storage.remove(&path).map_err(|e| io_error(&*storage, &path, "remove", e))
    }

    /// Everything in the directory becomes garbage.
    pub(super) fn condemn_all(&mut self) -> Result<(), LogError> {
        let names = list(&*self.storage, &self.dir)?;
        self.next_sequence = names.segments.last().map_or(1, |s| s + 1);
        self.next_spare = names.spares.last().map_or(1, |s| s + 1);
        self.garbage = names.paths(&self.dir).collect();
        Ok(())
    }

    /// Keeps the segments that lead back from the newest one; the others become garbage. What is
    /// needed must be among them.
    pub(super) fn choose(&mut self, expect: &Expect) -> Result<Vec<String>, LogError> {
        let mut notes = Vec::new();
        let mut candidates = std::mem::take(&mut self.pieces);
        let mut wanted = candidates.back().map(|p| p.segment.sequence());
        while let Some(piece) = candidates.pop_back() {
            let header = piece.segment.header;
            if Some(header.sequence) == wanted {
                wanted = Some(header.previous).filter(|previous| *previous != 0);
                self.pieces.push_front(piece);
            } else {
                self.garbage.push(piece.segment.path.clone());
            }
        }
        let Some(oldest) = self.pieces.front() else {
            return Ok(notes);
        };
        let first = oldest.segment.first();
        let missing = wanted.map(|sequence| segment_path(&self.dir, sequence));
        if first > expect.from {
            let path = missing.unwrap_or_else(|| self.dir.clone());
            return Err(LogError::Damaged {
                path: self.storage.describe(&path),
                offset: 0,
                what: format!(
                    "record {} is needed, but the oldest readable segment starts at {first}",
                    expect.from
                ),
            });
        }
        if let Some(path) = missing
            && self.garbage.contains(&path)
        {
            notes.push(format!(
                "{}: bad header; records below {first} are not retained any more",
                self.storage.describe(&path).display()
            ));
        }
        Ok(notes)
    }

    /// Removes what the log is not made of. The directory is synced in any case: a process that was
    /// killed may have removed segments, for a cut too, and not have synced that, and a loss of
    /// power would bring them back into a log that was seen without them. After a sync that failed
    /// it counts as clean, so a name in it is changed first. `changed`: one was.
    pub(super) fn remove_garbage(&mut self, changed: bool) -> Result<(), LogError> {
        if !changed && self.garbage.is_empty() {
            self.change_a_name()?;
        }
        let storage = &*self.storage;
        for path in self.garbage.drain(..) {
            storage.remove(&path).map_err(|e| io_error(storage, &path, "remove", e))?;
        }
        storage.sync_dir(&self.dir).map_err(|e| io_error(storage, &self.dir, "sync", e))
    }
}
