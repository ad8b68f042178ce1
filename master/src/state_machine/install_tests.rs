//! What is purged is in a snapshot that a restart finds, whatever becomes of it while it is saved.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Waker};

use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use openraft::{Config, RaftSnapshotBuilder};
use tempfile::TempDir;
use tokio::sync::watch;
use uuid::Uuid;

use super::StateMachine;
use super::tests::named;
use crate::log_store::LogStore;
use crate::network::{Heard, Identity, Network, Pool};
use crate::raft::{LogId, Raft, Snapshot, Vote};

/// The index of the last entry in the snapshot that a leader sends.
const END: u64 = 9;

async fn sent() -> Snapshot {
    let dir = TempDir::new().expect("a directory");
    let log = LogStore::open(dir.path(), true).expect("opens");
    let mut leader = StateMachine::open(dir.path(), &log).expect("opens");
    leader.apply((0..=END).map(|index| named(index, 42))).await.expect("applies");
    leader.build_snapshot().await.expect("builds")
}

/// A follower whose log ends long before what it is sent.
async fn follower(dir: &Path) -> (LogStore, StateMachine) {
    let mut log = LogStore::open(dir, true).expect("opens");
    log.blocking_append([named(0, 42), named(1, 42)]).await.expect("appends");
    let machine = StateMachine::open(dir, &log).expect("opens");
    (log, machine)
}

fn reopened(dir: &Path) -> (LogStore, StateMachine) {
    let log = LogStore::open(dir, false).expect("opens again");
    let machine = StateMachine::open(dir, &log).expect("what is not purged is there");
    (log, machine)
}

async fn raft(log: LogStore, machine: StateMachine) -> Raft {
    let identity = Identity {
        cluster: "sbk".into(),
        member: 2,
        instance: Uuid::from_u128(2),
        peers: Arc::default(),
        state: machine.clone(),
        heard: Heard::default(),
        expelled: watch::Sender::new(None),
    };
    let network = Network { identity, pool: Pool::default() };
    let config = Config { enable_tick: false, max_in_snapshot_log_to_keep: 0, ..Config::default() };
    Raft::new(2, Arc::new(config), network, log, machine).await.expect("starts")
}

/// Creating this file fails, and so does the save of the snapshot.
fn obstacle(dir: &Path) -> PathBuf {
    dir.join(format!("snapshots/new-{END:016x}.tmp"))
}

#[tokio::test]
async fn a_member_that_could_not_save_a_snapshot_starts_again() {
    let dir = TempDir::new().expect("a directory");
    let (log, machine) = follower(dir.path()).await;
    std::fs::create_dir(obstacle(dir.path())).expect("makes");
    let member = raft(log, machine).await;
    let leader = Vote::new_committed(1, 1);
    member.install_full_snapshot(leader, sent().await).await.expect_err("it can't be saved");
    member.shutdown().await.ok();
    drop(member);
    std::fs::remove_dir(obstacle(dir.path())).expect("removes");

    let (log, machine) = reopened(dir.path());
    assert_eq!(log.purged(), None);
    let member = raft(log.clone(), machine.clone()).await;
    member.install_full_snapshot(leader, sent().await).await.expect("installs");
    let last = machine.read().last;
    assert_eq!((last.map(|id| id.index), log.purged()), (Some(END), last));

    // Its own snapshots let the log go as well.
    member.shutdown().await.expect("stops");
    drop(member);
    let (mut log, machine) = reopened(dir.path());
    log.blocking_append([named(END + 1, 42)]).await.expect("appends");
    log.save_committed(Some(named(END + 1, 42).log_id)).await.expect("saves");
    let member = raft(log.clone(), machine).await;
    let mut metrics = member.metrics();
    member.trigger().snapshot().await.expect("is asked");
    metrics.wait_for(|m| m.purged.is_some_and(|id| id.index > END)).await.expect("it is purged");
    assert_eq!(log.purged().map(|id| id.index), Some(END + 1));
}

fn poll_once<T>(future: impl Future<Output = T>) -> bool {
    std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

#[tokio::test]
async fn a_member_that_is_killed_before_a_snapshot_is_saved_starts_again() {
    let dir = TempDir::new().expect("a directory");
    let (mut log, mut machine) = follower(dir.path()).await;
    let snapshot = sent().await;
    let end = snapshot.meta.last_log_id.expect("it is not empty");
    // As openraft's core does, while its worker has not yet saved anything.
    assert!(!poll_once(log.purge(end)));
    drop((log, machine));
    (log, machine) = reopened(dir.path());
    assert_eq!(log.purged(), None);

    // Killed before the core went on: the snapshot alone is enough.
    machine.install_snapshot(&snapshot.meta, snapshot.snapshot).await.expect("installs");
    drop((log, machine));
    (log, machine) = reopened(dir.path());
    assert_eq!(machine.read().last, Some(end));
    log.purge(end).await.expect("purges");
    drop((log, machine));
    (log, machine) = reopened(dir.path());
    assert_eq!((log.purged(), machine.read().last), (Some(end), Some(end)));
}

#[tokio::test]
async fn a_purge_does_not_wait_for_a_state_machine_that_failed() {
    let dir = TempDir::new().expect("a directory");
    let (mut log, mut machine) = follower(dir.path()).await;
    // A directory can't be read as a file.
    let unreadable = dir.path().join(format!("snapshots/snapshot-{END:016x}.sbk"));
    std::fs::create_dir(unreadable).expect("makes");
    let end = LogId::new(named(0, 42).log_id.leader_id, END);
    assert!(!poll_once(log.purge(end)));
    let fault = machine.get_current_snapshot().await.expect_err("it can't be read");
    assert_eq!(log.purge(end).await, Err(fault));
}
