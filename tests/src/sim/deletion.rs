//! The end of a volume: it is deleted while nodes come and go, and all of it must go, but what the
//! masters don't know.

use sbk_engine::authority::Command;

use super::marks::Injected;
use super::masters::Pending;
use super::world::World;

/// How long things go wrong after the volume was deleted.
const TROUBLE_MS: u64 = 6_000;

impl World {
    /// Nodes die, the volume is deleted, and things go wrong for a while.
    pub(crate) fn delete(&mut self) {
        self.healed = false;
        self.inject(Injected::Delete);
        self.clients.iter_mut().for_each(|client| client.deleted = true);
        for index in 0..self.nodes.len() {
            if self.rng.chance(25) {
                let (power, away) = (self.rng.chance(50), 1_000 + self.rng.below(8_000));
                self.die(index, power, away);
            }
        }
        let end = self.now + TROUBLE_MS;
        while self.masters.live().is_some() {
            let volume = self.masters.volume;
            self.submit(Pending { command: Command::DeleteVolume { volume }, proposer: None });
            let next = self.now + 100;
            self.run_until(next);
        }
        for node in &self.nodes {
            if !node.up && self.masters.is_to_know(node.id) {
                self.moves.left_behind.insert(node.id);
            }
        }
        self.run_until(end);
        self.heal();
    }

    /// Runs until nothing is left of the volume but on nodes that are lost, and what the masters
    /// don't know.
    pub(crate) fn run_until_gone(&mut self, patience: u64) {
        let end = self.now + patience;
        while !self.gone() {
            assert!(self.now < end, "I8: a deleted volume is still there");
            self.run_until(self.now + 20);
        }
    }

    fn gone(&self) -> bool {
        let gone = |index: usize| {
            let node = &self.nodes[index];
            let known = node.disk.holds().is_some_and(|here| self.masters.is_to_know(here));
            node.lost || !known && node.replica.as_ref().is_none_or(|_| self.has_stranger(index))
        };
        let waits = self.masters.waits_for();
        (0..self.nodes.len()).all(gone)
            && waits.iter().all(|node| self.nodes[self.number_of(*node)].lost)
            && self.clients.iter().all(super::client::Client::is_idle)
    }
}
