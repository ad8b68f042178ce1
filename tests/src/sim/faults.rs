//! What goes wrong.

use sbk_engine::authority::detector::DetectorParams;
use sbk_engine::replication::Params;
use sbk_engine::replication::io::Input;
use sbk_engine::replication::room::Room;
use sbk_engine::types::{BLOCK_SIZE, Durability, WriteAck};
use sbk_wal::{Fault, OpKind};

use super::disk::Keeping;
use super::event::Event;
use super::marks::{Injected, Mark};
use super::rng::Rng;
use super::world::World;

/// For how long the WAL is kept for others, in milliseconds, where that is told by time.
pub(super) const AGES: [u64; 3] = [300, 800, 2_000];

/// Which faults occur, in percent of messages or at all.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// Messages lost, in percent.
    pub(crate) loss: u64,
    /// Messages that arrive twice, in percent, and how much later the second may be.
    pub(crate) repeat: u64,
    pub(crate) echo_ms: u64,
    /// Messages that take long, in percent.
    pub(crate) slow: u64,
    pub(crate) crash: bool,
    /// Machines lose power, not only processes die.
    pub(crate) power: bool,
    /// Disks fail an operation, stop in the middle of one, or answer nothing for a while.
    pub(crate) disk: bool,
    /// Disks run full, and have room again.
    pub(crate) full: bool,
    /// Disks run short of room, which their drivers tell, and have some again: see `rooms`.
    pub(crate) space: bool,
    /// Replicas prove what they wrote, as encrypted ones do.
    pub(crate) proving: bool,
    /// Bits of blocks flip on disks.
    pub(crate) rot: bool,
    /// They do where a primary reads, while another member has the block: see `rotten`. Besides `rot`.
    pub(crate) rotten: bool,
    /// Operators look for them on all in-sync replicas, and have them repaired: see `scrubs`.
    pub(crate) scrub: bool,
    /// Bits of all else that a replica keeps flip on one disk at a time: see `flips`.
    pub(crate) flip: bool,
    /// Nodes are cut off, or stand still.
    pub(crate) partition: bool,
    /// Nodes hear others that don't hear them.
    pub(crate) one_way: bool,
    /// Links go and come.
    pub(crate) flap: bool,
    /// Links are slow.
    pub(crate) slow_link: bool,
    /// Primaries are cut off with clients that stay, while another one is promoted at once.
    pub(crate) coup: bool,
    /// The masters replace a primary without reason.
    pub(crate) whim: bool,
    /// The masters change their leader, and some lag.
    pub(crate) leader: bool,
    /// The masters have no quorum for a while.
    pub(crate) quorum: bool,
    /// What takes several steps to go wrong: see `plots`.
    pub(crate) plot: bool,
    /// What strikes at the one moment at which it matters: see `plots`.
    pub(crate) ambush: bool,
    /// Three changes of primary around a log that grew alone: see `eight`.
    pub(crate) eight: bool,
    /// Disks sync nothing for a while, and then the power goes: see `unsynced`.
    pub(crate) unsynced: bool,
    /// A member's disk hangs until catch-ups with what it missed have failed as often as has a replica
    /// rebuilt that nobody counts on.
    pub(crate) hang: bool,
    /// Processes end and are back before anybody notices.
    pub(crate) blink: bool,
    /// The WAL holds so little that replicas that were away need a base lane.
    pub(crate) short_wal: bool,
    /// For how long the WAL is kept for others, in milliseconds, whatever it takes; 0: by its size.
    pub(crate) ages: u64,
    /// Clients use the second region now and then only: it stays as it is while replicas are away.
    pub(crate) cold: bool,
    /// Writes count as large: they go into the log by reference wherever they may.
    pub(crate) large: bool,
    /// They never do.
    pub(crate) small: bool,
    /// Replicas' clocks run at different speeds.
    pub(crate) drift: bool,
    /// Replicas' clocks jump, by less than the leases allow for.
    pub(crate) jump: bool,
    /// Clients attach exclusively, take the volume from each other, and go on as ghosts.
    pub(crate) exclusive: bool,
    /// Clients give up requests that take long.
    pub(crate) impatient: bool,
    /// The masters suspect sooner than they should.
    pub(crate) hasty: bool,
    /// How busy clients are: requests in percent of their turns.
    pub(crate) busy: u64,
    /// All replicas that hold everything go, and an operator gives them up.
    pub(crate) disaster: bool,
    /// A primary and all others go as it orders a replica to be rebuilt, and the order comes long after.
    pub(crate) parting: bool,
    /// Another size is wished at any time, and clients use what lies beyond the first one.
    pub(crate) resize: bool,
    /// Another primary is wished at any time, and processes hand over before they end in order.
    pub(crate) handover: bool,
    pub(crate) durability: Durability,
    pub(crate) write_ack: WriteAck,
    /// The power goes for all machines at once, now and then.
    pub(crate) blackout: bool,
    pub(crate) replicas: u128,
    pub(crate) min_in_sync: u32,
    /// Nodes that hold nothing in the beginning.
    pub(crate) spares: u128,
    /// An operator moves replicas, drains nodes and removes those that are off.
    pub(crate) moves: bool,
    /// Nodes are lost for ever, and replaced.
    pub(crate) lost: bool,
    /// Disks fail for good while their nodes go on: see `failed`.
    pub(crate) disk_loss: bool,
    /// In the end the volume is deleted, and things go wrong once more.
    pub(crate) delete: bool,
}

