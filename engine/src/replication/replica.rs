//! A replica: its log in whatever role it has, and the one door that inputs come through.

use serde::{Deserialize, Serialize};

use super::Params;
use super::core::Core;
use super::follower::{Follower, Order};
use super::io::{Input, Opened, Output, Reader, Stood, StreamEnd};
use super::mend::{MendCounts, in_words};
use super::message::{Lineage, ToPrimary, ToReplica};
use super::primary::Primary;
use super::trace::Observed;
use super::view::{HandoverView, RoleView, View};
use crate::bugs::{Bug, on};
use crate::recovery::VolumeState;
use crate::types::{Config, Epoch, Incarnation, Millis, ReplicaId};

/// What became of an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It was taken into account.
    Applied,
    /// It changed nothing, and why.
    Ignored(IgnoredReason),
}

/// Why an input changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IgnoredReason {
    /// For another volume or replica.
    WrongReplica,
    /// For, or from, another incarnation.
    StaleIncarnation,
    /// Of an epoch that is over.
    StaleEpoch,
    /// A configuration that is known already.
    KnownConfig,
    /// The configuration names another incarnation of this replica as primary.
    OtherIncarnation,
    /// From a replica that is not the primary of the promised epoch.
    NotThePrimary,
    /// The log was not made a prefix of the primary's yet.
    NotReconciled,
    /// Of an epoch that the replica stood for the end of.
    Stood,
    /// The replica is INCOMPLETE.
    Incomplete,
    /// The replica is listed as in sync: it is not wiped.
    ListedInSync,
    /// A cut below the committed LSN.
    CutBelowCommitted,
    /// An answer or a question that was dealt with.
    LateCopy,
    /// Not a replica of this volume.
    UnknownReplica,
    /// No such recovery session.
    UnknownSession,
    /// No such stream, or it ended.
    UnknownStream,
    /// Contradicts itself or the protocol.
    Malformed,
    /// The role has no use for it.
    WrongRole,
    /// Of a log that was cut since.
    OldGeneration,
    /// The store failed or the volume is deleted.
    Stopped,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Role {
    Idle,
    Follower(Box<Follower>),
    Primary(Box<Primary>),
    Stopped { cause: String },
    Deleted,
}

/// One replica of one volume: what it promised, what it holds, what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replica {
    core: Core,
    role: Role,
}

impl Replica {
    /// A replica whose store was opened. It has no role until the masters or a primary give it one:
    /// a restarted primary is none until an assignment names its new incarnation.
    ///
    /// `now` is `CLOCK_BOOTTIME` in milliseconds, as in every other call.
    pub fn open(now: Millis, opened: Opened, params: Params) -> Self {
        let replica = Self { core: Core::open(now, opened, params), role: Role::Idle };
        replica.core.assert_invariants();
        replica
    }

    /// Takes one input. The outputs are to be executed in order.
    pub fn step(&mut self, now: Millis, input: Input) -> (Verdict, Vec<Output>) {
        // The clock of a suspended machine may be read late, never backwards.
        self.core.now = self.core.now.max(now);
        let verdict = self.apply(input);
        if let Role::Primary(primary) = &mut self.role {
            primary.advance(&mut self.core);
        }
        self.core.assert_invariants();
        if let Role::Primary(primary) = &self.role {
            primary.assert_invariants(&self.core);
        }
        (verdict, std::mem::take(&mut self.core.out))
    }

    /// As [`step`](Self::step), for an onlooker: what the recovery engine was told in it, and did.
    pub fn step_observed(&mut self, now: Millis, input: Input) -> Vec<Observed> {
        self.core.observed = Some(Vec::new());
        let _outcome = self.step(now, input);
        self.core.observed.take().unwrap_or_default()
    }

    /// The recovery engine of a primary, and the epoch in force.
    pub fn recovery(&self) -> Option<(Epoch, &VolumeState)> {
        match &self.role {
            Role::Primary(primary) => Some((primary.config.epoch, &primary.recovery)),
            Role::Idle | Role::Follower(_) | Role::Stopped { .. } | Role::Deleted => None,
        }
    }

