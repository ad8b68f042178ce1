//! One of a datanode's data directories, and the replicas that it holds.
//!
//! ```text
//! <dir>/lock                                flocked while the directory is in use
//! <dir>/node                                the node, its directories, and how often it was started
//! <dir>/probe                               written now and then, to see whether the disk still takes it
//! <dir>/recordings/...                      what replicas did before they failed
//! <dir>/replicas/<volume>.<replica>/...     one directory for each replica
//! ```

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use sbk_wal::{Files, Storage};

use super::backing::{Backing, BackingSpace, Found, Ours, PROBE, made, name_of, named};
use super::core::Store;
use super::error::StoreError;
use super::identity::{DirId, NEW_NODE, NODE, NodeError, NodeRecord, failed};
use super::reopen::is_out_of_space;
use super::superblock::Identity;

const LOCK: &str = "lock";
const RECORDINGS: &str = "recordings";
const REPLICAS: &str = "replicas";
/// What stands in the way of nobody: what a first start that was cut short leaves, what is written now and then
/// (also where a disk has just been unmounted), and what a file system makes itself.
const OURS: [&str; 8] =
    [LOCK, REPLICAS, RECORDINGS, PROBE, NEW_NODE, "scrubs.json", "scrubs.new", "lost+found"];
/// What a replica's directory ends with while it is being removed.
const GONE: &str = ".gone";

/// A locked data directory.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    id: DirId,
    /// Holds the lock.
    lock: File,
}

impl DataDir {
    /// Looks what is at `path`.
    pub(super) fn find(path: &Path) -> Result<Found, NodeError> {
        if !path.try_exists().map_err(failed("look at", path))? {
            return Ok(Found::Nothing { there: false });
        }
        refuse_foreign(path)?;
        let node = path.join(NODE);
        if !node.try_exists().map_err(failed("look at", &node))? {
            refuse_replicas(path)?;
            return Ok(Found::Nothing { there: true });
        }
        let lock = lock(path)?;
        let (slots, record) = match NodeRecord::read(Arc::new(Files::new(path)), path)? {
            Some(found) => found,
            None => return Err(NodeError::NoIdentity { path: path.to_owned() }),
        };
        let held = Arc::new(Self { path: path.to_owned(), id: record.dir, lock });
        Ok(Found::Ours(Box::new(Ours { held, slots, record })))
    }

    /// Makes a directory where there is nothing, with the record.
    pub(super) fn make(path: &Path, record: &NodeRecord) -> Result<Arc<dyn Backing>, NodeError> {
        make_dirs(path)?;
        let lock = lock(path)?;
        // Somebody else may have been here first.
        refuse_foreign(path)?;
        refuse_replicas(path)?;
        let storage: Arc<dyn Storage> = Arc::new(Files::new(path));
        if NodeRecord::read(Arc::clone(&storage), path)?.is_some() {
            return Err(NodeError::InUse { path: path.to_owned() });
        }
        record.create(&storage, path)?;
        let dir = Self { path: path.to_owned(), id: record.dir, lock };
        dir.settle()?;
        Ok(Arc::new(dir))
    }

    /// Where the recordings of a directory are.
    pub fn recordings(path: &Path) -> PathBuf {
        path.join(RECORDINGS)
    }

    fn replica_path(&self, replica: &Identity) -> PathBuf {
        replica_path(&self.path, replica)
    }

    /// What can't be removed stays until the next start: it is none of the replicas any more, and those
    /// that are must not wait for it.
    fn finish_removals(&self) -> Result<(), NodeError> {
        let dir = self.path.join(REPLICAS);
        for entry in fs::read_dir(&dir).map_err(failed("list", &dir))? {
            let path = entry.map_err(failed("list", &dir))?.path();
            if path.extension().is_some_and(|e| e == &GONE[1..])
                && let Err(error) = discard(&path)
            {
                tracing::warn!(%error, "what is left of a removed replica still takes space");
            }
        }
        sync_dir(&dir)
    }
}

impl Backing for DataDir {
    fn path(&self) -> &Path {
        &self.path
    }

    fn id(&self) -> DirId {
        self.id
    }

    fn root(&self) -> io::Result<Arc<dyn Storage>> {
        Ok(Arc::new(Files::new(&self.path)))
    }

