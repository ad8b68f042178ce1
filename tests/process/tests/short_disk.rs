//! A disk that is low on room gets no new replica. One that runs short of it: writes that need new space wait, overwrites go on, people are told why, and
//! with room again everything goes on by itself. No store fails meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use sbk_cli::commands::verify::compare;
use sbk_cli::dev::cluster::{DevCluster, Options};
use sbk_cli::dev::plan::Wanted;
use sbk_cli::view::{NodeView, VolumeView};
use sbk_cli::wait::{Look, answered, until};
use sbk_cli::workload::nbd::NbdClient;
use sbk_proto::v1::{CreateVolumeRequest, MoveReplicaRequest};
use tokio::task::JoinHandle;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(120);
/// Left free on a disk that is low on room: less than the placement watermark, which is 129 MiB then, and more
/// than the growth watermark.
const LOW: u64 = 100 << 20;
/// Much more than is written: no block twice, but those that are overwritten.
const VOLUME: u64 = 4 << 30;
const WRITE: usize = 64 << 10;
/// So much at once is written to a second home of its blocks while there is room, and goes through the log while
/// there is not. Where it is overwritten again and again.
const LARGE: usize = 1 << 20;
const LARGE_AT: u64 = 1 << 30;
const DISK: u64 = 512 << 20;
/// The growth watermark, and what is left free by whoever fills the disk: less, and more than a quarter of it.
const WATERMARK: u64 = 80 << 20;
const LEFT: u64 = 72 << 20;

/// An ext4 in a file; unmounted when dropped, whoever still has files on it.
struct Small(PathBuf);

impl Small {
    /// `None` if this process may not mount anything.
    fn mount(at: PathBuf) -> Option<Self> {
        std::fs::create_dir_all(&at).expect("makes it");
        let image = at.with_extension("img");
        File::create(&image).and_then(|file| file.set_len(DISK)).expect("makes a file");
        let run = |program: &str, args: &[&str], paths: &[&Path]| {
            let done = Command::new(program).args(args).args(paths).output();
            done.is_ok_and(|done| done.status.success())
        };
        let made = run("mkfs.ext4", &["-q", "-m", "0"], &[&image])
            && run("mount", &["-o", "loop"], &[&image, &at]);
        made.then_some(Self(at))
    }

    fn free(&self) -> u64 {
        let found = rustix::fs::statvfs(&self.0).expect("looks");
        found.f_bavail * found.f_frsize
    }

    /// Fills it, up to `left` bytes.
    fn fill(&self, left: u64) {
        let file = File::create(self.0.join("ballast")).expect("makes a file");
        let flags = rustix::fs::FallocateFlags::empty();
        rustix::fs::fallocate(&file, flags, 0, self.free() - left).expect("there is room");
    }

    fn clear(&self) {
        std::fs::remove_file(self.0.join("ballast")).expect("removes it");
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let done = Command::new("umount").arg("-l").arg(&self.0).status().expect("runs umount");
        assert!(done.success() || std::thread::panicking(), "{} stays mounted", self.0.display());
    }
}

async fn started(dir: &Path) -> DevCluster {
    let mut options = Options::new(dir.to_owned()).expect("options");
    options.exe = env!("CARGO_BIN_EXE_sbk-tests-ctl").into();
    options.limit = LIMIT;
    options.wanted = Wanted { masters: Some(1), datanodes: Some(3), base_port: None };
    options.capacity = Some(1 << 40);
    options.wal_retain = Some(4 << 20);
    options.growth_watermark = Some(WATERMARK.to_string());
    DevCluster::start(options).await.expect("the cluster starts")
}

async fn create(cluster: &DevCluster, name: &str, replicas: u32) -> Result<(), String> {
    let request = CreateVolumeRequest {
        id: Uuid::new_v4().as_bytes().to_vec().into(),
        name: name.to_owned(),
        size_bytes: VOLUME,
        replicas,
        ..CreateVolumeRequest::default()
    };
    let created = cluster.client().create_volume(request).await;
    created.map(drop).map_err(|error| format!("{error:#} {error:?}"))
}

async fn cluster(dir: &Path) -> DevCluster {
    let cluster = started(dir).await;
    create(&cluster, "v", 3).await.expect("creates");
    cluster
}

async fn wait(cluster: &DevCluster, what: &str, right: impl Fn(&VolumeView) -> bool) -> VolumeView {
    wait_for(cluster, "v", what, right).await
}

async fn wait_for(
    cluster: &DevCluster,
    name: &str,
    what: &str,
    right: impl Fn(&VolumeView) -> bool,
) -> VolumeView {
    let masters = cluster.client();
    until(what, LIMIT, async || {
        answered(masters.get_volume(name).await, |info| {
            let view = VolumeView::of(&info);
            if right(&view) { Look::Done(view) } else { Look::NotYet(format!("{view:?}")) }
        })
    })
    .await
    .expect("comes about")
}

