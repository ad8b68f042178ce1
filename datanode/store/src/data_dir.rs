//! A datanode's data directory: who it is, and the replicas that it holds.
//!
//! ```text
//! <dir>/lock                                flocked for the life of the process
//! <dir>/node                                the node's UUID and how often it was started
//! <dir>/replicas/<volume>.<replica>/...     one directory for each replica
//! ```

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use sbk_engine::types::{BootId, NodeId};
use sbk_wal::{Files, Get, Put, SlotError, Slots, Storage};
use uuid::Uuid;

use super::core::Store;
use super::error::StoreError;
use super::open::{CreateSpec, StoreOptions};
use super::superblock::Identity;

const LOCK: &str = "lock";
const NODE: &str = "node";
/// The identity while it is being made.
const NEW_NODE: &str = "node.new";
const NODE_MAGIC: [u8; 8] = *b"SBKNODE\0";
const VERSION: u32 = 1;
const SLOT: usize = 4096;
const REPLICAS: &str = "replicas";
/// What a replica's directory ends with while it is being removed.
const GONE: &str = ".gone";

/// Why a data directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The operating system said no.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// Another process has it.
    #[error(
        "{path} is in use by another sbk-datanode; stop that one, or give this one another \
         --data-dir"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// It holds replicas but no identity.
    #[error(
        "{path} holds replicas but the file `node` with the node's identity is missing; put it \
         back, or move `replicas` away to start as a new node"
    )]
    NoIdentity {
        /// The directory.
        path: PathBuf,
    },
    /// It holds something else.
    #[error(
        "{path} is not a datanode's directory: it has no file `node` but holds '{found}'; give \
         --data-dir a new or empty directory"
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Something that is in it.
        found: String,
    },
    /// The identity can't be read or written.
    #[error(transparent)]
    Identity(SlotError),
    /// The identity is damaged, or another kind of file has its name.
    #[error(
        "{0}. Without it nobody knows whose replicas these are, and an older copy of it has forgotten \
         starts of the process: keep the directory aside, and start with an empty one as a new node"
    )]
    LostIdentity(#[source] SlotError),
    /// The identity's record makes no sense.
    #[error(
        "{path} is damaged: its record can't be read although its checksum is right. Was it written \
         by a newer version?"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
}

impl From<SlotError> for NodeError {
    fn from(error: SlotError) -> Self {
        match error {
            SlotError::Damaged { .. } | SlotError::OtherKind { .. } => Self::LostIdentity(error),
            SlotError::Io { .. } | SlotError::Newer { .. } | SlotError::TooLarge { .. } => {
                Self::Identity(error)
            }
        }
    }
}

fn failed<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> NodeError + 'a {
    move |source| NodeError::Io { doing, path: path.to_owned(), source }
}

/// A locked data directory.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    node: NodeId,
    process: u64,
    boot: BootId,
    /// Holds the lock.
    _lock: File,
}

impl DataDir {
    /// Takes the directory, which is made if it is not there, for the life of the value. The
    /// identity is made at the first start; the process's incarnation is counted up, durably.
    ///
    /// # Errors
    /// Another process has it, its identity is missing or damaged, or the disk says no.
    pub fn open(path: &Path) -> Result<Self, NodeError> {
        make_dirs(path)?;
        Self::refuse_foreign(path)?;
        let lock = Self::lock(path)?;
        let replicas = path.join(REPLICAS);
        fs::create_dir_all(&replicas).map_err(failed("make", &replicas))?;
        let (node, process) = Self::identity(Arc::new(Files::new(path)), path)?;
        let boot = boot_id()?;
        let dir = Self { path: path.to_owned(), node, process, boot, _lock: lock };
        sync_dir(path)?;
        dir.finish_removals()?;
        Ok(dir)
    }

