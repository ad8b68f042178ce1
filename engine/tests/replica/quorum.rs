//! A volume whose voters' majority decides: a candidate, and a primary with a slow minority.

use sbk_engine::recovery::FailureKind;
use sbk_engine::replication::Verdict;
use sbk_engine::replication::io::{Input, IsrChange, Output, Payload, Proposal};
use sbk_engine::replication::message::{
    Facts, Incomplete, Lineage, RecoveryId, ToPrimary, ToReplica,
};
use sbk_engine::replication::room::SpaceTold;
use sbk_engine::types::{Config, Durability, Epoch, Lsn, Millis, Wish};

use crate::bench::{
    Bench, append, config, entry, facts, opened, replica, sent, table, told, volume,
};

/// Voters `isr`, the primary one of them.
fn voters(epoch: u64, primary: u128, isr: &[u128]) -> Config {
    Config { durability: Durability::SyncQuorum, ..config(epoch, primary, isr) }
}

fn durable(bench: &mut Bench, lsn: u64) -> Vec<Output> {
    let generation = bench.replica.generation();
    bench.feed(Input::Durable { generation, lsn: Lsn(lsn) }).1
}

/// Replica 1 with a log of epoch 1 up to 6, committed up to 4, is named in epoch 3.
fn candidate() -> (Bench, Vec<Output>) {
    let mut bench = Bench::open(opened(1, 4, 6));
    let (verdict, probed) = bench.feed(Input::Assignment(voters(3, 1, &[1, 2, 3])));
    assert_eq!(verdict, Verdict::Applied);
    (bench, probed)
}

/// What a voter holds that followed the primary of epoch 2 from LSN 6 on.
fn newer(durable: u64) -> Facts {
    facts(table(&[(1, 1), (2, 6)]), 5, durable)
}

fn cuts(outputs: &[Output], to: u128) -> Vec<Lsn> {
    let cut = |message: &ToReplica| match message {
        ToReplica::Cut { end, .. } => Some(*end),
        _ => None,
    };
    sent(outputs, to).iter().filter_map(cut).collect()
}

fn fetch(outputs: &[Output]) -> Option<(u64, Lsn, Lsn)> {
    sent(outputs, 2).iter().find_map(|message| match message {
        ToReplica::Fetch { request, prev, last } => Some((*request, *prev, *last)),
        _ => None,
    })
}

fn proposed(outputs: &[Output]) -> Vec<IsrChange> {
    let change = |output: &Output| match output {
        Output::Propose(Proposal { change, .. }) => Some(change.clone()),
        _ => None,
    };
    outputs.iter().filter_map(change).collect()
}

#[test]
fn a_candidate_whose_log_is_the_best_of_a_majority_cuts_the_others() {
    let (bench, probed) = candidate();
    let view = bench.replica.view(Millis(bench.now));
    assert_eq!(view.table_epoch, Some(Epoch(1)), "its epoch begins where its log turns out to end");
    assert!(view.reason.contains("1 of 3 answered, 2 are needed"), "{}", view.reason);
    // The other one's log is longer, and of an older epoch.
    let mut bench = {
        let mut kept = opened(1, 4, 6);
        kept.kept.table = table(&[(1, 1), (2, 6)]);
        kept.kept.fenced = Epoch(2);
        let mut bench = Bench::open(kept);
        bench.feed(Input::Assignment(voters(3, 1, &[1, 2, 3])));
        bench
    };
    let outputs = bench.meet(2, 3, &probed, facts(table(&[(1, 1)]), 4, 9));
    assert_eq!(
        cuts(&outputs, 2),
        [Lsn(5)],
        "what it has beyond the common end was never committed"
    );
}

