//! The authority's types as messages, and back.

use bytes::Bytes;
use sbk_engine::authority::stand::Stand;
use sbk_engine::authority::{
    Addrs, AssignedVolume, CreateId, Durability, Duty, Limits, RegisteredReplica, Registration,
    WriteAck,
};
use sbk_engine::replication::io::IsrChange;
use sbk_engine::types::{
    BootId, Config, Incarnation, Lba, NodeId, ReplicaId, ReplicaRef, TailId, VolumeId,
};
use sbk_proto::v1;
use tonic::Status;
use uuid::Uuid;

/// A UUID of a message.
fn uuid(bytes: &[u8], what: &str) -> Result<Uuid, Status> {
    Uuid::from_slice(bytes)
        .map_err(|_| Status::invalid_argument(format!("{what} is not the 16 bytes of a UUID")))
}

/// A UUID for a message.
pub(crate) fn bytes(id: Uuid) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

pub(crate) fn volume_id(raw: &[u8]) -> Result<VolumeId, Status> {
    uuid(raw, "volume").map(VolumeId)
}

pub(crate) fn create_id(raw: &[u8]) -> Result<CreateId, Status> {
    uuid(raw, "create").map(CreateId)
}

pub(crate) fn node_id(raw: &[u8]) -> Result<NodeId, Status> {
    uuid(raw, "node").map(NodeId)
}

pub(crate) fn replica_id(raw: &[u8]) -> Result<ReplicaId, Status> {
    uuid(raw, "replica").map(ReplicaId)
}

pub(crate) fn replica_ref(raw: Option<&v1::ReplicaRef>) -> Result<ReplicaRef, Status> {
    let missing = || Status::invalid_argument("a replica or its incarnation is missing");
    let raw = raw.ok_or_else(missing)?;
    let run = raw.incarnation.as_ref().ok_or_else(missing)?;
    let incarnation = Incarnation { process: run.process, open: run.open };
    Ok(ReplicaRef { id: replica_id(&raw.id)?, incarnation })
}

/// A replica in a run that a configuration may name one day. [A node registered a run that no count
/// reaches, its replica became primary, and no datanode took what the masters pushed any more, of any
/// volume.]
pub(crate) fn run_of(raw: Option<&v1::ReplicaRef>) -> Result<ReplicaRef, Status> {
    let replica = replica_ref(raw)?;
    counter(replica.incarnation.process)?;
    counter(replica.incarnation.open)?;
    Ok(replica)
}

/// A number that nodes count up, one by one, within what datanodes take from each other.
fn counter(number: u64) -> Result<u64, Status> {
    const LIMIT: u64 = 1 << 62;
    let beyond = || Status::invalid_argument(format!("nothing was started {number} times"));
    if number < LIMIT { Ok(number) } else { Err(beyond()) }
}

pub(crate) fn reference(replica: ReplicaRef) -> v1::ReplicaRef {
    let Incarnation { process, open } = replica.incarnation;
    v1::ReplicaRef { id: bytes(replica.id.0), incarnation: Some(v1::Incarnation { process, open }) }
}

pub(crate) fn config(config: &Config) -> v1::Config {
    v1::Config {
        volume: bytes(config.volume.0),
        epoch: config.epoch.0,
        primary: Some(reference(config.primary)),
        since: config.since.0,
        isr: config.isr.iter().map(|id| bytes(id.0)).collect(),
        replicas: config
            .replicas
            .iter()
            .map(|(id, placement)| v1::ReplicaPlacement {
                replica: bytes(id.0),
                node: bytes(placement.node.0),
                addr: placement.addr.clone(),
            })
            .collect(),
        min_in_sync: config.min_in_sync,
        blocks: config.blocks,
        loss_generation: config.loss_generation.0,
        durability: durability(config.durability).into(),
        write_ack: write_ack(config.write_ack).into(),
        handed_over_by: config.handed_over_by.map(reference),
        wished_blocks: config.wished_blocks.unwrap_or(0),
        tails: config
            .tails
            .iter()
            .map(|(id, at)| v1::ReplicaTail { replica: bytes(id.0), tail: Some(tail(*at)) })
            .collect(),
    }
}

