//! What a driver says that it does, in process or as lines through a pipe.

use serde::{Deserialize, Serialize};

/// One step. What ends in `Begins` was about to be done and may or may not have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Event {
    /// A replica is about to be made, the `n`-th of its volume.
    CreateBegins { n: u64 },
    /// It was made.
    Created { n: u64 },
    /// The store is about to be opened.
    OpenBegins,
    /// It is open; its log ends here.
    Opened { end: u64 },
    /// An entry of this epoch was appended in memory.
    Appended { lsn: u64, epoch: u64 },
    /// A batch was handed out.
    BatchBegins,
    /// The store said that the log is durable up to here.
    Durable { lsn: u64 },
    /// The store is about to be told that this is committed.
    Committed { lsn: u64 },
    /// A step of the checkpoint was handed out.
    CheckpointBegins,
    /// It is done.
    Checkpointed { checkpoint: u64 },
    /// File work alone was handed out.
    RecycleBegins,
    /// It is done.
    Recycled,
    /// An epoch is about to be promised.
    PersistBegins { epoch: u64 },
    /// It is promised.
    Persisted { epoch: u64 },
    /// The log is about to be cut to `end`, promising `epoch` as well.
    CutBegins { end: u64, epoch: u64 },
    /// It was.
    Cut { end: u64, epoch: u64 },
    /// The replica is about to be wiped for a rebuild whose base is as of here, promising `epoch`.
    WipeBegins { base: u64, epoch: u64 },
    /// Its log is about to be dropped for a delta whose base is as of here, promising `epoch`; its extents
    /// hold the image of `from`.
    DeltaBegins { base: u64, epoch: u64, from: u64 },
    /// It was, and says that it is incomplete.
    Wiped { base: u64, epoch: u64 },
    /// The rebuild is about to be finished.
    FinishBegins,
    /// It was.
    Finished,
    /// The store is about to be closed in order.
    CloseBegins,
    /// It was.
    Closed,
    /// The replica is about to be removed.
    RemoveBegins,
    /// It was.
    Removed,
}
