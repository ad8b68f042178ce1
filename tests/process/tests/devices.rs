//! Datanodes whose replicas are on block devices, on real processes: killed under a load, with a device that fails, one
//! that is another node's, and one that is not there. On loop devices; where none can be made these tests are skipped.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use sbk_cli::commands::scrub::scrub;
use sbk_cli::dev::cluster::{DevCluster, Options};
use sbk_cli::wait::{Look, until};
use sbk_cli::workload::load::LoadOptions;
use sbk_cli::workload::nbd::NbdClient;
use sbk_process_tests::clusters::{
    self, LIMIT, all_equal, create, in_sync, logs, node, stop, volume_of,
};
use sbk_process_tests::work::{Work, all_is_there, new_history};
use sbk_process_tests::writer::{Writer, Writes};
use sbk_proto::v1::ResizeVolumeRequest;
use sbk_test_support::LoopDevice;

const CTL: &str = env!("CARGO_BIN_EXE_sbk-tests-ctl");
const VOLUME: u64 = 64 << 20;
const DEVICE: u64 = 512 << 20;
const LOAD: LoadOptions = LoadOptions {
    blocks: VOLUME / 4096,
    depth: 8,
    read_percent: 20,
    most_blocks: 64,
    seed: 3,
    pace: Some(16 << 20),
};
/// Writes of a load that are waited for.
const SOME: u64 = 200;

fn options(dir: &Path, replace_after: u64) -> Options {
    Options {
        wal_retain: Some(4 << 20),
        replace_after: Some(Duration::from_secs(replace_after)),
        ..clusters::options(CTL, dir, 3)
    }
}

/// One for each of so many datanodes; `None` if there can be none.
fn devices(dir: &Path, count: usize) -> Option<Vec<LoopDevice>> {
    (1..=count).map(|n| LoopDevice::make(&dir.join(format!("device-{n}")), DEVICE)).collect()
}

fn paths(devices: &[LoopDevice]) -> Vec<Vec<PathBuf>> {
    devices.iter().map(|device| vec![device.path().to_owned()]).collect()
}

/// Overwrites a device's head and its end, if nobody has it open for itself.
fn wipe(device: &Path) -> std::io::Result<()> {
    let alone = rustix::fs::OFlags::EXCL.bits() as i32;
    let file = File::options().write(true).custom_flags(alone).open(device)?;
    for at in [0, DEVICE - (1 << 20)] {
        file.write_all_at(&vec![0; 1 << 20], at)?;
    }
    file.sync_all()
}

