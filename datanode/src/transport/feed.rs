//! The primary's end of the one ordered stream to a replica.
//!
//! What the engine says to a replica over the feed is queued here in order; entries that are not
//! in memory any more are read from the WAL when their turn comes, so nothing overtakes them.

use std::sync::Arc;

use futures::Stream;
use sbk_engine::recovery::FailureKind;
use sbk_engine::replication::message::{Append, Lineage, ToReplica};
use sbk_engine::types::{Lsn, ReplicaId, ReplicaRef};
use sbk_proto::v1;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::channels::{Channels, is_refusal};
use super::convert::{self, WireEntry};
use crate::volume::events::{LaneId, PeerEvent};

/// Items that wait for one replica. The engine's window bounds the entries; this bounds the
/// messages, and a peer behind it is cut off.
const FEED_QUEUE: usize = 4096;
/// Most payload bytes of one message of several entries.
const MESSAGE_BYTES: usize = 1 << 20;
/// Most entries of one message.
const MESSAGE_ENTRIES: usize = 512;

/// Something to send on a feed, in its place in the order.
#[derive(Debug)]
pub enum FeedItem {
    /// A message whose entries are at hand.
    Message { lineage: Lineage, message: ToReplica, entries: Vec<WireEntry> },
    /// Entries that have to be read from the log.
    Entries { lineage: Lineage, append: Append, last: Lsn, read: Box<dyn ReadEntries> },
}

/// Reads a stretch of the log, piece by piece, on a thread that may block.
pub trait ReadEntries: Send + std::fmt::Debug {
    /// The next entries, up to about `bytes` of payload and `entries` of them; at least one. Empty
    /// at the end.
    fn next(&mut self, bytes: usize, entries: usize) -> Result<Vec<WireEntry>, FailureKind>;
}

/// A feed to one replica in one incarnation. Dropping it ends the stream.
#[derive(Debug)]
pub struct Feed {
    to: ReplicaRef,
    from: ReplicaRef,
    addr: String,
    lane: LaneId,
    queue: mpsc::Sender<FeedItem>,
    task: AbortHandle,
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Feed {
    /// Starts a feed; it connects by itself. Its end is reported to `events`, unless it is dropped.
    pub fn open(
        channels: Arc<Channels>,
        addr: &str,
        lineage: &Lineage,
        lane: LaneId,
        events: mpsc::Sender<PeerEvent>,
    ) -> Self {
        let (queue, items) = mpsc::channel(FEED_QUEUE);
        let replica = lineage.to.id;
        let task = tokio::spawn(run(channels, addr.to_owned(), replica, lane, items, events));
        let task = task.abort_handle();
        Self { to: lineage.to, from: lineage.from, addr: addr.to_owned(), lane, queue, task }
    }

    /// Whether this feed is the one for messages of `lineage` to `addr`.
    pub fn serves(&self, addr: &str, lineage: &Lineage) -> bool {
        self.to == lineage.to && self.from == lineage.from && self.addr == addr
    }

    /// Its number.
    pub fn lane(&self) -> LaneId {
        self.lane
    }

    /// Queues an item. Returns whether there was room and the stream is still there.
    pub fn send(&self, item: FeedItem) -> bool {
        self.queue.try_send(item).is_ok()
    }
}

async fn run(
    channels: Arc<Channels>,
    addr: String,
    replica: ReplicaId,
    lane: LaneId,
    items: mpsc::Receiver<FeedItem>,
    events: mpsc::Sender<PeerEvent>,
) {
    let event = match stream(&channels, &addr, replica, lane, items, &events).await {
        Ok(()) => PeerEvent::FeedBroken { replica, lane, refused: false },
        Err(status) => {
            let refused = is_refusal(&status);
            tracing::debug!(%addr, %replica, refused, error = %status, "a feed ended");
            PeerEvent::FeedBroken { replica, lane, refused }
        }
    };
    // A volume task that has ended needs no answer.
    let _ended = events.send(event).await;
}

async fn stream(
    channels: &Channels,
    addr: &str,
    replica: ReplicaId,
    lane: LaneId,
    items: mpsc::Receiver<FeedItem>,
    events: &mpsc::Sender<PeerEvent>,
) -> Result<(), tonic::Status> {
    let mut client =
        channels.replication(addr).map_err(|e| tonic::Status::invalid_argument(e.to_string()))?;
    let outgoing = Outgoing { items, events: events.clone(), replica, lane, reading: None };
    let mut answers = client.feed(messages(outgoing)).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        let (lineage, message) = convert::to_primary_in(answer)
            .map_err(|e| tonic::Status::invalid_argument(e.to_string()))?;
        if events.send(PeerEvent::FromReplica { lineage, message }).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Where the sending half stands.
struct Outgoing {
    items: mpsc::Receiver<FeedItem>,
    events: mpsc::Sender<PeerEvent>,
    replica: ReplicaId,
    lane: LaneId,
    reading: Option<Reading>,
}

/// A stretch of the log that is being read and sent.
struct Reading {
    lineage: Lineage,
    append: Append,
    last: Lsn,
    read: Box<dyn ReadEntries>,
}

fn messages(outgoing: Outgoing) -> impl Stream<Item = v1::ReplicationMessage> {
    futures::stream::unfold(outgoing, async |mut outgoing| {
        loop {
            if let Some(reading) = outgoing.reading.take() {
                match read_some(reading).await {
                    Ok((message, rest)) => {
                        outgoing.reading = rest;
                        return Some((message, outgoing));
                    }
                    Err(cause) => {
                        let (replica, lane) = (outgoing.replica, outgoing.lane);
                        let event = PeerEvent::FeedFailed { replica, lane, cause };
                        // A volume task that has ended needs no answer.
                        let _ended = outgoing.events.send(event).await;
                        return None;
                    }
                }
            }
            match outgoing.items.recv().await? {
                FeedItem::Message { lineage, message, entries } => {
                    let message = convert::to_replica_out(lineage, &message, &entries);
                    return Some((message, outgoing));
                }
                FeedItem::Entries { lineage, append, last, read } => {
                    outgoing.reading = Some(Reading { lineage, append, last, read });
                }
            }
        }
    })
}

/// Reads the next piece and makes its message; the rest is what follows it.
async fn read_some(
    mut reading: Reading,
) -> Result<(v1::ReplicationMessage, Option<Reading>), FailureKind> {
    let joined = tokio::task::spawn_blocking(move || {
        let entries = reading.read.next(MESSAGE_BYTES, MESSAGE_ENTRIES);
        (reading, entries)
    });
    // The pool only fails to run a closure when the runtime stops.
    let (mut reading, entries) = joined.await.map_err(|_| FailureKind::Transport)?;
    let entries = entries?;
    let Some(end) = entries.last().map(|entry| entry.header.lsn) else {
        return Err(FailureKind::WalRecycled);
    };
    let mut append = reading.append.clone();
    append.entries = entries.iter().map(|entry| entry.header).collect();
    let message = convert::to_replica_out(reading.lineage, &ToReplica::Append(append), &entries);
    // One promise is asked for once: the stamp says when.
    reading.append.stamp = None;
    reading.append.prev = end;
    let rest = (end < reading.last).then_some(reading);
    Ok((message, rest))
}
