//! The `sbk-datanode` binary.

use std::io::{IsTerminal, Write as _};
use std::process::ExitCode;

use clap::Parser;
use sbk_datanode::{Args, LogFormat};
use sbk_master_client::in_one_line;
use tokio::signal::unix::{SignalKind, signal};

// What ships holds no switch for a known bug, whichever features were asked for elsewhere.
const _: () = assert!(!sbk_engine::bugs::PRESENT, "built with the feature `bugs`");

/// Threads that may block, beside those that each disk has of its own: a volume's task that writes its
/// superblock takes one, and on a disk that hangs it keeps it.
const THREADS: usize = 16 << 10;

fn main() -> ExitCode {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.enable_all().max_blocking_threads(THREADS).build();
    let ended = match runtime {
        Ok(runtime) => {
            let ended = runtime.block_on(run(Args::parse()));
            // Nobody waits for a call that a disk does not answer.
            runtime.shutdown_background();
            ended
        }
        Err(error) => Err(error.into()),
    };
    match ended {
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