impl Faults {
    pub(crate) fn none() -> Self {
        Self {
            loss: 0,
            repeat: 0,
            echo_ms: 300,
            slow: 0,
            crash: false,
            power: false,
            disk: false,
            full: false,
            space: false,
            proving: false,
            rot: false,
            rotten: false,
            scrub: false,
            flip: false,
            partition: false,
            one_way: false,
            flap: false,
            slow_link: false,
            coup: false,
            whim: false,
            leader: false,
            quorum: false,
            plot: false,
            ambush: false,
            eight: false,
            unsynced: false,
            hang: false,
            blink: false,
            short_wal: false,
            ages: 0,
            cold: false,
            large: false,
            small: false,
            drift: false,
            jump: false,
            exclusive: false,
            impatient: false,
            hasty: false,
            busy: 12,
            disaster: false,
            parting: false,
            resize: false,
            handover: false,
            durability: Durability::SyncAll,
            write_ack: WriteAck::Durable,
            blackout: false,
            replicas: 3,
            min_in_sync: 2,
            spares: 0,
            moves: false,
            lost: false,
            disk_loss: false,
            delete: false,
        }
    }

    /// A mix that the seed draws: which classes are on, and how often each strikes. Classes that
    /// are off matter as much as those that are on: some states are reached only where nothing else
    /// disturbs.
    pub(crate) fn swarm(seed: u64) -> Self {
        let mut rng = Rng::new(seed ^ 0x5377_4152_4d21);
        let mut on = |percent: u64| rng.chance(percent);
        let (lossy, echoes, late) = (on(30), on(30), on(30));
        let mut faults = Self {
            crash: on(50),
            power: on(50),
            disk: on(30),
            full: on(15),
            rot: on(15),
            partition: on(40),
            one_way: on(20),
            flap: on(15),
            slow_link: on(20),
            coup: on(20),
            whim: on(25),
            leader: on(40),
            quorum: on(15),
            blink: on(30),
            short_wal: on(50),
            impatient: on(25),
            hasty: on(50),
            ..Self::none()
        };
        match rng.below(4) {
            0 => faults.drift = true,
            1 => faults.jump = true,
            _ => {}
        }
        faults.loss = if lossy { 1 + rng.below(5) } else { 0 };
        faults.repeat = if echoes { 1 + rng.below(20) } else { 0 };
        faults.echo_ms = 300 + 1_000 * rng.below(4);
        faults.slow = if late { 1 + rng.below(20) } else { 0 };
        faults.busy = [3, 8, 15, 25][rng.below(4) as usize];
        faults.replicas = [3, 3, 3, 2, 4, 5][rng.below(6) as usize];
        faults.min_in_sync = 1 + rng.below(2) as u32;
        faults.draw_modes(Rng::new(seed ^ 0x6d6f_7665));
        if seed % 4 == 3 {
            faults.hand_over(seed / 4);
        }
        if seed % 8 == 6 {
            faults.give_up(seed / 8);
        }
        faults.hang = seed % 32 == 9;
        // In `best_effort` whoever is promoted is all there is, spoilt or not; and of three voters one may be
        // spoilt and one be rebuilt, while the third is started again (family `flips` has fewer faults).
        faults.flip = seed % 16 == 12 && faults.durability == Durability::SyncAll;
        if faults.flip {
            // Of what one disk spoils, another must have a copy.
            (faults.lost, faults.rot) = (false, false);
            (faults.coup, faults.whim) = (false, false);
            // A replica that can't be opened is replaced in its place, and its node must be free for that.
            (faults.moves, faults.spares) = (false, 0);
            // Nor may it be all that is left in sync.
            faults.replicas = faults.replicas.max(3);
            faults.min_in_sync = 2;
        }
        faults.rot &= !(faults.lost && faults.power);
        faults.exclusive = rng.chance(25);
        let written = rng.chance(15) || faults.disaster && seed / 8 % 4 == 3;
        // After a loss of all power one goes on alone, which must not be the one that is spoilt next.
        if written && !faults.flip && faults.durability == Durability::SyncAll {
            faults.write_ack = WriteAck::Written;
            faults.blackout = faults.power;
            // A loss of all power leaves rebuilds to do, which a damaged block of the sender stops.
            faults.rot = false;
        }
        faults.resize = matches!(seed % 16, 5 | 10) && faults.keeps_all();
        faults.space = matches!(seed % 16, 8 | 15);
        faults.resize |= faults.space && faults.keeps_all();
        faults.disk_loss = seed.is_multiple_of(16) && !faults.full;
        // Of what rots, another disk must have a copy.
        faults.rot &= !faults.disk_loss;
        if seed % 16 == 4 && !faults.short_wal {
            faults.ages = AGES[(seed / 16 % 3) as usize];
        }
        faults
    }

