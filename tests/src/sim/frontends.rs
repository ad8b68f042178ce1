//! Between the clients and the nodes.

use sbk_engine::forward::{Input as Fact, LinkId, Op as Wanted, Output as Order};
use sbk_engine::replication::io::{
    Attach, Input, Op, OpenStream, Outcome, Request, StreamEnd, StreamId,
};
use sbk_engine::replication::log::RequestTag;
use sbk_engine::types::{BLOCK_SIZE, LossGeneration, NodeId, ReplicaRef, SessionId};
use uuid::Uuid;

use super::client::Line;
use super::content::{self, BLOCKS};
use super::event::Event;
use super::marks::Mark;
use super::node::Held;
use super::world::World;

/// Blocks of a request, and whether it covers them.
fn blocks(wanted: Wanted) -> Op {
    match wanted {
        Wanted::Read(range) => Op::Read(range.blocks()),
        Wanted::Write(range) if range.length.is_multiple_of(BLOCK_SIZE) => {
            Op::Write(range.blocks())
        }
        Wanted::Write(range) => Op::PartialWrite(range.blocks()),
        Wanted::Trim(range) => Op::Trim(range.blocks()),
        Wanted::Zero(range) => Op::Zero(range.blocks()),
        Wanted::Flush => Op::Flush,
    }
}

/// The bytes of a request.
fn held(op: Op, value: u64) -> Held {
    match op {
        Op::Read(_) => Held::Read(None),
        Op::Write(_) => Held::Write(content::block(value)),
        Op::PartialWrite(_) => Held::Partial(content::part(value)),
        Op::Trim(_) | Op::Zero(_) | Op::Flush | Op::Detach => Held::Nothing,
    }
}

impl World {
    pub(crate) fn handle_frontend(&mut self, event: Event) {
        if let Some(client) = self.client_of(&event)
            && self.clients[client].is_paused(self.now)
        {
            self.clients[client].waiting.push(event);
            return;
        }
        match event {
            Event::Catalogue { client, told } => {
                let fact = match &told.volume {
                    Some(volume) if volume.deleted.is_none() => match &volume.config {
                        Some(config) => Fact::Config(config.clone()),
                        None => return,
                    },
                    Some(_) | None => Fact::Deleted,
                };
                self.feed(client, fact);
            }
            Event::Open { node, primary, open } => self.open_stream(node, primary, open),
            Event::Close { node, stream } => {
                self.nodes[node].forget(stream);
                self.step(node, Input::CloseStream { stream }, Vec::new());
            }
            Event::Ask { node, stream, request, value } => {
                self.values.insert(request.tag, value);
                if self.truth.has(request.tag) {
                    self.mark(Mark::Resent);
                }
                // The stream ended meanwhile: nobody takes from it any more.
                if !self.nodes[node].open.contains(&stream) {
                    return;
                }
                self.nodes[node].held.insert((stream, request.tag), held(request.op, value));
                self.step(node, Input::Request { stream, request }, Vec::new());
            }
            Event::Opened { stream, epoch, attach, loss } => {
                let Some((client, link)) = self.live(stream) else { return };
                let before = self.clients[client].attached;
                self.clients[client].opened((loss, attach));
                self.feed(client, Fact::LinkOpened { link, epoch, attach, loss_generation: loss });
                if self.live(stream).is_some() {
                    self.stands(client, (loss, attach));
                } else {
                    // The frontend knew of a newer configuration and closed it: nobody is attached by it.
                    self.clients[client].attached = before;
                }
            }
            Event::Ended { stream, reason, config } => {
                self.revoked(stream, &reason);
                self.mark_end(&reason);
                let Some((client, link)) = self.live(stream) else { return };
                self.streams.remove(&stream);
                self.clients[client].line = None;
                if let StreamEnd::AttachOver { loss_generation, .. } = reason {
                    self.clients[client].told_over.get_or_insert(loss_generation);
                }
                self.feed(client, Fact::LinkEnded { link, reason, config });
            }
            Event::Answer { stream, sequence, outcome, data, loss } => {
                let Some((client, link)) = self.live(stream) else { return };
                if outcome == Outcome::Done && self.clients[client].waits_for(sequence) {
                    self.check_attached(client, loss);
                }
                if let Some(data) = data {
                    let seen =
                        content::seen(&data).unwrap_or_else(|how| panic!("I4: a read: {how}"));
                    self.clients[client].saw(sequence, seen);
                }
                self.feed(client, Fact::Reply { link, sequence, outcome });
            }
            other => panic!("{other:?} is not the frontends' business"),
        }
    }