fn tail(tail: TailId) -> v1::TailId {
    v1::TailId { boot: bytes(tail.boot.0), count: tail.count }
}

pub(crate) fn tail_from(raw: Option<&v1::TailId>) -> Result<TailId, Status> {
    let raw = raw.ok_or_else(|| Status::invalid_argument("a replica's tail is missing"))?;
    Ok(TailId { boot: uuid(&raw.boot, "boot id").map(BootId)?, count: raw.count })
}

pub(crate) fn stand(stand: &Stand) -> v1::Stand {
    v1::Stand {
        volume: bytes(stand.volume.0),
        replica: Some(reference(stand.replica)),
        epoch: stand.epoch.0,
    }
}

/// Whether a disk is below its placement watermark, as its node says.
pub(crate) fn is_low(disk: &v1::DiskReport) -> bool {
    match disk.room() {
        v1::DiskRoom::Unspecified | v1::DiskRoom::Enough => false,
        v1::DiskRoom::Low | v1::DiskRoom::Short | v1::DiskRoom::Full => true,
    }
}

pub(crate) fn registration(raw: &v1::RegisterRequest) -> Result<Registration, Status> {
    let mut replicas = std::collections::BTreeMap::new();
    for entry in &raw.replicas {
        let replica = run_of(entry.replica.as_ref())?;
        let registered = RegisteredReplica {
            volume: volume_id(&entry.volume)?,
            incarnation: replica.incarnation,
            complete: entry.complete,
            tail: entry.tail,
            doubtful: entry.doubtful,
            disk: Some(entry.disk),
        };
        replicas.insert(replica.id, registered);
    }
    let optional = |text: &String| (!text.is_empty()).then(|| text.clone());
    Ok(Registration {
        node: node_id(&raw.node)?,
        process: counter(raw.incarnation)?,
        revision: raw.revision,
        boot: uuid(&raw.boot_id, "boot id").map(BootId)?,
        addrs: Addrs {
            grpc: raw.addr.clone(),
            http: optional(&raw.http_addr),
            nbd: optional(&raw.nbd_addr),
        },
        zone: optional(&raw.zone),
        capacity_bytes: raw.capacity_bytes,
        disks: raw.disk_capacities.clone(),
        encrypts: raw.encrypts,
        replicas,
    })
}

pub(crate) fn change(raw: Option<&v1::propose_isr_request::Change>) -> Result<IsrChange, Status> {
    use v1::propose_isr_request::Change;
    match raw {
        Some(Change::Leave(id)) => Ok(IsrChange::Leave { replica: replica_id(id)? }),
        Some(Change::Join(replica)) => Ok(IsrChange::Join { replica: replica_ref(Some(replica))? }),
        Some(Change::Burn(_)) => Ok(IsrChange::Burn),
        Some(Change::YieldTo(to)) => Ok(IsrChange::Yield { to: replica_ref(Some(to))? }),
        Some(Change::HandOverTo(to)) => Ok(IsrChange::HandOver { to: replica_ref(Some(to))? }),
        Some(Change::Resized(blocks)) => Ok(IsrChange::Resized { blocks: *blocks }),
        Some(Change::KeepSize(v1::KeepSize { wished, lba })) => {
            Ok(IsrChange::KeepSize { wished: *wished, lba: Lba(*lba) })
        }
        None => Err(Status::invalid_argument("the proposal names no change")),
    }
}

pub(crate) fn durability(value: Durability) -> v1::Durability {
    match value {
        Durability::SyncAll => v1::Durability::SyncAll,
        Durability::SyncQuorum => v1::Durability::SyncQuorum,
        Durability::BestEffort => v1::Durability::BestEffort,
    }
}

