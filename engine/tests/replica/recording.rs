//! Runs that are recorded, written down, read back and taken again.

use sbk_engine::recording::file::{self, About, FileError};
use sbk_engine::recording::{
    Difference, Found, MAX_BYTES, MAX_STEPS, Outcome, Recording, Step, replay, tenures,
};
use sbk_engine::recovery::Event;
use sbk_engine::replication::io::{Input, Output};
use sbk_engine::replication::message::{ToPrimary, ToReplica};
use sbk_engine::replication::{IgnoredReason, Verdict};
use sbk_engine::types::{Epoch, Lsn, Millis, NodeId};
use uuid::Uuid;

use crate::bench::{Bench, append, config, entry, facts, opened, replica, sent, table, volume};

/// Replica 1 is promoted in epoch 2 and meets replica 2, which lacks two entries.
fn promoted() -> Bench {
    let mut bench = Bench::open(opened(1, 4, 4));
    let (_, probed) = bench.feed(Input::Assignment(config(2, 1, &[1])));
    let outputs = bench.meet(2, 2, &probed, facts(table(&[(1, 1)]), 2, 2));
    let cut = sent(&outputs, 2).into_iter().find_map(|message| match message {
        ToReplica::Cut { request, .. } => Some(request),
        _ => None,
    });
    bench.answer(2, 2, ToPrimary::CutDone { request: cut.expect("a cut"), durable: Lsn(2) });
    bench.pass(2_000);
    bench
}

fn about() -> About {
    let node = NodeId(Uuid::from_u128(9));
    About { volume: volume(), replica: replica(1), node, why: "a test".to_owned() }
}

fn written() -> String {
    file::write(&about(), &promoted().ring.recording())
}

#[test]
fn a_run_is_written_read_and_taken_again() {
    let recording = promoted().ring.recording();
    let text = file::write(&about(), &recording);
    let read = file::read(&text).expect("reads");
    assert_eq!(read, vec![(about(), recording.clone())]);
    assert_eq!(replay(&read[0].1), Ok(recording.steps.len()));
    // Those of several replicas in one text.
    assert_eq!(file::read(&(text.clone() + &text)).expect("reads").len(), 2);
}

#[test]
fn the_newest_part_of_a_long_run_is_kept_and_begins_with_a_state() {
    let mut bench = promoted();
    for _ in 0..3 * MAX_STEPS {
        bench.pass(10);
        assert!(bench.ring.len() <= MAX_STEPS);
    }
    let recording = bench.ring.recording();
    assert!(recording.steps.len() >= MAX_STEPS / 2, "{}", recording.steps.len());
    let last = recording.steps.last().expect("steps").number;
    assert_eq!(recording.steps[0].number, last + 1 - recording.steps.len() as u64);
    assert_eq!(replay(&recording), Ok(recording.steps.len()));
}

#[test]
fn large_inputs_are_fewer() {
    let mut bench = Bench::open(opened(1, 0, 0));
    bench.hear(2, 2, ToReplica::Fence { request: 1, config: config(2, 2, &[1, 2]) });
    bench.hear(2, 2, ToReplica::Cut { request: 2, end: Lsn(0), table: table(&[(2, 1)]) });
    let of_one = 1000;
    for n in 0..200 {
        let entries = (1..=of_one).map(|lsn| entry(2, n * of_one + lsn)).collect();
        bench.hear(2, 2, ToReplica::Append(append(1, 0, n * of_one, entries)));
        assert!(bench.ring.bytes() <= MAX_BYTES + MAX_BYTES / 2, "{}", bench.ring.bytes());
    }
    assert!(bench.ring.len() < 200);
}

/// The step at which a replay differs.
fn difference(recording: &Recording) -> Difference {
    *replay(recording).expect_err("differs")
}

#[test]
fn a_changed_decision_is_found() {
    let recording = promoted().ring.recording();
    let (index, _) = recording
        .steps
        .iter()
        .enumerate()
        .find(|(_, step)| {
            matches!(&step.input, Input::FromReplica { message: ToPrimary::Facts { .. }, .. })
        })
        .expect("the facts of replica 2");

    let mut other = recording.clone();
    let outcome = other.steps[index].outcome.as_mut().expect("outcome");
    outcome.verdict = Verdict::Ignored(IgnoredReason::LateCopy);
    let found = difference(&other);
    assert_eq!(found.step.number, index as u64 + 1);
    let told = found.to_string();
    assert!(told.contains("\n- Ignored(LateCopy)\n+ Applied"), "{told}");

    let mut other = recording.clone();
    other.steps[index].outcome.as_mut().expect("outcome").outputs.pop().expect("outputs");
    let told = difference(&other).to_string();
    assert!(told.contains("\n+ ") && !told.contains("\n- "), "{told}");

    // Another fact leads to other decisions.
    let mut other = recording.clone();
    other.steps[0].input = Input::Assignment(config(3, 1, &[1]));
    assert_eq!(difference(&other).step.number, 1);
}

