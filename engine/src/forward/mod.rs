//! How a frontend keeps its place across failovers.
//!
//! A frontend serves a volume from any datanode: it sends each request to the volume's primary,
//! holds it until its fate is known, and sends it again when another primary takes over. Two things
//! would break a client's view of its blocks: a write that takes effect *twice*, and one that
//! arrives *late*, after a newer write to the same blocks was acknowledged. So
//!
//! 1. every request has a name, (session, sequence), which is never given to another one; what the
//!    log holds already under that name is not logged again;
//! 2. on a new stream all unresolved requests go first, in the order of their sequences;
//! 3. the low-water mark, below which the log forgets names, never passes a request that may be
//!    sent again;
//! 4. a request that is given up (its client left, or waited too long) is never sent again, and
//!    while the stream that it went out on may still deliver it, no other request to the same
//!    blocks is sent. A newly opened stream ends that: the primary drops what an older stream
//!    of the session has not logged, and a primary of a newer epoch never sees it;
//! 5. a session that the log does not know any more is not silently opened again: what was in
//!    flight ends with an I/O error, and only requests that were never sent go on in a new one;
//! 6. a session comes again with its own attach generation, never with another one; a client whose
//!    attachment has ended gets errors until it attaches again, and an exclusive one also when its session
//!    is lost, for the volume may have been another's meanwhile: its forwarder has one session;
//! 7. a client that saw the volume before acknowledged writes may have been lost (the volume's
//!    loss generation rose) gets errors until it connects again: never silence.
//!
//! [`Forwarder`] decides all this for one session; no payload passes through it, only numbers.

mod forwarder;
mod io;
mod link;
mod requests;
mod session;

#[cfg(test)]
mod tests;

pub use forwarder::{Attachment, Forwarder};
pub use io::{
    Answer, ByteRange, ClientId, Ignored, Input, LinkId, Op, Output, Params, RequestId, Verdict,
};
