//! The worlds that are explored, by name.

use std::sync::Arc;

use serde::Serialize;

use super::action::Action;
use super::client::Client;
use super::history::{Asked, History};
use super::world::{NODES, World};

/// Faults that may still come in a world, and how often.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Faults {
    /// Processes that crash, and which may.
    pub(crate) crashes: u8,
    pub(crate) crash: Vec<usize>,
    /// Nodes that are cut off from all others and from the masters, and which may be.
    pub(crate) isolations: u8,
    pub(crate) isolate: Vec<usize>,
    /// Failovers, and to whom. Where two followers are alike, one is enough: choosing the other is
    /// the same run with their names changed.
    pub(crate) failovers: u8,
    pub(crate) successors: Vec<usize>,
    /// Failovers for no reason too.
    pub(crate) coups: bool,
    /// Steps of the clock while work is under way.
    pub(crate) hurries: u8,
    /// Steps of the clock while something is broken and all else has come to rest.
    pub(crate) patience: u8,
    /// Messages that are lost.
    pub(crate) losses: u8,
    /// Messages of which a copy arrives some time.
    pub(crate) copies: u8,
    /// Proposals whose proposer is told that the outcome is unknown.
    pub(crate) doubts: u8,
    /// Processes start again and partitions end only when all else has come to rest.
    pub(crate) late_repairs: bool,
    /// Clients for whose requests time does not wait while something is broken.
    pub(crate) late: Vec<usize>,
    /// The masters tell every node of a new configuration, not only primaries, old and new.
    pub(crate) gossip: bool,
}

/// What a client asks for.
#[derive(Clone, Copy, Debug)]
enum Ask {
    Write(u64),
    Read(u64),
}
use Ask::{Read, Write};

/// A world, by name.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// Its name.
    pub name: &'static str,
    /// What happens in it.
    pub about: &'static str,
    /// Small enough for every run of the tests.
    pub quick: bool,
    /// Explored only on demand.
    pub long: bool,
    setup: fn() -> Setup,
}

struct Setup {
    faults: Faults,
    /// For each client what it asks for, and how many requests it sends without an answer.
    clients: Vec<(Vec<Ask>, usize)>,
    min_in_sync: u32,
    /// A log that keeps nothing that is checkpointed: who missed something is rebuilt.
    short_log: bool,
    /// The replica that starts only now, and has missed all before.
    absent: Option<usize>,
}

impl Setup {
    fn new(clients: Vec<(Vec<Ask>, usize)>, faults: Faults) -> Self {
        Self { faults, clients, min_in_sync: 2, short_log: false, absent: None }
    }
}

/// Every world.
pub const WORLDS: &[Spec] = &[
    Spec {
        name: "healthy",
        about: "two clients write the same block and one of them reads it; nothing fails",
        quick: true,
        long: false,
        setup: || {
            let clients = vec![(vec![Write(0), Read(0)], 2), (vec![Write(0)], 1)];
            Setup::new(clients, Faults::default())
        },
    },
    Spec {
        name: "follower-restart",
        about: "a follower crashes and comes back in the same epoch, or leaves and joins again",
        quick: true,
        long: false,
        setup: || {
            let faults = Faults { crashes: 1, crash: vec![1], patience: 3, ..Faults::default() };
            Setup::new(vec![(vec![Write(0)], 1)], faults)
        },
    },
    Spec {
        name: "primary-crash",
        about: "the primary crashes while a write is under way; it is failed over or comes back",
        quick: false,
        long: false,
        setup: || {
            let faults = Faults {
                crashes: 1,
                crash: vec![0],
                failovers: 1,
                successors: vec![1],
                patience: 3,
                late_repairs: true,
                ..Faults::default()
            };
            Setup::new(vec![(vec![Write(0)], 1)], faults)
        },
    },
    Spec {
        name: "partitioned-primary",
        about: "the primary is cut off and replaced; one client goes on with it, one follows",
        quick: false,
        long: false,
        setup: || {
            let faults = Faults {
                isolations: 1,
                isolate: vec![0],
                failovers: 1,
                successors: vec![1],
                patience: 4,
                late_repairs: true,
                late: vec![0],
                ..Faults::default()
            };
            Setup::new(vec![(vec![Read(0)], 1), (vec![Write(0)], 1)], faults)
        },
    },
    Spec {
        name: "join-raced-by-failover",
        about: "a replica that missed a write catches up and joins, while the primary is replaced",
        quick: false,
        long: false,
        setup: || {
            let faults =
                Faults { failovers: 1, successors: vec![1], coups: true, ..Faults::default() };
            let mut setup = Setup::new(vec![(vec![Write(0)], 1)], faults);
            setup.absent = Some(2);
            setup
        },
    },
    Spec {
        name: "leave-unknown-outcome",
        about: "a follower crashes; the proposal that it leaves is given up, and is decided late",
        quick: false,
        long: false,
        setup: || {
            let faults =
                Faults { crashes: 1, crash: vec![2], doubts: 1, patience: 3, ..Faults::default() };
            Setup::new(vec![(vec![Write(0)], 1)], faults)
        },
    },
    Spec {
        name: "coup",
        about: "the primary is replaced while it is well; a write and a read are under way",
        quick: false,
        long: true,
        setup: || {
            let faults = Faults {
                failovers: 1,
                successors: vec![1],
                coups: true,
                gossip: true,
                ..Faults::default()
            };
            Setup::new(vec![(vec![Write(0)], 1), (vec![Read(0)], 1)], faults)
        },
    },
    Spec {
        name: "two-writes-primary-crash",
        about: "as primary-crash, with two writes, of two clients, to one block",
        quick: false,
        long: true,
        setup: || {
            let faults = Faults {
                crashes: 1,
                crash: vec![0],
                failovers: 1,
                successors: vec![1],
                patience: 2,
                late_repairs: true,
                ..Faults::default()
            };
            Setup::new(vec![(vec![Write(0)], 1), (vec![Write(0)], 1)], faults)
        },
    },
    Spec {
        name: "promise-and-restart",
        about: "the primary is cut off, and the follower that is to replace it restarts",
        quick: false,
        long: true,
        setup: || {
            let faults = Faults {
                crashes: 1,
                crash: vec![1],
                isolations: 1,
                isolate: vec![0],
                failovers: 1,
                successors: vec![1],
                patience: 3,
                ..Faults::default()
            };
            Setup::new(vec![(vec![Read(0)], 1), (vec![Write(0)], 1)], faults)
        },
    },
    Spec {
        name: "rebuild-raced-by-failover",
        about: "a replica that missed a write is rebuilt and joins, while the primary is replaced",
        quick: false,
        long: true,
        setup: || {
            let faults =
                Faults { failovers: 1, successors: vec![1], coups: true, ..Faults::default() };
            let mut setup = Setup::new(vec![(vec![Write(0)], 1)], faults);
            setup.absent = Some(2);
            setup.short_log = true;
            setup
        },
    },
    Spec {
        name: "late-copies",
        about: "a follower restarts; one message is lost and a copy of another arrives late",
        quick: false,
        long: true,
        setup: || {
            let faults = Faults {
                crashes: 1,
                crash: vec![1],
                losses: 1,
                copies: 1,
                patience: 2,
                late_repairs: true,
                ..Faults::default()
            };
            Setup::new(vec![(vec![Write(0)], 1)], faults)
        },
    },
    Spec {
        name: "hurried-join",
        about: "a replica catches up and joins, while the clock runs ahead of the work three times",
        quick: false,
        long: true,
        setup: || {
            let faults = Faults { hurries: 3, ..Faults::default() };
            let mut setup = Setup::new(vec![(vec![Write(0)], 1)], faults);
            setup.absent = Some(2);
            setup
        },
    },
];

