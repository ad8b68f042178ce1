//! What a primary may answer: how far its clients' writes count as acknowledged.
//!
//! `committed` is what every counted replica (in `sync_quorum` a majority of the voters) durably
//! holds: extents stop there, and
//! nothing up to it is ever cut. What may be answered is the same in `sync_all` and `sync_quorum`; the
//! other modes answer earlier, each with a rule of its own for what is then at risk.

use super::core::Core;
use super::io::IsrChange;
use super::peer::Peer;
use super::primary::Primary;
use crate::bugs::{Bug, on};
use crate::types::{Durability, Lsn, Millis};

impl Primary {
    /// Everything logged up to here may be answered now: writes as done, and reads of it. `None` if
    /// nothing may be answered at all.
    pub(super) fn answerable(&self, core: &Core) -> Option<Lsn> {
        if self.config.acks_written() {
            return Some(core.log.committed.max(self.answered));
        }
        match self.config.durability {
            Durability::SyncAll | Durability::SyncQuorum => Some(core.log.committed),
            // The primary alone has it. A successor may be chosen without it once the members'
            // promises have run out, so they are asked for the answer and not only for reads: a
            // primary that was replaced must not acknowledge what is lost already.
            Durability::BestEffort
                if self.active(core.now) || self.ready && on(Bug::AckWithoutLease) =>
            {
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
        self.inherited.max(self.answered)
    }

    /// Up to where flushes are answered: with written acknowledgements they wait for what is durable on
    /// all, and not only written there.
    pub(super) fn flushed(&self, core: &Core) -> Option<Lsn> {
        match self.config.acks_written() && !on(Bug::FlushAtWritten) {
            true => Some(core.log.committed),
            false => self.answerable(core),
        }
    }

    /// Whether flushes may be answered at all. With written acknowledgements a successor may have
    /// answered writes that are on no disk yet, and this primary knows nothing of them: only its leases
    /// tell that there is none.
    pub(super) fn may_flush(&self, now: Millis) -> bool {
        !self.config.acks_written() || self.active(now)
    }

    /// Whether a peer that is listed in sync has all that it acknowledged. One that lost its tail counts
    /// for no commit and no lease before it joined again; as a member it is waited for.
    pub(super) fn has_kept(&self, peer: &Peer) -> bool {
        let listed = self.config.acks_written() && self.config.isr.contains(&peer.id);
        !listed || peer.tail.is_some_and(|tail| self.config.has_kept(peer.id, tail))
    }

    /// With written acknowledgements: what every counted replica has in its file may be answered. A
    /// leave that is undecided, or waits to be proposed, stops that: what remains of the set is not
    /// all of those that have it. [A leaver's late acknowledgement made a write complete that was on no
    /// disk of those that remained.] What is durable on all is answered even then.
    pub(super) fn note_written(&mut self, core: &Core) {
        let leaves = self.holding || self.peers.values().any(|peer| peer.leave_proposed);
        if !self.config.acks_written() || leaves && !on(Bug::AnswersDuringLeave) {
            return;
        }
        let epoch = self.config.epoch;
        let wrote = |peer: &Peer| peer.wrote_in(epoch).filter(|_| self.has_kept(peer));
        let counted = self.peers.values().filter(|peer| self.counts(peer));
        let all = counted.map(wrote).try_fold(core.log.written, |all, wrote| Some(all.min(wrote?)));
        self.answered = self.answered.max(all.unwrap_or_default());
    }

    /// Whether a change may be proposed now. With written acknowledgements a member leaves only once
    /// this primary and those that remain have synced all that was answered: fewer have it then. One
    /// that is silent itself is not waited for, or two that are gone for good would hold up each other.
    pub(super) fn may_propose(&self, core: &Core, change: &IsrChange) -> bool {
        let IsrChange::Leave { replica } = change else { return true };
        if !self.config.acks_written() || on(Bug::LeaveUnsynced) {
            return true;
        }
        let (epoch, answered) = (self.config.epoch, self.answered);
        let stays = |peer: &&Peer| {
            let silent = peer.refused || core.now.since(peer.heard) >= core.params.suspect_ms;
            peer.id != *replica && self.counts(peer) && self.has_kept(peer) && !silent
        };
        let synced = |peer: &Peer| peer.acked_in(epoch).is_some_and(|acked| acked >= answered);
        core.log.durable >= answered && self.peers.values().filter(stays).all(synced)
    }

    /// Whether a member is so far behind that it holds up the others: in `best_effort` a set that waits
    /// for its slowest member would be no better than `sync_all`, and extents wait for all of it. One that was
    /// not met yet may hold everything. [Each handover had all other members leave, once the log was long.]
    pub(super) fn lags(&self, core: &Core, peer: &Peer) -> bool {
        let behind = |acked: Lsn| core.log.end.0.saturating_sub(acked.0);
        self.config.durability == Durability::BestEffort
            && peer.acked.is_some_and(|acked| behind(acked) > core.params.max_uncommitted / 2)
    }

    /// Whether a replica that counts already holds enough to be proposed as a member.
    pub(super) fn may_join(&self, core: &Core, peer: &Peer) -> bool {
        let Some(acked) = peer.acked_in(self.config.epoch) else { return false };
        let enough = match self.config.durability {
            // What was answered after it began to count it has written itself.
            _ if self.config.acks_written() => {
                core.log.committed.max(peer.counted_from.unwrap_or(core.log.end))
            }
            Durability::SyncAll | Durability::SyncQuorum => core.log.committed,
            // Nothing waits for it, so the committed LSN says nothing of what was acknowledged; what
            // was the head when it began to count holds all of that.
            Durability::BestEffort => peer.counted_from.unwrap_or(core.log.end),
        };
        acked >= enough
    }
}
