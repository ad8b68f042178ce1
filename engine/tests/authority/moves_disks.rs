//! Nodes with several disks: a replica whose disk can't be used is made anew on another disk of its node, if
//! no other node has room; and what a node has left is what is left on one of its disks.

use sbk_engine::authority::placement::{check_request, place};
use sbk_engine::authority::{Refusal, VolumeSpec};

use super::*;

const DISK: u64 = 1 << 30;

impl Cluster {
    fn register_disks(&mut self, n: u128, disks: &[u64], held: &[(ReplicaId, u32)]) {
        self.revision += 1;
        let held = held.iter().map(|(id, disk)| {
            let entry = RegisteredReplica {
                volume: volume(),
                incarnation: RUN,
                complete: true,
                tail: 0,
                doubtful: false,
                disk: Some(*disk),
            };
            (*id, entry)
        });
        self.must(Command::RegisterNode(Registration {
            node: node(n),
            process: 1,
            revision: self.revision,
            boot: BootId(Uuid::from_u128(1)),
            addrs: Addrs { grpc: format!("10.0.0.{n}:1"), http: None, nbd: None },
            zone: None,
            capacity_bytes: disks.iter().sum(),
            disks: disks.to_vec(),
            encrypts: false,
            replicas: held.collect(),
        }));
    }

    /// Takes the steps of some seconds.
    fn go(&mut self, seconds: u64) {
        for _ in 0..seconds {
            for step in self.pass(1) {
                self.take(step);
            }
        }
    }
}

#[test]
fn a_replica_on_a_disk_that_failed_is_made_anew_on_another_one_of_its_node() {
    let mut cluster = Cluster::new(3);
    cluster.register_disks(2, &[DISK, DISK], &[(replica(2), 0)]);
    cluster.done.clear();
    cluster.register_disks(2, &[0, DISK], &[]);
    cluster.propose(IsrChange::Leave { replica: replica(2) });
    cluster.go(590);
    assert_eq!(cluster.done, [] as [String; 0], "it may come back");
    cluster.go(20);
    assert_eq!(cluster.done.last().map(String::as_str), Some("add on 2"), "{:?}", cluster.done);
    assert!(cluster.done.contains(&"remove on 2".to_owned()), "{:?}", cluster.done);
    assert_eq!(cluster.vol().retired.keys().copied().collect::<Vec<_>>(), [replica(2)]);
    cluster.confirm_all();
    cluster.join_all();
    assert_eq!(cluster.in_sync(), [1, 2, 3]);
    // The disk is back, and what is on it is still to be removed: the other one stays.
    let anew = *cluster.vol().replicas.iter().find(|(_, r)| r.node == node(2)).expect("one").0;
    cluster.register_disks(2, &[DISK, DISK], &[(anew, 1)]);
    cluster.go(700);
    assert_eq!(cluster.in_sync(), [1, 2, 3]);
    cluster.remove_all();
    assert!(cluster.vol().retired.is_empty());
}

/// A replica that its node just does not have open leaves no place for another one: it may be there.
#[test]
fn one_that_is_closed_on_a_disk_that_works_keeps_its_place() {
    let mut cluster = Cluster::new(3);
    cluster.register_disks(2, &[DISK, DISK], &[]);
    cluster.propose(IsrChange::Leave { replica: replica(2) });
    cluster.done.clear();
    cluster.go(700);
    assert_eq!(cluster.done, [] as [String; 0]);
    assert!(cluster.reason().contains("no other node that is alive has room"));
}

#[test]
fn nothing_leaves_for_a_failed_disk_that_min_in_sync_needs() {
    let mut cluster = Cluster::new(3);
    cluster.propose(IsrChange::Leave { replica: replica(3) });
    cluster.off.insert(node(3));
    cluster.register_disks(2, &[0, DISK], &[]);
    cluster.done.clear();
    cluster.go(700);
    assert!(cluster.done.iter().all(|step| !step.starts_with("remove")), "{:?}", cluster.done);
    assert_eq!(cluster.in_sync().len(), 2);
}

