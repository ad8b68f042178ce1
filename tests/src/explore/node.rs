//! One node: the real engine over a modelled disk, and the part of its driver.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use sbk_engine::recovery::{self, FailureKind};
use sbk_engine::replication::io::{
    Input, Kept, Outcome, Output, Payload, Proposal, StreamEnd, StreamId,
};
use sbk_engine::replication::log::{EntryHeader, RequestTag};
use sbk_engine::replication::message::{Append, Incomplete, Lineage, ToPrimary, ToReplica};
use sbk_engine::replication::view::RoleView;
use sbk_engine::replication::{Params, Replica};
use sbk_engine::types::{AttachGeneration, Epoch, Lsn, Millis, ReplicaId, ReplicaRef};
use serde::Serialize;

use super::canon;
use super::disk::{Disk, Entry};
use super::part::{Copied, Part};
use super::world::{BLOCKS, Message, Wire};

/// How far the clock moves at a time, in milliseconds.
pub(crate) const STEP: u64 = 1000;

/// Every time is a few steps of the clock. A lease is over one step after it was asked for, and the
/// promise behind it two steps after it was given.
pub(crate) fn params() -> Params {
    Params {
        lease_ms: STEP,
        renew_ms: STEP,
        suspect_ms: 2 * STEP,
        retry_ms: 2 * STEP,
        stall_ms: 6 * STEP,
        recovery: recovery::Params {
            probe_timeout_ms: 2 * STEP,
            probe_backoff_ms: STEP,
            probe_backoff_max_ms: STEP,
            start_timeout_ms: 4 * STEP,
            delta_start_timeout_ms: 4 * STEP,
            fence_retry_ms: 2 * STEP,
            command_retry_ms: 2 * STEP,
            ..recovery::Params::default()
        },
        ..Params::default()
    }
}

/// The epoch that a refusal tells of, to whichever run of the replica.
fn told_of(input: &Input) -> Epoch {
    let Input::FromReplica { message: ToPrimary::Refused { fenced, config, .. }, .. } = input
    else {
        return Epoch(0);
    };
    config.as_ref().map_or(*fenced, |config| config.epoch.max(*fenced))
}

/// What a node does to what is around it.
#[derive(Clone, Debug)]
pub(crate) enum Effect {
    Send(Arc<Part<Wire>>),
    Propose(Proposal),
    Opened {
        stream: StreamId,
        epoch: Epoch,
        attach: AttachGeneration,
    },
    Ended {
        stream: StreamId,
        reason: StreamEnd,
    },
    /// With what was read.
    Answer {
        stream: StreamId,
        tag: RequestTag,
        value: u64,
    },
    /// It knows these to be committed.
    Committed(Vec<Entry>),
    /// It dropped its log above this, or all that it had.
    Dropped(Option<Lsn>),
}

impl Effect {
    fn send(now: Millis, lineage: Lineage, message: Message) -> Self {
        Self::Send(Part::timed(now.0, Wire { lineage, message }))
    }
}

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Node {
    pub(crate) id: ReplicaId,
    pub(crate) disk: Disk,
    /// `None` while its process is down.
    pub(crate) replica: Option<Replica>,
    /// Reads whose blocks were read: the engine is to be told.
    pub(crate) read: Vec<(StreamId, RequestTag)>,
    /// Values of client writes and results of reads that the driver holds.
    pub(crate) values: BTreeMap<(StreamId, RequestTag), u64>,
}

/// What the world around a node asks of it again and again.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Face {
    /// The replica that it has open, and whether it is complete.
    pub(crate) open: Option<(ReplicaRef, bool)>,
    /// The epoch in which it is primary, and whether it is ready to serve.
    pub(crate) primary: Option<(Epoch, bool)>,
    /// The newest configuration that it knows of.
    pub(crate) knows: Option<Epoch>,
    /// When time does something to it.
    due: Option<Millis>,
    /// Something logged is not durable yet.
    pub(crate) unsynced: bool,
}

impl Face {
    fn of(now: Millis, node: &Node) -> Self {
        let view = node.replica.as_ref().map(|replica| replica.view(now));
        let primary = view.as_ref().filter(|view| view.role == RoleView::Primary);
        Self {
            open: view.as_ref().map(|view| (view.me, view.incomplete.is_none())),
            primary: primary.map(|view| (view.epoch, view.ready)),
            knows: node.replica.as_ref().and_then(Replica::config).map(|config| config.epoch),
            due: node.replica.as_ref().and_then(Replica::next_deadline),
            unsynced: node.has_unsynced(),
        }
    }

    pub(crate) fn is_due(&self, now: Millis) -> bool {
        self.due.is_some_and(|due| due <= now)
    }
}

/// A node that many worlds have in common.
#[derive(Debug)]
pub(crate) struct Held {
    node: Arc<Node>,
    pub(crate) face: Face,
    digest: u64,
    /// The clock that the digest is of.
    at: u64,
}

