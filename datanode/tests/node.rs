//! A whole datanode against masters that the test plays: it joins, creates, serves, restarts,
//! reports what is lost, deletes on orders only, and drains.

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sbk_datanode::{Args, Listeners, serve};
use sbk_proto::v1;
use support::masters::{Heard, Masters};
use support::mem_dir::MemDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(30);

fn id(n: u128) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(Uuid::from_u128(n).as_bytes())
}

fn volume(confirmed: bool, process: Option<u64>) -> v1::VolumeAssignment {
    let addr = "127.0.0.1:1".to_owned();
    let primary = |process| v1::ReplicaRef {
        id: id(2),
        incarnation: Some(v1::Incarnation { process, open: 1 }),
    };
    let placement = v1::ReplicaPlacement { replica: id(2), node: id(50), addr: addr.clone() };
    v1::VolumeAssignment {
        volume: id(1),
        name: "vol1".into(),
        blocks: 256,
        replicas: vec![v1::ReplicaAssignment {
            replica: id(2),
            node: id(50),
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
            blocks: 256,
            wished_blocks: 0,
            loss_generation: 0,
            handed_over_by: None,
            tails: Vec::new(),
        }),
        ..Default::default()
    }
}

struct Running {
    http: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    async fn start(dir: MemDir, masters: SocketAddr) -> Self {
        let any = Some("127.0.0.1:0".parse().expect("an address"));
        let args = Args {
            data_dir: Some(vec!["/nowhere".into()]),
            masters: Some(vec![masters.to_string()]),
            listen: any,
            http: any,
            nbd: any,
            ..Args::default()
        };
        let settings = args.settings().expect("is complete");
        let listeners = Listeners::bind(&settings).await.expect("ports are free");
        let http = listeners.http.local_addr().expect("bound");
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            let _stopped = stopped.await;
        };
        let task = tokio::spawn(serve(dir, settings, listeners, shutdown));
        Self { http, stop, task }
    }

    async fn stop(self) {
        self.stop.send(()).expect("it runs");
        let ended = tokio::time::timeout(PATIENCE, self.task).await.expect("it drains in time");
        ended.expect("no panic").expect("a clean end");
    }

    /// One request; the status code and the body.
    async fn ask(&self, method: &str, path: &str) -> (u16, String) {
        let mut socket = tokio::net::TcpStream::connect(self.http).await.expect("listens");
        let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.expect("answered");
        let (head, body) = answer.split_once("\r\n\r\n").expect("HTTP");
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a code");
        (code, body.to_owned())
    }
}

async fn until(masters: &Masters, what: &str, wanted: impl Fn(&Heard) -> bool) {
    let mut heard = masters.heard.subscribe();
    let met = tokio::time::timeout(PATIENCE, heard.wait_for(|heard| wanted(heard))).await;
    if met.is_err() {
        panic!("{what} did not happen: {:#?}", masters.heard.borrow());
    }
}

