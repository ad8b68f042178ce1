//! The transmission phase: requests in, replies out of order.
//!
//! One task reads, one writes. What a connection holds in memory is [limited](crate::frontend::limits).

use std::io;

use bytes::{Bytes, BytesMut};
use sbk_engine::forward::Answer;
use sbk_engine::types::MAX_REQUEST_BYTES;
use tokio::io::{AsyncReadExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::exports::Export;
use super::wire::*;
use crate::frontend::limits::{Budget, Permit, Pool};
use crate::frontend::session::Submitter;
use crate::frontend::{Frontends, Reply};
use crate::link::IoOp;

/// Replies gathered before they are written.
const GATHER: usize = 64;
const SECTOR: u64 = 512;

/// Serves an agreed export until the client disconnects, breaks the protocol, or `stop`.
pub(super) async fn serve(
    frontends: &Frontends,
    pool: Pool,
    export: &Export,
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    stop: &CancellationToken,
) -> io::Result<()> {
    let mut client = frontends.attach(export.volume);
    let submitter = client.submitter();
    let (refusals, refused) = mpsc::unbounded_channel();
    let budget = Budget::of(pool);
    let connection = Connection {
        reader: BufReader::with_capacity(64 << 10, reader),
        budget: budget.clone(),
        submitter,
        refusals,
        bytes: export.bytes,
    };
    let mut reading = tokio::spawn(connection.read());
    let write = write(writer, &budget, &mut client.replies, refused);
    tokio::pin!(write);
    let ended = tokio::select! {
        () = stop.cancelled() => Ok(()),
        ended = &mut reading => match ended {
            Ok(Ok(())) => {
                // The client said goodbye: what it asked before is answered first.
                tokio::select! {
                    () = budget.all_returned() => {}
                    written = &mut write => return written,
                    () = stop.cancelled() => {}
                }
                Ok(())
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::other("the connection's reader ended")),
        },
        written = &mut write => written,
    };
    reading.abort();
    ended
}

struct Connection {
    reader: BufReader<OwnedReadHalf>,
    budget: Budget,
    submitter: Submitter,
    /// Answers that the session need not see.
    refusals: mpsc::UnboundedSender<Refusal>,
    bytes: u64,
}

/// An error for the client, with its budget.
#[derive(Debug)]
struct Refusal {
    cookie: u64,
    error: u32,
    _permit: Permit,
}

impl Connection {
    async fn read(mut self) -> io::Result<()> {
        loop {
            let mut header = [0; Request::SIZE];
            match self.reader.read_exact(&mut header).await {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(error),
            }
            let Some(request) = Request::parse(&header) else {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "not an NBD request"));
            };
            if request.command == CMD_DISC {
                return Ok(());
            }
            if !self.take(request).await? {
                return Ok(());
            }
        }
    }

    /// Takes one request. `false` once the session has ended.
    async fn take(&mut self, request: Request) -> io::Result<bool> {
        let length = u64::from(request.length);
        let carries = matches!(request.command, CMD_READ | CMD_WRITE);
        if request.command == CMD_WRITE && length > MAX_REQUEST_BYTES {
            // Its payload would follow: reading it all just to refuse it serves nobody.
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a write over 32 MiB"));
        }
        let permit = self.budget.take(if carries { length } else { 0 }).await?;
        let payload = match request.command {
            CMD_WRITE => self.payload(request.length as usize).await?,
            _ => Bytes::new(),
        };
        let cookie = request.cookie;
        match self.shape(&request, payload) {
            Ok(op) => Ok(self.submitter.submit(cookie, op, Some(permit)).await),
            Err(error) => {
                Ok(self.refusals.send(Refusal { cookie, error, _permit: permit }).is_ok())
            }
        }
    }

    async fn payload(&mut self, length: usize) -> io::Result<Bytes> {
        let mut payload = BytesMut::with_capacity(length);
        let mut limited = (&mut self.reader).take(length as u64);
        while payload.len() < length {
            let read = limited.read_buf(&mut payload);
            if self.budget.step("sending a write's data", read).await? == 0 {
                let text = "the client left in mid-request";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
            }
        }
        Ok(payload.freeze())
    }

    /// What the request asks for, or the error that it gets.
    fn shape(&self, request: &Request, payload: Bytes) -> Result<IoOp, u32> {
        let (offset, length) = (request.offset, u64::from(request.length));
        let allowed = match request.command {
            CMD_WRITE_ZEROES => CMD_FLAG_FUA | CMD_FLAG_NO_HOLE,
            _ => CMD_FLAG_FUA,
        };
        if request.flags & !allowed != 0 {
            return Err(EINVAL);
        }
        if request.command == CMD_FLUSH {
            return if offset == 0 && length == 0 { Ok(IoOp::Flush) } else { Err(EINVAL) };
        }
        let changes = matches!(request.command, CMD_WRITE | CMD_TRIM | CMD_WRITE_ZEROES);
        let end = offset.checked_add(length).ok_or(EINVAL)?;
        if end > self.bytes {
            return Err(if changes { ENOSPC } else { EINVAL });
        }
        if length == 0 || !offset.is_multiple_of(SECTOR) || !length.is_multiple_of(SECTOR) {
            return Err(EINVAL);
        }
        // An acknowledged write is durable on every in-sync replica: FUA asks for nothing more.
        match request.command {
            CMD_READ if length <= MAX_REQUEST_BYTES => Ok(IoOp::Read { offset, length }),
            CMD_WRITE => Ok(IoOp::Write { offset, data: payload }),
            CMD_TRIM => Ok(IoOp::Trim { offset, length }),
            CMD_WRITE_ZEROES => Ok(IoOp::Zero { offset, length }),
            _ => Err(EINVAL),
        }
    }
}

fn error_of(answer: &Answer) -> u32 {
    match answer {
        Answer::Done => 0,
        Answer::Invalid(_) => EINVAL,
        Answer::Failed(_) => EIO,
        Answer::Deleted => ESHUTDOWN,
    }
}

/// Writes replies as they come, a batch at a time.
async fn write(
    mut writer: OwnedWriteHalf,
    budget: &Budget,
    replies: &mut mpsc::UnboundedReceiver<Reply>,
    mut refused: mpsc::UnboundedReceiver<Refusal>,
) -> io::Result<()> {
    let mut batch = Vec::with_capacity(GATHER);
    let mut small = BytesMut::new();
    loop {
        tokio::select! {
            Some(refusal) = refused.recv() => {
                small.extend_from_slice(&simple_reply(refusal.error, refusal.cookie));
                budget.write_all(&mut writer, &small).await?;
                small.clear();
            }
            count = replies.recv_many(&mut batch, GATHER) => {
                if count == 0 {
                    return Ok(());
                }
                for reply in batch.drain(..) {
                    if let Answer::Failed(why) | Answer::Invalid(why) = &reply.answer {
                        tracing::warn!(%why, "NBD: a request failed");
                    }
                    small.extend_from_slice(&simple_reply(error_of(&reply.answer), reply.cookie));
                    // Small answers share one write; large ones are not copied.
                    if reply.data.len() <= 16 << 10 {
                        small.extend_from_slice(&reply.data);
                    } else {
                        budget.write_all(&mut writer, &small).await?;
                        small.clear();
                        budget.write_all(&mut writer, &reply.data).await?;
                    }
                }
                budget.write_all(&mut writer, &small).await?;
                small.clear();
            }
        }
    }
}
