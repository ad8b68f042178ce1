//! The loop of one opening of one replica.
//!
//! Each turn takes what waits at one of the task's sources, in this order: shutdown, completions
//! of the store, messages of other replicas, orders of the node, reads of base lanes, frontends'
//! requests, time. Whatever a turn appended is then synced as one batch while the next turn is
//! already taking more (group commit); the feeds to the other replicas carry it at the same time.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sbk_engine::replication::io::{Input, OpenStream, Opened, Reader, StreamEnd, StreamId};
use sbk_engine::replication::log::RequestTag;
use sbk_engine::replication::message::RecoveryId;
use sbk_engine::replication::room::{Room, Space};
use sbk_engine::replication::view::PeerView;
use sbk_engine::replication::{Replica, Verdict};
use sbk_engine::types::{Config, Lsn, Millis, ReplicaRef, VolumeId, Wish};
use sbk_master_client::in_one_line;
use sbk_store::is_out_of_space;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use super::clients::{Admitted, Clients, FromClient};
use super::clock;
use super::disk::{Disk, DiskError, ReadPlan, Work};
use super::events::{Control, PeerEvent};
use super::lanes::{Incoming, Outgoing};
use super::names;
use super::runner::{Context, Inlets, Shared};
use super::scrub::Scrubs;
use super::status::{READ_FAILED, RunState, VolumeStatus};
use crate::disks::{DataDisk, DiskState, Fault};
use crate::link::{Link, LinkEvent, OpenLink};
use crate::transport::{BaseRead, WireBlock, WireEntry};

/// Events taken from one queue in one turn.
const TAKE: usize = 64;
/// The status is published at least this often while anything changes.
const PUBLISH_EVERY_MS: u64 = 100;
/// The durable end is recorded at least this often while it moves.
const RECORD_EVERY_MS: u64 = 1000;
/// Frontend streams at a time: several for each session that the log knows, for old ones linger.
const MAX_STREAMS: usize = 4 * sbk_engine::types::MAX_SESSIONS;
/// Reads of base lanes that wait.
const BASE_READS: usize = 4;
/// Most reads that one job on the blocking pool does one after the other.
const READS_A_JOB: usize = 8;

/// How an opening ended.
#[derive(Debug)]
pub(super) enum Exit {
    /// The node stops; the store was closed in order.
    Shutdown,
    /// The store failed.
    Failed(Failure),
    /// The masters deleted the volume.
    Deleted,
}

/// Why a store could not be opened, or had to be given up.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    /// For people.
    pub(super) reason: String,
    /// Whether it was for want of space.
    pub(super) full: bool,
}

impl Failure {
    pub(super) fn of(error: &DiskError) -> Self {
        Self { reason: in_one_line(error), full: is_out_of_space(error) }
    }
}

/// A read that was done for a request.
pub(super) struct DoneRead {
    pub(super) stream: StreamId,
    pub(super) tag: RequestTag,
    pub(super) data: Result<Bytes, DiskError>,
}

/// A read to be done for a request.
pub(super) struct WantedRead {
    pub(super) stream: StreamId,
    pub(super) tag: RequestTag,
    pub(super) plan: ReadPlan,
}

type Outcome<W> = <W as Work>::Outcome;

