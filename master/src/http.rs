//! The read-only HTTP side of a master.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::member::Member;
use crate::services::status;

/// The routes.
pub(crate) fn router(member: Member) -> Router {
    Router::new()
        .route("/", get(map))
        .route("/status", get(show))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .method_not_allowed_fallback(read_only)
        .fallback(not_found)
        .with_state(member)
}

async fn map() -> Json<Value> {
    Json(json!({
        "what": "an sbk master; everything here is read-only",
        "/status": "the quorum and the volumes as this member sees them",
        "/healthz": "200 while the process runs",
        "/readyz": "200 while this member reaches a leader with a quorum",
        "/metrics": "Prometheus",
        "changes": "sbkctl --masters HOST:PORT volume|node|cluster ...",
    }))
}

async fn show(State(member): State<Member>) -> Json<Value> {
    let quorum = member.linearizable().await.is_ok();
    let status = status(&member, quorum);
    let members: Vec<_> = status
        .members
        .iter()
        .map(|m| json!({"id": m.id, "addr": m.addr, "leader": m.leader, "voter": m.voter}))
        .collect();
    Json(json!({
        "id": status.id, "term": status.term, "leader": status.leader,
        "leads_with_quorum": status.has_quorum, "last_log_index": status.last_log_index,
        "applied_index": status.applied_index, "snapshot_index": status.snapshot_index,
        "members": members, "volumes": status.volumes, "volumes_serving": status.volumes_serving,
        "nodes": status.nodes, "nodes_alive": status.nodes_alive,
    }))
}

async fn ready(State(member): State<Member>) -> Response {
    let leader = member.raft.metrics().borrow().current_leader;
    match leader {
        Some(id) => format!("ready, leader {id}\n").into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "no leader is known\n").into_response(),
    }
}

async fn metrics(State(member): State<Member>) -> String {
    let metrics = member.raft.metrics().borrow().clone();
    let (volumes, nodes, revision) =
        member.read(|s| (s.volumes().len(), s.nodes().len(), s.revision()));
    let gauges = [
        ("sbk_master_term", "Raft term", metrics.current_term),
        (
            "sbk_master_leads",
            "1 on the leader",
            u64::from(metrics.current_leader == Some(member.id)),
        ),
        ("sbk_master_last_log_index", "last entry in the log", metrics.last_log_index.unwrap_or(0)),
        (
            "sbk_master_applied_index",
            "last entry applied",
            metrics.last_applied.map_or(0, |l| l.index),
        ),
        ("sbk_master_volumes", "volumes", volumes as u64),
        ("sbk_master_nodes", "registered nodes", nodes as u64),
        ("sbk_master_catalogue_revision", "changes of the catalogue", revision),
    ];
    gauges
        .map(|(name, help, value)| {
            format!("# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n")
        })
        .concat()
}

async fn read_only() -> Response {
    let what = "this interface is read-only; changes go through sbkctl (see `sbkctl --help`)\n";
    (StatusCode::NOT_IMPLEMENTED, what).into_response()
}

async fn not_found() -> Response {
    (StatusCode::NOT_FOUND, "no such page; GET / lists them\n").into_response()
}