impl Held {
    pub(crate) fn new(now: u64, node: Node) -> Arc<Self> {
        let face = Face::of(Millis(now), &node);
        Arc::new(Self { digest: canon::digest_of(now, &node), node: Arc::new(node), face, at: now })
    }

    /// The same when the clock has moved.
    pub(crate) fn at(&self, now: u64) -> Arc<Self> {
        let digest = canon::digest_of(now, &*self.node);
        Arc::new(Self { node: self.node.clone(), face: self.face, digest, at: now })
    }

    /// Of the clock that it was last told.
    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }

    /// One to change.
    pub(crate) fn node(&self) -> Node {
        Node::clone(&self.node)
    }
}

impl Copied for Held {
    fn key(&self) -> (u64, Option<u64>) {
        (self.digest, Some(self.at))
    }
}

impl Deref for Held {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.node
    }
}

impl Node {
    pub(crate) fn new(id: ReplicaId, blocks: u64, short: bool) -> Self {
        let disk = Disk::new(blocks, short);
        Self { id, disk, replica: None, read: Vec::new(), values: BTreeMap::new() }
    }

    pub(crate) fn open(&mut self, now: Millis) {
        let opened = self.disk.open(self.id);
        self.replica = Some(Replica::open(now, opened, params()));
    }

    pub(crate) fn crash(&mut self, keep_tail: bool) {
        self.replica = None;
        self.read.clear();
        self.values.clear();
        self.disk.crash(keep_tail);
    }

    pub(crate) fn is_up(&self) -> bool {
        self.replica.is_some()
    }

    fn has_unsynced(&self) -> bool {
        self.is_up() && self.disk.end > self.disk.durable
    }

    /// Takes an input, and does the disk's part of what comes out; the rest is handed back.
    ///
    /// # Panics
    /// If the engine or the disk finds an invariant broken.
    pub(crate) fn input(&mut self, now: Millis, input: Input, values: &[u64]) -> Vec<Effect> {
        let first = match &input {
            Input::FromPrimary { message: ToReplica::Append(append), .. } => append.prev.next(),
            Input::FromReplica { message: ToPrimary::Entries { prev, .. }, .. } => prev.next(),
            _ => Lsn(0),
        };
        let told_of = told_of(&input);
        let Some(replica) = &mut self.replica else { return Vec::new() };
        let (_, outputs) = replica.step(now, input);
        let view = replica.view(now);
        assert!(
            view.role != RoleView::Primary || view.epoch >= told_of,
            "I1: {} goes on in epoch {} after a refusal told it of epoch {told_of}",
            view.me.id,
            view.epoch
        );
        let checkpoint = self.disk.checkpoint;
        let mut effects = Vec::new();
        for output in outputs {
            self.carry_out(now, output, values, first, &mut effects);
        }
        if self.disk.checkpoint != checkpoint {
            let (checkpoint, retained) = (self.disk.checkpoint, self.disk.retained);
            let generation = self.replica.as_ref().map_or(0, Replica::generation);
            let moved = Input::Checkpointed { generation, checkpoint, retained };
            effects.extend(self.input(now, moved, &[]));
        }
        effects
    }

    /// What is logged so far becomes durable.
    pub(crate) fn sync(&mut self, now: Millis) -> Vec<Effect> {
        let Some(replica) = &self.replica else { return Vec::new() };
        let generation = replica.generation();
        self.disk.durable = self.disk.end;
        self.input(now, Input::Durable { generation, lsn: self.disk.durable }, &[])
    }

    /// Blocks were read: the engine is told.
    pub(crate) fn read_done(&mut self, now: Millis, which: usize) -> Vec<Effect> {
        let (stream, tag) = self.read.remove(which);
        self.input(now, Input::ReadDone { stream, tag, error: None }, &[])
    }

    /// The image of a base lane arrives.
    pub(crate) fn take_base(
        &mut self,
        now: Millis,
        lineage: Lineage,
        mark: Incomplete,
        (image, wrote): (&BTreeMap<u64, u64>, &BTreeMap<u64, Lsn>),
        read_at: Lsn,
    ) -> Vec<Effect> {
        let current = self.disk.opens == lineage.to.incarnation.process;
        if !current || self.disk.kept.incomplete != Some(mark) {
            return Vec::new();
        }
        self.disk.take_base(image, wrote);
        let lineage = Lineage { from: lineage.to, to: lineage.from, ..lineage };
        let message = Message::BaseTaken { session: mark.session, through: read_at };
        vec![Effect::send(now, lineage, message)]
    }

