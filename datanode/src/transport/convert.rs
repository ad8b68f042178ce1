//! Between the engine's types and the wire's.
//!
//! Encoding never fails. Decoding trusts nothing: every length, kind and number that another
//! process could have made up is checked here, once, so that the engine sees only messages that
//! it could have made itself.

use bytes::Bytes;
use sbk_engine::recovery::FailureKind;
use sbk_engine::replication::io::StreamEnd;
use sbk_engine::replication::log::{
    EntryHeader, EntryKind, EpochTable, LogState, Origin, RequestTag, SessionLog,
};
use sbk_engine::replication::message::{
    Append, Facts, Incomplete, Lineage, RecoveryId, ToPrimary, ToReplica,
};
use sbk_engine::types::{
    AttachGeneration, Config, Epoch, Incarnation, Lba, LossGeneration, Lsn, MAX_REQUEST_BYTES,
    Millis, NodeId, Placement, ReplicaId, ReplicaRef, SessionId, VolumeId,
};
use sbk_proto::v1;
use sbk_proto::v1::recover_message::Body as RecoverBody;
use sbk_proto::v1::replication_message::Body;
use uuid::Uuid;

/// A message that this version of sbk would not have sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a peer sent a malformed message: {0}. Check that all nodes run the same version of sbk")]
pub struct Malformed(pub String);

/// Most pairs of an epoch table: far more than any replica keeps.
const MAX_TABLE: usize = 4 * EpochTable::CAPACITY;

type Decoded<T> = Result<T, Malformed>;

fn bad<T>(what: impl Into<String>) -> Decoded<T> {
    Err(Malformed(what.into()))
}

fn need<T>(field: Option<T>, name: &str) -> Decoded<T> {
    field.ok_or_else(|| Malformed(format!("{name} is missing")))
}

/// One log entry on the wire: header, payload, and the CRC-32C over both that the primary computed
/// when it logged the entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireEntry {
    /// What it is.
    pub header: EntryHeader,
    /// Over the canonical header and the payload, the same on every replica.
    pub crc: u32,
    /// `header.kind.payload_len()` bytes.
    pub payload: Bytes,
}

/// A message of the base lane, in either direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recover {
    /// One of the engine's, to the replica: `BeginRebuild` or `Close`.
    ToReplica(ToReplica),
    /// One of the engine's, to the primary: `RebuildStarted`, `Closed`, `SessionFailed`, `Refused`.
    ToPrimary(ToPrimary),
    /// Consecutive blocks of the committed image.
    Blocks {
        /// First block.
        lba: Lba,
        /// Whole blocks.
        data: Bytes,
        /// The primary's log end when they were read; all up to it is committed.
        read_at: Lsn,
        /// CRC-32C of `data`.
        crc: u32,
    },
    /// The sender's region LSNs from `first` on; 0 for a region that nothing wrote.
    Regions {
        /// First region.
        first: u64,
        /// One for each region.
        lsns: Vec<Lsn>,
    },
    /// All was sent.
    End,
    /// Bytes of base blocks that the receiver has taken since the session's start.
    Taken(u64),
}

fn uuid(bytes: &[u8], name: &str) -> Decoded<Uuid> {
    Uuid::from_slice(bytes).or_else(|_| bad(format!("{name} is no UUID ({} bytes)", bytes.len())))
}

fn id(uuid: Uuid) -> Bytes {
    Bytes::copy_from_slice(uuid.as_bytes())
}

/// A volume's id from its 16 bytes.
pub fn volume_id(bytes: &[u8]) -> Decoded<VolumeId> {
    uuid(bytes, "volume").map(VolumeId)
}

/// A replica's id from its 16 bytes.
pub fn replica_id(bytes: &[u8]) -> Decoded<ReplicaId> {
    uuid(bytes, "replica").map(ReplicaId)
}

/// A node's id from its 16 bytes.
pub fn node_id(bytes: &[u8]) -> Decoded<NodeId> {
    uuid(bytes, "node").map(NodeId)
}

