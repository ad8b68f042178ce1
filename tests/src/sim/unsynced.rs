//! Power that goes at the worst moment for written acknowledgements, step by step: disks that take
//! writes and sync nothing for a while, and a change of the set between the acknowledgement of a write
//! and its sync. What leaves takes its page cache along; then the power goes for those that stay.

use sbk_engine::authority::Command;
use sbk_engine::authority::stand::Stand;
use sbk_engine::replication::io::{Input, IsrChange, Proposal};
use sbk_engine::types::{Config, Lsn};

use super::event::Event;
use super::world::World;

/// How far it has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unsynced {
    /// `leaver` falls silent, so it is proposed to leave.
    Silent { leaver: usize },
    /// It is proposed, and is back before the masters have decided.
    Proposed { leaver: usize },
    /// `heir` is to be asked to take over from a primary that the masters don't hear.
    Wanted { heir: usize },
    /// It was asked to stand.
    Stands { heir: usize },
    /// It stood, was killed and is back, and the masters are about to take it at its word. They wait
    /// for more than `known` to be acknowledged, but not for ever.
    Stood { heir: usize, command: Command, known: Lsn, until: u64 },
    /// The same, and the old primary has noticed that its stream to the heir broke.
    Met { command: Command, known: Lsn, until: u64 },
    /// Whatever makes the set smaller is what was waited for.
    Any,
}

impl World {
    pub(super) fn unsynced_turn(&mut self) {
        if self.now > self.unsynced_until {
            self.unsynced = None;
        }
        if self.rng.below(150) == 0 {
            self.unsynced();
        }
        // A disk whose cache takes everything and whose syncs take long.
        if self.rng.below(300) == 0 {
            let lasts = 200 + self.rng.below(2_000);
            let node = self.any_node();
            self.nodes[node].syncs_from = self.now + lasts;
        }
    }

    fn unsynced(&mut self) {
        let config = &self.masters.config;
        let down = self.nodes.iter().any(|node| node.replica.is_none() || node.paused);
        if self.unsynced.is_some() || down || config.isr.len() <= config.min_in_sync as usize {
            return;
        }
        let primary = config.primary.id;
        let others: Vec<_> = config.isr.iter().copied().filter(|id| *id != primary).collect();
        let chosen = others[self.rng.below(others.len() as u64) as usize];
        let (primary, chosen) = (self.index(primary), self.index(chosen));
        let soon = 20 + self.rng.below(250);
        match self.rng.below(4) {
            0 => {
                self.sync_nothing(Some(chosen), 4_500);
                self.unsynced = Some(Unsynced::Silent { leaver: chosen });
                self.after(soon, Event::Unsynced);
            }
            1 => {
                self.unsynced = Some(Unsynced::Proposed { leaver: chosen });
                self.after(0, Event::Unsynced);
            }
            2 => {
                self.nodes[primary].unheard = true;
                self.sync_nothing(Some(primary), 1_500);
                self.unsynced = Some(Unsynced::Any);
                self.after(soon, Event::FailOver);
            }
            _ => {
                self.nodes[primary].unheard = true;
                self.unsynced = Some(Unsynced::Wanted { heir: chosen });
                self.after(soon, Event::Unsynced);
            }
        }
        // Whatever comes of it, it is over some time.
        self.unsynced_until = self.now + 6_000;
        self.after(6_000, Event::Mend);
    }

    /// Disks take writes, and sync nothing for a while: all but one.
    fn sync_nothing(&mut self, but: Option<usize>, lasts: u64) {
        let until = self.now + lasts;
        for index in (0..self.nodes.len()).filter(|index| Some(*index) != but) {
            self.nodes[index].syncs_from = until;
        }
    }

