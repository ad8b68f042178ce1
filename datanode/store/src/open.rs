//! Making a store and opening one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use sbk_engine::bugs::{Bug, on};
use sbk_engine::replication::io::{Kept, Opened};
use sbk_engine::replication::log::{EpochTable, LogState};
use sbk_engine::types::{BLOCK_SIZE, Epoch, Incarnation, LossGeneration, Lsn, ReplicaRef, TailId};
use sbk_wal::{Expect, Get, Log, LogOptions, Place, Put, ReadRecord, Slots, Storage};

use super::ages::Ages;
use super::codec::{self, Stored};
use super::core::Store;
use super::entries::{Entries, Entry};
use super::error::StoreError;
use super::image::{Image, io_error};
use super::map::BlockMap;
use super::placement::Referred;
use super::proofs::Proven;
use super::read::Rewriting;
use super::references::References;
use super::stamper::{Label, Stamper};
use super::superblock::{Identity, Superblock};
use super::tail_memory::TailMemory;

/// The file without which a directory holds no replica: it is the last that is made.
pub const SUPERBLOCK: &str = "superblock";
/// The superblock's name until everything else is in its place.
const UNFINISHED: &str = "superblock.new";
const SUPERBLOCK_MAGIC: [u8; 8] = *b"SBKSUPER";
const SUPERBLOCK_SLOT: usize = 4096;
const STATE: &str = "logstate";
const STATE_MAGIC: [u8; 8] = *b"SBKLGSTA";
/// Fits 64 sessions with 1024 sequences each, and the identity.
const STATE_SLOT: usize = 1088 << 10;
const VERSION: u32 = 1;
/// Version 1 has no image beside it that is read.
const STATE_VERSION: u32 = 2;
const WAL: &str = "wal";
const NOT_TAGGED: &str = "its checksum is right, but nobody who has the replica's key wrote it";
/// Size of a WAL's first segment. [Each replica began with 192 MiB of prepared segments, so that a disk was
/// full of volumes that nobody wrote to, and making one of them took seconds.]
const FIRST_SEGMENT_BYTES: u64 = 1 << 20;

/// Makes the names in a replica's directory durable, also after an attempt that failed: by then the directory
/// counts as clean, and a sync of it does nothing, so a name is changed first. [A replica was made in a second
/// attempt, confirmed, and gone after a loss of power.] Fails on a full disk: only for a replica that has promised
/// nothing yet, which can wait for room.
fn sync_names(storage: &Arc<dyn Storage>) -> Result<(), StoreError> {
    let error = |doing| move |e| io_error(&**storage, SUPERBLOCK, doing, e);
    let names = storage.list("").map_err(error("list the directory of"))?;
    if !names.iter().any(|name| name == UNFINISHED) {
        storage.create(UNFINISHED).map_err(error("make a file beside"))?;
    }
    storage.remove(UNFINISHED).map_err(error("remove a file beside"))?;
    storage.sync_dir("").map_err(error("sync the name of"))
}

/// What a new replica is.
#[derive(Clone, Debug)]
pub struct CreateSpec {
    /// Whose it is.
    pub identity: Identity,
    /// The volume's size in blocks.
    pub blocks: u64,
    /// The volume's loss generation.
    pub loss_generation: LossGeneration,
}

/// How a store is kept. The limits are per replica.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Size of a WAL segment, once the log has grown from smaller ones.
    pub wal_segment_bytes: u64,
    /// Most payload bytes of one batch; one entry always fits.
    pub batch_bytes: u64,
    /// Checkpointed WAL that is kept for replicas that were away for a while.
    pub wal_retain_bytes: u64,
    /// For how long at most it is kept, in milliseconds; 0: for as long as there is room for it.
    pub wal_retain_ms: u64,
    /// How much more than that a pin can hold before it is lost.
    pub wal_pin_bytes: u64,
    /// WAL bytes not yet in the extents at which [`Store::wal_pressure`] says full.
    pub wal_max_bytes: u64,
    /// The same for the number of entries.
    pub wal_max_entries: u64,
    /// Memory for payloads of recent entries.
    pub tail_cache_bytes: u64,
    /// Least payload bytes of a write that may go into the log by reference, its payload written once, to where
    /// its blocks stay. None does on a storage that gives space back in larger units than blocks.
    pub large_write_bytes: u64,
    /// Least payload bytes of a batch that do so. What is less goes through the log: the second sync costs more
    /// than the second write then.
    pub large_batch_bytes: u64,
    /// What all stores of the process have together for that, if there is a limit.
    pub tail_memory: Option<Arc<TailMemory>>,
    /// Committed bytes at which a checkpoint is worth its syncs; also the size of one step.
    pub checkpoint_bytes: u64,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            wal_segment_bytes: 64 << 20,
            batch_bytes: 8 << 20,
            wal_retain_bytes: 256 << 20,
            wal_retain_ms: 0,
            wal_pin_bytes: 1 << 30,
            wal_max_bytes: 512 << 20,
            wal_max_entries: 256 << 10,
            tail_cache_bytes: 16 << 20,
            large_write_bytes: 64 << 10,
            large_batch_bytes: 1 << 20,
            tail_memory: None,
            checkpoint_bytes: 16 << 20,
        }
    }
}