/// A session's id from its 16 bytes.
pub fn session_id(bytes: &[u8]) -> Decoded<SessionId> {
    uuid(bytes, "session").map(SessionId)
}

/// CRC-32C of a piece of data.
pub fn data_crc(data: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, data) as u32
}

/// The 16 bytes of an id.
pub fn id_bytes(uuid: Uuid) -> Bytes {
    id(uuid)
}

/// A replica in one of its incarnations.
pub fn replica_ref_out(replica: ReplicaRef) -> v1::ReplicaRef {
    let Incarnation { process, open } = replica.incarnation;
    v1::ReplicaRef { id: id(replica.id.0), incarnation: Some(v1::Incarnation { process, open }) }
}

/// A replica in one of its incarnations.
pub fn replica_ref_in(replica: v1::ReplicaRef) -> Decoded<ReplicaRef> {
    let incarnation = need(replica.incarnation, "incarnation")?;
    Ok(ReplicaRef {
        id: replica_id(&replica.id)?,
        incarnation: Incarnation { process: incarnation.process, open: incarnation.open },
    })
}

/// A configuration.
pub fn config_out(config: &Config) -> v1::Config {
    v1::Config {
        volume: id(config.volume.0),
        epoch: config.epoch.0,
        primary: Some(replica_ref_out(config.primary)),
        since: config.since.0,
        isr: config.isr.iter().map(|r| id(r.0)).collect(),
        replicas: config
            .replicas
            .iter()
            .map(|(replica, placement)| v1::ReplicaPlacement {
                replica: id(replica.0),
                node: id(placement.node.0),
                addr: placement.addr.clone(),
            })
            .collect(),
        min_in_sync: config.min_in_sync,
        blocks: config.blocks,
        loss_generation: config.loss_generation.0,
    }
}

/// A configuration.
pub fn config_in(config: v1::Config) -> Decoded<Config> {
    let mut replicas = std::collections::BTreeMap::new();
    for placement in config.replicas {
        let at = Placement { node: node_id(&placement.node)?, addr: placement.addr };
        replicas.insert(replica_id(&placement.replica)?, at);
    }
    let isr: Result<_, _> = config.isr.iter().map(|r| replica_id(r)).collect();
    let config = Config {
        volume: volume_id(&config.volume)?,
        epoch: Epoch(config.epoch),
        primary: replica_ref_in(need(config.primary, "primary")?)?,
        since: Epoch(config.since),
        isr: isr?,
        replicas,
        min_in_sync: config.min_in_sync,
        blocks: config.blocks,
        loss_generation: LossGeneration(config.loss_generation),
    };
    if config.epoch == Epoch(0) || config.since > config.epoch {
        return bad(format!("epoch {} since {}", config.epoch, config.since));
    }
    if !config.isr.is_empty() && !config.isr.contains(&config.primary.id) {
        return bad("the primary is not in the in-sync set");
    }
    Ok(config)
}

/// A lineage.
pub fn lineage_out(lineage: Lineage) -> v1::Lineage {
    v1::Lineage {
        volume: id(lineage.volume.0),
        epoch: lineage.epoch.0,
        from: Some(replica_ref_out(lineage.from)),
        to: Some(replica_ref_out(lineage.to)),
    }
}

/// A lineage.
pub fn lineage_in(lineage: Option<v1::Lineage>) -> Decoded<Lineage> {
    let lineage = need(lineage, "lineage")?;
    Ok(Lineage {
        volume: volume_id(&lineage.volume)?,
        epoch: Epoch(lineage.epoch),
        from: replica_ref_in(need(lineage.from, "lineage.from")?)?,
        to: replica_ref_in(need(lineage.to, "lineage.to")?)?,
    })
}

fn table_out(table: &EpochTable) -> Vec<v1::EpochStart> {
    let pairs = table.pairs().iter();
    pairs.map(|(epoch, first)| v1::EpochStart { epoch: epoch.0, first_lsn: first.0 }).collect()
}

