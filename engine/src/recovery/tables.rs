//! The tables of decisions over all inputs of a bounded grid, against tables that are written out
//! here and share no code with the engine: which event is refused in which state, and what comes
//! after a session that failed.

use std::collections::{BTreeMap, BTreeSet};

use super::replica::{Escalation, Facts, Job, Reach, ReplicaState, Session, Stage, Work};
use super::{
    Event, FailureKind, IgnoredReason, Kind, Params, TransportEpoch, Verdict, VolumeState, step,
};
use crate::replication::message::RecoveryId;
use crate::types::{Epoch, Lsn, Millis, ReplicaId};

const NOW: Millis = Millis(1000);
const HERE: &str = "node-1:7301";

fn id(n: u8) -> ReplicaId {
    ReplicaId(uuid::Uuid::from_bytes([n; 16]))
}

fn session(number: u64) -> RecoveryId {
    RecoveryId { epoch: Epoch(5), number }
}

fn assignment(epoch: u64, since: u64, place: &str, others: &[u8], in_sync: &[u8]) -> Event {
    let mut replicas = BTreeMap::from([(id(1), place.to_owned())]);
    replicas.extend(others.iter().map(|n| (id(*n), format!("node-{n}:7301"))));
    let in_sync: BTreeSet<_> = in_sync.iter().map(|n| id(*n)).collect();
    Event::Assignment { epoch: Epoch(epoch), since: Epoch(since), replicas, in_sync }
}

/// An event about replica `r` in epoch `e`.
type About = fn(Epoch, ReplicaId) -> Event;

fn met(epoch: Epoch, replica: ReplicaId, at: &str, transport: u64) -> Event {
    let (endpoint, transport) = (at.to_owned(), TransportEpoch(transport));
    Event::ProbeSucceeded { epoch, replica, endpoint, transport }
}

fn lost(epoch: Epoch, replica: ReplicaId, at: &str) -> Event {
    Event::ProbeFailed { epoch, replica, endpoint: at.to_owned() }
}

fn told(epoch: Epoch, replica: ReplicaId, transport: u64, r: Option<u64>) -> Event {
    torn(epoch, replica, transport, r, None)
}

fn torn(
    epoch: Epoch,
    replica: ReplicaId,
    transport: u64,
    r: Option<u64>,
    from: Option<u64>,
) -> Event {
    let (transport, r, from) = (TransportEpoch(transport), r.map(Lsn), from.map(Lsn));
    Event::RecoveryFacts { epoch, replica, transport, r, from, s: Lsn(1), h: Lsn(8) }
}

fn fenced(epoch: Epoch, replica: ReplicaId, transport: u64, fenced: u64) -> Event {
    let (transport, fenced) = (TransportEpoch(transport), Epoch(fenced));
    Event::FenceCompleted { epoch, replica, transport, fenced }
}

fn unfenced(epoch: Epoch, replica: ReplicaId, transport: u64, fenced: u64) -> Event {
    let (transport, fenced) = (TransportEpoch(transport), Epoch(fenced));
    Event::FenceFailed { epoch, replica, transport, fenced }
}

fn progress(epoch: Epoch, replica: ReplicaId, number: u64, achieved: u64) -> Event {
    Event::SessionProgress { epoch, replica, session: session(number), achieved: Lsn(achieved) }
}

/// How each state is come to from the assignment of epoch 5, of a tenure that began in 3.
fn states() -> Vec<(&'static str, Vec<Event>)> {
    let (e, r) = (Epoch(5), id(1));
    let meet = || met(e, r, HERE, 2);
    let catch_up = || vec![meet(), told(e, r, 2, Some(4))];
    let rebuild = || vec![meet(), told(e, r, 2, None)];
    let delta = || vec![meet(), torn(e, r, 2, None, Some(4))];
    let started = || Event::SessionStarted { epoch: e, replica: r, session: session(1) };
    let prepared = || Event::SessionPrepared { epoch: e, replica: r, session: session(1) };
    let deferred = || Event::SessionDeferred { epoch: e, replica: r, session: session(1) };
    let with = |mut events: Vec<Event>, more: Vec<Event>| {
        events.extend(more);
        events
    };
    vec![
        ("asked", vec![]),
        ("unreachable", vec![lost(e, r, HERE)]),
        ("met", vec![meet()]),
        ("catch-up commanded", catch_up()),
        ("catch-up prepared", with(catch_up(), vec![prepared()])),
        ("catch-up started", with(catch_up(), vec![started()])),
        ("catch-up at 6", with(catch_up(), vec![progress(e, r, 1, 6)])),
        ("rebuild commanded", rebuild()),
        ("rebuild put off", with(rebuild(), vec![deferred()])),
        ("rebuild started", with(rebuild(), vec![started()])),
        ("delta commanded", delta()),
        ("delta started", with(delta(), vec![started()])),
        ("to acknowledge", vec![meet(), told(e, r, 2, Some(8))]),
        ("healthy", vec![meet(), told(e, r, 2, Some(8)), fenced(e, r, 2, 5)]),
        ("called off", with(catch_up(), vec![started(), lost(e, r, HERE)])),
    ]
}

