//! What R, S and H decide.

use serde::{Deserialize, Serialize};

use crate::types::Lsn;

/// A decision, with the work that it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Nothing is missing: fence, acknowledged, then healthy.
    None,
    /// The WAL still has what is missing.
    CatchUp {
        /// The first entry to send.
        from: Lsn,
        /// The last one that the session must reach.
        target: Lsn,
    },
    /// The replica holds the image of `from`: the regions that were written since, then the WAL.
    Delta {
        /// What it holds; at least 1.
        from: Lsn,
        /// What the session must reach.
        target: Lsn,
    },
    /// The whole image.
    Rebuild {
        /// What the session must reach.
        target: Lsn,
    },
}

/// What R, S and H decide: `r` is the replica's durable LSN, `None` if it holds no consistent
/// image; `from` the LSN of which it held the image when the first of a chain of broken deltas
/// began, if that is why; `s` the oldest LSN that the primary's WAL retains, `h + 1` if it retains
/// none; `h` the primary's head. First match wins.
pub fn decide(r: Option<Lsn>, from: Option<Lsn>, s: Lsn, h: Lsn) -> Kind {
    match r {
        Some(r) if r >= h => Kind::None,
        Some(r) if s <= r.next() => Kind::CatchUp { from: r.next(), target: h },
        Some(_) | None => by_base(r, from, h),
    }
}

/// What a base lane has to send: the regions written since the image that the replica holds, or all
/// if it holds none, or one that this log knows nothing of.
pub(super) fn by_base(r: Option<Lsn>, from: Option<Lsn>, h: Lsn) -> Kind {
    match r.or(from) {
        Some(from) if from > Lsn(0) && from <= h => Kind::Delta { from, target: h },
        Some(_) | None => Kind::Rebuild { target: h },
    }
}