fn table_in(table: Vec<v1::EpochStart>) -> Decoded<EpochTable> {
    if table.len() > MAX_TABLE {
        return bad(format!("an epoch table of {} pairs", table.len()));
    }
    let pairs = table.into_iter().map(|p| (Epoch(p.epoch), Lsn(p.first_lsn))).collect();
    need(EpochTable::from_pairs(pairs), "order in the epoch table")
}

fn recovery_out(session: RecoveryId) -> v1::RecoveryId {
    v1::RecoveryId { epoch: session.epoch.0, number: session.number }
}

fn recovery_in(session: Option<v1::RecoveryId>) -> Decoded<RecoveryId> {
    let session = need(session, "session")?;
    Ok(RecoveryId { epoch: Epoch(session.epoch), number: session.number })
}

fn incomplete_out(mark: Incomplete) -> v1::Incomplete {
    v1::Incomplete {
        session: Some(recovery_out(mark.session)),
        from: mark.from.0,
        base: mark.base.0,
        target: mark.target.0,
    }
}

fn incomplete_in(mark: v1::Incomplete) -> Decoded<Incomplete> {
    Ok(Incomplete {
        session: recovery_in(mark.session)?,
        from: Lsn(mark.from),
        base: Lsn(mark.base),
        target: Lsn(mark.target),
    })
}

fn failure_out(kind: FailureKind) -> u32 {
    match kind {
        FailureKind::WalRecycled => 1,
        FailureKind::Transport => 2,
        FailureKind::StoreIo => 3,
        FailureKind::StartTimeout => 4,
        FailureKind::Invalidated => 5,
        FailureKind::PinLost => 6,
    }
}

fn failure_in(kind: u32) -> Decoded<FailureKind> {
    match kind {
        1 => Ok(FailureKind::WalRecycled),
        2 => Ok(FailureKind::Transport),
        3 => Ok(FailureKind::StoreIo),
        4 => Ok(FailureKind::StartTimeout),
        5 => Ok(FailureKind::Invalidated),
        6 => Ok(FailureKind::PinLost),
        other => bad(format!("failure kind {other}")),
    }
}

/// Why a stream ended, as a number.
pub fn stream_end_out(reason: StreamEnd) -> u32 {
    match reason {
        StreamEnd::NotPrimary => 1,
        StreamEnd::Replaced => 2,
        StreamEnd::SessionLost => 3,
        StreamEnd::AttachLost => 4,
        StreamEnd::TooManySessions => 5,
        StreamEnd::Deleted => 6,
    }
}

const KIND_WRITE: u32 = 1;
const KIND_TRIM: u32 = 2;
const KIND_ZERO: u32 = 3;
const KIND_ATTACH: u32 = 4;
const KIND_CLOSE: u32 = 5;
const KIND_RESIZE: u32 = 6;

/// An entry. The payload is shared, not copied.
pub fn entry_out(entry: &WireEntry) -> v1::Entry {
    let header = &entry.header;
    let (kind, lba, blocks, value) = match header.kind {
        EntryKind::Write { lba, blocks } => (KIND_WRITE, lba.0, blocks, 0),
        EntryKind::Trim { lba, blocks } => (KIND_TRIM, lba.0, blocks, 0),
        EntryKind::Zero { lba, blocks } => (KIND_ZERO, lba.0, blocks, 0),
        EntryKind::Attach { generation } => (KIND_ATTACH, 0, 0, generation.0),
        EntryKind::Close { .. } => (KIND_CLOSE, 0, 0, 0),
        EntryKind::Resize { blocks } => (KIND_RESIZE, 0, 0, blocks),
    };
    let origin = header.origin.map(|origin| id(origin.tag.session.0)).unwrap_or_default();
    let session = match header.kind {
        EntryKind::Close { session } => id(session.0),
        EntryKind::Write { .. }
        | EntryKind::Trim { .. }
        | EntryKind::Zero { .. }
        | EntryKind::Attach { .. }
        | EntryKind::Resize { .. } => origin.clone(),
    };
    v1::Entry {
        epoch: header.epoch.0,
        lsn: header.lsn.0,
        kind,
        lba,
        blocks,
        value,
        session,
        sequence: header.origin.map_or(0, |origin| origin.tag.sequence),
        low: header.origin.map_or(0, |origin| origin.low),
        crc: entry.crc,
        payload: entry.payload.clone(),
        origin_session: origin,
    }
}

