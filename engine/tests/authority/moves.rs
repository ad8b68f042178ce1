//! Replicas that are replaced, moved and dropped; nodes that are drained and removed.

use std::collections::{BTreeMap, BTreeSet};

use sbk_engine::authority::detector::{Detector, DetectorEvent, DetectorParams};
use sbk_engine::authority::moves::{self, Step};
use sbk_engine::authority::{
    Accepted, Addrs, ClusterId, Command, CreateId, Durability, Duty, Fate, RegisteredReplica,
    Registration, Response, State, Volume, VolumeRequest, WriteAck,
};
use sbk_engine::replication::io::IsrChange;
use sbk_engine::types::{
    BootId, Config, Incarnation, Millis, NodeId, ReplicaId, ReplicaRef, VolumeId,
};
use uuid::Uuid;

const RUN: Incarnation = Incarnation { process: 1, open: 1 };
const OVERCOMMIT: u32 = 100;

fn node(n: u128) -> NodeId {
    NodeId(Uuid::from_u128(n))
}

fn replica(n: u128) -> ReplicaId {
    ReplicaId(Uuid::from_u128(100 + n))
}

fn volume() -> VolumeId {
    VolumeId(Uuid::from_u128(7))
}

/// Nodes that do as they are told, and masters that look at them every second.
struct Cluster {
    state: State,
    detector: Detector,
    now: Millis,
    /// Nodes that are silent.
    off: BTreeSet<NodeId>,
    /// Disks that are low on room, by their nodes.
    low: BTreeMap<NodeId, BTreeSet<u32>>,
    /// Nodes that have a key.
    keys: BTreeSet<u128>,
    revision: u64,
    fresh: u128,
    /// What was proposed, in order.
    done: Vec<String>,
}

impl Cluster {
    /// One volume with replicas on the first three of `nodes` nodes, all in sync.
    fn new(nodes: u128) -> Self {
        Self::of(nodes, 3, Durability::SyncAll)
    }

    fn of(nodes: u128, replicas: u32, durability: Durability) -> Self {
        Self::with_keys(nodes, replicas, durability, None)
    }

    /// The same; the volume is encrypted if some nodes, the first three among them, have a key.
    fn with_keys(
        nodes: u128,
        replicas: u32,
        durability: Durability,
        keys: Option<BTreeSet<u128>>,
    ) -> Self {
        let encrypted = keys.is_some();
        let mut cluster = Self {
            keys: keys.unwrap_or_default(),
            state: State::new(),
            detector: Detector::new(DetectorParams::default()),
            now: Millis(0),
            off: BTreeSet::new(),
            low: BTreeMap::new(),
            revision: 1,
            fresh: 50,
            done: Vec::new(),
        };
        cluster.must(Command::BootstrapCluster { cluster: ClusterId(Uuid::from_u128(9)) });
        (1..=nodes).for_each(|n| cluster.register(n, BTreeMap::new()));
        let request = VolumeRequest {
            name: "vol".to_owned(),
            size_bytes: 1 << 20,
            replicas,
            durability,
            write_ack: WriteAck::Durable,
            min_in_sync: None,
            zone_spread: false,
            encrypted,
            limits: sbk_engine::authority::Limits::default(),
        };
        let placement = (1..=u128::from(replicas)).map(|n| (replica(n), node(n))).collect();
        let overcommit_percent = OVERCOMMIT;
        cluster.must(Command::CreateVolume {
            volume: volume(),
            create: CreateId(volume().0),
            request,
            placement,
            overcommit_percent,
        });
        cluster.confirm_all();
        cluster.join_all();
        cluster.detector.step(cluster.now, &cluster.state, DetectorEvent::Elected);
        cluster.pass(1);
        cluster
    }

    fn must(&mut self, command: Command) -> Accepted {
        let said = format!("{command:?}");
        self.apply(command).unwrap_or_else(|refusal| panic!("{said}: {refusal}"))
    }

    fn apply(&mut self, command: Command) -> Response {
        let response = self.state.apply(&command);
        self.state.assert_invariants();
        response
    }

