//! One volume's frontend session on this node, shared by all its clients.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use sbk_engine::forward::{
    Answer, Attachment, ByteRange, ClientId, Forwarder, Input, LinkId, Op, Output, RequestId,
};
use sbk_engine::replication::io::Outcome;
use sbk_engine::types::{BLOCK_SIZE, SessionId, VolumeId};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio_util::task::TaskTracker;

use super::block::fresh_session;
use super::connect::Connector;
use super::limits::Permit;
use super::split;
use crate::catalogue::CatalogueWatch;
use crate::link::{IoOp, IoRequest, Link, LinkEvent, LinkOutcome, OpenLink, runs_in};
use crate::volume::clock;

/// Requests that wait for the session's task.
const QUEUE: usize = 256;
/// Links that are being made; the forwarder tries one at a time.
const CONNECTING: usize = 16;

/// A request's answer.
#[derive(Debug)]
pub struct Reply {
    /// The client's own name for the request.
    pub cookie: u64,
    /// How it ended.
    pub answer: Answer,
    /// A read's data.
    pub data: Bytes,
    /// What the client reserved for the request; freed when the reply is dropped.
    pub permit: Option<Permit>,
}

/// What a client asks.
#[derive(Debug)]
struct Submit {
    client: ClientId,
    cookie: u64,
    op: IoOp,
    permit: Option<Permit>,
    /// Its answer is to say that it is durable.
    durable: bool,
}

/// A client's attachment, or why it came to nothing.
pub type Attached = Result<Attachment, String>;

/// A client that came.
#[derive(Debug)]
struct Arrival {
    id: ClientId,
    replies: mpsc::UnboundedSender<Reply>,
    attached: oneshot::Sender<Attached>,
}

/// Who comes and goes. Both wait for nothing: a session that takes no more requests must hear that a
/// client left, for what that one asked is not sent any more.
#[derive(Debug)]
enum Visit {
    /// A client, with a queue of its own if all users of the one before are gone.
    Comes(Arrival, Option<mpsc::Receiver<Submit>>),
    Goes(ClientId),
}

/// Held by whoever comes, and by a session that ends because nobody did: so nobody comes to one that is
/// closed to all others. [One did; the next got a session of its own beside it, and in that wrote again what
/// the first one's still had on the way.]
#[derive(Clone, Debug, Default)]
struct Door(Arc<Mutex<()>>);

impl Door {
    fn hold(&self) -> MutexGuard<'_, ()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The way to a session's task.
#[derive(Debug)]
pub(super) struct SessionHandle {
    orders: mpsc::WeakSender<Submit>,
    visits: mpsc::UnboundedSender<Visit>,
    door: Door,
    clients: u64,
}

/// One client of a session. Dropping it detaches.
#[derive(Debug)]
pub struct ClientHandle {
    id: ClientId,
    orders: mpsc::Sender<Submit>,
    visits: mpsc::UnboundedSender<Visit>,
    /// Answers, in the order in which they came. What is in it is bounded by what the client
    /// reserved for its requests.
    pub replies: mpsc::UnboundedReceiver<Reply>,
    /// What became of its attachment, once.
    pub attached: oneshot::Receiver<Attached>,
    /// Its place where only so many clients may be; free again when it goes.
    pub(super) place: Option<OwnedSemaphorePermit>,
}

/// The sending half of a [`ClientHandle`].
#[derive(Clone, Debug)]
pub struct Submitter {
    id: ClientId,
    orders: mpsc::Sender<Submit>,
}

impl ClientHandle {
    /// Waits until all that was acknowledged to it is durable. Nothing else may be under way.
    ///
    /// # Errors
    /// Why the flush failed.
    pub async fn flush(&mut self) -> Result<(), String> {
        const FLUSH: u64 = u64::MAX;
        if !self.submitter().submit(FLUSH, IoOp::Flush, None).await {
            return Err("the session has ended".to_owned());
        }
        while let Some(reply) = self.replies.recv().await {
            match reply.answer {
                _ if reply.cookie != FLUSH => {}
                Answer::Done => return Ok(()),
                Answer::Invalid(why) | Answer::Failed(why) => return Err(why),
                Answer::Deleted => return Err("the volume was deleted".to_owned()),
            }
        }
        Err("the session has ended".to_owned())
    }

