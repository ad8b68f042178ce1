//! Cases and properties of the forwarder.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::replication::io::{Attach, Outcome, StreamEnd};
use crate::types::*;

mod attachments;
mod given_up;

const MIB: u64 = 1 << 20;

fn volume() -> VolumeId {
    VolumeId(Uuid::from_u128(1))
}

fn config(epoch: u64, primary: u128, since: u64) -> Config {
    let place = |n: u128| Placement { node: NodeId(Uuid::from_u128(n)), addr: format!("n{n}:1") };
    let id = |n: u128| ReplicaId(Uuid::from_u128(100 + n));
    Config {
        volume: volume(),
        epoch: Epoch(epoch),
        primary: ReplicaRef { id: id(primary), incarnation: Incarnation { process: 1, open: 1 } },
        since: Epoch(since),
        isr: (1..=3).map(id).collect(),
        replicas: (1..=3).map(|n| (id(n), place(n))).collect(),
        durability: crate::types::Durability::SyncAll,
        write_ack: crate::types::WriteAck::Durable,
        min_in_sync: 1,
        blocks: 1024,
        wished_blocks: None,
        handed_over_by: None,
        loss_generation: LossGeneration(0),
        tails: std::collections::BTreeMap::new(),
    }
}

fn write(block: u64) -> Op {
    Op::Write(ByteRange { offset: block * BLOCK_SIZE, length: BLOCK_SIZE })
}

fn read(block: u64) -> Op {
    Op::Read(ByteRange { offset: block * BLOCK_SIZE, length: BLOCK_SIZE })
}

/// A forwarder with its driver's and its primary's part played by hand; what must always hold is
/// checked on every output.
struct Bench {
    forwarder: Forwarder,
    now: u64,
    next_request: u64,
    next_session: u128,
    ops: BTreeMap<RequestId, Op>,
    answers: BTreeMap<RequestId, Answer>,
    /// Whose requests are, and those whose client left.
    clients: BTreeMap<RequestId, ClientId>,
    abandoned: BTreeSet<RequestId>,
    /// The link, whether it is open, and what was sent on it and not answered.
    link: Option<(LinkId, bool)>,
    sent: BTreeMap<u64, RequestId>,
    /// Sent in the session on any link, not replied.
    unknown: BTreeMap<u64, RequestId>,
    /// The session named by the newest attempt at a link.
    session: Option<SessionId>,
    last_sent: u64,
    detach: Option<u64>,
    closed: bool,
    opened: Vec<Output>,
    attached: Vec<ClientId>,
    refused: Vec<(ClientId, String)>,
}

impl Bench {
    fn new(params: Params) -> Self {
        Self {
            forwarder: Forwarder::new(volume(), params),
            now: 1000,
            next_request: 1,
            next_session: 1000,
            ops: BTreeMap::new(),
            answers: BTreeMap::new(),
            clients: BTreeMap::new(),
            abandoned: BTreeSet::new(),
            link: None,
            sent: BTreeMap::new(),
            unknown: BTreeMap::new(),
            session: None,
            last_sent: 0,
            detach: None,
            closed: false,
            opened: Vec::new(),
            attached: Vec::new(),
            refused: Vec::new(),
        }
    }

    /// With client 1, a session, and a link open in epoch 1.
    fn serving(params: Params) -> Self {
        let mut bench = Self::new(params);
        bench.feed(Input::Config(config(1, 1, 1)));
        bench.feed(Input::Attached(ClientId(1)));
        bench.open(1, 0);
        bench
    }

    fn feed(&mut self, input: Input) -> Verdict {
        let (verdict, outputs) = self.forwarder.step(Millis(self.now), input);
        for output in outputs {
            self.execute(output);
        }
        verdict
    }