/// For each event what becomes of it in each state, in their order. `+` applied, `D` duplicate, `N`
/// not expected, `O` old session, `U` unknown session, `T` stale transport, `P` stale endpoint, `S`
/// stale epoch, `K` unknown epoch.
const TABLE: &[(&str, &str, About)] = &[
    // asked, unreachable, met | catch-up: commanded, prepared, started, at 6 | rebuild: commanded,
    // put off, started | delta: commanded, started | to acknowledge, healthy, called off
    ("endpoint, the same", "DDD DDDD DDD DD DDD", |epoch, replica| Event::Endpoint {
        epoch,
        replica,
        endpoint: HERE.to_owned(),
    }),
    ("endpoint, another", "+++ ++++ +++ ++ +++", |epoch, replica| Event::Endpoint {
        epoch,
        replica,
        endpoint: "elsewhere:1".to_owned(),
    }),
    ("removal", "+++ ++++ +++ ++ +++", |epoch, replica| Event::Removal { epoch, replica }),
    ("met in the same run", "++D DDDD DDD DD DD+", |e, r| met(e, r, HERE, 2)),
    ("met in an older run", "++T TTTT TTT TT TTT", |e, r| met(e, r, HERE, 1)),
    ("met in a newer run", "+++ ++++ +++ ++ +++", |e, r| met(e, r, HERE, 3)),
    ("met elsewhere", "PPP PPPP PPP PP PPP", |e, r| met(e, r, "elsewhere:1", 2)),
    ("lost", "+++ ++++ +++ ++ +++", |e, r| lost(e, r, HERE)),
    ("lost elsewhere", "PPP PPPP PPP PP PPP", |e, r| lost(e, r, "elsewhere:1")),
    ("facts, R 4", "+++ DDDD +++ ++ ++N", |e, r| told(e, r, 2, Some(4))),
    ("facts, R 8", "+++ ++++ +++ ++ DDN", |e, r| told(e, r, 2, Some(8))),
    ("facts, no R", "+++ ++++ DDD ++ ++N", |e, r| told(e, r, 2, None)),
    ("facts, from 4", "+++ ++++ +++ DD ++N", |e, r| torn(e, r, 2, None, Some(4))),
    ("facts, R 4 and from 4", "MMM MMMM MMM MM MMM", |e, r| torn(e, r, 2, Some(4), Some(4))),
    ("facts of an older run", "++T TTTT TTT TT TTT", |e, r| told(e, r, 1, Some(4))),
    ("facts of a newer run", "+++ ++++ +++ ++ +++", |e, r| told(e, r, 3, Some(4))),
    ("durable to 4", "NNN DDDD NNN NN DDN", |epoch, replica| Event::DurableAck {
        epoch,
        replica,
        lsn: Lsn(4),
    }),
    ("durable to 9", "NNN ++++ NNN NN ++N", |epoch, replica| Event::DurableAck {
        epoch,
        replica,
        lsn: Lsn(9),
    }),
    ("deferred", "UUU +DDD +DD +D UUO", |epoch, replica| Event::SessionDeferred {
        epoch,
        replica,
        session: session(1),
    }),
    ("prepared", "UUU +DDD ++D +D UUO", |epoch, replica| Event::SessionPrepared {
        epoch,
        replica,
        session: session(1),
    }),
    ("started", "UUU ++DD ++D +D UUO", |epoch, replica| Event::SessionStarted {
        epoch,
        replica,
        session: session(1),
    }),
    ("progress to 6", "UUU +++D +++ ++ UUO", |e, r| progress(e, r, 1, 6)),
    ("progress to 7", "UUU ++++ +++ ++ UUO", |e, r| progress(e, r, 1, 7)),
    ("progress of the next", "UUU UUUU UUU UU UUU", |e, r| progress(e, r, 2, 7)),
    ("completed", "UUU ++++ +++ ++ UUO", |epoch, replica| {
        let (session, achieved) = (session(1), Lsn(8));
        Event::SessionClosedCompleted { epoch, replica, session, achieved }
    }),
    ("failed", "UUU ++++ +++ ++ UU+", |epoch, replica| {
        let (session, kind) = (session(1), FailureKind::Transport);
        Event::SessionClosedFailed { epoch, replica, session, kind }
    }),
    ("failed, the next", "UUU UUUU UUU UU UUU", |epoch, replica| {
        let (session, kind) = (session(2), FailureKind::Transport);
        Event::SessionClosedFailed { epoch, replica, session, kind }
    }),
    ("invalidated", "UUU ++++ +++ ++ UU+", |epoch, replica| Event::SessionInvalidated {
        epoch,
        replica,
        session: session(1),
    }),
    ("acknowledged", "NNN NNNN NNN NN +DN", |e, r| fenced(e, r, 2, 5)),
    ("acknowledged, older run", "NNT TTTT TTT TT TTT", |e, r| fenced(e, r, 1, 5)),
    ("acknowledged, newer run", "NNN NNNN NNN NN NNN", |e, r| fenced(e, r, 3, 5)),
    ("acknowledged epoch 2", "NNS SSSS SSS SS SSS", |e, r| fenced(e, r, 2, 2)),
    ("acknowledged epoch 6", "NNK KKKK KKK KK KKK", |e, r| fenced(e, r, 2, 6)),
    ("not acknowledged", "NNN NNNN NNN NN +DN", |e, r| unfenced(e, r, 2, 5)),
    ("not acknowledged, older", "NNT TTTT TTT TT TTT", |e, r| unfenced(e, r, 1, 5)),
];

