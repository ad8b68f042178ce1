//! The decision over all inputs of a small range, against the contract written out independently,
//! and the arithmetic at the edges. Whole runs are in the cases of `conformance/`.

use super::{Kind, Params, decide};
use crate::types::Lsn;

/// What a replica that holds `1..=r` misses is `r + 1..=h`; the WAL holds `s..=h`. One that was left
/// by a broken delta held `1..=from`. Sets instead of comparisons, so that the table and the code can't
/// share a mistake.
fn expected(r: Option<u64>, from: Option<u64>, s: u64, h: u64) -> Kind {
    let target = Lsn(h);
    let base = |held: u64| match (1..=h).any(|lsn| lsn == held) {
        true => Kind::Delta { from: Lsn(held), target },
        false => Kind::Rebuild { target },
    };
    let Some(r) = r else { return base(from.unwrap_or(0)) };
    let missing: Vec<u64> = (1..=h).filter(|lsn| *lsn > r).collect();
    let retained: Vec<u64> = (1..=h).filter(|lsn| *lsn >= s).collect();
    match missing.first() {
        None => Kind::None,
        Some(first) if missing.iter().all(|lsn| retained.contains(lsn)) => {
            Kind::CatchUp { from: Lsn(*first), target }
        }
        Some(_) => base(r),
    }
}

#[test]
fn the_decision_table_holds_for_every_input() {
    let held = std::iter::once((None, None))
        .chain((0..=9).map(|r| (Some(r), None)))
        .chain((0..=9).map(|from| (None, Some(from))));
    let mut seen = [0u32; 4];
    for h in 0..=8 {
        for s in 0..=h + 1 {
            for (r, from) in held.clone() {
                let decided = decide(r.map(Lsn), from.map(Lsn), Lsn(s), Lsn(h));
                let expected = expected(r, from, s, h);
                assert_eq!(decided, expected, "R {r:?}, from {from:?}, S {s}, H {h}");
                seen[match decided {
                    Kind::None => 0,
                    Kind::CatchUp { .. } => 1,
                    Kind::Rebuild { .. } => 2,
                    Kind::Delta { .. } => 3,
                }] += 1;
            }
        }
    }
    assert_eq!(seen.iter().sum::<u32>(), 1134);
    assert!(seen.iter().all(|count| *count > 10), "the range reaches every decision: {seen:?}");
}

#[test]
fn the_pause_doubles_up_to_its_bound() {
    let params = Params { probe_backoff_ms: 100, probe_backoff_max_ms: 1000, ..Params::default() };
    let pauses: Vec<_> = (0..6).map(|failures| params.backoff(failures)).collect();
    assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000]);
    assert_eq!(params.backoff(u32::MAX), 1000);
}

#[test]
#[should_panic(expected = "a pause of 0 ms")]
fn a_pause_of_nothing_is_refused() {
    super::VolumeState::new(Params { fence_retry_ms: 0, ..Params::default() });
}
