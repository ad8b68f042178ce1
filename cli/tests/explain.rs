//! A failover on real processes: its story names who was primary, who is, and why; and what the
//! replicas were told is saved, taken again, and exported as cases that pass.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use sbk_cli::args::VolumeSpec;
use sbk_cli::dev::cluster::{DevCluster, Options};
use sbk_cli::wait::{self, Look};
use sbk_conformance::Coverage;

const LIMIT: Duration = Duration::from_secs(120);

fn sbkctl(dir: &Path, args: &[&str]) -> String {
    let dir = dir.to_str().expect("a path");
    let output = Command::new(env!("CARGO_BIN_EXE_sbkctl"))
        .args(["--dir", dir])
        .args(args)
        .env_remove("SBK_MASTERS")
        .stdin(Stdio::null())
        .output()
        .expect("runs");
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn a_failover_is_told_saved_and_taken_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut options = Options::new(dir.path().to_owned()).expect("options");
    options.exe = env!("CARGO_BIN_EXE_sbkctl").into();
    options.limit = LIMIT;
    options.volumes.push(VolumeSpec { name: "v".into(), size: 16 << 20 });
    let mut cluster = DevCluster::start(options).await.expect("the cluster starts");
    let old = cluster.primary_of("v").await.expect("answers").expect("there is one");
    cluster.kill_datanode(&old.id).expect("killed");
    let new = wait::until("another primary that serves", LIMIT, async || {
        let shown: serde_json::Value =
            serde_json::from_str(&sbkctl(dir.path(), &["volume", "show", "v", "-o", "json"]))?;
        let primary = shown["primary"].as_str().unwrap_or_default().to_owned();
        Ok(match shown["serving"] == true && primary != old.id {
            true => Look::Done(primary),
            false => Look::NotYet(shown.to_string()),
        })
    })
    .await
    .expect("a failover");

    let said = sbkctl(dir.path(), &["volume", "explain", "v"]);
    let story = said.split("\nAll decisions").next().expect("a story");
    let on = |node: &str| format!("the replica on {}", &node[..8]);
    let decided = format!("made {} primary in place of {}", on(&new), on(&old.id));
    assert!(story.contains(&decided), "{story}");
    let why = format!("because the process on node {} is gone", &old.id[..8]);
    assert!(story.contains(&why), "{story}");
    for part in ["took the role", "waits", "promised epoch", "is ready", "serves clients"] {
        assert!(story.contains(part), "{part}: {story}");
    }
    assert!(story.contains("Clients were served again"), "{story}");

    let file = dir.path().join("v.recording");
    let file = file.to_str().expect("a path");
    let said = sbkctl(dir.path(), &["volume", "explain", "v", "--save", file]);
    assert!(said.contains("The recordings of 2 replicas"), "{said}");
    let cases = dir.path().join("cases");
    std::fs::create_dir(&cases).expect("a directory");
    let said =
        sbkctl(dir.path(), &["replay", file, "--export-case", cases.to_str().expect("a path")]);
    assert_eq!(said.matches("agree: same verdicts").count(), 2, "{said}");
    let cases = sbk_conformance::load(&cases).expect("cases");
    assert!(!cases.is_empty());
    for (path, case) in &cases {
        let passed = sbk_conformance::run(case, &mut Coverage::default());
        assert_eq!(passed, Ok(()), "{}", path.display());
    }

    // Who comes back is part of the story.
    cluster.start_datanode(&old.id).expect("starts");
    wait::until("three in sync", LIMIT, async || {
        let said = sbkctl(dir.path(), &["volume", "explain", "v"]);
        let story = said.split("\nAll decisions").next().unwrap_or_default();
        let joined = format!("{} joined the in-sync set", on(&old.id));
        Ok(if story.contains(&joined) { Look::Done(()) } else { Look::NotYet(said) })
    })
    .await
    .expect("it is told");
    cluster.stop().await.expect("stops");
}
