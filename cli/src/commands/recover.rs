//! `sbkctl volume recover`.

use sbk_proto::v1::{RecoverVolumeRequest, RecoverVolumeResponse};
use serde::Serialize;

use super::volume::confirm;
use super::{Context, node};
use crate::view::{NodeView, VolumeView, id_text};

/// What was given up.
#[derive(Debug, Serialize)]
struct Recovered {
    name: String,
    id: String,
    /// The node whose replica goes on.
    node: String,
    /// The newest epoch in its table, and the last LSN that it holds.
    table_epoch: u64,
    lsn: u64,
    /// The nodes of the in-sync replicas that were given up.
    lost: Vec<String>,
    /// The volume's loss generation now.
    loss_generation: u64,
}

/// Runs the command.
pub async fn run(
    context: &Context,
    volume: &str,
    nodes_off: &[String],
    yes: bool,
) -> anyhow::Result<()> {
    let info = context.masters.get_volume(volume).await?;
    let nodes = context.masters.list_nodes().await?.nodes;
    let views: Vec<NodeView> = nodes.iter().map(NodeView::of).collect();
    let mut off = Vec::new();
    for name in nodes_off {
        let found = node::find(&views, name)?;
        off.extend(nodes.iter().find(|n| id_text(&n.id) == found.id).map(|n| n.id.clone()));
    }
    // By UUID: a volume that is created under the name meanwhile is another one.
    let request = RecoverVolumeRequest {
        name_or_id: id_text(&info.id),
        nodes_off: off,
        dry_run: true,
        ..RecoverVolumeRequest::default()
    };
    let plan = context.masters.recover_volume(request.clone()).await?;
    if !yes {
        let risk = "acknowledged writes may be lost";
        confirm(&info.name, risk, &question(&VolumeView::of(&info), &plan))?;
    }
    let request = RecoverVolumeRequest {
        dry_run: false,
        expect_epoch: plan.epoch,
        expect_replica: plan.replica.clone(),
        ..request
    };
    let done = context.masters.recover_volume(request).await?;
    let config = done.volume.as_ref().and_then(|volume| volume.config.as_ref());
    let recovered = Recovered {
        name: info.name.clone(),
        id: id_text(&info.id),
        node: id_text(&done.node),
        table_epoch: done.table_epoch,
        lsn: done.durable_lsn,
        lost: done.lost_nodes.iter().map(|id| id_text(id)).collect(),
        loss_generation: config.map_or(0, |config| config.loss_generation),
    };
    context.output.show(&recovered, |r| {
        format!(
            "Volume {} goes on with what node {} holds, up to entry {}; this is loss {}. Check its \
             data, then attach its clients again.",
            r.name, r.node, r.lsn, r.loss_generation
        )
    })
}

fn question(view: &VolumeView, plan: &RecoverVolumeResponse) -> String {
    let lost: Vec<_> = plan.lost_nodes.iter().map(|id| id_text(id)).collect();
    format!(
        "Volume {} goes on with what node {} holds, up to entry {} of epoch {}. Given up: the in-sync \
         replicas on {}, and every write that only they hold, acknowledged or not; should they come \
         back, they are rebuilt. Every attached client gets I/O errors until it attaches again.",
        view.name,
        id_text(&plan.node),
        plan.durable_lsn,
        plan.table_epoch,
        lost.join(", ")
    )
}
