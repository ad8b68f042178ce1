//! Replicas that move between real processes while a client writes and reads.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use sbk_cli::args::VolumeSpec;
use sbk_cli::cluster_file::ClusterFile;
use sbk_cli::dev::cluster::{DevCluster, Options, Which};
use sbk_cli::wait::{self, Look};
use sbk_cli::workload::history::History;
use sbk_cli::workload::load::{Load, LoadOptions, read_back};
use sbk_cli::workload::nbd::NbdClient;
use tempfile::TempDir;
use uuid::Uuid;

const LIMIT: Duration = Duration::from_secs(120);

struct Bench {
    cluster: DevCluster,
    dir: TempDir,
    file: ClusterFile,
    history: Arc<History>,
}

impl Bench {
    async fn start(datanodes: u64) -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let mut options = Options::new(dir.path().to_owned()).expect("options");
        options.exe = env!("CARGO_BIN_EXE_sbkctl").into();
        options.limit = LIMIT;
        options.wanted.datanodes = Some(datanodes);
        options.volumes.push(VolumeSpec { name: "v".into(), size: 64 << 20 });
        let cluster = DevCluster::start(options).await.expect("the cluster starts");
        let file = ClusterFile::read(dir.path()).expect("is written");
        Self { cluster, dir, file, history: Arc::new(History::new(Uuid::new_v4())) }
    }

    /// A client of the last node, under load.
    async fn load(&self) -> (NbdClient, Load) {
        let nbd = &self.file.datanodes.last().expect("a node").nbd;
        let client = NbdClient::connect(nbd, "v").await.expect("connects");
        let options = LoadOptions { blocks: 512, depth: 4, ..LoadOptions::default() };
        let load = Load::start(client.clone(), Arc::clone(&self.history), options);
        (client, load.expect("a load"))
    }

    fn volume(&self) -> serde_json::Value {
        json(self.dir.path(), &["volume", "show", "v"])
    }

    fn nodes(&self, what: &str) -> Vec<String> {
        nodes(&self.volume(), what)
    }

    /// Waits until all replicas are in sync: on which nodes.
    async fn whole(&self) -> Vec<String> {
        wait::until("all to be in sync", LIMIT, async || {
            let isr = self.nodes("isr");
            Ok(if isr.len() == 3 { Look::Done(isr) } else { Look::NotYet(format!("{isr:?} are")) })
        })
        .await
        .expect("is whole")
    }

    async fn close(self, client: NbdClient, load: Load) {
        let stats = load.stats();
        assert!(stats.writes > 20, "{stats:?}");
        assert_eq!(stats.first_error, None);
        load.stop(LIMIT).await.expect("stops");
        read_back(&client, &self.history, 512, |_| ()).await.expect("reads");
        assert_eq!(self.history.check(), []);
        client.disconnect().await;
        run(self.dir.path(), &["volume", "verify", "v"]);
        self.cluster.stop().await.expect("stops");
    }
}

/// The nodes that a list of a volume names.
fn nodes(volume: &serde_json::Value, what: &str) -> Vec<String> {
    let name =
        |v: &serde_json::Value| v["node"].as_str().or(v.as_str()).expect("a node").to_owned();
    volume[what].as_array().expect("a list").iter().map(name).collect()
}

