//! Digests of a replica's committed image, for comparison across replicas.

use std::time::Duration;

use sbk_master_client::in_one_line;
use sbk_proto::v1;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::disk::{DiskError, RegionDigest, VerifyPlan};
use super::events::VerifyReader;

/// A reader that takes nothing for so long is not reading: a plan holds back checkpoints.
const PATIENCE: Duration = Duration::from_secs(30);

/// Reads digests, as fast as they are taken, until the end or until nobody takes them.
pub(super) async fn run(mut plan: VerifyPlan, reader: VerifyReader, threads: Handle) {
    loop {
        // A thread that may block, for no longer than a region takes.
        let read = threads.spawn_blocking(move || {
            let region = plan();
            (plan, region)
        });
        let (rest, region) = read.await.expect("a verification does not panic");
        plan = rest;
        let Some(region) = region.map(told) else { return };
        let failed = region.is_err();
        let taken = timeout(PATIENCE, reader.out.send(region)).await;
        if failed || !matches!(taken, Ok(Ok(()))) {
            return;
        }
    }
}

fn told(region: Result<RegionDigest, DiskError>) -> Result<v1::VerifyRegion, tonic::Status> {
    let region = region.map_err(|error| tonic::Status::internal(in_one_line(&error)))?;
    Ok(v1::VerifyRegion {
        region: region.region,
        region_lsn: region.lsn.0,
        digest: region.digest,
        committed: region.committed.0,
        blocks: region.blocks,
        damaged: region.damaged.len() as u32,
        damaged_blocks: region.damaged.iter().map(|lba| lba.0).collect(),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sbk_engine::types::Lsn;
    use tokio::sync::{Semaphore, mpsc};

    use super::*;

    fn endless() -> VerifyPlan {
        let (lsn, committed) = (Lsn(1), Lsn(1));
        let region =
            RegionDigest { region: 0, lsn, digest: 0, committed, blocks: 1, damaged: Vec::new() };
        Box::new(move || Some(Ok(region.clone())))
    }

    #[tokio::test]
    async fn a_reader_that_goes_or_stops_reading_gives_its_place_back() {
        let places = Arc::new(Semaphore::new(1));
        let start = || {
            let (out, digests) = mpsc::channel(2);
            let place = Arc::clone(&places).try_acquire_owned().expect("is free");
            (tokio::spawn(run(endless(), VerifyReader { out, place }, Handle::current())), digests)
        };
        let (running, mut digests) = start();
        assert!(digests.recv().await.is_some());
        drop(digests);
        running.await.expect("no panic");

        let (running, digests) = start();
        while digests.len() < 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(places.available_permits(), 0);
        tokio::time::pause();
        running.await.expect("no panic");
        assert_eq!(places.available_permits(), 1);
        drop(digests);
    }
}
