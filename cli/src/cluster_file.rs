//! `cluster.json`: what a development cluster consists of, for scripts and for this tool.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

/// The parts of a running development cluster. Written once all of it serves, again whenever a
/// process or a volume came or went, removed when the cluster is stopped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterFile {
    /// The masters.
    pub masters: Vec<MasterEntry>,
    /// The datanodes.
    pub datanodes: Vec<DatanodeEntry>,
    /// The volumes that were asked for.
    pub volumes: Vec<VolumeEntry>,
}

/// One master.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasterEntry {
    /// Its number in the quorum.
    pub id: u64,
    /// Its process.
    pub pid: u32,
    /// `host:port` of gRPC.
    pub listen: String,
    /// `host:port` of HTTP.
    pub http: String,
}

/// One datanode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatanodeEntry {
    /// Its UUID, as in `volume show`.
    pub id: String,
    /// Its process.
    pub pid: u32,
    /// `host:port` of gRPC.
    pub listen: String,
    /// `host:port` of HTTP.
    pub http: String,
    /// `host:port` of NBD.
    pub nbd: String,
    /// Where its data is; of a datanode that has block devices alone, what it may lose.
    pub data_dir: PathBuf,
}

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeEntry {
    /// Its name.
    pub name: String,
    /// How to reach it, for nbdinfo, nbdcopy, fio, qemu-img.
    pub nbd_uri: String,
}

const NAME: &str = "cluster.json";

impl ClusterFile {
    /// Reads the file of the cluster in `dir`.
    pub fn read(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(NAME);
        let text = std::fs::read(&path).with_context(|| {
            format!(
                "no development cluster serves in {} (there is no readable {NAME}); start one \
                 with `sbkctl dev --dir {}`",
                dir.display(),
                dir.display()
            )
        })?;
        serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))
    }

    /// Writes the file into `dir`: readers see the old one or the new one, never a part.
    pub fn write(&self, dir: &Path) -> anyhow::Result<()> {
        let mut text = serde_json::to_vec_pretty(self).context("writing JSON")?;
        text.push(b'\n');
        write_atomically(&dir.join(NAME), &text)
    }

    /// Removes the file from `dir`: nothing serves there any more.
    pub fn remove(dir: &Path) -> anyhow::Result<()> {
        match std::fs::remove_file(dir.join(NAME)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).with_context(|| format!("removing {NAME} from {}", dir.display()))
            }
            _ => Ok(()),
        }
    }

    /// The masters' gRPC addresses.
    pub fn master_addrs(&self) -> Vec<String> {
        self.masters.iter().map(|m| m.listen.clone()).collect()
    }
}

/// Replaces `path` by a file with `text`.
pub(crate) fn write_atomically(path: &Path, text: &[u8]) -> anyhow::Result<()> {
    let write = || {
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(text)?;
        file.sync_all()?;
        std::fs::rename(&new, path)
    };
    write().with_context(|| format!("writing {}", path.display()))
}

/// The directory of the development cluster unless another is named: `sbk/dev` below
/// `$XDG_STATE_HOME`, or below `~/.local/state`.
pub fn default_dir() -> PathBuf {
    let from = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    from("XDG_STATE_HOME")
        .or_else(|| from("HOME").map(|home| home.join(".local/state")))
        .unwrap_or_else(std::env::temp_dir)
        .join("sbk/dev")
}

/// Held by the `dev` command for as long as it runs.
#[derive(Debug)]
pub struct DirLock(#[expect(dead_code, reason = "the lock is held by the open file")] File);

impl DirLock {
    /// Locks `dir`; `None` if a running `dev` command holds it, or [`is_running`] just looks.
    pub fn take(dir: &Path) -> anyhow::Result<Option<Self>> {
        let path = dir.join("lock");
        let open = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = open.with_context(|| format!("opening {}", path.display()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                let pid = std::process::id().to_string();
                file.set_len(0)
                    .and_then(|()| (&file).write_all(pid.as_bytes()))
                    .with_context(|| format!("writing {}", path.display()))?;
                Ok(Some(Self(file)))
            }
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(e) => Err(e).with_context(|| format!("locking {}", path.display())),
        }
    }
}

/// Whether a `dev` command runs on `dir`. Changes nothing there.
pub fn is_running(dir: &Path) -> bool {
    let Ok(file) = File::open(dir.join("lock")) else { return false };
    // The lock is shared, and held for an instant.
    matches!(flock(&file, FlockOperation::NonBlockingLockShared), Err(Errno::WOULDBLOCK))
}

/// Sends a signal to the `dev` command that runs on `dir`.
pub(crate) fn signal_dev(dir: &Path, signal: Signal) -> anyhow::Result<()> {
    if !is_running(dir) {
        anyhow::bail!("no `sbkctl dev` runs on {} any more", dir.display());
    }
    // Who holds the lock wrote its pid.
    let path = dir.join("lock");
    let pid =
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let pid = pid.trim().parse().ok().and_then(Pid::from_raw);
    let pid = pid.with_context(|| format!("{} holds no pid", path.display()))?;
    kill_process(pid, signal).with_context(|| format!("signalling process {pid:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_has_the_documented_shape() {
        let dir = tempfile::tempdir().expect("dir");
        let file = ClusterFile {
            masters: vec![MasterEntry {
                id: 1,
                pid: 10,
                listen: "127.0.0.1:1".into(),
                http: "127.0.0.1:2".into(),
            }],
            datanodes: vec![DatanodeEntry {
                id: "n".into(),
                pid: 11,
                listen: "127.0.0.1:3".into(),
                http: "127.0.0.1:4".into(),
                nbd: "127.0.0.1:5".into(),
                data_dir: "/d".into(),
            }],
            volumes: vec![VolumeEntry { name: "v".into(), nbd_uri: "nbd://127.0.0.1:5/v".into() }],
        };
        file.write(dir.path()).expect("writes");
        let text = std::fs::read(dir.path().join("cluster.json")).expect("reads");
        let json: serde_json::Value = serde_json::from_slice(&text).expect("parses");
        assert_eq!(
            json,
            serde_json::json!({
                "masters": [{"id": 1, "pid": 10, "listen": "127.0.0.1:1", "http": "127.0.0.1:2"}],
                "datanodes": [{"id": "n", "pid": 11, "listen": "127.0.0.1:3",
                    "http": "127.0.0.1:4", "nbd": "127.0.0.1:5", "data_dir": "/d"}],
                "volumes": [{"name": "v", "nbd_uri": "nbd://127.0.0.1:5/v"}],
            })
        );
        assert_eq!(ClusterFile::read(dir.path()).expect("reads"), file);
        ClusterFile::remove(dir.path()).expect("removes");
        ClusterFile::remove(dir.path()).expect("removes nothing");
        let error = format!("{:#}", ClusterFile::read(dir.path()).expect_err("gone"));
        assert!(error.contains("sbkctl dev --dir"), "{error}");
    }

    #[test]
    fn one_command_holds_a_directory() {
        let dir = tempfile::tempdir().expect("dir");
        assert!(!is_running(dir.path()));
        let lock = DirLock::take(dir.path()).expect("locks").expect("is free");
        assert!(is_running(dir.path()));
        assert!(DirLock::take(dir.path()).expect("tries").is_none());
        drop(lock);
        assert!(!is_running(dir.path()));
    }
}
