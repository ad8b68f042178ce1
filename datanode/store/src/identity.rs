//! Who a node is: a small record of which each of its data directories has a copy of its own.
//!
//! It names the node, the directory, and all directories that the node has; so one that is missing is told
//! from one that never was. And it counts the starts of the node's process: a process raises the count in
//! every directory that it uses before it opens a replica there, to a number that is in none of them. So no
//! replica is ever opened by two processes of one number, whichever directories were away at which start.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sbk_device::DeviceError;
use sbk_engine::types::NodeId;
use sbk_wal::{Get, Put, SlotError, Slots, Storage};
use uuid::Uuid;

pub(super) const NODE: &str = "node";
/// The record while it is being made.
pub(super) const NEW_NODE: &str = "node.new";
const NODE_MAGIC: [u8; 8] = *b"SBKNODE\0";
const VERSION: u32 = 2;
const SLOT: usize = 4096;
/// Most directories that a node can have, those that are away included: the record has to fit its slot.
pub(super) const MAX_DIRS: usize = 64;

/// A data directory, by the id that it got when it was first used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DirId(pub Uuid);

impl fmt::Display for DirId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for DirId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Self)
    }
}

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
    /// A device can't be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
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
    /// One that holds the identity of another node than the rest.
    #[error(
        "{path} is a directory of node {found}, and {other} of node {node}: a process has those of one \
         node; look what is mounted where"
    )]
    OtherNode {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: NodeId,
        /// Another of the directories.
        other: PathBuf,
        /// Whose that one is.
        node: NodeId,
    },
    /// One is given more than once.
    #[error("{path} and {other} are one; give each once")]
    Twice {
        /// The directory.
        path: PathBuf,
        /// The same, by another name.
        other: PathBuf,
    },
    /// One is a copy of another.
    #[error(
        "{path} and {other} both say that they are directory {dir}: one is a copy of the other. Move the \
         copy away: no replica may be in two places"
    )]
    Copy {
        /// The directory.
        path: PathBuf,
        /// The other one.
        other: PathBuf,
        /// What both say.
        dir: DirId,
    },
    /// A replica is in two directories.
    #[error(
        "replica {replica} is in {path} and in {other}: one is a copy of the other. Move the copy away: \
         no replica may be in two places"
    )]
    ReplicaTwice {
        /// One directory.
        path: PathBuf,
        /// The other one.
        other: PathBuf,
        /// As its directory is named.
        replica: String,
    },
    /// More than a node can have.
    #[error(
        "a node can have {MAX_DIRS} data directories, those that are away included; give fewer"
    )]
    TooMany,
    /// One that is given up is there.
    #[error(
        "{path} is directory {dir}, which --lost-dir gives up: it is not lost. Leave one of the two away"
    )]
    NotLost {
        /// The directory.
        path: PathBuf,
        /// Its id.
        dir: DirId,
    },
    /// A directory that has nothing of the node's, while some of the node's are missing.
    #[error(
        "{path} {}, while the node's directory {} is missing: is its disk mounted? If that one is lost for \
         good say so with --lost-dir {}",
        if *.there { "is empty" } else { "does not exist" }, ids(.missing), ids(.missing)
    )]
    NotMounted {
        /// The directory.
        path: PathBuf,
        /// Whether there is one of that name.
        there: bool,
        /// The ids of those that are missing.
        missing: BTreeSet<DirId>,
    },
    /// It is not what was there when it was opened.
    #[error("{path} is not the directory any more that was opened: its disk is not mounted")]
    Replaced {
        /// The directory.
        path: PathBuf,
    },
    /// It says nothing.
    #[error("{path} did not answer within {} s", .limit.as_secs())]
    Hangs {
        /// The directory.
        path: PathBuf,
        /// How long was waited.
        limit: Duration,
    },
    /// Another process has used it since this one started.
    #[error(
        "{path} was used by process {found} of this node, and this is process {process}: restart the \
         datanode, which counts on from there"
    )]
    UsedSince {
        /// The directory.
        path: PathBuf,
        /// The number in it.
        found: u64,
        /// This process's.
        process: u64,
    },
    /// It is of this node, but none that it has.
    #[error(
        "{path} is a directory that this node does not have any more; restart it to have it again"
    )]
    NotOurs {
        /// The directory.
        path: PathBuf,
    },
}

