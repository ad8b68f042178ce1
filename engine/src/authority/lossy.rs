//! Promotions that may lose acknowledged writes: the only way on for a volume that nobody can take
//! over without a loss. Each raises the volume's loss generation, so that no client goes on as if
//! nothing had happened.

use std::collections::BTreeSet;

use super::command::Response;
use super::refusal::Refusal;
use super::state::{Assignment, State};
use crate::bugs::{Bug, on};
use crate::types::{Durability, Epoch, NodeId, ReplicaId, ReplicaRef, TailId, VolumeId};

impl State {
    /// Makes `primary` the only in-sync replica, on an operator's word that the nodes in `given_up`
    /// don't run and that what only they hold is lost.
    pub(super) fn recover(
        &mut self,
        volume: VolumeId,
        expected: Epoch,
        primary: ReplicaRef,
        given_up: &BTreeSet<NodeId>,
        stood: Option<TailId>,
    ) -> Response {
        let assignment = self.in_force(volume, expected)?;
        self.check_given_up(volume, given_up)?;
        self.check_run(volume, primary)?;
        self.complete(volume, primary.id)?;
        // What it holds is all that will be left of the volume. [An order of the given-up primary to
        // begin a rebuild was still under way and wiped it, before it had heard of its own epoch.]
        if !on(Bug::RecoverUnfenced) {
            self.check_stands(volume, primary.id, stood)?;
        }
        self.check_lost(volume, assignment, given_up)?;
        let node = self.live(volume)?.replicas[&primary.id].node;
        if given_up.contains(&node) {
            return Err(Refusal::GivenUp { replica: primary.id, node });
        }
        self.mint_lossy(volume, primary)
    }

    /// The next epoch of a volume that goes on with what `primary` holds and nothing else.
    pub(super) fn mint_lossy(&mut self, volume: VolumeId, primary: ReplicaRef) -> Response {
        let tail = self.tail(volume, primary.id).filter(|_| self.acks_written(volume));
        self.mint(volume, |assignment| {
            assignment.begin_tenure(primary, None);
            assignment.isr = BTreeSet::from([primary.id]);
            assignment.loss_generation = assignment.loss_generation.next();
            assignment.tails = tail.map(|tail| (primary.id, tail)).into_iter().collect();
        })
    }

    /// Whether a failover to the replica may lose acknowledged writes: in `best_effort` the primary
    /// acknowledged by itself, so only its own replica is known to have them all; and not even that if its
    /// log may have lost its end. What nobody else holds a copy of can't be told.
    pub(super) fn failover_loses(
        &self,
        volume: VolumeId,
        replica: ReplicaId,
    ) -> Result<bool, Refusal> {
        let live = self.live(volume)?;
        let whole = |isr: &BTreeSet<_>| isr.len() == 1 || !self.is_doubtful(volume, replica);
        let own =
            live.assignment.as_ref().is_some_and(|a| a.primary.id == replica && whole(&a.isr));
        Ok(live.spec.durability == Durability::BestEffort && !own)
    }

    /// Every node given up is known and holds a replica of the volume: a mistyped one would say
    /// nothing about those that are missing.
    pub(super) fn check_given_up(
        &self,
        volume: VolumeId,
        given_up: &BTreeSet<NodeId>,
    ) -> Result<(), Refusal> {
        let replicas = &self.live(volume)?.replicas;
        for node in given_up {
            if !self.nodes.contains_key(node) {
                return Err(Refusal::UnknownNode { node: *node });
            }
            if !replicas.values().any(|replica| replica.node == *node) {
                return Err(Refusal::NoReplicaThere { volume, node: *node });
            }
        }
        Ok(())
    }

    /// No in-sync replica can take over: each is given up, its node registered without it, or it may have
    /// lost what it acknowledged, and no other is left that could tell. Of voters, those that are left are
    /// no majority, so none of them can be elected.
    fn check_lost(
        &self,
        volume: VolumeId,
        assignment: &Assignment,
        given_up: &BTreeSet<NodeId>,
    ) -> Result<(), Refusal> {
        let left = |id: &&ReplicaId| {
            let node = self.volumes[&volume].replicas[*id].node;
            !given_up.contains(&node) && self.promotable(volume, **id).is_ok()
        };
        let others: Vec<_> = assignment.isr.iter().filter(left).collect();
        if !self.can_go_on(volume, others.iter().copied()) {
            return Ok(());
        }
        match others.first() {
            Some(replica) => {
                let node = self.volumes[&volume].replicas[replica].node;
                Err(Refusal::StillInSync { volume, replica: **replica, node })
            }
            None => Ok(()),
        }
    }
}
