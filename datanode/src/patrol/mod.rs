//! The scrub that goes on by itself: a node reads its own replicas, one after the other and slowly, and has
//! what rotted repaired.
//!
//! A block that rots is noticed when a primary reads it. One that nobody reads, or one of a follower, is not,
//! and as long as it is not a second copy may rot as well. So each in-sync replica is read whole once in a
//! while, in chunks of about a second, as `sbkctl volume scrub` has it read; what does not match its checksum
//! is told to the volume's primary, which logs it again (`docs/protocol.md`, "Rotten blocks"). Nothing
//! depends on it being right, or recent.
//!
//! One replica of a node is read at a time. Where a look was is kept ([`Ledger`]), so a restart goes on there.

mod ledger;
mod schedule;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use sbk_engine::replication::io::Fate;
use sbk_engine::replication::scrub::SCRUB_ROOM;
use sbk_engine::replication::view::RoleView;
use sbk_engine::types::{BLOCK_SIZE, Lba, REGION_BLOCKS, REGION_SIZE, ReplicaId, VolumeId};
use sbk_proto::v1::{ScrubFate, ScrubRequest};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until};

pub use self::ledger::{Ledger, Record, UnderWay};
pub use self::schedule::{Schedule, Window, parse_time};
use crate::catalogue::CatalogueWatch;
use crate::transport::Channels;
use crate::transport::convert::id_bytes;
use crate::volume::events::{Control, ScrubWaiter, VerifyReader};
use crate::volume::{Registry, RunState, VolumeHandle};

/// How often it is looked whether something is due: volumes come and go, and so do roles.
const LOOK: Duration = Duration::from_secs(5);
/// Most regions read in one go, and so for how long a checkpoint may be held back.
const MOST: u64 = 1024;
/// How often in a row a replica may tell nothing, or a primary settle nothing, before it is let be.
const ATTEMPTS: u32 = 30;
/// What it waits before it tries again.
const AGAIN: Duration = Duration::from_millis(200);
/// How long a primary may take to settle an order.
const ANSWER: Duration = Duration::from_secs(20);
/// How often the ledger is written while a look is under way.
const NOTED: Duration = Duration::from_secs(10);
/// Regions that wait to be taken.
const QUEUE: usize = 4;

/// What a chunk of a replica was found to be.
#[derive(Debug, Default)]
struct Chunk {
    /// The region behind the last one that was told.
    next: u64,
    bytes: u64,
    damaged: Vec<Lba>,
    /// The replica ends there.
    whole: bool,
}

/// Reads a node's replicas. See the module's documentation.
#[derive(Debug)]
pub struct Patrol {
    schedule: Schedule,
    path: PathBuf,
    registry: Registry,
    catalogue: CatalogueWatch,
    channels: Arc<Channels>,
    ledger: Ledger,
    shown: watch::Sender<Arc<Ledger>>,
    noted: Instant,
    /// It was shown since it was written.
    changed: bool,
    places: Arc<Semaphore>,
    /// Regions of the next chunk: more where nothing is written.
    chunk: u64,
    failures: u32,
}

impl Patrol {
    /// One that keeps its ledger at `path`, and shows it to who looks at what comes with it.
    pub fn new(
        schedule: Schedule,
        path: PathBuf,
        registry: Registry,
        catalogue: CatalogueWatch,
        channels: Arc<Channels>,
    ) -> (Self, watch::Receiver<Arc<Ledger>>) {
        let ledger = tokio::task::block_in_place(|| Ledger::read(&path));
        let (shown, seen) = watch::channel(Arc::new(ledger.clone()));
        let places = Arc::new(Semaphore::new(1));
        let (noted, chunk, failures) = (Instant::now(), 1, 0);
        let patrol = Self {
            schedule,
            path,
            registry,
            catalogue,
            channels,
            ledger,
            shown,
            noted,
            changed: false,
            places,
            chunk,
            failures,
        };
        (patrol, seen)
    }

    /// Goes on for ever, unless the schedule has it off.
    pub async fn run(mut self) {
        while !self.schedule.every.is_zero() {
            let now = unix_now();
            let here = self.registry.all();
            let here: Vec<_> = here.iter().map(|handle| (handle.volume, handle.replica)).collect();
            self.ledger.meet(&here, now);
            self.show();
            let opens = self.schedule.window.map_or(Duration::ZERO, |window| window.opens_in(now));
            let next = self.ledger.next(self.schedule.every.as_secs(), |v| self.is_ready(*v));
            match next {
                Some((replica, due)) if due <= now && opens.is_zero() => self.step(replica).await,
                Some((_, due)) => {
                    let due = Duration::from_secs(due.saturating_sub(now));
                    self.note().await;
                    sleep(due.max(opens).min(LOOK)).await;
                }
                None => {
                    self.note().await;
                    sleep(LOOK).await;
                }
            }
        }
    }

