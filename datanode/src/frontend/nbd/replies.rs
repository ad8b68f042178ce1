//! What becomes of answers on the wire.
//!
//! Answers come in any order and name their request by a number of ours, not by the client's
//! cookie, which a client may use twice. What the request was is kept here until then.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{BufMut, Bytes, BytesMut};
use sbk_engine::forward::Answer;
use sbk_engine::types::BLOCK_SIZE;
use sbk_store::Run;
use tokio::io::AsyncWrite;
use tokio::sync::mpsc;

use super::wire::*;
use crate::frontend::Reply;
use crate::frontend::limits::{Budget, Permit};
use crate::link::runs_in;

/// Replies gathered before they are written.
const GATHER: usize = 64;
/// Most bytes of an error's text.
const MAX_TEXT: usize = 4096;

/// What a request without an answer was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) kind: Kind,
    pub(super) tells: Tells,
}

/// What its success tells of writes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Tells {
    /// Nothing, or that one is durable.
    Nothing,
    /// One is acknowledged.
    Acknowledged,
    /// So many that had been acknowledged when it was asked are durable.
    Durable(u64),
}

/// What its reply carries.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// The data that was read.
    Read,
    /// The runs of a map that began at the block of the request's offset: those of `length` bytes
    /// from the offset on, or only the first.
    Status { length: u64, one: bool },
    /// Nothing, whatever the answer brings.
    Plain,
}

/// An error for the client that no session need see, with its budget.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) asked: Asked,
    pub(super) error: u32,
    pub(super) text: &'static str,
    pub(super) _permit: Permit,
}

/// The requests without an answer, by our numbers, and how many writes were acknowledged.
#[derive(Clone, Debug, Default)]
pub(super) struct Table(Arc<Mutex<Requests>>);

#[derive(Debug, Default)]
struct Requests {
    last: u64,
    asked: HashMap<u64, Asked>,
    acknowledged: u64,
    durable: u64,
}

impl Table {
    fn lock(&self) -> MutexGuard<'_, Requests> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Numbers a request. There are as many as the connection's budget allows.
    pub(super) fn add(&self, asked: Asked) -> u64 {
        let mut table = self.lock();
        table.last += 1;
        let number = table.last;
        table.asked.insert(number, asked);
        number
    }

    /// The request that was answered.
    fn take(&self, number: u64, answer: &Answer) -> Option<Asked> {
        let mut table = self.lock();
        let asked = table.asked.remove(&number)?;
        match asked.tells {
            Tells::Acknowledged if *answer == Answer::Done => table.acknowledged += 1,
            Tells::Durable(writes) if *answer == Answer::Done => {
                table.durable = table.durable.max(writes);
            }
            Tells::Nothing | Tells::Acknowledged | Tells::Durable(_) => {}
        }
        Some(asked)
    }

    /// Writes that were acknowledged so far, without a word of their durability.
    pub(super) fn acknowledged(&self) -> u64 {
        self.lock().acknowledged
    }

    /// Whether some were that no flush has followed.
    pub(super) fn is_unflushed(&self) -> bool {
        let table = self.lock();
        table.acknowledged > table.durable
    }
}

/// A reply as it is written: its small parts, and data that is not copied.
#[derive(Debug)]
struct Shaped {
    head: BytesMut,
    data: Bytes,
}

/// The writing half of a connection.
pub(super) struct Replies<W> {
    pub(super) writer: W,
    pub(super) framing: Framing,
    pub(super) table: Table,
}

impl<W: AsyncWrite + Unpin> Replies<W> {
    /// Writes replies as they come, a batch at a time.
    pub(super) async fn write(
        mut self,
        budget: &Budget,
        answers: &mut mpsc::UnboundedReceiver<Reply>,
        mut refused: mpsc::UnboundedReceiver<Refusal>,
    ) -> io::Result<()> {
        let mut batch = Vec::with_capacity(GATHER);
        let mut small = BytesMut::new();
        loop {
            tokio::select! {
                Some(refusal) = refused.recv() => {
                    let shaped = self.error(&refusal.asked, refusal.error, refusal.text);
                    budget.write_all(&mut self.writer, &shaped.head).await?;
                }
                count = answers.recv_many(&mut batch, GATHER) => {
                    if count == 0 {
                        return Ok(());
                    }
                    for reply in &batch {
                        let Some(asked) = self.table.take(reply.cookie, &reply.answer) else { continue };
                        let shaped = self.shape(&asked, reply);
                        small.extend_from_slice(&shaped.head);
                        // Small answers share one write; large ones are not copied.
                        if shaped.data.len() <= 16 << 10 {
                            small.extend_from_slice(&shaped.data);
                        } else {
                            budget.write_all(&mut self.writer, &small).await?;
                            small.clear();
                            budget.write_all(&mut self.writer, &shaped.data).await?;
                        }
                    }
                    budget.write_all(&mut self.writer, &small).await?;
                    small.clear();
                    // What an answer reserved tells that it is not yet on its way.
                    batch.clear();
                }
            }
        }
    }

