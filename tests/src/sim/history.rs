//! What clients saw, and whether one copy of each block could have shown it.
//!
//! A block is two registers: the sector that partial writes change, and the rest. Each write has a
//! value of its own, so linearizability is decided in O(n log n) (Gibbons and Korach, Testing
//! Shared Memories, SIAM J. Comput. 1997): a write and the reads of its value form a cluster; with
//! the first answer in it at `f` and the last invocation at `s`, the value is there all the time
//! from `f` to `s` if `f < s` (a forward zone), else at some time from `s` to `f` (a backward
//! zone). A history is linearizable if no value is read before it was written, no two forward zones
//! overlap, and no backward zone lies within a forward one.
//!
//! A write of an attachment that has ended takes effect before its end was known, or never.
//!
//! A loss begins a new age: what the chosen log held is there from then on, as if it had been
//! written at once, and it must be what was acknowledged last before and was not lost.

use std::collections::BTreeMap;
use std::ops::Range;

use sbk_engine::types::LossGeneration;

use super::attachments::Holder;
use super::content::Seen;

/// Which part of a block a write covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// All of it.
    Whole,
    /// The one sector that partial writes change.
    Part,
}

type Register = (u64, Place);

/// A write, from its first sending to its answer. One without an answer may take effect at any
/// time, or never.
#[derive(Clone, Copy, Debug)]
struct Write {
    client: u64,
    holder: Holder,
    invoked: u64,
    answered: Option<u64>,
    /// When its client was told an error. It may have taken effect, or may do so still, but not
    /// over a later write of the same frontend.
    given_up: Option<u64>,
    /// In which age it was answered.
    age: LossGeneration,
    /// Whether it is lost in the age that is looked at.
    lost: bool,
}

#[derive(Clone, Copy, Debug)]
struct Read {
    value: u64,
    invoked: u64,
    answered: u64,
    /// In which age.
    age: LossGeneration,
}

/// Times are event numbers: every event has another one.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    clock: u64,
    writes: BTreeMap<u64, Write>,
    /// Where each write went.
    places: BTreeMap<u64, (u64, Place)>,
    reads: BTreeMap<Register, Vec<Read>>,
    answered_reads: usize,
    /// In which ages writes are lost: from one that began without it, until one that began with it
    /// again, for a second loss may go on with a log of before the first.
    absences: BTreeMap<u64, Vec<Range<LossGeneration>>>,
    /// When each age after the first began.
    losses: Vec<u64>,
    /// By when attachments had ended: what they asked for takes effect before, or never.
    fenced: BTreeMap<Holder, u64>,
}

/// A value, from the first time that it must have been there to the last.
#[derive(Clone, Copy, Debug)]
struct Zone {
    value: u64,
    from: u64,
    to: u64,
}

