//! Volumes, nodes and the quorum as the tool shows them. The field names are an interface:
//! programs read them with `-o json`.

mod node;

use std::time::{SystemTime, UNIX_EPOCH};

use sbk_proto::v1;
use serde::Serialize;
use uuid::Uuid;

use crate::output::{pairs, table};
use crate::size::show_size;

pub use node::{DiskView, NodeReplicaView, NodeView, node_table};

/// One volume.
#[derive(Clone, Debug, Serialize)]
pub struct VolumeView {
    /// Its name.
    pub name: String,
    /// Its UUID.
    pub id: String,
    /// Its size, as it is published.
    pub size_bytes: u64,
    /// The size that it is to have; `null` if no other is wished.
    pub wished_size_bytes: Option<u64>,
    /// The last smaller size that was wished, if it could not be; `null` otherwise.
    pub size_refused: Option<SizeRefusedView>,
    /// How many replicas it is to have.
    pub replicas: u32,
    /// `sync_all`, `sync_quorum` or `best_effort`.
    pub durability: &'static str,
    /// `durable` or `written`.
    pub write_ack: &'static str,
    /// Whether its replicas are encrypted where they lie.
    pub encrypted: bool,
    /// Requests a second that its clients may make, all together; `null`: any number.
    pub iops: Option<u64>,
    /// Bytes a second that they may read and write; `null`: any number.
    pub bandwidth: Option<u64>,
    /// How many seconds' worth of both may be saved up.
    pub burst_seconds: u32,
    /// The newest configuration's number; `null` before the first.
    pub epoch: Option<u64>,
    /// How often acknowledged writes may have been lost.
    pub loss_generation: u64,
    /// The node of the primary; `null` before the first epoch.
    pub primary: Option<String>,
    /// The nodes of the in-sync replicas.
    pub isr: Vec<String>,
    /// Whether reads and writes are answered.
    pub serving: bool,
    /// Why not, or what is not whole; empty if all is well.
    pub reason: String,
    /// The nodes whose replicas were not waited for when all in-sync replicas had lost power: they may
    /// hold writes that were acknowledged and not flushed.
    pub may_hold_unflushed: Vec<String>,
    /// Each replica.
    pub members: Vec<MemberView>,
}

/// A size that a volume could not have, for it has data beyond it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SizeRefusedView {
    /// The size.
    pub size_bytes: u64,
    /// Where there is data: the offset of the first block that was found, in bytes.
    pub data_at: u64,
}

/// One replica of a volume.
#[derive(Clone, Debug, Default, Serialize)]
pub struct MemberView {
    /// The node that holds it.
    pub node: String,
    /// `idle`, `recovering`, `healthy` or `degraded`.
    pub mode: String,
    /// What was decided about it: `none`, `catch_up`, `delta`, `rebuild`; `null` if nothing was.
    pub decision: Option<String>,
    /// The recovery session that runs.
    pub session: Option<SessionView>,
    /// R: what it durably holds.
    pub r: Option<u64>,
    /// S: the oldest LSN that the primary's WAL retains.
    pub s: Option<u64>,
    /// H: the primary's head.
    pub h: Option<u64>,
    /// How much it lacks, at least: entries of the log, told as 4 KiB each.
    pub lag_bytes: Option<u64>,
    /// Why it is in this mode, in words.
    pub reason: String,
    /// What its scrubs in the background found; `null` before one came to its end.
    pub scrub: Option<ScrubView>,
}

/// What scrubs of a replica in the background found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ScrubView {
    /// How many came to their end.
    pub passes: u64,
    /// When the last of them did, in seconds since 1970.
    pub ended: u64,
    /// Damaged blocks that it found.
    pub damaged: u64,
    /// Of these, blocks that nobody repaired.
    pub not_repaired: u64,
    /// Damaged blocks that all of them found, those that came to no end included.
    pub found: u64,
    /// Why the one that was begun last was broken off, if it was.
    pub failed: Option<String>,
}

/// A recovery session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SessionView {
    /// Its number.
    pub id: String,
    /// `catch_up`, `delta` or `rebuild`.
    pub kind: String,
    /// Fixed when it began.
    pub target_lsn: u64,
    /// How far it came.
    pub achieved_lsn: u64,
    /// Payload bytes of entries sent since it began: what the replica missed, and what clients write meanwhile.
    pub entries_bytes: u64,
    /// Base blocks, in a delta or a rebuild.
    pub base: Option<BaseView>,
}

