//! The primary of a volume: how it meets the other replicas and executes the recovery engine.
//!
//! `commit` holds what it concludes from them, `clients` what it does for frontends.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::candidate::Standing;
use super::clients::Clients;
use super::core::Core;
use super::handover::Handover;
use super::io::{Output, ProposalId};
use super::mend::Mends;
use super::message::{Facts, Lineage, RecoveryId, ToPrimary, ToReplica};
use super::peer::{Feed, Link, Peer, Stage};
use super::resize::Shrink;
use super::room::SpaceTold;
use super::trace::Observed;
use super::{IgnoredReason, Verdict};
use crate::bugs::{Bug, on};
use crate::recovery::{self, Command, Event};
use crate::types::{Config, Epoch, Lsn, Millis, ReplicaId};

/// A proposal that the masters have not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Asked {
    pub(super) id: ProposalId,
    pub(super) sent: Millis,
    /// The masters answered, but with no newer epoch: ask again only after a pause.
    pub(super) answered: bool,
}

/// The primary role in one uninterrupted tenure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Primary {
    /// The configuration in force as far as known.
    pub(super) config: Config,
    /// The epoch in which this role began: the tenure's first, unless it lost the role in between.
    #[serde(default)]
    pub(super) began: Epoch,
    /// How far it has come with making its own log the volume's.
    pub(super) standing: Standing,
    /// A candidate: since when the answers of a majority have not shown all that was acknowledged.
    #[serde(default)]
    pub(super) doubting: Option<Millis>,
    /// This primary's first LSN in the configuration's epoch.
    pub(super) first: Lsn,
    /// The log's end at the promotion: all up to here is of earlier primaries.
    pub(super) inherited: Lsn,
    /// Promises to earlier primaries run out then.
    pub(super) wait_until: Millis,
    /// Reconciled itself, promises waited out. Once true it stays so for the tenure.
    pub(super) ready: bool,
    /// Clients were served in this tenure.
    pub(super) served: bool,
    /// The newest epoch of the tenure in which everything before its start was committed.
    pub(super) settled: Option<Epoch>,
    pub(super) peers: BTreeMap<ReplicaId, Peer>,
    pub(super) recovery: recovery::VolumeState,
    pub(super) asked: Option<Asked>,
    pub(super) proposals: u64,
    /// With written acknowledgements: everything up to here may have been answered in this tenure.
    pub(super) answered: Lsn,
    /// With written acknowledgements: a leave waits until those that stay have synced, and nothing more
    /// is answered.
    pub(super) holding: bool,
    /// Since when a member has been lacking.
    pub(super) lacking_since: Option<Millis>,
    /// Since when nothing is logged, for too many epochs begin above the committed LSN.
    #[serde(default)]
    pub(super) crowded_since: Option<Millis>,
    /// Requests wait for room on a disk.
    #[serde(default)]
    pub(super) growth_waits: bool,
    pub(super) clients: Clients,
    /// Blocks of its extents that are being repaired.
    #[serde(default)]
    pub(super) mends: Mends,
    /// The role is on its way to another replica.
    #[serde(default)]
    pub(super) handover: Option<Handover>,
    /// To whom the last attempt went that was given up, and when.
    #[serde(default)]
    pub(super) given_up: Option<(ReplicaId, Millis)>,
    /// A smaller size is wished, and not logged yet.
    #[serde(default)]
    pub(super) shrink: Option<Shrink>,
    /// Searches for data beyond a new end, so far.
    #[serde(default)]
    pub(super) searches: u64,
}

/// A step of the recovery engine, for the trace: what was seen, and after `; so: ` what is done. A
/// quiet event is told only if something is done.
fn in_words(
    event: Option<String>,
    verdict: recovery::Verdict,
    commands: &[Command],
) -> Option<String> {
    if event.is_none() && commands.is_empty() {
        return None;
    }
    let mut text = event.unwrap_or_else(|| "time passed".to_owned());
    if let recovery::Verdict::Ignored(reason) = verdict {
        text.push_str(&format!(" (ignored: {reason})"));
    }
    for (n, command) in commands.iter().enumerate() {
        text.push_str(if n == 0 { "; so: " } else { ", " });
        text.push_str(&command.to_string());
    }
    Some(text)
}

