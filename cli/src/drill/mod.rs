//! Drills: a failure is caused on real processes, under a load that verifies itself.

use crate::args::{DrillCommand, Global};
use failover::Fault;

pub mod bench;
pub mod bit_rot;
pub mod calibrate;
pub mod chaos;
pub mod demo;
pub mod disk_fail;
pub mod disk_full;
mod engine_families;
pub mod failover;
pub mod footprint;
pub mod load;
pub mod long_absence;
pub mod loop_disk;
pub mod many;
mod network;
pub mod parts;
pub mod planned;
pub mod replica_return;
pub mod routes;
mod runs;
pub mod target;

/// Runs the command.
pub async fn run(global: &Global, command: DrillCommand) -> anyhow::Result<()> {
    match command {
        DrillCommand::PrimaryKill(args) => failover::run(global, args, Fault::Kill).await,
        DrillCommand::PrimaryFreeze(args) => failover::run(global, args, Fault::Freeze).await,
        DrillCommand::PrimaryCut(args) => failover::run(global, args, Fault::Cut).await,
        DrillCommand::PrimaryMove(args) => planned::move_primary(global, args).await,
        DrillCommand::RollingRestart(args) => planned::rolling_restart(global, args).await,
        DrillCommand::ReplicaReturn(args) => replica_return::run(global, args).await,
        DrillCommand::BitRot(args) => bit_rot::run(global, args).await,
        DrillCommand::DiskFail(args) => disk_fail::run(global, args).await,
        DrillCommand::DiskFull(args) => disk_full::run(global, args).await,
        DrillCommand::LongAbsence(args) => long_absence::run(global, args).await,
        DrillCommand::Many(args) => many::run(global, args).await,
        DrillCommand::Load(args) => load::run(global, args).await,
        DrillCommand::Chaos(args) => chaos::run(global, args).await,
    }
}