impl NodeError {
    /// Whether it is the disk's fault, and not that of whoever set the directories up.
    pub(super) fn is_of_the_disk(&self) -> bool {
        match self {
            Self::Io { .. }
            | Self::LostIdentity(_)
            | Self::Damaged { .. }
            | Self::NotMounted { .. }
            | Self::Replaced { .. }
            | Self::Hangs { .. } => true,
            Self::Identity(error) => matches!(error, SlotError::Io { .. }),
            // One whose medium is away has no bytes.
            Self::Device(error) => match error {
                DeviceError::Io { .. }
                | DeviceError::Shrunk { .. }
                | DeviceError::TooSmall { .. }
                | DeviceError::Damaged { .. } => true,
                DeviceError::NoDevice { .. }
                | DeviceError::InUse { .. }
                | DeviceError::Foreign { .. }
                | DeviceError::OtherNode { .. }
                | DeviceError::Newer { .. } => false,
            },
            Self::InUse { .. }
            | Self::NoIdentity { .. }
            | Self::Foreign { .. }
            | Self::OtherNode { .. }
            | Self::Twice { .. }
            | Self::Copy { .. }
            | Self::ReplicaTwice { .. }
            | Self::TooMany
            | Self::NotLost { .. }
            | Self::UsedSince { .. }
            | Self::NotOurs { .. } => false,
        }
    }
}

fn ids(dirs: &BTreeSet<DirId>) -> String {
    dirs.iter().map(DirId::to_string).collect::<Vec<_>>().join(",")
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

pub(super) fn failed<'a>(
    doing: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> NodeError + 'a {
    move |source| NodeError::Io { doing, path: path.to_owned(), source }
}

/// What the record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeRecord {
    pub(super) node: NodeId,
    /// Starts of a process that used this directory, and at the least as many as any that did not.
    pub(super) process: u64,
    /// This directory.
    pub(super) dir: DirId,
    /// All that the node had when this was written, this one included.
    pub(super) dirs: BTreeSet<DirId>,
}

impl NodeRecord {
    fn encode(&self) -> Vec<u8> {
        let mut record = Put::default();
        record.bytes(self.node.0.as_bytes()).u64(self.process).bytes(self.dir.0.as_bytes());
        record.u32(self.dirs.len() as u32);
        self.dirs.iter().for_each(|dir| {
            record.bytes(dir.0.as_bytes());
        });
        record.0
    }

