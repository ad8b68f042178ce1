//! The worlds that are explored, by name.

use sbk_engine::authority::Durability;
use serde::Serialize;

use super::action::Action;
use super::client::Client;
use super::history::{Asked, History};
use super::masters::Masters;
use super::part::{Part, change};
use super::world::{NODES, World, ids};

/// Faults that may still come in a world, and how often.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Faults {
    /// Processes that crash, and which may.
    pub(crate) crashes: u8,
    pub(crate) crash: &'static [usize],
    /// Nodes that are cut off from all others and from the masters, and which may be.
    pub(crate) isolations: u8,
    pub(crate) isolate: &'static [usize],
    /// Failovers, and to whom. Where two followers are alike, one is enough: choosing the other is
    /// the same run with their names changed.
    pub(crate) failovers: u8,
    pub(crate) successors: &'static [usize],
    /// Primaries that are to hand their role over, to one of the successors.
    pub(crate) handovers: u8,
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
    pub(crate) late: &'static [usize],
    /// Disks, and followers with what the primary in force sent them, are done with it before anything
    /// but a fault happens.
    pub(crate) prompt: bool,
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
    durability: Durability,
    min_in_sync: u32,
    /// A log that keeps nothing that is checkpointed: who missed something is rebuilt.
    short_log: bool,
    /// The replica that starts only now, and has missed all before.
    absent: Option<usize>,
}

impl Setup {
    fn new(clients: Vec<(Vec<Ask>, usize)>, faults: Faults) -> Self {
        let durability = Durability::SyncAll;
        Self { faults, clients, durability, min_in_sync: 2, short_log: false, absent: None }
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
            let faults = Faults { crashes: 1, crash: &[1], patience: 3, ..Faults::default() };
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
                crash: &[0],
                failovers: 1,
                successors: &[1],
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
                isolate: &[0],
                failovers: 1,
                successors: &[1],
                patience: 4,
                late_repairs: true,
                late: &[0],
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
                Faults { failovers: 1, successors: &[1], coups: true, ..Faults::default() };
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
                Faults { crashes: 1, crash: &[2], doubts: 1, patience: 3, ..Faults::default() };
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
                successors: &[1],
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
                crash: &[0],
                failovers: 1,
                successors: &[1],
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
                crash: &[1],
                isolations: 1,
                isolate: &[0],
                failovers: 1,
                successors: &[1],
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
                Faults { failovers: 1, successors: &[1], coups: true, ..Faults::default() };
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
                crash: &[1],
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
    Spec {
        name: "all-faults-primary-primary",
        about: "two writes; the primary crashes and is cut off, in either order",
        quick: false,
        long: true,
        setup: || all_faults(&[0], &[0]),
    },
    Spec {
        name: "all-faults-primary-heir",
        about: "two writes; the primary crashes, the one that may replace it is cut off",
        quick: false,
        long: true,
        setup: || all_faults(&[0], &[1]),
    },
    Spec {
        name: "all-faults-primary-other",
        about: "two writes; the primary crashes, the third replica is cut off",
        quick: false,
        long: true,
        setup: || all_faults(&[0], &[2]),
    },
    Spec {
        name: "all-faults-heir-primary",
        about: "two writes; the one that may replace it crashes, the primary is cut off",
        quick: false,
        long: true,
        setup: || all_faults(&[1], &[0]),
    },
    Spec {
        name: "all-faults-heir-heir",
        about: "two writes; the one that may replace it crashes and is cut off, in either order",
        quick: false,
        long: true,
        setup: || all_faults(&[1], &[1]),
    },
    Spec {
        name: "all-faults-heir-other",
        about: "two writes; the one that may replace it crashes, the third replica is cut off",
        quick: false,
        long: true,
        setup: || all_faults(&[1], &[2]),
    },
    Spec {
        name: "all-faults-other-primary",
        about: "two writes; the third replica crashes, the primary is cut off",
        quick: false,
        long: true,
        setup: || all_faults(&[2], &[0]),
    },
    Spec {
        name: "all-faults-other-heir",
        about: "two writes; the third replica crashes, the one that may replace it is cut off",
        quick: false,
        long: true,
        setup: || all_faults(&[2], &[1]),
    },
    Spec {
        name: "all-faults-other-other",
        about: "two writes; the third replica crashes and is cut off, in either order",
        quick: false,
        long: true,
        setup: || all_faults(&[2], &[2]),
    },
    Spec {
        name: "handover-raced-by-crash",
        about: "the primary hands its role over while a write is under way; it or its heir crashes",
        quick: false,
        long: false,
        setup: || {
            let faults = Faults {
                handovers: 1,
                crashes: 1,
                crash: &[0, 1],
                failovers: 1,
                successors: &[1],
                patience: 3,
                late_repairs: true,
                ..Faults::default()
            };
            Setup::new(vec![(vec![Write(0)], 1)], faults)
        },
    },
    Spec {
        name: "candidate-of-a-majority",
        about: "`sync_quorum`: the primary crashes with a write under way; a candidate is elected",
        quick: false,
        long: false,
        setup: || {
            let faults = Faults {
                crashes: 1,
                crash: &[0],
                failovers: 1,
                successors: &[1],
                patience: 3,
                late_repairs: true,
                ..Faults::default()
            };
            let mut setup = Setup::new(vec![(vec![Write(0)], 1)], faults);
            setup.durability = Durability::SyncQuorum;
            setup
        },
    },
];

/// Two writes of one client to one block, both under way at once; one crash, one partition and its
/// end, one failover, each at any moment.
fn all_faults(crash: &'static [usize], isolate: &'static [usize]) -> Setup {
    let faults = Faults {
        crashes: 1,
        crash,
        isolations: 1,
        isolate,
        failovers: 1,
        successors: &[1],
        patience: 2,
        late_repairs: true,
        prompt: true,
        ..Faults::default()
    };
    Setup::new(vec![(vec![Write(0), Write(0)], 2)], faults)
}

/// A world by its name.
pub fn world(name: &str) -> Option<&'static Spec> {
    WORLDS.iter().find(|spec| spec.name == name)
}

impl Spec {
    /// The world as its exploration begins: three replicas that serve, clients with their streams
    /// open, all at rest.
    pub(crate) fn begin(&self) -> World {
        let setup = (self.setup)();
        let masters = Masters::new(&ids(), setup.durability, setup.min_in_sync);
        let mut world = World::new(Faults::default(), masters, setup.short_log);
        for (number, (_, window)) in setup.clients.iter().enumerate() {
            let client = Client::new(number, *window);
            change(&mut world.clients, |clients| clients.push(client));
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
    let op = world.history.ops.len();
    let (block, write) = match what {
        Write(block) => (block, Some(10 * (1 + client as u64) + op as u64)),
        Read(block) => (block, None),
    };
    let asked = Asked { client, block, write, after: None, answer: None };
    change(&mut world.history, |history| history.ops.push(asked));
    change(&mut world.clients, |clients| {
        clients[client].ops.push(op);
        clients[client].done.push(false);
    });
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
        self.history = Part::timeless(History { begin, ops: Vec::new() });
        change(&mut self.clients, |clients| clients.iter_mut().for_each(Client::settled));
    }
}
