//! `sbkctl attach --device`: the volume as a block device of this machine's kernel.
//!
//! The kernel's nbd driver gets one end of a pair of sockets, and this process serves the other. When the
//! process ends, however it does, the kernel keeps the device and what was asked of it, and another process
//! [goes on](Hold): a file system on it sees a pause. Who gives up when:
//!
//! 1. while the process lives, only the process does: the kernel has no limit of its own;
//! 2. what was in flight when it died waits for the next process, or for a disconnect;
//! 3. what is asked for while none is there fails after the same time as a request for which no primary is
//!    there.
//!
//! The process never opens its device. [A thread that waits for a request of its own can't be killed, and with
//! it stay the sockets that the kernel would have to see closed.] That is [for another](release).

mod hold;
mod kernel;
mod netlink;
mod release;

use std::os::unix::net::UnixStream as Pair;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::io::Errno;
use sbk_datanode::frontend::nbd::{Direct, Left, Sizes};
use sbk_datanode::frontend::{Frontends, Remote};
use sbk_engine::types::{BLOCK_SIZE, VolumeId};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::record::{Claim, Record};
use super::{LEAVE, Signals};
use crate::output::Output;
use crate::wait::{self, Look};
use hold::Hold;
use kernel::{Asked, Kernel};
use netlink::Connect;

use release::Detaching;
pub(super) use release::{abandon, detach};

/// For ever, in seconds: a hundred years.
const FOR_EVER: u64 = 100 * 365 * 86_400;
/// How long the kernel may take to see that the socket of a process that was killed is dead.
const SEEN_DEAD: Duration = Duration::from_secs(30);

/// Which device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Auto,
    Path(PathBuf),
}

impl FromStr for Wanted {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(if text == "auto" { Self::Auto } else { Self::Path(text.into()) })
    }
}

impl Wanted {
    fn index(&self) -> anyhow::Result<Option<u32>> {
        match self {
            Self::Auto => Ok(None),
            Self::Path(path) => kernel::index_of(path).map(Some),
        }
    }
}

/// What the process allows itself and the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// For what is under way at the end.
    pub(super) drain: Duration,
    /// For a request that nobody answers; zero: none.
    pub(super) io_timeout: Duration,
}

impl Limits {
    /// Seconds for which the kernel waits for another process.
    fn dead_conn_timeout(self) -> u64 {
        match self.io_timeout.is_zero() {
            true => FOR_EVER,
            // The kernel takes 0 for "not at all".
            false => self.io_timeout.as_millis().div_ceil(1000).clamp(1, FOR_EVER.into()) as u64,
        }
    }
}

/// A device that may be made, or gone on with.
pub(super) struct Ready {
    kernel: Kernel,
    hold: Hold,
    /// The one that the kernel has already.
    goes_on: Option<u32>,
    wanted: Option<u32>,
}

/// The device of a volume of that name or UUID that was not ended, if only in the records.
pub(super) fn find(dir: &Path, volume: &str) -> anyhow::Result<Option<Hold>> {
    Hold::find(dir, volume)
}

/// Refuses to serve a volume in another way while the kernel waits for a process with a device of it: its user's
/// attachment would end.
pub(super) fn refuse_waiting(dir: &Path, id: VolumeId) -> anyhow::Result<()> {
    let Some(hold) = Hold::read(dir, id)? else { return Ok(()) };
    match hold.device()? {
        None => hold.remove(dir),
        Some(index) => bail!(
            "/dev/nbd{index} of this volume waits for a process: `sbkctl attach {0} --device /dev/nbd{index}` \
             goes on with it, `sbkctl detach {0} --force` ends it",
            hold.volume
        ),
    }
}

/// Looks whether the device can be had, before anything is taken from others.
///
/// # Errors
/// If there is no driver or no permission, or the device is another's.
pub(super) async fn prepare(
    wanted: &Wanted,
    dir: &Path,
    name: &str,
    id: VolumeId,
) -> anyhow::Result<Ready> {
    let wanted = wanted.index()?;
    let (dir, name) = (dir.to_owned(), name.to_owned());
    blocking(move || {
        let mut kernel = Kernel::open()?;
        let old = Hold::read(&dir, id)?;
        let goes_on = old.as_ref().map(Hold::device).transpose()?.flatten();
        let hold = match (&old, goes_on) {
            (Some(old), Some(index)) => {
                if wanted.is_some_and(|wanted| wanted != index) {
                    bail!(
                        "/dev/nbd{index} of this volume waits for a process: name that one, or end it with \
                         `sbkctl detach {name} --force`"
                    );
                }
                old.next()
            }
            _ => {
                wanted.map_or(Ok(()), |wanted| kernel.check_unused(wanted))?;
                Hold::new(&name, id)
            }
        };
        Ok(Ready { kernel, hold, goes_on, wanted })
    })
    .await
}

