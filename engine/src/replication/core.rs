//! What a replica is in every role: its log's frontiers, its promises, its superblock.

use std::collections::{BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use super::io::{Kept, Opened, Output};
use super::log::{BlockRange, EntryHeader, EntryKind, EpochTable, LogState};
use super::mend::MendCounts;
use super::message::{Append, Lineage};
use super::room::SpaceTold;
use super::trace::{Observed, TraceEvent};
use super::{IgnoredReason, Params};
use crate::bugs::{Bug, on};
use crate::types::{
    AttachGeneration, Config, Epoch, Lsn, Millis, ReplicaId, ReplicaRef, TailId, VolumeId, Wish,
};

/// A promise to a primary not to serve before a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Promise {
    /// To whom; `None` for whatever an earlier run of this replica may have promised.
    pub(super) to: Option<ReplicaRef>,
    /// Until when, on this machine's clock, drift margin included.
    pub(super) until: Millis,
}

/// The log's frontiers. Invariant: `checkpoint <= committed <= durable <= written <= end`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Log {
    /// Last LSN logged.
    pub(super) end: Lsn,
    /// Last LSN in the file, synced or not, as far as it was told.
    pub(super) written: Lsn,
    /// Last LSN synced.
    pub(super) durable: Lsn,
    /// Last LSN known to be committed.
    pub(super) committed: Lsn,
    /// Last LSN in the extents.
    pub(super) checkpoint: Lsn,
    /// S: oldest LSN that the WAL holds.
    pub(super) retained: Lsn,
    /// Cuts and wipes so far in this opening.
    pub(super) generation: u64,
    /// The state as of `end`.
    pub(super) state: LogState,
    /// The state as of `committed`.
    pub(super) committed_state: LogState,
    /// Headers of `committed + 1 ..= end`.
    pub(super) uncommitted: VecDeque<EntryHeader>,
}

/// What every role works on. Outputs gather in `out` in the order in which they are executed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Core {
    pub(super) params: Params,
    pub(super) me: ReplicaRef,
    pub(super) volume: VolumeId,
    pub(super) tail: TailId,
    pub(super) now: Millis,
    /// What was last written to the superblock, but for `table`, which also knows what the log's
    /// entries imply. [`Core::persist`] writes the part of it that is durably backed.
    pub(super) kept: Kept,
    /// The newest epoch in the table as it is on disk.
    pub(super) recorded: Option<Epoch>,
    pub(super) log: Log,
    pub(super) promises: Vec<Promise>,
    /// The newest configuration known, from whomever.
    pub(super) config: Option<Config>,
    /// What the masters want, if this replica is primary.
    pub(super) wish: Wish,
    /// The process is about to end: the role of primary goes to another replica, if one can take it.
    #[serde(default)]
    pub(super) resigning: bool,
    /// The room on its disk; `None` as long as its driver has not told.
    #[serde(default)]
    pub(super) space: Option<SpaceTold>,
    #[serde(skip)]
    pub(super) out: Vec<Output>,
    /// What became of rotten blocks.
    #[serde(default)]
    pub(super) mends: MendCounts,
    /// Gathers what the recovery engine is told, while somebody looks on.
    #[serde(skip)]
    pub(super) observed: Option<Vec<Observed>>,
}

