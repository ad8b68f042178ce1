//! A volume that grows and shrinks on real processes, under a load, across the death of its primary.

use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sbk_cli::args::VolumeSpec;
use sbk_cli::dev::cluster::{DevCluster, Options};
use sbk_cli::dev::plan::Wanted;
use sbk_cli::view::VolumeView;
use sbk_cli::wait::{self, Look};
use sbk_cli::workload::history::History;
use sbk_cli::workload::load::{Load, LoadOptions, read_back};
use sbk_cli::workload::nbd::{NbdClient, NbdError};
use serde_json::Value;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;
/// Beyond the first size, in a block of its own.
const FAR: u64 = 60 * MIB + 8192;
/// What the load uses, in blocks.
const USED: u64 = 512;
const ENOSPC: u32 = 28;

struct Scene {
    cluster: DevCluster,
    dir: tempfile::TempDir,
    /// The NBD listener of a node without a replica: what is attached there outlives every failover.
    apart: String,
}

impl Scene {
    /// A volume of 16 MiB on three of four nodes.
    async fn set() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let mut options = Options::new(dir.path().to_owned()).expect("options");
        options.exe = env!("CARGO_BIN_EXE_sbkctl").into();
        options.limit = LIMIT;
        options.wanted = Wanted { masters: Some(3), datanodes: Some(4), base_port: None };
        options.volumes = vec![VolumeSpec { name: "v".into(), size: 16 * MIB }];
        let cluster = DevCluster::start(options).await.expect("starts");
        let mut scene = Self { cluster, dir, apart: String::new() };
        let view = scene.whole().await;
        let holds = |id: &String| view.members.iter().any(|m| m.node == *id);
        let apart = scene.cluster.file().datanodes.iter().find(|d| !holds(&d.id));
        scene.apart = apart.expect("one of four").nbd.clone();
        scene
    }

    async fn wait(&self, what: &str, right: impl Fn(&VolumeView) -> bool) -> VolumeView {
        let masters = self.cluster.client();
        wait::until(what, LIMIT, async || {
            wait::answered(masters.get_volume("v").await, |info| {
                let view = VolumeView::of(&info);
                if right(&view) { Look::Done(view) } else { Look::NotYet(format!("{view:?}")) }
            })
        })
        .await
        .expect("comes about")
    }

    async fn whole(&self) -> VolumeView {
        self.wait("all in sync", VolumeView::is_whole).await
    }

    async fn attach(&self) -> NbdClient {
        NbdClient::connect(&self.apart, "v").await.expect("attaches")
    }

    fn sbkctl(&self, args: &[&str]) -> Output {
        tokio::task::block_in_place(|| {
            Command::new(env!("CARGO_BIN_EXE_sbkctl"))
                .args(args)
                .arg("--dir")
                .arg(self.dir.path())
                .env_remove("SBK_MASTERS")
                .stdin(std::process::Stdio::null())
                .output()
                .expect("runs")
        })
    }

    fn run(&self, args: &[&str]) -> String {
        let output = self.sbkctl(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {said}");
        String::from_utf8(output.stdout).expect("text")
    }

    fn fails(&self, args: &[&str]) -> String {
        let output = self.sbkctl(args);
        assert!(!output.status.success(), "{args:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn shown(&self) -> Value {
        serde_json::from_str(&self.run(&["volume", "show", "v", "-o", "json"])).expect("JSON")
    }

    fn size(&self) -> u64 {
        self.shown()["size_bytes"].as_u64().expect("a size")
    }
}

fn errno(answer: Result<(), NbdError>) -> Option<u32> {
    match answer {
        Err(NbdError::Request { errno, .. }) => Some(errno),
        Ok(()) | Err(_) => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_grows_and_shrinks_under_a_load_and_across_a_failover() {
    let mut scene = Scene::set().await;
    let history = Arc::new(History::new(Uuid::new_v4()));
    let old = scene.attach().await;
    let options = LoadOptions { blocks: USED, depth: 4, ..LoadOptions::default() };
    let load = Load::start(old.clone(), Arc::clone(&history), options).expect("a load");

    scene.run(&["volume", "resize", "v", "64MiB"]);
    assert_eq!(scene.size(), 64 * MIB);
    assert_eq!(old.size(), 16 * MIB, "nobody can tell a connection that is open");
    assert_eq!(errno(old.write(FAR, Bytes::from(vec![1; BLOCK])).await), Some(ENOSPC));
    let new = scene.attach().await;
    assert_eq!(new.size(), 64 * MIB);
    assert_eq!(new.read(FAR, BLOCK as u32).await.expect("reads"), vec![0; BLOCK]);
    let written = Bytes::from(vec![7; BLOCK]);
    new.write(FAR, written.clone()).await.expect("writes");

    let primary = scene.whole().await.primary.expect("a primary");
    scene.cluster.kill_datanode(&primary).expect("is killed");
    scene.wait("another primary", |v| v.serving && v.primary.as_ref() != Some(&primary)).await;
    assert_eq!(new.read(FAR, BLOCK as u32).await.expect("reads"), written);
    assert_eq!(scene.size(), 64 * MIB);

    let told = scene.fails(&["volume", "resize", "v", "32MiB"]);
    assert!(told.contains("--yes"), "{told}");
    let told = scene.fails(&["volume", "resize", "v", "32MiB", "--yes"]);
    assert!(told.contains("keeps its size") && told.contains(&FAR.to_string()), "{told}");
    let shown = scene.shown();
    assert_eq!(shown["size_bytes"].as_u64(), Some(64 * MIB));
    assert_eq!(shown["wished_size_bytes"], Value::Null);
    assert_eq!(shown["size_refused"]["data_at"].as_u64(), Some(FAR));

    new.trim(FAR, BLOCK as u32).await.expect("trims");
    scene.run(&["volume", "resize", "v", "32MiB", "--yes"]);
    assert_eq!((scene.size(), &scene.shown()["size_refused"]), (32 * MIB, &Value::Null));
    for answer in [
        new.write(FAR, written.clone()).await,
        new.trim(32 * MIB, BLOCK as u32).await,
        new.write_zeroes(FAR, BLOCK as u32).await,
    ] {
        assert_eq!(errno(answer), Some(ENOSPC));
    }
    assert!(new.read(FAR, BLOCK as u32).await.is_err(), "there is no such block");
    new.write(32 * MIB - BLOCK as u64, written.clone()).await.expect("the last block");

    scene.run(&["volume", "resize", "v", "64MiB"]);
    let last = scene.attach().await;
    assert_eq!(last.size(), 64 * MIB);
    assert_eq!(last.read(FAR, BLOCK as u32).await.expect("reads"), vec![0; BLOCK]);
    assert_eq!(last.read(32 * MIB - BLOCK as u64, BLOCK as u32).await.expect("reads"), written);

    // The replica that was away for all of it comes back to the same size.
    scene.cluster.start_datanode(&primary).expect("starts");
    scene.whole().await;
    let stats = load.stats();
    assert!(stats.writes > 20, "{stats:?}");
    assert_eq!(stats.first_error, None);
    load.stop(LIMIT).await.expect("stops");
    read_back(&last, &history, USED, |_| ()).await.expect("reads");
    assert_eq!(history.check(), []);
    for client in [old, new, last] {
        client.disconnect().await;
    }
    scene.run(&["volume", "verify", "v"]);
    scene.cluster.stop().await.expect("stops");
}

/// What is wished while nobody can do it waits, claims its room, and can be taken back.
#[tokio::test(flavor = "multi_thread")]
async fn a_resize_without_a_primary_waits_and_can_be_taken_back() {
    let mut scene = Scene::set().await;
    let view = scene.whole().await;
    let holders: Vec<_> = view.members.iter().map(|m| m.node.clone()).collect();
    // Not frozen: a primary that goes on may do what it was told before it hears that it was taken back.
    for node in &holders {
        scene.cluster.kill_datanode(node).expect("is killed");
    }
    scene.run(&["volume", "resize", "v", "64MiB", "--no-wait"]);
    let waits = scene.shown();
    assert_eq!(waits["size_bytes"].as_u64(), Some(16 * MIB), "it is not published");
    assert_eq!(waits["wished_size_bytes"].as_u64(), Some(64 * MIB));
    assert!(scene.run(&["volume", "list"]).contains("16 MiB -> 64 MiB"));
    let other = scene.fails(&["volume", "resize", "v", "128MiB", "--no-wait"]);
    assert!(other.contains("under way"), "{other}");
    scene.run(&["volume", "resize", "v", "16MiB"]);
    assert_eq!(scene.shown()["wished_size_bytes"], Value::Null);
    let bad = scene.fails(&["volume", "resize", "v", "65000000"]);
    assert!(bad.contains("multiple of 4096"), "{bad}");
    for node in &holders {
        scene.cluster.start_datanode(node).expect("starts");
    }
    scene.whole().await;
    assert_eq!(scene.size(), 16 * MIB);
    scene.cluster.stop().await.expect("stops");
}
