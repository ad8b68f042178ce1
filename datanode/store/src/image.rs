//! The committed image: extents, their checksums, and the region table.
//!
//! Each of the three files starts with a 4 KiB header that names its kind, format version, volume
//! and replica. Behind it:
//!
//! * `extents`: the blocks, sparse;
//! * `checksums`: one 32-bit stamp for each block; 0 says that the block is zeros;
//! * `regions`: 512-byte sectors of 62 LSNs, the sector's number and a CRC-32C, so that a torn
//!   update leaves each sector whole, old or new.

use std::ops::{ControlFlow, Range};
use std::path::PathBuf;
use std::sync::Arc;

use sbk_engine::types::{BLOCK_SIZE, Lba, Lsn};
use sbk_wal::{Get, Put, RawFile, Storage, crc32c, is_zero, read_exact, write_all};

use super::error::{ReadError, RottenBlock, StoreError};
use super::superblock::Identity;

/// Bytes of a file before its content.
pub(super) const HEADER: u64 = 4096;
const VERSION: u32 = 1;
const STAMP: u64 = 4;
const SECTOR: u64 = 512;
/// Blocks that are read at once to see whether they are holes.
const HOLE_READ: u64 = 64;
/// LSNs in a sector of the region table.
pub(super) const REGIONS_PER_SECTOR: u64 = 62;

/// One of the three files.
#[derive(Clone, Copy, Debug)]
struct Kind {
    name: &'static str,
    magic: &'static [u8; 8],
}

const EXTENTS: Kind = Kind { name: "extents", magic: b"SBKEXTNT" };
const CHECKSUMS: Kind = Kind { name: "checksums", magic: b"SBKCHKSM" };
const REGIONS: Kind = Kind { name: "regions", magic: b"SBKREGNS" };

/// The open files. Shared by the store and the plans that it hands out.
#[derive(Debug)]
pub(super) struct Image {
    storage: Arc<dyn Storage>,
    extents: Arc<dyn RawFile>,
    checksums: Arc<dyn RawFile>,
    regions: Arc<dyn RawFile>,
}

/// The stamp of a block with this CRC-32C: 0 is taken for zeros.
pub(super) fn stamp(crc: u32) -> u32 {
    crc.max(1)
}

pub(super) fn bytes(blocks: u64) -> u64 {
    blocks * BLOCK_SIZE
}

impl Image {
    /// Makes the files, all durable but their names.
    pub(super) fn create(
        storage: Arc<dyn Storage>,
        identity: &Identity,
        blocks: u64,
    ) -> Result<Self, StoreError> {
        let make = |kind: Kind, len: u64| {
            let make = || {
                let file = storage.create(kind.name)?;
                write_all(&*file, &[&header(kind, identity)], 0)?;
                file.set_len(HEADER + len)?;
                file.sync()?;
                Ok(file)
            };
            make().map_err(|e| io_error(&*storage, kind.name, "make", e))
        };
        let extents = make(EXTENTS, bytes(blocks))?;
        let checksums = make(CHECKSUMS, blocks * STAMP)?;
        let regions = make(REGIONS, 0)?;
        Ok(Self { storage: Arc::clone(&storage), extents, checksums, regions })
    }

    /// Opens the files and checks whose they are.
    pub(super) fn open(storage: Arc<dyn Storage>, identity: &Identity) -> Result<Self, StoreError> {
        let open = |kind: Kind| {
            let file =
                storage.open(kind.name).map_err(|e| io_error(&*storage, kind.name, "open", e))?;
            check_header(&*storage, kind, &*file, identity)?;
            Ok::<_, StoreError>(file)
        };
        let (extents, checksums, regions) = (open(EXTENTS)?, open(CHECKSUMS)?, open(REGIONS)?);
        Ok(Self { storage: Arc::clone(&storage), extents, checksums, regions })
    }

    /// Where a kind of file is, for messages.
    pub(super) fn path(&self) -> PathBuf {
        self.storage.describe(EXTENTS.name)
    }

    /// Reads blocks into `out`, each checked against its stamp. A block that does not match is
    /// left out of `out` (its bytes there mean nothing) and named in the result.
    pub(super) fn read(
        &self,
        range: Range<u64>,
        out: &mut [u8],
    ) -> Result<Vec<BadBlock>, ReadError> {
        let error =
            |name: &str, source| ReadError::Io { path: self.storage.describe(name), source };
        let mut stamps = vec![0; ((range.end - range.start) * STAMP) as usize];
        read_exact(&*self.checksums, &mut stamps, HEADER + range.start * STAMP, true)
            .map_err(|e| error(CHECKSUMS.name, e))?;
        read_exact(&*self.extents, out, HEADER + bytes(range.start), true)
            .map_err(|e| error(EXTENTS.name, e))?;
        let mut bad = Vec::new();
        for ((block, data), expected) in
            range.zip(out.chunks_exact(BLOCK_SIZE as usize)).zip(stamps.chunks_exact(4))
        {
            let expected = u32::from_le_bytes([expected[0], expected[1], expected[2], expected[3]]);
            if expected == 0 {
                if is_zero(data) {
                    continue;
                }
                bad.push(BadBlock { block, found: crc32c(data), expected });
            } else {
                let found = crc32c(data);
                if stamp(found) != expected {
                    bad.push(BadBlock { block, found, expected });
                }
            }
        }
        Ok(bad)
    }

