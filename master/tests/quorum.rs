//! Three real master processes: creates go on while any one of them is killed, nothing that was
//! acknowledged is lost, and two killed members stop changes with a clear error.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sbk_master_client::{MasterClient, MasterError};
use sbk_proto::v1;
use uuid::Uuid;

/// A member's process; killed when dropped.
struct Member {
    child: Child,
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Ports that were free a moment ago. Listening and closing reserves nothing, but nobody else on
/// the machine asks for these numbers meanwhile.
fn free_ports(n: usize) -> Vec<u16> {
    let held: Vec<_> = (0..n).map(|_| TcpListener::bind("127.0.0.1:0").expect("binds")).collect();
    held.iter().map(|listener| listener.local_addr().expect("has an address").port()).collect()
}

struct Quorum {
    dir: tempfile::TempDir,
    ports: Vec<u16>,
    members: Vec<Option<Member>>,
}

impl Quorum {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut quorum = Self { dir, ports: free_ports(6), members: vec![None, None, None] };
        for index in 0..3 {
            quorum.launch(index);
        }
        quorum
    }

    fn addrs(&self) -> Vec<String> {
        self.ports[..3].iter().map(|port| format!("127.0.0.1:{port}")).collect()
    }

    fn launch(&mut self, index: usize) {
        let cluster: Vec<_> =
            self.addrs().iter().enumerate().map(|(i, addr)| format!("{}={addr}", i + 1)).collect();
        let child = spawn(
            &self.dir.path().join(format!("m{index}")),
            index + 1,
            self.ports[index],
            self.ports[index + 3],
            &cluster.join(","),
        );
        self.members[index] = Some(Member { child });
    }

    fn kill(&mut self, index: usize) {
        // Dropping sends SIGKILL and reaps.
        self.members[index] = None;
    }

    fn client(&self) -> MasterClient {
        MasterClient::new(self.addrs()).with_deadline(Duration::from_secs(60))
    }
}

fn spawn(dir: &Path, id: usize, port: u16, http: u16, cluster: &str) -> Child {
    Command::new(env!("CARGO_BIN_EXE_sbk-master"))
        .args(["--id", &id.to_string(), "--cluster", cluster])
        .args(["--listen", &format!("127.0.0.1:{port}"), "--http", &format!("127.0.0.1:{http}")])
        .arg("--data-dir")
        .arg(dir)
        .stderr(Stdio::null())
        .spawn()
        .expect("starts sbk-master")
}

fn node(n: u128) -> v1::RegisterRequest {
    v1::RegisterRequest {
        node: Uuid::from_u128(n).as_bytes().to_vec().into(),
        incarnation: 1,
        revision: 1,
        boot_id: Uuid::from_u128(1).as_bytes().to_vec().into(),
        addr: format!("127.0.0.1:{}", 20_000 + n),
        capacity_bytes: 1 << 40,
        ..v1::RegisterRequest::default()
    }
}

fn volume(name: &str) -> v1::CreateVolumeRequest {
    v1::CreateVolumeRequest {
        id: Uuid::new_v4().as_bytes().to_vec().into(),
        name: name.to_owned(),
        size_bytes: 1 << 20,
        replicas: 3,
        ..v1::CreateVolumeRequest::default()
    }
}

async fn names(client: &MasterClient) -> Vec<String> {
    let listed = client.list_volumes().await.expect("lists");
    listed.volumes.into_iter().map(|volume| volume.name).collect()
}

/// Creates a volume, whatever is being killed: a create may be repeated.
async fn create(client: &MasterClient, request: &v1::CreateVolumeRequest) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match client.create_volume(request.clone()).await {
            Ok(info) => return assert_eq!(info.name, request.name),
            // A new leader has not heard every node yet.
            Err(MasterError::Refused { word, .. }) if word == "too-few-nodes" => {
                for n in 1..=3 {
                    client.register(node(n)).await.expect("registers");
                }
            }
            Err(error) if error.is_transient() => {}
            Err(error) => panic!("create {}: {error}", request.name),
        }
        assert!(Instant::now() < deadline, "{} could not be created", request.name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_any_one_member_loses_nothing() {
    let mut quorum = Quorum::start();
    let client = quorum.client();
    for n in 1..=3 {
        client.register(node(n)).await.expect("registers");
    }
    let mut made = Vec::new();
    for round in 0..6 {
        let status = client.cluster_status().await.expect("a status");
        let leader = status.leader.max(1) as usize - 1;
        // The leader every other time, else a follower.
        let victim = if round % 2 == 0 { leader } else { (leader + 1) % 3 };
        quorum.kill(victim);
        for n in 0..3 {
            let request = volume(&format!("v{round}-{n}"));
            create(&client, &request).await;
            made.push(request.name);
        }
        quorum.launch(victim);
        let mut listed = names(&client).await;
        listed.sort();
        assert_eq!(listed, made, "after round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_a_create_fails_with_exit_code_3_and_the_whole_quorum_comes_back() {
    let mut quorum = Quorum::start();
    let client = quorum.client();
    for n in 1..=3 {
        client.register(node(n)).await.expect("registers");
    }
    create(&client, &volume("before")).await;
    quorum.kill(0);
    quorum.kill(1);
    let hasty = client.with_deadline(Duration::from_secs(5));
    let error = hasty.create_volume(volume("during")).await.expect_err("there is no quorum");
    assert!(matches!(error.exit_code(), 3 | 4), "{error}");
    quorum.kill(2);
    for index in 0..3 {
        quorum.launch(index);
    }
    assert!(names(&client).await.contains(&"before".to_owned()));
}

#[test]
fn a_directory_of_another_member_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let ports = free_ports(2);
    let cluster = format!("1=127.0.0.1:{}", ports[0]);
    let own = dir.path().join("m");
    std::fs::create_dir(&own).expect("makes it");
    std::fs::write(own.join("something"), b"of somebody else").expect("writes");
    let status = spawn(&own, 1, ports[0], ports[1], &cluster).wait().expect("ends");
    assert!(!status.success(), "a foreign directory was adopted");
    assert_eq!(std::fs::read_dir(&own).expect("lists").count(), 2, "only the lock file is added");
}
