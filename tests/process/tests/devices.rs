//! Datanodes whose replicas are on block devices, on real processes: killed under a load, with a device that fails, one
//! that is another node's, and one that is not there. On loop devices; where none can be made these tests are skipped.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use sbk_cli::commands::scrub::scrub;
use sbk_cli::dev::cluster::{DevCluster, Options};
use sbk_cli::view::VolumeView;
use sbk_cli::wait::{Look, until};
use sbk_cli::workload::load::LoadOptions;
use sbk_cli::workload::nbd::NbdClient;
use sbk_process_tests::clusters::{self, LIMIT, all_equal, create, in_sync, node, stop, volume_of};
use sbk_process_tests::devices;
use sbk_process_tests::work::{Work, all_is_there, new_history};

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
/// Three of four writes have more than 1 MiB.
const LARGE: LoadOptions =
    LoadOptions { depth: 4, most_blocks: 1024, seed: 4, pace: Some(64 << 20), ..LOAD };
/// Writes of a load that are waited for.
const SOME: u64 = 200;

fn options(dir: &Path, replace_after: u64) -> Options {
    Options {
        wal_retain: Some(4 << 20),
        replace_after: Some(Duration::from_secs(replace_after)),
        ..clusters::options(CTL, dir, 3)
    }
}

/// Kills datanodes of a cluster under a load on the volume `v`: one after the other, and all of them at once. All that was
/// acknowledged is there then, and the replicas are equal. By way of which datanode a client sees it.
async fn killed_under(cluster: &mut DevCluster, whole: &VolumeView, of: LoadOptions) -> NbdClient {
    let nodes = cluster.file().datanodes.clone();
    let primary = whole.primary.as_ref().expect("there is one");
    let stays = nodes.iter().find(|node| node.id != *primary).expect("three nodes");
    let history = new_history();
    let work = Work::start(&stays.nbd, "v", of.clone(), &history).await;
    work.goes_on(SOME).await;
    // The primary first.
    for killed in nodes.iter().filter(|node| node.id != stays.id) {
        cluster.kill_datanode(&killed.id).expect("killed");
        work.goes_on(SOME).await;
        let which = cluster.which(&killed.id).expect("a node");
        cluster.start_again(which).expect("starts");
        in_sync(cluster, "v").await;
    }
    work.goes_on(SOME).await;
    work.stop().await;
    all_equal(cluster, "v").await;

    // In the middle of it.
    let work = Work::start(&stays.nbd, "v", of.clone(), &history).await;
    work.goes_on(SOME).await;
    for node in &nodes {
        cluster.kill_datanode(&node.id).expect("killed");
    }
    drop(work);
    for node in &nodes {
        let which = cluster.which(&node.id).expect("a node");
        cluster.start_again(which).expect("starts");
    }
    all_equal(cluster, "v").await;
    let client = NbdClient::connect(&stays.nbd, "v").await.expect("connects");
    all_is_there(&client, &history, &of).await;
    client
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
    let Some(devices) = devices::make(dir.path(), 3, DEVICE) else { return };
    let on_devices =
        || Options { disks: 0, devices: devices::paths(&devices, 1), ..options(dir.path(), 600) };
    let mut cluster = DevCluster::start(on_devices()).await.expect("starts");
    create(&cluster, volume_of("v", VOLUME)).await;
    let whole = in_sync(&cluster, "v").await;
    let nodes = cluster.file().datanodes.clone();
    let shown = node(&cluster, &nodes[0].id, "its device", |view| !view.disks.is_empty()).await;
    assert_eq!(shown.disks[0].path, devices[0].path().display().to_string());
    let room = shown.disks[0].capacity_bytes;
    assert!(room > DEVICE / 2 && room < DEVICE, "{shown:?}");

    let client = killed_under(&mut cluster, &whole, LOAD).await;

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

/// A large write is several batches of a device's log, and a checkpoint of it several steps: each may be cut short.
#[tokio::test(flavor = "multi_thread")]
async fn large_writes_to_devices_are_whole_when_processes_are_killed() {
    let dir = tempfile::tempdir().expect("dir");
    let Some(devices) = devices::make(dir.path(), 3, DEVICE) else { return };
    let options =
        Options { disks: 0, devices: devices::paths(&devices, 1), ..options(dir.path(), 600) };
    let mut cluster = DevCluster::start(options).await.expect("starts");
    create(&cluster, volume_of("v", VOLUME)).await;
    let whole = in_sync(&cluster, "v").await;
    let client = killed_under(&mut cluster, &whole, LARGE).await;
    client.disconnect().await;
    // What lies on the devices matches its checksums.
    let info = cluster.client().get_volume("v").await.expect("answers");
    let report = scrub(&info, 0).await.expect("scrubs");
    assert!(report.is_clean(), "{report:?}");
    cluster.stop().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_fails_takes_its_replicas_and_nothing_else() {
    let dir = tempfile::tempdir().expect("dir");
    let Some(devices) = devices::make(dir.path(), 3, DEVICE) else { return };
    let beside = |replace_after| Options {
        devices: devices::paths(&devices, 1),
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
