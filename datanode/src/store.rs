//! The store as a volume task drives it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use sbk_engine::recovery::FailureKind;
use sbk_engine::replication::io::{Kept, Opened};
use sbk_engine::replication::log::{BlockRange, LogState};
use sbk_engine::replication::message::{Incomplete, RecoveryId};
use sbk_engine::types::{
    BootId, Incarnation, Lba, LossGeneration, Lsn, NodeId, ReplicaId, VolumeId,
};
use sbk_store::{
    BatchResult, CheckpointDone, CheckpointPlan, CreateSpec, DataDir, Identity, LogReadError,
    LogReadPlan, Pressure, Store, StoreError, StoreOptions, WalBatch,
};
use sbk_wal::Storage;

use crate::node::Storage as NodeStorage;
use crate::transport::{EntriesLost, ReadEntries, WireEntry};
use crate::volume::disk::{
    CommittedReadPlan, Disk, DiskError, OpenDisk, ReadPlan, RegionDigest, VerifyPlan, Work,
};

/// A replica's files, to be opened by its volume task, again after each failure.
#[derive(Debug)]
pub struct ReplicaFiles {
    storage: Arc<dyn Storage>,
    identity: Identity,
    process: u64,
    boot: BootId,
    options: StoreOptions,
    opens: AtomicU64,
}

impl ReplicaFiles {
    /// The replica in `storage`. `process` is the incarnation of the process.
    pub fn new(
        storage: Arc<dyn Storage>,
        identity: Identity,
        process: u64,
        boot: BootId,
        options: StoreOptions,
    ) -> Self {
        Self { storage, identity, process, boot, options, opens: AtomicU64::new(0) }
    }
}

/// A node's replicas in its data directory.
#[derive(Debug)]
pub struct Replicas {
    dir: DataDir,
    options: StoreOptions,
}

impl Replicas {
    /// Those in `dir`, each kept as `options` say.
    pub fn new(dir: DataDir, options: StoreOptions) -> Self {
        Self { dir, options }
    }
}

impl NodeStorage for Replicas {
    type Opener = ReplicaFiles;

    fn node(&self) -> NodeId {
        self.dir.node()
    }

    fn process(&self) -> u64 {
        self.dir.process()
    }

    fn boot(&self) -> BootId {
        self.dir.boot()
    }

    fn replicas(&self) -> Result<Vec<(VolumeId, ReplicaId)>, DiskError> {
        let found = self.dir.replicas().map_err(disk_error("list the replicas"))?;
        Ok(found.into_iter().map(|i| (i.volume, i.replica)).collect())
    }

    fn opener(&self, volume: VolumeId, replica: ReplicaId) -> ReplicaFiles {
        let identity = Identity { volume, replica };
        let storage = self.dir.storage(&identity);
        let (process, boot) = (self.dir.process(), self.dir.boot());
        ReplicaFiles::new(storage, identity, process, boot, self.options.clone())
    }

    fn create(&self, volume: VolumeId, replica: ReplicaId, blocks: u64) -> Result<(), DiskError> {
        let identity = Identity { volume, replica };
        // A replica that never reconciled did so under no loss generation.
        let spec = CreateSpec { identity, blocks, loss_generation: LossGeneration(0) };
        self.dir.create(&spec, &self.options).map_err(disk_error("make a replica"))
    }

    fn remove(&self, volume: VolumeId, replica: ReplicaId) -> Result<(), DiskError> {
        let identity = Identity { volume, replica };
        self.dir.remove(&identity).map_err(disk_error("remove a replica"))
    }

    fn space(&self) -> Result<(u64, u64), DiskError> {
        self.dir.space().map_err(disk_error("look at the free space"))
    }
}

