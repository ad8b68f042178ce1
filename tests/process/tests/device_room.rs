//! The room on block devices: writes that need new space wait for it, and no new replica goes where it is low. On loop
//! devices; where none can be made these tests are skipped.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use sbk_cli::commands::scrub::scrub;
use sbk_cli::dev::cluster::{DevCluster, Options};
use sbk_cli::view::NodeView;
use sbk_cli::wait::{Look, until};
use sbk_cli::workload::nbd::NbdClient;
use sbk_process_tests::clusters::{
    self, LIMIT, all_equal, create, in_sync, logs, node, nodes, volume_of,
};
use sbk_process_tests::devices;
use sbk_process_tests::writer::{Writer, Writes};
use sbk_proto::v1::{CreateVolumeRequest, ResizeVolumeRequest};

const DEVICE: u64 = 512 << 20;

fn options(dir: &Path, datanodes: u64, devices: Vec<Vec<PathBuf>>) -> Options {
    Options {
        disks: 0,
        devices,
        capacity: Some(1 << 40),
        wal_retain: Some(4 << 20),
        growth_watermark: Some("80MiB".to_owned()),
        ..clusters::options(env!("CARGO_BIN_EXE_sbk-tests-ctl"), dir, datanodes)
    }
}

const MIB: usize = 1 << 20;
/// The last block of a volume that is twice as large as its devices.
const LAST: u64 = 2 * DEVICE - 4096;

/// Devices that fill up: writes that need new space wait, overwrites go on, and with a volume that is deleted there is room again. No
/// store fails for it, and what is there is read and scrubbed.
#[tokio::test(flavor = "multi_thread")]
async fn devices_that_fill_up_have_writes_wait_for_room() {
    let dir = tempfile::tempdir().expect("dir");
    let Some(devices) = devices::make(dir.path(), 3, DEVICE) else { return };
    let options = Options {
        replace_after: Some(Duration::from_secs(600)),
        ..options(dir.path(), 3, devices::paths(&devices, 1))
    };
    let cluster = DevCluster::start(options).await.expect("starts");
    let nodes = cluster.file().datanodes.clone();
    for name in ["filler", "grows"] {
        create(&cluster, volume_of(name, 2 * DEVICE)).await;
        in_sync(&cluster, name).await;
    }
    let filler = NbdClient::connect(&nodes[0].nbd, "filler").await.expect("connects");
    for at in 0..100 {
        filler.write((at * MIB) as u64, Bytes::from(vec![7; MIB])).await.expect("writes");
    }
    filler.disconnect().await;
    let client = NbdClient::connect(&nodes[0].nbd, "grows").await.expect("connects");
    client.write(LAST, Bytes::from(vec![1; 4096])).await.expect("writes");
    let writes = Writes { bytes: MIB, pace: Duration::ZERO };
    let grows = Writer::start(client.clone(), writes, |n| n * MIB as u64);
    for id in nodes.iter().map(|node| &node.id) {
        node(&cluster, id, "a device to be short", |view| view.disks[0].room == "short").await;
    }
    // What was on its way may still be answered; then nothing new is, however often one block is overwritten.
    until("writes to wait", LIMIT, async || {
        let before = grows.places();
        for _ in 0..20 {
            client.write(LAST, Bytes::from(vec![1; 4096])).await?;
        }
        let after = grows.places();
        Ok(if before == after { Look::Done(()) } else { Look::NotYet(format!("{after} writes")) })
    })
    .await
    .expect("they wait");
    cluster.client().delete_volume("filler").await.expect("deletes");
    grows.grows(10).await;
    grows.stop(&client).await;
    client.disconnect().await;
    let request = ResizeVolumeRequest {
        name_or_id: "grows".to_owned(),
        size_bytes: 3 * DEVICE,
        ..ResizeVolumeRequest::default()
    };
    cluster.client().resize_volume(request).await.expect("is resized");
    all_equal(&cluster, "grows").await;
    let info = cluster.client().get_volume("grows").await.expect("answers");
    let report = scrub(&info, 0).await.expect("scrubs");
    assert!(report.is_clean(), "{report:?}");
    for log in logs(&cluster) {
        assert!(!log.contains("No space left") && !log.contains("is opened again"), "{log}");
    }
    cluster.stop().await.expect("stops");
}

