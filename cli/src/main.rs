//! `sbkctl`, the command line of sbk.

use std::process::ExitCode;

fn main() -> ExitCode {
    sbk_cli::main()
}
