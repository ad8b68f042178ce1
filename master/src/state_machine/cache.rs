//! The applied state in sled, so that a restart in order replays little.
//!
//! It is a cache and nothing else: the state can always be made again from the snapshot and the
//! log. So it is trusted only where there is no doubt:
//!
//! * sled's flush is no fsync, a crash leaves its files in any state, and sled may panic on files
//!   that are damaged, which would end this process. Therefore the database is written only when
//!   the member stops in order, then closed, synced and *sealed*: a file beside it names every one
//!   of its files with length and checksum. A database that is not as sealed is not even opened.
//!   The seal is removed, durably, before the database is opened.
//! * It may be ahead of the log, because an entry is applied when a majority has it, which need not
//!   include this member. The caller uses it only if the log holds the very entry that it ends
//!   with.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use sbk_wal::crc32c;
use serde::{Deserialize, Serialize};

use super::machine::Applied;

const KEY: &[u8] = b"applied";
/// Pages that sled keeps in memory. One value is all there is.
const MEMORY: u64 = 8 << 20;
const DATABASE: &str = "applied.sled";
const SEAL: &str = "applied.seal";

/// Why the cache can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// sled can't be opened or written.
    #[error("the applied state's database {path}: {source}")]
    Sled {
        /// The database.
        path: PathBuf,
        /// The failure.
        source: sled::Error,
    },
    /// The operating system said no.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// The state can't be written as JSON.
    #[error("the applied state can't be written: {0}")]
    Encode(#[from] serde_json::Error),
}

/// Length and CRC-32C of each of the database's files, by its path within it.
type Files = BTreeMap<String, (u64, u32)>;

/// The seal's file: `crc` covers the JSON of `files`.
#[derive(Serialize, Deserialize)]
struct Seal {
    crc: u32,
    files: Files,
}

/// The database in a master's data directory. It is open only within these calls.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    root: PathBuf,
}

fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> CacheError + 'a {
    move |source| CacheError::Io { action, path: path.to_owned(), source }
}

impl Cache {
    /// The cache in the data directory `root`.
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    fn database(&self) -> PathBuf {
        self.root.join(DATABASE)
    }

    /// Takes what was kept, if it is as it was sealed. What is in doubt is nothing, and said so in
    /// the log. In any case nothing is kept afterwards.
    ///
    /// # Errors
    /// If files can't be removed or the directory not synced.
    pub(crate) fn take(&self) -> Result<Option<Applied>, CacheError> {
        let (path, seal) = (self.database(), self.root.join(SEAL));
        let sealed = match fs::read(&seal) {
            Ok(bytes) => Some(bytes),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => {
                tracing::warn!(error = %e, path = %seal.display(), "the seal can't be read");
                None
            }
        };
        remove(&seal)?;
        sync_dir(&self.root)?;
        let found = sealed.and_then(|sealed| {
            let whole = is_as_sealed(&path, &sealed);
            if !whole {
                tracing::warn!(path = %path.display(), "the kept applied state is not as it was sealed; it is made again");
            }
            whole.then(|| load(&path))
        });
        remove(&path)?;
        let found = found.unwrap_or_else(|| Ok(None));
        Ok(found.unwrap_or_else(|error| {
            tracing::warn!(%error, "the kept applied state can't be read; it is made again");
            None
        }))
    }

    /// Keeps the state, durably, for the next start.
    pub(crate) fn keep(&self, applied: &Applied) -> Result<(), CacheError> {
        let (path, seal) = (self.database(), self.root.join(SEAL));
        remove(&seal)?;
        remove(&path)?;
        save(&path, applied)?;
        let files = files(&path).map_err(io_error("sync", &path))?;
        let crc = crc32c(&serde_json::to_vec(&files)?);
        let temporary = self.root.join("applied.tmp");
        let write = |bytes: &[u8]| {
            fs::write(&temporary, bytes)?;
            File::open(&temporary)?.sync_all()?;
            fs::rename(&temporary, &seal)
        };
        write(&serde_json::to_vec(&Seal { crc, files })?).map_err(io_error("write", &seal))?;
        sync_dir(&self.root)
    }
}

/// Removes a file or a directory with all in it, if it is there.
fn remove(path: &Path) -> Result<(), CacheError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(what) if what.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(e)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn sync_dir(path: &Path) -> Result<(), CacheError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(io_error("sync", path))
}

fn is_as_sealed(database: &Path, seal: &[u8]) -> bool {
    let Ok(Seal { crc, files: sealed }) = serde_json::from_slice(seal) else { return false };
    let unchanged = serde_json::to_vec(&sealed).is_ok_and(|json| crc32c(&json) == crc);
    unchanged && files(database).is_ok_and(|found| found == sealed)
}

/// All files below `database`, each synced and read.
fn files(database: &Path) -> io::Result<Files> {
    let mut found = Files::new();
    let mut dirs = vec![database.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            File::open(&path)?.sync_all()?;
            let bytes = fs::read(&path)?;
            let name = path.strip_prefix(database).unwrap_or(&path);
            found.insert(name.to_string_lossy().into_owned(), (bytes.len() as u64, crc32c(&bytes)));
        }
        File::open(&dir)?.sync_all()?;
    }
    Ok(found)
}

fn open(path: &Path) -> Result<sled::Db, CacheError> {
    let opened = sled::Config::new().path(path).cache_capacity(MEMORY).open();
    opened.map_err(|source| CacheError::Sled { path: path.to_owned(), source })
}

fn load(path: &Path) -> Result<Option<Applied>, CacheError> {
    let error = |source| CacheError::Sled { path: path.to_owned(), source };
    let bytes = open(path)?.get(KEY).map_err(error)?;
    Ok(bytes.map(|bytes| serde_json::from_slice(&bytes)).transpose()?)
}

fn save(path: &Path, applied: &Applied) -> Result<(), CacheError> {
    let error = |source| CacheError::Sled { path: path.to_owned(), source };
    let db = open(path)?;
    db.insert(KEY, serde_json::to_vec(applied)?).map_err(error)?;
    db.flush().map_err(error)?;
    Ok(())
}