/// What was acknowledged: at which write, which byte.
type Acknowledged = Arc<Mutex<BTreeMap<u64, u8>>>;

/// Writes of so many bytes until it is ended, one after the other, where `place` says. Every write has to succeed.
fn writes(
    client: NbdClient,
    acknowledged: &Acknowledged,
    len: usize,
    place: impl Fn(u64) -> u64 + Send + 'static,
) -> JoinHandle<()> {
    let acknowledged = Arc::clone(acknowledged);
    tokio::spawn(async move {
        for n in 0.. {
            let (at, byte) = (place(n), (n % 251) as u8 + 1);
            let data = Bytes::from(vec![byte; len]);
            client.write(at * WRITE as u64, data).await.expect("a write succeeds, if late");
            acknowledged.lock().expect("not poisoned").insert(at, byte);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
}

async fn grows(acknowledged: &Acknowledged, by: usize) {
    let before = acknowledged.lock().expect("not poisoned").len();
    until("new blocks", LIMIT, async || {
        let now = acknowledged.lock().expect("not poisoned").len();
        Ok(if now >= before + by { Look::Done(()) } else { Look::NotYet(format!("{now} writes")) })
    })
    .await
    .expect("it goes on");
}

/// Waits until the one block was overwritten so often.
async fn overwrites(acknowledged: &Acknowledged, times: usize) {
    let mut seen = Vec::new();
    until("overwrites", LIMIT, async || {
        let now = acknowledged.lock().expect("not poisoned").values().copied().next();
        if seen.last() != Some(&now) {
            seen.push(now);
        }
        Ok(if seen.len() > times { Look::Done(()) } else { Look::NotYet(format!("{seen:?}")) })
    })
    .await
    .expect("overwrites go on");
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_need_new_space_wait_until_there_is_some() {
    let dir = tempfile::tempdir().expect("dir");
    let mount = |n: usize| Small::mount(dir.path().join(format!("datanode-{n}")));
    let Some(disks) = (1..=3).map(mount).collect::<Option<Vec<_>>>() else {
        eprintln!("not tried: nothing can be mounted here, that needs root");
        return;
    };
    let cluster = cluster(dir.path()).await;
    let whole = wait(&cluster, "all in sync", VolumeView::is_whole).await;
    let nodes = cluster.file().datanodes.clone();
    let primary = whole.primary.clone().expect("there is one");
    let others: Vec<_> = nodes.iter().filter(|d| d.id != primary).collect();
    let client = NbdClient::connect(&others[0].nbd, "v").await.expect("connects");
    let (new, old, large) =
        (Acknowledged::default(), Acknowledged::default(), Acknowledged::default());
    client.write(0, Bytes::from(vec![1; WRITE])).await.expect("writes");
    for n in 0..8 {
        client
            .write(LARGE_AT + n * LARGE as u64, Bytes::from(vec![1; LARGE]))
            .await
            .expect("writes");
    }
    let units = (LARGE / WRITE) as u64;
    let jobs = [
        writes(client.clone(), &new, WRITE, |n| n + 1),
        writes(client.clone(), &old, WRITE, |_| 0),
        writes(client.clone(), &large, LARGE, move |n| LARGE_AT / WRITE as u64 + n % 8 * units),
    ];
    // A member's disk, and the primary's own.
    for node in [&others[1].id, &primary] {
        grows(&new, 20).await;
        let disk = &disks[nodes.iter().position(|d| d.id == *node).expect("a node")];
        disk.fill(LEFT);
        let told = wait(&cluster, "the reason to be told", |view| {
            view.members.iter().any(|member| {
                let reason = &member.reason;
                reason.contains("writes that need new space wait for room: node ")
                    && reason.contains(node.as_str())
                    && reason.contains("below its growth watermark of 80 MiB")
            })
        })
        .await;
        assert!(told.is_whole(), "nobody leaves for it: {told:?}");
        let before = new.lock().expect("not poisoned").len();
        overwrites(&old, 20).await;
        overwrites(&large, 12).await;
        let after = new.lock().expect("not poisoned").len();
        assert_eq!(before, after, "a block that held nothing was acknowledged");
        // What needs no space is answered, and what is there is read.
        client.trim(VOLUME - WRITE as u64, WRITE as u32).await.expect("trims");
        client.flush().await.expect("flushes");
        disk.clear();
        grows(&new, 20).await;
    }
    wait(&cluster, "no reason any more", |view| view.members.iter().all(|m| m.reason.is_empty()))
        .await;
    jobs.iter().for_each(JoinHandle::abort);
    let written = new.lock().expect("not poisoned").clone();
    for (at, byte) in written {
        let read = client.read(at * WRITE as u64, WRITE as u32).await.expect("reads");
        assert!(read.iter().all(|b| *b == byte), "write {at}");
    }
    let info = cluster.client().get_volume("v").await.expect("answers");
    let report = compare(&info, LIMIT).await.expect("compares");
    assert!(report.is_clean() && report.skipped.is_empty(), "{report:?}");
    for n in 1..=nodes.len() {
        let log = std::fs::read_to_string(dir.path().join(format!("logs/datanode-{n}.log")));
        let log = log.expect("a log");
        assert!(!log.contains("No space left") && !log.contains("is opened again"), "{log}");
    }
    client.disconnect().await;
    cluster.stop().await.expect("stops");
}

/// Waits until the masters know which nodes are low on room, as `node list` shows it.
async fn low(cluster: &DevCluster, expected: &[&str]) {
    let masters = cluster.client();
    until("the masters to know whose disk is low", LIMIT, async || {
        answered(masters.list_nodes().await, |answer| {
            let nodes: Vec<_> = answer.nodes.iter().map(NodeView::of).collect();
            let is_low = |node: &&NodeView| node.disks.iter().any(|disk| disk.room == "low");
            let low: BTreeSet<_> = nodes.iter().filter(is_low).map(|n| n.id.as_str()).collect();
            match low == expected.iter().copied().collect() {
                true => Look::Done(()),
                false => Look::NotYet(format!("{nodes:?}")),
            }
        })
    })
    .await
    .expect("in time");
}

/// The nodes of a volume's replicas.
async fn nodes_of(cluster: &DevCluster, name: &str) -> Vec<String> {
    let info = cluster.client().get_volume(name).await.expect("answers");
    VolumeView::of(&info).members.into_iter().map(|member| member.node).collect()
}

/// Disks that are filled from outside get no new replica, long before a client has to wait: neither of new
/// volumes nor of one whose replica is to go elsewhere, which says why, and goes on by itself.
#[tokio::test(flavor = "multi_thread")]
async fn disks_that_are_low_on_room_get_no_replica_until_they_have_some() {
    let dir = tempfile::tempdir().expect("dir");
    let mount = |n: usize| Small::mount(dir.path().join(format!("datanode-{n}")));
    let Some(disks) = (1..=3).map(mount).collect::<Option<Vec<_>>>() else {
        eprintln!("not tried: nothing can be mounted here, that needs root");
        return;
    };
    let cluster = started(dir.path()).await;
    let nodes: Vec<_> = cluster.file().datanodes.iter().map(|node| node.id.clone()).collect();
    let [first, second, third] = nodes.iter().map(String::as_str).collect::<Vec<_>>()[..] else {
        panic!("three datanodes: {nodes:?}");
    };
    disks[0].fill(LOW);
    disks[1].fill(LOW);
    low(&cluster, &[first, second]).await;
    for n in 0..4 {
        create(&cluster, &format!("one-{n}"), 1).await.expect("one node has room");
        assert_eq!(nodes_of(&cluster, &format!("one-{n}")).await, [third]);
    }
    let refused = create(&cluster, "two", 2).await.expect_err("only one node has room");
    assert!(
        refused.contains("beside 2 nodes whose disks are below the placement watermark"),
        "{refused}"
    );
    // A replica that an operator wants away stays, and people are told why.
    let order = |to: &str| MoveReplicaRequest {
        name_or_id: "one-0".to_owned(),
        from: third.parse::<Uuid>().expect("an id").as_bytes().to_vec().into(),
        to: match to {
            "" => Vec::new().into(),
            to => to.parse::<Uuid>().expect("an id").as_bytes().to_vec().into(),
        },
        in_place: false,
    };
    let refused = cluster.client().move_replica(order(first)).await.expect_err("it is low on room");
    assert!(format!("{refused:?}").contains("below the placement watermark"), "{refused:?}");
    cluster.client().move_replica(order("")).await.expect("is taken");
    wait_for(&cluster, "one-0", "the reason to be told", |view| {
        view.reason.contains("no other node that is alive has room for one in its place")
            && view.reason.contains("2 nodes whose disks are below the placement watermark")
    })
    .await;
    assert_eq!(nodes_of(&cluster, "one-0").await, [third]);
    // There is room again on one of them.
    disks[1].clear();
    low(&cluster, &[first]).await;
    wait_for(&cluster, "one-0", "the move", |view| {
        view.members.len() == 1 && view.members[0].node == second && view.is_whole()
    })
    .await;
    create(&cluster, "two", 2).await.expect("two nodes have room");
    let two: BTreeSet<_> = nodes_of(&cluster, "two").await.into_iter().collect();
    assert_eq!(two, BTreeSet::from([second.to_owned(), third.to_owned()]));
    cluster.stop().await.expect("stops");
}
