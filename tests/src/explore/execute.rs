//! What a node does to what is around it, and what arrives at one.

use std::sync::Arc;

use sbk_engine::replication::io::{Input, Op, Request, StreamEnd, StreamId};
use sbk_engine::replication::log::{BlockRange, RequestTag};
use sbk_engine::types::{Lba, Millis};

use super::canon;
use super::client::Client;
use super::memory::Known;
use super::node::{Effect, Held, Node};
use super::part::{Part, change};
use super::world::{Message, Proposed, Wire, World};

impl World {
    pub(crate) fn step(&mut self, index: usize, input: Input) {
        let stimulus = self.named(&input);
        self.give(index, stimulus, move |node, now| node.input(now, input, &[]));
    }

    /// The digest of something that a node takes.
    pub(crate) fn named<T: serde::Serialize>(&self, what: &T) -> u64 {
        canon::digest_of(self.now, what)
    }

    /// Has a node take what `stimulus` is the digest of. The same node has taken the same before in
    /// other worlds: what it became and did then is remembered.
    pub(crate) fn give(
        &mut self,
        index: usize,
        stimulus: u64,
        take: impl FnOnce(&mut Node, Millis) -> Vec<Effect>,
    ) {
        let now = self.time();
        let key = (now.0, self.nodes[index].digest(), stimulus);
        let known = self.memory.recall(key).unwrap_or_else(|| {
            let mut node = self.nodes[index].node();
            let effects = take(&mut node, now);
            self.memory.learn(key, Known { node: Held::new(now.0, node), effects: effects.into() })
        });
        self.nodes[index] = known.node;
        for effect in known.effects.iter() {
            self.carry_out(index, effect);
        }
        self.check_logs(index);
    }

    fn carry_out(&mut self, index: usize, effect: &Effect) {
        match effect {
            Effect::Send(wire) => self.send(wire.clone()),
            Effect::Propose(proposal) => {
                let (node, opens) = (index, self.nodes[index].disk.opens);
                let proposal = proposal.clone();
                self.proposed.push(Part::timeless(Proposed {
                    node,
                    opens,
                    proposal,
                    doubted: false,
                }));
            }
            Effect::Opened { stream, epoch, attach } => {
                self.with_holder(*stream, |client| client.opened(*stream, *epoch, *attach));
            }
            Effect::Ended { stream, reason } => {
                assert!(
                    matches!(reason, StreamEnd::NotPrimary | StreamEnd::Replaced),
                    "I8: a stream ended: {reason:?}"
                );
                self.with_holder(*stream, |client| client.stream = None);
            }
            Effect::Answer { stream, tag, value } => {
                self.answer_client(index, *stream, *tag, *value);
            }
            Effect::Committed(entries) => change(&mut self.truth, |truth| truth.note(entries)),
            Effect::Dropped(end) => self.check_drop(index, *end),
        }
    }

    /// A message arrives, or bounces off a process that is gone.
    pub(crate) fn arrive(&mut self, wire: &Arc<Part<Wire>>) {
        let lineage = wire.lineage;
        let (from, to) = (self.index(lineage.from.id), self.index(lineage.to.id));
        if !self.nodes[to].is_up() {
            return self.bounce(from, to);
        }
        let wire = wire.clone();
        self.give(to, wire.digest(self.now), move |node, now| match wire.message.clone() {
            Message::ToReplica(message, values) => {
                node.input(now, Input::FromPrimary { lineage, message }, &values)
            }
            Message::ToPrimary(message, values) => {
                node.input(now, Input::FromReplica { lineage, message }, &values)
            }
            Message::Base { mark, image, wrote, read_at } => {
                node.take_base(now, lineage, mark, (&image, &wrote), read_at)
            }
            Message::BaseTaken { session, through } => {
                node.input(now, Input::BaseSent { session, through }, &[])
            }
        });
    }

    /// The machine of `of` says to `at` that nobody listens.
    pub(crate) fn bounce(&mut self, at: usize, of: usize) {
        if self.nodes[at].is_up() && !self.is_cut(at, of) {
            let replica = self.nodes[of].id;
            self.step(at, Input::Unreachable { replica, refused: true });
        }
    }

    /// The masters' answer, if the run that asked is still there.
    pub(crate) fn answer(&mut self, which: usize) {
        let answered = self.answered.remove(which);
        let node = &self.nodes[answered.node];
        if node.is_up() && node.disk.opens == answered.opens {
            let (proposal, config) = (answered.id, answered.config.clone());
            self.step(answered.node, Input::Answered { proposal, config });
        }
    }

    /// Which client has the stream.
    fn holder(&self, stream: StreamId) -> Option<usize> {
        self.clients.iter().position(|c| c.stream.is_some_and(|s| s.id == stream))
    }

    fn with_holder(&mut self, stream: StreamId, how: impl FnOnce(&mut Client)) {
        if let Some(index) = self.holder(stream) {
            change(&mut self.clients, |clients| how(&mut clients[index]));
        }
    }

    pub(crate) fn open(&mut self, client: usize, node: usize) {
        let Some((epoch, _)) = self.nodes[node].face.primary else { return };
        let open = change(&mut self.clients, |clients| clients[client].open(node, epoch));
        self.step(node, Input::OpenStream(open));
    }

    pub(crate) fn ask(&mut self, client: usize) {
        let known = &self.clients[client];
        let (Some((number, low)), Some(stream)) = (known.next(), known.stream) else { return };
        let Some((epoch, attach)) = stream.opened else { return };
        let (asked, tag) = (known.ops[number], known.tag(number));
        change(&mut self.clients, |clients| {
            if let Some(stream) = &mut clients[client].stream {
                stream.sent = number + 1;
            }
        });
        change(&mut self.history, |history| history.invoke(asked));
        let asked = &self.history.ops[asked];
        let range = BlockRange { lba: Lba(asked.block), blocks: 1 };
        let write = asked.write;
        let op = if write.is_some() { Op::Write(range) } else { Op::Read(range) };
        let request = Request { tag, low, epoch, attach, op };
        let (id, node) = (stream.id, stream.node);
        let stimulus = self.named(&(id, request, write));
        self.give(node, stimulus, |node, now| {
            node.values.extend(write.map(|value| ((id, tag), value)));
            node.input(now, Input::Request { stream: id, request }, &[])
        });
    }

    fn answer_client(&mut self, index: usize, stream: StreamId, tag: RequestTag, value: u64) {
        let Some(client) = self.holder(stream) else { return };
        let number = self.clients[client].number(tag);
        if self.clients[client].done[number] {
            return;
        }
        change(&mut self.clients, |clients| clients[client].done[number] = true);
        let op = self.clients[client].ops[number];
        let read = self.history.ops[op].write.is_none();
        if read {
            self.check_read(index);
        } else {
            self.check_write(tag);
        }
        change(&mut self.history, |history| history.answer(op, if read { value } else { 0 }));
        self.check_history();
    }
}
