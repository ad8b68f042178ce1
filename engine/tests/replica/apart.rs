//! A replica that stood for the end of an epoch in which the masters then commit nothing.

use sbk_engine::replication::io::{Input, IsrChange, Opened, Output};
use sbk_engine::replication::log::LogState;
use sbk_engine::replication::message::{Incomplete, RecoveryId, ToPrimary, ToReplica};
use sbk_engine::replication::{IgnoredReason, Verdict};
use sbk_engine::types::{Durability, Epoch, Lsn};

use crate::bench::{Bench, config, facts, opened, table, told};

fn kept(outputs: &[Output]) -> Option<Opened> {
    outputs.iter().rev().find_map(|output| match output {
        Output::Persist(kept) => Some(Opened { kept: kept.clone(), ..opened(3, 0, 5) }),
        _ => None,
    })
}

fn begin() -> ToReplica {
    let session = RecoveryId { epoch: Epoch(2), number: 1 };
    let mark = Incomplete { session, from: Lsn(0), base: Lsn(9), target: Lsn(9) };
    ToReplica::BeginRebuild { request: 9, mark, table: table(&[(1, 1)]), state: LogState::new(16) }
}

/// What the old primary sent before it was given up wipes nothing, in a later run of the replica neither,
/// and does not keep it from the role in the next epoch.
#[test]
fn nothing_of_the_epoch_reaches_a_replica_that_stood() {
    let mut bench = Bench::open(opened(3, 0, 5));
    bench.hear(1, 2, ToReplica::Fence { request: 1, config: config(2, 1, &[1, 2]) });
    let (verdict, outputs) = bench.feed(Input::Stand { epoch: Epoch(2) });
    assert_eq!(verdict, Verdict::Applied);
    let durable = kept(&outputs).expect("it is durable before it is told");
    let (verdict, outputs) = bench.hear(1, 2, begin());
    assert_eq!(verdict, Verdict::Ignored(IgnoredReason::Stood));
    let word = ToPrimary::Refused { fenced: Epoch(2), config: None, stood: Epoch(2) };
    assert_eq!(told(&outputs), [word], "it says why, and nothing else");
    let mut again = Bench::open(durable);
    let fence = ToReplica::Fence { request: 1, config: config(2, 1, &[1, 2]) };
    assert_eq!(again.hear(1, 2, fence).0, Verdict::Ignored(IgnoredReason::Stood));
    for bench in [&mut bench, &mut again] {
        let (verdict, _) = bench.feed(Input::Assignment(config(3, 3, &[3])));
        assert_eq!(verdict, Verdict::Applied, "it is what goes on");
    }
}

/// Primary 1 of epoch 2 is ready, and replica 3 tells it that it stood.
fn told_of_it(isr: &[u128], mode: Durability) -> (Bench, Vec<Output>) {
    let mut bench = Bench::open(opened(1, 5, 5));
    bench.now += 1_100;
    let mut config = config(2, 1, isr);
    config.durability = mode;
    let (_, probes) = bench.feed(Input::Assignment(config));
    bench.meet(2, 2, &probes, facts(table(&[(1, 1)]), 5, 5));
    let word = ToPrimary::Refused { fenced: Epoch(2), config: None, stood: Epoch(2) };
    let (_, outputs) = bench.answer(3, 2, word);
    (bench, outputs)
}

fn proposals(outputs: &[Output]) -> Vec<IsrChange> {
    let changes = outputs.iter().filter_map(|output| match output {
        Output::Propose(proposal) => Some(proposal.change.clone()),
        _ => None,
    });
    changes.collect()
}

/// The nodes that an operator wanted to give up are back before the masters committed anything: the replica
/// that had stood takes part from the next epoch on, and a change that changes nothing makes one.
#[test]
fn a_primary_burns_the_epoch_in_which_a_replica_stands_apart() {
    for (isr, mode) in [(&[1, 2][..], Durability::SyncAll), (&[1, 2, 3], Durability::SyncQuorum)] {
        let (mut bench, outputs) = told_of_it(isr, mode);
        assert_eq!(proposals(&outputs), [IsrChange::Burn], "{mode}");
        let mut next = config(3, 1, isr);
        (next.since, next.durability) = (Epoch(2), mode);
        bench.feed(Input::Assignment(next));
        let later = bench.pass(2_500);
        assert!(!proposals(&later).contains(&IsrChange::Burn), "{mode}: once is enough");
    }
}

/// A member stands for a failover, as a rule: that is not made void at once.
#[test]
fn a_member_that_stood_is_given_the_time_of_a_failover() {
    let (mut bench, outputs) = told_of_it(&[1, 2, 3], Durability::SyncAll);
    assert!(proposals(&outputs).is_empty(), "{outputs:?}");
    let soon = bench.pass(1_000);
    assert!(!proposals(&soon).contains(&IsrChange::Burn), "{soon:?}");
}