impl StoreOptions {
    /// The defaults for a WAL that keeps `wal_retain_bytes` for others. It goes by the segment, so
    /// one that keeps little is made of smaller ones (a record that is larger gets its own).
    pub fn retaining(wal_retain_bytes: u64) -> Self {
        let default = Self::default();
        let smaller = (wal_retain_bytes / 4).next_multiple_of(1 << 20).max(1 << 20);
        let wal_segment_bytes = default.wal_segment_bytes.min(smaller);
        Self { wal_retain_bytes, wal_segment_bytes, ..default }
    }

    /// None of a log, whose next one is `next`.
    pub(super) fn entries(&self, next: Lsn) -> Entries {
        let share = self.tail_memory.as_ref().map(TailMemory::share);
        Entries::new(next, self.tail_cache_bytes, share)
    }

    fn log(&self) -> LogOptions {
        LogOptions {
            segment_bytes: self.wal_segment_bytes,
            first_segment_bytes: FIRST_SEGMENT_BYTES,
            batch_bytes: self.batch_bytes,
        }
    }
}

/// The record of the `logstate` file. `last_reference`: the last entry up to there that refers to a payload; `proven`:
/// of an encrypted replica, the table of regions as of then.
pub(super) fn state_record(
    identity: &Identity,
    state: &LogState,
    upto: Lsn,
    last_reference: Lsn,
    proven: Option<Proven>,
) -> Vec<u8> {
    let mut record = Put::default();
    identity.put(&mut record);
    record.u64(last_reference.0);
    if let Some(Proven { version, root }) = proven {
        record.u64(version).bytes(&root);
    }
    codec::put_state(state, upto, &mut record);
    record.0
}

