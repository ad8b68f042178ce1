//! SIGTERM to `sbkctl dev`: all of the cluster ends in order, and what was acknowledged is there.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process};
use sbk_cli::cluster_file::ClusterFile;
use sbk_cli::wait::{self, Look};
use sbk_cli::workload::nbd::NbdClient;

const LIMIT: Duration = Duration::from_secs(120);
const BLOCK: usize = 4096;

/// A `sbkctl dev`; killed when dropped, and its children with it.
struct Dev(Child);

impl Drop for Dev {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

impl Dev {
    fn start(dir: &Path) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_sbkctl"))
            .args(["dev", "--masters", "3", "--datanodes", "3", "--volume", "v:16MiB", "--dir"])
            .arg(dir)
            .env_remove("SBK_MASTERS")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        Self(child)
    }

    async fn serving(&mut self, dir: &Path) -> ClusterFile {
        wait::until("the cluster to serve", LIMIT, async || {
            assert_eq!(self.0.try_wait().expect("is a child"), None, "it ended");
            Ok(match ClusterFile::read(dir) {
                Ok(file) => Look::Done(file),
                Err(e) => Look::NotYet(e.to_string()),
            })
        })
        .await
        .expect("serves")
    }

    async fn terminate(&mut self) -> ExitStatus {
        let pid = Pid::from_child(&self.0);
        kill_process(pid, Signal::TERM).expect("runs");
        wait::until("the command to end", LIMIT, async || {
            Ok(match self.0.try_wait()? {
                Some(status) => Look::Done(status),
                None => Look::NotYet("it runs".into()),
            })
        })
        .await
        .expect("ends")
    }

    fn said(&mut self) -> String {
        let mut text = String::new();
        let errors = self.0.stderr.as_mut().expect("is piped");
        std::io::Read::read_to_string(errors, &mut text).expect("reads");
        text
    }
}

fn is_there(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn pids(file: &ClusterFile) -> Vec<u32> {
    let masters = file.masters.iter().map(|m| m.pid);
    masters.chain(file.datanodes.iter().map(|d| d.pid)).collect()
}

#[tokio::test]
async fn a_cluster_that_is_terminated_under_load_ends_in_order_and_keeps_what_it_acknowledged() {
    let home = tempfile::tempdir().expect("dir");
    let dir = home.path().join("cluster");
    let mut dev = Dev::start(&dir);
    let file = dev.serving(&dir).await;
    let all = pids(&file);
    assert!(all.len() == 6 && all.iter().all(|pid| is_there(*pid)));

    // One block after the other is written until the cluster is gone.
    let client = NbdClient::connect(&file.datanodes[0].nbd, "v").await.expect("connects");
    let (told, mut progress) = tokio::sync::watch::channel(0u64);
    let writing = tokio::spawn(async move {
        let mut acknowledged = 0u64;
        loop {
            let next = acknowledged + 1;
            let data = Bytes::from([next.to_le_bytes().as_slice()].concat().repeat(BLOCK / 8));
            let offset = next % 4096 * BLOCK as u64;
            if client.write(offset, data).await.is_err() {
                return acknowledged;
            }
            acknowledged = next;
            told.send_replace(next);
        }
    });
    progress.wait_for(|written| *written > 100).await.expect("writes");
    let status = dev.terminate().await;
    assert_eq!((status.code(), status.signal()), (Some(0), None), "{}", dev.said());
    let said = dev.said();
    assert!(!said.contains("killed") && !said.contains("panicked"), "{said}");
    assert!(all.iter().all(|pid| !is_there(*pid)), "no process is left");
    assert!(ClusterFile::read(&dir).is_err(), "nothing serves any more");
    for entry in std::fs::read_dir(dir.join("logs")).expect("logs") {
        let path = entry.expect("a log").path();
        let log = std::fs::read_to_string(&path).expect("reads");
        assert!(log.contains("stopping") && !log.contains("panicked"), "{}: {log}", path.display());
    }
    let acknowledged = writing.await.expect("no panic");
    assert!(acknowledged > 100);

    let mut dev = Dev::start(&dir);
    let file = dev.serving(&dir).await;
    let client = NbdClient::connect(&file.datanodes[1].nbd, "v").await.expect("connects");
    for block in acknowledged.saturating_sub(200)..=acknowledged {
        let found = client.read(block % 4096 * BLOCK as u64, BLOCK as u32).await.expect("reads");
        if block > 0 {
            // The last write may have been done without an answer, a round of the volume later.
            let value = u64::from_le_bytes(found[..8].try_into().expect("8 bytes"));
            assert!(value == block || value == block + 4096, "block {block} holds {value}");
        }
    }
    client.disconnect().await;
    assert_eq!(dev.terminate().await.code(), Some(0));
}

#[tokio::test]
async fn a_cluster_that_is_terminated_while_it_starts_leaves_nothing_running() {
    let home = tempfile::tempdir().expect("dir");
    let dir = home.path().join("cluster");
    let mut dev = Dev::start(&dir);
    // Its parts have been started as soon as they log.
    let logs = dir.join("logs");
    wait::until("the first process", LIMIT, async || {
        let count = std::fs::read_dir(&logs).map_or(0, Iterator::count);
        Ok(if count > 0 { Look::Done(()) } else { Look::NotYet("no log".into()) })
    })
    .await
    .expect("starts");
    assert_eq!(dev.terminate().await.code(), Some(0));
    assert!(ClusterFile::read(&dir).is_err());
    // The same directory serves afterwards: no port and no lock is held.
    let mut dev = Dev::start(&dir);
    dev.serving(&dir).await;
    assert_eq!(dev.terminate().await.code(), Some(0));
}
