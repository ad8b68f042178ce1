//! The state as messages for people and tools.

use sbk_engine::authority::detector::Detector;
use sbk_engine::authority::history::{History, Minted};
use sbk_engine::authority::{Fate, Registration, State, Tombstone, Volume, moves, placement};
use sbk_engine::types::{BLOCK_SIZE, Millis, NodeId, ReplicaId};
use sbk_proto::v1;

use crate::convert;
use crate::gate::unix_ms;
use crate::member::{Leading, OVERCOMMIT_PERCENT};

/// What a volume's description is made from.
pub(super) struct Source<'a> {
    pub(super) state: &'a State,
    pub(super) history: &'a History,
    pub(super) leading: &'a Leading,
    pub(super) now: Millis,
}

impl Source<'_> {
    fn detector(&self) -> &Detector {
        &self.leading.detector
    }

    fn reported(&self, node: NodeId, replica: ReplicaId) -> Option<&v1::ReplicaReport> {
        let heartbeat = self.leading.heartbeats.get(&node)?;
        heartbeat
            .replicas
            .iter()
            .find(|r| r.replica.as_ref().is_some_and(|r| r.id == replica.0.as_bytes()[..]))
    }

    /// How a replica is and why, as its node said last, whether its store is open or not.
    fn mode(&self, node: NodeId, replica: ReplicaId) -> (String, String) {
        if let Some(report) = self.reported(node, replica) {
            return (report.mode.clone(), report.reason.clone());
        }
        let heartbeat = self.leading.heartbeats.get(&node);
        let closed =
            heartbeat.and_then(|h| h.closed.iter().find(|c| c.replica == replica.0.as_bytes()[..]));
        let known = closed.map(|c| (c.mode.clone(), c.reason.clone()));
        let away = || {
            let mut disks = heartbeat.iter().flat_map(|h| &h.disks);
            let disk = disks.find(|disk| !disk.fault.is_empty())?;
            let why = format!(
                "its node does not have it open, and can't use the disk of {}: {}",
                disk.path, disk.fault
            );
            Some(("degraded".to_owned(), why))
        };
        known.or_else(away).unwrap_or_default()
    }

    pub(super) fn volume(&self, volume: &Volume) -> v1::VolumeInfo {
        let config = self.state.config(volume.id);
        let members: Vec<_> =
            volume.replicas.iter().map(|(id, r)| self.member(volume, *id, r.node)).collect();
        let primary = volume.assignment.as_ref().map(|a| (a.primary.id, a.epoch));
        let report = primary.and_then(|(id, epoch)| {
            let node = volume.replicas.get(&id)?.node;
            self.reported(node, id).filter(|r| r.is_primary && r.epoch == epoch.0)
        });
        let complaint = self.detector().reason(self.now, self.state, volume);
        let serving = report.is_some_and(|r| r.serving) && complaint.is_none();
        let moves =
            moves::look(self.state, self.detector(), self.now, volume, OVERCOMMIT_PERCENT).reason;
        let reason = complaint
            .or_else(|| report.map(|r| r.reason.clone()).filter(|r| !r.is_empty()))
            .or_else(|| (serving && !moves.is_empty()).then_some(moves))
            .or_else(|| {
                (!serving).then(|| "its primary has not said yet that it serves".to_owned())
            });
        let reason = match (reason, missing(volume)) {
            (Some(reason), Some(missing)) => Some(format!("{reason}; {missing}")),
            (reason, missing) => reason.or(missing),
        };
        let spec = &volume.spec;
        v1::VolumeInfo {
            id: convert::bytes(volume.id.0),
            name: spec.name.clone(),
            size_bytes: volume.bytes(),
            replicas: spec.replicas,
            durability: convert::durability(spec.durability).into(),
            write_ack: convert::write_ack(spec.write_ack).into(),
            min_in_sync: spec.min_in_sync,
            config: config.as_ref().map(convert::config),
            serving,
            reason: reason.unwrap_or_default(),
            members,
            deleting: false,
            wished_primary: volume.wish.primary.map(|id| convert::bytes(id.0)).unwrap_or_default(),
            limits: Some(convert::limits(volume.limits)),
            wished_size_bytes: volume.wished_blocks().map_or(0, |blocks| blocks * BLOCK_SIZE),
            encrypted: spec.encrypted,
            size_refused: volume.size_refused.map(|refused| v1::SizeRefused {
                size_bytes: refused.blocks * BLOCK_SIZE,
                offset: refused.lba.0 * BLOCK_SIZE,
            }),
            history: Vec::new(),
            now_ms: 0,
        }
    }

    /// With how the volume came to its configuration.
    pub(super) fn volume_with_history(&self, volume: &Volume) -> v1::VolumeInfo {
        let change = |minted: &Minted| v1::EpochChange {
            epoch: minted.epoch.0,
            at_ms: minted.note.at_ms,
            primary: Some(convert::reference(minted.primary)),
            isr: minted.isr.iter().map(|id| convert::bytes(id.0)).collect(),
            reason: minted.note.reason.clone(),
        };
        let history = self.history.of(volume.id).iter().map(change).collect();
        v1::VolumeInfo { history, now_ms: unix_ms(), ..self.volume(volume) }
    }

    fn member(&self, volume: &Volume, id: ReplicaId, node: NodeId) -> v1::MemberInfo {
        let registration = self.state.nodes().get(&node);
        let addrs = registration.map(|r| r.addrs.clone());
        let report = self.reported(node, id);
        let (mode, reason) = self.mode(node, id);
        let assignment = volume.assignment.as_ref();
        v1::MemberInfo {
            replica: convert::bytes(id.0),
            node: convert::bytes(node.0),
            addr: addrs.as_ref().map(|a| a.grpc.clone()).unwrap_or_default(),
            http_addr: addrs.as_ref().and_then(|a| a.http.clone()).unwrap_or_default(),
            nbd_addr: addrs.as_ref().and_then(|a| a.nbd.clone()).unwrap_or_default(),
            zone: registration.and_then(|r| r.zone.clone()).unwrap_or_default(),
            confirmed: volume.replicas.get(&id).is_some_and(|r| r.confirmed.is_some()),
            in_sync: assignment.is_some_and(|a| a.isr.contains(&id)),
            primary: assignment.is_some_and(|a| a.primary.id == id),
            node_alive: self.detector().is_alive(self.now, node),
            table_epoch: report.map_or(0, |r| r.table_epoch),
            durable_lsn: report.map_or(0, |r| r.durable_lsn),
            committed_lsn: report.map_or(0, |r| r.committed_lsn),
            mode,
            reason,
            goes: volume.replicas.get(&id).is_some_and(|r| r.fate != Fate::Stays),
            may_hold_unflushed: assignment.is_some_and(|a| a.missing.contains(&id)),
        }
    }

    pub(super) fn deleting(&self, tombstone: &Tombstone) -> v1::VolumeInfo {
        let left = tombstone.remaining.len();
        v1::VolumeInfo {
            id: convert::bytes(tombstone.id.0),
            name: tombstone.spec.name.clone(),
            size_bytes: tombstone.spec.bytes(),
            replicas: tombstone.spec.replicas,
            durability: convert::durability(tombstone.spec.durability).into(),
            write_ack: convert::write_ack(tombstone.spec.write_ack).into(),
            min_in_sync: tombstone.spec.min_in_sync,
            config: None,
            serving: false,
            reason: format!("deleted; {left} replicas are still to be removed"),
            members: Vec::new(),
            deleting: true,
            wished_primary: Vec::new().into(),
            limits: None,
            wished_size_bytes: 0,
            encrypted: tombstone.spec.encrypted,
            size_refused: None,
            history: Vec::new(),
            now_ms: 0,
        }
    }

    pub(super) fn node(&self, registration: &Registration) -> v1::NodeInfo {
        let id = registration.node;
        let heartbeat = self.leading.heartbeats.get(&id);
        let on_node = self.state.volumes().values().flat_map(|volume| {
            volume.replicas.iter().filter(|(_, r)| r.node == id).map(|(replica, _)| {
                let assignment = volume.assignment.as_ref();
                v1::ReplicaOnNode {
                    volume: convert::bytes(volume.id.0),
                    volume_name: volume.spec.name.clone(),
                    replica: convert::bytes(replica.0),
                    primary: assignment.is_some_and(|a| a.primary.id == *replica),
                    in_sync: assignment.is_some_and(|a| a.isr.contains(replica)),
                }
            })
        });
        let capacity_bytes = registration.capacity_bytes;
        let claimable = u128::from(capacity_bytes) * u128::from(OVERCOMMIT_PERCENT) / 100;
        let mut disks = heartbeat.map(|h| h.disks.clone()).unwrap_or_default();
        let allocated = placement::allocated(self.state, registration);
        for (disk, allocated) in disks.iter_mut().zip(allocated) {
            disk.allocated_bytes = allocated;
        }
        v1::NodeInfo {
            id: convert::bytes(id.0),
            incarnation: registration.process,
            boot_id: convert::bytes(registration.boot.0),
            addr: registration.addrs.grpc.clone(),
            http_addr: registration.addrs.http.clone().unwrap_or_default(),
            nbd_addr: registration.addrs.nbd.clone().unwrap_or_default(),
            zone: registration.zone.clone().unwrap_or_default(),
            capacity_bytes,
            used_bytes: heartbeat.map_or(0, |h| h.used_bytes),
            free_bytes: heartbeat.map_or(0, |h| h.free_bytes),
            alive: self.detector().is_alive(self.now, id),
            last_heartbeat_ms: self.detector().silent_ms(self.now, id).unwrap_or(u64::MAX),
            replicas: on_node.collect(),
            duty: convert::duty(self.state.duty(id)).into(),
            disks,
            encrypts: registration.encrypts,
            allocated_bytes: self.state.committed_bytes(id),
            claimable_bytes: u64::try_from(claimable).unwrap_or(u64::MAX),
        }
    }
}

/// The members that were not waited for when all in-sync replicas had lost power, in words: the only
/// ones that may hold what is lost otherwise. An operator may want to look before they join again.
fn missing(volume: &Volume) -> Option<String> {
    let missing = &volume.assignment.as_ref()?.missing;
    let named = missing.iter().filter_map(|id| Some((id, volume.replicas.get(id)?.node)));
    let named: Vec<_> = named.map(|(id, node)| format!("{id} on node {node}")).collect();
    (!named.is_empty()).then(|| {
        format!(
            "all in-sync replicas lost power and {} was not waited for, which may hold writes that \
             were acknowledged and not flushed",
            named.join(" and ")
        )
    })
}
