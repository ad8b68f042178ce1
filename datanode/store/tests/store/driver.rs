//! Random work on one store.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;

use sbk_engine::bugs::{Bug, on};
use sbk_engine::replication::io::Opened;
use sbk_engine::replication::log::{BlockRange, EpochTable, LogState};
use sbk_engine::replication::message::{Incomplete, RecoveryId};
use sbk_engine::types::{
    BootId, Epoch, Incarnation, Lba, LossGeneration, Lsn, REGION_BLOCKS, ReplicaId, TailId,
    VolumeId,
};
use sbk_store::{
    BatchResult, CheckpointDone, CreateSpec, Identity, Store, StoreError, StoreOptions,
};
use sbk_wal::Storage;
use uuid::Uuid;

use super::content::{
    BLOCKS, MAX_BLOCKS, Random, Tag, base_image, bytes_of, delta_image, make, tags_of,
};
use super::events::Event;

/// Small, so that everything happens often.
pub(crate) fn options() -> StoreOptions {
    StoreOptions {
        wal_segment_bytes: 32 << 10,
        batch_bytes: 24 << 10,
        wal_retain_bytes: 48 << 10,
        wal_retain_ms: 0,
        wal_pin_bytes: 32 << 10,
        wal_max_bytes: 256 << 10,
        wal_max_entries: 400,
        tail_cache_bytes: 20 << 10,
        large_write_bytes: 12 << 10,
        large_batch_bytes: 0,
        tail_memory: None,
        checkpoint_bytes: 16 << 10,
    }
}

/// The `n`-th replica of the volume.
pub(crate) fn identity(n: u64) -> Identity {
    Identity {
        volume: VolumeId(Uuid::from_u128(0xb0)),
        replica: ReplicaId(Uuid::from_u128(u128::from(n) + 1)),
    }
}

pub(crate) fn create(storage: &Arc<dyn Storage>, n: u64) -> Result<(), StoreError> {
    let loss_generation = LossGeneration(1);
    let spec = CreateSpec { identity: identity(n), blocks: BLOCKS, loss_generation };
    Store::create(storage, &spec, &options())
}

pub(crate) fn open(storage: &Arc<dyn Storage>, n: u64) -> Result<(Store, Opened), StoreError> {
    let incarnation = Incarnation { process: 1, open: 1 };
    let tail = TailId { boot: BootId(Uuid::from_u128(1)), count: 0 };
    Store::open(storage, identity(n), incarnation, tail, options())
}

/// Work that was handed out: not begun yet, or running beside the rest.
enum Job<T> {
    Held(Box<dyn FnOnce() -> T + Send>),
    Running(JoinHandle<T>),
}

impl<T: Send + 'static> Job<T> {
    fn new(threads: bool, work: impl FnOnce() -> T + Send + 'static) -> Self {
        if threads { Self::Running(std::thread::spawn(work)) } else { Self::Held(Box::new(work)) }
    }

    fn finish(self) -> T {
        match self {
            Self::Held(work) => work(),
            Self::Running(thread) => thread.join().expect("the store's work does not panic"),
        }
    }
}

/// What a seed is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A bit of everything.
    Mixed,
    /// Little is committed, so that cuts take away what is durable, of several batches.
    Cuts,
    /// A rebuild over an image that is there, to its end.
    Rebuild,
    /// A delta over it.
    Delta,
}

impl Kind {
    fn of(seed: u64) -> Self {
        match seed % 6 {
            0 | 3 => Self::Mixed,
            1 | 4 => Self::Cuts,
            2 => Self::Rebuild,
            _ => Self::Delta,
        }
    }
}

/// A delta or a rebuild under way.
struct Rebuild {
    mark: Incomplete,
    image: Vec<Tag>,
    /// The sender's region LSNs.
    regions: Vec<Lsn>,
    /// Base blocks yet to come.
    chunks: Vec<u64>,
}

const CHUNK: u64 = 40;

pub(crate) struct Driver<'a> {
    seed: u64,
    random: Random,
    store: Store,
    epoch: u64,
    /// The log's state after each LSN from the committed one on.
    states: VecDeque<(u64, LogState)>,
    batch: Option<Job<BatchResult>>,
    checkpoint: Option<(Job<CheckpointDone>, bool)>,
    rebuild: Option<Rebuild>,
    sessions: u64,
    kind: Kind,
    first: bool,
    /// Work that may take long runs on threads of its own.
    threads: bool,
    report: &'a mut dyn FnMut(Event),
}

