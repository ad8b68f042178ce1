//! The types that openraft is used with.

use std::io::Cursor;

use openraft::BasicNode;

use crate::state_machine::{Answer, Proposal};

/// A master's number, as `--id` gives it. Never used again for another data directory.
pub type MemberId = u64;

openraft::declare_raft_types!(
    /// openraft's parameters: the authority's commands under a wrapper, snapshots in memory.
    pub TypeConfig:
        D = Proposal,
        R = Answer,
        NodeId = MemberId,
        Node = BasicNode,
        SnapshotData = Cursor<Vec<u8>>,
);

/// One log entry.
pub type Entry = openraft::Entry<TypeConfig>;
/// A running member.
pub type Raft = openraft::Raft<TypeConfig>;
/// What openraft tells of itself.
pub type Metrics = openraft::RaftMetrics<MemberId, BasicNode>;
/// What a snapshot covers.
pub type SnapshotMeta = openraft::SnapshotMeta<MemberId, BasicNode>;
/// A snapshot with its bytes.
pub type Snapshot = openraft::Snapshot<TypeConfig>;
/// The quorum's members, as one log entry set them.
pub type StoredMembership = openraft::StoredMembership<MemberId, BasicNode>;
/// A position in the log.
pub type LogId = openraft::LogId<MemberId>;
/// A vote, or a leader's claim.
pub type Vote = openraft::Vote<MemberId>;
