//! `sbkctl volume explain`: the traces of all replicas as one story.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, bail};
use sbk_engine::recording::file;
use sbk_proto::v1::{EpochChange, VolumeInfo};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::task::JoinSet;

use super::{Context, replay};

mod story;
mod words;

use crate::http;
use crate::view::{id_text, unix_ms};
pub use words::{Names, Teller, names};

/// How often `--follow` asks again.
const FOLLOW: Duration = Duration::from_millis(500);

/// Who decides in the masters' decisions.
pub const MASTERS: &str = "masters";
/// Clocks that differ by less are taken for one.
const SAME_CLOCK_MS: u64 = 500;

/// One decision of one replica, or of the masters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// The node on which it was made, or `masters`.
    #[serde(default)]
    pub node: String,
    /// Milliseconds on that node's boot clock; since 1970 for the masters.
    pub at: u64,
    /// Milliseconds since 1970 on this machine's clock, as far as the clocks can be compared.
    #[serde(default)]
    pub time_ms: u64,
    /// Counts the replica's decisions since its process started.
    #[serde(default)]
    pub number: u64,
    /// In which epoch.
    pub epoch: u64,
    /// A stable word, such as `promoted` or `leave-proposed`.
    pub what: String,
    /// The facts and the reason.
    pub why: String,
}

/// Runs the command.
pub async fn run(context: &Context, volume: &str, follow: bool) -> anyhow::Result<()> {
    let info = context.masters.get_volume(volume).await?;
    let story = story(&info).await?;
    for silent in &story.silent {
        context.output.note(&format!("({silent})"))?;
    }
    if follow {
        return tell_on(context, info, story.decisions).await;
    }
    let (start, names) = (story.decisions.first().map_or(0, |d| d.time_ms), names(&info));
    if context.output.is_table() {
        for line in story::last_failover(&info, &story.decisions, &names) {
            context.output.note(&line)?;
        }
        context.output.note("\nAll decisions, in seconds since the first:")?;
        let mut teller = Teller::new(start, names);
        for line in story.decisions.iter().filter_map(|d| teller.tell(d)) {
            context.output.note(&line)?;
        }
        if story.decisions.is_empty() {
            context.output.note("Nothing was decided yet.")?;
        }
        if !info.serving && !info.reason.is_empty() {
            context.output.note(&format!("It does not serve now: {}", info.reason))?;
        }
        return Ok(());
    }
    context.output.show(&story.decisions, |_| String::new())
}

/// Saves the recordings of all replicas that can be asked to a new file.
///
/// # Errors
/// If none can be asked, or the file is there already.
pub async fn save(context: &Context, volume: &str, path: &Path) -> anyhow::Result<()> {
    let info = context.masters.get_volume(volume).await?;
    let page = format!("/trace?volume={}&format=recording", id_text(&info.id));
    let mut text = String::new();
    let mut silent = Vec::new();
    for member in info.members.iter().filter(|member| !member.http_addr.is_empty()) {
        match http::get_text(&member.http_addr, &page).await {
            Ok(recording) => text.push_str(&recording),
            Err(e) => silent.push(format!("node {} tells nothing: {e:#}", id_text(&member.node))),
        }
    }
    // What can't be replayed is better known now than when it is needed.
    let recordings = file::read(&text).with_context(|| {
        format!("no replica of the volume gives a recording; {}", silent.join("; "))
    })?;
    replay::create_new(path, &text)?;
    for silent in &silent {
        context.output.note(&format!("({silent})"))?;
    }
    let saved: Vec<_> = recordings.into_iter().map(|(about, _)| about).collect();
    context.output.show(&saved, |saved| {
        let (many, path) = (saved.len(), path.display());
        format!("The recordings of {many} replicas are in {path}; see `sbkctl replay {path}`.")
    })
}

async fn tell_on(
    context: &Context,
    mut info: VolumeInfo,
    mut decisions: Vec<Decision>,
) -> anyhow::Result<()> {
    let mut teller = Teller::new(decisions.first().map_or(0, |d| d.time_ms), names(&info));
    // The last one told of each node. A process that was started again counts from 1 again, on a
    // clock that went on.
    let mut told: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let mut again = tokio::time::interval(FOLLOW);
    loop {
        for decision in decisions {
            let position = (decision.at, decision.number);
            if told.get(&decision.node).is_none_or(|last| *last < position) {
                if !context.output.is_table() {
                    context.output.item(&decision, |_| String::new())?;
                } else if let Some(line) = teller.tell(&decision) {
                    context.output.note(&line)?;
                }
                told.insert(decision.node.clone(), position);
            }
        }
        tokio::select! {
            _ = again.tick() => {}
            stop = tokio::signal::ctrl_c() => return stop.context("waiting for Ctrl-C"),
        }
        // Without the masters what the replicas do is told all the same.
        let id = id_text(&info.id);
        let asked = context.masters.get_volume(&id);
        if let Ok(Ok(newer)) = tokio::time::timeout(FOLLOW, asked).await {
            info = newer;
        }
        decisions = story(&info).await.map(|s| s.decisions).unwrap_or_default();
    }
}

