//! Datanodes as the tool shows them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sbk_proto::v1;
use serde::Serialize;

use super::id_text;
use crate::output::{pairs, table};
use crate::size::show_size;

/// One datanode.
#[derive(Clone, Debug, Serialize)]
pub struct NodeView {
    /// Its UUID.
    pub id: String,
    /// Whether the masters hear from it.
    pub alive: bool,
    /// How often it was started.
    pub incarnation: u64,
    /// `host:port` of gRPC.
    pub addr: String,
    /// `host:port` of HTTP.
    pub http_addr: String,
    /// `host:port` of NBD.
    pub nbd_addr: String,
    /// Its failure zone; empty if none was given.
    pub zone: String,
    /// Whether it has a key, and can hold replicas of encrypted volumes.
    pub encrypts: bool,
    /// Space for sbk.
    pub capacity_bytes: u64,
    /// Space in use.
    pub used_bytes: u64,
    /// Space left.
    pub free_bytes: u64,
    /// Space that volumes claim of it, used or not.
    pub allocated_bytes: u64,
    /// Space that they may claim in all: the capacity, overcommitted.
    pub claimable_bytes: u64,
    /// Milliseconds since its last heartbeat.
    pub last_heartbeat_ms: u64,
    /// `holds`, `drained` or `removed`: what becomes of its replicas.
    pub duty: &'static str,
    /// Its data directories.
    pub disks: Vec<DiskView>,
    /// What it holds.
    pub replicas: Vec<NodeReplicaView>,
}

/// A data directory of a node, or a device.
#[derive(Clone, Debug, Serialize)]
pub struct DiskView {
    /// Where it is.
    pub path: String,
    /// Its id; empty as long as it was never read.
    pub id: String,
    /// Space that volumes may claim there.
    pub capacity_bytes: u64,
    /// Space in use.
    pub used_bytes: u64,
    /// Space left.
    pub free_bytes: u64,
    /// Space that volumes claim there, used or not.
    pub allocated_bytes: u64,
    /// How much room there is: `enough`, `low` (no new replica is placed there), `short` (writes that need new
    /// space wait) or `full` (all writes wait).
    pub room: &'static str,
    /// Space left below which it is `short`.
    pub growth_watermark_bytes: u64,
    /// Space left below which it is `low`.
    pub placement_watermark_bytes: u64,
    /// Why it can't be used; empty if it can.
    pub fault: String,
    /// Since when, in milliseconds of the Unix epoch.
    pub fault_since_ms: u64,
}

impl DiskView {
    fn of(disk: &v1::DiskReport) -> Self {
        Self {
            path: disk.path.clone(),
            id: disk.id.clone(),
            capacity_bytes: disk.capacity_bytes,
            used_bytes: disk.used_bytes,
            free_bytes: disk.free_bytes,
            allocated_bytes: disk.allocated_bytes,
            room: match disk.room() {
                v1::DiskRoom::Unspecified | v1::DiskRoom::Enough => "enough",
                v1::DiskRoom::Low => "low",
                v1::DiskRoom::Short => "short",
                v1::DiskRoom::Full => "full",
            },
            growth_watermark_bytes: disk.growth_watermark_bytes,
            placement_watermark_bytes: disk.placement_watermark_bytes,
            fault: disk.fault.clone(),
            fault_since_ms: disk.fault_since_ms,
        }
    }

    fn state(&self) -> String {
        if self.fault.is_empty() {
            let below = |mark, what: &str| format!("less than {} free: {what}", show_size(mark));
            return match self.room {
                "low" => below(self.placement_watermark_bytes, "no new replicas"),
                "short" => below(self.growth_watermark_bytes, "writes that need new space wait"),
                "full" => below(self.growth_watermark_bytes / 4, "writes wait"),
                _ => "works".to_owned(),
            };
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let since = Duration::from_millis(self.fault_since_ms);
        format!("failed {} s ago: {}", now.saturating_sub(since).as_secs(), self.fault)
    }
}

/// One replica on a node.
#[derive(Clone, Debug, Serialize)]
pub struct NodeReplicaView {
    /// The volume's UUID.
    pub volume: String,
    /// The volume's name.
    pub name: String,
    /// `primary`, `in_sync` or `out_of_sync`.
    pub role: &'static str,
}

impl NodeView {
    /// What the masters tell of a node.
    pub fn of(info: &v1::NodeInfo) -> Self {
        let replicas = info.replicas.iter().map(|r| NodeReplicaView {
            volume: id_text(&r.volume),
            name: r.volume_name.clone(),
            role: match (r.primary, r.in_sync) {
                (true, _) => "primary",
                (false, true) => "in_sync",
                (false, false) => "out_of_sync",
            },
        });
        Self {
            id: id_text(&info.id),
            alive: info.alive,
            incarnation: info.incarnation,
            addr: info.addr.clone(),
            http_addr: info.http_addr.clone(),
            nbd_addr: info.nbd_addr.clone(),
            zone: info.zone.clone(),
            encrypts: info.encrypts,
            capacity_bytes: info.capacity_bytes,
            used_bytes: info.used_bytes,
            free_bytes: info.free_bytes,
            allocated_bytes: info.allocated_bytes,
            claimable_bytes: info.claimable_bytes,
            last_heartbeat_ms: info.last_heartbeat_ms,
            duty: match info.duty() {
                v1::NodeDuty::Unspecified | v1::NodeDuty::Holds => "holds",
                v1::NodeDuty::Drained => "drained",
                v1::NodeDuty::Removed => "removed",
            },
            disks: info.disks.iter().map(DiskView::of).collect(),
            replicas: replicas.collect(),
        }
    }

