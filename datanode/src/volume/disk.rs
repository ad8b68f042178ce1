//! What a volume task needs of its replica's store.
//!
//! The task is the only writer. Whatever may take long is handed out as a *plan*: a piece of work
//! that holds all it needs, runs on a thread that may block, and whose result is given back. No
//! plan changes what the task sees before it was given back.

use bytes::Bytes;
use sbk_engine::replication::io::{Kept, Opened};
use sbk_engine::replication::log::{BlockRange, LogState};
use sbk_engine::replication::message::{Incomplete, RecoveryId};
use sbk_engine::replication::room::Space;
use sbk_engine::types::{Lba, Lsn};
use sbk_store::{ReadError, Run, SettledBlocks};
use tokio::sync::watch;

use crate::transport::{EntriesLost, ReadEntries, WireEntry};

/// Why a store can't go on. After one the store is dropped and opened anew.
#[derive(Debug, thiserror::Error)]
#[error("the store failed to {doing}: {source}")]
pub struct DiskError {
    /// What it was doing, as in `append to the WAL`.
    pub doing: &'static str,
    /// Why it could not.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl DiskError {
    /// The blocks that rotted, if that is all that is wrong: another replica may have them.
    pub fn rotten(&self) -> Option<Vec<Lba>> {
        match self.source.downcast_ref() {
            Some(ReadError::Rotten { blocks, .. }) => {
                Some(blocks.iter().map(|block| block.lba).collect())
            }
            Some(ReadError::Damaged { .. } | ReadError::Io { .. } | ReadError::Log(_)) | None => {
                None
            }
        }
    }
}

/// A read that was planned: of the bytes of blocks as they were logged when the plan was made,
/// unless `T` says otherwise. May block; may run on any thread.
pub struct ReadPlan<T = Bytes>(Box<dyn FnOnce() -> Result<T, DiskError> + Send>);

/// Reads blocks as they were committed when the plan was made, or later; with them comes the
/// committed LSN that none of them is newer than.
pub type CommittedReadPlan = ReadPlan<(Bytes, Lsn)>;

impl<T> std::fmt::Debug for ReadPlan<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ReadPlan")
    }
}

impl<T> ReadPlan<T> {
    /// A plan that does `read`.
    pub fn new(read: impl FnOnce() -> Result<T, DiskError> + Send + 'static) -> Self {
        Self(Box::new(read))
    }

    /// Does it.
    pub fn run(self) -> Result<T, DiskError> {
        (self.0)()
    }

    /// The plan that makes something else of what is read.
    pub fn then<U>(self, make: impl FnOnce(T) -> U + Send + 'static) -> ReadPlan<U>
    where
        T: 'static,
    {
        ReadPlan::new(move || self.run().map(make))
    }
}

/// Reads blocks as of the log's end, each by itself, for another replica; `None` if they may be of another
/// LSN, for the log or the image changed meanwhile.
pub type SettledReadPlan = ReadPlan<Option<SettledBlocks>>;

/// Work for a thread that may block, whose outcome goes back to the store.
pub trait Work: Send + 'static {
    /// What it leads to.
    type Outcome: Send + 'static;
    /// Does it.
    fn run(self) -> Self::Outcome;
}

/// Digest of one region of the committed image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionDigest {
    /// Which.
    pub region: u64,
    /// Last LSN that wrote it, 0 if none did.
    pub lsn: Lsn,
    /// CRC-32C over its bytes, zeros included.
    pub digest: u32,
    /// As of which committed LSN.
    pub committed: Lsn,
    /// How many blocks of the region the volume has, as of that.
    pub blocks: u64,
    /// Blocks that don't match their checksums, ascending.
    pub damaged: Vec<Lba>,
}

/// Reads digests, region by region. May block; may run on any thread.
pub type VerifyPlan = Box<dyn FnMut() -> Option<Result<RegionDigest, DiskError>> + Send>;

