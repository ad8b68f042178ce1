//! Every state that a world can come to, breadth first, so that a broken rule is shown by one of
//! the shortest runs that break it.

use std::cell::Cell;
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, RwLock};

use super::action::Action;
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

/// The first step of every state's shortest run back.
type Parents = Arc<RwLock<Vec<(u32, Action)>>>;

/// How many states are expanded before what was found is sorted out.
const PART: usize = 4096;

thread_local! {
    static TRYING: Cell<Option<(u32, Action)>> = const { Cell::new(None) };
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
    parents: Parents,
}

struct Found {
    parent: u32,
    action: Action,
    digest: u64,
    /// `None` if it was known before.
    world: Option<World>,
}

/// Where a run from a state can lead, for the check that every state can come to rest.
#[derive(Default)]
struct Graph {
    /// Of each state where its successors end in `to`.
    ends: Vec<u64>,
    to: Vec<u32>,
    rests: Vec<bool>,
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
            parents: Parents::default(),
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
        TRYING.get().map(|(state, action)| self.run_to(state, Some(action))).unwrap_or_default()
    }

    fn run_to(&self, state: u32, last: Option<Action>) -> Vec<String> {
        let Ok(parents) = self.parents.read() else { return Vec::new() };
        let mut run: Vec<_> = last.into_iter().collect();
        let mut at = state;
        while at != 0 {
            let (parent, action) = parents[at as usize];
            run.push(action);
            at = parent;
        }
        run.iter().rev().map(|action| format!("{action:?}")).collect()
    }

    /// Explores the world to its end.
    ///
    /// # Errors
    /// The first rule that was found broken. Where panics abort, they do.
    pub fn run(&self) -> Result<Counts, Box<Violation>> {
        let mut first = self.spec.begin();
        let mut known = HashMap::from([(first.digest(), 0u32)]);
        self.parents.write().expect("nobody panics with it").push((0, Action::Pass));
        let mut graph = Graph::default();
        let mut counts = Counts { states: 1, ..Counts::default() };
        let mut level = vec![first];
        let mut base = 0u32;
        while !level.is_empty() {
            let mut shared = Shared::default();
            let mut next = Vec::new();
            for part in level.chunks(PART) {
                let expanded = self.expand(base, part, &known)?;
                base += part.len() as u32;
                let mut parents = self.parents.write().expect("nobody panics with it");
                for (rests, successors) in expanded {
                    counts.ends += u64::from(rests);
                    counts.steps += successors.len() as u64;
                    graph.rests.push(rests);
                    for found in successors {
                        let fresh = known.len() as u32;
                        let state = *known.entry(found.digest).or_insert(fresh);
                        if let Some(mut world) = found.world.filter(|_| state == fresh) {
                            parents.push((found.parent, found.action));
                            world.share(&mut shared);
                            next.push(world);
                        }
                        graph.to.push(state);
                    }
                    graph.ends.push(graph.to.len() as u64);
                }
            }
            level = next;
            counts.states = known.len() as u64;
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
        match graph.stuck() {
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
        known: &HashMap<u64, u32>,
    ) -> Result<Vec<(bool, Vec<Found>)>, Box<Violation>> {
        let size = level.len().div_ceil(self.threads).max(64);
        let work = |(n, part): (usize, &[World])| -> Result<Vec<_>, Box<Violation>> {
            #[cfg(feature = "bugs")]
            let _bug = self.bug.map(sbk_engine::bugs::put_back);
            let first = base + (n * size) as u32;
            part.iter()
                .enumerate()
                .map(|(i, world)| self.next(first + i as u32, world, known))
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
        known: &HashMap<u64, u32>,
    ) -> Result<(bool, Vec<Found>), Box<Violation>> {
        let actions = world.actions();
        let rests = actions.iter().all(|action| action.is_free()) && world.is_converged();
        let tried = catch_unwind(AssertUnwindSafe(|| {
            if rests {
                TRYING.set(Some((state, Action::Pass)));
                world.check_end();
            }
            let after = actions.iter().map(|action| {
                TRYING.set(Some((state, *action)));
                let mut world = world.after(*action);
                let digest = world.digest();
                let world = (!known.contains_key(&digest)).then_some(world);
                Found { parent: state, action: *action, digest, world }
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

impl Graph {
    /// A state from which no state at rest can be reached.
    fn stuck(&self) -> Option<u32> {
        let states = self.rests.len();
        let from = |state: usize| if state == 0 { 0 } else { self.ends[state - 1] as usize };
        // The edges turned round: counted, then filled in.
        let mut starts = vec![0u64; states + 1];
        self.to.iter().for_each(|to| starts[*to as usize + 1] += 1);
        (0..states).for_each(|i| starts[i + 1] += starts[i]);
        let mut back = vec![0u32; self.to.len()];
        let mut next = starts.clone();
        for state in 0..states {
            for to in &self.to[from(state)..self.ends[state] as usize] {
                back[next[*to as usize] as usize] = state as u32;
                next[*to as usize] += 1;
            }
        }
        let mut reaches = self.rests.clone();
        let mut open: Vec<u32> = (0..states as u32).filter(|s| reaches[*s as usize]).collect();
        while let Some(state) = open.pop() {
            let edges = starts[state as usize] as usize..starts[state as usize + 1] as usize;
            for parent in &back[edges] {
                if !std::mem::replace(&mut reaches[*parent as usize], true) {
                    open.push(*parent);
                }
            }
        }
        reaches.iter().position(|reaches| !reaches).map(|state| state as u32)
    }
}
