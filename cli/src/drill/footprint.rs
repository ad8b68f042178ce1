//! What a process takes of its machine, as the kernel tells.

use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;

use crate::cluster_file::ClusterFile;

/// What one process takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Footprint {
    /// `master 1`, `datanode 2`.
    pub process: String,
    /// Memory that is in use, in bytes.
    pub rss_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// Open files and sockets.
    pub files: u64,
    /// What its directory takes on disk, in bytes.
    pub disk_bytes: u64,
}

/// What every process of the cluster takes that runs.
///
/// # Errors
/// If the kernel tells something else than it has always told.
pub fn of_cluster(file: &ClusterFile, dir: &Path) -> anyhow::Result<Vec<Footprint>> {
    let masters = file.masters.iter().map(|m| (format!("master {}", m.id), m.pid));
    let datanodes = (1..).zip(&file.datanodes);
    let datanodes = datanodes.map(|(number, d)| (format!("datanode {number}"), d.pid));
    let mut footprints = Vec::new();
    for (process, pid) in masters.chain(datanodes) {
        let at = Path::new("/proc").join(pid.to_string());
        // One that was killed is none any more, or a zombie without memory.
        let Ok(status) = std::fs::read_to_string(at.join("status")) else { continue };
        if !status.contains("VmRSS:") {
            continue;
        }
        let files = std::fs::read_dir(at.join("fd")).context("listing open files")?.count();
        footprints.push(Footprint {
            rss_bytes: field(&status, "VmRSS:").context("no VmRSS")? << 10,
            threads: field(&status, "Threads:").context("no Threads")?,
            files: files as u64,
            disk_bytes: disk(&dir.join(process.replace(' ', "-")))?,
            process,
        });
    }
    Ok(footprints)
}

/// The number behind a name in /proc/PID/status.
fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Bytes on disk of everything below `path`. What goes meanwhile takes nothing.
fn disk(path: &Path) -> anyhow::Result<u64> {
    use std::io::ErrorKind::NotFound;
    use std::os::unix::fs::MetadataExt;
    let entries = match std::fs::read_dir(path) {
        Err(e) if e.kind() == NotFound => return Ok(0),
        entries => entries.with_context(|| format!("listing {}", path.display()))?,
    };
    let mut bytes = 0;
    for entry in entries {
        let entry = entry.with_context(|| format!("listing {}", path.display()))?;
        match entry.metadata() {
            Ok(about) if about.is_dir() => bytes += disk(&entry.path())?,
            Ok(about) => bytes += about.blocks() * 512,
            Err(e) if e.kind() == NotFound => {}
            Err(e) => return Err(e).with_context(|| format!("{}", entry.path().display())),
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster_file::MasterEntry;

    #[test]
    fn this_process_has_a_footprint_and_one_that_is_gone_has_none() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(dir.path().join("master-1")).expect("made");
        std::fs::write(dir.path().join("master-1/file"), vec![1; 100_000]).expect("written");
        let master = |id, pid| MasterEntry { id, pid, listen: String::new(), http: String::new() };
        let file = ClusterFile {
            masters: vec![master(1, std::process::id()), master(2, i32::MAX as u32)],
            ..ClusterFile::default()
        };
        let told = of_cluster(&file, dir.path()).expect("told");
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].process, "master 1");
        assert!(told[0].rss_bytes > 1 << 20 && told[0].threads >= 1 && told[0].files >= 3);
        assert!((100_000..200_000).contains(&told[0].disk_bytes), "{told:?}");
    }
}
