//! `sbkctl attach | detach`: a volume at a socket of this machine, or as a [block device](device) of it.
//!
//! The process is a frontend like those of the datanodes, without being one: it finds the primary from
//! the masters, holds what is in flight while the primary changes, and needs no master while nothing
//! changes. So the volume's user depends on no datanode in particular.

mod device;
mod record;
mod socket;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use sbk_datanode::frontend::Remote;
use sbk_datanode::frontend::nbd::{self, AtStop};
use sbk_engine::forward::Params;
use sbk_engine::types::VolumeId;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use record::Record;

use crate::args::seconds;
use crate::commands::Context;
use crate::error::Usage;
use crate::wait::TimedOut;
use socket::Place;

/// How long the masters may take to tell of the volume, once one of them answered.
const HEARD: Duration = Duration::from_secs(10);
/// How long the primary may take to learn that the attachment is over, once nothing is under way.
const LEAVE: Duration = Duration::from_secs(2);

/// `sbkctl attach`
#[derive(Clone, Debug, Args)]
pub struct AttachArgs {
    /// Name or UUID
    volume: String,
    /// Serve NBD at this unix socket [default: one in the run directory]
    #[arg(long, value_name = "PATH", conflicts_with_all = ["listen", "device"])]
    socket: Option<PathBuf>,
    /// Serve NBD at this loopback address; port 0 is a free one
    #[arg(long, value_name = "ADDR", conflicts_with = "device")]
    listen: Option<SocketAddr>,
    /// Make it a block device of this machine's kernel: /dev/nbdN, or `auto` for a free one. It outlives
    /// this process, until `sbkctl detach`: started again, the command goes on with it. For root
    #[arg(long, value_name = "PATH", conflicts_with = "shared")]
    device: Option<device::Wanted>,
    /// One client at a time, which has the volume to itself: all attachments of before end when it
    /// comes. This is the default
    #[arg(long, conflicts_with = "shared")]
    exclusive: bool,
    /// Any number of clients, here and elsewhere
    #[arg(long)]
    shared: bool,
    /// Seconds after which a request that no primary has answered fails; 0: never, it waits for as
    /// long as it takes. With --device also how long requests wait for this command to be started again
    #[arg(long, value_name = "SECONDS", default_value = "120", value_parser = seconds)]
    io_timeout: Duration,
    /// How long what is under way may take at the end, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    drain: Duration,
    /// Where attachments of this machine are noted
    #[command(flatten)]
    run_dir: RunDir,
}

/// `sbkctl detach`
#[derive(Clone, Debug, Args)]
pub struct DetachArgs {
    /// Name or UUID
    volume: String,
    /// How long it may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    timeout: Duration,
    /// End a device although it is in use, or its process is gone: what is asked of it fails from here on
    #[arg(long)]
    force: bool,
    /// Where attachments of this machine are noted
    #[command(flatten)]
    run_dir: RunDir,
}

/// Where this machine's attachments are noted.
#[derive(Clone, Debug, Args)]
pub struct RunDir {
    /// Directory of sockets and records, for this user alone
    /// [default: sbk below $XDG_RUNTIME_DIR, or /run/sbk-attach for root]
    #[arg(long, value_name = "DIR", env = "SBK_RUN_DIR")]
    run_dir: Option<PathBuf>,
}

