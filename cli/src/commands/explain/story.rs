//! The last failover as a story: what the masters saw, what the new primary waited for, what was
//! cut, when clients were served again, who was brought back and how.

use std::collections::BTreeSet;

use sbk_proto::v1::{EpochChange, ReplicaRef, VolumeInfo};

use super::words::{Names, capital, renamed};
use super::{Decision, MASTERS};
use crate::view::id_text;

/// Lines of one story.
const MAX_LINES: usize = 60;
/// A decision may seem to be older than the failover by so much: clocks are compared over a
/// network.
const SLACK_MS: u64 = 1000;

/// The story of the volume's last failover, from decisions in order of time; what else is known if
/// there was none.
pub(super) fn last_failover(
    info: &VolumeInfo,
    decisions: &[Decision],
    names: &Names,
) -> Vec<String> {
    let history = &info.history;
    let changed = |two: &[EpochChange]| two[0].primary != two[1].primary;
    let Some(before) = history.windows(2).rposition(changed) else {
        return vec![match history.first() {
            Some(first) if first.epoch == 1 => {
                "There was no failover: the first primary has been primary ever since.".to_owned()
            }
            Some(first) => format!("No failover is on record since epoch {}.", first.epoch),
            None => "The masters have no record of this volume's epochs.".to_owned(),
        }];
    };
    let (old, new) = (&history[before], &history[before + 1]);
    let began = minted_at(decisions, new.epoch);
    let mut lines = vec![
        format!("The last failover, from epoch {} to {}:", old.epoch, new.epoch),
        line(None, 0, &decided(old, new, names)),
    ];
    let mut last = 0;
    let mut said = BTreeSet::new();
    let mut served = None;
    for decision in decisions {
        let after = decision.time_ms + SLACK_MS >= began;
        let of_it = decision.epoch >= new.epoch || decision.what == "stepped-down";
        let minting = decision.node == MASTERS && decision.epoch <= new.epoch;
        if !after || !of_it || minting {
            continue;
        }
        let Some(text) = sentence(decision, names) else { continue };
        if !said.insert(text.clone()) {
            continue;
        }
        let since = decision.time_ms.saturating_sub(began).max(last);
        if lines.len() < MAX_LINES {
            lines.push(line(Some(since - last), since, &text));
        }
        last = since;
        if decision.what == "serving" {
            served.get_or_insert(since);
        }
    }
    if lines.len() == MAX_LINES {
        lines.push("  (and more, see the decisions)".to_owned());
    }
    lines.push(match served {
        Some(ms) => {
            format!("Clients were served again {} s after the masters' decision.", seconds(ms))
        }
        None => "That clients were served again is not on record.".to_owned(),
    });
    lines
}

fn seconds(ms: u64) -> String {
    format!("{}.{:03}", ms / 1000, ms % 1000)
}

/// One line: seconds since the masters' decision, and since the line before.
fn line(took: Option<u64>, since: u64, text: &str) -> String {
    let took = took.map_or(String::new(), |ms| format!("(+{})", seconds(ms)));
    format!("{:>10} {took:>10}  {text}", seconds(since))
}

/// When the masters decided the epoch, as far as it can be told.
fn minted_at(decisions: &[Decision], epoch: u64) -> u64 {
    let minted = decisions.iter().find(|d| d.node == MASTERS && d.epoch == epoch);
    let first = decisions.iter().find(|d| d.epoch == epoch);
    minted.filter(|d| d.time_ms > 0).or(first).map_or(0, |d| d.time_ms)
}

fn called(replica: Option<&ReplicaRef>, names: &Names) -> String {
    let id = replica.map(|replica| id_text(&replica.id)).unwrap_or_default();
    names.get(&id).cloned().unwrap_or_else(|| format!("replica {id}, which is gone"))
}

fn listed<'a>(ids: impl Iterator<Item = &'a [u8]>, names: &Names) -> String {
    let called = ids.map(|id| {
        let id = id_text(id);
        names.get(&id).cloned().unwrap_or_else(|| format!("replica {id}"))
    });
    called.collect::<Vec<_>>().join(", ")
}