impl Store {
    /// Makes an empty replica's files in `storage`, a directory of its own, all durable. Doing it
    /// again for the same replica changes nothing, so a create whose answer was lost can be
    /// repeated; leftovers of one that never finished are replaced. Blocks.
    pub fn create(
        storage: &Arc<dyn Storage>,
        spec: &CreateSpec,
        options: &StoreOptions,
    ) -> Result<(), StoreError> {
        let error = |path: &'static str, doing| {
            let storage = Arc::clone(storage);
            move |e| io_error(&*storage, path, doing, e)
        };
        let names = storage.list("").map_err(error("", "list"))?;
        if names.iter().any(|name| name == SUPERBLOCK) {
            let (_, record) = open_superblock(storage)?;
            let path = storage.describe(SUPERBLOCK);
            spec.identity.check(record.identity, &path)?;
            // The one who made it may have been killed before its name was durable, or not been able to sync it.
            return sync_names(storage);
        }
        for name in ["extents", "shadow", "checksums", "regions", STATE, UNFINISHED] {
            if names.iter().any(|n| n == name) {
                storage.remove(name).map_err(error(name, "remove"))?;
            }
        }
        storage.create_dir(WAL).map_err(error(WAL, "make"))?;
        for name in storage.list(WAL).map_err(error(WAL, "list"))? {
            let path = format!("{WAL}/{name}");
            storage.remove(&path).map_err(|e| io_error(&**storage, &path, "remove", e))?;
        }
        Image::create(Arc::clone(storage), &spec.identity, spec.blocks)?;
        let stamper = Stamper::of(&**storage);
        let proven = stamper.has_key().then(Proven::default);
        let state = LogState::new(spec.blocks);
        let state = state_record(&spec.identity, &state, Lsn(0), Lsn(0), proven);
        let state = stamper.sign(Label::State, state);
        let shared = || Arc::clone(storage);
        Slots::create(shared(), STATE, STATE_MAGIC, STATE_VERSION, STATE_SLOT, &state)?;
        // The first segment is ready before the first write.
        let owner = spec.identity.owner();
        let mut log = Log::create(shared(), WAL, owner, options.log(), 1);
        if let Some(work) = log.housekeeping() {
            log.housekeeping_done(work.run())?;
        }
        let record = Superblock {
            identity: spec.identity,
            blocks: spec.blocks,
            kept: Kept {
                fenced: Epoch(0),
                loss_generation: spec.loss_generation,
                ..Kept::default()
            },
            checkpoint: Lsn(0),
            durable: Lsn(0),
            committed: Lsn(0),
            cut: None,
            clean: true,
            proven,
        };
        let block = stamper.sign(Label::Superblock, record.encode());
        Slots::create(shared(), UNFINISHED, SUPERBLOCK_MAGIC, VERSION, SUPERBLOCK_SLOT, &block)?;
        storage.sync_dir("").map_err(error("", "sync"))?;
        // With its name the superblock says that all the rest is there.
        storage.rename(UNFINISHED, SUPERBLOCK).map_err(error(SUPERBLOCK, "rename"))?;
        storage.sync_dir("").map_err(error("", "sync"))
    }

    /// Whether a replica's directory is whole: its superblock gets its name last. (One that lost it
    /// later is no replica either: it can't be opened, and is never made anew, for the masters know
    /// that it was made.) One that can't be looked at counts as whole: its opening says why it fails.
    /// [A node took a replica on a failing disk for none, and its masters took it for lost.]
    pub(super) fn is_made(dir: &Path) -> bool {
        dir.join(SUPERBLOCK).try_exists().unwrap_or(true)
    }

    /// Opens a replica's files. What the log holds past the last LSN that was recorded as durable
    /// is copied and synced first, so all of what is reported is durable. Blocks, for as long as it
    /// takes to read the WAL behind the checkpoint.
    ///
    /// # Errors
    /// Files of another volume or replica, of a newer format, or damaged ones are refused by name,
    /// and a directory without a superblock is not a store. Nothing is changed then.
    pub fn open(
        storage: &Arc<dyn Storage>,
        identity: Identity,
        incarnation: Incarnation,
        tail: TailId,
        options: StoreOptions,
    ) -> Result<(Self, Opened), StoreError> {
        let (superblock_file, mut superblock) = open_superblock(storage)?;
        identity.check(superblock.identity, &storage.describe(SUPERBLOCK))?;
        // Who made it may have been killed between the last file's name and the sync of it. [It was opened,
        // joined, held what was acknowledged, and a loss of power took the name, and with it the replica.]
        // Before its first promise it holds nothing that counts, and a promise is not made before this.
        if superblock.kept.fenced == Epoch(0) {
            sync_names(storage)?;
        }
        let image = Arc::new(Image::open(Arc::clone(storage), &identity)?);
        let shared = Arc::clone(storage);
        let (state_file, record) =
            Slots::open(shared, STATE, STATE_MAGIC, STATE_VERSION, STATE_SLOT)?;
        let kept_state = decode_state(storage, &identity, &image.stamper, &record)?;
        let as_of = kept_state.as_of;
        let clean = std::mem::replace(&mut superblock.clean, false);
        let me = ReplicaRef { id: identity.replica, incarnation };
        let files = Files { superblock_file, superblock, state_file, image };
        if files.superblock.kept.incomplete.is_some() {
            return Self::open_blank(storage, files, me, tail, options);
        }
        let checkpoint = files.superblock.checkpoint;
        if as_of < checkpoint {
            return Err(StoreError::Damaged {
                path: storage.describe(STATE),
                what: format!("it is as of LSN {as_of}, the checkpoint is at {checkpoint}"),
            });
        }
        let mut files = files;
        if as_of > checkpoint {
            files.superblock.proven = kept_state.proven;
        }
        let found = Found::scan(storage, &mut files, as_of, &options)?;
        // Nobody asks a replica that is not encrypted for proofs.
        let begun = files.superblock.proven.map_or(Lsn(0), |_| found.begun);
        let (mut store, mut opened) = found.build(storage, files, kept_state, me, tail, options)?;
        if store.checkpoint < begun && !on(Bug::RedoNothing) {
            store.redo(begun)?;
            (opened.checkpoint, opened.retained) = (store.checkpoint(), store.retained());
        }
        tracing::info!(
            volume = %identity.volume, replica = %identity.replica, clean,
            doubtful = opened.kept.doubtful, durable = %opened.durable, committed = %opened.committed,
            checkpoint = %opened.checkpoint, retained = %opened.retained, "opened a store"
        );
        Ok((store, opened))
    }

    /// Opens a replica whose delta or rebuild was not finished. It holds nothing that counts; only
    /// another one brings it on. What its extents hold of the image that the mark tells of is there,
    /// and whatever broken sessions wrote to them; the next one overwrites all of that.
    fn open_blank(
        storage: &Arc<dyn Storage>,
        files: Files,
        me: ReplicaRef,
        tail: TailId,
        options: StoreOptions,
    ) -> Result<(Self, Opened), StoreError> {
        let identity = files.superblock.identity;
        let mark = files.superblock.kept.incomplete.as_ref();
        if let (Some(mark), Some(proven)) = (mark, files.superblock.proven) {
            match mark.from {
                Lsn(0) => files.image.without_table(proven),
                _ => drop(files.image.read_proofs(proven, true)?),
            }
        }
        let log = Log::blank(Arc::clone(storage), WAL, identity.owner(), options.log())?;
        let state = LogState::new(files.superblock.blocks);
        let mut files = files;
        files.superblock.checkpoint = Lsn(0);
        files.superblock.committed = Lsn(0);
        files.superblock.cut = None;
        // Checkpoints of the rebuild recorded what its WAL lane brought, and none of that is there.
        files.superblock.kept.table = EpochTable::default();
        let opened = Opened {
            volume: identity.volume,
            me,
            tail,
            kept: files.superblock.kept.clone(),
            durable: Lsn(0),
            committed: Lsn(0),
            checkpoint: Lsn(0),
            retained: Lsn(1),
            state: state.clone(),
            uncommitted: Vec::new(),
        };
        let entries = options.entries(Lsn(1));
        let mut store = Self::assemble(files, log, entries, state, Vec::new(), options);
        store.blank = true;
        tracing::info!(
            volume = %identity.volume, replica = %identity.replica,
            "opened a store whose delta or rebuild was not finished"
        );
        Ok((store, opened))
    }

    fn assemble(
        files: Files,
        log: Log,
        entries: Entries,
        state: LogState,
        regions: Vec<Lsn>,
        mut options: StoreOptions,
    ) -> Self {
        let durable = entries.end();
        let checkpoint = files.superblock.checkpoint;
        if files.image.unit() > BLOCK_SIZE {
            // Each unit of both homes could have some current block, and a volume take twice its size.
            options.large_write_bytes = u64::MAX;
        }
        let log_begins = Arc::new(AtomicU64::new(log.first_index()));
        Self {
            options,
            superblock_file: files.superblock_file,
            promised: None,
            state_file: Some(files.state_file),
            image: files.image,
            log,
            entries,
            map: BlockMap::default(),
            references: References::default(),
            last_reference: Lsn(0),
            log_begins,
            short: false,
            blocks: state.blocks,
            state,
            regions,
            durable,
            told_committed: files.superblock.committed,
            checkpoint,
            given_up: Lsn(0),
            superblock: files.superblock,
            ages: Ages::default(),
            pins: BTreeMap::new(),
            lost_pins: BTreeSet::new(),
            rewriting: Arc::new(Rewriting::new(checkpoint)),
            verifying: Arc::new(()),
            written: None,
            wanted: Lsn(0),
            resident: 0,
            resident_entries: 0,
            batching: false,
            checkpointing: false,
            blank: false,
            failed: None,
        }
    }
}

