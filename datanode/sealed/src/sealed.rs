//! The files of one replica, encrypted, and the file with their key.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use sbk_wal::{Authenticator, Get, Owner, Put, RawFile, SlotError, Slots, Storage};

use crate::file::SealedFile;
use crate::keys::{DataKey, KeyId, KeyRing, Unknown, WRAPPED};
use crate::xts::Xts;

/// The file with the replica's key.
pub const SEAL: &str = "seal";
/// The same while it is being made.
const NEW_SEAL: &str = "seal.new";
const MAGIC: [u8; 8] = *b"SBKSEAL\0";
const VERSION: u32 = 1;
const SLOT: usize = 4096;

/// Why the files of a replica can't be read or made.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The operating system said no.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// The file with the replica's key can't be read or written.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// The key is that of another replica.
    #[error("{path} is of {found}, not of {expected}")]
    Other {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: Owner,
        /// Whose it should be.
        expected: Owner,
    },
    /// The node's key file does not have the key that it was wrapped with.
    #[error(
        "{path} was wrapped with the key {needed}, which the node's key file does not have (it has {known})"
    )]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        needed: KeyId,
        /// Those that the key file has.
        known: String,
    },
    /// There is a replica of an encrypted volume, and no key beside it.
    #[error("{path} is missing: without it the replica can't be read")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The replica is encrypted, and the node has no key file.
    #[error("{path}: the replica is encrypted, and the node was given no --key-file")]
    NoKeys {
        /// The file.
        path: PathBuf,
    },
    /// It was changed by somebody who does not have the key.
    #[error("{path} is damaged: what it holds was not wrapped with the key {id} for this replica")]
    Forged {
        /// The file.
        path: PathBuf,
        /// The key that it names.
        id: KeyId,
    },
}

/// A replica's files, encrypted. See the crate's documentation.
pub struct Sealed {
    inner: Arc<dyn Storage>,
    key: DataKey,
    tags: Arc<dyn Authenticator>,
    ciphers: Mutex<BTreeMap<String, Arc<Xts>>>,
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sealed").field(&self.inner).finish()
    }
}

impl Sealed {
    /// Whether the files in `inner` are encrypted.
    ///
    /// # Errors
    /// If its directory can't be listed.
    pub fn is_on(inner: &dyn Storage) -> io::Result<bool> {
        Ok(inner.list("")?.iter().any(|name| name == SEAL))
    }

    /// Makes a key for the files of a new replica, durably, in place of one that is there: what was encrypted with
    /// that can't be read any more. [The making of a replica was cut short, and its node started again with
    /// another key file. The key that was there could not be unwrapped, and the replica never be made.]
    ///
    /// # Errors
    /// If it can't be written.
    pub fn create(
        inner: Arc<dyn Storage>,
        owner: Owner,
        keys: &KeyRing,
    ) -> Result<Self, SealError> {
        let error = |doing, name: &str| {
            let path = inner.describe(name);
            move |source| SealError::Io { doing, path, source }
        };
        let names = inner.list("").map_err(error("list", ""))?;
        if names.iter().any(|name| name == NEW_SEAL) {
            inner.remove(NEW_SEAL).map_err(error("remove", NEW_SEAL))?;
        }
        let key = DataKey::random().map_err(error("make a key for", SEAL))?;
        let record = record(owner, &key, keys).map_err(error("make a key for", SEAL))?;
        Slots::create(Arc::clone(&inner), NEW_SEAL, MAGIC, VERSION, SLOT, &record)?;
        inner.rename(NEW_SEAL, SEAL).map_err(error("rename", NEW_SEAL))?;
        inner.sync_dir("").map_err(error("sync the name of", SEAL))?;
        Self::open(inner, owner, Some(keys))
    }

