//! `sbkctl`: the command line of sbk, and what its drills are made of.

use std::process::ExitCode;

pub mod error;
pub mod output;
pub mod progress;
pub mod size;
pub mod wait;
pub mod workload;

/// Runs the command line.
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
