//! Base lanes: the committed image, or what changed in it, on its way to a replica. A lane is one stream:
//! it keeps its order, and one that loses anything is broken for good.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;

use bytes::Bytes;
use sbk_engine::bugs::{Bug, on};
use sbk_engine::recovery::FailureKind;
use sbk_engine::replication::io::Input;
use sbk_engine::replication::log::BlockRange;
use sbk_engine::replication::message::{Incomplete, Lineage, RecoveryId};
use sbk_engine::types::{BLOCK_SIZE, Lba, Lsn, REGION_BLOCKS};
use sbk_store::{CommittedReadPlan, ReadError};
use sbk_wal::is_zero;

use super::event::Event;
use super::marks::Mark;
use super::node::Node;
use super::world::World;

/// The sender's end.
#[derive(Debug)]
pub(crate) struct Sending {
    lineage: Lineage,
    mark: Incomplete,
    /// Regions yet to be read.
    regions: VecDeque<u64>,
    /// The read under way.
    reading: Option<(u64, CommittedReadPlan)>,
    table: Vec<Lsn>,
    through: Lsn,
    /// The volume's size as of what is committed.
    blocks: u64,
    /// When the last piece arrives.
    arrives: u64,
}

/// The receiver's end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Receiving {
    session: RecoveryId,
}

/// What travels on a lane.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    Blocks { first: u64, data: Bytes, read_at: Lsn },
    Zeros { range: Range<u64>, read_at: Lsn },
    Regions(Vec<Lsn>),
    End { through: Lsn },
}

impl Node {
    /// Takes base blocks of this session from here on.
    pub(crate) fn receive(&mut self, mark: &Incomplete) {
        if mark.from > Lsn(0) {
            let Self { id, reach, .. } = self;
            assert!(
                mark.base >= *reach,
                "R9: {id} is sent {mark:?}, and may hold blocks of {reach}"
            );
        }
        self.reach = mark.base;
        self.receiving = Some(Receiving { session: mark.session });
    }
}

impl World {
    pub(crate) fn start_base(&mut self, index: usize, mark: Incomplete, lineage: Lineage) {
        let node = &mut self.nodes[index];
        let clock = node.clock(self.now);
        let view = node.replica.as_ref().map(|replica| replica.view(clock));
        let blocks = view.map_or(0, |view| view.committed_blocks);
        let store = node.disk.store();
        let table = store.regions();
        let sending = Sending {
            lineage,
            mark,
            regions: store.base_regions(&mark).into(),
            reading: None,
            through: table.iter().copied().max().unwrap_or(Lsn(0)),
            table,
            blocks,
            arrives: self.now,
        };
        let regions: BTreeSet<u64> = sending.regions.iter().copied().collect();
        self.nodes[index].sending.insert(mark.session, sending);
        if mark.from > Lsn(0) && self.has_rot_beside(index, &regions) {
            self.mark(Mark::DeltaPastRot);
        }
        self.next_base(index, mark.session, 1);
    }

    pub(crate) fn stop_base(&mut self, index: usize, session: RecoveryId) {
        let node = &mut self.nodes[index];
        node.sending.remove(&session);
        if node.receiving.is_some_and(|receiving| receiving.session == session) {
            node.receiving = None;
        }
    }

    fn next_base(&mut self, index: usize, session: RecoveryId, delay: u64) {
        let run = self.nodes[index].run;
        self.after(delay, Event::BaseTurn { node: index, run, session });
    }

    /// The lane plans its next read, or does it and sends what it found.
    pub(crate) fn base_turn(&mut self, index: usize, run: u64, session: RecoveryId) {
        let delay = 1 + self.delay();
        let node = &mut self.nodes[index];
        if node.run != run {
            return;
        }
        let Some(lane) = node.sending.get_mut(&session) else { return };
        if let Some((region, plan)) = lane.reading.take() {
            let read = plan.run();
            if node.disk.memory.crashed() {
                return self.stops(index);
            }
            let (data, read_at) = match read {
                Ok(read) => read,
                Err(error) => {
                    node.sending.remove(&session);
                    if let ReadError::Rotten { blocks, .. } = &error {
                        self.base_rotten(index, session, &error, blocks);
                    }
                    let cause = FailureKind::StoreIo;
                    return self.step(index, Input::BaseFailed { session, cause }, Vec::new());
                }
            };
            let node = &mut self.nodes[index];
            let Some(lane) = node.sending.get_mut(&session) else { return };
            let mark = lane.mark;
            assert!(read_at >= mark.base, "base blocks as of {read_at}, of {mark:?}");
            let same_age = node.disk.shadow.kept.loss_generation == self.truth.loss_generation;
            assert!(
                read_at <= self.truth.newest() || !same_age,
                "I5: base blocks as of {read_at}, which nobody committed"
            );
            lane.through = lane.through.max(read_at);
            let zeros = mark.from > Lsn(0);
            for piece in pieces(region * REGION_BLOCKS, &data, read_at, zeros) {
                if matches!(piece, Piece::Zeros { .. }) {
                    self.mark(Mark::DeltaZeros);
                }
                self.push(index, session, piece);
            }
            return self.next_base(index, session, delay);
        }
        if let Some(region) = lane.regions.pop_front() {
            let first = region * REGION_BLOCKS;
            // A receiver that was not wiped may have something beyond the end.
            let delta = lane.mark.from > Lsn(0);
            let blocks = if delta { REGION_BLOCKS } else { REGION_BLOCKS.min(lane.blocks - first) };
            let blocks = blocks as u32;
            let range = BlockRange { lba: Lba(first), blocks };
            let store = node.disk.store.as_ref().expect("a replica that runs has its store open");
            lane.reading = Some((region, store.plan_read_committed(range)));
            return self.next_base(index, session, delay);
        }
        let (table, through) = (lane.table.clone(), lane.through);
        if through > lane.mark.base {
            self.mark(Mark::RebuildOvertaken);
        }
        self.push(index, session, Piece::Regions(table));
        self.push(index, session, Piece::End { through });
    }

