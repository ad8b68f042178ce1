//! Data that a disk returns wrong, and nobody else has: the client gets an error and never the data, and an
//! operator is told.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use sbk_cli::args::VolumeSpec;
use sbk_cli::commands::verify::compare;
use sbk_cli::dev::cluster::{DevCluster, Options};
use sbk_cli::http::get_json;
use sbk_cli::workload::nbd::{NbdClient, NbdError};
use sbk_process_tests::clusters::{self, LIMIT, logs, page};
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// More than what is kept in memory, so that the first of it has to be read back.
const WRITTEN: u64 = 80;
/// Byte of the volume that the disk returns wrong, in the block at 1 MiB.
const WRONG: u64 = MIB + 77;
/// Where the image begins in the file of extents.
const EXTENTS_HEADER: u64 = 4096;

async fn cluster(dir: &Path) -> DevCluster {
    let options = Options {
        volumes: vec![VolumeSpec { name: "v".into(), size: 128 * MIB }],
        ..clusters::options(env!("CARGO_BIN_EXE_sbk-tests-ctl"), dir, 1)
    };
    DevCluster::start(options).await.expect("the cluster starts")
}

/// Waits until what was written first is in the extents.
async fn checkpointed(http: &str) {
    page(http, "/projection", "a checkpoint", |page| {
        // One entry for each MiB, after the one that attached the client.
        page["volumes"][0]["view"]["checkpoint"].as_u64().is_some_and(|lsn| lsn > 8)
    })
    .await;
}

fn flip(data_dir: &Path) {
    let replicas = std::fs::read_dir(data_dir.join("replicas")).expect("the replicas");
    let replica = replicas.map(|entry| entry.expect("one").path()).next().expect("a replica");
    let extents = OpenOptions::new().read(true).write(true).open(replica.join("extents"));
    let extents = extents.expect("the extents");
    let mut byte = [0];
    extents.read_exact_at(&mut byte, EXTENTS_HEADER + WRONG).expect("reads");
    assert_eq!(byte, [0x5a], "the block is in the extents");
    extents.write_all_at(&[byte[0] ^ 1], EXTENTS_HEADER + WRONG).expect("writes");
}

#[tokio::test]
async fn a_damaged_block_is_an_error_that_operators_see() {
    let dir = tempfile::tempdir().expect("dir");
    let cluster = cluster(dir.path()).await;
    let node = cluster.file().datanodes[0].clone();
    let client = NbdClient::connect(&node.nbd, "v").await.expect("connects");
    for n in 0..WRITTEN {
        client.write(n * MIB, Bytes::from(vec![0x5a; MIB as usize])).await.expect("writes");
    }
    checkpointed(&node.http).await;
    page(&node.http, "/diagnose", "no complaint", |page| page["well"] == true).await;

    flip(&node.data_dir);
    let damaged = client.read(MIB, 8192).await.expect_err("the data is wrong");
    assert!(matches!(damaged, NbdError::Request { errno: 5, .. }), "{damaged}");
    let whole = client.read(MIB + 4096, 4096).await.expect("the block beside it");
    assert!(whole.iter().all(|byte| *byte == 0x5a));

    let diagnosis: Value = get_json(&node.http, "/diagnose").await.expect("a page");
    // Beside it there may be others, as of a machine that is busy.
    let told = "1 blocks did not match their checksums in this process, and 1 of them no other";
    assert!(diagnosis["complaints"].to_string().contains(told), "{diagnosis}");
    let log = &logs(&cluster)[0];
    assert!(log.contains("no other replica is in sync") && log.contains("extents"), "{log}");
    let info = cluster.client().get_volume("v").await.expect("answers");
    let report = compare(&info, LIMIT).await.expect("compares");
    assert!(!report.is_clean());
    cluster.stop().await.expect("stops");
}
