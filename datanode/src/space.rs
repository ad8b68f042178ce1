//! The room on a disk.
//!
//! A file system that is full stops the stores on it. So what replicas may still take is looked at all the
//! time, and judged by the growth watermark: below it nothing is to be written where nothing was, and below a
//! quarter of it nothing at all (see `sbk_engine::replication::room`). What is logged and not in the extents yet
//! may take its room again there, so it counts as taken already; it is counted as it is logged, and not only
//! at the next look.
//!
//! Above the growth watermark there is another one, for placement: below it the disk is low on room, which the
//! masters are told, and put no new replica there. The node judges that and not the masters, for only here is
//! known what both marks are on this disk, so that the masters stop before the clients wait.
//!
//! What there is in all is the file system, or as much of it as `--capacity` says: then what replicas take is
//! held against that too, for whoever shares the disk.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sbk_engine::replication::room::{Room, Space};
use serde::Serialize;
use tokio::sync::watch;

/// The growth watermark if nothing is said, in percent of the disk.
const PERCENT: u64 = 5;
/// But at least so much, as long as that is not a large part of it: what a log takes at once.
const LEAST: u64 = 256 << 20;
/// How large a part that may be, in percent.
const LEAST_PERCENT: u64 = 10;
/// How far the placement watermark is above the growth watermark at most if nothing is said, in percent.
const ABOVE_PERCENT: u64 = 10;
/// What replicas take is looked at so much less often than it takes to look: it goes through all files.
const USED_SHARE: u32 = 50;

/// Below how much free space a disk is short of room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Watermark {
    /// 5 % of the disk, and 256 MiB at least, but no more than 10 % for that.
    #[default]
    Default,
    /// So many percent of the disk, up to 90; 0: it never is.
    Percent(u8),
    /// So many bytes; 0: it never is.
    Bytes(u64),
}

impl Watermark {
    /// From `5%` or bytes.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let Some(percent) = text.strip_suffix('%') else {
            return crate::args::parse_bytes(text).map(Self::Bytes);
        };
        match percent.trim().parse() {
            Ok(percent @ 0..=90) => Ok(Self::Percent(percent)),
            Ok(_) | Err(_) => Err(format!("'{text}' is not a part of a disk; write 5% or 10GiB")),
        }
    }

    fn of(self, size: u64) -> u64 {
        let percent = |percent| Self::percent_of(size, percent);
        match self {
            Self::Default => percent(PERCENT).max(percent(LEAST_PERCENT).min(LEAST)),
            Self::Percent(part) => percent(part.into()),
            Self::Bytes(bytes) => bytes,
        }
    }

    fn percent_of(size: u64, percent: u64) -> u64 {
        let part = u128::from(size) * u128::from(percent) / 100;
        u64::try_from(part).unwrap_or(u64::MAX)
    }
}

/// What replicas may take of a disk, and what is to be left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpaceLimits {
    /// Bytes that replicas may claim and take; `None`: what the disk has.
    pub capacity: Option<u64>,
    /// Below it nothing is to be written where nothing was.
    pub growth: Watermark,
    /// Below it no new replica is to come; `None`: twice the growth watermark, but no more than 10 % of the
    /// disk above it.
    pub placement: Option<Watermark>,
}

impl SpaceLimits {
    /// The growth watermark of a disk of that size, and the placement watermark, which is never below it: where
    /// the clients of those that are there wait for room, no other is to come.
    fn marks(self, size: u64) -> (u64, u64) {
        let growth = self.growth.of(size);
        let placement = match self.placement {
            Some(placement) => placement.of(size),
            None => growth.saturating_add(growth.min(Watermark::percent_of(size, ABOVE_PERCENT))),
        };
        (growth, placement.max(growth))
    }
}

/// How much room there is on a disk, by its watermarks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskRoom {
    /// Enough.
    #[default]
    Enough,
    /// Less than the placement watermark: no new replica is to come.
    Low,
    /// Less than the growth watermark.
    Short,
    /// Less than a quarter of that.
    Full,
}

/// What is known of the room on a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outlook {
    /// Bytes that replicas may still take there.
    pub(crate) free: u64,
    /// Bytes that they take.
    pub(crate) used: u64,
    /// Bytes that they could take in all.
    pub(crate) size: u64,
    /// How it is judged, and by which marks, in bytes.
    pub(crate) room: DiskRoom,
    pub(crate) growth: u64,
    pub(crate) placement: u64,
}

/// What a look at a file system finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Bytes free for this process.
    pub(crate) free: u64,
    /// Bytes that the file system has in all.
    pub(crate) size: u64,
}

/// What was found last.
#[derive(Clone, Copy, Debug)]
struct Looked {
    /// What replicas may take in all, and still, without what is logged.
    size: u64,
    free: u64,
    used: u64,
    used_at: Instant,
    used_took: Duration,
    /// Whether it was below the placement watermark.
    low: bool,
}

