//! The repository's own cases, and that the runner tells a wrong case from a right one.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sbk_conformance::{Case, CaseError, Coverage, Mismatch, load, parse, run};
use sbk_engine::recovery::{Event, Params, Verdict};
use sbk_engine::types::{Epoch, Millis};

fn own() -> Vec<(PathBuf, Case)> {
    load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("cases")).expect("the cases can be read")
}

fn read(text: &str) -> Result<Vec<Case>, CaseError> {
    parse(Path::new("mine.yaml"), text)
}

const GOOD: &str = "
case: a first look
steps:
  - event: {assignment: {epoch: 5, since: 5, replicas: {b: 'b:7301'}}}
    verdict: applied
    commands:
      - probe: {epoch: 5, replica: b, endpoint: 'b:7301'}
    view:
      b: {mode: idle}
      c: null
";

#[test]
fn every_case_passes_and_together_they_show_every_word() {
    let mut coverage = Coverage::default();
    for (path, case) in own() {
        if let Err(failure) = run(&case, &mut coverage) {
            panic!("{}: {}\n{failure}", path.display(), case.name);
        }
    }
    assert_eq!(coverage.missing(), [] as [String; 0], "no case shows them");
}

/// The documentation shows a case that passes and knows every word and parameter, with its default.
#[test]
fn the_documentation_is_true() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/conformance.md");
    let text = std::fs::read_to_string(&path).expect("the documentation can be read");
    let example = text.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next());
    let cases = read(example.expect("an example")).expect("a case");
    for case in &cases {
        assert_eq!(run(case, &mut Coverage::default()), Ok(()), "{}", case.name);
    }
    for (kind, word) in Coverage::words() {
        assert!(text.contains(&format!("`{word}`")), "{kind} {word} is not documented");
    }
    let params = serde_json::to_value(Params::default()).expect("plain data");
    for (name, value) in params.as_object().expect("fields") {
        assert!(text.contains(&format!("| `{name}` | {value} |")), "{name} has another default");
    }
}

#[test]
fn names_of_cases_are_unique() {
    let mut names: Vec<_> = own().into_iter().map(|(_, case)| case.name).collect();
    assert!(names.len() >= 40, "{}", names.len());
    names.sort();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "two cases have one name: {names:?}");
}

/// So a case that was recorded is the case that is replayed.
#[test]
fn a_case_comes_back_from_its_text() {
    for (path, case) in own() {
        let again = parse(&path, &case.to_yaml()).expect("what was written can be read");
        assert_eq!(again, [case]);
    }
}

/// Every expectation counts: whichever is changed or left out, the case fails.
#[test]
fn a_case_with_one_wrong_expectation_fails() {
    let mut broken = 0;
    for (_, case) in own() {
        for index in 0..case.steps.len() {
            for change in 0..4 {
                let mut wrong = case.clone();
                let expected = wrong.steps[index].expected.as_mut().expect("no drafts");
                match change {
                    0 if expected.verdict != Verdict::Applied => {
                        expected.verdict = Verdict::Applied;
                    }
                    1 if !expected.commands.is_empty() => drop(expected.commands.pop()),
                    2 if !expected.commands.is_empty() => {
                        let first = expected.commands[0].clone();
                        expected.commands.push(first);
                    }
                    3 if expected.commands.len() > 1 => expected.commands.reverse(),
                    _ => continue,
                }
                broken += 1;
                let failure = run(&wrong, &mut Coverage::default()).expect_err("it is wrong");
                assert_eq!(failure.step, index + 1, "{}", case.name);
                assert!(matches!(failure.mismatch, Mismatch::Outcome { .. }));
            }
        }
    }
    assert!(broken > 100, "{broken}");
}

#[test]
fn a_wrong_view_fails() {
    let right = read(GOOD).expect("a case");
    assert_eq!(run(&right[0], &mut Coverage::default()), Ok(()));
    for wrong in ["{mode: healthy}", "{mode: idle, r: 4}", "{color: red}", "null"] {
        let text = GOOD.replace("{mode: idle}", wrong);
        let case = read(&text).expect("a case");
        let failure = run(&case[0], &mut Coverage::default()).expect_err(wrong);
        assert!(matches!(failure.mismatch, Mismatch::View { .. }), "{failure}");
    }
}

/// A case that failed shows nothing, so it doesn't count for the coverage either.
#[test]
fn a_failed_case_covers_nothing() {
    let text = GOOD.replace("mode: idle", "mode: healthy");
    let mut coverage = Coverage::default();
    assert!(run(&read(&text).expect("a case")[0], &mut coverage).is_err());
    assert_eq!(coverage, Coverage::default());
}

