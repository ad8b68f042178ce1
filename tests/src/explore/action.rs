//! What can happen next in a world, and what it does.

use std::collections::BTreeSet;

use sbk_engine::replication::io::Input;
use sbk_engine::types::{Config, Durability, ReplicaId, Wish};

use super::node::STEP;
use super::part::{Part, change};
use super::world::{Answered, NODES, Proposed, World};

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// The first message of a lane arrives; one for a process that is gone bounces.
    Deliver { from: usize, to: usize, lane: usize },
    /// A copy of it goes astray and arrives some time.
    Copy { from: usize, to: usize, lane: usize },
    /// It is lost.
    Lose { from: usize, to: usize, lane: usize },
    /// A copy that went astray arrives.
    Late { which: usize },
    /// A node notices that another's process is gone.
    Notice { at: usize, of: usize },
    /// All that is logged becomes durable.
    Sync { node: usize },
    /// Blocks were read.
    Read { node: usize, which: usize },
    /// A deadline of the node has passed.
    Tick { node: usize },
    /// The clock moves on.
    Pass,
    /// A process is gone, with or without what it had not synced, and with or without what it had
    /// sent.
    Crash { node: usize, keep_tail: bool, keep_sent: bool },
    /// It starts again.
    Restart { node: usize },
    /// A node hears no other node and no master, and none hears it.
    Isolate { node: usize },
    /// That is over.
    Heal,
    /// A node tells the masters what it has open.
    Register { node: usize },
    /// The masters tell a node the newest configuration.
    Push { node: usize },
    /// The masters decide a proposal.
    Decide { which: usize },
    /// The proposer gives up waiting; the proposal stays on its way.
    Doubt { which: usize },
    /// The masters' answer arrives.
    Answer { which: usize },
    /// The masters replace the primary, and drop the old one from the in-sync set or not.
    FailOver { to: usize, drop: bool },
    /// The masters want a primary to hand its role over.
    Wish { at: usize, to: usize },
    /// A client asks a primary for a stream.
    Open { client: usize, node: usize },
    /// A client sends its next request.
    Ask { client: usize },
    /// The same, by a client that may come late.
    AskLate { client: usize },
}

impl Action {
    /// Whether it comes from outside: a fault, the end of one, or a client's wish. It may come late,
    /// so time can pass before it.
    pub(crate) fn is_free(self) -> bool {
        match self {
            Action::Copy { .. }
            | Action::Lose { .. }
            | Action::Crash { .. }
            | Action::Restart { .. }
            | Action::Isolate { .. }
            | Action::Heal
            | Action::Doubt { .. }
            | Action::FailOver { .. }
            | Action::Wish { .. }
            | Action::AskLate { .. } => true,
            Action::Deliver { .. }
            | Action::Late { .. }
            | Action::Notice { .. }
            | Action::Sync { .. }
            | Action::Read { .. }
            | Action::Tick { .. }
            | Action::Pass
            | Action::Register { .. }
            | Action::Push { .. }
            | Action::Decide { .. }
            | Action::Answer { .. }
            | Action::Open { .. }
            | Action::Ask { .. } => false,
        }
    }
}

impl World {
    /// Everything that can happen next, in a fixed order.
    pub(crate) fn actions(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        self.network(&mut actions);
        self.local(&mut actions);
        self.with_masters(&mut actions);
        self.with_clients(&mut actions);
        self.faults(&mut actions);
        if self.left.prompt {
            self.hold_back(&mut actions);
        }
        let busy = actions.iter().any(|action| !action.is_free());
        if !busy || !self.left.late_repairs {
            self.repairs(&mut actions);
        }
        // Time passes by itself when there is nothing else to do; with work still under way, that
        // is a fault (somebody was slow). While something is broken it does so a few times only,
        // or it might never be mended.
        let waits = !self.is_faulty() || self.left.patience > 0;
        if !busy && !self.is_converged() && waits || busy && self.left.hurries > 0 {
            actions.push(Action::Pass);
        }
        actions
    }