/// A world by its name.
pub fn world(name: &str) -> Option<&'static Spec> {
    WORLDS.iter().find(|spec| spec.name == name)
}

impl Spec {
    /// The world as its exploration begins: three replicas that serve, clients with their streams
    /// open, all at rest.
    pub(crate) fn begin(&self) -> World {
        let setup = (self.setup)();
        let mut world = World::new(Faults::default(), setup.min_in_sync, setup.short_log);
        for (number, (_, window)) in setup.clients.iter().enumerate() {
            Arc::make_mut(&mut world.clients).push(Client::new(number, *window));
        }
        // Something to ask for, so that the streams are opened; and a write that an absent replica
        // has missed.
        ask(&mut world, 0, Write(1));
        let present = (0..NODES).filter(|node| Some(*node) != setup.absent);
        for node in present.clone() {
            world.happen(Action::Restart { node });
        }
        let rests = |world: &World| {
            let least = if setup.absent.is_some() { NODES - 1 } else { NODES };
            world.masters.config.isr.len() == least
                && world.history.is_complete()
                && present.clone().all(|n| world.nodes[n].disk.checkpoint == world.truth.newest())
        };
        settle(&mut world, setup.absent, rests);
        for client in 1..setup.clients.len() {
            ask(&mut world, client, Write(1));
            settle(&mut world, setup.absent, rests);
        }
        world.forget_history();
        for (client, (asks, _)) in setup.clients.iter().enumerate() {
            asks.iter().for_each(|op| ask(&mut world, client, *op));
        }
        if let Some(node) = setup.absent {
            world.happen(Action::Restart { node });
        }
        world.left = setup.faults;
        world
    }
}

fn ask(world: &mut World, client: usize, what: Ask) {
    let history = Arc::make_mut(&mut world.history);
    let op = history.ops.len();
    let (block, write) = match what {
        Write(block) => (block, Some(10 * (1 + client as u64) + op as u64)),
        Read(block) => (block, None),
    };
    history.ops.push(Asked { client, block, write, after: None, answer: None });
    let known = &mut Arc::make_mut(&mut world.clients)[client];
    known.ops.push(op);
    known.done.push(false);
}

/// Lets one thing after another happen, no faults, until the world rests as it should.
fn settle(world: &mut World, absent: Option<usize>, rests: impl Fn(&World) -> bool) {
    for _ in 0..10_000 {
        let actions = world.actions();
        let next = actions.iter().find(|action| {
            matches!(action, Action::Ask { .. }) || **action != Action::Pass && !action.is_free()
        });
        match next {
            Some(action) => world.happen(*action),
            None if rests(world) => return,
            None => {
                assert!(absent.is_some() || !world.is_faulty(), "the world never came to rest");
                world.pass(super::node::STEP);
            }
        }
    }
    panic!("the world never came to rest");
}

impl World {
    /// What was written before is how the blocks begin.
    fn forget_history(&mut self) {
        let disk = &self.nodes[0].disk;
        let begin = std::array::from_fn(|block| disk.newest(block as u64));
        self.history = Arc::new(History { begin, ops: Vec::new() });
        for client in Arc::make_mut(&mut self.clients) {
            client.settled();
        }
    }
}
