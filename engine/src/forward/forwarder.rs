//! The state machine of one frontend session.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::io::{Answer, ClientId, Ignored, Input, LinkId, Op, Output, Params, RequestId, Verdict};
use super::session::{GivenUp, Owner, Session, SessionState};
use crate::types::{
    AttachGeneration, Config, Epoch, LossGeneration, Millis, ReplicaRef, SessionId, VolumeId,
};

/// One frontend session of one volume, shared by all clients of one datanode.
///
/// Handlers record facts; [`plan`](Self::plan) at the end of each step emits what is missing, so
/// a forgotten retry repairs itself at the next step.
#[derive(Clone, Debug)]
pub struct Forwarder {
    pub(super) volume: VolumeId,
    pub(super) params: Params,
    /// Whether its one client has the volume to itself.
    pub(super) exclusive: bool,
    pub(super) had_session: bool,
    /// Exclusive: the attachment that it takes the volume from and no other, if that was known before.
    pub(super) follows: Option<Attachment>,
    /// The newest configuration known.
    pub(super) config: Option<Config>,
    pub(super) clients: BTreeMap<ClientId, Client>,
    /// Unanswered requests, oldest first.
    pub(super) requests: BTreeMap<RequestId, Request>,
    /// Those without a sequence, oldest first.
    pub(super) waiting: VecDeque<RequestId>,
    /// Those without a sequence whose blocks a given-up request may still change.
    pub(super) blocked: VecDeque<RequestId>,
    pub(super) session: SessionState,
    pub(super) stream: Stream,
    pub(super) next_link: u64,
    /// When the next attempt at a link may start, and how long the wait after it will be.
    pub(super) retry_at: Millis,
    pub(super) retry_ms: u64,
    /// Payload bytes of `requests`.
    pub(super) bytes: u64,
    pub(super) closing: bool,
    pub(super) deleted: bool,
}

/// An attachment that stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Whose it is.
    pub session: SessionId,
    /// Its generation.
    pub generation: AttachGeneration,
    /// The volume's loss generation, in which that counts.
    pub loss_generation: LossGeneration,
}

#[derive(Clone, Debug)]
pub(super) struct Client {
    /// The loss generation that its view of the volume rests on; `None` before the first link.
    pub(super) generation: Option<LossGeneration>,
    /// The attach generation that it is part of; `None` before the first link.
    pub(super) attach: Option<AttachGeneration>,
    /// Whether it knows that its attachment stands.
    pub(super) told: bool,
    /// Why it gets nothing but errors.
    pub(super) stale: Option<String>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    pub(super) client: ClientId,
    pub(super) op: Op,
    pub(super) submitted: Millis,
    pub(super) sequence: Option<u64>,
}

#[derive(Clone, Debug)]
pub(super) enum Stream {
    None,
    Opening { link: LinkId, primary: ReplicaRef },
    Open { link: LinkId, primary: ReplicaRef, epoch: Epoch, attach: AttachGeneration },
}

impl Forwarder {
    /// A forwarder for the volume, with no client and no session yet. Its clients share the volume
    /// with each other and with those of other forwarders.
    pub fn new(volume: VolumeId, params: Params) -> Self {
        Self::with(volume, params, false)
    }

    /// A forwarder for one client that is to have the volume to itself. Its session ends with that
    /// attachment: what the client asks for afterwards fails.
    pub fn exclusive(volume: VolumeId, params: Params) -> Self {
        Self::with(volume, params, true)
    }

    /// As [`exclusive`](Self::exclusive), for a client that goes on where an earlier one of the same user
    /// ended without a word: it takes the volume from that one's attachment. It is refused unless that
    /// stands to this moment: if another was made since, if that one ended (by its own client or by an
    /// operator) whether or not anybody came after it, or if a loss was counted. What its user believes
    /// the volume holds may be wrong then.
    pub fn following(volume: VolumeId, params: Params, attachment: Attachment) -> Self {
        Self { follows: Some(attachment), ..Self::with(volume, params, true) }
    }

