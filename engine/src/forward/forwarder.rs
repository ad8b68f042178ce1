//! The state machine of one frontend session.

use std::collections::{BTreeMap, VecDeque};
use std::mem;

use super::io::{Answer, ClientId, Ignored, Input, LinkId, Op, Output, Params, RequestId, Verdict};
use crate::replication::io::{Outcome, StreamEnd};
use crate::replication::log::BlockRange;
use crate::types::{
    AttachGeneration, Config, Epoch, LossGeneration, Millis, ReplicaRef, SEQUENCE_WINDOW,
    SessionId, VolumeId,
};

/// One frontend session of one volume, shared by all clients of one datanode.
///
/// Handlers record facts; [`plan`](Self::plan) at the end of each step emits what is missing, so
/// a forgotten retry repairs itself at the next step.
#[derive(Clone, Debug)]
pub struct Forwarder {
    volume: VolumeId,
    params: Params,
    /// The newest configuration known.
    config: Option<Config>,
    clients: BTreeMap<ClientId, Client>,
    /// Unanswered requests, oldest first.
    requests: BTreeMap<RequestId, Request>,
    /// Those without a sequence, oldest first.
    waiting: VecDeque<RequestId>,
    /// Those without a sequence whose blocks a given-up request may still change.
    blocked: VecDeque<RequestId>,
    session: SessionState,
    stream: Stream,
    next_link: u64,
    /// When the next attempt at a link may start, and how long the wait after it will be.
    retry_at: Millis,
    retry_ms: u64,
    /// Payload bytes of `requests`.
    bytes: u64,
    closing: bool,
    deleted: bool,
}

#[derive(Clone, Debug)]
struct Client {
    /// The loss generation that its view of the volume rests on; `None` before the first link.
    generation: Option<LossGeneration>,
    /// Why it gets nothing but errors.
    stale: Option<&'static str>,
}

#[derive(Clone, Copy, Debug)]
struct Request {
    client: ClientId,
    op: Op,
    submitted: Millis,
    sequence: Option<u64>,
}

#[derive(Clone, Debug)]
enum SessionState {
    None,
    /// [`Output::NeedSession`] is out.
    Asked,
    Have(Session),
    /// [`Output::Closed`] is out.
    Closed,
}

#[derive(Clone, Debug)]
struct Session {
    id: SessionId,
    /// From the first opened link; `None` while the session may still be created.
    generation: Option<LossGeneration>,
    next_sequence: u64,
    /// Every sequence up to here is settled: never sent (again).
    low: u64,
    /// The sequences that are not, by whom they belong to.
    unresolved: BTreeMap<u64, Owner>,
    /// The blocks that given-up requests may still change.
    given_up: BTreeMap<u64, BlockRange>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Request(RequestId),
    /// Its client was told an error or is gone. Never sent again.
    GivenUp,
    /// The session's end.
    Detach,
}

#[derive(Clone, Debug)]
enum Stream {
    None,
    Opening { link: LinkId, primary: ReplicaRef },
    Open { link: LinkId, primary: ReplicaRef, epoch: Epoch, attach: AttachGeneration },
}

const LOST_DATA: &str = "acknowledged writes may have been lost by a promotion with --accept-data-loss; \
     check the data, then connect again";
const LOST_ATTACHMENT: &str = "a newer attachment took the volume; connect again to use it here";
const LOST_SESSION: &str = "the primary's log does not know this frontend session any more, so it is unknown \
     whether the request took effect";