fn serving(heard: &Heard) -> bool {
    let reports = heard.heartbeat.iter().flat_map(|heartbeat| &heartbeat.replicas);
    reports.into_iter().any(|report| report.serving)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_created_served_and_deleted() {
    let (masters, addr) = Masters::start().await;
    let dir = MemDir::default().next_process();
    let node = Running::start(dir.clone(), addr).await;
    until(&masters, "a registration", |heard| heard.registered.is_some()).await;
    masters.push(vec![volume(false, None)]).await;
    until(&masters, "a confirmation", |heard| !heard.created.is_empty()).await;
    masters.push(vec![volume(true, Some(1))]).await;
    until(&masters, "service", serving).await;
    until(&masters, "a registration with the replica", |heard| {
        heard.registered.as_ref().is_some_and(|r| r.replicas.len() == 1 && r.revision > 1)
    })
    .await;

    // The masters have the registration before the node has their answer.
    let deadline = std::time::Instant::now() + PATIENCE;
    while node.ask("GET", "/readyz").await.0 != 200 {
        assert!(std::time::Instant::now() < deadline, "it is not ready");
        tokio::task::yield_now().await;
    }
    for path in ["/", "/status", "/healthz", "/readyz", "/projection", "/trace", "/watchdog"] {
        assert_eq!(node.ask("GET", path).await.0, 200, "{path}");
    }
    let (_, trace) = node.ask("GET", &format!("/trace?volume={}", Uuid::from_u128(1))).await;
    assert!(trace.contains("promoted"), "{trace}");
    assert_eq!(node.ask("GET", "/trace?volume=x").await.0, 400);
    // Whose is not said, and of all volumes at once it would be too much.
    assert_eq!(node.ask("GET", "/trace?format=recording").await.0, 400);
    let (_, metrics) = node.ask("GET", "/metrics").await;
    assert!(metrics.contains("sbk_datanode_serving{volume="), "{metrics}");
    let (_, diagnosis) = node.ask("GET", "/diagnose").await;
    assert!(diagnosis.contains("\"well\":true"), "{diagnosis}");
    for (method, path) in [("POST", "/status"), ("DELETE", "/volumes/1"), ("PUT", "/")] {
        let (code, body) = node.ask(method, path).await;
        assert_eq!(code, 501, "{method} {path}");
        assert!(body.contains("sbkctl"), "{body}");
    }

    let deleted = v1::VolumeAssignment { deleted: true, ..volume(true, None) };
    masters.push(vec![deleted]).await;
    until(&masters, "a confirmed removal", |heard| !heard.deleted.is_empty()).await;
    assert!(dir.stores.lock().unwrap().is_empty());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_primary_waits_for_a_new_assignment() {
    let (masters, addr) = Masters::start().await;
    let first = MemDir::default().next_process();
    let node = Running::start(first.clone(), addr).await;
    masters.push(vec![volume(false, None)]).await;
    until(&masters, "a confirmation", |heard| !heard.created.is_empty()).await;
    masters.push(vec![volume(true, Some(1))]).await;
    until(&masters, "service", serving).await;
    node.stop().await;

    masters.heard.send_replace(Heard::default());
    let node = Running::start(first.next_process(), addr).await;
    until(&masters, "a registration of the new process", |heard| {
        heard.registered.as_ref().is_some_and(|r| r.incarnation == 2 && r.replicas.len() == 1)
    })
    .await;
    // One of the process before may come late.
    until(&masters, "a heartbeat that tells of no service from an old assignment", |heard| {
        let new = heard.heartbeat.as_ref().filter(|h| h.incarnation == 2 && h.replicas.len() == 1);
        new.is_some_and(|_| !serving(heard))
    })
    .await;
    masters.push(vec![volume(true, Some(2))]).await;
    until(&masters, "service in the new epoch", serving).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confirmed_replica_that_is_missing_is_reported_and_never_made_again() {
    let (masters, addr) = Masters::start().await;
    masters.push(vec![volume(true, Some(1))]).await;
    let dir = MemDir::default().next_process();
    let node = Running::start(dir.clone(), addr).await;
    until(&masters, "a registration", |heard| heard.registered.is_some()).await;
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let (_, diagnosis) = node.ask("GET", "/diagnose").await;
        if diagnosis.contains("is not in the data directory") {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{diagnosis}");
        tokio::task::yield_now().await;
    }
    assert!(dir.stores.lock().unwrap().is_empty());
    assert!(masters.heard.borrow().created.is_empty());
    node.stop().await;
}

/// The masters forgot a node with its replica, and placed another one when it came back: the first
/// holds its place, so the other is never made. Without the answer its removal is waited for for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_removal_is_answered_though_another_replica_is_here() {
    let (masters, addr) = Masters::start().await;
    let dir = MemDir::default().next_process();
    let node = Running::start(dir.clone(), addr).await;
    masters.push(vec![volume(false, None)]).await;
    until(&masters, "a confirmation", |heard| !heard.created.is_empty()).await;
    let other = v1::VolumeAssignment {
        replicas: Vec::new(),
        retired: vec![v1::RetiredReplica { replica: id(3), node: id(50) }],
        ..volume(true, None)
    };
    masters.push(vec![other]).await;
    until(&masters, "a confirmed removal", |heard| {
        heard.deleted.iter().any(|gone| gone.replica == id(3))
    })
    .await;
    let here: Vec<_> = dir.stores.lock().unwrap().keys().map(|(_, replica)| replica.0).collect();
    assert_eq!(here, [Uuid::from_u128(2)]);
    node.stop().await;
}

/// The masters do not answer for a new replica when it is ordered to go: what is tried again for the
/// confirmation must not begin another removal beside the one that waits for the replica's task.
#[tokio::test(flavor = "multi_thread")]
async fn a_confirmation_that_fails_lets_no_second_removal_begin() {
    let (masters, addr) = Masters::start().await;
    masters.refusing.store(true, Ordering::Relaxed);
    let dir = MemDir::default().next_process();
    let node = Running::start(dir.clone(), addr).await;
    let other = || {
        let mut other =
            v1::VolumeAssignment { volume: id(11), name: "vol2".into(), ..volume(false, None) };
        other.replicas[0].replica = id(12);
        other
    };
    let refused = |heard: &Heard, volume: u128| {
        heard.refused.iter().filter(|request| request.volume == id(volume)).count()
    };
    masters.push(vec![volume(false, None), other()]).await;
    until(&masters, "both are told", |heard| refused(heard, 1) > 0 && refused(heard, 11) > 0).await;
    let may_remove = Arc::clone(&dir.may_remove);
    let mut removals = dir.removals.subscribe();
    let (hold, held) = std::sync::mpsc::channel::<()>();
    let (holds, held_back) = oneshot::channel();
    let holding = tokio::task::spawn_blocking(move || {
        let guard = may_remove.write().unwrap();
        holds.send(()).expect("it is waited for");
        // Until the test lets go, or has failed.
        let _over = held.recv();
        drop(guard);
    });
    held_back.await.expect("removals are held back");
    let deleted = v1::VolumeAssignment { deleted: true, ..volume(false, None) };
    masters.push(vec![deleted, other()]).await;
    let begun = tokio::time::timeout(PATIENCE, removals.wait_for(|begun| *begun > 0)).await;
    begun.expect("a removal begins").expect("the directory is there");
    // Each is told once a second: by the third time, what failed of the first was looked at again.
    let told = refused(&masters.heard.borrow(), 11);
    until(&masters, "time passes", |heard| refused(heard, 11) > told + 2).await;
    assert_eq!(*removals.borrow(), 1, "removals were begun");
    drop(hold);
    holding.await.expect("it lets go");
    until(&masters, "a confirmed removal", |heard| !heard.deleted.is_empty()).await;
    assert_eq!(*removals.borrow(), 1, "removals were begun");
    node.stop().await;
}

/// A replica that is out of sync and restarts leads to no epoch. If its node has another address then, its
/// primary learns it in the epoch in force.
#[tokio::test(flavor = "multi_thread")]
async fn a_primary_goes_to_the_new_address_of_a_replica_in_the_same_epoch() {
    let (masters, addr) = Masters::start().await;
    let node = Running::start(MemDir::default().next_process(), addr).await;
    masters.push(vec![volume(false, None)]).await;
    until(&masters, "a confirmation", |heard| !heard.created.is_empty()).await;
    let with_other_at = |addr: String| {
        let mut volume = volume(true, Some(1));
        volume.replicas.push(v1::ReplicaAssignment {
            replica: id(3),
            node: id(51),
            addr: addr.clone(),
            confirmed: true,
            ..Default::default()
        });
        let config = volume.config.as_mut().expect("it has an epoch");
        config.replicas.push(v1::ReplicaPlacement { replica: id(3), node: id(51), addr });
        volume
    };
    masters.push(vec![with_other_at("127.0.0.1:1".to_owned())]).await;
    until(&masters, "service", serving).await;
    let other = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let moved_to = other.local_addr().expect("bound").to_string();
    masters.push(vec![with_other_at(moved_to)]).await;
    let came = tokio::time::timeout(PATIENCE, other.accept()).await;
    came.expect("the primary came to the new address").expect("accepted");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_a_clear_error() {
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let args = Args {
        data_dir: Some(vec!["/nowhere".into()]),
        masters: Some(vec!["127.0.0.1:1".into()]),
        listen: Some(taken.local_addr().expect("bound")),
        ..Args::default()
    };
    let settings = args.settings().expect("is complete");
    let error = Listeners::bind(&settings).await.expect_err("the port is taken");
    let text = format!("{error:#}");
    assert!(text.contains("--listen") && text.contains("in use"), "{text}");
}