    fn state(&self) -> String {
        let state = match self.alive {
            true => "alive".to_owned(),
            false => format!("silent for {:.1} s", self.last_heartbeat_ms as f64 / 1000.0),
        };
        let failed = self.disks.iter().filter(|disk| !disk.fault.is_empty()).count();
        let state = match failed {
            0 => state,
            _ => format!("{state}, {failed} of {} disks failed", self.disks.len()),
        };
        let low = self.disks.iter().filter(|d| d.fault.is_empty() && d.room != "enough").count();
        let state = match (low, self.disks.len()) {
            (0, _) => state,
            (1, 1) => format!("{state}, low on room"),
            (low, disks) => format!("{state}, {low} of {disks} disks low on room"),
        };
        match self.duty {
            "holds" => state,
            duty => format!("{state}, {duty}"),
        }
    }

    /// For people: everything about it.
    pub fn detail(&self) -> String {
        let head = pairs(&[
            ("id", self.id.clone()),
            ("state", self.state()),
            ("started", format!("{} times", self.incarnation)),
            ("grpc", self.addr.clone()),
            ("http", self.http_addr.clone()),
            ("nbd", self.nbd_addr.clone()),
            ("zone", if self.zone.is_empty() { "-".into() } else { self.zone.clone() }),
            ("has a key", if self.encrypts { "yes".into() } else { "no".into() }),
            ("capacity", show_size(self.capacity_bytes)),
            (
                "allocated",
                format!(
                    "{} of {} that volumes may claim",
                    show_size(self.allocated_bytes),
                    show_size(self.claimable_bytes)
                ),
            ),
            ("used", show_size(self.used_bytes)),
            ("free", show_size(self.free_bytes)),
        ]);
        let rows = self
            .replicas
            .iter()
            .map(|r| vec![r.name.clone(), r.volume.clone(), r.role.replace('_', " ")]);
        let disks = self.disks.iter().map(|disk| {
            let size = |bytes| if bytes == 0 { "-".to_owned() } else { show_size(bytes) };
            let id = if disk.id.is_empty() { "-".into() } else { disk.id.clone() };
            vec![
                disk.path.clone(),
                id,
                size(disk.capacity_bytes),
                show_size(disk.allocated_bytes),
                show_size(disk.used_bytes),
                show_size(disk.free_bytes),
                disk.state(),
            ]
        });
        let columns = ["disk", "id", "capacity", "allocated", "used", "free", "state"];
        let disks = table(&columns, disks);
        format!("{head}\n{disks}\n{}", table(&["volume", "id", "role"], rows))
    }
}

/// For people: one line per node.
pub fn node_table(nodes: &[NodeView]) -> String {
    if nodes.is_empty() {
        return "No datanode has joined. Start one with `sbk-datanode`.\n".into();
    }
    let rows = nodes.iter().map(|n| {
        vec![
            n.id.clone(),
            n.state(),
            n.addr.clone(),
            n.nbd_addr.clone(),
            if n.zone.is_empty() { "-".into() } else { n.zone.clone() },
            n.replicas.len().to_string(),
            show_size(n.capacity_bytes),
            show_size(n.allocated_bytes),
            show_size(n.used_bytes),
            show_size(n.free_bytes),
        ]
    });
    let columns =
        ["id", "state", "grpc", "nbd", "zone", "replicas", "capacity", "allocated", "used", "free"];
    table(&columns, rows)
}