    fn settle(&self) -> Result<(), NodeError> {
        // From here on nothing is made in it but below these: if its disk is not mounted any more, they are
        // not there.
        for name in [REPLICAS, RECORDINGS] {
            let below = self.path.join(name);
            match fs::create_dir(&below) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                // A node whose disk is full does without.
                Err(error) if name == RECORDINGS && is_out_of_space(&error) => {
                    tracing::warn!(path = %below.display(), %error, "no recordings are kept");
                }
                other => other.map_err(failed("make", &below))?,
            }
        }
        sync_dir(&self.path)?;
        self.finish_removals()
    }

    fn check(&self) -> Result<(), NodeError> {
        let lock = self.path.join(LOCK);
        let same = |found: &fs::Metadata, held: &fs::Metadata| {
            (found.dev(), found.ino()) == (held.dev(), held.ino())
        };
        let held = self.lock.metadata().map_err(failed("look at", &lock))?;
        match fs::metadata(&lock) {
            Ok(found) if same(&found, &held) => {}
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(failed("look at", &lock)(e));
            }
            Ok(_) | Err(_) => return Err(NodeError::Replaced { path: self.path.clone() }),
        }
        let path = self.path.join(PROBE);
        let write = || {
            let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
            file.write_all_at(&[0; 4096], 0)?;
            file.sync_data()
        };
        match write() {
            Err(error) if !is_out_of_space(&error) => Err(failed("write", &path)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// That of its file system.
    fn shares(&self) -> Result<u64, NodeError> {
        Ok(fs::metadata(&self.path).map_err(failed("look at", &self.path))?.dev())
    }

    /// What can't be looked at counts for nothing: one file that is lost must not end a node.
    fn used_bytes(&self) -> u64 {
        disk_usage(&self.path.join(REPLICAS))
    }

    fn space(&self) -> Result<BackingSpace, NodeError> {
        let found = rustix::fs::statvfs(&self.path)
            .map_err(|e| failed("ask the free space of", &self.path)(e.into()))?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok(BackingSpace { free: bytes(found.f_bavail), size: bytes(found.f_blocks) })
    }

    fn replicas(&self) -> Result<Vec<Identity>, NodeError> {
        let dir = self.path.join(REPLICAS);
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir).map_err(failed("list", &dir))? {
            let name = entry.map_err(failed("list", &dir))?.file_name();
            found.extend(name.to_str().and_then(named));
        }
        let is_made = |replica: &Identity| Store::is_made(&self.replica_path(replica));
        Ok(made(&dir, found.into_iter(), is_made))
    }

    fn storage(&self, replica: &Identity) -> io::Result<Arc<dyn Storage>> {
        Ok(Arc::new(Files::new(self.replica_path(replica))))
    }

    fn make_place(&self, replica: &Identity) -> Result<(), StoreError> {
        let path = self.replica_path(replica);
        let io = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::Io { doing, path, source }
        };
        // Not those above: if they are gone, so is the disk.
        match fs::create_dir(&path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.map_err(io("make", &path))?,
        }
        let parent = self.path.join(REPLICAS);
        File::open(&parent).and_then(|d| d.sync_all()).map_err(io("sync", &parent))
    }

    fn remove(&self, replica: &Identity) -> Result<(), NodeError> {
        let path = self.replica_path(replica);
        let mut gone = path.clone().into_os_string();
        gone.push(GONE);
        let gone = PathBuf::from(gone);
        // An attempt before may have come to its end or not, or only so far. [Its files could not all be
        // removed; the next attempt found nothing to rename, and their space stayed taken.]
        discard(&gone)?;
        match fs::rename(&path, &gone) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(failed("rename", &path))?,
        }
        sync_dir(&self.path.join(REPLICAS))?;
        discard(&gone)
    }
}

fn replica_path(dir: &Path, identity: &Identity) -> PathBuf {
    dir.join(REPLICAS).join(name_of(identity))
}

