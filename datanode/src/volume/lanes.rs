//! The streams between a volume task and other replicas, in both roles.

use std::collections::BTreeMap;
use std::sync::Arc;

use sbk_engine::replication::Verdict;
use sbk_engine::replication::message::{Lineage, RecoveryId, ToPrimary, ToReplica};
use sbk_engine::types::{ReplicaId, ReplicaRef};
use tokio::sync::{mpsc, oneshot};

use super::events::{Answer, AnswerPath, LaneId, PeerEvent};
use super::status::{Counters, SessionSent};
use crate::transport::{self, Answers, BaseLane, Beside, Channels, Feed, FeedItem, Recover};

/// Primaries that may feed this replica at a time, old ones included.
const MAX_ANSWER_FEEDS: usize = 8;
/// Questions that may wait for their answer.
const MAX_CALLS: usize = 64;

/// The primary's ends: a feed to each replica, and base lanes.
#[derive(Debug)]
pub(super) struct Outgoing {
    channels: Arc<Channels>,
    events: mpsc::Sender<PeerEvent>,
    feeds: BTreeMap<ReplicaId, Feed>,
    bases: BTreeMap<RecoveryId, BaseLane>,
    lanes: u64,
    counters: Arc<Counters>,
    /// What was sent to each replica when its session began.
    begun: BTreeMap<ReplicaId, (RecoveryId, u64)>,
}

impl Outgoing {
    pub(super) fn new(
        channels: Arc<Channels>,
        events: mpsc::Sender<PeerEvent>,
        lanes: u64,
        counters: Arc<Counters>,
    ) -> Self {
        let (feeds, bases, begun) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { channels, events, feeds, bases, lanes, counters, begun }
    }

    /// What was sent in the sessions that are under way, as the engine shows them.
    pub(super) fn sessions(
        &mut self,
        now: impl Iterator<Item = (ReplicaId, RecoveryId)>,
    ) -> BTreeMap<ReplicaId, SessionSent> {
        let now: BTreeMap<_, _> = now.collect();
        self.begun.retain(|replica, (session, _)| now.get(replica) == Some(session));
        let shown = now.into_iter().map(|(replica, session)| {
            let entries = self.counters.sent_to(replica).entries_bytes();
            let (_, before) = *self.begun.entry(replica).or_insert((session, entries));
            let base = self.bases.get(&session).map(BaseLane::progress);
            (replica, SessionSent { session, entries_bytes: entries - before, base })
        });
        shown.collect()
    }

    /// How many lanes were numbered, for the next opening to go on from.
    pub(super) fn lanes(&self) -> u64 {
        self.lanes
    }

    fn next_lane(&mut self) -> LaneId {
        self.lanes += 1;
        LaneId(self.lanes)
    }

    /// Sends a message of the engine the way it belongs. Returns false if the way is blocked: the
    /// replica counts as unreachable.
    pub(super) fn send(&mut self, addr: String, lineage: Lineage, message: ToReplica) -> bool {
        match message {
            ToReplica::Probe { .. }
            | ToReplica::Fence { .. }
            | ToReplica::Cut { .. }
            | ToReplica::Fetch { .. }
            | ToReplica::ReadBlocks { .. } => {
                let (channels, events) = (Arc::clone(&self.channels), self.events.clone());
                // Its timeout bounds how many are under way: the engine asks again only later.
                tokio::spawn(transport::ask(channels, addr, lineage, message, events));
                true
            }
            // An order that is repeated goes where it went before, for its answer comes back there, and the
            // end of that lane would be the session's. [A replica took seconds to wipe what it had. The order
            // came again on a second lane, the first was dropped with the answer to it, and the session
            // failed or its base was begun anew.]
            ToReplica::BeginRebuild { mark, .. }
                if self.bases.get(&mark.session).is_some_and(|base| base.serves(&lineage)) =>
            {
                self.bases[&mark.session].send(lineage, message)
            }
            ToReplica::BeginRebuild { mark, .. } => {
                let lane = self.next_lane();
                self.bases.retain(|_, base| !base.serves(&lineage));
                let (channels, events) = (Arc::clone(&self.channels), self.events.clone());
                let (session, sent) = (mark.session, self.counters.sent_to(lineage.to.id));
                let base =
                    BaseLane::open(channels, addr, lineage, session, message, (lane, events), sent);
                self.bases.insert(mark.session, base);
                true
            }
            ToReplica::Close { session, .. } if self.bases.contains_key(&session) => {
                self.bases[&session].send(lineage, message)
            }
            ToReplica::Append(_) | ToReplica::Close { .. } => {
                let item = FeedItem::Message { lineage, message, entries: Vec::new() };
                self.feed(&addr, &lineage, item)
            }
        }
    }

