//! What a restart starts from.

use openraft::storage::RaftStateMachine;
use openraft::{CommittedLeaderId, EntryPayload, RaftSnapshotBuilder};
use sbk_engine::authority::{ClusterId, Command};
use tempfile::TempDir;
use uuid::Uuid;

use super::{Proposal, StateMachine};
use crate::log_store::LogStore;
use crate::raft::{Entry, LogId};

fn named(index: u64, name: u128) -> Entry {
    let cluster = ClusterId(Uuid::from_u128(name));
    Entry {
        log_id: LogId::new(CommittedLeaderId::new(1, 1), index),
        payload: EntryPayload::Normal(Proposal::Authority(Command::BootstrapCluster { cluster })),
    }
}

#[tokio::test]
async fn a_snapshot_carries_the_state_to_another_member() {
    let (from, to) = (TempDir::new().expect("a directory"), TempDir::new().expect("a directory"));
    let log = LogStore::open(from.path(), true).expect("opens");
    let mut machine = StateMachine::open(from.path(), &log).expect("opens");
    machine.apply([named(1, 42)]).await.expect("applies");
    let snapshot = machine.build_snapshot().await.expect("builds");

    let log = LogStore::open(to.path(), true).expect("opens");
    let mut other = StateMachine::open(to.path(), &log).expect("opens");
    other.install_snapshot(&snapshot.meta, snapshot.snapshot).await.expect("installs");
    let cluster = other.read().authority.cluster();
    assert_eq!(cluster, Some(ClusterId(Uuid::from_u128(42))));
    drop(other);

    let again = StateMachine::open(to.path(), &log).expect("opens again");
    assert_eq!(again.read().authority.cluster(), cluster, "an installed snapshot is durable");
}

#[tokio::test]
async fn a_kept_state_that_the_log_does_not_hold_is_not_used() {
    let dir = TempDir::new().expect("a directory");
    let log = LogStore::open(dir.path(), true).expect("opens");
    {
        let mut machine = StateMachine::open(dir.path(), &log).expect("opens");
        machine.apply([named(1, 42)]).await.expect("applies");
        machine.keep().expect("keeps");
    }
    // The entry was applied but this member's log never had it.
    let machine = StateMachine::open(dir.path(), &log).expect("opens again");
    assert_eq!(machine.read().authority.cluster(), None);
}
