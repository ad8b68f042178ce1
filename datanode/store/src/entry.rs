//! The one checksum of a log entry.

use crc_fast::{CrcAlgorithm, Digest};
use sbk_engine::replication::log::{EntryHeader, EntryKind};

/// Bytes of a canonical header.
pub const CANONICAL_HEADER: usize = 80;

/// The canonical form of a header: what the entry's CRC covers, little-endian, the same on every
/// replica and in every version that reads this log format.
///
/// | bytes | field |
/// | --- | --- |
/// | 0..8 | epoch |
/// | 8..16 | LSN |
/// | 16..20 | kind: write 1, trim 2, zero 3, attach 4, close 5, resize 6 |
/// | 20..24 | blocks of a write, trim or zero; 1 for an exclusive attach |
/// | 24..32 | first block; generation of an attach; blocks of a resize |
/// | 32..48 | origin's session, zeros if there is none |
/// | 48..56 | origin's sequence, 0 if there is none |
/// | 56..64 | origin's low-water mark |
/// | 64..80 | the session that a close is about, else zeros |
pub fn canonical(header: &EntryHeader) -> [u8; CANONICAL_HEADER] {
    let (kind, blocks, value, subject) = match header.kind {
        EntryKind::Write { lba, blocks } => (1u32, blocks, lba.0, None),
        EntryKind::Trim { lba, blocks } => (2, blocks, lba.0, None),
        EntryKind::Zero { lba, blocks } => (3, blocks, lba.0, None),
        EntryKind::Attach { generation, exclusive } => {
            (4, u32::from(exclusive), generation.0, None)
        }
        EntryKind::Close { session } => (5, 0, 0, Some(session)),
        EntryKind::Resize { blocks } => (6, 0, blocks, None),
    };
    let mut out = [0; CANONICAL_HEADER];
    out[0..8].copy_from_slice(&header.epoch.0.to_le_bytes());
    out[8..16].copy_from_slice(&header.lsn.0.to_le_bytes());
    out[16..20].copy_from_slice(&kind.to_le_bytes());
    out[20..24].copy_from_slice(&blocks.to_le_bytes());
    out[24..32].copy_from_slice(&value.to_le_bytes());
    if let Some(origin) = header.origin {
        out[32..48].copy_from_slice(origin.tag.session.0.as_bytes());
        out[48..56].copy_from_slice(&origin.tag.sequence.to_le_bytes());
        out[56..64].copy_from_slice(&origin.low.to_le_bytes());
    }
    if let Some(subject) = subject {
        out[64..80].copy_from_slice(subject.0.as_bytes());
    }
    out
}

/// CRC-32C over the canonical header and the payload.
pub fn entry_crc(header: &EntryHeader, payload: &[u8]) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(&canonical(header));
    digest.update(payload);
    digest.finalize() as u32
}
