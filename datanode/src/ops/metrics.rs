//! Prometheus metrics, gathered when they are asked for.

use std::sync::atomic::AtomicU64;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use sbk_engine::replication::mend::MendCounts;

use crate::disks::{DiskRoom, DiskState};
use crate::node::Node;
use crate::volume::{READ_FAILED, RunState, VolumeStatus};

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge>;
type Counters = Family<Labels, Counter>;

pub(super) async fn show(State(node): State<Node>) -> Response {
    let mut text = String::new();
    match encode(&mut text, &gather(&node)) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn gather(node: &Node) -> Registry {
    let mut registry = Registry::with_prefix("sbk_datanode");
    let mut gauge = |name: &str, help: &str, value: u64| {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    };
    let (free, used) = node.space();
    gauge("free_bytes", "Bytes free for replicas", free);
    gauge("used_bytes", "Bytes that replicas use", used);
    gauge("registered", "1 if the masters know this process", (*node.registered.borrow()).into());
    let disks = DISK_GAUGES.map(|(name, help, _)| {
        let family = Gauges::default();
        registry.register(name, help, family.clone());
        family
    });
    for disk in &node.disks {
        let label = vec![("data_dir", disk.path().display().to_string())];
        let state = disk.state();
        for ((_, _, value), family) in DISK_GAUGES.iter().zip(&disks) {
            set(family, &label, value(&state));
        }
    }
    let named = [
        ("events", "Inputs of the engine"),
        ("ignored", "Inputs that changed nothing, by reason"),
        ("outputs", "Outputs of the engine"),
    ]
    .map(|(name, help)| {
        let family = Counters::default();
        registry.register(name, help, family.clone());
        family
    });
    let per_volume = VOLUME_GAUGES.map(|(name, help, _)| {
        let family = Gauges::default();
        registry.register(name, help, family.clone());
        family
    });
    let lag = Gauges::default();
    registry.register("peer_lag_entries", "Entries that another replica lacks", lag.clone());
    let sent = [
        ("peer_entries_sent_bytes", "Payload bytes of entries sent to another replica"),
        ("peer_base_sent_bytes", "Bytes of base blocks sent to another replica"),
    ]
    .map(|(name, help)| {
        let family = Counters::default();
        registry.register(name, help, family.clone());
        family
    });
    let regions = [
        ("peer_base_regions", "Regions to send in the delta or rebuild that is under way"),
        ("peer_base_regions_sent", "Of these, regions that were sent"),
    ]
    .map(|(name, help)| {
        let family = Gauges::default();
        registry.register(name, help, family.clone());
        family
    });
    let throttled = Counters::default();
    let help = "Requests that waited for the volume's limits";
    registry.register("throttled_requests", help, throttled.clone());
    let waited = Family::<Labels, Counter<f64, AtomicU64>>::default();
    let help = "Seconds in which some request waited for the volume's limits";
    registry.register("throttled_seconds", help, waited.clone());
    let mends = [
        ("blocks_rotten", "Blocks of the extents found not to match their checksums"),
        ("blocks_mended", "Of these, blocks that were logged again as another replica holds them"),
        ("blocks_not_mended", "Of these, blocks that no other in-sync replica could give"),
        ("blocks_scrubbed", "Blocks damaged elsewhere, logged again as this replica holds them"),
    ]
    .map(|(name, help)| {
        let family = Counters::default();
        registry.register(name, help, family.clone());
        family
    });
    let scrubs = [
        (
            "scrubbed_time_seconds",
            "When the replica was last read whole in the background, since 1970",
        ),
        ("scrub_damaged_blocks", "Blocks that did not match their checksums then"),
        ("scrub_not_repaired_blocks", "Of these, blocks that were not repaired"),
    ]
    .map(|(name, help)| {
        let family = Gauges::default();
        registry.register(name, help, family.clone());
        family
    });
    let ledger = node.scrubs.borrow().clone();
    for record in ledger.0.values() {
        let volume = vec![("volume", record.volume.to_string())];
        let values = [record.ended, record.damaged, record.not_repaired];
        scrubs.iter().zip(values).for_each(|(family, value)| set(family, &volume, value));
    }
    for handle in node.volumes.all() {
        let status = handle.current();
        let volume = vec![("volume", handle.volume.to_string())];
        for ((_, _, value), family) in VOLUME_GAUGES.iter().zip(&per_volume) {
            set(family, &volume, value(&status));
        }
        let (requests, time) = handle.counters.throttled();
        throttled.get_or_create(&volume).inc_by(requests);
        waited.get_or_create(&volume).inc_by(time.as_secs_f64());
        let MendCounts { rotten, mended, not_mended, scrubbed } = handle.counters.mends();
        for (family, count) in mends.iter().zip([rotten, mended, not_mended, scrubbed]) {
            family.get_or_create(&volume).inc_by(count);
        }
        for (replica, peer) in status.view.iter().flat_map(|view| &view.peers) {
            let labels = [volume.clone(), vec![("replica", replica.to_string())]].concat();
            set(&lag, &labels, peer.lag);
            let to = handle.counters.sent_to(*replica);
            for (family, bytes) in sent.iter().zip([to.entries_bytes(), to.base_bytes()]) {
                family.get_or_create(&labels).inc_by(bytes);
            }
            let session = status.sessions.get(replica);
            let base = session.and_then(|session| session.base).unwrap_or_default();
            for (family, count) in regions.iter().zip([base.regions, base.regions_sent]) {
                set(family, &labels, count);
            }
        }
        for ((kind, name), count) in ALWAYS.into_iter().chain(handle.counters.named()) {
            let family = match kind {
                "event" => &named[0],
                "ignored" => &named[1],
                _ => &named[2],
            };
            let labels = [volume.clone(), vec![("name", name.to_owned())]].concat();
            family.get_or_create(&labels).inc_by(count);
        }
    }
    registry
}

fn set(family: &Gauges, labels: &Labels, value: u64) {
    family.get_or_create(labels).set(i64::try_from(value).unwrap_or(i64::MAX));
}

/// Counted from 0, for what is alerted on: the increase of a series that begins with its first 1 is
/// none.
const ALWAYS: [((&str, &str), u64); 3] =
    [(READ_FAILED, 0), (("ignored", "malformed"), 0), (("ignored", "cut_below_committed"), 0)];

type DiskValue = fn(&DiskState) -> u64;

const DISK_GAUGES: [(&str, &str, DiskValue); 6] = [
    ("disk_failed", "1 if the data directory can't be used", |s| s.fault.is_some().into()),
    ("disk_free_bytes", "Bytes free in the data directory", |s| s.free_bytes),
    ("disk_used_bytes", "Bytes that replicas use in the data directory", |s| s.used_bytes),
    ("disk_capacity_bytes", "Bytes that replicas may claim in the data directory", |s| {
        s.capacity_bytes
    }),
    ("disk_placement_watermark_bytes", "Bytes free below which no new replica is to come", |s| {
        s.placement_watermark_bytes
    }),
    ("disk_low", "1 if less is free: the masters put no new replica there", |s| {
        (s.room > DiskRoom::Enough).into()
    }),
];

type Value = fn(&VolumeStatus) -> u64;

const VOLUME_GAUGES: [(&str, &str, Value); 16] = [
    ("running", "1 if the replica's store is open", |s| (s.run == RunState::Running).into()),
    ("serving", "1 on a primary that answers", |s| {
        s.view.as_ref().is_some_and(|v| v.serving).into()
    }),
    ("incomplete", "1 while a rebuild is unfinished", |s| {
        s.view.as_ref().is_some_and(|v| v.incomplete.is_some()).into()
    }),
    ("epoch", "Epoch that the replica acts in", |s| s.view.as_ref().map_or(0, |v| v.epoch.0)),
    ("end_lsn", "H: last LSN logged", |s| s.view.as_ref().map_or(0, |v| v.end.0)),
    ("durable_lsn", "R: last LSN synced", |s| s.view.as_ref().map_or(0, |v| v.durable.0)),
    ("committed_lsn", "Last LSN committed", |s| s.view.as_ref().map_or(0, |v| v.committed.0)),
    ("checkpoint_lsn", "Last LSN in the extents", |s| {
        s.view.as_ref().map_or(0, |v| v.checkpoint.0)
    }),
    ("retained_lsn", "S: oldest LSN in the WAL", |s| s.view.as_ref().map_or(0, |v| v.retained.0)),
    ("wal_full", "1 while clients wait for room in the WAL", |s| s.wal_full.into()),
    ("growth_waits", "1 on a primary whose clients' writes wait for room on a disk", |s| {
        s.view.as_ref().is_some_and(|v| v.growth_waits).into()
    }),
    ("disk_room", "The room on the replica's disk: 0 enough, 1 short, 2 nearly none", |s| {
        s.view.as_ref().map_or(0, |v| v.space.room as u64)
    }),
    ("links", "Frontend streams", |s| s.links as u64),
    ("limit_iops", "Requests a second that clients may make; 0: any number", |s| {
        s.limits.iops.unwrap_or(0)
    }),
    ("limit_bandwidth", "Bytes a second that clients may read and write; 0: any number", |s| {
        s.limits.bandwidth.unwrap_or(0)
    }),
    ("held_bytes", "Payload bytes of requests under way", |s| s.held_bytes),
];
