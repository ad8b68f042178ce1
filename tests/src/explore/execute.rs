//! What a node does to what is around it, and what arrives at one.

use std::sync::Arc;

use sbk_engine::replication::io::{Input, Op, Proposal, Request, StreamEnd, StreamId};
use sbk_engine::replication::log::{BlockRange, RequestTag};
use sbk_engine::types::{Lba, Millis};

use super::canon;
use super::client::Client;
use super::memory::Known;
use super::node::{Effect, Node};
use super::world::{Message, Proposed, Wire, World};

impl World {
    pub(crate) fn step(&mut self, index: usize, input: Input) {
        self.give(index, &input.clone(), move |node, now| node.input(now, input, &[]));
    }

    /// Has a node take what `stimulus` says. The same node has taken the same before in other
    /// worlds: what it became and did then is remembered.
    pub(crate) fn give<T: serde::Serialize>(
        &mut self,
        index: usize,
        stimulus: &T,
        take: impl FnOnce(&mut Node, Millis) -> Vec<Effect>,
    ) {
        let now = self.time();
        let mut bytes = Vec::with_capacity(512);
        bytes.extend(now.0.to_le_bytes());
        bytes.extend(self.digest_of(index).to_le_bytes());
        canon::write(&mut bytes, now.0, stimulus);
        let key = canon::digest(&bytes);
        let memory = self.memory.clone();
        let known = memory.recall(key).unwrap_or_else(|| {
            let mut node = Node::clone(&self.nodes[index]);
            let effects = take(&mut node, now);
            let digest = World::digest_node(now.0, &node);
            memory.learn(key, Known { node: Arc::new(node), digest, effects: effects.into() })
        });
        self.become_known(index, known.node, known.digest);
        for effect in known.effects.iter() {
            self.carry_out(index, effect);
        }
        self.check_logs(index);
    }

    fn carry_out(&mut self, index: usize, effect: &Effect) {
        match effect {
            Effect::Send(wire) => self.send(wire.clone()),
            Effect::Propose(proposal) => self.propose(index, proposal.clone()),
            Effect::Opened { stream, epoch, attach } => {
                if let Some(client) = self.holder(*stream) {
                    client.opened(*stream, *epoch, *attach);
                }
            }
            Effect::Ended { stream, reason } => {
                assert!(
                    matches!(reason, StreamEnd::NotPrimary | StreamEnd::Replaced),
                    "I8: a stream ended: {reason:?}"
                );
                if let Some(client) = self.holder(*stream) {
                    client.stream = None;
                }
            }
            Effect::Answer { stream, tag, value } => {
                self.answer_client(index, *stream, *tag, *value);
            }
            Effect::Committed(entries) => Arc::make_mut(&mut self.truth).note(entries),
            Effect::Dropped(end) => self.check_drop(index, *end),
        }
    }

    fn propose(&mut self, node: usize, proposal: Proposal) {
        let opens = self.nodes[node].disk.opens;
        self.proposed.push(Proposed { node, opens, proposal, doubted: false });
    }

    /// A message arrives, or bounces off a process that is gone.
    pub(crate) fn arrive(&mut self, wire: &Wire) {
        let lineage = wire.lineage;
        let (from, to) = (self.index(lineage.from.id), self.index(lineage.to.id));
        if !self.nodes[to].is_up() {
            return self.bounce(from, to);
        }
        let message = wire.message.clone();
        self.give(to, wire, move |node, now| match message {
            Message::ToReplica(message, values) => {
                node.input(now, Input::FromPrimary { lineage, message }, &values)
            }
            Message::ToPrimary(message) => {
                node.input(now, Input::FromReplica { lineage, message }, &[])
            }
            Message::Base { mark, image, read_at } => {
                node.take_base(lineage, mark, &image, read_at)
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
            let (proposal, config) = (answered.id, answered.config);
            self.step(answered.node, Input::Answered { proposal, config });
        }
    }

    fn holder(&mut self, stream: StreamId) -> Option<&mut Client> {
        let holds = |c: &Client| c.stream.is_some_and(|s| s.id == stream);
        let index = self.clients.iter().position(holds)?;
        Some(&mut Arc::make_mut(&mut self.clients)[index])
    }

    pub(crate) fn open(&mut self, client: usize, node: usize) {
        let Some(view) = self.nodes[node].primary(self.time()) else { return };
        let open = Arc::make_mut(&mut self.clients)[client].open(node, view.epoch);
        self.step(node, Input::OpenStream(open));
    }

    pub(crate) fn ask(&mut self, client: usize) {
        let known = &mut Arc::make_mut(&mut self.clients)[client];
        let Some((number, low)) = known.next() else { return };
        let Some(stream) = known.stream.as_mut() else { return };
        stream.sent = number + 1;
        let (id, node) = (stream.id, stream.node);
        let Some((epoch, attach)) = stream.opened else { return };
        let (asked, tag) = (known.ops[number], known.tag(number));
        Arc::make_mut(&mut self.history).invoke(asked);
        let asked = &self.history.ops[asked];
        let range = BlockRange { lba: Lba(asked.block), blocks: 1 };
        let write = asked.write;
        let op = if write.is_some() { Op::Write(range) } else { Op::Read(range) };
        let request = Request { tag, low, epoch, attach, op };
        self.give(node, &(id, request, write), |node, now| {
            node.values.extend(write.map(|value| ((id, tag), value)));
            node.input(now, Input::Request { stream: id, request }, &[])
        });
    }

    fn answer_client(&mut self, index: usize, stream: StreamId, tag: RequestTag, value: u64) {
        let Some(client) = self.holder(stream) else { return };
        let number = client.number(tag);
        if client.done[number] {
            return;
        }
        client.done[number] = true;
        let op = client.ops[number];
        let read = self.history.ops[op].write.is_none();
        if read {
            self.check_read(index);
        } else {
            self.check_write(tag);
        }
        Arc::make_mut(&mut self.history).answer(op, if read { value } else { 0 });
        self.check_history();
    }
}
