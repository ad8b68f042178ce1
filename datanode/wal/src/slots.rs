//! One small record in two slots, replaced atomically.
//!
//! ```text
//! slot = magic 8 | version u32 | crc32c u32 | generation u64 | length u32 | 0 u32 | record
//! ```
//! The checksum covers everything in the slot but itself. The newer valid slot wins.
//!
//! A record is written to one slot and synced; from then on it counts. Then it is written to the
//! other slot as well, without waiting: that copy becomes durable with the next sync. So when one
//! slot rots, the other holds the same record, not the one before it. A plain pair of alternating
//! slots could not tell a rotten newest slot from a torn write and would silently go back by one
//! record, which may be a vote or a promise.
//!
//! A slot that the disk can't read counts as one that rotted; that it is written anew has the disk put
//! it somewhere else.
//!
//! Scenarios, with slots A and B at generation g:
//! 1. power lost while A is written with g+1: A is torn, B wins with g, and g+1 was not promised;
//! 2. power lost after A's sync, while B gets its copy: A wins with g+1;
//! 3. the next record goes to B first, for only A is known to be durable;
//! 4. A rots, and then power is lost before the copy in B was synced: B is the record before, and wins. So
//!    a record that must never be taken back is synced in both slots ([`Slots::sync`]) before it is acted
//!    on;
//! 5. the sync of A with g+1 fails, and the file is opened again: the page cache shows g+1 as if it were on
//!    the disk, which may hold anything there. Writing to B next would put the only durable record at
//!    risk. So A is written once more, with the same bytes, and synced before B is touched.

use std::io;
use std::sync::Arc;

use crate::bytes_io::{Get, Put};
use crate::crc::Crc;
use crate::error::SlotError;
use crate::storage::{RawFile, Storage, is_unreadable, read_exact, write_all};

const SLOT_HEADER: usize = 32;
/// Where in it the record's length is.
const LENGTH: usize = 24;
/// What is written is padded to whole pages: to write a part of one that can't be read the system would
/// have to read it first.
const PAGE: usize = 4096;

/// See the module's documentation. One owner.
#[derive(Debug)]
pub struct Slots {
    storage: Arc<dyn Storage>,
    path: String,
    file: Arc<dyn RawFile>,
    kind: Kind,
    generation: u64,
    /// The slot that is written next: never the only one that is known to be durable.
    next: usize,
    failed: bool,
}

/// What kind of file it is.
#[derive(Clone, Copy, Debug)]
struct Kind {
    magic: [u8; 8],
    version: u32,
    slot_bytes: usize,
}

impl Slots {
    /// Makes the file with `record` in it, all durable but the file's name: the caller syncs the
    /// directory. A file of that name that was never finished is replaced.
    ///
    /// `slot_bytes` is the size of each of the two slots and can't change later.
    pub fn create(
        storage: Arc<dyn Storage>,
        path: &str,
        magic: [u8; 8],
        version: u32,
        slot_bytes: usize,
        record: &[u8],
    ) -> Result<Self, SlotError> {
        let kind = Kind { magic, version, slot_bytes };
        let file = storage.create(path).map_err(|e| io_error(&*storage, path, "create", e))?;
        file.reserve(2 * slot_bytes as u64)
            .map_err(|e| io_error(&*storage, path, "reserve space for", e))?;
        let path = path.to_owned();
        let mut slots = Self { storage, path, file, kind, generation: 0, next: 0, failed: false };
        slots.write(record)?;
        slots.sync()?;
        Ok(slots)
    }

    /// Opens the file and returns its record. A record of another `magic` or a newer `version` is
    /// refused.
    ///
    /// What was found is written to both slots and synced: a slot whose write was torn is whole again, and
    /// what the page cache shows but the disk may not hold is neither lost nor trusted. With two valid slots it
    /// is written first where it was found (5 in the module's documentation); if the other is not valid, this
    /// one is the only one that counts, and the other is written first.
    pub fn open(
        storage: Arc<dyn Storage>,
        path: &str,
        magic: [u8; 8],
        version: u32,
        slot_bytes: usize,
    ) -> Result<(Self, Vec<u8>), SlotError> {
        let kind = Kind { magic, version, slot_bytes };
        let file = storage.open(path).map_err(|e| io_error(&*storage, path, "open", e))?;
        let mut best: Option<(u64, usize, Vec<u8>)> = None;
        let mut first = [0; 8];
        let mut unread = None;
        let mut valid = 0;
        for slot in 0..2 {
            let bytes = match read_slot(&*file, slot, slot_bytes) {
                Err(e) if is_unreadable(&e) => {
                    unread = Some(e);
                    continue;
                }
                other => other.map_err(|e| io_error(&*storage, path, "read", e))?,
            };
            if slot == 0 {
                first.copy_from_slice(&bytes[..8]);
            }
            let Some((found, generation, record)) = decode(&bytes, magic) else { continue };
            if found > version {
                let path = storage.describe(path);
                return Err(SlotError::Newer { path, found, expected: version });
            }
            valid += 1;
            if best.as_ref().is_none_or(|(newest, _, _)| generation > *newest) {
                best = Some((generation, slot, record));
            }
        }
        let Some((generation, slot, record)) = best else {
            if let Some(e) = unread {
                return Err(io_error(&*storage, path, "read", e));
            }
            let path = storage.describe(path);
            let other_kind = first != magic && first != [0; 8];
            return Err(if other_kind {
                let expected = String::from_utf8_lossy(&magic).into_owned();
                SlotError::OtherKind { path, found: first, expected }
            } else {
                SlotError::Damaged { path }
            });
        };
        let path = path.to_owned();
        let mut slots =
            Self { storage, path, file, kind, generation, next: 1 - slot, failed: false };
        if bug!(TrustSlot) {
            return Ok((slots, record));
        }
        let header = encode_header(&slots.kind, generation, &record);
        let in_place_first = valid == 2;
        for slot in if in_place_first { [slot, 1 - slot] } else { [1 - slot, slot] } {
            slots.put(slot, &header, &record)?;
            slots.sync()?;
        }
        Ok((slots, record))
    }

