//! A volume with written acknowledgements on real processes: what a kill leaves is in the page cache and
//! counts; what a loss of power may have taken does not. A loss of power is what a replica's tail says:
//! these tests take the file away in which it is kept, as a boot would.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::process::Signal;
use sbk_cli::cluster_file::DatanodeEntry;
use sbk_cli::dev::cluster::{DevCluster, Options};
use sbk_cli::view::VolumeView;
use sbk_cli::wait::{self, Look};
use sbk_cli::workload::history::History;
use sbk_cli::workload::load::{Load, LoadOptions, read_back};
use sbk_cli::workload::nbd::NbdClient;
use tempfile::TempDir;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(120);
const BLOCK: usize = 4096;
/// The part of the volume that the load uses.
const USED: u64 = 512;

struct Scene {
    cluster: DevCluster,
    masters: String,
    dir: TempDir,
}

impl Scene {
    /// Three masters, three datanodes, and the volume `v`, made by the tool itself.
    async fn set() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let mut options = Options::new(dir.path().to_owned()).expect("options");
        options.exe = env!("CARGO_BIN_EXE_sbkctl").into();
        options.limit = LIMIT;
        let cluster = DevCluster::start(options).await.expect("starts");
        let masters = cluster.file().master_addrs().join(",");
        let scene = Self { cluster, masters, dir };
        let made = scene.sbkctl(&["volume", "create", "v", "--size=16MiB", "--write-ack=written"]);
        assert!(made.status.success(), "{made:?}");
        scene.wait("all in sync", VolumeView::is_whole).await;
        scene
    }

    fn sbkctl(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_sbkctl"))
            .args(["--masters", &self.masters])
            .args(args)
            .env("XDG_STATE_HOME", self.dir.path())
            .stdin(std::process::Stdio::null())
            .output()
            .expect("runs")
    }

    fn told(&self, args: &[&str]) -> String {
        let output = self.sbkctl(args);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("utf-8")
    }

    fn told_json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.told(&[&["-o", "json"], args].concat())).expect("json")
    }

    /// Waits for what the masters tell of the volume; what can't be asked for is not there yet.
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

    fn datanodes(&self) -> Vec<DatanodeEntry> {
        self.cluster.file().datanodes.clone()
    }

    fn entry(&self, node: &str) -> DatanodeEntry {
        self.datanodes().into_iter().find(|d| d.id == node).expect("a datanode")
    }

    async fn connect(&self, node: &str) -> NbdClient {
        NbdClient::connect(&self.entry(node).nbd, "v").await.expect("connects")
    }

    /// All of them at once: while one is waited for, others would do without it.
    fn kill(&mut self, nodes: &[String]) {
        for node in nodes {
            let which = self.cluster.which(node).expect("a datanode");
            self.cluster.signal(which, Signal::KILL);
        }
        for node in nodes {
            self.cluster.kill_datanode(node).expect("kills");
        }
    }

    fn start(&mut self, nodes: &[String]) {
        for node in nodes {
            self.cluster.start_datanode(node).expect("starts");
        }
    }

    /// Where a node that `sbkctl dev` started keeps the tails of its replicas.
    fn tails(&self, node: &str) -> PathBuf {
        let mut dir = self.entry(node).data_dir.into_os_string();
        dir.push("-run");
        PathBuf::from(dir).join("tails")
    }

    /// What a boot does to a directory in memory, while the node's process does not run.
    fn lose_tail(&self, node: &str) {
        let tails = self.tails(node);
        let kept = std::fs::read_dir(&tails).expect("tails are kept").count();
        assert_eq!(kept, 1, "the tail of the volume's replica is in {}", tails.display());
        std::fs::remove_dir_all(tails).expect("removes");
    }

    async fn start_load(&self, client: &NbdClient, history: &Arc<History>, seed: u64) -> Load {
        let options = LoadOptions { blocks: USED, depth: 8, seed, ..LoadOptions::default() };
        let load = Load::start(client.clone(), Arc::clone(history), options).expect("a load");
        self.goes_on(&load).await;
        load
    }

    /// Waits until the load got some hundred more answers.
    async fn goes_on(&self, load: &Load) {
        let before = load.stats().writes;
        wait::until("writes", LIMIT, async || {
            let stats = load.stats();
            anyhow::ensure!(stats.first_error.is_none(), "{stats:?}");
            let enough = stats.writes > before + 300;
            Ok(if enough { Look::Done(()) } else { Look::NotYet(format!("{stats:?}")) })
        })
        .await
        .expect("the load goes on");
    }

    async fn check(&self, client: &NbdClient, history: &Arc<History>) {
        read_back(client, history, USED, |_| ()).await.expect("reads");
        assert_eq!(history.check(), []);
    }
}