impl Forwarder {
    /// A forwarder for the volume, with no client and no session yet.
    pub fn new(volume: VolumeId, params: Params) -> Self {
        assert!(params.retry_min_ms > 0, "a retry without a wait would spin");
        Self {
            volume,
            params,
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

    /// When a tick is due, at the latest.
    pub fn next_deadline(&self) -> Option<Millis> {
        let expiry = self.params.io_timeout_ms.and_then(|timeout| {
            self.requests.first_key_value().map(|(_, r)| r.submitted.after(timeout))
        });
        let retry =
            (matches!(self.stream, Stream::None) && self.wants_link()).then_some(self.retry_at);
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
                let generation = match (&self.stream, &self.session) {
                    (Stream::Open { .. }, SessionState::Have(session)) => session.generation,
                    (
                        Stream::None | Stream::Opening { .. } | Stream::Open { .. },
                        SessionState::None
                        | SessionState::Asked
                        | SessionState::Have(_)
                        | SessionState::Closed,
                    ) => None,
                };
                let known = self.clients.insert(client, Client { generation, stale: None });
                assert!(known.is_none(), "client {client:?} attached twice");
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
            Input::Close => {
                self.closing = true;
                Verdict::Applied
            }
            Input::Tick => Verdict::Applied,
        }
    }

    fn submit(
        &mut self,
        now: Millis,
        client: ClientId,
        request: RequestId,
        op: Op,
        out: &mut Vec<Output>,
    ) -> Verdict {
        let refusal = match self.clients.get(&client) {
            None => Some(Ignored::UnknownClient),
            Some(_) if self.deleted => Some(Ignored::Deleted),
            Some(_) => None,
        };
        if let Some(ignored) = refusal {
            let answer = match ignored {
                Ignored::Deleted => Answer::Deleted,
                Ignored::UnknownClient
                | Ignored::StaleLink
                | Ignored::KnownConfig
                | Ignored::WrongVolume
                | Ignored::SessionNotNeeded => Answer::Failed("the client left".into()),
            };
            out.push(Output::Answer { request, answer });
            return Verdict::Ignored(ignored);
        }
        if let Some(reason) = self.clients[&client].stale {
            out.push(Output::Answer { request, answer: Answer::Failed(reason.into()) });
            return Verdict::Applied;
        }
        let newest = self.requests.last_key_value().map(|(id, _)| *id);
        assert!(newest.is_none_or(|newest| newest < request), "request ids go back: {request:?}");
        self.requests.insert(request, Request { client, op, submitted: now, sequence: None });
        self.bytes += op.payload_len();
        self.waiting.push_back(request);
        Verdict::Applied
    }

    fn session_drawn(&mut self, id: SessionId) -> Verdict {
        if !matches!(self.session, SessionState::Asked) {
            return Verdict::Ignored(Ignored::SessionNotNeeded);
        }
        self.session = SessionState::Have(Session {
            id,
            generation: None,
            next_sequence: 1,
            low: 0,
            unresolved: BTreeMap::new(),
            given_up: BTreeMap::new(),
        });
        Verdict::Applied
    }

    /// A configuration counts only if it is newer. The catalogue's word on addresses always does.
    fn learn(
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

    fn link_opened(
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
        if session.generation.is_some_and(|g| g != loss) {
            out.push(Output::CloseLink(link));
            self.back_off(now);
            self.end_session(LOST_SESSION, out);
            return Verdict::Applied;
        }
        self.stream = Stream::Open { link, primary, epoch, attach };
        self.retry_ms = self.params.retry_min_ms;
        for client in self.clients.values_mut() {
            let seen = *client.generation.get_or_insert(loss);
            if seen < loss && client.stale.is_none() {
                client.stale = Some(LOST_DATA);
            }
        }
        self.refuse_stale(out);
        let SessionState::Have(session) = &mut self.session else {
            panic!("a link was opened without a session");
        };
        session.generation = Some(loss);
        // What an older stream has not logged died with it, so what was given up can't take
        // effect late any more, and is never sent again.
        session.unresolved.retain(|_, owner| *owner != Owner::GivenUp);
        session.given_up.clear();
        session.settle();
        self.unblock();
        self.resend(out);
        Verdict::Applied
    }

    /// Sends the unresolved requests of older streams, in order.
    fn resend(&self, out: &mut Vec<Output>) {
        let (Stream::Open { link, attach, .. }, SessionState::Have(session)) =
            (&self.stream, &self.session)
        else {
            panic!("sending needs a session and an open link");
        };
        for (sequence, owner) in &session.unresolved {
            out.push(self.send(*link, *attach, session.low, *sequence, *owner));
        }
    }

    fn send(
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
            Owner::GivenUp => panic!("sequence {sequence} was given up and must not be sent"),
        }
    }

    fn newest_epoch(&self) -> Epoch {
        let known = self.config.as_ref().map_or(Epoch(0), |c| c.epoch);
        match self.stream {
            Stream::Open { epoch, .. } => epoch.max(known),
            Stream::None | Stream::Opening { .. } => known,
        }
    }

    fn link_ended(
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
            StreamEnd::SessionLost => self.end_session(LOST_SESSION, out),
            StreamEnd::AttachLost => {
                self.end_session(LOST_ATTACHMENT, out);
                for client in self.clients.values_mut() {
                    client.stale.get_or_insert(LOST_ATTACHMENT);
                }
                self.refuse_stale(out);
            }
            StreamEnd::Deleted => self.delete(out),
        }
        if let Some(config) = config {
            self.learn(now, config, false, out);
        }
        Verdict::Applied
    }

