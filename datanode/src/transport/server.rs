//! The replication service: what other datanodes ask of the replicas here.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use sbk_engine::replication::message::{Lineage, ToReplica};
use sbk_engine::types::VolumeId;
use sbk_proto::v1;
use sbk_proto::v1::replication_server::Replication;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::answers::Answers;
use super::convert::{self, Beside, Malformed, Recover, WireEntry};
use crate::volume::events::{AnswerPath, Control, PeerEvent, ScrubWaiter, VerifyReader};
use crate::volume::{Registry, VolumeHandle};
use sbk_store::entry::entry_crc;

type Answered<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Regions of a verification that wait for their reader.
const VERIFY_QUEUE: usize = 16;
/// Verifications at a time. Each reads all of a replica's data.
const VERIFYING: usize = 4;
/// Orders of scrubs at a time.
const SCRUBBING: usize = 16;

/// Serves the replicas in a registry.
#[derive(Clone, Debug)]
pub struct ReplicationService {
    volumes: Registry,
    verifying: Arc<Semaphore>,
    scrubbing: Arc<Semaphore>,
}

impl From<Malformed> for Status {
    fn from(error: Malformed) -> Self {
        Status::invalid_argument(error.to_string())
    }
}

impl ReplicationService {
    /// A service over the volumes of `volumes`, now and later.
    pub fn new(volumes: Registry) -> Self {
        let places = |n| Arc::new(Semaphore::new(n));
        Self { volumes, verifying: places(VERIFYING), scrubbing: places(SCRUBBING) }
    }

    /// The task of a replica that an operator's tool names.
    fn named(&self, volume: &[u8], replica: &[u8]) -> Result<Arc<VolumeHandle>, Status> {
        let volume: VolumeId = convert::volume_id(volume)?;
        let replica = convert::replica_id(replica)?;
        let handle = self.volumes.get(volume).filter(|handle| handle.replica == replica);
        handle.ok_or_else(|| {
            Status::not_found(format!("replica {replica} of volume {volume} is not on this node"))
        })
    }

    /// The task of the replica that a message is for.
    pub(super) fn receiver(&self, lineage: &Lineage) -> Result<Arc<VolumeHandle>, Status> {
        let handle = self.volumes.get(lineage.volume);
        handle.filter(|handle| handle.replica == lineage.to.id).ok_or_else(|| {
            Status::not_found(format!(
                "replica {} of volume {} is not on this node",
                lineage.to.id, lineage.volume
            ))
        })
    }

    /// Hands a question to the replica and waits for its answer.
    async fn ask(
        &self,
        message: v1::ReplicationMessage,
    ) -> Result<Response<v1::ReplicationMessage>, Status> {
        let (lineage, message, entries) = convert::to_replica_in(message)?;
        match message {
            ToReplica::Probe { .. }
            | ToReplica::Fence { .. }
            | ToReplica::Cut { .. }
            | ToReplica::Fetch { .. }
            | ToReplica::ReadBlocks { .. } => {}
            ToReplica::Append(_) | ToReplica::BeginRebuild { .. } | ToReplica::Close { .. } => {
                return Err(Status::invalid_argument("this message belongs on a stream"));
            }
        }
        let handle = self.receiver(&lineage)?;
        let (answer, answered) = oneshot::channel();
        let answers = AnswerPath::Call(answer);
        deliver(&handle, PeerEvent::FromPrimary { lineage, message, entries, answers }).await?;
        let (lineage, answer, beside) = answered
            .await
            .map_err(|_| Status::unavailable("the replica gave no answer; it may be stopping"))?;
        Ok(Response::new(convert::to_primary_out(lineage, &answer, &beside)))
    }
}

/// Puts an event into the replica's queue, waiting for room: that holds back the sender.
pub(super) async fn deliver(handle: &VolumeHandle, event: PeerEvent) -> Result<(), Status> {
    let sent = handle.peers.send(event).await;
    sent.map_err(|_| Status::unavailable("the replica has stopped"))
}

/// Entries whose bytes changed on the way are worth no more than a broken connection.
pub(super) fn check(entries: &[WireEntry]) -> Result<(), Status> {
    for entry in entries {
        let crc = entry_crc(&entry.header, &entry.payload);
        if crc != entry.crc {
            return Err(Status::data_loss(format!(
                "entry {} has CRC {crc:08x}, sent as {:08x}",
                entry.header.lsn, entry.crc
            )));
        }
    }
    Ok(())
}

#[tonic::async_trait]
impl Replication for ReplicationService {
    async fn probe(
        &self,
        request: Request<v1::ReplicationMessage>,
    ) -> Result<Response<v1::ReplicationMessage>, Status> {
        self.ask(request.into_inner()).await
    }

    async fn reconcile(
        &self,
        request: Request<v1::ReplicationMessage>,
    ) -> Result<Response<v1::ReplicationMessage>, Status> {
        self.ask(request.into_inner()).await
    }

    type FeedStream = Answered<v1::ReplicationMessage>;

