//! How a volume task executes the engine's outputs, one after the other.

use std::sync::Arc;

use bytes::Bytes;
use sbk_engine::recovery::FailureKind;
use sbk_engine::replication::io::{Input, Outcome, Output, Payload, Proposal, StreamId};
use sbk_engine::replication::log::{BlockRange, EntryHeader, RequestTag};
use sbk_engine::replication::message::{Append, Incomplete, Lineage, ToPrimary, ToReplica};
use sbk_engine::replication::trace::TraceEvent;
use sbk_engine::types::{Lba, Lsn, ReplicaId};
use sbk_master_client::in_one_line;
use tokio::task::block_in_place;

use super::clock;
use super::disk::{Disk, DiskError};
use super::events::{Control, PeerEvent};
use super::runner::ProposalOrder;
use super::task::{Running, WantedRead};
use crate::link::{LinkEvent, runs_out};
use crate::transport::{BaseSource, Beside, EntriesLost, FeedItem, WireBlock, WireEntry};
use sbk_store::entry::entry_crc;

/// Payload bytes of one feed message of several entries.
const MESSAGE_BYTES: usize = 1 << 20;
/// Entries of one answer to a candidate.
const MESSAGE_ENTRIES: usize = 1024;

impl<D: Disk> Running<D> {
    /// Executes one output. An error drops the outputs after it.
    pub(super) async fn execute(&mut self, output: Output) -> Result<(), DiskError> {
        match output {
            Output::Persist(kept) => {
                self.urgent = true;
                block_in_place(|| self.disk.persist(&kept))?;
            }
            Output::Cut { end, kept } => {
                self.urgent = true;
                self.quiesce().await?;
                block_in_place(|| self.disk.cut(end, &kept))?;
                self.durable = self.durable.min(end);
                // What was synced while the cut waited was told of the log before it, which the engine does
                // not take for this one. [A candidate cut the end of a tail that was being synced, lacked
                // nothing, and waited for the sync of what it kept.]
                if self.replica.view(clock::now()).durable < self.durable {
                    let (generation, lsn) = (self.replica.generation(), self.durable);
                    self.inbox.push_back(Input::Durable { generation, lsn });
                }
            }
            Output::Wipe { mark, state, kept } => {
                self.urgent = true;
                self.quiesce().await?;
                block_in_place(|| self.disk.wipe(&mark, &state, &kept))?;
                self.durable = mark.base;
                self.receiving = Some(mark.session);
                self.taken_bytes = 0;
            }
            Output::FinishRebuild { session, kept } => {
                self.urgent = true;
                self.quiesce().await?;
                block_in_place(|| self.disk.finish_rebuild(session, &kept))?;
                self.receiving = None;
            }
            Output::Append { headers, payload } => self.append(headers, payload)?,
            Output::Committed(lsn) => self.disk.committed(lsn),
            Output::Checkpoint { upto } => {
                if let Some((checkpoint, retained)) = self.disk.want_checkpoint(upto) {
                    let generation = self.replica.generation();
                    self.inbox.push_back(Input::Checkpointed { generation, checkpoint, retained });
                }
            }
            Output::Pin { session, from } => self.disk.pin(session, from),
            Output::Unpin { session } => self.disk.unpin(session),
            Output::Read { stream, tag, range, merge: _ } => {
                let plan = match self.clients.wants_runs(stream, tag) {
                    Some(most) => self.disk.allocation(range, most).then(|runs| runs_out(&runs)),
                    None => self.disk.read(range),
                };
                self.wanted_reads.push(WantedRead { stream, tag, plan });
            }
            Output::FindData { search, first, end } => self.find_data(search, first, end),
            Output::LookForHoles { stream, tag, range } => self.look_for_holes(stream, tag, range),
            Output::ToReplica { addr, lineage, message } => {
                self.tell_replica(addr, lineage, message)?;
            }
            Output::SendEntries { addr, lineage, append, last } => {
                self.send_entries(addr, lineage, append, last)?;
            }
            Output::ResetFeed { replica } => self.outgoing.reset_feed(replica),
            Output::ToPrimary { lineage, message } => self.incoming.send(lineage, message),
            Output::StartBase { mark, addr: _, lineage: _ } => self.start_base(mark),
            Output::StopBase { session } => self.stop_base(session),
            Output::SendFetched { lineage, request, prev, last } => {
                self.send_fetched(lineage, request, prev, last);
            }
            Output::SendBlocks { lineage, request, at, blocks } => {
                self.send_blocks(lineage, request, at, blocks);
            }
            Output::Scrubbed { blocks, fate } => self.scrubs.settle(&blocks, &fate),
            Output::Propose(proposal) => self.propose(proposal),
            Output::StreamOpened { stream, epoch, attach, loss_generation } => {
                self.urgent = true;
                self.clients.tell(stream, LinkEvent::Opened { epoch, attach, loss_generation });
            }
            Output::StreamEnded { stream, reason } => {
                self.urgent = true;
                let config = self.replica.config().cloned();
                self.clients.end(stream, LinkEvent::Ended { reason, config });
            }
            Output::Answer { stream, tag, outcome } => {
                if outcome == Outcome::Done {
                    self.context.pace.answered(clock::now());
                }
                self.clients.answer(stream, tag, outcome);
            }
            Output::Trace(event) => {
                self.urgent = true;
                self.log(&event);
                self.shared.trace.push(self.me.incarnation, event);
            }
        }
        Ok(())
    }

