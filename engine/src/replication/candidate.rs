//! A primary of a `sync_quorum` volume before its log is the volume's.
//!
//! The masters name it without knowing what it holds. It is a candidate until a majority of the
//! voters has promised its epoch and told what they hold, and the best log among those is its own:
//! whatever was committed is on one of any majority, in the log with the highest (table epoch, LSN)
//! (Viewstamped Replication Revisited, section 4.2; Raft, section 5.4.1). Before that it cuts nobody,
//! feeds nobody, and its table says nothing of its epoch.

use serde::{Deserialize, Serialize};

use super::core::Core;
use super::io::{Output, Payload};
use super::log::{EntryHeader, EpochTable};
use super::message::{Facts, ToReplica};
use super::peer::{Link, Peer};
use super::primary::Primary;
use super::{IgnoredReason, Verdict};
use crate::bugs::{Bug, on};
use crate::types::{Config, Durability, Epoch, Lsn, Millis, ReplicaId, ReplicaRef};

/// How far a primary has come with making its own log the volume's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Standing {
    /// Waits for the answers of a majority of the voters.
    Gathering,
    /// Completes its log from the best of the answers.
    Fetching(Box<Fetching>),
    /// The best log can't be completed here without the whole image: its holder is named to the
    /// masters.
    Declined {
        /// The holder.
        best: ReplicaRef,
    },
    /// Its log is the volume's.
    Whole,
}

/// Entries on their way from the holder of the best log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Fetching {
    /// The holder.
    from: ReplicaId,
    /// Where the holder's log ended when it promised; it takes nothing more since.
    last: Lsn,
    /// What the holder knows to be committed: so far the candidate's checkpoint may follow, which
    /// keeps its WAL within bounds.
    committed: Lsn,
    /// The holder's table.
    table: EpochTable,
    /// The question that is under way.
    request: u64,
    sent: Millis,
}

/// What makes a log the better one: the newest epoch in its table, then its length. The fenced
/// epoch never compares logs, and length alone does neither: a dead primary's tail is long.
type Rank = (Option<Epoch>, Lsn);

fn rank(table: &EpochTable, end: Lsn) -> Rank {
    let epoch = table.last().map(|(epoch, _)| epoch);
    (epoch.filter(|_| !on(Bug::RankByLength)), end)
}

impl Standing {
    /// At the promotion. Where all members have what is committed, whichever is promoted is whole.
    pub(super) fn begin(core: &mut Core, config: &Config) -> Self {
        let stands = config.durability == Durability::SyncQuorum;
        if !stands || on(Bug::RecordEpochEarly) {
            let first = core.log.end.next();
            core.note_epoch(config.epoch, first);
        }
        if stands { Self::Gathering } else { Self::Whole }
    }
}

impl Primary {
    /// Whether its log is the volume's, so that others may be cut and fed.
    pub(super) fn is_whole(&self) -> bool {
        self.standing == Standing::Whole
    }

    /// Draws a candidate's conclusions.
    pub(super) fn stand(&mut self, core: &mut Core) {
        match &self.standing {
            Standing::Whole => {}
            Standing::Fetching(fetching) => {
                core.commit_to(fetching.committed.min(core.log.end));
                if core.now.since(fetching.sent) >= core.params.retry_ms {
                    let holder = fetching.from;
                    self.lost(core, holder, false);
                    self.standing = Standing::Gathering;
                }
            }
            Standing::Gathering | Standing::Declined { .. } => self.choose(core),
        }
    }

    /// The peers that promised the epoch and told what they hold. An INCOMPLETE voter is absent: it
    /// may have held what was committed, and does not any more.
    fn told_of(peer: &Peer) -> Option<&Facts> {
        let facts = peer.told.as_deref().filter(|_| peer.link == Link::Told)?;
        facts.incomplete.is_none().then_some(facts)
    }

    /// Chooses the log to go on with, once a majority has answered.
    fn choose(&mut self, core: &mut Core) {
        let alone = on(Bug::CandidateAlone);
        if !alone && !self.majority_has(|peer| Self::told_of(peer).is_some()) {
            self.standing = Standing::Gathering;
            return;
        }
        if !alone && !self.shows_all(core) && !self.has_waited(core) {
            return;
        }
        self.wait_for_promises();
        let voters = self.peers.values().filter(|peer| self.config.isr.contains(&peer.id));
        let told = voters.filter_map(|peer| Some((peer, Self::told_of(peer)?)));
        let best = told.max_by_key(|(peer, facts)| (rank(&facts.table, facts.durable), peer.id));
        let mine = rank(&core.kept.table, core.log.end);
        let better = best.filter(|(_, f)| rank(&f.table, f.durable) > mine);
        match better.filter(|_| !on(Bug::AdoptOwnLog)) {
            Some((peer, facts)) => {
                let (holder, facts) = (peer.reference(), facts.clone());
                self.adopt(core, holder, facts);
            }
            None => self.whole(core),
        }
    }

