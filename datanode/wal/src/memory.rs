//! A simulated disk with a page cache, and what goes wrong with disks.
//!
//! Every write goes to the cache and is seen by reads at once; a sync makes it durable. Until then
//! the disk may hold, for each 512-byte sector by itself, the durable content or any content
//! written since: so a loss of power tears writes, loses them and reorders them. Names behave the
//! same way, each create, rename and removal being atomic. Everything that is random comes from
//! the seed.

mod disk;

use std::fmt;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::disk::Disk;
use crate::storage::{Authenticator, RawFile, Storage};

/// A class of operations that a fault can hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    /// Reads of files.
    Read,
    /// Writes to files.
    Write,
    /// Syncs of files.
    Sync,
    /// Names, lengths, space.
    Meta,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// EIO. A sync that fails so leaves the cache clean although nothing reached the disk: the
    /// next sync reports success, reads show the new content, and a loss of power brings back the
    /// old ("fsyncgate"). So it is with the names of a directory, until another one in it changes.
    Io,
    /// ENOSPC.
    NoSpace,
    /// A write stops after so many bytes; the next is not affected.
    Short(usize),
}

/// The simulated disk. Clones share it.
#[derive(Clone)]
pub struct Memory {
    disk: Arc<Mutex<Disk>>,
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Memory")
    }
}

impl Memory {
    /// An empty disk.
    pub fn new(seed: u64) -> Self {
        Self { disk: Arc::new(Mutex::new(Disk::new(seed))) }
    }

    /// A copy of the disk as it is now; nothing that happens to one is seen on the other.
    pub fn fork(&self) -> Self {
        Self { disk: Arc::new(Mutex::new(self.disk().clone())) }
    }

    fn disk(&self) -> MutexGuard<'_, Disk> {
        // A panic in a test that shares the disk leaves it as consistent as a crash would.
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many operations changed something so far: writes, syncs, names, lengths.
    pub fn operations(&self) -> u64 {
        self.disk().operations()
    }

    /// How many bytes of files were read so far.
    pub fn bytes_read(&self) -> u64 {
        self.disk().bytes_read
    }

    /// The machine stops at the `n`-th changing operation from now (0 is the next): it happens in
    /// part, and every operation after it fails.
    pub fn crash_after(&self, n: u64) {
        self.disk().crash_after(n);
    }

    /// Whether the machine stopped.
    pub fn crashed(&self) -> bool {
        self.disk().crashed()
    }

    /// Loses power and comes back: of what was not synced, any part is there. Open files are dead.
    pub fn power_loss(&self) {
        self.disk().power_loss();
    }

    /// Loses power and comes back: of what was not synced, nothing is there. Open files are dead.
    pub fn lose_unsynced(&self) {
        self.disk().lose_unsynced();
    }

    /// The process dies and is started again: all it wrote is there, synced or not. Open files are
    /// dead.
    pub fn process_killed(&self) {
        self.disk().restart();
    }

    /// The `n`-th operation (0 is the next) of `kind` on a path that contains `path` fails once.
    pub fn fail(&self, kind: OpKind, n: u64, path: &str, fault: Fault) {
        self.disk().arm(kind, n, path, fault);
    }

    /// Nothing fails any more: faults that wait are forgotten, the machine does not stop, and there
    /// is room.
    pub fn mend(&self) {
        let mut disk = self.disk();
        disk.disarm();
        disk.fill_up_after(None);
    }

    /// How many faults wait for their operation.
    pub fn faults(&self) -> usize {
        self.disk().faults()
    }

    /// The disk is full from the `n`-th allocation from now on (0 is the next): making files,
    /// reserving space, and writing where nothing was written yet fail with ENOSPC.
    pub fn fill_up_after(&self, n: u64) {
        self.disk().fill_up_after(Some(n));
    }

    /// The disk has room again.
    pub fn make_room(&self) {
        self.disk().fill_up_after(None);
    }

    /// Whether an allocation failed since the last [`Memory::fill_up_after`].
    pub fn ran_full(&self) -> bool {
        self.disk().ran_full()
    }

    /// Flips bit `bit` of a file, on the disk and in the cache. Returns whether the file has it.
    pub fn flip(&self, path: &str, bit: u64) -> bool {
        self.disk().flip(path, bit)
    }

