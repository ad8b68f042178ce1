//! How far the snapshots on the disk reach.
//!
//! openraft hands a snapshot that it received to the state machine's worker and has the log purged
//! up to its end at once, without a look at whether the worker has saved it. What a purge lets go is
//! nowhere else on this member but in that snapshot. [The purge was durable; the save failed, for the
//! disk was full, or the process was killed before it. The log began behind everything that could be
//! read, and the member could never start again.] So a purge waits for the snapshot.
//!
//! The worker needs nothing of the core to go on, so the wait ends: with the snapshot, or with the
//! failure of whatever the worker was doing, after which openraft ends.

use openraft::StorageError;
use tokio::sync::watch;

use crate::raft::{LogId, MemberId};

type Fault = StorageError<MemberId>;

#[derive(Debug, Default)]
struct Reach {
    upto: Option<LogId>,
    failed: Option<Fault>,
}

/// Shared by the log and the state machine of one member.
#[derive(Clone, Debug, Default)]
pub(crate) struct Covered(watch::Sender<Reach>);

impl Covered {
    /// A snapshot that ends with `upto` is durable.
    pub(crate) fn advance(&self, upto: Option<LogId>) {
        // A build may end after the install of a later snapshot.
        self.0.send_modify(|reach| reach.upto = reach.upto.max(upto));
    }

    /// The state machine failed: no snapshot that is still missing will come.
    pub(crate) fn fail(&self, fault: &Fault) {
        self.0.send_modify(|reach| {
            reach.failed.get_or_insert_with(|| fault.clone());
        });
    }

    /// Returns once a snapshot is durable that holds everything up to `upto`.
    ///
    /// # Errors
    /// What the state machine failed with, if there is no such snapshot.
    pub(super) async fn reach(&self, upto: LogId) -> Result<(), Fault> {
        let mut reach = self.0.subscribe();
        let reach = reach
            .wait_for(|reach| reach.upto >= Some(upto) || reach.failed.is_some())
            .await
            .expect("the sender is borrowed");
        match &reach.failed {
            Some(fault) if reach.upto < Some(upto) => Err(fault.clone()),
            Some(_) | None => Ok(()),
        }
    }
}