    /// A way to submit requests while another task takes the answers.
    pub fn submitter(&self) -> Submitter {
        Submitter { id: self.id, orders: self.orders.clone() }
    }
}

impl Drop for ClientHandle {
    fn drop(&mut self) {
        // A session that has ended knows no clients.
        let _ended = self.visits.send(Visit::Goes(self.id));
    }
}

impl Submitter {
    /// Hands a request over. Waits while the session can't take more; `false` if it has ended.
    pub async fn submit(&self, cookie: u64, op: IoOp, permit: Option<Permit>) -> bool {
        self.hand_over(cookie, op, permit, false).await
    }

    /// As [`submit`](Self::submit), for a request whose answer says that it is durable.
    pub async fn submit_durable(&self, cookie: u64, op: IoOp, permit: Option<Permit>) -> bool {
        self.hand_over(cookie, op, permit, true).await
    }

    async fn hand_over(
        &self,
        cookie: u64,
        op: IoOp,
        permit: Option<Permit>,
        durable: bool,
    ) -> bool {
        let submit = Submit { client: self.id, cookie, op, permit, durable };
        self.orders.send(submit).await.is_ok()
    }
}

impl SessionHandle {
    /// Starts the session, as one of `tasks`.
    pub(super) fn start(
        volume: VolumeId,
        catalogue: CatalogueWatch,
        connector: Connector,
        forwarder: Forwarder,
        name: SessionId,
        tasks: &TaskTracker,
    ) -> Self {
        // The first client brings the queue.
        let orders = mpsc::channel(1).0.downgrade();
        let (visits, visitors) = mpsc::unbounded_channel();
        let task = Task::new(volume, catalogue, connector, forwarder, name);
        let door = Door::default();
        tasks.spawn(task.run(visitors, door.clone()));
        Self { orders, visits, door, clients: 0 }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.visits.is_closed()
    }

    /// Adds a client. `None` if the session has ended.
    pub(super) fn attach(&mut self) -> Option<ClientHandle> {
        let _held = self.door.hold();
        let (orders, queue) = match self.orders.upgrade() {
            Some(orders) => (orders, None),
            None => {
                let (orders, queue) = mpsc::channel(QUEUE);
                self.orders = orders.downgrade();
                (orders, Some(queue))
            }
        };
        self.clients += 1;
        let id = ClientId(self.clients);
        let (sender, replies) = mpsc::unbounded_channel();
        let (attached, outcome) = oneshot::channel();
        let arrival = Arrival { id, replies: sender, attached };
        let visits = self.visits.clone();
        visits.send(Visit::Comes(arrival, queue)).ok()?;
        Some(ClientHandle { id, orders, visits, replies, attached: outcome, place: None })
    }
}

/// A request of the forwarder: a part of what a client asked, most often all of it.
struct Held {
    client: ClientId,
    op: IoOp,
    asked: u64,
    part: usize,
}

/// What a client asked, until all parts of it are answered.
struct Asked {
    client: ClientId,
    cookie: u64,
    permit: Option<Permit>,
    /// Parts without an answer.
    left: usize,
    /// A flush follows before the answer, if writes are acknowledged before they are synced.
    flush: bool,
    /// Of the parts that were answered, the first that is not `Done`.
    answer: Answer,
    /// What was read, by part.
    data: Vec<Bytes>,
}

impl Asked {
    fn reply(mut self) -> Reply {
        let data = match (&self.answer, self.data.len()) {
            (Answer::Done, 0) => Bytes::new(),
            (Answer::Done, 1) => self.data.remove(0),
            (Answer::Done, _) => self.data.concat().into(),
            (Answer::Invalid(_) | Answer::Failed(_) | Answer::Deleted, _) => Bytes::new(),
        };
        Reply { cookie: self.cookie, answer: self.answer, data, permit: self.permit }
    }
}

struct Task {
    volume: VolumeId,
    forwarder: Forwarder,
    /// Of its first session.
    name: Option<SessionId>,
    catalogue: CatalogueWatch,
    connector: Connector,
    clients: BTreeMap<ClientId, mpsc::UnboundedSender<Reply>>,
    /// Clients that wait to hear of their attachment.
    attaching: BTreeMap<ClientId, oneshot::Sender<Attached>>,
    held: BTreeMap<RequestId, Held>,
    asked: BTreeMap<u64, Asked>,
    next_request: u64,
    next_asked: u64,
    link: Option<(LinkId, Link)>,
    /// The link that is being made; another that comes is an abandoned attempt's.
    opening: Option<LinkId>,
    outbox: VecDeque<IoRequest>,
    made: mpsc::Sender<(LinkId, Option<Link>)>,
    made_in: mpsc::Receiver<(LinkId, Option<Link>)>,
    /// The data of the reply that is being handled.
    data: Bytes,
    /// Whether the volume acknowledges writes before they are synced.
    acks_written: bool,
    closed: bool,
}

fn shape(op: &IoOp) -> Op {
    let range = |offset: u64, length: u64| ByteRange { offset, length };
    match op {
        // To the engine both are reads: of the newest committed state, once a lease allows it.
        IoOp::Read { offset, length } | IoOp::Map { offset, length, .. } => {
            Op::Read(range(*offset, *length))
        }
        IoOp::Write { offset, data } => Op::Write(range(*offset, data.len() as u64)),
        IoOp::Trim { offset, length } => Op::Trim(range(*offset, *length)),
        IoOp::Zero { offset, length } => Op::Zero(range(*offset, *length)),
        IoOp::Flush | IoOp::Detach => Op::Flush,
    }
}

impl Task {
    fn new(
        volume: VolumeId,
        catalogue: CatalogueWatch,
        connector: Connector,
        forwarder: Forwarder,
        name: SessionId,
    ) -> Self {
        let (made, made_in) = mpsc::channel(CONNECTING);
        Self {
            volume,
            forwarder,
            name: Some(name),
            catalogue,
            connector,
            clients: BTreeMap::new(),
            attaching: BTreeMap::new(),
            held: BTreeMap::new(),
            asked: BTreeMap::new(),
            next_request: 0,
            next_asked: 0,
            link: None,
            opening: None,
            outbox: VecDeque::new(),
            made,
            made_in,
            data: Bytes::new(),
            acks_written: false,
            closed: false,
        }
    }

