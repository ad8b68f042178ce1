//! What a replica does when its primary orders it to cut its log or to be rebuilt, in every state that it
//! can be in: which orders it refuses, which it follows, and what it drops then.

use sbk_engine::replication::io::{Input, Kept, Output};
use sbk_engine::replication::log::LogState;
use sbk_engine::replication::message::{Incomplete, RecoveryId, ToPrimary, ToReplica};
use sbk_engine::replication::{IgnoredReason, Verdict};
use sbk_engine::types::{Config, Durability, Epoch, Lsn, Millis};

use crate::bench::{Bench, append, config, opened, table, told};

/// The epoch that it promised, to replica 1.
const FENCED: u64 = 2;
/// Its log at first.
const COMMITTED: u64 = 3;
const END: u64 = 5;

/// What it has been through with its primary.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Past {
    /// It told what it holds.
    Told,
    /// And was cut.
    Reconciled,
    /// A rebuild by another primary left it without an image; it told so.
    Torn,
    /// Session 5 has begun.
    Begun,
    /// It has begun, and it was asked anew what it holds.
    BegunAndAsked,
    /// It has begun and is over.
    Rebuilt,
}

const PASTS: [Past; 6] =
    [Past::Told, Past::Reconciled, Past::Torn, Past::Begun, Past::BegunAndAsked, Past::Rebuilt];

impl Past {
    /// The number of the newest question that it answered.
    fn question(self) -> u64 {
        match self {
            Past::Told | Past::Torn => 1,
            Past::Reconciled => 2,
            Past::Begun | Past::Rebuilt => 3,
            Past::BegunAndAsked => 4,
        }
    }

    fn has_begun(self) -> bool {
        matches!(self, Past::Begun | Past::BegunAndAsked | Past::Rebuilt)
    }
}

fn mark(epoch: u64, number: u64, base: u64) -> Incomplete {
    let session = RecoveryId { epoch: Epoch(epoch), number };
    Incomplete { session, from: Lsn(0), base: Lsn(base), target: Lsn(base + 1) }
}

/// The mark of session 5.
fn fifth() -> Incomplete {
    mark(FENCED, 5, 8)
}

fn order(request: u64, mark: Incomplete) -> ToReplica {
    let (table, state) = (table(&[(1, 1), (2, 6)]), LogState::new(16));
    ToReplica::BeginRebuild { request, mark, table, state }
}

/// Replica 3 with that past in `known`, the configuration of the epoch that it promised; `None` if there is no
/// such past.
fn at(past: Past, known: &Config) -> Option<Bench> {
    let mut opened = opened(3, COMMITTED, END);
    opened.kept.incomplete = (past == Past::Torn).then(|| mark(1, 9, 4));
    let mut bench = Bench::open(opened);
    let mut hears = |message| bench.hear(1, FENCED, message);
    let fence = |request| ToReplica::Fence { request, config: known.clone() };
    assert_eq!(hears(fence(1)).0, Verdict::Applied);
    if past == Past::Reconciled {
        let cut = ToReplica::Cut { request: 2, end: Lsn(END), table: table(&[(1, 1)]) };
        assert_eq!(hears(cut).0, Verdict::Applied);
    }
    if past.has_begun() && hears(order(3, fifth())).0 != Verdict::Applied {
        return None;
    }
    if past == Past::BegunAndAsked {
        assert_eq!(hears(fence(4)).0, Verdict::Applied);
    }
    if past == Past::Rebuilt {
        let Incomplete { session, base, .. } = fifth();
        hears(ToReplica::Append(append(base.0 + 1, base.0, base.0, Vec::new())));
        let (_, outputs) = hears(ToReplica::Close { session, through: base, committed: base });
        assert!(outputs.iter().any(|output| matches!(output, Output::FinishRebuild { .. })));
    }
    Some(bench)
}

/// Whoever has promised a newer epoch says so; else an order that is not followed is not answered.
fn refused(bench: &Bench, verdict: Verdict, outputs: &[Output], epoch: u64) {
    let stale = verdict == Verdict::Ignored(IgnoredReason::StaleEpoch);
    let config = bench.replica.config().cloned().filter(|config| config.epoch > Epoch(epoch));
    let word = ToPrimary::Refused { fenced: Epoch(FENCED), config, stood: Epoch(0) };
    let expected = if stale { vec![word] } else { Vec::new() };
    assert_eq!(told(outputs), expected);
    let said = |output: &Output| matches!(output, Output::ToPrimary { .. } | Output::Trace(_));
    assert!(outputs.iter().all(said), "{outputs:?}");
}

