//! Properties over random runs: events true and false, in any order, late, repeated, lost.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{
    Command, Event, FailureKind, Mode, Params, TransportEpoch, Verdict, VolumeState, step,
};
use crate::replication::message::RecoveryId;
use crate::types::{Epoch, Lsn, Millis, ReplicaId};

fn id(n: u8) -> ReplicaId {
    ReplicaId(uuid::Uuid::from_bytes([n; 16]))
}

fn place(n: u8) -> String {
    format!("node-{n}:7301")
}

/// An event in the making: epochs and sessions relative to what the run has reached, so that most
/// are near the truth.
#[derive(Clone, Copy, Debug)]
struct Draft {
    what: u8,
    replica: u8,
    /// 0 the current epoch, else that many away from it, odd older, even newer.
    epoch: u8,
    /// 0 the newest session commanded, else that many before.
    session: u8,
    a: u8,
    b: u8,
    wait: u16,
}

fn drafts() -> impl Strategy<Value = Vec<Draft>> {
    let wait = prop_oneof![4 => Just(0u16), 2 => 1..200u16, 1 => 200..6000u16];
    let near = || prop_oneof![9 => Just(0u8), 1 => 1..4u8];
    let draft = (0..20u8, 1..4u8, near(), near(), 0..12u8, 0..12u8, wait).prop_map(
        |(what, replica, epoch, session, a, b, wait)| Draft {
            what,
            replica,
            epoch,
            session,
            a,
            b,
            wait,
        },
    );
    proptest::collection::vec(draft, 1..120)
}

/// A run and what must stay true over it.
struct Run {
    state: VolumeState,
    now: Millis,
    epoch: u64,
    since: u64,
    members: BTreeSet<ReplicaId>,
    /// Every session commanded, with its command.
    started: BTreeMap<RecoveryId, Command>,
    order: Vec<(ReplicaId, RecoveryId)>,
    /// Replicas whose catch-up found the WAL recycled; only a base lane may be opened to them.
    stuck: BTreeSet<ReplicaId>,
    /// Those to which a delta can't be sent; only a rebuild may start with them.
    unsettled: BTreeSet<ReplicaId>,
    fenced: BTreeSet<ReplicaId>,
}

impl Run {
    fn new() -> Self {
        let params = Params { catch_up_budget: 2, ..Params::default() };
        let mut run = Self {
            state: VolumeState::new(params),
            now: Millis(0),
            epoch: 0,
            since: 0,
            members: BTreeSet::new(),
            started: BTreeMap::new(),
            order: Vec::new(),
            stuck: BTreeSet::new(),
            unsettled: BTreeSet::new(),
            fenced: BTreeSet::new(),
        };
        run.assign(true, &[1, 2]);
        run
    }

    fn assign(&mut self, fresh: bool, members: &[u8]) -> Vec<Command> {
        let epoch = self.epoch + 1;
        let since = if fresh { epoch } else { self.since };
        self.step(Event::Assignment {
            epoch: Epoch(epoch),
            since: Epoch(since),
            replicas: members.iter().map(|n| (id(*n), place(*n))).collect(),
            in_sync: BTreeSet::new(),
        })
    }

