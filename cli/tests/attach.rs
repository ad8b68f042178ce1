//! A volume that moves from client to client on real processes: whoever had it before gets errors,
//! and nothing of theirs reaches it any more, also when their datanode stood still meanwhile.

mod support;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use bytes::Bytes;
use rustix::process::{Signal, kill_process};
use sbk_cli::args::VolumeSpec;
use sbk_cli::cluster_file::DatanodeEntry;
use sbk_cli::dev::cluster::{DevCluster, Options};
use sbk_cli::view::VolumeView;
use sbk_cli::wait::{self, Look};
use sbk_cli::workload::nbd::{NbdClient, NbdError};
use serde_json::Value;
use support::freeze;

const LIMIT: Duration = Duration::from_secs(120);
const BLOCK: usize = 4096;
/// Writes that a ghost has in flight.
const FLYING: u64 = 16;

fn filled(byte: u8) -> Bytes {
    Bytes::from(vec![byte; BLOCK])
}

async fn settled(cluster: &DevCluster, what: &str) -> VolumeView {
    let masters = cluster.client();
    wait::until(what, LIMIT, async || {
        wait::answered(masters.get_volume("v").await, |info| {
            let view = VolumeView::of(&info);
            let whole = view.is_whole() && view.serving;
            if whole { Look::Done(view) } else { Look::NotYet(format!("{view:?}")) }
        })
    })
    .await
    .expect("comes about")
}

/// The datanodes, that of the primary first.
fn by_role(cluster: &DevCluster, view: &VolumeView) -> [DatanodeEntry; 3] {
    let primary = view.primary.as_ref().expect("there is one");
    let mut all = cluster.file().datanodes.clone();
    all.sort_by_key(|node| node.id != *primary);
    all.try_into().expect("three datanodes")
}

/// Attaches exclusively; while the volume has no primary, that takes longer than a client waits.
async fn take(node: &DatanodeEntry) -> NbdClient {
    wait::until("the volume to be attached", LIMIT, async || {
        Ok(match NbdClient::connect(&node.nbd, "v,exclusive").await {
            Ok(client) => Look::Done(client),
            Err(why) => Look::NotYet(why.to_string()),
        })
    })
    .await
    .expect("attaches")
}

/// What a client hears that would share a volume which another has to itself. A datanode that has no word of the
/// primary for two seconds lets it in, and the primary refuses what it asks for then.
async fn refused(node: &DatanodeEntry) -> String {
    wait::until("a client to be refused", LIMIT, async || {
        Ok(match NbdClient::connect(&node.nbd, "v").await {
            Ok(client) => {
                client.read(0, BLOCK as u32).await.expect_err("it is held");
                client.disconnect().await;
                Look::NotYet("it was let in".into())
            }
            Err(why) if why.to_string().contains("exclusively") => Look::Done(why.to_string()),
            Err(why) => Look::NotYet(why.to_string()),
        })
    })
    .await
    .expect("is refused")
}

async fn fails_with_eio(client: &NbdClient) {
    for outcome in [
        client.write(0, filled(0xee)).await,
        client.read(0, BLOCK as u32).await.map(drop),
        client.flush().await,
    ] {
        let why = outcome.expect_err("its attachment has ended");
        assert!(matches!(why, NbdError::Request { .. }), "an error, not silence: {why}");
    }
}

/// Has the holder's datanode stand still with writes in flight while the volume goes to another.
async fn move_from_a_frozen_node(from: &DatanodeEntry, to: &DatanodeEntry, first: u8) {
    let ghost = take(from).await;
    for block in 0..FLYING {
        ghost.write(block * BLOCK as u64, filled(first)).await.expect("writes");
    }
    let pid = freeze(from.pid).await;
    let flying: Vec<_> = (0..FLYING)
        .map(|block| {
            let ghost = ghost.clone();
            tokio::spawn(async move { ghost.write(block * BLOCK as u64, filled(0xee)).await })
        })
        .collect();
    let heir = take(to).await;
    for block in 0..FLYING {
        heir.write(block * BLOCK as u64, filled(first + 1)).await.expect("writes");
    }
    kill_process(pid, Signal::CONT).expect("continues");
    for write in flying {
        let outcome = write.await.expect("runs");
        outcome.expect_err("it came after the volume had gone");
    }
    fails_with_eio(&ghost).await;
    for block in 0..FLYING {
        let read = heir.read(block * BLOCK as u64, BLOCK as u32).await.expect("reads");
        assert_eq!(read, filled(first + 1), "block {block} after the ghost woke up");
    }
    ghost.disconnect().await;
    heir.disconnect().await;
}