    /// When a [`Input::Tick`] is due, if nothing else comes first.
    pub fn next_deadline(&self) -> Option<Millis> {
        match &self.role {
            Role::Primary(primary) => primary.next_deadline(&self.core),
            Role::Idle | Role::Follower(_) | Role::Stopped { .. } | Role::Deleted => None,
        }
    }

    /// The newest configuration that the replica knows.
    pub fn config(&self) -> Option<&Config> {
        self.core.config.as_ref()
    }

    /// Cuts and wipes so far: what [`Input::Durable`] and
    /// [`Input::Checkpointed`] must name.
    pub fn generation(&self) -> u64 {
        self.core.log.generation
    }

    /// What became of rotten blocks since it was opened.
    pub fn mends(&self) -> MendCounts {
        self.core.mends
    }

    /// Whether the driver is to write what is appended at once and sync it beside that, and to tell of
    /// both; otherwise only what is synced counts.
    pub fn acks_written(&self) -> bool {
        self.core.acks_written()
    }

    fn apply(&mut self, input: Input) -> Verdict {
        if matches!(self.role, Role::Stopped { .. } | Role::Deleted) {
            return self.apply_stopped(&input);
        }
        match input {
            Input::Assignment(config) => self.assigned(&config),
            Input::Wish(wish) => {
                self.core.wish = wish;
                Verdict::Applied
            }
            Input::Resign => {
                self.core.resigning = true;
                Verdict::Applied
            }
            Input::Space(space) => {
                let changed = self.core.note_space(space);
                if let Role::Follower(follower) = &self.role
                    && changed
                {
                    follower.ack(&mut self.core, None);
                }
                Verdict::Applied
            }
            Input::Deleted => {
                self.core.trace("deleted", "the masters deleted the volume".to_owned());
                self.leave_role(StreamEnd::Deleted);
                self.role = Role::Deleted;
                // It fences like an epoch above all others, across a restart too: until the
                // directory is gone, nobody who missed the order may go on with this replica.
                if self.core.kept.fenced < Epoch(u64::MAX) {
                    self.core.fence(Epoch(u64::MAX));
                    self.core.persist();
                }
                Verdict::Applied
            }
            Input::StoreFailed { cause } => {
                self.core.trace("store-failed", cause.clone());
                self.leave_role(StreamEnd::NotPrimary);
                self.role = Role::Stopped { cause };
                Verdict::Applied
            }
            Input::FromPrimary { lineage, message } => self.hear_primary(lineage, message),
            Input::FromReplica { lineage, message } => self.hear_replica(lineage, message),
            Input::Durable { generation, lsn } => self.durable(generation, lsn),
            Input::Written { generation, lsn } => self.written(generation, lsn),
            Input::Stand { epoch } => self.stand(epoch),
            Input::Checkpointed { generation, checkpoint, retained } => {
                if generation != self.core.log.generation {
                    return Verdict::Ignored(IgnoredReason::OldGeneration);
                }
                self.core.log.checkpoint = self.core.log.checkpoint.max(checkpoint);
                self.core.log.retained = self.core.log.retained.max(retained);
                if let Role::Follower(follower) = &mut self.role {
                    follower.begin_ordered(&mut self.core);
                }
                Verdict::Applied
            }
            Input::Answered { proposal, config } => {
                let newer = config.as_ref().map(|config| self.assigned(config));
                match (&mut self.role, newer) {
                    (_, Some(Verdict::Applied)) => Verdict::Applied,
                    (Role::Primary(primary), _) => {
                        primary.answered(&mut self.core, proposal, config.as_ref())
                    }
                    (Role::Idle | Role::Follower(_) | Role::Stopped { .. } | Role::Deleted, _) => {
                        Verdict::Ignored(IgnoredReason::WrongRole)
                    }
                }
            }
            Input::OpenStream(open) => match &mut self.role {
                Role::Primary(primary) => primary.open_stream(&mut self.core, &open),
                Role::Idle | Role::Follower(_) | Role::Stopped { .. } | Role::Deleted => {
                    let reason = StreamEnd::NotPrimary;
                    self.core.out.push(Output::StreamEnded { stream: open.stream, reason });
                    Verdict::Applied
                }
            },
            Input::BaseFailed { session, cause } => match &mut self.role {
                Role::Primary(primary) => primary.base_failed(&mut self.core, session, cause),
                Role::Follower(follower) => follower.base_failed(&mut self.core, session, cause),
                Role::Idle | Role::Stopped { .. } | Role::Deleted => {
                    Verdict::Ignored(IgnoredReason::WrongRole)
                }
            },
            Input::Rotten { reader: Reader::Asked, blocks, why } => {
                self.core.mends.rotten += blocks.len() as u64;
                let what = format!("{}: {why}; its primary asked for it", in_words(&blocks));
                self.core.trace("rotten", what);
                Verdict::Applied
            }
            Input::Tick => Verdict::Applied,
            Input::Unreachable { .. }
            | Input::FeedFailed { .. }
            | Input::BaseProgress { .. }
            | Input::BaseSent { .. }
            | Input::CloseStream { .. }
            | Input::Request { .. }
            | Input::Rotten { .. }
            | Input::Scrub { .. }
            | Input::ReadDone { .. }
            | Input::HolesFound { .. }
            | Input::DataFound { .. } => self.for_primary(input),
        }
    }

