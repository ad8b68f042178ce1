//! What a primary does for its frontends: streams, requests, answers.
//!
//! A write that arrives late overwrites newer data, and one applied twice breaks linearizability.
//! So a session has one live stream; a request is checked when its LSN is assigned, not when it
//! arrives; and one whose sequence is in the log already is not logged again, it waits for that
//! entry's commit.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use super::attach::{Seen, Waiting};
use super::core::Core;
use super::io::{Attach, Op, OpenStream, Outcome, Output, Payload, Request, StreamEnd, StreamId};
use super::log::{BlockRange, EntryHeader, EntryKind, Origin, RequestTag, SessionLog};
use super::primary::Primary;
use super::room::{Need, Room};
use super::{IgnoredReason, Verdict};
use crate::bugs::{Bug, on};
use crate::types::{BLOCK_SIZE, Lba, Lsn, MAX_REQUEST_BYTES, SEQUENCE_WINDOW, SessionId};

/// A frontend's stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stream {
    session: SessionId,
    stage: StreamStage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum StreamStage {
    /// Waits until the primary is ready, or until the fate of an attachment is known.
    Waiting { attach: Attach },
    /// The session's attach entry is logged and not yet committed.
    Attaching { lsn: Lsn },
    /// Requests are taken.
    Open,
}

/// A read whose blocks are being read, or whose answer waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Read {
    range: BlockRange,
    /// Set once the blocks were read: answered when everything up to here is committed.
    wait: Option<Lsn>,
}

/// A partial write whose blocks are being read. Nothing else is logged to them meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Merge {
    request: Request,
    range: BlockRange,
}

pub(super) type Key = (StreamId, RequestTag);

/// The frontends' side of a primary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Clients {
    streams: BTreeMap<StreamId, Stream>,
    pub(super) live: BTreeMap<SessionId, StreamId>,
    /// Who came in this tenure, for people.
    pub(super) seen: BTreeMap<SessionId, Seen>,
    /// Logged requests that wait for their commit.
    logged: BTreeMap<Lsn, Key>,
    /// Flushes, with the LSN that must be committed.
    flushes: Vec<(Lsn, Key)>,
    #[serde(with = "pairs")]
    reads: BTreeMap<Key, Read>,
    #[serde(with = "pairs")]
    merges: BTreeMap<Key, Merge>,
    /// Requests that wait for room, or for a merge of their blocks; in order.
    parked: VecDeque<(StreamId, Request)>,
    /// What those of them that write need, as far as it was asked.
    #[serde(default, with = "pairs")]
    pub(super) needs: BTreeMap<Key, Need>,
    /// Some of them wait for room, since that was last noted.
    #[serde(skip)]
    pub(super) grew: bool,
}

/// Maps with structured keys, as lists of pairs: JSON knows only text as keys.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub(super) fn deserialize<'de, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Vec::<(K, V)>::deserialize(deserializer).map(|pairs| pairs.into_iter().collect())
    }
}

impl Clients {
    /// Ends every stream.
    pub(super) fn end_all(&mut self, out: &mut Vec<Output>, reason: StreamEnd) {
        for stream in std::mem::take(self).streams.into_keys() {
            out.push(Output::StreamEnded { stream, reason: reason.clone() });
        }
    }

    /// Forgets a stream and all of it that was not logged.
    fn forget(&mut self, stream: StreamId) {
        if let Some(gone) = self.streams.remove(&stream)
            && self.live.get(&gone.session) == Some(&stream)
        {
            self.live.remove(&gone.session);
        }
        self.logged.retain(|_, key| key.0 != stream);
        self.flushes.retain(|(_, key)| key.0 != stream);
        self.reads.retain(|key, _| key.0 != stream);
        self.merges.retain(|key, _| key.0 != stream);
        self.parked.retain(|(of, _)| *of != stream);
        self.needs.retain(|key, _| key.0 != stream);
    }

    pub(super) fn end(&mut self, out: &mut Vec<Output>, stream: StreamId, reason: StreamEnd) {
        if self.streams.contains_key(&stream) {
            self.forget(stream);
            out.push(Output::StreamEnded { stream, reason });
        }
    }