    fn register(&mut self, n: u128, replicas: BTreeMap<ReplicaId, RegisteredReplica>) {
        self.revision += 1;
        self.must(Command::RegisterNode(Registration {
            node: node(n),
            process: 1,
            revision: self.revision,
            boot: BootId(Uuid::from_u128(1)),
            addrs: Addrs { grpc: format!("10.0.0.{n}:1"), http: None, nbd: None },
            zone: None,
            capacity_bytes: 1 << 30,
            disks: Vec::new(),
            encrypts: self.keys.contains(&n),
            replicas,
        }));
    }

    fn vol(&self) -> &Volume {
        &self.state.volumes()[&volume()]
    }

    fn config(&self) -> Config {
        self.state.config(volume()).expect("it has an epoch")
    }

    fn nodes_of(&self, ids: impl IntoIterator<Item = ReplicaId>) -> Vec<u128> {
        let nodes = ids.into_iter().filter_map(|id| self.vol().replicas.get(&id));
        let mut nodes: Vec<_> = nodes.map(|r| r.node.0.as_u128()).collect();
        nodes.sort_unstable();
        nodes
    }

    fn listed(&self) -> Vec<u128> {
        self.nodes_of(self.vol().replicas.keys().copied())
    }

    fn in_sync(&self) -> Vec<u128> {
        self.nodes_of(self.config().isr)
    }

    fn confirm_all(&mut self) {
        let new = self.vol().replicas.iter().filter(|(_, r)| r.confirmed.is_none());
        let new: Vec<_> = new.map(|(id, r)| (*id, r.node)).collect();
        for (id, node) in new {
            if self.off.contains(&node) {
                continue;
            }
            let replica = ReplicaRef { id, incarnation: RUN };
            self.must(Command::ConfirmReplica {
                node,
                process: 1,
                volume: volume(),
                replica,
                tail: 0,
            });
        }
    }

    fn propose(&mut self, change: IsrChange) {
        let Config { epoch, primary, .. } = self.config();
        let volume = volume();
        self.must(Command::ProposeIsr { volume, expect_epoch: epoch, primary, change });
    }

    /// The primary does what it does by itself: those that live join, unless they are to leave.
    fn join_all(&mut self) {
        let volume = self.vol().clone();
        for (id, replica) in volume.replicas {
            let lives = replica.confirmed.is_some() && !self.off.contains(&replica.node);
            if lives && !volume.wish.leave.contains(&id) && !self.config().isr.contains(&id) {
                self.propose(IsrChange::Join { replica: ReplicaRef { id, incarnation: RUN } });
            }
        }
    }

    /// The primary drops who is dead or is to leave, as far as min_in_sync allows.
    fn leave_all(&mut self) {
        let config = self.config();
        for id in config.isr.into_iter().filter(|id| *id != config.primary.id) {
            let dead = self.off.contains(&self.vol().replicas[&id].node);
            let in_sync = self.config().isr.len() as u32;
            if (dead || self.vol().wish.leave.contains(&id)) && in_sync > config.min_in_sync {
                self.propose(IsrChange::Leave { replica: id });
            }
        }
    }

    /// Nodes that live carry their orders out.
    fn remove_all(&mut self) {
        for (replica, node) in self.vol().retired.clone() {
            if !self.off.contains(&node) {
                let volume = volume();
                self.must(Command::ConfirmDelete { node, process: 1, volume, replica });
            }
        }
    }

    /// Seconds pass; heartbeats come. Returns the steps that the masters would take now.
    fn pass(&mut self, seconds: u64) -> Vec<Step> {
        for _ in 0..seconds {
            self.now = self.now.after(1000);
            let nodes: Vec<_> = self.state.nodes().keys().copied().collect();
            for node in nodes.into_iter().filter(|node| !self.off.contains(node)) {
                let beat = DetectorEvent::Heartbeat {
                    node,
                    process: 1,
                    reports: Vec::new(),
                    returning: BTreeSet::new(),
                    low: self.low.get(&node).cloned().unwrap_or_default(),
                };
                self.detector.step(self.now, &self.state, beat);
            }
        }
        moves::steps(&self.state, &self.detector, self.now, OVERCOMMIT)
    }