    async fn feed(
        &self,
        request: Request<Streaming<v1::ReplicationMessage>>,
    ) -> Result<Response<Self::FeedStream>, Status> {
        let answers = Arc::new(Answers::default());
        let outgoing = answers.stream().map(|(lineage, message)| match message {
            Recover::ToPrimary(message) => {
                Ok(convert::to_primary_out(lineage, &message, &Beside::default()))
            }
            other => Err(Status::internal(format!("{other:?} does not belong on a feed"))),
        });
        let (ended, end) = oneshot::channel();
        tokio::spawn(feed(self.clone(), request.into_inner(), answers, ended));
        Ok(Response::new(Box::pin(until(outgoing, end))))
    }

    type RecoverStream = Answered<v1::RecoverMessage>;

    async fn recover(
        &self,
        request: Request<Streaming<v1::RecoverMessage>>,
    ) -> Result<Response<Self::RecoverStream>, Status> {
        let answers = Arc::new(Answers::default());
        let outgoing =
            answers.stream().map(|(lineage, message)| Ok(convert::recover_out(lineage, &message)));
        let (ended, end) = oneshot::channel();
        tokio::spawn(super::base_receive::receive(
            self.clone(),
            request.into_inner(),
            answers,
            ended,
        ));
        Ok(Response::new(Box::pin(until(outgoing, end))))
    }

    type VerifyStream = Answered<v1::VerifyRegion>;

    async fn verify(
        &self,
        request: Request<v1::VerifyRequest>,
    ) -> Result<Response<Self::VerifyStream>, Status> {
        let request = request.into_inner();
        let handle = self.named(&request.volume, &request.replica)?;
        let place = Arc::clone(&self.verifying).try_acquire_owned().map_err(|_| {
            Status::resource_exhausted(format!(
                "{VERIFYING} verifications run on this node already; try again when one is done"
            ))
        })?;
        let (out, digests) = mpsc::channel(VERIFY_QUEUE);
        let (first, regions) = (request.first_region, request.regions);
        let order = Control::Verify { first, regions, reader: VerifyReader { out, place } };
        let sent = handle.control.send(order).await;
        sent.map_err(|_| Status::unavailable("the replica has stopped"))?;
        Ok(Response::new(Box::pin(ReceiverStream::new(digests))))
    }

    async fn scrub(
        &self,
        request: Request<v1::ScrubRequest>,
    ) -> Result<Response<v1::ScrubResponse>, Status> {
        let request = request.into_inner();
        let blocks = convert::scrub_in(&request.blocks)?;
        let handle = self.named(&request.volume, &request.replica)?;
        let place = Arc::clone(&self.scrubbing).try_acquire_owned().map_err(|_| {
            let most = format!("{SCRUBBING} orders of scrubs are under way on this node already");
            Status::resource_exhausted(format!("{most}; try again when one is done"))
        })?;
        let (done, told) = oneshot::channel();
        let order = Control::Scrub { blocks, waiter: ScrubWaiter { done, place } };
        let stopped = || Status::unavailable("the replica has stopped");
        handle.control.send(order).await.map_err(|_| stopped())?;
        let scrubbed = told.await.map_err(|_| stopped())??;
        Ok(Response::new(convert::scrub_out(scrubbed)))
    }
}

/// The stream, then the error that ended what fed it, if one did.
fn until<T: Send + 'static>(
    stream: impl Stream<Item = Result<T, Status>> + Send + 'static,
    end: oneshot::Receiver<Status>,
) -> impl Stream<Item = Result<T, Status>> + Send + 'static {
    let error = futures::stream::once(end).filter_map(async |end| end.ok().map(Err));
    stream.chain(error)
}

async fn feed(
    service: ReplicationService,
    incoming: Streaming<v1::ReplicationMessage>,
    answers: Arc<Answers>,
    ended: oneshot::Sender<Status>,
) {
    if let Err(status) = take_feed(&service, incoming, &answers).await {
        // The peer may be gone already.
        let _gone = ended.send(status);
    }
    answers.close();
}

async fn take_feed(
    service: &ReplicationService,
    mut incoming: Streaming<v1::ReplicationMessage>,
    answers: &Arc<Answers>,
) -> Result<(), Status> {
    let mut to: Option<(VolumeId, Arc<VolumeHandle>)> = None;
    while let Some(message) = incoming.message().await? {
        let (lineage, message, entries) = convert::to_replica_in(message)?;
        check(&entries)?;
        let handle = match &to {
            Some((volume, handle))
                if *volume == lineage.volume && handle.replica == lineage.to.id =>
            {
                Arc::clone(handle)
            }
            Some(_) => return Err(Status::invalid_argument("a feed is for one replica")),
            None => {
                let handle = service.receiver(&lineage)?;
                to = Some((lineage.volume, Arc::clone(&handle)));
                handle
            }
        };
        let answers = AnswerPath::Feed(Arc::clone(answers));
        deliver(&handle, PeerEvent::FromPrimary { lineage, message, entries, answers }).await?;
    }
    Ok(())
}
