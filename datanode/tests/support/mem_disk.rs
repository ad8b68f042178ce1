//! A store in memory that keeps what a crash keeps: what a batch, a checkpoint or a blocking
//! operation made durable. It outlives its node, as a disk does.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use bytes::{Bytes, BytesMut};
use sbk_datanode::transport::{EntriesLost, ReadEntries, WireEntry};
use sbk_datanode::volume::disk::{
    CommittedReadPlan, Disk, DiskError, OpenDisk, ReadPlan, RegionDigest, SettledReadPlan,
    VerifyPlan, Work,
};
use sbk_engine::recovery::FailureKind;
use sbk_engine::replication::io::{Kept, Opened};
use sbk_engine::replication::log::{BlockRange, EntryKind, LogState};
use sbk_engine::replication::message::{Incomplete, RecoveryId};
use sbk_engine::replication::room::Space;
use sbk_engine::types::{
    BLOCK_SIZE, BootId, Incarnation, Lba, Lsn, REGION_BLOCKS, ReplicaId, ReplicaRef, TailId,
    VolumeId,
};
use sbk_store::{ReadError, RottenBlock, Run, SettledBlocks};

const BLOCK: usize = BLOCK_SIZE as usize;

/// What is on the disk.
#[derive(Debug)]
pub(crate) struct Platter {
    pub(crate) kept: Kept,
    log: BTreeMap<Lsn, WireEntry>,
    pub(crate) durable: Lsn,
    committed: Lsn,
    checkpoint: Lsn,
    retained: Lsn,
    /// As of the checkpoint.
    state: LogState,
    image: BTreeMap<u64, Bytes>,
    /// Blocks of the image that don't match their checksums.
    pub(crate) rotten: BTreeSet<u64>,
    regions: BTreeMap<u64, Lsn>,
    /// Blocks that checkpoints changed since the wipe.
    moved: BTreeSet<u64>,
    /// Entries that stay in the log below the checkpoint.
    pub(crate) retain: u64,
    /// Entries above the checkpoint at which the log is full.
    pub(crate) limit: u64,
    /// Counts the openings: what is left running of an earlier one finds nothing to do.
    opening: u64,
    /// The next batch fails.
    pub(crate) failing: bool,
    /// Batches are said to have made more durable than was ever appended.
    pub(crate) overclaiming: bool,
    /// Checkpoints are held back.
    pub(crate) no_checkpoints: bool,
    /// The next checkpoints fail.
    pub(crate) failing_checkpoints: bool,
}

/// A disk that can be opened again and again.
#[derive(Clone, Debug)]
pub(crate) struct MemStore {
    pub(crate) volume: VolumeId,
    pub(crate) replica: ReplicaId,
    /// Starts of the process and openings within it.
    opened: Arc<Mutex<Incarnation>>,
    pub(crate) platter: Arc<Mutex<Platter>>,
    /// Reads of blocks wait while somebody has it for writing.
    pub(crate) reads: Arc<RwLock<()>>,
    /// Batches wait while somebody has it for writing.
    pub(crate) batches: Arc<RwLock<()>>,
    /// Wipes wait while somebody has it for writing.
    pub(crate) wipes: Arc<RwLock<()>>,
    /// Where recordings go.
    pub(crate) recordings: Option<PathBuf>,
}

impl MemStore {
    pub(crate) fn create(volume: VolumeId, replica: ReplicaId, blocks: u64) -> Self {
        let platter = Platter {
            kept: Kept::default(),
            log: BTreeMap::new(),
            durable: Lsn(0),
            committed: Lsn(0),
            checkpoint: Lsn(0),
            retained: Lsn(1),
            state: LogState::new(blocks),
            image: BTreeMap::new(),
            rotten: BTreeSet::new(),
            regions: BTreeMap::new(),
            moved: BTreeSet::new(),
            retain: u64::MAX,
            limit: u64::MAX,
            opening: 0,
            failing: false,
            overclaiming: false,
            no_checkpoints: false,
            failing_checkpoints: false,
        };
        let platter = Arc::new(Mutex::new(platter));
        Self {
            volume,
            replica,
            opened: Arc::default(),
            platter,
            reads: Arc::default(),
            batches: Arc::default(),
            wipes: Arc::default(),
            recordings: None,
        }
    }