    fn log(&self, event: &TraceEvent) {
        let (volume, replica, epoch, what) = (&self.volume, &self.me.id, &event.epoch, &event.what);
        if matches!(what.as_str(), "rotten" | "not-mended" | "growth-waits") {
            // A disk that returned wrong data is to be looked after, whoever had the right one, and one that
            // runs full.
            tracing::warn!(%volume, %replica, %epoch, what, "{}", event.why);
        } else {
            tracing::info!(%volume, %replica, %epoch, what, "{}", event.why);
        }
    }

    fn append(&mut self, headers: Vec<EntryHeader>, payload: Payload) -> Result<(), DiskError> {
        let entries: Vec<WireEntry> = match payload {
            Payload::Feed => {
                let first = headers.first().map(|header| header.lsn);
                let fed = std::mem::take(&mut self.fed);
                let skip = fed.iter().take_while(|e| Some(e.header.lsn) < first).count();
                let wanted: Vec<_> = fed.into_iter().skip(skip).take(headers.len()).collect();
                assert!(
                    wanted.iter().map(|entry| &entry.header).eq(headers.iter()),
                    "the engine appends what the feed brought"
                );
                wanted
            }
            Payload::Client(tag) => {
                let mut entry = |header: EntryHeader| {
                    let payload = match header.kind.payload_len() {
                        0 => Bytes::new(),
                        length => {
                            let payload = self.clients.payload(tag);
                            let payload = payload.expect("a write is logged with its payload");
                            assert_eq!(payload.len() as u64, length, "of write {tag:?}");
                            payload
                        }
                    };
                    let crc = entry_crc(&header, &payload);
                    WireEntry { header, crc, payload }
                };
                headers.into_iter().map(&mut entry).collect()
            }
            Payload::Blocks => {
                let told = |header: EntryHeader| {
                    let lba = header.kind.range().map(|range| range.lba);
                    let block = self.told.iter().find(|block| Some(block.lba) == lba);
                    let payload = block.expect("a block is logged with its content").data.clone();
                    assert_eq!(payload.len() as u64, header.kind.payload_len(), "of block {lba:?}");
                    let crc = entry_crc(&header, &payload);
                    WireEntry { header, crc, payload }
                };
                headers.into_iter().map(told).collect()
            }
            Payload::Empty => headers
                .into_iter()
                .map(|header| {
                    assert_eq!(header.kind.payload_len(), 0, "entry {} has no payload", header.lsn);
                    WireEntry { header, crc: entry_crc(&header, &[]), payload: Bytes::new() }
                })
                .collect(),
        };
        self.disk.append(entries)
    }

    fn tell_replica(
        &mut self,
        addr: String,
        lineage: Lineage,
        message: ToReplica,
    ) -> Result<(), DiskError> {
        if let ToReplica::Append(append) = &message
            && let Some(last) = append.entries.last().map(|header| header.lsn)
        {
            let append = Append { entries: Vec::new(), ..append.clone() };
            return self.send_entries(addr, lineage, append, last);
        }
        if !self.outgoing.send(addr, lineage, message) {
            self.blocked(lineage.to.id);
        }
        Ok(())
    }

    /// Puts the entries after `append.prev` up to `last` on the feed: those that are in memory
    /// from there, those below are read from the WAL when their turn comes.
    fn send_entries(
        &mut self,
        addr: String,
        lineage: Lineage,
        append: Append,
        last: Lsn,
    ) -> Result<(), DiskError> {
        let recent = self.disk.recent(append.prev.next(), last);
        let below = recent.first().map_or(last, |entry| entry.header.lsn.prev());
        let mut append = append;
        if below > append.prev {
            if !self.send_from_log(&addr, lineage, append.clone(), below)? {
                return Ok(());
            }
            // One promise is asked for once.
            append = Append { prev: below, stamp: None, ..append };
        }
        self.send_from_memory(&addr, lineage, append, recent);
        Ok(())
    }

