//! A promotion that may have lost acknowledged writes, at the replicas.

use sbk_engine::replication::Verdict;
use sbk_engine::replication::io::{Attach, Input, OpenStream, Output, StreamEnd, StreamId};
use sbk_engine::replication::message::ToReplica;
use sbk_engine::types::{
    AttachGeneration, Config, Epoch, LossGeneration, Lsn, Millis, NodeId, SessionId,
};
use uuid::Uuid;

use crate::bench::{Bench, append, config, entry, facts, opened, replica, sent, table};

fn lossy(epoch: u64, primary: u128, isr: &[u128]) -> Config {
    Config { loss_generation: LossGeneration(1), ..config(epoch, primary, isr) }
}

fn persisted(outputs: &[Output]) -> Option<LossGeneration> {
    let kept = outputs.iter().rev().find_map(|output| match output {
        Output::Persist(kept) | Output::Cut { kept, .. } => Some(kept),
        _ => None,
    });
    kept.map(|kept| kept.loss_generation)
}

/// Replica 1 held less than 2, which is given up: the loss is on its disk before it serves, and a
/// frontend session of before ends instead of going on.
#[test]
fn a_chosen_replica_keeps_the_loss_and_ends_the_sessions_of_before() {
    let mut bench = Bench::open(opened(1, 4, 4));
    let (_, outputs) = bench.feed(Input::Assignment(lossy(3, 1, &[1])));
    assert_eq!(persisted(&outputs), Some(LossGeneration(1)), "{outputs:?}");
    let session = SessionId(Uuid::from_u128(5));
    for (n, generation, ends) in [(1, Some(0), true), (2, Some(1), false), (3, None, false)] {
        let (stream, generation) = (StreamId(n), generation.map(LossGeneration));
        let open = OpenStream::shared(stream, session, NodeId(Uuid::nil()));
        let open = match generation {
            Some(_) => OpenStream {
                attach: Attach::Again(AttachGeneration(0)),
                loss_generation: generation,
                ..open
            },
            None => open,
        };
        let (_, outputs) = bench.feed(Input::OpenStream(open));
        let ended = Output::StreamEnded { stream, reason: StreamEnd::SessionLost };
        assert_eq!(outputs.contains(&ended), ends, "session of loss {generation:?}: {outputs:?}");
    }
}

/// Replica 2 was given up and comes back with more than the replica that went on. What both count
/// as committed differs: without a loss that stops everything, after one it is rebuilt.
#[test]
fn a_member_that_was_given_up_is_rebuilt_when_it_comes_back() {
    for (primary, rebuilt) in [(lossy(3, 1, &[1]), true), (config(3, 1, &[1]), false)] {
        let mut bench = Bench::open(opened(1, 4, 4));
        let (_, probed) = bench.feed(Input::Assignment(primary));
        let outputs = bench.meet(2, 3, &probed, facts(table(&[(1, 1)]), 9, 9));
        let messages = sent(&outputs, 2);
        let begun = messages.iter().any(|m| matches!(m, ToReplica::BeginRebuild { .. }));
        let cut = messages.iter().any(|m| matches!(m, ToReplica::Cut { .. }));
        assert_eq!((begun, cut), (rebuilt, false), "{messages:?}");
    }
    // One that holds no committed entry that the chosen one lacks is only cut.
    let mut bench = Bench::open(opened(1, 4, 4));
    let (_, probed) = bench.feed(Input::Assignment(lossy(3, 1, &[1])));
    let outputs = bench.meet(2, 3, &probed, facts(table(&[(1, 1)]), 4, 9));
    let cut = |m: &ToReplica| matches!(m, ToReplica::Cut { end, .. } if end.0 == 4);
    assert!(sent(&outputs, 2).iter().any(cut), "{outputs:?}");
}

/// The loss generation that a follower keeps is its primary's, in whichever epoch of the tenure it
/// was cut. [Kept only if the newest configuration was known, it went missing when the primary went
/// on to another epoch between its questions: the next loss could not be told from a divergence.]
#[test]
fn a_follower_keeps_the_loss_generation_of_its_primarys_tenure() {
    let mut bench = Bench::open(opened(2, 4, 4));
    let (verdict, _) = bench.hear(1, 3, ToReplica::Fence { request: 1, config: lossy(3, 1, &[1]) });
    assert_eq!(verdict, Verdict::Applied);
    let end = Lsn(4);
    let cut = ToReplica::Cut { request: 2, end, table: table(&[(1, 1)]) };
    let (_, outputs) = bench.hear(1, 4, cut);
    assert_eq!(persisted(&outputs), Some(LossGeneration(1)), "{outputs:?}");
}

/// Who holds its promise is told, and no longer than it holds.
#[test]
fn a_promise_is_shown_as_long_as_it_binds() {
    let mut bench = Bench::open(opened(2, 4, 4));
    bench.hear(1, 2, ToReplica::Fence { request: 1, config: config(2, 1, &[1, 2]) });
    let end = Lsn(4);
    bench.hear(1, 2, ToReplica::Cut { request: 2, end, table: table(&[(1, 1)]) });
    let mut fed = append(5, 4, 4, vec![entry(2, 5)]);
    fed.stamp = Some(Millis(77));
    bench.hear(1, 2, ToReplica::Append(fed));
    let promised = |bench: &Bench| bench.replica.view(Millis(bench.now)).promised;
    assert!(promised(&bench).contains(&replica(1).id));
    bench.pass(1_500);
    assert!(promised(&bench).is_empty());
    assert_eq!(bench.replica.view(Millis(bench.now)).epoch, Epoch(2));
}
