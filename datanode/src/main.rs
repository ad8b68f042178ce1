//! The `sbk-datanode` binary.

use std::io::{IsTerminal, Write as _};
use std::process::ExitCode;

use clap::Parser;
use sbk_datanode::{Args, LogFormat};
use sbk_master_client::in_one_line;
use tokio::signal::unix::{SignalKind, signal};

// What ships holds no switch for a known bug, whichever features were asked for elsewhere.
const _: () = assert!(!sbk_engine::bugs::PRESENT, "built with the feature `bugs`");

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // What an operator did needs no backtrace, whatever the environment says.
            let _lost =
                writeln!(std::io::stderr(), "sbk-datanode: {}", in_one_line(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // Where a log can't be written it is lost, and nothing else is. [The subscriber told of that on the same
    // standard error, which ended the process: a full disk for logs took all nodes down at once.]
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    match args.clone().settings()?.log_format {
        LogFormat::Text => logs.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => logs.json().init(),
    }
    let mut terminate = signal(SignalKind::terminate())?;
    sbk_datanode::run(args, async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    })
    .await
}
