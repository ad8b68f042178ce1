//! How a primary has rotten blocks repaired: what another in-sync replica holds is logged again.
//!
//! A block of the extents that does not match its checksum is lost here and, as a rule, nowhere else.
//! Extents hold only what is committed, and an entry above the checkpoint would have been read from the
//! log. So the right content of the block is what is committed as of C, the committed LSN when the rot was
//! told, and it stays right until an entry above C touches the block.
//!
//! 1. An in-sync member is asked that acknowledged C or more, and answers as of the end L of its own log.
//!    That log is a part of this one, so the content is as of C if nothing between C and this log's end
//!    touches the block. [A voter that was behind was asked: it gave what the block held before the last
//!    write, with a checksum that was right.]
//! 2. Whatever is logged to the block meanwhile ends its repair: the block is not read from the extents any
//!    more. [What the member had read was written over what a client had written since.]
//! 3. The content is logged as a write that no client asked for, and what waited for the block is read
//!    again. So every replica's extents get it in the way that a crash can't break, and one that is cut
//!    from a log was never needed: it changes no block's content.
//!
//! A block that rotted on another replica is repaired in the same way, but from this primary's own copy if
//! that is sound: see [`super::scrub`].
//!
//! Nothing else is ever written for a rotten block. A member that can't vouch for its own copy says so. Where
//! nobody could have another one, whoever reads gets an error at once, and where nobody answers, after 2T.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::core::Core;
use super::io::{Fate, Outcome, Output, Payload, Reader, StreamId};
use super::log::{BlockRange, EntryKind, RequestTag};
use super::message::ToReplica;
use super::peer::{Link, Peer};
use super::primary::Primary;
use super::{IgnoredReason, Verdict};
use crate::bugs::{Bug, on};
use crate::types::{Lba, Lsn, Millis, ReplicaId, ReplicaRef};

/// Most blocks that are being repaired at a time. What needs more waits for room.
pub(super) const MOST: usize = 128;
/// Most blocks of one question to a member: 128 KiB of answer.
pub const MESSAGE_BLOCKS: usize = 32;

/// What became of rotten blocks since the replica was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MendCounts {
    /// Blocks that were found not to match their checksum; one that stays so counts whenever it is looked
    /// for again.
    pub rotten: u64,
    /// Of these, blocks that a primary logged again as another replica holds them.
    pub mended: u64,
    /// Of these, blocks that a primary found nobody for: whoever read them got an error.
    pub not_mended: u64,
    /// Blocks that a scrub found damaged on another replica, and that a primary logged again as it holds
    /// them itself.
    #[serde(default)]
    pub scrubbed: u64,
}

impl MendCounts {
    /// What was counted since `before`, of the same opening.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            rotten: self.rotten - before.rotten,
            mended: self.mended - before.mended,
            not_mended: self.not_mended - before.not_mended,
            scrubbed: self.scrubbed - before.scrubbed,
        }
    }
}

/// A question that has no answer yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Question {
    of: ReplicaRef,
    request: u64,
    sent: Millis,
}

/// A block that is being repaired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mend {
    /// C: what was committed when the rot was told. No entry above it touches the block.
    committed: Lsn,
    since: Millis,
    /// For all that is known, it is sound here and damaged elsewhere: this replica asks itself first.
    #[serde(default)]
    pub(super) own: bool,
    /// A scrub wants to know what becomes of it.
    #[serde(default)]
    pub(super) ordered: bool,
    /// Who was asked last; the next one is another one, if there is one.
    last: Option<ReplicaId>,
    asked: Option<Question>,
    /// Who said that theirs is rotten too.
    rotten: BTreeSet<ReplicaId>,
}

impl Mend {
    pub(super) fn new(core: &Core, own: bool) -> Self {
        Self {
            committed: core.log.committed,
            since: core.now,
            own,
            ordered: own,
            last: None,
            asked: None,
            rotten: BTreeSet::new(),
        }
    }

    /// It was found to be damaged here: what this replica was to tell itself is no matter.
    fn is_damaged_here(&mut self) {
        (self.own, self.asked) = (false, None);
    }
}

