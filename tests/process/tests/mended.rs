//! A block that rots on a disk, with others that have it. On the primary's: clients read what they wrote, and
//! all disks are right again in the end. On a follower's: a scrub
//! tells which, and has them repaired.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use bytes::Bytes;
use sbk_cli::args::VolumeSpec;
use sbk_cli::cluster_file::DatanodeEntry;
use sbk_cli::dev::cluster::{DevCluster, Options};
use sbk_cli::http::get_json;
use sbk_cli::wait::{Look, until};
use sbk_cli::workload::nbd::NbdClient;
use sbk_process_tests::clusters::{self, LIMIT, all_equal, in_sync, logs};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const CTL: &str = env!("CARGO_BIN_EXE_sbk-tests-ctl");
const MIB: u64 = 1 << 20;
const BLOCK: u64 = 4096;
/// More than a checkpoint waits for.
const WRITTEN: u64 = 80;
/// The bytes of the volume in which a bit flips, each in a block of its own.
const READ: u64 = MIB + 77;
const MERGED: u64 = 3 * MIB + 2 * BLOCK + 1999;
/// Where the image begins in the file of extents.
const EXTENTS_HEADER: u64 = 4096;

/// What is written to each MiB.
fn content(mib: u64, round: u8) -> u8 {
    round ^ mib as u8
}

struct Scene {
    cluster: DevCluster,
    dir: tempfile::TempDir,
    primary: DatanodeEntry,
}

/// The file that a byte of the volume lies in, as the stamps of its block say: a repair goes to the block's other home
/// while the log refers to the one that it had.
fn home(node: &DatanodeEntry, at: u64) -> PathBuf {
    let replicas = std::fs::read_dir(node.data_dir.join("replicas")).expect("the replicas");
    let replica = replicas.map(|entry| entry.expect("one").path()).next().expect("a replica");
    let mut stamps = [0; 8];
    let checksums = File::open(replica.join("checksums")).expect("the stamps");
    checksums.read_exact_at(&mut stamps, EXTENTS_HEADER + at / 4096 * 8).expect("reads");
    replica.join(if stamps[4..] == [0; 4] { "extents" } else { "shadow" })
}

fn byte(path: &Path, at: u64) -> u8 {
    let mut byte = [0];
    let file = File::open(path).expect("the extents");
    file.read_exact_at(&mut byte, EXTENTS_HEADER + at).expect("reads");
    byte[0]
}

fn flip(node: &DatanodeEntry, at: u64) {
    let path = home(node, at);
    let (was, file) = (byte(&path, at), OpenOptions::new().write(true).open(&path));
    assert_eq!(was, content(at / MIB, 0xa0), "the block is in the extents");
    file.expect("the extents").write_all_at(&[was ^ 4], EXTENTS_HEADER + at).expect("writes");
}

/// A number of what a node's page shows of its only replica.
fn shown(page: &Value, field: &str) -> Option<u64> {
    page["volumes"][0]["view"][field].as_u64()
}

impl Scene {
    /// Three replicas in sync, a volume that is written, and all of it in the extents.
    async fn set() -> Self {
        Self::set_with(&[]).await
    }

    /// The same, with more options of the datanodes.
    async fn set_with(datanode_args: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let options = Options {
            datanode_args: datanode_args.iter().map(|arg| (*arg).to_owned()).collect(),
            volumes: vec![VolumeSpec { name: "v".into(), size: 192 * MIB }],
            ..clusters::options(CTL, dir.path(), 3)
        };
        let cluster = DevCluster::start(options).await.expect("the cluster starts");
        let primary = cluster.file().datanodes[0].clone();
        let mut scene = Self { cluster, dir, primary };
        let view = in_sync(&scene.cluster, "v").await;
        let is_primary = |node: &&DatanodeEntry| view.primary.as_ref() == Some(&node.id);
        let nodes = &scene.cluster.file().datanodes;
        scene.primary = nodes.iter().find(is_primary).expect("one of them").clone();
        scene.write(0xa0, 0).await;
        scene.checkpointed().await;
        scene
    }

    async fn client(&self) -> NbdClient {
        let other = self.cluster.file().datanodes.iter().find(|node| node.id != self.primary.id);
        NbdClient::connect(&other.expect("another one").nbd, "v").await.expect("connects")
    }

    async fn write(&self, round: u8, from: u64) {
        let client = self.client().await;
        for n in from..from + WRITTEN {
            let data = Bytes::from(vec![content(n, round); MIB as usize]);
            client.write(n * MIB, data).await.expect("writes");
        }
        client.disconnect().await;
    }

