//! A disk that is full for a while: the volume goes on without that replica, people are told why, and once
//! there is room the replica is in sync again by itself, in the same process. What keeps it from that, as a rule, is
//! tried in `short_disk`.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sbk_cli::dev::cluster::{DevCluster, Options};
use sbk_cli::http::get_json;
use sbk_cli::view::id_text;
use sbk_cli::wait::{Look, until};
use sbk_cli::workload::nbd::NbdClient;
use sbk_process_tests::clusters::{
    self, LIMIT, all_equal, create, in_sync, logs, page, volume, volume_of,
};
use sbk_process_tests::writer::{Writer, Writes};
use sbk_proto::v1::MovePrimaryRequest;
use serde_json::Value;

/// Much more than is written: no block twice, so that every checkpoint needs room.
const VOLUME: u64 = 4 << 30;
const WRITES: Writes = Writes { bytes: 64 << 10, pace: Duration::from_millis(50) };
/// So often a store that fails for another reason is opened, and one more.
const OFTEN: u64 = 6;

/// A tmpfs; unmounted when dropped, whoever still has files on it.
struct Small(PathBuf);

impl Small {
    /// `None` if this process may not mount anything.
    fn mount(at: PathBuf) -> Option<Self> {
        std::fs::create_dir_all(&at).expect("makes it");
        let options = ["-t", "tmpfs", "-o", "size=320m", "sbk-test"];
        let made = Command::new("mount").args(options).arg(&at).output().expect("runs mount");
        made.status.success().then_some(Self(at))
    }

    fn ballast(&self) -> PathBuf {
        self.0.join("ballast")
    }

    fn fill(&self) {
        let mut file = File::create(self.ballast()).expect("makes a file");
        for chunk in [vec![0xb5; 1 << 20], vec![0xb5; 4096]] {
            loop {
                match file.write(&chunk) {
                    Ok(_) => {}
                    Err(e) if e.kind() == ErrorKind::StorageFull => break,
                    Err(e) => panic!("filling it: {e}"),
                }
            }
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.ballast()).expect("removes it");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let done = Command::new("umount").arg("-l").arg(&self.0).status().expect("runs umount");
        assert!(done.success() || std::thread::panicking(), "{} stays mounted", self.0.display());
    }
}

async fn cluster(dir: &Path) -> DevCluster {
    let options = Options {
        capacity: Some(1 << 40),
        wal_retain: Some(4 << 20),
        // Nobody watches: it is to run full.
        growth_watermark: Some("0".to_owned()),
        ..clusters::options(env!("CARGO_BIN_EXE_sbk-tests-ctl"), dir, 3)
    };
    let cluster = DevCluster::start(options).await.expect("the cluster starts");
    create(&cluster, volume_of("v", VOLUME)).await;
    cluster
}

/// Waits until the store on a node failed for want of room more often than others may, and tries again now and then.
async fn fails_often(http: &str) {
    page(http, "/projection", "many failures", |page| {
        let run = &page["volumes"][0]["run"];
        run["state"] == "full" && run["failures"].as_u64() >= Some(OFTEN)
    })
    .await;
}

/// Fills the disk of one node, and frees it again.
async fn run_full(cluster: &DevCluster, disk: &Small, node: &str, writer: &Writer) {
    let http = &cluster.file().datanodes.iter().find(|d| d.id == node).expect("a datanode").http;
    disk.fill();
    fails_often(http).await;
    // Others serve, and writes are acknowledged.
    writer.grows(1).await;
    let told = volume(cluster, "v", "the reason to be told", |view| {
        view.members.iter().any(|m| m.node == node && m.reason.contains("disk is full"))
    })
    .await;
    assert_ne!(told.primary.as_deref(), Some(node), "{told:?}");
    assert!(!told.isr.iter().any(|id| id == node), "{told:?}");
    let diagnosis: Value = get_json(http, "/diagnose").await.expect("a page");
    // Beside it there may be others, as of a machine that is busy.
    assert!(diagnosis["complaints"].to_string().contains("disk is full"), "{diagnosis}");
    disk.free();
    in_sync(cluster, "v").await;
}

/// Has a node be primary, if it is not.
async fn make_primary(cluster: &DevCluster, node: &str) {
    let masters = cluster.client();
    until(format!("node {node} to be primary"), LIMIT, async || {
        let info = match masters.get_volume("v").await {
            Ok(info) => info,
            Err(e) => return Ok(Look::NotYet(e.to_string())),
        };
        let member = info.members.iter().find(|m| id_text(&m.node) == node).expect("a member");
        if member.primary {
            return Ok(Look::Done(()));
        }
        let (name_or_id, replica) = ("v".to_owned(), member.replica.clone());
        let asked = masters.move_primary(MovePrimaryRequest { name_or_id, replica }).await;
        Ok(Look::NotYet(format!("{:?}", asked.map(|info| info.wished_primary))))
    })
    .await
    .expect("moves");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_whose_disk_was_full_is_in_sync_again_by_itself() {
    let dir = tempfile::tempdir().expect("dir");
    let mount = |n: usize| Small::mount(dir.path().join(format!("datanode-{n}")));
    let Some(disks) = (1..=3).map(mount).collect::<Option<Vec<_>>>() else {
        eprintln!("not tried: nothing can be mounted here, that needs root");
        return;
    };
    let cluster = cluster(dir.path()).await;
    let whole = in_sync(&cluster, "v").await;
    let nodes = cluster.file().datanodes.clone();
    let disk_of = |node: &str| &disks[nodes.iter().position(|d| d.id == node).expect("a node")];
    let primary = whole.primary.clone().expect("there is one");
    let others: Vec<_> = nodes.iter().filter(|d| d.id != primary).collect();
    let [follower, stays] = others[..] else { panic!("three nodes: {whole:?}") };
    // By way of a node whose disk always has room.
    let client = NbdClient::connect(&stays.nbd, "v").await.expect("connects");
    let writer = Writer::start(client.clone(), WRITES, |n| n * WRITES.bytes as u64);

    run_full(&cluster, disk_of(&follower.id), &follower.id, &writer).await;
    // A follower that fails moves no primary. One that stood still may have been replaced; it is wanted back.
    let history = cluster.client().get_volume("v").await.expect("answers").history;
    for two in history.windows(2).filter(|two| two[0].primary != two[1].primary) {
        assert!(two[1].reason.contains("was not heard"), "{history:?}");
    }
    make_primary(&cluster, &primary).await;
    run_full(&cluster, disk_of(&primary), &primary, &writer).await;
    writer.stop(&client).await;
    all_equal(&cluster, "v").await;
    for (log, node) in logs(&cluster).iter().zip(&nodes) {
        assert!(log.contains("waits for room") == (node.id != stays.id), "{log}");
        assert!(!log.contains("is retired"), "{log}");
    }
    client.disconnect().await;
    cluster.stop().await.expect("stops");
}
