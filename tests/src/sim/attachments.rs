//! Clients that have the volume to themselves, and their ghosts.
//!
//! A volume moves: another client attaches while the holder stands still, or is cut off with requests
//! in flight, and goes on later as if nothing had happened. From the answer to the new attachment on
//! nothing of the old one may take effect, whichever replica it finds as primary.

use sbk_engine::forward::{ClientId, Input as Fact};
use sbk_engine::replication::io::{Attach, OpenStream, StreamEnd, StreamId};
use sbk_engine::types::{AttachGeneration, LossGeneration, NodeId, SessionId};
use uuid::Uuid;

use super::event::Event;
use super::marks::{Injected, Mark};
use super::world::World;

/// Attachments are counted over all clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Holder(pub(crate) u64);

/// A generation counts within one age: a loss may take generations back.
pub(crate) type Rank = (LossGeneration, AttachGeneration);

impl World {
    /// Clients that were told of a loss or of their end attach again, sooner or later.
    pub(crate) fn attach_again(&mut self) {
        for number in 0..self.clients.len() {
            let client = &self.clients[number];
            if client.is_paused(self.now) {
                continue;
            }
            if client.is_leaving() {
                if client.has_left && !self.healed && self.rng.chance(1) {
                    let exclusive = self.rng.chance(60);
                    self.attach_anew(number, exclusive);
                } else if client.has_left && self.healed && number == 0 {
                    self.attach_anew(number, true);
                }
            } else if client.has_ended() {
                // Each that came back would end the others.
                let late = self.healed && number > 0;
                if !late && (self.healed || self.rng.chance(1)) {
                    let exclusive = self.healed || self.rng.chance(60);
                    self.attach_anew(number, exclusive);
                }
            } else if client.is_stale() && (self.healed || self.rng.chance(10)) {
                self.attach_anew(number, client.exclusive);
            }
        }
    }

    fn attach_anew(&mut self, number: usize, exclusive: bool) {
        self.next_holder += 1;
        let holder = Holder(self.next_holder);
        let client = &self.clients[number];
        if !exclusive && !client.exclusive && !client.is_leaving() {
            // The frontend goes on with its other clients.
            let (old, new) = self.clients[number].renew(&mut self.history, holder);
            self.feed(number, Fact::Detached(ClientId(old)));
            self.feed(number, Fact::Attached(ClientId(new)));
            // A frontend whose link is open takes a client in at once.
            if let Some(rank) = self.clients[number].open_in {
                self.stands(number, rank);
            }
            return;
        }
        if let Some(line) = self.clients[number].line {
            self.hang_up(number, line.link);
        }
        let (_, new) = self.clients[number].renew(&mut self.history, holder);
        self.clients[number].replace(exclusive);
        let config = self.masters.config.clone();
        self.feed(number, Fact::Config(config));
        self.feed(number, Fact::Attached(ClientId(new)));
    }

    /// The volume moves, or an operator ends what attachments there are.
    pub(crate) fn move_clients(&mut self) {
        if !self.faults.exclusive || self.healed {
            return;
        }
        if self.rng.below(500) == 0 {
            let from = self.rng.below(self.clients.len() as u64) as usize;
            let other = self.rng.below(self.clients.len() as u64 - 1) as usize;
            let to = if other >= from { other + 1 } else { other };
            self.make_ghost(from);
            if !self.clients[to].is_paused(self.now) {
                self.attach_anew(to, true);
            }
        }
        if self.rng.below(1_500) == 0 {
            self.operator_detaches();
        }
        if self.rng.below(800) == 0 {
            let number = self.rng.below(self.clients.len() as u64) as usize;
            if !self.clients[number].is_paused(self.now) && !self.clients[number].is_leaving() {
                self.leave(number);
            }
        }
    }

    /// A client leaves in order: its session is closed when nothing of it is in flight.
    fn leave(&mut self, number: usize) {
        self.next_holder += 1;
        let holder = Holder(self.next_holder);
        let (old, _) = self.clients[number].renew(&mut self.history, holder);
        self.clients[number].leaves = true;
        self.feed(number, Fact::Detached(ClientId(old)));
        self.feed(number, Fact::Close);
    }

    /// What the client sends from here on arrives late, and it may stand still.
    fn make_ghost(&mut self, number: usize) {
        self.inject(Injected::Ghost);
        let late = self.rng.below(3_000);
        if let Some(line) = self.clients[number].line {
            self.hold_back(line.stream, late);
        }
        if self.rng.chance(60) {
            let pause = self.now + 20 + self.rng.below(200);
            let until = pause + self.rng.below(4_000);
            self.clients[number].pause = Some((pause, until));
        }
    }

    fn operator_detaches(&mut self) {
        let primary = self.masters.config.primary;
        let node = self.index(primary.id);
        self.next_stream += 1;
        let stream = StreamId(self.next_stream);
        let upto = self.truth.generation();
        let open = OpenStream {
            stream,
            session: SessionId(Uuid::from_u128(2 << 64 | u128::from(self.next_stream))),
            attach: Attach::Revoke { upto },
            node: NodeId(Uuid::nil()),
            loss_generation: Some(self.truth.loss_generation),
        };
        self.revoking.insert(stream, (self.truth.loss_generation, upto));
        self.stream_send(stream, true, node, Event::Open { node, primary, open });
    }

    /// An operator's stream has ended.
    pub(crate) fn revoked(&mut self, stream: StreamId, reason: &StreamEnd) {
        let Some((loss, upto)) = self.revoking.remove(&stream) else { return };
        if let StreamEnd::Revoked(newest) = reason {
            assert!(*newest > upto, "I7: generation {upto} was ended, and {newest} is in force");
            self.mark(Mark::Detached);
            self.fence_below((loss, upto.next()));
        }
    }

    /// A client's attachment stands, in a generation: all before it have ended.
    pub(crate) fn stands(&mut self, number: usize, rank: Rank) {
        let client = &self.clients[number];
        let (holder, exclusive) = (client.holder, client.exclusive);
        assert!(
            client.told_over.is_none_or(|loss| loss == rank.0),
            "I7: an exclusive attachment took the volume from what it was told in another age"
        );
        let before = self.ranks.get(&holder).copied();
        let ended = before.is_some_and(|before| before != rank);
        // A shared frontend opens another session in the place of one that was lost.
        assert!(!(ended && exclusive), "I7: an exclusive attachment changed its generation");
        if ended || rank < self.newest_rank {
            self.ranks.remove(&holder);
            return self.history.fence(holder);
        }
        self.ranks.insert(holder, rank);
        if rank > self.newest_rank {
            self.fence_below(rank);
        }
    }

    fn fence_below(&mut self, rank: Rank) {
        self.newest_rank = self.newest_rank.max(rank);
        let over: Vec<_> =
            self.ranks.iter().filter(|(_, of)| **of < rank).map(|(holder, _)| *holder).collect();
        for holder in over {
            self.ranks.remove(&holder);
            self.history.fence(holder);
        }
        let epoch = self.masters.config.epoch;
        if self.fenced_in.replace(epoch).is_some_and(|before| before < epoch) {
            self.mark(Mark::FencedAcross);
        }
    }
}
