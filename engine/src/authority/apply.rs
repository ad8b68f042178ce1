//! Applying committed commands: the nodes' and volumes' lives. Changes of a configuration in force
//! are in `apply_isr`.
//!
//! Every function here checks first and changes after: a refusal leaves the state as it was.

use std::collections::{BTreeMap, BTreeSet};

use super::command::{Accepted, Command, Response, VolumeRequest};
use super::placement;
use super::refusal::Refusal;
use super::state::{
    Assignment, ClusterId, CreateId, MAX_NODES, MAX_REGISTERED_REPLICAS, MAX_VOLUMES,
    RegisteredReplica, Registration, Replica, State, Tombstone, Volume, VolumeSpec, Wish, WriteAck,
};
use crate::types::{Epoch, LossGeneration, NodeId, ReplicaId, ReplicaRef, VolumeId};

/// Most disks of a node.
const MAX_DISKS: usize = 256;
/// Longest address or zone in a registration, in bytes: a DNS name and a port fit.
const MAX_TEXT: usize = 261;

impl State {
    /// Applies one committed command. Deterministic and total: the same state and command give the
    /// same state and response on every master, and a refused command changes nothing.
    ///
    /// # Panics
    /// If the result breaks an invariant (see `invariants`): a bug, and a master that went on
    /// could mint two primaries.
    pub fn apply(&mut self, command: &Command) -> Response {
        let before = self.snapshot_of(command);
        let response = self.dispatch(command);
        self.assert_step(before, &response);
        response
    }

    fn dispatch(&mut self, command: &Command) -> Response {
        if let Command::BootstrapCluster { cluster } = command {
            return Ok(Accepted::Cluster(self.bootstrap(*cluster)));
        }
        if self.cluster.is_none() {
            return Err(Refusal::NotBootstrapped);
        }
        match command {
            Command::BootstrapCluster { cluster } => {
                Ok(Accepted::Cluster(self.bootstrap(*cluster)))
            }
            Command::RegisterNode(registration) => self.register(registration),
            Command::CreateVolume { volume, create, request, placement, overcommit_percent } => {
                self.create(*volume, *create, request, placement, *overcommit_percent)
            }
            Command::ConfirmReplica { node, process, volume, replica, tail } => {
                self.confirm(*node, *process, *volume, *replica, *tail)
            }
            Command::ProposeIsr { volume, expect_epoch, primary, change } => {
                self.propose_isr(*volume, *expect_epoch, *primary, change)
            }
            Command::Failover { volume, expect_epoch, primary, isr, stood } => {
                self.failover(*volume, *expect_epoch, *primary, isr, *stood)
            }
            Command::Salvage { volume, expect_epoch, primary, missing } => {
                self.salvage(*volume, *expect_epoch, *primary, missing)
            }
            Command::Recover { volume, expect_epoch, primary, given_up, stood } => {
                self.recover(*volume, *expect_epoch, *primary, given_up, *stood)
            }
            Command::AddReplica { volume, replica, node, overcommit_percent } => {
                self.add_replica(*volume, *replica, *node, *overcommit_percent)
            }
            Command::RetireReplica { volume, replica, fate, instead, overcommit_percent } => {
                self.retire_replica(*volume, *replica, *fate, *instead, *overcommit_percent)
            }
            Command::RemoveReplica { volume, expect_epoch, replica } => {
                self.remove_replica(*volume, *expect_epoch, *replica)
            }
            Command::SetWish { volume, wish } => self.set_wish(*volume, wish),
            Command::WishPrimary { volume, replica } => self.wish_primary(*volume, *replica),
            Command::SetLimits { volume, change } => self.set_limits(*volume, *change),
            Command::WishSize { volume, size_bytes, shrink, overcommit_percent } => {
                self.wish_size(*volume, *size_bytes, *shrink, *overcommit_percent)
            }
            Command::SetDuty { node, duty } => self.set_duty(*node, *duty),
            Command::ForgetNode { node } => self.forget_node(*node),
            Command::DeleteVolume { volume } => self.delete(*volume),
            Command::ConfirmDelete { node, process, volume, replica } => {
                self.confirm_delete(*node, *process, *volume, *replica)
            }
        }
    }

    /// The next catalogue revision, to stamp on what changed.
    pub(super) fn bump(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }

    fn bootstrap(&mut self, cluster: ClusterId) -> ClusterId {
        *self.cluster.get_or_insert(cluster)
    }