    /// Tells `range` as runs of blocks, and whether they are holes. A block is one if its stamp says
    /// that it is zeros, and it is: a damaged stamp alone must not make a client skip data. What is
    /// being rewritten meanwhile is data. Goes on until `run` breaks.
    pub(super) fn holes(
        &self,
        range: Range<u64>,
        mut run: impl FnMut(u64, bool) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, ReadError> {
        let error =
            |name: &str, source| ReadError::Io { path: self.storage.describe(name), source };
        let mut stamps = vec![0; ((range.end - range.start) * STAMP) as usize];
        read_exact(&*self.checksums, &mut stamps, HEADER + range.start * STAMP, true)
            .map_err(|e| error(CHECKSUMS.name, e))?;
        let mut buffer = vec![0; bytes(HOLE_READ.min(range.end - range.start)) as usize];
        let mut at = range.start;
        for stamps in stamps.chunks(buffer.len() / BLOCK_SIZE as usize * STAMP as usize) {
            let count = stamps.len() as u64 / STAMP;
            if stamps.chunks_exact(4).any(is_zero) {
                let data = &mut buffer[..bytes(count) as usize];
                read_exact(&*self.extents, data, HEADER + bytes(at), true)
                    .map_err(|e| error(EXTENTS.name, e))?;
                for (stamp, block) in
                    stamps.chunks_exact(4).zip(data.chunks_exact(BLOCK_SIZE as usize))
                {
                    if run(1, is_zero(stamp) && is_zero(block)).is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
            } else if run(count, false).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            at += count;
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Writes consecutive blocks and their stamps; not durable before [`Image::sync`].
    pub(super) fn write(
        &self,
        first: u64,
        data: &[&[u8]],
        crcs: impl IntoIterator<Item = u32>,
    ) -> Result<(), StoreError> {
        let mut stamps = Put::default();
        for crc in crcs {
            stamps.u32(stamp(crc));
        }
        write_all(&*self.extents, data, HEADER + bytes(first))
            .map_err(|e| io_error(&*self.storage, EXTENTS.name, "write", e))?;
        write_all(&*self.checksums, &[&stamps.0], HEADER + first * STAMP)
            .map_err(|e| io_error(&*self.storage, CHECKSUMS.name, "write", e))
    }

    /// Makes blocks zeros; not durable before [`Image::sync`].
    pub(super) fn zero(&self, range: Range<u64>) -> Result<(), StoreError> {
        let len = range.end - range.start;
        self.extents
            .punch(HEADER + bytes(range.start), bytes(len))
            .map_err(|e| io_error(&*self.storage, EXTENTS.name, "punch", e))?;
        self.checksums
            .punch(HEADER + range.start * STAMP, len * STAMP)
            .map_err(|e| io_error(&*self.storage, CHECKSUMS.name, "punch", e))
    }

    /// Makes extents and checksums durable.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        self.extents.sync().map_err(|e| io_error(&*self.storage, EXTENTS.name, "sync", e))?;
        self.checksums.sync().map_err(|e| io_error(&*self.storage, CHECKSUMS.name, "sync", e))
    }

    /// Drops every block, durably.
    pub(super) fn wipe(&self) -> Result<(), StoreError> {
        for (file, kind) in
            [(&self.extents, EXTENTS), (&self.checksums, CHECKSUMS), (&self.regions, REGIONS)]
        {
            let wipe = || {
                let len = file.len()?;
                file.set_len(HEADER)?;
                // The region table has no fixed length.
                file.set_len(if kind.name == REGIONS.name { HEADER } else { len })?;
                file.sync()
            };
            wipe().map_err(|e| io_error(&*self.storage, kind.name, "wipe", e))?;
        }
        Ok(())
    }

    /// Drops the region table, durably.
    pub(super) fn drop_regions(&self) -> Result<(), StoreError> {
        let drop = || {
            self.regions.set_len(HEADER)?;
            self.regions.sync()
        };
        drop().map_err(|e| io_error(&*self.storage, REGIONS.name, "empty", e))
    }

    /// The region table: the last LSN that wrote each region, as of the checkpoint.
    pub(super) fn read_regions(&self) -> Result<Vec<Lsn>, StoreError> {
        let error = |e| io_error(&*self.storage, REGIONS.name, "read", e);
        let len = self.regions.len().map_err(error)?.saturating_sub(HEADER);
        let mut content = vec![0; len as usize];
        read_exact(&*self.regions, &mut content, HEADER, true).map_err(error)?;
        let mut out = Vec::new();
        for (number, sector) in content.chunks_exact(SECTOR as usize).enumerate() {
            let lsns = decode_sector(number as u64, sector).ok_or_else(|| StoreError::Damaged {
                path: self.storage.describe(REGIONS.name),
                what: format!(
                    "sector {number}, at byte {}, does not match its checksum",
                    HEADER + number as u64 * SECTOR
                ),
            })?;
            out.extend(lsns);
        }
        Ok(out)
    }

    /// Writes sectors of the region table, durably.
    pub(super) fn write_regions(&self, sectors: &[(u64, Vec<u8>)]) -> Result<(), StoreError> {
        if sectors.is_empty() {
            return Ok(());
        }
        let write = || {
            for (number, sector) in sectors {
                write_all(&*self.regions, &[sector], HEADER + number * SECTOR)?;
            }
            self.regions.sync()
        };
        write().map_err(|e| io_error(&*self.storage, REGIONS.name, "write", e))
    }
}

/// A block that does not match its stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadBlock {
    pub(super) block: u64,
    pub(super) found: u32,
    pub(super) expected: u32,
}

impl BadBlock {
    pub(super) fn rotten(&self) -> RottenBlock {
        let Self { block, found, expected } = *self;
        RottenBlock { lba: Lba(block), offset: HEADER + bytes(block), found, expected }
    }
}

/// Sector `number` of a region table.
pub(super) fn encode_sector(number: u64, table: &[Lsn]) -> Vec<u8> {
    let mut out = Put(Vec::with_capacity(SECTOR as usize));
    for at in 0..REGIONS_PER_SECTOR {
        let region = (number * REGIONS_PER_SECTOR + at) as usize;
        out.u64(table.get(region).map_or(0, |lsn| lsn.0));
    }
    out.u64(number);
    let crc = crc32c(&out.0);
    out.u32(stamp(crc)).u32(0);
    out.0
}

fn decode_sector(number: u64, sector: &[u8]) -> Option<Vec<Lsn>> {
    // Never written.
    if is_zero(sector) {
        return Some(vec![Lsn(0); REGIONS_PER_SECTOR as usize]);
    }
    let mut get = Get(sector);
    let lsns = (0..REGIONS_PER_SECTOR).map(|_| get.u64().map(Lsn)).collect::<Option<Vec<_>>>()?;
    let found = get.u64()?;
    let crc = get.u32()?;
    let right = stamp(crc32c(&sector[..SECTOR as usize - 8])) == crc && get.u32()? == 0;
    (right && found == number).then_some(lsns)
}

fn header(kind: Kind, identity: &Identity) -> Vec<u8> {
    let mut out = Put::default();
    out.bytes(kind.magic).u32(VERSION);
    identity.put(&mut out);
    let crc = crc32c(&out.0);
    out.u32(crc);
    out.0.resize(HEADER as usize, 0);
    out.0
}

fn check_header(
    storage: &dyn Storage,
    kind: Kind,
    file: &dyn RawFile,
    identity: &Identity,
) -> Result<(), StoreError> {
    let path = storage.describe(kind.name);
    let mut bytes = vec![0; HEADER as usize];
    read_exact(file, &mut bytes, 0, true).map_err(|e| io_error(storage, kind.name, "read", e))?;
    let damaged = |what: String| StoreError::Damaged { path: path.clone(), what };
    let mut get = Get(&bytes);
    let parsed = (get.array::<8>(), get.u32(), Identity::get(&mut get), get.u32());
    let (Some(magic), Some(version), Some(found), Some(crc)) = parsed else {
        return Err(damaged("the header is too short".to_owned()));
    };
    if magic != *kind.magic {
        let expected = String::from_utf8_lossy(kind.magic);
        return Err(damaged(format!("byte 0: it starts with {magic:02x?}, expected {expected}")));
    }
    let sum = crc32c(&bytes[..44]);
    if sum != crc {
        return Err(damaged(format!("byte 0: its header has CRC {sum:08x}, expected {crc:08x}")));
    }
    if version > VERSION {
        return Err(StoreError::Newer { path, found: version, expected: VERSION });
    }
    identity.check(found, &path)
}

pub(super) fn io_error(
    storage: &dyn Storage,
    path: &str,
    doing: &'static str,
    source: std::io::Error,
) -> StoreError {
    StoreError::Io { doing, path: storage.describe(path), source }
}
