//! Properties over random commands, true and false, late and repeated; and over the detector, whose
//! decisions must always be ones that the state accepts.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use sbk_engine::authority::detector::{
    Decision, Detector, DetectorEvent, DetectorParams, ReplicaReport,
};
use sbk_engine::authority::{
    Accepted, Addrs, ClusterId, Command, CreateId, Durability, Duty, Fate, Limits, LimitsChange,
    Refusal, RegisteredReplica, Registration, State, VolumeRequest, Wish, WriteAck,
};
use sbk_engine::replication::io::IsrChange;
use sbk_engine::types::{
    BLOCK_SIZE, BootId, Config, Epoch, Incarnation, Lba, LossGeneration, Lsn, Millis, NodeId,
    ReplicaId, ReplicaRef, TailId, VolumeId,
};
use uuid::Uuid;

const NODES: u8 = 4;
const VOLUMES: u8 = 2;

fn node(n: u8) -> NodeId {
    NodeId(Uuid::from_u128(1 + u128::from(n % NODES)))
}

/// A volume created again has another id.
fn volume(n: u8, generation: u8) -> VolumeId {
    VolumeId(Uuid::from_u128(50 + u128::from(generation) * 2 + u128::from(n % VOLUMES)))
}

/// The replica of a volume on a node. A volume created again has others.
fn replica(volume: u8, node: u8, generation: u8) -> ReplicaId {
    let [volume, node] = [volume % VOLUMES, node % NODES].map(u128::from);
    ReplicaId(Uuid::from_u128(1000 + u128::from(generation) * 100 + volume * 10 + node))
}

/// A command in the making, near the truth: 0 says what is true, the rest is some way off.
#[derive(Clone, Copy, Debug)]
struct Draft {
    what: u8,
    node: u8,
    volume: u8,
    off: u8,
    a: u8,
    wait: u16,
}

fn drafts() -> impl Strategy<Value = Vec<Draft>> {
    let off = prop_oneof![6 => Just(0u8), 1 => 1..6u8];
    let wait = prop_oneof![6 => Just(0u16), 2 => 1..500u16, 1 => 500..12_000u16];
    let draft = (0..43u8, 0..NODES, 0..VOLUMES, off, any::<u8>(), wait)
        .prop_map(|(what, node, volume, off, a, wait)| Draft { what, node, volume, off, a, wait });
    proptest::collection::vec(draft, 1..160)
}

/// What a datanode is, as far as the masters may be told.
#[derive(Clone, Copy, Debug)]
struct Process {
    process: u64,
    revision: u64,
}

struct Run {
    state: State,
    /// As restored from a snapshot now and then: it must not matter.
    restored: State,
    detector: Detector,
    now: Millis,
    processes: BTreeMap<NodeId, Process>,
    /// Creates so far, by volume: each has a fresh id, and its replicas.
    generations: BTreeMap<u8, u8>,
    /// What the clients call their creates: some are asked for again after their volume was deleted.
    creates: BTreeMap<u8, u8>,
    /// The volumes that were, and are not any more.
    ended: BTreeSet<VolumeId>,
    /// Decisions that the leader made and has not proposed yet.
    decided: Vec<Decision>,
    reached: BTreeMap<&'static str, u32>,
}

impl Run {
    fn new() -> Self {
        let processes = (0..NODES).map(|n| (node(n), Process { process: 1, revision: 0 }));
        let mut run = Self {
            state: State::new(),
            restored: State::new(),
            detector: Detector::new(DetectorParams::default()),
            now: Millis(0),
            processes: processes.collect(),
            generations: BTreeMap::new(),
            creates: BTreeMap::new(),
            ended: BTreeSet::new(),
            decided: Vec::new(),
            reached: BTreeMap::new(),
        };
        run.detect(DetectorEvent::Elected);
        run.apply(&Command::BootstrapCluster { cluster: ClusterId(Uuid::from_u128(9)) });
        for n in 0..NODES {
            run.register(n, 0, 0);
        }
        for v in 0..VOLUMES {
            run.create(v, 0);
            (0..NODES).for_each(|n| run.confirm(v, n, 0));
        }
        run
    }