/// What a datanode says that ends at once.
fn refused(dir: &Path, devices: &[&Path]) -> String {
    let mut command = Command::new(CTL);
    command.args(["datanode", "--masters", "127.0.0.1:1", "--runtime-dir"]).arg(dir.join("run"));
    for listener in ["--listen", "--http", "--nbd"] {
        command.args([listener, "127.0.0.1:0"]);
    }
    for device in devices {
        command.arg("--device").arg(device);
    }
    let output = command.output().expect("runs");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_on_devices_alone_loses_nothing_when_its_processes_are_killed() {
    let dir = tempfile::tempdir().expect("dir");
    let Some(devices) = devices(dir.path(), 3) else { return };
    let on_devices = || Options { disks: 0, devices: paths(&devices), ..options(dir.path(), 600) };
    let mut cluster = DevCluster::start(on_devices()).await.expect("starts");
    create(&cluster, volume_of("v", VOLUME)).await;
    let whole = in_sync(&cluster, "v").await;
    let nodes = cluster.file().datanodes.clone();
    let shown = node(&cluster, &nodes[0].id, "its device", |view| !view.disks.is_empty()).await;
    assert_eq!(shown.disks[0].path, devices[0].path().display().to_string());
    let room = shown.disks[0].capacity_bytes;
    assert!(room > DEVICE / 2 && room < DEVICE, "{shown:?}");

    let primary = whole.primary.expect("there is one");
    let stays = nodes.iter().find(|node| node.id != primary).expect("three nodes");
    let history = new_history();
    let work = Work::start(&stays.nbd, "v", LOAD, &history).await;
    work.goes_on(SOME).await;
    // One after the other, the primary first.
    for killed in nodes.iter().filter(|node| node.id != stays.id) {
        cluster.kill_datanode(&killed.id).expect("killed");
        work.goes_on(SOME).await;
        let which = cluster.which(&killed.id).expect("a node");
        cluster.start_again(which).expect("starts");
        in_sync(&cluster, "v").await;
    }
    work.goes_on(SOME).await;
    work.stop().await;
    all_equal(&cluster, "v").await;

    // All of them at once, in the middle of it.
    let work = Work::start(&stays.nbd, "v", LOAD, &history).await;
    work.goes_on(SOME).await;
    for node in &nodes {
        cluster.kill_datanode(&node.id).expect("killed");
    }
    drop(work);
    for node in &nodes {
        let which = cluster.which(&node.id).expect("a node");
        cluster.start_again(which).expect("starts");
    }
    all_equal(&cluster, "v").await;
    let client = NbdClient::connect(&stays.nbd, "v").await.expect("connects");
    all_is_there(&client, &history, &LOAD).await;

    // A volume that is deleted gives its space back.
    let used = node(&cluster, &nodes[0].id, "what it takes", |view| view.used_bytes > 0).await;
    cluster.client().delete_volume("v").await.expect("deletes");
    node(&cluster, &nodes[0].id, "space", |view| view.used_bytes < used.used_bytes / 4).await;
    client.disconnect().await;

    // Another node's device, and one that is not there, end a start with words.
    cluster.stop().await.expect("stops");
    let [one, other] = [devices[0].path(), devices[1].path()];
    let gone = dir.path().join("gone");
    assert!(refused(dir.path(), &[one, other]).contains("belongs to node"));
    assert!(refused(dir.path(), &[&gone]).contains("No such file"));
    assert!(refused(dir.path(), &[one, one]).contains("give each once"));
    cluster = DevCluster::start(on_devices()).await.expect("starts");
    let known: Vec<_> = cluster.file().datanodes.iter().map(|node| node.id.clone()).collect();
    let before: Vec<_> = nodes.iter().map(|node| node.id.clone()).collect();
    assert_eq!(known, before);
    cluster.stop().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_fails_takes_its_replicas_and_nothing_else() {
    let dir = tempfile::tempdir().expect("dir");
    let Some(devices) = devices(dir.path(), 3) else { return };
    let beside = |replace_after| Options {
        devices: paths(&devices),
        capacity: Some(400 << 20),
        ..options(dir.path(), replace_after)
    };
    let mut cluster = DevCluster::start(beside(10)).await.expect("starts");
    // One of the two is on each node's device.
    for name in ["one", "other"] {
        create(&cluster, volume_of(name, VOLUME)).await;
        in_sync(&cluster, name).await;
    }
    let id = cluster.file().datanodes[0].id.clone();
    let before = node(&cluster, &id, "its disks", |view| view.disks.len() == 2).await;
    let nbd = cluster.file().datanodes[1].nbd.clone();
    let start = async |name| Work::start(&nbd, name, LOAD, &new_history()).await;
    let works = [start("one").await, start("other").await];
    for work in &works {
        work.goes_on(SOME).await;
    }
    devices[0].resize(0);
    let told = node(&cluster, &id, "a fault", |view| !view.disks[1].fault.is_empty()).await;
    assert!(told.alive && told.disks[0].fault.is_empty(), "{told:?}");
    // Both are whole again, on what is left.
    let dirs = dir.path().join("datanode-1/replicas");
    until("both to be in the directory", LIMIT, async || {
        let listed = std::fs::read_dir(&dirs)?.count();
        Ok(if listed == 2 { Look::Done(()) } else { Look::NotYet(format!("{listed}")) })
    })
    .await
    .expect("comes about");
    for work in works {
        work.goes_on(SOME).await;
        work.stop().await;
    }
    for name in ["one", "other"] {
        all_equal(&cluster, name).await;
    }
    let after = node(&cluster, &id, "the node", |_| true).await;
    assert_eq!(after.incarnation, before.incarnation, "the process is the same");

    // The node has let go of it. Another one in its place holds zeros, and is taken once the old one is given up.
    devices[0].resize(DEVICE);
    until("the device to be let go of", LIMIT, async || {
        Ok(wipe(devices[0].path()).map_or_else(|e| Look::NotYet(e.to_string()), Look::Done))
    })
    .await
    .expect("goes");
    let lost = before.disks[1].id.clone();
    let which = cluster.which(&id).expect("a node");
    stop(&mut cluster, which).await;
    cluster.start_again(which).expect("starts");
    node(&cluster, &id, "its new process", |view| {
        let told =
            view.disks.iter().any(|d| d.fault.contains(&lost) && d.fault.contains("is empty"));
        view.incarnation > before.incarnation && told
    })
    .await;
    cluster.stop().await.expect("stops");
    let given_up = vec!["--lost-dir".to_owned(), lost.clone()];
    let options = Options { datanode_args: given_up, ..beside(600) };
    let cluster = DevCluster::start(options).await.expect("starts");
    let anew = node(&cluster, &id, "a new device", |view| {
        view.disks.len() == 2 && view.disks.iter().all(|disk| disk.fault.is_empty())
    });
    assert_ne!(anew.await.disks[1].id, lost);
    create(&cluster, volume_of("third", VOLUME)).await;
    all_equal(&cluster, "third").await;
    cluster.stop().await.expect("stops");
}

const MIB: usize = 1 << 20;
/// The last block of a volume that is twice as large as its devices.
const LAST: u64 = 2 * DEVICE - 4096;

/// Devices that fill up: writes that need new space wait, overwrites go on, and with a volume that is deleted there is room again. No
/// store fails for it, and what is there is read and scrubbed.
#[tokio::test(flavor = "multi_thread")]
async fn devices_that_fill_up_have_writes_wait_for_room() {
    let dir = tempfile::tempdir().expect("dir");
    let Some(devices) = devices(dir.path(), 3) else { return };
    let options = Options {
        disks: 0,
        devices: paths(&devices),
        capacity: Some(1 << 40),
        growth_watermark: Some("80MiB".to_owned()),
        ..options(dir.path(), 600)
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
