//! The kernel's nbd driver: asked by generic netlink, seen in `/dev`, `/proc` and `/sys`.
//!
//! All of it blocks, if only for a moment: not for a task of the runtime.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::net::{bind, recvfrom, sendto, socket_with};
use rustix::thread::{CapabilitySet, capabilities};

use super::netlink::{Answer, Ask, CONTROLLER, Connect, NBD, answers, connected, family, status};
use crate::error::Usage;

/// Of the kernel's devices of this kind (Documentation/admin-guide/devices.txt).
const NBD_MAJOR: u32 = 43;
/// The kernel answers before the call that asks is over; this is only against a wait without an end.
const ANSWER: Duration = Duration::from_secs(10);
/// Longer than any answer here.
const DATAGRAM: usize = 64 << 10;
/// Milliseconds after which the kernel looks whether a request's connection was replaced, and if so sends
/// it again. Its own value is 30 s, for which a file system would stand still after each restart.
const LOOK_AGAIN_MS: u32 = 5000;

/// The way to the driver.
#[derive(Debug)]
pub(super) struct Kernel {
    socket: OwnedFd,
    family: u16,
    sequence: u32,
}

impl Kernel {
    /// # Errors
    /// If there is no driver, or it may not be asked.
    pub(super) fn open() -> anyhow::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            Some(netlink::GENERIC),
        );
        let socket = socket.context("a socket to the kernel (netlink)")?;
        bind(&socket, &SocketAddrNetlink::new(0, 0)).context("a socket to the kernel (netlink)")?;
        set_socket_timeout(&socket, Timeout::Recv, Some(ANSWER)).context("a limit on answers")?;
        let mut kernel = Self { socket, family: CONTROLLER, sequence: 0 };
        kernel.family = match kernel.ask(&Ask::Family(NBD), family) {
            Ok(told) => told.context("the kernel told no number of its nbd driver")?,
            Err(Asked::Refused(Errno::NOENT)) => bail!(
                "this kernel has no nbd driver at hand: load it with `modprobe nbd` (in a container: on the \
                 host, whose network namespace it needs), or attach without --device"
            ),
            Err(error) => return Err(error).context("asking the kernel for its nbd driver"),
        };
        let may = capabilities(None).context("looking at the process's capabilities")?.effective;
        if !may.contains(CapabilitySet::SYS_ADMIN) {
            bail!("only root (CAP_SYS_ADMIN) may connect a kernel device");
        }
        Ok(kernel)
    }

    /// Makes a device of a socket's end; which it is.
    pub(super) fn connect(
        &mut self,
        connect: Connect<'_>,
        socket: &UnixStream,
    ) -> anyhow::Result<u32> {
        let index = connect.index;
        let ask = Ask::Connect(Connect { socket: descriptor(socket), ..connect });
        match self.ask(&ask, connected) {
            Ok(told) => told.context("the kernel did not tell which device it connected"),
            Err(Asked::Refused(Errno::BUSY)) => Err(in_use(index)),
            Err(Asked::Refused(Errno::PERM)) => {
                bail!("only root of the host (CAP_SYS_ADMIN) may connect a kernel device")
            }
            Err(error) => Err(error).context("connecting the kernel's device (see `dmesg`)"),
        }
    }

    /// Gives a device another socket. It takes it only if the one that it has is dead: look whether
    /// [`is_held`] before anything is expected of it.
    pub(super) fn reconfigure(
        &mut self,
        index: u32,
        socket: &UnixStream,
        dead_conn_timeout: u64,
        identifier: &str,
    ) -> Result<(), Asked> {
        let socket = descriptor(socket);
        self.ask(&Ask::Reconfigure { index, socket, dead_conn_timeout, identifier }, |_| Ok(()))
            .map(drop)
    }

    /// Tells a device that it has another size.
    pub(super) fn resize(&mut self, index: u32, bytes: u64, identifier: &str) -> Result<(), Asked> {
        self.ask(&Ask::Resize { index, bytes, identifier }, |_| Ok(())).map(drop)
    }

    /// Ends a device's connection. What waits fails.
    pub(super) fn disconnect(&mut self, index: u32) -> Result<(), Asked> {
        self.ask(&Ask::Disconnect { index }, |_| Ok(())).map(drop)
    }

    /// Refuses a device that is connected or open already.
    pub(super) fn check_unused(&mut self, index: u32) -> anyhow::Result<()> {
        let told = self.ask(&Ask::Status { index }, |told| status(told, index));
        match told.with_context(|| format!("asking for the state of /dev/nbd{index}"))?.flatten() {
            Some(true) => Err(in_use(Some(index))),
            Some(false) | None => Ok(()),
        }
    }

    /// Sends a message and reads its answers; what `read` makes of the first that tells something.
    fn ask<T>(
        &mut self,
        ask: &Ask<'_>,
        read: impl Fn(&[u8]) -> Result<T, super::netlink::Malformed>,
    ) -> Result<Option<T>, Asked> {
        self.sequence += 1;
        let message = ask.encode(self.family, self.sequence);
        let kernel = SocketAddrNetlink::new(0, 0);
        sendto(&self.socket, &message, SendFlags::empty(), &kernel).map_err(Asked::Failed)?;
        let mut told = None;
        loop {
            let mut buffer = vec![0; DATAGRAM];
            let (_, length, from) =
                recvfrom(&self.socket, &mut buffer[..], RecvFlags::TRUNC).map_err(Asked::Failed)?;
            // Only the kernel has this address.
            let from = from.and_then(|from| SocketAddrNetlink::try_from(from).ok());
            if from.is_none_or(|from| from.pid() != 0) {
                continue;
            }
            let datagram = buffer.get(..length);
            let datagram = datagram.ok_or(super::netlink::Malformed("it is too long"))?;
            for answer in answers(datagram, self.sequence)? {
                match answer {
                    Answer::Told(attributes) if told.is_none() => told = Some(read(attributes)?),
                    Answer::Told(_) => {}
                    Answer::End(ended) => return ended.map(|()| told).map_err(Asked::Refused),
                }
            }
        }
    }
}

