//! Volume tasks over real gRPC: writes, a follower that goes and comes back, a failover.

mod support;

use std::sync::Arc;

use sbk_datanode::link::{IoOp, LinkOutcome};
use sbk_datanode::transport::{Answers, EntriesLost, WireEntry};
use sbk_datanode::volume::RunState;
use sbk_datanode::volume::events::{AnswerPath, LaneId, PeerEvent};
use sbk_engine::recording::file;
use sbk_engine::replication::io::Output;
use sbk_engine::replication::log::{EntryHeader, EntryKind};
use sbk_engine::replication::message::{
    Append, Incomplete, Lineage, RecoveryId, ToPrimary, ToReplica,
};
use sbk_engine::types::{Epoch, Incarnation, Lsn, ReplicaRef};
use support::{Cluster, PATIENCE, replica};

fn committed(status: &sbk_datanode::volume::VolumeStatus) -> Lsn {
    status.view.as_ref().map(|view| view.committed).unwrap_or_default()
}

/// Waits until all replicas' extents hold everything, and compares them.
fn assert_images_equal(cluster: &Cluster, ids: &[u128]) {
    let primary = cluster.primary();
    let head = cluster.stores[&primary].disk().durable;
    for id in ids {
        cluster.wait(replica(*id), "a whole checkpoint", |status| {
            let view = status.view.as_ref();
            view.is_some_and(|view| view.checkpoint >= head && view.incomplete.is_none())
        });
    }
    let expected = cluster.stores[&primary].image();
    for id in ids {
        assert_eq!(cluster.stores[&replica(*id)].image(), expected, "replica {id}");
    }
}

#[test]
fn a_write_is_on_every_replica() {
    let cluster = Cluster::start(3, 2);
    let mut client = cluster.client();
    client.write(7, 0xaa);
    client.write(8, 0xbb);
    assert_eq!((client.read(7), client.read(8), client.read(9)), (0xaa, 0xbb, 0));
    let (outcome, _) = client.request(IoOp::Flush);
    assert_eq!(outcome, LinkOutcome::Done);
    let (outcome, _) = client.request(IoOp::Trim { offset: 8 * 4096, length: 4096 });
    assert_eq!(outcome, LinkOutcome::Done);
    assert_eq!(client.read(8), 0);
    assert_images_equal(&cluster, &[1, 2, 3]);
}

#[test]
fn sectors_are_merged() {
    let cluster = Cluster::start(2, 1);
    let mut client = cluster.client();
    client.write(0, 1);
    let sector = vec![2; 512];
    let write = IoOp::Write { offset: 512, data: sector.into() };
    assert_eq!(client.request(write).0, LinkOutcome::Done);
    let (_, data) = client.request(IoOp::Read { offset: 0, length: 1536 });
    assert!(data[..512].iter().chain(&data[1024..]).all(|byte| *byte == 1));
    assert!(data[512..1024].iter().all(|byte| *byte == 2));
    assert_images_equal(&cluster, &[1, 2]);
}

#[test]
fn a_follower_that_dies_leaves_and_catches_up() {
    let cluster = Cluster::start(3, 2);
    let mut client = cluster.client();
    client.write(0, 1);
    cluster.kill(replica(3));
    client.write(1, 2);
    cluster.wait_in_sync(2);
    for block in 2..200 {
        client.write(block, block as u8);
    }
    cluster.boot(replica(3));
    cluster.wait_in_sync(3);
    client.write(200, 200);
    assert_images_equal(&cluster, &[1, 2, 3]);
}

/// What it holds is written over from here on: a rebuild of it broke, with its process.
fn tear(cluster: &Cluster, n: u128) {
    let session = RecoveryId { epoch: Epoch(1), number: 1 };
    let mark = Incomplete { session, from: Lsn(0), base: Lsn(1), target: Lsn(1) };
    cluster.stores[&replica(n)].disk().kept.incomplete = Some(mark);
}

#[test]
fn a_follower_that_missed_too_much_gets_what_changed() {
    let cluster = Cluster::start(3, 2);
    let mut client = cluster.client();
    for block in 0..300 {
        client.write(block, block as u8 | 1);
    }
    cluster.kill(replica(3));
    client.write(1, 2);
    cluster.wait_in_sync(2);
    cluster.stores.values().for_each(|store| store.disk().retain = 1);
    for block in 200..600 {
        client.write(block, block as u8 | 1);
    }
    cluster.boot(replica(3));
    cluster.wait_in_sync(3);
    client.write(4000, 7);
    assert_eq!(client.read(0), 1);
    assert_images_equal(&cluster, &[1, 2, 3]);
    let nodes = cluster.nodes.lock().unwrap();
    let trace = nodes[&replica(3)].handle.trace.after(0);
    assert!(trace.iter().any(|entry| entry.event.what == "delta-taken"), "{trace:?}");
}

