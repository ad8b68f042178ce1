//! A replica that follows a primary: promises, cuts, takes the feed, is rebuilt.
//!
//! Invariant: while `reconciled` is set, this log is a prefix of the primary's. Everything that
//! appends to it or moves its committed LSN asks for that first.

use serde::{Deserialize, Serialize};

use super::core::{Core, fresh_entries};
use super::io::{Output, Payload};
use super::log::{EpochTable, LogState};
use super::mend::MESSAGE_BLOCKS;
use super::message::{Append, Facts, Incomplete, Lineage, RecoveryId, ToPrimary};
use super::{IgnoredReason, Verdict};
use crate::bugs::{Bug, on};
use crate::recovery::FailureKind;
use crate::types::{Config, Durability, Epoch, Lba, LossGeneration, Lsn, Millis, ReplicaRef};

/// What a follower knows of its primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Follower {
    /// The primary of `epoch`.
    pub(super) primary: ReplicaRef,
    /// The epoch promised to.
    pub(super) epoch: Epoch,
    /// The volume's loss generation in this primary's tenure: only another tenure changes it.
    loss_generation: LossGeneration,
    /// The epoch in which this log was last made a prefix of the primary's. A continuous newer
    /// epoch needs no other.
    reconciled: Option<Epoch>,
    /// The primary's first LSN in `epoch`, once told.
    first: Option<Lsn>,
    /// The highest committed LSN that the primary told.
    committed: Lsn,
    /// The newest question answered: older ones are late copies.
    question: u64,
    /// A session that ends once the log reaches the LSN.
    closing: Option<(RecoveryId, Lsn)>,
    /// The newest rebuild that was begun for this primary.
    begun: Option<RecoveryId>,
    /// Who handed this primary its tenure, and serves no more.
    #[serde(default)]
    gone: Option<ReplicaRef>,
    /// A question for what is held, to be answered once all of it is synced.
    owed: Option<(Lineage, u64)>,
    /// An order to begin a delta, to be followed once the extents hold what it starts from.
    #[serde(default)]
    ordered: Option<Box<Order>>,
}

/// An order to begin a base lane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) lineage: Lineage,
    pub(super) mark: Incomplete,
    pub(super) table: EpochTable,
    pub(super) state: LogState,
}

impl Follower {
    /// Promises `config.epoch` to its primary. The promise is durable before the facts go out.
    pub(super) fn fenced(core: &mut Core, config: &Config) -> Self {
        if config.epoch > core.kept.fenced {
            core.fence(config.epoch);
            core.persist();
            core.trace(
                "fenced",
                format!("promised epoch {} to {}", config.epoch, config.primary.id),
            );
        }
        Self {
            primary: config.primary,
            epoch: config.epoch,
            loss_generation: config.loss_generation,
            reconciled: None,
            first: None,
            committed: Lsn(0),
            question: 0,
            closing: None,
            begun: None,
            gone: config.handed_over_by,
            owed: None,
            ordered: None,
        }
    }

    /// Answers a fence.
    pub(super) fn answer_facts(
        &mut self,
        core: &mut Core,
        lineage: Lineage,
        request: u64,
    ) -> Verdict {
        if request <= self.question {
            return Verdict::Ignored(IgnoredReason::LateCopy);
        }
        self.question = request;
        self.reconciled = None;
        self.closing = None;
        self.ordered = None;
        self.owed = Some((lineage, request));
        self.tell_facts(core);
        Verdict::Applied
    }

    /// Answers the question that is owed. With written acknowledgements only once the log is synced: the
    /// primary has all cut that it is not told of, and what was acknowledged as written would be missing
    /// until it was sent again.
    pub(super) fn tell_facts(&mut self, core: &mut Core) {
        let synced = core.log.durable == core.log.end || on(Bug::FactsUnsynced);
        if core.acks_written() && !synced {
            return;
        }
        let Some((lineage, request)) = self.owed.take() else { return };
        let facts = Facts {
            table: core.kept.table.up_to(core.log.durable),
            durable: core.log.durable,
            committed: core.log.committed,
            checkpoint: core.log.checkpoint,
            retained: core.log.retained,
            incomplete: core.kept.incomplete,
            loss_generation: core.kept.loss_generation,
            promised_ms: core.promised_ms(self.primary, self.gone),
            tail: core.tail,
            doubtful: core.kept.doubtful,
        };
        self.reply(core, lineage, ToPrimary::Facts { request, facts });
    }