/// Serves a volume until told to stop, or until it is deleted.
///
/// # Errors
/// If the volume can't be found or is attached by this machine already; if what was acknowledged could
/// not be flushed in the end.
pub async fn attach(context: &Context, args: AttachArgs) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let found = async {
        let info = context.masters.get_volume(&args.volume).await?;
        let id: [u8; 16] = info.id.as_ref().try_into().context("the masters told no UUID")?;
        anyhow::Ok((info.name, VolumeId(Uuid::from_bytes(id))))
    };
    let (name, volume) = tokio::select! {
        found = found => found?,
        () = signals.next() => return Ok(()),
    };
    let dir = args.run_dir.open()?;
    let exclusive = !args.shared;
    let claim = record::claim(&dir, volume).await?;
    let at = match &args.device {
        Some(wanted) => At::Device(device::prepare(wanted, &dir, &name, volume).await?),
        None => {
            device::refuse_waiting(&dir, volume)?;
            let place = match (&args.listen, &args.socket) {
                (Some(addr), _) => Place::Tcp(*addr),
                (None, Some(path)) => Place::Unix(path.clone()),
                (None, None) => Place::Unix(dir.join(format!("{volume}.sock"))),
            };
            At::Socket(socket::bind(place).await?)
        }
    };
    let remote = Remote::start(
        context.masters.clone(),
        volume,
        exclusive,
        Params::giving_up_after(args.io_timeout),
    );
    tokio::select! {
        heard = tokio::time::timeout(HEARD, remote.heard()) => heard.map_err(|_| TimedOut {
            what: "the masters to tell of the volume".to_owned(),
            seen: "nothing".to_owned(),
            waited: HEARD,
        })?,
        () = signals.next() => return Ok(()),
    }
    let socket = match at {
        At::Socket(socket) => socket,
        At::Device(ready) => {
            let limits = device::Limits { drain: args.drain, io_timeout: args.io_timeout };
            let output = context.output;
            return device::serve(ready, &remote, &claim, &mut signals, limits, output).await;
        }
    };
    let (id, pid, uri) = (volume.to_string(), std::process::id(), socket.place.uri(&name));
    let record = Record { volume: name, id, pid, uri, exclusive, device: None };
    claim.write(&record)?;
    let stop = CancellationToken::new();
    let serving =
        nbd::serve(remote.frontends(), socket.listener, None, stop.clone(), AtStop::Flush);
    let serving = tokio::spawn(serving);
    context.output.show(&record, Record::words)?;
    let deleted = tokio::select! {
        () = signals.next() => false,
        () = remote.deleted() => true,
    };
    stop.cancel();
    let ended = tokio::select! {
        ended = tokio::time::timeout(args.drain, serving) => match ended {
            Ok(served) => served.unwrap_or_else(|error| Err(error.to_string())),
            Err(_) => Err(format!(
                "what was under way took longer than {} s; what was not flushed may be lost",
                args.drain.as_secs()
            )),
        },
        () = signals.next() => Err("ended while requests were under way".to_owned()),
    };
    // The primary is to know that the attachment is over before this says so. Where there is none now, the
    // next attachment or an operator ends it.
    let _left = tokio::time::timeout(LEAVE, remote.frontends().ended()).await;
    claim.ended(&ended)?;
    if deleted {
        bail!("volume '{}' was deleted", record.volume);
    }
    ended.map_err(anyhow::Error::msg)
}

/// Where the volume is served.
enum At {
    Socket(socket::Socket),
    Device(device::Ready),
}

/// Prepares the process for what it is to do, before it has a second thread.
///
/// A kernel that is short of memory writes to its devices; whoever serves them must not wait for that when
/// it asks for memory itself (prctl(2), PR_SET_IO_FLUSHER).
pub fn prepare(args: &AttachArgs) {
    if args.device.is_some()
        && let Err(error) = rustix::process::configure_io_flusher_behavior(true)
    {
        tracing::debug!(%error, "memory is not given without waiting for writes");
    }
}

/// Ends an attachment of this machine, all that it acknowledged made durable.
///
/// # Errors
/// If there is none, or the flush did not succeed.
pub async fn detach(output: crate::output::Output, args: DetachArgs) -> anyhow::Result<()> {
    let dir = args.run_dir.open()?;
    let volume = &args.volume;
    let Some(record) = record::find(&dir, volume)? else {
        let Some(hold) = device::find(&dir, volume)? else {
            bail!("volume '{volume}' is not attached on this machine (see --run-dir)");
        };
        device::abandon(&dir, hold, args.force).await?;
        return output.note(&format!(
            "Volume '{volume}' has no device here any more; what was asked of it has failed."
        ));
    };
    match (&record.device, args.force) {
        (None, true) => return Err(Usage("--force is for devices".to_owned()).into()),
        (None, false) => record::end(&dir, &record, args.timeout).await?,
        (Some(_), force) => device::detach(&dir, &record, force, args.timeout).await?,
    }
    let said = match args.force {
        true => "what was asked of it has failed",
        false => "all that was acknowledged is durable",
    };
    output.show(&record, |record| format!("Volume '{}' is detached; {said}.\n", record.volume))
}

impl RunDir {
    /// The directory, made if need be.
    fn open(&self) -> anyhow::Result<PathBuf> {
        record::run_dir(self.run_dir.clone())
    }
}

/// The signals that end the process in order.
struct Signals {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let on = |kind| signal(kind).context("waiting for signals");
        Ok(Self { term: on(SignalKind::terminate())?, int: on(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}