impl Primary {
    /// Takes the role in a configuration that names this replica, freshly promoted.
    pub(super) fn promoted(core: &mut Core, config: Config) -> Self {
        core.fence(config.epoch);
        if config.loss_generation > core.kept.loss_generation {
            // From here on this log is what the volume holds, whatever others held.
            core.trace(
                "loss-generation",
                format!(
                    "{} to {}: this log ends at {}, and what others acknowledged above it is lost",
                    core.kept.loss_generation, config.loss_generation, core.log.end
                ),
            );
            core.kept.loss_generation = config.loss_generation;
        }
        core.persist();
        let standing = Standing::begin(core, &config);
        let first = core.log.end.next();
        let promised = core.promised_until(config.handed_over_by);
        let wait_until = if on(Bug::SkipLeaseWait) { core.now } else { promised };
        core.trace(
            "promoted",
            format!(
                "log ends at {}, {} committed; waits {} ms for promises made",
                core.log.end,
                core.log.committed,
                wait_until.since(core.now)
            ),
        );
        let (epoch, params) = (config.epoch, core.params.recovery.clone());
        core.observe(|| Observed::Began { epoch, params });
        let mut primary = Self {
            began: config.epoch,
            standing,
            doubting: None,
            first,
            inherited: core.log.end,
            wait_until,
            ready: false,
            served: false,
            settled: None,
            peers: BTreeMap::new(),
            recovery: recovery::VolumeState::new(core.params.recovery.clone()),
            asked: None,
            proposals: 0,
            answered: Lsn(0),
            holding: false,
            lacking_since: None,
            crowded_since: None,
            growth_waits: false,
            clients: Clients::default(),
            mends: Mends::default(),
            handover: None,
            given_up: None,
            shrink: None,
            searches: 0,
            config,
        };
        primary.settle_peers(core);
        primary
    }

    /// Goes on in a newer configuration of the same tenure.
    pub(super) fn continued(&mut self, core: &mut Core, config: Config) {
        core.trace(
            "continued",
            format!(
                "epoch {} to {}, in sync: {}",
                self.config.epoch,
                config.epoch,
                config.isr.len()
            ),
        );
        assert!(
            config.since <= self.config.epoch,
            "I1: the tenure of epoch {} is over: another began in {}",
            self.config.epoch,
            config.since
        );
        core.fence(config.epoch);
        self.first = core.log.end.next();
        if self.is_whole() {
            core.note_epoch(config.epoch, self.first);
        }
        core.persist();
        self.config = config;
        self.asked = None;
        // A newer epoch of this tenure: the handover was not decided, and can't be any more.
        self.handover = None;
        self.mends_continue();
        // It may have been wished anew since, of another content.
        self.shrink = None;
        // Whom it waits for is found out anew.
        self.crowded_since = None;
        for peer in self.peers.values_mut() {
            // Every proposal at the old epoch is void now.
            peer.join_proposed = false;
            peer.leave_proposed = false;
            peer.joining = false;
            // Leases are per epoch; the frontiers of the new one go out at once.
            peer.leased_before = peer.leased_before.max(peer.leased_until);
            peer.leased_until = Millis(0);
            if let Some(feed) = &mut peer.feed {
                feed.stamped = None;
            }
        }
        self.settle_peers(core);
    }

    /// Nodes got other addresses; nothing else of an epoch's configuration ever changes.
    pub(super) fn moved(&mut self, core: &mut Core, config: &Config) {
        if config.replicas == self.config.replicas {
            return;
        }
        self.config.replicas.clone_from(&config.replicas);
        let epoch = config.epoch;
        let mut events = Vec::new();
        for (id, placement) in &config.replicas {
            if let Some(peer) = self.peers.get_mut(id).filter(|peer| peer.addr != placement.addr) {
                peer.addr.clone_from(&placement.addr);
                events.push((*id, placement.addr.clone()));
            }
        }
        for (replica, endpoint) in events {
            self.drop_feed(core, replica);
            self.recover(core, Event::Endpoint { epoch, replica, endpoint });
        }
    }

    /// Ends the role: feeds, base lanes and streams.
    pub(super) fn stop(&mut self, core: &mut Core, reason: super::io::StreamEnd) {
        let peers: Vec<_> = self.peers.keys().copied().collect();
        for replica in peers {
            self.drop_feed(core, replica);
        }
        self.end_scrubs(core);
        self.clients.end_all(&mut core.out, reason);
    }