    fn execute(&mut self, output: Output) {
        match output {
            Output::NeedSession => {
                self.next_session += 1;
                let id = SessionId(Uuid::from_u128(self.next_session));
                self.unknown.clear();
                self.feed(Input::Session(id));
            }
            Output::Open { link, session, attach, loss_generation, .. } => {
                let create = !matches!(attach, Attach::Again(_));
                assert!(self.link.is_none(), "two links at once");
                assert_eq!(attach.names_generation(), loss_generation.is_some());
                if self.session.replace(session) != Some(session) {
                    assert!(create, "a new session must be created");
                }
                self.link = Some((link, false));
                self.sent.clear();
                self.last_sent = 0;
                self.opened.push(Output::Open {
                    link,
                    node: NodeId(Uuid::nil()),
                    addr: String::new(),
                    primary: config(1, 1, 1).primary,
                    session,
                    attach,
                    loss_generation,
                });
            }
            Output::CloseLink(link) => {
                assert_eq!(self.link.take().map(|l| l.0), Some(link));
                self.sent.clear();
            }
            Output::Send { link, request, sequence, low, .. } => {
                self.check_send(link, sequence, low);
                assert!(!self.answers.contains_key(&request), "an answered request was sent");
                self.check_not_late(request);
                self.sent.insert(sequence, request);
                let before = self.unknown.insert(sequence, request);
                assert!(before.is_none_or(|r| r == request), "a sequence was given twice");
            }
            Output::SendDetach { link, sequence, low, .. } => {
                self.check_send(link, sequence, low);
                assert!(self.unknown.is_empty(), "the session ends with requests in flight");
                self.detach = Some(sequence);
            }
            Output::Answer { request, answer } => {
                assert!(self.ops.contains_key(&request), "an answer without a request");
                let before = self.answers.insert(request, answer);
                assert_eq!(before, None, "{request:?} was answered twice");
            }
            Output::Closed => self.closed = true,
            Output::Attached(client) => self.attached.push(client),
            Output::Refused { client, why } => self.refused.push((client, why)),
        }
    }

    fn check_send(&mut self, link: LinkId, sequence: u64, low: u64) {
        assert_eq!(self.link, Some((link, true)), "sent on a link that is not open");
        assert!(sequence > self.last_sent, "{sequence} sent after {}", self.last_sent);
        self.last_sent = sequence;
        assert!(low < sequence && sequence <= low + SEQUENCE_WINDOW);
        let first = self.unknown.keys().next();
        assert!(first.is_none_or(|first| low < *first), "low {low} passed {first:?}");
    }

    /// Nothing may be sent to blocks that a given-up request on the same link may still change.
    fn check_not_late(&self, request: RequestId) {
        let Some(blocks) = self.ops[&request].blocks() else { return };
        for other in self.sent.values() {
            let given_up = matches!(self.answers.get(other), Some(Answer::Failed(_)))
                || self.abandoned.contains(other);
            let overlaps = self.ops[other].changes().is_some_and(|o| o.overlaps(&blocks));
            assert!(!(given_up && overlaps), "{request:?} overtakes {other:?}");
        }
    }

    fn submit(&mut self, client: u64, op: Op) -> RequestId {
        let request = RequestId(self.next_request);
        self.next_request += 1;
        self.ops.insert(request, op);
        self.clients.insert(request, ClientId(client));
        self.feed(Input::Submit { client: ClientId(client), request, op });
        request
    }

    fn leave(&mut self, client: u64) {
        let its = self.clients.iter().filter(|(_, c)| c.0 == client).map(|(r, _)| *r);
        self.abandoned.extend(its.filter(|r| !self.answers.contains_key(r)));
        self.feed(Input::Detached(ClientId(client)));
    }

    fn open(&mut self, epoch: u64, loss: u64) {
        let Some((link, false)) = self.link else { panic!("no link to open: {:?}", self.link) };
        self.link = Some((link, true));
        // Requests given up before are dead now: their streams are.
        self.unknown.retain(|_, request| {
            !self.answers.contains_key(request) && !self.abandoned.contains(request)
        });
        self.feed(Input::LinkOpened {
            link,
            epoch: Epoch(epoch),
            attach: AttachGeneration(1),
            loss_generation: LossGeneration(loss),
        });
    }

    fn lose(&mut self) {
        let (link, _) = self.link.take().expect("a link to lose");
        self.sent.clear();
        self.feed(Input::LinkLost(link));
    }

    fn end(&mut self, reason: StreamEnd, config: Option<Config>) {
        let (link, _) = self.link.take().expect("a link to end");
        self.sent.clear();
        self.feed(Input::LinkEnded { link, reason, config });
    }

    fn reply(&mut self, sequence: u64) {
        let (link, _) = self.link.expect("a link");
        self.sent.remove(&sequence);
        self.unknown.remove(&sequence);
        self.feed(Input::Reply { link, sequence, outcome: Outcome::Done });
    }

    fn pass(&mut self, ms: u64) {
        self.now += ms;
        self.feed(Input::Tick);
    }

