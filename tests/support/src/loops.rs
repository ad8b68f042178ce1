//! Loop devices for tests, where this process may make them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A block device over a file; let go of when dropped.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    image: PathBuf,
}

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
                Some(Self { path: path.into(), image: image.to_owned() })
            }
            other => {
                eprintln!("SKIPPED: no loop device can be made here: {other:?}");
                None
            }
        }
    }

    /// Has it become one of so many bytes: of none, it answers EIO to whatever has to get to it, as one does that was
    /// pulled out. What was there behind these is lost.
    ///
    /// # Panics
    /// If the file below can't be cut, or the kernel does not take the new size.
    pub fn resize(&self, bytes: u64) {
        let cut = File::options().write(true).open(&self.image);
        cut.and_then(|file| file.set_len(bytes)).expect("the image is cut");
        let told = Command::new("losetup").arg("--set-capacity").arg(&self.path).status();
        assert!(told.is_ok_and(|status| status.success()), "{} has its size", self.path.display());
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // It goes by itself as soon as nobody has it open.
        let done = Command::new("losetup").arg("-d").arg(&self.path).status();
        let gone = done.is_ok_and(|status| status.success());
        assert!(gone || std::thread::panicking(), "{} stays", self.path.display());
    }
}