    /// Whether the answers show all that was acknowledged although some of the logs may have lost their
    /// end. A voter that is INCOMPLETE has nothing, and was wiped when a majority without it had all.
    fn shows_all(&self, core: &Core) -> bool {
        let voters = || self.peers.values().filter(|peer| self.config.isr.contains(&peer.id));
        let doubts = voters().filter_map(Self::told_of).map(|facts| facts.doubtful);
        let doubts: Vec<_> = doubts.chain([core.kept.doubtful]).collect();
        let doubtful = doubts.iter().filter(|doubtful| **doubtful).count();
        if doubtful == 0 || on(Bug::PromoteDoubtful) {
            return true;
        }
        let is_torn = |peer: &&Peer| {
            let facts = peer.told.as_deref().filter(|_| peer.link == Link::Told);
            facts.is_some_and(|facts| facts.incomplete.is_some())
        };
        let (listed, torn) = (self.config.isr.len(), voters().filter(is_torn).count());
        let needed = super::quorum::majority(listed);
        super::quorum::tells_all(listed - torn, needed, doubts.len() - doubtful, doubtful)
    }

    /// Whether it has waited for more answers as long as it does. If a voter is gone for good, what this one
    /// and another hold is all there is.
    fn has_waited(&mut self, core: &mut Core) -> bool {
        let since = *self.doubting.get_or_insert(core.now);
        if core.params.doubt_ms.is_none_or(|most| core.now.since(since) < most) {
            self.standing = Standing::Gathering;
            return false;
        }
        let what = "goes on without the voters that could tell whether a write which can't be read at the \
                    end of a log was acknowledged";
        core.trace("doubtful", what.to_owned());
        true
    }

    /// What the answerers promised to earlier primaries is waited out like its own promises: one of
    /// them is in every majority that another primary reads under, and renews no more.
    fn wait_for_promises(&mut self) {
        let until = |peer: &Peer| Self::told_of(peer).map(|_| peer.promised_until);
        let promised = self.peers.values().filter_map(until).max();
        if on(Bug::HandoverWaivesAll) && self.config.handed_over_by.is_some() {
            return;
        }
        if let Some(until) = promised.filter(|_| !on(Bug::ForgetVoterPromises)) {
            self.wait_until = self.wait_until.max(until);
        }
    }

    /// Makes its log that of the holder: what it has beyond the common end goes, which was never
    /// committed; what it lacks is fetched.
    fn adopt(&mut self, core: &mut Core, holder: ReplicaRef, facts: Facts) {
        let common = core.kept.table.common_end(core.log.end, &facts.table, facts.durable);
        // Without a common epoch only what is known as committed here is known to agree.
        let common = common.unwrap_or(core.log.committed);
        let newer = facts.table.last().is_some_and(|(epoch, _)| epoch >= self.config.since);
        if common < core.log.committed || newer {
            let what = format!(
                "{} has a better log, but agrees only up to {common} of {} committed: not touched",
                holder.id, core.log.committed
            );
            core.trace("diverged", what);
            self.lost(core, holder.id, false);
            return;
        }
        if facts.retained > common.next() && common < facts.durable {
            self.decline(core, holder, common, &facts);
            return;
        }
        core.trace(
            "adopting",
            format!("the log of {} up to {}; both agree up to {common}", holder.id, facts.durable),
        );
        // What is kept is described by the holder's table before anything follows it: an epoch that
        // logged nothing here would claim entries of an older one as its own.
        core.kept.table = facts.table.up_to(common);
        if common < core.log.end {
            core.cut_log(common);
            let kept = core.kept_for_disk();
            core.recorded = kept.table.last().map(|(epoch, _)| epoch);
            core.out.push(Output::Cut { end: common, kept });
        } else {
            core.persist();
        }
        if common >= facts.durable {
            self.whole(core);
            return;
        }
        let Facts { table, durable: last, committed, .. } = facts;
        let (from, request, sent) = (holder.id, 0, core.now);
        self.fetch(core, Fetching { from, last, committed, table, request, sent });
    }

