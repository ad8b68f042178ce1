//! openraft's own suite over the log store and the state machine, and restarts.

use openraft::storage::{RaftLogReader, RaftLogStorage, RaftLogStorageExt};
use openraft::testing::{StoreBuilder, Suite};
use openraft::{CommittedLeaderId, EntryPayload, StorageError};
use tempfile::TempDir;

use super::{LogStore, OpenError};
use crate::raft::{Entry, LogId, MemberId, TypeConfig, Vote};
use crate::state_machine::StateMachine;

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<MemberId>> {
        let dir = TempDir::new().expect("a temporary directory");
        let log = LogStore::open(dir.path(), true).expect("opens");
        let machine = StateMachine::open(dir.path(), &log).expect("opens");
        // The suite purges without snapshots.
        log.covered().advance(Some(LogId::new(CommittedLeaderId::new(u64::MAX, 0), u64::MAX)));
        Ok((dir, log, machine))
    }
}

#[test]
fn openrafts_own_suite_passes() {
    if let Err(error) = Suite::test_all(Builder) {
        panic!("{error}");
    }
}

#[tokio::test]
async fn a_vote_outlives_a_restart() {
    let dir = TempDir::new().expect("a temporary directory");
    let vote = Vote::new(7, 2);
    {
        let mut log = LogStore::open(dir.path(), true).expect("opens");
        log.save_vote(&vote).await.expect("saves");
    }
    let mut log = LogStore::open(dir.path(), false).expect("opens again");
    assert_eq!(log.read_vote().await.expect("reads"), Some(vote));
    assert!(log.try_get_log_entries(0..10).await.expect("reads").is_empty());
}

#[test]
fn a_lost_journal_is_not_a_new_one() {
    let dir = TempDir::new().expect("a temporary directory");
    assert!(LogStore::open(dir.path(), false).is_err());
}

#[tokio::test]
async fn a_vote_that_is_gone_is_not_forgotten_silently() {
    let dir = TempDir::new().expect("a temporary directory");
    let mut log = LogStore::open(dir.path(), true).expect("opens");
    log.save_vote(&Vote::new(7, 2)).await.expect("saves");
    drop(log);
    std::fs::remove_file(dir.path().join("hard.sbk")).expect("removes");
    let error = LogStore::open(dir.path(), false).expect_err("the vote is gone");
    assert!(error.to_string().contains("hard.sbk"), "{error}");
}

/// Of a crash the last record may be the torn rest of a write that nobody was promised. After a
/// stop in order there is no such doubt.
#[tokio::test]
async fn a_last_record_that_rots_after_a_stop_in_order_is_missed() {
    let dir = TempDir::new().expect("a temporary directory");
    let mut log = LogStore::open(dir.path(), true).expect("opens");
    let entry = |index| Entry {
        log_id: LogId::new(CommittedLeaderId::new(1, 1), index),
        payload: EntryPayload::Blank,
    };
    log.blocking_append([entry(0)]).await.expect("appends");
    log.blocking_append([entry(1)]).await.expect("appends");
    drop(log);
    let wal = dir.path().join("wal");
    let mut rotten = 0;
    for file in std::fs::read_dir(&wal).expect("lists") {
        let path = file.expect("lists").path();
        let mut bytes = std::fs::read(&path).expect("reads");
        // Segments that are made ahead hold zeros.
        let text = b"\"index\":1";
        let Some(at) = bytes.windows(text.len()).rposition(|window| window == text) else {
            continue;
        };
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).expect("writes");
        rotten += 1;
    }
    assert_eq!(rotten, 1);
    let error = LogStore::open(dir.path(), false).expect_err("an entry is gone");
    assert!(matches!(error, OpenError::Lost(_)), "{error}");
    assert!(error.to_string().contains("wal"), "{error}");
}