    fn reason(&self) -> String {
        moves::look(&self.state, &self.detector, self.now, self.vol(), OVERCOMMIT).reason
    }

    fn take(&mut self, step: Step) {
        self.done.push(match &step {
            Step::Add { node, .. } => format!("add on {}", node.0.as_u128()),
            Step::Remove { replica, .. } => {
                format!("remove on {}", self.vol().replicas[replica].node.0.as_u128())
            }
            Step::Wish { wish, .. } => format!(
                "wish primary {:?}, leave {:?}",
                self.nodes_of(wish.primary),
                self.nodes_of(wish.leave.iter().copied())
            ),
            Step::Forget { node } => format!("forget {}", node.0.as_u128()),
        });
        self.fresh += 1;
        self.must(step.command(replica(self.fresh), OVERCOMMIT));
    }

    /// All do what they have to until nothing is left.
    fn settle(&mut self) {
        for _ in 0..30 {
            let steps = self.pass(1);
            if steps.is_empty() {
                return;
            }
            steps.into_iter().for_each(|step| self.take(step));
            self.confirm_all();
            self.join_all();
            self.hand_over();
            self.leave_all();
            self.remove_all();
        }
        panic!("it does not come to rest: {:?}", self.done);
    }

    /// The primary hands over as wished. The masters' own failover stands in for it here.
    fn hand_over(&mut self) {
        let config = self.config();
        if let Some(to) = self.vol().wish.primary {
            let primary = ReplicaRef { id: to, incarnation: RUN };
            let (volume, expect_epoch, isr) = (volume(), config.epoch, config.isr);
            self.must(Command::Failover { volume, expect_epoch, primary, isr, stood: None });
        }
    }

    fn refused(&mut self, command: Command) -> &'static str {
        let before = self.state.clone();
        let refusal = self.apply(command).expect_err("it is refused");
        assert_eq!(self.state, before, "refused, but something changed");
        refusal.word()
    }

    fn remove(&self, n: u128) -> Command {
        let (volume, expect_epoch) = (volume(), self.config().epoch);
        Command::RemoveReplica { volume, expect_epoch, replica: replica(n) }
    }
}

#[test]
fn a_replica_whose_node_is_away_for_long_is_replaced_and_its_removal_stays_ordered() {
    let mut cluster = Cluster::new(4);
    cluster.off.insert(node(3));
    assert_eq!(cluster.pass(590), [], "ten minutes are not over");
    cluster.pass(9);
    cluster.settle();
    assert_eq!(cluster.done, ["add on 4", "wish primary [], leave [3]", "remove on 3"]);
    assert_eq!((cluster.listed(), cluster.in_sync()), (vec![1, 2, 4], vec![1, 2, 4]));
    assert_eq!(cluster.vol().retired, BTreeMap::from([(replica(3), node(3))]));
    // It comes back, hears of the order, and has no replica any more.
    cluster.off.clear();
    cluster.remove_all();
    assert!(cluster.vol().retired.is_empty());
    cluster.settle();
    assert_eq!(cluster.done.len(), 3, "all is as it should be: {:?}", cluster.done);
}

#[test]
fn without_a_spare_node_a_volume_stays_degraded_and_says_why() {
    let mut cluster = Cluster::new(3);
    cluster.off.insert(node(3));
    cluster.leave_all();
    assert_eq!(cluster.pass(700), []);
    assert!(
        cluster.reason().contains("no other node that is alive has room"),
        "{}",
        cluster.reason()
    );
    // A new node is all that it waits for.
    cluster.register(4, BTreeMap::new());
    cluster.settle();
    assert_eq!(cluster.in_sync(), [1, 2, 4]);
    assert_eq!(cluster.reason(), "");
}