    fn event(&self, draft: Draft) -> Event {
        let replica = id(draft.replica);
        let epoch = Epoch(match draft.epoch {
            n if n % 2 == 1 => self.epoch.saturating_sub(u64::from(n)),
            n => self.epoch + u64::from(n),
        });
        let transport = TransportEpoch(1 + u64::from(draft.b / 10));
        let endpoint = place(draft.replica);
        let mine = self.order.iter().rev().filter(|(owner, _)| *owner == replica);
        let session = mine
            .map(|(_, session)| *session)
            .nth(usize::from(draft.session))
            .unwrap_or(RecoveryId { epoch, number: 1 + u64::from(draft.a) });
        let lsn = Lsn(u64::from(draft.a));
        match draft.what {
            0 => Event::Endpoint { epoch, replica, endpoint: place(draft.a) },
            1 => Event::Removal { epoch, replica },
            2 => Event::ProbeFailed { epoch, replica, endpoint },
            3..=5 => Event::ProbeSucceeded { epoch, replica, endpoint, transport },
            6..=8 => {
                let r = (draft.a < 10).then_some(lsn);
                let h = Lsn(u64::from(draft.b) + 2);
                let from = (r.is_none() && !draft.b.is_multiple_of(3)).then_some(Lsn(2));
                let s = Lsn(3).min(h.next());
                Event::RecoveryFacts { epoch, replica, transport, r, from, s, h }
            }
            9 => Event::DurableAck { epoch, replica, lsn },
            10 if draft.a < 3 => Event::SessionDeferred { epoch, replica, session },
            10 => Event::SessionPrepared { epoch, replica, session },
            11 => Event::SessionStarted { epoch, replica, session },
            12 => Event::SessionProgress { epoch, replica, session, achieved: lsn },
            13 => Event::SessionClosedCompleted { epoch, replica, session, achieved: lsn },
            14 => {
                let kind = match draft.b % 8 {
                    _ if draft.b == 11 => FailureKind::NoSpace,
                    0 => FailureKind::WalRecycled,
                    1 => FailureKind::Transport,
                    2 => FailureKind::StoreIo,
                    3 => FailureKind::StartTimeout,
                    4 => FailureKind::Invalidated,
                    5 => FailureKind::Stalled,
                    6 => FailureKind::Unsettled,
                    _ => FailureKind::PinLost,
                };
                Event::SessionClosedFailed { epoch, replica, session, kind }
            }
            15 => Event::SessionInvalidated { epoch, replica, session },
            _ if draft.b < 2 => Event::FenceFailed { epoch, replica, transport, fenced: epoch },
            _ => Event::FenceCompleted { epoch, replica, transport, fenced: epoch },
        }
    }

    fn play(&mut self, draft: Draft) {
        self.now = self.now.after(u64::from(draft.wait));
        match (draft.what, draft.a) {
            // Configurations change less often than anything else happens.
            (0, 0) => self.assign(true, &[1, 2]),
            (0, 1) => self.assign(false, &[1]),
            (0, 2) => self.assign(false, &[1, 2, 3]),
            (1, 3..) => self.step(Event::Tick),
            _ => self.step(self.event(draft)),
        };
    }

    fn step(&mut self, event: Event) -> Vec<Command> {
        let before = self.state.clone();
        let (verdict, commands) = step(&mut self.state, self.now, event.clone());
        let mut again = before.clone();
        assert_eq!((verdict, commands.clone()), step(&mut again, self.now, event.clone()));
        assert_eq!(again, self.state, "the same step gives the same state");
        let text = serde_json::to_string(&self.state).expect("the state is plain data");
        let back: VolumeState = serde_json::from_str(&text).expect("and comes back");
        assert_eq!(back, self.state);
        if matches!(verdict, Verdict::Ignored(_)) {
            let mut ticked = before.clone();
            let (_, planned) = step(&mut ticked, self.now, Event::Tick);
            assert_eq!((&ticked, &planned), (&self.state, &commands), "{event:?} was ignored");
        } else {
            self.note(&before, &event);
        }
        for command in &commands {
            self.check(&event, command);
        }
        let deadline = self.state.next_deadline();
        assert!(deadline.is_none_or(|at| at > self.now), "due at {deadline:?}, now {:?}", self.now);
        let mut settled = self.state.clone();
        assert_eq!(step(&mut settled, self.now, Event::Tick).1, [], "a command was repeated");
        commands
    }