    /// A replica that stopped says so to frontends; all else is nothing to it any more.
    fn apply_stopped(&mut self, input: &Input) -> Verdict {
        if let Input::OpenStream(open) = input {
            let deleted = matches!(self.role, Role::Deleted);
            let reason = if deleted { StreamEnd::Deleted } else { StreamEnd::NotPrimary };
            self.core.out.push(Output::StreamEnded { stream: open.stream, reason });
        }
        Verdict::Ignored(IgnoredReason::Stopped)
    }

    fn for_primary(&mut self, input: Input) -> Verdict {
        let Role::Primary(primary) = &mut self.role else {
            return Verdict::Ignored(IgnoredReason::WrongRole);
        };
        let core = &mut self.core;
        match input {
            Input::Unreachable { replica, refused } => primary.lost(core, replica, refused),
            Input::FeedFailed { replica, cause } => primary.feed_failed(core, replica, cause),
            Input::BaseProgress { session, bytes } => primary.base_progress(core, session, bytes),
            Input::BaseSent { session, through } => primary.base_sent(core, session, through),
            Input::CloseStream { stream } => primary.close_stream(stream),
            Input::Request { stream, request } => primary.request(core, stream, request),
            Input::ReadDone { stream, tag, error } => primary.read_done(core, stream, tag, error),
            Input::Rotten { reader, blocks, why } => primary.rotten(core, reader, &blocks, why),
            Input::DataFound { search, found, error } => {
                primary.data_found(core, search, found, error)
            }
            Input::HolesFound { stream, tag, holes } => primary.holes_found(stream, tag, holes),
            Input::Scrub { blocks } => primary.scrub(core, &blocks),
            Input::Assignment(_)
            | Input::Wish(_)
            | Input::Resign
            | Input::Space(_)
            | Input::Deleted
            | Input::FromPrimary { .. }
            | Input::FromReplica { .. }
            | Input::BaseFailed { .. }
            | Input::Durable { .. }
            | Input::Written { .. }
            | Input::Stand { .. }
            | Input::Checkpointed { .. }
            | Input::StoreFailed { .. }
            | Input::Answered { .. }
            | Input::OpenStream(_)
            | Input::Tick => Verdict::Ignored(IgnoredReason::WrongRole),
        }
    }

