//! The record of what was written, acknowledged and read, per block, and the check of it.
//!
//! Every write of a block has a number of its own, so a read tells which write it saw. That makes
//! the check for linearizability of a register exact and cheap (Gibbons and Korach, "Testing
//! shared memories", SIAM J. Comput. 26(4), 1997): the operations that wrote or saw one value form
//! a cluster; its zone lies between its first end and its last start. The block is linearizable
//! if and only if no two zones whose first end precedes their last start overlap, and none of the
//! other zones lies within one of them.
//!
//! A write that failed, or was never answered, may have taken effect at any time after its start,
//! or never.
//!
//! Zeros are the one value that is written more than once: by writes of zeros and by trims. One that was
//! acknowledged is a write that nobody is known to have read, and may lie within no zone of another value. A read
//! of zeros must fit at least one of them: with that one it spans a zone, which has to go with the zones
//! of all other values. Each read is asked by itself, so all that is refused is wrong, and not all that is
//! wrong is refused. A write of zeros whose fate is open explains zeros in every later window, and so takes from what
//! is seen of its blocks; a load is to zero only a part of those it uses.
//!
//! The record of a long run is checked window by window: at a point at which nothing is in flight,
//! every block is read once more, the window is checked and [`History::settle`] forgets it. What
//! must outlive a window is what each block holds, and the writes whose fate is still open: they may
//! show up in any later one, once.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;
use uuid::Uuid;

use super::stamp::{Content, Stamp};

/// Operations recorded at most between two [`History::settle`]; about 1 GiB.
pub const MAX_OPERATIONS: u64 = 16 << 20;

/// A point in the record's own order of events. An event that happened after another one in real
/// time has a greater one.
pub type Tick = u64;

/// Something that no correct volume does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The block's number.
    pub block: u64,
    /// What was seen, in words.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {}: {}", self.block, self.what)
    }
}

/// The record of one run. Shared by all writers and readers.
#[derive(Debug)]
pub struct History {
    run: Uuid,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    now: Tick,
    last_write: u64,
    operations: u64,
    acknowledged: u64,
    /// When the record was begun, and which events came first in their millisecond since then: for
    /// people who compare the record with logs.
    begun: Option<Instant>,
    clock: Vec<(Tick, u64)>,
    blocks: BTreeMap<u64, Block>,
    violations: Vec<Violation>,
}

/// What is known of one block since it was last settled.
#[derive(Debug, Default)]
struct Block {
    /// The value at the beginning: a write's number, or `None` for zeros.
    base: Option<u64>,
    /// Writes up to this number belong to windows that were settled. Of those, `base` and the ones
    /// in `writes`, whose fate is open, may still be seen, no other.
    settled: u64,
    writes: BTreeMap<u64, Write>,
    /// Start and end of reads, by the value that they saw.
    reads: BTreeMap<Option<u64>, Vec<(Tick, Tick)>>,
}

#[derive(Clone, Copy, Debug)]
struct Write {
    start: Tick,
    end: Option<Tick>,
    /// Whether it wrote zeros, or trimmed.
    zeros: bool,
}

