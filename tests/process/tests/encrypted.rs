//! An encrypted volume on real processes: nothing of it lies on disks or devices in plain, it outlives its primary, and its
//! replicas are served by nodes that have their keys, and by no others.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sbk_cli::dev::cluster::{DevCluster, Options, data_dir};
use sbk_cli::view::{NodeView, VolumeView};
use sbk_cli::workload::nbd::NbdClient;
use sbk_process_tests::clusters::{self, all_equal, create, in_sync, restart, volume, volume_of};
use sbk_process_tests::devices;
use sbk_proto::v1::CreateVolumeRequest;
use sbk_test_support::walk;

const VOLUME: u64 = 64 << 20;
/// What is looked for on the disks.
const SECRET: &[u8; 32] = b"what nobody is to find on a disk";
/// What is written to a volume that is not encrypted, on the same disks.
const PLAIN: &[u8; 32] = b"this lies open wherever it lies.";
const DEVICE: u64 = 512 << 20;

fn options(dir: &Path) -> Options {
    clusters::options(env!("CARGO_BIN_EXE_sbk-tests-ctl"), dir, 3)
}

fn request(name: &str, encrypted: bool) -> CreateVolumeRequest {
    CreateVolumeRequest { encrypted, ..volume_of(name, VOLUME) }
}

async fn write(cluster: &DevCluster, name: &str) {
    write_text(cluster, name, SECRET).await;
}

async fn write_text(cluster: &DevCluster, name: &str, text: &[u8; 32]) {
    let via = &cluster.file().datanodes[0];
    let client = NbdClient::connect(&via.nbd, name).await.expect("connects");
    for at in (0..VOLUME).step_by(4 << 20) {
        client.write(at, Bytes::from(text.repeat(2048))).await.expect("writes");
        client.write(at + (1 << 20), Bytes::from(text.repeat(128))).await.expect("writes");
    }
    client.flush().await.expect("flushes");
    client.disconnect().await;
}

async fn read(cluster: &DevCluster, name: &str, via: usize) {
    let via = &cluster.file().datanodes[via];
    let client = NbdClient::connect(&via.nbd, name).await.expect("connects");
    for at in (0..VOLUME).step_by(4 << 20) {
        let large = client.read(at, 64 << 10).await.expect("reads");
        let small = client.read(at + (1 << 20), 4096).await.expect("reads");
        assert!(large == SECRET.repeat(2048) && small == SECRET.repeat(128), "at {at}");
    }
    client.disconnect().await;
}

/// Whether a text that was written again and again, for a sector at least, stands in a file or on a device in plain.
fn stands_in(path: &Path, text: &[u8; 32]) -> bool {
    // At the beginning of any sector it may have begun anywhere.
    let twice = text.repeat(2);
    let mut file = fs::File::open(path).expect("opens");
    let mut part = Vec::new();
    loop {
        part.clear();
        file.by_ref().take(1 << 20).read_to_end(&mut part).expect("reads");
        let mut sectors = part.chunks(512).filter_map(|sector| sector.get(..32));
        if sectors.any(|bytes| bytes[0] != 0 && twice.windows(32).any(|text| text == bytes)) {
            return true;
        }
        if part.is_empty() {
            return false;
        }
    }
}

/// The directories of a volume's replicas.
fn replicas(cluster: &DevCluster, id: &str) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for number in 1..=3 {
        let replicas = data_dir(cluster.dir(), number, 1).join("replicas");
        let listed = fs::read_dir(replicas).expect("lists").map(|e| e.expect("an entry"));
        let here = listed.filter(|e| e.file_name().to_string_lossy().starts_with(id));
        out.extend(here.map(|e| e.path()));
    }
    out
}

fn put_keys(path: &Path, keys: &[&str]) {
    fs::write(path, keys.join("\n")).expect("written");
}