pub(crate) fn durability_from(raw: i32) -> Result<Durability, Status> {
    match v1::Durability::try_from(raw) {
        Ok(v1::Durability::Unspecified | v1::Durability::SyncAll) => Ok(Durability::SyncAll),
        Ok(v1::Durability::SyncQuorum) => Ok(Durability::SyncQuorum),
        Ok(v1::Durability::BestEffort) => Ok(Durability::BestEffort),
        Err(_) => Err(Status::invalid_argument("unknown durability mode")),
    }
}

pub(crate) fn write_ack(value: WriteAck) -> v1::WriteAck {
    match value {
        WriteAck::Durable => v1::WriteAck::Durable,
        WriteAck::Written => v1::WriteAck::Written,
    }
}

pub(crate) fn write_ack_from(raw: i32) -> Result<WriteAck, Status> {
    match v1::WriteAck::try_from(raw) {
        Ok(v1::WriteAck::Unspecified | v1::WriteAck::Durable) => Ok(WriteAck::Durable),
        Ok(v1::WriteAck::Written) => Ok(WriteAck::Written),
        Err(_) => Err(Status::invalid_argument("unknown write acknowledgement")),
    }
}

pub(crate) fn limits(value: Limits) -> v1::Limits {
    v1::Limits {
        iops: value.iops.unwrap_or(0),
        bandwidth: value.bandwidth.unwrap_or(0),
        burst_seconds: value.burst_seconds,
    }
}

pub(crate) fn limits_from(raw: Option<&v1::Limits>) -> Limits {
    let some = |n: u64| (n > 0).then_some(n);
    raw.map_or_else(Limits::default, |raw| Limits {
        iops: some(raw.iops),
        bandwidth: some(raw.bandwidth),
        burst_seconds: raw.burst_seconds.max(1),
    })
}

pub(crate) fn duty(value: Option<Duty>) -> v1::NodeDuty {
    match value {
        None => v1::NodeDuty::Holds,
        Some(Duty::Drained) => v1::NodeDuty::Drained,
        Some(Duty::Removed) => v1::NodeDuty::Removed,
    }
}

pub(crate) fn duty_from(raw: i32) -> Result<Option<Duty>, Status> {
    match v1::NodeDuty::try_from(raw) {
        Ok(v1::NodeDuty::Holds) => Ok(None),
        Ok(v1::NodeDuty::Drained) => Ok(Some(Duty::Drained)),
        Ok(v1::NodeDuty::Removed) => Ok(Some(Duty::Removed)),
        Ok(v1::NodeDuty::Unspecified) | Err(_) => {
            Err(Status::invalid_argument("unknown duty of a node"))
        }
    }
}

pub(crate) fn assignment(volume: &AssignedVolume) -> v1::VolumeAssignment {
    v1::VolumeAssignment {
        volume: bytes(volume.id.0),
        name: volume.spec.name.clone(),
        blocks: volume.blocks,
        created_blocks: volume.spec.blocks,
        encrypted: volume.spec.encrypted,
        replicas: volume
            .replicas
            .iter()
            .map(|entry| v1::ReplicaAssignment {
                replica: bytes(entry.id.0),
                node: bytes(entry.replica.node.0),
                addr: entry.addr.clone(),
                nbd_addr: entry.nbd.clone().unwrap_or_default(),
                confirmed: entry.replica.confirmed.is_some(),
            })
            .collect(),
        config: volume.config.as_ref().map(config),
        durability: durability(volume.spec.durability).into(),
        write_ack: write_ack(volume.spec.write_ack).into(),
        deleted: volume.deleted.is_some(),
        retired: volume
            .retired
            .iter()
            .map(|(id, node)| v1::RetiredReplica { replica: bytes(id.0), node: bytes(node.0) })
            .collect(),
        wish: Some(v1::Wish {
            primary: volume.wish.primary.map(|id| bytes(id.0)).unwrap_or_default(),
            leave: volume.wish.leave.iter().map(|id| bytes(id.0)).collect(),
        }),
        limits: Some(limits(volume.limits)),
    }
}