/// A request whose blocks could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Waiting {
    stream: StreamId,
    tag: RequestTag,
    /// The repairs that it waits for; none, if it waits for room.
    blocks: BTreeSet<Lba>,
    since: Millis,
    /// What was found, for people.
    why: String,
}

/// The repairs of a primary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mends {
    pub(super) blocks: BTreeMap<Lba, Mend>,
    /// Questions of this primary to itself so far.
    #[serde(default)]
    questions: u64,
    waiting: Vec<Waiting>,
    /// Blocks that were given up and told of, some of them: a client that reads one again and again must not
    /// fill the trace with it.
    #[serde(default)]
    lost: BTreeSet<Lba>,
}

impl Mends {
    /// Whether there is nothing to do: as a rule.
    fn is_idle(&self) -> bool {
        self.blocks.is_empty() && self.waiting.is_empty()
    }

    pub(super) fn has_room(&self) -> bool {
        self.blocks.len() < MOST
    }
}

pub(super) fn single(lba: Lba) -> BlockRange {
    BlockRange { lba, blocks: 1 }
}

/// Whether an entry changes a block.
fn touches(kind: &EntryKind, lba: Lba) -> bool {
    match kind {
        EntryKind::Resize { blocks } => lba.0 >= *blocks,
        EntryKind::Write { .. }
        | EntryKind::Trim { .. }
        | EntryKind::Zero { .. }
        | EntryKind::Attach { .. }
        | EntryKind::Close { .. } => kind.range().is_some_and(|range| range.overlaps(&single(lba))),
    }
}

/// Some blocks, in words.
pub(super) fn in_words(blocks: &[Lba]) -> String {
    const TOLD: usize = 8;
    let told: Vec<_> = blocks.iter().take(TOLD).map(ToString::to_string).collect();
    let what = if blocks.len() == 1 { "block" } else { "blocks" };
    match blocks.len().saturating_sub(TOLD) {
        0 => format!("{what} {}", told.join(", ")),
        more => format!("{what} {} and {more} more", told.join(", ")),
    }
}

impl Primary {
    /// Blocks of its extents don't match their checksums, found by `reader`.
    pub(super) fn rotten(
        &mut self,
        core: &mut Core,
        reader: Reader,
        blocks: &[Lba],
        why: String,
    ) -> Verdict {
        let range = match reader {
            Reader::Request { stream, tag } => match self.clients.reading(stream, tag) {
                Some((range, _)) => Some(range),
                None => return Verdict::Ignored(IgnoredReason::UnknownStream),
            },
            Reader::Base { .. } | Reader::Asked => None,
        };
        let within = |lba: &Lba| range.is_none_or(|range| range.overlaps(&single(*lba)));
        if blocks.is_empty() || !blocks.iter().all(within) {
            return Verdict::Ignored(IgnoredReason::Malformed);
        }
        let (mut waits, mut new, mut full) = (BTreeSet::new(), Vec::new(), false);
        for lba in blocks.iter().copied() {
            if let Some(mend) = self.mends.blocks.get_mut(&lba) {
                if mend.own {
                    mend.is_damaged_here();
                    new.push(lba);
                }
            } else if core.newest_uncommitted(single(lba)).is_some()
                || lba.0 >= core.log.state.blocks
            {
                // It was logged since, or the volume shrank: it will be read from the log. [A slow read of
                // a block that was trimmed and cut off meanwhile had it logged beyond the volume's end.]
                continue;
            } else if self.mends.has_room() {
                self.mends.blocks.insert(lba, Mend::new(core, false));
                new.push(lba);
            } else {
                full = true;
                continue;
            }
            waits.insert(lba);
        }
        if !new.is_empty() {
            core.mends.rotten += new.len() as u64;
            new.retain(|lba| !self.mends.lost.contains(lba));
        }
        if !new.is_empty() {
            let by = match reader {
                Reader::Request { .. } => String::new(),
                Reader::Base { session } => format!(", found by the base lane of {session}"),
                Reader::Asked => ", found for another replica".to_owned(),
            };
            let blocks = in_words(&new);
            core.trace("rotten", format!("{blocks}{by}: {why}; another replica is asked"));
        }
        if let Reader::Request { stream, tag } = reader {
            if waits.is_empty() && !full {
                self.read_again(core, stream, tag);
            } else {
                let (blocks, since) = (waits, core.now);
                self.mends.waiting.push(Waiting { stream, tag, blocks, since, why });
            }
        }
        Verdict::Applied
    }

