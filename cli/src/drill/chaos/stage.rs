//! The cluster that is harmed, and what harms it: faults begin, last and end.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::Signal;
use sbk_master_client::MasterClient;
use sbk_proto::v1::{MovePrimaryRequest, NodeDuty, SetNodeDutyRequest};
use uuid::Uuid;

use super::disk::SmallDisk;
use super::failing::FailingDisk;
use super::keep;
use super::log::Log;
use super::schedule::{Class, Fault, Victim};
use super::volumes::KINDS;
use crate::dev::cluster::{DevCluster, Which};
use crate::dev::keys;
use crate::drill::network::{Condition, End, Network, Sending};
use crate::view::VolumeView;

/// How long it may take to look up who has a role; it may be that nobody has it.
const LOOK_UP: Duration = Duration::from_secs(1);
/// So long after a fault of a datanode has ended a connection to it may still be lost by it.
const AFTERMATH: Duration = Duration::from_secs(30);

/// The cluster and what is wrong with it at the moment.
#[derive(Debug)]
pub(super) struct Stage {
    /// The cluster.
    pub(super) cluster: DevCluster,
    // After the cluster, whose processes use them.
    disks: BTreeMap<usize, SmallDisk>,
    /// Disks that can fail, one of some datanodes.
    pub(super) failing: BTreeMap<usize, FailingDisk>,
    /// How many of these were replaced.
    pub(super) replaced: u64,
    network: Option<Network>,
    active: Vec<Active>,
    /// When each datanode was last harmed.
    harmed: BTreeMap<usize, Instant>,
    /// Datanodes that may be drained.
    drained: BTreeSet<usize>,
    /// Datanodes that have keys which they need no more once all is whole.
    rekeyed: BTreeSet<usize>,
    /// Processes that ended by themselves, in words, until they are asked for.
    ended: Vec<String>,
}

#[derive(Debug)]
struct Active {
    number: u64,
    class: Class,
    until: Instant,
    effect: Effect,
}

#[derive(Clone, Debug)]
pub(super) enum Effect {
    Down(Vec<Which>),
    Frozen(Vec<Which>),
    /// Runs and stops in turns of `turn`.
    Slow {
        which: Which,
        turn: Duration,
        runs: bool,
        next: Instant,
    },
    Cut {
        from: Vec<End>,
        to: Vec<End>,
        both: bool,
    },
    /// A cut that comes and goes.
    Flap {
        from: Vec<End>,
        to: Vec<End>,
        turn: Duration,
        cut: bool,
        next: Instant,
    },
    Loss(Which, u64),
    Sends(Which, Sending),
    Full(usize),
    /// Its replicas are to go elsewhere.
    Drained(usize),
    /// A volume's primary is to be another replica.
    Moved(MovePrimaryRequest),
    /// Told to end; started again when the fault is over.
    Stopped(Which),
    /// The same, with a new key.
    Rekeyed(usize),
    /// The one of its disks that can fail has done so; its id.
    DiskFailed {
        at: usize,
        id: String,
    },
}

impl Effect {
    /// The processes that it is about; no other fault of processes may befall them meanwhile.
    fn holds(&self) -> Vec<Which> {
        match self {
            Effect::Down(all) | Effect::Frozen(all) => all.clone(),
            Effect::Slow { which, .. } | Effect::Stopped(which) => vec![*which],
            Effect::Full(at) | Effect::Rekeyed(at) => vec![Which::Datanode(*at)],
            Effect::Cut { .. }
            | Effect::Flap { .. }
            | Effect::Loss(..)
            | Effect::Sends(..)
            | Effect::Drained(_)
            | Effect::DiskFailed { .. }
            | Effect::Moved(_) => Vec::new(),
        }
    }

