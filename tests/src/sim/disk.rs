//! A node's disk: the real store over a simulated disk, and what it must and may hold.

use std::collections::BTreeMap;
use std::sync::Arc;

use sbk_engine::bugs::{Bug, on};
use sbk_engine::replication::io::{Kept, Opened};
use sbk_engine::replication::log::EntryHeader;
use sbk_engine::types::{
    BootId, Incarnation, Lba, LossGeneration, Lsn, ReplicaId, ReplicaRef, TailId, VolumeId,
};
use sbk_store::{CreateSpec, Identity, Pressure, Store, StoreError, StoreOptions};
use sbk_wal::{Memory, Storage};
use uuid::Uuid;

use super::ages::Ages;
use super::content::VOLUME_BLOCKS;
use super::proving::Proving;
use super::rng::Rng;

/// An entry as far as the checkers care: its header, and the CRC of header and payload.
pub(crate) type Entry = (EntryHeader, u32);

/// What the disk must and may hold, told from what was asked of the store and what it confirmed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shadow {
    /// What was appended and not taken back since the log began.
    log: BTreeMap<Lsn, Entry>,
    /// What the store said to be durable: it must be there after everything.
    pub(crate) durable: Lsn,
    /// What is in the log's file, synced or not: it is there after everything but a loss of the tail.
    pub(crate) written: Lsn,
    /// What the store was told to be committed.
    pub(crate) committed: Lsn,
    /// What the superblock holds at least.
    pub(crate) kept: Kept,
    /// How far the log went that a cut or a wipe has begun to take away.
    going: Lsn,
}

impl Shadow {
    pub(crate) fn end(&self) -> Lsn {
        let logged = self.log.last_key_value().map_or(self.durable, |(lsn, _)| *lsn);
        logged.max(self.going)
    }

    pub(crate) fn get(&self, lsn: Lsn) -> Option<&Entry> {
        self.log.get(&lsn)
    }

    pub(crate) fn entries(&self, first: Lsn, last: Lsn) -> Vec<Entry> {
        if first > last {
            return Vec::new();
        }
        self.log.range(first..=last).map(|(_, entry)| *entry).collect()
    }

    pub(crate) fn append(&mut self, entry: Entry) {
        self.log.insert(entry.0.lsn, entry);
    }

    /// A cut begins: what lies behind `end` may go from now on.
    pub(crate) fn cutting(&mut self, end: Lsn) {
        self.going = self.end();
        self.durable = self.durable.min(end);
        self.written = self.written.min(end);
    }

    pub(crate) fn was_cut(&mut self, end: Lsn, kept: Kept) {
        self.log.retain(|lsn, _| *lsn <= end);
        self.committed = self.committed.min(end);
        self.going = Lsn(0);
        self.kept = kept;
    }

    /// A wipe begins: everything may go from now on.
    pub(crate) fn wiping(&mut self) {
        self.going = self.end();
        self.durable = Lsn(0);
        self.written = Lsn(0);
    }

    /// The log begins anew above `base`; the image that comes is of these entries.
    pub(crate) fn was_wiped(&mut self, base: Lsn, kept: Kept, image: BTreeMap<Lsn, Entry>) {
        self.log = image;
        self.going = Lsn(0);
        self.durable = base;
        self.written = base;
        self.committed = base;
        self.kept = kept;
    }

    /// What an opening found stands from now on.
    fn opened(&mut self, opened: &Opened) {
        if opened.kept.incomplete.is_some() {
            self.log.clear();
        }
        self.log.retain(|lsn, _| *lsn <= opened.durable);
        self.going = Lsn(0);
        self.durable = opened.durable;
        self.written = opened.durable;
        self.committed = opened.committed;
        self.kept = opened.kept.clone();
    }
}

/// How the disks of a run are kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keeping {
    /// Bytes of a WAL segment.
    pub(crate) segment: u64,
    /// Bytes of checkpointed WAL that stay for catch-up.
    pub(crate) retain: u64,
    /// For how long it does, in milliseconds; 0: for as long as there is room.
    pub(crate) retain_ms: u64,
    /// Bytes at which a checkpoint is due.
    pub(crate) checkpoint: u64,
    /// Least bytes of a write that goes into the log by reference.
    pub(crate) large: u64,
    /// Replicas prove what they wrote, as encrypted ones do.
    pub(crate) proving: bool,
}

