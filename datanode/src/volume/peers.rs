//! What a volume task does with events from other replicas.

use sbk_engine::recovery::FailureKind;
use sbk_engine::replication::io::{Input, Reader};
use sbk_engine::replication::message::{Append, Lineage, ToReplica};
use sbk_engine::replication::room::Room;
use sbk_engine::types::Lsn;
use tokio::task::block_in_place;

use super::disk::{Disk, DiskError};
use super::events::{AnswerPath, PeerEvent};
use super::task::Running;
use crate::transport::{Beside, EntriesLost, Recover, WireEntry, ZEROS_BYTES};

/// Feed messages that wait for room in the WAL: all of a primary's window.
const MAX_STALLED: usize = 1024;
/// Those that wait for room on a disk, which may take long: enough to show what is missing.
const MAX_WITHOUT_ROOM: usize = 16;

impl<D: Disk> Running<D> {
    pub(super) async fn peer(&mut self, event: PeerEvent) -> Result<(), DiskError> {
        match event {
            PeerEvent::FromPrimary { lineage, message, entries, answers } => {
                let on_feed = matches!(answers, AnswerPath::Feed(_));
                if on_feed && (self.takes_nothing() || !self.stalled.is_empty()) {
                    return self.stall(lineage, message, entries, answers).await;
                }
                if matches!(
                    message,
                    ToReplica::Fence { .. }
                        | ToReplica::Cut { .. }
                        | ToReplica::BeginRebuild { .. }
                ) {
                    // A feed begins anew after it; what waits is of the old one.
                    self.stalled.clear();
                }
                self.hear_primary(lineage, message, entries, answers).await
            }
            PeerEvent::FromReplica { lineage, message, beside } => {
                match beside {
                    Beside::Entries(entries) => self.fed = entries,
                    Beside::Blocks(blocks) => self.told = blocks,
                }
                let result = self.step(Input::FromReplica { lineage, message }).await;
                self.fed.clear();
                self.told.clear();
                result
            }
            PeerEvent::AskedRotten { incarnation, blocks, why } => {
                if incarnation == self.me.incarnation {
                    self.step(Input::Rotten { reader: Reader::Asked, blocks, why }).await?;
                }
                Ok(())
            }
            PeerEvent::BaseRotten { session, blocks, why } => {
                self.step(Input::Rotten { reader: Reader::Base { session }, blocks, why }).await
            }
            PeerEvent::Unreachable { replica, refused } => {
                self.step(Input::Unreachable { replica, refused }).await
            }
            PeerEvent::FeedBroken { replica, lane, refused } => {
                if !self.outgoing.feed_ended(replica, lane) {
                    return Ok(());
                }
                self.step(Input::Unreachable { replica, refused }).await
            }
            PeerEvent::FeedFailed { replica, lane, lost } => {
                // What an abandoned feed still reads may have been cut since. Whatever the disk does not give
                // back is found again by the feed that comes after it. [A primary was replaced and cut while
                // one of its feeds was held back; what that one read then was zeros, and the store failed.]
                if !self.outgoing.feed_ended(replica, lane) {
                    return Ok(());
                }
                let cause = self.entries_lost(lost)?;
                self.step(Input::FeedFailed { replica, cause }).await
            }
            PeerEvent::LogUnreadable { incarnation, generation, lsn, what } => {
                // A cut overwrites what a reader may be at. [A voter was read for a candidate while
                // another one had it cut, and took the zeros for a failure of its disk.]
                if incarnation == self.me.incarnation && generation == self.replica.generation() {
                    self.entries_lost(EntriesLost::Unreadable { lsn, what })?;
                }
                Ok(())
            }
            PeerEvent::DataFound { incarnation, search, found, error } => {
                if incarnation == self.me.incarnation {
                    self.step(Input::DataFound { search, found, error }).await?;
                }
                Ok(())
            }
            PeerEvent::HolesFound { incarnation, stream, tag, holes } => {
                if incarnation == self.me.incarnation {
                    self.step(Input::HolesFound { stream, tag, holes }).await?;
                }
                Ok(())
            }
            PeerEvent::BaseBlocks { session, .. }
                if self.receiving == Some(session) && self.space.borrow().room > Room::Ample =>
            {
                // The base of a rebuild is no reason to fill a disk.
                self.receiving = None;
                let cause = FailureKind::NoSpace;
                self.step(Input::BaseFailed { session, cause }).await?;
                self.incoming.stop_base(session);
                Ok(())
            }
            PeerEvent::BaseBlocks { session, lineage, lba, data, answers } => {
                if self.receiving == Some(session) {
                    block_in_place(|| self.disk.write_base(lba, &data))?;
                    self.taken_bytes += data.len() as u64;
                    answers.push(answer_to(lineage), Recover::Taken(self.taken_bytes));
                }
                Ok(())
            }
            PeerEvent::BaseZeros { session, lineage, range, answers } => {
                if self.receiving == Some(session) {
                    block_in_place(|| self.disk.write_base_zeros(range))?;
                    self.taken_bytes += ZEROS_BYTES;
                    answers.push(answer_to(lineage), Recover::Taken(self.taken_bytes));
                }
                Ok(())
            }
            PeerEvent::BaseRegions { session, first, lsns, lineage: _ } => {
                if self.receiving == Some(session) {
                    block_in_place(|| self.disk.write_regions(first, &lsns))?;
                }
                Ok(())
            }
            PeerEvent::BaseEnd { session, lineage, answers } => {
                if self.receiving == Some(session) {
                    answers.push(answer_to(lineage), Recover::Taken(self.taken_bytes));
                }
                Ok(())
            }
            PeerEvent::BaseFailed { session, lane, cause } => {
                if !self.outgoing.base_ended(session, lane) {
                    return Ok(());
                }
                self.step(Input::BaseFailed { session, cause }).await
            }
            PeerEvent::BaseLost { session, answers } => {
                // An order that came late has a lane of its own, whose end is not the session's.
                if self.receiving != Some(session) || !self.incoming.is_base(session, &answers) {
                    return Ok(());
                }
                let cause = FailureKind::Transport;
                self.step(Input::BaseFailed { session, cause }).await?;
                self.incoming.stop_base(session);
                Ok(())
            }
            PeerEvent::BaseProgress { session, bytes } => {
                self.step(Input::BaseProgress { session, bytes }).await
            }
            PeerEvent::BaseSent { session, through } => {
                self.step(Input::BaseSent { session, through }).await
            }
        }
    }

