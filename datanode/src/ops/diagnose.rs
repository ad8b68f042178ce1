//! What is wrong on this node, in words, and what to do about it.

use axum::Json;
use axum::extract::State;
use sbk_engine::replication::mend::MendCounts;
use sbk_engine::replication::room::Room;
use sbk_engine::replication::view::{RoleView, View};
use serde::Serialize;
use serde_json::{Value, json};

use crate::disks::DiskRoom;
use crate::node::Node;
use crate::patrol::Record;
use crate::volume::{READ_FAILED, RunState, VolumeHandle, VolumeStatus};

/// One thing that is not as it should be.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Complaint {
    /// About what: a volume, or the node.
    about: String,
    /// What is wrong, and why.
    what: String,
    /// What a person can do.
    advice: String,
}

fn complaint(about: impl ToString, what: impl Into<String>, advice: &str) -> Complaint {
    Complaint { about: about.to_string(), what: what.into(), advice: advice.to_owned() }
}

pub(super) async fn show(State(node): State<Node>) -> Json<Value> {
    let mut complaints = of_node(&node);
    for handle in node.volumes.all() {
        let status = handle.current();
        complaints.extend(of_volume(&status));
        complaints.extend(of_reads(&handle));
        complaints.extend(of_blocks(&handle));
    }
    complaints.extend(node.scrubs.borrow().0.values().filter_map(of_scrub));
    Json(json!({"well": complaints.is_empty(), "complaints": complaints}))
}

fn of_node(node: &Node) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    if !*node.registered.borrow() {
        complaints.push(complaint(
            "node",
            "the masters don't know this process",
            "volumes that run go on; check that the masters run (`sbkctl cluster status`) and that \
             --masters names them",
        ));
    }
    for disk in &node.disks {
        if let Some(fault) = disk.fault() {
            complaints.push(complaint(
                disk.path().display(),
                format!("the disk can't be used, and its replicas are away: {}", fault.reason),
                "see `dmesg`; once the disk is mounted and works it is used again. If it is lost for good, \
                 start the datanode with --lost-dir and its id",
            ));
        }
        let state = disk.state();
        // Below the growth watermark each replica there complains.
        if state.fault.is_none() && state.room == DiskRoom::Low {
            complaints.push(complaint(
                disk.path().display(),
                format!(
                    "{} MiB are free, below the placement watermark of {} MiB: the masters put no new replica \
                     here",
                    state.free_bytes >> 20,
                    state.placement_watermark_bytes >> 20
                ),
                "make room, enlarge the disk, or move replicas away, before clients have to wait for room",
            ));
        }
    }
    let findings = node.findings.borrow().clone();
    for (volume, replica) in &findings.missing {
        complaints.push(complaint(
            volume,
            format!("replica {replica} was confirmed here but is not in the data directory"),
            "if the right disk is not mounted, stop the datanode, mount it and start again; \
             otherwise the replica is lost and another node's copy serves",
        ));
    }
    for (volume, replica) in &findings.unknown {
        complaints.push(complaint(
            volume,
            format!("replica {replica} is in the data directory but unknown to the masters"),
            "it is kept and not served; if the node belongs to another cluster, check --masters",
        ));
    }
    complaints
}

