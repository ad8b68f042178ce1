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
        limits: sbk_engine::authority::Limits::default(),
    };
    check_request(&request).expect("is right")
}

#[test]
fn a_new_replica_has_to_fit_one_disk() {
    let mut cluster = Cluster::new(3);
    // A MiB is claimed on one of the two.
    cluster.register_disks(2, &[DISK, DISK / 2], &[(replica(2), 0)]);
    let alive = BTreeSet::from([node(2)]);
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
