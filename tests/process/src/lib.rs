//! What the process-level tests share.
//!
//! * [`markdown`]: the documentation as tests read it.
//! * [`commands`]: command lines that are written down, checked against the real parsers.
//! * [`clusters`]: clusters of real processes, and what is waited for until they show it.
//! * [`devices`]: block devices for their datanodes.
//! * [`work`], [`writer`]: what clients do to them meanwhile.

pub mod clusters;
pub mod commands;
pub mod devices;
pub mod markdown;
pub mod work;
pub mod writer;

use std::path::{Path, PathBuf};

/// The repository's folder.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).expect("the crate is two folders deep in the repository").to_owned()
}

/// Every file below `dir` (relative to the repository) whose name ends with `.ext`, in order.
///
/// # Panics
/// If the folder can't be read: a test that looks at nothing must not pass.
pub fn files(dir: &str, ext: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().join(dir)];
    while let Some(dir) = open.pop() {
        let entries = std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        for entry in entries {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|found| found == ext) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// A path as it is written in the documentation: relative to the repository.
///
/// # Panics
/// If it lies outside.
pub fn relative(path: &Path) -> String {
    let path = path.strip_prefix(root()).expect("a path of the repository");
    path.to_str().expect("UTF-8").to_owned()
}
