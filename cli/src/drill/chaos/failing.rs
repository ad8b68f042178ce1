//! Disks that fail for good and have others put in their place: file systems and raw devices, on loop devices.
//!
//! The kernel lets go of each of these once nobody uses it: they are gone with the drill, whatever way that ends.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

/// Several times what a datanode of the drill needs; what is not used costs nothing.
const SIZE: u64 = 2 << 30;

/// One disk of a datanode; unmounted and let go of when dropped.
#[derive(Debug)]
pub(super) struct FailingDisk {
    at: PathBuf,
    raw: bool,
    /// How many were there before it.
    number: u32,
    device: Device,
}

/// A loop device. It is told to go once nobody has it open, which this does.
#[derive(Debug)]
struct Device {
    image: PathBuf,
    path: String,
    _open: File,
}

impl Device {
    fn make(image: PathBuf) -> anyhow::Result<Self> {
        let made = File::create(&image).and_then(|made| made.set_len(SIZE));
        made.with_context(|| format!("making {}", image.display()))?;
        let path = run(Command::new("losetup").args(["--find", "--show"]).arg(&image))?;
        let path = path.trim().to_owned();
        let open = File::open(&path).with_context(|| format!("opening {path}"));
        // Also if that failed: then at once.
        run(Command::new("losetup").arg("--detach").arg(&path))?;
        Ok(Self { image, path, _open: open? })
    }
}

impl FailingDisk {
    /// Puts one at `at`: a file system that is mounted there, or a link to a device.
    ///
    /// # Errors
    /// If this is not root, or there are no loop devices here.
    pub(super) fn make(at: PathBuf, raw: bool) -> anyhow::Result<Self> {
        let device = Device::make(image(&at, 0))?;
        let disk = Self { at, raw, number: 0, device };
        if !raw {
            fs::create_dir_all(&disk.at).context("making a mount point")?;
        }
        disk.show()?;
        Ok(disk)
    }

    /// Where it is.
    pub(super) fn at(&self) -> &Path {
        &self.at
    }

    /// Whether it is a raw device.
    pub(super) fn is_raw(&self) -> bool {
        self.raw
    }

    fn show(&self) -> anyhow::Result<()> {
        if self.raw {
            return std::os::unix::fs::symlink(&self.device.path, &self.at).context("linking");
        }
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&self.device.path))?;
        run(Command::new("mount").arg(&self.device.path).arg(&self.at)).map(drop)
    }

    fn hide(&self) -> anyhow::Result<()> {
        if self.raw {
            return fs::remove_file(&self.at).context("unlinking a device");
        }
        run(Command::new("umount").arg(&self.at)).map(drop)
    }

    /// Has it fail for good: it has no sectors any more, and answers EIO to whatever has to get to it.
    pub(super) fn fail(&self) -> anyhow::Result<()> {
        let image = &self.device.image;
        let cut = File::options().write(true).open(image).and_then(|file| file.set_len(0));
        cut.with_context(|| format!("cutting {}", image.display()))?;
        run(Command::new("losetup").arg("--set-capacity").arg(&self.device.path)).map(drop)
    }

    /// Puts an empty one in its place. To be called while no process uses it.
    pub(super) fn replace(&mut self) -> anyhow::Result<()> {
        self.hide()?;
        self.number += 1;
        let old = std::mem::replace(&mut self.device, Device::make(image(&self.at, self.number))?);
        fs::remove_file(&old.image).with_context(|| format!("removing {}", old.image.display()))?;
        self.show()
    }
}

impl Drop for FailingDisk {
    fn drop(&mut self) {
        if let Err(error) = self.hide() {
            tracing::warn!(error = %format!("{error:#}"), "a disk of the drill stays");
        }
    }
}

fn image(at: &Path, number: u32) -> PathBuf {
    let mut name = at.to_owned().into_os_string();
    name.push(format!(".image-{number}"));
    name.into()
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        bail!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Why there can be no such disks here, if so.
pub(super) fn obstacle(dir: &Path) -> Option<String> {
    let tried = FailingDisk::make(dir.join("probe-disk"), false);
    let image = image(&dir.join("probe-disk"), 0);
    let why = tried.err().map(|error| format!("{error:#}"));
    // Neither has to be there if it could not be made.
    let _image = fs::remove_file(image);
    let _mount_point = fs::remove_dir(dir.join("probe-disk"));
    why
}
