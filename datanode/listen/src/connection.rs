//! One connection, which ends when it has to.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::transport::server::Connected;

use crate::Limits;
use crate::places::Place;

/// A connection that was taken.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    /// Bytes that must have come until it counts as begun.
    lacks: usize,
    /// When it must have begun, or must end.
    ends: Option<Pin<Box<Sleep>>>,
    /// When it must end, however it goes on.
    oldest: Option<Instant>,
    /// Whether, when its time to begin ends, it has to have a place to stay.
    provisional: bool,
    lost: Pin<Box<WaitForCancellationFutureOwned>>,
    place: Arc<Place>,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream, place: Place, limits: Limits) -> Self {
        let now = Instant::now();
        let lost = Box::pin(place.lost.clone().cancelled_owned());
        Self {
            stream,
            lacks: limits.beginning,
            ends: Some(Box::pin(sleep_until(now + limits.begin))),
            oldest: limits.age.map(|age| now + age),
            provisional: place.is_arriving(),
            lost,
            place: Arc::new(place),
        }
    }

    /// Whether it may go on. Asked by whoever reads and by whoever writes, which is one task.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.lost.as_mut().poll(cx).is_ready() {
            let why = "all places are taken";
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, why));
        }
        if let Some(ends) = &mut self.ends
            && ends.as_mut().poll(cx).is_ready()
        {
            if self.provisional && self.lacks == 0 && self.place.stays() {
                self.provisional = false;
                self.ends = self.oldest.map(|oldest| Box::pin(sleep_until(oldest)));
                return Ok(());
            }
            if self.provisional && self.lacks == 0 {
                let why = "all places are taken, and no node's";
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, why));
            }
            let why = if self.lacks > 0 { "it did not begin" } else { "it is too old" };
            return Err(io::Error::new(io::ErrorKind::TimedOut, why));
        }
        Ok(())
    }

    fn came(&mut self, bytes: usize) {
        if self.lacks == 0 {
            return;
        }
        self.lacks = self.lacks.saturating_sub(bytes);
        // Who came when all places were taken must have said by then what it is, too.
        if self.lacks == 0 && !self.provisional {
            self.ends = self.oldest.map(|oldest| Box::pin(sleep_until(oldest)));
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_ready() {
            let bytes = buf.filled().len() - before;
            self.came(bytes);
            // The clock that runs from here on has to wake somebody.
            self.check(cx)?;
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Whose connection a request came on.
#[derive(Clone, Debug)]
pub struct Caller(Weak<Place>);

impl Caller {
    pub(crate) fn keep(&self) {
        if let Some(place) = self.0.upgrade() {
            place.keep();
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        Caller(Arc::downgrade(&self.place))
    }
}
