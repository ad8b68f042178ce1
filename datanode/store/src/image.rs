//! The files of the committed image: two homes for each block, the stamps, and the region table.
//!
//! Each of them starts with a 4 KiB header that names its kind, format version, volume and replica.
//! Behind it:
//!
//! * `extents` and `shadow`: the homes of the blocks, sparse;
//! * `checksums`: two 32-bit stamps for each block, one for each of its homes;
//! * `regions`: 512-byte sectors of 62 LSNs, the sector's number and a CRC-32C, so that a torn
//!   update leaves each sector whole, old or new.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use sbk_engine::types::{BLOCK_SIZE, Lsn};
use sbk_wal::{Get, Put, RawFile, Storage, crc32c, is_zero, read_exact, write_all};

use super::error::StoreError;
use super::homes::Home;
use super::proofs::Proofs;
use super::stamper::Stamper;
use super::superblock::Identity;

/// Bytes of a file before its content.
pub(super) const HEADER: u64 = 4096;
/// Version of the files of a replica that is not encrypted, and of one that is.
const VERSION: u32 = 2;
const ENCRYPTED_VERSION: u32 = 3;
const SECTOR: u64 = 512;
/// LSNs in a sector of the region table.
pub(super) const REGIONS_PER_SECTOR: u64 = 62;

/// One of the files.
#[derive(Clone, Copy, Debug)]
struct Kind {
    name: &'static str,
    magic: &'static [u8; 8],
}

const EXTENTS: Kind = Kind { name: "extents", magic: b"SBKEXTNT" };
const SHADOW: Kind = Kind { name: "shadow", magic: b"SBKSHADW" };
const CHECKSUMS: Kind = Kind { name: "checksums", magic: b"SBKCHKSM" };
const REGIONS: Kind = Kind { name: "regions", magic: b"SBKREGNS" };

/// The open files. Shared by the store and the plans that it hands out.
#[derive(Debug)]
pub(super) struct Image {
    storage: Arc<dyn Storage>,
    extents: Part,
    shadow: Part,
    pub(super) stamper: Stamper,
    pub(super) checksums: Part,
    regions: Arc<dyn RawFile>,
    pub(super) proofs: Proofs,
}

/// A file that is synced by whoever has written to it. One sync at a time, and none after one that failed:
/// the system tells of lost data once, to whoever syncs first, and whoever came next would take theirs for
/// durable.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) name: &'static str,
    pub(super) file: Arc<dyn RawFile>,
    failed: Mutex<bool>,
}

impl Part {
    fn new(kind: Kind, file: Arc<dyn RawFile>) -> Self {
        Self { name: kind.name, file, failed: Mutex::new(false) }
    }