    /// The volume that is, or was last.
    fn volume(&self, v: u8) -> VolumeId {
        volume(v, self.generations.get(&v).copied().unwrap_or(0))
    }

    /// The volume's replica on the node, if it has one.
    fn replica_on(&self, v: u8, n: u8) -> Option<ReplicaId> {
        let generation = self.generations.get(&v).copied().unwrap_or(0);
        let id = replica(v, n, generation);
        let live = self.state.volumes().get(&self.volume(v));
        live.is_some_and(|live| live.replicas.contains_key(&id)).then_some(id)
    }

    fn run_of(&self, n: u8) -> Incarnation {
        Incarnation { process: self.processes[&node(n)].process, open: 1 }
    }

    fn play(&mut self, draft: Draft) {
        let Draft { what, node: n, volume: v, off, a, wait } = draft;
        self.now = self.now.after(u64::from(wait));
        match what {
            0 => {
                self.apply(&Command::BootstrapCluster { cluster: ClusterId(Uuid::from_u128(8)) });
            }
            1..=3 => self.register(n, off, a),
            4 => {
                let process = self.processes.get_mut(&node(n)).expect("a node");
                *process = Process { process: process.process + 1, revision: 0 };
                self.register(n, 0, a);
            }
            5 => self.create(v, off),
            6..=7 => self.confirm(v, n, off),
            8 if a < 40 => {
                self.apply(&Command::DeleteVolume { volume: self.volume(v) });
            }
            9..=10 => self.confirm_delete(v, n, off),
            11..=17 => self.propose(v, n, off, a),
            18..=20 if off == 0 && a < 60 => self.recover(v, n, a),
            18..=20 => self.fail_over(v, n, off, a),
            21 => self.detect(DetectorEvent::Killed { node: node(n), process: u64::from(a % 4) }),
            22..=26 => self.heartbeat(n, off, a),
            27 => self.detect(DetectorEvent::Elected),
            28..=30 => self.propose_decided(usize::from(a)),
            31..=36 => self.relist(v, n, off, a),
            37 => self.set_duty(n, a),
            38..=41 => self.resize(v, off, a),
            _ => self.detect(DetectorEvent::Tick),
        }
    }

    fn register(&mut self, n: u8, off: u8, a: u8) {
        let known = self.processes.get_mut(&node(n)).expect("a node");
        known.revision += 1;
        let (process, revision) = match off {
            0..=2 => (known.process, known.revision),
            3 => (known.process.saturating_sub(1), known.revision),
            _ => (known.process, known.revision.saturating_sub(u64::from(off))),
        };
        let incarnation = Incarnation { process, open: 1 };
        let held = (0..VOLUMES).filter_map(|v| Some((v, self.replica_on(v, n)?)));
        let replicas = held
            // One is missing, or in the middle of a rebuild.
            .filter(|(v, _)| off != 1 || *v != a % VOLUMES)
            .map(|(v, id)| {
                let complete = off != 2 || v != a % VOLUMES;
                (
                    id,
                    RegisteredReplica {
                        volume: self.volume(v),
                        incarnation,
                        complete,
                        tail: 0,
                        doubtful: false,
                        disk: None,
                    },
                )
            });
        let registration = Registration {
            node: node(n),
            process,
            revision,
            boot: BootId(Uuid::from_u128(u128::from(process))),
            addrs: Addrs { grpc: format!("10.0.{}.{n}:1", a % 2), http: None, nbd: None },
            zone: None,
            capacity_bytes: 1 << 20,
            disks: Vec::new(),
            encrypts: false,
            replicas: replicas.collect(),
        };
        self.apply(&Command::RegisterNode(registration));
    }

