//! `sbkctl drill long-absence` on real processes: who was away gets what changed, and not all; or is not waited
//! for.

use std::process::Command;

use serde_json::Value;

#[test]
fn who_comes_back_late_gets_what_changed_and_who_comes_too_late_is_replaced() {
    let home = tempfile::tempdir().expect("a directory");
    let output = Command::new(env!("CARGO_BIN_EXE_sbkctl"))
        .args(["drill", "long-absence", "--seconds", "1", "-o", "json"])
        .env("TMPDIR", home.path())
        .output()
        .expect("sbkctl runs");
    let said = String::from_utf8_lossy(&output.stderr);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    assert_eq!(
        (output.status.code(), &report["ok"]),
        (Some(0), &Value::Bool(true)),
        "{report:#}\n{said}"
    );
    let runs = report["runs"].as_array().expect("a list");
    let ends: Vec<_> = runs.iter().filter_map(|run| run["end"].as_str()).collect();
    assert_eq!(ends, ["delta", "replaced"]);
    let number = |run: usize, name: &str| runs[run][name].as_u64().expect("a number");
    // Whole regions are sent, of which some blocks changed; but far from all.
    let (changed, volume) = (number(0, "changed_bytes"), number(0, "volume_bytes"));
    assert!(changed > 0 && changed <= number(0, "written_bytes"), "{report:#}");
    assert!((1..=volume / 2).contains(&number(0, "base_bytes")), "{report:#}");
    // The new one held nothing.
    assert!(number(1, "base_bytes") >= volume / 2, "{report:#}");
    assert!(number(1, "away_ms") > number(1, "whole_ms"), "{report:#}");
    assert!(runs.iter().all(|run| run["verified"]["violations"] == 0), "{report:#}");
}
