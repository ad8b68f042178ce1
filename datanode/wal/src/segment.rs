//! One file of a log.
//!
//! ```text
//! segment = header, 512 bytes | frame ...
//! header  = magic 8 | version u32 | crc u32 | owner 32 | sequence u64 | previous u64 | first u64
//! ```
//! `sequence` is also the file's name, `previous` the sequence of the segment before it in the log
//! (0 if there is none), `first` the index of its first record. A segment's records end where the
//! next segment's begin, whatever lies behind.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use crate::bytes_io::{Get, Put, is_zero};
use crate::crc::Crc;
use crate::error::LogError;
use crate::storage::{RawFile, Storage, read_exact, write_all};

/// Bytes of a segment before its first frame.
pub const HEADER_BYTES: u64 = 512;
const MAGIC: &[u8; 8] = b"SBKWALsg";
const VERSION: u32 = 1;
const USED: usize = 72;

/// Whose log it is: for a datanode, the volume's UUID and the replica's.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Owner(pub [u8; 32]);

impl Owner {
    /// From two 16-byte ids.
    pub fn new(first: [u8; 16], second: [u8; 16]) -> Self {
        let mut out = [0; 32];
        out[..16].copy_from_slice(&first);
        out[16..].copy_from_slice(&second);
        Self(out)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, half) in self.0.chunks(16).enumerate() {
            f.write_str(if i == 0 { "volume " } else { ", replica " })?;
            for (i, byte) in half.iter().enumerate() {
                let dash = if matches!(i, 4 | 6 | 8 | 10) { "-" } else { "" };
                write!(f, "{dash}{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A segment's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) sequence: u64,
    pub(crate) previous: u64,
    pub(crate) first: u64,
}

/// What a segment file starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// A header of this log, and its checksum, with which the chain of frames starts.
    Valid(Header, u32),
    /// Zeros: never used.
    Unused,
    /// Anything else: torn or damaged.
    Damaged,
}

impl Header {
    pub(crate) fn encode(&self, owner: &Owner) -> (Vec<u8>, u32) {
        let mut tail = Put::default();
        tail.bytes(&owner.0).u64(self.sequence).u64(self.previous).u64(self.first);
        let version = VERSION.to_le_bytes();
        let crc = Crc::default().with(MAGIC).with(&version).with(&tail.0).value();
        let mut out = Put::default();
        out.bytes(MAGIC).bytes(&version).u32(crc).bytes(&tail.0);
        out.0.resize(HEADER_BYTES as usize, 0);
        (out.0, crc)
    }

    /// Reads a file's header. Errors on another owner's and on a newer format.
    pub(crate) fn read(
        storage: &dyn Storage,
        path: &str,
        file: &dyn RawFile,
        owner: &Owner,
    ) -> Result<Head, LogError> {
        let mut bytes = vec![0; HEADER_BYTES as usize];
        read_exact(file, &mut bytes, 0, true).map_err(|e| io_error(storage, path, "read", e))?;
        if is_zero(&bytes) {
            return Ok(Head::Unused);
        }
        let Some((version, found, header, crc)) = decode(&bytes) else { return Ok(Head::Damaged) };
        if version > VERSION {
            let path = storage.describe(path);
            return Err(LogError::Newer { path, found: version, expected: VERSION });
        }
        if found != *owner {
            return Err(LogError::Foreign {
                path: storage.describe(path),
                found: found.to_string(),
                expected: owner.to_string(),
            });
        }
        Ok(Head::Valid(header, crc))
    }
}

fn decode(bytes: &[u8]) -> Option<(u32, Owner, Header, u32)> {
    let mut get = Get(bytes);
    if get.array::<8>()? != *MAGIC {
        return None;
    }
    let version = get.u32()?;
    let crc = get.u32()?;
    if Crc::default().with(&bytes[..12]).with(bytes.get(16..USED)?).value() != crc {
        return None;
    }
    let owner = Owner(get.array()?);
    let header = Header { sequence: get.u64()?, previous: get.u64()?, first: get.u64()? };
    Some((version, owner, header, crc))
}

pub(crate) fn io_error(
    storage: &dyn Storage,
    path: &str,
    doing: &'static str,
    source: io::Error,
) -> LogError {
    LogError::Io { doing, path: storage.describe(path), source }
}

/// A segment in use. Whoever holds it may read its records: the file is not used again before it
/// is let go.
#[derive(Debug)]
pub struct Segment {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) path: String,
    pub(crate) owner: Owner,
    pub(crate) header: Header,
    /// Set once the file has its name; nothing is read from a segment before that.
    pub(crate) file: OnceLock<Arc<dyn RawFile>>,
}

impl Segment {
    /// Its number, also the file's name.
    pub fn sequence(&self) -> u64 {
        self.header.sequence
    }

    /// The index of its first record.
    pub fn first(&self) -> u64 {
        self.header.first
    }

    /// Where it is, for messages.
    pub fn describe(&self) -> PathBuf {
        self.storage.describe(&self.path)
    }

    /// Fills `buf` from `offset`.
    pub fn read(&self, buf: &mut [u8], offset: u64) -> Result<(), LogError> {
        read_exact(&**self.file(), buf, offset, false)
            .map_err(|e| io_error(&*self.storage, &self.path, "read", e))
    }

    pub(crate) fn file(&self) -> &Arc<dyn RawFile> {
        self.file.get().expect("a segment is read only after it was written")
    }

    pub(crate) fn damaged(&self, offset: u64, what: impl Into<String>) -> LogError {
        let path = self.storage.describe(&self.path);
        LogError::Damaged { path, offset, what: what.into() }
    }

    pub(crate) fn error(&self, doing: &'static str, source: io::Error) -> LogError {
        io_error(&*self.storage, &self.path, doing, source)
    }
}

/// Writes zeros to `file` from `offset` to `end`: space that was written once costs a sync no
/// metadata.
pub(crate) fn write_zeros(file: &dyn RawFile, mut offset: u64, end: u64) -> io::Result<()> {
    let zeros = vec![0; (1 << 20).min(end.saturating_sub(offset) as usize)];
    while offset < end {
        let now = (end - offset).min(zeros.len() as u64) as usize;
        write_all(file, &[&zeros[..now]], offset)?;
        offset += now as u64;
    }
    Ok(())
}