    pub(super) fn unsynced_on(&mut self) {
        let Some(plot) = self.unsynced.clone().filter(|_| !self.healed) else { return };
        match plot {
            Unsynced::Silent { leaver } | Unsynced::Proposed { leaver } => {
                self.part(leaver);
                self.nodes[leaver].unheard = true;
            }
            Unsynced::Wanted { heir } => {
                let id = self.nodes[heir].id;
                let Config { volume, epoch, .. } = self.masters.config.clone();
                let node = &self.nodes[heir];
                let run = node.replica.as_ref().map(|replica| replica.view(node.clock(self.now)));
                let Some(replica) = run.map(|view| view.me).filter(|me| me.id == id) else {
                    return self.unsynced_over();
                };
                self.stand(heir, Stand { volume, replica, epoch });
                self.unsynced = Some(Unsynced::Stands { heir });
                let delay = 5 + self.rng.below(60);
                self.after(delay, Event::Unsynced);
            }
            Unsynced::Stands { heir } => self.kill_the_one_that_stood(heir),
            Unsynced::Stood { heir, command, known, until } => {
                // A broken stream is no machine that refuses: the old primary meets the next run.
                if self.nodes[heir].replica.is_some() {
                    let primary = self.index(self.masters.config.primary.id);
                    let replica = self.nodes[heir].id;
                    self.unsynced = Some(Unsynced::Met { command, known, until });
                    let input = Input::Unreachable { replica, refused: false };
                    self.step(primary, input, Vec::new());
                }
                self.after(10, Event::Unsynced);
            }
            Unsynced::Met { known, until, .. }
                if self.truth.acknowledged <= known && self.now < until =>
            {
                self.after(10, Event::Unsynced);
            }
            Unsynced::Met { command, .. } => {
                self.unsynced = Some(Unsynced::Any);
                self.apply(&command);
                self.unsynced_over();
            }
            Unsynced::Any => self.unsynced_over(),
        }
    }

    /// Its word is on its way to the masters. Its next run is not known to them for a while.
    fn kill_the_one_that_stood(&mut self, heir: usize) {
        let Config { volume, epoch: expect_epoch, .. } = self.masters.config.clone();
        let node = &self.nodes[heir];
        let view = node.replica.as_ref().map(|replica| replica.view(node.clock(self.now)));
        let Some(view) = view.filter(|view| view.stood == Some(expect_epoch)) else {
            return self.unsynced_over();
        };
        let (primary, stood) = (view.me, Some(view.tail));
        let isr = [primary.id].into();
        let command = Command::Failover { volume, expect_epoch, primary, isr, stood };
        let (known, until) = (self.truth.acknowledged, self.now + 2_500);
        self.unsynced = Some(Unsynced::Stood { heir, command, known, until });
        // The old primary is heard again: nobody else is to take over meanwhile.
        self.nodes.iter_mut().for_each(|node| node.unheard = false);
        self.nodes[heir].unheard = true;
        self.nodes[heir].syncs_from = self.now + 4_000;
        let away = 1 + self.rng.below(20);
        self.die(heir, false, away);
        self.after(30, Event::Unsynced);
    }

    /// A member that is proposed to leave is back before the masters hear of the proposal, and then
    /// those that stay sync nothing. Whether that became of the proposal.
    pub(super) fn strand_leave(&mut self, node: usize, run: u64, proposal: &Proposal) -> bool {
        let Some(Unsynced::Proposed { leaver }) = self.unsynced else { return false };
        let IsrChange::Leave { replica } = proposal.change else { return false };
        if self.healed || self.nodes[leaver].id != replica {
            return false;
        }
        self.mend();
        self.nodes[leaver].unheard = true;
        self.sync_nothing(Some(leaver), 2_000);
        self.unsynced = Some(Unsynced::Any);
        let late = 150 + self.rng.below(750);
        self.after(late, Event::Propose { node, run, proposal: proposal.clone() });
        true
    }

    /// The set is smaller: the power goes for those that are left, before they can sync.
    pub(super) fn unsynced_shrunk(&mut self) {
        if self.unsynced.is_none() || self.healed {
            return;
        }
        let left: Vec<_> = self.masters.config.isr.iter().copied().collect();
        for id in left {
            let node = self.index(id);
            let delay = self.rng.below(15);
            self.after(delay, Event::Strike { node, power: true });
        }
        self.unsynced_over();
    }

    fn unsynced_over(&mut self) {
        self.unsynced = None;
        self.after(50, Event::Mend);
    }
}