    /// Returns whether the entries are on the feed.
    fn send_from_log(
        &mut self,
        addr: &str,
        lineage: Lineage,
        append: Append,
        last: Lsn,
    ) -> Result<bool, DiskError> {
        let replica = lineage.to.id;
        match self.disk.read_log(append.prev.next(), last) {
            Ok(read) => {
                let threads = self.home.threads().clone();
                let item = FeedItem::Entries { lineage, append, last, read, threads };
                let sent = self.outgoing.feed(addr, &lineage, item);
                if !sent {
                    self.blocked(replica);
                }
                Ok(sent)
            }
            Err(lost) => {
                let cause = self.entries_lost(lost)?;
                self.inbox.push_back(Input::FeedFailed { replica, cause });
                Ok(false)
            }
        }
    }

    /// Entries of the own log are not to be had. If the disk lost them, the store says whether it
    /// can do without: then the engine hears what the log holds now, and who misses them is
    /// rebuilt. [Told as a failure of the receiver's session, it was tried again for ever.]
    pub(super) fn entries_lost(&mut self, lost: EntriesLost) -> Result<FailureKind, DiskError> {
        let (lsn, what) = match lost {
            EntriesLost::Gone(kind) => return Ok(kind),
            EntriesLost::Unreadable { lsn, what } => (lsn, what),
        };
        let (checkpoint, retained) = self.disk.unreadable(lsn, &what)?;
        let generation = self.replica.generation();
        self.inbox.push_back(Input::Checkpointed { generation, checkpoint, retained });
        Ok(FailureKind::WalRecycled)
    }

    fn send_from_memory(
        &mut self,
        addr: &str,
        lineage: Lineage,
        append: Append,
        entries: Vec<WireEntry>,
    ) {
        let replica = lineage.to.id;
        let mut messages: Vec<Vec<WireEntry>> = Vec::new();
        let mut bytes = 0;
        for entry in entries {
            let length = entry.payload.len();
            match messages.last_mut() {
                Some(message) if bytes + length <= MESSAGE_BYTES => message.push(entry),
                Some(_) | None => {
                    messages.push(vec![entry]);
                    bytes = 0;
                }
            }
            bytes += length;
        }
        let mut append = append;
        for entries in messages {
            let end = entries.last().map(|entry| entry.header.lsn);
            let headers = entries.iter().map(|entry| entry.header).collect();
            let message = Append { entries: headers, ..append.clone() };
            let message = ToReplica::Append(message);
            let item = FeedItem::Message { lineage, message, entries };
            if !self.outgoing.feed(addr, &lineage, item) {
                self.blocked(replica);
                return;
            }
            append.stamp = None;
            append.prev = end.unwrap_or(append.prev);
        }
    }

    /// Answers a candidate that completes its log. The entries are read beside this task; none, if
    /// they can't be: the candidate then asks anew what there is.
    fn send_fetched(&mut self, lineage: Lineage, request: u64, prev: Lsn, last: Lsn) {
        let Some(way) = self.incoming.take_call(lineage.to, request) else { return };
        let read = self.disk.read_log(prev.next(), last);
        let (events, incarnation) = (self.shared.peers.clone(), self.me.incarnation);
        let generation = self.replica.generation();
        self.home.threads().spawn_blocking(move || {
            let read = read.and_then(|mut read| read.next(MESSAGE_BYTES, MESSAGE_ENTRIES));
            let entries = read.unwrap_or_else(|lost| {
                tracing::warn!(%prev, ?lost, "entries for a candidate could not be read");
                if let EntriesLost::Unreadable { lsn, what } = lost {
                    let event = PeerEvent::LogUnreadable { incarnation, generation, lsn, what };
                    // A volume task that has ended needs no answer.
                    let _ended = events.blocking_send(event);
                }
                Vec::new()
            });
            let headers = entries.iter().map(|entry| entry.header).collect();
            let message = ToPrimary::Entries { request, prev, entries: headers };
            // The asker may have given up.
            let _gave_up = way.send((lineage, message, Beside::Entries(entries)));
        });
    }