/// Bytes that the files below `dir` take on the disk; holes take none. What is removed meanwhile
/// counts for nothing, nor does what can't be looked at.
fn disk_usage(dir: &Path) -> u64 {
    let mut sum = 0;
    let mut rest = vec![dir.to_owned()];
    let unknown = |doing, path: &Path, error: io::Error| {
        if error.kind() != io::ErrorKind::NotFound {
            let error = failed(doing, path)(error);
            tracing::warn!(%error, "the space that it takes is not counted");
        }
    };
    while let Some(dir) = rest.pop() {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) => {
                unknown("list", &dir, error);
                continue;
            }
        };
        for entry in entries {
            match entry.and_then(|entry| Ok((entry.path(), entry.metadata()?))) {
                Ok((path, found)) if found.is_dir() => rest.push(path),
                Ok((_, found)) => sum += found.blocks() * 512,
                Err(error) => unknown("look through", &dir, error),
            }
        }
    }
    sum
}

/// Removes a directory, if it is there, with all that is in it.
fn discard(path: &Path) -> Result<(), NodeError> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(failed("remove", path)),
    }
}

/// Makes a directory and those above it that are missing, and their names durable. [A loss of power took
/// the whole directory of a node that had just acknowledged its first writes.]
fn make_dirs(path: &Path) -> Result<(), NodeError> {
    let above = missing_names(path)?;
    fs::create_dir_all(path).map_err(failed("make", path))?;
    above.iter().try_for_each(|dir| sync_dir(dir))
}

/// The directories that get a new name if `path` is made.
fn missing_names(path: &Path) -> Result<Vec<PathBuf>, NodeError> {
    let mut above = Vec::new();
    for made in path.ancestors() {
        if made.as_os_str().is_empty() || made.try_exists().map_err(failed("look at", made))? {
            break;
        }
        let parent = made.parent().filter(|parent| !parent.as_os_str().is_empty());
        above.push(parent.unwrap_or(Path::new(".")).to_owned());
    }
    Ok(above)
}

fn sync_dir(path: &Path) -> Result<(), NodeError> {
    File::open(path).and_then(|d| d.sync_all()).map_err(failed("sync", path))
}

/// A directory without a record is taken only if nothing of somebody else's is in it.
fn refuse_foreign(path: &Path) -> Result<(), NodeError> {
    let node = path.join(NODE);
    if node.try_exists().map_err(failed("look at", &node))? {
        return Ok(());
    }
    for entry in fs::read_dir(path).map_err(failed("list", path))? {
        let name = entry.map_err(failed("list", path))?.file_name();
        if !OURS.iter().any(|own| name == *own) {
            let found = name.to_string_lossy().into_owned();
            return Err(NodeError::Foreign { path: path.to_owned(), found });
        }
    }
    Ok(())
}

/// Replicas without a record are nobody's.
fn refuse_replicas(path: &Path) -> Result<(), NodeError> {
    let replicas = path.join(REPLICAS);
    match fs::read_dir(&replicas) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(failed("list", &replicas)(e)),
        Ok(mut held) => match held.next() {
            None => Ok(()),
            Some(_) => Err(NodeError::NoIdentity { path: path.to_owned() }),
        },
    }
}

