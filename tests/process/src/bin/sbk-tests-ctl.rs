//! `sbkctl` for the tests of this package: Cargo builds a package's own binaries for its tests, and
//! nobody else's.

use std::process::ExitCode;

fn main() -> ExitCode {
    sbk_cli::main()
}
