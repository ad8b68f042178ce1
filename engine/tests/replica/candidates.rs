//! What a candidate does about the logs that voters tell it of, over all short logs of one volume, against
//! the entries themselves.

use sbk_engine::replication::io::{Input, IsrChange, Opened, Output};
use sbk_engine::replication::message::{Facts, Incomplete, RecoveryId, ToReplica};
use sbk_engine::types::{Config, Durability, Epoch, Lsn, Millis, NodeId, Placement};
use uuid::Uuid;

use crate::bench::{Bench, config, entry, facts, opened, replica, sent};
use crate::epochs::{Log, logs, of_one_volume};

/// The epoch of the candidate.
const EPOCH: u64 = 4;

/// What is to come of the answers.
#[derive(Clone, Debug, PartialEq)]
enum Course {
    /// Too few have answered.
    Waits,
    /// Its own log is the best.
    KeepsItsOwn,
    /// A better log contradicts what is known as committed here, or is of an epoch that nobody but this
    /// candidate can have begun.
    Untouched,
    /// The better log can't be had without the whole image.
    NamesHolder(u128),
    /// Its own log ends there from then on, and it asks the holder for what follows up to its end.
    Takes { holder: u128, cut: Option<u64>, fetch: Option<(u64, u64)> },
}

/// The rule: of two logs the one that knows a newer epoch is the better, and of one epoch the longer.
fn better(a: &Log, b: &Log) -> bool {
    let newest = |log: &Log| log.starts().iter().map(|(epoch, _)| *epoch).max().unwrap_or(0);
    newest(a) > newest(b) || newest(a) == newest(b) && a.entries.len() > b.entries.len()
}

/// What the candidate makes of a better log, of which the holder's WAL has the entries from `retained` on.
fn taken(mine: &Log, committed: u64, holder: u128, theirs: &Log, retained: u64) -> Course {
    let shared = mine.starts().iter().any(|start| theirs.starts().contains(start));
    let same = mine.entries.iter().zip(&theirs.entries).take_while(|(a, b)| a == b).count() as u64;
    // Without an epoch in common only what is known as committed is known to agree.
    let agreed = if shared { same } else { committed };
    let (end, last) = (mine.entries.len() as u64, theirs.entries.len() as u64);
    let of_mine = theirs.starts().iter().any(|(epoch, _)| *epoch >= EPOCH);
    let lacks: Vec<u64> = (agreed + 1..=last).collect();
    if agreed < committed || of_mine {
        Course::Untouched
    } else if lacks.iter().any(|lsn| *lsn < retained) {
        Course::NamesHolder(holder)
    } else {
        let fetch = (!lacks.is_empty()).then_some((agreed, last));
        Course::Takes { holder, cut: (agreed < end).then_some(agreed), fetch }
    }
}

fn candidate(log: &Log, committed: u64, voters: u128) -> (Bench, Vec<Output>) {
    let end = log.end().0;
    let headers = log.entries.iter().zip(1..).map(|(epoch, lsn)| entry(*epoch, lsn));
    let mut kept = opened(1, committed, end).kept;
    kept.table = log.table(0);
    kept.fenced = Epoch(EPOCH - 1);
    let uncommitted = headers.skip(committed as usize).collect();
    let mut bench = Bench::open(Opened { kept, uncommitted, ..opened(1, committed, end) });
    let all: Vec<u128> = (1..=voters).collect();
    let place = |n: u128| Placement { node: NodeId(Uuid::from_u128(n)), addr: format!("n{n}:1") };
    let config = Config {
        durability: Durability::SyncQuorum,
        replicas: all.iter().map(|n| (replica(*n).id, place(*n))).collect(),
        ..config(EPOCH, 1, &all)
    };
    let (_, probed) = bench.feed(Input::Assignment(config));
    (bench, probed)
}

fn holds(log: &Log, retained: u64) -> Facts {
    // What is recycled was committed.
    let known = retained - 1;
    Facts { retained: Lsn(retained), ..facts(log.table(0), known, log.end().0) }
}

