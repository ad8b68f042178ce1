//! A replica's task through all its openings.
//!
//! A store that failed is dropped and opened again, as another incarnation: what its log proves
//! then is what counts. One that fails again and again is left alone for long, and one whose disk is
//! full waits for room.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sbk_engine::authority::Limits;
use sbk_engine::replication::Params;
use sbk_engine::replication::io::{Proposal, StreamId};
use sbk_engine::types::{Config, Millis, NodeId, ReplicaId, VolumeId, Wish};
use sbk_store::{Failures, Reopening};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::disk::OpenDisk;
use super::events::{Control, PeerEvent};
use super::pace::Pace;
use super::recorder::{Recorder, Recordings};
use super::registry::{VolumeHandle, away};
use super::status::{Counters, RunState, TraceRing, VolumeStatus};
use super::task::{Exit, Failure, Running};
use super::{CONTROL_QUEUE, PEER_QUEUE, clock};
use crate::disks::DataDisk;
use crate::link::{Link, OpenLink};
use crate::transport::Channels;

/// How often a full disk is looked at.
const LOOK_FOR_ROOM: Duration = Duration::from_millis(500);
/// There is room on a full disk once it has so much more than at the least: what others write and let go
/// beside is less.
const ROOM: u64 = 16 << 20;

/// A proposal for the masters, and where their answer goes.
#[derive(Debug)]
pub struct ProposalOrder {
    /// What is proposed.
    pub proposal: Proposal,
    /// Takes a [`Control::Answered`].
    pub answers: mpsc::Sender<Control>,
}

/// What all volume tasks of a node share.
#[derive(Debug)]
pub struct Context {
    /// Connections to other nodes.
    pub channels: Arc<Channels>,
    /// Proposals for the masters.
    pub proposals: mpsc::Sender<ProposalOrder>,
    /// Times and limits.
    pub params: Params,
    /// The node.
    pub node: NodeId,
    /// How fast rebuilds go.
    pub pace: Arc<Pace>,
}

/// The queues that a task reads.
#[derive(Debug)]
pub(super) struct Inlets {
    pub(super) peers: mpsc::Receiver<PeerEvent>,
    pub(super) control: mpsc::Receiver<Control>,
}

impl Inlets {
    /// Takes one event that nobody can serve: dropping it tells whoever waits for an answer.
    /// Returns whether it was the volume's deletion.
    pub(super) async fn refuse(&mut self, shared: &Shared) -> bool {
        tokio::select! {
            Some(event) = self.peers.recv() => drop(event),
            Some(order) = self.control.recv() => match order {
                Control::Deleted => return true,
                Control::Assignment(config) => shared.keep_config(&config),
                Control::Wish(wish) => shared.keep_wish(wish),
                Control::Limits(limits) => shared.keep_limits(limits),
                Control::Resign => shared.resign(),
                Control::Answered { .. }
                | Control::Stand { .. }
                | Control::Open { .. }
                | Control::Verify { .. }
                | Control::Scrub { .. } => {}
            },
        }
        false
    }
}

/// What outlives one opening.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) peers: mpsc::Sender<PeerEvent>,
    pub(super) control: mpsc::Sender<Control>,
    pub(super) status: watch::Sender<Arc<VolumeStatus>>,
    pub(super) trace: Arc<TraceRing>,
    pub(super) recorder: Arc<Recorder>,
    pub(super) counters: Arc<Counters>,
    /// The newest configuration from the masters, for the next opening.
    config: Mutex<Option<Config>>,
    /// What the masters want, for the next opening.
    wish: Mutex<Wish>,
    /// What clients may do, for the next opening.
    limits: Mutex<Limits>,
    /// The node is about to stop.
    resigning: AtomicBool,
    streams: Mutex<u64>,
}

impl Shared {
    pub(super) fn keep_config(&self, config: &Config) {
        let mut kept = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.as_ref().is_none_or(|kept| kept.epoch <= config.epoch) {
            *kept = Some(config.clone());
        }
    }

