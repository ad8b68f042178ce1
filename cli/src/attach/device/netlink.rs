//! Messages of generic netlink and of its family "nbd": the kernel's include/uapi/linux/netlink.h,
//! genetlink.h and nbd-netlink.h. All numbers are in the machine's own byte order.
//!
//! A message is a header (length, type, flags, sequence, port), then for generic netlink the command and
//! the version, then attributes: length, type, payload. Headers, attributes and messages begin at
//! multiples of four bytes; lengths don't count the padding behind.

use rustix::io::Errno;

/// The family that tells of families, and its version.
pub(super) const CONTROLLER: u16 = 0x10;
const CONTROLLER_VERSION: u8 = 1;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;

/// The family's name, and its version.
pub(super) const NBD: &str = "nbd";
const NBD_VERSION: u8 = 1;

const CONNECT: u8 = 1;
const DISCONNECT: u8 = 2;
const RECONFIGURE: u8 = 3;
const STATUS: u8 = 5;

const INDEX: u16 = 1;
const SIZE_BYTES: u16 = 2;
const BLOCK_SIZE_BYTES: u16 = 3;
const TIMEOUT: u16 = 4;
const SERVER_FLAGS: u16 = 5;
const SOCKETS: u16 = 7;
const DEAD_CONN_TIMEOUT: u16 = 8;
const DEVICE_LIST: u16 = 9;
const BACKEND_IDENTIFIER: u16 = 10;

const SOCK_ITEM: u16 = 1;
const SOCK_FD: u16 = 1;
const DEVICE_ITEM: u16 = 1;
const DEVICE_INDEX: u16 = 1;
const DEVICE_CONNECTED: u16 = 2;

const REQUEST_AND_ACK: u16 = 1 | 4;
const TYPE_ERROR: u16 = 2;
const FIRST_FAMILY: u16 = 0x10;
const HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;
const ATTRIBUTE_HEADER: usize = 4;
/// Of an attribute's type: what it is, without the flags "nested" and "big-endian".
const TYPE_MASK: u16 = 0x3fff;

/// An answer that is not what the protocol says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel's answer makes no sense: {0}")]
pub(super) struct Malformed(pub(super) &'static str);

/// What is asked of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ask<'a> {
    /// The number of a family.
    Family(&'a str),
    /// Make a device of a socket.
    Connect(Connect<'a>),
    /// Give the device of that index another socket in place of one that is dead.
    Reconfigure {
        index: u32,
        socket: u32,
        /// As in [`Connect`].
        dead_conn_timeout: u64,
        identifier: &'a str,
    },
    /// Tell the device of that index that it has another size.
    Resize { index: u32, bytes: u64, identifier: &'a str },
    /// End the device's connection; what waits fails.
    Disconnect { index: u32 },
    /// Whether the device is in use.
    Status { index: u32 },
}

/// What a device is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Connect<'a> {
    /// Which device; without it the kernel chooses a free one.
    pub(super) index: Option<u32>,
    pub(super) bytes: u64,
    pub(super) block_size: u64,
    /// The transmission flags of the server.
    pub(super) flags: u16,
    /// The descriptor of a connected socket, in this process.
    pub(super) socket: u32,
    /// Seconds for which requests wait for another socket when this one is dead.
    pub(super) dead_conn_timeout: u64,
    /// Who gives another socket must name it.
    pub(super) identifier: &'a str,
}

impl Ask<'_> {
    /// The whole message, to the family of number `family`.
    pub(super) fn encode(&self, family: u16, sequence: u32) -> Vec<u8> {
        let (command, version) = match self {
            Ask::Family(_) => (GET_FAMILY, CONTROLLER_VERSION),
            Ask::Connect(_) => (CONNECT, NBD_VERSION),
            Ask::Reconfigure { .. } | Ask::Resize { .. } => (RECONFIGURE, NBD_VERSION),
            Ask::Disconnect { .. } => (DISCONNECT, NBD_VERSION),
            Ask::Status { .. } => (STATUS, NBD_VERSION),
        };
        let mut out = vec![0; HEADER];
        out.extend([command, version, 0, 0]);
        match self {
            Ask::Family(name) => put(&mut out, FAMILY_NAME, &[name.as_bytes(), &[0]].concat()),
            Ask::Connect(connect) => connect.encode(&mut out),
            Ask::Reconfigure { index, socket, dead_conn_timeout, identifier } => {
                put(&mut out, INDEX, &index.to_ne_bytes());
                put(&mut out, DEAD_CONN_TIMEOUT, &dead_conn_timeout.to_ne_bytes());
                put(&mut out, SOCKETS, &sockets(*socket));
                put(&mut out, BACKEND_IDENTIFIER, identifier.as_bytes());
            }
            Ask::Resize { index, bytes, identifier } => {
                put(&mut out, INDEX, &index.to_ne_bytes());
                put(&mut out, SIZE_BYTES, &bytes.to_ne_bytes());
                put(&mut out, BACKEND_IDENTIFIER, identifier.as_bytes());
            }
            Ask::Disconnect { index } | Ask::Status { index } => {
                put(&mut out, INDEX, &index.to_ne_bytes());
            }
        }
        let length = out.len() as u32;
        out[..4].copy_from_slice(&length.to_ne_bytes());
        out[4..6].copy_from_slice(&family.to_ne_bytes());
        out[6..8].copy_from_slice(&REQUEST_AND_ACK.to_ne_bytes());
        out[8..12].copy_from_slice(&sequence.to_ne_bytes());
        out
    }
}

impl Connect<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        if let Some(index) = self.index {
            put(out, INDEX, &index.to_ne_bytes());
        }
        put(out, SIZE_BYTES, &self.bytes.to_ne_bytes());
        put(out, BLOCK_SIZE_BYTES, &self.block_size.to_ne_bytes());
        // No limit of the kernel's own: a request is answered by the server, which has one, or waits. With
        // another value the kernel gives the connection up under a server that only waits for a primary,
        // and sends what was in flight again to the next one no sooner than when it is over.
        put(out, TIMEOUT, &0u64.to_ne_bytes());
        put(out, SERVER_FLAGS, &u64::from(self.flags).to_ne_bytes());
        put(out, DEAD_CONN_TIMEOUT, &self.dead_conn_timeout.to_ne_bytes());
        put(out, SOCKETS, &sockets(self.socket));
        put(out, BACKEND_IDENTIFIER, self.identifier.as_bytes());
    }
}

