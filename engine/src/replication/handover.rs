//! The planned move of a primary's role to another in-sync replica.
//!
//! The primary takes no more requests, brings its heir to the head of its log, stops, and only then
//! proposes the next epoch with the heir as primary and the same in-sync set. The proposal is its
//! word that it answers nothing in this epoch any more, so the heir need not wait for what was
//! promised to it. From then on only a newer epoch is known to be an answer: a refusal, an error or
//! silence may be followed by a late commit. So a primary that learns of none burns the epoch with
//! itself as primary; whichever of the two the masters commit first makes the other void.
//!
//! Before the proposal nothing has happened, and whatever speaks against it ends the attempt.

use serde::{Deserialize, Serialize};

use super::core::Core;
use super::io::IsrChange;
use super::peer::{Link, Peer};
use super::primary::Primary;
use super::view::HandoverView;
use crate::bugs::{Bug, on};
use crate::types::{Lsn, Millis, ReplicaId, ReplicaRef};

/// The role on its way to another replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Handover {
    /// The heir, in the run that is to hold everything.
    to: ReplicaRef,
    /// Since when no requests are taken.
    since: Millis,
    /// Set once it was proposed: there is no way back but a newer epoch.
    stopped: Option<Stopped>,
}

/// A primary that answers nothing any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stopped {
    /// Where its log ended then.
    head: Lsn,
    /// When it, or the wish to burn the epoch, was sent last.
    sent: Millis,
    /// The masters answered that the epoch has not changed.
    refused: bool,
    /// It has asked for another epoch with itself as primary.
    burned: bool,
}

impl Primary {
    /// Whether requests may be logged and streams opened.
    pub(super) fn takes_requests(&self) -> bool {
        self.handover.is_none() || on(Bug::LogsDuringHandover)
    }

    /// Whether it has given its word that it answers nothing.
    pub(super) fn has_stopped(&self) -> bool {
        self.handover.is_some_and(|handover| handover.stopped.is_some())
    }

    /// To whom it has proposed to hand over.
    pub(super) fn handed_over_to(&self) -> Option<ReplicaRef> {
        self.handover.filter(|handover| handover.stopped.is_some()).map(|handover| handover.to)
    }

    /// Takes the step towards a handover that the facts allow.
    pub(super) fn hand_over(&mut self, core: &mut Core) {
        if self.handover.is_none() {
            self.begin_handover(core);
        }
        let Some(handover) = self.handover else { return };
        match handover.stopped {
            None => self.drain(core, handover),
            Some(stopped) => self.burn_unknown(core, handover, stopped),
        }
    }

    fn begin_handover(&mut self, core: &mut Core) {
        // A change that may be decided any moment voids this one: no reason to make clients wait.
        if self.asked.is_some_and(|asked| !asked.answered) {
            return;
        }
        let Some(Ok(to)) = self.heir(core) else { return };
        core.trace(
            "handover",
            format!("to {}: takes no requests until it holds all up to {}", to.id, core.log.end),
        );
        self.handover = Some(Handover { to, since: core.now, stopped: None });
    }

    /// Proposes once the heir holds the whole log; gives up if that does not come.
    fn drain(&mut self, core: &mut Core, handover: Handover) {
        let to = handover.to;
        if let Some(why) = self.against(core, handover) {
            core.trace("handover-given-up", format!("to {}: {why}", to.id));
            self.given_up = Some((to.id, core.now));
            self.handover = None;
            return;
        }
        let (epoch, head) = (self.config.epoch, core.log.end);
        let acked = self.peers.get(&to.id).and_then(|peer| peer.acked_in(epoch));
        let whole = acked == Some(head) && core.log.durable == head && !self.clients.is_merging();
        if !whole && !on(Bug::HandoverBehind) {
            return;
        }
        let stopped = Stopped { head, sent: core.now, refused: false, burned: false };
        self.handover = Some(Handover { stopped: Some(stopped), ..handover });
        self.ask(core, IsrChange::HandOver { to });
    }

    /// The proposal may be committed still, or was never heard of: an epoch of its own tells.
    fn burn_unknown(&mut self, core: &mut Core, handover: Handover, stopped: Stopped) {
        if !stopped.refused && core.now.since(stopped.sent) < core.params.retry_ms {
            return;
        }
        let why = if stopped.refused { "was refused" } else { "has no answer" };
        core.trace(
            "handover-unknown",
            format!("the handover to {} {why}: stays stopped until a newer epoch", handover.to.id),
        );
        let stopped = Stopped { sent: core.now, refused: false, burned: true, ..stopped };
        self.handover = Some(Handover { stopped: Some(stopped), ..handover });
        self.ask(core, IsrChange::Burn);
    }

    /// The masters answered the newest proposal, with no newer epoch. `told`: with the one in force.
    pub(super) fn handover_answered(&mut self, now: Millis, told: bool) {
        let Some(Handover { stopped: Some(stopped), .. }) = &mut self.handover else { return };
        // That the wish to burn was refused is no reason to repeat it at once.
        stopped.refused = told && !stopped.burned;
        stopped.sent = now;
        if on(Bug::UnknownHandoverIsNo)
            && let Some(handover) = self.handover.take()
        {
            self.given_up = Some((handover.to.id, now));
        }
    }

