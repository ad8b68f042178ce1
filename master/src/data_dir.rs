//! The data directory: whose it is, and that nobody else uses it.
//!
//! ```text
//! D/lock            held by the running process
//! D/identity.json   member, cluster, and the directory's own identity
//! D/log/            the Raft log and the vote
//! D/snapshots/      snapshots of the applied state
//! D/applied.sled/   the applied state, a cache that is left by a stop in order
//! D/applied.seal    checksums of the cache's files: others than these are not opened
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::raft::MemberId;

const FORMAT: u32 = 1;

/// Why a data directory can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DataDirError {
    /// The operating system said no.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// Another process has it.
    #[error(
        "{path} is in use by another process: stop it, or give this one a --data-dir of its own"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// It is another member's.
    #[error(
        "{path} belongs to master {found}, not {given}: start it with --id {found}, or give \
         master {given} its own --data-dir"
    )]
    OtherMember {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        found: MemberId,
        /// Who came.
        given: MemberId,
    },
    /// It is of another cluster.
    #[error(
        "{path} belongs to the cluster {found:?}, not {given:?}: start it with --cluster {found}, \
         or give this master a new --data-dir"
    )]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// Its cluster.
        found: String,
        /// The cluster given.
        given: String,
    },
    /// There is something else in it.
    #[error(
        "{path} is no data directory of a master: it holds {found:?} and no identity.json. Give an \
         empty or new --data-dir"
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// Something in it.
        found: String,
    },
    /// Its identity can't be read.
    #[error(
        "{path} is damaged ({source}). Without it nobody knows whose vote and log this is; remove \
         this member from the cluster and add a new one"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A newer version wrote it.
    #[error("{path} has format {found}, this version reads {FORMAT}: use the newer version")]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
}

/// Whose a directory is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    format: u32,
    member: MemberId,
    cluster: String,
    instance: Uuid,
}

/// A data directory that this process holds.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    identity: Identity,
    fresh: bool,
    /// The lock lasts as long as the file is open.
    _lock: File,
}

fn io_error<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> DataDirError + 'a {
    move |source| DataDirError::Io { action, path: path.to_owned(), source }
}

impl DataDir {
    /// Takes the directory for member `member` of `cluster` (see
    /// [`ClusterSpec`](crate::args::ClusterSpec)'s text form); makes it if there is none.
    pub(crate) fn open(path: &Path, member: MemberId, cluster: &str) -> Result<Self, DataDirError> {
        fs::create_dir_all(path).map_err(io_error("make", path))?;
        let file = path.join("identity.json");
        if !file.exists() {
            // Before the lock's file is made in it.
            check_is_ours(path)?;
        }
        let lock = lock(path)?;
        let identity = match fs::read(&file) {
            Ok(bytes) => Some(
                serde_json::from_slice::<Identity>(&bytes)
                    .map_err(|source| DataDirError::Damaged { path: file.clone(), source })?,
            ),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(io_error("read", &file)(e)),
        };
        let fresh = identity.is_none();
        let identity = match identity {
            Some(identity) => {
                check(path, &file, &identity, member, cluster)?;
                identity
            }
            None => {
                check_is_ours(path)?;
                Identity {
                    format: FORMAT,
                    member,
                    cluster: cluster.to_owned(),
                    instance: Uuid::new_v4(),
                }
            }
        };
        let log = path.join("log");
        fs::create_dir_all(&log).map_err(io_error("make", &log))?;
        Ok(Self { path: path.to_owned(), identity, fresh, _lock: lock })
    }

    /// Whether no member ever took part with this directory. It stays so until
    /// [`settle`](Self::settle).
    pub(crate) fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// The directory itself.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The Raft log's directory.
    pub(crate) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// The directory's own identity.
    pub(crate) fn instance(&self) -> Uuid {
        self.identity.instance
    }

    /// Writes the identity of a fresh directory durably, once its log was made: from here on a
    /// log that is missing is damage.
    pub(crate) fn settle(&mut self) -> Result<(), DataDirError> {
        if !self.fresh {
            return Ok(());
        }
        let (file, temporary) = (self.path.join("identity.json"), self.path.join("identity.tmp"));
        let json = serde_json::to_vec_pretty(&self.identity)
            .map_err(|source| DataDirError::Damaged { path: file.clone(), source })?;
        let mut out = File::create(&temporary).map_err(io_error("create", &temporary))?;
        out.write_all(&json).map_err(io_error("write", &temporary))?;
        out.sync_all().map_err(io_error("sync", &temporary))?;
        fs::rename(&temporary, &file).map_err(io_error("rename", &temporary))?;
        File::open(&self.path).and_then(|d| d.sync_all()).map_err(io_error("sync", &self.path))?;
        self.fresh = false;
        Ok(())
    }
}

fn lock(path: &Path) -> Result<File, DataDirError> {
    let file = path.join("lock");
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&file)
        .map_err(io_error("open", &file))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(DataDirError::InUse { path: path.to_owned() }),
        Err(e) => Err(io_error("lock", &file)(e.into())),
    }
}

fn check(
    path: &Path,
    file: &Path,
    identity: &Identity,
    member: MemberId,
    cluster: &str,
) -> Result<(), DataDirError> {
    if identity.format != FORMAT {
        return Err(DataDirError::Format { path: file.to_owned(), found: identity.format });
    }
    if identity.member != member {
        return Err(DataDirError::OtherMember {
            path: path.to_owned(),
            found: identity.member,
            given: member,
        });
    }
    if identity.cluster != cluster {
        return Err(DataDirError::OtherCluster {
            path: path.to_owned(),
            found: identity.cluster.clone(),
            given: cluster.to_owned(),
        });
    }
    Ok(())
}

/// A directory without an identity may hold what a first start that was interrupted made, and
/// nothing else: a datanode's directory, or somebody's home, is not to be written into.
fn check_is_ours(path: &Path) -> Result<(), DataDirError> {
    for entry in fs::read_dir(path).map_err(io_error("list", path))? {
        let name = entry.map_err(io_error("list", path))?.file_name();
        let name = name.to_string_lossy();
        let ours = [
            "lock",
            "log",
            "identity.tmp",
            "snapshots",
            "applied.sled",
            "applied.seal",
            "applied.tmp",
            // A file system of its own may be mounted there.
            "lost+found",
        ];
        if !ours.contains(&&*name) {
            return Err(DataDirError::Foreign { path: path.to_owned(), found: name.into_owned() });
        }
    }
    Ok(())
}