fn sbkctl(dir: &Path, args: &[&str]) -> std::process::Output {
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

fn run(dir: &Path, args: &[&str]) -> String {
    let output = sbkctl(dir, args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {said}");
    String::from_utf8(output.stdout).expect("text")
}

fn json(dir: &Path, args: &[&str]) -> serde_json::Value {
    let args: Vec<_> = args.iter().copied().chain(["-o", "json"]).collect();
    serde_json::from_str(&run(dir, &args)).expect("JSON")
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_move_are_drained_and_are_made_anew_under_a_load() {
    let bench = Bench::start(4).await;
    let (client, load) = bench.load().await;
    let dir = bench.dir.path();
    let (holders, primary) = (bench.nodes("members"), bench.volume()["primary"].clone());
    let all: Vec<String> = bench.file.datanodes.iter().map(|d| d.id.clone()).collect();
    let spare = all.iter().find(|n| !holders.contains(n)).expect("one of four is spare").clone();
    let follower = holders.iter().find(|n| primary != n.as_str()).expect("a follower").clone();

    // What a command waited for it prints; a look after it may find a replica that stood still since.
    let isr =
        nodes(&json(dir, &["volume", "move", "v", "--from", &follower, "--to", &spare]), "isr");
    assert!(isr.contains(&spare) && !isr.contains(&follower) && isr.len() == 3, "{isr:?}");

    run(dir, &["node", "drain", &spare]);
    assert_eq!(json(dir, &["node", "show", &spare])["duty"], "drained");
    let isr = bench.whole().await;
    assert!(!isr.contains(&spare) && isr.contains(&follower), "{isr:?}");

    // The spare one is drained, so a replica can be made anew on its own node only.
    let before = std::fs::read_dir(replicas(&bench, &follower)).expect("a directory").count();
    let replaced = json(dir, &["volume", "replace", "v", "--node", &follower, "--yes"]);
    assert_eq!(nodes(&replaced, "isr").len(), 3);
    assert!(nodes(&replaced, "members").contains(&follower));
    assert_eq!(
        std::fs::read_dir(replicas(&bench, &follower)).expect("a directory").count(),
        before
    );
    // What left is removed from its node once that has heard of it.
    let left = replicas(&bench, &spare);
    wait::until("the moved replica's directory to go", LIMIT, async || {
        let found = std::fs::read_dir(&left).expect("a directory").count();
        Ok(if found == 0 { Look::Done(()) } else { Look::NotYet(format!("{found} left")) })
    })
    .await
    .expect("is removed");
    run(dir, &["node", "undrain", &spare]);
    bench.close(client, load).await;
}

fn replicas(bench: &Bench, node: &str) -> std::path::PathBuf {
    let entry = bench.file.datanodes.iter().find(|d| d.id == node).expect("a node");
    Path::new(&entry.data_dir).join("replicas")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_alive_is_not_removed_and_bad_names_are_refused_in_words() {
    let bench = Bench::start(3).await;
    let dir = bench.dir.path();
    let node = bench.nodes("members")[0].clone();
    let refused = |args: &[&str], text: &str| {
        let output = sbkctl(dir, args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert!(said.contains(text), "{args:?}: {said}");
    };
    refused(&["node", "remove", &node, "--yes"], "is alive, and would join again");
    refused(&["volume", "move", "v", "--from", &node, "--to", &node], "holds a replica of volume");
    refused(&["volume", "replace", "w", "--node", &node, "--yes"], "no volume");
    refused(&["node", "drain", "nobody"], "no datanode is called");
    // Without a spare node a drained one keeps its replicas, and it is said why.
    run(dir, &["node", "drain", &node, "--no-wait"]);
    wait::until("the reason", LIMIT, async || {
        let reason = bench.volume()["reason"].as_str().expect("text").to_owned();
        let told = reason.contains("no other node that is alive has room");
        Ok(if told { Look::Done(()) } else { Look::NotYet(reason) })
    })
    .await
    .expect("is told");
    assert!(bench.whole().await.contains(&node), "it keeps its replica");
    bench.cluster.stop().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_is_handed_over_under_a_load_and_no_client_sees_an_error() {
    let bench = Bench::start(4).await;
    let (client, load) = bench.load().await;
    let dir = bench.dir.path();
    bench.whole().await;
    let holders = bench.nodes("members");
    for round in 0..2 {
        for node in &holders {
            bench.whole().await;
            let moved = json(dir, &["volume", "move", "v", "--primary-to", node]);
            assert_eq!(moved["primary"], node.as_str(), "round {round}");
            // Nobody left by it.
            assert_eq!(nodes(&moved, "isr").len(), 3);
        }
    }
    // It is the primary already. A replica that stands still may bring an epoch of its own, but not each time.
    let mut epochs = Vec::new();
    let stays = (0..5).any(|_| {
        let before = bench.volume()["epoch"].clone();
        let last = holders.last().expect("three");
        let after = json(dir, &["volume", "move", "v", "--primary-to", last])["epoch"].clone();
        epochs.push((before, after));
        epochs.iter().any(|(before, after)| before == after)
    });
    assert!(stays, "{epochs:?}");

    // The primary's own replica moves: the role goes first, and nothing fails over.
    bench.whole().await;
    let primary = bench.volume()["primary"].as_str().expect("one").to_owned();
    let all: Vec<String> = bench.file.datanodes.iter().map(|d| d.id.clone()).collect();
    let spare = all.iter().find(|n| !holders.contains(n)).expect("one of four is spare").clone();
    let moved = json(dir, &["volume", "move", "v", "--from", &primary, "--to", &spare]);
    let isr = nodes(&moved, "isr");
    assert!(isr.contains(&spare) && !isr.contains(&primary) && isr.len() == 3, "{isr:?}");
    let second = moved["primary"].as_str().expect("one").to_owned();
    assert_ne!(second, primary);
    run(dir, &["node", "drain", &second]);
    assert!(!bench.nodes("members").contains(&second));
    run(dir, &["node", "undrain", &second]);
    bench.close(client, load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handover_that_can_not_be_is_refused_or_waits_in_words() {
    let bench = Bench::start(4).await;
    let dir = bench.dir.path();
    let holders = bench.nodes("members");
    let all: Vec<String> = bench.file.datanodes.iter().map(|d| d.id.clone()).collect();
    let spare = all.iter().find(|n| !holders.contains(n)).expect("one of four is spare").clone();
    let refused = |args: &[&str], code: i32, text: &str| {
        let output = sbkctl(dir, args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(text), "{args:?}: {said}");
    };
    refused(&["volume", "move", "v", "--primary-to", &spare], 1, "holds no replica of volume 'v'");
    refused(&["volume", "move", "v", "--primary-to", "nobody"], 1, "no datanode is called");
    refused(&["volume", "move", "v"], 2, "--primary-to");
    let both = ["volume", "move", "v", "--primary-to", &spare, "--from", &spare, "--to", &spare];
    refused(&both, 2, "cannot be used with");
    let primary = bench.volume()["primary"].as_str().expect("one").to_owned();
    let other = holders.iter().find(|n| **n != primary).expect("another").clone();
    run(dir, &["node", "drain", &other, "--no-wait"]);
    refused(&["volume", "move", "v", "--primary-to", &other], 1, "drained or removed");
    bench.cluster.stop().await.expect("stops");
}

/// What a datanode that could not hand over in time says of it when it stops, if it does: that is failed
/// over then.
fn could_not(log: &str) -> bool {
    let said = log.lines().rev().find(|line| line.contains("handed over"));
    said.is_some_and(|said| said.contains("is not handed over") || !said.contains("left=0"))
}

/// A datanode that is told to stop hands over first, so that it is no failover; and comes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_datanode_that_is_told_to_stop_hands_its_primaries_over() {
    let mut bench = Bench::start(3).await;
    let (client, load) = bench.load().await;
    // The client's connection ends with its own node.
    let last = bench.file.datanodes.len() - 1;
    let masters = bench.cluster.client();
    bench.whole().await;
    let mut handed_over = 0;
    for round in 0..24 {
        let target = bench.file.datanodes[round % last].id.clone();
        run(bench.dir.path(), &["volume", "move", "v", "--primary-to", &target]);
        let before = masters.get_volume("v").await.expect("is told");
        let before = before.config.expect("an epoch");
        let primary = before.primary.expect("a primary");
        let which = Which::Datanode(round % last);
        bench.cluster.signal(which, Signal::TERM);
        let log = wait::until("the datanode to end", LIMIT, async || {
            Ok(match bench.cluster.how_ended(which) {
                Some((status, log)) => {
                    assert!(status.success(), "{status}: {log}");
                    Look::Done(log)
                }
                None => Look::NotYet("it runs".into()),
            })
        })
        .await
        .expect("ends");
        let after = masters.get_volume("v").await.expect("is told").config.expect("an epoch");
        if after.handed_over_by.as_ref() == Some(&primary) {
            handed_over += 1;
        } else if !could_not(&log) && after.epoch == before.epoch + 1 {
            // Later epochs don't say it: one who stopped has left by then.
            let story = sbkctl(bench.dir.path(), &["volume", "explain", "v"]);
            let story = String::from_utf8_lossy(&story.stdout).into_owned();
            panic!("round {round}: {after:?} was not handed over by {primary:?}\n{story}\n{log}");
        }
        bench.cluster.start_again(which).expect("starts");
        bench.whole().await;
        if handed_over == 4 {
            break;
        }
    }
    assert_eq!(handed_over, 4);
    bench.close(client, load).await;
}
