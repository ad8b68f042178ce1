//! A primary that lives and lacks in-sync members that live too: when another one takes its place.
//!
//! It could not have them leave, be it that fewer than `min_in_sync` would remain, so the volume stands
//! still until they are there. A link between two nodes may be dead while a third reaches both, or while
//! only one of them can open a connection to the other. Then another primary helps. If the reason is
//! another one no move does, and each costs clients a pause. [Two primaries took turns every 4 s, for both
//! lacked a third member that sent heartbeats and whose store was closed.] Nobody knows beforehand which
//! member reaches which, so it is found out by trying, within bounds:
//!
//! * A lacked member is a reason only if another primary could count it: its node is heard, and has it
//!   registered as open and complete. One that is closed or torn nobody reaches.
//! * In `best_effort` it is none. The primary may always have a member leave, and a failover counts a loss.
//! * After a move the next one for this reason waits twice as long, up to [`LONGEST`] doublings, and goes to
//!   a member that has not been primary since the first, as long as there is one.
//! * When nothing was moved for some of those pauses, all that is forgotten.
//!
//! Why volumes still come to serve: if one of `n` in-sync members reaches all others that it must count, it
//! is primary after at most `n - 1` moves, for none is tried twice before it. That is after 2T times
//! `2^(n-1) - 1`, 12 s for three replicas. It lacks nobody then, so it stays. If there is none,
//! it makes no difference who the primary is, and moves become rare. A leader that was elected later begins
//! anew, with the first pause: that adds a move for each election.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::detector::Detector;
use super::state::{Assignment, Durability, State, Volume};
use crate::types::{Epoch, Millis, ReplicaId, VolumeId};

/// Doublings of the pause: with T = 2 s the longest is about two minutes.
const LONGEST: u32 = 5;
/// So many pauses without a move, and moves of before don't count.
const FORGOTTEN: u64 = 4;

/// Moves of one volume for this reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Moves {
    /// The epoch that the newest one was to end, and when it was first proposed.
    epoch: Epoch,
    at: Millis,
    /// How many there were before it.
    before: u32,
    /// From whom it was moved away since the first.
    tried: BTreeSet<ReplicaId>,
}

/// The leader's memory of such moves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lacks(BTreeMap<VolumeId, Moves>);

impl Lacks {
    /// How often the pause before a move that ends this epoch is doubled.
    fn doublings(&self, volume: VolumeId, epoch: Epoch) -> u32 {
        // What ends the same epoch is the same move, proposed again.
        self.0.get(&volume).map_or(0, |moves| match moves.epoch == epoch {
            true => moves.before,
            false => (moves.before + 1).min(LONGEST),
        })
    }

    /// Whether the volume was moved away from the replica, since the first of the moves that count.
    pub(super) fn has_tried(&self, volume: VolumeId, replica: ReplicaId) -> bool {
        self.0.get(&volume).is_some_and(|moves| moves.tried.contains(&replica))
    }

    /// A move is proposed, away from the primary of this assignment.
    pub(super) fn note(&mut self, now: Millis, volume: VolumeId, assignment: &Assignment) {
        let epoch = assignment.epoch;
        let before = self.doublings(volume, epoch);
        let first = || Moves { epoch, at: now, before, tried: BTreeSet::new() };
        let moves = self.0.entry(volume).or_insert_with(first);
        if moves.epoch != epoch {
            (moves.epoch, moves.at, moves.before) = (epoch, now, before);
        }
        let old = assignment.primary.id;
        moves.tried.insert(old);
        if assignment.isr.is_subset(&moves.tried) {
            // Everybody was primary once: from the start.
            moves.tried = BTreeSet::from([old]);
        }
    }

    /// Forgets what is long ago.
    pub(super) fn forget(&mut self, now: Millis, pause: u64) {
        self.0.retain(|_, moves| {
            let next = pause << (moves.before + 1).min(LONGEST);
            now.since(moves.at) < FORGOTTEN * next
        });
    }
}

impl Detector {
    /// T, twice: for so long a primary lacks a member before another one is tried.
    pub(super) fn lacks_pause(&self) -> u64 {
        2 * self.params().suspect_ms
    }

    /// Whether the primary, which lives in its run, is to go for members that it lacks.
    pub(super) fn is_lacking(&self, now: Millis, state: &State, volume: &Volume) -> bool {
        let Some(assignment) = &volume.assignment else { return false };
        let Some(report) = self.report(assignment.primary.id) else { return false };
        let current =
            report.primary_in == Some(assignment.epoch) && report.replica == assignment.primary;
        if !current || volume.spec.durability == Durability::BestEffort {
            return false;
        }
        let pause = self.lacks_pause() << self.lacks.doublings(volume.id, assignment.epoch);
        let counts_elsewhere = |member: &ReplicaId| {
            let node = volume.replicas.get(member).map(|replica| replica.node);
            node.is_some_and(|node| self.is_heard(now, node))
                && state.complete(volume.id, *member).is_ok()
        };
        report.lacking_ms >= pause && report.lacking.iter().any(counts_elsewhere)
    }
}