    /// Serves clients until none is left and nothing of theirs is under way. [Another client came when
    /// the last one had left in the middle of its writes, was given a session of its own, and wrote again
    /// what the first one's had still on the way: that arrived behind it.]
    async fn run(mut self, mut visits: mpsc::UnboundedReceiver<Visit>, door: Door) {
        let mut orders: Option<mpsc::Receiver<Submit>> = None;
        let mut came = false;
        self.look_up();
        loop {
            if came && orders.is_none() && self.forwarder.is_idle() {
                let _held = door.hold();
                if visits.is_empty() {
                    // Whoever comes from here on gets another session.
                    visits.close();
                    break;
                }
            }
            let due = self.forwarder.next_deadline();
            let wait = due.map_or(std::time::Duration::from_secs(3600), clock::until);
            let accepts = self.forwarder.can_accept();
            let sending = !self.outbox.is_empty();
            tokio::select! {
                biased;
                Some(visit) = visits.recv() => match visit {
                    Visit::Comes(arrival, queue) => {
                        orders = queue.or(orders);
                        came = true;
                        self.comes(arrival);
                    }
                    Visit::Goes(client) => self.goes(client),
                },
                turn = turn(&mut self.link, sending) => self.turn(turn),
                Some((link, made)) = self.made_in.recv() => self.made(link, made),
                changed = self.catalogue.changed() => match changed {
                    Ok(()) => self.look_up(),
                    Err(_) => return,
                },
                order = next(&mut orders), if accepts => match order {
                    Some(submit) => self.submit(submit),
                    None => {
                        orders = None;
                        let gone: Vec<_> = self.clients.keys().copied().collect();
                        gone.into_iter().for_each(|client| self.goes(client));
                    }
                },
                () = tokio::time::sleep(wait) => self.step(Input::Tick),
            }
        }
        self.step(Input::Close);
        if self.link.is_some() {
            self.finish().await;
        }
    }

    /// Nothing is under way: sees the session to its end, for as long as its link lives.
    async fn finish(&mut self) {
        let patience = tokio::time::sleep(std::time::Duration::from_secs(10));
        tokio::pin!(patience);
        while !self.closed {
            let sending = !self.outbox.is_empty();
            tokio::select! {
                biased;
                () = &mut patience => return,
                turn = turn(&mut self.link, sending) => self.turn(turn),
                Some((link, made)) = self.made_in.recv() => self.made(link, made),
            }
        }
    }

