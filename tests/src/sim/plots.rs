//! Faults in several steps, each after a rule of the protocol: what would have to happen for its
//! absence to be noticed is too rare to wait for.

use std::collections::BTreeSet;

use sbk_engine::authority::Command;
use sbk_engine::replication::io::{IsrChange, OpenStream, Proposal, StreamId};
use sbk_engine::types::{Config, NodeId, ReplicaId, ReplicaRef, SessionId};
use uuid::Uuid;

use super::event::Event;
use super::world::World;

impl World {
    pub(super) fn plot(&mut self) {
        match self.rng.below(4) {
            0 => self.relay(),
            1 => self.crowd(),
            2 => self.coup(),
            _ => {
                let any = self.any_node();
                let chosen = self.nodes[any].id;
                let among = self.rng.below(2 << self.nodes.len());
                self.overreach(chosen, among);
            }
        }
    }

    /// A leader with a wrong picture asks for changes that it should not: any replica as primary,
    /// of those that `among` has bits for, and a member to leave. What is applied must be harmless.
    fn overreach(&mut self, chosen: ReplicaId, among: u64) {
        let Config { volume, epoch: expect_epoch, primary, replicas, .. } =
            self.masters.config.clone();
        if among & 1 == 0 {
            let change = IsrChange::Leave { replica: chosen };
            self.apply(&Command::ProposeIsr { volume, expect_epoch, primary, change });
            return;
        }
        let Some(incarnation) = self.masters.registered(chosen) else { return };
        let primary = ReplicaRef { id: chosen, incarnation };
        let picked = replicas.keys().enumerate().filter(|(n, _)| among >> (n + 1) & 1 == 1);
        let mut isr: BTreeSet<_> = picked.map(|(_, id)| *id).collect();
        isr.insert(chosen);
        self.apply(&Command::Failover { volume, expect_epoch, primary, isr, stood: None });
    }

    /// A primary's process ends as it proposes something and is back at once; what it proposed is decided
    /// then. Whether that became of the proposal.
    pub(super) fn outlive(&mut self, index: usize, run: u64, proposal: &Proposal) -> bool {
        if !self.faults.ambush || self.healed || !self.rng.chance(20) {
            return false;
        }
        self.after(1, Event::Strike { node: index, power: false });
        let late = 5 + self.rng.below(80);
        let proposal = proposal.clone();
        self.after(late, Event::Propose { node: index, run, proposal });
        true
    }

    /// A voter is wiped while it is listed, and the leader names it before it hears of that.
    pub(super) fn name_the_torn(&mut self, index: usize) {
        let voter = self.nodes[index].id;
        let listed = self.masters.config.isr.contains(&voter);
        if !self.faults.ambush || self.healed || !listed || !self.rng.chance(50) {
            return;
        }
        self.overreach(voter, u64::MAX);
    }

    /// A member that owes the primary no promise any more joins its successor, which still waits for
    /// its own to run out, and takes over from it: it must not serve before that.
    fn relay(&mut self) {
        let third = self.any_node();
        if self.nodes.len() < 3 || self.nodes[third].id == self.masters.config.primary.id {
            return;
        }
        self.cut_off(third, true);
        let delay = 1_100 + self.rng.below(900);
        self.after(delay, Event::Relay { third });
    }

    pub(super) fn relay_on(&mut self, third: usize) {
        let primary = self.index(self.masters.config.primary.id);
        if self.healed || primary == third {
            return;
        }
        self.mend();
        self.cut_off(primary, false);
        self.nodes[third].unheard = true;
        self.coup_now();
        self.nodes[third].unheard = false;
        for _ in 0..3 {
            let delay = 30 + self.rng.below(600);
            self.after(delay, Event::FailOver);
        }
    }

    /// The primary changes while no frontend reaches anybody, and then more sessions are opened than
    /// the log keeps: those of the frontends are closed.
    fn crowd(&mut self) {
        self.nodes.iter_mut().for_each(|node| node.unseen = true);
        self.after(0, Event::FailOver);
        self.after(1_500, Event::Crowd);
        let delay = 2_000 + self.rng.below(2_000);
        self.after(delay, Event::Mend);
    }

    pub(super) fn crowd_comes(&mut self) {
        let primary = self.masters.config.primary;
        let node = self.index(primary.id);
        for _ in 0..70 {
            self.next_stream += 1;
            let stream = StreamId(self.next_stream);
            let session = SessionId(Uuid::from_u128(1 << 64 | u128::from(self.next_stream)));
            let open = OpenStream::shared(stream, session, NodeId(Uuid::nil()));
            self.after(0, Event::Open { node, primary, open });
            self.after(400, Event::Close { node, stream });
        }
    }

    /// A handover that the masters commit after its primary was told that nothing is known of it, while
    /// only clients reach that primary.
    fn strand_handover(&mut self, index: usize, run: u64, proposal: &Proposal) -> bool {
        if !self.faults.handover || self.healed || !self.rng.chance(6) {
            return false;
        }
        let told = 1 + self.rng.below(300);
        let answered = proposal.clone();
        self.after(told, Event::Answered { node: index, run, proposal: answered, config: None });
        let late = told + self.rng.below(900);
        self.after(late, Event::Strand { node: index });
        let proposal = proposal.clone();
        self.after(late + 1, Event::Propose { node: index, run, proposal });
        true
    }

    /// See [`World::strand_handover`].
    pub(super) fn strand_now(&mut self, node: usize) {
        if !self.healed {
            self.cut_off(node, false);
        }
    }

    /// A join that the masters commit without the primary's knowing it: at once, and the joiner is
    /// promoted; or much later, when the primary has given it up and the joiner has fallen away.
    /// Whether that became of the proposal.
    pub(super) fn strand(&mut self, index: usize, run: u64, proposal: &Proposal) -> bool {
        if let IsrChange::HandOver { .. } = proposal.change {
            return self.strand_handover(index, run, proposal);
        }
        if let IsrChange::Leave { .. } = proposal.change {
            return self.strand_leave(index, run, proposal);
        }
        let IsrChange::Join { replica } = &proposal.change else { return false };
        if !self.faults.plot || self.healed || !self.rng.chance(40) {
            return false;
        }
        let joiner = self.index(replica.id);
        let proposal = proposal.clone();
        let late = self.rng.chance(50);
        if late {
            let answered = proposal.clone();
            self.after(
                1_000,
                Event::Answered { node: index, run, proposal: answered, config: None },
            );
            let delay = 2_500 + self.rng.below(2_500);
            self.after(delay, Event::Propose { node: index, run, proposal });
        } else {
            self.nodes[index].unheard = true;
            for client in &mut self.clients {
                (client.apart, client.reads_only) = (true, true);
            }
            self.after(1, Event::Propose { node: index, run, proposal });
            let delay = 1_000 + self.rng.below(1_000);
            self.after(delay, Event::FailOver);
        }
        self.broken.insert((index, joiner));
        self.broken.insert((joiner, index));
        let delay = 4_000 + self.rng.below(2_000);
        self.after(delay, Event::Mend);
        true
    }
}
