//! The read-only HTTP side of a master.

mod metrics;

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
        .route("/metrics", get(metrics::show))
        .method_not_allowed_fallback(read_only)
        .fallback(not_found)
        .with_state(member)
}

async fn map() -> Json<Value> {
    Json(json!({
        "what": "an sbk master; everything here is read-only",
        "/status": "the quorum and the volumes as this member sees them",
        "/healthz": "200 while the process runs",
        "/readyz": "200 while this member knows a leader",
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
        .map(|m| {
            json!({
                "id": m.id, "addr": m.addr, "leader": m.leader, "voter": m.voter,
                "matched_index": m.matched_index, "reachable": m.reachable,
            })
        })
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
    // A leader that lost its majority is none.
    let leader = member.raft.metrics().borrow().current_leader;
    match leader.filter(|leader| *leader != member.id || member.leads()) {
        Some(id) => format!("ready, leader {id}\n").into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "no leader is known\n").into_response(),
    }
}

async fn read_only() -> Response {
    let what = "this interface is read-only; changes go through sbkctl (see `sbkctl --help`)\n";
    (StatusCode::NOT_IMPLEMENTED, what).into_response()
}

/// A verb that would change something is told so, whatever the path.
async fn not_found(method: axum::http::Method) -> Response {
    if !method.is_safe() {
        return read_only().await;
    }
    (StatusCode::NOT_FOUND, "no such page; GET / lists them\n").into_response()
}
