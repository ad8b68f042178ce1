//! The tails of a node's replicas: what tells whether written but unsynced entries may be gone.
//!
//! A file for each replica in a directory that should be in memory (`/run`), with the machine's boot
//! and a count: so it outlives a process that is killed, as the page cache does, and not a power cut. A
//! failing disk must not be able to bring back an older count. A file that is missing, unreadable or of
//! another boot tells nothing of the tail, so a count is drawn that was never used: the replica is out
//! of sync then, which is the safe side.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sbk_engine::types::{BootId, ReplicaId, TailId};
use uuid::Uuid;

/// See the [module's documentation](self).
#[derive(Debug)]
pub struct Tails {
    dir: PathBuf,
    boot: BootId,
}

impl Tails {
    /// Those kept in `dir`, on a machine in this boot.
    pub fn new(dir: PathBuf, boot: BootId) -> Self {
        Self { dir, boot }
    }

    /// The replica's tail, which stands for what was written in this boot and not lost since.
    pub fn current(&self, replica: ReplicaId) -> TailId {
        match self.read(replica) {
            Some(count) => TailId { boot: self.boot, count },
            None => self.keep(replica, fresh()),
        }
    }

    /// Something of the tail may be gone: from now on it is another one.
    pub fn renew(&self, replica: ReplicaId) -> TailId {
        let count = self.read(replica).map_or_else(fresh, |count| count.wrapping_add(1));
        self.keep(replica, count)
    }

    /// The replica is no more.
    pub fn forget(&self, replica: ReplicaId) {
        // Replicas that were made before there was a tail have none, and one that stays does no harm:
        // the name comes never again.
        let _gone = fs::remove_file(self.path(replica));
    }

    fn path(&self, replica: ReplicaId) -> PathBuf {
        self.dir.join(replica.to_string())
    }

    fn read(&self, replica: ReplicaId) -> Option<u64> {
        let text = fs::read_to_string(self.path(replica)).ok()?;
        let (boot, count) = text.trim_end().split_once(' ')?;
        (boot.parse() == Ok(self.boot)).then(|| count.parse().ok()).flatten()
    }

    fn keep(&self, replica: ReplicaId, count: u64) -> TailId {
        let tail = TailId { boot: self.boot, count };
        let Err(error) = self.write(&self.path(replica), tail) else { return tail };
        // What stands there may be an earlier one, which must not be taken for this; a count that no
        // file has is never found again.
        let _gone = fs::remove_file(self.path(replica));
        tracing::warn!(
            %replica, dir = %self.dir.display(), %error,
            "the replica's tail can't be kept: with written acknowledgements it is out of sync after \
             its process ends; see --runtime-dir"
        );
        TailId { boot: self.boot, count: fresh() }
    }

    fn write(&self, path: &Path, tail: TailId) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        let part = path.with_extension("part");
        fs::write(&part, format!("{} {}\n", tail.boot, tail.count))?;
        fs::rename(part, path)
    }
}

/// A count that was never used: drawn, and far below the largest.
fn fresh() -> u64 {
    (Uuid::new_v4().as_u128() as u64) >> 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_outlives_its_process_and_neither_a_boot_nor_a_loss() {
        let dir = tempfile::tempdir().expect("a directory");
        let replica = ReplicaId(Uuid::from_u128(1));
        let boot = BootId(Uuid::from_u128(2));
        let tails = || Tails::new(dir.path().join("tails"), boot);
        let first = tails().current(replica);
        assert_eq!(
            (first.boot, tails().current(replica)),
            (boot, first),
            "killed and started again"
        );
        let renewed = tails().renew(replica);
        assert_ne!(renewed, first, "a sync failed");
        assert_eq!(tails().current(replica), renewed);
        tails().forget(replica);
        assert_ne!(tails().current(replica), renewed, "its replica was removed");
        let renewed = tails().renew(replica);
        let other = Tails::new(dir.path().join("tails"), BootId(Uuid::from_u128(3)));
        assert_ne!(other.current(replica).count, renewed.count, "power was lost");
        // The directory was emptied under it.
        std::fs::remove_dir_all(dir.path().join("tails")).expect("removed");
        assert_ne!(tails().current(replica), renewed);
        // Nowhere to keep it: never the same twice.
        let nowhere = Tails::new("/dev/null/tails".into(), boot);
        assert_ne!(nowhere.current(replica), nowhere.current(replica));
    }
}