    /// Whether nothing that was acknowledged is lost, spoilt or taken away, and whose a request is doesn't
    /// change: then what a block may show is known without a history.
    fn keeps_all(&self) -> bool {
        let lossy = self.disaster || self.lost || self.durability == Durability::BestEffort;
        let spoilt = self.rot || self.flip || self.write_ack == WriteAck::Written;
        !(lossy || spoilt || self.exclusive || self.delete)
    }

    /// As [`Self::swarm`], with handovers, in each mode.
    pub(crate) fn handovers(seed: u64) -> Self {
        let mut faults = Self::swarm(seed);
        faults.hand_over(seed);
        // In `best_effort` a handover that fails may lose what was acknowledged.
        (faults.flip, faults.resize) = (false, false);
        // One fault less now and then: all of them at once leave few handovers to end well.
        match seed / 3 % 4 {
            0 => (faults.crash, faults.power, faults.disk) = (false, false, false),
            1 => (faults.partition, faults.one_way, faults.coup) = (false, false, false),
            _ => {}
        }
        faults
    }

    /// All that hold everything go, for good or for a while, and an operator gives them up; in each mode.
    fn give_up(&mut self, n: u64) {
        self.disaster = true;
        self.lost |= n.is_multiple_of(3);
        self.spares += u128::from(n.is_multiple_of(3));
        match n % 4 {
            1 => (self.durability, self.min_in_sync) = (Durability::SyncQuorum, 1),
            2 => (self.durability, self.min_in_sync) = (Durability::BestEffort, 1),
            _ => self.durability = Durability::SyncAll,
        }
        // What makes damaged blocks whole in the end is a write, which a loss may take.
        self.rot = false;
    }

