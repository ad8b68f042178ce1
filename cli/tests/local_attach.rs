//! `sbkctl attach` on real processes: its client sees no error while whatever serves the volume goes,
//! nobody else gets in, and what it acknowledged is durable when it ends.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::process::{Pid, Signal, kill_process};
use sbk_cli::args::VolumeSpec;
use sbk_cli::attach::Record;
use sbk_cli::dev::cluster::{DevCluster, Options, Which};
use sbk_cli::view::VolumeView;
use sbk_cli::wait::{self, Look};
use sbk_cli::workload::history::History;
use sbk_cli::workload::load::{Load, LoadOptions, read_back};
use sbk_cli::workload::nbd::NbdClient;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(120);
const BLOCK: usize = 4096;
const BLOCKS: u64 = 2048;
/// For so long the end of an attachment waits for the primary to hear of it.
const LEAVE: Duration = Duration::from_secs(2);

/// The cluster, and where this machine's attachments are noted.
struct Scene {
    cluster: DevCluster,
    run: PathBuf,
    _dir: tempfile::TempDir,
}

impl Scene {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let mut options = Options::new(dir.path().join("cluster")).expect("options");
        options.exe = env!("CARGO_BIN_EXE_sbkctl").into();
        options.limit = LIMIT;
        options.volumes.push(VolumeSpec { name: "v".into(), size: 16 << 20 });
        let cluster = DevCluster::start(options).await.expect("starts");
        Self { cluster, run: dir.path().join("run"), _dir: dir }
    }

    fn command(&self, run: &Path, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sbkctl"));
        let masters = self.cluster.file().master_addrs().join(",");
        command.args(args).args(["--masters", &masters]).env("SBK_RUN_DIR", run);
        command.env_remove("SBK_MASTERS").stdin(Stdio::null());
        command
    }

    fn sbkctl(&self, args: &[&str]) -> Output {
        let mut command = self.command(&self.run, args);
        tokio::task::block_in_place(|| command.output().expect("runs"))
    }

    /// Attaches, and returns when clients can connect.
    fn attach(&self, run: &Path, args: &[&str]) -> Attachment {
        let mut command = self.command(run, &[&["attach", "v", "-o", "json"], args].concat());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let mut attachment = Attachment { child, record: None };
        let out = attachment.child.stdout.take().expect("is piped");
        let mut told = String::new();
        tokio::task::block_in_place(|| {
            for line in BufReader::new(out).lines() {
                told += &line.expect("reads");
                if let Ok(record) = serde_json::from_str(&told) {
                    attachment.record = Some(record);
                    return;
                }
            }
            panic!("it ended: {}", attachment.said());
        });
        attachment
    }

    /// Waits until all replicas are in sync.
    async fn whole(&self) -> VolumeView {
        let masters = self.cluster.client();
        wait::until("all replicas to be in sync", LIMIT, async || {
            wait::answered(masters.get_volume("v").await, |info| {
                let view = VolumeView::of(&info);
                let whole = view.is_whole() && view.serving;
                if whole { Look::Done(view) } else { Look::NotYet(format!("{view:?}")) }
            })
        })
        .await
        .expect("comes about")
    }
}

/// A `sbkctl attach`; killed when dropped.
struct Attachment {
    child: Child,
    record: Option<Record>,
}

impl Drop for Attachment {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Attachment {
    fn uri(&self) -> &str {
        &self.record.as_ref().expect("is told").uri
    }

    async fn connect(&self) -> Result<NbdClient, sbk_cli::workload::nbd::NbdError> {
        let addr = self.uri().strip_prefix("nbd://").and_then(|uri| uri.strip_suffix("/v"));
        NbdClient::connect(addr.expect("is at an address"), "v").await
    }

    async fn ends(&mut self) -> ExitStatus {
        wait::until("sbkctl attach to end", LIMIT, async || {
            Ok(self.child.try_wait()?.map_or_else(|| Look::NotYet("it runs".into()), Look::Done))
        })
        .await
        .expect("ends")
    }