fn sbkctl(dir: &Path, args: &[&str]) -> Output {
    tokio::task::block_in_place(|| {
        Command::new(env!("CARGO_BIN_EXE_sbkctl"))
            .args(args)
            .arg("--dir")
            .arg(dir)
            .env_remove("SBK_MASTERS")
            .stdin(Stdio::null())
            .output()
            .expect("runs")
    })
}

fn holders(dir: &Path) -> Vec<Value> {
    let output = sbkctl(dir, &["volume", "attachments", "v", "-o", "json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let shown: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    shown["holders"].as_array().expect("a list").clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_moves_and_its_ghosts_get_errors() {
    let dir = tempfile::tempdir().expect("dir");
    let mut options = Options::new(dir.path().to_owned()).expect("options");
    options.exe = env!("CARGO_BIN_EXE_sbkctl").into();
    options.limit = LIMIT;
    options.volumes.push(VolumeSpec { name: "v".into(), size: 16 << 20 });
    let cluster = DevCluster::start(options).await.expect("starts");
    let [_, x, y] = by_role(&cluster, &settled(&cluster, "three replicas").await);

    // A live holder, and a real client that takes the volume from it on another datanode.
    let shared = NbdClient::connect(&x.nbd, "v").await.expect("connects");
    shared.write(0, filled(1)).await.expect("writes");
    let first = take(&x).await;
    fails_with_eio(&shared).await;
    first.write(0, filled(2)).await.expect("writes");
    let said = refused(&y).await;
    assert!(said.contains(&x.id), "{said}");
    let uri = format!("nbd://{}/v,exclusive", y.nbd);
    let write = ["-f", "raw", "-c", "write -P 3 0 4k", "-c", "read -P 3 0 4k", &uri];
    let output = tokio::task::block_in_place(|| {
        Command::new("qemu-io").args(write).stdin(Stdio::null()).output().expect("qemu-io runs")
    });
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && !said.contains("failed"), "{said}");
    fails_with_eio(&first).await;
    // It left in order: a plain client may have the volume again, and sees what it wrote.
    let plain = wait::until("qemu-io's session to end", LIMIT, async || {
        Ok(match NbdClient::connect(&x.nbd, "v").await {
            Ok(client) => Look::Done(client),
            Err(why) => Look::NotYet(why.to_string()),
        })
    });
    let plain = plain.await.expect("connects");
    assert_eq!(plain.read(0, BLOCK as u32).await.expect("reads"), filled(3));
    for client in [shared, first, plain] {
        client.disconnect().await;
    }

    // Frozen nodes: of a follower, then of the primary, across the failover that this is.
    move_from_a_frozen_node(&x, &y, 10).await;
    let [primary, other, _] = by_role(&cluster, &settled(&cluster, "it is back").await);
    move_from_a_frozen_node(&primary, &other, 20).await;
    let [_, x, y] = by_role(&cluster, &settled(&cluster, "the old primary is back").await);

    // The operator's word, for a holder whose node does not answer.
    let ghost = take(&x).await;
    let all = holders(dir.path());
    assert_eq!(all.len(), 1, "{all:?}");
    assert_eq!((&all[0]["exclusive"], &all[0]["node"]), (&true.into(), &x.id.clone().into()));
    let other = ["volume", "detach", "v", "--yes", "--session", &uuid::Uuid::nil().to_string()];
    assert_eq!(sbkctl(dir.path(), &other).status.code(), Some(1));
    assert_eq!(sbkctl(dir.path(), &["volume", "detach", "v"]).status.code(), Some(2), "it asks");
    let pid = freeze(x.pid).await;
    let session = all[0]["session"].as_str().expect("a name").to_owned();
    let detach = ["volume", "detach", "v", "--yes", "--session", &session];
    let output = sbkctl(dir.path(), &detach);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(holders(dir.path()), Vec::<Value>::new());
    let plain = NbdClient::connect(&y.nbd, "v").await.expect("connects");
    plain.write(0, filled(30)).await.expect("writes");
    kill_process(pid, Signal::CONT).expect("continues");
    fails_with_eio(&ghost).await;
    assert_eq!(plain.read(0, BLOCK as u32).await.expect("reads"), filled(30));
    ghost.disconnect().await;
    plain.disconnect().await;
    cluster.stop().await.expect("stops");
}