/// What the replicas tell.
#[derive(Debug)]
pub struct Story {
    /// In order of time.
    pub decisions: Vec<Decision>,
    /// Which nodes could not be asked, in words.
    pub silent: Vec<String>,
}

/// The decisions of all replicas of the volume that can be asked.
///
/// # Errors
/// If none can be asked.
pub async fn story(info: &VolumeInfo) -> anyhow::Result<Story> {
    let path = format!("/trace?volume={}", id_text(&info.id));
    let mut story = Story { decisions: minted(info), silent: Vec::new() };
    let answers = asked(info, &path).await;
    let asked = answers.len();
    let mut offsets = Vec::new();
    for (node, answer, time_ms) in answers {
        match answer.and_then(|json| entries(&node, json)) {
            Ok((now, decisions)) => {
                let offset = shared_offset(&mut offsets, time_ms, now);
                story.decisions.extend(decisions.into_iter().map(|decision| {
                    let time_ms = decision.at.saturating_add_signed(offset);
                    Decision { time_ms, ..decision }
                }));
            }
            Err(e) => story.silent.push(format!("node {node} tells nothing: {e:#}")),
        }
    }
    if story.silent.len() == asked {
        bail!(
            "none of the volume's {asked} datanodes tells its trace; {}; see `sbkctl node list`",
            story.silent.join("; ")
        );
    }
    let key = |d: &Decision| (d.time_ms, d.node.clone(), d.number);
    story.decisions.sort_by_key(key);
    Ok(story)
}

/// Asks every member's datanode; each answer with the time at which it was given, on this clock.
async fn asked(info: &VolumeInfo, path: &str) -> Vec<(String, anyhow::Result<Value>, u64)> {
    let mut tasks = JoinSet::new();
    for member in info.members.iter().filter(|m| !m.http_addr.is_empty()) {
        let (node, addr) = (id_text(&member.node), member.http_addr.clone());
        let path = path.to_owned();
        tasks.spawn(async move {
            let before = unix_ms();
            let answer = http::get_json::<Value>(&addr, &path).await;
            (node, answer, before.midpoint(unix_ms()))
        });
    }
    let mut answers = tasks.join_all().await;
    answers.sort_by(|a, b| a.0.cmp(&b.0));
    answers
}

/// What to add to a node's clock. Nodes whose clocks differ by no more than asking takes are on one
/// machine: they share an offset, so that what they did stays in order.
fn shared_offset(offsets: &mut Vec<i64>, time_ms: u64, now: u64) -> i64 {
    let offset = time_ms.cast_signed().saturating_sub(now.cast_signed());
    if let Some(known) = offsets.iter().find(|known| known.abs_diff(offset) < SAME_CLOCK_MS) {
        return *known;
    }
    offsets.push(offset);
    offset
}

/// The masters' decisions.
fn minted(info: &VolumeInfo) -> Vec<Decision> {
    let names = names(info);
    let skew = unix_ms().cast_signed().saturating_sub(info.now_ms.cast_signed());
    let skew = if skew.unsigned_abs() < SAME_CLOCK_MS { 0 } else { skew };
    let before = std::iter::once(None).chain(info.history.iter().map(Some));
    let one = |(before, minted): (Option<&EpochChange>, &EpochChange)| Decision {
        node: MASTERS.to_owned(),
        at: minted.at_ms,
        time_ms: minted.at_ms.saturating_add_signed(skew),
        number: minted.epoch,
        epoch: minted.epoch,
        what: "minted".to_owned(),
        why: story::change(before, minted, &names),
    };
    before.zip(&info.history).map(one).collect()
}

/// The decisions in one datanode's answer, and its clock.
fn entries(node: &str, json: Value) -> anyhow::Result<(u64, Vec<Decision>)> {
    let Value::Object(mut fields) = json else { bail!("the answer is no trace") };
    let now = fields.get("now").and_then(Value::as_u64).context("the answer has no time")?;
    let list = fields.remove("entries").context("the answer has no entries")?;
    let mut decisions: Vec<Decision> =
        serde_json::from_value(list).context("the answer is no trace")?;
    for decision in &mut decisions {
        decision.node = node.to_owned();
    }
    Ok((now, decisions))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_trace_is_read() {
        let entry = json!({"number": 4, "incarnation": {"process": 1, "open": 1}, "at": 2500,
            "epoch": 3, "what": "promoted", "why": "the masters named it"});
        let answer = json!({"now": 3000, "entries": [entry], "dropped": 0});
        let (now, decisions) = entries("0123456789", answer).expect("reads");
        assert_eq!((now, decisions.len(), decisions[0].what.as_str()), (3000, 1, "promoted"));
        assert_eq!(decisions[0].node, "0123456789");
        assert!(entries("n", json!({"error": "no"})).is_err());
        assert!(entries("n", json!({"now": 1, "entries": [{"at": "noon"}]})).is_err());
        assert!(entries("n", json!([{"at": "noon"}])).is_err());
    }
}