    /// Replaces the record, durably. After a failure the file must be opened again.
    pub fn write(&mut self, record: &[u8]) -> Result<(), SlotError> {
        if self.failed {
            return Err(self.error("write", io::Error::other("an earlier write failed")));
        }
        let limit = self.kind.slot_bytes - SLOT_HEADER;
        if record.len() > limit {
            let path = self.storage.describe(&self.path);
            return Err(SlotError::TooLarge { path, size: record.len(), limit });
        }
        self.generation += 1;
        self.failed = true;
        let header = encode_header(&self.kind, self.generation, record);
        let slot = self.next;
        self.put(slot, &header, record)?;
        self.sync()?;
        self.put(1 - slot, &header, record)?;
        // Only `slot` is known to be durable now.
        self.next = 1 - slot;
        self.failed = false;
        Ok(())
    }

    /// Makes both copies durable.
    pub fn sync(&mut self) -> Result<(), SlotError> {
        let synced = self.file.sync();
        synced.map_err(|e| {
            self.failed = true;
            self.error("sync", e)
        })
    }

    fn put(&self, slot: usize, header: &[u8], record: &[u8]) -> Result<(), SlotError> {
        let offset = (slot * self.kind.slot_bytes) as u64;
        let len = header.len() + record.len();
        let padding = vec![0; len.next_multiple_of(PAGE).min(self.kind.slot_bytes) - len];
        write_all(&*self.file, &[header, record, &padding], offset)
            .map_err(|e| self.error("write", e))
    }

    fn error(&self, doing: &'static str, source: io::Error) -> SlotError {
        io_error(&*self.storage, &self.path, doing, source)
    }
}

fn io_error(
    storage: &dyn Storage,
    path: &str,
    doing: &'static str,
    source: io::Error,
) -> SlotError {
    SlotError::Io { doing, path: storage.describe(path), source }
}

fn encode_header(kind: &Kind, generation: u64, record: &[u8]) -> Vec<u8> {
    let mut tail = Put::default();
    // The record's length fits: it is below the slot's size.
    tail.u64(generation).u32(record.len() as u32).u32(0);
    let version = kind.version.to_le_bytes();
    let crc = Crc::default().with(&kind.magic).with(&version).with(&tail.0).with(record).value();
    let mut header = Put::default();
    header.bytes(&kind.magic).bytes(&version).u32(crc).bytes(&tail.0);
    header.0
}

/// A slot's bytes, as far as its header says that they mean something.
fn read_slot(file: &dyn RawFile, slot: usize, slot_bytes: usize) -> io::Result<Vec<u8>> {
    let at = (slot * slot_bytes) as u64;
    let mut bytes = vec![0; PAGE.min(slot_bytes)];
    read_exact(file, &mut bytes, at, true)?;
    let length = Get(&bytes[LENGTH..]).u32().unwrap_or(0) as usize;
    let (start, end) = (bytes.len(), SLOT_HEADER + length);
    if start < end && end <= slot_bytes {
        bytes.resize(end, 0);
        read_exact(file, &mut bytes[start..], at + start as u64, true)?;
    }
    Ok(bytes)
}

/// Version, generation and record, if the slot is whole and of the kind `magic`.
fn decode(slot: &[u8], magic: [u8; 8]) -> Option<(u32, u64, Vec<u8>)> {
    let mut get = Get(slot);
    if get.array::<8>()? != magic {
        return None;
    }
    let version = get.u32()?;
    let crc = get.u32()?;
    let generation = get.u64()?;
    let length = get.u32()? as usize;
    get.u32()?;
    let record = get.slice(length)?;
    let found = Crc::default().with(&slot[..12]).with(&slot[16..SLOT_HEADER]).with(record).value();
    (found == crc).then(|| (version, generation, record.to_vec()))
}

#[cfg(test)]
#[path = "slots_tests.rs"]
mod tests;
