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
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::channels::{Channels, is_refusal};
use super::convert::{self, WireEntry};
use super::sent::Sent;
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
    Entries {
        lineage: Lineage,
        append: Append,
        last: Lsn,
        read: Box<dyn ReadEntries>,
        /// Where the log is read: its disk's threads.
        threads: Handle,
    },
}

/// Why entries of the log are not to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntriesLost {
    /// The WAL does not hold them any more, or nobody wants them.
    Gone(FailureKind),
    /// The disk does not give one back: a failure of this node's store, whatever the receiver does.
    Unreadable {
        /// Which.
        lsn: Lsn,
        /// Why, for people.
        what: String,
    },
}

/// Reads a stretch of the log, piece by piece, on a thread that may block.
pub trait ReadEntries: Send + std::fmt::Debug {
    /// The next entries, up to about `bytes` of payload and `entries` of them; at least one. Empty
    /// at the end.
    fn next(&mut self, bytes: usize, entries: usize) -> Result<Vec<WireEntry>, EntriesLost>;
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
        sent: Arc<Sent>,
    ) -> Self {
        let (queue, items) = mpsc::channel(FEED_QUEUE);
        let replica = lineage.to.id;
        let out = Outgoing {
            items,
            next: None,
            events: events.clone(),
            replica,
            lane,
            reading: None,
            sent,
        };
        let task = tokio::spawn(run(channels, addr.to_owned(), out, events));
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
    outgoing: Outgoing,
    events: mpsc::Sender<PeerEvent>,
) {
    let (replica, lane) = (outgoing.replica, outgoing.lane);
    let event = match stream(&channels, &addr, outgoing, &events).await {
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
    outgoing: Outgoing,
    events: &mpsc::Sender<PeerEvent>,
) -> Result<(), tonic::Status> {
    let mut client =
        channels.replication(addr).map_err(|e| tonic::Status::invalid_argument(e.to_string()))?;
    let mut answers = client.feed(messages(outgoing)).await?.into_inner();
    while let Some(answer) = answers.message().await? {
        let (lineage, message, beside) = convert::to_primary_in(answer)
            .map_err(|e| tonic::Status::invalid_argument(e.to_string()))?;
        if events.send(PeerEvent::FromReplica { lineage, message, beside }).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Where the sending half stands.
struct Outgoing {
    items: mpsc::Receiver<FeedItem>,
    /// The item after the one that was sent last, if it was looked at already.
    next: Option<FeedItem>,
    events: mpsc::Sender<PeerEvent>,
    replica: ReplicaId,
    lane: LaneId,
    reading: Option<Reading>,
    sent: Arc<Sent>,
}

/// A stretch of the log that is being read and sent.
struct Reading {
    lineage: Lineage,
    append: Append,
    last: Lsn,
    read: Box<dyn ReadEntries>,
    threads: Handle,
}

impl Outgoing {
    /// Adds appends that wait behind this one and go on where it ends: under load a message
    /// carries what came while the one before it was on its way.
    fn gather(&mut self, lineage: &Lineage, append: &mut Append, entries: &mut Vec<WireEntry>) {
        let mut bytes = payload_bytes(entries);
        while let Ok(item) = self.items.try_recv() {
            match item {
                FeedItem::Message {
                    lineage: next_lineage,
                    message: ToReplica::Append(next),
                    entries: more,
                } if next_lineage == *lineage
                    && continues(append, &next)
                    && entries.len() + more.len() <= MESSAGE_ENTRIES
                    && bytes + payload_bytes(&more) <= MESSAGE_BYTES =>
                {
                    bytes += payload_bytes(&more);
                    append.committed = append.committed.max(next.committed);
                    append.stamp = append.stamp.or(next.stamp);
                    append.entries.extend(next.entries);
                    entries.extend(more);
                }
                other => {
                    self.next = Some(other);
                    return;
                }
            }
        }
    }
}

fn payload_bytes(entries: &[WireEntry]) -> usize {
    entries.iter().map(|entry| entry.payload.len()).sum()
}

/// Whether a receiver that takes both does the same as one that takes them as one. A promise is
/// asked for at most once in a message: each question wants its own stamp back.
fn continues(append: &Append, next: &Append) -> bool {
    let end = append.entries.last().map_or(append.prev, |header| header.lsn);
    next.prev == end
        && (next.since, next.first) == (append.since, append.first)
        && (append.stamp.is_none() || next.stamp.is_none())
}

fn messages(outgoing: Outgoing) -> impl Stream<Item = v1::ReplicationMessage> {
    futures::stream::unfold(outgoing, async |mut outgoing| {
        loop {
            if let Some(reading) = outgoing.reading.take() {
                match read_some(reading).await {
                    Ok((message, bytes, rest)) => {
                        outgoing.sent.add_entries(bytes);
                        outgoing.reading = rest;
                        return Some((message, outgoing));
                    }
                    Err(lost) => {
                        let (replica, lane) = (outgoing.replica, outgoing.lane);
                        let event = PeerEvent::FeedFailed { replica, lane, lost };
                        // A volume task that has ended needs no answer.
                        let _ended = outgoing.events.send(event).await;
                        return None;
                    }
                }
            }
            let item = match outgoing.next.take() {
                Some(item) => item,
                None => outgoing.items.recv().await?,
            };
            match item {
                FeedItem::Message { lineage, mut message, mut entries } => {
                    if let ToReplica::Append(append) = &mut message {
                        outgoing.gather(&lineage, append, &mut entries);
                    }
                    outgoing.sent.add_entries(payload_bytes(&entries));
                    let message = convert::to_replica_out(lineage, &message, &entries);
                    return Some((message, outgoing));
                }
                FeedItem::Entries { lineage, append, last, read, threads } => {
                    outgoing.reading = Some(Reading { lineage, append, last, read, threads });
                }
            }
        }
    })
}

/// Reads the next piece and makes its message, with its payload's bytes; the rest is what follows it.
async fn read_some(
    mut reading: Reading,
) -> Result<(v1::ReplicationMessage, usize, Option<Reading>), EntriesLost> {
    let threads = reading.threads.clone();
    let joined = threads.spawn_blocking(move || {
        let entries = reading.read.next(MESSAGE_BYTES, MESSAGE_ENTRIES);
        (reading, entries)
    });
    // The pool only fails to run a closure when the runtime stops.
    let (mut reading, entries) =
        joined.await.map_err(|_| EntriesLost::Gone(FailureKind::Transport))?;
    let entries = entries?;
    let Some(end) = entries.last().map(|entry| entry.header.lsn) else {
        return Err(EntriesLost::Gone(FailureKind::WalRecycled));
    };
    let mut append = reading.append.clone();
    append.entries = entries.iter().map(|entry| entry.header).collect();
    let message = convert::to_replica_out(reading.lineage, &ToReplica::Append(append), &entries);
    // One promise is asked for once: the stamp says when.
    reading.append.stamp = None;
    reading.append.prev = end;
    let rest = (end < reading.last).then_some(reading);
    Ok((message, payload_bytes(&entries), rest))
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use sbk_engine::replication::log::{EntryHeader, EntryKind};
    use sbk_engine::replication::message::RecoveryId;
    use sbk_engine::types::{Epoch, Incarnation, Millis, VolumeId};
    use uuid::Uuid;

    use super::*;

    fn a_ref(id: u128) -> ReplicaRef {
        ReplicaRef { id: ReplicaId(Uuid::from_u128(id)), incarnation: Incarnation::default() }
    }

    fn lineage(epoch: u64) -> Lineage {
        let volume = VolumeId(Uuid::from_u128(1));
        Lineage { volume, epoch: Epoch(epoch), from: a_ref(2), to: a_ref(3) }
    }

    fn item(
        epoch: u64,
        committed: u64,
        stamp: Option<u64>,
        lsns: std::ops::Range<u64>,
    ) -> FeedItem {
        let header = |lsn| EntryHeader {
            lsn: Lsn(lsn),
            epoch: Epoch(epoch),
            kind: EntryKind::Resize { blocks: 8 },
            origin: None,
        };
        let headers: Vec<_> = lsns.clone().map(header).collect();
        let entries = headers.iter().map(|header| WireEntry {
            header: *header,
            crc: 0,
            payload: bytes::Bytes::new(),
        });
        FeedItem::Message {
            lineage: lineage(epoch),
            entries: entries.collect(),
            message: ToReplica::Append(Append {
                since: Epoch(1),
                first: Lsn(1),
                committed: Lsn(committed),
                stamp: stamp.map(Millis),
                prev: Lsn(lsns.start - 1),
                entries: headers,
            }),
        }
    }

    /// What a receiver gets of `items`, all of which wait when the first is taken: for each append
    /// its epoch, committed LSN, stamp, the LSN before it and the LSNs in it.
    async fn sent(items: Vec<FeedItem>) -> Vec<(u64, u64, Option<u64>, u64, Vec<u64>)> {
        let (queue, waiting) = mpsc::channel(items.len());
        for item in items {
            queue.try_send(item).expect("room for all");
        }
        drop(queue);
        let (events, _kept) = mpsc::channel(1);
        let (replica, lane) = (a_ref(3).id, LaneId(1));
        let outgoing = Outgoing {
            items: waiting,
            next: None,
            events,
            replica,
            lane,
            reading: None,
            sent: Arc::default(),
        };
        let messages: Vec<_> = messages(outgoing).collect().await;
        messages
            .into_iter()
            .filter_map(|message| {
                let (lineage, message, entries) =
                    convert::to_replica_in(message).expect("it can be read");
                let ToReplica::Append(append) = message else { return None };
                let lsns: Vec<_> = append.entries.iter().map(|header| header.lsn.0).collect();
                assert!(append.entries.iter().eq(entries.iter().map(|entry| &entry.header)));
                let stamp = append.stamp.map(|stamp| stamp.0);
                Some((lineage.epoch.0, append.committed.0, stamp, append.prev.0, lsns))
            })
            .collect()
    }

    #[tokio::test]
    async fn appends_that_wait_go_as_one_message() {
        let items = vec![
            item(1, 4, None, 5..6),
            item(1, 4, Some(70), 6..8),
            item(1, 5, None, 8..8),
            item(1, 6, None, 8..9),
        ];
        assert_eq!(sent(items).await, [(1, 6, Some(70), 4, vec![5, 6, 7, 8])]);
    }

    #[tokio::test]
    async fn what_is_no_continuation_goes_by_itself_and_in_its_place() {
        let session = RecoveryId { epoch: Epoch(2), number: 1 };
        let close = ToReplica::Close { session, through: Lsn(8), committed: Lsn(7) };
        let items = vec![
            item(1, 4, Some(70), 5..6),
            // Asks for another promise.
            item(1, 4, Some(80), 6..7),
            // Sent again from further down.
            item(1, 4, None, 5..8),
            // Another epoch.
            item(2, 4, None, 8..9),
            FeedItem::Message { lineage: lineage(2), message: close, entries: Vec::new() },
            item(2, 5, None, 9..10),
        ];
        let expected = [
            (1, 4, Some(70), 4, vec![5]),
            (1, 4, Some(80), 5, vec![6]),
            (1, 4, None, 4, vec![5, 6, 7]),
            (2, 4, None, 7, vec![8]),
            (2, 5, None, 8, vec![9]),
        ];
        assert_eq!(sent(items).await, expected);
    }
}
