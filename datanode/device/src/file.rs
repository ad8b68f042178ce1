//! An open file.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;

use sbk_wal::{RawFile, write_all};

use crate::alloc::no_space;
use crate::layout::{CHUNK, PAGE};
use crate::map::{MAX_LEN, Map, Piece, index};
use crate::volume::{Inode, Volume};

/// See the module's documentation. It works until the device fails; after that whoever needs the file opens it anew.
#[derive(Debug)]
pub(crate) struct OpenFile {
    volume: Arc<Volume>,
    inode: Arc<Inode>,
}

static ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];

/// The first `len` bytes of the buffers.
fn first<'a>(bufs: &'a [IoSlice<'_>], mut len: u64) -> Vec<&'a [u8]> {
    let mut out = Vec::with_capacity(bufs.len() + 2);
    for buf in bufs {
        let now = len.min(buf.len() as u64);
        out.push(&buf[..now as usize]);
        len -= now;
        if len == 0 {
            break;
        }
    }
    out
}

fn total(bufs: &[IoSlice<'_>]) -> u64 {
    bufs.iter().map(|buf| buf.len() as u64).sum()
}

impl OpenFile {
    pub(crate) fn new(volume: Arc<Volume>, inode: Arc<Inode>) -> Self {
        Self { volume, inode }
    }

    /// Where a byte of the device's chunks is on the device.
    fn place(&self, at: u64) -> u64 {
        self.volume.layout.data(0) + at
    }

    /// Writes over what was written before: nothing of the map changes. Returns the bytes written, 0 if something would.
    fn overwrite(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let map = self.inode.map();
        let most = total(bufs).min(map.len().saturating_sub(offset));
        if most == 0 {
            return Ok(0);
        }
        let Piece::Data { at, len } = map.piece(offset, most) else { return Ok(0) };
        write_all(&*self.volume.bottom, &first(bufs, len), self.place(at))?;
        Ok(len as usize)
    }

    /// Writes as far as the chunks lie behind each other; those that are missing are taken. `None` if there is none.
    ///
    /// A page to which nothing was written before, and one that the file's end moves in, is written to its end, so that
    /// behind the data there are zeros.
    fn write_fresh(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<Option<usize>> {
        let wanted = offset.checked_add(total(bufs)).filter(|end| *end <= MAX_LEN);
        let wanted = wanted.ok_or(io::ErrorKind::FileTooLarge)?;
        let mut map = self.inode.map_mut();
        self.zero_behind_end(&map, offset)?;
        let Some(at) = self.chunk_for(&mut map, offset) else { return Ok(None) };
        let mut end = (offset / CHUNK + 1) * CHUNK;
        let mut behind = at + 1;
        while end < wanted && self.chunk_for(&mut map, end) == Some(behind) {
            end += CHUNK;
            behind += 1;
        }
        let end = end.min(wanted);
        let fresh = |at: u64| !map.is_written(at);
        let front = if fresh(offset) { offset % PAGE } else { 0 };
        let pads = fresh(end - 1) || end > map.len();
        let back = if pads { end.next_multiple_of(PAGE) - end } else { 0 };
        let (front, back) = if bug!(FreshPageAsFound) { (0, 0) } else { (front, back) };
        let mut data = vec![&ZEROS[..front as usize]];
        data.extend(first(bufs, end - offset));
        data.push(&ZEROS[..back as usize]);
        let from = self.place(u64::from(at) * CHUNK + offset % CHUNK) - front;
        write_all(&*self.volume.bottom, &data, from)?;
        map.wrote(offset..end);
        if end > map.len() {
            map.set_len(end);
        }
        self.changed();
        Ok(Some((end - offset) as usize))
    }

    /// The chunk for `offset`: the file's, or one that becomes it.
    fn chunk_for(&self, map: &mut Map, offset: u64) -> Option<u32> {
        let place = index(offset);
        if let Some(chunk) = map.chunk(place) {
            return Some(chunk.at);
        }
        let before = place.checked_sub(1).and_then(|before| map.chunk(before));
        let at = self.volume.chunks.take(before.map(|chunk| chunk.at + 1))?;
        map.add(place, at);
        self.changed();
        Some(at)
    }

    /// If the file is about to reach beyond its end, with nothing written before `offset`: what is behind the end in its
    /// last page, and before `offset`, becomes zeros. A write that was lost with its length may have left something there.
    fn zero_behind_end(&self, map: &Map, offset: u64) -> io::Result<()> {
        let len = map.len();
        let end = len.next_multiple_of(PAGE).min(offset);
        if end <= len { Ok(()) } else { self.zero_within(map, len..end) }
    }

    /// Writes zeros to a part of one page, if there is anything.
    fn zero_within(&self, map: &Map, range: Range<u64>) -> io::Result<()> {
        let len = range.end - range.start;
        match map.piece(range.start, len) {
            Piece::Data { at, .. } if len > 0 => {
                write_all(&*self.volume.bottom, &[&ZEROS[..len as usize]], self.place(at))
            }
            Piece::Data { .. } | Piece::Hole { .. } => Ok(()),
        }
    }

    /// Makes `range` zeros, whatever the file's length.
    fn clear(&self, map: &mut Map, range: Range<u64>) -> io::Result<()> {
        let first = range.start.next_multiple_of(PAGE);
        let last = range.end / PAGE * PAGE;
        if first > last {
            return self.zero_within(map, range);
        }
        self.zero_within(map, range.start..first)?;
        self.zero_within(map, last..range.end)?;
        map.clear(first..last);
        Ok(())
    }

    /// The map, which is held, changed.
    fn changed(&self) {
        self.volume.changed(&self.inode);
    }

    /// What was let go is free at once.
    #[cfg(feature = "bugs")]
    fn free_at_once(&self, map: &mut Map) {
        if bug!(ReuseBeforeDurable) {
            self.volume.chunks.release(&map.take_freed());
        }
    }

    #[cfg(not(feature = "bugs"))]
    fn free_at_once(&self, _: &mut Map) {}
}

impl RawFile for OpenFile {
    fn len(&self) -> io::Result<u64> {
        let _io = self.volume.enter()?;
        Ok(self.inode.map().len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let _io = self.volume.enter()?;
        if len > MAX_LEN {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut map = self.inode.map_mut();
        let before = map.len();
        if len < before {
            let end = len.next_multiple_of(PAGE);
            self.zero_within(&map, len..end)?;
            // What was reserved behind it as well.
            map.clear(end..MAX_LEN);
            self.free_at_once(&mut map);
        } else {
            self.zero_behind_end(&map, MAX_LEN)?;
        }
        map.set_len(len);
        self.changed();
        Ok(())
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        let _io = self.volume.enter()?;
        if len > MAX_LEN {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let count = len.div_ceil(CHUNK) as u32;
        let missing = |map: &Map| (0..count).filter(|at| map.chunk(*at).is_none()).count() as u64;
        let wanted = missing(&self.inode.map());
        if u64::from(self.volume.chunks.free()) < wanted {
            self.volume.make_room(wanted)?;
        }
        let mut map = self.inode.map_mut();
        for at in 0..count {
            // Somebody may have been faster. What is reserved by then stays so.
            if self.chunk_for(&mut map, u64::from(at) * CHUNK).is_none() {
                self.changed();
                return Err(no_space());
            }
        }
        if len > map.len() {
            self.zero_behind_end(&map, MAX_LEN)?;
            map.set_len(len);
        }
        self.changed();
        Ok(())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let _io = self.volume.enter()?;
        let map = self.inode.map();
        let most = (buf.len() as u64).min(map.len().saturating_sub(offset));
        if most == 0 {
            return Ok(0);
        }
        match map.piece(offset, most) {
            Piece::Hole { len } => {
                buf[..len as usize].fill(0);
                Ok(len as usize)
            }
            Piece::Data { at, len } => {
                let read = self.volume.bottom.read_at(&mut buf[..len as usize], self.place(at))?;
                // The device ends before what it had room for.
                if read == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(read) }
            }
        }
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let _io = self.volume.enter()?;
        if total(bufs) == 0 {
            return Ok(0);
        }
        let written = self.overwrite(bufs, offset)?;
        if written > 0 {
            return Ok(written);
        }
        loop {
            if let Some(written) = self.write_fresh(bufs, offset)? {
                return Ok(written);
            }
            self.volume.make_room(1)?;
        }
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let _io = self.volume.enter()?;
        let mut map = self.inode.map_mut();
        let end = map.len().min(offset.saturating_add(len));
        if offset >= end {
            return Ok(());
        }
        // Behind the file's end there are zeros in any case.
        let end = if end == map.len() { end.next_multiple_of(PAGE) } else { end };
        self.clear(&mut map, offset..end)?;
        self.free_at_once(&mut map);
        self.changed();
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let _io = self.volume.enter()?;
        Ok(self.inode.map().next_data(offset))
    }

    fn sync(&self) -> io::Result<()> {
        let _io = self.volume.enter()?;
        self.volume.sync(&self.inode)
    }
}