#[test]
fn a_candidate_cuts_its_own_tail_and_fetches_what_it_lacks() {
    let (mut bench, probed) = candidate();
    let outputs = bench.meet(2, 3, &probed, newer(8));
    let cut = outputs.iter().position(|o| matches!(o, Output::Cut { end, .. } if *end == Lsn(5)));
    assert!(cut.is_some(), "entry 6 here is of epoch 1: {outputs:?}");
    let (request, prev, last) = fetch(&outputs).expect("it asks for the rest");
    assert_eq!((prev, last), (Lsn(5), Lsn(8)));
    assert!(cuts(&outputs, 2).is_empty(), "nobody is cut before the log is whole");

    let entries = vec![entry(2, 6), entry(2, 7)];
    let message = ToPrimary::Entries { request, prev, entries: entries.clone() };
    let (verdict, outputs) = bench.answer(2, 3, message.clone());
    assert_eq!(verdict, Verdict::Applied);
    assert!(outputs.contains(&Output::Append { headers: entries, payload: Payload::Feed }));
    let (request, prev, last) = fetch(&outputs).expect("and for what did not fit");
    assert_eq!((prev, last), (Lsn(7), Lsn(8)));
    assert!(matches!(bench.answer(2, 3, message).0, Verdict::Ignored(_)), "a late copy");

    let message = ToPrimary::Entries { request, prev, entries: vec![entry(2, 8)] };
    let (_, outputs) = bench.answer(2, 3, message);
    assert!(cuts(&outputs, 2).is_empty(), "its log is not durable yet");
    let outputs = durable(&mut bench, 8);
    assert_eq!(cuts(&outputs, 2), [Lsn(8)]);
    assert_eq!(bench.replica.view(Millis(bench.now)).table_epoch, Some(Epoch(3)));
}

/// Entries of another epoch than the table tells, with a gap, or none at all.
#[test]
fn a_candidate_takes_nothing_that_is_not_the_log_it_was_told_of() {
    for entries in [vec![entry(1, 6)], vec![entry(2, 7)], vec![]] {
        let (mut bench, probed) = candidate();
        let outputs = bench.meet(2, 3, &probed, newer(8));
        let (request, prev, _) = fetch(&outputs).expect("it asks for the rest");
        let message = ToPrimary::Entries { request, prev, entries };
        let (verdict, outputs) = bench.answer(2, 3, message.clone());
        assert!(matches!(verdict, Verdict::Ignored(_)), "{message:?}");
        assert!(!outputs.iter().any(|output| matches!(output, Output::Append { .. })));
        let view = bench.replica.view(Millis(bench.now));
        assert!(view.reason.contains("1 of 3 answered"), "it is asked anew: {}", view.reason);
    }
}

#[test]
fn a_candidate_that_would_need_the_whole_image_names_the_holder_of_the_best_log() {
    let (mut bench, probed) = candidate();
    let best = Facts { retained: Lsn(7), ..newer(8) };
    let outputs = bench.meet(2, 3, &probed, best);
    assert_eq!(proposed(&outputs), [IsrChange::Yield { to: replica(2) }]);
    assert!(!outputs.iter().any(|output| matches!(output, Output::Cut { .. })), "it keeps its log");
}

#[test]
fn an_incomplete_voter_is_absent() {
    let (mut bench, probed) = candidate();
    let session = RecoveryId { epoch: Epoch(2), number: 1 };
    let mark = Incomplete { session, from: Lsn(0), base: Lsn(5), target: Lsn(8) };
    bench.meet(2, 3, &probed, Facts { incomplete: Some(mark), ..newer(8) });
    let view = bench.replica.view(Millis(bench.now));
    assert!(view.reason.contains("1 of 3 answered"), "{}", view.reason);
}

/// The old primary reads under the promises of a majority, which need not be the candidate's own.
#[test]
fn a_candidate_waits_out_what_the_answerers_promised_to_others() {
    for (promised_ms, ready) in [(0, true), (500, false)] {
        let mut bench = Bench::open(opened(1, 4, 6));
        // Its own have run out, whatever an earlier run promised.
        bench.now += 5_000;
        let (_, probed) = bench.feed(Input::Assignment(voters(3, 1, &[1, 2, 3])));
        let told = Facts { promised_ms, ..facts(table(&[(1, 1)]), 4, 6) };
        bench.meet(2, 3, &probed, told);
        bench.pass(499);
        assert_eq!(bench.replica.view(Millis(bench.now)).ready, ready, "{promised_ms} ms");
        bench.pass(2);
        assert!(bench.replica.view(Millis(bench.now)).ready);
    }
}

