//! What is kept for whoever looks for the cause of a violation.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use tokio::task::JoinSet;

use crate::dev::cluster::{DevCluster, Which};
use crate::http;
use crate::workload::history::Violation;
use crate::workload::roaming::Roaming;

/// How long a node may take to tell a page; one that is frozen or cut off never does.
const TELLS: Duration = Duration::from_secs(3);
/// The same for one that is about to be killed.
const TELLS_SOON: Duration = Duration::from_millis(400);
/// In a line of a datanode's log: it has read a replica in the background.
const SCRUBBED: &str = ": scrubbed volume=";
/// Blocks whose history is kept.
const BLOCKS: usize = 50;

fn page_of(cluster: &DevCluster, which: Which) -> (String, &'static [&'static str]) {
    let file = cluster.file();
    match which {
        Which::Master(at) => (file.masters[at].http.clone(), &["/status", "/metrics"]),
        Which::Datanode(at) => (
            file.datanodes[at].http.clone(),
            &["/status", "/projection", "/trace", "/diagnose", "/metrics"],
        ),
    }
}

fn name(which: Which) -> String {
    which.to_string().replace(' ', "-")
}

async fn fetch(pages: Vec<(String, String, PathBuf)>, limit: Duration) {
    let mut tasks = JoinSet::new();
    for (addr, page, path) in pages {
        tasks.spawn(async move {
            let text = match http::get_bytes(&addr, &page, limit).await {
                Ok(body) => body,
                Err(e) => format!("{e:#}\n").into_bytes(),
            };
            tokio::fs::write(path, text).await
        });
    }
    for result in tasks.join_all().await {
        if let Err(e) = result {
            tracing::warn!(error = %e, "a page can't be kept");
        }
    }
}

/// Where the traces of killed processes are.
pub(super) fn trace_dir(cluster: &DevCluster) -> PathBuf {
    cluster.dir().join("traces")
}

/// Keeps the traces of datanodes that are about to be killed: they die with the process.
pub(super) async fn traces(cluster: &DevCluster, victims: &[Which], fault: u64) {
    let dir = trace_dir(cluster);
    if let Err(e) = std::fs::create_dir_all(&dir) {
        tracing::warn!(error = %e, "no traces can be kept");
        return;
    }
    let mut pages = Vec::new();
    for which in victims.iter().filter(|which| matches!(which, Which::Datanode(_))) {
        let path = dir.join(format!("before-fault-{fault}-{}.json", name(*which)));
        pages.push((page_of(cluster, *which).0, "/trace".to_owned(), path));
    }
    fetch(pages, TELLS_SOON).await;
}

/// Keeps all pages of all nodes, as they are now.
pub(super) async fn pages(cluster: &DevCluster) -> anyhow::Result<()> {
    let dir = cluster.dir().join("pages");
    std::fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let file = cluster.file();
    let all = (0..file.masters.len()).map(Which::Master);
    let mut pages = Vec::new();
    for which in all.chain((0..file.datanodes.len()).map(Which::Datanode)) {
        let (addr, names) = page_of(cluster, which);
        for page in names {
            let path = dir.join(format!("{}{}", name(which), page.replace('/', "-")));
            pages.push((addr.clone(), (*page).to_owned(), path));
        }
    }
    fetch(pages, TELLS).await;
    Ok(())
}

/// What the datanodes' logs tell.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    /// Their replicas' decisions, by word.
    pub(super) decisions: BTreeMap<String, u64>,
    /// Replicas that were read whole in the background.
    pub(super) scrubs: u64,
}

/// Counts what the datanodes' logs tell.
pub(super) fn told(dir: &Path) -> anyhow::Result<Told> {
    let logs = dir.join("logs");
    let mut told = Told::default();
    for entry in std::fs::read_dir(&logs).with_context(|| format!("reading {}", logs.display()))? {
        let path = entry.with_context(|| format!("reading {}", logs.display()))?.path();
        let file = File::open(&path).with_context(|| format!("reading {}", path.display()))?;
        // A line that a kill cut short may not be UTF-8.
        for line in BufReader::new(file).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            if let Some(word) = decision(&line) {
                *told.decisions.entry(word.to_owned()).or_default() += 1;
            }
            told.scrubs += u64::from(line.contains(SCRUBBED));
        }
    }
    Ok(told)
}

/// The word of the trace in a line of a log.
fn decision(line: &str) -> Option<&str> {
    let (_, rest) = line.rsplit_once(" what=\"")?;
    rest.split_once('"').map(|(word, _)| word)
}

/// Keeps the history of the blocks that are wrong.
pub(super) fn histories(
    dir: &Path,
    volume: &str,
    roaming: &Roaming,
    violations: &[Violation],
) -> anyhow::Result<()> {
    let mut text = String::new();
    for violation in violations.iter().take(BLOCKS) {
        text += &format!("{violation}\n");
        for line in roaming.history().told(violation.block) {
            text += &format!("    {line}\n");
        }
    }
    let path = dir.join(format!("history-{volume}.txt"));
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_are_counted_by_word() {
        let dir = tempfile::tempdir().expect("dir");
        std::fs::create_dir(dir.path().join("logs")).expect("dir");
        let log = "INFO promised volume=1 what=\"fenced\"\nINFO else\nINFO x what=\"cut\"\n\
                   INFO y what=\"fenced\"\n\u{fffd} what=\"torn\n\
                   INFO sbk_datanode::patrol: scrubbed volume=1 replica=2 bytes=3\n";
        std::fs::write(dir.path().join("logs/datanode-1.log"), log).expect("writes");
        let told = told(dir.path()).expect("reads");
        let expected = [("cut".to_owned(), 1), ("fenced".to_owned(), 2)];
        assert_eq!(told.decisions, BTreeMap::from(expected));
        assert_eq!(told.scrubs, 1);
    }
}
