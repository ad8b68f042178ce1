//! A forwarder's link: to which primary it is made, when it is given up, and what goes out first on
//! a new one.

use super::forwarder::{Attachment, Forwarder, Stream};
use super::io::{Ignored, LinkId, Output, Verdict};
use super::session::{Owner, Session, SessionState};
use crate::bugs::{Bug, on};
use crate::replication::io::{Attach, StreamEnd};
use crate::types::{AttachGeneration, Config, Epoch, LossGeneration, Millis, Placement};

const LOST_DATA: &str = "acknowledged writes may have been lost by a promotion with --accept-data-loss; \
     check the data, then connect again";
const LOST_ATTACHMENT: &str = "a newer attachment took the volume; connect again to use it here";
const LOST_FOLLOWED: &str = "the attachment that this one was to follow is over: its client or an operator \
     ended it, or a newer attachment took the volume";
const LOST_BETWEEN: &str = "acknowledged writes may have been lost while this attachment was under way, and \
     another may have the volume since; connect again to use it here";
const LOST_SESSION: &str = "the primary's log does not know this frontend session any more, so it is unknown \
     whether the request took effect";

impl Forwarder {
    /// A configuration counts only if it is newer. The catalogue's word on addresses always does.
    pub(super) fn learn(
        &mut self,
        now: Millis,
        config: Config,
        catalogue: bool,
        out: &mut Vec<Output>,
    ) -> Verdict {
        if config.volume != self.volume {
            return Verdict::Ignored(Ignored::WrongVolume);
        }
        if let Some(known) = &mut self.config
            && config.epoch <= known.epoch
        {
            if catalogue && config.epoch == known.epoch && config.replicas != known.replicas {
                known.replicas = config.replicas;
                return Verdict::Applied;
            }
            return Verdict::Ignored(Ignored::KnownConfig);
        }
        let (link, goes_on) = match &self.stream {
            Stream::None => (None, false),
            Stream::Opening { link, primary } => (Some(*link), *primary == config.primary),
            Stream::Open { link, primary, epoch, .. } => {
                (Some(*link), *primary == config.primary && config.since <= *epoch)
            }
        };
        if !goes_on {
            if let Some(link) = link {
                out.push(Output::CloseLink(link));
                self.stream = Stream::None;
            }
            self.retry_at = now;
            self.retry_ms = self.params.retry_min_ms;
        }
        self.config = Some(config);
        Verdict::Applied
    }

    pub(super) fn link_opened(
        &mut self,
        now: Millis,
        link: LinkId,
        epoch: Epoch,
        attach: AttachGeneration,
        loss: LossGeneration,
        out: &mut Vec<Output>,
    ) -> Verdict {
        let Stream::Opening { link: opening, primary } = self.stream else {
            return Verdict::Ignored(Ignored::StaleLink);
        };
        if opening != link {
            return Verdict::Ignored(Ignored::StaleLink);
        }
        // A configuration that came since may say that the primary was interrupted after `epoch`.
        if self.config.as_ref().is_some_and(|c| c.since > epoch) {
            out.push(Output::CloseLink(link));
            self.back_off(now);
            return Verdict::Applied;
        }
        // A primary refuses sessions of an older loss generation; should one not, the answer is the
        // same: what was in flight fails, and the clients learn of the loss below or on reopening.
        let SessionState::Have(session) = &self.session else {
            panic!("a link was opened without a session");
        };
        if session.age().is_some_and(|g| g != loss) && !on(Bug::SessionOutlivesLoss) {
            out.push(Output::CloseLink(link));
            self.back_off(now);
            self.session_lost(out);
            return Verdict::Applied;
        }
        // Nor does one give a session another generation than its own: it would be another's.
        if session.attach.is_some_and(|own| own != attach) && !on(Bug::GenerationOfNow) {
            out.push(Output::CloseLink(link));
            self.back_off(now);
            self.attachment_lost(LOST_ATTACHMENT, out);
            return Verdict::Applied;
        }
        self.stream = Stream::Open { link, primary, epoch, attach };
        self.retry_ms = self.params.retry_min_ms;
        for (id, client) in &mut self.clients {
            let seen = *client.generation.get_or_insert(loss);
            let since = *client.attach.get_or_insert(attach);
            if client.stale.is_none() && seen < loss && !on(Bug::SessionOutlivesLoss) {
                client.stale = Some(LOST_DATA.to_owned());
            } else if client.stale.is_none()
                && since < attach
                && !(on(Bug::ReattachByItself) || on(Bug::GenerationOfNow))
            {
                client.stale = Some(LOST_ATTACHMENT.to_owned());
            }
            if client.stale.is_none() && !std::mem::replace(&mut client.told, true) {
                out.push(Output::Attached(*id));
            }
        }
        self.refuse_stale(out);
        let SessionState::Have(session) = &mut self.session else {
            panic!("a link was opened without a session");
        };
        session.generation = Some(loss);
        session.attach = Some(attach);
        // What an older stream has not logged died with it, so what was given up can't take
        // effect late any more, and is never sent again.
        session.unresolved.retain(|_, owner| !matches!(owner, Owner::GivenUp(_)));
        session.adrift = 0;
        session.given_up.clear();
        session.settle();
        self.unblock();
        self.resend(out);
        Verdict::Applied
    }

