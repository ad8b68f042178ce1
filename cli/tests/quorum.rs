//! A `sync_quorum` volume on real processes: a follower that stands still costs nothing, and the
//! primary's kill loses nothing.

use std::time::Duration;

use bytes::Bytes;
use sbk_cli::dev::cluster::{DevCluster, Options};
use sbk_cli::view::VolumeView;
use sbk_cli::wait::{self, Look};
use sbk_cli::workload::nbd::NbdClient;
use sbk_proto::v1;
use sbk_proto::v1::CreateVolumeRequest;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(120);
const BLOCK: usize = 4096;

async fn wait(cluster: &DevCluster, what: &str, right: impl Fn(&VolumeView) -> bool) -> VolumeView {
    let masters = cluster.client();
    wait::until(what, LIMIT, async || {
        wait::answered(masters.get_volume("v").await, |info| {
            let view = VolumeView::of(&info);
            if right(&view) { Look::Done(view) } else { Look::NotYet(format!("{view:?}")) }
        })
    })
    .await
    .expect("comes about")
}

fn filled(byte: u8) -> Bytes {
    Bytes::from(vec![byte; BLOCK])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_majority_goes_on_without_a_stopped_follower_and_after_its_primary_was_killed() {
    let dir = tempfile::tempdir().expect("dir");
    let mut options = Options::new(dir.path().to_owned()).expect("options");
    options.exe = env!("CARGO_BIN_EXE_sbkctl").into();
    options.limit = LIMIT;
    let mut cluster = DevCluster::start(options).await.expect("starts");
    let request = CreateVolumeRequest {
        id: Uuid::new_v4().as_bytes().to_vec().into(),
        name: "v".to_owned(),
        size_bytes: 16 << 20,
        replicas: 3,
        durability: v1::Durability::SyncQuorum.into(),
        ..CreateVolumeRequest::default()
    };
    cluster.client().create_volume(request).await.expect("creates");
    let whole = wait(&cluster, "three voters", VolumeView::is_whole).await;
    let primary = whole.primary.clone().expect("there is one");
    let others: Vec<_> = whole.isr.iter().filter(|node| **node != primary).cloned().collect();
    let [stopped, stays] = &others[..] else { panic!("three voters: {whole:?}") };
    let entry = |node: &str| {
        let all = &cluster.file().datanodes;
        all.iter().find(|d| d.id == node).expect("a datanode").clone()
    };
    let client = NbdClient::connect(&entry(stays).nbd, "v").await.expect("connects");
    client.write(0, filled(1)).await.expect("writes");

    let pid = rustix::process::Pid::from_raw(entry(stopped).pid.cast_signed()).expect("a pid");
    let signal = |signal| rustix::process::kill_process(pid, signal).expect("signals");
    signal(rustix::process::Signal::STOP);
    client.write(0, filled(2)).await.expect("writes");
    client.flush().await.expect("flushes");
    // Suspected by the masters, and still: no other epoch, no shorter list, and it serves.
    let noticed = |view: &VolumeView| {
        view.members.iter().any(|member| member.node == *stopped && member.mode == "degraded")
    };
    let during = wait(&cluster, "the masters to miss it", noticed).await;
    assert!(during.serving && !during.is_whole(), "{during:?}");
    assert_eq!((during.epoch, &during.isr), (whole.epoch, &whole.isr), "{during:?}");
    client.write(BLOCK as u64, filled(3)).await.expect("writes");
    signal(rustix::process::Signal::CONT);
    wait(&cluster, "it is back", VolumeView::is_whole).await;

    cluster.kill_datanode(&primary).expect("kills");
    assert_eq!(client.read(0, BLOCK as u32).await.expect("reads"), filled(2));
    client.write(0, filled(4)).await.expect("writes");
    let after = wait(&cluster, "another primary", |view| {
        view.serving && view.primary.as_ref() != Some(&primary)
    })
    .await;
    assert_eq!(after.isr, whole.isr, "a failover never changes the voters");
    cluster.start_datanode(&primary).expect("starts");
    wait(&cluster, "all are back", VolumeView::is_whole).await;
    assert_eq!(client.read(0, BLOCK as u32).await.expect("reads"), filled(4));
    assert_eq!(client.read(BLOCK as u64, BLOCK as u32).await.expect("reads"), filled(3));
    client.disconnect().await;
    cluster.stop().await.expect("stops");
}
