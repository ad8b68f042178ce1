//! `sbkctl cluster status | members`.

use super::Context;
use crate::args::ClusterCommand;
use crate::error::NoQuorum;
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
    Err(NoQuorum(
        "the masters have no quorum or no leader: nothing can be created or failed over, what \
         serves goes on; start the missing masters"
            .into(),
    )
    .into())
}
