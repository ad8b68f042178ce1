//! Garbage on a master's gRPC port: it gets a status that says what is wrong, nothing that was
//! decided changes, and the process never panics.

mod support;

use sbk_proto::v1;
use sbk_proto::v1::control_client::ControlClient;
use sbk_proto::v1::node_service_client::NodeServiceClient;
use sbk_proto::v1::propose_isr_request::Change;
use sbk_proto::v1::raft_client::RaftClient;
use support::{Member, PATIENCE, create, heartbeat, names, node, register_nodes, spawn, volume};
use tonic::transport::Channel;
use tonic::{Code, Status};
use uuid::Uuid;

type Bytes = bytes::Bytes;

struct Scene {
    member: Member,
    client: sbk_master_client::MasterClient,
    channel: Channel,
    cluster: String,
    _dir: tempfile::TempDir,
}

impl Scene {
    /// One master, three nodes, one volume.
    async fn set() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let ports = sbk_ports::kept(2);
        let cluster = format!("1=127.0.0.1:{}", ports[0]);
        let member = spawn(&dir.path().join("m"), 1, ports[0], ports[1], &cluster, &[]);
        let addr = format!("127.0.0.1:{}", ports[0]);
        let client =
            sbk_master_client::MasterClient::new(vec![addr.clone()]).with_deadline(PATIENCE);
        register_nodes(&client).await;
        create(&client, &volume("kept")).await;
        let channel = Channel::from_shared(format!("http://{addr}")).expect("a URI");
        let channel = channel.connect().await.expect("listens");
        Self { member, client, channel, cluster, _dir: dir }
    }

    fn control(&self) -> ControlClient<Channel> {
        let most = 512 << 20;
        ControlClient::new(self.channel.clone()).max_encoding_message_size(most)
    }

    fn nodes(&self) -> NodeServiceClient<Channel> {
        NodeServiceClient::new(self.channel.clone())
    }

    async fn is_well(&self) {
        assert_eq!(names(&self.client).await, ["kept"]);
        let nodes = self.client.list_nodes().await.expect("lists").nodes;
        assert_eq!(nodes.len(), 3);
        let status = self.client.cluster_status().await.expect("tells");
        assert!(status.has_quorum);
        let logged = self.member.logged();
        assert!(!logged.contains("panicked"), "{logged}");
    }
}

fn short() -> Bytes {
    Bytes::from_static(&[1; 15])
}

fn id(n: u128) -> Bytes {
    Bytes::copy_from_slice(Uuid::from_u128(n).as_bytes())
}

/// It is refused so, in few words.
#[track_caller]
fn refused<T>(what: &str, outcome: Result<T, Status>, codes: &[Code]) {
    let status = outcome.map(|_| ()).expect_err(what);
    assert!(codes.contains(&status.code()), "{what}: {status:?}");
    assert!(!status.message().is_empty() && status.message().len() < 1000, "{what}: {status:?}");
}

