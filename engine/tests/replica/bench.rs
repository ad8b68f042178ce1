//! A replica and who talks to it.

use std::collections::{BTreeMap, BTreeSet};

use sbk_engine::recording::{Ring, replay};
use sbk_engine::replication::io::{Input, Kept, Opened, Output, Request, StreamId};
use sbk_engine::replication::log::{EntryHeader, EntryKind, EpochTable, LogState};
use sbk_engine::replication::message::{Append, Facts, Lineage, ToPrimary, ToReplica};
use sbk_engine::replication::{Params, Replica, Verdict};
use sbk_engine::types::{
    BootId, Config, Epoch, Incarnation, Lba, LossGeneration, Lsn, Millis, NodeId, Placement,
    ReplicaId, ReplicaRef, TailId, VolumeId,
};
use uuid::Uuid;

pub(crate) fn replica(n: u128) -> ReplicaRef {
    let incarnation = Incarnation { process: 1, open: 1 };
    ReplicaRef { id: ReplicaId(Uuid::from_u128(n)), incarnation }
}

pub(crate) fn volume() -> VolumeId {
    VolumeId(Uuid::from_u128(7))
}

/// Replicas 1, 2 and 3; those of `isr` are in sync.
pub(crate) fn config(epoch: u64, primary: u128, isr: &[u128]) -> Config {
    let place = |n: u128| Placement { node: NodeId(Uuid::from_u128(n)), addr: format!("n{n}:1") };
    Config {
        volume: volume(),
        epoch: Epoch(epoch),
        primary: replica(primary),
        since: Epoch(epoch),
        isr: isr.iter().map(|n| replica(*n).id).collect::<BTreeSet<_>>(),
        replicas: (1..=3).map(|n| (replica(n).id, place(n))).collect::<BTreeMap<_, _>>(),
        durability: sbk_engine::types::Durability::SyncAll,
        write_ack: sbk_engine::types::WriteAck::Durable,
        min_in_sync: 1,
        blocks: 16,
        wished_blocks: None,
        loss_generation: LossGeneration(0),
        handed_over_by: None,
        tails: std::collections::BTreeMap::new(),
    }
}

pub(crate) fn table(pairs: &[(u64, u64)]) -> EpochTable {
    let pairs = pairs.iter().map(|(epoch, first)| (Epoch(*epoch), Lsn(*first))).collect();
    EpochTable::from_pairs(pairs).expect("ascends")
}

pub(crate) fn entry(epoch: u64, lsn: u64) -> EntryHeader {
    let kind = EntryKind::Write { lba: Lba(0), blocks: 1 };
    EntryHeader { epoch: Epoch(epoch), lsn: Lsn(lsn), kind, origin: None }
}

/// What replica `me` finds when it opens: a log of epoch 1 up to `durable`, committed up to
/// `committed`, all in the WAL.
pub(crate) fn opened(me: u128, committed: u64, durable: u64) -> Opened {
    Opened {
        volume: volume(),
        me: replica(me),
        tail: TailId { boot: BootId(Uuid::from_u128(1)), count: 0 },
        kept: Kept { fenced: Epoch(1), table: table(&[(1, 1)]), ..Kept::default() },
        durable: Lsn(durable),
        committed: Lsn(committed),
        checkpoint: Lsn(committed),
        retained: Lsn(1),
        state: LogState::new(16),
        uncommitted: (committed + 1..=durable).map(|lsn| entry(1, lsn)).collect(),
    }
}

pub(crate) struct Bench {
    pub(crate) replica: Replica,
    me: ReplicaRef,
    pub(crate) now: u64,
    /// What was fed.
    pub(crate) ring: Ring,
}

/// Whatever a test does to its replica can be taken again, with the same outcome.
impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let recording = self.ring.recording();
            assert_eq!(replay(&recording), Ok(recording.steps.len()));
        }
    }
}

impl Bench {
    pub(crate) fn open(opened: Opened) -> Self {
        let me = opened.me;
        let replica = Replica::open(Millis(1_000), opened, Params::default());
        let ring = Ring::new(&replica);
        Self { replica, me, now: 1_000, ring }
    }

