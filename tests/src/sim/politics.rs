//! Between the nodes and the masters.

use std::collections::{BTreeMap, BTreeSet};

use sbk_engine::authority::detector::{DetectorEvent, ReplicaReport};
use sbk_engine::authority::stand::Stand;
use sbk_engine::authority::{Accepted, Command, Refusal, Response};
use sbk_engine::bugs::{Bug, on};
use sbk_engine::replication::io::{Input, IsrChange, Proposal};
use sbk_engine::replication::view::RoleView;
use sbk_engine::types::{Config, Durability, NodeId, ReplicaId, Wish};

use super::event::Event;
use super::marks::{Injected, Mark};
use super::masters::{Masters, Pending, Rank, Told, promoted};
use super::world::World;

/// Nodes speak to the masters so often.
const HEARTBEAT_MS: u64 = 200;
/// A node takes a proposal for unanswered after so long.
const ANSWER_MS: u64 = 1_000;

impl World {
    /// A node's or the leader's command goes into the leader's log.
    pub(crate) fn submit(&mut self, pending: Pending) -> Option<u64> {
        let delay = 1 + self.delay();
        let proposer = pending.proposer.clone();
        let id = self.masters.propose(pending);
        match id {
            Some(id) => self.after(delay, Event::Commit { id }),
            None => self.unanswered(proposer),
        }
        id
    }

    fn unanswered(&mut self, proposer: Option<(usize, u64, Proposal)>) {
        if let Some((node, run, proposal)) = proposer {
            self.after(ANSWER_MS, Event::Answered { node, run, proposal, config: None });
        }
    }

    /// A majority has it.
    pub(crate) fn commit(&mut self, id: u64) {
        let Some(Pending { command, proposer }) = self.masters.pending.remove(&id) else { return };
        self.apply(&command);
        if let Some((node, run, proposal)) = proposer {
            let config = self.masters.config.clone();
            self.answer_proposal(node, run, proposal, Some(config));
        }
    }

    pub(super) fn apply(&mut self, command: &Command) {
        let before = self.masters.config.clone();
        self.note_places(command);
        let response = self.masters.apply(command);
        self.mark_applied(&before, command, &response);
        self.note_sizes(&before, command, &response);
        self.check_moved(command, &response);
        if self.masters.config != before {
            let now = &self.masters.config;
            self.note_all(|| {
                let number = |id: ReplicaId| self.places[&id];
                let in_sync: Vec<_> = now.isr.iter().map(|id| number(*id)).collect();
                let primary = number(now.primary.id);
                format!("masters: epoch {}, primary {primary}, in sync {in_sync:?}", now.epoch)
            });
            if now_smaller(&before, &self.masters.config) {
                let primary = self.masters.config.primary.id;
                if let Some(node) = self.nodes.iter().position(|node| node.id == primary) {
                    self.hurt(node, true);
                }
            }
            self.note_firm(&before, command);
            self.check_members();
            if now_smaller(&before, &self.masters.config) {
                self.unsynced_shrunk();
            }
        }
    }

    fn mark_applied(&mut self, before: &Config, command: &Command, response: &Response) {
        let took = matches!(response, Ok(Accepted::Configured(_)));
        if let Some(primary) = promoted(command).filter(|_| took) {
            if primary.id == before.primary.id {
                self.mark(Mark::OwnAgain);
            }
            if self.nodes[self.index(primary.id)].disk.shadow.kept.doubtful {
                self.mark(Mark::DoubtfulPromoted);
            }
            let silent = |id: &ReplicaId| !self.nodes[self.index(*id)].up;
            if self.masters.config.isr.iter().any(silent) {
                self.mark(Mark::KeptSilent);
            }
        }
        if took && matches!(command, Command::Salvage { .. }) {
            self.mark(Mark::Salvaged);
        }
        if let Command::Recover { given_up, .. } = command {
            self.mark_recovered(before, given_up, response);
        }
        if matches!(response, Err(Refusal::TailLost { .. })) {
            self.mark(Mark::TailRefused);
        }
        let Command::ProposeIsr { change, primary, .. } = command else { return };
        if let (Ok(_), IsrChange::Join { replica }) = (response, change) {
            self.mark_beside(replica.id);
        }
        match response {
            Ok(_) => self.mark(match change {
                IsrChange::Leave { .. } => Mark::Left,
                IsrChange::Join { .. } => Mark::Joined,
                IsrChange::Burn => Mark::Burn,
                IsrChange::Yield { .. }
                | IsrChange::Resized { .. }
                | IsrChange::KeepSize { .. } => return,
                IsrChange::HandOver { .. } => return self.mark_handover(before),
            }),
            Err(Refusal::StaleEpoch { .. }) => {
                self.mark(Mark::ProposalLate);
                let join = matches!(change, IsrChange::Join { .. });
                if join && before.primary != *primary {
                    self.mark(Mark::JoinRaced);
                }
            }
            Err(_) => {}
        }
    }