    /// Leaves only what one node does at once, and faults, if it has anything to do.
    fn hold_back(&self, actions: &mut Vec<Action>) {
        let primary = self.index(self.masters.config.primary.id);
        for at in 0..NODES {
            let follows = self.nodes[at].is_up() && self.nodes[at].face.primary.is_none();
            let prompt = |action: &Action| match action {
                Action::Sync { node } => *node == at,
                Action::Tick { node } => follows && *node == at,
                Action::Deliver { from, to, .. } => follows && *to == at && *from == primary,
                _ => false,
            };
            if actions.iter().any(prompt) {
                return actions.retain(|action| action.is_free() || prompt(action));
            }
        }
    }

    fn network(&self, actions: &mut Vec<Action>) {
        for (from, to, lane) in self.waiting() {
            actions.push(Action::Deliver { from, to, lane });
            if self.left.copies > 0 {
                actions.push(Action::Copy { from, to, lane });
            }
            if self.left.losses > 0 {
                actions.push(Action::Lose { from, to, lane });
            }
        }
        let late = 0..self.late.len();
        actions.extend(late.filter(|w| self.arrives(*w)).map(|which| Action::Late { which }));
    }

    fn arrives(&self, late: usize) -> bool {
        let lineage = &self.late[late].lineage;
        !self.is_cut(self.index(lineage.from.id), self.index(lineage.to.id))
    }

    fn local(&self, actions: &mut Vec<Action>) {
        for (index, node) in self.nodes.iter().enumerate() {
            for of in (0..NODES).filter(|of| self.notices[index][*of]) {
                actions.push(Action::Notice { at: index, of });
            }
            if node.face.unsynced {
                actions.push(Action::Sync { node: index });
            }
            let reads = 0..node.read.len();
            actions.extend(reads.map(|which| Action::Read { node: index, which }));
            if node.face.is_due(self.time()) {
                actions.push(Action::Tick { node: index });
            }
        }
    }

    fn with_masters(&self, actions: &mut Vec<Action>) {
        for (index, node) in self.nodes.iter().enumerate() {
            if !self.hears_masters(index) {
                continue;
            }
            let Some((me, complete)) = node.face.open else { continue };
            let open = (me.incarnation, complete);
            if self.masters.registered(node.id) != Some(open) {
                actions.push(Action::Register { node: index });
            }
            let newest = &self.masters.config;
            // Others only remember it, until the primary's own question tells them the same.
            let acts = node.face.primary.is_some() || newest.primary.id == node.id;
            let older = node.face.knows.is_none_or(|known| known < newest.epoch);
            if older && (acts || self.left.gossip) {
                actions.push(Action::Push { node: index });
            }
        }
        for (which, proposed) in self.proposed.iter().enumerate() {
            if self.isolated != Some(proposed.node) {
                actions.push(Action::Decide { which });
            }
            if self.left.doubts > 0 && !proposed.doubted {
                actions.push(Action::Doubt { which });
            }
        }
        for (which, answered) in self.answered.iter().enumerate() {
            if self.isolated != Some(answered.node) {
                actions.push(Action::Answer { which });
            }
        }
        if let Some(to) = self.successor() {
            actions.push(Action::FailOver { to, drop: false });
        }
    }

    /// The primary's own node, if it is back in another run than it was assigned in.
    fn successor(&self) -> Option<usize> {
        let primary = self.masters.config.primary;
        let index = self.index(primary.id);
        let promotable = self.masters.promotable(primary.id);
        (self.hears_masters(index) && promotable.is_some_and(|p| p != primary)).then_some(index)
    }

    fn with_clients(&self, actions: &mut Vec<Action>) {
        for (client, known) in self.clients.iter().enumerate() {
            if known.done.iter().all(|done| *done) {
                continue;
            }
            if known.next().is_some() {
                let late = self.is_faulty() && self.left.late.contains(&client);
                let ask = Action::Ask { client };
                actions.push(if late { Action::AskLate { client } } else { ask });
            }
            for (node, primary) in self.nodes.iter().enumerate() {
                let Some((epoch, _)) = primary.face.primary else { continue };
                let better = known.stream.is_none_or(|s| s.node != node && epoch > s.epoch);
                if better {
                    actions.push(Action::Open { client, node });
                }
            }
        }
    }