impl Core {
    pub(super) fn open(now: Millis, opened: Opened, params: Params) -> Self {
        let mut opened = opened;
        if on(Bug::ForgetAttachment) {
            (opened.state.attach, opened.state.exclusive) = (AttachGeneration(0), None);
            opened.state.sessions.values_mut().for_each(|log| log.attach = AttachGeneration(0));
        }
        let mut state = opened.state.clone();
        opened.uncommitted.iter().for_each(|header| state.apply(header));
        // An earlier run may have promised just before it ended.
        let earlier = Promise { to: None, until: now.after(params.promise_ms()) };
        let mut kept = opened.kept;
        if on(Bug::ForgetEpochTable) {
            kept.table = EpochTable::default();
            opened.uncommitted.iter().for_each(|header| kept.table.observe(header));
        }
        if on(Bug::ForgetStood) {
            kept.stood = None;
        }
        let recorded = kept.table.last().map(|(epoch, _)| epoch);
        Self {
            me: opened.me,
            volume: opened.volume,
            tail: opened.tail,
            now,
            recorded,
            log: Log {
                end: opened.durable,
                written: opened.durable,
                durable: opened.durable,
                committed: opened.committed,
                checkpoint: opened.checkpoint,
                retained: opened.retained,
                generation: 0,
                state,
                committed_state: opened.state,
                uncommitted: opened.uncommitted.into(),
            },
            kept,
            promises: if on(Bug::ForgetPromises) { Vec::new() } else { vec![earlier] },
            config: None,
            wish: Wish::default(),
            resigning: false,
            space: None,
            out: Vec::new(),
            mends: MendCounts::default(),
            observed: None,
            params,
        }
    }

    /// Writes the superblock. Only those epochs are written whose start is durably backed: a pair
    /// on disk says that the whole log below its LSN is held.
    pub(super) fn persist(&mut self) {
        let kept = self.kept_for_disk();
        self.recorded = kept.table.last().map(|(epoch, _)| epoch);
        self.out.push(Output::Persist(kept));
    }

    /// What the superblock may say now.
    pub(super) fn kept_for_disk(&self) -> Kept {
        let mut kept = self.kept.clone();
        if !on(Bug::RecordTableEarly) {
            kept.table = kept.table.up_to(self.log.durable);
        }
        kept.table.prune(self.log.checkpoint);
        if kept.table.pairs().len() > EpochTable::MOST {
            // Those that have entries are found in the log. One that has none yet is not recorded, and
            // nothing is acknowledged in it, before a checkpoint made room.
            kept.table = kept.table.up_to(self.log.durable.prev());
        }
        if on(Bug::FenceNotDurable) {
            kept.fenced = kept.table.last().map_or(Epoch(0), |(epoch, _)| epoch);
        }
        kept
    }

    /// Raises the fenced epoch, in memory; the caller persists before it answers.
    pub(super) fn fence(&mut self, epoch: Epoch) {
        assert!(
            epoch > self.kept.fenced,
            "I7: the fenced epoch went from {} to {epoch}",
            self.kept.fenced
        );
        self.kept.fenced = epoch;
    }

    /// Records that `epoch` starts at `first`, once everything below is durable. Returns whether it
    /// is on disk (or was).
    pub(super) fn record_epoch(&mut self, epoch: Epoch, first: Lsn) -> bool {
        if self.recorded == Some(epoch) {
            return true;
        }
        if self.log.durable.next() < first && !on(Bug::RecordTableEarly) {
            return false;
        }
        self.note_epoch(epoch, first);
        self.kept.table.prune(self.log.checkpoint);
        let recorded = self.kept_for_disk().table.last().map(|(last, _)| last);
        if self.kept.incomplete.is_none() && recorded == Some(epoch) {
            self.persist();
        }
        self.recorded == Some(epoch)
    }

    /// The log holds all that was acknowledged before it was opened: whatever its end lost is there again,
    /// or was never acknowledged.
    pub(super) fn end_doubt(&mut self) {
        if self.kept.doubtful && self.kept.incomplete.is_none() {
            self.kept.doubtful = false;
            self.trace("trusted", format!("its log is whole up to {}", self.log.durable));
            self.persist();
        }
    }

    /// Puts `epoch` into the table in memory.
    pub(super) fn note_epoch(&mut self, epoch: Epoch, first: Lsn) {
        if self.kept.table.last().is_none_or(|(last, _)| last < epoch) {
            self.kept.table.record(epoch, first);
        }
    }