fn sockets(fd: u32) -> Vec<u8> {
    let (mut item, mut list) = (Vec::new(), Vec::new());
    put(&mut item, SOCK_FD, &fd.to_ne_bytes());
    put(&mut list, SOCK_ITEM, &item);
    list
}

/// Appends an attribute. Those of this module are far below 64 KiB.
fn put(out: &mut Vec<u8>, kind: u16, payload: &[u8]) {
    let length = (ATTRIBUTE_HEADER + payload.len()) as u16;
    out.extend(length.to_ne_bytes());
    out.extend(kind.to_ne_bytes());
    out.extend(payload);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// A message of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer<'a> {
    /// The end: done, or why not.
    End(Result<(), Errno>),
    /// The attributes of a family's message.
    Told(&'a [u8]),
}

/// The messages of a datagram that answer what was asked as `sequence`.
pub(super) fn answers(mut datagram: &[u8], sequence: u32) -> Result<Vec<Answer<'_>>, Malformed> {
    let mut answers = Vec::new();
    while !datagram.is_empty() {
        let length = number(datagram, 0)? as usize;
        if length < HEADER || length > datagram.len() {
            return Err(Malformed("a message's length"));
        }
        let (message, kind) = (&datagram[..length], half(datagram, 4)?);
        datagram = &datagram[length.next_multiple_of(4).min(datagram.len())..];
        if number(message, 8)? != sequence {
            continue;
        }
        match kind {
            TYPE_ERROR => {
                let code = number(message, HEADER)?.cast_signed();
                answers.push(Answer::End(match code {
                    0 => Ok(()),
                    -4095..0 => Err(Errno::from_raw_os_error(-code)),
                    _ => return Err(Malformed("an error's number")),
                }));
            }
            FIRST_FAMILY.. => {
                let told = message.get(HEADER + GENERIC_HEADER..);
                answers.push(Answer::Told(told.ok_or(Malformed("a message without a command"))?));
            }
            // No-operation, and the end of several parts.
            _ => {}
        }
    }
    Ok(answers)
}

/// The number of the family that was asked for.
pub(super) fn family(attributes: &[u8]) -> Result<u16, Malformed> {
    let id = find(attributes, FAMILY_ID)?.ok_or(Malformed("a family without a number"))?;
    half(id, 0)
}

/// The device that was connected.
pub(super) fn connected(attributes: &[u8]) -> Result<u32, Malformed> {
    let index = find(attributes, INDEX)?.ok_or(Malformed("a device without an index"))?;
    number(index, 0)
}

/// Whether a device is in use; `None` if the kernel does not have it.
pub(super) fn status(attributes: &[u8], index: u32) -> Result<Option<bool>, Malformed> {
    let list = find(attributes, DEVICE_LIST)?.ok_or(Malformed("a status without devices"))?;
    for one in Attributes(list) {
        let (kind, item) = one?;
        if kind != DEVICE_ITEM {
            continue;
        }
        let of = find(item, DEVICE_INDEX)?.ok_or(Malformed("a device without an index"))?;
        if number(of, 0)? == index {
            let connected = find(item, DEVICE_CONNECTED)?;
            let connected = connected.and_then(<[u8]>::first);
            return Ok(Some(*connected.ok_or(Malformed("a device without its state"))? != 0));
        }
    }
    Ok(None)
}

/// The payload of the first attribute of a type.
fn find(attributes: &[u8], wanted: u16) -> Result<Option<&[u8]>, Malformed> {
    for one in Attributes(attributes) {
        let (kind, payload) = one?;
        if kind == wanted {
            return Ok(Some(payload));
        }
    }
    Ok(None)
}

/// Attributes one after the other. The first that is malformed is the last.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<(u16, &'a [u8]), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let rest = std::mem::take(&mut self.0);
        let one = || {
            let length = usize::from(half(rest, 0)?);
            let payload = rest.get(ATTRIBUTE_HEADER..length);
            let payload = payload.ok_or(Malformed("an attribute's length"))?;
            let end = length.next_multiple_of(4).min(rest.len());
            Ok((half(rest, 2)? & TYPE_MASK, payload, &rest[end..]))
        };
        Some(one().map(|(kind, payload, rest)| {
            self.0 = rest;
            (kind, payload)
        }))
    }
}

fn number(bytes: &[u8], at: usize) -> Result<u32, Malformed> {
    let bytes = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    bytes.map(|bytes| u32::from_ne_bytes(*bytes)).ok_or(Malformed("it ends too early"))
}

fn half(bytes: &[u8], at: usize) -> Result<u16, Malformed> {
    let bytes = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    bytes.map(|bytes| u16::from_ne_bytes(*bytes)).ok_or(Malformed("it ends too early"))
}

#[cfg(test)]
#[path = "netlink_tests.rs"]
mod tests;
