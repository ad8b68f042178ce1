//! Every state that a world can come to, breadth first, so that a broken rule is shown by one of
//! the shortest runs that break it.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock, RwLock};

use super::action::Action;
use super::graph::{Graph, Met};
use super::world::{Shared, World};
use super::worlds::Spec;

/// What was found in a world. The same every time, on every machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Different states.
    pub states: u64,
    /// Things that can happen in them, in sum.
    pub steps: u64,
    /// The longest of the shortest runs to a state.
    pub depth: u64,
    /// States in which all has come to rest.
    pub ends: u64,
}

impl Counts {
    /// A row of the table in `docs/testing.md`, without the time.
    pub fn row(&self, world: &str) -> String {
        let Counts { states, steps, depth, ends } = self;
        format!("| {world} | {states} | {steps} | {depth} | {ends} |")
    }
}

/// A rule that is broken.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which, in words.
    pub what: String,
    /// What happened from the beginning, one action a line.
    pub run: Vec<String>,
}

/// How many states are expanded before what was found is sorted out.
const PART: usize = 4096;

thread_local! {
    static TRYING: Cell<Option<(u32, Option<Action>)>> = const { Cell::new(None) };
}

/// An exploration of one world.
#[derive(Clone, Debug)]
pub struct Search {
    spec: &'static Spec,
    threads: usize,
    limit: u64,
    verbose: bool,
    #[cfg(feature = "bugs")]
    bug: Option<sbk_engine::bugs::Bug>,
    graph: Arc<RwLock<Graph>>,
    /// Where every run begins. A known bug is put back only after that.
    begin: Arc<OnceLock<World>>,
}

struct Found {
    digest: u64,
    /// `None` if it was known before.
    world: Option<World>,
}

impl Search {
    /// An exploration that gives up beyond `limit` states.
    pub fn new(spec: &'static Spec, threads: usize, limit: u64) -> Self {
        Self {
            spec,
            threads: threads.max(1),
            limit,
            verbose: false,
            #[cfg(feature = "bugs")]
            bug: None,
            graph: Arc::default(),
            begin: Arc::default(),
        }
    }

    /// Explores the world as it is with a known bug.
    #[cfg(feature = "bugs")]
    pub fn with_bug(self, bug: sbk_engine::bugs::Bug) -> Self {
        Self { bug: Some(bug), ..self }
    }

    /// Tells of each depth on standard error.
    pub fn verbose(self, verbose: bool) -> Self {
        Self { verbose, ..self }
    }

    /// What happened up to the step that is being tried on this thread; for a panic hook.
    pub fn trying(&self) -> Vec<String> {
        TRYING.get().map(|(state, action)| self.run_to(state, action)).unwrap_or_default()
    }

    fn run_to(&self, state: u32, last: Option<Action>) -> Vec<String> {
        let (Ok(graph), Some(begin)) = (self.graph.read(), self.begin.get()) else {
            return Vec::new();
        };
        let mut world = begin.clone();
        let mut run = Vec::new();
        for which in graph.way_to(state) {
            let action = world.actions()[which];
            run.push(format!("{action:?}"));
            world.happen(action);
        }
        run.extend(last.map(|action| format!("{action:?}")));
        run
    }

    /// Explores the world to its end.
    ///
    /// # Errors
    /// The first rule that was found broken. Where panics abort, they do.
    pub fn run(&self) -> Result<Counts, Box<Violation>> {
        let first = self.begin.get_or_init(|| self.spec.begin()).clone();
        // A run is told by doing it again, on this thread if none is to blame.
        #[cfg(feature = "bugs")]
        let _bug = self.bug.map(sbk_engine::bugs::put_back);
        let mut met = Met::new();
        met.meet(first.digest());
        let mut counts = Counts { states: 1, ..Counts::default() };
        let mut level = vec![first];
        let mut base = 0u32;
        while !level.is_empty() {
            let mut shared = Shared::default();
            let mut next = Vec::new();
            for part in level.chunks(PART) {
                let expanded = self.expand(base, part, &met)?;
                base += part.len() as u32;
                let mut graph = self.graph.write().expect("nobody panics with it");
                for (rests, successors) in expanded {
                    counts.ends += u64::from(rests);
                    counts.steps += successors.len() as u64;
                    let mut to = Vec::with_capacity(successors.len());
                    for found in successors {
                        let (state, fresh) = met.meet(found.digest);
                        if let Some(mut world) = found.world.filter(|_| fresh) {
                            world.share(&mut shared);
                            next.push(world);
                        }
                        to.push(state);
                    }
                    graph.add(rests, &to);
                }
            }
            level = next;
            counts.states = met.len() as u64;
            counts.depth += u64::from(!level.is_empty());
            if self.verbose {
                let width = level.len();
                eprintln!(
                    "depth {}: {} states, {width} to go on from",
                    counts.depth, counts.states
                );
            }
            if counts.states > self.limit {
                let what = format!("more than {} states, depth {}", self.limit, counts.depth);
                return Err(Box::new(Violation { what, run: Vec::new() }));
            }
        }
        drop(met);
        let stuck = self.graph.read().expect("nobody panics with it").stuck();
        match stuck {
            None => Ok(counts),
            Some(state) => {
                let what = "from here nothing leads to a world at rest (I8)".to_owned();
                Err(Box::new(Violation { what, run: self.run_to(state, None) }))
            }
        }
    }

    /// The successors of every state of a level, in order.
    fn expand(
        &self,
        base: u32,
        level: &[World],
        met: &Met,
    ) -> Result<Vec<(bool, Vec<Found>)>, Box<Violation>> {
        let size = level.len().div_ceil(self.threads).max(64);
        let work = |(n, part): (usize, &[World])| -> Result<Vec<_>, Box<Violation>> {
            #[cfg(feature = "bugs")]
            let _bug = self.bug.map(sbk_engine::bugs::put_back);
            let first = base + (n * size) as u32;
            part.iter()
                .enumerate()
                .map(|(i, world)| self.next(first + i as u32, world, met))
                .collect()
        };
        let work = &work;
        let parts: Result<Vec<_>, _> = std::thread::scope(|scope| {
            let threads: Vec<_> = level
                .chunks(size)
                .enumerate()
                .map(|part| scope.spawn(move || work(part)))
                .collect();
            threads.into_iter().map(|t| t.join().expect("panics are caught")).collect()
        });
        Ok(parts?.into_iter().flatten().collect())
    }

    fn next(
        &self,
        state: u32,
        world: &World,
        met: &Met,
    ) -> Result<(bool, Vec<Found>), Box<Violation>> {
        let actions = world.actions();
        let rests = actions.iter().all(|action| action.is_free()) && world.is_converged();
        let tried = catch_unwind(AssertUnwindSafe(|| {
            if rests {
                TRYING.set(Some((state, None)));
                world.check_end();
            }
            let after = actions.iter().map(|action| {
                TRYING.set(Some((state, Some(*action))));
                let world = world.after(*action);
                let digest = world.digest();
                let world = (!met.contains(digest)).then_some(world);
                Found { digest, world }
            });
            after.collect()
        }));
        match tried {
            Ok(found) => Ok((rests, found)),
            Err(cause) => {
                let text = cause.downcast_ref::<String>().cloned();
                let what = text.or_else(|| cause.downcast_ref::<&str>().map(|s| (*s).to_owned()));
                Err(Box::new(Violation { what: what.unwrap_or_default(), run: self.trying() }))
            }
        }
    }
}
