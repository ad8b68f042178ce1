//! `sbkctl drill disk-full` on real processes: a disk that runs short of room costs a pause, and nothing else.

use std::process::Command;

use serde_json::Value;

#[test]
fn a_disk_that_is_filled_has_its_volume_wait_and_go_on() {
    let home = tempfile::tempdir().expect("a directory");
    let output = Command::new(env!("CARGO_BIN_EXE_sbkctl"))
        .args(["drill", "disk-full", "--runs", "2", "--seconds", "1", "-o", "json"])
        .env("TMPDIR", home.path())
        .output()
        .expect("sbkctl runs");
    let said = String::from_utf8_lossy(&output.stderr);
    if !rustix::process::geteuid().is_root() || said.contains("losetup: ") {
        eprintln!("not tried: nothing can be mounted here, that needs root: {said}");
        return;
    }
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    assert_eq!(
        (output.status.code(), &report["ok"]),
        (Some(0), &Value::Bool(true)),
        "{report:#}\n{said}"
    );
    let runs = report["runs"].as_array().expect("a list");
    // The primary's disk, and another replica's.
    let whose: Vec<_> = runs.iter().map(|run| run["primary"].as_bool()).collect();
    assert_eq!(whose, [Some(true), Some(false)], "{report:#}");
    for run in runs {
        let told = run["told"].as_str().expect("a reason");
        let node = run["node"].as_str().expect("a node");
        assert!(told.contains("wait for room") && told.contains(node), "{told}");
        let number = |name: &str| run[name].as_u64().expect("a number");
        // It waited as long as there was no room, which is a second, and was told of before.
        assert!(number("growth_stall_ms") >= 1000, "{run:#}");
        assert!(number("told_ms") < number("growth_stall_ms"), "{run:#}");
        assert_eq!((number("grew"), run["load"]["errors"].as_u64()), (0, Some(0)), "{run:#}");
        assert!(number("grown") > 0 && run["verified"]["violations"] == 0, "{run:#}");
    }
}
