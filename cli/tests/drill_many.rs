//! `sbkctl drill many` on real processes, with few volumes: what it tells is what happened.

use std::process::Command;

use serde_json::Value;

fn drill(args: &[&str]) -> (Option<i32>, Value, String) {
    let home = tempfile::tempdir().expect("a directory");
    let output = Command::new(env!("CARGO_BIN_EXE_sbkctl"))
        .args(["drill", "many", "-o", "json"])
        .args(args)
        .env("TMPDIR", home.path())
        .output()
        .expect("sbkctl runs");
    let report = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code(), report, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn volumes_go_on_without_their_datanode_and_the_report_has_every_process() {
    let args = ["--volumes", "7", "--connections", "15", "--size", "4MiB", "--seconds", "1"];
    let (code, report, said) = drill(&args);
    assert_eq!((code, &report["ok"]), (Some(0), &Value::Bool(true)), "{report:#}\n{said}");
    assert_eq!(report["volumes"], 7);
    // The one with the most of seven primaries on three datanodes.
    let killed = report["primaries_killed"].as_u64().expect("a number");
    assert!((3..=7).contains(&killed), "{report:#}");
    let stall = report["stall_ms"]["max"].as_u64().expect("a number");
    assert!(stall > 0 && stall >= report["stall_ms"]["p50"].as_u64().expect("a number"));
    let phases = report["phases"].as_array().expect("a list");
    let processes = |at: usize| phases[at]["processes"].as_array().expect("a list");
    assert_eq!(
        (0..phases.len()).map(|at| processes(at).len()).collect::<Vec<_>>(),
        [6, 6, 6, 5, 6]
    );
    let disk = |at: usize| {
        let datanode = processes(at).iter().find(|p| p["process"] == "datanode 1");
        datanode.expect("is there")["disk_bytes"].as_u64().expect("a number")
    };
    let replica = (disk(1) - disk(0)) / 7;
    assert!((2 << 20..6 << 20).contains(&replica), "an empty replica takes {replica} bytes");
}

#[test]
fn what_makes_no_sense_is_refused_before_a_cluster_is_started() {
    for args in [&["--volumes", "5", "--connections", "4"][..], &["--size", "1MiB"]] {
        let (code, _, said) = drill(args);
        assert_eq!(code, Some(2), "{said}");
    }
}