fn letter(verdict: Verdict) -> char {
    match verdict {
        Verdict::Applied => '+',
        Verdict::Ignored(IgnoredReason::Duplicate) => 'D',
        Verdict::Ignored(IgnoredReason::NotExpected) => 'N',
        Verdict::Ignored(IgnoredReason::OldSession) => 'O',
        Verdict::Ignored(IgnoredReason::UnknownSession) => 'U',
        Verdict::Ignored(IgnoredReason::StaleTransport) => 'T',
        Verdict::Ignored(IgnoredReason::StaleEndpoint) => 'P',
        Verdict::Ignored(IgnoredReason::StaleEpoch) => 'S',
        Verdict::Ignored(IgnoredReason::UnknownEpoch) => 'K',
        Verdict::Ignored(IgnoredReason::UnknownReplica) => '?',
        Verdict::Ignored(IgnoredReason::Malformed) => 'M',
    }
}

/// What becomes of the event; a refused one must change nothing.
fn try_event(state: &VolumeState, event: Event) -> char {
    let mut after = state.clone();
    let (verdict, commands) = step(&mut after, NOW, event);
    if verdict != Verdict::Applied {
        assert_eq!(&after, state, "a refused event changed something");
        assert!(commands.is_empty(), "a refused event led to {commands:?}");
    }
    letter(verdict)
}

#[test]
fn every_event_is_admitted_or_refused_as_the_table_says() {
    let mut cases = 0;
    for (n, (name, events)) in states().into_iter().enumerate() {
        let mut state = VolumeState::new(Params::default());
        for event in std::iter::once(assignment(5, 3, HERE, &[], &[])).chain(events) {
            let (verdict, _) = step(&mut state, NOW, event);
            assert_eq!(verdict, Verdict::Applied, "on the way to {name}");
        }
        for (what, row, about) in TABLE {
            let row: Vec<char> = row.chars().filter(|c| *c != ' ').collect();
            assert_eq!(row.len(), 15, "{what}: one letter for each state");
            // What was observed in any epoch of the tenure counts, and nothing else does.
            for (epoch, expected) in
                [(1, 'S'), (2, 'S'), (3, row[n]), (4, row[n]), (5, row[n]), (6, 'K'), (7, 'K')]
            {
                let got = try_event(&state, about(Epoch(epoch), id(1)));
                assert_eq!(got, expected, "{what} of epoch {epoch}, {name}");
                let got = try_event(&state, about(Epoch(epoch), id(2)));
                let stranger = if (3..=5).contains(&epoch) { '?' } else { expected };
                assert_eq!(got, stranger, "{what} of epoch {epoch}, of a stranger, {name}");
                cases += 2;
            }
        }
    }
    assert_eq!(cases, 15 * 35 * 14, "states, events, epochs and replicas");
}

#[test]
fn an_assignment_is_admitted_or_refused_as_the_contract_says() {
    let mut state = VolumeState::new(Params::default());
    step(&mut state, NOW, assignment(5, 3, HERE, &[2], &[2]));
    let mut cases = 0;
    for epoch in 0..=7 {
        for since in 0..=7 {
            for place in [HERE, "elsewhere:1"] {
                for others in [&[][..], &[2], &[3], &[2, 3]] {
                    for in_sync in [&[][..], &[2], &[1, 2]] {
                        let sound = epoch != 0 && since != 0 && since <= epoch;
                        let same = since == 3 && others == [2] && in_sync == [2];
                        let expected = match (sound, epoch) {
                            (false, _) => 'M',
                            (true, ..=4) => 'S',
                            (true, 5) if !same => 'M',
                            (true, 5) if place == HERE => 'D',
                            (true, _) => '+',
                        };
                        let event = assignment(epoch, since, place, others, in_sync);
                        let got = try_event(&state, event);
                        assert_eq!(got, expected, "{epoch} {since} {place} {others:?} {in_sync:?}");
                        cases += 1;
                    }
                }
            }
        }
    }
    assert_eq!(cases, 8 * 8 * 2 * 4 * 3);
}