    fn look_up(&mut self) {
        let catalogue = self.catalogue.borrow_and_update().clone();
        let Some(volume) = catalogue.volumes.get(&self.volume) else {
            if catalogue.heard {
                self.step(Input::Deleted);
            }
            return;
        };
        if volume.deleted {
            self.step(Input::Deleted);
        } else if let Some(config) = volume.config.clone() {
            self.acks_written = config.acks_written();
            self.step(Input::Config(config));
        }
    }

    fn comes(&mut self, arrival: Arrival) {
        let Arrival { id, replies, attached } = arrival;
        self.clients.insert(id, replies);
        self.attaching.insert(id, attached);
        self.step(Input::Attached(id));
    }

    fn goes(&mut self, client: ClientId) {
        self.clients.remove(&client);
        self.attaching.remove(&client);
        self.step(Input::Detached(client));
        self.held.retain(|_, held| held.client != client);
        self.asked.retain(|_, asked| asked.client != client);
    }

    fn submit(&mut self, submit: Submit) {
        let Submit { client, cookie, op, permit, durable } = submit;
        let reads = matches!(op, IoOp::Read { .. } | IoOp::Map { .. });
        let parts = split::parts(op);
        let asked = self.next_asked;
        self.next_asked += 1;
        let data = if reads { vec![Bytes::new(); parts.len()] } else { Vec::new() };
        let (left, answer) = (parts.len(), Answer::Done);
        let flush = durable && !reads;
        self.asked.insert(asked, Asked { client, cookie, permit, left, flush, answer, data });
        for (part, op) in parts.into_iter().enumerate() {
            self.next_request += 1;
            let request = RequestId(self.next_request);
            let shape = shape(&op);
            self.held.insert(request, Held { client, op, asked, part });
            self.step(Input::Submit { client, request, op: shape });
        }
    }

    fn turn(&mut self, turn: Turn) {
        let (link, event) = match turn {
            Turn::Room => return self.flush_outbox(),
            Turn::Event(link, event) => (link, event),
        };
        match event {
            None => {
                self.link = None;
                self.outbox.clear();
                self.step(Input::LinkLost(link));
            }
            Some(LinkEvent::Opened { epoch, attach, loss_generation }) => {
                self.step(Input::LinkOpened { link, epoch, attach, loss_generation });
            }
            Some(LinkEvent::Ended { reason, config }) => {
                self.link = None;
                self.outbox.clear();
                self.step(Input::LinkEnded { link, reason, config });
            }
            Some(LinkEvent::HeldBack) => self.step(Input::HeldBack(link)),
            Some(LinkEvent::Reply { sequence, outcome, data }) => {
                let outcome = match outcome {
                    LinkOutcome::Done => Outcome::Done,
                    LinkOutcome::Invalid(why) => Outcome::Invalid(why),
                    LinkOutcome::Failed(why) => Outcome::Failed(why),
                };
                self.data = data;
                self.step(Input::Reply { link, sequence, outcome });
                self.data = Bytes::new();
            }
        }
    }

    fn made(&mut self, link: LinkId, made: Option<Link>) {
        if self.opening != Some(link) {
            return;
        }
        self.opening = None;
        match made {
            Some(new) => self.link = Some((link, new)),
            None => self.step(Input::LinkLost(link)),
        }
    }

    fn step(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let (_, outputs) = self.forwarder.step(clock::now(), input);
            for output in outputs {
                inputs.extend(self.execute(output));
            }
        }
        self.flush_outbox();
    }

    fn execute(&mut self, output: Output) -> Option<Input> {
        match output {
            Output::NeedSession => {
                let name = self.name.take().unwrap_or_else(fresh_session);
                return Some(Input::Session(name));
            }
            Output::Open { link, node, addr, primary, session, attach, loss_generation } => {
                let (volume, from) = (self.volume, self.connector.node);
                let open =
                    OpenLink { volume, session, attach, node: from, loss_generation, primary };
                self.opening = Some(link);
                let (connector, made) = (self.connector.clone(), self.made.clone());
                tokio::spawn(async move {
                    let new = connector.open(node, &addr, open).await;
                    let _ = made.send((link, new)).await;
                });
            }
            Output::CloseLink(link) => {
                if self.link.as_ref().is_some_and(|(current, _)| *current == link) {
                    self.link = None;
                }
                if self.opening == Some(link) {
                    self.opening = None;
                }
                self.outbox.clear();
            }
            Output::Send { request, sequence, low, epoch, attach, .. } => {
                if let Some(held) = self.held.get(&request) {
                    // The payload is shared, not copied: it may have to be sent again.
                    let op = held.op.clone();
                    self.outbox.push_back(IoRequest { sequence, low, epoch, attach, op });
                }
            }
            Output::SendDetach { sequence, low, epoch, attach, .. } => {
                let op = IoOp::Detach;
                self.outbox.push_back(IoRequest { sequence, low, epoch, attach, op });
            }
            Output::Answer { request, answer } => return self.answer(request, answer),
            Output::Attached(client) => {
                let stands = self.forwarder.attachment();
                self.tell_attached(client, Ok(stands.expect("an attachment that stands is known")));
            }
            Output::Refused { client, why } => self.tell_attached(client, Err(why)),
            Output::Closed => self.closed = true,
        }
        None
    }