    /// Brings the table of peers in line with the configuration and tells the recovery engine.
    fn settle_peers(&mut self, core: &mut Core) {
        let me = core.me.id;
        let wanted: BTreeMap<_, _> = self
            .config
            .replicas
            .iter()
            .filter(|(id, _)| **id != me)
            .map(|(id, placement)| (*id, placement.addr.clone()))
            .collect();
        let gone: Vec<_> =
            self.peers.keys().filter(|id| !wanted.contains_key(id)).copied().collect();
        let event = Event::Assignment {
            epoch: self.config.epoch,
            since: self.config.since,
            replicas: wanted.clone(),
            in_sync: self.config.isr.clone(),
        };
        for (id, addr) in wanted {
            let peer =
                self.peers.entry(id).or_insert_with(|| Peer::new(id, addr.clone(), core.now));
            peer.addr = addr;
        }
        self.recover(core, event);
        for id in gone {
            self.drop_feed(core, id);
            self.peers.remove(&id);
        }
    }

    /// Feeds the recovery engine and executes what it asks for.
    pub(super) fn recover(&mut self, core: &mut Core, event: Event) {
        let mut events = std::collections::VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let quiet = matches!(
                event,
                Event::Tick | Event::DurableAck { .. } | Event::SessionProgress { .. }
            );
            let described = (!quiet).then(|| event.to_string());
            let seen = core.observed.is_some().then(|| event.clone());
            let (verdict, commands) = recovery::step(&mut self.recovery, core.now, event);
            if let Some(event) = seen {
                let (at, commands) = (core.now, commands.clone());
                core.observe(|| Observed::Recovery { at, event, verdict, commands });
            }
            if let Some(why) = in_words(described, verdict, &commands) {
                core.trace("recovery", why);
            }
            for command in commands {
                events.extend(self.execute(core, command));
            }
        }
    }

    fn execute(&mut self, core: &mut Core, command: Command) -> Option<Event> {
        match command {
            Command::Probe { replica, .. } => self.probe(core, replica),
            Command::StartCatchUp { replica, session, from, target, .. } => {
                return self.start_catch_up(core, replica, session, from, target);
            }
            Command::StartDelta { replica, session, from, target, .. } => {
                return self.start_base(core, replica, session, from, target);
            }
            Command::StartRebuild { replica, session, target, .. } => {
                return self.start_base(core, replica, session, Lsn(0), target);
            }
            Command::InvalidateSession { epoch, replica, session } => {
                self.end_session(core, replica, Some(session));
                return Some(Event::SessionInvalidated { epoch, replica, session });
            }
            Command::FenceAtEpoch { replica, transport, .. } => {
                let epoch = self.config.epoch;
                let peer = self.peers.get_mut(&replica)?;
                peer.fence_wanted = true;
                let next = peer.acked.unwrap_or_default().next();
                peer.feed.get_or_insert(Feed { next, stamped: None });
                if peer.recorded == Some(epoch) {
                    peer.fence_wanted = false;
                    return Some(Event::FenceCompleted {
                        epoch,
                        replica,
                        transport,
                        fenced: epoch,
                    });
                }
            }
            Command::PublishHealthy { replica, .. } => {
                if let Some(peer) = self.peers.get_mut(&replica) {
                    peer.healthy = true;
                    core.trace("healthy", format!("{replica} holds everything"));
                }
            }
            Command::PublishDegraded { replica, reason, .. } => {
                if let Some(peer) = self.peers.get_mut(&replica) {
                    peer.healthy = false;
                    core.trace("degraded", format!("{replica}: {reason}"));
                }
            }
        }
        None
    }

    /// Whether a replica that refuses all epochs there are may speak for itself alone: it is taken off the
    /// list, and its directory goes. That tells of no other primary; if the volume were deleted, the in-sync
    /// replicas would say so too. [Each replica that was taken off the list could cost the volume its primary,
    /// for as long as that one did not reach the masters, who had told it already.]
    pub(super) fn ends_alone(&self, replica: ReplicaId) -> bool {
        !self.config.isr.contains(&replica)
    }

    fn probe(&mut self, core: &mut Core, replica: ReplicaId) {
        self.drop_feed(core, replica);
        let Some(peer) = self.peers.get_mut(&replica) else { return };
        if peer.asked().is_some() {
            return;
        }
        let request = peer.question();
        peer.link = Link::Probing { request, sent: core.now };
        self.send(core, replica, ToReplica::Probe { request });
    }

    pub(super) fn send(&self, core: &mut Core, replica: ReplicaId, message: ToReplica) {
        if let Some(peer) = self.peers.get(&replica) {
            let lineage = core.lineage(self.config.epoch, peer.reference());
            core.out.push(Output::ToReplica { addr: peer.addr.clone(), lineage, message });
        }
    }

    /// Stops feeding a replica; what is under way with it does not count any more.
    pub(super) fn drop_feed(&mut self, core: &mut Core, replica: ReplicaId) {
        self.end_session(core, replica, None);
        if let Some(peer) = self.peers.get_mut(&replica) {
            if peer.feed.take().is_some() {
                core.out.push(Output::ResetFeed { replica });
            }
            peer.fence_wanted = false;
            peer.healthy = false;
            peer.joining = peer.join_proposed;
            if matches!(peer.link, Link::Reconciled | Link::Unusable) {
                peer.link = Link::Down;
            }
        }
    }

    /// Ends a session's execution: its pin goes, its base lane stops.
    fn end_session(&mut self, core: &mut Core, replica: ReplicaId, only: Option<RecoveryId>) {
        let Some(peer) = self.peers.get_mut(&replica) else { return };
        let Some(session) = peer.session.filter(|s| only.is_none_or(|id| s.id == id)) else {
            return;
        };
        peer.session = None;
        peer.base = None;
        core.out.push(Output::Unpin { session: session.id });
        // Its base lane, if it has one, is open until the receiver's close.
        if !matches!(session.stage, Stage::Leaving | Stage::Feeding { .. }) {
            core.out.push(Output::StopBase { session: session.id });
        }
    }

    /// The replica can't be reached, or does not answer.
    pub(super) fn lost(&mut self, core: &mut Core, replica: ReplicaId, refused: bool) -> Verdict {
        let epoch = self.config.epoch;
        let Some(peer) = self.peers.get_mut(&replica) else {
            return Verdict::Ignored(IgnoredReason::UnknownReplica);
        };
        peer.refused = refused;
        peer.link = Link::Down;
        let endpoint = peer.addr.clone();
        self.drop_feed(core, replica);
        self.recover(core, Event::ProbeFailed { epoch, replica, endpoint });
        Verdict::Applied
    }

    /// Questions without an answer, and fed replicas that fell silent.
    pub(super) fn check_silence(&mut self, core: &mut Core) {
        let silent: Vec<_> = self
            .peers
            .values()
            .filter(|peer| {
                peer.asked().is_some_and(|sent| core.now.since(sent) >= core.params.retry_ms)
                    || peer.is_fed() && core.now.since(peer.heard) >= core.params.suspect_ms
            })
            .map(|peer| peer.id)
            .collect();
        for replica in silent {
            self.lost(core, replica, false);
        }
    }

    /// A message of a replica. The caller has checked volume and receiver.
    pub(super) fn hear(
        &mut self,
        core: &mut Core,
        lineage: Lineage,
        message: ToPrimary,
    ) -> Verdict {
        let replica = lineage.from.id;
        if lineage.from == core.me {
            return self.told_itself(core, lineage.epoch, &message);
        }
        let Some(peer) = self.peers.get_mut(&replica) else {
            return Verdict::Ignored(IgnoredReason::UnknownReplica);
        };
        // Questions are numbered from 1 in each role. [A primary lost its role within its tenure and got it
        // back, and took a copy of what a member had told before, which held less then, and had it cut.]
        if lineage.epoch < self.began || lineage.epoch > self.config.epoch {
            return Verdict::Ignored(IgnoredReason::StaleEpoch);
        }
        if let ToPrimary::Refused { stood, .. } = message {
            // Whichever run says it: it binds the later ones.
            peer.stood = peer.stood.max(stood);
        }
        if let ToPrimary::Alive { request } = message {
            return self.alive(core, lineage, request);
        }
        if peer.incarnation != Some(lineage.from.incarnation) {
            return Verdict::Ignored(IgnoredReason::StaleIncarnation);
        }
        if !matches!(message, ToPrimary::Refused { .. }) {
            peer.heard = core.now;
            peer.refused = false;
        }
        match message {
            ToPrimary::Alive { .. } => Verdict::Applied,
            ToPrimary::Facts { request, facts } => self.facts(core, replica, request, facts),
            ToPrimary::Entries { request, prev, entries } => {
                self.fetched(core, replica, request, prev, &entries)
            }
            ToPrimary::CutDone { request, durable } => {
                self.cut_done(core, replica, request, durable)
            }
            ToPrimary::Ack { durable, written, recorded, promised, space } => {
                self.acked(core, lineage, (durable, written), recorded, promised, space)
            }
            ToPrimary::Gap { end } => peer.gap(end),
            // As of another epoch it was asked when others were in sync.
            ToPrimary::Blocks { .. } if lineage.epoch != self.config.epoch => {
                Verdict::Ignored(IgnoredReason::StaleEpoch)
            }
            ToPrimary::Blocks { request, at, held, rotten } => {
                self.told_blocks(core, lineage.from, request, at, &held, &rotten)
            }
            ToPrimary::RebuildStarted { session } => self.rebuild_started(core, replica, session),
            ToPrimary::Closed { session, achieved } => {
                self.closed(core, replica, session, achieved)
            }
            ToPrimary::SessionFailed { session, cause } => {
                self.session_failed(core, replica, session, cause)
            }
            // It is fed in the epoch in force meanwhile; what it refuses of that, it says again.
            ToPrimary::Refused { .. } if lineage.epoch < self.config.epoch && peer.is_fed() => {
                Verdict::Ignored(IgnoredReason::LateCopy)
            }
            // The caller looked at the configuration that came with it.
            ToPrimary::Refused { .. } => self.lost(core, replica, false),
        }
    }

    fn alive(&mut self, core: &mut Core, lineage: Lineage, request: u64) -> Verdict {
        let (replica, epoch) = (lineage.from.id, self.config.epoch);
        let Some(peer) = self.peers.get_mut(&replica) else {
            return Verdict::Ignored(IgnoredReason::UnknownReplica);
        };
        if !matches!(peer.link, Link::Probing { request: asked, .. } if asked == request) {
            return Verdict::Ignored(IgnoredReason::LateCopy);
        }
        peer.meet(lineage.from.incarnation);
        peer.heard = core.now;
        peer.refused = false;
        let next = peer.question();
        peer.link = Link::Fencing { request: next, sent: core.now };
        let (endpoint, transport) = (peer.addr.clone(), peer.transport);
        let config = self.config.clone();
        self.send(core, replica, ToReplica::Fence { request: next, config });
        self.recover(core, Event::ProbeSucceeded { epoch, replica, endpoint, transport });
        Verdict::Applied
    }

    /// What the replica holds. Nobody is cut before this primary has reconciled itself: facts that
    /// come before wait.
    fn facts(
        &mut self,
        core: &mut Core,
        replica: ReplicaId,
        request: u64,
        facts: Facts,
    ) -> Verdict {
        let Some(peer) = self.peers.get_mut(&replica) else {
            return Verdict::Ignored(IgnoredReason::UnknownReplica);
        };
        if !matches!(peer.link, Link::Fencing { request: asked, .. } if asked == request) {
            return Verdict::Ignored(IgnoredReason::LateCopy);
        }
        peer.link = Link::Told;
        peer.promised_until = core.now.after(facts.promised_ms);
        peer.tail = Some(facts.tail);
        if !self.config.has_kept(replica, facts.tail) {
            let what =
                "has another tail than it joined with: counts for nothing before it joined again";
            core.trace("tail-lost", format!("{replica} {what}"));
        }
        peer.told = Some(Box::new(facts));
        Verdict::Applied
    }

    /// Reconciles those that told what they hold, now that this primary's own log is durable.
    pub(super) fn reconcile_told(&mut self, core: &mut Core) {
        let told: Vec<_> = self
            .peers
            .values_mut()
            .filter(|peer| peer.link == Link::Told)
            .filter_map(|peer| Some((peer.id, peer.told.take()?)))
            .collect();
        for (replica, facts) in told {
            self.reconcile(core, replica, &facts);
        }
    }

    /// Finds what both logs have in common.
    fn reconcile(&mut self, core: &mut Core, replica: ReplicaId, facts: &Facts) {
        let Some(peer) = self.peers.get_mut(&replica) else { return };
        let end = core.log.end;
        let mut common = core.kept.table.common_end(end, &facts.table, facts.durable);
        if on(Bug::CompareByFence) {
            common = Some(end.min(facts.durable));
        }
        // Acknowledged writes may have been lost since: what it knows as committed may be of those.
        let older_loss =
            facts.loss_generation < self.config.loss_generation && !on(Bug::IgnoreLossGeneration);
        let parted = common.is_none_or(|common| common < facts.committed);
        // Without a common epoch only what the replica knows to be committed is known to agree.
        let common = common.unwrap_or(facts.committed.min(end));
        peer.image = facts.committed;
        if facts.incomplete.is_some() || (parted && older_loss) {
            peer.link = Link::Unusable;
            (peer.acked, peer.wrote) = (None, Lsn(0));
            // Of which log an LSN of before a loss was is not known.
            let torn = facts.incomplete.filter(|_| !older_loss || on(Bug::DeltaAcrossLoss));
            let from = torn.map(|mark| if on(Bug::FromOfLast) { mark.base } else { mark.from });
            if let Some(mark) = torn {
                // Whoever wrote to its extents knew as committed what they got: this primary, or an earlier
                // one, whose committed entries are all in the log that this one began with.
                let mine = mark.session.epoch >= self.config.since;
                peer.image = if mine { Lsn(0) } else { self.inherited };
            }
            self.tell_facts(core, replica, None, from.filter(|from| *from > Lsn(0)));
        } else if common < facts.committed {
            // Two logs that both count as committed disagree. Nothing may be thrown away for it.
            let what = format!(
                "{replica} has {} committed, but agrees only up to {common}: not touched",
                facts.committed
            );
            core.trace("diverged", what);
            self.lost(core, replica, false);
        } else {
            let next = peer.question();
            peer.link = Link::Cutting { request: next, sent: core.now, end: common };
            let table = core.kept.table.clone();
            self.send(core, replica, ToReplica::Cut { request: next, end: common, table });
        }
    }

    fn cut_done(
        &mut self,
        core: &mut Core,
        replica: ReplicaId,
        request: u64,
        durable: Lsn,
    ) -> Verdict {
        let Some(peer) = self.peers.get_mut(&replica) else {
            return Verdict::Ignored(IgnoredReason::UnknownReplica);
        };
        match peer.link {
            Link::Cutting { request: asked, end, .. } if asked == request && durable == end => {}
            Link::Cutting { .. }
            | Link::Down
            | Link::Probing { .. }
            | Link::Fencing { .. }
            | Link::Told
            | Link::Reconciled
            | Link::Unusable => return Verdict::Ignored(IgnoredReason::LateCopy),
        }
        peer.link = Link::Reconciled;
        (peer.acked, peer.wrote) = (Some(durable), durable);
        self.tell_facts(core, replica, Some(durable), None);
        Verdict::Applied
    }

    fn tell_facts(
        &mut self,
        core: &mut Core,
        replica: ReplicaId,
        r: Option<Lsn>,
        from: Option<Lsn>,
    ) {
        let Some(peer) = self.peers.get(&replica) else { return };
        let event = Event::RecoveryFacts {
            epoch: self.config.epoch,
            replica,
            transport: peer.transport,
            r,
            from,
            s: core.log.retained,
            h: core.log.end,
        };
        self.recover(core, event);
    }

    fn acked(
        &mut self,
        core: &mut Core,
        lineage: Lineage,
        (durable, written): (Lsn, Lsn),
        recorded: Option<Epoch>,
        promised: Option<Millis>,
        space: SpaceTold,
    ) -> Verdict {
        let (replica, epoch) = (lineage.from.id, self.config.epoch);
        let Some(peer) = self.peers.get_mut(&replica).filter(|peer| peer.is_fed()) else {
            return Verdict::Ignored(IgnoredReason::NotReconciled);
        };
        if written > core.log.end || durable > written {
            return Verdict::Ignored(IgnoredReason::Malformed);
        }
        peer.note_space(space);
        let rebuilding = matches!(peer.link, Link::Unusable);
        if let Some(stamp) = promised.filter(|_| lineage.epoch == epoch && !rebuilding) {
            let from = if on(Bug::LeaseFromReceipt) { core.now } else { stamp };
            peer.leased_until = peer.leased_until.max(from.after(core.params.lease_ms));
        }
        peer.recorded = peer.recorded.max(recorded);
        peer.progress = durable;
        if !rebuilding && peer.acked.is_none_or(|known| durable > known) {
            peer.acked = Some(durable);
        }
        if !rebuilding {
            peer.wrote = peer.wrote.max(written);
        }
        let transport = peer.transport;
        if peer.fence_wanted && peer.recorded == Some(epoch) {
            peer.fence_wanted = false;
            self.recover(core, Event::FenceCompleted { epoch, replica, transport, fenced: epoch });
        }
        self.progress(core, replica, durable, promised.is_some());
        Verdict::Applied
    }
}