/// Serves the volume to the kernel until the device is disconnected, or the process is told to stop.
///
/// # Errors
/// If the volume or the device can't be had, or the process ends while the kernel keeps the device.
pub(super) async fn serve(
    ready: Ready,
    remote: &Remote,
    claim: &Claim,
    signals: &mut Signals,
    limits: Limits,
    output: Output,
) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let attaching = attach(ready, remote.frontends(), claim.dir(), signals, stop.clone());
    let Some((ready, direct)) = attaching.await? else { return Ok(()) };
    let (hold, fresh) = (ready.hold.clone(), ready.goes_on.is_none());
    let connecting = connect(ready, direct, claim.dir(), limits);
    let Connected { index, mut direct, socket } = connecting.await?;
    let path = kernel::path_of(index);
    let record = Record {
        volume: hold.volume.clone(),
        id: hold.id.to_string(),
        pid: std::process::id(),
        uri: path.display().to_string(),
        exclusive: true,
        device: Some(path),
    };
    claim.write(&record)?;
    // One that was gone on with may have missed a resize while no process was there.
    let told = if fresh { direct.bytes() } else { 0 };
    let following = follow_size(direct.sizes(told), index, hold.identifier.clone());
    let following = tokio::spawn(following);
    let mut serving = tokio::spawn(async move { (direct.serve(socket).await, direct) });
    output.show(&record, Record::words)?;
    let (served, why) = tokio::select! {
        served = &mut serving => (Ok(served), None),
        () = remote.deleted() => {
            // There is nothing that its user could wait for.
            blocking(move || Ok(Kernel::open()?.disconnect(index)?)).await?;
            let why = format!("volume '{}' was deleted", hold.volume);
            (tokio::time::timeout(limits.drain, serving).await, Some(why))
        }
        why = told_to_end(&hold, claim.dir(), signals, limits.drain) => {
            stop.cancel();
            (tokio::time::timeout(limits.drain, serving).await, Some(why))
        }
    };
    following.abort();
    let (served, direct) = match served {
        Ok(Ok((served, direct))) => (served.map_err(|error| error.to_string()), Some(direct)),
        Ok(Err(error)) => (Err(format!("its task ended: {error}")), None),
        Err(_) => (Err(format!("not all was answered within {} s", limits.drain.as_secs())), None),
    };
    let kept = served != Ok(Left::InOrder) && hold.device()?.is_some();
    let mut said: Vec<String> = why.into_iter().collect();
    match served {
        Ok(Left::InOrder | Left::Stopped) => {}
        Ok(Left::Silently) => said.push("the kernel closed the connection".to_owned()),
        Err(error) => said.push(error),
    }
    if kept {
        said.push(format!(
            "what is asked of /dev/nbd{index} waits for `sbkctl attach {} --device /dev/nbd{index}`",
            hold.volume
        ));
    } else {
        let removed = hold.remove(claim.dir());
        if let Some(direct) = direct {
            leave(direct).await;
        }
        removed?;
    }
    let ended = if said.is_empty() { Ok(()) } else { Err(said.join("; ")) };
    claim.ended(&ended)?;
    ended.map_err(anyhow::Error::msg)
}

/// Attaches the volume for the device; `None` if told to end before.
async fn attach(
    ready: Ready,
    frontends: Frontends,
    dir: &Path,
    signals: &mut Signals,
    stop: CancellationToken,
) -> anyhow::Result<Option<(Ready, Direct)>> {
    let fresh = ready.goes_on.is_none();
    let Ready { hold, goes_on, .. } = &ready;
    hold.write(dir)?;
    let mut attaching =
        Box::pin(Direct::attach(frontends, hold.id, hold.session, hold.follows, stop));
    let attached = tokio::select! {
        attached = &mut attaching => attached,
        () = signals.next() => {
            match goes_on {
                // If it is attached already, it stays so, for the next process.
                Some(_) => std::mem::forget(attaching),
                None => hold.remove(dir)?,
            }
            return Ok(None);
        }
    };
    let name = &hold.volume;
    match (attached, goes_on) {
        (Ok((direct, stands)), _) => {
            let hold = Hold { stands: Some(stands), ..ready.hold };
            if let Err(why) = hold.write(dir) {
                if fresh {
                    leave(direct).await;
                }
                return Err(why);
            }
            Ok(Some((Ready { hold, ..ready }, direct)))
        }
        (Err(why), None) => {
            hold.remove(dir)?;
            bail!("volume '{name}' can't be attached: {why}")
        }
        (Err(why), Some(index)) => bail!(
            "/dev/nbd{index} can't be gone on with, for volume '{name}' may hold something else by now than \
             the device's user believes ({why}): unmount it, end it with `sbkctl detach {name} --force`, and \
             attach anew"
        ),
    }
}

/// A device that is served as soon as somebody serves its socket.
struct Connected {
    index: u32,
    direct: Direct,
    socket: UnixStream,
}

