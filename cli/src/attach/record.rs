//! What this machine has attached: a record and a lock for each volume, and how it ended.
//!
//! The lock is held by the process that serves the volume and goes with it however it ends, so a
//! record whose lock is free is of the past.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use sbk_engine::types::VolumeId;
use serde::{Deserialize, Serialize};

use crate::error::Usage;
use crate::wait::{self, Look, TimedOut};

/// How long a look at a lock may last.
const LOCK: Duration = Duration::from_millis(500);

/// An attached volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub volume: String,
    /// Its UUID.
    pub id: String,
    /// The process that serves it.
    pub pid: u32,
    /// How clients reach it.
    pub uri: String,
    /// Whether its client has it to itself.
    pub exclusive: bool,
    /// The kernel's device, if that is its client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<PathBuf>,
}

impl Record {
    pub(super) fn words(&self) -> String {
        format!(
            "Volume '{}' is at {}\nCtrl-C or `sbkctl detach {}` ends it.\n",
            self.volume, self.uri, self.volume
        )
    }
}

/// The directory: `asked`, else the user's.
pub(super) fn run_dir(asked: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let own = || {
        let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
        match runtime {
            Some(dir) => Some(PathBuf::from(dir).join("sbk")),
            None if rustix::process::geteuid().is_root() => Some("/run/sbk-attach".into()),
            None => None,
        }
    };
    let dir = asked.or_else(own).ok_or_else(|| {
        Usage("there is no $XDG_RUNTIME_DIR; say with --run-dir where sockets are to be".to_owned())
    })?;
    let dir = std::path::absolute(dir).context("the run directory")?;
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
    made.with_context(|| format!("making {}", dir.display()))?;
    Ok(dir)
}

fn path(dir: &Path, id: &str, what: &str) -> PathBuf {
    dir.join(format!("{id}.{what}"))
}

fn open_lock(dir: &Path, id: &str) -> anyhow::Result<File> {
    let path = path(dir, id, "lock");
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create(true).truncate(false).open(&path);
    file.with_context(|| format!("opening {}", path.display()))
}

/// A volume that is this process's to serve on this machine.
#[derive(Debug)]
pub(super) struct Claim {
    dir: PathBuf,
    id: String,
    _lock: File,
}

/// Claims a volume.
///
/// # Errors
/// If another process of this machine has it.
pub(super) async fn claim(dir: &Path, volume: VolumeId) -> anyhow::Result<Claim> {
    let id = volume.to_string();
    let lock = open_lock(dir, &id)?;
    // Who only looks holds it for an instant.
    let free = wait::until("the volume's lock", LOCK, async || {
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Look::Done(())),
            Err(Errno::WOULDBLOCK) => Ok(Look::NotYet("it is held".to_owned())),
            Err(error) => Err(error).context("locking the volume's record"),
        }
    });
    if let Err(error) = free.await {
        if !error.is::<TimedOut>() {
            return Err(error);
        }
        let by = read(dir, &id).map_or(String::new(), |r| format!(" by process {}", r.pid));
        bail!("this machine has the volume attached{by}; `sbkctl detach` ends that");
    }
    for what in ["json", "ended"] {
        let path = path(dir, &id, what);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", path.display()));
            }
            _ => {}
        }
    }
    Ok(Claim { dir: dir.to_owned(), id, _lock: lock })
}

impl Claim {
    /// The directory of records.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Notes that the volume is served.
    pub(super) fn write(&self, record: &Record) -> anyhow::Result<()> {
        self.put("json", &serde_json::to_vec(record).context("writing the record")?)
    }

    /// Notes how it ended.
    pub(super) fn ended(&self, ended: &Result<(), String>) -> anyhow::Result<()> {
        self.put("ended", &serde_json::to_vec(ended).context("writing the record")?)
    }

    /// A reader sees all of a file or nothing of it.
    fn put(&self, what: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let (path, new) = (path(&self.dir, &self.id, what), path(&self.dir, &self.id, "new"));
        let put = std::fs::write(&new, bytes).and_then(|()| std::fs::rename(&new, &path));
        put.with_context(|| format!("writing {}", path.display()))
    }
}