impl Keeping {
    fn storage(self, memory: &Memory) -> Arc<dyn Storage> {
        let memory = memory.clone();
        if self.proving { Arc::new(Proving(memory)) } else { Arc::new(memory) }
    }

    fn options(self) -> StoreOptions {
        StoreOptions {
            wal_segment_bytes: self.segment,
            batch_bytes: 32 << 10,
            wal_retain_bytes: self.retain,
            wal_retain_ms: self.retain_ms,
            wal_pin_bytes: 24 << 10,
            wal_max_bytes: 1 << 20,
            wal_max_entries: 400,
            tail_cache_bytes: 24 << 10,
            large_write_bytes: self.large,
            large_batch_bytes: 0,
            tail_memory: None,
            checkpoint_bytes: self.checkpoint,
        }
    }
}

pub(crate) struct Disk {
    pub(crate) memory: Memory,
    storage: Arc<dyn Storage>,
    /// Of the replica that is here, or was last.
    identity: Identity,
    made: bool,
    keeping: Keeping,
    process: u64,
    opens: u64,
    boot: u64,
    /// The count of the tail.
    tail: u64,
    pub(crate) store: Option<Store>,
    /// Since its log ended there the disk has been short of room.
    pub(crate) short_since: Option<Lsn>,
    pub(crate) shadow: Shadow,
    /// For how long the log of the open store has been in the extents.
    pub(crate) ages: Ages,
}

impl Disk {
    /// A disk with nothing on it. `nobody` is no replica's id.
    pub(crate) fn new(
        volume: VolumeId,
        nobody: ReplicaId,
        keeping: Keeping,
        rng: &mut Rng,
    ) -> Self {
        let memory = Memory::new(rng.next());
        Self {
            storage: keeping.storage(&memory),
            memory,
            keeping,
            identity: Identity { volume, replica: nobody },
            made: false,
            process: 0,
            opens: 0,
            boot: 1,
            tail: 0,
            store: None,
            short_since: None,
            shadow: Shadow::default(),
            ages: Ages::default(),
        }
    }

    /// The replica whose directory is here, whole: its superblock is there.
    pub(crate) fn holds(&self) -> Option<ReplicaId> {
        self.made.then_some(self.identity.replica)
    }

    /// Whether this process has not opened what is here.
    pub(crate) fn is_unopened(&self) -> bool {
        self.opens == 0
    }

    /// Looks whether the replica is there, whole.
    fn look(&mut self) {
        self.made = self.memory.content("superblock").is_some();
    }

    /// The masters order an empty replica to be made. One whose making was cut short is made over.
    pub(crate) fn begin(&mut self, replica: ReplicaId, rng: &mut Rng) {
        assert!(self.holds().is_none_or(|here| here == replica), "a replica is made where one is");
        if self.identity.replica != replica && !self.memory.paths().is_empty() {
            self.memory = Memory::new(rng.next());
            self.storage = self.keeping.storage(&self.memory);
        }
        self.identity.replica = replica;
        self.opens = 0;
        self.shadow = Shadow::default();
    }

    /// Makes it, durably.
    pub(crate) fn create(&mut self) -> Result<(), StoreError> {
        // It learns of losses when it is reconciled, as everything else.
        let (identity, loss_generation) = (self.identity, LossGeneration(0));
        let spec = CreateSpec { identity, blocks: VOLUME_BLOCKS, loss_generation };
        let done = Store::create(&self.storage, &spec, &self.keeping.options());
        self.look();
        done
    }

    /// The directory goes, at once.
    pub(crate) fn remove(&mut self, nobody: ReplicaId, rng: &mut Rng) {
        self.store = None;
        self.memory = Memory::new(rng.next());
        self.storage = self.keeping.storage(&self.memory);
        self.identity.replica = nobody;
        self.shadow = Shadow::default();
        self.made = false;
    }

    pub(crate) fn process(&self) -> u64 {
        self.process
    }

    pub(crate) fn tail(&self) -> TailId {
        let boot = BootId(Uuid::from_u128(u128::from(self.boot)));
        TailId { boot, count: self.tail }
    }