fn disk_error<E>(doing: &'static str) -> impl FnOnce(E) -> DiskError
where
    E: std::error::Error + Send + Sync + 'static,
{
    move |source| DiskError { doing, source: Box::new(source) }
}

impl OpenDisk for ReplicaFiles {
    type Disk = Store;

    fn open(&self) -> Result<(Store, Opened), DiskError> {
        let open = self.opens.fetch_add(1, Ordering::SeqCst) + 1;
        let incarnation = Incarnation { process: self.process, open };
        Store::open(&self.storage, self.identity, incarnation, self.boot, self.options.clone())
            .map_err(disk_error("open"))
    }
}

impl Work for WalBatch {
    type Outcome = BatchResult;
    fn run(self) -> BatchResult {
        WalBatch::run(self)
    }
}

/// A step of the checkpoint.
#[derive(Debug)]
pub struct StoreCheckpoint(CheckpointPlan);

impl Work for StoreCheckpoint {
    type Outcome = CheckpointDone;
    fn run(self) -> CheckpointDone {
        self.0.run()
    }
}

impl ReadEntries for LogReadPlan {
    fn next(&mut self, bytes: usize, entries: usize) -> Result<Vec<WireEntry>, EntriesLost> {
        let read = LogReadPlan::next(self, bytes, entries).map_err(lost)?;
        Ok(read
            .into_iter()
            .map(|entry| WireEntry { header: entry.header, crc: entry.crc, payload: entry.payload })
            .collect())
    }
}

fn lost(error: LogReadError) -> EntriesLost {
    match error {
        LogReadError::Recycled { .. } => EntriesLost::Gone(FailureKind::WalRecycled),
        LogReadError::Unreadable { lsn, what } => EntriesLost::Unreadable { lsn, what },
    }
}

impl Disk for Store {
    type Batch = WalBatch;
    type Checkpoint = StoreCheckpoint;

    fn persist(&mut self, kept: &Kept) -> Result<(), DiskError> {
        Store::persist(self, kept).map_err(disk_error("write the superblock"))
    }

    fn record_durable(&mut self) -> Result<(), DiskError> {
        Store::record_durable(self).map_err(disk_error("write the superblock"))
    }

    fn cut(&mut self, end: Lsn, kept: &Kept) -> Result<(), DiskError> {
        Store::cut(self, end, kept).map_err(disk_error("cut the log"))
    }

    fn wipe(&mut self, mark: &Incomplete, state: &LogState, kept: &Kept) -> Result<(), DiskError> {
        Store::wipe(self, mark, state, kept).map_err(disk_error("wipe the replica"))
    }

    fn finish_rebuild(&mut self, _session: RecoveryId, kept: &Kept) -> Result<(), DiskError> {
        Store::finish_rebuild(self, kept).map_err(disk_error("finish the rebuild"))
    }

    fn write_base(&mut self, lba: Lba, data: &Bytes) -> Result<(), DiskError> {
        Store::write_base(self, lba, data).map_err(disk_error("write base blocks"))
    }

    fn write_regions(&mut self, first: u64, lsns: &[Lsn]) -> Result<(), DiskError> {
        self.set_regions(first, lsns);
        Ok(())
    }

    fn append(&mut self, entries: Vec<WireEntry>) -> Result<(), DiskError> {
        let doing = "append to the WAL";
        for WireEntry { header, crc, payload } in entries {
            Store::append(self, header, crc, payload).map_err(disk_error(doing))?;
        }
        Ok(())
    }

    fn take_batch(&mut self) -> Option<WalBatch> {
        Store::take_batch(self)
    }

    fn batch_done(&mut self, outcome: BatchResult) -> Result<Lsn, DiskError> {
        Store::batch_done(self, outcome).map_err(disk_error("write the WAL"))
    }

    fn committed(&mut self, lsn: Lsn) {
        self.set_committed(lsn);
    }

    fn take_checkpoint(&mut self, urgent: bool) -> Option<StoreCheckpoint> {
        let budget = self.checkpoint_budget(urgent)?;
        self.plan_checkpoint(budget).map(StoreCheckpoint)
    }

    fn checkpoint_done(&mut self, outcome: CheckpointDone) -> Result<(Lsn, Lsn), DiskError> {
        Store::checkpoint_done(self, outcome).map_err(disk_error("write a checkpoint"))
    }

    fn wal_full(&self) -> bool {
        self.wal_pressure() == Pressure::Full
    }

    fn pin(&mut self, session: RecoveryId, from: Lsn) {
        Store::pin(self, session, from);
    }

    fn unpin(&mut self, session: RecoveryId) {
        Store::unpin(self, session);
    }

    fn read(&self, range: BlockRange) -> ReadPlan {
        let plan = self.plan_read(range);
        ReadPlan::new(move || plan.run().map_err(disk_error("read blocks")))
    }

    fn allocation(&self, range: BlockRange, most: usize) -> ReadPlan<Vec<sbk_store::Run>> {
        let plan = self.plan_allocation(range);
        ReadPlan::new(move || plan.run(most).map_err(disk_error("look which blocks are holes")))
    }

    fn read_committed(&self, range: BlockRange) -> CommittedReadPlan {
        let plan = self.plan_read_committed(range);
        CommittedReadPlan::new(move || plan.run().map_err(disk_error("read blocks")))
    }

    fn read_log(&self, first: Lsn, last: Lsn) -> Result<Box<dyn ReadEntries>, EntriesLost> {
        match Store::read_log(self, first, last) {
            Ok(plan) => Ok(Box::new(plan)),
            // The segments that a session had pinned were given up.
            Err(LogReadError::Recycled { .. }) if self.lost_a_pin() => {
                Err(EntriesLost::Gone(FailureKind::PinLost))
            }
            Err(error) => Err(lost(error)),
        }
    }

    fn unreadable(&mut self, lsn: Lsn, what: &str) -> Result<(Lsn, Lsn), DiskError> {
        Store::unreadable(self, lsn, what).map_err(disk_error("read its log"))
    }

    fn allocated_regions(&self) -> Vec<u64> {
        Store::allocated_regions(self)
    }

    fn region_table(&self) -> Vec<Lsn> {
        self.regions()
    }

    fn verify(&self, first: u64, regions: u64) -> VerifyPlan {
        let mut plan = self.plan_digest(first, regions);
        Box::new(move || {
            plan.next_region().map(|found| match found {
                Ok(Some(digest)) => Ok(RegionDigest {
                    region: digest.region,
                    lsn: digest.lsn,
                    digest: digest.digest,
                    committed: digest.committed,
                    damaged: digest.damaged,
                }),
                Ok(None) => {
                    let cause = "a checkpoint that could not wait moved the image on; ask again";
                    let cause = StoreError::Failed { cause: cause.to_owned() };
                    Err(disk_error("compute a digest")(cause))
                }
                Err(error) => Err(disk_error("compute a digest")(error)),
            })
        })
    }

    fn close(self) -> Result<(), DiskError> {
        self.close_clean().map_err(disk_error("close in order"))
    }
}
