//! Attachments: which frontend sessions may use the volume.
//!
//! An attachment is an entry in the log. One with a higher generation ends all before it: no request
//! of an older one is logged behind it. So a ghost (a holder that was frozen or cut off and does not
//! know that its volume went to another) can't overwrite what its successor wrote, whichever replica
//! it finds as primary, for each has the entry before it has anything of the successor.
//!
//! Until the entry of a new generation is answerable its fate is open: a failover may cut it, and then
//! the attachments before it are in force as if nothing had been asked. So nobody is told anything
//! before that, and the requests of the older ones wait.

use serde::{Deserialize, Serialize};

use super::clients::StreamStage;
use super::core::Core;
use super::io::{Attach, HeldBy, Output, Payload, Request, StreamEnd, StreamId};
use super::log::{EntryKind, Origin, RequestTag};
use super::primary::Primary;
use super::view::AttachmentView;
use crate::bugs::{Bug, on};
use crate::types::{AttachGeneration, Lsn, MAX_SESSIONS, Millis, NodeId, SessionId};

/// What this primary knows of a session beside the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    node: NodeId,
    since: Millis,
}

/// What becomes of a stream that waits.
enum Admission {
    /// It goes on waiting.
    Later,
    Refused(StreamEnd),
    /// It is open once everything up to there is answerable.
    At(Lsn),
}

impl Primary {
    /// The highest generation whose entry is answerable: what clients may have been told.
    pub(super) fn decided(&self, core: &Core) -> AttachGeneration {
        let log = &core.log;
        if log.state.attach == log.committed_state.attach {
            return log.state.attach;
        }
        let upto = self.answerable(core).unwrap_or_default();
        let above = log.uncommitted.iter().take_while(|header| header.lsn <= upto);
        let generations = above.filter_map(|header| match header.kind {
            EntryKind::Attach { generation, .. } => Some(generation),
            EntryKind::Write { .. }
            | EntryKind::Trim { .. }
            | EntryKind::Zero { .. }
            | EntryKind::Close { .. }
            | EntryKind::Resize { .. } => None,
        });
        generations.max().unwrap_or_default().max(log.committed_state.attach)
    }

    /// Gives the streams that wait what they may have.
    pub(super) fn open_waiting(&mut self, core: &mut Core) {
        for (id, session, attach) in self.clients.waiting() {
            match self.admit(core, session, attach) {
                Admission::Later => {}
                Admission::Refused(reason) => self.clients.end(&mut core.out, id, reason),
                Admission::At(lsn) => self.clients.set_stage(id, StreamStage::Attaching { lsn }),
            }
        }
    }

    fn admit(&mut self, core: &mut Core, session: SessionId, attach: Attach) -> Admission {
        let (newest, decided) = (core.log.state.attach, self.decided(core));
        let known = core.log.state.sessions.get(&session).map(|log| log.attach);
        if let Some(own) = known {
            // Under that name it comes again, whether or not it learned that it was here.
            return admit_again(core, own, decided);
        }
        match attach {
            Attach::Again(own) if own < newest && !on(Bug::OlderAttachment) => {
                match own < decided {
                    true => Admission::Refused(StreamEnd::AttachLost),
                    false => Admission::Later,
                }
            }
            Attach::Again(_) if on(Bug::UnknownSession) => Admission::At(core.log.end),
            Attach::Again(_) => Admission::Refused(StreamEnd::SessionLost),
            Attach::Shared
            | Attach::Exclusive { .. }
            | Attach::Follow { .. }
            | Attach::Revoke { .. }
                if decided < newest =>
            {
                Admission::Later
            }
            Attach::Shared => match core.log.state.exclusive {
                Some(holder) => {
                    let by = Box::new(self.held_by(core, holder));
                    Admission::Refused(StreamEnd::Held(by))
                }
                None => self.attach(core, Some(session), newest, false),
            },
            Attach::Exclusive { over: None } => {
                let loss_generation = self.config.loss_generation;
                Admission::Refused(StreamEnd::AttachOver { attach: newest, loss_generation })
            }
            Attach::Exclusive { over: Some(over) } if over == newest => {
                self.attach(core, Some(session), newest.next(), true)
            }
            Attach::Exclusive { over: Some(_) } => Admission::Refused(StreamEnd::AttachLost),
            // The generation alone doesn't tell: one whose holder has left is in force still, and
            // others share the volume in it. Who holds it has held it ever since its entry: what ends
            // that, ends it for good. [A device's process detached as it failed, a client came and
            // wrote, and the next process gave the device's user the volume under its feet.]
            Attach::Follow { over, session: before }
                if over == newest && core.log.state.exclusive == Some(before) =>
            {
                self.attach(core, Some(session), newest.next(), true)
            }
            Attach::Follow { .. } => Admission::Refused(StreamEnd::AttachLost),
            Attach::Revoke { upto } if upto < newest => {
                Admission::Refused(StreamEnd::Revoked(newest))
            }
            Attach::Revoke { .. } => {
                // Its stream waits on: when the entry is answerable, the generation was passed.
                self.attach(core, None, newest.next(), false);
                Admission::Later
            }
        }
    }

    /// Logs an attachment, or the end of all.
    fn attach(
        &mut self,
        core: &mut Core,
        session: Option<SessionId>,
        generation: AttachGeneration,
        exclusive: bool,
    ) -> Admission {
        if self.is_crowded(core) {
            return Admission::Later;
        }
        if session.is_some() && !self.make_room(core) {
            return Admission::Refused(StreamEnd::TooManySessions);
        }
        if generation > core.log.state.attach {
            let what = match (session, exclusive) {
                (Some(session), _) => format!("session {session} attaches exclusively"),
                (None, _) => "an operator ends all attachments".to_owned(),
            };
            core.trace("attach", format!("{what}, in generation {generation}"));
        }
        let tag = session.map(|session| RequestTag { session, sequence: 0 });
        let origin = tag.map(|tag| Origin { tag, low: 0 });
        let kind = EntryKind::Attach { generation, exclusive };
        Admission::At(self.append(core, kind, origin, Payload::Empty))
    }