    fn create(&mut self, v: u8, off: u8) {
        let free = self.state.is_gone(self.volume(v));
        if free {
            *self.generations.entry(v).or_insert(0) += 1;
            *self.creates.entry(v).or_insert(0) += u8::from(off != 5);
        }
        let generation = self.generations.get(&v).copied().unwrap_or(0);
        // Sent again while its volume is there: the leader drew another id for that.
        let id = if free { self.volume(v) } else { volume(v, 200) };
        let create = 10 * u128::from(self.creates.get(&v).copied().unwrap_or(0)) + u128::from(v);
        let replicas = 3 - u32::from(off == 1);
        let request = VolumeRequest {
            name: if off == 2 { "other".to_owned() } else { format!("vol-{v}") },
            size_bytes: 4096 * if off == 3 { 1 << 20 } else { 8 },
            replicas,
            durability: Durability::SyncAll,
            write_ack: WriteAck::Durable,
            min_in_sync: Some(1 + u32::from(v % 2)),
            zone_spread: off == 4,
            encrypted: false,
            limits: Limits { iops: (off == 5).then_some(100), ..Limits::default() },
        };
        let nodes = (v..NODES + v).take(3);
        let placement = nodes.map(|n| (replica(v, n, generation), node(n))).collect();
        self.apply(&Command::CreateVolume {
            volume: id,
            create: CreateId(Uuid::from_u128(create)),
            request,
            placement,
            overcommit_percent: 100,
        });
    }

    fn confirm(&mut self, v: u8, n: u8, off: u8) {
        let Some(id) = self.replica_on(v, n) else { return };
        let mut incarnation = self.run_of(n);
        incarnation.open += u64::from(off == 1);
        let speaker = if off == 2 { n + 1 } else { n };
        let process = self.processes[&node(speaker)].process + u64::from(off == 3);
        self.apply(&Command::ConfirmReplica {
            node: node(speaker),
            process,
            volume: self.volume(v),
            replica: ReplicaRef { id, incarnation },
            tail: 0,
        });
    }

    fn confirm_delete(&mut self, v: u8, n: u8, off: u8) {
        let generation = self.generations.get(&v).copied().unwrap_or(0);
        let process = self.processes[&node(n)].process + u64::from(off == 1);
        self.apply(&Command::ConfirmDelete {
            node: node(if off == 2 { n + 1 } else { n }),
            process,
            volume: self.volume(v),
            replica: replica(v, n, generation),
        });
    }

    /// The epoch in force, or one beside it.
    fn epoch_near(&self, v: u8, off: u8) -> Epoch {
        let epoch = self.state.config(self.volume(v)).map_or(1, |config| config.epoch.0);
        Epoch(match off {
            1 => epoch.saturating_sub(1),
            2 => epoch + 1,
            _ => epoch,
        })
    }

    /// An operator wants another size, or the primary tells of one.
    fn resize(&mut self, v: u8, off: u8, a: u8) {
        let volume = self.volume(v);
        let Some(config) = self.state.config(volume) else { return };
        let blocks = 1 + u64::from(a) / 8;
        if a.is_multiple_of(3) {
            let (size_bytes, shrink) = (blocks * BLOCK_SIZE, !a.is_multiple_of(4));
            let overcommit_percent = 100;
            let wish = Command::WishSize { volume, size_bytes, shrink, overcommit_percent };
            return self.apply(&wish);
        }
        let change = match config.wished_blocks {
            Some(wished) if a < 100 => IsrChange::KeepSize { wished, lba: Lba(wished) },
            Some(blocks) if a < 200 => IsrChange::Resized { blocks },
            Some(_) | None => IsrChange::Resized { blocks },
        };
        let expect_epoch = self.epoch_near(v, off);
        let primary = config.primary;
        self.apply(&Command::ProposeIsr { volume, expect_epoch, primary, change });
    }

