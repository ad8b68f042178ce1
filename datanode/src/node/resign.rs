//! What a node does before it stops: every primary here goes to another replica, so that clients of
//! its volumes elsewhere see a pause and no failover.

use std::sync::Arc;
use std::time::Duration;

use sbk_engine::replication::view::{HandoverView, RoleView};
use sbk_master_client::MasterClient;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use crate::volume::events::Control;
use crate::volume::{Registry, VolumeHandle, VolumeStatus};

/// How long a node may take for it, all volumes together. What is primary here then is failed over.
const LIMIT: Duration = Duration::from_secs(3);
/// For so long a volume may have nobody to go to: a member may be about to answer.
const UNABLE: Duration = Duration::from_secs(1);

/// How long the masters may take to say that they have a quorum.
const ASK: Duration = Duration::from_secs(1);

/// How far a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its primary is not here, or nobody else could be it.
    Gone,
    /// It is on its way.
    UnderWay,
    /// Nobody can take it now.
    Unable,
}

impl Stage {
    fn of(status: &VolumeStatus) -> Self {
        let Some(view) = status.view.as_ref().filter(|view| view.role == RoleView::Primary) else {
            return Self::Gone;
        };
        match &view.handover {
            HandoverView::Draining(_) | HandoverView::Proposed(_) => Self::UnderWay,
            HandoverView::None | HandoverView::Waits(_) => {
                let alone = view.config.as_ref().is_none_or(|config| config.isr.len() < 2);
                if alone { Self::Gone } else { Self::Unable }
            }
        }
    }
}

/// Whether the masters can decide anything now. A primary that stops and hears no answer would keep
/// its clients waiting for nothing.
async fn masters_decide(masters: &MasterClient) -> bool {
    let masters = masters.with_deadline(ASK);
    matches!(timeout(ASK, masters.cluster_status()).await, Ok(Ok(status)) if status.has_quorum)
}

/// Hands over what is primary here, as far as it can be done in a few seconds.
pub(super) async fn hand_over(volumes: &Registry, masters: &MasterClient) {
    let primary = |handle: &Arc<VolumeHandle>| Stage::of(&handle.current()) != Stage::Gone;
    if !volumes.all().iter().any(primary) {
        return;
    }
    if !masters_decide(masters).await {
        tracing::warn!("the masters don't answer: what is primary here is not handed over");
        return;
    }
    let deadline = Instant::now() + LIMIT;
    let mut under_way: JoinSet<bool> =
        volumes.all().into_iter().map(|handle| hand_over_one(handle, deadline)).collect();
    let (mut gone, mut left) = (0, 0);
    while let Some(done) = under_way.join_next().await {
        match done.expect("waiting for a handover does not panic") {
            true => gone += 1,
            false => left += 1,
        }
    }
    tracing::info!(gone, left, "primaries handed over; those left are failed over");
}

/// Whether nothing is left to hand over.
async fn hand_over_one(handle: Arc<VolumeHandle>, deadline: Instant) -> bool {
    let mut status = handle.status.clone();
    // A task that waits for its disk takes no order.
    match timeout_at(deadline, handle.control.send(Control::Resign)).await {
        Ok(Ok(())) => {}
        // The task has ended.
        Ok(Err(_)) => return true,
        Err(_) => return false,
    }
    let mut since = Instant::now();
    loop {
        let until = match Stage::of(&status.borrow_and_update()) {
            Stage::Gone => return true,
            Stage::UnderWay => {
                since = Instant::now();
                deadline
            }
            Stage::Unable => deadline.min(since + UNABLE),
        };
        match timeout_at(until, status.changed()).await {
            Ok(Ok(())) => {}
            // The task has ended.
            Ok(Err(_)) => return true,
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};

    use sbk_engine::replication::Params;
    use sbk_engine::replication::io::Opened;
    use sbk_engine::replication::room::Space;
    use sbk_engine::types::{NodeId, ReplicaId, VolumeId, Wish};
    use tokio_util::sync::CancellationToken;
    use uuid::Uuid;

    use super::*;
    use crate::disks::{DataDisk, DiskState};
    use crate::store::KeptStore;
    use crate::volume::disk::{DiskError, OpenDisk};
    use crate::volume::{CONTROL_QUEUE, Context, Pace, start};

    /// A disk that answers once the other end is gone.
    struct Hangs(Mutex<mpsc::Receiver<()>>);

    impl OpenDisk for Hangs {
        type Disk = KeptStore;

        fn open(&self) -> Result<(KeptStore, Opened), DiskError> {
            let _gone = self.0.lock().expect("one opens it").recv();
            Err(DiskError { doing: "open", source: "it hung".into() })
        }

        fn free_bytes(&self) -> Option<u64> {
            None
        }

        fn space(&self) -> tokio::sync::watch::Receiver<Space> {
            tokio::sync::watch::Sender::default().subscribe()
        }
    }

    #[tokio::test]
    async fn a_task_that_takes_no_order_is_waited_for_until_the_deadline() {
        let (disk, hangs) = mpsc::channel();
        let context = Arc::new(Context {
            channels: Arc::default(),
            proposals: tokio::sync::mpsc::channel(1).0,
            params: Params::default(),
            node: NodeId(Uuid::nil()),
            pace: Arc::new(Pace::new(0)),
        });
        let stop = CancellationToken::new();
        let opener = Hangs(Mutex::new(hangs));
        let ids = (VolumeId(Uuid::nil()), ReplicaId(Uuid::nil()));
        let home = DataDisk::new("nowhere".as_ref(), None, DiskState::default());
        let (handle, task) = start(context, home, opener, ids.0, ids.1, stop.clone());
        for _ in 0..CONTROL_QUEUE {
            handle.control.try_send(Control::Wish(Wish::default())).expect("there is room");
        }
        let deadline = Instant::now() + Duration::from_millis(10);
        let handed_over = timeout(Duration::from_secs(30), hand_over_one(handle, deadline));
        assert_eq!(handed_over.await, Ok(false), "a node that is to stop waits for a disk");
        stop.cancel();
        drop(disk);
        task.await.expect("no panic");
    }
}