/// What the masters did and why.
fn decided(old: &EpochChange, new: &EpochChange, names: &Names) -> String {
    let same = old.primary.as_ref().map(|p| &p.id) == new.primary.as_ref().map(|p| &p.id);
    let (was, is) = (called(old.primary.as_ref(), names), called(new.primary.as_ref(), names));
    let what = match same {
        true => format!("The masters made {is} primary again, in its new run"),
        false => format!("The masters made {is} primary in place of {was}"),
    };
    let why = match new.reason.is_empty() {
        true => String::new(),
        false => format!(", because {}", renamed(&new.reason, names)),
    };
    let dropped: Vec<&[u8]> =
        old.isr.iter().filter(|id| !new.isr.contains(id)).map(|id| &id[..]).collect();
    let mut text =
        format!("{what}{why}. In sync: {}", listed(new.isr.iter().map(|id| &id[..]), names));
    if !dropped.is_empty() {
        text.push_str(&format!("; no longer: {}", listed(dropped.into_iter(), names)));
    }
    text
}

/// What a change of the masters' after the failover was.
pub(super) fn change(old: Option<&EpochChange>, new: &EpochChange, names: &Names) -> String {
    let Some(old) = old else {
        let primary = called(new.primary.as_ref(), names);
        return format!("primary: {primary}; {}", listed(new.isr.iter().map(|id| &id[..]), names));
    };
    if old.primary != new.primary {
        return decided(old, new, names);
    }
    let differ = |a: &EpochChange, b: &EpochChange| {
        let only: Vec<&[u8]> =
            a.isr.iter().filter(|id| !b.isr.contains(id)).map(|id| &id[..]).collect();
        (!only.is_empty()).then(|| listed(only.into_iter(), names))
    };
    let joined = differ(new, old).map(|who| format!("{who} joined the in-sync set"));
    let left = differ(old, new).map(|who| format!("{who} left the in-sync set"));
    let mut text = joined.into_iter().chain(left).collect::<Vec<_>>().join("; ");
    if text.is_empty() {
        text.push_str("the in-sync set stays as it is");
    }
    if !new.reason.is_empty() {
        text.push_str(&format!(", because {}", renamed(&new.reason, names)));
    }
    text
}

