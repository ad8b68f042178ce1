//! Losses that the masters counted, and whether they fit what clients were told.
//!
//! A failover of a `best_effort` volume may take acknowledged writes. It must count that, and every client
//! that was attached before must be told. So between two checks without a loss the volume is held to
//! everything that the others are held to, and a client that is told of a loss must have been
//! attached since before one.

use std::collections::BTreeMap;
use std::time::Instant;

use super::volumes::Kind;
use crate::workload::roaming::Told;

/// What was counted at each check.
#[derive(Debug)]
pub(super) struct Losses {
    begun: Instant,
    /// By volume: at which time its loss generation was known to be which.
    known: BTreeMap<&'static str, Vec<(Instant, u64)>>,
}

impl Losses {
    /// Before any volume has a client: no loss was counted.
    pub(super) fn begin() -> Self {
        Self { begun: Instant::now(), known: BTreeMap::new() }
    }

    /// All is at rest, and the volume's loss generation is this one. Whether it lost something since the
    /// last look, and what of it can't be.
    pub(super) fn look(
        &mut self,
        kind: &Kind,
        generation: u64,
        told: &[Told],
    ) -> (bool, Vec<String>) {
        let known = self.known.entry(kind.name).or_insert_with(|| vec![(self.begun, 0)]);
        let last = known.last().map_or(0, |(_, generation)| *generation);
        let mut wrong = Vec::new();
        if generation < last {
            wrong.push(format!("its loss generation went back from {last} to {generation}"));
        }
        if generation > last && !kind.may_lose() {
            wrong.push(format!(
                "{} losses were counted; it must not lose anything",
                generation - last
            ));
        }
        for told in told {
            // A generation that was known before the client attached is one that it attached under, or an
            // older one.
            let before = known.iter().rev().find(|(at, _)| *at <= told.attached);
            if before.is_none_or(|(_, before)| generation <= *before) {
                let node = told.node + 1;
                wrong.push(format!("a client at datanode {node} got EIO, and nothing was lost"));
            }
        }
        known.push((Instant::now(), generation));
        let wrong = wrong.into_iter().map(|what| format!("volume {}: {what}", kind.name)).collect();
        (generation > last, wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::super::volumes::KINDS;
    use super::*;

    fn kind(may_lose: bool) -> &'static Kind {
        KINDS.iter().find(|kind| kind.may_lose() == may_lose).expect("there is one")
    }

    fn told(attached: Instant) -> [Told; 1] {
        [Told { node: 0, attached }]
    }

    #[test]
    fn a_client_is_told_of_a_loss_only_if_there_was_one_since_it_attached() {
        let mut losses = Losses::begin();
        let first = Instant::now();
        assert_eq!(losses.look(kind(true), 0, &[]), (false, vec![]));
        assert_eq!(losses.look(kind(true), 0, &told(first)).1.len(), 1, "there was none");
        assert_eq!(losses.look(kind(true), 2, &told(first)), (true, vec![]));
        assert_eq!(losses.look(kind(true), 2, &told(first)), (false, vec![]), "told late");
        assert_eq!(
            losses.look(kind(true), 2, &told(Instant::now())).1.len(),
            1,
            "attached after it"
        );
        assert_eq!(losses.look(kind(true), 1, &[]).1.len(), 1, "it went back");
    }

    #[test]
    fn a_volume_that_must_lose_nothing_is_wrong_if_a_loss_is_counted() {
        let mut losses = Losses::begin();
        assert_eq!(losses.look(kind(false), 0, &[]), (false, vec![]));
        let (lost, wrong) = losses.look(kind(false), 1, &[]);
        assert!(lost && wrong.len() == 1, "{wrong:?}");
    }
}
