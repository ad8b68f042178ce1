//! Disks that run short of room, and have some again.
//!
//! Each node's driver tells its replica how much room there is, as a runtime does; how much there is others
//! decide, who fill the disks and clear them. What must hold is seen from outside: a primary logs no write that
//! takes new space, by what its own store has, while its own disk or, as the mode has it, those of its members
//! have too little by what they said last.

use sbk_engine::authority::moves::Step;
use sbk_engine::replication::Verdict;
use sbk_engine::replication::io::{Input, StreamId};
use sbk_engine::replication::log::{BlockRange, EntryHeader, EntryKind, RequestTag};
use sbk_engine::replication::message::ToPrimary;
use sbk_engine::replication::room::{Room, Space, SpaceTold};
use sbk_engine::types::{Durability, Lsn, ReplicaRef};

use super::event::Event;
use super::marks::{Injected, Mark};
use super::world::World;

/// For how long a leader may not know that a disk is low on room.
const KNOWN_MS: u64 = 5_000;

/// Whose room a message tells of, and what.
pub(super) fn said_of_room(input: &Input) -> Option<(ReplicaRef, SpaceTold)> {
    match input {
        Input::FromReplica { lineage, message: ToPrimary::Ack { space, .. } } => {
            Some((lineage.from, *space))
        }
        _ => None,
    }
}

impl World {
    /// Somebody fills a disk, or clears it.
    pub(super) fn room_turn(&mut self) {
        if self.rng.below(250) == 0 {
            let index = self.any_node();
            let room = [Room::Ample, Room::Short, Room::Short, Room::Full];
            let room = room[self.rng.below(4) as usize];
            self.set_room(index, room);
        }
    }

    /// A disk has so much room from now on.
    pub(super) fn set_room(&mut self, index: usize, room: Room) {
        let node = &mut self.nodes[index];
        if !self.faults.space || node.space.room == room {
            return;
        }
        node.space = Space { room, free: 3, size: 100, watermark: 5 };
        // Growth waits only on a disk that is low on room too.
        let low = room > Room::Ample;
        node.low_since = low.then(|| node.low_since.unwrap_or(self.now));
        if room > Room::Ample {
            self.inject(Injected::Shortage);
        }
        self.tell_room(index);
    }

    /// The leader is about to take a step. The masters see no disk: what nodes tell of theirs is on its way for as
    /// long as any message, and who says nothing is not chosen soon.
    pub(super) fn check_place(&mut self, step: &Step) {
        let volume = self.masters.live();
        let (node, what) = match (step, volume) {
            (Step::Add { node, .. }, _) => (*node, "places a replica"),
            // Its place is to be taken by another one on the same node.
            (Step::Remove { replica, .. }, Some(volume))
                if volume.replicas.len() <= volume.spec.replicas as usize =>
            {
                (volume.replicas[replica].node, "gives up a replica that is to be made anew")
            }
            _ => return,
        };
        let index = self.number_of(node);
        let low_for = self.nodes[index].low_since.map(|since| self.now - since);
        assert!(
            low_for.is_none_or(|ms| ms < KNOWN_MS),
            "A11: the leader {what} on node {index}, whose disk has been low on room for {low_for:?} ms"
        );
    }

    /// Whether replicas are wanted that no node has room for.
    pub(super) fn note_unplaced(&mut self) {
        if self.faults.space && self.masters.outlook(self.now).contains("placement watermark") {
            self.mark(Mark::UnplacedLow);
        }
    }

    /// The driver tells its replica. Before anything else, when it was opened.
    pub(super) fn tell_room(&mut self, index: usize) {
        if self.faults.space {
            let space = self.nodes[index].space;
            self.nodes[index].disk.set_short(space.room > Room::Ample);
            self.step(index, Input::Space(space), Vec::new());
        }
    }

    /// The entries up to here are durable at a node.
    pub(super) fn check_second_homes(&mut self, index: usize, durable: Lsn) {
        let node = &mut self.nodes[index];
        let Some(since) = node.disk.short_since else { return };
        let store = node.disk.store();
        let mut new = since.0.max(store.checkpoint().0) + 1..=durable.0;
        if let Some(lsn) = new.find(|lsn| store.refers(Lsn(*lsn))) {
            panic!(
                "L8: entry {lsn} takes a second home on the disk of node {index}, short of room"
            );
        }
    }

