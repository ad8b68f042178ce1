//! Questions and answers between replicas.

use sbk_engine::recovery::FailureKind;
use sbk_engine::replication::message::{Append, Facts, Lineage, RecoveryId, ToPrimary, ToReplica};
use sbk_engine::replication::room::SpaceTold;
use sbk_engine::types::{Config, Epoch, Lsn};
use sbk_proto::v1;
use sbk_proto::v1::replication_message::Body;

use super::blocks::{Beside, blocks_in, blocks_out, read_blocks_in, read_blocks_out};
use super::entry::{WireEntry, entry_in, entry_out};
use super::numbers::{epoch, loss_generation, lsn, stamp};
use super::{
    Decoded, bad, config_in, config_out, failure_in, failure_out, incomplete_in, incomplete_out,
    lineage_in, lineage_out, need, recovery_in, recovery_out, space_in, space_out, table_in,
    table_out, tail_in, tail_out,
};

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
        ToReplica::Fetch { request, prev, last } => {
            Body::Fetch(v1::Fetch { request: *request, prev: prev.0, last: last.0 })
        }
        ToReplica::ReadBlocks { request, committed, blocks } => {
            Body::ReadBlocks(read_blocks_out(*request, *committed, blocks))
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
        ToReplica::Close { session, through, committed } => {
            Body::Close(close_out(*session, *through, *committed))
        }
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
            ToReplica::Cut { request: cut.request, end: lsn(cut.end)?, table: table_in(cut.table)? }
        }
        Body::Fetch(fetch) => ToReplica::Fetch {
            request: fetch.request,
            prev: lsn(fetch.prev)?,
            last: lsn(fetch.last)?,
        },
        Body::ReadBlocks(read) => read_blocks_in(read)?,
        Body::Append(append) => {
            payloads = append.entries.into_iter().map(entry_in).collect::<Result<_, _>>()?;
            ToReplica::Append(Append {
                since: epoch(append.since)?,
                first: lsn(append.first)?,
                committed: lsn(append.committed)?,
                stamp: append.stamp.map(stamp).transpose()?,
                prev: lsn(append.prev)?,
                entries: payloads.iter().map(|entry| entry.header).collect(),
            })
        }
        Body::Close(close) => close_in(close)?,
        Body::Alive(_)
        | Body::Facts(_)
        | Body::CutDone(_)
        | Body::Entries(_)
        | Body::Blocks(_)
        | Body::Ack(_)
        | Body::GapEnd(_)
        | Body::Closed(_)
        | Body::SessionFailed(_)
        | Body::Refused(_) => return bad("an answer where a question was expected"),
    };
    Ok((lineage, message, payloads))
}

pub(super) fn close_out(session: RecoveryId, through: Lsn, committed: Lsn) -> v1::CloseSession {
    let (through, committed) = (through.0, committed.0);
    v1::CloseSession { session: Some(recovery_out(session)), through, committed }
}

pub(super) fn close_in(close: v1::CloseSession) -> Decoded<ToReplica> {
    let session = recovery_in(close.session)?;
    let (through, committed) = (lsn(close.through)?, lsn(close.committed)?);
    Ok(ToReplica::Close { session, through, committed })
}

/// A message to the primary, with the payloads of fetched entries or blocks beside it. `RebuildStarted` has
/// no place here: it goes over `Recover`.
///
/// # Panics
/// On a `RebuildStarted`, and if fetched headers, or the blocks that are held, are not those `beside` it.
pub fn to_primary_out(
    lineage: Lineage,
    message: &ToPrimary,
    beside: &Beside,
) -> v1::ReplicationMessage {
    let body = match message {
        ToPrimary::Alive { request } => Body::Alive(*request),
        ToPrimary::Facts { request, facts } => Body::Facts(facts_out(*request, facts)),
        ToPrimary::CutDone { request, durable } => {
            Body::CutDone(v1::CutDone { request: *request, durable: durable.0 })
        }
        ToPrimary::Blocks { request, at, held, rotten } => {
            Body::Blocks(blocks_out(&lineage, (*request, *at), held, rotten, beside.blocks()))
        }
        ToPrimary::Entries { request, prev, entries: headers } => {
            let entries = beside.entries();
            assert!(
                headers.iter().eq(entries.iter().map(|entry| &entry.header)),
                "the payloads of fetched entries are theirs"
            );
            let entries = entries.iter().map(entry_out).collect();
            Body::Entries(v1::Entries { request: *request, prev: prev.0, entries })
        }
        ToPrimary::Ack { durable, written, recorded, promised, space } => Body::Ack(v1::Ack {
            durable: durable.0,
            recorded: recorded.map(|epoch| epoch.0),
            promised: promised.map(|stamp| stamp.0),
            written: written.0,
            space: (*space != SpaceTold::default()).then(|| space_out(*space)),
        }),
        ToPrimary::Gap { end } => Body::GapEnd(end.0),
        ToPrimary::Closed { session, achieved } => Body::Closed(closed_out(*session, *achieved)),
        ToPrimary::SessionFailed { session, cause } => {
            Body::SessionFailed(session_failed_out(*session, *cause))
        }
        ToPrimary::Refused { fenced, config, stood } => {
            Body::Refused(refused_out(*fenced, config, *stood))
        }
        ToPrimary::RebuildStarted { .. } => panic!("a rebuild starts on the base lane"),
    };
    v1::ReplicationMessage { lineage: Some(lineage_out(lineage)), body: Some(body) }
}

