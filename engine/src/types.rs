//! Identities and quantities that every part of sbk shares.
//!
//! All are newtypes, so that an LSN can't be passed where an epoch is meant, and none uses 0 or
//! an empty string for "none": absence is an `Option`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::bugs::{Bug, on};

/// Bytes in one block, the unit of everything inside sbk. Frontends address 512-byte sectors.
pub const BLOCK_SIZE: u64 = 4096;
/// Bytes in one region, the unit of delta recovery, verification and the region LSN table.
pub const REGION_SIZE: u64 = 1 << 20;
/// Blocks in one region.
pub const REGION_BLOCKS: u64 = REGION_SIZE / BLOCK_SIZE;
/// Most bytes that one log entry, and so one frontend request, may carry.
pub const MAX_REQUEST_BYTES: u64 = 32 << 20;
/// Most frontend sessions that one volume knows at a time.
pub const MAX_SESSIONS: usize = 64;
/// A session's sequence numbers lie in `(low, low + SEQUENCE_WINDOW]`.
pub const SEQUENCE_WINDOW: u64 = 1024;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl $name {
            /// The next number. Panics at `u64::MAX`, which no correct run reaches.
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }

            /// The number before, or 0 at 0.
            pub fn prev(self) -> Self {
                Self(self.0.saturating_sub(1))
            }
        }
    };
}

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = uuid::Error;
            fn from_str(s: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(s).map(Self)
            }
        }
    };
}

number!(
    /// Log sequence number of one entry in one volume: 1, 2, 3, ... with no gap. `Lsn(0)` is the
    /// position before the first entry, so a durable LSN of 0 says "an empty log", not "unknown".
    Lsn
);
number!(
    /// Number of a volume's configuration (primary + in-sync replicas). Only the master quorum
    /// mints one. The first is 1; `Epoch(0)` is the position before it and is never in force.
    Epoch
);
number!(
    /// A block address: 4096-byte units from the start of the volume.
    Lba
);
number!(
    /// Milliseconds on the caller's monotonic clock that also counts suspended time
    /// (`CLOCK_BOOTTIME`). Comparable only with readings of the same machine.
    Millis
);
number!(
    /// Raised by every promotion that may have lost acknowledged writes.
    LossGeneration
);
number!(
    /// Counts attachments of a volume; an older one may not write.
    AttachGeneration
);

impl Millis {
    /// This time plus `ms` milliseconds.
    pub fn after(self, ms: u64) -> Self {
        Self(self.0 + ms)
    }

    /// Milliseconds from `earlier` to this time, 0 if it is later.
    pub fn since(self, earlier: Millis) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

identity!(
    /// A volume. Messages and files name this, never the volume's name: a volume deleted and
    /// created again under one name is another volume.
    VolumeId
);
identity!(
    /// One copy of one volume on one node. Fresh in the create that the masters send.
    ReplicaId
);
identity!(
    /// A datanode, minted at its first start and kept in its data directory.
    NodeId
);
identity!(
    /// One frontend's session with one volume, opened by an attach entry in the log.
    SessionId
);
identity!(
    /// A boot of a machine (`/proc/sys/kernel/random/boot_id`).
    BootId
);

/// What a replica's written but unsynced entries live in: they are there as long as this stays the
/// same. A power cut changes the boot; a failed sync, whose data may be gone although the machine
/// goes on, raises the count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TailId {
    /// The boot of the machine.
    pub boot: BootId,
    /// Counts what took the tail within the boot. Where the count itself may be lost, an opening
    /// takes one that was never used.
    pub count: u64,
}

impl fmt::Display for TailId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.boot, self.count)
    }
}

/// One run of one replica: `process` counts a datanode's starts on disk, `open` the times that
/// the replica was opened within the process. A replica that was reopened counts as restarted.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Incarnation {
    /// Starts of the datanode process, from 1.
    pub process: u64,
    /// Openings of the replica within the process, from 1.
    pub open: u64,
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.process, self.open)
    }
}

/// A replica in one of its incarnations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaRef {
    /// Which replica.
    pub id: ReplicaId,
    /// Which of its runs.
    pub incarnation: Incarnation,
}

/// Where a replica lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// The node that holds it.
    pub node: NodeId,
    /// `host:port` of that node's gRPC listener.
    pub addr: String,
}