    /// A directory without an identity is taken only if nothing of somebody else's is in it.
    fn refuse_foreign(path: &Path) -> Result<(), NodeError> {
        let node = path.join(NODE);
        if node.try_exists().map_err(failed("look at", &node))? {
            return Ok(());
        }
        for entry in fs::read_dir(path).map_err(failed("list", path))? {
            let name = entry.map_err(failed("list", path))?.file_name();
            // What a first start that was cut short leaves, and what a file system makes itself.
            let ours = [LOCK, REPLICAS, NEW_NODE, "lost+found"].iter().any(|own| name == *own);
            if !ours {
                let found = name.to_string_lossy().into_owned();
                return Err(NodeError::Foreign { path: path.to_owned(), found });
            }
        }
        Ok(())
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

    /// The identity in `storage`, which is at `path`, and the number of this process: one that no process
    /// had before, durable in both slots. [It was in one only, and that one could rot before the other was
    /// written back: two processes had one number, and what the first had promised counted for the second.]
    fn identity(storage: Arc<dyn Storage>, path: &Path) -> Result<(NodeId, u64), NodeError> {
        let record = |node: NodeId, process: u64| {
            let mut record = Put::default();
            record.bytes(node.0.as_bytes()).u64(process);
            record.0
        };
        let made = match storage.open(NODE) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            // What a failure is, the opening below tells.
            Ok(_) | Err(_) => true,
        };
        if made {
            let (mut slots, found) = Slots::open(storage, NODE, NODE_MAGIC, VERSION, SLOT)?;
            let mut get = Get(&found);
            let (Some(id), Some(starts)) = (get.array(), get.u64()) else {
                return Err(NodeError::Damaged { path: path.join(NODE) });
            };
            let node = NodeId(Uuid::from_bytes(id));
            slots.write(&record(node, starts + 1))?;
            slots.sync()?;
            return Ok((node, starts + 1));
        }
        let held = storage.list(REPLICAS).map_err(failed("list", &path.join(REPLICAS)))?;
        if !held.is_empty() {
            return Err(NodeError::NoIdentity { path: path.to_owned() });
        }
        // Made under another name, so that a crash leaves a whole identity or none.
        let new = NEW_NODE;
        match storage.remove(new) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &path.join(new))(e));
            }
            Ok(()) | Err(_) => {}
        }
        let node = NodeId(Uuid::new_v4());
        Slots::create(Arc::clone(&storage), new, NODE_MAGIC, VERSION, SLOT, &record(node, 1))?;
        storage.rename(new, NODE).map_err(failed("rename", &path.join(new)))?;
        Ok((node, 1))
    }

    /// The node.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// How often a process was started on the directory, this one included.
    pub fn process(&self) -> u64 {
        self.process
    }

    /// The machine's boot.
    pub fn boot(&self) -> BootId {
        self.boot
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that are free for this process, and bytes that the replicas take. Blocks briefly.
    /// What can't be looked at counts for nothing: one file that is lost must not end a node.
    pub fn space(&self) -> Result<(u64, u64), NodeError> {
        Ok((self.free_bytes()?, disk_usage(&self.path.join(REPLICAS))))
    }

    /// Bytes that are free for this process. Blocks briefly.
    pub fn free_bytes(&self) -> Result<u64, NodeError> {
        let found = rustix::fs::statvfs(&self.path)
            .map_err(|e| failed("ask the free space of", &self.path)(e.into()))?;
        Ok(found.f_bavail * found.f_frsize)
    }

    /// The replicas whose directories are here. One whose making was cut short is none yet: it
    /// holds nothing, and the masters, who never heard of it, order it again.
    pub fn replicas(&self) -> Result<Vec<Identity>, NodeError> {
        let dir = self.path.join(REPLICAS);
        let mut out = Vec::new();
        for entry in fs::read_dir(&dir).map_err(failed("list", &dir))? {
            let name = entry.map_err(failed("list", &dir))?.file_name();
            let ids = name.to_str().and_then(|name| name.split_once('.'));
            if let Some((volume, replica)) = ids
                && let (Ok(volume), Ok(replica)) = (volume.parse(), replica.parse())
            {
                out.push(Identity { volume, replica });
            }
        }
        out.retain(|identity| {
            let path = self.replica_path(identity);
            let made = Store::is_made(&path);
            if !made {
                let path = path.display();
                tracing::warn!(%path, "no superblock: its making was cut short, it holds no replica");
            }
            made
        });
        out.sort_by_key(|i| (i.volume, i.replica));
        Ok(out)
    }

    fn replica_path(&self, identity: &Identity) -> PathBuf {
        self.path.join(REPLICAS).join(format!("{}.{}", identity.volume, identity.replica))
    }

    /// A replica's files.
    pub fn storage(&self, identity: &Identity) -> Arc<dyn Storage> {
        Arc::new(Files::new(self.replica_path(identity)))
    }

    /// Makes a replica, durably; see [`Store::create`]. Blocks.
    pub fn create(&self, spec: &CreateSpec, options: &StoreOptions) -> Result<(), StoreError> {
        let path = self.replica_path(&spec.identity);
        let io = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::Io { doing, path, source }
        };
        fs::create_dir_all(&path).map_err(io("make", &path))?;
        let parent = self.path.join(REPLICAS);
        File::open(&parent).and_then(|d| d.sync_all()).map_err(io("sync", &parent))?;
        Store::create(&self.storage(&spec.identity), spec, options)
    }

    /// Removes a replica that the masters gave up. Gone at once for everybody who looks; a crash
    /// in between is finished at the next start. No store may be open on it. Blocks.
    pub fn remove(&self, identity: &Identity) -> Result<(), NodeError> {
        let path = self.replica_path(identity);
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

fn boot_id() -> Result<BootId, NodeError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = fs::read_to_string(path).map_err(failed("read", path))?;
    let id = Uuid::parse_str(text.trim())
        .map_err(|e| failed("understand", path)(io::Error::new(io::ErrorKind::InvalidData, e)))?;
    Ok(BootId(id))
}

