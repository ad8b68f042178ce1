//! Between the engine's types and the wire's.
//!
//! Encoding never fails. Decoding trusts nothing: every length, kind and number that another
//! process could have made up is checked here, once, so that the engine sees only messages that
//! it could have made itself.

mod base;
mod blocks;
mod entry;
mod messages;
mod modes;
mod numbers;

use bytes::Bytes;
use sbk_engine::recovery::FailureKind;
use sbk_engine::replication::log::EpochTable;
use sbk_engine::replication::message::{Incomplete, Lineage, RecoveryId};
use sbk_engine::replication::room::{Room, Space, SpaceTold};
use sbk_engine::types::{
    BootId, Config, Epoch, Incarnation, NodeId, Placement, ReplicaId, ReplicaRef, SessionId,
    TailId, VolumeId,
};
use sbk_proto::v1;
use uuid::Uuid;

use numbers::{counter, size};

pub use base::{Recover, ZEROS_BYTES, recover_in, recover_out};
pub use blocks::{Beside, WireBlock, scrub_in, scrub_out};
pub use entry::{WireEntry, entry_in, entry_out};
pub use messages::{to_primary_in, to_primary_out, to_replica_in, to_replica_out};
pub use numbers::{attach_generation, epoch, loss_generation, lsn, sequence};

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

fn uuid(bytes: &[u8], name: &str) -> Decoded<Uuid> {
    Uuid::from_slice(bytes).or_else(|_| bad(format!("{name} is no UUID ({} bytes)", bytes.len())))
}

fn id(uuid: Uuid) -> Bytes {
    Bytes::copy_from_slice(uuid.as_bytes())
}

/// A payload in memory of its own. [What was decoded is a slice of the stream's buffer, which holds several
/// messages and has room for more: a log that kept recent entries kept all of these buffers, and took
/// twice the memory that it counted.]
pub(crate) fn own(payload: &Bytes) -> Bytes {
    Bytes::copy_from_slice(payload)
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
        incarnation: Incarnation {
            process: counter(incarnation.process, "incarnation")?,
            open: counter(incarnation.open, "incarnation")?,
        },
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
        durability: modes::durability_out(config.durability).into(),
        write_ack: modes::write_ack_out(config.write_ack).into(),
        handed_over_by: config.handed_over_by.map(replica_ref_out),
        wished_blocks: config.wished_blocks.unwrap_or(0),
        tails: config
            .tails
            .iter()
            .map(|(r, tail)| v1::ReplicaTail { replica: id(r.0), tail: Some(tail_out(*tail)) })
            .collect(),
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
    let mut tails = std::collections::BTreeMap::new();
    for told in config.tails {
        tails.insert(replica_id(&told.replica)?, tail_in(told.tail)?);
    }
    let config = Config {
        volume: volume_id(&config.volume)?,
        epoch: epoch(config.epoch)?,
        primary: replica_ref_in(need(config.primary, "primary")?)?,
        since: epoch(config.since)?,
        isr: isr?,
        replicas,
        durability: modes::durability_in(config.durability)?,
        write_ack: modes::write_ack_in(config.write_ack)?,
        min_in_sync: config.min_in_sync,
        blocks: size(config.blocks)?,
        wished_blocks: match config.wished_blocks {
            0 => None,
            blocks => Some(size(blocks)?),
        },
        loss_generation: loss_generation(config.loss_generation)?,
        handed_over_by: config.handed_over_by.map(replica_ref_in).transpose()?,
        tails,
    };
    if config.epoch == Epoch(0) || config.since > config.epoch {
        return bad(format!("epoch {} since {}", config.epoch, config.since));
    }
    if !config.isr.is_empty() && !config.isr.contains(&config.primary.id) {
        return bad("the primary is not in the in-sync set");
    }
    Ok(config)
}

/// A tail.
pub fn tail_out(tail: TailId) -> v1::TailId {
    v1::TailId { boot: id(tail.boot.0), count: tail.count }
}

/// A tail.
pub fn tail_in(tail: Option<v1::TailId>) -> Decoded<TailId> {
    let tail = need(tail, "tail")?;
    Ok(TailId { boot: BootId(uuid(&tail.boot, "boot")?), count: tail.count })
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
        epoch: epoch(lineage.epoch)?,
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
    let pairs = table.into_iter().map(|p| Ok((epoch(p.epoch)?, lsn(p.first_lsn)?)));
    let pairs = pairs.collect::<Decoded<_>>()?;
    need(EpochTable::from_pairs(pairs), "order in the epoch table")
}

fn recovery_out(session: RecoveryId) -> v1::RecoveryId {
    v1::RecoveryId { epoch: session.epoch.0, number: session.number }
}

fn recovery_in(session: Option<v1::RecoveryId>) -> Decoded<RecoveryId> {
    let session = need(session, "session")?;
    Ok(RecoveryId { epoch: epoch(session.epoch)?, number: counter(session.number, "session")? })
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
        from: lsn(mark.from)?,
        base: lsn(mark.base)?,
        target: lsn(mark.target)?,
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
        FailureKind::Stalled => 7,
        FailureKind::Unsettled => 8,
        FailureKind::NoSpace => 9,
    }
}

fn failure_in(kind: u32) -> Decoded<FailureKind> {
    match kind {
        1 => Ok(FailureKind::WalRecycled),
        2 => Ok(FailureKind::Transport),
        3 => Ok(FailureKind::StoreIo),
        8 => Ok(FailureKind::Unsettled),
        4 => Ok(FailureKind::StartTimeout),
        5 => Ok(FailureKind::Invalidated),
        6 => Ok(FailureKind::PinLost),
        7 => Ok(FailureKind::Stalled),
        9 => Ok(FailureKind::NoSpace),
        other => bad(format!("failure kind {other}")),
    }
}

fn space_out(told: SpaceTold) -> v1::Space {
    let SpaceTold { space: Space { room, free, size, watermark }, change } = told;
    let room = match room {
        Room::Ample => 0,
        Room::Short => 1,
        Room::Full => 2,
    };
    v1::Space { room, free, size, watermark, change }
}

fn space_in(told: v1::Space) -> Decoded<SpaceTold> {
    let v1::Space { room, free, size, watermark, change } = told;
    let room = match room {
        0 => Room::Ample,
        1 => Room::Short,
        2 => Room::Full,
        other => return bad(format!("room {other}")),
    };
    Ok(SpaceTold { space: Space { room, free, size, watermark }, change })
}

#[cfg(test)]
mod tests;
