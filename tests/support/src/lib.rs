//! What the tests of several crates do to a data directory: copy it, and damage the copy's files; and block devices for them.
#![allow(clippy::missing_panics_doc)] // A test that can't go on ends.

use std::fs;
use std::path::{Path, PathBuf};

mod loops;

pub use loops::LoopDevice;

/// Every file below `dir`.
pub fn walk(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("lists").map(|entry| entry.expect("lists").path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

/// Copies every file of `from` to the same place below `to`.
pub fn copy_dir(from: &Path, to: &Path) {
    for path in walk(from) {
        let target = to.join(path.strip_prefix(from).expect("is below"));
        fs::create_dir_all(target.parent().expect("has a parent")).expect("makes it");
        fs::copy(&path, target).expect("copies");
    }
}

/// What can happen to a file. The last byte that is not zero is its end: some are preallocated.
#[derive(Clone, Copy, Debug)]
pub enum Damage {
    /// It is gone.
    Removed,
    /// It has no bytes.
    Emptied,
    /// Its second half is gone.
    Halved,
    /// Every byte is another one.
    Garbage,
    /// A bit of the byte at so many parts of so many: 0 of any is the first byte, all of all the last.
    FlippedAt(usize, usize),
}

/// One of each.
pub const DAMAGES: [Damage; 7] = [
    Damage::Removed,
    Damage::Emptied,
    Damage::Halved,
    Damage::Garbage,
    Damage::FlippedAt(0, 1),
    Damage::FlippedAt(1, 2),
    Damage::FlippedAt(1, 1),
];

impl Damage {
    /// Does it to a file.
    pub fn apply(self, path: &Path) {
        let mut bytes = fs::read(path).expect("reads");
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        match self {
            Damage::Removed => return fs::remove_file(path).expect("removes"),
            Damage::Emptied => bytes.clear(),
            Damage::Halved => bytes.truncate(end / 2),
            Damage::Garbage => {
                bytes.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * 7 + 13) as u8);
            }
            Damage::FlippedAt(part, of) => {
                if let Some(byte) = bytes.get_mut((end * part / of).min(end.saturating_sub(1))) {
                    *byte ^= 0x20;
                }
            }
        }
        fs::write(path, bytes).expect("writes");
    }
}