/// Why the kernel did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Asked {
    /// It could not be asked.
    #[error("no answer of the kernel: {0}")]
    Failed(#[source] Errno),
    /// It would not.
    #[error("the kernel refused: {0}")]
    Refused(#[source] Errno),
    /// It said what can't be read.
    #[error(transparent)]
    Malformed(#[from] super::netlink::Malformed),
}

fn in_use(index: Option<u32>) -> anyhow::Error {
    match index {
        Some(index) => anyhow::anyhow!(
            "/dev/nbd{index} is in use: `--device auto` takes a free one, and `nbd-client -d \
             /dev/nbd{index}` would end what it is used for"
        ),
        None => anyhow::anyhow!("the kernel found no free nbd device"),
    }
}

fn descriptor(socket: &UnixStream) -> u32 {
    // Of an open socket it is never negative.
    socket.as_raw_fd().cast_unsigned()
}

/// Whether somebody holds the other end of a socket.
pub(super) fn is_held(socket: &UnixStream) -> io::Result<bool> {
    let mut byte = [0; 1];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    match rustix::net::recv(socket, &mut byte[..], flags) {
        Ok((_, length)) => Ok(length > 0),
        Err(Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// The index of the device that a path names, which need not be there yet.
pub(super) fn index_of(path: &Path) -> anyhow::Result<u32> {
    let shown = path.display();
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    match real.metadata() {
        Ok(meta) if !meta.file_type().is_block_device() => {
            return Err(Usage(format!("{shown} is no block device")).into());
        }
        Ok(meta) if rustix::fs::major(meta.rdev()) != NBD_MAJOR => {
            return Err(Usage(format!("{shown} is no nbd device")).into());
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("looking at {shown}")),
    }
    let in_dev = real.parent() == Some(Path::new("/dev"));
    let number = real.file_name().and_then(|name| name.to_str()?.strip_prefix("nbd"));
    let number = number.filter(|n| in_dev && n.bytes().all(|digit| digit.is_ascii_digit()));
    number.and_then(|number| number.parse().ok()).ok_or_else(|| {
        Usage(format!("{shown} is not the name of an nbd device, such as /dev/nbd0, or 'auto'"))
            .into()
    })
}

/// A device's path.
pub(super) fn path_of(index: u32) -> PathBuf {
    format!("/dev/nbd{index}").into()
}

/// The device that was connected with an identifier, if there is one. Kernels before 5.14 don't tell.
pub(super) fn find(identifier: &str) -> io::Result<Option<u32>> {
    for entry in std::fs::read_dir("/sys/block")? {
        let entry = entry?;
        let name = entry.file_name();
        let index = name.to_str().and_then(|name| name.strip_prefix("nbd")?.parse().ok());
        let Some(index) = index else { continue };
        // Devices come and go.
        let told = std::fs::read_to_string(entry.path().join("backend")).unwrap_or_default();
        if told.trim_end_matches('\n') == identifier {
            return Ok(Some(index));
        }
    }
    Ok(None)
}

/// Has requests that a dead connection left behind sent again soon after there is another one.
pub(super) fn look_again_soon(index: u32) -> io::Result<()> {
    let path = format!("/sys/block/nbd{index}/queue/io_timeout");
    std::fs::write(path, LOOK_AGAIN_MS.to_string())
}

/// Opens a device so that nobody mounts it, and no other exclusive user gets it, until it is closed; `None`
/// if it has such a user. Waits while the kernel looks for partitions, and udev for what the device holds, which
/// leaves it alone then (systemd.io/BLOCK_DEVICE_LOCKING). [It was disconnected under udev's reads: the kernel's
/// log had I/O errors of a device that was ended in order.]
pub(super) fn open_alone(path: &Path) -> io::Result<Option<File>> {
    let flags = OFlags::EXCL.bits().cast_signed();
    match OpenOptions::new().read(true).custom_flags(flags).open(path) {
        Ok(file) => {
            flock(&file, FlockOperation::LockExclusive)?;
            Ok(Some(file))
        }
        Err(error) if error.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_known_by_its_name_and_kind() {
        for (path, index) in [("/dev/nbd0", 0), ("/dev/nbd17", 17), ("/dev/nbd4095", 4095)] {
            assert_eq!(index_of(Path::new(path)).expect("is one"), index);
        }
        for (path, why) in [
            ("/dev/null", "no block device"),
            ("/dev", "no block device"),
            ("/dev/nbd0p1", "not the name"),
            ("/dev/nbd", "not the name"),
            ("/dev/nbd-1", "not the name"),
            ("/dev/nbd+1", "not the name"),
            ("/dev/nbd99999999999", "not the name"),
            ("/dev/sda", "nbd device"),
            ("nbd0", "not the name"),
            ("/tmp/nbd0", "not the name"),
        ] {
            let error = index_of(Path::new(path)).expect_err("is none");
            assert!(error.is::<Usage>() && error.to_string().contains(why), "{path}: {error}");
        }
    }

    #[test]
    fn the_other_end_is_held_until_it_is_closed() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        assert!(is_held(&ours).expect("is asked"));
        let copy = theirs.try_clone().expect("a copy");
        io::Write::write_all(&mut &theirs, b"x").expect("writes");
        drop(theirs);
        assert!(is_held(&ours).expect("is asked"), "there are bytes, which stay");
        io::Read::read_exact(&mut &ours, &mut [0]).expect("reads");
        assert!(is_held(&ours).expect("is asked"), "the copy holds it");
        drop(copy);
        assert!(!is_held(&ours).expect("is asked"));
    }
}