/// One opening of one replica.
pub(super) struct Running<D: Disk> {
    pub(super) volume: VolumeId,
    pub(super) me: ReplicaRef,
    pub(super) replica: Replica,
    pub(super) disk: D,
    /// The disk below.
    pub(super) home: Arc<DataDisk>,
    home_state: watch::Receiver<DiskState>,
    /// The room on its disk.
    pub(super) space: watch::Receiver<Space>,
    pub(super) context: Arc<Context>,
    pub(super) shared: Arc<Shared>,
    pub(super) inlets: Inlets,
    pub(super) outgoing: Outgoing,
    pub(super) incoming: Incoming,
    pub(super) clients: Clients,
    pub(super) durable: Lsn,
    /// The durable end that was recorded last in this opening, and when.
    recorded: (Lsn, Millis),
    /// Inputs that outputs led to, before anything from outside.
    pub(super) inbox: VecDeque<Input>,
    /// The entries beside the input that is being handled.
    pub(super) fed: Vec<WireEntry>,
    /// The blocks beside it.
    pub(super) told: Vec<WireBlock>,
    pub(super) scrubs: Scrubs,
    pub(super) wanted_reads: Vec<WantedRead>,
    pub(super) base_reads: mpsc::Sender<BaseRead>,
    base_reads_in: mpsc::Receiver<BaseRead>,
    /// The session whose base blocks are taken.
    pub(super) receiving: Option<RecoveryId>,
    pub(super) taken_bytes: u64,
    /// Feed messages that wait for room in the WAL.
    pub(super) stalled: VecDeque<PeerEvent>,
    pub(super) batch: Option<JoinHandle<(u64, Outcome<D::Batch>)>>,
    pub(super) sync: Option<JoinHandle<(u64, Outcome<D::Sync>)>>,
    pub(super) checkpoint: Option<JoinHandle<(u64, Outcome<D::Checkpoint>)>>,
    pub(super) reads: JoinSet<Vec<DoneRead>>,
    pub(super) counted: BTreeMap<(&'static str, &'static str), u64>,
    /// Something changed since the status was published; `urgent` if others wait for it.
    pub(super) changed: bool,
    pub(super) urgent: bool,
    published: Millis,
    pub(super) deleted: bool,
    timer: Pin<Box<Sleep>>,
    timer_at: Option<Millis>,
}

/// What a turn of the loop found.
enum Found<D: Disk> {
    Shutdown,
    /// The disk can't be used.
    Failed(Fault),
    Batch((u64, Outcome<D::Batch>)),
    Synced((u64, Outcome<D::Sync>)),
    Checkpoint((u64, Outcome<D::Checkpoint>)),
    Read(Vec<DoneRead>),
    Space,
    Peers(Vec<PeerEvent>),
    Control(Box<Control>),
    Base(BaseRead),
    Clients(Vec<FromClient>),
    Time,
}

impl<D: Disk> Running<D> {
    pub(super) fn new(
        context: Arc<Context>,
        shared: Arc<Shared>,
        inlets: Inlets,
        (disk, space): (D, watch::Receiver<Space>),
        home: Arc<DataDisk>,
        opened: Opened,
        lanes: u64,
    ) -> Self {
        let (base_reads, base_reads_in) = mpsc::channel(BASE_READS);
        let (volume, me, durable) = (opened.volume, opened.me, opened.durable);
        let now = clock::now();
        let (channels, counters) = (Arc::clone(&context.channels), Arc::clone(&shared.counters));
        let outgoing = Outgoing::new(channels, shared.peers.clone(), lanes, counters);
        let replica = Replica::open(now, opened, context.params.clone());
        shared.recorder.opened(volume, me, &replica);
        Self {
            volume,
            me,
            replica,
            disk,
            home_state: home.watch(),
            home,
            space,
            context,
            shared,
            inlets,
            outgoing,
            incoming: Incoming::default(),
            clients: Clients::default(),
            durable,
            recorded: (durable, Millis(0)),
            inbox: VecDeque::new(),
            fed: Vec::new(),
            told: Vec::new(),
            scrubs: Scrubs::default(),
            wanted_reads: Vec::new(),
            base_reads,
            base_reads_in,
            receiving: None,
            taken_bytes: 0,
            stalled: VecDeque::new(),
            batch: None,
            sync: None,
            checkpoint: None,
            reads: JoinSet::new(),
            counted: BTreeMap::new(),
            changed: true,
            urgent: true,
            published: Millis(0),
            deleted: false,
            timer: Box::pin(tokio::time::sleep(Duration::ZERO)),
            timer_at: None,
        }
    }