#[test]
fn a_member_is_not_dropped_before_as_many_others_as_are_wanted_are_in_sync() {
    let mut cluster = Cluster::new(4);
    cluster.must(Command::SetDuty { node: node(2), duty: Some(Duty::Drained) });
    let steps = cluster.pass(1);
    assert_eq!(steps, [Step::Add { volume: volume(), node: node(4) }]);
    steps.into_iter().for_each(|step| cluster.take(step));
    cluster.confirm_all();
    // The new one has not joined: the old one is neither told to leave nor taken off the list.
    assert_eq!(cluster.pass(1), []);
    assert!(cluster.reason().contains("once 3 others are in sync"), "{}", cluster.reason());
    let remove = cluster.remove(2);
    assert_eq!(cluster.refused(remove), "listed-in-sync");
    cluster.join_all();
    cluster.settle();
    let done = ["add on 4", "wish primary [], leave [2]", "remove on 2"];
    assert_eq!(cluster.done, done);
}

#[test]
fn a_removal_is_refused_at_another_epoch_and_where_too_few_would_be_listed() {
    let mut cluster = Cluster::new(4);
    cluster.propose(IsrChange::Leave { replica: replica(3) });
    let remove = cluster.remove(3);
    assert_eq!(cluster.refused(remove.clone()), "below-min-in-sync", "nobody is in its place");
    let (volume, id, overcommit_percent) = (volume(), replica(60), OVERCOMMIT);
    cluster.must(Command::AddReplica { volume, replica: id, node: node(4), overcommit_percent });
    cluster.propose(IsrChange::Burn);
    assert_eq!(cluster.refused(remove), "stale-epoch");
    let (remove, before) = (cluster.remove(3), cluster.config());
    cluster.must(remove.clone());
    let after = cluster.config();
    assert_eq!(after.epoch, before.epoch.next(), "the list is part of the configuration");
    assert_eq!((after.since, after.primary), (before.since, before.primary));
    assert!(!after.replicas.contains_key(&replica(3)));
    assert_eq!(cluster.must(remove), Accepted::Done, "sent again");
}

#[test]
fn a_drained_node_loses_its_primaries_and_replicas_and_gets_no_new_ones() {
    let mut cluster = Cluster::new(5);
    let primary = cluster.nodes_of([cluster.config().primary.id])[0];
    cluster.must(Command::SetDuty { node: node(primary), duty: Some(Duty::Drained) });
    cluster.settle();
    assert!(!cluster.listed().contains(&primary), "{:?}", cluster.done);
    assert_eq!((cluster.listed().len(), cluster.in_sync().len()), (3, 3));
    assert_eq!(cluster.state.replicas_on(node(primary)), 0);
    let (volume, id, overcommit_percent) = (volume(), replica(60), OVERCOMMIT);
    let add = Command::AddReplica { volume, replica: id, node: node(primary), overcommit_percent };
    assert_eq!(cluster.refused(add.clone()), "not-placeable");
    cluster.must(Command::SetDuty { node: node(primary), duty: None });
    cluster.must(add);
    // One more than wanted: it is dropped again.
    cluster.confirm_all();
    cluster.settle();
    assert_eq!(cluster.listed().len(), 3);
}

#[test]
fn where_no_other_node_has_room_a_replica_is_made_anew_on_its_own() {
    let mut cluster = Cluster::new(3);
    let primary = cluster.nodes_of([cluster.config().primary.id])[0];
    let (volume, overcommit_percent) = (volume(), OVERCOMMIT);
    let id = replica(primary);
    let order = |fate| Command::RetireReplica {
        volume,
        replica: id,
        fate,
        instead: None,
        overcommit_percent,
    };
    cluster.must(order(Fate::Goes));
    cluster.settle();
    assert_eq!(cluster.listed(), [1, 2, 3], "there is no place for another");
    cluster.must(order(Fate::GoesFirst));
    cluster.settle();
    assert_eq!((cluster.listed(), cluster.in_sync()), (vec![1, 2, 3], vec![1, 2, 3]));
    assert!(
        !cluster.vol().replicas.contains_key(&id),
        "another took its place: {:?}",
        cluster.done
    );
    assert_ne!(cluster.nodes_of([cluster.config().primary.id]), [primary]);
}