/// All replicas are in sync, and their nodes say so.
fn is_served_by_all(view: &VolumeView) -> bool {
    view.is_whole() && view.members.iter().all(|member| member.mode == "healthy")
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_an_encrypted_volume_lies_on_a_disk_in_plain() {
    let dir = tempfile::tempdir().expect("dir");
    let mut cluster = DevCluster::start(options(dir.path())).await.expect("starts");
    for (name, encrypted) in [("plain", false), ("secret", true)] {
        create(&cluster, request(name, encrypted)).await;
    }
    let plain = in_sync(&cluster, "plain").await;
    let secret = in_sync(&cluster, "secret").await;
    assert!(secret.encrypted && !plain.encrypted);
    for name in ["plain", "secret"] {
        write(&cluster, name).await;
    }
    let found = |cluster: &DevCluster, id: &str| {
        let dirs = replicas(cluster, id);
        assert_eq!(dirs.len(), 3);
        let is_there = |dir: &&PathBuf| walk(dir).iter().any(|file| stands_in(file, SECRET));
        dirs.iter().filter(is_there).count()
    };
    assert_eq!(found(&cluster, &plain.id), 3, "else it could not be found in the other");
    assert_eq!(found(&cluster, &secret.id), 0);

    // Its primary dies, and comes back: what it missed is brought to it, and all of it is as it was.
    let primary = secret.primary.expect("there is one");
    let which = cluster.which(&primary).expect("a node");
    cluster.kill(which);
    let nodes = &cluster.file().datanodes;
    let other = nodes.iter().position(|node| node.id != primary).expect("three nodes");
    read(&cluster, "secret", other).await;
    let via = cluster.file().datanodes[other].nbd.clone();
    let client = NbdClient::connect(&via, "secret").await.expect("connects");
    client.write(8192, Bytes::from(SECRET.repeat(128))).await.expect("writes");
    client.disconnect().await;
    cluster.start_again(which).expect("starts");
    in_sync(&cluster, "secret").await;
    read(&cluster, "secret", other).await;
    all_equal(&cluster, "secret").await;
    // The checkpoints of the end too.
    cluster.stop().await.expect("stops");
    let cluster = DevCluster::start(options(dir.path())).await.expect("starts");
    read(&cluster, "secret", 0).await;
    assert_eq!(found(&cluster, &secret.id), 0);
    cluster.stop().await.expect("stops");
}

/// The same where the replicas have no file system, and under a new key: a node that has devices alone reads with it what
/// was encrypted under the old one.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_an_encrypted_volume_lies_on_a_device_in_plain_whatever_its_key() {
    let dir = tempfile::tempdir().expect("dir");
    let Some(devices) = devices::make(dir.path(), 3, DEVICE) else { return };
    let options =
        || Options { disks: 0, devices: devices::paths(&devices, 1), ..options(dir.path()) };
    let mut cluster = DevCluster::start(options()).await.expect("starts");
    for (name, encrypted, text) in [("plain", false, PLAIN), ("secret", true, SECRET)] {
        create(&cluster, request(name, encrypted)).await;
        in_sync(&cluster, name).await;
        write_text(&cluster, name, text).await;
    }
    let found = |text| devices.iter().filter(|d| stands_in(d.path(), text)).count();
    assert_eq!(found(PLAIN), 3, "else the other could not be found");
    assert_eq!(found(SECRET), 0);

    let secret = in_sync(&cluster, "secret").await;
    let primary = cluster.which(&secret.primary.expect("there is one")).expect("a node");
    cluster.kill(primary);
    cluster.start_again(primary).expect("starts");
    all_equal(&cluster, "secret").await;
    read(&cluster, "secret", 0).await;
    cluster.stop().await.expect("stops");

    // A new key beside the old one, and then in its place.
    let keys = dir.path().join("keys");
    let old = fs::read_to_string(&keys).expect("reads").trim().to_owned();
    let new = "ab".repeat(32);
    for known in [&[new.as_str(), &old][..], &[&new]] {
        put_keys(&keys, known);
        let cluster = DevCluster::start(options()).await.expect("starts");
        volume(&cluster, "secret", "all in sync with these keys", is_served_by_all).await;
        read(&cluster, "secret", 1).await;
        cluster.stop().await.expect("stops");
    }
    // The old one opens nothing any more.
    put_keys(&keys, &[&old]);
    let cluster = DevCluster::start(options()).await.expect("starts");
    volume(&cluster, "secret", "the missing key", |view| {
        !view.serving && view.members.iter().all(|member| member.reason.contains("key"))
    })
    .await;
    in_sync(&cluster, "plain").await;
    cluster.stop().await.expect("stops");
    // The checkpoints of all these ends too.
    assert_eq!((found(PLAIN), found(SECRET)), (3, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_served_by_a_node_that_has_its_key() {
    let dir = tempfile::tempdir().expect("dir");
    let mut cluster = DevCluster::start(options(dir.path())).await.expect("starts");
    let keys = cluster.dir().join("keys");
    let mode = fs::metadata(&keys).expect("is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let old = fs::read_to_string(&keys).expect("reads").trim().to_owned();
    let new = "ab".repeat(32);
    create(&cluster, request("secret", true)).await;
    in_sync(&cluster, "secret").await;
    write(&cluster, "secret").await;
    let id = cluster.file().datanodes[1].id.clone();

    // It comes back without the key.
    put_keys(&keys, &[&new]);
    restart(&mut cluster, &id).await;
    volume(&cluster, "secret", "the missing key", |view| {
        let told = view.members.iter().any(|m| m.node == id && m.reason.contains("key"));
        told && view.isr.len() == 2 && !view.isr.contains(&id)
    })
    .await;
    read(&cluster, "secret", 0).await;

    // With both, the new one first; then the old one is not needed any more.
    put_keys(&keys, &[&new, &old]);
    restart(&mut cluster, &id).await;
    volume(&cluster, "secret", "all in sync with both keys", is_served_by_all).await;
    put_keys(&keys, &[&new]);
    restart(&mut cluster, &id).await;
    volume(&cluster, "secret", "all in sync with the new key", is_served_by_all).await;
    read(&cluster, "secret", 1).await;
    cluster.stop().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_keys_no_encrypted_volume_is_created() {
    let dir = tempfile::tempdir().expect("dir");
    let none = Options { key_file: None, ..options(dir.path()) };
    let cluster = DevCluster::start(none).await.expect("starts");
    let refused = cluster.client().create_volume(request("secret", true)).await;
    let refused = refused.expect_err("nobody could hold it").to_string();
    assert!(refused.contains("--key-file"), "{refused}");
    let nodes = cluster.client().list_nodes().await.expect("answers").nodes;
    assert!(nodes.iter().all(|node| !NodeView::of(node).encrypts));
    cluster.stop().await.expect("stops");
}
