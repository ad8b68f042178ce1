//! What a run is there to reach, and whether it did: a run that is right because nothing came to pass is none.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::keep::Told;
use super::schedule::Class;
use crate::workload::roaming::RoamingStats;

/// What the drill counts by itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Nodes that went on with their new key alone, with all replicas.
    pub(super) old_keys_dropped: u64,
    /// The most bytes of blocks that lay in their second home at a check: large writes that went to the disk once.
    pub(super) second_homes: u64,
    /// File systems that failed for good.
    pub(super) disks_failed: u64,
    /// Raw devices that did.
    pub(super) devices_failed: u64,
    /// Of both, those in whose place others were put.
    pub(super) disks_replaced: u64,
    /// Blocks in which a bit was flipped.
    pub(super) bits_flipped: u64,
    /// Blocks that were repaired for a scrub by hand.
    pub(super) scrub_repairs: u64,
}

impl Counts {
    /// Looks at what the cluster in `dir` has on its disks.
    pub(super) fn look(&mut self, dir: &Path) {
        self.second_homes = self.second_homes.max(allocated(dir, "shadow"));
    }
}

/// The space that files of this name take below `dir`. What goes while it is looked at is not counted.
fn allocated(dir: &Path, name: &str) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let mut sum = 0;
    for entry in entries.flatten() {
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_dir() {
            sum += allocated(&entry.path(), name);
        } else if entry.file_name() == name {
            sum += meta.blocks() * 512;
        }
    }
    sum
}

/// How often each thing was reached that a run is there for; 0 is to be told loudly. A run of a few
/// minutes may miss one; of a set of runs, each is to be reached by some.
pub(super) fn reached(
    told: &Told,
    faults: &BTreeMap<Class, u64>,
    loads: &RoamingStats,
    counts: Counts,
) -> BTreeMap<&'static str, u64> {
    let decided = |word: &str| told.decisions.get(word).copied().unwrap_or(0);
    let caused = |class: Class| faults.get(&class).copied().unwrap_or(0);
    BTreeMap::from([
        // The receiver tells of the end of these two, the sender of the beginning of a catch-up.
        ("catch-ups", decided("catch-up")),
        ("deltas", decided("delta-taken")),
        ("rebuilds", decided("rebuilt")),
        ("failovers", decided("promoted")),
        ("cuts", decided("cut")),
        ("large writes", loads.large_writes),
        ("bytes in second homes", counts.second_homes),
        ("zeros", loads.zeroes),
        ("trims", loads.trims),
        ("keys rotated", caused(Class::RotateKey)),
        ("old keys dropped", counts.old_keys_dropped),
        ("scrubs in the background", told.scrubs),
        ("disks failed", counts.disks_failed),
        ("devices failed", counts.devices_failed),
        ("disks replaced", counts.disks_replaced),
        ("bits flipped", counts.bits_flipped),
        ("blocks repaired for scrubs", counts.scrub_repairs),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_files_of_one_name_take_is_counted_wherever_they_are() {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::create_dir_all(dir.path().join("a/b")).expect("dirs");
        std::fs::write(dir.path().join("a/b/shadow"), vec![1; 1 << 16]).expect("writes");
        std::fs::write(dir.path().join("a/extents"), vec![1; 1 << 20]).expect("writes");
        let hole = std::fs::File::create(dir.path().join("shadow")).expect("makes");
        hole.set_len(1 << 30).expect("extends");
        let bytes = allocated(dir.path(), "shadow");
        assert!((1 << 16..1 << 18).contains(&bytes), "{bytes}");
    }

    #[test]
    fn what_was_not_reached_is_told_with_a_zero() {
        let told = Told { decisions: [("rebuilt".to_owned(), 2)].into(), scrubs: 0 };
        let loads = RoamingStats::default();
        let reached = reached(&told, &BTreeMap::new(), &loads, Counts::default());
        assert_eq!((reached["rebuilds"], reached["deltas"]), (2, 0));
    }
}