/// What is acknowledged is on a majority of the voters. Of those that stay it must be on as many as a
/// majority of the replicas that the volume should have, whichever majority of them that is.
#[test]
fn a_voter_is_made_anew_in_its_place_only_if_every_majority_of_the_others_is_copies_enough() {
    for (replicas, goes) in [(2, false), (3, true), (4, false), (5, true)] {
        let mut cluster = Cluster::of(replicas.into(), replicas, Durability::SyncQuorum);
        let all: Vec<_> = (1..=u128::from(replicas)).collect();
        assert_eq!(cluster.in_sync(), all);
        let primary = cluster.config().primary.id;
        let id = cluster.config().isr.into_iter().find(|id| *id != primary).expect("a second");
        let overcommit_percent = OVERCOMMIT;
        cluster.must(Command::RetireReplica {
            volume: volume(),
            replica: id,
            fate: Fate::GoesFirst,
            instead: None,
            overcommit_percent,
        });
        cluster.settle();
        let stays = cluster.vol().replicas.contains_key(&id);
        assert_eq!(stays, !goes, "of {replicas}: {:?}", cluster.done);
        assert_eq!((cluster.listed(), cluster.in_sync()), (all.clone(), all), "of {replicas}");
    }
}

#[test]
fn a_voter_stays_in_its_place_while_too_few_of_the_others_are_heard() {
    let mut cluster = Cluster::of(3, 3, Durability::SyncQuorum);
    let primary = cluster.config().primary.id;
    let others = cluster.config().isr.into_iter().filter(|id| *id != primary);
    let [goes, silent] = others.collect::<Vec<_>>()[..] else { panic!("three voters") };
    cluster.off.insert(cluster.vol().replicas[&silent].node);
    cluster.pass(5);
    cluster.must(Command::RetireReplica {
        volume: volume(),
        replica: goes,
        fate: Fate::GoesFirst,
        instead: None,
        overcommit_percent: OVERCOMMIT,
    });
    assert_eq!(cluster.pass(1), [], "its copy may be one of two");
    cluster.off.clear();
    cluster.settle();
    assert!(!cluster.vol().replicas.contains_key(&goes), "{:?}", cluster.done);
}

/// Its node is heard, but its disk may have died with its store.
#[test]
fn a_voter_stays_in_its_place_while_too_few_of_the_others_are_open() {
    let mut cluster = Cluster::of(3, 3, Durability::SyncQuorum);
    let primary = cluster.config().primary.id;
    let others = cluster.config().isr.into_iter().filter(|id| *id != primary);
    let [goes, closed] = others.collect::<Vec<_>>()[..] else { panic!("three voters") };
    let on = cluster.vol().replicas[&closed].node;
    let open = cluster.state.nodes()[&on].replicas.clone();
    cluster.register(on.0.as_u128(), BTreeMap::new());
    cluster.must(Command::RetireReplica {
        volume: volume(),
        replica: goes,
        fate: Fate::GoesFirst,
        instead: None,
        overcommit_percent: OVERCOMMIT,
    });
    assert_eq!(cluster.pass(1), [], "its copy may be one of two");
    cluster.register(on.0.as_u128(), open);
    cluster.settle();
    assert!(!cluster.vol().replicas.contains_key(&goes), "{:?}", cluster.done);
}

#[test]
fn one_that_goes_first_stays_while_min_in_sync_needs_it() {
    let mut cluster = Cluster::new(3);
    for n in [2, 3] {
        cluster.off.insert(node(n));
    }
    if cluster.nodes_of([cluster.config().primary.id]) != [1] {
        let Config { epoch, isr, .. } = cluster.config();
        let primary = ReplicaRef { id: replica(1), incarnation: RUN };
        cluster.must(Command::Failover {
            volume: volume(),
            expect_epoch: epoch,
            primary,
            isr,
            stood: None,
        });
    }
    cluster.leave_all();
    assert_eq!(cluster.config().isr.len(), 2);
    let member = cluster.in_sync()[1];
    cluster.must(Command::RetireReplica {
        volume: volume(),
        replica: replica(member),
        fate: Fate::GoesFirst,
        instead: None,
        overcommit_percent: OVERCOMMIT,
    });
    assert_eq!(cluster.pass(1), [], "min_in_sync is 2");
    let remove = cluster.remove(member);
    assert_eq!(cluster.refused(remove), "listed-in-sync");
}