/// What a decision means for a failover; `None` if it is not of interest for it.
fn sentence(decision: &Decision, names: &Names) -> Option<String> {
    let why = || renamed(&decision.why, names);
    let does = |words: &str| {
        let node = decision.node.get(..8).unwrap_or(&decision.node);
        format!("The replica on {node} {words}")
    };
    let on = |words: &str| format!("{}: {}", does(words), why());
    Some(match decision.what.as_str() {
        "minted" => format!("Epoch {}: {}", decision.epoch, why()),
        "promoted" => on("took the role"),
        "promotion-refused" => on("refused the role"),
        "fenced" => does(&why()),
        "cut" => on("cut what was never committed"),
        "cut-refused" => on("refused a cut"),
        "ready" => does("is ready: its own log is reconciled, its earlier promises have run out"),
        "serving" => on("serves clients"),
        "stepped-down" => on("is primary no more"),
        "catch-up" => format!("{}, a catch-up", capital(&why())),
        "delta" => format!("{}, a delta", capital(&why())),
        "rebuild" => format!("{}, a rebuild", capital(&why())),
        "delta-taken" => on("has what changed"),
        "rebuilt" => on("is rebuilt"),
        "session-failed" => format!("Bringing it back failed, {}", why()),
        "healthy" => capital(&why()),
        "diverged" => on("found logs that contradict each other"),
        "store-failed" => on("lost its store"),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::explain::{minted, names};
    use crate::view::unix_ms;
    use sbk_proto::v1::MemberInfo;

    fn epoch(epoch: u64, primary: u8, isr: &[u8], reason: &str) -> EpochChange {
        let id = |n: u8| vec![n; 16].into();
        let primary = ReplicaRef { id: id(primary), incarnation: None };
        let isr = isr.iter().map(|n| id(*n)).collect();
        let reason = reason.to_owned();
        EpochChange { epoch, at_ms: 10_000 * epoch, primary: Some(primary), isr, reason }
    }

    fn decision(node: &str, time_ms: u64, epoch: u64, what: &str, why: &str) -> Decision {
        let (node, what, why) = (node.to_owned(), what.to_owned(), why.to_owned());
        Decision { node, at: time_ms, time_ms, number: 1, epoch, what, why }
    }

    fn volume(history: Vec<EpochChange>) -> VolumeInfo {
        let id = |n: u8| vec![n; 16].into();
        let member = |n| MemberInfo { replica: id(n), node: id(0x10 + n), ..MemberInfo::default() };
        let (members, now_ms) = ([1, 2, 3].map(member).into(), unix_ms());
        VolumeInfo { history, members, now_ms, ..VolumeInfo::default() }
    }

    #[test]
    fn who_why_what_and_how_long_is_told() {
        let history = vec![
            epoch(1, 1, &[1, 2, 3], ""),
            epoch(
                2,
                2,
                &[2, 3],
                &format!("node {} was not heard for 2001 ms", id_text(&[0x11; 16])),
            ),
            epoch(3, 2, &[1, 2, 3], ""),
        ];
        let info = volume(history);
        let one = id_text(&[1; 16]);
        let mut decisions = minted(&info);
        decisions.extend([
            decision("11111111", 1_000, 1, "serving", "an earlier one"),
            decision("12121212", 20_010, 2, "promoted", "waits 900 ms for promises made"),
            decision("13131313", 20_020, 2, "cut", "the log ends at 7, 2 entries were cut"),
            decision("12121212", 20_920, 2, "ready", "reconciled itself"),
            decision("12121212", 20_930, 2, "serving", "the leases hold"),
            decision(
                "12121212",
                25_000,
                2,
                "catch-up",
                &format!("{one} is sent the entries 5 to 9"),
            ),
        ]);
        decisions.sort_by_key(|d| d.time_ms);
        let told = last_failover(&info, &decisions, &names(&info));
        let expected = [
            "The last failover, from epoch 1 to 2:",
            "The masters made the replica on 12121212 primary in place of the replica on 11111111, because node 11111111 was \
             not heard for 2001 ms. In sync: the replica on 12121212, the replica on 13131313; no longer: the \
             replica on 11111111",
            "0.010   (+0.010)  The replica on 12121212 took the role: waits 900 ms",
            "0.020   (+0.010)  The replica on 13131313 cut what was never committed: the log ends at 7",
            "0.920   (+0.900)  The replica on 12121212 is ready",
            "0.930   (+0.010)  The replica on 12121212 serves clients",
            "5.000   (+4.070)  The replica on 11111111 is sent the entries 5 to 9, a catch-up",
            "10.000   (+5.000)  Epoch 3: the replica on 11111111 joined the in-sync set",
            "Clients were served again 0.930 s after",
        ];
        assert_eq!(told.len(), expected.len(), "{told:#?}");
        for (told, expected) in told.iter().zip(expected) {
            assert!(told.contains(expected), "{told}");
        }
    }

    #[test]
    fn without_a_failover_there_is_no_story() {
        let told = |history: Vec<EpochChange>| {
            let info = volume(history);
            last_failover(&info, &minted(&info), &names(&info)).join("\n")
        };
        assert!(told(vec![]).contains("no record"));
        let never = told(vec![epoch(1, 1, &[1], ""), epoch(2, 1, &[1, 2], "")]);
        assert!(never.contains("There was no failover"), "{never}");
        assert!(told(vec![epoch(9, 1, &[1], "")]).contains("since epoch 9"));
        // Its outcome may not be on record.
        let open = told(vec![epoch(1, 1, &[1, 2], ""), epoch(2, 2, &[1, 2], "it is gone")]);
        assert!(open.contains("because it is gone") && open.contains("not on record"), "{open}");
    }
}