    fn hand_over(&mut self, n: u64) {
        self.handover = true;
        let modes = [Durability::SyncAll, Durability::SyncQuorum, Durability::BestEffort];
        self.durability = modes[(n % 3) as usize];
        if self.durability != Durability::SyncAll {
            self.min_in_sync = 1;
        }
        if self.durability != Durability::SyncAll {
            (self.write_ack, self.blackout) = (WriteAck::Durable, false);
        }
        // What makes damaged blocks whole in the end is a write, which a loss may take.
        self.rot &= self.durability == Durability::SyncAll;
    }

    /// Modes and moves, also by the seed.
    fn draw_modes(&mut self, mut rng: Rng) {
        let mode = rng.below(10);
        self.moves = rng.chance(25);
        self.lost = rng.chance(15);
        self.delete = rng.chance(15);
        if self.moves || self.lost {
            self.spares = u128::from(rng.below(3)) + u128::from(self.lost);
        }
        (self.durability, self.min_in_sync) = match mode {
            0..=1 => (Durability::SyncQuorum, 1),
            2 => (Durability::BestEffort, 1),
            _ => (self.durability, self.min_in_sync),
        };
    }

    /// How the disks are kept.
    pub(crate) fn keeping(&self) -> Keeping {
        // Clients write single blocks.
        let large = if self.large { BLOCK_SIZE } else { u64::MAX };
        let (retain_ms, proving) = (self.ages, self.proving);
        if retain_ms > 0 {
            // More than a run logs: what goes, goes for its age.
            let retain = 64 << 20;
            Keeping { segment: 16 << 10, retain, retain_ms, checkpoint: 8 << 10, large, proving }
        } else if self.short_wal {
            Keeping {
                segment: 16 << 10,
                retain: 24 << 10,
                retain_ms,
                checkpoint: 8 << 10,
                large,
                proving,
            }
        } else {
            Keeping {
                segment: 64 << 10,
                retain: 64 << 20,
                retain_ms,
                checkpoint: 32 << 10,
                large,
                proving,
            }
        }
    }

    /// When the masters suspect a node.
    pub(crate) fn detector(&self) -> DetectorParams {
        // A run is shorter than the grace for a whole site. What goes on alone after it must have whole blocks:
        // nobody is rebuilt from damaged ones.
        let grace_ms = if self.rot { 60_000 } else { 4_000 };
        let mut params = DetectorParams { grace_ms, ..DetectorParams::default() };
        if self.hasty {
            (params.suspect_ms, params.unheard_ms) = (700, 1_500);
        }
        if self.lost || self.disk_loss {
            params.replace_ms = if self.hasty { 2_000 } else { 4_000 };
        }
        params
    }

    /// The times of the replicas' engines.
    pub(crate) fn engine(&self) -> Params {
        // A base lane that broke is noticed by nothing else here.
        let mut params = Params { stall_ms: 3_000, doubt_ms: Some(4_000), ..Params::default() };
        // Nor are there ever as many epochs in a row that commit nothing as a table has room for.
        params.max_uncommitted_epochs = 2;
        if self.hang {
            // A run is shorter than as many stalls as it usually takes.
            params.recovery.catch_up_budget = 2;
        }
        params
    }
}

impl World {
    /// Power goes where it hurts: soon, at a node on which much depends now.
    pub(crate) fn hurt(&mut self, node: usize, power: bool) {
        if self.faults.blackout && !self.healed && self.rng.chance(15) {
            let delay = self.rng.below(30);
            self.after(delay, Event::Strike { node, power });
        }
    }

    pub(crate) fn strike(&mut self, node: usize, power: bool) {
        if !self.healed {
            let away = if power { 500 + self.rng.below(4_000) } else { 1 + self.rng.below(30) };
            self.die(node, power, away);
        }
    }