    /// Its session's attachment, once it stands.
    pub fn attachment(&self) -> Option<Attachment> {
        match &self.session {
            SessionState::Have(session) => Some(Attachment {
                session: session.id,
                generation: session.attach?,
                loss_generation: session.generation?,
            }),
            SessionState::None | SessionState::Asked | SessionState::Closed => None,
        }
    }

    fn with(volume: VolumeId, params: Params, exclusive: bool) -> Self {
        assert!(params.retry_min_ms > 0, "a retry without a wait would spin");
        Self {
            volume,
            params,
            exclusive,
            had_session: false,
            follows: None,
            config: None,
            clients: BTreeMap::new(),
            requests: BTreeMap::new(),
            waiting: VecDeque::new(),
            blocked: VecDeque::new(),
            session: SessionState::None,
            stream: Stream::None,
            next_link: 1,
            retry_at: Millis(0),
            retry_ms: params.retry_min_ms,
            bytes: 0,
            closing: false,
            deleted: false,
        }
    }

    /// Whether another request may be submitted. If not, the driver leaves it with the client.
    pub fn can_accept(&self) -> bool {
        self.bytes < self.params.max_bytes
            && self.waiting.len() + self.blocked.len() < self.params.max_queued
    }

    /// Whether nothing is unanswered and nothing may still take effect late.
    pub fn is_idle(&self) -> bool {
        self.requests.is_empty()
            && match &self.session {
                SessionState::None | SessionState::Asked | SessionState::Closed => true,
                SessionState::Have(session) => session.unresolved.is_empty(),
            }
    }

    /// Whether its clients get nothing but errors until they attach again.
    pub fn has_ended(&self) -> bool {
        !self.clients.is_empty() && !self.has_usable_client()
    }

    /// When a tick is due, at the latest.
    pub fn next_deadline(&self) -> Option<Millis> {
        let expiry = self.params.io_timeout_ms.and_then(|timeout| {
            self.requests.first_key_value().map(|(_, r)| r.submitted.after(timeout))
        });
        let wants = matches!(self.stream, Stream::None) && self.wants_link();
        let retry = (wants && self.target().is_some()).then_some(self.retry_at);
        [expiry, retry].into_iter().flatten().min()
    }

    /// Takes one fact at `now`, which never goes back; returns what became of it and what to do.
    pub fn step(&mut self, now: Millis, input: Input) -> (Verdict, Vec<Output>) {
        let mut out = Vec::new();
        let verdict = self.handle(now, input, &mut out);
        self.expire(now, &mut out);
        self.plan(now, &mut out);
        self.assert_invariants();
        (verdict, out)
    }

    fn handle(&mut self, now: Millis, input: Input, out: &mut Vec<Output>) -> Verdict {
        match input {
            Input::Attached(client) => {
                let (generation, attach) = match (&self.stream, &self.session) {
                    (Stream::Open { .. }, SessionState::Have(session)) => {
                        (session.generation, session.attach)
                    }
                    (
                        Stream::None | Stream::Opening { .. } | Stream::Open { .. },
                        SessionState::None
                        | SessionState::Asked
                        | SessionState::Have(_)
                        | SessionState::Closed,
                    ) => (None, None),
                };
                assert!(
                    !self.exclusive || (self.clients.is_empty() && !self.had_session),
                    "F4: an exclusive attachment has one client"
                );
                let told = attach.is_some();
                let new = Client { generation, attach, told, stale: None };
                let known = self.clients.insert(client, new);
                assert!(known.is_none(), "F1: client {client:?} attached twice");
                if told {
                    out.push(Output::Attached(client));
                }
                Verdict::Applied
            }
            Input::Detached(client) => self.client_gone(client),
            Input::Submit { client, request, op } => self.submit(now, client, request, op, out),
            Input::Session(id) => self.session_drawn(id),
            Input::Config(config) => self.learn(now, config, true, out),
            Input::Deleted => {
                self.delete(out);
                Verdict::Applied
            }
            Input::LinkOpened { link, epoch, attach, loss_generation } => {
                self.link_opened(now, link, epoch, attach, loss_generation, out)
            }
            Input::LinkEnded { link, reason, config } => {
                self.link_ended(now, link, reason, config, out)
            }
            Input::LinkLost(link) => {
                if self.current_link() != Some(link) {
                    return Verdict::Ignored(Ignored::StaleLink);
                }
                self.back_off(now);
                Verdict::Applied
            }
            Input::Reply { link, sequence, outcome } => {
                self.reply(now, link, sequence, outcome, out)
            }
            Input::HeldBack(link) => self.held_back(now, link),
            Input::Close => {
                self.closing = true;
                Verdict::Applied
            }
            Input::Tick => Verdict::Applied,
        }
    }

