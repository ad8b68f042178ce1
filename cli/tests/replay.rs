//! `sbkctl replay` on recordings that agree, differ, break an invariant, or are none.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sbk_conformance::Coverage;
use sbk_engine::recording::file::{self, About};
use sbk_engine::recording::{Recording, Ring};
use sbk_engine::replication::io::{Input, Kept, Opened};
use sbk_engine::replication::log::LogState;
use sbk_engine::replication::{IgnoredReason, Params, Replica, Verdict};
use sbk_engine::types::{
    BootId, Config, Durability, Epoch, Incarnation, LossGeneration, Lsn, Millis, NodeId, Placement,
    ReplicaId, ReplicaRef, TailId, VolumeId, WriteAck,
};
use tempfile::TempDir;
use uuid::Uuid;

const VOLUME: VolumeId = VolumeId(Uuid::from_u128(7));

fn replica(n: u128) -> ReplicaRef {
    let incarnation = Incarnation { process: 1, open: 1 };
    ReplicaRef { id: ReplicaId(Uuid::from_u128(n)), incarnation }
}

/// Replica 1 of three, with an empty log.
fn opened() -> Replica {
    let opened = Opened {
        volume: VOLUME,
        me: replica(1),
        tail: TailId { boot: BootId(Uuid::from_u128(1)), count: 0 },
        kept: Kept::default(),
        durable: Lsn(0),
        committed: Lsn(0),
        checkpoint: Lsn(0),
        retained: Lsn(1),
        state: LogState::new(16),
        uncommitted: Vec::new(),
    };
    Replica::open(Millis(1000), opened, Params::default())
}

fn config() -> Config {
    let place = |n: u128| Placement { node: NodeId(Uuid::from_u128(n)), addr: format!("n{n}:1") };
    let replicas: BTreeMap<_, _> = (1..=3).map(|n| (replica(n).id, place(n))).collect();
    Config {
        volume: VOLUME,
        epoch: Epoch(1),
        primary: replica(1),
        since: Epoch(1),
        isr: replicas.keys().copied().collect(),
        replicas,
        durability: Durability::SyncAll,
        write_ack: WriteAck::Durable,
        min_in_sync: 2,
        blocks: 16,
        wished_blocks: None,
        loss_generation: LossGeneration(0),
        handed_over_by: None,
        tails: BTreeMap::new(),
    }
}

/// A run of these inputs, 100 ms apart. `survives`: the last one gave an outcome.
fn recorded(inputs: Vec<Input>, survives: bool) -> Recording {
    let mut engine = opened();
    let mut ring = Ring::new(&engine);
    let last = inputs.len() - 1;
    for (n, input) in inputs.into_iter().enumerate() {
        let now = Millis(2000 + 100 * n as u64);
        ring.begin(&engine, now, &input);
        if n < last || survives {
            let (verdict, outputs) = engine.step(now, input);
            ring.end(verdict, &outputs);
        }
    }
    ring.recording()
}

fn primary() -> Recording {
    let mut inputs = vec![Input::Assignment(config())];
    inputs.resize(40, Input::Tick);
    recorded(inputs, true)
}

/// One that says that more is durable than was ever logged.
fn broken() -> Input {
    Input::Durable { generation: 0, lsn: Lsn(1000) }
}

struct Scene {
    dir: TempDir,
}

impl Scene {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a directory") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, recordings: &[Recording]) -> PathBuf {
        let about = About {
            volume: VOLUME,
            replica: replica(1),
            node: NodeId(Uuid::from_u128(1)),
            why: "a test".to_owned(),
        };
        let path = self.path("a.recording");
        let text: String = recordings.iter().map(|r| file::write(&about, r)).collect();
        std::fs::write(&path, text).expect("writes");
        path
    }
}

fn sbkctl(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sbkctl")).args(args).output().expect("runs")
}

