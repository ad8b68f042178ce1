//! A member of a set with written acknowledgements that is asked to stand: what it does no more in the
//! epoch that is to end, what it says, and what of that binds its later runs.

use sbk_engine::replication::io::{Input, OpenStream, Opened, Output, Stood, StreamEnd, StreamId};
use sbk_engine::replication::message::{Incomplete, RecoveryId, ToPrimary, ToReplica};
use sbk_engine::replication::view::{RoleView, View};
use sbk_engine::replication::{IgnoredReason, Verdict};
use sbk_engine::types::{BootId, Config, Epoch, Lsn, Millis, NodeId, SessionId, TailId, WriteAck};
use uuid::Uuid;

use crate::bench::{Bench, append, config, entry, opened, replica, table, told};

/// The tail of a replica in this boot of its machine; 1 is that of the bench.
fn tail(boot: u128) -> TailId {
    TailId { boot: BootId(Uuid::from_u128(boot)), count: 0 }
}

/// All of `isr` joined with the tail of boot 1.
fn written(epoch: u64, primary: u128, isr: &[u128]) -> Config {
    let tails = isr.iter().map(|n| (replica(*n).id, tail(1))).collect();
    Config { write_ack: WriteAck::Written, tails, ..config(epoch, primary, isr) }
}

fn stand(bench: &mut Bench, epoch: u64) -> (Verdict, Vec<Output>) {
    bench.feed(Input::Stand { epoch: Epoch(epoch) })
}

fn view(bench: &Bench) -> View {
    bench.replica.view(Millis(bench.now))
}

fn durable(bench: &mut Bench, lsn: u64) -> Vec<Output> {
    let generation = bench.replica.generation();
    bench.feed(Input::Durable { generation, lsn: Lsn(lsn) }).1
}

fn wrote(bench: &mut Bench, lsn: u64) -> Vec<Output> {
    let generation = bench.replica.generation();
    bench.feed(Input::Written { generation, lsn: Lsn(lsn) }).1
}

fn fence(request: u64, config: &Config) -> ToReplica {
    ToReplica::Fence { request, config: config.clone() }
}

/// The replica's word, as it is put on its disk.
fn persisted(outputs: &[Output]) -> Option<Stood> {
    outputs.iter().find_map(|output| match output {
        Output::Persist(kept) => kept.stood,
        _ => None,
    })
}

/// Replica 3 follows 2 in epoch 2, with a log of four entries that are all synced.
fn follower() -> Bench {
    let mut bench = Bench::open(opened(3, 4, 4));
    let config = written(2, 2, &[2, 3]);
    assert_eq!(bench.hear(2, 2, fence(1, &config)).0, Verdict::Applied);
    let cut = ToReplica::Cut { request: 2, end: Lsn(4), table: table(&[(1, 1), (2, 5)]) };
    assert_eq!(bench.hear(2, 2, cut).0, Verdict::Applied);
    bench
}

/// That, and nothing else: no promise, no acknowledgement.
fn says_that_it_stood(outputs: &[Output]) {
    let refused = ToPrimary::Refused { fenced: Epoch(2), config: None, stood: Epoch(2) };
    assert_eq!(told(outputs), [refused]);
    assert_eq!(outputs.len(), 1, "{outputs:?}");
}

/// Entries of epoch 2 behind `prev`, and a question for a lease.
fn feed(prev: u64, last: u64) -> ToReplica {
    let entries = (prev + 1..=last).map(|lsn| entry(2, lsn)).collect();
    let mut append = append(5, 4, prev, entries);
    append.stamp = Some(Millis(900));
    ToReplica::Append(append)
}