/// How far the base blocks of a delta or a rebuild have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BaseView {
    /// Regions of 1 MiB that are to be sent; 0 before it is known.
    pub regions: u64,
    /// Those that were.
    pub regions_sent: u64,
    /// Bytes of all of them; zeros take next to nothing on the way.
    pub bytes_most: u64,
    /// Bytes that were sent.
    pub bytes_sent: u64,
    /// Bytes that the replica has written.
    pub bytes_taken: u64,
}

/// Milliseconds since 1970 on this machine's clock.
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// A UUID as text; the raw bytes in hexadecimal if they are none.
pub fn id_text(bytes: &[u8]) -> String {
    match Uuid::from_slice(bytes) {
        Ok(id) => id.to_string(),
        Err(_) => bytes.iter().map(|b| format!("{b:02x}")).collect(),
    }
}

impl VolumeView {
    /// What the masters tell of a volume. What only the primary knows of its members (decision,
    /// session, S, H, lag) is not in it yet.
    pub fn of(info: &v1::VolumeInfo) -> Self {
        let isr = info.members.iter().filter(|m| m.in_sync).map(|m| id_text(&m.node)).collect();
        let missing = info.members.iter().filter(|m| m.may_hold_unflushed);
        let primary = info.members.iter().find(|m| m.primary).map(|m| id_text(&m.node));
        let reason = match (&info.config, info.deleting) {
            (_, true) => "it is being deleted".to_owned(),
            (None, false) if info.reason.is_empty() => {
                "waits for its replicas to be created".to_owned()
            }
            _ => info.reason.clone(),
        };
        let (limits, some) = (info.limits.unwrap_or_default(), |n: u64| (n > 0).then_some(n));
        Self {
            name: info.name.clone(),
            id: id_text(&info.id),
            size_bytes: info.size_bytes,
            wished_size_bytes: some(info.wished_size_bytes),
            size_refused: info.size_refused.map(|refused| SizeRefusedView {
                size_bytes: refused.size_bytes,
                data_at: refused.offset,
            }),
            replicas: info.replicas,
            durability: durability(info.durability()),
            write_ack: write_ack(info.write_ack()),
            encrypted: info.encrypted,
            iops: some(limits.iops),
            bandwidth: some(limits.bandwidth),
            burst_seconds: limits.burst_seconds.max(1),
            epoch: info.config.as_ref().map(|c| c.epoch),
            loss_generation: info.config.as_ref().map_or(0, |c| c.loss_generation),
            primary,
            isr,
            serving: info.serving,
            reason,
            may_hold_unflushed: missing.map(|m| id_text(&m.node)).collect(),
            members: info.members.iter().map(MemberView::of).collect(),
        }
    }

    /// Whether it serves with every replica in sync.
    pub fn is_whole(&self) -> bool {
        self.serving
            && self.isr.len() == self.replicas as usize
            && self.members.len() == self.replicas as usize
            && (!self.by_majority() || self.members.iter().all(|m| m.mode == "healthy"))
    }

    /// Whether a majority of the voters decides; the list of them says nothing of who holds what.
    fn by_majority(&self) -> bool {
        self.durability == "sync_quorum"
    }

    fn in_sync_words(&self) -> (&'static str, String) {
        let (listed, wanted) = (self.isr.len(), self.replicas);
        match self.by_majority() {
            true => {
                let majority = listed / 2 + 1;
                ("voters", format!("{listed} of {wanted} replicas; {majority} are a majority"))
            }
            false => ("in sync", format!("{listed} of {wanted} replicas")),
        }
    }

    fn short_size(&self) -> String {
        let to = self.wished_size_bytes.map(|to| format!(" -> {}", show_size(to)));
        show_size(self.size_bytes) + &to.unwrap_or_default()
    }

    fn size_words(&self) -> String {
        let size = show_size(self.size_bytes);
        match (self.wished_size_bytes, &self.size_refused) {
            (Some(to), _) => format!("{size}, is to have {}", show_size(to)),
            (None, Some(refused)) => format!(
                "{size}; it could not have {}, for there is data at byte {}",
                show_size(refused.size_bytes),
                refused.data_at
            ),
            (None, None) => size,
        }
    }

    fn limit_words(&self) -> String {
        let iops = self.iops.map(|n| format!("{n} requests/s"));
        let bandwidth = self.bandwidth.map(|n| format!("{}/s", show_size(n)));
        let limits: Vec<_> = iops.into_iter().chain(bandwidth).collect();
        match (limits.is_empty(), self.burst_seconds) {
            (true, _) => "none".to_owned(),
            (false, 1) => limits.join(", "),
            (false, seconds) => format!("{}, bursts of {seconds} s", limits.join(", ")),
        }
    }