/// Replica 1, elected by itself and 2; 3 says nothing.
fn elected() -> Bench {
    let mut bench = Bench::open(opened(1, 4, 6));
    bench.now += 5_000;
    let (_, probed) = bench.feed(Input::Assignment(voters(3, 1, &[1, 2, 3])));
    let outputs = bench.meet(2, 3, &probed, facts(table(&[(1, 1)]), 4, 6));
    let request = sent(&outputs, 2)
        .iter()
        .find_map(|message| match message {
            ToReplica::Cut { request, .. } => Some(*request),
            _ => None,
        })
        .expect("a cut");
    bench.answer(2, 3, ToPrimary::CutDone { request, durable: Lsn(6) });
    bench
}

fn ack(bench: &mut Bench, durable: u64, recorded: u64) -> Vec<Output> {
    let message = ToPrimary::Ack {
        durable: Lsn(durable),
        recorded: Some(Epoch(recorded)),
        promised: Some(Millis(bench.now)),
        written: Lsn(durable),
        space: SpaceTold::default(),
    };
    bench.answer(2, 3, message).1
}

/// Raft's figure 8: an entry of an earlier epoch on a majority is not committed by that alone.
#[test]
fn what_an_earlier_epoch_logged_is_committed_with_the_start_of_this_one() {
    let mut bench = elected();
    ack(&mut bench, 6, 1);
    assert_eq!(bench.replica.view(Millis(bench.now)).committed, Lsn(4));
    ack(&mut bench, 6, 3);
    assert_eq!(bench.replica.view(Millis(bench.now)).committed, Lsn(6));
}

/// A minority that is silent for ever holds up no commit, no read, leaves no list, and is nothing
/// that the masters would replace the primary for.
#[test]
fn a_silent_minority_costs_nothing() {
    let mut bench = elected();
    let mut outputs = Vec::new();
    for _ in 0..100 {
        outputs.extend(bench.pass(100));
        ack(&mut bench, 6, 3);
    }
    let view = bench.replica.view(Millis(bench.now));
    assert!(view.serving && view.lacking.is_empty() && view.lacking_ms == 0, "{view:?}");
    assert_eq!(proposed(&outputs), []);
    // It does not wake up for it either, but to ask whether it is back.
    let due = bench.replica.next_deadline().expect("it renews its leases").0;
    assert!(due >= bench.now + 50, "due in {} ms", due - bench.now);
}

/// Without a majority nothing is read.
#[test]
fn a_primary_without_a_majority_serves_no_reads() {
    let mut bench = elected();
    ack(&mut bench, 6, 3);
    assert!(bench.replica.view(Millis(bench.now)).serving);
    bench.pass(1_001);
    let view = bench.replica.view(Millis(bench.now));
    assert!(!view.serving && view.lacking.len() == 2, "{view:?}");
    assert!(view.reason.contains("a majority"), "{}", view.reason);
}

/// A voter is wiped where it stands in the list, once what it holds is known to be on others.
#[test]
fn a_voter_is_rebuilt_without_leaving_the_list() {
    let begun = |outputs: &[Output]| {
        sent(outputs, 3).iter().any(|message| matches!(message, ToReplica::BeginRebuild { .. }))
    };
    for (retained, expected) in [(4, true), (3, false)] {
        let mut mine = opened(1, 4, 4);
        mine.retained = Lsn(retained);
        let mut bench = Bench::open(mine);
        let (_, probed) = bench.feed(Input::Assignment(voters(3, 1, &[1, 2, 3])));
        bench.meet(2, 3, &probed, facts(table(&[(1, 1)]), 4, 4));
        let outputs = bench.meet(3, 3, &probed, facts(table(&[(1, 1)]), 2, 2));
        let request = sent(&outputs, 3)
            .iter()
            .find_map(|message| match message {
                ToReplica::Cut { request, .. } => Some(*request),
                _ => None,
            })
            .expect("a cut");
        let (_, outputs) = bench.answer(3, 3, ToPrimary::CutDone { request, durable: Lsn(2) });
        assert_eq!(begun(&outputs), expected, "WAL from {retained}");
        if expected {
            continue;
        }
        // The WAL was recycled under its catch-up, and this primary does not know how far: what
        // the voter holds may still be needed.
        let cause = FailureKind::WalRecycled;
        bench.feed(Input::FeedFailed { replica: replica(3).id, cause });
        let probed = bench.pass(1_000);
        let outputs = bench.meet(3, 3, &probed, facts(table(&[(1, 1), (3, 5)]), 2, 2));
        let request = sent(&outputs, 3)
            .iter()
            .find_map(|message| match message {
                ToReplica::Cut { request, .. } => Some(*request),
                _ => None,
            })
            .expect("a cut");
        let (_, outputs) = bench.answer(3, 3, ToPrimary::CutDone { request, durable: Lsn(2) });
        assert!(!begun(&outputs), "its copy may be needed");
        let generation = bench.replica.generation();
        let (checkpoint, retained) = (Lsn(4), Lsn(5));
        let moved = Input::Checkpointed { generation, checkpoint, retained };
        assert!(begun(&bench.feed(moved).1), "now it is known that it is not");
    }
}