    /// The streams that wait.
    pub(super) fn waiting(&self) -> Vec<Waiting> {
        let waiting = self.streams.iter().filter_map(|(id, stream)| match stream.stage {
            StreamStage::Waiting { attach } => Some((*id, stream.session, attach)),
            StreamStage::Attaching { .. } | StreamStage::Open => None,
        });
        waiting.collect()
    }

    /// The streams whose session is in the log, or was.
    pub(super) fn attached(&self) -> Vec<(StreamId, SessionId, StreamStage)> {
        let all = self.streams.iter().map(|(id, stream)| (*id, stream.session, stream.stage));
        all.filter(|(_, _, stage)| !matches!(stage, StreamStage::Waiting { .. })).collect()
    }

    pub(super) fn set_stage(&mut self, stream: StreamId, stage: StreamStage) {
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.stage = stage;
        }
    }

    /// Whether a session has a stream.
    pub(super) fn is_live(&self, session: SessionId) -> bool {
        self.live.contains_key(&session)
    }

    /// Whether blocks are being merged, or a parked request that came before touches them.
    fn merging(&self, range: BlockRange) -> bool {
        !on(Bug::MergesNotSerialised)
            && self.merges.values().any(|merge| merge.range.overlaps(&range))
    }

    /// The blocks of a read, or of a partial write's merge, that are being read, and which of both it is.
    pub(super) fn reading(&self, stream: StreamId, tag: RequestTag) -> Option<(BlockRange, bool)> {
        let key = (stream, tag);
        let read = self.reads.get(&key).filter(|read| read.wait.is_none());
        let read = read.map(|read| (read.range, false));
        read.or_else(|| self.merges.get(&key).map(|merge| (merge.range, true)))
    }

    /// Forgets a request whose blocks could not be read. Returns whether there was one.
    pub(super) fn forget_reading(&mut self, stream: StreamId, tag: RequestTag) -> bool {
        let key = (stream, tag);
        self.reads.remove(&key).is_some() || self.merges.remove(&key).is_some()
    }

    /// Whether partial writes are being merged: each is logged when its blocks were read.
    pub(super) fn is_merging(&self) -> bool {
        !self.merges.is_empty()
    }

    /// The first block of a write that waits and reaches beyond a size.
    pub(super) fn writes_beyond(&self, blocks: u64) -> Option<Lba> {
        let merges = self.merges.values().map(|merge| merge.range);
        let parked = self.parked.iter().filter_map(|(_, request)| match request.op {
            Op::Write(range) | Op::PartialWrite(range) => Some(range),
            Op::Read(_) | Op::Trim(_) | Op::Zero(_) | Op::Flush | Op::Detach => None,
        });
        merges.chain(parked).find(|range| range.end() > blocks).map(|range| range.lba)
    }

    /// Requests in any stage.
    pub(super) fn in_flight(&self) -> usize {
        self.logged.len()
            + self.flushes.len()
            + self.reads.len()
            + self.merges.len()
            + self.parked.len()
    }
}

fn range_of(op: Op) -> Option<BlockRange> {
    match op {
        Op::Read(range)
        | Op::Write(range)
        | Op::PartialWrite(range)
        | Op::Trim(range)
        | Op::Zero(range) => Some(range),
        Op::Flush | Op::Detach => None,
    }
}

/// Why a range is none of the volume's, as the log has it at its end.
fn beyond_the_end(core: &Core, range: BlockRange) -> Option<String> {
    let blocks = match on(Bug::BeyondTheEnd) {
        true => core.log.state.blocks.max(core.log.committed_state.blocks),
        false => core.log.state.blocks,
    };
    let end = range.lba.0.checked_add(u64::from(range.blocks));
    (range.blocks == 0 || end.is_none_or(|end| end > blocks)).then(|| {
        format!("blocks {}+{} pass the end of a volume of {blocks} blocks", range.lba, range.blocks)
    })
}

