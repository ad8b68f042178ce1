//! The scenario families that are about decisions alone: they run on the recovery engine itself,
//! the code that runs in a primary.

use std::collections::{BTreeMap, BTreeSet};

use sbk_engine::recovery::{Command, Event, Mode, Params, TransportEpoch, VolumeState, step};
use sbk_engine::replication::message::RecoveryId;
use sbk_engine::types::{Epoch, Lsn, Millis, ReplicaId};
use uuid::Uuid;

const EPOCH: Epoch = Epoch(3);
const RUN: TransportEpoch = TransportEpoch(1);
const ENDPOINT: &str = "replica:1";

/// The engine of a primary with one other replica, and everything that it commanded.
struct Driven {
    state: VolumeState,
    now: Millis,
    commands: Vec<Command>,
}

fn replica() -> ReplicaId {
    ReplicaId(Uuid::from_u128(1))
}

impl Driven {
    fn new() -> Self {
        let state = VolumeState::new(Params::default());
        let mut driven = Self { state, now: Millis(1000), commands: Vec::new() };
        driven.feed(Event::Assignment {
            epoch: EPOCH,
            since: EPOCH,
            replicas: BTreeMap::from([(replica(), ENDPOINT.to_owned())]),
            in_sync: BTreeSet::new(),
        });
        driven
    }

    fn feed(&mut self, event: Event) {
        self.now = self.now.after(1);
        self.commands.extend(step(&mut self.state, self.now, event).1);
    }

    fn mode(&self) -> Option<Mode> {
        self.state.view(replica()).map(|view| view.mode)
    }

    fn session(&self) -> Option<RecoveryId> {
        self.state.view(replica())?.session.map(|session| session.id)
    }

    fn published_healthy(&self) -> bool {
        self.commands.iter().any(|c| matches!(c, Command::PublishHealthy { .. }))
    }

    fn is_healthy(&self) -> bool {
        self.mode() == Some(Mode::Healthy) || self.published_healthy()
    }
}

fn probe_succeeded() -> Event {
    let endpoint = ENDPOINT.to_owned();
    Event::ProbeSucceeded { epoch: EPOCH, replica: replica(), endpoint, transport: RUN }
}

fn facts((r, s, h): (u64, u64, u64)) -> Event {
    let (r, s, h) = (Some(Lsn(r)), Lsn(s), Lsn(h));
    let (replica, from) = (replica(), None);
    Event::RecoveryFacts { epoch: EPOCH, replica, transport: RUN, r, from, s, h }
}

/// R, S and H of the three routes.
const GAPS: [(u64, u64, u64); 3] = [(100, 1, 100), (50, 20, 100), (10, 60, 100)];

/// Only a terminal close, and the acknowledged fence after it, is success. What was observed.
pub(super) fn only_the_close_is_success() -> Result<String, String> {
    let mut sessions = 0;
    for gap in &GAPS[1..] {
        let mut driven = Driven::new();
        driven.feed(probe_succeeded());
        driven.feed(facts(*gap));
        let session = driven.session().ok_or("no session was started")?;
        sessions += 1;
        let (epoch, replica) = (EPOCH, replica());
        driven.feed(Event::SessionPrepared { epoch, replica, session });
        driven.feed(Event::SessionStarted { epoch, replica, session });
        for achieved in [Lsn(gap.2 - 1), Lsn(gap.2), Lsn(gap.2 + 50)] {
            driven.feed(Event::SessionProgress { epoch, replica, session, achieved });
            driven.feed(Event::DurableAck { epoch, replica, lsn: achieved });
            driven.feed(Event::Tick);
            if driven.is_healthy() {
                return Err(format!("healthy by progress to {achieved} alone"));
            }
        }
        let other = RecoveryId { epoch, number: session.number + 1 };
        let achieved = Lsn(gap.2);
        driven.feed(Event::SessionClosedCompleted { epoch, replica, session: other, achieved });
        if driven.is_healthy() {
            return Err("healthy by the close of another session".into());
        }
        driven.feed(Event::SessionClosedCompleted { epoch, replica, session, achieved });
        if driven.is_healthy() {
            return Err("healthy before the fence was acknowledged".into());
        }
        let transport = RUN;
        driven.feed(Event::FenceCompleted { epoch, replica, transport, fenced: EPOCH });
        if !driven.is_healthy() {
            return Err("not healthy after the close and the fence".into());
        }
    }
    Ok(format!("{sessions} sessions: progress never healthy, close and fence always"))
}

/// The order in which facts arrive does not change what is decided. What was observed.
pub(super) fn order_of_facts_does_not_matter() -> Result<String, String> {
    let mut orders = 0;
    for gap in GAPS {
        let stale = RecoveryId { epoch: Epoch(2), number: 9 };
        let (epoch, replica) = (EPOCH, replica());
        let events = [
            probe_succeeded(),
            facts(gap),
            probe_succeeded(),
            Event::SessionProgress { epoch, replica, session: stale, achieved: Lsn(99) },
            Event::Tick,
        ];
        let mut outcomes = BTreeMap::new();
        for order in permutations(events.len()) {
            let mut driven = Driven::new();
            for index in &order {
                driven.feed(events[*index].clone());
            }
            orders += 1;
            let view = driven.state.view(replica);
            let view = view.map(|v| format!("{:?}, {:?}, {:?}", v.mode, v.decision, v.session));
            outcomes.entry(view).or_insert(order);
        }
        if outcomes.len() != 1 {
            return Err(format!("R, S, H = {gap:?} ends in {} ways: {outcomes:?}", outcomes.len()));
        }
    }
    Ok(format!("{orders} orders of events, one outcome for each gap"))
}

/// All orders of `0..count`.
fn permutations(count: usize) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    for next in 0..count {
        let longer = |order: Vec<usize>| {
            (0..=order.len()).map(move |at| {
                let mut order = order.clone();
                order.insert(at, next);
                order
            })
        };
        all = all.into_iter().flat_map(longer).collect();
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_is_there_once() {
        let all = permutations(4);
        assert_eq!(all.len(), 24);
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 24);
    }

    #[test]
    fn the_engine_passes() {
        only_the_close_is_success().expect("C4");
        order_of_facts_does_not_matter().expect("C5");
    }
}
