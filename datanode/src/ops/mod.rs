//! The read-only HTTP side of a datanode.

mod diagnose;
mod metrics;

use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use sbk_engine::types::VolumeId;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::node::{Node, conditions, mode};
use crate::volume::{RunState, VolumeHandle, clock};

/// A volume task turns at least once a second; one that didn't for so long is stuck.
const STUCK_MS: u64 = 10_000;

/// The routes.
pub fn router(node: Node) -> Router {
    Router::new()
        .route("/", get(map))
        .route("/status", get(status))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics::show))
        .route("/projection", get(projection))
        .route("/trace", get(trace))
        .route("/diagnose", get(diagnose::show))
        .route("/watchdog", get(watchdog))
        .method_not_allowed_fallback(read_only)
        .fallback(not_found)
        .with_state(node)
}

async fn map() -> Json<Value> {
    Json(json!({
        "what": "an sbk datanode; everything here is read-only",
        "/status": "the node and its replicas, in short",
        "/healthz": "200 while the process runs",
        "/readyz": "200 once the masters know the node and its replicas are open",
        "/metrics": "Prometheus",
        "/projection": "each replica whole: role, R (durable), S (retained), H (end), peers and what \
                        recovery makes of them",
        "/trace?volume=UUID&after=N": "the newest decisions: what was seen, decided, and why",
        "/trace?volume=UUID&format=recording": "what the replica's engine was told and did, lately: a \
                                                file for `sbkctl replay`",
        "/diagnose": "what is wrong, in words, and what to do",
        "/watchdog": "when each replica's task last turned; 503 if one is stuck",
        "changes": "sbkctl --masters HOST:PORT volume|node|cluster ...",
    }))
}

async fn status(State(node): State<Node>) -> Json<Value> {
    let scrubs = node.scrubs.borrow().clone();
    let volumes: Vec<_> = node
        .volumes
        .all()
        .iter()
        .map(|handle| {
            let status = handle.current();
            let (mode, reason) = mode(&status);
            let view = status.view.as_ref();
            json!({
                "volume": status.volume, "replica": status.replica, "run": status.run, "mode": mode,
                "reason": reason, "data_dir": handle.disk.path(), "role": view.map(|v| v.role), "epoch": view.map(|v| v.epoch),
                "serving": view.is_some_and(|v| v.serving), "wal_full": status.wal_full,
                "links": status.links, "sessions": status.sessions, "scrubs": scrubs.0.get(&status.replica),
            })
        })
        .collect();
    let (free_bytes, used_bytes) = node.space();
    let disks: Vec<_> = node
        .disks
        .iter()
        .map(|disk| {
            let mut shown = json!(disk.state());
            shown["path"] = json!(disk.path());
            shown
        })
        .collect();
    let findings = node.findings.borrow().clone();
    let pairs = |set: &std::collections::BTreeSet<(VolumeId, sbk_engine::types::ReplicaId)>| {
        set.iter()
            .map(|(volume, replica)| json!({"volume": volume, "replica": replica}))
            .collect::<Vec<_>>()
    };
    let heard = node.catalogue.borrow().heard;
    Json(json!({
        "node": node.id, "process": node.process, "registered": *node.registered.borrow(),
        "masters_heard": heard, "free_bytes": free_bytes, "used_bytes": used_bytes,
        "disks": disks, "volumes": volumes, "missing": pairs(&findings.missing),
        "away": pairs(&findings.away),
        "unknown": pairs(&findings.unknown),
    }))
}

async fn ready(State(node): State<Node>) -> Response {
    let unavailable = |why: String| (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    if !*node.registered.borrow() {
        return unavailable("the masters don't know this process yet\n".into());
    }
    let opening = node
        .volumes
        .all()
        .iter()
        .filter(|handle| handle.current().run == RunState::Opening)
        .count();
    if opening > 0 {
        return unavailable(format!("{opening} replicas are being opened\n"));
    }
    "ready\n".into_response()
}

async fn projection(State(node): State<Node>) -> Json<Value> {
    let scrubs = node.scrubs.borrow().clone();
    let volumes: Vec<_> = node
        .volumes
        .all()
        .iter()
        .map(|handle| {
            let status = handle.current();
            let (mode, reason) = mode(&status);
            let view = status.view.as_ref();
            let facts = view.map(|v| json!({"r": v.durable, "s": v.retained, "h": v.end}));
            let mut shown = json!(*status);
            shown["mode"] = mode.into();
            shown["reason"] = reason.into();
            shown["conditions"] = json!(conditions(&status));
            shown["scrubs"] = json!(scrubs.0.get(&status.replica));
            shown["facts"] = facts.unwrap_or(Value::Null);
            shown
        })
        .collect();
    Json(json!({"node": node.id, "volumes": volumes}))
}

#[derive(Debug, Deserialize)]
struct TraceQuery {
    volume: Option<String>,
    #[serde(default)]
    after: u64,
    #[serde(default)]
    format: TraceFormat,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TraceFormat {
    /// Decisions in words.
    #[default]
    Words,
    /// Everything, to be replayed.
    Recording,
}

async fn trace(State(node): State<Node>, Query(query): Query<TraceQuery>) -> Response {
    let handles = match &query.volume {
        None => node.volumes.all(),
        Some(text) => {
            let Ok(volume) = text.parse::<VolumeId>() else {
                let why = format!("'{text}' is no volume's UUID; GET /status lists them\n");
                return (StatusCode::BAD_REQUEST, why).into_response();
            };
            match node.volumes.get(volume) {
                Some(handle) => vec![handle],
                None => {
                    let why = format!("no replica of volume {volume} is here\n");
                    return (StatusCode::NOT_FOUND, why).into_response();
                }
            }
        }
    };
    if query.format == TraceFormat::Recording && query.volume.is_none() {
        let why = "a recording is of one volume: /trace?volume=UUID&format=recording\n";
        return (StatusCode::BAD_REQUEST, why).into_response();
    }
    if query.format == TraceFormat::Recording {
        return recordings(handles).await;
    }
    let entries: Vec<_> = handles
        .iter()
        .flat_map(|handle| {
            handle.trace.after(query.after).into_iter().map(|entry| {
                let mut shown = json!(entry);
                shown["volume"] = json!(handle.volume);
                shown["replica"] = json!(handle.replica);
                shown
            })
        })
        .collect();
    Json(json!({"node": node.id, "now": clock::now(), "entries": entries})).into_response()
}

/// What the engines of the replicas were told and did, one recording after the other.
async fn recordings(handles: Vec<Arc<VolumeHandle>>) -> Response {
    let write = || handles.iter().filter_map(|handle| handle.recorder.text("asked for")).collect();
    let text: String = tokio::task::block_in_place(write);
    let kind = [(axum::http::header::CONTENT_TYPE, "application/x-ndjson")];
    (kind, text).into_response()
}

async fn watchdog(State(node): State<Node>) -> Response {
    let now = clock::now();
    let mut stuck = false;
    let tasks: Vec<_> = node
        .volumes
        .all()
        .iter()
        .map(|handle| {
            let (last, turns) = handle.counters.turns();
            let running = handle.current().run == RunState::Running;
            let idle_ms = now.since(last);
            let is_stuck = running && turns > 0 && idle_ms > STUCK_MS;
            stuck |= is_stuck;
            json!({"volume": handle.volume, "running": running, "turns": turns,
               "last_turn_ms_ago": idle_ms, "stuck": is_stuck})
        })
        .collect();
    let code = if stuck { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (code, Json(json!({"stuck": stuck, "tasks": tasks}))).into_response()
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
