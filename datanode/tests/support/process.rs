//! The datanode's own process, and masters that have one volume with its only replica on it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use sbk_proto::v1;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use uuid::Uuid;

use super::masters::{Heard, Masters};
use super::nbd::{FLUSH, READ, Raw};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const BLOCKS: u64 = 4096;
/// Bytes that the client wrote, in several places.
pub(crate) const PLACES: [u64; 4] = [0, 1 << 20, 5 << 20, (16 << 20) - 65536];

pub(crate) fn data(place: u64) -> Vec<u8> {
    (0..65536u64).map(|at| ((place + at) / 512 % 251) as u8 + 1).collect()
}

pub(crate) fn id(n: u128) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(Uuid::from_u128(n).as_bytes())
}

/// A process; killed when dropped.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) log: tempfile::NamedTempFile,
    pub(crate) nbd: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) grpc: SocketAddr,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Addresses that nobody else listens on.
pub(crate) fn free_ports() -> [SocketAddr; 3] {
    let mut ports = sbk_ports::kept(3).into_iter();
    [(); 3].map(|()| SocketAddr::from(([127, 0, 0, 1], ports.next().expect("as many"))))
}

impl Process {
    pub(crate) fn start(dir: &Path, masters: SocketAddr) -> Self {
        Self::on(dir, masters, free_ports())
    }

    pub(crate) fn on(dir: &Path, masters: SocketAddr, ports: [SocketAddr; 3]) -> Self {
        let log = tempfile::NamedTempFile::new().expect("makes a log file");
        let to = log.reopen().expect("opens");
        Self::logging(dir, masters, ports, log, to)
    }

    /// The same, with its standard error going to `to`.
    pub(crate) fn logging(
        dir: &Path,
        masters: SocketAddr,
        ports: [SocketAddr; 3],
        log: tempfile::NamedTempFile,
        to: fs::File,
    ) -> Self {
        let [grpc, http, nbd] = ports;
        let child = Command::new(env!("CARGO_BIN_EXE_sbk-datanode"))
            .arg("--data-dir")
            .arg(dir)
            .arg("--runtime-dir")
            .arg(dir.with_extension("run"))
            .args(["--masters", &masters.to_string(), "--listen", &grpc.to_string()])
            .args(["--http", &http.to_string(), "--nbd", &nbd.to_string()])
            // Small segments, so that directories are copied quickly.
            .args(["--wal-retain", "1MiB", "--log-format", "text"])
            // Whatever else is on the disk.
            .args(["--growth-watermark", "0"])
            .env("RUST_BACKTRACE", "1")
            .stderr(to)
            .spawn()
            .expect("starts sbk-datanode");
        Self { child, log, nbd, http, grpc }
    }

    pub(crate) fn logged(&self) -> String {
        fs::read_to_string(self.log.path()).expect("reads")
    }

    pub(crate) fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("is a child")
    }

    pub(crate) fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signals");
    }

    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.has_ended() {
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "it does not end:\n{}", self.logged());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// It ends by itself with an error that says all of `parts`, and no backtrace.
    pub(crate) async fn refuses(mut self, parts: &[&str]) {
        let status = self.ended().await;
        let logged = self.logged();
        assert_eq!(status.code(), Some(1), "{logged}");
        let last = logged.trim_end().lines().last().unwrap_or_default();
        for part in parts {
            assert!(last.contains(part), "'{part}' is not in: {logged}");
        }
        assert!(!logged.contains("panicked"), "{logged}");
    }

    /// The body of a page; `None` while nobody listens.
    pub(crate) async fn page(&self, path: &str) -> Option<String> {
        let mut socket = tokio::net::TcpStream::connect(self.http).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.ok()?;
        Some(answer.split_once("\r\n\r\n")?.1.to_owned())
    }
}

/// The masters' part, for a volume with one replica on the node.
pub(crate) struct Scene {
    pub(crate) masters: Masters,
    pub(crate) addr: SocketAddr,
    pub(crate) root: tempfile::TempDir,
}

impl Scene {
    pub(crate) async fn set() -> Self {
        let (masters, addr) = Masters::start().await;
        Self { masters, addr, root: tempfile::tempdir().expect("a directory") }
    }

    pub(crate) fn template(&self) -> PathBuf {
        self.root.path().join("template")
    }

