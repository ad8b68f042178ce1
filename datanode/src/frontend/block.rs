//! `BlockService`: a link with gRPC in between. Conversions, and the primary's end.

use std::pin::Pin;

use bytes::Bytes;
use futures::Stream;
use sbk_engine::replication::io::{Attach, StreamEnd};
use sbk_engine::types::{MAX_REQUEST_BYTES, NodeId, SessionId};
use sbk_proto::v1;
use sbk_proto::v1::block_service_server::BlockService;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{connect, ended};
use crate::link::{IoOp, IoRequest, Link, LinkEvent, LinkOutcome, OpenLink};
use crate::transport::convert;
use crate::volume::{Registry, open_link};

const REPLIES: usize = 256;
const READ: u32 = 1;
const WRITE: u32 = 2;
const TRIM: u32 = 3;
const ZERO: u32 = 4;
const FLUSH: u32 = 5;
const DETACH: u32 = 6;
const MAP: u32 = 7;

const AGAIN: u32 = 1;
const SHARED: u32 = 2;
const EXCLUSIVE: u32 = 3;
const FOLLOW: u32 = 4;

pub(super) fn open_out(open: &OpenLink) -> connect::Request {
    let (attachment, attach) = match open.attach {
        Attach::Again(own) => (AGAIN, Some(own)),
        Attach::Shared => (SHARED, None),
        Attach::Exclusive { over } => (EXCLUSIVE, over),
        Attach::Follow { over, .. } => (FOLLOW, Some(over)),
        Attach::Revoke { .. } => unreachable!("the operator's call is not a stream"),
    };
    let body = v1::block_request::Body::Open(v1::OpenStream {
        volume: convert::id_bytes(open.volume.0),
        session: convert::id_bytes(open.session.0),
        attachment,
        attach: attach.map(|generation| generation.0),
        follows: match open.attach {
            Attach::Follow { session, .. } => Some(convert::id_bytes(session.0)),
            _ => None,
        },
        node: convert::id_bytes(open.node.0),
        loss_generation: open.loss_generation.map(|g| g.0),
        primary: Some(convert::replica_ref_out(open.primary)),
    });
    v1::BlockRequest { body: Some(body) }
}

fn bad(error: convert::Malformed) -> Status {
    Status::invalid_argument(error.to_string())
}

fn open_in(open: v1::OpenStream) -> Result<OpenLink, Status> {
    let loss_generation = open.loss_generation.map(convert::loss_generation).transpose();
    let primary = open.primary.ok_or_else(|| Status::invalid_argument("no primary is named"))?;
    let generation = open.attach.map(convert::attach_generation).transpose().map_err(bad)?;
    let before = open.follows.as_ref().map(|id| convert::session_id(id));
    let attach = match (open.attachment, generation, before.transpose().map_err(bad)?) {
        (AGAIN, Some(own), None) => Attach::Again(own),
        (SHARED, None, None) => Attach::Shared,
        (EXCLUSIVE, over, None) => Attach::Exclusive { over },
        (FOLLOW, Some(over), Some(session)) => Attach::Follow { over, session },
        (other, ..) => {
            return Err(Status::invalid_argument(format!("attachment {other} is unknown")));
        }
    };
    Ok(OpenLink {
        volume: convert::volume_id(&open.volume).map_err(bad)?,
        session: convert::session_id(&open.session).map_err(bad)?,
        attach,
        node: convert::node_id(&open.node).map_err(bad)?,
        loss_generation: loss_generation.map_err(bad)?,
        primary: convert::replica_ref_in(primary).map_err(bad)?,
    })
}

pub(super) fn request_out(request: IoRequest) -> connect::Request {
    let one = matches!(request.op, IoOp::Map { one: true, .. });
    let (op, offset, length, payload) = match request.op {
        IoOp::Read { offset, length } => (READ, offset, length, Bytes::new()),
        IoOp::Map { offset, length, .. } => (MAP, offset, length, Bytes::new()),
        IoOp::Write { offset, data } => (WRITE, offset, data.len() as u64, data),
        IoOp::Trim { offset, length } => (TRIM, offset, length, Bytes::new()),
        IoOp::Zero { offset, length } => (ZERO, offset, length, Bytes::new()),
        IoOp::Flush => (FLUSH, 0, 0, Bytes::new()),
        IoOp::Detach => (DETACH, 0, 0, Bytes::new()),
    };
    let io = v1::IoRequest {
        sequence: request.sequence,
        low: request.low,
        epoch: request.epoch.0,
        attach: request.attach.0,
        op,
        offset,
        length,
        payload,
        one,
    };
    v1::BlockRequest { body: Some(v1::block_request::Body::Io(io)) }
}