    pub(super) fn link_ended(
        &mut self,
        now: Millis,
        link: LinkId,
        reason: StreamEnd,
        config: Option<Config>,
        out: &mut Vec<Output>,
    ) -> Verdict {
        if self.current_link() != Some(link) {
            // What a replica tells of the configuration holds all the same.
            if let Some(config) = config {
                return self.learn(now, config, false, out);
            }
            return Verdict::Ignored(Ignored::StaleLink);
        }
        self.back_off(now);
        match reason {
            StreamEnd::NotPrimary | StreamEnd::Replaced | StreamEnd::TooManySessions => {}
            StreamEnd::SessionLost => self.session_lost(out),
            StreamEnd::AttachLost if self.follows.is_some() && self.attachment().is_none() => {
                self.attachment_lost(LOST_FOLLOWED, out);
            }
            StreamEnd::AttachLost => self.attachment_lost(LOST_ATTACHMENT, out),
            StreamEnd::Held(by) => self.attachment_lost(&by.to_string(), out),
            StreamEnd::AttachOver { attach, loss_generation } => {
                // The first one counts: what came to be in force since, it must not end.
                if let SessionState::Have(session) = &mut self.session
                    && session.over.is_none()
                {
                    session.over = Some((attach, loss_generation));
                    self.retry_at = now;
                }
            }
            // Only an operator's stream ends so.
            StreamEnd::Revoked(_) => {}
            StreamEnd::Deleted => self.delete(out),
        }
        if let Some(config) = config {
            self.learn(now, config, false, out);
        }
        Verdict::Applied
    }

    /// The log does not know the session, or a loss came after what it was told. What was never sent goes
    /// on in another one, but not for an exclusive client: the volume may have been another's meanwhile,
    /// also if it was never told that it has it. [Told anew what is in force, a node that had frozen took
    /// the volume from whom it went to after the loss.]
    fn session_lost(&mut self, out: &mut Vec<Output>) {
        let SessionState::Have(session) = &self.session else {
            panic!("a link ended without a session");
        };
        let why = if session.generation.is_none() { LOST_BETWEEN } else { LOST_SESSION };
        if self.exclusive && !on(Bug::ReattachByItself) {
            return self.attachment_lost(why, out);
        }
        self.end_session(why, out);
    }

    /// The session's attachment has ended, or came to nothing. Its clients get errors until they
    /// attach again; those that came since it was made did not see it, and go on in a later one.
    fn attachment_lost(&mut self, why: &str, out: &mut Vec<Output>) {
        let SessionState::Have(session) = &self.session else {
            panic!("a link ended without a session");
        };
        let own = session.attach;
        self.end_session(why, out);
        if self.exclusive && on(Bug::ReattachByItself) {
            return;
        }
        for (id, client) in &mut self.clients {
            if client.stale.is_none() && (own.is_none() || client.attach.is_some()) {
                client.stale = Some(why.to_owned());
                if !client.told {
                    client.told = true;
                    out.push(Output::Refused { client: *id, why: why.to_owned() });
                }
            }
        }
        self.refuse_stale(out);
    }

