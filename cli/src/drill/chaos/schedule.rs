//! What is to go wrong, and when: a list made from one seed.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::dev::cluster::Which;
use crate::drill::network::End;
use crate::workload::stamp::Noise;

/// Between the beginnings of two faults, in milliseconds: they last longer than that, so that some
/// meet.
const APART: (u64, u64) = (300, 6000);
/// How long a fault lasts, in milliseconds. Longer than a lease, a suspicion and an election, and far
/// shorter than the 120 s after which a request that waits is answered with an error.
const LASTS: (u64, u64) = (500, 12_000);
/// One of ten lasts longer: who was away for so long may have missed more than the WAL retains.
const LASTS_LONG: (u64, u64) = (15_000, 35_000);
/// The same for what stops all of the cluster.
const LASTS_ALL: (u64, u64) = (100, 4000);
/// Faults between two points at which everything is healed and looked at.
const BETWEEN_CALMS: (u64, u64) = (6, 14);

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// kill -9 of one datanode.
    KillDatanode,
    /// kill -9 of several datanodes at once.
    KillDatanodes,
    /// kill -9 of all datanodes at once.
    KillAllDatanodes,
    /// kill -9 of a volume's primary.
    KillPrimary,
    /// kill -9 of one master.
    KillMaster,
    /// kill -9 of the leading master.
    KillLeader,
    /// kill -9 of all masters at once.
    KillAllMasters,
    /// kill -9 of everything at once.
    KillEverything,
    /// SIGSTOP and SIGCONT of one datanode.
    FreezeDatanode,
    /// The same for a volume's primary, which then acts on what it knew.
    FreezePrimary,
    /// The same for the leading master.
    FreezeLeader,
    /// A datanode that runs only in short turns.
    SlowDatanode,
    /// Some nodes and the others do not hear each other.
    Partition,
    /// Some nodes are not heard by the others, but hear them.
    PartitionOneWay,
    /// A partition that comes and goes.
    PartitionFlapping,
    /// A node loses some of the packets that it is sent.
    Loss,
    /// A node sends at a low rate.
    SlowLink,
    /// What a node sends comes late and out of order.
    Delay,
    /// A datanode's file system has no room left.
    FullDisk,
    /// All replicas are moved away from a datanode, as `sbkctl node drain` does, until it is
    /// undrained.
    Drain,
    /// A volume's primary is moved to another in-sync replica.
    MovePrimary,
    /// SIGTERM to the datanode of a volume's primary, which hands over and stops.
    StopPrimary,
    /// SIGTERM to a datanode whose key file has a new first key by then. Once all is whole it has no other.
    RotateKey,
    /// A disk of a datanode fails for good, and has another one put in its place when the fault is over.
    FailDisk,
    /// Bits flip in blocks of one replica, which are scrubbed and repaired.
    Rot,
}

/// All classes, in the order in which they are told.
pub(super) const CLASSES: [Class; 25] = [
    Class::KillDatanode,
    Class::KillDatanodes,
    Class::KillAllDatanodes,
    Class::KillPrimary,
    Class::KillMaster,
    Class::KillLeader,
    Class::KillAllMasters,
    Class::KillEverything,
    Class::FreezeDatanode,
    Class::FreezePrimary,
    Class::FreezeLeader,
    Class::SlowDatanode,
    Class::Partition,
    Class::PartitionOneWay,
    Class::PartitionFlapping,
    Class::Loss,
    Class::SlowLink,
    Class::Delay,
    Class::FullDisk,
    Class::Drain,
    Class::MovePrimary,
    Class::StopPrimary,
    Class::RotateKey,
    Class::FailDisk,
    Class::Rot,
];

/// Whom a fault befalls. Roles are looked up when the time has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Victim {
    /// These processes.
    Processes(Vec<Which>),
    /// The datanode with the primary of the volume with this number, from 0; this one if there is
    /// none.
    Primary(usize, Which),
    /// The leading master; this one if there is none.
    Leader(Which),
    /// The paths from the first ones to the second ones.
    Paths(Vec<End>, Vec<End>),
    /// One that can be harmed so, by the measure.
    Any,
}