    /// A primary took in what a member says.
    pub(super) fn note_room(
        &mut self,
        index: usize,
        said: Option<(ReplicaRef, SpaceTold)>,
        verdict: Verdict,
    ) {
        if let (Some((replica, space)), Verdict::Applied) = (said, verdict) {
            let known = self.nodes[index].rooms.entry(replica).or_insert(space);
            if space.change > known.change {
                *known = space;
            }
        }
    }

    /// A primary is about to log a client's write.
    pub(super) fn check_growth(&mut self, index: usize, header: &EntryHeader) {
        let EntryKind::Write { lba, blocks } = header.kind else { return };
        if !self.faults.space {
            return;
        }
        let Some(grows) = self.holes(index, BlockRange { lba, blocks }) else { return };
        let most = if grows { Room::Ample } else { Room::Short };
        let node = &self.nodes[index];
        let view = node.replica.as_ref().map(|replica| replica.view(node.clock(self.now)));
        let Some((view, config)) = view.and_then(|view| Some((view.clone(), view.config?))) else {
            return;
        };
        let what = if grows { "a write that takes new space" } else { "a write" };
        let own = node.space.room;
        assert!(own <= most, "L8: node {index} logs {what}, and its own disk is {own:?}");
        // What each that counts said last, in the run in which it was met.
        let said = |id| {
            let peer = view.peers.get(&id)?;
            let incarnation = peer.incarnation?;
            let told = node.rooms.get(&ReplicaRef { id, incarnation })?;
            Some(told.space.room)
        };
        let has_room = |id| said(id).is_some_and(|room| room <= most);
        let others = config.isr.iter().copied().filter(|id| *id != view.me.id);
        match config.durability {
            Durability::BestEffort => {}
            Durability::SyncQuorum => {
                let with = 1 + others.filter(|id| has_room(*id)).count();
                assert!(
                    with > config.isr.len() / 2,
                    "L8: node {index} logs {what}, and {with} of {} voters have room",
                    config.isr.len()
                );
            }
            Durability::SyncAll => {
                let counted = view.peers.iter().filter(|(_, peer)| peer.counted).map(|(id, _)| *id);
                for id in others.chain(counted) {
                    let room = said(id);
                    assert!(
                        has_room(id),
                        "L8: node {index} logs {what}, and {id} said of its disk {room:?}"
                    );
                }
            }
        }
        if !grows
            && (own == Room::Short || view.peers.keys().any(|id| said(*id) == Some(Room::Short)))
        {
            self.mark(Mark::OverwroteShort);
        }
    }

    /// Whether blocks hold nothing, as a node's store has them; `None` if its machine stopped.
    fn holes(&mut self, index: usize, range: BlockRange) -> Option<bool> {
        let disk = &mut self.nodes[index].disk;
        let runs = disk.store().plan_allocation(range).run(usize::MAX);
        match runs {
            Ok(runs) => Some(runs.iter().any(|run| run.hole)),
            Err(_) => None,
        }
    }

    /// A primary wants to know whether a request's blocks hold nothing.
    pub(super) fn look_for_holes(
        &mut self,
        index: usize,
        stream: StreamId,
        tag: RequestTag,
        range: BlockRange,
    ) {
        let node = &mut self.nodes[index];
        let plan = node.disk.store().plan_allocation(range);
        let run = node.run;
        node.looks.insert((stream, tag), plan);
        let delay = self.rng.below(20);
        self.after(delay, Event::Looked { node: index, run, stream, tag });
    }

    pub(super) fn looked(&mut self, index: usize, run: u64, stream: StreamId, tag: RequestTag) {
        let node = &mut self.nodes[index];
        if node.run != run {
            return;
        }
        let Some(plan) = node.looks.remove(&(stream, tag)) else { return };
        let looked = plan.run(usize::MAX);
        if node.disk.memory.crashed() {
            return self.stops(index);
        }
        // What can't be told is taken for a hole.
        let holes = looked.map_or(true, |runs| runs.iter().any(|run| run.hole));
        self.step(index, Input::HolesFound { stream, tag, holes }, Vec::new());
    }

    /// A partial write is being merged: now and then a disk runs short of room just then.
    pub(super) fn room_at_merge(&mut self, index: usize, range: BlockRange) {
        if self.faults.space && !self.healed && self.holes(index, range) == Some(true) {
            let node = if self.rng.chance(50) { index } else { self.any_node() };
            let delay = self.rng.below(4);
            self.after(delay, Event::Fill { node });
        }
    }
}