/// A rebuild takes its time, and the set changes for reasons of others meanwhile: what was copied is
/// not thrown away for it.
#[test]
fn a_rebuild_goes_on_through_a_new_epoch() {
    let cluster = Cluster::start(3, 2);
    let mut client = cluster.client();
    for block in 0..300 {
        client.write(block, block as u8 | 1);
    }
    cluster.kill(replica(3));
    tear(&cluster, 3);
    client.write(1, 2);
    cluster.wait_in_sync(2);
    cluster.stores.values().for_each(|store| store.disk().retain = 1);
    for block in 200..600 {
        client.write(block, block as u8 | 1);
    }
    let reads = Arc::clone(&cluster.stores[&cluster.primary()].reads);
    let held = reads.write().unwrap();
    cluster.boot(replica(3));
    cluster.wait(replica(3), "the mark of a rebuild", |status| {
        status.view.as_ref().is_some_and(|view| view.incomplete.is_some())
    });
    cluster.burn();
    let epoch = cluster.config.lock().unwrap().epoch;
    cluster.wait(replica(3), "the new epoch", |status| {
        status.view.as_ref().is_some_and(|view| view.epoch == epoch)
    });
    drop(held);
    cluster.wait_in_sync(3);
    client.write(4000, 7);
    assert_images_equal(&cluster, &[1, 2, 3]);
    let nodes = cluster.nodes.lock().unwrap();
    let trace = nodes[&replica(3)].handle.trace.after(0);
    let begun = trace.iter().filter(|entry| entry.event.what == "rebuild-started").count();
    assert_eq!(begun, 1, "{trace:?}");
}

/// A wipe may take longer than a primary waits for an answer. The order to begin that it repeats then
/// goes on with the session that there is.
#[test]
fn a_rebuild_begins_once_however_long_the_wipe_takes() {
    let cluster = Cluster::start(3, 2);
    let mut client = cluster.client();
    client.write(0, 1);
    cluster.kill(replica(3));
    tear(&cluster, 3);
    client.write(1, 2);
    cluster.wait_in_sync(2);
    cluster.stores.values().for_each(|store| store.disk().retain = 1);
    for block in 2..100 {
        client.write(block, block as u8);
    }
    let wipes = Arc::clone(&cluster.stores[&replica(3)].wipes);
    let held = wipes.write().unwrap();
    cluster.boot(replica(3));
    let primary = Arc::clone(&cluster.nodes.lock().unwrap()[&replica(1)].handle);
    cluster.wait(replica(1), "an order to begin, again", |_| {
        let text = primary.recorder.text("a test").expect("it is open");
        let recording = file::read(&text).expect("reads").remove(0).1;
        let outcomes = recording.steps.iter().filter_map(|step| step.outcome.as_ref());
        let orders = outcomes.flat_map(|outcome| &outcome.outputs).filter(|output| {
            let begin = |message: &_| matches!(message, ToReplica::BeginRebuild { .. });
            matches!(output, Output::ToReplica { message, .. } if begin(message))
        });
        orders.count() >= 2
    });
    drop(held);
    cluster.wait_in_sync(3);
    assert_images_equal(&cluster, &[1, 2, 3]);
    let count = |n, what| {
        let handle = Arc::clone(&cluster.nodes.lock().unwrap()[&replica(n)].handle);
        handle.trace.after(0).iter().filter(|entry| entry.event.what == what).count()
    };
    let counts = [count(3, "rebuild-started"), count(1, "rebuild"), count(1, "session-failed")];
    assert_eq!(counts, [1, 1, 0]);
}

#[test]
fn a_dead_primary_is_replaced_and_its_client_goes_on() {
    let cluster = Cluster::start(3, 2);
    let mut client = cluster.client();
    for block in 0..50 {
        client.write(block, 1 + block as u8);
    }
    cluster.kill(replica(1));
    cluster.fail_over(replica(2), replica(1));
    for block in 0..50 {
        assert_eq!(client.read(block), 1 + block as u8);
    }
    client.write(50, 51);
    cluster.boot(replica(1));
    cluster.wait_in_sync(3);
    client.write(51, 52);
    assert_images_equal(&cluster, &[1, 2, 3]);
}

