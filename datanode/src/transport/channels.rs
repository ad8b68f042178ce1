//! Connections to other datanodes, one for each.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use sbk_proto::v1::replication_client::ReplicationClient;
use tonic::transport::{Channel, Endpoint};

/// Most bytes of one message: the longest entry with its header, and room.
pub const MAX_MESSAGE_BYTES: usize = 40 << 20;
/// Bytes on their way in one stream. A bulk transfer needs the bandwidth-delay product.
pub const STREAM_WINDOW: u32 = 8 << 20;
/// Bytes on their way in one connection.
pub const CONNECTION_WINDOW: u32 = 16 << 20;
/// Longest HTTP/2 frame that this node takes. Each frame of a large entry is a write of its own at
/// the sender, and with the protocol's default of 16 KiB most of what it did was that. A short
/// message waits behind one frame at most: a millisecond at 10 Gbit/s.
pub const FRAME_BYTES: u32 = 1 << 20;
/// Most connections kept; beyond it the first by name is dropped. Nodes that moved leave theirs.
const MAX_CHANNELS: usize = 256;

/// An address that can't be one.
#[derive(Debug, thiserror::Error)]
#[error("'{addr}' is not an address of a datanode (host:port): {source}")]
pub struct BadAddress {
    addr: String,
    source: tonic::transport::Error,
}

/// Lazily opened connections, by address. tonic opens them again by itself after a failure.
#[derive(Debug, Default)]
pub struct Channels {
    by_addr: Mutex<BTreeMap<String, Channel>>,
}

impl Channels {
    /// The connection to `addr` (`host:port`).
    pub fn get(&self, addr: &str) -> Result<Channel, BadAddress> {
        // Every update leaves the map whole, so a panic elsewhere does not spoil it.
        let mut channels = self.by_addr.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(addr) {
            return Ok(channel.clone());
        }
        let channel = endpoint(addr)?.connect_lazy();
        if channels.len() >= MAX_CHANNELS {
            channels.pop_first();
        }
        channels.insert(addr.to_owned(), channel.clone());
        Ok(channel)
    }

    /// A client of the replication service at `addr`.
    pub fn replication(&self, addr: &str) -> Result<ReplicationClient<Channel>, BadAddress> {
        Ok(ReplicationClient::new(self.get(addr)?)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }
}

/// A connection of its own to `addr`, for one stream of a frontend. Those of one connection share its
/// window: a primary that takes no more of one volume's requests, as under limits, would hold up the feeds of
/// others behind them.
pub fn own_channel(addr: &str) -> Result<Channel, BadAddress> {
    Ok(endpoint(addr)?.connect_lazy())
}

/// A partition leaves a connection open that carries nothing; the keepalive ends it, so that
/// the connection is made anew once the network is whole.
fn endpoint(addr: &str) -> Result<Endpoint, BadAddress> {
    let endpoint = Endpoint::from_shared(format!("http://{addr}"))
        .map_err(|source| BadAddress { addr: addr.to_owned(), source })?;
    Ok(endpoint
        .connect_timeout(Duration::from_secs(1))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(3))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME_BYTES))
}

/// Whether a failure says that the other machine answered and nobody listens there (connection
/// refused or reset), rather than silence.
pub fn is_refusal(status: &tonic::Status) -> bool {
    use std::io::ErrorKind;
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return matches!(
                io.kind(),
                ErrorKind::ConnectionRefused
                    | ErrorKind::ConnectionReset
                    | ErrorKind::BrokenPipe
                    | ErrorKind::UnexpectedEof
            );
        }
        source = error.source();
    }
    false
}