    /// The process starts anew. Returns the incarnation of its first opening.
    pub(crate) fn process_starts(&self) -> Incarnation {
        let mut opened = self.opened.lock().unwrap();
        *opened = Incarnation { process: opened.process + 1, open: 0 };
        Incarnation { open: 1, ..*opened }
    }

    pub(crate) fn disk(&self) -> MutexGuard<'_, Platter> {
        self.platter.lock().unwrap()
    }

    /// The committed image, as the extents hold it.
    pub(crate) fn image(&self) -> BTreeMap<u64, Bytes> {
        let mut image = self.disk().image.clone();
        image.retain(|_, block| block.iter().any(|byte| *byte != 0));
        image
    }
}

impl OpenDisk for MemStore {
    type Disk = MemDisk;

    fn free_bytes(&self) -> Option<u64> {
        None
    }

    fn space(&self) -> tokio::sync::watch::Receiver<Space> {
        tokio::sync::watch::Sender::default().subscribe()
    }

    fn open(&self) -> Result<(MemDisk, Opened), DiskError> {
        let incarnation = {
            let mut opened = self.opened.lock().unwrap();
            opened.open += 1;
            *opened
        };
        let mut disk = self.disk();
        disk.opening += 1;
        let mut state = disk.state.clone();
        let above = disk.log.range(disk.checkpoint.next()..);
        let (committed, uncommitted): (Vec<_>, Vec<_>) =
            above.map(|(_, entry)| entry.header).partition(|h| h.lsn <= disk.committed);
        committed.iter().for_each(|header| state.apply(header));
        let opened = Opened {
            volume: self.volume,
            me: ReplicaRef { id: self.replica, incarnation },
            tail: TailId { boot: BootId(uuid::Uuid::from_u128(1)), count: 0 },
            kept: disk.kept.clone(),
            durable: disk.durable,
            committed: disk.committed,
            checkpoint: disk.checkpoint,
            retained: disk.retained,
            state,
            uncommitted,
        };
        let mem = MemDisk {
            opening: disk.opening,
            end: disk.durable,
            committed: disk.committed,
            pending: Vec::new(),
            batch_out: false,
            checkpoint_out: false,
            pins: BTreeMap::new(),
            platter: Arc::clone(&self.platter),
            reads: Arc::clone(&self.reads),
            batches: Arc::clone(&self.batches),
            wipes: Arc::clone(&self.wipes),
        };
        Ok((mem, opened))
    }
}

#[derive(Debug)]
pub(crate) struct MemDisk {
    opening: u64,
    platter: Arc<Mutex<Platter>>,
    reads: Arc<RwLock<()>>,
    batches: Arc<RwLock<()>>,
    wipes: Arc<RwLock<()>>,
    end: Lsn,
    committed: Lsn,
    /// Appended, not in a batch that is done.
    pending: Vec<WireEntry>,
    batch_out: bool,
    checkpoint_out: bool,
    pins: BTreeMap<RecoveryId, Lsn>,
}

pub(crate) struct Batch {
    opening: u64,
    platter: Arc<Mutex<Platter>>,
    batches: Arc<RwLock<()>>,
    entries: Vec<WireEntry>,
    committed: Lsn,
}

impl Work for Batch {
    type Outcome = Result<Lsn, DiskError>;

    fn run(self) -> Self::Outcome {
        let _may = self.batches.read().unwrap();
        let mut disk = self.platter.lock().unwrap();
        if self.opening != disk.opening {
            return Err(gone());
        }
        if std::mem::take(&mut disk.failing) {
            return Err(DiskError { doing: "sync the WAL", source: "it is made to fail".into() });
        }
        for entry in self.entries {
            let lsn = entry.header.lsn;
            assert_eq!(lsn, disk.durable.next());
            disk.durable = lsn;
            disk.log.insert(lsn, entry);
        }
        disk.committed = disk.committed.max(self.committed.min(disk.durable));
        Ok(disk.durable)
    }
}