#[test]
fn a_removed_node_is_forgotten_once_nothing_lists_it_and_what_returns_is_nobodys() {
    let mut cluster = Cluster::new(4);
    cluster.off.insert(node(2));
    let forget = Command::ForgetNode { node: node(2) };
    assert_eq!(cluster.refused(forget.clone()), "node-in-use");
    cluster.must(Command::SetDuty { node: node(2), duty: Some(Duty::Removed) });
    assert_eq!(cluster.refused(forget), "node-in-use");
    cluster.pass(10);
    cluster.settle();
    assert_eq!(cluster.in_sync(), [1, 3, 4]);
    assert!(!cluster.state.nodes().contains_key(&node(2)), "{:?}", cluster.done);
    assert!(cluster.vol().retired.is_empty(), "nothing waits for it any more");
    // It comes back with its replica: no list names that, and no order removes it.
    let entry = RegisteredReplica {
        volume: volume(),
        incarnation: RUN,
        complete: true,
        tail: 0,
        doubtful: false,
        disk: None,
    };
    cluster.register(2, BTreeMap::from([(replica(2), entry)]));
    let told = cluster.state.catalogue_since(0);
    assert!(told[0].retired.is_empty() && told[0].replicas.iter().all(|r| r.id != replica(2)));
    let confirmed = Command::ConfirmReplica {
        node: node(2),
        process: 1,
        volume: volume(),
        replica: ReplicaRef { id: replica(2), incarnation: RUN },
        tail: 0,
    };
    assert_eq!(cluster.refused(confirmed), "unknown-replica");
    // It keeps that one, so it would never make another of the same volume.
    cluster.must(Command::SetDuty { node: node(1), duty: Some(Duty::Drained) });
    cluster.settle();
    assert_eq!(cluster.listed(), [1, 3, 4]);
    let overcommit_percent = OVERCOMMIT;
    let add = Command::AddReplica {
        volume: volume(),
        replica: replica(90),
        node: node(2),
        overcommit_percent,
    };
    assert_eq!(cluster.refused(add.clone()), "node-taken");
    cluster.register(2, BTreeMap::new());
    cluster.must(add);
}

#[test]
fn a_replica_that_is_never_made_is_replaced_too() {
    let mut cluster = Cluster::new(5);
    cluster.must(Command::SetDuty { node: node(3), duty: Some(Duty::Drained) });
    let steps = cluster.pass(1);
    assert_eq!(steps, [Step::Add { volume: volume(), node: node(4) }]);
    steps.into_iter().for_each(|step| cluster.take(step));
    assert_eq!(cluster.pass(590), [], "node 4 lives, and can't make it");
    assert_eq!(cluster.pass(20), [Step::Add { volume: volume(), node: node(5) }]);
}

#[test]
fn nobody_goes_while_one_of_those_that_stay_is_silent() {
    let mut cluster = Cluster::new(5);
    cluster.must(Command::SetDuty { node: node(2), duty: Some(Duty::Drained) });
    let steps = cluster.pass(1);
    steps.into_iter().for_each(|step| cluster.take(step));
    cluster.confirm_all();
    cluster.join_all();
    assert_eq!(cluster.in_sync(), [1, 2, 3, 4]);
    cluster.off.insert(node(3));
    assert_eq!(cluster.pass(10), [], "of the three that stay only two are copies");
    // Once it is gone, another one takes its place too, and both go.
    let steps = cluster.pass(600);
    assert_eq!(steps, [Step::Add { volume: volume(), node: node(5) }]);
    steps.into_iter().for_each(|step| cluster.take(step));
    cluster.confirm_all();
    cluster.join_all();
    cluster.settle();
    assert_eq!((cluster.in_sync(), cluster.listed()), (vec![1, 4, 5], vec![1, 4, 5]));
}