impl Primary {
    /// A frontend asks for a stream.
    pub(super) fn open_stream(&mut self, core: &mut Core, open: &OpenStream) -> Verdict {
        // Generations count in one age. [Holder 5 was told to one that asked; a loss took its entry back,
        // and what asked took the volume from another holder 5.]
        let named = open.attach.names_generation() || open.loss_generation.is_some();
        let other_age = named && open.loss_generation != Some(self.config.loss_generation);
        let opened = matches!(open.attach, Attach::Again(_));
        let goes_on = on(Bug::SessionOutlivesLoss) || on(Bug::AttachAcrossLoss) && !opened;
        if other_age && !goes_on {
            let reason = StreamEnd::SessionLost;
            core.out.push(Output::StreamEnded { stream: open.stream, reason });
            return Verdict::Applied;
        }
        // One live stream a session: the old one and all of it that was not logged ends here.
        if let Some(old) = self.clients.live.insert(open.session, open.stream) {
            self.clients.end(&mut core.out, old, StreamEnd::Replaced);
            self.clients.live.insert(open.session, open.stream);
        }
        let stage = StreamStage::Waiting { attach: open.attach };
        self.clients.streams.insert(open.stream, Stream { session: open.session, stage });
        self.note_seen(core, open.session, open.node);
        Verdict::Applied
    }

    /// A frontend's stream is gone.
    pub(super) fn close_stream(&mut self, stream: StreamId) -> Verdict {
        self.clients.forget(stream);
        Verdict::Applied
    }

    /// A request on an open stream.
    pub(super) fn request(
        &mut self,
        core: &mut Core,
        stream: StreamId,
        request: Request,
    ) -> Verdict {
        let Some(known) = self.clients.streams.get(&stream) else {
            return Verdict::Ignored(IgnoredReason::UnknownStream);
        };
        if known.session != request.tag.session || known.stage != StreamStage::Open {
            return Verdict::Ignored(IgnoredReason::Malformed);
        }
        if let Some(refusal) = self.invalid(core, &request) {
            let outcome = Outcome::Invalid(refusal);
            core.out.push(Output::Answer { stream, tag: request.tag, outcome });
            return Verdict::Applied;
        }
        if let Op::Read(range) = request.op {
            // It gets no LSN, so it is checked now.
            if let Some(reason) = self.refusal(core, &request) {
                self.clients.end(&mut core.out, stream, reason);
                return Verdict::Applied;
            }
            let key = (stream, request.tag);
            self.clients.reads.insert(key, Read { range, wait: None });
            core.out.push(Output::Read { stream, tag: request.tag, range, merge: false });
            return Verdict::Applied;
        }
        if on(Bug::AttachAtReceipt)
            && let Some(reason) = self.refusal(core, &request)
        {
            self.clients.end(&mut core.out, stream, reason);
            return Verdict::Applied;
        }
        self.clients.parked.push_back((stream, request));
        Verdict::Applied
    }

    fn invalid(&self, core: &Core, request: &Request) -> Option<String> {
        if let Some(range) = range_of(request.op) {
            let tag = request.tag;
            let session = core.log.state.sessions.get(&tag.session);
            // It may have been logged before the volume shrank, and its answer got lost.
            let logged = session.is_some_and(|session| session.logged.contains_key(&tag.sequence))
                && range.blocks > 0
                && range.lba.0 < u64::MAX / 2;
            if let Some(why) = beyond_the_end(core, range).filter(|_| !logged) {
                return Some(why);
            }
            let bytes = u64::from(range.blocks) * BLOCK_SIZE;
            let carries = !matches!(request.op, Op::Trim(_) | Op::Zero(_));
            // A request of the greatest length that begins inside a block touches one more.
            if carries && bytes > MAX_REQUEST_BYTES + BLOCK_SIZE {
                return Some(format!("{bytes} bytes are more than a request may carry"));
            }
        }
        let sequence = request.tag.sequence;
        // Compared by difference: the numbers are a peer's, and a sum could pass 64 bits.
        if sequence.checked_sub(request.low).is_none_or(|n| n == 0 || n > SEQUENCE_WINDOW) {
            return Some(format!(
                "sequence {sequence} is not within the window above {}",
                request.low
            ));
        }
        None
    }