    /// Queues an item on the feed to a replica, opening it if need be.
    pub(super) fn feed(&mut self, addr: &str, lineage: &Lineage, item: FeedItem) -> bool {
        let replica = lineage.to.id;
        let fits = self.feeds.get(&replica).is_some_and(|feed| feed.serves(addr, lineage));
        if !fits {
            let lane = self.next_lane();
            let (channels, events) = (Arc::clone(&self.channels), self.events.clone());
            let sent = self.counters.sent_to(replica);
            self.feeds.insert(replica, Feed::open(channels, addr, lineage, lane, events, sent));
        }
        let sent = self.feeds[&replica].send(item);
        if !sent {
            self.feeds.remove(&replica);
        }
        sent
    }

    pub(super) fn reset_feed(&mut self, replica: ReplicaId) {
        self.feeds.remove(&replica);
    }

    /// A feed reported its end. Returns whether it was the one in use.
    pub(super) fn feed_ended(&mut self, replica: ReplicaId, lane: LaneId) -> bool {
        let current = self.feeds.get(&replica).is_some_and(|feed| feed.lane() == lane);
        if current {
            self.feeds.remove(&replica);
        }
        current
    }

    pub(super) fn base(&mut self, session: RecoveryId) -> Option<&mut BaseLane> {
        self.bases.get_mut(&session)
    }

    pub(super) fn stop_base(&mut self, session: RecoveryId) {
        self.bases.remove(&session);
    }

    /// A base lane reported its end. Returns whether it was the session's.
    pub(super) fn base_ended(&mut self, session: RecoveryId, lane: LaneId) -> bool {
        let current = self.bases.get(&session).is_some_and(|base| base.lane() == lane);
        if current {
            self.bases.remove(&session);
        }
        current
    }
}

/// The ways back to primaries.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    feeds: BTreeMap<ReplicaRef, Arc<Answers>>,
    calls: BTreeMap<(ReplicaRef, u64), oneshot::Sender<Answer>>,
    base: Option<(RecoveryId, Arc<Answers>)>,
    /// The base lane whose order to begin is being handled: the session's from here on, if it is
    /// obeyed. A late copy of an order comes on a lane where nobody listens any more.
    beginning: Option<(RecoveryId, Arc<Answers>)>,
    /// The way back of the message that is being handled.
    current: Option<Current>,
    /// Whether the engine ignored it.
    ignored: bool,
}

#[derive(Debug)]
enum Current {
    Call(ReplicaRef, u64),
    Stream(Arc<Answers>),
}

impl Incoming {
    /// Remembers the way back of a message that the engine is about to see.
    pub(super) fn begin(&mut self, lineage: &Lineage, message: &ToReplica, path: AnswerPath) {
        let from = lineage.from;
        self.current = match path {
            AnswerPath::Call(answer) => {
                let request = match message {
                    ToReplica::Probe { request }
                    | ToReplica::Fence { request, .. }
                    | ToReplica::Cut { request, .. }
                    | ToReplica::Fetch { request, .. }
                    | ToReplica::ReadBlocks { request, .. } => *request,
                    ToReplica::Append(_)
                    | ToReplica::BeginRebuild { .. }
                    | ToReplica::Close { .. } => return,
                };
                self.calls.retain(|_, waiting| !waiting.is_closed());
                if self.calls.len() >= MAX_CALLS {
                    self.calls.pop_first();
                }
                self.calls.insert((from, request), answer);
                Some(Current::Call(from, request))
            }
            AnswerPath::Feed(answers) => {
                let known = self.feeds.get(&from).is_some_and(|f| Arc::ptr_eq(f, &answers));
                if !known {
                    if self.feeds.len() >= MAX_ANSWER_FEEDS {
                        self.feeds.pop_first();
                    }
                    self.feeds.insert(from, Arc::clone(&answers));
                }
                Some(Current::Stream(answers))
            }
            AnswerPath::Base(answers) => {
                if let ToReplica::BeginRebuild { mark, .. } = message {
                    self.beginning = Some((mark.session, Arc::clone(&answers)));
                }
                Some(Current::Stream(answers))
            }
        };
    }

    /// Remembers what the engine made of the message that is being handled.
    pub(super) fn note_verdict(&mut self, verdict: Verdict) {
        self.ignored = matches!(verdict, Verdict::Ignored(_));
        if let Some(beginning) = self.beginning.take().filter(|_| !self.ignored) {
            self.base = Some(beginning);
        }
    }

    /// The message was handled. A question that was ignored gets no answer any more.
    pub(super) fn finish(&mut self) {
        if let Some(Current::Call(from, request)) = self.current.take()
            && self.ignored
        {
            self.calls.remove(&(from, request));
        }
    }