    /// Runs until the store fails, the volume is deleted or the node stops. What the store was given to do
    /// may still be under way then.
    pub(super) async fn run(&mut self, stop: &CancellationToken, config: Option<Config>) -> Exit {
        self.clients.set_limits(self.shared.limits());
        // Before anything that may be logged.
        self.look_at_room();
        let wish = self.shared.wish();
        self.inbox.extend((wish != Wish::default()).then_some(Input::Wish(wish)));
        self.inbox.extend(self.shared.is_resigning().then_some(Input::Resign));
        self.inbox.extend(config.map(Input::Assignment));
        match self.turns(stop).await {
            Ok(exit) => exit,
            // Whatever its store can still do, it is to go.
            Err(error) if self.deleted => {
                tracing::warn!(volume = %self.volume, %error, "the store of a deleted volume failed");
                Exit::Deleted
            }
            Err(error) => {
                let failure = Failure::of(&error);
                self.stop_engine(failure.reason.clone()).await;
                Exit::Failed(failure)
            }
        }
    }

    fn look_at_room(&mut self) {
        let space = *self.space.borrow_and_update();
        self.disk.set_short(space.room > Room::Ample);
        self.inbox.push_back(Input::Space(space));
    }

    async fn turns(&mut self, stop: &CancellationToken) -> Result<Exit, DiskError> {
        loop {
            while let Some(input) = self.inbox.pop_front() {
                self.step(input).await?;
            }
            self.unstall().await?;
            self.record_durable()?;
            self.start_work();
            self.publish();
            if self.deleted {
                return Ok(Exit::Deleted);
            }
            match self.next(stop).await {
                Found::Shutdown => return Ok(Exit::Shutdown),
                Found::Failed(fault) => {
                    return Err(DiskError { doing: "use its disk", source: fault.reason.into() });
                }
                Found::Batch((generation, outcome)) => self.batch_done(generation, outcome)?,
                Found::Synced((generation, outcome)) => self.synced(generation, outcome)?,
                Found::Checkpoint((generation, outcome)) => {
                    self.checkpoint_done(generation, outcome)?;
                }
                Found::Read(done) => self.reads_done(done),
                Found::Space => self.look_at_room(),
                Found::Peers(events) => {
                    for event in events {
                        self.peer(event).await?;
                    }
                }
                Found::Control(order) => self.control(*order),
                Found::Base(read) => {
                    let plan = self.disk.read_committed(read.range);
                    // A lane that was dropped wants it no more.
                    let _dropped = read.plan.send(plan);
                }
                Found::Clients(taken) => {
                    for from in taken {
                        self.client(from).await?;
                    }
                }
                Found::Time => self.inbox.push_back(Input::Tick),
            }
        }
    }

    /// Waits for the next thing to do.
    async fn next(&mut self, stop: &CancellationToken) -> Found<D> {
        self.set_timer();
        let now = clock::now();
        self.shared.counters.turn(now);
        let held = self.clients.take_held_back();
        self.shared.counters.held_back(held.requests, held.nanos);
        self.shared.counters.add(&mut self.counted);
        let room = !self.disk.wal_full();
        let take_clients = room && self.clients.has_room();
        let Self {
            batch,
            sync,
            checkpoint,
            reads,
            inlets,
            clients,
            base_reads_in,
            timer,
            home_state,
            space,
            ..
        } = self;
        let mut events = Vec::new();
        let mut taken = Vec::new();
        tokio::select! {
            biased;
            () = stop.cancelled() => Found::Shutdown,
            state = home_state.wait_for(|state| state.fault.is_some()) => {
                let state = state.expect("the disk is in this task");
                Found::Failed(state.fault.clone().expect("was waited for"))
            }
            done = joined(batch) => Found::Batch(done),
            done = joined(sync) => Found::Synced(done),
            done = joined(checkpoint) => Found::Checkpoint(done),
            Some(done) = reads.join_next() => {
                Found::Read(done.expect("a read neither panics nor is cancelled"))
            }
            Ok(()) = space.changed() => Found::Space,
            _ = inlets.peers.recv_many(&mut events, TAKE) => Found::Peers(events),
            Some(order) = inlets.control.recv() => Found::Control(Box::new(order)),
            Some(read) = base_reads_in.recv() => Found::Base(read),
            () = std::future::poll_fn(|cx| clients.poll_take(cx, &mut taken)), if take_clients => {
                Found::Clients(taken)
            }
            () = timer.as_mut() => Found::Time,
        }
    }

