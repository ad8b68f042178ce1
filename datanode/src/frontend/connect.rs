//! Links to primaries: in this process, or over `BlockService`.

use sbk_engine::types::NodeId;
use sbk_proto::v1;
use sbk_proto::v1::block_service_client::BlockServiceClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::block::{event_in, open_out, request_out};
use crate::link::{LINK_QUEUE, Link, OpenLink};
use crate::transport::{MAX_MESSAGE_BYTES, own_channel};
use crate::volume::{Registry, open_link};

/// Events that wait for the session; the far end sends no more than was asked.
const EVENTS: usize = 256;

/// Makes links.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    pub(super) registry: Registry,
    pub(super) node: NodeId,
}

impl Connector {
    /// A link to the primary on `node`. `None` if it can't be made now.
    pub(super) async fn open(&self, node: NodeId, addr: &str, open: OpenLink) -> Option<Link> {
        if node == self.node {
            let handle = self.registry.get(open.volume)?;
            return if handle.replica == open.primary.id {
                open_link(&handle, open).await
            } else {
                None
            };
        }
        self.open_remote(addr, &open).await
    }

    async fn open_remote(&self, addr: &str, open: &OpenLink) -> Option<Link> {
        let channel = own_channel(addr).ok()?;
        let mut client = BlockServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let (upstream, outgoing) = mpsc::channel(EVENTS);
        upstream.send(open_out(open)).await.ok()?;
        let mut incoming = match client.stream(ReceiverStream::new(outgoing)).await {
            Ok(response) => response.into_inner(),
            Err(status) => {
                tracing::debug!(addr, status = status.message(), "no link to the primary");
                return None;
            }
        };
        let (requests, mut from_session) = mpsc::channel(LINK_QUEUE);
        let (to_session, events) = mpsc::channel(EVENTS);
        tokio::spawn(async move {
            while let Some(request) = from_session.recv().await {
                if upstream.send(request_out(request)).await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            while let Ok(Some(reply)) = incoming.message().await {
                let Some(event) = event_in(reply) else { return };
                if to_session.send(event).await.is_err() {
                    return;
                }
            }
        });
        Some(Link { requests, events })
    }
}

/// Names the type, so that the import says what a link carries on the wire.
pub(super) type Request = v1::BlockRequest;