    /// An operation failed: what was written and not synced may be gone, now or later.
    pub(crate) fn lose_tail(&mut self) {
        self.shadow.written = self.shadow.durable;
        if !on(Bug::FailedSyncKeepsTail) {
            self.tail += 1;
        }
    }

    /// It can't be used from now on; what was not synced is gone with it, or not.
    pub(crate) fn is_pulled(&mut self, unsynced: bool) {
        self.store = None;
        if unsynced {
            self.memory.power_loss();
        } else {
            self.memory.process_killed();
        }
        self.shadow.written = self.shadow.durable;
        self.look();
    }

    /// The process is started; no replica is open yet.
    pub(crate) fn process_starts(&mut self) {
        self.process += 1;
        self.opens = 0;
    }

    /// The process ends without a word. `power`: and the machine with it.
    pub(crate) fn dies(&mut self, power: bool) {
        self.store = None;
        if power {
            self.memory.power_loss();
            self.boot += 1;
            self.shadow.written = self.shadow.durable;
        } else {
            self.memory.process_killed();
        }
        self.look();
    }

    /// Opens the store, as the runtime does at its start and after each failure. What the opening
    /// must have found is the caller's to check, by the shadow before it.
    pub(crate) fn open(&mut self) -> Result<Opened, StoreError> {
        self.store = None;
        self.ages = Ages::default();
        self.opens += 1;
        let incarnation = Incarnation { process: self.process, open: self.opens };
        let options = self.keeping.options();
        let (store, mut opened) =
            Store::open(&self.storage, self.identity, incarnation, self.tail(), options)?;
        if opened.kept.doubtful {
            self.tail += 1;
            opened.tail = self.tail();
        }
        assert_eq!(opened.me, ReplicaRef { id: self.identity.replica, incarnation });
        self.store = Some(store);
        Ok(opened)
    }

    /// Opens a copy of the disk as it would be opened itself.
    pub(crate) fn open_copy(&self, copy: Memory) -> Result<(Store, Opened), StoreError> {
        let storage = self.keeping.storage(&copy);
        let incarnation = Incarnation { process: self.process, open: self.opens + 1 };
        let options = self.keeping.options();
        Store::open(&storage, self.identity, incarnation, self.tail(), options)
    }

    /// Whether the log behind the checkpoint refers to a payload in one of the block's homes.
    pub(crate) fn is_in_log(&self, block: Lba) -> bool {
        let refers =
            |store: &Store| store.referred(block).is_some_and(|at| at > store.checkpoint());
        match &self.store {
            Some(store) if !self.memory.crashed() => refers(store),
            Some(_) | None => {
                let copy = self.memory.fork();
                copy.mend();
                self.open_copy(copy).is_ok_and(|(store, _)| refers(&store))
            }
        }
    }

    /// Takes an opening for true.
    pub(crate) fn accept(&mut self, opened: &Opened) {
        self.shadow.opened(opened);
    }

    pub(crate) fn store(&mut self) -> &mut Store {
        self.store.as_mut().expect("a replica that runs has its store open")
    }

    /// Its disk is short of room, or is not any more.
    pub(crate) fn set_short(&mut self, short: bool) {
        if let Some(store) = &mut self.store {
            store.set_short(short);
            self.short_since = short.then(|| self.short_since.unwrap_or(store.end()));
        }
    }

    /// Bytes of the WAL's files.
    pub(crate) fn wal_bytes(&self) -> u64 {
        let paths = self.memory.paths().into_iter().filter(|path| path.starts_with("wal/"));
        paths.map(|path| self.memory.content(&path).map_or(0, |content| content.len() as u64)).sum()
    }

    /// Bytes of checkpointed WAL that are to stay for others who have no session.
    pub(crate) fn keeps_bytes(&self) -> u64 {
        self.keeping.options().wal_retain_bytes
    }

    /// Bytes of WAL that are to stay for others.
    pub(crate) fn retained_bytes(&self) -> u64 {
        self.keeping.options().wal_retain_bytes + self.keeping.options().wal_pin_bytes
    }

    /// How many bytes the next step of the checkpoint should take, if one is due: as the runtime
    /// has it.
    pub(crate) fn checkpoint_budget(&self) -> Option<u64> {
        let store = self.store.as_ref()?;
        store.checkpoint_budget(store.wal_pressure() == Pressure::Full)
    }
}
