//! A forwarder's requests, from their submission to their answer.

use super::forwarder::{Forwarder, Request, Stream};
use super::io::{Answer, ClientId, Ignored, LinkId, Op, Output, RequestId, Verdict};
use super::session::{GivenUp, Owner, SessionState};
use crate::bugs::{Bug, on};
use crate::replication::io::Outcome;
use crate::types::{AttachGeneration, Millis, SEQUENCE_WINDOW};

impl Forwarder {
    pub(super) fn submit(
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
        if let Some(why) = self.clients[&client].stale.clone() {
            out.push(Output::Answer { request, answer: Answer::Failed(why) });
            return Verdict::Applied;
        }
        let newest = self.requests.last_key_value().map(|(id, _)| *id);
        assert!(
            newest.is_none_or(|newest| newest < request),
            "F1: request ids go back: {request:?}"
        );
        self.requests.insert(request, Request { client, op, submitted: now, sequence: None });
        self.bytes += op.payload_len();
        self.waiting.push_back(request);
        Verdict::Applied
    }

    pub(super) fn reply(
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
        if let Owner::GivenUp(bytes) = owner {
            session.adrift -= bytes;
        }
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
            Owner::GivenUp(_) => {}
            Owner::Detach => {
                self.close_link(out);
                self.closed(out);
            }
        }
        Verdict::Applied
    }

    /// Answers a request that is in no queue any more.
    pub(super) fn answer(&mut self, request: RequestId, answer: Answer, out: &mut Vec<Output>) {
        let known = self.requests.remove(&request).expect("only unanswered requests are answered");
        self.bytes -= known.op.payload_len();
        out.push(Output::Answer { request, answer });
    }

    /// Leaves the fate of a request to the primary: it is not sent again, and others to its blocks
    /// wait until it can't take effect late.
    pub(super) fn give_up(&mut self, id: RequestId) {
        let request = self.requests.remove(&id).expect("only unanswered requests are given up");
        let bytes = request.op.payload_len();
        self.bytes -= bytes;
        match (request.sequence, &mut self.session) {
            (Some(sequence), SessionState::Have(session)) => {
                let owner = session.unresolved.insert(sequence, Owner::GivenUp(bytes));
                session.adrift += bytes;
                assert_eq!(
                    owner,
                    Some(Owner::Request(id)),
                    "F1: sequence {sequence} changed hands"
                );
                if let Some(range) = request.op.changes() {
                    let from = session.next_sequence;
                    session.given_up.insert(sequence, GivenUp { range, from });
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

    pub(super) fn client_gone(&mut self, client: ClientId) -> Verdict {
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
    pub(super) fn refuse_stale(&mut self, out: &mut Vec<Output>) {
        let clients = &self.clients;
        let refused = |r: &Request| clients.get(&r.client).and_then(|c| c.stale.clone());
        let its: Vec<_> = self
            .requests
            .iter()
            .filter(|(_, r)| r.sequence.is_none())
            .filter_map(|(id, r)| refused(r).map(|why| (*id, why)))
            .collect();
        for (id, why) in its {
            self.waiting.retain(|other| *other != id);
            self.blocked.retain(|other| *other != id);
            self.answer(id, Answer::Failed(why), out);
        }
    }

    pub(super) fn unblock(&mut self) {
        if self.blocked.is_empty() {
            return;
        }
        let mut all: Vec<_> = self.blocked.drain(..).chain(self.waiting.drain(..)).collect();
        all.sort_unstable();
        self.waiting = all.into();
    }

    pub(super) fn expire(&mut self, now: Millis, out: &mut Vec<Output>) {
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

    /// A primary that says that it holds requests back has answered: their time begins anew, also of those
    /// that wait here for those before them. Silence is what a request fails for: of many frontends that
    /// share a volume with low limits, each one's turn may be further off than that.
    pub(super) fn held_back(&mut self, now: Millis, link: LinkId) -> Verdict {
        if !matches!(self.stream, Stream::Open { link: open, .. } if open == link) {
            return Verdict::Ignored(Ignored::StaleLink);
        }
        for request in self.requests.values_mut() {
            request.submitted = now;
        }
        Verdict::Applied
    }

    pub(super) fn plan_send(
        &mut self,
        link: LinkId,
        attach: AttachGeneration,
        out: &mut Vec<Output>,
    ) {
        while let Some(id) = self.waiting.front().copied() {
            let SessionState::Have(session) = &mut self.session else {
                panic!("an open link without a session");
            };
            if session.next_sequence > session.low + SEQUENCE_WINDOW {
                return;
            }
            self.waiting.pop_front();
            let request = self.requests.get(&id).expect("a waiting request is unanswered");
            let late = request.op.blocks().is_some_and(|blocks| {
                session.given_up.values().any(|given_up| given_up.range.overlaps(&blocks))
                    || self.blocked.iter().any(|id| {
                        let before = self.requests.get(id).and_then(|r| r.op.blocks());
                        before.is_some_and(|before| before.overlaps(&blocks))
                    })
            });
            if late && !on(Bug::GivenUpForgotten) {
                self.blocked.push_back(id);
                continue;
            }
            let sequence = session.take_sequence(Owner::Request(id));
            let low = session.low;
            self.requests.entry(id).and_modify(|request| request.sequence = Some(sequence));
            out.push(self.send(link, attach, low, sequence, Owner::Request(id)));
        }
    }
}