/// Checks lengths before anything is allocated for them.
fn request_in(io: v1::IoRequest) -> Result<IoRequest, Status> {
    let v1::IoRequest { offset, length, .. } = io;
    let fits = |length: u64| {
        if length <= MAX_REQUEST_BYTES {
            Ok(())
        } else {
            Err(Status::invalid_argument(format!(
                "{length} bytes are more than a request may carry"
            )))
        }
    };
    let op = match io.op {
        READ => {
            fits(length)?;
            IoOp::Read { offset, length }
        }
        MAP => {
            fits(length)?;
            IoOp::Map { offset, length, one: io.one }
        }
        WRITE => {
            fits(io.payload.len() as u64)?;
            IoOp::Write { offset, data: convert::own(&io.payload) }
        }
        TRIM => IoOp::Trim { offset, length },
        ZERO => IoOp::Zero { offset, length },
        FLUSH => IoOp::Flush,
        DETACH => IoOp::Detach,
        other => return Err(Status::invalid_argument(format!("operation {other} is unknown"))),
    };
    Ok(IoRequest {
        sequence: convert::sequence(io.sequence).map_err(bad)?,
        low: convert::sequence(io.low).map_err(bad)?,
        epoch: convert::epoch(io.epoch).map_err(bad)?,
        attach: convert::attach_generation(io.attach).map_err(bad)?,
        op,
    })
}

fn event_out(event: LinkEvent) -> v1::BlockReply {
    use v1::block_reply::Body;
    let body = match event {
        LinkEvent::Opened { epoch, attach, loss_generation } => Body::Opened(v1::StreamOpened {
            epoch: epoch.0,
            attach: attach.0,
            loss_generation: loss_generation.0,
        }),
        LinkEvent::Ended { reason, config } => Body::Ended(v1::StreamEnded {
            config: config.as_ref().map(convert::config_out),
            ..ended::out(&reason)
        }),
        LinkEvent::HeldBack => Body::HeldBack(v1::HeldBack {}),
        LinkEvent::Reply { sequence, outcome, data } => {
            let (outcome, message) = match outcome {
                LinkOutcome::Done => (0, String::new()),
                LinkOutcome::Invalid(why) => (1, why),
                LinkOutcome::Failed(why) => (2, why),
            };
            Body::Io(v1::IoReply { sequence, outcome, message, payload: data })
        }
    };
    v1::BlockReply { body: Some(body) }
}

/// An answer; `None` for one that makes no sense, which ends the link.
pub(super) fn event_in(reply: v1::BlockReply) -> Option<LinkEvent> {
    use v1::block_reply::Body;
    match reply.body? {
        Body::Opened(opened) => Some(LinkEvent::Opened {
            epoch: convert::epoch(opened.epoch).ok()?,
            attach: convert::attach_generation(opened.attach).ok()?,
            loss_generation: convert::loss_generation(opened.loss_generation).ok()?,
        }),
        Body::Ended(ended) => {
            let reason = ended::reason(&ended)?;
            let config = ended.config.and_then(|config| convert::config_in(config).ok());
            Some(LinkEvent::Ended { reason, config })
        }
        Body::HeldBack(v1::HeldBack {}) => Some(LinkEvent::HeldBack),
        Body::Io(io) => {
            let outcome = match io.outcome {
                0 => LinkOutcome::Done,
                1 => LinkOutcome::Invalid(io.message),
                2 => LinkOutcome::Failed(io.message),
                _ => return None,
            };
            Some(LinkEvent::Reply { sequence: io.sequence, outcome, data: io.payload })
        }
    }
}

