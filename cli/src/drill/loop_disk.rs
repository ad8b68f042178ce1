//! Disks that can be made to fail: file systems on loop devices, which need root.
//!
//! A device fails by having no sectors any more: the file below is cut to nothing, and the kernel told to look
//! at its size again. From then on it answers EIO to whatever has to get to it, as one does that was pulled
//! out.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use tempfile::TempDir;

use crate::dev::cluster::data_dir;

/// An ext4 on a loop device, mounted; unmounted and detached when dropped.
#[derive(Debug)]
pub struct LoopDisk {
    file: PathBuf,
    device: String,
    mounted: PathBuf,
}

impl LoopDisk {
    /// Makes one of so many bytes, which takes what is written, with its file and its mount point in `dir`.
    ///
    /// # Errors
    /// If this is not root, or loop devices can't be used here.
    pub fn mount(dir: &Path, name: &str, bytes: u64) -> anyhow::Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("disks that can fail are mounted from files, which needs root");
        }
        let (file, mounted) = (dir.join(format!("{name}.image")), dir.join(name));
        let made = File::create(&file).and_then(|made| made.set_len(bytes));
        made.with_context(|| format!("making {}", file.display()))?;
        let device = run(Command::new("losetup").args(["--find", "--show"]).arg(&file))?;
        let disk = Self { file, device: device.trim().to_owned(), mounted };
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&disk.device))?;
        fs::create_dir(&disk.mounted).context("making a mount point")?;
        run(Command::new("mount").arg(&disk.device).arg(&disk.mounted))?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mounted
    }

    /// Fills it with a file, up to so many bytes that are left free.
    ///
    /// # Errors
    /// If less is free.
    pub fn fill(&self, left: u64) -> anyhow::Result<()> {
        let found = rustix::fs::statvfs(&self.mounted).context("looking at the free space")?;
        let free = found.f_bavail * found.f_frsize;
        let bytes = free.checked_sub(left).filter(|bytes| *bytes > 0);
        let bytes = bytes.with_context(|| format!("only {free} bytes are free"))?;
        let file = File::create(self.ballast()).context("making a file that fills a disk")?;
        let flags = rustix::fs::FallocateFlags::empty();
        rustix::fs::fallocate(&file, flags, 0, bytes).context("filling a disk")
    }

    /// Removes that file.
    ///
    /// # Errors
    /// If there is none.
    pub fn clear(&self) -> anyhow::Result<()> {
        fs::remove_file(self.ballast()).context("making room on a disk")
    }

    fn ballast(&self) -> PathBuf {
        self.mounted.join("ballast")
    }

    /// Has it fail for good.
    ///
    /// # Errors
    /// If the kernel does not take the device's new size.
    pub fn fail(&self) -> anyhow::Result<()> {
        let cut = File::options().write(true).open(&self.file).and_then(|file| file.set_len(0));
        cut.with_context(|| format!("cutting {}", self.file.display()))?;
        run(Command::new("losetup").arg("--set-capacity").arg(&self.device)).map(drop)
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        // It may not have come to a mount.
        let _mounted = run(Command::new("umount").arg(&self.mounted));
        if let Err(error) = run(Command::new("losetup").arg("--detach").arg(&self.device)) {
            eprintln!("{} stays: {error:#}", self.device);
        }
    }
}

/// The disks of a development cluster. To be dropped after the cluster, which uses them.
#[derive(Debug)]
pub struct LoopDisks {
    // Before the directory that they are in.
    disks: BTreeMap<(u64, usize), LoopDisk>,
    _dir: TempDir,
}

impl LoopDisks {
    /// Mounts so many of `bytes` each for each of so many datanodes, and has the data directories of a cluster in `cluster` lead
    /// to them.
    ///
    /// # Errors
    /// As [`LoopDisk::mount`].
    pub fn mount(
        cluster: &Path,
        datanodes: u64,
        of_each: usize,
        bytes: u64,
    ) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("sbk-disks-").tempdir();
        let dir = dir.context("creating a temporary directory")?;
        let mut disks = BTreeMap::new();
        for datanode in 1..=datanodes {
            for disk in 1..=of_each {
                let mounted = LoopDisk::mount(dir.path(), &format!("{datanode}-{disk}"), bytes)?;
                let link = data_dir(cluster, datanode, disk);
                std::os::unix::fs::symlink(mounted.path(), link).context("linking a disk")?;
                disks.insert((datanode, disk), mounted);
            }
        }
        Ok(Self { disks, _dir: dir })
    }

    /// Those of a datanode, which are numbered from 1, in their order.
    pub fn of(&self, datanode: u64) -> impl Iterator<Item = &LoopDisk> {
        self.disks.range((datanode, 0)..(datanode + 1, 0)).map(|(_, disk)| disk)
    }
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        bail!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
