//! From the masters' pushes to the catalogue.

use std::collections::BTreeMap;
use std::sync::Arc;

use sbk_engine::authority::Limits;
use sbk_engine::types::Wish;
use sbk_proto::v1;

use super::{Catalogue, Replica, Volume};
use crate::transport::convert::{self, Malformed};

/// Applies a push to the catalogue. What is not newer stays: a replica may have told a newer
/// configuration than the masters have pushed so far.
pub(crate) fn apply(
    catalogue: &Catalogue,
    update: v1::AssignmentUpdate,
) -> Result<Catalogue, Malformed> {
    let mut volumes = if update.snapshot { BTreeMap::new() } else { catalogue.volumes.clone() };
    for told in update.volumes {
        let mut volume = volume(told)?;
        let known = catalogue.volumes.get(&volume.id).and_then(|known| known.config.as_ref());
        let newer = known.filter(|k| volume.config.as_ref().is_none_or(|c| c.epoch < k.epoch));
        if let Some(newer) = newer {
            volume.config = Some(newer.clone());
        }
        volumes.insert(volume.id, Arc::new(volume));
    }
    for gone in &update.gone {
        volumes.remove(&convert::volume_id(gone)?);
    }
    Ok(Catalogue { volumes, heard: true })
}

fn volume(told: v1::VolumeAssignment) -> Result<Volume, Malformed> {
    let mut replicas = BTreeMap::new();
    for replica in told.replicas {
        let id = convert::replica_id(&replica.replica)?;
        let node = convert::node_id(&replica.node)?;
        replicas.insert(id, Replica { node, addr: replica.addr, confirmed: replica.confirmed });
    }
    Ok(Volume {
        id: convert::volume_id(&told.volume)?,
        name: told.name,
        blocks: told.blocks,
        created_blocks: if told.created_blocks == 0 { told.blocks } else { told.created_blocks },
        encrypted: told.encrypted,
        replicas,
        retired: told
            .retired
            .iter()
            .map(|r| Ok((convert::replica_id(&r.replica)?, convert::node_id(&r.node)?)))
            .collect::<Result<_, Malformed>>()?,
        wish: wish(&told.wish.unwrap_or_default())?,
        limits: limits(&told.limits.unwrap_or_default()),
        config: told.config.map(convert::config_in).transpose()?,
        deleted: told.deleted,
    })
}

fn wish(told: &v1::Wish) -> Result<Wish, Malformed> {
    let primary = match told.primary.is_empty() {
        true => None,
        false => Some(convert::replica_id(&told.primary)?),
    };
    let leave = told.leave.iter().map(|id| convert::replica_id(id));
    Ok(Wish { primary, leave: leave.collect::<Result<_, _>>()? })
}

fn limits(told: &v1::Limits) -> Limits {
    let some = |n: u64| (n > 0).then_some(n);
    Limits {
        iops: some(told.iops),
        bandwidth: some(told.bandwidth),
        burst_seconds: told.burst_seconds.max(1),
    }
}

#[cfg(test)]
mod tests {
    use sbk_engine::types::{Epoch, VolumeId};
    use uuid::Uuid;

    use super::*;

    fn told(volume: u128, epoch: u64) -> v1::VolumeAssignment {
        let id = |n: u128| convert::id_bytes(Uuid::from_u128(n));
        let incarnation = Some(v1::Incarnation { process: 1, open: 1 });
        let config = v1::Config {
            volume: id(volume),
            epoch,
            primary: Some(v1::ReplicaRef { id: id(1), incarnation }),
            since: 1,
            isr: vec![id(1)],
            durability: v1::Durability::SyncAll.into(),
            write_ack: v1::WriteAck::Durable.into(),
            min_in_sync: 1,
            blocks: 1,
            ..Default::default()
        };
        let name = format!("v{volume}");
        v1::VolumeAssignment {
            volume: id(volume),
            name,
            config: Some(config),
            ..Default::default()
        }
    }

    fn push(snapshot: bool, volumes: Vec<v1::VolumeAssignment>) -> v1::AssignmentUpdate {
        v1::AssignmentUpdate { revision: 1, snapshot, volumes, gone: Vec::new() }
    }

    fn epoch(catalogue: &Catalogue, volume: u128) -> Option<Epoch> {
        let volume = catalogue.volumes.get(&VolumeId(Uuid::from_u128(volume)))?;
        volume.config.as_ref().map(|config| config.epoch)
    }

    #[test]
    fn a_push_never_takes_back_a_newer_configuration() {
        let first = apply(&Catalogue::default(), push(true, vec![told(1, 5), told(2, 1)]));
        let first = first.expect("is well formed");
        let second = apply(&first, push(false, vec![told(1, 4)])).expect("is well formed");
        assert_eq!((epoch(&second, 1), epoch(&second, 2)), (Some(Epoch(5)), Some(Epoch(1))));
        let third = apply(&second, push(true, vec![told(1, 6)])).expect("is well formed");
        assert_eq!((epoch(&third, 1), epoch(&third, 2)), (Some(Epoch(6)), None));
    }

    #[test]
    fn what_is_gone_goes() {
        let first =
            apply(&Catalogue::default(), push(true, vec![told(1, 5)])).expect("well formed");
        assert!(first.heard && first.by_name("v1").is_some());
        let gone = vec![convert::id_bytes(Uuid::from_u128(1))];
        let update = v1::AssignmentUpdate { gone, ..push(false, Vec::new()) };
        assert_eq!(apply(&first, update).expect("well formed").volumes.len(), 0);
    }
}
