//! The store as a volume task drives it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use sbk_engine::recovery::FailureKind;
use sbk_engine::replication::io::{Kept, Opened};
use sbk_engine::replication::log::{BlockRange, LogState};
use sbk_engine::replication::message::{Incomplete, RecoveryId};
use sbk_engine::replication::room::Space;
use sbk_engine::types::{
    BootId, Incarnation, Lba, LossGeneration, Lsn, NodeId, ReplicaId, VolumeId,
};
use sbk_store::{
    Backing, BatchResult, CheckpointDone, CheckpointPlan, CreateSpec, DataDir, DataDirs, Identity,
    LogEntry, LogReadError, LogReadPlan, Member, Place, Pressure, Store, StoreError, StoreOptions,
    SyncResult, Tails, WalBatch, WalSync,
};
use sbk_wal::Storage;
use tokio::sync::watch;

use crate::disks::{self, DataDisk, Watched};
use crate::keys::Keys;
use crate::node::{NewReplica, Storage as NodeStorage};
use crate::space::{Pending, SpaceLimits};
use crate::transport::{EntriesLost, ReadEntries, WireEntry};
use crate::volume::clock;
use crate::volume::disk::{
    CommittedReadPlan, Disk, DiskError, OpenDisk, ReadPlan, RegionDigest, SettledReadPlan,
    VerifyPlan, Work,
};

/// A replica's files, to be opened by its volume task, again after each failure.
#[derive(Debug)]
pub struct ReplicaFiles {
    home: Home,
    identity: Identity,
    process: u64,
    tails: Arc<Tails>,
    options: StoreOptions,
    opens: AtomicU64,
}

/// Where a replica's files are.
#[derive(Debug)]
enum Home {
    /// On a disk, and asked for at each opening: after a failure a device gives its files anew. They may be
    /// encrypted with one of the keys.
    Disk(Arc<Watched>, Keys),
    Files(Arc<dyn Storage>),
}

impl Home {
    fn disk(&self) -> Option<&Arc<Watched>> {
        match self {
            Self::Disk(disk, _) => Some(disk),
            Self::Files(_) => None,
        }
    }

    /// The replica's files.
    fn storage(&self, replica: &Identity) -> Result<Arc<dyn Storage>, DiskError> {
        match self {
            Self::Disk(disk, keys) => {
                let dir = disk.dir().ok_or_else(away)?;
                let files = dir.storage(replica).map_err(disk_error("open its files"))?;
                keys.open(files, replica).map_err(disk_error("decrypt its files"))
            }
            Self::Files(storage) => Ok(Arc::clone(storage)),
        }
    }
}

impl ReplicaFiles {
    /// The replica in `storage`. `process` is the incarnation of the process.
    pub fn new(
        storage: Arc<dyn Storage>,
        identity: Identity,
        process: u64,
        tails: Arc<Tails>,
        options: StoreOptions,
    ) -> Self {
        Self::on(Home::Files(storage), identity, process, tails, options)
    }

    /// The same, wherever it is.
    fn on(
        home: Home,
        identity: Identity,
        process: u64,
        tails: Arc<Tails>,
        options: StoreOptions,
    ) -> Self {
        Self { home, identity, process, tails, options, opens: AtomicU64::new(0) }
    }
}

/// A node's replicas in its data directories and on its devices.
#[derive(Debug)]
pub struct Replicas {
    member: Arc<Member>,
    watched: Vec<Arc<Watched>>,
    disks: Vec<Arc<DataDisk>>,
    scratch: PathBuf,
    keys: Keys,
    tails: Arc<Tails>,
    options: StoreOptions,
}

