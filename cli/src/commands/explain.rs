//! `sbkctl volume explain`: the traces of all replicas as one story.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, bail};
use sbk_proto::v1::VolumeInfo;
use serde::{Deserialize, Serialize};

use super::{Context, projection};

mod words;

use crate::view::id_text;
pub use words::{Names, Teller, names};

/// How often `--follow` asks again.
const FOLLOW: Duration = Duration::from_millis(500);

/// One decision of one replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// The node on which it was made.
    #[serde(default)]
    pub node: String,
    /// Milliseconds on that node's boot clock.
    pub at: u64,
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
        return tell_on(context, &info, story.decisions).await;
    }
    let (start, names) = (story.decisions.first().map_or(0, |d| d.at), names(&info));
    if context.output.is_table() {
        let mut teller = Teller::new(start, names);
        for line in story.decisions.iter().filter_map(|d| teller.tell(d)) {
            context.output.note(&line)?;
        }
        if story.decisions.is_empty() {
            context.output.note("Nothing was decided yet.")?;
        }
        return Ok(());
    }
    context.output.show(&story.decisions, |_| String::new())
}

async fn tell_on(
    context: &Context,
    info: &VolumeInfo,
    mut decisions: Vec<Decision>,
) -> anyhow::Result<()> {
    let mut teller = Teller::new(decisions.first().map_or(0, |d| d.at), names(info));
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
        decisions = story(info).await.map(|s| s.decisions).unwrap_or_default();
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
    let mut story = Story { decisions: Vec::new(), silent: Vec::new() };
    let answers = projection::from_members(info, &path).await;
    let asked = answers.len();
    for (node, answer) in answers {
        match answer.and_then(|json| entries(&node, json)) {
            Ok(decisions) => story.decisions.extend(decisions),
            Err(e) => story.silent.push(format!("node {node} tells nothing: {e:#}")),
        }
    }
    if story.silent.len() == asked {
        bail!(
            "none of the volume's {asked} datanodes tells its trace; {}; see `sbkctl node list`",
            story.silent.join("; ")
        );
    }
    story.decisions.sort_by(|a, b| (a.at, &a.node, a.number).cmp(&(b.at, &b.node, b.number)));
    Ok(story)
}

/// The decisions in one datanode's answer.
fn entries(node: &str, json: serde_json::Value) -> anyhow::Result<Vec<Decision>> {
    let list = match json {
        serde_json::Value::Object(mut fields) => {
            fields.remove("entries").context("the answer has no entries")?
        }
        list => list,
    };
    let mut decisions: Vec<Decision> =
        serde_json::from_value(list).context("the answer is no trace")?;
    for decision in &mut decisions {
        decision.node = node.to_owned();
    }
    Ok(decisions)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_trace_is_read() {
        let entry = json!({"number": 4, "incarnation": {"process": 1, "open": 1}, "at": 2500,
            "epoch": 3, "what": "promoted", "why": "the masters named it"});
        for answer in [json!([entry]), json!({"entries": [entry], "dropped": 0})] {
            let decisions = entries("0123456789", answer).expect("reads");
            assert_eq!((decisions.len(), decisions[0].what.as_str()), (1, "promoted"));
            assert_eq!(decisions[0].node, "0123456789");
        }
        assert!(entries("n", json!({"error": "no"})).is_err());
        assert!(entries("n", json!([{"at": "noon"}])).is_err());
    }
}
