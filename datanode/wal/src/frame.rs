//! What surrounds a record in a segment file.
//!
//! ```text
//! frame  = header 56 | body | padding
//! header = magic u32 | crc u32 | prev u32 | body crc u32 | body length u32 | total length u32
//!        | segment u64 | index u64 | durable u64 | committed u64
//! ```
//! Integers are little-endian. `crc` is CRC-32C over the owner's 32 bytes and the header after the
//! field itself; it covers the body through `body crc`, which the caller brings, so a body that
//! has a checksum of its own is summed once. `prev` is the `crc` of the frame before, or of the
//! segment's header: an old frame that happens to lie where a new one is expected does not fit the
//! chain. The owner's bytes are in the sum but not in the frame, so a frame of another log that
//! lies in the payload (a disk image that holds a log) is not taken for one of this log.

use crate::bytes_io::{Get, Put};
use crate::crc::Crc;
use crate::segment::Owner;

/// Bytes of a frame before the body.
pub const FRAME_HEADER: usize = 56;
/// The grain to which batches are padded: a write never touches a sector that holds durable bytes.
pub const SECTOR: u64 = 512;
/// Frames start at multiples of this.
pub(crate) const FRAME_ALIGN: u64 = 8;
/// Most bytes of one body.
pub(crate) const MAX_BODY: usize = 64 << 20;

const MAGIC: u32 = u32::from_le_bytes(*b"SBKf");

/// What every frame tells of the log when it was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Everything up to this index was durable.
    pub durable: u64,
    /// Everything up to this index was committed.
    pub committed: u64,
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) crc: u32,
    pub(crate) prev: u32,
    pub(crate) body_crc: u32,
    pub(crate) body_len: u32,
    pub(crate) total: u32,
    pub(crate) segment: u64,
    pub(crate) index: u64,
    pub(crate) marks: Marks,
}

impl Frame {
    /// Appends the header to `out` and returns its checksum, which the next frame names.
    pub(crate) fn encode(&self, owner: &Owner, out: &mut Vec<u8>) -> u32 {
        let mut tail = Put(Vec::with_capacity(FRAME_HEADER));
        tail.u32(self.prev)
            .u32(self.body_crc)
            .u32(self.body_len)
            .u32(self.total)
            .u64(self.segment)
            .u64(self.index)
            .u64(self.marks.durable)
            .u64(self.marks.committed);
        let crc = Crc::default().with(&owner.0).with(&tail.0).value();
        let mut put = Put(std::mem::take(out));
        put.u32(MAGIC).u32(crc).bytes(&tail.0);
        *out = put.0;
        crc
    }

    /// The header at the start of `bytes`, if its checksum is right. The chain is the caller's to
    /// check.
    pub(crate) fn decode(owner: &Owner, bytes: &[u8]) -> Option<Self> {
        // Most of what is looked at is none.
        if !bytes.starts_with(&MAGIC.to_le_bytes()) {
            return None;
        }
        let (_, frame) = Self::unchecked(bytes)?;
        let sum = Crc::default().with(&owner.0).with(&bytes[8..FRAME_HEADER]).value();
        (sum == frame.crc).then_some(frame)
    }

    /// The fields of the header at the start of `bytes`, right or wrong, and whether it begins as one.
    pub(crate) fn unchecked(bytes: &[u8]) -> Option<(bool, Self)> {
        let mut get = Get(bytes.get(..FRAME_HEADER)?);
        let magic = get.u32()? == MAGIC;
        let frame = Self {
            crc: get.u32()?,
            prev: get.u32()?,
            body_crc: get.u32()?,
            body_len: get.u32()?,
            total: get.u32()?,
            segment: get.u64()?,
            index: get.u64()?,
            marks: Marks { durable: get.u64()?, committed: get.u64()? },
        };
        Some((magic, frame))
    }
}

/// The bytes that a frame takes without the padding at a batch's end.
pub(crate) fn frame_len(body: usize) -> u64 {
    (FRAME_HEADER as u64 + body as u64).next_multiple_of(FRAME_ALIGN)
}
