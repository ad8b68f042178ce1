//! Short names for ids in cases.
//!
//! A replica may be called `b` or `node-3`: 1 to 16 of `a-z`, `0-9` and `-`, which are the bytes of
//! its id, padded with zeros. So names sort like the ids that they stand for, and a case written
//! from a recorded run shows the same names again. A whole UUID stands for itself. A session is
//! `epoch/number`.

use sbk_engine::replication::message::RecoveryId;
use sbk_engine::types::{Epoch, ReplicaId};
use serde_json::{Map, Value, json};
use uuid::Uuid;

/// The id that a name or a UUID stands for, or what is wrong with it.
pub fn replica(name: &str) -> Result<ReplicaId, String> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    if name.is_empty() || name.len() > 16 || !name.bytes().all(is_name_byte) {
        return Err(format!(
            "`{name}` names no replica: give a UUID, or 1 to 16 of a-z, 0-9 and `-`"
        ));
    }
    let mut bytes = [0; 16];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    Ok(ReplicaId(Uuid::from_bytes(bytes)))
}

/// The shortest name for an id: its short name if it has one, else its UUID.
pub fn short(id: ReplicaId) -> String {
    let bytes = id.0.as_bytes();
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let (name, padding) = bytes.split_at(end);
    let named = !name.is_empty()
        && name.iter().all(|byte| is_name_byte(*byte))
        && padding.iter().all(|byte| *byte == 0);
    if named { String::from_utf8_lossy(name).into_owned() } else { id.to_string() }
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'
}

fn session(text: &str) -> Result<Value, String> {
    let parsed = text.split_once('/').and_then(|(epoch, number)| {
        Some(RecoveryId { epoch: Epoch(epoch.parse().ok()?), number: number.parse().ok()? })
    });
    match parsed {
        Some(id) => Ok(json!({ "epoch": id.epoch, "number": id.number })),
        None => Err(format!("`{text}` names no session: give `epoch/number`, such as `5/1`")),
    }
}

/// Replaces names by ids, wherever a key says that one stands there.
pub(crate) fn expand(value: Value) -> Result<Value, String> {
    match value {
        Value::Array(items) => {
            items.into_iter().map(expand).collect::<Result<Vec<_>, _>>().map(Value::Array)
        }
        Value::Object(fields) => {
            let mut expanded = Map::new();
            for (key, value) in fields {
                let value = match (key.as_str(), value) {
                    ("replica", Value::String(name)) => json!(replica(&name)?),
                    ("session" | "id", Value::String(name)) => session(&name)?,
                    ("in_sync", Value::Array(names)) => expand_list(names)?,
                    ("replicas", Value::Object(endpoints)) => expand_keys(endpoints)?,
                    (_, value) => expand(value)?,
                };
                expanded.insert(key, value);
            }
            Ok(Value::Object(expanded))
        }
        plain @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => Ok(plain),
    }
}

fn expand_list(names: Vec<Value>) -> Result<Value, String> {
    let ids = names.into_iter().map(|name| match name {
        Value::String(name) => replica(&name).map(|id| json!(id)),
        other => Err(format!("`{other}` names no replica")),
    });
    ids.collect::<Result<Vec<_>, _>>().map(Value::Array)
}

fn expand_keys(endpoints: Map<String, Value>) -> Result<Value, String> {
    let pairs = endpoints
        .into_iter()
        .map(|(name, endpoint)| Ok((replica(&name)?.to_string(), endpoint)))
        .collect::<Result<Map<_, _>, String>>()?;
    Ok(Value::Object(pairs))
}

/// Replaces ids by names: the inverse of [`expand`].
pub(crate) fn shorten(value: Value) -> Value {
    match value {
        Value::Array(items) => Value::Array(items.into_iter().map(shorten).collect()),
        Value::Object(fields) => {
            let shorter = fields.into_iter().map(|(key, value)| {
                let value = match (key.as_str(), value) {
                    ("replica" | "in_sync", value) => shorten_ids(value),
                    ("session" | "id", value) => shorten_session(value),
                    ("replicas", Value::Object(endpoints)) => Value::Object(
                        endpoints.into_iter().map(|(id, at)| (shorten_id(&id), at)).collect(),
                    ),
                    (_, value) => shorten(value),
                };
                (key, value)
            });
            Value::Object(shorter.collect())
        }
        plain @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)) => plain,
    }
}

fn shorten_id(id: &str) -> String {
    id.parse().map_or_else(|_| id.to_owned(), short)
}

fn shorten_ids(value: Value) -> Value {
    match value {
        Value::String(id) => Value::String(shorten_id(&id)),
        Value::Array(ids) => Value::Array(ids.into_iter().map(shorten_ids).collect()),
        other @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) => other,
    }
}

fn shorten_session(value: Value) -> Value {
    match serde_json::from_value::<RecoveryId>(value.clone()) {
        Ok(id) => Value::String(format!("{}/{}", id.epoch, id.number)),
        Err(_) => shorten(value),
    }
}