/// Creates a volume of one replica, and says on which node and which of its devices that is: where more is claimed then.
async fn placed(cluster: &DevCluster, name: &str, size_bytes: u64) -> (usize, usize) {
    let claimed = async || {
        let all = |views: &[NodeView]| views.iter().all(|view| view.disks.len() == 2);
        let mut views = nodes(cluster, "the devices", all).await;
        views.sort_by_key(|view| {
            cluster.file().datanodes.iter().position(|entry| entry.id == view.id)
        });
        let claims =
            |view: &NodeView| [view.disks[0].allocated_bytes, view.disks[1].allocated_bytes];
        views.iter().map(claims).collect::<Vec<_>>()
    };
    let before = claimed().await;
    create(cluster, CreateVolumeRequest { replicas: 1, ..volume_of(name, size_bytes) }).await;
    in_sync(cluster, name).await;
    until("its claim to be told", LIMIT, async || {
        let now = claimed().await;
        let all = (0..now.len()).flat_map(|node| [(node, 0), (node, 1)]);
        let more: Vec<_> =
            all.filter(|(node, disk)| now[*node][*disk] > before[*node][*disk]).collect();
        Ok(match more[..] {
            [place] => Look::Done(place),
            _ => Look::NotYet(format!("{before:?}, {now:?}")),
        })
    })
    .await
    .expect("it is somewhere")
}

/// Writes to a volume until its device is low on room, or short of it.
async fn fill(cluster: &DevCluster, name: &str, (at, disk): (usize, usize)) {
    let entry = &cluster.file().datanodes[at];
    let client = NbdClient::connect(&entry.nbd, name).await.expect("connects");
    let writes = Writes { bytes: MIB, pace: Duration::from_millis(10) };
    let writer = Writer::start(client, writes, |n| n * MIB as u64);
    let is_low = |view: &NodeView| ["low", "short"].contains(&view.disks[disk].room);
    node(cluster, &entry.id, "a device to be low on room", is_low).await;
    drop(writer);
}

/// A device that is low on room gets no new replica, though less is claimed of it than of any other: neither from its node,
/// which has another device, nor, if that is low as well, from the masters.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_low_on_room_gets_no_replica_while_another_has_some() {
    const GIB: u64 = 1 << 30;
    let dir = tempfile::tempdir().expect("dir");
    let Some(devices) = devices::make(dir.path(), 4, DEVICE) else { return };
    let options = options(dir.path(), 2, devices::paths(&devices, 2));
    let cluster = DevCluster::start(options).await.expect("starts");
    // Three of four are claimed for much, and the last for little.
    let large = [
        placed(&cluster, "large-1", 64 * GIB).await,
        placed(&cluster, "large-2", 64 * GIB).await,
        placed(&cluster, "large-3", 64 * GIB).await,
    ];
    let filled = placed(&cluster, "filler-1", GIB).await;
    assert!(!large.contains(&filled), "{large:?}, {filled:?}");
    assert_eq!(placed(&cluster, "empty-1", MIB as u64).await, filled, "it is claimed least");
    fill(&cluster, "filler-1", filled).await;
    // On each of the others in turn, as they are claimed alike; that is on one beside it on its node too.
    let mut places = BTreeSet::new();
    for number in 2..5 {
        places.insert(placed(&cluster, &format!("empty-{number}"), GIB).await);
    }
    assert_eq!(places, BTreeSet::from(large), "all but the one that is low on room");
    let beside = (filled.0, 1 - filled.1);
    let name = large.iter().position(|place| *place == beside).expect("is one of them");
    fill(&cluster, &format!("large-{}", name + 1), beside).await;
    for number in 5..8 {
        let (at, _) = placed(&cluster, &format!("empty-{number}"), MIB as u64).await;
        assert_ne!(at, filled.0, "both of that node's are low on room");
    }
    cluster.stop().await.expect("stops");
}