    /// A candidate, which this replica is fenced for, wants entries that it lacks.
    pub(super) fn fetch(
        &mut self,
        core: &mut Core,
        lineage: Lineage,
        request: u64,
        prev: Lsn,
        last: Lsn,
    ) -> Verdict {
        if request <= self.question {
            return Verdict::Ignored(IgnoredReason::LateCopy);
        }
        if core.kept.incomplete.is_some() {
            return Verdict::Ignored(IgnoredReason::Incomplete);
        }
        if prev >= last || last > core.log.durable {
            return Verdict::Ignored(IgnoredReason::Malformed);
        }
        self.question = request;
        if prev.next() < core.log.retained {
            self.reply(core, lineage, ToPrimary::Entries { request, prev, entries: Vec::new() });
        } else {
            let lineage = core.lineage(lineage.epoch, lineage.from);
            core.out.push(Output::SendFetched { lineage, request, prev, last });
        }
        Verdict::Applied
    }

    /// The primary asks for blocks that rotted there. An answer that it may not take is not worth the read:
    /// this log may have to be cut, or be behind what the primary has committed.
    pub(super) fn read_blocks(
        &self,
        core: &mut Core,
        lineage: Lineage,
        request: u64,
        committed: Lsn,
        blocks: Vec<Lba>,
    ) -> Verdict {
        if core.kept.incomplete.is_some() {
            return Verdict::Ignored(IgnoredReason::Incomplete);
        }
        let behind = core.log.end < committed && !on(Bug::MendBehind);
        if behind || self.reconciled.is_none() || lineage.epoch != self.epoch {
            return Verdict::Ignored(IgnoredReason::NotReconciled);
        }
        if blocks.is_empty() || blocks.len() > MESSAGE_BLOCKS {
            return Verdict::Ignored(IgnoredReason::Malformed);
        }
        let lineage = core.lineage(lineage.epoch, lineage.from);
        let at = core.log.end;
        core.out.push(Output::SendBlocks { lineage, request, at, blocks });
        Verdict::Applied
    }

    /// Cuts the log to what it has in common with the primary's.
    pub(super) fn cut(
        &mut self,
        core: &mut Core,
        lineage: Lineage,
        request: u64,
        end: Lsn,
        table: &EpochTable,
    ) -> Verdict {
        if request <= self.question {
            return Verdict::Ignored(IgnoredReason::LateCopy);
        }
        if core.kept.incomplete.is_some() {
            return Verdict::Ignored(IgnoredReason::Incomplete);
        }
        if end < core.log.committed {
            // Only a lossy promotion may take back what was committed, and it would have said so.
            core.trace(
                "cut-refused",
                format!("to {end}, but {} is committed here", core.log.committed),
            );
            return Verdict::Ignored(IgnoredReason::CutBelowCommitted);
        }
        if end > core.log.durable {
            return Verdict::Ignored(IgnoredReason::Malformed);
        }
        self.question = request;
        self.ordered = None;
        if lineage.epoch > self.epoch {
            // The primary's tenure went on since it was told what is here: another tenure would
            // have asked for a promise first, and it is the promise that ends the old one's.
            core.fence(lineage.epoch);
            self.epoch = lineage.epoch;
            self.first = None;
        }
        // All up to `end` is the same log as the primary's, so its table describes it.
        let describes = if on(Bug::OwnTableAtCut) { &core.kept.table } else { table };
        core.kept.table = describes.up_to(end);
        core.kept.loss_generation = core.kept.loss_generation.max(self.loss_generation);
        if end < core.log.end && !on(Bug::SkipCut) {
            core.trace(
                "cut",
                format!("from {} to {end}: the rest was never committed", core.log.end),
            );
            core.cut_log(end);
            let kept = core.kept_for_disk();
            core.recorded = kept.table.last().map(|(epoch, _)| epoch);
            core.out.push(Output::Cut { end, kept });
        } else {
            core.persist();
        }
        self.reconciled = Some(self.epoch);
        let durable = if on(Bug::SkipCut) { end } else { core.log.durable };
        self.reply(core, lineage, ToPrimary::CutDone { request, durable });
        Verdict::Applied
    }