pub(crate) struct Checkpoint {
    opening: u64,
    platter: Arc<Mutex<Platter>>,
    to: Lsn,
    pin: Lsn,
}

/// What a read gives that found these.
fn sound(data: Bytes, blocks: Vec<RottenBlock>) -> Result<Bytes, DiskError> {
    if blocks.is_empty() {
        return Ok(data);
    }
    let source = ReadError::Rotten { path: "the image".into(), blocks };
    Err(DiskError { doing: "read blocks", source: Box::new(source) })
}

/// Of a process that was killed while its disk was at work.
fn gone() -> DiskError {
    DiskError { doing: "write", source: "its process is gone".into() }
}

impl Work for Checkpoint {
    type Outcome = Result<(Lsn, Lsn), DiskError>;

    fn run(self) -> Self::Outcome {
        let Self { opening, platter, to, pin } = self;
        let disk = &mut *platter.lock().unwrap();
        if opening != disk.opening {
            return Err(gone());
        }
        if disk.failing_checkpoints {
            return Err(DiskError { doing: "write extents", source: "it is made to fail".into() });
        }
        for (lsn, entry) in disk.log.range(disk.checkpoint.next()..=to) {
            disk.state.apply(&entry.header);
            let Some(range) = entry.header.kind.range() else { continue };
            for (index, lba) in (range.lba.0..range.end()).enumerate() {
                disk.regions.insert(lba / REGION_BLOCKS, *lsn);
                disk.moved.insert(lba);
                disk.rotten.remove(&lba);
                if entry.payload.is_empty() {
                    disk.image.remove(&lba);
                } else {
                    let block = entry.payload.slice(index * BLOCK..(index + 1) * BLOCK);
                    disk.image.insert(lba, block);
                }
            }
        }
        disk.checkpoint = to;
        disk.committed = disk.committed.max(to);
        let keep = Lsn(to.0.saturating_sub(disk.retain)).next().min(pin);
        disk.retained = disk.retained.max(keep);
        disk.log = disk.log.split_off(&disk.retained);
        Ok((disk.checkpoint, disk.retained))
    }
}

impl MemDisk {
    fn disk(&self) -> MutexGuard<'_, Platter> {
        self.platter.lock().unwrap()
    }

    /// Blocks that a read as of `upto` finds rotten: what is logged is not read from the image.
    fn rotten(&self, range: BlockRange, upto: Lsn) -> Vec<RottenBlock> {
        let disk = self.disk();
        let logged = disk.log.range(disk.checkpoint.next()..).map(|(_, entry)| entry);
        let logged: BTreeSet<u64> = logged
            .chain(&self.pending)
            .take_while(|entry| entry.header.lsn <= upto)
            .filter_map(|entry| entry.header.kind.range())
            .flat_map(|changed| changed.lba.0..changed.end())
            .collect();
        let within = disk.rotten.range(range.lba.0..range.end());
        let rotten = within.filter(|lba| !logged.contains(lba));
        let rotten = rotten.map(|lba| RottenBlock {
            lba: Lba(*lba),
            file: "extents",
            offset: lba * BLOCK_SIZE,
            found: 1,
            expected: 2,
        });
        rotten.collect()
    }

    /// The blocks as of `upto`, which is not below the checkpoint.
    fn as_of(&self, range: BlockRange, upto: Lsn) -> Bytes {
        let disk = self.disk();
        let mut out = BytesMut::zeroed(range.blocks as usize * BLOCK);
        let mut put = |lba: u64, block: &[u8]| {
            if (range.lba.0..range.end()).contains(&lba) {
                let at = (lba - range.lba.0) as usize * BLOCK;
                out[at..at + BLOCK].copy_from_slice(block);
            }
        };
        for (lba, block) in disk.image.range(range.lba.0..range.end()) {
            put(*lba, block);
        }
        let logged = disk.log.range(disk.checkpoint.next()..).map(|(_, entry)| entry);
        let pending = self.pending.iter().filter(|e| e.header.lsn > disk.durable);
        for entry in logged.chain(pending).take_while(|entry| entry.header.lsn <= upto) {
            let Some(changed) = entry.header.kind.range() else { continue };
            for (index, lba) in (changed.lba.0..changed.end()).enumerate() {
                let zeros = [0; BLOCK];
                let block = entry.payload.chunks(BLOCK).nth(index).unwrap_or(&zeros);
                put(lba, block);
            }
        }
        out.freeze()
    }
}