    fn said(&mut self) -> String {
        let mut text = String::new();
        let errors = self.child.stderr.as_mut().expect("is piped");
        std::io::Read::read_to_string(errors, &mut text).expect("reads");
        text
    }
}

/// Waits until the load got 200 more writes acknowledged, or a request failed.
async fn goes_on(load: &Load) {
    let before = load.stats().writes;
    wait::until("200 writes", LIMIT, async || {
        let stats = load.stats();
        let enough = stats.writes >= before + 200 || stats.errors > 0;
        Ok(if enough { Look::Done(()) } else { Look::NotYet(format!("{stats:?}")) })
    })
    .await
    .expect("goes on");
}

fn fails(output: &Output, code: i32, word: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(code) && said.contains(word), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attached_volume_outlives_all_that_serves_it() {
    let mut scene = Scene::new().await;
    scene.whole().await;
    let mut attached = scene.attach(&scene.run, &["--listen", "127.0.0.1:0"]);
    let client = attached.connect().await.expect("connects");
    let history = Arc::new(History::new(Uuid::new_v4()));
    let options =
        LoadOptions { blocks: BLOCKS, depth: 8, pace: Some(8 << 20), ..LoadOptions::default() };
    let load = Load::start(client.clone(), Arc::clone(&history), options).expect("starts");
    goes_on(&load).await;

    // Nobody gets in beside its client, and nobody takes its place on this machine.
    let refused = attached.connect().await.expect_err("there is a client").to_string();
    assert!(refused.contains("another client"), "{refused}");
    fails(&scene.sbkctl(&["attach", "v", "--listen", "127.0.0.1:0"]), 1, "sbkctl detach");

    // Each datanode goes, the primary's first; then all masters, and then a primary without them.
    let primary = scene.whole().await.primary.expect("there is one");
    let mut nodes: Vec<String> =
        scene.cluster.file().datanodes.iter().map(|d| d.id.clone()).collect();
    nodes.sort_by_key(|node| *node != primary);
    for node in &nodes {
        scene.cluster.kill_datanode(node).expect("dies");
        goes_on(&load).await;
        scene.cluster.start_ended(Duration::ZERO).await.expect("starts");
        scene.whole().await;
    }
    let masters = 0..scene.cluster.file().masters.len();
    for master in masters.clone() {
        scene.cluster.kill(Which::Master(master));
    }
    goes_on(&load).await;
    let (_, ended) = (scene.cluster.ended(), masters.map(Which::Master));
    for master in ended {
        scene.cluster.start_again(master).expect("starts");
    }
    scene.whole().await;
    let primary = scene.whole().await.primary.expect("there is one");
    scene.cluster.kill_datanode(&primary).expect("dies");
    goes_on(&load).await;
    scene.cluster.start_ended(Duration::ZERO).await.expect("starts");

    let stats = load.stop(LIMIT).await.expect("all is answered");
    assert_eq!(stats.errors, 0, "{stats:?}");
    read_back(&client, &history, BLOCKS, |_| {}).await.expect("reads");
    assert_eq!(history.check(), []);

    // The client is still there: what it was told is durable, and it is told that this is the end.
    let output = scene.sbkctl(&["detach", "v"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(attached.ends().await.code(), Some(0), "{}", attached.said());
    client.read(0, BLOCK as u32).await.expect_err("it has ended");
    fails(&scene.sbkctl(&["detach", "v"]), 1, "not attached on this machine");
    scene.cluster.stop().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attachment_is_taken_over_and_ends_with_its_volume() {
    let scene = Scene::new().await;
    scene.whole().await;
    fails(&scene.sbkctl(&["attach", "w"]), 1, "w");
    fails(&scene.sbkctl(&["attach", "v", "--listen", "0.0.0.0:0"]), 2, "authentication");

    // Real clients at the default socket; shared, there may be several.
    let mut shared = scene.attach(&scene.run, &["--shared"]);
    let uri = shared.uri().to_owned();
    assert!(uri.starts_with("nbd+unix:///v?socket="), "{uri}");
    let run = |program: &str, args: &[&str]| {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null());
        let output = tokio::task::block_in_place(|| command.output().expect("runs"));
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && !said.contains("failed"), "{said} {output:?}");
        said
    };
    assert!(run("nbdinfo", &[&uri]).contains("can_multi_conn: true"));
    run("qemu-io", &["-f", "raw", "-c", "write -P 7 0 64k", "-c", "flush", &uri]);
    assert!(scene.sbkctl(&["detach", "v"]).status.success());
    assert_eq!(shared.ends().await.code(), Some(0), "{}", shared.said());

    // Another machine takes the volume: the one that had it gets errors from there on.
    let here = scene.attach(&scene.run, &["--listen", "127.0.0.1:0"]);
    let ghost = here.connect().await.expect("connects");
    assert_eq!(ghost.read(0, BLOCK as u32).await.expect("reads"), vec![7; BLOCK]);
    let elsewhere = scene.run.with_extension("elsewhere");
    let mut there = scene.attach(&elsewhere, &["--listen", "127.0.0.1:0"]);
    let client = there.connect().await.expect("connects");
    client.write(0, Bytes::from(vec![8; BLOCK])).await.expect("writes");
    ghost.write(0, Bytes::from(vec![9; BLOCK])).await.expect_err("its attachment has ended");
    ghost.disconnect().await;
    assert_eq!(client.read(0, BLOCK as u32).await.expect("reads"), vec![8; BLOCK]);

    // A client that goes leaves room for the next one, also when it was killed.
    client.disconnect().await;
    let next = wait::until("room for another client", LIMIT, async || {
        Ok(match there.connect().await {
            Ok(client) => Look::Done(client),
            Err(why) => Look::NotYet(why.to_string()),
        })
    });
    let next = next.await.expect("connects");
    assert_eq!(next.read(0, BLOCK as u32).await.expect("reads"), vec![8; BLOCK]);

    scene.cluster.client().delete_volume("v").await.expect("deletes");
    assert_eq!(there.ends().await.code(), Some(1));
    assert!(there.said().contains("was deleted"));
    let pid = Pid::from_child(&here.child);
    kill_process(pid, Signal::KILL).expect("runs");
    scene.cluster.stop().await.expect("stops");
}

/// [The end of an attachment was told while it was still on its way to the primary, or never left.]
#[tokio::test(flavor = "multi_thread")]
async fn a_detached_volume_is_anybodys_at_once() {
    let scene = Scene::new().await;
    scene.whole().await;
    let nodes: Vec<_> = scene.cluster.file().datanodes.iter().map(|d| d.nbd.clone()).collect();
    for (round, node) in (1..).zip(nodes.iter().cycle().take(6)) {
        let mut here = scene.attach(&scene.run, &["--listen", "127.0.0.1:0"]);
        let client = here.connect().await.expect("connects");
        client.write(0, Bytes::from(vec![round; BLOCK])).await.expect("writes");
        let began = Instant::now();
        assert!(scene.sbkctl(&["detach", "v"]).status.success());
        assert_eq!(here.ends().await.code(), Some(0), "{}", here.said());
        // It shares the volume, which nobody may with one who has it to itself. The end is waited for until the
        // primary has heard of it, for two seconds at most: after so long it may still be on its way.
        let in_time = began.elapsed() < LEAVE;
        let other = wait::until("the volume to be free", LIMIT, async || {
            Ok(match NbdClient::connect(node, "v").await {
                Ok(client) => Look::Done(client),
                Err(why) if in_time => panic!("it is not free: {why}"),
                Err(why) => Look::NotYet(why.to_string()),
            })
        });
        let other = other.await.expect("is free");
        assert_eq!(other.read(0, BLOCK as u32).await.expect("reads"), vec![round; BLOCK]);
        other.disconnect().await;
    }
    scene.cluster.stop().await.expect("stops");
}
