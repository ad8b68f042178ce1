//! Log entries on the wire.

use bytes::Bytes;
use sbk_engine::replication::log::{EntryHeader, EntryKind, Origin, RequestTag};
use sbk_engine::types::{Epoch, Lba, Lsn, MAX_REQUEST_BYTES};
use sbk_proto::v1;

use super::numbers::{attach_generation, epoch, lsn, sequence, size};
use super::{Decoded, bad, id, own, session_id};

/// One log entry on the wire: header, payload, and the CRC-32C over both that the primary computed
/// when it logged the entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireEntry {
    /// What it is.
    pub header: EntryHeader,
    /// Over the canonical header and the payload, the same on every replica.
    pub crc: u32,
    /// `header.kind.payload_len()` bytes.
    pub payload: Bytes,
}

const KIND_WRITE: u32 = 1;
const KIND_TRIM: u32 = 2;
const KIND_ZERO: u32 = 3;
const KIND_ATTACH: u32 = 4;
const KIND_CLOSE: u32 = 5;
const KIND_RESIZE: u32 = 6;

/// An entry. The payload is shared, not copied.
pub fn entry_out(entry: &WireEntry) -> v1::Entry {
    let header = &entry.header;
    let (kind, lba, blocks, value) = match header.kind {
        EntryKind::Write { lba, blocks } => (KIND_WRITE, lba.0, blocks, 0),
        EntryKind::Trim { lba, blocks } => (KIND_TRIM, lba.0, blocks, 0),
        EntryKind::Zero { lba, blocks } => (KIND_ZERO, lba.0, blocks, 0),
        EntryKind::Attach { generation, exclusive } => {
            (KIND_ATTACH, 0, u32::from(exclusive), generation.0)
        }
        EntryKind::Close { .. } => (KIND_CLOSE, 0, 0, 0),
        EntryKind::Resize { blocks } => (KIND_RESIZE, 0, 0, blocks),
    };
    let origin = header.origin.map(|origin| id(origin.tag.session.0)).unwrap_or_default();
    let session = match header.kind {
        EntryKind::Close { session } => id(session.0),
        EntryKind::Write { .. }
        | EntryKind::Trim { .. }
        | EntryKind::Zero { .. }
        | EntryKind::Attach { .. }
        | EntryKind::Resize { .. } => origin.clone(),
    };
    v1::Entry {
        epoch: header.epoch.0,
        lsn: header.lsn.0,
        kind,
        lba,
        blocks,
        value,
        session,
        sequence: header.origin.map_or(0, |origin| origin.tag.sequence),
        low: header.origin.map_or(0, |origin| origin.low),
        crc: entry.crc,
        payload: entry.payload.clone(),
        origin_session: origin,
    }
}

/// An entry, whose CRC the caller still has to check.
pub fn entry_in(entry: v1::Entry) -> Decoded<WireEntry> {
    let (lba, blocks) = (Lba(entry.lba), entry.blocks);
    let kind = match entry.kind {
        KIND_WRITE => EntryKind::Write { lba, blocks },
        KIND_TRIM => EntryKind::Trim { lba, blocks },
        KIND_ZERO => EntryKind::Zero { lba, blocks },
        KIND_ATTACH if blocks <= 1 => EntryKind::Attach {
            generation: attach_generation(entry.value)?,
            exclusive: blocks == 1,
        },
        KIND_CLOSE => EntryKind::Close { session: session_id(&entry.session)? },
        KIND_RESIZE => EntryKind::Resize { blocks: size(entry.value)? },
        other => return bad(format!("entry kind {other}")),
    };
    if kind.range().is_some_and(|r| r.blocks == 0 || r.lba.0.checked_add(blocks.into()).is_none()) {
        return bad(format!("an entry of {blocks} blocks at {lba}"));
    }
    let length = entry.payload.len() as u64;
    if length != kind.payload_len() || length > MAX_REQUEST_BYTES {
        return bad(format!("an entry of {blocks} blocks with {length} bytes"));
    }
    let origin = if entry.origin_session.is_empty() {
        None
    } else {
        let session = session_id(&entry.origin_session)?;
        let tag = RequestTag { session, sequence: sequence(entry.sequence)? };
        Some(Origin { tag, low: sequence(entry.low)? })
    };
    let header = EntryHeader { epoch: epoch(entry.epoch)?, lsn: lsn(entry.lsn)?, kind, origin };
    if header.lsn == Lsn(0) || header.epoch == Epoch(0) {
        return bad("an entry without LSN or epoch");
    }
    Ok(WireEntry { header, crc: entry.crc, payload: own(&entry.payload) })
}
