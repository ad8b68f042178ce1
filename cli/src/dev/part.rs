//! The processes of a development cluster: the daemons themselves, inside this binary.
//!
//! `sbkctl master ...` and `sbkctl datanode ...` take exactly what `sbk-master` and `sbk-datanode`
//! take. They are not listed among the commands, and are told apart before the command line is
//! parsed, because their options (`--masters`) mean other things.

use std::ffi::OsString;

use anyhow::Context as _;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Which daemon this process is.
pub(crate) enum Part {
    /// `sbk-master`.
    Master(sbk_master::Args),
    /// `sbk-datanode`.
    Datanode(Box<sbk_datanode::Args>),
}

impl Part {
    /// The daemon that the process's arguments mean, if they mean one.
    pub(crate) fn from_args(args: impl Iterator<Item = OsString>) -> Option<Self> {
        let mut args = args.skip(1);
        match args.next()?.to_str()? {
            "master" => Some(Self::Master(sbk_master::Args::parse_from(named("sbk-master", args)))),
            "datanode" => {
                let args = sbk_datanode::Args::parse_from(named("sbk-datanode", args));
                Some(Self::Datanode(Box::new(args)))
            }
            _ => None,
        }
    }

    /// Runs it until SIGTERM or SIGINT.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let filter = EnvFilter::try_from_default_env()
            .unwrap_or_else(|_| EnvFilter::new("info,openraft=warn,sled=warn"));
        // Its standard error is a log file, which may be on a full disk.
        tracing_subscriber::fmt()
            .log_internal_errors(false)
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .init();
        let mut terminate = signal(SignalKind::terminate()).context("listening to signals")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listening to signals")?;
        let shutdown = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        match self {
            Part::Master(args) => sbk_master::run(args, shutdown).await,
            Part::Datanode(args) => sbk_datanode::run(*args, shutdown).await,
        }
    }
}

fn named(name: &str, args: impl Iterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    std::iter::once(OsString::from(name)).chain(args)
}