    fn register(&mut self, new: &Registration) -> Response {
        check_registration(new)?;
        let old = self.nodes.get(&new.node);
        if old.is_none() && self.nodes.len() >= MAX_NODES {
            let limit = MAX_NODES as u64;
            return Err(Refusal::LimitReached { what: "nodes".to_owned(), limit });
        }
        let mut new = new.clone();
        let mut moved = true;
        if let Some(old) = old {
            if new.order() < old.order() {
                let (given, registered) = (new.order(), old.order());
                return Err(Refusal::StaleRegistration { node: new.node, given, registered });
            }
            let same_process = new.process == old.process;
            let same = new.order() == old.order();
            // A process does not outlive its machine's boot, and never says two things under one
            // number: this is a second process with a copy of the data directory.
            if same_process && new.boot != old.boot || same && !same_speaker(&new, old) {
                let order = new.order();
                return Err(Refusal::RegistrationConflict { node: new.node, order });
            }
            if same {
                // Sent again. What was learned since (a join) must not be undone by it.
                return Ok(Accepted::Registered);
            }
            if same_process {
                keep_newer_runs(&mut new, old);
            }
            moved = new.addrs != old.addrs;
        }
        let node = new.node;
        self.nodes.insert(node, new);
        self.after_registration(node, moved);
        Ok(Accepted::Registered)
    }

    /// Tells watchers of a node's new addresses, and mints first epochs that waited for the node.
    fn after_registration(&mut self, node: NodeId, moved: bool) {
        let on_node = |v: &Volume| v.replicas.values().any(|r| r.node == node);
        if moved {
            let revision = self.bump();
            for volume in self.volumes.values_mut().filter(|v| on_node(v)) {
                volume.changed = revision;
            }
        }
        let waiting: Vec<VolumeId> = self
            .volumes
            .values()
            .filter(|v| v.assignment.is_none() && on_node(v))
            .map(|v| v.id)
            .collect();
        for volume in waiting {
            self.mint_first(volume);
        }
    }

    fn create(
        &mut self,
        id: VolumeId,
        create: CreateId,
        request: &VolumeRequest,
        placement: &BTreeMap<ReplicaId, NodeId>,
        overcommit_percent: u32,
    ) -> Response {
        if let Some(ended) = self.tombstones.values().find(|t| t.create == create) {
            return Err(Refusal::VolumeDeleted { volume: ended.id });
        }
        let spec = placement::check_request(request)?;
        if let Some(standing) = self.created_by(create) {
            return match standing.spec == spec {
                true => Ok(Accepted::Created(standing.id)),
                false => Err(Refusal::CreateIdReused { create, volume: standing.id }),
            };
        }
        if !self.is_gone(id) {
            return Err(Refusal::VolumeIdReused { volume: id });
        }
        if let Some(other) = self.volume_by_name(&spec.name) {
            return Err(Refusal::NameTaken { name: spec.name, by: other.id });
        }
        if self.volumes.len() + self.tombstones.len() >= MAX_VOLUMES {
            let limit = MAX_VOLUMES as u64;
            return Err(Refusal::LimitReached { what: "volumes".to_owned(), limit });
        }
        placement::check_placement(self, &spec, placement, overcommit_percent)?;
        let replicas = placement.iter().map(|(id, node)| (*id, Replica::on(*node))).collect();
        let changed = self.bump();
        let volume = Volume {
            id,
            create,
            spec,
            replicas,
            retired: BTreeMap::new(),
            wish: Wish::default(),
            limits: request.limits,
            size_refused: None,
            assignment: None,
            changed,
        };
        self.volumes.insert(id, volume);
        Ok(Accepted::Created(id))
    }

    /// The registration of the process that speaks, or why it is not listened to.
    pub(super) fn speaker(&self, node: NodeId, process: u64) -> Result<&Registration, Refusal> {
        let registration = self.nodes.get(&node).ok_or(Refusal::UnknownNode { node })?;
        if registration.process != process {
            let registered = registration.process;
            return Err(Refusal::StaleProcess { node, given: process, registered });
        }
        Ok(registration)
    }

    /// A live volume, or why there is none.
    pub(super) fn live(&self, volume: VolumeId) -> Result<&Volume, Refusal> {
        match self.volumes.get(&volume) {
            Some(live) => Ok(live),
            None if self.tombstones.contains_key(&volume) => Err(Refusal::VolumeDeleted { volume }),
            None => Err(Refusal::NoSuchVolume { volume: volume.to_string() }),
        }
    }