#[test]
fn mistakes_in_a_case_are_named() {
    let message = |text: String| read(&text).expect_err("a mistake").to_string();
    let of = |from: &str, to: &str| message(GOOD.replace(from, to));
    assert!(of("since: 5", "since: 5, in_synk: [b]").contains("an event has no `in_synk` here"));
    assert!(of("probe:", "prob:").contains("is not a command"));
    assert!(of("assignment:", "assigment:").contains("is not an event"));
    assert!(of("verdict: applied", "verdict: aplied").contains("is not a verdict"));
    assert!(of("replica: b", "replica: Bob").contains("`Bob` names no replica"));
    assert!(of("    verdict: applied\n", "").contains("`verdict` is missing"));
    assert!(of("  - event", "  - at: 9\n    evnt: 1\n    event").contains("not a case"));
    let back = "  - {at: 9, event: tick}\n  - {at: 8, event: tick}\n";
    assert!(message(format!("case: back in time\nsteps:\n{back}")).contains("`at: 8` is before"));
    assert!(
        message(GOOD.replace("steps:", "params: {fence_retry_ms: 0}\nsteps:")).contains("1 or")
    );
    assert!(message("case: nothing\nsteps: []\n".to_owned()).contains("shows nothing"));
    assert!(matches!(
        read("").expect_err("empty"),
        CaseError::Nothing { .. } | CaseError::Yaml { .. }
    ));
}

#[test]
fn a_recorded_run_is_a_case() {
    let id = sbk_conformance::names::replica("b").expect("a name");
    let stranger = "0191e1f4-2b3c-7d4e-8f50-a1b2c3d4e5f6".parse().expect("an id");
    let replicas = [(id, "b:7301".to_owned()), (stranger, "s:7301".to_owned())];
    let assignment = Event::Assignment {
        epoch: Epoch(5),
        since: Epoch(5),
        replicas: replicas.into_iter().collect(),
        in_sync: [stranger].into_iter().collect(),
    };
    let events = [(Millis(7), assignment), (Millis(9000), Event::Tick)];
    let case = Case::record("what happened: on \"Monday\"", Params::default(), events);
    assert_eq!(run(&case, &mut Coverage::default()), Ok(()));
    let text = case.to_yaml();
    assert!(text.contains("replica: b}"), "{text}");
    assert!(text.contains("0191e1f4-2b3c-7d4e-8f50-a1b2c3d4e5f6"), "{text}");
    assert_eq!(read(&text).expect("a case"), [case]);
}

fn runner(args: &[&Path]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sbk-conformance")).args(args).output().expect("it starts")
}

#[test]
fn the_program_says_how_it_went() {
    let all = runner(&[]);
    let said = String::from_utf8_lossy(&all.stdout).into_owned();
    assert!(all.status.success(), "{said}");
    assert!(said.contains(" passed, 0 failed"), "{said}");

    let dir = tempfile::tempdir().expect("a directory");
    let deeper = dir.path().join("deeper");
    std::fs::create_dir(&deeper).expect("a directory");
    std::fs::write(deeper.join("good.yaml"), GOOD).expect("written");
    std::fs::write(dir.path().join("notes.txt"), "no case").expect("written");
    assert!(runner(&[dir.path()]).status.success(), "a directory, searched to its bottom");
    assert!(
        !runner(&[Path::new("--coverage"), dir.path()]).status.success(),
        "one case does not show every word"
    );

    let bad = GOOD.replace("probe: {epoch: 5", "probe: {epoch: 6");
    std::fs::write(dir.path().join("bad.yaml"), bad).expect("written");
    let failed = runner(&[dir.path()]);
    let said = String::from_utf8_lossy(&failed.stdout).into_owned();
    assert_eq!(failed.status.code(), Some(1), "{said}");
    assert!(said.contains("1 passed, 1 failed"), "{said}");
    let line = |sign, epoch| format!("{sign} - {{probe: {{endpoint: \"b:7301\", epoch: {epoch},");
    assert!(said.contains(&line('-', 6)) && said.contains(&line('+', 5)), "{said}");

    let draft = GOOD.split("    verdict").next().expect("text");
    let file = dir.path().join("draft.yaml");
    std::fs::write(&file, draft).expect("written");
    assert!(!runner(&[&file]).status.success(), "a draft expects nothing, so it can't pass");
    let recorded = runner(&[Path::new("--record"), &file]);
    let text = String::from_utf8_lossy(&recorded.stdout).into_owned();
    assert_eq!(run(&read(&text).expect("a case")[0], &mut Coverage::default()), Ok(()));

    assert!(!runner(&[Path::new("/no/such/case.yaml")]).status.success());
}
