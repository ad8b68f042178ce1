//! Which files a log is made of.

use std::sync::{Arc, OnceLock};

use super::{Expect, best_mark};
use crate::error::LogError;
use crate::log::{Log, Piece, segment_path, spare_path};
use crate::manage::{MAX_SPARES, list};
use crate::segment::{HEADER_BYTES, Head, Header, Segment, io_error};
use crate::storage::RawFile;

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
    /// behind a cut and those that were never used become garbage. Returns the segments without a
    /// readable header that hold valid records, with the highest durable index that these tell.
    pub(super) fn find_segments(
        &mut self,
        cut: Option<u64>,
    ) -> Result<Vec<(Arc<Segment>, u64)>, LogError> {
        let storage = Arc::clone(&self.storage);
        let (sequences, spares) = list(&*storage, &self.dir)?;
        self.next_sequence = sequences.last().map_or(1, |s| s + 1);
        self.next_spare = spares.last().map_or(1, |s| s + 1);
        self.spares = spares.iter().map(|n| spare_path(&self.dir, *n)).collect();
        let superfluous = self.spares.len().min(MAX_SPARES);
        self.garbage = self.spares.split_off(superfluous);
        let mut proofs = Vec::new();
        for sequence in sequences {
            let path = segment_path(&self.dir, sequence);
            let file = storage.open(&path).map_err(|e| io_error(&*storage, &path, "open", e))?;
            let head = Header::read(&*storage, &path, &*file, &self.owner)?;
            match head {
                Head::Valid(header, _) if header.sequence == sequence => {
                    let segment = self.segment(header, file);
                    if cut.is_some_and(|end| header.first > end) {
                        self.garbage.push(path);
                    } else {
                        let piece = Piece { segment, end: HEADER_BYTES, marks: Vec::new() };
                        self.pieces.push_back(piece);
                    }
                }
                Head::Valid(..) | Head::Unused | Head::Damaged => {
                    let header = Header { sequence, previous: 0, first: 0 };
                    let segment = self.segment(header, file);
                    let len = segment.file().len().map_err(|e| segment.error("stat", e))?;
                    if let Some(durable) = best_mark(&segment, HEADER_BYTES, len, 0)?
                        && cut.is_none()
                    {
                        proofs.push((segment, durable));
                    }
                    self.garbage.push(path);
                }
            }
        }
        Ok(proofs)
    }

    /// Everything in the directory becomes garbage.
    pub(super) fn condemn_all(&mut self) -> Result<(), LogError> {
        let (sequences, spares) = list(&*self.storage, &self.dir)?;
        self.next_sequence = sequences.last().map_or(1, |s| s + 1);
        self.next_spare = spares.last().map_or(1, |s| s + 1);
        let dir = &self.dir;
        self.garbage = sequences
            .iter()
            .map(|s| segment_path(dir, *s))
            .chain(spares.iter().map(|s| spare_path(dir, *s)))
            .collect();
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
    /// power would bring them back into a log that was seen without them.
    pub(super) fn remove_garbage(&mut self) -> Result<(), LogError> {
        let storage = &*self.storage;
        for path in self.garbage.drain(..) {
            storage.remove(&path).map_err(|e| io_error(storage, &path, "remove", e))?;
        }
        storage.sync_dir(&self.dir).map_err(|e| io_error(storage, &self.dir, "sync", e))
    }
}
