//! `sbkctl cluster status | members`.

use sbk_master_client::MasterError;

use super::Context;
use crate::args::ClusterCommand;
use crate::view::{ClusterView, master_table};

/// Runs the command. What is known is shown even if there is no quorum; the exit code tells.
pub async fn run(context: &Context, command: ClusterCommand) -> anyhow::Result<()> {
    let view = ClusterView::of(&context.masters.cluster_status().await?);
    match command {
        ClusterCommand::Status => context.output.show(&view, ClusterView::detail)?,
        ClusterCommand::Members => {
            context.output.show(&view.members, |members| master_table(members))?;
        }
    }
    if view.has_quorum {
        return Ok(());
    }
    let reachable = view.members.iter().filter(|m| m.reachable).count();
    Err(MasterError::NoQuorum {
        detail: format!("{reachable} of {} masters are reachable", view.members.len()),
        waited: std::time::Duration::ZERO,
        outcome_unknown: false,
    }
    .into())
}