/// What came of the answers.
fn course(bench: &Bench, outputs: &[Output]) -> Course {
    let named = outputs.iter().find_map(|output| match output {
        Output::Propose(proposal) => match proposal.change {
            IsrChange::Yield { to } => Some(to.id.0.as_u128()),
            _ => None,
        },
        _ => None,
    });
    let cut = outputs.iter().find_map(|output| match output {
        Output::Cut { end, .. } => Some(end.0),
        _ => None,
    });
    let asked = (2..=5).find_map(|n| {
        sent(outputs, n).iter().find_map(|message| match message {
            ToReplica::Fetch { prev, last, .. } => Some((n, (prev.0, last.0))),
            _ => None,
        })
    });
    let trace = |what: &str| {
        outputs.iter().find_map(|output| match output {
            Output::Trace(event) if event.what == what => Some(event.why.clone()),
            _ => None,
        })
    };
    let whole = bench.replica.view(Millis(bench.now)).table_epoch == Some(Epoch(EPOCH));
    let cuts_others = (2..=5)
        .any(|n| sent(outputs, n).iter().any(|message| matches!(message, ToReplica::Cut { .. })));
    assert!(whole || !cuts_others, "nobody is cut by a log that is not the volume's: {outputs:?}");
    let adopted = trace("adopting").map(|why| {
        (2..=5).find(|n| why.contains(&replica(*n).id.to_string())).expect("it says whose log")
    });
    match (named, asked, adopted) {
        (Some(holder), None, None) if cut.is_none() && !whole => Course::NamesHolder(holder),
        (None, Some((from, fetch)), Some(holder)) if from == holder && !whole => {
            Course::Takes { holder, cut, fetch: Some(fetch) }
        }
        (None, None, Some(holder)) if whole => Course::Takes { holder, cut, fetch: None },
        (None, None, None) if whole && cut.is_none() => Course::KeepsItsOwn,
        (None, None, None) if trace("diverged").is_some() && cut.is_none() => Course::Untouched,
        (None, None, None) if cut.is_none() => Course::Waits,
        _ => panic!("contradicts itself: {outputs:?}"),
    }
}

fn kind(course: &Course) -> usize {
    match course {
        Course::Waits => 0,
        Course::KeepsItsOwn => 1,
        Course::Untouched => 2,
        Course::NamesHolder(_) => 3,
        Course::Takes { cut: None, fetch: None, .. } => 4,
        Course::Takes { cut: Some(_), fetch: None, .. } => 5,
        Course::Takes { cut: None, fetch: Some(_), .. } => 6,
        Course::Takes { cut: Some(_), fetch: Some(_), .. } => 7,
    }
}

#[test]
fn a_candidate_keeps_takes_or_leaves_the_log_of_a_voter_as_the_contract_says() {
    let session = RecoveryId { epoch: Epoch(3), number: 1 };
    let mark = Incomplete { session, from: Lsn(0), base: Lsn(1), target: Lsn(2) };
    let mut courses = [0; 8];
    for mine in &logs(3, EPOCH - 1) {
        for theirs in logs(3, EPOCH).iter().filter(|theirs| of_one_volume(mine, theirs)) {
            for committed in 0..=mine.end().0 {
                for retained in 1..=theirs.end().0 + 1 {
                    for incomplete in [None, Some(mark)] {
                        let expected = if incomplete.is_some() {
                            Course::Waits
                        } else if better(theirs, mine) {
                            taken(mine, committed, 2, theirs, retained)
                        } else {
                            Course::KeepsItsOwn
                        };
                        let (mut bench, probed) = candidate(mine, committed, 3);
                        let told = Facts { incomplete, ..holds(theirs, retained) };
                        let outputs = bench.meet(2, EPOCH, &probed, told);
                        let found = course(&bench, &outputs);
                        let case = format!(
                            "{mine:?} up to {committed}; {theirs:?} from {retained}, {incomplete:?}"
                        );
                        assert_eq!(found, expected, "{case}");
                        courses[kind(&found)] += 1;
                    }
                }
            }
        }
    }
    assert_eq!(courses, [13_175, 2_871, 8_060, 798, 325, 206, 506, 409]);
}

#[test]
fn a_candidate_goes_by_the_best_of_the_logs_that_a_majority_tells_of() {
    let logs = logs(2, EPOCH - 1);
    let mut courses = [0; 8];
    for mine in &logs {
        for two in logs.iter().filter(|two| of_one_volume(mine, two)) {
            let fits = |three: &&Log| of_one_volume(mine, three) && of_one_volume(two, three);
            for three in logs.iter().filter(fits) {
                let (mut bench, probed) = candidate(mine, 0, 5);
                let outputs = bench.meet(2, EPOCH, &probed, holds(two, 1));
                assert_eq!(course(&bench, &outputs), Course::Waits, "two of five answered");
                let outputs = bench.meet(3, EPOCH, &probed, holds(three, 1));
                let found = course(&bench, &outputs);
                let best = if better(two, three) { (2, two) } else { (3, three) };
                let expected = match best {
                    (holder, best) if better(best, mine) => taken(mine, 0, holder, best, 1),
                    _ => Course::KeepsItsOwn,
                };
                assert_eq!(found, expected, "{mine:?}; {two:?} and {three:?}");
                courses[kind(&found)] += 1;
            }
        }
    }
    assert_eq!(courses, [0, 1_172, 0, 0, 205, 196, 924, 601]);
}

/// A rule that is taken out is noticed.
#[cfg(feature = "bugs")]
#[test]
fn the_tables_of_candidates_bite() {
    use sbk_engine::bugs::Bug;

    use crate::bench::bites;

    bites(Bug::CandidateAlone, a_candidate_goes_by_the_best_of_the_logs_that_a_majority_tells_of);
    for bug in [Bug::AdoptOwnLog, Bug::RankByLength, Bug::RecordEpochEarly] {
        bites(bug, a_candidate_keeps_takes_or_leaves_the_log_of_a_voter_as_the_contract_says);
        bites(bug, a_candidate_goes_by_the_best_of_the_logs_that_a_majority_tells_of);
    }
}
