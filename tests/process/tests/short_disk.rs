//! A disk that is low on room gets no new replica. One that runs short of it: writes that need new space wait, overwrites go on, people are told why, and
//! with room again everything goes on by itself. No store fails meanwhile.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use sbk_cli::dev::cluster::{DevCluster, Options};
use sbk_cli::drill::loop_disk::LoopDisk;
use sbk_cli::view::{NodeView, VolumeView};
use sbk_cli::workload::nbd::NbdClient;
use sbk_process_tests::clusters::{self, all_equal, in_sync, logs, nodes, volume, volume_of};
use sbk_process_tests::writer::{Writer, Writes};
use sbk_proto::v1::{CreateVolumeRequest, MoveReplicaRequest};
use uuid::Uuid;

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
/// Where nothing is ever written but zeros, far from all else: not even a stamp lies near it.
const HOLES: u64 = 3 << 30;
const DISK: u64 = 512 << 20;
/// The growth watermark, and what is left free by whoever fills the disk: less, and more than a quarter of it.
const WATERMARK: u64 = 80 << 20;
const LEFT: u64 = 72 << 20;

/// One for each of three datanodes, where its data directory is to be. `None` if nothing can be mounted here.
fn disks(dir: &Path) -> Option<Vec<LoopDisk>> {
    let mount = |n| LoopDisk::mount(dir, &format!("datanode-{n}"), DISK);
    let mounted = (1..=3).map(mount).collect::<Result<Vec<_>, _>>();
    mounted.inspect_err(|e| eprintln!("SKIPPED: no disk can be mounted here: {e:#}")).ok()
}

async fn started(dir: &Path) -> DevCluster {
    let options = Options {
        capacity: Some(1 << 40),
        wal_retain: Some(4 << 20),
        growth_watermark: Some(WATERMARK.to_string()),
        ..clusters::options(env!("CARGO_BIN_EXE_sbk-tests-ctl"), dir, 3)
    };
    DevCluster::start(options).await.expect("the cluster starts")
}

async fn create(cluster: &DevCluster, name: &str, replicas: u32) -> Result<(), String> {
    let request = CreateVolumeRequest { replicas, ..volume_of(name, VOLUME) };
    let created = cluster.client().create_volume(request).await;
    created.map(drop).map_err(|error| format!("{error:#} {error:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_need_new_space_wait_until_there_is_some() {
    let dir = tempfile::tempdir().expect("dir");
    let Some(disks) = disks(dir.path()) else { return };
    let cluster = started(dir.path()).await;
    create(&cluster, "v", 3).await.expect("creates");
    let whole = in_sync(&cluster, "v").await;
    let nodes = cluster.file().datanodes.clone();
    let primary = whole.primary.clone().expect("there is one");
    let others: Vec<_> = nodes.iter().filter(|d| d.id != primary).collect();
    let client = NbdClient::connect(&others[0].nbd, "v").await.expect("connects");
    client.write(0, Bytes::from(vec![1; WRITE])).await.expect("writes");
    for n in 0..8 {
        client
            .write(LARGE_AT + n * LARGE as u64, Bytes::from(vec![1; LARGE]))
            .await
            .expect("writes");
    }
    let start = |bytes, place: fn(u64) -> u64| {
        let writes = Writes { bytes, pace: Duration::from_millis(20) };
        Writer::start(client.clone(), writes, place)
    };
    let new = start(WRITE, |n| (n + 1) * WRITE as u64);
    let old = start(WRITE, |_| 0);
    let large = start(LARGE, |n| LARGE_AT + n % 8 * LARGE as u64);
    // A member's disk, and the primary's own.
    for node in [&others[1].id, &primary] {
        new.grows(20).await;
        let disk = &disks[nodes.iter().position(|d| d.id == *node).expect("a node")];
        disk.fill(LEFT).expect("fills it");
        let told = volume(&cluster, "v", "the reason to be told", |view| {
            view.members.iter().any(|member| {
                let reason = &member.reason;
                reason.contains("writes that need new space wait for room: node ")
                    && reason.contains(node.as_str())
                    && reason.contains("below its growth watermark of 80 MiB")
            })
        })
        .await;
        assert!(told.is_whole(), "nobody leaves for it: {told:?}");
        let before = new.places();
        old.overwrites(20).await;
        large.overwrites(12).await;
        let after = new.places();
        assert_eq!(before, after, "a block that held nothing was acknowledged");
        // What needs no space is answered, and what is there is read.
        client.trim(VOLUME - WRITE as u64, WRITE as u32).await.expect("trims");
        client
            .write(HOLES, Bytes::from(vec![0; LARGE]))
            .await
            .expect("writes zeros where nothing is");
        client
            .write(HOLES, Bytes::from(vec![0; 4096]))
            .await
            .expect("writes zeros where nothing is");
        assert_eq!(new.places(), after, "there is no room yet");
        client.flush().await.expect("flushes");
        disk.clear().expect("makes room");
        new.grows(20).await;
    }
    let none = |view: &VolumeView| view.members.iter().all(|member| member.reason.is_empty());
    volume(&cluster, "v", "no reason any more", none).await;
    drop((old, large));
    new.stop(&client).await;
    all_equal(&cluster, "v").await;
    for log in logs(&cluster) {
        assert!(!log.contains("No space left") && !log.contains("is opened again"), "{log}");
    }
    client.disconnect().await;
    cluster.stop().await.expect("stops");
}

/// Waits until the masters know which nodes are low on room, as `node list` shows it.
async fn low(cluster: &DevCluster, expected: &[&str]) {
    nodes(cluster, "the masters to know whose disk is low", |views| {
        let is_low = |node: &&NodeView| node.disks.iter().any(|disk| disk.room == "low");
        let low: BTreeSet<_> = views.iter().filter(is_low).map(|n| n.id.as_str()).collect();
        low == expected.iter().copied().collect()
    })
    .await;
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
    let Some(disks) = disks(dir.path()) else { return };
    let cluster = started(dir.path()).await;
    let nodes: Vec<_> = cluster.file().datanodes.iter().map(|node| node.id.clone()).collect();
    let [first, second, third] = nodes.iter().map(String::as_str).collect::<Vec<_>>()[..] else {
        panic!("three datanodes: {nodes:?}");
    };
    disks[0].fill(LOW).expect("fills it");
    disks[1].fill(LOW).expect("fills it");
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
    volume(&cluster, "one-0", "the reason to be told", |view| {
        view.reason.contains("no other node that is alive has room for one in its place")
            && view.reason.contains("2 nodes whose disks are below the placement watermark")
    })
    .await;
    assert_eq!(nodes_of(&cluster, "one-0").await, [third]);
    // There is room again on one of them.
    disks[1].clear().expect("makes room");
    low(&cluster, &[first]).await;
    volume(&cluster, "one-0", "the move", |view| {
        view.members.len() == 1 && view.members[0].node == second && view.is_whole()
    })
    .await;
    create(&cluster, "two", 2).await.expect("two nodes have room");
    let two: BTreeSet<_> = nodes_of(&cluster, "two").await.into_iter().collect();
    assert_eq!(two, BTreeSet::from([second.to_owned(), third.to_owned()]));
    cluster.stop().await.expect("stops");
}
