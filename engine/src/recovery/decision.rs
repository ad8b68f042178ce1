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
    /// The whole image.
    Rebuild {
        /// What the session must reach.
        target: Lsn,
    },
}

/// What R, S and H decide: `r` is the replica's durable LSN, `None` if it holds no consistent
/// image; `s` the oldest LSN that the primary's WAL retains, `h + 1` if it retains none; `h` the
/// primary's head. First match wins.
pub fn decide(r: Option<Lsn>, s: Lsn, h: Lsn) -> Kind {
    match r {
        None => Kind::Rebuild { target: h },
        Some(r) if r >= h => Kind::None,
        Some(r) if s <= r.next() => Kind::CatchUp { from: r.next(), target: h },
        Some(_) => Kind::Rebuild { target: h },
    }
}
