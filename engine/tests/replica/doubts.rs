//! A replica whose log may have lost its end: until when, and what a candidate makes of it.

use sbk_engine::replication::io::{Input, Kept, Opened, Output};
use sbk_engine::replication::message::{Facts, Incomplete, RecoveryId, ToReplica};
use sbk_engine::types::{Config, Durability, Epoch, Lsn, Millis};

use crate::bench::{Bench, append, config, entry, facts, opened, table};

fn doubtful(me: u128, committed: u64, durable: u64) -> Opened {
    let opened = opened(me, committed, durable);
    Opened { kept: Kept { doubtful: true, ..opened.kept.clone() }, ..opened }
}

fn persisted(outputs: &[Output]) -> Vec<bool> {
    let doubt = |output: &Output| match output {
        Output::Persist(kept) => Some(kept.doubtful),
        _ => None,
    };
    outputs.iter().filter_map(doubt).collect()
}

/// It must hold the log below the epoch's start, and what was committed when it was met, durably.
#[test]
fn a_followers_doubt_ends_once_it_holds_what_was_acknowledged_before() {
    let mut bench = Bench::open(doubtful(3, 4, 6));
    let fence = ToReplica::Fence { request: 1, config: config(2, 1, &[1, 2, 3]) };
    bench.hear(1, 2, fence);
    let cut = ToReplica::Cut { request: 2, end: Lsn(6), table: table(&[(1, 1)]) };
    bench.hear(1, 2, cut);
    let sees = |bench: &Bench| bench.replica.view(Millis(bench.now)).doubtful;
    // The epoch starts at 9, and 10 is committed in it.
    let logged = vec![entry(1, 7), entry(1, 8), entry(2, 9)];
    bench.hear(1, 2, ToReplica::Append(append(9, 10, 6, logged)));
    let generation = bench.replica.generation();
    let durable = |lsn| Input::Durable { generation, lsn: Lsn(lsn) };
    bench.feed(durable(7));
    assert!(sees(&bench), "it lacks what was logged before the epoch");
    let (_, outputs) = bench.feed(durable(9));
    assert!(
        sees(&bench),
        "10 was committed when it was opened, maybe by its own word: {outputs:?}"
    );
    bench.hear(1, 2, ToReplica::Append(append(9, 10, 9, vec![entry(2, 10)])));
    assert!(sees(&bench), "not synced");
    let (_, outputs) = bench.feed(durable(10));
    assert!(!sees(&bench));
    assert_eq!(persisted(&outputs).last(), Some(&false), "and on its disk: {outputs:?}");
}

/// Replica 1 is named in epoch 3 among the voters, and is in doubt or not.
fn candidate(sure: bool, voters: &[u128]) -> (Bench, Vec<Output>) {
    let open = if sure { opened(1, 4, 6) } else { doubtful(1, 4, 6) };
    let mut bench = Bench::open(open);
    let config = Config { durability: Durability::SyncQuorum, ..config(3, 1, voters) };
    let (_, probed) = bench.feed(Input::Assignment(config));
    (bench, probed)
}

fn is_elected(bench: &Bench) -> bool {
    let view = bench.replica.view(Millis(bench.now));
    !view.reason.contains("voters answered") && !view.reason.contains("asks the voters")
}

/// Every mix of three voters, of which the third is silent: two that are sure are enough, and with one in
/// doubt the third could know of what that one lost. A rebuilt one was wiped when the others had all.
#[test]
fn a_candidate_waits_for_those_who_know_what_one_in_doubt_may_have_lost() {
    for (mine, theirs) in [(true, true), (true, false), (false, true), (false, false)] {
        let holds = Facts { doubtful: !theirs, ..facts(table(&[(1, 1)]), 4, 6) };
        let (mut bench, probed) = candidate(mine, &[1, 2, 3]);
        bench.meet(2, 3, &probed, holds.clone());
        assert_eq!(is_elected(&bench), mine && theirs, "{mine} {theirs}");
        if mine && theirs {
            continue;
        }
        let why = bench.replica.view(Millis(bench.now)).reason;
        assert!(why.contains("2 of 3 voters answered") && why.contains("can't be read"), "{why}");
        // The third answers: with a longer log, which is the one to go on with.
        let better = facts(table(&[(1, 1)]), 4, 7);
        let outputs = bench.meet(3, 3, &probed, better);
        let fetches = |output: &Output| {
            matches!(output, Output::ToReplica { message: ToReplica::Fetch { .. }, .. })
        };
        assert!(outputs.iter().any(fetches), "{mine} {theirs}: {outputs:?}");

        // Or it is being rebuilt.
        let (mut bench, probed) = candidate(mine, &[1, 2, 3]);
        bench.meet(2, 3, &probed, holds.clone());
        let session = RecoveryId { epoch: Epoch(1), number: 1 };
        let mark = Incomplete { session, from: Lsn(0), base: Lsn(4), target: Lsn(6) };
        let torn = Facts { incomplete: Some(mark), ..facts(table(&[(1, 1)]), 0, 0) };
        bench.meet(3, 3, &probed, torn);
        assert!(is_elected(&bench), "{mine} {theirs}");
    }
}

/// It may come back with what the other one lost. Whether it is gone for good is an operator's word.
#[test]
fn a_candidate_waits_for_a_voter_that_may_know_more_however_long_that_takes() {
    let (mut bench, probed) = candidate(true, &[1, 2, 3]);
    let holds = Facts { doubtful: true, ..facts(table(&[(1, 1)]), 4, 6) };
    bench.meet(2, 3, &probed, holds.clone());
    // Who was not heard for so long is asked again.
    let probed = bench.pass(600_000);
    bench.meet(2, 3, &probed, holds);
    assert!(!is_elected(&bench));
    let why = bench.replica.view(Millis(bench.now)).reason;
    assert!(why.contains("volume recover"), "{why}");
}