    /// Feeds the engine and executes what it wants.
    pub(super) async fn step(&mut self, input: Input) -> Result<(), DiskError> {
        self.count("event", names::input(&input));
        let now = clock::now();
        self.shared.recorder.begin(&self.replica, now, &input);
        let before = self.replica.mends();
        let (verdict, outputs) = self.replica.step(now, input);
        if self.replica.mends() != before {
            self.shared.counters.mended(self.replica.mends().since(before));
        }
        self.shared.recorder.end(verdict, &outputs);
        if let Verdict::Ignored(reason) = verdict {
            self.count("ignored", names::ignored(reason));
        }
        self.incoming.note_verdict(verdict);
        self.changed |= !outputs.is_empty() || verdict == Verdict::Applied;
        for output in outputs {
            self.count("output", names::output(&output));
            self.execute(output).await?;
        }
        Ok(())
    }

    fn count(&mut self, kind: &'static str, name: &'static str) {
        *self.counted.entry((kind, name)).or_default() += 1;
    }

    /// Hands the store's waiting work to threads that may block.
    fn start_work(&mut self) {
        // Where a write counts once it is in the file, its sync runs beside the next ones.
        let sync = !self.replica.acks_written();
        if self.batch.is_none()
            && let Some(batch) = self.disk.take_batch(sync)
        {
            let generation = self.replica.generation();
            self.batch =
                Some(self.home.threads().spawn_blocking(move || (generation, batch.run())));
        }
        if self.sync.is_none()
            && let Some(sync) = self.disk.take_sync()
        {
            let generation = self.replica.generation();
            self.sync = Some(self.home.threads().spawn_blocking(move || (generation, sync.run())));
        }
        if self.checkpoint.is_none() {
            let urgent = self.disk.wal_full();
            let step = self.disk.take_checkpoint(urgent);
            let generation = self.replica.generation();
            let threads = self.home.threads();
            let run =
                |step: D::Checkpoint| threads.spawn_blocking(move || (generation, step.run()));
            self.checkpoint = step.map(run);
        }
        // A few reads a job: handing each one over would cost more than reading it.
        let a_job = (self.wanted_reads.len() / 4).clamp(1, READS_A_JOB);
        while !self.wanted_reads.is_empty() {
            let rest = self.wanted_reads.split_off(a_job.min(self.wanted_reads.len()));
            let job = std::mem::replace(&mut self.wanted_reads, rest);
            let read = move || job.into_iter().map(do_read).collect();
            self.reads.spawn_blocking_on(read, self.home.threads());
        }
    }

    fn batch_done(&mut self, generation: u64, outcome: Outcome<D::Batch>) -> Result<(), DiskError> {
        self.batch = None;
        let durable = self.disk.batch_done(outcome)?;
        let lsn = self.disk.written();
        if lsn > durable {
            self.inbox.push_back(Input::Written { generation, lsn });
        }
        self.note_durable(generation, durable);
        Ok(())
    }

    fn synced(&mut self, generation: u64, outcome: Outcome<D::Sync>) -> Result<(), DiskError> {
        self.sync = None;
        let durable = self.disk.sync_done(outcome)?;
        self.note_durable(generation, durable);
        Ok(())
    }

    fn note_durable(&mut self, generation: u64, durable: Lsn) {
        if durable != self.durable {
            self.durable = durable;
            self.inbox.push_back(Input::Durable { generation, lsn: durable });
        }
    }

