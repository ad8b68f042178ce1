//! A replica's task through all its openings.
//!
//! A store that failed is dropped and opened again, as another incarnation: what its log proves
//! then is what counts. One that fails again and again is retired.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sbk_engine::replication::Params;
use sbk_engine::replication::io::{Proposal, StreamId};
use sbk_engine::types::{Config, ReplicaId, VolumeId, Wish};
use sbk_master_client::in_one_line;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::disk::OpenDisk;
use super::events::{Control, PeerEvent};
use super::recorder::{Recorder, Recordings};
use super::registry::VolumeHandle;
use super::status::{Counters, RunState, TraceRing, VolumeStatus};
use super::task::{Exit, Running};
use super::{CONTROL_QUEUE, PEER_QUEUE, clock};
use crate::link::{Link, OpenLink};
use crate::transport::Channels;

/// A store that fails so often without a long run in between is retired.
const MAX_FAILURES: u32 = 5;
/// A run of this length forgives earlier failures.
const LONG_RUN_MS: u64 = 10 * 60 * 1000;
const BACKOFF_FIRST: Duration = Duration::from_millis(100);

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
    /// Where recordings go.
    pub recordings: Recordings,
}

/// The queues that a task reads.
#[derive(Debug)]
pub(super) struct Inlets {
    pub(super) peers: mpsc::Receiver<PeerEvent>,
    pub(super) control: mpsc::Receiver<Control>,
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
    opener: O,
    volume: VolumeId,
    replica: ReplicaId,
    stop: CancellationToken,
) -> (Arc<VolumeHandle>, JoinHandle<()>) {
    let (peers, peers_in) = mpsc::channel(PEER_QUEUE);
    let (control, control_in) = mpsc::channel(CONTROL_QUEUE);
    let (status, watched) = watch::channel(Arc::new(VolumeStatus::opening(volume, replica)));
    let (trace, counters) = (Arc::<TraceRing>::default(), Arc::<Counters>::default());
    let recorder = Arc::new(Recorder::new(context.recordings.clone()));
    let handle = Arc::new(VolumeHandle {
        volume,
        replica,
        control: control.clone(),
        peers: peers.clone(),
        status: watched,
        trace: Arc::clone(&trace),
        recorder: Arc::clone(&recorder),
        counters: Arc::clone(&counters),
    });
    let config = Mutex::new(None);
    let (wish, streams) = (Mutex::default(), Mutex::new(0));
    let shared = Arc::new(Shared {
        peers,
        control,
        status,
        trace,
        recorder: Arc::clone(&recorder),
        counters,
        config,
        wish,
        resigning: AtomicBool::new(false),
        streams,
    });
    let inlets = Inlets { peers: peers_in, control: control_in };
    let runner = Runner { context, opener: Arc::new(opener), shared, stop };
    (handle, tokio::spawn(recorder.watch(runner.run(inlets))))
}

struct Runner<O> {
    context: Arc<Context>,
    opener: Arc<O>,
    shared: Arc<Shared>,
    stop: CancellationToken,
}

impl<O: OpenDisk> Runner<O> {
    async fn run(self, mut inlets: Inlets) {
        let mut failures = 0;
        let mut lanes = 0;
        loop {
            self.shared.publish(RunState::Opening);
            let opener = Arc::clone(&self.opener);
            let opened = tokio::task::spawn_blocking(move || opener.open()).await;
            let opened = opened.expect("opening a store does not panic");
            let started = clock::now();
            let reason = match opened {
                Err(error) => in_one_line(&error),
                Ok((disk, opened)) => {
                    let (context, shared) = (Arc::clone(&self.context), Arc::clone(&self.shared));
                    let config =
                        shared.config.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    let running = Running::new(context, shared, inlets, disk, opened, lanes);
                    let (exit, queues, numbered) = running.run(&self.stop, config).await;
                    (inlets, lanes) = (queues, numbered);
                    match exit {
                        Exit::Shutdown | Exit::Deleted => {
                            self.shared.publish(RunState::Ended);
                            return;
                        }
                        Exit::Failed(reason) => reason,
                    }
                }
            };
            if clock::now().since(started) >= LONG_RUN_MS {
                failures = 0;
            }
            failures += 1;
            let goes_on = match failures {
                MAX_FAILURES.. => self.retire(&mut inlets, reason).await,
                _ => self.back_off(&mut inlets, reason, failures).await,
            };
            if !goes_on {
                self.shared.publish(RunState::Ended);
                return;
            }
        }
    }

    /// Waits before the next opening. Returns false if there will be none.
    async fn back_off(&self, inlets: &mut Inlets, reason: String, failures: u32) -> bool {
        tracing::warn!(
            volume = %self.shared.status.borrow().volume, failures, %reason,
            "the store is opened again"
        );
        self.shared.publish(RunState::Failed { reason, failures });
        let pause = tokio::time::sleep(BACKOFF_FIRST * 2u32.pow(failures.min(6)));
        tokio::pin!(pause);
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return false,
                () = &mut pause => return true,
                deleted = self.refuse(inlets) => if deleted { return false },
            }
        }
    }

    /// The store failed too often. Returns when there is nothing more to wait for.
    async fn retire(&self, inlets: &mut Inlets, reason: String) -> bool {
        tracing::error!(
            volume = %self.shared.status.borrow().volume, %reason,
            "the replica is retired: its store failed {MAX_FAILURES} times. Check the disk, then \
             restart the datanode"
        );
        self.shared.publish(RunState::Retired { reason });
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return false,
                deleted = self.refuse(inlets) => if deleted { return false },
            }
        }
    }

    /// Takes one event that nobody can serve: dropping it tells whoever waits for an answer.
    /// Returns whether it was the volume's deletion.
    async fn refuse(&self, inlets: &mut Inlets) -> bool {
        tokio::select! {
            Some(event) = inlets.peers.recv() => drop(event),
            Some(order) = inlets.control.recv() => match order {
                Control::Deleted => return true,
                Control::Assignment(config) => self.shared.keep_config(&config),
                Control::Wish(wish) => self.shared.keep_wish(wish),
                Control::Resign => self.shared.resign(),
                Control::Answered { .. }
                | Control::Stand { .. }
                | Control::Open { .. }
                | Control::Verify { .. } => {}
            },
        }
        false
    }
}

/// Asks a task for a link. `None` if it has stopped or its store isn't open.
pub async fn open_link(handle: &VolumeHandle, open: OpenLink) -> Option<Link> {
    let (link, answer) = oneshot::channel();
    handle.control.send(Control::Open { open, link }).await.ok()?;
    answer.await.ok()
}
