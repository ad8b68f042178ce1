//! A directory tree that counts what is written to it.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sbk_wal::{Authenticator, RawFile, Storage};

/// What was written to files of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) bytes: u64,
    pub(crate) writes: u64,
    pub(crate) syncs: u64,
}

/// By the first part of the path.
type Counts = Arc<Mutex<BTreeMap<String, Written>>>;

/// Passes everything on to another storage.
#[derive(Clone, Debug)]
pub(crate) struct Counting {
    storage: Arc<dyn Storage>,
    counts: Counts,
}

impl Counting {
    pub(crate) fn new(storage: Arc<dyn Storage>) -> Self {
        Self { storage, counts: Counts::default() }
    }

    fn counts(&self) -> MutexGuard<'_, BTreeMap<String, Written>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was counted since the last time, by kind of file.
    pub(crate) fn take(&self) -> BTreeMap<String, Written> {
        std::mem::take(&mut self.counts())
    }

    fn file(&self, path: &str, file: Arc<dyn RawFile>) -> Arc<dyn RawFile> {
        let kind = path.split('/').next().unwrap_or(path).to_owned();
        Arc::new(Counted { file, kind, counts: Arc::clone(&self.counts) })
    }
}

impl Storage for Counting {
    fn create_dir(&self, path: &str) -> io::Result<()> {
        self.storage.create_dir(path)
    }

    fn create(&self, path: &str) -> io::Result<Arc<dyn RawFile>> {
        Ok(self.file(path, self.storage.create(path)?))
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn RawFile>> {
        Ok(self.file(path, self.storage.open(path)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.storage.rename(from, to)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.storage.remove(path)
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.storage.list(dir)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.storage.sync_dir(dir)
    }

    fn describe(&self, path: &str) -> PathBuf {
        self.storage.describe(path)
    }

    fn unit(&self) -> u64 {
        self.storage.unit()
    }

    fn authenticator(&self) -> Option<Arc<dyn Authenticator>> {
        self.storage.authenticator()
    }
}

#[derive(Debug)]
struct Counted {
    file: Arc<dyn RawFile>,
    kind: String,
    counts: Counts,
}

impl Counted {
    fn count(&self, what: impl FnOnce(&mut Written)) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        what(counts.entry(self.kind.clone()).or_default());
    }
}

impl RawFile for Counted {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        self.file.reserve(len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let done = self.file.write_at(bufs, offset)?;
        self.count(|written| {
            written.bytes += done as u64;
            written.writes += 1;
        });
        Ok(done)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.punch(offset, len)
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<Range<u64>>> {
        self.file.next_data(offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.count(|written| written.syncs += 1);
        self.file.sync()
    }
}