    /// Sends the unresolved requests of older streams, in order.
    pub(super) fn resend(&self, out: &mut Vec<Output>) {
        let (Stream::Open { link, attach, .. }, SessionState::Have(session)) =
            (&self.stream, &self.session)
        else {
            panic!("sending needs a session and an open link");
        };
        for (sequence, owner) in &session.unresolved {
            out.push(self.send(*link, *attach, session.low, *sequence, *owner));
        }
    }

    pub(super) fn send(
        &self,
        link: LinkId,
        attach: AttachGeneration,
        low: u64,
        sequence: u64,
        owner: Owner,
    ) -> Output {
        let epoch = self.newest_epoch();
        match owner {
            Owner::Request(request) => Output::Send { link, request, sequence, low, epoch, attach },
            Owner::Detach => Output::SendDetach { link, sequence, low, epoch, attach },
            Owner::GivenUp(_) => panic!("sequence {sequence} was given up and must not be sent"),
        }
    }

    pub(super) fn newest_epoch(&self) -> Epoch {
        let known = self.config.as_ref().map_or(Epoch(0), |c| c.epoch);
        match self.stream {
            Stream::Open { epoch, .. } => epoch.max(known),
            Stream::None | Stream::Opening { .. } => known,
        }
    }

    pub(super) fn current_link(&self) -> Option<LinkId> {
        match self.stream {
            Stream::None => None,
            Stream::Opening { link, .. } | Stream::Open { link, .. } => Some(link),
        }
    }

    pub(super) fn close_link(&mut self, out: &mut Vec<Output>) {
        if let Some(link) = self.current_link() {
            out.push(Output::CloseLink(link));
            self.stream = Stream::None;
        }
    }

    /// Ends a link that carries too much which nobody waits for: with it goes what is queued on it, here
    /// and at the primary. [Clients that asked for much and left at once had the answers of them all in
    /// memory, for what they had asked for counted no more.]
    pub(super) fn plan_shed(&mut self, now: Millis, out: &mut Vec<Output>) {
        if let (Stream::Open { link, .. }, SessionState::Have(session)) =
            (&self.stream, &self.session)
            && session.adrift >= self.params.max_bytes
        {
            out.push(Output::CloseLink(*link));
            self.back_off(now);
        }
    }

    /// The current link is over; the next attempt waits.
    pub(super) fn back_off(&mut self, now: Millis) {
        self.stream = Stream::None;
        self.retry_at = now.after(self.retry_ms);
        self.retry_ms = (self.retry_ms * 2).min(self.params.retry_max_ms.max(1));
    }

    pub(super) fn wants_link(&self) -> bool {
        !self.deleted
            && match &self.session {
                SessionState::Closed => false,
                SessionState::None | SessionState::Asked => self.has_usable_client(),
                SessionState::Have(session) => {
                    self.has_usable_client()
                        || !session.unresolved.is_empty()
                        || (self.closing && session.generation.is_some())
                }
            }
    }

    pub(super) fn has_usable_client(&self) -> bool {
        self.clients.values().any(|c| c.stale.is_none())
    }

    /// What a link would be made with and where; `None` while it could not be made: only another
    /// input changes that, not time.
    pub(super) fn target(&self) -> Option<(&Session, &Config, &Placement)> {
        let SessionState::Have(session) = &self.session else { return None };
        let config = self.config.as_ref()?;
        Some((session, config, config.replicas.get(&config.primary.id)?))
    }

    pub(super) fn plan_open(&mut self, now: Millis, out: &mut Vec<Output>) {
        let Some((session, config, place)) = self.target() else { return };
        if now < self.retry_at {
            return;
        }
        let link = LinkId(self.next_link);
        let primary = config.primary;
        out.push(Output::Open {
            link,
            node: place.node,
            addr: place.addr.clone(),
            primary,
            session: session.id,
            attach: match (session.attach, self.follows) {
                (Some(own), _) => Attach::Again(own),
                (None, Some(Attachment { session, generation, .. })) => {
                    Attach::Follow { over: generation, session }
                }
                (None, None) if self.exclusive => {
                    Attach::Exclusive { over: session.over.map(|(attach, _)| attach) }
                }
                (None, None) => Attach::Shared,
            },
            loss_generation: session.age(),
        });
        self.next_link += 1;
        self.stream = Stream::Opening { link, primary };
    }
}
