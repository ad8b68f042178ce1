//! Digests of a replica's committed image, for comparison across replicas.

use sbk_proto::v1;
use tokio::sync::mpsc;

use super::disk::VerifyPlan;

/// Reads digests on a thread that may block, as fast as they are taken.
pub(super) fn start(
    mut plan: VerifyPlan,
    out: mpsc::Sender<Result<v1::VerifyRegion, tonic::Status>>,
) {
    tokio::task::spawn_blocking(move || {
        while let Some(region) = plan() {
            let region = match region {
                Ok(region) => Ok(v1::VerifyRegion {
                    region: region.region,
                    region_lsn: region.lsn.0,
                    digest: region.digest,
                    committed: region.committed.0,
                    damaged: region.damaged,
                }),
                Err(error) => Err(tonic::Status::internal(super::task::describe(&error))),
            };
            let failed = region.is_err();
            if out.blocking_send(region).is_err() || failed {
                break;
            }
        }
    });
}
