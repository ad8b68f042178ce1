//! Small file systems of the drill's own, which can be filled.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::drill::network::run;

/// Several times what a datanode of the drill needs; what is not used costs nothing.
const SIZE: &str = "size=1g";
const BALLAST: &str = "chaos-ballast";
const CHUNK: usize = 1 << 20;

/// A tmpfs, unmounted when dropped.
#[derive(Debug)]
pub(super) struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Mounts one on `at`, which is made. To be called in a mount namespace of one's own.
    pub(super) fn mount(at: PathBuf) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&at).with_context(|| format!("creating {}", at.display()))?;
        let path = at.to_str().context("the directory's name is not UTF-8")?;
        run("mount", &["-t", "tmpfs", "-o", SIZE, "sbk-chaos", path], None)?;
        Ok(Self { at })
    }

    /// Leaves no room on it.
    pub(super) fn fill(&self) -> anyhow::Result<()> {
        let path = self.at.join(BALLAST);
        let mut file =
            File::create(&path).with_context(|| format!("creating {}", path.display()))?;
        let chunk = vec![0xb5; CHUNK];
        // To the last page.
        for size in [CHUNK, 4096] {
            loop {
                match file.write(&chunk[..size]) {
                    Ok(_) => {}
                    Err(e) if e.kind() == ErrorKind::StorageFull => break,
                    Err(e) => bail!("filling {}: {e}", path.display()),
                }
            }
        }
        Ok(())
    }

    /// Makes room again.
    pub(super) fn free(&self) -> anyhow::Result<()> {
        let path = self.at.join(BALLAST);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                Err(e).with_context(|| format!("removing {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Replaces the mount by a copy of what is in it, that outlives the drill.
    pub(super) fn keep(self) -> anyhow::Result<()> {
        let copy = self.at.with_extension("kept");
        let from = self.at.to_str().context("the directory's name is not UTF-8")?.to_owned();
        let to = copy.to_str().context("the directory's name is not UTF-8")?.to_owned();
        self.free()?;
        run("cp", &["-a", "--sparse=always", &from, &to], None)?;
        drop(self);
        std::fs::remove_dir(&from).with_context(|| format!("replacing {from}"))?;
        std::fs::rename(&to, &from).with_context(|| format!("replacing {from}"))
    }

    /// Where it is.
    pub(super) fn at(&self) -> &Path {
        &self.at
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let path = self.at.to_string_lossy();
        if let Err(e) = run("umount", &[&path], None) {
            tracing::warn!(error = %format!("{e:#}"), "a small disk stays mounted");
        }
    }
}
