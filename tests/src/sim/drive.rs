//! How a node drives its engine: as a volume task does, on one thread.

use std::collections::VecDeque;

use bytes::Bytes;
use sbk_engine::recovery::FailureKind;
use sbk_engine::replication::Replica;
use sbk_engine::replication::io::{Input, Outcome, Output, Payload, Proposal, StreamEnd, StreamId};
use sbk_engine::replication::log::{EntryHeader, RequestTag};
use sbk_engine::replication::message::{Append, Lineage, RecoveryId, ToPrimary, ToReplica};
use sbk_engine::types::{Lsn, ReplicaId};
use sbk_store::entry::entry_crc;
use sbk_store::{LogEntry, LogReadError, ReadError, Store, StoreError};

use super::event::Event;
use super::marks::Mark;
use super::node::Held;
use super::rooms::said_of_room;
use super::world::World;

/// Entries of one answer to a candidate: few, so that it is interrupted now and then.
const FETCHED_ENTRIES: u64 = 3;
/// Entries of one message.
const MESSAGE_ENTRIES: usize = 16;

impl World {
    pub(crate) fn timer(&mut self, index: usize, run: u64) {
        let node = &self.nodes[index];
        if node.run == run && node.timer <= self.now {
            self.step(index, Input::Tick, Vec::new());
        }
    }

    /// Gives the engine a fact and does all that follows from it.
    pub(crate) fn step(&mut self, index: usize, input: Input, fed: Vec<LogEntry>) {
        if self.nodes[index].replica.is_none() {
            if let Input::OpenStream(open) = input {
                let (stream, reason) = (open.stream, StreamEnd::NotPrimary);
                self.after(1, Event::Ended { stream, reason, config: None });
            }
            return;
        }
        self.nodes[index].inbox.push_back((input, fed));
        self.turns(index);
    }

    /// Handles what is in the inbox, then sees to the work that waits.
    pub(crate) fn turns(&mut self, index: usize) {
        while let Some((input, fed)) = self.nodes[index].inbox.pop_front() {
            self.nodes[index].fed = fed;
            let now = self.nodes[index].clock(self.now);
            self.note_told(index, &input);
            let Some(replica) = &mut self.nodes[index].replica else { return };
            let said = said_of_room(&input);
            let (verdict, outputs) = replica.step(now, input);
            self.note_room(index, said, verdict);
            self.mark_verdict(verdict);
            self.notice_loss(index);
            for output in outputs {
                if let Err(error) = self.execute(index, output) {
                    return self.store_failed(index, &error);
                }
            }
            self.nodes[index].fed.clear();
        }
        self.start_work(index);
        self.arm(index);
    }

    fn arm(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let Some(due) = node.replica.as_ref().and_then(Replica::next_deadline) else { return };
        let (run, due) = (node.run, node.world_time(due));
        if node.timer <= self.now || due < node.timer {
            node.timer = due;
            self.at(due, Event::Timer { node: index, run });
        }
    }

