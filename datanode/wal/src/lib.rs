//! Framed, checksummed, append-only segment logs, and the small durable records beside them.
//!
//! Everything here is blocking and deterministic and starts no thread: the owner decides where the
//! I/O runs. It goes through [`Storage`], so the same code runs on files, in memory, and on a
//! simulated disk that tears, loses and reorders what was not synced.
//!
//! * [`Storage`], [`RawFile`]: what a log needs of a file system. [`Files`] is the real one,
//!   [`Memory`] the simulated one with its faults.
//! * [`Slots`]: one small record in two slots, replaced atomically.
//! * [`Log`]: records with consecutive indexes in preallocated segment files.

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

mod bytes_io;
mod crc;
mod error;
mod files;
mod frame;
mod log;
mod manage;
mod memory;
mod reader;
mod scan;
mod segment;
mod slots;
mod storage;

pub use bytes_io::{Get, Put, is_zero};
pub use crc::{Crc, crc32c};
pub use error::{LogError, SlotError};
pub use files::Files;
pub use frame::{FRAME_HEADER, Marks, SECTOR};
pub use log::{Append, Appended, Located, Log, LogOptions, Place, Record, Sync, Synced};
pub use manage::{Housekeeping, Housekept};
pub use memory::{Fault, Memory, OpKind};
pub use reader::{LogReader, ReadRecord};
pub use scan::{Expect, Opened, Scanned, Unfit, Visit};
pub use segment::{HEADER_BYTES, Owner, Segment};
pub use slots::Slots;
pub use storage::{Authenticator, RawFile, Storage, Tag, read_exact, write_all};