fn lock(path: &Path) -> Result<File, NodeError> {
    let lock_path = path.join(LOCK);
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&lock_path)
        .map_err(failed("open", &lock_path))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(NodeError::InUse { path: path.to_owned() }),
        Err(e) => Err(failed("lock", &lock_path)(e.into())),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::open::{CreateSpec, StoreOptions};
    use super::*;

    #[test]
    fn the_names_of_all_directories_that_are_made_are_synced() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a/b");
        let above = [dir.path().join("a"), dir.path().to_owned()];
        assert_eq!(missing_names(&path).expect("looked"), above);
        drop(DataDir::open(&path).expect("open"));
        assert_eq!(missing_names(&path).expect("looked"), [] as [PathBuf; 0]);
        assert_eq!(missing_names(Path::new("no-such-name")).expect("looked"), [Path::new(".")]);
    }

    /// A superblock that can't be looked at is none that is missing: the replica is there, and says why it
    /// can't be opened.
    #[test]
    fn a_replica_that_cant_be_looked_at_is_listed() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = DataDir::open(dir.path()).expect("open");
        let identity = Identity {
            volume: sbk_engine::types::VolumeId(Uuid::new_v4()),
            replica: sbk_engine::types::ReplicaId(Uuid::new_v4()),
        };
        let path = replica_path(data.path(), &identity);
        fs::create_dir(&path).expect("mkdir");
        assert_eq!(data.replicas().expect("list"), [], "its making was cut short");
        // Looking at a link to itself fails with ELOOP.
        std::os::unix::fs::symlink("superblock", path.join("superblock")).expect("a link");
        assert_eq!(data.replicas().expect("list"), [identity]);
    }

    #[test]
    fn what_cant_be_looked_at_or_removed_does_not_stop_a_node() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = DataDir::open(dir.path()).expect("open");
        let replicas = dir.path().join(REPLICAS);
        // No directory, so it can't be removed as one.
        fs::write(replicas.join("x.gone"), vec![1; 100_000]).expect("written");
        // So deep that its path is too long to be listed by it.
        let mut deep = OpenOptions::new().read(true).open(&replicas).expect("open");
        for _ in 0..20 {
            let name = "d".repeat(250);
            rustix::fs::mkdirat(&deep, &name, rustix::fs::Mode::RWXU).expect("mkdir");
            let flags = rustix::fs::OFlags::DIRECTORY;
            let below = rustix::fs::openat(&deep, &name, flags, rustix::fs::Mode::empty());
            deep = File::from(below.expect("open"));
        }
        assert!(data.used_bytes() >= 100_000);
        drop(data);
        DataDir::open(dir.path()).expect("opens");
        assert!(replicas.join("x.gone").exists());
    }

    #[test]
    fn a_directory_that_is_another_one_now_is_found_out() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("data");
        let data = DataDir::open(&path).expect("open");
        data.check().expect("works");
        let aside = root.path().join("aside");
        fs::rename(&path, &aside).expect("renamed");
        let gone = data.check().expect_err("is not there");
        assert!(matches!(gone, NodeError::Replaced { .. }), "{gone}");
        // As a mount point shows when the disk is not mounted: nothing is made in it.
        fs::create_dir(&path).expect("mkdir");
        let other = data.check().expect_err("is another one");
        assert!(matches!(other, NodeError::Replaced { .. }), "{other}");
        let identity = Identity {
            volume: sbk_engine::types::VolumeId(Uuid::new_v4()),
            replica: sbk_engine::types::ReplicaId(Uuid::new_v4()),
        };
        let loss_generation = sbk_engine::types::LossGeneration(0);
        let spec = CreateSpec { identity, blocks: 16, loss_generation };
        data.create(&spec, &StoreOptions::default()).expect_err("there is no place for it");
        assert_eq!(fs::read_dir(&path).expect("lists").count(), 0);
        fs::remove_dir(&path).expect("rmdir");
        fs::rename(&aside, &path).expect("renamed");
        data.check().expect("works again");
    }

    #[test]
    fn a_removed_replica_is_gone() {
        let dir = tempfile::tempdir().expect("a directory");
        let data = DataDir::open(dir.path()).expect("open");
        let identity = Identity {
            volume: sbk_engine::types::VolumeId(Uuid::new_v4()),
            replica: sbk_engine::types::ReplicaId(Uuid::new_v4()),
        };
        let loss_generation = sbk_engine::types::LossGeneration(0);
        let spec = CreateSpec { identity, blocks: 16, loss_generation };
        let options = StoreOptions { wal_segment_bytes: 64 << 10, ..StoreOptions::default() };
        data.create(&spec, &options).expect("create");
        data.create(&spec, &options).expect("again");
        assert_eq!(data.replicas().expect("list"), [identity]);
        data.remove(&identity).expect("remove");
        data.remove(&identity).expect("again");
        assert_eq!(data.replicas().expect("list"), []);

        // What an attempt leaves that could not remove every file.
        let path = replica_path(data.path(), &identity);
        let mut left = path.clone().into_os_string();
        left.push(GONE);
        let left = PathBuf::from(left);
        let leave = || {
            fs::create_dir(&left).expect("mkdir");
            fs::write(left.join("extents"), "data").expect("written");
        };
        leave();
        data.remove(&identity).expect("once more");
        assert!(!left.exists(), "its space is free");
        leave();
        data.create(&spec, &options).expect("made again");
        data.remove(&identity).expect("removed again");
        assert!(!left.exists() && !path.exists());
    }
}
