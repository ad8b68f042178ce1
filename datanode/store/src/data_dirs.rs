//! All data directories and devices of a node, as its process opens them. (What is said of directories here goes for both.)
//!
//! Whoever set them up is told at once what is wrong: the directory of another node, one given twice, a
//! copy. What only a disk can be blamed for (it is not mounted, can't be read, does not answer) keeps the
//! node from nothing: it starts with the others, and the replicas there are away.
//!
//! A directory in which there is nothing, or a device that holds zeros, is a new one only if none of those that the node had is missing. For
//! a mount point looks like that while its disk is not mounted: taken for a new disk, its replicas would be
//! lost to the masters, and made again on another disk. So what is missing is either found, or given up by
//! whoever operates the node.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use sbk_engine::types::{BootId, NodeId};
use uuid::Uuid;

use super::backing::{Backing, Found, Ours, Place, name_of};
use super::data_dir::DataDir;
use super::identity::{DirId, MAX_DIRS, NodeError, NodeRecord, failed};

/// How long one of several directories may take to be opened: a disk that hangs must not keep the others
/// from being used.
const PATIENCE: Duration = Duration::from_secs(30);

/// What came of opening a directory or a device.
pub type Opened = Result<Arc<dyn Backing>, NodeError>;

/// The directories of a node, as they were opened.
#[derive(Debug)]
pub struct DataDirs {
    /// Whose they are, and this process.
    pub member: Member,
    /// Each as it was given: open, or why it is not.
    pub dirs: Vec<(Place, Opened)>,
    /// Those of the node that were not found: not given, or among those that are not open.
    pub missing: BTreeSet<DirId>,
}

/// The node and its process, as each of its directories is to know them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The node.
    pub node: NodeId,
    /// Starts of a process of the node, this one included.
    pub process: u64,
    /// The machine's boot.
    pub boot: BootId,
    /// All directories of the node, those that are away included.
    pub dirs: BTreeSet<DirId>,
}

impl DataDirs {
    /// Opens all directories of a node, for the life of the values; a node that has none yet is made, with
    /// an identity. The count of its process's starts is raised in all that can be used. Those in `lost` are
    /// given up. Blocks.
    ///
    /// # Errors
    /// Another process has one, one is not the node's, or none can be used.
    pub fn open(places: &[Place], lost: &BTreeSet<DirId>) -> Result<Self, NodeError> {
        refuse_twice(places)?;
        let patience = (places.len() > 1).then_some(PATIENCE);
        let mut ours: Vec<(usize, Box<Ours>)> = Vec::new();
        let mut empty: Vec<(usize, bool)> = Vec::new();
        let mut away: BTreeMap<usize, NodeError> = BTreeMap::new();
        for (number, place) in places.iter().enumerate() {
            let (at, node) = (place.clone(), ours.first().map(|(_, ours)| ours.record.node));
            match within(patience, place, move || at.find(node)) {
                Ok(Found::Ours(found)) => ours.push((number, found)),
                Ok(Found::Nothing { there }) => empty.push((number, there)),
                Err(error) if error.is_of_the_disk() => {
                    away.insert(number, error);
                }
                Err(error) => return Err(error),
            }
        }
        let known = agree(places, &ours, lost)?;
        if known.is_none()
            && let Some((_, error)) = away.pop_first()
        {
            // The identity may be there.
            return Err(error);
        }
        let found: BTreeSet<_> = ours.iter().map(|(_, ours)| ours.record.dir).collect();
        let (node, process, mut dirs) =
            known.unwrap_or_else(|| (NodeId(Uuid::new_v4()), 0, BTreeSet::new()));
        let missing: BTreeSet<_> = dirs.difference(&found).copied().collect();
        if !missing.is_empty() {
            for (number, there) in std::mem::take(&mut empty) {
                let (path, missing) = (places[number].path().to_owned(), missing.clone());
                away.insert(number, NodeError::NotMounted { path, there, missing });
            }
        }
        let new: Vec<_> =
            empty.into_iter().map(|(number, _)| (number, DirId(Uuid::new_v4()))).collect();
        dirs.extend(new.iter().map(|(_, id)| *id));
        if dirs.len() > MAX_DIRS {
            return Err(NodeError::TooMany);
        }
        let member = Member { node, process: process + 1, boot: boot_id()?, dirs };
        // The new ones first. Once another one names them they have to be there at each start.
        let mut opened = BTreeMap::new();
        for (number, id) in new {
            let (at, record) = (places[number].clone(), member.record(id));
            let made = within(patience, &places[number], move || at.make(&record));
            opened.insert(number, made);
        }
        for (number, ours) in ours {
            let record = member.record(ours.record.dir);
            let entered = within(patience, &places[number], move || ours.enter(record));
            opened.insert(number, entered);
        }
        let dirs = settle(places, opened, away)?;
        Ok(Self { member, dirs, missing })
    }
}

impl DataDir {
    /// Opens the only directory of a node; see [`DataDirs::open`]. Blocks.
    ///
    /// # Errors
    /// As that one's.
    pub fn open(path: &Path) -> Result<Arc<dyn Backing>, NodeError> {
        let opened = DataDirs::open(&[Place::Dir(path.to_owned())], &BTreeSet::new())?;
        let (_, only) = opened.dirs.into_iter().next().expect("one was given");
        only
    }
}