    pub(super) fn keep_wish(&self, wish: Wish) {
        *self.wish.lock().unwrap_or_else(PoisonError::into_inner) = wish;
    }

    pub(super) fn keep_limits(&self, limits: Limits) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    pub(super) fn limits(&self) -> Limits {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn resign(&self) {
        self.resigning.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_resigning(&self) -> bool {
        self.resigning.load(Ordering::Relaxed)
    }

    pub(super) fn wish(&self) -> Wish {
        self.wish.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A number for a stream, never given before in this process.
    pub(super) fn next_stream(&self) -> StreamId {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        *streams += 1;
        StreamId(*streams)
    }

    fn publish(&self, run: RunState) {
        self.status.send_modify(|status| {
            let mut new = VolumeStatus::opening(status.volume, status.replica);
            new.run = run;
            *status = Arc::new(new);
        });
    }
}

/// Starts the task of one replica. It ends when `stop` is cancelled or the volume is deleted.
pub fn start<O: OpenDisk>(
    context: Arc<Context>,
    disk: Arc<DataDisk>,
    opener: O,
    volume: VolumeId,
    replica: ReplicaId,
    stop: CancellationToken,
) -> (Arc<VolumeHandle>, JoinHandle<()>) {
    let (peers, peers_in) = mpsc::channel(PEER_QUEUE);
    let (control, control_in) = mpsc::channel(CONTROL_QUEUE);
    let (status, watched) = watch::channel(Arc::new(VolumeStatus::opening(volume, replica)));
    let (trace, counters) = (Arc::<TraceRing>::default(), Arc::<Counters>::default());
    let recordings =
        Recordings { node: context.node, dir: disk.recordings().map(ToOwned::to_owned) };
    let recorder = Arc::new(Recorder::new(recordings));
    let handle = Arc::new(VolumeHandle {
        volume,
        replica,
        disk: Arc::clone(&disk),
        control: control.clone(),
        peers: peers.clone(),
        status: watched,
        trace: Arc::clone(&trace),
        recorder: Arc::clone(&recorder),
        counters: Arc::clone(&counters),
    });
    let config = Mutex::new(None);
    let (wish, limits, streams) = (Mutex::default(), Mutex::default(), Mutex::new(0));
    let shared = Arc::new(Shared {
        peers,
        control,
        status,
        trace,
        recorder: Arc::clone(&recorder),
        counters,
        config,
        wish,
        limits,
        resigning: AtomicBool::new(false),
        streams,
    });
    let inlets = Inlets { peers: peers_in, control: control_in };
    let runner = Runner { context, disk, opener: Arc::new(opener), shared, stop };
    (handle, tokio::spawn(recorder.watch(runner.run(inlets))))
}

struct Runner<O> {
    context: Arc<Context>,
    disk: Arc<DataDisk>,
    opener: Arc<O>,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

impl<O: OpenDisk> Runner<O> {
    async fn run(self, mut inlets: Inlets) {
        let mut failures = Failures::default();
        let mut lanes = 0;
        loop {
            if let Some(fault) = self.disk.fault() {
                // Whatever it failed for is over with the disk that comes back.
                failures = Failures::default();
                self.shared.publish(RunState::Away { reason: away(&self.disk, &fault) });
                if !self.wait(&mut inlets, self.disk.works()).await {
                    self.shared.publish(RunState::Ended);
                    return;
                }
            }
            self.shared.publish(RunState::Opening);
            let opener = Arc::clone(&self.opener);
            let opened = self.disk.threads().spawn_blocking(move || opener.open()).await;
            let opened = opened.expect("opening a store does not panic");
            let started = clock::now();
            let reopening = match opened {
                Err(error) => self.failed(&mut failures, Failure::of(&error), started),
                Ok((disk, opened)) => {
                    let (context, shared) = (Arc::clone(&self.context), Arc::clone(&self.shared));
                    let home = Arc::clone(&self.disk);
                    let config =
                        shared.config.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    let space = self.opener.space();
                    let mut running =
                        Running::new(context, shared, inlets, (disk, space), home, opened, lanes);
                    let exit = running.run(&self.stop, config).await;
                    // Before what the store has under way ends, for it may never: whoever knows that the
                    // replica is closed has another one take over. [A checkpoint failed while a sync of the WAL
                    // hung. The replica stayed registered as the primary, and its volume was served by nobody
                    // until the sync came back, although the others were well.]
                    let reopening = match &exit {
                        Exit::Shutdown | Exit::Deleted => None,
                        Exit::Failed(failure) => {
                            Some(self.failed(&mut failures, failure.clone(), started))
                        }
                    };
                    let deleted;
                    (inlets, lanes, deleted) = running.close(&exit).await;
                    match reopening.filter(|_| !deleted) {
                        Some(reopening) => reopening,
                        None => {
                            self.shared.publish(RunState::Ended);
                            return;
                        }
                    }
                }
            };
            let goes_on = match reopening {
                Reopening::Soon(pause) | Reopening::Retired(pause) => {
                    self.wait(&mut inlets, tokio::time::sleep(pause)).await
                }
                Reopening::WithRoom { least, most } => {
                    let room = tokio::time::timeout(most, self.room(least));
                    self.wait(&mut inlets, room).await
                }
            };
            if !goes_on {
                self.shared.publish(RunState::Ended);
                return;
            }
        }
    }

    /// The store that was opened at `started` failed: says so, and decides when it will be opened again.
    fn failed(&self, failures: &mut Failures, failure: Failure, started: Millis) -> Reopening {
        let Failure { reason, full } = failure;
        let ran = Duration::from_millis(clock::now().since(started));
        let reopening = failures.add(full, ran);
        self.tell(reopening, reason, failures.count());
        reopening
    }

    /// Says why the store is closed, and when it will be opened again.
    fn tell(&self, reopening: Reopening, reason: String, failures: u32) {
        let volume = self.shared.status.borrow().volume;
        let run = match reopening {
            Reopening::Soon(_) => {
                tracing::warn!(%volume, failures, %reason, "the store is opened again");
                RunState::Failed { reason, failures }
            }
            Reopening::WithRoom { .. } => {
                tracing::warn!(%volume, failures, %reason, "the disk is full; the store waits for room");
                RunState::Full { reason, failures }
            }
            Reopening::Retired(pause) => {
                tracing::error!(
                    %volume, %reason,
                    "the replica is retired for {} minutes: its store failed too often. Check the \
                     disk, then restart the datanode",
                    pause.as_secs() / 60
                );
                RunState::Retired { reason }
            }
        };
        self.shared.publish(run);
    }

    /// Waits for room on a full disk, `least` or longer.
    async fn room(&self, least: Duration) {
        let begun = Instant::now();
        let mut lowest = u64::MAX;
        loop {
            let opener = Arc::clone(&self.opener);
            let free = self.disk.threads().spawn_blocking(move || opener.free_bytes()).await;
            let free = free.expect("looking at the file system does not panic");
            // What can't be told is found out by trying, when the pause is over.
            let Some(free) = free else { return std::future::pending().await };
            lowest = lowest.min(free);
            if free - lowest >= ROOM && begun.elapsed() >= least {
                return;
            }
            tokio::time::sleep(LOOK_FOR_ROOM).await;
        }
    }

    /// Waits until the next opening is due. Returns false if there will be none.
    async fn wait<T>(&self, inlets: &mut Inlets, due: impl Future<Output = T>) -> bool {
        tokio::pin!(due);
        // One that is away is waited for; one that fails meanwhile is looked at anew.
        let is_away = self.disk.fault().is_some();
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return false,
                _ = &mut due => return true,
                _ = self.disk.failed(), if !is_away => return true,
                deleted = inlets.refuse(&self.shared) => if deleted { return false },
            }
        }
    }
}

/// Asks a task for a link. `None` if it has stopped or its store isn't open.
pub async fn open_link(handle: &VolumeHandle, open: OpenLink) -> Option<Link> {
    let (link, answer) = oneshot::channel();
    handle.control.send(Control::Open { open, link }).await.ok()?;
    answer.await.ok()
}