impl Disk for MemDisk {
    type Batch = Batch;
    type Sync = Batch;
    type Checkpoint = Checkpoint;

    fn persist(&mut self, kept: &Kept) -> Result<(), DiskError> {
        self.disk().kept = kept.clone();
        Ok(())
    }

    fn record_durable(&mut self) -> Result<(), DiskError> {
        Ok(())
    }

    fn cut(&mut self, end: Lsn, kept: &Kept) -> Result<(), DiskError> {
        assert!(!self.batch_out && !self.checkpoint_out, "a cut runs alone");
        self.pending.retain(|entry| entry.header.lsn <= end);
        self.end = end;
        let mut disk = self.disk();
        disk.log.split_off(&end.next());
        disk.durable = disk.durable.min(end);
        disk.kept = kept.clone();
        Ok(())
    }

    fn wipe(&mut self, mark: &Incomplete, state: &LogState, kept: &Kept) -> Result<(), DiskError> {
        assert!(!self.batch_out && !self.checkpoint_out, "a wipe runs alone");
        let _may = self.wipes.read().unwrap();
        self.pending.clear();
        (self.end, self.committed) = (mark.base, mark.base);
        let mut disk = self.disk();
        disk.kept = kept.clone();
        disk.log.clear();
        if mark.from == Lsn(0) {
            disk.image.clear();
            disk.rotten.clear();
        }
        disk.regions.clear();
        disk.moved.clear();
        disk.state = state.clone();
        (disk.durable, disk.committed, disk.checkpoint) = (mark.base, mark.base, mark.base);
        disk.retained = mark.base.next();
        Ok(())
    }

    fn finish_rebuild(&mut self, _session: RecoveryId, kept: &Kept) -> Result<(), DiskError> {
        self.persist(kept)
    }

    fn write_base(&mut self, lba: Lba, data: &Bytes) -> Result<(), DiskError> {
        for index in 0..data.len() / BLOCK {
            let lba = lba.0 + index as u64;
            let mut disk = self.disk();
            if !disk.moved.contains(&lba) {
                let block = data.slice(index * BLOCK..(index + 1) * BLOCK);
                disk.image.insert(lba, block);
            }
        }
        Ok(())
    }

    fn write_base_zeros(&mut self, range: BlockRange) -> Result<(), DiskError> {
        let mut disk = self.disk();
        for lba in range.lba.0..range.end() {
            if !disk.moved.contains(&lba) {
                disk.image.remove(&lba);
            }
        }
        Ok(())
    }

    fn write_regions(&mut self, first: u64, lsns: &[Lsn]) -> Result<(), DiskError> {
        for (index, lsn) in lsns.iter().enumerate() {
            let mut disk = self.disk();
            let known = disk.regions.entry(first + index as u64).or_default();
            *known = (*known).max(*lsn);
        }
        Ok(())
    }

    fn append(&mut self, entries: Vec<WireEntry>) -> Result<(), DiskError> {
        for entry in entries {
            assert_eq!(entry.header.lsn, self.end.next());
            self.end = entry.header.lsn;
            self.pending.push(entry);
        }
        Ok(())
    }