/// What came of it: at least one can be used, and no replica is in two.
fn settle(
    places: &[Place],
    mut opened: BTreeMap<usize, Opened>,
    away: BTreeMap<usize, NodeError>,
) -> Result<Vec<(Place, Opened)>, NodeError> {
    let none = !opened.values().any(Result::is_ok);
    let fatal = |error: &NodeError| none || !error.is_of_the_disk();
    let failed = opened.iter().find(|(_, opened)| opened.as_ref().is_err_and(fatal));
    if let Some(number) = failed.map(|(number, _)| *number)
        && let Some(Err(error)) = opened.remove(&number)
    {
        return Err(error);
    }
    opened.extend(away.into_iter().map(|(number, error)| (number, Err(error))));
    let mut holders = BTreeMap::new();
    for dir in opened.values().flatten() {
        // A directory that can't be listed is none that a replica is opened from.
        for identity in dir.replicas().unwrap_or_default() {
            let (path, key) = (dir.path().to_owned(), (identity.volume, identity.replica));
            if let Some(other) = holders.insert(key, path.clone()) {
                let replica = name_of(&identity);
                return Err(NodeError::ReplicaTwice { path, other, replica });
            }
        }
    }
    Ok(opened.into_iter().map(|(number, dir)| (places[number].clone(), dir)).collect())
}

impl Member {
    fn record(&self, dir: DirId) -> NodeRecord {
        NodeRecord { node: self.node, process: self.process, dir, dirs: self.dirs.clone() }
    }

    /// Takes a directory of the node, which was away, into use again in the process that runs. Blocks.
    ///
    /// # Errors
    /// It still can't be used, or is not one that was away.
    pub fn take_back(&self, place: &Place) -> Result<Arc<dyn Backing>, NodeError> {
        let path = place.path().to_owned();
        let ours = match place.find(Some(self.node))? {
            Found::Ours(ours) => ours,
            Found::Nothing { there } => {
                return Err(NodeError::NotMounted { path, there, missing: BTreeSet::new() });
            }
        };
        let found = &ours.record;
        if found.node != self.node {
            let (other, node) = (PathBuf::from("the others"), self.node);
            return Err(NodeError::OtherNode { path, found: found.node, other, node });
        }
        if !self.dirs.contains(&found.dir) {
            return Err(NodeError::NotOurs { path });
        }
        if found.process > self.process {
            let (found, process) = (found.process, self.process);
            return Err(NodeError::UsedSince { path, found, process });
        }
        let record = self.record(found.dir);
        ours.enter(record)
    }
}

/// Does something that may hang, for no longer than `patience`; what hangs keeps a thread of its own.
fn within<T: Send + 'static>(
    patience: Option<Duration>,
    place: &Place,
    work: impl FnOnce() -> Result<T, NodeError> + Send + 'static,
) -> Result<T, NodeError> {
    let Some(limit) = patience else { return work() };
    let (done, outcome) = mpsc::channel();
    std::thread::spawn(move || {
        // Whoever waited may have gone; what was locked is let go with the result.
        let _gone = done.send(work());
    });
    let hangs = |_| NodeError::Hangs { path: place.path().to_owned(), limit };
    outcome.recv_timeout(limit).map_err(hangs)?
}

fn refuse_twice(places: &[Place]) -> Result<(), NodeError> {
    let mut seen: BTreeMap<(u64, u64), &Path> = BTreeMap::new();
    for (number, place) in places.iter().enumerate() {
        let path = place.path();
        let twice =
            |other: &Path| NodeError::Twice { path: path.to_owned(), other: other.to_owned() };
        if let Some(other) = places[..number].iter().find(|other| other.path() == path) {
            return Err(twice(other.path()));
        }
        // What can't be looked at is told later.
        let Ok(found) = fs::metadata(path) else { continue };
        // A device is the same by whichever of its names.
        let is_device = found.file_type().is_block_device();
        let key = if is_device { (found.rdev(), 0) } else { (found.dev(), found.ino()) };
        if let Some(other) = seen.insert(key, path) {
            return Err(twice(other));
        }
    }
    Ok(())
}

type Known = (NodeId, u64, BTreeSet<DirId>);

/// What the records say together: the node, the highest count of starts, and the directories as of that;
/// `None` if there is no record.
fn agree(
    places: &[Place],
    ours: &[(usize, Box<Ours>)],
    lost: &BTreeSet<DirId>,
) -> Result<Option<Known>, NodeError> {
    let Some((first, _)) = ours.first() else { return Ok(None) };
    let newest = ours.iter().max_by_key(|(_, ours)| ours.record.process);
    let Some((_, Ours { record: newest, .. })) = newest.map(|(n, ours)| (n, &**ours)) else {
        return Ok(None);
    };
    let (node, process) = (ours[0].1.record.node, newest.process);
    let mut dirs: BTreeSet<_> = newest.dirs.difference(lost).copied().collect();
    let mut seen: BTreeMap<DirId, usize> = BTreeMap::new();
    for (number, ours) in ours {
        let (path, record) = (places[*number].path().to_owned(), &ours.record);
        if record.node != node {
            let other = places[*first].path().to_owned();
            return Err(NodeError::OtherNode { path, found: record.node, other, node });
        }
        if lost.contains(&record.dir) {
            return Err(NodeError::NotLost { path, dir: record.dir });
        }
        if let Some(other) = seen.insert(record.dir, *number) {
            let other = places[other].path().to_owned();
            return Err(NodeError::Copy { path, other, dir: record.dir });
        }
        // One that was given up, or left away with that, and is there again.
        dirs.insert(record.dir);
    }
    Ok(Some((node, process, dirs)))
}

fn boot_id() -> Result<BootId, NodeError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = fs::read_to_string(path).map_err(failed("read", path))?;
    let id = Uuid::parse_str(text.trim()).map_err(|e| {
        failed("understand", path)(std::io::Error::new(std::io::ErrorKind::InvalidData, e))
    })?;
    Ok(BootId(id))
}

#[cfg(test)]
#[path = "data_dirs_tests.rs"]
mod tests;
