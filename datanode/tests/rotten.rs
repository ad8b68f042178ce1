//! Blocks that rot on the primary's disk, read over real gRPC from the replicas that have them; and on a
//! follower's, repaired by the primary for a scrub.

mod support;

use std::sync::Arc;

use sbk_datanode::link::{IoOp, LinkOutcome};
use sbk_datanode::volume::events::{Control, ScrubWaiter, Scrubbed};
use sbk_engine::recording::{file, replay};
use sbk_engine::replication::io::Fate;
use sbk_engine::replication::mend::MendCounts;
use sbk_engine::types::{Lba, ReplicaId};
use support::{Cluster, replica};
use tokio::sync::{Semaphore, oneshot};
use tonic::{Code, Status};

/// Waits until the extents of all replicas hold what is logged.
fn checkpointed(cluster: &Cluster) {
    let head = cluster.stores[&cluster.primary()].disk().durable;
    for id in cluster.stores.keys() {
        cluster.wait(*id, "a whole checkpoint", |status| {
            status.view.as_ref().is_some_and(|view| view.checkpoint >= head)
        });
    }
}

fn rot(cluster: &Cluster, id: ReplicaId, block: u64) {
    cluster.stores[&id].disk().rotten.insert(block);
}

fn counts(cluster: &Cluster, id: ReplicaId) -> (u64, u64, u64) {
    let MendCounts { rotten, mended, not_mended, scrubbed: _ } =
        cluster.nodes.lock().unwrap()[&id].handle.counters.mends();
    (rotten, mended, not_mended)
}

/// What a replica's engine was told can be taken again, with the same outcome.
fn assert_recorded(cluster: &Cluster, id: ReplicaId) {
    let text = cluster.nodes.lock().unwrap()[&id].handle.recorder.text("a test");
    let recording = file::read(&text.expect("it is open")).expect("reads").remove(0).1;
    assert_eq!(replay(&recording), Ok(recording.steps.len()));
}

#[test]
fn rotten_blocks_are_read_from_another_replica_and_written_anew() {
    let cluster = Cluster::start(3, 2);
    let mut client = cluster.client();
    (0..40).for_each(|block| client.write(block, 1 + block as u8));
    checkpointed(&cluster);
    let primary = cluster.primary();
    for block in [7, 8, 30] {
        rot(&cluster, primary, block);
    }
    // One whose copy at the member that is asked first is rotten as well.
    rot(&cluster, replica(2), 30);
    let (outcome, data) = client.request(IoOp::Read { offset: 0, length: 40 * 4096 });
    assert_eq!(outcome, LinkOutcome::Done);
    for (block, content) in data.chunks(4096).enumerate() {
        assert!(content.iter().all(|byte| usize::from(*byte) == block + 1), "block {block}");
    }
    assert_eq!(counts(&cluster, primary), (3, 3, 0));
    assert_eq!(counts(&cluster, replica(2)), (1, 0, 0), "it was told");

    checkpointed(&cluster);
    for id in cluster.stores.keys() {
        assert!(cluster.stores[id].disk().rotten.is_empty(), "{id}: the repair is logged for all");
        assert_eq!(cluster.stores[id].image(), cluster.stores[&primary].image());
        assert_recorded(&cluster, *id);
    }
    let told = cluster.nodes.lock().unwrap()[&primary].handle.trace.after(0);
    for what in ["rotten", "mended"] {
        assert!(told.iter().any(|entry| entry.event.what == what), "{what}: {told:?}");
    }
}

#[test]
fn a_sector_is_merged_with_what_another_replica_has() {
    let cluster = Cluster::start(2, 1);
    let mut client = cluster.client();
    client.write(3, 1);
    checkpointed(&cluster);
    rot(&cluster, cluster.primary(), 3);
    let write = IoOp::Write { offset: 3 * 4096 + 512, data: vec![2; 512].into() };
    assert_eq!(client.request(write).0, LinkOutcome::Done);
    let (_, data) = client.request(IoOp::Read { offset: 3 * 4096, length: 4096 });
    assert!(data[..512].iter().chain(&data[1024..]).all(|byte| *byte == 1));
    assert!(data[512..1024].iter().all(|byte| *byte == 2));
    assert_eq!(counts(&cluster, cluster.primary()), (1, 1, 0));
}

