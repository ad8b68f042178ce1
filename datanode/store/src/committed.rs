//! Reading blocks as committed, beneath entries that are not.
//!
//! A rebuild's base may hold nothing that could still be cut, and can't wait until what is logged
//! is committed: perhaps nothing commits before the rebuild has ended. So each block is taken from
//! the newest committed entry that has it, or from the extents, which hold nothing else.
//!
//! While such a read runs, a checkpoint may write newer blocks to the extents. They are committed
//! too, but later than the read began; so what was read is as of an LSN that is known only after
//! it.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use sbk_engine::bugs::{Bug, on};
use sbk_engine::replication::log::{BlockRange, EntryKind};
use sbk_engine::types::Lsn;

use super::core::Store;
use super::effect;
use super::error::ReadError;
use super::map::BlockMap;
use super::read::ReadPlan;

/// A read of blocks as committed. See the module's documentation.
#[derive(Debug)]
pub struct CommittedReadPlan {
    plan: ReadPlan,
    committed: Lsn,
}

impl CommittedReadPlan {
    /// The blocks' bytes, each as of the committed LSN when the plan was made or later, and the LSN
    /// that none of them is newer than. It is committed, and at least what was committed when the
    /// plan was made. Blocks the thread.
    pub fn run(self) -> Result<(Bytes, Lsn), ReadError> {
        let rewriting = Arc::clone(&self.plan.rewriting);
        let data = self.plan.run()?;
        Ok((data, self.committed.max(rewriting.upto())))
    }
}

impl Store {
    /// Reads blocks as they are committed now. Blocks behind the volume's end are zeros.
    pub fn plan_read_committed(&self, range: BlockRange) -> CommittedReadPlan {
        let committed = self.committed();
        let range = range.lba.0..range.end();
        // Made only for blocks that an uncommitted entry hides; such entries are few.
        let mut beneath = None;
        let mut pieces = Vec::new();
        for (part, span) in self.map.lookup(range.clone()) {
            if span.is_none_or(|span| span.lsn <= committed) || on(Bug::BaseUncommitted) {
                pieces.push(self.piece(part, span));
                continue;
            }
            let map = beneath.get_or_insert_with(|| self.map_at(committed, &range).0);
            pieces.extend(map.lookup(part).into_iter().map(|(part, span)| self.piece(part, span)));
        }
        let (image, rewriting) = (Arc::clone(&self.image), Arc::clone(&self.rewriting));
        CommittedReadPlan { plan: ReadPlan { range, pieces, image, rewriting }, committed }
    }

    /// The blocks of `within` that entries behind the checkpoint changed, up to `upto`, and the
    /// volume's size as of it.
    pub(super) fn map_at(&self, upto: Lsn, within: &Range<u64>) -> (BlockMap, u64) {
        let mut blocks = self.state.blocks;
        let mut map = BlockMap::default();
        for entry in self.entries.from(self.checkpoint.next()) {
            let header = &entry.header;
            if header.lsn > upto {
                break;
            }
            if let Some((range, data)) = effect(header, blocks)
                && range.start < within.end
                && within.start < range.end
            {
                map.insert(range, header.lsn, data);
            }
            if let EntryKind::Resize { blocks: new } = header.kind {
                blocks = new;
            }
        }
        (map, blocks)
    }
}