    fn faults(&self, actions: &mut Vec<Action>) {
        let left = &self.left;
        for (node, known) in self.nodes.iter().enumerate() {
            if left.crashes > 0 && left.crash.contains(&node) && known.is_up() {
                let sends = self.lanes[node].iter().flatten().any(|lane| !lane.is_empty());
                for keep_tail in [false, true] {
                    for keep_sent in [false, true] {
                        // Without a tail or messages the choice is none.
                        let same = keep_tail && !known.face.unsynced || keep_sent && !sends;
                        if !same {
                            actions.push(Action::Crash { node, keep_tail, keep_sent });
                        }
                    }
                }
            }
            if left.isolations > 0
                && self.isolated.is_none()
                && left.isolate.contains(&node)
                && known.is_up()
            {
                actions.push(Action::Isolate { node });
            }
        }
        if left.handovers > 0 {
            let serves = |at: &usize| self.nodes[*at].face.primary.is_some_and(|(_, ready)| ready);
            let primary = self.index(self.masters.config.primary.id);
            let at = Some(primary).filter(|at| self.hears_masters(*at) && serves(at));
            let others = left.successors.iter().copied().filter(|to| *to != primary);
            actions.extend(others.filter_map(|to| Some(Action::Wish { at: at?, to })));
        }
        if left.failovers > 0 && (left.coups || self.is_suspected()) {
            for to in left.successors.iter().copied() {
                let drops = self.may_fail_over(to);
                actions.extend(drops.into_iter().map(|drop| Action::FailOver { to, drop }));
            }
        }
    }

    fn repairs(&self, actions: &mut Vec<Action>) {
        let down = (0..NODES).filter(|node| !self.nodes[*node].is_up());
        actions.extend(down.map(|node| Action::Restart { node }));
        if self.isolated.is_some() {
            actions.push(Action::Heal);
        }
    }

    /// Whether the masters don't hear the primary.
    fn is_suspected(&self) -> bool {
        !self.hears_masters(self.index(self.masters.config.primary.id))
    }

    /// Whether the masters may choose the node, keeping the old primary in sync or dropping it.
    fn may_fail_over(&self, to: usize) -> Vec<bool> {
        let config = &self.masters.config;
        let id = self.nodes[to].id;
        let promotable = self.masters.promotable(id);
        let usable = self.hears_masters(to)
            && config.isr.contains(&id)
            && promotable.is_some_and(|replica| replica != config.primary);
        if !usable || self.successor() == Some(to) {
            return Vec::new();
        }
        // A failover never changes the list of voters.
        let drops = config.durability != Durability::SyncQuorum;
        let spare = drops && config.isr.len() > config.min_in_sync as usize;
        // Who is not heard is dropped; who is, may be or not.
        match (spare, self.is_suspected()) {
            (false, _) => vec![false],
            (true, true) => vec![true],
            (true, false) => vec![false, true],
        }
    }

    /// The world after something happened.
    ///
    /// # Panics
    /// If something that must always hold does not.
    pub(crate) fn after(&self, action: Action) -> World {
        let mut world = self.clone();
        world.happen(action);
        world
    }