    /// A configuration from the masters: from themselves, or from a replica that refused.
    fn assigned(&mut self, config: &Config) -> Verdict {
        if config.volume != self.core.volume {
            return Verdict::Ignored(IgnoredReason::WrongReplica);
        }
        if !config.is_sound() {
            return Verdict::Ignored(IgnoredReason::Malformed);
        }
        let newer = self.core.learn(config);
        let mut mine = config.primary == self.core.me;
        if on(Bug::ResumeAfterRestart) {
            mine = config.primary.id == self.core.me.id;
        }
        if let Role::Primary(primary) = &mut self.role {
            if config.epoch == primary.config.epoch && mine {
                primary.moved(&mut self.core, config);
            }
            if config.epoch <= primary.config.epoch {
                return Verdict::Ignored(IgnoredReason::KnownConfig);
            }
            if mine && (config.since <= primary.config.epoch || on(Bug::ContinueAlways)) {
                primary.continued(&mut self.core, config.clone());
                return Verdict::Applied;
            }
            // Somebody else's, or this one's after somebody else's.
            let what = format!("epoch {} has primary {}", config.epoch, config.primary.id);
            if primary.handed_over_to() == Some(config.primary) {
                self.core.trace("handed-over", what);
            } else {
                self.core.trace("stepped-down", what);
            }
            self.leave_role(StreamEnd::NotPrimary);
        }
        if self.core.newer_than(config.epoch).is_some() {
            // A push that lags behind what is known already: that epoch is over, whoever it names.
            return Verdict::Ignored(IgnoredReason::StaleEpoch);
        }
        if config.primary.id == self.core.me.id && !mine {
            return Verdict::Ignored(IgnoredReason::OtherIncarnation);
        }
        if !mine {
            // It does not fence: that would race the new primary's own fence.
            let reason = Verdict::Ignored(IgnoredReason::KnownConfig);
            return if newer { Verdict::Applied } else { reason };
        }
        if config.epoch <= self.core.kept.fenced.max(self.core.stood()) {
            return Verdict::Ignored(IgnoredReason::StaleEpoch);
        }
        if !config.has_kept(self.core.me.id, self.core.tail) {
            let why = "what this replica had written and not synced may be gone".to_owned();
            self.core.trace("promotion-refused", why);
            return Verdict::Ignored(IgnoredReason::Incomplete);
        }
        if self.core.kept.incomplete.is_some() || !config.isr.contains(&self.core.me.id) {
            self.core.trace("promotion-refused", "this replica holds no complete image".to_owned());
            return Verdict::Ignored(IgnoredReason::Incomplete);
        }
        let primary = Primary::promoted(&mut self.core, config.clone());
        self.role = Role::Primary(Box::new(primary));
        Verdict::Applied
    }

    /// Ends whatever the role has going with others.
    fn leave_role(&mut self, reason: StreamEnd) {
        if let Role::Primary(primary) = &mut self.role {
            primary.stop(&mut self.core, reason);
        }
        self.role = Role::Idle;
    }

    fn durable(&mut self, generation: u64, lsn: crate::types::Lsn) -> Verdict {
        if generation != self.core.log.generation {
            return Verdict::Ignored(IgnoredReason::OldGeneration);
        }
        assert!(lsn <= self.core.log.end, "I5: durable {lsn} was never logged");
        self.core.log.durable = self.core.log.durable.max(lsn);
        self.core.log.written = self.core.log.written.max(lsn);
        if let Role::Follower(follower) = &mut self.role {
            follower.tell_facts(&mut self.core);
            follower.settle(&mut self.core);
            follower.ack(&mut self.core, None);
        }
        Verdict::Applied
    }

    fn written(&mut self, generation: u64, lsn: crate::types::Lsn) -> Verdict {
        if generation != self.core.log.generation {
            return Verdict::Ignored(IgnoredReason::OldGeneration);
        }
        assert!(lsn <= self.core.log.end, "I5: written {lsn} was never logged");
        self.core.log.written = self.core.log.written.max(lsn);
        if let Role::Follower(follower) = &self.role {
            follower.ack(&mut self.core, None);
        }
        Verdict::Applied
    }

    /// Stops to take part in an epoch that is to end. What it acknowledged in it is in its log, which
    /// is being synced; the view tells when that is done.
    fn stand(&mut self, epoch: Epoch) -> Verdict {
        let acts_in = match &self.role {
            Role::Primary(primary) => Some(primary.config.epoch),
            Role::Idle | Role::Follower(_) | Role::Stopped { .. } | Role::Deleted => None,
        };
        if epoch < self.core.kept.fenced || acts_in >= Some(epoch) {
            return Verdict::Ignored(IgnoredReason::StaleEpoch);
        }
        if epoch <= self.core.stood() {
            return Verdict::Ignored(IgnoredReason::LateCopy);
        }
        if self.core.kept.incomplete.is_some() {
            return Verdict::Ignored(IgnoredReason::Incomplete);
        }
        self.leave_role(StreamEnd::NotPrimary);
        self.core.kept.stood = Some(Stood { epoch, tail: self.core.tail });
        self.core.persist();
        let (end, durable) = (self.core.log.end, self.core.log.durable);
        let what = format!("takes no part in epoch {epoch} any more; syncs {durable} to {end}");
        self.core.trace("stood", what);
        Verdict::Applied
    }

