//! What the primary concludes from its replicas: the committed LSN, its leases, who leaves, who
//! joins, and what goes out on the feeds.

use super::Verdict;
use super::candidate::Standing;
use super::core::Core;
use super::io::{IsrChange, Output, Proposal, ProposalId};
use super::message::{Append, ToReplica};
use super::peer::{Link, Peer};
use super::primary::{Asked, Primary};
use crate::bugs::{Bug, on};
use crate::recovery::Event;
use crate::types::{Config, Lsn, Millis};

impl Primary {
    /// Whether a replica counts: the union of every configuration that may be in force. While a
    /// leave is undecided the leaver is still listed; a joiner counts before the masters hear of it.
    pub(super) fn counts(&self, peer: &Peer) -> bool {
        if on(Bug::LeaveUncounted) && self.asked.is_some() && peer.feed.is_none() {
            return false;
        }
        peer.joining || peer.join_proposed || self.config.isr.contains(&peer.id)
    }

    /// READY, with the leases that the mode asks for, and an in-sync set that is large enough.
    pub(super) fn active(&self, now: Millis) -> bool {
        self.ready && self.large_enough() && self.leased(now)
    }

    /// As [`Self::active`], but without the pause at an epoch of the same tenure, in which the
    /// promises are asked for anew.
    pub(super) fn serving(&self, now: Millis) -> bool {
        self.ready && self.large_enough() && self.attended(now) && !self.has_stopped()
    }

    /// Draws every conclusion that the facts allow. Called at the end of each step.
    pub(super) fn advance(&mut self, core: &mut Core) {
        self.check_silence(core);
        self.check_stalls(core);
        if self.recovery.next_deadline().is_some_and(|at| at <= core.now) {
            self.recover(core, Event::Tick);
        }
        let epoch = self.config.epoch;
        self.stand(core);
        let recorded = self.is_whole() && core.record_epoch(epoch, self.first);
        if recorded && !self.ready && core.now >= self.wait_until {
            self.ready = true;
            core.trace("ready", format!("reconciled itself, log starts at {}", self.first));
        }
        if recorded {
            // Whatever its log lost is given up with its promotion: the masters chose it.
            core.end_doubt();
            self.reconcile_told(core);
        }
        self.note_joiners(core);
        self.begin_bases(core);
        self.commit(core, recorded);
        self.note_served(core);
        self.note_crowded(core);
        self.mend(core);
        self.serve(core);
        self.note_room(core);
        self.resize(core);
        self.note_lacking(core.now);
        self.hand_over(core);
        self.propose(core);
        self.repeat_questions(core);
        self.feed_all(core);
    }

    /// When a tenure first serves, the failover that it began with is over.
    fn note_served(&mut self, core: &mut Core) {
        if !self.served && self.active(core.now) {
            self.served = true;
            let members = self.config.isr.len();
            let who = match self.by_majority() {
                true => format!("a majority of {members} voters"),
                false => format!("all {members} in-sync replicas"),
            };
            core.trace("serving", format!("the leases of {who} hold"));
        }
    }

    /// A replica that holds everything counts from now on, before it is proposed: so whatever is
    /// committed until the masters list it is on it.
    fn note_joiners(&mut self, core: &mut Core) {
        let mut new = Vec::new();
        for peer in self.peers.values_mut() {
            let listed = self.config.isr.contains(&peer.id)
                && peer.tail.is_none_or(|tail| self.config.has_kept(peer.id, tail));
            if core.wish.leave.contains(&peer.id) {
                // It is to go: one that was not proposed yet may stop counting at once.
                peer.joining = peer.join_proposed;
                continue;
            }
            let ready = self.ready || on(Bug::ProposeUnready);
            if !listed && peer.healthy && peer.feed.is_some() && !peer.joining && ready {
                peer.joining = true;
                peer.counted_from = Some(core.log.end);
                new.push(peer.id);
            }
        }
        for id in new {
            core.trace("counting", format!("{id} must acknowledge from here on, before it joins"));
        }
    }