/// The files beside the WAL.
struct Files {
    superblock_file: Slots,
    superblock: Superblock,
    state_file: Slots,
    image: Arc<Image>,
}

impl Files {
    /// Writes down that the log may have lost its end, before what tells so is overwritten.
    fn doubt(&mut self) -> Result<(), StoreError> {
        if !self.superblock.kept.doubtful {
            self.superblock.kept.doubtful = true;
            let record = self.image.stamper.sign(Label::Superblock, self.superblock.encode());
            self.superblock_file.write(&record)?;
            self.superblock_file.sync()?;
        }
        Ok(())
    }
}

/// What the WAL held.
struct Found {
    log: Log,
    entries: Entries,
    end: Lsn,
    committed: Lsn,
    /// The region table.
    regions: Vec<Lsn>,
    /// The last step of the checkpoint that it tells of was begun up to here: entries up to there are durable and
    /// committed.
    begun: Lsn,
    /// Where entries refer to payloads.
    references: References,
}

impl Found {
    /// Reads the log behind the superblock's checkpoint. The log state may be as of a later LSN: a
    /// crash came between it, which is written last of what a step of the checkpoint writes, and
    /// the superblock. The step is complete then, but the epochs of its entries may be recorded
    /// nowhere but in the log.
    fn scan(
        storage: &Arc<dyn Storage>,
        files: &mut Files,
        as_of: Lsn,
        options: &StoreOptions,
    ) -> Result<Self, StoreError> {
        let superblock = files.superblock.clone();
        let (regions, begun) = match superblock.proven {
            Some(proven) => files.image.read_proofs(proven, false)?,
            None => {
                let regions = files.image.read_regions()?;
                let begun = regions.iter().copied().max().unwrap_or(Lsn(0));
                (regions, begun)
            }
        };
        let identity = superblock.identity;
        let from = superblock.checkpoint.next();
        let mut entries = options.entries(from);
        let mut epoch = Epoch(0);
        let mut referred = Referred { image: Arc::clone(&files.image), as_of, all: Vec::new() };
        let mut visit = |record: &ReadRecord, place: Place| {
            let stored = codec::stored(&record.body, record.crc, &files.image.stamper)
                .filter(|stored| stored.header().lsn.0 == record.index)
                .ok_or_else(|| format!("record {} is no entry of that LSN", record.index))?;
            let header = *stored.header();
            if header.epoch < epoch {
                let (lsn, found) = (header.lsn, header.epoch);
                return Err(
                    format!("entry {lsn} is of epoch {found}, behind one of {epoch}").into()
                );
            }
            let mut entry = match stored {
                Stored::Entry(logged) => Entry::logged(logged),
                Stored::Reference(reference) => referred.take(reference)?,
            };
            epoch = header.epoch;
            entry.place = Some(place);
            entries.push(entry);
            // Payloads need not stay: they can be read where they were found. A record that has
            // yet to be copied keeps its own.
            entries.trim(header.lsn, superblock.checkpoint);
            Ok(())
        };
        // Region LSNs are those of entries that were durable before, of a step of the checkpoint or of a
        // rebuild's base, and no cut goes below them. [A step was killed behind them, the last entry rotted,
        // and the log was taken to end before it, though the extents held a part of it.]
        let expect = Expect {
            from: from.0,
            durable: superblock.durable.max(as_of).max(begun).0,
            cut: superblock.cut.map(|end| end.0),
        };
        let shared = Arc::clone(storage);
        let found = Log::read(shared, WAL, identity.owner(), options.log(), expect, &mut visit)?;
        if let Some(trace) = found.doubt() {
            tracing::warn!(replica = %identity.replica, trace, "the log may have lost its end");
            files.doubt()?;
        }
        let (log, opened) = found.settle()?;
        for note in &opened.notes {
            tracing::warn!(replica = %identity.replica, %note, "opening the WAL");
        }
        for (index, place) in opened.moved {
            if let Some(entry) = entries.get_mut(Lsn(index)) {
                entry.place = Some(place);
            }
        }
        let end = Lsn(opened.end);
        let committed = Lsn(opened.committed).max(files.superblock.committed).min(end);
        let references = referred.references(end);
        Ok(Self { log, entries, end, committed: committed.max(as_of), regions, begun, references })
    }

