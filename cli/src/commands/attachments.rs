//! `sbkctl volume attachments | detach`: who has a volume, and how an operator ends that.
//!
//! The primary tells and decides: the log has the attachments, and an end is an entry in it. An order
//! names the newest generation that it ends, the one that was seen when the operator asked: however
//! often it is repeated, no later attachment ends by it. It names the loss generation too: a loss may
//! take the generation back, and then its number comes again for another.

use std::time::Duration;

use anyhow::bail;
use sbk_proto::v1::block_service_client::BlockServiceClient;
use sbk_proto::v1::{DetachRequest, MemberInfo, VolumeInfo};
use serde::Serialize;
use serde_json::Value;
use tonic::Code;
use tonic::transport::Endpoint;

use super::volume::confirm;
use super::{Context, projection};
use crate::http;
use crate::output::table;
use crate::view::id_text;
use crate::wait::{self, Look};

const CONNECT: Duration = Duration::from_secs(5);

/// Who has a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attachments {
    /// The volume's name.
    pub volume: String,
    /// The newest attach generation.
    pub generation: u64,
    /// The loss generation in which it counts.
    pub loss_generation: u64,
    /// The sessions of that generation.
    pub holders: Vec<Holder>,
}

/// One attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// The frontend session.
    pub session: String,
    /// Whether it has the volume to itself.
    pub exclusive: bool,
    /// Whether its frontend is connected to the primary.
    pub connected: bool,
    /// The frontend's node, if it was connected since the primary took over.
    pub node: Option<String>,
    /// For how long the primary has known it.
    pub held_seconds: Option<u64>,
}

impl Attachments {
    /// What the primary's projection says of a volume.
    fn of(info: &VolumeInfo, status: &Value) -> Option<Self> {
        let view = status.get("view").filter(|view| view["role"] == "primary")?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let holder = |held: &Value| {
            Some(Holder {
                session: text(&held["session"])?,
                exclusive: held["exclusive"].as_bool()?,
                connected: held["connected"].as_bool()?,
                node: text(&held["node"]),
                held_seconds: held["held_ms"].as_u64().map(|ms| ms / 1000),
            })
        };
        let holders = view["attachments"].as_array()?.iter().map(holder);
        let generation = view["attach"].as_u64()?;
        let loss_generation = view["loss_generation"].as_u64()?;
        Some(Self {
            volume: info.name.clone(),
            generation,
            loss_generation,
            holders: holders.collect::<Option<_>>()?,
        })
    }

    fn words(&self) -> String {
        if self.holders.is_empty() {
            return format!("Nobody has volume '{}' attached.\n", self.volume);
        }
        let yes = |yes: bool, word: &str, no: &str| if yes { word } else { no }.to_owned();
        let row = |held: &Holder| {
            let since = held.held_seconds.map_or("-".to_owned(), |s| format!("{s} s"));
            [
                held.session.clone(),
                yes(held.exclusive, "exclusive", "shared"),
                held.node.clone().unwrap_or_else(|| "-".to_owned()),
                yes(held.connected, "yes", "no"),
                since,
                self.generation.to_string(),
            ]
        };
        let header = ["SESSION", "KIND", "NODE", "CONNECTED", "KNOWN FOR", "GENERATION"];
        table(&header, self.holders.iter().map(row))
    }
}

/// What the primary tells; why nothing is known, if it does not.
async fn ask(info: &VolumeInfo) -> Result<(MemberInfo, Attachments), String> {
    let Some(primary) = info.members.iter().find(|member| member.primary) else {
        return Err("the volume has no primary".to_owned());
    };
    let node = id_text(&primary.node);
    let projection = http::get_json::<Value>(&primary.http_addr, "/projection").await;
    let projection = projection.map_err(|e| format!("the primary's node {node}: {e:#}"))?;
    let status = projection::volume_status(&projection, &id_text(&info.id));
    let attachments = status.and_then(|status| Attachments::of(info, status));
    let attachments =
        attachments.ok_or_else(|| format!("the replica on node {node} is not primary yet"))?;
    Ok((primary.clone(), attachments))
}

/// Shows who has the volume.
pub async fn show(context: &Context, volume: &str, limit: Duration) -> anyhow::Result<()> {
    let found = wait::until(format!("the primary of '{volume}' to tell"), limit, async || {
        let info = context.masters.get_volume(volume).await?;
        Ok(match ask(&info).await {
            Ok((_, attachments)) => Look::Done(attachments),
            Err(why) => Look::NotYet(why),
        })
    });
    context.output.show(&found.await?, Attachments::words)
}