/// The input in which an engine broke an invariant is the last of its recording.
#[test]
fn an_input_that_the_engine_did_not_survive_is_kept() {
    let mut bench = promoted();
    let mut ring = bench.ring.clone();
    ring.begin(&bench.replica, Millis(bench.now), &Input::Tick);
    let recording = ring.recording();
    assert_eq!(recording.steps.last().and_then(|step| step.outcome.clone()), None);
    let text = file::write(&about(), &recording);
    assert_eq!(file::read(&text).expect("reads")[0].1, recording);
    let Difference { step, found } = difference(&recording);
    assert_eq!(step.number, recording.steps.len() as u64);
    let (verdict, outputs) = bench.feed(Input::Tick);
    assert_eq!(found, Found::Survived(Outcome { verdict, outputs }));
}

#[test]
fn what_is_no_whole_recording_is_refused() {
    let text = written();
    let foreign = |text: &str| matches!(file::read(text), Err(FileError::Foreign { line: 1 }));
    assert!(matches!(file::read(""), Err(FileError::Empty)));
    assert!(foreign("---\ncase: a\n"));
    assert!(foreign("{\"entries\": []}\n"));
    assert!(foreign(&text[text.find('\n').expect("lines") + 1..]));
    // Cut off anywhere.
    for end in (1..text.len() - 1).step_by(97) {
        assert!(file::read(&text[..end]).is_err(), "cut off after {end} bytes");
    }
    // A byte that changed, wherever it is.
    for at in (0..text.len() - 1).step_by(53) {
        let mut bytes = text.clone().into_bytes();
        bytes[at] = if bytes[at] == b'7' { b'8' } else { b'7' };
        let changed = String::from_utf8(bytes).expect("ASCII");
        assert!(file::read(&changed).is_err(), "byte {at} changed");
    }
    let newer = text.replacen("\"sbk_recording\":1", "\"sbk_recording\":2", 1);
    let error = file::read(&newer).expect_err("of another version").to_string();
    assert!(error.contains("format 2") && error.contains(env!("CARGO_PKG_VERSION")), "{error}");
}

/// A whole file whose steps are not what they were numbered as.
#[test]
fn steps_that_are_missing_are_noticed() {
    let mut recording = promoted().ring.recording();
    recording.steps.remove(1);
    let text = file::write(&about(), &recording);
    let error = file::read(&text).expect_err("a gap");
    assert!(matches!(error, FileError::Gap { line: 3, expected: 2, found: 3 }), "{error}");
}

/// What the recovery engine was told, from the beginning of the tenure.
#[test]
fn a_tenure_is_found_in_a_recording() {
    let mut bench = promoted();
    bench.feed(Input::Assignment(config(3, 2, &[1, 2])));
    bench.feed(Input::Assignment(config(4, 1, &[1])));
    let found = tenures(&bench.ring.recording());
    assert_eq!(found.iter().map(|tenure| tenure.epoch).collect::<Vec<_>>(), [Epoch(2), Epoch(4)]);
    let first = &found[0];
    assert_eq!(first.state, None);
    assert!(matches!(first.steps[0].1, Event::Assignment { .. }), "{first:?}");
    assert!(first.steps.iter().any(|step| matches!(step.1, Event::RecoveryFacts { .. })));
    assert_eq!(first.steps[0].0, Millis(1_000));

    // A recording that begins later begins with what was known then.
    for _ in 0..MAX_STEPS {
        bench.pass(100);
    }
    let found = tenures(&bench.ring.recording());
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].epoch, Epoch(4));
    let state = found[0].state.as_ref().expect("a state");
    assert_eq!(state.replicas().count(), 2);
}

/// An onlooker changes nothing.
#[test]
fn a_run_that_is_looked_on_is_the_same() {
    let recording = promoted().ring.recording();
    let (mut seen, mut unseen) = (recording.state.clone(), recording.state.clone());
    for Step { at, input, .. } in &recording.steps {
        seen.step_observed(*at, input.clone());
        let (_, outputs): (Verdict, Vec<Output>) = unseen.step(*at, input.clone());
        drop(outputs);
        assert_eq!(seen, unseen);
    }
}

/// The steps of a failover that its story is told from.
#[test]
fn a_promotion_tells_when_it_serves_and_whom_it_brings_back() {
    let recording = promoted().ring.recording();
    let outcomes = recording.steps.iter().filter_map(|step| step.outcome.as_ref());
    let told = outcomes.flat_map(|outcome| &outcome.outputs).filter_map(|output| match output {
        Output::Trace(event) => Some(event.what.as_str()),
        _ => None,
    });
    let told: Vec<_> = told.collect();
    let count = |word| told.iter().filter(|told| **told == word).count();
    assert_eq!((count("promoted"), count("serving"), count("catch-up")), (1, 1, 1), "{told:?}");
}
