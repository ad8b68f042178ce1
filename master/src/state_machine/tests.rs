//! What a restart starts from.

use std::path::Path;

use openraft::storage::{RaftLogStorageExt, RaftStateMachine};
use openraft::{CommittedLeaderId, EntryPayload, RaftSnapshotBuilder};
use sbk_engine::authority::{ClusterId, Command};
use tempfile::TempDir;
use uuid::Uuid;

use super::{Proposal, StateMachine};
use crate::log_store::LogStore;
use crate::raft::{Entry, LogId};

pub(super) fn named(index: u64, name: u128) -> Entry {
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

/// A member's directory whose log holds an entry, with the state after it kept.
async fn kept(dir: &Path) -> LogStore {
    let mut log = LogStore::open(dir, true).expect("opens");
    log.blocking_append([named(0, 42)]).await.expect("appends");
    let mut machine = StateMachine::open(dir, &log).expect("opens");
    machine.apply([named(0, 42)]).await.expect("applies");
    machine.keep().expect("keeps");
    log
}

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).expect("lists").map(|e| e.expect("lists").path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[tokio::test]
async fn a_kept_state_is_used_once() {
    let dir = TempDir::new().expect("a directory");
    let log = kept(dir.path()).await;
    let opened = StateMachine::open(dir.path(), &log).expect("opens again");
    assert_eq!(opened.read().authority.cluster(), Some(ClusterId(Uuid::from_u128(42))));
    drop(opened);
    // It was not kept again: the member did not stop in order.
    let after_crash = StateMachine::open(dir.path(), &log).expect("opens again");
    assert_eq!(after_crash.read().authority.cluster(), None, "openraft applies the log again");
}

/// sled may panic on damaged files, in a release build the end of the process: they are never
/// opened.
#[tokio::test]
async fn a_kept_state_that_is_damaged_is_not_used() {
    let template = TempDir::new().expect("a directory");
    drop(kept(template.path()).await);
    let names: Vec<_> = files(template.path())
        .into_iter()
        .filter_map(|path| Some(path.strip_prefix(template.path()).ok()?.to_owned()))
        .filter(|name| name.starts_with("applied.sled") || name.starts_with("applied.seal"))
        .collect();
    assert!(names.len() >= 3, "{names:?}");
    let flip = |at: usize| move |bytes: &mut Vec<u8>| bytes[at] ^= 0x40;
    for name in names {
        let length = std::fs::metadata(template.path().join(&name)).expect("is there").len();
        let length = usize::try_from(length).expect("small");
        type Damage = Box<dyn Fn(&mut Vec<u8>)>;
        let mut damages: Vec<Damage> = vec![Box::new(|bytes| bytes.push(0))];
        if length > 0 {
            damages.push(Box::new(Vec::clear));
            damages.push(Box::new(move |bytes| bytes.truncate(length / 2)));
            for at in [0, length / 3, length / 2, length - 1] {
                damages.push(Box::new(flip(at)));
            }
        }
        for damage in damages {
            let dir = TempDir::new().expect("a directory");
            drop(kept(dir.path()).await);
            let path = dir.path().join(&name);
            // sled names some of its files anew each time.
            let Ok(mut bytes) = std::fs::read(&path) else { continue };
            damage(&mut bytes);
            std::fs::write(&path, bytes).expect("writes");
            let log = LogStore::open(dir.path(), false).expect("opens");
            let machine = StateMachine::open(dir.path(), &log).expect("opens");
            assert_eq!(machine.read().authority.cluster(), None, "{}", name.display());
        }
    }
}