fn spec(size_bytes: u64) -> VolumeSpec {
    let request = VolumeRequest {
        name: "other".to_owned(),
        size_bytes,
        replicas: 1,
        durability: Durability::SyncAll,
        write_ack: WriteAck::Durable,
        min_in_sync: None,
        zone_spread: false,
        encrypted: false,
        limits: sbk_engine::authority::Limits::default(),
    };
    check_request(&request).expect("is right")
}

#[test]
fn a_new_replica_has_to_fit_one_disk() {
    let mut cluster = Cluster::new(3);
    // A MiB is claimed on one of the two.
    cluster.register_disks(2, &[DISK, DISK / 2], &[(replica(2), 0)]);
    let alive = BTreeMap::from([(node(2), BTreeSet::new())]);
    let placed = |cluster: &Cluster, bytes| {
        place(&cluster.state, &spec(bytes), &[replica(90)], &alive, OVERCOMMIT)
    };
    let left = DISK - (1 << 20);
    assert!(placed(&cluster, left).is_ok());
    let refused = placed(&cluster, left + 4096).expect_err("fits the sum, and neither disk");
    assert!(matches!(refused, Refusal::NoCapacity { largest_free, .. } if largest_free == left));
    cluster.register_disks(2, &[0, DISK / 2], &[]);
    assert!(placed(&cluster, DISK / 2).is_ok(), "what is on the other is not claimed here");
    assert!(placed(&cluster, DISK / 2 + 4096).is_err());
    // Nobody knows where one is that is only closed.
    cluster.register_disks(2, &[DISK, DISK / 2], &[]);
    assert!(placed(&cluster, left).is_ok() && placed(&cluster, left + 4096).is_err());
}

impl Cluster {
    /// A node says of these of its disks that they are low on room.
    fn set_low(&mut self, n: u128, disks: &[u32]) {
        self.low.insert(node(n), disks.iter().copied().collect());
    }
}

/// What is free to claim does not count on a disk that is low on room.
#[test]
fn nothing_is_created_on_disks_that_are_low_on_room() {
    let mut cluster = Cluster::new(3);
    cluster.register_disks(2, &[DISK, DISK / 2], &[(replica(2), 0)]);
    let placed = |low: &[u32], bytes| {
        let alive = BTreeMap::from([(node(2), low.iter().copied().collect())]);
        place(&cluster.state, &spec(bytes), &[replica(90)], &alive, OVERCOMMIT)
    };
    assert!(placed(&[1], DISK / 2 + 4096).is_ok(), "the other disk has it");
    assert!(placed(&[0], DISK / 2).is_ok());
    let refused = placed(&[0], DISK / 2 + 4096).expect_err("only the one that is low has it");
    assert!(
        matches!(refused, Refusal::NoCapacity { largest_free, low: 1, .. } if largest_free == DISK / 2)
    );
    let words = placed(&[0, 1], 4096).expect_err("both are low").to_string();
    assert!(
        words.contains("beside one node whose disks are below the placement watermark"),
        "{words}"
    );
    let refused = placed(&[0, 1], 2 * DISK).expect_err("too large anyway");
    assert!(matches!(refused, Refusal::NoCapacity { low: 0, .. }), "that is not why: {refused}");
}

/// A disk that is low on room is passed over, and when all are the volume waits, says why, and goes on by
/// itself.
#[test]
fn no_lost_replica_is_replaced_on_a_disk_that_is_low_on_room() {
    let mut cluster = Cluster::new(5);
    cluster.off.insert(node(3));
    cluster.set_low(4, &[0]);
    cluster.set_low(5, &[0]);
    cluster.propose(IsrChange::Leave { replica: replica(3) });
    cluster.done.clear();
    cluster.go(700);
    assert_eq!(cluster.done, [] as [String; 0]);
    let reason = cluster.reason();
    assert!(
        reason.contains("beside 2 nodes whose disks are below the placement watermark"),
        "{reason}"
    );
    cluster.set_low(5, &[]);
    cluster.go(2);
    assert_eq!(cluster.done.first().map(String::as_str), Some("add on 5"), "{:?}", cluster.done);
}