    /// The datanodes whose clients may lose their connections by it.
    fn harms(&self) -> Vec<usize> {
        let datanode = |which: &Which| match which {
            Which::Datanode(at) => Some(*at),
            Which::Master(_) => None,
        };
        match self {
            Effect::Cut { from, to, .. } | Effect::Flap { from, to, .. } => {
                let away = |side: &[End], other: &[End]| {
                    let clients = side.contains(&End::Clients);
                    let cut = other.iter().filter(move |_| clients);
                    cut.filter_map(|end| match end {
                        End::Node(which) => datanode(which),
                        End::Clients => None,
                    })
                    .collect::<Vec<usize>>()
                };
                [away(from, to), away(to, from)].concat()
            }
            Effect::Loss(which, _) | Effect::Sends(which, _) => {
                datanode(which).into_iter().collect()
            }
            // A client is not to notice.
            Effect::Drained(_) | Effect::Moved(_) | Effect::DiskFailed { .. } => Vec::new(),
            Effect::Down(_)
            | Effect::Frozen(_)
            | Effect::Slow { .. }
            | Effect::Full(_)
            | Effect::Rekeyed(_)
            | Effect::Stopped(_) => self.holds().iter().filter_map(datanode).collect(),
        }
    }
}

impl Stage {
    /// A stage on which nothing is wrong yet.
    pub(super) fn new(
        cluster: DevCluster,
        network: Option<Network>,
        disks: BTreeMap<usize, SmallDisk>,
        failing: BTreeMap<usize, FailingDisk>,
    ) -> Self {
        let (active, harmed) = (Vec::new(), BTreeMap::new());
        Self {
            cluster,
            disks,
            failing,
            replaced: 0,
            network,
            active,
            harmed,
            drained: BTreeSet::new(),
            rekeyed: BTreeSet::new(),
            ended: Vec::new(),
        }
    }

    /// Whether a fault has not ended yet.
    pub(super) fn is_harmed(&self) -> bool {
        !self.active.is_empty()
    }

    /// Whether a connection to a datanode, lost at `at`, may have been lost by a fault.
    pub(super) fn explains(&self, datanode: usize, at: Instant) -> bool {
        let now = self.active.iter().any(|a| a.effect.harms().contains(&datanode));
        let before = self.harmed.get(&datanode).is_some_and(|last| at < *last + AFTERMATH);
        now || before
    }

    /// Begins a fault, if its victims are there to be harmed. `false` if another fault has them.
    pub(super) async fn begin(&mut self, fault: &Fault, log: &mut Log) -> anyhow::Result<bool> {
        let Some(effect) = self.effect(fault).await else { return Ok(false) };
        let whom = match effect.holds().as_slice() {
            [] => String::new(),
            held => {
                let names: Vec<String> = held.iter().map(Which::to_string).collect();
                format!(" -> {}", names.join(", "))
            }
        };
        log.tell(&format!("{fault}{whom}"));
        *log.faults.entry(fault.class).or_default() += 1;
        self.mark_harmed(&effect);
        match &effect {
            Effect::Down(all) => {
                keep::traces(&self.cluster, all, fault.number).await;
                for which in all {
                    self.note_end(*which);
                    self.cluster.kill(*which);
                }
            }
            Effect::Frozen(all) => {
                for which in all {
                    self.cluster.signal(*which, Signal::STOP);
                }
            }
            Effect::Full(at) => self.disks[at].fill()?,
            Effect::Drained(at) => {
                // What is asked of the masters may be done although no answer comes.
                self.drained.insert(*at);
                if let Err(e) = self.set_duty(*at, NodeDuty::Drained).await {
                    log.record(&format!("#{} is not answered: {e:#}", fault.number));
                }
            }
            Effect::Moved(request) => {
                let masters = self.masters();
                let asked = masters.move_primary(request.clone());
                match tokio::time::timeout(LOOK_UP, asked).await {
                    Ok(Ok(_)) => {}
                    // It may be out of sync by now, or no master leads.
                    Ok(Err(e)) => log.record(&format!("#{} is refused: {e}", fault.number)),
                    Err(_) => log.record(&format!("#{} is not answered", fault.number)),
                }
            }
            Effect::Stopped(which) => {
                self.note_end(*which);
                self.cluster.signal(*which, Signal::TERM);
            }
            Effect::Rekeyed(at) => {
                let path = self.key_file(*at)?;
                keys::add(&path).with_context(|| format!("changing {}", path.display()))?;
                self.rekeyed.insert(*at);
                self.note_end(Which::Datanode(*at));
                self.cluster.signal(Which::Datanode(*at), Signal::TERM);
            }
            Effect::Slow { .. }
            | Effect::Cut { .. }
            | Effect::Flap { .. }
            | Effect::Loss(..)
            | Effect::DiskFailed { .. }
            | Effect::Sends(..) => {}
        }
        self.push(fault, effect);
        self.apply_network()?;
        Ok(true)
    }

