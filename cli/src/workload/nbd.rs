//! A small NBD client: fixed newstyle negotiation with GO, simple replies, many requests in
//! flight on one TCP connection. Follows doc/proto.md of the NetworkBlockDevice project.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustix::net::sockopt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

const INIT_MAGIC: &[u8; 8] = b"NBDMAGIC";
const OPTION_MAGIC: &[u8; 8] = b"IHAVEOPT";
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const FLAG_FIXED_NEWSTYLE: u16 = 1;
const FLAG_NO_ZEROES: u16 = 2;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERROR: u32 = 1 << 31;
const INFO_EXPORT: u16 = 0;
const MAX_OPTION_REPLY: u32 = 64 << 10;
const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;
const CMD_FLUSH: u16 = 3;
const CMD_TRIM: u16 = 4;
const CMD_WRITE_ZEROES: u16 = 6;
/// Requests that wait for the socket; callers beyond wait in turn.
const QUEUE: usize = 64;
/// How long the negotiation may take.
const NEGOTIATION: Duration = Duration::from_secs(10);
/// A host that acknowledges nothing for so long is taken for gone: without it a connection through a
/// network that was cut while the server died would never end.
const SILENCE: Duration = Duration::from_secs(15);

/// Why an NBD operation failed.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// The socket failed.
    #[error("the NBD connection to {addr} failed while {doing}")]
    Io {
        /// The server.
        addr: String,
        /// What was going on.
        doing: &'static str,
        /// The socket's error.
        source: std::io::Error,
    },
    /// The server did not finish the negotiation in time.
    #[error("the NBD server at {addr} did not finish the negotiation within {waited:?}")]
    Silent {
        /// The server.
        addr: String,
        /// How long.
        waited: Duration,
    },
    /// The server does not serve the export.
    #[error("the NBD server at {addr} refuses export '{export}': {message} (reply {code:#x})")]
    Refused {
        /// The server.
        addr: String,
        /// The export.
        export: String,
        /// The server's words.
        message: String,
        /// The reply type.
        code: u32,
    },
    /// The server broke the protocol.
    #[error("the NBD server at {addr} broke the protocol: {what}")]
    Protocol {
        /// The server.
        addr: String,
        /// How.
        what: String,
    },
    /// The server answered a request with an error.
    #[error("NBD {what} at {offset}+{length} failed with error {errno}")]
    Request {
        /// Which command.
        what: &'static str,
        /// Bytes.
        offset: u64,
        /// Bytes.
        length: u64,
        /// The error number of the protocol (5 is EIO).
        errno: u32,
    },
    /// The connection ended with requests in flight.
    #[error("the NBD connection to {addr} ended: {why}")]
    Ended {
        /// The server.
        addr: String,
        /// Why.
        why: String,
    },
}

struct Request {
    kind: u16,
    offset: u64,
    length: u32,
    payload: Bytes,
    answer: oneshot::Sender<Result<Bytes, u32>>,
}

struct Waiting {
    read_length: Option<u32>,
    answer: oneshot::Sender<Result<Bytes, u32>>,
}

/// Requests in flight by handle. `ended` is set once, when no answer can come any more.
#[derive(Default)]
struct Pending {
    waiting: HashMap<u64, Waiting>,
    ended: Option<String>,
}

/// A connection to one export. Cheap to clone; all clones share the connection, which is closed
/// when the last one is dropped.
#[derive(Clone)]
pub struct NbdClient {
    inner: Arc<Inner>,
}

struct Inner {
    addr: String,
    size: u64,
    flags: u16,
    requests: mpsc::Sender<Request>,
    pending: Arc<Mutex<Pending>>,
    reader: tokio::task::JoinHandle<()>,
}

impl std::fmt::Debug for NbdClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NbdClient").field("addr", &self.inner.addr).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The writer ends with its queue; the reader would wait for the server.
        self.reader.abort();
    }
}

impl NbdClient {
    /// Connects to `addr` (`host:port`) and opens `export`.
    ///
    /// # Errors
    /// Any [`NbdError`] but `Request`.
    pub async fn connect(addr: &str, export: &str) -> Result<Self, NbdError> {
        let waited = NEGOTIATION;
        timeout(waited, Self::negotiate(addr, export))
            .await
            .unwrap_or_else(|_| Err(NbdError::Silent { addr: addr.to_owned(), waited }))
    }

    async fn negotiate(addr: &str, export: &str) -> Result<Self, NbdError> {
        let io = |doing| move |source| NbdError::Io { addr: addr.to_owned(), doing, source };
        let stream = TcpStream::connect(addr).await.map_err(io("connecting"))?;
        stream.set_nodelay(true).map_err(io("connecting"))?;
        notice_silence(&stream).map_err(io("connecting"))?;
        let mut hello = Handshake { addr, export, stream };
        let (size, flags) = hello.run().await?;
        let (read, write) = hello.stream.into_split();
        let (requests, queue) = mpsc::channel(QUEUE);
        let pending = Arc::new(Mutex::new(Pending::default()));
        tokio::spawn(send_requests(write, queue, Arc::clone(&pending)));
        let reader = tokio::spawn(receive_replies(read, Arc::clone(&pending)));
        let addr = addr.to_owned();
        Ok(Self { inner: Arc::new(Inner { addr, size, flags, requests, pending, reader }) })
    }