    fn tell_attached(&mut self, client: ClientId, attached: Attached) {
        if let Some(waiting) = self.attaching.remove(&client) {
            // A client that does not ask is not told.
            let _ = waiting.send(attached);
        }
    }

    fn answer(&mut self, request: RequestId, answer: Answer) -> Option<Input> {
        let held = self.held.remove(&request)?;
        let asked = self.asked.get_mut(&held.asked)?;
        asked.left -= 1;
        let answer = match (answer, &held.op) {
            (Answer::Done, IoOp::Read { offset, length }) => {
                let data = std::mem::take(&mut self.data);
                if data.len() as u64 == *length {
                    asked.data[held.part] = data;
                    Answer::Done
                } else {
                    // Passed on, it would shift all that the client reads after it.
                    let got = data.len();
                    Answer::Failed(format!(
                        "the primary answered a read of {length} bytes at {offset} with {got}"
                    ))
                }
            }
            (Answer::Done, IoOp::Map { offset, length, one }) => {
                let data = std::mem::take(&mut self.data);
                if runs_in(&data, length / BLOCK_SIZE, *one).is_some() {
                    asked.data[held.part] = data;
                    Answer::Done
                } else {
                    Answer::Failed(format!(
                        "the primary's answer to a map of {length} bytes at {offset} makes no sense"
                    ))
                }
            }
            (answer, _) => answer,
        };
        if asked.answer == Answer::Done {
            asked.answer = answer;
        }
        if asked.left > 0 {
            return None;
        }
        // Asked now: before the first answer the volume's kind may not be known.
        if asked.flush && self.acks_written && asked.answer == Answer::Done {
            (asked.flush, asked.left) = (false, 1);
            self.next_request += 1;
            let (request, client, op) = (RequestId(self.next_request), asked.client, IoOp::Flush);
            self.held.insert(request, Held { client, op, asked: held.asked, part: 0 });
            return Some(Input::Submit { client, request, op: Op::Flush });
        }
        let asked = self.asked.remove(&held.asked)?;
        if let Some(replies) = self.clients.get(&asked.client) {
            // A client that went is told of by its detaching.
            let _ = replies.send(asked.reply());
        }
        None
    }

    fn flush_outbox(&mut self) {
        let Some((_, link)) = &self.link else { return };
        while let Some(request) = self.outbox.pop_front() {
            match link.requests.try_send(request) {
                Ok(()) => {}
                Err(mpsc::error::TrySendError::Full(request)) => {
                    self.outbox.push_front(request);
                    return;
                }
                // The link's end tells.
                Err(mpsc::error::TrySendError::Closed(_)) => return,
            }
        }
    }
}

/// The next request; waits for ever without a queue.
async fn next(orders: &mut Option<mpsc::Receiver<Submit>>) -> Option<Submit> {
    match orders {
        Some(orders) => orders.recv().await,
        None => std::future::pending().await,
    }
}

/// What a link has to say.
#[expect(clippy::large_enum_variant, reason = "one at a time, taken apart at once")]
enum Turn {
    /// It takes another request.
    Room,
    /// An event, or its end.
    Event(LinkId, Option<LinkEvent>),
}

/// The link's next turn; waits for ever without a link.
async fn turn(link: &mut Option<(LinkId, Link)>, sending: bool) -> Turn {
    let Some((id, link)) = link else { return std::future::pending().await };
    tokio::select! {
        biased;
        event = link.events.recv() => Turn::Event(*id, event),
        room = link.requests.reserve(), if sending => match room {
            Ok(_) => Turn::Room,
            // The far end is gone, with what it had to say.
            Err(_) => Turn::Event(*id, None),
        },
    }
}