    fn propose(&mut self, v: u8, n: u8, off: u8, a: u8) {
        let Some(mut primary) = self.state.config(self.volume(v)).map(|config| config.primary)
        else {
            return;
        };
        let Some(id) = self.replica_on(v, n) else { return };
        match off {
            3 => primary.incarnation.process += 1,
            4 => primary = ReplicaRef { id, incarnation: self.run_of(n) },
            _ => {}
        }
        let mut incarnation = self.run_of(n);
        incarnation.open += u64::from(off == 5);
        let change = match a % 6 {
            5 => IsrChange::HandOver { to: ReplicaRef { id, incarnation } },
            0 | 1 => IsrChange::Leave { replica: id },
            2 | 3 => IsrChange::Join { replica: ReplicaRef { id, incarnation } },
            _ => IsrChange::Burn,
        };
        let expect_epoch = self.epoch_near(v, off);
        self.apply(&Command::ProposeIsr { volume: self.volume(v), expect_epoch, primary, change });
    }

    fn fail_over(&mut self, v: u8, n: u8, off: u8, a: u8) {
        let Some(config) = self.state.config(self.volume(v)) else { return };
        let Some(id) = self.replica_on(v, n) else { return };
        let mut primary = ReplicaRef { id, incarnation: self.run_of(n) };
        primary.incarnation.open += u64::from(off == 3);
        let mut isr = config.isr.clone();
        // Drop some, or add one.
        if a.is_multiple_of(3) {
            isr.retain(|member| *member == id || member.0.as_u128().is_multiple_of(2));
        }
        if off == 4 {
            isr.extend(self.replica_on(v, n + 1));
        }
        let expect_epoch = self.epoch_near(v, off);
        self.apply(&Command::Failover {
            volume: self.volume(v),
            expect_epoch,
            primary,
            isr,
            stood: None,
        });
    }

    /// An operator gives up all nodes but one, or some of them.
    fn recover(&mut self, v: u8, n: u8, a: u8) {
        let Some(id) = self.replica_on(v, n) else { return };
        let primary = ReplicaRef { id, incarnation: self.run_of(n) };
        let given_up = (0..NODES).map(node).filter(|other| *other != node(n) || a == 7);
        let given_up: BTreeSet<_> = given_up
            .filter(|other| {
                self.state.volumes()[&self.volume(v)].replicas.values().any(|r| r.node == *other)
            })
            .skip(usize::from(a == 8))
            .collect();
        let expect_epoch = self.epoch_near(v, a % 20);
        let stood = self.state.tail(self.volume(v), id).filter(|_| a != 9);
        self.apply(&Command::Recover {
            volume: self.volume(v),
            expect_epoch,
            primary,
            given_up,
            stood,
        });
    }

    fn relist(&mut self, v: u8, n: u8, off: u8, a: u8) {
        let generation = self.generations.get(&v).copied().unwrap_or(0);
        let (volume, expect_epoch) = (self.volume(v), self.epoch_near(v, off));
        let id = replica(v, n, generation);
        let overcommit_percent = 100;
        self.apply(&match a % 7 {
            0 | 1 => Command::AddReplica { volume, replica: id, node: node(n), overcommit_percent },
            2 | 3 => Command::RemoveReplica { volume, expect_epoch, replica: id },
            4 => Command::SetWish {
                volume,
                wish: Wish { primary: (a < 100).then_some(id), leave: BTreeSet::from([id]) },
            },
            5 => Command::SetLimits {
                volume,
                change: LimitsChange { iops: Some(u64::from(a)), ..LimitsChange::default() },
            },
            _ => Command::RetireReplica {
                volume,
                replica: id,
                fate: if a < 100 { Fate::GoesFirst } else { Fate::Goes },
                instead: (a > 200).then(|| (replica(v, n + 1, generation), node(n + 1))),
                overcommit_percent,
            },
        });
    }

    fn set_duty(&mut self, n: u8, a: u8) {
        let node = node(n);
        let duty = match a % 4 {
            0 => Some(Duty::Drained),
            1 => Some(Duty::Removed),
            _ => None,
        };
        self.apply(&match a % 5 {
            0 => Command::ForgetNode { node },
            _ => Command::SetDuty { node, duty },
        });
    }