/// Which newer configuration it has heard of.
#[derive(Clone, Copy, Debug, PartialEq)]
enum News {
    None,
    Listed,
    Unlisted,
}

#[test]
fn a_replica_is_rebuilt_by_an_order_exactly_when_the_contract_allows_it() {
    let modes = [Durability::SyncAll, Durability::SyncQuorum, Durability::BestEffort];
    let marks = [mark(FENCED, 4, 8), fifth(), mark(FENCED, 5, 7), mark(FENCED, 6, 8)];
    let (mut cases, mut wiped, mut again, mut listed_ones) = (0, 0, 0, 0);
    for past in PASTS {
        for (durability, listed) in modes.iter().flat_map(|m| [(*m, false), (*m, true)]) {
            for news in [News::None, News::Listed, News::Unlisted] {
                for (epoch, from) in (1..=3).flat_map(|epoch| [(epoch, 1), (epoch, 2)]) {
                    for (request, mark) in marks.iter().flat_map(|m| [(1, *m), (50, *m)]) {
                        let isr = if listed { &[1, 3][..] } else { &[1] };
                        let known = Config { durability, ..config(FENCED, 1, isr) };
                        let Some(mut bench) = at(past, &known) else { continue };
                        if news != News::None {
                            let isr = if news == News::Listed { &[1, 3][..] } else { &[1] };
                            let since = Epoch(FENCED);
                            let next = Config { durability, since, ..config(FENCED + 1, 1, isr) };
                            bench.feed(Input::Assignment(next));
                        }
                        // The configuration that is in force in the epoch of the order, if it is known.
                        let counts = match (epoch, news) {
                            (FENCED, News::None) => listed,
                            (3, News::Listed) => true,
                            _ => false,
                        };
                        let number = mark.session.number;
                        // A session is followed once, and none that is older than another.
                        let underway = past != Past::Rebuilt && mark == fifth();
                        let over = past.has_begun() && (number < 5 || number == 5 && !underway);
                        let expected = if epoch < FENCED {
                            Verdict::Ignored(IgnoredReason::StaleEpoch)
                        } else if from != 1 {
                            Verdict::Ignored(IgnoredReason::NotThePrimary)
                        } else if request <= past.question() || over {
                            Verdict::Ignored(IgnoredReason::LateCopy)
                        } else if counts && durability != Durability::SyncQuorum {
                            Verdict::Ignored(IgnoredReason::ListedInSync)
                        } else {
                            Verdict::Applied
                        };
                        let before = bench.replica.clone();
                        let (found, outputs) = bench.hear(from, epoch, order(request, mark));
                        let case = format!(
                            "{past:?}, {durability}, listed {listed}, {news:?}; {from} in {epoch}, \
                             request {request}: {mark:?}"
                        );
                        assert_eq!(found, expected, "{case}");
                        cases += 1;
                        if found != Verdict::Applied {
                            refused(&bench, found, &outputs, epoch);
                            assert!(bench.replica == before, "{case}");
                            let why = Verdict::Ignored(IgnoredReason::ListedInSync);
                            listed_ones += u32::from(found == why);
                            continue;
                        }
                        let started = ToPrimary::RebuildStarted { session: mark.session };
                        assert_eq!(told(&outputs), [started], "{case}");
                        // What has begun goes on; nothing that it has taken since is dropped.
                        let goes_on = past == Past::Begun && mark == fifth();
                        again += u32::from(goes_on);
                        let wipe = outputs.iter().find_map(|output| match output {
                            Output::Wipe { mark, kept, .. } => Some((*mark, kept.clone())),
                            _ => None,
                        });
                        assert_eq!(wipe.is_some(), !goes_on, "{case}");
                        let Some((of, kept)) = wipe else { continue };
                        wiped += 1;
                        // The mark is on the disk before anything goes, and nothing tells of the old log.
                        assert_eq!((of, kept.incomplete), (mark, Some(mark)), "{case}");
                        assert_eq!(
                            (kept.table.last(), kept.fenced),
                            (None, Epoch(epoch)),
                            "{case}"
                        );
                        let view = bench.replica.view(Millis(bench.now));
                        assert_eq!((view.end, view.committed), (mark.base, mark.base), "{case}");
                    }
                }
            }
        }
    }
    assert_eq!((cases, wiped, again, listed_ones), (4_320, 448, 22, 82));
}