    /// The export's size in bytes.
    pub fn size(&self) -> u64 {
        self.inner.size
    }

    /// The export's transmission flags.
    pub fn flags(&self) -> u16 {
        self.inner.flags
    }

    /// Reads `length` bytes at `offset`.
    pub async fn read(&self, offset: u64, length: u32) -> Result<Bytes, NbdError> {
        self.request("read", CMD_READ, offset, length, Bytes::new()).await
    }

    /// Writes `data` at `offset`. Done when the server acknowledged it.
    pub async fn write(&self, offset: u64, data: Bytes) -> Result<(), NbdError> {
        let length = data.len() as u32;
        self.request("write", CMD_WRITE, offset, length, data).await.map(drop)
    }

    /// Makes everything acknowledged before durable.
    pub async fn flush(&self) -> Result<(), NbdError> {
        self.request("flush", CMD_FLUSH, 0, 0, Bytes::new()).await.map(drop)
    }

    /// The range is not needed any more.
    pub async fn trim(&self, offset: u64, length: u32) -> Result<(), NbdError> {
        self.request("trim", CMD_TRIM, offset, length, Bytes::new()).await.map(drop)
    }

    /// The range reads as zeros.
    pub async fn write_zeroes(&self, offset: u64, length: u32) -> Result<(), NbdError> {
        self.request("write zeroes", CMD_WRITE_ZEROES, offset, length, Bytes::new()).await.map(drop)
    }

    /// Says goodbye. Requests in flight are still answered by a correct server.
    pub async fn disconnect(self) {
        let (answer, _) = oneshot::channel();
        let request =
            Request { kind: CMD_DISC, offset: 0, length: 0, payload: Bytes::new(), answer };
        // A connection that is gone already needs no goodbye.
        drop(self.inner.requests.send(request).await);
    }

    async fn request(
        &self,
        what: &'static str,
        kind: u16,
        offset: u64,
        length: u32,
        payload: Bytes,
    ) -> Result<Bytes, NbdError> {
        let (answer, answered) = oneshot::channel();
        let request = Request { kind, offset, length, payload, answer };
        if self.inner.requests.send(request).await.is_err() {
            return Err(self.ended());
        }
        match answered.await {
            Ok(Ok(data)) => Ok(data),
            Ok(Err(errno)) => Err(NbdError::Request { what, offset, length: length.into(), errno }),
            Err(_) => Err(self.ended()),
        }
    }

    fn ended(&self) -> NbdError {
        let pending = lock(&self.inner.pending);
        let why = pending.ended.clone().unwrap_or_else(|| "closed".to_owned());
        NbdError::Ended { addr: self.inner.addr.clone(), why }
    }
}

/// Lets the kernel end the connection after [`SILENCE`]. A server that merely takes nothing for a
/// while, as one whose volume waits for its primary, is not silent: its kernel answers.
fn notice_silence(stream: &TcpStream) -> std::io::Result<()> {
    const PROBES: u32 = 4;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, SILENCE / (PROBES + 1))?;
    sockopt::set_tcp_keepintvl(stream, SILENCE / (PROBES + 1))?;
    Ok(sockopt::set_tcp_keepcnt(stream, PROBES)?)
}

fn lock(pending: &Mutex<Pending>) -> std::sync::MutexGuard<'_, Pending> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

/// No answer can come any more: everybody who waits learns it, and everybody who comes later.
fn end(pending: &Mutex<Pending>, why: &str) {
    let mut pending = lock(pending);
    pending.ended.get_or_insert_with(|| why.to_owned());
    pending.waiting.clear();
}

