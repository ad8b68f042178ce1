//! A primary that logs nothing, for too many epochs begin above what is committed.
//!
//! The superblock has room for so many epochs, and none that begins above the checkpoint can be dropped:
//! where entries of two logs part follows from them. A checkpoint stops at the committed LSN. So of epochs
//! that log something and commit nothing there must be a limit. [A client went on writing to a primary whose
//! only other member was away and which was restarted again and again. After 240 epochs the next one could
//! not be recorded by any replica, and the volume was closed for good.]
//!
//! An epoch takes room only once something is logged in it, so the limit is on the first entry of an epoch:
//! requests and attachments wait until enough is committed. No entry is needed for that. What earlier
//! epochs logged is committed with the start of the one in force, and that is a row of the table, not an
//! entry (Raft, section 5.4.2, has a no-op for it). So it ends by itself once those that must acknowledge
//! are back.

use super::core::Core;
use super::peer::Peer;
use super::primary::Primary;
use crate::bugs::{Bug, on};
use crate::types::{Durability, Lsn};

impl Primary {
    /// Whether nothing may be logged. An epoch in which something is logged has its room.
    ///
    /// The limit counts from this primary's committed LSN, not from its checkpoint, which is free to follow;
    /// so it holds for the log of every follower too, which is a part of a primary's. It is half of the
    /// newest epochs that a table always keeps, so the one in which the newest committed entry was logged is
    /// among these on every member. [A member that had acknowledged it and did not know that it was
    /// committed had no epoch in common with the primary any more, and was cut below it.]
    pub(super) fn is_crowded(&self, core: &Core) -> bool {
        core.log.end < self.first && !self.has_room(core) && !on(Bug::LogInAnyEpoch)
    }

    fn has_room(&self, core: &Core) -> bool {
        core.kept.table.above(core.log.committed) <= core.params.max_uncommitted_epochs
    }

    /// Notes since when nothing is logged.
    pub(super) fn note_crowded(&mut self, core: &mut Core) {
        if !(self.ready && self.is_crowded(core)) {
            self.crowded_since = None;
        } else if self.crowded_since.is_none() {
            self.crowded_since = Some(core.now);
            let why = self.why_crowded(core).unwrap_or_default();
            core.trace("crowded", why);
        }
    }

    /// Why nothing is logged, in words.
    pub(super) fn why_crowded(&self, core: &Core) -> Option<String> {
        let (committed, first) = (core.log.committed, self.first);
        let epochs = core.params.max_uncommitted_epochs;
        self.is_crowded(core).then(|| {
            format!(
                "takes no writes before more than {committed} of {} is committed: {epochs} epochs have \
                 logged something since, and superblocks have no room for many more",
                first.prev()
            )
        })
    }

    /// Whether a member lacks what must be committed before anything is logged, and has had the time to
    /// get it. Where nothing waits for members, it leaves for that. [One whose disk hung was asked for
    /// nothing more, so it never lagged by too many entries, and the clients waited for it.]
    pub(super) fn crowds(&self, core: &Core, peer: &Peer) -> bool {
        let waited =
            self.crowded_since.is_some_and(|at| core.now.since(at) >= core.params.suspect_ms);
        waited
            && self.config.durability == Durability::BestEffort
            && peer.acked_in(self.config.epoch) < Some(self.first.prev())
    }

    /// The invariant of the first entry of an epoch.
    pub(super) fn assert_room(&self, core: &Core, lsn: Lsn) {
        assert!(
            lsn > self.first || self.has_room(core),
            "L5: the entry {lsn} begins an epoch, and {} begin above committed {}",
            core.kept.table.above(core.log.committed),
            core.log.committed
        );
    }
}
