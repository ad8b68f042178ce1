//! A node's agent, as the datanode has it: it makes, opens and removes the replica that the masters
//! place on its node, one order at a time, each of which names volume and replica. What it finds
//! and the masters don't know it leaves alone.

use std::rc::Rc;

use sbk_engine::authority::Command;
use sbk_engine::bugs::{Bug, on};
use sbk_engine::replication::io::Input;
use sbk_engine::types::{ReplicaId, ReplicaRef};

use super::event::Event;
use super::marks::Mark;
use super::masters::{Catalogue, Pending};
use super::world::World;

/// What failed is tried again after this.
const RETRY_MS: u64 = 1_000;

impl World {
    /// The masters push to a node.
    pub(crate) fn pushed(&mut self, index: usize, told: &Rc<Catalogue>) {
        let node = &mut self.nodes[index];
        // A watch never goes back, and one that begins is not behind what was answered before.
        let known = node.catalogue.as_ref().map_or(node.since, |known| known.revision);
        if told.revision >= known {
            node.catalogue = Some(Rc::clone(told));
        }
        if let Some(config) = told.volume.as_ref().and_then(|volume| volume.config.clone()) {
            let known = self.nodes[index].config.as_ref().map(|known| known.epoch);
            if known > Some(config.epoch) {
                self.mark(Mark::StalePush);
            }
            self.nodes[index].keep_config(&config);
            self.step(index, Input::Assignment(config), Vec::new());
        }
        self.look_at(index);
    }

    /// Brings what is at the node in line with what the masters say, one step at a time.
    pub(crate) fn look_at(&mut self, index: usize) {
        let node = &self.nodes[index];
        if !node.up || node.busy {
            return;
        }
        let Some(told) = node.catalogue.clone() else { return };
        let Some(volume) = &told.volume else { return };
        let me = node.node;
        let mine = volume.replicas.iter().find(|listed| listed.replica.node == me);
        if volume.deleted.is_some() {
            if let Some(listed) = mine {
                self.remove(index, listed.id);
            }
            return;
        }
        for (replica, _) in volume.retired.iter().filter(|(_, node)| **node == me) {
            if !self.may_be_away(index, *replica) {
                return self.remove(index, *replica);
            }
            if self.nodes[index].disk.holds() == Some(*replica) && mine.is_some() {
                self.set_aside(index);
            }
        }
        if on(Bug::MakeLostAnew)
            && let Some(listed) = mine
            && self.nodes[index].disk.holds() == Some(listed.id)
            && self.nodes[index].slots.is_away()
        {
            self.set_aside(index);
            return self.create(index, listed.id);
        }
        let node = &self.nodes[index];
        let stranger =
            node.disk.holds().filter(|here| mine.is_none_or(|listed| listed.id != *here));
        if stranger.is_some_and(|here| !self.masters.is_to_know(here)) {
            self.mark(Mark::Quarantined);
        }
        let node = &self.nodes[index];
        if node.replica.is_some() && node.wished != volume.wish {
            self.nodes[index].wished = volume.wish.clone();
            self.step(index, Input::Wish(volume.wish.clone()), Vec::new());
        }
        let Some(listed) = mine.filter(|listed| listed.replica.confirmed.is_none()) else { return };
        match self.nodes[index].disk.holds() {
            None => self.create(index, listed.id),
            // Its making failed at the very end.
            Some(here) if here == listed.id && self.nodes[index].disk.is_unopened() => {
                self.create(index, listed.id);
            }
            Some(here) if here == listed.id => self.confirm(index, listed.id),
            Some(_) => {}
        }
    }

