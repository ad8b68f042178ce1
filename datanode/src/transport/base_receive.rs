//! The base lane at its receiver: from the wire to its volume task.

use std::sync::Arc;

use sbk_engine::replication::log::BlockRange;
use sbk_engine::replication::message::{RecoveryId, ToReplica};
use sbk_proto::v1;
use tokio::sync::oneshot;
use tonic::{Status, Streaming};

use super::answers::Answers;
use super::convert::{self, Recover};
use super::server::{ReplicationService, deliver};
use crate::volume::VolumeHandle;
use crate::volume::events::{AnswerPath, PeerEvent};

/// Takes one base lane to its end. However it ends, the task hears that it has: after the
/// terminal close that is stale and changes nothing.
pub(super) async fn receive(
    service: ReplicationService,
    incoming: Streaming<v1::RecoverMessage>,
    answers: Arc<Answers>,
    ended: oneshot::Sender<Status>,
) {
    let mut session = None;
    if let Err(status) = take(&service, incoming, &answers, &mut session).await {
        tracing::debug!(error = %status, "a base lane ended");
        // The peer may be gone already.
        let _gone = ended.send(status);
    }
    answers.close();
    if let Some((handle, session)) = session {
        // A task that has stopped has no session any more.
        let _stopped = deliver(&handle, PeerEvent::BaseLost { session, answers }).await;
    }
}

type Session = Option<(Arc<VolumeHandle>, RecoveryId)>;

async fn take(
    service: &ReplicationService,
    mut incoming: Streaming<v1::RecoverMessage>,
    answers: &Arc<Answers>,
    begun: &mut Session,
) -> Result<(), Status> {
    while let Some(message) = incoming.message().await? {
        let (lineage, message) = convert::recover_in(message)?;
        if let Recover::ToReplica(ToReplica::BeginRebuild { mark, .. }) = &message {
            match begun {
                None => *begun = Some((service.receiver(&lineage)?, mark.session)),
                // The order is repeated until it is answered.
                Some((_, session)) if *session == mark.session => {}
                Some(_) => {
                    return Err(Status::invalid_argument("a base lane carries one session"));
                }
            }
        }
        let Some((handle, session)) = begun.as_ref() else {
            return Err(Status::invalid_argument("a base lane starts with its session"));
        };
        if handle.replica != lineage.to.id {
            return Err(Status::invalid_argument("a base lane is for one replica"));
        }
        let session = *session;
        let answers = Arc::clone(answers);
        let event = match message {
            Recover::ToReplica(message) => PeerEvent::FromPrimary {
                lineage,
                message,
                entries: Vec::new(),
                answers: AnswerPath::Base(answers),
            },
            Recover::Blocks { lba, data, read_at: _, crc } => {
                let found = convert::data_crc(&data);
                if found != crc {
                    return Err(Status::data_loss(format!(
                        "base blocks at {lba} have CRC {found:08x}, sent as {crc:08x}"
                    )));
                }
                PeerEvent::BaseBlocks { session, lineage, lba, data, answers }
            }
            Recover::Zeros { lba, blocks, read_at: _ } => {
                let range = BlockRange { lba, blocks };
                PeerEvent::BaseZeros { session, lineage, range, answers }
            }
            Recover::Regions { first, lsns } => {
                PeerEvent::BaseRegions { session, lineage, first, lsns }
            }
            Recover::End => PeerEvent::BaseEnd { session, lineage, answers },
            Recover::ToPrimary(_) | Recover::Taken(_) => {
                return Err(Status::invalid_argument("an answer where data was expected"));
            }
        };
        deliver(handle, event).await?;
    }
    Ok(())
}