    /// The volume as the masters have it; with a primary in the process `process`.
    pub(crate) fn volume(
        &self,
        confirmed: bool,
        process: Option<u64>,
        addr: SocketAddr,
    ) -> v1::VolumeAssignment {
        let heard = self.masters.heard.borrow();
        let node = heard.registered.as_ref().expect("is registered").node.clone();
        drop(heard);
        let addr = addr.to_string();
        let placement =
            v1::ReplicaPlacement { replica: id(2), node: node.clone(), addr: addr.clone() };
        let primary = |process| v1::ReplicaRef {
            id: id(2),
            incarnation: Some(v1::Incarnation { process, open: 1 }),
        };
        v1::VolumeAssignment {
            volume: id(1),
            name: "vol".into(),
            blocks: BLOCKS,
            replicas: vec![v1::ReplicaAssignment {
                replica: id(2),
                node,
                addr,
                confirmed,
                ..Default::default()
            }],
            config: process.map(|process| v1::Config {
                volume: id(1),
                epoch: process,
                primary: Some(primary(process)),
                since: process,
                isr: vec![id(2)],
                replicas: vec![placement],
                durability: v1::Durability::SyncAll.into(),
                write_ack: v1::WriteAck::Durable.into(),
                min_in_sync: 1,
                blocks: BLOCKS,
                wished_blocks: 0,
                loss_generation: 0,
                handed_over_by: None,
                tails: Vec::new(),
            }),
            ..Default::default()
        }
    }

    pub(crate) async fn until(
        &self,
        what: &str,
        process: &Process,
        wanted: impl Fn(&Heard) -> bool,
    ) {
        let mut heard = self.masters.heard.subscribe();
        let met = tokio::time::timeout(PATIENCE, heard.wait_for(|heard| wanted(heard))).await;
        if met.is_err() {
            panic!(
                "{what} did not happen: {:#?}\n{}",
                self.masters.heard.borrow(),
                process.logged()
            );
        }
    }

    /// Makes the volume on a new node in the template's directory, writes, and leaves it running.
    pub(crate) async fn write(&self) -> Process {
        let process = Process::start(&self.template(), self.addr);
        self.until("a registration", &process, |heard| heard.registered.is_some()).await;
        self.masters.push(vec![self.volume(false, None, process.grpc)]).await;
        self.until("a confirmation", &process, |heard| !heard.created.is_empty()).await;
        self.masters.push(vec![self.volume(true, Some(1), process.grpc)]).await;
        self.until("service", &process, serving).await;
        let nbd = process.nbd;
        tokio::task::spawn_blocking(move || {
            let mut client = Raw::export(nbd);
            for place in PLACES {
                assert_eq!(client.write(place, &data(place)), 0);
            }
            assert_eq!(client.ask(FLUSH, 0, 0), 0);
        })
        .await
        .expect("writes");
        // Damage is told from a torn write once the log's end is recorded.
        let started = Instant::now();
        loop {
            let page = process.page("/projection").await.expect("answers");
            let page: serde_json::Value = serde_json::from_str(&page).expect("JSON");
            let volume = &page["volumes"][0];
            if volume["facts"]["r"].as_u64() >= Some(5)
                && volume["recorded"] == volume["facts"]["r"]
            {
                return process;
            }
            assert!(started.elapsed() < PATIENCE, "the log's end is not recorded: {volume}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

pub(crate) fn serving(heard: &Heard) -> bool {
    let reports = heard.heartbeat.iter().flat_map(|heartbeat| &heartbeat.replicas);
    reports.into_iter().any(|report| report.serving)
}

/// Reads what was written, block by block, and zeros beside it; how many blocks are an I/O error.
/// Other data is never served.
pub(crate) fn read_all(nbd: SocketAddr) -> Result<usize, String> {
    const EIO: u32 = 5;
    let mut client = Raw::export(nbd);
    let mut damaged = 0;
    for place in PLACES {
        let expected = data(place);
        for at in (0..65536).step_by(4096) {
            match client.ask(READ, place + at as u64, 4096) {
                0 if client.take(4096) == expected[at..at + 4096] => {}
                0 => return Err(format!("other data is served at {place} + {at}")),
                EIO => damaged += 1,
                other => panic!("error {other} at {place} + {at}"),
            }
        }
    }
    assert_eq!(client.ask(READ, 8 << 20, 65536), 0);
    assert!(client.take(65536).iter().all(|byte| *byte == 0));
    Ok(damaged)
}
