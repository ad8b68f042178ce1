//! How the primary executes recovery sessions: catch-up over the feed, rebuild with a base lane.
//!
//! The recovery engine decides that there is a session and fixes its target; nothing here widens
//! it, and nothing but the receiver's close ends it well.

use super::core::Core;
use super::io::Output;
use super::message::{Incomplete, RecoveryId, ToReplica};
use super::peer::{Feed, Link, Session, Stage};
use super::primary::Primary;
use super::{IgnoredReason, Verdict};
use crate::recovery::{Event, FailureKind};
use crate::types::{Lsn, ReplicaId};

impl Primary {
    /// Tells the recovery engine of a replica's durable end, and closes a session that has it all.
    pub(super) fn progress(
        &mut self,
        core: &mut Core,
        replica: ReplicaId,
        durable: Lsn,
        renewal: bool,
    ) {
        let epoch = self.config.epoch;
        let Some(peer) = self.peers.get_mut(&replica) else { return };
        let Some(session) = &mut peer.session else {
            // Without a session the engine keeps the fact only; it decides nothing on it, so the
            // renewals are often enough.
            if renewal {
                self.recover(core, Event::DurableAck { epoch, replica, lsn: durable });
            }
            return;
        };
        let id = session.id;
        let mut first_sign = false;
        let mut close = None;
        match session.stage {
            Stage::Feeding { started } => {
                first_sign = !started;
                session.stage = Stage::Feeding { started: true };
                if durable >= session.target {
                    close = Some(session.target);
                }
            }
            Stage::Copied { through } => {
                let through = through.max(session.target);
                if durable >= through {
                    close = Some(through);
                }
            }
            Stage::Leaving
            | Stage::Beginning { .. }
            | Stage::Copying { .. }
            | Stage::Closing { .. } => {}
        }
        if let Some(through) = close {
            session.stage = Stage::Closing { through, sent: core.now };
            self.send(core, replica, ToReplica::Close { session: id, through });
        }
        if first_sign {
            self.recover(core, Event::SessionStarted { epoch, replica, session: id });
        }
        self.recover(
            core,
            Event::SessionProgress { epoch, replica, session: id, achieved: durable },
        );
    }

    pub(super) fn start_catch_up(
        &mut self,
        core: &mut Core,
        replica: ReplicaId,
        id: RecoveryId,
        from: Lsn,
        target: Lsn,
    ) -> Option<Event> {
        let epoch = self.config.epoch;
        let peer = self.peers.get_mut(&replica)?;
        if peer.session.is_some_and(|session| session.id == id) {
            return None;
        }
        // Entries are checked against the WAL as it is now: it may have moved since the facts.
        if from < core.log.retained && from <= core.log.end {
            let kind = FailureKind::WalRecycled;
            return Some(Event::SessionClosedFailed { epoch, replica, session: id, kind });
        }
        if !matches!(peer.link, Link::Reconciled) || peer.acked.map(Lsn::next) != Some(from) {
            let kind = FailureKind::Transport;
            return Some(Event::SessionClosedFailed { epoch, replica, session: id, kind });
        }
        peer.session = Some(Session { id, target, stage: Stage::Feeding { started: false } });
        peer.feed = Some(Feed { next: from, stamped: None });
        core.out.push(Output::Pin { session: id, from });
        Some(Event::SessionPrepared { epoch, replica, session: id })
    }

    pub(super) fn start_rebuild(
        &mut self,
        core: &mut Core,
        replica: ReplicaId,
        id: RecoveryId,
        target: Lsn,
    ) -> Option<Event> {
        let epoch = self.config.epoch;
        let peer = self.peers.get_mut(&replica)?;
        if peer.session.is_some_and(|session| session.id == id) {
            return None;
        }
        if !matches!(peer.link, Link::Reconciled | Link::Unusable) {
            let kind = FailureKind::Transport;
            return Some(Event::SessionClosedFailed { epoch, replica, session: id, kind });
        }
        peer.session = Some(Session { id, target, stage: Stage::Leaving });
        self.begin_rebuilds(core);
        Some(Event::SessionPrepared { epoch, replica, session: id })
    }

    /// Starts those rebuilds whose replica no configuration lists that may be in force: a replica
    /// whose copy a failover might choose is never wiped.
    pub(super) fn begin_rebuilds(&mut self, core: &mut Core) {
        let mut begin = Vec::new();
        for peer in self.peers.values_mut() {
            let listed = self.config.isr.contains(&peer.id) || peer.join_proposed;
            let Some(session) = &mut peer.session else { continue };
            if listed || session.stage != Stage::Leaving {
                continue;
            }
            let base = core.log.committed;
            let mark =
                Incomplete { session: session.id, from: Lsn(0), base, target: session.target };
            session.stage = Stage::Beginning { mark, sent: core.now };
            peer.joining = false;
            peer.link = Link::Unusable;
            peer.acked = None;
            peer.recorded = None;
            begin.push((peer.id, mark));
        }
        for (replica, mark) in begin {
            core.out.push(Output::Pin { session: mark.session, from: mark.base.next() });
            self.send_begin(core, replica, mark);
        }
    }

    fn send_begin(&self, core: &mut Core, replica: ReplicaId, mark: Incomplete) {
        let table = core.kept.table.clone();
        let state = core.log.committed_state.clone();
        self.send(core, replica, ToReplica::BeginRebuild { mark, table, state });
    }