/// A process that just came back has registered, and not said yet how its disks are.
#[test]
fn a_node_whose_disk_was_low_on_room_gets_no_replica_before_it_says_otherwise() {
    let mut cluster = Cluster::new(4);
    cluster.off.insert(node(3));
    cluster.set_low(4, &[0]);
    cluster.propose(IsrChange::Leave { replica: replica(3) });
    cluster.pass(599);
    // It is started again, in another process, and has registered only.
    let mut again = cluster.state.nodes()[&node(4)].clone();
    (again.process, again.revision) = (2, 1);
    cluster.must(Command::RegisterNode(again));
    cluster.off.insert(node(4));
    cluster.done.clear();
    cluster.now = cluster.now.after(2000);
    for n in [1, 2] {
        let beat = DetectorEvent::Heartbeat {
            node: node(n),
            process: 1,
            reports: Vec::new(),
            returning: BTreeSet::new(),
            low: BTreeSet::new(),
        };
        cluster.detector.step(cluster.now, &cluster.state, beat);
    }
    let steps = moves::steps(&cluster.state, &cluster.detector, cluster.now, OVERCOMMIT);
    assert!(cluster.detector.is_heard(cluster.now, node(4)), "its registration was");
    assert_eq!(steps, []);
}

/// Nothing would be left in its place. [The replica was removed, none was made, for its node was low on room,
/// and the volume had one copy fewer.]
#[test]
fn a_replica_is_not_given_up_for_one_that_its_own_node_would_not_get() {
    let mut cluster = Cluster::new(3);
    cluster.set_low(2, &[0]);
    let (volume, overcommit_percent) = (volume(), OVERCOMMIT);
    cluster.must(Command::RetireReplica {
        volume,
        replica: replica(2),
        fate: Fate::GoesFirst,
        instead: None,
        overcommit_percent,
    });
    cluster.done.clear();
    cluster.go(5);
    assert_eq!(cluster.done, [] as [String; 0]);
    let reason = cluster.reason();
    assert!(reason.contains("its own is below the placement watermark"), "{reason}");
    cluster.set_low(2, &[]);
    cluster.go(2);
    assert_eq!(cluster.done, ["wish primary [], leave [2]"; 1], "{}", cluster.reason());
}

/// A disk failed, and the other one of its node is low on room: the replica may come back with its disk.
#[test]
fn a_replica_on_a_failed_disk_keeps_its_place_while_the_other_disk_is_low_on_room() {
    let mut cluster = Cluster::new(3);
    cluster.register_disks(2, &[DISK, DISK], &[(replica(2), 0)]);
    cluster.register_disks(2, &[0, DISK], &[]);
    cluster.set_low(2, &[1]);
    cluster.propose(IsrChange::Leave { replica: replica(2) });
    cluster.done.clear();
    cluster.go(700);
    assert_eq!(cluster.done, [] as [String; 0]);
    cluster.set_low(2, &[]);
    cluster.go(5);
    assert_eq!(cluster.done.last().map(String::as_str), Some("add on 2"), "{:?}", cluster.done);
}

#[cfg(feature = "bugs")]
#[test]
fn without_the_rules_of_placement_these_fail() {
    use sbk_engine::bugs::{Bug, put_back};
    let fails = |bug, test: fn()| {
        let _back = put_back(bug);
        assert!(std::panic::catch_unwind(test).is_err(), "{bug:?} is not found");
    };
    fails(Bug::PlaceOnLowDisk, nothing_is_created_on_disks_that_are_low_on_room);
    fails(Bug::PlaceOnLowDisk, no_lost_replica_is_replaced_on_a_disk_that_is_low_on_room);
    fails(
        Bug::GoesFirstForNothing,
        a_replica_is_not_given_up_for_one_that_its_own_node_would_not_get,
    );
    fails(
        Bug::GoesFirstForNothing,
        a_replica_on_a_failed_disk_keeps_its_place_while_the_other_disk_is_low_on_room,
    );
}
