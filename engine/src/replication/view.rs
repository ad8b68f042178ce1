//! What a replica shows of itself: derived from its state, never fed back into it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::core::Core;
use super::mend::MendCounts;
use super::message::Incomplete;
use super::primary::Primary;
use super::room::Space;
use crate::types::{
    AttachGeneration, Config, Epoch, Incarnation, LossGeneration, Lsn, Millis, NodeId, ReplicaId,
    ReplicaRef, SessionId, TailId,
};

/// A replica as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// The replica, in its incarnation.
    pub me: ReplicaRef,
    /// What it is.
    pub role: RoleView,
    /// The epoch it acts in: a primary's own, else the fenced one.
    pub epoch: Epoch,
    /// The newest configuration that it knows.
    pub config: Option<Config>,
    /// Primary: reconciled itself and every promise to an earlier primary waited out.
    pub ready: bool,
    /// Primary: reads and writes are answered now, or as soon as its members have promised anew
    /// in an epoch that just began.
    pub serving: bool,
    /// Why it is not serving, or what is not whole; empty if all is well.
    pub reason: String,
    /// Last LSN logged.
    pub end: Lsn,
    /// Last LSN that is in the log's file, synced or not.
    pub written: Lsn,
    /// R: last LSN that is durable.
    pub durable: Lsn,
    /// Last LSN that is known to be committed.
    pub committed: Lsn,
    /// Last LSN that is in the extents.
    pub checkpoint: Lsn,
    /// S: oldest LSN in the WAL.
    pub retained: Lsn,
    /// Newest epoch in the table.
    pub table_epoch: Option<Epoch>,
    /// Set while a base lane is unfinished.
    pub incomplete: Option<Incomplete>,
    /// Its log may have lost its end.
    #[serde(default)]
    pub doubtful: bool,
    /// The loss generation that its log was last reconciled under.
    pub loss_generation: LossGeneration,
    /// The primaries, itself aside, that hold a promise of it that has not run out.
    pub promised: BTreeSet<ReplicaId>,
    /// Primary: in-sync members that it lacks.
    pub lacking: Vec<ReplicaId>,
    /// Primary: for how long it has lacked one without a break, in milliseconds.
    pub lacking_ms: u64,
    /// Primary: how far it is with handing its role over.
    #[serde(default)]
    pub handover: HandoverView,
    /// Its tail.
    pub tail: TailId,
    /// The epoch that it stood for the end of, once its log is synced.
    pub stood: Option<Epoch>,
    /// Primary: the other replicas.
    pub peers: BTreeMap<ReplicaId, PeerView>,
    /// Open frontend sessions in the log.
    pub sessions: usize,
    /// The highest attach generation logged; a primary's: that clients may have been told of.
    pub attach: AttachGeneration,
    /// Primary: the attachments in force.
    pub attachments: Vec<AttachmentView>,
    /// The volume's size in blocks as of the log's end.
    #[serde(default)]
    pub blocks: u64,
    /// The volume's size in blocks as of what is known to be committed.
    #[serde(default)]
    pub committed_blocks: u64,
    /// Primary: requests of frontends that were not answered yet.
    pub in_flight: usize,
    /// What became of rotten blocks since it was opened.
    #[serde(default)]
    pub mends: MendCounts,
    /// The room on its disk, as far as it was told.
    #[serde(default)]
    pub space: Space,
    /// Primary: requests of frontends wait for room on a disk.
    #[serde(default)]
    pub growth_waits: bool,
}

/// How far a primary is with handing its role over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HandoverView {
    /// Nobody wants it to.
    #[default]
    None,
    /// It is to, and can't yet: why.
    Waits(String),
    /// It takes no requests, and brings the heir to its head.
    Draining(ReplicaId),
    /// It has stopped, and asked the masters to make the other one primary.
    Proposed(ReplicaId),
}

/// An attachment in force, as the primary sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentView {
    /// Whose.
    pub session: SessionId,
    /// Its generation.
    pub generation: AttachGeneration,
    /// Whether it has the volume to itself.
    pub exclusive: bool,
    /// Whether its frontend is connected now.
    pub connected: bool,
    /// The frontend's node; `None` if it was not seen since this primary took over.
    pub node: Option<NodeId>,
    /// For how long this primary has known it, in milliseconds.
    pub held_ms: Option<u64>,
    /// The newest entry that it caused.
    pub newest: Lsn,
}

