//! Prometheus metrics, gathered when they are asked for.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::member::Member;
use crate::services::status;

pub(super) async fn show(State(member): State<Member>) -> Response {
    let mut text = String::new();
    match encode(&mut text, &gather(&member)) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn gather(member: &Member) -> Registry {
    let leads = member.leads();
    let status = status(member, leads);
    let revision = member.read(sbk_engine::authority::State::revision);
    let mut registry = Registry::with_prefix("sbk_master");
    let mut gauge = |name: &str, help: &str, value: u64| {
        let gauge = Gauge::<i64>::default();
        gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        registry.register(name, help, gauge);
    };
    gauge("term", "Raft term", status.term);
    gauge("leads", "1 on a leader that a majority answers", leads.into());
    gauge("leader", "Number of the leader, 0 if none is known", status.leader);
    gauge("last_log_index", "Last entry in the log", status.last_log_index);
    gauge("applied_index", "Last entry applied", status.applied_index);
    gauge("snapshot_index", "Last entry in the snapshot", status.snapshot_index);
    gauge("catalogue_revision", "Changes of the catalogue", revision);
    gauge("volumes", "Volumes", status.volumes.into());
    gauge("nodes", "Registered datanodes", status.nodes.into());
    if leads {
        // Only a leader hears the datanodes.
        let (serving, alive) = (status.volumes_serving, status.nodes_alive);
        gauge("volumes_serving", "Volumes whose primary serves", serving.into());
        gauge("nodes_alive", "Datanodes that are heard", alive.into());
        let failed = member.failed_disks();
        let low = member.low_disks();
        gauge("disks_low", "Data directories that get no new replica for want of room", low);
        gauge("disks_failed", "Data directories that their datanodes can't use", failed);
    }
    registry
}