    /// Executes one output. An error drops the outputs after it.
    pub(crate) fn execute(&mut self, index: usize, output: Output) -> Result<(), StoreError> {
        self.mark_output(index, &output);
        match output {
            Output::Persist(_)
            | Output::FinishRebuild { .. }
            | Output::Cut { .. }
            | Output::Wipe { .. } => {
                let what = match output {
                    Output::Cut { .. } => "cut",
                    Output::Wipe { .. } => "wipe",
                    _ => "persist",
                };
                let done = self.execute_blocking(index, output);
                if done.is_err() && self.nodes[index].disk.memory.crashed() {
                    self.mark_stop(what);
                }
                done?;
            }
            Output::Append { headers, payload } => self.append(index, headers, payload)?,
            Output::Committed(lsn) => self.committed(index, lsn),
            Output::Checkpoint { upto } => {
                // If there is more to do, the next look at what work is due finds it.
                let node = &mut self.nodes[index];
                let generation = node.replica.as_ref().map_or(0, Replica::generation);
                if let Some((checkpoint, retained)) = node.disk.store().want_checkpoint(upto) {
                    let told = Input::Checkpointed { generation, checkpoint, retained };
                    node.inbox.push_back((told, Vec::new()));
                }
            }
            Output::Pin { session, from } => self.nodes[index].disk.store().pin(session, from),
            Output::Unpin { session } => self.nodes[index].disk.store().unpin(session),
            Output::Read { stream, tag, range, merge } => {
                let node = &mut self.nodes[index];
                if merge {
                    node.merging.insert((stream, tag));
                    self.room_at_merge(index, range);
                }
                let node = &mut self.nodes[index];
                let plan = node.disk.store().plan_read(range);
                node.reads.insert((stream, tag), plan);
                let run = node.run;
                let delay = self.rng.below(5);
                self.after(delay, Event::ReadDone { node: index, run, stream, tag });
            }
            Output::FindData { search, first, end } => self.find_data(index, search, first, end),
            Output::LookForHoles { stream, tag, range } => {
                self.look_for_holes(index, stream, tag, range);
            }
            Output::ToReplica { lineage, message, .. } => self.tell(index, lineage, message)?,
            Output::SendEntries { lineage, append, last, .. } => {
                self.send_entries(index, lineage, append, last)?;
            }
            Output::ResetFeed { .. } => {}
            Output::ToPrimary { lineage, message } => {
                self.tell_primary(index, lineage, message, Vec::new());
            }
            Output::SendFetched { lineage, request, prev, last } => {
                // None, if they are gone: the candidate asks anew what there is.
                let last = last.min(Lsn(prev.0 + FETCHED_ENTRIES));
                let read = self.read_log(index, None, prev.next(), last)?;
                let entries = read.unwrap_or_default();
                let headers = entries.iter().map(|entry| entry.header).collect();
                let message = ToPrimary::Entries { request, prev, entries: headers };
                self.tell_primary(index, lineage, message, entries);
            }
            Output::SendBlocks { lineage, request, at, blocks } => {
                self.send_blocks(index, lineage, request, at, blocks);
            }
            Output::Scrubbed { blocks, fate } => self.scrubbed(&blocks, &fate),
            Output::StartBase { mark, lineage, .. } => self.start_base(index, mark, lineage),
            Output::StopBase { session } => self.stop_base(index, session),
            Output::Propose(proposal) => {
                self.check_proposal(index, &proposal);
                self.send_proposal(index, proposal);
            }
            Output::StreamOpened { stream, epoch, attach, loss_generation } => {
                self.check_told(index);
                self.generations.insert(stream, loss_generation);
                let event = Event::Opened { stream, epoch, attach, loss: loss_generation };
                self.stream_send(stream, false, index, event);
            }
            Output::StreamEnded { stream, reason } => {
                let node = &mut self.nodes[index];
                node.forget(stream);
                let config = node.replica.as_ref().and_then(Replica::config).cloned();
                self.stream_send(stream, false, index, Event::Ended { stream, reason, config });
            }
            Output::Answer { stream, tag, outcome } => {
                if outcome == Outcome::Done {
                    self.check_told(index);
                }
                match (self.asked_for(stream, tag.sequence), &outcome) {
                    (Some(true), Outcome::Done) => self.check_read(index),
                    (Some(false), Outcome::Done) => {
                        self.note_acknowledged(index, tag);
                        self.check_write(tag);
                    }
                    (None, Outcome::Done) => self.note_flushed(index, tag),
                    (_, Outcome::Failed(why)) => self.check_not_mended(index, why),
                    (_, Outcome::Invalid(_)) => {}
                }
                self.nodes[index].merging.remove(&(stream, tag));
                let data = match self.nodes[index].held.remove(&(stream, tag)) {
                    Some(Held::Read(data)) => data,
                    Some(Held::Write(_) | Held::Partial(_) | Held::Nothing) | None => None,
                };
                let loss = self.generations.get(&stream).copied().unwrap_or_default();
                let sequence = tag.sequence;
                let event = Event::Answer { stream, sequence, outcome, data, loss };
                self.stream_send(stream, false, index, event);
            }
            Output::Trace(event) => self.traced(index, &event),
        }
        Ok(())
    }

