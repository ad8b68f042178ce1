//! `sbkctl drill load` on real processes: it says what happens to a volume whose cluster somebody else
//! harms, and does not take a wrong one for right.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use sbk_cli::args::VolumeSpec;
use sbk_cli::dev::cluster::{DevCluster, Options};
use sbk_cli::workload::nbd::NbdClient;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(120);

async fn cluster() -> (DevCluster, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("dir");
    let mut options = Options::new(dir.path().join("cluster")).expect("options");
    options.exe = env!("CARGO_BIN_EXE_sbkctl").into();
    options.limit = LIMIT;
    options.volumes.push(VolumeSpec { name: "v".into(), size: 64 << 20 });
    (DevCluster::start(options).await.expect("starts"), dir)
}

/// What `sbkctl volume verify` finds.
fn verify(cluster: &DevCluster) -> Value {
    let masters = cluster.file().master_addrs().join(",");
    let mut command = Command::new(env!("CARGO_BIN_EXE_sbkctl"));
    command.args(["volume", "verify", "v", "-o", "json", "--masters", &masters]);
    let output = tokio::task::block_in_place(|| command.output().expect("runs"));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// A load that runs; killed when dropped.
struct Load {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Drop for Load {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Load {
    fn start(cluster: &DevCluster, nbd: &str) -> Self {
        let masters = cluster.file().master_addrs().join(",");
        let mut command = Command::new(env!("CARGO_BIN_EXE_sbkctl"));
        command.args(["drill", "load", "v", "--nbd", nbd, "--pace", "4MiB"]);
        command.args(["--masters", &masters]).env_remove("SBK_MASTERS");
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("starts");
        let out = BufReader::new(child.stdout.take().expect("is piped"));
        Self { child, out }
    }

    /// What it answers to a line.
    fn tell(&mut self, line: &str, event: &str) -> Value {
        writeln!(self.child.stdin.as_mut().expect("is piped"), "{line}").expect("takes it");
        self.hear(event)
    }

    fn hear(&mut self, event: &str) -> Value {
        let mut answer = String::new();
        tokio::task::block_in_place(|| self.out.read_line(&mut answer).expect("reads"));
        let answer: Value = serde_json::from_str(&answer).expect("a line of JSON");
        assert_eq!(answer["event"], event, "{answer}");
        answer
    }

    fn exit_code(&mut self) -> Option<i32> {
        tokio::task::block_in_place(|| self.child.wait().expect("ends").code())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_do_to_a_cluster_is_told() {
    let (mut cluster, _dir) = cluster().await;
    let view = cluster.client().get_volume("v").await.expect("is there");
    let primary = view.members.iter().find(|m| m.primary).expect("one is").addr.clone();
    let nodes = cluster.file().datanodes.clone();
    let mut others = nodes.iter().filter(|node| node.listen != primary);
    let (killed, stays) = (others.next().expect("one"), others.next().expect("another"));

    let mut load = Load::start(&cluster, &stays.nbd);
    let before = load.tell("whole", "whole");
    assert_eq!(before["volume"]["primary"], primary.as_str());
    load.tell("phase away", "phase");
    cluster.kill_datanode(&killed.id).expect("dies");
    let gone_on = load.tell("goes-on 0.5", "goes_on");
    assert_eq!(gone_on["phase"]["name"], "away");
    assert!(gone_on["phase"]["load"]["writes"].as_u64() >= Some(200), "{gone_on}");
    load.tell("phase back", "phase");
    cluster.start_ended(Duration::ZERO).await.expect("starts");
    load.tell("whole", "whole");
    let report = load.tell("end", "report")["report"].take();
    assert_eq!((&report["ok"], &report["fault"]), (&Value::Bool(true), &Value::Null), "{report}");
    let phases = report["phases"].as_array().expect("a list");
    let names: Vec<&str> = phases.iter().filter_map(|p| p["name"].as_str()).collect();
    assert_eq!(names, ["begin", "away", "back"]);
    assert!(phases.iter().all(|p| p["load"]["errors"] == 0), "{report}");
    assert_eq!(report["verified"]["replicas"]["compared"].as_array().map(Vec::len), Some(3));
    // Others may have been away for a moment.
    let mut moved = report["moved"].as_array().expect("a list").iter();
    let moved = moved.find(|moved| moved["node"] == killed.listen.as_str()).expect("it is told");
    assert_eq!(moved["route"], "catch_up", "{report}");
    assert!(moved["entries"].as_u64() > Some(0), "{report}");
    assert_eq!(load.exit_code(), Some(0));

    // The content is known by its checksum, as long as nobody writes.
    let content = |report: &Value| report["content"].as_str().map(str::to_owned);
    let held = content(&report["verified"]["replicas"]);
    assert!(held.is_some() && content(&verify(&cluster)) == held, "{report}");

    // What a load before it has written is nothing to the next one, what somebody else writes is.
    let mut load = Load::start(&cluster, &stays.nbd);
    let report = load.tell("end", "report")["report"].take();
    assert_eq!(report["ok"], true, "{report}");
    assert_ne!(content(&report["verified"]["replicas"]), held);
    assert_eq!(load.exit_code(), Some(0));
    let mut load = Load::start(&cluster, &stays.nbd);
    load.tell("phase damage", "phase");
    let foreign = NbdClient::connect(&killed.nbd, "v").await.expect("connects");
    foreign.write(0, Bytes::from(vec![7; 1 << 20])).await.expect("writes");
    let report = load.tell("end", "report")["report"].take();
    assert_eq!(report["ok"], false, "{report}");
    assert!(report["verified"]["violations"].as_u64() > Some(0), "{report}");
    assert_eq!(load.exit_code(), Some(1));

    // Who told it what to do is gone, and with that whoever would read its report.
    let mut load = Load::start(&cluster, &stays.nbd);
    load.tell("phase alone", "phase");
    drop(load.child.stdin.take());
    let report = load.hear("report")["report"].take();
    let fault = report["fault"].as_str().expect("is told");
    assert!(fault.contains("without `end`"), "{fault}");
    assert_eq!(load.exit_code(), Some(1));
    cluster.stop().await.expect("stops");
}