    /// The page (4096 bytes) of a file with this offset can't be read any more: what meets it fails with
    /// EIO, also a write to a part of it. Writing over all of it mends it. Returns whether the file has it.
    pub fn spoil(&self, path: &str, offset: u64) -> bool {
        self.disk().spoil(path, offset)
    }

    /// The bytes of a file as a read sees them.
    pub fn content(&self, path: &str) -> Option<Vec<u8>> {
        self.disk().content(path)
    }

    /// Every file's path.
    pub fn paths(&self) -> Vec<String> {
        self.disk().paths()
    }

    fn file(&self, (inode, epoch): (u64, u64), path: &str) -> Arc<dyn RawFile> {
        Arc::new(MemoryFile { memory: self.clone(), inode, epoch, path: path.to_owned() })
    }
}

impl Storage for Memory {
    fn create_dir(&self, path: &str) -> io::Result<()> {
        self.disk().create_dir(path)
    }

    fn create(&self, path: &str) -> io::Result<Arc<dyn RawFile>> {
        let handle = self.disk().create(path)?;
        Ok(self.file(handle, path))
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn RawFile>> {
        let handle = self.disk().open(path)?;
        Ok(self.file(handle, path))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk().rename(from, to)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.disk().remove(path)
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.disk().list(dir)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.disk().sync_dir(dir)
    }

    fn describe(&self, path: &str) -> PathBuf {
        PathBuf::from(path)
    }

    fn unit(&self) -> u64 {
        4096
    }

    fn authenticator(&self) -> Option<Arc<dyn Authenticator>> {
        None
    }
}

#[derive(Debug)]
struct MemoryFile {
    memory: Memory,
    inode: u64,
    epoch: u64,
    /// The name that it was opened by, for faults that are meant for it.
    path: String,
}

impl MemoryFile {
    fn alive(&self) -> io::Result<MutexGuard<'_, Disk>> {
        let disk = self.memory.disk();
        disk.check_epoch(self.epoch)?;
        Ok(disk)
    }
}

impl RawFile for MemoryFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.alive()?.inode(self.inode).len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.alive()?;
        disk.change(OpKind::Meta, &self.path)?;
        disk.inode_mut(self.inode).set_len(len);
        Ok(())
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        let mut disk = self.alive()?;
        disk.change(OpKind::Meta, &self.path)?;
        disk.allocate(0)?;
        let inode = disk.inode_mut(self.inode);
        if inode.len() < len {
            inode.set_len(len);
        }
        Ok(())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut disk = self.alive()?;
        disk.read_allowed(&self.path)?;
        if disk.inode(self.inode).is_bad(offset, buf.len()) {
            return Err(Disk::unreadable());
        }
        let read = disk.inode(self.inode).read(buf, offset);
        disk.bytes_read += read as u64;
        Ok(read)
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let mut data = Vec::new();
        for buf in bufs {
            data.extend_from_slice(buf);
        }
        let mut disk = self.alive()?;
        let data = disk.fitting(self.inode, &data, offset)?;
        if disk.inode_mut(self.inode).is_blocked(offset, data.len()) {
            return Err(Disk::unreadable());
        }
        let written = disk.write_allowed(&self.path, offset, data.len());
        let (len, result) = match written {
            Ok(len) => (len, Ok(len)),
            Err((len, error)) => (len, Err(error)),
        };
        disk.inode_mut(self.inode).write(&data[..len], offset);
        result
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut disk = self.alive()?;
        disk.change(OpKind::Meta, &self.path)?;
        disk.inode_mut(self.inode).punch(offset, len);
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        let mut disk = self.alive()?;
        disk.read_allowed(&self.path)?;
        Ok(disk.inode(self.inode).next_data(offset))
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.alive()?;
        let allowed = disk.change(OpKind::Sync, &self.path);
        let crashed = disk.crashed();
        match allowed {
            Ok(()) => disk.inode_mut(self.inode).sync(),
            // The kernel marks the pages clean and forgets that they never reached the disk.
            Err(_) if !crashed => disk.inode_mut(self.inode).drop_dirty(),
            Err(_) => {}
        }
        allowed
    }
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