    fn sync(&self) -> io::Result<()> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if *failed {
            return Err(io::Error::other("an earlier sync of it failed"));
        }
        self.file.sync().inspect_err(|_| *failed = true)
    }
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
        let stamper = Stamper::of(&*storage);
        let version = version(&stamper);
        let make = |kind: Kind, len: u64| {
            let make = || {
                let file = storage.create(kind.name)?;
                write_all(&*file, &[&header(kind, identity, version)], 0)?;
                file.set_len(HEADER + len)?;
                file.sync()?;
                Ok(file)
            };
            make().map_err(|e| io_error(&*storage, kind.name, "make", e))
        };
        let extents = Part::new(EXTENTS, make(EXTENTS, bytes(blocks))?);
        let shadow = Part::new(SHADOW, make(SHADOW, bytes(blocks))?);
        let checksums = Part::new(CHECKSUMS, make(CHECKSUMS, blocks * 2 * stamper.width())?);
        let regions = make(REGIONS, 0)?;
        let proofs = Proofs::default();
        let storage = Arc::clone(&storage);
        Ok(Self { storage, extents, shadow, stamper, checksums, regions, proofs })
    }

    /// Opens the files and checks whose they are.
    pub(super) fn open(storage: Arc<dyn Storage>, identity: &Identity) -> Result<Self, StoreError> {
        let stamper = Stamper::of(&*storage);
        let open = |kind: Kind| {
            let file =
                storage.open(kind.name).map_err(|e| io_error(&*storage, kind.name, "open", e))?;
            check_header(&*storage, kind, &*file, identity, version(&stamper))?;
            Ok::<_, StoreError>(file)
        };
        // A version before this one had no shadow: the extents say so first.
        let part = |kind| Ok::<_, StoreError>(Part::new(kind, open(kind)?));
        let (extents, shadow) = (part(EXTENTS)?, part(SHADOW)?);
        let (checksums, regions) = (part(CHECKSUMS)?, open(REGIONS)?);
        let proofs = Proofs::default();
        let storage = Arc::clone(&storage);
        Ok(Self { storage, extents, shadow, stamper, checksums, regions, proofs })
    }

    pub(super) fn home(&self, home: Home) -> &Part {
        match home {
            Home::Extents => &self.extents,
            Home::Shadow => &self.shadow,
        }
    }

    /// Bytes in which its files take space and give it back.
    pub(super) fn unit(&self) -> u64 {
        self.storage.unit()
    }

    /// Where a file is, for messages.
    pub(super) fn describe(&self, name: &str) -> PathBuf {
        self.storage.describe(name)
    }

    pub(super) fn error(&self, name: &str, doing: &'static str, source: io::Error) -> StoreError {
        io_error(&*self.storage, name, doing, source)
    }

    /// Makes all that lies in the homes of blocks durable.
    pub(super) fn sync_homes(&self) -> Result<(), StoreError> {
        for home in Home::BOTH {
            self.sync_home(home)?;
        }
        Ok(())
    }

    /// The same of one of them.
    pub(super) fn sync_home(&self, home: Home) -> Result<(), StoreError> {
        self.home(home).sync().map_err(|e| self.error(home.file(), "sync", e))
    }

    /// Makes blocks and their stamps durable.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        self.sync_homes()?;
        self.checksums.sync().map_err(|e| self.error(CHECKSUMS.name, "sync", e))
    }

    /// Drops every block, durably.
    pub(super) fn wipe(&self) -> Result<(), StoreError> {
        let homes = [(&self.extents.file, EXTENTS), (&self.shadow.file, SHADOW)];
        let rest = [(&self.checksums.file, CHECKSUMS), (&self.regions, REGIONS)];
        for (file, kind) in homes.into_iter().chain(rest) {
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
        let parts = sectors.iter();
        self.write_table(parts.map(|(number, bytes)| (HEADER + number * SECTOR, &bytes[..])))
    }

    /// Writes parts of the region table at these bytes of its file, durably.
    pub(super) fn write_table<'a>(
        &self,
        parts: impl Iterator<Item = (u64, &'a [u8])>,
    ) -> Result<(), StoreError> {
        let mut parts = parts.peekable();
        if parts.peek().is_none() {
            return Ok(());
        }
        let write = || {
            for (at, bytes) in parts {
                write_all(&*self.regions, &[bytes], at)?;
            }
            self.regions.sync()
        };
        write().map_err(|e| io_error(&*self.storage, REGIONS.name, "write", e))
    }

    /// The file of the region table, and its name.
    pub(super) fn table(&self) -> (&'static str, &dyn RawFile) {
        (REGIONS.name, &*self.regions)
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
    out.u32(crc.max(1)).u32(0);
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
    let right = crc32c(&sector[..SECTOR as usize - 8]).max(1) == crc && get.u32()? == 0;
    (right && found == number).then_some(lsns)
}

fn version(stamper: &Stamper) -> u32 {
    if stamper.has_key() { ENCRYPTED_VERSION } else { VERSION }
}

fn header(kind: Kind, identity: &Identity, version: u32) -> Vec<u8> {
    let mut out = Put::default();
    out.bytes(kind.magic).u32(version);
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
    expected: u32,
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
    if version > expected {
        return Err(StoreError::Newer { path, found: version, expected });
    }
    if version < expected {
        return Err(StoreError::Older { path, found: version, expected });
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