/// What goes to the disk with a cut, or without one.
fn kept(outputs: &[Output]) -> Option<(Option<Lsn>, Kept)> {
    outputs.iter().find_map(|output| match output {
        Output::Cut { end, kept } => Some((Some(*end), kept.clone())),
        Output::Persist(kept) => Some((None, kept.clone())),
        _ => None,
    })
}

#[test]
fn a_replica_cuts_its_log_by_an_order_exactly_when_the_contract_allows_it() {
    let (mut cases, mut cut) = (0, 0);
    for past in [Past::Told, Past::Reconciled, Past::Torn] {
        for (epoch, from) in (1..=3).flat_map(|epoch| [(epoch, 1), (epoch, 2)]) {
            for (request, end) in (0..=END + 2).flat_map(|end| [(1, end), (50, end)]) {
                let mut bench = at(past, &config(FENCED, 1, &[1, 3])).expect("there is");
                let expected = if epoch < FENCED {
                    Verdict::Ignored(IgnoredReason::StaleEpoch)
                } else if from != 1 {
                    Verdict::Ignored(IgnoredReason::NotThePrimary)
                } else if request <= past.question() {
                    Verdict::Ignored(IgnoredReason::LateCopy)
                } else if past == Past::Torn {
                    Verdict::Ignored(IgnoredReason::Incomplete)
                } else if end < COMMITTED {
                    Verdict::Ignored(IgnoredReason::CutBelowCommitted)
                } else if end > END {
                    Verdict::Ignored(IgnoredReason::Malformed)
                } else {
                    Verdict::Applied
                };
                let theirs = table(&[(1, 1), (2, 5)]);
                let message = ToReplica::Cut { request, end: Lsn(end), table: theirs };
                let before = bench.replica.clone();
                let (found, outputs) = bench.hear(from, epoch, message);
                let case = format!("{past:?}; {from} in {epoch}, request {request}: cut to {end}");
                assert_eq!(found, expected, "{case}");
                cases += 1;
                if found != Verdict::Applied {
                    refused(&bench, found, &outputs, epoch);
                    assert!(bench.replica == before, "{case}");
                    continue;
                }
                cut += u32::from(end < END);
                let done = ToPrimary::CutDone { request, durable: Lsn(end) };
                assert_eq!(told(&outputs), [done], "{case}");
                let (to, kept) = kept(&outputs).expect("it is on the disk before it is told");
                assert_eq!(to, (end < END).then_some(Lsn(end)), "{case}");
                // What is kept is described by the primary's table, as far as it is kept.
                let described: &[_] = if end >= 4 { &[(1, 1), (2, 5)] } else { &[(1, 1)] };
                assert_eq!((kept.table, kept.fenced), (table(described), Epoch(epoch)), "{case}");
                assert_eq!(bench.replica.view(Millis(bench.now)).end, Lsn(end), "{case}");
            }
        }
    }
    assert_eq!((cases, cut), (3 * 3 * 2 * 2 * 8, 8));
}

/// A rule that is taken out is noticed.
#[cfg(feature = "bugs")]
#[test]
fn the_tables_of_orders_bite() {
    use sbk_engine::bugs::Bug;

    use crate::bench::bites;

    for bug in [Bug::LateBeginRebuild, Bug::BaseToMember, Bug::TakeOlderEpoch] {
        bites(bug, a_replica_is_rebuilt_by_an_order_exactly_when_the_contract_allows_it);
    }
    for bug in [Bug::SkipCut, Bug::OwnTableAtCut, Bug::TakeOlderEpoch] {
        bites(bug, a_replica_cuts_its_log_by_an_order_exactly_when_the_contract_allows_it);
    }
}