    /// Reads a request's blocks once more, if it is still there.
    fn read_again(&self, core: &mut Core, stream: StreamId, tag: RequestTag) {
        if let Some((range, merge)) = self.clients.reading(stream, tag) {
            core.out.push(Output::Read { stream, tag, range, merge });
        }
    }

    /// A block's repair is over; what waited for nothing else is read again.
    fn settled_block(&mut self, core: &mut Core, lba: Lba) {
        self.mends.blocks.remove(&lba);
        self.mends.lost.remove(&lba);
        let waiting = std::mem::take(&mut self.mends.waiting);
        for mut waiting in waiting {
            if waiting.blocks.remove(&lba) && waiting.blocks.is_empty() {
                self.read_again(core, waiting.stream, waiting.tag);
            } else {
                self.mends.waiting.push(waiting);
            }
        }
    }

    /// An entry was logged: it ends the repair of the blocks that it changes.
    pub(super) fn overtake_mends(&mut self, core: &mut Core, kind: &EntryKind) {
        if self.mends.blocks.is_empty() || on(Bug::MendOverNewer) {
            return;
        }
        let ends =
            |lba: Lba, mend: &Mend| touches(kind, lba) && !(mend.own && on(Bug::ScrubOverNewer));
        let touched = self.mends.blocks.iter().filter(|(lba, mend)| ends(**lba, mend));
        let touched: Vec<_> = touched.map(|(lba, _)| *lba).collect();
        if touched.is_empty() {
            return;
        }
        let what = in_words(&touched);
        core.trace("mend-overtaken", format!("{what}: written anew meanwhile"));
        self.tell_scrub(core, &touched, &Fate::Overtaken);
        for lba in touched {
            self.settled_block(core, lba);
        }
    }

    /// Whether a member may be asked for a block as of C.
    fn may_tell(&self, peer: &Peer, committed: Lsn) -> bool {
        let acked = peer.acked_in(self.config.epoch);
        self.config.isr.contains(&peer.id)
            && peer.link == Link::Reconciled
            && peer.is_fed()
            && self.has_kept(peer)
            && acked.is_some_and(|acked| acked >= committed || on(Bug::MendBehind))
    }

    /// Asks whom there is to ask, and gives up what nobody can tell.
    pub(super) fn mend(&mut self, core: &mut Core) {
        if self.mends.is_idle() {
            return;
        }
        let clients = &self.clients;
        self.mends.waiting.retain(|w| clients.reading(w.stream, w.tag).is_some());
        self.give_up_mends(core);
        self.ask_for_blocks(core);
        self.use_room(core);
    }

    /// Those that waited for room find out anew what they need.
    fn use_room(&mut self, core: &mut Core) {
        let patience = self.patience(core);
        let room = self.mends.has_room();
        for waiting in std::mem::take(&mut self.mends.waiting) {
            if !waiting.blocks.is_empty() {
                self.mends.waiting.push(waiting);
            } else if room {
                self.read_again(core, waiting.stream, waiting.tag);
            } else if core.now.since(waiting.since) >= patience {
                self.fail_read(core, waiting, "too many other blocks are being repaired");
            } else {
                self.mends.waiting.push(waiting);
            }
        }
    }

    fn patience(&self, core: &Core) -> u64 {
        2 * core.params.suspect_ms
    }

    fn fail_read(&mut self, core: &mut Core, waiting: Waiting, cause: &str) {
        let Waiting { stream, tag, why, .. } = waiting;
        if self.clients.forget_reading(stream, tag) {
            let outcome = Outcome::Failed(format!("{why}; {cause}"));
            core.out.push(Output::Answer { stream, tag, outcome });
        }
    }

