//! Somebody who can write to a disk, but has not the key of the encrypted volume on it: blocks that are put back as they
//! were are repaired from other replicas, and a replica that is not encrypted takes nobody's place.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use sbk_cli::dev::cluster::{DevCluster, Options, data_dir};
use sbk_cli::view::VolumeView;
use sbk_cli::workload::nbd::NbdClient;
use sbk_engine::types::{LossGeneration, ReplicaId, VolumeId};
use sbk_process_tests::clusters::{self, all_equal, create, in_sync, stop, volume, volume_of};
use sbk_proto::v1::CreateVolumeRequest;
use sbk_store::{CreateSpec, Identity, Store, StoreOptions};
use sbk_wal::{Files, Storage};
use tokio::process::Command;

const CTL: &str = env!("CARGO_BIN_EXE_sbk-tests-ctl");
const MIB: u64 = 1 << 20;
const VOLUME: u64 = 64 * MIB;
/// One write: so little that it goes through the log. Of payloads that the log refers to and that are put back, the
/// opening says so.
const CHUNK: u64 = 256 << 10;
/// So many that checkpoints have moved most of them.
const WRITTEN: u64 = 192;

fn options(dir: &Path) -> Options {
    clusters::options(CTL, dir, 3)
}

async fn secret(cluster: &DevCluster) -> VolumeView {
    create(cluster, CreateVolumeRequest { encrypted: true, ..volume_of("secret", VOLUME) }).await;
    in_sync(cluster, "secret").await
}

/// What the `at`-th chunk holds when it was written for the `time`-th time.
fn content(at: u64, time: u64) -> Bytes {
    let words = (0..CHUNK / 8).map(|word| (word << 24 | at << 8 | time) + 1);
    words.flat_map(u64::to_le_bytes).collect()
}

async fn write(cluster: &DevCluster, time: u64) {
    let client = NbdClient::connect(&cluster.file().datanodes[0].nbd, "secret").await;
    let client = client.expect("connects");
    for at in 0..WRITTEN {
        client.write(at * CHUNK, content(at, time)).await.expect("writes");
    }
    client.flush().await.expect("flushes");
    client.disconnect().await;
}

async fn read(cluster: &DevCluster, via: usize, time: u64) {
    let client = NbdClient::connect(&cluster.file().datanodes[via].nbd, "secret").await;
    let client = client.expect("connects");
    for at in 0..WRITTEN {
        let found = client.read(at * CHUNK, CHUNK as u32).await.expect("reads");
        assert!(found == content(at, time), "chunk {at}");
    }
    client.disconnect().await;
}

/// The directory of the volume's replica on a node, which is the `number`-th.
fn replica(dir: &Path, number: u64, volume: &str) -> PathBuf {
    let replicas = fs::read_dir(data_dir(dir, number, 1).join("replicas")).expect("lists");
    let mut paths = replicas.map(|entry| entry.expect("an entry").path());
    let is_it = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(volume))
    };
    paths.find(is_it).expect("it is there")
}

#[tokio::test(flavor = "multi_thread")]
async fn blocks_that_were_put_back_are_repaired() {
    let dir = tempfile::tempdir().expect("dir");
    let files = ["extents", "shadow", "checksums"];
    let cluster = DevCluster::start(options(dir.path())).await.expect("starts");
    let id = secret(&cluster).await.id;
    write(&cluster, 1).await;
    cluster.stop().await.expect("stops");
    let kept = dir.path().join("kept");
    fs::create_dir(&kept).expect("makes");
    let disk = replica(dir.path(), 1, &id);
    for name in files {
        fs::copy(disk.join(name), kept.join(name)).expect("copies");
    }

    let cluster = DevCluster::start(options(dir.path())).await.expect("starts");
    write(&cluster, 2).await;
    cluster.stop().await.expect("stops");
    for name in files {
        fs::copy(kept.join(name), disk.join(name)).expect("puts back");
    }

    let cluster = DevCluster::start(options(dir.path())).await.expect("starts");
    in_sync(&cluster, "secret").await;
    for via in 0..3 {
        read(&cluster, via, 2).await;
    }
    let mut command = Command::new(CTL);
    command.args(["volume", "scrub", "secret", "--repair", "--rate", "0", "--dir"]).arg(dir.path());
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().await.expect("runs");
    let told = [stdout, stderr].concat();
    assert!(status.success(), "{}", String::from_utf8_lossy(&told));
    all_equal(&cluster, "secret").await;
    for via in 0..3 {
        read(&cluster, via, 2).await;
    }
    let log = clusters::logs(&cluster).concat();
    assert!(log.contains("stamps are not those that were written last"), "it was put back");
    cluster.stop().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_not_encrypted_takes_no_encrypted_ones_place() {
    let dir = tempfile::tempdir().expect("dir");
    let mut cluster = DevCluster::start(options(dir.path())).await.expect("starts");
    let id = secret(&cluster).await.id;
    write(&cluster, 1).await;
    let node = cluster.file().datanodes[1].id.clone();
    let which = cluster.which(&node).expect("a node");
    stop(&mut cluster, which).await;
    let place = replica(dir.path(), 2, &id);
    let name = place.file_name().expect("a name").to_string_lossy().into_owned();
    let (volume_id, replica_id) = name.split_once('.').expect("two ids");
    let volume_id: VolumeId = volume_id.parse().expect("an id");
    let identity =
        Identity { volume: volume_id, replica: replica_id.parse::<ReplicaId>().expect("an id") };
    fs::remove_dir_all(&place).expect("removes");
    fs::create_dir(&place).expect("makes");
    let files: Arc<dyn Storage> = Arc::new(Files::new(&place));
    let spec = CreateSpec { identity, blocks: VOLUME / 4096, loss_generation: LossGeneration(0) };
    Store::create(&files, &spec, &StoreOptions::default()).expect("a replica of its name");
    drop(files);

    cluster.start_again(which).expect("starts");
    // It may have been opened, and brought something, before its node had heard the masters.
    volume(&cluster, "secret", "the missing key, and the others alone in sync", |view| {
        let told = |member: &sbk_cli::view::MemberView| {
            member.node == node && member.reason.contains("seal")
        };
        view.members.iter().any(told) && !view.isr.contains(&node) && view.isr.len() == 2
    })
    .await;
    read(&cluster, 1, 1).await;
    cluster.stop().await.expect("stops");
}
