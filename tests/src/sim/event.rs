//! What happens in the world, each at its time.

use std::rc::Rc;

use bytes::Bytes;
use sbk_engine::authority::detector::DetectorEvent;
use sbk_engine::authority::stand::Stand;
use sbk_engine::replication::io::{OpenStream, Outcome, Proposal, Request, StreamEnd, StreamId};
use sbk_engine::replication::log::RequestTag;
use sbk_engine::replication::message::{Lineage, RecoveryId, ToPrimary, ToReplica};
use sbk_engine::types::{
    AttachGeneration, Config, Epoch, Lba, LossGeneration, Lsn, ReplicaId, ReplicaRef,
};
use sbk_store::LogEntry;

use super::lanes::Piece;
use super::masters::{Catalogue, Told};

#[derive(Clone, Debug)]
pub(crate) enum Event {
    ToReplica {
        lineage: Lineage,
        message: ToReplica,
        entries: Vec<LogEntry>,
    },
    ToPrimary {
        lineage: Lineage,
        message: ToPrimary,
        entries: Vec<LogEntry>,
    },
    /// The batch that was planned is written and synced.
    BatchRuns {
        node: usize,
        run: u64,
    },
    BatchDone {
        node: usize,
        run: u64,
    },
    SyncRuns {
        node: usize,
        run: u64,
    },
    SyncDone {
        node: usize,
        run: u64,
    },
    /// A machine loses power, or its process is killed and back at once.
    Strike {
        node: usize,
        power: bool,
    },
    /// The masters want a replica to take over.
    Stand {
        node: usize,
        order: Stand,
    },
    CheckpointRuns {
        node: usize,
        run: u64,
    },
    CheckpointDone {
        node: usize,
        run: u64,
    },
    /// The store that failed is opened again.
    Reopen {
        node: usize,
        run: u64,
    },
    Timer {
        node: usize,
        run: u64,
    },
    ReadDone {
        node: usize,
        run: u64,
        stream: StreamId,
        tag: RequestTag,
    },
    /// Blocks that a primary asked for were read.
    BlocksRead {
        node: usize,
        run: u64,
        of: ReplicaId,
        request: u64,
    },
    /// A voter that got nothing hears the primary again: see `rotten`.
    Behind {
        primary: usize,
        voter: usize,
    },
    /// A store looked for data beyond a new end.
    Searched {
        node: usize,
        run: u64,
        search: u64,
    },
    /// A store looked whether blocks of a request hold nothing.
    Looked {
        node: usize,
        run: u64,
        stream: StreamId,
        tag: RequestTag,
    },
    /// A disk runs short of room.
    Fill {
        node: usize,
    },
    /// The primary hears what an operator's scrub found.
    Scrub {
        blocks: Vec<Lba>,
    },
    /// A piece of a base lane arrives.
    Base {
        lineage: Lineage,
        session: RecoveryId,
        piece: Piece,
    },
    BaseTaken {
        lineage: Lineage,
        session: RecoveryId,
        through: Lsn,
    },
    /// The sender of a base lane goes on.
    BaseTurn {
        node: usize,
        run: u64,
        session: RecoveryId,
    },
    BaseBroke {
        node: usize,
        run: u64,
        session: RecoveryId,
    },
    /// A process tells the masters what it has open.
    Register(Told),
    Propose {
        node: usize,
        run: u64,
        proposal: Proposal,
    },
    Answered {
        node: usize,
        run: u64,
        proposal: Proposal,
        config: Option<Config>,
    },
    Push {
        node: usize,
        told: Rc<Catalogue>,
    },
    /// The replica's directory at a node goes, by order.
    Remove {
        node: usize,
        process: u64,
        replica: ReplicaId,
    },
    /// A node looks again at what the masters want of it.
    Look {
        node: usize,
        process: u64,
    },
    /// A node that was lost is found.
    Found {
        node: usize,
    },
    /// A node that was drained may hold replicas again.
    Undrain {
        node: usize,
    },
    /// The catalogue reaches a client.
    Catalogue {
        client: usize,
        told: Rc<Catalogue>,
    },
    Open {
        node: usize,
        primary: ReplicaRef,
        open: OpenStream,
    },
    Close {
        node: usize,
        stream: StreamId,
    },
    Ask {
        node: usize,
        stream: StreamId,
        request: Request,
        value: u64,
    },
    Opened {
        stream: StreamId,
        epoch: Epoch,
        attach: AttachGeneration,
        loss: LossGeneration,
    },
    Ended {
        stream: StreamId,
        reason: StreamEnd,
        config: Option<Config>,
    },
    Answer {
        stream: StreamId,
        sequence: u64,
        outcome: Outcome,
        data: Option<Bytes>,
        /// The loss generation in which the stream was opened.
        loss: LossGeneration,
    },
    /// A process that was told to end does so.
    End {
        node: usize,
        run: u64,
    },
    /// All nodes but one go.
    Disaster {
        left: usize,
    },
    Restart {
        node: usize,
    },
    Resume {
        node: usize,
    },
    /// A command is committed, if the leader that had it still leads.
    Commit {
        id: u64,
    },
    Elect,
    /// A fact for the leader.
    Detect(DetectorEvent),
    /// A link goes or comes, so many times more.
    Flap {
        from: usize,
        to: usize,
        left: u64,
    },
    /// The masters replace the primary, with reason or without.
    FailOver,
    /// A primary that waits for the outcome of a handover is cut off.
    Strand {
        node: usize,
    },
    /// See [`World::relay`].
    Relay {
        third: usize,
    },
    /// See [`World::eight`].
    Eight,
    /// See [`World::unsynced`].
    Unsynced,
    /// See [`World::crowd`].
    Crowd,
    /// A disk that had failed is back, or another one is in its place.
    DiskBack {
        node: usize,
        empty: bool,
    },
    /// A full disk has room again.
    MakeRoom {
        node: usize,
    },
    Mend,
    /// Clients, masters and faults have a turn.
    Beat,
}