fn filled(byte: u8) -> Bytes {
    Bytes::from(vec![byte; BLOCK])
}

fn others(view: &VolumeView, node: &str) -> Vec<String> {
    view.isr.iter().filter(|other| *other != node).cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tool_makes_one_shows_it_and_refuses_what_does_not_go_together() {
    let scene = Scene::set().await;
    assert!(scene.told(&["volume", "list"]).contains("sync_all, written"));
    assert!(scene.told(&["volume", "show", "v"]).contains("sync_all, acknowledged when written"));
    let shown = scene.told_json(&["volume", "show", "v"]);
    assert_eq!(
        (&shown["write_ack"], &shown["durability"]),
        (&"written".into(), &"sync_all".into())
    );
    assert_eq!(shown["may_hold_unflushed"], serde_json::json!([]));
    let listed = scene.told_json(&["volume", "list"]);
    assert_eq!(listed[0]["write_ack"], "written", "{listed}");
    for mode in ["sync_quorum", "best_effort"] {
        let durability = format!("--durability={mode}");
        let args = ["volume", "create", "w", "--size=16MiB", &durability, "--write-ack=written"];
        let refused = scene.sbkctl(&args);
        let words = String::from_utf8(refused.stderr).expect("utf-8");
        assert_eq!(refused.status.code(), Some(1), "{words}");
        assert!(words.contains("sync_all only") && words.contains(mode), "{words}");
    }
    assert_eq!(scene.told_json(&["volume", "list"]).as_array().map(Vec::len), Some(1));
    scene.cluster.stop().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_lose_no_acknowledged_write() {
    let mut scene = Scene::set().await;
    let history = Arc::new(History::new(Uuid::new_v4()));
    // The primary, then a replica, under a client of the third node.
    let view = scene.wait("a primary", VolumeView::is_whole).await;
    let primary = view.primary.clone().expect("there is one");
    let rest = others(&view, &primary);
    let [replica, stays] = &rest[..] else { panic!("three replicas: {view:?}") };
    let client = scene.connect(stays).await;
    let load = scene.start_load(&client, &history, 1).await;
    scene.kill(std::slice::from_ref(&primary));
    scene.goes_on(&load).await;
    scene.start(std::slice::from_ref(&primary));
    let view = scene.wait("the primary is back", VolumeView::is_whole).await;
    assert_ne!(view.primary.as_ref(), Some(&primary));
    let victims = if view.primary.as_ref() == Some(replica) { &primary } else { replica };
    scene.kill(std::slice::from_ref(victims));
    scene.goes_on(&load).await;
    scene.start(std::slice::from_ref(victims));
    scene.wait("the replica is back", VolumeView::is_whole).await;
    let stats = load.stop(LIMIT).await.expect("stops");
    assert_eq!((stats.errors, &stats.first_error), (0, &None));
    scene.check(&client, &history).await;

    // Everything at once, the masters last: what was answered is in the page cache of every member.
    let load = scene.start_load(&client, &history, 2).await;
    let all: Vec<String> = scene.datanodes().into_iter().map(|d| d.id).collect();
    scene.kill(&all);
    for id in 1..=3 {
        scene.cluster.kill_master(id).expect("kills");
    }
    load.stop(LIMIT).await.expect("ends with its connection");
    scene.cluster.start_ended(Duration::ZERO).await.expect("starts");
    let view = scene.wait("all are back", VolumeView::is_whole).await;
    assert_eq!(view.loss_generation, 0, "nothing may be lost: {view:?}");
    let client = scene.connect(stays).await;
    scene.check(&client, &history).await;
    client.disconnect().await;
    let verified = scene.sbkctl(&["volume", "verify", "v"]);
    assert!(verified.status.success(), "{verified:?}");
    scene.cluster.stop().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_lost_its_tail_is_not_promoted_before_it_joined_again() {
    let mut scene = Scene::set().await;
    let view = scene.wait("a primary", VolumeView::is_whole).await;
    let primary = view.primary.clone().expect("there is one");
    let rest = others(&view, &primary);
    let client = scene.connect(&primary).await;
    client.write(0, filled(1)).await.expect("writes");
    scene.kill(&[&rest[..], std::slice::from_ref(&primary)].concat());
    scene.lose_tail(&primary);
    // It is back, the only one, and its run is another: were it promotable, it would be primary now.
    scene.start(std::slice::from_ref(&primary));
    let waits = scene.wait("the masters to meet it", |now| now.reason.contains("lost power")).await;
    assert_eq!((waits.epoch, waits.serving), (view.epoch, false), "{waits:?}");
    assert!(rest.iter().all(|node| waits.reason.contains(node)), "it waits for both: {waits:?}");
    scene.start(&rest);
    let back = scene.wait("all are back", VolumeView::is_whole).await;
    assert_eq!(back.loss_generation, 0, "nothing is lost: {back:?}");
    let history = scene.told(&["volume", "explain", "v"]);
    let first = back.primary.clone().expect("there is one");
    assert!(rest.contains(&first), "one that kept its tail took over: {back:?}\n{history}");
    let client = scene.connect(&primary).await;
    assert_eq!(client.read(0, BLOCK as u32).await.expect("reads"), filled(1));
    // It has joined again, so it counts again: it is promoted when it is the only one left.
    client.disconnect().await;
    let client = scene.connect(&primary).await;
    client.write(0, filled(2)).await.expect("writes");
    scene.kill(std::slice::from_ref(&rest[0]));
    scene.wait("one left", |now| now.serving && now.isr.len() == 2).await;
    scene.kill(std::slice::from_ref(&rest[1]));
    scene.wait("it to take over", |now| now.primary.as_ref() == Some(&primary)).await;
    scene.start(&rest);
    let back = scene.wait("all are back", VolumeView::is_whole).await;
    assert_eq!(back.loss_generation, 0, "{back:?}");
    assert_eq!(client.read(0, BLOCK as u32).await.expect("reads"), filled(2));
    scene.cluster.stop().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_all_lost_power_what_was_flushed_is_there_and_who_is_missing_is_named() {
    let mut scene = Scene::set().await;
    let all: Vec<String> = scene.datanodes().into_iter().map(|d| d.id).collect();
    let client = scene.connect(&all[0]).await;
    client.write(0, filled(1)).await.expect("writes");
    client.flush().await.expect("flushes");
    scene.kill(&all);
    all.iter().for_each(|node| scene.lose_tail(node));
    scene.start(&all);
    let back = scene.wait("it serves", |now| now.serving && now.loss_generation == 1).await;
    assert_eq!(back.may_hold_unflushed, Vec::<String>::new());
    scene.wait("all join", VolumeView::is_whole).await;
    let client = scene.connect(&all[0]).await;
    assert_eq!(client.read(0, BLOCK as u32).await.expect("reads"), filled(1));

    client.write(0, filled(2)).await.expect("writes");
    client.flush().await.expect("flushes");
    scene.kill(&all);
    all.iter().for_each(|node| scene.lose_tail(node));
    let (missing, start) = all.split_last().expect("three");
    scene.start(start);
    let waits = |now: &VolumeView| now.reason.contains("which may hold writes");
    let waits = scene.wait("it to wait for the third", waits).await;
    assert!(!waits.serving && waits.reason.contains(missing), "{waits:?}");
    let goes_on = scene.wait("it goes on", |now| now.serving && now.loss_generation == 2).await;
    assert_eq!(&goes_on.may_hold_unflushed, std::slice::from_ref(missing), "{goes_on:?}");
    assert!(goes_on.reason.contains(missing), "{goes_on:?}");
    for words in [scene.told(&["volume", "show", "v"]), scene.told(&["volume", "list"])] {
        assert!(words.contains("acknowledged and not flushed"), "{words}");
        assert!(words.contains(missing), "{words}");
    }
    let client = scene.connect(&all[0]).await;
    assert_eq!(client.read(0, BLOCK as u32).await.expect("reads"), filled(2));
    scene.start(std::slice::from_ref(missing));
    let whole = scene.wait("it is back", VolumeView::is_whole).await;
    assert_eq!(whole.may_hold_unflushed, Vec::<String>::new(), "it joined: {whole:?}");
    assert!(!whole.reason.contains("not flushed"), "{whole:?}");
    assert_eq!(client.read(0, BLOCK as u32).await.expect("reads"), filled(2));
    scene.cluster.stop().await.expect("stops");
}
