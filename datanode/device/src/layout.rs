//! Where things are on a device, and the header that says so.
//!
//! ```text
//! header | map, first copy | chunks ... | map, second copy | header
//! map = snapshot slot 0 | snapshot slot 1 | journal
//! ```

use std::path::Path;

use sbk_wal::{Crc, Get, Put};
use uuid::Uuid;

use crate::error::DeviceError;

/// Bytes of a page: what is mapped or not.
pub const PAGE: u64 = 4096;
/// Bytes of a chunk: what files are given.
pub const CHUNK: u64 = 256 << 10;
/// Pages of a chunk.
pub(crate) const CHUNK_PAGES: u64 = CHUNK / PAGE;
/// Fewer make no sense: one replica takes about 20.
const MIN_CHUNKS: u64 = 16;
/// Bytes of a chunk in a snapshot.
pub(crate) const CHUNK_RECORD: u64 = 16;
/// What names may take in a snapshot: so much for each chunk, within these bounds. A file takes its path and
/// [`NAME_RECORD`].
const NAMES_PER_CHUNK: u64 = 128;
const MIN_NAMES: u64 = 64 << 10;
const MAX_NAMES: u64 = 16 << 20;
/// Most bytes of a name's records in a snapshot, beside the path.
pub(crate) const NAME_RECORD: u64 = 32;
/// A journal is as large as a snapshot, within these bounds.
const MIN_JOURNAL: u64 = 1 << 20;
const MAX_JOURNAL: u64 = 64 << 20;

const MAGIC: [u8; 8] = *b"SBKDEVIC";
const VERSION: u32 = 1;
const HEADER_USED: usize = 88;

/// Where things are. All in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Bytes of the device that are used.
    pub(crate) bytes: u64,
    /// Chunks for files.
    pub(crate) chunks: u32,
    /// Bytes of a snapshot slot.
    pub(crate) slot: u64,
    /// Bytes of the journal.
    pub(crate) journal: u64,
}

/// One of the two copies of the map.
pub(crate) const COPIES: [usize; 2] = [0, 1];

impl Layout {
    /// That of a new device of `bytes`, with a journal of so many bytes if that is said.
    pub(crate) fn new(bytes: u64, journal: Option<u64>, path: &Path) -> Result<Self, DeviceError> {
        let usable = bytes / PAGE * PAGE;
        let most = (usable / CHUNK).min(u64::from(u32::MAX - 1));
        let names = (most * NAMES_PER_CHUNK).clamp(MIN_NAMES, MAX_NAMES);
        let slot = (PAGE + most * CHUNK_RECORD + names).next_multiple_of(PAGE);
        let journal = journal.unwrap_or(slot.clamp(MIN_JOURNAL, MAX_JOURNAL));
        let journal = journal.next_multiple_of(PAGE).max(2 * PAGE);
        let mut layout = Self { bytes: usable, chunks: 0, slot, journal };
        let around = layout.data(0) + layout.map_bytes() + PAGE;
        let chunks = usable.saturating_sub(around) / CHUNK;
        if chunks < MIN_CHUNKS {
            let expected = around + MIN_CHUNKS * CHUNK;
            return Err(DeviceError::TooSmall { path: path.to_owned(), found: bytes, expected });
        }
        layout.chunks = chunks.min(most) as u32;
        Ok(layout)
    }

    /// Whether the parts of one that was read lie within each other as they should.
    fn is_sound(&self) -> bool {
        let aligned = [self.bytes, self.slot, self.journal].iter().all(|n| n.is_multiple_of(PAGE));
        // Far from what overflows.
        let bounded = self.bytes < 1 << 60 && self.slot < 1 << 50 && self.journal < 1 << 50;
        aligned
            && bounded
            && self.journal >= 2 * PAGE
            && self.slot > PAGE + u64::from(self.chunks) * CHUNK_RECORD
            && self.data(self.chunks) + self.map_bytes() + PAGE <= self.bytes
    }

    fn map_bytes(&self) -> u64 {
        2 * self.slot + self.journal
    }

    /// What names may take in a snapshot.
    pub(crate) fn names(&self) -> u64 {
        self.slot - PAGE - u64::from(self.chunks) * CHUNK_RECORD
    }

    /// Where the headers are.
    pub(crate) fn headers(&self) -> [u64; 2] {
        [0, last_header(self.bytes)]
    }

    fn map(&self, copy: usize) -> u64 {
        if copy == 0 { PAGE } else { self.bytes - PAGE - self.map_bytes() }
    }

    /// Where a snapshot of this generation is.
    pub(crate) fn snapshot(&self, copy: usize, generation: u64) -> u64 {
        self.map(copy) + generation % 2 * self.slot
    }

    /// Where the journal is.
    pub(crate) fn journal_at(&self, copy: usize) -> u64 {
        self.map(copy) + 2 * self.slot
    }