/// One replica's store, as its volume task drives it. Methods that return a `Result<(), _>` and
/// take `&mut self` block until done and durable.
pub trait Disk: Send + Sized + 'static {
    /// A batch of the WAL: written, and synced if that was asked for, by running it.
    type Batch: Work;
    /// A sync of batches that were only written.
    type Sync: Work;
    /// A step of the checkpoint.
    type Checkpoint: Work;

    /// Writes and syncs the superblock.
    fn persist(&mut self, kept: &Kept) -> Result<(), DiskError>;
    /// Records durably how far the log is durable now. Whatever of it can't be read at the next
    /// opening is damage then, and not the torn rest of a write that nobody was promised.
    fn record_durable(&mut self) -> Result<(), DiskError>;
    /// Ends the log at `end`: the rest is overwritten and synced, then the superblock written.
    fn cut(&mut self, end: Lsn, kept: &Kept) -> Result<(), DiskError>;
    /// Writes the superblock with its mark, then drops the WAL, and without `mark.from` the extents; the
    /// log starts anew at `mark.base + 1` with `state`.
    fn wipe(&mut self, mark: &Incomplete, state: &LogState, kept: &Kept) -> Result<(), DiskError>;
    /// Syncs what the base lane wrote, then writes the superblock, which has no mark any more.
    fn finish_rebuild(&mut self, session: RecoveryId, kept: &Kept) -> Result<(), DiskError>;
    /// Base blocks; those that a checkpoint has written since the wipe are left alone. An entry that
    /// is only logged may still be cut, and then the base's block is what is left.
    fn write_base(&mut self, lba: Lba, data: &Bytes) -> Result<(), DiskError>;
    /// Base blocks that are zeros, in a delta; as [`Disk::write_base`].
    fn write_base_zeros(&mut self, range: BlockRange) -> Result<(), DiskError>;
    /// The sender's region LSNs from region `first` on.
    fn write_regions(&mut self, first: u64, lsns: &[Lsn]) -> Result<(), DiskError>;

    /// Adds entries to the log in memory; a batch makes them durable.
    fn append(&mut self, entries: Vec<WireEntry>) -> Result<(), DiskError>;
    /// What was appended since the last batch, if there is any and no batch is out. Without `sync` it is
    /// only written, and a [`Disk::Sync`] is to follow.
    fn take_batch(&mut self, sync: bool) -> Option<Self::Batch>;
    /// A sync of what was only written, if there is any and no sync is out.
    fn take_sync(&mut self) -> Option<Self::Sync>;
    /// Takes a sync's outcome back. Returns the log's durable end.
    fn sync_done(&mut self, outcome: <Self::Sync as Work>::Outcome) -> Result<Lsn, DiskError>;
    /// The end of what is in the WAL's file, synced or not.
    fn written(&self) -> Lsn;
    /// Takes a batch's outcome back. Returns the log's durable end.
    fn batch_done(&mut self, outcome: <Self::Batch as Work>::Outcome) -> Result<Lsn, DiskError>;

    /// Extents may take everything up to `lsn`.
    fn committed(&mut self, lsn: Lsn);
    /// Has the checkpoint go on to `upto`, whether it is due or not. If it is there, returns
    /// `(checkpoint, S)`.
    fn want_checkpoint(&mut self, upto: Lsn) -> Option<(Lsn, Lsn)>;
    /// The next step of the checkpoint, if one is due and none is out. `urgent`: the WAL is needed.
    fn take_checkpoint(&mut self, urgent: bool) -> Option<Self::Checkpoint>;
    /// Takes a step's outcome back. Returns `(checkpoint, S)`.
    fn checkpoint_done(
        &mut self,
        outcome: <Self::Checkpoint as Work>::Outcome,
    ) -> Result<(Lsn, Lsn), DiskError>;
    /// The disk is short of room, or is not any more: what can do with less takes less.
    fn set_short(&mut self, short: bool);
    /// Whether nothing more can be appended until a checkpoint made room.
    fn wal_full(&self) -> bool;

    /// Keeps the WAL from `from` on.
    fn pin(&mut self, session: RecoveryId, from: Lsn);
    /// Ends a pin.
    fn unpin(&mut self, session: RecoveryId);

    /// Reads blocks as they are logged now.
    fn read(&self, range: BlockRange) -> ReadPlan;
    /// Looks which of these blocks are holes as they are logged now: tells all runs, or the first
    /// `most`.
    fn allocation(&self, range: BlockRange, most: usize) -> ReadPlan<Vec<Run>>;
    /// Looks for the first block from `first` on and before `end` that is no hole, as it is logged now.
    fn find_data(&self, first: Lba, end: u64) -> ReadPlan<Option<Lba>>;
    /// Reads blocks as they are committed now, whatever is logged above: nothing in them can be cut
    /// any more.
    fn read_committed(&self, range: BlockRange) -> CommittedReadPlan;
    /// Those of the entries `first..=last` that can be had without blocking: the newest of them,
    /// without a gap, and at least all that are not durable yet. Nothing else could be sent to the
    /// replicas while the local sync is under way.
    fn recent(&self, first: Lsn, last: Lsn) -> Vec<WireEntry>;
    /// Reads blocks for another replica, as they are logged now.
    fn read_settled(&self, range: BlockRange) -> SettledReadPlan;
    /// Reads entries `first..=last` of the log.
    fn read_log(&self, first: Lsn, last: Lsn) -> Result<Box<dyn ReadEntries>, EntriesLost>;
    /// An entry of the log can't be read back. Fails the store unless the entry is in the image;
    /// then the log counts as recycled so far. Returns `(checkpoint, S)`.
    fn unreadable(&mut self, lsn: Lsn, what: &str) -> Result<(Lsn, Lsn), DiskError>;
    /// The regions that a base lane with this mark sends, ascending: those that may be anything but
    /// zeros, or those that were written since `mark.from`.
    fn base_regions(&self, mark: &Incomplete) -> Vec<u64>;
    /// Last committed LSN of each region, from region 0; 0 where nothing was written. Regions beyond the
    /// volume's end are in it. A receiver takes the highest of them for committed.
    fn region_table(&self) -> Vec<Lsn>;
    /// Digests of `regions` regions of the committed image from `first` on; 0 means to the end.
    fn verify(&self, first: u64, regions: u64) -> VerifyPlan;
    /// Ends a run of the store in order: what is durable is marked as cleanly closed.
    fn close(self) -> Result<(), DiskError>;
}

/// Opens a replica's store, again and again if need be. Each opening counts up
/// `incarnation.open`.
pub trait OpenDisk: Send + Sync + 'static {
    /// What it opens.
    type Disk: Disk;
    /// Opens the store. Blocks.
    fn open(&self) -> Result<(Self::Disk, Opened), DiskError>;
    /// Bytes that are free where its files are; `None` if that can't be told. Blocks briefly.
    fn free_bytes(&self) -> Option<u64>;
    /// The room there, from now on.
    fn space(&self) -> watch::Receiver<Space>;
}