impl Replicas {
    /// Those in `dirs`, each of which has these limits, each replica kept as `options` say, those of encrypted volumes
    /// with these keys; what tells of their
    /// tails is in `runtime_dir`, and so is what would be in a directory where there are only devices.
    pub fn new(
        dirs: DataDirs,
        limits: SpaceLimits,
        keys: Keys,
        runtime_dir: &Path,
        options: StoreOptions,
    ) -> Self {
        let DataDirs { member, dirs, missing } = dirs;
        let tails = Arc::new(Tails::new(runtime_dir.join("tails"), member.boot));
        let member = Arc::new(member);
        let away = dirs.iter().filter(|(_, dir)| dir.is_err()).count();
        let scratch = scratch(&dirs, runtime_dir);
        let watched: Vec<_> = dirs
            .into_iter()
            .map(|(place, dir)| {
                let recordings = DataDir::recordings(match &place {
                    Place::Dir(path) => path,
                    Place::Device(_) => &scratch,
                });
                Watched::start(&member, place, dir, recordings, limits)
            })
            .collect();
        let mut disks: Vec<_> = watched.iter().map(|watched| Arc::clone(&watched.disk)).collect();
        if missing.len() > away {
            // More are missing than were given and can't be used.
            disks.push(disks::not_given(&missing));
        }
        let replicas = Self { member, watched, disks, scratch, keys, tails, options };
        replicas.look();
        replicas
    }

    fn dir(&self, disk: usize) -> Result<Arc<dyn Backing>, DiskError> {
        self.watched.get(disk).and_then(|watched| watched.dir()).ok_or_else(away)
    }
}

fn away() -> DiskError {
    DiskError { doing: "use its disk", source: "it is away".into() }
}

/// A directory for small files that may be lost: the first data directory that can be used. With none but devices
/// they are in memory until the machine is booted again.
fn scratch(dirs: &[(Place, sbk_store::Opened)], runtime_dir: &Path) -> PathBuf {
    let mut directories = dirs.iter().filter(|(place, _)| matches!(place, Place::Dir(_)));
    let first = directories.clone().next();
    if let Some((place, _)) = directories.find(|(_, dir)| dir.is_ok()).or(first) {
        return place.path().to_owned();
    }
    let recordings = DataDir::recordings(runtime_dir);
    if let Err(error) = std::fs::create_dir_all(&recordings) {
        tracing::warn!(path = %recordings.display(), %error, "no recordings are kept");
    }
    runtime_dir.to_owned()
}

impl NodeStorage for Replicas {
    type Opener = ReplicaFiles;

    fn node(&self) -> NodeId {
        self.member.node
    }

    fn process(&self) -> u64 {
        self.member.process
    }

    fn boot(&self) -> BootId {
        self.member.boot
    }

    fn scratch(&self) -> PathBuf {
        self.scratch.clone()
    }

    fn encrypts(&self) -> bool {
        self.keys.are_there()
    }

    fn expect_encrypted(&self, volumes: BTreeSet<VolumeId>) -> Vec<VolumeId> {
        self.keys.expect(volumes)
    }

    fn disks(&self) -> &[Arc<DataDisk>] {
        &self.disks
    }

    fn look(&self) {
        self.watched.iter().for_each(|watched| watched.look());
        disks::share_room(&self.watched);
    }

    fn replicas(&self, disk: usize) -> Result<Vec<(VolumeId, ReplicaId)>, DiskError> {
        let found = self.dir(disk)?.replicas().map_err(disk_error("list the replicas"))?;
        Ok(found.into_iter().map(|i| (i.volume, i.replica)).collect())
    }

    fn opener(&self, disk: usize, volume: VolumeId, replica: ReplicaId) -> ReplicaFiles {
        let identity = Identity { volume, replica };
        let (process, tails) = (self.member.process, Arc::clone(&self.tails));
        let home = Home::Disk(Arc::clone(&self.watched[disk]), self.keys.clone());
        ReplicaFiles::on(home, identity, process, tails, self.options.clone())
    }

    fn create(&self, disk: usize, new: &NewReplica) -> Result<(), DiskError> {
        let NewReplica { volume, replica, blocks, encrypted } = *new;
        let identity = Identity { volume, replica };
        // A replica that never reconciled did so under no loss generation.
        let spec = CreateSpec { identity, blocks, loss_generation: LossGeneration(0) };
        let files = self.dir(disk)?.make_files(&identity).map_err(disk_error("make its place"))?;
        let files = match encrypted {
            true => self.keys.make(files, &identity).map_err(disk_error("make its key"))?,
            false => files,
        };
        Store::create(&files, &spec, &self.options).map_err(disk_error("make a replica"))
    }

