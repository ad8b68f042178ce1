//! The node's keys, and the replicas that are encrypted with them.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sbk_engine::types::VolumeId;
use sbk_sealed::{KeyError, KeyRing, SEAL, SealError, Sealed};
use sbk_store::{Identity, SUPERBLOCK};
use sbk_wal::{Owner, Storage};

/// What a node was given to encrypt with, if anything, and what is to be encrypted.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    ring: Option<Arc<KeyRing>>,
    volumes: Arc<Mutex<Volumes>>,
}

/// A replica's files alone don't say that they should be encrypted: somebody may have put others in their place. The
/// masters know.
#[derive(Debug, Default)]
struct Volumes {
    /// Those whose replicas are to be encrypted, as far as the masters have been heard.
    encrypted: BTreeSet<VolumeId>,
    /// Those of which a replica was opened that is not.
    plain: BTreeSet<VolumeId>,
}

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
        Ok(Self { ring: ring.map(Arc::new), volumes: Arc::default() })
    }

    /// Whether there are any.
    pub fn are_there(&self) -> bool {
        self.ring.is_some()
    }

    /// The files of a replica that is to be made in `files`, encrypted. Of one that is made already, those that
    /// it has; what the making of one that was cut short has left can't be read any more.
    ///
    /// # Errors
    /// If there are no keys, its key can't be written, or that of one that is made can't be used.
    pub fn make(
        &self,
        files: Arc<dyn Storage>,
        replica: &Identity,
    ) -> Result<Arc<dyn Storage>, SealError> {
        let Some(ring) = &self.ring else {
            return Err(SealError::NoKeys { path: files.describe("") });
        };
        let names = listed(&files, files.list(""))?;
        if !names.iter().any(|name| name == SUPERBLOCK) {
            return Ok(Arc::new(Sealed::create(files, owner(replica), ring)?));
        }
        match listed(&files, Sealed::is_on(&*files))? {
            true => self.open(files, replica),
            false => Err(SealError::Missing { path: files.describe(SEAL) }),
        }
    }

    /// A replica's files, decrypted if they are encrypted.
    ///
    /// # Errors
    /// If they are, and can't be with these keys; if they are not, and the masters said that they should be.
    pub fn open(
        &self,
        files: Arc<dyn Storage>,
        replica: &Identity,
    ) -> Result<Arc<dyn Storage>, SealError> {
        match listed(&files, Sealed::is_on(&*files))? {
            true => Ok(Arc::new(Sealed::open(files, owner(replica), self.ring.as_deref())?)),
            false => {
                let mut volumes = self.volumes();
                if volumes.encrypted.contains(&replica.volume) {
                    return Err(SealError::Missing { path: files.describe(SEAL) });
                }
                volumes.plain.insert(replica.volume);
                Ok(files)
            }
        }
    }

    /// The masters say that these volumes are encrypted, and no others. Returns those of them of which a replica was
    /// opened that is not, once.
    pub fn expect(&self, encrypted: BTreeSet<VolumeId>) -> Vec<VolumeId> {
        let mut volumes = self.volumes();
        let wrong = volumes.plain.intersection(&encrypted).copied().collect();
        volumes.plain.retain(|volume| !encrypted.contains(volume));
        volumes.encrypted = encrypted;
        wrong
    }

    fn volumes(&self) -> MutexGuard<'_, Volumes> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn listed<T>(files: &Arc<dyn Storage>, result: io::Result<T>) -> Result<T, SealError> {
    result.map_err(|source| SealError::Io { doing: "list", path: files.describe(""), source })
}

fn owner(replica: &Identity) -> Owner {
    Owner::new(*replica.volume.0.as_bytes(), *replica.replica.0.as_bytes())
}

#[cfg(test)]
mod tests {
    use sbk_engine::types::{LossGeneration, ReplicaId};
    use sbk_store::{CreateSpec, Store, StoreOptions};
    use sbk_wal::Memory;
    use uuid::Uuid;

    use super::*;

    fn keys(digit: &str) -> Keys {
        let ring = KeyRing::parse(&digit.repeat(64), Path::new("keys")).expect("a key");
        Keys { ring: Some(Arc::new(ring)), ..Keys::default() }
    }

    /// A making that was cut short is begun anew, also with another key; a replica that is made keeps its key.
    #[test]
    fn a_key_is_made_anew_until_its_replica_is_made() {
        let disk = Memory::new(1);
        let files = || -> Arc<dyn Storage> { Arc::new(disk.clone()) };
        let volume = VolumeId(Uuid::from_u128(1));
        let identity = Identity { volume, replica: ReplicaId(Uuid::from_u128(2)) };
        let spec = CreateSpec { identity, blocks: 16, loss_generation: LossGeneration(0) };
        let left = keys("a").make(files(), &identity).expect("made");
        left.create("extents").expect("the beginning of a replica");

        let sealed = keys("b").make(files(), &identity).expect("begun anew");
        Store::create(&sealed, &spec, &StoreOptions::default()).expect("a replica");
        for _ in 0..2 {
            let again = keys("b").make(files(), &identity).expect("it is there");
            Store::create(&again, &spec, &StoreOptions::default()).expect("and stays as it is");
        }
        let other = keys("a").make(files(), &identity).expect_err("it is wrapped with the other");
        assert!(matches!(other, SealError::UnknownKey { .. }), "{other}");
        disk.remove(SEAL).expect("removed");
        let lost = keys("b").make(files(), &identity).expect_err("its key is lost");
        assert!(matches!(lost, SealError::Missing { .. }), "{lost}");
    }

    /// Files that are not encrypted are not a replica of an encrypted volume, whether the masters are heard before they
    /// are opened or after.
    #[test]
    fn plain_files_in_the_place_of_encrypted_ones_are_told() {
        let disk = Memory::new(1);
        let files = || -> Arc<dyn Storage> { Arc::new(disk.clone()) };
        let identity = |volume| {
            let volume = VolumeId(Uuid::from_u128(volume));
            Identity { volume, replica: ReplicaId(Uuid::from_u128(9)) }
        };
        let (secret, open) = (identity(1), identity(2));
        let keys = keys("a");
        for replica in [secret, open] {
            keys.open(files(), &replica).expect("nothing is known of it yet");
        }
        assert_eq!(keys.expect([secret.volume].into()), [secret.volume]);
        assert_eq!(keys.expect([secret.volume].into()), [], "it was told");
        let refused = keys.open(files(), &secret).expect_err("it is not encrypted");
        assert!(matches!(refused, SealError::Missing { .. }), "{refused}");
        keys.open(files(), &open).expect("it is not to be encrypted");
        assert_eq!(keys.expect([secret.volume, open.volume].into()), [open.volume]);
    }
}
