//! What others may see of a volume task: its status, its counters, its trace.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sbk_engine::authority::Limits;
use sbk_engine::replication::mend::MendCounts;
use sbk_engine::replication::message::RecoveryId;
use sbk_engine::replication::trace::TraceEvent;
use sbk_engine::replication::view::View;
use sbk_engine::types::{Incarnation, Lsn, Millis, ReplicaId, ReplicaRef, TailId, VolumeId};
use serde::Serialize;

use crate::transport::{BaseSent, Sent};

/// Decisions kept for `/trace`; the oldest go first.
pub const TRACE_CAPACITY: usize = 4096;

/// What a volume task is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum RunState {
    /// The store is being opened.
    Opening,
    /// The replica runs.
    Running,
    /// The store failed; it will be opened again.
    Failed {
        /// Why.
        reason: String,
        /// Failures without a long run in between.
        failures: u32,
    },
    /// The disk is full. The store will be opened again when there is room, and now and then.
    Full {
        /// What there was no room for.
        reason: String,
        /// Failures without a long run in between.
        failures: u32,
    },
    /// The store failed too often. The replica is not used for a long while.
    Retired {
        /// The last failure.
        reason: String,
    },
    /// Its disk can't be used. The store will be opened again when the disk is back.
    Away {
        /// Why.
        reason: String,
    },
    /// The task has ended: the node stops, or the volume is deleted.
    Ended,
}

/// One replica on this node, as its task last published it.
#[derive(Clone, Debug, Serialize)]
pub struct VolumeStatus {
    /// The volume.
    pub volume: VolumeId,
    /// The replica.
    pub replica: ReplicaId,
    /// What the task does.
    pub run: RunState,
    /// What the engine shows; absent while the store isn't open.
    pub view: Option<View>,
    /// Whether client requests and the feed wait for a checkpoint to make room in the WAL.
    pub wal_full: bool,
    /// Frontend streams connected here.
    pub links: usize,
    /// Payload bytes of requests that were not logged yet.
    pub held_bytes: u64,
    /// What the volume's clients may do, as far as this node was told.
    pub limits: Limits,
    /// Up to here the disk has it recorded that the log was durable: damage there is told from a
    /// torn write.
    pub recorded: Lsn,
    /// Primary: what was sent in the recovery sessions that are under way, by their replicas.
    pub sessions: BTreeMap<ReplicaId, SessionSent>,
    /// When this was published, on the machine's boot clock.
    pub at: Millis,
}

impl VolumeStatus {
    /// A task that has not opened its store.
    pub fn opening(volume: VolumeId, replica: ReplicaId) -> Self {
        Self {
            volume,
            replica,
            run: RunState::Opening,
            view: None,
            wal_full: false,
            links: 0,
            held_bytes: 0,
            limits: Limits::default(),
            recorded: Lsn(0),
            sessions: BTreeMap::new(),
            at: super::clock::now(),
        }
    }

    /// What runs, as the masters are to know it.
    pub fn open_as(&self) -> Option<OpenReplica> {
        let view = self.view.as_ref().filter(|_| self.run == RunState::Running)?;
        Some(OpenReplica {
            volume: self.volume,
            replica: view.me,
            complete: view.incomplete.is_none(),
            tail: view.tail,
            doubtful: view.doubtful,
        })
    }
}

/// What was sent in a recovery session so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SessionSent {
    /// Which.
    pub session: RecoveryId,
    /// Payload bytes of entries since it began: what the replica missed, and what clients write meanwhile.
    pub entries_bytes: u64,
    /// Base blocks, in a delta or a rebuild.
    pub base: Option<BaseSent>,
}

/// A replica that is open, as its node registers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenReplica {
    /// Its volume.
    pub volume: VolumeId,
    /// It, in the incarnation that runs.
    pub replica: ReplicaRef,
    /// No rebuild is unfinished.
    pub complete: bool,
    /// Its tail.
    pub tail: TailId,
    /// Its log may have lost its end.
    pub doubtful: bool,
}