    /// A record of version 1 ends behind the count of starts: its directory was the node's only one, and
    /// gets the node's UUID for an id, so that of two copies of it each is known for one.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut get = Get(bytes);
        let (node, process) = (NodeId(Uuid::from_bytes(get.array()?)), get.u64()?);
        if get.0.is_empty() {
            let dir = DirId(node.0);
            return Some(Self { node, process, dir, dirs: BTreeSet::from([dir]) });
        }
        let dir = DirId(Uuid::from_bytes(get.array()?));
        let count = get.u32()?;
        let ids = (0..count).map(|_| get.array().map(|id| DirId(Uuid::from_bytes(id))));
        let dirs = ids.collect::<Option<_>>()?;
        Some(Self { node, process, dir, dirs })
    }

    /// Reads the record in `storage`, which is at `path`; `None` if there is none.
    pub(super) fn read(
        storage: Arc<dyn Storage>,
        path: &Path,
    ) -> Result<Option<(Slots, Self)>, NodeError> {
        match storage.open(NODE) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            // What a failure is, the opening below tells.
            Ok(_) | Err(_) => {}
        }
        let (slots, found) = Slots::open(storage, NODE, NODE_MAGIC, VERSION, SLOT)?;
        let record = Self::decode(&found);
        let record = record.ok_or_else(|| NodeError::Damaged { path: path.join(NODE) })?;
        Ok(Some((slots, record)))
    }

    /// Makes the file, under another name first, so that a crash leaves a whole record or none. The
    /// caller syncs the directory.
    pub(super) fn create(
        &self,
        storage: &Arc<dyn Storage>,
        path: &Path,
    ) -> Result<Slots, NodeError> {
        match storage.remove(NEW_NODE) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &path.join(NEW_NODE))(e));
            }
            Ok(()) | Err(_) => {}
        }
        let record = self.encode();
        let storage = Arc::clone(storage);
        let slots =
            Slots::create(Arc::clone(&storage), NEW_NODE, NODE_MAGIC, VERSION, SLOT, &record)?;
        storage.rename(NEW_NODE, NODE).map_err(failed("rename", &path.join(NEW_NODE)))?;
        Ok(slots)
    }

    /// Replaces the record, durably in both slots. [It was in one only, and that one could rot before the
    /// other was written back: two processes had one number, and what the first had promised counted for the
    /// second.]
    pub(super) fn write(&self, slots: &mut Slots) -> Result<(), NodeError> {
        slots.write(&self.encode())?;
        Ok(slots.sync()?)
    }
}

#[cfg(test)]
mod tests {
    use sbk_wal::Memory;

    use super::*;

    /// One slot rots, and power is lost right behind the start: what is in the other must be as new.
    #[test]
    fn no_two_processes_get_one_number_if_a_slot_rots() {
        let path = Path::new("data");
        for starts in 1..5 {
            let disk = Memory::new(starts);
            let storage: Arc<dyn Storage> = Arc::new(disk.clone());
            let dir = DirId(Uuid::new_v4());
            let node = NodeId(Uuid::new_v4());
            let mut record = NodeRecord { node, process: 1, dir, dirs: BTreeSet::from([dir]) };
            record.create(&storage, path).expect("made");
            disk.sync_dir("").expect("synced");
            while record.process < starts {
                let found = NodeRecord::read(Arc::clone(&storage), path).expect("reads");
                let (mut slots, found) = found.expect("is there");
                assert_eq!(found, record);
                record.process += 1;
                record.write(&mut slots).expect("written");
            }
            for slot in 0..2 {
                let copy = disk.fork();
                copy.lose_unsynced();
                assert!(copy.flip(NODE, (slot * SLOT as u64 + 40) * 8), "there is such a bit");
                let found = NodeRecord::read(Arc::new(copy), path).expect("reads");
                assert_eq!(found.expect("is there").1, record, "without slot {slot}");
            }
        }
    }

    #[test]
    fn a_record_of_version_1_is_the_only_directorys() {
        let disk = Memory::new(1);
        let storage: Arc<dyn Storage> = Arc::new(disk);
        let node = NodeId(Uuid::new_v4());
        let mut old = Put::default();
        old.bytes(node.0.as_bytes()).u64(7);
        Slots::create(Arc::clone(&storage), NODE, NODE_MAGIC, 1, SLOT, &old.0).expect("made");
        let found = NodeRecord::read(storage, Path::new("data")).expect("reads");
        let (_, found) = found.expect("is there");
        assert_eq!((found.node, found.process), (node, 7));
        assert_eq!(found.dirs, BTreeSet::from([found.dir]));
    }

    #[test]
    fn as_many_directories_as_a_node_can_have_fit() {
        let dirs: BTreeSet<_> = (0..MAX_DIRS).map(|_| DirId(Uuid::new_v4())).collect();
        let dir = *dirs.first().expect("there are some");
        let record = NodeRecord { node: NodeId(Uuid::new_v4()), process: 1, dir, dirs };
        assert_eq!(NodeRecord::decode(&record.encode()), Some(record.clone()));
        let storage: Arc<dyn Storage> = Arc::new(Memory::new(1));
        record.create(&storage, Path::new("data")).expect("fits its slot");
    }
}