async fn send_requests(
    mut write: OwnedWriteHalf,
    mut queue: mpsc::Receiver<Request>,
    pending: Arc<Mutex<Pending>>,
) {
    static HANDLES: AtomicU64 = AtomicU64::new(1);
    while let Some(request) = queue.recv().await {
        let handle = HANDLES.fetch_add(1, Ordering::Relaxed);
        let mut header = [0; 28];
        header[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        header[6..8].copy_from_slice(&request.kind.to_be_bytes());
        header[8..16].copy_from_slice(&handle.to_be_bytes());
        header[16..24].copy_from_slice(&request.offset.to_be_bytes());
        header[24..].copy_from_slice(&request.length.to_be_bytes());
        if request.kind != CMD_DISC {
            let read_length = (request.kind == CMD_READ).then_some(request.length);
            let mut pending = lock(&pending);
            if pending.ended.is_some() {
                return;
            }
            pending.waiting.insert(handle, Waiting { read_length, answer: request.answer });
        }
        let sent = async {
            write.write_all(&header).await?;
            write.write_all(&request.payload).await
        };
        if let Err(e) = sent.await {
            end(&pending, &format!("sending failed: {e}"));
            return;
        }
    }
}

async fn receive_replies(read: OwnedReadHalf, pending: Arc<Mutex<Pending>>) {
    let mut read = BufReader::with_capacity(1 << 20, read);
    let why = loop {
        if let Err(why) = receive_reply(&mut read, &pending).await {
            break why;
        }
    };
    end(&pending, &why);
}

async fn receive_reply(
    read: &mut BufReader<OwnedReadHalf>,
    pending: &Mutex<Pending>,
) -> Result<(), String> {
    let mut header = [0; 16];
    read.read_exact(&mut header).await.map_err(|e| match e.kind() {
        std::io::ErrorKind::UnexpectedEof => "the server closed it".to_owned(),
        _ => format!("receiving failed: {e}"),
    })?;
    let magic = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
    if magic != SIMPLE_REPLY_MAGIC {
        return Err(format!("a reply begins with {magic:#x}"));
    }
    let errno = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    let mut handle = [0; 8];
    handle.copy_from_slice(&header[8..]);
    let handle = u64::from_be_bytes(handle);
    let Some(waiting) = lock(pending).waiting.remove(&handle) else {
        return Err(format!("a reply has handle {handle}, which is not in flight"));
    };
    let result = match (errno, waiting.read_length) {
        (0, Some(length)) => {
            let mut data = vec![0; length as usize];
            read.read_exact(&mut data).await.map_err(|e| format!("receiving failed: {e}"))?;
            Ok(Bytes::from(data))
        }
        (0, None) => Ok(Bytes::new()),
        (errno, _) => Err(errno),
    };
    // Who asked may have given up; the answer is not wanted then.
    drop(waiting.answer.send(result));
    Ok(())
}

/// The negotiation, up to the transmission phase.
struct Handshake<'a> {
    addr: &'a str,
    export: &'a str,
    stream: TcpStream,
}

impl Handshake<'_> {
    async fn run(&mut self) -> Result<(u64, u16), NbdError> {
        let mut hello = [0; 18];
        self.receive(&mut hello).await?;
        if &hello[..8] != INIT_MAGIC || &hello[8..16] != OPTION_MAGIC {
            return Err(self.protocol("it is no newstyle NBD server".into()));
        }
        let flags = u16::from_be_bytes([hello[16], hello[17]]);
        if flags & FLAG_FIXED_NEWSTYLE == 0 {
            return Err(self.protocol("it does not speak fixed newstyle".into()));
        }
        let client_flags = u32::from(flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES));
        let name = self.export.as_bytes();
        let mut go = Vec::with_capacity(32 + name.len());
        go.extend_from_slice(&client_flags.to_be_bytes());
        go.extend_from_slice(OPTION_MAGIC);
        go.extend_from_slice(&OPT_GO.to_be_bytes());
        go.extend_from_slice(&(name.len() as u32 + 6).to_be_bytes());
        go.extend_from_slice(&(name.len() as u32).to_be_bytes());
        go.extend_from_slice(name);
        go.extend_from_slice(&0u16.to_be_bytes());
        self.stream.write_all(&go).await.map_err(|e| self.io(e))?;
        let mut export = None;
        loop {
            let (kind, data) = self.option_reply().await?;
            match kind {
                REP_ACK => break,
                REP_INFO => {
                    if data.len() == 12 && data[..2] == INFO_EXPORT.to_be_bytes() {
                        let size = data[2..10].iter().fold(0, |n, b| n << 8 | u64::from(*b));
                        export = Some((size, u16::from_be_bytes([data[10], data[11]])));
                    }
                }
                code if code & REP_ERROR != 0 => {
                    return Err(NbdError::Refused {
                        addr: self.addr.to_owned(),
                        export: self.export.to_owned(),
                        message: String::from_utf8_lossy(&data).into_owned(),
                        code,
                    });
                }
                other => return Err(self.protocol(format!("option reply {other:#x}"))),
            }
        }
        export.ok_or_else(|| self.protocol("it did not tell the export's size".into()))
    }

    async fn option_reply(&mut self) -> Result<(u32, Vec<u8>), NbdError> {
        let mut header = [0; 20];
        self.receive(&mut header).await?;
        let word = |at: usize| {
            u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let magic = u64::from(word(0)) << 32 | u64::from(word(4));
        if magic != OPTION_REPLY_MAGIC || word(8) != OPT_GO {
            return Err(self.protocol("a reply that belongs to no option".into()));
        }
        let (kind, length) = (word(12), word(16));
        if length > MAX_OPTION_REPLY {
            return Err(self.protocol(format!("an option reply of {length} bytes")));
        }
        let mut data = vec![0; length as usize];
        self.receive(&mut data).await?;
        Ok((kind, data))
    }

    async fn receive(&mut self, buffer: &mut [u8]) -> Result<(), NbdError> {
        match self.stream.read_exact(buffer).await {
            Ok(_) => Ok(()),
            Err(e) => Err(self.io(e)),
        }
    }

    fn io(&self, source: std::io::Error) -> NbdError {
        NbdError::Io { addr: self.addr.to_owned(), doing: "negotiating", source }
    }

    fn protocol(&self, what: String) -> NbdError {
        NbdError::Protocol { addr: self.addr.to_owned(), what }
    }
}