/// An entry, whose CRC the caller still has to check.
pub fn entry_in(entry: v1::Entry) -> Decoded<WireEntry> {
    let (lba, blocks) = (Lba(entry.lba), entry.blocks);
    let kind = match entry.kind {
        KIND_WRITE => EntryKind::Write { lba, blocks },
        KIND_TRIM => EntryKind::Trim { lba, blocks },
        KIND_ZERO => EntryKind::Zero { lba, blocks },
        KIND_ATTACH => EntryKind::Attach { generation: AttachGeneration(entry.value) },
        KIND_CLOSE => EntryKind::Close { session: session_id(&entry.session)? },
        KIND_RESIZE => EntryKind::Resize { blocks: entry.value },
        other => return bad(format!("entry kind {other}")),
    };
    if kind.range().is_some_and(|r| r.blocks == 0 || r.lba.0.checked_add(blocks.into()).is_none()) {
        return bad(format!("an entry of {blocks} blocks at {lba}"));
    }
    let length = entry.payload.len() as u64;
    if length != kind.payload_len() || length > MAX_REQUEST_BYTES {
        return bad(format!("an entry of {blocks} blocks with {length} bytes"));
    }
    let origin = if entry.origin_session.is_empty() {
        None
    } else {
        let session = session_id(&entry.origin_session)?;
        let tag = RequestTag { session, sequence: entry.sequence };
        Some(Origin { tag, low: entry.low })
    };
    let header = EntryHeader { epoch: Epoch(entry.epoch), lsn: Lsn(entry.lsn), kind, origin };
    if header.lsn == Lsn(0) || header.epoch == Epoch(0) {
        return bad("an entry without LSN or epoch");
    }
    Ok(WireEntry { header, crc: entry.crc, payload: entry.payload })
}

/// A message to a replica, with the entries of an append beside it. `BeginRebuild` has no place
/// here: it goes over `Recover`.
///
/// # Panics
/// On a `BeginRebuild`, and if an append's headers are not those of `entries`.
pub fn to_replica_out(
    lineage: Lineage,
    message: &ToReplica,
    entries: &[WireEntry],
) -> v1::ReplicationMessage {
    let body = match message {
        ToReplica::Probe { request } => Body::Probe(*request),
        ToReplica::Fence { request, config } => {
            Body::Fence(v1::Fence { request: *request, config: Some(config_out(config)) })
        }
        ToReplica::Cut { request, end, table } => {
            Body::Cut(v1::Cut { request: *request, end: end.0, table: table_out(table) })
        }
        ToReplica::Append(append) => {
            assert!(
                append.entries.iter().eq(entries.iter().map(|entry| &entry.header)),
                "the payloads of an append are those of its entries"
            );
            Body::Append(v1::Append {
                since: append.since.0,
                first: append.first.0,
                committed: append.committed.0,
                stamp: append.stamp.map(|stamp| stamp.0),
                prev: append.prev.0,
                entries: entries.iter().map(entry_out).collect(),
            })
        }
        ToReplica::Close { session, through } => Body::Close(close_out(*session, *through)),
        ToReplica::BeginRebuild { .. } => panic!("a rebuild begins on the base lane"),
    };
    v1::ReplicationMessage { lineage: Some(lineage_out(lineage)), body: Some(body) }
}