fn of_volume(status: &VolumeStatus) -> Vec<Complaint> {
    let volume = status.volume;
    let view = match (&status.run, &status.view) {
        (RunState::Running, Some(view)) => view,
        (RunState::Failed { reason, failures }, _) => {
            let what = format!("its store failed {failures} times: {reason}");
            return vec![complaint(volume, what, "check the disk; it is opened again by itself")];
        }
        (RunState::Full { reason, failures }, _) => {
            let what = format!("its disk is full, it failed {failures} times: {reason}");
            return vec![complaint(volume, what, "make room; it is opened again by itself")];
        }
        (RunState::Retired { reason }, _) => {
            let what =
                format!("its store failed too often, it is left alone for a while: {reason}");
            let advice = "check the disk (`dmesg`), then restart the datanode, or have the replica \
                          replaced: sbkctl volume replace NAME --node NODE";
            return vec![complaint(volume, what, advice)];
        }
        // The disk is complained of.
        (RunState::Away { .. }, _) => return Vec::new(),
        (RunState::Running | RunState::Opening | RunState::Ended, _) => return Vec::new(),
    };
    let mut complaints = Vec::new();
    if status.wal_full {
        complaints.push(complaint(
            volume,
            "its WAL is full: clients wait for a checkpoint",
            "if it stays so, the disk is too slow for the load or a recovery holds the WAL; see \
             /projection",
        ));
    }
    if view.space.room > Room::Ample {
        let what = format!("its disk has {}", view.space);
        let next = "make room, enlarge the disk, or move replicas away: writes that need new space wait for it";
        complaints.push(complaint(volume, what, next));
    }
    if view.incomplete.is_some() {
        let what = "its image is incomplete: a rebuild is unfinished";
        complaints.push(complaint(
            volume,
            what,
            "it goes on once its primary runs; see /projection",
        ));
    }
    if view.doubtful {
        let what =
            "its log ends in a write that could not be read: torn by a loss of power, or rotten";
        let next = "nothing, once another in-sync replica took over or it is in sync again; see the disk's log";
        complaints.push(complaint(volume, what, next));
    }
    match view.role {
        RoleView::Primary => complaints.extend(of_primary(status, view)),
        RoleView::Idle => complaints.push(complaint(
            volume,
            "no primary has spoken to this replica since it was opened",
            "wait a moment; if it stays so, see `sbkctl volume show` for the primary",
        )),
        RoleView::Follower | RoleView::Stopped | RoleView::Deleted => {}
    }
    complaints
}

/// What the scrub in the background could not have repaired, or not read.
fn of_scrub(record: &Record) -> Option<Complaint> {
    let what = match (&record.failed, record.not_repaired) {
        (Some(why), _) => format!("it could not be scrubbed in the background to its end: {why}"),
        (None, 0) => return None,
        (None, lost) => format!(
            "a scrub in the background found {} damaged blocks, and {lost} of them nobody repaired",
            record.damaged
        ),
    };
    let advice = "see the node's log for the blocks, and `sbkctl volume scrub NAME --repair`";
    Some(complaint(record.volume, what, advice))
}

fn of_reads(handle: &VolumeHandle) -> Option<Complaint> {
    let failed = handle.counters.named().get(&READ_FAILED).copied().filter(|failed| *failed > 0)?;
    let what = format!("{failed} reads were refused by the disk in this process");
    let advice = "the log says which file; `sbkctl volume scrub` tells which replica is damaged";
    Some(complaint(handle.volume, what, advice))
}

fn of_blocks(handle: &VolumeHandle) -> Option<Complaint> {
    let MendCounts { rotten, mended, not_mended, scrubbed: _ } = handle.counters.mends();
    let what = match (rotten, not_mended) {
        (0, _) => return None,
        (_, 0) => format!(
            "{rotten} blocks did not match their checksums in this process, and {mended} of them were \
             repaired from another replica: its disk returns wrong data"
        ),
        (_, lost) => format!(
            "{rotten} blocks did not match their checksums in this process, and {lost} of them no other \
             in-sync replica could give: clients got I/O errors"
        ),
    };
    let advice = "see the disk's log and its SMART data; `sbkctl volume scrub` tells what is damaged \
                  still, `sbkctl volume explain` what was repaired";
    Some(complaint(handle.volume, what, advice))
}

fn of_primary(status: &VolumeStatus, view: &View) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    if !view.serving {
        let advice = "see which replica is lacking in /projection and bring its node back";
        complaints.push(complaint(status.volume, format!("not served: {}", view.reason), advice));
    }
    for (replica, peer) in &view.peers {
        if !peer.in_sync {
            let what = format!(
                "replica {replica} at {} is not in sync, {} entries behind",
                peer.addr, peer.lag
            );
            let advice = "if its node is down, start it; it is brought back by itself";
            complaints.push(complaint(status.volume, what, advice));
        }
    }
    complaints
}