    fn checkpoint_done(
        &mut self,
        generation: u64,
        outcome: Outcome<D::Checkpoint>,
    ) -> Result<(), DiskError> {
        self.checkpoint = None;
        let (checkpoint, retained) = self.disk.checkpoint_done(outcome)?;
        self.inbox.push_back(Input::Checkpointed { generation, checkpoint, retained });
        Ok(())
    }

    /// Has the disk record how far the log is durable, now and then: a superblock's write a second
    /// is the price for telling damage from a torn write, whatever the load.
    fn record_durable(&mut self) -> Result<(), DiskError> {
        let (recorded, at) = self.recorded;
        let now = clock::now();
        if self.durable != recorded && now.since(at) >= RECORD_EVERY_MS {
            tokio::task::block_in_place(|| self.disk.record_durable())?;
            self.recorded = (self.durable, now);
            self.changed = true;
        }
        Ok(())
    }

    /// Waits for the batch and the checkpoint that are under way: what is about to change the log
    /// or the image can't run beside them.
    pub(super) async fn quiesce(&mut self) -> Result<(), DiskError> {
        if self.batch.is_some() {
            let (generation, outcome) = joined(&mut self.batch).await;
            self.batch_done(generation, outcome)?;
        }
        if self.sync.is_some() {
            let (generation, outcome) = joined(&mut self.sync).await;
            self.synced(generation, outcome)?;
        }
        if self.checkpoint.is_some() {
            let (generation, outcome) = joined(&mut self.checkpoint).await;
            self.checkpoint_done(generation, outcome)?;
        }
        Ok(())
    }

    fn reads_done(&mut self, done: Vec<DoneRead>) {
        let mut all = done;
        while let Some(Ok(more)) = self.reads.try_join_next() {
            all.extend(more);
        }
        for DoneRead { stream, tag, data } in all {
            let error = match data {
                Ok(data) => {
                    self.clients.was_read(stream, tag, data);
                    None
                }
                Err(error) => {
                    let why = in_one_line(&error);
                    if let Some(blocks) = error.rotten() {
                        let reader = Reader::Request { stream, tag };
                        self.inbox.push_back(Input::Rotten { reader, blocks, why });
                        continue;
                    }
                    tracing::error!(volume = %self.volume, replica = %self.me.id, %why, "a read failed");
                    self.count(READ_FAILED.0, READ_FAILED.1);
                    Some(why)
                }
            };
            self.inbox.push_back(Input::ReadDone { stream, tag, error });
        }
    }

    fn control(&mut self, order: Control) {
        match order {
            Control::Assignment(config) => {
                self.shared.keep_config(&config);
                self.inbox.push_back(Input::Assignment(config));
            }
            Control::Wish(wish) => {
                self.shared.keep_wish(wish.clone());
                self.inbox.push_back(Input::Wish(wish));
            }
            Control::Limits(limits) => {
                self.shared.keep_limits(limits);
                self.clients.set_limits(limits);
                self.changed = true;
            }
            Control::Resign => {
                self.shared.resign();
                self.inbox.push_back(Input::Resign);
            }
            Control::Stand { incarnation, epoch } => {
                if incarnation == self.me.incarnation {
                    self.inbox.push_back(Input::Stand { epoch });
                }
            }
            Control::Deleted => {
                self.deleted = true;
                self.inbox.push_back(Input::Deleted);
            }
            Control::Answered { incarnation, proposal, config } => {
                if incarnation == self.me.incarnation {
                    self.inbox.push_back(Input::Answered { proposal, config });
                }
            }
            Control::Open { open, link } => self.open_link(open, link),
            Control::Verify { first, regions, reader } => {
                let plan = self.disk.verify(first, regions);
                let threads = self.home.threads().clone();
                tokio::spawn(super::verify::run(plan, reader, threads));
            }
            Control::Scrub { blocks, waiter } => self.scrub(blocks, waiter),
        }
    }