    /// For people: everything about it.
    pub fn detail(&self) -> String {
        let none = || "-".to_owned();
        let head = pairs(&[
            ("name", self.name.clone()),
            ("id", self.id.clone()),
            ("size", self.size_words()),
            ("durability", format!("{}, acknowledged when {}", self.durability, self.write_ack)),
            ("encrypted", if self.encrypted { "yes, each replica".into() } else { "no".into() }),
            ("limits", self.limit_words()),
            ("epoch", self.epoch.map_or_else(none, |e| e.to_string())),
            ("primary", self.primary.clone().unwrap_or_else(none)),
            self.in_sync_words(),
            ("losses", self.loss_words()),
            ("serving", self.serving_words()),
        ]);
        let number = |n: Option<u64>| n.map_or_else(none, |n| n.to_string());
        let rows = self.members.iter().map(|m| {
            let role = match (self.primary.as_ref() == Some(&m.node), self.isr.contains(&m.node)) {
                (true, _) => "primary",
                (false, true) if self.by_majority() => "voter",
                (false, true) => "in sync",
                (false, false) => "out of sync",
            };
            vec![
                m.node.clone(),
                role.to_owned(),
                m.mode.clone(),
                number(m.r),
                number(m.s),
                number(m.h),
                m.lag_bytes.map_or_else(none, show_size),
                m.session.as_ref().map_or_else(none, SessionView::words),
                m.reason.clone(),
            ]
        });
        let header = ["node", "role", "mode", "r", "s", "h", "lag", "session", "reason"];
        let scrubs = self.members.iter().filter_map(|m| Some(m.scrub.as_ref()?.row(&m.node)));
        let scrubs: Vec<_> = scrubs.collect();
        let scrubs = match scrubs.is_empty() {
            true => String::new(),
            false => format!("\n{}", table(&ScrubView::COLUMNS, scrubs.into_iter())),
        };
        format!("{head}\n{}{scrubs}", table(&header, rows))
    }

    /// Short: durable acknowledgements are what everybody expects.
    fn durability_words(&self) -> String {
        match self.write_ack {
            "durable" => self.durability.to_owned(),
            ack => format!("{}, {ack}", self.durability),
        }
    }

    fn loss_words(&self) -> String {
        match self.loss_generation {
            0 => "none".to_owned(),
            n => format!("{n}: acknowledged writes may have been lost {n} times"),
        }
    }

    fn serving_words(&self) -> String {
        match (self.serving, self.reason.is_empty()) {
            (true, true) => "yes".to_owned(),
            (true, false) => format!("yes; {}", self.reason),
            (false, true) => "no".to_owned(),
            (false, false) => format!("no: {}", self.reason),
        }
    }
}

/// For people: one line per volume.
pub fn volume_table(volumes: &[VolumeView]) -> String {
    let rows = volumes.iter().map(|v| {
        vec![
            v.name.clone(),
            v.short_size(),
            v.durability_words(),
            v.epoch.map_or_else(|| "-".to_owned(), |e| e.to_string()),
            format!("{}/{}", v.isr.len(), v.replicas),
            v.serving_words(),
        ]
    });
    if volumes.is_empty() {
        return "There is no volume. `sbkctl volume create NAME --size 10GiB` makes one.\n".into();
    }
    table(&["name", "size", "durability", "epoch", "in sync", "serving"], rows)
}

impl MemberView {
    fn of(info: &v1::MemberInfo) -> Self {
        let (mode, reason) = match (info.confirmed, info.node_alive) {
            (false, _) => ("idle", "its create is not confirmed yet"),
            (true, false) => ("degraded", "its node is not heard from"),
            (true, true) => (info.mode.as_str(), info.reason.as_str()),
        };
        let (mode, reason) = (mode.to_owned(), reason.to_owned());
        let r = info.confirmed.then_some(info.durable_lsn);
        Self { node: id_text(&info.node), mode, reason, r, ..Self::default() }
    }
}

impl ScrubView {
    const COLUMNS: [&str; 5] = ["node", "scrubbed", "damaged", "not repaired", "found in all"];

    fn row(&self, node: &str) -> Vec<String> {
        let ago = (unix_ms() / 1000).saturating_sub(self.ended);
        let when = match (ago / 86_400, ago / 3600) {
            (0, 0) => format!("{} min ago", ago / 60),
            (0, hours) => format!("{hours} h ago"),
            (days, _) => format!("{days} days ago"),
        };
        let when = match &self.failed {
            Some(why) => format!("{when}, since then broken off: {why}"),
            None => when,
        };
        let numbers = [self.damaged, self.not_repaired, self.found].map(|n| n.to_string());
        [node.to_owned(), when].into_iter().chain(numbers).collect()
    }
}

