//! One node: its clock, its disk, and what its driver holds. How it lives and dies.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use sbk_engine::replication::Replica;
use sbk_engine::replication::io::{Input, Opened, StreamEnd, StreamId};
use sbk_engine::replication::log::RequestTag;
use sbk_engine::replication::message::RecoveryId;
use sbk_engine::replication::room::{Space, SpaceTold};
use sbk_engine::types::{
    Config, Epoch, Lsn, Millis, NodeId, ReplicaId, ReplicaRef, VolumeId, Wish, WriteAck,
};
use sbk_store::{
    AllocationPlan, BatchResult, CheckpointDone, CheckpointPlan, Failures, FindDataPlan, LogEntry,
    ReadPlan, Reopening, StoreError, SyncResult, WalBatch, WalSync, is_out_of_space,
};
use uuid::Uuid;

use super::disk::Disk;
use super::event::Event;
use super::failed::Slots;
use super::faults::Faults;
use super::lanes::{Receiving, Sending};
use super::marks::{Injected, Mark};
use super::masters::{Catalogue, Masters, Open, Told};
use super::rng::Rng;
use super::rotten::Telling;
use super::world::World;

/// A full disk that has room again is looked at after this at the latest, as in the runtime.
const LOOK_FOR_ROOM: u64 = 500;

/// Work of the store that runs beside the node's other business.
#[derive(Debug)]
pub(crate) enum Work<P, R> {
    Planned(P),
    Done(R),
}

/// A batch of the WAL, and whether it is synced with it.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) batch: WalBatch,
    pub(crate) sync: bool,
}

impl Batch {
    pub(crate) fn run(self) -> BatchResult {
        if self.sync { self.batch.run() } else { self.batch.write_only() }
    }
}

/// What the engine needs no bytes of.
#[derive(Clone, Debug)]
pub(crate) enum Held {
    Write(Bytes),
    Partial(Bytes),
    Read(Option<Bytes>),
    Nothing,
}

pub(crate) struct Node {
    pub(crate) node: NodeId,
    /// The replica that is here, or is being made; of a node without one an id that nobody has.
    pub(crate) id: ReplicaId,
    pub(crate) disk: Disk,
    /// Whether its process runs.
    pub(crate) up: bool,
    /// `None` while the process is down or the store closed.
    pub(crate) replica: Option<Replica>,
    /// Counts openings: what was under way for an earlier one is void.
    pub(crate) run: u64,
    /// Failures of the store in this process.
    failures: Failures,
    /// Why the store was not opened again at once, and since when it waits.
    reopening: Option<(Reopening, u64)>,
    /// The newest configuration that the masters sent to this process, for the next opening.
    pub(crate) config: Option<Config>,
    /// What the masters told this process of the volume, which is to be at least of this revision.
    pub(crate) catalogue: Option<Rc<Catalogue>>,
    pub(crate) since: u64,
    /// Work on the replica's directory is under way; nothing more is begun.
    pub(crate) busy: bool,
    /// It goes: nobody opens it any more.
    pub(crate) removing: bool,
    /// Its replica can't be opened: what it keeps is damaged.
    pub(crate) damaged: bool,
    /// Its disks.
    pub(crate) slots: Slots,
    /// Whether it tells of them.
    tells_disks: bool,
    /// Switched off, for ever as far as anybody knows.
    pub(crate) lost: bool,
    /// What it told the masters last of its replica, and how often that changed in this process.
    said: Option<(Option<Open>, Vec<u64>)>,
    revision: u64,
    /// Deaf and still until resumed; what comes meanwhile waits.
    pub(crate) paused: bool,
    pub(crate) waiting: Vec<Event>,
    /// Cut off from the masters.
    pub(crate) unheard: bool,
    /// Cut off from the clients.
    pub(crate) unseen: bool,
    /// The newest epoch that a refusal told this opening of its store of.
    pub(crate) told_of: Epoch,
    /// What the replica was told last of what the masters wish.
    pub(crate) wished: Wish,
    /// The process was told to end.
    pub(crate) ending: bool,
    /// It does not know what became of a handover.
    pub(crate) handover_unknown: bool,
    /// Its disk answers nothing before this time.
    pub(crate) stalled_until: u64,
    /// Its disk takes writes, and syncs nothing of them before this time.
    pub(crate) syncs_from: u64,
    /// When its timer fires, on the world's clock.
    pub(crate) timer: u64,
    /// Its own clock: so many thousandths faster than the world's, and so far ahead.
    rate: i64,
    pub(crate) ahead: u64,
    /// When its clock may jump again: at most once within a lease.
    pub(crate) may_jump: u64,
    /// Inputs that outputs led to, before anything from outside.
    pub(crate) inbox: VecDeque<(Input, Vec<LogEntry>)>,
    /// The entries beside the input that is being handled.
    pub(crate) fed: Vec<LogEntry>,
    /// Frontends' streams, and the bytes of requests on them that have no answer yet.
    pub(crate) open: BTreeSet<StreamId>,
    pub(crate) held: BTreeMap<(StreamId, RequestTag), Held>,
    pub(crate) reads: BTreeMap<(StreamId, RequestTag), ReadPlan>,
    /// Requests whose blocks are read to be merged.
    pub(crate) merging: BTreeSet<(StreamId, RequestTag)>,
    /// Blocks that are read for a primary, by it and its question.
    pub(crate) telling: BTreeMap<(ReplicaId, u64), Telling>,
    /// A look for data beyond a new end, with its number.
    pub(crate) search: Option<(u64, FindDataPlan)>,
    /// Looks whether blocks of requests hold nothing.
    pub(crate) looks: BTreeMap<(StreamId, RequestTag), AllocationPlan>,
    /// How much room there is on its disk.
    pub(crate) space: Space,
    /// Since when it is below its placement watermark.
    pub(crate) low_since: Option<u64>,
    /// What other replicas said of theirs to this opening, by their runs.
    pub(crate) rooms: BTreeMap<ReplicaRef, SpaceTold>,
    pub(crate) batch: Option<(u64, Work<Batch, BatchResult>)>,
    pub(crate) sync: Option<(u64, Work<WalSync, SyncResult>)>,
    pub(crate) checkpoint: Option<(u64, Work<CheckpointPlan, CheckpointDone>)>,
    /// What was last recorded as durable, and when.
    pub(crate) recorded: (Lsn, u64),
    /// Base lanes to replicas that are rebuilt.
    pub(crate) sending: BTreeMap<RecoveryId, Sending>,
    /// The base lane that this replica is rebuilt from.
    pub(crate) receiving: Option<Receiving>,
    /// The newest LSN whose blocks its replica's extents may hold.
    pub(crate) reach: Lsn,
    /// The node that sent the last delta which began here.
    pub(crate) sent_by: Option<usize>,
}