    /// Gives a frontend its end of a link; the engine says whether it may be used.
    fn open_link(&mut self, open: OpenLink, answer: oneshot::Sender<Link>) {
        if self.clients.len() >= MAX_STREAMS {
            tracing::warn!(volume = %self.volume, "too many frontend streams; one was refused");
            return;
        }
        let stream = self.shared.next_stream();
        if answer.send(self.clients.add(stream, open.session)).is_err() {
            self.clients.remove(stream);
            return;
        }
        self.changed = true;
        if open.primary != self.me {
            let reason = StreamEnd::NotPrimary;
            let config = self.replica.config().cloned();
            self.clients.end(stream, LinkEvent::Ended { reason, config });
            return;
        }
        let OpenLink { volume: _, session, attach, node, loss_generation, primary: _ } = open;
        let open = OpenStream { stream, session, attach, node, loss_generation };
        self.inbox.push_back(Input::OpenStream(open));
    }

    async fn client(&mut self, from: FromClient) -> Result<(), DiskError> {
        match from {
            FromClient::Gone(stream) => {
                self.clients.remove(stream);
                self.step(Input::CloseStream { stream }).await
            }
            FromClient::Request(stream, io) => match self.clients.admit(stream, io) {
                Some(Admitted::Request(request)) => {
                    self.step(Input::Request { stream, request }).await
                }
                Some(Admitted::Answered) | None => Ok(()),
                Some(Admitted::Violation(how)) => {
                    tracing::warn!(volume = %self.volume, how, "a frontend breaks the protocol; cut off");
                    self.clients.remove(stream);
                    self.step(Input::CloseStream { stream }).await
                }
            },
        }
    }

    fn set_timer(&mut self) {
        let publish = self.changed.then(|| self.published.after(PUBLISH_EVERY_MS));
        let (recorded, at) = self.recorded;
        let record = (self.durable != recorded).then(|| at.after(RECORD_EVERY_MS));
        let at = self.replica.next_deadline().into_iter().chain(publish).chain(record).min();
        let at = at.unwrap_or_else(|| clock::now().after(1000));
        if self.timer_at != Some(at) || self.timer.is_elapsed() {
            self.timer_at = Some(at);
            let due = tokio::time::Instant::now() + clock::until(at);
            self.timer.as_mut().reset(due);
        }
    }

    /// Publishes the status if others wait for it or enough time has passed.
    fn publish(&mut self) {
        let now = clock::now();
        let due = self.changed && now.since(self.published) >= PUBLISH_EVERY_MS;
        if !due && !self.urgent {
            return;
        }
        (self.changed, self.urgent, self.published) = (false, false, now);
        let view = self.replica.view(now);
        let session = |peer: &PeerView| Some(peer.recovery.as_ref()?.session.as_ref()?.id);
        let sessions = view.peers.iter().filter_map(|(id, peer)| Some((*id, session(peer)?)));
        let sessions = self.outgoing.sessions(sessions);
        self.shared.status.send_replace(Arc::new(VolumeStatus {
            volume: self.volume,
            replica: self.me.id,
            run: RunState::Running,
            view: Some(view),
            wal_full: self.disk.wal_full(),
            links: self.clients.len(),
            held_bytes: self.clients.held_bytes(),
            limits: self.shared.limits(),
            recorded: self.recorded.0,
            sessions,
            at: now,
        }));
    }
}

fn do_read(wanted: WantedRead) -> DoneRead {
    let WantedRead { stream, tag, plan } = wanted;
    DoneRead { stream, tag, data: plan.run() }
}

/// The result of work under way; never, if there is none.
pub(super) fn joined<T>(work: &mut Option<JoinHandle<T>>) -> impl Future<Output = T> + '_ {
    std::future::poll_fn(move |cx| match work {
        Some(handle) => {
            Pin::new(handle).poll(cx).map(|done| done.expect("the store's work does not panic"))
        }
        None => std::task::Poll::Pending,
    })
}
