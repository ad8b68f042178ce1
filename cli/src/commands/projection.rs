//! What the datanodes show of themselves over HTTP, merged with what the masters know.

use std::collections::BTreeMap;

use sbk_master_client::MasterClient;
use sbk_proto::v1::VolumeInfo;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::http;
use crate::view::{BaseView, MemberView, ScrubView, SessionView, VolumeView, id_text};

/// Bytes of the smallest log entry: a lag is known in entries, and told as if all were so small.
const BLOCK_BYTES: u64 = 4096;

/// A volume by name or UUID, with the details of its members from the datanodes. A datanode that
/// does not answer costs only its details.
pub async fn volume(masters: &MasterClient, name_or_id: &str) -> anyhow::Result<VolumeView> {
    let info = masters.get_volume(name_or_id).await?;
    Ok(detailed(&info).await)
}

/// The view of a volume that the masters told of, with the details of its members.
pub async fn detailed(info: &VolumeInfo) -> VolumeView {
    let mut view = VolumeView::of(info);
    let projections = from_members(info, "/projection").await;
    let mut statuses = BTreeMap::new();
    for (node, answer) in projections {
        match answer {
            Ok(projection) => {
                if let Some(status) = volume_status(&projection, &view.id) {
                    statuses.insert(node, status.clone());
                }
            }
            Err(e) => tracing::debug!(node, error = %format!("{e:#}"), "no projection"),
        }
    }
    merge(&mut view, info, &statuses);
    view
}

/// Asks every member's datanode for `path`; by node.
pub(super) async fn from_members(
    info: &VolumeInfo,
    path: &str,
) -> BTreeMap<String, anyhow::Result<Value>> {
    let mut tasks = JoinSet::new();
    for member in info.members.iter().filter(|m| !m.http_addr.is_empty()) {
        let (node, addr) = (id_text(&member.node), member.http_addr.clone());
        let path = path.to_owned();
        tasks.spawn(async move { (node, http::get_json::<Value>(&addr, &path).await) });
    }
    tasks.join_all().await.into_iter().collect()
}

/// The part of a datanode's projection that is about one volume.
pub(super) fn volume_status<'a>(projection: &'a Value, volume: &str) -> Option<&'a Value> {
    let volumes = projection.get("volumes").unwrap_or(projection).as_array()?;
    volumes.iter().find(|v| v["volume"] == volume)
}

/// Adds what the datanodes say. What the primary says of a peer goes before what the peer says of
/// itself, but for what it durably holds.
fn merge(view: &mut VolumeView, info: &VolumeInfo, statuses: &BTreeMap<String, Value>) {
    let primary = view.primary.as_ref().and_then(|node| statuses.get(node)).map(|s| &s["view"]);
    for (member, told) in view.members.iter_mut().zip(&info.members) {
        let status = statuses.get(&member.node);
        member.scrub = status.and_then(|status| scrub(&status["scrubs"]));
        let own = status.map(|s| &s["view"]);
        if let Some(durable) = own.and_then(|v| v["durable"].as_u64()) {
            member.r = Some(durable);
        }
        let Some(primary) = primary else { continue };
        let sent = &statuses[view.primary.as_deref().unwrap_or_default()]["sessions"];
        member.s = primary["retained"].as_u64();
        member.h = primary["end"].as_u64();
        if told.primary {
            member.lag_bytes = Some(0);
            member.decision = Some("none".into());
            member.mode = if view.serving { "healthy".into() } else { member.mode.clone() };
            if let Some(reason) = primary["reason"].as_str() {
                member.reason = reason.to_owned();
            }
        } else if let Some(peer) = primary["peers"].get(id_text(&told.replica)) {
            merge_peer(member, peer, &sent[id_text(&told.replica)]);
        } else {
            continue;
        }
        // The primary does not know these. [A replica's disk ran short of room, or its log was full, and all that
        // was shown of it was that it is in sync.]
        let conditions = status.and_then(|status| status["conditions"].as_array());
        for condition in conditions.into_iter().flatten().filter_map(Value::as_str) {
            if !member.reason.is_empty() {
                member.reason.push_str("; ");
            }
            member.reason.push_str(condition);
        }
    }
}

/// What came of the scrubs in the background; `None` before the first one came to its end.
fn scrub(record: &Value) -> Option<ScrubView> {
    let number = |name: &str| record[name].as_u64();
    let passes = number("passes").filter(|passes| *passes > 0)?;
    Some(ScrubView {
        passes,
        ended: number("ended")?,
        damaged: number("damaged")?,
        not_repaired: number("not_repaired")?,
        found: number("found")?,
        failed: record["failed"].as_str().map(str::to_owned),
    })
}