/// The id that stands for "no replica" at a node.
pub(crate) fn nobody(number: u128) -> ReplicaId {
    ReplicaId(Uuid::from_u128(1 << 96 | number))
}

impl Node {
    /// A node that holds nothing.
    pub(crate) fn new(volume: VolumeId, number: u128, faults: &Faults, rng: &mut Rng) -> Self {
        let (node, nobody) = (NodeId(Uuid::from_u128(number)), nobody(number));
        // Any two clocks differ by less than the 2 % that the leases allow for.
        let rate = if faults.drift { rng.below(19) as i64 - 9 } else { 0 };
        let ahead = if faults.drift { rng.below(100_000) } else { 0 };
        Self {
            node,
            id: nobody,
            disk: Disk::new(volume, nobody, faults.keeping(), rng),
            up: false,
            replica: None,
            run: 0,
            failures: Failures::default(),
            reopening: None,
            config: None,
            catalogue: None,
            since: 0,
            busy: false,
            removing: false,
            damaged: false,
            slots: Slots::default(),
            tells_disks: faults.disk_loss,
            lost: false,
            said: None,
            revision: 1,
            paused: false,
            waiting: Vec::new(),
            unheard: false,
            unseen: false,
            told_of: Epoch(0),
            wished: Wish::default(),
            ending: false,
            handover_unknown: false,
            stalled_until: 0,
            syncs_from: 0,
            timer: 0,
            rate,
            ahead,
            may_jump: 0,
            inbox: VecDeque::new(),
            fed: Vec::new(),
            open: BTreeSet::new(),
            held: BTreeMap::new(),
            reads: BTreeMap::new(),
            merging: BTreeSet::new(),
            telling: BTreeMap::new(),
            search: None,
            looks: BTreeMap::new(),
            space: Space::default(),
            low_since: None,
            rooms: BTreeMap::new(),
            batch: None,
            sync: None,
            checkpoint: None,
            recorded: (Lsn(0), 0),
            sending: BTreeMap::new(),
            receiving: None,
            reach: Lsn(0),
            sent_by: None,
        }
    }

    /// How the node is, for a person.
    pub(crate) fn told_briefly(&self) -> String {
        let Self { id, up, lost, busy, removing, paused, unheard, .. } = self;
        let open = self.replica.is_some();
        let here = self.disk.holds();
        format!(
            "up {up}, lost {lost}, {id}, here {here:?}, open {open}, busy {busy}, removing {removing}, \
             paused {paused}, unheard {unheard}, crashed {}",
            self.disk.memory.crashed()
        )
    }

