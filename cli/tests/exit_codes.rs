//! What the process tells its caller: exit codes, and where the words go.

use std::process::{Command, Output};

fn sbkctl(args: &[&str]) -> Output {
    let home = tempfile::tempdir().expect("dir");
    Command::new(env!("CARGO_BIN_EXE_sbkctl"))
        .args(args)
        .env_remove("SBK_MASTERS")
        .env("XDG_STATE_HOME", home.path())
        .output()
        .expect("runs")
}

/// Its code, and what it said on standard error. A failure says nothing on standard output.
fn failure(args: &[&str]) -> (i32, String) {
    let output = sbkctl(args);
    assert!(output.stdout.is_empty(), "{args:?}: {output:?}");
    let words = String::from_utf8(output.stderr).expect("utf-8");
    (output.status.code().expect("a code"), words)
}

#[test]
fn help_is_no_failure() {
    for args in [vec!["--help"], vec!["volume", "create", "--help"], vec!["--version"]] {
        let output = sbkctl(&args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(!output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn wrong_usage_is_2() {
    for (args, part) in [
        (vec!["volume", "create", "v", "--size", "10G"], "ambiguous"),
        (vec!["volume", "create", "v"], "--size"),
        (vec!["volumes"], "volumes"),
        (vec!["volume", "recover", "v", "--node-off", "n"], "--accept-data-loss"),
        (vec!["dev", "--masters", "2"], "1, 3 or 5"),
        (vec!["dev", "--masters", "h:1,h:2"], "number of masters"),
    ] {
        let (code, words) = failure(&args);
        assert_eq!(code, 2, "{args:?}: {words}");
        assert!(words.contains(part), "{args:?}: {words}");
    }
}

#[test]
fn masters_that_are_not_there_are_3() {
    // Reserved, and nobody listens there.
    let addr = format!("127.0.0.1:{}", sbk_ports::kept(1)[0]);
    let (code, words) = failure(&["--masters", &addr, "cluster", "status"]);
    assert_eq!(code, 3, "{words}");
    assert!(words.contains(&addr), "{words}");
    assert!(words.contains("Check that they run"), "{words}");
}

#[test]
fn a_directory_without_a_cluster_says_how_to_start_one() {
    let dir = tempfile::tempdir().expect("dir");
    let path = dir.path().to_str().expect("utf-8");
    let (code, words) = failure(&["volume", "list", "--dir", path]);
    assert_eq!(code, 1, "{words}");
    assert!(words.contains(&format!("sbkctl dev --dir {path}")), "{words}");
    let (code, words) = failure(&["drill", "primary-kill", "--dir", path]);
    assert_eq!(code, 1, "{words}");
    assert!(words.contains("no `sbkctl dev` runs"), "{words}");
}

#[test]
fn a_child_without_its_parent_does_not_start() {
    let output = Command::new(env!("CARGO_BIN_EXE_sbkctl"))
        .args(["volume", "list"])
        .env("SBKCTL_PARENT", "1")
        .output()
        .expect("runs");
    assert_eq!(output.status.code(), Some(1));
    let words = String::from_utf8(output.stderr).expect("utf-8");
    assert!(words.contains("is gone"), "{words}");
}