    pub(crate) fn fault_turn(&mut self) {
        if self.faults.crash && self.rng.below(600) == 0 {
            let node = self.any_node();
            let away = 50 + self.rng.below(4_000);
            self.crash(node, away);
            // Now and then the power goes for all.
            if self.rng.chance(8) {
                self.inject(Injected::SiteLoss);
                let power = self.faults.power;
                for other in 0..self.nodes.len() {
                    let away = 50 + self.rng.below(4_000);
                    self.die(other, power, away);
                }
            }
        }
        if self.faults.blackout && self.rng.below(1_500) == 0 {
            self.inject(Injected::SiteLoss);
            let spared = self.rng.below(2 * self.nodes.len() as u64) as usize;
            for other in (0..self.nodes.len()).filter(|other| *other != spared) {
                let away = 50 + self.rng.below(8_000);
                self.die(other, true, away);
            }
        }
        if self.faults.blink && self.rng.below(200) == 0 {
            let node = self.any_node();
            let away = 1 + self.rng.below(30);
            if self.rng.chance(30) {
                self.restart_in_order(node, away);
            } else {
                self.crash(node, away);
            }
        }
        if self.faults.disk && self.rng.below(400) == 0 {
            self.spoil();
        }
        if self.faults.partition && self.rng.below(500) == 0 {
            let node = self.any_node();
            if self.rng.chance(50) {
                let unseen = self.rng.chance(40);
                self.cut_off(node, unseen);
            } else if self.nodes[node].up {
                self.inject(Injected::Pause);
                self.nodes[node].paused = true;
                let delay = self.rng.below(5_000);
                self.after(delay, Event::Resume { node });
            }
        }
        if self.faults.disaster && self.rng.below(1_200) == 0 {
            self.disaster();
        }
        if self.faults.coup && self.rng.below(500) == 0 {
            self.coup();
        }
        if self.faults.handover && self.rng.below(400) == 0 {
            self.end_soon();
        }
        if self.faults.moves && self.rng.below(250) == 0 {
            self.operate();
        }
        if self.faults.lost && self.rng.below(1_500) == 0 {
            self.lose_node();
        }
        if self.faults.disk_loss && self.rng.below(800) == 0 {
            self.fail_disk();
        }
        self.link_faults();
        self.disk_faults();
        self.master_faults();
        if self.faults.jump && self.rng.below(300) == 0 {
            self.jump();
        }
        if self.faults.plot && self.rng.below(500) == 0 {
            self.plot();
        }
        if self.faults.eight && self.rng.below(200) == 0 {
            self.eight();
        }
        if self.faults.unsynced {
            self.unsynced_turn();
        }
        if self.faults.flip {
            self.flip_turn();
        }
        if self.faults.hang && self.rng.below(200) == 0 {
            self.hang();
        }
    }

    /// A member is away for a moment, and when it is back its disk writes nothing for long: it answers, and
    /// what it missed is sent to it again and again.
    fn hang(&mut self) {
        let index = self.any_node();
        let (node, config) = (&self.nodes[index], &self.masters.config);
        let member = config.isr.contains(&node.id) && config.primary.id != node.id;
        let hangs = self.nodes.iter().any(|node| node.stalled_until > self.now);
        if !member || !node.up || hangs {
            return;
        }
        self.inject(Injected::Hang);
        let lasts = 10_000 + self.rng.below(4_000);
        self.nodes[index].stalled_until = self.now + lasts;
        let away = 100 + self.rng.below(900);
        self.die(index, false, away);
    }

    fn two_nodes(&mut self) -> (usize, usize) {
        let from = self.any_node();
        let other = self.rng.below(self.nodes.len() as u64 - 1) as usize;
        (from, if other >= from { other + 1 } else { other })
    }

    fn link_faults(&mut self) {
        if self.faults.one_way && self.rng.below(600) == 0 {
            let (from, to) = self.two_nodes();
            self.inject(Injected::OneWay);
            self.broken.insert((from, to));
            let delay = self.rng.below(4_000);
            self.after(delay, Event::Mend);
        }
        if self.faults.flap && self.rng.below(600) == 0 {
            let (from, to) = self.two_nodes();
            self.inject(Injected::Flap);
            let left = 2 + self.rng.below(20);
            self.flap(from, to, left);
        }
        if self.faults.slow_link && self.rng.below(400) == 0 {
            let (from, to) = self.two_nodes();
            self.inject(Injected::SlowLink);
            let by = self.rng.below(400);
            self.slow_links.insert((from, to), by);
        }
    }