    fn heartbeat(&mut self, n: u8, off: u8, a: u8) {
        let incarnation = self.run_of(n);
        let process = incarnation.process.saturating_sub(u64::from(off == 1));
        let reports = (0..VOLUMES).filter_map(|v| {
            let replica = ReplicaRef { id: self.replica_on(v, n)?, incarnation };
            let config = self.state.config(self.volume(v))?;
            let is_primary = config.primary == replica;
            let lacking = config.isr.iter().copied().filter(|id| *id != replica.id && a > 200);
            Some(ReplicaReport {
                replica,
                table_epoch: config.epoch,
                durable: Lsn(u64::from(a)),
                primary_in: is_primary.then_some(config.epoch),
                lacking: lacking.collect(),
                lacking_ms: u64::from(a) * 40,
                promised: BTreeSet::new(),
                tail: TailId { boot: BootId(Uuid::from_u128(1)), count: 0 },
                stood: None,
            })
        });
        let reports = reports.collect();
        self.detect(DetectorEvent::Heartbeat {
            node: node(n),
            process,
            reports,
            returning: BTreeSet::new(),
            low: BTreeSet::new(),
        });
    }

    /// What the leader decides is what the state accepts, if it is proposed at once.
    fn detect(&mut self, event: DetectorEvent) {
        let decisions = self.detector.step(self.now, &self.state, event);
        let due = self.detector.next_deadline(self.now);
        assert!(due.is_none_or(|due| due > self.now), "a deadline that has passed");
        for decision in decisions {
            self.reach("decision");
            let response = self.state.clone().apply(&failover_of(&decision));
            assert!(response.is_ok(), "{decision:?} would be refused: {response:?}");
            self.decided.push(decision);
        }
    }

    /// The leader proposes late what it decided.
    fn propose_decided(&mut self, which: usize) {
        if self.decided.is_empty() {
            return;
        }
        let decision = self.decided.remove(which % self.decided.len());
        self.apply(&failover_of(&decision));
    }

    fn reach(&mut self, what: &'static str) {
        *self.reached.entry(what).or_default() += 1;
    }

    fn apply(&mut self, command: &Command) {
        let before = self.state.clone();
        let mut again = before.clone();
        let response = self.state.apply(command);
        assert_eq!(again.apply(command), response, "the same command, another answer");
        let bytes = serde_json::to_vec(&self.state).expect("the state is plain data");
        assert_eq!(serde_json::to_vec(&again).expect("plain data"), bytes, "other bytes");
        assert_eq!(self.restored.apply(command), response, "after a snapshot, another answer");
        assert_eq!(self.restored, self.state, "after a snapshot, another state");
        self.restored = serde_json::from_slice(&bytes).expect("a snapshot comes back");
        self.state.assert_invariants();
        match &response {
            Err(refusal) => {
                assert_eq!(self.state, before, "{command:?} was refused ({refusal})");
                self.reach("refusal");
                if let Refusal::StaleEpoch { .. } = refusal {
                    self.reach("stale epoch");
                }
            }
            Ok(accepted) => self.check_accepted(&before, command, accepted),
        }
        self.check_volumes(&before);
    }

