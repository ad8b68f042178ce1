//! The transmission phase: requests in, replies out of order.
//!
//! One task reads, one [writes](super::replies). What a connection holds in memory is
//! [limited](crate::frontend::limits).

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use sbk_engine::types::{BLOCK_SIZE, MAX_REQUEST_BYTES, VolumeId};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, BufReader};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::handshake::Agreed;
use super::replies::{Asked, Kind, Refusal, Replies, Table, Tells};
use super::wire::*;
use crate::frontend::ClientHandle;
use crate::frontend::limits::{Budget, Pool};
use crate::frontend::session::Submitter;
use crate::link::IoOp;

const SECTOR: u64 = 512;
/// What the reply to a look at holes may take, at most: an extent for each block.
const STATUS_BYTES: u64 = MAX_REQUEST_BYTES / BLOCK_SIZE * 16;

/// How a connection that did not break came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// The server was stopped.
    Stopped,
    /// The client said goodbye.
    InOrder,
    /// The client was gone between two requests.
    Silently,
}

/// Serves an agreed export until the client disconnects, breaks the protocol, or `stop`. What was
/// asked before a goodbye or a stop is answered. `table` tells what was, whatever ends it.
pub(super) async fn serve<R, W>(
    client: &mut ClientHandle,
    pool: &Pool,
    agreed: &Agreed,
    table: Table,
    reader: R,
    writer: W,
    stop: &CancellationToken,
) -> io::Result<Left>
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin,
{
    let submitter = client.submitter();
    let (refusals, refused) = mpsc::unbounded_channel();
    let budget = Budget::of(pool, agreed.export.volume);
    let connection = Connection {
        reader: BufReader::with_capacity(64 << 10, reader),
        budget: budget.clone(),
        submitter,
        refusals,
        table: table.clone(),
        rules: Rules {
            framing: agreed.framing,
            allocation: agreed.allocation,
            bytes: agreed.export.bytes,
            pool: pool.clone(),
            volume: agreed.export.volume,
        },
    };
    let mut reading = tokio::spawn(connection.read());
    let replies = Replies { writer, framing: agreed.framing, table };
    let write = replies.write(&budget, &mut client.replies, refused);
    tokio::pin!(write);
    let goodbye = tokio::select! {
        () = stop.cancelled() => {
            // Half a request that is left unread was never asked for.
            reading.abort();
            Ok(Left::Stopped)
        }
        ended = &mut reading => match ended {
            Ok(ended) => ended,
            Err(_) => Err(io::Error::other("the connection's reader ended")),
        },
        written = &mut write => {
            reading.abort();
            return written.map(|()| Left::Silently);
        }
    };
    let left = goodbye?;
    tokio::select! {
        () = budget.all_returned() => Ok(left),
        written = &mut write => match left {
            // Whoever said goodbye need not wait for answers.
            Left::InOrder => Ok(left),
            Left::Stopped | Left::Silently => written.map(|()| left),
        },
    }
}

struct Connection<R> {
    reader: BufReader<R>,
    budget: Budget,
    submitter: Submitter,
    /// Answers that the session need not see.
    refusals: mpsc::UnboundedSender<Refusal>,
    table: Table,
    rules: Rules,
}

/// What requests are checked against.
#[derive(Clone, Debug)]
struct Rules {
    framing: Framing,
    allocation: bool,
    /// The size that the client was told.
    bytes: u64,
    /// Knows the size that the volume has now.
    pool: Pool,
    volume: VolumeId,
}

/// An error for the client: its number, and why.
type Wrong = (u32, &'static str);

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

impl<R: AsyncRead + Unpin> Connection<R> {
    async fn read(mut self) -> io::Result<Left> {
        loop {
            let mut header = [0; Request::LONGEST];
            let header = &mut header[..self.rules.framing.request_size()];
            match self.reader.read_exact(header).await {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Ok(Left::Silently);
                }
                Err(error) => return Err(error),
            }
            let request = Request::parse(self.rules.framing, header);
            let request = request.ok_or_else(|| broken("not an NBD request"))?;
            if request.command == CMD_DISC {
                return Ok(Left::InOrder);
            }
            if !self.take(request).await? {
                return Ok(Left::Silently);
            }
        }
    }

    /// Takes one request. `false` once the session has ended.
    async fn take(&mut self, request: Request) -> io::Result<bool> {
        let payload = self.rules.payload(&request);
        if payload > MAX_REQUEST_BYTES {
            // Reading it all just to refuse it serves nobody.
            return Err(broken("a payload over 32 MiB"));
        }
        let holds = match request.command {
            CMD_READ | CMD_CACHE => request.length.min(MAX_REQUEST_BYTES),
            CMD_BLOCK_STATUS => STATUS_BYTES.max(payload),
            _ => payload,
        };
        let permit = self.budget.take(holds).await?;
        let payload = self.payload(payload as usize).await?;
        let Request { cookie, offset, .. } = request;
        match self.rules.shape(&request, payload) {
            Ok((op, kind)) => {
                let durable = request.has(CMD_FLAG_FUA);
                let tells = match op {
                    IoOp::Write { .. } | IoOp::Trim { .. } | IoOp::Zero { .. } if !durable => {
                        Tells::Acknowledged
                    }
                    IoOp::Flush => Tells::Durable(self.table.acknowledged()),
                    _ => Tells::Nothing,
                };
                let number = self.table.add(Asked { cookie, offset, kind, tells });
                Ok(match durable {
                    true => self.submitter.submit_durable(number, op, Some(permit)).await,
                    false => self.submitter.submit(number, op, Some(permit)).await,
                })
            }
            Err((error, text)) => {
                let asked = Asked { cookie, offset, kind: Kind::Plain, tells: Tells::Nothing };
                Ok(self.refusals.send(Refusal { asked, error, text, _permit: permit }).is_ok())
            }
        }
    }

    async fn payload(&mut self, length: usize) -> io::Result<Bytes> {
        let mut payload = BytesMut::with_capacity(length);
        let mut limited = (&mut self.reader).take(length as u64);
        while payload.len() < length {
            let read = limited.read_buf(&mut payload);
            if self.budget.step("sending a request's data", read).await? == 0 {
                let text = "the client left in mid-request";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
            }
        }
        Ok(payload.freeze())
    }
}