#[test]
fn a_failed_store_comes_back_as_another_incarnation() {
    let cluster = Cluster::start(3, 2);
    let mut client = cluster.client();
    client.write(0, 1);
    cluster.stores[&replica(2)].disk().failing = true;
    client.write(1, 2);
    cluster.wait(replica(2), "another opening", |status| {
        status.open_as().is_some_and(|open| open.replica.incarnation.open > 1)
    });
    cluster.wait_in_sync(3);
    client.write(2, 3);
    assert_images_equal(&cluster, &[1, 2, 3]);
}

/// Its request is read by the connection until that notices: by then the log may have been cut.
#[test]
fn what_an_abandoned_feed_cannot_read_fails_no_store() {
    let cluster = Cluster::start(3, 2);
    let mut client = cluster.client();
    client.write(0, 1);
    let primary = cluster.primary();
    let peers = cluster.nodes.lock().unwrap()[&primary].handle.peers.clone();
    for id in [2, 3] {
        let lost = EntriesLost::Unreadable { lsn: Lsn(1), what: "no frame is there".to_owned() };
        let event = PeerEvent::FeedFailed { replica: replica(id), lane: LaneId(u64::MAX), lost };
        peers.blocking_send(event).expect("it runs");
    }
    // Taken after what other replicas say, and done only once that was.
    client.write(1, 2);
    assert_eq!(client.read(0), 1);
    let nodes = cluster.nodes.lock().unwrap();
    let status = nodes[&primary].handle.status.borrow().clone();
    assert_eq!(status.open_as().map(|open| open.replica.incarnation.open), Some(1), "{status:?}");
}

/// A disk that fails one write and does not answer another.
#[test]
fn a_primary_whose_store_failed_is_replaced_while_its_disk_hangs() {
    let cluster = Cluster::start(3, 2);
    let mut client = cluster.client();
    let store = &cluster.stores[&replica(1)];
    store.disk().no_checkpoints = true;
    client.write(0, 1);
    std::thread::scope(|scope| {
        let hung = store.batches.write().unwrap();
        let write = scope.spawn(|| {
            client.write(1, 2);
            client
        });
        cluster.wait(replica(2), "what the primary is to sync", |status| {
            status.view.as_ref().is_some_and(|view| view.durable > store.disk().durable)
        });
        {
            let mut disk = store.disk();
            (disk.failing_checkpoints, disk.no_checkpoints) = (true, false);
        }
        cluster.wait(replica(1), "a failure that others know of", |status| {
            matches!(status.run, RunState::Failed { .. }) && status.open_as().is_none()
        });
        cluster.fail_over(replica(2), replica(1));
        let mut client = write.join().expect("the new primary answers");
        assert_eq!((client.read(0), client.read(1)), (1, 2));
        store.disk().failing_checkpoints = false;
        drop(hung);
    });
    cluster.wait_in_sync(3);
    assert_images_equal(&cluster, &[1, 2, 3]);
}

#[test]
fn a_full_log_holds_clients_back_and_lets_them_go_on() {
    let cluster = Cluster::start(2, 1);
    let mut client = cluster.client();
    client.write(0, 1);
    for store in cluster.stores.values() {
        store.disk().limit = 8;
    }
    for block in 0..100 {
        client.write(block, 1 + block as u8);
    }
    cluster.wait(replica(1), "commits", |status| committed(status) > Lsn(100));
    assert_images_equal(&cluster, &[1, 2]);
}