/// Whether a failure of a catch-up by itself means that only a base lane helps, and whether it counts
/// towards the number that does.
const FAILURES: [(FailureKind, bool, bool); 9] = [
    (FailureKind::WalRecycled, true, true),
    (FailureKind::PinLost, true, true),
    (FailureKind::Transport, false, true),
    (FailureKind::StoreIo, false, true),
    (FailureKind::StartTimeout, false, true),
    (FailureKind::Stalled, false, true),
    (FailureKind::Invalidated, false, false),
    (FailureKind::Unsettled, false, false),
    (FailureKind::NoSpace, false, false),
];

/// By what is missing and what is there, as sets.
fn by_facts(r: Option<u64>, from: Option<u64>, s: u64, h: u64) -> &'static str {
    let Some(r) = r else { return by_image(from) };
    let mut missing = (1..=h).filter(|lsn| *lsn > r).peekable();
    if missing.peek().is_none() {
        return "none";
    }
    if missing.all(|lsn| lsn >= s) { "catch-up" } else { by_image(Some(r)) }
}

/// By the image that the receiver has, if any.
fn by_image(of: Option<u64>) -> &'static str {
    if of.is_some_and(|lsn| lsn > 0) { "delta" } else { "rebuild" }
}

fn name(kind: Option<Kind>) -> &'static str {
    match kind {
        None => "nothing",
        Some(Kind::None) => "none",
        Some(Kind::CatchUp { .. }) => "catch-up",
        Some(Kind::Delta { .. }) => "delta",
        Some(Kind::Rebuild { .. }) => "rebuild",
    }
}

#[test]
fn what_follows_a_failed_session_is_as_the_table_says() {
    let params = Params::default();
    let budget = params.catch_up_budget;
    let catch_up = (Job::CatchUp { from: Lsn(1) }, None);
    let before = [None, Some(Escalation::WalRecycled), Some(Escalation::PinLost)];
    let rebuilds = before.into_iter().chain([Some(Escalation::Unsettled)]);
    let jobs = std::iter::once(catch_up)
        .chain(before.map(|escalated| (Job::Delta { from: Lsn(1) }, escalated)))
        .chain(rebuilds.map(|escalated| (Job::Rebuild, escalated)));
    let mut cases = 0;
    for (job, escalated) in jobs {
        let of_catch_up = matches!(job, Job::CatchUp { .. });
        for (kind, only_base, counts) in FAILURES {
            for failed in 0..=budget + 1 {
                for in_sync in [false, true] {
                    let mut replica = ReplicaState::new(HERE.to_owned(), in_sync);
                    replica.reach = Reach::Reachable { since: NOW };
                    replica.recovery.escalated = escalated;
                    replica.recovery.failed_catch_ups = failed;
                    let stage = Stage::Running { achieved: None };
                    let (id, target) = (session(1), Lsn(3));
                    replica.work = Work::Session(Session { id, job, target, timed: NOW, stage });
                    replica.fail(kind, NOW, &params);
                    assert_eq!(name(replica.decision(&params)), "nothing", "without new facts");
                    let failures = failed + u32::from(of_catch_up && counts);
                    let sure = escalated.is_some()
                        || of_catch_up && only_base
                        || failures >= budget && !in_sync;
                    let delta = matches!(job, Job::Delta { .. });
                    let whole = escalated == Some(Escalation::Unsettled)
                        || delta && kind == FailureKind::Unsettled;
                    let held = [(None, None), (None, Some(2))];
                    let held = held.into_iter().chain((0..=3).map(|r| (Some(r), None)));
                    for (s, (r, from)) in (0..=4).flat_map(|s| held.clone().map(move |h| (s, h))) {
                        let facts =
                            Facts { r: r.map(Lsn), from: from.map(Lsn), s: Lsn(s), h: Lsn(3) };
                        replica.recovery.facts = Some(facts);
                        let expected = match (whole, sure) {
                            (true, _) => "rebuild",
                            (false, true) => by_image(r.or(from)),
                            (false, false) => by_facts(r, from, s, 3),
                        };
                        let got = name(replica.decision(&params));
                        assert_eq!(got, expected, "{job:?} {kind:?} {failed} {r:?} {from:?} {s}");
                        cases += 1;
                    }
                }
            }
        }
    }
    assert_eq!(cases, 8 * 9 * 7 * 2 * 30);
}