/// A decision with the run in which it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TraceEntry {
    /// Counts the task's decisions, from 1: a gap shows that older ones were dropped.
    pub number: u64,
    /// The replica's run.
    pub incarnation: Incarnation,
    /// The decision.
    #[serde(flatten)]
    pub event: TraceEvent,
}

/// The newest decisions of one task.
#[derive(Debug, Default)]
pub struct TraceRing {
    entries: Mutex<(u64, VecDeque<TraceEntry>)>,
}

impl TraceRing {
    pub(super) fn push(&self, incarnation: Incarnation, event: TraceEvent) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.0 += 1;
        let number = entries.0;
        if entries.1.len() >= TRACE_CAPACITY {
            entries.1.pop_front();
        }
        entries.1.push_back(TraceEntry { number, incarnation, event });
    }

    /// The entries with a number above `after`, oldest first.
    pub fn after(&self, after: u64) -> Vec<TraceEntry> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.1.iter().filter(|entry| entry.number > after).cloned().collect()
    }
}

/// The counter of reads that failed for another reason than that blocks of the extents rotted.
pub const READ_FAILED: (&str, &str) = ("event", "read_failed");

/// Counts of what went through one task, by stable names.
#[derive(Debug, Default)]
pub struct Counters {
    /// When the loop last turned, in milliseconds of the boot clock.
    last_turn: AtomicU64,
    turns: AtomicU64,
    /// Requests that waited for the volume's limits, and for how long any did.
    held_back: (AtomicU64, AtomicU64),
    /// What became of rotten blocks, over all openings.
    mends: Mutex<MendCounts>,
    named: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    /// What was sent to other replicas, over all openings.
    sent: Mutex<BTreeMap<ReplicaId, Arc<Sent>>>,
}

impl Counters {
    pub(super) fn turn(&self, now: Millis) {
        self.last_turn.store(now.0, Ordering::Relaxed);
        self.turns.fetch_add(1, Ordering::Relaxed);
    }

    /// Adds what a turn counted.
    pub(super) fn add(&self, counted: &mut BTreeMap<(&'static str, &'static str), u64>) {
        if counted.is_empty() {
            return;
        }
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, count) in std::mem::take(counted) {
            *named.entry(name).or_default() += count;
        }
    }

    pub(super) fn held_back(&self, requests: u64, nanos: u64) {
        self.held_back.0.fetch_add(requests, Ordering::Relaxed);
        self.held_back.1.fetch_add(nanos, Ordering::Relaxed);
    }

    pub(super) fn mended(&self, more: MendCounts) {
        let mut mends = self.mends.lock().unwrap_or_else(PoisonError::into_inner);
        mends.rotten += more.rotten;
        mends.mended += more.mended;
        mends.not_mended += more.not_mended;
        mends.scrubbed += more.scrubbed;
    }

    /// What was sent to a replica in this process.
    pub fn sent_to(&self, replica: ReplicaId) -> Arc<Sent> {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(sent.entry(replica).or_default())
    }

    /// What became of rotten blocks in this process.
    pub fn mends(&self) -> MendCounts {
        *self.mends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests that waited for the volume's limits, and for how long any waited.
    pub fn throttled(&self) -> (u64, Duration) {
        let (requests, nanos) = &self.held_back;
        let waited = Duration::from_nanos(nanos.load(Ordering::Relaxed));
        (requests.load(Ordering::Relaxed), waited)
    }

    /// When the loop last turned, and how often it did.
    pub fn turns(&self) -> (Millis, u64) {
        (Millis(self.last_turn.load(Ordering::Relaxed)), self.turns.load(Ordering::Relaxed))
    }

    /// `(kind, name)` to count; the kinds are `event`, `ignored`, `output`.
    pub fn named(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