    fn build(
        self,
        storage: &Arc<dyn Storage>,
        mut files: Files,
        KeptState { state, as_of, last_reference, proven: _ }: KeptState,
        me: ReplicaRef,
        tail: TailId,
        options: StoreOptions,
    ) -> Result<(Store, Opened), StoreError> {
        let Self { log, mut entries, end, committed, regions, begun, references } = self;
        // What is in the image is not read again: nobody knows to which homes it refers, and they are used.
        let given_up = last_reference;
        let block = &mut files.superblock;
        block.cut = None;
        // What was recorded for entries that did not survive is not true of this log.
        let mut table = block.kept.table.up_to(end);
        // Region LSNs are durable before the first block of a checkpoint's step is written, and are
        // those of committed entries. So extents that a crash left half-written are never newer
        // than the committed LSN, even if that was told after the last frame was written:
        // otherwise a read as of the committed LSN would find bytes of a later entry, or torn ones,
        // and a cut could take away an entry that the extents keep.
        // The scan counts them as durable, and refuses a log that ends before: a guard, but what is read from
        // files must not end the process, with all other replicas of the node.
        if begun > end {
            return Err(StoreError::Damaged {
                path: storage.describe(WAL),
                what: format!("it ends at {end}, and the regions prove that it held {begun}"),
            });
        }
        let committed = committed.max(begun);
        block.committed = committed;
        let mut at_committed = state.clone();
        let mut uncommitted = Vec::new();
        for entry in entries.from(block.checkpoint.next()) {
            let header = &entry.header;
            let (lsn, epoch) = (header.lsn, header.epoch);
            if table.last().is_some_and(|(last, first)| epoch > last && lsn < first) {
                return Err(StoreError::Damaged {
                    path: storage.describe(WAL),
                    what: format!("entry {lsn} is of epoch {epoch}, which began later"),
                });
            }
            table.observe(header);
            if lsn <= as_of {
                continue;
            }
            if lsn > committed {
                uncommitted.push(*header);
            } else {
                at_committed.apply(header);
            }
        }
        block.kept.table = table;
        block.checkpoint = as_of;
        entries.trim(end, as_of);
        let opened = Opened {
            volume: block.identity.volume,
            me,
            tail,
            kept: block.kept.clone(),
            durable: end,
            committed,
            checkpoint: block.checkpoint,
            retained: Lsn(log.first_index()).max(given_up.next()),
            state: at_committed,
            uncommitted,
        };
        let mut store = Store::assemble(files, log, entries, state, regions, options);
        store.given_up = given_up;
        store.drop_pins();
        store.references = references;
        if last_reference > Lsn(0) {
            store.references.sweep_all();
        }
        store.last_reference = last_reference;
        store.reindex();
        // Also without one of its slots the superblock must not go back to where what is given up is needed:
        // the first record of an opening is synced in both.
        store.write_superblock()?;
        Ok((store, opened))
    }
}