    /// The session is over at the primary: what was in flight fails, what was not goes on in a
    /// fresh one.
    fn end_session(&mut self, reason: &str, out: &mut Vec<Output>) {
        let SessionState::Have(session) = mem::replace(&mut self.session, SessionState::None)
        else {
            panic!("a link ended without a session");
        };
        for owner in session.unresolved.into_values() {
            match owner {
                Owner::Request(request) => self.answer(request, Answer::Failed(reason.into()), out),
                Owner::GivenUp => {}
                Owner::Detach => self.closed(out),
            }
        }
        self.unblock();
    }

    fn closed(&mut self, out: &mut Vec<Output>) {
        self.session = SessionState::Closed;
        out.push(Output::Closed);
    }

    fn delete(&mut self, out: &mut Vec<Output>) {
        self.deleted = true;
        self.close_link(out);
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

    fn reply(
        &mut self,
        now: Millis,
        link: LinkId,
        sequence: u64,
        outcome: Outcome,
        out: &mut Vec<Output>,
    ) -> Verdict {
        let open = matches!(self.stream, Stream::Open { link: open, .. } if open == link);
        let SessionState::Have(session) = &mut self.session else {
            return Verdict::Ignored(Ignored::StaleLink);
        };
        if !open {
            return Verdict::Ignored(Ignored::StaleLink);
        }
        let Some(owner) = session.unresolved.remove(&sequence) else {
            // The peer answers what was not asked: nothing that it says can be trusted.
            out.push(Output::CloseLink(link));
            self.back_off(now);
            return Verdict::Applied;
        };
        let was_given_up = session.given_up.remove(&sequence).is_some();
        session.settle();
        if was_given_up {
            self.unblock();
        }
        match owner {
            Owner::Request(request) => {
                let answer = match outcome {
                    Outcome::Done => Answer::Done,
                    Outcome::Invalid(why) => Answer::Invalid(why),
                    Outcome::Failed(why) => Answer::Failed(why),
                };
                self.answer(request, answer, out);
            }
            Owner::GivenUp => {}
            Owner::Detach => {
                self.close_link(out);
                self.closed(out);
            }
        }
        Verdict::Applied
    }

    /// Answers a request that is in no queue any more.
    fn answer(&mut self, request: RequestId, answer: Answer, out: &mut Vec<Output>) {
        let known = self.requests.remove(&request).expect("only unanswered requests are answered");
        self.bytes -= known.op.payload_len();
        out.push(Output::Answer { request, answer });
    }

    /// Leaves the fate of a request to the primary: it is not sent again, and others to its blocks
    /// wait until it can't take effect late.
    fn give_up(&mut self, id: RequestId) {
        let request = self.requests.remove(&id).expect("only unanswered requests are given up");
        self.bytes -= request.op.payload_len();
        match (request.sequence, &mut self.session) {
            (Some(sequence), SessionState::Have(session)) => {
                let owner = session.unresolved.insert(sequence, Owner::GivenUp);
                assert_eq!(owner, Some(Owner::Request(id)), "sequence {sequence} changed hands");
                if let Some(range) = request.op.changes() {
                    session.given_up.insert(sequence, range);
                }
            }
            (Some(_), SessionState::None | SessionState::Asked | SessionState::Closed) => {
                panic!("request {id:?} has a sequence of no session")
            }
            (None, _) => {
                self.waiting.retain(|other| *other != id);
                self.blocked.retain(|other| *other != id);
            }
        }
    }

    fn client_gone(&mut self, client: ClientId) -> Verdict {
        if self.clients.remove(&client).is_none() {
            return Verdict::Ignored(Ignored::UnknownClient);
        }
        let its = self.requests.iter().filter(|(_, r)| r.client == client);
        let its: Vec<_> = its.map(|(id, _)| *id).collect();
        for id in its {
            self.give_up(id);
        }
        Verdict::Applied
    }

    /// Fails what clients asked for that may not go on. None of it was sent: a session's end, which
    /// comes before, failed the rest.
    fn refuse_stale(&mut self, out: &mut Vec<Output>) {
        let clients = &self.clients;
        let refused = |r: &Request| clients.get(&r.client).and_then(|c| c.stale);
        let its: Vec<_> = self
            .requests
            .iter()
            .filter(|(_, r)| r.sequence.is_none())
            .filter_map(|(id, r)| refused(r).map(|why| (*id, why)))
            .collect();
        for (id, why) in its {
            self.waiting.retain(|other| *other != id);
            self.blocked.retain(|other| *other != id);
            self.answer(id, Answer::Failed(why.into()), out);
        }
    }

    fn unblock(&mut self) {
        if self.blocked.is_empty() {
            return;
        }
        let mut all: Vec<_> = self.blocked.drain(..).chain(self.waiting.drain(..)).collect();
        all.sort_unstable();
        self.waiting = all.into();
    }

    fn expire(&mut self, now: Millis, out: &mut Vec<Output>) {
        let Some(timeout) = self.params.io_timeout_ms else { return };
        while let Some((id, request)) = self.requests.first_key_value() {
            if request.submitted.after(timeout) > now {
                return;
            }
            let id = *id;
            self.give_up(id);
            let why = format!(
                "no primary of volume {} answered within {} s; see `sbkctl volume show`",
                self.volume,
                timeout / 1000
            );
            out.push(Output::Answer { request: id, answer: Answer::Failed(why) });
        }
    }

    fn current_link(&self) -> Option<LinkId> {
        match self.stream {
            Stream::None => None,
            Stream::Opening { link, .. } | Stream::Open { link, .. } => Some(link),
        }
    }

    fn close_link(&mut self, out: &mut Vec<Output>) {
        if let Some(link) = self.current_link() {
            out.push(Output::CloseLink(link));
            self.stream = Stream::None;
        }
    }

    /// The current link is over; the next attempt waits.
    fn back_off(&mut self, now: Millis) {
        self.stream = Stream::None;
        self.retry_at = now.after(self.retry_ms);
        self.retry_ms = (self.retry_ms * 2).min(self.params.retry_max_ms.max(1));
    }

    fn wants_link(&self) -> bool {
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

    fn has_usable_client(&self) -> bool {
        self.clients.values().any(|c| c.stale.is_none())
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
        match self.stream {
            Stream::None => self.plan_open(now, out),
            Stream::Opening { .. } => {}
            Stream::Open { link, attach, .. } => self.plan_send(link, attach, out),
        }
    }

    /// Nothing is in flight: tell the primary, if it knows the session.
    fn plan_close(&mut self, out: &mut Vec<Output>) {
        let open = match self.stream {
            Stream::Open { link, attach, .. } => Some((link, attach)),
            Stream::None | Stream::Opening { .. } => None,
        };
        match (&mut self.session, open) {
            (SessionState::Have(session), Some((link, attach))) => {
                let sequence = session.take_sequence(Owner::Detach);
                let low = session.low;
                out.push(self.send(link, attach, low, sequence, Owner::Detach));
            }
            (SessionState::Have(session), None)
                if !self.deleted && session.generation.is_some() => {}
            (
                SessionState::None
                | SessionState::Asked
                | SessionState::Have(_)
                | SessionState::Closed,
                _,
            ) => {
                self.close_link(out);
                self.closed(out);
            }
        }
    }

    fn plan_open(&mut self, now: Millis, out: &mut Vec<Output>) {
        let (SessionState::Have(session), Some(config)) = (&self.session, &self.config) else {
            return;
        };
        let Some(place) = config.replicas.get(&config.primary.id) else { return };
        if now < self.retry_at {
            return;
        }
        let link = LinkId(self.next_link);
        self.next_link += 1;
        self.stream = Stream::Opening { link, primary: config.primary };
        out.push(Output::Open {
            link,
            node: place.node,
            addr: place.addr.clone(),
            primary: config.primary,
            session: session.id,
            create: session.generation.is_none(),
            loss_generation: session.generation,
        });
    }

    fn plan_send(&mut self, link: LinkId, attach: AttachGeneration, out: &mut Vec<Output>) {
        while let Some(id) = self.waiting.front().copied() {
            let SessionState::Have(session) = &mut self.session else {
                panic!("an open link without a session");
            };
            if session.next_sequence > session.low + SEQUENCE_WINDOW {
                return;
            }
            self.waiting.pop_front();
            let request = self.requests.get_mut(&id).expect("a waiting request is unanswered");
            let late = request.op.blocks().is_some_and(|blocks| {
                session.given_up.values().any(|given_up| given_up.overlaps(&blocks))
            });
            if late {
                self.blocked.push_back(id);
                continue;
            }
            let sequence = session.take_sequence(Owner::Request(id));
            request.sequence = Some(sequence);
            let low = session.low;
            out.push(self.send(link, attach, low, sequence, Owner::Request(id)));
        }
    }

    fn assert_invariants(&self) {
        let unsent = self.waiting.len() + self.blocked.len();
        match &self.session {
            SessionState::Have(session) => {
                session.assert_invariants();
                assert!(unsent <= self.requests.len(), "a queued request is answered already");
                assert!(
                    self.requests.len() - unsent <= session.unresolved.len(),
                    "a request is neither queued nor in flight"
                );
            }
            SessionState::None | SessionState::Asked | SessionState::Closed => {
                assert_eq!(unsent, self.requests.len(), "requests in flight without a session");
                assert!(self.current_link().is_none(), "a link without a session");
            }
        }
    }
}

impl Session {
    /// Gives the next sequence to `owner`.
    fn take_sequence(&mut self, owner: Owner) -> u64 {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.unresolved.insert(sequence, owner);
        self.settle();
        sequence
    }

    /// Moves the low-water mark up to the first unresolved sequence.
    fn settle(&mut self) {
        let first = self.unresolved.first_key_value().map_or(self.next_sequence, |(s, _)| *s);
        assert!(first > self.low, "the low-water mark {} passed sequence {first}", self.low);
        self.low = first - 1;
    }

    fn assert_invariants(&self) {
        if let Some((first, _)) = self.unresolved.first_key_value() {
            assert!(*first > self.low, "sequence {first} at or below low {}", self.low);
        }
        if let Some((last, _)) = self.unresolved.last_key_value() {
            assert!(*last <= self.low + SEQUENCE_WINDOW, "sequence {last} beyond the window");
            assert!(*last < self.next_sequence, "sequence {last} was never given");
        }
        assert!(self.given_up.len() <= self.unresolved.len(), "given up twice");
    }
}