    /// Notes that a fault has begun.
    pub(super) fn push(&mut self, fault: &Fault, effect: Effect) {
        let until = Instant::now() + fault.lasts;
        self.active.push(Active { number: fault.number, class: fault.class, until, effect });
    }

    /// Has a process end and be started again when the fault is over.
    pub(super) fn stop(&mut self, fault: &Fault, which: Which) {
        let effect = Effect::Stopped(which);
        self.mark_harmed(&effect);
        self.note_end(which);
        self.cluster.signal(which, Signal::TERM);
        self.push(fault, effect);
    }

    /// Whether a disk has failed that was not replaced yet.
    pub(super) fn has_failed_disk(&self) -> bool {
        self.active.iter().any(|active| active.class == Class::FailDisk)
    }

    /// Lets faults take their turns, and ends those whose time has come. Whether there was one.
    pub(super) fn turn(&mut self, log: &mut Log) -> anyhow::Result<bool> {
        let now = Instant::now();
        let mut signals = Vec::new();
        for active in &mut self.active {
            match &mut active.effect {
                Effect::Slow { which, turn, runs, next } if *next <= now => {
                    *runs = !*runs;
                    *next = now + *turn;
                    signals.push((*which, if *runs { Signal::CONT } else { Signal::STOP }));
                }
                Effect::Flap { turn, cut, next, .. } if *next <= now => {
                    *cut = !*cut;
                    *next = now + *turn;
                }
                _ => {}
            }
        }
        for (which, signal) in signals {
            self.cluster.signal(which, signal);
        }
        let over = self.active.extract_if(.., |a| a.until <= now).collect::<Vec<_>>();
        let ended = !over.is_empty();
        for active in over {
            self.end(active, log)?;
        }
        self.apply_network()?;
        Ok(ended)
    }

    /// Ends all faults now.
    pub(super) fn heal(&mut self, log: &mut Log) -> anyhow::Result<()> {
        for active in std::mem::take(&mut self.active) {
            self.end(active, log)?;
        }
        self.apply_network()
    }

    fn end(&mut self, active: Active, log: &mut Log) -> anyhow::Result<()> {
        log.record(&format!("#{} {} ends", active.number, active.class.word()));
        self.mark_harmed(&active.effect);
        match active.effect {
            Effect::Down(all) => {
                all.into_iter().try_for_each(|which| self.cluster.start_again(which))
            }
            Effect::Frozen(all) => {
                all.into_iter().for_each(|which| self.cluster.signal(which, Signal::CONT));
                Ok(())
            }
            Effect::Slow { which, .. } => {
                self.cluster.signal(which, Signal::CONT);
                Ok(())
            }
            Effect::Full(at) => {
                // As the manual has it: room is made, then the datanode is started again.
                self.disks[&at].free()?;
                let which = Which::Datanode(at);
                self.note_end(which);
                self.cluster.kill(which);
                self.cluster.start_again(which)
            }
            Effect::Cut { .. }
            | Effect::Flap { .. }
            | Effect::Loss(..)
            | Effect::Sends(..)
            | Effect::Drained(_)
            | Effect::Moved(_) => Ok(()),
            Effect::DiskFailed { at, id } => {
                // The clients of its node lose their connections only now.
                self.harmed.insert(at, Instant::now());
                self.replace_disk(at, &id)
            }
            Effect::Rekeyed(at) => self.end_of_stop(Which::Datanode(at)),
            Effect::Stopped(which) => self.end_of_stop(which),
        }
    }

    /// Has a process be there again that was told to end.
    fn end_of_stop(&mut self, which: Which) -> anyhow::Result<()> {
        // One that has ended well was told to; one that still stops has had its time.
        if self.cluster.how_ended(which).is_some_and(|(status, _)| !status.success()) {
            self.note_end(which);
        }
        self.cluster.kill(which);
        self.cluster.start_again(which)
    }

    fn key_file(&self, datanode: usize) -> anyhow::Result<PathBuf> {
        let path = self.cluster.own_key_file(datanode as u64 + 1);
        path.context("each datanode has a key file of its own")
    }

