//! What a primary may answer: how far its clients' writes count as acknowledged.
//!
//! `committed` is what every counted replica (in `sync_quorum` a majority of the voters) durably
//! holds: extents stop there, and
//! nothing up to it is ever cut. What may be answered is the same in `sync_all` and `sync_quorum`; the
//! other modes answer earlier, each with a rule of its own for what is then at risk.

use super::core::Core;
use super::peer::Peer;
use super::primary::Primary;
use crate::types::{Durability, Lsn};

impl Primary {
    /// Everything logged up to here may be answered now: writes as done, and reads of it. `None` if
    /// nothing may be answered at all.
    pub(super) fn answerable(&self, core: &Core) -> Option<Lsn> {
        match self.config.durability {
            Durability::SyncAll | Durability::SyncQuorum => Some(core.log.committed),
            // The primary alone has it. A successor may be chosen without it once the members'
            // promises have run out, so they are asked for the answer and not only for reads: a
            // primary that was replaced must not acknowledge what is lost already.
            Durability::BestEffort if self.active(core.now) => {
                let recorded = core.recorded == Some(self.config.epoch);
                Some(if recorded { core.log.durable } else { core.log.committed })
            }
            Durability::BestEffort => None,
        }
    }

    /// What must be answerable before a flush that begins now is answered: what this primary
    /// acknowledged is durable where the mode says, but what it inherited may have been acknowledged by an
    /// earlier one.
    pub(super) fn flush_needs(&self) -> Lsn {
        self.inherited
    }

    /// Whether a member is so far behind that it holds up the others: in `best_effort` a set that waits
    /// for its slowest member would be no better than `sync_all`, and extents wait for all of it.
    pub(super) fn lags(&self, core: &Core, peer: &Peer) -> bool {
        let behind = core.log.end.0.saturating_sub(peer.acked.unwrap_or_default().0);
        self.config.durability == Durability::BestEffort && behind > core.params.max_uncommitted / 2
    }

    /// Whether a replica that counts already holds enough to be proposed as a member.
    pub(super) fn may_join(&self, core: &Core, peer: &Peer) -> bool {
        let Some(acked) = peer.acked_in(self.config.epoch) else { return false };
        let enough = match self.config.durability {
            Durability::SyncAll | Durability::SyncQuorum => core.log.committed,
            // Nothing waits for it, so the committed LSN says nothing of what was acknowledged; what
            // was the head when it began to count holds all of that.
            Durability::BestEffort => peer.counted_from.unwrap_or(core.log.end),
        };
        acked >= enough
    }
}