    /// Takes headers into the log. The output that appends them is the caller's.
    pub(super) fn extend(&mut self, headers: &[EntryHeader]) {
        for header in headers {
            assert_eq!(header.lsn, self.log.end.next(), "L1: a log has no gap");
            self.log.end = header.lsn;
            if !on(Bug::ForgetObserved) {
                self.kept.table.observe(header);
            }
            self.log.state.apply(header);
            self.log.uncommitted.push_back(*header);
        }
    }

    /// Moves the committed LSN up to `lsn`, at most the durable end; never back.
    pub(super) fn commit_to(&mut self, lsn: Lsn) -> bool {
        let own = if on(Bug::CommitBeyondDurable) { self.log.end } else { self.log.durable };
        let lsn = lsn.min(own);
        if lsn <= self.log.committed {
            return false;
        }
        while self.log.uncommitted.front().is_some_and(|header| header.lsn <= lsn) {
            if let Some(header) = self.log.uncommitted.pop_front() {
                self.log.committed_state.apply(&header);
            }
        }
        self.log.committed = lsn;
        self.out.push(Output::Committed(lsn));
        true
    }

    /// Ends the log at `end`, which is not below the committed LSN. The caller emits the cut.
    pub(super) fn cut_log(&mut self, end: Lsn) {
        assert!(
            end >= self.log.committed,
            "L2: a cut to {end} below committed {}",
            self.log.committed
        );
        self.log.uncommitted.retain(|header| header.lsn <= end);
        let mut state = self.log.committed_state.clone();
        self.log.uncommitted.iter().for_each(|header| state.apply(header));
        if !on(Bug::KeepStateAtCut) {
            self.log.state = state;
        }
        self.log.end = end;
        self.log.durable = self.log.durable.min(end);
        self.log.written = self.log.written.min(end);
        self.log.generation += 1;
    }

    /// The newest uncommitted entry that touches the blocks. Whether there are blocks at all beyond the
    /// committed end is up to those that change the size.
    pub(super) fn newest_uncommitted(&self, range: BlockRange) -> Option<Lsn> {
        let beyond = range.end() > self.log.committed_state.blocks;
        let touches = |header: &&EntryHeader| {
            let resize = matches!(header.kind, EntryKind::Resize { .. });
            resize && beyond || header.kind.range().is_some_and(|r| r.overlaps(&range))
        };
        self.log.uncommitted.iter().rev().find(touches).map(|header| header.lsn)
    }

    /// Promises `to` that this replica won't serve as primary for a lease's time from now.
    pub(super) fn promise(&mut self, to: ReplicaRef) {
        let lease = self.params.lease_ms;
        let lasts = if on(Bug::NoDriftMargin) { lease } else { self.params.promise_ms() };
        let until = self.now.after(lasts);
        let now = self.now;
        self.promises.retain(|p| p.until > now && p.to != Some(to));
        self.promises.push(Promise { to: Some(to), until });
    }

    /// When every promise to others than itself has run out, but for those to a primary that handed
    /// its tenure over: it serves no more.
    pub(super) fn promised_until(&self, gone: Option<ReplicaRef>) -> Millis {
        let me = self.me;
        let others = self.promises.iter().filter(|p| p.to != Some(me) && !is_waived(p, gone));
        others.map(|p| p.until).max().unwrap_or_default()
    }

    /// To which other replicas a promise holds.
    pub(super) fn promised_to(&self, now: Millis) -> BTreeSet<ReplicaId> {
        let current = self.promises.iter().filter(|promise| promise.until > now);
        current
            .filter_map(|promise| promise.to)
            .map(|to| to.id)
            .filter(|id| *id != self.me.id)
            .collect()
    }

