//! Reading a stretch of a log from its segments.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use crate::crc::crc32c;
use crate::error::LogError;
use crate::frame::{FRAME_HEADER, Frame, MAX_BODY, Marks};
use crate::log::Log;
use crate::segment::{HEADER_BYTES, Segment};

/// A record as it was read; its checksum was right.
#[derive(Clone, Debug)]
pub struct ReadRecord {
    /// Its index.
    pub index: u64,
    /// What was appended as `meta` and `payload`.
    pub body: Bytes,
    /// The body's checksum.
    pub crc: u32,
    /// What its frame told.
    pub marks: Marks,
    /// The offset of the body in its segment.
    pub offset: u64,
}

/// Reads a stretch of a log, piece by piece, wherever it may block. It keeps the segments that it
/// needs alive.
#[derive(Debug)]
pub struct LogReader {
    /// The segments left, each with the index at which it ends (the next one's first).
    segments: VecDeque<(Arc<Segment>, u64)>,
    index: u64,
    last: u64,
    /// The frame with `at_index` starts here in the first segment.
    offset: u64,
    at_index: u64,
}

impl Log {
    /// A reader of the records `first..=last`, which are durable.
    pub fn reader(&self, first: u64, last: u64) -> Result<LogReader, LogError> {
        let retained = self.first_index();
        if first < retained {
            return Err(LogError::Recycled { index: first, retained });
        }
        assert!(last < self.next_index, "record {last} is not in the log");
        let from = self.pieces.partition_point(|p| p.segment.first() <= first).saturating_sub(1);
        let ends = self.pieces.iter().skip(from + 1).map(|p| p.segment.first());
        let segments: VecDeque<_> = self
            .pieces
            .iter()
            .skip(from)
            .map(|p| Arc::clone(&p.segment))
            .zip(ends.chain([self.next_index]))
            .take_while(|(segment, _)| segment.first() <= last)
            .collect();
        let mark = self.pieces.get(from).and_then(|piece| {
            let after = piece.marks.partition_point(|(index, _)| *index <= first);
            piece.marks.get(after.checked_sub(1)?).copied()
        });
        let (at_index, offset) = match (mark, segments.front()) {
            (Some(mark), _) => mark,
            (None, Some((segment, _))) => (segment.first(), HEADER_BYTES),
            (None, None) => (first, HEADER_BYTES),
        };
        Ok(LogReader { segments, index: first, last, offset, at_index })
    }
}

impl LogReader {
    /// The first record that was not returned yet.
    pub fn next_index(&self) -> u64 {
        self.index
    }

    /// The next records, up to about `max_bytes` of bodies and `max_records` of them, at least
    /// one; empty at the end.
    pub fn next(
        &mut self,
        max_bytes: usize,
        max_records: usize,
    ) -> Result<Vec<ReadRecord>, LogError> {
        let mut out = Vec::new();
        let mut bytes = 0;
        while self.index <= self.last && out.len() < max_records.max(1) {
            let Some((segment, end)) = self.segments.front().cloned() else { break };
            if self.index >= end {
                self.segments.pop_front();
                self.at_index = end;
                self.offset = HEADER_BYTES;
                continue;
            }
            let frame = next_frame(&segment, self.offset, self.at_index, None)?;
            if self.at_index == self.index {
                let len = frame.body_len as usize;
                if !out.is_empty() && bytes + len > max_bytes {
                    break;
                }
                bytes += len;
                out.push(read_body(&segment, self.offset, &frame)?);
                self.index += 1;
            }
            self.at_index += 1;
            self.offset += u64::from(frame.total);
        }
        Ok(out)
    }
}

/// The header of the frame at `offset`, which must be that of record `index` and, if `chain` is
/// given, follow a frame with that checksum.
pub(crate) fn next_frame(
    segment: &Segment,
    offset: u64,
    index: u64,
    chain: Option<u32>,
) -> Result<Frame, LogError> {
    let mut bytes = [0; FRAME_HEADER];
    segment.read(&mut bytes, offset)?;
    check_frame(segment, &bytes, index, chain).map_err(|what| segment.damaged(offset, what))
}

/// Why the header in `bytes` is not the expected one, or it.
pub(crate) fn check_frame(
    segment: &Segment,
    bytes: &[u8],
    index: u64,
    chain: Option<u32>,
) -> Result<Frame, String> {
    let frame = Frame::decode(&segment.owner, bytes)
        .ok_or_else(|| format!("no valid frame where record {index} is expected"))?;
    if frame.segment != segment.sequence() || frame.index != index {
        return Err(format!(
            "found record {} of segment {}, expected record {index} of segment {}",
            frame.index,
            frame.segment,
            segment.sequence()
        ));
    }
    if chain.is_some_and(|chain| frame.prev != chain) {
        return Err(format!("record {index} does not follow the one before it"));
    }
    let (body, total) = (frame.body_len as usize, frame.total as usize);
    if body > MAX_BODY || total < FRAME_HEADER + body {
        return Err(format!("record {index} claims {body} bytes in a frame of {total}"));
    }
    Ok(frame)
}

/// The body of the frame at `offset`, its checksum checked.
pub(crate) fn read_body(
    segment: &Segment,
    offset: u64,
    frame: &Frame,
) -> Result<ReadRecord, LogError> {
    let mut body = vec![0; frame.body_len as usize];
    let offset = offset + FRAME_HEADER as u64;
    segment.read(&mut body, offset)?;
    let found = crc32c(&body);
    if found != frame.body_crc {
        let expected = frame.body_crc;
        return Err(segment.damaged(
            offset,
            format!("record {} has CRC {found:08x}, expected {expected:08x}", frame.index),
        ));
    }
    Ok(ReadRecord {
        index: frame.index,
        body: Bytes::from(body),
        crc: found,
        marks: frame.marks,
        offset,
    })
}
