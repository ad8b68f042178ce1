//! Where two logs part, over all pairs of short logs that two primaries can have left, against the
//! logs themselves.

use sbk_engine::replication::log::EpochTable;
use sbk_engine::types::{Epoch, Lsn};

/// A log: the epoch of each entry, from LSN 1 on, and an epoch that began at its end and has logged
/// nothing yet.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    pub(crate) entries: Vec<u64>,
    begun: Option<u64>,
}

/// All logs of so many entries at most, in so many epochs, which go up in a log.
pub(crate) fn logs(entries: usize, epochs: u64) -> Vec<Log> {
    let mut all: Vec<Vec<u64>> = vec![Vec::new()];
    let mut longest = all.clone();
    for _ in 0..entries {
        let longer = |log: &Vec<u64>| {
            let log = log.clone();
            let last = log.last().copied().unwrap_or(1);
            (last..=epochs).map(move |epoch| log.iter().copied().chain([epoch]).collect::<Vec<_>>())
        };
        longest = longest.iter().flat_map(longer).collect();
        all.extend(longest.iter().cloned());
    }
    let begun = |entries: Vec<u64>| {
        let after = entries.last().copied().unwrap_or(0) + 1;
        let later = (after..=epochs).map(Some);
        let logs = std::iter::once(None).chain(later);
        logs.map(move |begun| Log { entries: entries.clone(), begun }).collect::<Vec<_>>()
    };
    all.into_iter().flat_map(begun).collect()
}

impl Log {
    pub(crate) fn end(&self) -> Lsn {
        Lsn(self.entries.len() as u64)
    }

    /// Where its epochs begin. Of several that begin at one place only the last is known.
    pub(crate) fn starts(&self) -> Vec<(u64, u64)> {
        let mut starts: Vec<(u64, u64)> = Vec::new();
        for (epoch, lsn) in self.entries.iter().chain(&self.begun).zip(1..) {
            if starts.last().is_none_or(|(last, _)| last != epoch) {
                starts.push((*epoch, lsn));
            }
        }
        starts
    }

    /// What is known of them once the oldest `pruned` were dropped.
    fn known(&self, pruned: usize) -> Vec<(u64, u64)> {
        self.starts().into_iter().skip(pruned).collect()
    }

    pub(crate) fn table(&self, pruned: usize) -> EpochTable {
        let mut table = EpochTable::default();
        for (epoch, first) in self.known(pruned) {
            table.record(Epoch(epoch), Lsn(first));
        }
        table
    }
}

/// Whether both can come from one volume: an epoch has one primary, which begins it at one place,
/// and whoever has the epoch in its table held all that this primary had below.
pub(crate) fn of_one_volume(a: &Log, b: &Log) -> bool {
    a.starts().iter().all(|(epoch, first)| {
        let other = b.starts().iter().find(|(e, _)| e == epoch).map(|(_, first)| *first);
        let below = *first as usize - 1;
        other.is_none_or(|other| other == *first && a.entries[..below] == b.entries[..below])
    })
}

#[test]
fn two_logs_agree_as_far_as_their_tables_show_and_their_entries_are_the_same() {
    let logs = logs(4, 4);
    let (mut cases, mut parted, mut unknown) = (0, 0, 0);
    for a in &logs {
        for b in logs.iter().filter(|b| of_one_volume(a, b)) {
            let pairs = a.entries.iter().zip(&b.entries);
            let same = pairs.take_while(|(mine, theirs)| mine == theirs).count() as u64;
            for (mine, theirs) in (0..3).flat_map(|mine| (0..3).map(move |theirs| (mine, theirs))) {
                let (left, right) = (a.known(mine), b.known(theirs));
                let common = left.iter().any(|start| right.contains(start));
                // Without an epoch that both know nothing is known of their entries.
                let expected = common.then_some(Lsn(same));
                let found = a.table(mine).common_end(a.end(), &b.table(theirs), b.end());
                assert_eq!(found, expected, "{a:?} without {mine} and {b:?} without {theirs}");
                cases += 1;
                unknown += u32::from(expected.is_none());
                parted += u32::from(common && same < a.end().0.min(b.end().0));
            }
        }
    }
    assert_eq!((cases, parted, unknown), (54_036, 1_868, 48_109));
}