/// What a replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoleView {
    /// Nobody told it anything yet.
    Idle,
    /// It follows a primary.
    Follower,
    /// It orders writes.
    Primary,
    /// Its store failed.
    Stopped,
    /// Its volume was deleted.
    Deleted,
}

/// Another replica, as the primary sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerView {
    /// Where it is.
    pub addr: String,
    /// In which incarnation it was last met.
    pub incarnation: Option<Incarnation>,
    /// Listed in the in-sync set.
    pub in_sync: bool,
    /// Must acknowledge: listed, or about to join.
    pub counted: bool,
    /// What it durably holds, as far as it acknowledged.
    pub acked: Option<Lsn>,
    /// Entries that it lacks.
    pub lag: u64,
    /// The room on its disk, once it told.
    #[serde(default)]
    pub space: Option<Space>,
    /// What the recovery engine makes of it.
    pub recovery: Option<crate::recovery::ReplicaView>,
}

impl Primary {
    /// Fills in a primary's part of a view.
    pub(super) fn show(&self, core: &Core, now: Millis, view: &mut View) {
        view.role = RoleView::Primary;
        view.epoch = self.config.epoch;
        view.ready = self.ready;
        view.serving = self.serving(now);
        view.lacking = self.lacking(now);
        view.lacking_ms = self.lacking_since.map_or(0, |since| now.since(since));
        view.in_flight = self.clients.in_flight();
        view.handover = self.show_handover(core);
        view.attach = self.decided(core);
        view.attachments = self.attachments(core, now);
        view.reason = self.why_not_serving(core, now);
        if let Some(why) = self.why_crowded(core).filter(|_| self.ready) {
            let why = if view.reason.is_empty() { why } else { format!("{}; {why}", view.reason) };
            view.reason = why;
        }
        view.growth_waits = self.growth_waits;
        if let Some(why) = self.show_room(core) {
            let why = if view.reason.is_empty() { why } else { format!("{}; {why}", view.reason) };
            view.reason = why;
        }
        if let HandoverView::Waits(why) = &view.handover
            && view.reason.is_empty()
        {
            view.reason.clone_from(why);
        }
        if let Some(why) = self.show_size(core).filter(|_| view.reason.is_empty()) {
            view.reason = why;
        }
        for peer in self.peers.values() {
            let shown = PeerView {
                addr: peer.addr.clone(),
                incarnation: peer.incarnation,
                in_sync: self.config.isr.contains(&peer.id),
                counted: self.counts(peer),
                acked: peer.acked,
                lag: core.log.end.0 - peer.acked.unwrap_or(peer.progress).0.min(core.log.end.0),
                space: peer.space.map(|told| told.space),
                recovery: self.recovery.view(peer.id),
            };
            view.peers.insert(peer.id, shown);
        }
    }

    fn why_not_serving(&self, core: &Core, now: Millis) -> String {
        let (size, least) = (self.config.isr.len(), self.config.min_in_sync);
        let lacking = self.lacking(now);
        if let Some(why) = self.why_not_whole() {
            return why;
        }
        if let Some(to) = self.handed_over_to() {
            return format!("has stopped and asked the masters to make {} primary", to.id);
        }
        if !self.ready && now < self.wait_until {
            return format!(
                "waits {} ms for promises made to earlier primaries",
                self.wait_until.since(now)
            );
        }
        if !self.ready
            && core.log.durable == core.log.end
            && core.recorded != Some(self.config.epoch)
        {
            return "waits for a checkpoint: its superblock has no room for another epoch"
                .to_owned();
        }
        if !self.ready {
            return format!("syncs its log up to {} before it serves", core.log.end);
        }
        if !self.large_enough() {
            return format!("{size} replicas are in sync, {least} are needed");
        }
        if !lacking.is_empty() {
            let names: Vec<_> = lacking.iter().map(ToString::to_string).collect();
            let who =
                if self.by_majority() { "a majority, lacks voters" } else { "in-sync replicas" };
            return format!("waits for {who}: {}", names.join(", "));
        }
        String::new()
    }
}