/// The room on one disk, for all replicas there.
#[derive(Debug)]
pub(crate) struct DiskSpace {
    limits: SpaceLimits,
    looked: Mutex<Option<Looked>>,
    /// Bytes that are logged there and not in the extents.
    pending: AtomicU64,
    /// With more than that it is to be judged anew.
    limit: AtomicU64,
    judged: watch::Sender<Space>,
}

impl DiskSpace {
    pub(crate) fn new(limits: SpaceLimits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            looked: Mutex::new(None),
            pending: AtomicU64::new(0),
            limit: AtomicU64::new(u64::MAX),
            judged: watch::Sender::new(Space::default()),
        })
    }

    /// The room from now on. Ample before the first look.
    pub(crate) fn watch(&self) -> watch::Receiver<Space> {
        self.judged.subscribe()
    }

    /// Takes what a look found, and looks what replicas take if that is due. Returns how it is. May block.
    pub(crate) fn look(&self, found: Found, used: impl FnOnce() -> u64) -> Outlook {
        // Not while it looks: those that log something wait for the lock.
        let before = *self.looked();
        let known = before.filter(|l| l.used_at.elapsed() < l.used_took * USED_SHARE);
        let (used, used_at, used_took) = match known {
            Some(known) => (known.used, known.used_at, known.used_took),
            None => {
                let begun = Instant::now();
                (used(), begun, begun.elapsed())
            }
        };
        let capacity = self.limits.capacity;
        let size = capacity.map_or(found.size, |capacity| capacity.min(found.size));
        let free = match capacity {
            Some(capacity) => found.free.min(capacity.saturating_sub(used)),
            None => found.free,
        };
        let (growth, placement) = self.limits.marks(size);
        let mut looked = self.looked();
        let free_now = free.saturating_sub(self.pending.load(Ordering::Relaxed));
        let low = !above(free_now, placement, before.is_some_and(|before| before.low));
        *looked = Some(Looked { size, free, used, used_at, used_took, low });
        self.judge(&looked);
        let room = match self.judged.borrow().room {
            Room::Ample if low => DiskRoom::Low,
            Room::Ample => DiskRoom::Enough,
            Room::Short => DiskRoom::Short,
            Room::Full => DiskRoom::Full,
        };
        Outlook { free, used, size, room, growth, placement }
    }

    fn looked(&self) -> MutexGuard<'_, Option<Looked>> {
        self.looked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Judges what was found last with what was logged since.
    fn judge(&self, looked: &Option<Looked>) {
        let Some(Looked { size, free, .. }) = *looked else { return };
        let pending = self.pending.load(Ordering::Relaxed);
        let free_now = free.saturating_sub(pending);
        let (watermark, _) = self.limits.marks(size);
        let mut limit = free.saturating_sub(watermark);
        self.judged.send_if_modified(|space| {
            let room = judge(space.room, free_now, watermark);
            if room == Room::Short {
                limit = free.saturating_sub(watermark / 4);
            }
            let changed = room != space.room || watermark != space.watermark;
            if changed {
                *space = Space { room, free: free_now, size, watermark };
            }
            changed
        });
        let off = watermark == 0;
        self.limit.store(if off { u64::MAX } else { limit }, Ordering::Relaxed);
    }

    /// Counts what one replica has logged.
    pub(crate) fn pending(self: &Arc<Self>) -> Pending {
        Pending { disk: Arc::clone(self), bytes: 0 }
    }
}

/// Whether so much is free as a watermark says. A disk that was below it has enough only with somewhat more:
/// what is logged and written in between is no reason to begin anew.
fn above(free: u64, mark: u64, was_below: bool) -> bool {
    free >= mark.saturating_add(if was_below { mark / 8 } else { 0 })
}

fn judge(before: Room, free: u64, watermark: u64) -> Room {
    let floor = watermark / 4;
    if watermark == 0 || above(free, watermark, before > Room::Ample) {
        Room::Ample
    } else if above(free, floor, before > Room::Short) {
        Room::Short
    } else {
        Room::Full
    }
}

/// What one replica has logged and not in its extents.
#[derive(Debug)]
pub(crate) struct Pending {
    disk: Arc<DiskSpace>,
    bytes: u64,
}

