//! Records of the map's changes on the device, each in two copies.
//!
//! ```text
//! record = magic 8 | crc u32 | chain u32 | generation u64 | sequence u64 | length u64 | changes, padded to a page
//! ```
//! A snapshot is a record of sequence 0 whose changes make the whole map out of nothing; snapshots of even
//! generations are in slot 0, odd ones in slot 1. Behind it come the records of the journal, counted from 1. The first
//! of a generation has no changes: it says that the snapshot was durable. `chain` is the CRC of the record
//! before. The CRC covers the device's UUID, so that what is left of an earlier life of a device counts for nothing.
//!
//! Generation 0 has no snapshot: it begins with nothing.

use std::io;
use std::sync::Arc;

use sbk_wal::{Crc, Get, Put, RawFile, is_zero, read_exact, write_all};
use uuid::Uuid;

use crate::change::Change;
use crate::layout::{COPIES, Layout, PAGE};

pub(crate) const SNAPSHOT: [u8; 8] = *b"SBKDVMAP";
pub(crate) const RECORD: [u8; 8] = *b"SBKDVJNL";
pub(crate) const RECORD_HEADER: usize = 40;

/// A record's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) crc: u32,
    pub(crate) chain: u32,
    pub(crate) generation: u64,
    pub(crate) sequence: u64,
    pub(crate) length: u64,
}

/// Encodes changes as the body of a record.
pub(crate) fn encode(changes: &[Change]) -> Vec<u8> {
    let mut out = Put::default();
    changes.iter().for_each(|change| change.put(&mut out));
    out.0
}

/// The changes of a record's body; `None` if they make no sense.
pub(crate) fn decode(body: &[u8]) -> Option<Vec<Change>> {
    let mut get = Get(body);
    let mut out = Vec::new();
    while !get.0.is_empty() {
        out.push(Change::get(&mut get)?);
    }
    Some(out)
}

/// Bytes of a record whose body has so many.
pub(crate) fn record_bytes(body: u64) -> u64 {
    (RECORD_HEADER as u64 + body).next_multiple_of(PAGE)
}

fn checksum(device: &Uuid, magic: &[u8; 8], tail: &[u8], body: &[u8]) -> u32 {
    Crc::default().with(device.as_bytes()).with(magic).with(tail).with(body).value()
}

/// Encodes a record. `head.crc` and `head.length` are filled in; returns the CRC as well.
pub(crate) fn seal(device: &Uuid, magic: &[u8; 8], head: &Head, body: &[u8]) -> (Vec<u8>, u32) {
    let mut tail = Put::default();
    tail.u32(head.chain).u64(head.generation).u64(head.sequence).u64(body.len() as u64);
    let crc = checksum(device, magic, &tail.0, body);
    let mut out = Put(Vec::with_capacity(record_bytes(body.len() as u64) as usize));
    out.bytes(magic).u32(crc).bytes(&tail.0).bytes(body);
    out.0.resize(record_bytes(body.len() as u64) as usize, 0);
    (out.0, crc)
}

/// What is where a record may be.
#[derive(Debug)]
pub(crate) enum Slot {
    /// A record.
    Whole(Head, Vec<u8>),
    /// Zeros.
    Unused,
    /// Anything else.
    Torn,
}

/// Reads what begins at `at` and ends before `end`.
pub(crate) fn read(
    bottom: &dyn RawFile,
    device: &Uuid,
    magic: &[u8; 8],
    at: u64,
    end: u64,
) -> io::Result<Slot> {
    let mut bytes = vec![0; PAGE as usize];
    read_exact(bottom, &mut bytes, at, true)?;
    if is_zero(&bytes) {
        return Ok(Slot::Unused);
    }
    let Some(head) = head(&bytes, magic) else { return Ok(Slot::Torn) };
    let fits = head.length < end && at + record_bytes(head.length) <= end;
    if !fits {
        return Ok(Slot::Torn);
    }
    bytes.resize(record_bytes(head.length) as usize, 0);
    read_exact(bottom, &mut bytes[PAGE as usize..], at + PAGE, true)?;
    let body = &bytes[RECORD_HEADER..RECORD_HEADER + head.length as usize];
    let whole = checksum(device, magic, &bytes[12..RECORD_HEADER], body) == head.crc;
    Ok(if whole { Slot::Whole(head, body.to_vec()) } else { Slot::Torn })
}

fn head(bytes: &[u8], magic: &[u8; 8]) -> Option<Head> {
    let mut get = Get(bytes);
    if get.array::<8>()? != *magic {
        return None;
    }
    Some(Head {
        crc: get.u32()?,
        chain: get.u32()?,
        generation: get.u64()?,
        sequence: get.u64()?,
        length: get.u64()?,
    })
}

/// The end of the journal, where the next record goes. One owner; after a failure it must not be used again.
#[derive(Debug)]
pub(crate) struct Journal {
    pub(crate) bottom: Arc<dyn RawFile>,
    pub(crate) device: Uuid,
    pub(crate) layout: Layout,
    /// That of the snapshot that the journal continues.
    pub(crate) generation: u64,
    /// The next record's sequence, its chain, and where in the journal it goes.
    pub(crate) sequence: u64,
    pub(crate) chain: u32,
    pub(crate) at: u64,
}

impl Journal {
    /// Whether a record with a body of so many bytes has room.
    pub(crate) fn fits(&self, body: usize) -> bool {
        self.at + record_bytes(body as u64) <= self.layout.journal
    }

    /// Writes a record, in both copies. It counts once that is synced.
    pub(crate) fn append(&mut self, body: &[u8]) -> io::Result<()> {
        let head = Head {
            crc: 0,
            chain: self.chain,
            generation: self.generation,
            sequence: self.sequence,
            length: 0,
        };
        let (bytes, crc) = seal(&self.device, &RECORD, &head, body);
        for copy in COPIES {
            write_all(&*self.bottom, &[&bytes], self.layout.journal_at(copy) + self.at)?;
        }
        self.sequence += 1;
        self.chain = crc;
        self.at += bytes.len() as u64;
        Ok(())
    }

    /// Writes a snapshot of the next generation, in both copies. Once that is synced the journal begins anew, with a
    /// record that says so.
    pub(crate) fn write_snapshot(&mut self, body: &[u8]) -> io::Result<()> {
        let generation = self.generation + 1;
        let head = Head { crc: 0, chain: 0, generation, sequence: 0, length: 0 };
        let (bytes, crc) = seal(&self.device, &SNAPSHOT, &head, body);
        if bytes.len() as u64 > self.layout.slot {
            return Err(io::Error::other("a snapshot of the map is larger than its slot"));
        }
        for copy in COPIES {
            write_all(&*self.bottom, &[&bytes], self.layout.snapshot(copy, generation))?;
        }
        self.generation = generation;
        self.sequence = 1;
        self.chain = crc;
        self.at = 0;
        Ok(())
    }
}