    /// Follows an applied event in a model of its own.
    fn note(&mut self, before: &VolumeState, event: &Event) {
        match event {
            Event::Assignment { epoch, since, replicas, .. } => {
                if since.0 != self.since {
                    self.stuck.clear();
                    self.unsettled.clear();
                    self.fenced.clear();
                }
                (self.epoch, self.since) = (epoch.0, since.0);
                self.members = replicas.keys().copied().collect();
                self.stuck.retain(|replica| self.members.contains(replica));
                self.unsettled.retain(|replica| self.members.contains(replica));
            }
            Event::Removal { replica, .. } => {
                self.members.remove(replica);
                self.stuck.remove(replica);
                self.unsettled.remove(replica);
            }
            Event::SessionClosedFailed { replica, session, kind, .. } => {
                let running = before.view(*replica).and_then(|view| view.session);
                let catch_up = matches!(self.started[session], Command::StartCatchUp { .. });
                let gone = matches!(kind, FailureKind::WalRecycled | FailureKind::PinLost);
                if running.is_some_and(|running| running.id == *session) {
                    if catch_up && gone {
                        self.stuck.insert(*replica);
                    }
                    let delta = matches!(self.started[session], Command::StartDelta { .. });
                    if delta && *kind == FailureKind::Unsettled {
                        self.unsettled.insert(*replica);
                    }
                }
            }
            Event::SessionClosedCompleted { replica, session, achieved, .. } => {
                let view = before.view(*replica).expect("admitted");
                let running = view.session.expect("admitted");
                assert_eq!(running.id, *session);
                let full = *achieved >= running.target_lsn;
                if full && !matches!(self.started[session], Command::StartCatchUp { .. }) {
                    self.stuck.remove(replica);
                    self.unsettled.remove(replica);
                }
            }
            Event::FenceCompleted { replica, .. } => {
                assert!(self.fenced.contains(replica), "no fence was asked for");
            }
            Event::Endpoint { .. }
            | Event::ProbeSucceeded { .. }
            | Event::ProbeFailed { .. }
            | Event::RecoveryFacts { .. }
            | Event::DurableAck { .. }
            | Event::SessionDeferred { .. }
            | Event::SessionPrepared { .. }
            | Event::SessionStarted { .. }
            | Event::SessionProgress { .. }
            | Event::SessionInvalidated { .. }
            | Event::FenceFailed { .. }
            | Event::Tick => {}
        }
    }

    fn check(&mut self, event: &Event, command: &Command) {
        let (epoch, replica) = match command {
            Command::Probe { epoch, replica, .. }
            | Command::StartCatchUp { epoch, replica, .. }
            | Command::StartDelta { epoch, replica, .. }
            | Command::StartRebuild { epoch, replica, .. }
            | Command::InvalidateSession { epoch, replica, .. }
            | Command::FenceAtEpoch { epoch, replica, .. }
            | Command::PublishHealthy { epoch, replica }
            | Command::PublishDegraded { epoch, replica, .. } => (*epoch, *replica),
        };
        assert_eq!(epoch, Epoch(self.epoch), "a command of another epoch");
        let stops = matches!(command, Command::InvalidateSession { .. });
        assert!(stops || self.members.contains(&replica), "{command:?} to a stranger");
        match command {
            Command::StartCatchUp { session, .. }
            | Command::StartDelta { session, .. }
            | Command::StartRebuild { session, .. } => {
                let catch_up = matches!(command, Command::StartCatchUp { .. });
                assert!(
                    !catch_up || !self.stuck.contains(&replica),
                    "R4: the base lane did not stick"
                );
                let delta = matches!(command, Command::StartDelta { .. });
                assert!(
                    !delta || !self.unsettled.contains(&replica),
                    "R4: the rebuild did not stick"
                );
                self.check_start(*session, replica, command);
            }
            Command::FenceAtEpoch { .. } => {
                self.fenced.insert(replica);
            }
            Command::PublishHealthy { .. } => {
                assert!(
                    matches!(event, Event::FenceCompleted { .. }),
                    "R5: healthy after {event:?}"
                );
            }
            Command::InvalidateSession { session, .. } => {
                assert!(self.started.contains_key(session), "nothing to stop");
            }
            Command::Probe { .. } | Command::PublishDegraded { .. } => {}
        }
    }

    fn check_start(&mut self, session: RecoveryId, replica: ReplicaId, command: &Command) {
        let without_epoch = |command: &Command| {
            let mut command = command.clone();
            if let Command::StartCatchUp { epoch, .. }
            | Command::StartDelta { epoch, .. }
            | Command::StartRebuild { epoch, .. } = &mut command
            {
                *epoch = Epoch(0);
            }
            command
        };
        let command = without_epoch(command);
        if let Some(before) = self.started.get(&session) {
            assert_eq!(*before, command, "R3: a session changed, or its id was used again");
            return;
        }
        let newest = self.started.keys().map(|session| session.number).max();
        assert!(newest.is_none_or(|newest| session.number > newest), "R1: ids go up");
        self.started.insert(session, command);
        self.order.push((replica, session));
    }