    fn confirm(
        &mut self,
        node: NodeId,
        process: u64,
        volume: VolumeId,
        replica: ReplicaRef,
        tail: u64,
    ) -> Response {
        let registration = self.speaker(node, process)?;
        let listed = self.live(volume)?.replicas.get(&replica.id).filter(|r| r.node == node);
        let Some(listed) = listed else {
            return Err(Refusal::UnknownReplica { volume, replica: replica.id });
        };
        let known = registration.replicas.get(&replica.id).map(|r| r.incarnation);
        if let Some(confirmed) = listed.confirmed {
            // Confirmed by this run, or found by a later one that registered it: the same replica.
            // Otherwise it was lost, and what the node has now was made from a stale order.
            return match confirmed == replica.incarnation || known == Some(replica.incarnation) {
                true => Ok(Accepted::Confirmed),
                false => Err(Refusal::AlreadyConfirmed { replica: replica.id }),
            };
        }
        if replica.incarnation.process != process || known > Some(replica.incarnation) {
            let given = replica.incarnation;
            return Err(Refusal::StaleIncarnation {
                replica: replica.id,
                given,
                registered: known,
            });
        }
        self.record_confirmed(node, volume, replica, tail);
        Ok(Accepted::Confirmed)
    }

    fn record_confirmed(&mut self, node: NodeId, volume: VolumeId, replica: ReplicaRef, tail: u64) {
        let incarnation = replica.incarnation;
        let registration = self.nodes.get_mut(&node).expect("checked: the node is registered");
        match registration.replicas.get_mut(&replica.id) {
            Some(known) => (known.incarnation, known.tail) = (incarnation, tail),
            None => {
                let entry = RegisteredReplica {
                    volume,
                    incarnation,
                    complete: true,
                    tail,
                    doubtful: false,
                    disk: None,
                };
                registration.replicas.insert(replica.id, entry);
            }
        }
        let revision = self.bump();
        let live = self.volumes.get_mut(&volume).expect("checked: the volume is live");
        let listed = live.replicas.get_mut(&replica.id).expect("checked: the replica is listed");
        listed.confirmed = Some(incarnation);
        live.changed = revision;
        match &mut live.assignment {
            // The list of members is part of the configuration, and one epoch never has two: the
            // primary goes on in an epoch of its own tenure that names the new member.
            Some(assignment) => {
                assignment.epoch = assignment.epoch.next();
                assignment.members.insert(replica.id);
            }
            None => self.mint_first(volume),
        }
    }

    /// Mints epoch 1 once `min_in_sync` replicas were confirmed and can be promoted. Those are the
    /// in-sync set: all are empty, so all hold everything.
    fn mint_first(&mut self, id: VolumeId) {
        let Some(volume) = self.volumes.get(&id) else { return };
        let confirmed: BTreeSet<ReplicaId> = volume
            .replicas
            .iter()
            .filter(|(_, replica)| replica.confirmed.is_some())
            .map(|(id, _)| *id)
            .collect();
        let ready: Vec<ReplicaRef> =
            confirmed.iter().filter_map(|r| self.promotable(id, *r).ok()).collect();
        if volume.assignment.is_some() || ready.len() < volume.spec.min_in_sync as usize {
            return;
        }
        let load = |r: &ReplicaRef| {
            let node = volume.replicas[&r.id].node;
            (self.primaries_on(node), self.committed_bytes(node), node)
        };
        let Some(primary) = ready.iter().copied().min_by_key(load) else { return };
        let written = volume.spec.write_ack == WriteAck::Written;
        let tails = ready.iter().filter(|_| written);
        let tails = tails.filter_map(|r| Some((r.id, self.tail(id, r.id)?))).collect();
        let assignment = Assignment {
            epoch: Epoch(1),
            primary,
            since: Epoch(1),
            isr: ready.iter().map(|r| r.id).collect(),
            members: confirmed,
            loss_generation: LossGeneration(0),
            handed_over_by: None,
            tails,
            missing: BTreeSet::new(),
            blocks: None,
            wished_blocks: None,
        };
        let revision = self.bump();
        let volume = self.volumes.get_mut(&id).expect("found above");
        for (_, replica) in volume.replicas.iter_mut().filter(|(id, _)| assignment.isr.contains(id))
        {
            replica.joined = true;
        }
        volume.assignment = Some(assignment);
        volume.changed = revision;
    }