    /// The blocks of a read, or of a partial write's merge, were read.
    pub(super) fn read_done(
        &mut self,
        core: &mut Core,
        stream: StreamId,
        tag: RequestTag,
        error: Option<String>,
    ) -> Verdict {
        let key = (stream, tag);
        if let Some(error) = error {
            if !self.clients.forget_reading(stream, tag) {
                return Verdict::Ignored(IgnoredReason::UnknownStream);
            }
            core.out.push(Output::Answer { stream, tag, outcome: Outcome::Failed(error) });
            return Verdict::Applied;
        }
        if let Some(read) = self.clients.reads.get_mut(&key) {
            // The data may be of an entry that is not committed: the answer waits for it. One logged
            // after the read was not seen by it, and waiting for it does no harm.
            let newest = core.newest_uncommitted(read.range);
            read.wait = Some(newest.filter(|_| !on(Bug::ReadUncommitted)).unwrap_or_default());
            return Verdict::Applied;
        }
        match self.clients.merges.remove(&key) {
            Some(Merge { request, range }) => {
                // Its LSN is assigned only now, so it is checked now.
                let refusal = self.refusal(core, &request);
                if let Some(reason) = refusal.filter(|_| !on(Bug::AttachAtReceipt)) {
                    self.clients.end(&mut core.out, stream, reason);
                } else if self.undecided(core, &request)
                    || self.is_crowded(core)
                    || self.room(core) != Room::Ample && !on(Bug::MergeTakesRoom)
                {
                    // As a write of whole blocks, and before what came later.
                    let request = Request { op: Op::Write(range), ..request };
                    self.clients.parked.push_front((stream, request));
                } else {
                    let (lba, blocks) = (range.lba, range.blocks);
                    self.log(core, stream, &request, EntryKind::Write { lba, blocks });
                }
                Verdict::Applied
            }
            None => Verdict::Ignored(IgnoredReason::UnknownStream),
        }
    }

    /// Does for the frontends what the frontiers now allow.
    pub(super) fn serve(&mut self, core: &mut Core) {
        if self.ready && self.takes_requests() {
            self.open_waiting(core);
            self.log_parked(core);
        }
        self.answer(core);
    }

    pub(super) fn append(
        &mut self,
        core: &mut Core,
        kind: EntryKind,
        origin: Option<Origin>,
        payload: Payload,
    ) -> Lsn {
        let lsn = core.log.end.next();
        self.assert_room(core, lsn);
        let end = kind.range().map_or(0, |range| range.end());
        assert!(
            end <= core.log.state.blocks || on(Bug::BeyondTheEnd),
            "L7: entry {lsn} reaches to block {end} of a volume of {} blocks",
            core.log.state.blocks
        );
        self.note_beyond(&kind);
        if let EntryKind::Resize { .. } = kind {
            // What was beyond the end holds nothing any more.
            self.clients.needs.clear();
        }
        let header = EntryHeader { epoch: self.config.epoch, lsn, kind, origin };
        core.extend(&[header]);
        core.out.push(Output::Append { headers: vec![header], payload });
        // What waits for a repair that this ends is read behind it.
        self.overtake_mends(core, &kind);
        lsn
    }

    /// Logs what waits, in order, as far as there is room. A request that must wait for a merge, or for
    /// room on a disk, holds up the later ones that touch its blocks, no others.
    fn log_parked(&mut self, core: &mut Core) {
        let mut held: Vec<BlockRange> = Vec::new();
        let mut kept = VecDeque::new();
        while let Some((stream, request)) = self.clients.parked.pop_front() {
            let full = core.log.uncommitted.len() as u64 >= core.params.max_uncommitted
                || self.is_crowded(core);
            let range = range_of(request.op);
            let blocked = range
                .is_some_and(|r| self.clients.merging(r) || held.iter().any(|h| h.overlaps(&r)));
            if full || blocked || self.undecided(core, &request) {
                held.extend(range);
                kept.push_back((stream, request));
                continue;
            }
            let key = (stream, request.tag);
            if self.waits_for_room(core, key, &request) {
                held.extend(range);
                kept.push_back((stream, request));
                continue;
            }
            self.clients.needs.remove(&key);
            self.start(core, stream, request);
        }
        self.clients.parked = kept;
    }