    fn mark_recovered(
        &mut self,
        before: &Config,
        given_up: &BTreeSet<NodeId>,
        response: &Response,
    ) {
        match response {
            Ok(_) => {
                self.given_up = Some(self.masters.config.loss_generation);
                self.mark(match before.durability {
                    Durability::SyncQuorum => Mark::RecoveredQuorum,
                    Durability::BestEffort => Mark::RecoveredBestEffort,
                    Durability::SyncAll if before.acks_written() => Mark::RecoveredWritten,
                    Durability::SyncAll => Mark::Recovered,
                });
                if self.nodes.iter().any(|node| node.lost && given_up.contains(&node.node)) {
                    self.mark(Mark::RecoveredFromLost);
                }
            }
            Err(_) => self.mark(Mark::RecoveryRefused),
        }
    }

    /// The leader is gone; another one follows, soon or not.
    pub(crate) fn depose(&mut self, away: u64) {
        if self.masters.leader.is_none() {
            return;
        }
        self.inject(Injected::LeaderChange);
        self.note_all(|| "masters: no leader".to_owned());
        for lost in self.masters.depose(&mut self.rng) {
            if lost.proposer.is_some() {
                self.mark(Mark::ProposalLost);
            }
            self.unanswered(lost.proposer);
        }
        self.after(away, Event::Elect);
    }

    pub(crate) fn elect(&mut self) {
        if self.masters.leader.is_some() {
            return;
        }
        for command in self.masters.elect(self.now, &mut self.rng) {
            if matches!(command, Command::ProposeIsr { .. }) {
                self.mark(Mark::ProposalRevived);
            }
            self.apply(&command);
        }
        let (leader, term) = (self.masters.leader, self.masters.term);
        self.note_all(|| format!("masters: master {leader:?} leads term {term}"));
    }

    /// A fact reaches the leader.
    pub(crate) fn detect(&mut self, event: DetectorEvent) {
        let spoke = match &event {
            DetectorEvent::Heartbeat { node, .. } => Some(*node),
            DetectorEvent::Elected
            | DetectorEvent::Deposed
            | DetectorEvent::Killed { .. }
            | DetectorEvent::Tick => None,
        };
        for command in self.masters.detect(self.now, event) {
            self.submit(Pending { command, proposer: None });
        }
        // The answer to a heartbeat.
        let orders = spoke.map(|node| (node, self.masters.stands(self.now, node)));
        for (on, order) in
            orders.into_iter().flat_map(|(n, all)| all.into_iter().map(move |o| (n, o)))
        {
            let node = self.number_of(on);
            let delay = self.delay();
            self.after(delay, Event::Stand { node, order });
        }
    }

    /// A node tells its replica to stand.
    pub(crate) fn stand(&mut self, index: usize, order: Stand) {
        let node = &self.nodes[index];
        let run = node.replica.as_ref().map(|replica| replica.view(node.clock(self.now)).me);
        if run == Some(order.replica) && !node.unheard {
            self.step(index, Input::Stand { epoch: order.epoch }, Vec::new());
            self.hurt(index, false);
        }
    }

    pub(crate) fn register(&mut self, told: &Told) {
        let command = self.masters.registration(told);
        self.submit(Pending { command, proposer: None });
    }

    pub(crate) fn propose(&mut self, node: usize, run: u64, proposal: Proposal) {
        let command = self.masters.proposal(&proposal);
        self.submit(Pending { command, proposer: Some((node, run, proposal)) });
        // Leaders go when it hurts.
        if !self.healed && self.faults.leader && self.rng.chance(3) {
            let away = 150 + self.rng.below(1_200);
            self.depose(away);
        }
    }

    fn answer_proposal(
        &mut self,
        node: usize,
        run: u64,
        proposal: Proposal,
        config: Option<Config>,
    ) {
        let mut lost =
            !self.healed && self.rng.chance(self.faults.loss * 4) || self.nodes[node].unheard;
        // A primary that has stopped hangs on this answer.
        let handover = matches!(proposal.change, IsrChange::HandOver { .. });
        lost |= !self.healed && handover && self.rng.chance(10);
        let config = config.filter(|_| !lost);
        let delay = if lost { ANSWER_MS } else { self.delay() };
        self.after(delay, Event::Answered { node, run, proposal, config });
    }

    /// The masters do what is due.
    pub(crate) fn master_turn(&mut self) {
        self.register_changes();
        self.masters.catch_up();
        if self.now.is_multiple_of(HEARTBEAT_MS) {
            self.heartbeats();
        }
        self.detect(DetectorEvent::Tick);
        self.rearrange();
        let whim = !self.healed && self.faults.whim && self.rng.chance(1);
        if whim {
            self.coup_now();
        }
        if self.faults.flip {
            self.replace_damaged();
        }
        if self.faults.disk_loss {
            self.replace_missing();
        }
        if self.faults.disaster && self.rng.chance(5) {
            self.operator_turn();
        }
        if !self.healed && self.faults.handover && self.rng.chance(4) {
            self.wish_turn();
        }
        if !self.healed && self.faults.resize && self.rng.chance(4) {
            self.resize_turn();
        }
        for node in 0..self.nodes.len() {
            if !self.nodes[node].unheard && self.rng.chance(60) {
                let told = self.masters.pushed(node);
                let delay = self.delay();
                self.after(delay, Event::Push { node, told });
            }
        }
        for client in 0..self.clients.len() {
            if !self.clients[client].apart && self.rng.chance(60) {
                let told = self.masters.pushed(client + 1);
                let delay = self.delay();
                self.after(delay, Event::Catalogue { client, told });
            }
        }
    }