fn read(dir: &Path, id: &str) -> Option<Record> {
    serde_json::from_slice(&std::fs::read(path(dir, id, "json")).ok()?).ok()
}

/// The volume of that name or UUID, if it is served by a process of this machine.
pub(super) fn find(dir: &Path, volume: &str) -> anyhow::Result<Option<Record>> {
    let listed = std::fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    for entry in listed {
        let path = entry.context("reading the run directory")?.path();
        let Some(id) = path.file_name().and_then(|n| n.to_str()?.strip_suffix(".json")) else {
            continue;
        };
        let Some(record) = read(dir, id) else { continue };
        let lives = || anyhow::Ok(lock_is_held(&open_lock(dir, id)?));
        if (record.volume == volume || record.id == volume) && lives()? {
            return Ok(Some(record));
        }
    }
    Ok(None)
}

fn lock_is_held(lock: &File) -> bool {
    // A look; the lock goes with the file.
    flock(lock, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK)
}

/// Has the process end in order, and waits for it.
///
/// # Errors
/// If it takes longer than `limit`, or what was acknowledged could not be flushed.
pub(super) async fn end(dir: &Path, record: &Record, limit: Duration) -> anyhow::Result<()> {
    let lock = open_lock(dir, &record.id)?;
    let pid = Pid::from_raw(record.pid.cast_signed()).context("the record's process")?;
    // Its lock was held a moment ago; if it is gone by now, what it noted tells the rest.
    if lock_is_held(&lock)
        && let Err(error) = kill_process(pid, Signal::TERM)
        && error != Errno::SRCH
    {
        return Err(error).with_context(|| format!("ending process {}", record.pid));
    }
    drop(lock);
    await_end(dir, record, limit).await
}

/// Waits until the process that serves a volume has ended.
///
/// # Errors
/// As [`end`].
pub(super) async fn await_end(dir: &Path, record: &Record, limit: Duration) -> anyhow::Result<()> {
    let lock = open_lock(dir, &record.id)?;
    let gone = tokio::task::spawn_blocking(move || {
        flock(&lock, FlockOperation::LockShared).map(|()| drop(lock))
    });
    match tokio::time::timeout(limit, gone).await {
        Ok(gone) => gone.context("waiting for its end")?.context("waiting for its end")?,
        Err(_) => {
            return Err(TimedOut {
                what: format!("process {} to end", record.pid),
                seen: "it still answers what is under way".to_owned(),
                waited: limit,
            }
            .into());
        }
    }
    let ended = std::fs::read(path(dir, &record.id, "ended")).ok();
    match ended.and_then(|bytes| serde_json::from_slice::<Result<(), String>>(&bytes).ok()) {
        Some(Ok(())) => Ok(()),
        Some(Err(why)) => bail!("volume '{}' is detached, but: {why}", record.volume),
        None => bail!("process {} was killed; what it had not flushed may be lost", record.pid),
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn record(id: VolumeId) -> Record {
        Record {
            volume: "db".into(),
            id: id.to_string(),
            pid: std::process::id(),
            uri: "nbd://127.0.0.1:1/db".into(),
            exclusive: true,
            device: None,
        }
    }

    #[tokio::test]
    async fn a_volume_is_claimed_once_and_found_while_it_is() {
        let dir = tempfile::tempdir().expect("dir");
        let dir = dir.path();
        let id = VolumeId(Uuid::from_u128(7));
        let own = claim(dir, id).await.expect("is free");
        own.write(&record(id)).expect("writes");
        let refused = claim(dir, id).await.expect_err("is taken").to_string();
        assert!(refused.contains(&std::process::id().to_string()), "{refused}");
        assert_eq!(find(dir, "db").expect("by name"), Some(record(id)));
        assert_eq!(find(dir, &id.to_string()).expect("by id"), Some(record(id)));
        assert_eq!(find(dir, "other").expect("looks"), None);
        own.ended(&Ok(())).expect("notes");
        drop(own);
        assert_eq!(find(dir, "db").expect("looks"), None, "its process is gone");
        let _again = claim(dir, id).await.expect("is free again");
        assert_eq!(read(dir, &id.to_string()), None, "nothing of before is taken for its own");
    }
}