/// `sent`: what the primary says that it sent in the session that is under way.
fn merge_peer(member: &mut MemberView, peer: &Value, sent: &Value) {
    let recovery = &peer["recovery"];
    // Of a replica that it has not met in this run, the primary knows nothing; what the replica
    // said last is nearer to the truth than "all is missing".
    let entries = match (peer["acked"].as_u64(), member.r, member.h) {
        (None, Some(r), Some(h)) => Some(h.saturating_sub(r)),
        _ => peer["lag"].as_u64(),
    };
    member.lag_bytes = entries.map(|entries| entries.saturating_mul(BLOCK_BYTES));
    for (field, to) in [("mode", &mut member.mode), ("reason", &mut member.reason)] {
        if let Some(text) = recovery[field].as_str() {
            *to = text.to_owned();
        }
    }
    member.decision = word(&recovery["decision"]);
    member.session = session(&recovery["session"], sent);
}

/// An enum as serde writes it: a word, or an object with the word as its only key.
fn word(value: &Value) -> Option<String> {
    match value {
        Value::String(word) => Some(word.clone()),
        Value::Object(fields) => fields.keys().next().cloned(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => None,
    }
}

fn session(value: &Value, sent: &Value) -> Option<SessionView> {
    let id = match &value["id"] {
        Value::Object(id) => format!("{}.{}", id.get("epoch")?, id.get("number")?),
        Value::String(id) => id.clone(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) => return None,
    };
    // Told of the session before, if that was published earlier.
    let sent = Some(sent).filter(|sent| sent["session"] == value["id"]);
    let base = sent.map(|sent| &sent["base"]).filter(|base| !base.is_null()).map(|base| {
        let number = |name: &str| base[name].as_u64().unwrap_or(0);
        BaseView {
            regions: number("regions"),
            regions_sent: number("regions_sent"),
            bytes_most: number("bytes_most"),
            bytes_sent: number("bytes_sent"),
            bytes_taken: number("bytes_taken"),
        }
    });
    let number = |names: [&str; 2]| names.iter().find_map(|n| value[*n].as_u64());
    Some(SessionView {
        id,
        kind: word(&value["kind"])?,
        target_lsn: number(["target_lsn", "target"])?,
        achieved_lsn: number(["achieved_lsn", "achieved"]).unwrap_or(0),
        entries_bytes: sent.and_then(|sent| sent["entries_bytes"].as_u64()).unwrap_or(0),
        base,
    })
}

#[cfg(test)]
mod tests {
    use sbk_proto::v1::MemberInfo;
    use serde_json::json;

    use super::*;

    fn info() -> VolumeInfo {
        let member = |n: u8, primary| MemberInfo {
            replica: vec![n + 10; 16].into(),
            node: vec![n; 16].into(),
            confirmed: true,
            node_alive: true,
            primary,
            in_sync: primary,
            durable_lsn: 5,
            ..Default::default()
        };
        VolumeInfo {
            id: vec![7; 16].into(),
            serving: true,
            replicas: 2,
            members: vec![member(1, true), member(2, false)],
            ..Default::default()
        }
    }

    #[test]
    fn the_primary_tells_of_its_peers() {
        let info = info();
        let mut view = VolumeView::of(&info);
        let peers = json!({id_text(&[12; 16]): {
            "lag": 3,
            "acked": 17,
            "recovery": {
                "mode": "recovering",
                "reason": "catching up",
                "decision": "catch_up",
                "session": {"id": {"epoch": 4, "number": 2}, "kind": "catch_up", "target": 20,
                    "achieved": 12},
            },
        }});
        let base = json!({"regions": 9, "regions_sent": 4, "bytes_most": 9 << 20,
            "bytes_sent": 3 << 20, "bytes_taken": 2 << 20});
        let sent =
            json!({"session": {"epoch": 4, "number": 2}, "entries_bytes": 8192, "base": base});
        let primary = json!({
            "view": {"durable": 20, "end": 20, "retained": 4, "peers": peers},
            "sessions": {id_text(&[12; 16]): sent},
        });
        let follower = json!({"view": {"durable": 17, "end": 17, "retained": 1}});
        let statuses = [(id_text(&[1; 16]), primary), (id_text(&[2; 16]), follower)];
        merge(&mut view, &info, &statuses.into_iter().collect());
        let member = &view.members[1];
        assert_eq!((member.r, member.s, member.h), (Some(17), Some(4), Some(20)));
        assert_eq!(member.lag_bytes, Some(3 * 4096));
        assert_eq!((member.mode.as_str(), member.reason.as_str()), ("recovering", "catching up"));
        assert_eq!(member.decision.as_deref(), Some("catch_up"));
        let session = member.session.as_ref().expect("a session");
        assert_eq!((session.id.as_str(), session.kind.as_str()), ("4.2", "catch_up"));
        assert_eq!((session.target_lsn, session.achieved_lsn), (20, 12));
        let base = session.base.expect("base blocks");
        assert_eq!((session.entries_bytes, base.regions_sent, base.regions), (8192, 4, 9));
        let shown = view.detail();
        let words =
            "catch_up 4.2 at 12 of 20, 4 of 9 regions, 2 MiB of at most 9 MiB, 8 KiB of entries";
        assert!(shown.contains(words), "{shown}");
        assert_eq!(view.members[0].r, Some(20));
    }

    #[test]
    fn what_a_replica_says_of_its_disk_and_log_is_shown_beside_its_primarys_words() {
        let info = info();
        let peers = |reason: &str| {
            json!({id_text(&[12; 16]): {"lag": 0, "acked": 20,
            "recovery": {"mode": "healthy", "reason": reason}}})
        };
        let full = "wal_full: its WAL has reached its limit, and clients wait for a checkpoint";
        let of = |reason: &str, primary: Value, follower: Value| {
            let mut view = VolumeView::of(&info);
            let shown = json!({"end": 20, "reason": "clients wait", "peers": peers(reason)});
            let primary = json!({"view": shown, "conditions": primary});
            let follower = json!({"view": {"durable": 20}, "conditions": follower});
            let statuses = [(id_text(&[1; 16]), primary), (id_text(&[2; 16]), follower)];
            merge(&mut view, &info, &statuses.into_iter().collect());
            let [one, two] = &view.members[..] else { panic!("two members") };
            (one.reason.clone(), two.reason.clone())
        };
        let (primary, follower) = of("", json!([full]), json!([full, "its disk has 1 MiB free"]));
        assert_eq!(primary, format!("clients wait; {full}"));
        assert_eq!(follower, format!("{full}; its disk has 1 MiB free"));
        assert_eq!(of("at 4", json!([]), json!([full])).1, format!("at 4; {full}"));
        assert_eq!(
            of("at 4", Value::Null, Value::Null).1,
            "at 4",
            "an older datanode says nothing"
        );
    }

    #[test]
    fn what_scrubs_found_is_shown_once_one_came_to_its_end() {
        let info = info();
        let shown = |passes: u64| {
            let mut view = VolumeView::of(&info);
            let scrubs = json!({"passes": passes, "ended": 1_000_000_000, "damaged": 3,
                "not_repaired": 1, "found": 5, "failed": null});
            let status = json!({"view": {"durable": 17}, "scrubs": scrubs});
            merge(&mut view, &info, &BTreeMap::from([(id_text(&[2; 16]), status)]));
            assert_eq!(view.members[0].scrub, None);
            (view.members[1].scrub.clone(), view.detail())
        };
        let (none, words) = shown(0);
        assert!(none.is_none() && !words.contains("SCRUBBED"), "{words}");
        let (some, words) = shown(2);
        let scrub = some.expect("it is told");
        assert_eq!((scrub.damaged, scrub.not_repaired, scrub.found), (3, 1, 5));
        assert!(words.contains("SCRUBBED") && words.contains("days ago"), "{words}");
    }

    /// What was published of the session before is not taken for this one's.
    #[test]
    fn what_another_session_sent_is_not_shown() {
        let id = json!({"epoch": 4, "number": 2});
        let told = json!({"id": id, "kind": "delta", "target": 20});
        let of = |number: u64| {
            let id = json!({"epoch": 4, "number": number});
            session(&told, &json!({"session": id, "entries_bytes": 7, "base": null}))
        };
        assert_eq!(of(2).expect("a session").entries_bytes, 7);
        assert_eq!(of(1).expect("a session").entries_bytes, 0);
        assert!(session(&told, &Value::Null).is_some(), "an older datanode says nothing");
    }

    #[test]
    fn a_replica_that_was_not_met_lacks_what_it_says() {
        let info = info();
        let mut view = VolumeView::of(&info);
        let peers = json!({id_text(&[12; 16]): {"lag": 20, "acked": null, "recovery": {}}});
        let primary = json!({"view": {"durable": 20, "end": 20, "retained": 4, "peers": peers}});
        merge(&mut view, &info, &BTreeMap::from([(id_text(&[1; 16]), primary)]));
        assert_eq!((view.members[1].r, view.members[1].lag_bytes), (Some(5), Some(15 * 4096)));
    }

    #[test]
    fn a_silent_primary_leaves_what_the_masters_know() {
        let info = info();
        let mut view = VolumeView::of(&info);
        merge(&mut view, &info, &BTreeMap::new());
        assert_eq!(view.members[1].r, Some(5));
        assert_eq!((view.members[1].s, view.members[1].h), (None, None));
    }

    #[test]
    fn one_volume_is_found_in_a_projection() {
        let status = json!({"volume": "v", "run": {"state": "running"}});
        let other = json!({"volume": "w"});
        let listed = json!({"volumes": [other, status]});
        assert_eq!(volume_status(&listed, "v"), Some(&status));
        assert_eq!(volume_status(&json!([status]), "v"), Some(&status));
        assert_eq!(volume_status(&json!({"error": "x"}), "v"), None);
    }
}