/// One thing that is to go wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Its number in the schedule, from 1.
    pub(super) number: u64,
    /// When, since the beginning of its round.
    pub(super) at: Duration,
    /// For how long.
    pub(super) lasts: Duration,
    /// What.
    pub(super) class: Class,
    /// Whom.
    pub(super) victim: Victim,
    /// Of what there is more or less: percent of packets lost, kbit/s, milliseconds.
    pub(super) measure: u64,
}

/// Faults after which everything is healed and looked at.
pub(super) type Round = Vec<Fault>;

/// What there is to harm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct World {
    /// Masters.
    pub(super) masters: usize,
    /// Datanodes.
    pub(super) datanodes: usize,
    /// Datanodes whose file system is small and their own.
    pub(super) small_disks: Vec<usize>,
    /// Volumes.
    pub(super) volumes: usize,
    /// What can be caused here.
    pub(super) classes: BTreeSet<Class>,
}

/// Makes the rounds of a seed, one after the other, without an end.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    noise: Noise,
    world: World,
    deck: Vec<Class>,
    made: u64,
}

impl Class {
    /// In one word.
    pub(super) fn word(self) -> &'static str {
        match self {
            Class::KillDatanode => "kill-datanode",
            Class::KillDatanodes => "kill-several-datanodes",
            Class::KillAllDatanodes => "kill-all-datanodes",
            Class::KillPrimary => "kill-primary",
            Class::KillMaster => "kill-master",
            Class::KillLeader => "kill-leader",
            Class::KillAllMasters => "kill-all-masters",
            Class::KillEverything => "kill-everything",
            Class::FreezeDatanode => "freeze-datanode",
            Class::FreezePrimary => "freeze-primary",
            Class::FreezeLeader => "freeze-leader",
            Class::SlowDatanode => "slow-datanode",
            Class::Partition => "partition",
            Class::PartitionOneWay => "partition-one-way",
            Class::PartitionFlapping => "partition-flapping",
            Class::Loss => "packet-loss",
            Class::SlowLink => "slow-link",
            Class::Delay => "delay",
            Class::FullDisk => "full-disk",
            Class::Drain => "drain",
            Class::MovePrimary => "move-primary",
            Class::StopPrimary => "stop-primary",
            Class::RotateKey => "rotate-key",
            Class::FailDisk => "fail-disk",
            Class::Rot => "rot",
        }
    }

    /// Whether it needs a network that the drill may harm.
    pub(super) fn is_of_network(self) -> bool {
        matches!(
            self,
            Class::Partition
                | Class::PartitionOneWay
                | Class::PartitionFlapping
                | Class::Loss
                | Class::SlowLink
                | Class::Delay
        )
    }

    /// Whether something is gone for good by it: such a fault comes first in its round, when all is whole.
    pub(super) fn is_quiet(self) -> bool {
        matches!(self, Class::FailDisk | Class::Rot)
    }

    fn stops_all(self) -> bool {
        matches!(self, Class::KillAllDatanodes | Class::KillAllMasters | Class::KillEverything)
    }
}

impl Serialize for Class {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.word())
    }
}

fn list<T: fmt::Display>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Victim::Processes(all) => f.write_str(&list(all)),
            Victim::Primary(volume, other) => {
                write!(f, "primary of volume {} (else {other})", volume + 1)
            }
            Victim::Leader(other) => write!(f, "leading master (else {other})"),
            Victim::Paths(from, to) => write!(f, "{} | {}", list(from), list(to)),
            Victim::Any => f.write_str("some replica"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, at, lasts, class, victim, measure } = self;
        let (at, lasts) = (at.as_secs_f64(), lasts.as_secs_f64());
        write!(f, "#{number} at {at:.1} s for {lasts:.1} s: {} of {victim}", class.word())?;
        match class {
            Class::Loss => write!(f, ", {measure} %"),
            Class::SlowLink => write!(f, ", {measure} kbit/s"),
            Class::Delay | Class::PartitionFlapping | Class::SlowDatanode => {
                write!(f, ", {measure} ms")
            }
            Class::KillDatanode
            | Class::KillDatanodes
            | Class::KillAllDatanodes
            | Class::KillPrimary
            | Class::KillMaster
            | Class::KillLeader
            | Class::KillAllMasters
            | Class::KillEverything
            | Class::FreezeDatanode
            | Class::FreezePrimary
            | Class::FreezeLeader
            | Class::Partition
            | Class::PartitionOneWay
            | Class::FullDisk
            | Class::Drain
            | Class::MovePrimary
            | Class::StopPrimary
            | Class::RotateKey
            | Class::FailDisk
            | Class::Rot => Ok(()),
        }
    }
}

