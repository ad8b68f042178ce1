//! The base lane at the primary: the committed image to a replica that is rebuilt, or the regions that were
//! written since the image that it has.
//!
//! A block is read as it is committed, beneath entries that are not: those reach the receiver on the
//! WAL lane only, and a cut leaves it with what was committed. Waiting until they are committed
//! instead would be for ever if the set needs the receiver to commit anything. With each read
//! comes the LSN that it is not newer than; it travels along, and the session must reach the
//! highest of them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use sbk_engine::recovery::FailureKind;
use sbk_engine::replication::log::BlockRange;
use sbk_engine::replication::message::{Incomplete, Lineage, RecoveryId, ToReplica};
use sbk_engine::types::{BLOCK_SIZE, Lba, Lsn, REGION_BLOCKS};
use sbk_master_client::in_one_line;
use sbk_wal::is_zero;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::channels::Channels;
use super::convert::{self, Beside, Recover, ZEROS_BYTES};
use super::sent::{BaseSent, Progress, Sent};
use crate::volume::disk::CommittedReadPlan;
use crate::volume::events::{LaneId, PeerEvent};
use crate::volume::{LONGEST, Pace, VolumeStatus};

/// Messages that wait for the connection.
const LANE_QUEUE: usize = 16;
/// Bytes sent and not yet taken by the receiver.
const WINDOW_BYTES: u64 = 8 << 20;
/// Regions of one message of the region table.
const TABLE_CHUNK: usize = 64 << 10;

/// A wish of the lane to read blocks; the volume task makes the plan, the lane runs it.
#[derive(Debug)]
pub struct BaseRead {
    /// Which blocks.
    pub range: BlockRange,
    /// The plan.
    pub plan: oneshot::Sender<CommittedReadPlan>,
}

/// What the lane sends from. All of it comes from the volume task.
#[derive(Debug)]
pub struct BaseSource {
    /// The session's mark. The WAL lane brings what is above its base, so no block may be older.
    pub mark: Incomplete,
    /// Reads are asked for here.
    pub reads: mpsc::Sender<BaseRead>,
    /// The regions to send, ascending.
    pub regions: Vec<u64>,
    /// The region LSN table, from region 0, as of the same LSN.
    pub table: Vec<Lsn>,
    /// The volume's size.
    pub blocks: u64,
    /// How fast it may read.
    pub pace: Arc<Pace>,
    /// Where it reads: its disk's threads.
    pub threads: Handle,
    /// Whether the volume is served meanwhile: if not, it waits for nobody.
    pub status: watch::Receiver<Arc<VolumeStatus>>,
}

impl BaseSource {
    /// Resolves once the volume is not served, or has ended.
    async fn is_needed(&self) {
        let mut status = self.status.clone();
        let unserved =
            |status: &Arc<VolumeStatus>| !status.view.as_ref().is_some_and(|v| v.serving);
        let _ended = status.wait_for(unserved).await;
    }
}

/// A base lane. Dropping it ends the stream.
#[derive(Debug)]
pub struct BaseLane {
    session: RecoveryId,
    lane: LaneId,
    lineage: Lineage,
    messages: mpsc::Sender<(Lineage, Recover)>,
    start: Option<oneshot::Sender<BaseSource>>,
    progress: Arc<Progress>,
    task: AbortHandle,
}

impl Drop for BaseLane {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl BaseLane {
    /// Opens the stream and sends `begin`. What comes back and how it ends is told under the lane's number.
    pub fn open(
        channels: Arc<Channels>,
        addr: String,
        lineage: Lineage,
        session: RecoveryId,
        begin: ToReplica,
        (lane, events): (LaneId, mpsc::Sender<PeerEvent>),
        sent: Arc<Sent>,
    ) -> Self {
        let progress = Arc::<Progress>::default();
        let (messages, outgoing) = mpsc::channel(LANE_QUEUE);
        let (start, started) = oneshot::channel();
        let sender = Sender {
            lineage,
            session,
            messages: messages.clone(),
            events: events.clone(),
            taken: watch::channel(0).0,
            sent,
            progress: Arc::clone(&progress),
        };
        let first = Recover::ToReplica(begin);
        let task = tokio::spawn(async move {
            let cause = match sender.run(&channels, &addr, first, outgoing, started).await {
                Ok(()) => FailureKind::Transport,
                Err(cause) => cause,
            };
            // A volume task that has ended needs no answer.
            let _ended = events.send(PeerEvent::BaseFailed { session, lane, cause }).await;
        })
        .abort_handle();
        Self { session, lane, lineage, messages, start: Some(start), progress, task }
    }

    /// Its session.
    pub fn session(&self) -> RecoveryId {
        self.session
    }

    /// How far it has come.
    pub fn progress(&self) -> BaseSent {
        self.progress.now()
    }

    /// Its number.
    pub fn lane(&self) -> LaneId {
        self.lane
    }