/// What came from a primary: its lineage, the message, and an append's entries.
pub fn to_replica_in(
    message: v1::ReplicationMessage,
) -> Decoded<(Lineage, ToReplica, Vec<WireEntry>)> {
    let lineage = lineage_in(message.lineage)?;
    let mut payloads = Vec::new();
    let message = match need(message.body, "body")? {
        Body::Probe(request) => ToReplica::Probe { request },
        Body::Fence(fence) => ToReplica::Fence {
            request: fence.request,
            config: config_in(need(fence.config, "config")?)?,
        },
        Body::Cut(cut) => {
            ToReplica::Cut { request: cut.request, end: Lsn(cut.end), table: table_in(cut.table)? }
        }
        Body::Append(append) => {
            payloads = append.entries.into_iter().map(entry_in).collect::<Result<_, _>>()?;
            ToReplica::Append(Append {
                since: Epoch(append.since),
                first: Lsn(append.first),
                committed: Lsn(append.committed),
                stamp: append.stamp.map(Millis),
                prev: Lsn(append.prev),
                entries: payloads.iter().map(|entry| entry.header).collect(),
            })
        }
        Body::Close(close) => close_in(close)?,
        Body::Alive(_)
        | Body::Facts(_)
        | Body::CutDone(_)
        | Body::Ack(_)
        | Body::GapEnd(_)
        | Body::Closed(_)
        | Body::SessionFailed(_)
        | Body::Refused(_) => return bad("an answer where a question was expected"),
    };
    Ok((lineage, message, payloads))
}

fn close_out(session: RecoveryId, through: Lsn) -> v1::CloseSession {
    v1::CloseSession { session: Some(recovery_out(session)), through: through.0 }
}

fn close_in(close: v1::CloseSession) -> Decoded<ToReplica> {
    let session = recovery_in(close.session)?;
    Ok(ToReplica::Close { session, through: Lsn(close.through) })
}

/// A message to the primary. `RebuildStarted` has no place here: it goes over `Recover`.
///
/// # Panics
/// On a `RebuildStarted`.
pub fn to_primary_out(lineage: Lineage, message: &ToPrimary) -> v1::ReplicationMessage {
    let body = match message {
        ToPrimary::Alive { request } => Body::Alive(*request),
        ToPrimary::Facts { request, facts } => Body::Facts(facts_out(*request, facts)),
        ToPrimary::CutDone { request, durable } => {
            Body::CutDone(v1::CutDone { request: *request, durable: durable.0 })
        }
        ToPrimary::Ack { durable, recorded, promised } => Body::Ack(v1::Ack {
            durable: durable.0,
            recorded: recorded.map(|epoch| epoch.0),
            promised: promised.map(|stamp| stamp.0),
        }),
        ToPrimary::Gap { end } => Body::GapEnd(end.0),
        ToPrimary::Closed { session, achieved } => Body::Closed(closed_out(*session, *achieved)),
        ToPrimary::SessionFailed { session, cause } => {
            Body::SessionFailed(session_failed_out(*session, *cause))
        }
        ToPrimary::Refused { config } => {
            Body::Refused(v1::Refused { config: config.as_ref().map(config_out) })
        }
        ToPrimary::RebuildStarted { .. } => panic!("a rebuild starts on the base lane"),
    };
    v1::ReplicationMessage { lineage: Some(lineage_out(lineage)), body: Some(body) }
}

/// What came from a replica.
pub fn to_primary_in(message: v1::ReplicationMessage) -> Decoded<(Lineage, ToPrimary)> {
    let lineage = lineage_in(message.lineage)?;
    let message = match need(message.body, "body")? {
        Body::Alive(request) => ToPrimary::Alive { request },
        Body::Facts(facts) => {
            let (request, facts) = facts_in(facts)?;
            ToPrimary::Facts { request, facts }
        }
        Body::CutDone(done) => {
            ToPrimary::CutDone { request: done.request, durable: Lsn(done.durable) }
        }
        Body::Ack(ack) => ToPrimary::Ack {
            durable: Lsn(ack.durable),
            recorded: ack.recorded.map(Epoch),
            promised: ack.promised.map(Millis),
        },
        Body::GapEnd(end) => ToPrimary::Gap { end: Lsn(end) },
        Body::Closed(closed) => closed_in(closed)?,
        Body::SessionFailed(failed) => session_failed_in(failed)?,
        Body::Refused(refused) => refused_in(refused)?,
        Body::Probe(_) | Body::Fence(_) | Body::Cut(_) | Body::Append(_) | Body::Close(_) => {
            return bad("a question where an answer was expected");
        }
    };
    Ok((lineage, message))
}

