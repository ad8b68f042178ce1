//! Whether a disk works, found out by using it.
//!
//! One thread for each disk writes a block there every few seconds. Three failures in a row make the disk
//! one that failed: a single one may be of one place on it. So does a call that does not come back: another
//! task looks at how long the thread has been at it. A full disk works.
//!
//! A disk that failed is let go of, so that it can be unmounted, and its directory is tried again every few
//! seconds: once it is mounted it is taken back. One that fails again soon after is left alone for longer
//! each time, for each return may cost clients a pause.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sbk_master_client::in_one_line;
use sbk_store::{Backing, Member, NodeError, Place};

use super::{DataDisk, DiskState, Fault};
use crate::space::{DiskSpace, Found, Outlook, SpaceLimits};
use crate::volume::clock;

/// How often a disk that works is tried.
const CHECK: Duration = Duration::from_secs(2);
/// How soon after a failure.
const AGAIN: Duration = Duration::from_secs(1);
/// So many in a row make it one that failed.
const FAILURES: u32 = 3;
/// A call that takes so long does not come back: one for which a device tries again and again ends sooner.
const HANGS_MS: u64 = 30_000;
/// How often a disk that is away is looked for.
const LOOK: Duration = Duration::from_secs(5);
/// The longest time for which one that failed again and again is left alone.
const MOST: Duration = Duration::from_secs(15 * 60);
/// One that worked for so long since it was taken back has its failures forgiven.
const LONG_RUN: Duration = Duration::from_secs(10 * 60);

/// A disk that is looked after, and what is open of it: its directory, or the device.
#[derive(Debug)]
pub struct Watched {
    /// The disk.
    pub disk: Arc<DataDisk>,
    dir: Mutex<Option<Arc<dyn Backing>>>,
    /// When the call began that is under way, on the boot clock; 0 for none.
    busy_since: AtomicU64,
    /// Bytes that replicas may claim there, if that is limited.
    capacity: Option<u64>,
    /// Whether it is short of room.
    pub(crate) space: Arc<DiskSpace>,
    /// As last measured.
    room: Mutex<Option<Room>>,
    measuring: AtomicBool,
    /// Ends the thread when it is dropped.
    _running: Sender<()>,
}

impl Watched {
    /// Looks after the disk at `place` from now on; what replicas there did before they failed is kept in `recordings`.
    pub fn start(
        member: &Arc<Member>,
        place: Place,
        opened: Result<Arc<dyn Backing>, NodeError>,
        recordings: PathBuf,
        limits: SpaceLimits,
    ) -> Arc<Self> {
        let path = place.path();
        let (dir, fault) = match opened {
            Ok(dir) => (Some(dir), None),
            Err(error) => (None, Some(Fault::now(in_one_line(&error)))),
        };
        if let Some(fault) = &fault {
            tell(path, fault);
        }
        let state = DiskState { fault, ..DiskState::default() };
        let disk = DataDisk::new(path, Some(recordings), state);
        let (running, stopped) = channel();
        let watched = Arc::new(Self {
            disk,
            dir: Mutex::default(),
            busy_since: AtomicU64::new(0),
            capacity: limits.capacity,
            space: DiskSpace::new(limits),
            room: Mutex::default(),
            measuring: AtomicBool::new(false),
            _running: running,
        });
        if let Some(dir) = dir {
            watched.use_dir(dir);
        }
        let weak = Arc::downgrade(&watched);
        let member = Arc::clone(member);
        let mut care = Care::default();
        std::thread::Builder::new()
            .name("sbk-disk-watch".into())
            .spawn(move || {
                loop {
                    let Some(watched) = weak.upgrade() else { return };
                    let pause = watched.turn(&member, &place, &mut care);
                    drop(watched);
                    if !sleeps(&stopped, pause) {
                        return;
                    }
                }
            })
            .expect("a thread for each disk");
        watched
    }