    /// Everything works from here on: opens links and replies until nothing is left.
    fn heal(&mut self, epoch: u64, loss: u64) {
        for _ in 0..100_000 {
            match self.link {
                None => self.pass(300),
                Some((_, false)) => self.open(epoch, loss),
                Some((_, true)) => match self.sent.keys().next().copied() {
                    Some(sequence) => self.reply(sequence),
                    None if self.forwarder.is_idle() => return,
                    None => self.pass(1),
                },
            }
            if self.link.is_none() && self.forwarder.is_idle() {
                return;
            }
        }
        panic!("requests are stuck: {:?}", self.forwarder);
    }
}

#[test]
fn unresolved_requests_go_first_and_in_order_to_the_next_primary() {
    let mut bench = Bench::serving(Params::default());
    let first = bench.submit(1, write(1));
    let second = bench.submit(1, write(2));
    let third = bench.submit(1, read(3));
    bench.reply(2);
    assert_eq!(bench.answers.get(&second), Some(&Answer::Done));
    bench.end(StreamEnd::NotPrimary, Some(config(2, 2, 2)));
    let fourth = bench.submit(1, write(4));
    bench.open(2, 0);
    let sent: Vec<_> = bench.sent.iter().map(|(s, r)| (*s, *r)).collect();
    assert_eq!(sent, [(1, first), (3, third), (4, fourth)]);
    bench.heal(2, 0);
    assert!(bench.answers.values().all(|a| *a == Answer::Done));
}

#[test]
fn a_refusal_without_a_newer_configuration_is_retried_with_growing_waits() {
    let mut bench = Bench::serving(Params::default());
    bench.lose();
    assert!(bench.link.is_none());
    bench.pass(10);
    bench.end(StreamEnd::NotPrimary, Some(config(1, 1, 1)));
    bench.pass(10);
    assert!(bench.link.is_none(), "the second wait is longer");
    bench.pass(10);
    assert!(bench.link.is_some());
    bench.end(StreamEnd::NotPrimary, None);
    bench.feed(Input::Config(config(2, 2, 2)));
    assert!(bench.link.is_some(), "a newer configuration is tried at once");
}

#[test]
fn a_continuous_primary_keeps_its_link_and_an_interrupted_one_does_not() {
    let mut bench = Bench::serving(Params::default());
    let link = bench.link;
    bench.feed(Input::Config(config(2, 1, 1)));
    assert_eq!(bench.link, link);
    bench.feed(Input::Config(config(4, 1, 4)));
    assert_ne!(bench.link, link);
}

#[test]
fn a_lost_session_fails_what_was_in_flight_and_goes_on_in_a_fresh_one() {
    let mut bench = Bench::serving(Params::default());
    let sent = bench.submit(1, write(1));
    let before = bench.session;
    bench.lose();
    let unsent = bench.submit(1, write(2));
    bench.pass(10);
    bench.end(StreamEnd::SessionLost, None);
    assert!(matches!(bench.answers.get(&sent), Some(Answer::Failed(_))));
    assert_eq!(bench.answers.get(&unsent), None);
    bench.pass(300);
    bench.heal(1, 0);
    assert_ne!(bench.session, before);
    assert_eq!(bench.answers.get(&unsent), Some(&Answer::Done));
}

#[test]
fn clients_of_before_a_loss_get_errors_until_they_attach_again() {
    let mut bench = Bench::serving(Params::default());
    bench.end(StreamEnd::SessionLost, Some(config(2, 2, 2)));
    let queued = bench.submit(1, read(1));
    bench.open(2, 1);
    assert!(matches!(bench.answers.get(&queued), Some(Answer::Failed(_))));
    let later = bench.submit(1, Op::Flush);
    assert!(matches!(bench.answers.get(&later), Some(Answer::Failed(_))));
    bench.feed(Input::Attached(ClientId(2)));
    let fresh = bench.submit(2, read(1));
    bench.heal(2, 1);
    assert_eq!(bench.answers.get(&fresh), Some(&Answer::Done));
}

