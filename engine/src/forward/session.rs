//! A forwarder's session at the primary: its sequences, and its end.

use std::collections::BTreeMap;
use std::mem;

use super::forwarder::{Forwarder, Stream};
use super::io::{Answer, Ignored, Output, RequestId, Verdict};
use crate::bugs::{Bug, on};
use crate::replication::log::BlockRange;
use crate::types::{AttachGeneration, LossGeneration, SEQUENCE_WINDOW, SessionId};

#[derive(Clone, Debug)]
pub(super) enum SessionState {
    None,
    /// [`Output::NeedSession`] is out.
    Asked,
    Have(Session),
    /// [`Output::Closed`] is out.
    Closed,
}

#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) id: SessionId,
    /// From the first opened link; `None` while the session may still be created.
    pub(super) generation: Option<LossGeneration>,
    /// Its own attach generation, from the first opened link.
    pub(super) attach: Option<AttachGeneration>,
    /// Exclusive: the generation that was in force when it was asked for, and where it counts.
    pub(super) over: Option<(AttachGeneration, LossGeneration)>,
    pub(super) next_sequence: u64,
    /// Every sequence up to here is settled: never sent (again).
    pub(super) low: u64,
    /// The sequences that are not, by whom they belong to.
    pub(super) unresolved: BTreeMap<u64, Owner>,
    /// What given-up requests may still change.
    pub(super) given_up: BTreeMap<u64, GivenUp>,
    /// Payload bytes of given-up requests that the open stream may still carry.
    pub(super) adrift: u64,
}

/// The blocks that a request may still change that was given up before its fate was known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GivenUp {
    pub(super) range: BlockRange,
    /// The first sequence that was free then: none from there on goes to these blocks.
    pub(super) from: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Request(RequestId),
    /// Its client was told an error or is gone. Never sent again. It has so many payload bytes.
    GivenUp(u64),
    /// The session's end.
    Detach,
}

impl Forwarder {
    pub(super) fn session_drawn(&mut self, id: SessionId) -> Verdict {
        if !matches!(self.session, SessionState::Asked) {
            return Verdict::Ignored(Ignored::SessionNotNeeded);
        }
        assert!(
            !(self.exclusive && self.had_session) || on(Bug::ReattachByItself),
            "F4: an exclusive attachment has one session"
        );
        self.had_session = true;
        self.session = SessionState::Have(Session {
            id,
            generation: None,
            attach: None,
            over: self.follows.map(|before| (before.generation, before.loss_generation)),
            next_sequence: 1,
            low: 0,
            unresolved: BTreeMap::new(),
            given_up: BTreeMap::new(),
            adrift: 0,
        });
        Verdict::Applied
    }

    /// The session is over at the primary: what was in flight fails, what was not goes on in a
    /// fresh one.
    pub(super) fn end_session(&mut self, reason: &str, out: &mut Vec<Output>) {
        let SessionState::Have(session) = mem::replace(&mut self.session, SessionState::None)
        else {
            panic!("a link ended without a session");
        };
        for owner in session.unresolved.into_values() {
            match owner {
                Owner::Request(request) => self.answer(request, Answer::Failed(reason.into()), out),
                Owner::GivenUp(_) => {}
                Owner::Detach => self.closed(out),
            }
        }
        self.unblock();
    }

    pub(super) fn closed(&mut self, out: &mut Vec<Output>) {
        self.session = SessionState::Closed;
        out.push(Output::Closed);
    }

    /// Nothing is in flight: tell the primary, if it knows the session.
    pub(super) fn plan_close(&mut self, out: &mut Vec<Output>) {
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
}

impl Session {
    /// The loss generation of what it names when it asks for a link.
    pub(super) fn age(&self) -> Option<LossGeneration> {
        let told = self.over.map(|(_, loss)| loss);
        self.generation.or(told.filter(|_| !on(Bug::AttachAcrossLoss)))
    }

    /// Gives the next sequence to `owner`.
    pub(super) fn take_sequence(&mut self, owner: Owner) -> u64 {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.unresolved.insert(sequence, owner);
        self.settle();
        sequence
    }

    /// Moves the low-water mark up to the first unresolved sequence.
    pub(super) fn settle(&mut self) {
        let first = self.unresolved.first_key_value().map_or(self.next_sequence, |(s, _)| *s);
        let first = if on(Bug::LowPassesUnknown) { self.next_sequence } else { first };
        assert!(first > self.low, "F2: the low-water mark {} passed sequence {first}", self.low);
        self.low = first - 1;
    }

    pub(super) fn assert_invariants(&self) {
        if let Some((first, _)) = self.unresolved.first_key_value() {
            assert!(*first > self.low, "F2: sequence {first} at or below low {}", self.low);
        }
        if let Some((last, _)) = self.unresolved.last_key_value() {
            assert!(*last <= self.low + SEQUENCE_WINDOW, "F3: sequence {last} beyond the window");
            assert!(*last < self.next_sequence, "F2: sequence {last} was never given");
        }
        assert!(self.given_up.len() <= self.unresolved.len(), "F1: given up twice");
    }
}