impl History {
    /// An empty record: all blocks hold zeros.
    pub fn new(run: Uuid) -> Self {
        Self { run, inner: Mutex::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A write of `block` is about to be sent: what to put in it.
    pub fn begin_write(&self, block: u64, writer: u32) -> Stamp {
        let write = self.inner().begin(block, false);
        Stamp { run: self.run, block, write, writer }
    }

    /// The write was acknowledged.
    pub fn acknowledge(&self, stamp: &Stamp) {
        self.inner().acknowledge(stamp.block, stamp.write);
    }

    /// Zeros are about to be written to `block`, or it is about to be trimmed: the number of that.
    pub fn begin_zeros(&self, block: u64) -> u64 {
        self.inner().begin(block, true)
    }

    /// That was acknowledged.
    pub fn acknowledge_zeros(&self, block: u64, write: u64) {
        self.inner().acknowledge(block, write);
    }

    /// A read is about to be sent.
    pub fn begin_read(&self) -> Tick {
        self.inner().tick()
    }

    /// The read that began at `start` was answered: `block` holds `data`.
    pub fn end_read(&self, block: u64, start: Tick, data: &[u8]) {
        let content = Content::of(data);
        let mut inner = self.inner();
        let end = inner.tick();
        let value = match content {
            Content::Zero => Ok(None),
            Content::Stamp(s) if s.run != self.run => {
                Err(format!("it holds a write of another run ({})", s.run))
            }
            Content::Stamp(s) if s.block != block => {
                Err(format!("it holds write {} of block {}", s.write, s.block))
            }
            Content::Stamp(s) => Ok(Some(s.write)),
            Content::Damaged(what) => Err(what),
        };
        match value {
            Ok(value) => {
                let reads = &mut inner.blocks.entry(block).or_default().reads;
                reads.entry(value).or_default().push((start, end));
            }
            Err(what) => inner.violations.push(Violation { block, what }),
        }
    }

    /// Writes acknowledged so far, settled ones too.
    pub fn acknowledged(&self) -> u64 {
        self.inner().acknowledged
    }

    /// The number of the newest write of a block.
    pub fn last_write(&self) -> u64 {
        self.inner().last_write
    }

    /// How many blocks were written since that one, as far as the record was not settled since.
    pub fn blocks_since(&self, write: u64) -> u64 {
        let inner = self.inner();
        let newer = |block: &&Block| block.writes.last_key_value().is_some_and(|(n, _)| *n > write);
        inner.blocks.values().filter(newer).count() as u64
    }

    /// Operations recorded since the record was last settled. The load stops at
    /// [`MAX_OPERATIONS`].
    pub fn operations(&self) -> u64 {
        self.inner().operations
    }

    /// Blocks that were written or read.
    pub fn blocks(&self) -> Vec<u64> {
        self.inner().blocks.keys().copied().collect()
    }

    /// All violations up to now. Empty: everything that was read can be explained by writes that
    /// took effect once each, between their start and their acknowledgement.
    pub fn check(&self) -> Vec<Violation> {
        let inner = self.inner();
        let mut violations = inner.violations.clone();
        for (number, block) in &inner.blocks {
            violations.extend(block.check().map(|what| Violation { block: *number, what }));
        }
        violations
    }

    /// The same for a window in which a failover counted a loss: acknowledged writes may be gone, so the
    /// order of what was read says nothing. Every read must still have seen what was written to its block, not
    /// before it was sent, and nothing that an earlier window had overwritten.
    pub fn check_after_loss(&self) -> Vec<Violation> {
        let inner = self.inner();
        let mut violations = inner.violations.clone();
        for (number, block) in &inner.blocks {
            violations.extend(block.zones().err().map(|what| Violation { block: *number, what }));
        }
        violations
    }

    /// Forgets the operations of all blocks but for what each holds now, and the writes whose fate
    /// is open. To be called when nothing is in flight, after every block was read once more and
    /// [`check`](Self::check), or [`check_after_loss`](Self::check_after_loss), was empty. What was lost does
    /// not come back then: a replica that still has it is cut or rebuilt before it is in sync.
    pub fn settle(&self) {
        let mut inner = self.inner();
        inner.operations = 0;
        inner.clock.clear();
        let last_write = inner.last_write;
        for block in inner.blocks.values_mut() {
            block.settle(last_write);
        }
    }

    /// Writes whose fate is open: neither acknowledged nor seen.
    pub fn open_writes(&self) -> u64 {
        let inner = self.inner();
        inner.blocks.values().map(|b| b.open_writes().count() as u64).sum()
    }

    /// All that is recorded of `block` since the last [`settle`](Self::settle), a line for each
    /// operation in order of its start: the events' numbers, and milliseconds since the record was
    /// begun.
    pub fn told(&self, block: u64) -> Vec<String> {
        let inner = self.inner();
        inner.blocks.get(&block).map_or_else(Vec::new, |known| known.told(|at| inner.millis(at)))
    }
}

impl Inner {
    fn begin(&mut self, block: u64, zeros: bool) -> u64 {
        let start = self.tick();
        self.last_write += 1;
        let (number, write) = (self.last_write, Write { start, end: None, zeros });
        let old = self.blocks.entry(block).or_default().writes.insert(number, write);
        assert!(old.is_none(), "write numbers are never used twice");
        number
    }

    fn acknowledge(&mut self, block: u64, write: u64) {
        let end = self.tick();
        self.acknowledged += 1;
        let write = self.blocks.get_mut(&block).and_then(|b| b.writes.get_mut(&write));
        write.expect("a write begins before it is acknowledged").end = Some(end);
    }

    fn tick(&mut self) -> Tick {
        self.operations += 1;
        self.now += 1;
        let begun = *self.begun.get_or_insert_with(Instant::now);
        let millis = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        if self.clock.last().is_none_or(|(_, last)| *last < millis) {
            self.clock.push((self.now, millis));
        }
        self.now
    }

    /// Milliseconds since the record was begun; `None` for an event of a settled window.
    fn millis(&self, at: Tick) -> Option<u64> {
        let after = self.clock.partition_point(|(tick, _)| *tick <= at);
        after.checked_sub(1).map(|i| self.clock[i].1)
    }
}

/// What all operations on one value span, or one write of zeros.
#[derive(Clone, Copy, Debug)]
struct Zone {
    value: Option<u64>,
    zeros: bool,
    first_end: Tick,
    last_start: Tick,
}

impl Zone {
    fn is_forward(&self) -> bool {
        self.first_end < self.last_start
    }

    /// Whether they can't both be: they would take turns.
    fn excludes(&self, other: &Self) -> bool {
        let meet = self.first_end < other.last_start && other.first_end < self.last_start;
        (self.is_forward() || other.is_forward()) && meet
    }
}

impl Block {
    /// What zeros may be those of: what was there before anything else, writes of zeros, and trims.
    fn sources_of_zeros(&self) -> impl Iterator<Item = Write> {
        let before = Write { start: 0, end: Some(0), zeros: true };
        let writes = self.writes.values().filter(|write| write.zeros).copied();
        self.base.is_none().then_some(before).into_iter().chain(writes)
    }

    /// What is wrong with the reads of zeros, where zeros were written, if anything is.
    fn check_zeros(&self, zones: &[Zone]) -> Option<String> {
        if !self.writes.values().any(|write| write.zeros) {
            // They are a value like the others.
            return None;
        }
        let others: Vec<&Zone> = zones.iter().filter(|zone| !zone.zeros).collect();
        let fits = |start: Tick, end: Tick, source: Write| {
            let (first_end, last_start) =
                (source.end.map_or(end, |at| at.min(end)), source.start.max(start));
            let zone = Zone { value: None, zeros: true, first_end, last_start };
            source.start < end && !others.iter().any(|other| zone.excludes(other))
        };
        let reads = self.reads.get(&None).into_iter().flatten();
        let wrong = reads
            .copied()
            .find(|(start, end)| !self.sources_of_zeros().any(|source| fits(*start, *end, source)));
        wrong.map(|(start, _)| {
            format!("the read sent at {start} saw zeros, and no write of zeros or trim explains it")
        })
    }

    fn open_writes(&self) -> impl Iterator<Item = (&u64, &Write)> {
        self.writes.iter().filter(|(number, write)| {
            write.end.is_none() && !self.reads.contains_key(&Some(**number))
        })
    }

    /// What was read last is what the block holds.
    fn settle(&mut self, last_write: u64) {
        let reads = self.reads.iter();
        let last = reads.flat_map(|(v, reads)| reads.iter().map(move |(start, _)| (*start, *v)));
        let Some((_, base)) = last.max() else { return };
        let writes = self.open_writes().map(|(number, write)| (*number, *write)).collect();
        *self = Self { base, settled: last_write, writes, reads: BTreeMap::new() };
    }

    fn told(&self, millis: impl Fn(Tick) -> Option<u64>) -> Vec<String> {
        let at = |tick: Tick| match millis(tick) {
            Some(millis) => format!("{tick} ({millis} ms)"),
            None => format!("{tick} (before this window)"),
        };
        let mut lines = vec![(0, format!("at the beginning: {}", name(self.base)))];
        for (number, write) in &self.writes {
            let end = write.end.map_or_else(|| "never".to_owned(), at);
            let what = if write.zeros { "zeros" } else { "write" };
            let text = format!("{what} {number}: sent {}, acknowledged {end}", at(write.start));
            lines.push((write.start, text));
        }
        for (value, reads) in &self.reads {
            for (start, end) in reads {
                let text =
                    format!("read: sent {}, saw {} at {}", at(*start), name(*value), at(*end));
                lines.push((*start, text));
            }
        }
        lines.sort();
        lines.into_iter().map(|(_, text)| text).collect()
    }

    /// The zones of all values that were seen or acknowledged, or why there can be none.
    fn zones(&self) -> Result<Vec<Zone>, String> {
        let mut zones: BTreeMap<Option<u64>, Zone> = BTreeMap::new();
        let zeroed = self.writes.values().any(|write| write.zeros);
        let zeros = zeroed && self.base.is_none();
        let base = Zone { value: self.base, zeros, first_end: 0, last_start: 0 };
        zones.insert(self.base, base);
        for (number, write) in &self.writes {
            let value = Some(*number);
            let (first_end, last_start) = (write.end.unwrap_or(Tick::MAX), write.start);
            let zone = Zone { value, zeros: write.zeros, first_end, last_start };
            // One that was neither acknowledged nor seen is free to not have happened.
            if write.end.is_some() || self.reads.contains_key(&value) {
                zones.insert(value, zone);
            }
        }
        for (value, reads) in &self.reads {
            if value.is_none() && zeroed {
                let explained = |end: Tick| self.sources_of_zeros().any(|s| s.start < end);
                match reads.iter().all(|(_, end)| explained(*end)) {
                    true => continue,
                    false => return Err("a read saw zeros before any were sent".to_owned()),
                }
            }
            let Entry::Occupied(mut zone) = zones.entry(*value) else {
                let gone = value.is_none_or(|write| write <= self.settled);
                let why = if gone { "was overwritten for good" } else { "was never written" };
                return Err(format!("a read saw {}, which {why}", name(*value)));
            };
            let zone = zone.get_mut();
            let written = value.and_then(|v| self.writes.get(&v)).map_or(0, |w| w.start);
            for (start, end) in reads {
                if *end < written {
                    return Err(format!("a read saw {} before it was sent", name(*value)));
                }
                zone.first_end = zone.first_end.min(*end);
                zone.last_start = zone.last_start.max(*start);
            }
        }
        Ok(zones.into_values().collect())
    }

    /// What is wrong with the block's history, if anything is.
    fn check(&self) -> Option<String> {
        let zones = match self.zones() {
            Ok(zones) => zones,
            Err(what) => return Some(what),
        };
        let mut forward: Vec<Zone> = zones.iter().copied().filter(Zone::is_forward).collect();
        forward.sort_by_key(|z| z.first_end);
        for pair in forward.windows(2) {
            if pair[1].first_end < pair[0].last_start {
                return Some(format!(
                    "{} was there, then {}, then {} again",
                    name(pair[0].value),
                    name(pair[1].value),
                    name(pair[0].value)
                ));
            }
        }
        for zone in zones.iter().filter(|z| !z.is_forward()) {
            let before = forward.partition_point(|f| f.first_end < zone.last_start);
            if let Some(around) = before.checked_sub(1).map(|i| forward[i])
                && zone.first_end < around.last_start
            {
                return Some(format!(
                    "{} was lost: it took effect after {} did, but a later read saw {}",
                    name(zone.value),
                    name(around.value),
                    name(around.value)
                ));
            }
        }
        self.check_zeros(&zones)
    }
}

fn name(value: Option<u64>) -> String {
    match value {
        Some(write) => format!("write {write}"),
        None => "zeros".to_owned(),
    }
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
