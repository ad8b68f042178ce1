//! Drills: a failure is caused on real processes, under a load that verifies itself.

use crate::args::{DrillCommand, Global};

pub mod bench;
pub mod calibrate;
pub mod chaos;
pub mod demo;
mod engine_families;
pub mod load;
pub mod planned;
pub mod primary_kill;
pub mod replica_return;
pub mod routes;
pub mod target;

/// Runs the command.
pub async fn run(global: &Global, command: DrillCommand) -> anyhow::Result<()> {
    match command {
        DrillCommand::PrimaryKill(args) => primary_kill::run(global, args).await,
        DrillCommand::PrimaryMove(args) => planned::move_primary(global, args).await,
        DrillCommand::RollingRestart(args) => planned::rolling_restart(global, args).await,
        DrillCommand::ReplicaReturn(args) => replica_return::run(global, args).await,
        DrillCommand::Load(args) => load::run(global, args).await,
        DrillCommand::Chaos(args) => chaos::run(global, args).await,
    }
}