/// Ends the attachments that there are.
pub async fn detach(
    context: &Context,
    volume: &str,
    session: Option<&str>,
    yes: bool,
    limit: Duration,
) -> anyhow::Result<()> {
    let mut ending: Option<Attachments> = None;
    let mut agreed = yes;
    let id = id_text(&context.masters.get_volume(volume).await?.id);
    let done = wait::until(format!("the attachments of '{volume}' to end"), limit, async || {
        let info = context.masters.get_volume(&id).await?;
        let (primary, seen) = match ask(&info).await {
            Ok(told) => told,
            Err(why) => return Ok(Look::NotYet(why)),
        };
        let named = |held: &Holder| session.is_none_or(|session| held.session == session);
        if ending.is_none() && !seen.holders.iter().any(named) {
            match session {
                Some(session) => bail!(
                    "session {session} has not attached volume '{volume}' (any more); see \
                     `sbkctl volume attachments {volume}`"
                ),
                None => return Ok(Look::Done(seen)),
            }
        }
        if !agreed {
            confirm(&info.name, "its clients get I/O errors", &question(&seen))?;
            agreed = true;
        }
        let seen = ending.get_or_insert(seen);
        match order(&info, &primary, seen).await? {
            Ok(generation) if generation > seen.generation => Ok(Look::Done(seen.clone())),
            Ok(generation) => bail!("the primary answered with generation {generation}"),
            Err(why) => Ok(Look::NotYet(why)),
        }
    });
    let ended = done.await?;
    context.output.show(&ended, |ended| match ended.holders.len() {
        0 => format!("Nobody has volume '{}' attached.\n", ended.volume),
        n => format!("{n} of volume '{}' ended: they get I/O errors from here on.\n", ended.volume),
    })
}

fn question(seen: &Attachments) -> String {
    format!(
        "{}These clients get I/O errors from here on, and what they have in flight fails.",
        seen.words()
    )
}

/// Orders the primary to end all that were seen; the generation in force then, or why it is not known
/// yet.
///
/// # Errors
/// If a loss came in between: who has the volume now is not who was seen.
async fn order(
    info: &VolumeInfo,
    primary: &MemberInfo,
    seen: &Attachments,
) -> anyhow::Result<Result<u64, String>> {
    let Some(config) = &info.config else {
        return Ok(Err("the volume has no configuration yet".to_owned()));
    };
    let request = DetachRequest {
        volume: info.id.clone(),
        primary: config.primary.clone(),
        upto: seen.generation,
        loss_generation: seen.loss_generation,
    };
    let endpoint = match Endpoint::from_shared(format!("http://{}", primary.addr)) {
        Ok(endpoint) => endpoint.connect_timeout(CONNECT).timeout(CONNECT),
        Err(why) => return Ok(Err(why.to_string())),
    };
    let channel = match endpoint.connect().await {
        Ok(channel) => channel,
        Err(why) => return Ok(Err(why.to_string())),
    };
    match BlockServiceClient::new(channel).detach(request).await {
        Ok(answer) => Ok(Ok(answer.into_inner().attach)),
        Err(status) if status.code() == Code::FailedPrecondition => bail!(
            "acknowledged writes were lost since the attachments were looked at, and {}; see \
             `sbkctl volume attachments {}`",
            status.message(),
            info.name
        ),
        Err(status) => Ok(Err(status.message().to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn holders_are_read_from_the_primary_only() {
        let info = VolumeInfo { name: "db".to_owned(), ..Default::default() };
        let held = json!({"session": "s1", "generation": 3, "exclusive": true, "connected": false,
            "node": null, "held_ms": null, "newest": 9});
        let other = json!({"session": "s2", "generation": 3, "exclusive": false, "connected": true,
            "node": "n1", "held_ms": 12_500, "newest": 9});
        let view = json!({"role": "primary", "attach": 3, "loss_generation": 1,
            "attachments": [held, other]});
        let found = Attachments::of(&info, &json!({"view": view})).expect("holders");
        let seen = (found.generation, found.loss_generation, found.holders.len());
        assert_eq!(seen, (3, 1, 2));
        assert_eq!(found.holders[1].held_seconds, Some(12));
        let words = found.words();
        for part in ["s1", "exclusive", "shared", "n1", "12 s", "no"] {
            assert!(words.contains(part), "{words}");
        }
        let follower = json!({"view": {"role": "follower", "attach": 3, "attachments": []}});
        assert_eq!(Attachments::of(&info, &follower), None);
        let none = Attachments { holders: vec![], ..found };
        assert!(none.words().contains("Nobody"), "{}", none.words());
    }
}
