//! How each volume came to its configuration: its newest epochs, each with its time and reason.
//!
//! Replicated beside the state, so that it outlives a leader, and for people only: nothing is
//! decided by it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::state::State;
use crate::types::{Epoch, ReplicaId, ReplicaRef, VolumeId};

/// Epochs kept of each volume.
pub const MAX_EPOCHS: usize = 16;
/// Longest reason, in bytes; the rest of a longer one is dropped.
pub const MAX_REASON: usize = 256;

/// When and why something was proposed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Milliseconds since 1970 on the proposing leader's clock; 0 if it was not told.
    pub at_ms: u64,
    /// In words; empty if what was proposed says it all.
    pub reason: String,
}

/// One epoch of one volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Minted {
    /// Its number.
    pub epoch: Epoch,
    /// Its primary.
    pub primary: ReplicaRef,
    /// Its in-sync set.
    pub isr: BTreeSet<ReplicaId>,
    /// When and why it was proposed.
    pub note: Note,
}

/// The newest epochs of every volume that is not deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct History(BTreeMap<VolumeId, Vec<Minted>>);

impl History {
    /// Notes what a command minted that was applied since `state` was at catalogue revision
    /// `before`.
    pub fn note(&mut self, state: &State, before: u64, note: &Note) {
        if state.revision() == before {
            return;
        }
        for volume in state.volumes().values().filter(|volume| volume.changed > before) {
            let Some(assignment) = &volume.assignment else { continue };
            let minted = self.0.entry(volume.id).or_default();
            if minted.last().is_some_and(|last| last.epoch == assignment.epoch) {
                continue;
            }
            let note = Note { at_ms: note.at_ms, reason: shortened(&note.reason) };
            let (epoch, primary) = (assignment.epoch, assignment.primary);
            minted.push(Minted { epoch, primary, isr: assignment.isr.clone(), note });
            forget(minted);
        }
        if self.0.len() > state.volumes().len() {
            self.0.retain(|id, _| state.volumes().contains_key(id));
        }
    }

    /// The newest epochs of a volume, the oldest first. Not always all of them: what is dropped
    /// first is what came before the last change of the primary.
    pub fn of(&self, volume: VolumeId) -> &[Minted] {
        self.0.get(&volume).map_or(&[], Vec::as_slice)
    }
}

/// Drops an epoch if there are too many: one from before the last change of the primary (but the
/// one that it ended), or else the oldest after it.
fn forget(minted: &mut Vec<Minted>) {
    if minted.len() <= MAX_EPOCHS {
        return;
    }
    let changed = minted.windows(2).rposition(|two| two[0].primary != two[1].primary);
    minted.remove(match changed {
        Some(0) => 2,
        Some(_) | None => 0,
    });
}

fn shortened(reason: &str) -> String {
    let fits = |end: &usize| *end <= MAX_REASON && reason.is_char_boundary(*end);
    let end = (0..=reason.len().min(MAX_REASON)).rev().find(fits).unwrap_or(0);
    reason[..end].to_owned()
}