    fn hear_primary(&mut self, lineage: Lineage, message: ToReplica) -> Verdict {
        let me = self.core.me;
        if lineage.volume != self.core.volume || lineage.to.id != me.id {
            return Verdict::Ignored(IgnoredReason::WrongReplica);
        }
        // It stood for another primary: to this one it is as if it were gone, but for saying why.
        if lineage.epoch <= self.core.stood() && lineage.epoch >= self.core.kept.fenced {
            self.refuse(lineage);
            return Verdict::Ignored(IgnoredReason::Stood);
        }
        if let ToReplica::Probe { request } = message {
            let answer = self.core.lineage(lineage.epoch, lineage.from);
            self.core
                .out
                .push(Output::ToPrimary { lineage: answer, message: ToPrimary::Alive { request } });
            return Verdict::Applied;
        }
        if lineage.to.incarnation != me.incarnation {
            self.refuse(lineage);
            return Verdict::Ignored(IgnoredReason::StaleIncarnation);
        }
        if lineage.epoch < self.core.kept.fenced && !on(Bug::TakeOlderEpoch) {
            self.refuse(lineage);
            return Verdict::Ignored(IgnoredReason::StaleEpoch);
        }
        if let ToReplica::Fence { request, config } = message {
            return self.fence(lineage, request, &config);
        }
        let Role::Follower(follower) = &mut self.role else {
            // It knows of no reconciliation with that primary: have it begin anew.
            self.refuse(lineage);
            return Verdict::Ignored(IgnoredReason::NotReconciled);
        };
        if follower.primary != lineage.from {
            return Verdict::Ignored(IgnoredReason::NotThePrimary);
        }
        let core = &mut self.core;
        match message {
            ToReplica::Cut { request, end, table } => {
                follower.cut(core, lineage, request, end, &table)
            }
            ToReplica::Fetch { request, prev, last } => {
                follower.fetch(core, lineage, request, prev, last)
            }
            ToReplica::ReadBlocks { request, committed, blocks } => {
                follower.read_blocks(core, lineage, request, committed, blocks)
            }
            ToReplica::Append(append) => follower.append(core, lineage, &append),
            ToReplica::BeginRebuild { request, mark, table, state } => {
                follower.begin_rebuild(core, request, Order { lineage, mark, table, state })
            }
            ToReplica::Close { session, through, committed } => {
                follower.close(core, session, through, committed)
            }
            ToReplica::Probe { .. } | ToReplica::Fence { .. } => Verdict::Applied,
        }
    }

    fn fence(&mut self, lineage: Lineage, request: u64, config: &Config) -> Verdict {
        let names_sender = config.primary == lineage.from
            && config.epoch == lineage.epoch
            && config.volume == self.core.volume
            && config.primary.id != self.core.me.id;
        if !names_sender || !config.is_sound() {
            return Verdict::Ignored(IgnoredReason::Malformed);
        }
        self.core.learn(config);
        let known = match &self.role {
            Role::Follower(follower) => {
                follower.primary == lineage.from && follower.epoch == lineage.epoch
            }
            Role::Idle | Role::Primary(_) | Role::Stopped { .. } | Role::Deleted => false,
        };
        if !known {
            let taken = match &self.role {
                Role::Follower(follower) => follower.epoch == lineage.epoch,
                Role::Primary(primary) => primary.config.epoch == lineage.epoch,
                Role::Idle | Role::Stopped { .. } | Role::Deleted => false,
            };
            if taken {
                // One epoch has one primary.
                return Verdict::Ignored(IgnoredReason::NotThePrimary);
            }
            self.leave_role(StreamEnd::NotPrimary);
            self.role = Role::Follower(Box::new(Follower::fenced(&mut self.core, config)));
        }
        match &mut self.role {
            Role::Follower(follower) => follower.answer_facts(&mut self.core, lineage, request),
            Role::Idle | Role::Primary(_) | Role::Stopped { .. } | Role::Deleted => {
                Verdict::Ignored(IgnoredReason::WrongRole)
            }
        }
    }