    /// What is durably done, or has failed, when it returns.
    fn execute_blocking(&mut self, index: usize, output: Output) -> Result<(), StoreError> {
        match output {
            Output::Persist(kept) => {
                self.check_kept(index, &kept);
                let disk = &mut self.nodes[index].disk;
                disk.store().persist(&kept)?;
                disk.shadow.kept = kept;
            }
            Output::FinishRebuild { kept, .. } => {
                self.check_kept(index, &kept);
                self.quiesce(index)?;
                let node = &mut self.nodes[index];
                node.disk.store().finish_rebuild(&kept)?;
                node.disk.shadow.kept = kept;
                node.receiving = None;
            }
            Output::Cut { end, kept } => {
                self.check_kept(index, &kept);
                self.check_drop(index, Some(end));
                self.quiesce(index)?;
                self.summary.cuts += 1;
                let disk = &mut self.nodes[index].disk;
                let last = disk.store().end();
                let referred = (end.0 + 1..=last.0).any(|lsn| disk.store().refers(Lsn(lsn)));
                disk.shadow.cutting(end);
                disk.store().cut(end, &kept)?;
                disk.shadow.was_cut(end, kept);
                if referred {
                    self.mark(Mark::ReferenceCut);
                }
                // What was synced while the cut waited was told of the log before it.
                let (now, lsn) = (self.now, self.nodes[index].disk.shadow.durable);
                let node = &mut self.nodes[index];
                let clock = node.clock(now);
                if let Some(replica) = &node.replica
                    && replica.view(clock).durable < lsn
                {
                    let generation = replica.generation();
                    node.inbox.push_back((Input::Durable { generation, lsn }, Vec::new()));
                }
            }
            Output::Wipe { mark, state, kept } => {
                self.check_kept(index, &kept);
                self.check_drop(index, None);
                if !self.loss_pending() {
                    self.check_state(index, mark.base, &state);
                }
                self.quiesce(index)?;
                if mark.from > Lsn(0) {
                    self.summary.deltas += 1;
                    self.mark_delta(index, &mark, state.blocks);
                } else {
                    self.summary.rebuilds += 1;
                }
                self.mark_aged(self.sender(&mark), &mark);
                let image = self.image_log(&mark);
                let node = &mut self.nodes[index];
                node.disk.shadow.wiping();
                node.disk.store().wipe(&mark, &state, &kept)?;
                node.disk.shadow.was_wiped(mark.base, kept, image);
                node.receive(&mark);
                self.name_the_torn(index);
            }
            other => panic!("{other:?} does not block"),
        }
        Ok(())
    }

    fn committed(&mut self, index: usize, lsn: Lsn) {
        let disk = &mut self.nodes[index].disk;
        assert!(
            lsn <= disk.shadow.durable,
            "I5: node {index} has committed beyond its durable end"
        );
        let entries = disk.shadow.entries(disk.shadow.committed.next(), lsn);
        disk.shadow.committed = disk.shadow.committed.max(lsn);
        disk.store().set_committed(lsn);
        let node = &mut self.nodes[index];
        node.reach = node.reach.max(lsn);
        if !self.outdated(index) {
            self.truth.note(&entries);
            self.truth.note_everywhere(lsn);
        }
        self.check_members();
    }

    fn append(
        &mut self,
        index: usize,
        headers: Vec<EntryHeader>,
        payload: Payload,
    ) -> Result<(), StoreError> {
        let made = |header: EntryHeader, payload: Bytes| LogEntry {
            header,
            crc: entry_crc(&header, &payload),
            payload,
        };
        let entries: Vec<LogEntry> = match payload {
            Payload::Feed => {
                let fed = std::mem::take(&mut self.nodes[index].fed);
                let first = headers.first().map(|header| header.lsn);
                let skip = fed.iter().take_while(|e| Some(e.header.lsn) < first).count();
                let wanted: Vec<_> = fed.into_iter().skip(skip).take(headers.len()).collect();
                assert!(
                    wanted.iter().map(|entry| &entry.header).eq(headers.iter()),
                    "the engine appends what the feed brought"
                );
                wanted
            }
            Payload::Client(tag) => headers
                .into_iter()
                .inspect(|header| self.check_growth(index, header))
                .collect::<Vec<_>>()
                .into_iter()
                .map(|header| match header.kind.payload_len() {
                    0 => made(header, Bytes::new()),
                    _ => made(header, self.payload(index, tag)),
                })
                .collect(),
            Payload::Blocks => headers
                .into_iter()
                .map(|header| made(header, self.told_block(index, &header)))
                .collect(),
            Payload::Empty => {
                headers.into_iter().map(|header| made(header, Bytes::new())).collect()
            }
        };
        let disk = &mut self.nodes[index].disk;
        for entry in entries {
            disk.store().append(entry.header, entry.crc, entry.payload)?;
            disk.shadow.append((entry.header, entry.crc));
        }
        Ok(())
    }

