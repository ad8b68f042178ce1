//! The room on a disk.
//!
//! A file system that is full stops the stores on it. So what replicas may still take is looked at all the
//! time, and judged by the growth watermark: below it nothing is to be written where nothing was, and below a
//! quarter of it nothing at all (see `sbk_engine::replication::room`). What is logged and not in the extents yet
//! may take its room again there, so it counts as taken already; it is counted as it is logged, and not only
//! at the next look.
//!
//! What there is in all is the file system, or as much of it as `--capacity` says: then what replicas take is
//! held against that too, for whoever shares the disk.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sbk_engine::replication::room::{Room, Space};
use tokio::sync::watch;

/// The growth watermark if nothing is said, in percent of the disk.
const PERCENT: u64 = 5;
/// But at least so much, as long as that is not a large part of it: what a log takes at once.
const LEAST: u64 = 256 << 20;
/// How large a part that may be, in percent.
const LEAST_PERCENT: u64 = 10;
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
        let percent = |percent: u64| u128::from(size) * u128::from(percent) / 100;
        let bytes = match self {
            Self::Default => percent(PERCENT).max(percent(LEAST_PERCENT).min(u128::from(LEAST))),
            Self::Percent(part) => percent(part.into()),
            Self::Bytes(bytes) => return bytes,
        };
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
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
}

/// The room on one disk, for all replicas there.
#[derive(Debug)]
pub(crate) struct DiskSpace {
    capacity: Option<u64>,
    watermark: Watermark,
    looked: Mutex<Option<Looked>>,
    /// Bytes that are logged there and not in the extents.
    pending: AtomicU64,
    /// With more than that it is to be judged anew.
    limit: AtomicU64,
    judged: watch::Sender<Space>,
}

impl DiskSpace {
    pub(crate) fn new(capacity: Option<u64>, watermark: Watermark) -> Arc<Self> {
        Arc::new(Self {
            capacity,
            watermark,
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

    /// Takes what a look found, and looks what replicas take if that is due. Returns what they may still
    /// take, and what they take. May block.
    pub(crate) fn look(&self, found: Found, used: impl FnOnce() -> u64) -> (u64, u64) {
        // Not while it looks: those that log something wait for the lock.
        let known = *self.looked();
        let known = known.filter(|l| l.used_at.elapsed() < l.used_took * USED_SHARE);
        let (used, used_at, used_took) = match known {
            Some(known) => (known.used, known.used_at, known.used_took),
            None => {
                let begun = Instant::now();
                (used(), begun, begun.elapsed())
            }
        };
        let size = self.capacity.map_or(found.size, |capacity| capacity.min(found.size));
        let free = match self.capacity {
            Some(capacity) => found.free.min(capacity.saturating_sub(used)),
            None => found.free,
        };
        let mut looked = self.looked();
        *looked = Some(Looked { size, free, used, used_at, used_took });
        self.judge(&looked);
        (free, used)
    }

    fn looked(&self) -> MutexGuard<'_, Option<Looked>> {
        self.looked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Judges what was found last with what was logged since.
    fn judge(&self, looked: &Option<Looked>) {
        let Some(Looked { size, free, .. }) = *looked else { return };
        let pending = self.pending.load(Ordering::Relaxed);
        let free_now = free.saturating_sub(pending);
        let watermark = self.watermark.of(size);
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

/// A disk that ran short of room has enough only with somewhat more than the watermark: what is logged and
/// written in between is no reason to begin anew.
fn judge(before: Room, free: u64, watermark: u64) -> Room {
    let floor = watermark / 4;
    let above = |mark: u64, was_below: bool| free >= mark + if was_below { mark / 8 } else { 0 };
    if watermark == 0 || above(watermark, before > Room::Ample) {
        Room::Ample
    } else if above(floor, before > Room::Short) {
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
        let disk = DiskSpace::new(None, Watermark::Bytes(80 * MIB));
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
        let disk = DiskSpace::new(None, Watermark::Bytes(80 * MIB));
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
        let disk = DiskSpace::new(Some(100 * MIB), Watermark::Percent(20));
        assert_eq!(disk.look(found(900 * MIB), || 70 * MIB), (30 * MIB, 70 * MIB));
        assert_eq!(disk.watch().borrow().room, Room::Ample);
        let disk = DiskSpace::new(Some(100 * MIB), Watermark::Percent(20));
        assert_eq!(disk.look(found(900 * MIB), || 81 * MIB), (19 * MIB, 81 * MIB));
        let space = *disk.watch().borrow();
        assert_eq!((space.room, space.size), (Room::Short, 100 * MIB));
        let disk = DiskSpace::new(Some(100 * MIB), Watermark::Percent(20));
        disk.look(found(10 * MIB), || 0);
        assert_eq!(disk.watch().borrow().room, Room::Short, "the file system is shared");
        let off = DiskSpace::new(None, Watermark::Percent(0));
        off.look(found(0), || 0);
        assert_eq!(off.watch().borrow().room, Room::Ample);
    }
}