impl Schedule {
    /// The schedule of `seed` for `world`.
    pub(super) fn new(seed: u64, world: World) -> Self {
        assert!(!world.classes.is_empty(), "there is something to harm");
        Self { noise: Noise::new(seed), world, deck: Vec::new(), made: 0 }
    }

    /// The next faults up to a calm, at most `most`.
    pub(super) fn round(&mut self, most: u64) -> Round {
        let count = self.between(BETWEEN_CALMS).min(most);
        let mut at = 0;
        let mut round = Round::new();
        for _ in 0..count {
            at += self.between(APART);
            round.push(self.fault(Duration::from_millis(at)));
        }
        for fault in round.iter_mut().filter(|fault| fault.class.is_quiet()) {
            fault.at = Duration::ZERO;
        }
        // What rots must be repaired before a disk fails.
        round.sort_by_key(|fault| (fault.at, fault.class == Class::FailDisk));
        round
    }

    /// The next class: all of them have had their turn before one has its second.
    fn draw(&mut self) -> Class {
        if self.deck.is_empty() {
            self.deck.extend(self.world.classes.iter().copied());
        }
        let at = self.noise.below(self.deck.len() as u64) as usize;
        self.deck.swap_remove(at)
    }

    fn fault(&mut self, at: Duration) -> Fault {
        self.made += 1;
        let class = self.draw();
        let long = self.below(10) == 0;
        let lasts = self.between(match (class.stops_all(), long) {
            (true, _) => LASTS_ALL,
            (false, true) => LASTS_LONG,
            (false, false) => LASTS,
        });
        let victim = self.victim(class);
        let measure = match class {
            Class::Loss => self.between((3, 30)),
            Class::SlowLink => self.between((500, 8000)),
            Class::Delay => self.between((5, 200)),
            Class::PartitionFlapping => self.between((100, 3000)),
            _ => self.between((20, 400)),
        };
        Fault { number: self.made, at, lasts: Duration::from_millis(lasts), class, victim, measure }
    }

    fn victim(&mut self, class: Class) -> Victim {
        let (masters, datanodes) = (self.world.masters, self.world.datanodes);
        let all_masters = (0..masters).map(Which::Master);
        let all_datanodes = (0..datanodes).map(Which::Datanode);
        match class {
            Class::KillDatanode
            | Class::FreezeDatanode
            | Class::SlowDatanode
            | Class::Drain
            | Class::RotateKey => Victim::Processes(vec![Which::Datanode(self.below(datanodes))]),
            Class::KillDatanodes => {
                let all: Vec<Which> = all_datanodes.collect();
                let count = 2.max(1 + self.below(datanodes)).min(datanodes);
                Victim::Processes(self.some(all, count))
            }
            Class::KillAllDatanodes => Victim::Processes(all_datanodes.collect()),
            Class::KillPrimary | Class::FreezePrimary | Class::MovePrimary | Class::StopPrimary => {
                let volume = self.below(self.world.volumes);
                Victim::Primary(volume, Which::Datanode(self.below(datanodes)))
            }
            Class::KillMaster => Victim::Processes(vec![Which::Master(self.below(masters))]),
            Class::KillLeader | Class::FreezeLeader => {
                Victim::Leader(Which::Master(self.below(masters)))
            }
            Class::KillAllMasters => Victim::Processes(all_masters.collect()),
            Class::KillEverything => Victim::Processes(all_masters.chain(all_datanodes).collect()),
            Class::Partition | Class::PartitionOneWay | Class::PartitionFlapping => self.sides(),
            Class::Loss | Class::SlowLink | Class::Delay => {
                let all: Vec<Which> = all_masters.chain(all_datanodes).collect();
                Victim::Processes(self.some(all, 1))
            }
            // The disk or the replica is looked for when the time has come.
            Class::FailDisk | Class::Rot => Victim::Any,
            Class::FullDisk => {
                let at = self.below(self.world.small_disks.len());
                Victim::Processes(vec![Which::Datanode(self.world.small_disks[at])])
            }
        }
    }