#[test]
fn a_primary_that_holds_requests_back_is_not_silent() {
    let params = Params { io_timeout_ms: Some(1000), max_queued: 4096, ..Params::default() };
    let mut bench = Bench::serving(params);
    let requests: Vec<_> = (0..SEQUENCE_WINDOW + 2).map(|n| bench.submit(1, write(n))).collect();
    let (link, _) = bench.link.expect("is open");
    for _ in 0..5 {
        bench.now += 900;
        let other = bench.feed(Input::HeldBack(LinkId(link.0 + 1)));
        assert_eq!(other, Verdict::Ignored(Ignored::StaleLink));
        assert_eq!(bench.feed(Input::HeldBack(link)), Verdict::Applied);
        bench.now += 99;
        bench.feed(Input::Tick);
        assert!(
            bench.answers.is_empty(),
            "neither what was sent nor what waits for the window failed"
        );
    }
    // Its last word counts, and one about another link does not.
    bench.now += 901;
    bench.feed(Input::HeldBack(LinkId(link.0 + 1)));
    assert_eq!(bench.answers.len(), requests.len());
    assert!(requests.iter().all(|r| matches!(bench.answers[r], Answer::Failed(_))));
}

/// A driver that ticked at a deadline that nothing moves would spin.
#[test]
fn nothing_is_due_while_no_primary_is_known() {
    let mut bench = Bench::new(Params { io_timeout_ms: None, ..Params::default() });
    bench.feed(Input::Attached(ClientId(1)));
    assert_eq!(bench.forwarder.next_deadline(), None);
    bench.submit(1, read(0));
    assert_eq!(bench.forwarder.next_deadline(), None);
    bench.feed(Input::Tick);
    assert_eq!(bench.forwarder.next_deadline(), None);
    bench.feed(Input::Config(config(1, 1, 1)));
    assert!(bench.link.is_some(), "a link is made as soon as there is one");
}

#[test]
fn a_deleted_volume_answers_everything_and_opens_nothing() {
    let mut bench = Bench::serving(Params::default());
    let sent = bench.submit(1, write(1));
    bench.end(StreamEnd::Deleted, None);
    let later = bench.submit(1, write(1));
    assert_eq!(bench.answers.get(&sent), Some(&Answer::Deleted));
    assert_eq!(bench.answers.get(&later), Some(&Answer::Deleted));
    bench.pass(10_000);
    assert!(bench.link.is_none());
    bench.feed(Input::Close);
    assert!(bench.closed);
}

#[test]
fn the_window_and_the_byte_limit_hold_requests_back() {
    let params = Params { max_queued: 3, ..Params::default() };
    let mut bench = Bench::serving(params);
    for n in 0..SEQUENCE_WINDOW + 3 {
        assert!(bench.forwarder.can_accept());
        bench.submit(1, read(n % 7));
    }
    assert_eq!(bench.sent.len() as u64, SEQUENCE_WINDOW);
    assert!(!bench.forwarder.can_accept());
    bench.reply(2);
    assert_eq!(bench.sent.len() as u64, SEQUENCE_WINDOW - 1, "low has not moved");
    bench.reply(1);
    assert_eq!(bench.sent.len() as u64, SEQUENCE_WINDOW);
    bench.heal(1, 0);

    let mut bench = Bench::serving(Params { max_bytes: 64 * MIB, ..Params::default() });
    let big = Op::Write(ByteRange { offset: 0, length: 32 * MIB });
    bench.submit(1, big);
    assert!(bench.forwarder.can_accept());
    bench.submit(1, big);
    assert!(!bench.forwarder.can_accept());
    bench.reply(1);
    assert!(bench.forwarder.can_accept());
}

#[test]
fn closing_detaches_once_nothing_is_in_flight() {
    let mut bench = Bench::serving(Params::default());
    bench.submit(1, write(1));
    bench.leave(1);
    bench.feed(Input::Close);
    assert_eq!(bench.detach, None);
    bench.reply(1);
    let sequence = bench.detach.expect("the session's end is sent");
    let link = bench.link.expect("a link").0;
    assert!(!bench.closed);
    bench.feed(Input::Reply { link, sequence, outcome: Outcome::Done });
    assert!(bench.closed && bench.link.is_none());
}

#[test]
fn closing_a_session_that_never_was_opened_is_done_at_once() {
    let mut bench = Bench::new(Params::default());
    bench.feed(Input::Attached(ClientId(1)));
    bench.leave(1);
    bench.feed(Input::Close);
    assert!(bench.closed);
}