    fn remove(&self, disk: usize, volume: VolumeId, replica: ReplicaId) -> Result<(), DiskError> {
        let identity = Identity { volume, replica };
        self.dir(disk)?.remove(&identity).map_err(disk_error("remove a replica"))?;
        self.tails.forget(replica);
        Ok(())
    }

    fn count_past(&self, process: u64) -> Result<(), DiskError> {
        let raise =
            |dir: Arc<dyn Backing>| dir.raise(process).map_err(disk_error("raise its count"));
        self.watched.iter().filter_map(|watched| watched.dir()).try_for_each(raise)
    }
}

fn disk_error<E>(doing: &'static str) -> impl FnOnce(E) -> DiskError
where
    E: std::error::Error + Send + Sync + 'static,
{
    move |source| DiskError { doing, source: Box::new(source) }
}

impl OpenDisk for ReplicaFiles {
    type Disk = KeptStore;

    fn free_bytes(&self) -> Option<u64> {
        Some(self.home.disk()?.dir()?.space().ok()?.free)
    }

    fn space(&self) -> watch::Receiver<Space> {
        match self.home.disk() {
            Some(disk) => disk.space.watch(),
            None => watch::Sender::default().subscribe(),
        }
    }

    fn open(&self) -> Result<(KeptStore, Opened), DiskError> {
        let storage = self.home.storage(&self.identity)?;
        let open = self.opens.fetch_add(1, Ordering::SeqCst) + 1;
        let incarnation = Incarnation { process: self.process, open };
        let replica = self.identity.replica;
        // It is opened again because it failed: what it had written may be gone.
        let tail = match open {
            1 => self.tails.current(replica),
            _ => self.tails.renew(replica),
        };
        let options = self.options.clone();
        let opened = Store::open(&storage, self.identity, incarnation, tail, options);
        let (store, mut opened) = opened.map_err(|error| {
            // What it wrote and could not sync is counted by nobody, the next process included.
            self.tails.renew(replica);
            disk_error("open")(error)
        })?;
        if opened.kept.doubtful {
            // With written acknowledgements this says it all.
            opened.tail = self.tails.renew(replica);
        }
        let mut pending = self.home.disk().map(|disk| disk.space.pending());
        if let Some(pending) = &mut pending {
            pending.set(store.resident_bytes());
        }
        Ok((KeptStore { store, tails: Arc::clone(&self.tails), replica, pending }, opened))
    }
}

/// A store, and where the tail of its replica is kept.
#[derive(Debug)]
pub struct KeptStore {
    store: Store,
    tails: Arc<Tails>,
    replica: ReplicaId,
    /// What it has logged, for the room on its disk.
    pending: Option<Pending>,
}

/// Writes or syncs the WAL. If that fails the replica has another tail before anybody hears of it: the
/// process may end next, and the one after it must not take the tail for whole.
#[derive(Debug)]
pub struct WalWork<W> {
    work: W,
    sync: bool,
    tails: Arc<Tails>,
    replica: ReplicaId,
}

impl Work for WalWork<WalBatch> {
    type Outcome = BatchResult;
    fn run(self) -> BatchResult {
        let result = if self.sync { self.work.run() } else { self.work.write_only() };
        if result.failed() {
            self.tails.renew(self.replica);
        }
        result
    }
}

impl Work for WalWork<WalSync> {
    type Outcome = SyncResult;
    fn run(self) -> SyncResult {
        let result = self.work.run();
        if result.failed() {
            self.tails.renew(self.replica);
        }
        result
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
        Ok(read.into_iter().map(wire).collect())
    }
}

fn wire(entry: LogEntry) -> WireEntry {
    WireEntry { header: entry.header, crc: entry.crc, payload: entry.payload }
}

fn lost(error: LogReadError) -> EntriesLost {
    match error {
        LogReadError::Recycled { .. } => EntriesLost::Gone(FailureKind::WalRecycled),
        LogReadError::Unreadable { lsn, what } => EntriesLost::Unreadable { lsn, what },
    }
}

impl KeptStore {
    fn note_pending(&mut self) {
        if let Some(pending) = &mut self.pending {
            pending.set(self.store.resident_bytes());
        }
    }

    /// What the store can't do any more. The tail is another one before anybody hears of it: a sync may
    /// be what failed, within a cut or when the store is closed, and the process may end next. [A
    /// process that stopped in order failed to sync its log, told nobody, and the next one took the
    /// tail for whole.]
    fn failed(&self, doing: &'static str) -> impl FnOnce(StoreError) -> DiskError + use<> {
        let (tails, replica) = (Arc::clone(&self.tails), self.replica);
        move |error| {
            tails.renew(replica);
            disk_error(doing)(error)
        }
    }
}

impl Disk for KeptStore {
    type Batch = WalWork<WalBatch>;
    type Sync = WalWork<WalSync>;
    type Checkpoint = StoreCheckpoint;

    fn persist(&mut self, kept: &Kept) -> Result<(), DiskError> {
        self.store.persist(kept).map_err(self.failed("write the superblock"))
    }

    fn record_durable(&mut self) -> Result<(), DiskError> {
        self.store.record_durable().map_err(self.failed("write the superblock"))
    }

    fn cut(&mut self, end: Lsn, kept: &Kept) -> Result<(), DiskError> {
        self.store.cut(end, kept).map_err(self.failed("cut the log"))?;
        self.note_pending();
        Ok(())
    }

    fn wipe(&mut self, mark: &Incomplete, state: &LogState, kept: &Kept) -> Result<(), DiskError> {
        let doing = if mark.from > Lsn(0) { "begin a delta" } else { "wipe the replica" };
        self.store.wipe(mark, state, kept).map_err(self.failed(doing))?;
        self.note_pending();
        Ok(())
    }

    fn finish_rebuild(&mut self, _session: RecoveryId, kept: &Kept) -> Result<(), DiskError> {
        self.store.finish_rebuild(kept).map_err(self.failed("finish a delta or rebuild"))
    }

    fn write_base(&mut self, lba: Lba, data: &Bytes) -> Result<(), DiskError> {
        self.store.write_base(lba, data).map_err(self.failed("write base blocks"))
    }

    fn write_base_zeros(&mut self, range: BlockRange) -> Result<(), DiskError> {
        let failed = self.failed("write base blocks");
        self.store.write_base_zeros(range.lba.0..range.end()).map_err(failed)
    }

    fn write_regions(&mut self, first: u64, lsns: &[Lsn]) -> Result<(), DiskError> {
        self.store.set_regions(first, lsns);
        Ok(())
    }

    fn append(&mut self, entries: Vec<WireEntry>) -> Result<(), DiskError> {
        let doing = "append to the WAL";
        for WireEntry { header, crc, payload } in entries {
            self.store.append(header, crc, payload).map_err(self.failed(doing))?;
        }
        self.note_pending();
        Ok(())
    }

    fn take_batch(&mut self, sync: bool) -> Option<Self::Batch> {
        let work = self.store.take_batch()?;
        Some(WalWork { work, sync, tails: Arc::clone(&self.tails), replica: self.replica })
    }

    fn take_sync(&mut self) -> Option<Self::Sync> {
        let work = self.store.take_sync()?;
        Some(WalWork { work, sync: true, tails: Arc::clone(&self.tails), replica: self.replica })
    }

    fn sync_done(&mut self, outcome: SyncResult) -> Result<Lsn, DiskError> {
        self.store.sync_done(outcome).map_err(self.failed("sync the WAL"))
    }

    fn written(&self) -> Lsn {
        self.store.written()
    }

    fn batch_done(&mut self, outcome: BatchResult) -> Result<Lsn, DiskError> {
        self.store.batch_done(outcome).map_err(self.failed("write the WAL"))
    }

    fn committed(&mut self, lsn: Lsn) {
        self.store.set_committed(lsn);
    }

    fn want_checkpoint(&mut self, upto: Lsn) -> Option<(Lsn, Lsn)> {
        self.store.want_checkpoint(upto)
    }

    fn take_checkpoint(&mut self, urgent: bool) -> Option<StoreCheckpoint> {
        self.store.pass_time(clock::now());
        let budget = self.store.checkpoint_budget(urgent)?;
        self.store.plan_checkpoint(budget).map(StoreCheckpoint)
    }

    fn checkpoint_done(&mut self, outcome: CheckpointDone) -> Result<(Lsn, Lsn), DiskError> {
        let done = self.store.checkpoint_done(outcome).map_err(self.failed("write a checkpoint"));
        self.note_pending();
        done
    }

    fn set_short(&mut self, short: bool) {
        self.store.set_short(short);
    }

    fn wal_full(&self) -> bool {
        self.store.wal_pressure() == Pressure::Full
    }

    fn pin(&mut self, session: RecoveryId, from: Lsn) {
        self.store.pin(session, from);
    }

    fn unpin(&mut self, session: RecoveryId) {
        self.store.unpin(session);
    }

    fn read(&self, range: BlockRange) -> ReadPlan {
        let plan = self.store.plan_read(range);
        ReadPlan::new(move || plan.run().map_err(disk_error("read blocks")))
    }

    fn allocation(&self, range: BlockRange, most: usize) -> ReadPlan<Vec<sbk_store::Run>> {
        let plan = self.store.plan_allocation(range);
        ReadPlan::new(move || plan.run(most).map_err(disk_error("look which blocks are holes")))
    }

    fn find_data(&self, first: Lba, end: u64) -> ReadPlan<Option<Lba>> {
        let plan = self.store.plan_find_data(first, end);
        ReadPlan::new(move || plan.run().map_err(disk_error("look for data beyond the new end")))
    }

    fn read_committed(&self, range: BlockRange) -> CommittedReadPlan {
        let plan = self.store.plan_read_committed(range);
        CommittedReadPlan::new(move || plan.run().map_err(disk_error("read blocks")))
    }

    fn recent(&self, first: Lsn, last: Lsn) -> Vec<WireEntry> {
        self.store.recent(first, last).into_iter().map(wire).collect()
    }

    fn read_settled(&self, range: BlockRange) -> SettledReadPlan {
        let plan = self.store.plan_read_settled(range);
        SettledReadPlan::new(move || plan.run().map_err(disk_error("read blocks")))
    }

    fn read_log(&self, first: Lsn, last: Lsn) -> Result<Box<dyn ReadEntries>, EntriesLost> {
        match self.store.read_log(first, last) {
            Ok(plan) => Ok(Box::new(plan)),
            // The segments that a session had pinned were given up.
            Err(LogReadError::Recycled { .. }) if self.store.lost_a_pin() => {
                Err(EntriesLost::Gone(FailureKind::PinLost))
            }
            Err(error) => Err(lost(error)),
        }
    }

    fn unreadable(&mut self, lsn: Lsn, what: &str) -> Result<(Lsn, Lsn), DiskError> {
        self.store.unreadable(lsn, what).map_err(self.failed("read its log"))
    }

    fn base_regions(&self, mark: &Incomplete) -> Vec<u64> {
        self.store.base_regions(mark)
    }

    fn region_table(&self) -> Vec<Lsn> {
        self.store.regions()
    }

    fn verify(&self, first: u64, regions: u64) -> VerifyPlan {
        let mut plan = self.store.plan_digest(first, regions);
        Box::new(move || {
            plan.next_region().map(|found| match found {
                Ok(Some(digest)) => Ok(RegionDigest {
                    region: digest.region,
                    lsn: digest.lsn,
                    digest: digest.digest,
                    committed: digest.committed,
                    blocks: digest.blocks,
                    damaged: digest.damaged,
                }),
                Ok(None) => {
                    let cause =
                        "the image moved on, for it could not wait, or is another; ask again";
                    let cause = StoreError::Failed { cause: cause.to_owned() };
                    Err(disk_error("compute a digest")(cause))
                }
                Err(error) => Err(disk_error("compute a digest")(error)),
            })
        })
    }

    fn close(self) -> Result<(), DiskError> {
        let failed = self.failed("close in order");
        self.store.close_clean().map_err(failed)
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
