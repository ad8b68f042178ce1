//! Which disk a replica is on: where a new one goes, what becomes of those whose disk fails, and of those that
//! are found on one that is back.

use std::collections::BTreeSet;
use std::sync::Arc;

use sbk_engine::types::{ReplicaId, VolumeId};
use sbk_master_client::in_one_line;
use uuid::Uuid;

use super::agent::{Agent, Notice};
use super::storage::Storage;
use crate::disks::{DiskRoom, DiskState, Fault};
use crate::volume::disk::DiskError;

impl<S: Storage> Agent<S> {
    /// Tells of each change of a disk, for as long as the node runs.
    pub(super) fn follow(&mut self, number: usize) {
        let disk = &self.storage.disks()[number];
        if disk.fault().is_some() {
            self.away.insert(number);
        }
        let (notices, mut state) = (self.notices.clone(), disk.watch());
        self.work.spawn(async move {
            let mut last = None;
            loop {
                let (capacity, fault) = {
                    let state = state.borrow_and_update();
                    (state.capacity_bytes, state.fault.clone())
                };
                let key = Some((capacity, fault));
                if last != key {
                    last = key;
                    if notices.send(Notice::Disk(number)).await.is_err() {
                        return;
                    }
                }
                if state.changed().await.is_err() {
                    return;
                }
            }
        });
    }

    /// Starts the tasks of replicas that were found on disks. Of two of one volume, which the masters put in
    /// another's place while its disk was away, none runs before they have said which.
    pub(super) fn found(&mut self, found: Vec<(VolumeId, ReplicaId, usize)>) {
        let mut volumes = BTreeSet::new();
        for (volume, replica, disk) in found {
            let runs = self.locals.get(&volume).is_some_and(|l| l.handle.replica == replica);
            if !runs {
                self.idle.insert((volume, replica), disk);
                volumes.insert(volume);
            }
        }
        let catalogue = self.catalogue.borrow().clone();
        for volume in volumes {
            let all = (volume, ReplicaId(Uuid::nil()))..=(volume, ReplicaId(Uuid::max()));
            let here: Vec<_> =
                self.idle.range(all).map(|((_, replica), disk)| (*replica, *disk)).collect();
            let retired = |replica| {
                catalogue.volumes.get(&volume).is_some_and(|v| v.retired.contains_key(&replica))
            };
            if let [(replica, disk)] = here[..]
                && !self.locals.contains_key(&volume)
                && !retired(replica)
            {
                self.start(volume, replica, disk);
            }
            self.look_at(volume);
        }
    }

    /// The replicas of a disk that failed are closed by their own tasks, and opened again when it is back.
    /// Others may be on it then that this process has not seen.
    pub(super) fn disk_changed(&mut self, number: usize) {
        let disk = Arc::clone(&self.storage.disks()[number]);
        let works = disk.fault().is_none();
        let is_back = works && self.away.remove(&number);
        if !works {
            self.away.insert(number);
        }
        if is_back {
            self.storage.look();
            let (storage, notices) = (Arc::clone(&self.storage), self.notices.clone());
            self.work.spawn(async move {
                let listed = disk.threads().spawn_blocking(move || storage.replicas(number)).await;
                match listed.expect("looking at the file system does not panic") {
                    Ok(listed) => {
                        let here = |(volume, replica)| (volume, replica, number);
                        let found = listed.into_iter().map(here).collect();
                        // The node may be stopping.
                        let _stopping = notices.send(Notice::Found(found)).await;
                    }
                    Err(error) => disk.set(|state| {
                        state.fault = Some(Fault::now(in_one_line(&error)));
                    }),
                }
            });
        }
        let volumes: BTreeSet<_> = self
            .locals
            .keys()
            .copied()
            .chain(self.catalogue.borrow().volumes.keys().copied())
            .collect();
        volumes.into_iter().for_each(|volume| self.look_at(volume));
        self.settle();
        self.urgent.notify_one();
    }

    /// Whether the replica may be on a disk that can't be used: then it is neither lost nor removed.
    pub(super) fn may_be_away(&self, volume: VolumeId, replica: ReplicaId) -> bool {
        let running = self.locals.get(&volume).filter(|local| local.handle.replica == replica);
        let idle = self.idle.get(&(volume, replica)).copied();
        match running.map(|local| local.disk).or(idle) {
            Some(disk) => self.away.contains(&disk),
            None => !self.away.is_empty(),
        }
    }

    /// The disk for a new replica of so many blocks: the one of which the least part is claimed then. Not one
    /// that is low on room, unless all are: the masters ordered it before they knew, and growth waits for room
    /// there as for all others.
    pub(super) fn choose_disk(&self, blocks: u64) -> Option<usize> {
        let catalogue = self.catalogue.borrow().clone();
        let mut claims = vec![blocks; self.storage.disks().len()];
        let running = self.locals.iter().map(|(volume, local)| (volume, local.disk));
        let idle = self.idle.iter().map(|((volume, _), disk)| (volume, *disk));
        let begun = self.creating.iter().map(|(volume, disk)| (volume, *disk));
        for (volume, disk) in running.chain(idle).chain(begun) {
            claims[disk] += catalogue.volumes.get(volume).map_or(0, |v| v.claimed_blocks());
        }
        let states = self.storage.disks().iter().map(|disk| disk.state());
        least_claimed(states.zip(claims))
    }