    /// Takes all keys but the newest from nodes that were started with that since. To be called when all
    /// replicas are in sync: each was opened with it then. How many nodes these were.
    pub(super) fn drop_old_keys(&mut self) -> anyhow::Result<u64> {
        let rekeyed = std::mem::take(&mut self.rekeyed);
        for at in &rekeyed {
            let path = self.key_file(*at)?;
            keys::keep_first(&path).with_context(|| format!("changing {}", path.display()))?;
        }
        Ok(rekeyed.len() as u64)
    }

    fn mark_harmed(&mut self, effect: &Effect) {
        for datanode in effect.harms() {
            self.harmed.insert(datanode, Instant::now());
        }
    }

    fn apply_network(&mut self) -> anyhow::Result<()> {
        let Some(network) = &mut self.network else { return Ok(()) };
        let mut condition = Condition::default();
        for active in &self.active {
            let (from, to, both) = match &active.effect {
                Effect::Cut { from, to, both } => (from, to, *both),
                Effect::Flap { from, to, cut: true, .. } => (from, to, true),
                Effect::Loss(which, percent) => {
                    condition.loss.insert(*which, *percent);
                    continue;
                }
                Effect::Sends(which, how) => {
                    condition.sending.insert(*which, *how);
                    continue;
                }
                Effect::Flap { .. }
                | Effect::Down(_)
                | Effect::Frozen(_)
                | Effect::Slow { .. }
                | Effect::Full(_)
                | Effect::Drained(_)
                | Effect::Moved(_)
                | Effect::Rekeyed(_)
                | Effect::DiskFailed { .. }
                | Effect::Stopped(_) => continue,
            };
            for (a, b) in from.iter().flat_map(|a| to.iter().map(move |b| (*a, *b))) {
                condition.cut.insert((a, b));
                if both {
                    condition.cut.insert((b, a));
                }
            }
        }
        network.apply(&condition)
    }

    /// What the fault comes to now; `None` if nobody is left whom it could befall.
    async fn effect(&self, fault: &Fault) -> Option<Effect> {
        let now = Instant::now();
        let turn = Duration::from_millis(fault.measure);
        let all = match &fault.victim {
            Victim::Paths(from, to) => {
                let (from, to) = (from.clone(), to.clone());
                return Some(match fault.class {
                    Class::PartitionFlapping => {
                        Effect::Flap { from, to, turn, cut: true, next: now + turn }
                    }
                    class => Effect::Cut { from, to, both: class != Class::PartitionOneWay },
                });
            }
            Victim::Primary(volume, _) if fault.class == Class::MovePrimary => {
                // A single copy has nowhere to go: waiting for that would be waiting for ever.
                let kind = KINDS.iter().cycle().skip(*volume).find(|kind| kind.replicas > 1)?;
                return self.move_of(kind.name, fault.number).await;
            }
            Victim::Processes(all) => all.clone(),
            // Those begin elsewhere, before all others.
            Victim::Any => return None,
            Victim::Primary(volume, other) => {
                vec![self.primary(KINDS[*volume].name).await.unwrap_or(*other)]
            }
            Victim::Leader(other) => vec![self.leader().await.unwrap_or(*other)],
        };
        let first = *all.first()?;
        match fault.class {
            Class::Loss => return Some(Effect::Loss(first, fault.measure)),
            Class::SlowLink => return Some(Effect::Sends(first, Sending::Rate(fault.measure))),
            Class::Delay => return Some(Effect::Sends(first, Sending::Late(fault.measure))),
            Class::Drain => {
                return match first {
                    Which::Datanode(at) => Some(Effect::Drained(at)),
                    Which::Master(_) => None,
                };
            }
            _ => {}
        }
        let held: Vec<Which> = self.active.iter().flat_map(|a| a.effect.holds()).collect();
        let free: Vec<Which> = all.into_iter().filter(|which| !held.contains(which)).collect();
        let first = *free.first()?;
        Some(match fault.class {
            Class::FreezeDatanode | Class::FreezePrimary | Class::FreezeLeader => {
                Effect::Frozen(free)
            }
            Class::SlowDatanode => Effect::Slow { which: first, turn, runs: true, next: now },
            Class::FullDisk => match first {
                Which::Datanode(at) => Effect::Full(at),
                Which::Master(_) => return None,
            },
            Class::StopPrimary => Effect::Stopped(first),
            Class::RotateKey => match first {
                Which::Datanode(at) => Effect::Rekeyed(at),
                Which::Master(_) => return None,
            },
            _ => Effect::Down(free),
        })
    }

