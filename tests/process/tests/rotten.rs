//! The last write of the primary's log rots while all processes are away. It was acknowledged, and two
//! others hold it: whoever is back first, nothing is lost, and people are told what is waited for.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bytes::Bytes;
use rustix::process::Signal;
use sbk_cli::args::VolumeSpec;
use sbk_cli::cluster_file::DatanodeEntry;
use sbk_cli::dev::cluster::{DevCluster, Options, Which};
use sbk_cli::view::VolumeView;
use sbk_cli::wait::{Look, until};
use sbk_cli::workload::nbd::NbdClient;
use sbk_process_tests::clusters::{self, LIMIT, all_equal, logs, nodes, page, volume};

const CTL: &str = env!("CARGO_BIN_EXE_sbk-tests-ctl");
const NODES: usize = 3;
const BLOCK: usize = 4096;
const BLOCKS: u64 = 48;
/// The last write is one over an older one: what a log without it shows looks like data.
const LAST: u64 = 7;
/// So often the last write may have been recorded as durable before the processes were gone.
const ATTEMPTS: usize = 10;
/// In a datanode's log and on its page.
const IN_LOG: &str = "the log may have lost its end";
const ON_PAGE: &str = "its log ends in a write that could not be read";

/// Where the first frame of a segment begins, and parts of a frame.
const FRAMES: u64 = 512;
const FRAME_HEADER: usize = 56;
const ENTRY_HEADER: usize = 80;
/// In a superblock's slot: its generation, and how far the log was durable.
const SLOT: u64 = 4096;
const GENERATION: usize = 16;
const DURABLE: usize = 32 + 68;

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn read_at(file: &File, at: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, at).expect("reads");
    bytes
}

/// What no other write holds.
fn content(write: u64) -> Bytes {
    Bytes::from(write.to_le_bytes().repeat(BLOCK / 8))
}

/// The only replica on a node.
fn replica_dir(node: &DatanodeEntry) -> PathBuf {
    let replicas = std::fs::read_dir(node.data_dir.join("replicas")).expect("the replicas");
    replicas.map(|entry| entry.expect("one").path()).next().expect("a replica")
}

/// A record of the log, as it is on the disk.
struct Frame {
    path: PathBuf,
    at: u64,
    lsn: u64,
    record: Vec<u8>,
}

/// The newest one.
fn last_frame(replica: &Path) -> Frame {
    let files = std::fs::read_dir(replica.join("wal")).expect("the log");
    let files = files.map(|entry| entry.expect("one").path());
    let path = files.filter(|path| path.extension().is_some_and(|e| e == "seg")).max();
    let path = path.expect("a segment");
    let sequence = path.file_stem().and_then(|name| name.to_str()).expect("a number");
    let sequence = u64::from_str_radix(sequence, 16).expect("a number");
    let file = File::open(&path).expect("opens");
    let (mut at, mut last) = (FRAMES, None);
    loop {
        let header = read_at(&file, at, FRAME_HEADER);
        let (lengths, total) = (number(&header, 16), number(&header, 16) >> 32);
        if !header.starts_with(b"SBKf") || number(&header, 24) != sequence || total == 0 {
            break;
        }
        last = Some((at, number(&header, 32), lengths as u32 as usize));
        at += total;
    }
    let (at, lsn, length) = last.expect("a record");
    let record = read_at(&file, at + FRAME_HEADER as u64, length);
    Frame { path, at, lsn, record }
}

/// How far the superblock says that the log was durable: what is proven without a record behind it.
fn recorded(replica: &Path) -> u64 {
    let file = File::open(replica.join("superblock")).expect("opens");
    let slots = [0, SLOT].map(|at| read_at(&file, at, DURABLE + 8));
    let newest = slots.iter().filter(|slot| slot.starts_with(b"SBKSUPER"));
    let newest = newest.max_by_key(|slot| number(slot, GENERATION)).expect("a record");
    number(newest, DURABLE)
}

/// Which bit of the last record's frame flips.
#[derive(Clone, Copy)]
enum Flip {
    /// One of what the client wrote.
    Payload,
    /// One of the header's, which is no valid one then.
    Header,
}

impl Flip {
    fn apply(self, frame: &Frame) {
        let byte = frame.at
            + match self {
                Self::Payload => (FRAME_HEADER + ENTRY_HEADER + 123) as u64,
                // Of the record's checksum.
                Self::Header => 13,
            };
        let file = OpenOptions::new().read(true).write(true).open(&frame.path).expect("opens");
        let was = read_at(&file, byte, 1)[0];
        file.write_all_at(&[was ^ 0x10], byte).expect("writes");
    }
}