/// Nothing commits, so a follower's log that is full stays full. It goes on to take what it is told, of
/// whatever primary, and gets what found no place once there is room.
#[test]
fn a_follower_whose_log_stays_full_goes_on_listening() {
    let cluster = Cluster::start(3, 3);
    let (mut client, mut other) = (cluster.client(), cluster.client());
    client.write(0, 1);
    other.write(0, 1);
    let head = cluster.stores[&replica(2)].disk().durable;
    cluster.kill(replica(3));
    cluster.stores[&replica(2)].disk().limit = 1;
    std::thread::scope(|scope| {
        let first = scope.spawn(|| client.write(1, 2));
        cluster.wait(replica(2), "a full log", |status| {
            status.wal_full && status.view.as_ref().is_some_and(|view| view.durable > head)
        });
        let status = cluster.nodes.lock().unwrap()[&replica(2)].handle.current();
        let (_, reason) = sbk_datanode::node::mode(&status);
        let told = "wal_full: its WAL has reached its limit, and clients wait for a checkpoint";
        assert!(reason.contains(told), "{reason}");
        let (peers, me) = {
            let node = &cluster.nodes.lock().unwrap()[&replica(2)];
            (
                node.handle.peers.clone(),
                ReplicaRef { id: replica(2), incarnation: node.incarnation },
            )
        };
        let config = cluster.config.lock().unwrap().clone();
        let say = |event| {
            let said = async { tokio::time::timeout(PATIENCE, peers.send(event)).await };
            cluster.runtime().block_on(said).expect("it is taken").expect("it runs");
        };
        // Entries of a primary that was replaced, more than may wait.
        let (of, incarnation) = (replica(9), Incarnation::default());
        let from = ReplicaRef { id: of, incarnation };
        let old = Lineage { volume: config.volume, epoch: Epoch(0), from, to: me };
        let answers = Arc::<Answers>::default();
        for lsn in 1..3000 {
            let kind = EntryKind::Resize { blocks: 8 };
            let header = EntryHeader { lsn: Lsn(lsn), epoch: Epoch(0), kind, origin: None };
            let message = ToReplica::Append(Append {
                since: Epoch(0),
                first: Lsn(1),
                committed: Lsn(0),
                stamp: None,
                prev: Lsn(lsn - 1),
                entries: vec![header],
            });
            let entries = vec![WireEntry { header, crc: 0, payload: bytes::Bytes::new() }];
            let answers = AnswerPath::Feed(Arc::clone(&answers));
            say(PeerEvent::FromPrimary { lineage: old, message, entries, answers });
        }
        // It finds no place.
        let second = scope.spawn(|| other.write(2, 3));
        cluster.wait(replica(1), "a write that is logged", |status| {
            status.view.as_ref().is_some_and(|view| view.durable > head.next())
        });
        let (answer, answered) = tokio::sync::oneshot::channel();
        let now = Lineage { epoch: config.epoch, from: config.primary, ..old };
        say(PeerEvent::FromPrimary {
            lineage: now,
            message: ToReplica::Probe { request: 77 },
            entries: Vec::new(),
            answers: AnswerPath::Call(answer),
        });
        let answer = async { tokio::time::timeout(PATIENCE, answered).await };
        let answer = cluster.runtime().block_on(answer).expect("it listens").expect("it answers");
        assert_eq!(answer.1, ToPrimary::Alive { request: 77 });
        assert!(!first.is_finished() && !second.is_finished(), "nothing can commit yet");
        cluster.boot(replica(3));
        first.join().expect("it is committed in the end");
        second.join().expect("it is sent again");
    });
    assert_images_equal(&cluster, &[1, 2, 3]);
}

/// 1. Replica 3 is away for long; the set is {1, 2} and may not become smaller.
/// 2. Replica 2 dies for good; a write is logged at 1 and can't commit.
/// 3. Replica 3 comes back and needs a base lane. Nothing commits before it has joined: its base
///    blocks must not wait for a commit.
#[test]
fn a_delta_ends_although_nothing_can_commit_before_it_did() {
    let cluster = Cluster::start(3, 2);
    let mut client = cluster.client();
    for block in 0..300 {
        client.write(block, block as u8 | 1);
    }
    cluster.kill(replica(3));
    client.write(1, 2);
    cluster.wait_in_sync(2);
    cluster.stores.values().for_each(|store| store.disk().retain = 1);
    for block in 200..600 {
        client.write(block, block as u8 | 1);
    }
    let head = cluster.stores[&replica(1)].disk().durable;
    cluster.wait(replica(1), "a checkpoint", |status| {
        status.view.as_ref().is_some_and(|view| view.checkpoint >= head)
    });
    cluster.kill(replica(2));
    std::thread::scope(|scope| {
        let write = scope.spawn(|| client.write(250, 77));
        cluster.wait(replica(1), "a write that is logged", |status| {
            status.view.as_ref().is_some_and(|view| view.durable > head)
        });
        assert!(!write.is_finished(), "it can't commit yet");
        cluster.boot(replica(3));
        write.join().expect("it is committed in the end");
    });
    cluster.wait_in_sync(2);
    let config = cluster.config.lock().unwrap().clone();
    assert_eq!(config.isr, [replica(1), replica(3)].into(), "the dead one has left");
    let mut client = cluster.client();
    assert_eq!((client.read(250), client.read(0), client.read(599)), (77, 1, 599u64 as u8 | 1));
    assert_images_equal(&cluster, &[1, 3]);
    let nodes = cluster.nodes.lock().unwrap();
    let trace = nodes[&replica(3)].handle.trace.after(0);
    assert!(trace.iter().any(|entry| entry.event.what == "delta-taken"), "{trace:?}");
}