    /// Ends the task of a replica, and starts another one.
    pub(super) fn open_again(&mut self, volume: VolumeId) {
        let Some(local) = self.locals.remove(&volume) else { return };
        local.stop.cancel();
        self.registry.remove(volume);
        let (replica, disk, notices) = (local.handle.replica, local.disk, self.notices.clone());
        self.work.spawn(async move {
            if let Some(task) = local.task {
                task.await.expect("a volume task does not panic");
            }
            // The node may be stopping.
            let _stopping = notices.send(Notice::Found(vec![(volume, replica, disk)])).await;
        });
    }

    /// Ends the task of a replica whose disk is away, and which another one is to replace: it can't be waited
    /// for, for it may hang.
    pub(super) fn set_aside(&mut self, volume: VolumeId) {
        let Some(mut local) = self.locals.remove(&volume) else { return };
        local.stop.cancel();
        self.registry.remove(volume);
        let key = (volume, local.handle.replica);
        self.idle.insert(key, local.disk);
        if let Some(task) = local.task.take() {
            self.ending.insert(key, task);
        }
    }
}

/// Of disks and what is claimed of each, in blocks: the one of which the least part is. See [`Agent::choose_disk`].
fn least_claimed(disks: impl Iterator<Item = (DiskState, u64)>) -> Option<usize> {
    let usable = disks
        .enumerate()
        .filter(|(_, (state, _))| state.fault.is_none() && state.capacity_bytes > 0);
    let part = |(_, (state, claimed)): &(usize, (DiskState, u64))| {
        let low = state.room > DiskRoom::Enough;
        (low, (u128::from(*claimed) << 64) / u128::from(state.capacity_bytes))
    };
    usable.min_by_key(part).map(|(number, _)| number)
}

/// Removes a replica from whichever disk it is on. All that matter can be used.
pub(super) async fn remove_everywhere<S: Storage>(
    storage: &Arc<S>,
    volume: VolumeId,
    replica: ReplicaId,
) -> Result<(), DiskError> {
    for (number, disk) in storage.disks().iter().enumerate() {
        if disk.fault().is_some() {
            continue;
        }
        let storage = Arc::clone(storage);
        let remove = move || storage.remove(number, volume, replica);
        let removed = disk.threads().spawn_blocking(remove).await;
        removed.expect("removing does not panic")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn disk(room: DiskRoom, capacity: u64, claimed: u64) -> (DiskState, u64) {
        (DiskState { room, capacity_bytes: capacity * GIB, ..DiskState::default() }, claimed)
    }

    fn chosen<const N: usize>(disks: [(DiskState, u64); N]) -> Option<usize> {
        least_claimed(disks.into_iter())
    }

    #[test]
    fn a_new_replica_goes_where_the_least_part_is_claimed() {
        let enough = |capacity, claimed| disk(DiskRoom::Enough, capacity, claimed);
        assert_eq!(chosen([enough(1, 7), enough(1, 5), enough(1, 6)]), Some(1));
        assert_eq!(chosen([enough(1, 5), enough(4, 6)]), Some(1), "it is four times as large");
        assert_eq!(chosen([enough(1, 5), enough(1, 5)]), Some(0));
    }

    #[test]
    fn a_disk_below_its_placement_watermark_is_passed_over_for_one_that_is_not() {
        for room in [DiskRoom::Low, DiskRoom::Short, DiskRoom::Full] {
            let enough = disk(DiskRoom::Enough, 1, 1000);
            assert_eq!(chosen([disk(room, 1, 0), enough.clone()]), Some(1), "{room:?}");
            assert_eq!(chosen([enough, disk(room, 1, 0)]), Some(0), "{room:?}");
        }
        // The masters ordered it before they knew: it has to be somewhere, and there growth waits.
        let low = |claimed| disk(DiskRoom::Low, 1, claimed);
        assert_eq!(chosen([low(2), low(1)]), Some(1));
    }

    #[test]
    fn a_disk_that_can_not_be_used_gets_none() {
        let broken = || {
            let (state, claimed) = disk(DiskRoom::Enough, 1, 0);
            (DiskState { fault: Some(Fault::now("it is gone".to_owned())), ..state }, claimed)
        };
        let none = disk(DiskRoom::Enough, 0, 0);
        assert_eq!(chosen([broken(), none.clone(), disk(DiskRoom::Low, 1, 9)]), Some(2));
        assert_eq!(chosen([broken(), none]), None);
    }
}
