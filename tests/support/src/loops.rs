//! Loop devices for tests, where this process may make them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A block device over a file; let go of when dropped.
#[derive(Debug)]
pub struct LoopDevice(PathBuf);

impl LoopDevice {
    /// One of `bytes`, all of them zeros, over a new file at `image`. `None`, and a line on standard error that says so, if this process may not make any.
    ///
    /// # Panics
    /// If the file can't be made.
    pub fn make(image: &Path, bytes: u64) -> Option<Self> {
        File::create(image).and_then(|file| file.set_len(bytes)).expect("an image");
        let made = Command::new("losetup").args(["--find", "--show"]).arg(image).output();
        match made {
            Ok(made) if made.status.success() => {
                let path = String::from_utf8_lossy(&made.stdout).trim().to_owned();
                Some(Self(path.into()))
            }
            other => {
                eprintln!("SKIPPED: no loop device can be made here: {other:?}");
                None
            }
        }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // It goes by itself as soon as nobody has it open.
        let done = Command::new("losetup").arg("-d").arg(&self.0).status();
        let gone = done.is_ok_and(|status| status.success());
        assert!(gone || std::thread::panicking(), "{} stays", self.0.display());
    }
}