    /// Whether its messages travel under `lineage`.
    pub fn serves(&self, lineage: &Lineage) -> bool {
        self.lineage.to == lineage.to && self.lineage.from == lineage.from
    }

    /// Starts to send blocks. A second start changes nothing.
    pub fn start(&mut self, source: BaseSource) {
        if let Some(start) = self.start.take() {
            // A lane that broke has reported so.
            let _broken = start.send(source);
        }
    }

    /// Queues a message of the engine behind the blocks that were sent. Returns whether there was
    /// room. It travels under its own lineage: the epoch may have moved since the lane was opened,
    /// and the receiver refuses what is of an older one than it promised.
    pub fn send(&self, lineage: Lineage, message: ToReplica) -> bool {
        self.messages.try_send((lineage, Recover::ToReplica(message))).is_ok()
    }
}

struct Sender {
    lineage: Lineage,
    session: RecoveryId,
    messages: mpsc::Sender<(Lineage, Recover)>,
    events: mpsc::Sender<PeerEvent>,
    taken: watch::Sender<u64>,
    sent: Arc<Sent>,
    progress: Arc<Progress>,
}

impl Sender {
    async fn run(
        self,
        channels: &Channels,
        addr: &str,
        begin: Recover,
        outgoing: mpsc::Receiver<(Lineage, Recover)>,
        started: oneshot::Receiver<BaseSource>,
    ) -> Result<(), FailureKind> {
        let mut client = channels.replication(addr).map_err(|error| {
            tracing::warn!(%error, "a base lane can't be opened");
            FailureKind::Transport
        })?;
        let lineage = self.lineage;
        let stream = futures::stream::iter([(lineage, begin)])
            .chain(ReceiverStream::new(outgoing))
            .map(|(lineage, message)| convert::recover_out(lineage, &message));
        let receive = async {
            let transport = |status: tonic::Status| {
                tracing::debug!(error = %status, "a base lane broke");
                FailureKind::Transport
            };
            let mut answers = client.recover(stream).await.map_err(transport)?.into_inner();
            while let Some(answer) = answers.message().await.map_err(transport)? {
                let (lineage, answer) = convert::recover_in(answer).map_err(|error| {
                    tracing::warn!(%error, "a base lane ended");
                    FailureKind::Transport
                })?;
                self.answered(lineage, answer).await?;
            }
            Ok(())
        };
        let send = async {
            // A lane that never starts goes on receiving: the replica may still refuse.
            if let Ok(source) = started.await {
                self.send_all(source).await?;
            }
            std::future::pending().await
        };
        tokio::select! {
            result = receive => result,
            result = send => result,
        }
    }

    async fn answered(&self, lineage: Lineage, answer: Recover) -> Result<(), FailureKind> {
        let session = self.session;
        let event = match answer {
            Recover::ToPrimary(message) => {
                PeerEvent::FromReplica { lineage, message, beside: Beside::default() }
            }
            Recover::Taken(bytes) => {
                self.taken.send_replace(bytes);
                self.progress.bytes_taken.store(bytes, Ordering::Relaxed);
                PeerEvent::BaseProgress { session, bytes }
            }
            Recover::ToReplica(_)
            | Recover::Blocks { .. }
            | Recover::Zeros { .. }
            | Recover::Regions { .. }
            | Recover::End => return Err(FailureKind::Transport),
        };
        self.events.send(event).await.map_err(|_| FailureKind::Invalidated)
    }

    /// Sends the regions, their table and the end, and waits until all of it was taken.
    async fn send_all(&self, source: BaseSource) -> Result<(), FailureKind> {
        let delta = source.mark.from > Lsn(0);
        let mut sent = 0;
        // The receiver holds what the table tells of once it has come so far.
        let mut through = source.table.iter().copied().max().unwrap_or(Lsn(0));
        // Regions of zeros send nothing, and the session comes on by what is sent.
        let mut may_wait = LONGEST;
        let ranges = || {
            source.regions.iter().map_while(|region| {
                let first = region * REGION_BLOCKS;
                // A receiver that was not wiped may have something beyond the volume's end.
                let end = if delta { first + REGION_BLOCKS } else { source.blocks };
                let blocks = REGION_BLOCKS.min(end.saturating_sub(first)) as u32;
                (blocks > 0).then_some(BlockRange { lba: Lba(first), blocks })
            })
        };
        let most: u64 = ranges().map(|range| u64::from(range.blocks) * BLOCK_SIZE).sum();
        self.progress.regions.store(ranges().count() as u64, Ordering::Relaxed);
        self.progress.bytes_most.store(most, Ordering::Relaxed);
        for range in ranges() {
            let bytes = u64::from(range.blocks) * BLOCK_SIZE;
            let waits = Instant::now();
            source.pace.wait(bytes, may_wait, source.is_needed()).await;
            may_wait = may_wait.saturating_sub(waits.elapsed());
            let (data, read_at) = self.read(&source, range).await?;
            through = through.max(read_at);
            for run in runs(range.lba, &data) {
                let message = match run {
                    Run::Data(lba, data) => {
                        sent += data.len() as u64;
                        self.sent.add_base(data.len());
                        let crc = convert::data_crc(&data);
                        Recover::Blocks { lba, data, read_at, crc }
                    }
                    Run::Zeros(lba, blocks) if delta => {
                        sent += ZEROS_BYTES;
                        Recover::Zeros { lba, blocks, read_at }
                    }
                    // A wiped replica reads as zeros anyway.
                    Run::Zeros(..) => continue,
                };
                may_wait = LONGEST;
                self.push(message).await?;
                self.progress.bytes_sent.store(sent, Ordering::Relaxed);
            }
            self.progress.regions_sent.fetch_add(1, Ordering::Relaxed);
            self.wait_taken(sent.saturating_sub(WINDOW_BYTES)).await?;
        }
        for (index, lsns) in source.table.chunks(TABLE_CHUNK).enumerate() {
            let first = (index * TABLE_CHUNK) as u64;
            self.push(Recover::Regions { first, lsns: lsns.to_vec() }).await?;
        }
        self.push(Recover::End).await?;
        self.wait_taken(sent).await?;
        let event = PeerEvent::BaseSent { session: self.session, through };
        self.events.send(event).await.map_err(|_| FailureKind::Invalidated)
    }

