//! What was looked at, and when: kept in a file, so that a restart goes on where it was.
//!
//! Nothing depends on it but when blocks are read again. So the file is not synced, and one that is missing
//! or can't be read is one in which nothing stands.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use sbk_engine::types::{ReplicaId, VolumeId};
use serde::{Deserialize, Serialize};

/// How often replicas were looked at, and what was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its volume.
    pub volume: VolumeId,
    /// When the last look at it ended or was broken off, or when it was first seen; in seconds since 1970.
    pub since: u64,
    /// How many looks at it came to their end.
    pub passes: u64,
    /// When the last of them did, in seconds since 1970; 0 if none did.
    pub ended: u64,
    /// Damaged blocks that the last one of them found.
    pub damaged: u64,
    /// Those of them that were not repaired, for no in-sync replica could give them or nobody answered.
    pub not_repaired: u64,
    /// Damaged blocks that all looks found, those that came to no end included.
    pub found: u64,
    /// Why the last look at it was broken off, if it was.
    pub failed: Option<String>,
    /// The look that is under way.
    pub under_way: Option<UnderWay>,
}

impl Record {
    fn new(volume: VolumeId, since: u64) -> Self {
        Self {
            volume,
            since,
            passes: 0,
            ended: 0,
            damaged: 0,
            not_repaired: 0,
            found: 0,
            failed: None,
            under_way: None,
        }
    }
}

/// A look at a replica that has not come to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnderWay {
    /// When it began, in seconds since 1970.
    pub began: u64,
    /// The region (1 MiB) that comes next.
    pub next: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Damaged blocks that were found.
    pub damaged: u64,
    /// Those that were not repaired.
    pub not_repaired: u64,
}

/// The records of a node's replicas.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger(pub BTreeMap<ReplicaId, Record>);

impl Ledger {
    /// What stands in the file.
    pub fn read(path: &Path) -> Self {
        let read = std::fs::read(path).and_then(|text| Ok(serde_json::from_slice(&text)?));
        match read {
            Ok(ledger) => ledger,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => {
                let path = path.display();
                tracing::warn!(%path, %error, "what was scrubbed when is not known; it begins anew");
                Self::default()
            }
        }
    }

    /// Puts it in the place of the file.
    ///
    /// # Errors
    /// If the disk says no. The file is what it was.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let new: PathBuf = path.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(self)?)?;
        std::fs::rename(&new, path)
    }

    /// Takes in the replicas that are here now, in seconds since 1970: one that is new has its first look
    /// after as long as any other, for it was just written.
    pub fn meet(&mut self, here: &[(VolumeId, ReplicaId)], now: u64) {
        self.0.retain(|replica, _| here.iter().any(|(_, id)| id == replica));
        for (volume, replica) in here {
            let record = self.0.entry(*replica).or_insert_with(|| Record::new(*volume, now));
            // A clock that was set back must not put it off for as long.
            record.since = record.since.min(now);
        }
    }

    /// Which replica is to be looked at next, of those that `ready` says can be, and when, in seconds since
    /// 1970: one that was begun, else the one for which it is longest ago.
    pub fn next(&self, every: u64, ready: impl Fn(&VolumeId) -> bool) -> Option<(ReplicaId, u64)> {
        let due = |record: &Record| match &record.under_way {
            Some(_) => 0,
            None => record.since.saturating_add(every),
        };
        let candidates = self.0.iter().filter(|(_, record)| ready(&record.volume));
        candidates.map(|(replica, record)| (*replica, due(record))).min_by_key(|(_, due)| *due)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn ids(n: u128) -> (VolumeId, ReplicaId) {
        (VolumeId(Uuid::from_u128(n)), ReplicaId(Uuid::from_u128(100 + n)))
    }

    #[test]
    fn the_one_begun_goes_on_then_the_longest_ago_comes() {
        let mut ledger = Ledger::default();
        ledger.meet(&[ids(1), ids(2)], 50);
        ledger.meet(&[ids(1), ids(2), ids(3)], 70);
        assert_eq!(ledger.next(100, |_| true), Some((ids(1).1, 150)));
        assert_eq!(ledger.next(100, |volume| *volume == ids(3).0), Some((ids(3).1, 170)));
        ledger.0.get_mut(&ids(3).1).expect("is there").under_way = Some(UnderWay::default());
        assert_eq!(ledger.next(100, |_| true), Some((ids(3).1, 0)));
        assert_eq!(ledger.next(100, |_| false), None);
    }

    #[test]
    fn replicas_that_left_are_forgotten() {
        let mut ledger = Ledger::default();
        ledger.meet(&[ids(1), ids(2)], 50);
        ledger.meet(&[ids(2)], 60);
        assert_eq!(ledger.0.keys().copied().collect::<Vec<_>>(), [ids(2).1]);
        assert_eq!(ledger.0[&ids(2).1].since, 50);
    }

    #[test]
    fn it_is_read_as_it_was_written_and_a_damaged_file_is_an_empty_one() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("scrubs.json");
        assert_eq!(Ledger::read(&path), Ledger::default());
        let mut ledger = Ledger::default();
        ledger.meet(&[ids(1)], 50);
        let under_way = UnderWay { began: 60, next: 7, bytes: 8, damaged: 2, not_repaired: 1 };
        ledger.0.get_mut(&ids(1).1).expect("is there").under_way = Some(under_way);
        ledger.write(&path).expect("writes");
        assert_eq!(Ledger::read(&path), ledger);
        std::fs::write(&path, b"{\"x").expect("writes");
        assert_eq!(Ledger::read(&path), Ledger::default());
    }
}