    /// Waits until most of what was written last is in all extents: what is left is less than a checkpoint is
    /// worth.
    async fn checkpointed(&self) {
        let page: Value = get_json(&self.primary.http, "/projection").await.expect("a page");
        let end = shown(&page, "end").expect("the primary tells");
        for node in &self.cluster.file().datanodes {
            clusters::page(&node.http, "/projection", "a checkpoint", |page| {
                shown(page, "checkpoint").is_some_and(|lsn| lsn + WRITTEN - 8 > end)
            })
            .await;
        }
    }

    fn follower(&self) -> DatanodeEntry {
        let other = self.cluster.file().datanodes.iter().find(|node| node.id != self.primary.id);
        other.expect("another one").clone()
    }

    /// What a scrub says, and how it ends.
    async fn scrub(&self, more: &[&str]) -> (Option<i32>, Value) {
        let mut command = Command::new(CTL);
        command.args(["volume", "scrub", "v", "-o", "json", "--dir"]).arg(self.dir.path());
        command.args(more);
        command.stdin(Stdio::null());
        let ended = tokio::task::spawn_blocking(move || command.output()).await.expect("no panic");
        let Output { status, stdout, stderr } = ended.expect("runs");
        let told = serde_json::from_slice(&stdout);
        let told = told.unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&stderr)));
        (status.code(), told)
    }

    /// A counter of the primary.
    async fn counted(&self, name: &str) -> u64 {
        let mut stream = TcpStream::connect(&self.primary.http).await.expect("connects");
        let request = format!("GET /metrics HTTP/1.0\r\nHost: {}\r\n\r\n", self.primary.http);
        stream.write_all(request.as_bytes()).await.expect("asks");
        let mut page = String::new();
        stream.read_to_string(&mut page).await.expect("answers");
        let name = format!("sbk_datanode_{name}_total");
        let line = page.lines().find(|line| line.starts_with(&name)).expect("it is counted");
        line.rsplit(' ').next().and_then(|count| count.parse().ok()).expect("a number")
    }

    async fn counts(&self) -> [u64; 4] {
        let mut counts = [0; 4];
        for (count, name) in
            counts.iter_mut().zip(["blocks_rotten", "blocks_mended", "blocks_not_mended"])
        {
            *count = self.counted(name).await;
        }
        let page: Value = get_json(&self.primary.http, "/projection").await.expect("a page");
        counts[3] = page["volumes"][0]["view"]["mends"]["mended"].as_u64().expect("a number");
        counts
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_rotted_is_read_from_another_replica_and_right_again_on_all_disks() {
    let scene = Scene::set().await;
    assert_eq!(scene.counts().await, [0; 4]);
    flip(&scene.primary, READ);
    flip(&scene.primary, MERGED);

    let client = scene.client().await;
    let read = client.read(MIB, MIB as u32).await.expect("another replica has it");
    assert!(
        read.iter().all(|byte| *byte == content(1, 0xa0)),
        "what was written, and nothing else"
    );
    assert_eq!(scene.counts().await, [1, 1, 0, 1]);
    // A part of the other block is written: the rest of it must be what it was.
    let at = MERGED / BLOCK * BLOCK;
    client.write(at + 512, Bytes::from(vec![0x77; 512])).await.expect("another replica has it");
    let read = client.read(at, BLOCK as u32).await.expect("it is in the log");
    let new = |n: usize| (512..1024).contains(&n);
    let right = |(n, byte): (usize, &u8)| *byte == if new(n) { 0x77 } else { content(3, 0xa0) };
    assert!(read.iter().enumerate().all(right));
    assert_eq!(scene.counts().await, [2, 2, 0, 2]);
    client.disconnect().await;

    let diagnosis: Value = get_json(&scene.primary.http, "/diagnose").await.expect("a page");
    let told =
        "2 blocks did not match their checksums in this process, and 2 of them were repaired";
    assert!(diagnosis["complaints"].to_string().contains(told), "{diagnosis}");
    let nodes = scene.cluster.file().datanodes.clone();
    let number = nodes.iter().position(|node| node.id == scene.primary.id).expect("one of them");
    let log = &logs(&scene.cluster)[number];
    assert!(log.contains("another replica is asked") && log.contains("logged again"), "{log}");

    // The repairs are behind 80 MiB more, so a checkpoint has moved them.
    scene.write(0x50, 100).await;
    scene.checkpointed().await;
    for node in &nodes {
        for at in [READ, MERGED] {
            assert_eq!(
                byte(&home(node, at), at),
                content(at / MIB, 0xa0),
                "{}: byte {at}",
                node.id
            );
        }
    }
    all_equal(&scene.cluster, "v").await;
    assert_eq!(scene.counts().await, [2, 2, 0, 2], "it was read once more, and is right");
    scene.cluster.stop().await.expect("stops");
}

/// The damaged blocks of each node that has some.
fn damaged(scrub: &Value) -> Vec<(String, Vec<u64>)> {
    let replicas = scrub["replicas"].as_array().expect("the replicas");
    assert_eq!(replicas.len(), 3, "{scrub}");
    let mut damaged = Vec::new();
    for replica in replicas {
        assert!(replica["error"].is_null(), "{scrub}");
        assert!(replica["bytes"].as_u64() >= Some(WRITTEN * MIB), "{scrub}");
        let blocks = replica["damaged"].as_array().expect("blocks").iter();
        let blocks: Vec<_> = blocks.map(|block| block.as_u64().expect("a number")).collect();
        if !blocks.is_empty() {
            damaged.push((replica["node"].as_str().expect("a node").to_owned(), blocks));
        }
    }
    damaged
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrub_tells_what_rotted_on_a_follower_and_has_it_repaired() {
    let scene = Scene::set().await;
    let (code, told) = scene.scrub(&[]).await;
    assert_eq!((code, damaged(&told)), (Some(0), Vec::new()), "{told}");

    let follower = scene.follower();
    flip(&follower, READ);
    flip(&follower, MERGED);
    let (code, told) = scene.scrub(&[]).await;
    let blocks = vec![READ / BLOCK, MERGED / BLOCK];
    let found = vec![(follower.id.clone(), blocks.clone())];
    assert_eq!((code, damaged(&told)), (Some(1), found.clone()), "{told}");
    assert!(told["repair"].is_null(), "{told}");

    let (code, told) = scene.scrub(&["--repair", "--rate", "0"]).await;
    assert_eq!((code, damaged(&told)), (Some(0), found), "all of it is repaired: {told}");
    assert_eq!(told["repair"]["logged"], serde_json::json!(blocks), "{told}");
    assert_eq!(scene.counted("blocks_scrubbed").await, 2);
    assert_eq!(scene.counts().await, [0; 4], "the primary's own are sound");

    // The repairs are behind 80 MiB more, so a checkpoint has moved them.
    scene.write(0x50, 100).await;
    scene.checkpointed().await;
    for at in [READ, MERGED] {
        assert_eq!(byte(&home(&follower, at), at), content(at / MIB, 0xa0), "byte {at}");
    }
    let (code, told) = scene.scrub(&[]).await;
    assert_eq!((code, damaged(&told)), (Some(0), Vec::new()), "{told}");
    in_sync(&scene.cluster, "v").await;
    scene.cluster.stop().await.expect("stops");
}

/// The scrub of its replica that a node's page tells of.
async fn own_scrub(node: &DatanodeEntry) -> Result<Value, String> {
    let page: Value = get_json(&node.http, "/status").await.map_err(|e| e.to_string())?;
    let scrub = page["volumes"][0]["scrubs"].clone();
    if scrub.is_object() { Ok(scrub) } else { Err(format!("no scrub: {page}")) }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_rots_on_any_node_is_found_and_repaired_without_anybody_asking() {
    let scene = Scene::set_with(&["--scrub-every", "1s", "--scrub-rate", "0"]).await;
    let (follower, primary) = (scene.follower(), scene.primary.clone());
    // On the disk of one that nobody reads from, and in a block of the primary that nobody reads.
    flip(&follower, READ);
    flip(&primary, MERGED);
    for node in [&follower, &primary] {
        until("the node finds it", LIMIT, async || {
            let scrub = own_scrub(node).await;
            let found = scrub.as_ref().is_ok_and(|scrub| scrub["found"].as_u64() >= Some(1));
            Ok(if found { Look::Done(()) } else { Look::NotYet(format!("{scrub:?}")) })
        })
        .await
        .expect("comes about");
    }
    // What the primary logged again is read from the log from then on, is moved to the extents by the next checkpoint,
    // and is not found again.
    scene.write(0x50, 100).await;
    scene.checkpointed().await;
    for node in [&follower, &primary] {
        let before = own_scrub(node).await.expect("tells")["passes"].as_u64();
        until("it is right again", LIMIT, async || {
            let scrub = own_scrub(node).await;
            let clean = scrub.as_ref().is_ok_and(|scrub| {
                scrub["passes"].as_u64() > before.map(|passes| passes + 1)
                    && scrub["damaged"] == 0
                    && scrub["not_repaired"] == 0
            });
            Ok(if clean { Look::Done(()) } else { Look::NotYet(format!("{scrub:?}")) })
        })
        .await
        .expect("comes about");
    }
    assert_eq!(byte(&home(&follower, READ), READ), content(READ / MIB, 0xa0));
    assert_eq!(byte(&home(&primary, MERGED), MERGED), content(MERGED / MIB, 0xa0));
    let (code, told) = scene.scrub(&[]).await;
    assert_eq!((code, damaged(&told)), (Some(0), Vec::new()), "{told}");
    scene.cluster.stop().await.expect("stops");
}