fn replay(path: &Path, more: &[&str]) -> (Option<i32>, String, String) {
    let path = path.to_str().expect("a path");
    let output = sbkctl(&[&["replay", path], more].concat());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_run_that_agrees_is_said_to() {
    let scene = Scene::new();
    let path = scene.write(&[primary(), primary()]);
    let (code, said, _) = replay(&path, &[]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(said.matches("all 40 inputs (1 to 40) agree").count(), 2, "{said}");
    let (code, said, _) = replay(&path, &["-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!((code, json[0]["agreed"].as_u64()), (Some(0), Some(40)), "{said}");
}

#[test]
fn the_first_difference_is_shown() {
    let scene = Scene::new();
    let mut changed = primary();
    changed.steps[7].outcome.as_mut().expect("outcome").verdict =
        Verdict::Ignored(IgnoredReason::LateCopy);
    let path = scene.write(&[primary(), changed]);
    let (code, said, error) = replay(&path, &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("7 of 40 inputs (1 to 40) agree, then"), "{said}");
    assert!(
        said.contains("step 8, at 2700 ms: Tick\n  - Ignored(LateCopy)\n  + Applied"),
        "{said}"
    );
    assert!(error.contains("1 of 2 recordings differ"), "{error}");
    let (code, said, _) = replay(&path, &["-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let difference = &json[1]["difference"];
    assert_eq!((code, difference["step"].as_u64()), (Some(1), Some(8)), "{said}");
    assert_eq!(difference["expected"]["verdict"]["Ignored"], "late_copy", "{said}");
    // Nothing is exported from a run that this engine takes otherwise.
    let case = scene.path("case.yaml");
    let (code, _, _) = replay(&path, &["--export-case", case.to_str().expect("a path")]);
    assert_eq!((code, case.exists()), (Some(1), false));
}

#[test]
fn a_broken_invariant_is_broken_again() {
    let scene = Scene::new();
    let ends = recorded(vec![Input::Assignment(config()), broken()], false);
    let path = scene.write(&[ends, primary()]);
    let (code, said, error) = replay(&path, &[]);
    assert_eq!(code, Some(0), "{said}{error}");
    assert!(said.contains("breaks the invariant again: I5: durable 1000"), "{said}");
    assert!(said.contains("all 40 inputs"), "{said}");

    // An engine that is mended survives it.
    let survived = recorded(vec![Input::Assignment(config()), Input::Tick], false);
    let (code, said, _) = replay(&scene.write(&[survived]), &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("- the recorded run ended in this input"), "{said}");

    // And one that breaks where the recorded one did not is told with the step.
    let mut breaks = primary();
    breaks.steps[3].input = broken();
    let (code, said, _) = replay(&scene.write(&[breaks]), &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("3 of 40") && said.contains("breaks an invariant: I5"), "{said}");
}

#[test]
fn a_case_is_exported_that_the_runner_passes() {
    let scene = Scene::new();
    let path = scene.write(&[primary()]);
    let (file, dir) = (scene.path("case.yaml"), scene.path("cases"));
    std::fs::create_dir(&dir).expect("a directory");
    for target in [&file, &dir] {
        let target = target.to_str().expect("a path");
        let (code, said, error) = replay(&path, &["--export-case", target]);
        assert_eq!(code, Some(0), "{said}{error}");
        let cases = sbk_conformance::load(Path::new(target)).expect("cases");
        assert_eq!(cases.len(), 1);
        let case = &cases[0].1;
        assert!(case.steps.len() > 5, "{case:?}");
        sbk_conformance::run(case, &mut Coverage::default()).expect("passes");
        let mut wrong = case.clone();
        wrong.steps[0].expected.as_mut().expect("expected").commands.pop().expect("commands");
        sbk_conformance::run(&wrong, &mut Coverage::default()).expect_err("differs");
    }
    // A second time the file is there.
    let (code, _, error) = replay(&path, &["--export-case", file.to_str().expect("a path")]);
    assert_eq!(code, Some(1));
    assert!(error.contains("give another name"), "{error}");

    let idle = recorded(vec![Input::Tick], true);
    let other = scene.path("other.yaml");
    let path = scene.write(&[idle]);
    let (code, _, error) = replay(&path, &["--export-case", other.to_str().expect("a path")]);
    assert_eq!(code, Some(1));
    assert!(error.contains("no replica was primary"), "{error}");
}

/// A recording that begins in the middle of a tenure has what was known then in its case.
#[test]
fn a_case_may_begin_in_the_middle() {
    let scene = Scene::new();
    let mut inputs = vec![Input::Assignment(config())];
    inputs.resize(5000, Input::Tick);
    let path = scene.write(&[recorded(inputs, true)]);
    let target = scene.path("case.yaml");
    let (code, said, error) = replay(&path, &["--export-case", target.to_str().expect("a path")]);
    assert_eq!(code, Some(0), "{said}{error}");
    let cases = sbk_conformance::load(&target).expect("cases");
    assert!(cases[0].1.state.is_some());
    sbk_conformance::run(&cases[0].1, &mut Coverage::default()).expect("passes");
    let text = std::fs::read_to_string(&target).expect("reads");
    let damaged = text.replacen("catch_up_budget", "catch_up_budgets", 1);
    std::fs::write(&target, damaged).expect("writes");
    let error = sbk_conformance::load(&target).expect_err("no state");
    assert!(error.to_string().contains("the engine's state"), "{error}");
}

#[test]
fn what_is_no_recording_is_refused() {
    let scene = Scene::new();
    let path = scene.write(&[primary()]);
    let text = std::fs::read_to_string(&path).expect("reads");
    let refused = |bytes: &[u8], part: &str| {
        std::fs::write(&path, bytes).expect("writes");
        let (code, said, error) = replay(&path, &[]);
        assert_eq!((code, said.as_str()), (Some(1), ""), "{error}");
        assert!(error.contains(part) && error.contains("a.recording"), "{error}");
    };
    refused(b"", "it is empty");
    refused(b"{}\n", "line 1 begins no recording");
    refused(b"\xff\xfe", "it is no text");
    refused(&text.as_bytes()[..text.len() / 2], "cut off");
    refused(text.replacen("\"at\":2000", "\"at\":2001", 1).as_bytes(), "damaged");
    refused((text.clone() + "more").as_bytes(), "begins no recording");
    refused(text.replacen("recording\":1", "recording\":9", 1).as_bytes(), "has format 9");
    std::fs::remove_file(&path).expect("removes");
    let (code, _, error) = replay(&path, &[]);
    assert_eq!(code, Some(1));
    assert!(error.contains("a.recording"), "{error}");
    assert_eq!(sbkctl(&["replay"]).status.code(), Some(2));
}
