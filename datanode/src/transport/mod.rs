//! Datanode to datanode, over gRPC.
//!
//! Each replica of a volume is reached by its primary over one ordered stream, the feed, which
//! carries live and catch-up entries, frontiers and requests for promises; acknowledgements come
//! back on it. Probes, fences and cuts are single calls. A rebuild has a stream of its own, the
//! base lane, beside the feed. Nothing here decides anything: messages go to the volume task,
//! whose engine checks their lineage.

mod answers;
mod base_receive;
mod base_send;
mod calls;
mod channels;
pub mod convert;
mod feed;
mod sent;
mod server;

pub use answers::Answers;
pub use base_send::{BaseLane, BaseRead, BaseSource};
pub use calls::ask;
pub use channels::{
    CONNECTION_WINDOW, Channels, FRAME_BYTES, MAX_MESSAGE_BYTES, STREAM_WINDOW, is_refusal,
    own_channel,
};
pub use convert::{Beside, Recover, WireBlock, WireEntry, ZEROS_BYTES};
pub use feed::{EntriesLost, Feed, FeedItem, ReadEntries};
pub use sent::{BaseSent, Sent};
pub use server::ReplicationService;
