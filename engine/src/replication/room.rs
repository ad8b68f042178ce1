//! What a primary logs while a disk of its volume runs out of room.
//!
//! A disk that is full stops the store on it, and the volume goes on with one replica fewer, or not at all.
//! So long before that a replica says that its disk is short of room, beside its acknowledgements, and the
//! primary logs nothing any more that takes new space: a write to a block that holds nothing waits, as
//! requests do in a failover. Reads, flushes, trims and overwrites go on. On a disk that is nearly full no
//! write is logged at all, for the log itself may need space. It ends by itself, in order, when there is room again.
//!
//! Whether a write takes new space is not known here: the store is asked, but only while some disk is short
//! of room. What it tells stays true until the write is logged, for nothing else is logged to these blocks
//! before it: requests that touch them and came later wait behind it, those that came earlier are logged.
//!
//! Whom it waits for is a matter of the mode, as for a commit: in `sync_all` every counted replica, in
//! `sync_quorum` a majority of the voters, in `best_effort` itself. One that has told nothing in this tenure
//! is waited for too, since it has acknowledged nothing either. [A primary was replaced while a member's disk
//! was short of room. The new one had not heard of it, and logged what filled it.]

use serde::{Deserialize, Serialize};

use super::clients::Key;
use super::core::Core;
use super::io::{Op, Output, Request, StreamId};
use super::log::{BlockRange, RequestTag};
use super::peer::Peer;
use super::primary::Primary;
use super::{IgnoredReason, Verdict};
use crate::bugs::{Bug, on};
use crate::types::{Durability, ReplicaId};

/// How much room there is on a replica's disk.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Room {
    /// Enough.
    #[default]
    Ample,
    /// Less than the growth watermark: nothing is to be written where nothing was.
    Short,
    /// So little that the log itself may find none.
    Full,
}

/// The room on a replica's disk, with what it was told from, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Space {
    /// How it is judged.
    pub room: Room,
    /// Bytes that replicas may still take there, as of when that last changed.
    pub free: u64,
    /// Bytes that replicas could take in all.
    pub size: u64,
    /// The growth watermark, in bytes.
    pub watermark: u64,
}

impl std::fmt::Display for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: u64| bytes >> 20;
        let Self { room, free, size, watermark } = self;
        write!(f, "{} MiB free of {} MiB, ", mib(*free), mib(*size))?;
        match room {
            Room::Ample => write!(f, "enough for the growth watermark of {} MiB", mib(*watermark)),
            Room::Short => write!(f, "below its growth watermark of {} MiB", mib(*watermark)),
            Room::Full => {
                write!(f, "far below its growth watermark of {} MiB", mib(*watermark))
            }
        }
    }
}

/// What a replica says of its disk, beside each acknowledgement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SpaceTold {
    /// The room.
    pub space: Space,
    /// Counts the changes in this run of the replica: what comes late is told from what is true.
    pub change: u64,
}

/// What is known of a request's need for space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Need {
    /// The store was asked.
    Asked,
    /// It takes new space, or that can't be told.
    Grows,
    /// Its blocks hold something.
    Fits,
}

/// A request that writes data, and where.
fn writes(op: Op) -> Option<BlockRange> {
    match op {
        Op::Write(range) | Op::PartialWrite(range) => Some(range),
        Op::Read(_) | Op::Trim(_) | Op::Zero(_) | Op::Flush | Op::Detach => None,
    }
}

impl Core {
    /// The driver looked at the disk. Returns whether others are to hear of it.
    pub(super) fn note_space(&mut self, space: Space) -> bool {
        let before = self.space.replace(SpaceTold { space, change: 0 });
        let told = before.unwrap_or_default();
        let changed = told.space.room != space.room;
        let change = told.change + u64::from(changed);
        self.space = Some(SpaceTold { space, change });
        changed
    }

    /// Whether its disk is short of room.
    pub(super) fn is_short(&self) -> bool {
        self.space.is_some_and(|told| told.space.room > Room::Ample)
    }
}

impl Peer {
    /// It says how much room it has. What was under way for long is not how it is now. [A member said that
    /// it had room again, and a late copy of what it had said before had the clients wait; or the other way
    /// round, and its disk ran full.]
    pub(super) fn note_space(&mut self, told: SpaceTold) {
        let late = self.space.is_some_and(|known| told.change < known.change);
        if !late || on(Bug::LateWordOfRoom) {
            self.space = Some(told);
        }
    }

    /// Whether it said that it takes nothing.
    pub(super) fn is_full(&self) -> bool {
        self.space.is_some_and(|told| told.space.room == Room::Full)
    }

    fn is_short(&self) -> bool {
        self.space.is_some_and(|told| told.space.room > Room::Ample)
    }

    fn room(&self) -> Room {
        let told = self.space.map(|told| told.space.room);
        // It may be anything.
        told.unwrap_or(if on(Bug::RoomUnasked) { Room::Ample } else { Room::Full })
    }
}

