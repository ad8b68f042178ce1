//! What of the log is kept for others: segments behind the checkpoint, and payloads that it refers to.
//!
//! Payloads that were placed count as if they were in the log's files. They are let go one by one and not with
//! the segment: one segment refers to a thousand times what it has. So the log is *given up* to there, which
//! is read as if its segments were gone.
//!
//! While the disk is short of room none is placed, and none is kept for others. Both take a second home of a
//! block beside the one that it has, and overwrites are to need no new space then.

use std::sync::atomic::Ordering;

use sbk_engine::bugs::{Bug, on};
use sbk_engine::replication::message::RecoveryId;
use sbk_engine::types::Lsn;

use super::core::Store;

impl Store {
    /// Keeps the WAL from `from` on for a session, as long as the bound on pins allows.
    pub fn pin(&mut self, session: RecoveryId, from: Lsn) {
        self.lost_pins.remove(&session);
        if from < self.retained() {
            self.lost_pins.insert(session);
        } else {
            self.pins.insert(session, from);
        }
    }

    /// The session needs its pin no more.
    pub fn unpin(&mut self, session: RecoveryId) {
        self.pins.remove(&session);
        self.lost_pins.remove(&session);
    }

    /// Whether the bound on pinned WAL, or recycling before the pin, took the session's pin.
    pub fn pin_lost(&self, session: RecoveryId) -> bool {
        self.lost_pins.contains(&session)
    }

    /// Whether any session lost its pin.
    pub fn lost_a_pin(&self) -> bool {
        !self.lost_pins.is_empty()
    }

    fn is_pinned(&self, lsn: Lsn) -> bool {
        self.pins.values().any(|from| *from <= lsn)
    }

    /// The disk is short of room, or is not any more.
    pub fn set_short(&mut self, short: bool) {
        self.short = short;
    }

    /// The oldest entry in the image that refers to its payload, and how many bytes that has.
    fn oldest_payload(&self) -> Option<(Lsn, u64)> {
        self.references.oldest().filter(|(lsn, _)| *lsn <= self.checkpoint)
    }

    /// Whether payloads up to `lsn` are kept for nobody but sessions that have a pin.
    fn is_kept_no_more(&self, lsn: Lsn) -> bool {
        self.short || lsn <= self.ages.old()
    }

    /// Whether something has been kept for others long enough: the oldest segment, or a payload.
    pub(super) fn outlived(&self) -> bool {
        let payload = self.oldest_payload();
        if payload.is_some_and(|(lsn, _)| self.is_kept_no_more(lsn) && !self.is_pinned(lsn)) {
            return true;
        }
        let mut segments = self.log.segments().map(|(_, last, _)| Lsn(last));
        // The newest one is in use.
        let (Some(last), Some(_)) = (segments.next(), segments.next()) else { return false };
        last <= self.ages.old() && last < self.checkpoint && !self.is_pinned(last)
    }

    /// Lets go of what is checkpointed, beyond what is retained for catch-up: of segments, and of payloads. A
    /// pin keeps them, up to its own bound; then it is lost. Returns whether segments went.
    pub(super) fn release(&mut self) -> bool {
        self.give_up_payloads();
        let mut released = false;
        // What stays is at least what is to be retained: a replica that was away for less than that catches up.
        while let Some((last, bytes)) = self.oldest_spent() {
            let behind =
                self.segments_behind(last) + self.references.payload(last, self.checkpoint);
            let kept = behind < self.options.wal_retain_bytes
                && last > self.ages.old()
                && last > self.given_up;
            if kept || self.held_by_pin(last, bytes + behind) || !self.log.release_oldest() {
                break;
            }
            released = true;
            self.drop_pins();
        }
        released
    }

    fn give_up_payloads(&mut self) {
        let mut payload = self.references.payload(Lsn(0), self.checkpoint);
        while let Some((lsn, bytes)) = self.oldest_payload() {
            payload -= bytes;
            let behind = self.segments_behind(lsn) + payload;
            let kept = behind < self.options.wal_retain_bytes && !self.is_kept_no_more(lsn);
            if kept || self.held_by_pin(lsn, bytes + behind) {
                return;
            }
            self.given_up = self.given_up.max(lsn);
            self.drop_pins();
        }
    }

    /// Whether something up to `lsn` stays for a session, `bytes` of log with it.
    fn held_by_pin(&self, lsn: Lsn, bytes: u64) -> bool {
        let most = self.options.wal_retain_bytes + self.options.wal_pin_bytes;
        let outlived = on(Bug::AgeOverPins) && lsn <= self.ages.old();
        self.is_pinned(lsn) && bytes <= most && !outlived
    }

    /// The oldest segment that may go: not the one with the checkpoint's last entry, so that a cut always leaves one.
    /// [The log was cut to the checkpoint, which left no segment, and an opening found an older one that waited to
    /// be used again, with a copy of what had been cut behind its records.]
    fn oldest_spent(&self) -> Option<(Lsn, u64)> {
        self.spent().next().filter(|(last, _)| *last < self.checkpoint)
    }

    /// The segments that are in the image as a whole, oldest first: the last entry and the bytes of each.
    fn spent(&self) -> impl Iterator<Item = (Lsn, u64)> + '_ {
        let all = self.log.segments().map(|(_, last, bytes)| (Lsn(last), bytes));
        all.take_while(|(last, _)| *last <= self.checkpoint)
    }

    /// Bytes of the spent segments that begin behind `lsn`.
    fn segments_behind(&self, lsn: Lsn) -> u64 {
        let containing = |(last, _): &(Lsn, u64)| *last < lsn;
        let behind = self.spent().skip_while(containing);
        // The one that has it.
        behind.skip(1).map(|(_, bytes)| bytes).sum()
    }

    /// Pins of what is not retained any more are lost, and nobody needs the payloads that it referred to.
    pub(super) fn drop_pins(&mut self) {
        let retained = self.retained();
        self.log_begins.store(retained.0, Ordering::SeqCst);
        self.references.release(retained);
        let lost: Vec<RecoveryId> =
            self.pins.iter().filter(|(_, from)| **from < retained).map(|(s, _)| *s).collect();
        for session in lost {
            tracing::info!(session = ?session, %retained, "a WAL pin was lost");
            self.pins.remove(&session);
            self.lost_pins.insert(session);
        }
    }
}
