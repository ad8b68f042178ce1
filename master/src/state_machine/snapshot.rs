//! Snapshots as files.
//!
//! ```text
//! "SBKSNAP1" | meta length u32 | data length u64 | meta JSON | data | crc32c u32
//! ```
//! Integers are little-endian; the checksum covers everything before it. A snapshot is written
//! under another name, synced, renamed and its directory synced: a name that says "snapshot" is
//! whole, or was damaged later, which the checksum tells.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use sbk_wal::crc32c;

use crate::raft::SnapshotMeta;

const MAGIC: &[u8; 8] = b"SBKSNAP1";
const HEADER: usize = 20;

/// Why a snapshot can't be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
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
    /// The checksum does not match, or the file is cut.
    #[error("snapshot {path} is damaged")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// What it says can't be read.
    #[error("snapshot {path} can't be read: {source}. Was it written by a newer version?")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// A snapshot read from its file.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) meta: SnapshotMeta,
    pub(crate) data: Vec<u8>,
}

fn io_error<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> SnapshotError + 'a {
    move |source| SnapshotError::Io { action, path: path.to_owned(), source }
}

fn index_of(meta: &SnapshotMeta) -> u64 {
    meta.last_log_id.map_or(0, |id| id.index)
}

/// Writes a snapshot durably into `dir` and then removes the ones that it replaces.
pub(crate) fn save(dir: &Path, meta: &SnapshotMeta, data: &[u8]) -> Result<(), SnapshotError> {
    let index = index_of(meta);
    let path = dir.join(format!("snapshot-{index:016x}.sbk"));
    let temporary = dir.join(format!("new-{index:016x}.tmp"));
    let json = serde_json::to_vec(meta)
        .map_err(|source| SnapshotError::Unreadable { path: path.clone(), source })?;
    let mut bytes = Vec::with_capacity(HEADER + json.len() + data.len() + 4);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&(json.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&(data.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&json);
    bytes.extend_from_slice(data);
    bytes.extend_from_slice(&crc32c(&bytes).to_le_bytes());
    let mut file = File::create(&temporary).map_err(io_error("create", &temporary))?;
    file.write_all(&bytes).map_err(io_error("write", &temporary))?;
    file.sync_all().map_err(io_error("sync", &temporary))?;
    fs::rename(&temporary, &path).map_err(io_error("rename", &temporary))?;
    sync(dir)?;
    for (older, path) in list(dir)? {
        if older < index {
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
    }
    Ok(())
}

/// The newest snapshot that is whole. A damaged one is told in the log and passed over: an older
/// one may do, and if none does the caller finds the log incomplete and says so.
pub(crate) fn load_newest(dir: &Path) -> Result<Option<Loaded>, SnapshotError> {
    'listed: loop {
        for (_, path) in list(dir)?.into_iter().rev() {
            match load(&path) {
                Ok(loaded) => return Ok(Some(loaded)),
                // A newer one that is built beside this took its place since it was listed. [It was taken
                // for a failure of the disk, and the member ended.]
                Err(SnapshotError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                    continue 'listed;
                }
                Err(error @ SnapshotError::Damaged { .. }) => {
                    tracing::error!(%error, "passed over");
                }
                Err(error) => return Err(error),
            }
        }
        return Ok(None);
    }
}

/// Removes what a crash left half written, and makes the names of the others durable: the process may
/// have been killed between the rename and its sync, and what was only renamed is no reason to purge.
pub(crate) fn settle(dir: &Path) -> Result<(), SnapshotError> {
    for entry in fs::read_dir(dir).map_err(io_error("list", dir))? {
        let path = entry.map_err(io_error("list", dir))?.path();
        if path.extension().is_some_and(|e| e == "tmp") {
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
    }
    sync(dir)
}

fn sync(dir: &Path) -> Result<(), SnapshotError> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(io_error("sync", dir))
}

fn list(dir: &Path) -> Result<Vec<(u64, PathBuf)>, SnapshotError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(io_error("list", dir))? {
        let path = entry.map_err(io_error("list", dir))?.path();
        let index = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_prefix("snapshot-")?.strip_suffix(".sbk"))
            .and_then(|hex| u64::from_str_radix(hex, 16).ok());
        if let Some(index) = index {
            found.push((index, path));
        }
    }
    found.sort();
    Ok(found)
}

fn load(path: &Path) -> Result<Loaded, SnapshotError> {
    let bytes = fs::read(path).map_err(io_error("read", path))?;
    let parts = split(&bytes).ok_or_else(|| SnapshotError::Damaged { path: path.to_owned() })?;
    let meta = serde_json::from_slice(parts.0)
        .map_err(|source| SnapshotError::Unreadable { path: path.to_owned(), source })?;
    Ok(Loaded { meta, data: parts.1.to_vec() })
}

/// Meta and data, if the checksum is right.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (body, sum) = bytes.split_last_chunk::<4>()?;
    let head: &[u8; HEADER] = body.get(..HEADER)?.try_into().ok()?;
    if &head[..8] != MAGIC || crc32c(body) != u32::from_le_bytes(*sum) {
        return None;
    }
    let meta = u32::from_le_bytes(head[8..12].try_into().ok()?) as usize;
    let data = u64::from_le_bytes(head[12..20].try_into().ok()?);
    let data = usize::try_from(data).ok()?;
    let rest = &body[HEADER..];
    (meta.checked_add(data) == Some(rest.len())).then(|| rest.split_at(meta))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn one_can_be_read_while_others_take_its_place() {
        let dir = tempfile::tempdir().expect("a directory");
        let meta = |index| SnapshotMeta {
            last_log_id: Some(crate::raft::LogId::new(Default::default(), index)),
            ..SnapshotMeta::default()
        };
        save(dir.path(), &meta(0), b"data").expect("saves");
        let stopped = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for index in 1..1500 {
                    save(dir.path(), &meta(index), b"data").expect("saves");
                }
                stopped.store(true, Ordering::Relaxed);
            });
            while !stopped.load(Ordering::Relaxed) {
                let loaded = load_newest(dir.path()).expect("reads").expect("there is one");
                assert_eq!(loaded.data, b"data");
            }
        });
    }
}