    /// The payload of a write that is being logged: of all streams of a session only the newest is
    /// alive, so the request's name finds it.
    fn payload(&mut self, index: usize, tag: RequestTag) -> Bytes {
        let held = self.nodes[index].held.iter_mut().rev();
        let found = held
            .filter(|((_, of), _)| *of == tag)
            .find(|(_, held)| matches!(held, Held::Write(_)))
            .map(|(_, held)| std::mem::replace(held, Held::Nothing));
        match found {
            Some(Held::Write(data)) => data,
            _ => panic!("write {tag:?} is logged without its payload"),
        }
    }

    pub(super) fn tell_primary(
        &mut self,
        index: usize,
        lineage: Lineage,
        message: ToPrimary,
        entries: Vec<LogEntry>,
    ) {
        let to = self.index(lineage.to.id);
        self.send(index, to, Event::ToPrimary { lineage, message, entries });
    }

    fn tell(
        &mut self,
        index: usize,
        lineage: Lineage,
        message: ToReplica,
    ) -> Result<(), StoreError> {
        if let ToReplica::Append(append) = &message
            && let Some(last) = append.entries.last().map(|header| header.lsn)
        {
            let append = Append { entries: Vec::new(), ..append.clone() };
            return self.send_entries(index, lineage, append, last);
        }
        let to = self.index(lineage.to.id);
        let begins = matches!(message, ToReplica::BeginRebuild { .. });
        let event = Event::ToReplica { lineage, message, entries: Vec::new() };
        if begins && self.parts_with(to, &event) {
            return Ok(());
        }
        self.send(index, to, event);
        Ok(())
    }

    fn send_entries(
        &mut self,
        index: usize,
        lineage: Lineage,
        append: Append,
        last: Lsn,
    ) -> Result<(), StoreError> {
        let lane = self.session_with(index, lineage.to.id);
        let entries = match self.read_log(index, lane, append.prev.next(), last)? {
            Ok(entries) => entries,
            Err(cause) => {
                let replica = lineage.to.id;
                self.mark_feed_failure(cause);
                self.nodes[index]
                    .inbox
                    .push_back((Input::FeedFailed { replica, cause }, Vec::new()));
                return Ok(());
            }
        };
        let to = self.index(lineage.to.id);
        let mut append = append;
        let mut rest = VecDeque::from(entries);
        while !rest.is_empty() {
            let chunk: Vec<_> = rest.drain(..rest.len().min(MESSAGE_ENTRIES)).collect();
            append.entries = chunk.iter().map(|entry| entry.header).collect();
            let message = ToReplica::Append(append.clone());
            let sent = chunk.len() as u64;
            self.send(index, to, Event::ToReplica { lineage, message, entries: chunk });
            // One promise is asked for once.
            append.stamp = None;
            append.prev = Lsn(append.prev.0 + sent);
        }
        Ok(())
    }

    /// The session that a primary has going with a replica.
    fn session_with(&self, index: usize, replica: ReplicaId) -> Option<RecoveryId> {
        let node = &self.nodes[index];
        let view = node.replica.as_ref()?.view(node.clock(self.now));
        Some(view.peers.get(&replica)?.recovery.as_ref()?.session.as_ref()?.id)
    }

