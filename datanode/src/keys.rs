//! The node's keys, and the replicas that are encrypted with them.

use std::path::Path;
use std::sync::Arc;

use sbk_sealed::{KeyError, KeyRing, SealError, Sealed};
use sbk_store::Identity;
use sbk_wal::{Owner, Storage};

/// What a node was given to encrypt with, if anything.
#[derive(Clone, Debug, Default)]
pub struct Keys(Option<Arc<KeyRing>>);

impl Keys {
    /// Those of the key file, none without one. Blocks.
    ///
    /// # Errors
    /// If the file can't be read, holds no keys, or may be read by others.
    pub fn read(key_file: Option<&Path>) -> Result<Self, KeyError> {
        let ring = key_file.map(KeyRing::read).transpose()?;
        if let Some(ring) = &ring {
            let older = ring.ids().skip(1).map(|id| id.to_string()).collect::<Vec<_>>().join(", ");
            tracing::info!(key = %ring.first(), older, "replicas of encrypted volumes can be held");
        }
        Ok(Self(ring.map(Arc::new)))
    }

    /// Whether there are any.
    pub fn are_there(&self) -> bool {
        self.0.is_some()
    }

    /// The files of a replica that is to be made in `files`, encrypted. Again for one that is there
    /// it changes nothing.
    ///
    /// # Errors
    /// If there are no keys, or its key can't be written.
    pub fn make(
        &self,
        files: Arc<dyn Storage>,
        replica: &Identity,
    ) -> Result<Arc<dyn Storage>, SealError> {
        let Some(ring) = &self.0 else {
            return Err(SealError::NoKeys { path: files.describe("") });
        };
        Ok(Arc::new(Sealed::create(files, owner(replica), ring)?))
    }

    /// A replica's files, decrypted if they are encrypted.
    ///
    /// # Errors
    /// If they are, and can't be with these keys.
    pub fn open(
        &self,
        files: Arc<dyn Storage>,
        replica: &Identity,
    ) -> Result<Arc<dyn Storage>, SealError> {
        let listed = Sealed::is_on(&*files);
        let listed = listed.map_err(|source| SealError::Io {
            doing: "list",
            path: files.describe(""),
            source,
        })?;
        match listed {
            true => Ok(Arc::new(Sealed::open(files, owner(replica), self.0.as_deref())?)),
            false => Ok(files),
        }
    }
}

fn owner(replica: &Identity) -> Owner {
    Owner::new(*replica.volume.0.as_bytes(), *replica.replica.0.as_bytes())
}
