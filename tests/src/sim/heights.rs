//! How high queues, logs and tables rose, and that none rises without a limit.

use sbk_engine::replication::log::EpochTable;
use sbk_engine::types::MAX_SESSIONS;

use super::world::World;

/// Bytes of a node's WAL at rest: what is retained, what a pin may hold on top, what waits for a
/// checkpoint, and spare segments.
const WAL_SLACK: u64 = 1 << 20;
/// Bytes of a replica's engine at rest, as JSON.
const ENGINE_BYTES: u64 = 64 << 10;

/// High-water marks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heights {
    /// Entries logged beyond the committed LSN.
    pub uncommitted: u64,
    /// Epochs in a superblock's table.
    pub epochs: u64,
    /// Frontend sessions in a log.
    pub sessions: u64,
    /// Bytes of a WAL's files in the end, those that hold what is to be retained left out.
    pub wal_bytes: u64,
    /// Bytes of a replica's engine in the end, as JSON.
    pub engine_bytes: u64,
    /// Requests whose bytes a node held.
    pub held: u64,
}

impl Heights {
    /// The higher of both, each.
    pub fn add(&mut self, other: &Self) {
        self.uncommitted = self.uncommitted.max(other.uncommitted);
        self.epochs = self.epochs.max(other.epochs);
        self.sessions = self.sessions.max(other.sessions);
        self.wal_bytes = self.wal_bytes.max(other.wal_bytes);
        self.engine_bytes = self.engine_bytes.max(other.engine_bytes);
        self.held = self.held.max(other.held);
    }
}

impl World {
    /// Looks at what may grow, now and then.
    pub(crate) fn measure(&mut self) {
        for node in &self.nodes {
            let shadow = &node.disk.shadow;
            let heights = &mut self.summary.heights;
            let uncommitted = shadow.end().0.saturating_sub(shadow.committed.0);
            heights.uncommitted = heights.uncommitted.max(uncommitted);
            heights.epochs = heights.epochs.max(shadow.kept.table.pairs().len() as u64);
            heights.held = heights.held.max(node.held.len() as u64);
            if let Some(replica) = &node.replica {
                let sessions = replica.view(node.clock(self.now)).sessions as u64;
                heights.sessions = heights.sessions.max(sessions);
            }
        }
    }

    /// Everything is at rest: what served requests and sessions is gone, and what stays is small.
    pub(crate) fn check_heights(&mut self) {
        self.measure();
        for (index, node) in self.nodes.iter().enumerate() {
            assert!(node.held.is_empty(), "I8: node {index} holds requests that were all answered");
            assert!(node.reads.is_empty(), "I8: node {index} has reads under way");
            assert!(node.sending.is_empty(), "I8: node {index} has base lanes open");
            // One that the masters forgot is left as it was, and here no lane's end is noticed by itself.
            let listed = self.masters.config.replicas.contains_key(&node.id);
            let waits = listed && node.receiving.is_some();
            assert!(!waits, "I8: node {index} waits for a base lane");
            let Some(replica) = &node.replica else { continue };
            let engine = serde_json::to_vec(replica).expect("plain data").len() as u64;
            let wal = node.disk.wal_bytes();
            let wal = wal.saturating_sub(node.disk.retained_bytes());
            let heights = &mut self.summary.heights;
            heights.engine_bytes = heights.engine_bytes.max(engine);
            heights.wal_bytes = heights.wal_bytes.max(wal);
        }
        let heights = &self.summary.heights;
        let (engine, wal) = (heights.engine_bytes, heights.wal_bytes);
        assert!(engine <= ENGINE_BYTES, "I8: an engine of {engine} bytes is left");
        assert!(wal <= WAL_SLACK, "I8: {wal} bytes of WAL are left beyond what is to be retained");
        let epochs = heights.epochs as usize;
        assert!(epochs <= EpochTable::CAPACITY, "I8: {epochs} epochs in a table");
        let sessions = heights.sessions as usize;
        assert!(sessions <= MAX_SESSIONS, "I8: {sessions} sessions in a log");
    }
}