    /// The directory or the device, while it is open.
    pub fn dir(&self) -> Option<Arc<dyn Backing>> {
        self.dir.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks whether the call that is under way hangs.
    pub fn look(&self) {
        let since = self.busy_since.load(Ordering::Relaxed);
        let busy = clock::now().0.saturating_sub(since);
        if since > 0 && busy >= HANGS_MS && self.disk.fault().is_none() {
            let seconds = busy / 1000;
            self.fail(format!("it has not answered for {seconds} s"));
        }
    }

    /// Looks how much room there is, on its own threads.
    fn measure(self: &Arc<Self>) {
        let Some(dir) = self.dir().filter(|_| self.disk.fault().is_none()) else { return };
        // One that hangs is not asked again.
        if self.measuring.swap(true, Ordering::SeqCst) {
            return;
        }
        let watched = Arc::clone(self);
        self.disk.threads().spawn_blocking(move || {
            watched.keep_room(&*dir);
            watched.measuring.store(false, Ordering::SeqCst);
        });
    }

    fn keep_room(&self, dir: &dyn Backing) {
        match self.look_for_room(dir) {
            Ok(room) => *self.room.lock().unwrap_or_else(PoisonError::into_inner) = Some(room),
            Err(error) => tracing::warn!(%error, "the free space is unknown"),
        }
    }

    fn look_for_room(&self, dir: &dyn Backing) -> Result<Room, NodeError> {
        let found = dir.space()?;
        let found = Found { free: found.free, size: found.size };
        let outlook = self.space.look(found, || dir.used_bytes());
        Ok(Room { of: dir.shares()?, outlook })
    }

    fn use_dir(&self, dir: Arc<dyn Backing>) {
        let id = dir.id().to_string();
        self.keep_room(&*dir);
        *self.dir.lock().unwrap_or_else(PoisonError::into_inner) = Some(dir);
        self.disk.set(|state| (state.id, state.fault) = (Some(id), None));
    }

    fn fail(&self, reason: String) {
        let fault = Fault::now(reason);
        tell(self.disk.path(), &fault);
        self.disk.set(|state| state.fault = Some(fault));
    }

    /// Tries the disk once. Returns for how long to leave it alone.
    fn turn(&self, member: &Member, place: &Place, care: &mut Care) -> Duration {
        self.busy_since.store(clock::now().0, Ordering::Relaxed);
        let pause = match self.dir() {
            Some(dir) => self.check(&*dir, care),
            None => self.take_back(member, place, care),
        };
        self.busy_since.store(0, Ordering::Relaxed);
        pause
    }

    fn check(&self, dir: &dyn Backing, care: &mut Care) -> Duration {
        match dir.check() {
            Ok(()) => {
                care.failures = 0;
                if self.disk.fault().is_some() {
                    // It had only not answered for long.
                    tracing::warn!(path = %dir.path().display(), "the disk answers again");
                    self.disk.set(|state| state.fault = None);
                }
                CHECK
            }
            Err(error) => {
                care.failures += 1;
                let reason = in_one_line(&error);
                if care.failures < FAILURES {
                    tracing::warn!(%reason, "a disk did not take what was written");
                    return AGAIN;
                }
                *self.dir.lock().unwrap_or_else(PoisonError::into_inner) = None;
                self.fail(reason);
                care.fell()
            }
        }
    }

    fn take_back(&self, member: &Member, place: &Place, care: &mut Care) -> Duration {
        let path = place.path();
        match member.take_back(place).and_then(|dir| dir.check().map(|()| dir)) {
            Ok(dir) => {
                tracing::warn!(path = %path.display(), "the disk is back");
                care.back = Some(Instant::now());
                self.use_dir(dir);
                CHECK
            }
            Err(error) => {
                tracing::debug!(%error, "a disk is still away");
                LOOK
            }
        }
    }
}

/// The room on a disk.
#[derive(Clone, Copy, Debug)]
struct Room {
    /// The file system or the device that has it.
    of: u64,
    outlook: Outlook,
}

/// Looks how much room there is on the disks that work. Those on one file system share what is free there:
/// it is there once. What they may claim is known from the first look after they were opened.
pub fn share_room(disks: &[Arc<Watched>]) {
    let usable = disks.iter().filter(|watched| watched.disk.fault().is_none());
    let room = |watched: &Arc<Watched>| {
        let room = *watched.room.lock().unwrap_or_else(PoisonError::into_inner);
        room.map(|room| (Arc::clone(watched), room))
    };
    let rooms: Vec<_> = usable.filter_map(room).collect();
    for (watched, room) in &rooms {
        let on_it = |other: &&(_, Room)| other.1.of == room.of;
        let Outlook { free, used, size, room: judged, growth, placement } = room.outlook;
        let free = free / rooms.iter().filter(on_it).count().max(1) as u64;
        watched.disk.set(|state| {
            (state.free_bytes, state.used_bytes, state.size_bytes) = (free, used, size);
            state.room = judged;
            (state.growth_watermark_bytes, state.placement_watermark_bytes) = (growth, placement);
            if state.capacity_bytes == 0 {
                state.capacity_bytes = watched.capacity.unwrap_or(free + used);
            }
        });
        watched.measure();
    }
}

/// What the thread remembers from turn to turn.
#[derive(Debug, Default)]
struct Care {
    /// Failures in a row.
    failures: u32,
    /// When it was taken back last.
    back: Option<Instant>,
    /// How often it failed soon after it was taken back.
    falls: u32,
}

impl Care {
    /// It failed. Returns for how long to leave it alone.
    fn fell(&mut self) -> Duration {
        self.failures = 0;
        let soon = self.back.is_some_and(|back| back.elapsed() < LONG_RUN);
        self.falls = if soon { self.falls + 1 } else { 0 };
        LOOK.saturating_mul(1 << self.falls.min(16)).min(MOST)
    }
}

fn tell(path: &Path, fault: &Fault) {
    tracing::error!(
        path = %path.display(), reason = %fault.reason,
        "a disk can't be used: its replicas are away, the others are served; once it is mounted and \
         works it is used again"
    );
}

/// Returns false if the thread is to end.
fn sleeps(stopped: &Receiver<()>, pause: Duration) -> bool {
    matches!(stopped.recv_timeout(pause), Err(RecvTimeoutError::Timeout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_fails_again_soon_is_left_alone_for_longer() {
        let mut care = Care::default();
        assert_eq!((care.fell(), care.fell()), (LOOK, LOOK), "never taken back in between");
        care.back = Some(Instant::now());
        let pauses: Vec<_> = (0..20).map(|_| care.fell()).collect();
        assert_eq!(pauses[..2], [2 * LOOK, 4 * LOOK]);
        assert!(pauses.is_sorted() && pauses[19] == MOST);
        care.back = Instant::now().checked_sub(LONG_RUN);
        if care.back.is_some() {
            assert_eq!(care.fell(), LOOK, "forgiven");
        }
    }
}