    pub(crate) fn feed(&mut self, input: Input) -> (Verdict, Vec<Output>) {
        self.ring.begin(&self.replica, Millis(self.now), &input);
        let (verdict, outputs) = self.replica.step(Millis(self.now), input);
        self.ring.end(verdict, &outputs);
        (verdict, outputs)
    }

    /// Time passes, noticed.
    pub(crate) fn pass(&mut self, ms: u64) -> Vec<Output> {
        self.now += ms;
        self.feed(Input::Tick).1
    }

    /// Primary `from` says something in `epoch`.
    pub(crate) fn hear(
        &mut self,
        from: u128,
        epoch: u64,
        message: ToReplica,
    ) -> (Verdict, Vec<Output>) {
        let lineage =
            Lineage { volume: volume(), epoch: Epoch(epoch), from: replica(from), to: self.me };
        self.feed(Input::FromPrimary { lineage, message })
    }

    /// Replica `from` answers what was asked in `epoch`.
    pub(crate) fn answer(
        &mut self,
        from: u128,
        epoch: u64,
        message: ToPrimary,
    ) -> (Verdict, Vec<Output>) {
        let lineage =
            Lineage { volume: volume(), epoch: Epoch(epoch), from: replica(from), to: self.me };
        self.feed(Input::FromReplica { lineage, message })
    }

    /// Meets `replica` as a primary in `epoch`, up to the question of what it holds: its number.
    pub(crate) fn ask(&mut self, from: u128, epoch: u64, probed: &[Output]) -> u64 {
        let request = sent(probed, from)
            .iter()
            .find_map(|message| match message {
                ToReplica::Probe { request } => Some(*request),
                _ => None,
            })
            .expect("a probe");
        let (_, fenced) = self.answer(from, epoch, ToPrimary::Alive { request });
        sent(&fenced, from)
            .iter()
            .find_map(|message| match message {
                ToReplica::Fence { request, .. } => Some(*request),
                _ => None,
            })
            .expect("a fence")
    }

    /// Meets `replica` as a primary in `epoch`, and has it tell what it holds.
    pub(crate) fn meet(
        &mut self,
        from: u128,
        epoch: u64,
        probed: &[Output],
        facts: Facts,
    ) -> Vec<Output> {
        let request = self.ask(from, epoch, probed);
        self.answer(from, epoch, ToPrimary::Facts { request, facts }).1
    }

    pub(crate) fn request(&mut self, stream: u64, request: Request) -> Vec<Output> {
        self.feed(Input::Request { stream: StreamId(stream), request }).1
    }
}

/// What was sent to replica `to`.
pub(crate) fn sent(outputs: &[Output], to: u128) -> Vec<ToReplica> {
    let to = replica(to).id;
    let messages = outputs.iter().filter_map(|output| match output {
        Output::ToReplica { lineage, message, .. } if lineage.to.id == to => Some(message.clone()),
        _ => None,
    });
    messages.collect()
}

/// What was told to the primary.
pub(crate) fn told(outputs: &[Output]) -> Vec<ToPrimary> {
    let messages = outputs.iter().filter_map(|output| match output {
        Output::ToPrimary { message, .. } => Some(message.clone()),
        _ => None,
    });
    messages.collect()
}

pub(crate) fn append(first: u64, committed: u64, prev: u64, entries: Vec<EntryHeader>) -> Append {
    Append {
        since: Epoch(0),
        first: Lsn(first),
        committed: Lsn(committed),
        stamp: None,
        prev: Lsn(prev),
        entries,
    }
}

/// What a replica holds whose log is of epoch 1 up to `durable`.
pub(crate) fn facts(table: EpochTable, committed: u64, durable: u64) -> Facts {
    Facts {
        table,
        durable: Lsn(durable),
        committed: Lsn(committed),
        checkpoint: Lsn(committed),
        retained: Lsn(1),
        incomplete: None,
        loss_generation: LossGeneration(0),
        promised_ms: 0,
        tail: TailId { boot: BootId(Uuid::from_u128(1)), count: 0 },
        doubtful: false,
    }
}

/// A test must fail with the bug put back.
#[cfg(feature = "bugs")]
pub(crate) fn bites(bug: sbk_engine::bugs::Bug, test: fn()) {
    let _back = sbk_engine::bugs::put_back(bug);
    assert!(std::panic::catch_unwind(test).is_err(), "{bug:?} goes unnoticed");
}