#[test]
fn what_is_rotten_everywhere_is_an_error_until_it_is_written() {
    let cluster = Cluster::start(2, 1);
    let mut client = cluster.client();
    client.write(3, 1);
    client.write(4, 2);
    checkpointed(&cluster);
    for id in cluster.stores.keys() {
        rot(&cluster, *id, 3);
    }
    let (outcome, _) = client.request(IoOp::Read { offset: 3 * 4096, length: 4096 });
    let LinkOutcome::Failed(why) = outcome else { panic!("nobody has it: {outcome:?}") };
    assert!(why.contains("damaged on every other in-sync replica too"), "{why}");
    assert_eq!(counts(&cluster, cluster.primary()), (1, 0, 1));
    assert_eq!(client.read(4), 2, "the block beside it");
    client.write(3, 5);
    assert_eq!(client.read(3), 5);
}

/// The image that a replica is rebuilt from has a rotten block.
#[test]
fn a_rebuild_goes_on_once_a_block_is_repaired() {
    let cluster = Cluster::start(3, 2);
    let mut client = cluster.client();
    (0..100).for_each(|block| client.write(block, 1 + block as u8));
    cluster.kill(replica(3));
    client.write(1, 2);
    cluster.wait_in_sync(2);
    cluster.stores.values().for_each(|store| store.disk().retain = 1);
    (100..200).for_each(|block| client.write(block, 1 + block as u8));
    let primary = cluster.primary();
    let head = cluster.stores[&primary].disk().durable;
    cluster.wait(primary, "a checkpoint", |status| {
        status.view.as_ref().is_some_and(|view| view.checkpoint >= head)
    });
    rot(&cluster, primary, 50);
    cluster.boot(replica(3));
    cluster.wait_in_sync(3);
    checkpointed(&cluster);
    assert_eq!(cluster.stores[&replica(3)].image(), cluster.stores[&primary].image());
    assert_eq!(counts(&cluster, primary), (1, 1, 0));
    assert_eq!(client.read(50), 51);
    assert_recorded(&cluster, primary);
}

/// What a replica's task makes of a scrub's order.
fn scrub(cluster: &Cluster, id: ReplicaId, blocks: &[u64]) -> Result<Scrubbed, Status> {
    let (done, told) = oneshot::channel();
    let place = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("is free");
    let blocks = blocks.iter().copied().map(Lba).collect();
    let order = Control::Scrub { blocks, waiter: ScrubWaiter { done, place } };
    let control = cluster.nodes.lock().unwrap()[&id].handle.control.clone();
    control.blocking_send(order).expect("it runs");
    told.blocking_recv().expect("is told")
}

#[test]
fn a_scrub_has_what_rotted_on_a_follower_written_anew() {
    let cluster = Cluster::start(3, 2);
    let mut client = cluster.client();
    (0..40).for_each(|block| client.write(block, 1 + block as u8));
    checkpointed(&cluster);
    let (primary, follower) = (cluster.primary(), replica(2));
    assert_ne!(primary, follower);
    // One on the follower, one here, and one on both.
    rot(&cluster, follower, 7);
    rot(&cluster, primary, 8);
    rot(&cluster, follower, 30);
    rot(&cluster, primary, 30);
    let status = scrub(&cluster, follower, &[7]).expect_err("it is not primary");
    assert_eq!(status.code(), Code::FailedPrecondition);
    let told = scrub(&cluster, primary, &[7, 8, 9, 30]).expect("is settled");
    let logged = [7, 8, 9, 30].map(|block| (Lba(block), Fate::Logged));
    assert_eq!(told, Scrubbed::from(logged));
    assert_eq!(counts(&cluster, primary), (2, 2, 0));
    let scrubbed = cluster.nodes.lock().unwrap()[&primary].handle.counters.mends().scrubbed;
    assert_eq!(scrubbed, 2, "its own copy was sound");

    checkpointed(&cluster);
    for id in cluster.stores.keys() {
        assert!(cluster.stores[id].disk().rotten.is_empty(), "{id}: the repair is logged for all");
        assert_eq!(cluster.stores[id].image(), cluster.stores[&primary].image());
        assert_recorded(&cluster, *id);
    }
    for block in [7, 8, 9, 30] {
        assert_eq!(client.read(block), 1 + block as u8);
    }
}