    fn carry_out(
        &mut self,
        now: Millis,
        output: Output,
        values: &[u64],
        first: Lsn,
        effects: &mut Vec<Effect>,
    ) {
        match output {
            Output::Persist(kept) | Output::FinishRebuild { kept, .. } => self.keep(kept),
            Output::Cut { end, kept } => {
                effects.push(Effect::Dropped(Some(end)));
                self.keep(kept);
                self.disk.cut(end);
            }
            Output::Wipe { mark, state, kept } => {
                effects.push(Effect::Dropped(None));
                self.keep(kept);
                self.disk.wipe(&mark, state);
            }
            Output::Append { headers, payload } => {
                for header in headers {
                    let value = self.value_of(&header, payload, values, first);
                    self.disk.append(header, value);
                }
            }
            Output::Committed(lsn) => {
                let entries = self.disk.entries(self.disk.checkpoint.next(), lsn);
                self.disk.commit(lsn);
                effects.push(Effect::Committed(entries));
            }
            // What is committed is in the image at once.
            Output::Checkpoint { .. } => {}
            Output::Pin { session, from } => self.disk.pin(session, from),
            Output::Unpin { session } => self.disk.unpin(session),
            Output::FindData { .. } => panic!("nobody wishes for another size"),
            Output::LookForHoles { .. } => panic!("no disk is short of room"),
            Output::Read { stream, tag, range, merge } => {
                assert!(!merge, "no world has partial writes");
                self.values.insert((stream, tag), self.disk.newest(range.lba.0));
                self.read.push((stream, tag));
            }
            Output::ToReplica { lineage, message, .. } => {
                let message = Message::ToReplica(message, Vec::new());
                effects.push(Effect::send(now, lineage, message));
            }
            Output::ToPrimary { lineage, message } => {
                let message = Message::ToPrimary(message, Vec::new());
                effects.push(Effect::send(now, lineage, message));
            }
            Output::SendEntries { lineage, append, last, .. } => {
                effects.extend(self.send_entries(now, lineage, append, last));
            }
            Output::StartBase { mark, lineage, .. } => {
                let (read_at, wrote) = (self.disk.committed, self.disk.wrote());
                let sent = |b: &u64| {
                    mark.from == Lsn(0) || wrote.get(b).is_some_and(|lsn| *lsn > mark.from)
                };
                let image =
                    (0..BLOCKS).filter(sent).map(|b| (b, self.disk.as_of(b, read_at))).collect();
                let message = Message::Base { mark, image, wrote, read_at };
                effects.push(Effect::send(now, lineage, message));
            }
            Output::SendFetched { lineage, request, prev, last } => {
                let (entries, values) = self.disk.entries(prev.next(), last).into_iter().unzip();
                let answer = ToPrimary::Entries { request, prev, entries };
                effects.push(Effect::send(now, lineage, Message::ToPrimary(answer, values)));
            }
            Output::SendBlocks { .. } | Output::Scrubbed { .. } => {
                panic!("no block rots in these worlds")
            }
            Output::Propose(proposal) => effects.push(Effect::Propose(proposal)),
            Output::StreamOpened { stream, epoch, attach, .. } => {
                effects.push(Effect::Opened { stream, epoch, attach });
            }
            Output::StreamEnded { stream, reason } => {
                effects.push(Effect::Ended { stream, reason });
            }
            Output::Answer { stream, tag, outcome } => {
                assert_eq!(outcome, Outcome::Done, "I8: {tag:?} ended with an error");
                let value = self.values.remove(&(stream, tag)).unwrap_or(0);
                effects.push(Effect::Answer { stream, tag, value });
            }
            Output::ResetFeed { .. } | Output::StopBase { .. } | Output::Trace(_) => {}
        }
    }

    /// What a replica promised is never taken back.
    fn keep(&mut self, kept: Kept) {
        let before = &self.disk.kept;
        assert!(kept.fenced >= before.fenced, "I7: the fenced epoch went back");
        assert!(
            kept.loss_generation >= before.loss_generation,
            "I7: the loss generation went back"
        );
        self.disk.kept = kept;
    }

    fn send_entries(
        &mut self,
        now: Millis,
        lineage: Lineage,
        mut append: Append,
        last: Lsn,
    ) -> Vec<Effect> {
        let entries = self.disk.entries(append.prev.next(), last);
        if entries.len() as u64 != last.0 - append.prev.0 {
            let (replica, cause) = (lineage.to.id, FailureKind::WalRecycled);
            return self.input(now, Input::FeedFailed { replica, cause }, &[]);
        }
        append.entries = entries.iter().map(|(header, _)| *header).collect();
        let values = entries.iter().map(|(_, value)| *value).collect();
        let message = Message::ToReplica(ToReplica::Append(append), values);
        vec![Effect::send(now, lineage, message)]
    }

    fn value_of(&self, header: &EntryHeader, payload: Payload, values: &[u64], first: Lsn) -> u64 {
        match payload {
            Payload::Feed => values[(header.lsn.0 - first.0) as usize],
            Payload::Client(tag) => {
                let held = &self.values;
                held.iter().rev().find(|((_, t), _)| *t == tag).map_or(0, |(_, value)| *value)
            }
            Payload::Blocks => panic!("no block rots in these worlds"),
            Payload::Empty => 0,
        }
    }
}
