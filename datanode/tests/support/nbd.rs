//! An NBD server on a node that holds no replica, and a client that says byte for byte what a test
//! wants.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use sbk_datanode::catalogue::Catalogue;
use sbk_datanode::frontend::Frontends;
use sbk_datanode::frontend::nbd::{self, AtStop, Tls};
use sbk_datanode::volume::Registry;
use sbk_engine::forward::Params;
use sbk_engine::types::{NodeId, WriteAck};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Cluster, PATIENCE};

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const CACHE: u16 = 5;
pub(crate) const WRITE_ZEROES: u16 = 6;
pub(crate) const STATUS: u16 = 7;

pub(crate) const EINVAL: u32 = 22;
pub(crate) const ENOSPC: u32 = 28;

pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    pub(crate) catalogue: watch::Sender<Arc<Catalogue>>,
    stop: CancellationToken,
    serving: Option<JoinHandle<Result<(), String>>>,
}

impl Server {
    pub(crate) fn start(cluster: &Cluster) -> Self {
        Self::start_with(cluster, None)
    }

    pub(crate) fn start_with(cluster: &Cluster, tls: Option<Tls>) -> Self {
        Self::build(cluster, cluster.catalogue(), tls, Params::default(), AtStop::Answer)
    }

    /// One that makes durable what it acknowledged, and takes the volume for one with written
    /// acknowledgements. A request is given up after ten seconds.
    pub(crate) fn start_flushing(cluster: &Cluster) -> Self {
        let mut catalogue = cluster.catalogue();
        for volume in catalogue.volumes.values_mut() {
            let volume = Arc::make_mut(volume);
            volume.config.as_mut().expect("it has one").write_ack = WriteAck::Written;
        }
        let params = Params::giving_up_after(Duration::from_secs(10));
        Self::build(cluster, catalogue, None, params, AtStop::Flush)
    }

    fn build(
        cluster: &Cluster,
        catalogue: Catalogue,
        tls: Option<Tls>,
        params: Params,
        at_stop: AtStop,
    ) -> Self {
        let (catalogue, watched) = watch::channel(Arc::new(catalogue));
        let stop = CancellationToken::new();
        let (addr, serving) = cluster.runtime().block_on(async {
            let node = NodeId(Uuid::from_u128(999));
            let frontends = Frontends::new(watched, Registry::default(), node, params);
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
            let addr = listener.local_addr().expect("bound");
            let serving = nbd::serve(frontends, listener, tls, stop.clone(), at_stop);
            (addr, tokio::spawn(serving))
        });
        Self { addr, catalogue, stop, serving: Some(serving) }
    }

    /// Stops it; how that ended.
    pub(crate) fn stop(mut self, cluster: &Cluster) -> Result<(), String> {
        self.stop.cancel();
        let serving = self.serving.take().expect("it is stopped once");
        let ended = async { tokio::time::timeout(PATIENCE, serving).await };
        let ended = cluster.runtime().block_on(ended);
        ended.expect("it ends").expect("no panic")
    }

    pub(crate) fn uri(&self) -> String {
        format!("nbd://{}/vol", self.addr)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A connection. Everything on it fails the test if it takes unreasonably long.
pub(crate) struct Raw(pub(crate) TcpStream);

impl Raw {
    /// Connects and takes the greeting.
    pub(crate) fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("sets");
        stream.set_write_timeout(Some(PATIENCE)).expect("sets");
        stream.set_nodelay(true).expect("sets");
        let mut raw = Self(stream);
        let greeting = raw.take(18);
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        raw
    }

    /// In the transmission phase of the export `vol`.
    pub(crate) fn export(addr: SocketAddr) -> Self {
        let mut raw = Self::connect(addr);
        raw.send(&3u32.to_be_bytes());
        raw.option(7, &wish("vol"));
        loop {
            let (kind, _) = raw.option_reply(7).expect("an answer to GO");
            match kind {
                1 => return raw,
                3 => {}
                other => panic!("GO was answered with {other:#x}"),
            }
        }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("sends");
    }

    /// Sends what the server may not want to hear to its end.
    pub(crate) fn blurt(&mut self, bytes: &[u8]) {
        let _closed = self.0.write_all(bytes);
    }

    /// Ends this side of the connection; a server that hung up before has spared it the way.
    pub(crate) fn says_no_more(&self) {
        if let Err(error) = self.0.shutdown(Shutdown::Write) {
            assert_eq!(error.kind(), std::io::ErrorKind::NotConnected, "the socket is in order");
        }
    }

    pub(crate) fn take(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.0.read_exact(&mut bytes).expect("the server answers");
        bytes
    }

    /// Waits until the server has closed the connection; a reset is an end too.
    pub(crate) fn ends(mut self) {
        let mut rest = Vec::new();
        if let Err(error) = self.0.read_to_end(&mut rest) {
            let kind = error.kind();
            assert_eq!(kind, std::io::ErrorKind::ConnectionReset, "the server does not hang up");
        }
    }

    pub(crate) fn option(&mut self, option: u32, data: &[u8]) {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        self.send(&bytes);
    }

    /// The kind and data of a reply; `None` if the server hung up instead.
    pub(crate) fn option_reply(&mut self, option: u32) -> Option<(u32, Vec<u8>)> {
        let mut head = [0; 20];
        self.0.read_exact(&mut head).ok()?;
        let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("4 bytes"));
        assert_eq!(head[..8], 0x0003_e889_0455_65a9_u64.to_be_bytes());
        assert_eq!(word(8), option);
        let data = self.take(word(16) as usize);
        Some((word(12), data))
    }

    pub(crate) fn request(&mut self, command: u16, cookie: u64, offset: u64, length: u32) {
        self.send(&header(0, command, cookie, offset, length));
    }

    /// The next reply's error and cookie.
    pub(crate) fn reply(&mut self) -> (u32, u64) {
        let head = self.take(16);
        assert_eq!(head[..4], 0x6744_6698_u32.to_be_bytes());
        let error = u32::from_be_bytes(head[4..8].try_into().expect("4 bytes"));
        (error, u64::from_be_bytes(head[8..].try_into().expect("8 bytes")))
    }

    /// A request alone and its error, 0 for none.
    pub(crate) fn ask(&mut self, command: u16, offset: u64, length: u32) -> u32 {
        self.request(command, 77, offset, length);
        let (error, cookie) = self.reply();
        assert_eq!(cookie, 77);
        error
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> u32 {
        self.request(WRITE, 78, offset, data.len() as u32);
        self.send(data);
        let (error, cookie) = self.reply();
        assert_eq!(cookie, 78);
        error
    }

    pub(crate) fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        assert_eq!(self.ask(READ, offset, length), 0, "read of {length} at {offset}");
        self.take(length as usize)
    }

    /// Closes in both directions at once.
    pub(crate) fn vanish(self) {
        let _gone = self.0.shutdown(Shutdown::Both);
    }
}

pub(crate) fn header(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

/// The data of a GO or INFO that asks for nothing special.
pub(crate) fn wish(name: &str) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend(0u16.to_be_bytes());
    data
}