/// Makes the device, or gives it another socket.
async fn connect(
    ready: Ready,
    direct: Direct,
    dir: &Path,
    limits: Limits,
) -> anyhow::Result<Connected> {
    let Ready { mut kernel, hold, goes_on, wanted } = ready;
    let dead_conn_timeout = limits.dead_conn_timeout();
    let Some(index) = goes_on else {
        let (bytes, flags, identifier) = (direct.bytes(), direct.flags(), hold.identifier.clone());
        let made = blocking(move || {
            let (ours, theirs) = Pair::pair().context("a pair of sockets")?;
            let index = kernel.connect(
                Connect {
                    index: wanted,
                    bytes,
                    block_size: BLOCK_SIZE,
                    flags,
                    socket: 0,
                    dead_conn_timeout,
                    identifier: &identifier,
                },
                &theirs,
            )?;
            if kernel::find(&identifier).ok().flatten() != Some(index) {
                kernel.disconnect(index).context("disconnecting the device")?;
                bail!(
                    "this kernel does not tell whose its nbd devices are in /sys: it must be 5.14 or newer"
                );
            }
            look_again_soon(index);
            Ok((index, ours))
        });
        return match made.await {
            Ok((index, ours)) => Ok(Connected { index, direct, socket: stream(ours)? }),
            Err(why) => {
                let removed = hold.remove(dir);
                leave(direct).await;
                removed?;
                Err(why)
            }
        };
    };
    // The kernel takes a socket only in place of one that it has seen dead.
    let what = format!("the kernel to see that the process before has left /dev/nbd{index}");
    let (kernel, identifier) = (Arc::new(Mutex::new(kernel)), &hold.identifier);
    let again = wait::until(what, SEEN_DEAD, async || {
        let (kernel, identifier) = (Arc::clone(&kernel), identifier.clone());
        let given = blocking(move || {
            let mut kernel = kernel.lock().unwrap_or_else(PoisonError::into_inner);
            let (ours, theirs) = Pair::pair().context("a pair of sockets")?;
            kernel.reconfigure(index, &theirs, dead_conn_timeout, &identifier)?;
            drop(theirs);
            Ok(kernel::is_held(&ours).context("looking at the socket")?.then_some(ours))
        });
        Ok(match given.await? {
            Some(ours) => Look::Done(ours),
            None => Look::NotYet("it kept the old connection".to_owned()),
        })
    });
    match again.await {
        Ok(ours) => {
            blocking(move || {
                look_again_soon(index);
                Ok(())
            })
            .await?;
            Ok(Connected { index, direct, socket: stream(ours)? })
        }
        Err(why) => {
            if matches!(why.downcast_ref(), Some(Asked::Refused(Errno::INVAL))) {
                let removed = hold.remove(dir);
                leave(direct).await;
                removed?;
                bail!(
                    "/dev/nbd{index} was disconnected while it was in use: unmount it, and attach anew"
                );
            }
            Err(why.context(format!("going on with /dev/nbd{index}")))
        }
    }
}

async fn leave(direct: Direct) {
    // An attachment that no primary can be told to end is for whoever attaches next to end.
    let _late = tokio::time::timeout(LEAVE, direct.leave()).await;
}

fn stream(socket: Pair) -> anyhow::Result<UnixStream> {
    socket.set_nonblocking(true).context("the device's socket")?;
    UnixStream::from_std(socket).context("the device's socket")
}

fn look_again_soon(index: u32) {
    if let Err(error) = kernel::look_again_soon(index) {
        tracing::warn!(%error, "after a restart, requests may wait 30 s until the kernel sends them again");
    }
}

/// Tells the kernel of every other size that the volume gets. A kernel that refuses keeps the one that it knows
/// until the volume is attached anew; what it asks for beyond the volume's end fails.
async fn follow_size(mut sizes: Sizes, index: u32, identifier: String) {
    loop {
        let bytes = sizes.next().await;
        let identifier = identifier.clone();
        let told = blocking(move || Ok(Kernel::open()?.resize(index, bytes, &identifier)?)).await;
        match told {
            Ok(()) => tracing::info!("/dev/nbd{index} has {bytes} bytes"),
            Err(error) => tracing::warn!(
                "/dev/nbd{index} keeps its size, for the kernel was not told that the volume has {bytes} \
                 bytes: {error:#}"
            ),
        }
    }
}

/// Waits for a signal, and has the device released then. Returns why the process is to end without.
async fn told_to_end(hold: &Hold, dir: &Path, signals: &mut Signals, limit: Duration) -> String {
    signals.next().await;
    let mut releasing = match Detaching::begin(&hold.volume, dir, limit) {
        Ok(releasing) => releasing,
        Err(error) => return format!("{error:#}"),
    };
    tokio::select! {
        why = releasing.fails() => why,
        () = tokio::time::sleep(limit) => format!("it took longer than {} s", limit.as_secs()),
        () = signals.next() => "told to end at once".to_owned(),
    }
}

/// Does on a thread of its own what may wait for the kernel. Nobody waits for the thread when the process ends.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let (done, outcome) = oneshot::channel();
    let thread = std::thread::Builder::new().name("kernel".to_owned());
    // Who asked may have given up.
    thread.spawn(move || drop(done.send(work()))).context("starting a thread")?;
    outcome.await.context("a thread ended without a word")?
}