    /// Takes a replica that is being made.
    pub(crate) fn hold(&mut self, replica: ReplicaId, rng: &mut Rng) {
        self.disk.begin(replica, rng);
        self.id = replica;
        self.reach = Lsn(0);
        self.damaged = false;
    }

    /// Its replica's directory goes.
    pub(crate) fn let_go(&mut self, rng: &mut Rng) {
        let nobody = nobody(self.node.0.as_u128());
        self.disk.remove(nobody, rng);
        self.id = nobody;
        self.reach = Lsn(0);
        self.damaged = false;
    }

    /// What the node's clock shows when it is `now` in the world.
    pub(crate) fn clock(&self, now: u64) -> Millis {
        let own = now as i64 * (1000 + self.rate) / 1000;
        Millis(own as u64 + self.ahead)
    }

    /// The first time in the world at which the node's clock shows `due`.
    pub(crate) fn world_time(&self, due: Millis) -> u64 {
        let own = due.0.saturating_sub(self.ahead) as i64 * 1000;
        let rate = 1000 + self.rate;
        ((own + rate - 1) / rate) as u64
    }

    /// What the node tells the masters of its replica.
    pub(crate) fn told(&mut self, now: u64) -> Told {
        let view = self.replica.as_ref().map(|replica| replica.view(self.clock(now)));
        let open = view.map(|view| Open {
            replica: view.me,
            complete: view.incomplete.is_none(),
            doubtful: view.doubtful,
            disk: self.tells_disks.then(|| self.slots.on()),
        });
        let disks = if self.tells_disks { self.slots.capacities() } else { Vec::new() };
        let said = Some((open, disks.clone()));
        if self.said != said {
            self.said = said;
            self.revision += 1;
        }
        let (process, tail) = (self.disk.process(), self.disk.tail());
        Told { node: self.node, process, tail, revision: self.revision, open, disks }
    }

    /// Remembers a configuration for the next opening.
    pub(crate) fn keep_config(&mut self, config: &Config) {
        if self.up && self.config.as_ref().is_none_or(|kept| kept.epoch <= config.epoch) {
            self.config = Some(config.clone());
        }
    }

    /// Whether its store failed too often for this process.
    pub(crate) fn is_retired(&self) -> bool {
        let retired = matches!(self.reopening, Some((Reopening::Retired(_), _)));
        self.up && self.replica.is_none() && retired
    }

    /// Its replica, if it is not open and will be opened again.
    pub(crate) fn returning(&self) -> Option<ReplicaId> {
        self.disk.holds().filter(|_| self.replica.is_none() && !self.is_retired())
    }

    /// A frontend's stream is over.
    pub(crate) fn forget(&mut self, stream: StreamId) {
        self.open.remove(&stream);
        self.held.retain(|(of, _), _| *of != stream);
        self.merging.retain(|(of, _)| *of != stream);
    }

    /// Drops all that an opening held but its store.
    pub(crate) fn clear(&mut self) {
        self.replica = None;
        self.run += 1;
        self.reopening = None;
        self.timer = 0;
        self.inbox.clear();
        self.fed.clear();
        self.open.clear();
        self.held.clear();
        self.reads.clear();
        self.merging.clear();
        self.telling.clear();
        self.search = None;
        self.looks.clear();
        self.rooms.clear();
        self.batch = None;
        self.sync = None;
        self.checkpoint = None;
        self.sending.clear();
        self.receiving = None;
        self.told_of = Epoch(0);
        self.wished = Wish::default();
        (self.ending, self.handover_unknown) = (false, false);
    }
}

fn millis(pause: Duration) -> u64 {
    u64::try_from(pause.as_millis()).expect("pauses are short")
}

impl World {
    /// A process starts.
    pub(crate) fn start(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        node.up = true;
        node.failures = Failures::default();
        node.config = None;
        node.catalogue = None;
        node.since = self.masters.revision();
        (node.busy, node.removing) = (false, false);
        node.said = None;
        node.revision = 1;
        node.paused = false;
        node.waiting.clear();
        node.disk.process_starts();
        if node.disk.holds().is_some() {
            self.open(index);
        }
    }

    /// The store is opened, for the first time in its process or after a failure.
    pub(crate) fn open(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        node.clear();
        if node.slots.is_away() {
            return self.note(index, || "the store's disk can't be used".to_owned());
        }
        match node.disk.open() {
            Ok(opened) => self.opened(index, opened),
            Err(_) if node.disk.memory.crashed() => self.stops(index),
            Err(error) => {
                let why = error.to_string();
                self.mark_failure(index, &why);
                self.note_refused(index, &error);
                self.note(index, || format!("the store can't be opened: {why}"));
                self.tail_lost(index);
                self.back_off(index, is_out_of_space(&error));
            }
        }
    }