    /// A link goes, or comes again.
    pub(crate) fn flap(&mut self, from: usize, to: usize, left: u64) {
        if self.healed || left == 0 {
            self.broken.remove(&(from, to));
            return;
        }
        if !self.broken.remove(&(from, to)) {
            self.broken.insert((from, to));
        }
        let delay = self.rng.below(300);
        self.after(delay, Event::Flap { from, to, left: left - 1 });
    }

    fn disk_faults(&mut self) {
        if self.faults.full && self.rng.below(800) == 0 {
            let node = self.any_node();
            let memory = self.nodes[node].disk.memory.clone();
            memory.fill_up_after(self.rng.below(20));
            let delay = self.rng.below(8_000);
            self.after(delay, Event::MakeRoom { node });
        }
        if self.faults.space {
            self.room_turn();
        }
        if self.faults.rotten {
            self.rot_turn();
        } else if self.faults.rot && self.rng.below(400) == 0 {
            self.rot_anywhere();
        }
        if self.faults.scrub {
            self.scrub_turn();
        }
    }

    fn master_faults(&mut self) {
        if self.faults.leader && self.rng.below(600) == 0 {
            let away = 150 + self.rng.below(1_200);
            self.depose(away);
        }
        if self.faults.leader && self.rng.below(200) == 0 {
            self.masters.toggle(&mut self.rng);
        }
        if self.faults.quorum && self.rng.below(1_500) == 0 {
            let away = 3_000 + self.rng.below(6_000);
            self.inject(Injected::QuorumLoss);
            self.mark(Mark::NoQuorum);
            self.depose(away);
        }
    }

    /// A clock is set forward, by less than what the leases allow for in one of them.
    fn jump(&mut self) {
        let node = self.any_node();
        if self.now < self.nodes[node].may_jump {
            return;
        }
        self.inject(Injected::ClockJump);
        let by = 1 + self.rng.below(15);
        self.nodes[node].ahead += by;
        self.nodes[node].may_jump = self.now + 2_500;
    }

    pub(super) fn any_node(&mut self) -> usize {
        self.rng.below(self.nodes.len() as u64) as usize
    }