#[test]
fn a_replica_that_its_node_lost_is_replaced_too() {
    let mut cluster = Cluster::new(4);
    cluster.register(3, BTreeMap::new());
    assert_eq!(cluster.pass(590), []);
    cluster.off.insert(node(9));
    cluster.pass(20);
    cluster.settle();
    assert!(cluster.done.contains(&"add on 4".to_owned()), "{:?}", cluster.done);
}

#[test]
fn a_replica_that_comes_back_before_its_successor_joined_keeps_its_place() {
    let mut cluster = Cluster::new(4);
    cluster.off.insert(node(3));
    cluster.leave_all();
    let steps = cluster.pass(601);
    assert_eq!(steps, [Step::Add { volume: volume(), node: node(4) }]);
    steps.into_iter().for_each(|step| cluster.take(step));
    cluster.off = BTreeSet::from([node(4)]);
    cluster.join_all();
    cluster.settle();
    assert_eq!((cluster.listed(), cluster.in_sync()), (vec![1, 2, 3], vec![1, 2, 3]));
}

#[test]
fn what_left_the_list_is_removed_with_the_volume_too() {
    let mut cluster = Cluster::new(4);
    cluster.off.insert(node(3));
    cluster.pass(600);
    cluster.settle();
    cluster.must(Command::DeleteVolume { volume: volume() });
    let remaining = &cluster.state.tombstones()[&volume()].remaining;
    assert_eq!(remaining.values().copied().collect::<BTreeSet<_>>().len(), 4);
    assert_eq!(remaining.get(&replica(3)), Some(&node(3)));
}

#[test]
fn a_wish_names_replicas_that_could_do_it() {
    let mut cluster = Cluster::new(4);
    let wish = |primary| sbk_engine::authority::Wish { primary, leave: BTreeSet::new() };
    let set = |primary| Command::SetWish { volume: volume(), wish: wish(primary) };
    assert_eq!(cluster.refused(set(Some(replica(9)))), "not-in-sync");
    let target = cluster.config().isr.iter().copied().find(|id| *id != cluster.config().primary.id);
    cluster.must(set(target));
    // The masters' own steps leave an operator's wish as it is.
    assert_eq!(cluster.pass(1), []);
}

/// Two of three nodes of a volume of two are lost, and so is each replacement before it is rebuilt, until the
/// list is full of dead ones. A node with room is there all the time.
fn replacements_are_lost(drained: bool) {
    let mut cluster = Cluster::of(5, 2, Durability::SyncAll);
    let primary = cluster.vol().replicas[&cluster.config().primary.id].node;
    let other = *cluster.listed().iter().find(|n| node(**n) != primary).expect("two");
    cluster.off.insert(node(other));
    cluster.leave_all();
    for _ in 0..2 {
        let steps = cluster.pass(700);
        let [Step::Add { node, .. }] = steps[..] else { panic!("{steps:?}: {}", cluster.reason()) };
        steps.into_iter().for_each(|step| cluster.take(step));
        cluster.confirm_all();
        cluster.off.insert(node);
    }
    assert_eq!((cluster.listed().len(), cluster.in_sync().len()), (4, 1));
    // That their nodes are to be drained brings none of them back.
    if drained {
        for lost in cluster.off.clone() {
            cluster.must(Command::SetDuty { node: lost, duty: Some(Duty::Drained) });
        }
    }
    cluster.pass(700);
    cluster.settle();
    let alive: Vec<_> = (1..=5).filter(|n| !cluster.off.contains(&node(*n))).collect();
    assert_eq!(cluster.in_sync(), alive, "{:?}", cluster.done);
}

#[test]
fn replacements_that_were_lost_before_they_joined_leave_room_for_others() {
    [false, true].into_iter().for_each(replacements_are_lost);
}

#[path = "moves_disks.rs"]
mod disks;
#[path = "moves_keys.rs"]
mod keys;