    /// Where a chunk is.
    pub(crate) fn data(&self, chunk: u32) -> u64 {
        (PAGE + self.map_bytes()).next_multiple_of(CHUNK) + u64::from(chunk) * CHUNK
    }
}

/// Where the header at the end of a device of `bytes` is.
pub(crate) fn last_header(bytes: u64) -> u64 {
    (bytes / PAGE * PAGE).saturating_sub(PAGE)
}

/// What a device starts and ends with. It never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// What the device was called when it was set up.
    pub(crate) device: Uuid,
    /// Whose it is.
    pub(crate) node: Uuid,
    pub(crate) layout: Layout,
}

/// What lies where a header is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Valid(Header),
    /// Whole, but of this later version.
    Newer(u32),
    /// Ours by its magic, and not whole.
    Damaged,
    /// Something else.
    Other,
}

impl Header {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut tail = Put::default();
        tail.bytes(self.device.as_bytes()).bytes(self.node.as_bytes());
        tail.u64(self.layout.bytes).u32(PAGE as u32).u32(CHUNK as u32);
        tail.u64(self.layout.slot).u64(self.layout.journal).u32(self.layout.chunks).u32(0);
        let version = VERSION.to_le_bytes();
        let crc = Crc::default().with(&MAGIC).with(&version).with(&tail.0).value();
        let mut out = Put::default();
        out.bytes(&MAGIC).bytes(&version).u32(crc).bytes(&tail.0);
        out.0.resize(PAGE as usize, 0);
        out.0
    }

    pub(crate) fn decode(bytes: &[u8]) -> Found {
        Self::parse(bytes).unwrap_or(Found::Damaged)
    }

    fn parse(bytes: &[u8]) -> Option<Found> {
        let mut get = Get(bytes);
        let magic = get.array::<8>()?;
        let (version, crc) = (get.u32()?, get.u32()?);
        let (before, behind) = (bytes.get(8..12)?, bytes.get(16..HEADER_USED)?);
        // Also with a magic that rotted.
        let sum = Crc::default().with(&MAGIC).with(before).with(behind).value();
        if sum != crc {
            return (magic != MAGIC).then_some(Found::Other);
        }
        if version > VERSION {
            return Some(Found::Newer(version));
        }
        let device = Uuid::from_bytes(get.array()?);
        let node = Uuid::from_bytes(get.array()?);
        let size = get.u64()?;
        let units = (get.u32()?, get.u32()?);
        let (slot, journal, chunks) = (get.u64()?, get.u64()?, get.u32()?);
        let layout = Layout { bytes: size, chunks, slot, journal };
        let ours = units == (PAGE as u32, CHUNK as u32) && layout.is_sound();
        ours.then_some(Found::Valid(Self { device, node, layout }))
    }

    /// Whether it is that of a device of `bytes`, going by where its last copy is.
    pub(crate) fn ends_at(&self, bytes: u64) -> bool {
        self.layout.headers()[1] == last_header(bytes)
    }

    /// The version that this program writes, and the highest that it reads.
    pub(crate) const fn version() -> u32 {
        VERSION
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(bytes: u64) -> Layout {
        Layout::new(bytes, None, Path::new("x")).expect("large enough")
    }

    #[test]
    fn parts_lie_behind_each_other() {
        for bytes in [8 << 20, (100 << 20) + 513, 1 << 40, 1 << 50] {
            let layout = layout(bytes);
            let [first, last] = layout.headers();
            assert_eq!((first, layout.snapshot(0, 0)), (0, PAGE));
            assert!(layout.journal_at(0) + layout.journal <= layout.data(0));
            assert!(layout.data(layout.chunks) <= layout.snapshot(1, 0));
            assert_eq!(layout.snapshot(1, 1), layout.snapshot(1, 0) + layout.slot);
            assert_eq!(layout.journal_at(1) + layout.journal, last);
            assert!(last + PAGE <= bytes && layout.is_sound());
            // What is not for files is little, and nothing of them is lost beside it.
            let chunks = u64::from(layout.chunks) * CHUNK;
            assert!(bytes - chunks < (6 << 20) + bytes / 1000, "{layout:?}");
        }
        assert!(Layout::new(4 << 20, None, Path::new("x")).is_err());
    }

    #[test]
    fn a_header_is_read_as_it_was_written_and_a_bit_that_flips_is_seen() {
        let header = Header {
            device: Uuid::from_u128(1),
            node: Uuid::from_u128(2),
            layout: layout(1 << 30),
        };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Found::Valid(header));
        for bit in 0..HEADER_USED * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let expected = if bit < 64 { Found::Valid(header) } else { Found::Damaged };
            assert_eq!(Header::decode(&bytes), expected, "bit {bit}");
        }
    }
}