#[test]
fn it_acknowledges_and_promises_nothing_more_and_says_so_once_its_log_is_synced() {
    let mut bench = follower();
    bench.hear(2, 2, feed(4, 5));
    let acked = told(&wrote(&mut bench, 5));
    let by_file =
        |m: &ToPrimary| matches!(m, ToPrimary::Ack { durable: Lsn(4), written: Lsn(5), .. });
    assert!(acked.iter().any(by_file), "it is answered before it is synced: {acked:?}");
    bench.hear(2, 2, feed(5, 6));

    let (verdict, outputs) = stand(&mut bench, 2);
    assert_eq!(verdict, Verdict::Applied);
    assert_eq!(persisted(&outputs), Some(Stood { epoch: Epoch(2), tail: tail(1) }));
    assert_eq!((told(&outputs), view(&bench).stood), (vec![], None), "it is not synced yet");
    // Whatever comes of what it has taken already, the old primary hears nothing of it.
    assert_eq!(told(&wrote(&mut bench, 6)), []);
    assert_eq!((told(&durable(&mut bench, 5)), view(&bench).stood), (vec![], None));
    // Nor does it take more or promise: all that it says is why.
    for message in
        [feed(6, 7), feed(6, 6), fence(9, &written(2, 2, &[2, 3])), ToReplica::Probe { request: 9 }]
    {
        let (verdict, outputs) = bench.hear(2, 2, message.clone());
        assert_eq!(verdict, Verdict::Ignored(IgnoredReason::Stood), "{message:?}");
        says_that_it_stood(&outputs);
    }
    assert_eq!(told(&durable(&mut bench, 6)), []);
    let shown = view(&bench);
    assert_eq!((shown.stood, shown.tail, shown.me), (Some(Epoch(2)), tail(1), replica(3)));
    assert_eq!((shown.durable, shown.role), (Lsn(6), RoleView::Idle));

    // The order again, and one for an epoch that is over already: neither is news.
    assert_eq!(stand(&mut bench, 2).0, Verdict::Ignored(IgnoredReason::LateCopy));
    assert_eq!(stand(&mut bench, 1).0, Verdict::Ignored(IgnoredReason::StaleEpoch));
    assert_eq!(view(&bench).stood, Some(Epoch(2)));
}

#[test]
fn it_takes_part_in_the_next_epoch_as_primary_or_as_follower() {
    let mut bench = follower();
    stand(&mut bench, 2);
    let late = bench.feed(Input::Assignment(written(2, 3, &[2, 3]))).0;
    assert_ne!(late, Verdict::Applied, "no primary of the epoch that it stood for the end of");
    assert_eq!(bench.feed(Input::Assignment(written(3, 3, &[3]))).0, Verdict::Applied);
    assert_eq!(view(&bench).role, RoleView::Primary);

    let mut bench = follower();
    stand(&mut bench, 2);
    let (verdict, outputs) = bench.hear(1, 3, fence(1, &written(3, 1, &[1, 3])));
    assert_eq!(verdict, Verdict::Applied);
    assert!(matches!(told(&outputs)[..], [ToPrimary::Facts { .. }]), "{outputs:?}");
    assert_eq!(view(&bench).role, RoleView::Follower);
}

/// What it opens with: a log of four synced entries, and its word for the end of epoch 2.
fn stood_before(now: TailId) -> Opened {
    let mut opened = opened(3, 4, 4);
    opened.tail = now;
    opened.kept.fenced = Epoch(2);
    opened.kept.stood = Some(Stood { epoch: Epoch(2), tail: tail(1) });
    opened
}

/// The failover that names its earlier run may be under way: to the old primary it is as if it were gone, for
/// what it acknowledged now would be on its disk alone when that primary is dropped.
#[test]
fn one_that_stood_and_was_started_again_stays_apart_and_can_be_asked_for_its_new_run() {
    let mut bench = Bench::open(stood_before(tail(1)));
    assert_eq!(view(&bench).stood, Some(Epoch(2)), "all it has is synced by the opening");
    for message in [ToReplica::Probe { request: 1 }, fence(2, &written(2, 2, &[2, 3])), feed(4, 5)]
    {
        let (verdict, outputs) = bench.hear(2, 2, message.clone());
        assert_eq!(verdict, Verdict::Ignored(IgnoredReason::Stood), "{message:?}");
        says_that_it_stood(&outputs);
    }
    // What the masters need to hear of the new run is told already.
    assert_eq!(stand(&mut bench, 2).0, Verdict::Ignored(IgnoredReason::LateCopy));
    let (verdict, outputs) = stand(&mut bench, 3);
    assert_eq!(verdict, Verdict::Applied, "epoch 3 came and is to end as well");
    assert_eq!(persisted(&outputs), Some(Stood { epoch: Epoch(3), tail: tail(1) }));
}