const MALFORMED: [Code; 1] = [Code::InvalidArgument];
const NO: [Code; 2] = [Code::InvalidArgument, Code::FailedPrecondition];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_refuses_what_makes_no_sense() {
    let scene = Scene::set().await;
    let mut control = scene.control();
    let long = "x".repeat(1 << 20);
    type Edit = fn(&mut v1::CreateVolumeRequest);
    let changes: [Edit; 15] = [
        |r| r.id = Bytes::new(),
        |r| r.id = short(),
        |r| r.id = Bytes::from(vec![1; 1 << 20]),
        |r| r.name = String::new(),
        |r| r.name = "x".repeat(1 << 20),
        |r| r.name = "a\0b\r\nc".into(),
        |r| r.name = "kept".into(),
        |r| r.size_bytes = 0,
        |r| r.size_bytes = 4097,
        |r| r.size_bytes = u64::MAX,
        |r| r.size_bytes = u64::MAX - 4095,
        |r| r.replicas = u32::MAX,
        |r| r.min_in_sync = u32::MAX,
        |r| r.durability = 99,
        |r| r.write_ack = -1,
    ];
    for (n, change) in changes.into_iter().enumerate() {
        let mut request = volume("other");
        change(&mut request);
        refused(&format!("create {n}"), control.create_volume(request).await, &NO);
    }
    for name in ["", "other", &long, "a\r\nb", "\u{1F4A9}"] {
        let name_or_id = name.to_owned();
        let request = v1::GetVolumeRequest { name_or_id: name_or_id.clone() };
        refused("get", control.get_volume(request).await, &NO);
        let request = v1::DeleteVolumeRequest { name_or_id };
        refused("delete", control.delete_volume(request).await, &NO);
    }
    // Longer than any message to it.
    let request = v1::GetVolumeRequest { name_or_id: "x".repeat(300 << 20) };
    let too_long = [Code::OutOfRange, Code::ResourceExhausted];
    refused("a very long name", control.get_volume(request).await, &too_long);
    scene.is_well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_make_no_sense_are_refused() {
    let scene = Scene::set().await;
    let mut nodes = scene.nodes();
    type Edit = fn(&mut v1::RegisterRequest);
    let reference = |process, open| v1::ReplicaRef {
        id: id(77),
        incarnation: Some(v1::Incarnation { process, open }),
    };
    let changes: [Edit; 13] = [
        |r| r.node = Bytes::new(),
        |r| r.node = short(),
        |r| r.boot_id = short(),
        |r| r.incarnation = 0,
        // Datanodes would take no configuration that names such a run.
        |r| r.incarnation = 1 << 62,
        |r| r.addr = String::new(),
        |r| r.addr = "no port".into(),
        |r| r.addr = "h:1".repeat(1 << 18),
        |r| r.http_addr = "\r\n".into(),
        |r| r.zone = "z".repeat(1 << 20),
        // Older than what stands, and another speaker under its number.
        |r| (r.node, r.revision) = (id(1), 0),
        |r| (r.node, r.addr) = (id(1), "127.0.0.1:1".into()),
        |r| r.replicas = vec![v1::RegisteredReplica::default()],
    ];
    for (n, change) in changes.into_iter().enumerate() {
        let mut request = node(9, 1);
        change(&mut request);
        refused(&format!("registration {n}"), nodes.register(request).await, &NO);
    }
    let mut other_run = node(9, 1);
    other_run.replicas = vec![v1::RegisteredReplica {
        replica: Some(reference(u64::MAX, 1)),
        volume: id(1),
        complete: true,
        tail: 0,
        doubtful: false,
        disk: 0,
    }];
    refused("a replica of another run", nodes.register(other_run).await, &NO);

    // A node that is known, with numbers that nothing counts up to.
    let report = v1::ReplicaReport {
        volume: id(u128::MAX),
        replica: Some(reference(u64::MAX, u64::MAX)),
        table_epoch: u64::MAX,
        durable_lsn: u64::MAX,
        committed_lsn: u64::MAX,
        epoch: u64::MAX,
        mode: "m".repeat(100_000),
        reason: "r".repeat(100_000),
        is_primary: true,
        serving: true,
        lacking: vec![id(1); 1000],
        lacking_ms: u64::MAX,
        promised: vec![id(2); 1000],
        tail: Some(v1::TailId { boot: id(3), count: u64::MAX }),
        stood: Some(u64::MAX),
    };
    let mut beat = heartbeat(1);
    (beat.free_bytes, beat.used_bytes) = (u64::MAX, u64::MAX);
    beat.replicas = vec![report.clone(); 3];
    nodes.heartbeat(beat.clone()).await.expect("a heartbeat is observation only");
    // About the volume that there is.
    let kept = scene.client.get_volume("kept").await.expect("there").id;
    beat.replicas = vec![v1::ReplicaReport { volume: kept.clone(), ..report.clone() }];
    nodes.heartbeat(beat.clone()).await.expect("is observed");
    scene.client.get_volume("kept").await.expect("is shown all the same");
    beat.replicas = vec![v1::ReplicaReport { tail: None, ..report.clone() }];
    refused("a report without a tail", nodes.heartbeat(beat.clone()).await, &MALFORMED);
    beat.replicas = vec![v1::ReplicaReport { lacking: vec![short()], ..report }];
    refused("a short id in a report", nodes.heartbeat(beat).await, &MALFORMED);
    let mut unknown = heartbeat(99);
    unknown.incarnation = u64::MAX;
    let answer = nodes.heartbeat(unknown).await.expect("is told to register").into_inner();
    assert!(answer.register);

    let watch = v1::WatchAssignmentsRequest { node: short(), incarnation: 1, ..Default::default() };
    refused("a watch by nobody", nodes.watch_assignments(watch).await, &MALFORMED);
    let watch = v1::WatchAssignmentsRequest { volume: short(), ..Default::default() };
    refused("a watch of nothing", nodes.watch_assignments(watch).await, &MALFORMED);
    let proposal = |change| v1::ProposeIsrRequest {
        volume: kept.clone(),
        expect_epoch: u64::MAX,
        primary: Some(reference(u64::MAX, u64::MAX)),
        change,
    };
    for change in [None, Some(Change::Leave(short())), Some(Change::Join(Default::default()))] {
        refused("a proposal", nodes.propose_isr(proposal(change)).await, &MALFORMED);
    }
    for change in [Change::Burn(true), Change::Leave(id(1)), Change::Join(reference(u64::MAX, 1))] {
        let answer = nodes.propose_isr(proposal(Some(change))).await.expect("is answered");
        assert!(!answer.into_inner().refused.is_empty(), "it says why not");
    }
    let confirm = |volume, replica| v1::ConfirmReplicaRequest {
        node: id(1),
        incarnation: 1,
        volume,
        replica,
        tail: 0,
    };
    for (volume, replica, codes) in [
        (short(), Some(reference(1, 1)), &MALFORMED[..]),
        (kept.clone(), None, &MALFORMED),
        (kept.clone(), Some(reference(1, 1 << 62)), &MALFORMED),
        (kept.clone(), Some(reference(u64::MAX, 1)), &NO),
        (id(4711), Some(reference(1, 1)), &NO),
    ] {
        refused("a confirmation", nodes.confirm_replica(confirm(volume, replica)).await, codes);
    }
    let removed =
        |volume, replica| v1::ConfirmDeleteRequest { node: id(1), incarnation: 1, volume, replica };
    let malformed = removed(short(), id(77));
    refused("a removal", nodes.confirm_delete(malformed).await, &MALFORMED);
    // One that is not in the volume's list may have been replaced, and this be said again; one that
    // is must stay.
    let members = scene.client.get_volume("kept").await.expect("there").members;
    let listed = removed(kept.clone(), members[0].replica.clone());
    refused("a removal", nodes.confirm_delete(listed).await, &NO);
    scene.is_well().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raft_messages_of_strangers_are_refused() {
    let scene = Scene::set().await;
    let mut raft = RaftClient::new(scene.channel.clone());
    let message = |cluster: &str, member, instance: &[u8], body: &[u8]| v1::RaftMessage {
        cluster: cluster.to_owned(),
        body: Bytes::copy_from_slice(body),
        member,
        instance: Bytes::copy_from_slice(instance),
    };
    let vote = br#"{"vote":{"leader_id":{"term":18446744073709551615,"node_id":2},"committed":true},"last_log_id":null}"#;
    let own = scene.cluster.clone();
    let instance = Uuid::from_u128(5);
    let strangers = [
        message("", 1, instance.as_bytes(), vote),
        message("1=elsewhere:1", 1, instance.as_bytes(), vote),
        message(&own, 2, instance.as_bytes(), vote),
        message(&own, u64::MAX, instance.as_bytes(), vote),
        // The member itself, with another directory than its own.
        message(&own, 1, instance.as_bytes(), vote),
        message(&own, 1, b"short", vote),
        message(&"x".repeat(1 << 20), 1, instance.as_bytes(), vote),
    ];
    for (n, stranger) in strangers.into_iter().enumerate() {
        refused(&format!("vote {n}"), raft.vote(stranger.clone()).await, &NO);
        refused(&format!("append {n}"), raft.append_entries(stranger.clone()).await, &NO);
        let chunk = v1::SnapshotChunk {
            cluster: stranger.cluster,
            head: stranger.body,
            data: Bytes::new(),
            last: true,
            member: stranger.member,
            instance: stranger.instance,
        };
        let sent = raft.install_snapshot(tokio_stream::once(chunk)).await;
        refused(&format!("snapshot {n}"), sent, &NO);
    }
    let nothing = raft.install_snapshot(tokio_stream::empty()).await;
    refused("no snapshot at all", nothing, &[Code::Aborted]);
    scene.is_well().await;
}
