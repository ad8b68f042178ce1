//! Files on a raw block device: what a replica's store needs of a file system, and no more.
//!
//! A [`Device`] is one block device that belongs to one node. It keeps files in directories, each file mapped
//! to chunks of 256 KiB with one bit for each page of 4 KiB that says whether anything was written to it. A page whose bit is not
//! set is zeros, whatever lies on the device there.
//!
//! All that says where files are (the *map*) is held in memory. It changes durably by records in a
//! journal, and when the journal is full by a snapshot of all of it. Both exist twice, at the device's head and at its end.
//!
//! # Orders
//! These are what everything rests on; each stands for what goes wrong without it.
//!
//! 1. Data is durable before the record that maps it: else a crash shows what another file left there.
//! 2. A chunk that was let go is used again only once the record of that is durable: else a crash
//!    shows one file's data in another.
//! 3. A sync that fails fails all that is open on the device: the kernel tells of lost data once, to whoever syncs first,
//!    and any file's may be among it.
//! 4. What is found at an opening is written again as it was and synced before anything depends on it: it may be
//!    in the page cache only.
//!
//! # Memory
//! 48 bytes at most for each chunk in use (192 MiB for 1 TiB of them), one bit for each chunk there is, and
//! 256 bytes for each file. While a snapshot is written it is in memory as well: 16 bytes for each chunk in use.

/// Whether one of these known bugs is put back: `false`, a constant, but with the feature `bugs`.
#[cfg(feature = "bugs")]
macro_rules! bug {
    ($($name:ident)|+) => {
        $(sbk_engine::bugs::on(sbk_engine::bugs::Bug::$name))||+
    };
}
#[cfg(not(feature = "bugs"))]
macro_rules! bug {
    ($($name:ident)|+) => {
        false
    };
}

mod alloc;
mod block;
mod change;
mod device;
mod error;
mod file;
mod flush;
mod journal;
mod layout;
mod load;
mod map;
mod signature;
mod volume;

pub use block::open_exclusive;
pub use device::{Device, Directory, FormatOptions};
pub use error::DeviceError;
pub use layout::{CHUNK, PAGE};