    /// To whom the role is to go, or why it can't yet; `None` if nobody wants it to.
    fn heir(&self, core: &Core) -> Option<Result<ReplicaRef, String>> {
        let wished = core.wish.primary.filter(|id| *id != core.me.id);
        let able = |id: ReplicaId| match self.obstacle(core, id) {
            None => self.peers.get(&id).map(Peer::reference).ok_or_else(String::new),
            Some(why) => Err(format!("is to hand over to {id}: {why}")),
        };
        let first = wished.map(able);
        if !core.resigning || matches!(first, Some(Ok(_))) {
            return first;
        }
        // Of those that can, the one that holds most.
        let others = self.peers.values().filter(|peer| self.obstacle(core, peer.id).is_none());
        let best = others.max_by_key(|peer| (peer.acked, std::cmp::Reverse(peer.id)));
        let none = || "is about to stop: no in-sync replica can take over now".to_owned();
        Some(best.map(Peer::reference).ok_or_else(none))
    }

    /// Why the role can't go to the replica now, in words.
    fn obstacle(&self, core: &Core, id: ReplicaId) -> Option<String> {
        if !self.ready && !on(Bug::HandoverWaivesAll) {
            return Some("waits for promises made to earlier primaries".to_owned());
        }
        if let Some((to, at)) = self.given_up
            && to == id
            && core.now.since(at) < core.params.suspect_ms
        {
            return Some("the last attempt was given up a moment ago".to_owned());
        }
        self.unfit(core, id)
    }

    /// Why the replica can't be primary, or this one can't let go of it.
    fn unfit(&self, core: &Core, id: ReplicaId) -> Option<String> {
        let why = |text: &str| Some(text.to_owned());
        let epoch = self.config.epoch;
        if self.settled != Some(epoch) && !on(Bug::HandoverWaivesAll) {
            return why("nothing was committed in this epoch yet");
        }
        let Some(peer) = self.peers.get(&id).filter(|_| self.config.isr.contains(&id)) else {
            return why("it is not in sync");
        };
        if core.wish.leave.contains(&id) {
            return why("it is to leave the in-sync set");
        }
        if !matches!(peer.link, Link::Reconciled) || !peer.takes_part(core.now) {
            return why("it does not answer");
        }
        let Some(acked) = peer.acked_in(epoch).filter(|_| peer.healthy) else {
            return why("it does not hold everything up to this epoch yet");
        };
        let lag = core.log.end.0 - acked.0;
        if lag > core.params.feed_window {
            return Some(format!("it is {lag} entries behind"));
        }
        // The heir would have to find out about them anew.
        if !self.lacking(core.now).is_empty() {
            return why("another in-sync replica does not answer");
        }
        None
    }

    /// What ends an attempt before it was proposed.
    fn against(&self, core: &Core, handover: Handover) -> Option<String> {
        let to = handover.to;
        let wished = core.wish.primary == Some(to.id) || core.resigning;
        if !wished {
            return Some("it is wished no more".to_owned());
        }
        if self.peers.get(&to.id).map(Peer::reference) != Some(to) {
            return Some("it restarted".to_owned());
        }
        let waited = core.now.since(handover.since);
        let late = || (waited >= core.params.drain_ms).then(|| self.behind(core, to.id, waited));
        self.unfit(core, to.id).or_else(late)
    }

    fn behind(&self, core: &Core, id: ReplicaId, waited: u64) -> String {
        let acked = self.peers.get(&id).and_then(|peer| peer.acked).unwrap_or_default();
        format!("after {waited} ms it holds {acked} of {}", core.log.end)
    }

    /// When something is due without an event.
    pub(super) fn handover_deadline(&self, core: &Core) -> Option<Millis> {
        if let Some(handover) = self.handover {
            return Some(match handover.stopped {
                None => handover.since.after(core.params.drain_ms),
                Some(stopped) => stopped.sent.after(core.params.retry_ms),
            });
        }
        let wanted = core.resigning || core.wish.primary.is_some_and(|id| id != core.me.id);
        let (_, at) = self.given_up.filter(|_| wanted)?;
        let again = at.after(core.params.suspect_ms);
        (again > core.now).then_some(again)
    }

    /// How far it is, for people.
    pub(super) fn show_handover(&self, core: &Core) -> HandoverView {
        let Some(handover) = self.handover else {
            return match self.heir(core) {
                Some(Err(why)) => HandoverView::Waits(why),
                Some(Ok(_)) | None => HandoverView::None,
            };
        };
        match handover.stopped {
            None => HandoverView::Draining(handover.to.id),
            Some(_) => HandoverView::Proposed(handover.to.id),
        }
    }

    /// The invariants of a handover.
    pub(super) fn assert_handover(&self, core: &Core) {
        let Some(Handover { to, stopped: Some(stopped), .. }) = self.handover else { return };
        assert!(
            self.config.isr.contains(&to.id) && to.id != core.me.id,
            "I1: a handover to a replica that is not in sync"
        );
        assert!(
            core.log.end == stopped.head || on(Bug::LogsDuringHandover) || on(Bug::HandoverBehind),
            "I1: an entry was logged after the handover was proposed"
        );
    }
}
