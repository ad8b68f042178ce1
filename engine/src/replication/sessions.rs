//! How the primary executes recovery sessions: catch-up over the feed, delta and rebuild with a base
//! lane.
//!
//! The recovery engine decides that there is a session and fixes its target; nothing here widens
//! it, and nothing but the receiver's close ends it well.

use super::core::Core;
use super::io::Output;
use super::message::{Incomplete, RecoveryId, ToReplica};
use super::peer::{Base, Feed, Link, Peer, Session, Stage};
use super::primary::Primary;
use super::{IgnoredReason, Verdict};
use crate::bugs::{Bug, on};
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
        if on(Bug::WidenTarget) {
            session.target = core.log.end;
        }
        if durable > session.held {
            (session.held, session.moved) = (durable, core.now);
        }
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
            session.enter(Stage::Closing { through, sent: core.now }, core.now);
            let committed = core.log.committed;
            self.send(core, replica, ToReplica::Close { session: id, through, committed });
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
        let stage = Stage::Feeding { started: false };
        peer.session = Some(Session::new(id, target, stage, core.now));
        peer.feed = Some(Feed { next: from, stamped: None });
        core.out.push(Output::Pin { session: id, from });
        core.trace("catch-up", format!("{replica} is sent the entries {from} to {target}"));
        Some(Event::SessionPrepared { epoch, replica, session: id })
    }

    /// A delta, or with `from` 0 a rebuild.
    pub(super) fn start_base(
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
        if !matches!(peer.link, Link::Reconciled | Link::Unusable) {
            let kind = FailureKind::Transport;
            return Some(Event::SessionClosedFailed { epoch, replica, session: id, kind });
        }
        let session = Session::new(id, target, Stage::Leaving, core.now);
        peer.session = Some(Session { from, ..session });
        // The end of this step begins it, if its copy can be spared.
        let waits = self.peers.get(&replica).is_some_and(|peer| !self.may_begin(core, peer));
        waits.then_some(Event::SessionDeferred { epoch, replica, session: id })
    }

    /// Whether a base lane may be opened to a replica for which one is decided.
    fn may_begin(&self, core: &Core, peer: &Peer) -> bool {
        self.may_wipe(core, peer) && !self.is_unsettled(core, peer)
    }

    /// Whether a delta would bring blocks that are older than those which the receiver has already, or
    /// leave it with some that neither side knows to be committed. [A new primary knew less to be
    /// committed than the one before it, whose session had broken. Its delta ended, a loss took
    /// entries that were in the receiver's extents, and the receiver was cut.]
    fn is_unsettled(&self, core: &Core, peer: &Peer) -> bool {
        let delta = peer.session.is_some_and(|session| session.from > Lsn(0));
        delta && core.log.committed < peer.image && !on(Bug::DeltaUnsettled)
    }

    /// Deltas that would wait for a commit that waits for them: what is sent is everything then.
    fn give_up_unsettled(&mut self, core: &mut Core) {
        let patience = 2 * core.params.suspect_ms;
        let lacking = self.lacking_since.is_some_and(|at| core.now.since(at) >= patience);
        if !lacking && self.large_enough() {
            return;
        }
        let leaving = |peer: &&Peer| peer.session.is_some_and(|s| s.stage == Stage::Leaving);
        let stuck: Vec<_> = self
            .peers
            .values()
            .filter(leaving)
            .filter(|peer| self.may_wipe(core, peer) && self.is_unsettled(core, peer))
            .filter_map(|peer| Some((peer.id, peer.session?.id)))
            .collect();
        for (replica, session) in stuck {
            self.session_failed(core, replica, session, FailureKind::Unsettled);
        }
    }

    /// Starts those base lanes whose replica can be spared: one whose copy a failover might need is
    /// never written over.
    pub(super) fn begin_bases(&mut self, core: &mut Core) {
        self.give_up_unsettled(core);
        let mut begin = Vec::new();
        let (table, mut state) = (&core.kept.table, &core.log.committed_state);
        if on(Bug::BaseStateOfEnd) {
            state = &core.log.state;
        }
        let due = |peer: &&Peer| peer.session.is_some_and(|s| s.stage == Stage::Leaving);
        let spared: Vec<_> = self
            .peers
            .values()
            .filter(due)
            .filter(|peer| self.may_begin(core, peer))
            .map(|peer| peer.id)
            .collect();
        for id in spared {
            let Some(peer) = self.peers.get_mut(&id) else { continue };
            let Some(session) = &mut peer.session else { continue };
            let base = core.log.committed;
            // Where a base lane was decided because catch-ups failed it may hold more than is committed.
            let from = session.from.min(base);
            let mark = Incomplete { session: session.id, from, base, target: session.target };
            session.enter(Stage::Beginning { mark, sent: core.now }, core.now);
            session.base = base;
            peer.base = Some(Box::new(Base { table: table.clone(), state: state.clone() }));
            peer.joining = false;
            peer.link = Link::Unusable;
            (peer.acked, peer.wrote) = (None, Lsn(0));
            peer.recorded = None;
            begin.push((peer.id, mark));
        }
        for (replica, mark) in begin {
            core.out.push(Output::Pin { session: mark.session, from: mark.base.next() });
            let Incomplete { from, base, target, .. } = mark;
            let then = format!("of {base}, then the log to {target}");
            if from > Lsn(0) {
                let how =
                    format!("{replica} is sent what changed since {from} in the image {then}");
                core.trace("delta", how);
            } else {
                core.trace("rebuild", format!("{replica} is sent the image {then}"));
            }
            self.send_begin(core, replica, mark);
            let (epoch, session) = (self.config.epoch, mark.session);
            self.recover(core, Event::SessionPrepared { epoch, replica, session });
        }
    }

    fn send_begin(&mut self, core: &mut Core, replica: ReplicaId, mark: Incomplete) {
        let Some(peer) = self.peers.get_mut(&replica) else { return };
        let Some(Base { table, state }) = peer.base.as_deref().cloned() else { return };
        let request = peer.question();
        self.send(core, replica, ToReplica::BeginRebuild { request, mark, table, state });
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
        session.enter(Stage::Copying { mark }, core.now);
        peer.base = None;
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
        session.enter(Stage::Copied { through }, core.now);
        let bytes = session.bytes;
        if on(Bug::DropPinEarly) {
            core.out.push(Output::Unpin { session: id });
        }
        // The receiver may hold all of it already; its next acknowledgement tells.
        if let Some(feed) = self.peers.get_mut(&replica).and_then(|peer| peer.feed.as_mut()) {
            feed.stamped = None;
        }
        let how = format!("{replica}: every base block was taken, {bytes} bytes, newest {through}");
        core.trace("base-sent", how);
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

    /// The receiver took so many bytes of the base.
    pub(super) fn base_progress(&mut self, core: &Core, id: RecoveryId, bytes: u64) -> Verdict {
        let mut sessions = self.peers.values_mut().filter_map(|peer| peer.session.as_mut());
        let Some(session) = sessions.find(|session| session.id == id) else {
            return Verdict::Ignored(IgnoredReason::UnknownSession);
        };
        if bytes <= session.bytes {
            return Verdict::Ignored(IgnoredReason::LateCopy);
        }
        (session.bytes, session.moved) = (bytes, core.now);
        Verdict::Applied
    }

    /// Ends sessions whose receiver answers, but that don't come on: they hold their pin and the
    /// replica's place for nothing. A silent one is noticed earlier.
    pub(super) fn check_stalls(&mut self, core: &mut Core) {
        let stalled = |session: &Session| {
            session.stage != Stage::Leaving && core.now.since(session.moved) >= core.params.stall_ms
        };
        let why = |peer: &Peer| match peer.is_full() {
            true => FailureKind::NoSpace,
            false => FailureKind::Stalled,
        };
        let ended: Vec<_> = self
            .peers
            .values()
            .filter_map(|peer| Some((peer.id, peer.session.filter(stalled)?.id, why(peer))))
            .collect();
        for (replica, session, why) in ended {
            self.session_failed(core, replica, session, why);
        }
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
        core.trace("session-failed", format!("{replica}: {kind}"));
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
                        let (session, through) = (session.id, *through);
                        let committed = core.log.committed;
                        let close = ToReplica::Close { session, through, committed };
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
