//! What a log needs of a file system.

use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// Most buffers of one vectored write (Linux's `IOV_MAX`).
const MAX_BUFFERS: usize = 1024;

/// A directory tree. Paths are relative, with `/` between their parts. What is created, renamed or
/// removed is durable only after [`Storage::sync_dir`] of the directory that it is in.
pub trait Storage: Debug + Send + Sync {
    /// Makes a directory, unless it exists. Its parent exists.
    fn create_dir(&self, path: &str) -> io::Result<()>;
    /// Makes an empty file; fails if there is one.
    fn create(&self, path: &str) -> io::Result<Arc<dyn RawFile>>;
    /// Opens a file for reading and writing.
    fn open(&self, path: &str) -> io::Result<Arc<dyn RawFile>>;
    /// Gives a file another name in the same directory, replacing what has that name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file. Those who have it open keep it.
    fn remove(&self, path: &str) -> io::Result<()>;
    /// The names in a directory, sorted.
    fn list(&self, dir: &str) -> io::Result<Vec<String>>;
    /// Makes the names in a directory durable. `""` is the root.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;
    /// The path as a person would look it up.
    fn describe(&self, path: &str) -> PathBuf;
    /// Bytes in which files take space and give it back, at these multiples of an offset.
    fn unit(&self) -> u64;
    /// What proves what is written here, where files are encrypted; `None` where they are not.
    fn authenticator(&self) -> Option<Arc<dyn Authenticator>>;
}

/// Makes tags with a key that nobody has who has the disk alone. So who finds the tag of something on it knows
/// that this replica wrote it, but not when.
pub trait Authenticator: Debug + Send + Sync {
    /// The tag of all the bytes of `parts`, one after the other. Nothing in it tells where one part ends: what is
    /// tagged is to be of one length, or to begin with what it is and how long.
    fn tag(&self, parts: &[&[u8]]) -> Tag;
}

/// What an [`Authenticator`] makes: 128 bits, as good as random to who does not have the key.
pub type Tag = [u8; 16];

/// An open file. Reads and writes may come from several threads at once.
pub trait RawFile: Debug + Send + Sync {
    /// Its length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether it has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        self.len().map(|len| len == 0)
    }
    /// Cuts it, or extends it with a hole.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Reserves space for `0..len` and extends the file to it, so that a later write there does
    /// not fail for want of space. A file system that can't reserve only extends.
    fn reserve(&self, len: u64) -> io::Result<()>;
    /// Reads at `offset` into `buf`; returns the bytes read, 0 at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes the buffers, one after the other, at `offset`; returns the bytes written. What is written over
    /// bytes that were written and synced before survives the end of the process at once; what is not, on some
    /// backends, only once it is synced.
    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize>;
    /// Makes `offset..offset + len` read as zeros and gives its space back where it can.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;
    /// The first range at or after `offset` that may hold anything but zeros; `None` if there is
    /// none.
    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>>;
    /// Makes data and length durable (fdatasync). After a failure nothing is known of what was
    /// written since the last success, whatever a later call says.
    fn sync(&self) -> io::Result<()>;
}

/// Whether a read failed because the disk does not give back what it has there (EIO). It may be so for
/// ever, and what is somewhere else on the disk may be fine.
pub(crate) fn is_unreadable(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// Fills `buf` from `offset`; bytes beyond the end of the file are zeros if `zero_fill`, else an
/// `UnexpectedEof`.
pub fn read_exact(
    file: &dyn RawFile,
    buf: &mut [u8],
    offset: u64,
    zero_fill: bool,
) -> io::Result<()> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(&mut buf[done..], offset + done as u64) {
            Ok(0) if zero_fill => {
                buf[done..].fill(0);
                return Ok(());
            }
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Writes all of `bufs` at `offset`, in as few calls as the system takes. A call that writes less
/// is followed by one for the rest, which then says why (a full disk, usually).
pub fn write_all(file: &dyn RawFile, bufs: &[&[u8]], mut offset: u64) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> =
        bufs.iter().filter(|b| !b.is_empty()).map(|b| IoSlice::new(b)).collect();
    let mut rest = &mut slices[..];
    while !rest.is_empty() {
        let now = rest.len().min(MAX_BUFFERS);
        match file.write_at(&rest[..now], offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                offset += n as u64;
                IoSlice::advance_slices(&mut rest, n);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