    /// The committed LSN: what this replica and enough others durably hold.
    fn commit(&mut self, core: &mut Core, recorded: bool) {
        if !self.ready || !recorded || !self.large_enough() {
            return;
        }
        let Some(all) = self.acknowledged(core) else { return };
        if all >= self.first.prev() {
            self.settled = Some(self.config.epoch);
        }
        core.commit_to(all);
        self.note_written(core);
    }

    fn note_lacking(&mut self, now: Millis) {
        if self.lacking(now).is_empty() {
            self.lacking_since = None;
        } else {
            self.lacking_since.get_or_insert(now);
        }
    }

    /// The next change to ask the masters for, if there is one.
    pub(super) fn wish(&self, core: &Core) -> Option<IsrChange> {
        let suspected = |peer: &&Peer| {
            self.config.isr.contains(&peer.id)
                && (peer.refused
                    || core.now.since(peer.heard) >= core.params.suspect_ms
                    || self.waits_for_leave(peer)
                    || self.lags(core, peer)
                    || self.crowds(core, peer))
        };
        if let Standing::Declined { best } = &self.standing {
            return Some(IsrChange::Yield { to: *best });
        }
        let spare = self.config.isr.len() as u64 > u64::from(self.config.min_in_sync);
        if self.drops_the_silent()
            && spare
            && let Some(peer) = self.peers.values().find(suspected)
        {
            return Some(IsrChange::Leave { replica: peer.id });
        }
        if self.peers.values().any(|peer| self.is_apart(core, peer)) {
            return Some(IsrChange::Burn);
        }
        // No move of the set before the promises to earlier primaries have run out.
        if !self.ready && !on(Bug::ProposeUnready) {
            return None;
        }
        let goes = |peer: &&Peer| core.wish.leave.contains(&peer.id);
        if spare
            && let Some(peer) = self.peers.values().filter(goes).find(|p| self.may_leave(core, p))
        {
            return Some(IsrChange::Leave { replica: peer.id });
        }
        // A joiner that was proposed and then fell away, or is to go by now: only a newer epoch ends
        // its counting.
        let void = |peer: &Peer| peer.join_proposed && (!peer.healthy || goes(&peer));
        // Answers wait for the outcome of a leave that nobody wants any more.
        let moot = |peer: &Peer| peer.leave_proposed && self.config.acks_written();
        if self.peers.values().any(|peer| void(peer) || moot(peer)) {
            return Some(IsrChange::Burn);
        }
        if !self.is_settled() {
            return None;
        }
        if let Some(change) = self.size_change(core) {
            return Some(change);
        }
        let whole = |peer: &&Peer| {
            peer.joining
                && peer.healthy
                && !goes(peer)
                && matches!(peer.link, Link::Reconciled)
                && (self.may_join(core, peer) || on(Bug::JoinBehind))
        };
        self.peers.values().find(whole).map(|peer| IsrChange::Join { replica: peer.reference() })
    }

    /// It stood for the end of the epoch, for a recovery that the masters did not commit: in this epoch it
    /// takes no part any more, in the next it does. A member is given the time that a failover to it
    /// takes; that one is why it stood, as a rule.
    fn is_apart(&self, core: &Core, peer: &Peer) -> bool {
        let listed = self.config.isr.contains(&peer.id) && !self.by_majority();
        let patience = if listed { 4 * core.params.suspect_ms } else { 0 };
        peer.stood >= self.config.epoch && core.now.since(peer.heard) >= patience
    }

    /// A listed member whose copy is of no use must leave before it can be rebuilt.
    fn waits_for_leave(&self, peer: &Peer) -> bool {
        peer.session.is_some_and(|session| session.stage == super::peer::Stage::Leaving)
    }