    /// Ends the repairs that can't come to anything.
    fn give_up_mends(&mut self, core: &mut Core) {
        let patience = self.patience(core);
        let others: BTreeSet<_> =
            self.config.isr.iter().copied().filter(|id| *id != core.me.id).collect();
        let cause = |mend: &Mend| {
            let late = core.now.since(mend.since) >= patience;
            if mend.own {
                late.then(|| format!("it could not be read and logged within {patience} ms"))
            } else if others.is_empty() {
                Some("no other replica is in sync".to_owned())
            } else if others.is_subset(&mend.rotten) {
                Some("it is damaged on every other in-sync replica too".to_owned())
            } else {
                late.then(|| format!("no other in-sync replica gave it within {patience} ms"))
            }
        };
        let mut given_up: BTreeMap<String, Vec<Lba>> = BTreeMap::new();
        for (lba, mend) in &self.mends.blocks {
            if let Some(cause) = cause(mend) {
                given_up.entry(cause).or_default().push(*lba);
            }
        }
        for (cause, blocks) in given_up {
            self.tell_scrub(core, &blocks, &Fate::NotMended(cause.clone()));
            let damaged = blocks.iter().filter(|lba| !self.mends.blocks[lba].own);
            core.mends.not_mended += damaged.count() as u64;
            let told = blocks.iter().copied().filter(|lba| !self.mends.lost.contains(lba));
            let told: Vec<_> = told.collect();
            if !told.is_empty() {
                core.trace("not-mended", format!("{}: {cause}", in_words(&told)));
            }
            if self.mends.lost.len() >= MOST {
                self.mends.lost.clear();
            }
            self.mends.lost.extend(told);
            let gone: BTreeSet<_> = blocks.into_iter().collect();
            self.mends.blocks.retain(|lba, _| !gone.contains(lba));
            let (failed, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.mends.waiting)
                .into_iter()
                .partition(|waiting| !waiting.blocks.is_disjoint(&gone));
            self.mends.waiting = rest;
            for waiting in failed {
                self.fail_read(core, waiting, &cause);
            }
        }
    }

    /// Asks for each block that nobody is asked for now: one member at a time, in turn.
    fn ask_for_blocks(&mut self, core: &mut Core) {
        let mut mends = std::mem::take(&mut self.mends.blocks);
        let mut wanted: BTreeMap<ReplicaId, Vec<Lba>> = BTreeMap::new();
        for (lba, mend) in &mut mends {
            let retry = core.params.retry_ms;
            let stands = |question: &Question| {
                if question.of == core.me {
                    return core.now.since(question.sent) < retry;
                }
                let peer = self.peers.get(&question.of.id);
                core.now.since(question.sent) < retry
                    && peer.is_some_and(|peer| {
                        peer.reference() == question.of && self.may_tell(peer, mend.committed)
                    })
            };
            if mend.asked.as_ref().is_some_and(stands) {
                continue;
            }
            mend.asked = None;
            if mend.own {
                wanted.entry(core.me.id).or_default().push(*lba);
                continue;
            }
            let may_tell = |peer: &&Peer| {
                !mend.rotten.contains(&peer.id) && self.may_tell(peer, mend.committed)
            };
            let able: Vec<_> = self.peers.values().filter(may_tell).map(|peer| peer.id).collect();
            let next = able.iter().find(|id| Some(**id) > mend.last).or(able.first());
            if let Some(next) = next {
                wanted.entry(*next).or_default().push(*lba);
            }
        }
        for (replica, blocks) in wanted {
            for blocks in blocks.chunks(MESSAGE_BLOCKS) {
                self.ask_member(core, &mut mends, replica, blocks);
            }
        }
        self.mends.blocks = mends;
    }

    fn ask_member(
        &mut self,
        core: &mut Core,
        mends: &mut BTreeMap<Lba, Mend>,
        replica: ReplicaId,
        blocks: &[Lba],
    ) {
        let (of, request) = if replica == core.me.id {
            self.mends.questions += 1;
            (core.me, self.mends.questions)
        } else {
            let Some(peer) = self.peers.get_mut(&replica) else { return };
            (peer.reference(), peer.question())
        };
        let question = Question { of, request, sent: core.now };
        let mut committed = Lsn(0);
        for lba in blocks {
            if let Some(mend) = mends.get_mut(lba) {
                (mend.asked, mend.last) = (Some(question), Some(replica));
                committed = committed.max(mend.committed);
            }
        }
        let blocks = blocks.to_vec();
        if of == core.me {
            let lineage = core.lineage(self.config.epoch, of);
            let at = core.log.end;
            core.out.push(Output::SendBlocks { lineage, request, at, blocks });
            return;
        }
        self.send(core, replica, ToReplica::ReadBlocks { request, committed, blocks });
    }

