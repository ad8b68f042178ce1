//! The masters as one reliable register with compare-and-set on the epoch, and a failover policy
//! that is quick to suspect: a wrong suspicion must be harmless.

use std::collections::{BTreeMap, BTreeSet};

use sbk_engine::replication::io::{IsrChange, Proposal};
use sbk_engine::types::{
    Config, Epoch, Incarnation, LossGeneration, NodeId, Placement, ReplicaId, ReplicaRef, VolumeId,
};
use uuid::Uuid;

#[derive(Clone, Debug)]
pub(crate) struct Masters {
    pub(crate) config: Config,
    pub(crate) registered: BTreeMap<ReplicaId, Incarnation>,
}

/// What a failover knows of a replica.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Report {
    pub(crate) promotable: bool,
    pub(crate) rank: (u64, u64),
}

impl Masters {
    pub(crate) fn new(volume: VolumeId, replicas: &[ReplicaId], blocks: u64) -> Self {
        let placements = replicas.iter().map(|id| {
            let node = NodeId(Uuid::from_u128(id.0.as_u128() + 100));
            (*id, Placement { node, addr: format!("node-{id}") })
        });
        let primary =
            ReplicaRef { id: replicas[0], incarnation: Incarnation { process: 1, open: 1 } };
        let config = Config {
            volume,
            epoch: Epoch(1),
            primary,
            since: Epoch(1),
            isr: replicas[..2].iter().copied().collect(),
            replicas: placements.collect(),
            min_in_sync: 2,
            blocks,
            loss_generation: LossGeneration(0),
        };
        Self { config, registered: BTreeMap::new() }
    }

    pub(crate) fn propose(&mut self, proposal: &Proposal) -> Config {
        if proposal.epoch == self.config.epoch && proposal.primary == self.config.primary {
            let mut isr = self.config.isr.clone();
            match &proposal.change {
                IsrChange::Leave { replica } => {
                    isr.remove(replica);
                }
                IsrChange::Join { replica } => {
                    if self.registered.get(&replica.id) == Some(&replica.incarnation) {
                        isr.insert(replica.id);
                    }
                }
                IsrChange::Burn => {}
            }
            let burn = proposal.change == IsrChange::Burn;
            let enough =
                isr.len() >= self.config.min_in_sync as usize || isr.len() > self.config.isr.len();
            if burn || isr != self.config.isr && enough && isr.contains(&self.config.primary.id) {
                self.config.isr = isr;
                self.config.epoch = self.config.epoch.next();
            }
        }
        self.config.clone()
    }

    /// Chooses another primary. `reports` names the replicas that answer the masters.
    pub(crate) fn fail_over(&mut self, reports: &BTreeMap<ReplicaId, Report>) -> bool {
        let candidates = self
            .config
            .isr
            .iter()
            .filter(|id| reports.get(*id).is_some_and(|report| report.promotable));
        let best = candidates.max_by_key(|id| reports.get(*id).map(|report| report.rank)).copied();
        let Some(id) = best else { return false };
        let Some(incarnation) = self.registered.get(&id).copied() else { return false };
        let answering: BTreeSet<_> =
            self.config.isr.iter().filter(|id| reports.contains_key(*id)).copied().collect();
        if answering.len() >= self.config.min_in_sync as usize {
            self.config.isr = answering;
        }
        self.config.primary = ReplicaRef { id, incarnation };
        self.config.epoch = self.config.epoch.next();
        self.config.since = self.config.epoch;
        true
    }
}