    /// Whose business an event from a node or the masters is.
    fn client_of(&self, event: &Event) -> Option<usize> {
        match event {
            Event::Catalogue { client, .. } => Some(*client),
            Event::Opened { stream, .. }
            | Event::Ended { stream, .. }
            | Event::Answer { stream, .. } => self.streams.get(stream).map(|(client, _)| *client),
            _ => None,
        }
    }

    /// The client whose line the stream is, if it still listens to it.
    fn live(&mut self, stream: StreamId) -> Option<(usize, LinkId)> {
        let (client, _) = *self.streams.get(&stream)?;
        let line = self.clients[client].line.filter(|line| line.stream == stream)?;
        self.clients[client].heard = self.now;
        Some((client, line.link))
    }

    pub(crate) fn feed(&mut self, client: usize, fact: Fact) {
        let orders = self.clients[client].step(self.now, &mut self.history, fact);
        self.follow(client, orders);
    }

    /// Whether the sequence on the stream is a read (`true`) or a write.
    pub(crate) fn asked_for(&self, stream: StreamId, sequence: u64) -> Option<bool> {
        let (client, _) = *self.streams.get(&stream)?;
        let client = &self.clients[client];
        client.line.filter(|line| line.stream == stream)?;
        client.reads(sequence)
    }

    fn open_stream(&mut self, node: usize, primary: ReplicaRef, open: OpenStream) {
        let now = self.nodes[node].clock(self.now);
        let replica = self.nodes[node].replica.as_ref();
        let other = replica.filter(|replica| replica.view(now).me != primary);
        if let Some(other) = other {
            let (stream, reason) = (open.stream, StreamEnd::NotPrimary);
            let config = other.config().cloned();
            self.stream_send(stream, false, node, Event::Ended { stream, reason, config });
            return;
        }
        if self.nodes[node].replica.is_some() {
            self.nodes[node].open.insert(open.stream);
        }
        self.step(node, Input::OpenStream(open), Vec::new());
    }

    /// Does what a client's forwarder wants.
    fn follow(&mut self, number: usize, orders: Vec<Order>) {
        for order in orders {
            match order {
                Order::Open { link, primary, session: id, attach, loss_generation, .. } => {
                    self.connect(number, link, primary, id, attach, loss_generation);
                }
                Order::CloseLink(link) => self.hang_up(number, link),
                Order::Send { link, request, sequence, low, epoch, attach } => {
                    let client = &mut self.clients[number];
                    let Some(line) = client.line.filter(|line| line.link == link) else { continue };
                    client.sent.insert(sequence, request);
                    let (wanted, value) = client.payload(request);
                    let tag = RequestTag { session: client.session(), sequence };
                    if wanted == sbk_engine::forward::Op::Flush {
                        self.flushes.entry(tag).or_insert(self.truth.acknowledged);
                    }
                    let request = Request { tag, low, epoch, attach, op: blocks(wanted) };
                    let (stream, node) = (line.stream, line.node);
                    let ask = Event::Ask { node, stream, request, value };
                    self.stream_send(stream, true, node, ask);
                }
                Order::SendDetach { link, sequence, low, epoch, attach } => {
                    let client = &mut self.clients[number];
                    let Some(line) = client.line.filter(|line| line.link == link) else { continue };
                    let tag = RequestTag { session: client.session(), sequence };
                    let request = Request { tag, low, epoch, attach, op: Op::Detach };
                    let (stream, node) = (line.stream, line.node);
                    let ask = Event::Ask { node, stream, request, value: 0 };
                    self.stream_send(stream, true, node, ask);
                    // The answer may be lost: then the session that it asks for again is closed.
                    if self.rng.chance(20) {
                        self.hang_up(number, link);
                        self.feed(number, Fact::LinkLost(link));
                    }
                }
                Order::Closed => self.clients[number].has_left = true,
                Order::NeedSession
                | Order::Attached(_)
                | Order::Refused { .. }
                | Order::Answer { .. } => panic!("the client's own business"),
            }
        }
    }