#[cfg(test)]
mod tests {
    use sbk_wal::Memory;

    use super::*;

    #[test]
    fn a_directory_keeps_its_identity_and_counts_its_starts() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("data");
        let first = DataDir::open(&path).expect("open");
        let (node, process) = (first.node(), first.process());
        assert_eq!(process, 1);
        let second = DataDir::open(&path).expect_err("it is locked");
        assert!(matches!(second, NodeError::InUse { .. }), "{second}");
        drop(first);
        let again = DataDir::open(&path).expect("open");
        assert_eq!((again.node(), again.process()), (node, 2));
        assert!(again.space().expect("space").0 > 0);
    }

    /// One slot rots, and power is lost right behind the start: what is in the other must be as new.
    #[test]
    fn no_two_processes_get_one_number_if_a_slot_rots() {
        for starts in 1..5 {
            let disk = Memory::new(starts);
            disk.create_dir(REPLICAS).expect("mkdir");
            let start = |disk: &Memory| {
                let found = DataDir::identity(Arc::new(disk.clone()), Path::new("data"));
                disk.sync_dir("").expect("synced");
                found.expect("an identity")
            };
            let mut before = start(&disk);
            for _ in 1..starts {
                before = start(&disk);
            }
            for slot in 0..2 {
                let copy = disk.fork();
                copy.lose_unsynced();
                assert!(copy.flip(NODE, (slot * SLOT as u64 + 40) * 8), "there is such a bit");
                assert_eq!(start(&copy), (before.0, starts + 1), "without slot {slot}");
            }
        }
    }

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
        let path = data.replica_path(&identity);
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
        assert!(data.space().expect("the rest").1 >= 100_000);
        drop(data);
        DataDir::open(dir.path()).expect("opens");
        assert!(replicas.join("x.gone").exists());
    }

    #[test]
    fn a_directory_of_something_else_is_not_adopted() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("member.json"), "{}").expect("written");
        let error = DataDir::open(dir.path()).expect_err("it is foreign");
        assert!(matches!(error, NodeError::Foreign { .. }), "{error}");
        assert!(error.to_string().contains("member.json"), "{error}");
        assert!(!dir.path().join("lock").exists(), "nothing was changed");
    }

    #[test]
    fn replicas_without_an_identity_are_not_adopted() {
        let dir = tempfile::tempdir().expect("a directory");
        drop(DataDir::open(dir.path()).expect("open"));
        fs::create_dir(dir.path().join("replicas/x")).expect("mkdir");
        fs::remove_file(dir.path().join("node")).expect("remove");
        let error = DataDir::open(dir.path()).expect_err("no identity");
        assert!(matches!(error, NodeError::NoIdentity { .. }), "{error}");
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
        let mut left = data.replica_path(&identity).into_os_string();
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
        assert!(!left.exists() && !data.replica_path(&identity).exists());
    }
}
