//! The applied state in sled, so that a restart replays little.
//!
//! It is a cache and nothing else. sled's flush is no fsync, so after a power failure it may hold
//! something older, or nothing, or fail to open; and it may be ahead of the log, because an entry
//! is applied when a majority has it, which need not include this member. So what is read here
//! is used only if its checksum is right and the log holds the very entry that it ends with;
//! else the state is made again from the snapshot and the log.

use std::fs;
use std::path::Path;

use sbk_wal::crc32c;
use serde::{Deserialize, Serialize};

use super::machine::Applied;

const KEY: &[u8] = b"applied";
/// Pages that sled keeps in memory. One value is all there is.
const MEMORY: u64 = 8 << 20;

/// Why the cache can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// sled can't be opened or written, even after it was removed.
    #[error("the applied state's database: {0}")]
    Sled(#[from] sled::Error),
    /// The broken database can't be removed.
    #[error("remove the applied state's broken database: {0}")]
    Remove(#[source] std::io::Error),
    /// The state can't be written as JSON.
    #[error("the applied state can't be written: {0}")]
    Encode(#[from] serde_json::Error),
}

/// The value as it is kept: `crc` covers `body`, the JSON of [`Applied`].
#[derive(Serialize, Deserialize)]
struct Kept {
    crc: u32,
    body: String,
}

/// The database.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    db: sled::Db,
}

impl Cache {
    /// Opens the database in `dir`; one that does not open is removed and made anew.
    pub(crate) fn open(dir: &Path) -> Result<Self, CacheError> {
        let config = sled::Config::new().path(dir).cache_capacity(MEMORY);
        let db = match config.open() {
            Ok(db) => db,
            Err(error) => {
                tracing::warn!(%error, "the applied state's database is made again");
                fs::remove_dir_all(dir).map_err(CacheError::Remove)?;
                config.open()?
            }
        };
        Ok(Self { db })
    }

    /// What was kept, if it reads well.
    pub(crate) fn load(&self) -> Option<Applied> {
        let bytes = self.db.get(KEY).ok()??;
        let kept: Kept = serde_json::from_slice(&bytes).ok()?;
        if crc32c(kept.body.as_bytes()) != kept.crc {
            return None;
        }
        serde_json::from_str(&kept.body).ok()
    }

    /// Keeps the state. sled writes it out some time later.
    pub(crate) fn save(&self, applied: &Applied) -> Result<(), CacheError> {
        let body = serde_json::to_string(applied)?;
        let kept = Kept { crc: crc32c(body.as_bytes()), body };
        self.db.insert(KEY, serde_json::to_vec(&kept)?)?;
        Ok(())
    }

    /// Forgets the state, before another one is installed.
    pub(crate) fn clear(&self) -> Result<(), CacheError> {
        self.db.remove(KEY)?;
        Ok(())
    }

    /// Writes out what is kept.
    pub(crate) fn flush(&self) -> Result<(), CacheError> {
        self.db.flush()?;
        Ok(())
    }
}