    /// For how long the promises to others than `asker` still bind, in milliseconds; one more than
    /// the clock says, for its rounding. `gone` handed its tenure over to the asker.
    pub(super) fn promised_ms(&self, asker: ReplicaRef, gone: Option<ReplicaRef>) -> u64 {
        let binds = |p: &&Promise| p.to != Some(asker) && p.until > self.now && !is_waived(p, gone);
        let others = self.promises.iter().filter(binds);
        others.map(|p| p.until.since(self.now) + 1).max().unwrap_or_default()
    }

    /// The highest epoch that it stood for the end of, with the tail that it has; 0 if there is none.
    pub(super) fn stood(&self) -> Epoch {
        let stood = self.kept.stood.filter(|stood| stood.tail == self.tail);
        stood.map(|stood| stood.epoch).unwrap_or_default()
    }

    /// Whether writes are acknowledged before they are synced, as far as is known.
    pub(super) fn acks_written(&self) -> bool {
        self.config.as_ref().is_some_and(Config::acks_written)
    }

    /// Remembers a configuration if it is the newest of the volume.
    pub(super) fn learn(&mut self, config: &Config) -> bool {
        let newer = self.config.as_ref().is_none_or(|known| config.epoch > known.epoch);
        if newer {
            self.config = Some(config.clone());
        }
        newer
    }

    /// The newest configuration known, if it is newer than `epoch`.
    pub(super) fn newer_than(&self, epoch: Epoch) -> Option<Config> {
        self.config.clone().filter(|config| config.epoch > epoch)
    }

    /// The lineage of a message to `to` in `epoch`.
    pub(super) fn lineage(&self, epoch: Epoch, to: ReplicaRef) -> Lineage {
        Lineage { volume: self.volume, epoch, from: self.me, to }
    }

    /// Shows something to whoever looks on.
    pub(super) fn observe(&mut self, what: impl FnOnce() -> Observed) {
        if let Some(observed) = &mut self.observed {
            observed.push(what());
        }
    }

    pub(super) fn trace(&mut self, what: &str, why: String) {
        let epoch = self.kept.fenced;
        self.out.push(Output::Trace(TraceEvent {
            at: self.now,
            epoch,
            what: what.to_owned(),
            why,
        }));
    }

    /// The first invariants of every replica, in every role.
    pub(super) fn assert_invariants(&self) {
        let log = &self.log;
        assert!(log.checkpoint <= log.committed, "I5: extents hold uncommitted entries");
        assert!(
            log.committed <= log.durable,
            "I5: committed {} is not durable {}",
            log.committed,
            log.durable
        );
        assert!(
            log.durable <= log.written && log.written <= log.end,
            "I5: durable {}, written {} and the end {} are not in this order",
            log.durable,
            log.written,
            log.end
        );
        assert_eq!(
            log.uncommitted.len() as u64,
            log.end.0 - log.committed.0,
            "L1: uncommitted entries have no gap"
        );
        if let Some((epoch, first)) = self.kept.table.last() {
            assert!(
                epoch <= self.kept.fenced,
                "I7: epoch {epoch} recorded without a promise to it"
            );
            assert!(first.0 <= log.end.0 + 1, "L3: epoch {epoch} starts beyond the log");
        }
        assert!(log.state.within_limits(), "L4: the log state outgrew its limits");
    }
}

/// Whether a promise is one to the primary that handed its tenure over. What an earlier run of this
/// replica promised may be to anybody.
fn is_waived(promise: &Promise, gone: Option<ReplicaRef>) -> bool {
    gone.is_some() && (promise.to == gone || on(Bug::HandoverWaivesAll))
}

/// The entries of an append that follow a log's end, or why there are none.
pub(super) fn fresh_entries(append: &Append, end: Lsn) -> Result<&[EntryHeader], IgnoredReason> {
    let mut expected = append.prev;
    for header in &append.entries {
        expected = expected.next();
        if header.lsn != expected {
            return Err(IgnoredReason::Malformed);
        }
    }
    let known = append.entries.iter().take_while(|header| header.lsn <= end).count();
    Ok(&append.entries[known..])
}