    /// Tells the primary, which may be this replica itself, what is here of blocks that rotted elsewhere. They are read beside this task. If that
    /// can't be told, nothing is: the primary asks again, or another one.
    fn send_blocks(&mut self, lineage: Lineage, request: u64, at: Lsn, blocks: Vec<Lba>) {
        let own = lineage.to == self.me;
        let way = if own { None } else { self.incoming.take_call(lineage.to, request) };
        if way.is_none() && !own {
            return;
        }
        let plan = |lba| self.disk.read_settled(BlockRange { lba, blocks: 1 });
        let plans: Vec<_> = blocks.into_iter().map(plan).collect();
        let (events, incarnation) = (self.shared.peers.clone(), self.me.incarnation);
        self.home.threads().spawn_blocking(move || {
            let (mut held, mut rotten, mut why) = (Vec::new(), Vec::new(), String::new());
            for plan in plans {
                match plan.run() {
                    Ok(Some(told)) => {
                        let block = |(lba, data)| WireBlock { lba, data };
                        held.extend(told.held.into_iter().map(block));
                        if let Some(first) = told.rotten.first().filter(|_| why.is_empty()) {
                            why = first.to_string();
                        }
                        rotten.extend(told.rotten.iter().map(|rotten| rotten.lba));
                    }
                    // The log or the image changed meanwhile.
                    Ok(None) => {}
                    Err(error) => {
                        let why = in_one_line(&error);
                        tracing::error!(%why, "a block that rotted elsewhere can't be read here");
                    }
                }
            }
            if !rotten.is_empty() && !own {
                let event = PeerEvent::AskedRotten { incarnation, blocks: rotten.clone(), why };
                // A volume task that has ended counts nothing.
                let _ended = events.blocking_send(event);
            }
            let lbas = held.iter().map(|block| block.lba).collect();
            let message = ToPrimary::Blocks { request, at, held: lbas, rotten };
            let beside = Beside::Blocks(held);
            if let Some(way) = way {
                // The asker may have given up.
                let _gave_up = way.send((lineage, message, beside));
            } else {
                // A volume task that has ended asks no more.
                let _ended =
                    events.blocking_send(PeerEvent::FromReplica { lineage, message, beside });
            }
        });
    }

    /// Looks for data beside this task: a large volume's may take long.
    fn find_data(&self, search: u64, first: Lba, end: u64) {
        let plan = self.disk.find_data(first, end);
        let (events, incarnation) = (self.shared.peers.clone(), self.me.incarnation);
        self.home.threads().spawn_blocking(move || {
            let (found, error) = match plan.run() {
                Ok(found) => (found, None),
                Err(error) => (None, Some(error.to_string())),
            };
            let event = PeerEvent::DataFound { incarnation, search, found, error };
            // A volume task that has ended needs no answer.
            let _ended = events.blocking_send(event);
        });
    }

    /// Looks whether blocks hold nothing, beside this task. Where that can't be told they may.
    fn look_for_holes(&self, stream: StreamId, tag: RequestTag, range: BlockRange) {
        let plan = self.disk.allocation(range, usize::MAX);
        let (events, incarnation) = (self.shared.peers.clone(), self.me.incarnation);
        self.home.threads().spawn_blocking(move || {
            let holes = match plan.run() {
                Ok(runs) => runs.iter().any(|run| run.hole),
                Err(error) => {
                    let why = in_one_line(&error);
                    tracing::warn!(%why, "whether a write needs new space can't be told; it waits for room");
                    true
                }
            };
            let event = PeerEvent::HolesFound { incarnation, stream, tag, holes };
            // A volume task that has ended needs no answer.
            let _ended = events.blocking_send(event);
        });
    }

    /// The way to a replica is blocked: its queue is full, or its stream just ended.
    fn blocked(&mut self, replica: ReplicaId) {
        self.inbox.push_back(Input::Unreachable { replica, refused: false });
    }

    fn start_base(&mut self, mark: Incomplete) {
        let Some(lane) = self.outgoing.base(mark.session) else {
            let (session, cause) = (mark.session, FailureKind::Transport);
            self.inbox.push_back(Input::BaseFailed { session, cause });
            return;
        };
        let blocks = self.replica.view(clock::now()).committed_blocks;
        lane.start(BaseSource {
            mark,
            reads: self.base_reads.clone(),
            regions: self.disk.base_regions(&mark),
            table: self.disk.region_table(),
            blocks,
            pace: Arc::clone(&self.context.pace),
            threads: self.home.threads().clone(),
            status: self.shared.status.subscribe(),
        });
    }

    fn stop_base(&mut self, session: sbk_engine::replication::message::RecoveryId) {
        self.outgoing.stop_base(session);
        self.incoming.stop_base(session);
        if self.receiving == Some(session) {
            self.receiving = None;
        }
    }

    fn propose(&mut self, proposal: Proposal) {
        self.urgent = true;
        let (id, incarnation) = (proposal.id, self.me.incarnation);
        let order = ProposalOrder { proposal, answers: self.shared.control.clone() };
        if self.context.proposals.try_send(order).is_err() {
            // Not sent: the outcome is as unknown as that of one that got lost.
            tracing::warn!(volume = %self.volume, "proposals wait for the masters; one was dropped");
            let answer = Control::Answered { incarnation, proposal: id, config: None };
            // A full queue loses the answer, which the engine also takes for silence.
            let _full = self.shared.control.try_send(answer);
        }
    }
}
