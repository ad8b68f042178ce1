//! Encrypted volumes: their replicas are on nodes that have a key, and on no others.

use sbk_engine::authority::placement::{check_request, place};
use sbk_engine::authority::{Refusal, VolumeSpec};

use super::*;

fn encrypted(nodes: u128, keys: &[u128]) -> Cluster {
    let keys = keys.iter().copied().collect();
    Cluster::with_keys(nodes, 3, Durability::SyncAll, Some(keys))
}

fn request(replicas: u32) -> VolumeRequest {
    VolumeRequest {
        name: "other".to_owned(),
        size_bytes: 1 << 20,
        replicas,
        durability: Durability::SyncAll,
        write_ack: WriteAck::Durable,
        min_in_sync: None,
        zone_spread: false,
        encrypted: true,
        limits: sbk_engine::authority::Limits::default(),
    }
}

fn spec(replicas: u32) -> VolumeSpec {
    check_request(&request(replicas)).expect("is right")
}

#[test]
fn an_encrypted_volume_is_created_on_nodes_that_have_a_key() {
    let mut cluster = encrypted(6, &[1, 2, 3, 5]);
    let alive: BTreeMap<_, _> = (1..=6).map(|n| (node(n), BTreeSet::new())).collect();
    let ids: Vec<_> = (90..95).map(replica).collect();
    let chosen = place(&cluster.state, &spec(4), &ids[..4], &alive, OVERCOMMIT).expect("four");
    let chosen: BTreeSet<_> = chosen.values().copied().collect();
    assert_eq!(chosen, [1, 2, 3, 5].map(node).into());
    let refused = place(&cluster.state, &spec(5), &ids, &alive, OVERCOMMIT).expect_err("five");
    let counts = Refusal::TooFewKeys { replicas: 5, alive: 6, with_key: 4 };
    assert_eq!(refused, counts);

    // One that was chosen has lost its key by the time that the create is committed.
    let create = |n: u128| Command::CreateVolume {
        volume: VolumeId(Uuid::from_u128(8)),
        create: CreateId(Uuid::from_u128(8)),
        request: request(1),
        placement: BTreeMap::from([(replica(90), node(n))]),
        overcommit_percent: OVERCOMMIT,
    };
    assert_eq!(cluster.refused(create(4)), "bad-placement");
    cluster.must(create(5));
}

#[test]
fn a_lost_replica_is_replaced_on_a_node_that_has_a_key() {
    let mut cluster = encrypted(5, &[1, 2, 3]);
    cluster.off.insert(node(3));
    cluster.leave_all();
    cluster.done.clear();
    assert_eq!(cluster.pass(700), [], "two nodes are free, and have none");
    let reason = cluster.reason();
    assert!(reason.contains("no other node that is alive has a key and room"), "{reason}");
    // It is restarted with one.
    cluster.keys.insert(5);
    cluster.register(5, BTreeMap::new());
    cluster.settle();
    assert_eq!(cluster.in_sync(), [1, 2, 5]);
}

#[test]
fn a_replica_is_moved_to_a_node_that_has_a_key_only() {
    let mut cluster = encrypted(5, &[1, 2, 3, 5]);
    let to = |n: u128| Command::RetireReplica {
        volume: volume(),
        replica: replica(2),
        fate: Fate::Goes,
        instead: Some((replica(90), node(n))),
        overcommit_percent: OVERCOMMIT,
    };
    assert_eq!(cluster.refused(to(4)), "no-key");
    cluster.must(to(5));
    cluster.confirm_all();
    cluster.join_all();
    cluster.settle();
    assert_eq!(cluster.in_sync(), [1, 3, 5]);
}

/// Its node was started again without its key: nothing could be made there in its place.
#[test]
fn a_replica_is_not_given_up_for_one_that_its_own_node_has_no_key_for() {
    let mut cluster = encrypted(3, &[1, 2, 3]);
    cluster.keys.remove(&2);
    cluster.register(2, BTreeMap::new());
    cluster.must(Command::RetireReplica {
        volume: volume(),
        replica: replica(2),
        fate: Fate::GoesFirst,
        instead: None,
        overcommit_percent: OVERCOMMIT,
    });
    cluster.done.clear();
    for _ in 0..5 {
        assert_eq!(cluster.pass(1), []);
    }
    let reason = cluster.reason();
    assert!(reason.contains("its own has no key for it"), "{reason}");
}
