//! Written acknowledgements: what the masters check because an in-sync replica's newest entries may
//! be in the page cache only.

use std::collections::BTreeSet;

use super::command::Response;
use super::refusal::Refusal;
use super::state::State;
use crate::bugs::{Bug, on};
use crate::types::{Durability, Epoch, ReplicaId, ReplicaRef, TailId, VolumeId, WriteAck};

impl State {
    /// Whether the volume acknowledges writes before they are synced.
    pub fn acks_written(&self, volume: VolumeId) -> bool {
        let live = self.volumes.get(&volume);
        live.is_some_and(|live| live.spec.write_ack == WriteAck::Written)
    }

    /// A failover drops members, and what they hold besides: so the new primary has stopped
    /// acknowledging at the epoch that ends, and has synced its log, with the tail that it joined with.
    /// [The old primary was dropped, the new one lost power before it had synced anything, and what it
    /// had acknowledged was on nobody's disk that counted.]
    pub(super) fn check_stood(
        &self,
        volume: VolumeId,
        replica: ReplicaId,
        stood: Option<TailId>,
    ) -> Result<(), Refusal> {
        if !self.acks_written(volume) || on(Bug::FailoverUnstood) {
            return Ok(());
        }
        self.check_stands(volume, replica, stood)
    }

    /// The replica stood with the tail that its node registered last. One that restarted or failed
    /// since is another run, which the caller looks at.
    pub(super) fn check_stands(
        &self,
        volume: VolumeId,
        replica: ReplicaId,
        stood: Option<TailId>,
    ) -> Result<(), Refusal> {
        match stood {
            Some(tail) if self.tail(volume, replica) == Some(tail) => Ok(()),
            Some(_) | None => Err(Refusal::NotStood { replica }),
        }
    }

    /// Goes on with what one in-sync replica has on its disk, because none is known to have all that was
    /// acknowledged but, maybe, those that have been silent for too long: with written acknowledgements
    /// none kept its tail, otherwise its log may have lost its end.
    pub(super) fn salvage(
        &mut self,
        volume: VolumeId,
        expected: Epoch,
        primary: ReplicaRef,
        missing: &BTreeSet<ReplicaId>,
    ) -> Response {
        let assignment = self.in_force(volume, expected)?;
        let of_mode = self.live(volume)?.spec.durability == Durability::SyncAll;
        let in_doubt = of_mode && self.is_doubtful(volume, primary.id);
        if !(self.acks_written(volume) || in_doubt) {
            let why =
                "only where nobody is known to have all that was acknowledged is a volume salvaged";
            return Err(Refusal::BadIsr { volume, why: why.to_owned() });
        }
        if !assignment.isr.contains(&primary.id) {
            return Err(Refusal::NotInSync { volume, replica: primary.id });
        }
        self.check_run(volume, primary)?;
        self.complete(volume, primary.id)?;
        let others = assignment.isr.iter().filter(|id| !missing.contains(id));
        // One that is not open may have all of its tail.
        let kept = |id: &&ReplicaId| {
            let whole = self.complete(volume, **id).is_ok()
                && self.has_kept(volume, **id)
                && !self.is_doubtful(volume, **id);
            whole || self.registered(volume, **id).is_none()
        };
        if let Some(replica) = others.copied().find(|id| kept(&id)) {
            let node = self.live(volume)?.replicas[&replica].node;
            return Err(Refusal::StillInSync { volume, replica, node });
        }
        if missing.contains(&primary.id) || !missing.is_subset(&assignment.isr) {
            let why = "those that are missing are other members of the in-sync set".to_owned();
            return Err(Refusal::BadIsr { volume, why });
        }
        let minted = self.mint_lossy(volume, primary);
        let live = self.volumes.get_mut(&volume).expect("checked: the volume is live");
        let assignment = live.assignment.as_mut().expect("checked: it has an assignment");
        assignment.missing.extend(missing);
        minted
    }
}
