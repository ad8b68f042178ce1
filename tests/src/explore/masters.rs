//! The masters: their real state machine as one register that never fails.

use std::collections::{BTreeMap, BTreeSet};

use sbk_engine::authority::{
    Addrs, ClusterId, Command, CreateId, Durability, RegisteredReplica, Registration, State,
    VolumeRequest, WriteAck,
};
use sbk_engine::replication::io::Proposal;
use sbk_engine::types::{BLOCK_SIZE, BootId, Config, Incarnation, NodeId, ReplicaId, ReplicaRef};
use serde::Serialize;
use uuid::Uuid;

use super::world::{BLOCKS, VOLUME};

#[derive(Clone, Debug, Serialize)]
pub(crate) struct Masters {
    state: State,
    /// The configuration in force.
    pub(crate) config: Config,
    registrations: u64,
}

fn node_of(replica: ReplicaId) -> NodeId {
    NodeId(Uuid::from_u128(replica.0.as_u128() + 100))
}

fn registration(replica: ReplicaId, process: u64, revision: u64) -> Registration {
    Registration {
        node: node_of(replica),
        process,
        revision,
        boot: BootId(Uuid::from_u128(1)),
        addrs: Addrs { grpc: format!("n{}:1", replica.0.as_u128()), http: None, nbd: None },
        zone: None,
        capacity_bytes: 1 << 30,
        disks: Vec::new(),
        encrypts: false,
        replicas: BTreeMap::new(),
    }
}

impl Masters {
    /// A volume that begins with `least` replicas in sync (or a majority); the others were created
    /// after its first epoch, and have to join.
    pub(crate) fn new(ids: &[ReplicaId], durability: Durability, least: u32) -> Self {
        let mut state = State::new();
        let mut must = |command| state.apply(&command).map(|_| ()).expect("the masters take it");
        must(Command::BootstrapCluster { cluster: ClusterId(Uuid::from_u128(9)) });
        for id in ids {
            must(Command::RegisterNode(registration(*id, 1, 1)));
        }
        let request = VolumeRequest {
            name: "vol".to_owned(),
            size_bytes: BLOCKS * BLOCK_SIZE,
            replicas: ids.len() as u32,
            durability,
            write_ack: WriteAck::Durable,
            min_in_sync: (durability == Durability::SyncAll).then_some(least),
            zone_spread: false,
            encrypted: false,
            limits: sbk_engine::authority::Limits::default(),
        };
        let placement = ids.iter().map(|id| (*id, node_of(*id))).collect();
        let (volume, create, overcommit_percent) = (VOLUME, CreateId(VOLUME.0), 100);
        must(Command::CreateVolume { volume, create, request, placement, overcommit_percent });
        for id in ids {
            let replica = ReplicaRef { id: *id, incarnation: Incarnation { process: 1, open: 1 } };
            let node = node_of(*id);
            must(Command::ConfirmReplica { node, process: 1, volume: VOLUME, replica, tail: 0 });
        }
        let config = state.config(VOLUME).expect("the volume has an epoch");
        Self { state, config, registrations: 1 }
    }

    /// Whether the masters took it; a refusal is harmless.
    fn apply(&mut self, command: &Command) -> bool {
        let taken = self.state.apply(command).is_ok();
        self.config = self.state.config(VOLUME).expect("the volume has an epoch");
        taken
    }

    /// The replica as its node registered it last.
    pub(crate) fn registered(&self, replica: ReplicaId) -> Option<(Incarnation, bool)> {
        self.state.registered(VOLUME, replica).map(|r| (r.incarnation, r.complete))
    }

    pub(crate) fn promotable(&self, replica: ReplicaId) -> Option<ReplicaRef> {
        self.state.promotable(VOLUME, replica).ok()
    }

    /// A node's process tells which replica it has open. An older process is refused.
    pub(crate) fn register(&mut self, replica: ReplicaRef, complete: bool) {
        self.registrations += 1;
        let mut new = registration(replica.id, replica.incarnation.process, self.registrations);
        let incarnation = replica.incarnation;
        let entry = RegisteredReplica {
            volume: VOLUME,
            incarnation,
            complete,
            tail: 0,
            doubtful: false,
            disk: None,
        };
        new.replicas.insert(replica.id, entry);
        self.apply(&Command::RegisterNode(new));
    }

    /// A primary's proposal. Refused or not, the answer is what is in force.
    pub(crate) fn propose(&mut self, proposal: &Proposal) {
        self.apply(&Command::ProposeIsr {
            volume: VOLUME,
            expect_epoch: proposal.epoch,
            primary: proposal.primary,
            change: proposal.change.clone(),
        });
    }

    /// Whether the masters made `primary` the primary, with `isr` in sync.
    pub(crate) fn fail_over(&mut self, primary: ReplicaRef, isr: BTreeSet<ReplicaId>) -> bool {
        let expect_epoch = self.config.epoch;
        self.apply(&Command::Failover { volume: VOLUME, expect_epoch, primary, isr, stood: None })
    }
}