    /// Whether the volume's replica here is in sync and can be read.
    fn is_ready(&self, volume: VolumeId) -> bool {
        let Some(handle) = self.registry.get(volume) else { return false };
        let status = handle.current();
        let view = status.view.as_ref().filter(|_| status.run == RunState::Running);
        view.is_some_and(|view| {
            let listed =
                view.config.as_ref().is_some_and(|config| config.isr.contains(&view.me.id));
            let acts = matches!(view.role, RoleView::Primary | RoleView::Follower);
            listed && acts && view.incomplete.is_none()
        })
    }

    /// Reads the next chunk of a replica, and has what is damaged repaired.
    async fn step(&mut self, replica: ReplicaId) {
        let started = Instant::now();
        let record = self.ledger.0.get_mut(&replica).expect("it was chosen from there");
        let volume = record.volume;
        let began = UnderWay { began: unix_now(), ..UnderWay::default() };
        let next = record.under_way.get_or_insert(began).next;
        let Some(handle) = self.registry.get(volume) else { return };
        let mut chunk = Chunk { next, ..Chunk::default() };
        let read = self.read(&handle, &mut chunk).await;
        let came_on = chunk.next > next || chunk.whole;
        let not_repaired = self.repair(&handle, &chunk.damaged).await;
        let record = self.ledger.0.get_mut(&replica).expect("nobody else has the ledger");
        let under_way = record.under_way.as_mut().expect("it was begun");
        under_way.next = chunk.next;
        under_way.bytes += chunk.bytes;
        under_way.damaged += chunk.damaged.len() as u64;
        under_way.not_repaired += not_repaired;
        record.found += chunk.damaged.len() as u64;
        self.failures = if came_on { 0 } else { self.failures + 1 };
        if chunk.whole {
            let UnderWay { began, bytes, damaged, not_repaired, .. } = *under_way;
            let seconds = unix_now().saturating_sub(began);
            tracing::info!(%volume, %replica, bytes, seconds, damaged, not_repaired, "scrubbed");
            (record.passes, record.ended) = (record.passes + 1, unix_now());
            (record.damaged, record.not_repaired) = (damaged, not_repaired);
            self.end(replica, None).await;
        } else if let Err(error) = read {
            if self.failures >= ATTEMPTS {
                tracing::error!(%volume, %replica, error, "scrubbing was broken off");
                self.end(replica, Some(error)).await;
            } else {
                // A checkpoint moved the image on, as a rule: it goes on where it was.
                sleep(AGAIN).await;
            }
        }
        self.pace(&chunk);
        if self.noted.elapsed() >= NOTED {
            self.note().await;
        }
        if self.schedule.rate > 0 {
            let due = chunk.bytes as f64 / self.schedule.rate as f64;
            sleep_until(started + Duration::from_secs_f64(due)).await;
        }
    }

    /// A look has ended, or was broken off.
    async fn end(&mut self, replica: ReplicaId, failed: Option<String>) {
        let record = self.ledger.0.get_mut(&replica).expect("nobody else has the ledger");
        (record.under_way, record.since, record.failed) = (None, unix_now(), failed);
        self.failures = 0;
        self.note().await;
    }

    /// About a second's worth comes next, and more with each chunk in which nothing was written.
    fn pace(&mut self, read: &Chunk) {
        let second = match self.schedule.rate {
            0 => MOST,
            rate => (rate / REGION_SIZE).clamp(1, MOST),
        };
        self.chunk = if read.bytes > 0 { second } else { (self.chunk * 2).clamp(second, MOST) };
    }

    /// Reads the next regions of a replica, as far as it can be done.
    async fn read(&self, handle: &VolumeHandle, chunk: &mut Chunk) -> Result<(), String> {
        let place = Arc::clone(&self.places).acquire_owned().await.expect("it is never closed");
        let (out, mut regions) = mpsc::channel(QUEUE);
        let (first, count) = (chunk.next, self.chunk);
        let reader = VerifyReader { out, place };
        let order = Control::Verify { first, regions: count, reader };
        let sent = handle.control.send(order).await;
        sent.map_err(|_| "the replica has stopped".to_owned())?;
        while let Some(told) = regions.recv().await {
            let region = told.map_err(|status| status.message().to_owned())?;
            chunk.next = region.region + 1;
            // A region that nothing wrote is not read.
            if region.region_lsn > 0 {
                chunk.bytes += region.blocks * BLOCK_SIZE;
            }
            chunk.damaged.extend(region.damaged_blocks.iter().map(|block| Lba(*block)));
        }
        // A reader that ends early has reached the volume's end, or the replica stopped.
        let blocks = {
            let catalogue = self.catalogue.borrow();
            let volume = catalogue.volumes.get(&handle.volume);
            volume.map(|volume| volume.published_blocks()).filter(|blocks| *blocks > 0)
        };
        chunk.whole = blocks.is_some_and(|blocks| chunk.next >= blocks.div_ceil(REGION_BLOCKS));
        match chunk.whole || chunk.next == first + count {
            true => Ok(()),
            false => Err(format!("region {} was not told", chunk.next)),
        }
    }