    fn delete(&mut self, id: VolumeId) -> Response {
        match self.live(id) {
            Ok(_) => {}
            Err(Refusal::VolumeDeleted { .. }) => return Ok(Accepted::Deleted(id)),
            Err(refusal) => return Err(refusal),
        }
        let changed = self.bump();
        let volume = self.volumes.remove(&id).expect("checked: the volume is live");
        let last = volume.assignment.as_ref().map_or(Epoch(0), |a| a.epoch);
        let blocks = volume.blocks();
        let tombstone = Tombstone {
            id,
            create: volume.create,
            spec: VolumeSpec { blocks, ..volume.spec },
            epoch: last.next(),
            // Also those not confirmed: their create may have been carried out, or still be.
            remaining: volume
                .replicas
                .iter()
                .map(|(id, r)| (*id, r.node))
                .chain(volume.retired)
                .collect(),
            changed,
        };
        self.tombstones.insert(id, tombstone);
        Ok(Accepted::Deleted(id))
    }

    fn confirm_delete(
        &mut self,
        node: NodeId,
        process: u64,
        volume: VolumeId,
        replica: ReplicaId,
    ) -> Response {
        self.speaker(node, process)?;
        if self.volumes.contains_key(&volume) {
            return self.confirm_retired(node, volume, replica);
        }
        let Some(tombstone) = self.tombstones.get(&volume) else {
            // The last confirmation, sent again after the tombstone went.
            return Ok(Accepted::Confirmed);
        };
        match tombstone.remaining.get(&replica) {
            Some(holder) if *holder == node => {}
            Some(_) => return Err(Refusal::UnknownReplica { volume, replica }),
            None => return Ok(Accepted::Confirmed),
        }
        let revision = self.bump();
        let tombstone = self.tombstones.get_mut(&volume).expect("found above");
        tombstone.remaining.remove(&replica);
        tombstone.changed = revision;
        if tombstone.remaining.is_empty() {
            self.tombstones.remove(&volume);
        }
        let registration = self.nodes.get_mut(&node).expect("checked: the node is registered");
        registration.replicas.remove(&replica);
        Ok(Accepted::Confirmed)
    }
}

/// Whether two registrations under one number come from one process: all but what the masters
/// themselves add to the standing one.
fn same_speaker(new: &Registration, old: &Registration) -> bool {
    new.addrs == old.addrs && new.zone == old.zone && new.boot == old.boot
}

/// Within one process a replica's run is counted up: what was confirmed or joined in a newer run
/// than a registration that was under way at the time tells of stays.
fn keep_newer_runs(new: &mut Registration, old: &Registration) {
    for (id, known) in &old.replicas {
        if let Some(listed) = new.replicas.get_mut(id)
            && known.incarnation > listed.incarnation
        {
            *listed = *known;
        }
    }
}

fn check_registration(r: &Registration) -> Result<(), Refusal> {
    let bad = |why: &str| Err(Refusal::BadRegistration { node: r.node, why: why.to_owned() });
    let plain =
        |s: &str| !s.is_empty() && s.len() <= MAX_TEXT && s.chars().all(|c| c.is_ascii_graphic());
    let listens = |s: &str| plain(s) && s.contains(':');
    if r.process == 0 {
        return bad("processes are counted from 1");
    }
    if !listens(&r.addrs.grpc) {
        return bad("its gRPC address is not host:port");
    }
    if r.addrs.http.as_deref().is_some_and(|a| !listens(a)) {
        return bad("its HTTP address is not host:port");
    }
    if r.addrs.nbd.as_deref().is_some_and(|a| !plain(a)) {
        return bad("its NBD address is empty or malformed");
    }
    if r.zone.as_deref().is_some_and(|z| !plain(z)) {
        return bad("its zone is empty or malformed: leave it out or give a plain word");
    }
    if r.replicas.len() > MAX_REGISTERED_REPLICAS {
        return bad("it lists too many replicas");
    }
    if r.disks.len() > MAX_DISKS || r.disks.iter().any(|disk| *disk > r.capacity_bytes) {
        return bad("it lists too many disks, or one with more than all together");
    }
    if r.replicas.values().any(|x| x.incarnation.process != r.process || x.incarnation.open == 0) {
        return bad("a replica's incarnation is not one of this process");
    }
    Ok(())
}
