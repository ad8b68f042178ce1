//! What proves that blocks and records are as this replica wrote them.
//!
//! On a plain disk that is a checksum, which finds what rots. Encrypted, it is a tag that nobody can make who does
//! not have the replica's key: over a block and its number, over a record and what it is. Each of them is bound to
//! the replica by the key. What is written later in the same place has another tag, so who puts back what was there
//! before has to put back the tag as well; the [`Proofs`](super::proofs::Proofs) find that.

use std::sync::Arc;

use sbk_engine::replication::log::{EntryHeader, EntryKind};
use sbk_engine::types::BLOCK_SIZE;
use sbk_wal::{Authenticator, Storage, Tag, crc32c, is_zero};

use super::homes::stamp;
use crate::entry::CANONICAL_HEADER;

/// Bytes of a tag.
pub(super) const TAG: usize = size_of::<Tag>();

/// What begins everything that is tagged: nothing of one kind is taken for something of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Label {
    Block,
    Region,
    Sector,
    Entry,
    Superblock,
    State,
}

impl Label {
    fn bytes(self) -> &'static [u8; 8] {
        match self {
            Label::Block => b"block   ",
            Label::Region => b"region  ",
            Label::Sector => b"sector  ",
            Label::Entry => b"entry   ",
            Label::Superblock => b"superblk",
            Label::State => b"logstate",
        }
    }
}

/// Stamps blocks, and tags records if there is a key.
#[derive(Clone, Debug)]
pub(super) struct Stamper(Option<Arc<dyn Authenticator>>);

impl Stamper {
    /// The one of what is kept in `storage`.
    pub(super) fn of(storage: &dyn Storage) -> Self {
        Self(storage.authenticator())
    }

    /// One without a key.
    #[cfg(test)]
    pub(super) fn plain() -> Self {
        Self(None)
    }

    /// One with this key.
    #[cfg(test)]
    pub(super) fn with(key: Arc<dyn Authenticator>) -> Self {
        Self(Some(key))
    }

    /// Whether it has a key.
    pub(super) fn has_key(&self) -> bool {
        self.0.is_some()
    }

    /// Where in the record of an entry its payload begins.
    pub(super) fn payload_at(&self) -> usize {
        CANONICAL_HEADER + self.tag_len()
    }

    /// Bytes of a tag, if there is one.
    pub(super) fn tag_len(&self) -> usize {
        if self.has_key() { TAG } else { 0 }
    }

    /// Bytes of a stamp on the disk.
    pub(super) fn width(&self) -> u64 {
        if self.has_key() { 8 } else { 4 }
    }

    /// What the stamp of a block with these bytes is, if it is not zeros.
    pub(super) fn of_data(&self, block: u64, data: &[u8]) -> u64 {
        stamp(match &self.0 {
            None => u64::from(crc32c(data)),
            Some(key) => first_half(&key.tag(&[Label::Block.bytes(), &block.to_le_bytes(), data])),
        })
    }

    /// The stamp of a block: 0 if it is zeros.
    pub(super) fn of_block(&self, block: u64, data: &[u8]) -> u64 {
        if is_zero(data) { 0 } else { self.of_data(block, data) }
    }

    /// The stamps of whole blocks from `first` on.
    pub(super) fn of_blocks(&self, first: u64, data: &[u8]) -> Box<[u64]> {
        let blocks = (first..).zip(data.chunks_exact(BLOCK_SIZE as usize));
        blocks.map(|(block, data)| self.of_block(block, data)).collect()
    }

    /// The stamps of what an entry brings.
    pub(super) fn of_payload(&self, header: &EntryHeader, payload: &[u8]) -> Box<[u64]> {
        match header.kind {
            EntryKind::Write { lba, .. } => self.of_blocks(lba.0, payload),
            _ => Box::default(),
        }
    }

    /// What all stamps of a region come to: 0 without a block, or without a key.
    pub(super) fn of_region(&self, region: u64, stamps: &[u64]) -> u64 {
        let Some(key) = &self.0 else { return 0 };
        if stamps.iter().all(|stamp| *stamp == 0) {
            return 0;
        }
        let content = bytes_of(stamps);
        first_half(&key.tag(&[Label::Region.bytes(), &region.to_le_bytes(), &content])).max(1)
    }

    /// The tag of a record.
    pub(super) fn tag(&self, label: Label, record: &[u8]) -> Option<Tag> {
        self.0.as_ref().map(|key| key.tag(&[label.bytes(), record]))
    }

    /// The tag of a sector of the table of regions.
    pub(super) fn of_sector(&self, number: u64, sector: &[u8]) -> Option<Tag> {
        let number = number.to_le_bytes();
        self.0.as_ref().map(|key| key.tag(&[Label::Sector.bytes(), &number, sector]))
    }

    /// The tag of an entry's record in the log: of its header, and of its payload by the stamps of that; or of all of a
    /// reference.
    pub(super) fn of_entry(&self, start: &[u8], stamps: &[u64]) -> Option<Tag> {
        self.0.as_ref().map(|key| {
            let len = (start.len() as u64).to_le_bytes();
            key.tag(&[Label::Entry.bytes(), &len, start, &bytes_of(stamps)])
        })
    }

    /// A record with its tag behind it.
    pub(super) fn sign(&self, label: Label, mut record: Vec<u8>) -> Vec<u8> {
        if let Some(tag) = self.tag(label, &record) {
            record.extend_from_slice(&tag);
        }
        record
    }

    /// A signed record without its tag; `None` if that is not right.
    pub(super) fn verified<'a>(&self, label: Label, signed: &'a [u8]) -> Option<&'a [u8]> {
        if !self.has_key() {
            return Some(signed);
        }
        let (record, tag) = signed.split_last_chunk::<TAG>()?;
        (self.tag(label, record).as_ref() == Some(tag)).then_some(record)
    }
}

fn bytes_of(stamps: &[u64]) -> Vec<u8> {
    stamps.iter().flat_map(|stamp| stamp.to_le_bytes()).collect()
}

fn first_half(tag: &Tag) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|at| tag[at]))
}