#[derive(Clone, Debug)]
enum Act {
    Submit { client: u64, kind: u8, block: u64 },
    Reply { nth: usize },
    Open,
    Lose,
    NotPrimary { newer: bool },
    SessionLost,
    Failover { same: bool },
    LossyFailover,
    Pass { ms: u64 },
    ClientLeaves { client: u64 },
    StaleReply { sequence: u64 },
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        12 => (0..3u64, 0..5u8, 0..4u64)
            .prop_map(|(client, kind, block)| Act::Submit { client, kind, block }),
        10 => (0..8usize).prop_map(|nth| Act::Reply { nth }),
        8 => Just(Act::Open),
        3 => Just(Act::Lose),
        2 => any::<bool>().prop_map(|newer| Act::NotPrimary { newer }),
        1 => Just(Act::SessionLost),
        2 => any::<bool>().prop_map(|same| Act::Failover { same }),
        1 => Just(Act::LossyFailover),
        6 => (1..400u64).prop_map(|ms| Act::Pass { ms }),
        1 => (0..3u64).prop_map(|client| Act::ClientLeaves { client }),
        1 => (0..20u64).prop_map(|sequence| Act::StaleReply { sequence }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever links and primaries do, each request is answered exactly once, requests go out in
    /// order within the window, `low` never passes one that may be sent again, none overtakes a
    /// given-up one to its blocks, and once faults stop nothing is stuck.
    #[test]
    fn every_request_is_answered_once(acts in prop::collection::vec(act(), 1..150)) {
        let params = Params { io_timeout_ms: Some(2000), ..Params::default() };
        let mut bench = Bench::new(params);
        let mut clients: BTreeMap<u64, u64> = (0..3).map(|slot| (slot, slot)).collect();
        let mut next_client = 3;
        for client in clients.values() {
            bench.feed(Input::Attached(ClientId(*client)));
        }
        let (mut epoch, mut since, mut primary, mut loss) = (1, 1, 1, 0);
        bench.feed(Input::Config(config(epoch, primary, since)));
        for act in acts {
            match act {
                Act::Submit { client, kind, block } => {
                    if bench.forwarder.can_accept() {
                        let range = ByteRange { offset: block * 2048, length: 3072 };
                        let op = match kind {
                            0 => Op::Read(range),
                            1 => Op::Trim(range),
                            2 => Op::Zero(range),
                            3 => Op::Flush,
                            _ => Op::Write(range),
                        };
                        bench.submit(clients[&client], op);
                    }
                }
                Act::Reply { nth } => {
                    if let Some(sequence) = bench.sent.keys().nth(nth).copied() {
                        bench.reply(sequence);
                    }
                }
                Act::Open => {
                    if let Some((_, false)) = bench.link {
                        bench.open(epoch, loss);
                    }
                }
                Act::Lose => {
                    if bench.link.is_some() {
                        bench.lose();
                    }
                }
                Act::NotPrimary { newer } => {
                    if newer {
                        epoch += 1;
                        since = epoch;
                        primary = primary % 3 + 1;
                    }
                    if bench.link.is_some() {
                        bench.end(StreamEnd::NotPrimary, Some(config(epoch, primary, since)));
                    }
                }
                Act::SessionLost => {
                    if bench.link.is_some() {
                        bench.unknown.clear();
                        bench.end(StreamEnd::SessionLost, None);
                    }
                }
                Act::Failover { same } => {
                    epoch += 1;
                    if !same {
                        since = epoch;
                        primary = primary % 3 + 1;
                    }
                    bench.feed(Input::Config(config(epoch, primary, since)));
                }
                Act::LossyFailover => {
                    epoch += 1;
                    since = epoch;
                    primary = primary % 3 + 1;
                    loss += 1;
                    if bench.link.is_some() {
                        bench.unknown.clear();
                        let config = config(epoch, primary, since);
                        bench.end(StreamEnd::SessionLost, Some(config));
                    } else {
                        bench.feed(Input::Config(config(epoch, primary, since)));
                    }
                }
                Act::Pass { ms } => bench.pass(ms),
                Act::ClientLeaves { client } => {
                    bench.leave(clients[&client]);
                    clients.insert(client, next_client);
                    bench.feed(Input::Attached(ClientId(next_client)));
                    next_client += 1;
                }
                Act::StaleReply { sequence } => {
                    let verdict = bench.feed(Input::Reply {
                        link: LinkId(u64::MAX),
                        sequence,
                        outcome: Outcome::Done,
                    });
                    prop_assert_eq!(verdict, Verdict::Ignored(Ignored::StaleLink));
                }
            }
        }
        bench.feed(Input::Config(config(epoch, primary, since)));
        bench.heal(epoch, loss);
        for request in bench.ops.keys() {
            prop_assert!(
                bench.answers.contains_key(request) != bench.abandoned.contains(request),
                "{:?} was never answered, or its client was gone", request
            );
        }
    }
}