    /// Takes a message of the feed.
    pub(super) fn append(&mut self, core: &mut Core, lineage: Lineage, append: &Append) -> Verdict {
        if let Err(reason) = self.admit_newer(core, lineage, append.since) {
            return Verdict::Ignored(reason);
        }
        if self.reconciled.is_none() {
            return Verdict::Ignored(IgnoredReason::NotReconciled);
        }
        let fresh = match fresh_entries(append, core.log.end) {
            Ok(fresh) => fresh.to_vec(),
            Err(reason) => return Verdict::Ignored(reason),
        };
        self.first = Some(append.first);
        self.committed = self.committed.max(append.committed);
        let gap = match fresh.first() {
            Some(header) => header.lsn != core.log.end.next(),
            None => append.prev > core.log.end,
        };
        if gap {
            let end = core.log.end;
            self.reply(core, lineage, ToPrimary::Gap { end });
        } else if !fresh.is_empty() {
            core.extend(&fresh);
            core.out.push(Output::Append { headers: fresh, payload: Payload::Feed });
        }
        self.settle(core);
        if let Some(stamp) = append.stamp {
            core.promise(self.primary);
            self.ack(core, Some(stamp));
        } else if !append.entries.is_empty() && core.log.durable >= core.log.end {
            // Nothing new was logged, so no sync will make an acknowledgement by itself.
            self.ack(core, None);
        }
        Verdict::Applied
    }

    /// Lets a message of a newer epoch of the same, uninterrupted primary in.
    fn admit_newer(
        &mut self,
        core: &mut Core,
        lineage: Lineage,
        since: Epoch,
    ) -> Result<(), IgnoredReason> {
        if lineage.epoch == self.epoch {
            return Ok(());
        }
        // Older ones were refused before they came here.
        let continues = lineage.from == self.primary
            && self.reconciled.is_some_and(|reconciled| since <= reconciled);
        if !continues {
            return Err(IgnoredReason::NotReconciled);
        }
        core.fence(lineage.epoch);
        core.persist();
        self.epoch = lineage.epoch;
        self.reconciled = Some(lineage.epoch);
        self.first = None;
        Ok(())
    }

    /// The log's durable end moved, or the primary's frontiers did.
    pub(super) fn settle(&mut self, core: &mut Core) {
        if self.reconciled.is_none() {
            return;
        }
        core.commit_to(self.committed);
        if let Some(first) = self.first {
            let recorded = core.record_epoch(self.epoch, first);
            // Below the epoch's start it holds all that the primary does, which is all that was
            // acknowledged; of what came after, whatever was acknowledged when it was opened was
            // committed when the primary told this run how far that goes.
            if recorded && core.log.durable >= self.committed {
                core.end_doubt();
            }
        }
        self.try_close(core);
    }

    /// Tells the primary what is durable.
    pub(super) fn ack(&self, core: &mut Core, promised: Option<Millis>) {
        if self.reconciled.is_none() {
            return;
        }
        let lineage = core.lineage(self.epoch, self.primary);
        let message = ToPrimary::Ack {
            durable: core.log.durable,
            written: core.log.written,
            recorded: core.recorded,
            promised,
            space: core.space.unwrap_or_default(),
        };
        core.out.push(Output::ToPrimary { lineage, message });
    }