    fn check_accepted(&mut self, before: &State, command: &Command, accepted: &Accepted) {
        match command {
            Command::ProposeIsr { volume, expect_epoch, primary, change } => {
                let (was, is) = self.check_minted(before, *volume, *expect_epoch, accepted);
                assert_eq!(was.primary, *primary, "a proposal of another than the primary");
                let tenure = match change {
                    IsrChange::Yield { to } | IsrChange::HandOver { to } => (*to, is.epoch),
                    IsrChange::Leave { .. }
                    | IsrChange::Join { .. }
                    | IsrChange::Burn
                    | IsrChange::Resized { .. }
                    | IsrChange::KeepSize { .. } => (was.primary, was.since),
                };
                assert_eq!((is.primary, is.since), tenure);
                let run = |id| before.registered(*volume, id).map(|r| r.incarnation);
                assert_eq!(run(primary.id), Some(primary.incarnation), "its run is over");
                let mut expected = was.isr.clone();
                match change {
                    IsrChange::Leave { replica } => {
                        self.reach("leave");
                        assert!(expected.remove(replica));
                    }
                    IsrChange::Join { replica } => {
                        self.reach("join");
                        assert!(expected.insert(replica.id));
                        assert_eq!(run(replica.id), Some(replica.incarnation), "another run");
                    }
                    IsrChange::Burn => self.reach("burn"),
                    IsrChange::Resized { blocks } => {
                        self.reach("resized");
                        assert_eq!(is.blocks, *blocks);
                        assert_ne!(was.blocks, *blocks);
                    }
                    IsrChange::KeepSize { wished, .. } => {
                        self.reach("size kept");
                        assert_eq!((was.wished_blocks, is.wished_blocks), (Some(*wished), None));
                        assert_eq!(is.blocks, was.blocks);
                    }
                    IsrChange::Yield { to } => {
                        self.reach("yield");
                        let held = before.registered(*volume, to.id).expect("it is registered");
                        assert!(held.complete && held.incarnation == to.incarnation);
                        assert!(was.isr.contains(&to.id), "yielded out of the voters");
                    }
                    IsrChange::HandOver { to } => {
                        self.reach("handover");
                        let held = before.registered(*volume, to.id).expect("it is registered");
                        assert!(held.complete && held.incarnation == to.incarnation);
                        assert!(was.isr.contains(&to.id), "handed out of the in-sync set");
                        assert_eq!(is.handed_over_by, Some(*primary));
                        assert_eq!(is.loss_generation, was.loss_generation, "nothing is lost");
                        assert_ne!(self.state.volumes()[volume].wish.primary, Some(to.id));
                    }
                }
                assert_eq!(is.isr, expected);
            }
            Command::Failover { volume, expect_epoch, primary, isr, stood: _ } => {
                self.reach("failover");
                let (was, is) = self.check_minted(before, *volume, *expect_epoch, accepted);
                assert!(was.isr.contains(&primary.id), "promoted out of the set");
                assert!(is.isr.is_subset(&was.isr), "a failover made a replica in-sync");
                assert_eq!((&is.isr, is.primary, is.since), (isr, *primary, is.epoch));
                let held = before.registered(*volume, primary.id).expect("it is registered");
                assert!(held.complete && held.incarnation == primary.incarnation);
            }
            Command::Salvage { .. } => panic!("no volume here acknowledges before it synced"),
            Command::Recover { volume, expect_epoch, primary, given_up, stood } => {
                self.reach("recover");
                assert_eq!(*stood, before.tail(*volume, primary.id), "it had not stood");
                let (was, is) = self.check_minted(before, *volume, *expect_epoch, accepted);
                assert_eq!(is.isr, BTreeSet::from([primary.id]), "one log goes on");
                assert_eq!((is.primary, is.since), (*primary, is.epoch));
                assert_eq!(is.loss_generation, was.loss_generation.next(), "a loss is traced");
                assert!(!given_up.contains(&is.replicas[&primary.id].node), "it was given up");
            }
            Command::RegisterNode(new) => {
                let old = before.nodes().get(&new.node).map(Registration::order);
                assert!(old.is_none_or(|old| old <= new.order()), "a registration went back");
            }
            Command::DeleteVolume { volume } => {
                self.reach("delete");
                assert!(self.state.config(*volume).is_none());
            }
            Command::CreateVolume { create, .. } => {
                self.reach("create");
                let Accepted::Created(id) = accepted else { panic!("{accepted:?}") };
                assert_eq!(self.state.volumes()[id].create, *create);
                match before.created_by(*create) {
                    Some(standing) => {
                        self.reach("create again");
                        assert_eq!((standing.id, before), (*id, &self.state));
                    }
                    None => assert!(before.is_gone(*id) && !self.ended.contains(id), "it rose"),
                }
            }
            Command::BootstrapCluster { .. } => {
                assert!(before.cluster().is_none_or(|name| self.state.cluster() == Some(name)));
            }
            Command::RemoveReplica { volume, replica, .. } => {
                self.reach("remove");
                let was = before.config(*volume).expect("it had an epoch");
                assert!(!was.isr.contains(replica), "a member left the list");
                assert!(self.state.volumes()[volume].retired.contains_key(replica));
            }
            Command::AddReplica { .. } => self.reach("add"),
            Command::ForgetNode { node } => {
                self.reach("forget");
                assert!(!self.state.nodes().contains_key(node));
            }
            Command::RetireReplica { .. }
            | Command::SetWish { .. }
            | Command::WishPrimary { .. }
            | Command::SetLimits { .. }
            | Command::WishSize { .. }
            | Command::SetDuty { .. }
            | Command::ConfirmReplica { .. }
            | Command::ConfirmDelete { .. } => {}
        }
    }

