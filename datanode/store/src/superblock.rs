//! The superblock: what a replica must know before it looks at anything else.

use std::path::Path;

use sbk_engine::bugs::{Bug, on};
use sbk_engine::replication::io::{Kept, Stood};
use sbk_engine::replication::log::EpochTable;
use sbk_engine::replication::message::{Incomplete, RecoveryId};
use sbk_engine::types::{BootId, Epoch, LossGeneration, Lsn, ReplicaId, TailId, VolumeId};
use sbk_wal::{Get, Owner, Put};
use uuid::Uuid;

use super::error::StoreError;
use super::proofs::Proven;

/// Whose files they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The volume.
    pub volume: VolumeId,
    /// The replica.
    pub replica: ReplicaId,
}

impl Identity {
    pub(super) fn owner(&self) -> Owner {
        Owner::new(*self.volume.0.as_bytes(), *self.replica.0.as_bytes())
    }

    pub(super) fn put(&self, out: &mut Put) {
        out.bytes(self.volume.0.as_bytes()).bytes(self.replica.0.as_bytes());
    }

    pub(super) fn get(get: &mut Get<'_>) -> Option<Self> {
        let volume = VolumeId(Uuid::from_bytes(get.array()?));
        Some(Self { volume, replica: ReplicaId(Uuid::from_bytes(get.array()?)) })
    }

    /// Refuses a file of another replica.
    pub(super) fn check(&self, found: Identity, path: &Path) -> Result<(), StoreError> {
        if found == *self {
            return Ok(());
        }
        let path = path.to_owned();
        let (found, expected) = (found.to_string(), self.to_string());
        Err(StoreError::Foreign { path, found, expected })
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "volume {}, replica {}", self.volume, self.replica)
    }
}

/// The record in the superblock's slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Superblock {
    pub(super) identity: Identity,
    /// The size that the volume was created with, in blocks.
    pub(super) blocks: u64,
    /// What the engine keeps.
    pub(super) kept: Kept,
    /// Everything up to here is in the extents, and the log starts at or below the next LSN.
    pub(super) checkpoint: Lsn,
    /// Everything up to here was durable.
    pub(super) durable: Lsn,
    /// Everything up to here was committed.
    pub(super) committed: Lsn,
    /// The log is being cut so that it ends here.
    pub(super) cut: Option<Lsn>,
    /// The store was closed in order and not opened since.
    pub(super) clean: bool,
    /// Of an encrypted replica: the table of regions and their stamps.
    pub(super) proven: Option<Proven>,
}

/// Most epochs of a table that fit.
pub(super) const MAX_EPOCHS: usize = EpochTable::MOST;

const CLEAN: u32 = 1;
const INCOMPLETE: u32 = 2;
const CUT: u32 = 4;
const STOOD: u32 = 8;
const DOUBTFUL: u32 = 16;
const PROVEN: u32 = 32;