    /// The executor reports the end of what still runs, which nothing but its report ends; from
    /// here on every command is carried out well.
    fn heal(&mut self) {
        let mut commands = self.assign(false, &[1, 2, 3]);
        for replica in [1, 2, 3].map(id) {
            let epoch = Epoch(self.epoch);
            if let Some(running) = self.state.view(replica).and_then(|view| view.session) {
                let (session, kind) = (running.id, FailureKind::Transport);
                let event = Event::SessionClosedFailed { epoch, replica, session, kind };
                commands.extend(self.step(event));
            }
        }
        for _ in 0..200 {
            let whole = |n| self.state.view(id(n)).is_some_and(|v| v.mode == Mode::Healthy);
            if [1, 2, 3].into_iter().all(whole) {
                return;
            }
            let events: Vec<_> = commands.drain(..).flat_map(|c| self.carry_out(c)).collect();
            if events.is_empty() {
                self.now = self.now.max(self.state.next_deadline().expect("it waits for ever"));
                commands.extend(self.step(Event::Tick));
            }
            for event in events {
                commands.extend(self.step(event));
            }
        }
        panic!("it does not converge: {:?}", self.state);
    }

    fn carry_out(&self, command: Command) -> Vec<Event> {
        match command {
            Command::Probe { epoch, replica, endpoint } => {
                let transport = TransportEpoch(100);
                let (r, s, h) = (Some(Lsn(4)), Lsn(3), Lsn(20));
                vec![
                    Event::ProbeSucceeded { epoch, replica, endpoint, transport },
                    Event::RecoveryFacts { epoch, replica, transport, r, from: None, s, h },
                ]
            }
            Command::StartCatchUp { epoch, replica, session, target, .. }
            | Command::StartDelta { epoch, replica, session, target, .. }
            | Command::StartRebuild { epoch, replica, session, target, .. } => vec![
                Event::SessionStarted { epoch, replica, session },
                Event::SessionClosedCompleted { epoch, replica, session, achieved: target },
            ],
            Command::InvalidateSession { epoch, replica, session } => {
                vec![Event::SessionInvalidated { epoch, replica, session }]
            }
            Command::FenceAtEpoch { epoch, replica, transport } => {
                vec![Event::FenceCompleted { epoch, replica, transport, fenced: epoch }]
            }
            Command::PublishHealthy { .. } | Command::PublishDegraded { .. } => Vec::new(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_run_keeps_the_rules_and_converges(drafts in drafts()) {
        let mut run = Run::new();
        for draft in drafts {
            run.play(draft);
        }
        run.heal();
    }
}

/// The random runs are worth something only if they reach what they are to test.
#[test]
fn the_runs_get_far() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut healthy, mut catch_ups, mut deltas, mut rebuilds) = (0, 0, 0, 0);
    let (mut stuck, mut unsettled) = (0, 0);
    for _ in 0..900 {
        let drafts = drafts().new_tree(&mut runner).expect("drafts can be drawn").current();
        let mut run = Run::new();
        for draft in drafts {
            run.play(draft);
            let modes = [1, 2].map(|n| run.state.view(id(n)).map(|view| view.mode));
            healthy += u32::from(modes.contains(&Some(Mode::Healthy)));
            stuck += u32::from(!run.stuck.is_empty());
            unsettled += u32::from(!run.unsettled.is_empty());
        }
        for command in run.started.values() {
            if let Command::StartCatchUp { .. } = command {
                catch_ups += 1;
            } else if let Command::StartDelta { .. } = command {
                deltas += 1;
            } else {
                rebuilds += 1;
            }
        }
    }
    let reached = (healthy, catch_ups, deltas, rebuilds, stuck, unsettled);
    let often = [healthy, catch_ups, deltas, rebuilds].iter().all(|count| *count > 50);
    assert!(often && stuck > 10 && unsettled > 10, "{reached:?}");
}