    fn opened(&mut self, index: usize, opened: Opened) {
        self.check_opened(index, &opened);
        self.mark_opened(index, &opened);
        self.note(index, || {
            format!(
                "opened in run {}, durable {}, committed {}, {}",
                opened.me.incarnation,
                opened.durable,
                opened.committed,
                if opened.kept.incomplete.is_some() {
                    "INCOMPLETE"
                } else if opened.kept.doubtful {
                    "in doubt"
                } else {
                    "complete"
                }
            )
        });
        let store = self.nodes[index].disk.store();
        if (opened.checkpoint.0 + 1..=opened.durable.0).any(|lsn| store.refers(Lsn(lsn))) {
            self.mark(Mark::ReferenceFound);
        }
        let node = &mut self.nodes[index];
        node.disk.accept(&opened);
        node.reach = node.reach.max(opened.committed);
        node.recorded = (opened.durable, self.now);
        let (clock, now) = (node.clock(self.now), self.now);
        node.replica = Some(Replica::open(clock, opened, self.faults.engine()));
        if !node.unheard {
            let told = node.told(now);
            let delay = self.delay();
            self.after(delay, Event::Register(told));
        }
        self.tell_room(index);
        let node = &self.nodes[index];
        if let Some(config) = node.config.clone() {
            self.step(index, Input::Assignment(config), Vec::new());
        }
        self.look_at(index);
    }

    /// The store could not be opened, or failed: it is opened again when the runtime's rule says so.
    fn back_off(&mut self, index: usize, full: bool) {
        let node = &mut self.nodes[index];
        // No run is so long here that it forgives failures.
        let reopening = node.failures.add(full, Duration::ZERO);
        node.reopening = Some((reopening, self.now));
        let (failures, run) = (node.failures.count(), node.run);
        match reopening {
            Reopening::Soon(pause) | Reopening::WithRoom { most: pause, .. } => {
                self.after(millis(pause), Event::Reopen { node: index, run });
            }
            // The pause is longer than the run.
            Reopening::Retired(_) => self.mark(Mark::Retired),
        }
        if full && failures > 5 {
            self.mark(Mark::OftenFull);
        }
    }

    /// A disk has room again, if it was full.
    pub(crate) fn make_room(&mut self, index: usize) {
        let node = &self.nodes[index];
        node.disk.memory.make_room();
        if let Some((Reopening::WithRoom { least, .. }, since)) = node.reopening
            && node.up
        {
            let run = node.run;
            let first = (since + millis(least)).saturating_sub(self.now);
            let delay = first + self.rng.below(LOOK_FOR_ROOM);
            self.after(delay, Event::Reopen { node: index, run });
        }
    }

    /// The store failed, and the process goes on: as the runtime does it.
    pub(crate) fn store_failed(&mut self, index: usize, error: &StoreError) {
        let cause = error.to_string();
        if self.nodes[index].disk.memory.crashed() {
            return self.stops(index);
        }
        self.close_failed(index, &cause);
        let node = &self.nodes[index];
        if node.up && !node.slots.is_away() {
            self.back_off(index, is_out_of_space(error));
        }
    }

    /// The replica is closed, for its store can't be used any more.
    pub(super) fn close_failed(&mut self, index: usize, cause: &str) {
        if self.nodes[index].replica.is_none() {
            return;
        }
        self.summary.store_failures += 1;
        self.mark_failure(index, cause);
        self.note(index, || format!("the store failed: {cause}"));
        let node = &mut self.nodes[index];
        node.inbox.clear();
        let now = node.clock(self.now);
        if let Some(replica) = &mut node.replica {
            let (_, outputs) = replica.step(now, Input::StoreFailed { cause: cause.to_owned() });
            for output in outputs {
                // What touches the store fails again; the rest tells frontends and peers.
                let _failed = self.execute(index, output);
            }
        }
        // What is under way ends, whatever comes of it.
        let node = &mut self.nodes[index];
        if let Some((_, work)) = node.batch.take() {
            let result = match work {
                Work::Planned(batch) => batch.run(),
                Work::Done(result) => result,
            };
            let _too_late = node.disk.store().batch_done(result);
        }
        if let Some((_, work)) = node.sync.take() {
            let result = match work {
                Work::Planned(sync) => sync.run(),
                Work::Done(result) => result,
            };
            let _too_late = node.disk.store().sync_done(result);
        }
        if let Some((_, work)) = node.checkpoint.take() {
            let done = match work {
                Work::Planned(plan) => plan.run(),
                Work::Done(done) => done,
            };
            let _too_late = node.disk.store().checkpoint_done(done);
        }
        if node.disk.memory.crashed() {
            return self.stops(index);
        }
        self.tail_lost(index);
        self.end_streams(index, 1);
        let node = &mut self.nodes[index];
        node.disk.store = None;
        node.clear();
    }

