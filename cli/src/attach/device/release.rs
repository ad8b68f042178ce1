//! `sbkctl detach` of a device: from a process that does not serve it.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use sbk_engine::types::VolumeId;
use tokio::process::{Child, Command};

use super::blocking;
use super::hold::Hold;
use super::kernel::{self, Kernel};
use crate::attach::record::{self, Record};
use crate::wait::TimedOut;

/// Makes a device's page cache durable and disconnects the device, of which nobody else has exclusive use, and
/// waits for the process that serves it to end.
///
/// # Errors
/// If it is mounted or in exclusive use otherwise, and then nothing is changed; if something could not be
/// flushed; if it takes longer than `limit`.
pub(in crate::attach) async fn detach(
    dir: &Path,
    record: &Record,
    force: bool,
    limit: Duration,
) -> anyhow::Result<()> {
    let until = Instant::now() + limit;
    let id: VolumeId = record.id.parse().context("the record's volume")?;
    let hold = Hold::read(dir, id)?.context("there is no record of the device")?;
    let name = record.volume.clone();
    let released = blocking(move || {
        let Some(index) = hold.device()? else {
            bail!("the kernel has no device of volume '{name}' any more");
        };
        if force {
            return Ok(Kernel::open()?.disconnect(index)?);
        }
        let path = kernel::path_of(index);
        let shown = path.display();
        let Some(device) = kernel::open_alone(&path).with_context(|| format!("opening {shown}"))?
        else {
            bail!(
                "{shown} is in use: unmount it first, or end what has it for itself (LVM, md, swap); \
                 --force fails what is asked of it from here on"
            );
        };
        // It is disconnected in any case: asked to end, it ends, and says what was lost.
        let flushed = device.sync_all();
        Kernel::open()?.disconnect(index)?;
        drop(device);
        flushed.with_context(|| {
            format!("{shown} is disconnected, but not all that was written to it could be flushed")
        })
    });
    match tokio::time::timeout(limit, released).await {
        Ok(released) => released?,
        Err(_) => {
            let seen = "it is not flushed yet".to_owned();
            return Err(TimedOut { what: "the device".to_owned(), seen, waited: limit }.into());
        }
    }
    record::await_end(dir, record, until.saturating_duration_since(Instant::now())).await
}

/// Ends a device whose process is gone. What waits for one fails.
///
/// # Errors
/// Without `force`: what is lost by it is for its user to decide.
pub(in crate::attach) async fn abandon(dir: &Path, hold: Hold, force: bool) -> anyhow::Result<()> {
    let _claim = record::claim(dir, hold.id).await?;
    let at = dir.to_owned();
    blocking(move || {
        if let Some(index) = hold.device()? {
            if !force {
                bail!(
                    "the process that served /dev/nbd{index} is gone, and what is asked of it waits: `sbkctl \
                     attach {0} --device /dev/nbd{index}` goes on with it; `sbkctl detach {0} --force` \
                     fails it",
                    hold.volume
                );
            }
            Kernel::open()?.disconnect(index)?;
        }
        hold.remove(&at)
    })
    .await
}

/// A `sbkctl detach` of this process's own device.
pub(super) struct Detaching(Child);

impl Detaching {
    /// # Errors
    /// If no process can be started.
    pub(super) fn begin(volume: &str, dir: &Path, limit: Duration) -> anyhow::Result<Self> {
        let exe = std::env::current_exe().context("this program's path")?;
        let mut command = Command::new(exe);
        command.args(["detach", volume, "--timeout", &limit.as_secs().to_string()]);
        command.arg("--run-dir").arg(dir);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        Ok(Self(command.spawn().context("starting `sbkctl detach`")?))
    }

    /// Waits until it failed; why.
    pub(super) async fn fails(&mut self) -> String {
        use tokio::io::AsyncReadExt as _;
        let mut said = String::new();
        if let Some(errors) = &mut self.0.stderr {
            // Without it the exit code says the same in fewer words.
            let _cut = errors.read_to_string(&mut said).await;
        }
        match self.0.wait().await {
            // The kernel says goodbye, or has.
            Ok(status) if status.success() => std::future::pending().await,
            Ok(status) => {
                let line = said.trim().lines().last().unwrap_or_default();
                let line = line.strip_prefix("sbkctl: ").unwrap_or(line);
                if line.is_empty() { format!("`sbkctl detach`: {status}") } else { line.to_owned() }
            }
            Err(error) => format!("waiting for `sbkctl detach`: {error}"),
        }
    }
}