    /// Entries of a node's own log, for the lane of a session or without one, or why they are not in it any more. What its disk does not give
    /// back fails its store, unless the extents have it: as a volume task does it.
    fn read_log(
        &mut self,
        index: usize,
        lane: Option<RecoveryId>,
        first: Lsn,
        last: Lsn,
    ) -> Result<Result<Vec<LogEntry>, FailureKind>, StoreError> {
        let store = self.nodes[index].disk.store();
        let (lsn, what) = match read_all(store, first, last) {
            Ok(entries) => {
                let in_memory = store.recent(first, last).first().map(|entry| entry.header.lsn);
                let read = |lsn: Lsn| in_memory.is_none_or(|from| lsn < from);
                let referred = |lsn| read(lsn) && store.refers(lsn);
                if (first.0..=last.0).any(|lsn| referred(Lsn(lsn))) {
                    self.mark(Mark::ReferenceFed);
                }
                if lane.is_some() {
                    self.mark_kept(index, first);
                }
                return Ok(Ok(entries));
            }
            Err(LogReadError::Recycled { .. }) if lane.is_some_and(|id| !store.pin_lost(id)) => {
                panic!("R7: the log from {first} on is recycled, and session {lane:?} needs it");
            }
            Err(LogReadError::Recycled { .. }) if store.lost_a_pin() => {
                return Ok(Err(FailureKind::PinLost));
            }
            Err(LogReadError::Recycled { .. }) => return Ok(Err(FailureKind::WalRecycled)),
            Err(LogReadError::Unreadable { lsn, what }) => (lsn, what),
        };
        let (checkpoint, retained) = store.unreadable(lsn, &what)?;
        self.mark(Mark::LogGivenUp);
        let node = &mut self.nodes[index];
        let generation = node.replica.as_ref().map_or(0, Replica::generation);
        let told = Input::Checkpointed { generation, checkpoint, retained };
        node.inbox.push_back((told, Vec::new()));
        Ok(Err(FailureKind::WalRecycled))
    }

    fn send_proposal(&mut self, index: usize, proposal: Proposal) {
        let run = self.nodes[index].run;
        if self.outlive(index, run, &proposal) || self.strand(index, run, &proposal) {
            return;
        }
        let lost =
            self.nodes[index].unheard || !self.healed && self.rng.chance(self.faults.loss * 4);
        if lost {
            self.after(1_000, Event::Answered { node: index, run, proposal, config: None });
        } else {
            // One that was taken for lost, and is committed long after its answer was given up.
            if !self.healed && self.rng.chance(self.faults.repeat) {
                let delay = self.rng.below(self.faults.echo_ms);
                let proposal = proposal.clone();
                self.after(delay, Event::Propose { node: index, run, proposal });
            }
            let delay = self.delay();
            self.after(delay, Event::Propose { node: index, run, proposal });
        }
    }

    /// The blocks of a request were read, or not.
    pub(crate) fn read_done(&mut self, index: usize, run: u64, stream: StreamId, tag: RequestTag) {
        let node = &mut self.nodes[index];
        if node.run != run {
            return;
        }
        let Some(plan) = node.reads.remove(&(stream, tag)) else { return };
        let read = plan.run();
        if node.disk.memory.crashed() {
            return self.stops(index);
        }
        let error = match read {
            Ok(data) => {
                if let Some(held) = node.held.get_mut(&(stream, tag)) {
                    held.was_read(data);
                }
                None
            }
            Err(ref error @ ReadError::Rotten { ref blocks, .. }) => {
                return self.read_rotten(index, (stream, tag), error, blocks);
            }
            Err(error) => {
                self.summary.reads_failed += 1;
                Some(error.to_string())
            }
        };
        self.step(index, Input::ReadDone { stream, tag, error }, Vec::new());
    }
}

fn read_all(store: &Store, first: Lsn, last: Lsn) -> Result<Vec<LogEntry>, LogReadError> {
    let mut plan = store.read_log(first, last)?;
    let mut entries = Vec::new();
    loop {
        let some = plan.next(1 << 20, MESSAGE_ENTRIES)?;
        if some.is_empty() {
            return Ok(entries);
        }
        entries.extend(some);
    }
}

impl Held {
    /// A read's data waits for its answer; a partial write becomes one of the whole block.
    fn was_read(&mut self, data: Bytes) {
        match self {
            Held::Partial(part) => *self = Held::Write(super::content::merge(&data, part)),
            Held::Read(read) => *read = Some(data),
            Held::Write(_) | Held::Nothing => {}
        }
    }
}
