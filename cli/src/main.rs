//! `sbkctl`, the command line of sbk.

use std::process::ExitCode;

// What ships holds no switch for a known bug, whichever features were asked for elsewhere.
const _: () = assert!(!sbk_engine::bugs::PRESENT, "built with the feature `bugs`");

fn main() -> ExitCode {
    sbk_cli::main()
}