    /// Reads the key of a replica's files. One that is not wrapped with the first key of the ring is wrapped with
    /// that, durably, before this returns.
    ///
    /// # Errors
    /// If it can't be read or was damaged, is another replica's, or was wrapped with a key that the ring does not have.
    pub fn open(
        inner: Arc<dyn Storage>,
        owner: Owner,
        keys: Option<&KeyRing>,
    ) -> Result<Self, SealError> {
        let path = inner.describe(SEAL);
        let Some(keys) = keys else { return Err(SealError::NoKeys { path }) };
        let (mut slots, found) = Slots::open(Arc::clone(&inner), SEAL, MAGIC, VERSION, SLOT)?;
        let Some((found, id, wrapped)) = decode(&found) else {
            return Err(SlotError::Damaged { path }.into());
        };
        if found != owner {
            return Err(SealError::Other { path, found, expected: owner });
        }
        let key = match keys.unwrap(id, &wrapped, &context(owner)) {
            Ok(Some(key)) => key,
            Ok(None) => return Err(SealError::Forged { path, id }),
            Err(Unknown) => {
                let known: Vec<_> = keys.ids().map(|id| id.to_string()).collect();
                return Err(SealError::UnknownKey { path, needed: id, known: known.join(", ") });
            }
        };
        if id != keys.first() {
            let record = record(owner, &key, keys).map_err(|source| SealError::Io {
                doing: "wrap the key of",
                path,
                source,
            })?;
            slots.write(&record)?;
            // In both slots: the key before is one that somebody wants to be rid of.
            slots.sync()?;
        }
        let tags = Arc::new(key.of_tags());
        Ok(Self { inner, key, tags, ciphers: Mutex::default() })
    }

    fn file(&self, path: &str, inner: Arc<dyn RawFile>) -> Arc<dyn RawFile> {
        let kind = kind(path);
        let mut ciphers = self.ciphers.lock().unwrap_or_else(PoisonError::into_inner);
        let xts = ciphers
            .entry(kind.to_owned())
            .or_insert_with(|| Arc::new(Xts::new(&self.key.of_files(kind))));
        Arc::new(SealedFile::new(inner, Arc::clone(xts)))
    }
}

/// The kind of a file, the same for all names that it may have: the first part of its path, without what a name has
/// behind a dot while the file is being made.
fn kind(path: &str) -> &str {
    let first = path.split('/').next().unwrap_or(path);
    first.split('.').next().unwrap_or(first)
}

/// What a key is bound to when it is wrapped.
fn context(owner: Owner) -> Vec<u8> {
    [&MAGIC[..], &owner.0].concat()
}

fn record(owner: Owner, key: &DataKey, keys: &KeyRing) -> io::Result<Vec<u8>> {
    let wrapped = keys.wrap(key, &context(owner))?;
    let mut out = Put::default();
    out.bytes(&owner.0).bytes(&keys.first().0).bytes(&wrapped);
    Ok(out.0)
}

fn decode(record: &[u8]) -> Option<(Owner, KeyId, [u8; WRAPPED])> {
    let mut get = Get(record);
    let (owner, id) = (Owner(get.array()?), KeyId(get.array()?));
    Some((owner, id, get.array()?))
}

impl Storage for Sealed {
    fn create_dir(&self, path: &str) -> io::Result<()> {
        self.inner.create_dir(path)
    }

    fn create(&self, path: &str) -> io::Result<Arc<dyn RawFile>> {
        Ok(self.file(path, self.inner.create(path)?))
    }

    fn open(&self, path: &str) -> io::Result<Arc<dyn RawFile>> {
        Ok(self.file(path, self.inner.open(path)?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        if kind(from) != kind(to) {
            // It could not be read under its new name.
            return Err(io::ErrorKind::CrossesDevices.into());
        }
        self.inner.rename(from, to)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.inner.remove(path)
    }

    /// All but the file with the key, which is none of those who look from here.
    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let mut names = self.inner.list(dir)?;
        if dir.is_empty() {
            names.retain(|name| name != SEAL && name != NEW_SEAL);
        }
        Ok(names)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.inner.sync_dir(dir)
    }

    fn describe(&self, path: &str) -> PathBuf {
        self.inner.describe(path)
    }

    fn unit(&self) -> u64 {
        self.inner.unit()
    }

    fn authenticator(&self) -> Option<Arc<dyn Authenticator>> {
        Some(Arc::clone(&self.tags))
    }
}