    fn take_batch(&mut self, _sync: bool) -> Option<Batch> {
        if self.batch_out || self.pending.is_empty() {
            return None;
        }
        self.batch_out = true;
        Some(Batch {
            opening: self.opening,
            platter: Arc::clone(&self.platter),
            batches: Arc::clone(&self.batches),
            entries: self.pending.clone(),
            committed: self.committed,
        })
    }

    /// Every batch is synced.
    fn take_sync(&mut self) -> Option<Batch> {
        None
    }

    fn sync_done(&mut self, outcome: Result<Lsn, DiskError>) -> Result<Lsn, DiskError> {
        outcome
    }

    fn written(&self) -> Lsn {
        Lsn(0)
    }

    fn batch_done(&mut self, outcome: Result<Lsn, DiskError>) -> Result<Lsn, DiskError> {
        self.batch_out = false;
        let durable = outcome?;
        self.pending.retain(|entry| entry.header.lsn > durable);
        let overclaiming = self.disk().overclaiming;
        Ok(if overclaiming { Lsn(durable.0 + 1000) } else { durable })
    }

    fn committed(&mut self, lsn: Lsn) {
        self.committed = lsn;
    }

    fn want_checkpoint(&mut self, upto: Lsn) -> Option<(Lsn, Lsn)> {
        // It is always due.
        let disk = self.disk();
        (disk.checkpoint >= upto).then_some((disk.checkpoint, disk.retained))
    }

    fn take_checkpoint(&mut self, _urgent: bool) -> Option<Checkpoint> {
        let (to, from) = {
            let disk = self.disk();
            if disk.no_checkpoints {
                return None;
            }
            (self.committed.min(disk.durable), disk.checkpoint)
        };
        if self.checkpoint_out || to <= from {
            return None;
        }
        self.checkpoint_out = true;
        let pin = self.pins.values().min().copied().unwrap_or(Lsn(u64::MAX));
        let (opening, platter) = (self.opening, Arc::clone(&self.platter));
        Some(Checkpoint { opening, platter, to, pin })
    }

    fn checkpoint_done(
        &mut self,
        outcome: Result<(Lsn, Lsn), DiskError>,
    ) -> Result<(Lsn, Lsn), DiskError> {
        self.checkpoint_out = false;
        outcome
    }

    fn set_short(&mut self, _short: bool) {}

    fn wal_full(&self) -> bool {
        let disk = self.disk();
        self.end.0 - disk.checkpoint.0 >= disk.limit
    }

    fn pin(&mut self, session: RecoveryId, from: Lsn) {
        self.pins.insert(session, from);
    }

    fn unpin(&mut self, session: RecoveryId) {
        self.pins.remove(&session);
    }

    fn read(&self, range: BlockRange) -> ReadPlan {
        let (data, reads) = (self.as_of(range, self.end), Arc::clone(&self.reads));
        let rotten = self.rotten(range, self.end);
        ReadPlan::new(move || {
            let _may = reads.read().unwrap();
            sound(data, rotten)
        })
    }

    fn read_settled(&self, range: BlockRange) -> SettledReadPlan {
        let (data, rotten) = (self.as_of(range, self.end), self.rotten(range, self.end));
        let reads = Arc::clone(&self.reads);
        SettledReadPlan::new(move || {
            let _may = reads.read().unwrap();
            let blocks = (range.lba.0..range.end()).zip(data.chunks_exact(BLOCK));
            let sound = blocks.filter(|(lba, _)| rotten.iter().all(|rot| rot.lba.0 != *lba));
            let held = sound.map(|(lba, block)| (Lba(lba), Bytes::copy_from_slice(block)));
            let held = held.collect();
            Ok(Some(SettledBlocks { held, rotten }))
        })
    }

    fn allocation(&self, range: BlockRange, most: usize) -> ReadPlan<Vec<Run>> {
        self.read(range).then(move |data| {
            let holes = data.chunks_exact(4096).map(|b| b.iter().all(|byte| *byte == 0));
            let holes: Vec<bool> = holes.collect();
            let runs = holes.chunk_by(|a, b| a == b);
            runs.map(|run| Run { blocks: run.len() as u32, hole: run[0] }).take(most).collect()
        })
    }