    /// Somebody wants another primary, or no other any more.
    fn wish_turn(&mut self) {
        let Config { volume, primary, isr, .. } = self.masters.config.clone();
        let others: Vec<_> = isr.into_iter().filter(|id| *id != primary.id).collect();
        let n = self.rng.below(others.len() as u64 + 1) as usize;
        self.inject(Injected::Wish);
        let wish = Wish { primary: others.get(n).copied(), leave: BTreeSet::new() };
        self.submit(Pending { command: Command::SetWish { volume, wish }, proposer: None });
    }

    fn mark_handover(&mut self, before: &Config) {
        self.mark(Mark::HandedOver);
        match before.durability {
            Durability::SyncAll => {}
            Durability::SyncQuorum => self.mark(Mark::HandedOverQuorum),
            Durability::BestEffort => self.mark(Mark::HandedOverBestEffort),
        }
        let from = self.index(before.primary.id);
        if self.nodes[from].ending {
            self.mark(Mark::HandedOverAtEnd);
        }
    }

    fn heartbeats(&mut self) {
        for index in 0..self.nodes.len() {
            let node = &self.nodes[index];
            if !node.up || node.unheard || node.paused {
                continue;
            }
            let reports = self.report(index).into_iter().collect();
            if !self.masters.is_registered(node.node, node.disk.process()) {
                continue;
            }
            let returning = node.returning().into_iter().collect();
            let (process, low) = (node.disk.process(), node.low_since.is_some());
            let event = Masters::heartbeat(node.node, process, reports, returning, low);
            let delay = self.delay();
            self.after(delay, Event::Detect(event));
        }
    }

    fn report(&self, index: usize) -> Option<ReplicaReport> {
        let node = &self.nodes[index];
        let view = node.replica.as_ref()?.view(node.clock(self.now));
        Some(ReplicaReport {
            replica: view.me,
            table_epoch: view.table_epoch.unwrap_or_default(),
            durable: view.durable,
            primary_in: (view.role == RoleView::Primary).then_some(view.epoch),
            lacking: view.lacking.into_iter().collect(),
            lacking_ms: view.lacking_ms,
            promised: view.promised,
            tail: view.tail,
            stood: view.stood,
        })
    }

    /// The masters replace the primary, with reason or without.
    pub(crate) fn coup_now(&mut self) {
        let heard = (0..self.nodes.len()).filter(|n| {
            let node = &self.nodes[*n];
            !node.unheard && !node.paused
        });
        let ranks: BTreeMap<_, _> = heard
            .filter_map(|n| self.report(n))
            .map(|report| {
                let stood = report.stood == Some(self.masters.config.epoch);
                let stood = stood.then_some(report.tail);
                let log = (report.table_epoch.0, report.durable.0);
                (report.replica.id, Rank { stood, log })
            })
            .collect();
        if let Some(command) = self.masters.coup(&ranks) {
            if let Some(order) = self.stand_first(&command) {
                if let Some(node) = self.nodes.iter().position(|node| node.id == order.replica.id) {
                    self.stand(node, order);
                }
                let delay = 5 + self.rng.below(60);
                if self.rng.chance(80) && !self.healed {
                    self.after(delay, Event::FailOver);
                }
                return;
            }
            self.inject(Injected::Coup);
            self.submit(Pending { command, proposer: None });
        }
    }

    /// With written acknowledgements the one that is to be primary stands first.
    fn stand_first(&self, command: &Command) -> Option<Stand> {
        let Command::Failover { volume, expect_epoch, primary, stood: None, .. } = command else {
            return None;
        };
        let written = self.masters.config.acks_written() && !on(Bug::FailoverUnstood);
        written.then_some(Stand { volume: *volume, replica: *primary, epoch: *expect_epoch })
    }

    /// Nodes register again when they became complete or were not heard at their start.
    fn register_changes(&mut self) {
        for index in 0..self.nodes.len() {
            let now = self.now;
            let node = &mut self.nodes[index];
            if !node.up || node.unheard || node.paused {
                continue;
            }
            let told = node.told(now);
            if !self.masters.is_known(&told) {
                let delay = self.delay();
                self.after(delay, Event::Register(told));
            }
        }
    }
}

/// Whether the in-sync set lost members.
fn now_smaller(before: &Config, now: &Config) -> bool {
    now.isr.len() < before.isr.len()
}