    /// An order to begin a base lane.
    pub(super) fn begin_rebuild(&mut self, core: &mut Core, request: u64, order: Order) -> Verdict {
        let Order { lineage, mark, .. } = order;
        // The session may be over, and its replica in sync since: what was under way for long must
        // not wipe it. A copy has the number of a question that was answered; one that was asked
        // again has a newer number, but names a session that is not the one under way.
        let over = self.begun.is_some_and(|begun| {
            mark.session < begun || mark.session == begun && core.kept.incomplete != Some(mark)
        });
        if (request <= self.question || over) && !on(Bug::LateBeginRebuild) {
            return Verdict::Ignored(IgnoredReason::LateCopy);
        }
        let listed = core.config.as_ref().is_some_and(|c| {
            let leaves = c.durability != Durability::SyncQuorum;
            leaves && c.epoch == lineage.epoch && c.isr.contains(&core.me.id)
        });
        if listed && !on(Bug::BaseToMember) {
            // Its copy may be the one that a failover needs: it must leave first. (A voter need
            // not: an INCOMPLETE one is absent, and the primary wipes none that is needed.)
            return Verdict::Ignored(IgnoredReason::ListedInSync);
        }
        if mark.from > Lsn(0)
            && let Err(reason) = self.may_keep(core, mark)
        {
            return Verdict::Ignored(reason);
        }
        self.question = request;
        if core.is_short() {
            // What it has may be of use; and a base would fill the disk.
            let (session, cause) = (mark.session, FailureKind::NoSpace);
            self.reply(core, lineage, ToPrimary::SessionFailed { session, cause });
            return Verdict::Applied;
        }
        if lineage.epoch > self.epoch {
            core.fence(lineage.epoch);
            self.epoch = lineage.epoch;
            self.first = None;
        }
        self.ordered = Some(Box::new(order));
        self.begin_ordered(core);
        Verdict::Applied
    }

    /// Whether the order to begin a delta fits the image that is here.
    fn may_keep(&self, core: &Core, mark: Incomplete) -> Result<(), IgnoredReason> {
        match core.kept.incomplete {
            // What broken sessions wrote lies in regions that are newer than where the first began, and
            // is not newer than the base of the next.
            Some(torn) if torn == mark => Ok(()),
            Some(torn) => {
                let first = mark.from <= torn.from || on(Bug::FromOfLast);
                let fits = first && torn.from > Lsn(0) && mark.base >= torn.base;
                if fits { Ok(()) } else { Err(IgnoredReason::Malformed) }
            }
            None if self.reconciled.is_none() => Err(IgnoredReason::NotReconciled),
            None if mark.from <= core.log.durable && core.log.committed <= mark.base => Ok(()),
            None => Err(IgnoredReason::Malformed),
        }
    }

    /// Follows an order to begin a base lane, if that can be done now.
    ///
    /// A delta starts from the image of `mark.from`, so the extents must hold all of that: what is in
    /// the log only goes with it. The primary knows it to be committed, and both logs are the same that
    /// far.
    pub(super) fn begin_ordered(&mut self, core: &mut Core) {
        let Some(order) = &self.ordered else { return };
        let Order { lineage, mark, .. } = **order;
        if core.kept.incomplete.is_none() && mark.from > Lsn(0) {
            core.commit_to(mark.from);
            if core.log.checkpoint < mark.from && !on(Bug::DeltaUncheckpointed) {
                core.out.push(Output::Checkpoint { upto: mark.from });
                return;
            }
        }
        let Some(order) = self.ordered.take() else { return };
        self.begun = Some(mark.session);
        if core.kept.incomplete != Some(mark) || self.reconciled.is_none() {
            become_incomplete(core, *order);
        }
        self.reconciled = Some(self.epoch);
        self.closing = None;
        self.reply(core, lineage, ToPrimary::RebuildStarted { session: mark.session });
    }