    fn create(&mut self, index: usize, replica: ReplicaId) {
        let stops = !self.healed && self.faults.disk && self.rng.chance(30);
        let at = self.rng.below(40);
        self.choose_disk(index);
        let node = &mut self.nodes[index];
        node.clear();
        node.hold(replica, &mut self.rng);
        if stops {
            node.disk.memory.crash_after(at);
        }
        match node.disk.create() {
            Ok(()) => {
                self.note(index, || format!("makes replica {replica}"));
                self.open(index);
            }
            Err(_) if node.disk.memory.crashed() => {
                self.mark(Mark::CreateInterrupted);
                self.stops(index);
            }
            Err(_) => self.again(index),
        }
    }

    /// The agent waits a little and looks again.
    fn again(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        node.busy = true;
        let process = node.disk.process();
        self.after(RETRY_MS, Event::Look { node: index, process });
    }

    pub(crate) fn looks_again(&mut self, index: usize, process: u64) {
        let node = &mut self.nodes[index];
        if node.up && node.disk.process() == process {
            node.busy = false;
            self.look_at(index);
        }
    }

    /// Tells the masters of a new replica once it is open.
    fn confirm(&mut self, index: usize, id: ReplicaId) {
        let now = self.now;
        let node = &self.nodes[index];
        let Some(replica) = &node.replica else { return };
        let replica = ReplicaRef { id, incarnation: replica.view(node.clock(now)).me.incarnation };
        let (node, process, volume) = (node.node, node.disk.process(), self.masters.volume);
        let tail = self.nodes[index].disk.tail().count;
        let confirm = Command::ConfirmReplica { node, process, volume, replica, tail };
        self.tell_masters(index, confirm);
        self.again(index);
    }

    /// What a node says to the masters, if they hear it.
    fn tell_masters(&mut self, index: usize, command: Command) {
        let lost = !self.healed && self.rng.chance(self.faults.loss * 4);
        if !self.nodes[index].unheard && !lost {
            self.submit(Pending { command, proposer: None });
        }
    }

    /// Ends the replica; its directory goes soon.
    fn remove(&mut self, index: usize, replica: ReplicaId) {
        if self.may_be_away(index, replica) {
            return;
        }
        self.drop_aside(index, replica);
        if self.nodes[index].disk.holds().is_some_and(|here| here != replica) {
            // Another one is here, which the masters forgot with its node. It stays as it is; and the
            // one to go, which it kept from being made, is gone for good.
            self.mark(Mark::RemovalBesideAnother);
            return self.is_gone(index, replica);
        }
        (self.nodes[index].busy, self.nodes[index].removing) = (true, true);
        if self.nodes[index].replica.is_some() {
            self.step(index, Input::Deleted, Vec::new());
        }
        if !self.nodes[index].up {
            return;
        }
        if self.quiesce(index).is_err() && self.nodes[index].disk.memory.crashed() {
            return self.stops(index);
        }
        self.end_streams(index, 1);
        let delay = 1 + self.rng.below(20);
        let node = &mut self.nodes[index];
        node.disk.store = None;
        node.clear();
        let process = node.disk.process();
        self.after(delay, Event::Remove { node: index, process, replica });
    }

    pub(crate) fn removes(&mut self, index: usize, process: u64, replica: ReplicaId) {
        let node = &self.nodes[index];
        if !node.up || node.disk.process() != process {
            return;
        }
        if node.disk.memory.crashed() {
            return self.stops(index);
        }
        if self.may_be_away(index, replica) {
            self.nodes[index].removing = false;
            return self.again(index);
        }
        let node = &self.nodes[index];
        if node.disk.holds() == Some(replica) {
            self.note(index, || format!("removes replica {replica}"));
            self.check_removal(index, replica);
            self.nodes[index].let_go(&mut self.rng);
        }
        self.nodes[index].removing = false;
        self.is_gone(index, replica);
    }

    /// Tells the masters of a replica that is not at the node, and never will be.
    fn is_gone(&mut self, index: usize, replica: ReplicaId) {
        let node = &self.nodes[index];
        let (node, process, volume) = (node.node, node.disk.process(), self.masters.volume);
        self.tell_masters(index, Command::ConfirmDelete { node, process, volume, replica });
        self.again(index);
    }
}
