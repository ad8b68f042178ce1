//! Replicas that move: `sbkctl volume replace | move`, `sbkctl node drain | undrain | remove`.
//!
//! The masters do it, a step at a time, whether somebody waits or not.

use anyhow::{Context as _, bail};
use bytes::Bytes;
use sbk_proto::v1::{
    MemberInfo, MovePrimaryRequest, MoveReplicaRequest, NodeDuty, SetNodeDutyRequest, VolumeInfo,
};
use serde::Serialize;
use uuid::Uuid;

use super::Context;
use super::node::{all, find};
use super::volume::{ask, confirm, wait_for};
use crate::args::WaitArgs;
use crate::progress::Progress;
use crate::view::{NodeView, VolumeView, id_text};
use crate::wait::{self, Look};

fn id_bytes(node: &NodeView) -> anyhow::Result<Bytes> {
    let id: Uuid = node.id.parse().context("the masters told a node without a UUID")?;
    Ok(Bytes::copy_from_slice(id.as_bytes()))
}

pub(super) async fn replace(
    context: &Context,
    volume: &str,
    node: &str,
    yes: bool,
    wait: WaitArgs,
) -> anyhow::Result<()> {
    let nodes = all(context).await?;
    let from = find(&nodes, node)?;
    let info = context.masters.get_volume(volume).await?;
    if !yes {
        let what = format!("This gives up what node {} holds of volume {}.", from.id, info.name);
        confirm(&info.name, "what the replica holds is removed", &what)?;
    }
    let request = MoveReplicaRequest {
        name_or_id: id_text(&info.id),
        from: id_bytes(from)?,
        to: Bytes::new(),
        in_place: true,
    };
    finish(context, request, from, wait).await
}

pub(super) async fn move_replica(
    context: &Context,
    volume: &str,
    from: &str,
    to: &str,
    wait: WaitArgs,
) -> anyhow::Result<()> {
    let nodes = all(context).await?;
    let (from, to) = (find(&nodes, from)?, find(&nodes, to)?);
    let info = context.masters.get_volume(volume).await?;
    let request = MoveReplicaRequest {
        name_or_id: id_text(&info.id),
        from: id_bytes(from)?,
        to: id_bytes(to)?,
        in_place: false,
    };
    finish(context, request, from, wait).await
}

/// Asks the masters, and waits until the replica is off the list and all are in sync.
async fn finish(
    context: &Context,
    request: MoveReplicaRequest,
    from: &NodeView,
    wait: WaitArgs,
) -> anyhow::Result<()> {
    let mut info = context.masters.move_replica(request).await?;
    let old: Vec<Bytes> =
        info.members.iter().filter(|m| m.goes).map(|m| m.replica.clone()).collect();
    if !wait.no_wait {
        let done = |info: &VolumeInfo| {
            let listed = |id: &Bytes| info.members.iter().any(|m| m.replica == *id);
            !old.iter().any(listed) && VolumeView::of(info).is_whole()
        };
        let what = format!("volume '{}' to have its replica on {} replaced", info.name, from.id);
        let (id, limit) = (id_text(&info.id), wait.timeout);
        info = wait_for(&context.masters, &id, &what, limit, done).await.with_context(|| {
            format!("it goes on nevertheless: see `sbkctl volume show {}`", info.name)
        })?;
    }
    let view = VolumeView::of(&info);
    context.output.show(&view, VolumeView::detail)
}

/// The volume's replica that `text` names: by its node, or by itself.
fn member<'a>(
    info: &'a VolumeInfo,
    nodes: &[NodeView],
    text: &str,
) -> anyhow::Result<&'a MemberInfo> {
    let replica = info.members.iter().find(|m| id_text(&m.replica) == text);
    if let Some(member) = replica {
        return Ok(member);
    }
    let node = find(nodes, text)?;
    info.members
        .iter()
        .find(|m| id_text(&m.node) == node.id)
        .with_context(|| format!("node {} holds no replica of volume '{}'", node.id, info.name))
}

pub(super) async fn move_primary(
    context: &Context,
    volume: &str,
    to: &str,
    wait: WaitArgs,
) -> anyhow::Result<()> {
    let nodes = all(context).await?;
    let info = context.masters.get_volume(volume).await?;
    let heir = member(&info, &nodes, to)?.clone();
    let request =
        MovePrimaryRequest { name_or_id: id_text(&info.id), replica: heir.replica.clone() };
    let mut info = context.masters.move_primary(request).await?;
    if !wait.no_wait {
        info = handed_over(context, &info, &heir, wait).await?;
    }
    let view = VolumeView::of(&info);
    context.output.show(&view, VolumeView::detail)
}