fn closed_out(session: RecoveryId, achieved: Lsn) -> v1::Closed {
    v1::Closed { session: Some(recovery_out(session)), achieved: achieved.0 }
}

fn closed_in(closed: v1::Closed) -> Decoded<ToPrimary> {
    let session = recovery_in(closed.session)?;
    Ok(ToPrimary::Closed { session, achieved: Lsn(closed.achieved) })
}

fn session_failed_out(session: RecoveryId, cause: FailureKind) -> v1::SessionFailed {
    v1::SessionFailed { session: Some(recovery_out(session)), kind: failure_out(cause) }
}

fn session_failed_in(failed: v1::SessionFailed) -> Decoded<ToPrimary> {
    let session = recovery_in(failed.session)?;
    Ok(ToPrimary::SessionFailed { session, cause: failure_in(failed.kind)? })
}

fn refused_in(refused: v1::Refused) -> Decoded<ToPrimary> {
    Ok(ToPrimary::Refused { config: refused.config.map(config_in).transpose()? })
}

fn facts_out(request: u64, facts: &Facts) -> v1::Facts {
    v1::Facts {
        request,
        table: table_out(&facts.table),
        durable: facts.durable.0,
        committed: facts.committed.0,
        checkpoint: facts.checkpoint.0,
        incomplete: facts.incomplete.map(incomplete_out),
        loss_generation: facts.loss_generation.0,
    }
}

fn facts_in(facts: v1::Facts) -> Decoded<(u64, Facts)> {
    let told = Facts {
        table: table_in(facts.table)?,
        durable: Lsn(facts.durable),
        committed: Lsn(facts.committed),
        checkpoint: Lsn(facts.checkpoint),
        incomplete: facts.incomplete.map(incomplete_in).transpose()?,
        loss_generation: LossGeneration(facts.loss_generation),
    };
    if told.committed > told.durable || told.checkpoint > told.committed {
        return bad(format!("facts with committed {} of {}", told.committed, told.durable));
    }
    Ok((facts.request, told))
}

fn state_out(state: &LogState) -> v1::LogState {
    let session = |(session, log): (&SessionId, &SessionLog)| v1::SessionState {
        session: id(session.0),
        low: log.low,
        logged: log
            .logged
            .iter()
            .map(|(sequence, lsn)| v1::LoggedSequence { sequence: *sequence, lsn: lsn.0 })
            .collect(),
        newest: log.newest.0,
    };
    v1::LogState {
        attach: state.attach.0,
        blocks: state.blocks,
        sessions: state.sessions.iter().map(session).collect(),
    }
}

fn state_in(state: v1::LogState) -> Decoded<LogState> {
    let mut told = LogState::new(state.blocks);
    told.attach = AttachGeneration(state.attach);
    for session in state.sessions {
        let logged = session.logged.iter().map(|l| (l.sequence, Lsn(l.lsn))).collect();
        let log = SessionLog { low: session.low, logged, newest: Lsn(session.newest) };
        told.sessions.insert(session_id(&session.session)?, log);
    }
    if told.within_limits() { Ok(told) } else { bad("a log state beyond its limits") }
}