    pub(super) fn delete(&mut self, out: &mut Vec<Output>) {
        self.deleted = true;
        self.close_link(out);
        for (id, client) in &mut self.clients {
            if !std::mem::replace(&mut client.told, true) {
                out.push(Output::Refused { client: *id, why: "the volume was deleted".to_owned() });
            }
        }
        let requests: Vec<_> = self.requests.keys().copied().collect();
        for request in requests {
            self.answer(request, Answer::Deleted, out);
        }
        self.waiting.clear();
        self.blocked.clear();
        if !matches!(self.session, SessionState::Closed) {
            self.session = SessionState::None;
        }
    }

    /// Emits what is missing.
    fn plan(&mut self, now: Millis, out: &mut Vec<Output>) {
        if self.closing && self.is_idle() && !matches!(self.session, SessionState::Closed) {
            self.plan_close(out);
        }
        if !self.wants_link() {
            return;
        }
        if matches!(self.session, SessionState::None) {
            self.session = SessionState::Asked;
            out.push(Output::NeedSession);
            return;
        }
        self.plan_shed(now, out);
        match self.stream {
            Stream::None => self.plan_open(now, out),
            Stream::Opening { .. } => {}
            Stream::Open { link, attach, .. } => self.plan_send(link, attach, out),
        }
    }

    /// Nothing was sent to the blocks of a request since that one was given up.
    fn assert_nothing_overtakes(&self, session: &Session) {
        for (sequence, GivenUp { range, from }) in &session.given_up {
            for (later, owner) in session.unresolved.range(from..) {
                let Owner::Request(id) = owner else { continue };
                let blocks = self.requests.get(id).and_then(|request| request.op.blocks());
                assert!(
                    blocks.is_none_or(|blocks| !blocks.overlaps(range)),
                    "F5: {later} goes to blocks that {sequence} may still change"
                );
            }
        }
    }

    /// Nor to the blocks of one that waits for that.
    fn assert_nothing_overtakes_the_blocked(&self, session: &Session) {
        for id in &self.blocked {
            let Some(range) = self.requests.get(id).and_then(|r| r.op.blocks()) else { continue };
            for owner in session.unresolved.values() {
                let Owner::Request(later) = owner else { continue };
                let blocks = self.requests.get(later).and_then(|request| request.op.blocks());
                assert!(
                    later < id || blocks.is_none_or(|blocks| !blocks.overlaps(&range)),
                    "F5: {later:?} overtakes {id:?}, which waits to go to the same blocks"
                );
            }
        }
    }

    fn assert_invariants(&self) {
        let unsent = self.waiting.len() + self.blocked.len();
        match &self.session {
            SessionState::Have(session) => {
                session.assert_invariants();
                assert!(unsent <= self.requests.len(), "F1: a queued request is answered already");
                assert!(
                    self.requests.len() - unsent <= session.unresolved.len(),
                    "F1: a request is neither queued nor in flight"
                );
                self.assert_nothing_overtakes(session);
                self.assert_nothing_overtakes_the_blocked(session);
            }
            SessionState::None | SessionState::Asked | SessionState::Closed => {
                assert_eq!(unsent, self.requests.len(), "F1: requests in flight without a session");
                assert!(self.current_link().is_none(), "F1: a link without a session");
            }
        }
    }
}