    /// A base lane to a primary would need another primary: that one is named instead.
    fn decline(&mut self, core: &mut Core, best: ReplicaRef, common: Lsn, facts: &Facts) {
        if self.standing != (Standing::Declined { best }) {
            let what = format!(
                "the log of {} ends at {} and its WAL begins at {}; here it is known up to {common}",
                best.id, facts.durable, facts.retained
            );
            core.trace("declined", what);
        }
        self.standing = Standing::Declined { best };
    }

    fn fetch(&mut self, core: &mut Core, mut fetching: Fetching) {
        let Some(peer) = self.peers.get_mut(&fetching.from) else { return };
        let request = peer.question();
        (fetching.request, fetching.sent) = (request, core.now);
        let (prev, last) = (core.log.end, fetching.last);
        self.send(core, fetching.from, ToReplica::Fetch { request, prev, last });
        self.standing = Standing::Fetching(Box::new(fetching));
    }

    /// Entries of the best log.
    pub(super) fn fetched(
        &mut self,
        core: &mut Core,
        replica: ReplicaId,
        request: u64,
        prev: Lsn,
        entries: &[EntryHeader],
    ) -> Verdict {
        let Standing::Fetching(fetching) = &self.standing else {
            return Verdict::Ignored(IgnoredReason::WrongRole);
        };
        if fetching.from != replica || fetching.request != request {
            return Verdict::Ignored(IgnoredReason::LateCopy);
        }
        let fetching = Fetching::clone(fetching);
        let follows = |(header, n): (&EntryHeader, u64)| {
            let epoch = fetching.table.epoch_at(header.lsn);
            header.lsn.0 == prev.0 + n && epoch.is_none_or(|epoch| epoch == header.epoch)
        };
        let last = entries.last().map_or(prev, |header| header.lsn);
        let fits = prev == core.log.end && last <= fetching.last;
        if entries.is_empty() || !fits || !entries.iter().zip(1..).all(follows) {
            // The WAL moved on, or it says something else than it told: it is asked anew.
            self.lost(core, replica, false);
            self.standing = Standing::Gathering;
            return Verdict::Ignored(IgnoredReason::Malformed);
        }
        core.extend(entries);
        core.out.push(Output::Append { headers: entries.to_vec(), payload: Payload::Feed });
        if last < fetching.last {
            self.fetch(core, fetching);
        } else {
            core.kept.table = fetching.table.up_to(last);
            self.whole(core);
        }
        Verdict::Applied
    }

    /// Its log is the volume's from here on: its epoch begins above it, once all of it is durable.
    fn whole(&mut self, core: &mut Core) {
        self.first = core.log.end.next();
        self.inherited = core.log.end;
        core.note_epoch(self.config.epoch, self.first);
        self.standing = Standing::Whole;
        let what = format!(
            "its log up to {} is the best of a majority; waits {} ms for their promises",
            core.log.end,
            self.wait_until.since(core.now)
        );
        core.trace("elected", what);
    }

    /// When a candidate has something to do without an event.
    pub(super) fn stand_deadline(&self, core: &Core) -> Option<Millis> {
        match &self.standing {
            Standing::Fetching(fetching) => Some(fetching.sent.after(core.params.retry_ms)),
            Standing::Gathering => {
                let waits = self.doubting.zip(core.params.doubt_ms);
                let until = waits.map(|(since, most)| since.after(most));
                until.filter(|until| *until > core.now)
            }
            Standing::Declined { .. } | Standing::Whole => None,
        }
    }

    /// What a candidate waits for, in words; `None` if its log is the volume's.
    pub(super) fn why_not_whole(&self) -> Option<String> {
        match &self.standing {
            Standing::Whole => None,
            Standing::Gathering => {
                let (there, voters) = self.heard_voters();
                let needed = super::quorum::majority(voters);
                if self.doubting.is_some() && there >= needed {
                    return Some(format!(
                        "{there} of {voters} voters answered, and a log among theirs ends in a write that can't \
                         be read: waits for others, which may know whether it was acknowledged; if they are lost \
                         for good, see `sbkctl volume recover`"
                    ));
                }
                Some(format!(
                    "asks the voters what they hold: {there} of {voters} answered, {needed} are needed"
                ))
            }
            Standing::Fetching(fetching) => {
                Some(format!("takes what it lacks up to {} from {}", fetching.last, fetching.from))
            }
            Standing::Declined { best } => {
                Some(format!("has the masters choose {}, whose log is the best", best.id))
            }
        }
    }

    /// How many voters answered, this one included, and how many there are.
    fn heard_voters(&self) -> (usize, usize) {
        let voters = self.peers.values().filter(|peer| self.config.isr.contains(&peer.id));
        let there = voters.filter(|peer| Self::told_of(peer).is_some()).count();
        (there + 1, self.config.isr.len())
    }
}