    /// The blocks as committed, and the LSN that they are not newer than.
    async fn read(
        &self,
        source: &BaseSource,
        range: BlockRange,
    ) -> Result<(Bytes, Lsn), FailureKind> {
        let (plan, planned) = oneshot::channel();
        let asked = source.reads.send(BaseRead { range, plan }).await;
        asked.map_err(|_| FailureKind::Invalidated)?;
        let plan = planned.await.map_err(|_| FailureKind::Invalidated)?;
        let read = source.threads.spawn_blocking(move || plan.run());
        match read.await.map_err(|_| FailureKind::Transport)? {
            Ok((data, read_at)) => {
                let base = source.mark.base;
                assert!(read_at >= base, "base blocks as of {read_at}, but the base is {base}");
                Ok((data, read_at))
            }
            Err(error) => {
                tracing::warn!(%error, lba = %range.lba, "a base block can't be read");
                if let Some(blocks) = error.rotten() {
                    // They are repaired while the session waits for its next attempt.
                    let (session, why) = (self.session, in_one_line(&error));
                    let event = PeerEvent::BaseRotten { session, blocks, why };
                    self.events.send(event).await.map_err(|_| FailureKind::Invalidated)?;
                }
                Err(FailureKind::StoreIo)
            }
        }
    }

    async fn wait_taken(&self, bytes: u64) -> Result<(), FailureKind> {
        let mut taken = self.taken.subscribe();
        taken.wait_for(|taken| *taken >= bytes).await.map_err(|_| FailureKind::Transport)?;
        Ok(())
    }

    async fn push(&self, message: Recover) -> Result<(), FailureKind> {
        self.messages.send((self.lineage, message)).await.map_err(|_| FailureKind::Transport)
    }
}

/// Blocks that lie side by side, all of them zeros or none.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Run {
    /// From this block on.
    Data(Lba, Bytes),
    /// From this block on, so many.
    Zeros(Lba, u32),
}

/// The runs of `data`, which starts at block `lba`.
fn runs(lba: Lba, data: &Bytes) -> Vec<Run> {
    let block = BLOCK_SIZE as usize;
    let blocks = data.len() / block;
    let zero = |n: usize| is_zero(&data[n * block..(n + 1) * block]);
    let mut runs = Vec::new();
    let mut at = 0;
    while at < blocks {
        let zeros = zero(at);
        let end = (at..blocks).find(|n| zero(*n) != zeros).unwrap_or(blocks);
        let first = Lba(lba.0 + at as u64);
        runs.push(match zeros {
            true => Run::Zeros(first, (end - at) as u32),
            false => Run::Data(first, data.slice(at * block..end * block)),
        });
        at = end;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_told_from_zeros() {
        let mut data = vec![0; 6 * BLOCK_SIZE as usize];
        for block in [1, 2, 5] {
            data[block * BLOCK_SIZE as usize + 7] = 1;
        }
        let data = Bytes::from(data);
        let part = |from: usize, to: usize| {
            data.slice(from * BLOCK_SIZE as usize..to * BLOCK_SIZE as usize)
        };
        let expected = [
            Run::Zeros(Lba(100), 1),
            Run::Data(Lba(101), part(1, 3)),
            Run::Zeros(Lba(103), 2),
            Run::Data(Lba(105), part(5, 6)),
        ];
        assert_eq!(runs(Lba(100), &data), expected);
        assert_eq!(runs(Lba(0), &Bytes::from(vec![0; 8192])), [Run::Zeros(Lba(0), 2)]);
    }
}