    /// The store failed: the replica has another tail before anybody hears of it.
    pub(crate) fn tail_lost(&mut self, index: usize) {
        self.nodes[index].disk.lose_tail();
        if self.faults.write_ack == WriteAck::Written {
            self.mark(Mark::TailRenewed);
        }
    }

    /// The machine stopped in the middle of an operation on its disk.
    pub(crate) fn stops(&mut self, index: usize) {
        let away = 50 + self.rng.below(3_000);
        let power = self.rng.chance(70);
        self.die(index, power, away);
    }

    /// The process dies, and the power with it or not; it is back after a while. What was under way
    /// on the disk may have happened in part.
    pub(crate) fn die(&mut self, index: usize, power: bool, away: u64) {
        if !self.nodes[index].up {
            return;
        }
        self.summary.crashes += 1;
        self.summary.power_losses += u64::from(power);
        self.mark_death(index, power);
        self.mark_replacement(index);
        self.note(index, || format!("dies{}", if power { ", without power" } else { "" }));
        self.tear(index);
        let node = &mut self.nodes[index];
        node.disk.dies(power);
        node.clear();
        node.up = false;
        if self.nodes.iter().all(|node| !node.up) {
            self.mark(Mark::AllDown);
        }
        self.tell_gone(index, power);
        // A machine that is gone says nothing, a process that is gone has its machine say so.
        let told = 1 + if power { self.rng.below(2_000) } else { 0 };
        self.end_streams(index, told);
        if !self.nodes[index].lost {
            self.after(away, Event::Restart { node: index });
        }
    }

    /// Begins what was planned, and stops somewhere in it.
    fn tear(&mut self, index: usize) {
        let (first, at) = (self.rng.chance(50), self.rng.below(12));
        let node = &mut self.nodes[index];
        if node.disk.memory.crashed() {
            return;
        }
        node.disk.memory.crash_after(at);
        let (batch, checkpoint) = (node.batch.take(), node.checkpoint.take());
        let sync = node.sync.take().filter(|_| node.syncs_from <= self.now);
        let batch = || {
            if let Some((_, Work::Planned(batch))) = batch {
                batch.run();
            }
        };
        let checkpoint = || {
            if let Some((_, Work::Planned(plan))) = checkpoint {
                plan.run();
            }
        };
        if let Some((_, Work::Planned(sync))) = sync {
            sync.run();
        }
        if first {
            batch();
            checkpoint();
        } else {
            checkpoint();
            batch();
        }
    }

    /// Ends a process in order, and starts the next after a while.
    pub(crate) fn restart_in_order(&mut self, index: usize, away: u64) {
        if self.nodes[index].replica.is_none() || self.nodes[index].paused {
            return;
        }
        if let Err(error) = self.quiesce(index) {
            return self.store_failed(index, &error);
        }
        self.note(index, || "ends in order".to_owned());
        self.end_streams(index, 1);
        let node = &mut self.nodes[index];
        if node.replica.is_none() {
            return;
        }
        let store = node.disk.store.take().expect("a replica that runs has its store open");
        if store.close_clean().is_err() {
            // It was the sync of the log that failed, for all that is known.
            node.disk.lose_tail();
        }
        node.disk.dies(false);
        node.clear();
        node.up = false;
        self.inject(Injected::InOrder);
        self.tell_gone(index, false);
        self.after(away, Event::Restart { node: index });
    }

    /// The machine of a process that is gone says so to the masters.
    fn tell_gone(&mut self, index: usize, power: bool) {
        let node = &self.nodes[index];
        if !power && !node.unheard {
            let event = Masters::killed(node.node, node.disk.process());
            let delay = self.rng.below(100);
            self.after(delay, Event::Detect(event));
        }
    }

    pub(crate) fn end_streams(&mut self, index: usize, told: u64) {
        let gone: Vec<_> =
            self.streams.iter().filter(|(_, (_, node))| *node == index).map(|(s, _)| *s).collect();
        for stream in gone {
            let (reason, config) = (StreamEnd::NotPrimary, None);
            self.after(told, Event::Ended { stream, reason, config });
        }
    }
}