    fn connect(
        &mut self,
        number: usize,
        link: LinkId,
        primary: ReplicaRef,
        session: SessionId,
        attach: Attach,
        loss_generation: Option<LossGeneration>,
    ) {
        let node = self.index(primary.id);
        self.next_stream += 1;
        let stream = StreamId(self.next_stream);
        let patience = if self.rng.chance(30) { 6_000 } else { 1_500 };
        let client = &mut self.clients[number];
        assert!(client.line.is_none(), "a client has one line");
        client.line = Some(Line { link, stream, node });
        client.sent.clear();
        client.open_in = None;
        client.heard = self.now;
        client.patience = patience;
        let name = NodeId(Uuid::from_u128(900 + number as u128));
        let open = OpenStream { stream, session, attach, node: name, loss_generation };
        self.streams.insert(stream, (number, node));
        self.stream_send(stream, true, node, Event::Open { node, primary, open });
    }

    pub(crate) fn hang_up(&mut self, number: usize, link: LinkId) {
        let client = &mut self.clients[number];
        let Some(line) = client.line.take_if(|line| line.link == link) else { return };
        self.streams.remove(&line.stream);
        let close = Event::Close { node: line.node, stream: line.stream };
        self.stream_send(line.stream, true, line.node, close);
    }

    pub(crate) fn client_turns(&mut self) {
        for number in 0..self.clients.len() {
            if self.clients[number].is_paused(self.now) {
                continue;
            }
            for event in std::mem::take(&mut self.clients[number].waiting) {
                self.handle_frontend(event);
            }
            let client = &self.clients[number];
            let silent = self.now.saturating_sub(client.heard) > client.patience;
            if let Some(line) =
                client.line.filter(|_| silent && (client.waits() || client.is_leaving()))
            {
                self.hang_up(number, line.link);
                self.feed(number, Fact::LinkLost(line.link));
            }
            if self.clients[number].deadline().is_some_and(|due| due.0 <= self.now) {
                self.feed(number, Fact::Tick);
            }
            // One that gets nothing but errors tries now and then.
            if self.clients[number].is_leaving() {
                continue;
            }
            let ended = self.clients[number].has_ended();
            if !self.healed && self.rng.chance(self.faults.busy) && (!ended || self.rng.chance(5)) {
                self.ask(number);
            }
        }
    }

    /// Every block is written anew: what rotted is whole again, as after a repair.
    pub(crate) fn overwrite_all(&mut self) {
        self.overwrites.clear();
        if self.clients[0].has_ended() || self.clients[0].is_leaving() {
            // It is let when it has attached again.
            return self.overwrites.push(0);
        }
        for block in 0..BLOCKS {
            self.next_value += 1;
            let value = self.next_value;
            self.overwrites.push(value);
            let fact = self.clients[0].overwrite(&mut self.history, block, value);
            self.feed(0, fact);
        }
    }

    fn ask(&mut self, number: usize) {
        self.next_value += 1;
        let value = self.next_value;
        let client = &mut self.clients[number];
        let cold = self.faults.cold && self.rng.chance(95);
        let blocks = if cold { content::FIRST_REGION } else { BLOCKS };
        if let Some(fact) = client.begin(&mut self.rng, &mut self.history, blocks, value) {
            self.feed(number, fact);
        }
    }
}