    pub(super) fn rebuild_started(
        &mut self,
        core: &mut Core,
        replica: ReplicaId,
        id: RecoveryId,
    ) -> Verdict {
        let epoch = self.config.epoch;
        let Some(peer) = self.peers.get_mut(&replica) else {
            return Verdict::Ignored(IgnoredReason::UnknownReplica);
        };
        let Some(session) = peer.session.as_mut().filter(|session| session.id == id) else {
            return Verdict::Ignored(IgnoredReason::UnknownSession);
        };
        let Stage::Beginning { mark, .. } = session.stage else {
            return Verdict::Ignored(IgnoredReason::LateCopy);
        };
        session.stage = Stage::Copying { mark };
        peer.feed = Some(Feed { next: mark.base.next(), stamped: None });
        peer.progress = mark.base;
        let (addr, to) = (peer.addr.clone(), peer.reference());
        let lineage = core.lineage(epoch, to);
        core.out.push(Output::StartBase { mark, addr, lineage });
        self.recover(core, Event::SessionStarted { epoch, replica, session: id });
        Verdict::Applied
    }

    /// Every base block was taken.
    pub(super) fn base_sent(&mut self, core: &mut Core, id: RecoveryId, through: Lsn) -> Verdict {
        let found = self.peers.values_mut().find_map(|peer| {
            let session = peer.session.as_mut().filter(|session| session.id == id)?;
            Some((peer.id, session))
        });
        let Some((replica, session)) = found else {
            return Verdict::Ignored(IgnoredReason::UnknownSession);
        };
        if !matches!(session.stage, Stage::Copying { .. }) {
            return Verdict::Ignored(IgnoredReason::LateCopy);
        }
        session.stage = Stage::Copied { through };
        // The receiver may hold all of it already; its next acknowledgement tells.
        if let Some(feed) = self.peers.get_mut(&replica).and_then(|peer| peer.feed.as_mut()) {
            feed.stamped = None;
        }
        core.trace("base-sent", format!("{replica}: every base block was taken, newest {through}"));
        Verdict::Applied
    }

    pub(super) fn closed(
        &mut self,
        core: &mut Core,
        replica: ReplicaId,
        id: RecoveryId,
        achieved: Lsn,
    ) -> Verdict {
        let epoch = self.config.epoch;
        let Some(peer) = self.peers.get_mut(&replica) else {
            return Verdict::Ignored(IgnoredReason::UnknownReplica);
        };
        let Some(session) = peer.session.filter(|session| session.id == id) else {
            return Verdict::Ignored(IgnoredReason::UnknownSession);
        };
        let Stage::Closing { through, .. } = session.stage else {
            return Verdict::Ignored(IgnoredReason::LateCopy);
        };
        if achieved < through || achieved > core.log.end {
            return Verdict::Ignored(IgnoredReason::Malformed);
        }
        peer.link = Link::Reconciled;
        peer.acked = peer.acked.max(Some(achieved));
        peer.session = None;
        core.out.push(Output::Unpin { session: id });
        core.out.push(Output::StopBase { session: id });
        self.recover(core, Event::SessionClosedCompleted { epoch, replica, session: id, achieved });
        Verdict::Applied
    }

    /// A session broke, here or there.
    pub(super) fn session_failed(
        &mut self,
        core: &mut Core,
        replica: ReplicaId,
        id: RecoveryId,
        kind: FailureKind,
    ) -> Verdict {
        let epoch = self.config.epoch;
        let running = self.peers.get(&replica).and_then(|peer| peer.session);
        if running.is_none_or(|session| session.id != id) {
            return Verdict::Ignored(IgnoredReason::UnknownSession);
        }
        core.trace("session-failed", format!("{replica}: {kind:?}"));
        self.drop_feed(core, replica);
        self.recover(core, Event::SessionClosedFailed { epoch, replica, session: id, kind });
        Verdict::Applied
    }

    /// The base lane of a session broke on this side.
    pub(super) fn base_failed(
        &mut self,
        core: &mut Core,
        id: RecoveryId,
        kind: FailureKind,
    ) -> Verdict {
        let holder = self.peers.values().find(|peer| peer.session.is_some_and(|s| s.id == id));
        match holder.map(|peer| peer.id) {
            Some(replica) => self.session_failed(core, replica, id, kind),
            None => Verdict::Ignored(IgnoredReason::UnknownSession),
        }
    }

    /// Entries for a replica were gone from the WAL or could not be read.
    pub(super) fn feed_failed(
        &mut self,
        core: &mut Core,
        replica: ReplicaId,
        kind: FailureKind,
    ) -> Verdict {
        match self.peers.get(&replica).and_then(|peer| peer.session) {
            Some(session) => self.session_failed(core, replica, session.id, kind),
            // A replica that was in sync fell behind the WAL: look at it afresh.
            None => self.lost(core, replica, false),
        }
    }

    /// Questions inside a session are asked again.
    pub(super) fn repeat_questions(&mut self, core: &mut Core) {
        let mut again = Vec::new();
        for peer in self.peers.values_mut() {
            let Some(session) = &mut peer.session else { continue };
            match &mut session.stage {
                Stage::Beginning { mark, sent } => {
                    if core.now.since(*sent) >= core.params.retry_ms {
                        *sent = core.now;
                        again.push((peer.id, None, Some(*mark)));
                    }
                }
                Stage::Closing { through, sent } => {
                    if core.now.since(*sent) >= core.params.retry_ms {
                        *sent = core.now;
                        let close = ToReplica::Close { session: session.id, through: *through };
                        again.push((peer.id, Some(close), None));
                    }
                }
                Stage::Feeding { .. }
                | Stage::Leaving
                | Stage::Copying { .. }
                | Stage::Copied { .. } => {}
            }
        }
        for (replica, message, mark) in again {
            match (message, mark) {
                (Some(message), _) => self.send(core, replica, message),
                (None, Some(mark)) => self.send_begin(core, replica, mark),
                (None, None) => {}
            }
        }
    }
}