    fn propose(&mut self, core: &mut Core) {
        if self.handover.is_some() {
            return;
        }
        if let Some(asked) = self.asked {
            let patience = if asked.answered { 1 } else { 5 };
            if core.now.since(asked.sent) < core.params.retry_ms * patience {
                return;
            }
        }
        let change = self.wish(core);
        let waits = change.as_ref().filter(|change| !self.may_propose(core, change));
        if let Some(change) = waits.filter(|_| !self.holding) {
            let what = format!("{change} once those that stay have synced up to {}", self.answered);
            core.trace("leave-waits", what);
        }
        self.holding = waits.is_some();
        let Some(change) = change.filter(|_| !self.holding) else { return };
        match &change {
            IsrChange::Join { replica } => {
                self.peers.entry(replica.id).and_modify(|peer| peer.join_proposed = true);
            }
            IsrChange::Leave { replica } => {
                self.peers.entry(*replica).and_modify(|peer| peer.leave_proposed = true);
            }
            IsrChange::Burn => {
                if let Some(peer) = self.peers.values().find(|peer| self.is_apart(core, peer)) {
                    let what = format!("{} stood, and nothing came of it", peer.id);
                    core.trace("apart", what);
                }
            }
            IsrChange::Yield { .. }
            | IsrChange::HandOver { .. }
            | IsrChange::Resized { .. }
            | IsrChange::KeepSize { .. } => {}
        }
        self.ask(core, change);
    }

    /// Sends a proposal.
    pub(super) fn ask(&mut self, core: &mut Core, change: IsrChange) {
        self.proposals += 1;
        let id = ProposalId(self.proposals);
        self.asked = Some(Asked { id, sent: core.now, answered: false });
        core.trace("proposed", format!("{change}, if epoch {} is in force", self.config.epoch));
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
            self.handover_answered(core.now, config.is_some());
        }
        if on(Bug::UnchangedIsAnswer) {
            self.peers.values_mut().for_each(|peer| {
                (peer.join_proposed, peer.joining) = (false, false);
            });
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
        due.extend(self.stand_deadline(core));
        for peer in self.peers.values() {
            due.extend(peer.asked().map(|sent| sent.after(params.retry_ms)));
            if peer.is_fed() {
                due.push(peer.heard.after(params.suspect_ms));
                let stamped = peer.feed.and_then(|feed| feed.stamped);
                due.push(stamped.map_or(core.now, |at| at.after(params.renew_ms)));
            } else if self.drops_the_silent()
                && self.config.isr.contains(&peer.id)
                && self.asked.is_none()
            {
                due.push(peer.heard.after(params.suspect_ms));
            }
            if peer.session.is_some() {
                due.push(core.now.after(params.retry_ms));
            }
        }
        due.extend(self.handover_deadline(core));
        due.extend(self.mend_deadline(core));
        due.extend(self.resize_deadline(core));
        if let Some(asked) = self.asked.filter(|_| self.handover.is_none()) {
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
            "I1: a primary acts in the epoch it promised to"
        );
        assert_eq!(self.config.primary, core.me, "I1: a primary acts in its own incarnation");
        assert!(self.config.isr.contains(&core.me.id), "I1: a primary is in sync");
        assert!(core.kept.incomplete.is_none(), "I6: an incomplete replica is no primary");
        self.assert_handover(core);
        self.assert_mends(core);
        for peer in self.peers.values() {
            assert!(
                peer.acked.is_none_or(|acked| acked <= core.log.end),
                "I5: acknowledged past the end"
            );
            let copying = peer.session.is_some_and(|s| {
                !matches!(s.stage, super::peer::Stage::Feeding { .. } | super::peer::Stage::Leaving)
            }) && matches!(peer.link, Link::Unusable);
            assert!(
                self.by_majority() || !(copying && self.config.isr.contains(&peer.id)),
                "I6: a base lane is open to a listed replica"
            );
            if let Some(session) = peer.session
                && let Some(decided) = self.recovery.target(peer.id, session.id)
            {
                assert_eq!(session.target, decided, "I6: a session's target changed");
            }
            if copying {
                assert!(peer.acked.is_none(), "I6: an incomplete replica counts for a commit");
            }
        }
    }
}
