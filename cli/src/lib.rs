//! `sbkctl`: the command line of sbk, and what its drills are made of.
//!
//! * [`commands`]: what asks a cluster.
//! * [`attach`]: a volume at a socket of this machine.
//! * [`dev`]: a whole cluster on one machine, as real processes.
//! * [`drill`]: failures on real processes, under a verified load.
//! * [`workload`]: a load that proves something.
//! * [`output`], [`view`]: how results are shown.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory, Parser};

pub mod args;
pub mod attach;
pub mod cluster_file;
pub mod commands;
pub mod dev;
pub mod drill;
pub mod error;
pub mod http;
pub mod output;
pub mod progress;
pub mod size;
pub mod view;
pub mod wait;
pub mod workload;

use args::{Cli, Command};
use commands::Context;
use dev::part::Part;
use output::Output;
use tracing_subscriber::EnvFilter;

/// Runs the command line; the process's exit code.
pub fn main() -> ExitCode {
    let run = || {
        dev::child::die_with_parent()?;
        let part = Part::from_args(std::env::args_os());
        let start = || {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
            runtime.context("starting the runtime")
        };
        match part {
            Some(part) => start()?.block_on(part.run()),
            None => {
                let cli = Cli::parse();
                log_to_stderr();
                if let Command::Attach(args) = &cli.command {
                    attach::prepare(args);
                }
                let runtime = start()?;
                // On this thread, which lives as long as the process: children are tied to it.
                runtime.block_on(run(cli))
            }
        }
    };
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let said = sbk_master_client::in_one_line(e.as_ref());
            let _lost = writeln!(std::io::stderr(), "sbkctl: {said}");
            ExitCode::from(error::exit_code(&e))
        }
    }
}

/// What goes wrong on the side of what was asked for.
fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    // An attachment goes on where nobody reads what it says.
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false)
        .init();
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Dev(args) => dev::run(&cli.global, args).await,
        Command::Volume(command) => {
            commands::volume::run(&Context::new(&cli.global)?, command).await
        }
        Command::Node(command) => commands::node::run(&Context::new(&cli.global)?, command).await,
        Command::Cluster(command) => {
            commands::cluster::run(&Context::new(&cli.global)?, command).await
        }
        Command::Attach(args) => attach::attach(&Context::new(&cli.global)?, args).await,
        Command::Detach(args) => attach::detach(Output::new(cli.global.output), args).await,
        Command::Health { url } => {
            let said = commands::health::ask(&url).await?;
            Output::new(cli.global.output).show(&said, |said| format!("{said}\n"))
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "sbkctl", &mut script);
            output::write_out(&String::from_utf8(script).context("writing the script")?)
        }
        Command::Replay { file, export_case } => {
            commands::replay::run(Output::new(cli.global.output), &file, export_case.as_deref())
        }
        Command::Drill(command) => drill::run(&cli.global, command).await,
        Command::Demo(args) => drill::demo::run(&cli.global, args).await,
        Command::Calibrate(args) => drill::calibrate::run(&cli.global, args).await,
    }
}