/// When a write counts as committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// Every in-sync replica has it.
    #[default]
    SyncAll,
    /// A majority of the voters has it.
    SyncQuorum,
    /// The primary has it.
    BestEffort,
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SyncAll => "sync_all",
            Self::SyncQuorum => "sync_quorum",
            Self::BestEffort => "best_effort",
        })
    }
}

/// When a replica counts as having a write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WriteAck {
    /// In its log and synced to the disk.
    #[default]
    Durable,
    /// In its log file, not synced.
    Written,
}

impl fmt::Display for WriteAck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Durable => "durable",
            Self::Written => "written",
        })
    }
}

/// What the masters want of a volume's primary, beside its configuration. It is no authority: the
/// primary proposes, and a compare-and-set on the epoch decides.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wish {
    /// An in-sync replica that is to be primary.
    pub primary: Option<ReplicaId>,
    /// Replicas that are to leave the in-sync set, and not to join it.
    pub leave: BTreeSet<ReplicaId>,
}

/// One configuration of one volume, as the master quorum minted it. Within one volume the epoch
/// determines every other field but `replicas[..].addr`, which follows a node that moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The volume.
    pub volume: VolumeId,
    /// This configuration's number.
    pub epoch: Epoch,
    /// The replica that orders writes and serves reads, in the incarnation it was chosen for.
    pub primary: ReplicaRef,
    /// The oldest epoch since which this primary in this incarnation has been primary without
    /// interruption. A primary that was in force in an epoch `>= since` goes on; any other is
    /// freshly promoted and must reconcile first.
    pub since: Epoch,
    /// The in-sync replicas: those that hold every committed write. Contains the primary.
    pub isr: BTreeSet<ReplicaId>,
    /// Every replica of the volume, in sync or not, whose create was confirmed.
    pub replicas: BTreeMap<ReplicaId, Placement>,
    /// When a write counts as committed.
    pub durability: Durability,
    /// When a replica counts as having a write.
    pub write_ack: WriteAck,
    /// Fewest in-sync replicas with which the volume commits, 1 or more.
    pub min_in_sync: u32,
    /// The volume's size in blocks, as it is published: the log may have another one already.
    pub blocks: u64,
    /// The size in blocks that an operator wants the volume to have, if it is another one. It is part of
    /// the configuration so that a primary never acts on a wish that was taken back before its epoch.
    #[serde(default)]
    pub wished_blocks: Option<u64>,
    /// The volume's loss generation.
    pub loss_generation: LossGeneration,
    /// The primary that handed this tenure over, if that is how it began. It had stopped before it
    /// asked for that and answers nothing any more, so what was promised to it binds nobody in this
    /// tenure; what was promised to others does.
    #[serde(default)]
    pub handed_over_by: Option<ReplicaRef>,
    /// With written acknowledgements: the tail that each in-sync replica had when it joined. One
    /// that has another now may lack what it acknowledged. Empty otherwise.
    pub tails: BTreeMap<ReplicaId, TailId>,
}

impl Config {
    /// Whether writes are acknowledged before they are synced.
    pub fn acks_written(&self) -> bool {
        self.write_ack == WriteAck::Written
    }

    /// Whether a replica with this tail still has all that it acknowledged, as far as it is listed in
    /// sync: what it acknowledged may be in its tail only.
    pub fn has_kept(&self, replica: ReplicaId, tail: TailId) -> bool {
        !self.acks_written()
            || on(Bug::TrustNewTail)
            || self.tails.get(&replica).is_none_or(|listed| *listed == tail)
    }

    /// Whether the parts fit each other: the primary is in sync, every member of the in-sync set
    /// is a replica with an address, the tenure began in or before the epoch, and something must be
    /// in sync. One that is not must not be acted on: a member without an address would be counted
    /// by nobody.
    pub fn is_sound(&self) -> bool {
        Epoch(1) <= self.since
            && self.since <= self.epoch
            && self.min_in_sync >= 1
            && self.isr.contains(&self.primary.id)
            && (!self.acks_written() || self.isr.iter().all(|id| self.tails.contains_key(id)))
            && self.isr.iter().all(|member| self.replicas.contains_key(member))
    }
}