    fn push(&mut self, index: usize, session: RecoveryId, piece: Piece) {
        let delay = self.delay();
        let breaks = !self.healed && self.rng.chance(self.faults.loss);
        let now = self.now;
        let Some(lane) = self.nodes[index].sending.get_mut(&session) else { return };
        let (lineage, arrives) = (lane.lineage, lane.arrives.max(now + delay));
        lane.arrives = arrives;
        let to = self.index(lineage.to.id);
        if breaks || !self.hears(index, to) {
            return self.break_base(index, session);
        }
        self.at(arrives, Event::Base { lineage, session, piece });
    }

    /// The connection is lost; both ends hear of it sooner or later.
    fn break_base(&mut self, index: usize, session: RecoveryId) {
        let Some(lane) = self.nodes[index].sending.remove(&session) else { return };
        self.mark(Mark::LaneBroke);
        let to = self.index(lane.lineage.to.id);
        for node in [index, to] {
            let run = self.nodes[node].run;
            let delay = self.rng.below(1_500);
            self.after(delay, Event::BaseBroke { node, run, session });
        }
    }

    pub(crate) fn base_broke(&mut self, index: usize, run: u64, session: RecoveryId) {
        let node = &self.nodes[index];
        let receives = node.receiving.is_some_and(|receiving| receiving.session == session);
        let sends = node.replica.is_some() && !node.sending.contains_key(&session);
        if node.run == run && (receives || sends) {
            let cause = FailureKind::Transport;
            self.step(index, Input::BaseFailed { session, cause }, Vec::new());
        }
    }

    /// A piece arrives.
    pub(crate) fn take_base(&mut self, lineage: Lineage, session: RecoveryId, piece: &Piece) {
        let index = self.index(lineage.to.id);
        let now = self.nodes[index].clock(self.now);
        let node = &mut self.nodes[index];
        let current =
            node.replica.as_ref().is_some_and(|replica| replica.view(now).me == lineage.to);
        if !current || node.receiving.is_none_or(|receiving| receiving.session != session) {
            return;
        }
        let taken = match piece {
            Piece::Blocks { first, data, read_at } => {
                node.reach = node.reach.max(*read_at);
                node.disk.store().write_base(Lba(*first), data)
            }
            Piece::Zeros { range, read_at } => {
                node.reach = node.reach.max(*read_at);
                node.disk.store().write_base_zeros(range.clone())
            }
            Piece::Regions(table) => {
                node.disk.store().set_regions(0, table);
                Ok(())
            }
            Piece::End { through } => {
                let from = self.index(lineage.from.id);
                let through = *through;
                self.send(index, from, Event::BaseTaken { lineage, session, through });
                Ok(())
            }
        };
        if let Err(error) = taken {
            self.store_failed(index, &error);
        }
    }
}

/// The stretches of `data`, which starts at block `first`, that are zeros or not. Those that are go only
/// to a receiver that was not wiped.
fn pieces(first: u64, data: &Bytes, read_at: Lsn, zeros: bool) -> Vec<Piece> {
    let zeros = zeros && !on(Bug::DeltaElidesZeros);
    let block = BLOCK_SIZE as usize;
    let blocks = data.len() / block;
    let zero = |n: usize| is_zero(&data[n * block..(n + 1) * block]);
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < blocks {
        let end = (at..blocks).find(|n| zero(*n) != zero(at)).unwrap_or(blocks);
        if !zero(at) {
            let data = data.slice(at * block..end * block);
            pieces.push(Piece::Blocks { first: first + at as u64, data, read_at });
        } else if zeros {
            let range = first + at as u64..first + end as u64;
            pieces.push(Piece::Zeros { range, read_at });
        }
        at = end;
    }
    pieces
}