fn open_superblock(storage: &Arc<dyn Storage>) -> Result<(Slots, Superblock), StoreError> {
    let path = storage.describe(SUPERBLOCK);
    match storage.open(SUPERBLOCK) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(StoreError::Absent { path: storage.describe("") });
        }
        Ok(_) | Err(_) => {}
    }
    let shared = Arc::clone(storage);
    let (slots, record) =
        Slots::open(shared, SUPERBLOCK, SUPERBLOCK_MAGIC, VERSION, SUPERBLOCK_SLOT)?;
    let stamper = Stamper::of(&**storage);
    let damaged = |what: &str| StoreError::Damaged { path: path.clone(), what: what.to_owned() };
    let record = stamper.verified(Label::Superblock, &record).ok_or_else(|| damaged(NOT_TAGGED))?;
    let superblock = Superblock::decode(record)
        .filter(|superblock| superblock.proven.is_some() == stamper.has_key())
        .ok_or_else(|| damaged("its record can't be read although its checksum is right"))?;
    Ok((slots, superblock))
}

/// The record of the log state.
struct KeptState {
    state: LogState,
    as_of: Lsn,
    /// The last entry up to there that refers to a payload.
    last_reference: Lsn,
    proven: Option<Proven>,
}

fn decode_state(
    storage: &Arc<dyn Storage>,
    identity: &Identity,
    stamper: &Stamper,
    record: &[u8],
) -> Result<KeptState, StoreError> {
    let path = storage.describe(STATE);
    let damaged = |what: &str| StoreError::Damaged { path: path.clone(), what: what.to_owned() };
    let record = stamper.verified(Label::State, record).ok_or_else(|| damaged(NOT_TAGGED))?;
    let unread = || damaged("its record can't be read although its checksum is right");
    let mut get = Get(record);
    let found = Identity::get(&mut get).ok_or_else(unread)?;
    identity.check(found, &path)?;
    let last_reference = Lsn(get.u64().ok_or_else(unread)?);
    let proven = match stamper.has_key() {
        true => {
            let version = get.u64().ok_or_else(unread)?;
            Some(Proven { version, root: get.array().ok_or_else(unread)? })
        }
        false => None,
    };
    let (state, as_of) = codec::get_state(&mut get).ok_or_else(unread)?;
    Ok(KeptState { state, as_of, last_reference, proven })
}
