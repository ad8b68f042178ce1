//! The device node itself.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;
use sbk_wal::RawFile;

use crate::error::DeviceError;

/// A block device as one file of fixed length. I/O goes through the page cache.
#[derive(Debug)]
struct Block(File);

/// Opens a block device for this process alone: the kernel refuses one that is mounted, part of an array or a volume
/// group, swapped to, or open in this way already, a partition of it included. (No lock is taken beside that: udev takes
/// a lock on a device node for a request to look away.)
///
/// # Errors
/// It can't be opened, is in use, or is no block device.
pub fn open_exclusive(path: &Path) -> Result<Arc<dyn RawFile>, DeviceError> {
    let io = |source| DeviceError::Io { doing: "open", path: path.to_owned(), source };
    // What it is must be known before it is opened: opening a FIFO waits, and a tape rewinds.
    if !std::fs::metadata(path).map_err(io)?.file_type().is_block_device() {
        return Err(DeviceError::NoDevice { path: path.to_owned() });
    }
    let exclusive = OFlags::EXCL.bits() as i32;
    let opened = OpenOptions::new().read(true).write(true).custom_flags(exclusive).open(path);
    let file = match opened {
        Err(e) if e.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {
            return Err(DeviceError::InUse { path: path.to_owned() });
        }
        other => other.map_err(io)?,
    };
    // It may have been replaced meanwhile.
    if !file.metadata().map_err(io)?.file_type().is_block_device() {
        return Err(DeviceError::NoDevice { path: path.to_owned() });
    }
    Ok(Arc::new(Block(file)))
}

fn unsupported() -> io::Error {
    io::ErrorKind::Unsupported.into()
}

/// A device that has no space is one that ends before what it had room for, or lies on something that is full: it has
/// failed, for nothing that is let go on it helps. [One that was cut to nothing passed for a full disk, and stayed in use.]
fn is_failed(error: Errno) -> io::Error {
    if error == Errno::NOSPC { Errno::IO.into() } else { error.into() }
}

impl RawFile for Block {
    fn len(&self) -> io::Result<u64> {
        Ok(rustix::fs::seek(&self.0, SeekFrom::End(0))?)
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(unsupported())
    }

    fn reserve(&self, _: u64) -> io::Result<()> {
        Err(unsupported())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(&self.0, buf, offset)
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        rustix::io::pwritev(&self.0, bufs, offset).map_err(is_failed)
    }

    /// Has the device take zeros for what is there without writing them, if it can: most give the space back for that.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(rustix::fs::fallocate(&self.0, flags, offset, len)?)
    }

    fn next_data(&self, _: u64) -> io::Result<Option<Range<u64>>> {
        Err(unsupported())
    }

    fn sync(&self) -> io::Result<()> {
        rustix::fs::fdatasync(&self.0).map_err(is_failed)
    }
}