    /// A move of a volume's primary to another replica that is in sync now, if there is one.
    async fn move_of(&self, volume: &str, number: u64) -> Option<Effect> {
        let masters = self.masters();
        let info = tokio::time::timeout(LOOK_UP, masters.get_volume(volume)).await.ok()?.ok()?;
        let others: Vec<_> = info.members.iter().filter(|m| m.in_sync && !m.primary).collect();
        let heir = others.get(number as usize % others.len().max(1))?;
        let (name_or_id, replica) = (volume.to_owned(), heir.replica.clone());
        Some(Effect::Moved(MovePrimaryRequest { name_or_id, replica }))
    }

    /// A client of the masters for one look.
    pub(super) fn masters(&self) -> MasterClient {
        self.cluster.client().with_deadline(LOOK_UP)
    }

    async fn primary(&self, volume: &str) -> Option<Which> {
        let masters = self.masters();
        let info = tokio::time::timeout(LOOK_UP, masters.get_volume(volume)).await.ok()?.ok()?;
        let primary = VolumeView::of(&info).primary?;
        let at = self.cluster.file().datanodes.iter().position(|d| d.id == primary)?;
        Some(Which::Datanode(at))
    }

    async fn leader(&self) -> Option<Which> {
        let masters = self.masters();
        let status = tokio::time::timeout(LOOK_UP, masters.cluster_status()).await.ok()?.ok()?;
        let at = self.cluster.file().masters.iter().position(|m| m.id == status.leader)?;
        Some(Which::Master(at))
    }

    /// Lets all datanodes hold replicas again. To be called until it succeeds.
    pub(super) async fn undrain(&mut self) -> anyhow::Result<()> {
        for at in self.drained.clone() {
            self.set_duty(at, NodeDuty::Holds).await?;
            self.drained.remove(&at);
        }
        Ok(())
    }

    async fn set_duty(&self, datanode: usize, duty: NodeDuty) -> anyhow::Result<()> {
        let node = Uuid::parse_str(&self.cluster.file().datanodes[datanode].id)?;
        let node = node.as_bytes().to_vec().into();
        let request = SetNodeDutyRequest { node, duty: duty.into() };
        tokio::time::timeout(LOOK_UP, self.masters().set_node_duty(request)).await??;
        Ok(())
    }

    /// Notes that a process ended although nobody killed it, if so: to be called before the drill
    /// kills it.
    pub(super) fn note_end(&mut self, which: Which) {
        if let Some((status, tail)) = self.cluster.how_ended(which) {
            // Told to stop by the drill before it could listen to that: it had just been started.
            if status.signal() == Some(Signal::TERM.as_raw()) && self.cluster.is_silent(which) {
                return;
            }
            let text = format!("{which} ended by itself ({status}); its log ends with:\n{tail}");
            self.ended.push(text);
        }
    }

    /// Processes that ended although nobody killed them, in words.
    pub(super) fn unexpected_ends(&mut self) -> Vec<String> {
        let held: Vec<Which> = self.active.iter().flat_map(|a| a.effect.holds()).collect();
        let file = self.cluster.file();
        let (masters, datanodes) = (file.masters.len(), file.datanodes.len());
        let all = (0..masters).map(Which::Master).chain((0..datanodes).map(Which::Datanode));
        for which in all.filter(|which| !held.contains(which)) {
            self.note_end(which);
        }
        std::mem::take(&mut self.ended)
    }

    /// Stops everything. With `keep`, what is on the small disks is kept in their place.
    pub(super) async fn close(mut self, keep: bool) -> anyhow::Result<()> {
        // What is frozen could not stop.
        self.active.clear();
        let file = self.cluster.file().clone();
        let all = (0..file.masters.len()).map(Which::Master);
        for which in all.chain((0..file.datanodes.len()).map(Which::Datanode)) {
            self.cluster.signal(which, Signal::CONT);
        }
        self.apply_network()?;
        let stopped = self.cluster.stop().await;
        for (_, disk) in std::mem::take(&mut self.disks) {
            if keep {
                let at = disk.at().to_owned();
                disk.keep().with_context(|| format!("keeping {}", at.display()))?;
            }
        }
        stopped
    }
}