impl Superblock {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Put::default();
        let incomplete = self.kept.incomplete.filter(|_| !on(Bug::IncompleteNotMarked));
        self.identity.put(&mut out);
        let mut flags = 0;
        flags |= if self.clean { CLEAN } else { 0 };
        flags |= if incomplete.is_some() { INCOMPLETE } else { 0 };
        flags |= if self.cut.is_some() { CUT } else { 0 };
        flags |= if self.kept.stood.is_some() { STOOD } else { 0 };
        flags |= if self.kept.doubtful && !on(Bug::ForgetDoubt) { DOUBTFUL } else { 0 };
        flags |= if self.proven.is_some() { PROVEN } else { 0 };
        out.u64(self.blocks)
            .u32(flags)
            .u64(self.kept.fenced.0)
            .u64(self.kept.loss_generation.0)
            .u64(self.checkpoint.0)
            .u64(self.durable.0)
            .u64(self.committed.0);
        if let Some(cut) = self.cut {
            out.u64(cut.0);
        }
        if let Some(mark) = &incomplete {
            out.u64(mark.session.epoch.0).u64(mark.session.number);
            out.u64(mark.from.0).u64(mark.base.0).u64(mark.target.0);
        }
        if let Some(stood) = &self.kept.stood {
            out.u64(stood.epoch.0).bytes(stood.tail.boot.0.as_bytes()).u64(stood.tail.count);
        }
        if let Some(Proven { version, root }) = &self.proven {
            out.u64(*version).bytes(root);
        }
        let pairs = self.kept.table.pairs();
        out.u32(pairs.len() as u32);
        for (epoch, first) in pairs {
            out.u64(epoch.0).u64(first.0);
        }
        out.0
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut get = Get(bytes);
        let identity = Identity::get(&mut get)?;
        let blocks = get.u64()?;
        let flags = get.u32()?;
        let fenced = Epoch(get.u64()?);
        let loss_generation = LossGeneration(get.u64()?);
        let checkpoint = Lsn(get.u64()?);
        let durable = Lsn(get.u64()?);
        let committed = Lsn(get.u64()?);
        let cut = if flags & CUT != 0 { Some(Lsn(get.u64()?)) } else { None };
        let incomplete = if flags & INCOMPLETE != 0 {
            let session = RecoveryId { epoch: Epoch(get.u64()?), number: get.u64()? };
            let (from, base, target) = (Lsn(get.u64()?), Lsn(get.u64()?), Lsn(get.u64()?));
            Some(Incomplete { session, from, base, target })
        } else {
            None
        };
        let stood = if flags & STOOD != 0 {
            let epoch = Epoch(get.u64()?);
            let boot = BootId(Uuid::from_bytes(get.array()?));
            Some(Stood { epoch, tail: TailId { boot, count: get.u64()? } })
        } else {
            None
        };
        let proven = match flags & PROVEN {
            0 => None,
            _ => Some(Proven { version: get.u64()?, root: get.array()? }),
        };
        let mut pairs = Vec::new();
        for _ in 0..get.u32()? {
            pairs.push((Epoch(get.u64()?), Lsn(get.u64()?)));
        }
        let table = EpochTable::from_pairs(pairs)?;
        let doubtful = flags & DOUBTFUL != 0;
        let kept = Kept { fenced, table, incomplete, loss_generation, stood, doubtful };
        let clean = flags & CLEAN != 0;
        Some(Self { identity, blocks, kept, checkpoint, durable, committed, cut, clean, proven })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stamper::TAG;

    #[test]
    fn the_largest_superblock_fits_its_slot_and_comes_back() {
        let pairs = (1..=MAX_EPOCHS as u64).map(|n| (Epoch(n), Lsn(n * 10))).collect();
        let session = RecoveryId { epoch: Epoch(9), number: 2 };
        let mark = Incomplete { session, from: Lsn(0), base: Lsn(4), target: Lsn(5) };
        let block = Superblock {
            identity: Identity {
                volume: VolumeId(Uuid::from_u128(1)),
                replica: ReplicaId(Uuid::from_u128(2)),
            },
            blocks: 100,
            kept: Kept {
                fenced: Epoch(300),
                table: EpochTable::from_pairs(pairs).expect("ascending"),
                incomplete: Some(mark),
                loss_generation: LossGeneration(3),
                stood: Some(Stood {
                    epoch: Epoch(299),
                    tail: TailId { boot: BootId(Uuid::from_u128(3)), count: 4 },
                }),
                doubtful: true,
            },
            checkpoint: Lsn(1),
            durable: Lsn(3),
            committed: Lsn(2),
            cut: Some(Lsn(3)),
            clean: true,
            proven: Some(Proven { version: 1, root: [7; TAG] }),
        };
        let bytes = block.encode();
        assert!(bytes.len() <= 4096 - 32 - TAG, "{} bytes", bytes.len());
        assert_eq!(Superblock::decode(&bytes), Some(block));
    }
}
