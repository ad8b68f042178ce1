//! One open file, encrypted.

use std::fmt;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use sbk_wal::{RawFile, SECTOR};

use crate::xts::{UNIT, Xts};

/// Most bytes that are encrypted at once: what a write takes of memory beside what it writes.
const PIECE: u64 = 1 << 20;

/// A file whose sectors are encrypted one by one.
///
/// A write of a part of a sector reads the sector, and writes all of it. So a file that is written so has one writer at a time, and
/// is open once; it may be read by others meanwhile.
pub(crate) struct SealedFile {
    inner: Arc<dyn RawFile>,
    xts: Arc<Xts>,
    /// Whoever reads a part of a unit, which is encrypted as a whole, must not meet one that is half-written because
    /// its other part changes. Writes of parts of sectors hold it alone, reads of parts of units together.
    parts: RwLock<()>,
}

impl fmt::Debug for SealedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SealedFile").field(&self.inner).finish()
    }
}

fn whole(offset: u64, grain: u64) -> bool {
    offset.is_multiple_of(grain)
}

fn floor(offset: u64) -> u64 {
    offset - offset % SECTOR
}

fn ceil(offset: u64) -> io::Result<u64> {
    let too_far = || io::Error::from(io::ErrorKind::InvalidInput);
    offset.checked_next_multiple_of(SECTOR).ok_or_else(too_far)
}

impl SealedFile {
    pub(crate) fn new(inner: Arc<dyn RawFile>, xts: Arc<Xts>) -> Self {
        Self { inner, xts, parts: RwLock::new(()) }
    }

    /// Reads and decrypts whole sectors; returns the bytes of those that the file has.
    fn read_sectors(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match self.inner.read_at(&mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        // A file that was being made longer when power was lost may end within a sector.
        let done = floor(done as u64) as usize;
        self.xts.decrypt(&mut buf[..done], offset / SECTOR);
        Ok(done)
    }

    /// The sector at `offset`, zeros beyond the file's end, for a part of it to be replaced.
    fn read_for_part(&self, sector: &mut [u8], offset: u64) -> io::Result<()> {
        let found = self.read_sectors(sector, offset)?;
        sector[found..].fill(0);
        Ok(())
    }

    /// Writes sectors, all of them if that can be. A disk takes each of them whole or not at all: one that it took
    /// a part of is gone on with.
    fn write_sectors(&self, sectors: &[u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < sectors.len() {
            let rest = [IoSlice::new(&sectors[done..])];
            match self.inner.write_at(&rest, offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if done < SECTOR as usize => return Err(e),
                // What follows is tried by the caller, who is told why it fails.
                Err(_) => break,
            }
        }
        Ok(floor(done as u64) as usize)
    }

    /// Makes a part of one sector zeros.
    fn clear_part(&self, range: Range<u64>) -> io::Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let zeros = [0; SECTOR as usize];
        let zeros = &zeros[..(range.end - range.start) as usize];
        sbk_wal::write_all(self, &[zeros], range.start)
    }
}

impl RawFile for SealedFile {
    fn len(&self) -> io::Result<u64> {
        Ok(floor(self.inner.len()?))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let end = ceil(len)?;
        let shorter = len < self.len()?;
        self.inner.set_len(end)?;
        if shorter { self.clear_part(len..end) } else { Ok(()) }
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        self.inner.reserve(ceil(len)?)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let end = offset + buf.len() as u64;
        if whole(offset, SECTOR) && whole(end, SECTOR) {
            return self.read_sectors(buf, offset);
        }
        let of_units = whole(offset, UNIT) && whole(end, UNIT);
        let _alone = (!of_units).then(|| self.parts.read().unwrap_or_else(PoisonError::into_inner));
        let start = floor(offset);
        let mut sectors = vec![0; (ceil(end)? - start) as usize];
        let found = self.read_sectors(&mut sectors, start)?;
        let skip = (offset - start) as usize;
        let count = found.saturating_sub(skip).min(buf.len());
        buf[..count].copy_from_slice(&sectors[skip..skip + count]);
        Ok(count)
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let total: u64 = bufs.iter().map(|buf| buf.len() as u64).sum();
        if total == 0 {
            return Ok(0);
        }
        let start = floor(offset);
        let end = (offset + total).min(start + PIECE);
        let mut sectors = vec![0; (ceil(end)? - start) as usize];
        let (first, last) = (whole(offset, SECTOR), whole(end, SECTOR));
        let _alone =
            (!first || !last).then(|| self.parts.write().unwrap_or_else(PoisonError::into_inner));
        let sector = SECTOR as usize;
        if !first {
            self.read_for_part(&mut sectors[..sector], start)?;
        }
        if !last && (first || floor(end) != start) {
            let at = sectors.len() - sector;
            self.read_for_part(&mut sectors[at..], floor(end))?;
        }
        let skip = (offset - start) as usize;
        let mut place = &mut sectors[skip..(end - start) as usize];
        for buf in bufs {
            let now = buf.len().min(place.len());
            let (here, rest) = place.split_at_mut(now);
            here.copy_from_slice(&buf[..now]);
            place = rest;
        }
        self.xts.encrypt(&mut sectors, start / SECTOR);
        let done = self.write_sectors(&sectors, start)?;
        Ok(done.min((end - start) as usize).saturating_sub(skip))
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = self.len()?.min(offset.saturating_add(len));
        if offset >= end {
            return Ok(());
        }
        let (first, last) = (ceil(offset)?, floor(end));
        if first > last {
            return self.clear_part(offset..end);
        }
        self.clear_part(offset..first)?;
        if first < last {
            self.inner.punch(first, last - first)?;
        }
        self.clear_part(last..end)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.inner.next_data(offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }
}
