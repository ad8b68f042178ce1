//! Blocks that a primary asks another replica for, because its own rotted.

use std::collections::BTreeMap;

use bytes::Bytes;
use sbk_engine::replication::io::Fate;
use sbk_engine::replication::mend::MESSAGE_BLOCKS;
use sbk_engine::replication::message::{Lineage, ToPrimary, ToReplica};
use sbk_engine::replication::scrub::SCRUB_BLOCKS;
use sbk_engine::types::{BLOCK_SIZE, Lba, Lsn};
use sbk_proto::v1;

use super::entry::WireEntry;
use super::numbers::{lsn, size};
use super::{Decoded, bad, own};

/// A block as another replica holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireBlock {
    /// Which.
    pub lba: Lba,
    /// Its 4096 bytes.
    pub data: Bytes,
}

/// What travels beside an answer of the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beside {
    /// Fetched entries; for most answers none.
    Entries(Vec<WireEntry>),
    /// The content of the blocks that a [`ToPrimary::Blocks`] names as held, in that order.
    Blocks(Vec<WireBlock>),
}

impl Default for Beside {
    fn default() -> Self {
        Self::Entries(Vec::new())
    }
}

impl Beside {
    pub(super) fn entries(&self) -> &[WireEntry] {
        match self {
            Self::Entries(entries) => entries,
            Self::Blocks(_) => &[],
        }
    }

    pub(super) fn blocks(&self) -> &[WireBlock] {
        match self {
            Self::Entries(_) => &[],
            Self::Blocks(blocks) => blocks,
        }
    }
}

/// The CRC-32C of a block's content together with whose it is and as of when: a block of another volume or
/// replica, another block, or one of another LSN must not pass for it.
fn block_crc(lineage: &Lineage, at: Lsn, block: &WireBlock) -> u32 {
    let mut told = Vec::with_capacity(48 + BLOCK_SIZE as usize);
    told.extend_from_slice(lineage.volume.0.as_bytes());
    told.extend_from_slice(lineage.from.id.0.as_bytes());
    told.extend_from_slice(&block.lba.0.to_le_bytes());
    told.extend_from_slice(&at.0.to_le_bytes());
    told.extend_from_slice(&block.data);
    super::data_crc(&told)
}

/// At most as many blocks as one question may name, ascending.
fn lbas(blocks: Vec<u64>) -> Decoded<Vec<Lba>> {
    let ascend = blocks.windows(2).all(|pair| pair[0] < pair[1]);
    if blocks.len() > MESSAGE_BLOCKS || !ascend {
        return bad(format!("a list of {} blocks, ascending: {ascend}", blocks.len()));
    }
    blocks.into_iter().map(|lba| Ok(Lba(size(lba)?))).collect()
}

/// The blocks of a scrub's order.
///
/// # Errors
/// If they don't ascend, are too many or none.
pub fn scrub_in(blocks: &[u64]) -> Decoded<Vec<Lba>> {
    let ascend = blocks.windows(2).all(|pair| pair[0] < pair[1]);
    if blocks.is_empty() || blocks.len() > SCRUB_BLOCKS || !ascend {
        return bad(format!("an order of {} blocks, ascending: {ascend}", blocks.len()));
    }
    Ok(blocks.iter().copied().map(Lba).collect())
}

/// What became of them.
pub fn scrub_out(scrubbed: BTreeMap<Lba, Fate>) -> v1::ScrubResponse {
    let block = |(lba, fate): (Lba, Fate)| {
        let (fate, reason) = match fate {
            Fate::Logged => (v1::ScrubFate::Logged, String::new()),
            Fate::Overtaken => (v1::ScrubFate::Overtaken, String::new()),
            Fate::NotMended(why) => (v1::ScrubFate::NotMended, why),
            Fate::Busy => (v1::ScrubFate::Busy, String::new()),
        };
        v1::ScrubbedBlock { block: lba.0, fate: fate.into(), reason }
    };
    v1::ScrubResponse { blocks: scrubbed.into_iter().map(block).collect() }
}

pub(super) fn read_blocks_out(request: u64, committed: Lsn, blocks: &[Lba]) -> v1::ReadBlocks {
    let blocks = blocks.iter().map(|lba| lba.0).collect();
    v1::ReadBlocks { request, committed: committed.0, blocks }
}

pub(super) fn read_blocks_in(read: v1::ReadBlocks) -> Decoded<ToReplica> {
    let (committed, blocks) = (lsn(read.committed)?, lbas(read.blocks)?);
    if blocks.is_empty() {
        return bad("a question for no block");
    }
    Ok(ToReplica::ReadBlocks { request: read.request, committed, blocks })
}

/// # Panics
/// If the content is not that of the blocks which are held.
pub(super) fn blocks_out(
    lineage: &Lineage,
    (request, at): (u64, Lsn),
    held: &[Lba],
    rotten: &[Lba],
    blocks: &[WireBlock],
) -> v1::Blocks {
    assert!(held.iter().eq(blocks.iter().map(|block| &block.lba)), "the content of what is held");
    let block = |block: &WireBlock| v1::HeldBlock {
        lba: block.lba.0,
        data: block.data.clone(),
        crc: block_crc(lineage, at, block),
    };
    let rotten = rotten.iter().map(|lba| lba.0).collect();
    v1::Blocks { request, at: at.0, held: blocks.iter().map(block).collect(), rotten }
}

/// The content's checksums are checked here.
pub(super) fn blocks_in(
    lineage: &Lineage,
    told: v1::Blocks,
) -> Decoded<(ToPrimary, Vec<WireBlock>)> {
    let at = lsn(told.at)?;
    let held = lbas(told.held.iter().map(|block| block.lba).collect())?;
    let mut blocks = Vec::with_capacity(held.len());
    for (lba, block) in held.iter().copied().zip(told.held) {
        if block.data.len() as u64 != BLOCK_SIZE {
            return bad(format!("a block of {} bytes", block.data.len()));
        }
        let (crc, block) = (block.crc, WireBlock { lba, data: own(&block.data) });
        let found = block_crc(lineage, at, &block);
        if found != crc {
            return bad(format!("block {lba} with CRC {found:08x}, sent as {crc:08x}"));
        }
        blocks.push(block);
    }
    let rotten = lbas(told.rotten)?;
    Ok((ToPrimary::Blocks { request: told.request, at, held, rotten }, blocks))
}
