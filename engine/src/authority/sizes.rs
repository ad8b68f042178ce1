//! How large a volume is, and is to be.
//!
//! The size is log state: the primary logs what an operator wishes, and proposes what is committed for
//! publication. What is published never runs ahead of that. A primary that follows another sees in its own
//! log whether a wish was done, and a wish that was taken back is not known to it: both the published and
//! the wished size are part of the configuration, so each change of either mints an epoch.

use serde::{Deserialize, Serialize};

use super::command::{Accepted, Response};
use super::placement::growth_bytes;
use super::refusal::Refusal;
use super::state::{MAX_VOLUME_BYTES, State, Volume};
use crate::types::{BLOCK_SIZE, Lba, VolumeId};

/// A wish for a smaller size that was taken back, for the volume has data beyond it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizeRefused {
    /// The size in blocks that was wished.
    pub blocks: u64,
    /// A block beyond it with data.
    pub lba: Lba,
}

impl Volume {
    /// The size in blocks, as it is published.
    pub fn blocks(&self) -> u64 {
        let published = self.assignment.as_ref().and_then(|assignment| assignment.blocks);
        published.unwrap_or(self.spec.blocks)
    }

    /// The published size in bytes.
    pub fn bytes(&self) -> u64 {
        self.blocks() * BLOCK_SIZE
    }

    /// The size in blocks that is wished, if it is another one.
    pub fn wished_blocks(&self) -> Option<u64> {
        self.assignment.as_ref().and_then(|assignment| assignment.wished_blocks)
    }

    /// What each replica claims of its node, in bytes: also what it is to have.
    pub fn claimed_bytes(&self) -> u64 {
        self.wished_blocks().unwrap_or(0).max(self.blocks()) * BLOCK_SIZE
    }
}

/// Whether a volume can have so many blocks.
fn is_size(blocks: u64) -> bool {
    (1..=MAX_VOLUME_BYTES / BLOCK_SIZE).contains(&blocks)
}

impl State {
    pub(super) fn wish_size(
        &mut self,
        volume: VolumeId,
        size_bytes: u64,
        shrink: bool,
        overcommit_percent: u32,
    ) -> Response {
        let live = self.live(volume)?;
        let blocks = size_bytes / BLOCK_SIZE;
        if !size_bytes.is_multiple_of(BLOCK_SIZE) || !is_size(blocks) {
            return Err(Refusal::BadSize { size_bytes });
        }
        let Some(assignment) = &live.assignment else {
            return Err(Refusal::NoEpoch { volume });
        };
        let published = live.blocks();
        let takes_back = blocks == published;
        match assignment.wished_blocks {
            Some(wished) if wished == blocks => return Ok(Accepted::Done),
            Some(wished) if !takes_back => {
                let (wished, published) = (wished * BLOCK_SIZE, live.bytes());
                return Err(Refusal::ResizeUnderWay { wished, published });
            }
            None if takes_back => return Ok(Accepted::Done),
            Some(_) | None => {}
        }
        if blocks < published && !shrink {
            return Err(Refusal::Shrinks { size_bytes, published: live.bytes() });
        }
        let growth = size_bytes.saturating_sub(live.bytes());
        for (id, replica) in &live.replicas {
            let node = replica.node;
            let registered = self.nodes.get(&node).ok_or(Refusal::UnknownNode { node })?;
            let room = growth_bytes(self, registered, *id, overcommit_percent);
            if !takes_back && room < growth {
                return Err(Refusal::NoRoom { node, size_bytes: growth });
            }
        }
        let live = self.volumes.get_mut(&volume).expect("checked: the volume is live");
        live.size_refused = None;
        self.mint(volume, |assignment| {
            assignment.wished_blocks = (!takes_back).then_some(blocks);
        })
    }

    /// The primary's log has another size than is published, and that is committed.
    pub(super) fn publish_size(&mut self, volume: VolumeId, blocks: u64) -> Response {
        let live = self.live(volume)?;
        if !is_size(blocks) || blocks == live.blocks() {
            let why = format!("{blocks} blocks can't be published");
            return Err(Refusal::BadIsr { volume, why });
        }
        let created = live.spec.blocks;
        self.mint(volume, |assignment| {
            assignment.blocks = (blocks != created).then_some(blocks);
            assignment.wished_blocks = assignment.wished_blocks.filter(|wished| *wished != blocks);
        })
    }

    /// The volume has data beyond the size that is wished.
    pub(super) fn keep_size(&mut self, volume: VolumeId, wished: u64, lba: Lba) -> Response {
        if self.live(volume)?.wished_blocks() != Some(wished) || !is_size(lba.0.max(1)) {
            let why = format!("{wished} blocks are not wished, or can't have data at block {lba}");
            return Err(Refusal::BadIsr { volume, why });
        }
        let live = self.volumes.get_mut(&volume).expect("checked: the volume is live");
        live.size_refused = Some(SizeRefused { blocks: wished, lba });
        self.mint(volume, |assignment| assignment.wished_blocks = None)
    }
}