    /// Starts a request: the checks of its session, epoch and attachment are made here, where the
    /// LSN is assigned.
    fn start(&mut self, core: &mut Core, stream: StreamId, request: Request) {
        let tag = request.tag;
        let key = (stream, tag);
        if let Some(reason) = self.refusal(core, &request).filter(|_| !on(Bug::AttachAtReceipt)) {
            return self.clients.end(&mut core.out, stream, reason);
        }
        let unknown = SessionLog::default();
        let session = core.log.state.sessions.get(&tag.session);
        let Some(session) = session.or(on(Bug::UnknownSession).then_some(&unknown)) else { return };
        let logged = session.logged.get(&tag.sequence);
        if let Some(lsn) = logged.filter(|_| !on(Bug::LogResentTwice)) {
            // It was logged before its answer got lost.
            if Some(*lsn) <= self.answerable(core) {
                core.out.push(Output::Answer { stream, tag, outcome: Outcome::Done });
            } else {
                self.clients.logged.insert(*lsn, key);
            }
            return;
        }
        let above = tag.sequence.saturating_sub(session.low.max(request.low));
        if tag.sequence <= session.low || above > SEQUENCE_WINDOW {
            // The frontend said that it knows this one's fate: a late copy must not be logged.
            let outcome = Outcome::Failed("the sequence was settled before".to_owned());
            core.out.push(Output::Answer { stream, tag, outcome });
            return;
        }
        // The volume may have shrunk while it waited.
        if let Some(why) = range_of(request.op).and_then(|range| beyond_the_end(core, range)) {
            let outcome = Outcome::Invalid(why);
            core.out.push(Output::Answer { stream, tag, outcome });
            return;
        }
        match request.op {
            Op::Write(BlockRange { lba, blocks }) => {
                self.log(core, stream, &request, EntryKind::Write { lba, blocks });
            }
            Op::Trim(BlockRange { lba, blocks }) => {
                self.log(core, stream, &request, EntryKind::Trim { lba, blocks });
            }
            Op::Zero(BlockRange { lba, blocks }) => {
                self.log(core, stream, &request, EntryKind::Zero { lba, blocks });
            }
            Op::PartialWrite(range) => {
                self.clients.merges.insert(key, Merge { request, range });
                core.out.push(Output::Read { stream, tag, range, merge: true });
            }
            Op::Flush => self.clients.flushes.push((self.flush_needs(), key)),
            Op::Detach => {
                let kind = EntryKind::Close { session: tag.session };
                self.log(core, stream, &request, kind);
            }
            // Reads are never parked.
            Op::Read(_) => {}
        }
    }

    fn log(&mut self, core: &mut Core, stream: StreamId, request: &Request, kind: EntryKind) {
        let tag = request.tag;
        let payload = match kind {
            EntryKind::Write { .. } => Payload::Client(tag),
            EntryKind::Trim { .. }
            | EntryKind::Zero { .. }
            | EntryKind::Attach { .. }
            | EntryKind::Close { .. }
            | EntryKind::Resize { .. } => Payload::Empty,
        };
        let lsn = self.append(core, kind, Some(Origin { tag, low: request.low }), payload);
        self.clients.logged.insert(lsn, (stream, tag));
    }

    /// Answers what is committed, and reads under the lease.
    fn answer(&mut self, core: &mut Core) {
        let silent = self.has_stopped() && !on(Bug::AnswersAfterHandover);
        if silent && !on(Bug::LogsDuringHandover) {
            return;
        }
        let answerable = self.answerable(core);
        while let Some(entry) = self.clients.logged.first_entry()
            && Some(*entry.key()) <= answerable
        {
            let (stream, tag) = entry.remove();
            core.out.push(Output::Answer { stream, tag, outcome: Outcome::Done });
        }
        let flushed = self.flushed(core);
        let may_flush = self.ready && self.may_flush(core.now);
        let (done, rest) = std::mem::take(&mut self.clients.flushes)
            .into_iter()
            .partition::<Vec<_>, _>(|(wait, _)| Some(*wait) <= flushed && may_flush);
        self.clients.flushes = rest;
        for (_, (stream, tag)) in done {
            core.out.push(Output::Answer { stream, tag, outcome: Outcome::Done });
        }
        self.finish_attaching(core, answerable);
        let active = self.active(core.now) || on(Bug::ReadWithoutLease);
        if self.clients.reads.is_empty() || !active || silent {
            return;
        }
        let ready: Vec<_> = self
            .clients
            .reads
            .iter()
            .filter(|(_, read)| read.wait.is_some_and(|wait| Some(wait) <= answerable))
            .map(|(key, _)| *key)
            .collect();
        for key in ready {
            self.clients.reads.remove(&key);
            core.out.push(Output::Answer { stream: key.0, tag: key.1, outcome: Outcome::Done });
        }
    }
}
