//! The streams between a volume task and other replicas, in both roles.

use std::collections::BTreeMap;
use std::sync::Arc;

use sbk_engine::replication::Verdict;
use sbk_engine::replication::message::{Lineage, RecoveryId, ToPrimary, ToReplica};
use sbk_engine::types::{ReplicaId, ReplicaRef};
use tokio::sync::{mpsc, oneshot};

use super::events::{AnswerPath, LaneId, PeerEvent};
use crate::transport::{self, Answers, BaseLane, Channels, Feed, FeedItem, Recover};

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
}

impl Outgoing {
    pub(super) fn new(
        channels: Arc<Channels>,
        events: mpsc::Sender<PeerEvent>,
        lanes: u64,
    ) -> Self {
        Self { channels, events, feeds: BTreeMap::new(), bases: BTreeMap::new(), lanes }
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
            ToReplica::Probe { .. } | ToReplica::Fence { .. } | ToReplica::Cut { .. } => {
                let (channels, events) = (Arc::clone(&self.channels), self.events.clone());
                // Its timeout bounds how many are under way: the engine asks again only later.
                tokio::spawn(transport::ask(channels, addr, lineage, message, events));
                true
            }
            ToReplica::BeginRebuild { mark, .. } => {
                let lane = self.next_lane();
                self.bases.retain(|_, base| !base.serves(&lineage));
                let (channels, events) = (Arc::clone(&self.channels), self.events.clone());
                let base =
                    BaseLane::open(channels, addr, lineage, mark.session, message, lane, events);
                self.bases.insert(mark.session, base);
                true
            }
            ToReplica::Close { session, .. } if self.bases.contains_key(&session) => {
                self.bases[&session].send(message)
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
            self.feeds.insert(replica, Feed::open(channels, addr, lineage, lane, events));
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
    calls: BTreeMap<(ReplicaRef, u64), oneshot::Sender<(Lineage, ToPrimary)>>,
    base: Option<(RecoveryId, Arc<Answers>)>,
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
                    | ToReplica::Cut { request, .. } => *request,
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
                    self.base = Some((mark.session, Arc::clone(&answers)));
                }
                Some(Current::Stream(answers))
            }
        };
    }

    /// Remembers what the engine made of the message that is being handled.
    pub(super) fn note_verdict(&mut self, verdict: Verdict) {
        self.ignored = matches!(verdict, Verdict::Ignored(_));
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
            | ToPrimary::CutDone { request, .. } => {
                self.reply((to, *request), lineage, message);
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
                    self.reply((from, request), lineage, message);
                }
                Some(Current::Stream(answers)) => {
                    answers.push(lineage, Recover::ToPrimary(message));
                    self.current = Some(Current::Stream(answers));
                }
                None => self.push(to, lineage, message),
            },
        }
    }

    fn base_of(&self, session: RecoveryId) -> Option<Arc<Answers>> {
        let (of, answers) = self.base.as_ref()?;
        (*of == session).then(|| Arc::clone(answers))
    }

    fn reply(&mut self, call: (ReplicaRef, u64), lineage: Lineage, message: ToPrimary) {
        if let Some(answer) = self.calls.remove(&call) {
            // The asker may have given up.
            let _gave_up = answer.send((lineage, message));
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