/// A listed voter obeys, as no other member does.
#[test]
fn a_voter_takes_a_rebuild_and_answers_a_fetch() {
    let mut bench = Bench::open(opened(1, 4, 6));
    let config = voters(3, 2, &[1, 2, 3]);
    let (_, outputs) = bench.hear(2, 3, ToReplica::Fence { request: 1, config });
    let facts = told(&outputs).into_iter().find_map(|message| match message {
        ToPrimary::Facts { facts, .. } => Some(facts),
        _ => None,
    });
    // What an earlier run may have promised binds it still.
    assert!(facts.is_some_and(|facts| facts.promised_ms > 1_000 && facts.retained == Lsn(1)));
    let (_, outputs) =
        bench.hear(2, 3, ToReplica::Fetch { request: 2, prev: Lsn(4), last: Lsn(6) });
    let lineage = Lineage { volume: volume(), epoch: Epoch(3), from: replica(1), to: replica(2) };
    let fetched = Output::SendFetched { lineage, request: 2, prev: Lsn(4), last: Lsn(6) };
    assert!(outputs.contains(&fetched), "{outputs:?}");
    let beyond = ToReplica::Fetch { request: 3, prev: Lsn(4), last: Lsn(7) };
    assert!(matches!(bench.hear(2, 3, beyond).0, Verdict::Ignored(_)), "it has no entry 7");

    let session = RecoveryId { epoch: Epoch(3), number: 1 };
    let mark = Incomplete { session, from: Lsn(0), base: Lsn(9), target: Lsn(9) };
    let state = sbk_engine::replication::log::LogState::new(16);
    let table = table(&[(1, 1)]);
    let begin = ToReplica::BeginRebuild { request: 4, mark, table, state };
    let (verdict, outputs) = bench.hear(2, 3, begin);
    assert_eq!(verdict, Verdict::Applied);
    assert!(outputs.iter().any(|output| matches!(output, Output::Wipe { .. })));
    let lost = bench.hear(2, 3, ToReplica::Fetch { request: 5, prev: Lsn(4), last: Lsn(6) });
    assert!(matches!(lost.0, Verdict::Ignored(_)), "an INCOMPLETE voter gives nothing");
    bench.hear(2, 3, ToReplica::Append(append(10, 9, 9, vec![])));
}

/// What an earlier primary committed is known once everything before this epoch is: only then it can
/// be told whether those that remain have it.
#[test]
fn a_voter_leaves_once_a_majority_without_it_has_all_that_was_ever_committed() {
    let mut bench = elected();
    let leave = [replica(3).id].into();
    bench.feed(Input::Wish(Wish { primary: None, leave }));
    let outputs = [ack(&mut bench, 6, 1), bench.pass(1_000)].concat();
    assert_eq!(proposed(&outputs), [], "nothing is committed in this epoch");
    let expected = [IsrChange::Leave { replica: replica(3).id }];
    assert_eq!(proposed(&ack(&mut bench, 6, 3)), expected);
}