    /// Cuts a node off from the others and the masters for a while, and perhaps from the clients.
    pub(super) fn cut_off(&mut self, node: usize, unseen: bool) {
        self.inject(Injected::Partition);
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            self.broken.insert((node, other));
            self.broken.insert((other, node));
        }
        self.nodes[node].unheard = true;
        self.nodes[node].unseen = unseen;
        let reads_only = self.rng.chance(50);
        for client in 0..self.clients.len() {
            // Some are on its side, and learn nothing of what the masters do.
            let apart = !unseen && self.rng.chance(60);
            self.clients[client].apart = apart;
            self.clients[client].reads_only = apart && reads_only;
        }
        let delay = self.rng.below(5_000);
        self.after(delay, Event::Mend);
    }

    /// The primary is cut off, but not from its clients, and the masters replace it while its
    /// leases still run. A primary that only its clients reach is the one that could serve stale
    /// reads; a successor that forgot what it promised is the one that could make them stale.
    pub(super) fn coup(&mut self) {
        let primary = self.index(self.masters.config.primary.id);
        self.cut_off(primary, false);
        if self.rng.chance(30) {
            return self.split(primary);
        }
        for other in 0..self.nodes.len() {
            if other != primary && self.rng.chance(40) {
                let away = 1 + self.rng.below(60);
                self.crash(other, away);
            }
        }
        for _ in 0..3 {
            let delay = self.rng.below(400);
            self.after(delay, Event::FailOver);
        }
    }

    /// One member still hears the primary and goes on promising to it, until another is promoted
    /// whose own promise has run out by then.
    fn split(&mut self, primary: usize) {
        let friend = self.any_node();
        self.broken.remove(&(primary, friend));
        self.broken.remove(&(friend, primary));
        for _ in 0..3 {
            let delay = 1_000 + self.rng.below(1_500);
            self.after(delay, Event::FailOver);
        }
    }

    /// A process is told to end: it hands over what it can, and has some time for it.
    fn end_soon(&mut self) {
        let primary = self.index(self.masters.config.primary.id);
        let node = if self.rng.chance(60) { primary } else { self.any_node() };
        if !self.nodes[node].up || self.nodes[node].paused || self.nodes[node].ending {
            return;
        }
        self.inject(Injected::Ending);
        self.nodes[node].ending = true;
        self.step(node, Input::Resign, Vec::new());
        let run = self.nodes[node].run;
        let patience = if self.rng.chance(50) { 100 } else { 3_000 };
        let delay = 1 + self.rng.below(patience);
        self.after(delay, Event::End { node, run });
    }

    /// The time that it had is over.
    pub(super) fn end(&mut self, node: usize, run: u64) {
        if !self.nodes[node].up || self.nodes[node].run != run {
            return;
        }
        if self.nodes[node].paused {
            return self.after(200, Event::End { node, run });
        }
        let away = 1 + self.rng.below(1_000);
        self.restart_in_order(node, away);
    }

    fn crash(&mut self, index: usize, away: u64) {
        let power = self.faults.power && self.rng.chance(50);
        self.die(index, power, away);
    }

    /// A disk fails.
    fn spoil(&mut self) {
        let node = self.any_node();
        let memory = self.nodes[node].disk.memory.clone();
        let n = self.rng.below(30);
        let kind = [OpKind::Write, OpKind::Sync, OpKind::Meta, OpKind::Read];
        let kind = kind[self.rng.below(4) as usize];
        let what = self.rng.below(4);
        self.inject(if what == 3 { Injected::Stall } else { Injected::IoError });
        match what {
            0 => memory.crash_after(n),
            1 => memory.fail(kind, n, "", Fault::Io),
            2 if kind == OpKind::Write => memory.fail(kind, n, "", Fault::Short(512)),
            2 => memory.fail(OpKind::Sync, n, "wal/", Fault::Io),
            _ => {
                let stall = self.rng.below(2_500);
                self.nodes[node].stalled_until = self.now + stall;
            }
        }
    }

    pub(crate) fn mend(&mut self) {
        self.broken.clear();
        self.slow_links.clear();
        for node in &mut self.nodes {
            (node.unheard, node.unseen) = (false, false);
        }
        for client in &mut self.clients {
            (client.apart, client.reads_only) = (false, false);
        }
    }

    /// Nothing goes wrong any more.
    pub(crate) fn heal(&mut self) {
        (self.healed, self.healed_at) = (true, self.now);
        self.mend();
        self.masters.lagging.clear();
        self.clients.iter_mut().for_each(|client| client.pause = None);
        self.elect();
        self.settle_nodes();
        self.settle_disks();
        if self.faults.rot {
            self.overwrite_all();
        }
        for index in 0..self.nodes.len() {
            if self.nodes[index].paused {
                self.after(0, Event::Resume { node: index });
            }
            // It stopped in work that nobody waited for.
            if self.nodes[index].up && self.nodes[index].disk.memory.crashed() {
                self.stops(index);
            }
            self.nodes[index].disk.memory.mend();
            self.make_room(index);
            self.set_room(index, Room::Ample);
            self.nodes[index].stalled_until = 0;
            self.nodes[index].syncs_from = 0;
            if !self.nodes[index].up && !self.nodes[index].lost {
                self.after(0, Event::Restart { node: index });
            }
            // What flipped under an open store an opening tells, and a read of it is refused until then.
            if self.struck_since_opened(index) {
                self.die(index, false, 1);
            }
            // Somebody looks after a disk that failed too often.
            if self.nodes[index].is_retired() {
                self.die(index, false, 1_000);
            }
        }
    }
}