/// The primary's end.
#[derive(Clone, Debug)]
pub struct BlockApi {
    pub(super) registry: Registry,
}

type Replies = Pin<Box<dyn Stream<Item = Result<v1::BlockReply, Status>> + Send>>;

#[tonic::async_trait]
impl BlockService for BlockApi {
    type StreamStream = Replies;

    async fn detach(
        &self,
        request: Request<v1::DetachRequest>,
    ) -> Result<Response<v1::DetachResponse>, Status> {
        let attach = detach(&self.registry, request.into_inner()).await?;
        Ok(Response::new(v1::DetachResponse { attach }))
    }

    async fn stream(
        &self,
        request: Request<Streaming<v1::BlockRequest>>,
    ) -> Result<Response<Replies>, Status> {
        let mut incoming = request.into_inner();
        let first = incoming.message().await?.and_then(|message| message.body);
        let Some(v1::block_request::Body::Open(open)) = first else {
            return Err(Status::invalid_argument("a stream begins with its opening"));
        };
        let open = open_in(open)?;
        let volume = open.volume;
        let handle = self
            .registry
            .get(volume)
            .filter(|handle| handle.replica == open.primary.id)
            .ok_or_else(|| {
            Status::not_found(format!("no such replica of volume {volume} is here"))
        })?;
        let link = open_link(&handle, open)
            .await
            .ok_or_else(|| Status::unavailable(format!("volume {volume} is not open here")))?;
        let Link { requests, mut events } = link;
        let (replies, outgoing) = mpsc::channel(REPLIES);
        let refusals = replies.clone();
        tokio::spawn(async move {
            while let Ok(Some(message)) = incoming.message().await {
                let Some(v1::block_request::Body::Io(io)) = message.body else { return };
                match request_in(io) {
                    // What waits here for the limits goes with whom it is of.
                    Ok(request) => tokio::select! {
                        sent = requests.send(request) => if sent.is_err() { return },
                        () = refusals.closed() => return,
                    },
                    Err(status) => {
                        // Dropping the requests ends the stream at the volume task.
                        let _ = refusals.send(Err(status)).await;
                        return;
                    }
                }
            }
        });
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if replies.send(Ok(event_out(event))).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

/// Ends the attachments at the primary that is here.
async fn detach(registry: &Registry, asked: v1::DetachRequest) -> Result<u64, Status> {
    let volume = convert::volume_id(&asked.volume).map_err(bad)?;
    let named = asked.primary.ok_or_else(|| Status::invalid_argument("no primary is named"))?;
    let primary = convert::replica_ref_in(named).map_err(bad)?;
    let upto = convert::attach_generation(asked.upto).map_err(bad)?;
    let loss_generation = convert::loss_generation(asked.loss_generation).map_err(bad)?;
    let handle = registry.get(volume).filter(|handle| handle.replica == primary.id);
    let handle = handle
        .ok_or_else(|| Status::not_found(format!("no such replica of volume {volume} is here")))?;
    let open = OpenLink {
        volume,
        session: fresh_session(),
        attach: Attach::Revoke { upto },
        node: NodeId(uuid::Uuid::nil()),
        loss_generation: Some(loss_generation),
        primary,
    };
    let closed = || Status::unavailable(format!("volume {volume} is not open here"));
    let mut link = open_link(&handle, open).await.ok_or_else(closed)?;
    match link.events.recv().await {
        Some(LinkEvent::Ended { reason: StreamEnd::Revoked(newest), .. }) => Ok(newest.0),
        Some(LinkEvent::Ended { reason: StreamEnd::SessionLost, .. }) => {
            Err(Status::failed_precondition(format!(
                "loss generation {loss_generation} of volume {volume} is over: another may have it now"
            )))
        }
        Some(LinkEvent::Ended { reason, .. }) => {
            Err(Status::unavailable(format!("volume {volume} is not served here: {reason:?}")))
        }
        Some(LinkEvent::Opened { .. } | LinkEvent::HeldBack | LinkEvent::Reply { .. }) | None => {
            Err(closed())
        }
    }
}

/// Frontend sessions are named by the frontend that opens them.
pub(super) fn fresh_session() -> SessionId {
    SessionId(uuid::Uuid::new_v4())
}