/// Its word was about a log that it may lack the end of. It counts for nothing before it joined again,
/// and to join it has to be met by whoever is primary.
#[test]
fn one_that_stood_and_lost_its_tail_is_met_again_and_is_not_promoted() {
    let mut bench = Bench::open(stood_before(tail(2)));
    assert_eq!(view(&bench).stood, None);
    let promoted = bench.feed(Input::Assignment(written(3, 3, &[2, 3]))).0;
    assert_eq!(
        promoted,
        Verdict::Ignored(IgnoredReason::Incomplete),
        "it joined with another tail"
    );

    let mut bench = Bench::open(stood_before(tail(2)));
    let (verdict, outputs) = bench.hear(2, 2, fence(1, &written(2, 2, &[2, 3])));
    assert_eq!(verdict, Verdict::Applied);
    let told = told(&outputs);
    let [ToPrimary::Facts { facts, .. }] = &told[..] else { panic!("{told:?}") };
    assert_eq!((facts.tail, facts.durable), (tail(2), Lsn(4)));
    // Asked for once more, it stands with the tail that it has.
    let (verdict, outputs) = stand(&mut bench, 2);
    assert_eq!(verdict, Verdict::Applied);
    assert_eq!(persisted(&outputs), Some(Stood { epoch: Epoch(2), tail: tail(2) }));
    assert_eq!(view(&bench).stood, Some(Epoch(2)));
}

#[test]
fn a_primary_stands_for_a_later_epoch_only_and_then_answers_nobody() {
    let mut bench = Bench::open(opened(1, 4, 4));
    bench.feed(Input::Assignment(written(2, 1, &[1])));
    bench.pass(2_000);
    let stream = StreamId(1);
    let session = SessionId(Uuid::from_u128(5));
    bench.feed(Input::OpenStream(OpenStream::shared(stream, session, NodeId(Uuid::nil()))));
    assert!(view(&bench).serving);
    assert_eq!(stand(&mut bench, 2).0, Verdict::Ignored(IgnoredReason::StaleEpoch));
    assert!(view(&bench).serving, "its own epoch ends by another's promotion");
    let (verdict, outputs) = stand(&mut bench, 3);
    assert_eq!(verdict, Verdict::Applied);
    let ended = Output::StreamEnded { stream, reason: StreamEnd::NotPrimary };
    assert!(outputs.contains(&ended), "{outputs:?}");
    assert!(!view(&bench).serving);
}

#[test]
fn a_torn_replica_does_not_stand() {
    let mut torn = opened(3, 0, 0);
    let session = RecoveryId { epoch: Epoch(1), number: 1 };
    let mark = Incomplete { session, from: Lsn(0), base: Lsn(2), target: Lsn(2) };
    torn.kept.incomplete = Some(mark);
    let mut bench = Bench::open(torn);
    assert_eq!(stand(&mut bench, 2).0, Verdict::Ignored(IgnoredReason::Incomplete));
    assert_eq!(view(&bench).stood, None);
}

/// The new primary has cut what it is not told of, and it would lack what it had acknowledged as written
/// until that was sent again.
#[test]
fn a_new_primary_is_told_what_a_follower_holds_once_all_of_that_is_synced() {
    let mut bench = follower();
    bench.hear(2, 2, feed(4, 6));
    wrote(&mut bench, 6);
    let (verdict, outputs) = bench.hear(1, 3, fence(1, &written(3, 1, &[1, 3])));
    assert_eq!(verdict, Verdict::Applied);
    assert_eq!(told(&outputs), []);
    assert_eq!(told(&durable(&mut bench, 5)), []);
    let told = told(&durable(&mut bench, 6));
    let [ToPrimary::Facts { facts, .. }] = &told[..] else { panic!("{told:?}") };
    assert_eq!((facts.durable, facts.tail), (Lsn(6), tail(1)));
}
