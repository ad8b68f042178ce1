//! `sbkctl drill chaos` as a process: each class of faults once, what it does when something is wrong,
//! and what it leaves behind.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use sbk_cli::cluster_file::ClusterFile;
use sbk_cli::wait::{self, Look};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(120);

/// Where a drill makes its cluster; kept if the test fails, with what the drill kept.
struct Home(Option<tempfile::TempDir>);

impl Home {
    fn new() -> Self {
        Self(Some(tempfile::tempdir().expect("dir")))
    }

    fn path(&self) -> &Path {
        self.0.as_ref().expect("it is there until it is dropped").path()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(dir) = self.0.take()
        {
            eprintln!("what there is to look at is in {}", dir.keep().display());
        }
    }
}

/// A drill; killed when dropped, and its cluster with it.
struct Drill {
    process: Child,
    stderr: BufReader<std::process::ChildStderr>,
}

impl Drop for Drill {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.process.kill();
        let _reaped = self.process.wait();
    }
}

impl Drill {
    fn start(home: &Path, args: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_sbkctl"))
            .args(["drill", "chaos", "-o", "json"])
            .args(args)
            .env("TMPDIR", home)
            .env_remove("SBK_MASTERS")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let stderr = BufReader::new(process.stderr.take().expect("is piped"));
        Self { process, stderr }
    }

    /// Reads on until it says `part`.
    fn says(&mut self, part: &str) {
        let mut said = String::new();
        while !said.lines().last().is_some_and(|line| line.contains(part)) {
            let read = self.stderr.read_line(&mut said).expect("reads");
            assert!(read > 0, "it ended without saying '{part}':\n{said}");
        }
    }

    /// Its exit code, its report, and what else it said.
    fn end(mut self) -> (Option<i32>, Value, String) {
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).expect("reads");
        let mut report = String::new();
        let stdout = self.process.stdout.as_mut().expect("is piped");
        stdout.read_to_string(&mut report).expect("reads");
        let status = self.process.wait().expect("ends");
        let report = serde_json::from_str(&report).unwrap_or(Value::Null);
        (status.code(), report, said)
    }
}

fn left_in(home: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(home).expect("reads").map(|e| e.expect("reads").file_name());
    entries.map(|name| name.to_string_lossy().into_owned()).collect()
}

/// No process serves anything in `home`, and nothing is mounted there.
fn nothing_is_left_of(home: &Path) {
    let home = home.to_str().expect("utf-8");
    let mounts = std::fs::read_to_string("/proc/mounts").expect("reads");
    assert!(!mounts.contains(home), "{mounts}");
    for entry in std::fs::read_dir("/proc").expect("reads") {
        let path = entry.expect("reads").path().join("cmdline");
        // Others come and go meanwhile.
        let Ok(line) = std::fs::read(path) else { continue };
        let line = String::from_utf8_lossy(&line).into_owned();
        assert!(!line.contains(home), "{line}");
    }
}

#[test]
fn every_class_of_faults_is_survived() {
    let home = Home::new();
    let (code, report, said) = Drill::start(home.path(), &["--faults", "25", "--seed", "1"]).end();
    assert_eq!(code, Some(0), "{report:#}\n{said}");
    assert_eq!(report["ok"], true);
    let count = |key: &str| report[key].as_object().expect("an object").len();
    assert_eq!(count("faults") + count("unavailable"), 25, "{report:#}");
    assert!(report["checks"].as_u64() >= Some(1), "{report:#}");
    for word in ["promoted", "fenced", "ready", "healthy"] {
        assert!(report["decisions"][word].as_u64() > Some(0), "{word}: {report:#}");
    }
    for volume in report["volumes"].as_array().expect("volumes") {
        assert!(volume["writes"].as_u64() > Some(0), "{volume:#}");
        assert!(volume["reads"].as_u64() > Some(0), "{volume:#}");
    }
    assert_eq!(left_in(home.path()), Vec::<String>::new());
    nothing_is_left_of(home.path());
}

/// Whoever is not root has no namespaces; that costs some classes of faults, not the drill.
#[test]
fn without_namespaces_the_rest_is_tried_and_what_is_not_is_told() {
    let home = Home::new();
    let args = ["--faults", "4", "--seed", "2", "--network", "loopback"];
    let (code, report, said) = Drill::start(home.path(), &args).end();
    assert_eq!(code, Some(0), "{report:#}\n{said}");
    assert!(said.contains("no partitions, no full disk"), "{said}");
    assert_eq!(report["unavailable"].as_object().expect("an object").len(), 8, "{report:#}");
}

#[tokio::test]
async fn a_process_that_ends_by_itself_fails_the_drill_and_everything_is_kept() {
    let home = Home::new();
    let mut drill = Drill::start(home.path(), &["--minutes", "60", "--seed", "3"]);
    drill.says("volumes serve");
    let dir = home.path().join(&left_in(home.path())[0]);
    // One that the schedule has killed at that moment is dead already.
    wait::until("a datanode that runs", LIMIT, async || {
        let pid = ClusterFile::read(&dir)?.datanodes[0].pid;
        let pid = Pid::from_raw(i32::try_from(pid)?).expect("a pid");
        Ok(match kill_process(pid, Signal::KILL) {
            Ok(()) => Look::Done(()),
            Err(e) => Look::NotYet(e.to_string()),
        })
    })
    .await
    .expect("is killed");
    let (code, report, said) = drill.end();
    assert_eq!(code, Some(1), "{report:#}\n{said}");
    let violations = report["violations"].to_string();
    assert!(violations.contains("datanode 1 ended by itself"), "{report:#}");
    assert_eq!(report["folder"], dir.to_str().expect("utf-8"));
    assert!(report["again"].as_str().expect("text").contains("--minutes 60 --seed 3"));
    for kept in [
        "report.json",
        "chaos.log",
        "schedule.txt",
        "cluster-as-it-ran.json",
        "logs/datanode-1.log",
        "pages/datanode-2-trace",
        "pages/master-1-metrics",
        "datanode-4/node",
    ] {
        let there = std::fs::metadata(dir.join(kept)).unwrap_or_else(|e| panic!("{kept}: {e}"));
        assert!(there.len() > 0, "{kept} is empty");
    }
    nothing_is_left_of(home.path());
}

#[test]
fn an_interrupted_drill_leaves_nothing_behind() {
    let home = Home::new();
    let mut drill = Drill::start(home.path(), &["--minutes", "60", "--seed", "4"]);
    drill.says("#2 at");
    kill_process(Pid::from_child(&drill.process), Signal::INT).expect("runs");
    let (code, report, said) = drill.end();
    assert_eq!(code, Some(1), "{report:#}\n{said}");
    assert_eq!((&report["ok"], &report["interrupted"]), (&true.into(), &true.into()));
    assert_eq!(left_in(home.path()), Vec::<String>::new());
    nothing_is_left_of(home.path());
}

#[test]
fn a_cluster_that_runs_already_is_never_harmed() {
    let home = Home::new();
    let (code, _, said) = Drill::start(home.path(), &["--dir", "/nowhere"]).end();
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("a cluster of its own"), "{said}");
    for wrong in [["--minutes", "0"], ["--faults", "0"], ["--depth", "0"], ["--network", "lan"]] {
        let (code, _, said) = Drill::start(home.path(), &wrong).end();
        assert_eq!(code, Some(2), "{wrong:?}: {said}");
    }
    assert_eq!(left_in(home.path()), Vec::<String>::new());
}
