//! The decision over all inputs of a small range, against the contract written out independently,
//! and the arithmetic at the edges. Whole runs are in the cases of `conformance/`.

use super::{Kind, Params, decide};
use crate::types::Lsn;

/// What a replica that holds `1..=r` misses is `r + 1..=h`; the WAL holds `s..=h`. Sets instead of
/// comparisons, so that the table and the code can't share a mistake.
fn expected(r: Option<u64>, s: u64, h: u64) -> Kind {
    let target = Lsn(h);
    let Some(r) = r else { return Kind::Rebuild { target } };
    let missing: Vec<u64> = (1..=h).filter(|lsn| *lsn > r).collect();
    let retained: Vec<u64> = (1..=h).filter(|lsn| *lsn >= s).collect();
    match missing.first() {
        None => Kind::None,
        Some(first) if missing.iter().all(|lsn| retained.contains(lsn)) => {
            Kind::CatchUp { from: Lsn(*first), target }
        }
        Some(_) => Kind::Rebuild { target },
    }
}

#[test]
fn the_decision_table_holds_for_every_input() {
    let mut seen = [0u32; 3];
    for h in 0..=8 {
        for s in 0..=h + 1 {
            for r in std::iter::once(None).chain((0..=9).map(Some)) {
                let decided = decide(r.map(Lsn), Lsn(s), Lsn(h));
                assert_eq!(decided, expected(r, s, h), "R {r:?}, S {s}, H {h}");
                seen[match decided {
                    Kind::None => 0,
                    Kind::CatchUp { .. } => 1,
                    Kind::Rebuild { .. } => 2,
                }] += 1;
            }
        }
    }
    assert_eq!(seen.iter().sum::<u32>(), 594);
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
