//! The local data of one replica: WAL, extents, superblock.
//!
//! A [`Store`] is owned by one task and is the only writer of its directory. What may take long is
//! handed out as a plan that runs on a thread that may block ([`WalBatch`], [`ReadPlan`],
//! [`CommittedReadPlan`], [`SettledReadPlan`], [`AllocationPlan`], [`FindDataPlan`], [`LogReadPlan`],
//! [`CheckpointPlan`], [`DigestPlan`]); its outcome is given back. The rest blocks the caller, durably done when it returns:
//! [`Store::persist`], [`Store::cut`], [`Store::wipe`], [`Store::finish_rebuild`].
//!
//! An entry is readable and counts as logged once it was appended; it is durable once its batch is
//! back; once it is committed as well, a checkpoint moves it to the extents, and its segment can
//! go. Extents hold nothing that is not committed. `docs/on-disk-format.md` has every file.

mod ages;
mod allocation;
mod backing;
mod base;
mod batch;
mod blocks;
mod checkpoint;
mod codec;
mod committed;
mod core;
mod data_device;
mod data_dir;
mod data_dirs;
mod digest;
mod entries;
pub mod entry;
mod error;
mod feed;
mod homes;
mod identity;
mod image;
mod map;
mod open;
mod placement;
mod proofs;
mod read;
mod references;
mod reopen;
mod retention;
mod stamper;
mod superblock;
mod tail_memory;
mod tails;

use std::ops::Range;

use sbk_engine::replication::log::{EntryHeader, EntryKind};
use sbk_engine::types::REGION_BLOCKS;

pub use self::allocation::{AllocationPlan, FindDataPlan, Run};
pub use self::backing::{Backing, BackingSpace, Place};
pub use self::batch::{BatchResult, SyncResult, WalBatch, WalSync};
pub use self::checkpoint::{CheckpointDone, CheckpointPlan};
pub use self::committed::CommittedReadPlan;
pub use self::core::{Pressure, Store};
pub use self::data_dir::DataDir;
pub use self::data_dirs::{DataDirs, Member, Opened};
pub use self::digest::{Digest, DigestPlan};
pub use self::error::{LogReadError, ReadError, RottenBlock, StoreError};
pub use self::feed::{LogEntry, LogReadPlan};
pub use self::identity::{DirId, NodeError};
pub use self::open::{CreateSpec, SUPERBLOCK, StoreOptions};
pub use self::read::{ReadPlan, SettledBlocks, SettledReadPlan};
pub use self::reopen::{Failures, Reopening, is_out_of_space};
pub use self::superblock::Identity;
pub use self::tail_memory::TailMemory;
pub use self::tails::Tails;

/// The blocks that an entry changes in a volume of `blocks` blocks, and whether it brings data for
/// them; otherwise they become zeros. A volume that shrinks loses what lies behind its new end.
fn effect(header: &EntryHeader, blocks: u64) -> Option<(Range<u64>, bool)> {
    match header.kind {
        EntryKind::Write { lba, blocks } => Some((lba.0..lba.0 + u64::from(blocks), true)),
        EntryKind::Trim { lba, blocks } | EntryKind::Zero { lba, blocks } => {
            Some((lba.0..lba.0 + u64::from(blocks), false))
        }
        EntryKind::Resize { blocks: new } if new < blocks => Some((new..blocks, false)),
        EntryKind::Resize { .. } | EntryKind::Attach { .. } | EntryKind::Close { .. } => None,
    }
}

/// The regions that a range of blocks touches.
fn regions_of(range: &Range<u64>) -> Range<u64> {
    range.start / REGION_BLOCKS..range.end.div_ceil(REGION_BLOCKS)
}