impl Rules {
    /// Bytes that follow a request's header.
    fn payload(&self, request: &Request) -> u64 {
        let told = self.framing == Framing::Extended && request.has(CMD_FLAG_PAYLOAD_LEN);
        if told || request.command == CMD_WRITE { request.length } else { 0 }
    }

    fn allowed_flags(&self, command: u16) -> u16 {
        let chunks = self.framing != Framing::Simple;
        let payload = if self.framing == Framing::Extended { CMD_FLAG_PAYLOAD_LEN } else { 0 };
        // FUA may come with anything. It asks for nothing more where an acknowledged write is durable,
        // and for a flush where it is only written.
        CMD_FLAG_FUA
            | match command {
                CMD_READ if chunks => CMD_FLAG_DF,
                CMD_WRITE => payload,
                CMD_WRITE_ZEROES => CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO,
                CMD_BLOCK_STATUS => CMD_FLAG_REQ_ONE | payload,
                _ => 0,
            }
    }

    /// Where the client's requests end: it was told of nothing beyond, and the volume may have shrunk since.
    fn end(&self) -> u64 {
        self.pool.published_bytes(self.volume).map_or(self.bytes, |bytes| bytes.min(self.bytes))
    }

    /// What the request asks for and what its reply carries, or the error that it gets.
    fn shape(&self, request: &Request, payload: Bytes) -> Result<(IoOp, Kind), Wrong> {
        if request.flags & !self.allowed_flags(request.command) != 0 {
            return Err((EINVAL, "a flag that the request does not have"));
        }
        let Request { offset, mut length, .. } = *request;
        if request.command == CMD_FLUSH {
            return match (offset, length) {
                (0, 0) => Ok((IoOp::Flush, Kind::Plain)),
                _ => Err((EINVAL, "a flush has no offset and no length")),
            };
        }
        if request.command == CMD_BLOCK_STATUS && request.has(CMD_FLAG_PAYLOAD_LEN) {
            length = wanted_status(payload.clone())?;
        }
        let changes = matches!(request.command, CMD_WRITE | CMD_TRIM | CMD_WRITE_ZEROES);
        let behind = if changes { ENOSPC } else { EINVAL };
        let end = offset.checked_add(length).ok_or((EINVAL, "the request wraps around"))?;
        if end > self.end() {
            return Err((behind, "the request passes the end of the volume"));
        }
        if length == 0 || !offset.is_multiple_of(SECTOR) || !length.is_multiple_of(SECTOR) {
            return Err((EINVAL, "the request is not of whole 512-byte sectors, or of none"));
        }
        match request.command {
            CMD_READ if length <= MAX_REQUEST_BYTES => {
                Ok((IoOp::Read { offset, length }, Kind::Read))
            }
            CMD_READ => Err((EINVAL, "a read over 32 MiB")),
            CMD_WRITE => Ok((IoOp::Write { offset, data: payload }, Kind::Plain)),
            CMD_TRIM => Ok((IoOp::Trim { offset, length }, Kind::Plain)),
            // Whole blocks are logged without a payload, so zeroing is always fast.
            CMD_WRITE_ZEROES => Ok((IoOp::Zero { offset, length }, Kind::Plain)),
            // Advice: what is read is in the primary's page cache afterwards.
            CMD_CACHE => {
                let length = length.min(MAX_REQUEST_BYTES);
                Ok((IoOp::Read { offset, length }, Kind::Plain))
            }
            CMD_BLOCK_STATUS if self.allocation => Ok(self.status(request, offset..end)),
            CMD_BLOCK_STATUS => Err((EINVAL, "no metadata context was chosen")),
            _ => Err((EINVAL, "an unknown request")),
        }
    }

    /// A look at the blocks that a range touches, or at as many of them as go at once: the client
    /// asks again for the rest.
    fn status(&self, request: &Request, range: std::ops::Range<u64>) -> (IoOp, Kind) {
        let first = range.start - range.start % BLOCK_SIZE;
        let end = range.end.next_multiple_of(BLOCK_SIZE).min(first + MAX_REQUEST_BYTES);
        let length = range.end.min(end) - range.start;
        let one = request.has(CMD_FLAG_REQ_ONE);
        (IoOp::Map { offset: first, length: end - first, one }, Kind::Status { length, one })
    }
}

/// The payload of a look at holes: of how many bytes, and in which contexts.
fn wanted_status(mut payload: Bytes) -> Result<u64, Wrong> {
    let wrong = (EINVAL, "malformed payload of a block status");
    let length = payload.try_get_u64().map_err(|_| wrong)?;
    let (ids, rest) = payload.as_chunks::<4>();
    let ours = !ids.is_empty() && ids.iter().all(|id| *id == ALLOCATION_ID.to_be_bytes());
    if ours && rest.is_empty() { Ok(length) } else { Err(wrong) }
}
