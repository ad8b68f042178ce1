//! What is true of the whole world, whatever its parts believe. A broken rule is caught in the
//! state that breaks it, long before a client could notice.

use std::collections::BTreeMap;

use sbk_engine::replication::log::{EntryKind, RequestTag};
use sbk_engine::types::{Durability, Lsn};
use serde::Serialize;

use super::disk::{Disk, Entry};
use super::world::{NODES, World};

/// The log as far as it was committed anywhere.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Truth(BTreeMap<Lsn, Entry>);

impl Truth {
    /// The newest LSN that was ever committed.
    pub(crate) fn newest(&self) -> Lsn {
        self.0.last_key_value().map_or(Lsn(0), |(lsn, _)| *lsn)
    }

    fn holds(&self, tag: RequestTag) -> bool {
        self.0.values().any(|(header, _)| header.origin.is_some_and(|o| o.tag == tag))
    }

    /// Some replica knows these to be committed.
    pub(crate) fn note(&mut self, entries: &[Entry]) {
        for entry in entries {
            let (header, _) = entry;
            if let Some(known) = self.0.get(&header.lsn) {
                assert_eq!(known, entry, "I4: two entries are committed at {}", header.lsn);
                continue;
            }
            // An attach is logged again by a primary that does not know it.
            if let Some(origin) = header.origin
                && !matches!(header.kind, EntryKind::Attach { .. })
            {
                assert!(!self.holds(origin.tag), "I3: {:?} took effect twice", origin.tag);
            }
            self.0.insert(header.lsn, *entry);
        }
    }
}

impl World {
    /// Every committed entry is on every member of the set in force (of voters: on a majority of
    /// them): whichever is promoted, none is lost.
    pub(crate) fn check_members(&self) {
        let config = &self.masters.config;
        let voters = config.durability == Durability::SyncQuorum;
        let mut whole = 0;
        for id in &config.isr {
            let node = &self.nodes[self.index(*id)];
            let torn = node.disk.kept.incomplete.is_some();
            assert!(voters || !torn, "I6: {id} is in sync and INCOMPLETE");
            let lacks = self.lacks(&node.disk);
            let epoch = config.epoch;
            assert!(voters || lacks.is_none(), "I2: {id} is in sync in epoch {epoch}: {lacks:?}");
            whole += usize::from(!torn && lacks.is_none());
        }
        assert!(
            !voters || whole > config.isr.len() / 2,
            "I2: {whole} voters of epoch {} hold everything up to {}",
            config.epoch,
            self.truth.newest()
        );
    }

    /// What a disk lacks of all that was committed.
    fn lacks(&self, disk: &Disk) -> Option<String> {
        let newest = self.truth.newest();
        if disk.durable < newest {
            return Some(format!("it holds {} of {newest}", disk.durable));
        }
        let other = |(lsn, entry): (&Lsn, &Entry)| disk.log.get(lsn).is_some_and(|e| e != entry);
        let (lsn, _) = self.truth.0.iter().find(|committed| other(*committed))?;
        Some(format!("it holds another entry at {lsn}"))
    }

    /// The same (epoch, LSN) is the same entry in every log.
    pub(crate) fn check_logs(&self, index: usize) {
        for other in (0..NODES).filter(|other| *other != index) {
            for (lsn, mine) in &self.nodes[index].disk.log {
                let theirs = self.nodes[other].disk.log.get(lsn);
                let theirs = theirs.filter(|theirs| theirs.0.epoch == mine.0.epoch);
                assert!(
                    theirs.is_none_or(|theirs| theirs == mine),
                    "I4: nodes {index} and {other} hold different entries at {lsn} of one epoch"
                );
            }
        }
    }

    /// A replica dropped its log above `end`, or all it has.
    pub(crate) fn check_drop(&self, index: usize, end: Option<Lsn>) {
        let id = self.nodes[index].id;
        let config = &self.masters.config;
        // A voter may lack what was committed, and then is cut below it; that enough hold it is
        // looked at in every state.
        if !config.isr.contains(&id) || config.durability == Durability::SyncQuorum {
            return;
        }
        let Some(end) = end else {
            panic!("I6: {id} is in sync in epoch {} and is wiped", config.epoch);
        };
        let newest = self.truth.newest();
        assert!(end >= newest, "I2: {id} is in sync and cut to {end} of {newest}");
    }

    /// A primary answers a read: nobody may be ready to serve in a newer epoch, for it could have
    /// committed over what was read.
    pub(crate) fn check_read(&self, index: usize) {
        let Some((mine, _)) = self.nodes[index].face.primary else { return };
        for other in &self.nodes {
            if let Some((newer, true)) = other.face.primary.filter(|(epoch, _)| *epoch > mine) {
                let (old, new) = (self.nodes[index].id, other.id);
                panic!(
                    "I1: {old} answers a read in epoch {mine} while {new} is ready in epoch {newer}"
                );
            }
        }
    }

    /// A primary answers a write.
    pub(crate) fn check_write(&self, tag: RequestTag) {
        assert!(self.truth.holds(tag), "I2: {tag:?} is answered uncommitted");
    }

    /// Clients saw one order of what they asked for.
    pub(crate) fn check_history(&self) {
        assert!(
            self.history.is_linearizable(None),
            "I3: no order explains the answers: {:?}",
            self.history.ops
        );
    }

    /// All is over: the replicas hold the same, and it is what the clients were told.
    pub(crate) fn check_end(&self) {
        let images = self.nodes.iter().map(|node| {
            let blocks = 0..super::world::BLOCKS;
            blocks.map(|b| node.disk.image.get(&b).copied().unwrap_or(0)).collect::<Vec<_>>()
        });
        let images: Vec<_> = images.collect();
        assert!(images.iter().all(|i| *i == images[0]), "I4: the images differ: {images:?}");
        assert!(
            self.history.is_linearizable(Some(&images[0])),
            "I3: no order explains the answers and {:?} at the end: {:?}",
            images[0],
            self.history.ops
        );
    }
}