    /// Compare-and-set: the expected epoch was in force, and the answer is the next one.
    fn check_minted(
        &self,
        before: &State,
        volume: VolumeId,
        expected: Epoch,
        accepted: &Accepted,
    ) -> (Config, Config) {
        let was = before.config(volume).expect("it had an epoch");
        let is = self.state.config(volume).expect("it has one");
        assert_eq!(was.epoch, expected, "applied at another epoch than the expected one");
        assert_eq!(is.epoch, expected.next());
        assert_eq!(*accepted, Accepted::Configured(is.clone()), "the answer is what is in force");
        (was, is)
    }

    fn check_volumes(&mut self, before: &State) {
        let gone = before.volumes().keys().filter(|id| !self.state.volumes().contains_key(id));
        self.ended.extend(gone);
        assert!(self.state.volumes().keys().all(|id| !self.ended.contains(id)), "one rose");
        assert!(self.state.revision() >= before.revision(), "the catalogue went back");
        let told: BTreeSet<_> =
            self.state.catalogue_since(before.revision()).iter().map(|v| v.id).collect();
        for id in (0..VOLUMES).map(|v| self.volume(v)) {
            let (was, is) = (before.config(id), self.state.config(id));
            assert!(is == was || told.contains(&id) || self.state.is_gone(id), "nobody was told");
            if let Some(is) = &is {
                assert!(is.is_sound(), "{is:?}");
                let lost = is.loss_generation > LossGeneration(0);
                assert!(is.isr.len() >= is.min_in_sync as usize || lost);
            }
            if let (Some(was), Some(is)) = (was, is) {
                assert!(is.epoch >= was.epoch, "the epoch went back");
                let same = is.loss_generation == was.loss_generation;
                assert!(same || told.contains(&id), "a loss that nobody was told of");
                if is.epoch == was.epoch {
                    let moved = Config { replicas: is.replicas.clone(), ..was.clone() };
                    assert_eq!(is, moved, "an epoch changed");
                    assert!(is.replicas.keys().eq(was.replicas.keys()), "an epoch changed");
                }
            }
        }
    }
}

fn failover_of(decision: &Decision) -> Command {
    decision.command()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_command_keeps_the_invariants(drafts in drafts()) {
        let mut run = Run::new();
        for draft in drafts {
            run.play(draft);
        }
    }
}

/// The random runs are worth something only if they reach what they are to test.
#[test]
fn the_commands_get_far() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut reached = BTreeMap::<&str, u32>::new();
    for _ in 0..200 {
        let drafts = drafts().new_tree(&mut runner).expect("drafts can be drawn").current();
        let mut run = Run::new();
        drafts.into_iter().for_each(|draft| run.play(draft));
        for (what, times) in run.reached {
            *reached.entry(what).or_default() += times;
        }
    }
    for what in [
        "leave",
        "join",
        "burn",
        "resized",
        "size kept",
        "handover",
        "failover",
        "recover",
        "delete",
        "create",
        "create again",
        "add",
        "remove",
        "decision",
        "refusal",
        "stale epoch",
    ] {
        let times = reached.get(what).copied().unwrap_or(0);
        assert!(times > 50, "{what} {times} times: {reached:?}");
    }
}