    pub(crate) fn happen(&mut self, action: Action) {
        match action {
            Action::Deliver { from, to, lane } => {
                if let Some(wire) = self.lanes[from][to][lane].pop(self.now) {
                    self.arrive(&wire);
                }
            }
            Action::Copy { from, to, lane } => {
                self.left.copies -= 1;
                self.late.extend(self.lanes[from][to][lane].first().cloned());
            }
            Action::Lose { from, to, lane } => {
                self.left.losses -= 1;
                self.lanes[from][to][lane].pop(self.now);
            }
            Action::Late { which } => {
                let wire = self.late.remove(which);
                self.arrive(&wire);
            }
            Action::Notice { at, of } => {
                self.notices[at][of] = false;
                self.bounce(at, of);
            }
            Action::Sync { node } => {
                self.give(node, self.named(&"sync"), |node, now| node.sync(now));
            }
            Action::Read { node, which } => {
                let stimulus = self.named(&("read", which));
                self.give(node, stimulus, |node, now| node.read_done(now, which));
            }
            Action::Tick { node } => self.step(node, Input::Tick),
            Action::Pass => self.pass_time(),
            Action::Crash { node, keep_tail, keep_sent } => self.crash(node, keep_tail, keep_sent),
            Action::Restart { node } => {
                let now = self.time();
                self.change_node(node, |node| node.open(now));
                self.notices.iter_mut().for_each(|of| of[node] = false);
            }
            Action::Isolate { node } => {
                self.left.isolations -= 1;
                self.isolated = Some(node);
                self.lanes[node] = Default::default();
                self.lanes.iter_mut().for_each(|to| to[node] = Default::default());
            }
            Action::Heal => self.isolated = None,
            Action::Register { node } => {
                if let Some((me, complete)) = self.nodes[node].face.open {
                    change(&mut self.masters, |masters| masters.register(me, complete));
                }
            }
            Action::Push { node } => {
                let config = self.masters.config.clone();
                self.step(node, Input::Assignment(config));
            }
            Action::Decide { which } => self.decide(which),
            Action::Doubt { which } => {
                self.left.doubts -= 1;
                let doubted = self.proposed[which].clone();
                self.proposed[which] = doubted.doubted();
                self.tell(&doubted, None);
            }
            Action::Answer { which } => self.answer(which),
            Action::FailOver { to, drop } => self.fail_over(to, drop),
            Action::Wish { at, to } => {
                self.left.handovers -= 1;
                let primary = Some(self.nodes[to].id);
                self.step(at, Input::Wish(Wish { primary, ..Wish::default() }));
            }
            Action::Open { client, node } => self.open(client, node),
            Action::Ask { client } | Action::AskLate { client } => self.ask(client),
        }
        self.check_members();
    }

    fn pass_time(&mut self) {
        let busy = self.actions().iter().any(|a| *a != Action::Pass && !a.is_free());
        if busy {
            self.left.hurries -= 1;
        } else if self.is_faulty() {
            self.left.patience -= 1;
        }
        self.pass(STEP);
    }

    fn crash(&mut self, node: usize, keep_tail: bool, keep_sent: bool) {
        self.left.crashes -= 1;
        self.change_node(node, |node| node.crash(keep_tail));
        if !keep_sent {
            self.lanes[node] = Default::default();
        }
        for proposed in self.proposed.iter_mut().filter(|p| p.node == node) {
            *proposed = proposed.doubted();
        }
        self.answered.retain(|a| a.node != node);
        self.notices[node] = Default::default();
        for at in (0..NODES).filter(|at| *at != node) {
            let primary = self.nodes[at].face.primary.is_some();
            self.notices[at][node] = primary && !self.is_cut(at, node);
        }
        change(&mut self.clients, |clients| {
            for client in clients {
                client.stream = client.stream.filter(|stream| stream.node != node);
            }
        });
    }

    fn decide(&mut self, which: usize) {
        let proposed = self.proposed.remove(which);
        change(&mut self.masters, |masters| masters.propose(&proposed.proposal));
        if !proposed.doubted {
            let config = Some(self.masters.config.clone());
            self.tell(&proposed, config);
        }
    }

    /// The masters' answer to a proposal, or the news that none came, goes to who proposed it.
    fn tell(&mut self, proposed: &Proposed, config: Option<Config>) {
        let (node, opens, id) = (proposed.node, proposed.opens, proposed.proposal.id);
        self.answered.push(Part::timeless(Answered { node, opens, id, config }));
    }

    fn fail_over(&mut self, to: usize, drop: bool) {
        if self.successor() != Some(to) {
            self.left.failovers -= 1;
        }
        let id = self.nodes[to].id;
        let config = &self.masters.config;
        let mut isr: BTreeSet<ReplicaId> = config.isr.clone();
        if drop {
            isr.remove(&config.primary.id);
        }
        if let Some(primary) = self.masters.promotable(id) {
            let taken = change(&mut self.masters, |masters| masters.fail_over(primary, isr));
            assert!(taken, "the masters refused the failover to {id} that they were to take");
        }
    }
}
