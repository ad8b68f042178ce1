//! Making durable what a scan found.

use std::sync::Arc;

use super::Scan;
use crate::error::LogError;
use crate::frame::{FRAME_HEADER, Frame, SECTOR, frame_len};
use crate::log::{Log, Place, make_zeroed, open_with_room, remove_if_there};
use crate::segment::{HEADER_BYTES, io_error};
use crate::storage::write_all;

/// The name under which the fresh segment is written.
const TEMPORARY: &str = "copy.tmp";

impl Log {
    /// Copies the records that were not shown to be durable into a fresh segment and syncs it. It
    /// takes its name only then, so a crash before leaves the old ones in their place. Returns
    /// their new places.
    pub(super) fn secure(&mut self, scan: &Scan) -> Result<Vec<(u64, Place)>, LogError> {
        let Some(first) = scan.unproven.first().map(|record| record.index) else {
            return Ok(Vec::new());
        };
        let superseded =
            self.pieces.back().filter(|p| p.segment.first() >= first).map(|p| &p.segment);
        let previous = match superseded {
            Some(segment) => {
                assert_eq!(segment.first(), first, "one write goes to one segment");
                self.garbage.push(segment.path.clone());
                let previous = segment.header.previous;
                self.pieces.pop_back();
                previous
            }
            None => self.pieces.back().map_or(0, |p| p.segment.sequence()),
        };
        self.next_index = first;
        // It is none that was begun because another is full.
        let next_bytes = self.next_bytes;
        self.push_segment(previous);
        self.next_bytes = next_bytes;
        let (bytes, places) = self.copy(scan);
        let piece = self.pieces.back_mut().expect("it was pushed");
        piece.end = bytes.len() as u64;
        piece.mark(first, HEADER_BYTES);
        let room = piece.room.max(piece.end);
        let segment = Arc::clone(&piece.segment);
        let storage = &*self.storage;
        let temporary = format!("{}/{TEMPORARY}", self.dir);
        remove_if_there(storage, &temporary)?;
        // A spare takes no room, and on a full disk there is none. What is left in it of another segment is told
        // by that one's sequence from what belongs to this. The oldest is the smallest: a log that is opened
        // again and again does not grow by that.
        let spare = (!self.spares.is_empty()).then(|| self.spares.remove(0));
        match spare {
            Some(spare) => storage
                .rename(&spare, &temporary)
                .map_err(|e| io_error(storage, &spare, "rename", e))?,
            None => make_zeroed(storage, &temporary, room)?,
        }
        let file = open_with_room(storage, &temporary, bytes.len() as u64)?;
        // What follows must not count on more than the spare has.
        let len = file.len().map_err(|e| io_error(storage, &temporary, "stat", e))?;
        self.pieces.back_mut().expect("it was pushed").room = room.min(len);
        write_all(&*file, &[&bytes], 0).map_err(|e| io_error(storage, &temporary, "write", e))?;
        file.sync().map_err(|e| io_error(storage, &temporary, "sync", e))?;
        storage
            .rename(&temporary, &segment.path)
            .map_err(|e| io_error(storage, &temporary, "rename", e))?;
        storage.sync_dir(&self.dir).map_err(|e| io_error(storage, &self.dir, "sync", e))?;
        assert!(segment.file.set(file).is_ok(), "a segment's file is made once");
        Ok(places)
    }

    /// The bytes of the segment that was pushed last, with the unproven records.
    fn copy(&mut self, scan: &Scan) -> (Vec<u8>, Vec<(u64, Place)>) {
        let segment = &self.pieces.back().expect("it was pushed").segment;
        let sequence = segment.sequence();
        let (mut bytes, crc) = segment.header.encode(&self.owner);
        self.chain = crc;
        let mut places = Vec::new();
        for (at, record) in scan.unproven.iter().enumerate() {
            let start = bytes.len() as u64;
            let mut end = start + frame_len(record.body.len());
            if at + 1 == scan.unproven.len() {
                end = end.next_multiple_of(SECTOR);
            }
            let frame = Frame {
                crc: 0,
                prev: self.chain,
                body_crc: record.crc,
                body_len: record.body.len() as u32,
                total: (end - start) as u32,
                segment: sequence,
                index: record.index,
                marks: record.marks,
            };
            self.chain = frame.encode(&self.owner, &mut bytes);
            bytes.extend_from_slice(&record.body);
            bytes.resize(end as usize, 0);
            let body = start + FRAME_HEADER as u64;
            places.push((record.index, Place { segment: sequence, body }));
            self.next_index = record.index + 1;
        }
        (bytes, places)
    }
}
