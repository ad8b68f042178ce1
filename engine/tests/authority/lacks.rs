//! A primary that lives and lacks in-sync members: who takes its place, how often, and when nobody does.

use std::collections::BTreeSet;

use sbk_engine::authority::detector::{Detector, DetectorEvent, DetectorParams};
use sbk_engine::authority::{Durability, State};
use sbk_engine::types::{Epoch, Millis};

use super::cases::{all_in_sync, config, node, number, registration, replica, report, volume};

const HEARTBEAT: u64 = 500;
const TEN_MINUTES: u64 = 600_000;

/// Three nodes that all send heartbeats.
struct Nodes {
    state: State,
    detector: Detector,
    now: u64,
    /// Who reaches whom, a bit for each.
    links: u32,
    /// Since when the primary lacks somebody without a break, in which epoch.
    since: Option<(Epoch, u64)>,
    moves: Vec<u64>,
}

/// Bit 0 is the link from 1 to 2, and so on.
fn reaches(links: u32, from: u128, to: u128) -> bool {
    let at = match (from, to) {
        (1, 2) => 0,
        (1, 3) => 1,
        (2, 1) => 2,
        (2, 3) => 3,
        (3, 1) => 4,
        (3, 2) => 5,
        _ => unreachable!("three nodes"),
    };
    links >> at & 1 == 1
}

impl Nodes {
    fn new(durability: Durability, links: u32) -> Self {
        let (state, mut detector) =
            (all_in_sync(durability), Detector::new(DetectorParams::default()));
        assert!(detector.step(Millis(0), &state, DetectorEvent::Elected).is_empty());
        Self { state, detector, now: 0, links, since: None, moves: Vec::new() }
    }

    fn primary(&self) -> u128 {
        number(config(&self.state).primary.id)
    }

    /// Whom it lacks, as the engine's primary tells it: by majority nobody if one answers.
    fn lacked_by(&self, n: u128) -> BTreeSet<u128> {
        let others = (1..=3).filter(|m| *m != n);
        let lacked: BTreeSet<u128> = others.filter(|m| !reaches(self.links, n, *m)).collect();
        let quorum = config(&self.state).durability == Durability::SyncQuorum;
        if quorum && lacked.len() < 2 { BTreeSet::new() } else { lacked }
    }

    /// All send a heartbeat; what is proposed is done at once.
    fn beat(&mut self) {
        self.now += HEARTBEAT;
        let now = config(&self.state);
        let primary = number(now.primary.id);
        let lacked = self.lacked_by(primary);
        self.since = match self.since {
            _ if lacked.is_empty() => None,
            Some((epoch, since)) if epoch == now.epoch => Some((epoch, since)),
            _ => Some((now.epoch, self.now)),
        };
        for n in 1..=3 {
            let mut report = report(n, 10 + n as u64);
            if n == primary {
                report.primary_in = Some(now.epoch);
                report.lacking = lacked.iter().map(|m| replica(*m)).collect();
                report.lacking_ms = self.since.map_or(0, |(_, since)| self.now - since);
            }
            let heartbeat = DetectorEvent::Heartbeat {
                node: node(n),
                process: 1,
                reports: vec![report],
                returning: BTreeSet::new(),
                low: BTreeSet::new(),
            };
            for decision in self.detector.step(Millis(self.now), &self.state, heartbeat) {
                assert_eq!(decision.volume, volume());
                assert!(decision.reason.contains("lacks members"), "{}", decision.reason);
                let told = config(&self.state);
                assert_eq!((decision.expect_epoch, &decision.isr), (told.epoch, &told.isr));
                self.state.apply(&decision.command()).expect("the masters take it");
                self.moves.push(self.now);
            }
        }
    }

    fn beat_until(&mut self, end: u64) {
        while self.now < end {
            self.beat();
        }
    }
}

/// All 64 ways in which three nodes may reach each other. If a member reaches all that it must count, it
/// is primary after two moves at most, in the time that is promised, and stays. If there is none, moves become rare.
#[test]
fn whoever_reaches_all_becomes_primary_and_where_nobody_does_moves_become_rare() {
    let (mut helped, mut hopeless, mut at_rest) = (0, 0, 0);
    for durability in [Durability::SyncAll, Durability::SyncQuorum] {
        for links in 0..64 {
            let mut nodes = Nodes::new(durability, links);
            let case = format!("{durability:?}, links {links:06b}");
            let good: Vec<u128> = (1..=3).filter(|n| nodes.lacked_by(*n).is_empty()).collect();
            let was = nodes.primary();
            nodes.beat_until(TEN_MINUTES);
            let moves = &nodes.moves;
            if good.contains(&was) {
                assert!(moves.is_empty(), "{case}: {moves:?}");
                at_rest += 1;
            } else if good.is_empty() {
                // At 4, 8, 16 and so on, at last every 128 s; every 4 s it would be 150.
                assert!((7..=9).contains(&moves.len()), "{case}: {moves:?}");
                let gaps: Vec<u64> = moves.windows(2).map(|pair| pair[1] - pair[0]).collect();
                assert!(gaps.is_sorted() && gaps.last() >= Some(&128_000), "{case}: {gaps:?}");
                hopeless += 1;
            } else {
                assert!(good.contains(&nodes.primary()), "{case}: {moves:?}");
                // Twice the pause and a heartbeat or two for each.
                let last = *moves.last().expect("it was moved");
                assert!(moves.len() <= 2 && last <= 4_000 + 8_000 + 2_000, "{case}: {moves:?}");
                helped += 1;
            }
        }
    }
    assert_eq!((helped, hopeless, at_rest), (36, 28, 64));
}

/// What the lacked member's node registered says whether anybody can count it.
#[test]
fn a_member_whose_store_is_closed_or_torn_is_no_reason_to_move() {
    for (holds, complete, moves) in [(true, true, true), (true, false, false), (false, true, false)]
    {
        // The first two reach each other, and nobody the third.
        let mut nodes = Nodes::new(Durability::SyncAll, 0b00_0101);
        assert_ne!(nodes.primary(), 3, "the third is the one that is lacked");
        let mut third = registration(3, 1, 2, holds);
        third.replicas.values_mut().for_each(|entry| entry.complete = complete);
        let command = sbk_engine::authority::Command::RegisterNode(third);
        nodes.state.apply(&command).expect("registers");
        nodes.beat_until(TEN_MINUTES);
        assert_eq!(!nodes.moves.is_empty(), moves, "{holds} {complete}: {:?}", nodes.moves);
    }
}

/// A failover would count a loss, and the primary can always have the member leave.
#[test]
fn in_best_effort_it_is_no_reason() {
    for links in 0..64 {
        let mut nodes = Nodes::new(Durability::BestEffort, links);
        nodes.beat_until(60_000);
        assert!(nodes.moves.is_empty(), "links {links:06b}: {:?}", nodes.moves);
    }
}

/// What was mended and breaks again much later is treated as for the first time.
#[test]
fn moves_of_long_ago_are_forgotten() {
    let mut nodes = Nodes::new(Durability::SyncAll, 0);
    nodes.beat_until(30_000);
    let first = nodes.moves.clone();
    assert_eq!(first.len(), 3, "{first:?}");
    nodes.links = 0b11_1111;
    nodes.beat_until(TEN_MINUTES);
    assert_eq!(nodes.moves, first, "nothing is lacked");
    nodes.links = 0;
    nodes.beat_until(TEN_MINUTES + 10_000);
    assert!(nodes.moves[3] <= TEN_MINUTES + 5_000, "{:?}", nodes.moves);
}