    /// The primary has sent all of the session.
    pub(super) fn close(
        &mut self,
        core: &mut Core,
        session: RecoveryId,
        through: Lsn,
        committed: Lsn,
    ) -> Verdict {
        if self.reconciled.is_none() {
            return Verdict::Ignored(IgnoredReason::NotReconciled);
        }
        if core.kept.incomplete.is_some_and(|mark| mark.session != session) {
            return Verdict::Ignored(IgnoredReason::UnknownSession);
        }
        self.closing = Some((session, through));
        self.committed = self.committed.max(committed);
        self.settle(core);
        Verdict::Applied
    }

    /// Ends the session when the log holds all of it and the epoch's start.
    fn try_close(&mut self, core: &mut Core) {
        let Some((session, through)) = self.closing else { return };
        let whole = self.first.is_some_and(|first| core.log.durable.next() >= first);
        if core.log.durable < through || !whole {
            return;
        }
        if let (Some(mark), Some(first)) = (core.kept.incomplete, self.first) {
            core.note_epoch(self.epoch, first);
            core.kept.incomplete = None;
            core.kept.doubtful = false;
            core.kept.loss_generation = core.kept.loss_generation.max(self.loss_generation);
            let kept = core.kept_for_disk();
            core.recorded = kept.table.last().map(|(epoch, _)| epoch);
            let whole = format!("complete up to {}", core.log.durable);
            if mark.from > Lsn(0) {
                core.trace("delta-taken", whole);
            } else {
                core.trace("rebuilt", whole);
            }
            core.out.push(Output::FinishRebuild { session, kept });
        }
        if core.recorded != Some(self.epoch) {
            return;
        }
        self.closing = None;
        let lineage = core.lineage(self.epoch, self.primary);
        let achieved = core.log.durable;
        core.out
            .push(Output::ToPrimary { lineage, message: ToPrimary::Closed { session, achieved } });
    }

    /// The base lane broke on this side.
    pub(super) fn base_failed(
        &mut self,
        core: &mut Core,
        session: RecoveryId,
        cause: FailureKind,
    ) -> Verdict {
        if core.kept.incomplete.is_none_or(|mark| mark.session != session) {
            return Verdict::Ignored(IgnoredReason::UnknownSession);
        }
        self.closing = None;
        self.reconciled = None;
        let lineage = core.lineage(self.epoch, self.primary);
        core.out.push(Output::ToPrimary {
            lineage,
            message: ToPrimary::SessionFailed { session, cause },
        });
        Verdict::Applied
    }

    fn reply(&self, core: &mut Core, question: Lineage, message: ToPrimary) {
        let lineage = core.lineage(question.epoch, question.from);
        core.out.push(Output::ToPrimary { lineage, message });
    }
}

/// Becomes INCOMPLETE and starts an empty log above the base: with the extents as they are for a delta,
/// without anything for a rebuild.
fn become_incomplete(core: &mut Core, order: Order) {
    let Order { mark, table, state, .. } = order;
    let held = core.kept.incomplete.map_or(core.log.checkpoint, |torn| torn.from);
    assert!(
        held >= mark.from || on(Bug::DeltaUncheckpointed) || on(Bug::FromOfLast),
        "R8: a delta from {}, but the extents hold {held}",
        mark.from
    );
    let (base, target) = (mark.base, mark.target);
    let lsns = format!("base {base}, target {target}");
    match mark.from {
        Lsn(0) => core.trace("rebuild-started", format!("wiped; {lsns}")),
        from => core.trace("delta-started", format!("keeps the image of {from}; {lsns}")),
    }
    let state = if on(Bug::StateNotHandedOver) { LogState::new(state.blocks) } else { state };
    core.kept.incomplete = Some(mark);
    core.kept.table = EpochTable::default();
    let kept = core.kept.clone();
    core.recorded = None;
    core.kept.table = table.up_to(base);
    core.log.end = base;
    core.log.durable = base;
    core.log.written = base;
    core.log.committed = base;
    core.log.checkpoint = base;
    core.log.retained = base.next();
    core.log.generation += 1;
    core.log.uncommitted.clear();
    core.log.state = state.clone();
    core.log.committed_state = state.clone();
    core.out.push(Output::Wipe { mark, state, kept });
}