impl SessionView {
    fn words(&self) -> String {
        let Self { kind, id, target_lsn, achieved_lsn, entries_bytes, base } = self;
        let base = base.filter(|base| base.regions > 0).map(|base| {
            let BaseView { regions, regions_sent, bytes_most, bytes_taken, .. } = base;
            let (taken, most) = (show_size(bytes_taken), show_size(bytes_most));
            format!(", {regions_sent} of {regions} regions, {taken} of at most {most}")
        });
        let entries = match entries_bytes {
            0 => String::new(),
            bytes => format!(", {} of entries", show_size(*bytes)),
        };
        format!(
            "{kind} {id} at {achieved_lsn} of {target_lsn}{}{entries}",
            base.unwrap_or_default()
        )
    }
}

fn durability(value: v1::Durability) -> &'static str {
    match value {
        v1::Durability::Unspecified | v1::Durability::SyncAll => "sync_all",
        v1::Durability::SyncQuorum => "sync_quorum",
        v1::Durability::BestEffort => "best_effort",
    }
}

fn write_ack(value: v1::WriteAck) -> &'static str {
    match value {
        v1::WriteAck::Unspecified | v1::WriteAck::Durable => "durable",
        v1::WriteAck::Written => "written",
    }
}

/// The quorum.
#[derive(Clone, Debug, Serialize)]
pub struct ClusterView {
    /// The cluster's UUID.
    pub cluster: String,
    /// Whether a majority of the masters works together.
    pub has_quorum: bool,
    /// The leader's number; `null` if there is none.
    pub leader: Option<u64>,
    /// Raft's term.
    pub term: u64,
    /// Last entry of the log.
    pub last_log_index: u64,
    /// Last entry applied.
    pub applied_index: u64,
    /// Last entry in a snapshot.
    pub snapshot_index: u64,
    /// Volumes.
    pub volumes: u32,
    /// Of them, those that serve.
    pub volumes_serving: u32,
    /// Datanodes.
    pub nodes: u32,
    /// Of them, those that are heard from.
    pub nodes_alive: u32,
    /// The masters.
    pub members: Vec<MasterView>,
}

/// One master.
#[derive(Clone, Debug, Serialize)]
pub struct MasterView {
    /// Its number.
    pub id: u64,
    /// `host:port` of gRPC.
    pub addr: String,
    /// `leader`, `voter` or `learner`.
    pub role: &'static str,
    /// Whether the one who answered reaches it.
    pub reachable: bool,
    /// Log position that the leader knows it has.
    pub matched_index: u64,
}

impl ClusterView {
    /// What a master tells of the quorum.
    pub fn of(status: &v1::ClusterStatusResponse) -> Self {
        let members = status.members.iter().map(|m| MasterView {
            id: m.id,
            addr: m.addr.clone(),
            role: match (m.leader, m.voter) {
                (true, _) => "leader",
                (false, true) => "voter",
                (false, false) => "learner",
            },
            reachable: m.reachable,
            matched_index: m.matched_index,
        });
        Self {
            cluster: id_text(&status.cluster),
            has_quorum: status.has_quorum,
            leader: (status.leader != 0).then_some(status.leader),
            term: status.term,
            last_log_index: status.last_log_index,
            applied_index: status.applied_index,
            snapshot_index: status.snapshot_index,
            volumes: status.volumes,
            volumes_serving: status.volumes_serving,
            nodes: status.nodes,
            nodes_alive: status.nodes_alive,
            members: members.collect(),
        }
    }

    /// For people: the quorum as a whole.
    pub fn detail(&self) -> String {
        let leader = self.leader.map_or_else(|| "none".to_owned(), |id| id.to_string());
        let quorum = match self.has_quorum {
            true => "yes".to_owned(),
            false => "no: nothing can be created or failed over, what serves goes on".to_owned(),
        };
        pairs(&[
            ("cluster", self.cluster.clone()),
            ("quorum", quorum),
            ("leader", leader),
            ("term", self.term.to_string()),
            ("log", format!("{} (applied {})", self.last_log_index, self.applied_index)),
            ("snapshot", self.snapshot_index.to_string()),
            ("volumes", format!("{}, {} serving", self.volumes, self.volumes_serving)),
            ("datanodes", format!("{}, {} alive", self.nodes, self.nodes_alive)),
        ])
    }
}

/// For people: one line per master.
pub fn master_table(members: &[MasterView]) -> String {
    let rows = members.iter().map(|m| {
        vec![
            m.id.to_string(),
            m.addr.clone(),
            m.role.to_owned(),
            if m.reachable { "yes".into() } else { "no".into() },
            m.matched_index.to_string(),
        ]
    });
    table(&["id", "address", "role", "reachable", "log"], rows)
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