impl History {
    pub(crate) fn now(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A write of the unique `value`.
    pub(crate) fn write(&mut self, value: u64, block: u64, place: Place, by: (u64, Holder)) {
        let invoked = self.now();
        self.places.insert(value, (block, place));
        self.writes.insert(value, Write::new(by, invoked));
    }

    pub(crate) fn written(&mut self, value: u64, age: LossGeneration) {
        let now = self.now();
        if let Some(write) = self.writes.get_mut(&value) {
            write.answered = Some(now);
            write.age = age;
        }
    }

    /// An age begins, without the lost and with the found. Those before it that never began by
    /// themselves are over.
    pub(crate) fn lose(&mut self, age: LossGeneration, lost: &[u64], found: &[u64]) {
        let now = self.now();
        self.losses.resize(age.0 as usize, now);
        for value in lost {
            let absences = self.absences.entry(*value).or_default();
            if !absences.iter().any(|absence| absence.contains(&age)) {
                absences.push(age..LossGeneration(u64::MAX));
            }
        }
        for value in found {
            for absence in self.absences.entry(*value).or_default() {
                absence.end = absence.end.min(age);
            }
        }
    }

    /// Whether a write was acknowledged.
    pub(crate) fn has_written(&self, value: u64) -> bool {
        self.writes.get(&value).is_some_and(|write| write.answered.is_some())
    }

    /// An attachment has ended.
    pub(crate) fn fence(&mut self, holder: Holder) {
        let now = self.now();
        self.fenced.entry(holder).or_insert(now);
    }

    /// Something that an attachment asked for is answered.
    pub(crate) fn check_holder(&self, holder: Holder, invoked: u64) {
        let over = self.fenced.get(&holder).is_some_and(|fenced| *fenced < invoked);
        assert!(!over, "I3: what was asked for after the attachment's end is done");
    }

    /// An error was the answer.
    pub(crate) fn gave_up(&mut self, value: u64) {
        let now = self.now();
        if let Some(write) = self.writes.get_mut(&value) {
            write.given_up = Some(now);
        }
    }

    pub(crate) fn read(&mut self, block: u64, seen: Seen, invoked: u64, age: LossGeneration) {
        let answered = self.now();
        self.answered_reads += 1;
        for (place, value) in [(Place::Whole, seen.whole), (Place::Part, seen.part)] {
            let read = Read { value, invoked, answered, age };
            self.reads.entry((block, place)).or_default().push(read);
        }
    }

    pub(crate) fn acknowledged(&self) -> usize {
        self.writes.values().filter(|write| write.answered.is_some()).count()
    }

    pub(crate) fn answered_reads(&self) -> usize {
        self.answered_reads
    }

    /// Whether each register is linearizable; see the module's documentation.
    pub(crate) fn check(&self) {
        for (register, reads) in &self.reads {
            for age in (0..=self.losses.len() as u64).map(LossGeneration) {
                let reads: Vec<Read> = reads.iter().filter(|r| r.age == age).copied().collect();
                self.check_age(*register, age, &reads);
            }
        }
    }

    fn check_age(&self, register: Register, age: LossGeneration, reads: &[Read]) {
        let (block, place) = register;
        let writes: BTreeMap<u64, Write> = self
            .places
            .iter()
            .filter(|(_, (of, on))| *of == block && (*on == place || *on == Place::Whole))
            .map(|(value, _)| {
                let absences = self.absences.get(value).into_iter().flatten();
                let lost = absences.clone().any(|absence| absence.contains(&age));
                (*value, Write { lost, ..self.writes[value] })
            })
            .collect();
        // What was there before the first write.
        let mut nothing = Write::new((0, Holder(0)), 0);
        nothing.answered = Some(0);
        let began = age.0.checked_sub(1).map(|before| self.losses[before as usize]);
        let mut zones: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for (value, write) in writes.iter().chain([(&0, &nothing)]) {
            if let Some(answered) = write.answered.filter(|_| write.age == age) {
                zones.insert(*value, (answered, write.invoked));
            }
        }
        if let Some(began) = began
            && let Some(first) = check_first(block, age, &writes, reads)
        {
            zones.insert(first, (began, began));
        }
        for read in reads {
            let write = match read.value {
                0 => &nothing,
                value => {
                    let write = writes.get(&value);
                    let elsewhere = self.places.get(&value).is_some_and(|(of, _)| *of != block);
                    assert!(!elsewhere, "I4: block {block} shows {value}, which went elsewhere");
                    write.unwrap_or_else(|| {
                        panic!("I3: block {block} shows {value}, a read from the future")
                    })
                }
            };
            assert!(write.invoked < read.answered, "I3: block {block}: a read from the future");
            let fenced = self.fenced.get(&write.holder).filter(|_| read.value != 0);
            let latest = fenced.map_or(read.answered, |fenced| read.answered.min(*fenced));
            let zone = zones.entry(read.value).or_insert((u64::MAX, write.invoked));
            *zone = (zone.0.min(latest), zone.1.max(read.invoked));
        }
        check_zones(block, &zones, &writes);
        let mut writes = writes;
        writes.retain(|_, write| !write.lost);
        check_given_up(block, &writes, reads);
    }
}

impl Write {
    fn new((client, holder): (u64, Holder), invoked: u64) -> Self {
        let age = LossGeneration(0);
        Self { client, holder, invoked, answered: None, given_up: None, age, lost: false }
    }
}

/// What was there when an age after a loss began, if a read tells: one value, that was not lost, and
/// with none acknowledged after it but such as were.
fn check_first(
    block: u64,
    age: LossGeneration,
    writes: &BTreeMap<u64, Write>,
    reads: &[Read],
) -> Option<u64> {
    let answered_before = |write: &&Write| write.answered.is_some() && write.age < age;
    let mut first = None;
    for read in reads {
        let write = writes.get(&read.value);
        if write.is_some_and(|write| write.lost) {
            panic!("I2: block {block}: write {} was lost, and is back in age {age}", read.value);
        }
        if read.value != 0 && write.filter(answered_before).is_none() {
            continue;
        }
        let one = *first.get_or_insert(read.value);
        assert_eq!(one, read.value, "I2: block {block}: age {age} begins with two values");
    }
    let first = first?;
    let over = writes.get(&first).map_or(Some(0), |write| write.answered);
    let after = writes.iter().filter(|(_, write)| answered_before(write) && !write.lost);
    for (value, write) in after {
        assert!(
            over.is_none_or(|over| write.invoked < over),
            "I2: block {block}: age {age} begins with {first}, but {value} was acknowledged over it \
             and not lost"
        );
    }
    Some(first)
}

fn check_zones(block: u64, zones: &BTreeMap<u64, (u64, u64)>, writes: &BTreeMap<u64, Write>) {
    let zone =
        |(value, (from, to)): (&u64, &(u64, u64))| Zone { value: *value, from: *from, to: *to };
    let (mut forward, backward): (Vec<_>, Vec<_>) =
        zones.iter().map(zone).partition(|zone| zone.from < zone.to);
    forward.sort_by_key(|zone| zone.from);
    for pair in forward.windows(2) {
        let (earlier, later) = (pair[0], pair[1]);
        assert!(
            earlier.to <= later.from,
            "I3: block {block}: write {} is there until {}, and write {} from {} on",
            earlier.value,
            earlier.to,
            later.value,
            later.from
        );
    }
    for zone in backward {
        // Some time from `to` to `from`.
        let (first, last) = (zone.to, zone.from);
        let before = forward.partition_point(|other| other.from < first);
        let around = before.checked_sub(1).map(|at| forward[at]).filter(|other| last < other.to);
        let Some(around) = around else { continue };
        let acknowledged = writes.get(&zone.value).is_some_and(|write| write.answered.is_some());
        let other = around.value;
        assert!(
            !acknowledged,
            "I2: block {block}: write {} was acknowledged between {first} and {last}, and write \
             {other} is there from {} to {}",
            zone.value, around.from, around.to
        );
        panic!(
            "I3: block {block}: write {} was seen between {first} and {last}, and write {other} is \
             there from {} to {}",
            zone.value, around.from, around.to
        );
    }
}

/// A write that its client was told to have failed does not take effect over a later one of the
/// same frontend that was acknowledged.
fn check_given_up(block: u64, writes: &BTreeMap<u64, Write>, reads: &[Read]) {
    let mut acknowledged: BTreeMap<u64, Vec<(u64, u64)>> = BTreeMap::new();
    for write in writes.values() {
        if let Some(answered) = write.answered {
            acknowledged.entry(write.client).or_default().push((write.invoked, answered));
        }
    }
    for list in acknowledged.values_mut() {
        list.sort_unstable();
        // The earliest answer of this and all later ones.
        let mut earliest = u64::MAX;
        for (_, answered) in list.iter_mut().rev() {
            earliest = earliest.min(*answered);
            *answered = earliest;
        }
    }
    for read in reads {
        let Some(write) = writes.get(&read.value) else { continue };
        let Some(given_up) = write.given_up else { continue };
        let Some(list) = acknowledged.get(&write.client) else { continue };
        let after = list.partition_point(|(invoked, _)| *invoked <= given_up);
        if let Some((_, answered)) = list.get(after) {
            assert!(
                read.invoked < *answered,
                "I3: block {block}: write {}, which was given up, took effect over a later one",
                read.value
            );
        }
    }
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
