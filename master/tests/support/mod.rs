//! Real master processes on reserved ports of this machine.
#![allow(dead_code)] // Each test file uses its part of this.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use sbk_master_client::{MasterClient, MasterError};
use sbk_proto::v1;
use uuid::Uuid;

/// Longest wait for anything. Reaching it is a failure; nothing is measured by it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A member's process; killed when dropped.
#[derive(Debug)]
pub(crate) struct Member {
    child: Child,
    log: PathBuf,
}

impl Drop for Member {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking()
            && let Ok(logged) = std::fs::read_to_string(&self.log)
        {
            eprintln!("{}:\n{logged}", self.log.display());
        }
    }
}

impl Member {
    /// What it logged.
    pub(crate) fn logged(&self) -> String {
        std::fs::read_to_string(&self.log).expect("a member's log")
    }

    /// Waits until it ends by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("waits") {
                return status;
            }
            assert!(started.elapsed() < PATIENCE, "it did not end:\n{}", self.logged());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// SIGTERM.
    pub(crate) fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signals");
    }
}

/// Starts a member with these arguments besides its own.
pub(crate) fn spawn(
    dir: &Path,
    id: usize,
    port: u16,
    http: u16,
    cluster: &str,
    more: &[&str],
) -> Member {
    let log = dir.with_extension(format!("{}.log", Uuid::new_v4()));
    let to = File::create(&log).expect("makes a log file");
    Member { child: command(dir, id, port, http, cluster, more, to), log }
}

/// The same, but that its log can't be written.
pub(crate) fn spawn_unheard(dir: &Path, id: usize, port: u16, http: u16, cluster: &str) -> Member {
    let log = dir.with_extension("empty.log");
    File::create(&log).expect("makes a log file");
    let full = File::options().write(true).open("/dev/full").expect("opens");
    Member { child: command(dir, id, port, http, cluster, &[], full), log }
}

fn command(
    dir: &Path,
    id: usize,
    port: u16,
    http: u16,
    cluster: &str,
    more: &[&str],
    stderr: File,
) -> Child {
    Command::new(env!("CARGO_BIN_EXE_sbk-master"))
        .args(["--id", &id.to_string(), "--cluster", cluster])
        .args(["--listen", &format!("127.0.0.1:{port}"), "--http", &format!("127.0.0.1:{http}")])
        .args(more)
        .arg("--data-dir")
        .arg(dir)
        .stderr(stderr)
        .spawn()
        .expect("starts sbk-master")
}

/// Three members.
#[derive(Debug)]
pub(crate) struct Quorum {
    dir: tempfile::TempDir,
    ports: Vec<u16>,
    members: Vec<Option<Member>>,
    more: Vec<&'static str>,
}

impl Quorum {
    /// Starts all three, with these arguments besides their own.
    pub(crate) fn start(more: &[&'static str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let members = vec![None, None, None];
        let mut quorum = Self { dir, ports: sbk_ports::kept(6), members, more: more.to_vec() };
        for index in 0..3 {
            quorum.launch(index);
        }
        quorum
    }

    pub(crate) fn addrs(&self) -> Vec<String> {
        self.ports[..3].iter().map(|port| format!("127.0.0.1:{port}")).collect()
    }

    pub(crate) fn addr(&self, index: usize) -> String {
        format!("127.0.0.1:{}", self.ports[index])
    }

    pub(crate) fn data_dir(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("m{index}"))
    }

    pub(crate) fn cluster(&self) -> String {
        let addrs = self.addrs();
        let members: Vec<_> =
            addrs.iter().enumerate().map(|(i, addr)| format!("{}={addr}", i + 1)).collect();
        members.join(",")
    }

    /// Starts a member.
    pub(crate) fn launch(&mut self, index: usize) {
        let (port, http) = (self.ports[index], self.ports[index + 3]);
        let dir = self.data_dir(index);
        let member = spawn(&dir, index + 1, port, http, &self.cluster(), &self.more);
        self.members[index] = Some(member);
    }

    /// SIGKILL, and reaps it.
    pub(crate) fn kill(&mut self, index: usize) {
        self.members[index] = None;
    }

    pub(crate) fn member(&mut self, index: usize) -> &mut Member {
        self.members[index].as_mut().expect("was started")
    }

    pub(crate) fn client(&self) -> MasterClient {
        MasterClient::new(self.addrs()).with_deadline(PATIENCE)
    }

    /// The leader's number from 0, once there is one with a majority.
    pub(crate) async fn leader(&self) -> usize {
        let client = self.client();
        let status = eventually("a leader", || async {
            let status = client.cluster_status().await.ok()?;
            (status.has_quorum && status.leader == status.id).then_some(status)
        });
        status.await.leader as usize - 1
    }
}

/// Polls until there is something.
pub(crate) async fn eventually<T, F>(what: &str, mut look: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let started = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "waited too long for {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A datanode that only registers.
pub(crate) fn node(n: u128, revision: u64) -> v1::RegisterRequest {
    v1::RegisterRequest {
        node: Uuid::from_u128(n).as_bytes().to_vec().into(),
        incarnation: 1,
        revision,
        boot_id: Uuid::from_u128(1).as_bytes().to_vec().into(),
        addr: format!("127.0.0.1:{}", 20_000 + n),
        capacity_bytes: 1 << 40,
        ..v1::RegisterRequest::default()
    }
}

/// Its heartbeat.
pub(crate) fn heartbeat(n: u128) -> v1::HeartbeatRequest {
    v1::HeartbeatRequest {
        node: Uuid::from_u128(n).as_bytes().to_vec().into(),
        incarnation: 1,
        ..v1::HeartbeatRequest::default()
    }
}

/// Three nodes.
pub(crate) async fn register_nodes(client: &MasterClient) {
    for n in 1..=3 {
        client.register(node(n, 1)).await.expect("registers");
    }
}

pub(crate) fn volume(name: &str) -> v1::CreateVolumeRequest {
    v1::CreateVolumeRequest {
        id: Uuid::new_v4().as_bytes().to_vec().into(),
        name: name.to_owned(),
        size_bytes: 1 << 20,
        replicas: 3,
        ..v1::CreateVolumeRequest::default()
    }
}

/// The names of all volumes, sorted.
pub(crate) async fn names(client: &MasterClient) -> Vec<String> {
    let listed = client.list_volumes().await.expect("lists");
    let mut names: Vec<_> = listed.volumes.into_iter().map(|volume| volume.name).collect();
    names.sort();
    names
}

/// Creates a volume, whatever is being killed: a create may be repeated.
pub(crate) async fn create(client: &MasterClient, request: &v1::CreateVolumeRequest) {
    let started = Instant::now();
    loop {
        match client.create_volume(request.clone()).await {
            Ok(info) => return assert_eq!(info.name, request.name),
            // The nodes of this test don't beat by themselves, and are taken for dead in time.
            Err(MasterError::Refused { word, .. }) if word == "too-few-nodes" => {
                for n in 1..=3 {
                    client.heartbeat(heartbeat(n)).await.expect("beats");
                }
            }
            Err(error) if error.is_transient() => {}
            Err(error) => panic!("create {}: {error}", request.name),
        }
        assert!(started.elapsed() < PATIENCE, "{} could not be created", request.name);
    }
}
