//! Data that a disk returns wrong, and nobody else has: the client gets an error and never the data, and an
//! operator is told.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use sbk_cli::args::VolumeSpec;
use sbk_cli::commands::verify::compare;
use sbk_cli::dev::cluster::{DevCluster, Options};
use sbk_cli::dev::plan::Wanted;
use sbk_cli::http::get_json;
use sbk_cli::wait::{Look, until};
use sbk_cli::workload::nbd::{NbdClient, NbdError};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;
/// More than what is kept in memory, so that the first of it has to be read back.
const WRITTEN: u64 = 80;
/// Byte of the volume that the disk returns wrong, in the block at 1 MiB.
const WRONG: u64 = MIB + 77;
/// Where the image begins in the file of extents.
const EXTENTS_HEADER: u64 = 4096;

async fn cluster(dir: &Path) -> DevCluster {
    let mut options = Options::new(dir.to_owned()).expect("options");
    options.exe = env!("CARGO_BIN_EXE_sbk-tests-ctl").into();
    options.limit = LIMIT;
    options.wanted = Wanted { masters: Some(1), datanodes: Some(1), base_port: None };
    options.volumes = vec![VolumeSpec { name: "v".into(), size: 128 * MIB }];
    DevCluster::start(options).await.expect("the cluster starts")
}

/// Waits until what was written first is in the extents.
async fn checkpointed(http: &str) {
    until("a checkpoint", LIMIT, async || {
        let page: Value = match get_json(http, "/projection").await {
            Ok(page) => page,
            Err(e) => return Ok(Look::NotYet(e.to_string())),
        };
        let checkpoint = page["volumes"][0]["view"]["checkpoint"].as_u64();
        // One entry for each MiB, after the one that attached the client.
        let done = checkpoint.is_some_and(|lsn| lsn > 8);
        Ok(if done { Look::Done(()) } else { Look::NotYet(format!("it is at {checkpoint:?}")) })
    })
    .await
    .expect("a checkpoint");
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
    until("no complaint", LIMIT, async || {
        let diagnosis: Value = match get_json(&node.http, "/diagnose").await {
            Ok(page) => page,
            Err(e) => return Ok(Look::NotYet(e.to_string())),
        };
        let well = diagnosis["well"] == true;
        Ok(if well { Look::Done(()) } else { Look::NotYet(diagnosis.to_string()) })
    })
    .await
    .expect("it is well");

    flip(&node.data_dir);
    let damaged = client.read(MIB, 8192).await.expect_err("the data is wrong");
    assert!(matches!(damaged, NbdError::Request { errno: 5, .. }), "{damaged}");
    let whole = client.read(MIB + 4096, 4096).await.expect("the block beside it");
    assert!(whole.iter().all(|byte| *byte == 0x5a));

    let diagnosis: Value = get_json(&node.http, "/diagnose").await.expect("a page");
    // Beside it there may be others, as of a machine that is busy.
    let told = "1 blocks did not match their checksums in this process, and 1 of them no other";
    assert!(diagnosis["complaints"].to_string().contains(told), "{diagnosis}");
    let log = std::fs::read_to_string(dir.path().join("logs/datanode-1.log")).expect("a log");
    assert!(log.contains("no other replica is in sync") && log.contains("extents"), "{log}");
    let info = cluster.client().get_volume("v").await.expect("answers");
    let report = compare(&info, LIMIT).await.expect("compares");
    assert!(!report.is_clean());
    cluster.stop().await.expect("stops");
}