/// A message of the base lane.
///
/// # Panics
/// On a message of the engine that the base lane does not carry.
pub fn recover_out(lineage: Lineage, message: &Recover) -> v1::RecoverMessage {
    let body = match message {
        Recover::ToReplica(ToReplica::BeginRebuild { mark, table, state }) => {
            RecoverBody::Begin(v1::BeginRebuild {
                mark: Some(incomplete_out(*mark)),
                table: table_out(table),
                state: Some(state_out(state)),
            })
        }
        Recover::ToReplica(ToReplica::Close { session, through }) => {
            RecoverBody::Close(close_out(*session, *through))
        }
        Recover::ToPrimary(ToPrimary::RebuildStarted { session }) => {
            RecoverBody::Started(recovery_out(*session))
        }
        Recover::ToPrimary(ToPrimary::Closed { session, achieved }) => {
            RecoverBody::Closed(closed_out(*session, *achieved))
        }
        Recover::ToPrimary(ToPrimary::SessionFailed { session, cause }) => {
            RecoverBody::Failed(session_failed_out(*session, *cause))
        }
        Recover::ToPrimary(ToPrimary::Refused { config }) => {
            RecoverBody::Refused(v1::Refused { config: config.as_ref().map(config_out) })
        }
        Recover::ToReplica(
            message @ (ToReplica::Probe { .. }
            | ToReplica::Fence { .. }
            | ToReplica::Cut { .. }
            | ToReplica::Append(_)),
        ) => panic!("{message:?} does not go over the base lane"),
        Recover::ToPrimary(
            message @ (ToPrimary::Alive { .. }
            | ToPrimary::Facts { .. }
            | ToPrimary::CutDone { .. }
            | ToPrimary::Ack { .. }
            | ToPrimary::Gap { .. }),
        ) => panic!("{message:?} does not go over the base lane"),
        Recover::Blocks { lba, data, read_at, crc } => RecoverBody::Blocks(v1::BaseBlocks {
            lba: lba.0,
            data: data.clone(),
            read_at: read_at.0,
            crc: *crc,
        }),
        Recover::Regions { first, lsns } => RecoverBody::Regions(v1::RegionTable {
            first_region: *first,
            lsns: lsns.iter().map(|lsn| lsn.0).collect(),
        }),
        Recover::End => RecoverBody::End(true),
        Recover::Taken(bytes) => RecoverBody::Taken(v1::BaseTaken { bytes: *bytes }),
    };
    v1::RecoverMessage { lineage: Some(lineage_out(lineage)), body: Some(body) }
}

/// A message of the base lane, whose data's CRC the caller still has to check.
pub fn recover_in(message: v1::RecoverMessage) -> Decoded<(Lineage, Recover)> {
    let lineage = lineage_in(message.lineage)?;
    let message = match need(message.body, "body")? {
        RecoverBody::Begin(begin) => Recover::ToReplica(ToReplica::BeginRebuild {
            mark: incomplete_in(need(begin.mark, "mark")?)?,
            table: table_in(begin.table)?,
            state: state_in(need(begin.state, "state")?)?,
        }),
        RecoverBody::Close(close) => Recover::ToReplica(close_in(close)?),
        RecoverBody::Started(session) => {
            Recover::ToPrimary(ToPrimary::RebuildStarted { session: recovery_in(Some(session))? })
        }
        RecoverBody::Closed(closed) => Recover::ToPrimary(closed_in(closed)?),
        RecoverBody::Failed(failed) => Recover::ToPrimary(session_failed_in(failed)?),
        RecoverBody::Refused(refused) => Recover::ToPrimary(refused_in(refused)?),
        RecoverBody::Blocks(blocks) => {
            let length = blocks.data.len() as u64;
            let whole = length > 0 && length.is_multiple_of(sbk_engine::types::BLOCK_SIZE);
            if !whole || length > MAX_REQUEST_BYTES {
                return bad(format!("base blocks of {length} bytes"));
            }
            Recover::Blocks {
                lba: Lba(blocks.lba),
                data: blocks.data,
                read_at: Lsn(blocks.read_at),
                crc: blocks.crc,
            }
        }
        RecoverBody::Regions(table) => Recover::Regions {
            first: table.first_region,
            lsns: table.lsns.into_iter().map(Lsn).collect(),
        },
        RecoverBody::End(_) => Recover::End,
        RecoverBody::Taken(taken) => Recover::Taken(taken.bytes),
    };
    Ok((lineage, message))
}

#[cfg(test)]
#[path = "convert_tests.rs"]
mod tests;