    /// Two sides of a partition. Most often one node is alone; the clients may be on either side,
    /// or on both: who is cut off from its peers but not from its clients is the one to be afraid of.
    fn sides(&mut self) -> Victim {
        let nodes = (0..self.world.masters).map(Which::Master);
        let nodes = nodes.chain((0..self.world.datanodes).map(Which::Datanode));
        let all: Vec<End> = nodes.map(End::Node).collect();
        let count = if self.below(2) == 0 { 1 } else { 1 + self.below(all.len() - 1) };
        let mut one = self.some(all.clone(), count);
        let mut other: Vec<End> = all.into_iter().filter(|end| !one.contains(end)).collect();
        match self.below(4) {
            0 => one.push(End::Clients),
            1 => other.push(End::Clients),
            _ => {}
        }
        if self.below(2) == 0 { Victim::Paths(one, other) } else { Victim::Paths(other, one) }
    }

    fn some<T: Ord>(&mut self, mut all: Vec<T>, count: usize) -> Vec<T> {
        while all.len() > count {
            let at = self.below(all.len());
            all.remove(at);
        }
        all
    }

    fn below(&mut self, bound: usize) -> usize {
        self.noise.below(bound as u64) as usize
    }

    fn between(&mut self, (low, high): (u64, u64)) -> u64 {
        low + self.noise.below(high - low + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world() -> World {
        World {
            masters: 3,
            datanodes: 4,
            small_disks: vec![3],
            volumes: 5,
            classes: CLASSES.into(),
        }
    }

    fn first(seed: u64, count: usize) -> Vec<Fault> {
        let mut schedule = Schedule::new(seed, world());
        let mut faults = Vec::new();
        while faults.len() < count {
            faults.extend(schedule.round((count - faults.len()) as u64));
        }
        faults
    }

    #[test]
    fn one_seed_is_one_schedule() {
        assert_eq!(first(7, 200), first(7, 200));
        assert_ne!(first(7, 20), first(8, 20));
    }

    #[test]
    fn every_class_has_its_turn_before_one_has_its_second() {
        for seed in 0..50 {
            let classes: BTreeSet<Class> =
                first(seed, CLASSES.len()).iter().map(|f| f.class).collect();
            assert_eq!(classes.len(), CLASSES.len(), "seed {seed}");
        }
    }

    #[test]
    fn only_what_can_be_caused_here_is_planned() {
        let classes = CLASSES.into_iter().filter(|c| !c.is_of_network() && *c != Class::FullDisk);
        let world = World { small_disks: Vec::new(), classes: classes.collect(), ..world() };
        let mut schedule = Schedule::new(1, world.clone());
        for _ in 0..20 {
            for fault in schedule.round(u64::MAX) {
                assert!(world.classes.contains(&fault.class), "{fault}");
                assert!(!matches!(fault.victim, Victim::Paths(..)), "{fault}");
            }
        }
    }

    #[test]
    fn faults_stay_within_their_limits_and_some_meet() {
        let (mut met, mut long) = (0, 0);
        for seed in 0..50 {
            let mut schedule = Schedule::new(seed, world());
            let round = schedule.round(u64::MAX);
            assert!((6..=14).contains(&round.len()));
            for pair in round.windows(2) {
                assert!(pair[0].at < pair[1].at || pair[1].class.is_quiet());
                met += u64::from(pair[0].at + pair[0].lasts > pair[1].at);
            }
            for fault in &round {
                assert!(fault.lasts <= Duration::from_secs(35), "{fault}");
                long += u64::from(fault.lasts >= Duration::from_secs(15));
                if let Victim::Paths(from, to) = &fault.victim {
                    assert!(!from.is_empty() && !to.is_empty(), "{fault}");
                    assert!(from.iter().all(|end| !to.contains(end)), "{fault}");
                }
            }
        }
        assert!(met > 100 && long > 10, "{met} {long}");
    }

    #[test]
    fn a_fault_is_told_in_words() {
        let fault = Fault {
            number: 3,
            at: Duration::from_millis(1500),
            lasts: Duration::from_secs(2),
            class: Class::Loss,
            victim: Victim::Processes(vec![Which::Datanode(0)]),
            measure: 10,
        };
        assert_eq!(fault.to_string(), "#3 at 1.5 s for 2.0 s: packet-loss of datanode 1, 10 %");
    }
}
