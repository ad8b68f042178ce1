//! Volume tasks over real gRPC: writes, a follower that goes and comes back, a failover.

mod support;

use std::sync::Arc;

use sbk_datanode::link::{IoOp, LinkOutcome};
use sbk_datanode::volume::RunState;
use sbk_engine::types::Lsn;
use support::{Cluster, replica};

fn committed(status: &sbk_datanode::volume::VolumeStatus) -> Lsn {
    status.view.as_ref().map(|view| view.committed).unwrap_or_default()
}

/// Waits until all replicas' extents hold everything, and compares them.
fn assert_images_equal(cluster: &Cluster, ids: &[u128]) {
    let primary = cluster.primary();
    let head = cluster.stores[&primary].disk().durable;
    for id in ids {
        cluster.wait(replica(*id), "a whole checkpoint", |status| {
            status.view.as_ref().is_some_and(|view| view.checkpoint >= head)
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

#[test]
fn a_follower_that_missed_too_much_is_rebuilt() {
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
    assert!(trace.iter().any(|entry| entry.event.what == "rebuilt"), "{trace:?}");
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
    cluster.wait(replica(2), "a failure", |s| !matches!(s.run, RunState::Running));
    cluster.stores[&replica(2)].disk().failing = false;
    cluster.wait(replica(2), "another opening", |status| {
        status.open_as().is_some_and(|(incarnation, ..)| incarnation.open > 1)
    });
    cluster.wait_in_sync(3);
    client.write(2, 3);
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

/// 1. Replica 3 is away for long; the set is {1, 2} and may not become smaller.
/// 2. Replica 2 dies for good; a write is logged at 1 and can't commit.
/// 3. Replica 3 comes back and has to be rebuilt. Nothing commits before it has joined: its base
///    blocks must not wait for a commit.
#[test]
fn a_rebuild_ends_although_nothing_can_commit_before_it_did() {
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
    assert!(trace.iter().any(|entry| entry.event.what == "rebuilt"), "{trace:?}");
}