    fn find_data(&self, first: Lba, end: u64) -> ReadPlan<Option<Lba>> {
        let range = BlockRange { lba: first, blocks: (end - first.0) as u32 };
        self.read(range).then(move |data| {
            let mut blocks = (first.0..).zip(data.chunks_exact(4096));
            blocks.find(|(_, block)| block.iter().any(|byte| *byte != 0)).map(|(at, _)| Lba(at))
        })
    }

    fn read_committed(&self, range: BlockRange) -> CommittedReadPlan {
        let committed = self.committed.min(self.disk().durable);
        let (data, rotten) = (self.as_of(range, committed), self.rotten(range, committed));
        ReadPlan::new(move || Ok((sound(data, rotten)?, committed)))
    }

    fn recent(&self, first: Lsn, last: Lsn) -> Vec<WireEntry> {
        let asked = |entry: &&WireEntry| (first..=last).contains(&entry.header.lsn);
        self.pending.iter().filter(asked).cloned().collect()
    }

    fn read_log(&self, first: Lsn, last: Lsn) -> Result<Box<dyn ReadEntries>, EntriesLost> {
        let disk = self.disk();
        if first < disk.retained || last > disk.durable {
            return Err(EntriesLost::Gone(FailureKind::WalRecycled));
        }
        let entries: Vec<_> =
            disk.log.range(first..=last).map(|(_, entry)| entry.clone()).collect();
        Ok(Box::new(Reader(entries.into_iter())))
    }

    fn unreadable(&mut self, _lsn: Lsn, what: &str) -> Result<(Lsn, Lsn), DiskError> {
        Err(DiskError { doing: "read its log", source: what.to_owned().into() })
    }

    fn base_regions(&self, mark: &Incomplete) -> Vec<u64> {
        let disk = self.disk();
        if mark.from > Lsn(0) {
            let newer = |(_, lsn): &(&u64, &Lsn)| **lsn > mark.from;
            let mut regions: BTreeSet<u64> =
                disk.regions.iter().filter(newer).map(|(region, _)| *region).collect();
            let logged = disk.log.values().filter(|entry| entry.header.lsn > disk.checkpoint);
            for range in logged.filter_map(|entry| entry.header.kind.range()) {
                regions.extend((range.lba.0..range.end()).map(|lba| lba / REGION_BLOCKS));
            }
            return regions.into_iter().collect();
        }
        let logged = disk.log.values().chain(&self.pending);
        let written = logged.filter(|e| matches!(e.header.kind, EntryKind::Write { .. }));
        let mut regions: BTreeSet<u64> = disk.image.keys().map(|lba| lba / REGION_BLOCKS).collect();
        for range in written.filter_map(|entry| entry.header.kind.range()) {
            regions.extend((range.lba.0..range.end()).map(|lba| lba / REGION_BLOCKS));
        }
        regions.into_iter().collect()
    }

    fn region_table(&self) -> Vec<Lsn> {
        let disk = self.disk();
        let last = disk.regions.keys().last().map_or(0, |region| region + 1);
        (0..last).map(|region| disk.regions.get(&region).copied().unwrap_or_default()).collect()
    }

    fn verify(&self, _first: u64, _regions: u64) -> VerifyPlan {
        let mut digests: Vec<RegionDigest> = Vec::new();
        Box::new(move || digests.pop().map(Ok))
    }

    fn close(self) -> Result<(), DiskError> {
        Ok(())
    }
}

#[derive(Debug)]
struct Reader(std::vec::IntoIter<WireEntry>);

impl ReadEntries for Reader {
    fn next(&mut self, bytes: usize, entries: usize) -> Result<Vec<WireEntry>, EntriesLost> {
        let mut taken = Vec::new();
        let mut length = 0;
        while taken.len() < entries && (taken.is_empty() || length < bytes) {
            let Some(entry) = self.0.next() else { break };
            length += entry.payload.len();
            taken.push(entry);
        }
        Ok(taken)
    }
}