    /// Closes a session if there are too many: one that is over, else the one that was idle for
    /// longest. `false` if all are in use.
    fn make_room(&mut self, core: &mut Core) -> bool {
        let state = &core.log.state;
        if state.sessions.len() < MAX_SESSIONS {
            return true;
        }
        let idle = state
            .sessions
            .iter()
            .filter(|(id, _)| !self.clients.is_live(**id) && state.exclusive != Some(**id))
            .min_by_key(|(_, log)| (log.attach == state.attach, log.newest))
            .map(|(id, _)| *id);
        let Some(session) = idle else { return false };
        self.append(core, EntryKind::Close { session }, None, Payload::Empty);
        true
    }

    /// Why the request's stream may ask for nothing any more.
    pub(super) fn refusal(&self, core: &Core, request: &Request) -> Option<StreamEnd> {
        if request.epoch < self.config.since {
            return Some(StreamEnd::NotPrimary);
        }
        if request.attach < self.decided(core) && !on(Bug::OlderAttachment) {
            return Some(StreamEnd::AttachLost);
        }
        let Some(log) = core.log.state.sessions.get(&request.tag.session) else {
            return (!on(Bug::UnknownSession)).then_some(StreamEnd::SessionLost);
        };
        let its_own = log.attach == request.attach;
        (!its_own && !on(Bug::GenerationOfNow)).then_some(StreamEnd::AttachLost)
    }

    /// Whether an attachment whose fate is open would end the request's: it gets no LSN before that
    /// is known.
    pub(super) fn undecided(&self, core: &Core, request: &Request) -> bool {
        let newest = core.log.state.attach;
        request.attach < newest
            && request.attach >= self.decided(core)
            && !on(Bug::OlderAttachment)
            && !on(Bug::AttachAtReceipt)
    }

    /// Opens the streams whose attachment is answerable, and ends those whose attachment has ended.
    pub(super) fn finish_attaching(&mut self, core: &mut Core, answerable: Option<Lsn>) {
        let (epoch, loss_generation) = (self.config.epoch, self.config.loss_generation);
        let decided = self.decided(core);
        let upto = if on(Bug::AttachUncommitted) { Some(core.log.end) } else { answerable };
        for (id, session, stage) in self.clients.attached() {
            let own = core.log.state.sessions.get(&session).map(|log| log.attach);
            if own.is_some_and(|own| own < decided)
                && !on(Bug::OlderAttachment)
                && !on(Bug::GenerationOfNow)
            {
                core.trace("attach-lost", format!("session {session}: a newer attachment came"));
                self.clients.end(&mut core.out, id, StreamEnd::AttachLost);
                continue;
            }
            let StreamStage::Attaching { lsn } = stage else { continue };
            if Some(lsn) <= upto {
                self.clients.set_stage(id, StreamStage::Open);
                let attach = own.filter(|_| !on(Bug::GenerationOfNow));
                let attach = attach.unwrap_or(core.log.state.attach);
                core.out.push(Output::StreamOpened { stream: id, epoch, attach, loss_generation });
            }
        }
    }

    /// What is known of a session that holds the volume.
    fn held_by(&self, core: &Core, session: SessionId) -> HeldBy {
        let seen = self.clients.seen.get(&session);
        HeldBy {
            session,
            attach: core.log.state.attach,
            node: seen.map(|seen| seen.node),
            held_ms: seen.map(|seen| core.now.since(seen.since)),
        }
    }

    /// Remembers through which node a session comes.
    pub(super) fn note_seen(&mut self, core: &Core, session: SessionId, node: NodeId) {
        let known = &core.log.state.sessions;
        let clients = &mut self.clients;
        let live = &clients.live;
        clients.seen.retain(|id, _| known.contains_key(id) || live.contains_key(id));
        let seen = clients.seen.entry(session).or_insert(Seen { node, since: core.now });
        seen.node = node;
    }

    /// The attachments in force. An operator names their generation when he ends them, so what may be
    /// cut is not shown: its number may come again for another.
    pub(super) fn attachments(&self, core: &Core, now: Millis) -> Vec<AttachmentView> {
        let decided = self.decided(core);
        let newest = &core.log.state;
        // Whom a newer generation is to end has the volume to itself until then.
        let state = if decided == newest.attach { newest } else { &core.log.committed_state };
        let held = newest.sessions.iter().filter(|(_, log)| log.attach == decided);
        let view = |(id, log): (&SessionId, &super::log::SessionLog)| {
            let seen = self.clients.seen.get(id);
            AttachmentView {
                session: *id,
                generation: log.attach,
                exclusive: state.exclusive == Some(*id),
                connected: self.clients.is_live(*id),
                node: seen.map(|seen| seen.node),
                held_ms: seen.map(|seen| now.since(seen.since)),
                newest: log.newest,
            }
        };
        held.map(view).collect()
    }
}

/// A session that the log knows.
fn admit_again(core: &Core, own: AttachGeneration, decided: AttachGeneration) -> Admission {
    let ended = own < core.log.state.attach;
    if ended && !on(Bug::OlderAttachment) && !on(Bug::GenerationOfNow) {
        return match own < decided {
            true => Admission::Refused(StreamEnd::AttachLost),
            false => Admission::Later,
        };
    }
    // It may have been opened by an entry that is not committed.
    Admission::At(core.log.end)
}

/// A stream that waits, with whom it is for.
pub(super) type Waiting = (StreamId, SessionId, Attach);