    /// Has the volume's primary, whoever that is meanwhile, log blocks again. Returns how many of them it
    /// did not.
    async fn repair(&self, handle: &VolumeHandle, damaged: &[Lba]) -> u64 {
        let (mut open, mut lost, mut failures) = (damaged.to_vec(), 0, 0);
        let (volume, replica) = (handle.volume, handle.replica);
        if !open.is_empty() {
            tracing::warn!(%volume, %replica, blocks = ?open, "blocks are damaged; the primary is told");
        }
        while !open.is_empty() {
            let some = &open[..open.len().min(SCRUB_ROOM)];
            let settled = match self.order(handle, some).await {
                Ok(fates) => fates,
                Err(error) => {
                    tracing::debug!(%volume, %replica, error, "the primary does not repair");
                    Vec::new()
                }
            };
            let mut came_on = false;
            for (lba, fate) in settled {
                match fate {
                    Fate::Busy => continue,
                    Fate::Logged | Fate::Overtaken => {}
                    Fate::NotMended(why) => {
                        tracing::error!(%volume, %replica, block = lba.0, why, "a damaged block is not repaired");
                        lost += 1;
                    }
                }
                came_on = true;
                open.retain(|block| *block != lba);
            }
            failures = if came_on { 0 } else { failures + 1 };
            if failures >= ATTEMPTS {
                tracing::error!(%volume, %replica, blocks = ?open, "nobody repairs damaged blocks");
                return lost + open.len() as u64;
            }
            if !came_on {
                sleep(AGAIN).await;
            }
        }
        lost
    }

    /// Tells the volume's primary of damaged blocks.
    async fn order(
        &self,
        handle: &VolumeHandle,
        blocks: &[Lba],
    ) -> Result<Vec<(Lba, Fate)>, String> {
        let primary = {
            let catalogue = self.catalogue.borrow();
            let volume = catalogue.volumes.get(&handle.volume);
            let config = volume.and_then(|volume| volume.config.as_ref());
            let id = config.map(|config| config.primary.id);
            id.and_then(|id| Some((id, volume?.replicas.get(&id)?.addr.clone())))
        };
        let (primary, addr) = primary.ok_or("the volume has no primary")?;
        if primary == handle.replica {
            let place = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("it is free");
            let (done, told) = oneshot::channel();
            let waiter = ScrubWaiter { done, place };
            let order = Control::Scrub { blocks: blocks.to_vec(), waiter };
            let stopped = || "the replica has stopped".to_owned();
            handle.control.send(order).await.map_err(|_| stopped())?;
            let told = told.await.map_err(|_| stopped())?;
            return Ok(told.map_err(|status| status.message().to_owned())?.into_iter().collect());
        }
        let mut client = self.channels.replication(&addr).map_err(|error| error.to_string())?;
        let mut request = tonic::Request::new(ScrubRequest {
            volume: id_bytes(handle.volume.0),
            replica: id_bytes(primary.0),
            blocks: blocks.iter().map(|lba| lba.0).collect(),
        });
        request.set_timeout(ANSWER);
        let told = client.scrub(request).await.map_err(|status| status.to_string())?;
        let fates = told.into_inner().blocks.into_iter().filter_map(|told| {
            let fate = match ScrubFate::try_from(told.fate).unwrap_or_default() {
                ScrubFate::Logged => Fate::Logged,
                ScrubFate::Overtaken => Fate::Overtaken,
                ScrubFate::NotMended => Fate::NotMended(told.reason),
                ScrubFate::Busy => Fate::Busy,
                ScrubFate::Unspecified => return None,
            };
            Some((Lba(told.block), fate))
        });
        Ok(fates.collect())
    }

    /// Shows the ledger to who looks.
    fn show(&mut self) {
        if **self.shown.borrow() != self.ledger {
            self.shown.send_replace(Arc::new(self.ledger.clone()));
            self.changed = true;
        }
    }

    /// Writes the ledger, if it is another than before.
    async fn note(&mut self) {
        self.noted = Instant::now();
        self.show();
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let (ledger, path) = (self.ledger.clone(), self.path.clone());
        let written = tokio::task::spawn_blocking(move || ledger.write(&path)).await;
        if let Err(error) = written.expect("writing a file does not panic") {
            let path = self.path.display();
            tracing::warn!(%path, %error, "what was scrubbed when is not kept");
        }
    }
}

/// Seconds since 1970.
fn unix_now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs())
}