    /// Sends an answer the way it belongs. Without one it is dropped: the primary asks again, or
    /// notices that the stream is gone.
    pub(super) fn send(&mut self, lineage: Lineage, message: ToPrimary) {
        let to = lineage.to;
        match &message {
            ToPrimary::Alive { request }
            | ToPrimary::Facts { request, .. }
            | ToPrimary::CutDone { request, .. }
            | ToPrimary::Entries { request, .. }
            | ToPrimary::Blocks { request, .. } => {
                self.reply((to, *request), (lineage, message, Beside::default()));
            }
            ToPrimary::Ack { .. } | ToPrimary::Gap { .. } => self.push(to, lineage, message),
            ToPrimary::RebuildStarted { session } => {
                if let Some(base) = self.base_of(*session) {
                    base.push(lineage, Recover::ToPrimary(message));
                }
            }
            ToPrimary::Closed { session, .. } | ToPrimary::SessionFailed { session, .. } => {
                match self.base_of(*session) {
                    Some(base) => {
                        base.push(lineage, Recover::ToPrimary(message));
                    }
                    None => self.push(to, lineage, message),
                }
            }
            ToPrimary::Refused { .. } => match self.current.take() {
                Some(Current::Call(from, request)) => {
                    self.reply((from, request), (lineage, message, Beside::default()));
                }
                Some(Current::Stream(answers)) => {
                    answers.push(lineage, Recover::ToPrimary(message));
                    self.current = Some(Current::Stream(answers));
                }
                None => self.push(to, lineage, message),
            },
        }
    }

    /// Whether a session's messages come on this base lane.
    pub(super) fn is_base(&self, session: RecoveryId, lane: &Arc<Answers>) -> bool {
        self.base.as_ref().is_some_and(|(of, answers)| *of == session && Arc::ptr_eq(answers, lane))
    }

    fn base_of(&self, session: RecoveryId) -> Option<Arc<Answers>> {
        let (of, answers) = self.base.as_ref()?;
        (*of == session).then(|| Arc::clone(answers))
    }

    /// The asker of a fetch or of blocks, for whoever reads them.
    pub(super) fn take_call(
        &mut self,
        from: ReplicaRef,
        request: u64,
    ) -> Option<oneshot::Sender<Answer>> {
        self.calls.remove(&(from, request))
    }

    fn reply(&mut self, call: (ReplicaRef, u64), answer: Answer) {
        if let Some(way) = self.calls.remove(&call) {
            // The asker may have given up.
            let _gave_up = way.send(answer);
        }
    }

    fn push(&mut self, to: ReplicaRef, lineage: Lineage, message: ToPrimary) {
        let open = self
            .feeds
            .get(&to)
            .is_some_and(|answers| answers.push(lineage, Recover::ToPrimary(message)));
        if !open {
            self.feeds.remove(&to);
        }
    }

    /// The base lane of a session is over.
    pub(super) fn stop_base(&mut self, session: RecoveryId) {
        if self.base.as_ref().is_some_and(|(of, _)| *of == session)
            && let Some((_, answers)) = self.base.take()
        {
            answers.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use sbk_engine::replication::IgnoredReason;
    use sbk_engine::replication::log::{EpochTable, LogState};
    use sbk_engine::replication::message::Incomplete;
    use sbk_engine::types::{Epoch, Incarnation, Lsn, VolumeId};
    use uuid::Uuid;

    use super::*;

    /// The order to begin that was repeated on a second lane is obeyed; then the first one arrives.
    #[tokio::test]
    async fn a_late_order_to_begin_does_not_take_the_way_back_along() {
        let replica = |n| ReplicaRef {
            id: ReplicaId(Uuid::from_u128(n)),
            incarnation: Incarnation { process: 1, open: 1 },
        };
        let volume = VolumeId(Uuid::from_u128(9));
        let question = Lineage { volume, epoch: Epoch(2), from: replica(1), to: replica(2) };
        let session = RecoveryId { epoch: Epoch(2), number: 1 };
        let begin = |request| ToReplica::BeginRebuild {
            request,
            mark: Incomplete { session, from: Lsn(0), base: Lsn(5), target: Lsn(6) },
            table: EpochTable::default(),
            state: LogState::new(1),
        };
        let (late, lane) = (Arc::<Answers>::default(), Arc::<Answers>::default());
        let mut incoming = Incoming::default();
        for (request, way, verdict) in
            [(2, &lane, Verdict::Applied), (1, &late, Verdict::Ignored(IgnoredReason::LateCopy))]
        {
            incoming.begin(&question, &begin(request), AnswerPath::Base(Arc::clone(way)));
            incoming.note_verdict(verdict);
            incoming.finish();
        }
        assert!(incoming.is_base(session, &lane));
        assert!(!incoming.is_base(session, &late), "its end is not the session's");
        let answer = Lineage { from: question.to, to: question.from, ..question };
        let closed = ToPrimary::Closed { session, achieved: Lsn(6) };
        incoming.send(answer, closed.clone());
        lane.close();
        late.close();
        let sent: Vec<_> = lane.stream().collect().await;
        assert_eq!(sent, [(answer, Recover::ToPrimary(closed))]);
        assert_eq!(late.stream().count().await, 0);
    }
}