    /// Tells a sender that it is out of date, with what is newer if anything is known.
    fn refuse(&mut self, lineage: Lineage) {
        let config = self.core.newer_than(lineage.epoch);
        let fenced = self.core.kept.fenced;
        let answer = self.core.lineage(lineage.epoch, lineage.from);
        let message = ToPrimary::Refused { fenced, config, stood: self.core.stood() };
        self.core.out.push(Output::ToPrimary { lineage: answer, message });
    }

    fn hear_replica(&mut self, lineage: Lineage, message: ToPrimary) -> Verdict {
        if lineage.volume != self.core.volume || lineage.to.id != self.core.me.id {
            return Verdict::Ignored(IgnoredReason::WrongReplica);
        }
        if lineage.to.incarnation != self.core.me.incarnation {
            return Verdict::Ignored(IgnoredReason::StaleIncarnation);
        }
        if let ToPrimary::Refused { config: Some(config), .. } = &message
            && !on(Bug::ServeAfterRefusal)
            && self.assigned(config) == Verdict::Applied
        {
            return Verdict::Applied;
        }
        if let (ToPrimary::Refused { fenced, .. }, Role::Primary(primary)) = (&message, &self.role)
            && *fenced > primary.config.epoch
            && !(*fenced == Epoch(u64::MAX) && primary.ends_alone(lineage.from.id))
            && !on(Bug::ServeAfterRefusal)
        {
            // Whose that epoch is will be learned; this one is over, for no promise is taken back.
            let what = format!("{} promised epoch {fenced} to another primary", lineage.from.id);
            self.core.trace("stepped-down", what);
            self.leave_role(StreamEnd::NotPrimary);
            return Verdict::Applied;
        }
        match &mut self.role {
            Role::Primary(primary) => primary.hear(&mut self.core, lineage, message),
            Role::Idle | Role::Follower(_) | Role::Stopped { .. } | Role::Deleted => {
                Verdict::Ignored(IgnoredReason::WrongRole)
            }
        }
    }

    /// What the replica shows of itself.
    pub fn view(&self, now: Millis) -> View {
        let core = &self.core;
        let mut view = View {
            me: core.me,
            role: RoleView::Idle,
            epoch: core.kept.fenced,
            config: core.config.clone(),
            ready: false,
            serving: false,
            reason: String::new(),
            end: core.log.end,
            written: core.log.written,
            durable: core.log.durable,
            committed: core.log.committed,
            checkpoint: core.log.checkpoint,
            retained: core.log.retained,
            table_epoch: core.recorded,
            incomplete: core.kept.incomplete,
            doubtful: core.kept.doubtful,
            loss_generation: core.kept.loss_generation,
            promised: core.promised_to(now),
            lacking: Vec::new(),
            lacking_ms: 0,
            handover: HandoverView::None,
            tail: core.tail,
            stood: None,
            peers: std::collections::BTreeMap::new(),
            sessions: core.log.state.sessions.len(),
            attach: core.log.state.attach,
            attachments: Vec::new(),
            blocks: core.log.state.blocks,
            committed_blocks: core.log.committed_state.blocks,
            in_flight: 0,
            mends: core.mends,
            space: core.space.unwrap_or_default().space,
            growth_waits: false,
        };
        if core.stood() > Epoch(0) && core.log.durable == core.log.end {
            view.stood = Some(core.stood());
        }
        match &self.role {
            Role::Idle => "no primary has spoken to it and it is none".clone_into(&mut view.reason),
            Role::Follower(_) => {
                view.role = RoleView::Follower;
                if core.kept.incomplete.is_some() {
                    "it is being rebuilt".clone_into(&mut view.reason);
                }
            }
            Role::Primary(primary) => primary.show(core, now, &mut view),
            Role::Stopped { cause } => {
                view.role = RoleView::Stopped;
                view.reason = format!("its store failed: {cause}");
            }
            Role::Deleted => view.role = RoleView::Deleted,
        }
        view
    }

    /// The run of another replica that the primary last met.
    pub fn met(&self, replica: ReplicaId) -> Option<Incarnation> {
        match &self.role {
            Role::Primary(primary) => primary.peers.get(&replica).and_then(|peer| peer.incarnation),
            Role::Idle | Role::Follower(_) | Role::Stopped { .. } | Role::Deleted => None,
        }
    }
}