    fn shape(&self, asked: &Asked, reply: &Reply) -> Shaped {
        let (error, why) = match &reply.answer {
            Answer::Done => return self.done(asked, &reply.data),
            Answer::Invalid(why) => (EINVAL, why.as_str()),
            Answer::Failed(why) => (EIO, why.as_str()),
            Answer::Deleted => (ESHUTDOWN, "the volume was deleted"),
        };
        tracing::warn!(%why, "NBD: a request failed");
        self.error(asked, error, why)
    }

    fn done(&self, asked: &Asked, data: &Bytes) -> Shaped {
        match asked.kind {
            Kind::Plain => self.plain(asked),
            Kind::Read => self.read(asked, data),
            Kind::Status { length, one } => self.status(asked, data, length, one),
        }
    }

    fn plain(&self, asked: &Asked) -> Shaped {
        let mut head = BytesMut::new();
        match self.framing {
            // Without anything to say, the shorter one.
            Framing::Simple | Framing::Structured => {
                head.extend_from_slice(&simple_reply(0, asked.cookie));
            }
            Framing::Extended => {
                chunk(self.framing, CHUNK_NONE, asked.cookie, asked.offset, 0, &mut head);
            }
        }
        Shaped { head, data: Bytes::new() }
    }

    fn read(&self, asked: &Asked, data: &Bytes) -> Shaped {
        let mut head = BytesMut::new();
        if self.framing == Framing::Simple {
            head.extend_from_slice(&simple_reply(0, asked.cookie));
        } else {
            let length = 8 + data.len() as u64;
            chunk(self.framing, CHUNK_DATA, asked.cookie, asked.offset, length, &mut head);
            head.put_u64(asked.offset);
        }
        Shaped { head, data: data.clone() }
    }

    fn status(&self, asked: &Asked, data: &Bytes, length: u64, one: bool) -> Shaped {
        let first = asked.offset - asked.offset % BLOCK_SIZE;
        let blocks = (asked.offset + length).next_multiple_of(BLOCK_SIZE) - first;
        let Some(runs) = runs_in(data, blocks / BLOCK_SIZE, one) else {
            return self.error(asked, EIO, "the primary's answer makes no sense");
        };
        let extents = extents(&runs, asked.offset - first, length, one);
        let mut head = BytesMut::new();
        let count = extents.len() as u64;
        if self.framing == Framing::Extended {
            let length = 8 + 16 * count;
            chunk(self.framing, CHUNK_STATUS_EXT, asked.cookie, asked.offset, length, &mut head);
            head.put_u32(ALLOCATION_ID);
            head.put_u32(count as u32);
            for (length, state) in extents {
                head.put_u64(length);
                head.put_u64(u64::from(state));
            }
        } else {
            chunk(self.framing, CHUNK_STATUS, asked.cookie, asked.offset, 4 + 8 * count, &mut head);
            head.put_u32(ALLOCATION_ID);
            for (length, state) in extents {
                // No longer than a map.
                head.put_u32(length as u32);
                head.put_u32(state);
            }
        }
        Shaped { head, data: Bytes::new() }
    }

    fn error(&self, asked: &Asked, error: u32, text: &str) -> Shaped {
        let mut head = BytesMut::new();
        if self.framing == Framing::Simple {
            head.extend_from_slice(&simple_reply(error, asked.cookie));
        } else {
            let text = &text[..text.floor_char_boundary(MAX_TEXT)];
            let length = 6 + text.len() as u64;
            chunk(self.framing, CHUNK_ERROR, asked.cookie, asked.offset, length, &mut head);
            head.put_u32(error);
            head.put_u16(text.len() as u16);
            head.extend_from_slice(text.as_bytes());
        }
        Shaped { head, data: Bytes::new() }
    }
}

/// The extents of `length` bytes that begin `skip` bytes into `runs`, which cover them.
fn extents(runs: &[Run], mut skip: u64, length: u64, one: bool) -> Vec<(u64, u32)> {
    let mut left = length;
    let mut out: Vec<(u64, u32)> = Vec::new();
    for run in runs {
        let bytes = (u64::from(run.blocks) * BLOCK_SIZE - skip).min(left);
        skip = 0;
        left -= bytes;
        let state = if run.hole { STATE_HOLE_ZERO } else { 0 };
        match out.last_mut() {
            Some((length, last)) if *last == state => *length += bytes,
            Some(_) if one => break,
            _ => out.push((bytes, state)),
        }
        if left == 0 {
            break;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_cut_to_what_was_asked() {
        let runs = [(1, true), (2, false), (1, true)].map(|(blocks, hole)| Run { blocks, hole });
        let all = [(4096, 3), (8192, 0), (4096, 3)];
        assert_eq!(extents(&runs, 0, 16384, false), all);
        assert_eq!(extents(&runs, 512, 15360, false), [(3584, 3), (8192, 0), (3584, 3)]);
        assert_eq!(extents(&runs, 512, 16384 - 512, true), [(3584, 3)]);
        let alike = [1, 2].map(|blocks| Run { blocks, hole: true });
        assert_eq!(extents(&alike, 512, 8192, true), [(8192, 3)], "neighbours are joined");
        assert_eq!(extents(&runs[1..2], 4096, 512, false), [(512, 0)]);
    }
}