impl Pending {
    /// It is so much now.
    pub(crate) fn set(&mut self, bytes: u64) {
        let more = bytes.wrapping_sub(std::mem::replace(&mut self.bytes, bytes));
        let all = self.disk.pending.fetch_add(more, Ordering::Relaxed).wrapping_add(more);
        if all > self.disk.limit.load(Ordering::Relaxed) {
            self.disk.judge(&self.disk.looked());
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn of(capacity: Option<u64>, growth: Watermark) -> Arc<DiskSpace> {
        DiskSpace::new(SpaceLimits { capacity, growth, placement: None })
    }

    fn found(free: u64) -> Found {
        Found { free, size: 1000 * MIB }
    }

    #[test]
    fn a_watermark_is_a_part_of_a_disk_or_bytes() {
        assert_eq!(Watermark::parse("5%"), Ok(Watermark::Percent(5)));
        assert_eq!(Watermark::parse("2MiB"), Ok(Watermark::Bytes(2 * MIB)));
        for bad in ["", "%", "91%", "-1%", "5 MB"] {
            assert!(Watermark::parse(bad).is_err(), "{bad}");
        }
        let default = |size| Watermark::Default.of(size);
        assert_eq!(default(100 * MIB), 10 * MIB, "a small one is not taken up by it");
        assert_eq!(default(4000 * MIB), 256 * MIB);
        assert_eq!(default(1 << 40), (1 << 40) / 20);
        assert_eq!(default(u64::MAX), u64::MAX / 20);
    }

    #[test]
    fn the_room_goes_below_a_mark_and_comes_back_above_it() {
        let disk = of(None, Watermark::Bytes(80 * MIB));
        let mut room = disk.watch();
        let mut look = |free: u64| {
            disk.look(found(free * MIB), || 7);
            room.borrow_and_update().room
        };
        let falls = [(900, Room::Ample), (80, Room::Ample), (79, Room::Short), (20, Room::Short)];
        let rises = [(19, Room::Full), (22, Room::Full), (23, Room::Short), (89, Room::Short)];
        for (free, expected) in falls.into_iter().chain(rises).chain([(90, Room::Ample)]) {
            assert_eq!(look(free), expected, "{free} MiB free");
        }
    }

    #[test]
    fn what_is_logged_counts_at_once_and_what_is_closed_does_not() {
        let disk = of(None, Watermark::Bytes(80 * MIB));
        disk.look(found(100 * MIB), || 0);
        let room = disk.watch();
        let (mut one, mut other) = (disk.pending(), disk.pending());
        one.set(10 * MIB);
        other.set(10 * MIB);
        assert_eq!(room.borrow().room, Room::Ample);
        other.set(11 * MIB);
        let Space { room: short, free, .. } = *room.borrow();
        assert_eq!((short, free), (Room::Short, 79 * MIB));
        other.set(71 * MIB);
        assert_eq!(room.borrow().room, Room::Full);
        drop(other);
        disk.look(found(100 * MIB), || 0);
        assert_eq!(room.borrow().room, Room::Ample);
    }

    #[test]
    fn a_capacity_bounds_what_replicas_take() {
        let disk = of(Some(100 * MIB), Watermark::Percent(20));
        let outlook = disk.look(found(900 * MIB), || 70 * MIB);
        assert_eq!((outlook.free, outlook.used), (30 * MIB, 70 * MIB));
        assert_eq!(disk.watch().borrow().room, Room::Ample);
        let disk = of(Some(100 * MIB), Watermark::Percent(20));
        let outlook = disk.look(found(900 * MIB), || 81 * MIB);
        assert_eq!((outlook.free, outlook.used), (19 * MIB, 81 * MIB));
        let space = *disk.watch().borrow();
        assert_eq!((space.room, space.size), (Room::Short, 100 * MIB));
        let disk = of(Some(100 * MIB), Watermark::Percent(20));
        disk.look(found(10 * MIB), || 0);
        assert_eq!(disk.watch().borrow().room, Room::Short, "the file system is shared");
        let off = of(None, Watermark::Percent(0));
        off.look(found(0), || 0);
        assert_eq!(off.watch().borrow().room, Room::Ample);
    }

    #[test]
    fn a_disk_is_low_on_room_before_it_is_short_of_it() {
        let disk = of(None, Watermark::Bytes(80 * MIB));
        let look = |free: u64| disk.look(found(free * MIB), || 0).room;
        use DiskRoom::{Enough, Full, Low, Short};
        let falls = [(160, Enough), (159, Low), (80, Low), (79, Short), (19, Full)];
        let rises = [(90, Low), (179, Low), (180, Enough), (160, Enough)];
        for (free, expected) in falls.into_iter().chain(rises) {
            assert_eq!(look(free), expected, "{free} MiB free");
        }
        // What is logged counts.
        let mut pending = disk.pending();
        pending.set(10 * MIB);
        assert_eq!(disk.look(found(165 * MIB), || 0).room, Low);
    }

    #[test]
    fn the_placement_watermark_is_never_below_that_for_growth() {
        let size = 1000 * MIB;
        let marks = |growth, placement| {
            let (growth, placement) = SpaceLimits { capacity: None, growth, placement }.marks(size);
            (growth / MIB, placement / MIB)
        };
        let percent = Watermark::Percent;
        assert_eq!(marks(percent(5), None), (50, 100));
        assert_eq!(marks(percent(40), None), (400, 500), "not half of the disk more");
        assert_eq!(marks(percent(0), None), (0, 0), "switched off with it");
        assert_eq!(marks(percent(5), Some(percent(20))), (50, 200));
        assert_eq!(marks(percent(5), Some(Watermark::Bytes(MIB))), (50, 50));
        assert_eq!(marks(percent(0), Some(Watermark::Bytes(MIB))), (0, 1));
        assert_eq!(marks(Watermark::Bytes(u64::MAX), None).0, u64::MAX / MIB, "no overflow");
        let off = DiskSpace::new(SpaceLimits { growth: percent(0), ..SpaceLimits::default() });
        assert_eq!(off.look(found(0), || 0).room, DiskRoom::Enough);
    }
}