impl Primary {
    /// The room that counts: of those that must store what is logged, the least.
    pub(super) fn room(&self, core: &Core) -> Room {
        // A driver that doesn't look at its disk tells nothing.
        let Some(own) = core.space.filter(|_| !on(Bug::GrowthOnShortDisk)) else {
            return Room::Ample;
        };
        let own = own.space.room;
        let others = match self.config.durability {
            Durability::SyncAll => {
                let counted = self.peers.values().filter(|peer| self.counts(peer));
                counted.map(Peer::room).max().unwrap_or_default()
            }
            Durability::SyncQuorum => {
                let enough = |most: Room| self.majority_has(|peer| peer.room() <= most);
                match (enough(Room::Ample), enough(Room::Short)) {
                    (true, _) => Room::Ample,
                    (false, true) => Room::Short,
                    (false, false) => Room::Full,
                }
            }
            Durability::BestEffort => Room::Ample,
        };
        own.max(others)
    }

    /// Whether a request that waits must go on waiting for room. If that depends on what its blocks hold, the
    /// store is asked; nothing that was logged or came before it may be about to change that.
    pub(super) fn waits_for_room(&mut self, core: &mut Core, key: Key, request: &Request) -> bool {
        let Some(range) = writes(request.op) else { return false };
        let room = self.room(core);
        if room == Room::Ample || self.was_logged(core, request.tag) {
            return false;
        }
        self.clients.grew |= room == Room::Full;
        match (room, self.clients.needs.get(&key)) {
            (_, Some(Need::Asked)) => true,
            (Room::Short, Some(Need::Fits)) => false,
            (_, Some(Need::Fits | Need::Grows)) => {
                self.clients.grew = true;
                true
            }
            (_, None) if room == Room::Full => true,
            (_, None) => {
                let (stream, tag) = key;
                self.clients.needs.insert(key, Need::Asked);
                core.out.push(Output::LookForHoles { stream, tag, range });
                true
            }
        }
    }

    /// Whether a request came before, and was logged then: it only wants its answer.
    fn was_logged(&self, core: &Core, tag: RequestTag) -> bool {
        let session = core.log.state.sessions.get(&tag.session);
        session.is_some_and(|session| {
            tag.sequence <= session.low || session.logged.contains_key(&tag.sequence)
        })
    }

    /// The store looked whether blocks of a request hold nothing.
    pub(super) fn holes_found(
        &mut self,
        stream: StreamId,
        tag: RequestTag,
        holes: bool,
    ) -> Verdict {
        match self.clients.needs.get_mut(&(stream, tag)) {
            Some(need) if *need == Need::Asked => {
                *need = if holes { Need::Grows } else { Need::Fits };
                Verdict::Applied
            }
            Some(_) | None => Verdict::Ignored(IgnoredReason::UnknownStream),
        }
    }

    /// Notes whether requests wait for room, for people.
    pub(super) fn note_room(&mut self, core: &mut Core) {
        // Members that have told nothing yet are what a new primary waits for anyway.
        let short = core.is_short() || self.peers.values().any(|peer| peer.is_short());
        let waits = std::mem::take(&mut self.clients.grew) && self.ready && short;
        if waits && !self.growth_waits {
            let why = self.why_waiting(core);
            core.trace("growth-waits", why);
        } else if !waits && self.growth_waits {
            core.trace("growth-goes-on", "there is room again, or nothing waits for it".to_owned());
        }
        self.growth_waits = waits;
    }

    /// Why requests wait for room, in words.
    fn why_waiting(&self, core: &Core) -> String {
        let of = |id: ReplicaId, told: SpaceTold| match self.config.replicas.get(&id) {
            Some(placement) => format!("node {} has {}", placement.node, told.space),
            None => format!("replica {id} has {}", told.space),
        };
        let short = |told: &SpaceTold| told.space.room > Room::Ample;
        let counted = self
            .peers
            .values()
            .filter(|peer| self.counts(peer) && self.config.durability != Durability::BestEffort);
        let own = core.space.filter(short).map(|told| of(core.me.id, told));
        let told = counted.clone().filter_map(|peer| Some(of(peer.id, peer.space.filter(short)?)));
        let mut who: Vec<_> = own.into_iter().chain(told).collect();
        let unknown = counted.filter(|peer| peer.space.is_none());
        who.extend(unknown.map(|peer| format!("replica {} has not told how much it has", peer.id)));
        let what = match self.room(core) {
            Room::Full => "writes wait for room",
            Room::Ample | Room::Short => "writes that need new space wait for room",
        };
        format!("{what}: {}", who.join("; "))
    }

    /// Why requests wait for room, if any do.
    pub(super) fn show_room(&self, core: &Core) -> Option<String> {
        self.growth_waits.then(|| self.why_waiting(core))
    }
}
