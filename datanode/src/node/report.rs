//! What a node tells the masters of its replicas.

use sbk_engine::replication::room::Room;
use sbk_engine::replication::view::{RoleView, View};
use sbk_engine::types::{Config, Durability};
use sbk_proto::v1;

use crate::disks::{DataDisk, DiskRoom, DiskState, Fault};
use crate::transport::convert::{id_bytes, replica_ref_out, tail_out};
use crate::volume::{OpenReplica, RunState, VolumeStatus};

/// How a replica is, in a word and a sentence.
pub fn mode(status: &VolumeStatus) -> (&'static str, String) {
    let (mode, reason) = role_of(status);
    let all = std::iter::once(reason).filter(|reason| !reason.is_empty()).chain(conditions(status));
    (mode, all.collect::<Vec<_>>().join("; "))
}

/// What only the replica itself knows of its disk and its log, in words: beside whatever its primary says of it.
pub fn conditions(status: &VolumeStatus) -> Vec<String> {
    let wal_full = "wal_full: its WAL has reached its limit, and clients wait for a checkpoint";
    let waits = status.view.as_ref().filter(|view| !view.growth_waits);
    let short = waits.filter(|view| view.space.room > Room::Ample);
    let short = short.map(|view| format!("its disk has {}", view.space));
    status.wal_full.then(|| wal_full.to_owned()).into_iter().chain(short).collect()
}

fn role_of(status: &VolumeStatus) -> (&'static str, String) {
    let view = match (&status.run, &status.view) {
        (RunState::Running, Some(view)) => view,
        (RunState::Running | RunState::Opening, _) => return ("idle", "it is being opened".into()),
        (RunState::Failed { reason, .. }, _) => {
            return ("degraded", format!("its store failed and is opened again: {reason}"));
        }
        (RunState::Full { reason, .. }, _) => {
            return ("degraded", format!("its disk is full, it waits for room: {reason}"));
        }
        (RunState::Retired { reason }, _) => {
            return ("degraded", format!("its store failed too often: {reason}"));
        }
        (RunState::Away { reason }, _) => return ("degraded", reason.clone()),
        (RunState::Ended, _) => return ("idle", "it has stopped".into()),
    };
    match view.role {
        RoleView::Idle => ("idle", "no primary has spoken to it and it is none".into()),
        RoleView::Primary if view.serving => ("healthy", view.reason.clone()),
        RoleView::Primary => ("degraded", view.reason.clone()),
        RoleView::Stopped | RoleView::Deleted => ("idle", view.reason.clone()),
        RoleView::Follower if view.incomplete.is_some() => {
            ("recovering", "it is being rebuilt".into())
        }
        // A voter is listed whether it holds everything or not; one that recorded the epoch holds
        // all that was logged before it.
        RoleView::Follower if is_voter(view) && view.table_epoch != Some(view.epoch) => {
            ("recovering", "it has not got the log up to this epoch yet".into())
        }
        RoleView::Follower if is_in_sync(view) => ("healthy", String::new()),
        RoleView::Follower => ("recovering", "it is not in sync".into()),
    }
}

fn is_voter(view: &View) -> bool {
    let by_majority = |config: &Config| config.durability == Durability::SyncQuorum;
    view.config.as_ref().is_some_and(by_majority)
}

fn is_in_sync(view: &View) -> bool {
    view.config.as_ref().is_some_and(|config| config.isr.contains(&view.me.id))
}

/// A replica's part of a heartbeat; `None` while its store isn't open.
pub(super) fn report(status: &VolumeStatus) -> Option<v1::ReplicaReport> {
    let view = status.view.as_ref()?;
    let (mode, reason) = mode(status);
    let is_primary = view.role == RoleView::Primary;
    Some(v1::ReplicaReport {
        volume: id_bytes(status.volume.0),
        replica: Some(replica_ref_out(view.me)),
        table_epoch: view.table_epoch.map_or(0, |epoch| epoch.0),
        durable_lsn: view.durable.0,
        committed_lsn: view.committed.0,
        mode: mode.to_owned(),
        reason,
        is_primary,
        epoch: if is_primary { view.epoch.0 } else { 0 },
        serving: view.serving,
        lacking: view.lacking.iter().map(|replica| id_bytes(replica.0)).collect(),
        lacking_ms: view.lacking_ms,
        promised: view.promised.iter().map(|replica| id_bytes(replica.0)).collect(),
        tail: Some(tail_out(view.tail)),
        stood: view.stood.map(|epoch| epoch.0),
    })
}

/// A replica's part of a heartbeat while its store isn't open.
pub(super) fn closed(status: &VolumeStatus) -> Option<v1::ClosedReplica> {
    if status.view.is_some() {
        return None;
    }
    let (mode, reason) = mode(status);
    let replica = id_bytes(status.replica.0);
    let returns = match status.run {
        RunState::Opening
        | RunState::Running
        | RunState::Failed { .. }
        | RunState::Full { .. }
        | RunState::Away { .. } => true,
        RunState::Retired { .. } | RunState::Ended => false,
    };
    Some(v1::ClosedReplica { replica, mode: mode.to_owned(), reason, returns })
}

/// A disk's part of a heartbeat.
pub(super) fn disk(disk: &DataDisk) -> v1::DiskReport {
    let state: DiskState = disk.state();
    let unfailing = Fault { reason: String::new(), since_ms: 0 };
    let Fault { reason, since_ms } = state.fault.unwrap_or(unfailing);
    let room = match state.room {
        DiskRoom::Enough => v1::DiskRoom::Enough,
        DiskRoom::Low => v1::DiskRoom::Low,
        DiskRoom::Short => v1::DiskRoom::Short,
        DiskRoom::Full => v1::DiskRoom::Full,
    };
    v1::DiskReport {
        path: disk.path().display().to_string(),
        id: state.id.unwrap_or_default(),
        capacity_bytes: state.capacity_bytes,
        free_bytes: state.free_bytes,
        used_bytes: state.used_bytes,
        fault: reason,
        fault_since_ms: since_ms,
        size_bytes: state.size_bytes,
        room: room.into(),
        growth_watermark_bytes: state.growth_watermark_bytes,
        placement_watermark_bytes: state.placement_watermark_bytes,
        allocated_bytes: 0,
    }
}

/// What must be told at once when it changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    run: std::mem::Discriminant<RunState>,
    open: Option<OpenReplica>,
    stood: Option<sbk_engine::types::Epoch>,
    role: Option<RoleView>,
    serving: bool,
    waits: (bool, bool, Room),
    epoch: Option<sbk_engine::types::Epoch>,
    lacking: Vec<sbk_engine::types::ReplicaId>,
}

impl Key {
    pub(super) fn of(status: &VolumeStatus) -> Self {
        let view = status.view.as_ref();
        Self {
            run: std::mem::discriminant(&status.run),
            open: status.open_as(),
            role: view.map(|view| view.role),
            stood: view.and_then(|view| view.stood),
            serving: view.is_some_and(|view| view.serving),
            waits: (
                status.wal_full,
                view.is_some_and(|view| view.growth_waits),
                view.map(|view| view.space.room).unwrap_or_default(),
            ),
            epoch: view.and_then(|view| view.config.as_ref()).map(|config| config.epoch),
            lacking: view.map(|view| view.lacking.clone()).unwrap_or_default(),
        }
    }
}
