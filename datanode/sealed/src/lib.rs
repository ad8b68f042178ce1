//! A replica's files, encrypted at rest.
//!
//! A [`Sealed`] stands between a replica's store and what keeps its files, a directory or a block device. Every
//! byte of every file is encrypted (AES-256-XTS, each sector of 512 bytes by itself), whatever it says: blocks, log, superblock,
//! checksums. To whoever finds the disk, all that is left to see is which sectors are in use, how long the log's files are, and what
//! changes between two looks.
//!
//! The store above sees the disk that it was made for. A sector is written whole or not at all, encrypted as well
//! as plain; what was not synced may be there, be lost, or be there in part; a hole reads as zeros. That is why each sector keeps its
//! length, and why nothing beside it has to be written with it.
//!
//! # Keys
//! Each replica has a key of its own, random, in the file `seal`, wrapped by a key of the node's key file ([`KeyRing`]). Each kind of file (by the
//! first part of its path) has one that is derived from it. So equal sectors of two replicas, or of a replica's log and its image, have
//! nothing in common; a file keeps its content when it is renamed within its kind.
//!
//! # What it does not do
//! XTS proves nothing. What was overwritten, moved or put back as it was before is found out by the store above, which tags
//! what it writes with a key that it has from here ([`Storage::authenticator`](sbk_wal::Storage::authenticator)).

mod file;
mod keys;
mod sealed;
mod xts;

pub use keys::{KeyError, KeyId, KeyRing};
pub use sealed::{SEAL, SealError, Sealed};