struct Scene {
    cluster: DevCluster,
    dir: tempfile::TempDir,
    /// The write that each block holds, of those that were acknowledged.
    acknowledged: BTreeMap<u64, u64>,
    writes: u64,
    /// The one in which the last write was acknowledged.
    epoch: Option<u64>,
    /// The node of the primary whose last write rotted.
    rotten: DatanodeEntry,
    others: Vec<DatanodeEntry>,
}

impl Scene {
    /// All datanodes are gone, and the last record of the primary's log is rotten.
    async fn set(flip: Flip) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let options = Options {
            volumes: vec![VolumeSpec { name: "v".into(), size: 16 << 20 }],
            ..clusters::options(CTL, dir.path(), NODES as u64)
        };
        let cluster = DevCluster::start(options).await.expect("the cluster starts");
        let rotten = cluster.file().datanodes[0].clone();
        let (acknowledged, others) = (BTreeMap::new(), Vec::new());
        let mut scene = Self { cluster, dir, acknowledged, writes: 0, epoch: None, rotten, others };
        for _ in 0..ATTEMPTS {
            if scene.die_behind_a_write().await {
                flip.apply(&last_frame(&replica_dir(&scene.rotten)));
                return scene;
            }
            for at in 0..NODES {
                scene.cluster.start_again(Which::Datanode(at)).expect("starts");
            }
        }
        panic!("the last write was recorded as durable each time");
    }

    async fn write(&mut self, client: &NbdClient, block: u64) {
        self.writes += 1;
        let data = content(self.writes);
        client.write(block * BLOCK as u64, data).await.expect("is acknowledged");
        self.acknowledged.insert(block, self.writes);
    }

    /// Kills all datanodes right behind an acknowledged write. Whether nothing on the primary's disk proves
    /// that it was durable: once a second its superblock records how far the log is, and then a bit
    /// that flips there is damage.
    async fn die_behind_a_write(&mut self) -> bool {
        let before = self.epoch;
        let whole = |view: &VolumeView| view.is_whole() && view.epoch > before;
        let view = self.wait("all in sync", whole).await;
        self.epoch = view.epoch;
        let nodes = self.cluster.file().datanodes.clone();
        let is_primary = |node: &DatanodeEntry| view.primary.as_ref() == Some(&node.id);
        let (rotten, others) = nodes.into_iter().partition(is_primary);
        let [rotten] = <[_; 1]>::try_from(rotten).expect("one primary");
        (self.rotten, self.others) = (rotten, others);
        let replica = replica_dir(&self.rotten);
        let client = self.connect(&self.others[0]).await;
        for block in 0..BLOCKS {
            self.write(&client, block).await;
        }
        // Right behind a record the next one is a second away.
        until("a record of how far the log is durable", LIMIT, async || {
            let (lsn, known) = (last_frame(&replica).lsn, recorded(&replica));
            let look = Look::NotYet(format!("{known} of {lsn}"));
            Ok(if known >= lsn { Look::Done(()) } else { look })
        })
        .await
        .expect("comes about");
        self.write(&client, LAST).await;
        client.flush().await.expect("flushes");
        // The primary stands still until the masters know that the others are gone: it asks for nobody to
        // leave, and nobody is there to take over. [All were killed at once, and another one was promoted
        // whose end the masters had not heard of yet.]
        let place = |id: &str| {
            let nodes = &self.cluster.file().datanodes;
            Which::Datanode(nodes.iter().position(|node| node.id == id).expect("a datanode"))
        };
        let primary = place(&self.rotten.id);
        let others: Vec<_> = self.others.iter().map(|node| place(&node.id)).collect();
        self.cluster.signal(primary, Signal::STOP);
        others.into_iter().for_each(|which| self.cluster.kill(which));
        for node in &self.others {
            self.heard(node, false).await;
        }
        self.cluster.kill(primary);
        let last = last_frame(&replica);
        assert_eq!(last.record[ENTRY_HEADER..], content(self.writes), "it is the last write");
        recorded(&replica) < last.lsn
    }

    /// Served after the processes were killed, without a loss.
    async fn serves(&self) -> VolumeView {
        let again = |view: &VolumeView| view.serving && view.epoch > self.epoch;
        let view = self.wait("it serves", again).await;
        assert_eq!(view.loss_generation, 0, "{view:?}");
        view
    }

    async fn wait(&self, what: &str, right: impl Fn(&VolumeView) -> bool) -> VolumeView {
        volume(&self.cluster, "v", what, right).await
    }

    /// Waits until the masters hear a node, or know that its process is gone.
    async fn heard(&self, node: &DatanodeEntry, wanted: bool) {
        let what = format!("node {} to be heard: {wanted}", node.id);
        nodes(&self.cluster, &what, |all| {
            all.iter().any(|view| view.id == node.id && view.alive == wanted)
        })
        .await;
    }

    /// By way of a node, once it is there.
    async fn connect(&self, node: &DatanodeEntry) -> NbdClient {
        until("a client", LIMIT, async || {
            Ok(match NbdClient::connect(&node.nbd, "v").await {
                Ok(client) => Look::Done(client),
                Err(e) => Look::NotYet(e.to_string()),
            })
        })
        .await
        .expect("attaches")
    }

    /// Whether the rotten replica's node says on its page that its log may have lost its end.
    async fn doubts(&self, wanted: bool) {
        let what = format!("a doubt to be told: {wanted}");
        page(&self.rotten.http, "/diagnose", &what, |page| {
            let told = page["complaints"].to_string().contains(ON_PAGE);
            // Before its replica is open it has no complaint either.
            if wanted { told } else { page["well"] == true }
        })
        .await;
    }

    fn start(&mut self, node: &DatanodeEntry) {
        self.cluster.start_datanode(&node.id).expect("starts");
    }

    /// What `sbkctl volume show` says.
    fn shown(&self) -> String {
        let output = Command::new(CTL)
            .args(["--masters", &self.cluster.file().master_addrs().join(",")])
            .args(["volume", "show", "v"])
            .env("XDG_STATE_HOME", self.dir.path())
            .stdin(Stdio::null())
            .output()
            .expect("runs");
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout).expect("utf-8")
    }

    /// Every block holds the last write to it that was acknowledged.
    async fn lost_nothing(&self, by: &DatanodeEntry) {
        let client = self.connect(by).await;
        for (block, write) in &self.acknowledged {
            let read = client.read(block * BLOCK as u64, BLOCK as u32).await.expect("reads");
            let found = number(&read, 0);
            assert_eq!(read, content(*write), "block {block} holds write {found}, not {write}");
        }
        client.disconnect().await;
    }

    /// All replicas come to be in sync and equal, and nobody doubts any more.
    async fn comes_to_rest(self) {
        let whole = self.wait("all in sync", VolumeView::is_whole).await;
        assert_eq!(whole.loss_generation, 0, "{whole:?}");
        self.lost_nothing(&self.rotten).await;
        all_equal(&self.cluster, "v").await;
        self.doubts(false).await;
        for (log, node) in logs(&self.cluster).iter().zip(&self.cluster.file().datanodes) {
            assert!(log.contains(IN_LOG) == (node.id == self.rotten.id), "{log}");
        }
        self.cluster.stop().await.expect("stops");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_is_back_first_takes_nothing_away_that_it_can_not_read() {
    let mut scene = Scene::set(Flip::Payload).await;
    let (rotten, others) = (scene.rotten.clone(), scene.others.clone());
    scene.start(&rotten);
    scene.heard(&rotten, true).await;
    others.iter().for_each(|node| scene.start(node));
    let serves = scene.serves().await;
    scene.lost_nothing(&others[0]).await;
    assert_ne!(serves.primary, Some(rotten.id.clone()), "its log lacks a write: {serves:?}");
    scene.comes_to_rest().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_may_have_lost_its_end_does_not_go_on_alone_and_says_why() {
    let mut scene = Scene::set(Flip::Header).await;
    let (rotten, others) = (scene.rotten.clone(), scene.others.clone());
    scene.start(&rotten);
    scene.doubts(true).await;
    let shown = until("the reason to be shown", LIMIT, async || {
        let shown = scene.shown();
        let right = shown.contains("ends in a write that can't be read; waits ");
        Ok(if right { Look::Done(shown) } else { Look::NotYet(shown) })
    });
    let shown = shown.await.expect("is shown");
    let serving = shown.lines().find(|line| line.starts_with("serving")).expect("a line");
    let (doubtful, waits) = serving.split_once(" ms for ").expect("how long");
    assert!(serving.contains("no: ") && doubtful.contains(&rotten.id), "{shown}");
    assert!(others.iter().all(|node| waits.contains(&node.id)), "{shown}");
    let view = scene.wait("still", |_| true).await;
    // Nobody took over meanwhile, with a loss or without.
    assert!(!view.serving && view.epoch == scene.epoch && view.loss_generation == 0, "{view:?}");

    let [second, third] = &others[..] else { panic!("three nodes: {view:?}") };
    scene.start(second);
    let serves = scene.serves().await;
    assert_eq!(serves.primary.as_ref(), Some(&second.id), "its log lacks nothing: {serves:?}");
    scene.lost_nothing(second).await;
    scene.start(third);
    scene.comes_to_rest().await;
}
