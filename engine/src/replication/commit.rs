//! What the primary concludes from its replicas: the committed LSN, its leases, who leaves, who
//! joins, and what goes out on the feeds.

use super::Verdict;
use super::core::Core;
use super::io::{IsrChange, Output, Proposal, ProposalId};
use super::message::{Append, ToReplica};
use super::peer::{Link, Peer};
use super::primary::{Asked, Primary};
use crate::recovery::Event;
use crate::types::{Config, Lsn, Millis, ReplicaId};

impl Primary {
    /// The replicas that must acknowledge: the union of every configuration that may be in force.
    /// While a leave is undecided the leaver is still listed; a joiner counts before the masters
    /// hear of it.
    fn counted(&self) -> impl Iterator<Item = &Peer> {
        self.peers.values().filter(|peer| self.counts(peer))
    }

    pub(super) fn counts(&self, peer: &Peer) -> bool {
        peer.joining || peer.join_proposed || self.config.isr.contains(&peer.id)
    }

    fn large_enough(&self) -> bool {
        self.config.isr.len() as u64 >= u64::from(self.config.min_in_sync)
    }

    /// Whether every counted replica's promise holds now.
    pub(super) fn leased(&self, now: Millis) -> bool {
        self.counted().all(|peer| peer.leased_until > now)
    }

    /// READY, with the leases of the whole in-sync set, which is large enough.
    pub(super) fn active(&self, now: Millis) -> bool {
        self.ready && self.large_enough() && self.leased(now)
    }

    /// In-sync members that don't answer.
    pub(super) fn lacking(&self, now: Millis) -> Vec<ReplicaId> {
        let listed = self.peers.values().filter(|peer| self.config.isr.contains(&peer.id));
        listed.filter(|peer| peer.leased_until <= now).map(|peer| peer.id).collect()
    }

    /// Draws every conclusion that the facts allow. Called at the end of each step.
    pub(super) fn advance(&mut self, core: &mut Core) {
        self.check_silence(core);
        if self.recovery.next_deadline().is_some_and(|at| at <= core.now) {
            self.recover(core, Event::Tick);
        }
        let epoch = self.config.epoch;
        let recorded = core.record_epoch(epoch, self.first);
        if recorded && !self.ready && core.now >= self.wait_until {
            self.ready = true;
            core.trace("ready", format!("reconciled itself, log starts at {}", self.first));
        }
        self.note_joiners(core);
        self.begin_rebuilds(core);
        self.commit(core, recorded);
        self.serve(core);
        self.note_lacking(core.now);
        self.propose(core);
        self.repeat_questions(core);
        self.feed_all(core);
    }

    /// A replica that holds everything counts from now on, before it is proposed: so whatever is
    /// committed until the masters list it is on it.
    fn note_joiners(&mut self, core: &mut Core) {
        let mut new = Vec::new();
        for peer in self.peers.values_mut() {
            let listed = self.config.isr.contains(&peer.id);
            if !listed && peer.healthy && peer.feed.is_some() && !peer.joining && self.ready {
                peer.joining = true;
                new.push(peer.id);
            }
        }
        for id in new {
            core.trace("counting", format!("{id} must acknowledge from here on, before it joins"));
        }
    }

    /// The committed LSN: what this replica and every counted one durably hold.
    fn commit(&mut self, core: &mut Core, recorded: bool) {
        if !self.ready || !recorded || !self.large_enough() {
            return;
        }
        let epoch = self.config.epoch;
        let mut all = core.log.durable;
        for peer in self.counted() {
            match peer.acked_in(epoch) {
                Some(acked) => all = all.min(acked),
                None => return,
            }
        }
        core.commit_to(all);
    }

    fn note_lacking(&mut self, now: Millis) {
        if self.lacking(now).is_empty() {
            self.lacking_since = None;
        } else {
            self.lacking_since.get_or_insert(now);
        }
    }

    /// The next change to ask the masters for, if there is one.
    fn wish(&self, core: &Core) -> Option<IsrChange> {
        let suspected = |peer: &&Peer| {
            self.config.isr.contains(&peer.id)
                && (peer.refused
                    || core.now.since(peer.heard) >= core.params.suspect_ms
                    || self.waits_for_leave(peer))
        };
        let spare = self.config.isr.len() as u64 > u64::from(self.config.min_in_sync);
        if spare && let Some(peer) = self.peers.values().find(suspected) {
            return Some(IsrChange::Leave { replica: peer.id });
        }
        // No move of the set before the promises to earlier primaries have run out.
        if !self.ready {
            return None;
        }
        // A joiner that was proposed and then fell away: only a newer epoch ends its counting.
        if self.peers.values().any(|peer| peer.join_proposed && !peer.healthy) {
            return Some(IsrChange::Burn);
        }
        let epoch = self.config.epoch;
        let whole = |peer: &&Peer| {
            peer.joining
                && peer.healthy
                && matches!(peer.link, Link::Reconciled)
                && peer.acked_in(epoch).is_some_and(|acked| acked >= core.log.committed)
        };
        self.peers.values().find(whole).map(|peer| IsrChange::Join { replica: peer.reference() })
    }

    /// A listed member whose copy is of no use must leave before it can be rebuilt.
    fn waits_for_leave(&self, peer: &Peer) -> bool {
        peer.session.is_some_and(|session| session.stage == super::peer::Stage::Leaving)
    }