impl<'a> Driver<'a> {
    /// Goes on with a store that was just opened. `run` tells apart runs with one seed; the first is
    /// 0.
    pub(crate) fn new(
        seed: u64,
        run: u64,
        (store, opened): (Store, Opened),
        threads: bool,
        report: &'a mut dyn FnMut(Event),
    ) -> Self {
        report(Event::Opened { end: opened.durable.0 });
        let mut states = VecDeque::from([(opened.committed.0, opened.state.clone())]);
        for header in &opened.uncommitted {
            let mut state = states.back().expect("one").1.clone();
            state.apply(header);
            states.push_back((header.lsn.0, state));
        }
        Self {
            seed,
            random: Random(seed ^ run.wrapping_mul(0x1234_5678_9abc_def1)),
            epoch: opened.kept.fenced.0,
            states,
            batch: None,
            checkpoint: None,
            rebuild: None,
            sessions: run * 1000,
            kind: Kind::of(seed),
            first: run == 0,
            threads,
            report,
            store,
        }
    }

    fn tell(&mut self, event: Event) {
        (self.report)(event);
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Does `steps` steps.
    pub(crate) fn run(&mut self, steps: u64) -> Result<(), StoreError> {
        if let Some(torn) = self.store.kept().incomplete {
            if torn.from > Lsn(0) && !self.random.one_in(4) {
                self.delta_again(torn.from)?;
            } else {
                self.wipe()?;
            }
        } else {
            self.promise()?;
            // Rebuilds are rare otherwise.
            if self.first && self.seed.is_multiple_of(2) {
                self.wipe()?;
            }
        }
        for step in 0..steps {
            if self.kind == Kind::Rebuild && step == steps / 3 && self.rebuild.is_none() {
                self.wipe()?;
            }
            if self.kind == Kind::Delta && step == steps / 2 && self.rebuild.is_none() {
                self.delta()?;
            }
            self.step()?;
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), StoreError> {
        let hurry = matches!(self.kind, Kind::Rebuild | Kind::Delta);
        if self.rebuild.is_some() && (hurry || self.random.one_in(3)) {
            return self.rebuild_step();
        }
        if self.kind == Kind::Cuts && self.random.one_in(12) {
            return self.cut();
        }
        match self.random.below(100) {
            0..30 => self.append(),
            30..55 => self.batch(),
            55..75 => {
                if self.kind != Kind::Cuts || self.random.one_in(8) {
                    self.commit();
                }
                Ok(())
            }
            75..90 => self.checkpoint(true),
            90..94 => self.checkpoint(false),
            94..96 => self.promise(),
            96..99 => self.cut(),
            _ if self.random.one_in(3) && self.rebuild.is_none() => self.wipe(),
            _ => Ok(()),
        }
    }

    pub(crate) fn append(&mut self) -> Result<(), StoreError> {
        // Nothing more goes in before a checkpoint made room, as the owner of a store has it.
        for _ in 0..1 + self.random.below(5) {
            if self.store.wal_pressure() == sbk_store::Pressure::Full {
                self.commit();
                return self.checkpoint(true);
            }
            let before = &self.states.back().expect("one").1;
            let made = make(self.seed, self.epoch, self.store.end().0 + 1, before);
            let mut state = before.clone();
            state.apply(&made.header);
            let lsn = made.header.lsn.0;
            self.store.append(made.header, made.crc(), made.payload())?;
            self.states.push_back((lsn, state));
            self.tell(Event::Appended { lsn, epoch: made.header.epoch.0 });
        }
        Ok(())
    }

    /// Hands a batch out, or takes the one that is out back.
    pub(crate) fn batch(&mut self) -> Result<(), StoreError> {
        if let Some(job) = self.batch.take() {
            let before = self.store.written();
            let lsn = self.store.batch_done(job.finish())?.0;
            // The entries of payloads that were placed go out at once.
            if self.store.written() > before {
                self.tell(Event::Durable { lsn });
                return Ok(());
            }
        }
        if let Some(batch) = self.store.take_batch() {
            self.tell(Event::BatchBegins);
            self.batch = Some(Job::new(self.threads, move || batch.run()));
        }
        Ok(())
    }

    /// Tells the store that more is committed, perhaps more than is durable here.
    pub(crate) fn commit(&mut self) {
        let (from, end) = (self.states[0].0, self.store.end().0);
        let lsn = from + self.random.below(end - from + 1);
        self.tell(Event::Committed { lsn });
        self.store.set_committed(Lsn(lsn));
        while self.states[0].0 < lsn {
            self.states.pop_front();
        }
    }

    /// Hands a step of the checkpoint out, or takes the one that is out back.
    pub(crate) fn checkpoint(&mut self, advance: bool) -> Result<(), StoreError> {
        if let Some((job, advance)) = self.checkpoint.take() {
            let (checkpoint, _) = self.store.checkpoint_done(job.finish())?;
            self.tell(if advance {
                Event::Checkpointed { checkpoint: checkpoint.0 }
            } else {
                Event::Recycled
            });
            return Ok(());
        }
        let budget = if advance { 1 + self.random.below(64 << 10) } else { 0 };
        if let Some(plan) = self.store.plan_checkpoint(budget) {
            self.tell(if advance { Event::CheckpointBegins } else { Event::RecycleBegins });
            self.checkpoint = Some((Job::new(self.threads, move || plan.run()), advance));
        }
        Ok(())
    }

    /// Takes back all that is out.
    pub(crate) fn settle(&mut self) -> Result<(), StoreError> {
        while self.batch.is_some() {
            self.batch()?;
        }
        if self.checkpoint.is_some() {
            self.checkpoint(true)?;
        }
        Ok(())
    }

    /// Promises a new epoch; entries are of it from now on.
    fn promise(&mut self) -> Result<(), StoreError> {
        let epoch = self.epoch + 1;
        let mut kept = self.store.kept().clone();
        kept.fenced = Epoch(epoch);
        self.tell(Event::PersistBegins { epoch });
        self.store.persist(&kept)?;
        self.tell(Event::Persisted { epoch });
        self.epoch = epoch;
        Ok(())
    }

    pub(crate) fn cut(&mut self) -> Result<(), StoreError> {
        if self.rebuild.is_some() {
            return Ok(());
        }
        self.settle()?;
        let (from, to) = (self.states[0].0, self.store.end().0);
        let from = from.max(self.store.checkpoint().0);
        let (end, epoch) = (from + self.random.below(to - from + 1), self.epoch + 1);
        let mut kept = self.store.kept().clone();
        kept.table = kept.table.up_to(Lsn(end));
        kept.fenced = Epoch(epoch);
        self.tell(Event::CutBegins { end, epoch });
        self.store.cut(Lsn(end), &kept)?;
        self.tell(Event::Cut { end, epoch });
        self.epoch = epoch;
        self.states.retain(|(lsn, _)| *lsn <= end);
        Ok(())
    }

    pub(crate) fn wipe(&mut self) -> Result<(), StoreError> {
        self.settle()?;
        // After a loss the primary's log may be shorter than what was here.
        let above = if self.random.one_in(3) { 0 } else { self.store.end().0 };
        let base = above + 1 + self.random.below(5);
        let epoch = self.epoch + 1;
        self.tell(Event::WipeBegins { base, epoch });
        let image = base_image(self.seed, base);
        let written = |region: &[Tag]| region.iter().any(|tag| *tag != 0);
        let lsn = |region| if written(region) { Lsn(base) } else { Lsn(0) };
        let regions = image.chunks(REGION_BLOCKS as usize).map(lsn).collect();
        self.begin(Lsn(0), base, image, regions)
    }

    /// Takes a delta over what is here.
    fn delta(&mut self) -> Result<(), StoreError> {
        self.settle()?;
        let from = self.store.durable();
        if from == Lsn(0) {
            return self.wipe();
        }
        self.tell(Event::Committed { lsn: from.0 });
        self.store.set_committed(from);
        self.states.retain(|(lsn, _)| *lsn >= from.0);
        while self.store.want_checkpoint(from).is_none() && !on(Bug::DeltaUncheckpointed) {
            self.checkpoint(true)?;
        }
        let base = self.store.end().0 + 1 + self.random.below(5);
        let all = BlockRange { lba: Lba(0), blocks: MAX_BLOCKS as u32 };
        let (held, _) = self.store.plan_read_committed(all).run().expect("the image can be read");
        let (image, changed) = delta_image(self.seed, base, &tags_of(&held));
        let mut regions = self.store.regions();
        regions.resize(MAX_BLOCKS.div_ceil(REGION_BLOCKS) as usize, Lsn(0));
        changed.into_iter().for_each(|region| regions[region as usize] = Lsn(base));
        let epoch = self.epoch + 1;
        self.tell(Event::DeltaBegins { base, epoch, from: from.0 });
        self.begin(from, base, image, regions)
    }

    /// Takes up a delta that broke: everything was written since it began.
    fn delta_again(&mut self, from: Lsn) -> Result<(), StoreError> {
        let base = self.store.end().0.max(from.0) + 1 + self.random.below(5);
        let epoch = self.epoch + 1;
        self.tell(Event::WipeBegins { base, epoch });
        let regions = vec![Lsn(base); MAX_BLOCKS.div_ceil(REGION_BLOCKS) as usize];
        self.begin(from, base, base_image(self.seed, base), regions)
    }

    fn begin(
        &mut self,
        from: Lsn,
        base: u64,
        image: Vec<Tag>,
        regions: Vec<Lsn>,
    ) -> Result<(), StoreError> {
        self.sessions += 1;
        let epoch = self.epoch + 1;
        let session = RecoveryId { epoch: Epoch(epoch), number: self.sessions };
        let target = Lsn(base + self.random.below(4));
        let mark = Incomplete { session, from, base: Lsn(base), target };
        let mut kept = self.store.kept().clone();
        kept.fenced = Epoch(epoch);
        kept.incomplete = Some(mark);
        kept.table = EpochTable::from_pairs(vec![(Epoch(epoch), Lsn(base + 1))]).expect("one");
        let state = LogState::new(BLOCKS);
        self.store.wipe(&mark, &state, &kept)?;
        self.tell(Event::Wiped { base, epoch });
        self.epoch = epoch;
        self.states = VecDeque::from([(base, state)]);
        let sent = if from > Lsn(0) { MAX_BLOCKS } else { BLOCKS };
        let mut chunks: Vec<u64> = (0..sent.div_ceil(CHUNK)).collect();
        for at in 1..chunks.len() {
            chunks.swap(at, self.random.below(at as u64 + 1) as usize);
        }
        self.rebuild = Some(Rebuild { mark, image, regions, chunks });
        Ok(())
    }

    /// The next base blocks; once all are there, and the WAL lane reached its target, the end.
    fn rebuild_step(&mut self) -> Result<(), StoreError> {
        let rebuild = self.rebuild.as_mut().expect("one is under way");
        if let Some(chunk) = rebuild.chunks.pop() {
            let first = chunk * CHUNK;
            let end = (first + CHUNK).min(MAX_BLOCKS);
            for block in first..end {
                let tag = rebuild.image[block as usize];
                let lsn = rebuild.regions[(block / REGION_BLOCKS) as usize];
                if tag != 0 && lsn > rebuild.mark.from {
                    self.store.write_base(Lba(block), &bytes_of(&[tag]))?;
                }
                // A rebuild sends no zeros.
                if tag == 0 && lsn > rebuild.mark.from && rebuild.mark.from > Lsn(0) {
                    self.store.write_base_zeros(block..block + 1)?;
                }
            }
            return Ok(());
        }
        if self.store.durable() < rebuild.mark.target {
            self.append()?;
            return self.batch();
        }
        self.settle()?;
        let rebuild = self.rebuild.take().expect("it is still under way");
        self.store.set_regions(0, &rebuild.regions);
        let mut kept = self.store.kept().clone();
        kept.incomplete = None;
        self.tell(Event::FinishBegins);
        self.store.finish_rebuild(&kept)?;
        self.tell(Event::Finished);
        Ok(())
    }

    /// After an error: takes back what is out, and says how the store goes on nevertheless, which
    /// it must not.
    pub(crate) fn goes_on(mut self) -> Option<&'static str> {
        if let Some(job) = self.batch.take()
            && self.store.batch_done(job.finish()).is_ok()
        {
            return Some("a batch counts");
        }
        if let Some((job, _)) = self.checkpoint.take()
            && self.store.checkpoint_done(job.finish()).is_ok()
        {
            return Some("a checkpoint counts");
        }
        let made = make(self.seed, self.epoch, self.store.end().0 + 1, &LogState::new(BLOCKS));
        let kept = self.store.kept().clone();
        if self.store.failure().is_none() {
            Some("it does not say why it failed")
        } else if self.store.append(made.header, made.crc(), made.payload()).is_ok() {
            Some("it takes entries")
        } else if self.store.take_batch().is_some() {
            Some("it hands batches out")
        } else if self.store.plan_checkpoint(1 << 20).is_some() {
            Some("it checkpoints")
        } else if self.store.persist(&kept).is_ok() {
            Some("it promises")
        } else if self.store.close_clean().is_ok() {
            Some("it is closed in order")
        } else {
            None
        }
    }

    /// Ends the run in order.
    pub(crate) fn close(mut self) -> Result<(), StoreError> {
        self.settle()?;
        self.tell(Event::CloseBegins);
        self.store.close_clean()?;
        (self.report)(Event::Closed);
        Ok(())
    }
}