/// What came from a replica, with what travels beside it. Of fetched entries the caller still has to check
/// the CRCs.
pub fn to_primary_in(message: v1::ReplicationMessage) -> Decoded<(Lineage, ToPrimary, Beside)> {
    let lineage = lineage_in(message.lineage)?;
    let mut beside = Beside::default();
    let message = match need(message.body, "body")? {
        Body::Alive(request) => ToPrimary::Alive { request },
        Body::Facts(facts) => {
            let (request, facts) = facts_in(facts)?;
            ToPrimary::Facts { request, facts }
        }
        Body::CutDone(done) => {
            ToPrimary::CutDone { request: done.request, durable: lsn(done.durable)? }
        }
        Body::Entries(fetched) => {
            let entries: Vec<_> =
                fetched.entries.into_iter().map(entry_in).collect::<Result<_, _>>()?;
            let headers = entries.iter().map(|entry| entry.header).collect();
            beside = Beside::Entries(entries);
            let (request, prev) = (fetched.request, lsn(fetched.prev)?);
            ToPrimary::Entries { request, prev, entries: headers }
        }
        Body::Blocks(told) => {
            let (message, blocks) = blocks_in(&lineage, told)?;
            beside = Beside::Blocks(blocks);
            message
        }
        Body::Ack(ack) => ToPrimary::Ack {
            durable: lsn(ack.durable)?,
            recorded: ack.recorded.map(epoch).transpose()?,
            promised: ack.promised.map(stamp).transpose()?,
            written: lsn(ack.written)?,
            space: ack.space.map(space_in).transpose()?.unwrap_or_default(),
        },
        Body::GapEnd(end) => ToPrimary::Gap { end: lsn(end)? },
        Body::Closed(closed) => closed_in(closed)?,
        Body::SessionFailed(failed) => session_failed_in(failed)?,
        Body::Refused(refused) => refused_in(refused)?,
        Body::Probe(_)
        | Body::Fence(_)
        | Body::Cut(_)
        | Body::Fetch(_)
        | Body::ReadBlocks(_)
        | Body::Append(_)
        | Body::Close(_) => return bad("a question where an answer was expected"),
    };
    Ok((lineage, message, beside))
}

pub(super) fn closed_out(session: RecoveryId, achieved: Lsn) -> v1::Closed {
    v1::Closed { session: Some(recovery_out(session)), achieved: achieved.0 }
}

pub(super) fn closed_in(closed: v1::Closed) -> Decoded<ToPrimary> {
    let session = recovery_in(closed.session)?;
    Ok(ToPrimary::Closed { session, achieved: lsn(closed.achieved)? })
}

pub(super) fn session_failed_out(session: RecoveryId, cause: FailureKind) -> v1::SessionFailed {
    v1::SessionFailed { session: Some(recovery_out(session)), kind: failure_out(cause) }
}

pub(super) fn session_failed_in(failed: v1::SessionFailed) -> Decoded<ToPrimary> {
    let session = recovery_in(failed.session)?;
    Ok(ToPrimary::SessionFailed { session, cause: failure_in(failed.kind)? })
}

pub(super) fn refused_out(fenced: Epoch, config: &Option<Config>, stood: Epoch) -> v1::Refused {
    v1::Refused { config: config.as_ref().map(config_out), fenced: fenced.0, stood: stood.0 }
}

pub(super) fn refused_in(refused: v1::Refused) -> Decoded<ToPrimary> {
    let config = refused.config.map(config_in).transpose()?;
    // Above all epochs: the volume was deleted there. It is compared and never counted on.
    let deleted = Some(Epoch(u64::MAX)).filter(|deleted| deleted.0 == refused.fenced);
    let fenced = deleted.map_or_else(|| epoch(refused.fenced), Ok)?;
    let stood = epoch(refused.stood)?;
    Ok(ToPrimary::Refused { fenced, config, stood })
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
        retained: facts.retained.0,
        promised_ms: facts.promised_ms,
        tail: Some(tail_out(facts.tail)),
        doubtful: facts.doubtful,
    }
}

fn facts_in(facts: v1::Facts) -> Decoded<(u64, Facts)> {
    let told = Facts {
        table: table_in(facts.table)?,
        durable: lsn(facts.durable)?,
        committed: lsn(facts.committed)?,
        checkpoint: lsn(facts.checkpoint)?,
        incomplete: facts.incomplete.map(incomplete_in).transpose()?,
        loss_generation: loss_generation(facts.loss_generation)?,
        retained: lsn(facts.retained)?,
        promised_ms: stamp(facts.promised_ms)?.0,
        tail: tail_in(facts.tail)?,
        doubtful: facts.doubtful,
    };
    if told.committed > told.durable || told.checkpoint > told.committed {
        return bad(format!("facts with committed {} of {}", told.committed, told.durable));
    }
    if told.retained > told.durable.next() {
        return bad(format!("facts with a WAL from {} of {}", told.retained, told.durable));
    }
    Ok((facts.request, told))
}