    fn propose(&mut self, core: &mut Core) {
        if let Some(asked) = self.asked {
            let patience = if asked.answered { 1 } else { 5 };
            if core.now.since(asked.sent) < core.params.retry_ms * patience {
                return;
            }
        }
        let Some(change) = self.wish(core) else { return };
        if let IsrChange::Join { replica } = &change
            && let Some(peer) = self.peers.get_mut(&replica.id)
        {
            peer.join_proposed = true;
        }
        self.proposals += 1;
        let id = ProposalId(self.proposals);
        self.asked = Some(Asked { id, sent: core.now, answered: false });
        core.trace("proposed", format!("{change:?} at epoch {}", self.config.epoch));
        core.out.push(Output::Propose(Proposal {
            id,
            volume: core.volume,
            primary: core.me,
            epoch: self.config.epoch,
            change,
        }));
    }

    /// The masters answered, or not. An unchanged epoch is no answer: the proposal may be committed
    /// still. [An abandoned proposal committed late and made a non-holder promotable.]
    pub(super) fn answered(
        &mut self,
        core: &mut Core,
        proposal: ProposalId,
        config: Option<&Config>,
    ) -> Verdict {
        if let Some(asked) = self.asked.as_mut().filter(|asked| asked.id == proposal) {
            asked.answered = true;
            asked.sent = core.now;
        }
        if config.is_none() {
            core.trace("unanswered", format!("proposal {}: the outcome is unknown", proposal.0));
        }
        Verdict::Applied
    }

    /// Sends what each feed may take: entries within the window, frontiers and stamps when due.
    fn feed_all(&mut self, core: &mut Core) {
        let (epoch, since, first) = (self.config.epoch, self.config.since, self.first);
        for peer in self.peers.values_mut() {
            if !peer.is_fed() {
                continue;
            }
            let base = match (peer.session.map(|s| s.stage), peer.acked) {
                (_, Some(acked)) => acked,
                // A rebuild's receiver counts for nothing, but its window moves on.
                (Some(_), None) | (None, None) => peer.progress,
            };
            let (to, addr) = (peer.reference(), peer.addr.clone());
            let Some(feed) = &mut peer.feed else { continue };
            let due = feed.stamped.is_none_or(|at| core.now.since(at) >= core.params.renew_ms);
            let window = Lsn(base.0 + core.params.feed_window);
            let last = core.log.end.min(window);
            let send = last >= feed.next;
            if !send && !due {
                continue;
            }
            let stamp = due.then_some(core.now);
            if due {
                feed.stamped = Some(core.now);
            }
            let append = Append {
                since,
                first,
                committed: core.log.committed,
                stamp,
                prev: feed.next.prev(),
                entries: Vec::new(),
            };
            let lineage = core.lineage(epoch, to);
            if send {
                feed.next = last.next();
                core.out.push(Output::SendEntries { addr, lineage, append, last });
            } else {
                let message = ToReplica::Append(append);
                core.out.push(Output::ToReplica { addr, lineage, message });
            }
        }
    }

    /// When something is due without an event.
    pub(super) fn next_deadline(&self, core: &Core) -> Option<Millis> {
        let params = &core.params;
        let mut due: Vec<Millis> = Vec::new();
        if !self.ready && core.recorded == Some(self.config.epoch) {
            due.push(self.wait_until);
        }
        due.extend(self.recovery.next_deadline());
        for peer in self.peers.values() {
            due.extend(peer.asked().map(|sent| sent.after(params.retry_ms)));
            if peer.is_fed() {
                due.push(peer.heard.after(params.suspect_ms));
                let stamped = peer.feed.and_then(|feed| feed.stamped);
                due.push(stamped.map_or(core.now, |at| at.after(params.renew_ms)));
            } else if self.config.isr.contains(&peer.id) && self.asked.is_none() {
                due.push(peer.heard.after(params.suspect_ms));
            }
            if peer.session.is_some() {
                due.push(core.now.after(params.retry_ms));
            }
        }
        if let Some(asked) = self.asked {
            let patience = if asked.answered { 1 } else { 5 };
            due.push(asked.sent.after(params.retry_ms * patience));
        }
        // A deadline that has passed would make the driver spin: what it waits for is an event.
        due.into_iter().map(|at| at.max(core.now.next())).min()
    }

    /// The invariants of a primary.
    pub(super) fn assert_invariants(&self, core: &Core) {
        assert_eq!(
            self.config.epoch, core.kept.fenced,
            "a primary acts in the epoch it promised to"
        );
        assert_eq!(self.config.primary, core.me, "a primary acts in its own incarnation");
        assert!(self.config.isr.contains(&core.me.id), "a primary is in sync");
        assert!(core.kept.incomplete.is_none(), "an incomplete replica is no primary");
        for peer in self.peers.values() {
            assert!(
                peer.acked.is_none_or(|acked| acked <= core.log.end),
                "acknowledged past the end"
            );
            let copying = peer.session.is_some_and(|s| {
                !matches!(s.stage, super::peer::Stage::Feeding { .. } | super::peer::Stage::Leaving)
            }) && matches!(peer.link, Link::Unusable);
            assert!(
                !(copying && self.config.isr.contains(&peer.id)),
                "a base lane is open to a listed replica"
            );
            if copying {
                assert!(peer.acked.is_none(), "an incomplete replica counts for a commit");
            }
        }
    }
}