    async fn hear_primary(
        &mut self,
        lineage: Lineage,
        message: ToReplica,
        entries: Vec<WireEntry>,
        answers: AnswerPath,
    ) -> Result<(), DiskError> {
        self.incoming.begin(&lineage, &message, answers);
        self.fed = entries;
        let result = self.step(Input::FromPrimary { lineage, message }).await;
        self.fed.clear();
        self.incoming.finish();
        result
    }

    /// The WAL, or the disk, has no room for a feed message. What it says of frontiers is taken at once, for it
    /// is the commit that lets the checkpoint make room; its entries wait, and so does what follows
    /// on the feed. What finds no place is dropped: the primary sends it again, entries once an append
    /// shows that they are missing. Messages are taken in any case, for a cut may be what makes room.
    /// [A log was full of entries that could not be committed. Each heartbeat took a place, and when
    /// there was none left the replica heard no primary any more, not the one either that would cut it.]
    async fn stall(
        &mut self,
        lineage: Lineage,
        message: ToReplica,
        entries: Vec<WireEntry>,
        answers: AnswerPath,
    ) -> Result<(), DiskError> {
        let most = if self.disk.wal_full() { MAX_STALLED } else { MAX_WITHOUT_ROOM };
        let mut waits = self.stalled.len() < most;
        let frontier = match (&message, &answers) {
            (ToReplica::Append(append), AnswerPath::Feed(way)) => {
                // Behind one that was dropped each would only show again that it is missing.
                let follows = self.stalled_end().is_none_or(|end| append.prev <= end);
                waits &= follows && !append.entries.is_empty();
                // Nothing of this feed is missing below the first that waits.
                let prev = self.stalled_prev().unwrap_or(append.prev);
                let append = Append { entries: Vec::new(), prev, ..append.clone() };
                Some((ToReplica::Append(append), AnswerPath::Feed(std::sync::Arc::clone(way))))
            }
            (
                ToReplica::Append(_)
                | ToReplica::Probe { .. }
                | ToReplica::Fence { .. }
                | ToReplica::Cut { .. }
                | ToReplica::Fetch { .. }
                | ToReplica::ReadBlocks { .. }
                | ToReplica::BeginRebuild { .. }
                | ToReplica::Close { .. },
                AnswerPath::Call(_) | AnswerPath::Feed(_) | AnswerPath::Base(_),
            ) => None,
        };
        if waits {
            self.urgent |= self.stalled.is_empty();
            self.stalled.push_back(PeerEvent::FromPrimary { lineage, message, entries, answers });
        }
        match frontier {
            Some((message, way)) => self.hear_primary(lineage, message, Vec::new(), way).await,
            None => Ok(()),
        }
    }

    /// Whether nothing is to be added to the log: it waits for a checkpoint, or the disk is so full that the
    /// store might fail.
    fn takes_nothing(&self) -> bool {
        self.disk.wal_full() || self.space.borrow().room == Room::Full
    }

    fn stalled_appends(&self) -> impl DoubleEndedIterator<Item = &Append> {
        self.stalled.iter().filter_map(|event| match event {
            PeerEvent::FromPrimary { message: ToReplica::Append(append), .. } => Some(append),
            _ => None,
        })
    }

    fn stalled_prev(&self) -> Option<Lsn> {
        self.stalled_appends().next().map(|append| append.prev)
    }

    /// The last entry that waits.
    fn stalled_end(&self) -> Option<Lsn> {
        self.stalled_appends().next_back()?.entries.last().map(|header| header.lsn)
    }

    /// Takes what waited for room, as far as there is some.
    pub(super) async fn unstall(&mut self) -> Result<(), DiskError> {
        while !self.stalled.is_empty() && !self.takes_nothing() {
            self.urgent |= self.stalled.len() == 1;
            if let Some(PeerEvent::FromPrimary { lineage, message, entries, answers }) =
                self.stalled.pop_front()
            {
                self.hear_primary(lineage, message, entries, answers).await?;
                while let Some(input) = self.inbox.pop_front() {
                    self.step(input).await?;
                }
            }
        }
        Ok(())
    }
}

/// The lineage of an answer on the base lane.
fn answer_to(question: Lineage) -> Lineage {
    Lineage { from: question.to, to: question.from, ..question }
}