    /// A member tells what it holds of blocks, as of the end of its log. The content of those that it
    /// holds is with the driver.
    pub(super) fn told_blocks(
        &mut self,
        core: &mut Core,
        from: ReplicaRef,
        request: u64,
        at: Lsn,
        held: &[Lba],
        rotten: &[Lba],
    ) -> Verdict {
        let asks = |mend: &Mend| {
            mend.asked.is_some_and(|asked| asked.of == from && asked.request == request)
        };
        if !self.mends.blocks.values().any(asks) {
            return Verdict::Ignored(IgnoredReason::LateCopy);
        }
        if at > core.log.end {
            return Verdict::Ignored(IgnoredReason::Malformed);
        }
        let own = from == core.me;
        let mut logged = Vec::new();
        for lba in held.iter().copied() {
            let Some(mend) = self.mends.blocks.get(&lba).filter(|mend| asks(mend)) else {
                continue;
            };
            let behind = at < mend.committed && !on(Bug::MendBehind);
            // What can't be logged now is asked for again.
            if behind || !self.ready || self.has_stopped() || self.is_crowded(core) {
                continue;
            }
            self.tell_scrub(core, &[lba], &Fate::Logged);
            // Not one that its own entry would overtake.
            self.mends.blocks.remove(&lba);
            self.append(core, EntryKind::Write { lba, blocks: 1 }, None, Payload::Blocks);
            self.settled_block(core, lba);
            logged.push(lba);
        }
        if !logged.is_empty() {
            let (what, end) = (in_words(&logged), core.log.end);
            if own {
                core.mends.scrubbed += logged.len() as u64;
                let how = format!("as it is here at {at}; logged again up to {end}");
                core.trace("scrubbed", format!("{what}: {how}"));
            } else {
                core.mends.mended += logged.len() as u64;
                let how = format!("as {} holds it at {at}; logged again up to {end}", from.id);
                core.trace("mended", format!("{what}: {how}"));
            }
        }
        let mut here = Vec::new();
        for lba in rotten {
            let Some(mend) = self.mends.blocks.get_mut(lba).filter(|mend| asks(mend)) else {
                continue;
            };
            if own {
                mend.is_damaged_here();
                here.push(*lba);
            } else {
                mend.rotten.insert(from.id);
                mend.asked = None;
            }
        }
        if !here.is_empty() {
            core.mends.rotten += here.len() as u64;
            let what = format!("{}: found for a scrub; another replica is asked", in_words(&here));
            core.trace("rotten", what);
        }
        Verdict::Applied
    }

    /// A newer epoch of the same tenure: answers in the old one don't count, so all are asked anew.
    pub(super) fn mends_continue(&mut self) {
        for mend in self.mends.blocks.values_mut() {
            mend.asked = None;
            mend.rotten.clear();
        }
    }

    /// When something is due without an event.
    pub(super) fn mend_deadline(&self, core: &Core) -> Option<Millis> {
        let patience = self.patience(core);
        let mends = self.mends.blocks.values().flat_map(|mend| {
            let again = mend.asked.map(|asked| asked.sent.after(core.params.retry_ms));
            again.into_iter().chain([mend.since.after(patience)])
        });
        let waiting = self.mends.waiting.iter().filter(|waiting| waiting.blocks.is_empty());
        mends.chain(waiting.map(|waiting| waiting.since.after(patience))).min()
    }

    /// The invariants of repairs.
    pub(super) fn assert_mends(&self, core: &Core) {
        assert!(self.mends.blocks.len() <= MOST, "L6: {} repairs", self.mends.blocks.len());
        for (lba, mend) in &self.mends.blocks {
            let newer = core.newest_uncommitted(single(*lba)).filter(|lsn| *lsn > mend.committed);
            assert!(
                newer.is_none() || on(Bug::MendOverNewer) || (mend.own && on(Bug::ScrubOverNewer)),
                "L6: block {lba} is being repaired as of {}, and {newer:?} changed it",
                mend.committed
            );
        }
    }
}
