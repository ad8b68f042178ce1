//! What a volume task does with events from other replicas.

use sbk_engine::recovery::FailureKind;
use sbk_engine::replication::io::Input;
use sbk_engine::replication::message::{Append, Lineage, RecoveryId, ToReplica};
use tokio::task::block_in_place;

use super::disk::{Disk, DiskError};
use super::events::{AnswerPath, PeerEvent};
use super::task::Running;
use crate::transport::{EntriesLost, Recover, WireEntry};

impl<D: Disk> Running<D> {
    pub(super) async fn peer(&mut self, event: PeerEvent) -> Result<(), DiskError> {
        match event {
            PeerEvent::FromPrimary { lineage, message, entries, answers } => {
                let on_feed = matches!(answers, AnswerPath::Feed(_));
                if on_feed && (self.disk.wal_full() || !self.stalled.is_empty()) {
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
            PeerEvent::FromReplica { lineage, message, entries } => {
                self.fed = entries;
                let result = self.step(Input::FromReplica { lineage, message }).await;
                self.fed.clear();
                result
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
                let current = self.outgoing.feed_ended(replica, lane);
                let cause = self.entries_lost(lost)?;
                if !current {
                    return Ok(());
                }
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
            PeerEvent::BaseBlocks { session, lineage, lba, data, answers } => {
                if self.receiving == Some(session) {
                    block_in_place(|| self.disk.write_base(lba, &data))?;
                    self.taken_bytes += data.len() as u64;
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
                self.base_failed(session, lane, cause).await
            }
            PeerEvent::BaseProgress { session, bytes } => {
                self.step(Input::BaseProgress { session, bytes }).await
            }
            PeerEvent::BaseSent { session, through } => {
                self.step(Input::BaseSent { session, through }).await
            }
        }
    }

    async fn base_failed(
        &mut self,
        session: RecoveryId,
        lane: Option<super::events::LaneId>,
        cause: FailureKind,
    ) -> Result<(), DiskError> {
        let ours = match lane {
            Some(lane) => self.outgoing.base_ended(session, lane),
            None => self.receiving == Some(session),
        };
        if !ours {
            return Ok(());
        }
        self.step(Input::BaseFailed { session, cause }).await?;
        self.incoming.stop_base(session);
        Ok(())
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

    /// The WAL has no room for a feed message. What it says of frontiers is taken at once, for it
    /// is the commit that lets the checkpoint make room; its entries wait, and so does what follows
    /// on the feed.
    async fn stall(
        &mut self,
        lineage: Lineage,
        message: ToReplica,
        entries: Vec<WireEntry>,
        answers: AnswerPath,
    ) -> Result<(), DiskError> {
        self.urgent |= self.stalled.is_empty();
        let frontier = match (&message, &answers) {
            (ToReplica::Append(append), AnswerPath::Feed(way)) => {
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
                | ToReplica::BeginRebuild { .. }
                | ToReplica::Close { .. },
                AnswerPath::Call(_) | AnswerPath::Feed(_) | AnswerPath::Base(_),
            ) => None,
        };
        self.stalled.push_back(PeerEvent::FromPrimary { lineage, message, entries, answers });
        match frontier {
            Some((message, way)) => self.hear_primary(lineage, message, Vec::new(), way).await,
            None => Ok(()),
        }
    }

    fn stalled_prev(&self) -> Option<sbk_engine::types::Lsn> {
        self.stalled.iter().find_map(|event| match event {
            PeerEvent::FromPrimary { message: ToReplica::Append(append), .. } => Some(append.prev),
            _ => None,
        })
    }

    /// Takes what waited for room in the WAL, as far as there is some.
    pub(super) async fn unstall(&mut self) -> Result<(), DiskError> {
        while !self.stalled.is_empty() && !self.disk.wal_full() {
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