/// Waits until the replica is primary and serves, or is wished no more.
async fn handed_over(
    context: &Context,
    volume: &VolumeInfo,
    heir: &MemberInfo,
    wait: WaitArgs,
) -> anyhow::Result<VolumeInfo> {
    let is_primary =
        |info: &VolumeInfo| info.members.iter().any(|m| m.primary && m.replica == heir.replica);
    let ended = |info: &VolumeInfo| !is_primary(info) && info.wished_primary != heir.replica;
    let node = id_text(&heir.node);
    let what = format!("the primary of volume '{}' to move to node {node}", volume.name);
    let right = |info: &VolumeInfo| ended(info) || is_primary(info) && info.serving;
    let id = id_text(&volume.id);
    let waited = wait_for(&context.masters, &id, &what, wait.timeout, right).await;
    let info = waited.with_context(|| {
        format!(
            "it is wished nevertheless: see `sbkctl volume show {0}`; `sbkctl volume move {0} \
             --primary-to` with the node that is primary now takes it back",
            volume.name
        )
    })?;
    if ended(&info) {
        bail!(
            "the primary of volume '{}' was not moved: the replica on node {node} left the in-sync \
             set, or another primary was wished; see `sbkctl volume show {0}`",
            info.name
        );
    }
    Ok(info)
}

async fn set_duty(context: &Context, node: &NodeView, duty: NodeDuty) -> anyhow::Result<()> {
    let request = SetNodeDutyRequest { node: id_bytes(node)?, duty: duty.into() };
    context.masters.set_node_duty(request).await?;
    Ok(())
}

#[derive(Serialize)]
struct Told {
    node: String,
    done: &'static str,
}

fn tell(context: &Context, node: &NodeView, done: &'static str) -> anyhow::Result<()> {
    let told = Told { node: node.id.clone(), done };
    context.output.show(&told, |told| format!("Node {}: {}", told.node, told.done))
}

pub(super) async fn drain(
    context: &Context,
    node: &NodeView,
    wait: WaitArgs,
) -> anyhow::Result<()> {
    set_duty(context, node, NodeDuty::Drained).await?;
    if wait.no_wait {
        return tell(context, node, "its replicas move away, and it gets no new ones");
    }
    emptied(context, node, wait, "drained").await?;
    tell(context, node, "drained, it holds nothing")
}

pub(super) async fn undrain(context: &Context, node: &NodeView) -> anyhow::Result<()> {
    set_duty(context, node, NodeDuty::Holds).await?;
    tell(context, node, "holds replicas again; none come back by themselves")
}

pub(super) async fn remove(
    context: &Context,
    node: &NodeView,
    yes: bool,
    wait: WaitArgs,
) -> anyhow::Result<()> {
    if !yes {
        let what = format!(
            "This gives up node {} and what its {} replicas hold.",
            node.id,
            node.replicas.len()
        );
        ask(&format!("node {}", node.id), &node.id, "what it holds is given up", &what)?;
    }
    set_duty(context, node, NodeDuty::Removed).await?;
    if wait.no_wait {
        return tell(context, node, "its replicas are replaced, then it is forgotten");
    }
    emptied(context, node, wait, "removed").await?;
    tell(context, node, "removed")
}

/// Waits until no volume lists a replica on the node.
async fn emptied(
    context: &Context,
    node: &NodeView,
    wait: WaitArgs,
    what: &str,
) -> anyhow::Result<()> {
    let mut progress = Progress::new();
    let what = format!("node {} to be {what}", node.id);
    let waited = wait::until(&what, wait.timeout, async || {
        let nodes = match all(context).await {
            Ok(nodes) => nodes,
            Err(error) => return Ok(Look::NotYet(error.to_string())),
        };
        let Some(left) = nodes.iter().find(|n| n.id == node.id).filter(|n| !n.replicas.is_empty())
        else {
            return Ok(Look::Done(()));
        };
        let seen = seen(context, left).await;
        progress.show(|| format!("waiting for {what}: {seen}"));
        Ok(Look::NotYet(seen))
    });
    waited.await.context("it goes on nevertheless: see `sbkctl node show` and `sbkctl volume list`")
}

/// How many replicas are left, and what the first of them waits for.
async fn seen(context: &Context, node: &NodeView) -> String {
    let primaries = node.replicas.iter().filter(|r| r.role == "primary").count();
    let mut seen = format!("{} replicas and {primaries} primaries left", node.replicas.len());
    if let Some(first) = node.replicas.first()
        && let Ok(info) = context.masters.get_volume(&first.volume).await
        && !info.reason.is_empty()
    {
        seen += &format!("; volume {}: {}", first.name, info.reason);
    }
    seen
}
